//! What nodes say to each other on the peer port: gRPC service `signaldb.peer.v1.Peer`, format 1.
//!
//! All calls are unary but two: `AppendStream`, a stream of [`AppendRequest`] answered in order by one of
//! [`AppendResponse`], and `ProposeStream`, a stream of [`ProposeBatch`] whose commands are answered in any order by one
//! of [`ProposeAnswers`]. A node that does not know a method answers UNIMPLEMENTED, once it has read the request to its
//! end.
//!
//! Log entries, commands and snapshots travel in their persisted encodings, which have versions of their own. Fields are
//! only ever added. Who speaks is in the metadata of each call.

use prost::Message;

/// gRPC service name.
pub const SERVICE: &str = "signaldb.peer.v1.Peer";
/// Format of this protocol; a peer with a newer one is refused by name.
pub const FORMAT: u32 = 1;

/// Metadata of each call: the format.
pub const FORMAT_KEY: &str = "x-signaldb-peer-format";
/// Metadata of each call: name of the cluster (`cluster.name`).
pub const CLUSTER_KEY: &str = "x-signaldb-cluster";
/// Metadata of each call: node and disk of the caller.
pub const FROM_NODE_KEY: &str = "x-signaldb-from-node";
/// Metadata of each call.
pub const FROM_DISK_KEY: &str = "x-signaldb-from-disk";
/// Metadata of each call: the disk that the caller believes the node to have; absent while it does not know.
pub const TO_DISK_KEY: &str = "x-signaldb-to-disk";
/// Metadata of each call, and of each answer with [`FROM_DISK_KEY`]: the last starts of the speaker's disk, as
/// `number:token,token`, newest first, tokens in hex. Absent in builds of before there were start epochs.
pub const FROM_STARTS_KEY: &str = "x-signaldb-from-starts";
/// Metadata of a refusal that is final: the caller's disk must not go on under its node id.
pub const REFUSED_KEY: &str = "x-signaldb-refused";

/// Position and term of a log entry.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LogId {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub index: u64,
}

/// A vote as Raft persists it.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Vote {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub node: u64,
    #[prost(bool, tag = "3")]
    pub committed: bool,
}

/// Answered with [`IdentityResponse`]; with [`KnownRequest`] the only call that needs no known disk.
#[derive(Clone, PartialEq, Message)]
pub struct IdentityRequest {}

/// Who a node is, and whether it belongs to a cluster.
#[derive(Clone, PartialEq, Message)]
pub struct IdentityResponse {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(string, tag = "2")]
    pub disk_id: String,
    /// First voters by disk, when the node's cluster was formed; empty before.
    #[prost(message, repeated, tag = "3")]
    pub voters: Vec<Voter>,
    /// Whether the node would lead: it neither stops nor refuses rows.
    #[prost(bool, tag = "4")]
    pub willing: bool,
}

/// A member of the meta group.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Voter {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    #[prost(string, tag = "2")]
    pub address: String,
    #[prost(string, tag = "3")]
    pub disk_id: String,
}

/// One start of a node's disk.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct StartEpoch {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(fixed32, tag = "2")]
    pub token: u32,
}

/// Asks what a peer knows of the starts of a node, which is usually the caller, before it takes part in anything.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct KnownRequest {
    #[prost(uint64, tag = "1")]
    pub node: u64,
}

/// What it knows.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KnownResponse {
    /// Of the node; absent when its id is not known.
    #[prost(string, optional, tag = "1")]
    pub disk_id: Option<String>,
    /// Its last start that anybody saw.
    #[prost(message, optional, tag = "2")]
    pub epoch: Option<StartEpoch>,
    /// Its last start that ended with a failed write or fsync.
    #[prost(message, optional, tag = "3")]
    pub poisoned: Option<StartEpoch>,
}

/// The caller's log is poisoned: a write or an fsync failed. Answered with [`Done`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PoisonedRequest {
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// The start that ends with it.
    #[prost(message, optional, tag = "2")]
    pub epoch: Option<StartEpoch>,
}

/// A vote or pre-vote request.
#[derive(Clone, PartialEq, Message)]
pub struct VoteRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(message, required, tag = "2")]
    pub vote: Vote,
    #[prost(message, optional, tag = "3")]
    pub last_log_id: Option<LogId>,
    #[prost(bool, tag = "4")]
    pub leadership_transfer: bool,
}

