//! What an answer is cut into: LaTeX, plain text and Unicode spell the same tokens.

use super::rational::Rational;

/// A number as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Number {
    pub(super) value: Rational,
    /// Written with a decimal point, so perhaps rounded.
    pub(super) is_decimal: bool,
    /// Digits and nothing else: such a number may begin a mixed one.
    pub(super) is_plain: bool,
}

/// How two sides of a statement are related.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    Equal,
    About,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Number(Number),
    /// `½`, to be added to an integer before it.
    Vulgar(Rational),
    /// A run of letters; a Greek letter alone.
    Word(String),
    Frac,
    Sqrt,
    Cbrt,
    Overline,
    Infinity,
    Degree,
    Percent,
    Currency(char),
    Plus,
    Minus,
    PlusMinus,
    MinusPlus,
    Times,
    Over,
    /// `:` of a ratio.
    Colon,
    Caret,
    Underscore,
    Bang,
    Bar,
    Comma,
    Semicolon,
    Relation(Relation),
    In,
    Union,
    /// `(`, `[`, `{` that only groups, or `S`, the brace of a set.
    Open(char),
    Close(char),
    /// Whatever has no meaning here.
    Symbol(String),
}

/// A token with what stood before it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lexeme {
    pub(super) token: Token,
    /// White space, or the brace of `\text{..}`, stood before.
    pub(super) spaced: bool,
}

/// Whether a word joins the items of a list.
pub(super) fn joins(word: &str) -> bool {
    ["and", "or", "和", "或"].contains(&word.to_lowercase().as_str())
}

/// Whether `c` is a Chinese character.
pub(super) fn is_cjk(c: char) -> bool {
    ('\u{4e00}'..='\u{9fff}').contains(&c)
}

impl std::fmt::Display for Lexeme {
    /// One spelling for each token, for comparing texts; a space where white space parts two words.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match &self.token {
            Token::Number(number) => return write!(f, "{}", number.value),
            Token::Vulgar(value) => return write!(f, "{value}"),
            Token::Word(word) => return write!(f, "{}", word.to_lowercase()),
            Token::Symbol(symbol) => return write!(f, "{symbol}"),
            Token::Currency(c) => return write!(f, "{c}"),
            Token::Open('S') => "\\{",
            Token::Close('S') => "\\}",
            Token::Open(c) | Token::Close(c) => return write!(f, "{c}"),
            Token::Frac => "\\frac",
            Token::Sqrt => "√",
            Token::Cbrt => "∛",
            Token::Overline => "\\overline",
            Token::Infinity => "∞",
            Token::Degree => "°",
            Token::Percent => "%",
            Token::Plus => "+",
            Token::Minus => "-",
            Token::PlusMinus => "±",
            Token::MinusPlus => "∓",
            Token::Times => "*",
            Token::Over => "/",
            Token::Colon => ":",
            Token::Caret => "^",
            Token::Underscore => "_",
            Token::Bang => "!",
            Token::Bar => "|",
            Token::Comma => ",",
            Token::Semicolon => ";",
            Token::In => "∈",
            Token::Union => "∪",
            Token::Relation(relation) => relation.spelling(),
        };
        f.write_str(text)
    }
}

impl Relation {
    pub(super) fn spelling(self) -> &'static str {
        match self {
            Relation::Equal => "=",
            Relation::About => "≈",
            Relation::NotEqual => "≠",
            Relation::Less => "<",
            Relation::LessEqual => "≤",
            Relation::Greater => ">",
            Relation::GreaterEqual => "≥",
        }
    }
}
