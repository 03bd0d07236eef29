//! Activations into FP8 or MXFP4, in groups along a row: a group is a row of the kernel, read once for its largest magnitude and, where
//! it does not stay in registers, once more for its codes.

use super::minifloat::MiniFloat;
use super::pointwise::{coordinates, row_base};
use super::row::elem_of;
use super::schedule::{Piece, Walk, param};
use super::{Argument, Built, Request, RowSpace, Tensor, contiguous_last, last_dim, refuse, require, row_stride};
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, Reduction, V};
use weldment_ir::{DType, Dim, Op};
use weldment_passes::target::Refusal;

/// Widest tile of a group on a host.
const WIDTH: u64 = 32;

/// Preconditions of the family.
///
/// # Errors
/// The first that fails.
pub fn check(r: &Request<'_>) -> Result<(), Refusal> {
    let Op::Quantise { dtype, .. } = r.op else { return refuse("op", r.op.kind(), "quantise") };
    let x = &r.operands[0];
    last_dim(x)?;
    for t in std::iter::once(x).chain(&r.results) {
        contiguous_last(t)?;
    }
    require(x.ty.dtype.is_compute_float(), "activation dtype", x.ty.dtype, "f32, f16 or bf16")?;
    require(MiniFloat::of(*dtype).is_some(), "code dtype", dtype, "f8e4m3, f8e4m3fnuz or f4e2m1")?;
    RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    Ok(())
}

/// The largest magnitude of a group as a scale, and what brings its values into the range of codes.
pub struct Scale {
    /// As it is stored: f32, or the byte of an e8m0 as i32.
    pub stored: V,
    divisor: V,
    /// i1: the group is as good as zero.
    zero: Option<V>,
}

impl Scale {
    /// Of groups whose largest magnitudes are `amax`.
    pub fn new(b: &mut Builder, dtype: DType, format: MiniFloat, amax: V) -> Scale {
        if dtype != DType::F4E2M1 {
            let (limit, least, zero) = (b.float(format.max()), b.float(f64::from(f32::MIN_POSITIVE)), b.float(0.0));
            let scale = b.div(amax, limit);
            let none = b.compare(Compare::Less, scale, least);
            return Scale { stored: b.select(none, zero, scale), divisor: scale, zero: Some(none) };
        }
        // The exponent less that of 4, the largest power of two among the codes: the field of an f32 is biased as e8m0 is.
        let int = |b: &mut Builder, n: i64| b.int_of(Elem::I32, &[], n);
        let (bits, down, two, none) = (b.bitcast(amax, Elem::I32), int(b, 23), int(b, 2), int(b, 0));
        let field = b.binary(Binary::Shr, bits, down);
        let field = b.sub(field, two);
        let stored = b.max(field, none);
        // The code 0 is 2^-127, below f32's normals: half of the power of two that has field 1.
        let twice = int(b, 1);
        let above = b.add(stored, twice);
        let above = b.binary(Binary::Shl, above, down);
        Scale { stored, divisor: b.bitcast(above, Elem::F32), zero: None }
    }

    /// Codes, i32, of values of the groups.
    pub fn codes(&self, b: &mut Builder, format: MiniFloat, v: V) -> V {
        let v = match self.zero {
            Some(none) => {
                let (quotient, zero) = (b.div(v, self.divisor), b.float(0.0));
                b.select(none, zero, quotient)
            }
            None => {
                // By a power of two: exact, but for what is far below the smallest code.
                let two = b.float(2.0);
                let quotient = b.div(v, self.divisor);
                b.mul(quotient, two)
            }
        };
        format.encode(b, v)
    }
}

/// `t` [.., K] as rows of `width` elements.
fn grouped(t: &Tensor, groups: u64, width: u64) -> Tensor {
    let mut out = t.clone();
    let last = t.ty.rank() - 1;
    out.ty.shape[last] = Dim::Const(groups);
    out.ty.shape.push(Dim::Const(width));
    out.strides[last] = width * t.strides[last];
    out.strides.push(t.strides[last]);
    out
}

