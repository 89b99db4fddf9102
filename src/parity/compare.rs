//! One computed tensor against the expected one.

use super::bundle::{Expected, Stored};
use crate::checkpoint::Values as FileValues;
use crate::model::folder::coordinate;
use std::fmt;

/// Computed values.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Floats.
    F32(Vec<f32>),
    /// Whole numbers.
    I32(Vec<i32>),
    /// Grey levels.
    U8(Vec<u8>),
}

impl Values {
    /// The values as a file stores them.
    pub fn to_file(&self) -> FileValues<'_> {
        match self {
            Values::F32(v) => FileValues::F32(v),
            Values::I32(v) => FileValues::I32(v),
            Values::U8(v) => FileValues::U8(v),
        }
    }

    fn len(&self) -> usize {
        match self {
            Values::F32(v) => v.len(),
            Values::I32(v) => v.len(),
            Values::U8(v) => v.len(),
        }
    }

    /// Exact: every stored type fits.
    fn at(&self, i: usize) -> f64 {
        match self {
            Values::F32(v) => f64::from(v[i]),
            Values::I32(v) => f64::from(v[i]),
            Values::U8(v) => f64::from(v[i]),
        }
    }

    fn is_float(&self) -> bool {
        matches!(self, Values::F32(_))
    }
}

impl Stored {
    /// Number of values.
    pub(super) fn len(&self) -> usize {
        match self {
            Stored::Floats(v) => v.len(),
            Stored::Integers(v) => v.len(),
        }
    }

    /// Exact for floats and for whole numbers up to 2^53.
    pub(super) fn at(&self, i: usize) -> f64 {
        match self {
            Stored::Floats(v) => f64::from(v[i]),
            Stored::Integers(v) => v[i] as f64,
        }
    }

    /// The largest absolute value; NaN does not count.
    pub(super) fn largest(&self) -> f64 {
        (0..self.len()).map(|i| self.at(i).abs()).fold(0.0, f64::max)
    }
}

/// How far apart two tensors may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// No difference.
    Exact,
    /// The largest absolute difference.
    MaxAbs(f64),
    /// The Euclidean norm of the difference over that of the expected tensor.
    RelativeL2(f64),
    /// Grey levels of another decoder of a lossy format: at most [`LOSSY_LEVELS`] on [`LOSSY_SHARE`] of the bytes, never
    /// more than [`LOSSY_MOST`].
    LossyImage,
}

/// Difference of two decoders on nearly all bytes.
pub const LOSSY_LEVELS: f64 = 2.0;
/// "Nearly all".
pub const LOSSY_SHARE: f64 = 0.995;
/// Difference of two decoders on any byte.
pub const LOSSY_MOST: f64 = 16.0;

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Exact => write!(f, "exact"),
            Bound::MaxAbs(limit) => write!(f, "{limit:.1e}"),
            Bound::RelativeL2(limit) => write!(f, "l2 {limit}"),
            Bound::LossyImage => write!(f, "lossy"),
        }
    }
}

/// The distances of two tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Largest absolute difference; NaN if one is NaN.
    pub max_abs: f64,
    /// Euclidean norm of the difference over that of the expected tensor.
    pub relative_l2: f64,
    /// What was allowed.
    pub bound: Bound,
}

impl Measured {
    /// The error in units of what is allowed, above 1 for a failure; none for bounds without a scale.
    pub fn ratio(&self) -> Option<f64> {
        match self.bound {
            Bound::MaxAbs(limit) if limit > 0.0 => Some(self.max_abs / limit),
            Bound::RelativeL2(limit) => Some(self.relative_l2 / limit),
            _ => None,
        }
    }
}

/// What became of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Within its bound.
    Ok,
    /// An input of the reference that was used, so there is nothing to compare.
    Given,
    /// Not computed, and why.
    Skipped(&'static str),
    /// Beyond its bound, or not to be computed: where and why.
    Fail(String),
}

/// One line of the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The key.
    pub key: String,
    /// Expected shape.
    pub shape: Vec<usize>,
    /// Distances, where there are two tensors of one shape.
    pub measured: Option<Measured>,
    /// The judgement.
    pub verdict: Verdict,
}

impl Row {
    /// Whether the row makes the comparison fail.
    pub fn failed(&self) -> bool {
        matches!(self.verdict, Verdict::Fail(_))
    }
}

