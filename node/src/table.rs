//! `signaldb table`: what the tables look like, and maintenance on request.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use signaldb_model::DatasetId;
use signaldb_signals::SignalTable;

use crate::cluster::{answer, text};

/// Table commands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TableCommand {
    /// Show version, snapshots, files and size of each table, and how much there is to compact.
    List(Selection),
    /// Show the data files of one table (`--table`), the largest size class first.
    Files(Selection),
    /// Merge small data files now, until nothing is left to merge.
    Compact(TaskArgs),
    /// Drop snapshots that no reader is promised any more. Their files go later, with `retention.grace`.
    Expire(TaskArgs),
    /// Remove what the configured retention does not keep.
    Retention(TaskArgs),
}

/// Which tables, and whom to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Selection {
    #[arg(long, env = "SIGNALDB_TENANT")]
    tenant: Option<String>,
    /// Default: all of the tenant; for `files` the tenant's default.
    #[arg(long)]
    dataset: Option<String>,
    /// Name as in SQL: `traces`. Default: all.
    #[arg(long)]
    table: Option<String>,
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    endpoint: String,
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    format: String,
    #[arg(long, env = "SIGNALDB_ADMIN_KEY", hide_env_values = true)]
    key: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TaskArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(command: TableCommand) -> anyhow::Result<()> {
    match command {
        TableCommand::List(selection) => list(&selection).await,
        TableCommand::Files(selection) => files(&selection).await,
        TableCommand::Compact(args) => compact(&args).await,
        TableCommand::Expire(args) => {
            let report = perform(&args, "expire").await?;
            show(&args, &report, expired)
        }
        TableCommand::Retention(args) => {
            let report = perform(&args, "retention").await?;
            show(&args, &report, retained)
        }
    }
}

impl Selection {
    async fn get(&self, path: &str) -> anyhow::Result<(String, Value)> {
        let mut url = format!("{}/api/v1/admin/tables{path}", self.endpoint);
        let mut separator = '?';
        for (name, value) in [("dataset", &self.dataset), ("table", &self.table)] {
            if let Some(value) = value {
                url = format!("{url}{separator}{name}={value}");
                separator = '&';
            }
        }
        self.ask(reqwest::Client::new().get(url)).await
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> anyhow::Result<(String, Value)> {
        // As text of an address: nothing that would have to be escaped.
        if let Some(dataset) = &self.dataset {
            DatasetId::new(dataset).context("--dataset")?;
        }
        if let Some(table) = &self.table
            && SignalTable::from_name(table).is_none()
        {
            bail!("--table {table:?} is not one of {}", SignalTable::ALL.map(SignalTable::name).join(", "));
        }
        let request = match &self.tenant {
            Some(tenant) => request.header("x-tenant-id", tenant),
            None => request,
        };
        answer(request, self.key.as_deref(), &self.endpoint).await
    }

    fn json(&self) -> bool {
        self.format == "json"
    }
}

async fn list(selection: &Selection) -> anyhow::Result<()> {
    let (body, answer) = selection.get("").await?;
    if selection.json() {
        println!("{body}");
        return Ok(());
    }
    println!(
        "{:<44} {:>8} {:>9} {:>7} {:>6} {:>12} {:>10} {:>9}  {:<10} {:<10}",
        "table", "version", "snapshots", "files", "small", "records", "size", "rewrites", "oldest", "newest"
    );
    for table in each(&answer["tables"]) {
        println!(
            "{:<44} {:>8} {:>9} {:>7} {:>6} {:>12} {:>10} {:>9}  {:<10} {:<10}",
            name(table),
            number(&table["version"]),
            number(&table["snapshots"]),
            number(&table["files"]),
            number(&table["small_files"]),
            number(&table["records"]),
            size(&table["bytes"]),
            number(&table["planned_rewrites"]),
            text(&table["oldest_day"]),
            text(&table["newest_day"])
        );
    }
    failures(&answer)
}

async fn files(selection: &Selection) -> anyhow::Result<()> {
    if selection.table.is_none() {
        bail!("--table says whose files are meant");
    }
    let (body, answer) = selection.get("/files").await?;
    if selection.json() {
        println!("{body}");
        return Ok(());
    }
    println!("{:<10} {:>5} {:>10} {:>10} {:<8} file", "day", "class", "records", "size", "order");
    for file in each(&answer["files"]) {
        println!(
            "{:<10} {:>5} {:>10} {:>10} {:<8} {}",
            text(&file["day"]),
            number(&file["class"]),
            number(&file["records"]),
            size(&file["bytes"]),
            if file["sorted"] == true { "sorted" } else { "unsorted" },
            text(&file["path"])
        );
    }
    Ok(())
}

/// Asks again while something is left and something was done: a node merges for about a minute at a time.
async fn compact(args: &TaskArgs) -> anyhow::Result<()> {
    loop {
        let report = perform(args, "compact").await?;
        show(args, &report, compacted)?;
        let tables = || each(&report.1["tables"]);
        let left: u64 = tables().filter_map(|table| table["left"].as_u64()).sum();
        let done = tables().any(|table| each(&table["rewrites"]).next().is_some());
        if args.dry_run || left == 0 || !done {
            return Ok(());
        }
    }
}

async fn perform(args: &TaskArgs, task: &str) -> anyhow::Result<(String, Value)> {
    let Selection { dataset, table, endpoint, .. } = &args.selection;
    let url = format!("{endpoint}/api/v1/admin/tables/{task}");
    let mut body = json!({"dry_run": args.dry_run});
    for (name, value) in [("dataset", dataset), ("table", table)] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    args.selection.ask(reqwest::Client::new().post(url).json(&body)).await
}

/// Prints the report, a line or more a table; fails when something did.
fn show(args: &TaskArgs, report: &(String, Value), line: fn(&Value, bool) -> String) -> anyhow::Result<()> {
    let (body, answer) = report;
    if args.selection.json() {
        println!("{body}");
    } else {
        for table in each(&answer["tables"]) {
            println!("{:<44} {}", name(table), line(table, args.dry_run));
        }
        if each(&answer["tables"]).next().is_none() {
            println!("no tables");
        }
    }
    failures(answer)
}

fn compacted(table: &Value, dry_run: bool) -> String {
    let rewrites = || each(&table["rewrites"]);
    let total = |field: &str| rewrites().filter_map(|rewrite| rewrite[field].as_u64()).sum::<u64>();
    let (count, files, rows, bytes) = (rewrites().count(), total("files"), total("rows"), bytes(total("bytes")));
    match dry_run {
        true if count == 0 => "nothing to merge".to_owned(),
        true => format!("{count} rewrites would merge {files} files with {rows} rows, {bytes}"),
        false => {
            let (new, left) = (total("new_files"), number(&table["left"]));
            format!("{count} rewrites made {new} files of {files} with {rows} rows, {bytes}; {left} rewrites are left")
        }
    }
}

fn expired(table: &Value, dry_run: bool) -> String {
    let count = table["snapshots"].as_u64().unwrap_or(0);
    if count == 0 {
        return "no snapshot has expired".to_owned();
    }
    let what = if dry_run { "would be dropped" } else { "were dropped" };
    format!("{count} snapshots of {} to {} {what}", text(&table["oldest"]), text(&table["newest"]))
}

fn retained(table: &Value, dry_run: bool) -> String {
    let Some(keep) = table["keep_seconds"].as_u64() else { return "kept for ever".to_owned() };
    let total = |field: &str| each(&table["days"]).filter_map(|day| day[field].as_u64()).sum::<u64>();
    let (files, rows, bytes) = (total("files"), total("rows"), bytes(total("bytes")));
    let days = keep as f64 / 86_400.0;
    if files == 0 {
        return format!("kept for {days} days; nothing is older");
    }
    let what = if dry_run { "would be removed" } else { "were removed" };
    let mut lines = format!("kept for {days} days; {files} files with {rows} rows, {bytes}, {what}");
    for day in each(&table["days"]) {
        let (files, rows) = (number(&day["files"]), number(&day["rows"]));
        lines = format!("{lines}\n  {:<10} {files} files, {rows} rows, {}", text(&day["day"]), size(&day["bytes"]));
    }
    lines
}

/// Fails with what the answer says of tables that could not be read or maintained.
fn failures(answer: &Value) -> anyhow::Result<()> {
    let failed = each(&answer["tables"]).filter(|table| table["error"].is_string());
    let failed: Vec<String> = failed.map(|table| format!("{}: {}", name(table), text(&table["error"]))).collect();
    if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("; ")) }
}

