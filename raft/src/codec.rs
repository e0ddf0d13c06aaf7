//! How openraft's own values are written to the log engine and to snapshots.
//!
//! An entry is its term (u64), a kind byte and the payload: nothing, an encoded command, or a membership as JSON. The
//! index is the log engine's. Integers are little-endian.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::alias::{EntryPayloadOf, LeaderIdOf};
use serde::{Deserialize, Serialize};

use crate::types::{EncodedCommand, Entry, LogId, Peer, SnapshotMeta, StoredMembership, TypeConfig, Vote};

type Membership = openraft::Membership<u64, Peer>;

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

pub(crate) fn encode_entry(entry: &Entry) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.extend_from_slice(&entry.log_id.leader_id.term.to_le_bytes());
    match &entry.payload {
        EntryPayload::Blank => out.extend_from_slice(&[BLANK]),
        EntryPayload::Normal(command) => {
            out.reserve(command.0.len() + 1);
            out.extend_from_slice(&[COMMAND]);
            out.extend_from_slice(&command.0);
        }
        EntryPayload::Membership(membership) => {
            out.extend_from_slice(&[MEMBERSHIP]);
            out.extend_from_slice(&encode_membership(membership));
        }
    }
    out.freeze()
}

pub(crate) fn decode_entry(index: u64, bytes: &Bytes) -> io::Result<Entry> {
    let head = bytes.get(..9).ok_or_else(|| damaged("entry is cut short"))?;
    let term = le_u64(head);
    let body = bytes.slice(9..);
    let payload: EntryPayloadOf<TypeConfig> = match head[8] {
        BLANK => EntryPayload::Blank,
        COMMAND => EntryPayload::Normal(EncodedCommand(body)),
        MEMBERSHIP => EntryPayload::Membership(decode_membership(&body)?),
        _ => return Err(damaged("unknown entry kind")),
    };
    Ok(Entry { log_id: LogId::new_term_index(term, index), payload })
}

/// Term of an encoded entry, without decoding the rest.
pub(crate) fn entry_term(bytes: &[u8]) -> io::Result<u64> {
    bytes.get(..8).map(le_u64).ok_or_else(|| damaged("entry is cut short"))
}

pub(crate) fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::new();
    out.extend_from_slice(&vote.leader_id.term.to_le_bytes());
    out.extend_from_slice(&vote.leader_id.voted_for.to_le_bytes());
    out.extend_from_slice(&[u8::from(vote.committed)]);
    out.freeze()
}

pub(crate) fn decode_vote(bytes: &[u8]) -> io::Result<Vote> {
    if bytes.len() != 17 {
        return Err(damaged("vote has a wrong length"));
    }
    let leader_id = LeaderIdOf::<TypeConfig> { term: le_u64(&bytes[..8]), voted_for: le_u64(&bytes[8..16]) };
    Ok(Vote { leader_id, committed: bytes[16] == 1 })
}

pub(crate) fn encode_log_id(id: LogId) -> Bytes {
    let mut out = BytesMut::new();
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
    out.freeze()
}

pub(crate) fn decode_log_id(bytes: &[u8]) -> io::Result<LogId> {
    if bytes.len() != 16 {
        return Err(damaged("log id has a wrong length"));
    }
    Ok(LogId::new_term_index(le_u64(&bytes[..8]), le_u64(&bytes[8..])))
}

#[derive(Serialize, Deserialize)]
struct MembershipJson {
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, Peer>,
}

fn encode_membership(membership: &Membership) -> Vec<u8> {
    let nodes = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
    let json = MembershipJson { configs: membership.get_joint_config().clone(), nodes };
    serde_json::to_vec(&json).expect("a membership is plain JSON")
}

fn decode_membership(bytes: &[u8]) -> io::Result<Membership> {
    let json: MembershipJson = serde_json::from_slice(bytes).map_err(|error| damaged(&error.to_string()))?;
    if json.configs.is_empty() && json.nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(json.configs, json.nodes).map_err(|error| damaged(&error.to_string()))
}

