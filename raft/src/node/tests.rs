use std::sync::Mutex;

use bytes::Bytes;
use signaldb_model::{DatasetId, ManualClock, NodeId, TableCode, UnixNanos};
use signaldb_wal::sim::{Loss, SimIo};

use super::*;
use crate::command::{Compression, TableStats};
use crate::error::RejectReason;
use crate::state::Digest;
use crate::state_store::MemoryStateStore;
use crate::types::{Entry, LogId, SnapshotMeta};

mod acknowledged;
mod cluster;
mod faults;
mod forwarding;
mod golden;
mod halts;
mod mutations;
mod old_copy;
mod wires;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Remembers what it was told, by group.
#[derive(Debug, Default)]
struct Recorder {
    appended: Mutex<BTreeMap<(u32, u64), Bytes>>,
    watermark: Mutex<BTreeMap<u32, u64>>,
}

impl ApplySink for Recorder {
    fn restored(&self, group: GroupId, _applied: u64, state: &GroupState) {
        let watermark = state.tables.values().map(|table| table.watermark).max().unwrap_or(0);
        self.watermark.lock().expect("lock").insert(group.0, watermark);
    }
    fn appended(&self, group: GroupId, index: u64, append: Append) {
        self.appended.lock().expect("lock").insert((group.0, index), append.payload);
    }
    fn flushed(&self, group: GroupId, _table: &TableId, hi: u64, _version: i64, _location: &str) {
        self.watermark.lock().expect("lock").insert(group.0, hi);
    }
    fn advanced(&self, _group: GroupId, _table: &TableId, _version: i64, _location: &str) {}
    fn meta(&self, _json: &str) {}
    fn applied(&self, _group: GroupId, _index: u64) {}
}

struct Machine {
    /// Of the operating system; another one after a reboot.
    boot_id: &'static str,
    io: SimIo,
    store: Arc<MemoryStateStore>,
    clock: Arc<ManualClock>,
    purge_lag: Duration,
}

impl Machine {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new(UnixNanos(1_000_000_000_000)));
        Self { boot_id: "boot", io: SimIo::new(), store: Arc::default(), clock, purge_lag: Duration::ZERO }
    }

    async fn start(&self) -> (Groups, Arc<Recorder>) {
        self.try_start().await.expect("opens")
    }

    async fn try_start(&self) -> Result<(Groups, Arc<Recorder>), OpenError> {
        let sink = Arc::new(Recorder::default());
        let config = GroupsConfig { boot_id: self.boot_id.into(), purge_lag: self.purge_lag, ..config("127.0.0.1:1") };
        let peers =
            PeersConfig { cluster: "test".into(), secret: String::new(), node: NodeId(1), addresses: BTreeMap::new() };
        let store: Arc<dyn StateStore> = Arc::<MemoryStateStore>::clone(&self.store);
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
        let listener: Arc<dyn ApplySink> = Arc::<Recorder>::clone(&sink);
        let log = OpenLog::open(&config, peers, Arc::new(self.io.clone()), store).await?;
        Ok((Groups::open(log, config, clock, listener).await?, sink))
    }
}

fn config(address: &str) -> GroupsConfig {
    GroupsConfig {
        address: address.into(),
        wal_dir: "/wal".into(),
        boot_id: "boot".into(),
        wal: WalConfig { segment_bytes_max: 4096, ..WalConfig::default() },
        data_groups: 2,
        heartbeat_interval: Duration::from_millis(500),
        election_timeout: (Duration::from_secs(1), Duration::from_millis(1500)),
        purge_lag: Duration::ZERO,
        purge_lag_bytes_max: 1 << 30,
        trim_interval: Duration::from_millis(20),
        fsync: false,
    }
}

fn tenant() -> TenantId {
    TenantId::new("acme").expect("name")
}

