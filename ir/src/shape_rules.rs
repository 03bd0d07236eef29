//! Shape rules named by the op table: operand types in, result types out, or a sentence that says what was found and
//! what would be accepted. Arity has been checked by the caller.

use crate::DType;
use crate::op::Op;
use crate::types::{Dim, Shape, TensorType};

type Types = Result<Vec<TensorType>, String>;

fn one(dtype: DType, shape: Shape) -> Types {
    Ok(vec![TensorType { dtype, shape }])
}

fn check(condition: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(message()) }
}

fn compute_float(name: &str, t: &TensorType) -> Result<(), String> {
    check(t.dtype.is_compute_float(), || format!("{name} is {t}; f32, f16 or bf16 is expected"))
}

fn rank(name: &str, t: &TensorType, rank: usize) -> Result<(), String> {
    check(t.rank() == rank, || format!("{name} is {t}; rank {rank} is expected"))
}

fn i32_tensor(name: &str, t: &TensorType, ranks: usize) -> Result<(), String> {
    check(t.dtype == DType::I32, || format!("{name} is {t}; i32 is expected"))?;
    rank(name, t, ranks)
}

fn same_dim(a_name: &str, a: &Dim, b_name: &str, b: &Dim) -> Result<(), String> {
    check(a == b, || format!("{a_name} is {a} and {b_name} is {b}; they must be equal"))
}

fn axis_of(axis: i64, t: &TensorType) -> Result<usize, String> {
    usize::try_from(axis)
        .ok()
        .filter(|a| *a < t.rank())
        .ok_or_else(|| format!("axis {axis} of {t}; 0..{} is accepted", t.rank()))
}

/// Numpy broadcasting of two shapes.
pub fn broadcast_shapes(a: &[Dim], b: &[Dim]) -> Result<Shape, String> {
    let rank = a.len().max(b.len());
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(Dim::Const(1), |j| s[j].clone());
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Ok(x),
            (Dim::Const(1), y) => Ok(y),
            (x, Dim::Const(1)) => Ok(x),
            (x, y) => Err(format!("dims {x} and {y} do not broadcast; equal dims or 1 are accepted")),
        })
        .collect()
}

/// A result dtype that ops may round to: a compute float, or q8a over whole blocks.
fn result_dtype(dtype: DType, shape: &[Dim]) -> Result<(), String> {
    match dtype {
        d if d.is_compute_float() => Ok(()),
        DType::Q8A => {
            let last = shape.last().and_then(Dim::constant);
            check(last.is_some_and(|n| n % 32 == 0), || {
                format!(
                    "q8a needs a constant last dim that is a multiple of 32, found {}",
                    shape.last().map_or("rank 0".into(), Dim::to_string)
                )
            })
        }
        d => Err(format!("result dtype {d}; f32, f16, bf16 or q8a is accepted")),
    }
}

pub(crate) fn leaf(op: &Op, _: &[TensorType]) -> Types {
    let (Op::Input { dtype, shape, .. } | Op::Weight { dtype, shape, .. } | Op::State { dtype, shape, .. }) = op else {
        return Err("not a leaf".into());
    };
    if let Some(shape) = shape.iter().map(Dim::constant).collect::<Option<Vec<_>>>() {
        dtype.byte_size(&shape).map_err(|e| e.to_string())?;
    }
    one(*dtype, shape.clone())
}

pub(crate) fn constant(op: &Op, _: &[TensorType]) -> Types {
    let Op::Constant { value, dtype } = op else { return Err("not a constant".into()) };
    check(!dtype.is_block(), || format!("a constant of {dtype}; a plain scalar dtype is expected"))?;
    check(value.0.is_finite(), || format!("{value} is not finite"))?;
    one(*dtype, Vec::new())
}

