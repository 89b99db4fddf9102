//! The value of an expression: an exact fraction as long as it is one, otherwise a number in double precision with a bound of
//! its error. So irrational numbers are told apart to some 14 digits.

use super::expr::{Expr, Function};
use super::rational::{MAX_BITS, Rational};

/// The largest exponent, and the largest index of a root.
const MAX_EXPONENT: i64 = 10_000;

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Division by zero, the logarithm of nothing.
    Undefined,
    /// A number or a computation past the limits.
    TooLarge,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Exact(Rational),
    /// A number, and how far it may be off.
    Near(f64, f64),
    /// Positive or negative infinity.
    Infinite {
        is_negative: bool,
    },
}

impl Value {
    /// As a double with its error; infinities as they are.
    pub(super) fn near(&self) -> (f64, f64) {
        match self {
            Value::Exact(value) => {
                let value = value.to_f64();
                (value, value.abs() * f64::EPSILON)
            }
            Value::Near(value, error) => (*value, *error),
            Value::Infinite { is_negative } => {
                (if *is_negative { f64::NEG_INFINITY } else { f64::INFINITY }, 0.0)
            }
        }
    }
}

/// What may still be computed: steps, one for an operation on short numbers, more on long ones.
pub(super) struct Fuel(u64);

impl Fuel {
    /// Enough for any answer that a person would write; some 10 milliseconds.
    pub(super) fn full() -> Self {
        Fuel(100_000)
    }

    pub(super) fn burn(&mut self, steps: u64) -> Result<(), Failure> {
        self.0 = self.0.checked_sub(steps).ok_or(Failure::TooLarge)?;
        Ok(())
    }

    /// For one operation on numbers of so many bits: Euclid's algorithm takes most of it.
    fn burn_bits(&mut self, bits: u64) -> Result<(), Failure> {
        let words = bits / 64;
        self.burn(bits / 2 * (16 + words) / 16)
    }
}

/// The value of `expr` where the variables have the values of `point`.
pub(super) fn evaluate(expr: &Expr, point: &[(&str, Rational)], fuel: &mut Fuel) -> Result<Value, Failure> {
    Evaluator { point, fuel }.value(expr)
}

struct Evaluator<'a> {
    point: &'a [(&'a str, Rational)],
    fuel: &'a mut Fuel,
}

