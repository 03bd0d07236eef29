//! Rewrite rules by theme. The law of rules is in passes/rules/README.md.

mod activations;
mod attention;
mod collectives;
pub mod conditions;
mod derive;
mod matmul;
pub(crate) mod merge;
mod merge_scaled;
mod norms;
mod quantise;
#[cfg(test)]
pub(crate) mod tests;
mod topk;
mod views;

use crate::egraph::{ENode, Net, Term};
use crate::specialise::Threshold;
use egg::{ENodeOrVar, Id, MultiPattern, Pattern, PatternAst, Searcher, Subst, Var};
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use weldment_ir::{Attr, DType, Graph, Op, OpKind, TensorType};

/// What a rule may do to numbers, mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Numerics {
    /// The same bits.
    Bitwise,
    /// The same real number, sums in another order.
    Reassoc,
    /// A rounding point moves or goes away; the rule's doc says which.
    Rounding,
    /// An approximation; the rule states a bound.
    Approx,
}

impl Numerics {
    /// The name in rules, options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Numerics::Bitwise => "bitwise",
            Numerics::Reassoc => "reassoc",
            Numerics::Rounding => "rounding",
            Numerics::Approx => "approx",
        }
    }

    /// The policy used where the user gives none: `approx` for graphs with block-quantised weights, else `rounding`.
    pub fn default_for(graph: &Graph) -> Numerics {
        let block = graph.ids().any(|id| {
            let node = graph.node(id);
            node.op.kind() == OpKind::Weight && node.types.iter().any(|t| t.dtype.is_block())
        });
        if block { Numerics::Approx } else { Numerics::Rounding }
    }
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Numerics {
    type Err = String;

    fn from_str(text: &str) -> Result<Numerics, String> {
        [Numerics::Bitwise, Numerics::Reassoc, Numerics::Rounding, Numerics::Approx]
            .into_iter()
            .find(|n| n.name() == text)
            .ok_or_else(|| format!("fp policy `{text}`; bitwise, reassoc, rounding or approx is accepted"))
    }
}

/// A condition's answer. Only `Proven` fires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The fact holds.
    Proven,
    /// It does not, or is not known to.
    Unknown {
        /// The value found.
        found: String,
        /// The values accepted.
        accepted: String,
    },
}

type Check = Box<dyn Fn(&Net, &[Id]) -> Answer + Send + Sync>;

/// A named predicate over bound variables.
pub struct Condition {
    /// Its name in near-miss texts.
    pub predicate: &'static str,
    /// The smallest change that would let it hold, as an instruction; derived from what was found and what is accepted
    /// where none is given.
    pub change: Option<String>,
    vars: Vec<Var>,
    check: Check,
}

impl Condition {
    /// With a change of its own.
    #[must_use]
    pub fn advise(self, change: impl Into<String>) -> Condition {
        Condition { change: Some(change.into()), ..self }
    }

    /// True if all of its variables are bound.
    pub fn is_bound(&self, subst: &Subst) -> bool {
        self.vars.iter().all(|v| subst.get(*v).is_some())
    }

    /// Evaluates it for one match.
    pub fn holds(&self, net: &Net, subst: &Subst) -> Answer {
        match self.vars.iter().map(|v| subst.get(*v).copied()).collect::<Option<Vec<Id>>>() {
            Some(ids) => (self.check)(net, &ids),
            None => Answer::Unknown { found: "an unbound variable".into(), accepted: "bound variables".into() },
        }
    }
}

type Derivation = fn(&Net, &[Id]) -> Option<Attr>;

/// A variable of the right side computed from bound ones.
pub struct Derive {
    var: Var,
    args: Vec<Var>,
    compute: Derivation,
}

impl Derive {
    /// The variable's value, without adding it to the e-graph.
    pub fn value(&self, net: &Net, subst: &Subst) -> Option<(Var, Attr)> {
        let ids = self.args.iter().map(|v| subst.get(*v).copied()).collect::<Option<Vec<Id>>>()?;
        Some((self.var, (self.compute)(net, &ids)?))
    }