pub(crate) fn rope_table(op: &Op, operands: &[TensorType]) -> Types {
    let Op::RopeTable { positions, dim, theta, factor, low, high, original } = op else {
        return Err("not a rope_table".into());
    };
    let (Ok(p), Ok(d)) = (u64::try_from(*positions), u64::try_from(*dim)) else { return Err("negative size".into()) };
    check(p > 0 && d > 0 && d % 2 == 0, || {
        format!("positions {p}, dim {d}; a positive and an even positive number are expected")
    })?;
    check(theta.0 > 0.0 && factor.0 > 0.0, || {
        format!("theta {theta}, factor {factor}; positive numbers are expected")
    })?;
    check(factor.0 == 1.0 || (low.0 > 0.0 && high.0 > low.0 && *original > 0), || {
        format!("low {low}, high {high}, original {original}; 0 < low < high and original > 0 are expected")
    })?;
    check(operands.len() <= 1, || format!("{} factor operands; at most one is accepted", operands.len()))?;
    if let Some(f) = operands.first() {
        check(f.constant_shape() == Some(vec![d / 2]) && f.dtype == DType::F32, || {
            format!("factors are {f}; f32[{}] is expected", d / 2)
        })?;
    }
    DType::F32.byte_size(&[p, d]).map_err(|e| e.to_string())?;
    one(DType::F32, vec![Dim::Const(p), Dim::Const(d)])
}

pub(crate) fn numbers(op: &Op, _: &[TensorType]) -> Types {
    let Op::Numbers { values } = op else { return Err("not numbers".into()) };
    check(!values.is_empty(), || "no numbers; at least one is expected".into())?;
    one(DType::F32, vec![Dim::Const(values.len() as u64)])
}

pub(crate) fn iota(op: &Op, _: &[TensorType]) -> Types {
    let Op::Iota { size } = op else { return Err("not an iota".into()) };
    one(DType::I32, vec![index_count("size", *size)?])
}

/// A dim for a number of indices, each of which an i32 holds.
fn index_count(name: &str, n: i64) -> Result<Dim, String> {
    let limit = i64::from(i32::MAX);
    check((1..=limit).contains(&n), || format!("{name} {n}; 1..={limit} is accepted"))?;
    Ok(Dim::Const(n.unsigned_abs()))
}

pub(crate) fn arithmetic(_: &Op, o: &[TensorType]) -> Types {
    check(o[0].dtype == o[1].dtype && !o[0].dtype.is_block(), || {
        format!("operands are {} and {}; one plain dtype is expected", o[0], o[1])
    })?;
    one(o[0].dtype, broadcast_shapes(&o[0].shape, &o[1].shape)?)
}

pub(crate) fn compare(op: &Op, o: &[TensorType]) -> Types {
    one(DType::Bool, arithmetic(op, o)?.remove(0).shape)
}

pub(crate) fn select(op: &Op, o: &[TensorType]) -> Types {
    check(o[0].dtype == DType::Bool, || format!("condition is {}; bool is expected", o[0]))?;
    let value = arithmetic(op, &o[1..])?.remove(0);
    one(value.dtype, broadcast_shapes(&o[0].shape, &value.shape)?)
}

pub(crate) fn float_unary(_: &Op, o: &[TensorType]) -> Types {
    compute_float("the operand", &o[0])?;
    one(o[0].dtype, o[0].shape.clone())
}

pub(crate) fn cast(op: &Op, o: &[TensorType]) -> Types {
    let Op::Cast { dtype } = op else { return Err("not a cast".into()) };
    check(*dtype == DType::Q8A || !dtype.is_block(), || {
        format!("a cast to {dtype}; a plain dtype or q8a is accepted")
    })?;
    if *dtype == DType::Q8A {
        compute_float("the operand", &o[0])?;
        result_dtype(*dtype, &o[0].shape)?;
    }
    one(*dtype, o[0].shape.clone())
}

pub(crate) fn reduce(op: &Op, o: &[TensorType]) -> Types {
    let (Op::ReduceSum { axis } | Op::ReduceMean { axis } | Op::ReduceMax { axis }) = op else {
        return Err("not a reduction".into());
    };
    compute_float("the operand", &o[0])?;
    let mut shape = o[0].shape.clone();
    shape[axis_of(*axis, &o[0])?] = Dim::Const(1);
    one(o[0].dtype, shape)
}

fn norm_weight(w: &TensorType, x: &TensorType) -> Result<(), String> {
    compute_float("w", w)?;
    check(x.rank() >= 1 && w.shape == x.shape[x.rank() - 1..], || {
        format!("w is {w} for x {x}; rank 1 of x's last dim is expected")
    })
}

