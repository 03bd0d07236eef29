//! Ops of several ranks against results worked out by hand, and their laws.

use super::{close, numbers};
use crate::graph::{Graph, OutputKind, Value};
use crate::interpret::{Binding, Bindings, Domain, F64, Options, Ring, Tensor, interpret, interpret_ranks};
use crate::op::Op;
use crate::types::TensorType;
use crate::{DType, IrError, Real};
use std::collections::BTreeMap;

const F32: DType = DType::F32;
const BF16: DType = DType::BF16;

/// An operand: dtype, shape, elements of each rank, or of all.
type Operand = (DType, &'static [u64], Vec<Vec<f64>>);

pub(super) struct Case {
    pub op: Op,
    operands: Vec<Operand>,
    /// By rank, then by result.
    expected: Vec<Vec<Vec<f64>>>,
}

fn run<D: Domain>(case: &Case) -> Result<Vec<Vec<Tensor<D::Value>>>, IrError> {
    let mut graph = Graph::new("ranks");
    let mut bindings = Bindings::new();
    let mut values = Vec::new();
    for (i, (dtype, shape, ranks)) in case.operands.iter().enumerate() {
        let name = format!("x{i}");
        let dims = TensorType::fixed(*dtype, shape).shape;
        values.push(graph.push(&name, Op::input(&name, *dtype, dims), &[])?);
        let sizes: Vec<usize> = shape.iter().map(|n| *n as usize).collect();
        let binding = |elements: &[f64]| match dtype.is_float() {
            true => Binding::f64(&sizes, elements.to_vec()),
            false => Binding::ints(&sizes, elements.iter().map(|x| *x as i64).collect()),
        };
        match ranks.as_slice() {
            [all] => bindings.insert(&name, binding(all)),
            each => each.iter().enumerate().for_each(|(r, e)| bindings.insert_on_rank(&name, r, binding(e))),
        }
    }
    let node = graph.add(case.op.clone(), &values, ["op".into()].into())?;
    for result in 0..graph.node(node).types.len() as u32 {
        graph.output(&format!("y{result}"), OutputKind::Result, Value { node, result });
    }
    let ranks = interpret_ranks::<D>(&graph, &BTreeMap::new(), &bindings, &Options::default())?;
    Ok(ranks.into_iter().map(|outputs| outputs.into_values().collect()).collect())
}

/// One result a rank.
fn each(ranks: &[&[f64]]) -> Vec<Vec<Vec<f64>>> {
    ranks.iter().map(|r| vec![r.to_vec()]).collect()
}

pub(super) fn all_cases() -> Vec<Case> {
    let x: Operand = (F32, &[2, 4], vec![vec![0., 1., 2., 3., 10., 11., 12., 13.]]);
    let eps = Real(0.0);
    // Three values whose sum depends on where it is rounded: 256 + 1 + 1 is 258, in bf16 256 + 1 is 256.
    let thirds: Operand = (BF16, &[1, 1], vec![vec![256.], vec![1.], vec![1.]]);
    let halves: Operand = (F32, &[2, 2], vec![vec![0.5, 0., 1., 3.], vec![0.5, -1., 1., -1.]]);
    let w: Operand = (F32, &[2], vec![vec![10., 3.]]);
    vec![
        Case {
            op: Op::Shard { axis: 0, parts: 2, replicas: 1 },
            operands: vec![x.clone()],
            expected: each(&[&[0., 1., 2., 3.], &[10., 11., 12., 13.]]),
        },
        Case {
            op: Op::Shard { axis: 1, parts: 2, replicas: 2 },
            operands: vec![x.clone()],
            expected: each(&[&[0., 1., 10., 11.], &[0., 1., 10., 11.], &[2., 3., 12., 13.], &[2., 3., 12., 13.]]),
        },
        Case {
            op: Op::GatherPart { world: 2, dtype: F32 },
            operands: vec![
                (F32, &[2, 1], vec![vec![5., 6.], vec![7., 8.]]),
                (DType::I32, &[3], vec![vec![3., 0., 1.]]),
            ],
            expected: each(&[&[0., 5., 6.], &[8., 0., 0.]]),
        },
        Case {
            op: Op::AllReduce { world: 3 },
            operands: vec![thirds.clone()],
            expected: each(&[&[258.], &[258.], &[258.]]),
        },
        Case {
            op: Op::AllReduce { world: 2 },
            operands: vec![x.clone()],
            expected: each(&[&[0., 2., 4., 6., 20., 22., 24., 26.][..]; 2]),
        },
        Case {
            op: Op::AllGather { axis: 1, world: 2 },
            operands: vec![halves.clone()],
            expected: each(&[&[0.5, 0., 0.5, -1., 1., 3., 1., -1.][..]; 2]),
        },
        Case {
            op: Op::ReduceScatter { axis: 0, world: 2 },
            operands: vec![halves.clone()],
            expected: each(&[&[1., -1.], &[2., 2.]]),
        },
        Case {
            op: Op::AllReduceRmsNorm { world: 2, eps, dtype: F32 },
            operands: vec![halves, w.clone()],
            expected: vec![vec![vec![10., -3., 10., 3.], vec![1., -1., 2., 2.]]; 2],
        },
        Case {
            op: Op::AllReduceAddRmsNorm { world: 2, eps, dtype: F32 },
            operands: vec![
                (F32, &[1, 2], vec![vec![0.25, 3.], vec![0.25, 1.]]),
                (F32, &[1, 2], vec![vec![0.5, -5.], vec![1.5, -6.]]),
                w,
            ],
            expected: vec![vec![vec![10., -3.], vec![1., -1.]], vec![vec![10., -3.], vec![2., -2.]]],
        },
        // The rounded sums of the rows are 1, -1; the norm is the weight, in codes of x / scale.
        Case {
            op: Op::AllReduceRmsNormQuantise { world: 2, eps, dtype: F32, format: DType::F8E4M3, group: 2 },
            operands: vec![(F32, &[1, 2], vec![vec![0.25, 3.], vec![0.75, -4.]]), (F32, &[2], vec![vec![896., 34.]])],
            expected: vec![vec![vec![448., -16.], vec![2.], vec![896., -34.], vec![1., -1.]]; 2],
        },
        Case {
            op: Op::AllReduceAddRmsNormQuantise { world: 2, eps, dtype: F32, format: DType::F8E4M3, group: 1 },
            operands: vec![
                (F32, &[1, 2], vec![vec![0.25, 3.], vec![0.25, 1.]]),
                (F32, &[1, 2], vec![vec![0.5, -5.]]),
                (F32, &[2], vec![vec![448., 896.]]),
            ],
            expected: vec![vec![vec![448., -448.], vec![1., 2.], vec![448., -896.], vec![1., -1.]]; 2],
        },
        // One rounding: 256 + 1 + 1, then the residual 1: 259 lies between 258 and 260 and ties to 260.
        Case {
            op: Op::AllReduceAddRmsNorm { world: 3, eps, dtype: BF16 },
            operands: vec![thirds, (BF16, &[1, 1], vec![vec![1.]]), (BF16, &[1], vec![vec![1.]])],
            expected: vec![vec![vec![1.], vec![260.]]; 3],
        },
    ]
}

#[test]
fn every_collective_gives_each_rank_the_result_worked_out_by_hand() {
    for case in all_cases() {
        let ranks = run::<F64>(&case).unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
        assert_eq!(ranks.len(), case.expected.len(), "{:?}", case.op);
        for (rank, (results, expected)) in ranks.iter().zip(&case.expected).enumerate() {
            let found: Vec<Vec<f64>> = results.iter().map(numbers).collect();
            assert_eq!(found.len(), expected.len(), "{:?}", case.op);
            let same = found.iter().zip(expected).all(|(f, e)| close(f, e));
            assert!(same, "{:?} on rank {rank}: found {found:?}, expected {expected:?}", case.op);
        }
    }
}

#[test]
fn every_collective_runs_in_the_ring() {
    for case in all_cases() {
        let ranks = run::<Ring>(&case).unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
        let again = run::<Ring>(&case).unwrap();
        for ((results, again), expected) in ranks.iter().zip(&again).zip(&case.expected) {
            for ((t, again), expected) in results.iter().zip(again).zip(expected) {
                assert_eq!((t.len(), t.as_values()), (expected.len(), again.as_values()), "{:?}", case.op);
            }
        }
    }
}

/// `interpret` gives rank 0's outputs, and a name that is bound on one rank only is missing on the others.
#[test]
fn rank_zero_answers_and_a_missing_rank_is_named() {
    let mut graph = Graph::new("g");
    let shape = TensorType::fixed(F32, &[2]).shape;
    let x = graph.push("x", Op::input("x", F32, shape), &[]).unwrap();
    let sum = graph.push("sum", Op::AllReduce { world: 2 }, &[x]).unwrap();
    let mine = graph.push("mine", Op::Shard { axis: 0, parts: 2, replicas: 1 }, &[sum]).unwrap();
    graph.output("y", OutputKind::Result, mine);
    let mut bindings = Bindings::new();
    bindings.insert_on_rank("x", 1, Binding::f64(&[2], vec![1., 2.]));
    let run = |b: &Bindings| interpret::<F64>(&graph, &BTreeMap::new(), b, &Options::default());
    assert_eq!(run(&bindings).unwrap_err().to_string(), "x: input: `x` is not bound on rank 0");
    bindings.insert("x", Binding::f64(&[2], vec![10., 20.]));
    assert_eq!(run(&bindings).unwrap()["y"].as_values(), Some(&[11.][..]));
}

#[test]
fn one_graph_names_one_number_of_ranks() {
    let mut graph = Graph::new("g");
    let shape = TensorType::fixed(F32, &[4]).shape;
    let x = graph.push("x", Op::input("x", F32, shape), &[]).unwrap();
    let sum = graph.push("a", Op::AllReduce { world: 2 }, &[x]).unwrap();
    let part = graph.push("b", Op::Shard { axis: 0, parts: 2, replicas: 2 }, &[sum]).unwrap();
    graph.output("y", OutputKind::Result, part);
    let errors: Vec<String> = crate::verify::verify_all(&graph).iter().map(ToString::to_string).collect();
    assert_eq!(errors, ["b: shard: is for 4 ranks; 2 are expected, as of a"]);
}
