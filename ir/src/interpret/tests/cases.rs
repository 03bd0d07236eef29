//! The table: one or more rows for every op.

use super::{Operand, close, numbers, run};
use crate::interpret::{F64, Ring};
use crate::op::{Op, OpKind};
use crate::types::Dim;
use crate::{DType, Real};
use std::collections::BTreeSet;

const F32: DType = DType::F32;
const BF16: DType = DType::BF16;
const I32: DType = DType::I32;
const BOOL: DType = DType::Bool;

struct Case<'a> {
    op: Op,
    operands: Vec<Operand<'a>>,
    expected: Vec<Vec<f64>>,
}

fn case<'a>(op: Op, operands: &[Operand<'a>], expected: &[&[f64]]) -> Case<'a> {
    Case { op, operands: operands.to_vec(), expected: expected.iter().map(|e| e.to_vec()).collect() }
}

fn shape(dims: &[u64]) -> Vec<Dim> {
    dims.iter().map(|n| Dim::Const(*n)).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

fn elementwise() -> Vec<Case<'static>> {
    let pair: &[Operand<'_>] = &[(F32, &[2, 2], &[1., -2., 3., 8.]), (F32, &[2], &[2., -4.])];
    let ints: &[Operand<'_>] = &[(I32, &[3], &[7., -7., 2147483647.]), (I32, &[3], &[2., 2., 1.])];
    vec![
        case(Op::Add {}, pair, &[&[3., -6., 5., 4.]]),
        case(Op::Add {}, ints, &[&[9., -5., -2147483648.]]),
        // 256 + 1 needs nine significant bits; bf16 has eight, and the tie goes to even.
        case(Op::Add {}, &[(BF16, &[1], &[256.]), (BF16, &[1], &[1.])], &[&[256.]]),
        case(Op::Sub {}, pair, &[&[-1., 2., 1., 12.]]),
        case(Op::Mul {}, pair, &[&[2., 8., 6., -32.]]),
        case(Op::Div {}, pair, &[&[0.5, 0.5, 1.5, -2.]]),
        case(Op::Div {}, ints, &[&[3., -3., 2147483647.]]),
        case(Op::Maximum {}, pair, &[&[2., -2., 3., 8.]]),
        case(Op::Minimum {}, pair, &[&[1., -4., 2., -4.]]),
        case(Op::Less {}, pair, &[&[1., 0., 0., 0.]]),
        case(Op::Less {}, ints, &[&[0., 1., 0.]]),
        case(
            Op::Select {},
            &[(BOOL, &[2, 1], &[1., 0.]), (F32, &[2], &[1., 2.]), (F32, &[], &[9.])],
            &[&[1., 2., 9., 9.]],
        ),
        case(Op::Select {}, &[(BOOL, &[2], &[0., 1.]), (I32, &[2], &[1., 2.]), (I32, &[], &[9.])], &[&[9., 2.]]),
        case(Op::Neg {}, &[(F32, &[2], &[1.5, -2.])], &[&[-1.5, 2.]]),
        case(Op::Exp {}, &[(F32, &[2], &[0., 1.])], &[&[1., std::f64::consts::E]]),
        case(Op::Silu {}, &[(F32, &[2], &[0., 2.])], &[&[0., 1.761594155955765]]),
        case(Op::Gelu {}, &[(F32, &[3], &[0., 1., -1.])], &[&[0., 0.8411919906082768, -0.15880800939172324]]),
        case(Op::Tanh {}, &[(F32, &[1], &[0.5])], &[&[0.46211715726000973]]),
        case(Op::Sigmoid {}, &[(F32, &[2], &[0., 1.])], &[&[0.5, 0.7310585786300049]]),
        case(Op::Rsqrt {}, &[(F32, &[2], &[4., 0.25])], &[&[0.5, 2.]]),
        case(Op::Sqrt {}, &[(F32, &[3], &[4., 0.25, 0.])], &[&[2., 0.5, 0.]]),
        case(Op::SiluMul { dtype: F32 }, &[(F32, &[2], &[2., 0.]), (F32, &[2], &[3., 5.])], &[&[3. * silu(2.), 0.]]),
    ]
}

fn casts() -> Vec<Case<'static>> {
    let cast = |dtype| Op::Cast { dtype };
    vec![
        // 1 + 2^-8 is half way between bf16 neighbours.
        case(cast(BF16), &[(F32, &[3], &[1.00390625, 1.01171875, -3.0])], &[&[1.0, 1.015625, -3.0]]),
        case(cast(DType::F16), &[(F32, &[2], &[2049., 65504.])], &[&[2048., 65504.]]),
        case(cast(DType::F8E4M3), &[(F32, &[3], &[1000., 17., -0.3])], &[&[448., 16., -0.3125]]),
        case(cast(DType::F8E4M3Fnuz), &[(F32, &[1], &[1000.])], &[&[240.]]),
        case(cast(DType::F8E5M2), &[(F32, &[2], &[1e6, 5.])], &[&[57344., 5.]]),
        case(cast(DType::F8E8M0), &[(F32, &[3], &[3., 1000., 0.])], &[&[4., 1024., 2f64.powi(-127)]]),
        case(cast(I32), &[(F32, &[4], &[2.5, -3.5, 1e10, 0.4])], &[&[2., -4., 2147483647., 0.]]),
        case(cast(DType::U8), &[(I32, &[2], &[300., -1.])], &[&[44., 255.]]),
        case(cast(BOOL), &[(F32, &[2], &[0., 0.25])], &[&[0., 1.]]),
        case(cast(F32), &[(I32, &[2], &[-5., 7.])], &[&[-5., 7.]]),
        case(cast(F32), &[(BF16, &[1], &[1.5])], &[&[1.5]]),
    ]
}

fn reductions() -> Vec<Case<'static>> {
    let x: Operand<'_> = (F32, &[2, 3], &[1., 2., 6., -1., 0., 4.]);
    // Rows whose mean square is 1 and 4, so that eps = 0 gives exact results.
    let rows: Operand<'_> = (F32, &[2, 2], &[1., -1., 2., 2.]);
    let w: Operand<'_> = (F32, &[2], &[10., 3.]);
    let eps = Real(0.0);
    vec![
        case(Op::ReduceSum { axis: 1 }, &[x], &[&[9., 3.]]),
        case(Op::ReduceSum { axis: 0 }, &[x], &[&[0., 2., 10.]]),
        case(Op::ReduceMean { axis: 1 }, &[x], &[&[3., 1.]]),
        case(Op::ReduceMax { axis: 0 }, &[x], &[&[1., 2., 6.]]),
        case(Op::Softmax {}, &[(F32, &[2, 2], &[0., 1.0986122886681098, 1000., 1000.])], &[&[0.25, 0.75, 0.5, 0.5]]),
        case(Op::RmsNorm { eps, dtype: F32 }, &[rows, w], &[&[10., -3., 10., 3.]]),
        case(Op::RmsNorm { eps: Real(3.0), dtype: F32 }, &[(F32, &[2], &[1., 1.]), w], &[&[5., 1.5]]),
        case(
            Op::AddRmsNorm { eps, dtype: F32 },
            &[(F32, &[2, 2], &[0.5, 0., 1., 1.]), (F32, &[2, 2], &[0.5, -1., 1., 1.]), w],
            &[&[10., -3., 10., 3.], &[1., -1., 2., 2.]],
        ),
    ]
}

