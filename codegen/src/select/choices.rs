//! Automatic choices of kernel selection that a user may fix with `--set KEY=VALUE`, declared once.

use weldment_ir::generate::Random;

macro_rules! choices {
    ($($(#[doc = $doc:literal])+ $name:ident: $($value:literal)|+;)*) => {
        /// Choices that the user fixed; the others stay automatic.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Choices { $($(#[doc = $doc])+ pub $name: Option<u32>,)* }

        impl Choices {
            /// Key, accepted values and doc line of each choice.
            pub const TABLE: &'static [(&'static str, &'static [u32], &'static str)] =
                &[$((stringify!($name), &[$($value),+], concat!($($doc),+).trim_ascii()),)*];

            /// Fixes one choice.
            ///
            /// # Errors
            /// If there is no such choice or it does not take the value; names what is accepted.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
                let slot = match key {
                    $(stringify!($name) => &mut self.$name,)*
                    other => {
                        let known: Vec<&str> = Self::TABLE.iter().map(|(name, ..)| *name).collect();
                        return Err(format!("`{other}`; {} is accepted", known.join(" or ")));
                    }
                };
                let accepted = Self::TABLE.iter().find(|(name, ..)| *name == key).map_or(&[][..], |(_, values, _)| values);
                *slot = value.parse().ok().filter(|v| accepted.contains(v));
                if slot.is_some() { Ok(()) } else { Err(format!("{key}={value}; one of {accepted:?} is accepted")) }
            }
        }
    };
}

choices! {
    /// Rows of activations per program of a matrix product with many tokens [default: 4, or 8 with AVX-512].
    gemm_rows: 1 | 2 | 4 | 8 | 16;
    /// Query heads per attention program: 1 spreads heads over threads, 2 shares keys and values within a group of heads
    /// [default: 1 for one token, else 2].
    attention_sharing: 1 | 2;
    /// Output rows per program of a matrix product with up to 4 tokens on a GPU [default: by shape, so that blocks are many].
    gemv_rows: 1 | 2 | 4 | 8 | 16;
    /// Rows of activations per program of a matrix product with many tokens on a GPU [default: 16 to 64 by tokens].
    gemm_tile_rows: 16 | 32 | 64 | 128;
    /// Threads of an attention program on a GPU with few tokens: 64 to 256 split a context among as many KV blocks [default: 128, or
    /// 256 for f32 heads of 64 and more].
    attention_threads: 64 | 128 | 256;
    /// Programs that share the context of a token and KV head on a GPU with few tokens [default: by tokens and heads, so that programs are
    /// many].
    attention_splits: 1 | 2 | 4 | 8 | 16;
    /// 1 lets sparse attention become dense attention where a window fits its top-k: another order of sums [default: 0].
    dense_window: 0 | 1;
    /// 1 accepts GPU kernels that need scratch memory or spill registers [default: 0, an error].
    allow_scratch: 0 | 1;
}

impl Choices {
    /// Takes one of the values, by `seed`, for each choice that a user left and that host kernels of any shape accept.
    pub fn perturb(&mut self, seed: u64) {
        let mut random = Random::new(seed);
        let mut take = |slot: &mut Option<u32>, values: &[u32]| {
            let value = random.pick(values).copied();
            *slot = slot.or(value);
        };
        take(&mut self.gemm_rows, &[1, 2, 4, 8]);
        take(&mut self.attention_sharing, &[1, 2]);
    }
}

#[cfg(test)]
mod tests {
    use super::Choices;

    #[test]
    fn a_seed_takes_listed_values_and_leaves_what_is_fixed() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..20 {
            let mut choices = Choices { attention_sharing: Some(2), ..Choices::default() };
            choices.perturb(seed);
            assert_eq!(choices.attention_sharing, Some(2));
            let value = choices.gemm_rows.unwrap();
            assert!(Choices::default().set("gemm_rows", &value.to_string()).is_ok());
            seen.insert(value);
        }
        assert!(seen.len() > 2);
    }

    #[test]
    fn only_listed_values_are_taken() {
        let mut choices = Choices::default();
        assert!(choices.set("gemm_rows", "8").is_ok());
        assert_eq!(choices.gemm_rows, Some(8));
        assert!(choices.set("gemm_rows", "3").is_err());
        assert!(choices.set("nothing", "1").unwrap_err().contains("gemm_rows"));
    }
}
