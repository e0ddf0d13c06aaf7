//! What an operator asks for: the plans and the steps of a visit, now; or only the plans.

use std::collections::BTreeMap;
use std::time::Duration;

use iceberg::spec::DataFile;
use serde::Serialize;
use signaldb_model::TableId;
use signaldb_raft::Group;
use signaldb_signals::SignalTable;
use signaldb_signals::copies::CopiedAttribute;

use super::upkeep::Compacted;
use super::{Upkeep, Visit, is_busy, is_in_step};
use crate::compact::plan::Rewrite;
use crate::error::LakeError;
use crate::flush::chain;
use crate::lake::Lake;
use crate::metadata::Moment;
use crate::promote::{Decision, Effect, PromoteError, Promotion};
use crate::shape::TableFilter;
use crate::table::{day_of, version_of};
use crate::{metrics, names};

/// No rewrite is begun later than this after the task was: whoever asks hears what is left, and may ask again.
const BUDGET: Duration = Duration::from_secs(60);
/// How long a table may take to become free once the budget is used up.
const TURN_MIN: Duration = Duration::from_secs(1);

/// What to do with tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Merge small files, whether `compaction.enabled` or not.
    Compact,
    /// Drop snapshots that nobody is promised any more.
    Expire,
    /// Remove rows that the configured policy does not keep.
    Retain,
    /// Promote or demote an attribute of one table, which dataset and table must name.
    Promote(Promotion),
}

/// A task of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableTask {
    pub task: Task,
    pub tables: TableFilter,
    /// Only says what would be done.
    pub dry_run: bool,
}

/// What became of a task, or would become of it.
#[derive(Debug, Clone, Serialize)]
pub struct TaskReport {
    dry_run: bool,
    tables: Vec<TableReport>,
}

#[derive(Debug, Clone, Serialize)]
struct TableReport {
    namespace: String,
    table: &'static str,
    #[serde(flatten)]
    outcome: Outcome,
    /// Why it ended early; what the rest of the report says was done.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
enum Outcome {
    Compact {
        rewrites: Vec<RewriteReport>,
        /// Rewrites that are still to do.
        left: usize,
    },
    Expire {
        snapshots: usize,
        oldest: Option<String>,
        newest: Option<String>,
    },
    Retain {
        /// `None` is for ever.
        keep_seconds: Option<u64>,
        days: Vec<DayReport>,
    },
    Promote(PromotionReport),
}

#[derive(Debug, Clone, Serialize)]
struct PromotionReport {
    effect: Effect,
    key: String,
    level: &'static str,
    column: String,
    #[serde(rename = "type")]
    kind: &'static str,
}

#[derive(Debug, Clone, Serialize)]
struct RewriteReport {
    day: String,
    files: usize,
    rows: u64,
    bytes: u64,
    /// What took their place; known once it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    new_files: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_bytes: Option<u64>,
}

/// Files of one day that go.
#[derive(Debug, Clone, Default, Serialize)]
struct DayReport {
    day: Option<String>,
    files: usize,
    rows: u64,
    bytes: u64,
}

impl TaskReport {
    /// The report on no tables.
    pub fn empty(dry_run: bool) -> Self {
        Self { dry_run, tables: Vec::new() }
    }

    /// As nodes tell each other and their operators.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report is plain JSON")
    }
}

