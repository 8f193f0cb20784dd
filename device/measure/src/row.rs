// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A row: one figure next to what it is compared with, as it is in the JSON file. [`crate::show`] has it for
//! people.

use serde::{Deserialize, Serialize};

use crate::sample::{Comparison, Samples};

/// One figure. Its fields are those of the JSON file.
///
/// `value` and `baseline` are medians over `rounds` rounds, `ratio` is the median of the rounds' ratios: what
/// disturbs a whole round does not disturb it. So it need not be the first by the second. The spread: minimum,
/// first quartile, third quartile and maximum of each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its name in the table of figures.
    pub name: String,
    /// What was measured.
    pub figure: String,
    /// How much.
    pub value: f64,
    /// Of both `value` and `baseline`.
    pub unit: String,
    /// What was measured in turns with it; empty if there is nothing to compare with.
    pub compared_with: String,
    /// How much that came to.
    pub baseline: Option<f64>,
    /// `value` by `baseline`, round by round.
    pub ratio: Option<f64>,
    /// What is aimed at, such as `ratio >= 0.8`; empty if nothing is.
    pub aim: String,
    /// Whether the aim is met; `None` without one, or when this machine can't tell: the aim is between the
    /// quartiles, so that another run may well say the opposite.
    pub met: Option<bool>,
    /// Rounds that count.
    pub rounds: usize,
    /// Of `value`.
    pub value_spread: [f64; 4],
    /// Of `baseline`.
    pub baseline_spread: Option<[f64; 4]>,
    /// Of the rounds' ratios.
    pub ratio_spread: Option<[f64; 4]>,
    /// What one must know to read it; mostly empty.
    pub note: String,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// Nothing: the figure is shown because it is of interest.
    None,
    /// The ratio is at least this.
    RatioAtLeast(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// The value is at most this.
    ValueAtMost(f64),
}

impl Aim {
    fn text(self, unit: &str) -> String {
        match self {
            Aim::None => String::new(),
            Aim::RatioAtLeast(least) => format!("ratio >= {least}"),
            Aim::RatioAtMost(most) => format!("ratio <= {most}"),
            Aim::ValueAtMost(most) => format!("<= {most} {unit}"),
        }
    }

    /// By the middle half of the samples.
    fn met(self, value: &Samples, ratios: Option<&Samples>) -> Option<bool> {
        let (samples, good): (_, &dyn Fn(f64) -> bool) = match &self {
            Aim::None => return None,
            Aim::RatioAtLeast(least) => (ratios?, &move |ratio| ratio >= *least),
            Aim::RatioAtMost(most) => (ratios?, &move |ratio| ratio <= *most),
            Aim::ValueAtMost(most) => (value, &move |value| value <= *most),
        };
        let [first, third] = samples.quartiles().map(good);
        (first == third).then_some(first)
    }
}

fn spread(samples: &Samples) -> [f64; 4] {
    let ([least, most], [first, third]) = (samples.extremes(), samples.quartiles());
    [least, first, third, most]
}

impl Row {
    /// A figure that stands alone.
    pub fn alone(name: &str, figure: &str, unit: &str, value: &Samples, aim: Aim) -> Row {
        Row {
            name: name.to_owned(),
            figure: figure.to_owned(),
            value: value.median(),
            unit: unit.to_owned(),
            compared_with: String::new(),
            baseline: None,
            ratio: None,
            aim: aim.text(unit),
            met: aim.met(value, None),
            rounds: value.count(),
            value_spread: spread(value),
            baseline_spread: None,
            ratio_spread: None,
            note: String::new(),
        }
    }

    /// A figure, and what took turns with it.
    pub fn compared(
        name: &str,
        figure: &str,
        unit: &str,
        compared_with: &str,
        comparison: &Comparison,
        aim: Aim,
    ) -> Row {
        let Comparison { value, baseline } = comparison;
        let ratios = comparison.ratios();
        Row {
            compared_with: compared_with.to_owned(),
            baseline: Some(baseline.median()),
            ratio: Some(ratios.median()),
            met: aim.met(value, Some(&ratios)),
            baseline_spread: Some(spread(baseline)),
            ratio_spread: Some(spread(&ratios)),
            ..Row::alone(name, figure, unit, value, aim)
        }
    }

    /// With something that one must know to read it.
    pub fn with_note(self, note: impl Into<String>) -> Row {
        Row { note: note.into(), ..self }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row(aim: Aim) -> Row {
        let comparison = Comparison { value: vec![4.0, 6.0, 8.0].into(), baseline: vec![8.0; 3].into() };
        Row::compared("random", "bulk", "M/s", "native", &comparison, aim)
    }

    #[test]
    fn json_has_the_agreed_keys() {
        let json = serde_json::to_value(row(Aim::RatioAtLeast(0.5))).unwrap();
        let agreed = serde_json::json!({
            "name": "random", "figure": "bulk", "value": 6.0, "unit": "M/s", "compared_with": "native",
            "baseline": 8.0, "ratio": 0.75, "aim": "ratio >= 0.5", "met": true, "rounds": 3,
            "value_spread": [4.0, 5.0, 7.0, 8.0], "baseline_spread": [8.0, 8.0, 8.0, 8.0],
            "ratio_spread": [0.5, 0.625, 0.875, 1.0], "note": "",
        });
        assert_eq!(json, agreed);
        assert_eq!(serde_json::from_value::<Row>(json).unwrap(), row(Aim::RatioAtLeast(0.5)));
    }

    #[test]
    fn aims() {
        assert_eq!(row(Aim::None).met, None);
        assert_eq!(row(Aim::RatioAtLeast(0.95)).met, Some(false));
        assert_eq!(row(Aim::RatioAtMost(0.9)).met, Some(true));
        assert_eq!(row(Aim::ValueAtMost(4.9)).met, Some(false));
        let idle = |percent| Row::alone("idle", "idle", "%", &vec![percent].into(), Aim::ValueAtMost(0.0));
        assert_eq!((idle(0.0).met, idle(0.0).ratio, idle(0.0).aim.as_str()), (Some(true), None, "<= 0 %"));
        assert_eq!(idle(0.04).met, Some(false), "nothing is rounded");
    }

    #[test]
    fn an_aim_between_the_quartiles_is_neither_met_nor_missed() {
        assert_eq!(row(Aim::RatioAtMost(0.75)).met, None);
        assert_eq!(row(Aim::RatioAtLeast(0.75)).met, None);
        assert_eq!(row(Aim::ValueAtMost(6.0)).met, None);
    }

    #[test]
    fn the_ratio_is_that_of_the_rounds() {
        let comparison =
            Comparison { value: vec![1.0, 20.0, 30.0].into(), baseline: vec![1.0, 10.0, 40.0].into() };
        let row = Row::compared("x", "x", "us", "y", &comparison, Aim::RatioAtMost(2.0));
        assert_eq!((row.value, row.baseline, row.ratio), (20.0, Some(10.0), Some(1.0)));
    }
}
