//! Fused ops equal their composition of primitives: bit for bit in the ring, closely in f64.

use super::{Operand, close, outputs};
use crate::DType;
use crate::error::IrError;
use crate::graph::{Graph, Value};
use crate::interpret::{Binding, Bindings, Bytes, Domain, F64, Options, Ring, interpret};
use crate::op::Op;
use crate::types::Dim;
use crate::{OutputKind, Real};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Built = Result<Value, IrError>;
type Build = fn(&mut Graph, &[Value]) -> Built;

const F32: DType = DType::F32;

/// Asserts `left` = `right` over the operands in both domains; a zero divisor is another draw, so it passes.
fn equal(
    operands: &[Operand<'_>],
    left: impl Fn(&mut Graph, &[Value]) -> Built,
    right: impl Fn(&mut Graph, &[Value]) -> Built,
) -> Result<(), TestCaseError> {
    fn both<D: Domain>(
        o: &[Operand<'_>],
        left: &dyn Fn(&mut Graph, &[Value]) -> Built,
        right: &dyn Fn(&mut Graph, &[Value]) -> Built,
    ) -> Result<[Vec<D::Value>; 2], IrError> {
        let found = outputs::<D>(o, &Options::default(), |g, v| Ok(vec![left(g, v)?, right(g, v)?]))?;
        Ok([0, 1].map(|i| found[i].as_values().unwrap_or(&[]).to_vec()))
    }
    match both::<Ring>(operands, &left, &right) {
        Err(IrError::ZeroDivisor { .. }) => return Ok(()),
        Err(e) => return Err(TestCaseError::fail(e.to_string())),
        Ok([a, b]) => {
            prop_assert_eq!(a.len(), b.len());
            prop_assert!(a.iter().zip(&b).all(|(x, y)| Ring::same(*x, *y)), "ring: {:?} and {:?}", a, b);
        }
    }
    let [a, b] = both::<F64>(operands, &left, &right).map_err(|e| TestCaseError::fail(e.to_string()))?;
    let tolerant = a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1.0));
    prop_assert!(tolerant || close(&a, &b), "f64: {:?} and {:?}", a, b);
    Ok(())
}

fn constant(g: &mut Graph, value: f64) -> Result<Value, IrError> {
    g.push("constant", Op::Constant { value: Real(value), dtype: F32 }, &[])
}

/// rms_norm from primitives.
fn primitive_norm(g: &mut Graph, x: Value, w: Value) -> Result<Value, IrError> {
    let square = g.push("s", Op::Mul {}, &[x, x])?;
    let mean = g.push("m", Op::ReduceMean { axis: 1 }, &[square])?;
    let eps = constant(g, 1e-5)?;
    let sum = g.push("e", Op::Add {}, &[mean, eps])?;
    let scale = g.push("r", Op::Rsqrt {}, &[sum])?;
    let scaled = g.push("x", Op::Mul {}, &[x, scale])?;
    g.push("w", Op::Mul {}, &[scaled, w])
}

