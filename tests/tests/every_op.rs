//! Every op of the table by itself, on dtypes and on constant and symbolic dims as they come: what verifies has kernels on every
//! target, and on the host computes what the interpreter does.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use weldment_codegen::setup::Setup;
use weldment_codegen::target::Target;
use weldment_ir::generate::Random;
use weldment_ir::{Category, DType, Dim, Graph, Op, OpKind, OutputKind, Real, Shape, TensorType, Value, verify};
use weldment_tests::fuzz::batch::{self, Outcome};
use weldment_tests::fuzz::case::{Case, machine};

/// Graphs of each op.
const TRIES: u64 = 40;
/// Draws for them, of which most do not verify.
const DRAWS: u64 = 4000;

struct Draw {
    random: Random,
}

impl Draw {
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        self.random.pick(of).cloned().expect("something to pick")
    }

    fn dim(&mut self) -> Dim {
        let dims = [1, 2, 3, 7, 8, 32, 33, 64, 256].map(Dim::Const);
        if self.random.one_in(3) { Dim::sym(self.pick(&["T", "B", "P"])) } else { self.pick(&dims) }
    }

    /// Up to three dims, small but for the last.
    fn shape(&mut self, least: u64) -> Shape {
        let rank = least + self.random.below(4 - least);
        let mut shape: Shape = (0..rank).map(|_| self.dim()).collect();
        for dim in shape.iter_mut().rev().skip(1) {
            if dim.constant().is_some_and(|n| n > 8) {
                *dim = Dim::Const(3);
            }
        }
        shape
    }

    /// What broadcasts to `shape`.
    fn part(&mut self, shape: &[Dim]) -> Shape {
        let skip = self.random.below(shape.len() as u64 + 1) as usize;
        let own = shape[skip..].iter();
        own.map(|d| if self.random.one_in(3) { Dim::Const(1) } else { d.clone() }).collect()
    }

    fn any(&mut self) -> DType {
        self.pick(DType::ALL)
    }

    fn float(&mut self) -> DType {
        self.pick(&[DType::F32, DType::F32, DType::F16, DType::BF16])
    }

    fn result(&mut self) -> DType {
        if self.random.one_in(4) { DType::Q8A } else { self.float() }
    }

    fn axis(&mut self, rank: usize) -> i64 {
        self.random.below(rank as u64) as i64
    }

    /// An op and its operands. The table decides whether they fit.
    fn op(&mut self, kind: OpKind) -> Option<(Op, Vec<TensorType>)> {
        let t = |dtype: DType, shape: &[Dim]| TensorType::new(dtype, shape.to_vec());
        let shape = self.shape(0);
        let rank = shape.len();
        let last = |shape: &Shape| shape.last().cloned();
        Some(match kind {
            OpKind::Select => {
                let (dtype, b, c) = (self.any(), self.part(&shape), self.part(&shape));
                (Op::Select {}, vec![t(DType::Bool, &b), t(dtype, &shape), t(dtype, &c)])
            }
            // Arithmetic: of floats where it takes one operand.
            kind if kind.info().category == Category::Elementwise && kind.info().attrs.is_empty() => {
                let operands = match kind.info().operands.len() {
                    1 => vec![t(self.float(), &shape)],
                    _ => {
                        let (dtype, other) = (self.any(), self.part(&shape));
                        vec![t(dtype, &shape), t(dtype, &other)]
                    }
                };
                (Op::from_attrs(kind, &[]).ok()?, operands)
            }
            OpKind::Softmax => (Op::Softmax {}, vec![t(self.float(), &shape)]),
            OpKind::Cast => (Op::Cast { dtype: self.any() }, vec![t(self.any(), &shape)]),
            OpKind::ReduceSum | OpKind::ReduceMean | OpKind::ReduceMax if rank > 0 => {
                let axis = self.axis(rank);
                let op = match kind {
                    OpKind::ReduceSum => Op::ReduceSum { axis },
                    OpKind::ReduceMean => Op::ReduceMean { axis },
                    _ => Op::ReduceMax { axis },
                };
                (op, vec![t(self.float(), &shape)])
            }
            OpKind::RmsNorm | OpKind::AddRmsNorm | OpKind::RmsNormQuantise | OpKind::AddRmsNormQuantise if rank > 0 => {
                let (eps, x, w) = (Real(1e-5), t(self.float(), &shape), t(self.float(), &shape[rank - 1..]));
                let (format, group) = self.format(&shape);
                let residual = matches!(kind, OpKind::AddRmsNorm | OpKind::AddRmsNormQuantise);
                let op = match kind {
                    OpKind::RmsNorm => Op::RmsNorm { eps, dtype: self.result() },
                    OpKind::AddRmsNorm => Op::AddRmsNorm { eps, dtype: self.result() },
                    OpKind::RmsNormQuantise => Op::RmsNormQuantise { eps, dtype: self.float(), format, group },
                    _ => Op::AddRmsNormQuantise { eps, dtype: self.float(), format, group },
                };
                (op, if residual { vec![x.clone(), x, w] } else { vec![x, w] })
            }
            OpKind::Quantise if rank > 0 => {
                let (dtype, group) = self.format(&shape);
                (Op::Quantise { dtype, group }, vec![t(self.float(), &shape)])
            }
            OpKind::Reshape => {
                let mut to = shape.clone();
                for i in (1..to.len()).rev() {
                    to.swap(i, self.random.below(i as u64 + 1) as usize);
                }
                if self.random.one_in(3) {
                    to.insert(self.random.below(rank as u64 + 1) as usize, Dim::Const(1));
                }
                (Op::Reshape { shape: to }, vec![t(self.any(), &shape)])
            }
            OpKind::Transpose => {
                let mut permutation: Vec<i64> = (0..rank as i64).collect();
                for i in (1..rank).rev() {
                    permutation.swap(i, self.random.below(i as u64 + 1) as usize);
                }
                (Op::Transpose { permutation }, vec![t(self.any(), &shape)])
            }
            OpKind::Slice if rank > 0 => {
                let axis = self.axis(rank);
                let size = shape[axis as usize].constant()? as i64;
                let start = self.random.below(size as u64) as i64;
                (Op::Slice { axis, start, end: size }, vec![t(self.any(), &shape)])
            }
            OpKind::Concat if rank > 0 => {
                let x = t(self.any(), &shape);
                (Op::Concat { axis: self.axis(rank) }, vec![x.clone(), x])
            }
            OpKind::Broadcast => {
                let from = self.part(&shape);
                (Op::Broadcast { shape: shape.clone() }, vec![t(self.any(), &from)])
            }
            OpKind::Matmul | OpKind::MatmulAdd | OpKind::MatmulSiluMul if rank > 0 => {
                let (k, n, dtype) = (last(&shape)?, self.dim(), self.result());
                let x = t(if self.random.one_in(5) { DType::Q8A } else { self.float() }, &shape);
                let w = t(self.any(), &[n.clone(), k]);
                let out: Shape = shape[..rank - 1].iter().cloned().chain([n]).collect();
                match kind {
                    OpKind::Matmul => (Op::Matmul { dtype }, vec![x, w]),
                    OpKind::MatmulAdd => {
                        let addend = self.part(&out);
                        (Op::MatmulAdd { dtype }, vec![x, w, t(self.float(), &addend)])
                    }
                    _ => (Op::MatmulSiluMul { dtype }, vec![x, w.clone(), w]),
                }
            }
            OpKind::ScaledMatmul if rank > 0 => {
                let (k, n) = (shape[rank - 1].constant()?, 1 + self.random.below(40));
                let (groups, columns) = (self.pick(&[1, k, 2]), self.pick(&[k, 8, 1]));
                let rows = self.pick(&[1, n, 5, 16]);
                let codes = [DType::F8E4M3, DType::F8E4M3Fnuz];
                let scales: Shape = shape[..rank - 1].iter().cloned().chain([groups.into()]).collect();
                let op = Op::ScaledMatmul { rows: rows as i64, columns: columns as i64, dtype: self.float() };
                let w_scales = TensorType::fixed(DType::F32, &[n.div_ceil(rows), k / columns]);
                let w = TensorType::fixed(self.pick(&codes), &[n, k]);
                (op, vec![t(self.pick(&codes), &shape), t(DType::F32, &scales), w, w_scales])
            }
            OpKind::SiluMul => {
                let x = t(self.float(), &shape);
                (Op::SiluMul { dtype: self.result() }, vec![x.clone(), x])
            }
            OpKind::Gather | OpKind::GatherPart => {
                let table = t(self.any(), &[self.dim(), self.dim()]);
                let dtype = self.float();
                let op = if kind == OpKind::Gather { Op::Gather { dtype } } else { Op::GatherPart { world: 2, dtype } };
                (op, vec![table, t(DType::I32, &shape)])
            }
            OpKind::Rope
            | OpKind::CacheWrite
            | OpKind::RopeCacheWrite
            | OpKind::Attention
            | OpKind::SparseAttention
            | OpKind::IndexScores => return self.paged(kind),
            OpKind::Topk => {
                let columns = self.pick(&[Dim::Const(9), Dim::sym("P")]);
                let scores = t(DType::F32, &[Dim::sym("T"), columns]);
                (Op::Topk { k: 1 + self.random.below(5) as i64 }, vec![scores, t(DType::I32, &[Dim::sym("T")])])
            }
            OpKind::Window => (Op::Window { k: 1 + self.random.below(9) as i64 }, vec![t(DType::I32, &[self.dim()])]),
            OpKind::RopeTable => {
                let (low, high) = (Real(1.0), Real(4.0));
                let factor = Real(self.pick(&[1.0, 8.0]));
                let dim = self.pick(&[2, 6, 16]);
                let op = Op::RopeTable { positions: 40, dim, theta: Real(1e4), factor, low, high, original: 16 };
                (op, vec![TensorType::fixed(DType::F32, &[dim as u64 / 2])])
            }
            OpKind::Shard if rank > 0 => {
                let op = Op::Shard { axis: self.axis(rank), parts: 2, replicas: 1 };
                (op, vec![t(self.any(), &shape)])
            }
            OpKind::AllReduce => (Op::AllReduce { world: 2 }, vec![t(self.float(), &shape)]),
            OpKind::AllGather if rank > 0 => {
                (Op::AllGather { axis: self.axis(rank), world: 2 }, vec![t(self.any(), &shape)])
            }
            OpKind::ReduceScatter if rank > 0 => {
                (Op::ReduceScatter { axis: self.axis(rank), world: 2 }, vec![t(self.float(), &shape)])
            }
            OpKind::AllReduceRmsNorm | OpKind::AllReduceAddRmsNorm if rank > 0 => {
                // Rows of a symbol's width are no hidden states.
                shape[rank - 1].constant()?;
                let (world, eps, dtype) = (2, Real(1e-5), self.float());
                let (x, w) = (t(self.float(), &shape), t(self.float(), &shape[rank - 1..]));
                match kind {
                    OpKind::AllReduceRmsNorm => (Op::AllReduceRmsNorm { world, eps, dtype }, vec![x, w]),
                    _ => (Op::AllReduceAddRmsNorm { world, eps, dtype }, vec![x.clone(), x, w]),
                }
            }
            _ => return None,
        })
    }

    fn format(&mut self, shape: &[Dim]) -> (DType, i64) {
        let n = shape.last().and_then(Dim::constant).unwrap_or(1);
        let dtype = self.pick(&[DType::F8E4M3, DType::F8E4M3Fnuz, DType::F4E2M1]);
        (dtype, self.pick(&[n, 32, 11, 1]) as i64)
    }

    /// Heads and caches of sizes that the fast families may not know.
    fn paged(&mut self, kind: OpKind) -> Option<(Op, Vec<TensorType>)> {
        let tokens = self.pick(&[Dim::sym("T"), Dim::Const(3)]);
        let (heads, depth, slots) = (self.pick(&[1, 2, 3]), self.pick(&[4u64, 8, 20]), self.pick(&[7u64, 8, 24]));
        let (dtype, cached) = (self.float(), self.float());
        let of = |dtype: DType, shape: &[Dim]| TensorType::new(dtype, shape.to_vec());
        let ids = of(DType::I32, std::slice::from_ref(&tokens));
        let tables = of(DType::I32, &[Dim::sym("B"), Dim::sym("P")]);
        let cache = |heads: u64, transposed: bool| {
            let (a, b) = if transposed { (depth, slots) } else { (slots, depth) };
            of(cached, &[Dim::sym("N"), heads.into(), a.into(), b.into()])
        };
        let x = |heads: u64| of(dtype, &[tokens.clone(), heads.into(), depth.into()]);
        let table = TensorType::fixed(DType::F32, &[64, self.pick(&[2, 4])]);
        let (interleaved, transposed) = (self.random.one_in(2), self.random.one_in(2));
        let scale = Real(self.pick(&[0.25, -0.5]));
        Some(match kind {
            OpKind::Rope => {
                let heads = self.dim();
                (Op::Rope { interleaved }, vec![of(dtype, &[tokens, heads, depth.into()]), ids, table])
            }
            OpKind::CacheWrite => {
                (Op::CacheWrite { transposed }, vec![cache(heads, transposed), x(heads), ids.clone(), ids, tables])
            }
            OpKind::RopeCacheWrite => {
                let op = Op::RopeCacheWrite { interleaved, transposed };
                (op, vec![cache(heads, transposed), x(heads), ids.clone(), table, ids, tables])
            }
            OpKind::Attention => {
                let op = Op::Attention { scale, dtype: self.float(), window: self.pick(&[0, 1, 2, 7]) };
                (op, vec![x(2 * heads), cache(heads, true), cache(heads, false), ids.clone(), ids, tables])
            }
            OpKind::SparseAttention => {
                let indices = of(DType::I32, &[ids.shape[0].clone(), self.pick(&[Dim::Const(5), Dim::sym("P")])]);
                let op = Op::SparseAttention { scale, dtype: self.float() };
                (op, vec![x(2 * heads), cache(heads, true), cache(heads, false), indices, ids.clone(), ids, tables])
            }
            _ => {
                let columns = vec![self.pick(&[Dim::Const(6), Dim::sym("P")])];
                let op = Op::IndexScores { columns, skip: self.random.below(3) as i64 };
                let weights = of(self.float(), &[ids.shape[0].clone(), heads.into()]);
                (op, vec![x(heads), weights, cache(1, true), ids.clone(), ids, tables])
            }
        })
    }

    /// A graph of one op that verifies; names of its leaves start with `prefix`.
    fn graph(&mut self, kind: OpKind, prefix: &str) -> Option<Graph> {
        let (op, types) = self.op(kind)?;
        op.infer(&types).ok()?;
        let mut graph = Graph::new(&format!("{prefix}{}", op.kind()));
        for (name, min, max) in [("T", 1, 6), ("B", 1, 3), ("P", 1, 4), ("N", 12, 12)] {
            graph.declare_symbol(name, min, max);
        }
        let mut operands = Vec::new();
        for (i, ty) in types.iter().enumerate() {
            let name = format!("{prefix}in{i}").as_str().into();
            let (dtype, shape) = (ty.dtype, ty.shape.clone());
            let paged = ty.shape.first() == Some(&Dim::sym("N"));
            // Parts of static blocks would be encoded anew, for which not every format has an encoder.
            let part = kind.info().category == Category::View && ty.dtype.is_block();
            let fixed = ty.dtype != DType::Q8A && ty.constant_shape().is_some() && ty.dtype.is_float() && !part;
            let leaf = match (paged, fixed && self.random.one_in(2)) {
                (true, _) => Op::State { name, dtype, shape },
                (_, true) => Op::Weight { name, dtype, shape },
                // Quantised activations are made in the step.
                _ if dtype == DType::Q8A => {
                    let x = graph.push("x", Op::input(&name, DType::F32, shape), &[]).ok()?;
                    operands.push(graph.push("q", Op::Cast { dtype: DType::Q8A }, &[x]).ok()?);
                    continue;
                }
                _ => Op::input(&name, dtype, shape),
            };
            operands.push(graph.push("leaf", leaf, &[]).ok()?);
        }
        let node = graph.push("op", op, &operands).ok()?.node;
        for result in 0..graph.node(node).types.len() as u32 {
            let mut value = Value { node, result };
            if graph.type_of(value).dtype == DType::Q8A {
                value = graph.push("real", Op::Cast { dtype: DType::F32 }, &[value]).ok()?;
            }
            graph.output(&format!("y{result}"), OutputKind::Result, value);
        }
        if graph.node(node).op.kind().info().category == Category::StateWrite {
            graph.clear_outputs();
            graph.output(&format!("{prefix}in0"), OutputKind::State, Value { node, result: 0 });
        }
        // Half bytes along a symbol may end inside a byte, which no buffer of a test holds.
        let halves = |t: &TensorType| t.dtype == DType::F4E2M1 && t.last_constant().is_none();
        let whole = graph.ids().all(|id| !graph.node(id).types.iter().any(halves));
        (whole && verify(&graph).is_ok()).then_some(graph)
    }
}