fn append(text: &str) -> Append {
    let mut digest = [0; 16];
    digest[..text.len()].copy_from_slice(text.as_bytes());
    Append {
        kind: 1,
        tenant: tenant(),
        dataset: DatasetId::new("production").expect("name"),
        at: UnixNanos(1_000_000_000_000),
        dedup: Some((Digest(digest), 600)),
        tables: vec![TableStats { table: TableCode(1), rows: 1, time_min: UnixNanos(0), time_max: UnixNanos(0) }],
        compression: Compression::None,
        raw_len: text.len() as u32,
        payload: Bytes::copy_from_slice(text.as_bytes()),
    }
}

async fn write(groups: &Groups, text: &str) -> crate::Written {
    let group = groups.home(&tenant(), TIMEOUT).await.expect("placed");
    group.append(append(text), None, TIMEOUT).await.expect("commits")
}

fn texts(sink: &Recorder) -> Vec<String> {
    let appended = sink.appended.lock().expect("lock");
    appended.values().map(|payload| String::from_utf8_lossy(payload).into_owned()).collect()
}

#[tokio::test]
async fn acknowledged_writes_survive_power_loss_and_their_retries_are_found() {
    let machine = Machine::new();
    let (groups, sink) = machine.start().await;
    let first = write(&groups, "one").await;
    assert_eq!(write(&groups, "one").await, crate::Written { deduplicated: true, ..first });
    write(&groups, "two").await;
    assert_eq!(texts(&sink), ["one", "two"]);
    let founding = groups.founding().clone();
    assert!(founding.secret.is_some());
    machine.io.lose_power(Loss::All);
    groups.close().await;
    let (groups, sink) = machine.start().await;
    assert_eq!(texts(&sink), ["one", "two"]);
    assert_eq!(groups.founding(), &founding);
    assert_eq!(write(&groups, "one").await, crate::Written { deduplicated: true, ..first });
    assert_eq!(groups.not_ready(), Vec::<String>::new());
    groups.close().await;
}

/// Scenario: the machine of a single node crashes, twice, with the end of its log lost, torn or zeroed.
/// Guarantees: it starts by itself with everything that was acknowledged, and goes on.
#[tokio::test]
async fn a_reboot_does_not_stop_a_lone_voter() {
    for loss in [Loss::All, Loss::KeepPrefix(30), Loss::KeepPrefix(90), Loss::ZerosAfter(20)] {
        let mut machine = Machine::new();
        let mut expected = Vec::new();
        for (boot_id, text) in [("first boot", "one"), ("second boot", "two"), ("third boot", "three")] {
            machine.boot_id = boot_id;
            let (groups, sink) = machine.start().await;
            assert_eq!(texts(&sink), expected, "{boot_id} after {loss:?}");
            assert_eq!(groups.not_ready(), Vec::<String>::new(), "{boot_id} after {loss:?}");
            write(&groups, text).await;
            expected.push(text);
            // The process goes on with the old disk; nothing of that is on the one that is started from.
            let crashed = machine.io.fork();
            crashed.lose_power(loss);
            groups.close().await;
            machine.io = crashed;
        }
    }
}

#[tokio::test]
async fn a_wall_clock_that_jumps_ends_no_dedup_window_but_time_that_passes_does() {
    let machine = Machine::new();
    let (groups, sink) = machine.start().await;
    let first = write(&groups, "one").await;
    machine.clock.jump(Duration::from_secs(7200));
    write(&groups, "two").await;
    assert_eq!(write(&groups, "one").await, crate::Written { deduplicated: true, ..first });
    machine.clock.advance(Duration::from_secs(720));
    assert!(!write(&groups, "one").await.deduplicated, "the window is ten minutes, in buckets of one");
    assert_eq!(texts(&sink), ["one", "two", "one"]);
    groups.close().await;
}