fn quantised() -> Vec<Case<'static>> {
    let fp8 = |group| Op::Quantise { dtype: DType::F8E4M3, group };
    // Scales 2 and 1/2: 896 / 448 and 224 / 448. 17 is a tie between 16 and 18, 200 one between 192 and 208.
    let x: Operand<'_> = (F32, &[2, 4], &[896., 34., -3.5, 0., 224., -1., 2., 100.]);
    let tiny: Operand<'_> = (F32, &[1, 4], &[1e-38, 0., 3.5, -7.]);
    let mut row = [0.0; 32];
    // floor(log2 11) - 2 = 1: codes of x / 2, where 5.5 rounds to 6, 5 to 4 (a tie), 0.25 to 0 and 0.75 to 1 (ties).
    row[..6].copy_from_slice(&[11., -10., 0.5, 1.5, 3., 7.]);
    let mx: &'static [f64] = Box::leak(Box::new(row));
    let mut codes = [0.0; 32];
    codes[..6].copy_from_slice(&[6., -4., 0., 1., 1.5, 4.]);
    let codes: &'static [f64] = Box::leak(Box::new(codes));
    const F8: DType = DType::F8E4M3;
    // Runs of two under scales of x (1, 2 | 3, 4) and of w (blocks of 2 x 2: 10, 100 | 1000, 10000).
    let operands: &[Operand<'_>] = &[
        (F8, &[2, 4], &[1., 2., 3., 4., 1., 0., 0., 1.]),
        (F32, &[2, 2], &[1., 2., 3., 4.]),
        (F8, &[3, 4], &[1., 1., 1., 1., 0., 1., 1., 0., 2., 0., 0., 2.]),
        (F32, &[2, 2], &[10., 100., 1000., 10000.]),
    ];
    let whole: &[Operand<'_>] =
        &[operands[0], (F32, &[2, 1], &[1., 2.]), operands[2], (F32, &[3, 1], &[1., 10., 100.])];
    vec![
        case(fp8(4), &[x], &[&[448., 16., -1.75, 0., 448., -2., 4., 192.], &[2., 0.5]]),
        case(fp8(2), &[tiny], &[&[0., 0., 224., -448.], &[0., 0.015625]]),
        case(
            Op::Quantise { dtype: DType::F8E4M3Fnuz, group: 2 },
            &[(BF16, &[2], &[-120., 1.])],
            &[&[-240., 2.], &[0.5]],
        ),
        // The row's mean square is 1: the norm is the weight, but for signs. 34.125 rounds to 34 in bf16, a tie of f8e4m3 that goes to 32.
        case(
            Op::RmsNormQuantise { eps: Real(0.0), dtype: BF16, format: DType::F8E4M3, group: 2 },
            &[(F32, &[1, 2], &[1., -1.]), (F32, &[2], &[448., 34.125])],
            &[&[448., -36.], &[1.], &[448., -34.]],
        ),
        case(
            Op::AddRmsNormQuantise { eps: Real(0.0), dtype: F32, format: DType::F8E4M3, group: 1 },
            &[(F32, &[1, 2], &[0.5, -2.]), (F32, &[1, 2], &[0.5, 1.]), (F32, &[2], &[448., 896.])],
            &[&[448., -448.], &[1., 2.], &[448., -896.], &[1., -1.]],
        ),
        case(Op::Quantise { dtype: DType::F4E2M1, group: 32 }, &[(F32, &[32], mx)], &[codes, &[2.]]),
        case(
            Op::ScaledMatmul { rows: 2, columns: 2, dtype: F32 },
            operands,
            &[&[1430., 620., 162000., 430., 0., 86000.]],
        ),
        case(Op::ScaledMatmul { rows: 1, columns: 4, dtype: F32 }, whole, &[&[10., 50., 1000., 4., 0., 800.]]),
    ]
}

