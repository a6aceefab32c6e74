//! The budget table's rows: what Kubernetes needs, what Balsa promises, what was measured.

use std::fmt::{self, Write};

/// What Balsa promises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// So many times the figure of Kubernetes.
    Times(f64),
    /// Less than this.
    Below(f64),
}

/// A row that was measured.
#[derive(Debug, Clone)]
pub struct Row {
    /// What is measured.
    pub what: String,
    /// `/s`, `ms`, ...
    pub unit: &'static str,
    /// Kubernetes with etcd, as recorded on a machine of two cores and 24 GB: not of this run.
    pub kubernetes: f64,
    /// Balsa's goal.
    pub goal: Goal,
    /// Balsa, now.
    pub ours: f64,
    /// More about it: percentiles, what else was counted.
    pub note: String,
    /// A peer's figure of the same run and what it is of.
    pub peer: Option<(f64, &'static str)>,
}

impl Row {
    /// Whether the goal is reached, given that Kubernetes would do here what it did where it was recorded.
    pub fn met(&self) -> bool {
        match self.goal {
            Goal::Times(times) => self.ours >= times * self.kubernetes,
            Goal::Below(limit) => self.ours < limit,
        }
    }

    /// How much better than Kubernetes: more of a rate, less of anything else.
    pub fn better(&self) -> f64 {
        match self.goal {
            Goal::Times(_) => self.ours / self.kubernetes,
            Goal::Below(_) => self.kubernetes / self.ours,
        }
    }

    fn cells(&self) -> [String; 7] {
        let goal = match self.goal {
            Goal::Times(times) => format!("{times}x"),
            Goal::Below(limit) => format!("< {}", figure(limit, self.unit)),
        };
        let peer = self.peer.as_ref().map(|(theirs, name)| {
            format!(
                "{} {name} ({:.2}x)",
                figure(*theirs, self.unit),
                self.ours / theirs
            )
        });
        [
            self.what.clone(),
            figure(self.ours, self.unit),
            goal,
            if self.met() { "met" } else { "missed" }.into(),
            format!(
                "{} ({:.1}x)",
                figure(self.kubernetes, self.unit),
                self.better()
            ),
            peer.unwrap_or_else(|| "-".into()),
            self.note.clone(),
        ]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} {}",
            self.what,
            figure(self.ours, self.unit),
            self.note
        )
    }
}

fn figure(value: f64, unit: &str) -> String {
    let digits = if value.abs() < 10.0 { 1 } else { 0 };
    let space = if unit.starts_with('/') { "" } else { " " };
    format!("{value:.digits$}{space}{unit}")
}

const TITLES: [&str; 7] = [
    "what",
    "Balsa",
    "goal",
    "",
    "Kubernetes, recorded (better)",
    "peer, this run (ratio)",
    "note",
];

/// The table as Markdown that reads well unrendered, too.
pub fn render(rows: &[Row]) -> String {
    let cells: Vec<[String; 7]> = std::iter::once(TITLES.map(str::to_owned))
        .chain(rows.iter().map(Row::cells))
        .collect();
    let width = |column: usize| {
        cells
            .iter()
            .map(|c| c[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut table = String::new();
    for (number, row) in cells.iter().enumerate() {
        line(&mut table, row, widths);
        if number == 0 {
            line(&mut table, &widths.map(|w| "-".repeat(w)), widths);
        }
    }
    table
}

fn line(table: &mut String, cells: &[String; 7], widths: [usize; 7]) {
    for (cell, width) in cells.iter().zip(widths) {
        // Writing to a String cannot fail.
        let _ = write!(table, "| {cell:<width$} ");
    }
    table.push_str("|\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(goal: Goal, kubernetes: f64, ours: f64) -> Row {
        Row {
            what: "w".into(),
            unit: "ms",
            kubernetes,
            goal,
            ours,
            note: String::new(),
            peer: None,
        }
    }

    #[test]
    fn a_rate_must_be_the_promised_multiple() {
        assert!(row(Goal::Times(4.0), 100.0, 400.0).met());
        assert!(!row(Goal::Times(4.0), 100.0, 399.0).met());
        assert_eq!(row(Goal::Times(4.0), 100.0, 250.0).better(), 2.5);
    }

    #[test]
    fn a_time_must_be_below_its_limit_and_less_is_better() {
        assert!(row(Goal::Below(5.0), 13.0, 4.9).met());
        assert!(!row(Goal::Below(5.0), 13.0, 5.0).met());
        assert!(!row(Goal::Below(5.0), 13.0, f64::NAN).met());
        assert_eq!(row(Goal::Below(5.0), 10.0, 2.0).better(), 5.0);
    }

    #[test]
    fn all_lines_of_a_table_are_equally_long() {
        let peer = Row {
            peer: Some((800.0, "etcd put")),
            ..row(Goal::Times(5.0), 1371.0, 6000.0)
        };
        let table = render(&[peer, row(Goal::Below(5.0), 13.0, 4.9)]);
        let lengths: std::collections::HashSet<usize> =
            table.lines().map(|l| l.chars().count()).collect();
        assert_eq!((table.lines().count(), lengths.len()), (4, 1));
    }
}
