//! Quantised activations and products of FP8 codes, on the host and as tile programs of GPUs, against the interpreter.

use weldment_ir::generate::Random;
use weldment_ir::{DType, Dim, Op, Real, Value};
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, difference, execute, fill, reference};
use weldment_tests::programs::interpret_programs;

const TARGETS: [&str; 2] = ["host", "x86-64-v3"];
const GPUS: [&str; 2] = ["gfx942", "sm_90a"];
const F8: DType = DType::F8E4M3;
const FNUZ: DType = DType::F8E4M3Fnuz;

fn rows(width: u64) -> Vec<Dim> {
    vec![Dim::sym("T"), Dim::Const(width)]
}

/// Outputs on every target differ from the interpreter's by no more than `tolerance`.
#[track_caller]
fn check(mut c: Draft, outputs: &[Value], tolerance: f64) {
    c.results(outputs);
    let values = fill(&c.graph, &c.dims, c.given.clone(), 3);
    let expected = reference(&c.graph, &c.dims, &values).expect("the interpreter takes the case");
    for target in TARGETS.iter().chain(&GPUS) {
        let found = if TARGETS.contains(target) {
            execute(&c.graph, &c.dims, &values, target, 2)
        } else {
            interpret_programs(&c.graph, &c.dims, &values, target)
        };
        let found = found.unwrap_or_else(|e| panic!("{target}: {e}"));
        let d = difference(&expected, &found);
        assert!(d <= tolerance, "{target}: difference {d} over {tolerance}\n{expected:.4?}\n{found:.4?}");
    }
}

fn quantise(c: &mut Draft, x: Value, dtype: DType, group: u64) -> [Value; 2] {
    let codes = c.push(Op::Quantise { dtype, group: group as i64 }, &[x]);
    [codes, Value { result: 1, ..codes }]
}

/// Magnitudes from far below f32's normals to far above any code, zeros of both signs, ties.
fn extreme(n: u64, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    let one = |i: u64| match i % 8 {
        0 => random.small() as f32,
        1 => -0.0,
        2 => f32::from_bits(random.bits() as u32 & 0x807f_ffff),
        3 => (random.small() * 1e37) as f32,
        _ => (random.small() * 2f64.powi(random.below(24) as i32 - 12)) as f32,
    };
    (0..n).map(one).collect()
}

/// Codes and scales are the interpreter's, to the bit, in groups of all sizes.
#[test]
fn codes_and_scales_are_exact() {
    let shapes = [(1, 1, 1), (3, 7, 7), (5, 256, 128), (2, 96, 32), (3, 100, 20), (1, 576, 576), (2, 2048, 128)];
    for (i, (t, k, group)) in shapes.into_iter().enumerate() {
        for dtype in [DType::F32, DType::BF16, DType::F16].into_iter().skip(i % 3).step_by(2) {
            let format = if i % 3 == 1 { FNUZ } else { F8 };
            let mut c = Draft::new(t, 1..=6);
            let x = c.input("x", dtype, rows(k));
            let [codes, scales] = quantise(&mut c, x, format, group);
            check(c, &[codes, scales], 0.0);
        }
    }
}

#[test]
fn micro_scaled_codes_are_exact() {
    for (t, k) in [(1, 32), (5, 96), (3, 2048)] {
        for dtype in [DType::F32, DType::BF16] {
            let mut c = Draft::new(t, 1..=6);
            let x = c.input("x", dtype, rows(k));
            let [codes, scales] = quantise(&mut c, x, DType::F4E2M1, 32);
            check(c, &[codes, scales], 0.0);
        }
    }
}

#[test]
fn extreme_values_quantise_alike() {
    for (format, group) in [(F8, 8), (F8, 64), (FNUZ, 32), (DType::F4E2M1, 32)] {
        let mut c = Draft::new(4, 4..=4);
        let x = c.input("x", DType::F32, rows(64));
        let mut values = extreme(256, 11);
        // A group of zeros, and one of subnormals.
        values[..32].fill(0.0);
        values[64..96].iter_mut().for_each(|v| *v = 1e-40);
        c.given.insert("x".into(), Stored::floats(DType::F32, &[4, 64], &values));
        let [codes, scales] = quantise(&mut c, x, format, group);
        check(c, &[codes, scales], 0.0);
    }
}

/// Every code but the NaN is widened to its number, and the NaN to one.
#[test]
fn every_code_is_read_as_its_number() {
    for format in [F8, FNUZ] {
        let mut c = Draft::new(1, 1..=1);
        let codes = c.input("codes", format, rows(1));
        let scales = c.input("scales", DType::F32, rows(1));
        let w = c.weight("w", format, &[256, 1]);
        let w_scales = c.weight("w_scales", DType::F32, &[1, 1]);
        let all: Vec<u8> = (0..=255).collect();
        c.given.insert("w".into(), Stored { dtype: format, shape: vec![256, 1], bytes: all });
        c.given.insert("codes".into(), Stored::floats(format, &[1, 1], &[2.0]));
        for name in ["scales", "w_scales"] {
            c.given.insert(name.into(), Stored::floats(DType::F32, &[1, 1], &[1.0]));
        }
        let y = c.push(Op::ScaledMatmul { rows: 256, columns: 1, dtype: DType::F32 }, &[codes, scales, w, w_scales]);
        c.results(&[y]);
        let expected = reference(&c.graph, &c.dims, &c.given).expect("the interpreter takes the case");
        let nans = expected["out0"].iter().filter(|v| v.is_nan()).count();
        assert_eq!(nans, if format == F8 { 2 } else { 1 });
        for target in TARGETS.iter().chain(&GPUS) {
            let found = if TARGETS.contains(target) {
                execute(&c.graph, &c.dims, &c.given, target, 1)
            } else {
                interpret_programs(&c.graph, &c.dims, &c.given, target)
            };
            let found = found.unwrap_or_else(|e| panic!("{target}: {e}"));
            for (a, b) in expected["out0"].iter().zip(&found["out0"]) {
                assert!(a == b || (a.is_nan() && b.is_nan()), "{target} {format}: {a} and {b}");
            }
        }
    }
}