#[tokio::test]
async fn a_completed_cut_becomes_the_snapshot_and_the_log_behind_it_goes() {
    let machine = Machine::new();
    let (groups, _sink) = machine.start().await;
    for n in 0..100 {
        write(&groups, &format!("before {n}")).await;
    }
    let group = groups.homes(&tenant()).remove(0);
    let cut = Command::FlushCut { at: UnixNanos(0) };
    let hi = group.propose_index(&cut, TIMEOUT).await.expect("cuts");
    let table = append("x").table_ids().next().expect("one table");
    let segments = groups.wal_stats().segments;
    let done = Command::FlushCommitted { table, hi, version: 1, location: "file:///v1".into() };
    group.propose_index(&done, TIMEOUT).await.expect("commits");
    write(&groups, "after").await;
    let purged = tokio::time::timeout(TIMEOUT, async {
        while groups.wal_stats().segments >= segments {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    purged.await.expect("segments are dropped");
    groups.close().await;

    let (groups, sink) = machine.start().await;
    assert_eq!(texts(&sink), ["after"]);
    let group = groups.homes(&tenant()).remove(0);
    assert_eq!(sink.watermark.lock().expect("lock")[&group.id().0], hi);
    assert!(write(&groups, "before 7").await.deduplicated, "the window survives in the snapshot");
    groups.close().await;
}

/// Scenario: flushed log is kept for an hour as insurance; then the disk is nearly full, and has room again.
/// Guarantees: the log is purged at once; as a leader the node takes no rows meanwhile, but the commands of a flush.
#[tokio::test]
async fn a_nearly_full_disk_purges_flushed_log_at_once_and_takes_no_rows() {
    let machine = Machine { purge_lag: Duration::from_secs(3600), ..Machine::new() };
    let (groups, _sink) = machine.start().await;
    for n in 0..100 {
        write(&groups, &format!("before {n}")).await;
    }
    let group = groups.homes(&tenant()).remove(0);
    assert!(groups.pinning_groups().any(|pinning| pinning.id() == group.id()));
    groups.set_disk_level(DiskLevel::NearlyFull);
    let propose = |command: Command| group.propose_for_peer(command.encode(), false, TIMEOUT);
    let refused = propose(Command::Append(append("rows"))).await;
    assert!(matches!(refused, Err(WriteError::Rejected(RejectReason::DiskReserve))), "{refused:?}");
    assert!(!group.is_willing());
    let hi = propose(Command::FlushCut { at: UnixNanos(0) }).await.expect("cuts").index;
    let table = append("x").table_ids().next().expect("one table");
    propose(Command::FlushCommitted { table, hi, version: 1, location: String::new() }).await.expect("commits");
    let purged = tokio::time::timeout(TIMEOUT, async {
        while groups.pinning_groups().any(|pinning| pinning.id() == group.id()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    purged.await.expect("nothing of the group keeps the oldest segment");
    groups.set_disk_level(DiskLevel::Normal);
    propose(Command::Append(append("rows"))).await.expect("commits");
    groups.close().await;
}

/// Has all rows of a group in its table; returns the index of the cut.
async fn flush(group: &Group) -> u64 {
    let propose = |command: Command| group.propose_for_peer(command.encode(), false, TIMEOUT);
    let hi = propose(Command::FlushCut { at: UnixNanos(0) }).await.expect("cuts").index;
    let table = append("x").table_ids().next().expect("one table");
    propose(Command::FlushCommitted { table, hi, version: 1, location: String::new() }).await.expect("commits");
    hi
}

/// Scenario: a group with a large dedup window wrote one row since its snapshot, and another group much; then the disk is
/// nearly full.
/// Guarantees: the first lets go of the segments that it shares with the other.
#[tokio::test]
async fn a_group_that_wrote_little_lets_the_log_of_others_go_on_a_nearly_full_disk() {
    let machine = Machine { purge_lag: Duration::from_secs(3600), ..Machine::new() };
    let (groups, _sink) = machine.start().await;
    for n in 0..100 {
        write(&groups, &format!("before {n}")).await;
    }
    let group = groups.homes(&tenant()).remove(0);
    let other = groups.data_groups().find(|other| other.id() != group.id()).expect("two groups");
    flush(&group).await;
    let snapshot = crate::sink::snapshot_key(group.id());
    cluster::until("a snapshot", || machine.store.get(&snapshot).expect("reads").is_some()).await;
    write(&groups, "between").await;
    for n in 0..300 {
        other.append(append(&format!("other {n}")), None, TIMEOUT).await.expect("commits");
    }
    let segments = groups.wal_stats().segments;
    groups.set_disk_level(DiskLevel::NearlyFull);
    flush(&group).await;
    flush(other).await;
    cluster::until("the log is short", || groups.wal_stats().segments < segments / 2).await;
    groups.close().await;
}

/// Scenario: the process ends while flushed log is kept as insurance, with a row that is not flushed; when it runs again the
/// disk is nearly full.
/// Guarantees: the log behind the snapshot goes, without another flush.
#[tokio::test]
async fn what_was_kept_as_insurance_goes_after_a_restart_too() {
    let machine = Machine { purge_lag: Duration::from_secs(3600), ..Machine::new() };
    let (groups, _sink) = machine.start().await;
    write(&groups, "before").await;
    let group = groups.homes(&tenant()).remove(0);
    let cut = flush(&group).await;
    let snapshot = crate::sink::snapshot_key(group.id());
    cluster::until("a snapshot", || machine.store.get(&snapshot).expect("reads").is_some()).await;
    write(&groups, "after").await;
    assert_eq!(group.purged_index(), 0);
    groups.close().await;

    let (groups, sink) = machine.start().await;
    let group = groups.homes(&tenant()).remove(0);
    assert_eq!((texts(&sink), group.purged_index()), (vec!["after".to_owned()], 0));
    groups.set_disk_level(DiskLevel::NearlyFull);
    cluster::until("it is purged", || group.purged_index() == cut).await;
    groups.close().await;
}

/// Scenario: on a nearly full disk a group has log that could go, and its snapshot does not fit; then there is more room.
/// Guarantees: it is not written before it fits.
#[tokio::test]
async fn a_snapshot_waits_until_the_disk_has_room_for_it() {
    let machine = Machine { purge_lag: Duration::from_secs(3600), ..Machine::new() };
    let (groups, _sink) = machine.start().await;
    for n in 0..100 {
        write(&groups, &format!("before {n}")).await;
    }
    let group = groups.homes(&tenant()).remove(0);
    let snapshot = crate::sink::snapshot_key(group.id());
    groups.set_room_for_snapshots(100);
    groups.set_disk_level(DiskLevel::NearlyFull);
    flush(&group).await;
    let is_written = || machine.store.get(&snapshot).expect("reads").is_some();
    // Some looks of the group's: one is all that it takes.
    let written = tokio::time::timeout(Duration::from_millis(300), cluster::until("a snapshot", is_written)).await;
    assert!(written.is_err(), "it has a hundred digests");
    groups.set_room_for_snapshots(1 << 20);
    cluster::until("a snapshot", is_written).await;
    groups.close().await;
}

/// Scenario: a leader sends a snapshot to a node whose disk is nearly full.
/// Guarantees: what does not fit is refused as a lost message is, before openraft takes it: a failure to write it would end the
/// node.
#[tokio::test]
async fn a_leaders_snapshot_that_does_not_fit_is_refused() {
    let (groups, _sink) = Machine::new().start().await;
    let meta = SnapshotMeta { last_log_id: Some(LogId::new_term_index(1, 5)), last_membership: Default::default() };
    let request = signaldb_proto::peer::SnapshotRequest {
        group: 1,
        // Of a leader that was deposed: one that fits is answered, and not installed.
        vote: signaldb_proto::peer::Vote { term: 0, node: 2, committed: true },
        snapshot: crate::codec::encode_snapshot(&meta, &GroupState::default().encode()),
    };
    let room = request.snapshot.len() as u64;
    for (level, left, taken) in [
        (DiskLevel::NearlyFull, room - 1, false),
        (DiskLevel::NearlyFull, room, true),
        (DiskLevel::Exhausted, 0, false),
        (DiskLevel::Exhausted, room, true),
        (DiskLevel::Normal, 0, true),
    ] {
        groups.set_room_for_snapshots(left);
        groups.set_disk_level(level);
        let answer = crate::server::answer(groups.peers(), "Snapshot", crate::server::encode(&request)).await;
        let refusal = answer.err().map(|status| status.code());
        assert_eq!(refusal, (!taken).then_some(tonic::Code::ResourceExhausted), "{level:?} {left}");
    }
    groups.close().await;
}

#[tokio::test]
async fn an_exhausted_disk_takes_heartbeats_and_no_entries_of_leaders() {
    let (groups, _sink) = Machine::new().start().await;
    let group = groups.data_groups().next().expect("a group");
    let blank = Entry { log_id: LogId::new_term_index(1, 0), payload: openraft::EntryPayload::Blank };
    let request = |entries| {
        let vote = signaldb_proto::peer::Vote { term: 1, node: 2, committed: true };
        let request = signaldb_proto::peer::AppendRequest {
            group: 1,
            vote,
            prev_log_id: None,
            leader_commit: None,
            first_index: 0,
            entries,
        };
        crate::wire::append_request_in(&request).expect("is one")
    };
    let entries = request(vec![crate::codec::encode_entry(&blank)]);
    for (level, taken) in [(DiskLevel::Normal, true), (DiskLevel::NearlyFull, true), (DiskLevel::Exhausted, false)] {
        groups.set_disk_level(level);
        assert_eq!(group.check_room(&entries).is_ok(), taken, "{level:?}");
        group.check_room(&request(Vec::new())).expect("a heartbeat");
    }
    groups.close().await;
}

#[tokio::test]
async fn a_purged_log_without_its_snapshot_is_refused() {
    let machine = Machine::new();
    let (groups, _sink) = machine.start().await;
    write(&groups, "one").await;
    let group = groups.homes(&tenant()).remove(0);
    let hi = group.propose_index(&Command::FlushCut { at: UnixNanos(0) }, TIMEOUT).await.expect("cuts");
    let table = append("x").table_ids().next().expect("one table");
    let done = Command::FlushCommitted { table, hi, version: 1, location: String::new() };
    group.propose_index(&done, TIMEOUT).await.expect("commits");
    let purged = tokio::time::timeout(TIMEOUT, async {
        while groups.wal.group_state(group.id().0).purged.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    purged.await.expect("purges");
    groups.close().await;
    let wiped = Machine { store: Arc::default(), ..machine };
    assert!(wiped.try_start().await.expect_err("refuses").to_string().contains("state store"));
}

#[test]
fn meta_commands_are_written_as_they_were() {
    let epoch = StartEpoch { number: 2, token: 7 };
    let place = MetaCommand::Place { tenant: tenant(), groups: vec![1], epoch: 1 };
    let started = MetaCommand::Started { node: 3, disk_id: "d".into(), epoch };
    let poisoned = MetaCommand::Poisoned { node: 3, disk_id: "d".into(), epoch };
    let founding = Founding {
        cluster_id: "c".into(),
        store_id: "s".into(),
        data_groups: 2,
        voters: BTreeMap::new(),
        secret: Some(serde_json::from_str("\"hush\"").expect("a text")),
    };
    assert!(!format!("{founding:?}").contains("hush"));
    let of_before = Founding { secret: None, ..founding.clone() };
    for (command, json) in [
        (
            MetaCommand::Found(founding),
            r#"{"found":{"cluster_id":"c","store_id":"s","data_groups":2,"voters":{},"secret":"hush"}}"#,
        ),
        (MetaCommand::Found(of_before), r#"{"found":{"cluster_id":"c","store_id":"s","data_groups":2,"voters":{}}}"#),
        (place, r#"{"place":{"tenant":"acme","groups":[1],"epoch":1}}"#),
        (started, r#"{"started":{"node":3,"disk_id":"d","epoch":{"number":2,"token":7}}}"#),
        (poisoned, r#"{"poisoned":{"node":3,"disk_id":"d","epoch":{"number":2,"token":7}}}"#),
    ] {
        assert_eq!(meta_command(&command), Command::Meta(json.to_owned()));
        assert_eq!(serde_json::from_str::<MetaCommand>(json).expect("decodes"), command);
    }
}

#[test]
fn a_founding_of_a_newer_version_is_named_without_its_secret() {
    let newer = r#"{"found":{"cluster_id":"c","data_groups":"many","secret":"hush"}}"#;
    assert!(serde_json::from_str::<MetaCommand>(newer).is_err());
    assert_eq!(name_of(newer), "found");
    assert_eq!(name_of("hush"), "");
}
