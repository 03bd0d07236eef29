//! Causal attention over a paged KV cache with an online softmax (Milakov and Gimelshein, "Online normalizer calculation for
//! softmax").
//!
//! Row-major blocks have the positions of keys innermost and the elements of values. A host program ([`lanes`]) takes a token and a
//! group of query heads and goes block by block. On a GPU 16-bit operands go to matrix units ([`tiles`]), whose caches lie the
//! other way round ([`state_order`]); others take a program a token and KV head, whose threads share the context ([`split`]).
//! Where tokens are few, programs share a context too, and a second launch joins their softmaxes ([`join`]).
//! [`sparse`] goes along listed positions instead of a whole context.

mod join;
mod lanes;
pub mod sparse;
mod split;
mod tiles;

use self::join::{Partials, Room};
use super::row::load_index;
use super::schedule::param;
use crate::choices::Choices;
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, Tensor, contiguous_last, last_dim, require};
use crate::target::Target;
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, Reduction, V};
use weldment_ir::{DType, Dim, Op, OpKind};
use weldment_passes::target::Refusal;

/// Attention over paged caches.
pub struct Attention;

impl Family for Attention {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::Attention)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing {
            operands: &[Strides::Contiguous, Strides::Contiguous, Strides::Contiguous, Strides::Any],
            results: Strides::Contiguous,
            shares: Sharing::Never,
        }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let (q, out) = (&r.operands[0], &r.results[0]);
        let d = last_dim(q)?;
        if let (Op::Attention { scale, .. } | Op::SparseAttention { scale, .. }, true) =
            (r.op, r.target().gpu().is_some())
        {
            // GPU programs look for the highest score before they scale.
            require(scale.0 > 0.0, "attention scale on GPUs", scale.0, "more than 0")?;
        }
        for t in [q, out] {
            contiguous_last(t)?;
        }
        require(d <= 1024 || r.target().gpu().is_none(), "head size on GPUs", d, "at most 1024")?;
        // GPU programs address caches by any strides.
        for t in r.operands[1..3].iter().filter(|_| r.target().gpu().is_none()) {
            contiguous_last(t)?;
        }
        check_keys(&r.operands[1])?;
        let values = r.operands[2].ty.dtype;
        require(values.is_compute_float(), "cache dtype", values, "f32, f16 or bf16")?;
        require(out.ty.dtype != DType::Q8A || d.is_multiple_of(32), "head size for q8a", d, "a multiple of 32")?;
        require(q.ty.dtype.is_compute_float(), "query dtype", q.ty.dtype, "f32, f16 or bf16")?;
        require(q.ty.shape[1].constant().is_some(), "heads", &q.ty, "a constant")
    }

    fn heeds(&self) -> &'static [&'static str] {
        &["attention_sharing", "attention_threads", "attention_splits", "attention_tile_tokens"]
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let Op::Attention { scale, window, .. } = r.op else {
            return crate::request::refuse("op", r.op.kind(), "attention");
        };
        let [q, keys, values, positions, ids, tables] = &r.operands[..] else {
            return crate::request::refuse("operands", r.operands.len(), 6);
        };
        let mut b = Builder::new("attention");
        let names = ["q", "k_cache", "v_cache", "positions", "sequence_ids", "block_tables"];
        let params: Vec<Param> =
            names.iter().zip(&r.operands).map(|(n, t)| param(&mut b, r.target(), n, t, Access::Read)).collect();
        let all = [q, keys, values, positions, ids, tables];
        let problem = Problem {
            window: (*window > 0).then_some(*window),
            ..Problem::new(&params, all, &r.results[0], scale.0, r.max_tokens)?
        };
        let products = [&q.ty, &keys.ty, &values.ty];
        let mut arguments: Vec<Argument> = (0..6).map(Argument::Operand).collect();
        let mut then = None;
        let whole = |b: &mut Builder, arguments: &mut Vec<Argument>| {
            arguments.push(Argument::Result(0));
            param(b, r.target(), "out", &r.results[0], Access::Write)
        };
        let form = match r.target() {
            Target::Host(_) => {
                let out = whole(&mut b, &mut arguments);
                lanes::build(&mut b, &problem, out, &r.choices)
            }
            Target::Gpu(arch) => match tiles::unit(products) {
                Some(unit) if few_tokens(r.max_tokens, &r.choices) => {
                    let outcome = match room(r) {
                        Some(room) => {
                            let partials = room.declare(&mut b, Access::Write);
                            arguments.extend(partials.arguments());
                            then = Some(Box::new(join::build(
                                &r.results[0],
                                &q.ty.shape[0],
                                room,
                                problem.scale,
                                *arch,
                                false,
                            )));
                            Outcome::Partials(partials)
                        }
                        None => Outcome::Whole(whole(&mut b, &mut arguments)),
                    };
                    tiles::build_few(&mut b, &problem, outcome, *arch, &r.choices, unit)
                }
                unit => {
                    let out = whole(&mut b, &mut arguments);
                    match unit {
                        Some(unit) => tiles::build_many(&mut b, &problem, out, *arch, unit),
                        None => split::build(&mut b, &problem, out, &r.choices),
                    }
                }
            },
        };
        let window = problem.window.map_or(String::new(), |n| format!(" in a window of {n}"));
        let summary = format!(
            "attention {} heads over {} of {}{window}, {form}, {} -> {}",
            problem.heads, problem.kv_heads, problem.d, q.ty.dtype, r.results[0].ty.dtype
        );
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then })
    }

    fn scratch(&self, request: &Request<'_>) -> u64 {
        room(request).map_or(0, |room| room.bytes())
    }
}

