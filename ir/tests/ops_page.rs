//! docs/ops.md is what the op table says.

use std::path::Path;

#[test]
fn the_ops_page_is_the_op_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ops.md");
    let page = weldment_ir::docs::ops_markdown();
    if std::env::var_os("WELDMENT_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page, "docs/ops.md is stale; `WELDMENT_BLESS=1 cargo test -p weldment-ir` rewrites it");
}