#[test]
fn every_op_has_kernels_on_every_target_and_computes_what_the_interpreter_does() {
    let start = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let host = machine().expect("a target");
    let gpus =
        ["gfx942", "sm_90a"].map(|name| Setup { target: Target::named(name).expect("a target"), ..host.clone() });
    let (mut faults, mut cases, mut counts) = (Vec::new(), Vec::new(), BTreeMap::new());
    for kind in OpKind::ALL {
        // By name: what is drawn for an op does not depend on what else is in the table.
        let seed = kind.info().name.bytes().fold(start, |k, b| Random::new(k ^ u64::from(b)).bits());
        let mut draw = Draw { random: Random::new(seed) };
        let mut found = 0;
        for seed in 0..DRAWS {
            if found == TRIES {
                break;
            }
            // Cases that run together have weights of their own.
            let index = cases.len() as u64;
            let Some(graph) = draw.graph(*kind, &format!("c{index}.")) else { continue };
            found += 1;
            let case = Case::of(graph, index, 6, seed);
            for target in gpus.iter().chain([&host]) {
                let built = catch_unwind(|| batch::kernels(target, case.clone()));
                if let Err(e) = built.unwrap_or_else(|_| Err("panicked".to_owned())) {
                    faults.push(format!("{}: {e}\n{}", target.target.name(), case.graph));
                }
            }
            if kind.info().category == Category::Collective {
                continue;
            }
            // Some draws of values are undecided, or divide by zero.
            let drawn = (0..20).find_map(|i| case.clone().drawn(seed + 100 * i));
            cases.extend(drawn);
        }
        counts.insert(kind.info().name, found);
    }
    println!("{counts:?}, {} run", cases.len());
    for (i, chunk) in cases.chunks(100).enumerate() {
        let planned = chunk.iter().map(|case| batch::plan(&host, case.clone(), &|graph| graph).expect("a plan"));
        let planned: Vec<_> = planned.collect();
        let (done, invalid) = match batch::run(&host, planned, 1 + i % 2) {
            Ok(done) => done,
            Err(e) => {
                faults.push(format!("cases {}..: {e}", 100 * i));
                continue;
            }
        };
        faults.extend(invalid.iter().map(|e| format!("{e:?}")));
        for (planned, outcome) in done {
            if let Outcome::Differs(message) = outcome {
                faults.push(format!("{message}, {:?}\n{}", planned.case.dims, planned.case.graph));
            }
        }
    }
    // One of each kind, by what the message starts with and the op.
    let mut kinds: BTreeMap<String, (usize, &str)> = BTreeMap::new();
    for fault in &faults {
        let key: String = fault.chars().take(24).filter(|c| !c.is_ascii_digit()).collect();
        let op = fault.split('@').nth(1).and_then(|name| name.split(['.', '"']).nth(2)).unwrap_or_default();
        kinds.entry(format!("{op} {key}")).or_insert((0, fault)).0 += 1;
    }
    let shown: Vec<String> = kinds.values().map(|(n, fault)| format!("{n} like: {fault}")).collect();
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), shown.join("\n"));
    // Leaves have no kernels, and fused collectives with codes follow the plain ones.
    let none: Vec<_> = counts.iter().filter(|(_, n)| **n == 0).map(|(name, _)| *name).collect();
    let known = [
        "input",
        "weight",
        "state",
        "constant",
        "iota",
        "numbers",
        "all_reduce_rms_norm_quantise",
        "all_reduce_add_rms_norm_quantise",
    ];
    assert!(none.iter().all(|name| known.contains(name)), "never drawn: {none:?}");
}
