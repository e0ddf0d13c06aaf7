//! Commits of somebody else to our tables: what is theirs is kept, what is ours is neither lost nor doubled.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use iceberg::spec::{DataFile, ManifestContentType, ManifestFile};
use signaldb_catalog::{Swap, SwapOutcome};
use signaldb_model::TableId;
use signaldb_raft::Command;

use crate::commit::{Committed, commit};
use crate::error::LakeError;
use crate::maintain::Upkeep;
use crate::metadata::{Base, Change, Seeds, next_metadata};
use crate::promote::FileSchema;
use crate::testing::rig::{Rig, table_id};
use crate::testing::{Draw, Row, TABLE, encode};

/// The pointer of a table, by hand.
async fn pointer(rig: &Rig, id: &TableId) -> String {
    rig.catalog.load(&id.namespace(), TABLE.name()).await.expect("answers").expect("exists")
}

async fn point(rig: &Rig, id: &TableId, new: &str) {
    let base = pointer(rig, id).await;
    let swap = Swap { namespace: id.namespace(), table: TABLE.name().to_owned(), base, new: new.to_owned() };
    assert_eq!(rig.catalog.swap(&[swap]).await.expect("answers"), SwapOutcome::Moved);
}

/// Commits a file with `rows` under a name that is not ours.
async fn append_foreign(rig: &Rig, id: &TableId, rows: &[Row]) {
    let lake = &rig.process.leaders[0].lake;
    let root = lake.metadata_at(&pointer(rig, id).await).await.expect("reads").location().to_owned();
    let mut add: Vec<DataFile> = Vec::new();
    let schema = Arc::new(FileSchema::plain(TABLE));
    for file in encode(&schema, rows, |n, day| format!("{root}/data/{day}/00000-{n}-foreign.parquet")) {
        rig.store.write(&file.location, file.content).await.expect("writes");
        add.push(file.entry);
    }
    let change = Change { add, ..Change::default() };
    let committed = commit(lake, id, TABLE, &change, None).await.expect("commits");
    assert!(matches!(committed, Committed::Done { .. }), "{committed:?}");
}

fn left_out(outcome: Result<bool, LakeError>) -> LakeError {
    match outcome {
        Err(LakeError::Table(inner)) => *inner,
        other => panic!("a table was to be left out: {other:?}"),
    }
}

/// Scenario: somebody sets a table's pointer back to the version before the last flush, whose rows are not in memory any
/// more, and rows come in.
/// Guarantees: nothing is flushed to it, whoever leads, and the error names the version to go back to; other tables are
/// flushed; once the pointer is there again everything is, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_put_back_is_left_alone_until_it_is_put_forward() {
    let mut rig = Rig::new().await;
    let id = table_id("back");
    rig.append("back", 3).await;
    rig.flush(0).await.expect("flushes");
    let old = pointer(&rig, &id).await;
    rig.append("back", 3).await;
    rig.flush(0).await.expect("flushes");
    let new = pointer(&rig, &id).await;
    point(&rig, &id, &old).await;
    for leader in [0, 1] {
        rig.append("back", 2).await;
        rig.append("other", 2).await;
        let error = left_out(rig.flush(leader).await);
        let LakeError::WentBack { found: 1, known: 2, location, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*location, new);
        assert!(error.to_string().contains(&new), "{error}");
        assert_eq!(pointer(&rig, &id).await, old, "nothing was committed on the old version");
        rig.check(["other"], true, &"the neighbour").await;
        // Readers go by what the log knows.
        let lakes = &rig.process.leaders;
        for leader in lakes {
            let rows = rig.process.read(leader, &id, false).await;
            rig.ledger.compare(&id, rows, &"while it is back");
        }
    }
    rig.restart().await;
    assert!(matches!(left_out(rig.flush(0).await), LakeError::WentBack { .. }));
    point(&rig, &id, &new).await;
    rig.flush(0).await.expect("flushes");
    rig.check(["back", "other"], true, &"put forward").await;
    rig.process.stop().await;
}

