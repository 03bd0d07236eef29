//! Typed look-ups in a JSON object that name file and key when the value is of another kind.

use crate::frontend::error::{FrontendError, Place, shown};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A JSON object and the file (and outer key) it came from. A `null` counts as a missing key, except for [`Object::contains`].
pub(super) struct Object {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    /// Reads the file at `path`; `None` if there is none.
    pub fn read(path: &Path) -> Result<Option<Object>, FrontendError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FrontendError::io(path, e)),
        };
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => Ok(Some(Object { path: path.to_owned(), prefix: String::new(), map })),
            Ok(_) => Err(FrontendError::invalid(path, Place::File, "a JSON object is expected")),
            Err(e) => Err(FrontendError::invalid(path, Place::File, format!("not JSON: {e}"))),
        }
    }

    fn place(&self, key: &str) -> Place {
        Place::Key(format!("{}{key}", self.prefix))
    }

    pub fn invalid(&self, key: &str, message: impl Into<String>) -> FrontendError {
        FrontendError::invalid(&self.path, self.place(key), message)
    }

    pub fn unsupported(&self, key: &str, message: impl Into<String>) -> FrontendError {
        FrontendError::unsupported(&self.path, self.place(key), message)
    }

    fn wrong_kind(&self, key: &str, found: &Value, expected: &str) -> FrontendError {
        self.invalid(key, format!("the value is {}; {expected} is expected", shown(&found.to_string())))
    }

    /// The value, if there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// True if the key is there, null or not.
    pub fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Keys and values in file order.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FrontendError> {
        self.get(key).map(|v| read(v).ok_or_else(|| self.wrong_kind(key, v, expected))).transpose()
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, FrontendError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, FrontendError> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// As [`Object::unsigned`], where the key must be there.
    pub fn needed(&self, key: &str) -> Result<u64, FrontendError> {
        self.unsigned(key)?.ok_or_else(|| self.invalid(key, "missing; a positive integer is expected"))
    }

    pub fn real(&self, key: &str) -> Result<Option<f64>, FrontendError> {
        self.typed(key, "a number", Value::as_f64)
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, FrontendError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn object(&self, key: &str) -> Result<Option<Object>, FrontendError> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(map.map(|map| Object { path: self.path.clone(), prefix, map: map.clone() }))
    }

    /// Token ids: one integer or a list of them; empty if missing.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>, FrontendError> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let read = |v: &Value| match v {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|n| vec![n]),
        };
        Ok(self.typed(key, "a token id or a list of them", read)?.unwrap_or_default())
    }
}
