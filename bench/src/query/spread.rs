//! Questions to a node of a cluster, in turn with scans that stay there and with scans that all nodes share
//! (`query.distributed`).

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::engines::some_trace;
use super::{QUESTIONS, Question};
use crate::lake;
use crate::load::Signal;
use crate::node::Node;

/// Every scan of several files spreads, however small; files stay as they were flushed.
const SETTINGS: [&str; 2] = ["query.distributed.min_bytes=0B", "compaction.enabled=false"];

/// One question.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) name: &'static str,
    /// Best of the rounds, milliseconds: scans that stay, and scans that spread.
    pub(crate) here: f64,
    pub(crate) spread: f64,
    /// Nodes that share the largest scan; `None` when all of it stays, by what `EXPLAIN` shows.
    pub(crate) nodes: Option<usize>,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Spread {
    pub(crate) nodes: usize,
    pub(crate) spans: u64,
    pub(crate) logs: u64,
    /// Data files of spans and of log records.
    pub(crate) files: [usize; 2],
    pub(crate) rounds: usize,
    pub(crate) questions: Vec<Asked>,
}

pub(crate) async fn measure(
    binary: &Path,
    nodes: usize,
    (spans, logs): (u64, u64),
    rounds: usize,
) -> anyhow::Result<Spread> {
    let node = Node::start_with(binary, nodes, SETTINGS.map(str::to_owned).into()).await?;
    let of_spans = lake::load_one(&node, Signal::Spans, spans).await?;
    let of_logs = lake::load_one(&node, Signal::Logs, logs).await?;
    let trace = some_trace(&node).await?;
    let mut questions = Vec::new();
    for question in QUESTIONS {
        questions.push(ask(&node, question, &trace, rounds).await.with_context(|| question.name)?);
    }
    node.stop(Duration::from_secs(60))?;
    Ok(Spread {
        nodes,
        spans: of_spans.records,
        logs: of_logs.records,
        files: [of_spans.flushed.paths.len(), of_logs.flushed.paths.len()],
        rounds,
        questions,
    })
}

async fn ask(node: &Node, question: &Question, trace: &str, rounds: usize) -> anyhow::Result<Asked> {
    let sql = question.signaldb.replace("{traces}", "traces").replace("{logs}", "logs").replace("{trace}", trace);
    let ask = async |how: &str, sql: &str| node.sql_with("x-signaldb-distributed", how, sql).await;
    let (plan, _) = ask("on", &format!("EXPLAIN {sql}")).await?;
    let (mut here, mut spread) = (f64::INFINITY, f64::INFINITY);
    // The first of each fills the caches.
    for round in 0..=rounds {
        let ((one, stays), (other, spreads)) = (ask("off", &sql).await?, ask("on", &sql).await?);
        anyhow::ensure!(!question.exact || one == other, "other rows when scans spread: {one} and {other}");
        if round > 0 {
            here = here.min(stays.as_secs_f64() * 1000.0);
            spread = spread.min(spreads.as_secs_f64() * 1000.0);
        }
    }
    Ok(Asked { name: question.name, here, spread, nodes: sharing(&plan) })
}

/// Of the boundaries of a plan, the most nodes that are behind one.
fn sharing(plan: &Value) -> Option<usize> {
    let text = plan.to_string();
    let tasks = text.split("input_tasks=").skip(1);
    tasks.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_says_who_shares_its_scans() {
        let boundary =
            |tasks: usize| format!("[Stage 0] => NetworkCoalesceExec: output_partitions=6, input_tasks={tasks}");
        let plan = json!([["logical_plan", "x"], ["physical_plan", format!("{}\n{}", boundary(2), boundary(3))]]);
        assert_eq!(sharing(&plan), Some(3));
        assert_eq!(sharing(&json!([["physical_plan", "DataSourceExec"]])), None);
    }
}
