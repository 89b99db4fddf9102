//! The Jinja environment that transformers renders chat templates in, for minijinja.
//!
//! Differences from Jinja2 that remain: `'%s' % x` is not implemented (`'{}'.format(x)` and `x ~ y` are), and
//! `strftime_now` tells UTC, not local time.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;
use regex::Regex;

use crate::processor::chat::MAX_RENDERED_BYTES;
use crate::processor::chat::bounded::{longest_text, too_large};

/// What one rendering may spend, in the engine's measure (a step, or 64 bytes of text made): a conversation of 2000 turns
/// fits, a loop spends it in 0.1 s, and it bounds the memory of strings to 32 MB.
const FUEL: u64 = 500_000;
/// Largest `indent` of `tojson`.
const MAX_INDENT: usize = 64;
/// Deepest nesting that `tojson` writes.
const MAX_JSON_DEPTH: usize = 128;

/// An environment for templates that [`without_generation_tags`] has gone over: Python's methods, `tojson`,
/// `raise_exception`, `strftime_now`, no escaping, no other templates.
pub(super) fn transformers_environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(python_method);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| strftime(format, SystemTime::now()));
    // Jinja2's test asks for a length and indexing, which strings and mappings have too.
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Bytes)
    });
    environment
}

/// `{% generation %}` marks the assistant's tokens for a mask that is not needed here. Its block becomes a `with` block,
/// which has the same scope and whitespace rules and prints what is inside.
pub(super) fn without_generation_tags(source: &str) -> crate::error::Result<String> {
    let tag = |pattern: &str| {
        Regex::new(pattern)
            .map_err(|error| crate::error::Error::Internal(format!("generation tags: {error}")))
    };
    let opened = tag(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")?.replace_all(source, "{%$1 with $2%}");
    Ok(tag(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")?
        .replace_all(&opened, "{%$1 endwith $2%}")
        .into_owned())
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_string()))
}

/// Python's methods of strings, lists and dicts, with the length of their results bounded: the implementation makes them
/// before any budget is asked.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let mut longest = 0;
        for arg in args {
            longest = longest.max(longest_text(arg)?);
        }
        let parts = match method {
            "format" => {
                check_format_widths(text)?;
                text.matches('{').count()
            }
            "replace" => {
                let old = args.first().and_then(|old| old.as_str()).unwrap_or_default();
                text.len() / old.len().max(1) + 1
            }
            "join" => {
                longest = text.len();
                args.first().and_then(|items| items.len()).unwrap_or_default()
            }
            _ => 0,
        };
        if parts.saturating_mul(longest) > MAX_RENDERED_BYTES {
            return Err(too_large(format!("the result of str.{method} is too large")));
        }
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// Refuses replacement fields with fields inside (computed widths) and numbers that add up to more than a rendering may
/// hold.
fn check_format_widths(format: &str) -> Result<(), Error> {
    let refuse = || Error::new(ErrorKind::InvalidOperation, "width too large or computed in str.format");
    let mut in_field = false;
    let (mut number, mut total) = (0usize, 0usize);
    let mut bytes = format.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' if in_field => return Err(refuse()),
            b'{' if bytes.peek() == Some(&b'{') => {
                bytes.next();
            }
            b'{' => in_field = true,
            b'}' => in_field = false,
            _ => {}
        }
        if in_field && byte.is_ascii_digit() {
            number = number.saturating_mul(10).saturating_add(usize::from(byte - b'0'));
        } else {
            total = total.saturating_add(std::mem::take(&mut number));
        }
    }
    if total > MAX_RENDERED_BYTES { Err(refuse()) } else { Ok(()) }
}

/// `json.dumps` with transformers' defaults: no HTML escaping, `ensure_ascii=False`, `", "` and `": "`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: indent above {MAX_INDENT}")));
    }
    let (item_separator, key_separator) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be a pair")),
        // Python ends lines without a space.
        None => (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()),
    };
    let mut writer = JsonWriter {
        text: String::new(),
        indent,
        item_separator,
        key_separator,
        ensure_ascii: ensure_ascii.unwrap_or(false),
        sort_keys: sort_keys.unwrap_or(false),
    };
    writer.value(value, 0)?;
    Ok(writer.text)
}

