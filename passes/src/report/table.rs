//! Coverage of every fusion in every variant, as a table.

use super::Report;
use std::collections::BTreeMap;

/// A number of bytes for people.
pub fn size(bytes: u64) -> String {
    let mut n = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if n < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{n:.1} {unit}") };
        }
        n /= 1024.0;
    }
    format!("{n:.1} TiB")
}

/// A table with a column a variant (name, ranges of the symbols that tell variants apart), a row a fusion (places fused,
/// absorbed by other ops, and kept), and the launches and bytes of a step; then what absorbed places, every reason for which
/// places were left, and limits that were reached, each with its variants.
pub fn coverage(reports: &[(&str, &Report)]) -> String {
    let mut rows: Vec<Vec<String>> =
        vec![[String::new()].into_iter().chain(reports.iter().map(|(name, _)| (*name).to_owned())).collect()];
    for symbol in distinguishing(reports) {
        let range = |r: &Report| match r.ranges.get(&symbol) {
            Some((min, max)) if min == max => format!("{symbol}={min}"),
            Some((min, max)) => format!("{symbol}={min}..{max}"),
            None => String::new(),
        };
        rows.push([String::new()].into_iter().chain(reports.iter().map(|(_, r)| range(r))).collect());
    }
    let heads = rows.len();
    let mut row = |name: &str, cell: &dyn Fn(&Report) -> String| {
        rows.push([name.to_owned()].into_iter().chain(reports.iter().map(|(_, r)| cell(r))).collect());
    };
    let mut names: Vec<&str> = Vec::new();
    for group in reports.iter().flat_map(|(_, r)| &r.groups).filter(|g| !g.anchors.is_empty()) {
        if !names.contains(&group.name.as_str()) {
            names.push(&group.name);
        }
    }
    for name in names {
        row(name, &|r| {
            let group = r.group(name).filter(|g| !g.anchors.is_empty());
            group.map_or_else(|| "-".into(), super::GroupReport::counts)
        });
    }
    row("launches", &|r| format!("{} -> {}", r.launches_before, r.launches_after));
    row("bytes", &|r| format!("{} -> {}", size(r.bytes_before), size(r.bytes_after)));
    row("policy", &|r| r.policy.clone());
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
        if i + 1 == heads {
            let rule: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
            out += &rule.join("  ");
            out.push('\n');
        }
    }
    out + &absorbed(reports) + &kept(reports) + &limits(reports)
}

/// Symbols whose ranges are not the same in every variant.
fn distinguishing(reports: &[(&str, &Report)]) -> Vec<String> {
    let Some((_, first)) = reports.first() else { return Vec::new() };
    let differs = |symbol: &&String| reports.iter().any(|(_, r)| r.ranges.get(*symbol) != first.ranges.get(*symbol));
    first.ranges.keys().filter(differs).cloned().collect()
}

/// Which ops absorbed the places of each fusion.
fn absorbed(reports: &[(&str, &Report)]) -> String {
    let mut lines: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (variant, report) in reports {
        for group in &report.groups {
            for (op, n) in group.absorbed() {
                lines.entry(format!("{} absorbed by {op}: {n}", group.name)).or_default().push(variant);
            }
        }
    }
    lines.iter().map(|(line, variants)| format!("{line}{}\n", whose(variants, reports))).collect()
}

/// Units whose saturation reached a limit.
fn limits(reports: &[(&str, &Report)]) -> String {
    let mut lines: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (variant, report) in reports {
        report.limits().into_iter().for_each(|line| lines.entry(line).or_default().push(variant));
    }
    lines.iter().map(|(line, variants)| format!("{}{}\n", line.trim_end(), whose(variants, reports))).collect()
}

/// The variants that a line is about, if not all.
fn whose(variants: &[&str], reports: &[(&str, &Report)]) -> String {
    if variants.len() == reports.len() { String::new() } else { format!(" ({})", variants.join(", ")) }
}

/// Fusion, reason with layers left open, and what is known of each.
type Reasons<'r> = BTreeMap<(String, String), (Vec<&'r str>, Vec<String>)>;

fn kept(reports: &[(&str, &Report)]) -> String {
    let mut reasons: Reasons<'_> = BTreeMap::new();
    for (variant, report) in reports {
        for group in &report.groups {
            for (text, paths) in group.kept() {
                let (variants, places) = reasons.entry((group.name.clone(), text)).or_default();
                variants.push(variant);
                places.extend(paths.into_iter().filter(|p| !places.contains(p)).collect::<Vec<_>>());
            }
        }
    }
    let mut out = String::new();
    for ((fusion, reason), (variants, places)) in reasons {
        let more = if places.len() > 1 { format!(" and {} more", places.len() - 1) } else { String::new() };
        let place = places.first().map_or("", String::as_str);
        out += &format!("{fusion} kept at {place}{more}{}: {reason}\n", whose(&variants, reports));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_past_bytes() {
        assert_eq!([size(0), size(1023), size(1024), size(1536)], ["0 B", "1023 B", "1.0 KiB", "1.5 KiB"]);
        assert_eq!(size(3 << 40), "3.0 TiB");
    }
}
