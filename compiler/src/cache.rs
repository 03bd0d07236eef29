//! The compile cache: artifacts under `$XDG_CACHE_HOME/weldment/artifacts`, keyed by what went in, never by where it lay.

use crate::driver::CompileError;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Files of a model directory that decide what it compiles to.
const MODEL_EXTENSIONS: [&str; 5] = ["json", "safetensors", "jinja", "model", "wir"];

/// Where the artifact of `key` is, or would be.
pub fn artifact_path(cache: &Path, key: &str) -> PathBuf {
    cache.join("artifacts").join(format!("{key}.weld"))
}

/// Hex key of a model's content and the options it is compiled with.
///
/// # Errors
/// If a file of the model cannot be read.
pub fn key(model: &Path, options: &str) -> Result<String, CompileError> {
    let mut hash = blake3::Hasher::new();
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(concat!("weldment ", env!("CARGO_PKG_VERSION")).as_bytes());
    field(options.as_bytes());
    for (name, path) in files(model)? {
        field(name.as_bytes());
        field(content_hash(&path)?.as_bytes());
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// The model's files by name, sorted; a single file has no name, so that renaming it changes nothing.
fn files(model: &Path) -> Result<Vec<(String, PathBuf)>, CompileError> {
    let io = |source| CompileError::Io { path: model.to_owned(), source };
    if !std::fs::metadata(model).map_err(io)?.is_dir() {
        return Ok(vec![(String::new(), model.to_owned())]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(model).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let known = path.extension().and_then(|e| e.to_str()).is_some_and(|e| MODEL_EXTENSIONS.contains(&e));
        if let (true, Some(name)) = (known && path.is_file(), path.file_name()) {
            files.push((name.to_string_lossy().into_owned(), path));
        }
    }
    files.sort();
    Ok(files)
}

fn content_hash(path: &Path) -> Result<blake3::Hash, CompileError> {
    let io = |source| CompileError::Io { path: path.to_owned(), source };
    let mut hash = blake3::Hasher::new();
    hash.update_reader(File::open(path).map_err(io)?).map_err(io)?;
    Ok(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_content_and_options_not_places() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&a, &b] {
            std::fs::write(dir.path().join("config.json"), "{}").unwrap();
            std::fs::write(dir.path().join("notes.txt"), dir.path().to_string_lossy().as_bytes()).unwrap();
        }
        let plain = key(a.path(), "x").unwrap();
        assert_eq!(plain, key(b.path(), "x").unwrap());
        assert_ne!(plain, key(b.path(), "y").unwrap());
        std::fs::write(b.path().join("config.json"), "{ }").unwrap();
        assert_ne!(plain, key(b.path(), "x").unwrap());
        let (one, two) = (a.path().join("one.gguf"), b.path().join("two.gguf"));
        std::fs::write(&one, "same").unwrap();
        std::fs::write(&two, "same").unwrap();
        assert_eq!(key(&one, "").unwrap(), key(&two, "").unwrap());
        assert!(key(Path::new("/nowhere"), "").is_err());
    }
}
