//! The section of the results.

use std::fmt::Write;

use super::{Codec, Commits, Compaction, Files, MeasuredLake, Peers, Size, Tenants};

pub(crate) fn render(lake: &MeasuredLake) -> String {
    let mut out = codec(&lake.codec);
    out.push_str(&sizes(&lake.sizes));
    out.push_str(&compaction(&lake.compaction));
    out.push_str(&commits(&lake.commits));
    out.push_str(&tenants(&lake.tenants));
    out
}

/// The head of a row, and its cell for each column.
pub(crate) type Row<'a, T> = (&'a str, &'a dyn Fn(&T) -> String);

/// A row for each of `rows`: its name, and a value of each of `of`.
pub(crate) fn table<T>(heads: &[String], of: &[T], rows: &[Row<'_, T>]) -> String {
    let mut out = format!("| | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for (name, value) in rows {
        let values: Vec<String> = of.iter().map(value).collect();
        let _ = writeln!(out, "| {name} | {} |", values.join(" | "));
    }
    out
}

fn codec(codec: &[Codec]) -> String {
    let heads: Vec<String> = codec.iter().map(|one| one.signal.name().to_owned()).collect();
    let rows: [Row<'_, Codec>; 5] = [
        ("check, records/s", &|one| format!("{:.0}", one.check)),
        ("decode to columns, records/s, expected 150,000 spans or more", &|one| format!("{:.0}", one.decode)),
        ("sort and encode as Parquet, records/s", &|one| format!("{:.0}", one.encode)),
        ("end to end, records/s, expected 80,000 spans or more", &|one| format!("{:.0}", one.end_to_end)),
        ("share of check / decode / encode, %", &|one| {
            let [check, decode, encode] = one.shares().map(|share| share * 100.0);
            format!("{check:.0} / {decode:.0} / {encode:.0}")
        }),
    ];
    format!("\nOTLP bytes to Parquet on one core, in one process:\n\n{}", table(&heads, codec, &rows))
}

fn sizes(sizes: &[Size]) -> String {
    let versions =
        sizes.iter().find_map(|size| size.peers.as_ref()).map_or("not asked", |peers| peers.versions.as_str());
    let heads: Vec<String> = sizes.iter().map(|size| size.signal.name().to_owned()).collect();
    let files = |files: &Files| {
        format!("{:.1} ({} files)", files.bytes as f64 / files.records.max(1) as f64, files.paths.len())
    };
    let peer = |size: &Size, of: fn(&Peers) -> f64| {
        size.peers.as_ref().map_or_else(|| "not asked".to_owned(), |peers| format!("{:.1}", of(peers)))
    };
    let rows: [Row<'_, Size>; 8] = [
        ("records", &|size| size.records.to_string()),
        ("bytes a record in OTLP", &|size| format!("{:.0}", size.request_bytes)),
        ("server CPU seconds a million, flush included", &|size| format!("{:.1}", size.cpu_a_million)),
        ("bytes a record as flushed", &|size| files(&size.flushed)),
        ("bytes a record compacted, expected less than ClickHouse and DuckDB", &|size| files(&size.compacted)),
        ("ClickHouse", &|size| peer(size, |peers| peers.clickhouse)),
        ("DuckDB", &|size| peer(size, |peers| peers.duckdb)),
        ("DuckDB's Parquet, zstd", &|size| peer(size, |peers| peers.duckdb_parquet)),
    ];
    format!(
        "\nThe same seeded rows (bench/src/shop.rs) everywhere, sorted alike; the others without the two columns that \
         follow from others. {versions}.\n\n{}",
        table(&heads, sizes, &rows)
    )
}

fn compaction(compaction: &Compaction) -> String {
    let Compaction { rewrites, seconds, read_bytes, written_bytes, cpu } = compaction;
    let rate = |bytes: &f64| bytes / seconds.max(1e-9) / 1e6;
    format!(
        "\nCompaction: {rewrites} rewrites in {seconds:.1} s ({cpu:.1} s of CPU), {:.1} MB/s in, {:.1} MB/s out.\n",
        rate(read_bytes),
        rate(written_bytes)
    )
}

fn commits(commits: &[Commits]) -> String {
    let heads: Vec<String> = commits.iter().map(|one| one.catalog.to_owned()).collect();
    let rows: [Row<'_, Commits>; 2] = [
        ("move of a table's pointer p50 / p99, ms", &|one| format!("{:.1} / {:.1}", one.swap.p50, one.swap.p99)),
        ("flush of 1000 spans p50 / p99, ms", &|one| format!("{:.1} / {:.1}", one.flush.p50, one.flush.p99)),
    ];
    format!("\n{}", table(&heads, commits, &rows))
}

fn tenants(tenants: &Tenants) -> String {
    let Tenants { tables, seconds, records, files, .. } = tenants;
    let mut out = format!("\n{tables} tables of 100 tenants, SQLite, {seconds:.0} s:\n\n| | |\n|---|---|\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "| {name} | {value} |");
    };
    row("records/s", format!("{:.0}", *records as f64 / seconds));
    row("cores", format!("{:.2}", tenants.cpu));
    row("peak resident memory, MiB", (tenants.peak_memory >> 20).to_string());
    row("catalog transactions/s, expected 50 or fewer", format!("{:.2}", tenants.transactions));
    row("tables moved by them/s", format!("{:.2}", tenants.commits));
    row("live data files", tenants.live_files.to_string());
    row("data files on disk, MB", format!("{}, {:.0}", files.data, files.data_bytes as f64 / 1e6));
    row("metadata files on disk, MB", format!("{}, {:.0}", files.metadata, files.metadata_bytes as f64 / 1e6));
    row("largest metadata.json, bytes, expected less than 1 MB", files.largest_metadata.to_string());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::tenants::Disk;
    use crate::load::{Latency, Signal};

    #[test]
    fn every_figure_has_its_row() {
        let files = |bytes| Files { records: 10, bytes, paths: vec!["a".to_owned()] };
        let peers = Peers { duckdb: 70.5, duckdb_parquet: 38.0, clickhouse: 47.5, versions: "DuckDB 1".to_owned() };
        let size = Size {
            signal: Signal::Spans,
            records: 10,
            request_bytes: 459.0,
            cpu_a_million: 10.5,
            flushed: files(430),
            compacted: files(425),
            peers: Some(peers),
        };
        let latency = Latency { p50: 1.5, p99: 2.5 };
        let lake = MeasuredLake {
            codec: vec![Codec { signal: Signal::Spans, check: 1e6, decode: 5e5, encode: 1e6 / 7.0, end_to_end: 1.2e5 }],
            sizes: vec![size],
            compaction: Compaction { rewrites: 2, seconds: 2.0, read_bytes: 40e6, written_bytes: 30e6, cpu: 3.0 },
            commits: vec![Commits { catalog: "SQLite", swap: latency, flush: latency }],
            tenants: Tenants {
                tables: 300,
                seconds: 10.0,
                records: 1000,
                cpu: 0.5,
                peak_memory: 1 << 30,
                transactions: 1.25,
                commits: 30.0,
                live_files: 300,
                files: Disk::default(),
            },
        };
        let text = render(&lake);
        let lines = [
            "| 500000 |",
            "| 120000 |",
            "| 10 / 20 / 70 |",
            "| 42.5 (1 files) |",
            "| ClickHouse | 47.5 |",
            "| DuckDB | 70.5 |",
            "20.0 MB/s in, 15.0 MB/s out",
            "| 1.5 / 2.5 |",
            "| 1.25 |",
            "| 1024 |",
        ];
        for line in lines {
            assert!(text.contains(line), "{line}: {text}");
        }
    }
}