/// Preconditions of a paged cache of keys.
///
/// # Errors
/// The first that fails.
pub(super) fn check_keys(keys: &Tensor) -> Result<(), Refusal> {
    let slots = keys.ty.last_constant().unwrap_or(0);
    require(slots.is_power_of_two() && slots <= 64, "KV block", slots, "a power of two up to 64")?;
    require(keys.ty.dtype.is_compute_float(), "cache dtype", keys.ty.dtype, "f32, f16 or bf16")
}

/// Order in memory, outermost first, of the dims of a cache of `dtype`, where it is not row-major: on GPUs 16-bit caches have the
/// dim innermost that matrix units contract, elements of keys and positions of values.
pub fn state_order(dtype: DType, target: &Target) -> Option<Vec<usize>> {
    (target.gpu().is_some() && matches!(dtype, DType::F16 | DType::BF16)).then(|| vec![0, 1, 3, 2])
}

/// Not above any score, yet finite: the difference of two such is a number. A score that overflowed to -inf weighs nothing.
const LOWEST: f64 = f32::MIN as f64;
/// Tokens of a variant from which tiles of them go to matrix units.
const MANY_TOKENS: u64 = 65;

/// True for variants whose tokens are too few for that.
fn few_tokens(max_tokens: u64, choices: &Choices) -> bool {
    max_tokens < choices.attention_tile_tokens.map_or(MANY_TOKENS, u64::from)
}

/// Partial softmaxes of the programs that share a context, where they do.
fn room(r: &Request<'_>) -> Option<Room> {
    let kv_heads = r.operands.get(1)?.ty.shape.get(1)?.constant()?;
    shared_room(r, kv_heads)
}

/// The same, of a token with `programs` otherwise.
fn shared_room(r: &Request<'_>, programs: u64) -> Option<Room> {
    let ([q, keys, values, ..], setup) = (&r.operands[..], r.setup) else { return None };
    setup.target.gpu()?;
    let operands = [&q.ty, &keys.ty, &values.ty];
    tiles::unit(operands).filter(|_| few_tokens(r.max_tokens, &r.choices))?;
    let q = &q.ty;
    let (heads, d) = (q.shape.get(1)?.constant()?, q.last_constant()?);
    // Tokens by any other symbol may be more than the variant's.
    let tokens = match &q.shape[0] {
        Dim::Const(n) => *n,
        Dim::Sym(s) if setup.symbols.is_rows(Some(s)) => r.max_tokens,
        Dim::Sym(_) => return None,
    };
    let splits = join::splits(programs, tokens, &r.choices);
    (splits > 1).then(|| Room::new(splits, tokens, heads, d))
}

/// Where a program leaves its softmax.
#[derive(Clone, Copy)]
enum Outcome {
    /// The whole, as the result.
    Whole(Param),
    /// A part, for the second launch.
    Partials(Partials),
}

/// What all forms read of a request.
struct Problem<'t> {
    params: &'t [Param],
    q: &'t Tensor,
    keys: &'t Tensor,
    values: &'t Tensor,
    positions: &'t Tensor,
    ids: &'t Tensor,
    tables: &'t Tensor,
    out: &'t Tensor,
    /// Elements of a head.
    d: u64,
    heads: u64,
    kv_heads: u64,
    /// Query heads of a KV head.
    share: u64,
    /// Positions of a block.
    slots: u32,
    scale: f64,
    /// A token sees so many positions at most, the last ones.
    window: Option<i64>,
    tokens: &'t Dim,
    max_tokens: u64,
}

