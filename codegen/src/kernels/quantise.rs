//! Activations into FP8 or MXFP4, in groups along a row: a group is a row of the kernel, read once for its largest magnitude and, where
//! it does not stay in registers, once more for its codes. [`Sink`] takes rows from other kernels as well, whose groups are parts of a row.

use super::minifloat::MiniFloat;
use super::pointwise::{coordinates, row_base};
use super::row::for_row;
use super::schedule::{Piece, Walk, param};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{
    Argument, Built, Request, RowSpace, Tensor, contiguous_last, last_dim, refuse, require, row_stride,
};
use crate::target::Target;
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, Reduction, V};
use weldment_ir::{DType, Dim, Op, OpKind};
use weldment_passes::target::Refusal;

/// Widest tile of a group on a host.
const WIDTH: u64 = 32;

/// Codes and scales of rows.
pub struct Quantise;

impl Family for Quantise {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::Quantise)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing { operands: &[Strides::Contiguous], results: Strides::Contiguous, shares: Sharing::Never }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let Op::Quantise { dtype, .. } = r.op else { return refuse("op", r.op.kind(), "quantise") };
        let x = &r.operands[0];
        last_dim(x)?;
        for t in std::iter::once(x).chain(&r.results) {
            contiguous_last(t)?;
        }
        require(x.ty.dtype.is_compute_float(), "activation dtype", x.ty.dtype, "f32, f16 or bf16")?;
        format(*dtype)?;
        RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
        Ok(())
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        let Op::Quantise { dtype, group } = r.op else { return refuse("op", r.op.kind(), "quantise") };
        let k = last_dim(&r.operands[0])?;
        let group = group.unsigned_abs().max(1);
        let groups = k / group;
        let x = grouped(&r.operands[0], groups, group);
        let codes = grouped(&r.results[0], groups, group);
        let scales = grouped(&r.results[1], groups, 1);
        let mut b = Builder::new("quantise");
        let x_param = param(&mut b, r.target(), "x", &x, Access::Read);
        let code_param = param(&mut b, r.target(), "codes", &codes, Access::Write);
        let scale_param = param(&mut b, r.target(), "scales", &scales, Access::Write);
        let lead = &x.ty.shape[..x.ty.rank() - 1];
        let space = RowSpace::of(lead)?;
        let folds = [&x, &codes, &scales].into_iter().all(|t| row_stride(t).is_ok());
        let start_walk = if folds { Walk::new } else { Walk::single_rows };
        let walk = start_walk(&mut b, r.target(), &space, group, WIDTH);
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
        let sink = Sink {
            n: group,
            group,
            dtype: *dtype,
            format: format(*dtype)?,
            params: [code_param, scale_param],
            bases: [to.0, scale_at.0],
            strides: [to.1, scale_at.1],
        };
        sink.store(&mut b, &walk, |b, piece| piece.load(b, x_param, from.0, x.ty.dtype, from.1));
        let summary = format!("quantise {} in {group}s -> {dtype}", x.ty.dtype);
        let arguments = vec![Argument::Operand(0), Argument::Result(0), Argument::Result(1)];
        Ok(Built { kernel: b.finish(String::new()), arguments, summary, then: None })
    }
}

/// The largest magnitude of a group as a scale, and what brings its values into the range of codes.
pub(super) struct Scale {
    /// As it is stored: f32, or the byte of an e8m0 as i8.
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
        let stored = b.convert(Conversion::Signed, stored, Elem::I8);
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

/// Where the codes and scales of a program's rows go.
pub struct Sink {
    /// Elements of a row.
    pub n: u64,
    /// Elements that share a scale.
    pub group: u64,
    /// dtype of codes.
    pub dtype: DType,
    /// What it is; see [`format`].
    pub format: MiniFloat,
    /// Parameters of codes and scales.
    pub params: [Param; 2],
    /// Byte offsets of the program's first row in both.
    pub bases: [V; 2],
    /// Bytes from row to row in both.
    pub strides: [i64; 2],
}

/// The format of codes of this dtype.
///
/// # Errors
/// If there is none.
pub fn format(dtype: DType) -> Result<MiniFloat, Refusal> {
    MiniFloat::of(dtype).map_or_else(|| refuse("code dtype", dtype, "f8e4m3, f8e4m3fnuz or f4e2m1"), Ok)
}

impl Sink {
    /// What a kernel's groups must be like, where they are parts of its rows.
    ///
    /// # Errors
    /// If they are not.
    pub fn check(target: &Target, n: u64, group: u64, dtype: DType) -> Result<(), Refusal> {
        format(dtype)?;
        let fits = group == n || target.gpu().is_none() || group.is_power_of_two();
        require(fits, "group size", group, "the whole row or a power of two")
    }

    /// Quantises the rows of `walk`, whose pieces `values` gives as f32, once or twice each.
    pub fn store(&self, b: &mut Builder, walk: &Walk, mut values: impl FnMut(&mut Builder, &Piece) -> V) {
        if self.group == self.n {
            self.store_rows(b, walk, &mut values);
        } else if walk.is_host() {
            self.store_groups_of_host(b, walk, &mut values);
        } else {
            walk.each(b, &[], |b, piece, _| {
                let v = values(b, piece);
                self.store_groups(b, piece, v);
                Vec::new()
            });
        }
    }

