//! Families of models: what a file calls them, how it names their tensors, and how their configs are read.

use super::families;
use super::spec::Decoder;
use crate::frontend::{FrontendError, Object, shown};
use serde_json::{Map, Value};

/// A format of model files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A directory with a `config.json`.
    HuggingFace,
    /// A GGUF file, its metadata spelled as `config.json` would.
    Gguf,
}

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// Its name in artifacts.
    pub name: &'static str,
    /// How Hugging Face directories spell it.
    pub hf: Spelling,
    /// How GGUF files do.
    pub gguf: Spelling,
    /// What transformers takes where a `config.json` says nothing: the text of a JSON object.
    pub defaults: &'static str,
    /// The decoder that a config describes; refuses what it does not know how to compute.
    pub decoder: fn(&Object, Format) -> Result<Decoder, FrontendError>,
}

/// How one format spells a family.
#[derive(Debug)]
pub struct Spelling {
    /// Names of the architecture.
    pub architectures: &'static [&'static str],
    /// Parts of tensor names that differ from the format's usual ones: (the file's, ours), without layer, `.weight` and `.bias`.
    pub names: &'static [(&'static str, &'static str)],
    /// Tensors that hold the rows of several of ours, one below the other: (the file's, ours).
    pub stacked: &'static [(&'static str, &'static [&'static str])],
    /// Rows of q and k are permuted so that rope turns neighbours.
    pub interleaved: bool,
}

impl Spelling {
    /// The usual names, of an architecture of those names.
    pub const fn usual(architectures: &'static [&'static str]) -> Spelling {
        Spelling { architectures, names: &[], stacked: &[], interleaved: false }
    }
}

impl Family {
    /// How `format` spells it.
    pub fn spelling(&self, format: Format) -> &Spelling {
        match format {
            Format::HuggingFace => &self.hf,
            Format::Gguf => &self.gguf,
        }
    }

    /// The keys with transformers' defaults filled in, where those are what a missing key means.
    pub(super) fn settled<'k>(&self, keys: &'k mut Object, format: Format) -> Result<&'k Object, FrontendError> {
        const EVERY: &str = r#"{ "rms_norm_eps": 1e-6, "max_position_embeddings": 2048 }"#;
        if format == Format::HuggingFace {
            for text in [self.defaults, EVERY] {
                let defaults: Map<String, Value> = serde_json::from_str(text)
                    .map_err(|e| keys.invalid("model_type", format!("defaults of {}: {e}", self.name)))?;
                keys.fill(&defaults);
            }
        }
        Ok(keys)
    }
}

/// The family that a config names.
///
/// # Errors
/// If it names none, or one that there is no definition of.
pub fn of(keys: &Object, format: Format) -> Result<&'static Family, FrontendError> {
    let known = || {
        let names: Vec<&str> = families::ALL.iter().flat_map(|f| f.spelling(format).architectures).copied().collect();
        names.join(", ")
    };
    let name = keys.text("model_type")?;
    let name = name.ok_or_else(|| keys.invalid("model_type", format!("missing; one of {} is expected", known())))?;
    let family = families::ALL.iter().find(|f| f.spelling(format).architectures.contains(&name));
    family.copied().ok_or_else(|| {
        keys.unsupported("model_type", format!("architecture `{}`; {} are accepted", shown(name), known()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_json_and_names_are_of_one_family() {
        for (i, family) in families::ALL.iter().enumerate() {
            assert!(serde_json::from_str::<Map<String, Value>>(family.defaults).is_ok(), "{}", family.name);
            for format in [Format::HuggingFace, Format::Gguf] {
                for name in family.spelling(format).architectures {
                    let others = families::ALL.iter().skip(i + 1);
                    assert!(!others.flat_map(|f| f.spelling(format).architectures).any(|n| n == name), "{name}");
                }
            }
        }
    }
}
