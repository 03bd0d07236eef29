//! How a program walks its share of a tensor: a host takes one row in pieces of descending width; a GPU takes tiles of
//! whole rows whose dims are powers of two, with tails masked so that vectors of 16 bytes are read whole or not at all.

use super::row::{elem_of, element_offset, for_row, load_f32, store_f32};
use crate::request::{RowSpace, Tensor};
use crate::target::Target;
use crate::tile::{Access, Binary, Builder, Compare, Conversion, Elem, Param, Reduction, TileType, V, Waiting};
use weldment_ir::DType;

/// Elements that a GPU program of an elementwise or row kernel handles at a time, as far as there are so many.
pub const ELEMENTS: u64 = 2048;
/// Largest block of the row kernels.
const MOST_THREADS: u64 = 512;
/// Widest piece of a row: 32 elements a thread stay in registers.
const WIDEST: u64 = MOST_THREADS * 32;
/// Trips of a loop that are written out.
pub const UNROLLED: u64 = 4;
/// Largest number of blocks along the y and z axes of a grid.
pub const GRID_LIMIT: u64 = 65_535;

/// Threads for a tile of `elements`, `each` a thread where that gives a sensible block.
pub fn threads_for(elements: u64, each: u64) -> u32 {
    (elements / each).clamp(64, MOST_THREADS).next_power_of_two() as u32
}

/// Declares the parameter of a tensor. Only GPU programs are told about alignment and constancy, on which their code depends.
pub fn param(b: &mut Builder, target: &Target, name: &str, t: &Tensor, access: Access) -> Param {
    match target {
        Target::Host(_) => b.param(name, access),
        Target::Gpu(_) => b.aligned_param(name, access, t.align, t.is_constant && access == Access::Read),
    }
}

/// Lets a GPU use its own units for transcendentals where `out` has 16 bits an element.
pub fn round_coarsely(b: &mut Builder, target: &Target, out: &Tensor) {
    if target.gpu().is_some() && matches!(out.ty.dtype, DType::F16 | DType::BF16) {
        b.round_coarsely();
    }
}

/// Declares the parameter of packed weights, which start at multiples of 64 bytes.
pub fn packed_param(b: &mut Builder, target: &Target, name: &str) -> Param {
    match target {
        Target::Host(_) => b.param(name, Access::Read),
        Target::Gpu(_) => b.aligned_param(name, Access::Read, 64, true),
    }
}

/// Neighbours of a tile of `width` that share a comparison with `n`.
fn sharing(width: u32, n: u64) -> u32 {
    1 << n.trailing_zeros().min(4).min(width.trailing_zeros())
}

/// i1 [width / sharing]: elements from `at + i * sharing` on are below `n`; `at` is a multiple of `width`.
fn below_shared(b: &mut Builder, at: V, width: u32, n: u64) -> V {
    let together = sharing(width, n);
    let index = b.iota(Elem::I64, width / together);
    let step = b.int(i64::from(together));
    let first = b.div(at, step);
    let limit = b.int((n / u64::from(together)) as i64);
    let left = b.sub(limit, first);
    b.compare(Compare::Less, index, left)
}

/// i1 [width]: element `at + i` is below `n`; `at` is a multiple of `width`. As many neighbours as divide `n` share one comparison.
pub fn below(b: &mut Builder, at: V, width: u32, n: u64) -> V {
    let together = sharing(width, n);
    let inside = below_shared(b, at, width, n);
    if together == 1 {
        return inside;
    }
    let inside = b.reshape(inside, &[width / together, 1]);
    let inside = b.broadcast(inside, &[width / together, together]);
    b.reshape(inside, &[width])
}

/// All of the masks that are there, broadcast to `shape`.
pub fn all_of(b: &mut Builder, masks: &[Option<V>], shape: &[u32]) -> Option<V> {
    let joined = masks.iter().flatten().copied().reduce(|x, y| b.binary(Binary::And, x, y))?;
    Some(b.broadcast(joined, shape))
}

