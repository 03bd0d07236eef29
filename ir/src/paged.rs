//! Paged states: which operands of an op address them, said once for everyone who must know.

use crate::op::{Op, OpKind};
use crate::signature::Mark;
use std::sync::LazyLock;

/// Operands of an op that reads or writes paged states, by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paged {
    /// Position of each token.
    pub positions: usize,
    /// Sequence of each token.
    pub sequence_ids: usize,
    /// Blocks of each sequence.
    pub block_tables: usize,
    /// The states, one unit a block.
    pub caches: &'static [usize],
    /// The dim of the first state along which a block's positions lie.
    pub slots: usize,
}

/// What the table shows of one op kind: its operands, and its caches.
type PagedOfKind = Option<(Paged, Vec<usize>)>;

/// By op kind.
static TABLE: LazyLock<Vec<PagedOfKind>> = LazyLock::new(|| OpKind::ALL.iter().map(|kind| of_table(*kind)).collect());

fn of_table(kind: OpKind) -> PagedOfKind {
    let operands = kind.info().operands;
    let named = |name: &str| operands.iter().position(|operand| *operand == name);
    let (positions, sequence_ids, block_tables) = (named("positions")?, named("sequence_ids")?, named("block_tables")?);
    let pool = |operand: &usize| kind.axes(*operand).next().is_some_and(|a| a.mark == Mark::Picked(block_tables));
    let caches: Vec<usize> = (0..operands.len()).filter(pool).collect();
    let slots = kind.axes(*caches.first()?).position(|a| a.index.is_some_and(|i| i.name == "slot"))?;
    Some((Paged { positions, sequence_ids, block_tables, caches: &[], slots }, caches))
}

impl Op {
    /// How the op addresses paged states, if it does: what the op table's operand names and axes say.
    pub fn paged(&self) -> Option<Paged> {
        let (paged, caches) = TABLE[self.kind() as usize].as_ref()?;
        Some(Paged { caches, slots: paged.slots + usize::from(self.swaps_slots()), ..*paged })
    }

    /// Have slots and elements of a head changed places in the state that is written? The table shows slots first.
    pub(crate) fn swaps_slots(&self) -> bool {
        matches!(self, Op::CacheWrite { transposed: true } | Op::RopeCacheWrite { transposed: true, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attr::{Attr, AttrKind, Real};

    #[test]
    fn places_are_those_of_the_table() {
        for kind in OpKind::ALL {
            let info = kind.info();
            let value = |kind: &AttrKind| match kind {
                AttrKind::Int => Attr::Int(1),
                AttrKind::Real => Attr::Real(Real(1.0)),
                AttrKind::Flag => Attr::Flag(true),
                AttrKind::DType => Attr::DType(crate::DType::F32),
                AttrKind::Ints => Attr::Ints(vec![]),
                AttrKind::Reals => Attr::Reals(vec![]),
                AttrKind::Shape => Attr::Shape(vec![]),
                AttrKind::Text => Attr::Text("x".into()),
                AttrKind::Role => Attr::Role(weldment_artifact::InputRole::Plain),
            };
            let attrs: Vec<Attr> = info.attrs.iter().map(|(_, kind)| value(kind)).collect();
            let op = Op::from_attrs(*kind, &attrs).expect("attributes of the table's kinds");
            let named = |name: &str| info.operands.iter().position(|operand| *operand == name);
            let Some(paged) = op.paged() else {
                assert_eq!(named("block_tables"), None, "{kind}");
                continue;
            };
            assert_eq!(Some(paged.positions), named("positions"), "{kind}");
            assert_eq!(Some(paged.sequence_ids), named("sequence_ids"), "{kind}");
            assert_eq!(Some(paged.block_tables), named("block_tables"), "{kind}");
            for cache in paged.caches {
                let name = info.operands[*cache];
                assert!(name.contains("cache") || name == "keys" || name == "state", "{kind}: {name}");
            }
        }
    }
}
