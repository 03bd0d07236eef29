//! Collectives of a few ranks, of which an emulator runs one: the others' pushes have arrived, as the tile programs send them.

use super::{Case, Ranks, rounding, rows};
use weldment_ir::{DType, Op, Real, Value};

/// The cases, in a fixed order.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (form, world, h) in [("one", 2, 80), ("one", 3, 1048), ("two", 2, 80), ("two", 4, 1056)] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            all.push(add_norm(form, world, h, dtype));
        }
        all.push(alone(form, world, h));
    }
    all.push(quantised());
    for dtype in [DType::BF16, DType::F32] {
        let gather = |world| Op::AllGather { axis: 1, world };
        all.push(columns(&format!("all_gather of 70 {dtype}"), gather, 3, 70, dtype));
        let scatter = |world| Op::ReduceScatter { axis: 1, world };
        all.push(columns(&format!("reduce_scatter of 144 {dtype}"), scatter, 2, 144, dtype));
    }
    all
}

fn case(name: &str, form: &str, world: i64, dtype: DType) -> Case {
    let choices = match form {
        "two" => " all_reduce=2",
        "one" => " all_reduce=1",
        _ => "",
    };
    let among = if form.is_empty() { String::new() } else { format!(", {form} stage") };
    let case = Case::new(format!("{name} over {world} ranks{among}"), 3, 16, rounding(dtype));
    Case { ranks: Some(Ranks { world: world as usize, rank: world as usize / 2, choices }), ..case }
}

/// All results of a node.
fn results(c: &Case, first: Value) -> Vec<Value> {
    let count = c.graph.node(first.node).types.len();
    (0..count).map(|index| Value { node: first.node, result: index as _ }).collect()
}

fn add_norm(form: &str, world: i64, h: u64, dtype: DType) -> Case {
    let mut c = case(&format!("all-reduce, sum and norm of {h} {dtype}"), form, world, dtype);
    let (x, residual) = (c.input("x", dtype, rows(h)), c.input("residual", dtype, rows(h)));
    let w = c.weight("w", dtype, &[h]);
    let norm = c.push(Op::AllReduceAddRmsNorm { world, eps: Real(1e-5), dtype }, &[x, residual, w]);
    let outputs = results(&c, norm);
    c.outputs(&outputs)
}

fn alone(form: &str, world: i64, h: u64) -> Case {
    let mut c = case(&format!("all-reduce of {h} bf16"), form, world, DType::BF16);
    let x = c.input("x", DType::BF16, rows(h));
    let sum = c.push(Op::AllReduce { world }, &[x]);
    c.outputs(&[sum])
}

fn quantised() -> Case {
    let mut c = case("all-reduce, norm and f8e4m3 codes of 256 bf16", "one", 2, DType::BF16);
    let x = c.input("x", DType::BF16, rows(256));
    let w = c.weight("w", DType::BF16, &[256]);
    let op = Op::AllReduceRmsNormQuantise {
        world: 2,
        eps: Real(1e-5),
        dtype: DType::BF16,
        format: DType::F8E4M3,
        group: 128,
    };
    let codes = c.push(op, &[x, w]);
    let outputs = results(&c, codes);
    c.outputs(&outputs)
}

fn columns(name: &str, op: impl Fn(i64) -> Op, world: i64, n: u64, dtype: DType) -> Case {
    let mut c = case(name, "", world, dtype);
    let x = c.input("x", dtype, rows(n));
    let y = c.push(op(world), &[x]);
    c.outputs(&[y])
}