pub(crate) fn rms_norm(op: &Op, o: &[TensorType]) -> Types {
    let Op::RmsNorm { eps, dtype } = op else { return Err("not a rms_norm".into()) };
    compute_float("x", &o[0])?;
    norm_weight(&o[1], &o[0])?;
    check(eps.0 >= 0.0, || format!("eps {eps}; a number >= 0 is expected"))?;
    result_dtype(*dtype, &o[0].shape)?;
    one(*dtype, o[0].shape.clone())
}

pub(crate) fn add_rms_norm(op: &Op, o: &[TensorType]) -> Types {
    let Op::AddRmsNorm { eps, dtype } = op else { return Err("not an add_rms_norm".into()) };
    check(o[0] == o[1], || format!("x is {} and residual {}; equal types are expected", o[0], o[1]))?;
    let norm = rms_norm(&Op::RmsNorm { eps: *eps, dtype: *dtype }, &[o[1].clone(), o[2].clone()])?.remove(0);
    Ok(vec![norm, o[1].clone()])
}

/// FP8 formats of codes that matmuls take.
fn fp8(name: &str, t: &TensorType) -> Result<(), String> {
    check(matches!(t.dtype, DType::F8E4M3 | DType::F8E4M3Fnuz), || {
        format!("{name} is {t}; f8e4m3 or f8e4m3fnuz is expected")
    })
}

pub(crate) fn quantise(op: &Op, o: &[TensorType]) -> Types {
    let Op::Quantise { dtype, group } = op else { return Err("not a quantise".into()) };
    compute_float("x", &o[0])?;
    quantised(&o[0], *dtype, *group)
}

/// Types of the codes and scales of `x` in groups of `group`.
fn quantised(x: &TensorType, dtype: DType, group: i64) -> Types {
    let last = x.last_constant().ok_or_else(|| format!("x is {x}; a constant last dim is expected"))?;
    let groups = u64::try_from(group).ok().filter(|g| *g > 0 && last > 0 && last.is_multiple_of(*g));
    let groups =
        groups.map(|g| last / g).ok_or_else(|| format!("groups of {group} in {last}; a divisor is expected"))?;
    let scale = match dtype {
        DType::F8E4M3 | DType::F8E4M3Fnuz => DType::F32,
        DType::F4E2M1 if group == 32 => DType::F8E8M0,
        d => {
            return Err(format!("{d} in groups of {group}; f8e4m3, f8e4m3fnuz, or f4e2m1 in groups of 32 is accepted"));
        }
    };
    let mut scales = x.shape.clone();
    scales[x.rank() - 1] = Dim::Const(groups);
    Ok(vec![TensorType::new(dtype, x.shape.clone()), TensorType::new(scale, scales)])
}

/// The norm's dtype beside codes of it.
fn norm_beside_codes(norm: &TensorType, format: DType, group: i64) -> Types {
    compute_float("norm", norm)?;
    let mut types = quantised(norm, format, group)?;
    types.push(norm.clone());
    Ok(types)
}

pub(crate) fn rms_norm_quantise(op: &Op, o: &[TensorType]) -> Types {
    let Op::RmsNormQuantise { eps, dtype, format, group } = op else { return Err("not a rms_norm_quantise".into()) };
    let norm = rms_norm(&Op::RmsNorm { eps: *eps, dtype: *dtype }, o)?.remove(0);
    norm_beside_codes(&norm, *format, *group)
}

pub(crate) fn add_rms_norm_quantise(op: &Op, o: &[TensorType]) -> Types {
    let Op::AddRmsNormQuantise { eps, dtype, format, group } = op else {
        return Err("not an add_rms_norm_quantise".into());
    };
    let mut both = add_rms_norm(&Op::AddRmsNorm { eps: *eps, dtype: *dtype }, o)?;
    let mut types = norm_beside_codes(&both.remove(0), *format, *group)?;
    types.append(&mut both);
    Ok(types)
}

/// Symbols (sorted) and constant product of a shape: equal for two shapes with the same number of elements.
fn volume(shape: &[Dim]) -> Option<(Vec<&Dim>, u64)> {
    let mut symbols: Vec<&Dim> = shape.iter().filter(|d| d.constant().is_none()).collect();
    symbols.sort();
    let product = shape.iter().filter_map(Dim::constant).try_fold(1u64, u64::checked_mul)?;
    Some((symbols, product))
}

