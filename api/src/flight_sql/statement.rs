//! What tickets and handles of prepared statements hold: the statement itself, so that any node can run it.
//!
//! | bytes | |
//! |---|---|
//! | 1 | version, 1 |
//! | n | [`Statement`] as protobuf |
//! | 8 | XXH3-64 of everything before, little endian: tells a ticket from what only looks like one |
//!
//! A ticket is input like any other. It is not signed, for it grants nothing: whoever brings it says who he is, and gets
//! what he could have asked for himself. Format 0, a [`Bare`] without version and checksum, is still read.

use arrow_flight::FlightData;
use bytes::Bytes;
use prost::Message;
use signaldb_catalog::Identity;
use signaldb_model::{DatasetId, TenantId};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{ApiError, Kind};

const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 8;
/// Tag of the only field of [`Bare`].
const BARE: u8 = 0x0a;

/// A statement, who asked, and how.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Statement {
    #[prost(string, tag = "1")]
    pub(super) sql: String,
    /// Who it was made for; empty in format 0.
    #[prost(string, tag = "2")]
    pub(super) tenant: String,
    #[prost(string, tag = "3")]
    pub(super) dataset: String,
    /// Headers of the call that made it, empty where there was none. Those of the call that brings it go before.
    #[prost(string, tag = "4")]
    pub(super) consistency: String,
    #[prost(string, tag = "5")]
    pub(super) min_position: String,
    #[prost(bool, tag = "6")]
    pub(super) flat: bool,
    #[prost(message, optional, tag = "7")]
    pub(super) bound: Option<Bound>,
    /// Of a ticket: what a cancellation names.
    #[prost(bytes = "bytes", tag = "8")]
    pub(super) id: Bytes,
}

/// Parameters as the client sent them: a schema and batches, one row for each time that the statement runs.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Bound {
    #[prost(message, repeated, tag = "1")]
    pub(super) messages: Vec<FlightData>,
}

/// Format 0.
#[derive(Clone, PartialEq, Message)]
struct Bare {
    #[prost(string, tag = "1")]
    sql: String,
}

impl Statement {
    pub(super) fn to_bytes(&self) -> Bytes {
        sealed(&self.encode_to_vec())
    }

    /// # Errors
    /// 400 for anything that was not made here.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, ApiError> {
        let foreign = || ApiError::invalid("this ticket or statement handle is not one of ours");
        match bytes.first() {
            Some(&VERSION) => {
                let end = bytes.len().checked_sub(CHECKSUM_BYTES).filter(|end| *end > 0).ok_or_else(foreign)?;
                let (content, checksum) = bytes.split_at(end);
                if xxh3_64(content).to_le_bytes() != checksum {
                    return Err(foreign());
                }
                Self::decode(&content[1..]).map_err(|_| foreign())
            }
            Some(&BARE) => {
                let bare = Bare::decode(bytes).map_err(|_| foreign())?;
                Ok(Self { sql: bare.sql, ..Self::default() })
            }
            _ => Err(foreign()),
        }
    }

    /// Whose tables it is about when `caller` brings it, who may have `may_use`.
    ///
    /// # Errors
    /// 403 when it was made for somebody else.
    pub(super) fn identity(
        &self,
        caller: Identity,
        may_use: impl FnOnce(&DatasetId) -> bool,
    ) -> Result<Identity, ApiError> {
        if self.tenant.is_empty() {
            return Ok(caller);
        }
        let forbidden = || ApiError::new(Kind::Forbidden, "this ticket or statement handle was made for somebody else");
        if TenantId::new(&self.tenant).ok().as_ref() != Some(&caller.tenant) {
            return Err(forbidden());
        }
        let dataset = DatasetId::new(&self.dataset).map_err(|_| forbidden())?;
        if dataset != caller.dataset && !may_use(&dataset) {
            return Err(forbidden());
        }
        Ok(Identity { dataset, ..caller })
    }
}

