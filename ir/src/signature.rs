//! Index signatures: which axes of an op's operands and results run together. The op table writes one pattern beside each operand and
//! result; what passes need to know (which axes may be cut, what is picked by an index, how much is read and computed) follows from it.
//!
//! A pattern is a word for each axis:
//! * `k`: the index k. Equal parts of all axes that carry it correspond. Where an operand's dim is 1, its elements repeat.
//! * `+k`: an index that is summed over: the op on parts of it gives parts of the sum.
//! * `!k`, `!`: all of the axis is needed for any element; it may have a name all the same.
//! * `^operand`: elements of this axis are picked by the values of `operand`; the others are not read.
//! * `<operand`: the values of `operand` lie within this axis, which is read whole.
//! * `..m`: any number of axes, aligned at the last; `..!` likewise, each needed whole.
//!
//! `*` stands for a pattern that the op's attributes decide, which [`Op::signature`] does for views and reductions.

use crate::op::{Op, OpInfo, OpKind};
use crate::types::{Dim, TensorType};
use std::sync::LazyLock;

/// An index that axes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Index {
    /// Its name in the pattern.
    pub name: &'static str,
    /// Of the axes of a `..name`, which one, counted from the last.
    pub place: usize,
}

/// How an axis takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Each element is by itself.
    Free,
    /// Summed over, in any parts.
    Summed,
    /// Needed whole.
    Whole,
    /// Elements are picked by the values of that operand.
    Picked(usize),
    /// Needed whole, and the values of that operand lie within it.
    Bounds(usize),
}

/// An axis of an operand or result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Its index, if it has a name.
    pub index: Option<Index>,
    /// Its part.
    pub mark: Mark,
}

impl Axis {
    const WHOLE: Axis = Axis { index: None, mark: Mark::Whole };

    fn free(name: &'static str, place: usize) -> Axis {
        Axis { index: Some(Index { name, place }), mark: Mark::Free }
    }

    /// The index, where parts of the axis are parts of a result or of a sum.
    pub fn cut(&self) -> Option<Index> {
        self.index.filter(|_| matches!(self.mark, Mark::Free | Mark::Summed))
    }
}

/// The axes of one execution of an op.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// By operand and axis.
    pub operands: Vec<Vec<Axis>>,
    /// By result and axis.
    pub results: Vec<Vec<Axis>>,
}

/// A word of a pattern.
#[derive(Clone, Copy)]
enum Word {
    Axis(Axis),
    Rest(Option<&'static str>),
}

/// What the table says of one kind.
struct Parsed {
    operands: Vec<Vec<Word>>,
    results: Vec<Vec<Word>>,
    /// By operand: the operand and axis that it points into.
    points: Vec<Option<(usize, usize)>>,
}

/// By op kind. Patterns are read once.
static TABLE: LazyLock<Vec<Parsed>> = LazyLock::new(|| {
    let parsed = |info: &'static OpInfo| {
        let all = |patterns: &'static [&'static str]| patterns.iter().map(|p| parse(p, info)).collect();
        let points = |i: usize| {
            let here = |word: &Word| matches!(word, Word::Axis(a) if matches!(a.mark, Mark::Picked(by) | Mark::Bounds(by) if by == i));
            let operands = info.operand_patterns.iter().enumerate();
            operands.filter_map(|(of, p)| Some((of, parse(p, info).iter().position(here)?))).next()
        };
        Parsed {
            operands: all(info.operand_patterns),
            results: all(info.result_patterns),
            points: (0..info.operands.len()).map(points).collect(),
        }
    };
    OpKind::ALL.iter().map(|kind| parsed(kind.info())).collect()
});

fn parse(pattern: &'static str, info: &OpInfo) -> Vec<Word> {
    // Attributes decide.
    if pattern == "*" {
        return vec![Word::Rest(None)];
    }
    let operand = |name: &str| info.operands.iter().position(|o| *o == name).unwrap_or(usize::MAX);
    let word = |word: &'static str| {
        let (mark, name) = word.split_at(word.find(|c: char| c.is_ascii_lowercase()).unwrap_or(word.len()));
        let index = Some(Index { name, place: 0 }).filter(|_| !name.is_empty());
        let (index, mark) = match mark {
            ".." => return Word::Rest(Some(name)),
            "..!" => return Word::Rest(None),
            "+" => (index, Mark::Summed),
            "^" => (None, Mark::Picked(operand(name))),
            "<" => (None, Mark::Bounds(operand(name))),
            "" => (index, Mark::Free),
            _ => (index, Mark::Whole),
        };
        Word::Axis(Axis { index, mark })
    };
    pattern.split_whitespace().map(word).collect()
}