fn views() -> Vec<Case<'static>> {
    let x: Operand<'_> = (F32, &[2, 3], &[1., 2., 3., 4., 5., 6.]);
    let n: Operand<'_> = (I32, &[2, 3], &[1., 2., 3., 4., 5., 6.]);
    vec![
        case(Op::Reshape { shape: shape(&[3, 2]) }, &[x], &[&[1., 2., 3., 4., 5., 6.]]),
        case(Op::Transpose { permutation: vec![1, 0] }, &[x], &[&[1., 4., 2., 5., 3., 6.]]),
        case(
            Op::Transpose { permutation: vec![2, 0, 1] },
            &[(F32, &[1, 2, 3], &[1., 2., 3., 4., 5., 6.])],
            &[&[1., 4., 2., 5., 3., 6.]],
        ),
        case(Op::Slice { axis: 1, start: 1, end: 3 }, &[x], &[&[2., 3., 5., 6.]]),
        case(Op::Slice { axis: 0, start: 1, end: 2 }, &[n], &[&[4., 5., 6.]]),
        case(Op::Slice { axis: 0, start: 1, end: 2 }, &[x], &[&[4., 5., 6.]]),
        case(Op::Concat { axis: 1 }, &[x, (F32, &[2, 1], &[7., 8.])], &[&[1., 2., 3., 7., 4., 5., 6., 8.]]),
        case(Op::Concat { axis: 0 }, &[n, n], &[&[1., 2., 3., 4., 5., 6., 1., 2., 3., 4., 5., 6.]]),
        case(
            Op::Broadcast { shape: shape(&[2, 2, 2]) },
            &[(F32, &[2, 1], &[1., 2.])],
            &[&[1., 1., 2., 2., 1., 1., 2., 2.]],
        ),
    ]
}

