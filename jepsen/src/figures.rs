//! The figures that a run is to reach, and what it reached. They say how much a run did and how well, not whether anything was
//! broken: a miss is shown as one, and leaves the verdict as it is.
//!
//! An *operation* is one request of a client, of one to three rows, that was acknowledged, however often it had to be sent
//! until then; reads do not count. *During faults* is the time in which at least one fault was there: not the pauses between
//! them, nor the last reads.

use serde_json::{Value, json};

use crate::checker::availability::GAP_MAX;
use crate::report::Report;

/// A number for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Figure {
    pub(crate) value: String,
    pub(crate) what: String,
    /// What it was to be, and whether it was; `None` if that cannot be said.
    pub(crate) target: Option<(String, Option<bool>)>,
}

/// What a number is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// A figure and its target.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Goal {
    /// As programs name it.
    name: &'static str,
    what: &'static str,
    unit: &'static str,
    /// Digits behind the point.
    digits: usize,
    /// `None`: there was nothing to measure.
    reached: Option<f64>,
    target: Target,
    /// Where it was that bad.
    place: Option<String>,
}

/// All of them, in the order in which they are shown.
pub(crate) fn goals(report: &Report<'_>) -> Vec<Goal> {
    let longest = report.availability.longest();
    let goal = |name, what, reached: Option<f64>, target| {
        let (unit, digits, place) = ("", 0, None);
        Goal { name, what, unit, digits, reached, target, place }
    };
    let none = |name, what, count: usize| goal(name, what, Some(count as f64), Target::AtMost(0.0));
    vec![
        goal(
            "acknowledged_a_second_during_faults",
            "acknowledged operations a second, during faults",
            report.rate_during_faults(),
            Target::AtLeast(500.0),
        ),
        goal(
            "faults_effective_an_hour",
            "faults with effect an hour",
            Some(report.effective_an_hour()),
            Target::AtLeast(200.0),
        ),
        goal("kinds_effective", "kinds of faults with effect", Some(report.kinds() as f64), Target::AtLeast(12.0)),
        none("lost", "acknowledged rows lost", report.broken.lost),
        none("doubled", "rows doubled", report.broken.doubled),
        none("stale", "stale strong reads", report.broken.stale),
        Goal {
            unit: " s",
            digits: 2,
            place: longest.map(crate::checker::availability::Longest::place),
            ..goal(
                "longest_gap_seconds",
                "longest time without an acknowledgment while most nodes reached each other",
                longest.map(|gap| gap.span.length() as f64 / 1e9),
                Target::AtMost(GAP_MAX as f64 / 1e9),
            )
        },
    ]
}

impl Goal {
    fn is_met(&self) -> Option<bool> {
        let reached = self.reached?;
        Some(match self.target {
            Target::AtLeast(least) => reached >= least,
            Target::AtMost(most) => reached <= most,
        })
    }

    fn value(&self) -> String {
        let (unit, digits) = (self.unit, self.digits);
        self.reached.map_or_else(|| "none".to_owned(), |reached| format!("{reached:.digits$}{unit}"))
    }

    fn target(&self) -> String {
        match self.target {
            Target::AtLeast(least) => format!(">= {least:.0}{}", self.unit),
            Target::AtMost(most) => format!("<= {most:.0}{}", self.unit),
        }
    }

    pub(crate) fn figure(&self) -> Figure {
        let what = match &self.place {
            Some(place) => format!("{}: {place}", self.what),
            None => self.what.to_owned(),
        };
        Figure { value: self.value(), what, target: Some((self.target(), self.is_met())) }
    }

    /// As a line of a report.
    pub(crate) fn line(&self) -> String {
        let place = self.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
        format!("{:<9}{:>10}  {:<9}{}{place}", met(self.is_met()), self.value(), self.target(), self.what)
    }

    pub(crate) fn json(&self) -> Value {
        let (bound, value) = match self.target {
            Target::AtLeast(least) => ("at_least", least),
            Target::AtMost(most) => ("at_most", most),
        };
        json!({"figure": self.name, "reached": self.reached, bound: value, "met": self.is_met()})
    }
}

/// In a word.
pub(crate) fn met(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "reached",
        Some(false) => "missed",
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::Broken;
    use crate::report::testing;

    fn goal(reached: Option<f64>, target: Target) -> Goal {
        let (name, what, unit, digits, place) = ("x", "of something", " s", 1, Some("at night".to_owned()));
        Goal { name, what, unit, digits, reached, target, place }
    }

    #[test]
    fn a_figure_is_reached_at_its_bound_and_missed_beyond_it() {
        for (reached, target, expected) in [
            (Some(500.0), Target::AtLeast(500.0), Some(true)),
            (Some(499.9), Target::AtLeast(500.0), Some(false)),
            (Some(10.0), Target::AtMost(10.0), Some(true)),
            (Some(10.1), Target::AtMost(10.0), Some(false)),
            (None, Target::AtLeast(1.0), None),
        ] {
            assert_eq!(goal(reached, target).is_met(), expected, "{reached:?} {target:?}");
        }
    }

    #[test]
    fn people_and_programs_get_figure_target_and_whether_it_is_met() {
        let missed = goal(Some(12.0), Target::AtMost(10.0));
        assert_eq!(missed.line(), "missed       12.0 s  <= 10 s  of something (at night)");
        let figure = missed.figure();
        assert_eq!((figure.value.as_str(), figure.what.as_str()), ("12.0 s", "of something: at night"));
        assert_eq!(figure.target, Some(("<= 10 s".to_owned(), Some(false))));
        assert_eq!(missed.json(), json!({"figure": "x", "reached": 12.0, "at_most": 10.0, "met": false}));
        assert!(goal(None, Target::AtLeast(3.0)).line().starts_with("unknown        none  >= 3 s"));
    }

    #[test]
    fn a_run_that_misses_figures_is_valid_nevertheless() {
        let mut run = testing::Run::new();
        run.broken = Broken { lost: 1, doubled: 2, stale: 3 };
        let report = run.report();
        let goals = goals(&report);
        let reached = |name: &str| goals.iter().find(|goal| goal.name == name).and_then(|goal| goal.reached);
        assert_eq!(reached("acknowledged_a_second_during_faults"), Some(1.0));
        assert_eq!(reached("faults_effective_an_hour"), Some(1800.0));
        assert_eq!((reached("lost"), reached("doubled"), reached("stale")), (Some(1.0), Some(2.0), Some(3.0)));
        assert!(goals.iter().filter(|goal| goal.is_met() == Some(false)).count() >= 5, "{goals:?}");
        assert_eq!(report.valid(), Some(true), "checkers say what is valid");
    }
}
