//! Matrix products with packed weights: plain, + addend, and silu(gate) * up over a pair of weights.
//!
//! A program computes a tile of the result over all of K. The forms differ in the inner step: [`lanes`] (hosts) has a lane per
//! output row; on GPUs [`row_sum`] keeps a partial sum per place in a row until the end, for few tokens, and [`dots`] feeds
//! matrix units, for many. All end in one epilogue.

mod dots;
mod lanes;
mod row_sum;

pub(super) use lanes::row_tile;

use super::row::elem_of;
use super::schedule::{self, all_of, packed_param};
use super::weights::matrix_layout;
use crate::family::{Addressing, Family, Sharing, Strides};
use crate::request::{Argument, Built, Request, RowSpace, contiguous_last, last_dim, require, row_stride};
use crate::target::{GpuArch, Target};
use crate::tile::{Access, Builder, Conversion, Elem, Param, V};
use weldment_artifact::Layout;
use weldment_ir::{DType, Op, OpKind, TensorType};
use weldment_passes::target::Refusal;

/// Matrix products of floats and of blocks.
pub struct Matmul;

impl Family for Matmul {
    fn runs(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::Matmul | OpKind::MatmulAdd | OpKind::MatmulSiluMul)
    }

    fn addressing(&self, kind: OpKind) -> Addressing {
        match kind {
            OpKind::MatmulSiluMul => {
                Addressing { operands: &[Strides::Rows, Strides::Any], results: Strides::Rows, shares: Sharing::Never }
            }
            _ => Addressing {
                operands: &[Strides::Rows, Strides::Any, Strides::Rows],
                results: Strides::Rows,
                shares: Sharing::Never,
            },
        }
    }

    /// Preconditions of the family.
    fn check(&self, r: &Request<'_>) -> Result<(), Refusal> {
        let (x, w) = (&r.operands[0], &r.operands[1]);
        let k = last_dim(x)?;
        require(w.ty.constant_shape().is_some(), "weight shape", &w.ty, "constant dims")?;
        require(r.results[0].ty.dtype.is_compute_float(), "result dtype", r.results[0].ty.dtype, "f32, f16 or bf16")?;
        require(
            x.ty.dtype.is_compute_float() || x.ty.dtype == DType::Q8A,
            "activation dtype",
            x.ty.dtype,
            "f32, f16, bf16 or q8a",
        )?;
        require(
            x.ty.dtype != DType::Q8A || w.ty.dtype.is_block(),
            "weight dtype for q8a activations",
            w.ty.dtype,
            "a block-quantised format",
        )?;
        contiguous_last(x)?;
        contiguous_last(&r.results[0])?;
        row_stride(x)?;
        row_stride(&r.results[0])?;
        RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
        if let Op::MatmulSiluMul { .. } = r.op {
            require(r.operands[1..].iter().all(|w| w.is_static), "weights", "one computed in the step", "static ones")?;
        }
        if w.is_static {
            matrix_layout(w.ty.dtype, k, r.target(), false)?;
        } else {
            require(
                w.ty.dtype.is_compute_float() && x.ty.dtype.is_compute_float(),
                "weight dtype computed in the step",
                w.ty.dtype,
                "f32, f16 or bf16",
            )?;
        }
        if let Op::MatmulAdd { .. } = r.op {
            contiguous_last(&r.operands[2])?;
            addend_stride(r)?;
        }
        Ok(())
    }

    fn heeds(&self) -> &'static [&'static str] {
        &["gemm_rows", "gemv_tokens", "gemv_rows", "gemm_tile_rows", "gemm_tile_columns", "gemm_wide_columns"]
    }

    fn build(&self, r: &Request<'_>) -> Result<Built, Refusal> {
        self.check(r)?;
        match r.target() {
            Target::Host(_) => lanes::build(r),
            Target::Gpu(arch) => build_gpu(r, *arch),
        }
    }
}