impl OpKind {
    /// The axes that the table shows of an operand, those of `..` left out.
    pub(crate) fn axes(self, operand: usize) -> impl Iterator<Item = Axis> {
        let words = TABLE[self as usize].operands.get(operand).map_or(&[][..], Vec::as_slice);
        words.iter().filter_map(|word| match word {
            Word::Axis(axis) => Some(*axis),
            Word::Rest(_) => None,
        })
    }

    /// What operand `operand` points into, if its values are indices: the operand that it picks elements of, or lies within, and the axis.
    /// Block tables and the positions behind them are told by [`Op::paged`].
    pub fn points_into(self, operand: usize) -> Option<(usize, usize)> {
        TABLE[self as usize].points.get(operand).copied().flatten()
    }
}

/// The axis of `axes` that carries an index.
pub fn axis_of(axes: &[Axis], index: Index) -> Option<usize> {
    axes.iter().position(|a| a.index == Some(index))
}

impl Op {
    /// How the axes of operands and results of these types run together. Types that the op does not take give whole axes.
    pub fn signature(&self, operands: &[TensorType], results: &[TensorType]) -> Signature {
        let parsed = &TABLE[self.kind() as usize];
        let expanded = |patterns: &[Vec<Word>], types: &[TensorType]| -> Vec<Vec<Axis>> {
            // A variadic operand's pattern stands for all of its operands.
            let pattern = |i: usize| patterns.get(i).or(patterns.last()).map_or(&[][..], Vec::as_slice);
            types.iter().enumerate().map(|(i, t)| expand(pattern(i), t.rank())).collect()
        };
        let mut found =
            Signature { operands: expanded(&parsed.operands, operands), results: expanded(&parsed.results, results) };
        self.by_attributes(&mut found, operands, results);
        found
    }

    /// Patterns that attributes decide.
    fn by_attributes(&self, found: &mut Signature, operands: &[TensorType], results: &[TensorType]) {
        let Signature { operands: from, results: to } = found;
        let (Some(result), Some(out)) = (results.first(), to.first_mut()) else { return };
        match self {
            Op::Reshape { .. } => {
                let Some(operand) = operands.first() else { return };
                for (axis, free) in from[0].iter_mut().enumerate() {
                    if let Some(at) = through_reshape(&operand.shape, &result.shape, axis)
                        && through_reshape(&result.shape, &operand.shape, at) == Some(axis)
                    {
                        (*free, out[at]) = (Axis::free("a", axis), Axis::free("a", axis));
                    }
                }
            }
            Op::Transpose { permutation } => {
                for (at, axis) in permutation.iter().enumerate() {
                    let axis = usize::try_from(*axis).unwrap_or(usize::MAX);
                    if let (Some(a), Some(b)) = (from.first_mut().and_then(|f| f.get_mut(axis)), out.get_mut(at)) {
                        (*a, *b) = (Axis::free("a", axis), Axis::free("a", axis));
                    }
                }
            }
            Op::Slice { axis, .. }
            | Op::Concat { axis }
            | Op::ReduceSum { axis }
            | Op::ReduceMean { axis }
            | Op::ReduceMax { axis } => {
                let others = |axes: &mut Vec<Axis>| {
                    let others = axes.iter_mut().enumerate().filter(|(i, _)| usize::try_from(*axis) != Ok(*i));
                    others.for_each(|(i, a)| *a = Axis::free("a", i));
                };
                from.iter_mut().for_each(others);
                others(out);
            }
            op if op.swaps_slots() => {
                let swap = |axes: &mut Vec<Axis>| {
                    if let [.., a, b] = axes.as_mut_slice() {
                        std::mem::swap(a, b)
                    }
                };
                from.first_mut().into_iter().for_each(swap);
                swap(out);
            }
            _ => {}
        }
    }
}

/// The axes of a pattern at a rank; whole ones where it has another.
fn expand(words: &[Word], rank: usize) -> Vec<Axis> {
    let rests = words.iter().filter(|w| matches!(w, Word::Rest(_))).count();
    let rest = (rank + rests).checked_sub(words.len());
    let Some(rest) = rest.filter(|rest| rests == 1 || *rest == 0) else { return vec![Axis::WHOLE; rank] };
    let mut axes = Vec::with_capacity(rank);
    for word in words {
        match word {
            Word::Axis(axis) => axes.push(*axis),
            Word::Rest(Some(name)) => axes.extend((0..rest).rev().map(|place| Axis::free(name, place))),
            Word::Rest(None) => axes.extend((0..rest).map(|_| Axis::WHOLE)),
        }
    }
    axes
}

