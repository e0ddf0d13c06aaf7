//! The section of the results.

use std::fmt::Write;

use super::crowd::ASKERS;
use super::engines::Times;
use super::{Crowd, Dashboard, Engine, MeasuredQueries, QUESTIONS, Reads, Spread};
use crate::lake::{Row, table};

pub(crate) fn render(queries: &MeasuredQueries) -> String {
    let mut out = questions(queries);
    out.push_str(&reads(&queries.reads));
    out.push_str(&dashboard(&queries.dashboard));
    out.push_str(&crowd(&queries.crowd));
    out
}

fn questions(queries: &MeasuredQueries) -> String {
    let MeasuredQueries { spans, logs, files: [of_spans, of_logs], rounds, engines, .. } = queries;
    let cold = if queries.cold { "with the page cache dropped" } else { "with a warm page cache" };
    let mut out = format!(
        "\nQueries of {spans} seeded spans ({of_spans} files) and {logs} log records ({of_logs} files), compacted. \
         Milliseconds: the first run {cold} / the best of {rounds}. SignalDB is asked over HTTP and answers in JSON; the \
         others in their own process, DuckDB and DataFusion on the same Parquet files, ClickHouse on a table of its own.\n\n"
    );
    let heads: Vec<&str> = engines.iter().map(|engine| engine.name.as_str()).collect();
    let rule = "---|".repeat(heads.len());
    let _ = writeln!(out, "| | {} | SignalDB / best of the others, hot |\n|---|{rule}---|", heads.join(" | "));
    for (at, question) in QUESTIONS.iter().enumerate() {
        let cells: Vec<String> = engines.iter().map(|engine| pair(engine.times[at])).collect();
        let ratio = ratio(engines, at).map_or_else(
            || "not asked".to_owned(),
            |ratio| format!("{ratio:.2}, expected {} or less", question.expected),
        );
        let _ = writeln!(out, "| {} | {} | {ratio} |", question.name, cells.join(" | "));
    }
    out
}

fn pair(times: Option<Times>) -> String {
    let Some(times) = times else { return "another answer".to_owned() };
    let digits = |millis: f64| if millis < 100.0 { format!("{millis:.1}") } else { format!("{millis:.0}") };
    format!("{} / {}", digits(times.cold), digits(times.hot))
}

/// Of the hot times of a question: the first engine's to the best of the others.
fn ratio(engines: &[Engine], question: usize) -> Option<f64> {
    let (ours, others) = engines.split_first()?;
    let hot = |engine: &Engine| engine.times[question].map(|times| times.hot);
    let best = others.iter().filter_map(hot).min_by(f64::total_cmp)?;
    Some(hot(ours)? / best)
}

fn reads(reads: &[Reads]) -> String {
    let heads: Vec<String> = reads
        .iter()
        .map(|one| if one.nodes == 1 { "1 node".to_owned() } else { format!("a follower of {} nodes", one.nodes) })
        .collect();
    let rows: [Row<'_, Reads>; 4] = [
        ("strong p50 / p99, ms", &|one| format!("{:.2} / {:.2}", one.strong.p50, one.strong.p99)),
        ("eventual p50 / p99, ms", &|one| format!("{:.2} / {:.2}", one.eventual.p50, one.eventual.p99)),
        ("HTTP round trip p50 / p99, ms", &|one| format!("{:.2} / {:.2}", one.round_trip.p50, one.round_trip.p99)),
        ("strong - eventual, p50, ms, expected a round trip + 1 or less", &|one| {
            format!("{:.2}", one.strong.p50 - one.eventual.p50)
        }),
    ];
    format!("\nA count, strong and eventual in turn:\n\n{}", table(&heads, reads, &rows))
}

fn dashboard(dashboard: &Dashboard) -> String {
    let Dashboard { seconds, refreshes, rate, queries, refresh, acks: [alone, beside], .. } = dashboard;
    let mut out = format!(
        "\nA dashboard of ten queries of the last 15 minutes, all at once, refreshed without pause for {seconds:.0} s \
         ({refreshes} times), while {rate:.0} records/s come in:\n\n| | p50 / p99, ms |\n|---|---|\n"
    );
    let mut row = |name: &str, latency: &crate::load::Latency| {
        let _ = writeln!(out, "| {name} | {:.1} / {:.1} |", latency.p50, latency.p99);
    };
    for (name, latency) in &dashboard.panels {
        row(name, latency);
    }
    row("every query", queries);
    row("a whole refresh", refresh);
    row("acknowledgments without it", alone);
    row("acknowledgments beside it", beside);
    out
}

