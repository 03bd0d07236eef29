//! Exhaustive checks of the small formats; block formats against vectors computed by llama.cpp's `gguf` Python package.

use super::*;
use crate::DType;

fn bytes(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    })
}

fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf29ce484222325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100000001b3))
}

/// FNV-1a of the little-endian f32 bytes, -0 folded onto 0.
fn fingerprint(values: &[f32]) -> u64 {
    fnv(values.iter().flat_map(|v| (v + 0.0).to_le_bytes()))
}

#[test]
fn block_formats_agree_with_gguf() {
    // 8 pseudo-random blocks each, scales made finite by clearing the top exponent bit.
    // Expected: first values, last value, fingerprint of `gguf.quants.dequantize` (gguf 0.19).
    type Case = (DType, &'static [usize], [f32; 4], f32, u64);
    let cases: [Case; 9] = [
        (DType::Q8_0, &[0], [6.738_281_3, -19.372_559, -19.091_797, -9.826_66], 0.672_950_74, 0xdaa61db2fe282718),
        (DType::Q4_0, &[0], [0.0, 0.842_285_16, 1.123_046_9, 1.403_808_6], 0.038_223_267, 0x1251d07697f4efd2),
        (
            DType::Q4_1,
            &[0, 2],
            [-1.122_956_8, -0.842_195_03, -1.965_241_9, -0.561_433_3],
            -0.678_836_8,
            0x9c7f0f447ffa817,
        ),
        (DType::Q5_0, &[0], [2.526_855_5, 3.930_664, 1.403_808_6, -1.403_808_6], 0.001_687_109_5, 0x4a0b9aec8a7bb955),
        (
            DType::Q5_1,
            &[0, 2],
            [-3.088_288_8, -1.403_718_5, -7.580_476_3, -4.211_335_7],
            -0.917_559_15,
            0x1d83ef629afb8806,
        ),
        (DType::Q4K, &[0, 2], [-4.497_504_7, -8.989_693, -4.497_504_7, -5.620_551_6], 20.206_074, 0x1874e67960d9cd4b),
        (DType::Q5K, &[0, 2], [-0.005_317_211, -6.743_598_5, -11.235_786, -19.097_115], 20.080_467, 0x1b0d66e972cad868),
        (DType::Q6K, &[208], [2.031_320_6, -0.451_404_57, -0.902_809_14, -2.369_874], -0.852_127_1, 0x6009fea8381d6488),
        (DType::MxFp4, &[], [1.0, 0.0, 1.5, 1.0], 412_316_860_416.0, 0xbc9dba6448be7ab1),
    ];
    for (dtype, scales, first, last, print) in cases {
        let size = dtype.block_bytes();
        let mut stored: Vec<u8> = bytes(7).take(8 * size).collect();
        for block in stored.chunks_exact_mut(size) {
            scales.iter().for_each(|at| block[at + 1] &= 0xbf);
        }
        let values = decode_vec(dtype, &stored, 8 * dtype.block_elements()).unwrap();
        assert_eq!(values[..4], first, "{dtype}");
        assert_eq!(values.last(), Some(&last), "{dtype}");
        assert_eq!(fingerprint(&values), print, "{dtype}");
    }
}

#[test]
fn quantisers_agree_with_gguf() {
    let first = |seed| f32::from(bytes(seed).next().unwrap());
    let values: Vec<f32> = (0..256)
        .map(|i| (first(i) + 256.0 * bytes(i + 1000).nth(1).map_or(0.0, f32::from) - 32768.0) / 4096.0)
        .collect();
    for (dtype, print) in
        [(DType::Q8_0, 0xe21eed3e146d8c1b), (DType::Q4_0, 0xf0b1ff266e3cb7ba), (DType::Q4_1, 0x5edcd2749dcb3bd1)]
    {
        assert_eq!(fnv(encode(dtype, &values, Overflow::Ieee).unwrap()), print, "{dtype}");
    }
}

#[test]
fn activations_quantise() {
    let values: Vec<f32> = (0..64).map(|i| (i as f32 - 20.0) * 0.25).collect();
    let stored = encode(DType::Q8A, &values, Overflow::Ieee).unwrap();
    let again = decode_vec(DType::Q8A, &stored, 64).unwrap();
    for (block, (values, again)) in stored.chunks_exact(72).zip(values.chunks_exact(32).zip(again.chunks_exact(32))) {
        let amax = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(values.iter().zip(again).all(|(a, b)| (a - b).abs() <= amax / 127.0 / 508.0 + 1e-6));
        let sum = f32::from_le_bytes([block[68], block[69], block[70], block[71]]);
        assert!((sum - again.iter().sum::<f32>()).abs() < 1e-3);
    }
}

#[test]
fn mxfp4_block_by_hand() {
    // Scale 2^(128-127) = 2; low nibbles are elements 0..16, high nibbles 16..32.
    let mut block = [0u8; 17];
    block[0] = 128;
    block[1] = 0x71; // element 0: code 1 = 0.5, element 16: code 7 = 6
    block[16] = 0xf9; // element 15: code 9 = -0.5, element 31: code 15 = -6
    let values = decode_vec(DType::MxFp4, &block, 32).unwrap();
    assert_eq!((values[0], values[16], values[15], values[31]), (1.0, 12.0, -1.0, -12.0));
    assert!(values[1..15].iter().all(|v| *v == 0.0));
    for (code, scale) in [(0u8, 2f64.powi(-127)), (1, 2f64.powi(-126)), (2, 2f64.powi(-125)), (254, 2f64.powi(127))] {
        block[0] = code;
        assert_eq!(f64::from(decode_vec(DType::MxFp4, &block, 32).unwrap()[0]), 0.5 * scale, "code {code}");
    }
}

/// The value of `code` by the format's definition, in f64.
fn definition(code: u8, exponent_bits: u32, mantissa_bits: u32, bias: i32) -> f64 {
    let sign = if code >> (exponent_bits + mantissa_bits) & 1 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
    let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
    sign * if exponent == 0 { fraction * 2f64.powi(1 - bias) } else { (1.0 + fraction) * 2f64.powi(exponent - bias) }
}

#[test]
fn minifloats_decode_by_definition() {
    let is_nan: [fn(u8) -> bool; 4] = [|c| c & 0x7f == 0x7f, |c| c == 0x80, |c| c & 0x7f > 0x7c, |c| c == 0x80];
    let formats = [
        (DType::F8E4M3, 4, 3, 7),
        (DType::F8E4M3Fnuz, 4, 3, 8),
        (DType::F8E5M2, 5, 2, 15),
        (DType::F8E5M2Fnuz, 5, 2, 16),
    ];
    let all: Vec<u8> = (0..=255).collect();
    for ((dtype, e, m, bias), is_nan) in formats.into_iter().zip(is_nan) {
        let values = decode_vec(dtype, &all, 256).unwrap();
        for (code, value) in (0..=u8::MAX).zip(&values) {
            if is_nan(code) {
                assert!(value.is_nan(), "{dtype} {code:#x}");
            } else if dtype == DType::F8E5M2 && code & 0x7f == 0x7c {
                assert_eq!(*value, if code == 0x7c { f32::INFINITY } else { f32::NEG_INFINITY });
            } else {
                assert_eq!(f64::from(*value), definition(code, e, m, bias), "{dtype} {code:#x}");
            }
        }
    }
    assert_eq!(
        [MiniFloat::E4M3, MiniFloat::E4M3_FNUZ, MiniFloat::E5M2, MiniFloat::E5M2_FNUZ].map(MiniFloat::max),
        [448., 240., 57344., 57344.]
    );
    let fours = decode_vec(DType::F4E2M1, &[0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe], 16).unwrap();
    assert_eq!(fours, [0., 0.5, 1., 1.5, 2., 3., 4., 6., -0., -0.5, -1., -1.5, -2., -3., -4., -6.]);
    assert_eq!(f64::from(e8m0_to_f32(0)), 2f64.powi(-127));
    assert_eq!(e8m0_to_f32(127), 1.0);
    assert!(e8m0_to_f32(255).is_nan());
}

#[test]
fn minifloats_round_to_nearest_even() {
    for dtype in [DType::F8E4M3, DType::F8E4M3Fnuz, DType::F8E5M2, DType::F8E5M2Fnuz, DType::F4E2M1] {
        let format = match dtype {
            DType::F8E4M3 => MiniFloat::E4M3,
            DType::F8E4M3Fnuz => MiniFloat::E4M3_FNUZ,
            DType::F8E5M2 => MiniFloat::E5M2,
            DType::F8E5M2Fnuz => MiniFloat::E5M2_FNUZ,
            _ => MiniFloat::E2M1,
        };
        let codes: Vec<u8> = (0..128).take_while(|c| format.decode(*c) <= format.max()).collect();
        for pair in codes.windows(2) {
            let (low, high) = (format.decode(pair[0]), format.decode(pair[1]));
            if low >= format.max() {
                break;
            }
            let middle = (low + high) / 2.0;
            let even = if pair[0] % 2 == 0 { pair[0] } else { pair[1] };
            let encode = |v| format.encode(v, Overflow::Ieee);
            assert_eq!(encode(low), pair[0], "{dtype}");
            assert_eq!(encode(middle), even, "{dtype} tie at {middle}");
            assert_eq!(encode(middle.next_down()), pair[0], "{dtype} below {middle}");
            assert_eq!(encode(middle.next_up()), pair[1], "{dtype} above {middle}");
            assert_eq!(format.decode(encode(-high)), -high, "{dtype}");
        }
        for beyond in [format.max() * 2.0, f32::MAX, f32::INFINITY] {
            assert_eq!(format.decode(format.encode(beyond, Overflow::Saturate)), format.max());
            assert_eq!(format.decode(format.encode(-beyond, Overflow::Saturate)), -format.max());
            let ieee = format.decode(format.encode(beyond, Overflow::Ieee));
            match dtype {
                DType::F8E5M2 => assert_eq!(ieee, f32::INFINITY),
                DType::F4E2M1 => assert_eq!(ieee, 6.0),
                _ => assert!(ieee.is_nan()),
            }
        }
        assert_eq!(format.decode(format.encode(1e-30, Overflow::Ieee)), 0.0);
        assert!(dtype == DType::F4E2M1 || format.decode(format.encode(f32::NAN, Overflow::Saturate)).is_nan());
    }
}

#[test]
fn sixteen_bit_floats_round_trip() {
    let stored: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for dtype in [DType::F16, DType::BF16] {
        let values = decode_vec(dtype, &stored, 1 << 16).unwrap();
        for (code, value) in (0..=u16::MAX).zip(&values) {
            let (exponent_bits, mantissa_bits) = if dtype == DType::F16 { (5, 10) } else { (8, 7) };
            let exponent = i32::from(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
            let fraction = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1 << mantissa_bits);
            let bias = (1 << (exponent_bits - 1)) - 1;
            let sign = if code >> 15 == 1 { -1.0 } else { 1.0 };
            if exponent == (1 << exponent_bits) - 1 {
                assert!(if fraction == 0.0 { f64::from(*value) == sign * f64::INFINITY } else { value.is_nan() });
            } else {
                let expected = if exponent == 0 {
                    fraction * 2f64.powi(1 - bias)
                } else {
                    (1.0 + fraction) * 2f64.powi(exponent - bias)
                };
                assert_eq!(f64::from(*value), sign * expected, "{dtype} {code:#x}");
            }
        }
        let again = decode_vec(dtype, &encode(dtype, &values, Overflow::Ieee).unwrap(), 1 << 16).unwrap();
        assert!(values.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())));
        let saturated =
            decode_vec(dtype, &encode(dtype, &[f32::INFINITY, -3.4e38], Overflow::Saturate).unwrap(), 2).unwrap();
        assert!(saturated.iter().all(|v| v.is_finite()) && saturated[0] > 0.0 && saturated[1] < 0.0);
    }
}

