//! The host's form: codes of a tile's output rows lie side by side, one lane each, as floats do for `matmul`.

use super::{Bound, runs};
use crate::kernels::matmul::row_tile;
use crate::kernels::row::for_row;
use crate::request::{Built, Request, RowSpace, row_stride};
use crate::tile::{Builder, Compare, Elem, V};
use weldment_passes::target::Refusal;

/// Elements of K that are widened at a time.
const DEPTH: u64 = 8;

/// The host's kernel.
pub fn build(r: &Request<'_>) -> Result<Built, Refusal> {
    let x = &r.operands[0];
    let rows = RowSpace::of(&x.ty.shape[..x.ty.rank() - 1])?;
    let m = row_tile(r, &rows);
    let n = r.target().lanes();
    let mut b = Builder::new(if m == 1 { "gemv" } else { "gemm" });
    let bound = Bound::new(&mut b, r)?;
    let shape = bound.shape;
    rows.grid(&mut b, 0, u64::from(m));
    b.grid_constant(1, shape.n.div_ceil(u64::from(n)));
    let (pid_m, tile) = (b.program_id(0), b.program_id(1));
    let (first_row, first_column) = (b.scale(pid_m, i64::from(m)), b.scale(tile, i64::from(n)));
    let x_stride = row_stride(x)?;
    let x_base = b.scale(first_row, x_stride);
    let w_base = b.scale(tile, bound.layout.tile_bytes(shape.k).unwrap_or(0) as i64);
    let ragged = !shape.n.is_multiple_of(u64::from(n));
    // The last tile stores only the columns that exist, and reads only their scales.
    let columns = ragged.then(|| {
        let lanes = b.iota(Elem::I64, n);
        let column = b.add(lanes, first_column);
        let limit = b.int(shape.n as i64);
        let mask = b.compare(Compare::Less, column, limit);
        b.reshape(mask, &[1, n])
    });
    let [x_format, w_format] = bound.formats;
    let mut outcome = Ok(());
    let nothing = b.float_tile(&[m, n], 0.0);
    let value = runs(&mut b, &shape, nothing, |b, start, total| {
        let nothing = b.float_tile(&[m, n], 0.0);
        let sum = for_row(b, shape.run, DEPTH, &[nothing], |b, i, width, carried| {
            let at = b.add(start, i);
            let w_at = b.scale(at, i64::from(n));
            let w_at = b.add(w_base, w_at);
            let codes = b.load(bound.w, w_at, Elem::I8, &[width, n], &[i64::from(n), 1], None);
            let right = w_format.decode(b, codes);
            let x_at = b.add(x_base, at);
            let codes = b.load(bound.x, x_at, Elem::I8, &[m, width], &[x_stride, 1], None);
            let left = x_format.decode(b, codes);
            vec![b.dot(carried[0], left, right)]
        })[0];
        let scale = bound.scales(b, r, start, [first_row, first_column], [m, n], [None, columns]);
        let scale = scale.unwrap_or_else(|e| {
            outcome = Err(e);
            total
        });
        b.fma(sum, scale, total)
    });
    outcome?;
    store(&mut b, r, &bound, value, [first_row, first_column], columns.map(|c| (c, m, n)))?;
    let form = format!("tile {m}x{n}");
    let kernel = b.finish(String::new());
    Ok(bound.finish(r, kernel, &form))
}

/// Stores the tile: whole ones without a mask.
fn store(
    b: &mut Builder,
    r: &Request<'_>,
    bound: &Bound,
    value: V,
    first: [V; 2],
    columns: Option<(V, u32, u32)>,
) -> Result<(), Refusal> {
    let Some((mask, m, n)) = columns else { return bound.store(b, r, value, first, None) };
    let mask = b.broadcast(mask, &[m, n]);
    let (last, limit) = (b.offset(first[1], i64::from(n)), b.int(bound.shape.n as i64));
    let full = b.compare(Compare::LessEqual, last, limit);
    let partial = b.compare(Compare::Less, limit, last);
    let (mut whole, mut cut) = (Ok(()), Ok(()));
    b.if_then(full, |b| whole = bound.store(b, r, value, first, None));
    b.if_then(partial, |b| cut = bound.store(b, r, value, first, Some(mask)));
    whole.and(cut)
}