/// Compares; NaN or infinity on either side fails.
pub(super) fn compare(key: &str, expected: &Expected, shape: &[usize], values: &Values, bound: Bound) -> Row {
    let row =
        |measured, verdict| Row { key: key.to_owned(), shape: expected.shape.clone(), measured, verdict };
    let stored = &expected.values;
    if expected.shape != shape || stored.len() != values.len() {
        return row(None, Verdict::Fail(format!("computed shape {shape:?}")));
    }
    if values.is_float() != matches!(stored, Stored::Floats(_)) {
        let [computed, stored] =
            [values.is_float(), !values.is_float()].map(|f| if f { "floats" } else { "integers" });
        return row(None, Verdict::Fail(format!("computed {computed}, expected {stored}")));
    }
    // A limit that is a share of the largest value would then be infinite.
    if let Some(i) = (0..stored.len()).find(|&i| !stored.at(i).is_finite()) {
        let place = coordinate(i, shape);
        return row(
            None,
            Verdict::Fail(format!("expected {} at {place:?}, which nothing equals", shown(stored.at(i)))),
        );
    }
    let (mut max_abs, mut squares, mut norm) = (0.0_f64, 0.0, 0.0);
    let mut beyond = 0_usize;
    // The first element that is too far off by itself.
    let mut first = None;
    let largest_allowed = match bound {
        Bound::Exact => 0.0,
        Bound::MaxAbs(limit) => limit,
        Bound::RelativeL2(_) => f64::MAX,
        Bound::LossyImage => LOSSY_MOST,
    };
    for i in 0..values.len() {
        let (want, got) = (stored.at(i), values.at(i));
        let difference = (got - want).abs();
        max_abs = if difference.is_nan() || difference > max_abs { difference } else { max_abs };
        squares += difference * difference;
        norm += want * want;
        beyond += usize::from(difference > LOSSY_LEVELS);
        // Not `difference > largest_allowed`, which NaN would pass.
        let within = difference <= largest_allowed;
        if !within && first.is_none() {
            first = Some(i);
        }
        if difference.is_nan() {
            max_abs = f64::NAN;
            break;
        }
    }
    let relative_l2: f64 = if squares == 0.0 { 0.0 } else { (squares / norm).sqrt() };
    let at = |i: usize| {
        format!("at {:?}: {} instead of {}", coordinate(i, shape), shown(values.at(i)), shown(stored.at(i)))
    };
    let verdict = match (first, bound) {
        (Some(i), _) => Verdict::Fail(at(i)),
        (None, Bound::RelativeL2(limit)) if relative_l2 > limit => {
            let worst = (0..values.len()).find(|&i| (values.at(i) - stored.at(i)).abs() == max_abs);
            Verdict::Fail(format!("in all; furthest {}", worst.map_or_else(String::new, at)))
        }
        (None, Bound::LossyImage) if beyond as f64 > (1.0 - LOSSY_SHARE) * values.len() as f64 => {
            let share = 100.0 * beyond as f64 / values.len() as f64;
            let one = (0..values.len()).find(|&i| (values.at(i) - stored.at(i)).abs() > LOSSY_LEVELS);
            let place = one.map_or_else(String::new, at);
            Verdict::Fail(format!(
                "{share:.2} % of the bytes are more than {LOSSY_LEVELS} levels off; first {place}"
            ))
        }
        (None, _) => Verdict::Ok,
    };
    row(Some(Measured { max_abs, relative_l2, bound }), verdict)
}

