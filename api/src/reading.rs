//! How a request wants to be answered: what it must see, and how long that may take. The names are the same on every API:
//! parameters of a URL, or headers, which are metadata over gRPC.

use std::time::Duration;

use axum::http::HeaderMap;
use signaldb_catalog::Identity;
use signaldb_model::{ParsePositionError, Position};
use signaldb_query::{Allowance, Consistency, Parameters, Query};

use crate::app::App;
use crate::error::ApiError;
use crate::identity::{header, sees_all_tenants};

pub(crate) const CONSISTENCY: &str = "x-signaldb-consistency";
pub(crate) const MIN_POSITION: &str = "x-signaldb-min-position";
const DEADLINE: &str = "x-signaldb-deadline";
const DISTRIBUTED: &str = "x-signaldb-distributed";

/// What a URL says; it comes before the headers.
#[derive(Debug, Default, Clone)]
pub(crate) struct ReadingParameters {
    pub(crate) consistency: Option<String>,
    pub(crate) deadline: Option<String>,
}

/// What a reader asks for, whatever it reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) consistency: Consistency,
    pub(crate) min_position: Option<Position>,
    pub(crate) allowance: Allowance,
}

impl Reading {
    /// Reads `consistency` and `deadline`, or `X-SignalDB-Consistency` and `X-SignalDB-Deadline`,
    /// `X-SignalDB-Min-Position` and `X-SignalDB-Distributed`.
    ///
    /// # Errors
    /// 400 for a value that is none; 403 for a wrong `X-SignalDB-Admin-Key`.
    pub(crate) fn of(app: &App, parameters: &ReadingParameters, headers: &HeaderMap) -> Result<Self, ApiError> {
        let wanted = parameters.consistency.as_deref().or(header(headers, CONSISTENCY)?);
        let deadline = parameters.deadline.as_deref().or(header(headers, DEADLINE)?);
        Ok(Self {
            consistency: consistency(wanted)?,
            min_position: header(headers, MIN_POSITION)?.map(position).transpose()?,
            allowance: Allowance {
                deadline: deadline.map(duration).transpose()?,
                all_tenants: sees_all_tenants(app, headers)?,
                distributed: header(headers, DISTRIBUTED)?.map(switch).transpose()?,
            },
        })
    }

    /// A query that is answered so.
    pub(crate) fn query(self, identity: Identity, sql: String) -> Query {
        let Self { consistency, min_position, allowance } = self;
        Query { identity, sql, parameters: Parameters::default(), consistency, min_position, allowance }
    }
}

pub(crate) fn consistency(name: Option<&str>) -> Result<Consistency, ApiError> {
    match name {
        None | Some("strong") => Ok(Consistency::Strong),
        Some("eventual") => Ok(Consistency::Eventual),
        Some(other) => Err(ApiError::invalid(format!("consistency {other:?} is not strong or eventual"))),
    }
}

/// `group:index`, as an acknowledgment says it.
pub(crate) fn position(text: &str) -> Result<Position, ApiError> {
    text.parse().map_err(|error: ParsePositionError| ApiError::invalid(error.to_string()))
}

fn switch(text: &str) -> Result<bool, ApiError> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(ApiError::invalid(format!("{DISTRIBUTED} {other:?} is not on or off"))),
    }
}

/// `500ms`, `10s` or `2m`.
fn duration(text: &str) -> Result<Duration, ApiError> {
    let parse = || {
        let unit = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(unit);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(millis).filter(|millis| *millis > 0)
    };
    let millis = parse().ok_or_else(|| {
        let text: String = text.chars().take(80).collect();
        ApiError::invalid(format!("deadline {text:?} is not a duration such as 500ms, 10s or 2m"))
    })?;
    Ok(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_is_on_or_off() {
        assert!(switch("on").expect("reads") && !switch("off").expect("reads"));
        for bad in ["", "true", "ON"] {
            assert!(switch(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn deadlines_have_a_unit() {
        for (text, millis) in [("500ms", 500), ("10s", 10_000), ("2m", 120_000)] {
            assert_eq!(duration(text).expect(text), Duration::from_millis(millis));
        }
        for bad in ["", "10", "0s", "-1s", "1h", "s", "99999999999999999999s", "18446744073709551615m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
