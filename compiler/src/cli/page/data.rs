//! What the page draws, as JSON: reports with layers that came out equal told once.
//!
//! Within a section, nodes name each other by index: `3` here, `-1:3` in the layer before, `first:3` and `last:3` outside the
//! layers. In texts, `layers.{0}` is the section's own layer. So two layers are equal exactly if their texts are.

use crate::cli::explain::Reports;
use indexmap::{IndexMap, IndexSet};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use weldment_passes::report::{AnchorReport, GraphNode, NodeReport, Outcome, Reason, Report, RuleStep};

/// Everything that the page's script reads.
#[derive(Debug, Serialize)]
pub struct PageData {
    /// The source path to show first.
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    /// Fusions, by the index that others use.
    fusions: Vec<String>,
    /// Rules of all chains, by the index that chains use.
    rules: Vec<RuleText>,
    variants: Vec<VariantData>,
}

#[derive(Debug, PartialEq, Eq, Hash, Serialize)]
struct RuleText {
    rule: String,
    class: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fusion: Option<usize>,
    text: String,
}

#[derive(Debug, Serialize)]
struct VariantData {
    name: String,
    policy: String,
    disabled: Vec<String>,
    dims: BTreeMap<String, u64>,
    /// Ranges of the symbols that tell variants apart.
    ranges: BTreeMap<String, [u64; 2]>,
    /// Before and after.
    launches: [usize; 2],
    bytes: [u64; 2],
    /// One a fusion.
    fusions: Vec<Counts>,
    sections: Vec<Section>,
}

#[derive(Debug, Default, Serialize)]
struct Counts {
    total: usize,
    fused: usize,
    /// By op.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    absorbed: BTreeMap<String, usize>,
}

/// Equal layers, or what is outside all.
#[derive(Debug, Serialize)]
struct Section {
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<&'static str>,
    layers: Vec<u32>,
    /// Node numbers of each layer, or of the one copy outside the layers.
    ids: Vec<Ids>,
    #[serde(flatten)]
    body: Body,
}

#[derive(Debug, Serialize)]
struct Ids {
    before: Vec<u32>,
    after: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq, Hash, Serialize)]
struct Body {
    before: Vec<Node>,
    after: Vec<Node>,
    places: Vec<PlaceData>,
}

#[derive(Debug, Default, PartialEq, Eq, Hash, Serialize)]
struct Node {
    op: String,
    #[serde(rename = "type")]
    ty: String,
    sources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    operands: Vec<Reference>,
    #[serde(skip_serializing_if = "is_zero")]
    bytes: u64,
    launch: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stands_for: Vec<Reference>,
    #[serde(skip_serializing_if = "is_nothing")]
    launches_saved: i64,
    #[serde(skip_serializing_if = "is_nothing")]
    bytes_saved: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chain: Vec<usize>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_nothing(n: &i64) -> bool {
    *n == 0
}

#[derive(Debug, PartialEq, Eq, Hash, Serialize)]
struct PlaceData {
    fusion: usize,
    nodes: Vec<Reference>,
    paths: Vec<String>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Value>,
}

#[derive(Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
enum Reference {
    Here(usize),
    There(String),
}

/// Where a node is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Ahead of the layers.
    First,
    Layer(u32),
    /// Behind them.
    Last,
}

impl Place {
    fn layer(self) -> Option<u32> {
        match self {
            Place::Layer(layer) => Some(layer),
            Place::First | Place::Last => None,
        }
    }
}

/// What is collected for one place, in node order.
#[derive(Default)]
struct Members<'a> {
    before: Vec<&'a GraphNode>,
    after: Vec<&'a NodeReport>,
    anchors: Vec<(usize, &'a AnchorReport)>,
}

/// Node number to (place, index there).
type Places = BTreeMap<u32, (Place, usize)>;

/// Sorts nodes, given as (number, layer), into places.
fn places(nodes: impl Iterator<Item = (u32, Option<u32>)> + Clone) -> Places {
    let first_layer = nodes.clone().find(|(_, layer)| layer.is_some()).map(|(number, _)| number);
    let mut sizes: BTreeMap<Place, usize> = BTreeMap::new();
    let mut out = Places::new();
    for (number, layer) in nodes {
        let place = match layer {
            Some(layer) => Place::Layer(layer),
            None if first_layer.is_none_or(|first| number < first) => Place::First,
            None => Place::Last,
        };
        let size = sizes.entry(place).or_default();
        out.insert(number, (place, *size));
        *size += 1;
    }
    out
}

/// `number` as a node of `from` names it; `None` for a number that the report does not list.
fn reference(places: &Places, from: Place, number: u32) -> Option<Reference> {
    let (place, index) = *places.get(&number)?;
    Some(match (place, from) {
        _ if place == from => Reference::Here(index),
        (Place::Layer(to), Place::Layer(from)) => {
            Reference::There(format!("{}:{index}", i64::from(to) - i64::from(from)))
        }
        (Place::Layer(to), _) => Reference::There(format!("{to}:{index}")),
        (Place::First, _) => Reference::There(format!("first:{index}")),
        (Place::Last, _) => Reference::There(format!("last:{index}")),
    })
}

