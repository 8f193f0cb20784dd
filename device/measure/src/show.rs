// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Rows for people: a table that grows line by line.

use crate::row::Row;

/// Width of the texts.
const TEXT: usize = 68;

/// What stands above the first row.
pub fn header() -> String {
    let text = "figure, and below it what takes turns with it";
    format!(
        "{text:<TEXT$} {:>10} {:<6} {:<16} {:>7}  {:<16} aim",
        "median", "", "quartiles", "ratio", "quartiles"
    )
}

/// The lines of a row: the figure, unless that is the one before it; what it is compared with; the note.
pub fn lines(row: &Row, before: Option<&Row>) -> String {
    let verdict = match row.met {
        Some(true) => "met",
        Some(false) => "MISSED",
        None if row.aim.is_empty() => "",
        None => "can't tell here",
    };
    let aim = if row.aim.is_empty() { String::new() } else { format!("{}: {verdict}", row.aim) };
    let ratio = row.ratio.zip(row.ratio_spread);
    let ratio = ratio.map(|(ratio, spread)| format!("{:>7}  {:<16}", short(ratio), between(&spread)));
    let ratio = format!("{:<25} {aim}", ratio.unwrap_or_default());
    let mut lines = Vec::new();
    if let (Some(baseline), Some(spread)) = (row.baseline, &row.baseline_spread) {
        if before.is_none_or(|before| before.figure != row.figure || before.value != row.value) {
            lines.push(measured(&row.figure, row.value, &row.unit, &row.value_spread));
        }
        let with = format!("    {}", row.compared_with);
        lines.push(format!("{} {ratio}", measured(&with, baseline, &row.unit, spread)));
    } else {
        lines.push(format!("{} {ratio}", measured(&row.figure, row.value, &row.unit, &row.value_spread)));
    }
    if !row.note.is_empty() {
        lines.push(format!("    ({})", row.note));
    }
    let lines: Vec<_> = lines.iter().map(|line| line.trim_end()).collect();
    lines.join("\n")
}

fn measured(text: &str, value: f64, unit: &str, spread: &[f64; 4]) -> String {
    format!("{text:<TEXT$} {:>10} {unit:<6} {:<16}", short(value), between(spread))
}

/// A number with three significant digits, more if it is great.
fn short(number: f64) -> String {
    let places = match number.abs() {
        great if great >= 100.0 => 0,
        great if great >= 10.0 => 1,
        great if great >= 1.0 => 2,
        _ => 3,
    };
    format!("{number:.places$}")
}

/// The quartiles.
fn between([_, first, third, _]: &[f64; 4]) -> String {
    format!("{} .. {}", short(*first), short(*third))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Aim, tests::row};

    #[test]
    fn people_see_what_missed_and_how_sure_it_is() {
        let row = row(Aim::RatioAtLeast(0.95)).with_note("loud");
        let text = lines(&row, None);
        let expected = [
            "bulk 6.00 M/s 5.00 .. 7.00",
            "native 8.00 M/s 8.00 .. 8.00 0.750 0.625 .. 0.875 ratio >= 0.95: MISSED",
            "(loud)",
        ];
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(text.lines().map(words).collect::<Vec<_>>(), expected);
        assert_eq!(lines(&row, Some(&row)).lines().count(), 2, "the figure is there already");
    }

    #[test]
    fn columns_are_under_their_titles() {
        let row = row(Aim::RatioAtLeast(0.95));
        let line = lines(&row, Some(&row));
        assert_eq!(header().find("aim"), line.find("ratio >="));
        assert_eq!(header().find("quartiles"), line.find("8.00 .."));
    }
}