pub(crate) fn reshape(op: &Op, o: &[TensorType]) -> Types {
    let Op::Reshape { shape } = op else { return Err("not a reshape".into()) };
    let equal = volume(shape).is_some_and(|v| Some(v) == volume(&o[0].shape));
    check(equal, || {
        format!("{} to {}; the same number of elements is expected", o[0], TensorType::new(o[0].dtype, shape.clone()))
    })?;
    // Blocks run along the last dim: it may be cut or joined between blocks, never inside one.
    let block = o[0].dtype.block_elements() as u64;
    let whole = |d: Option<&Dim>| d.and_then(Dim::constant).is_some_and(|n| n.is_multiple_of(block));
    let kept = shape.last() == o[0].shape.last() || (whole(shape.last()) && whole(o[0].shape.last()));
    check(!o[0].dtype.is_block() || kept, || {
        format!(
            "{} to last dim {}; whole blocks of {block} are expected",
            o[0],
            shape.last().map_or("none".into(), Dim::to_string)
        )
    })?;
    one(o[0].dtype, shape.clone())
}

pub(crate) fn transpose(op: &Op, o: &[TensorType]) -> Types {
    let Op::Transpose { permutation } = op else { return Err("not a transpose".into()) };
    let mut sorted = permutation.clone();
    sorted.sort_unstable();
    let full = sorted.iter().copied().eq(0..o[0].rank() as i64);
    check(full, || format!("permutation {permutation:?} of {}; each of 0..{} once is expected", o[0], o[0].rank()))?;
    check(!o[0].dtype.is_block() || permutation.last() == Some(&(o[0].rank() as i64 - 1)), || {
        format!("{} may keep only its last dim", o[0])
    })?;
    one(o[0].dtype, permutation.iter().map(|i| o[0].shape[*i as usize].clone()).collect())
}

pub(crate) fn slice(op: &Op, o: &[TensorType]) -> Types {
    let Op::Slice { axis, start, end } = op else { return Err("not a slice".into()) };
    let axis = axis_of(*axis, &o[0])?;
    let size =
        o[0].shape[axis].constant().ok_or_else(|| format!("axis {axis} of {}; a constant dim is expected", o[0]))?;
    let (Ok(start), Ok(end)) = (u64::try_from(*start), u64::try_from(*end)) else {
        return Err(format!("{start}..{end} is negative"));
    };
    check(start < end && end <= size, || format!("{start}..{end} of {size}; a non-empty range inside it is expected"))?;
    if axis + 1 == o[0].rank() {
        let block = o[0].dtype.block_elements() as u64;
        check(start % block == 0 && end % block == 0, || {
            format!("{start}..{end} of {}; multiples of its block of {block} are expected", o[0])
        })?;
    }
    let mut shape = o[0].shape.clone();
    shape[axis] = Dim::Const(end - start);
    one(o[0].dtype, shape)
}

pub(crate) fn concat(op: &Op, o: &[TensorType]) -> Types {
    let Op::Concat { axis } = op else { return Err("not a concat".into()) };
    let Some(first) = o.first() else { return Err("no operands; at least one is expected".into()) };
    let axis = axis_of(*axis, first)?;
    let mut total = 0u64;
    for part in o {
        let alike = part.dtype == first.dtype
            && part.rank() == first.rank()
            && (0..first.rank()).all(|i| i == axis || part.shape[i] == first.shape[i]);
        check(alike, || format!("{part} beside {first}; parts may differ only in dim {axis}"))?;
        let size =
            part.shape[axis].constant().ok_or_else(|| format!("dim {axis} of {part}; a constant dim is expected"))?;
        total = total.checked_add(size).ok_or("the joined dim overflows")?;
    }
    let mut shape = first.shape.clone();
    shape[axis] = Dim::Const(total);
    one(first.dtype, shape)
}

pub(crate) fn broadcast(op: &Op, o: &[TensorType]) -> Types {
    let Op::Broadcast { shape } = op else { return Err("not a broadcast".into()) };
    let joined = broadcast_shapes(&o[0].shape, shape)?;
    check(joined == *shape && !o[0].dtype.is_block(), || {
        format!("{} to {}; only dims of 1 repeat", o[0], TensorType::new(o[0].dtype, shape.clone()))
    })?;
    one(o[0].dtype, shape.clone())
}