/// Answer to a vote or pre-vote request.
#[derive(Clone, PartialEq, Message)]
pub struct VoteResponse {
    #[prost(message, required, tag = "1")]
    pub vote: Vote,
    #[prost(bool, tag = "2")]
    pub granted: bool,
    #[prost(message, optional, tag = "3")]
    pub last_log_id: Option<LogId>,
}

/// Entries to append; without entries a heartbeat.
#[derive(Clone, PartialEq, Message)]
pub struct AppendRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(message, required, tag = "2")]
    pub vote: Vote,
    #[prost(message, optional, tag = "3")]
    pub prev_log_id: Option<LogId>,
    #[prost(message, optional, tag = "4")]
    pub leader_commit: Option<LogId>,
    /// Index of the first entry; the others follow.
    #[prost(uint64, tag = "5")]
    pub first_index: u64,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub entries: Vec<bytes::Bytes>,
}

/// Answer to an append.
#[derive(Clone, PartialEq, Message)]
pub struct AppendResponse {
    #[prost(enumeration = "AppendOutcome", tag = "1")]
    pub outcome: i32,
    /// Of a partial success: the last entry that matches.
    #[prost(message, optional, tag = "2")]
    pub matching: Option<LogId>,
    /// Of a higher vote.
    #[prost(message, optional, tag = "3")]
    pub vote: Option<Vote>,
    /// Entries up to here match the leader's log and were fdatasynced.
    #[prost(uint64, tag = "4")]
    pub synced: u64,
}

/// How an append went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum AppendOutcome {
    Unspecified = 0,
    Success = 1,
    PartialSuccess = 2,
    Conflict = 3,
    HigherVote = 4,
}

/// A whole snapshot, as it is persisted.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(message, required, tag = "2")]
    pub vote: Vote,
    #[prost(bytes = "bytes", tag = "3")]
    pub snapshot: bytes::Bytes,
}

/// Answer to a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotResponse {
    #[prost(message, required, tag = "1")]
    pub vote: Vote,
}

/// The leader asks a follower to take over.
#[derive(Clone, PartialEq, Message)]
pub struct TransferRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(message, required, tag = "2")]
    pub from_leader: Vote,
    #[prost(uint64, tag = "3")]
    pub to: u64,
    #[prost(message, optional, tag = "4")]
    pub last_log_id: Option<LogId>,
}

/// Answer to a transfer.
#[derive(Clone, PartialEq, Message)]
pub struct TransferResponse {
    /// Set when the vote changed meanwhile.
    #[prost(message, optional, tag = "1")]
    pub actual_vote: Option<Vote>,
    /// Whether the log was not flushed far enough; `actual_log` says how far it is.
    #[prost(bool, tag = "2")]
    pub not_flushed: bool,
    #[prost(message, optional, tag = "3")]
    pub actual_log: Option<LogId>,
}

/// A command for the leader, from a node that a client wrote to.
#[derive(Clone, PartialEq, Message)]
pub struct ProposeRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub command: bytes::Bytes,
    #[prost(uint32, tag = "3")]
    pub timeout_ms: u32,
    /// Answer only when the command is on the disks of a majority.
    #[prost(bool, tag = "4")]
    pub synced: bool,
}

/// What became of a command.
#[derive(Clone, PartialEq, Message)]
pub struct ProposeResponse {
    #[prost(enumeration = "ProposeOutcome", tag = "1")]
    pub outcome: i32,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint64, optional, tag = "3")]
    pub first_copy: Option<u64>,
    #[prost(string, tag = "4")]
    pub reason: String,
    /// Of a throttled command.
    #[prost(uint64, tag = "5")]
    pub bytes: u64,
    #[prost(uint64, tag = "6")]
    pub limit: u64,
    #[prost(uint32, tag = "7")]
    pub retry_after_ms: u32,
}

/// A write is rejected, committed or unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ProposeOutcome {
    /// What a newer node may say counts as unknown as well.
    Unknown = 0,
    Committed = 1,
    NoLeader = 2,
    Throttled = 3,
    TooLarge = 4,
    Stopping = 5,
    /// The leader's memory is full.
    Busy = 6,
    /// It is no command, or one that the leader does not know.
    Undecodable = 7,
    /// The group waits for an operator.
    Halted = 9,
    /// The leader's disk is nearly full; it gives its leaderships away.
    DiskReserve = 8,
}

/// Commands for groups that the callee leads, each of any group.
#[derive(Clone, PartialEq, Message)]
pub struct ProposeBatch {
    #[prost(message, repeated, tag = "1")]
    pub commands: Vec<NumberedRequest>,
}

