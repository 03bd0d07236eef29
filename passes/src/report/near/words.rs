//! Near misses in words: what was found, what is accepted, and what to do about it.

use super::Obstacle;
use super::partial::{Edit, Role};
use super::search::Ground;
use crate::egraph::Data;
use crate::rules::Condition;
use egg::Id;
use weldment_ir::{Category, OpKind};

/// A part of a unit that has a name only where the unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A slot, by index.
    Slot(u32),
    /// A node.
    Node(u32),
    /// An output, by index.
    Output(u32),
}

/// In a text, a place is a letter and a number between two of these.
const MARK: char = '\u{1}';

fn mark_slot(slot: u32) -> String {
    format!("{MARK}s{slot}{MARK}")
}

/// Stands for a node's source path.
pub(crate) fn mark_node(node: u32) -> String {
    format!("{MARK}n{node}{MARK}")
}

/// Stands for an output's name.
pub(crate) fn mark_output(output: usize) -> String {
    format!("{MARK}o{output}{MARK}")
}

/// Why an op that could be moved out of the way stays.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stays {
    pub rule: &'static str,
    pub why: String,
}

/// A text with names put in for marks.
pub(crate) fn resolve(text: &str, name: &dyn Fn(Place) -> String) -> String {
    let place = |part: &str| {
        let number = part.get(1..)?.parse().ok()?;
        match part.get(..1)? {
            "s" => Some(Place::Slot(number)),
            "n" => Some(Place::Node(number)),
            _ => Some(Place::Output(number)),
        }
    };
    let parts = text.split(MARK).enumerate();
    parts
        .map(|(i, part)| if i % 2 == 1 { place(part).map(name).unwrap_or_default() } else { part.to_owned() })
        .collect()
}

pub(super) fn plain(predicate: &str, found: &str, accepted: &str) -> Obstacle {
    let change = change_for(predicate, found, accepted);
    Obstacle { predicate: predicate.into(), found: found.into(), accepted: accepted.into(), change, at: Vec::new() }
}

pub(super) fn condition(failed: &Condition, (found, accepted): (String, String), at: Vec<u32>) -> Obstacle {
    let derived = plain(failed.predicate, &found, &accepted);
    Obstacle { change: failed.change.clone().unwrap_or(derived.change), at, ..derived }
}

/// The change that follows from what was found and what is accepted.
pub(crate) fn change_for(predicate: &str, found: &str, accepted: &str) -> String {
    let subject = predicate.split_once(" kernel: ").map_or(predicate, |(_, precondition)| precondition);
    let number = |text: &str| {
        let digits: String =
            text.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    };
    let plain = found.parse::<u64>().ok();
    if let (Some(rest), Some(n)) = (accepted.split_once("multiple of "), plain)
        && let Some(step) = number(rest.1).filter(|s| *s > 0)
        && let Some(next) = n.checked_next_multiple_of(step)
    {
        let next = next.max(step);
        return format!("make the {subject} a multiple of {step} ({n} -> {next})");
    }
    for bound in ["at most ", "up to ", "at least "] {
        if let (Some((_, rest)), Some(n)) = (accepted.split_once(bound), plain)
            && let Some(limit) = number(rest)
        {
            return format!("make the {subject} {bound}{limit} ({n} -> {limit})");
        }
    }
    if subject.ends_with("dtype") {
        return format!("cast to {accepted} ({found} now)");
    }
    match subject.ends_with(" types") {
        true => format!("give {} operands that the op table accepts: {found}", subject.trim_end_matches(" types")),
        false => format!("make the {subject} {accepted} ({found} now)"),
    }
}

/// A class as a reader of the graph knows it.
pub(crate) fn describe(ground: &Ground<'_>, class: Id) -> String {
    let class = ground.net.find(class);
    let ty = |shown: String| match &ground.net[class].data {
        Data::Value(v) => format!("{shown} {}", v.types.first().map(ToString::to_string).unwrap_or_default()),
        Data::Attr(a) => a.to_string(),
        Data::Untyped => shown,
    };
    if let Some(node) = ground.at(class).first() {
        return ty(ground.kind(*node).info().name.to_owned());
    }
    let leaf = ground.net[class].iter().find_map(|n| match n {
        crate::egraph::ENode::Leaf(i) => Some(*i),
        _ => None,
    });
    match leaf.and_then(|i| Some((i, ground.unit.slots.get(i as usize)?))) {
        Some((i, slot)) => {
            let kind = slot.leaf.map_or("value", |k| k.info().name);
            ty(format!("{kind} {}", mark_slot(i)))
        }
        None => ty("a rewritten value".to_owned()),
    }
}

/// `x of matmul`.
fn named(role: Role) -> String {
    let info = role.kind.info();
    let operand = role.position.min(info.operands.len().saturating_sub(1));
    match info.operands.get(operand) {
        Some(name) if role.position < info.operands.len() || info.variadic => format!("{name} of {}", role.kind),
        _ => format!("an operand of {}", role.kind),
    }
}

