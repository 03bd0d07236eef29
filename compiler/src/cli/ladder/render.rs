//! A ladder as text and as a part of the HTML page, with a plot.

use super::{Ladder, Rung};
use crate::cli::page::escape;
use std::fmt::Write;

/// The delta column.
fn delta(rung: &Rung) -> String {
    match (rung.same, rung.delta_percent) {
        (true, _) => "same code".to_owned(),
        (false, Some(percent)) => format!("{percent:+.1} %"),
        (false, None) => String::new(),
    }
}

fn workload(ladder: &Ladder) -> String {
    let Ladder { device, batch, context, prefill, rounds, .. } = ladder;
    format!("{device}, batch {batch}, context {context}, prefill {prefill}; medians of {rounds} turns")
}

const HEAD: [&str; 7] = ["rung", "launches", "MB/step", "ms/step", "tokens/s", "delta", "prefill tokens/s"];

fn cells(rung: &Rung) -> [String; 7] {
    [
        rung.name.clone(),
        rung.launches.to_string(),
        format!("{:.2}", rung.bytes_per_step as f64 / 1e6),
        format!("{:.3}", rung.ms_per_step),
        format!("{:.1}", rung.tokens_per_second),
        delta(rung),
        format!("{:.0}", rung.prefill_tokens_per_second),
    ]
}

/// One line a rung.
pub fn text(ladder: &Ladder) -> String {
    let rows: Vec<[String; 7]> = ladder.rungs.iter().map(cells).collect();
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).chain([HEAD[i].len()]).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut out = workload(ladder) + "\n";
    let mut line = |cells: [&str; 7]| {
        let name = format!("{:<1$}", cells[0], widths[0]);
        let rest = cells.iter().zip(widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}"));
        out += (name + &rest.collect::<String>()).trim_end();
        out += "\n";
    };
    line(HEAD);
    rows.iter().for_each(|row| line(row.each_ref().map(String::as_str)));
    out
}

/// The ladder as a section of the page: the plot, and the figures as a table.
pub fn section(ladder: &Ladder) -> String {
    let mut out = String::from("<section id=\"ladder\" aria-labelledby=\"ladder-title\">\n");
    out += "<h2 id=\"ladder-title\">What each pass brings</h2>\n";
    out += &format!("<p>Time of a decode step: {}.</p>\n", escape(&workload(ladder)));
    out += &plot(ladder);
    out += "<div class=\"scroll\"><table>\n<thead><tr>";
    out.extend(HEAD.map(|h| format!("<th scope=\"col\">{h}</th>")));
    out += "</tr></thead>\n<tbody>\n";
    for rung in &ladder.rungs {
        let [name, rest @ ..] = cells(rung);
        out += &format!("<tr><th scope=\"row\">{}</th>", escape(&name));
        out.extend(rest.map(|cell| format!("<td class=\"number\">{}</td>", escape(&cell))));
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n</section>"
}

/// Pixels of a row, of the names, of the longest bar.
const ROW: f64 = 24.0;
const NAMES: f64 = 210.0;
const BAR: f64 = 560.0;

/// Bars of time a step, fastest and slowest turn as a line through each bar's end.
fn plot(ladder: &Ladder) -> String {
    let slowest = ladder.rungs.iter().map(|r| r.ms_range[1].max(r.ms_per_step)).fold(0.0, f64::max);
    let scale = if slowest > 0.0 { BAR / slowest } else { 0.0 };
    let (width, height) = (NAMES + BAR + 170.0, ROW * ladder.rungs.len() as f64 + 6.0);
    let mut out = format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" \
         aria-label=\"Time of a decode step for each rung; the table has the figures\">\n"
    );
    for (i, rung) in ladder.rungs.iter().enumerate() {
        let top = ROW * i as f64 + 4.0;
        let (text_at, middle, bar) = (top + 13.0, top + 9.0, rung.ms_per_step * scale);
        let class = if rung.same { "bar same" } else { "bar" };
        let [low, high] = rung.ms_range.map(|ms| NAMES + ms * scale);
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{text_at:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{NAMES}\" y=\"{top:.1}\" width=\"{bar:.1}\" height=\"18\" rx=\"3\"/>\
             <path class=\"spread\" d=\"M{low:.1} {middle:.1}H{high:.1}\"/>\
             <text x=\"{:.1}\" y=\"{text_at:.1}\">{:.3} ms <tspan class=\"soft\">{}</tspan></text>",
            NAMES - 10.0,
            escape(&rung.name),
            high.max(NAMES + bar) + 8.0,
            rung.ms_per_step,
            escape(&delta(rung)),
        );
    }
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ladder() -> Ladder {
        let rung = |name: &str, ms: f64, same, delta_percent| Rung {
            name: name.to_owned(),
            same,
            launches: 10,
            bytes_per_step: 1_500_000,
            ms_per_step: ms,
            ms_range: [ms * 0.9, ms * 1.1],
            tokens_per_second: 1e3 / ms,
            delta_percent,
            prefill_tokens_per_second: 400.0,
        };
        let rungs = vec![
            rung("a < b", 2.0, false, None),
            rung("+ c", 1.5, false, Some(-25.0)),
            rung("+ d", 1.5, true, Some(0.0)),
        ];
        Ladder { device: "host".to_owned(), batch: 1, context: 64, prefill: 32, rounds: 3, rungs }
    }

    #[test]
    fn text_is_a_table() {
        let found = text(&ladder());
        let lines: Vec<&str> = found.lines().collect();
        assert_eq!(lines[0], "host, batch 1, context 64, prefill 32; medians of 3 turns");
        assert_eq!(lines[1], "rung   launches  MB/step  ms/step  tokens/s      delta  prefill tokens/s");
        assert_eq!(lines[2], "a < b        10     1.50    2.000     500.0                          400");
        assert_eq!(lines[3], "+ c          10     1.50    1.500     666.7    -25.0 %               400");
        assert_eq!(lines[4], "+ d          10     1.50    1.500     666.7  same code               400");
    }

    #[test]
    fn bars_are_as_long_as_steps_take() {
        let found = section(&ladder());
        assert!(found.contains("a &lt; b") && !found.contains("a < b"), "{found}");
        let widths: Vec<f64> = found
            .split("<rect ")
            .skip(1)
            .map(|r| r.split_once("width=\"").unwrap().1.split_once('"').unwrap().0.parse().unwrap())
            .collect();
        assert_eq!(widths.len(), 3);
        assert!((widths[0] / widths[1] - 2.0 / 1.5).abs() < 0.01, "{widths:?}");
        assert_eq!(found.matches("<tr>").count(), 4);
    }
}