/// Calls `body` with the start of each run of `width` of `n` elements, and a mask [width] for a last run that is not whole.
pub fn steps(
    b: &mut Builder,
    n: u64,
    width: u64,
    init: &[V],
    mut body: impl FnMut(&mut Builder, V, Option<V>, &[V]) -> Vec<V>,
) -> Vec<V> {
    let whole = n / width;
    let mut carried = init.to_vec();
    if whole <= UNROLLED {
        for i in 0..whole {
            let at = b.int((i * width) as i64);
            carried = body(b, at, None, &carried);
        }
    } else {
        let (zero, end) = (b.int(0), b.int((whole * width) as i64));
        carried = b.for_loop(zero, end, width as i64, &carried, |b, at, c| body(b, at, None, c));
    }
    if whole * width < n {
        let at = b.int((whole * width) as i64);
        let mask = below(b, at, width as u32, n);
        carried = body(b, at, Some(mask), &carried);
    }
    carried
}

/// The rows of a program and how it goes along them.
pub struct Walk {
    /// Elements of a row.
    pub n: u64,
    width: u64,
    /// Rows of the program on a GPU; on a host there is one, and its tiles have no dim for it.
    rows: Option<u32>,
    /// i1 [rows, 1], where the last program has rows too many.
    present: Option<V>,
    /// Index of the program's first row.
    pub first: V,
}

impl Walk {
    /// A walk over `space` rows of `n` elements, along grid axis 0, in pieces of at most `widest` on a host.
    pub fn new(b: &mut Builder, target: &Target, space: &RowSpace, n: u64, widest: u64) -> Walk {
        if target.gpu().is_none() {
            space.grid(b, 0, 1);
            return Walk { n, width: widest, rows: None, present: None, first: b.program_id(0) };
        }
        let width = n.next_power_of_two().min(WIDEST);
        let mut rows = (ELEMENTS / width).max(1);
        if space.symbol.is_none() {
            rows = rows.min(space.mul.next_power_of_two());
        }
        b.threads(threads_for(rows * width, 8));
        space.grid(b, 0, rows);
        let id = b.program_id(0);
        let first = b.scale(id, rows as i64);
        let ragged = rows > 1 && (space.symbol.is_some() || !space.mul.is_multiple_of(rows));
        let present = ragged.then(|| {
            let count = space.count(b);
            present(b, first, count, rows as u32)
        });
        Walk { n, width, rows: Some(rows as u32), present, first }
    }

    /// As [`Walk::new`], one row a program: for rows that do not lie at one stride.
    pub fn single_rows(b: &mut Builder, target: &Target, space: &RowSpace, n: u64, widest: u64) -> Walk {
        space.grid(b, 0, 1);
        let first = b.program_id(0);
        if target.gpu().is_none() {
            return Walk { n, width: widest, rows: None, present: None, first };
        }
        let width = n.next_power_of_two().min(WIDEST);
        b.threads(threads_for(width, 8));
        Walk { n, width, rows: Some(1), present: None, first }
    }

    /// A walk over `n` elements of rows that the caller chose: `rows` of them (`None` on a host), those in `present` [rows, 1].
    pub fn of(n: u64, width: u64, rows: Option<u32>, present: Option<V>, first: V) -> Walk {
        Walk { n, width, rows, present, first }
    }

    /// True if the whole row is one tile, which can then stay in registers.
    pub fn is_single(&self) -> bool {
        self.rows.is_some() && self.n <= self.width
    }

    /// Calls `body` with each piece, threading carried values through.
    pub fn each(
        &self,
        b: &mut Builder,
        init: &[V],
        mut body: impl FnMut(&mut Builder, &Piece, &[V]) -> Vec<V>,
    ) -> Vec<V> {
        let Some(rows) = self.rows else {
            return for_row(b, self.n, self.width, init, |b, at, width, carried| {
                body(b, &Piece { at, width, n: self.n, rows: None, columns: None, present: None }, carried)
            });
        };
        let width = self.width.min(self.n.next_power_of_two());
        steps(b, self.n, width, init, |b, at, mask, carried| {
            let columns = mask.map(|m| b.reshape(m, &[1, width as u32]));
            let (width, n) = (width as u32, self.n);
            body(b, &Piece { at, width, n, rows: Some(rows), columns, present: self.present }, carried)
        })
    }

    /// True for rows of a host, whose pieces have no dim for rows.
    pub fn is_host(&self) -> bool {
        self.rows.is_none()
    }

    /// A piece of a host's row.
    pub fn piece(&self, at: V, width: u32) -> Piece {
        Piece { at, width, n: self.n, rows: self.rows, columns: None, present: self.present }
    }