fn contract(x: &TensorType, w: &TensorType, dtype: DType) -> Result<TensorType, String> {
    check(x.dtype.is_compute_float() || x.dtype == DType::Q8A, || {
        format!("x is {x}; f32, f16, bf16 or q8a is expected")
    })?;
    check(w.dtype.is_float() && w.dtype != DType::Q8A, || {
        format!("w is {w}; a float or block-quantised dtype is expected")
    })?;
    rank("w", w, 2)?;
    check(x.rank() >= 1, || format!("x is {x}; rank 1 or more is expected"))?;
    same_dim("x's last dim", &x.shape[x.rank() - 1], "w's last dim", &w.shape[1])?;
    let mut shape = x.shape.clone();
    shape[x.rank() - 1] = w.shape[0].clone();
    result_dtype(dtype, &shape)?;
    Ok(TensorType { dtype, shape })
}

pub(crate) fn matmul(op: &Op, o: &[TensorType]) -> Types {
    let Op::Matmul { dtype } = op else { return Err("not a matmul".into()) };
    Ok(vec![contract(&o[0], &o[1], *dtype)?])
}

pub(crate) fn matmul_add(op: &Op, o: &[TensorType]) -> Types {
    let Op::MatmulAdd { dtype } = op else { return Err("not a matmul_add".into()) };
    let out = contract(&o[0], &o[1], *dtype)?;
    compute_float("addend", &o[2])?;
    check(broadcast_shapes(&o[2].shape, &out.shape).is_ok_and(|s| s == out.shape), || {
        format!("addend is {} for a result {out}; it must broadcast to it", o[2])
    })?;
    Ok(vec![out])
}

pub(crate) fn matmul_silu_mul(op: &Op, o: &[TensorType]) -> Types {
    let Op::MatmulSiluMul { dtype } = op else { return Err("not a matmul_silu_mul".into()) };
    check(o[1] == o[2], || format!("w_gate is {} and w_up {}; equal types are expected", o[1], o[2]))?;
    Ok(vec![contract(&o[0], &o[1], *dtype)?])
}

pub(crate) fn scaled_matmul(op: &Op, o: &[TensorType]) -> Types {
    let Op::ScaledMatmul { rows, columns, dtype } = op else { return Err("not a scaled_matmul".into()) };
    let [codes, scales, w, w_scales] = o else { return Err("wrong arity".into()) };
    fp8("codes", codes)?;
    fp8("w", w)?;
    rank("w", w, 2)?;
    check(codes.rank() >= 1, || format!("codes are {codes}; rank 1 or more is expected"))?;
    let (Some(n), Some(k)) = (w.shape[0].constant(), w.shape[1].constant()) else {
        return Err(format!("w is {w}; constant dims are expected"));
    };
    same_dim("codes' last dim", &codes.shape[codes.rank() - 1], "w's last dim", &w.shape[1])?;
    let lead = &codes.shape[..codes.rank() - 1];
    let groups = scales.last_constant().filter(|g| *g > 0 && k.is_multiple_of(*g));
    let groups = groups.filter(|_| scales.dtype == DType::F32 && scales.shape[..scales.rank() - 1] == *lead);
    let groups = groups.ok_or_else(|| {
        format!("scales are {scales} for codes {codes}; f32 with a divisor of {k} as last dim is expected")
    })?;
    let block = |of: i64, size: u64| u64::try_from(of).ok().filter(|b| (1..=size.max(1)).contains(b));
    let (Some(rows), Some(columns)) = (block(*rows, n), block(*columns, k).filter(|c| k.is_multiple_of(*c))) else {
        return Err(format!(
            "blocks of {rows} x {columns} of w {w}; up to all of it, and a divisor of {k} columns is expected"
        ));
    };
    let expected = TensorType::fixed(DType::F32, &[n.div_ceil(rows), k / columns]);
    check(*w_scales == expected, || format!("w_scales are {w_scales}; {expected} is expected"))?;
    let group = k / groups;
    check(group.is_multiple_of(columns) || columns.is_multiple_of(group), || {
        format!("groups of {group} and blocks of {columns} columns; one must divide the other")
    })?;
    check(dtype.is_compute_float(), || format!("result dtype {dtype}; f32, f16 or bf16 is accepted"))?;
    let mut shape = codes.shape.clone();
    shape[codes.rank() - 1] = w.shape[0].clone();
    one(*dtype, shape)
}

