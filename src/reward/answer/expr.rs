//! What a parsed answer is.

use std::fmt::{self, Display, Formatter};

use super::rational::Rational;
use super::token::Relation;
use super::unit::Unit;

/// A real number, or one that depends on variables.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Number(Rational),
    Pi,
    E,
    Infinity,
    Variable(String),
    Sum(Vec<Expr>),
    Product(Vec<Expr>),
    Negative(Box<Expr>),
    /// Numerator, denominator.
    Quotient(Box<Expr>, Box<Expr>),
    /// Base, exponent.
    Power(Box<Expr>, Box<Expr>),
    /// The index and what stands under the root.
    Root(Box<Expr>, Box<Expr>),
    /// A logarithm to a base.
    Log(Box<Expr>, Box<Expr>),
    Call(Function, Box<Expr>),
    Factorial(Box<Expr>),
    Absolute(Box<Expr>),
    /// A number of degrees: `x * pi / 180` where an angle is expected, `x` elsewhere.
    Degrees(Box<Expr>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Ln,
    Exp,
}

/// Functions of one argument by their names.
pub(super) const FUNCTIONS: [(&str, Function); 12] = [
    ("sin", Function::Sin),
    ("cos", Function::Cos),
    ("tan", Function::Tan),
    ("tg", Function::Tan),
    ("cot", Function::Cot),
    ("sec", Function::Sec),
    ("csc", Function::Csc),
    ("arcsin", Function::Arcsin),
    ("arccos", Function::Arccos),
    ("arctan", Function::Arctan),
    ("ln", Function::Ln),
    ("exp", Function::Exp),
];

/// An expression with its unit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Quantity {
    pub(super) expr: Expr,
    pub(super) unit: Unit,
    /// Some number in it is written with a decimal point, so perhaps rounded.
    pub(super) is_decimal: bool,
}

/// What holds items together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brackets {
    /// `1, 2` or `1 and 2`.
    None,
    /// `{1, 2}`.
    Set,
    /// A tuple, list or interval, by its brackets: `(` or `[`, `)` or `]`.
    Ordered(char, char),
}

/// A parsed answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Quantity(Quantity),
    Items(Brackets, Vec<Answer>),
    Union(Vec<Answer>),
    /// `x = 5`, `∠A = 30°`, `f(x) = 2x`: a name, the variable if it is one, and the value.
    Named {
        name: String,
        variable: Option<Expr>,
        value: Box<Answer>,
    },
    /// `a < b <= c`: the first side, then each relation with the side behind it.
    Statement(Quantity, Vec<(Relation, Quantity)>),
}

impl Expr {
    /// The parts, for walks over the whole.
    pub(super) fn parts(&self) -> Vec<&Expr> {
        match self {
            Expr::Number(_) | Expr::Pi | Expr::E | Expr::Infinity | Expr::Variable(_) => Vec::new(),
            Expr::Sum(parts) | Expr::Product(parts) => parts.iter().collect(),
            Expr::Quotient(a, b) | Expr::Power(a, b) | Expr::Root(a, b) | Expr::Log(a, b) => vec![a, b],
            Expr::Negative(a)
            | Expr::Call(_, a)
            | Expr::Factorial(a)
            | Expr::Absolute(a)
            | Expr::Degrees(a) => {
                vec![a]
            }
        }
    }

    /// Adds the names of the variables to `names`, each once.
    pub(super) fn variables(&self, names: &mut Vec<String>) {
        if let Expr::Variable(name) = self
            && !names.contains(name)
        {
            names.push(name.clone());
        }
        self.parts().into_iter().for_each(|part| part.variables(names));
    }

    /// How tightly it holds together: 0 a sum, 1 a product, 2 a sign, 3 a power, 4 a whole.
    fn strength(&self) -> u8 {
        match self {
            Expr::Sum(_) => 0,
            Expr::Product(_) | Expr::Quotient(..) => 1,
            Expr::Negative(_) => 2,
            Expr::Number(value) if value.is_negative() => 2,
            Expr::Number(value) if !value.is_integer() => 1,
            Expr::Power(..) => 3,
            _ => 4,
        }
    }

    /// In brackets, unless it holds together as tightly as `strength`.
    fn within(&self, strength: u8, f: &mut Formatter<'_>) -> fmt::Result {
        if self.strength() < strength { write!(f, "({self})") } else { write!(f, "{self}") }
    }
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Number(value) => write!(f, "{value}"),
            Expr::Pi => write!(f, "π"),
            Expr::E => write!(f, "e"),
            Expr::Infinity => write!(f, "∞"),
            Expr::Variable(name) => write!(f, "{name}"),
            Expr::Sum(terms) => {
                for (i, term) in terms.iter().enumerate() {
                    match term {
                        Expr::Negative(inner) if i > 0 => {
                            write!(f, " - ")?;
                            inner.within(1, f)?;
                        }
                        Expr::Number(value) if i > 0 && value.is_negative() => {
                            write!(f, " - {}", value.abs())?
                        }
                        _ => {
                            write!(f, "{}", if i > 0 { " + " } else { "" })?;
                            term.within(1, f)?;
                        }
                    }
                }
                Ok(())
            }
            Expr::Product(factors) => {
                for (i, factor) in factors.iter().enumerate() {
                    write!(f, "{}", if i > 0 { "*" } else { "" })?;
                    factor.within(if i > 0 { 3 } else { 2 }, f)?;
                }
                Ok(())
            }
            Expr::Negative(inner) => {
                write!(f, "-")?;
                inner.within(1, f)
            }
            Expr::Quotient(a, b) => {
                a.within(1, f)?;
                write!(f, "/")?;
                b.within(3, f)
            }
            Expr::Power(a, b) => {
                a.within(4, f)?;
                write!(f, "^")?;
                b.within(4, f)
            }
            Expr::Root(index, inner) => match **index {
                Expr::Number(ref n) if n.to_i64() == Some(2) => write!(f, "√({inner})"),
                _ => write!(f, "root({index}, {inner})"),
            },
            Expr::Log(base, inner) => write!(f, "log({base}, {inner})"),
            Expr::Call(function, inner) => {
                let name = FUNCTIONS.iter().find(|(_, known)| known == function).map_or("", |(name, _)| name);
                write!(f, "{name}({inner})")
            }
            Expr::Factorial(inner) => {
                inner.within(4, f)?;
                write!(f, "!")
            }
            Expr::Absolute(inner) => write!(f, "|{inner}|"),
            Expr::Degrees(inner) => {
                inner.within(4, f)?;
                write!(f, "°")
            }
        }
    }
}