/// `text` with every layer number of a path relative to `layer`: `layers.7.mlp` seen from 8 is `layers.{-1}.mlp`.
fn relative(text: &str, layer: Option<u32>) -> String {
    const PREFIX: &str = "layers.";
    let Some(layer) = layer else { return text.to_owned() };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(PREFIX) {
        let (head, tail) = rest.split_at(at + PREFIX.len());
        out += head;
        let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = tail.split_at(digits);
        match number.parse::<i64>() {
            Ok(n) => out += &format!("{{{}}}", n - i64::from(layer)),
            Err(_) => out += number,
        }
        rest = after;
    }
    out + rest
}

/// Rules of chains, each once.
#[derive(Default)]
struct Rules {
    known: IndexSet<RuleText>,
}

impl Rules {
    fn chain(&mut self, chain: &[RuleStep], fusions: &[String]) -> Vec<usize> {
        let mut add = |step: &RuleStep| {
            let fusion = step.group.as_ref().and_then(|g| fusions.iter().position(|f| f == g));
            let RuleStep { rule, class, text, .. } = step.clone();
            self.known.insert_full(RuleText { rule, class, fusion, text }).0
        };
        chain.iter().map(&mut add).collect()
    }
}

/// One variant under construction.
struct Folder<'a> {
    report: &'a Report,
    fusions: &'a [String],
    before: Places,
    after: Places,
}

impl<'a> Folder<'a> {
    fn new(report: &'a Report, fusions: &'a [String]) -> Folder<'a> {
        let before = places(report.before.iter().map(|n| (n.node, n.layer)));
        let after = places(report.nodes.iter().map(|n| (n.node, n.layer)));
        Folder { report, fusions, before, after }
    }

    fn members(&self) -> BTreeMap<Place, Members<'a>> {
        let mut members: BTreeMap<Place, Members<'a>> = BTreeMap::new();
        for node in &self.report.before {
            if let Some((place, _)) = self.before.get(&node.node) {
                members.entry(*place).or_default().before.push(node);
            }
        }
        for node in &self.report.nodes {
            if let Some((place, _)) = self.after.get(&node.node) {
                members.entry(*place).or_default().after.push(node);
            }
        }
        for group in &self.report.groups {
            let Some(fusion) = self.fusions.iter().position(|f| *f == group.name) else { continue };
            for anchor in &group.anchors {
                let first = anchor.nodes.iter().find_map(|n| self.before.get(n));
                let place = first.map_or(Place::First, |(place, _)| *place);
                members.entry(place).or_default().anchors.push((fusion, anchor));
            }
        }
        members
    }

    fn sections(&self, rules: &mut Rules) -> Vec<Section> {
        let mut first = None;
        let mut last = None;
        let mut layers: IndexMap<Body, (Vec<u32>, Vec<Ids>)> = IndexMap::new();
        for (place, members) in self.members() {
            let ids = Ids {
                before: members.before.iter().map(|n| n.node).collect(),
                after: members.after.iter().map(|n| n.node).collect(),
            };
            let body = self.body(place, &members, rules);
            let outside = |name| Section { place: Some(name), layers: Vec::new(), ids: Vec::new(), body: Body::EMPTY };
            match place {
                Place::First => first = Some(Section { ids: vec![ids], body, ..outside("first") }),
                Place::Last => last = Some(Section { ids: vec![ids], body, ..outside("last") }),
                Place::Layer(layer) => {
                    let (numbers, copies) = layers.entry(body).or_default();
                    numbers.push(layer);
                    copies.push(ids);
                }
            }
        }
        let layers = layers.into_iter().map(|(body, (layers, ids))| Section { place: None, layers, ids, body });
        first.into_iter().chain(layers).chain(last).collect()
    }

    fn body(&self, place: Place, members: &Members<'_>, rules: &mut Rules) -> Body {
        let layer = place.layer();
        let texts = |set: &std::collections::BTreeSet<String>| set.iter().map(|s| relative(s, layer)).collect();
        let references = |places: &Places, numbers: &[u32]| -> Vec<Reference> {
            numbers.iter().filter_map(|n| reference(places, place, *n)).collect()
        };
        let before = members.before.iter().map(|n| Node {
            op: n.op.clone(),
            ty: n.ty.clone(),
            sources: texts(&n.sources),
            operands: references(&self.before, &n.operands),
            bytes: n.bytes,
            launch: n.launch,
            ..Node::default()
        });
        let after = members.after.iter().map(|n| Node {
            op: n.op.clone(),
            ty: n.ty.clone(),
            sources: texts(&n.sources),
            operands: references(&self.after, &n.operands),
            bytes: n.bytes,
            launch: n.launch,
            stands_for: references(&self.before, &n.stands_for),
            launches_saved: n.launches_saved,
            bytes_saved: n.bytes_saved,
            chain: rules.chain(&n.chain, self.fusions),
        });
        let anchors = members.anchors.iter().map(|(fusion, anchor)| {
            let (outcome, into, reason) = match &anchor.outcome {
                Outcome::Fused { into } => ("fused", Some(into.clone()), None),
                Outcome::Absorbed { by } => ("absorbed", Some(by.clone()), None),
                Outcome::Kept { reason } => ("kept", None, Some(self.reason(reason, place))),
            };
            let nodes = references(&self.before, &anchor.nodes);
            PlaceData { fusion: *fusion, nodes, paths: texts(&anchor.paths), outcome, into, reason }
        });
        Body { before: before.collect(), after: after.collect(), places: anchors.collect() }
    }

    /// The reason's own JSON, and as a sentence, with relative layers and nodes.
    fn reason(&self, reason: &Reason, place: Place) -> Value {
        let texts = |value: &mut Value| {
            if let Value::String(text) = value {
                *text = relative(text, place.layer());
            }
        };
        let mut value = serde_json::to_value(reason).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            for field in fields.values_mut() {
                texts(field);
                field.as_array_mut().into_iter().flatten().for_each(texts);
            }
            if let Reason::NearMiss { at, .. } = reason {
                let at: Vec<Reference> = at.iter().filter_map(|n| reference(&self.before, place, *n)).collect();
                fields.insert("at".to_owned(), serde_json::to_value(at).unwrap_or_default());
            }
            fields.insert("sentence".to_owned(), relative(&reason.to_string(), place.layer()).into());
        }
        value
    }
}

