//! The run as one SVG: faults, writes, reads, latency and leaders above the same axis of time.

use std::fmt::Write;

use super::escape;
use crate::fault::ALL;
use crate::leaders::Reign;
use crate::nemesis::Strike;
use crate::span::{self, Span};
use crate::timeline::{Bin, CLASSES, Columns, slowest};

/// Of the whole picture, in its own units.
pub(super) const SIZE: f64 = 1180.0;
/// Where time begins and ends.
pub(super) const LEFT: f64 = 176.0;
pub(super) const RIGHT: f64 = 1166.0;
/// Columns of operations: each three units wide.
pub(super) const COLUMNS: usize = 330;

const LANE: f64 = 15.0;
const GAP: f64 = 30.0;
const WRITES: f64 = 130.0;
const READS: f64 = 56.0;
const LATENCY: f64 = 168.0;
/// Nothing that happened is narrower than this.
const THINNEST: f64 = 1.6;
/// Shades of the map of latencies.
const SHADES: usize = 6;

/// What is drawn. Times are nanoseconds since the run began.
pub(super) struct Picture<'a> {
    pub(super) until: u64,
    pub(super) columns: &'a Columns,
    pub(super) strikes: &'a [Strike],
    pub(super) reigns: &'a [Reign],
}

impl Picture<'_> {
    pub(super) fn draw(&self) -> String {
        let mut panels = String::new();
        let mut y = 22.0;
        y = self.faults(&mut panels, y) + GAP;
        let top = y;
        y = self.writes(&mut panels, y) + GAP;
        y = self.reads(&mut panels, y) + GAP;
        y = self.latency(&mut panels, y) + GAP;
        y = self.leaders(&mut panels, y);
        let bottom = y;
        let height = bottom + 26.0;
        let mut out = format!(
            "<svg viewBox=\"0 0 {SIZE} {height}\" role=\"img\" aria-label=\"Faults, writes, reads, latency and leaders over \
             time\">"
        );
        for Span { begun, ended } in span::union(self.strikes.iter().map(Strike::span)) {
            let (x, width) = self.span(begun, ended);
            put(&mut out, format_args!("<path class=\"shade\" d=\"M{x:.1} {top}h{width:.1}V{bottom}h-{width:.1}z\"/>"));
        }
        self.axis(&mut out, bottom);
        out += &panels;
        put(&mut out, format_args!("<line class=\"cross\" x1=\"0\" x2=\"0\" y1=\"8\" y2=\"{bottom}\"/></svg>"));
        out
    }

    /// Where a time is.
    fn x(&self, at: u64) -> f64 {
        LEFT + (RIGHT - LEFT) * (at as f64 / self.until.max(1) as f64).min(1.0)
    }

    /// Where a time begins, and its width.
    fn span(&self, begun: u64, ended: u64) -> (f64, f64) {
        let x = self.x(begun).min(RIGHT - THINNEST);
        (x, (self.x(ended) - x).max(THINNEST))
    }

    /// A lane for each kind of fault; one without effect is only outlined.
    fn faults(&self, out: &mut String, mut y: f64) -> f64 {
        name(out, y - 8.0, "Faults");
        for fault in ALL {
            let mut struck = self.strikes.iter().filter(|one| one.fault == fault).peekable();
            if struck.peek().is_none() {
                continue;
            }
            label(out, y + 11.0, &fault.name());
            for one in struck {
                let (x, width) = self.span(one.begun, one.ended);
                let class = if one.effective { "fault" } else { "idle" };
                let title = escape(&crate::report::line(one));
                let (top, height) = (y + 2.5, LANE - 5.0);
                put(
                    out,
                    format_args!(
                        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\" \
                         rx=\"1.5\"><title>{title}</title></rect>"
                    ),
                );
            }
            y += LANE;
            put(out, format_args!("<path class=\"grid\" d=\"M{LEFT} {y}H{RIGHT}\"/>"));
        }
        y
    }

    fn writes(&self, out: &mut String, y: f64) -> f64 {
        name(out, y - 10.0, "Writes per second");
        let series = [("ok", 0), ("info", 2), ("fail", 1)].map(|(class, at)| (class, move |bin: &Bin| bin.writes[at]));
        self.stacked(out, y, WRITES, &series)
    }

    fn reads(&self, out: &mut String, y: f64) -> f64 {
        name(out, y - 10.0, "Strong reads per second");
        let series = [("read", 0), ("fail", 1)].map(|(class, at)| (class, move |bin: &Bin| bin.reads[at]));
        self.stacked(out, y, READS, &series)
    }

    /// Counts of bins on top of each other, as rates.
    fn stacked(&self, out: &mut String, y: f64, height: f64, series: &[(&str, impl Fn(&Bin) -> u32)]) -> f64 {
        let seconds = self.columns.width as f64 / 1e9;
        let sums = self.columns.bins.iter().map(|bin| series.iter().map(|(_, of)| of(bin)).sum::<u32>());
        let most = nice(f64::from(sums.max().unwrap_or(0)) / seconds);
        let bottom = y + height;
        for part in [0.5, 1.0] {
            let at = bottom - height * part;
            put(out, format_args!("<path class=\"grid\" d=\"M{LEFT} {at}H{RIGHT}\"/>"));
            label(out, at + 4.0, &(most * part).to_string());
        }
        let mut below = vec![0.0; self.columns.bins.len()];
        for (class, of) in series {
            let mut path = String::new();
            for (at, bin) in self.columns.bins.iter().enumerate() {
                let part = f64::from(of(bin)) / seconds / most * height;
                if part > 0.0 {
                    let (x, width) = self.column(at);
                    let top = bottom - below[at];
                    put(&mut path, format_args!("M{x:.1} {top:.1}h{width:.1}v-{part:.1}h-{width:.1}z"));
                    below[at] += part;
                }
            }
            put(out, format_args!("<path class=\"{class}\" d=\"{path}\"/>"));
        }
        put(out, format_args!("<path class=\"base\" d=\"M{LEFT} {bottom}H{RIGHT}\"/>"));
        bottom
    }

    /// Where a column of operations begins, and its width.
    fn column(&self, at: usize) -> (f64, f64) {
        let begun = at as u64 * self.columns.width;
        let x = self.x(begun);
        (x, (self.x(begun + self.columns.width) - x).max(0.1))
    }

    /// How many acknowledgments took how long: the more, the darker. Above them median and 99th percentile.
    fn latency(&self, out: &mut String, y: f64) -> f64 {
        name(out, y - 10.0, "Latency of acknowledged writes");
        let bottom = y + LATENCY;
        let cell = LATENCY / CLASSES as f64;
        for (seconds, text) in [(0.001, "1 ms"), (0.01, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s")] {
            let at = bottom - height_of(seconds);
            put(out, format_args!("<path class=\"grid\" d=\"M{LEFT} {at:.1}H{RIGHT}\"/>"));
            label(out, at + 4.0, text);
        }
        let most = self.columns.bins.iter().flat_map(|bin| bin.latencies).max().unwrap_or(0);
        let mut paths = vec![String::new(); SHADES];
        for (at, bin) in self.columns.bins.iter().enumerate() {
            let (x, width) = self.column(at);
            for (class, count) in bin.latencies.iter().enumerate().filter(|(_, count)| **count > 0) {
                let top = bottom - cell * (class + 1) as f64;
                let path = &mut paths[shade(*count, most)];
                put(path, format_args!("M{x:.1} {top:.1}h{width:.1}v{cell:.2}h-{width:.1}z"));
            }
        }
        for (shade, path) in paths.iter().enumerate() {
            let opacity = 0.18 + 0.82 * shade as f64 / (SHADES - 1) as f64;
            put(out, format_args!("<path class=\"heat\" fill-opacity=\"{opacity:.2}\" d=\"{path}\"/>"));
        }
        for (class, part) in [("p50", 0.5), ("p99", 0.99)] {
            let mut path = String::new();
            let mut drawn = false;
            for (at, bin) in self.columns.bins.iter().enumerate() {
                let Some(seconds) = bin.quantile(part) else {
                    drawn = false;
                    continue;
                };
                let (x, width) = self.column(at);
                let (x, y) = (x + width / 2.0, bottom - height_of(seconds));
                // One column by itself is a dot.
                let step = if drawn { format!("L{x:.1} {y:.1}") } else { format!("M{x:.1} {y:.1}h.1") };
                path += &step;
                drawn = true;
            }
            put(out, format_args!("<path class=\"{class}\" d=\"{path}\"/>"));
        }
        put(out, format_args!("<path class=\"base\" d=\"M{LEFT} {bottom}H{RIGHT}\"/>"));
        bottom
    }

    /// A lane for each group.
    fn leaders(&self, out: &mut String, mut y: f64) -> f64 {
        name(out, y - 8.0, "Leaders");
        for group in self.reigns.chunk_by(|one, next| one.group == next.group) {
            let id = group[0].group;
            label(out, y + 11.0, &if id == 0 { "group 0 (meta)".to_owned() } else { format!("group {id}") });
            for one in group {
                let (x, width) = self.span(one.first, one.last);
                // A gap is left before the next term.
                let width = (width - 0.8).max(THINNEST / 2.0);
                let Reign { node, term, .. } = one;
                let color = (node.saturating_sub(1)) % 5 + 1;
                let (top, height) = (y + 2.0, LANE - 4.0);
                put(
                    out,
                    format_args!(
                        "<rect class=\"n{color}\" x=\"{x:.1}\" y=\"{top}\" width=\"{width:.1}\" height=\"{height}\">\
                         <title>group {id}, term {term}: node {node}</title></rect>"
                    ),
                );
            }
            y += LANE;
        }
        y
    }

    fn axis(&self, out: &mut String, bottom: f64) {
        let seconds = self.until as f64 / 1e9;
        let step = tick(seconds);
        let at = bottom + 18.0;
        for n in 0..=(seconds / step) as u64 {
            let time = n as f64 * step;
            let x = self.x((time * 1e9) as u64);
            put(out, format_args!("<path class=\"grid\" d=\"M{x:.1} 14V{bottom}\"/>"));
            put(out, format_args!("<text x=\"{x:.1}\" y=\"{at}\" text-anchor=\"middle\">{}</text>", clock(time)));
        }
    }
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    out.write_fmt(what).expect("a string takes everything");
}

