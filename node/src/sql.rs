//! `signaldb sql`: one query from the shell.

use anyhow::{Context, bail};
use arrow::ipc::reader::StreamReader;
use arrow::util::pretty::pretty_format_batches;
use serde_json::Value;

/// What to ask and whom.
#[derive(Debug, clap::Args)]
pub(crate) struct SqlArgs {
    /// The statement.
    query: String,
    /// Address of a node's HTTP API.
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    endpoint: String,
    #[arg(long, value_parser = ["table", "json", "csv"], default_value = "table")]
    format: String,
    /// API key, when authentication is on.
    #[arg(long, env = "SIGNALDB_API_KEY", hide_env_values = true)]
    key: Option<String>,
    #[arg(long, env = "SIGNALDB_TENANT")]
    tenant: Option<String>,
    #[arg(long)]
    dataset: Option<String>,
    #[arg(long, value_parser = ["strong", "eventual"], default_value = "strong")]
    consistency: String,
}

pub(crate) async fn run(args: SqlArgs) -> anyhow::Result<()> {
    let wire = if args.format == "table" { "arrow" } else { args.format.as_str() };
    let url = format!("{}/api/v1/sql?format={wire}&consistency={}", args.endpoint, args.consistency);
    let mut request = reqwest::Client::new().post(url).json(&serde_json::json!({"query": args.query}));
    if let Some(key) = &args.key {
        request = request.bearer_auth(key);
    }
    for (name, value) in [("x-tenant-id", &args.tenant), ("x-dataset-id", &args.dataset)] {
        if let Some(value) = value {
            request = request.header(name, value);
        }
    }
    let response =
        request.send().await.with_context(|| format!("reach a node at {}; is it running?", args.endpoint))?;
    let status = response.status();
    let body = response.bytes().await.context("read the answer")?;
    if !status.is_success() {
        let error: Value = serde_json::from_slice(&body).unwrap_or_default();
        match error["error"]["message"].as_str() {
            Some(message) => bail!("{message}"),
            None => bail!("{status}: {}", String::from_utf8_lossy(&body)),
        }
    }
    if args.format != "table" {
        println!("{}", String::from_utf8_lossy(&body));
        return Ok(());
    }
    let reader = StreamReader::try_new(body.as_ref(), None).context("read the rows")?;
    let batches = reader.collect::<Result<Vec<_>, _>>().context("read the rows")?;
    let rows: usize = batches.iter().map(arrow::array::RecordBatch::num_rows).sum();
    println!("{}\n{rows} row{}", pretty_format_batches(&batches)?, if rows == 1 { "" } else { "s" });
    Ok(())
}