impl Evaluator<'_> {
    fn value(&mut self, expr: &Expr) -> Result<Value, Failure> {
        self.fuel.burn(1)?;
        match expr {
            Expr::Number(value) => Ok(Value::Exact(value.clone())),
            Expr::Pi => near(std::f64::consts::PI, f64::EPSILON * 4.0),
            Expr::E => near(std::f64::consts::E, f64::EPSILON * 4.0),
            Expr::Infinity => Ok(Value::Infinite { is_negative: false }),
            Expr::Variable(name) => {
                let found = self.point.iter().find(|(known, _)| known == name);
                found.map(|(_, value)| Value::Exact(value.clone())).ok_or(Failure::Undefined)
            }
            Expr::Sum(terms) => {
                let mut sum = Value::Exact(Rational::integer(0));
                for term in terms {
                    let term = self.value(term)?;
                    sum = self.add(&sum, &term)?;
                }
                Ok(sum)
            }
            Expr::Product(factors) => {
                let mut product = Value::Exact(Rational::integer(1));
                for factor in factors {
                    let factor = self.value(factor)?;
                    product = self.mul(&product, &factor)?;
                }
                Ok(product)
            }
            Expr::Negative(inner) => Ok(match self.value(inner)? {
                Value::Exact(value) => Value::Exact(value.neg()),
                Value::Near(value, error) => Value::Near(-value, error),
                Value::Infinite { is_negative } => Value::Infinite { is_negative: !is_negative },
            }),
            Expr::Quotient(a, b) => {
                let (a, b) = (self.value(a)?, self.value(b)?);
                self.div(&a, &b)
            }
            Expr::Power(base, exponent) => {
                let (base, exponent) = (self.value(base)?, self.value(exponent)?);
                self.pow(&base, &exponent)
            }
            Expr::Root(index, inner) => {
                let Value::Exact(index) = self.value(index)? else { return Err(Failure::Undefined) };
                let index =
                    index.to_i64().filter(|n| (1..=MAX_EXPONENT).contains(n)).ok_or(Failure::TooLarge)?;
                let inner = self.value(inner)?;
                self.root(&inner, index as u32)
            }
            Expr::Log(base, inner) => {
                let (base, inner) = (self.value(base)?, self.value(inner)?);
                self.log(&base, &inner)
            }
            Expr::Call(function, inner) => {
                let angle = matches!(
                    function,
                    Function::Sin
                        | Function::Cos
                        | Function::Tan
                        | Function::Cot
                        | Function::Sec
                        | Function::Csc
                ) && in_degrees(inner);
                let value = self.value(inner)?;
                self.call(*function, &value, angle)
            }
            Expr::Factorial(inner) => {
                let Value::Exact(value) = self.value(inner)? else { return Err(Failure::Undefined) };
                let n = value.to_i64().filter(|n| *n >= 0).ok_or(Failure::Undefined)?;
                let mut product = Rational::integer(1);
                for factor in 2..=n {
                    self.fuel.burn(1 + product.bits() / 8)?;
                    product = product.mul(&Rational::integer(factor)).ok_or(Failure::TooLarge)?;
                }
                Ok(Value::Exact(product))
            }
            Expr::Absolute(inner) => Ok(match self.value(inner)? {
                Value::Exact(value) => Value::Exact(value.abs()),
                Value::Near(value, error) => Value::Near(value.abs(), error),
                Value::Infinite { .. } => Value::Infinite { is_negative: false },
            }),
            Expr::Degrees(inner) => self.value(inner),
        }
    }

    fn add(&mut self, a: &Value, b: &Value) -> Result<Value, Failure> {
        if let (Value::Exact(a), Value::Exact(b)) = (a, b) {
            self.fuel.burn_bits(a.bits() + b.bits())?;
            return a.add(b).map(Value::Exact).ok_or(Failure::TooLarge);
        }
        let ((a, da), (b, db)) = (finite(a)?, finite(b)?);
        near(a + b, da + db + rounding(a + b))
    }

    fn mul(&mut self, a: &Value, b: &Value) -> Result<Value, Failure> {
        if let (Value::Exact(a), Value::Exact(b)) = (a, b) {
            self.fuel.burn_bits(a.bits() + b.bits())?;
            return a.mul(b).map(Value::Exact).ok_or(Failure::TooLarge);
        }
        let ((a, da), (b, db)) = (finite(a)?, finite(b)?);
        near(a * b, a.abs() * db + b.abs() * da + rounding(a * b))
    }

    fn div(&mut self, a: &Value, b: &Value) -> Result<Value, Failure> {
        if let (Value::Exact(a), Value::Exact(b)) = (a, b) {
            if b.is_zero() {
                return Err(Failure::Undefined);
            }
            self.fuel.burn_bits(a.bits() + b.bits())?;
            return a.div(b).map(Value::Exact).ok_or(Failure::TooLarge);
        }
        let ((a, da), (b, db)) = (finite(a)?, finite(b)?);
        // Not to be told from zero.
        if b.abs() <= 2.0 * db {
            return Err(Failure::Undefined);
        }
        let quotient = a / b;
        near(quotient, (da + quotient.abs() * db) / b.abs() + rounding(quotient))
    }

    fn pow(&mut self, base: &Value, exponent: &Value) -> Result<Value, Failure> {
        if let (Value::Exact(base), Value::Exact(exponent)) = (base, exponent) {
            let (num, den) = exponent.parts().ok_or(Failure::TooLarge)?;
            if num.abs() > MAX_EXPONENT || den > MAX_EXPONENT {
                return Err(Failure::TooLarge);
            }
            if base.is_zero() && num <= 0 {
                return Err(Failure::Undefined);
            }
            if den == 1 {
                self.fuel.burn((base.bits().saturating_mul(num.unsigned_abs())).min(MAX_BITS))?;
                return base.pow(num).map(Value::Exact).ok_or(Failure::TooLarge);
            }
            if base.is_negative() {
                return Err(Failure::Undefined);
            }
            self.fuel.burn_bits(base.bits().saturating_mul(2))?;
            if let Some(root) = base.root(den as u32) {
                return root.pow(num).map(Value::Exact).ok_or(Failure::TooLarge);
            }
        }
        let ((base, db), (exponent, de)) = (finite(base)?, finite(exponent)?);
        if base < 0.0
            && exponent.fract() == 0.0
            && de <= rounding(exponent)
            && exponent.abs() <= MAX_EXPONENT as f64
        {
            return self.wavering(base, db, |x| x.powi(exponent as i32));
        }
        if base <= 0.0 {
            return Err(Failure::Undefined);
        }
        let Value::Near(value, error) = self.wavering(base, db, |x| x.powf(exponent))? else {
            return Err(Failure::Undefined);
        };
        near(value, error + (value * base.ln() * de).abs())
    }

    fn root(&mut self, value: &Value, n: u32) -> Result<Value, Failure> {
        if let Value::Exact(value) = value {
            self.fuel.burn_bits(value.bits().saturating_mul(2))?;
            if value.is_negative() && n.is_multiple_of(2) {
                return Err(Failure::Undefined);
            }
            if let Some(root) = value.root(n) {
                return Ok(Value::Exact(root));
            }
        }
        let (value, error) = finite(value)?;
        let sign = if value < 0.0 && n % 2 == 1 { -1.0 } else { 1.0 };
        if value * sign < 0.0 {
            return Err(Failure::Undefined);
        }
        self.wavering(value, error, |x| sign * (x * sign).max(0.0).powf(1.0 / f64::from(n)))
    }

    fn log(&mut self, base: &Value, value: &Value) -> Result<Value, Failure> {
        // An exact logarithm, if it is a small integer.
        if let (Value::Exact(base), Value::Exact(value)) = (base, value) {
            let exponent = (value.to_f64().ln() / base.to_f64().ln()).round();
            if exponent.abs() <= 1000.0 && !base.is_zero() {
                self.fuel.burn_bits(value.bits().saturating_mul(2))?;
                if base.pow(exponent as i64).as_ref() == Some(value) {
                    return Ok(Value::Exact(Rational::integer(exponent as i64)));
                }
            }
        }
        let ((base, db), (value, dv)) = (finite(base)?, finite(value)?);
        if base <= 0.0 || value <= 0.0 {
            return Err(Failure::Undefined);
        }
        let above = self.wavering(value, dv, f64::ln)?;
        let below = self.wavering(base, db, f64::ln)?;
        self.div(&above, &below)
    }

    fn call(&mut self, function: Function, value: &Value, in_degrees: bool) -> Result<Value, Failure> {
        let (mut value, mut error) = finite(value)?;
        if in_degrees {
            (value, error) = (value.to_radians(), error.to_radians() + rounding(value.to_radians()));
        }
        let one = Value::Exact(Rational::integer(1));
        match function {
            Function::Sin => self.wavering(value, error, f64::sin),
            Function::Cos => self.wavering(value, error, f64::cos),
            Function::Tan | Function::Cot => {
                let (sin, cos) =
                    (self.wavering(value, error, f64::sin)?, self.wavering(value, error, f64::cos)?);
                if function == Function::Tan { self.div(&sin, &cos) } else { self.div(&cos, &sin) }
            }
            Function::Sec => {
                let cos = self.wavering(value, error, f64::cos)?;
                self.div(&one, &cos)
            }
            Function::Csc => {
                let sin = self.wavering(value, error, f64::sin)?;
                self.div(&one, &sin)
            }
            Function::Arcsin | Function::Arccos if value.abs() > 1.0 => Err(Failure::Undefined),
            Function::Arcsin => self.wavering(value, error, |x| x.clamp(-1.0, 1.0).asin()),
            Function::Arccos => self.wavering(value, error, |x| x.clamp(-1.0, 1.0).acos()),
            Function::Arctan => self.wavering(value, error, f64::atan),
            Function::Ln if value <= 0.0 => Err(Failure::Undefined),
            Function::Ln => self.wavering(value, error, f64::ln),
            Function::Exp => self.wavering(value, error, f64::exp),
        }
    }

    /// `function` of a number that may be off by `error`.
    fn wavering(&mut self, value: f64, error: f64, function: impl Fn(f64) -> f64) -> Result<Value, Failure> {
        let result = function(value);
        let off = (function(value + error) - result).abs().max((function(value - error) - result).abs());
        // At an extremum both ends are alike: the second order is below the rounding.
        near(result, off + rounding(result) + error * f64::EPSILON)
    }
}

/// Whether an angle is given in degrees: some part of it is, outside other functions.
fn in_degrees(expr: &Expr) -> bool {
    match expr {
        Expr::Degrees(_) => true,
        Expr::Sum(_) | Expr::Product(_) | Expr::Negative(_) | Expr::Quotient(..) => {
            expr.parts().into_iter().any(in_degrees)
        }
        _ => false,
    }
}

fn rounding(value: f64) -> f64 {
    value.abs() * (4.0 * f64::EPSILON)
}

fn near(value: f64, error: f64) -> Result<Value, Failure> {
    if value.is_finite() && error.is_finite() {
        Ok(Value::Near(value, error))
    } else {
        Err(Failure::TooLarge)
    }
}

fn finite(value: &Value) -> Result<(f64, f64), Failure> {
    match value {
        Value::Infinite { .. } => Err(Failure::Undefined),
        Value::Exact(exact) if exact.is_zero() => Ok((0.0, 0.0)),
        value => {
            let (value, error) = value.near();
            if value.is_finite() && error.is_finite() { Ok((value, error)) } else { Err(Failure::TooLarge) }
        }
    }
}
