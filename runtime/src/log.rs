//! Messages on stderr, filtered by `WELDMENT_LOG` (the levels of RUST_LOG; `weldment_runtime=debug` or a bare level).

use std::fmt::Arguments;
use std::sync::OnceLock;

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something works less well than it could.
    Warn,
    /// What is being done.
    Info,
    /// How it is being done.
    Debug,
}

/// Writes a message if `WELDMENT_LOG` lets it through; warnings and errors pass by default.
pub fn write(level: Level, message: Arguments<'_>) {
    static FILTER: OnceLock<Option<Level>> = OnceLock::new();
    let filter = FILTER.get_or_init(|| filter(&std::env::var("WELDMENT_LOG").unwrap_or_default()));
    if filter.is_some_and(|most| level <= most) {
        eprintln!("weldment: {message}");
    }
}

/// The last directive that concerns this crate wins.
fn filter(text: &str) -> Option<Level> {
    let mut most = Some(Level::Warn);
    for directive in text.split(',').map(str::trim).filter(|d| !d.is_empty()) {
        let level = match directive.split_once('=') {
            Some((target, level)) if target.starts_with("weldment") => level,
            Some(_) => continue,
            None => directive,
        };
        most = match level.to_ascii_lowercase().as_str() {
            "off" => None,
            "error" => Some(Level::Error),
            "warn" => Some(Level::Warn),
            "info" => Some(Level::Info),
            "debug" | "trace" => Some(Level::Debug),
            _ => most,
        };
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        assert_eq!(filter(""), Some(Level::Warn));
        assert_eq!(filter("info,weldment_runtime=off"), None);
        assert_eq!(filter("other=trace,debug"), Some(Level::Debug));
    }
}
