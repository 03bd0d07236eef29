//! Tokenizer and chat template of a Hugging Face directory.

use super::added::{Added, add_tokens};
use crate::frontend::error::{FrontendError, Place};
use crate::frontend::json::Object;
use crate::frontend::tokenizer::TokenizerData;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Special tokens that have names.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What transformers' tokenizer classes take for tokens that no file names.
const CLASSES: [(&str, &[(&str, &str)]); 3] = [
    ("LlamaTokenizer", &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]),
    (
        "Qwen2Tokenizer",
        &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")],
    ),
    (
        "GPT2Tokenizer",
        &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")],
    ),
];

/// The class where `tokenizer_config.json` names none.
fn class_of(model_type: &str) -> &'static str {
    if model_type.starts_with("qwen") { "Qwen2Tokenizer" } else { "LlamaTokenizer" }
}

/// A file's bytes; `None` if there is no such file.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, FrontendError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FrontendError::io(path, e)),
    }
}

/// The parts of `tokenizer.json` that are small.
#[derive(Deserialize)]
struct Skeleton {
    #[serde(default)]
    added_tokens: Vec<Map<String, Value>>,
    #[serde(default)]
    post_processor: Value,
}

/// Files beside `tokenizer.json`; each may be missing.
struct Files {
    config: Option<Object>,
    map: Option<Object>,
    added: Option<Object>,
}

/// Reads `tokenizer.json`, the files that add to it, and `chat_template.jinja`; `None` without the first.
///
/// # Errors
/// Names the file and key that is not as expected.
pub(super) fn read_tokenizer(directory: &Path, model_type: &str) -> Result<Option<TokenizerData>, FrontendError> {
    let path = directory.join("tokenizer.json");
    let Some(json) = read_optional(&path)? else { return Ok(None) };
    let skeleton: Skeleton = serde_json::from_slice(&json)
        .map_err(|e| FrontendError::invalid(&path, Place::File, format!("not a tokenizer: {e}")))?;
    let read = |name: &str| Object::read(&directory.join(name));
    let files = Files {
        config: read("tokenizer_config.json")?,
        map: read("special_tokens_map.json")?,
        added: read("added_tokens.json")?,
    };
    let mut named = named_tokens(&files)?;
    let json = add_tokens(&path, json, skeleton.added_tokens, declared(&files, &named)?, |known| {
        defaults(&mut named, &files, model_type, &skeleton.post_processor, known)
    })?;
    let path = directory.join("chat_template.jinja");
    let template = match read_optional(&path)? {
        Some(bytes) => Some(String::from_utf8(bytes).map_err(|e| {
            FrontendError::invalid(&path, Place::Offset(e.utf8_error().valid_up_to() as u64), "not UTF-8")
        })?),
        None => files.config.as_ref().map(template_of).transpose()?.flatten(),
    };
    let special_tokens = named.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))).collect();
    Ok(Some(TokenizerData { json, chat_template: template, special_tokens }))
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

/// Texts by name; `None` where a file says that there is no such token.
type Named = BTreeMap<&'static str, Option<String>>;

/// What `tokenizer_config.json` names, then `special_tokens_map.json`. A null says that there is none.
fn named_tokens(files: &Files) -> Result<Named, FrontendError> {
    let mut named = Named::new();
    for file in [&files.config, &files.map].into_iter().flatten() {
        for name in NAMED {
            if file.contains(name) && !named.contains_key(name) {
                named.insert(name, token_text(file, name)?);
            }
        }
    }
    Ok(named)
}

