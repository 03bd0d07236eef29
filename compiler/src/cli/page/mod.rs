//! The report as one HTML page that needs nothing else: template, style and script are files of their own beside this one.

mod data;

use super::explain::Reports;
use crate::driver::CompileError;
use data::PageData;

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page of `reports`, opened at source path `start`. `text` is shown where scripts do not run; `ladder` is a part of the
/// page, or empty.
///
/// # Errors
/// If the data cannot be written as JSON.
pub fn page(
    title: &str,
    reports: &Reports,
    start: Option<&str>,
    text: &str,
    ladder: &str,
) -> Result<String, CompileError> {
    let data = serde_json::to_string(&PageData::new(reports, start));
    let data = data.map_err(|e| CompileError::option("--format", e.to_string()))?;
    Ok(fill(TEMPLATE, |name| match name {
        "title" => escape(title),
        "style" => STYLE.trim_end().to_owned(),
        "script" => SCRIPT.trim_end().to_owned(),
        "data" => script_safe(&data),
        "text" => escape(text),
        "ladder" => ladder.to_owned(),
        _ => String::new(),
    }))
}

/// `template` with each `{{name}}` replaced, in one pass: what is put in is not looked at again.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once("}}") {
            Some((name, rest)) => out += &(value(name) + rest),
            None => out += part,
        }
    }
    out
}

/// Text as HTML shows it, in elements and attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// JSON that an HTML parser leaves alone: no `</script>`, no `<!--`. In JSON, `<` stands only within strings.
fn script_safe(json: &str) -> String {
    json.replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_put_in_ends_its_place() {
        let page = page("</title><b>'", &Reports::new(), None, "a < b & c {{data}}", "").unwrap();
        assert!(page.contains("<title>&lt;/title&gt;&lt;b&gt;&#39;</title>"), "{page}");
        assert!(page.contains("a &lt; b &amp; c {{data}}"));
        assert_eq!(script_safe(r#"["</script><!--"]"#), r#"["\u003c/script>\u003c!--"]"#);
        let back: Vec<String> = serde_json::from_str(&script_safe(r#"["</script><!--"]"#)).unwrap();
        assert_eq!(back, ["</script><!--"]);
    }

    #[test]
    fn every_place_of_the_template_is_filled() {
        let filled = fill(TEMPLATE, |name| {
            assert!(["title", "style", "script", "data", "text", "ladder"].contains(&name), "{name}");
            String::new()
        });
        assert!(!filled.contains("{{"));
    }
}
