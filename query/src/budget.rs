//! What a query may use. Whoever goes beyond it hears which budget it was, how much that is, and what to do.

use std::time::Duration;

use crate::error::{QueryError, QueryErrorKind};

/// A bound that an operator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// Memory of one query.
    Memory,
    /// Memory of all queries of a node.
    NodeMemory,
    /// Bytes on disk of all queries of a node.
    Spill,
    /// Bytes that one query may read from the store.
    Scan,
    /// Queries of a tenant that wait for their turn.
    Queue,
    /// Time from arrival to the last row.
    Deadline,
}

impl Budget {
    /// In the order in which a message is looked through.
    pub(crate) const ALL: [Self; 6] =
        [Self::Memory, Self::NodeMemory, Self::Spill, Self::Scan, Self::Queue, Self::Deadline];

    /// The setting, which names the budget to clients too.
    pub fn key(self) -> &'static str {
        match self {
            Self::Memory => "query.memory",
            Self::NodeMemory => "memory.limit",
            Self::Spill => "query.spill",
            Self::Scan => "query.scan",
            Self::Queue => "query.queue",
            Self::Deadline => "query.deadline",
        }
    }

    /// What whoever asked can do.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Memory => "ask for less at a time, a shorter time range or fewer groups, or raise query.memory",
            Self::NodeMemory => "run fewer large queries at a time, lower query.memory, or raise memory.limit",
            Self::Spill => "ask for less at a time, run fewer large queries at a time, or raise query.spill",
            Self::Scan => "add a time range or a filter on a promoted attribute, or raise query.scan",
            Self::Queue => "come again when fewer queries of the tenant run, or raise query.tenant_concurrency",
            Self::Deadline => "ask for less, or for more time with X-SignalDB-Deadline, up to query.deadline_max",
        }
    }

    fn kind(self) -> QueryErrorKind {
        match self {
            Self::Memory | Self::NodeMemory | Self::Spill | Self::Scan => QueryErrorKind::Resources,
            Self::Queue => QueryErrorKind::Busy,
            Self::Deadline => QueryErrorKind::Deadline,
        }
    }

    /// The budget that an error of the execution is about, by what its text says.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        // DataFusion's own words when spilled files are too large.
        if text.contains("max_temp_directory_size") {
            return Some(Self::Spill);
        }
        Self::ALL.into_iter().find(|budget| text.contains(budget.key()))
    }

    /// The error of a query that went beyond the budget.
    pub(crate) fn exceeded(self, message: impl Into<String>) -> QueryError {
        QueryError { budget: Some(self), ..QueryError::new(self.kind(), message) }
    }
}

/// The query took too long, wherever it was.
pub(crate) fn late(deadline: Duration, waiting: bool) -> QueryError {
    let message = match waiting {
        true => format!("the query waited for its turn until its deadline of {deadline:?} (query.deadline)"),
        false => format!("the query did not finish within its deadline of {deadline:?} (query.deadline)"),
    };
    Budget::Deadline.exceeded(message)
}

/// Bytes as people read them.
pub(crate) fn size(bytes: u64) -> String {
    for (unit, factor) in [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor {
            return format!("{:.1} {unit}", bytes as f64 / factor as f64);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_found_by_its_name_in_a_message() {
        for budget in Budget::ALL {
            let wrapped = format!("Additional allocation failed for X\nError: {} is 1.0 MiB", budget.key());
            assert_eq!(Budget::of_text(&wrapped), Some(budget));
        }
        let spilled = "Please try increasing the config: `datafusion.runtime.max_temp_directory_size`.";
        assert_eq!(Budget::of_text(spilled), Some(Budget::Spill));
        assert_eq!(Budget::of_text("out of luck"), None);
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(size(bytes), text);
        }
    }
}
