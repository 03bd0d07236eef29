//! Functions of one real number: what an elementwise op of the same name applies to each element. Each is said once, for every domain.

use crate::op::OpKind;

/// A function; its op has its name in small letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// e^a.
    Exp,
    /// a / (1 + e^-a).
    Silu,
    /// GELU, tanh form.
    Gelu,
    /// tanh a.
    Tanh,
    /// 1 / (1 + e^-a).
    Sigmoid,
    /// 1 / sqrt a.
    Rsqrt,
    /// Square root.
    Sqrt,
}

/// Arguments at which a function is worth trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// All numbers.
    Any,
    /// Small ones, so that sums of results stay finite.
    Bounded,
    /// Those above 0.
    Positive,
}

impl Function {
    /// Every function.
    pub const ALL: &[Function] = &[
        Function::Exp,
        Function::Silu,
        Function::Gelu,
        Function::Tanh,
        Function::Sigmoid,
        Function::Rsqrt,
        Function::Sqrt,
    ];

    /// The function that an op applies, if it applies one.
    pub fn of(kind: OpKind) -> Option<Function> {
        let named = |f: &&Function| format!("{f:?}").eq_ignore_ascii_case(kind.info().name);
        Function::ALL.iter().find(named).copied()
    }

    /// The function at `a`.
    pub fn at(self, a: f64) -> f64 {
        match self {
            Function::Exp => a.exp(),
            Function::Silu => a / (1.0 + (-a).exp()),
            // Hendrycks and Gimpel's tanh form: sqrt(2 / pi) (a + 0.044715 a^3).
            Function::Gelu => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (a + 0.044715 * a * a * a);
                0.5 * a * (1.0 + inner.tanh())
            }
            Function::Tanh => a.tanh(),
            Function::Sigmoid => 1.0 / (1.0 + (-a).exp()),
            Function::Rsqrt => 1.0 / a.sqrt(),
            Function::Sqrt => a.sqrt(),
        }
    }

    /// A bound of the slope's size between `low` and `high`; infinite where the function has none.
    pub fn slope(self, low: f64, high: f64) -> f64 {
        match self {
            Function::Exp => high.exp(),
            Function::Silu => 1.1,
            Function::Gelu => 1.13,
            Function::Tanh => 1.0,
            Function::Sigmoid => 0.25,
            Function::Rsqrt if low > 0.0 => 0.5 / (low * low.sqrt()),
            Function::Sqrt if low > 0.0 => 0.5 / low.sqrt(),
            Function::Rsqrt | Function::Sqrt => f64::INFINITY,
        }
    }

    /// Arguments that tests draw.
    pub fn argument(self) -> Argument {
        match self {
            Function::Exp => Argument::Bounded,
            Function::Rsqrt | Function::Sqrt => Argument::Positive,
            Function::Silu | Function::Gelu | Function::Tanh | Function::Sigmoid => Argument::Any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_has_its_op_and_keeps_its_slope() {
        for f in Function::ALL {
            assert_eq!(OpKind::ALL.iter().filter(|kind| Function::of(**kind) == Some(*f)).count(), 1, "{f:?}");
            for i in 1..400 {
                let (low, step) = (f64::from(i - 200) * 0.05, 0.01);
                let low = if f.argument() == Argument::Positive { low.abs() + 0.01 } else { low };
                let slope = (f.at(low + step) - f.at(low)).abs() / step;
                assert!(slope <= f.slope(low, low + step) * (1.0 + 1e-9), "{f:?} at {low}: {slope}");
            }
        }
    }
}
