//! `signaldb query`: the queries that run, and an end to one.

use serde_json::Value;
use signaldb_query::QueryId;

use crate::cluster::{answer, text};

/// Characters of a query that a line shows.
const TEXT_CHARS: usize = 80;

/// Query commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum QueryCommand {
    /// Show the queries that run or wait, on all nodes.
    List(Target),
    /// Stop a query.
    Kill {
        /// As `list` shows it: `1-0a1b2c3d4e5f6071`.
        id: QueryId,
        #[command(flatten)]
        target: Target,
    },
}

/// Whom to ask, and as whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    endpoint: String,
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
    /// API key of the tenant, whose queries are meant; with the admin key everybody's are.
    #[arg(long, env = "SIGNALDB_API_KEY", hide_env_values = true)]
    key: Option<String>,
    #[arg(long, env = "SIGNALDB_TENANT")]
    tenant: Option<String>,
}

impl Target {
    async fn ask(&self, request: reqwest::RequestBuilder) -> anyhow::Result<(String, Value)> {
        let request = match &self.tenant {
            Some(tenant) => request.header("x-tenant-id", tenant),
            None => request,
        };
        answer(request, self.key.as_deref(), &self.endpoint).await
    }
}

pub(crate) async fn run(command: QueryCommand) -> anyhow::Result<()> {
    match command {
        QueryCommand::List(target) => list(&target).await,
        QueryCommand::Kill { id, target } => kill(id, &target).await,
    }
}

async fn list(target: &Target) -> anyhow::Result<()> {
    let url = format!("{}/api/v1/queries", target.endpoint);
    let (body, answer) = target.ask(reqwest::Client::new().get(url)).await?;
    if target.format == "json" {
        println!("{body}");
        return Ok(());
    }
    println!(
        "{:<24} {:<16} {:>10} {:>12} {:>14} {:>12} {:<9} query",
        "id", "tenant", "elapsed", "rows", "bytes scanned", "memory", "state"
    );
    for query in answer["queries"].as_array().into_iter().flatten() {
        println!(
            "{:<24} {:<16} {:>8.1} s {:>12} {:>14} {:>12} {:<9} {}",
            text(&query["id"]),
            text(&query["tenant"]),
            query["elapsed_ms"].as_f64().unwrap_or_default() / 1000.0,
            query["rows"].to_string(),
            query["scanned_bytes"].to_string(),
            query["memory_bytes"].to_string(),
            text(&query["state"]),
            one_line(text(&query["query"]))
        );
    }
    for node in answer["unreachable"].as_array().into_iter().flatten() {
        println!("node {node} does not answer: its queries are not shown");
    }
    Ok(())
}

async fn kill(id: QueryId, target: &Target) -> anyhow::Result<()> {
    let url = format!("{}/api/v1/queries/{id}", target.endpoint);
    let (body, _) = target.ask(reqwest::Client::new().delete(url)).await?;
    match target.format.as_str() {
        "json" => println!("{body}"),
        _ => println!("query {id} was killed"),
    }
    Ok(())
}

/// The beginning of a text, without line breaks.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_queries_are_cut_to_a_line() {
        assert_eq!(one_line("SELECT 1\n  FROM  traces"), "SELECT 1 FROM traces");
        let long = one_line(&"é".repeat(100));
        assert_eq!(long.chars().count(), TEXT_CHARS + 3);
    }
}
