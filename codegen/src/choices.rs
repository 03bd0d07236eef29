//! Automatic choices that a user may fix with `--set KEY=VALUE`, declared once: those of kernel selection, of the cost model, and
//! those that the driver makes ahead of both.

use Accepted::{OneOf, Within};
use std::fmt;

/// Values that a choice takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// These.
    OneOf(&'static [u32]),
    /// From the first to the last.
    Within(u32, u32),
}

impl Accepted {
    /// True for a value that is taken.
    pub fn contains(&self, value: u32) -> bool {
        match self {
            OneOf(values) => values.contains(&value),
            Within(first, last) => (*first..=*last).contains(&value),
        }
    }

    /// Each value, or the range, as a user types it.
    pub fn list(&self) -> Vec<String> {
        match self {
            OneOf(values) => values.iter().map(u32::to_string).collect(),
            Within(first, last) => vec![format!("{first}..{last}")],
        }
    }
}

impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.list().join(", "))
    }
}

/// One row of [`Choices::TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Key.
    pub name: &'static str,
    /// Values.
    pub accepted: Accepted,
    /// What is chosen where nothing is fixed.
    pub default: &'static str,
    /// One line.
    pub doc: &'static str,
}

use weldment_ir::Node;
use weldment_ir::generate::Random;

macro_rules! choices {
    ($($(#[doc = $doc:literal])+ $name:ident: $accepted:expr, $default:literal;)*) => {
        /// Choices that the user fixed; the others stay automatic.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct Choices { $($(#[doc = $doc])+ pub $name: Option<u32>,)* }

        impl Choices {
            /// Every choice.
            pub const TABLE: &'static [Choice] = &[$(Choice {
                name: stringify!($name),
                accepted: $accepted,
                default: $default,
                doc: concat!($($doc),+).trim_ascii(),
            },)*];

            /// These, and those of `others` that they leave open.
            pub fn over(self, others: Choices) -> Choices {
                Choices { $($name: self.$name.or(others.$name),)* }
            }

            /// Fixes one choice.
            ///
            /// # Errors
            /// If there is no such choice or it does not take the value; names what is accepted.
            pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
                let slot = match key {
                    $(stringify!($name) => &mut self.$name,)*
                    other => {
                        let known: Vec<&str> = Self::TABLE.iter().map(|c| c.name).collect();
                        return Err(format!("`{other}`; {} is accepted", known.join(" or ")));
                    }
                };
                let known = Self::TABLE.iter().find(|c| c.name == key);
                let taken = |v: &u32| known.is_some_and(|c| c.accepted.contains(*v));
                *slot = value.parse().ok().filter(taken);
                let accepted = known.map(|c| c.accepted.to_string()).unwrap_or_default();
                if slot.is_some() { Ok(()) } else { Err(format!("{key}={value}; one of {accepted} is accepted")) }
            }
        }
    };
}

choices! {
    /// Rows of activations per program of a matrix product with many tokens.
    gemm_rows: OneOf(&[1, 2, 4, 8, 16]), "4, or 8 with AVX-512";
    /// Query heads per attention program: 1 spreads heads over threads, 2 shares keys and values within a group of heads.
    attention_sharing: OneOf(&[1, 2]), "1 for one token, else 2";
    /// Most rows for which a matrix product on a GPU multiplies without matrix units, row by row of the weights.
    gemv_tokens: OneOf(&[0, 1, 2, 4]), "4";
    /// Output rows per program of such a product.
    gemv_rows: OneOf(&[1, 2, 4, 8, 16]), "by shape, so that blocks are many";
    /// Rows of activations per program of a matrix product with many tokens on a GPU.
    gemm_tile_rows: OneOf(&[16, 32, 64, 128]), "16 to 64 by tokens";
    /// Columns per program of a product of up to 64 rows with plain weights on matrix units.
    gemm_tile_columns: OneOf(&[16, 32, 64]), "the widest that gives blocks enough";
    /// The same for more rows.
    gemm_wide_columns: OneOf(&[64, 128]), "the widest that gives blocks enough";
    /// Threads of an attention program on a GPU with few tokens: 64 to 256 split a context among as many KV blocks.
    attention_threads: OneOf(&[64, 128, 256]), "128, or 256 for f32 heads of 64 and more";
    /// Programs that share the context of a token and KV head on a GPU with few tokens.
    attention_splits: OneOf(&[1, 2, 4, 8, 16]), "by tokens and heads, so that programs are many";
    /// Tokens of a variant from which attention on a GPU takes tiles of tokens to matrix units.
    attention_tile_tokens: OneOf(&[2, 17, 33, 65, 257]), "65";
    /// 0 keeps matrix products from the vendor's library, 1 gives it all that it can do.
    library_gemm: OneOf(&[0, 1]), "those of variants of 512 tokens and more";
    /// How ranks sum: 0 apart from the norm that follows, 1 in one stage, 2 in two, 3 apart and by RCCL or NCCL on GPUs.
    all_reduce: OneOf(&[0, 1, 2, 3]), "1 or 2 by machine, ranks and bytes";
    /// Where kernels split the range of tokens: 0 nowhere, 1 after one token, 2 also after 16, 32, 64 and 256.
    token_splits: OneOf(&[0, 1, 2]), "1 on CPUs, 2 on GPUs";
    /// Tokens at which the forms of a variant are priced, within the variant's range.
    priced_tokens: Within(1, 1 << 20), "the variant's most";
    /// Positions of a sequence at which they are priced.
    priced_context: Within(1, 1 << 24), "half of the longest";
    /// Cost model: nanoseconds that a launch costs beyond its work.
    cost_launch_ns: Within(0, 1_000_000), "600 on CPUs, 1000 on GPUs";
    /// Cost model: bytes a nanosecond from memory.
    cost_memory_gbps: Within(1, 1_000_000), "40 on CPUs, 4000 on GPUs";
    /// Cost model: f32 multiply-adds a nanosecond.
    cost_vector_rate: Within(1, 10_000_000), "50 on CPUs, 20000 on GPUs";
    /// Cost model: 16-bit multiply-adds a nanosecond.
    cost_matrix_rate: Within(1, 10_000_000), "50 on CPUs, 200000 on GPUs";
    /// 0 optimises every layer for itself, 1 equal ones once.
    unit_stamping: OneOf(&[0, 1]), "1";
    /// E-nodes, for each node of a unit, at which saturation is an error.
    saturation_nodes: Within(1, 1_000_000), "60";
    /// Rounds after which it is one.
    saturation_rounds: Within(1, 1000), "40";
    /// 1 lets sparse attention become dense attention where a window fits its top-k: another order of sums.
    dense_window: OneOf(&[0, 1]), "0";
    /// 1 records in the artifact what each launch leaves behind, for `--values` and to name the op that made a NaN.
    record_results: OneOf(&[0, 1]), "1";
    /// 1 accepts GPU kernels that need scratch memory or spill registers.
    allow_scratch: OneOf(&[0, 1]), "0, an error";
}

