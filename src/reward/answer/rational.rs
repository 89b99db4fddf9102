//! Exact fractions of bounded size.

use num_bigint::BigInt;
use num_traits::{One, Signed, ToPrimitive, Zero};

/// The most bits that a numerator or denominator may have: some 1200 digits.
pub(super) const MAX_BITS: u64 = 4096;

/// An exact fraction in lowest terms, the denominator positive, neither longer than [`MAX_BITS`].
///
/// Every operation gives `None` where the result would be longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rational {
    num: BigInt,
    den: BigInt,
}

impl Rational {
    /// `num / den`; `None` if `den` is zero, too.
    pub(super) fn new(num: BigInt, den: BigInt) -> Option<Self> {
        if den.is_zero() || num.bits() > 2 * MAX_BITS || den.bits() > 2 * MAX_BITS {
            return None;
        }
        let divisor = if den.is_one() { BigInt::one() } else { gcd(num.abs(), den.abs()) };
        let divisor = if den.is_negative() { -divisor } else { divisor };
        let (num, den) = (num / &divisor, den / divisor);
        (num.bits() <= MAX_BITS && den.bits() <= MAX_BITS).then_some(Rational { num, den })
    }

    pub(super) fn integer(value: i64) -> Self {
        Rational { num: value.into(), den: BigInt::one() }
    }

    /// `digits * 10^exponent`; `digits` are ASCII digits, not all of them needed.
    pub(super) fn decimal(digits: &str, exponent: i64) -> Option<Self> {
        let digits = digits.trim_start_matches('0');
        let (digits, exponent) = match digits.trim_end_matches('0') {
            "" => return Some(Rational::integer(0)),
            short => (short, exponent.checked_add((digits.len() - short.len()) as i64)?),
        };
        // Ten has more than three bits.
        let limit = MAX_BITS as i64 / 3;
        if digits.len() as i64 > limit || exponent.abs() > limit {
            return None;
        }
        let num: BigInt = digits.parse().ok()?;
        let power = BigInt::from(10).pow(exponent.unsigned_abs() as u32);
        if exponent < 0 { Rational::new(num, power) } else { Rational::new(num * power, BigInt::one()) }
    }

    pub(super) fn add(&self, other: &Self) -> Option<Self> {
        Rational::new(&self.num * &other.den + &other.num * &self.den, &self.den * &other.den)
    }

    pub(super) fn mul(&self, other: &Self) -> Option<Self> {
        Rational::new(&self.num * &other.num, &self.den * &other.den)
    }

    /// `None` if `other` is zero, too.
    pub(super) fn div(&self, other: &Self) -> Option<Self> {
        Rational::new(&self.num * &other.den, &self.den * &other.num)
    }

    pub(super) fn neg(&self) -> Self {
        Rational { num: -&self.num, den: self.den.clone() }
    }

    pub(super) fn abs(&self) -> Self {
        Rational { num: self.num.abs(), den: self.den.clone() }
    }

    /// `None` for a negative power of zero, too.
    pub(super) fn pow(&self, exponent: i64) -> Option<Self> {
        let size = u32::try_from(exponent.unsigned_abs()).ok()?;
        // A power of 0, 1 or -1 does not grow.
        if self.bits() > 1 && (self.bits() - 1).checked_mul(u64::from(size))? > MAX_BITS {
            return None;
        }
        if size > 1 << 20 {
            return None;
        }
        let (num, den) = (self.num.pow(size), self.den.pow(size));
        if exponent < 0 { Rational::new(den, num) } else { Rational::new(num, den) }
    }

    /// The exact `n`-th root, the one of the number's own sign; `None` if there is none among the fractions.
    pub(super) fn root(&self, n: u32) -> Option<Self> {
        if n == 0 || (self.is_negative() && n.is_multiple_of(2)) {
            return None;
        }
        let (num, den) = (self.num.nth_root(n), self.den.nth_root(n));
        let root = Rational { num, den };
        (root.pow(i64::from(n))? == *self).then_some(root)
    }

    /// The nearest multiple of `10^-places`, halves away from zero.
    pub(super) fn round(&self, places: u32) -> Option<Self> {
        let scale = BigInt::from(10).pow(places);
        let doubled = self.num.abs() * &scale * 2 + &self.den;
        let rounded: BigInt = doubled / (&self.den * 2);
        let rounded = if self.num.is_negative() { -rounded } else { rounded };
        Rational::new(rounded, scale)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.num.is_zero()
    }

    pub(super) fn is_negative(&self) -> bool {
        self.num.is_negative()
    }

    pub(super) fn is_integer(&self) -> bool {
        self.den.is_one()
    }

    /// The value, if it is an integer that an `i64` holds.
    pub(super) fn to_i64(&self) -> Option<i64> {
        self.is_integer().then(|| self.num.to_i64()).flatten()
    }

    /// Numerator and denominator, if an `i64` holds each.
    pub(super) fn parts(&self) -> Option<(i64, i64)> {
        Some((self.num.to_i64()?, self.den.to_i64()?))
    }

    pub(super) fn to_f64(&self) -> f64 {
        // So that neither is infinite; what is cut off is far below the quotient's last bit, or the quotient is.
        let shift = self.bits().saturating_sub(1000);
        let (num, den) = (&self.num >> shift, &self.den >> shift);
        num.to_f64().unwrap_or(f64::NAN) / den.to_f64().unwrap_or(f64::NAN)
    }

    /// The bits of the longer part.
    pub(super) fn bits(&self) -> u64 {
        self.num.bits().max(self.den.bits())
    }

    /// As a decimal, if it has at most `places` places.
    pub(super) fn to_decimal(&self, places: u32) -> Option<String> {
        let shown = (0..=places).find_map(|n| {
            let scaled = self.mul(&Rational::decimal("1", i64::from(n))?)?;
            scaled.is_integer().then_some((scaled.num, n as usize))
        });
        let (scaled, places) = shown?;
        let digits = format!("{:0>width$}", scaled.abs().to_string(), width = places + 1);
        let (whole, part) = digits.split_at(digits.len() - places);
        let sign = if scaled.is_negative() { "-" } else { "" };
        Some(if part.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") })
    }
}

impl std::fmt::Display for Rational {
    /// `3` or `-3/4`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_integer() { write!(f, "{}", self.num) } else { write!(f, "{}/{}", self.num, self.den) }
    }
}

fn gcd(mut a: BigInt, mut b: BigInt) -> BigInt {
    while !b.is_zero() {
        (a, b) = (b.clone(), a % b);
    }
    a
}