/// Byte stride of the addend per row: 0 for a bias.
fn addend_stride(r: &Request<'_>) -> Result<i64, Refusal> {
    let (addend, out) = (&r.operands[2], &r.results[0]);
    require(addend.ty.last_constant() == out.ty.last_constant(), "addend", &addend.ty, "the result's last dim")?;
    let lead = &addend.ty.shape[..addend.ty.rank() - 1];
    if lead.iter().all(|d| d.constant() == Some(1)) {
        return Ok(0);
    }
    require(addend.ty.shape == out.ty.shape, "addend", &addend.ty, format!("a vector or {}", out.ty))?;
    row_stride(addend)
}

/// Parameters of the kernel and what they are bound to.
struct Bound {
    x: Param,
    w: Param,
    addend: Option<Param>,
    out: Param,
    /// Layout of packed weights; `None` for a matrix computed in the step.
    layout: Option<Layout>,
    arguments: Vec<Argument>,
}

impl Bound {
    fn new(b: &mut Builder, r: &Request<'_>) -> Result<Bound, Refusal> {
        let pair = matches!(r.op, Op::MatmulSiluMul { .. });
        let k = last_dim(&r.operands[0])?;
        let x = schedule::param(b, r.target(), "x", &r.operands[0], Access::Read);
        let mut arguments = vec![Argument::Operand(0)];
        let (w, layout) = if r.operands[1].is_static {
            let layout = matrix_layout(r.operands[1].ty.dtype, k, r.target(), pair)?;
            arguments.push(Argument::Packed { operands: if pair { vec![1, 2] } else { vec![1] }, layout });
            (packed_param(b, r.target(), "w"), Some(layout))
        } else {
            arguments.push(Argument::Operand(1));
            (schedule::param(b, r.target(), "w", &r.operands[1], Access::Read), None)
        };
        let addend = matches!(r.op, Op::MatmulAdd { .. }).then(|| {
            arguments.push(Argument::Operand(2));
            schedule::param(b, r.target(), "addend", &r.operands[2], Access::Read)
        });
        let out = schedule::param(b, r.target(), "out", &r.results[0], Access::Write);
        arguments.push(Argument::Result(0));
        Ok(Bound { x, w, addend, out, layout, arguments })
    }

    /// Adds the addend to a tile [rows, columns] of the result, rounds and stores it.
    fn store(
        &self,
        b: &mut Builder,
        r: &Request<'_>,
        mut value: V,
        [first_row, first_column]: [V; 2],
        mask: Option<V>,
    ) -> Result<(), Refusal> {
        let shape = b.ty(value).shape.clone();
        let place = |b: &mut Builder, stride: i64, elem: Elem| {
            let row_at = b.scale(first_row, stride);
            let column_at = b.scale(first_column, elem.bytes() as i64);
            b.add(row_at, column_at)
        };
        if let Some(param) = self.addend {
            let stride = addend_stride(r)?;
            let elem = elem_of(r.operands[2].ty.dtype).unwrap_or(Elem::F32);
            let at = place(b, stride, elem);
            let a = b.load(param, at, elem, &shape, &[stride, elem.bytes() as i64], mask);
            let a = b.to_f32(a);
            value = b.add(value, a);
        }
        let elem = elem_of(r.results[0].ty.dtype).unwrap_or(Elem::F32);
        let stride = row_stride(&r.results[0])?;
        let at = place(b, stride, elem);
        let value = b.convert(Conversion::Float, value, elem);
        b.store(self.out, at, &[stride, elem.bytes() as i64], value, mask);
        Ok(())
    }
}

/// Rows of x that a program reads.
struct Left<'t> {
    ty: &'t TensorType,
    param: Param,
    /// Byte offset of the first row of the program's tile.
    base: V,
    stride: i64,
    rows: u32,
}

/// silu(gate) * up of a pair of products, or the one product.
fn joined(b: &mut Builder, products: &[V]) -> V {
    match products {
        [gate, up] => {
            let gate = b.silu(*gate);
            b.mul(gate, *up)
        }
        _ => products[0],
    }
}

/// A GPU program's share: the result's rows from `first[0]` on and columns from `first[1]` on.
struct Share {
    first: [V; 2],
    /// i1 [rows, 1], where some may be too many.
    rows: Option<V>,
    /// The same for loads of x: `None` where surplus rows are there to be read, and nothing comes of them.
    read: Option<V>,
    /// i1 [1, columns].
    columns: Option<V>,
    /// Elements of a row.
    k: u64,
}