fn crowd(crowd: &Crowd) -> String {
    let Crowd { seconds, answered, refused, took, acks: [alone, beside] } = crowd;
    let times = beside.p99 / alone.p99;
    format!(
        "\n{ASKERS} aggregations by trace at a time, without pause for {seconds:.0} s, beside the same rows: {answered} \
         answered (p50 / p99 {:.0} / {:.0} ms), {refused} refused. Acknowledgments p50 / p99, ms: {:.1} / {:.1} without, \
         {:.1} / {:.1} with; p99 {times:.1} times, expected 2 or less.\n",
        took.p50, took.p99, alone.p50, alone.p99, beside.p50, beside.p99
    )
}

pub(crate) fn render_spread(spread: &Spread) -> String {
    let Spread { nodes, spans, logs, files: [of_spans, of_logs], rounds, questions } = spread;
    let mut out = format!(
        "\nThe same questions to one of {nodes} nodes, {spans} spans ({of_spans} files) and {logs} log records \
         ({of_logs} files) as they were flushed: scans that stay there, and scans that all nodes share, in turn. Best of \
         {rounds}, milliseconds.\n\n| | here | spread | spread / here | nodes that share |\n|---|---|---|---|---|\n"
    );
    for asked in questions {
        let nodes = asked.nodes.map_or_else(|| "stays".to_owned(), |nodes| nodes.to_string());
        let (here, spread) = (asked.here, asked.spread);
        let _ = writeln!(out, "| {} | {here:.1} | {spread:.1} | {:.2} | {nodes} |", asked.name, spread / here);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Latency;
    use crate::query::spread::Asked;

    fn engine(name: &str, hot: f64) -> Engine {
        let times = vec![Some(Times { cold: 250.4, hot }); QUESTIONS.len()];
        Engine { name: name.to_owned(), times, answers: Vec::new() }
    }

    #[test]
    fn every_figure_has_its_row() {
        let latency = |p50| Latency { p50, p99: 9.5 };
        let mut wrong = engine("X 3", 1.0);
        wrong.times = vec![None; QUESTIONS.len()];
        let queries = MeasuredQueries {
            spans: 1000,
            logs: 500,
            files: [2, 1],
            rounds: 10,
            cold: true,
            engines: vec![engine("SignalDB", 12.0), engine("DuckDB 1", 10.0), engine("ClickHouse 2", 40.0), wrong],
            reads: vec![Reads { nodes: 3, strong: latency(2.5), eventual: latency(1.0), round_trip: latency(0.5) }],
            dashboard: Dashboard {
                seconds: 30.0,
                refreshes: 40,
                rate: 20_000.0,
                panels: vec![("newest logs", latency(5.0))],
                queries: latency(6.0),
                refresh: latency(7.0),
                acks: [latency(1.0), latency(2.0)],
            },
            crowd: Crowd {
                seconds: 30.0,
                answered: 100,
                refused: 3,
                took: latency(900.0),
                acks: [latency(1.0), latency(2.0)],
            },
        };
        let text = render(&queries);
        for line in [
            "1000 seeded spans (2 files) and 500 log records (1 files)",
            "| | SignalDB | DuckDB 1 | ClickHouse 2 | X 3 | SignalDB / best of the others, hot |\n|---|---|---|---|---|---|",
            "| trace by id | 250 / 12.0 | 250 / 10.0 | 250 / 40.0 | another answer | 1.20, expected 1 or less |",
            "| | a follower of 3 nodes |",
            "| 1.50 |",
            "| newest logs | 5.0 / 9.5 |",
            "| acknowledgments beside it | 2.0 / 9.5 |",
            "30 s, beside the same rows: 100 answered (p50 / p99 900 / 10 ms), 3 refused.",
            "1.0 / 9.5 without, 2.0 / 9.5 with; p99 1.0 times, expected 2 or less.",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }

    #[test]
    fn alone_there_is_no_ratio() {
        assert_eq!(ratio(&[engine("SignalDB", 12.0)], 0), None);
    }

    #[test]
    fn a_question_that_stays_says_so() {
        let asked = |name, nodes| Asked { name, here: 100.0, spread: 50.0, nodes };
        let questions = vec![asked("count by service", Some(3)), asked("newest 100", None)];
        let spread = Spread { nodes: 3, spans: 1000, logs: 500, files: [7, 5], rounds: 10, questions };
        let text = render_spread(&spread);
        for line in [
            "one of 3 nodes, 1000 spans (7 files) and 500 log records (5 files)",
            "| count by service | 100.0 | 50.0 | 0.50 | 3 |",
            "| newest 100 | 100.0 | 50.0 | 0.50 | stays |",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