fn contractions() -> Vec<Case<'static>> {
    let x: Operand<'_> = (F32, &[2, 2], &[1., 2., 3., 4.]);
    let w: Operand<'_> = (F32, &[3, 2], &[1., 0., 0., 1., 1., -1.]);
    vec![
        case(Op::Matmul { dtype: F32 }, &[x, w], &[&[1., 2., -1., 3., 4., -1.]]),
        case(Op::Matmul { dtype: BF16 }, &[(F32, &[1], &[257.]), (F32, &[1, 1], &[1.])], &[&[256.]]),
        case(Op::MatmulAdd { dtype: F32 }, &[x, w, (F32, &[3], &[10., 20., 30.])], &[&[11., 22., 29., 13., 24., 29.]]),
        case(
            Op::MatmulSiluMul { dtype: F32 },
            &[(F32, &[1, 2], &[1., 2.]), (F32, &[1, 2], &[0., 1.]), (F32, &[1, 2], &[1., 1.])],
            &[&[3. * silu(2.)]],
        ),
    ]
}

/// cos and sin of the angle with tangent 3/4, at two table rows.
const TABLE: Operand<'static> = (F32, &[2, 2], &[1., 0., 0.8, 0.6]);

fn indexed() -> Vec<Case<'static>> {
    let pages: [Operand<'_>; 3] = [(I32, &[2], &[0., 3.]), (I32, &[2], &[1., 1.]), (I32, &[2, 2], &[-1., -1., 2., 0.])];
    let [positions, ids, tables] = pages;
    // Three blocks of one head, two slots, two elements: position 0 goes to block 2 slot 0, position 3 to block 0 slot 1.
    let x: Operand<'_> = (F32, &[2, 1, 2], &[1., 2., 3., 4.]);
    let plain: Operand<'_> = (F32, &[3, 1, 2, 2], &[9.; 12]);
    let rows: Operand<'_> = (F32, &[2, 1, 2], &[5., 10., 5., 10.]);
    vec![
        case(
            Op::Gather { dtype: F32 },
            &[(F32, &[3, 2], &[1., 2., 3., 4., 5., 6.]), (I32, &[2], &[2., 0.])],
            &[&[5., 6., 1., 2.]],
        ),
        case(Op::Rope { interleaved: false }, &[rows, (I32, &[2], &[0., 1.]), TABLE], &[&[5., 10., 4. - 6., 8. + 3.]]),
        // Only the first two of four elements turn; interleaved pairs of a rotary width of two are the same pair.
        case(
            Op::Rope { interleaved: true },
            &[(F32, &[1, 1, 4], &[5., 10., 7., 8.]), (I32, &[1], &[1.]), TABLE],
            &[&[-2., 11., 7., 8.]],
        ),
        // Angles 0 and 3/4-tangent for the two pairs of four elements.
        case(
            Op::Rope { interleaved: true },
            &[(F32, &[1, 1, 4], &[1., 2., 5., 10.]), (I32, &[1], &[0.]), (F32, &[1, 4], &[1., 0.8, 0., 0.6])],
            &[&[1., 2., -2., 11.]],
        ),
        case(
            Op::Rope { interleaved: false },
            &[(F32, &[1, 1, 4], &[1., 5., 2., 10.]), (I32, &[1], &[0.]), (F32, &[1, 4], &[1., 0.8, 0., 0.6])],
            &[&[1., -2., 2., 11.]],
        ),
        case(
            Op::CacheWrite { transposed: false },
            &[plain, x, positions, ids, tables],
            &[&[9., 9., 3., 4., 9., 9., 9., 9., 1., 2., 9., 9.]],
        ),
        case(
            Op::CacheWrite { transposed: true },
            &[plain, x, positions, ids, tables],
            &[&[9., 3., 9., 4., 9., 9., 9., 9., 1., 9., 2., 9.]],
        ),
        // Sequence 0 has no blocks: its write is dropped.
        case(
            Op::CacheWrite { transposed: false },
            &[plain, x, positions, (I32, &[2], &[0., 1.]), tables],
            &[&[9., 9., 3., 4., 9., 9., 9., 9., 9., 9., 9., 9.]],
        ),
        case(
            Op::RopeCacheWrite { interleaved: false, transposed: false },
            &[
                (F32, &[1, 1, 2, 2], &[0.; 4]),
                rows,
                (I32, &[2], &[0., 1.]),
                TABLE,
                (I32, &[2], &[0., 0.]),
                (I32, &[1, 1], &[0.]),
            ],
            &[&[5., 10., -2., 11.]],
        ),
        attention_case(),
    ]
}