fn build_gpu(r: &Request<'_>, arch: GpuArch) -> Result<Built, Refusal> {
    let (x, w, out) = (&r.operands[0], &r.operands[1], &r.results[0]);
    let (k, n) = (last_dim(x)?, last_dim(out)?);
    let space = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    let matrices = if matches!(r.op, Op::MatmulSiluMul { .. }) { 2 } else { 1 };
    // Tokens and rows of logits are bounded by the variant; nothing is known of other symbols.
    let most = r.most_rows(&space).unwrap_or(u64::MAX);
    let choices = &r.choices;
    let few = most <= choices.gemv_tokens.map_or(row_sum::MOST_ROWS, u64::from);
    let mut b = Builder::new(if few { "gemv" } else { "gemm" });
    schedule::round_coarsely(&mut b, r.target(), &r.results[0]);
    let bound = Bound::new(&mut b, r)?;
    let blocks = match bound.layout {
        Some(Layout::AffineBlocks(blocks)) => Some(blocks),
        _ => None,
    };
    let (m_tile, n_tile, plan) = if few {
        let plan = row_sum::Tiling::new(choices, [most, n, k], matrices, w.ty.dtype, blocks.as_ref());
        (plan.x_rows, plan.n, Err(plan))
    } else {
        let plan = dots::Tiling::new(arch, choices, [most, n, k], matrices, [x.ty.dtype, w.ty.dtype], blocks.as_ref());
        (plan.m, plan.n, Ok(plan))
    };
    b.threads(match &plan {
        Err(plan) => plan.threads,
        Ok(plan) => plan.threads,
    });
    // Rows of logits are few, however many there might be: one program goes through them all.
    let looped = !few && space.symbol.is_some() && !r.counts_tokens(&space);
    let (row_axis, column_axis) = if few || looped { (1, 0) } else { (0, 1) };
    b.grid_constant(column_axis, n.div_ceil(u64::from(n_tile)));
    if !looped {
        space.grid(&mut b, row_axis, u64::from(m_tile));
    }
    let column = b.program_id(column_axis as u32);
    let first_column = b.scale(column, i64::from(n_tile));
    let columns = (!n.is_multiple_of(u64::from(n_tile))).then(|| {
        let mask = schedule::below(&mut b, first_column, n_tile, n);
        b.reshape(mask, &[1, n_tile])
    });
    // Bufferisation leaves room for a multiple of 16 tokens.
    let room = r.counts_tokens(&space) && crate::request::has_room(&space, r.max_tokens, most, m_tile);
    let right = Right::new(&mut b, r, &bound, [column, first_column], matrices)?;
    let share = |b: &mut Builder, first_row: V| -> Result<(), Refusal> {
        let ragged = m_tile > 1 && (space.symbol.is_some() || !space.mul.is_multiple_of(u64::from(m_tile)));
        let rows = ragged.then(|| {
            let count = space.count(b);
            schedule::present(b, first_row, count, m_tile)
        });
        let read = rows.filter(|_| !room);
        let share = Share { first: [first_row, first_column], rows, read, columns, k };
        let stride = row_stride(x)?;
        let base = b.scale(first_row, stride);
        let left = Left { ty: &x.ty, param: bound.x, base, stride, rows: m_tile };
        let value = match &plan {
            Err(plan) => row_sum::product(b, plan, &share, &left, &right),
            Ok(plan) => dots::product(b, plan, &share, &left, &right),
        };
        let mask = all_of(b, &[share.rows, share.columns], &[m_tile, n_tile]);
        bound.store(b, r, value, share.first, mask)
    };
    if looped {
        let (zero, end) = (b.int(0), space.count(&mut b));
        let mut outcome = Ok(());
        b.for_loop(zero, end, i64::from(m_tile), &[], |b, first_row, _| {
            outcome = share(b, first_row);
            Vec::new()
        });
        outcome?;
    } else {
        let row = b.program_id(row_axis as u32);
        let first_row = b.scale(row, i64::from(m_tile));
        share(&mut b, first_row)?;
    }
    let form = match &plan {
        Err(plan) => plan.to_string(),
        Ok(plan) => plan.to_string(),
    };
    let summary = format!("{} {} x {} [{n}, {k}] -> {}, {form}", r.op.kind(), x.ty.dtype, w.ty.dtype, out.ty.dtype);
    Ok(Built { kernel: b.finish(String::new()), arguments: bound.arguments, summary, then: None })
}

