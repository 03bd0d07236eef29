//! CONTRIBUTING.md names the files that a change of each kind touches: those that mention its example, and no others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Sources outside tests, by their path from the root.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if path.is_dir() && !matches!(name, "tests" | "target") {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            let path = path.strip_prefix(root()).expect("below the root");
            found.push(path.to_string_lossy().into_owned());
        }
    }
}

fn mentions(text: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        let ends = |edge: Option<char>| edge.is_some_and(|c| c.is_alphanumeric());
        let goes_on =
            (ends(word.chars().next()) && inside(before)) || (ends(word.chars().next_back()) && inside(after));
        !goes_on
    })
}

/// The pieces of a line in backquotes.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_recipe_is_the_list_of_files_that_mention_its_example() {
    let page = std::fs::read_to_string(root().join("CONTRIBUTING.md")).expect("the page");
    let mut files = Vec::new();
    for part in ["ir", "passes", "codegen", "compiler", "runtime"] {
        sources(&root().join(part), &mut files);
    }
    assert!(files.len() > 200);
    let recipes: Vec<&str> = page.split("\n## ").skip(1).collect();
    assert_eq!(recipes.len(), 6);
    for recipe in recipes {
        let title = recipe.lines().next().unwrap_or_default();
        let example = recipe.lines().find(|line| line.starts_with("Example: ")).expect("an example");
        let words = quoted(example);
        let listed: BTreeSet<String> =
            recipe.lines().filter(|l| l.starts_with("* ")).map(|l| quoted(l)[0].to_owned()).collect();
        let found: BTreeSet<String> = files
            .iter()
            .filter(|file| {
                let text = std::fs::read_to_string(root().join(file)).expect("a source");
                // Tests below a file's code are no part of a recipe.
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                words.iter().any(|word| mentions(code, word))
            })
            .cloned()
            .collect();
        assert_eq!(listed, found, "{title}");
        for path in recipe.lines().flat_map(quoted).filter(|p| p.contains('/') && p.contains('.') && !p.contains(' ')) {
            assert!(root().join(path).exists(), "{title}: {path}");
        }
    }
}
