//! From OTLP bytes to Parquet on one core, in this process: what is left when network, log and commits are taken away.
//!
//! Digest and LZ4 of the log are not in it.

use anyhow::{Context, ensure};
use signaldb_lake::data_files_of;
use signaldb_signals::decode::{DecodedTable, decode};
use signaldb_signals::{Rows, SignalKind, SignalTable, request};

use crate::load::{RECORDS_A_REQUEST, Signal};
use crate::node::cpu_seconds_of_thread;
use crate::shop::Shop;

/// Requests that are decoded and encoded together, about a flush.
const REQUESTS: usize = 100;
/// CPU seconds that each part is measured for.
const LASTS: f64 = 3.0;

/// Records/s of one core.
#[derive(Debug)]
pub(crate) struct Codec {
    pub(crate) signal: Signal,
    /// Whether the bytes are a sound request, one pass over them.
    pub(crate) check: f64,
    /// To columns in memory.
    pub(crate) decode: f64,
    /// Sorting the columns and writing them as Parquet.
    pub(crate) encode: f64,
    /// All of it, one after the other.
    pub(crate) end_to_end: f64,
}

impl Codec {
    /// Shares of checking, decoding and encoding in the whole.
    pub(crate) fn shares(&self) -> [f64; 3] {
        let costs = [self.check, self.decode, self.encode].map(|rate| 1.0 / rate);
        let whole: f64 = costs.iter().sum();
        costs.map(|cost| cost / whole)
    }
}

pub(crate) fn measure() -> anyhow::Result<Vec<Codec>> {
    [Signal::Spans, Signal::Logs].into_iter().map(measure_one).collect()
}

fn measure_one(signal: Signal) -> anyhow::Result<Codec> {
    let (kind, table) = match signal {
        Signal::Logs => (SignalKind::Logs, SignalTable::Logs),
        _ => (SignalKind::Traces, SignalTable::Traces),
    };
    let mut shop = Shop::new(signal, super::begin());
    let requests: Vec<Vec<u8>> = (0..REQUESTS).map(|_| shop.request()).collect();
    let rows = decode_all(kind, &requests)?;
    let records: usize = rows.iter().map(Rows::num_rows).sum();
    ensure!(records as u64 == REQUESTS as u64 * RECORDS_A_REQUEST, "{records} rows were decoded");
    Ok(Codec {
        signal,
        check: rate(|| check_all(kind, &requests))?,
        decode: rate(|| decode_all(kind, &requests).map(drop))?,
        encode: rate(|| encode_all(table, &rows))?,
        end_to_end: rate(|| {
            check_all(kind, &requests)?;
            encode_all(table, &decode_all(kind, &requests)?)
        })?,
    })
}

fn check_all(kind: SignalKind, requests: &[Vec<u8>]) -> anyhow::Result<()> {
    for body in requests {
        let checked = request::check(kind, body)?;
        ensure!(checked.rejected == 0, "a record was rejected");
    }
    Ok(())
}

fn decode_all(kind: SignalKind, requests: &[Vec<u8>]) -> anyhow::Result<Vec<Rows>> {
    let decoded = decode(kind, (0..).zip(requests.iter().map(Vec::as_slice)));
    let rows: Vec<Rows> = decoded.into_iter().map(|DecodedTable { rows, .. }| rows).collect();
    rows.first().context("rows")?;
    Ok(rows)
}

fn encode_all(table: SignalTable, rows: &[Rows]) -> anyhow::Result<()> {
    let files = data_files_of(table, rows)?;
    ensure!(!files.is_empty(), "nothing was written");
    Ok(())
}

/// Records/s of this thread's CPU time; `once` handles all requests.
fn rate(once: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    // Caches, and memory that was never touched.
    once()?;
    let (begun, mut rounds) = (cpu_seconds_of_thread()?, 0u32);
    loop {
        once()?;
        rounds += 1;
        let took = cpu_seconds_of_thread()? - begun;
        if took >= LASTS {
            return Ok(f64::from(rounds) * REQUESTS as f64 * RECORDS_A_REQUEST as f64 / took);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time() {
        let codec = Codec { signal: Signal::Spans, check: 400.0, decode: 200.0, encode: 400.0, end_to_end: 100.0 };
        let shares = codec.shares();
        assert!((shares[1] - 0.5).abs() < 1e-9 && (shares[0] - 0.25).abs() < 1e-9, "{shares:?}");
    }
}