impl<'t> Problem<'t> {
    /// A problem over (q, keys, values, positions, sequence ids, block tables) and their parameters.
    fn new(
        params: &'t [Param],
        [q, keys, values, positions, ids, tables]: [&'t Tensor; 6],
        out: &'t Tensor,
        scale: f64,
        max_tokens: u64,
    ) -> Result<Problem<'t>, Refusal> {
        let heads = q.ty.shape[1].constant().unwrap_or(1);
        let kv_heads = keys.ty.shape[1].constant().unwrap_or(1);
        Ok(Problem {
            params,
            q,
            keys,
            values,
            positions,
            ids,
            tables,
            out,
            d: last_dim(q)?,
            heads,
            kv_heads,
            share: heads / kv_heads,
            slots: keys.ty.last_constant().unwrap_or(16) as u32,
            scale,
            window: None,
            tokens: &q.ty.shape[0],
            max_tokens,
        })
    }

    /// The first position that a token at `position` sees, where there is a window.
    fn first_seen(&self, b: &mut Builder, position: V) -> Option<V> {
        let window = self.window?;
        let first = b.offset(position, 1 - window);
        let zero = b.int(0);
        Some(b.max(first, zero))
    }

    /// Position of a token, and byte offset of its sequence's row of block tables.
    fn token(&self, b: &mut Builder, token: V) -> (V, V) {
        let position_at = b.scale(token, self.positions.byte_stride(0));
        let position = load_index(b, self.params[3], position_at);
        let id_at = b.scale(token, self.ids.byte_stride(0));
        let sequence = load_index(b, self.params[4], id_at);
        (position, self.tables.row_offset(b, sequence))
    }
}

/// Sets a grid axis to the tokens, `tile` a program.
pub(super) fn token_grid(b: &mut Builder, axis: usize, tokens: &Dim, tile: u64) {
    match tokens {
        Dim::Sym(s) => b.grid_symbol(axis, s, 1, tile),
        Dim::Const(n) => b.grid_constant(axis, n.div_ceil(tile)),
    }
}

/// e^x for x <= 0, without the guards that larger arguments need; e^-87 below -87.
fn exp_of_negative(b: &mut Builder, x: V) -> V {
    let lowest = b.float(-87.0);
    let x = b.max(x, lowest);
    let log2e = b.float(std::f64::consts::LOG2_E);
    let scaled = b.mul(x, log2e);
    let n = b.round(scaled);
    let (high, low) = (b.float(-0.693_359_375), b.float(2.121_944_4e-4));
    let r = b.fma(n, high, x);
    let r = b.fma(n, low, r);
    let mut p = b.float(1.987_569_2e-4);
    for k in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
        let k = b.float(k);
        p = b.fma(p, r, k);
    }
    let n = b.convert(Conversion::FloatToSigned, n, Elem::I32);
    let (bias, bits) = (b.int_of(Elem::I32, &[], 127), b.int_of(Elem::I32, &[], 23));
    let e = b.add(n, bias);
    let e = b.binary(Binary::Shl, e, bits);
    let power = b.bitcast(e, Elem::F32);
    b.mul(p, power)
}

/// e^(scale x) for x <= 0, as 2^(scale log2(e) x).
fn power(b: &mut Builder, x: V, scale: f64) -> V {
    let c = b.float(scale * std::f64::consts::LOG2_E);
    let x = b.mul(x, c);
    b.exp2(x)
}

/// A running softmax (highest score and total [.., rows, 1], sums [.., rows, d]) rescaled to take in `scores` [.., rows, keys]: the weights
/// of the new keys, and the softmax with all of them but their values, which are still to be added to the sums.
fn taken_in(b: &mut Builder, scale: f64, scores: V, [top, total, sums]: [V; 3]) -> (V, [V; 3]) {
    let highest = b.reduce(Reduction::Max, scores, 2);
    let new_top = b.max(top, highest);
    let weights = b.sub(scores, new_top);
    let weights = power(b, weights, scale);
    let change = b.sub(top, new_top);
    let change = power(b, change, scale);
    let added = b.reduce(Reduction::Sum, weights, 2);
    let total = b.fma(total, change, added);
    let sums = b.mul(sums, change);
    (weights, [new_top, total, sums])
}

/// A softmax's total, or 1 where nothing was seen: its sums are 0.
fn or_one(b: &mut Builder, total: V) -> V {
    let (zero, one) = (b.float(0.0), b.float(1.0));
    let some = b.compare(Compare::Less, zero, total);
    b.select(some, total, one)
}

/// Byte offset of [token, head, 0].
fn place(b: &mut Builder, t: &Tensor, token: V, head: V) -> V {
    let a = b.scale(token, t.byte_stride(0));
    let h = b.scale(head, t.byte_stride(1));
    b.add(a, h)
}
