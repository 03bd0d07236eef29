//! Added tokens of other files, brought into `tokenizer.json`, which the runtime reads alone. A tokenizer that does not know of them
//! splits them into pieces without a word.

use crate::frontend::error::{FrontendError, Place, shown};
use serde_json::{Map, Value, json};
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// A token that is found in text before anything else.
#[derive(Debug, Clone)]
pub(super) struct Added {
    pub content: String,
    /// The id that its file gives it.
    pub id: Option<u32>,
    pub special: bool,
    pub single_word: bool,
    pub lstrip: bool,
    pub rstrip: bool,
    pub normalized: bool,
    /// The file says all of the above, and is right where `tokenizer.json` differs.
    pub complete: bool,
}

impl Added {
    /// A token with the properties that transformers gives one of which only this is known.
    pub fn new(content: &str, id: Option<u32>, special: bool) -> Added {
        Added {
            content: content.to_owned(),
            id,
            special,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: !special,
            complete: false,
        }
    }

    fn entry(&self, id: u32) -> Map<String, Value> {
        let entry = json!({
            "id": id, "content": self.content, "single_word": self.single_word, "lstrip": self.lstrip,
            "rstrip": self.rstrip, "normalized": self.normalized, "special": self.special,
        });
        match entry {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// True if the entry of `tokenizer.json` says the same.
    fn is(&self, entry: &Map<String, Value>) -> bool {
        let flags = [
            ("special", self.special),
            ("single_word", self.single_word),
            ("lstrip", self.lstrip),
            ("rstrip", self.rstrip),
            ("normalized", self.normalized),
        ];
        flags.iter().all(|(key, flag)| entry.get(*key).and_then(Value::as_bool) == Some(*flag))
    }
}

fn content(entry: &Map<String, Value>) -> &str {
    entry.get("content").and_then(Value::as_str).unwrap_or_default()
}

/// `json` with the `declared` tokens that it lacks, beside its own `present` ones. `settle` is called in between with a test for
/// tokens that the tokenizer knows.
///
/// # Errors
/// Names a token whose declared id is not the one that the tokenizer would give it.
pub(super) fn add_tokens(
    path: &Path,
    json: Vec<u8>,
    present: Vec<Map<String, Value>>,
    declared: Vec<Added>,
    settle: impl FnOnce(&dyn Fn(&str) -> bool) -> Result<(), FrontendError>,
) -> Result<Vec<u8>, FrontendError> {
    let mut missing: Vec<Added> = Vec::new();
    let mut seen: HashSet<String> = HashSet::new();
    for token in declared {
        let found = present.iter().find(|entry| content(entry) == token.content);
        let known = found.is_some_and(|entry| !token.complete || token.is(entry));
        if !token.content.is_empty() && !known && seen.insert(token.content.clone()) {
            missing.push(token);
        }
    }
    // Read only where needed: vocabularies are large, and most files lack nothing. The caller has seen that it is JSON.
    let mut tree: OnceCell<Value> = OnceCell::new();
    let whole = || tree.get_or_init(|| serde_json::from_slice(&json).unwrap_or_default());
    settle(&|text| present.iter().any(|entry| content(entry) == text) || vocabulary(whole()).contains_key(text))?;
    if missing.is_empty() {
        return Ok(json);
    }
    let vocabulary = vocabulary(whole());
    // Ids are given in this order to texts that the vocabulary does not have, from its size on.
    let id_of = |entry: &Map<String, Value>| entry.get("id").and_then(Value::as_u64).unwrap_or(u64::MAX);
    missing.sort_by_key(|token| token.id.unwrap_or(u32::MAX));
    let mut list: Vec<(u64, Map<String, Value>, Option<u32>)> =
        present.into_iter().map(|entry| (id_of(&entry), entry, None)).collect();
    list.extend(missing.iter().map(|token| {
        let id = token.id.unwrap_or(u32::MAX);
        (u64::from(id), token.entry(id), token.id)
    }));
    list.sort_by_key(|(id, ..)| *id);
    let mut next = vocabulary.len() as u64;
    let mut given: HashMap<String, u64> = HashMap::new();
    let mut entries = Vec::with_capacity(list.len());
    for (_, mut entry, wanted) in list {
        let text = content(&entry).to_owned();
        let id = vocabulary.get(text.as_str()).or_else(|| given.get(&text)).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        if let Some(wanted) = wanted.filter(|wanted| u64::from(*wanted) != id) {
            let message = format!(
                "the token `{}` has id {wanted} in the files beside it and would be {id}; ids without gaps after the \
                 vocabulary's {} are accepted",
                shown(&text),
                vocabulary.len()
            );
            return Err(FrontendError::invalid(path, Place::Key("added_tokens".into()), message));
        }
        given.insert(text, id);
        entry.insert("id".into(), id.into());
        entries.push(Value::Object(entry));
    }
    let mut tree = tree.take().unwrap_or_default();
    if let Some(object) = tree.as_object_mut() {
        object.insert("added_tokens".into(), Value::Array(entries));
    }
    serde_json::to_vec(&tree).map_err(|e| FrontendError::invalid(path, Place::File, format!("cannot be stored: {e}")))
}

/// Ids of the model's own vocabulary: an object of ids, or a list of `[text, score]`.
fn vocabulary(tree: &Value) -> HashMap<&str, u64> {
    match tree.pointer("/model/vocab") {
        Some(Value::Object(map)) => map.iter().filter_map(|(text, id)| Some((text.as_str(), id.as_u64()?))).collect(),
        Some(Value::Array(list)) => {
            list.iter().zip(0..).filter_map(|(piece, id)| Some((piece.get(0)?.as_str()?, id))).collect()
        }
        _ => HashMap::new(),
    }
}