/// The name of an attribute: children of an op are its operands, then its attributes.
fn attribute(role: Role) -> String {
    let info = role.kind.info();
    let name = role.position.checked_sub(info.operands.len()).and_then(|i| info.attrs.get(i));
    name.map_or_else(|| named(role), |(name, _)| format!("{name} of {}", role.kind))
}

/// An edit in words.
pub(super) fn edit(ground: &Ground<'_>, edit: &Edit, stays: Option<Stays>) -> Obstacle {
    match edit {
        Edit::TwoValues { first: (role, a), second: (other, b) } => {
            let what = if attribute(*role) == attribute(*other) {
                attribute(*role)
            } else {
                format!("{} and {}", attribute(*role), attribute(*other))
            };
            Obstacle {
                found: format!("two values, {} and {}", describe(ground, *a), describe(ground, *b)),
                accepted: "one value".into(),
                change: format!("give one value as {what}"),
                at: [role.class, other.class].iter().flat_map(|c| ground.at(*c).to_vec()).collect(),
                predicate: what,
            }
        }
        Edit::Attr { role, wanted } => {
            let children = ground.net[role.class].iter().find_map(|n| match n {
                crate::egraph::ENode::Op(kind, ids) if *kind == role.kind => ids.get(role.position).copied(),
                _ => None,
            });
            let found = children.and_then(|id| ground.net[id].data.attr().map(ToString::to_string));
            let predicate = attribute(*role);
            let found = found.unwrap_or_else(|| "unknown".into());
            let change = format!("make the {predicate} {wanted} ({found} now)");
            let at = ground.at(role.class).to_vec();
            Obstacle { predicate, found, accepted: wanted.to_string(), change, at }
        }
        Edit::Other { wanted, found, role } => {
            let predicate = role.map_or_else(|| format!("where {wanted} is expected"), named);
            let shown = describe(ground, *found);
            let change = format!("write {wanted} where {shown} stands");
            Obstacle { predicate, found: shown, accepted: wanted.to_string(), change, at: ground.at(*found).to_vec() }
        }
        Edit::Between { by, wanted, reader, .. } => between(ground, *by, *wanted, *reader, stays),
        Edit::Missing { wanted, found, role } => {
            let predicate = role.map_or_else(|| format!("where {wanted} is expected"), named);
            let shown = describe(ground, *found);
            Obstacle {
                predicate,
                change: format!("write the missing {wanted} after {shown}"),
                found: format!("{shown}, no {wanted}"),
                accepted: wanted.to_string(),
                at: ground.at(*found).to_vec(),
            }
        }
        Edit::NotRead { wanted, class } => {
            let readers: Vec<u32> =
                ground.at(*class).iter().flat_map(|n| ground.users[*n as usize].iter().map(|u| u.0)).collect();
            let mut names: Vec<&str> = readers.iter().map(|u| ground.kind(*u).info().name).collect();
            names.sort_unstable();
            names.dedup();
            let shown = describe(ground, *class);
            let found = if names.is_empty() { "none in this part of the graph".to_owned() } else { names.join(", ") };
            Obstacle {
                predicate: format!("readers of {shown}"),
                found,
                accepted: wanted.to_string(),
                change: format!("let a {wanted} read {shown}"),
                at: ground.at(*class).iter().copied().chain(readers).collect(),
            }
        }
    }
}

fn between(ground: &Ground<'_>, by: u32, wanted: OpKind, reader: OpKind, stays: Option<Stays>) -> Obstacle {
    let kind = ground.kind(by);
    let shown = ground.class(by).map_or_else(|| kind.to_string(), |c| describe_node(ground, by, c));
    let change = match (kind, kind.info().category) {
        (OpKind::Cast, _) => format!("compute {wanted} and {reader} in one dtype, so that the cast goes"),
        (_, Category::View) => format!("move the {kind} before {wanted} or after {reader}"),
        _ => format!("take {kind} out from between {wanted} and {reader}"),
    };
    let found = match stays {
        Some(Stays { rule, why }) => format!("{shown}, which stays: {rule}: {why}"),
        None => shown,
    };
    let predicate = format!("between {wanted} and {reader}");
    Obstacle { predicate, found, accepted: "nothing".into(), change, at: vec![by] }
}

/// A node with the types on both of its sides.
fn describe_node(ground: &Ground<'_>, node: u32, class: Id) -> String {
    let kind = ground.kind(node);
    let to = ground.net[class].data.ty().map(ToString::to_string).unwrap_or_default();
    let local = &ground.unit.nodes[node as usize];
    let from = local.operands.first().and_then(|o| match o {
        crate::units::Operand::Local(i, _) => ground.class(*i).and_then(|c| ground.net[c].data.ty().cloned()),
        crate::units::Operand::Slot(i) => ground.unit.slots.get(*i as usize).map(|s| s.ty.clone()),
    });
    match (kind.info().category == Category::View || kind == OpKind::Cast, from) {
        (true, Some(from)) => format!("{kind} from {from} to {to}"),
        _ => format!("{kind} {to}"),
    }
}
