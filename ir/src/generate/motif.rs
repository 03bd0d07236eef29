//! Shapes that fusions look for, with the detours that models make: planted in random graphs.

use super::Palette;
use super::build::{Build, F32, POSITIONS, Stop};
use crate::DType;
use crate::attr::Real;
use crate::graph::Value;
use crate::op::Op;
use crate::types::{Dim, TensorType};

/// A shape that a fusion looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motif {
    /// x * rsqrt(mean(x^2) + eps) * w from its parts, in f32 or between casts.
    NormFromParts,
    /// A residual sum, read again, and the norm of it.
    ResidualNorm,
    /// Two or three products of one operand by static weights, with or without biases, cut and turned to heads.
    Projections,
    /// silu(x g) * (x u), of silu or of sigmoid, and a product that reads it.
    GatedUnit,
    /// Rotated keys written to a cache; attention over it.
    RotatedCache,
    /// A product, a residual and a cast.
    Epilogue,
    /// Views that undo or repeat each other, around other ops.
    Views,
    /// A product by a weight of a block format.
    BlockProduct,
    /// A norm in quantised activations, read by several products.
    QuantisedRows,
    /// Codes of a norm, read by several scaled products, of which two may be a gated unit.
    ProductsOfCodes,
    /// Arithmetic on integers, casts from them.
    Integers,
    /// A state written again, and attention over any version of it.
    Versions,
    /// Products and norms of rows that are folded to more or fewer dims.
    FoldedRows,
    /// Rows at several strides, between dims of 1, before and after ops that want one stride.
    StridedRows,
    /// Dims in any order before ops that want rows.
    Turned,
    /// One value read by a fusion and by others.
    SecondReader,
    /// What does nothing, or what an op does by itself: views to the same shape, casts and broadcasts that others absorb.
    Detours,
}

impl Motif {
    /// Every motif.
    pub const ALL: &'static [Motif] = &[
        Motif::NormFromParts,
        Motif::ResidualNorm,
        Motif::Projections,
        Motif::GatedUnit,
        Motif::RotatedCache,
        Motif::Epilogue,
        Motif::Views,
        Motif::BlockProduct,
        Motif::QuantisedRows,
        Motif::ProductsOfCodes,
        Motif::Integers,
        Motif::Versions,
        Motif::FoldedRows,
        Motif::StridedRows,
        Motif::StridedRows,
        Motif::Turned,
        Motif::SecondReader,
        Motif::Detours,
    ];
}

