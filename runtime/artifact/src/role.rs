//! What the symbols and inputs of an entry stand for: what a session must know to give them values. Whoever builds a graph declares
//! it; text IR and manifests keep it.

use crate::DType;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a symbol counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SymbolRole {
    /// Something that the shapes of plain inputs say.
    #[default]
    Plain,
    /// Tokens of a step.
    Tokens,
    /// Sequences of a step.
    Sequences,
    /// Tokens of a step whose results are asked for: at most as many as there are tokens, which sessions see to.
    LogitRows,
    /// Positions of the step's longest sequence, the step's own included.
    Context,
    /// Entries of a row of a block table, whose blocks are units of the pool that the symbol of this name counts.
    Blocks(String),
    /// Units of paged states that a session holds, each of so many positions of one sequence.
    Pool(u32),
}

impl SymbolRole {
    /// The word in text IR, without what follows it.
    pub const fn word(&self) -> &'static str {
        match self {
            SymbolRole::Plain => "plain",
            SymbolRole::Tokens => "tokens",
            SymbolRole::Sequences => "sequences",
            SymbolRole::LogitRows => "logit_rows",
            SymbolRole::Context => "context",
            SymbolRole::Blocks(_) => "blocks",
            SymbolRole::Pool(_) => "pool",
        }
    }

    /// Any symbol of [`SymbolRole::Blocks`], for [`SymbolRole::is_like`].
    pub const BLOCKS: SymbolRole = SymbolRole::Blocks(String::new());
    /// Any symbol of [`SymbolRole::Pool`].
    pub const POOL: SymbolRole = SymbolRole::Pool(0);

    /// True for roles of one kind, whatever pool or block they name.
    pub fn is_like(&self, other: &SymbolRole) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// True without a role.
    pub fn is_plain(&self) -> bool {
        *self == SymbolRole::Plain
    }

    /// What a user would call it, and the option that sets its range.
    pub const fn meaning(&self) -> &'static str {
        match self {
            SymbolRole::Plain => "a symbolic dim",
            SymbolRole::Tokens => "tokens in a step, --dim tokens=",
            SymbolRole::Sequences => "sequences, --dim seqs=",
            SymbolRole::LogitRows => "rows of logits",
            SymbolRole::Context => "positions of the longest sequence, --dim context=",
            SymbolRole::Blocks(_) => "KV blocks of a sequence, --max-seq",
            SymbolRole::Pool(_) => "KV blocks in the pool",
        }
    }
}

impl fmt::Display for SymbolRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            SymbolRole::Blocks(pool) => write!(f, "({pool})"),
            SymbolRole::Pool(positions) => write!(f, "({positions})"),
            _ => Ok(()),
        }
    }
}

/// What an input holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputRole {
    /// Something that the caller hands over by the input's name.
    #[default]
    Plain,
    /// Ids of the step's tokens: `[tokens]`.
    Tokens,
    /// Position of each token in its sequence: `[tokens]`.
    Positions,
    /// Number of each token's sequence in the step: `[tokens]`.
    Sequences,
    /// Block tables of the step's sequences: `[sequences, blocks]`.
    Blocks,
    /// Numbers of the tokens whose results are asked for: `[logit_rows]`.
    LogitRows,
}

impl InputRole {
    /// Every role.
    pub const ALL: [InputRole; 6] = [
        InputRole::Plain,
        InputRole::Tokens,
        InputRole::Positions,
        InputRole::Sequences,
        InputRole::Blocks,
        InputRole::LogitRows,
    ];

    /// The word in text IR.
    pub const fn word(self) -> &'static str {
        match self {
            InputRole::Plain => "plain",
            InputRole::Tokens => "tokens",
            InputRole::Positions => "positions",
            InputRole::Sequences => "sequences",
            InputRole::Blocks => "blocks",
            InputRole::LogitRows => "logit_rows",
        }
    }

    /// The role of that word.
    pub fn from_word(word: &str) -> Option<InputRole> {
        InputRole::ALL.into_iter().find(|role| role.word() == word)
    }

    /// True without a role.
    pub fn is_plain(&self) -> bool {
        *self == InputRole::Plain
    }

    /// Words of the roles that the symbols of its shape have; none of a plain input, whose shape is its own.
    const fn shape(self) -> &'static [&'static str] {
        match self {
            InputRole::Plain => &[],
            InputRole::Tokens | InputRole::Positions | InputRole::Sequences => &["tokens"],
            InputRole::Blocks => &["sequences", "blocks"],
            InputRole::LogitRows => &["logit_rows"],
        }
    }
}

impl fmt::Display for InputRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// An input as its role sees it.
#[derive(Clone, Debug)]
pub struct RoleInput<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its role.
    pub role: InputRole,
    /// Its element type.
    pub dtype: DType,
    /// Its dims: the symbol's name, or none where it is a number.
    pub shape: Vec<Option<&'a str>>,
}

