//! Floats of eight bits and fewer, described by their fields, with exact decoding and round-to-nearest-even encoding.

use super::Overflow;

/// How a format spends its top codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Specials {
    /// Infinity and NaN as in IEEE 754: the top exponent is special.
    Ieee,
    /// OCP "fn": only the all-ones magnitude is NaN, no infinity.
    AllOnesNan,
    /// "fnuz": the negative-zero code is the only NaN, no infinity.
    NegativeZeroNan,
    /// Every code is a finite number.
    None,
}

/// A sign-exponent-mantissa format of at most eight bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MiniFloat {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    specials: Specials,
}

impl MiniFloat {
    /// OCP FP8 E4M3.
    pub const E4M3: MiniFloat = MiniFloat::new(4, 3, 7, Specials::AllOnesNan);
    /// FP8 E4M3 FNUZ.
    pub const E4M3_FNUZ: MiniFloat = MiniFloat::new(4, 3, 8, Specials::NegativeZeroNan);
    /// OCP FP8 E5M2.
    pub const E5M2: MiniFloat = MiniFloat::new(5, 2, 15, Specials::Ieee);
    /// FP8 E5M2 FNUZ.
    pub const E5M2_FNUZ: MiniFloat = MiniFloat::new(5, 2, 16, Specials::NegativeZeroNan);
    /// OCP FP4 E2M1; the code is the low nibble.
    pub const E2M1: MiniFloat = MiniFloat::new(2, 1, 1, Specials::None);

    const fn new(exponent_bits: u32, mantissa_bits: u32, bias: i32, specials: Specials) -> MiniFloat {
        MiniFloat { exponent_bits, mantissa_bits, bias, specials }
    }

    const fn sign_bit(self) -> u8 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    /// The code of the largest finite magnitude.
    const fn max_code(self) -> u8 {
        let magnitude = self.sign_bit() - 1;
        match self.specials {
            Specials::Ieee => magnitude - (1 << self.mantissa_bits),
            Specials::AllOnesNan => magnitude - 1,
            Specials::NegativeZeroNan | Specials::None => magnitude,
        }
    }

    /// A quiet NaN's code, if the format has one.
    const fn nan_code(self) -> Option<u8> {
        match self.specials {
            Specials::Ieee => Some(self.max_code() + 1 + (1 << (self.mantissa_bits - 1))),
            Specials::AllOnesNan => Some(self.sign_bit() - 1),
            Specials::NegativeZeroNan => Some(self.sign_bit()),
            Specials::None => None,
        }
    }

    /// The largest finite value.
    pub fn max(self) -> f32 {
        self.decode(self.max_code())
    }

    /// The value of `code`; bits above the format's width are ignored.
    pub fn decode(self, code: u8) -> f32 {
        let sign = if code & self.sign_bit() == 0 { 1.0f32 } else { -1.0 };
        let magnitude = code & (self.sign_bit() - 1);
        if self.specials == Specials::NegativeZeroNan && magnitude == 0 && sign < 0.0 {
            return f32::NAN;
        }
        if magnitude > self.max_code() {
            let infinite = self.specials == Specials::Ieee && magnitude == self.max_code() + 1;
            return if infinite { sign * f32::INFINITY } else { f32::NAN };
        }
        let exponent = i32::from(magnitude >> self.mantissa_bits);
        let mantissa = i32::from(magnitude) & ((1 << self.mantissa_bits) - 1);
        // A subnormal has the exponent of 1 and no hidden bit.
        let (significand, exponent) =
            if exponent == 0 { (mantissa, 1) } else { (mantissa + (1 << self.mantissa_bits), exponent) };
        sign * significand as f32 * power_of_two(exponent - self.bias - self.mantissa_bits as i32)
    }

    /// The code nearest to `value`, ties to even. A NaN gives NaN, or the largest value where the format has none.
    pub fn encode(self, value: f32, overflow: Overflow) -> u8 {
        if value.is_nan() {
            return self.nan_code().unwrap_or(self.max_code());
        }
        let sign = if value.is_sign_negative() { self.sign_bit() } else { 0 };
        let code = self.encode_magnitude(value.abs());
        let Some(code) = u8::try_from(code).ok().filter(|c| *c <= self.max_code()) else {
            let beyond = match (overflow, self.specials) {
                (Overflow::Saturate, _) | (_, Specials::None) => self.max_code(),
                (Overflow::Ieee, Specials::Ieee) => self.max_code() + 1,
                (Overflow::Ieee, Specials::NegativeZeroNan) => return self.sign_bit(),
                (Overflow::Ieee, Specials::AllOnesNan) => self.sign_bit() - 1,
            };
            return sign | beyond;
        };
        if code == 0 && self.specials == Specials::NegativeZeroNan {
            return 0;
        }
        sign | code
    }

    /// The code of a non-negative value as if exponents had no upper end; anything above [`Self::max_code`] overflowed.
    fn encode_magnitude(self, value: f32) -> u32 {
        let lowest = 1 - self.bias;
        // No format here has subnormals below f32's normals, so reading f32's exponent field is enough.
        let exponent = ((value.to_bits() >> 23) as i32 - 127).max(lowest);
        if exponent > 127 - self.mantissa_bits as i32 {
            return u32::MAX;
        }
        let units = (value * power_of_two(self.mantissa_bits as i32 - exponent)).round_ties_even() as u32;
        // `units` holds the hidden bit, so that a carry moves into the exponent by itself.
        (((exponent - lowest) as u32) << self.mantissa_bits) + units
    }
}

/// 2^`exponent` for normal f32 exponents.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The OCP E8M0 scale nearest to a value, by its exponent, ties to even: 0 for what is not over 0, 255 for NaN.
pub fn e8m0_from_f32(value: f32) -> u8 {
    match value {
        v if v.is_nan() => 255,
        v if v > 0.0 => (f64::from(v).log2().round_ties_even().clamp(-127.0, 127.0) + 127.0) as u8,
        _ => 0,
    }
}

/// An OCP E8M0 scale: 2^(code - 127), NaN for 255. Code 0 is the subnormal 2^-127.
pub fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}
