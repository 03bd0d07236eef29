//! Tokenizer and chat template of a Hugging Face directory.

use super::json::Object;
use crate::frontend::error::{FrontendError, Place};
use crate::frontend::tokenizer::TokenizerData;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::path::Path;

/// A file's bytes; `None` if there is no such file.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FrontendError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FrontendError::io(path, e)),
    }
}

/// Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`; `None` without the first.
///
/// # Errors
/// Names the file and key that is not as expected.
pub(super) fn read_tokenizer(directory: &Path) -> Result<Option<TokenizerData>, FrontendError> {
    let path = directory.join("tokenizer.json");
    let Some(json) = read_optional(&path)? else { return Ok(None) };
    serde_json::from_slice::<IgnoredAny>(&json)
        .map_err(|e| FrontendError::invalid(&path, Place::File, format!("not JSON: {e}")))?;
    let config = Object::read(&directory.join("tokenizer_config.json"))?;
    let path = directory.join("chat_template.jinja");
    let template = match read_optional(&path)? {
        Some(bytes) => Some(String::from_utf8(bytes).map_err(|e| {
            FrontendError::invalid(&path, Place::Offset(e.utf8_error().valid_up_to() as u64), "not UTF-8")
        })?),
        None => config.as_ref().map(template_of).transpose()?.flatten(),
    };
    let token = |key| config.as_ref().map(|c| token_text(c, key)).transpose().map(Option::flatten);
    Ok(Some(TokenizerData {
        json,
        chat_template: template,
        bos_token: token("bos_token")?,
        eos_token: token("eos_token")?,
    }))
}

/// `chat_template`: a string, or a list of named ones of which `default` is taken.
fn template_of(c: &Object) -> Result<Option<String>, FrontendError> {
    let field = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    match c.get("chat_template") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(list)) => Ok(list
            .iter()
            .find(|entry| field(entry, "name").as_deref() == Some("default"))
            .and_then(|entry| field(entry, "template"))),
        Some(_) => Err(c.invalid("chat_template", "a string or a list of {name, template} is expected")),
    }
}

/// A special token's text: a string, or an object with `content`.
fn token_text(c: &Object, key: &str) -> Result<Option<String>, FrontendError> {
    match c.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => match other.get("content").and_then(Value::as_str) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(c.invalid(key, "a string or an object with `content` is expected")),
        },
    }
}