    /// Reduces the pieces' last dim: a scalar on a host, [rows, 1] on a GPU.
    pub fn reduce(&self, b: &mut Builder, op: Reduction, v: V) -> V {
        match self.rows {
            None => {
                let v = b.reduce(op, v, 0);
                b.reshape(v, &[])
            }
            Some(_) => b.reduce(op, v, 1),
        }
    }

    /// A value a row, in the form that [`Walk::reduce`] gives.
    pub fn per_row(&self, b: &mut Builder, x: f64) -> V {
        match self.rows {
            None => b.float(x),
            Some(rows) => b.float_tile(&[rows, 1], x),
        }
    }

    /// Stores one element a row.
    pub fn store_per_row(&self, b: &mut Builder, param: Param, base: V, dtype: DType, row_stride: i64, v: V) {
        let Some(_) = self.rows else { return store_f32(b, param, base, dtype, v) };
        let v = b.convert(Conversion::Float, v, elem_of(dtype).unwrap_or(Elem::F32));
        b.store(param, base, &[row_stride, 0], v, self.present);
    }

    /// Stores one element a row as it is.
    pub fn store_values_per_row(&self, b: &mut Builder, param: Param, base: V, row_stride: i64, v: V) {
        match self.rows {
            None => b.store_row(param, base, v),
            Some(_) => b.store(param, base, &[row_stride, 0], v, self.present),
        }
    }
}

/// i1 [rows, 1]: row `first + i` is below `count`.
pub fn present(b: &mut Builder, first: V, count: V, rows: u32) -> V {
    let index = b.iota(Elem::I64, rows);
    let left = b.sub(count, first);
    let inside = b.compare(Compare::Less, index, left);
    b.reshape(inside, &[rows, 1])
}

/// Elements `at..at + width` of the program's rows.
pub struct Piece {
    /// i64 index of the first element.
    pub at: V,
    width: u32,
    /// Elements of the whole row.
    n: u64,
    rows: Option<u32>,
    columns: Option<V>,
    present: Option<V>,
}

impl Piece {
    /// `width` elements of a row of `n` from `at` on, a multiple of `width`, on a GPU.
    pub fn of_row(b: &mut Builder, at: V, width: u32, n: u64) -> Piece {
        let mask = (!n.is_multiple_of(u64::from(width))).then(|| below(b, at, width, n));
        let columns = mask.map(|m| b.reshape(m, &[1, width]));
        Piece { at, width, n, rows: Some(1), columns, present: None }
    }

    /// Elements of a row of the piece.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// i1 [g, width] for a tile of `g` such rows of a GPU: those of `rows` [g], as far as there are elements.
    pub fn mask_rows(&self, b: &mut Builder, rows: V) -> V {
        let g = b.ty(rows).lanes();
        let rows = b.reshape(rows, &[g, 1]);
        if self.columns.is_none() {
            return b.broadcast(rows, &[g, self.width]);
        }
        // Combined before neighbours are told apart: they keep sharing a bit, and so a vector.
        let together = sharing(self.width, self.n);
        let inside = below_shared(b, self.at, self.width, self.n);
        let inside = b.reshape(inside, &[1, self.width / together]);
        let both = b.binary(Binary::And, inside, rows);
        let both = b.reshape(both, &[g, self.width / together, 1]);
        let both = b.broadcast(both, &[g, self.width / together, together]);
        b.reshape(both, &[g, self.width])
    }

    /// i1 [g, width] for a tile of `g` such rows, where the last piece is not whole.
    pub fn mask_columns(&self, b: &mut Builder, g: u32) -> Option<V> {
        self.columns.map(|columns| b.broadcast(columns, &[g, self.width]))
    }

    /// Pushes contiguous elements from byte `at` on.
    pub fn push(&self, b: &mut Builder, param: Param, at: V, v: V) {
        let (mask, size) = (self.mask(b), b.ty(v).elem.bytes() as i64);
        let strides = if self.rows.is_some() { &[0, size][..] } else { &[size] };
        b.push(param, at, strides, v, mask);
    }