fn sparse() -> Vec<Case<'static>> {
    let scores: Operand<'_> = (F32, &[3, 5], &[5., 6., 9., 9., 9., 1., 3., -0., 0., 1., 0., -0., 0., 7., 9.]);
    vec![
        // Positions 0 and 1 are in block 1, 2 and 3 in block 0. Token 0's window of 1 is below `skip`.
        case(
            Op::IndexScores { columns: shape(&[4]), skip: 1 },
            &[
                (F32, &[2, 2, 2], &[1., 1., 1., 1., 1., 0., 0., 1.]),
                (F32, &[2, 2], &[1., 1., 2., -1.]),
                (F32, &[2, 1, 2, 2], &[5., 9., 1., 9., 1., -2., 0., 3.]),
                (I32, &[2], &[0., 2.]),
                (I32, &[2], &[0., 0.]),
                (I32, &[1, 2], &[1., 0.]),
            ],
            &[&[0., 0., 0., 0., 2., -3., 9., 0.]],
        ),
        // A window of two; 3 and two of the three equal 1, 0, -0; no column beyond the position.
        case(Op::Topk { k: 3 }, &[scores, (I32, &[3], &[1., 4., 3.])], &[&[0., 1., -1., 0., 1., 4., 0., 1., 3.]]),
        case(Op::Window { k: 3 }, &[(I32, &[2], &[0., 5.])], &[&[0., -1., -1., 0., 1., 2.]]),
        // Token 0 may not see position 1 yet, token 1 does not want position 0, token 2 wants nothing.
        case(
            Op::SparseAttention { scale: Real(2.0), dtype: F32 },
            &[
                (F32, &[3, 1, 2], &[1., 0., 0., 1., 0., 1.]),
                (F32, &[2, 1, 2, 2], &[0., 0., 0., 0., 0., 1., 0., 0.]),
                (F32, &[2, 1, 2, 2], &[0., 0., 0., 0., 4., 8., 8., 16.]),
                (I32, &[3, 2], &[1., 0., -1., 1., -1., 7.]),
                (I32, &[3], &[0., 1., 1.]),
                (I32, &[3], &[0., 0., 0.]),
                (I32, &[1, 2], &[1., 0.]),
            ],
            &[&[4., 8., 8., 16., 0., 0.]],
        ),
    ]
}

/// What has no number in the ring: NaN above infinity, equal NaNs by column, and windows of at most k whatever they hold.
#[test]
fn topk_ranks_what_is_not_finite() {
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let rows = [[nan, -inf, inf, -nan, 1.0], [-inf, nan, -inf, -inf, 0.0], [nan, -inf, inf, 0.0, 0.0]];
    let operands: &[Operand<'_>] = &[(F32, &[3, 5], &rows.concat()), (I32, &[3], &[4., 3., 1.])];
    let found = numbers(&run::<F64>(&Op::Topk { k: 2 }, operands).unwrap()[0]);
    assert_eq!(found, [0., 3., 0., 1., 0., 1.]);
}

/// Two query heads over one KV head, blocks of two positions in the order 1, 0: position 1 sees scores 0 and ln 3.
fn attention_case() -> Case<'static> {
    let half = 3f64.ln() / 2.0;
    let keys: &'static [f64] = Box::leak(Box::new([0., 0., 0., 0., 0., half, 0., 0.]));
    case(
        Op::Attention { scale: Real(2.0), dtype: F32, window: 0 },
        &[
            (F32, &[2, 2, 2], &[1., 0., 0., 1., 1., 0., 0., 1.]),
            // [N, Hkv, D, S]: block 1 holds element 0 of positions 0 and 1, then element 1.
            (F32, &[2, 1, 2, 2], keys),
            (F32, &[2, 1, 2, 2], &[0., 0., 0., 0., 4., 8., 8., 16.]),
            (I32, &[2], &[0., 1.]),
            (I32, &[2], &[0., 0.]),
            (I32, &[1, 2], &[1., 0.]),
        ],
        &[&[4., 8., 4., 8., 7., 14., 6., 12.]],
    )
}

