//! Expressions: sums, products, powers and what they are made of.

use super::{Parser, variable};
use crate::reward::answer::expr::{Expr, FUNCTIONS};
use crate::reward::answer::rational::Rational;
use crate::reward::answer::token::{Number, Token, joins};

impl<'a> Parser<'a> {
    pub(super) fn sum(&mut self) -> Option<Expr> {
        let mut terms = vec![self.term()?];
        while matches!(self.peek(), Some(Token::Plus | Token::Minus | Token::PlusMinus | Token::MinusPlus)) {
            terms.push(self.term()?);
        }
        if terms.len() == 1 { terms.pop() } else { Some(Expr::Sum(terms)) }
    }

    /// A product with the signs before it.
    fn term(&mut self) -> Option<Expr> {
        let is_negative = self.signs();
        let product = self.product()?;
        Some(if is_negative { negative(product) } else { product })
    }

    fn signs(&mut self) -> bool {
        let mut is_negative = false;
        loop {
            match self.peek() {
                Some(Token::Plus) => {}
                Some(Token::Minus) => is_negative = !is_negative,
                Some(Token::PlusMinus) => {
                    self.plus_minus = true;
                    is_negative ^= self.sign < 0;
                }
                Some(Token::MinusPlus) => {
                    self.plus_minus = true;
                    is_negative ^= self.sign > 0;
                }
                _ => return is_negative,
            }
            self.at += 1;
        }
    }

    /// Factors joined by signs of multiplication and division, from the left: one quotient, however long the chain.
    fn product(&mut self) -> Option<Expr> {
        let (mut above, mut below) = (vec![self.juxtaposed()?], Vec::new());
        loop {
            let divides = match self.peek() {
                Some(Token::Times) => false,
                Some(Token::Over | Token::Colon) => true,
                _ => break,
            };
            self.at += 1;
            let is_negative = self.signs();
            let factor = self.juxtaposed()?;
            let factor = if is_negative { negative(factor) } else { factor };
            if divides { below.push(factor) } else { above.push(factor) }
        }
        let above = product_of(above)?;
        Some(match product_of(below) {
            Some(below) => Expr::Quotient(Box::new(above), Box::new(below)),
            None => above,
        })
    }

    /// Factors that touch: they bind more tightly than a stroke, so that `1/2x` is `1/(2x)`.
    fn juxtaposed(&mut self) -> Option<Expr> {
        let mut factors = vec![self.power()?];
        loop {
            let after_number = matches!(factors.as_slice(), [Expr::Number(_)]);
            let goes_on = match self.peek() {
                Some(Token::Word(_)) => self.is_factor() && self.unit_ends(after_number).is_none(),
                Some(Token::Open('{')) => {
                    let is_joint = matches!(self.ahead(1), Some(Token::Word(word)) if joins(word));
                    !is_joint && !self.holds_items() && self.unit_ends(after_number).is_none()
                }
                Some(Token::Open(open)) => *open != 'S' && !self.holds_items(),
                Some(Token::Frac | Token::Sqrt | Token::Cbrt | Token::Infinity) => true,
                _ => false,
            };
            if !goes_on {
                break;
            }
            factors.push(self.power()?);
        }
        product_of(factors)
    }

    /// Whether the word here is a function, a constant or a few variables.
    fn is_factor(&self) -> bool {
        let Some(Token::Word(word)) = self.peek() else { return false };
        is_function(word) || ["sqrt", "pi", "π"].contains(&word.as_str()) || letters(word).is_some()
    }

    /// A factor with its exponent.
    fn power(&mut self) -> Option<Expr> {
        let mut base = self.atom()?;
        let mut marks = 0;
        while let Some(token @ (Token::Bang | Token::Degree | Token::Percent)) = self.peek() {
            // A unit of the whole stays for `operand`.
            if self.depth == 0 && self.unit_ends(false).is_some() {
                break;
            }
            marks += 1;
            if marks > 2 {
                return None;
            }
            self.at += 1;
            base = match token {
                Token::Bang => Expr::Factorial(Box::new(base)),
                Token::Degree => Expr::Degrees(Box::new(base)),
                _ => Expr::Quotient(Box::new(base), Box::new(Expr::Number(Rational::integer(100)))),
            };
        }
        if self.take(&Token::Caret).is_none() {
            return Some(base);
        }
        let exponent = self.nested(Self::exponent)?;
        Some(Expr::Power(Box::new(base), Box::new(exponent)))
    }