/// The kernel of a request that passed [`check`].
///
/// # Errors
/// As [`check`].
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    check(r)?;
    let Op::Quantise { dtype, group } = r.op else { return refuse("op", r.op.kind(), "quantise") };
    let Some(format) = MiniFloat::of(*dtype) else { return refuse("code dtype", dtype, "an FP8 or FP4") };
    let k = last_dim(&r.operands[0])?;
    let group = group.unsigned_abs().max(1);
    let groups = k / group;
    let x = grouped(&r.operands[0], groups, group);
    let codes = grouped(&r.results[0], groups, group);
    let scales = grouped(&r.results[1], groups, 1);
    let mut b = Builder::new("quantise");
    let x_param = param(&mut b, r.target, "x", &x, Access::Read);
    let code_param = param(&mut b, r.target, "codes", &codes, Access::Write);
    let scale_param = param(&mut b, r.target, "scales", &scales, Access::Write);
    let lead = &x.ty.shape[..x.ty.rank() - 1];
    let space = RowSpace::of(lead)?;
    // Codes of two to a byte are made in pairs: an even element, and the odd one beside it.
    let per_byte = dtype.block_elements() as u64;
    let folds = [&x, &codes, &scales].into_iter().all(|t| row_stride(t).is_ok());
    let start_walk = if folds { Walk::new } else { Walk::single_rows };
    let walk = start_walk(&mut b, r.target, &space, group / per_byte, WIDTH);
    let index = if folds { Vec::new() } else { coordinates(&mut b, walk.first, lead) };
    let mut place = |t: &Tensor| -> Result<(V, i64), Refusal> {
        if !folds {
            let strides: Vec<i64> = (0..lead.len()).map(|i| t.byte_stride(i)).collect();
            return Ok((row_base(&mut b, &index, &strides), 0));
        }
        let stride = row_stride(t)?;
        Ok((b.scale(walk.first, stride), stride))
    };
    let (from, to, scale_at) = (place(&x)?, place(&codes)?, place(&scales)?);
    let load = |b: &mut Builder, piece: &Piece| load_planes(b, piece, (x_param, from), x.ty.dtype, per_byte);
    let mut kept = None;
    let nothing = walk.per_row(&mut b, 0.0);
    let amax = walk.each(&mut b, &[nothing], |b, piece, carried| {
        let planes = load(b, piece);
        let mut amax = carried[0];
        for plane in &planes {
            let magnitude = b.abs(*plane);
            let top = walk.reduce(b, Reduction::Max, magnitude);
            amax = b.max(amax, top);
        }
        kept = Some(planes);
        vec![amax]
    })[0];
    let kept = kept.filter(|_| walk.is_single());
    let scale = Scale::new(&mut b, *dtype, format, amax);
    walk.each(&mut b, &[], |b, piece, _| {
        let planes = kept.clone().unwrap_or_else(|| load(b, piece));
        let planes: Vec<V> = planes.into_iter().map(|v| scale.codes(b, format, v)).collect();
        let bytes = match planes[..] {
            [low, high] => {
                let four = b.int_of(Elem::I32, &[], 4);
                let high = b.binary(Binary::Shl, high, four);
                b.binary(Binary::Or, low, high)
            }
            _ => planes[0],
        };
        let bytes = b.convert(Conversion::Signed, bytes, Elem::I8);
        let at = b.add(to.0, piece.at);
        piece.store_elements(b, code_param, at, [to.1, 1], bytes);
        Vec::new()
    });
    let stored = match dtype {
        DType::F4E2M1 => b.convert(Conversion::Signed, scale.stored, Elem::I8),
        _ => scale.stored,
    };
    walk.store_values_per_row(&mut b, scale_param, scale_at.0, scale_at.1, stored);
    let summary = format!("quantise {} in {group}s -> {dtype}", x.ty.dtype);
    let arguments = vec![Argument::Operand(0), Argument::Result(0), Argument::Result(1)];
    Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
}

/// The piece as f32: as it lies, or `planes` tiles of every so many-th element.
fn load_planes(
    b: &mut Builder,
    piece: &Piece,
    (param, (base, stride)): (Param, (V, i64)),
    dtype: DType,
    planes: u64,
) -> Vec<V> {
    if planes == 1 {
        return vec![piece.load(b, param, base, dtype, stride)];
    }
    let elem = elem_of(dtype).unwrap_or(Elem::F32);
    let size = elem.bytes() as i64;
    let step = planes as i64 * size;
    let at = b.scale(piece.at, step);
    let at = b.add(base, at);
    (0..planes as i64)
        .map(|plane| {
            let at = b.offset(at, plane * size);
            let v = piece.load_elements(b, param, at, elem, [stride, step]);
            b.to_f32(v)
        })
        .collect()
}
