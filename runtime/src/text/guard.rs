//! Bounds on what a rendering may make. A template is data from outside: thirty doublings of a short text are gigabytes, long before
//! they cost noticeable fuel. Everything that makes a value comes through here (see [`super::rewrite`]), is bounded before it is
//! made where its size is a product, and charged to the rendering's budget.
//!
//! Lists made here are lists, not the engine's lazy iterables: chains of those are as deep as a loop is long, and are walked by
//! recursion.

use super::rewrite::names;
use minijinja::value::{Kwargs, Object, Rest, ValueKind, from_args};
use minijinja::{
    Environment, Error, ErrorKind, FormatStyle, Output, State, Value, escape_formatter, filters, functions,
};
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that one value may have when it is written out.
const VALUE_BYTES: u64 = 32 << 20;
/// Bytes that all values of a rendering may have together, those that are gone included.
const TOTAL_BYTES: u64 = 512 << 20;
/// Levels of lists and maps in each other.
const DEPTH: u32 = 64;
/// Elements that may be looked at to weigh values.
const VISITS: u64 = 200_000_000;
/// What a filter or method may make of a byte that it is given: a list of characters, an element a byte.
const GROWTH: u64 = 40;
/// Bytes of an element of a list, and of an entry of a map.
const ELEMENT: u64 = 24;
const ENTRY: u64 = 64;
/// The largest width or precision in a format.
const WIDTH: u64 = 10_000;

/// What is left to a rendering.
#[derive(Debug)]
struct Budget {
    bytes: AtomicU64,
    visits: AtomicU64,
}

impl Object for Budget {}

fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

fn too_large() -> Error {
    refused(format!("the template makes a value of more than {} MiB", VALUE_BYTES >> 20))
}

fn too_much() -> Error {
    refused(format!("the template makes more than {} MiB of values", TOTAL_BYTES >> 20))
}

impl Budget {
    fn of(state: &State<'_, '_>) -> Arc<Budget> {
        let full = || Budget { bytes: AtomicU64::new(TOTAL_BYTES), visits: AtomicU64::new(VISITS) };
        state.get_or_set_temp_object("template budget", full)
    }

    fn take(left: &AtomicU64, amount: u64) -> bool {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(amount)).is_ok()
    }

    /// Charges bytes that were, or are about to be, made.
    fn charge(&self, bytes: u64) -> Result<(), Error> {
        if Budget::take(&self.bytes, bytes) { Ok(()) } else { Err(too_much()) }
    }

    /// Refuses what would pass the bounds, before it is made.
    fn room(&self, bytes: u64) -> Result<(), Error> {
        if bytes <= self.bytes.load(Ordering::Relaxed) { Ok(()) } else { Err(too_much()) }
    }

    /// Charges a new value of `bytes`, before it is made.
    fn fresh(&self, bytes: u64) -> Result<(), Error> {
        if bytes > VALUE_BYTES { Err(too_large()) } else { self.charge(bytes) }
    }

    /// About the bytes of `value` written out, everything that it holds included, as often as it holds it.
    fn weight(&self, value: &Value) -> Result<u64, Error> {
        let mut sum = 0;
        self.weigh(value, 0, &mut sum)?;
        Ok(sum)
    }

    fn weigh(&self, value: &Value, depth: u32, sum: &mut u64) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(refused(format!("the template puts values into each other more than {DEPTH} deep")));
        }
        if !Budget::take(&self.visits, 1) {
            return Err(refused("the template runs too long"));
        }
        *sum += match value.kind() {
            ValueKind::String => value.as_str().map_or(0, |s| s.len() as u64) + ELEMENT,
            ValueKind::Bytes => value.as_bytes().map_or(0, |b| b.len() as u64) + ELEMENT,
            _ => ELEMENT,
        };
        if *sum > VALUE_BYTES {
            return Err(too_large());
        }
        let map = match value.kind() {
            ValueKind::Map => true,
            ValueKind::Seq | ValueKind::Iterable => false,
            _ => return Ok(()),
        };
        // What cannot be walked cannot be written out either.
        let Ok(items) = value.try_iter() else { return Ok(()) };
        for item in items {
            self.weigh(&item, depth + 1, sum)?;
            if map {
                self.weigh(&value.get_item(&item)?, depth + 1, sum)?;
            }
        }
        Ok(())
    }

    /// A list of what `value` iterates over.
    fn elements(&self, value: &Value) -> Result<Vec<Value>, Error> {
        let mut list = Vec::new();
        for item in value.try_iter()? {
            if list.len() as u64 * ELEMENT >= VALUE_BYTES {
                return Err(too_large());
            }
            list.push(item);
        }
        self.charge(list.len() as u64 * ELEMENT)?;
        Ok(list)
    }

    /// A value that was just made: bounded, charged, and a list if it was a lazy one.
    fn made(&self, value: Value) -> Result<Value, Error> {
        match value.kind() {
            ValueKind::String => self.fresh(value.as_str().map_or(0, |s| s.len() as u64))?,
            ValueKind::Bytes => self.fresh(value.as_bytes().map_or(0, |b| b.len() as u64))?,
            ValueKind::Iterable => return self.made(Value::from(self.elements(&value)?)),
            ValueKind::Seq => {
                self.weight(&value)?;
                let text = |v: Value| v.as_str().map_or(0, |s| s.len() as u64);
                self.charge(value.try_iter()?.map(|v| ELEMENT + text(v)).sum())?;
            }
            ValueKind::Map => {
                self.weight(&value)?;
                self.charge(value.len().unwrap_or(0) as u64 * ENTRY)?;
            }
            _ => self.charge(ELEMENT)?,
        }
        Ok(value)
    }

    /// Refuses arguments of which a filter or method could make too much.
    fn arguments<'v>(&self, values: impl IntoIterator<Item = &'v Value>) -> Result<(), Error> {
        let mut sum = 0u64;
        for value in values {
            sum = sum.saturating_add(self.weight(value)?);
        }
        self.room(sum.saturating_mul(GROWTH))
    }
}