#[test]
fn plain_types_decode() {
    assert_eq!(decode_vec(DType::I8, &[0xff, 0x80], 2).unwrap(), [-1.0, -128.0]);
    assert_eq!(decode_vec(DType::U8, &[0xff], 1).unwrap(), [255.0]);
    assert_eq!(decode_vec(DType::Bool, &[0, 1], 2).unwrap(), [0.0, 1.0]);
    assert_eq!(decode_vec(DType::I32, &(-5i32).to_le_bytes(), 1).unwrap(), [-5.0]);
    assert_eq!(decode_vec(DType::U32, &7u32.to_le_bytes(), 1).unwrap(), [7.0]);
    assert_eq!(decode_vec(DType::I64, &(-9i64).to_le_bytes(), 1).unwrap(), [-9.0]);
    assert_eq!(decode_vec(DType::F32, &1.5f32.to_le_bytes(), 1).unwrap(), [1.5]);
}

#[test]
fn wrong_sizes_are_refused() {
    for dtype in DType::ALL {
        let (elements, size) = (dtype.block_elements(), dtype.block_bytes());
        let mut out = vec![0.0; elements];
        assert!(decode(*dtype, &vec![0; size], &mut out).is_ok());
        assert!(matches!(decode(*dtype, &vec![0; size + 1], &mut out), Err(CodecError::Length { .. })));
        assert!(matches!(decode(*dtype, &vec![0; size - 1], &mut out), Err(CodecError::Length { .. })));
        if elements > 1 {
            out.pop();
            assert!(matches!(decode(*dtype, &vec![0; size], &mut out), Err(CodecError::PartialBlock { .. })));
        }
    }
    assert!(decode_vec(DType::F32, &[], usize::MAX).is_err());
    assert_eq!(encode(DType::Q6K, &[0.0; 256], Overflow::Ieee), Err(CodecError::NoEncoder(DType::Q6K)));
}

#[test]
fn e8m0_scales_round_by_their_exponent() {
    let values = [4.0, 1000.0, 0.0, -1.0, f32::INFINITY, f32::NAN, 1e-45];
    assert_eq!(encode(DType::F8E8M0, &values, Overflow::Ieee).unwrap(), [129, 137, 0, 0, 254, 255, 0]);
    let all: Vec<u8> = (0..=255).collect();
    let decoded = decode_vec(DType::F8E8M0, &all, 256).unwrap();
    assert_eq!(encode(DType::F8E8M0, &decoded, Overflow::Ieee).unwrap(), all);
}
