//! What the log says: the commands and their persisted encoding, formats 1 to 3.
//!
//! Formats 2 and 3 have two more kinds each, and only those are written in them: a build that does not know them refuses
//! them by name, and reads everything else. An encoded command is a version byte, a kind byte and the fields in order; integers are little-endian, names have
//! a length byte, texts a u32 length. The payload of an append is the rest of the command.

use bytes::{Bytes, BytesMut};
use signaldb_model::{DatasetId, TableCode, TableId, TenantId, UnixNanos};
use thiserror::Error;

use crate::state::Digest;

const FORMAT: u8 = 1;
/// Format of the commands about incarnations.
const FORMAT_INCARNATIONS: u8 = 2;
/// Format of the commands about quarantine.
const FORMAT_QUARANTINE: u8 = 3;

/// A command of a data group or of the meta group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Append(Append),
    /// The cut of a flush; its own index is `hi`. `at` is the group's time, as in [`Append::at`].
    FlushCut {
        at: UnixNanos,
    },
    /// The rows of `table` up to and including `hi` are in Iceberg.
    FlushCommitted {
        table: TableId,
        hi: u64,
        version: i64,
        location: String,
    },
    /// Another commit moved `table`: a schema change, compaction, expiry, or its creation.
    TableAdvanced {
        table: TableId,
        version: i64,
        location: String,
    },
    /// A change of what the whole cluster agrees on, as JSON (meta group only).
    Meta(String),
    /// The group goes on although its log may have lost entries: from here on its indexes are others than those that
    /// tables know from before.
    BeginIncarnation {
        id: u64,
    },
    /// Every table that the group flushed to carries the mark of incarnation `id`.
    IncarnationSettled {
        id: u64,
    },
    /// The catalog does not have the table that the log knows, or not as we made it: the rows after entry `from`, up to and
    /// including `hi`, were put aside as files, and those that follow will be. Void unless `from` is the watermark.
    TableQuarantined {
        table: TableId,
        from: u64,
        hi: u64,
        reason: String,
    },
    /// An operator has seen to a quarantined table: rows after the watermark go into the table that the catalog has then.
    TableReleased {
        table: TableId,
    },
}

/// Rows of one request for one tenant and dataset, as the client sent them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// What the payload is; opaque here.
    pub kind: u8,
    pub tenant: TenantId,
    pub dataset: DatasetId,
    /// The group's time, written by the leader over whatever a proposer put here; time enters the state machine only
    /// this way.
    pub at: UnixNanos,
    /// Digest and length of the dedup window in seconds; `None` opts out. The proposer decides: a setting that apply
    /// read from its own configuration would give other states on other replicas.
    pub dedup: Option<(Digest, u32)>,
    /// The tables that the payload has rows for.
    pub tables: Vec<TableStats>,
    pub compression: Compression,
    /// Length of the payload before compression, in bytes.
    pub raw_len: u32,
    pub payload: Bytes,
}

/// What an append adds to one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableStats {
    pub table: TableCode,
    pub rows: u32,
    /// Range of the rows' times, nanoseconds.
    pub time_min: UnixNanos,
    pub time_max: UnixNanos,
}

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    None = 0,
    /// LZ4 block format.
    Lz4 = 1,
}

/// Bytes that are not a command or a snapshot of this version.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("{what} format {found} is not supported (this build reads format {supported})")]
    Format { what: &'static str, found: u8, supported: u8 },
    #[error("undecodable command: {0}")]
    Malformed(&'static str),
}

impl Append {
    pub fn table_ids(&self) -> impl Iterator<Item = TableId> + '_ {
        self.tables.iter().map(|stats| TableId {
            tenant: self.tenant.clone(),
            dataset: self.dataset.clone(),
            code: stats.table,
        })
    }
}

impl Command {
    pub fn encode(&self) -> Bytes {
        let mut out = Encoder::default();
        match self {
            Self::Append(append) => append.encode(&mut out),
            Self::FlushCut { at } => out.head(2).u64(at.0),
            Self::FlushCommitted { table, hi, version, location } => {
                out.head(3).table(table).u64(*hi).u64(*version as u64).text(location)
            }
            Self::TableAdvanced { table, version, location } => {
                out.head(4).table(table).u64(*version as u64).text(location)
            }
            Self::Meta(json) => out.head(5).text(json),
            Self::BeginIncarnation { id } => out.u8(FORMAT_INCARNATIONS).u8(6).u64(*id),
            Self::IncarnationSettled { id } => out.u8(FORMAT_INCARNATIONS).u8(7).u64(*id),
            Self::TableQuarantined { table, from, hi, reason } => {
                out.u8(FORMAT_QUARANTINE).u8(8).table(table).u64(*from).u64(*hi).text(reason)
            }
            Self::TableReleased { table } => out.u8(FORMAT_QUARANTINE).u8(9).table(table),
        };
        out.0.freeze()
    }

