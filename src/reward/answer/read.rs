//! An answer read: as a choice, as mathematics, as text.

use std::fmt::{self, Display, Formatter};
use std::sync::LazyLock;

use regex::Regex;

use super::compare::equal;
use super::evaluate::{Fuel, Value, evaluate};
use super::expr::{Answer, Brackets, Expr, Quantity};
use super::extract::{boxed, stated};
use super::lexer::lexemes;
use super::parse::parse;
use super::token::{Lexeme, Token, joins};
use super::unit::{Unit, unit};

/// One of several answers that a question offered.
struct Choice<'a> {
    /// Upper case.
    letter: char,
    /// What stands behind the letter.
    content: &'a str,
}

pub(super) struct Reading<'a> {
    choice: Option<Choice<'a>>,
    lexemes: Vec<Lexeme>,
    answer: Option<Answer>,
}

impl<'a> Reading<'a> {
    /// Reads the whole of `text`.
    pub(super) fn of(text: &'a str) -> Self {
        let text = undressed(text);
        let text = boxed(text).map_or(text, undressed);
        let reading = Self::literally(text);
        if reading.says_something() {
            return reading;
        }
        match stated(text) {
            Some(rest) => Self::literally(undressed(rest)),
            None => reading,
        }
    }

    /// Reads `text` as it is, without looking for "the answer is" in it.
    pub(super) fn literally(text: &'a str) -> Self {
        let lexemes = lexemes(text);
        let answer = parse(&lexemes);
        Reading { choice: choice(text), lexemes, answer }
    }

    /// Whether it is more than text.
    pub(super) fn says_something(&self) -> bool {
        self.choice.is_some() || self.answer.is_some()
    }

    pub(super) fn is_mathematics(&self) -> bool {
        self.answer.is_some()
    }

    /// Whether it is mathematics, or a phrase with one number.
    pub(super) fn has_value(&self) -> bool {
        self.answer.is_some() || self.only_number().is_some()
    }

    /// Whether `given` is this reference.
    pub(super) fn is_met_by(&self, given: &Reading<'_>) -> bool {
        if self.lexemes.is_empty() || given.lexemes.is_empty() {
            return false;
        }
        if self.lexemes == given.lexemes {
            return true;
        }
        match (&self.choice, &given.choice) {
            (Some(wanted), Some(given)) => {
                let contents = [wanted.content, given.content];
                let agree = || Reading::literally(contents[0]).is_met_by(&Reading::literally(contents[1]));
                return wanted.letter == given.letter && (contents.iter().any(|c| c.is_empty()) || agree());
            }
            (None, Some(given)) if !given.content.is_empty() => {
                return self.is_met_by(&Reading::literally(given.content));
            }
            _ => {}
        }
        let phrase = || match &self.answer {
            Some(Answer::Quantity(_)) => given.only_number().map(Answer::Quantity),
            _ => None,
        };
        if let Some(wanted) = &self.answer
            && let Some(given) = given.answer.clone().or_else(phrase)
            && let Some(verdict) = equal(wanted, &given, &mut Fuel::full())
        {
            return verdict;
        }
        self.text() == given.text()
    }