/// Scenario: the pointer is set back behind a commit that was no flush, so that all of the group's rows are in both.
/// Guarantees: that is noticed as well: versions that readers know would not come again.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_put_back_behind_a_commit_without_a_mark_is_left_alone() {
    let mut rig = Rig::new().await;
    let id = table_id("back");
    rig.append("back", 3).await;
    rig.flush(0).await.expect("flushes");
    let old = pointer(&rig, &id).await;
    append_foreign(&rig, &id, &Draw(1).rows(1, 2, rig.now().0)).await;
    let new = pointer(&rig, &id).await;
    // As maintenance does.
    let advanced = Command::TableAdvanced { table: id.clone(), version: 2, location: new.clone() };
    rig.process.group.propose_index(&advanced, Duration::from_secs(30)).await.expect("commits");
    point(&rig, &id, &old).await;
    rig.append("back", 1).await;
    assert!(matches!(left_out(rig.flush(1).await), LakeError::WentBack { found: 1, known: 2, .. }));
    point(&rig, &id, &new).await;
    rig.flush(1).await.expect("flushes");
    rig.process.stop().await;
}

/// Scenario: another engine appends rows between two flushes, and while one is on its way.
/// Guarantees: its rows are shown with ours, and stay through flushes and compaction.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_engine_appends_is_kept_and_shown() {
    let mut rig = Rig::new().await;
    let id = table_id("shared");
    rig.append("shared", 3).await;
    rig.flush(0).await.expect("flushes");
    let theirs = Draw(1).rows(1, 4, rig.now().0);
    append_foreign(&rig, &id, &theirs).await;
    rig.ledger.expect(&id, &theirs);
    rig.append("shared", 3).await;
    rig.flush(1).await.expect("flushes");
    rig.check(["shared"], true, &"after a flush").await;
    let lake = &rig.process.leaders[0].lake;
    let upkeep = Upkeep { lake, id: &id, table: TABLE };
    let planned = upkeep.rewrites().await.expect("plans");
    let foreign = |file: &DataFile| file.file_path().contains("-foreign");
    assert!(!planned.iter().flat_map(|rewrite| &rewrite.files).any(foreign), "their files are not ours to rewrite");
    rig.process.stop().await;
}

/// Commits a snapshot that has, besides what there is, a manifest of delete files.
async fn delete_foreign(rig: &Rig, id: &TableId) {
    let lake = &rig.process.leaders[0].lake;
    let location = pointer(rig, id).await;
    let metadata = lake.metadata_at(&location).await.expect("reads");
    let mut manifests = lake.manifests(&metadata).await.expect("reads");
    // Nobody reads what is in it.
    manifests.push(ManifestFile { content: ManifestContentType::Deletes, ..manifests[0].clone() });
    let base = Base { metadata: &metadata, location: &location, manifests, loaded: HashMap::new() };
    let summary = HashMap::from([("engine".to_owned(), "another".to_owned())]);
    let uuid = uuid::Uuid::from_u128(7);
    let seeds = Seeds { snapshot_id: 7, commit: uuid, metadata: uuid, now_ms: rig.now().millis() };
    let staged = next_metadata(base, Change { summary, ..Change::default() }, seeds).expect("stages");
    for (location, content) in staged.files {
        rig.store.write(&location, content).await.expect("writes");
    }
    point(rig, id, &staged.location).await;
}

/// Scenario: another engine deletes rows of ours by delete files.
/// Guarantees: queries fail, by a type of its own, rather than count what is deleted; flushes go on, and compaction and
/// retention keep off.
#[tokio::test(flavor = "multi_thread")]
async fn delete_files_of_another_engine_make_queries_fail_and_flushes_go_on() {
    let mut rig = Rig::new().await;
    let id = table_id("deleted");
    rig.append("deleted", 3).await;
    rig.flush(0).await.expect("flushes");
    delete_foreign(&rig, &id).await;
    rig.append("deleted", 2).await;
    rig.flush(0).await.expect("flushes");
    let lake = &rig.process.leaders[0].lake;
    let metadata = lake.metadata_at(&pointer(&rig, &id).await).await.expect("reads");
    let failed = lake.data_files(&metadata).await.expect_err("counting would be a lie");
    assert!(matches!(failed, LakeError::ForeignDeletes(_)), "{failed:?}");
    let upkeep = Upkeep { lake, id: &id, table: TABLE };
    assert!(upkeep.rewrites().await.expect("plans").is_empty());
    assert_eq!(upkeep.retire().await.expect("plans"), None);
    let mark = lake.flushed_index(&metadata, &rig.process.cluster_id, rig.process.group.id(), &id).expect("is ours");
    let known = rig.process.group.with_state(|state| state.tables[&id].watermark);
    assert_eq!(mark, known, "what was flushed beside them is marked");
    rig.process.stop().await;
}

/// What somebody does to a table of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Dropped,
    Replaced,
    Altered,
}