    /// Variables that it is computed from.
    pub fn args(&self) -> &[Var] {
        &self.args
    }

    /// Binds the variable; false if it cannot be computed.
    pub fn bind(&self, net: &mut Net, subst: &mut Subst) -> bool {
        let Some(ids) = self.args.iter().map(|v| subst.get(*v).copied()).collect::<Option<Vec<Id>>>() else {
            return false;
        };
        match (self.compute)(net, &ids) {
            Some(attr) => {
                let id = net.add(ENode::Attr(attr));
                subst.insert(self.var, id);
                true
            }
            None => false,
        }
    }
}

/// The left side of a pattern rule.
pub enum Left {
    /// One pattern; its class is the root.
    One(Pattern<ENode>),
    /// Several, each naming its class; the first is the root.
    Many(MultiPattern<ENode>, Head),
}

/// The op of a multi-pattern's first pattern, to search only classes that have it.
pub type Head = crate::egraph::Head;

/// What a custom rule proposes: these classes equal these terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The class that the rule is said to match at.
    pub root: Id,
    /// Equalities.
    pub equal: Vec<(Id, Term)>,
    /// The nodes that it was found at.
    pub from: Vec<ENode>,
}

/// A near miss of a custom rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The class.
    pub root: Id,
    /// The predicate.
    pub predicate: &'static str,
    /// Found.
    pub found: String,
    /// Accepted.
    pub accepted: String,
}

/// What a custom search found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Equalities to add.
    pub proposals: Vec<Proposal>,
    /// Places that nearly matched.
    pub misses: Vec<Miss>,
}

/// How a rule finds and rewrites.
pub enum Body {
    /// Patterns.
    Rewrite {
        /// Left side.
        left: Box<Left>,
        /// The left side's patterns with the variable of their class, for provenance and near misses.
        sources: Vec<(Option<Var>, PatternAst<ENode>)>,
        /// Right side: each pattern equals the class of its variable, or the root.
        right: Vec<(Option<Var>, PatternAst<ENode>)>,
        /// Computed attributes.
        derived: Vec<Derive>,
        /// Conditions.
        conditions: Vec<Condition>,
        /// Values of the left side that the right side has no use for.
        dropped: Vec<Var>,
    },
    /// A search that patterns cannot say (a variable number of operands or users).
    Custom {
        /// The search.
        find: fn(&Net, &Premises) -> Found,
        /// The premises that it asks, by name.
        premises: &'static [&'static str],
    },
}

/// What the conditions of a custom search go through, by name: so that the law's mutator can take one for granted and see
/// that something wrong is then found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Premises {
    granted: Option<&'static str>,
}

impl Premises {
    /// Every premise is asked but this one.
    pub fn without(premise: &'static str) -> Premises {
        Premises { granted: Some(premise) }
    }

    /// True if the fact holds or its premise is taken for granted.
    pub fn hold(&self, premise: &'static str, fact: bool) -> bool {
        fact || self.granted == Some(premise)
    }
}

/// A named, classed rewrite.
pub struct Rule {
    /// Name, for `--disable` and reports.
    pub name: &'static str,
    /// Statement.
    pub doc: &'static str,
    /// Numerics class.
    pub class: Numerics,
    /// The fusion it belongs to, for `--disable`, `--require` and coverage.
    pub group: Option<&'static str>,
    /// The rule as written.
    pub text: String,
    /// How it works.
    pub body: Body,
}

impl Rule {
    /// Matches of the left side: root class and binding.
    pub fn search(left: &Left, net: &Net) -> Vec<(Id, Subst)> {
        let found = match left {
            Left::One(p) => p.search(net),
            Left::Many(p, head) => match net.classes_for_op(head) {
                Some(ids) => ids.filter_map(|id| p.search_eclass(net, id)).collect(),
                None => Vec::new(),
            },
        };
        found.into_iter().flat_map(|m| m.substs.into_iter().map(move |s| (m.eclass, s))).collect()
    }
}

