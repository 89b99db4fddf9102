//! From lexemes to an answer: recursive descent of bounded depth.

use super::expr::{Answer, Brackets, Expr, FUNCTIONS, Quantity};
use super::rational::Rational;
use super::token::{Lexeme, Number, Relation, Token};
use super::unit::{Unit, currency, unit};

/// How deep brackets, fractions, roots and exponents may be nested.
const MAX_DEPTH: usize = 64;

/// The most items of a list, tuple or set.
const MAX_ITEMS: usize = 256;

/// The answer that the whole of `lexemes` is; `None` if it is no mathematics that is known here.
pub(super) fn parse(lexemes: &[Lexeme]) -> Option<Answer> {
    let lexemes = match lexemes {
        [Lexeme { token: Token::Relation(Relation::Equal | Relation::About), .. }, rest @ ..] => rest,
        all => all,
    };
    let is_mathematics = |lexeme: &Lexeme| !matches!(lexeme.token, Token::Word(_) | Token::Symbol(_));
    let is_letter = |lexeme: &Lexeme| matches!(&lexeme.token, Token::Word(word) if word.chars().count() == 1);
    // Words alone, whatever brackets, points and dashes are around them, are text.
    let says_something = lexemes.iter().any(|lexeme| {
        is_letter(lexeme)
            || (is_mathematics(lexeme)
                && !matches!(
                    lexeme.token,
                    Token::Open(_)
                        | Token::Close(_)
                        | Token::Comma
                        | Token::Minus
                        | Token::Semicolon
                        | Token::Over
                ))
    });
    if !says_something {
        return None;
    }
    let whole = |sign: i8| {
        let mut parser = Parser { lexemes, at: 0, depth: 0, sign, is_decimal: false, plus_minus: false };
        let answer = parser.list()?;
        (parser.at == lexemes.len()).then_some((answer, parser.plus_minus))
    };
    let (upper, has_both) = whole(1)?;
    if !has_both {
        return Some(upper);
    }
    both(upper, whole(-1)?.0)
}

/// `2 ± 3`, from its readings with plus and with minus.
fn both(upper: Answer, lower: Answer) -> Option<Answer> {
    match (upper, lower) {
        (Answer::Named { name, variable, value: upper }, Answer::Named { value: lower, .. }) => {
            let value = Box::new(both(*upper, *lower)?);
            Some(Answer::Named { name, variable, value })
        }
        (upper @ Answer::Quantity(_), lower @ Answer::Quantity(_)) => {
            Some(Answer::Items(Brackets::None, vec![upper, lower]))
        }
        _ => None,
    }
}

