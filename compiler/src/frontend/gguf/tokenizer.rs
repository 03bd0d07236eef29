//! A `tokenizer.json` built from GGUF's tokenizer metadata.
//!
//! Pre-tokenizer patterns are those of llama.cpp's `llama-vocab.cpp` (which names the sets) and of the models' own
//! `tokenizer.json` files; splitting happens pattern after pattern, each on the pieces the one before left.

use super::keys::token_id;
use super::{GgufFile, Value as Metadata};
use crate::frontend::error::{FrontendError, Place, shown};
use crate::frontend::tokenizer::TokenizerData;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use std::collections::HashMap;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";

/// Splits a number into single digits or runs words, numbers, punctuation and spaces: GPT-2's pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How a named pre-tokenizer cuts text before byte-level BPE.
struct PreTokenizer {
    patterns: &'static [&'static str],
    /// Unicode normal form C first.
    nfc: bool,
    /// Whole pieces that are tokens skip the merges.
    ignore_merges: bool,
    /// Default of `add_bos_token`.
    add_bos: bool,
}

fn pre_tokenizer(name: &str) -> Option<PreTokenizer> {
    let plain = |patterns| PreTokenizer { patterns, nfc: false, ignore_merges: false, add_bos: false };
    Some(match name {
        "gpt-2" | "phi-2" => plain(&[GPT2]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => plain(&[r"\p{N}", GPT2]),
        "llama-bpe" | "llama3" | "llama-v3" => PreTokenizer { ignore_merges: true, add_bos: true, ..plain(&[LLAMA3]) },
        "qwen2" | "deepseek-r1-qwen" => PreTokenizer { nfc: true, ..plain(&[QWEN2]) },
        "default" => plain(&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
        _ => return None,
    })
}

const PRE_ACCEPTED: &str = "default, gpt-2, phi-2, smollm, starcoder, refact, command-r, codeshell, exaone, llama-bpe, qwen2 and deepseek-r1-qwen are accepted";

/// The tokenizer, or `None` if the file has none.
///
/// # Errors
/// Names the key that is missing, of another type or length, or unsupported.
pub(crate) fn read_tokenizer(file: &GgufFile) -> Result<Option<TokenizerData>, FrontendError> {
    let model = match file.text(MODEL)? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(model) => model,
    };
    let tokens =
        file.strings(TOKENS)?.ok_or_else(|| file.key_error(TOKENS, "missing; an array of strings is expected"))?;
    let same_length = |key: &str, length: usize| {
        if length == tokens.len() {
            return Ok(());
        }
        Err(file.key_error(key, format!("{length} elements beside {} tokens; as many are expected", tokens.len())))
    };
    let kinds = file.numbers(TYPES)?.unwrap_or_else(|| vec![1.0; tokens.len()]);
    same_length(TYPES, kinds.len())?;
    let token = |key: &str| -> Result<Option<(&str, u32)>, FrontendError> {
        let Some(id) = token_id(file, key)? else { return Ok(None) };
        let text =
            tokens.get(id as usize).ok_or_else(|| file.key_error(key, format!("token {id} of {}", tokens.len())))?;
        Ok(Some((*text, id)))
    };
    let (bos, eos) = (token("tokenizer.ggml.bos_token_id")?, token("tokenizer.ggml.eos_token_id")?);
    let parts = match model {
        "gpt2" => byte_level(file, &tokens)?,
        "llama" => {
            let scores = file
                .numbers(SCORES)?
                .ok_or_else(|| file.key_error(SCORES, "missing; an array of floats is expected"))?;
            same_length(SCORES, scores.len())?;
            sentence_piece(file, &tokens, &scores, token("tokenizer.ggml.unknown_token_id")?.map(|(text, _)| text))?
        }
        other => {
            let message = format!(
                "tokenizer `{}`; gpt2 (byte-level BPE) and llama (SentencePiece BPE) are accepted",
                shown(other)
            );
            return Err(FrontendError::unsupported(file.mapping().path(), Place::Key(MODEL.into()), message));
        }
    };
    let add_bos = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(parts.add_bos);
    let add_eos = file.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let json = TokenizerJson {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: added_tokens(&tokens, &kinds),
        normalizer: parts.normalizer,
        pre_tokenizer: parts.pre_tokenizer,
        post_processor: template(bos.filter(|_| add_bos), eos.filter(|_| add_eos)),
        decoder: parts.decoder,
        model: parts.model,
    };
    let json = serde_json::to_vec(&json).map_err(|e| file.key_error(MODEL, format!("cannot be stored: {e}")))?;
    Ok(Some(TokenizerData {
        json,
        chat_template: match file.metadata().get("tokenizer.chat_template") {
            Some(Metadata::Text(text)) => Some(text.clone()),
            _ => None,
        },
        special_tokens: [("bos_token", bos), ("eos_token", eos)]
            .into_iter()
            .filter_map(|(name, token)| Some((name.to_owned(), token?.0.to_owned())))
            .collect(),
    }))
}

/// The file that is built. The large parts borrow from the GGUF file, so that writing it costs one pass.
#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe<'a>,
}

#[derive(Serialize)]
struct Bpe<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "vocabulary")]
    vocab: &'a [&'a str],
    merges: Vec<(&'a str, &'a str)>,
}