/// Writes up to a number of bytes.
struct Bounded {
    text: String,
    limit: u64,
}

impl Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if (self.text.len() + s.len()) as u64 > self.limit {
            return Err(fmt::Error);
        }
        self.text.push_str(s);
        Ok(())
    }
}

/// Sets the guards and bounded forms of filters and functions whose result can be large for small arguments.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(format);
    environment.set_unknown_method_callback(method);
    environment.add_filter(names::ADD, add);
    environment.add_filter(names::MULTIPLY, multiply);
    environment.add_filter(names::CONCAT, concat);
    environment.add_filter(names::SLICE, slice);
    environment.add_filter(names::FILTER, filter);
    environment.add_filter(names::RESULT, |state: &State<'_, '_>, value: Value| Budget::of(state).made(value));
    environment.add_filter(names::FIELD, field);
    environment.add_function("namespace", namespace);
    // The engine's own have no bound on these products; here too, since `map` calls them past the guard.
    environment.add_filter(
        "replace",
        |state: &State<'_, '_>, text: &Value, from: &Value, to: &Value, count: Option<i64>| match (
            text.as_str(),
            from.as_str(),
            to.as_str(),
        ) {
            (Some(text), Some(from), Some(to)) => replace(state, text, from, to, count),
            _ => replace(state, &text.to_string(), &from.to_string(), &to.to_string(), count),
        },
    );
    environment.add_filter("join", |state: &State<'_, '_>, values: &Value, separator: Option<&str>, kwargs: Kwargs| {
        let attribute: Option<&str> = kwargs.get("attribute")?;
        let separator = match separator {
            Some(separator) => separator,
            None => kwargs.get::<Option<&str>>("d")?.unwrap_or_default(),
        };
        kwargs.assert_all_used()?;
        match attribute {
            Some(name) => {
                let args = [values.clone(), Value::from(Kwargs::from_iter([("attribute", Value::from(name))]))];
                join(state, &state.apply_filter("map", &args)?, separator)
            }
            None => join(state, values, separator),
        }
    });
    environment.add_filter("format", |state: &State<'_, '_>, text: &str, args: Rest<Value>| {
        formatted(state, FormatStyle::Printf, text, &args)
    });
    environment.add_filter("indent", indent);
    environment.add_filter("batch", |state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        parts(state, &value, count)?;
        filters::batch(state, value, count, fill)
    });
    environment.add_filter("slice", |state: &State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        parts(state, &value, count)?;
        filters::slice(state, value, count, fill)
    });
}

/// Writes a value out.
fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let budget = Budget::of(state);
    match value.as_str() {
        Some(text) => budget.fresh(text.len() as u64)?,
        // Escapes of what lists hold are the rest.
        None => budget.charge(budget.weight(value)?.saturating_mul(2))?,
    }
    escape_formatter(out, state, value)
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// What the engine makes of an operator between values that are neither texts nor lists.
fn arithmetic(state: &State<'_, '_>, expression: &'static str, a: &Value, b: &Value) -> Result<Value, Error> {
    state.env().compile_expression(expression)?.eval(minijinja::context! { a => a, b => b })
}

