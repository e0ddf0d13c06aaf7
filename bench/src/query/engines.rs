//! The same questions to SignalDB, over HTTP, and to DuckDB, DataFusion and ClickHouse (chdb) in processes of their own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{QUESTIONS, Question};
use crate::lake::Files;
use crate::node::Node;

const SCRIPTS: [(&str, &str); 2] =
    [("peers.py", include_str!("../../python/peers.py")), ("queries.py", include_str!("../../python/queries.py"))];
const OTHERS: [&str; 3] = ["duckdb", "datafusion", "clickhouse"];

/// How long an engine took for each of [`QUESTIONS`], milliseconds.
#[derive(Debug)]
pub(crate) struct Engine {
    /// With its version, where it is not ours.
    pub(crate) name: String,
    /// `None` for another answer than ours: fast and wrong is no comparison.
    pub(crate) times: Vec<Option<Times>>,
    /// What it answered, as texts.
    pub(super) answers: Vec<Vec<Vec<String>>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The first run.
    pub(crate) cold: f64,
    /// The best of the others.
    pub(crate) hot: f64,
}

/// What the other engines read, and how often.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) spans: &'a Files,
    pub(crate) logs: &'a Files,
    pub(crate) trace: &'a str,
    pub(crate) rounds: usize,
    pub(crate) cold: bool,
}

/// The id of a trace that there is.
pub(crate) async fn some_trace(node: &Node) -> anyhow::Result<String> {
    let (rows, _) = node.sql("SELECT trace_id FROM traces WHERE service_name = 'checkout' LIMIT 1").await?;
    Ok(rows[0][0].as_str().context("a trace")?.to_owned())
}

pub(crate) async fn ask_signaldb(node: &Node, trace: &str, rounds: usize, cold: bool) -> anyhow::Result<Engine> {
    let mut ours = Engine { name: "SignalDB".to_owned(), times: Vec::new(), answers: Vec::new() };
    for question in QUESTIONS {
        let sql = question.signaldb.replace("{traces}", "traces").replace("{logs}", "logs").replace("{trace}", trace);
        if cold {
            tokio::task::spawn_blocking(crate::wal::drop_caches).await?;
        }
        let (rows, first) = node.sql(&sql).await.with_context(|| question.name)?;
        let mut hot = f64::INFINITY;
        for _ in 0..rounds {
            hot = hot.min(node.sql(&sql).await?.1.as_secs_f64() * 1000.0);
        }
        ours.times.push(Some(Times { cold: first.as_secs_f64() * 1000.0, hot }));
        ours.answers.push(texts(&rows)?);
    }
    Ok(ours)
}

