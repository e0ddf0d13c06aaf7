//! How soon questions are answered: beside other engines on the same rows, strong beside eventual, and by a dashboard and
//! by many at once while rows come in; in a cluster, with scans that stay on a node and with scans that spread.

mod consistency;
mod crowd;
mod dashboard;
mod engines;
mod questions;
mod report;
mod spread;

use std::path::Path;
use std::time::Duration;

pub(crate) use consistency::Reads;
pub(crate) use crowd::Crowd;
pub(crate) use dashboard::Dashboard;
pub(crate) use engines::Engine;
pub(crate) use questions::{QUESTIONS, Question};
pub(crate) use report::{render, render_spread};
pub(crate) use spread::{Spread, measure as measure_spread};

use crate::lake;
use crate::load::Signal;

/// Everything about queries.
#[derive(Debug)]
pub(crate) struct MeasuredQueries {
    pub(crate) spans: u64,
    pub(crate) logs: u64,
    /// Data files of spans and of log records.
    pub(crate) files: [usize; 2],
    pub(crate) rounds: usize,
    /// The page cache was dropped before each first run.
    pub(crate) cold: bool,
    /// SignalDB first, then the others that were asked.
    pub(crate) engines: Vec<Engine>,
    pub(crate) reads: Vec<Reads>,
    pub(crate) dashboard: Dashboard,
    pub(crate) crowd: Crowd,
}

/// What to measure.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) spans: u64,
    pub(crate) logs: u64,
    /// Runs of each question after the first.
    pub(crate) rounds: usize,
    /// Interpreter that has the other engines; without it there is no comparison.
    pub(crate) python: Option<&'a Path>,
    pub(crate) dashboard_lasts: Duration,
}

pub(crate) async fn measure(plan: &Plan<'_>) -> anyhow::Result<MeasuredQueries> {
    let (mut node, sizes, _) = lake::filled(plan.binary, plan.spans, plan.logs).await?;
    let of = |signal: Signal| sizes.iter().find(|size| size.signal == signal).map(|size| &size.compacted).cloned();
    let (spans, logs) = (of(Signal::Spans).unwrap_or_default(), of(Signal::Logs).unwrap_or_default());
    // A process that has read nothing yet, as the others.
    node.kill(0)?;
    node.restart(plan.binary, 0).await?;
    let cold = crate::wal::drop_caches();
    if !cold {
        eprintln!("query: the page cache can be dropped by root alone; first runs are measured warm");
    }
    let trace = engines::some_trace(&node).await?;
    let ours = engines::ask_signaldb(&node, &trace, plan.rounds, cold).await?;
    let mut engines = vec![ours];
    if let Some(python) = plan.python {
        let asked = engines::Asked { spans: &spans, logs: &logs, trace: &trace, rounds: plan.rounds, cold };
        engines.extend(engines::ask_others(python, &asked, &engines[0]).await?);
    }
    let dashboard = dashboard::measure(&node, plan.dashboard_lasts).await?;
    let crowd = crowd::measure(&node, plan.dashboard_lasts).await?;
    node.stop(Duration::from_secs(60))?;
    let reads = consistency::measure(plan.binary).await?;
    Ok(MeasuredQueries {
        spans: spans.records,
        logs: logs.records,
        files: [spans.paths.len(), logs.paths.len()],
        rounds: plan.rounds,
        cold,
        engines,
        reads,
        dashboard,
        crowd,
    })
}
