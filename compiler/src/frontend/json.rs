//! Typed look-ups in a JSON object that name file and key when the value is of another kind.

use super::error::{FrontendError, Place, shown};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A JSON object and the file (and outer key) it came from. A `null` counts as a missing key, except for [`Object::contains`].
#[derive(Debug, Clone)]
pub struct Object {
    path: PathBuf,
    prefix: String,
    map: Map<String, Value>,
    /// What the file calls keys that were translated.
    spelled: Arc<BTreeMap<String, String>>,
}

impl Object {
    /// Reads the file at `path`; `None` if there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Object>, FrontendError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FrontendError::io(path, e)),
        };
        match serde_json::from_slice(&text) {
            Ok(Value::Object(map)) => Ok(Some(Object::translated(path, map, BTreeMap::new()))),
            Ok(_) => Err(FrontendError::invalid(path, Place::File, "a JSON object is expected")),
            Err(e) => Err(FrontendError::invalid(path, Place::File, format!("not JSON: {e}"))),
        }
    }

    /// The keys of another format, translated; `spelled` has the file's own name of each, which errors use.
    pub(crate) fn translated(path: &Path, map: Map<String, Value>, spelled: BTreeMap<String, String>) -> Object {
        Object { path: path.to_owned(), prefix: String::new(), map, spelled: Arc::new(spelled) }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn place(&self, key: &str) -> Place {
        let full = format!("{}{key}", self.prefix);
        Place::Key(self.spelled.get(&full).cloned().unwrap_or(full))
    }

    pub(crate) fn invalid(&self, key: &str, message: impl Into<String>) -> FrontendError {
        FrontendError::invalid(&self.path, self.place(key), message)
    }

    pub(crate) fn unsupported(&self, key: &str, message: impl Into<String>) -> FrontendError {
        FrontendError::unsupported(&self.path, self.place(key), message)
    }

    fn wrong_kind(&self, key: &str, found: &Value, expected: &str) -> FrontendError {
        self.invalid(key, format!("the value is {}; {expected} is expected", shown(&found.to_string())))
    }

    /// The value, if there and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// True if the key is there, null or not.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Keys and values in file order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    /// Gives keys that are missing, and not null either, the values of `defaults`.
    pub(crate) fn fill(&mut self, defaults: &Map<String, Value>) {
        for (key, value) in defaults {
            if !self.contains(key) {
                self.map.insert(key.clone(), value.clone());
            }
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FrontendError> {
        self.get(key).map(|v| read(v).ok_or_else(|| self.wrong_kind(key, v, expected))).transpose()
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, FrontendError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, FrontendError> {
        self.typed(key, "a non-negative integer", Value::as_u64)
    }

    /// As [`Object::unsigned`], where the key must be there.
    pub(crate) fn needed(&self, key: &str) -> Result<u64, FrontendError> {
        self.unsigned(key)?.ok_or_else(|| self.invalid(key, "missing; a positive integer is expected"))
    }

    pub(crate) fn real(&self, key: &str) -> Result<Option<f64>, FrontendError> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// As [`Object::real`], where the key must be there, for what `user` says.
    pub(crate) fn needed_real(&self, key: &str, user: &str) -> Result<f64, FrontendError> {
        self.real(key)?.ok_or_else(|| self.invalid(key, format!("missing; {user} needs it")))
    }

    /// A list of numbers, which must be there, for what `user` says.
    pub(crate) fn needed_reals(&self, key: &str, user: &str) -> Result<Vec<f64>, FrontendError> {
        let read = |v: &Value| v.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
        let list = self.typed(key, "a list of numbers", read)?;
        list.ok_or_else(|| self.invalid(key, format!("missing; {user} needs it")))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, FrontendError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Object>, FrontendError> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let prefix = format!("{}{key}.", self.prefix);
        let inner = |map: &Map<String, Value>| Object {
            path: self.path.clone(),
            prefix,
            map: map.clone(),
            spelled: Arc::clone(&self.spelled),
        };
        Ok(map.map(inner))
    }

    /// Token ids: one integer or a list of them; empty if missing.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<u32>, FrontendError> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let read = |v: &Value| match v {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|n| vec![n]),
        };
        Ok(self.typed(key, "a token id or a list of them", read)?.unwrap_or_default())
    }

    /// Refuses a key that switches something on: absent, null and false are accepted.
    pub(crate) fn refuse(&self, key: &str) -> Result<(), FrontendError> {
        match self.get(key).filter(|v| **v != Value::Bool(false)) {
            Some(found) => {
                Err(self.unsupported(key, format!("{}; models without it are accepted", shown(&found.to_string()))))
            }
            None => Ok(()),
        }
    }
}