#[derive(Serialize, Deserialize)]
struct SnapshotHead {
    last: Option<(u64, u64)>,
    membership_at: Option<(u64, u64)>,
    membership: MembershipJson,
}

/// A snapshot on disk: the length of a JSON head (u32), the head, and the group's state.
pub(crate) fn encode_snapshot(meta: &SnapshotMeta, state: &[u8]) -> Bytes {
    let pair = |id: Option<LogId>| id.map(|id| (id.leader_id.term, id.index));
    let membership = meta.last_membership.membership();
    let head = SnapshotHead {
        last: pair(meta.last_log_id),
        membership_at: pair(*meta.last_membership.log_id()),
        membership: MembershipJson {
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        },
    };
    let head = serde_json::to_vec(&head).expect("a snapshot head is plain JSON");
    let mut out = BytesMut::new();
    out.extend_from_slice(&(head.len() as u32).to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(state);
    out.freeze()
}

pub(crate) fn decode_snapshot(bytes: &Bytes) -> io::Result<(SnapshotMeta, Bytes)> {
    let len = bytes.get(..4).ok_or_else(|| damaged("snapshot is cut short"))?;
    let len = len.iter().rev().fold(0usize, |sum, b| sum << 8 | usize::from(*b));
    let head = bytes.get(4..4 + len).ok_or_else(|| damaged("snapshot is cut short"))?;
    let head: SnapshotHead = serde_json::from_slice(head).map_err(|error| damaged(&error.to_string()))?;
    let id = |pair: Option<(u64, u64)>| pair.map(|(term, index)| LogId::new_term_index(term, index));
    let membership = if head.membership.configs.is_empty() {
        Membership::default()
    } else {
        Membership::new(head.membership.configs, head.membership.nodes).map_err(|error| damaged(&error.to_string()))?
    };
    let meta = SnapshotMeta {
        last_log_id: id(head.last),
        last_membership: StoredMembership::new(id(head.membership_at), membership),
    };
    Ok((meta, bytes.slice(4 + len..)))
}

fn le_u64(bytes: &[u8]) -> u64 {
    bytes[..8].iter().rev().fold(0, |sum, b| sum << 8 | u64::from(*b))
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership() -> Membership {
        let peer = Peer { address: "127.0.0.1:50051".into(), disk_id: "d".into() };
        Membership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, peer)])).expect("valid")
    }

    #[test]
    fn entries_votes_and_ids_survive() {
        let payloads = [
            EntryPayload::Blank,
            EntryPayload::Normal(EncodedCommand(Bytes::from_static(b"command"))),
            EntryPayload::Membership(membership()),
        ];
        for payload in payloads {
            let entry = Entry { log_id: LogId::new_term_index(3, 9), payload };
            let bytes = encode_entry(&entry);
            let decoded = decode_entry(9, &bytes).expect("decodes");
            assert_eq!((decoded.log_id, &decoded.payload), (entry.log_id, &entry.payload));
            assert_eq!(entry_term(&bytes).expect("has a term"), 3);
        }
        let vote = Vote { leader_id: LeaderIdOf::<TypeConfig> { term: 4, voted_for: 1 }, committed: true };
        assert_eq!(decode_vote(&encode_vote(&vote)).expect("decodes"), vote);
        let id = LogId::new_term_index(5, 6);
        assert_eq!(decode_log_id(&encode_log_id(id)).expect("decodes"), id);
        assert!(decode_vote(b"short").is_err());
    }

    #[test]
    fn snapshots_survive() {
        let id = LogId::new_term_index(2, 8);
        let meta = SnapshotMeta {
            last_log_id: Some(id),
            last_membership: StoredMembership::new(Some(LogId::new_term_index(0, 0)), membership()),
        };
        let (decoded, state) = decode_snapshot(&encode_snapshot(&meta, b"state")).expect("decodes");
        assert_eq!(decoded, meta);
        assert_eq!(&state[..], b"state");
    }
}