    /// Whether `given` is the same mathematics, whatever the units.
    pub(super) fn has_value_of(&self, given: &Reading<'_>) -> bool {
        let bare = |reading: &Reading<'_>| match reading.answer.clone() {
            Some(Answer::Quantity(quantity)) if quantity.unit != Unit::Percent => {
                Some(Answer::Quantity(Quantity { unit: Unit::None, ..quantity }))
            }
            other => other,
        };
        let (Some(wanted), Some(given)) = (bare(self), bare(given)) else { return false };
        equal(&wanted, &given, &mut Fuel::full()) == Some(true)
    }

    /// The number of a phrase with one number and otherwise words: `There are 3 items.`
    fn only_number(&self) -> Option<Quantity> {
        let mut found = None;
        for (at, lexeme) in self.lexemes.iter().enumerate() {
            match &lexeme.token {
                Token::Number(number) if found.is_none() => found = Some((at, number)),
                // "not 3", "less than 3" do not say 3.
                Token::Word(word) if denies(&word.to_lowercase()) => return None,
                // A letter alone is algebra, but for the article and the pronoun.
                Token::Word(word)
                    if word.chars().count() > 1 || word == "a" || word == "A" || word == "I" => {}
                Token::Comma
                | Token::Colon
                | Token::Semicolon
                | Token::Bang
                | Token::Degree
                | Token::Percent => {}
                Token::Minus | Token::Open(_) | Token::Close(_) => {}
                Token::Symbol(symbol) if [".", "?", "'", "\"", "’", "。", "#"].contains(&symbol.as_str()) =>
                    {}
                _ => return None,
            }
        }
        let (at, number) = found?;
        let before = self.lexemes[..at].last();
        let is_minus = |lexeme: &Lexeme| lexeme.token == Token::Minus;
        let value = match before {
            // `-3`, but not `range - 3` or `10-3`.
            Some(sign) if is_minus(sign) && !self.lexemes[at].spaced && (sign.spaced || at == 1) => {
                number.value.neg()
            }
            Some(sign) if is_minus(sign) && !self.lexemes[at].spaced => return None,
            _ => number.value.clone(),
        };
        // It may not touch a letter: `x2`, `3D`.
        if matches!(before, Some(Lexeme { token: Token::Word(_), .. })) && !self.lexemes[at].spaced {
            return None;
        }
        let behind = unit(&self.lexemes[at + 1..], true).map(|(unit, _)| unit).unwrap_or_default();
        Some(Quantity { expr: Expr::Number(value), unit: behind, is_decimal: number.is_decimal })
    }

    /// One spelling of the text: without white space, case, and braces that only dress.
    fn text(&self) -> String {
        let mut text = String::new();
        let mut kept = Vec::new();
        let mut follows_number = false;
        for (at, lexeme) in self.lexemes.iter().enumerate() {
            let before = at.checked_sub(1).map(|before| &self.lexemes[before].token);
            match &lexeme.token {
                Token::Open('{') => {
                    let is_argument = matches!(
                        before,
                        Some(
                            Token::Caret
                                | Token::Underscore
                                | Token::Frac
                                | Token::Sqrt
                                | Token::Overline
                                | Token::Symbol(_)
                                | Token::Close('}')
                        )
                    );
                    let is_single =
                        matches!(self.lexemes.get(at + 2), Some(Lexeme { token: Token::Close('}'), .. }));
                    kept.push(is_argument && !is_single);
                    if is_argument && !is_single {
                        text.push('{');
                    }
                }
                Token::Close('}') => {
                    if kept.pop().unwrap_or(true) {
                        text.push('}');
                    }
                }
                _ => {
                    // Two numbers side by side are not one.
                    let is_number = matches!(lexeme.token, Token::Number(_) | Token::Symbol(_));
                    if is_number && follows_number {
                        text.push(' ');
                    }
                    follows_number = is_number;
                    text.push_str(&lexeme.to_string());
                }
            }
        }
        text
    }
}

fn denies(word: &str) -> bool {
    const DENIALS: [&str; 14] = [
        "not", "no", "never", "than", "least", "most", "except", "without", "neither", "nor", "or", "isn",
        "aren", "below",
    ];
    DENIALS.contains(&word) || word.starts_with('不')
}

/// `text` without quotation marks, emphasis and closing punctuation around it.
pub(super) fn undressed(text: &str) -> &str {
    let quotes = |c: char| c.is_whitespace() || ['"', '\'', '*', '`', '“', '”', '‘', '’'].contains(&c);
    let closing = |c: char| quotes(c) || ['.', ',', ';', ':', '。', '，', '；', '：'].contains(&c);
    text.trim_start_matches(quotes).trim_end_matches(closing)
}