/// Texts and ids as an object.
fn vocabulary<S: Serializer>(tokens: &[&str], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(tokens.iter().enumerate().map(|(id, text)| (text, id)))
}

/// The parts of a `tokenizer.json` that differ by tokenizer model.
struct Parts<'a> {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Bpe<'a>,
    add_bos: bool,
}

/// Token types as GGUF numbers them: 2 unknown, 3 control, 4 user-defined. Those are found in text before anything else.
fn added_tokens(tokens: &[&str], kinds: &[f64]) -> Vec<Value> {
    let added = |kind: f64| kind == 2.0 || kind == 3.0 || kind == 4.0;
    tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (text, kind))| added(**kind) && !text.is_empty())
        .map(|(id, (text, kind))| {
            json!({ "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": *kind != 4.0 })
        })
        .collect()
}

/// Puts the given tokens around every text.
fn template(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let around = |type_id: u32, with_eos: bool| {
        let id = if type_id == 0 { "A" } else { "B" };
        let piece = |(text, _): (&str, u32)| json!({ "SpecialToken": { "id": text, "type_id": type_id } });
        let mut list: Vec<Value> = bos.map(piece).into_iter().collect();
        list.push(json!({ "Sequence": { "id": id, "type_id": type_id } }));
        list.extend(eos.filter(|_| with_eos).map(piece));
        list
    };
    let mut special = Map::new();
    for (text, id) in bos.into_iter().chain(eos) {
        special.insert(text.to_owned(), json!({ "id": text, "ids": [id], "tokens": [text] }));
    }
    let pair: Vec<Value> = around(0, true).into_iter().chain(around(1, true)).collect();
    json!({ "type": "TemplateProcessing", "single": around(0, true), "pair": pair, "special_tokens": special })
}

fn byte_level<'a>(file: &'a GgufFile, tokens: &'a [&'a str]) -> Result<Parts<'a>, FrontendError> {
    let name = file.text(PRE)?.unwrap_or("default");
    let pre = pre_tokenizer(name).ok_or_else(|| {
        let message = format!("pre-tokenizer `{}`; {PRE_ACCEPTED}", shown(name));
        FrontendError::unsupported(file.mapping().path(), Place::Key(PRE.into()), message)
    })?;
    let merges =
        file.strings(MERGES)?.ok_or_else(|| file.key_error(MERGES, "missing; an array of strings is expected"))?;
    // Only looked up in, never walked, so its order cannot reach the output.
    let known: HashMap<&str, ()> = tokens.iter().map(|t| (*t, ())).collect();
    let mut pairs = Vec::with_capacity(merges.len());
    let mut joined = String::new();
    for (rank, merge) in merges.iter().enumerate() {
        // The first piece is never empty, so a space at byte 0 belongs to it.
        let wrong = |what: &str| file.key_error(MERGES, format!("merge {rank}, `{}`: {what}", shown(merge)));
        let at = merge
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == ' ')
            .map(|(at, _)| at)
            .ok_or_else(|| wrong("two pieces are expected"))?;
        let (left, right) = (&merge[..at], &merge[at + 1..]);
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        if [left, right, joined.as_str()].iter().any(|piece| !known.contains_key(piece)) {
            return Err(wrong("both pieces and what they make must be tokens"));
        }
        pairs.push((left, right));
    }
    let byte_level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let split = |pattern: &&str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let mut stages: Vec<Value> = pre.patterns.iter().map(split).collect();
    stages.push(byte_level.clone());
    Ok(Parts {
        normalizer: if pre.nfc { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": stages }),
        decoder: byte_level,
        model: Bpe {
            kind: "BPE",
            dropout: (),
            unk_token: None,
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: pre.ignore_merges,
            vocab: tokens,
            merges: pairs,
        },
        add_bos: pre.add_bos,
    })
}

/// SentencePiece BPE has scores instead of merges: any two tokens whose concatenation is a token may merge, best score first.
/// Listing those pairs in that order gives the same result as a merge table, as transformers' converter does it.
fn sentence_piece<'a>(
    file: &'a GgufFile,
    tokens: &'a [&'a str],
    scores: &[f64],
    unknown: Option<&'a str>,
) -> Result<Parts<'a>, FrontendError> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, text)| (*text, id)).collect();
    let mut pairs: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for (text, score) in tokens.iter().zip(scores) {
        if !score.is_finite() {
            return Err(file
                .key_error(SCORES, format!("the score of `{}` is {score}; finite numbers are expected", shown(text))));
        }
        // A token of n characters has n - 1 splits; real tokens are short, and a long one would only cost time squared.
        for (at, _) in text.char_indices().skip(1).take(256) {
            let (left, right) = text.split_at(at);
            if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                pairs.push((*score, *l, *r, left, right));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges = pairs.iter().map(|(_, _, _, left, right)| (*left, *right)).collect();
    let space = json!({ "String": " " });
    let prefix = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({ "type": "Replace", "pattern": space, "content": "\u{2581}" });
    let normalizer = if prefix {
        json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "\u{2581}" }, replace] })
    } else {
        replace
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: Bpe {
            kind: "BPE",
            dropout: (),
            unk_token: unknown,
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: tokens,
            merges,
        },
        add_bos: true,
    })
}