pub(crate) fn silu_mul(op: &Op, o: &[TensorType]) -> Types {
    let Op::SiluMul { dtype } = op else { return Err("not a silu_mul".into()) };
    compute_float("gate", &o[0])?;
    check(o[0] == o[1], || format!("gate is {} and up {}; equal types are expected", o[0], o[1]))?;
    result_dtype(*dtype, &o[0].shape)?;
    one(*dtype, o[0].shape.clone())
}

pub(crate) fn gather(op: &Op, o: &[TensorType]) -> Types {
    let Op::Gather { dtype } = op else { return Err("not a gather".into()) };
    rank("table", &o[0], 2)?;
    check(o[0].dtype.is_float(), || format!("table is {}; a float or block-quantised dtype is expected", o[0]))?;
    check(o[1].dtype == DType::I32, || format!("indices are {}; i32 is expected", o[1]))?;
    check(dtype.is_compute_float(), || format!("result dtype {dtype}; f32, f16 or bf16 is accepted"))?;
    let mut shape = o[1].shape.clone();
    shape.push(o[0].shape[1].clone());
    one(*dtype, shape)
}

pub(crate) fn rope(_: &Op, o: &[TensorType]) -> Types {
    compute_float("x", &o[0])?;
    rank("x", &o[0], 3)?;
    i32_tensor("positions", &o[1], 1)?;
    same_dim("x's token dim", &o[0].shape[0], "positions' dim", &o[1].shape[0])?;
    rank("table", &o[2], 2)?;
    let (rotary, head) = (o[2].last_constant(), o[0].last_constant());
    check(o[2].dtype == DType::F32 && matches!((rotary, head), (Some(r), Some(d)) if r <= d && r % 2 == 0), || {
        format!("table is {} for x {}; f32 with an even last dim not over x's is expected", o[2], o[0])
    })?;
    one(o[0].dtype, o[0].shape.clone())
}

fn paged(
    cache: &TensorType,
    positions: &TensorType,
    ids: &TensorType,
    tables: &TensorType,
    tokens: &Dim,
) -> Result<(), String> {
    rank("cache", cache, 4)?;
    compute_float("cache", cache)?;
    i32_tensor("positions", positions, 1)?;
    i32_tensor("sequence_ids", ids, 1)?;
    i32_tensor("block_tables", tables, 2)?;
    same_dim("the token dim", tokens, "positions' dim", &positions.shape[0])?;
    same_dim("the token dim", tokens, "sequence_ids' dim", &ids.shape[0])?;
    check(cache.shape[1..].iter().all(|d| d.constant().is_some()), || {
        format!("cache is {cache}; constant dims after the first are expected")
    })
}

pub(crate) fn cache_write(op: &Op, o: &[TensorType]) -> Types {
    let (Op::CacheWrite { transposed } | Op::RopeCacheWrite { transposed, .. }) = op else {
        return Err("not a cache_write".into());
    };
    rank("x", &o[1], 3)?;
    compute_float("x", &o[1])?;
    paged(&o[0], &o[2], &o[3], &o[4], &o[1].shape[0])?;
    let depth = &o[0].shape[if *transposed { 2 } else { 3 }];
    same_dim("x's head dim", &o[1].shape[1], "the cache's head dim", &o[0].shape[1])?;
    same_dim("x's last dim", &o[1].shape[2], "the cache's element dim", depth)?;
    one(o[0].dtype, o[0].shape.clone())
}

pub(crate) fn rope_cache_write(op: &Op, o: &[TensorType]) -> Types {
    rope(op, &[o[1].clone(), o[2].clone(), o[3].clone()])?;
    cache_write(op, &[o[0].clone(), o[1].clone(), o[2].clone(), o[4].clone(), o[5].clone()])
}

