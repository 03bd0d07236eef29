//! Every file of tests/filetests. `WELDMENT_FILETEST=name` runs those whose path contains it; `WELDMENT_BLESS=1` rewrites expectations.

use std::path::Path;
use weldment_tests::filetest;

#[test]
fn filetests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("filetests");
    let only = std::env::var("WELDMENT_FILETEST").unwrap_or_default();
    let bless = std::env::var_os("WELDMENT_BLESS").is_some();
    let files = filetest::collect(&root).unwrap();
    assert!(files.len() > 12, "{} filetests found under {}", files.len(), root.display());
    let mut failures = Vec::new();
    for path in files {
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        if name.contains(&only)
            && let Err(message) = filetest::run(&path, bless)
        {
            failures.push(format!("{name}: {message}"));
        }
    }
    assert!(failures.is_empty(), "{} failed\n{}", failures.len(), failures.join("\n"));
}