impl Lake {
    /// Does a task with the tables that `group` owns, one after the other. What fails with one table is in its part of the
    /// report, and does not keep the others from their turn.
    ///
    /// # Errors
    /// [`LakeError::Stopped`] when another node leads the group, or nothing may be done now; [`LakeError::Promote`], and
    /// whatever fails while one attribute of one table is promoted.
    ///
    /// Cancel safety: what is not committed never happened.
    pub async fn maintain(&self, group: &Group, cluster_id: &str, task: &TableTask) -> Result<TaskReport, LakeError> {
        if !group.is_leader() {
            return Err(LakeError::Stopped("another node leads the group"));
        }
        if !is_in_step(group) {
            return Err(LakeError::Stopped("the group's log and its tables are not in step"));
        }
        if let Task::Promote(promotion) = &task.task {
            return Box::pin(self.promote(group, cluster_id, task, promotion)).await;
        }
        if task.task == Task::Compact && !task.dry_run && is_busy(self) {
            return Err(LakeError::Stopped("flushing needs the node's memory, catalog or store; compact later"));
        }
        let ids: Vec<TableId> =
            group.with_state(|state| state.tables.keys().filter(|id| task.tables.takes(id)).cloned().collect());
        let until = self.clock().elapsed() + BUDGET;
        let mut report = TaskReport::empty(task.dry_run);
        for id in &ids {
            let Some(table) = SignalTable::from_code(id.code) else { continue };
            let visit = Visit { lake: self, group, cluster_id, id };
            let upkeep = Upkeep { lake: self, id, table };
            let Some(outcome) = Outcome::before(&task.task, &upkeep) else { continue };
            report.tables.push(Box::pin(visit.perform(&upkeep, outcome, task, until)).await);
        }
        Ok(report)
    }

    async fn promote(
        &self,
        group: &Group,
        cluster_id: &str,
        task: &TableTask,
        promotion: &Promotion,
    ) -> Result<TaskReport, LakeError> {
        let TableFilter { tenant, dataset: Some(dataset), table: Some(table) } = &task.tables else {
            return Err(PromoteError::WhichTable.into());
        };
        let id = TableId { tenant: tenant.clone(), dataset: dataset.clone(), code: table.code() };
        let upkeep = Upkeep { lake: self, id: &id, table: *table };
        let decision = match task.dry_run {
            true => {
                let current = upkeep.current().await?;
                let (_, metadata) = current.ok_or_else(|| PromoteError::NoTable(id.to_string()))?;
                promotion.decide(&metadata, *table)?
            }
            false => Visit { lake: self, group, cluster_id, id: &id }.promote(&upkeep, promotion).await?,
        };
        let (namespace, outcome) = (id.namespace(), Outcome::Promote(PromotionReport::of(&decision)));
        let report = TableReport { namespace, table: table.name(), outcome, error: None };
        Ok(TaskReport { dry_run: task.dry_run, tables: vec![report] })
    }
}

impl Outcome {
    /// Of a task with many tables, before anything is done to one of them.
    fn before(task: &Task, upkeep: &Upkeep<'_>) -> Option<Self> {
        Some(match task {
            Task::Compact => Self::Compact { rewrites: Vec::new(), left: 0 },
            Task::Expire => Self::Expire { snapshots: 0, oldest: None, newest: None },
            Task::Retain => Self::Retain { keep_seconds: upkeep.keep().map(|keep| keep.as_secs()), days: Vec::new() },
            Task::Promote(_) => return None,
        })
    }
}