/// A value with all digits that an f32 has; whole numbers as such.
fn shown(value: f64) -> String {
    let integer = value.fract() == 0.0 && value.abs() < 1e9;
    if integer { format!("{value}") } else { format!("{value:.7e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Expected {
        Expected { shape: vec![values.len()], values: Stored::Floats(values.to_vec()) }
    }

    fn judge(expected: &[f32], computed: &[f32], bound: Bound) -> (Option<Measured>, Verdict) {
        let row = compare("x", &floats(expected), &[computed.len()], &Values::F32(computed.to_vec()), bound);
        (row.measured, row.verdict)
    }

    fn failure(verdict: Verdict) -> String {
        let Verdict::Fail(message) = verdict else { panic!("{verdict:?}") };
        message
    }

    #[test]
    fn nothing_equals_infinity() {
        for bound in [Bound::Exact, Bound::MaxAbs(f64::INFINITY), Bound::RelativeL2(1.0)] {
            for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let (_, verdict) = judge(&[1.0, value], &[1.0, value], bound);
                assert!(
                    matches!(&verdict, Verdict::Fail(m) if m.contains("at [1], which nothing equals")),
                    "{verdict:?}"
                );
            }
        }
    }

    #[test]
    fn distances_by_hand() {
        let (measured, verdict) = judge(&[3.0, 4.0], &[3.0, 4.5], Bound::MaxAbs(1.0));
        assert_eq!(measured, Some(Measured { max_abs: 0.5, relative_l2: 0.1, bound: Bound::MaxAbs(1.0) }));
        assert_eq!((measured.and_then(|m| m.ratio()), verdict), (Some(0.5), Verdict::Ok));
        // Exactly at the limit is within it; nothing is within a limit of 0 but equality.
        assert_eq!(judge(&[1.0], &[1.5], Bound::MaxAbs(0.5)).1, Verdict::Ok);
        assert_eq!(judge(&[0.0], &[-0.0], Bound::MaxAbs(0.0)).1, Verdict::Ok);
        assert_eq!(judge(&[], &[], Bound::MaxAbs(0.0)).1, Verdict::Ok);
    }

    #[test]
    fn the_first_bad_coordinate_is_told() {
        let expected = Expected { shape: vec![2, 3], values: Stored::Integers(vec![0, 1, 2, 3, 4, 5]) };
        let row = compare("x", &expected, &[2, 3], &Values::I32(vec![0, 1, 2, 3, 9, 8]), Bound::Exact);
        assert_eq!(failure(row.verdict), "at [1, 1]: 9 instead of 4");
        let message = failure(judge(&[1.0, 0.5], &[1.0, 0.25 + 1e-3], Bound::MaxAbs(1e-3)).1);
        assert_eq!(message, "at [1]: 2.5099999e-1 instead of 5.0000000e-1");
    }

    #[test]
    fn nan_fails_under_every_bound() {
        for bound in [Bound::Exact, Bound::MaxAbs(1e9), Bound::RelativeL2(1e9), Bound::LossyImage] {
            assert!(failure(judge(&[1.0, 2.0], &[1.0, f32::NAN], bound).1).starts_with("at [1]: NaN"));
            assert!(failure(judge(&[f32::NAN], &[f32::NAN], bound).1).starts_with("expected NaN at [0]"));
        }
    }

    #[test]
    fn shape_and_kind_are_part_of_the_value() {
        assert_eq!(failure(judge(&[1.0, 2.0], &[1.0], Bound::MaxAbs(1.0)).1), "computed shape [1]");
        let row = compare("x", &floats(&[1.0]), &[1], &Values::I32(vec![1]), Bound::Exact);
        assert_eq!(failure(row.verdict), "computed integers, expected floats");
    }

    #[test]
    fn relative_norm_of_a_zero_tensor() {
        assert_eq!(judge(&[0.0], &[0.0], Bound::RelativeL2(0.1)).1, Verdict::Ok);
        assert!(failure(judge(&[0.0, 0.0], &[0.0, 1e-9], Bound::RelativeL2(0.1)).1).contains("at [1]"));
    }

    #[test]
    fn lossy_images_may_differ_a_little() {
        let judge = |differences: &[(usize, u8)]| {
            let expected = Expected { shape: vec![1000], values: Stored::Integers(vec![100; 1000]) };
            let mut bytes = vec![100_u8; 1000];
            differences.iter().for_each(|&(at, by)| bytes[at] += by);
            compare("x", &expected, &[1000], &Values::U8(bytes), Bound::LossyImage).verdict
        };
        let few: Vec<_> = (0..5).map(|i| (i * 7, 16)).collect();
        assert_eq!(judge(&few), Verdict::Ok);
        assert!(failure(judge(&[(3, 17)])).contains("at [3]: 117 instead of 100"));
        let many: Vec<_> = (0..6).map(|i| (i, 3)).collect();
        assert!(failure(judge(&many)).starts_with("0.60 % of the bytes"));
        let all: Vec<_> = (0..1000).map(|i| (i, 2)).collect();
        assert_eq!(judge(&all), Verdict::Ok);
    }
}
