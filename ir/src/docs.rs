//! docs/ops.md, written from the op table and the dtype table.

use crate::DType;
use crate::attr::AttrKind;
use crate::op::{Category, OpInfo, OpKind};
use std::fmt::Write;

const HEAD: &str = "# Ops of the graph IR

Written from the op table (`ir/src/op.rs`) by `weldment_ir::docs`; `WELDMENT_BLESS=1 cargo test -p weldment-ir` rewrites it.
An op reads `name(operands) {attributes} -> (results)`; `..` after an operand means any number of it. Text IR needs every
attribute that shows no default and takes them in any order. Shapes are row-major, outermost dim first; a dim is a number or a declared symbol.

Behind each operand and result stand its axes. Axes that share a name run together: a part of one goes with the same part of the other. `+k` is summed
over, `!` is needed whole, elements of `^indices` are picked by the operand `indices`, values of the operand `positions` lie within `<positions`, and
`..m` stands for any number of axes. Where nothing is shown, attributes decide. What may be cut between ranks, what is read and what is computed follows
from these (`ir/src/signature.rs`, `ir/src/effort.rs`).

Arithmetic is f32's unless the operands are integers, which wrap at their width and divide towards zero. A result is rounded once, to its dtype;
`maximum`, `minimum`, `select`, `neg`, `reduce_max` and views never round.
";

const CATEGORIES: [(Category, &str); 8] = [
    (Category::Leaf, "Leaves: no operands that change from step to step"),
    (
        Category::Elementwise,
        "Elementwise: each result element depends on the operand elements at the same, broadcast place",
    ),
    (Category::Reduction, "Reductions and norms"),
    (Category::View, "Views: elements are moved or renamed, nothing is computed"),
    (Category::Contraction, "Contractions"),
    (Category::Indexed, "Indexed reads"),
    (Category::StateWrite, "State writes: the result is the next version of operand 0"),
    (
        Category::Collective,
        "Collectives: every rank runs the same graph; these read what the others hold, or depend on the rank's number",
    ),
];

/// The page, byte for byte what docs/ops.md must be.
pub fn ops_markdown() -> String {
    let mut page = HEAD.to_owned();
    // Writing to a String cannot fail.
    let _ = write_page(&mut page);
    page
}

fn write_page(page: &mut String) -> std::fmt::Result {
    for (category, title) in CATEGORIES {
        writeln!(page, "\n## {title}")?;
        for info in OpKind::ALL.iter().map(|k| k.info()).filter(|info| info.category == category) {
            writeln!(page, "\n### `{}`\n\n```text\n{}\n```\n", info.name, signature(info))?;
            info.doc.lines().try_for_each(|line| writeln!(page, "{}", line.trim()))?;
        }
    }
    writeln!(page, "\n## Dtypes\n\n| name | elements a block | bytes a block |\n|---|---|---|")?;
    for dtype in DType::ALL {
        writeln!(page, "| `{dtype}` | {} | {} |", dtype.block_elements(), dtype.block_bytes())?;
    }
    Ok(())
}

/// `add_rms_norm(x[..m, !], residual[..m, !], w[!]) {eps: real, dtype: dtype} -> (norm[..m, !], sum[..m, !])`
pub fn signature(info: &OpInfo) -> String {
    let mut text = info.name.to_owned();
    if !info.operands.is_empty() {
        let operands = named(info.operands, info.operand_patterns);
        text += &format!("({operands}{})", if info.variadic { " .." } else { "" });
    }
    if !info.attrs.is_empty() {
        let attrs: Vec<String> = info
            .attrs
            .iter()
            .zip((info.defaults)())
            .map(|((name, kind), default)| {
                let default = default.map_or(String::new(), |value| format!(" = {value}"));
                format!("{name}: {}{default}", kind_name(*kind))
            })
            .collect();
        text += &format!(" {{{}}}", attrs.join(", "));
    }
    text + &format!(" -> ({})", named(info.results, info.result_patterns))
}

/// `x[..m, +k], w[n, +k]`; names alone where attributes decide what their axes are.
fn named(names: &[&str], patterns: &[&str]) -> String {
    let axes = |pattern: &&str| match *pattern {
        "*" => String::new(),
        words => format!("[{}]", words.split_whitespace().collect::<Vec<_>>().join(", ")),
    };
    let each: Vec<String> =
        names.iter().zip(patterns).map(|(name, pattern)| format!("{name}{}", axes(pattern))).collect();
    each.join(", ")
}

fn kind_name(kind: AttrKind) -> &'static str {
    match kind {
        AttrKind::Int => "int",
        AttrKind::Real => "real",
        AttrKind::Flag => "flag",
        AttrKind::DType => "dtype",
        AttrKind::Ints => "[int]",
        AttrKind::Reals => "[real]",
        AttrKind::Shape => "[dim]",
        AttrKind::Text => "text",
        AttrKind::Role => "role",
    }
}