fn each(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn name(table: &Value) -> String {
    format!("{}.{}", text(&table["namespace"]), text(&table["table"]))
}

/// A number, or what stands for one that is not known.
fn number(value: &Value) -> String {
    value.as_i64().map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), bytes)
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_was_done_and_what_would_be() {
        let compaction = json!({"rewrites": [{"files": 9, "rows": 90, "bytes": 90_000, "new_files": 1}], "left": 2});
        assert_eq!(compacted(&compaction, true), "1 rewrites would merge 9 files with 90 rows, 87 KiB");
        let done = "1 rewrites made 1 files of 9 with 90 rows, 87 KiB; 2 rewrites are left";
        assert_eq!(compacted(&compaction, false), done);
        assert_eq!(compacted(&json!({"rewrites": [], "left": 0}), true), "nothing to merge");
        assert_eq!(expired(&json!({"snapshots": 0}), true), "no snapshot has expired");
        let snapshots = json!({"snapshots": 2, "oldest": "a", "newest": "b"});
        assert_eq!(expired(&snapshots, false), "2 snapshots of a to b were dropped");
        assert_eq!(retained(&json!({"keep_seconds": null, "days": []}), true), "kept for ever");
        let days = json!([{"day": "2026-01-02", "files": 1, "rows": 5, "bytes": 700}]);
        let expected =
            "kept for 2.5 days; 1 files with 5 rows, 700 B, would be removed\n  2026-01-02 1 files, 5 rows, 700 B";
        assert_eq!(retained(&json!({"keep_seconds": 216_000, "days": days}), true), expected);
    }

    #[test]
    fn what_failed_is_an_error_and_names_the_table() {
        let answer =
            json!({"tables": [{"namespace": "a.b", "table": "logs", "error": "object store"}, {"table": "traces"}]});
        assert_eq!(failures(&answer).expect_err("fails").to_string(), "a.b.logs: object store");
        assert!(failures(&json!({"tables": []})).is_ok());
    }
}