async fn lose(rig: &Rig, id: &TableId, loss: Loss) {
    if loss == Loss::Altered {
        return rename_column(rig, id).await;
    }
    rig.catalog.drop_table(&id.namespace(), TABLE.name()).await.expect("answers");
    if loss == Loss::Replaced {
        rig.process.leaders[1].lake.ensure_table(id, TABLE).await.expect("creates");
    }
}

/// `ALTER TABLE ... RENAME COLUMN`, by another engine.
async fn rename_column(rig: &Rig, id: &TableId) {
    let base = pointer(rig, id).await;
    let mut json: serde_json::Value =
        serde_json::from_slice(&rig.store.read(&base).await.expect("reads")).expect("is JSON");
    let mut schema = json["schemas"][0].clone();
    schema["schema-id"] = 1.into();
    schema["fields"][1]["name"] = "start".into();
    json["schemas"].as_array_mut().expect("schemas").push(schema);
    json["current-schema-id"] = 1.into();
    let root = json["location"].as_str().expect("a location").to_owned();
    let uuid = uuid::Uuid::from_u128(9);
    let location = format!("{root}/metadata/{:05}-{uuid}.metadata.json", crate::table::version_of(&base) + 1);
    rig.store.write(&location, serde_json::to_vec(&json).expect("JSON").into()).await.expect("writes");
    point(rig, id, &location).await;
}

/// The table is in quarantine, as both lakes and the log have it.
async fn expect_quarantine(rig: &Rig, id: &TableId, context: &dyn std::fmt::Debug) {
    let group = &rig.process.group;
    let reason = group.with_state(|state| state.tables[id].quarantined.clone());
    assert!(reason.is_some(), "{context:?}");
    assert_eq!(group.with_state(|state| state.dirty().count()), 0, "no cut is kept open: {context:?}");
    let index = group.read_index_here().await.expect("leads");
    for leader in &rig.process.leaders {
        let view = leader.lake.view(group.id(), id, index).await;
        assert!(matches!(view, Err(LakeError::Quarantined { .. })), "a part would pass for the whole: {context:?}");
        let said = leader.lake.degraded().join("\n");
        assert!(said.contains("in quarantine") && said.contains("/quarantine/t/lost/traces"), "{said}");
    }
}

/// Scenario: somebody drops a table, puts another in its place, or renames a column of it, and rows come in.
/// Guarantees: every row is put aside, whoever leads and after a restart; no cut is kept open and the neighbour is
/// flushed; queries fail, by a type of their own. Released, the table takes what comes from then on, and shows that and
/// what it still has, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_lost_is_put_in_quarantine_until_it_is_released() {
    for loss in [Loss::Dropped, Loss::Replaced, Loss::Altered] {
        let mut rig = Rig::new().await;
        let id = table_id("lost");
        rig.append("lost", 3).await;
        rig.append("other", 2).await;
        rig.flush(0).await.expect("flushes");
        rig.check(["lost", "other"], true, &loss).await;
        let (sound, before) = (pointer(&rig, &id).await, rig.ledger.take(&id));
        lose(&rig, &id, loss).await;
        for leader in [0, 1] {
            rig.append("lost", 2).await;
            rig.append("other", 2).await;
            rig.flush(leader).await.expect("the cut goes on");
            rig.check(["other"], true, &loss).await;
            expect_quarantine(&rig, &id, &loss).await;
        }
        rig.restart().await;
        expect_quarantine(&rig, &id, &loss).await;
        rig.append("lost", 2).await;
        rig.flush(0).await.expect("the cut goes on");
        let mut aside = rig.ledger.take(&id);
        aside.sort();
        assert_eq!(rig.put_aside(&id).await, aside, "{loss:?}");

        if loss == Loss::Altered {
            point(&rig, &id, &sound).await;
            // Nothing releases by itself.
            rig.append("lost", 1).await;
            rig.flush(0).await.expect("the cut goes on");
            expect_quarantine(&rig, &id, &loss).await;
            aside.extend(rig.ledger.take(&id));
            aside.sort();
            rig.ledger.expect(&id, &before);
        }
        rig.append("lost", 1).await;
        let release = Command::TableReleased { table: id.clone() };
        rig.process.group.propose_index(&release, Duration::from_secs(30)).await.expect("commits");
        rig.check(["lost"], false, &loss).await;
        rig.flush(0).await.expect("flushes");
        rig.restart().await;
        rig.append("lost", 1).await;
        rig.flush(1).await.expect("flushes");
        rig.check(["lost", "other"], true, &loss).await;
        assert_eq!(rig.put_aside(&id).await, aside, "{loss:?}");
        rig.process.stop().await;
    }
}
