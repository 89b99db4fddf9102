//! Numbers as people and LaTeX write them, compared exactly.

use std::sync::LazyLock;

use regex::Regex;

/// An exact fraction in lowest terms, the denominator positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rational {
    num: i128,
    den: i128,
}

impl Rational {
    /// `num / den`, or `None` if `den` is zero.
    fn new(num: i128, den: i128) -> Option<Self> {
        let divisor = gcd(num.unsigned_abs(), den.unsigned_abs());
        let divisor = i128::try_from(divisor).ok().filter(|d| *d != 0 && den != 0)?;
        let sign = den.signum();
        Some(Rational { num: num / divisor * sign, den: den / divisor * sign })
    }

    fn over(self, divisor: i128) -> Option<Self> {
        Rational::new(self.num, self.den.checked_mul(divisor)?)
    }

    /// A decimal with optional thousands separators, `None` past 38 digits.
    fn from_decimal(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let fraction = fraction.trim_end_matches('0');
        let mut groups = whole.split(',');
        let first = groups.next().unwrap_or("");
        if whole.contains(',') && (first.is_empty() || first.len() > 3 || groups.any(|g| g.len() != 3)) {
            return None;
        }
        let digits = format!("0{}{fraction}", whole.replace(',', ""));
        let power = u32::try_from(fraction.len()).ok()?;
        Rational::new(digits.parse().ok()?, 10i128.checked_pow(power)?)
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What follows a number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unit {
    None,
    Percent,
    /// A unit of angle, length, area or volume, in one spelling.
    Known(&'static str),
    /// Another word, such as what was counted.
    Word,
}

/// A number with what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quantity {
    value: Rational,
    unit: Unit,
}

impl Quantity {
    /// The quantity that the whole of `text` is, cleaned by [`clean`].
    pub(super) fn parse(text: &str) -> Option<Self> {
        static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(
                r"(?x)^([+-]?)\s*(?:
                    \\frac\{\s*([0-9]+)\s*\}\{\s*([0-9]+)\s*\} | \\frac([0-9])([0-9])
                  | ([0-9][0-9,]*(?:\.[0-9]*)? | \.[0-9]+) (?:\s*/\s*([0-9]+))?
                )\s*(.*)$",
            )
            .expect("the pattern is constant")
        });
        // "x = 5" states 5.
        let stated = text.rsplit('=').next().unwrap_or(text).trim();
        let groups = NUMBER.captures(stated)?;
        let group = |i: usize| groups.get(i).map(|m| m.as_str());
        let (numerator, denominator) =
            (group(2).or(group(4)).or(group(6))?, group(3).or(group(5)).or(group(7)).unwrap_or("1"));
        let mut value = Rational::from_decimal(numerator)?.over(denominator.parse().ok()?)?;
        if group(1) == Some("-") {
            value.num = -value.num;
        }
        Some(Quantity { value, unit: unit(group(8).unwrap_or(""))? })
    }

    /// Equal values, a percentage's being its number or its hundredth, whatever the units.
    pub(super) fn has_value_of(&self, other: &Quantity) -> bool {
        let values = |quantity: &Quantity| {
            let hundredth = quantity.value.over(100).filter(|_| quantity.unit == Unit::Percent);
            [Some(quantity.value), hundredth]
        };
        values(self).into_iter().flatten().any(|value| values(other).contains(&Some(value)))
    }

    /// Equal values whose units do not contradict each other.
    ///
    /// A unit may be missing on one side. A percentage equals both its number and its
    /// hundredth: `10%` equals `10` (the unit left out) and `0.1` (the same value).
    pub(super) fn equals(&self, other: &Quantity) -> bool {
        match (&self.unit, &other.unit) {
            (Unit::Known(a), Unit::Known(b)) if a != b => false,
            (Unit::Percent, Unit::Known(_)) | (Unit::Known(_), Unit::Percent) => false,
            (Unit::Percent, Unit::None | Unit::Word) => {
                self.value == other.value || self.value.over(100) == Some(other.value)
            }
            (Unit::None | Unit::Word, Unit::Percent) => other.equals(self),
            _ => self.value == other.value,
        }
    }
}

/// Spellings of units, each with its one name. Lower case, without spaces, braces, backslashes.
const UNITS: [(&str, &str); 45] = [
    ("°", "°"),
    ("degrees", "°"),
    ("degree", "°"),
    ("deg", "°"),
    ("mm", "mm"),
    ("millimeters", "mm"),
    ("cm", "cm"),
    ("centimeters", "cm"),
    ("centimetres", "cm"),
    ("厘米", "cm"),
    ("dm", "dm"),
    ("m", "m"),
    ("meters", "m"),
    ("metres", "m"),
    ("meter", "m"),
    ("米", "m"),
    ("km", "km"),
    ("kilometers", "km"),
    ("in", "in"),
    ("inches", "in"),
    ("inch", "in"),
    ("ft", "ft"),
    ("feet", "ft"),
    ("mm^2", "mm2"),
    ("mm²", "mm2"),
    ("cm^2", "cm2"),
    ("cm2", "cm2"),
    ("cm²", "cm2"),
    ("sqcm", "cm2"),
    ("squarecm", "cm2"),
    ("squarecentimeters", "cm2"),
    ("平方厘米", "cm2"),
    ("m^2", "m2"),
    ("m2", "m2"),
    ("m²", "m2"),
    ("squaremeters", "m2"),
    ("平方米", "m2"),
    ("cm^3", "cm3"),
    ("cm³", "cm3"),
    ("m^3", "m3"),
    ("m³", "m3"),
    ("squareinches", "in2"),
    ("in^2", "in2"),
    ("squarefeet", "ft2"),
    ("ft^2", "ft2"),
];

