//! What an operator asks of a tenant's tables, brought to the node that leads their owner group.

use signaldb_lake::{Attribute, Promotion, TableFilter, TableTask, Task, TaskReport};
use signaldb_model::{DatasetId, GroupId, InvalidName, TableCode, TenantId};
use signaldb_proto::peer::MaintainRequest;
use signaldb_signals::SignalTable;
use signaldb_signals::copies::{CopyKind, Level};
use tokio::time::Instant;

use super::{QueryEngine, another_attempt};
use crate::error::{QueryError, QueryErrorKind, lake_error, read_error, unavailable};
use crate::remote;
use crate::snapshot::LEADER_TIMEOUT;

impl QueryEngine {
    /// Does a task with tables, wherever their owner group is led. Returns the leader's report in JSON.
    ///
    /// # Errors
    /// [`QueryErrorKind::Unavailable`] when the group has no leader that answers, or nothing may be done there now. What
    /// was done by then stays done; asking again is harmless.
    pub async fn maintain(&self, task: &TableTask) -> Result<String, QueryError> {
        let inner = &self.0;
        let homes = inner.groups.homes_now(&task.tables.tenant, LEADER_TIMEOUT).await.map_err(read_error)?;
        // The first of a tenant's groups owns its tables.
        let Some(owner) = homes.first() else { return Ok(TaskReport::empty(task.dry_run).to_json()) };
        let until = Instant::now() + LEADER_TIMEOUT;
        loop {
            let seen = owner.leadership();
            let report = match seen.leader {
                _ if seen.here => {
                    let report = inner.lake.maintain(owner, &inner.groups.founding().cluster_id, task).await;
                    report.map(|report| report.to_json()).map_err(lake_error)
                }
                Some(leader) => {
                    let report = remote::maintain(inner.groups.peers(), leader, &request_of(owner.id(), task)).await;
                    report.map_err(|status| QueryError::from_status(&status))
                }
                None => Err(unavailable(format!("group {} has no leader", owner.id()))),
            };
            match report {
                Ok(report) => return Ok(report),
                Err(error) => another_attempt(owner, seen, until, error).await?,
            }
        }
    }
}

/// What the leader of `group` is sent.
fn request_of(group: GroupId, task: &TableTask) -> MaintainRequest {
    let TableFilter { tenant, dataset, table } = &task.tables;
    let (key, level, kind) = match &task.task {
        Task::Promote(Promotion { attribute, kind }) => {
            let level = Level::ALL.iter().position(|level| *level == attribute.level());
            let kind = CopyKind::ALL.iter().position(|one| Some(*one) == *kind);
            (attribute.key().to_owned(), number(level), number(kind))
        }
        Task::Compact | Task::Expire | Task::Retain => (String::new(), 0, 0),
    };
    MaintainRequest {
        group: group.0,
        tenant: tenant.to_string(),
        dataset: dataset.as_ref().map(DatasetId::to_string).unwrap_or_default(),
        table: table.map_or(0, |table| table.code().0.into()),
        task: match task.task {
            Task::Compact => 1,
            Task::Expire => 2,
            Task::Retain => 3,
            Task::Promote(_) => 4,
        },
        dry_run: task.dry_run,
        key,
        level,
        kind,
    }
}

/// A position as it is sent: from 1, 0 for none.
fn number(position: Option<usize>) -> u32 {
    position.and_then(|position| u32::try_from(position + 1).ok()).unwrap_or(0)
}

/// The one of `all` that was sent as `number`.
fn at<T: Copy>(all: &[T], number: u32) -> Option<T> {
    all.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
}

fn promotion_of(request: &MaintainRequest) -> Result<Promotion, QueryError> {
    let unknown = |what: &str| QueryError::new(QueryErrorKind::Invalid, format!("this node does not know the {what}"));
    let level = at(&Level::ALL, request.level).ok_or_else(|| unknown("level"))?;
    let kind = match request.kind {
        0 => None,
        kind => Some(at(&CopyKind::ALL, kind).ok_or_else(|| unknown("type"))?),
    };
    let attribute = Attribute::new(&request.key, level);
    let attribute = attribute.map_err(|error| QueryError::new(QueryErrorKind::Invalid, error.to_string()))?;
    Ok(Promotion { attribute, kind })
}

/// What a peer asks for.
///
/// # Errors
/// [`QueryErrorKind::Invalid`] for what this version does not know.
pub(crate) fn task_of(request: &MaintainRequest) -> Result<TableTask, QueryError> {
    let invalid = |error: InvalidName| QueryError::new(QueryErrorKind::Invalid, error.to_string());
    let unknown = |what: &str| QueryError::new(QueryErrorKind::Invalid, format!("this node does not know the {what}"));
    let dataset = (!request.dataset.is_empty()).then(|| DatasetId::new(&request.dataset));
    let table = match u8::try_from(request.table) {
        Ok(0) => None,
        Ok(code) => Some(SignalTable::from_code(TableCode(code)).ok_or_else(|| unknown("table"))?),
        Err(_) => return Err(unknown("table")),
    };
    Ok(TableTask {
        task: match request.task {
            1 => Task::Compact,
            2 => Task::Expire,
            3 => Task::Retain,
            4 => Task::Promote(promotion_of(request)?),
            _ => return Err(unknown("task")),
        },
        tables: TableFilter {
            tenant: TenantId::new(&request.tenant).map_err(invalid)?,
            dataset: dataset.transpose().map_err(invalid)?,
            table,
        },
        dry_run: request.dry_run,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_arrives_as_it_was_sent() {
        let promotion = |level, kind| {
            let attribute = Attribute::new("tenant.plan", level).expect("a key");
            (Task::Promote(Promotion { attribute, kind }), Some("d"), Some(SignalTable::Traces), false)
        };
        let plain = [
            (Task::Compact, None, None, true),
            (Task::Expire, Some("d"), None, false),
            (Task::Retain, Some("d"), Some(SignalTable::MetricsSummary), true),
        ];
        let kinds = || [None].into_iter().chain(CopyKind::ALL.map(Some));
        let promotions = Level::ALL.into_iter().flat_map(|level| kinds().map(move |kind| promotion(level, kind)));
        for (task, dataset, table, dry_run) in plain.into_iter().chain(promotions) {
            let sent = TableTask {
                task,
                tables: TableFilter {
                    tenant: TenantId::new("t").expect("name"),
                    dataset: dataset.map(|name| DatasetId::new(name).expect("name")),
                    table,
                },
                dry_run,
            };
            assert_eq!(task_of(&request_of(GroupId(3), &sent)).expect("reads"), sent);
        }
        let good = MaintainRequest { tenant: "t".to_owned(), task: 1, ..MaintainRequest::default() };
        assert!(task_of(&good).is_ok());
        for bad in [
            MaintainRequest { task: 5, ..good.clone() },
            MaintainRequest { task: 4, level: 3, kind: 1, ..good.clone() },
            MaintainRequest { task: 4, level: 4, key: "k".to_owned(), ..good.clone() },
            MaintainRequest { task: 4, level: 0, key: "k".to_owned(), ..good.clone() },
            MaintainRequest { task: 4, level: 1, kind: 5, key: "k".to_owned(), ..good.clone() },
            MaintainRequest { table: 99, ..good.clone() },
            MaintainRequest { table: 300, ..good.clone() },
            MaintainRequest { tenant: "T".to_owned(), ..good.clone() },
        ] {
            assert_eq!(task_of(&bad).expect_err("refuses").kind, QueryErrorKind::Invalid, "{bad:?}");
        }
    }
}