impl Build<'_> {
    pub(super) fn motif(&mut self, motif: Motif) -> Result<(), Stop> {
        match motif {
            Motif::NormFromParts => self.norm_from_parts(),
            Motif::ResidualNorm => self.residual_norm(),
            Motif::Projections => self.projections(),
            Motif::GatedUnit => self.gated_unit(),
            Motif::RotatedCache => self.rotated_cache(),
            Motif::Epilogue => self.epilogue(),
            Motif::Views => self.views(),
            Motif::BlockProduct => self.block_product(),
            Motif::QuantisedRows => self.quantised_rows(),
            Motif::ProductsOfCodes => self.products_of_codes(),
            Motif::Integers => self.integers(),
            Motif::Versions => self.versions(),
            Motif::FoldedRows => self.folded_rows(),
            Motif::StridedRows => self.strided_rows(),
            Motif::Turned => self.turned(),
            Motif::SecondReader => self.second_reader(),
            Motif::Detours => self.detours(),
        }
    }

    fn weight(&mut self, dtype: DType, shape: &[u64]) -> Result<Value, Stop> {
        self.static_leaf(&TensorType::fixed(dtype, shape))
    }

    fn epsilon(&mut self) -> Real {
        Real(*self.random.pick(&self.wanted.palette.epsilons).unwrap_or(&1e-5))
    }

    fn norm_from_parts(&mut self) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let wide = if t.dtype == F32 { x } else { self.push(Op::Cast { dtype: F32 }, &[x])? };
        let square = self.push(Op::Mul {}, &[wide, wide])?;
        let mean = self.push(Op::ReduceMean { axis: 1 }, &[square])?;
        let value = self.epsilon();
        let eps = self.push(Op::Constant { value, dtype: F32 }, &[])?;
        let terms = if self.random.one_in(2) { [mean, eps] } else { [eps, mean] };
        let sum = self.push(Op::Add {}, &terms)?;
        let root = self.push(Op::Rsqrt {}, &[sum])?;
        let w = self.value(t.dtype, t.shape[1..].to_vec())?;
        // Gemma's weights are one short.
        let w = if self.random.one_in(3) {
            let one = self.push(Op::Constant { value: Real(1.0), dtype: t.dtype }, &[])?;
            self.push(Op::Add {}, &[w, one])?
        } else {
            w
        };
        if t.dtype == F32 && self.random.one_in(3) {
            let weighed = self.push(Op::Mul {}, &[wide, w])?;
            return self.push(Op::Mul {}, &[weighed, root]).map(drop);
        }
        let mut y = self.push(Op::Mul {}, &[wide, root])?;
        if t.dtype != F32 {
            y = self.push(Op::Cast { dtype: t.dtype }, &[y])?;
        }
        self.push(Op::Mul {}, &[w, y]).map(drop)
    }

    fn residual_norm(&mut self) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let residual = self.value(t.dtype, t.shape.clone())?;
        let sum = self.push(Op::Add {}, &[x, residual])?;
        let w = self.value(F32, t.shape[1..].to_vec())?;
        let (eps, dtype) = (self.epsilon(), self.result());
        self.push(Op::RmsNorm { eps, dtype }, &[sum, w])?;
        if self.random.one_in(2) {
            let again = self.value(t.dtype, t.shape)?;
            self.push(Op::Add {}, &[sum, again])?;
        }
        Ok(())
    }

    fn projections(&mut self) -> Result<(), Stop> {
        let (stored, blocks) = self.matrix_dtype();
        let (x, t) = self.matrix_of(blocks)?;
        let depth = t.last_constant().unwrap_or(32);
        let dtype = self.compute();
        let biased = self.random.one_in(3);
        for _ in 0..2 + self.random.below(2) {
            let heads = 1 + self.random.below(3);
            let w = self.weight(stored, &[8 * heads, depth])?;
            let mut y = self.push(Op::Matmul { dtype }, &[x, w])?;
            if biased {
                let bias = self.weight(dtype, &[8 * heads])?;
                y = self.push(Op::Add {}, &[y, bias])?;
            }
            if t.rank() == 2 && self.random.one_in(2) {
                let shape = vec![t.shape[0].clone(), heads.into(), Dim::Const(8)];
                self.push(Op::Reshape { shape }, &[y])?;
            }
        }
        Ok(())
    }

    fn gated_unit(&mut self) -> Result<(), Stop> {
        let (stored, blocks) = self.matrix_dtype();
        let (x, t) = self.matrix_of(blocks)?;
        let (depth, width) = (t.last_constant().unwrap_or(32), self.width().next_multiple_of(blocks));
        let shape = [width, depth];
        let (gate, up) = if !stored.is_block() && self.random.one_in(4) {
            // Computed in the step, or given to it.
            let shape = shape.map(Dim::Const).to_vec();
            (self.value(stored, shape.clone())?, self.value(stored, shape)?)
        } else {
            (self.weight(stored, &shape)?, self.weight(stored, &shape)?)
        };
        let dtype = self.compute();
        let (gate, up) = (self.push(Op::Matmul { dtype }, &[x, gate])?, self.push(Op::Matmul { dtype }, &[x, up])?);
        let gated = if self.random.one_in(3) {
            let open = self.push(Op::Sigmoid {}, &[gate])?;
            let inner = self.push(Op::Mul {}, &[open, up])?;
            self.push(Op::Mul {}, &[gate, inner])?
        } else {
            let active = self.push(Op::Silu {}, &[gate])?;
            self.push(Op::Mul {}, &[active, up])?
        };
        let down = self.weight(stored, &[depth, width])?;
        let y = self.push(Op::Matmul { dtype }, &[gated, down])?;
        let residual = self.value(dtype, self.graph.type_of(y).shape.clone())?;
        self.push(Op::Add {}, &[residual, y]).map(drop)
    }

    fn rotated_cache(&mut self) -> Result<(), Stop> {
        let [positions, ids, tables] = self.pages()?;
        let Palette { depth, slots, heads: [heads, group], .. } = *self.wanted.palette;
        let rotary = if self.random.one_in(3) { depth / 2 } else { depth };
        let table = self.push(
            Op::RopeTable {
                positions: POSITIONS,
                dim: rotary as i64,
                theta: Real(1e4),
                factor: Real(1.0),
                low: Real(1.0),
                high: Real(4.0),
                original: 16,
            },
            &[],
        )?;
        let interleaved = self.random.one_in(2);
        let dtype = self.compute();
        let tokens = |heads: u64| vec![Dim::sym("T"), heads.into(), depth.into()];
        let x = self.value(dtype, tokens(heads))?;
        let rotated = self.push(Op::Rope { interleaved }, &[x, positions, table])?;
        let cached = if self.random.one_in(2) { dtype } else { self.compute() };
        let (k, v) = (self.state_of(cached, [heads, depth, slots])?, self.state_of(cached, [heads, slots, depth])?);
        let old = self.states[k].1;
        let k = self.write(k, Op::CacheWrite { transposed: true }, &[old, rotated, positions, ids, tables])?;
        let (x, old) = (self.value(dtype, tokens(heads))?, self.states[v].1);
        let v = self.write(v, Op::CacheWrite { transposed: false }, &[old, x, positions, ids, tables])?;
        let q = self.value(dtype, tokens(heads * group))?;
        let q = self.push(Op::Rope { interleaved }, &[q, positions, table])?;
        let (scale, dtype) = (Real(0.25), self.compute());
        let window = self.random.pick(&[0, 0, 1, 3, 20]).copied().unwrap_or(0);
        let y = self.push(Op::Attention { scale, dtype, window }, &[q, k, v, positions, ids, tables])?;
        let shape = vec![Dim::sym("T"), (heads * group * depth).into()];
        let y = self.push(Op::Reshape { shape }, &[y])?;
        let dtype = self.result();
        self.push(Op::Cast { dtype }, &[y]).map(drop)
    }

    fn epilogue(&mut self) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let width = self.width();
        let w = self.value(F32, vec![width.into(), t.shape[1].clone()])?;
        let dtype = self.compute();
        let y = self.push(Op::Matmul { dtype }, &[x, w])?;
        let addend = if self.random.one_in(2) { vec![width.into()] } else { vec![t.shape[0].clone(), width.into()] };
        let addend = self.value(dtype, addend)?;
        let y = self.push(Op::Add {}, &[addend, y])?;
        let dtype = self.result();
        self.push(Op::Cast { dtype }, &[y]).map(drop)
    }

    fn views(&mut self) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let width = t.last_constant().unwrap_or(32);
        let shape = vec![t.shape[0].clone(), (width / 8).into(), Dim::Const(8)];
        let split = self.push(Op::Reshape { shape }, &[x])?;
        let turned = self.push(Op::Transpose { permutation: vec![1, 0, 2] }, &[split])?;
        let activated = self.push(Op::Silu {}, &[turned])?;
        let back = self.push(Op::Transpose { permutation: vec![1, 0, 2] }, &[activated])?;
        let y = self.push(Op::Reshape { shape: t.shape.clone() }, &[back])?;
        let cut = 8 * (1 + self.random.below((width / 8).saturating_sub(1))) as i64;
        let left = self.push(Op::Slice { axis: 1, start: 0, end: cut }, &[y])?;
        let right = self.push(Op::Slice { axis: 1, start: cut, end: width as i64 }, &[y])?;
        let parts = if self.random.one_in(2) { [left, right] } else { [right, left] };
        let joined = self.push(Op::Concat { axis: 1 }, &parts)?;
        self.push(Op::Slice { axis: 1, start: 4, end: cut + 4 }, &[joined]).map(drop)
    }

    fn block_product(&mut self) -> Result<(), Stop> {
        let (stored, blocks) = self.matrix_dtype();
        let depth = if blocks == 256 { blocks } else { 32 * (1 + self.random.below(3)) };
        let dtype = self.compute();
        let x = self.value(dtype, vec![Dim::sym("T"), depth.into()])?;
        let width = self.width() / 2;
        let w = self.weight(stored, &[width, depth])?;
        let dtype = self.compute();
        self.push(Op::Matmul { dtype }, &[x, w]).map(drop)
    }

    fn quantised_rows(&mut self) -> Result<(), Stop> {
        let (stored, blocks) = self.matrix_dtype();
        let (x, t) = self.matrix_of(blocks)?;
        let depth = t.last_constant().unwrap_or(32);
        let (w, eps) = (self.weight(F32, &[depth])?, self.epsilon());
        let rows = match self.random.below(3) {
            0 => self.push(Op::RmsNorm { eps, dtype: DType::Q8A }, &[x, w])?,
            1 => self.push(Op::SiluMul { dtype: DType::Q8A }, &[x, x])?,
            _ => self.push(Op::Cast { dtype: DType::Q8A }, &[x])?,
        };
        for _ in 0..1 + self.random.below(2) {
            let (width, dtype) = (self.width(), self.compute());
            let w = self.weight(stored, &[width, depth])?;
            self.push(Op::Matmul { dtype }, &[rows, w])?;
        }
        Ok(())
    }

    fn products_of_codes(&mut self) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let depth = t.last_constant().unwrap_or(32);
        let (w, eps, dtype) = (self.weight(F32, &[depth])?, self.epsilon(), self.compute());
        let normed = self.push(Op::RmsNorm { eps, dtype }, &[x, w])?;
        let t = self.graph.type_of(normed).clone();
        let [codes, scales] = self.quantised(normed, &t, false)?;
        let (stored, dtype, block) = (self.graph.type_of(codes).dtype, self.compute(), 8 << self.random.below(2));
        let mut products = Vec::new();
        for _ in 0..2 + self.random.below(2) {
            let width = 16 * (1 + self.random.below(2));
            let w = self.weight(stored, &[width, depth])?;
            let w_scales = self.weight(F32, &[width / block, 1])?;
            let op = Op::ScaledMatmul { rows: block as i64, columns: depth as i64, dtype };
            products.push(self.push(op, &[codes, scales, w, w_scales])?);
        }
        let (gate, up) = (products[0], products[1]);
        if self.graph.type_of(gate) == self.graph.type_of(up) && self.random.one_in(2) {
            let active = self.push(Op::Silu {}, &[gate])?;
            self.push(Op::Mul {}, &[active, up])?;
        }
        Ok(())
    }

    fn integers(&mut self) -> Result<(), Stop> {
        let shape = if self.random.one_in(2) { vec![Dim::sym("T")] } else { vec![Dim::sym("T"), Dim::Const(5)] };
        let mut x = self.value(DType::I32, shape.clone())?;
        for _ in 0..1 + self.random.below(3) {
            let y = if self.random.one_in(2) {
                self.value(DType::I32, shape.clone())?
            } else {
                let value = Real(self.random.below(9) as f64 - 4.0);
                self.push(Op::Constant { value, dtype: DType::I32 }, &[])?
            };
            x = match self.random.below(7) {
                0 => self.push(Op::Add {}, &[x, y])?,
                1 => self.push(Op::Sub {}, &[y, x])?,
                2 => self.push(Op::Mul {}, &[x, y])?,
                3 => self.push(Op::Maximum {}, &[x, y])?,
                4 => self.push(Op::Minimum {}, &[x, y])?,
                5 => {
                    let narrow = self.push(Op::Cast { dtype: DType::I8 }, &[x])?;
                    self.push(Op::Cast { dtype: DType::I32 }, &[narrow])?
                }
                _ => {
                    let less = self.push(Op::Less {}, &[x, y])?;
                    self.push(Op::Select {}, &[less, y, x])?
                }
            };
        }
        let dtype = self.compute();
        let real = self.push(Op::Cast { dtype }, &[x])?;
        let scale = self.value(dtype, shape)?;
        self.push(Op::Mul {}, &[real, scale]).map(drop)
    }

    fn versions(&mut self) -> Result<(), Stop> {
        let [positions, ids, tables] = self.pages()?;
        let many = self.states.len() as u64;
        if many == 0 {
            return self.rotated_cache();
        }
        let state = self.random.below(many) as usize;
        let old = self.states[state].1;
        let shape = self.graph.type_of(old).shape.clone();
        // Both orders are possible where a block is square.
        let transposed = self.random.one_in(2);
        let depth = shape[if transposed { 2 } else { 3 }].clone();
        let dtype = self.compute();
        let x = self.value(dtype, vec![Dim::sym("T"), shape[1].clone(), depth.clone()])?;
        self.write(state, Op::CacheWrite { transposed }, &[old, x, positions, ids, tables])?;
        let pairs: Vec<(Value, Value)> = self
            .versions
            .iter()
            .flat_map(|k| self.versions.iter().map(move |v| (*k, *v)))
            .filter(|(k, v)| {
                let (k, v) = (&self.graph.type_of(*k).shape, &self.graph.type_of(*v).shape);
                k[1] == v[1] && k[2] == v[3] && k[3] == v[2]
            })
            .collect();
        let Some((k, v)) = self.random.pick(&pairs).copied() else { return Ok(()) };
        let keys = self.graph.type_of(k).shape.clone();
        let q = self.value(dtype, vec![Dim::sym("T"), keys[1].clone(), keys[2].clone()])?;
        let window = self.random.pick(&[0, 0, 2, 9]).copied().unwrap_or(0);
        let op = Op::Attention { scale: Real(0.5), dtype, window };
        self.push(op, &[q, k, v, positions, ids, tables]).map(drop)
    }

    fn folded_rows(&mut self) -> Result<(), Stop> {
        let (dtype, width, rows) = (self.compute(), self.width(), 2 + self.random.below(2));
        let x = self.value(dtype, vec![Dim::sym("T"), rows.into(), width.into()])?;
        let x = match self.random.below(3) {
            0 => self.push(Op::Reshape { shape: vec![Dim::sym("T"), 1.into(), rows.into(), width.into()] }, &[x])?,
            1 => self.push(Op::Slice { axis: 1, start: 1, end: rows as i64 }, &[x])?,
            _ => x,
        };
        if self.random.one_in(2) {
            let (w, eps) = (self.value(F32, vec![width.into()])?, self.epsilon());
            let dtype = self.compute();
            self.push(Op::RmsNorm { eps, dtype }, &[x, w])?;
        }
        let features = self.width();
        let w = self.value(dtype, vec![features.into(), width.into()])?;
        let y = self.push(Op::Matmul { dtype }, &[x, w])?;
        let t = self.graph.type_of(y).clone();
        let shape = if self.random.one_in(2) { t.shape } else { vec![features.into()] };
        let addend = self.value(dtype, shape)?;
        let op = if self.random.one_in(3) { Op::Mul {} } else { Op::Add {} };
        self.push(op, &[y, addend]).map(drop)
    }

    /// A value [.., width] whose rows lie at several strides: turned, cut or repeated, with dims of 1 put anywhere.
    fn strided(&mut self, dtype: DType, width: u64) -> Result<(Value, TensorType), Stop> {
        let outer: Vec<Dim> = match self.random.below(3) {
            0 => vec![Dim::sym("T"), (2 + self.random.below(2)).into()],
            1 => vec![(1 + self.random.below(3)).into(), Dim::sym("T"), Dim::Const(2)],
            _ => vec![Dim::Const(2), Dim::Const(3)],
        };
        let mut x = self.value(dtype, outer.iter().cloned().chain([width.into()]).collect())?;
        for _ in 0..1 + self.random.below(3) {
            let shape = self.graph.type_of(x).shape.clone();
            let axis = self.random.below(shape.len() as u64 - 1) as usize;
            x = match (self.random.below(5), shape[axis].constant()) {
                (0, Some(n)) if n > 1 => {
                    let start = self.random.below(n - 1) as i64;
                    self.push(Op::Slice { axis: axis as i64, start: start + 1, end: n as i64 }, &[x])?
                }
                (1, _) if shape.len() > 2 => {
                    let mut permutation: Vec<i64> = (0..shape.len() as i64).collect();
                    permutation.swap(axis, shape.len() - 2);
                    self.push(Op::Transpose { permutation }, &[x])?
                }
                (2, Some(1)) => {
                    let repeated = shape.iter().enumerate();
                    let shape = repeated.map(|(i, d)| if i == axis { Dim::Const(2) } else { d.clone() }).collect();
                    self.push(Op::Broadcast { shape }, &[x])?
                }
                // One dim of 1 more, up to the rank that the ops behind this leave room for.
                _ if shape.len() < 5 => {
                    let mut shape = shape;
                    shape.insert(axis + self.random.below(2) as usize, Dim::Const(1));
                    self.push(Op::Reshape { shape }, &[x])?
                }
                _ => x,
            };
        }
        Ok((x, self.graph.type_of(x).clone()))
    }

    fn strided_rows(&mut self) -> Result<(), Stop> {
        let (dtype, width, features) = (self.compute(), self.width(), self.width());
        let (x, t) = self.strided(dtype, width)?;
        let last = t.rank() as i64 - 1;
        let y = match self.random.below(8) {
            0 => self.push(Op::Softmax {}, &[x])?,
            1 => self.push(Op::ReduceSum { axis: last }, &[x])?,
            2 => {
                let (w, eps) = (self.value(F32, vec![width.into()])?, self.epsilon());
                let dtype = self.compute();
                self.push(Op::RmsNorm { eps, dtype }, &[x, w])?
            }
            3 => self.quantised(x, &t, false)?[1],
            _ => {
                let w = if self.random.one_in(2) {
                    self.weight(dtype, &[features, width])?
                } else {
                    self.value(dtype, vec![features.into(), width.into()])?
                };
                self.push(Op::Matmul { dtype }, &[x, w])?
            }
        };
        // The result is written beside another, or meets one that lies at strides of its own.
        let t = self.graph.type_of(y).clone();
        let constant: Vec<usize> = (0..t.rank()).filter(|i| t.shape[*i].constant().is_some()).collect();
        match (self.random.below(3), self.random.pick(&constant).copied()) {
            (0, Some(axis)) => {
                let other = self.value(t.dtype, t.shape.clone())?;
                let parts = if self.random.one_in(2) { [y, other] } else { [other, y] };
                self.push(Op::Concat { axis: axis as i64 }, &parts).map(drop)
            }
            (1, _) => {
                let other = self.value(t.dtype, t.shape)?;
                self.push(Op::Add {}, &[other, y]).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn turned(&mut self) -> Result<(), Stop> {
        let (x, t) = self.any()?;
        let mut permutation: Vec<i64> = (0..t.rank() as i64).collect();
        for i in (1..permutation.len()).rev() {
            permutation.swap(i, self.random.below(i as u64 + 1) as usize);
        }
        let turned = self.push(Op::Transpose { permutation }, &[x])?;
        let last = t.rank() as i64 - 1;
        match self.random.below(4) {
            0 => self.push(Op::Softmax {}, &[turned]),
            1 => self.push(Op::ReduceSum { axis: last }, &[turned]),
            2 => self.push(Op::Concat { axis: 0 }, &[turned, turned]),
            _ => self.push(Op::Silu {}, &[turned]),
        }
        .map(drop)
    }

    fn second_reader(&mut self) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let (depth, width) = (t.last_constant().unwrap_or(32), self.width());
        let w = self.weight(DType::BF16, &[width, depth])?;
        let dtype = self.compute();
        let y = self.push(Op::Matmul { dtype }, &[x, w])?;
        let addend = self.value(dtype, vec![width.into()])?;
        self.push(Op::Add {}, &[y, addend])?;
        // The product itself, or a part of it, is wanted too.
        match self.random.below(3) {
            0 => self.push(Op::Tanh {}, &[y]),
            1 => self.push(Op::Slice { axis: t.rank() as i64 - 1, start: 0, end: 4 }, &[y]),
            _ => self.push(Op::ReduceMax { axis: t.rank() as i64 - 1 }, &[y]),
        }
        .map(drop)
    }

    fn detours(&mut self) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let width = t.last_constant().unwrap_or(32);
        let outer = |shape: &[Dim]| [Dim::Const(2)].into_iter().chain(shape.iter().cloned()).collect();
        match self.random.below(9) {
            0 => {
                let y = self.push(Op::Broadcast { shape: t.shape }, &[x])?;
                self.push(Op::Tanh {}, &[y])
            }
            1 => {
                let shape: Vec<Dim> = outer(&t.shape);
                let y = self.push(Op::Broadcast { shape: shape.clone() }, &[x])?;
                self.push(Op::Broadcast { shape: outer(&shape) }, &[y])
            }
            2 => {
                let y = self.push(Op::Concat { axis: 1 }, &[x])?;
                self.push(Op::Silu {}, &[y])
            }
            3 => {
                let (w, eps, dtype) = (self.value(F32, t.shape[1..].to_vec())?, self.epsilon(), self.result());
                let y = self.push(Op::RmsNorm { eps, dtype: F32 }, &[x, w])?;
                self.push(Op::Cast { dtype }, &[y])
            }
            4 => {
                let open = self.push(Op::Sigmoid {}, &[x])?;
                self.push(Op::Mul {}, &[x, open])
            }
            5 => {
                let features = self.width();
                let shape = [features, width];
                let (gate, up) = (self.weight(F32, &shape)?, self.weight(F32, &shape)?);
                let y = self.push(Op::MatmulSiluMul { dtype: F32 }, &[x, gate, up])?;
                let dtype = self.result();
                self.push(Op::Cast { dtype }, &[y])
            }
            6 => {
                let flat = self.push(Op::Reshape { shape: vec![t.shape[0].clone(), 1.into(), width.into()] }, &[x])?;
                let open = self.push(Op::Sigmoid {}, &[flat])?;
                self.push(Op::Reshape { shape: t.shape }, &[open])
            }
            7 => {
                let row = self.value(t.dtype, t.shape[1..].to_vec())?;
                let row = self.push(Op::Broadcast { shape: t.shape }, &[row])?;
                let op = if self.random.one_in(2) { Op::Add {} } else { Op::Mul {} };
                self.push(op, &[x, row])
            }
            _ => {
                let features = self.width();
                let w = self.value(t.dtype, vec![features.into(), width.into()])?;
                let y = self.push(Op::Matmul { dtype: F32 }, &[x, w])?;
                let dtype = self.result();
                self.push(Op::Cast { dtype }, &[y])
            }
        }
        .map(drop)
    }
}
