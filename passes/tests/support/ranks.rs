//! A sharded graph beside the graph that it came from.

use super::{Random, bindings, dims_of};
use std::collections::BTreeMap;
use weldment_ir::interpret::{
    Binding, BindingData, Bindings, Domain, F64, Options, Ring, Tensor, interpret, interpret_ranks,
};
use weldment_ir::{Graph, IrError, Op, OutputKind};

/// Rank `rank`'s part of elements along axis 1, of which it holds `held` of `full`.
fn part<T: Copy>(elements: &[T], shape: &[usize], held: usize, rank: usize, world: usize) -> Vec<T> {
    let (full, inner) = (shape[1], shape[2..].iter().product::<usize>());
    let replicas = world * held / full;
    let first = rank / replicas * held;
    let run = |block: &[T]| block[first * inner..(first + held) * inner].to_vec();
    elements.chunks(full * inner).flat_map(run).collect()
}

/// States of `sharded` by name: heads that a rank holds.
fn held_heads(sharded: &Graph) -> BTreeMap<String, usize> {
    let state = |id| match &sharded.node(id).op {
        Op::State { name, shape, .. } => Some((name.to_string(), shape.get(1)?.constant()? as usize)),
        _ => None,
    };
    sharded.ids().filter_map(state).collect()
}

/// The bindings of `whole`, with each rank's part of the states that `sharded` cuts.
pub fn spread(whole: &Bindings, sharded: &Graph) -> Bindings {
    let world = sharded.world() as usize;
    let mut out = whole.clone();
    for (name, held) in held_heads(sharded) {
        let binding = whole.get(&name).expect("a bound state");
        if binding.shape.get(1) == Some(&held) {
            continue;
        }
        let BindingData::F64(elements) = &binding.data else { panic!("{name} is not real") };
        for rank in 0..world {
            let mut shape = binding.shape.clone();
            shape[1] = held;
            out.insert_on_rank(&name, rank, Binding::f64(&shape, part(elements, &binding.shape, held, rank, world)));
        }
    }
    out
}

/// Asserts that the elements of an output are those expected.
type Same<'a, V> = dyn Fn(&str, &[V], &[V]) + 'a;

/// Compares every rank's outputs with those of one rank: results as they are, states part by part.
fn compare<D: Domain>(
    whole: &Graph,
    one: &BTreeMap<String, Tensor<D::Value>>,
    ranks: &[BTreeMap<String, Tensor<D::Value>>],
    same: &Same<'_, D::Value>,
) {
    for output in whole.outputs() {
        let expected = &one[&*output.name];
        for (rank, outputs) in ranks.iter().enumerate() {
            let found = &outputs[&*output.name];
            if expected.as_ints().is_some() {
                assert_eq!(found.as_ints(), expected.as_ints(), "output {}", output.name);
                continue;
            }
            let values = expected.as_values().expect("reals");
            let elements = found.as_values().expect("reals");
            if output.kind == OutputKind::State && found.shape != expected.shape {
                let expected = part(values, &expected.shape, found.shape[1], rank, ranks.len());
                same(&output.name, elements, &expected);
            } else {
                same(&output.name, elements, values);
            }
        }
    }
}

/// Equal in the ring on `cases` random instances, on every rank: one step over caches of random content.
pub fn assert_ranks_equal(whole: &Graph, sharded: &Graph, ideal: bool, cases: u64) {
    let options = if ideal { Options::ideal() } else { Options::default() };
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut done = 0;
    for _ in 0..cases * 20 {
        if done == cases {
            return;
        }
        let dims = dims_of(whole, &mut random);
        let bind = bindings(whole, &dims, &mut random);
        done += u64::from(assert_equal_on(whole, sharded, &dims, &bind, &options));
    }
    panic!("only {done} of {cases} ring cases could be drawn");
}

/// Equal in the ring on one instance; false if it has to be drawn again.
pub fn assert_equal_on(
    whole: &Graph,
    sharded: &Graph,
    dims: &BTreeMap<String, u64>,
    bind: &Bindings,
    options: &Options,
) -> bool {
    let spread = spread(bind, sharded);
    let one = interpret::<Ring>(whole, dims, bind, options);
    let ranks = interpret_ranks::<Ring>(sharded, dims, &spread, options);
    let (one, ranks) = match (one, ranks) {
        (Ok(one), Ok(ranks)) => (one, ranks),
        (Err(IrError::ZeroDivisor { .. }), _) | (_, Err(IrError::ZeroDivisor { .. })) => return false,
        (Err(e), _) | (_, Err(e)) => panic!("{e}\n{whole}\n{sharded}"),
    };
    let ranks: Vec<_> = ranks.into_iter().map(|r| r.into_iter().collect()).collect();
    compare::<Ring>(whole, &one.into_iter().collect(), &ranks, &|name, found, expected| {
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| Ring::same(*a, *b)),
            "output {name} differs in the ring\n{whole}\n{sharded}"
        );
    });
    true
}

/// Several steps, each rank threading its own states: the largest difference in f64, relative to the largest value.
pub fn steps_error(whole: &Graph, sharded: &Graph, steps: i64) -> f64 {
    let mut random = Random(0xD1B5_4A32_D192_ED03);
    let dims: BTreeMap<String, u64> = whole
        .symbols()
        .iter()
        .map(|(name, range)| (name.to_string(), if matches!(&**name, "T" | "R") { 3 } else { range.max }))
        .collect();
    let mut bind = bindings(whole, &dims, &mut random);
    let mut spread = spread(&bind, sharded);
    let worst = std::cell::Cell::new(0f64);
    for step in 0..steps {
        let row = |f: &dyn Fn(i64) -> i64| Binding::ints(&[3], (0..3).map(f).collect());
        for b in [&mut bind, &mut spread] {
            b.insert("tokens", row(&|i| (7 * i + 11 * step) % 40));
            b.insert("positions", row(&|i| 3 * step + i));
            b.insert("sequence_ids", row(&|_| 1));
        }
        let one = interpret::<F64>(whole, &dims, &bind, &Options::default()).expect("a step of one rank");
        let ranks = interpret_ranks::<F64>(sharded, &dims, &spread, &Options::default()).expect("a step of all ranks");
        for output in whole.outputs().iter().filter(|o| o.kind == OutputKind::State) {
            bind.insert(&output.name, Binding::from(&one[&*output.name]));
            for (rank, outputs) in ranks.iter().enumerate() {
                spread.insert_on_rank(&output.name, rank, Binding::from(&outputs[&*output.name]));
            }
        }
        let ranks: Vec<_> = ranks.into_iter().map(|r| r.into_iter().collect()).collect();
        compare::<F64>(whole, &one.into_iter().collect(), &ranks, &|_, found, expected| {
            assert_eq!(found.len(), expected.len());
            let scale = expected.iter().fold(1e-9f64, |m, v| m.max(v.abs()));
            let apart = found.iter().zip(expected).fold(0f64, |m, (a, b)| m.max((a - b).abs() / scale));
            worst.set(worst.get().max(apart));
        });
    }
    worst.get()
}
