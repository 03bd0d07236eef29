//! Bad data gives an error that names the node; good data in odd shapes gives results.

use super::{Operand, graph_of, outputs, run};
use crate::error::IrError;
use crate::graph::{Graph, OutputKind};
use crate::interpret::{Binding, Bindings, F64, Options, Ring, interpret, interpret_all};
use crate::op::Op;
use crate::types::Dim;
use crate::{DType, Real};
use std::collections::BTreeMap;

const F32: DType = DType::F32;
const I32: DType = DType::I32;

fn message(op: &Op, operands: &[Operand<'_>]) -> String {
    run::<F64>(op, operands).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn indices_out_of_range_are_errors() {
    let table: Operand<'_> = (F32, &[2, 1], &[1., 2.]);
    let gather = |index: &[f64]| message(&Op::Gather { dtype: F32 }, &[table, (I32, &[1], index)]);
    assert_eq!(gather(&[2.0]), "op: gather: index 2 is out of range; 0..2 is accepted");
    assert_eq!(gather(&[-1.0]), "op: gather: index -1 is out of range; 0..2 is accepted");

    let rope = Op::Rope { interleaved: false };
    let operands: &[Operand<'_>] = &[(F32, &[1, 1, 2], &[1., 2.]), (I32, &[1], &[1.]), (F32, &[1, 2], &[1., 0.])];
    assert_eq!(message(&rope, operands), "op: rope: position 1 is out of range; 0..1 is accepted");
}

#[test]
fn cache_addresses_are_checked() {
    let write = |position: f64, id: f64, block: f64| {
        let operands: &[Operand<'_>] = &[
            (F32, &[2, 1, 2, 1], &[0.; 4]),
            (F32, &[1, 1, 1], &[1.]),
            (I32, &[1], &[position]),
            (I32, &[1], &[id]),
            (I32, &[1, 2], &[block, -1.]),
        ];
        run::<F64>(&Op::CacheWrite { transposed: false }, operands).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(write(1.0, 0.0, 1.0), Ok(()));
    assert!(write(4.0, 0.0, 1.0).unwrap_err().contains("position 4 is out of range; 0..4"));
    assert!(write(0.0, 1.0, 1.0).unwrap_err().contains("sequence id 1 is out of range; 0..1"));
    assert!(write(0.0, 0.0, 2.0).unwrap_err().contains("cache block 2 is out of range; 0..2"));
    assert!(write(0.0, 0.0, -2.0).unwrap_err().contains("cache block -2"));

    let attention = Op::Attention { scale: Real(1.0), dtype: F32, window: 0 };
    let operands: &[Operand<'_>] = &[
        (F32, &[1, 1, 1], &[1.]),
        (F32, &[1, 1, 1, 1], &[1.]),
        (F32, &[1, 1, 1, 1], &[1.]),
        (I32, &[1], &[0.]),
        (I32, &[1], &[0.]),
        (I32, &[1, 1], &[-1.]),
    ];
    assert_eq!(message(&attention, operands), "op: attention: position 0 of sequence 0 has no cache block");
}

/// A position that is read needs a block; one that is not does not.
#[test]
fn sparse_ops_read_only_what_they_use() {
    let attend = |row: &[f64]| {
        let operands: &[Operand<'_>] = &[
            (F32, &[1, 1, 1], &[1.]),
            (F32, &[1, 1, 1, 1], &[1.]),
            (F32, &[1, 1, 1, 1], &[3.]),
            (I32, &[1, 2], row),
            (I32, &[1], &[1.]),
            (I32, &[1], &[0.]),
            (I32, &[1, 2], &[-1., 0.]),
        ];
        let found = run::<F64>(&Op::SparseAttention { scale: Real(1.0), dtype: F32 }, operands);
        found.map(|r| r[0].as_values().unwrap().to_vec()).map_err(|e| e.to_string())
    };
    assert_eq!(attend(&[1., -1.]), Ok(vec![3.]));
    let missing = "position 0 of sequence 0 has no cache block";
    assert_eq!(attend(&[1., 0.]), Err(format!("op: sparse_attention: {missing}")));

    let score = |skip| {
        let operands: &[Operand<'_>] = &[
            (F32, &[1, 1, 1], &[1.]),
            (F32, &[1, 1], &[1.]),
            (F32, &[1, 1, 1, 1], &[1.]),
            (I32, &[1], &[1.]),
            (I32, &[1], &[0.]),
            (I32, &[1, 2], &[-1., 0.]),
        ];
        let found = run::<F64>(&Op::IndexScores { columns: vec![2.into()], skip }, operands);
        found.map(|r| r[0].as_values().unwrap().to_vec()).map_err(|e| e.to_string())
    };
    assert_eq!(score(2), Ok(vec![0., 0.]));
    assert_eq!(score(1), Err(format!("op: index_scores: {missing}")));
}

#[test]
fn sparse_ops_say_what_they_accept() {
    let (scores, positions): (Operand<'_>, Operand<'_>) = ((F32, &[1, 2], &[1., 2.]), (I32, &[1], &[1.]));
    assert_eq!(message(&Op::Iota { size: 0 }, &[]), "op: iota: size 0; 1..=2147483647 is accepted");
    assert_eq!(message(&Op::Topk { k: -1 }, &[scores, positions]), "op: topk: k -1; 1..=2147483647 is accepted");
    let short = message(&Op::Topk { k: 1 }, &[scores, (I32, &[2], &[0., 0.])]);
    assert_eq!(short, "op: topk: scores' token dim is 1 and positions' dim is 2; they must be equal");
    let half: Operand<'_> = (DType::F16, &[1, 2], &[1., 2.]);
    assert_eq!(message(&Op::Topk { k: 1 }, &[half, positions]), "op: topk: scores are f16[1, 2]; f32 is expected");

    let index = |columns: usize, skip: i64, heads: u64| {
        let keys = vec![0.; heads as usize];
        let operands: &[Operand<'_>] = &[
            (F32, &[1, 1, 1], &[1.]),
            (F32, &[1, 1], &[1.]),
            (F32, &[1, heads, 1, 1], &keys),
            (I32, &[1], &[0.]),
            (I32, &[1], &[0.]),
            (I32, &[1, 1], &[0.]),
        ];
        message(&Op::IndexScores { columns: vec![Dim::Const(1); columns], skip }, operands)
    };
    assert_eq!(index(2, 0, 1), "op: index_scores: columns has 2 dims; one is expected");
    assert_eq!(index(1, -1, 1), "op: index_scores: skip -1; 0 or more is expected");
    assert_eq!(index(1, 0, 2), "op: index_scores: keys have 2 heads; one is expected");
}

#[test]
fn division_by_zero() {
    assert_eq!(message(&Op::Div {}, &[(I32, &[1], &[1.]), (I32, &[1], &[0.])]), "op: div: integer division by zero");
    let operands: &[Operand<'_>] = &[(F32, &[1], &[1.]), (F32, &[1], &[0.])];
    assert_eq!(run::<F64>(&Op::Div {}, operands).unwrap()[0].as_values(), Some(&[f64::INFINITY][..]));
    assert_eq!(run::<Ring>(&Op::Div {}, operands).unwrap_err(), IrError::ZeroDivisor { path: "op".into() });
}

#[test]
fn bindings_are_checked() {
    let (graph, good) = graph_of(&[(F32, &[2], &[1., 2.]), (I32, &[1], &[3.])], |g, v| {
        Ok(vec![g.push("neg", Op::Neg {}, &v[..1])?, v[1]])
    })
    .unwrap();
    let with = |name: &str, binding: Binding| {
        let mut bindings = good.clone();
        bindings.insert(name, binding);
        let result = interpret::<F64>(&graph, &BTreeMap::new(), &bindings, &Options::default());
        result.map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(
        with("x0", Binding::f64(&[3], vec![0.0; 3])),
        "x0: input: bound to 3 elements of shape [3]; shape [2] is expected"
    );
    assert!(with("x0", Binding::f64(&[2], vec![0.0; 5])).contains("5 elements of shape [2]"));
    assert_eq!(with("x0", Binding::ints(&[2], vec![0; 2])), "x0: input: bound to integers; f32 is expected");
    assert_eq!(with("x1", Binding::f32(&[1], vec![0.0])), "x1: input: bound to reals; i32 is expected");
    assert_eq!(with("x1", Binding::ints(&[1], vec![1 << 40])), "x1: input: bound to 1099511627776, which is not a i32");
    let encoded = |dtype, bytes: Vec<u8>| Binding::encoded(&[2], dtype, bytes.into());
    assert_eq!(with("x0", encoded(DType::F16, vec![0; 4])), "x0: input: bound to f16; f32 is expected");
    assert_eq!(with("x0", encoded(F32, vec![0; 7])), "x0: input: bound to 7 bytes; 8 are expected");

    let missing = interpret::<F64>(&graph, &BTreeMap::new(), &Bindings::new(), &Options::default()).unwrap_err();
    assert_eq!(missing.to_string(), "x0: input: `x0` is not bound");
    let mut infinite = good.clone();
    infinite.insert("x0", Binding::f64(&[2], vec![1.0, f64::INFINITY]));
    assert!(interpret::<F64>(&graph, &BTreeMap::new(), &infinite, &Options::default()).is_ok());
    assert!(interpret::<Ring>(&graph, &BTreeMap::new(), &infinite, &Options::default()).is_err());
}

#[test]
fn encoded_integers_are_exact() {
    let (graph, mut bindings) = graph_of(&[(I32, &[2], &[0., 0.])], |_, v| Ok(vec![v[0]])).unwrap();
    let numbers = [i32::MAX, -16_777_217];
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    bindings.insert("x0", Binding::encoded(&[2], I32, bytes.into()));
    let out = interpret::<F64>(&graph, &BTreeMap::new(), &bindings, &Options::default()).unwrap();
    assert_eq!(out["y0"].as_ints(), Some(&numbers.map(i64::from)[..]));
}

#[test]
fn dims_must_lie_in_their_ranges() {
    let mut graph = Graph::new("step");
    graph.declare_symbol("T", 1, 4);
    let x = graph.push("x", Op::input("x", F32, vec![Dim::sym("T")]), &[]).unwrap();
    graph.output("y", OutputKind::Result, x);
    let run = |dims: &[(&str, u64)]| {
        let dims = dims.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        interpret::<F64>(&graph, &dims, &Bindings::new(), &Options::default()).unwrap_err().to_string()
    };
    assert_eq!(run(&[]), "step: dim T has no value; 1..=4 is accepted");
    assert_eq!(run(&[("T", 5)]), "step: dim T has 5; 1..=4 is accepted");
    assert_eq!(run(&[("T", 2)]), "x: input: `x` is not bound");
}

#[test]
fn the_size_limit_holds() {
    let options = Options { max_elements: 8, ..Options::default() };
    let broadcast = Op::Broadcast { shape: vec![3.into(), 3.into()] };
    let error = outputs::<F64>(&[(F32, &[3], &[1., 2., 3.])], &options, |g, v| Ok(vec![g.push("b", broadcast, v)?]));
    assert_eq!(
        error.unwrap_err().to_string(),
        "b: broadcast: a result of shape [3, 3] is over the limit of 8 elements"
    );
}

#[test]
fn a_state_is_written_in_place_or_copied_as_needed() {
    // The old version is an output too, so the write must not change it.
    let operands: &[Operand<'_>] = &[
        (F32, &[1, 1, 1, 1], &[5.]),
        (F32, &[1, 1, 1], &[7.]),
        (I32, &[1], &[0.]),
        (I32, &[1], &[0.]),
        (I32, &[1, 1], &[0.]),
    ];
    let found = outputs::<F64>(operands, &Options::default(), |g, v| {
        Ok(vec![g.push("w", Op::CacheWrite { transposed: false }, v)?, v[0]])
    })
    .unwrap();
    assert_eq!((found[0].as_values(), found[1].as_values()), (Some(&[7.][..]), Some(&[5.][..])));
}

#[test]
fn interpret_all_keeps_every_value() {
    let (graph, bindings) = graph_of(&[(F32, &[1], &[2.])], |g, v| {
        g.push("dead", Op::Neg {}, v)?;
        Ok(vec![g.push("live", Op::Mul {}, &[v[0], v[0]])?])
    })
    .unwrap();
    let all = interpret_all::<F64>(&graph, &BTreeMap::new(), &bindings, &Options::default()).unwrap();
    let found: Vec<_> = all.iter().map(|results| results[0].as_values().unwrap()[0]).collect();
    assert_eq!(found, [2.0, -2.0, 4.0]);
}

#[test]
fn empty_reductions() {
    let x: Operand<'_> = (F32, &[2, 0], &[]);
    assert_eq!(run::<F64>(&Op::ReduceSum { axis: 1 }, &[x]).unwrap()[0].as_values(), Some(&[0., 0.][..]));
    assert_eq!(message(&Op::ReduceMax { axis: 1 }, &[x]), "op: reduce_max: the maximum of no elements");
    assert_eq!(message(&Op::ReduceMean { axis: 1 }, &[x]), "op: reduce_mean: the mean of no elements");
    assert_eq!(run::<F64>(&Op::ReduceMax { axis: 0 }, &[x]).unwrap()[0].as_values(), Some(&[][..]));
}

#[test]
fn round_f32_is_an_option() {
    let operands: &[Operand<'_>] = &[(F32, &[1], &[16_777_216.]), (F32, &[1], &[1.])];
    let sum = |options: &Options| {
        outputs::<F64>(operands, options, |g, v| Ok(vec![g.push("a", Op::Add {}, v)?])).unwrap()[0].as_values().unwrap()
            [0]
    };
    assert_eq!(sum(&Options::default()), 16_777_217.0);
    assert_eq!(sum(&Options { round_f32: true, ..Options::default() }), 16_777_216.0);
}