/// The unit that `text` is, or `None` if it is something else (a second number, a symbol).
fn unit(text: &str) -> Option<Unit> {
    let spelled: String = text
        .chars()
        .filter(|c| !c.is_whitespace() && !"{}\\.".contains(*c))
        .flat_map(char::to_lowercase)
        .collect();
    if spelled.is_empty() {
        return Some(Unit::None);
    }
    if ["%", "percent"].contains(&spelled.as_str()) {
        return Some(Unit::Percent);
    }
    if let Some((_, name)) = UNITS.iter().find(|(spelling, _)| *spelling == spelled) {
        return Some(Unit::Known(name));
    }
    // One or two letters are algebra; a longer word is what was counted.
    (spelled.len() > 2 && spelled.bytes().all(|b| b.is_ascii_lowercase())).then_some(Unit::Word)
}

/// `text` without its trailing unit, where a number, root or pi stands before it.
pub(super) fn strip_unit(text: &str) -> &str {
    let longest = UNITS
        .iter()
        .filter_map(|(spelling, _)| text.strip_suffix(spelling))
        .filter(|rest| rest.ends_with(|c: char| c.is_ascii_digit() || "π)".contains(c)))
        .min_by_key(|rest| rest.len());
    longest.unwrap_or(text)
}

/// `text` without what only dresses it: LaTeX spacing and text commands, dollar signs,
/// emphasis, quotes, closing punctuation; with one spelling of minus, fraction and degree.
pub(super) fn clean(text: &str) -> String {
    const REPLACED: [(&str, &str); 26] = [
        ("\u{2212}", "-"),
        ("\\dfrac", "\\frac"),
        ("\\tfrac", "\\frac"),
        ("^{\\circ}", "°"),
        ("^\\circ", "°"),
        ("\\circ", "°"),
        ("\\degree", "°"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\textbf", ""),
        ("\\text", ""),
        ("\\mathrm", ""),
        ("\\mathbf", ""),
        ("\\,", ""),
        ("\\!", ""),
        ("\\;", ""),
        ("\\ ", " "),
        ("\\(", ""),
        ("\\)", ""),
        ("\\[", ""),
        ("\\]", ""),
        ("\\%", "%"),
        ("\\$", ""),
        ("$", ""),
        ("**", ""),
        ("`", ""),
    ];
    let mut cleaned = text.to_string();
    for (from, to) in REPLACED {
        if cleaned.contains(from) {
            cleaned = cleaned.replace(from, to);
        }
    }
    let quotes = |c: char| c.is_whitespace() || ['"', '\'', '*'].contains(&c);
    let closing = |c: char| quotes(c) || ['.', ',', ';', ':', '!'].contains(&c);
    let bare = cleaned.trim_start_matches(quotes).trim_end_matches(closing);
    // `\textbf{5}` has left its braces.
    bare.strip_prefix('{').and_then(|b| b.strip_suffix('}')).unwrap_or(bare).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Quantity> {
        Quantity::parse(&clean(text))
    }

    #[test]
    fn exact_values() {
        let cases = [
            ("3", 3, 1),
            ("-3.50", -7, 2),
            ("+.5", 1, 2),
            ("5.", 5, 1),
            ("1,234,567", 1_234_567, 1),
            ("1,000.25", 4001, 4),
            ("6/8", 3, 4),
            ("\\frac{6}{-8}", 0, 0),
            ("\\dfrac{6}{8}", 3, 4),
            ("\\frac12", 1, 2),
            ("-\\frac12", -1, 2),
            ("$x = 5$", 5, 1),
            ("\u{2212}4", -4, 1),
            ("**7**.", 7, 1),
            ("\\textbf{7}", 7, 1),
            ("007", 7, 1),
            ("0.000", 0, 1),
            ("45^\\circ", 45, 1),
            ("45^{\\circ}", 45, 1),
            ("5\\text{ cm}", 5, 1),
            ("24 cm^{2}", 24, 1),
        ];
        for (text, num, den) in cases {
            let wanted = (den != 0).then_some(Rational { num, den });
            assert_eq!(parse(text).map(|q| q.value), wanted, "{text}");
        }
    }

    #[test]
    fn what_is_no_number() {
        for text in [
            "", "A", "1,23", "1,2,3", ",1", "1/0", "0/0", "3 or 4", "9π", "8√3", "2x", "1e3", "5^(5^5)", "-",
            ".",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(&"9".repeat(60)), None);
        assert_eq!(parse(&format!("0.{}1", "0".repeat(60))), None);
    }

    #[test]
    fn units_may_be_missing_but_not_contradict() {
        let equal = |a: &str, b: &str| {
            let (a, b) = (parse(a).unwrap(), parse(b).unwrap());
            assert_eq!(a.equals(&b), b.equals(&a));
            a.equals(&b)
        };
        for (a, b) in [
            ("45°", "45"),
            ("45 degrees", "45^\\circ"),
            ("5 cm", "5"),
            ("24 cm²", "24 square cm"),
            ("3 items", "3"),
            ("3 items", "3 objects"),
            ("10%", "10"),
            ("10\\%", "0.1"),
            ("10 percent", "10%"),
        ] {
            assert!(equal(a, b), "{a} {b}");
        }
        for (a, b) in [("5 cm", "5 m"), ("24 cm", "24 cm^2"), ("10%", "0.10%"), ("10%", "10°"), ("10", "0.1")]
        {
            assert!(!equal(a, b), "{a} {b}");
        }
    }
}