    /// Whether an encoded command adds rows.
    pub(crate) fn is_append(encoded: &[u8]) -> bool {
        encoded.get(1) == Some(&1)
    }

    /// Writes the group's time into an encoded command that carries one.
    pub(crate) fn stamp(encoded: Bytes, at: UnixNanos) -> Bytes {
        let name_len = |at: usize| encoded.get(at).map_or(0, |len| usize::from(*len) + 1);
        let offset = match encoded.get(1) {
            // Behind format, kind, the payload's kind, tenant and dataset.
            Some(1) => 3 + name_len(3) + name_len(3 + name_len(3)),
            Some(2) => 2,
            _ => return encoded,
        };
        let mut bytes = encoded.try_into_mut().unwrap_or_else(|shared| BytesMut::from(shared.as_ref()));
        if let Some(field) = bytes.get_mut(offset..offset + 8) {
            field.copy_from_slice(&at.0.to_le_bytes());
        }
        bytes.freeze()
    }

    /// Decodes; the payload of an append is a slice of `bytes`, not a copy.
    ///
    /// # Errors
    /// [`DecodeError`] for a newer format, an unknown kind, or bytes cut short.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let mut from = Decoder(bytes);
        let found = from.u8()?;
        if !(FORMAT..=FORMAT_QUARANTINE).contains(&found) {
            return Err(DecodeError::Format { what: "command", found, supported: FORMAT_QUARANTINE });
        }
        let kind = from.u8()?;
        Ok(match kind {
            1 => Self::Append(Append::decode(&mut from, bytes)?),
            2 => Self::FlushCut { at: UnixNanos(from.u64()?) },
            3 => Self::FlushCommitted {
                table: from.table()?,
                hi: from.u64()?,
                version: from.u64()? as i64,
                location: from.text()?,
            },
            4 => Self::TableAdvanced { table: from.table()?, version: from.u64()? as i64, location: from.text()? },
            5 => Self::Meta(from.text()?),
            6 => Self::BeginIncarnation { id: from.u64()? },
            7 => Self::IncarnationSettled { id: from.u64()? },
            8 => Self::TableQuarantined {
                table: from.table()?,
                from: from.u64()?,
                hi: from.u64()?,
                reason: from.text()?,
            },
            9 => Self::TableReleased { table: from.table()? },
            _ => return Err(DecodeError::Malformed("unknown kind")),
        })
    }
}

impl Append {
    fn encode<'a>(&self, out: &'a mut Encoder) -> &'a mut Encoder {
        out.head(1).u8(self.kind).name(self.tenant.as_str()).name(self.dataset.as_str()).u64(self.at.0);
        match self.dedup {
            Some((digest, window)) => out.u8(1).bytes(&digest.0).u32(window),
            None => out.u8(0),
        };
        out.u8(self.tables.len() as u8);
        for stats in &self.tables {
            out.u8(stats.table.0).u32(stats.rows).u64(stats.time_min.0).u64(stats.time_max.0);
        }
        out.u8(self.compression as u8).u32(self.raw_len).bytes(&self.payload)
    }

    fn decode(from: &mut Decoder<'_>, whole: &Bytes) -> Result<Self, DecodeError> {
        let kind = from.u8()?;
        let tenant = from.tenant()?;
        let dataset = from.dataset()?;
        let at = UnixNanos(from.u64()?);
        let dedup = match from.u8()? {
            0 => None,
            _ => Some((Digest(from.take(16)?.try_into().map_err(|_| DecodeError::Malformed("digest"))?), from.u32()?)),
        };
        let tables = (0..from.u8()?)
            .map(|_| {
                Ok(TableStats {
                    table: TableCode(from.u8()?),
                    rows: from.u32()?,
                    time_min: UnixNanos(from.u64()?),
                    time_max: UnixNanos(from.u64()?),
                })
            })
            .collect::<Result<Vec<_>, DecodeError>>()?;
        let compression = match from.u8()? {
            0 => Compression::None,
            1 => Compression::Lz4,
            _ => return Err(DecodeError::Malformed("unknown compression")),
        };
        let raw_len = from.u32()?;
        let payload = whole.slice_ref(from.0);
        Ok(Self { kind, tenant, dataset, at, dedup, tables, compression, raw_len, payload })
    }
}

/// Writes the fields of commands and snapshots.
#[derive(Debug, Default)]
pub(crate) struct Encoder(pub(crate) BytesMut);

