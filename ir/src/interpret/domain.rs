//! What an interpreter's numbers must be able to do.

use super::function::Function;
use crate::DType;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt::Debug;

/// Why a value cannot be computed; the caller adds the node's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A zero divisor in the ring: the case must be drawn again.
    ZeroDivisor,
    /// Anything else.
    Message(String),
}

impl From<String> for Fault {
    fn from(message: String) -> Fault {
        Fault::Message(message)
    }
}
impl From<&str> for Fault {
    fn from(message: &str) -> Fault {
        Fault::Message(message.to_owned())
    }
}

/// How values are rounded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Round f32 results to f32 (f64 domain). Off by default, so that f64 is the ideal reference.
    pub round_f32: bool,
    /// Dtypes whose casts and result roundings count as identity: the casts that a `Rounding` or `Approx` rule names.
    pub ideal: BTreeSet<DType>,
    /// Largest number of elements of one computed tensor.
    pub max_elements: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { round_f32: false, ideal: BTreeSet::new(), max_elements: 1 << 29 }
    }
}

impl Options {
    /// Options under which no float dtype rounds.
    pub fn ideal() -> Options {
        Options { ideal: DType::ALL.iter().copied().filter(|d| d.is_float()).collect(), ..Options::default() }
    }
}

/// Attributes of a rope table, as numbers.
#[derive(Clone, Copy, Debug)]
pub struct RopeSpec {
    /// Rows.
    pub positions: usize,
    /// Columns: cos for the first half, sin for the second.
    pub dim: usize,
    /// Base.
    pub theta: f64,
    /// Llama 3 scaling; 1 is none.
    pub factor: f64,
    /// Llama 3 `low_freq_factor`.
    pub low: f64,
    /// Llama 3 `high_freq_factor`.
    pub high: f64,
    /// Llama 3 `original_max_position_embeddings`.
    pub original: i64,
}

/// A number domain. Functions are total; a division that the domain cannot answer gives `None`.
pub trait Domain {
    /// A number.
    type Value: Copy + Debug + PartialEq + Send + Sync + 'static;
    /// For error messages and reports.
    const NAME: &'static str;
    /// 0.
    const ZERO: Self::Value;

    /// A real number, exactly; `None` for one the domain cannot hold.
    fn real(x: f64) -> Option<Self::Value>;
    /// An integer.
    fn int(n: i64) -> Self::Value;
    /// a + b.
    fn add(a: Self::Value, b: Self::Value) -> Self::Value;
    /// a - b.
    fn sub(a: Self::Value, b: Self::Value) -> Self::Value;
    /// a * b.
    fn mul(a: Self::Value, b: Self::Value) -> Self::Value;
    /// -a.
    fn neg(a: Self::Value) -> Self::Value;
    /// a / b; `None` asks for another draw of the case.
    fn div(a: Self::Value, b: Self::Value) -> Option<Self::Value>;
    /// a > b in the domain's order.
    fn greater(a: Self::Value, b: Self::Value) -> bool;
    /// The order that `topk` ranks by: total, NaN above all numbers, -0 beside +0.
    fn order(a: Self::Value, b: Self::Value) -> Ordering;
    /// The larger; `a` where neither is.
    fn max(a: Self::Value, b: Self::Value) -> Self::Value {
        if Self::greater(b, a) { b } else { a }
    }
    /// The smaller; `a` where neither is.
    fn min(a: Self::Value, b: Self::Value) -> Self::Value {
        if Self::greater(a, b) { b } else { a }
    }
    /// Sum of all terms.
    fn sum(terms: impl Iterator<Item = Self::Value>) -> Self::Value {
        terms.fold(Self::ZERO, Self::add)
    }
    /// The function of one number.
    fn apply(f: Function, a: Self::Value) -> Self::Value;

    /// Sum of products over the shorter length: the hot loop.
    fn dot(a: &[Self::Value], b: &[Self::Value]) -> Self::Value;
    /// e^a / sum e^a in place; `None` asks for another draw.
    fn softmax(row: &mut [Self::Value]) -> Option<()>;
    /// Rounds exact values to the float dtype `to` in place; q8a takes blocks of 32.
    fn round(values: &mut [Self::Value], to: DType, options: &Options);
    /// Divides the values of one group by the scale that the `quantise` op gives it, rounds them to `to`, and gives the scale.
    fn quantise(group: &mut [Self::Value], to: DType, options: &Options) -> Self::Value;
    /// A cast to an integer dtype or bool.
    fn to_int(a: Self::Value, dtype: DType) -> i64;
    /// Element (`row`, `column`) of a rope table; `factor` is the divisor of that column's frequency.
    fn rope(spec: &RopeSpec, row: usize, column: usize, factor: Option<Self::Value>) -> Self::Value;
    /// The equality that tests use: the ring compares p parts only.
    fn same(a: Self::Value, b: Self::Value) -> bool;
}

/// True if every value of `from` is one of `to`, so that a cast between them never rounds. Block formats decode to f32.
pub(crate) fn widens(from: DType, to: DType) -> bool {
    use DType::{BF16, F4E2M1, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0, F16, F32};
    let eight = matches!(from, F8E4M3 | F8E4M3Fnuz | F8E5M2 | F8E5M2Fnuz);
    from == to
        || match to {
            F32 => from.is_float(),
            F16 => eight || from == F4E2M1,
            BF16 => eight || from == F4E2M1 || from == F8E8M0,
            F8E4M3 | F8E4M3Fnuz | F8E5M2 | F8E5M2Fnuz => from == F4E2M1,
            _ => false,
        }
}