struct Parser<'a> {
    lexemes: &'a [Lexeme],
    at: usize,
    depth: usize,
    /// What `±` is in this reading.
    sign: i8,
    /// Whether a decimal was read since this was last cleared.
    is_decimal: bool,
    plus_minus: bool,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.lexemes.get(self.at).map(|lexeme| &lexeme.token)
    }

    fn ahead(&self, n: usize) -> Option<&'a Token> {
        self.lexemes.get(self.at + n).map(|lexeme| &lexeme.token)
    }

    fn is_spaced(&self) -> bool {
        self.lexemes.get(self.at).is_some_and(|lexeme| lexeme.spaced)
    }

    fn take(&mut self, token: &Token) -> Option<()> {
        (self.peek()? == token).then(|| self.at += 1)
    }

    /// One level deeper: `None` past the limit.
    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Statements with separators between; one alone is itself.
    fn list(&mut self) -> Option<Answer> {
        let mut items = vec![self.statement()?];
        while self.separator() {
            if items.len() == MAX_ITEMS {
                return None;
            }
            items.push(self.statement()?);
        }
        if items.len() == 1 { items.pop() } else { Some(Answer::Items(Brackets::None, items)) }
    }

    /// A comma, a semicolon, `and`, `or`, or a comma and one of these.
    fn separator(&mut self) -> bool {
        let start = self.at;
        if matches!(self.peek(), Some(Token::Comma | Token::Semicolon)) {
            self.at += 1;
        }
        let mut after = self.at;
        // `\text{ and }`
        let braced = matches!(self.lexemes.get(after), Some(Lexeme { token: Token::Open('{'), .. }));
        after += usize::from(braced);
        if matches!(self.lexemes.get(after).map(|l| &l.token), Some(Token::Word(word)) if joins(word)) {
            after += 1;
            if !braced {
                self.at = after;
            } else if matches!(self.lexemes.get(after).map(|l| &l.token), Some(Token::Close('}'))) {
                self.at = after + 1;
            }
        }
        self.at > start
    }

    /// A value, a named value, or sides with relations between them.
    fn statement(&mut self) -> Option<Answer> {
        if let Some((name, variable, behind)) = self.name() {
            self.at = behind;
            return self.named(name, variable);
        }
        let first = self.union()?;
        let Some(Token::Relation(_)) = self.peek() else { return Some(first) };
        let Answer::Quantity(first) = first else { return None };
        let mut sides = Vec::new();
        while let Some(Token::Relation(relation)) = self.peek() {
            self.at += 1;
            let Answer::Quantity(side) = self.union()? else { return None };
            sides.push((*relation, side));
            if sides.len() > MAX_ITEMS {
                return None;
            }
        }
        Some(Answer::Statement(first, sides))
    }

    /// What stands behind `name =`: of a chain the last side, but of `a ≈ b` the exact one.
    fn named(&mut self, name: String, variable: Option<Expr>) -> Option<Answer> {
        let mut value = self.union()?;
        let mut is_exact = true;
        while let Some(Token::Relation(relation)) = self.peek() {
            self.at += 1;
            let next = self.union()?;
            is_exact = match relation {
                Relation::Equal if is_exact => true,
                Relation::About | Relation::Equal => false,
                _ => return None,
            };
            if is_exact {
                value = next;
            }
        }
        Some(Answer::Named { name, variable, value: Box::new(value) })
    }

    /// The name that stands before the next `=`, `≈` or `∈`, if it is a name: letters, angles, functions of letters. With
    /// the place behind that sign.
    fn name(&self) -> Option<(String, Option<Expr>, usize)> {
        let mut name = String::new();
        let mut depth = 0usize;
        for (n, lexeme) in self.lexemes[self.at..].iter().enumerate() {
            match &lexeme.token {
                Token::Relation(Relation::Equal | Relation::About) | Token::In if depth == 0 && n > 0 => {
                    let variable = variable(&name);
                    return (name != "π").then_some((name, variable, self.at + n + 1));
                }
                Token::Word(word) if joins(word) => return None,
                Token::Word(word) => {
                    // Of "so x" and "the area of ABC", the last word is the name.
                    if lexeme.spaced && name.chars().all(char::is_alphabetic) {
                        name.clear();
                    }
                    name.push_str(word);
                }
                Token::Symbol(symbol)
                    if ["∠", "△", "'", "′", "\\overline", "⊙"].contains(&symbol.as_str()) =>
                {
                    name.push_str(symbol);
                }
                // A segment AB with a bar.
                Token::Overline => {}
                Token::Number(_) if name.chars().last().is_some_and(|c| c.is_alphabetic() || c == '_') => {
                    name.push_str(&lexeme.to_string());
                }
                Token::Underscore => name.push('_'),
                Token::Open('{') => depth += 1,
                Token::Close('}') => depth = depth.checked_sub(1)?,
                Token::Open('(') if n > 0 => {
                    depth += 1;
                    name.push('(');
                }
                Token::Close(')') => {
                    depth = depth.checked_sub(1)?;
                    name.push(')');
                }
                Token::Comma if depth > 0 => name.push(','),
                _ => return None,
            }
            if n == 24 {
                return None;
            }
        }
        None
    }

    /// Intervals or sets joined by `∪`, or a quantity.
    fn union(&mut self) -> Option<Answer> {
        let first = self.operand()?;
        if self.peek() != Some(&Token::Union) {
            return Some(first);
        }
        let mut sets = vec![first];
        while self.take(&Token::Union).is_some() {
            sets.push(self.operand()?);
        }
        let all_sets = sets.iter().all(|set| matches!(set, Answer::Items(..))) && sets.len() <= MAX_ITEMS;
        all_sets.then_some(Answer::Union(sets))
    }

    /// A sum with its unit, or brackets with several items.
    fn operand(&mut self) -> Option<Answer> {
        if matches!(self.peek(), Some(Token::Open(_))) && self.holds_items() {
            return self.items();
        }
        let outer = std::mem::take(&mut self.is_decimal);
        let front = match self.peek()? {
            Token::Currency(c) => {
                self.at += 1;
                currency(*c)
            }
            _ => Unit::None,
        };
        let expr = self.sum()?;
        let behind = match self.unit_ends(matches!(expr, Expr::Number(_))) {
            Some((unit, length)) => {
                self.at += length;
                unit
            }
            None => Unit::None,
        };
        let unit = if behind == Unit::None { front } else { behind };
        let is_decimal = self.is_decimal;
        self.is_decimal |= outer;
        Some(Answer::Quantity(Quantity { expr, unit, is_decimal }))
    }

    /// The unit that stands here, if it ends an operand, with its length.
    fn unit_ends(&self, after_number: bool) -> Option<(Unit, usize)> {
        unit(&self.lexemes[self.at..], after_number).filter(|(_, length)| self.ends(*length))
    }

    /// Whether what stands `n` lexemes ahead ends an operand.
    fn ends(&self, n: usize) -> bool {
        match self.ahead(n) {
            None | Some(Token::Comma | Token::Semicolon | Token::Close(_) | Token::Relation(_)) => true,
            Some(Token::Word(word)) => joins(word),
            Some(Token::Open('{')) => matches!(self.ahead(n + 1), Some(Token::Word(word)) if joins(word)),
            _ => false,
        }
    }

    /// Brackets around several items, or a set's braces around any.
    fn items(&mut self) -> Option<Answer> {
        let Token::Open(open) = self.peek()? else { return None };
        self.at += 1;
        let items = match self.peek() {
            Some(Token::Close('S')) => Vec::new(),
            _ => match self.nested(Self::list)? {
                Answer::Items(Brackets::None, items) => items,
                other => vec![other],
            },
        };
        let Token::Close(close) = self.peek()? else { return None };
        self.at += 1;
        let brackets = match (open, close) {
            ('S', 'S') | ('{', '}') => Brackets::Set,
            ('(' | '[', ')' | ']') => Brackets::Ordered(*open, *close),
            _ => return None,
        };
        Some(Answer::Items(brackets, items))
    }

    /// Whether the bracket here is a set's, or has a separator directly in it.
    fn holds_items(&self) -> bool {
        let mut depth = 0usize;
        for lexeme in &self.lexemes[self.at..] {
            match &lexeme.token {
                Token::Open('S') if depth == 0 => return true,
                Token::Open(_) => depth += 1,
                Token::Close(_) if depth == 1 => return false,
                Token::Close(_) => depth = depth.saturating_sub(1),
                Token::Comma | Token::Semicolon if depth == 1 => return true,
                _ => {}
            }
        }
        false
    }

    fn sum(&mut self) -> Option<Expr> {
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
        match self.peek()? {
            // sin(x)^2 is (sin x)^2.
            Token::Open('(' | '{') => return self.atom(),
            _ => {}
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

/// Whether a word joins the items of a list.
pub(super) fn joins(word: &str) -> bool {
    ["and", "or", "和", "或"].contains(&word.to_lowercase().as_str())
}

/// The product of `factors`, if there are any.
fn product_of(mut factors: Vec<Expr>) -> Option<Expr> {
    if factors.len() > 1 { Some(Expr::Product(factors)) } else { factors.pop() }
}

/// The variable that a word of one letter is.
fn variable(word: &str) -> Option<Expr> {
    let mut chars = word.chars();
    let letter = chars.next().filter(|c| c.is_alphabetic())?;
    (chars.next().is_none() && word != "π").then(|| match letter {
        'e' => Expr::E,
        letter => Expr::Variable(letter.into()),
    })
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
