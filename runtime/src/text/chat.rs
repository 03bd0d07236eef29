//! Chat templates: Jinja as transformers runs it, through minijinja.

use super::{TextError, guard, rewrite};
use minijinja::machinery::{CodeGenerator, Token, Vm, WhitespaceConfig, make_string_output, parse, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// Steps that one rendering may take: a template is data from outside, and nested loops must end.
const FUEL: u64 = 20_000_000;
/// Bytes of a template; the longest known have some 30,000.
const SOURCE_BYTES: usize = 1 << 20;
/// Tokens of one tag: a chain of operators is as deep as it is long.
const TAG_TOKENS: usize = 1 << 14;
/// Characters of an error.
const ERROR_CHARS: usize = 2000;
/// Stack of a rendering. The engine walks templates and values by recursion; what the limits allow fits.
const STACK_BYTES: usize = 256 << 20;

/// transformers' settings.
const WHITESPACE: fn() -> WhitespaceConfig =
    || WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };

/// Texts that a template prints by name: `bos_token`, `eos_token`, ... One that is missing is undefined there.
pub type SpecialTokens = BTreeMap<String, String>;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message from parts.
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }
}

/// A chat template that parses.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    tokens: SpecialTokens,
}

fn failed(e: impl std::fmt::Display) -> TextError {
    let mut text = format!("{e:#}");
    // A template may raise what text it likes.
    if let Some((at, _)) = text.char_indices().nth(ERROR_CHARS) {
        text.truncate(at);
        text += "...";
    }
    TextError::Template(text)
}

impl ChatTemplate {
    /// Parses `source`.
    ///
    /// # Errors
    /// If it does not parse (the message has the line), or is larger than any template is.
    pub fn new(source: &str, tokens: SpecialTokens) -> Result<ChatTemplate, TextError> {
        if source.len() > SOURCE_BYTES {
            return Err(failed(format_args!("{} bytes; {SOURCE_BYTES} are the most", source.len())));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        // It would print the values of variables.
        environment.set_debug(false);
        guard::install(&mut environment);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| strftime(&format, seconds_now()));
        environment.add_filter("tojson", tojson);
        // Python iterates over no None.
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        // As Jinja2's lexer reads lines.
        let source = without_generation_tags(source).replace("\r\n", "\n").replace('\r', "\n");
        let template = ChatTemplate { environment, source, tokens };
        template.on_a_deep_stack(|template| template.evaluate(None).map(|_| ()))?;
        Ok(template)
    }

