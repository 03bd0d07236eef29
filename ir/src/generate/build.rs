//! Graphs.

use super::{Motif, Palette, Random};
use crate::DType;
use crate::attr::Real;
use crate::error::IrError;
use crate::graph::{Graph, OutputKind, Value};
use crate::interpret::{Argument, Function};
use crate::op::{Op, OpKind};
use crate::types::{Dim, MAX_RANK, Shape, TensorType};
use std::collections::BTreeSet;

pub(super) const F32: DType = DType::F32;
/// Elements of a head, positions of a cache block.
const HEAD: u64 = 8;
const SLOTS: u64 = 8;
/// Columns of indexer scores: as many as there are positions at most.
const COLUMNS: u64 = 16;
/// Rows of rope tables: over any position that `SLOTS` and the range of `P` allow.
pub(super) const POSITIONS: i64 = 32;

/// A graph of about `nodes` nodes besides leaves, every op having the same chance. It verifies, its symbols are `T`, `B`, `P`
/// and `N` of the paged entry (N >= B * P), values that nothing reads are results, written states are outputs.
///
/// # Errors
/// Only on a mistake in this generator: an op refused operands that were built for it.
pub fn random_graph(seed: u64, nodes: usize) -> Result<Graph, IrError> {
    let (name, palette) = (format!("random_{seed}"), Palette::whole());
    let everything = Wanted { nodes, tokens: 6, name, prefix: "", palette: &palette, accepts: &|_, _, _| true };
    random_graph_of(seed, &everything, &[])
}

/// Whether an op is wanted on operands and results of these types.
pub type Accepts<'a> = dyn Fn(&Op, &[TensorType], &[TensorType]) -> bool + 'a;

/// What a graph is to be like.
pub struct Wanted<'a> {
    /// About how many nodes besides leaves.
    pub nodes: usize,
    /// Most tokens.
    pub tokens: u64,
    /// The graph's name.
    pub name: String,
    /// What names of weights start with.
    pub prefix: &'a str,
    /// Sizes and dtypes. Ops that do not take them are left out.
    pub palette: &'a Palette,
    /// A node is only added where this holds.
    pub accepts: &'a Accepts<'a>,
}

/// A graph as [`random_graph`]'s, as `wanted`; one step in four is one of `motifs`, where any are given.
///
/// # Errors
/// As [`random_graph`].
pub fn random_graph_of(seed: u64, wanted: &Wanted<'_>, motifs: &[Motif]) -> Result<Graph, IrError> {
    let mut graph = Graph::new(&wanted.name);
    for (name, min, max) in [("T", 1, wanted.tokens), ("B", 1, 3), ("P", 1, 2), ("N", 6, 8)] {
        graph.declare_symbol(name, min, max);
    }
    let mut build = Build {
        graph,
        random: Random::new(seed),
        pool: Vec::new(),
        states: Vec::new(),
        versions: Vec::new(),
        leaves: 0,
        wanted,
    };
    for _ in 0..wanted.nodes {
        let motif =
            if motifs.is_empty() || !build.random.one_in(4) { None } else { build.random.pick(motifs).copied() };
        let step = match motif {
            Some(motif) => build.motif(motif),
            None => {
                let kind = *build.random.pick(OpKind::ALL).unwrap_or(&OpKind::Add);
                build.step(kind)
            }
        };
        match step {
            Ok(()) | Err(Stop::Unwanted) => {}
            Err(Stop::Error(e)) => return Err(e),
        }
    }
    build.finish()
}

/// Why a step ended early.
pub(super) enum Stop {
    /// A node that is not wanted; what was added before it stays.
    Unwanted,
    /// A mistake of the generator.
    Error(IrError),
}

impl From<IrError> for Stop {
    fn from(e: IrError) -> Stop {
        Stop::Error(e)
    }
}

pub(super) struct Build<'a> {
    pub(super) graph: Graph,
    pub(super) random: Random,
    pub(super) wanted: &'a Wanted<'a>,
    /// Values that later nodes may read.
    pool: Vec<Value>,
    /// Latest version of each state, with its name.
    pub(super) states: Vec<(String, Value)>,
    /// Every version of every state that was written.
    pub(super) versions: Vec<Value>,
    leaves: usize,
}

pub(super) type Built = Result<Value, Stop>;