/// One of them.
#[derive(Clone, PartialEq, Message)]
pub struct NumberedRequest {
    /// Names the command in its answer; used once on a stream.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(message, required, tag = "2")]
    pub request: ProposeRequest,
}

/// What became of commands, each answered once; empty to say that the leader lives while it has no answer.
#[derive(Clone, PartialEq, Message)]
pub struct ProposeAnswers {
    #[prost(message, repeated, tag = "1")]
    pub answers: Vec<NumberedResponse>,
}

/// One of them.
#[derive(Clone, PartialEq, Message)]
pub struct NumberedResponse {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    #[prost(message, required, tag = "2")]
    pub response: ProposeResponse,
}

/// A leader asks a follower to hurry the sync of its log.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SyncRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Term of the entry there: whether the follower's is the same.
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

/// The follower has the leader's log up to `synced` on disk.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SyncResponse {
    #[prost(uint64, tag = "1")]
    pub synced: u64,
}

/// Of a group: asks its leader how far a recovering replica has to get, or a voter for a [`RecoveryReport`].
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RecoveryRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
}

/// What a leader's core answers to a recovering replica: its vote and the last entry of its log, committed or not.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RecoveryTarget {
    #[prost(message, required, tag = "1")]
    pub leader: Vote,
    #[prost(uint64, tag = "2")]
    pub last_index: u64,
}

/// What a voter says of itself when a majority may have lost entries.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RecoveryReport {
    /// As the trust record has it: `trust/1 synced`, `unsynced` or `recovering`.
    #[prost(bytes = "bytes", tag = "1")]
    pub trust: bytes::Bytes,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(message, optional, tag = "3")]
    pub last: Option<LogId>,
    #[prost(uint64, optional, tag = "4")]
    pub committed: Option<u64>,
    /// The voters of each configuration of its membership.
    #[prost(message, repeated, tag = "5")]
    pub configs: Vec<Voters>,
}

/// One configuration.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Voters {
    #[prost(uint64, repeated, tag = "1")]
    pub ids: Vec<u64>,
}

/// Asks a voter to promise its vote to the winner of a recovery; durable before it is answered.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PromiseRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub winner: u64,
    /// Where the winner's log ends.
    #[prost(message, optional, tag = "4")]
    pub last: Option<LogId>,
}

/// Whether the voter promised.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PromiseResponse {
    #[prost(bool, tag = "1")]
    pub promised: bool,
}

/// Tells every voter that all of `voters` have promised: the winner may campaign now. Answered with nothing.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ChosenRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(uint64, tag = "2")]
    pub winner: u64,
    #[prost(uint64, repeated, tag = "3")]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    pub promised: Vec<u64>,
    /// What may be lost, for people.
    #[prost(string, tag = "5")]
    pub loss: String,
}

/// An operator asks the leader of a group that halted to go on in a new incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GoOnRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    /// Do it; else only say what is wrong.
    #[prost(bool, tag = "2")]
    pub accept: bool,
}

/// Why the group had halted; nothing when it had not.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GoOnResponse {
    #[prost(string, optional, tag = "1")]
    pub halted: Option<String>,
    #[prost(bool, tag = "2")]
    pub done: bool,
}

/// No answer but that it arrived.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {}

/// Asks a leader for the index that a strong read must see.
#[derive(Clone, PartialEq, Message)]
pub struct ReadIndexRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
}

/// Every write acknowledged before the request is at or below the index.
#[derive(Clone, PartialEq, Message)]
pub struct ReadIndexResponse {
    #[prost(uint64, tag = "1")]
    pub index: u64,
}

/// Flight action of the peer port: pins what a group's leader holds of a table. Body [`ViewRequest`], one result
/// [`ViewResponse`].
pub const VIEW_ACTION: &str = "view";
/// Flight action of the peer port: gives a view back. Body [`RowsTicket`], no result.
pub const RELEASE_ACTION: &str = "release";
/// Flight action of the peer port: flushes what a group applied before the call. Body [`FlushRequest`], no result.
pub const FLUSH_ACTION: &str = "flush";
/// Flight action of the peer port: does what an operator asks of tables. Body [`MaintainRequest`], result a report in JSON,
/// which whoever asked passes on as it is.
pub const MAINTAIN_ACTION: &str = "maintain";
/// Flight action of the peer port: the queries that run on a node. Body [`QueriesRequest`], one result
/// [`QueriesResponse`].
pub const QUERIES_ACTION: &str = "queries";
/// Flight action of the peer port: stops a query. Body [`KillRequest`], one result [`KillResponse`].
pub const KILL_ACTION: &str = "kill";