impl Visit<'_> {
    /// Not in the table's turn: a compaction that is on its way is right with or without the column.
    async fn promote(&self, upkeep: &Upkeep<'_>, promotion: &Promotion) -> Result<Decision, LakeError> {
        if !self.begin(upkeep).await? {
            return Err(PromoteError::NoTable(self.id.to_string()).into());
        }
        let (decision, location) = upkeep.promote(promotion).await?;
        let CopiedAttribute { key, column, .. } = &decision.copy;
        tracing::info!(table = %self.id, %key, column = %column.name, effect = ?decision.effect, "promotion of an attribute");
        // A flush on top of it may have been announced before it.
        let known = self.group.with_state(|state| state.tables.get(self.id).map_or(-1, |table| table.version));
        if version_of(&location) > known {
            self.announce(Some(location)).await?;
        }
        Ok(decision)
    }

    async fn perform(
        &self,
        upkeep: &Upkeep<'_>,
        mut outcome: Outcome,
        task: &TableTask,
        until: Duration,
    ) -> TableReport {
        let performed = match task.dry_run {
            true => foresee(upkeep, &mut outcome).await,
            false => self.act_in_turn(upkeep, &mut outcome, until).await,
        };
        let error = performed.err().map(|error| {
            metrics::note_maintenance_failure(&error);
            tracing::warn!(table = %self.id, error = %chain(&error), "an operator's task failed");
            chain(&error)
        });
        TableReport { namespace: self.id.namespace(), table: upkeep.table.name(), outcome, error }
    }

    async fn act_in_turn(&self, upkeep: &Upkeep<'_>, outcome: &mut Outcome, until: Duration) -> Result<(), LakeError> {
        let wait = until.saturating_sub(self.lake.clock().elapsed()).max(TURN_MIN);
        let turn = tokio::time::timeout(wait, self.lake.table_turn(self.id).lock_owned()).await;
        let _turn = turn.map_err(|_| LakeError::Stopped("the table is being looked after; ask again"))?;
        match self.begin(upkeep).await? {
            true => self.act(upkeep, outcome, until).await,
            false => Ok(()),
        }
    }

    async fn act(&self, upkeep: &Upkeep<'_>, outcome: &mut Outcome, until: Duration) -> Result<(), LakeError> {
        match outcome {
            Outcome::Compact { rewrites, left } => self.compact_until(upkeep, rewrites, left, until).await,
            Outcome::Expire { .. } => {
                foresee(upkeep, outcome).await?;
                match outcome {
                    Outcome::Expire { snapshots: 0, .. } => Ok(()),
                    _ => self.announce(upkeep.commit_expiry().await?).await,
                }
            }
            Outcome::Retain { days, .. } => {
                let outdated = upkeep.outdated().await?;
                if outdated.is_empty() {
                    return Ok(());
                }
                let planned = by_day(&outdated);
                let location = upkeep.remove(outdated).await?;
                if location.is_none() {
                    return Err(LakeError::Stopped("another commit removed some of the files; ask again"));
                }
                *days = planned;
                self.announce(location).await
            }
            Outcome::Promote(_) => Ok(()),
        }
    }

    /// Plans after each rewrite anew: what it wrote may be part of the next.
    async fn compact_until(
        &self,
        upkeep: &Upkeep<'_>,
        done: &mut Vec<RewriteReport>,
        left: &mut usize,
        until: Duration,
    ) -> Result<(), LakeError> {
        loop {
            let planned = upkeep.rewrites().await?;
            *left = planned.len();
            let Some(rewrite) = planned.first() else { return Ok(()) };
            if self.lake.clock().elapsed() >= until {
                return Ok(());
            }
            if !self.group.is_leader() {
                return Err(LakeError::Stopped("another node leads the group"));
            }
            if let Some(compacted) = upkeep.rewrite(rewrite, self.lake.stopping()).await? {
                done.push(RewriteReport::of(rewrite, Some(&compacted)));
                self.announce(Some(compacted.location)).await?;
            }
        }
    }
}

/// Says what would be done, by the functions that would do it.
async fn foresee(upkeep: &Upkeep<'_>, outcome: &mut Outcome) -> Result<(), LakeError> {
    match outcome {
        Outcome::Compact { rewrites, left } => {
            let planned = upkeep.rewrites().await?;
            *left = planned.len();
            *rewrites = planned.iter().map(|rewrite| RewriteReport::of(rewrite, None)).collect();
        }
        Outcome::Expire { snapshots, oldest, newest } => {
            let expired = upkeep.expired_ms().await?;
            let text = |at: Option<&i64>| at.map(|at| Moment(*at).to_string());
            (*snapshots, *oldest, *newest) = (expired.len(), text(expired.iter().min()), text(expired.iter().max()));
        }
        Outcome::Retain { days, .. } => *days = by_day(&upkeep.outdated().await?),
        Outcome::Promote(_) => {}
    }
    Ok(())
}

impl PromotionReport {
    fn of(decision: &Decision) -> Self {
        let CopiedAttribute { key, level, kind, column } = &decision.copy;
        let (key, column) = (key.clone(), column.name.clone());
        Self { effect: decision.effect, key, level: level.name(), column, kind: kind.name() }
    }
}

