//! `signaldb table`: what the tables look like, and maintenance on request.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use signaldb_model::DatasetId;
use signaldb_signals::SignalTable;
use signaldb_signals::copies::{CopyKind, Level};

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
    /// Copy an attribute into a column of one table (`--table`) from now on. Compaction fills it for older rows.
    Promote(PromoteArgs),
    /// Copy it no more. The column stays, and the attribute is where it always was.
    Demote(DemoteArgs),
    /// Show the attributes that were promoted, and in how many data files they have their columns.
    Promoted(Selection),
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

#[derive(Debug, clap::Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    what: DemoteArgs,
    /// Type of the column. Values that are not written as one have null there, and stay where they are.
    #[arg(long = "type", value_parser = CopyKind::ALL.map(CopyKind::name), default_value = "text")]
    kind: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DemoteArgs {
    /// Key of the attribute, as it is sent: `tenant.plan`.
    attribute: String,
    /// Whose attribute it is.
    #[arg(long, value_parser = Level::ALL.map(Level::name), default_value = "record")]
    level: String,
    #[command(flatten)]
    task: TaskArgs,
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
        TableCommand::Promote(PromoteArgs { what, kind }) => change_promotion(&what, "promote", Some(&kind)).await,
        TableCommand::Demote(what) => change_promotion(&what, "demote", None).await,
        TableCommand::Promoted(selection) => promoted(&selection).await,
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

async fn change_promotion(args: &DemoteArgs, path: &str, kind: Option<&str>) -> anyhow::Result<()> {
    let Selection { dataset, table, endpoint, .. } = &args.task.selection;
    let Some(table) = table else { bail!("--table says which table is meant") };
    let mut body = json!({"table": table, "key": args.attribute, "level": args.level, "dry_run": args.task.dry_run});
    for (name, value) in [("dataset", dataset.as_deref()), ("type", kind)] {
        if let Some(value) = value {
            body[name] = json!(value);
        }
    }
    let request = reqwest::Client::new().post(format!("{endpoint}/api/v1/admin/{path}")).json(&body);
    let report = args.task.selection.ask(request).await?;
    show(&args.task, &report, promotion)
}

async fn promoted(selection: &Selection) -> anyhow::Result<()> {
    let (body, answer) = selection.get("").await?;
    if selection.json() {
        println!("{body}");
        return failures(&answer);
    }
    println!(
        "{:<44} {:<8} {:<32} {:<40} {:<6} {:<8} {:>7} {:>7} {:>7}",
        "table", "level", "key", "column", "type", "state", "files", "filled", "whole"
    );
    for table in each(&answer["tables"]) {
        for one in each(&table["promoted"]) {
            println!(
                "{:<44} {:<8} {:<32} {:<40} {:<6} {:<8} {:>7} {:>7} {:>7}",
                name(table),
                text(&one["level"]),
                text(&one["key"]),
                text(&one["column"]),
                text(&one["type"]),
                if one["written"] == true { "promoted" } else { "demoted" },
                number(&table["files"]),
                number(&one["filled_files"]),
                number(&one["whole_files"])
            );
        }
    }
    failures(&answer)
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

fn promotion(table: &Value, dry_run: bool) -> String {
    let (key, level, column) = (text(&table["key"]), text(&table["level"]), text(&table["column"]));
    let (kind, verb) = (text(&table["type"]), if dry_run { "would be" } else { "is" });
    match text(&table["effect"]) {
        "promoted" => format!("{key} of {level} attributes {verb} copied into the new column {column} ({kind})"),
        "woken" => format!("{key} of {level} attributes {verb} copied into its column {column} ({kind}) again"),
        "demoted" => format!("{key} of {level} attributes {verb} no longer copied; the column {column} stays"),
        _ => format!("nothing to change about {key} of {level} attributes and its column {column} ({kind})"),
    }
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
    fn lines_say_what_becomes_of_an_attribute() {
        let said = |effect: &str, dry_run| {
            let (key, column) = ("tenant.plan", "attr_tenant_plan");
            let table = json!({"effect": effect, "key": key, "level": "record", "column": column, "type": "text"});
            promotion(&table, dry_run)
        };
        let new = "tenant.plan of record attributes is copied into the new column attr_tenant_plan (text)";
        assert_eq!(said("promoted", false), new);
        assert_eq!(said("promoted", true), new.replace(" is ", " would be "));
        let again = "tenant.plan of record attributes is copied into its column attr_tenant_plan (text) again";
        assert_eq!(said("woken", false), again);
        let gone = "tenant.plan of record attributes is no longer copied; the column attr_tenant_plan stays";
        assert_eq!(said("demoted", false), gone);
        assert!(said("unchanged", false).starts_with("nothing to change about tenant.plan "));
    }

    #[test]
    fn what_failed_is_an_error_and_names_the_table() {
        let answer =
            json!({"tables": [{"namespace": "a.b", "table": "logs", "error": "object store"}, {"table": "traces"}]});
        assert_eq!(failures(&answer).expect_err("fails").to_string(), "a.b.logs: object store");
        assert!(failures(&json!({"tables": []})).is_ok());
    }
}
