//! Products of FP8 codes with scales beside them. Codes are widened in registers (see `minifloat`), so that every target runs every
//! format; sums run over stretches of K under one pair of scales, and are scaled and added up once a stretch.

mod gpu;
mod host;

use super::minifloat::MiniFloat;
use super::row::elem_of;
use super::schedule::{self, packed_param};
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, RowSpace, contiguous_last, last_dim, refuse, require, row_stride};
use crate::target::Target;
use crate::tile::{Access, Builder, Conversion, Elem, Param, V};
use weldment_artifact::{Layout, Raw, RowsInterleaved};
use weldment_ir::{Op, OpKind};
use weldment_passes::target::Refusal;

/// Matrix products of codes with scales.
pub struct ScaledMatmul;

impl Family for ScaledMatmul {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::ScaledMatmul)
    }

    fn addressing(&self, _: OpKind) -> Addressing {
        Addressing {
            operands: &[Strides::Rows, Strides::Rows, Strides::Any],
            results: Strides::Rows,
            shares: Sharing::Never,
        }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let shape = Shape::of(r)?;
        let (codes, scales, w, w_scales) = (&r.operands[0], &r.operands[1], &r.operands[2], &r.operands[3]);
        for t in [codes, scales, &r.results[0]] {
            contiguous_last(t)?;
            row_stride(t)?;
        }
        require(r.results[0].ty.dtype.is_compute_float(), "result dtype", r.results[0].ty.dtype, "f32, f16 or bf16")?;
        require(w.is_static, "weight", "one computed in the step", "a static one")?;
        require(w_scales.is_static, "weight scales", "computed in the step", "static ones")?;
        RowSpace::of(&codes.ty.shape[..codes.ty.rank() - 1])?;
        if let Target::Host(_) = r.target() {
            let lanes = u64::from(r.target().lanes());
            let whole = shape.rows == 1 || shape.rows >= shape.n || shape.rows.is_multiple_of(lanes);
            require(whole, "rows of a weight block", shape.rows, format!("1, all, or a multiple of {lanes}"))?;
        }
        Ok(())
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        match r.target() {
            Target::Host(_) => host::build(r),
            Target::Gpu(arch) => gpu::build(r, *arch),
        }
    }
}

/// Sizes of a product, all constant.
#[derive(Clone, Copy, Debug)]
struct Shape {
    n: u64,
    k: u64,
    /// Rows and columns of a block of w under one scale.
    rows: u64,
    columns: u64,
    /// Elements of x under one scale.
    group: u64,
    /// Elements of K under one pair of scales.
    run: u64,
}

impl Shape {
    fn of(r: &Request<'_>) -> Result<Shape, Refusal> {
        let Op::ScaledMatmul { rows, columns, .. } = r.op else { return refuse("op", r.op.kind(), "scaled_matmul") };
        let (k, n, groups) = (last_dim(&r.operands[0])?, last_dim(&r.results[0])?, last_dim(&r.operands[1])?);
        let (group, columns) = (k / groups.max(1), columns.unsigned_abs());
        let run = group.min(columns);
        require(run > 0, "reduction length", k, "1 or more")?;
        Ok(Shape { n, k, rows: rows.unsigned_abs(), columns, group, run })
    }
}

/// Parameters of the kernel and what they are bound to.
struct Bound {
    x: Param,
    scales: Param,
    w: Param,
    w_scales: Param,
    out: Param,
    layout: Layout,
    /// Of x and of w.
    formats: [MiniFloat; 2],
    shape: Shape,
    arguments: Vec<Argument>,
}

impl Bound {
    fn new(b: &mut Builder, r: &Request<'_>) -> Result<Bound, Refusal> {
        let format = |i: usize| {
            let dtype = r.operands[i].ty.dtype;
            MiniFloat::of(dtype).map_or_else(|| refuse("code dtype", dtype, "f8e4m3 or f8e4m3fnuz"), Ok)
        };
        let formats = [format(0)?, format(2)?];
        let dtype = r.operands[2].ty.dtype;
        let layout = match r.target() {
            Target::Gpu(_) => Layout::Raw(Raw { dtype }),
            Target::Host(_) => {
                let n_tile = r.target().lanes();
                Layout::RowsInterleaved(RowsInterleaved { dtype, n_tile, pair_interleave: false, k_pair: false })
            }
        };
        let x = schedule::param(b, r.target(), "x", &r.operands[0], Access::Read);
        let scales = schedule::param(b, r.target(), "scales", &r.operands[1], Access::Read);
        let w = packed_param(b, r.target(), "w");
        let w_scales = schedule::param(b, r.target(), "w_scales", &r.operands[3], Access::Read);
        let out = schedule::param(b, r.target(), "out", &r.results[0], Access::Write);
        let packed = Argument::Packed { operands: vec![2], layout };
        let arguments =
            vec![Argument::Operand(0), Argument::Operand(1), packed, Argument::Operand(3), Argument::Result(0)];
        Ok(Bound { x, scales, w, w_scales, out, layout, formats, shape: Shape::of(r)?, arguments })
    }

