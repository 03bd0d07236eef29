//! FP8 and FP4 in registers, by integer arithmetic that every target has: codes to f32, which holds them exactly, and f32 to codes,
//! nearest even and saturating. The OCP formats and gfx942's FNUZ ones differ in their bias and their NaN only, so both run on all
//! targets, and codes stay as a checkpoint has them.

use crate::tile::{Binary, Builder, Compare, Conversion, Elem, V};
use weldment_ir::DType;

/// What sets a format apart. Its code is a sign, an exponent and a mantissa.
#[derive(Clone, Copy, Debug)]
pub struct MiniFloat {
    mantissa: i64,
    bias: i64,
    /// Bits below the sign.
    magnitude: i64,
    max: f64,
    /// The code that is no number: of those that have an infinity, the one written.
    nan: Option<i64>,
    /// The magnitude that is infinite; those above it are no numbers.
    infinity: Option<i64>,
}

impl MiniFloat {
    /// The format of a dtype, if it is one.
    pub const fn of(dtype: DType) -> Option<MiniFloat> {
        Some(match dtype {
            DType::F8E4M3 => MiniFloat::new([3, 7, 7], 448.0, Some(0x7f), None),
            DType::F8E4M3Fnuz => MiniFloat::new([3, 8, 7], 240.0, Some(0x80), None),
            DType::F8E5M2 => MiniFloat::new([2, 15, 7], 57_344.0, Some(0x7e), Some(0x7c)),
            DType::F8E5M2Fnuz => MiniFloat::new([2, 16, 7], 57_344.0, Some(0x80), None),
            DType::F4E2M1 => MiniFloat::new([1, 1, 3], 6.0, None, None),
            _ => return None,
        })
    }

    const fn new(
        [mantissa, bias, magnitude]: [i64; 3],
        max: f64,
        nan: Option<i64>,
        infinity: Option<i64>,
    ) -> MiniFloat {
        MiniFloat { mantissa, bias, magnitude, max, nan, infinity }
    }

    /// The largest number.
    pub const fn max(self) -> f64 {
        self.max
    }

    /// True where the code of -0 is the NaN.
    fn is_fnuz(self) -> bool {
        self.nan == Some(1 << self.magnitude)
    }

    /// Bytes of 8-bit codes as f32.
    pub fn decode(self, b: &mut Builder, bytes: V) -> V {
        let int = |b: &mut Builder, n: i64| b.int_of(Elem::I32, &[], n);
        let code = b.convert(Conversion::Unsigned, bytes, Elem::I32);
        let (low, top) = (int(b, (1 << self.magnitude) - 1), int(b, 1 << self.magnitude));
        let magnitude = b.binary(Binary::And, code, low);
        let sign = b.binary(Binary::And, code, top);
        let (up, over) = (int(b, 23 - self.mantissa), int(b, 31 - self.magnitude));
        let (placed, sign) = (b.binary(Binary::Shl, magnitude, up), b.binary(Binary::Shl, sign, over));
        let mut bits = b.binary(Binary::Or, placed, sign);
        if let Some(infinity) = self.infinity {
            // The exponent of f32's infinity, less what the product below adds.
            let (infinity, quiet) = (int(b, infinity), int(b, 0x7fc0_0000));
            let (most, top) = (b.binary(Binary::Or, sign, quiet), int(b, 0x7f80_0000));
            let infinite = b.binary(Binary::Or, sign, top);
            let at = b.compare(Compare::Equal, magnitude, infinity);
            bits = b.select(at, infinite, bits);
            let above = b.compare(Compare::Less, infinity, magnitude);
            bits = b.select(above, most, bits);
        } else if let Some(nan) = self.nan {
            let (nan, quiet) = (int(b, nan), int(b, 0x7fc0_0000));
            let compared = if self.is_fnuz() { code } else { magnitude };
            let none = b.compare(Compare::Equal, compared, nan);
            bits = b.select(none, quiet, bits);
        }
        // The exponent has the format's bias still: the product is exact, and numbers below the format's normals come out of f32's.
        let (v, rebias) = (b.bitcast(bits, Elem::F32), b.float(f64::powi(2.0, 127 - self.bias as i32)));
        b.mul(v, rebias)
    }

