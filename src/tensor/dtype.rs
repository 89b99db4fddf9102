//! Element types: what is stored and what arithmetic runs in.

use super::storage::Storage;
use half::bf16;
use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// Storage type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE double precision; CPU only, for gradient checks.
    F64,
    /// bfloat16: arithmetic runs in f32, results are rounded to nearest even when stored.
    Bf16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::Bf16 => 2,
        }
    }

    /// torch's name without the prefix.
    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::F64 => "float64",
            DType::Bf16 => "bfloat16",
        }
    }
}

/// A type that CPU arithmetic runs in: f32, or f64 for gradient checks.
pub trait Real:
    Copy
    + Debug
    + Default
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// Rounds from f64.
    fn of(x: f64) -> Self;
    /// Widens to f64 (exact).
    fn f64(self) -> f64;
    /// `self * a + b` with one rounding.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Exponential; f32 uses a polynomial that vectorises (error below 2 units in the last place).
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The error function (see [`erf`]).
    fn erf(self) -> Self;
    /// The larger of two numbers; NaN is passed on.
    fn larger(self, other: Self) -> Self;
    /// Host storage of these elements, without a copy.
    fn store(data: Vec<Self>) -> Storage;
    /// The elements of a storage of exactly this type.
    fn view(storage: &Storage) -> Option<&[Self]>;
    /// The same, for a sole owner to write.
    fn view_mut(storage: &mut Storage) -> Option<&mut [Self]>;
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn mul_add(self, a: f32, b: f32) -> f32 {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn exp(self) -> f32 {
        exp_f32(self)
    }
    fn ln(self) -> f32 {
        f64::from(self).ln() as f32
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    fn erf(self) -> f32 {
        erf(f64::from(self)) as f32
    }
    #[inline(always)]
    fn larger(self, other: f32) -> f32 {
        if other > self || other.is_nan() { other } else { self }
    }
    fn store(data: Vec<f32>) -> Storage {
        Storage::F32(data)
    }
    fn view(storage: &Storage) -> Option<&[f32]> {
        if let Storage::F32(x) = storage { Some(x) } else { None }
    }
    fn view_mut(storage: &mut Storage) -> Option<&mut [f32]> {
        if let Storage::F32(x) = storage { Some(x) } else { None }
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;
    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn mul_add(self, a: f64, b: f64) -> f64 {
        f64::mul_add(self, a, b)
    }
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    fn erf(self) -> f64 {
        erf(self)
    }
    #[inline(always)]
    fn larger(self, other: f64) -> f64 {
        if other > self || other.is_nan() { other } else { self }
    }
    fn store(data: Vec<f64>) -> Storage {
        Storage::F64(data)
    }
    fn view(storage: &Storage) -> Option<&[f64]> {
        if let Storage::F64(x) = storage { Some(x) } else { None }
    }
    fn view_mut(storage: &mut Storage) -> Option<&mut [f64]> {
        if let Storage::F64(x) = storage { Some(x) } else { None }
    }
}

/// e^x in f32: x = n ln 2 + r with |r| <= ln 2 / 2, the Taylor polynomial of degree 7 in r, and an exact scaling by 2^n.
///
/// No table and no branch on the data, so loops over it vectorise and every lane computes the same bits as
/// a scalar call. Arguments below -87.3 give exactly 0 (no subnormal results), above 88.7 infinity.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.5, 88.75);
    let n = clamped.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN2_HI, clamped);
    let r = n.mul_add(-LN2_LO, r);
    let mut p = 1.984_127e-4_f32;
    p = p.mul_add(r, 1.388_888_9e-3);
    p = p.mul_add(r, 8.333_334e-3);
    p = p.mul_add(r, 4.166_666_6e-2);
    p = p.mul_add(r, 1.666_666_7e-1);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    // Two factors, because 2^128 is not an f32 while the product may still be finite.
    let half = (n as i32) >> 1;
    let rest = n as i32 - half;
    let y = p * f32::from_bits(((half + 127) << 23) as u32) * f32::from_bits(((rest + 127) << 23) as u32);
    let y = if x < -87.3 { 0.0 } else { y };
    let y = if x > 88.722_83 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// The error function in f64, absolute error below 1.2e-15.
///
/// |x| < 2.5: the Maclaurin series erf x = 2/sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!, all terms of
/// one sign, so nothing cancels. Beyond: 1 - erfc with Lentz's continued fraction (Abramowitz and Stegun 7.1.14).
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a.is_nan() {
        return x;
    } else if a < 2.5 {
        let mut term = a;
        let mut sum = a;
        let mut n = 0.0;
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp() * sum
    } else if a < 6.0 {
        // erfc x = e^(-x^2)/sqrt(pi) * 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ...)))), evaluated from the tail.
        let mut tail = a;
        for k in (1..=60).rev() {
            tail = a + f64::from(k) / 2.0 / tail;
        }
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / tail
    } else {
        1.0
    };
    value.copysign(x)
}

/// Rounds to bf16 (nearest even) and widens again: the rounding point of a bf16 store.
pub fn round_bf16(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst: f64 = 0.0;
        for i in -8_700_000..8_870_000 {
            if i % 13 != 0 {
                continue;
            }
            let x = i as f32 * 1e-5;
            let exact = f64::from(x).exp();
            let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
            worst = worst.max((f64::from(Real::exp(x)) - exact).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} units in the last place");
    }

    #[test]
    fn exp_edges() {
        assert_eq!(Real::exp(0.0_f32), 1.0);
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Real::exp(-90.0_f32), 0.0);
        assert!(Real::exp(f32::NAN).is_nan());
    }

    /// Abramowitz and Stegun, table 7.1, and 1 - erfc values from the same source.
    #[test]
    fn erf_table() {
        for (x, y) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.5, 0.999_593_047_982_555),
            (3.0, 0.999_977_909_503_001_4),
            (-1.0, -0.842_700_792_949_714_9),
        ] {
            assert!((erf(x) - y).abs() < 2e-15, "erf({x}) = {} instead of {y}", erf(x));
        }
    }
}