/// Parses the text of a pattern written in [`rule!`].
pub(crate) fn parse_pattern(text: &str) -> PatternAst<ENode> {
    let text = text.replace("? ", "?");
    let text = if text.starts_with('?') { text } else { format!("({text})") };
    match text.parse::<Pattern<ENode>>() {
        Ok(p) => p.ast,
        Err(e) => unreachable!("rule pattern {text}: {e:?}; `every_rule_parses` covers all rules"),
    }
}

pub(crate) fn variable(name: &str) -> Var {
    match format!("?{name}").parse() {
        Ok(v) => v,
        Err(e) => unreachable!("variable {name}: {e:?}; `every_rule_parses` covers all rules"),
    }
}

fn variables(pattern: &PatternAst<ENode>) -> impl Iterator<Item = Var> + '_ {
    pattern.iter().filter_map(|n| if let ENodeOrVar::Var(v) = n { Some(*v) } else { None })
}

/// Variables of a pattern that stand for values, not for attributes.
fn operand_variables(pattern: &PatternAst<ENode>) -> Vec<Var> {
    let operands = pattern.iter().flat_map(|n| match n {
        ENodeOrVar::ENode(node) => node.split().0,
        ENodeOrVar::Var(_) => &[],
    });
    let variable = |id: &Id| if let ENodeOrVar::Var(v) = &pattern[*id] { Some(*v) } else { None };
    operands.filter_map(variable).collect()
}

