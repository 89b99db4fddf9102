//! Range checks of option values: each names the option, the value that came and the range allowed.

use crate::error::Error;

/// An option whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The option without dashes, as in a config file (`learning_rate`).
    pub option: &'static str,
    /// What came, what is allowed and why, after the option's name.
    pub message: String,
}

impl Violation {
    /// A violation of `option`; `message` continues the sentence that starts with the option's name.
    pub fn new(option: &'static str, message: impl Into<String>) -> Self {
        Violation { option, message: message.into() }
    }
}

impl From<Violation> for Error {
    fn from(violation: Violation) -> Self {
        Error::Usage(format!("--{} {}", violation.option, violation.message))
    }
}

/// Outcome of a check.
pub type Checked = Result<(), Violation>;

fn require(ok: bool, option: &'static str, value: impl std::fmt::Display, allowed: &str) -> Checked {
    if ok { Ok(()) } else { Err(Violation::new(option, format!("is {value}, but must be {allowed}"))) }
}

/// Finite and `>= 0`.
pub fn non_negative(option: &'static str, value: f64) -> Checked {
    require(value.is_finite() && value >= 0.0, option, value, "a finite number of at least 0")
}

/// Finite and `> 0`.
pub fn positive(option: &'static str, value: f64) -> Checked {
    require(value.is_finite() && value > 0.0, option, value, "a finite number above 0")
}

/// Above 0, and so in f32, in which the model computes.
pub fn positive_f32(option: &'static str, value: f64) -> Checked {
    let ok = value > 0.0 && (value as f32).is_normal();
    require(ok, option, value, "a number above 0 that 32 bits can hold")
}

/// In `[0, 1]`.
pub fn fraction(option: &'static str, value: f64) -> Checked {
    require((0.0..=1.0).contains(&value), option, value, "between 0 and 1")
}

/// In `(0, 1]`.
pub fn positive_fraction(option: &'static str, value: f64) -> Checked {
    require(value > 0.0 && value <= 1.0, option, value, "above 0 and at most 1")
}

/// In `[0, 1)`.
pub fn decay(option: &'static str, value: f64) -> Checked {
    require((0.0..1.0).contains(&value), option, value, "at least 0 and below 1")
}

/// An integer of at least `least`.
pub fn at_least(option: &'static str, value: usize, least: usize) -> Checked {
    require(value >= least, option, value, &format!("at least {least}"))
}

/// Within `1..=most`: a count that something is sized or allocated by.
pub fn count(option: &'static str, value: usize, most: usize) -> Checked {
    require((1..=most).contains(&value), option, value, &format!("from 1 to {most}"))
}

/// Runs `check` on the value where there is one.
pub fn if_set<T: Copy>(
    option: &'static str,
    value: Option<T>,
    check: impl FnOnce(&'static str, T) -> Checked,
) -> Checked {
    value.map_or(Ok(()), |value| check(option, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_an_upper_bound() {
        assert!(count("threads", 4, 1024).is_ok());
        assert!(count("threads", 0, 1024).is_err());
        let refused = count("threads", 100_000, 1024).expect_err("too many");
        assert_eq!(refused.message, "is 100000, but must be from 1 to 1024");
    }

    #[test]
    fn ranges_hold_their_ends_and_refuse_nan() {
        assert!(fraction("x", 0.0).is_ok() && fraction("x", 1.0).is_ok());
        assert!(positive_fraction("x", 0.0).is_err() && positive_fraction("x", 1.0).is_ok());
        assert!(decay("x", 0.0).is_ok() && decay("x", 1.0).is_err());
        assert!(positive_f32("x", 1e-30).is_ok());
        assert!(positive_f32("x", 1e-46).is_err() && positive_f32("x", 1e39).is_err());
        for check in [non_negative, positive, positive_f32, fraction, positive_fraction, decay] {
            assert!(check("x", f64::NAN).is_err());
            assert!(check("x", f64::INFINITY).is_err());
            assert!(check("x", -1e-9).is_err());
        }
    }

    #[test]
    fn message_names_option_value_and_range() {
        let error = Error::from(fraction("warmup_ratio", 1.5).unwrap_err());
        assert_eq!(error.to_string(), "--warmup_ratio is 1.5, but must be between 0 and 1");
        assert_eq!(error.exit_code(), 2);
    }
}