/// Checks that the roles of an entry fit together: each but `plain` is one symbol's or input's at most, tables name a pool that is there,
/// and inputs have the types that their roles ask for.
///
/// # Errors
/// The name of what does not fit, and in words what was found and what is accepted.
pub fn check_roles<'a>(
    symbols: &[(&'a str, &'a SymbolRole)],
    inputs: &[RoleInput<'a>],
) -> Result<(), (&'a str, String)> {
    let role_of = |name: &str| symbols.iter().find(|(symbol, _)| *symbol == name).map(|(_, role)| *role);
    for (at, (name, role)) in symbols.iter().enumerate() {
        let before = symbols.iter().take(at).find(|(_, other)| other.is_like(role));
        match role {
            SymbolRole::Plain => {}
            SymbolRole::Pool(0) => {
                return Err((name, "a pool of blocks without positions; 1 or more are accepted".into()));
            }
            SymbolRole::Blocks(pool) if !matches!(role_of(pool), Some(SymbolRole::Pool(_))) => {
                return Err((
                    name,
                    format!("blocks of {pool}, which is no pool; a symbol of the role pool is accepted"),
                ));
            }
            role => {
                if let Some((other, _)) = before {
                    return Err((
                        name,
                        format!("two symbols, {other} and {name}, have the role {role}; one is accepted"),
                    ));
                }
            }
        }
    }
    for (at, input) in inputs.iter().enumerate().filter(|(_, input)| !input.role.is_plain()) {
        let RoleInput { name, role, dtype, shape } = input;
        let words = shape.iter().map(|dim| dim.and_then(role_of).map(SymbolRole::word));
        if *dtype != DType::I32 || !words.eq(role.shape().iter().map(|word| Some(*word))) {
            let found: Vec<&str> = shape.iter().map(|dim| dim.unwrap_or("a number")).collect();
            let wanted = role.shape().join(", ");
            return Err((
                name,
                format!(
                    "{dtype} [{}] in the role {role}; i32 of symbols in the roles [{wanted}] is accepted",
                    found.join(", ")
                ),
            ));
        }
        let same = |other: &&RoleInput<'_>| other.role == *role;
        if let Some(other) = inputs.iter().take(at).find(same) {
            return Err((
                name,
                format!("two inputs, {} and {name}, have the role {role}; one is accepted", other.name),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_do_not_fit_are_named() {
        let (tokens, pool, blocks) = (SymbolRole::Tokens, SymbolRole::Pool(16), SymbolRole::Blocks("N".into()));
        let sequences = SymbolRole::Sequences;
        let symbols = [("T", &tokens), ("B", &sequences), ("P", &blocks), ("N", &pool)];
        let input = |name, role, shape: &[Option<&'static str>]| RoleInput {
            name,
            role,
            dtype: DType::I32,
            shape: shape.to_vec(),
        };
        let right = [
            input("ids", InputRole::Tokens, &[Some("T")]),
            input("at", InputRole::Positions, &[Some("T")]),
            input("tables", InputRole::Blocks, &[Some("B"), Some("P")]),
            input("x", InputRole::Plain, &[None, Some("T")]),
        ];
        assert_eq!(check_roles(&symbols, &right), Ok(()));
        let wrong = |symbols: &[(&'static str, &SymbolRole)], inputs: &[RoleInput<'static>]| {
            check_roles(symbols, inputs).map_err(|(name, what)| format!("{name}: {what}")).unwrap_err()
        };
        assert!(wrong(&[("T", &tokens), ("U", &tokens)], &[]).contains("two symbols, T and U"));
        assert!(wrong(&[("N", &pool), ("M", &SymbolRole::Pool(64))], &[]).contains("two symbols, N and M"));
        assert!(wrong(&[("P", &blocks)], &[]).contains("no pool"));
        assert!(wrong(&[("N", &SymbolRole::Pool(0))], &[]).contains("without positions"));
        assert!(
            wrong(&symbols, &[input("ids", InputRole::Tokens, &[Some("B")])]).contains("i32 [B] in the role tokens")
        );
        assert!(wrong(&symbols, &[input("ids", InputRole::Tokens, &[None])]).contains("a number"));
        let floats = RoleInput { dtype: DType::F32, ..right[0].clone() };
        assert!(wrong(&symbols, &[floats]).contains("f32"));
        assert!(wrong(&symbols, &[right[0].clone(), right[0].clone()]).contains("two inputs"));
    }

    #[test]
    fn words_name_roles() {
        for role in InputRole::ALL {
            assert_eq!(InputRole::from_word(role.word()), Some(role));
        }
        assert_eq!(SymbolRole::Blocks("N".into()).to_string(), "blocks(N)");
        assert_eq!(SymbolRole::Pool(16).to_string(), "pool(16)");
    }
}
