//! Cutting an answer into lexemes.

use super::rational::Rational;
use super::token::{Lexeme, Number, Relation, Token, is_cjk};

/// Commands that only dress what follows.
const DRESSING: [&str; 34] = [
    "left",
    "right",
    "big",
    "Big",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "displaystyle",
    "textstyle",
    "limits",
    "quad",
    "qquad",
    "mathrm",
    "mathbf",
    "mathit",
    "mathsf",
    "mathbb",
    "operatorname",
    "bf",
    "rm",
    "it",
    "boxed",
    "fbox",
    "boldsymbol",
    "bm",
    "middle",
    "bigg",
    "Bigg",
    "biggl",
    "biggr",
    "Biggl",
    "Biggr",
    "mathop",
];

/// Commands whose group is words.
const TEXTS: [&str; 8] = ["text", "textbf", "textit", "textrm", "textnormal", "mbox", "hbox", "emph"];

/// Greek letters by their commands; `pi` is a number and stands elsewhere.
const GREEK: [(&str, char); 22] = [
    ("alpha", 'α'),
    ("beta", 'β'),
    ("gamma", 'γ'),
    ("delta", 'δ'),
    ("epsilon", 'ε'),
    ("varepsilon", 'ε'),
    ("zeta", 'ζ'),
    ("eta", 'η'),
    ("theta", 'θ'),
    ("lambda", 'λ'),
    ("mu", 'μ'),
    ("nu", 'ν'),
    ("xi", 'ξ'),
    ("rho", 'ρ'),
    ("sigma", 'σ'),
    ("tau", 'τ'),
    ("phi", 'φ'),
    ("varphi", 'φ'),
    ("chi", 'χ'),
    ("psi", 'ψ'),
    ("omega", 'ω'),
    ("Omega", 'Ω'),
];

/// The lexemes of `text`; linear in its length. A number too long to compute with is a [`Token::Symbol`].
pub(super) fn lexemes(text: &str) -> Vec<Lexeme> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { chars: &chars, at: 0, spaced: false, brackets: 0, found: Vec::new() };
    while lexer.at < chars.len() {
        lexer.step();
    }
    lexer.found
}