fn leaves() -> Vec<Case<'static>> {
    let table = |factor: f64, theta: f64| Op::RopeTable {
        positions: 2,
        dim: 4,
        theta: Real(theta),
        factor: Real(factor),
        low: Real(1.0),
        high: Real(4.0),
        original: 64,
    };
    // Frequencies 1 and 1/100: a wavelength of 628 is over 64, so Llama 3 divides the second by the factor.
    let (a, b) = (1f64, 0.01f64);
    vec![
        case(Op::Constant { value: Real(0.1), dtype: F32 }, &[], &[&[0.1]]),
        case(Op::Constant { value: Real(1.00390625), dtype: BF16 }, &[], &[&[1.0]]),
        case(Op::Constant { value: Real(3.0), dtype: I32 }, &[], &[&[3.0]]),
        case(Op::Numbers { values: vec![Real(0.5), Real(-0.1)] }, &[], &[&[0.5, -0.1]]),
        case(Op::Iota { size: 3 }, &[], &[&[0., 1., 2.]]),
        case(table(1.0, 1e4), &[], &[&[1., 1., 0., 0., a.cos(), b.cos(), a.sin(), b.sin()]]),
        case(table(8.0, 1e4), &[], &[&[1., 1., 0., 0., a.cos(), (b / 8.).cos(), a.sin(), (b / 8.).sin()]]),
        case(
            table(1.0, 1e4),
            &[(F32, &[2], &[1., 4.])],
            &[&[1., 1., 0., 0., a.cos(), (b / 4.).cos(), a.sin(), (b / 4.).sin()]],
        ),
    ]
}

/// Llama 3's middle band: a wavelength of 20 pi lies between 64 / 4 and 64 / 1.
#[test]
fn rope_table_interpolates_between_the_bands() {
    let op = Op::RopeTable {
        positions: 2,
        dim: 4,
        theta: Real(100.0),
        factor: Real(8.0),
        low: Real(1.0),
        high: Real(4.0),
        original: 64,
    };
    let smooth = (64.0 / (20.0 * std::f64::consts::PI) - 1.0) / 3.0;
    let frequency = (1.0 - smooth) * 0.1 / 8.0 + smooth * 0.1;
    let found = numbers(&run::<F64>(&op, &[]).unwrap()[0]);
    assert!(close(&found[5..6], &[frequency.cos()]) && close(&found[7..], &[frequency.sin()]), "{found:?}");
}

fn all_cases() -> Vec<Case<'static>> {
    [elementwise(), casts(), reductions(), quantised(), views(), contractions(), indexed(), sparse(), leaves()]
        .into_iter()
        .flatten()
        .collect()
}

#[test]
fn every_op_gives_the_result_worked_out_by_hand() {
    for case in all_cases() {
        let results = run::<F64>(&case.op, &case.operands).unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
        let found: Vec<Vec<f64>> = results.iter().map(numbers).collect();
        assert_eq!(found.len(), case.expected.len(), "{:?}", case.op);
        for (found, expected) in found.iter().zip(&case.expected) {
            assert!(close(found, expected), "{:?}: found {found:?}, expected {expected:?}", case.op);
        }
    }
}

/// The ring gives every case results of the same shapes, twice the same.
#[test]
fn every_op_runs_in_the_ring() {
    for case in all_cases() {
        let once = run::<Ring>(&case.op, &case.operands).unwrap_or_else(|e| panic!("{:?}: {e}", case.op));
        let again = run::<Ring>(&case.op, &case.operands).unwrap();
        for ((a, b), expected) in once.iter().zip(&again).zip(&case.expected) {
            assert_eq!(a.len(), expected.len(), "{:?}", case.op);
            assert_eq!((a.as_values(), a.as_ints()), (b.as_values(), b.as_ints()), "{:?}", case.op);
        }
    }
}

#[test]
fn the_table_of_cases_covers_every_op() {
    let mut covered: BTreeSet<OpKind> = all_cases().iter().map(|c| c.op.kind()).collect();
    covered.extend(super::collectives::all_cases().iter().map(|c| c.op.kind()));
    // `run` binds operands through inputs; weights and states are read in laws.rs.
    let leaves = BTreeSet::from([OpKind::Input, OpKind::Weight, OpKind::State]);
    let missing: Vec<_> = OpKind::ALL.iter().filter(|k| !covered.contains(k) && !leaves.contains(k)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn q8a_rounds_to_254ths_of_127ths_of_the_block_maximum() {
    let mut values = [0.0; 64];
    (values[0], values[1], values[2], values[40]) = (-127.0, 1.0 / 600.0, 2.5, 0.5);
    let found = numbers(&run::<F64>(&Op::Cast { dtype: DType::Q8A }, &[(F32, &[2, 32], &values)]).unwrap()[0]);
    assert_eq!(&found[..4], &[-127.0, 0.0, 2.5, 0.0]);
    assert!((found[40] - 0.5).abs() < 1e-7, "{}", found[40]);
}