    /// f32 values as codes, i32.
    pub fn encode(self, b: &mut Builder, v: V) -> V {
        let int = |b: &mut Builder, n: i64| b.int_of(Elem::I32, &[], n);
        let (magnitude, limit) = (b.abs(v), b.float(self.max));
        let bounded = b.min(magnitude, limit);
        // Half a step less one, and one more where the last bit that stays is odd; a carry moves into the exponent by itself.
        let drop = 23 - self.mantissa;
        let bits = b.bitcast(bounded, Elem::I32);
        let (down, one, half) = (int(b, drop), int(b, 1), int(b, (1 << (drop - 1)) - 1));
        let kept = b.binary(Binary::Shr, bits, down);
        let odd = b.binary(Binary::And, kept, one);
        let rounded = b.add(bits, half);
        let rounded = b.add(rounded, odd);
        let rounded = b.binary(Binary::Shr, rounded, down);
        let rebias = int(b, (127 - self.bias) << self.mantissa);
        let normal = b.sub(rounded, rebias);
        // Below the normals, whole steps.
        let least = 1 - self.bias as i32;
        let steps = b.float(f64::powi(2.0, self.mantissa as i32 - least));
        let scaled = b.mul(bounded, steps);
        let scaled = b.round(scaled);
        let subnormal = b.convert(Conversion::FloatToSigned, scaled, Elem::I32);
        let least = b.float(f64::powi(2.0, least));
        let small = b.compare(Compare::Less, bounded, least);
        let code = b.select(small, subnormal, normal);
        let (bits, over, top) = (b.bitcast(v, Elem::I32), int(b, 31 - self.magnitude), int(b, 1 << self.magnitude));
        let sign = b.binary(Binary::Shr, bits, over);
        let sign = b.binary(Binary::And, sign, top);
        let mut signed = b.binary(Binary::Or, code, sign);
        if self.is_fnuz() {
            let zero = int(b, 0);
            let none = b.compare(Compare::Equal, code, zero);
            signed = b.select(none, zero, signed);
        }
        if let Some(nan) = self.nan {
            let nan = int(b, nan);
            let number = b.compare(Compare::Equal, v, v);
            signed = b.select(number, signed, nan);
        }
        signed
    }
}

/// The power of two of an f8e8m0 code (i8), as f32.
pub fn power_from_code(b: &mut Builder, code: V) -> V {
    let int = |b: &mut Builder, n: i64| b.int_of(Elem::I32, &[], n);
    let code = b.convert(Conversion::Unsigned, code, Elem::I32);
    let (zero, top, up) = (int(b, 0), int(b, 255), int(b, 23));
    let bits = b.binary(Binary::Shl, code, up);
    // 2^-127 is below f32's normals; the last code is no number.
    let (least, quiet) = (int(b, 0x0040_0000), int(b, 0x7fc0_0000));
    let none = b.compare(Compare::Equal, code, zero);
    let bits = b.select(none, least, bits);
    let nan = b.compare(Compare::Equal, code, top);
    let bits = b.select(nan, quiet, bits);
    b.bitcast(bits, Elem::F32)
}

/// The f8e8m0 code (i8) of the power of two nearest to an f32 by its exponent: the least for what is not over 0.
pub fn power_to_code(b: &mut Builder, v: V) -> V {
    let int = |b: &mut Builder, n: i64| b.int_of(Elem::I32, &[], n);
    let bits = b.bitcast(v, Elem::I32);
    // Fractions from the square root of two on belong to the next power; below f32's normals that is where 2^-126.5 lies.
    let (down, root, small_root, fraction) =
        (int(b, 23), int(b, 0x0035_04f4), int(b, 0x005a_827a), int(b, 0x007f_ffff));
    let (zero, one, most) = (int(b, 0), int(b, 1), int(b, 254));
    let field = b.binary(Binary::Shr, bits, down);
    let rest = b.binary(Binary::And, bits, fraction);
    let subnormal = b.compare(Compare::Equal, field, zero);
    let edge = b.select(subnormal, small_root, root);
    let up = b.compare(Compare::LessEqual, edge, rest);
    let next = b.add(field, one);
    let code = b.select(up, next, field);
    let code = b.min(code, most);
    let nothing = b.float(0.0);
    let positive = b.compare(Compare::Less, nothing, v);
    let code = b.select(positive, code, zero);
    b.convert(Conversion::Signed, code, Elem::I8)
}
