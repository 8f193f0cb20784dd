// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What `--chaos` takes: a list of faults and presets, separated by commas. Later ones win.
//!
//! | Fault | Default | What happens |
//! |---|---|---|
//! | `irq-delay=TIME[:P]` | P 1 | an interrupt comes up to TIME later, so interrupts of different vectors change their order |
//! | `irq-coalesce[=TIME]` | 100us | interrupts of a vector that come within TIME of the last one are held and become one |
//! | `late-sync=TIME[:P]` | P 1 | a SYNC completes up to TIME later |
//! | `fault-queue=N` | | no more than N records of the fault queue are used |
//! | `tlb-evict=P` | | a translation is forgotten before it is looked up |
//! | `spurious-invalidate=P` | | all translations of all engines are invalidated before one is looked up |
//! | `slow-engine=TIME[:P]` | P 1 | an engine does nothing for up to TIME before an access |
//! | `silent-after=N` | | the device never answers any more after N control entries |
//!
//! TIME is a number with a suffix `ns`, `us`, `ms` or `s`, at most 60 s; P a probability from 0 to 1; N a whole
//! number from 1. [`PRESETS`] are short for lists.

use std::str::FromStr;
use std::time::Duration;

/// Names for lists. `silent-after` is in none: a device that is silent does not pass a test.
pub const PRESETS: [(&str, &str); 2] = [
    ("light", "irq-delay=200us:0.1,late-sync=200us:0.05,tlb-evict=0.001,spurious-invalidate=0.0001"),
    (
        "all",
        "irq-delay=500us:0.3,irq-coalesce=200us,late-sync=1ms:0.1,fault-queue=2,tlb-evict=0.02,\
         spurious-invalidate=0.001,slow-engine=100us:0.002",
    ),
];

const MOST_TIME: Duration = Duration::from_secs(60);
const COALESCE: Duration = Duration::from_micros(100);

/// The faults of a device. All zero: none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// `irq-delay`
    pub irq_delay: Delay,
    /// `irq-coalesce`
    pub irq_coalesce: Duration,
    /// `late-sync`
    pub late_sync: Delay,
    /// `fault-queue`
    pub fault_queue: Option<u32>,
    /// `tlb-evict`
    pub tlb_evict: f64,
    /// `spurious-invalidate`
    pub spurious_invalidate: f64,
    /// `slow-engine`
    pub slow_engine: Delay,
    /// `silent-after`
    pub silent_after: Option<u32>,
}

/// How often something is late, and by how much at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Delay {
    /// At most.
    pub time: Duration,
    /// How often.
    pub probability: f64,
}

/// Why a list is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSpec {
    /// No such fault.
    #[error(
        "no fault {0:?}; there are irq-delay, irq-coalesce, late-sync, fault-queue, tlb-evict, \
         spurious-invalidate, slow-engine, silent-after, and the presets light and all"
    )]
    Unknown(String),
    /// A value that is missing or not what this fault takes.
    #[error("{fault} takes {takes}, not {value:?}")]
    Value {
        /// Which.
        fault: &'static str,
        /// What it is.
        takes: &'static str,
        /// What was there.
        value: String,
    },
}

const DELAY: &str = "TIME[:P], such as 100us:0.3";
const TIME: &str = "a time up to 60s, such as 100us";
const PROBABILITY: &str = "a probability from 0 to 1";
const NUMBER: &str = "a whole number from 1";

impl FromStr for Faults {
    type Err = BadSpec;

    fn from_str(list: &str) -> Result<Self, BadSpec> {
        let mut faults = Faults::default();
        list.split(',').try_for_each(|item| faults.take(item.trim()))?;
        Ok(faults)
    }
}