/// Flight action of the peer port: stops the queries that answer Flight SQL tickets. Body [`CancelRequest`], one result
/// [`KillResponse`]. A node of before there was the action answers UNIMPLEMENTED.
pub const CANCEL_ACTION: &str = "cancel";

/// Asks a leader for a view of one table.
#[derive(Clone, PartialEq, Message)]
pub struct ViewRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(string, tag = "2")]
    pub tenant: String,
    #[prost(string, tag = "3")]
    pub dataset: String,
    #[prost(uint32, tag = "4")]
    pub table: u32,
    /// Everything acknowledged before the call must be in it.
    #[prost(bool, tag = "5")]
    pub strong: bool,
    /// And everything up to this index.
    #[prost(uint64, tag = "6")]
    pub min_index: u64,
    /// How long its rows will be asked for.
    #[prost(uint32, tag = "7")]
    pub keep_ms: u32,
    /// Better a part than nothing, when newer rows are in the log alone.
    #[prost(bool, tag = "8")]
    pub may_be_partial: bool,
}

/// A pinned view.
#[derive(Clone, PartialEq, Message)]
pub struct ViewResponse {
    /// False when the group never had rows of the table; then nothing else is set.
    #[prost(bool, tag = "1")]
    pub found: bool,
    #[prost(uint64, tag = "2")]
    pub watermark: u64,
    #[prost(int64, tag = "3")]
    pub version: i64,
    #[prost(string, tag = "4")]
    pub location: String,
    /// Names the view in [`RowsTicket`].
    #[prost(bytes = "bytes", tag = "5")]
    pub view: bytes::Bytes,
    /// Rows up to this index are not expected in the table.
    #[prost(uint64, tag = "6")]
    pub floor: u64,
    /// Newer rows are in the log alone; only for who said that a part is enough. May be set beside `found: false`.
    #[prost(bool, tag = "7")]
    pub partial: bool,
}

/// Asks a node for its queries.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct QueriesRequest {
    /// Only this tenant's; all when it is empty.
    #[prost(string, tag = "1")]
    pub tenant: String,
}

/// The queries that run on a node.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct QueriesResponse {
    #[prost(message, repeated, tag = "1")]
    pub queries: Vec<QueryState>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct QueryState {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub tenant: String,
    #[prost(string, tag = "3")]
    pub dataset: String,
    /// Its text, or the beginning of it.
    #[prost(string, tag = "4")]
    pub query: String,
    #[prost(fixed64, tag = "5")]
    pub started_unix_nano: u64,
    #[prost(uint64, tag = "6")]
    pub elapsed_nano: u64,
    #[prost(uint64, tag = "7")]
    pub rows: u64,
    #[prost(uint64, tag = "8")]
    pub scanned_bytes: u64,
    #[prost(uint64, tag = "9")]
    pub memory_bytes: u64,
    #[prost(string, tag = "10")]
    pub state: String,
}

/// Asks a node to stop a query.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KillRequest {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Only if it is this tenant's; anybody's when it is empty.
    #[prost(string, tag = "2")]
    pub tenant: String,
}

/// Asks a node to stop the queries that answer tickets.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CancelRequest {
    /// The ids in the tickets; an empty one names nothing.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub tickets: Vec<bytes::Bytes>,
    /// Only those of this tenant.
    #[prost(string, tag = "2")]
    pub tenant: String,
}

/// Whether there was such a query.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct KillResponse {
    #[prost(bool, tag = "1")]
    pub found: bool,
}

/// Flight ticket of the peer port: the rows of a view.
#[derive(Clone, PartialEq, Message)]
pub struct RowsTicket {
    #[prost(bytes = "bytes", tag = "1")]
    pub view: bytes::Bytes,
    /// Only rows of entries above this index.
    #[prost(uint64, tag = "2")]
    pub above: u64,
    /// Columns of the table, by position.
    #[prost(uint32, repeated, tag = "3")]
    pub columns: Vec<u32>,
}

/// Asks a leader to flush.
#[derive(Clone, PartialEq, Message)]
pub struct FlushRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
}

