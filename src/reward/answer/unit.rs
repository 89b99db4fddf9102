//! Units of measurement after a number.

use super::token::{Lexeme, Token, is_cjk, joins};

/// What follows a number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Unit {
    #[default]
    None,
    Percent,
    /// Base units with exponents, in alphabetical order: `kg/m^3` is `kg`, 1 and `m`, -3.
    Known(Vec<(&'static str, i32)>),
    /// Another word, such as what was counted.
    Word,
}

impl Unit {
    /// Whether two numbers with these units can be the same: a unit may be missing, or be a word, on one side.
    pub(super) fn agrees_with(&self, other: &Unit) -> bool {
        match (self, other) {
            (Unit::Known(a), Unit::Known(b)) => a == b,
            (Unit::Percent, Unit::Known(_)) | (Unit::Known(_), Unit::Percent) => false,
            _ => true,
        }
    }
}

impl std::fmt::Display for Unit {
    /// With the space that stands before it: ` cm^2`, `°`, `%`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unit::None | Unit::Word => Ok(()),
            Unit::Percent => write!(f, "%"),
            Unit::Known(parts) if parts.as_slice() == [("°", 1)] => write!(f, "°"),
            Unit::Known(parts) => {
                let (above, below): (Vec<_>, Vec<_>) = parts.iter().partition(|(_, exponent)| *exponent > 0);
                for (i, (base, exponent)) in above.iter().chain(&below).enumerate() {
                    let sign = if *exponent < 0 { '/' } else { '*' };
                    write!(f, "{}{base}", if i == 0 { ' ' } else { sign })?;
                    if exponent.abs() != 1 {
                        write!(f, "^{}", exponent.abs())?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// Spellings of base units with their one name. `(name, 1)` unless another power is part of the word.
const BASES: &[(&str, &[&str])] = &[
    ("°", &["degree", "degrees", "deg", "度"]),
    ("rad", &["rad", "radian", "radians", "弧度"]),
    ("mm", &["mm", "millimeter", "millimeters", "millimetre", "millimetres", "毫米"]),
    ("cm", &["cm", "centimeter", "centimeters", "centimetre", "centimetres", "厘米"]),
    ("dm", &["dm", "decimeter", "decimeters", "decimetre", "decimetres", "分米"]),
    ("m", &["m", "meter", "meters", "metre", "metres", "米"]),
    ("km", &["km", "kilometer", "kilometers", "kilometre", "kilometres", "千米", "公里"]),
    ("in", &["in", "inch", "inches"]),
    ("ft", &["ft", "foot", "feet"]),
    ("yd", &["yd", "yard", "yards"]),
    ("mi", &["mi", "mile", "miles"]),
    ("nmi", &["nmi", "海里"]),
    ("mg", &["mg", "milligram", "milligrams"]),
    ("g", &["g", "gram", "grams", "克"]),
    ("kg", &["kg", "kilogram", "kilograms", "千克", "公斤"]),
    ("t", &["ton", "tons", "tonne", "tonnes", "吨"]),
    ("lb", &["lb", "lbs", "pound", "pounds"]),
    ("oz", &["oz", "ounce", "ounces"]),
    ("ms", &["ms", "millisecond", "milliseconds"]),
    ("s", &["s", "sec", "second", "seconds", "秒"]),
    ("min", &["min", "mins", "minute", "minutes", "分钟"]),
    ("h", &["h", "hr", "hrs", "hour", "hours", "小时"]),
    ("day", &["day", "days", "天"]),
    ("week", &["week", "weeks"]),
    ("month", &["month", "months"]),
    ("year", &["year", "years", "yr", "yrs", "年"]),
    ("mL", &["ml", "mL", "milliliter", "milliliters", "millilitre", "millilitres", "毫升"]),
    ("L", &["L", "l", "liter", "liters", "litre", "litres", "升"]),
    ("gal", &["gal", "gallon", "gallons"]),
    ("°C", &["℃", "celsius"]),
    ("°F", &["℉", "fahrenheit"]),
    ("K", &["K", "kelvin"]),
    ("N", &["N", "newton", "newtons", "牛"]),
    ("J", &["J", "joule", "joules"]),
    ("W", &["W", "watt", "watts"]),
    ("V", &["V", "volt", "volts"]),
    ("A", &["A", "ampere", "amperes", "amp", "amps"]),
    ("Ω", &["Ω", "ohm", "ohms"]),
    ("Hz", &["Hz", "hertz"]),
    ("Pa", &["Pa", "pascal", "pascals"]),
    ("$", &["dollar", "dollars", "usd", "USD"]),
    ("€", &["euro", "euros", "EUR"]),
    ("£", &["GBP"]),
    ("¥", &["yuan", "元"]),
    ("cent", &["cent", "cents"]),
];

/// Words that name a power or a quotient of base units.
const COMPOUNDS: &[(&str, &[(&str, i32)])] = &[
    ("mph", &[("h", -1), ("mi", 1)]),
    ("kmh", &[("h", -1), ("km", 1)]),
    ("kph", &[("h", -1), ("km", 1)]),
    ("sqcm", &[("cm", 2)]),
    ("sqm", &[("m", 2)]),
    ("sqft", &[("ft", 2)]),
    ("cc", &[("cm", 3)]),
    ("公顷", &[("公顷", 1)]),
];

/// Words that are no unit: they change what a number says, or join two.
const NEVER: [&str; 12] =
    ["and", "or", "not", "no", "less", "more", "than", "plus", "minus", "times", "to", "mod"];

/// The unit of the currency that `sign` is.
pub(super) fn currency(sign: char) -> Unit {
    match BASES.iter().find(|(name, _)| name.chars().eq([sign])) {
        Some((name, _)) => Unit::Known(vec![(name, 1)]),
        None => Unit::Word,
    }
}

/// The most lexemes that a unit is made of.
const MAX_LEXEMES: usize = 16;

/// The unit that `lexemes` begin with and the number of lexemes that it takes. `after_number`: a plain number
/// stands before, so that an unknown word is what was counted.
pub(super) fn unit(lexemes: &[Lexeme], after_number: bool) -> Option<(Unit, usize)> {
    let known = known(lexemes);
    if known.is_some() {
        return known;
    }
    // `\text{items}` has its word in braces.
    let (token, length) = match lexemes {
        [Lexeme { token: Token::Open('{'), .. }, word, Lexeme { token: Token::Close('}'), .. }, ..] => {
            (&word.token, 3)
        }
        [word, ..] => (&word.token, 1),
        [] => return None,
    };
    match token {
        Token::Percent => Some((Unit::Percent, length)),
        Token::Word(word) if is_percent(word) => Some((Unit::Percent, length)),
        Token::Word(word) if word.chars().all(is_cjk) && !joins(word) => Some((Unit::Word, length)),
        Token::Word(word) if after_number && is_counted(word) => Some((Unit::Word, length)),
        _ => None,
    }
}

/// One or two letters are algebra; a longer word is what was counted.
fn is_counted(word: &str) -> bool {
    word.len() > 2 && word.bytes().all(|b| b.is_ascii_lowercase()) && !NEVER.contains(&word)
}

fn is_percent(word: &str) -> bool {
    ["percent", "percentage", "pct"].contains(&word.to_lowercase().as_str())
}

fn known(lexemes: &[Lexeme]) -> Option<(Unit, usize)> {
    let mut parts: Vec<(&'static str, i32)> = Vec::new();
    let (mut at, mut sign, mut prefix) = (0, 1, 1);
    // The lexemes up to the last base unit: what follows may be something else.
    let mut taken = 0;
    while at < lexemes.len().min(MAX_LEXEMES) {
        let lexeme = &lexemes[at];
        let start = parts.len();
        match &lexeme.token {
            Token::Open('{') | Token::Close('}') => {}
            Token::Over if !parts.is_empty() => sign = -1,
            Token::Word(word) if word == "per" && !parts.is_empty() => sign = -1,
            Token::Times if !parts.is_empty() => {}
            Token::Word(word) => match word.to_lowercase().as_str() {
                "square" | "sq" => prefix = 2,
                "cubic" | "cu" => prefix = 3,
                // The noun behind "square" alone.
                "units" | "unit" if parts.is_empty() => return Some((Unit::Word, at + 1)),
                _ => {
                    let bare = word.strip_prefix("平方").map(|b| (b, 2));
                    let (bare, power) =
                        bare.or(word.strip_prefix("立方").map(|b| (b, 3))).unwrap_or((word, prefix));
                    let Some(found) = base(bare, at == 0 && !lexeme.spaced) else { break };
                    parts.extend(found.iter().map(|&(name, exponent)| (name, exponent * power * sign)));
                    prefix = 1;
                }
            },
            Token::Degree => match lexemes.get(at + 1).map(|next| &next.token) {
                Some(Token::Word(scale)) if scale == "C" || scale == "F" => {
                    parts.push((if scale == "C" { "°C" } else { "°F" }, sign));
                    at += 1;
                }
                _ => parts.push(("°", sign)),
            },
            Token::Symbol(symbol) if symbol == "℃" => parts.push(("°C", sign)),
            Token::Symbol(symbol) if symbol == "℉" => parts.push(("°F", sign)),
            _ => break,
        }
        at += 1;
        if parts.len() > start {
            if let Some((exponent, length)) = exponent(&lexemes[at..]) {
                parts[start..].iter_mut().for_each(|part| part.1 *= exponent);
                at += length;
            }
            taken = at;
        }
    }
    // The closing brace of \text{...}, and those of ^{2}.
    while taken > 0
        && matches!(lexemes.get(taken), Some(Lexeme { token: Token::Close('}'), .. }))
        && opened(&lexemes[..taken]) > 0
    {
        taken += 1;
        if let Some((exponent, length)) = exponent(&lexemes[taken..])
            && let Some(last) = parts.last_mut()
            && last.1.abs() == 1
        {
            last.1 *= exponent;
            taken += length;
        }
    }
    if taken == 0 || opened(&lexemes[..taken]) != 0 {
        return None;
    }
    parts.sort_unstable();
    Some((Unit::Known(parts), taken))
}

/// Braces that are still open.
fn opened(lexemes: &[Lexeme]) -> i32 {
    let step = |lexeme: &Lexeme| match lexeme.token {
        Token::Open('{') => 1,
        Token::Close('}') => -1,
        _ => 0,
    };
    lexemes.iter().map(step).sum()
}

/// The base unit of a word; `glued`: it touches the number, so that a single letter is algebra (metres excepted).
fn base(word: &str, glued: bool) -> Option<Vec<(&'static str, i32)>> {
    if glued && word.len() == 1 && word != "m" {
        return None;
    }
    if let Some((_, parts)) = COMPOUNDS.iter().find(|(spelling, _)| *spelling == word) {
        return Some(parts.to_vec());
    }
    let lower = word.to_lowercase();
    let found = |spelling: &str| BASES.iter().find(|(_, spellings)| spellings.contains(&spelling));
    // Capitals tell short units apart, not words.
    let (name, _) = found(word).or_else(|| if word.len() > 2 { found(&lower) } else { None })?;
    Some(vec![(name, 1)])
}

/// `^2`, `^{2}`, `²` or a digit that touches the unit.
fn exponent(lexemes: &[Lexeme]) -> Option<(i32, usize)> {
    let small = |lexeme: &Lexeme| match &lexeme.token {
        Token::Number(number) => number.value.to_i64().filter(|v| (1..=4).contains(v)).map(|v| v as i32),
        _ => None,
    };
    match lexemes {
        [
            Lexeme { token: Token::Caret, .. },
            Lexeme { token: Token::Open('{'), .. },
            n,
            Lexeme { token: Token::Close('}'), .. },
            ..,
        ] => small(n).map(|n| (n, 4)),
        [
            Lexeme { token: Token::Caret, .. },
            Lexeme { token: Token::Open('{'), .. },
            Lexeme { token: Token::Minus, .. },
            n,
            Lexeme { token: Token::Close('}'), .. },
            ..,
        ] => small(n).map(|n| (-n, 5)),
        [Lexeme { token: Token::Caret, .. }, Lexeme { token: Token::Minus, .. }, n, ..] => {
            small(n).map(|n| (-n, 3))
        }
        [Lexeme { token: Token::Caret, .. }, n, ..] => small(n).map(|n| (n, 2)),
        [n, ..] if !n.spaced => small(n).map(|n| (n, 1)),
        _ => None,
    }
}