impl Build<'_> {
    /// Refuses what is not wanted.
    fn check(&self, op: &Op, operands: &[Value]) -> Result<(), Stop> {
        let types: Vec<TensorType> = operands.iter().map(|v| self.graph.type_of(*v).clone()).collect();
        let results = match op.infer(&types) {
            Ok(results) => results,
            Err(_) if self.wanted.palette.ragged => return Err(Stop::Unwanted),
            Err(e) => return Err(e.into()),
        };
        // Activations are never known ahead of time.
        let fixed = self.graph.statics();
        let activations = results.iter().any(|t| t.dtype == DType::Q8A);
        if activations && operands.iter().all(|v| fixed[v.node.index()]) {
            return Err(Stop::Unwanted);
        }
        if (self.wanted.accepts)(op, &types, &results) { Ok(()) } else { Err(Stop::Unwanted) }
    }

    pub(super) fn push(&mut self, op: Op, operands: &[Value]) -> Built {
        self.check(&op, operands)?;
        // One node in eight stands for two model ops, as merged nodes do.
        let name = format!("layers.{}.{}", self.graph.len() / 8, op.kind());
        let mut sources = BTreeSet::from([name.as_str().into()]);
        if self.random.one_in(8) {
            sources.insert(format!("{name}.other").as_str().into());
        }
        let node = self.graph.add(op, operands, sources)?;
        let results = self.graph.node(node).types.len() as u32;
        self.pool.extend((0..results).map(|result| Value { node, result }));
        Ok(Value { node, result: 0 })
    }

    pub(super) fn leaf(&mut self, t: &TensorType) -> Built {
        // Block formats are those of weights.
        let may_be_static = t.constant_shape().is_some() && t.dtype.is_float();
        if t.dtype.is_block() || (may_be_static && self.random.one_in(2)) {
            return self.static_leaf(t);
        }
        self.leaves += 1;
        let (dtype, shape) = (t.dtype, t.shape.clone());
        self.push(Op::input(&format!("x{}", self.leaves), dtype, shape), &[])
    }

    /// A weight.
    pub(super) fn static_leaf(&mut self, t: &TensorType) -> Built {
        self.leaves += 1;
        let name = format!("{}w{}.weight", self.wanted.prefix, self.leaves).as_str().into();
        self.push(Op::Weight { name, dtype: t.dtype, shape: t.shape.clone() }, &[])
    }

    /// A pool value of exactly this type, or a new leaf.
    pub(super) fn value(&mut self, dtype: DType, shape: Shape) -> Built {
        let want = TensorType { dtype, shape };
        let fit: Vec<Value> = self.pool.iter().copied().filter(|v| *self.graph.type_of(*v) == want).collect();
        match self.random.pick(&fit).copied() {
            Some(v) if !self.random.one_in(4) => Ok(v),
            _ => self.leaf(&want),
        }
    }

    /// A table or matrix: static where it is of a block format.
    fn stored(&mut self, dtype: DType, shape: Shape) -> Built {
        if dtype.is_block() { self.static_value(dtype, shape) } else { self.value(dtype, shape) }
    }

    /// As [`Build::value`], of values that depend on weights alone.
    pub(super) fn static_value(&mut self, dtype: DType, shape: Shape) -> Built {
        let want = TensorType { dtype, shape };
        let fixed = self.graph.statics();
        let fits = |v: &Value| fixed[v.node.index()] && *self.graph.type_of(*v) == want;
        let fit: Vec<Value> = self.pool.iter().copied().filter(fits).collect();
        match self.random.pick(&fit).copied() {
            Some(v) if !self.random.one_in(4) => Ok(v),
            _ => self.static_leaf(&want),
        }
    }

    fn named(&mut self, name: &str, dtype: DType, shape: Shape) -> Built {
        let found =
            self.graph.ids().find(|id| matches!(&self.graph.node(*id).op, Op::Input { name: n, .. } if **n == *name));
        match found {
            Some(node) => Ok(Value { node, result: 0 }),
            None => self.push(Op::input(name, dtype, shape), &[]),
        }
    }

    pub(super) fn compute(&mut self) -> DType {
        *self.random.pick(&self.wanted.palette.floats).unwrap_or(&F32)
    }

    /// A dtype for results whose last dim is whole blocks.
    pub(super) fn result(&mut self) -> DType {
        if self.random.one_in(4) { DType::Q8A } else { self.compute() }
    }

    pub(super) fn width(&mut self) -> u64 {
        *self.random.pick(&self.wanted.palette.widths).unwrap_or(&32)
    }

    /// A stored dtype of matrices, and what their rows are multiples of.
    pub(super) fn matrix_dtype(&mut self) -> (DType, u64) {
        let dtype = *self.random.pick(&self.wanted.palette.matrices).unwrap_or(&F32);
        (dtype, if dtype.is_block() { dtype.block_elements() as u64 } else { 1 })
    }

    /// A float matrix [T, width] or a constant one.
    pub(super) fn matrix(&mut self) -> Result<(Value, TensorType), Stop> {
        self.matrix_of(1)
    }

    /// As [`Build::matrix`], its width a multiple of `blocks`.
    pub(super) fn matrix_of(&mut self, blocks: u64) -> Result<(Value, TensorType), Stop> {
        let rows = if self.random.one_in(3) { Dim::Const(2) } else { Dim::sym("T") };
        let (dtype, width) = (self.compute(), self.width().next_multiple_of(blocks));
        let v = self.value(dtype, vec![rows, width.into()])?;
        Ok((v, self.graph.type_of(v).clone()))
    }

    /// Any float value of the pool with at least one dim, and room for one more.
    pub(super) fn any(&mut self) -> Result<(Value, TensorType), Stop> {
        let fit = |t: &TensorType| t.dtype.is_compute_float() && (1..MAX_RANK).contains(&t.rank());
        let candidates: Vec<Value> = self.pool.iter().copied().filter(|v| fit(self.graph.type_of(*v))).collect();
        match self.random.pick(&candidates).copied() {
            Some(v) => Ok((v, self.graph.type_of(v).clone())),
            None => self.matrix(),
        }
    }

    /// Something that broadcasts to `t` without widening it.
    pub(super) fn beside(&mut self, t: &TensorType) -> Built {
        let shape = match self.random.below(3) {
            0 => t.shape.clone(),
            1 => t.shape[t.rank().min(1)..].to_vec(),
            _ => t.shape.iter().map(|d| if self.random.one_in(2) { d.clone() } else { 1.into() }).collect(),
        };
        self.value(t.dtype, shape)
    }

    /// a^2 + 1: positive, and not zero in the ring more often than any other value.
    fn positive(&mut self, a: Value) -> Built {
        let dtype = self.graph.type_of(a).dtype;
        let square = self.push(Op::Mul {}, &[a, a])?;
        let one = self.push(Op::Constant { value: Real(1.0), dtype }, &[])?;
        self.push(Op::Add {}, &[square, one])
    }

    fn step(&mut self, kind: OpKind) -> Result<(), Stop> {
        let (a, t) = self.any()?;
        let last = t.rank() - 1;
        let axis = self.random.below(t.rank() as u64) as usize;
        match kind {
            OpKind::Input | OpKind::Weight => {
                self.matrix()?;
            }
            OpKind::State => {
                self.state(true)?;
            }
            OpKind::Constant => {
                let (value, dtype) = (Real(self.random.small()), self.compute());
                self.push(Op::Constant { value, dtype }, &[])?;
            }
            OpKind::RopeTable => {
                self.rope_table()?;
            }
            OpKind::Numbers => {
                let values = (0..4).map(|i| Real(f64::from(i) - 1.5)).collect();
                self.push(Op::Numbers { values }, &[])?;
            }
            OpKind::Iota => {
                let size = 1 + self.random.below(8) as i64;
                self.push(Op::Iota { size }, &[])?;
            }
            OpKind::Add => self.binary(Op::Add {}, a, &t)?,
            OpKind::Sub => self.binary(Op::Sub {}, a, &t)?,
            OpKind::Mul => self.binary(Op::Mul {}, a, &t)?,
            OpKind::Maximum => self.binary(Op::Maximum {}, a, &t)?,
            OpKind::Minimum => self.binary(Op::Minimum {}, a, &t)?,
            OpKind::Less => self.binary(Op::Less {}, a, &t)?,
            OpKind::Div => {
                let b = self.beside(&t)?;
                let b = self.positive(b)?;
                self.push(Op::Div {}, &[a, b])?;
            }
            OpKind::Select => {
                let b = self.beside(&t)?;
                let condition = self.push(Op::Less {}, &[a, b])?;
                let c = self.beside(&t)?;
                self.push(Op::Select {}, &[condition, a, c])?;
            }
            OpKind::Neg => drop(self.push(Op::Neg {}, &[a])?),
            kind if let Some(f) = Function::of(kind) => {
                let argument = match f.argument() {
                    Argument::Any => a,
                    Argument::Bounded => self.push(Op::Tanh {}, &[a])?,
                    Argument::Positive => self.positive(a)?,
                };
                self.push(Op::from_attrs(kind, &[])?, &[argument])?;
            }
            OpKind::Cast => {
                let to = [F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2];
                let dtype = *self.random.pick(&to).unwrap_or(&F32);
                self.push(Op::Cast { dtype }, &[a])?;
            }
            OpKind::ReduceSum => drop(self.push(Op::ReduceSum { axis: axis as i64 }, &[a])?),
            OpKind::ReduceMean => drop(self.push(Op::ReduceMean { axis: axis as i64 }, &[a])?),
            OpKind::ReduceMax => drop(self.push(Op::ReduceMax { axis: axis as i64 }, &[a])?),
            OpKind::Softmax => drop(self.push(Op::Softmax {}, &[a])?),
            OpKind::RmsNorm | OpKind::AddRmsNorm => self.norm(kind)?,
            OpKind::Quantise => {
                let (x, t) = self.matrix()?;
                self.quantised(x, &t, true)?;
            }
            OpKind::RmsNormQuantise | OpKind::AddRmsNormQuantise => self.norm_quantised(kind)?,
            OpKind::ScaledMatmul => self.scaled_matmul()?,
            OpKind::Reshape => self.reshape(a, &t)?,
            OpKind::Transpose => {
                let mut permutation: Vec<i64> = (0..t.rank() as i64).collect();
                permutation.swap(axis, last);
                self.push(Op::Transpose { permutation }, &[a])?;
            }
            OpKind::Slice => {
                let size = t.shape[axis].constant().unwrap_or(0) as i64;
                if size > 0 {
                    let start = self.random.below(size as u64) as i64;
                    let end = start + 1 + self.random.below((size - start) as u64) as i64;
                    self.push(Op::Slice { axis: axis as i64, start, end }, &[a])?;
                }
            }
            OpKind::Concat if t.shape[axis].constant().is_some() => {
                let other = self.value(t.dtype, t.shape.clone())?;
                self.push(Op::Concat { axis: axis as i64 }, &[a, other])?;
            }
            OpKind::Broadcast => {
                let mut shape = vec![Dim::Const(2)];
                shape.extend(t.shape.iter().map(|d| if *d == Dim::Const(1) { Dim::Const(3) } else { d.clone() }));
                self.push(Op::Broadcast { shape }, &[a])?;
            }
            OpKind::Matmul | OpKind::MatmulAdd | OpKind::MatmulSiluMul => self.contraction(kind)?,
            OpKind::SiluMul => {
                let (gate, t) = self.matrix()?;
                let up = self.value(t.dtype, t.shape)?;
                let dtype = self.result();
                self.push(Op::SiluMul { dtype }, &[gate, up])?;
            }
            OpKind::Gather => {
                let (rows, width, dtype) = (5 + self.random.below(5), self.width(), self.compute());
                let (stored, blocks) = self.matrix_dtype();
                let width = width.next_multiple_of(blocks);
                let table = self.stored(stored, vec![rows.into(), width.into()])?;
                let indices = self.leaf(&TensorType::new(DType::I32, vec![Dim::sym("T")]))?;
                self.push(Op::Gather { dtype }, &[table, indices])?;
            }
            OpKind::Rope => {
                let (x, positions, table) = (self.heads(2)?, self.positions()?, self.rope_table()?);
                let interleaved = self.random.one_in(2);
                self.push(Op::Rope { interleaved }, &[x, positions, table])?;
            }
            OpKind::CacheWrite | OpKind::RopeCacheWrite | OpKind::Attention => self.paged(kind)?,
            OpKind::IndexScores | OpKind::SparseAttention => self.sparse(kind)?,
            OpKind::Topk => {
                let (k, positions) = (self.top(), self.positions()?);
                let scores = self.value(F32, vec![Dim::sym("T"), COLUMNS.into()])?;
                self.push(Op::Topk { k }, &[scores, positions])?;
            }
            OpKind::Window => {
                let (k, positions) = (self.top(), self.positions()?);
                self.push(Op::Window { k }, &[positions])?;
            }
            // Collectives: a graph of one rank has none; sharded graphs are made from graphs without.
            _ => {}
        }
        Ok(())
    }

    fn binary(&mut self, op: Op, a: Value, t: &TensorType) -> Result<(), Stop> {
        let b = self.beside(t)?;
        self.push(op, &[a, b]).map(drop)
    }

    fn norm(&mut self, kind: OpKind) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let w = self.value(F32, t.shape[1..].to_vec())?;
        let (eps, dtype) = (Real(1e-5), self.result());
        if kind == OpKind::RmsNorm {
            return self.push(Op::RmsNorm { eps, dtype }, &[x, w]).map(drop);
        }
        let residual = self.value(t.dtype, t.shape.clone())?;
        self.push(Op::AddRmsNorm { eps, dtype }, &[x, residual, w]).map(drop)
    }

    fn reshape(&mut self, a: Value, t: &TensorType) -> Result<(), Stop> {
        let mut shape = t.shape.clone();
        match shape.last().and_then(Dim::constant) {
            Some(n) if n % 8 == 0 && n > 0 => {
                shape.pop();
                shape.extend([Dim::Const(n / 8), Dim::Const(8)]);
            }
            _ => shape.push(Dim::Const(1)),
        }
        self.push(Op::Reshape { shape }, &[a]).map(drop)
    }

    fn contraction(&mut self, kind: OpKind) -> Result<(), Stop> {
        let ((stored, blocks), features) = (self.matrix_dtype(), self.width());
        let (x, t) = self.matrix_of(blocks)?;
        let quantised = self.random.one_in(3);
        let x = if quantised { self.push(Op::Cast { dtype: DType::Q8A }, &[x])? } else { x };
        let weight_shape = vec![features.into(), t.shape[1].clone()];
        // A gated unit's weights are packed together, which is done ahead of time.
        let gated = kind == OpKind::MatmulSiluMul;
        let w = if gated {
            self.static_value(stored, weight_shape.clone())?
        } else {
            self.stored(stored, weight_shape.clone())?
        };
        let dtype = self.result();
        match kind {
            OpKind::MatmulAdd => {
                let addend_dtype = self.compute();
                let addend = self.value(addend_dtype, vec![features.into()])?;
                self.push(Op::MatmulAdd { dtype }, &[x, w, addend]).map(drop)
            }
            OpKind::MatmulSiluMul => {
                let up = self.static_value(stored, weight_shape)?;
                self.push(Op::MatmulSiluMul { dtype }, &[x, w, up]).map(drop)
            }
            _ => self.push(Op::Matmul { dtype }, &[x, w]).map(drop),
        }
    }

    /// Codes and scales of a matrix, in groups of all of a row, or fewer; of FP8 or, where wanted, FP4.
    pub(super) fn quantised(&mut self, x: Value, t: &TensorType, fp4: bool) -> Result<[Value; 2], Stop> {
        let (dtype, group) = self.format(t, fp4);
        let codes = self.push(Op::Quantise { dtype, group }, &[x])?;
        Ok([codes, Value { result: 1, ..codes }])
    }

    fn norm_quantised(&mut self, kind: OpKind) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let w = self.value(F32, t.shape[1..].to_vec())?;
        let (eps, dtype, (format, group)) = (Real(1e-5), self.compute(), self.format(&t, true));
        if kind == OpKind::RmsNormQuantise {
            return self.push(Op::RmsNormQuantise { eps, dtype, format, group }, &[x, w]).map(drop);
        }
        let residual = self.value(t.dtype, t.shape.clone())?;
        self.push(Op::AddRmsNormQuantise { eps, dtype, format, group }, &[x, residual, w]).map(drop)
    }

    /// A format of codes of a matrix, and a divisor of its rows.
    fn format(&mut self, t: &TensorType, fp4: bool) -> (DType, i64) {
        let last = t.last_constant().unwrap_or(1);
        let divisors: Vec<u64> = [last, 64, 32, 16, 8, 1].into_iter().filter(|g| last.is_multiple_of(*g)).collect();
        let group = *self.random.pick(&divisors).unwrap_or(&last) as i64;
        let dtype = *self.random.pick(&[DType::F8E4M3, DType::F8E4M3, DType::F8E4M3Fnuz]).unwrap_or(&DType::F8E4M3);
        (if fp4 && group == 32 && self.random.one_in(2) { DType::F4E2M1 } else { dtype }, group)
    }

    fn scaled_matmul(&mut self) -> Result<(), Stop> {
        let (x, t) = self.matrix()?;
        let [codes, scales] = self.quantised(x, &t, false)?;
        let (n, k) = (self.width(), t.last_constant().unwrap_or(1));
        let group = k / self.graph.type_of(scales).last_constant().unwrap_or(1);
        let rows = *self.random.pick(&[1, n, 16.min(n), 32.min(n)]).unwrap_or(&1);
        let columns = *self.random.pick(&[k, group]).unwrap_or(&k);
        let stored = self.graph.type_of(codes).dtype;
        let w = self.static_value(stored, vec![n.into(), k.into()])?;
        let w_scales = self.static_value(F32, vec![n.div_ceil(rows).into(), (k / columns).into()])?;
        let (rows, columns, dtype) = (rows as i64, columns as i64, self.compute());
        self.push(Op::ScaledMatmul { rows, columns, dtype }, &[codes, scales, w, w_scales]).map(drop)
    }

    pub(super) fn heads(&mut self, heads: u64) -> Built {
        let dtype = self.compute();
        self.value(dtype, vec![Dim::sym("T"), heads.into(), HEAD.into()])
    }

    fn positions(&mut self) -> Built {
        self.named("positions", DType::I32, vec![Dim::sym("T")])
    }

    /// positions, sequence ids, block tables.
    pub(super) fn pages(&mut self) -> Result<[Value; 3], Stop> {
        Ok([
            self.positions()?,
            self.named("sequence_ids", DType::I32, vec![Dim::sym("T")])?,
            self.named("block_tables", DType::I32, vec![Dim::sym("B"), Dim::sym("P")])?,
        ])
    }

    pub(super) fn rope_table(&mut self) -> Built {
        let factor = Real(if self.random.one_in(2) { 1.0 } else { 8.0 });
        let (low, high) = (Real(1.0), Real(4.0));
        let op = Op::RopeTable {
            positions: POSITIONS,
            dim: HEAD as i64 / 2,
            theta: Real(1e4),
            factor,
            low,
            high,
            original: 16,
        };
        let factors =
            if self.random.one_in(3) { vec![self.static_value(F32, vec![(HEAD / 4).into()])?] } else { Vec::new() };
        // Divisors, so never zero.
        let factors = factors.into_iter().map(|f| self.positive(f)).collect::<Result<Vec<_>, _>>()?;
        self.push(op, &factors)
    }

    /// A new state; not in the pool, so that only cache ops read it.
    fn state(&mut self, transposed: bool) -> Result<usize, Stop> {
        self.cache(2, transposed)
    }

    fn cache(&mut self, heads: u64, transposed: bool) -> Result<usize, Stop> {
        let (rows, columns) = if transposed { (HEAD, SLOTS) } else { (SLOTS, HEAD) };
        self.state_of(F32, [heads, rows, columns])
    }

    /// A new state of blocks of these dims.
    pub(super) fn state_of(&mut self, dtype: DType, block: [u64; 3]) -> Result<usize, Stop> {
        let name = format!("state{}", self.states.len());
        let shape = [Dim::sym("N")].into_iter().chain(block.map(Dim::Const)).collect();
        let op = Op::State { name: name.as_str().into(), dtype, shape };
        let node = self.graph.add(op, &[], BTreeSet::from([name.as_str().into()]))?;
        self.states.push((name, Value { node, result: 0 }));
        Ok(self.states.len() - 1)
    }

    pub(super) fn write(&mut self, state: usize, op: Op, operands: &[Value]) -> Built {
        self.check(&op, operands)?;
        let source = BTreeSet::from([format!("{}.write", self.states[state].0).as_str().into()]);
        let node = self.graph.add(op, operands, source)?;
        self.states[state].1 = Value { node, result: 0 };
        self.versions.push(self.states[state].1);
        Ok(self.states[state].1)
    }

    fn paged(&mut self, kind: OpKind) -> Result<(), Stop> {
        let [positions, ids, tables] = self.pages()?;
        let k = self.state(true)?;
        let (x, interleaved) = (self.heads(2)?, self.random.one_in(2));
        let old = self.states[k].1;
        if kind == OpKind::CacheWrite {
            return self.write(k, Op::CacheWrite { transposed: true }, &[old, x, positions, ids, tables]).map(drop);
        }
        let table = self.rope_table()?;
        let operands = [old, x, positions, table, ids, tables];
        let k = self.write(k, Op::RopeCacheWrite { interleaved, transposed: true }, &operands)?;
        if kind == OpKind::Attention {
            let v = self.state(false)?;
            let (x, old) = (self.heads(2)?, self.states[v].1);
            let v = self.write(v, Op::CacheWrite { transposed: false }, &[old, x, positions, ids, tables])?;
            let (q, dtype) = (self.heads(4)?, self.compute());
            let window = self.random.pick(&[0, 0, 1, 3, 20]).copied().unwrap_or(0);
            self.push(Op::Attention { scale: Real(0.25), dtype, window }, &[q, k, v, positions, ids, tables])?;
        }
        Ok(())
    }

    /// How many positions a row of indices holds: fewer than a window may, or more; now and then all that there are.
    fn top(&mut self) -> i64 {
        if self.random.one_in(4) { COLUMNS as i64 } else { 1 + self.random.below(6) as i64 }
    }

    /// An indexer over keys of its own, or attention over the positions that it, or a constant row, picks.
    fn sparse(&mut self, kind: OpKind) -> Result<(), Stop> {
        let [positions, ids, tables] = self.pages()?;
        if kind == OpKind::IndexScores {
            let keys = self.cache(1, true)?;
            let (x, old) = (self.heads(1)?, self.states[keys].1);
            let operands = [old, x, positions, ids, tables];
            let keys = self.write(keys, Op::CacheWrite { transposed: true }, &operands)?;
            let (q, dtype) = (self.heads(4)?, self.compute());
            let weights = self.value(dtype, vec![Dim::sym("T"), 4.into()])?;
            let op = Op::IndexScores { columns: vec![COLUMNS.into()], skip: self.random.below(4) as i64 };
            let scores = self.push(op, &[q, weights, keys, positions, ids, tables])?;
            let k = self.top();
            return self.push(Op::Topk { k }, &[scores, positions]).map(drop);
        }
        let k = self.top();
        let wide = |t: &TensorType| t.dtype == DType::I32 && t.rank() == 2 && t.shape[0] == Dim::sym("T");
        let rows: Vec<Value> = self.pool.iter().copied().filter(|v| wide(self.graph.type_of(*v))).collect();
        let indices = match self.random.pick(&rows).copied() {
            Some(rows) if !self.random.one_in(3) => rows,
            _ if self.random.one_in(2) => {
                let scores = self.value(F32, vec![Dim::sym("T"), COLUMNS.into()])?;
                self.push(Op::Topk { k }, &[scores, positions])?
            }
            _ => {
                let row = self.push(Op::Iota { size: k }, &[])?;
                self.push(Op::Broadcast { shape: vec![Dim::sym("T"), (k as u64).into()] }, &[row])?
            }
        };
        let mut caches = Vec::new();
        for transposed in [true, false] {
            let state = self.cache(2, transposed)?;
            let (x, old) = (self.heads(2)?, self.states[state].1);
            caches.push(self.write(state, Op::CacheWrite { transposed }, &[old, x, positions, ids, tables])?);
        }
        let (q, dtype) = (self.heads(4)?, self.compute());
        let op = Op::SparseAttention { scale: Real(0.25), dtype };
        self.push(op, &[q, caches[0], caches[1], indices, positions, ids, tables]).map(drop)
    }

    fn finish(mut self) -> Result<Graph, IrError> {
        let read: BTreeSet<Value> = self.graph.ids().flat_map(|id| self.graph.node(id).operands.clone()).collect();
        // A leaf may be handed through, though not one of a form that nothing computes.
        let result =
            |v: &Value| !self.graph.node(v.node).operands.is_empty() || self.graph.type_of(*v).dtype.is_compute_float();
        let unread = self.pool.iter().copied().filter(|v| !read.contains(v));
        let mut results: Vec<Value> = unread.filter(result).collect();
        if results.is_empty() && self.states.is_empty() {
            // A leaf is always wanted.
            results.extend(self.matrix().ok().map(|(v, _)| v));
        }
        for (i, value) in results.into_iter().enumerate() {
            self.graph.output(&format!("y{i}"), OutputKind::Result, value);
        }
        for (name, value) in &self.states {
            self.graph.output(name, OutputKind::State, *value);
        }
        Ok(self.graph)
    }
}
