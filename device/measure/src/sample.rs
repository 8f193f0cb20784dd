// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rounds in which all sides of a comparison take turns, and what comes out of them.
//!
//! A machine's speed drifts: frequency, other work, the memory of a neighbour. So no side is measured at a
//! stretch. Each round measures every side once, in an order that reverses from round to round, so that
//! none always comes first; rounds before the first that counts warm caches, TLBs and page tables.

/// Rounds that don't count.
pub const WARM_UP: usize = 2;

/// One side of a comparison. It does its work once and says its figure.
pub type Side<'a> = Box<dyn FnMut() -> f64 + 'a>;

/// The figures of one side, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

/// Two sides that took turns.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What is of interest.
    pub value: Samples,
    /// What it is compared with.
    pub baseline: Samples,
}

/// Lets `sides` take turns for `rounds` rounds, after the warm-up.
pub fn alternate(rounds: usize, mut sides: Vec<Side<'_>>) -> Vec<Samples> {
    let mut samples = vec![Samples::default(); sides.len()];
    for round in 0..WARM_UP + rounds {
        let mut order: Vec<usize> = (0..sides.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for side in order {
            let figure = sides[side]();
            if round >= WARM_UP {
                samples[side].0.push(figure);
            }
        }
    }
    samples
}

impl Samples {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// First and third quartile.
    pub fn quartiles(&self) -> [f64; 2] {
        [self.quantile(0.25), self.quantile(0.75)]
    }

    /// The smallest and the greatest.
    pub fn extremes(&self) -> [f64; 2] {
        [self.quantile(0.0), self.quantile(1.0)]
    }

    /// The value below which this part of them is, from 0 to 1; interpolated between neighbours.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let at = part * last as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }
}

impl From<Vec<f64>> for Samples {
    fn from(samples: Vec<f64>) -> Self {
        Samples(samples)
    }
}

impl Comparison {
    /// The first side's samples against the second's; a side that is not there has none.
    pub fn of(sides: Vec<Samples>) -> Comparison {
        let mut sides = sides.into_iter();
        Comparison { value: sides.next().unwrap_or_default(), baseline: sides.next().unwrap_or_default() }
    }

    /// The ratio of each round: what disturbs a whole round does not disturb it.
    pub fn ratios(&self) -> Samples {
        self.value.0.iter().zip(&self.baseline.0).map(|(value, baseline)| value / baseline).collect()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Samples(samples.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn quantiles() {
        let samples = Samples::from(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(
            (samples.median(), samples.quartiles(), samples.extremes()),
            (3.0, [2.0, 4.0], [1.0, 5.0])
        );
        assert_eq!(Samples::from(vec![1.0, 2.0]).median(), 1.5);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn sides_take_turns_and_the_order_reverses() {
        let order = RefCell::new(String::new());
        let side = |name: char, figure: f64| -> Side<'_> {
            let order = &order;
            Box::new(move || {
                order.borrow_mut().push(name);
                figure
            })
        };
        let samples = alternate(2, vec![side('a', 1.0), side('b', 2.0), side('c', 3.0)]);
        assert_eq!(*order.borrow(), "abccbaabccba");
        assert_eq!(samples.iter().map(Samples::median).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
        assert!(samples.iter().all(|side| side.count() == 2));
    }

    #[test]
    fn ratios_are_those_of_the_rounds() {
        let comparison = Comparison { value: vec![2.0, 6.0].into(), baseline: vec![1.0, 2.0].into() };
        assert_eq!(comparison.ratios().extremes(), [2.0, 3.0]);
    }
}