/// A product of dims: the constants' and the symbols, sorted.
fn product(dims: &[Dim]) -> (u64, Vec<&str>) {
    let mut constant = 1u64;
    let mut symbols = Vec::new();
    for dim in dims {
        match dim {
            Dim::Const(n) => constant = constant.saturating_mul(*n),
            Dim::Sym(s) => symbols.push(&**s),
        }
    }
    symbols.sort_unstable();
    (constant, symbols)
}

/// The axis of `to` along which equal parts of `axis` of `from` are equal parts: the last one with as many elements before it.
fn through_reshape(from: &[Dim], to: &[Dim], axis: usize) -> Option<usize> {
    let before = product(from.get(..axis)?);
    let at = (0..to.len()).rev().find(|b| product(&to[..*b]) == before)?;
    to[at].constant().map(|_| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::attr::Real;

    fn of(op: &Op, operands: &[&[u64]]) -> Signature {
        let operands: Vec<TensorType> = operands.iter().map(|s| TensorType::fixed(DType::F32, s)).collect();
        op.signature(&operands, &op.infer(&operands).expect("types that fit"))
    }

    #[test]
    fn patterns_name_operands_that_are_there() {
        for info in OpKind::ALL.iter().map(|k| k.info()) {
            assert_eq!(info.operand_patterns.len(), info.operands.len(), "{}", info.name);
            assert_eq!(info.result_patterns.len(), info.results.len(), "{}", info.name);
            for pattern in info.operand_patterns.iter().chain(info.result_patterns) {
                let words: Vec<&str> = pattern.split_whitespace().collect();
                assert!(words.iter().filter(|w| w.starts_with("..")).count() <= 1, "{}: {pattern}", info.name);
                for word in words {
                    let name = word.trim_start_matches(['.', '+', '!', '^', '<', '*']);
                    let points = word.starts_with(['^', '<']);
                    assert!(!points || info.operands.contains(&name), "{}: {pattern} names no operand", info.name);
                }
            }
            // What is summed is in no result.
            let summed =
                info.operand_patterns.iter().flat_map(|p| p.split_whitespace()).filter_map(|w| w.strip_prefix('+'));
            for name in summed {
                assert!(info.result_patterns.iter().all(|p| p.split_whitespace().all(|w| w != name)), "{}", info.name);
            }
        }
    }

    #[test]
    fn axes_run_together() {
        let at = |name, place| Some(Index { name, place });
        let matmul = of(&Op::Matmul { dtype: DType::F32 }, &[&[2, 3, 8], &[5, 8]]);
        assert_eq!(matmul.operands[0].iter().map(Axis::cut).collect::<Vec<_>>(), [at("m", 1), at("m", 0), at("k", 0)]);
        assert_eq!(matmul.results[0].iter().map(Axis::cut).collect::<Vec<_>>(), [at("m", 1), at("m", 0), at("n", 0)]);
        assert_eq!(matmul.operands[1][1].mark, Mark::Summed);
        // Broadcasting aligns at the last axis.
        let add = of(&Op::Add {}, &[&[4, 3], &[3]]);
        assert_eq!(add.operands[1][0], add.results[0][1]);
        let heads = of(&Op::Reshape { shape: vec![2.into(), 4.into(), 8.into()] }, &[&[2, 32]]);
        assert_eq!(heads.operands[0][1], heads.results[0][1]);
        assert_eq!(heads.results[0][2].cut(), None);
        let transposed = of(&Op::Transpose { permutation: vec![1, 0] }, &[&[2, 3]]);
        assert_eq!(transposed.operands[0][0], transposed.results[0][1]);
        let norm = of(&Op::RmsNorm { eps: Real(0.0), dtype: DType::F32 }, &[&[2, 8], &[8]]);
        assert_eq!((norm.operands[0][1].cut(), norm.operands[1][0].cut()), (None, None));
        let sum = of(&Op::ReduceSum { axis: 1 }, &[&[2, 8]]);
        assert_eq!((sum.results[0][0], sum.operands[0][1].cut()), (sum.operands[0][0], None));
        let gather = Op::Gather { dtype: DType::F32 };
        let types = [TensorType::fixed(DType::F32, &[50, 8]), TensorType::fixed(DType::I32, &[7])];
        let gather = gather.signature(&types, &gather.infer(&types).expect("a gather"));
        assert_eq!(gather.operands[0][0].mark, Mark::Picked(1));
        assert_eq!(gather.operands[0][1], gather.results[0][1]);
    }
}