impl Body {
    const EMPTY: Body = Body { before: Vec::new(), after: Vec::new(), places: Vec::new() };
}

impl PageData {
    /// The data of all variants; the page shows source path `start` first.
    pub fn new(reports: &Reports, start: Option<&str>) -> PageData {
        let mut fusions: IndexSet<String> = IndexSet::new();
        fusions
            .extend(reports.values().flat_map(|r| &r.groups).filter(|g| !g.anchors.is_empty()).map(|g| g.name.clone()));
        let fusions: Vec<String> = fusions.into_iter().collect();
        let mut rules = Rules::default();
        let mut variants: Vec<VariantData> =
            reports.iter().map(|(name, report)| variant(name, report, &fusions, &mut rules)).collect();
        let all: Vec<BTreeMap<String, [u64; 2]>> = variants.iter().map(|v| v.ranges.clone()).collect();
        for variant in &mut variants {
            variant.ranges.retain(|symbol, range| all.iter().any(|ranges| ranges.get(symbol) != Some(range)));
        }
        PageData { start: start.map(str::to_owned), rules: rules.known.into_iter().collect(), fusions, variants }
    }
}

fn variant(name: &str, report: &Report, fusions: &[String], rules: &mut Rules) -> VariantData {
    let counts = |fusion: &String| {
        report.group(fusion).map(|g| Counts {
            total: g.anchors.len(),
            fused: g.fused(),
            absorbed: g.absorbed().into_iter().map(|(op, n)| (op.to_owned(), n)).collect(),
        })
    };
    VariantData {
        name: name.to_owned(),
        policy: report.policy.clone(),
        disabled: report.disabled.clone(),
        dims: report.dims.clone(),
        ranges: report.ranges.iter().map(|(symbol, (min, max))| (symbol.clone(), [*min, *max])).collect(),
        launches: [report.launches_before, report.launches_after],
        bytes: [report.bytes_before, report.bytes_after],
        fusions: fusions.iter().map(|f| counts(f).unwrap_or_default()).collect(),
        sections: Folder::new(report, fusions).sections(rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_in_texts_are_relative() {
        assert_eq!(relative("layers.7.mlp, layers.12.norm", Some(8)), "layers.{-1}.mlp, layers.{4}.norm");
        assert_eq!(relative("layers.x layers. norm", Some(8)), "layers.x layers. norm");
        assert_eq!(relative("layers.7.mlp", None), "layers.7.mlp");
    }

    #[test]
    fn nodes_are_named_from_where_they_are_read() {
        let places = places([(0, None), (1, Some(0)), (2, Some(0)), (3, Some(1)), (4, None)].into_iter());
        let named = |from, number| serde_json::to_string(&reference(&places, from, number)).unwrap();
        assert_eq!(named(Place::Layer(0), 2), "1");
        assert_eq!(named(Place::Layer(1), 2), "\"-1:1\"");
        assert_eq!(named(Place::Layer(1), 0), "\"first:0\"");
        assert_eq!(named(Place::Last, 3), "\"1:0\"");
        assert_eq!(named(Place::First, 4), "\"last:0\"");
        assert_eq!(named(Place::First, 5), "null");
    }
}