pub(crate) fn attention(op: &Op, o: &[TensorType]) -> Types {
    let (Op::Attention { dtype, .. } | Op::SparseAttention { dtype, .. }) = op else {
        return Err("not an attention".into());
    };
    if let Op::Attention { window, .. } = op {
        let limit = i64::from(i32::MAX);
        check((0..=limit).contains(window), || format!("window {window}; 0 (no window) to {limit} is accepted"))?;
    }
    rank("q", &o[0], 3)?;
    compute_float("q", &o[0])?;
    for cache in &o[1..3] {
        paged(cache, &o[3], &o[4], &o[5], &o[0].shape[0])?;
    }
    let (q, k, v) = (&o[0].shape, &o[1].shape, &o[2].shape);
    same_dim("k_cache's block dim", &k[0], "v_cache's", &v[0])?;
    same_dim("k_cache's head dim", &k[1], "v_cache's", &v[1])?;
    same_dim("k_cache's slot dim", &k[3], "v_cache's", &v[2])?;
    same_dim("q's last dim", &q[2], "k_cache's element dim", &k[2])?;
    same_dim("q's last dim", &q[2], "v_cache's element dim", &v[3])?;
    let divides = matches!((q[1].constant(), k[1].constant()), (Some(a), Some(b)) if b > 0 && a % b == 0);
    check(divides, || format!("{} query heads over {} KV heads; a multiple is expected", q[1], k[1]))?;
    check(dtype.is_compute_float() || (*dtype == DType::Q8A && q[2].constant().is_some_and(|d| d % 32 == 0)), || {
        format!("result dtype {dtype}; f32, f16, bf16, or q8a with whole blocks a head is accepted")
    })?;
    one(*dtype, q.clone())
}

pub(crate) fn sparse_attention(op: &Op, o: &[TensorType]) -> Types {
    i32_tensor("indices", &o[3], 2)?;
    same_dim("indices' token dim", &o[3].shape[0], "positions' dim", &o[4].shape[0])?;
    let dense: Vec<TensorType> = o[..3].iter().chain(&o[4..]).cloned().collect();
    attention(op, &dense)
}

pub(crate) fn index_scores(op: &Op, o: &[TensorType]) -> Types {
    let Op::IndexScores { columns, skip } = op else { return Err("not an index_scores".into()) };
    check(columns.len() == 1, || format!("columns has {} dims; one is expected", columns.len()))?;
    check(*skip >= 0, || format!("skip {skip}; 0 or more is expected"))?;
    rank("q", &o[0], 3)?;
    compute_float("q", &o[0])?;
    rank("weights", &o[1], 2)?;
    compute_float("weights", &o[1])?;
    paged(&o[2], &o[3], &o[4], &o[5], &o[0].shape[0])?;
    let (q, w, keys) = (&o[0].shape, &o[1].shape, &o[2].shape);
    same_dim("q's token dim", &q[0], "weights'", &w[0])?;
    same_dim("q's head dim", &q[1], "weights' last dim", &w[1])?;
    same_dim("q's last dim", &q[2], "keys' element dim", &keys[2])?;
    check(keys[1] == Dim::Const(1), || format!("keys have {} heads; one is expected", keys[1]))?;
    one(DType::F32, vec![q[0].clone(), columns[0].clone()])
}

pub(crate) fn topk(op: &Op, o: &[TensorType]) -> Types {
    let Op::Topk { k } = op else { return Err("not a topk".into()) };
    rank("scores", &o[0], 2)?;
    check(o[0].dtype == DType::F32, || format!("scores are {}; f32 is expected", o[0]))?;
    i32_tensor("positions", &o[1], 1)?;
    same_dim("scores' token dim", &o[0].shape[0], "positions' dim", &o[1].shape[0])?;
    one(DType::I32, vec![o[0].shape[0].clone(), index_count("k", *k)?])
}

pub(crate) fn window(op: &Op, o: &[TensorType]) -> Types {
    let Op::Window { k } = op else { return Err("not a window".into()) };
    i32_tensor("positions", &o[0], 1)?;
    one(DType::I32, vec![o[0].shape[0].clone(), index_count("k", *k)?])
}

/// Ranks of one job that an op names: 1 to 1024.
fn world_of(world: i64) -> Result<u64, String> {
    check((1..=1024).contains(&world), || format!("world {world}; 1..=1024 is accepted"))?;
    Ok(world.unsigned_abs())
}