/// (tokens, most, N, K, group of x, rows and columns of a block of w).
const PRODUCTS: [(u64, u64, u64, u64, u64, u64, u64); 10] = [
    (1, 1, 1, 1, 1, 1, 1),
    (1, 1, 17, 33, 33, 1, 33),
    (3, 4, 40, 24, 24, 40, 24),
    (1, 1, 200, 256, 128, 128, 128),
    (7, 40, 200, 256, 128, 128, 128),
    (5, 64, 96, 96, 32, 32, 32),
    (13, 16, 65, 100, 100, 1, 100),
    (9, 16, 48, 384, 384, 16, 128),
    (4, 4, 40, 64, 16, 1, 32),
    (33, 70, 130, 160, 32, 1, 160),
];

#[test]
fn products_of_codes_of_every_shape() {
    let kinds = [(F8, DType::F32, 2e-5), (FNUZ, DType::BF16, 8e-3), (F8, DType::BF16, 8e-3)];
    for (i, (t, most, n, k, group, rows_of, columns)) in PRODUCTS.into_iter().enumerate() {
        for (format, dtype, tolerance) in kinds.into_iter().skip(i % 3).take(1 + usize::from(i == 4)) {
            let mut c = Draft::new(t, 1..=most);
            let x = c.input("x", DType::F32, rows(k));
            let [codes, scales] = quantise(&mut c, x, format, group);
            let w = c.weight("w", format, &[n, k]);
            let w_scales = c.weight("w_scales", DType::F32, &[n.div_ceil(rows_of), k / columns]);
            let op = Op::ScaledMatmul { rows: rows_of as i64, columns: columns as i64, dtype };
            let y = c.push(op, &[codes, scales, w, w_scales]);
            check(c, &[y], tolerance);
        }
    }
}

/// Norms that are quantised where they are made: codes within a step, and the norm and the sum beside them.
#[test]
fn norms_quantise_as_they_are_made() {
    let cases: [(u64, u64, u64, u64, DType); 7] = [
        (3, 5, 96, 96, F8),
        (3, 5, 256, 128, F8),
        (2, 4, 100, 20, F8),
        (1, 1, 576, 64, FNUZ),
        (5, 6, 192, 32, DType::F4E2M1),
        (2, 2, 2048, 128, F8),
        (1, 2, 20_480, 20_480, F8),
    ];
    for (i, (t, most, k, group, format)) in cases.into_iter().enumerate() {
        for dtype in [DType::F32, DType::BF16].into_iter().skip(i % 2).take(1 + usize::from(i == 2)) {
            let eps = Real(1e-5);
            let mut c = Draft::new(t, 1..=most);
            let x = c.input("x", dtype, rows(k));
            let residual = c.input("residual", dtype, rows(k));
            let w = c.weight("w", dtype, &[k]);
            let op = Op::RmsNormQuantise { eps, dtype, format, group: group as i64 };
            let one = c.push(op, &[x, w]);
            let op = Op::AddRmsNormQuantise { eps, dtype, format, group: group as i64 };
            let two = c.push(op, &[x, residual, w]);
            let result = |v: Value, result| Value { result, ..v };
            // The norm of the second is not read.
            let outputs = [one, result(one, 1), result(one, 2), two, result(two, 1), result(two, 3)];
            let gpus = if group.is_power_of_two() || group == k { &GPUS[..] } else { &[] };
            check_codes(c, &outputs, &[0, 3], gpus);
        }
    }
}

/// Codes may be one step apart, one in a thousand; scales and norms are equal but for the rounding of sums.
#[track_caller]
fn check_codes(mut c: Draft, outputs: &[Value], codes: &[usize], gpus: &[&str]) {
    c.results(outputs);
    let format = c.graph.type_of(outputs[codes[0]]).dtype;
    let values = fill(&c.graph, &c.dims, c.given.clone(), 3);
    let expected = reference(&c.graph, &c.dims, &values).expect("the interpreter takes the case");
    for target in TARGETS.iter().chain(gpus) {
        let found = if TARGETS.contains(target) {
            execute(&c.graph, &c.dims, &values, target, 2)
        } else {
            interpret_programs(&c.graph, &c.dims, &values, target)
        };
        let found = found.unwrap_or_else(|e| panic!("{target}: {e}"));
        for (i, (name, expected)) in expected.iter().enumerate() {
            let found = &found[name];
            if !codes.contains(&i) {
                let apart =
                    expected.iter().zip(found).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f64::max);
                assert!(apart <= 8e-3, "{target} {name}: {apart}");
                continue;
            }
            let apart: Vec<(f64, f64)> =
                expected.iter().copied().zip(found.iter().copied()).filter(|(a, b)| a != b).collect();
            assert!(apart.len() * 1000 <= expected.len(), "{target} {name}: {} of {}", apart.len(), expected.len());
            // Neighbours of FP8 are an eighth apart at most, those of FP4 a half.
            let step = if format == DType::F4E2M1 { 0.5 } else { 0.125 };
            assert!(apart.iter().all(|(a, b)| (a - b).abs() <= step * a.abs().max(b.abs()).max(0.02)), "{apart:?}");
        }
    }
}