/// Names what no file does: by the tokenizer's class, if its vocabulary has the token, then by what it puts around every text.
fn defaults(
    named: &mut Named,
    files: &Files,
    model_type: &str,
    post_processor: &Value,
    known: &dyn Fn(&str) -> bool,
) -> Result<(), FrontendError> {
    let class = files.config.as_ref().map(|c| c.text("tokenizer_class")).transpose()?.flatten();
    let class = class.unwrap_or_else(|| class_of(model_type));
    let class = class.strip_suffix("Fast").unwrap_or(class);
    let of_class = CLASSES.iter().find(|(name, _)| *name == class).map_or(&[][..], |(_, tokens)| tokens);
    let (first, last) = around(post_processor);
    let of_text = [("bos_token", first), ("eos_token", last)];
    let of_text = of_text.iter().filter_map(|(name, text)| Some((*name, text.as_deref()?)));
    for (name, text) in of_class {
        if !named.contains_key(name) && known(text) {
            named.insert(name, Some((*text).to_owned()));
        }
    }
    for (name, text) in of_text {
        named.entry(name).or_insert_with(|| Some(text.to_owned()));
    }
    Ok(())
}

/// The special tokens that a post-processor puts before and after a text.
fn around(processor: &Value) -> (Option<String>, Option<String>) {
    if let Some(list) = processor.get("processors").and_then(Value::as_array) {
        return list.iter().map(around).fold((None, None), |(a, b), (c, d)| (a.or(c), b.or(d)));
    }
    let special = |piece: &Value| Some(piece.get("SpecialToken")?.get("id")?.as_str()?.to_owned());
    match processor.get("single").and_then(Value::as_array).map(Vec::as_slice) {
        Some([first, .., last]) => (special(first), special(last)),
        _ => (None, None),
    }
}

/// A special token's text: a string, or an object with `content`; `None` if it is null.
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

/// Texts of a list of special tokens without names, or of an object of named ones.
fn extra_tokens(c: &Object, key: &str) -> Result<Vec<String>, FrontendError> {
    let wrong = || c.invalid(key, "a list of special tokens is expected");
    let text = |v: &Value| {
        let text = v.as_str().or_else(|| v.get("content")?.as_str());
        text.map(str::to_owned).ok_or_else(wrong)
    };
    match c.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(text).collect(),
        Some(Value::Object(map)) => map.values().map(text).collect(),
        Some(_) => Err(wrong()),
    }
}

/// Tokens that the files beside `tokenizer.json` declare: `added_tokens_decoder` with all that is to know of them,
/// `added_tokens.json` with their ids, and special ones that have but a text.
fn declared(files: &Files, named: &Named) -> Result<Vec<Added>, FrontendError> {
    let mut special: Vec<String> = named.values().flatten().cloned().collect();
    for file in [&files.config, &files.map].into_iter().flatten() {
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            special.extend(extra_tokens(file, key)?);
        }
    }
    let mut list: Vec<Added> = Vec::new();
    if let Some(config) = &files.config
        && let Some(decoder) = config.object("added_tokens_decoder")?
    {
        for (id, token) in decoder.entries() {
            let number = id.parse().map_err(|_| decoder.invalid(id, "a token id is expected as the key"))?;
            let Some(text) = token.get("content").and_then(Value::as_str) else {
                return Err(decoder.invalid(id, "an object with `content` is expected"));
            };
            let flag = |key: &str| token.get(key).and_then(Value::as_bool);
            let is_special = flag("special").unwrap_or(false);
            let mut added = Added::new(text, Some(number), is_special);
            added.single_word = flag("single_word").unwrap_or(false);
            added.lstrip = flag("lstrip").unwrap_or(false);
            added.rstrip = flag("rstrip").unwrap_or(false);
            added.normalized = flag("normalized").unwrap_or(!is_special);
            added.complete = true;
            list.push(added);
        }
    }
    if let Some(ids) = &files.added {
        for (text, id) in ids.entries() {
            let id = id.as_u64().and_then(|n| u32::try_from(n).ok());
            let id = id.ok_or_else(|| ids.invalid(text, "a token id is expected"))?;
            list.push(Added::new(text, Some(id), special.contains(text)));
        }
    }
    list.extend(special.iter().map(|text| Added::new(text, None, true)));
    Ok(list)
}