struct Lexer<'a> {
    chars: &'a [char],
    at: usize,
    spaced: bool,
    /// Brackets of tuples and sets that are open: in them a comma separates.
    brackets: usize,
    found: Vec<Lexeme>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn push(&mut self, token: Token, length: usize) {
        match token {
            Token::Open(c) if c != '{' => self.brackets += 1,
            Token::Close(c) if c != '}' => self.brackets = self.brackets.saturating_sub(1),
            _ => {}
        }
        self.found.push(Lexeme { token, spaced: self.spaced });
        self.spaced = false;
        self.at += length;
    }

    fn skip(&mut self, length: usize) {
        self.at += length;
    }

    fn step(&mut self) {
        let c = self.chars[self.at];
        if c.is_whitespace() || ['~', '\u{200b}', '\u{feff}'].contains(&c) {
            self.spaced = true;
            return self.skip(1);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|d| d.is_ascii_digit())) {
            return self.number();
        }
        if superscript(c).is_some() {
            return self.superscripts();
        }
        if let Some((num, den)) = vulgar(c) {
            let half = Rational::new(num.into(), den.into());
            return self.push(half.map_or(Token::Symbol(c.into()), Token::Vulgar), 1);
        }
        if let Some(token) = sign(c) {
            return self.push(token, 1);
        }
        match c {
            '\\' => self.command(),
            '$' | '`' => self.skip(1),
            '*' if self.peek(1) == Some('*') => self.push(Token::Caret, 2),
            '<' | '>' | '!' if self.peek(1) == Some('=') => {
                let relation = match c {
                    '<' => Relation::LessEqual,
                    '>' => Relation::GreaterEqual,
                    _ => Relation::NotEqual,
                };
                self.push(Token::Relation(relation), 2);
            }
            '!' => self.push(Token::Bang, 1),
            '<' => self.push(Token::Relation(Relation::Less), 1),
            '>' => self.push(Token::Relation(Relation::Greater), 1),
            '=' => self.push(Token::Relation(Relation::Equal), if self.peek(1) == Some('=') { 2 } else { 1 }),
            '^' => match self.circle() {
                Some(length) => self.push(Token::Degree, length),
                None => self.push(Token::Caret, 1),
            },
            c if c.is_alphabetic() => self.word(),
            c => self.push(Token::Symbol(c.into()), 1),
        }
    }

    /// The length of `^\circ`, `^{\circ}`.
    fn circle(&self) -> Option<usize> {
        let rest = &self.chars[self.at + 1..];
        let mut blanks = rest.iter().take_while(|c| c.is_whitespace()).count();
        let braced = rest.get(blanks) == Some(&'{');
        blanks += usize::from(braced);
        let name = ["\\circ", "\\degree", "°"]
            .iter()
            .find(|name| rest[blanks..].iter().copied().take(name.chars().count()).eq(name.chars()))?;
        let mut end = blanks + name.chars().count();
        if rest.get(end).is_some_and(char::is_ascii_alphabetic) {
            return None;
        }
        if braced {
            if rest.get(end) != Some(&'}') {
                return None;
            }
            end += 1;
        }
        Some(1 + end)
    }

    /// A run of letters: Chinese ones apart, and `和` and `或` between them.
    fn word(&mut self) {
        let first = self.chars[self.at];
        let joins = |c: char| ['和', '或'].contains(&c);
        let goes_on = |c: &&char| {
            c.is_alphabetic() && sign(**c).is_none() && is_cjk(**c) == is_cjk(first) && !joins(**c)
        };
        let length =
            if joins(first) { 1 } else { self.chars[self.at..].iter().take_while(goes_on).count().max(1) };
        let word: String = self.chars[self.at..self.at + length].iter().collect();
        self.push(Token::Word(word), length);
    }

    fn superscripts(&mut self) {
        let mut text = String::new();
        while let Some(piece) = self.peek(0).and_then(superscript) {
            text.push_str(piece);
            self.at += 1;
        }
        self.push(Token::Caret, 0);
        let (digits, negative) = text.strip_prefix('-').map_or((text.as_str(), false), |d| (d, true));
        match Rational::decimal(digits, 0).filter(|_| digits.bytes().all(|b| b.is_ascii_digit())) {
            Some(value) if !digits.is_empty() => {
                let value = if negative { value.neg() } else { value };
                self.push(Token::Number(Number { value, is_decimal: false, is_plain: false }), 0);
            }
            _ => self.push(Token::Symbol(text), 0),
        }
    }

    fn command(&mut self) {
        let rest = &self.chars[self.at + 1..];
        let length = rest.iter().take_while(|c| c.is_ascii_alphabetic()).count();
        if length == 0 {
            return match rest.first() {
                Some('{') => self.push(Token::Open('S'), 2),
                Some('}') => self.push(Token::Close('S'), 2),
                Some('%') => self.push(Token::Percent, 2),
                Some('|') => self.push(Token::Bar, 2),
                Some(',' | ';' | ':' | ' ' | '\\') => {
                    self.spaced = true;
                    self.skip(2);
                }
                Some('!' | '(' | ')' | '[' | ']' | '$') => self.skip(2),
                _ => self.push(Token::Symbol("\\".into()), 1),
            };
        }
        let name: String = rest[..length].iter().collect();
        let length = length + 1;
        if DRESSING.contains(&name.as_str()) {
            return self.skip(length);
        }
        if TEXTS.contains(&name.as_str()) {
            self.spaced = true;
            return self.skip(length);
        }
        if let Some((_, letter)) = GREEK.iter().find(|(greek, _)| *greek == name) {
            return self.push(Token::Word((*letter).into()), length);
        }
        let token = match name.as_str() {
            "frac" | "dfrac" | "tfrac" | "cfrac" => Token::Frac,
            "sqrt" => Token::Sqrt,
            "overline" => Token::Overline,
            "pi" => Token::Word("π".into()),
            "infty" => Token::Infinity,
            "cdot" | "times" | "ast" => Token::Times,
            "div" => Token::Over,
            "pm" => Token::PlusMinus,
            "mp" => Token::MinusPlus,
            "le" | "leq" | "leqslant" => Token::Relation(Relation::LessEqual),
            "ge" | "geq" | "geqslant" => Token::Relation(Relation::GreaterEqual),
            "lt" => Token::Relation(Relation::Less),
            "gt" => Token::Relation(Relation::Greater),
            "ne" | "neq" => Token::Relation(Relation::NotEqual),
            "approx" => Token::Relation(Relation::About),
            "cup" => Token::Union,
            "in" => Token::In,
            "circ" | "degree" => Token::Degree,
            "lbrace" => Token::Open('S'),
            "rbrace" => Token::Close('S'),
            "vert" | "lvert" | "rvert" => Token::Bar,
            "angle" => Token::Symbol("∠".into()),
            "triangle" => Token::Symbol("△".into()),
            "emptyset" | "varnothing" => Token::Symbol("∅".into()),
            "sin" | "cos" | "tan" | "cot" | "sec" | "csc" | "arcsin" | "arccos" | "arctan" | "ln" | "log"
            | "lg" | "exp" => Token::Word(name),
            _ => Token::Symbol(format!("\\{name}")),
        };
        self.push(token, length);
    }

    /// An integer or decimal, with thousands separators in groups of three, perhaps with an exponent.
    fn number(&mut self) {
        let digits_from = |at: usize| self.chars[at..].iter().take_while(|c| c.is_ascii_digit()).count();
        if self.is_short_argument() {
            let value = Rational::decimal(&self.chars[self.at].to_string(), 0);
            let number = |value| Token::Number(Number { value, is_decimal: false, is_plain: true });
            return self.push(value.map_or(Token::Frac, number), 1);
        }
        let first = digits_from(self.at);
        let mut end = self.at + first;
        let mut digits: String = self.chars[self.at..end].iter().collect();
        let mut is_plain = true;
        if (1..=3).contains(&first) && !digits.starts_with('0') {
            // The same separator all along, or it separates other things.
            let separator = self.separator(end);
            while let Some(length) = separator {
                if self.separator(end) != separator || digits_from(end + length) != 3 {
                    break;
                }
                digits.extend(&self.chars[end + length..end + length + 3]);
                end += length + 3;
                is_plain = false;
            }
            // `1,234,5` and `1,2345` are lists.
            let goes_on = |length: usize| self.chars[end] == ',' && digits_from(end + length) > 0;
            if !is_plain && self.separator(end).is_some_and(goes_on) {
                end = self.at + first;
                digits.truncate(first);
                is_plain = true;
            }
        }
        let mut exponent = 0i64;
        let mut is_decimal = false;
        if self.chars.get(end) == Some(&'.') {
            let places = digits_from(end + 1);
            digits.extend(&self.chars[end + 1..end + 1 + places]);
            exponent = -(places as i64);
            end += 1 + places;
            (is_decimal, is_plain) = (places > 0, false);
            if let Some((repetend, length)) = self.repetend(end) {
                let value = repeating(&digits, &repetend, exponent);
                let text: String = self.chars[self.at..end + length].iter().collect();
                let number = |value| Token::Number(Number { value, is_decimal: false, is_plain: false });
                return self.push(value.map_or(Token::Symbol(text), number), end + length - self.at);
            }
        }
        if let Some((power, length)) = self.power_of_ten(end) {
            exponent = exponent.saturating_add(power);
            end += length;
            is_plain = false;
        }
        let length = end - self.at;
        let value = Rational::decimal(&digits, exponent);
        let token = match value {
            Some(value) => Token::Number(Number { value, is_decimal, is_plain }),
            None => Token::Symbol(self.chars[self.at..end].iter().collect()),
        };
        self.push(token, length);
    }

    /// Whether the digit here is an argument by itself: `\frac12`, `\frac1{2}`.
    fn is_short_argument(&self) -> bool {
        let is_digit = |lexeme: &Lexeme| matches!(&lexeme.token, Token::Number(number) if number.is_plain);
        match self.found.as_slice() {
            [.., Lexeme { token: Token::Frac, .. }] => true,
            [.., Lexeme { token: Token::Frac, .. }, digit] => is_digit(digit),
            _ => false,
        }
    }

    /// The digits that `\overline{..}` at `at` repeats for ever, and the length of all that.
    fn repetend(&self, at: usize) -> Option<(String, usize)> {
        let mark = "\\overline{";
        let rest = self.chars.get(at..)?;
        if !rest.iter().copied().take(mark.len()).eq(mark.chars()) {
            return None;
        }
        let digits: String = rest[mark.len()..].iter().take_while(|c| c.is_ascii_digit()).collect();
        let end = mark.len() + digits.len();
        ((1..=20).contains(&digits.len()) && rest.get(end) == Some(&'}')).then_some((digits, end + 1))
    }

    /// The length of a thousands separator at `at`.
    fn separator(&self, at: usize) -> Option<usize> {
        let rest = &self.chars[at..];
        let starts = |mark: &str| rest.iter().copied().take(mark.len()).eq(mark.chars());
        match rest.first()? {
            ',' if self.brackets == 0 => Some(if starts(",\\!") { 3 } else { 1 }),
            '{' if starts("{,}") => Some(3),
            '\\' if starts("\\,") => Some(2),
            ' ' | '\u{a0}' | '\u{2009}' | '\u{202f}' | '~' if self.brackets == 0 => Some(1),
            _ => None,
        }
    }

    /// `e-5` after a number, and its length.
    fn power_of_ten(&self, at: usize) -> Option<(i64, usize)> {
        let rest = &self.chars[at..];
        if !['e', 'E'].contains(rest.first()?) {
            return None;
        }
        let sign = usize::from(matches!(rest.get(1), Some('+' | '-')));
        let digits: String = rest[1 + sign..].iter().take_while(|c| c.is_ascii_digit()).collect();
        let end = 1 + sign + digits.len();
        if digits.is_empty() || rest.get(end).is_some_and(|c| c.is_alphabetic()) {
            return None;
        }
        // A longer one is too large for any number.
        let size: i64 = if digits.len() > 9 { i64::from(u32::MAX) } else { digits.parse().ok()? };
        Some((if rest[1] == '-' { -size } else { size }, end))
    }
}