impl Encoder {
    fn head(&mut self, kind: u8) -> &mut Self {
        self.u8(FORMAT).u8(kind)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    fn name(&mut self, name: &str) -> &mut Self {
        self.u8(name.len() as u8).bytes(name.as_bytes())
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.u32(text.len() as u32).bytes(text.as_bytes())
    }

    pub(crate) fn table(&mut self, table: &TableId) -> &mut Self {
        self.name(table.tenant.as_str()).name(table.dataset.as_str()).u8(table.code.0)
    }
}

/// Reads what [`Encoder`] wrote.
#[derive(Debug)]
pub(crate) struct Decoder<'a>(pub(crate) &'a [u8]);

impl<'a> Decoder<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(DecodeError::Malformed("cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| DecodeError::Malformed("u32"))?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| DecodeError::Malformed("u64"))?))
    }

    fn name(&mut self) -> Result<&'a str, DecodeError> {
        let len = self.u8()?;
        std::str::from_utf8(self.take(len.into())?).map_err(|_| DecodeError::Malformed("name is not UTF-8"))
    }

    fn tenant(&mut self) -> Result<TenantId, DecodeError> {
        TenantId::new(self.name()?).map_err(|_| DecodeError::Malformed("tenant name"))
    }

    fn dataset(&mut self) -> Result<DatasetId, DecodeError> {
        DatasetId::new(self.name()?).map_err(|_| DecodeError::Malformed("dataset name"))
    }

    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        let len = self.u32()?;
        String::from_utf8(self.take(len as usize)?.to_vec()).map_err(|_| DecodeError::Malformed("text is not UTF-8"))
    }

    pub(crate) fn table(&mut self) -> Result<TableId, DecodeError> {
        Ok(TableId { tenant: self.tenant()?, dataset: self.dataset()?, code: TableCode(self.u8()?) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append() -> Command {
        Command::Append(Append {
            kind: 1,
            tenant: TenantId::new("acme").expect("name"),
            dataset: DatasetId::new("production").expect("name"),
            at: UnixNanos(7),
            dedup: Some((Digest([9; 16]), 600)),
            tables: vec![TableStats { table: TableCode(1), rows: 3, time_min: UnixNanos(1), time_max: UnixNanos(2) }],
            compression: Compression::Lz4,
            raw_len: 100,
            payload: Bytes::from_static(b"payload"),
        })
    }

    #[test]
    fn commands_survive_encoding_and_cuts_are_errors() {
        let Command::Append(inner) = append() else { unreachable!() };
        let table = inner.table_ids().next().expect("one table");
        let all = [
            append(),
            Command::FlushCut { at: UnixNanos(5) },
            Command::FlushCommitted { table: table.clone(), hi: 4, version: 2, location: "file:///x".into() },
            Command::TableAdvanced { table: table.clone(), version: -1, location: String::new() },
            Command::Meta("{}".into()),
            Command::BeginIncarnation { id: 77 },
            Command::IncarnationSettled { id: 77 },
            Command::TableQuarantined { table: table.clone(), from: 3, hi: 9, reason: "gone".into() },
            Command::TableReleased { table },
        ];
        for command in all {
            let bytes = command.encode();
            assert_eq!(Command::decode(&bytes), Ok(command.clone()));
            let shortest = if matches!(command, Command::Append(_)) { bytes.len() - 7 } else { bytes.len() };
            for len in 0..shortest {
                assert!(Command::decode(&bytes.slice(..len)).is_err(), "{command:?} cut at {len}");
            }
        }
    }

    #[test]
    fn golden_append_of_format_1() {
        let hex: String = append().encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "0101010461636d650a70726f64756374696f6e0700000000000000010909090909090909090909090909090958020000010103000000\
             01000000000000000200000000000000\
             01640000007061796c6f6164"
        );
    }

    #[test]
    fn golden_incarnation_of_format_2() {
        assert_eq!(Command::BeginIncarnation { id: 258 }.encode().as_ref(), [2, 6, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Command::IncarnationSettled { id: 258 }.encode().as_ref(), [2, 7, 2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn golden_quarantine_of_format_3() {
        let Command::Append(inner) = append() else { unreachable!() };
        let table = inner.table_ids().next().expect("one table");
        let name = b"\x04acme\x0aproduction\x01";
        let command = Command::TableQuarantined { table: table.clone(), from: 3, hi: 258, reason: "gone".into() };
        let numbers: [u8; 20] = [3, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        assert_eq!(command.encode(), [&[3, 8][..], name, &numbers, b"gone"].concat());
        assert_eq!(Command::TableReleased { table }.encode(), [&[3, 9][..], name].concat());
    }

    #[test]
    fn a_command_of_version_99_is_refused_by_name() {
        let mut bytes = append().encode().to_vec();
        bytes[0] = 99;
        let error = Command::decode(&Bytes::from(bytes)).expect_err("refuses");
        assert_eq!(error.to_string(), "command format 99 is not supported (this build reads format 3)");
    }
}