struct JsonWriter {
    text: String,
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonWriter {
    /// Writes one value at nesting `depth`, checking the size as it goes: shared sub-values can make a small template
    /// value exponentially long.
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if self.text.len() > MAX_RENDERED_BYTES || depth > MAX_JSON_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: value too large or too deep"));
        }
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => self.text.push_str(&value.to_string()),
            ValueKind::Number => self.text.push_str(&python_float(f64::try_from(value.clone())?)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.text.push('[');
                let mut empty = true;
                for item in value.try_iter()? {
                    self.next_item(&mut empty, depth);
                    self.value(&item, depth + 1)?;
                }
                self.end(empty, depth, ']');
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    let name = key.as_str().map_or_else(|| key.to_string(), str::to_string);
                    entries.push((name, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.text.push('{');
                let mut empty = true;
                for (name, item) in entries {
                    self.next_item(&mut empty, depth);
                    self.string(&name)?;
                    self.text.push_str(&self.key_separator);
                    self.value(&item, depth + 1)?;
                }
                self.end(empty, depth, '}');
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {kind} is not JSON")));
            }
        }
        Ok(())
    }

    fn next_item(&mut self, empty: &mut bool, depth: usize) {
        if !std::mem::replace(empty, false) {
            self.text.push_str(&self.item_separator);
        }
        self.new_line(depth + 1);
    }

    fn end(&mut self, empty: bool, depth: usize, bracket: char) {
        if !empty {
            self.new_line(depth);
        }
        self.text.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        let quoted = serde_json::to_string(text)
            .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
        if !self.ensure_ascii {
            self.text.push_str(&quoted);
            return Ok(());
        }
        for character in quoted.chars() {
            if character.is_ascii() {
                self.text.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(self.text, "\\u{unit:04x}");
                }
            }
        }
        Ok(())
    }
}

/// A float as Python's `repr` writes it: shortest digits, exponents signed and at least two digits long.
fn python_float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let shortest = format!("{number:?}");
    match shortest.split_once('e') {
        None => shortest,
        Some((digits, exponent)) => {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

/// C's `strftime` in UTC for the conversions that chat templates use: `%Y %m %d %H %M %S %B %b %A %a %j %y %I %p %%`, and
/// `%-d`-style ones without padding.
fn strftime(format: &str, time: SystemTime) -> Result<String, Error> {
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
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The calendar by counting from 1970: a few dozen steps.
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let (mut year, mut day_of_year) = (1970, days);
    while day_of_year >= 365 + u64::from(leap(year)) {
        day_of_year -= 365 + u64::from(leap(year));
        year += 1;
    }
    let (mut month, mut day) = (0usize, day_of_year);
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while month < 11 && day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let hour = second / 3600;
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut conversion = characters.next();
        let padded = conversion != Some('-');
        if !padded {
            conversion = characters.next();
        }
        let (number, width) = match conversion {
            Some('%') => {
                text.push('%');
                continue;
            }
            Some(name @ ('B' | 'b')) => {
                let full = MONTHS[month];
                text.push_str(if name == 'B' { full } else { &full[..3] });
                continue;
            }
            Some(name @ ('A' | 'a')) => {
                let full = DAYS[(days % 7) as usize];
                text.push_str(if name == 'A' { full } else { &full[..3] });
                continue;
            }
            Some('p') => {
                text.push_str(if hour < 12 { "AM" } else { "PM" });
                continue;
            }
            Some('Y') => (year, 4),
            Some('y') => (year % 100, 2),
            Some('m') => (month as u64 + 1, 2),
            Some('d') => (day + 1, 2),
            Some('H') => (hour, 2),
            Some('I') => ((hour + 11) % 12 + 1, 2),
            Some('M') => (second / 60 % 60, 2),
            Some('S') => (second % 60, 2),
            Some('j') => (day_of_year + 1, 3),
            other => {
                let shown = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: %{shown} is not implemented"),
                ));
            }
        };
        text.push_str(&if padded { format!("{number:0width$}") } else { number.to_string() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn strftime_knows_the_calendar() {
        // `date -u -d @951827696`: Tue Feb 29 12:34:56 UTC 2000; day 60 of the year.
        let leap_day = UNIX_EPOCH + Duration::from_secs(951_827_696);
        assert_eq!(strftime("%d %b %Y", leap_day).unwrap(), "29 Feb 2000");
        assert_eq!(
            strftime("%A %a %B %j %y %H:%M:%S %I%p", leap_day).unwrap(),
            "Tuesday Tue February 060 00 12:34:56 12PM"
        );
        // 2026-11-01 00:00:00 UTC, a Sunday.
        let november = UNIX_EPOCH + Duration::from_secs(1_793_491_200);
        assert_eq!(strftime("%a %Y-%m-%d %-d %-I %p", november).unwrap(), "Sun 2026-11-01 1 12 AM");
        assert!(strftime("%Q", november).unwrap_err().to_string().contains("%Q"));
    }

    #[test]
    fn floats_are_written_as_python_does() {
        let written = [1e16, 1.5e-5, 0.0001, -2.0, 1e100, f64::NAN].map(python_float);
        assert_eq!(written, ["1e+16", "1.5e-05", "0.0001", "-2.0", "1e+100", "NaN"]);
    }
}