/// A message as a ticket or handle has it.
pub(super) fn sealed(message: &[u8]) -> Bytes {
    let mut out = vec![VERSION];
    out.extend_from_slice(message);
    let checksum = xxh3_64(&out);
    out.extend(checksum.to_le_bytes());
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> Statement {
        Statement {
            sql: "SELECT 1".to_owned(),
            tenant: "acme".to_owned(),
            dataset: "staging".to_owned(),
            consistency: "eventual".to_owned(),
            min_position: "1:2".to_owned(),
            flat: true,
            bound: Some(Bound { messages: vec![FlightData { data_body: vec![1, 2].into(), ..FlightData::default() }] }),
            id: vec![3; 2].into(),
        }
    }

    fn caller(tenant: &str, dataset: &str) -> Identity {
        Identity {
            tenant: TenantId::new(tenant).expect("a valid name"),
            dataset: DatasetId::new(dataset).expect("a valid name"),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for statement in [statement(), Statement::default()] {
            assert_eq!(Statement::from_bytes(&statement.to_bytes()).expect("reads"), statement);
        }
    }

    /// The bytes that nodes of this version give away: clients bring them to nodes of the next.
    #[test]
    fn formats_stay_readable() {
        let message = b"\x0a\x08SELECT 1\x12\x04acme\x1a\x07staging\x22\x08eventual\x2a\x031:2\x30\x01\
            \x3a\x07\x0a\x05\xc2\x3e\x02\x01\x02\x42\x02\x03\x03";
        let mut version_1 = vec![1];
        version_1.extend(message);
        let checksum = xxh3_64(&version_1);
        version_1.extend(checksum.to_le_bytes());
        assert_eq!(&statement().to_bytes()[..], version_1);
        assert_eq!(Statement::from_bytes(&version_1).expect("reads"), statement());
        let bare = Statement::from_bytes(b"\x0a\x08SELECT 1").expect("reads");
        assert_eq!(bare, Statement { sql: "SELECT 1".to_owned(), ..Statement::default() });
    }

    /// Scenario: random bytes, random bytes behind each version, and a good handle with one byte changed or cut off.
    /// Guarantees: a 400 or, for what reads as format 0, a statement of the caller's own; no panic.
    #[test]
    fn nothing_that_was_not_made_here_is_taken_for_a_ticket() {
        let good = statement().to_bytes();
        for at in 0..good.len() {
            let mut changed = good.to_vec();
            changed[at] ^= 0x11;
            let read = Statement::from_bytes(&changed);
            assert!(read.is_err_and(|error| error.kind == Kind::Invalid), "byte {at}");
            assert!(Statement::from_bytes(&good[..at]).is_err(), "cut at {at}");
        }
        // SplitMix64: the same bytes in every run.
        let mut state = 42_u64;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        for round in 0..20_000_u64 {
            let length = usize::try_from(next() % 80).expect("small");
            let mut bytes: Vec<u8> = (0..length).map(|_| next().to_le_bytes()[0]).collect();
            if let Some(first) = bytes.first_mut() {
                match round % 3 {
                    0 => *first = VERSION,
                    1 => *first = BARE,
                    _ => {}
                }
            }
            match Statement::from_bytes(&bytes) {
                Ok(statement) => assert!(bytes[0] == BARE && statement.tenant.is_empty() && statement.bound.is_none()),
                Err(error) => assert_eq!(error.kind, Kind::Invalid),
            }
        }
    }

    #[test]
    fn a_ticket_works_for_its_tenant_alone() {
        let statement = statement();
        let found = statement.identity(caller("acme", "production"), |dataset| dataset.as_str() == "staging");
        assert_eq!(found.expect("allowed"), caller("acme", "staging"));
        for (caller, may_use) in [(caller("other", "staging"), true), (caller("acme", "production"), false)] {
            let refused = statement.identity(caller, |_| may_use).expect_err("refused");
            assert_eq!(refused.kind, Kind::Forbidden);
        }
        let anybody = Statement::default().identity(caller("other", "main"), |_| false).expect("his own");
        assert_eq!(anybody, caller("other", "main"));
    }
}