    /// The product of the scales of x's rows [m, 1] and of w's columns of a tile, [1, n] or one for all, where the run of K at
    /// element `at` begins. `masks` say which rows and columns exist.
    #[allow(clippy::too_many_arguments, reason = "a place and what exists there")]
    fn scales(
        &self,
        b: &mut Builder,
        r: &Request<'_>,
        at: V,
        [first_row, first_column]: [V; 2],
        [m, n]: [u32; 2],
        [rows, columns]: [Option<V>; 2],
    ) -> Result<V, Refusal> {
        let (of_x, of_w) = (&r.operands[1], &r.operands[3]);
        let stride = row_stride(of_x)?;
        let base = b.scale(first_row, stride);
        let own = self.index(b, at, self.shape.group, self.shape.k, of_x.byte_stride(of_x.ty.rank() - 1));
        let from = b.add(base, own);
        let x = b.load(self.scales, from, Elem::F32, &[m, 1], &[stride, 4], rows);
        let block = self.index(b, at, self.shape.columns, self.shape.k, of_w.byte_stride(1));
        let w = if self.shape.rows == 1 {
            let base = b.scale(first_column, of_w.byte_stride(0));
            let from = b.add(base, block);
            b.load(self.w_scales, from, Elem::F32, &[1, n], &[4, of_w.byte_stride(0)], columns)
        } else {
            let row = self.index(b, first_column, self.shape.rows, self.shape.n, of_w.byte_stride(0));
            let from = b.add(row, block);
            b.load_scalar(self.w_scales, from, Elem::F32)
        };
        Ok(b.mul(x, w))
    }

    /// Byte offset of the scale of element `at`, `each` elements of `all` sharing one.
    fn index(&self, b: &mut Builder, at: V, each: u64, all: u64, stride: i64) -> V {
        if each >= all {
            return b.int(0);
        }
        let each = b.int(each as i64);
        let index = b.div(at, each);
        b.scale(index, stride)
    }

    /// Rounds and stores a tile of the result.
    fn store(
        &self,
        b: &mut Builder,
        r: &Request<'_>,
        value: V,
        [first_row, first_column]: [V; 2],
        mask: Option<V>,
    ) -> Result<(), Refusal> {
        let out = &r.results[0];
        let elem = elem_of(out.ty.dtype).unwrap_or(Elem::F32);
        let stride = row_stride(out)?;
        let (row, column) = (b.scale(first_row, stride), b.scale(first_column, elem.bytes() as i64));
        let at = b.add(row, column);
        let value = b.convert(Conversion::Float, value, elem);
        b.store(self.out, at, &[stride, elem.bytes() as i64], value, mask);
        Ok(())
    }

    fn finish(self, r: &Request<'_>, kernel: crate::tile::Kernel, form: &str) -> Built {
        let Shape { n, k, rows, columns, group, .. } = self.shape;
        let (x, w, out) = (&r.operands[0].ty, &r.operands[2].ty, &r.results[0].ty);
        let summary = format!(
            "scaled_matmul {} in {group}s x {} [{n}, {k}] in {rows}x{columns}s -> {}, {form}",
            x.dtype, w.dtype, out.dtype
        );
        Built { kernel, arguments: self.arguments, summary, then: None }
    }
}

/// Calls `body` with the start of each run of K, threading the sums through.
fn runs(b: &mut Builder, shape: &Shape, init: V, mut body: impl FnMut(&mut Builder, V, V) -> V) -> V {
    let count = shape.k / shape.run;
    if count == 1 {
        let at = b.int(0);
        return body(b, at, init);
    }
    let (zero, end) = (b.int(0), b.int(shape.k as i64));
    b.for_loop(zero, end, shape.run as i64, &[init], |b, at, carried| vec![body(b, at, carried[0])])[0]
}