/// The choice that `text` names, with what stands behind the letter.
fn choice(text: &str) -> Option<Choice<'_>> {
    static CHOICE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"(?xs)^ \$? (?:\\(?:text|textbf|mathrm|mathbf)\s*\{)? \s*
              (?i:(?:the\s+)?(?:correct\s+)?(?:option|choice|answer)(?:\s+is)?\s*:?\s*)?
              (?: \(([A-Ja-j])\) (?:[.:]?\s+|[.:])? | ([A-Ja-j]) [.):]? $ | ([A-Ja-j]) [.)]? \} | ([A-J]) [.):]\s* )
              (.*)$",
        )
        .expect("the pattern is constant")
    });
    let found = CHOICE.captures(text)?;
    let letter = (1..=4).find_map(|group| found.get(group))?.as_str().chars().next()?.to_ascii_uppercase();
    let content = found.get(5).map_or("", |rest| rest.as_str());
    // `(a)+b` and `(a)(b)` are algebra.
    let is_algebra = found.get(1).is_some() && !content.is_empty() && !found.get(0)?.as_str().contains(") ");
    let content = content.trim_matches(|c: char| c.is_whitespace() || ['}', '$'].contains(&c));
    // `A. B. C.`, `A. or B` and `A. 5 or B. 6` choose nothing.
    static ANOTHER: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\s,;/]\(?[A-J][.):]\s*\S").expect("the pattern is constant"));
    let word = content.split(|c: char| !c.is_alphanumeric()).next().unwrap_or("");
    let goes_on = (word.len() == 1 && word.starts_with(|c: char| ('A'..='J').contains(&c)))
        || joins(word)
        || ANOTHER.is_match(content);
    (!is_algebra && !goes_on).then_some(Choice { letter, content })
}

impl Display for Reading<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(choice) = &self.choice {
            return write!(f, "{}", choice.letter);
        }
        match self.answer.clone().or_else(|| self.only_number().map(Answer::Quantity)) {
            Some(answer) => write!(f, "{answer}"),
            None => write!(f, "{}", self.plain()),
        }
    }
}

impl Reading<'_> {
    /// The words with white space as it was, dressing left out.
    fn plain(&self) -> String {
        let mut plain = String::new();
        for lexeme in &self.lexemes {
            if matches!(lexeme.token, Token::Open('{') | Token::Close('}')) {
                continue;
            }
            if lexeme.spaced && !plain.is_empty() {
                plain.push(' ');
            }
            match &lexeme.token {
                Token::Word(word) => plain.push_str(word),
                _ => plain.push_str(&lexeme.to_string()),
            }
        }
        plain
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let separated = |f: &mut Formatter<'_>, items: &[Answer], separator: &str| {
            for (i, item) in items.iter().enumerate() {
                write!(f, "{}{item}", if i > 0 { separator } else { "" })?;
            }
            Ok(())
        };
        match self {
            Answer::Quantity(quantity) => write!(f, "{quantity}"),
            Answer::Items(brackets, items) => {
                let (open, close) = match brackets {
                    Brackets::None => (String::new(), String::new()),
                    Brackets::Set => ("{".into(), "}".into()),
                    Brackets::Ordered(open, close) => (open.to_string(), close.to_string()),
                };
                write!(f, "{open}")?;
                separated(f, items, ", ")?;
                write!(f, "{close}")
            }
            Answer::Union(sets) => separated(f, sets, " ∪ "),
            Answer::Named { name, value, .. } => write!(f, "{name} = {value}"),
            Answer::Statement(first, sides) => {
                write!(f, "{}{}", first.expr, first.unit)?;
                let mut rest = sides.iter();
                rest.try_for_each(|(sign, side)| write!(f, " {} {}{}", sign.spelling(), side.expr, side.unit))
            }
        }
    }
}

impl Display for Quantity {
    /// The value of what is an exact number, else the expression; then the unit.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match evaluate(&self.expr, &[], &mut Fuel::full()) {
            Ok(Value::Exact(value)) => {
                let decimal = if self.is_decimal { value.to_decimal(12) } else { None };
                match decimal {
                    Some(decimal) => write!(f, "{decimal}")?,
                    None => write!(f, "{value}")?,
                }
            }
            _ => write!(f, "{}", self.expr)?,
        }
        write!(f, "{}", self.unit)
    }
}
