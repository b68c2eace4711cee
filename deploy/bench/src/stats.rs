//! What several runs of one measurement say together.

use std::fmt;
use std::time::Duration;

/// Values of the same measurement, one a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The middle one; of an even number the mean of the two in the middle. NaN if there is none.
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    /// Each of these divided by that of the same run: what the machine does meanwhile hits both alike.
    pub(crate) fn ratio(&self, baseline: &Self) -> Self {
        assert_eq!(self.0.len(), baseline.0.len(), "a ratio is within one run");
        Self(self.0.iter().zip(&baseline.0).map(|(a, b)| a / b).collect())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// Median and spread: `1.62 (1.41–1.70)`.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        match sorted.as_slice() {
            [] => write!(f, "–"),
            [one] => write!(f, "{}", digits(*one)),
            [least, .., most] => {
                write!(f, "{} ({}–{})", digits(self.median()), digits(*least), digits(*most))
            }
        }
    }
}

/// Three significant digits, without an exponent.
pub(crate) fn digits(value: f64) -> String {
    let magnitude = value.abs();
    match magnitude {
        _ if magnitude >= 100.0 => format!("{value:.0}"),
        _ if magnitude >= 10.0 => format!("{value:.1}"),
        _ if magnitude >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// How long requests took.
#[derive(Debug, Clone, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds: the least value that `percent` of them do not exceed. NaN if there is none.
    pub(crate) fn percentile_ms(&self, percent: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).map_or(f64::NAN, |took| took.as_secs_f64() * 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn the_median_is_the_middle_and_shown_with_its_spread() {
        assert_eq!(samples(&[3.0, 1.0, 2.0]).to_string(), "2.00 (1.00–3.00)");
        assert_eq!(samples(&[1.0, 2.0]).median(), 1.5);
        assert_eq!(samples(&[123.4]).to_string(), "123");
        assert_eq!(samples(&[]).to_string(), "–");
    }

    #[test]
    fn a_ratio_is_taken_run_by_run() {
        let ratio = samples(&[1.0, 4.0]).ratio(&samples(&[2.0, 4.0]));
        assert_eq!(ratio.to_string(), "0.750 (0.500–1.00)");
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let mut latencies = Latencies::default();
        (1..=100).for_each(|ms| latencies.push(Duration::from_millis(ms)));
        assert_eq!((latencies.percentile_ms(50.0), latencies.percentile_ms(99.0)), (50.0, 99.0));
        assert!(Latencies::default().percentile_ms(99.0).is_nan());
    }
}