impl Choices {
    /// Those of kernels, each of which may be fixed for some ops alone.
    pub const OF_KERNELS: &'static [&'static str] = &[
        "gemm_rows",
        "gemv_tokens",
        "gemv_rows",
        "gemm_tile_rows",
        "gemm_tile_columns",
        "gemm_wide_columns",
        "attention_sharing",
        "attention_threads",
        "attention_splits",
        "attention_tile_tokens",
    ];

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

/// Choices that are fixed for some ops alone, in the order in which they were fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Places(Vec<(String, Choices)>);

impl Places {
    /// Fixes a choice of kernels for the ops whose name, or a source path of which, is `pattern`; `*` stands for any text.
    ///
    /// # Errors
    /// If there is no such choice of kernels, or it does not take the value.
    pub fn set(&mut self, key: &str, pattern: &str, value: &str) -> Result<(), String> {
        if !Choices::OF_KERNELS.contains(&key) {
            return Err(format!("`{key}` for `{pattern}` alone; {} is accepted", Choices::OF_KERNELS.join(" or ")));
        }
        let mut choices = Choices::default();
        choices.set(key, value)?;
        self.0.push((pattern.to_owned(), choices));
        Ok(())
    }

    /// `choices` with those that were fixed for `node`; what was fixed last counts.
    pub fn at(&self, choices: Choices, node: &Node) -> Choices {
        let fits = |pattern: &str| {
            let kind = node.op.kind().info().name;
            is_like(kind, pattern) || node.sources.iter().any(|path| is_like(path, pattern))
        };
        self.0.iter().filter(|(pattern, _)| fits(pattern)).fold(choices, |choices, (_, fixed)| fixed.over(choices))
    }
}

/// Is `text` what `pattern` says, where `*` stands for any text?
fn is_like(text: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => text == pattern,
        Some((head, rest)) => {
            let Some(text) = text.strip_prefix(head) else { return false };
            (0..=text.len()).any(|at| text.is_char_boundary(at) && is_like(&text[at..], rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn places_are_named_by_op_or_path() {
        let mut places = Places::default();
        places.set("gemm_rows", "matmul*", "2").unwrap();
        places.set("gemm_rows", "layers.*.mlp.*_proj", "8").unwrap();
        assert!(places.set("token_splits", "matmul", "1").unwrap_err().contains("gemm_rows or"));
        assert!(places.set("gemm_rows", "matmul", "3").is_err());
        let mut graph = weldment_ir::Graph::new("g");
        let f = |shape: &[u64]| {
            weldment_ir::Op::input("x", weldment_ir::DType::F32, shape.iter().map(|n| (*n).into()).collect())
        };
        let x = graph.push("x", f(&[2, 8]), &[]).unwrap();
        let dtype = weldment_ir::DType::F32;
        let mut rows = |path: &str| {
            let y = graph.push(path, weldment_ir::Op::Matmul { dtype }, &[x, x]).unwrap();
            places.at(Choices { gemv_rows: Some(4), ..Choices::default() }, graph.node(y.node))
        };
        assert_eq!(rows("layers.3.mlp.down_proj").gemm_rows, Some(8));
        assert_eq!((rows("lm_head").gemm_rows, rows("lm_head").gemv_rows), (Some(2), Some(4)));
        assert!(is_like("abc", "a*c") && is_like("abc", "*") && !is_like("abc", "a*d") && !is_like("abc", "ab"));
    }

    #[test]
    fn only_listed_values_are_taken() {
        let mut choices = Choices::default();
        assert!(choices.set("gemm_rows", "8").is_ok());
        assert_eq!(choices.gemm_rows, Some(8));
        assert!(choices.set("gemm_rows", "3").unwrap_err().contains("1, 2, 4, 8, 16"));
        assert!(choices.set("cost_launch_ns", "1000001").unwrap_err().contains("0..1000000"));
        assert!(choices.set("cost_launch_ns", "0").is_ok());
        assert!(choices.set("nothing", "1").unwrap_err().contains("gemm_rows"));
    }

    #[test]
    fn every_choice_takes_a_value_and_says_what_it_is() {
        for choice in Choices::TABLE {
            assert!(!choice.doc.is_empty() && !choice.default.is_empty() && !choice.accepted.list().is_empty());
            let value = match choice.accepted {
                OneOf(values) => values[0],
                Within(first, _) => first,
            };
            let mut choices = Choices::default();
            choices.set(choice.name, &value.to_string()).unwrap();
            assert_ne!(choices, Choices::default(), "{}", choice.name);
        }
    }
}