/// The weights of a GPU program's columns.
enum Right {
    /// Rows of floats.
    Rows(Vec<Rows>),
    /// A tile of block formats a matrix.
    Blocks {
        param: Param,
        /// Byte offset of the tile, one a matrix.
        starts: Vec<V>,
        layout: weldment_artifact::AffineBlocks,
    },
}

/// Rows of one matrix.
struct Rows {
    param: Param,
    /// Byte offset of the first row.
    base: V,
    elem: Elem,
    /// Bytes from row to row.
    row: i64,
    /// Bytes from element to element.
    column: i64,
}

impl Right {
    fn new(
        b: &mut Builder,
        r: &Request<'_>,
        bound: &Bound,
        [tile, first_column]: [V; 2],
        matrices: usize,
    ) -> Result<Right, Refusal> {
        let (k, n) = (last_dim(&r.operands[0])?, last_dim(&r.results[0])?);
        let w = &r.operands[1];
        let elem = elem_of(w.ty.dtype).unwrap_or(Elem::F32);
        let (row, column) = match bound.layout {
            Some(Layout::AffineBlocks(layout)) => {
                // Tiles of a pair alternate.
                let bytes = layout.tile_bytes(k).unwrap_or(0) as i64;
                let first = b.scale(tile, bytes * matrices as i64);
                let starts = (0..matrices).map(|i| b.offset(first, i as i64 * bytes)).collect();
                return Ok(Right::Blocks { param: bound.w, starts, layout });
            }
            Some(_) => (k as i64 * elem.bytes() as i64, elem.bytes() as i64),
            None => (w.byte_stride(0), w.byte_stride(1)),
        };
        let first = b.scale(first_column, row);
        // The second of a pair lies after the first.
        let rows = (0..matrices)
            .map(|i| Rows { param: bound.w, base: b.offset(first, i as i64 * n as i64 * row), elem, row, column })
            .collect();
        Ok(Right::Rows(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::{DType, Family, Matmul, Op, Request, TensorType};
    use crate::choices::Choices;
    use crate::request::Tensor;
    use crate::setup::{Setup, Symbols};
    use crate::target::Target;
    use weldment_ir::Dim;

    /// The tile program of [4, k] x [32, k].
    fn program(x: DType, w: DType, k: u64) -> String {
        let target = Target::named("x86-64-v4").expect("a known target");
        let setup =
            Setup { target, choices: Choices::default(), places: Default::default(), symbols: Symbols::default() };
        let tensor = |dtype, rows, columns| {
            Tensor::contiguous(&TensorType { dtype, shape: vec![Dim::Const(rows), Dim::Const(columns)] })
        };
        let request = Request {
            op: &Op::Matmul { dtype: DType::F32 },
            operands: vec![tensor(x, 4, k), Tensor { is_static: true, ..tensor(w, 32, k) }],
            results: vec![tensor(DType::F32, 4, 32)],
            max_tokens: 1,
            setup: &setup,
            choices: Choices::default(),
        };
        Matmul.build(&request).expect("a matmul the family takes").kernel.to_string()
    }

    #[test]
    fn bf16_by_bf16_takes_the_bf16_dot() {
        assert!(program(DType::BF16, DType::BF16, 38).contains("dot_bf16"));
        for (x, w, k) in [(DType::BF16, DType::BF16, 37), (DType::F32, DType::BF16, 38), (DType::BF16, DType::F16, 38)]
        {
            assert!(!program(x, w, k).contains("dot_bf16"), "{x} {w} {k}");
        }
    }
}
