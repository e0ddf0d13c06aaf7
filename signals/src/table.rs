//! The tables that exist.

use signaldb_model::TableCode;

use crate::request::SignalKind;

/// A table of a dataset. The code is persisted in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum SignalTable {
    Traces = 1,
    Logs = 2,
    MetricsGauge = 3,
    MetricsSum = 4,
    MetricsHistogram = 5,
    MetricsExponentialHistogram = 6,
    MetricsSummary = 7,
}

impl SignalTable {
    pub const ALL: [Self; 7] = [
        Self::Traces,
        Self::Logs,
        Self::MetricsGauge,
        Self::MetricsSum,
        Self::MetricsHistogram,
        Self::MetricsExponentialHistogram,
        Self::MetricsSummary,
    ];

    pub fn code(self) -> TableCode {
        TableCode(self as u8)
    }

    pub fn from_code(code: TableCode) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.code() == code)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Logs => "logs",
            Self::MetricsGauge => "metrics_gauge",
            Self::MetricsSum => "metrics_sum",
            Self::MetricsHistogram => "metrics_histogram",
            Self::MetricsExponentialHistogram => "metrics_exponential_histogram",
            Self::MetricsSummary => "metrics_summary",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// The kind of request that fills the table.
    pub fn kind(self) -> SignalKind {
        match self {
            Self::Traces => SignalKind::Traces,
            Self::Logs => SignalKind::Logs,
            _ => SignalKind::Metrics,
        }
    }

    /// Columns that rows are sorted by in data files (DESIGN section 8).
    pub fn sort_columns(self) -> &'static [&'static str] {
        match self {
            Self::Traces | Self::Logs => &["service_name", "time_unix_nano"],
            _ => &["metric_name", "service_name", "time_unix_nano"],
        }
    }
}