/// Assembles a pattern rule from the parts that [`rule!`] gives.
pub(crate) fn pattern_rule(
    (name, doc, class, group, text): (&'static str, &'static str, Numerics, Option<&'static str>, String),
    left: Vec<(Option<&str>, &str)>,
    right: Vec<(Option<&str>, &str)>,
    derived: Vec<Derive>,
    conditions: Vec<Condition>,
) -> Rule {
    let sources: Vec<(Option<Var>, PatternAst<ENode>)> =
        left.iter().map(|(v, p)| (v.map(variable), parse_pattern(p))).collect();
    let named: Option<Vec<(Var, PatternAst<ENode>)>> = sources.iter().map(|(v, p)| v.map(|v| (v, p.clone()))).collect();
    let head = sources.first().and_then(|(_, p)| p.last()).and_then(|n| match n {
        ENodeOrVar::ENode(e) => Some(egg::Language::discriminant(e)),
        ENodeOrVar::Var(_) => None,
    });
    let left = match (named, head) {
        (Some(named), Some(head)) => Left::Many(MultiPattern::new(named), head),
        _ => Left::One(Pattern::new(sources.first().map(|(_, p)| p.clone()).unwrap_or_default())),
    };
    let right: Vec<_> = right.iter().map(|(v, p)| (v.map(variable), parse_pattern(p))).collect();
    // A variable that names a pattern of the left side stands for what that pattern takes apart.
    let named = sources.iter().filter_map(|(v, _)| *v);
    let kept: Vec<Var> = right.iter().flat_map(|(_, p)| variables(p)).chain(named).collect();
    let dropped = sources.iter().flat_map(|(_, p)| operand_variables(p)).filter(|v| !kept.contains(v)).collect();
    Rule {
        name,
        doc,
        class,
        group,
        text,
        body: Body::Rewrite { left: Box::new(left), sources, right, derived, conditions, dropped },
    }
}

/// One rule, written as it reads:
/// `/// statement` `name [Class, group]: (left) => (right) where ?v = compute(?a), if condition(?x; extra)`.
/// Two-sided rules name classes: `?n = (norm ..), ?s = (add ..) => ?n = (result0 ..), ?s = (result1 ..)`.
macro_rules! rule {
    ($(#[doc = $doc:literal])+ $name:ident [$class:ident $(, $group:ident)?] :
        $(? $lv:ident =)? ($($lp:tt)*) $(, ? $lv2:ident = ($($lp2:tt)*))*
        => $(? $rv:ident =)? ($($rp:tt)*) $(, ? $rv2:ident = ($($rp2:tt)*))*
        $(where $(? $dv:ident = $derive:ident ($(? $da:ident),*)),+)?
        $(if $($cond:ident ($(? $cv:ident),* $(; $($extra:expr),+)?)),+)?
    ) => {{
        #[allow(unused_mut, unused_assignments, reason = "a rule without a group leaves it unset")]
        let mut group: Option<&'static str> = None;
        $(group = Some(stringify!($group));)?
        #[allow(unused_mut, reason = "a rule with one side leaves these at one entry")]
        let mut left: Vec<(Option<&str>, &str)> = vec![({ let v: &[&str] = &[$(stringify!($lv))?]; v.first().copied() }, stringify!($($lp)*))];
        $(left.push((Some(stringify!($lv2)), stringify!($($lp2)*)));)*
        #[allow(unused_mut, reason = "a rule with one side leaves these at one entry")]
        let mut right: Vec<(Option<&str>, &str)> = vec![({ let v: &[&str] = &[$(stringify!($rv))?]; v.first().copied() }, stringify!($($rp)*))];
        $(right.push((Some(stringify!($rv2)), stringify!($($rp2)*)));)*
        let text = $crate::rules::rule_text(&left, &right, &[$($(stringify!($cond)),+)?]);
        $crate::rules::pattern_rule(
            (stringify!($name), concat!($($doc, "\n"),+), $crate::rules::Numerics::$class, group, text),
            left,
            right,
            vec![$($($crate::rules::Derive {
                var: $crate::rules::variable(stringify!($dv)),
                args: vec![$($crate::rules::variable(stringify!($da))),*],
                compute: $crate::rules::derive::$derive,
            }),+)?],
            vec![$($($crate::rules::conditions::$cond(
                vec![$($crate::rules::variable(stringify!($cv))),*] $(, $($extra),+)?
            )),+)?],
        )
    }};
}
pub(crate) use rule;

/// The rule as a reader sees it.
pub(crate) fn rule_text(left: &[(Option<&str>, &str)], right: &[(Option<&str>, &str)], conditions: &[&str]) -> String {
    let side = |parts: &[(Option<&str>, &str)]| -> String {
        let one = |(v, p): &(Option<&str>, &str)| {
            let p = p.split_whitespace().collect::<Vec<_>>().join(" ").replace("? ", "?");
            let p = if p.starts_with('?') { p } else { format!("({p})") };
            v.map_or(p.clone(), |v| format!("?{v} = {p}"))
        };
        parts.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let when = if conditions.is_empty() { String::new() } else { format!(" if {}", conditions.join(", ")) };
    format!("{} => {}{when}", side(left), side(right))
}

/// Every rule, in table order.
pub fn all() -> Vec<Rule> {
    [
        views::rules(),
        norms::rules(),
        collectives::rules(),
        activations::rules(),
        attention::rules(),
        matmul::rules(),
        merge::rules(),
        merge_scaled::rules(),
        quantise::rules(),
        topk::rules(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Values of symbols at which a rule begins or ceases to hold for the op.
pub(crate) fn thresholds(op: &Op, operands: &[TensorType]) -> Vec<Threshold> {
    topk::thresholds(op, operands)
}

/// The fusion groups, in report order.
pub const GROUPS: &[&str] = &[
    "rms_norm",
    "add_rms_norm",
    "norm_quantise",
    "allreduce_rms_norm",
    "merged_qkv",
    "merged_gate_up",
    "silu_mul",
    "rope_cache_write",
    "matmul_epilogue",
    "int8_activations",
    "cast_into_producer",
    "topk_window",
    "topk_rows",
    "dense_window",
];

/// Fusions that fire only where the user asks for them, and why they are off.
pub const OPT_IN: &[(&str, &str)] =
    &[("dense_window", "off by default, as sums run in another order: --set dense_window=1 allows it")];

/// True for a dtype whose values f32 holds exactly.
pub(crate) fn widens_to_f32(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}