    fn exponent(&mut self) -> Option<Expr> {
        let is_negative = self.signs();
        let exponent = self.power()?;
        Some(if is_negative { negative(exponent) } else { exponent })
    }

    fn atom(&mut self) -> Option<Expr> {
        let token = self.peek()?;
        self.at += 1;
        match token {
            Token::Number(number) => self.number(number),
            Token::Vulgar(value) => Some(Expr::Number(value.clone())),
            Token::Infinity => Some(Expr::Infinity),
            Token::Frac => {
                let num = self.argument()?;
                let den = self.argument()?;
                Some(Expr::Quotient(Box::new(num), Box::new(den)))
            }
            Token::Sqrt => {
                let index = if self.peek() == Some(&Token::Open('[')) {
                    self.at += 1;
                    let index = self.nested(Self::sum)?;
                    self.take(&Token::Close(']'))?;
                    index
                } else {
                    Expr::Number(Rational::integer(2))
                };
                self.root(index)
            }
            Token::Cbrt => self.root(Expr::Number(Rational::integer(3))),
            Token::Open(open @ ('(' | '[' | '{')) => {
                let inner = self.nested(Self::sum)?;
                let close = match open {
                    '(' => ')',
                    '[' => ']',
                    _ => '}',
                };
                self.take(&Token::Close(close))?;
                Some(inner)
            }
            Token::Bar => {
                let inner = self.nested(Self::sum)?;
                self.take(&Token::Bar)?;
                Some(Expr::Absolute(Box::new(inner)))
            }
            Token::Word(word) => self.word(word),
            _ => None,
        }
    }

    fn root(&mut self, index: Expr) -> Option<Expr> {
        let inner = match self.peek()? {
            // √12 and \sqrt12 mean the whole number.
            Token::Number(_) | Token::Open('{' | '(') => self.nested(Self::atom)?,
            _ => self.argument()?,
        };
        Some(Expr::Root(Box::new(index), Box::new(inner)))
    }

    /// A group in braces, or what stands alone; `\frac12` has two digits.
    fn argument(&mut self) -> Option<Expr> {
        match self.peek()? {
            Token::Number(number) if !number.is_plain => None,
            Token::Number(_) | Token::Open('{') | Token::Word(_) | Token::Sqrt | Token::Frac => {
                self.nested(Self::atom)
            }
            _ => None,
        }
    }