/// Asks the leader of a group to maintain tables that the group owns.
#[derive(Clone, PartialEq, Message)]
pub struct MaintainRequest {
    #[prost(uint32, tag = "1")]
    pub group: u32,
    #[prost(string, tag = "2")]
    pub tenant: String,
    /// Empty: all of the tenant.
    #[prost(string, tag = "3")]
    pub dataset: String,
    /// Code of the table; 0: all.
    #[prost(uint32, tag = "4")]
    pub table: u32,
    /// 1: compact, 2: expire snapshots, 3: retain as the policy says, 4: promote or demote an attribute.
    #[prost(uint32, tag = "5")]
    pub task: u32,
    /// Only says what would be done.
    #[prost(bool, tag = "6")]
    pub dry_run: bool,
    /// The attribute of task 4.
    #[prost(string, tag = "7")]
    pub key: String,
    /// Whose: 1: resources, 2: scopes, 3: records.
    #[prost(uint32, tag = "8")]
    pub level: u32,
    /// The type of its column, 1: text, 2: integer, 3: boolean, 4: double; 0: it is demoted.
    #[prost(uint32, tag = "9")]
    pub kind: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The wire format of some messages; a change here breaks rolling upgrades.
    #[test]
    fn golden_messages_of_format_1() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let append = AppendRequest {
            group: 3,
            vote: Vote { term: 7, node: 1, committed: true },
            prev_log_id: Some(LogId { term: 6, index: 8 }),
            leader_commit: None,
            first_index: 9,
            entries: vec![bytes::Bytes::from_static(b"e")],
        };
        assert_eq!(hex(append.encode_to_vec()), "080312060807100118011a0408061008280932 0165".replace(' ', ""));
        let propose = ProposeResponse { outcome: 1, index: 5, first_copy: Some(4), ..ProposeResponse::default() };
        assert_eq!(hex(propose.encode_to_vec()), "080110051804");
        let request =
            ProposeRequest { group: 3, command: bytes::Bytes::from_static(b"c"), timeout_ms: 1000, synced: true };
        let batch = ProposeBatch { commands: vec![NumberedRequest { number: 300, request }] };
        assert_eq!(hex(batch.encode_to_vec()), "0a0f08ac02120a0803120163 18e8072001".replace(' ', ""));
        let answers = ProposeAnswers { answers: vec![NumberedResponse { number: 300, response: propose }] };
        assert_eq!(hex(answers.encode_to_vec()), "0a0b08ac021206080110051804");
        let epoch = Some(StartEpoch { number: 3, token: 0x9f3a_6c1e });
        let known = KnownResponse { disk_id: Some("d".to_owned()), epoch, poisoned: None };
        assert_eq!(hex(known.encode_to_vec()), "0a0164 1207 0803 151e6c3a9f".replace(' ', ""));
        let poisoned = PoisonedRequest { node: 2, epoch };
        assert_eq!(hex(poisoned.encode_to_vec()), "0802 1207 0803 151e6c3a9f".replace(' ', ""));
        let (tenant, dataset) = ("t".to_owned(), "d".to_owned());
        let view = ViewRequest {
            group: 3,
            tenant: tenant.clone(),
            dataset: dataset.clone(),
            table: 1,
            strong: true,
            ..ViewRequest::default()
        };
        let before = "0803 120174 1a0164 2001 2801".replace(' ', "");
        assert_eq!(hex(view.encode_to_vec()), before, "as nodes of before there were partial views say it");
        let view = ViewRequest { strong: false, may_be_partial: true, ..view };
        assert_eq!(hex(view.encode_to_vec()), "0803 120174 1a0164 2001 4001".replace(' ', ""));
        let answer = ViewResponse { found: true, watermark: 5, partial: true, ..ViewResponse::default() };
        assert_eq!(hex(answer.encode_to_vec()), "0801 1005 3801".replace(' ', ""));
        let maintain =
            MaintainRequest { group: 3, tenant, dataset, table: 1, task: 2, dry_run: true, ..Default::default() };
        assert_eq!(hex(maintain.encode_to_vec()), "0803 120174 1a0164 2001 2802 3001".replace(' ', ""));
        let cancel = CancelRequest { tickets: vec![bytes::Bytes::from_static(b"i")], tenant: "t".to_owned() };
        assert_eq!(hex(cancel.encode_to_vec()), "0a0169 120174".replace(' ', ""));
        let promote = MaintainRequest { task: 4, key: "k".to_owned(), level: 3, kind: 1, ..Default::default() };
        assert_eq!(hex(promote.encode_to_vec()), "2804 3a016b 4003 4801".replace(' ', ""));
    }
}
