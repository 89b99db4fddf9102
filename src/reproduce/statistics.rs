//! Means over seeds and what they are worth.

/// A mean over seeds with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// `s / sqrt(n)`, where `s` is the standard deviation of the n values with n - 1 below it; none for one value.
    pub standard_error: Option<f64>,
    /// Number of values.
    pub count: usize,
}

impl Estimate {
    /// The mean of `values`; none for no value.
    pub fn of(values: &[f64]) -> Option<Estimate> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let standard_error = (count > 1).then(|| {
            let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
            (squares / (count - 1) as f64 / count as f64).sqrt()
        });
        Some(Estimate { mean, standard_error, count })
    }

    /// The 95 % interval of Student's t with n - 1 degrees of freedom around the mean; none for one value.
    pub fn interval_95(&self) -> Option<(f64, f64)> {
        let half = self.standard_error? * t_95(self.count - 1);
        Some((self.mean - half, self.mean + half))
    }
}

/// The 97.5 % quantile of Student's t distribution (any table of it), for `freedom` of at least 1; beyond the table, that
/// of the next smaller entry, which is on the safe side.
fn t_95(freedom: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
        2.045, 2.042,
    ];
    TABLE[freedom.clamp(1, TABLE.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `statistics.stdev(x) / 5 ** 0.5` of Python for the error, and the quantile 2.7764451 of t with 4 degrees of freedom.
    #[test]
    fn estimates_are_those_of_python() {
        let estimate = Estimate::of(&[0.72, 0.8, 0.76, 0.79, 0.83]).unwrap();
        assert!((estimate.mean - 0.78).abs() < 1e-12);
        assert!((estimate.standard_error.unwrap() - 0.01870828693386971).abs() < 1e-12);
        let (low, high) = estimate.interval_95().unwrap();
        assert!((low - 0.728_057).abs() < 1e-5 && (high - 0.831_943).abs() < 1e-5, "{low} {high}");
    }

    #[test]
    fn one_seed_has_no_error_and_none_has_no_mean() {
        let one = Estimate::of(&[0.5]).unwrap();
        assert_eq!((one.mean, one.standard_error, one.interval_95()), (0.5, None, None));
        assert!(Estimate::of(&[]).is_none());
    }

    #[test]
    fn quantiles_fall_with_the_degrees_of_freedom() {
        assert!((1..40).all(|freedom| t_95(freedom) >= t_95(freedom + 1)));
        assert_eq!((t_95(1), t_95(4), t_95(30), t_95(1000)), (12.706, 2.776, 2.042, 2.042));
    }
}
