//! `weldment diff`: what differs between two artifacts.

use super::args::DiffArgs;
use super::put;
use crate::driver::CompileError;
use serde_json::Value;

/// Differences shown at most.
const SHOWN: usize = 100;

/// `weldment diff`: exit code 1 if the artifacts differ.
pub fn diff(args: &DiffArgs) -> Result<(), CompileError> {
    let manifest = |path: &std::path::Path| -> Result<Value, CompileError> {
        let artifact = weldment_runtime::Artifact::open(path)?;
        serde_json::to_value(artifact.manifest())
            .map_err(|e| CompileError::option(path.display().to_string(), e.to_string()))
    };
    let mut found = Vec::new();
    compare("", &manifest(&args.a)?, &manifest(&args.b)?, &mut found);
    let mut text: String = found.iter().take(SHOWN).map(|line| format!("{line}\n")).collect();
    if found.len() > SHOWN {
        text += &format!("and {} more\n", found.len() - SHOWN);
    }
    put(&text)?;
    if found.is_empty() { Ok(()) } else { Err(CompileError::Check(format!("{} differences", found.len()))) }
}

/// Appends a line for each leaf that differs, with its place.
fn compare(path: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                compare(&format!("{path}.{key}"), value, b.get(key).unwrap_or(&Value::Null), out);
            }
            for (key, value) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
                compare(&format!("{path}.{key}"), &Value::Null, value, out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| compare(&format!("{path}[{i}]"), a, b, out));
        }
        (Value::Array(a), Value::Array(b)) => out.push(format!("{path}: {} entries, {} entries", a.len(), b.len())),
        _ if a == b => {}
        _ => out.push(format!("{path}: {}, {}", short(a), short(b))),
    }
}

/// A value cut to a line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn leaves_that_differ_are_named() {
        let mut found = Vec::new();
        let (a, b) = (json!({"a": [1, 2], "b": 3, "c": [1]}), json!({"a": [1, 4], "c": [], "d": "new"}));
        compare("", &a, &b, &mut found);
        found.sort();
        assert_eq!(found, [".a[1]: 2, 4", ".b: 3, null", ".c: 1 entries, 0 entries", ".d: null, \"new\""]);
        found.clear();
        compare("", &a, &a, &mut found);
        assert!(found.is_empty());
    }
}