/// Asks the other engines, one after the other.
pub(crate) async fn ask_others(python: &Path, asked: &Asked<'_>, ours: &Engine) -> anyhow::Result<Vec<Engine>> {
    let mut others = Vec::new();
    for engine in OTHERS {
        let dir = tempfile::tempdir()?;
        for (name, script) in SCRIPTS {
            std::fs::write(dir.path().join(name), script)?;
        }
        let argument = argument(engine, asked, dir.path());
        let mut command = Command::new(python);
        command.arg(dir.path().join("queries.py")).arg(argument.to_string());
        let output = tokio::task::spawn_blocking(move || command.output()).await?;
        let output = output.with_context(|| format!("run {}", python.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{engine}: {said}");
        let mut other = parse(&String::from_utf8_lossy(&output.stdout)).with_context(|| engine)?;
        for difference in other.leave_out_what_differs(ours) {
            eprintln!("query: {difference}");
        }
        others.push(other);
    }
    Ok(others)
}

fn argument(engine: &str, asked: &Asked<'_>, dir: &Path) -> Value {
    let words = |question: &Question| match engine {
        "duckdb" => question.duckdb,
        "datafusion" => question.datafusion,
        _ => question.clickhouse,
    };
    let questions: Vec<Value> = QUESTIONS
        .iter()
        .map(|question| json!({"name": question.name, "sql": words(question).replace("{trace}", asked.trace)}))
        .collect();
    json!({
        "engine": engine, "tables": {"traces": asked.spans.paths, "logs": asked.logs.paths}, "dir": dir,
        "rounds": asked.rounds, "cold": asked.cold, "questions": questions,
    })
}

fn parse(answer: &str) -> anyhow::Result<Engine> {
    let answer: Value = serde_json::from_str(answer.trim()).with_context(|| format!("not an answer: {answer}"))?;
    let name = answer["version"].as_str().context("a version")?.to_owned();
    let mut engine = Engine { name, times: Vec::new(), answers: Vec::new() };
    for one in answer["answers"].as_array().context("answers")? {
        let millis = |of: &str| one[of].as_f64().context("milliseconds");
        engine.times.push(Some(Times { cold: millis("cold")?, hot: millis("hot")? }));
        engine.answers.push(texts(&one["rows"])?);
    }
    ensure!(engine.times.len() == QUESTIONS.len(), "{} answers", engine.times.len());
    Ok(engine)
}

fn texts(rows: &Value) -> anyhow::Result<Vec<Vec<String>>> {
    let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    let row = |row: &Value| anyhow::Ok(row.as_array().context("a row")?.iter().map(text).collect());
    rows.as_array().context("rows")?.iter().map(row).collect()
}

impl Engine {
    /// Forgets the times of answers that are not ours; returns what differs.
    fn leave_out_what_differs(&mut self, ours: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (at, question) in QUESTIONS.iter().enumerate() {
            let (we, they) = (&ours.answers[at], &self.answers[at]);
            let same = if question.exact { we == they } else { we.len() == they.len() };
            if !same || we.is_empty() {
                let (name, of) = (question.name, &self.name);
                let (we, they) = (&we[..we.len().min(3)], &they[..they.len().min(3)]);
                differences.push(format!("{name}: we say {we:?}, {of} says {they:?}"));
                self.times[at] = None;
            }
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(first: &str) -> String {
        let answer = |question: &Question| json!({"name": question.name, "cold": 2.5, "hot": 1, "rows": [[first, 1]]});
        json!({"version": "X 1", "answers": QUESTIONS.iter().map(answer).collect::<Vec<_>>()}).to_string()
    }

    #[test]
    fn engines_that_answer_otherwise_are_not_compared() {
        let ours = parse(&answers("a")).expect("parses");
        assert_eq!(ours.times.len(), QUESTIONS.len());
        let first = ours.times[0].expect("times");
        assert!((first.cold - 2.5).abs() < 1e-9 && (first.hot - 1.0).abs() < 1e-9);
        let mut same = parse(&answers("a")).expect("parses");
        assert!(same.leave_out_what_differs(&ours).is_empty() && same.times[0].is_some());
        let mut other = parse(&answers("b")).expect("parses");
        let differences = other.leave_out_what_differs(&ours);
        assert!(differences[0].contains("count of all") && differences[0].contains("X 1"), "{differences:?}");
        for (question, times) in QUESTIONS.iter().zip(&other.times) {
            assert_eq!(times.is_some(), !question.exact, "{}", question.name);
        }
        assert!(parse(r#"{"version": "X", "answers": []}"#).is_err());
    }

    #[test]
    fn an_engine_is_asked_in_its_words() {
        let files = Files::default();
        let asked = Asked { spans: &files, logs: &files, trace: "0a0b", rounds: 3, cold: false };
        let argument = argument("clickhouse", &asked, Path::new("/d"));
        let questions = argument["questions"].as_array().expect("questions");
        assert!(
            questions.iter().any(|question| question["sql"].as_str().is_some_and(|sql| sql.contains("unhex('0a0b')")))
        );
        assert_eq!(argument["dir"], "/d");
    }
}