fn add(state: &State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    let budget = Budget::of(state);
    if let (Some(left), Some(right)) = (a.as_str(), b.as_str()) {
        budget.fresh(left.len() as u64 + right.len() as u64)?;
        return Ok(Value::from([left, right].concat()));
    }
    if is_list(&a) && is_list(&b) {
        let mut list = budget.elements(&a)?;
        list.extend(budget.elements(&b)?);
        let list = Value::from(list);
        budget.weight(&list)?;
        return Ok(list);
    }
    if let (true, true, Some(x), Some(y)) = (a.is_integer(), b.is_integer(), a.as_i64(), b.as_i64())
        && let Some(sum) = x.checked_add(y)
    {
        return Ok(Value::from(sum));
    }
    arithmetic(state, "a + b", &a, &b)
}

fn multiply(state: &State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    let budget = Budget::of(state);
    let sequence = |v: &Value| v.as_str().is_some() || is_list(v);
    let (what, times) = match (sequence(&a), sequence(&b)) {
        (true, false) => (&a, &b),
        (false, true) => (&b, &a),
        _ => return arithmetic(state, "a * b", &a, &b),
    };
    let times = match times.as_i64().filter(|_| times.is_integer()) {
        // As in Python, a negative number of copies is none.
        Some(n) => n.max(0) as u64,
        None => return Err(refused(format!("a {} cannot be multiplied with a {}", what.kind(), times.kind()))),
    };
    if let Some(text) = what.as_str() {
        budget.fresh((text.len() as u64).saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times as usize)));
    }
    let list = budget.elements(what)?;
    budget.fresh((list.len() as u64 * ELEMENT).saturating_mul(times))?;
    let copies = list.len().saturating_mul(times as usize);
    let list: Vec<Value> = list.iter().cycle().take(copies).cloned().collect();
    let list = Value::from(list);
    budget.weight(&list)?;
    Ok(list)
}

fn concat(state: &State<'_, '_>, a: Value, b: Value) -> Result<Value, Error> {
    let budget = Budget::of(state);
    // Weighed first: writing out recurses.
    budget.weight(&a)?;
    budget.weight(&b)?;
    let mut out = Bounded { text: String::new(), limit: VALUE_BYTES };
    write!(out, "{a}{b}").map_err(|_| too_large())?;
    budget.charge(out.text.len() as u64)?;
    Ok(Value::from(out.text))
}

/// Indices of a slice, as Python's `slice.indices` gives them for `len` elements.
fn indices(len: usize, start: &Value, stop: &Value, step: &Value) -> Result<Vec<usize>, Error> {
    let number = |v: &Value| match v.is_none() || v.is_undefined() {
        true => Ok(None),
        false => i64::try_from(v.clone()).map(|n| Some(i128::from(n))),
    };
    let step = number(step)?.unwrap_or(1);
    if step == 0 {
        return Err(refused("cannot slice by step size of 0"));
    }
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |n: i128| (if n < 0 { n + len } else { n }).clamp(low, high);
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let (mut at, stop) = (number(start)?.map_or(first, clamp), number(stop)?.map_or(last, clamp));
    let mut list = Vec::new();
    while if step > 0 { at < stop } else { at > stop } {
        list.push(at as usize);
        at += step;
    }
    Ok(list)
}

fn slice(state: &State<'_, '_>, value: Value, start: Value, stop: Value, step: Value) -> Result<Value, Error> {
    let budget = Budget::of(state);
    budget.arguments([&value])?;
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        let picked: String = indices(chars.len(), &start, &stop, &step)?.iter().map(|i| chars[*i]).collect();
        budget.fresh(picked.len() as u64)?;
        return Ok(Value::from(picked));
    }
    if is_list(&value) {
        let list = budget.elements(&value)?;
        let picked: Vec<Value> = indices(list.len(), &start, &stop, &step)?.iter().map(|i| list[*i].clone()).collect();
        return Ok(Value::from(picked));
    }
    if value.is_none() || value.is_undefined() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    Err(refused(format!("value of type {} cannot be sliced", value.kind())))
}

fn filter(state: &State<'_, '_>, value: Value, name: &str, args: Rest<Value>) -> Result<Value, Error> {
    let budget = Budget::of(state);
    let all: Vec<Value> = std::iter::once(value).chain(args.0).collect();
    budget.arguments(&all)?;
    budget.made(state.apply_filter(name, &all)?)
}

/// What is kept in a namespace is data: namespaces and macros in namespaces make chains as long as a loop, which are dropped by
/// recursion, and rings.
fn plain(value: &Value) -> bool {
    match value.as_object() {
        None => true,
        Some(_) if is_list(value) => value.try_iter().is_ok_and(|mut items| items.all(|v| plain(&v))),
        Some(object) if value.kind() == ValueKind::Map => {
            !object.type_name().contains("Namespace")
                && object.try_iter_pairs().is_none_or(|mut pairs| pairs.all(|(_, v)| plain(&v)))
        }
        Some(_) => false,
    }
}

