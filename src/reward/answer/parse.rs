//! From lexemes to an answer: recursive descent of bounded depth.

mod term;

use super::expr::{Answer, Brackets, Expr, Quantity};
use super::token::{Lexeme, Relation, Token, joins};
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