fn name(out: &mut String, y: f64, text: &str) {
    put(out, format_args!("<text class=\"name\" x=\"8\" y=\"{y}\">{}</text>", escape(text)));
}

fn label(out: &mut String, y: f64, text: &str) {
    let x = LEFT - 8.0;
    put(out, format_args!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{}</text>", escape(text)));
}

/// Where a latency is above the foot of its panel; every class is equally high.
fn height_of(seconds: f64) -> f64 {
    let first = slowest(0);
    let steps = (seconds / first).log2() / (slowest(CLASSES - 1) / first).log2() * (CLASSES - 1) as f64 + 1.0;
    (steps / CLASSES as f64).clamp(0.0, 1.0) * LATENCY
}

/// How dark a count is, in steps that are the same ratio each: single slow writes must not drown in the mass of others.
fn shade(count: u32, most: u32) -> usize {
    if most <= 1 {
        return SHADES - 1;
    }
    let part = f64::from(count.max(1)).ln() / f64::from(most).ln();
    (part * (SHADES - 1) as f64).round().clamp(0.0, (SHADES - 1) as f64) as usize
}

/// The next round number; 1 at least.
fn nice(value: f64) -> f64 {
    let mut nice = 1.0;
    loop {
        for factor in [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0] {
            if nice * factor >= value {
                return nice * factor;
            }
        }
        nice *= 10.0;
    }
}

/// Seconds between marks on the axis of so many seconds: eight marks or so.
fn tick(seconds: f64) -> f64 {
    let steps = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0];
    steps.into_iter().find(|step| seconds / step <= 12.0).unwrap_or(seconds / 12.0)
}