impl Faults {
    fn take(&mut self, item: &str) -> Result<(), BadSpec> {
        if let Some((_, list)) = PRESETS.iter().find(|(name, _)| *name == item) {
            return list.split(',').try_for_each(|item| self.take(item));
        }
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (item, None),
        };
        match name {
            "irq-delay" => self.irq_delay = parse("irq-delay", DELAY, value, delay)?,
            "irq-coalesce" if value.is_none() => self.irq_coalesce = COALESCE,
            "irq-coalesce" => self.irq_coalesce = parse("irq-coalesce", TIME, value, time)?,
            "late-sync" => self.late_sync = parse("late-sync", DELAY, value, delay)?,
            "fault-queue" => self.fault_queue = Some(parse("fault-queue", NUMBER, value, number)?),
            "tlb-evict" => self.tlb_evict = parse("tlb-evict", PROBABILITY, value, probability)?,
            "spurious-invalidate" => {
                self.spurious_invalidate = parse("spurious-invalidate", PROBABILITY, value, probability)?;
            }
            "slow-engine" => self.slow_engine = parse("slow-engine", DELAY, value, delay)?,
            "silent-after" => self.silent_after = Some(parse("silent-after", NUMBER, value, number)?),
            _ => return Err(BadSpec::Unknown(name.to_owned())),
        }
        Ok(())
    }
}

fn parse<T>(
    fault: &'static str,
    takes: &'static str,
    value: Option<&str>,
    parse: fn(&str) -> Option<T>,
) -> Result<T, BadSpec> {
    let value = value.unwrap_or_default();
    parse(value).ok_or_else(|| BadSpec::Value { fault, takes, value: value.to_owned() })
}

fn delay(text: &str) -> Option<Delay> {
    match text.split_once(':') {
        Some((text, often)) => Some(Delay { time: time(text)?, probability: probability(often)? }),
        None => Some(Delay { time: time(text)?, probability: 1.0 }),
    }
}

fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let nanoseconds = match &text[digits.len()..] {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return None,
    };
    let time = Duration::from_nanos(whole(digits)?.checked_mul(nanoseconds)?);
    (time <= MOST_TIME).then_some(time)
}

fn probability(text: &str) -> Option<f64> {
    text.parse().ok().filter(|value| (0.0..=1.0).contains(value))
}

fn number(text: &str) -> Option<u32> {
    whole(text).and_then(|value| u32::try_from(value).ok()).filter(|&value| value > 0)
}

/// Digits and nothing else.
fn whole(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_say_what_they_say() {
        let faults: Faults = "irq-delay=100us:0.3, irq-coalesce,late-sync=1ms,fault-queue=4,tlb-evict=0.01,\
             spurious-invalidate=0.001,slow-engine=50us:0.01,silent-after=10000"
            .parse()
            .unwrap();
        let delay = |micros, probability| Delay { time: Duration::from_micros(micros), probability };
        let expected = Faults {
            irq_delay: delay(100, 0.3),
            irq_coalesce: COALESCE,
            late_sync: delay(1000, 1.0),
            fault_queue: Some(4),
            tlb_evict: 0.01,
            spurious_invalidate: 0.001,
            slow_engine: delay(50, 0.01),
            silent_after: Some(10_000),
        };
        assert_eq!(faults, expected);
    }

    #[test]
    fn later_ones_win() {
        let all: Faults = "all".parse().unwrap();
        assert_eq!("all,fault-queue=9".parse(), Ok(Faults { fault_queue: Some(9), ..all }));
        assert_eq!("fault-queue=9,all".parse(), Ok(all));
        assert!("light".parse::<Faults>().is_ok_and(|light| light.silent_after.is_none()));
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        for bad in [
            "",
            "nosuch",
            "all,",
            "tlb-evict",
            "tlb-evict=2",
            "tlb-evict=-1",
            "tlb-evict=nan",
            "fault-queue=0",
            "fault-queue=4294967296",
            "irq-delay=5",
            "irq-delay=5us:",
            "irq-delay=5us:2",
            "late-sync=61s",
            "late-sync=us",
            "slow-engine=+5us",
            "slow-engine=18446744073709551615s",
            "irq-coalesce=",
            "é=5µs",
            "silent-after=1.5",
        ] {
            let error = bad.parse::<Faults>().unwrap_err().to_string();
            assert!(!error.contains('\n'), "{bad}: {error}");
        }
        let error = "irq-delay=soon".parse::<Faults>().unwrap_err().to_string();
        assert_eq!(error, "irq-delay takes TIME[:P], such as 100us:0.3, not \"soon\"");
    }
}