impl RewriteReport {
    fn of(rewrite: &Rewrite, compacted: Option<&Compacted>) -> Self {
        Self {
            day: names::date(rewrite.day),
            files: rewrite.files.len(),
            rows: rewrite.rows(),
            bytes: rewrite.bytes(),
            new_files: compacted.map(|compacted| compacted.files),
            new_bytes: compacted.map(|compacted| compacted.bytes),
        }
    }
}

fn by_day(files: &[DataFile]) -> Vec<DayReport> {
    let mut days: BTreeMap<Option<i32>, DayReport> = BTreeMap::new();
    for file in files {
        let day = day_of(file);
        let report = days.entry(day).or_default();
        report.day = day.map(names::date);
        report.files += 1;
        report.rows += file.record_count();
        report.bytes += file.file_size_in_bytes();
    }
    days.into_values().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::testing::{Draw, TestLake};
    use crate::{CompactionConfig, LakeConfig, RetentionConfig};

    const DAY: Duration = Duration::from_secs(86_400);

    async fn foreseen(lake: &TestLake, mut outcome: Outcome) -> serde_json::Value {
        let before = lake.metadata().await;
        foresee(&lake.upkeep(), &mut outcome).await.expect("plans");
        assert_eq!(lake.metadata().await, before, "a dry run changes nothing");
        serde_json::to_value(outcome).expect("JSON")
    }

    #[tokio::test]
    async fn a_dry_run_says_what_the_steps_then_do() {
        let compaction = CompactionConfig { min_files: 4, ..CompactionConfig::default() };
        let retention = RetentionConfig { keep: Some(DAY * 10), ..RetentionConfig::default() };
        let lake = TestLake::new(LakeConfig { compaction, retention, ..LakeConfig::default() }).await;
        let mut draw = Draw(5);
        for n in 0..5 {
            lake.flush(&draw.rows(n, 10, lake.day_start(2)), n as u64 + 1).await;
        }
        lake.flush(&draw.rows(5, 7, lake.day_start(12)), 6).await;
        // The days are over, and quiet.
        lake.clock.advance(DAY / 8);
        let retain = || Outcome::Retain { keep_seconds: None, days: Vec::new() };
        let compact = || Outcome::Compact { rewrites: Vec::new(), left: 0 };
        let expire = || Outcome::Expire { snapshots: 0, oldest: None, newest: None };

        let days = foreseen(&lake, retain()).await;
        assert_eq!((&days["days"][0]["files"], &days["days"][0]["rows"]), (&json!(1), &json!(7)), "{days}");
        lake.upkeep().retire().await.expect("answers").expect("commits");
        assert_eq!(lake.rows().await.len(), 50);
        assert_eq!(foreseen(&lake, retain()).await["days"], json!([]));

        let rewrites = foreseen(&lake, compact()).await;
        assert_eq!((&rewrites["left"], &rewrites["rewrites"][0]["files"]), (&json!(1), &json!(5)), "{rewrites}");
        assert_eq!(rewrites["rewrites"][0]["rows"], 50);
        let rewrite = lake.upkeep().rewrites().await.expect("plans").remove(0);
        lake.upkeep().rewrite(&rewrite, &CancellationToken::new()).await.expect("rewrites").expect("commits");
        assert_eq!(foreseen(&lake, compact()).await, json!({"rewrites": [], "left": 0}));

        assert_eq!(foreseen(&lake, expire()).await["snapshots"], 0, "the commits before dropped what had expired");
        lake.clock.advance(DAY * 8);
        let expired = foreseen(&lake, expire()).await;
        let kept = lake.metadata().await.snapshots().count();
        assert_eq!(expired["snapshots"], json!(kept - 1), "all but the current one: {expired}");
        assert!(expired["oldest"].as_str() <= expired["newest"].as_str(), "{expired}");
        lake.upkeep().commit_expiry().await.expect("answers").expect("commits");
        assert_eq!(lake.metadata().await.snapshots().count(), 1);
    }
}