fn clock(seconds: f64) -> String {
    let whole = seconds as u64;
    if whole < 60 { format!("{whole} s") } else { format!("{}:{:02}", whole / 60, whole % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;
    use crate::history::Outcome;
    use crate::timeline::Timeline;
    use crate::timeline::testing::add;

    const SECOND: u64 = 1_000_000_000;

    fn strike(begun: u64, ended: u64, detail: &str) -> Strike {
        let detail = detail.to_owned();
        Strike { fault: Fault::KillLeader, node: Some(0), begun, ended, effective: true, detail, left: None }
    }

    #[test]
    fn overlapping_windows_are_shaded_once() {
        let strikes = [(5, 6), (1, 2), (1, 3), (3, 4)].map(|(from, to)| strike(from * SECOND, to * SECOND, ""));
        let columns = Timeline::default().columns(9 * SECOND, 300);
        let drawn = Picture { until: 9 * SECOND, columns: &columns, strikes: &strikes, reigns: &[] }.draw();
        assert_eq!(drawn.matches("class=\"shade\"").count(), 2);
    }

    #[test]
    fn axes_end_at_round_numbers() {
        let ends = [0.0, 1.0, 1.1, 4.0, 95.0, 101.0, 5200.0].map(nice);
        assert_eq!(ends, [1.0, 1.0, 1.5, 4.0, 100.0, 150.0, 6000.0]);
        assert_eq!([8.0, 100.0, 600.0, 3600.0].map(tick), [1.0, 10.0, 60.0, 300.0]);
        assert_eq!([0.0, 59.0, 60.0, 3605.0].map(clock), ["0 s", "59 s", "1:00", "60:05"]);
    }

    #[test]
    fn one_slow_write_among_thousands_is_still_seen() {
        assert_eq!((shade(1, 10_000), shade(100, 10_000), shade(10_000, 10_000)), (0, 3, SHADES - 1));
        assert_eq!((shade(1, 1), shade(0, 0)), (SHADES - 1, SHADES - 1));
    }

    #[test]
    fn latencies_are_above_each_other_by_their_ratio() {
        let one_more = |seconds: f64| height_of(seconds * 2.0) - height_of(seconds);
        assert!((one_more(0.001) - one_more(1.0)).abs() < 1e-6);
        assert!((height_of(slowest(CLASSES - 1)) - LATENCY).abs() < 1e-6 && height_of(1e-9) == 0.0);
    }

    #[test]
    fn a_run_of_two_hundred_thousand_operations_and_a_thousand_faults_is_a_small_picture() {
        let mut timeline = Timeline::default();
        let add = |n: u64| add(n * SECOND / 50, (n * 7919) % SECOND, Outcome::Ok);
        timeline.add(&(0..200_000).map(add).collect::<Vec<_>>());
        let strikes: Vec<Strike> = (0..1000).map(|n| strike(n * 4 * SECOND, (n * 4 + 2) * SECOND, "node 1")).collect();
        let until = 4000 * SECOND;
        let columns = timeline.columns(until, COLUMNS);
        let picture = Picture { until, columns: &columns, strikes: &strikes, reigns: &[] }.draw();
        assert!(picture.len() < 1_500_000, "{} bytes", picture.len());
        assert_eq!(picture.matches("class=\"fault\"").count(), 1000, "each has its mark");
        let places = picture.replace("class=\"info\"", "");
        assert!(!places.contains("NaN") && !places.contains("inf"), "every place is a number");
    }

    #[test]
    fn nothing_at_all_is_drawn_without_a_panic_and_texts_are_escaped() {
        let columns = Timeline::default().columns(0, COLUMNS);
        let empty = Picture { until: 0, columns: &columns, strikes: &[], reigns: &[] }.draw();
        assert!(empty.starts_with("<svg") && !empty.contains("NaN"), "{empty}");
        let strikes = [strike(0, u64::MAX, "<script>alert(\"x\")</script>")];
        let drawn = Picture { until: SECOND, columns: &columns, strikes: &strikes, reigns: &[] }.draw();
        assert!(!drawn.contains("<script") && drawn.contains("&lt;script&gt;"), "{drawn}");
    }

    #[test]
    fn each_leadership_has_its_nodes_colour_in_its_groups_lane() {
        let columns = Timeline::default().columns(0, COLUMNS);
        let reign = |group, term, node| Reign { group, term, node, first: term * SECOND, last: (term + 1) * SECOND };
        let reigns = [reign(0, 1, 1), reign(0, 2, 3), reign(5, 1, 2)];
        let drawn = Picture { until: 9 * SECOND, columns: &columns, strikes: &[], reigns: &reigns }.draw();
        for part in ["group 0 (meta)", ">group 5<", "class=\"n1\"", "class=\"n3\"", "group 5, term 1: node 2"] {
            assert!(drawn.contains(part), "{part}: {drawn}");
        }
    }
}