    /// Waits for contiguous elements from byte `at` on.
    pub fn arrive(&self, b: &mut Builder, (param, at): (Param, V), ty: TileType, empty: u32, waiting: Waiting) -> V {
        let (mask, size) = (self.mask(b), ty.elem.bytes() as i64);
        let strides = if self.rows.is_some() { &[0, size][..] } else { &[size] };
        b.arrive((param, at, None, strides), ty, mask, empty, waiting)
    }

    /// [width] on a host, [rows, width] on a GPU.
    pub fn shape(&self) -> Vec<u32> {
        self.rows.into_iter().chain([self.width]).collect()
    }

    fn mask(&self, b: &mut Builder) -> Option<V> {
        all_of(b, &[self.columns, self.present], &self.shape())
    }

    /// The same place in rows that have one element for each `step` of these rows' `n`; both divide.
    pub fn shrunk(&self, b: &mut Builder, n: u64, step: u64) -> Piece {
        let per = b.int(step as i64);
        let (at, width) = (b.div(self.at, per), self.width / step as u32);
        let columns = self.columns.map(|_| {
            let mask = below(b, at, width, n / step);
            b.reshape(mask, &[1, width])
        });
        Piece { at, width, n: n / step, rows: self.rows, columns, present: self.present }
    }

    /// `v` where there are elements, `other` in masked places.
    pub fn or(&self, b: &mut Builder, v: V, other: f64) -> V {
        match self.mask(b) {
            None => v,
            Some(mask) => {
                let other = b.float(other);
                b.select(mask, v, other)
            }
        }
    }

    /// Byte offset of the piece in rows of `dtype` that start at `base`.
    fn offset(&self, b: &mut Builder, base: V, dtype: DType) -> V {
        let at = element_offset(b, dtype, self.at);
        b.add(base, at)
    }

    /// The piece of contiguous rows at byte `base` and `row_stride` apart, as f32.
    pub fn load(&self, b: &mut Builder, param: Param, base: V, dtype: DType, row_stride: i64) -> V {
        let at = self.offset(b, base, dtype);
        match self.rows {
            None => load_f32(b, param, at, dtype, self.width),
            Some(_) => {
                let elem = elem_of(dtype).unwrap_or(Elem::F32);
                let v = self.load_elements(b, param, at, elem, [row_stride, elem.bytes() as i64]);
                b.to_f32(v)
            }
        }
    }

    /// The piece of a vector that all rows share, as f32, to be broadcast along the rows.
    pub fn load_shared(&self, b: &mut Builder, param: Param, base: V, dtype: DType) -> V {
        if self.rows.is_none() {
            return self.load(b, param, base, dtype, 0);
        }
        // Without a dim for rows: what is broadcast is loaded as the tile that it meets lies.
        let (elem, at) = (elem_of(dtype).unwrap_or(Elem::F32), self.offset(b, base, dtype));
        let mask = self.columns.map(|m| b.reshape(m, &[self.width]));
        let v = b.load(param, at, elem, &[self.width], &[elem.bytes() as i64], mask);
        b.to_f32(v)
    }

    /// Elements at byte `at`, `strides` = bytes from row to row and from element to element.
    pub fn load_elements(&self, b: &mut Builder, param: Param, at: V, elem: Elem, strides: [i64; 2]) -> V {
        let mask = self.mask(b);
        let strides = if self.rows.is_some() { &strides[..] } else { &strides[1..] };
        b.load(param, at, elem, &self.shape(), strides, mask)
    }

    /// The counterpart of [`Piece::load_elements`].
    pub fn store_elements(&self, b: &mut Builder, param: Param, at: V, strides: [i64; 2], v: V) {
        let mask = self.mask(b);
        let strides = if self.rows.is_some() { &strides[..] } else { &strides[1..] };
        let v = b.broadcast(v, &self.shape());
        b.store(param, at, strides, v, mask);
    }

    /// Rounds f32 values to `dtype` and stores them in rows at byte `base`; q8a on hosts only.
    pub fn store(&self, b: &mut Builder, param: Param, base: V, dtype: DType, row_stride: i64, v: V) {
        let at = self.offset(b, base, dtype);
        match self.rows {
            None => store_f32(b, param, at, dtype, v),
            Some(_) => {
                let elem = elem_of(dtype).unwrap_or(Elem::F32);
                let v = b.convert(Conversion::Float, v, elem);
                self.store_elements(b, param, at, [row_stride, elem.bytes() as i64], v);
            }
        }
    }
}