/// `digits * 10^exponent` with `repetend` behind it for ever.
fn repeating(digits: &str, repetend: &str, exponent: i64) -> Option<Rational> {
    let length = repetend.len() as i64;
    let nines = Rational::decimal(&"9".repeat(repetend.len()), length.checked_neg()?)?;
    let period = Rational::decimal(repetend, -length)?.div(&nines)?;
    let scale = Rational::decimal("1", exponent)?;
    Rational::decimal(digits, exponent)?.add(&period.mul(&scale)?)
}

/// Tokens of one character that mean the same everywhere.
fn sign(c: char) -> Option<Token> {
    Some(match c {
        '+' | '＋' => Token::Plus,
        '-' | '\u{2212}' | '－' | '\u{2013}' => Token::Minus,
        '±' => Token::PlusMinus,
        '∓' => Token::MinusPlus,
        '*' | '·' | '×' | '⋅' | '∙' | '•' => Token::Times,
        '/' | '÷' | '∕' | '⁄' => Token::Over,
        ':' | '：' => Token::Colon,
        '_' => Token::Underscore,
        '|' => Token::Bar,
        ',' | '，' | '、' => Token::Comma,
        ';' | '；' => Token::Semicolon,
        '(' | '（' => Token::Open('('),
        ')' | '）' => Token::Close(')'),
        '[' => Token::Open('['),
        ']' => Token::Close(']'),
        '{' => Token::Open('{'),
        '}' => Token::Close('}'),
        '%' | '％' => Token::Percent,
        '°' | 'º' | '˚' => Token::Degree,
        '√' => Token::Sqrt,
        '∛' => Token::Cbrt,
        '∞' => Token::Infinity,
        '≤' | '⩽' | '≦' => Token::Relation(Relation::LessEqual),
        '≥' | '⩾' | '≧' => Token::Relation(Relation::GreaterEqual),
        '≠' => Token::Relation(Relation::NotEqual),
        '≈' => Token::Relation(Relation::About),
        '＝' => Token::Relation(Relation::Equal),
        '∪' => Token::Union,
        '∈' => Token::In,
        '€' | '£' | '¥' | '￥' => Token::Currency(if c == '￥' { '¥' } else { c }),
        'π' | '𝜋' => Token::Word("π".into()),
        _ => return None,
    })
}

fn superscript(c: char) -> Option<&'static str> {
    Some(match c {
        '⁰' => "0",
        '¹' => "1",
        '²' => "2",
        '³' => "3",
        '⁴' => "4",
        '⁵' => "5",
        '⁶' => "6",
        '⁷' => "7",
        '⁸' => "8",
        '⁹' => "9",
        '⁻' => "-",
        _ => return None,
    })
}

fn vulgar(c: char) -> Option<(i64, i64)> {
    Some(match c {
        '½' => (1, 2),
        '⅓' => (1, 3),
        '⅔' => (2, 3),
        '¼' => (1, 4),
        '¾' => (3, 4),
        '⅕' => (1, 5),
        '⅖' => (2, 5),
        '⅗' => (3, 5),
        '⅘' => (4, 5),
        '⅙' => (1, 6),
        '⅚' => (5, 6),
        '⅛' => (1, 8),
        '⅜' => (3, 8),
        '⅝' => (5, 8),
        '⅞' => (7, 8),
        _ => return None,
    })
}
