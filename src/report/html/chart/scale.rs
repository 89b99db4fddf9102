//! From values to what is drawn: fewer points, running means, round ticks, short numbers.

/// The value at a point of the x axis, and its bounds where a band is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) step: f64,
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

/// At most `most` points, each the mean of as many neighbours as the others; bounds keep their extremes.
pub(super) fn bucket(points: &[Point], most: usize) -> Vec<Point> {
    let size = points.len().div_ceil(most).max(1);
    if size == 1 {
        return points.to_vec();
    }
    points
        .chunks(size)
        .map(|chunk| {
            let mean = |pick: fn(&Point) -> f64| chunk.iter().map(pick).sum::<f64>() / chunk.len() as f64;
            Point {
                step: mean(|point| point.step).round(),
                value: mean(|point| point.value),
                low: chunk.iter().map(|point| point.low).fold(f64::INFINITY, f64::min),
                high: chunk.iter().map(|point| point.high).fold(f64::NEG_INFINITY, f64::max),
            }
        })
        .collect()
}

/// Mean over a window of a tenth of the run around each point; at the ends, over the half of it that there is.
pub(super) fn running_mean(points: &[Point]) -> Vec<f64> {
    let half = points.len() / 20;
    (0..points.len())
        .map(|index| {
            let end = (index + half + 1).min(points.len());
            let window = &points[index.saturating_sub(half)..end];
            window.iter().map(|point| point.value).sum::<f64>() / window.len() as f64
        })
        .collect()
}

/// Two to six round values that enclose `[low, high]`.
pub(in super::super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    // A flat line gets room above and below.
    let (low, high) = if high > low {
        (low, high)
    } else {
        let room = if low == 0.0 { 1.0 } else { low.abs() * 0.5 };
        (low - room, high + room)
    };
    let rough = (high - low) / 3.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|unit| unit * power).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let (first, last) = ((low / step).floor(), (high / step).ceil());
    // Rounded to the step's own digits: 0.30000000000000004 is 0.3.
    (0..=(last - first) as usize).map(|index| (first + index as f64) * step).collect()
}

/// A number in few characters: `0.0421`, `12.5`, `1.2e-6`.
pub(in super::super) fn short(value: f64) -> String {
    let size = value.abs();
    if size < 1e-12 {
        "0".to_owned()
    } else if !(1e-3..1e5).contains(&size) {
        let text = format!("{value:.1e}");
        text.replace(".0e", "e")
    } else {
        let digits = (2 - size.log10().floor() as i32).clamp(0, 5) as usize;
        let text = format!("{value:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_numbers() {
        for (value, text) in [
            (0.0, "0"),
            (1.0, "1"),
            (0.0421, "0.0421"),
            (12.5, "12.5"),
            (1e-6, "1e-6"),
            (1.24e-6, "1.2e-6"),
            (-0.5, "-0.5"),
            (401408.0, "4e5"),
            (0.1 + 0.2, "0.3"),
            (150.0, "150"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn ticks_enclose_the_values_with_round_numbers() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.5, 1.0]);
        assert_eq!(ticks(3.0, 41.0), [0.0, 20.0, 40.0, 60.0]);
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (-1e-9, 2e-9), (-3.0, 700.0), (1e20, 3e20)] {
            let ticks = ticks(low, high);
            assert!((2..=7).contains(&ticks.len()), "{ticks:?}");
            assert!(ticks[0] <= low && ticks[ticks.len() - 1] >= high, "{low} {high} {ticks:?}");
        }
    }

    #[test]
    fn running_mean_of_a_line_is_the_line_but_for_the_ends() {
        let point = |step: i32| Point { step: step.into(), value: step.into(), low: 0.0, high: 0.0 };
        let points: Vec<Point> = (0..100).map(point).collect();
        let means = running_mean(&points);
        assert!((5..95).all(|step| (means[step] - step as f64).abs() < 1e-9));
        // Of 0..=5 and of 94..=99.
        assert_eq!((means[0], means[99]), (2.5, 96.5));
    }

    #[test]
    fn buckets_keep_mean_and_extremes() {
        let point = |step: f64, value: f64| Point { step, value, low: value - 1.0, high: value + 1.0 };
        let bucketed = bucket(&[point(0.0, 1.0), point(1.0, 3.0), point(2.0, 5.0)], 2);
        assert_eq!(bucketed[0], Point { step: 1.0, value: 2.0, low: 0.0, high: 4.0 });
        assert_eq!(bucketed[1], point(2.0, 5.0));
    }
}
