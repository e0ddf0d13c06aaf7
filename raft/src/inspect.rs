//! What the bytes mean that the log engine keeps for the groups: for tools that look at a log while no node runs on it.

use std::io;

use bytes::Bytes;
use openraft::EntryPayload;

use crate::codec;
use crate::command::Command;

/// An entry of a group's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogEntry {
    /// A new leader's first.
    Blank,
    Membership,
    Command(Command),
}

/// A group's vote record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteRecord {
    pub term: u64,
    pub voted_for: u64,
    /// That node won.
    pub established: bool,
}

/// Decodes the entry that the log holds at `index`.
///
/// # Errors
/// Of another version, or damaged.
pub fn decode_entry(index: u64, bytes: &Bytes) -> io::Result<LogEntry> {
    Ok(match codec::decode_entry(index, bytes)?.payload {
        EntryPayload::Blank => LogEntry::Blank,
        EntryPayload::Membership(_) => LogEntry::Membership,
        EntryPayload::Normal(command) => LogEntry::Command(Command::decode(&command.0).map_err(io::Error::other)?),
    })
}

/// Decodes a vote.
///
/// # Errors
/// Of another version, or damaged.
pub fn decode_vote(bytes: &[u8]) -> io::Result<VoteRecord> {
    let vote = codec::decode_vote(bytes)?;
    Ok(VoteRecord { term: vote.leader_id.term, voted_for: vote.leader_id.voted_for, established: vote.committed })
}

/// Decodes the index of a committed or purged position.
///
/// # Errors
/// Of another version, or damaged.
pub fn decode_index(bytes: &[u8]) -> io::Result<u64> {
    Ok(codec::decode_log_id(bytes)?.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EncodedCommand, Entry, LogId};

    #[test]
    fn entries_are_told_apart() {
        let entry = |payload| codec::encode_entry(&Entry { log_id: LogId::new_term_index(1, 2), payload });
        let command = Command::Meta("{}".to_owned());
        let encoded = EncodedCommand(command.encode());
        let decoded = decode_entry(2, &entry(EntryPayload::Normal(encoded))).expect("decodes");
        assert_eq!(decoded, LogEntry::Command(command));
        assert_eq!(decode_entry(2, &entry(EntryPayload::Blank)).expect("decodes"), LogEntry::Blank);
        let unknown = EncodedCommand(Bytes::from_static(&[99, 1]));
        let error = decode_entry(2, &entry(EntryPayload::Normal(unknown))).expect_err("refuses");
        assert!(error.to_string().contains("format 99"), "{error}");
        assert_eq!(decode_index(&codec::encode_log_id(LogId::new_term_index(3, 4))).expect("decodes"), 4);
    }
}