    /// A number, perhaps a mixed one: `2\frac{1}{3}`, `2 1/3`, `2½`.
    fn number(&mut self, number: &Number) -> Option<Expr> {
        self.is_decimal |= number.is_decimal;
        let whole = Expr::Number(number.value.clone());
        if !number.is_plain {
            return Some(whole);
        }
        if let Some(Token::Vulgar(part)) = self.peek() {
            self.at += 1;
            return Some(Expr::Number(number.value.add(part)?));
        }
        let plain = |token: Option<&'a Token>| match token {
            Some(Token::Number(number)) if number.is_plain => Some(number.value.clone()),
            _ => None,
        };
        // A number in braces or a digit without, and its length.
        let argument = |parser: &Self, n: usize| {
            if let Some(value) = plain(parser.ahead(n)) {
                return Some((value, 1));
            }
            let around = (parser.ahead(n)?, parser.ahead(n + 2)?);
            (around == (&Token::Open('{'), &Token::Close('}')))
                .then(|| plain(parser.ahead(n + 1)).map(|value| (value, 3)))?
        };
        let (num, den, length) = match self.peek() {
            Some(Token::Frac) => match argument(self, 1) {
                Some((num, n)) => match argument(self, 1 + n) {
                    Some((den, d)) => (Some(num), Some(den), 1 + n + d),
                    None => (None, None, 0),
                },
                None => (None, None, 0),
            },
            Some(Token::Number(_)) if self.is_spaced() && self.ahead(1) == Some(&Token::Over) => {
                (plain(self.peek()), plain(self.ahead(2)), 3)
            }
            _ => (None, None, 0),
        };
        let (Some(num), Some(den)) = (num, den) else { return Some(whole) };
        // Only a proper fraction is part of a mixed number.
        let part = num.div(&den)?;
        if part.is_zero() || !part.add(&Rational::integer(-1))?.is_negative() {
            return Some(whole);
        }
        self.at += length;
        Some(Expr::Number(number.value.add(&part)?))
    }

    fn word(&mut self, word: &str) -> Option<Expr> {
        match word {
            "π" | "pi" | "Pi" => return Some(Expr::Pi),
            "sqrt" => return self.root(Expr::Number(Rational::integer(2))),
            "infinity" | "inf" => return Some(Expr::Infinity),
            "log" | "lg" => {
                let base = if word == "log" && self.take(&Token::Underscore).is_some() {
                    self.argument()?
                } else {
                    Expr::Number(Rational::integer(10))
                };
                let inner = self.nested(Self::function_argument)?;
                return Some(Expr::Log(Box::new(base), Box::new(inner)));
            }
            _ => {}
        }
        if let Some((_, function)) = FUNCTIONS.iter().find(|(name, _)| *name == word) {
            // sin^2 x is (sin x)^2; sin^{-1} is left alone.
            let exponent = if self.take(&Token::Caret).is_some() {
                let exponent = self.nested(Self::exponent)?;
                if matches!(&exponent, Expr::Negative(_)) {
                    return None;
                }
                Some(exponent)
            } else {
                None
            };
            let inner = self.nested(Self::function_argument)?;
            let call = Expr::Call(*function, Box::new(inner));
            return Some(match exponent {
                Some(exponent) => Expr::Power(Box::new(call), Box::new(exponent)),
                None => call,
            });
        }
        let mut factors = letters(word)?;
        // x_1 and x_{1}
        if self.take(&Token::Underscore).is_some() {
            let Some(Expr::Variable(name)) = factors.last_mut() else { return None };
            name.push('_');
            let braced = self.take(&Token::Open('{')).is_some();
            match self.peek()? {
                Token::Number(number) if number.is_plain => name.push_str(&number.value.to_string()),
                Token::Word(word) => name.push_str(word),
                _ => return None,
            }
            self.at += 1;
            if braced {
                self.take(&Token::Close('}'))?;
            }
        }
        // Of letters that touch, the last has the exponent.
        if factors.len() > 1 && self.take(&Token::Caret).is_some() {
            let exponent = self.nested(Self::exponent)?;
            let last = factors.pop()?;
            factors.push(Expr::Power(Box::new(last), Box::new(exponent)));
        }
        product_of(factors)
    }

    /// Brackets, or the factors that touch the function's name.
    fn function_argument(&mut self) -> Option<Expr> {
        // sin(x)^2 is (sin x)^2.
        if let Token::Open('(' | '{') = self.peek()? {
            return self.atom();
        }
        let mut factors = vec![self.power()?];
        while let Some(Token::Word(word)) = self.peek()
            && (word == "π" || (letters(word).is_some() && !is_function(word)))
            && self.unit_ends(false).is_none()
        {
            factors.push(self.power()?);
        }
        product_of(factors)
    }
}

fn negative(expr: Expr) -> Expr {
    match expr {
        Expr::Number(value) => Expr::Number(value.neg()),
        expr => Expr::Negative(Box::new(expr)),
    }
}

fn is_function(word: &str) -> bool {
    FUNCTIONS.iter().any(|(name, _)| *name == word) || ["log", "lg"].contains(&word)
}

/// The product of `factors`, if there are any.
fn product_of(mut factors: Vec<Expr>) -> Option<Expr> {
    if factors.len() > 1 { Some(Expr::Product(factors)) } else { factors.pop() }
}

/// A word of up to three letters as that many factors. Longer ones are words, and so is what is not Latin or Greek.
fn letters(word: &str) -> Option<Vec<Expr>> {
    let known = |c: char| c.is_ascii_alphabetic() || ('α'..='ω').contains(&c) || ('Α'..='Ω').contains(&c);
    let count = word.chars().count();
    if count > 3 || !word.chars().all(known) || ["and", "or", "not", "no", "is", "of", "to"].contains(&word) {
        return None;
    }
    word.chars().map(|c| variable(c.encode_utf8(&mut [0; 4]))).collect()
}