    /// One scale a row.
    fn store_rows(&self, b: &mut Builder, walk: &Walk, values: &mut dyn FnMut(&mut Builder, &Piece) -> V) {
        let mut kept = None;
        let nothing = walk.per_row(b, 0.0);
        let amax = walk.each(b, &[nothing], |b, piece, carried| {
            let v = values(b, piece);
            kept = Some(v);
            // Masked places may hold anything that came of zeros.
            let v = piece.or(b, v, 0.0);
            let magnitude = b.abs(v);
            let top = walk.reduce(b, Reduction::Max, magnitude);
            vec![b.max(carried[0], top)]
        })[0];
        let kept = kept.filter(|_| walk.is_single());
        let scale = Scale::new(b, self.dtype, self.format, amax);
        walk.each(b, &[], |b, piece, _| {
            let v = kept.unwrap_or_else(|| values(b, piece));
            let codes = scale.codes(b, self.format, v);
            self.store_codes(b, piece, codes);
            Vec::new()
        });
        walk.store_values_per_row(b, self.params[1], self.bases[1], self.strides[1], scale.stored);
    }

    /// The groups of a host's row, one by one.
    fn store_groups_of_host(&self, b: &mut Builder, walk: &Walk, values: &mut dyn FnMut(&mut Builder, &Piece) -> V) {
        let (zero, end) = (b.int(0), b.int(self.n as i64));
        b.for_loop(zero, end, self.group as i64, &[], |b, start, _| {
            let nothing = b.float(0.0);
            let amax = for_row(b, self.group, WIDTH, &[nothing], |b, i, width, carried| {
                let at = b.add(start, i);
                let v = values(b, &walk.piece(at, width));
                let magnitude = b.abs(v);
                let top = walk.reduce(b, Reduction::Max, magnitude);
                vec![b.max(carried[0], top)]
            })[0];
            let scale = Scale::new(b, self.dtype, self.format, amax);
            for_row(b, self.group, WIDTH, &[], |b, i, width, _| {
                let at = b.add(start, i);
                let piece = walk.piece(at, width);
                let v = values(b, &piece);
                let codes = scale.codes(b, self.format, v);
                self.store_codes(b, &piece, codes);
                Vec::new()
            });
            let per = b.int(self.group as i64);
            let index = b.div(start, per);
            let at = b.scale(index, b.ty(scale.stored).elem.bytes() as i64);
            let at = b.add(self.bases[1], at);
            b.store_row(self.params[1], at, scale.stored);
            Vec::new()
        });
    }

    /// The groups of a GPU's piece [rows, width], side by side.
    fn store_groups(&self, b: &mut Builder, piece: &Piece, v: V) {
        let group = self.group as u32;
        let [rows, width] = [b.ty(v).shape[0], b.ty(v).shape[1]];
        let v = piece.or(b, v, 0.0);
        let v = b.reshape(v, &[rows, width / group, group]);
        let magnitude = b.abs(v);
        let amax = b.reduce(Reduction::Max, magnitude, 2);
        let scale = Scale::new(b, self.dtype, self.format, amax);
        let codes = scale.codes(b, self.format, v);
        let codes = b.reshape(codes, &[rows, width]);
        self.store_codes(b, piece, codes);
        let few = piece.shrunk(b, self.n, self.group);
        let stored = b.reshape(scale.stored, &[rows, width / group]);
        let size = b.ty(stored).elem.bytes() as i64;
        let at = b.scale(few.at, size);
        let at = b.add(self.bases[1], at);
        few.store_elements(b, self.params[1], at, [self.strides[1], size], stored);
    }

    /// Codes, i32, of a piece; FP4 two to a byte, the even one low.
    fn store_codes(&self, b: &mut Builder, piece: &Piece, codes: V) {
        if self.dtype != DType::F4E2M1 {
            let bytes = b.convert(Conversion::Signed, codes, Elem::I8);
            let at = b.add(self.bases[0], piece.at);
            return piece.store_elements(b, self.params[0], at, [self.strides[0], 1], bytes);
        }
        let half = piece.shrunk(b, self.n, 2);
        let bytes = match *b.ty(codes).shape.as_slice() {
            [rows, width] => {
                let pairs = b.reshape(codes, &[rows, width / 2, 2]);
                let (index, four) = (b.iota(Elem::I32, 2), b.int_of(Elem::I32, &[], 4));
                let up = b.mul(index, four);
                let placed = b.binary(Binary::Shl, pairs, up);
                let both = b.reduce(Reduction::Sum, placed, 2);
                b.reshape(both, &[rows, width / 2])
            }
            _ => {
                // A host's lanes: neighbours are the bytes of a 16-bit word.
                let bytes = b.convert(Conversion::Signed, codes, Elem::I8);
                let pairs = b.bitcast(bytes, Elem::I16);
                let (low, four) = (b.int_of(Elem::I16, &[], 0x0f), b.int_of(Elem::I16, &[], 4));
                let even = b.binary(Binary::And, pairs, low);
                let odd = b.binary(Binary::Shr, pairs, four);
                b.binary(Binary::Or, even, odd)
            }
        };
        let bytes = b.convert(Conversion::Signed, bytes, Elem::I8);
        let at = b.add(self.bases[0], half.at);
        half.store_elements(b, self.params[0], at, [self.strides[0], 1], bytes);
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