/// The constant dim `axis` of `t` cut into `parts`, at whole blocks where it is the last.
fn cut(t: &TensorType, axis: i64, parts: u64) -> Result<TensorType, String> {
    let axis = axis_of(axis, t)?;
    let size = t.shape[axis].constant().ok_or_else(|| format!("axis {axis} of {t}; a constant dim is expected"))?;
    let block = if axis + 1 == t.rank() { t.dtype.block_elements() as u64 } else { 1 };
    check(size.is_multiple_of(parts * block), || {
        format!("dim {size} of {t} in {parts} parts; a multiple of {} is expected", parts * block)
    })?;
    let mut shape = t.shape.clone();
    shape[axis] = Dim::Const(size / parts);
    Ok(TensorType::new(t.dtype, shape))
}

pub(crate) fn shard(op: &Op, o: &[TensorType]) -> Types {
    let Op::Shard { axis, parts, replicas } = op else { return Err("not a shard".into()) };
    world_of(parts.saturating_mul(*replicas))?;
    Ok(vec![cut(&o[0], *axis, world_of(*parts)?)?])
}

pub(crate) fn gather_part(op: &Op, o: &[TensorType]) -> Types {
    let Op::GatherPart { world, dtype } = op else { return Err("not a gather_part".into()) };
    world_of(*world)?;
    gather(&Op::Gather { dtype: *dtype }, o)
}

pub(crate) fn all_reduce(op: &Op, o: &[TensorType]) -> Types {
    let Op::AllReduce { world } = op else { return Err("not an all_reduce".into()) };
    world_of(*world)?;
    compute_float("x", &o[0])?;
    one(o[0].dtype, o[0].shape.clone())
}

pub(crate) fn all_gather(op: &Op, o: &[TensorType]) -> Types {
    let Op::AllGather { axis, world } = op else { return Err("not an all_gather".into()) };
    check(!o[0].dtype.is_block(), || format!("x is {}; a plain dtype is expected", o[0]))?;
    let axis = axis_of(*axis, &o[0])?;
    let size = o[0].shape[axis].constant();
    let size = size.ok_or_else(|| format!("axis {axis} of {}; a constant dim is expected", o[0]))?;
    let mut shape = o[0].shape.clone();
    shape[axis] = Dim::Const(size.checked_mul(world_of(*world)?).ok_or("the joined dim overflows")?);
    one(o[0].dtype, shape)
}

pub(crate) fn reduce_scatter(op: &Op, o: &[TensorType]) -> Types {
    let Op::ReduceScatter { axis, world } = op else { return Err("not a reduce_scatter".into()) };
    compute_float("x", &o[0])?;
    Ok(vec![cut(&o[0], *axis, world_of(*world)?)?])
}

pub(crate) fn all_reduce_rms_norm(op: &Op, o: &[TensorType]) -> Types {
    let Op::AllReduceRmsNorm { world, eps, dtype } = op else { return Err("not an all_reduce_rms_norm".into()) };
    world_of(*world)?;
    let norm = rms_norm(&Op::RmsNorm { eps: *eps, dtype: *dtype }, o)?.remove(0);
    Ok(vec![norm, o[0].clone()])
}

pub(crate) fn all_reduce_add_rms_norm(op: &Op, o: &[TensorType]) -> Types {
    let Op::AllReduceAddRmsNorm { world, eps, dtype } = op else {
        return Err("not an all_reduce_add_rms_norm".into());
    };
    world_of(*world)?;
    add_rms_norm(&Op::AddRmsNorm { eps: *eps, dtype: *dtype }, o)
}

pub(crate) fn all_reduce_rms_norm_quantise(op: &Op, o: &[TensorType]) -> Types {
    let Op::AllReduceRmsNormQuantise { world, eps, dtype, format, group } = op else {
        return Err("not an all_reduce_rms_norm_quantise".into());
    };
    world_of(*world)?;
    let one = Op::RmsNormQuantise { eps: *eps, dtype: *dtype, format: *format, group: *group };
    let mut types = rms_norm_quantise(&one, o)?;
    types.push(o[0].clone());
    Ok(types)
}

pub(crate) fn all_reduce_add_rms_norm_quantise(op: &Op, o: &[TensorType]) -> Types {
    let Op::AllReduceAddRmsNormQuantise { world, eps, dtype, format, group } = op else {
        return Err("not an all_reduce_add_rms_norm_quantise".into());
    };
    world_of(*world)?;
    add_rms_norm_quantise(&Op::AddRmsNormQuantise { eps: *eps, dtype: *dtype, format: *format, group: *group }, o)
}