    /// The prompt text of a conversation; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// If the template raises an exception (a role order it does not accept, say), runs too long, or makes more than a prompt's
    /// worth of text.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TextError> {
        let mut root: BTreeMap<&str, Value> =
            self.tokens.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))).collect();
        root.extend([
            ("messages", Value::from_serialize(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ]);
        let root = Value::from_serialize(&root);
        self.on_a_deep_stack(move |template| template.evaluate(Some(root)))
    }

    /// Runs `job` on a thread of its own, whose stack holds the deepest template that the limits allow.
    fn on_a_deep_stack<T: Send>(
        &self,
        job: impl FnOnce(&ChatTemplate) -> Result<T, TextError> + Send,
    ) -> Result<T, TextError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, || job(self));
            let thread = thread.map_err(|e| failed(format_args!("no thread for it: {e}")))?;
            thread.join().unwrap_or_else(|_| Err(failed("the template engine gave up")))
        })
    }

    /// Compiles the template with its guards, and renders it where there are variables.
    fn evaluate(&self, root: Option<Value>) -> Result<String, TextError> {
        self.check_tags()?;
        let tree = parse(&self.source, "chat", SyntaxConfig, WHITESPACE()).map_err(failed)?;
        let mut generator = CodeGenerator::new("chat", &self.source);
        generator.compile_stmt(&rewrite::guarded(&tree));
        let (instructions, blocks) = generator.finish();
        let mut text = String::new();
        if let Some(root) = root {
            let mut out = make_string_output(&mut text);
            let vm = Vm::new(&self.environment);
            vm.eval(&instructions, root, &blocks, &mut out, AutoEscape::None).map_err(failed)?;
        }
        Ok(text)
    }

    /// Refuses tags of more tokens than any has.
    fn check_tags(&self) -> Result<(), TextError> {
        let mut tokens = 0;
        for token in tokenize(&self.source, false, SyntaxConfig, WHITESPACE()) {
            match token {
                Ok((Token::VariableStart | Token::BlockStart, _)) => tokens = 0,
                Ok((_, span)) if tokens > TAG_TOKENS => {
                    let line = span.start_line;
                    return Err(failed(format_args!("line {line}: a tag of more than {TAG_TOKENS} tokens")));
                }
                Ok(_) => tokens += 1,
                // The parser says it better.
                Err(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// `{% generation %}` blocks mark the assistant's text for training; here they are plain blocks.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |at| at + 2);
        let (tag, after) = tag.split_at(end);
        let name = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False)` writes it: a space after commas and colons, nothing escaped for HTML.
fn tojson(value: Value, options: minijinja::value::Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let text = String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(text))
}

/// Python's separators: `, ` and `: `.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Year, month 0..12, day 1..=31 of a day number since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, usize, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = year_of_era + era * 400 + u64::from(month < 2);
    (year, month as usize, day)
}

/// The directives of C's strftime that templates use, in UTC; an unknown one is left as it is.
fn strftime(format: &str, seconds: u64) -> String {
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month % 12], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('m') => out += &format!("{:02}", month + 1),
            Some('B') => out += month_name,
            Some('b' | 'h') => out += &month_name[..3],
            Some('d') => out += &format!("{day:02}"),
            Some('e') => out += &format!("{day:2}"),
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", clock / 3600),
            Some('M') => out += &format!("{:02}", clock / 60 % 60),
            Some('S') => out += &format!("{:02}", clock % 60),
            Some('F') => out += &format!("{year}-{:02}-{day:02}", month + 1),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String, TextError> {
        let tokens =
            [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.to_owned(), text.to_owned()));
        ChatTemplate::new(source, tokens.into())?.render(messages, true)
    }

    #[test]
    fn chatml_renders() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        let text = render(source, &[Message::new("user", "Hi <b>&")]).unwrap();
        assert_eq!(
            text,
            "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi <b>&<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_work() {
        let source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m.content.strip().upper() }}{{ eos_token }}\n  {% endfor %}\n";
        assert_eq!(
            render(source, &[Message::new("user", " a "), Message::new("user", "b")]).unwrap(),
            "<s>\nA</s>\nB</s>\n"
        );
    }

    #[test]
    fn json_is_pythons() {
        let source = "{{ messages[0] | tojson }}{% if tools is none %} {{ [1, true] | tojson(indent=2) }}{% endif %}";
        assert_eq!(
            render(source, &[Message::new("user", "é<'")]).unwrap(),
            "{\"role\": \"user\", \"content\": \"é<'\"} [\n  1,\n  true\n]"
        );
    }

    #[test]
    fn exceptions_and_endless_loops_are_errors() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err().to_string();
        assert!(error.contains("roles must alternate"), "{error}");
        assert!(
            render("{% for a in range(10000) %}{% for b in range(10000) %}{{ a }}{% endfor %}{% endfor %}", &[])
                .is_err()
        );
        assert!(ChatTemplate::new("{% if %}", SpecialTokens::new()).is_err());
    }

    #[test]
    fn lines_end_as_jinja_reads_them() {
        assert_eq!(
            render("a\r\n{% if true %}\r\nb\rc{{ '\r\n' }}{{ '\\r' }}\r\n{% endif %}\r\n\r\n", &[]).unwrap(),
            "a\nb\nc\n\r\n"
        );
    }

    #[test]
    fn none_is_not_iterable() {
        let source = "{{ tools is iterable }}{{ none is iterable }}{{ [] is iterable }}{{ '' is iterable }}{{ 1 is iterable }}{{ {} is iterable }}{% if tools is iterable and tools | length > 0 %}x{% endif %}";
        assert_eq!(render(source, &[]).unwrap(), "FalseFalseTrueTrueFalseTrue");
    }

    #[test]
    fn only_tokens_that_the_model_has_are_defined() {
        assert_eq!(
            render("{{ bos_token is defined }}{{ pad_token is defined }}[{{ pad_token }}]", &[]).unwrap(),
            "TrueFalse[]"
        );
    }

    #[test]
    fn generation_tags_are_plain_blocks() {
        let source = "{%- generation %}a{%- endgeneration -%}\n b{{ '{% x' }}";
        assert_eq!(render(source, &[]).unwrap(), "ab{% x");
    }

    /// Peak of this process's memory in bytes.
    fn peak() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Every way to make much of little, each with what it would make in a hundred lines.
    #[test]
    fn templates_make_no_more_than_a_prompt() {
        let double = |step: &str| {
            format!(
                "{{% set ns = namespace(x='ab', l=[1]) %}}{{% for i in range(100) %}}{step}{{% endfor %}}{{{{ ns.x | length }}}}"
            )
        };
        let steps = [
            "{% set ns.x = ns.x ~ ns.x %}",
            "{% set ns.x = ns.x + ns.x %}",
            "{% set ns.x = ns.x * 2 %}",
            "{% set ns.x = 1000 * ns.x %}",
            "{% set ns.x = [ns.x, ns.x] | join %}",
            "{% set ns.x = [ns.x, ns.x] | join(ns.x) %}",
            "{% set ns.x = ns.x.join([ns.x, ns.x]) %}",
            "{% set ns.x = ns.x | replace('a', 'aab') %}",
            "{% set ns.x = ns.x | replace('', ns.x) %}",
            "{% set ns.x = ns.x.replace('b', 'bba') %}",
            "{% set ns.x = '%s%s' | format(ns.x, ns.x) %}",
            "{% set ns.x = '{}{}'.format(ns.x, ns.x) %}",
            "{% set ns.x = '{0}{0}{0}'.format(ns.x) %}",
            "{% set ns.x = [ns.x, ns.x] | string %}",
            "{% set ns.x = [ns.x, ns.x] | tojson %}",
            "{% set ns.x = (ns.x ~ '\n' ~ ns.x) | indent(1000, true) %}",
            "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
            "{% macro m(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns.x = m(ns.x) %}",
            "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}{% set ns.x %}{% call m() %}{{ ns.x }}{% endcall %}{% endset %}",
            "{% set ns.x %}{% filter replace('a', 'aa') %}{{ ns.x }}{% endfilter %}{% endset %}",
            "{% set ns.x = ns.x[:] ~ ns.x[::-1] %}",
            "{% set ns.x = ['a', ns.x] | map('replace', 'a', ns.x) | join %}",
            "{% set ns.x = ns.x | list | join('ab') %}{% set ns.x = ns.x + ns.x %}",
            "{% set ns.l = ns.l + ns.l %}",
            "{% set ns.l = ns.l * 3 %}",
            "{% set ns.l = [ns.l, ns.l] %}",
            "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
            "{% set ns.l = [ns.l, ns.l] | sum(start=[]) %}",
            "{% set ns.l = ns.l | batch(1) | list + ns.l | list %}",
            "{% set ns.l = dict(a=ns.l, b=ns.l) %}",
            "{% set ns.x = ns.x | tojson | tojson | tojson %}",
        ];
        let mut sources: Vec<String> = steps.iter().map(|step| double(step)).collect();
        let loops = |body: &str| {
            format!(
                "{{% set ns = namespace(l=[]) %}}{{% set x = 'x' * 100000 %}}{{% for i in range(100000) %}}{{% for j in range(100) %}}{body}{{% endfor %}}{{% endfor %}}"
            )
        };
        sources.extend([
            "{{ 'a' * 100000000000 }}".to_owned(),
            "{{ [1] * 100000000000 }}".into(),
            ["{% set a = 'a' * 90000000 %}"; 100].concat(),
            "{{ ('a' * 90000000) ~ ('b' * 90000000) }}".into(),
            "{{ '%1000000000000d' | format(1) }}".into(),
            "{{ '%*d' | format(1000000000000, 1) }}".into(),
            "{{ '{:1000000000000}'.format(1) }}".into(),
            "{{ '{:{w}}'.format(1, w=1000000000000) }}".into(),
            "{{ '%.1000000000000f' | format(1.5) }}".into(),
            "{{ 'a' | indent(1000000000000, true) }}".into(),
            "{{ 'a' | indent(width=1000000000000, first=true) }}".into(),
            "{{ [1] | batch(1000000000000, 0) }}".into(),
            "{{ [1] | slice(1000000000000) }}".into(),
            loops("{{ x }}"),
            loops("{% set ns.l = ns.l + [x ~ i] %}"),
            loops("{% set ns.l = [x ~ i, ns.l] %}"),
            loops("{% set ns.n = namespace(n=ns) %}"),
            loops("{% set ns.l = ns.l[:] + [i] %}"),
            loops("{% set ns.m = ns %}"),
            "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}".into(),
            "{% for a in [1] recursive %}{{ loop([1, 1]) }}{{ loop([1, 1]) }}{% endfor %}".into(),
            "{% set x %}".to_owned() + &"y".repeat(500_000) + "{% endset %}{% set ns = namespace(x='') %}{% for i in range(100000) %}{% set ns.x = ns.x ~ x %}{% endfor %}",
            "{% for i in range(100000) %}".to_owned() + &"y".repeat(500_000) + "{% endfor %}",
        ]);
        for source in &sources {
            let started = std::time::Instant::now();
            let error = render(source, &[Message::new("user", "Hi")]);
            let shown: String = source.chars().take(300).collect();
            assert!(error.is_err(), "{shown}: {} bytes", error.unwrap().len());
            assert!(error.unwrap_err().to_string().len() < 10_000, "{shown}");
            assert!(started.elapsed().as_secs() < 60, "{shown}: {:?}", started.elapsed());
            assert!(peak() < 3 << 30, "{shown}: {} MiB", peak() >> 20);
        }
    }

    #[test]
    fn deep_and_endless_templates_are_errors() {
        let nested = |n: usize| "{{ ".to_owned() + &"[".repeat(n) + &"]".repeat(n) + " }}";
        let chain = |n: usize, link: &str| "{{ 1".to_owned() + &link.repeat(n) + " }}";
        let mut sources = vec![nested(100_000), chain(200_000, "+1"), chain(200_000, " and 1"), chain(200_000, "~1")];
        sources.push("{% if 1 %}".repeat(100_000));
        sources.push(
            "{% if 0 %}".to_owned()
                + &"{% elif 0 %}".repeat(80_000)
                + "{{ raise_exception('end') }}{% endif %}{{ missing() }}",
        );
        sources.push(
            "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}".into(),
        );
        sources.push("x".repeat(2 << 20));
        for source in &sources {
            let shown: String = source.chars().take(60).collect();
            assert!(render(source, &[]).is_err(), "{shown}");
        }
        // Python counts the places between characters; the engine's own count never ends.
        assert_eq!(render("{{ 'ab'.count('') }}", &[]).unwrap(), "3");
    }

    #[test]
    fn guarded_operators_are_pythons() {
        let check = |source: &str, expect: &str| assert_eq!(render(source, &[]).unwrap(), expect, "{source}");
        check(
            "{{ 1 + 2 }} {{ 1.5 + 2 }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ 2 * 3 }} {{ 'ab' * 2 }} {{ 2 * 'ab' }} {{ [1] * 2 }}",
            "3 3.5 ab [1, 2] 6 abab abab [1, 1]",
        );
        check("{{ 'a' ~ 1 ~ none ~ missing }}{{ 'x' * -1 }}|{{ [] * 3 }}", "a1None|[]");
        check(
            "{% set s = 'abcdef' %}{{ s[1:3] }} {{ s[:-2] }} {{ s[-2:] }} {{ s[::2] }} {{ s[::-1] }} {{ s[4:1:-1] }} {{ s[9:] }}|",
            "bc abcd ef ace fedcba edc |",
        );
        check(
            "{% set l = [1, 2, 3] %}{{ l[1:] }}{{ l[::-1] }}{{ l[:-1] | length }}{{ l[5:] }}{{ l[0:2:-1] }}",
            "[2, 3][3, 2, 1]2[][]",
        );
        check(
            "{{ 'aXbX' | replace('X', '-') }}{{ 'aXbX'.replace('X', '-', 1) }}{{ 'abc'.replace('', '-') }}",
            "a-b-a-bX-a-b-c-",
        );
        check(
            "{{ [1, 'b'] | join('-') }}{{ ','.join(['a', 'b']) }}{{ 'a\nb' | indent(2) }}{{ 'a' | indent(1, true) }}",
            "1-ba,ba\n  b a",
        );
        check(
            "{{ '%05d %s' | format(42, 'x') }} {{ '{}-{x}'.format(1, x=2) }} {{ [1, 2, 3] | batch(2) | list }}",
            "00042 x 1-2 [[1, 2], [3]]",
        );
        check(
            "{% set ns = namespace(i=0, f=[]) %}{% for m in [1, 2] %}{% set ns.i = ns.i + m %}{% set ns.f = ns.f + [m] %}{% endfor %}{{ ns.i }}{{ ns.f }}",
            "3[1, 2]",
        );
        check(
            "{% macro r(m, n=2) %}<{{ m }}{{ n }}>{% endmacro %}{{ r(1) }}{{ r(1, n=5) }}{% macro w() %}[{{ caller() }}]{% endmacro %}{% call w() %}x{% endcall %}",
            "<12><15>[x]",
        );
        check("{% for n in [1, [2, [3]]] recursive %}{{ loop(n) if n is not number else n }}.{% endfor %}", "1.2.3...");
        check(
            "{% for k, v in {'a': 2, 'b': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ {'a': 1} }}{{ range(3) | list }}",
            "a2b1{\"a\": 1}[0, 1, 2]",
        );
        check(
            "{% filter upper %}a{{ 'b' }}{% endfilter %}{% set x | upper %}c{% endset %}{{ x }}{% set a, b = [1, 2] %}{{ b }}",
            "ABC2",
        );
    }

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(strftime("%d %b %Y %A %H:%M:%S %%%q", 951_827_696), "29 Feb 2000 Tuesday 12:34:56 %%q");
        assert_eq!(strftime("%F %B %y %a %e", 0), "1970-01-01 January 70 Thu  1");
        assert_eq!(strftime("%F", 1_763_769_600), "2025-11-22");
    }
}