fn field(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    Budget::of(state).weight(&value)?;
    if plain(&value) { Ok(value) } else { Err(refused("a namespace keeps data, no macros and no namespaces")) }
}

fn namespace(state: &State<'_, '_>, defaults: Option<Value>) -> Result<Value, Error> {
    functions::namespace(defaults.map(|d| field(state, d)).transpose()?)
}

/// Python's methods, which the engine has not.
fn method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    Budget::of(state).arguments(std::iter::once(value).chain(args))?;
    let text = |at: usize| args.get(at).and_then(Value::as_str);
    match (value.as_str(), name) {
        (Some(s), "replace") if args.len() <= 3 && text(0).is_some() && text(1).is_some() => {
            let count = args.get(2).map(|n| i64::try_from(n.clone())).transpose()?;
            replace(state, s, text(0).unwrap_or_default(), text(1).unwrap_or_default(), count)
        }
        (Some(s), "join") if args.len() == 1 => join(state, &args[0], s),
        (Some(s), "format") => formatted(state, FormatStyle::StrFormat, s, args),
        // Between all characters, and at both ends.
        (Some(s), "count") if text(0) == Some("") => Ok(Value::from(s.chars().count() + 1)),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn replace(state: &State<'_, '_>, text: &str, from: &str, to: &str, count: Option<i64>) -> Result<Value, Error> {
    let budget = Budget::of(state);
    let limit = count.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let found = text.matches(from).take(limit).count() as u64;
    let grown = found.saturating_mul(to.len() as u64).saturating_add(text.len() as u64);
    budget.fresh(grown.saturating_sub(found.saturating_mul(from.len() as u64)))?;
    Ok(Value::from(text.replacen(from, to, limit)))
}

fn join(state: &State<'_, '_>, values: &Value, separator: &str) -> Result<Value, Error> {
    let budget = Budget::of(state);
    budget.weight(values)?;
    let mut out = Bounded { text: String::new(), limit: VALUE_BYTES };
    for (index, value) in values.try_iter()?.enumerate() {
        if index > 0 {
            out.write_str(separator).map_err(|_| too_large())?;
        }
        write!(out, "{value}").map_err(|_| too_large())?;
    }
    budget.charge(out.text.len() as u64)?;
    Ok(Value::from(out.text))
}

fn formatted(state: &State<'_, '_>, style: FormatStyle, text: &str, args: &[Value]) -> Result<Value, Error> {
    let budget = Budget::of(state);
    let mut largest = 0;
    for arg in args {
        largest = budget.weight(arg)?.max(largest);
    }
    // Each field may name any argument, and pad it to the width that stands in it or that an argument gives.
    let fields = text.bytes().filter(|b| matches!(b, b'%' | b'{')).count() as u64;
    let widths = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut width = widths.map(|digits| digits.parse::<u64>().unwrap_or(u64::MAX)).max().unwrap_or(0);
    if text.contains('*') || text.contains(":{") {
        width = width.max(args.iter().filter_map(Value::as_i64).map(i64::unsigned_abs).max().unwrap_or(0));
    }
    if width > WIDTH {
        return Err(refused(format!("a width of {width} in a format; {WIDTH} is the most")));
    }
    let grown = fields.saturating_mul(largest.saturating_mul(2).saturating_add(2 * width + 400));
    budget.room(grown.saturating_add(text.len() as u64))?;
    let made = minijinja::format_filter(style, text, args)?;
    budget.fresh(made.len() as u64)?;
    Ok(Value::from(made))
}

fn indent(state: &State<'_, '_>, text: &str, args: Rest<Value>) -> Result<Value, Error> {
    let budget = Budget::of(state);
    let (width, first, blank, kwargs): (Option<u64>, Option<bool>, Option<bool>, Kwargs) = from_args(&args)?;
    let width = width.or(kwargs.get("width")?).unwrap_or(4);
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let lines = text.matches('\n').count() as u64 + 1;
    budget.room(lines.saturating_mul(width).saturating_add(text.len() as u64))?;
    let args = [Value::from(text), Value::from(width), Value::from(first), Value::from(blank)];
    let plain = Environment::new();
    let made = plain.empty_state().apply_filter("indent", &args)?;
    budget.fresh(made.as_str().map_or(0, |s| s.len() as u64))?;
    Ok(made)
}

/// Refuses numbers of parts, or of elements a part, that are themselves too many.
fn parts(state: &State<'_, '_>, value: &Value, count: usize) -> Result<(), Error> {
    let budget = Budget::of(state);
    let weight = budget.weight(value)?;
    budget.room((count as u64).saturating_mul(2 * ELEMENT).saturating_add(weight))
}