fn matrix(rows: usize, columns: usize) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-8.0..8.0f64, rows * columns)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn rms_norm_is_its_primitives(x in matrix(3, 4), w in matrix(1, 4)) {
        equal(&[(F32, &[3, 4], &x), (F32, &[4], &w)],
            |g, v| g.push("n", Op::RmsNorm { eps: Real(1e-5), dtype: F32 }, v),
            |g, v| primitive_norm(g, v[0], v[1]))?;
    }

    #[test]
    fn add_rms_norm_is_add_then_norm(x in matrix(2, 4), r in matrix(2, 4), w in matrix(1, 4)) {
        let operands: &[Operand<'_>] = &[(F32, &[2, 4], &x), (F32, &[2, 4], &r), (F32, &[4], &w)];
        equal(operands,
            |g, v| g.push("n", Op::AddRmsNorm { eps: Real(1e-5), dtype: F32 }, v),
            |g, v| { let sum = g.push("a", Op::Add {}, &v[..2])?; primitive_norm(g, sum, v[2]) })?;
        equal(operands,
            |g, v| {
                let node = g.add(Op::AddRmsNorm { eps: Real(1e-5), dtype: F32 }, v, ["n".into()].into())?;
                Ok(Value { node, result: 1 })
            },
            |g, v| g.push("a", Op::Add {}, &[v[1], v[0]]))?;
    }

    #[test]
    fn matmul_add_is_matmul_then_add(x in matrix(3, 4), w in matrix(5, 4), b in matrix(1, 5)) {
        equal(&[(F32, &[3, 4], &x), (F32, &[5, 4], &w), (F32, &[5], &b)],
            |g, v| g.push("f", Op::MatmulAdd { dtype: DType::BF16 }, v),
            |g, v| {
                let product = g.push("m", Op::Matmul { dtype: F32 }, &v[..2])?;
                let sum = g.push("a", Op::Add {}, &[product, v[2]])?;
                g.push("c", Op::Cast { dtype: DType::BF16 }, &[sum])
            })?;
    }

    #[test]
    fn matmul_silu_mul_is_its_parts(x in matrix(3, 4), a in matrix(32, 4), b in matrix(32, 4)) {
        let operands: &[Operand<'_>] = &[(F32, &[3, 4], &x), (F32, &[32, 4], &a), (F32, &[32, 4], &b)];
        let parts: Build = |g, v| {
            let gate = g.push("g", Op::Matmul { dtype: F32 }, &[v[0], v[1]])?;
            let up = g.push("u", Op::Matmul { dtype: F32 }, &[v[0], v[2]])?;
            g.push("s", Op::SiluMul { dtype: DType::Q8A }, &[gate, up])
        };
        equal(operands, |g, v| g.push("f", Op::MatmulSiluMul { dtype: DType::Q8A }, v), parts)?;
        equal(operands, parts, |g, v| {
            let gate = g.push("g", Op::Matmul { dtype: F32 }, &[v[0], v[1]])?;
            let up = g.push("u", Op::Matmul { dtype: F32 }, &[v[0], v[2]])?;
            let act = g.push("s", Op::Silu {}, &[gate])?;
            let product = g.push("m", Op::Mul {}, &[up, act])?;
            g.push("c", Op::Cast { dtype: DType::Q8A }, &[product])
        })?;
    }

    #[test]
    fn merged_projections_are_separate_ones(x in matrix(3, 4), a in matrix(2, 4), b in matrix(5, 4)) {
        equal(&[(F32, &[3, 4], &x), (F32, &[2, 4], &a), (F32, &[5, 4], &b)],
            |g, v| g.push("m", Op::Matmul { dtype: F32 }, &[v[0], v[2]]),
            |g, v| {
                let pack = g.push("p", Op::Concat { axis: 0 }, &v[1..])?;
                let both = g.push("m", Op::Matmul { dtype: F32 }, &[v[0], pack])?;
                g.push("s", Op::Slice { axis: 1, start: 2, end: 7 }, &[both])
            })?;
    }

    #[test]
    fn softmax_is_exp_over_sum_and_ignores_a_shift(x in matrix(2, 5), shift in -4.0..4.0f64) {
        let operands: &[Operand<'_>] = &[(F32, &[2, 5], &x), (F32, &[], &[shift])];
        let plain: Build = |g, v| g.push("s", Op::Softmax {}, &v[..1]);
        equal(operands, plain, |g, v| {
            let e = g.push("e", Op::Exp {}, &v[..1])?;
            let sum = g.push("r", Op::ReduceSum { axis: 1 }, &[e])?;
            g.push("d", Op::Div {}, &[e, sum])
        })?;
        equal(operands, plain, |g, v| {
            let shifted = g.push("a", Op::Sub {}, v)?;
            g.push("s", Op::Softmax {}, &[shifted])
        })?;
    }

    #[test]
    fn rope_cache_write_is_rope_then_cache_write(x in matrix(3, 4), positions in prop::collection::vec(0..6i64, 3)) {
        let positions: Vec<f64> = positions.iter().map(|p| *p as f64).collect();
        equal(&[(DType::BF16, &[3, 2, 2, 2], &[0.0; 24]), (F32, &[3, 2, 2], &x), (DType::I32, &[3], &positions),
                (F32, &[6, 2], &[0.25; 12]), (DType::I32, &[3], &[0.0; 3]), (DType::I32, &[1, 3], &[2.0, 0.0, 1.0])],
            |g, v| g.push("f", Op::RopeCacheWrite { interleaved: false, transposed: true }, v),
            |g, v| {
                let rope = g.push("r", Op::Rope { interleaved: false }, &v[1..4])?;
                g.push("c", Op::CacheWrite { transposed: true }, &[v[0], rope, v[2], v[4], v[5]])
            })?;
    }

    /// Scaling q is scaling the scores; splitting a sequence over blocks in another order changes nothing.
    #[test]
    fn attention_scale_moves_to_the_queries(q in matrix(2, 4), k in matrix(3, 8), v in matrix(3, 8)) {
        let pages: [Operand<'_>; 3] =
            [(DType::I32, &[2], &[2.0, 4.0]), (DType::I32, &[2], &[0.0, 0.0]), (DType::I32, &[1, 3], &[1.0, 2.0, 0.0])];
        equal(&[(F32, &[2, 1, 4], &q), (F32, &[3, 1, 4, 2], &k), (F32, &[3, 1, 2, 4], &v), pages[0], pages[1], pages[2]],
            |g, o| g.push("a", Op::Attention { scale: Real(0.5), dtype: F32, window: 0 }, o),
            |g, o| {
                let half = constant(g, 0.5)?;
                let q = g.push("q", Op::Mul {}, &[o[0], half])?;
                g.push("a", Op::Attention { scale: Real(1.0), dtype: F32, window: 0 }, &[q, o[1], o[2], o[3], o[4], o[5]])
            })?;
    }

    /// Attention over every position is attention, in whatever order the positions are named.
    #[test]
    fn sparse_attention_over_all_positions_is_attention(q in matrix(2, 4), k in matrix(3, 8), v in matrix(3, 8)) {
        let pages: [Operand<'_>; 3] =
            [(DType::I32, &[2], &[2.0, 4.0]), (DType::I32, &[2], &[0.0, 0.0]), (DType::I32, &[1, 3], &[1.0, 2.0, 0.0])];
        let rows: Operand<'_> = (DType::I32, &[2, 6], &[2., 0., 1., 3., 4., -1., 0., 1., 2., 3., 4., 5.]);
        equal(&[(F32, &[2, 1, 4], &q), (F32, &[3, 1, 4, 2], &k), (F32, &[3, 1, 2, 4], &v), pages[0], pages[1], pages[2], rows],
            |g, o| g.push("a", Op::Attention { scale: Real(0.5), dtype: F32, window: 0 }, &o[..6]),
            |g, o| {
                let operands = [o[0], o[1], o[2], o[6], o[3], o[4], o[5]];
                g.push("s", Op::SparseAttention { scale: Real(0.5), dtype: F32 }, &operands)
            })?;
    }

    /// A window is the last positions, named one by one.
    #[test]
    fn a_window_is_its_positions(q in matrix(2, 4), k in matrix(3, 8), v in matrix(3, 8), window in 1i64..7) {
        let pages: [Operand<'_>; 3] =
            [(DType::I32, &[2], &[2.0, 4.0]), (DType::I32, &[2], &[0.0, 0.0]), (DType::I32, &[1, 3], &[1.0, 2.0, 0.0])];
        let named: Vec<f64> = [2i64, 4]
            .into_iter()
            .flat_map(|p| (0..6).map(move |i| if i <= p && i > p - window { i as f64 } else { -1.0 }))
            .collect();
        let rows: Operand<'_> = (DType::I32, &[2, 6], &named);
        equal(&[(F32, &[2, 1, 4], &q), (F32, &[3, 1, 4, 2], &k), (F32, &[3, 1, 2, 4], &v), pages[0], pages[1], pages[2], rows],
            |g, o| g.push("a", Op::Attention { scale: Real(0.5), dtype: F32, window }, &o[..6]),
            |g, o| {
                let operands = [o[0], o[1], o[2], o[6], o[3], o[4], o[5]];
                g.push("s", Op::SparseAttention { scale: Real(0.5), dtype: F32 }, &operands)
            })?;
    }

    #[test]
    fn mean_over_576_is_sum_times_inverse(x in matrix(1, 576)) {
        equal(&[(F32, &[1, 576], &x)],
            |g, v| g.push("m", Op::ReduceMean { axis: 1 }, v),
            |g, v| {
                let sum = g.push("s", Op::ReduceSum { axis: 1 }, v)?;
                let count = constant(g, 576.0)?;
                g.push("d", Op::Div {}, &[sum, count])
            })?;
    }
}

/// The ring tells graphs apart that are not equal.
#[test]
fn the_ring_sees_a_missing_cast_and_a_swapped_operand() {
    let x: Operand<'_> = (F32, &[2], &[1.25, -3.0]);
    let y: Operand<'_> = (F32, &[2], &[0.5, 7.0]);
    let different = |left: Build, right: Build| {
        let found = outputs::<Ring>(&[x, y], &Options::default(), |g, v| Ok(vec![left(g, v)?, right(g, v)?])).unwrap();
        let (a, b) = (found[0].as_values().unwrap(), found[1].as_values().unwrap());
        a.iter().zip(b).all(|(a, b)| !Ring::same(*a, *b))
    };
    let rounded: Build = |g, v| {
        let c = g.push("c", Op::Cast { dtype: DType::BF16 }, &v[..1])?;
        g.push("c", Op::Cast { dtype: F32 }, &[c])
    };
    assert!(different(|_, v| Ok(v[0]), rounded));
    assert!(different(|g, v| g.push("a", Op::Sub {}, v), |g, v| g.push("a", Op::Sub {}, &[v[1], v[0]])));
    // With the named cast as identity the first pair is equal.
    let ideal = Options { ideal: [DType::BF16].into(), ..Options::default() };
    let found = outputs::<Ring>(&[x, y], &ideal, |g, v| Ok(vec![v[0], rounded(g, v)?])).unwrap();
    assert_eq!(found[0].as_values(), found[1].as_values());
}

/// A block-quantised weight read lazily equals the same weight dequantised by a cast, in both domains and through every reader.
#[test]
fn stored_weights_are_read_like_decoded_ones() {
    fn check<D: Domain>() {
        let weight =
            |name: &str| Op::Weight { name: name.into(), dtype: DType::Q8_0, shape: vec![2.into(), 32.into()] };
        let mut graph = Graph::new("test");
        let w = graph.push("w", weight("w"), &[]).unwrap();
        let dense = graph.push("d", Op::Cast { dtype: F32 }, &[w]).unwrap();
        let pack = graph.push("p", Op::Concat { axis: 0 }, &[w, w]).unwrap();
        let x = graph.push("x", Op::input("x", F32, vec![Dim::sym("T"), 32.into()]), &[]).unwrap();
        graph.declare_symbol("T", 1, 4);
        let index = graph.push("i", Op::input("i", DType::I32, vec![1.into()]), &[]).unwrap();
        let row = Op::Slice { axis: 0, start: 1, end: 2 };
        let pairs = [
            [
                graph.push("a", Op::Matmul { dtype: F32 }, &[x, w]),
                graph.push("b", Op::Matmul { dtype: F32 }, &[x, dense]),
            ],
            [graph.push("a", Op::Gather { dtype: F32 }, &[w, index]), graph.push("b", row.clone(), &[dense])],
            [graph.push("a", row.clone(), &[w]), graph.push("b", row, &[dense])],
            [graph.push("a", Op::Slice { axis: 0, start: 2, end: 4 }, &[pack]), Ok(dense)],
        ];
        for (i, [a, b]) in pairs.into_iter().enumerate() {
            graph.output(&format!("a{i}"), OutputKind::Result, a.unwrap());
            graph.output(&format!("b{i}"), OutputKind::Result, b.unwrap());
        }
        graph.output("w", OutputKind::Result, w);
        let values: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) / 7.0).collect();
        let bytes = crate::codec::encode(DType::Q8_0, &values, crate::codec::Overflow::Saturate).unwrap();
        let mut bindings = Bindings::new();
        bindings.insert("w", Binding::encoded(&[2, 32], DType::Q8_0, Bytes::from(bytes)));
        bindings.insert("x", Binding::f32(&[1, 32], values[..32].to_vec()));
        bindings.insert("i", Binding::ints(&[1], vec![1]));
        let dims = BTreeMap::from([("T".to_owned(), 1)]);
        let out = interpret::<D>(&graph, &dims, &bindings, &Options::default()).unwrap();
        for i in 0..4 {
            let (a, b) = (&out[&format!("a{i}")], &out[&format!("b{i}")]);
            assert_eq!(a.as_values(), b.as_values(), "pair {i} in {}", D::NAME);
            assert!(!a.is_empty());
        }
        assert_eq!(out["w"].as_values().map(<[_]>::len), Some(64));
    }
    check::<F64>();
    check::<Ring>();
}

/// The ring's sum of products, which delays its reductions, is the sum of its products; one poisoned factor poisons it.
#[test]
fn the_ring_dot_is_its_sums() {
    let mut random = crate::generate::Random::new(5);
    let mut draw = || Ring::real(random.bits() as f64 / 3.0).unwrap();
    let a: Vec<_> = (0..1000).map(|_| draw()).collect();
    let mut b: Vec<_> = (0..1000).map(|_| draw()).collect();
    let slow = |b: &[crate::interpret::RingValue]| {
        a.iter().zip(b).fold(Ring::ZERO, |sum, (x, y)| Ring::add(sum, Ring::mul(*x, *y)))
    };
    assert_eq!(Ring::dot(&a, &b), slow(&b));
    assert!(Ring::dot(&a, &b).q().is_some());
    b[500] = Ring::apply(crate::interpret::Function::Silu, b[500]);
    assert_eq!(Ring::dot(&a, &b), slow(&b));
    assert_eq!(Ring::dot(&a, &b).q(), None);
}
