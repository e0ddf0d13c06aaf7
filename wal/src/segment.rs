//! The segment that is being written.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::found::Quarantined;
use crate::io::{LogFile, LogIo};
use crate::record::{self, FORMAT, GroupMeta, HEADER_BYTES, Header, Kind, SegmentStart, Settled};
use crate::recovery::{TRAILER_BYTES, encode_trailer, segment_path};
use crate::votes::SavedVote;

/// The segment being written.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) number: u64,
    pub(crate) file: Arc<dyn LogFile>,
    pub(crate) len: u64,
    records: Vec<(u64, Header)>,
}

/// What a new segment says before its first record.
#[derive(Debug)]
pub(crate) struct Preamble<'a> {
    pub(crate) disk_id: &'a str,
    /// Number and valid length of the segment before.
    pub(crate) previous: Option<(u64, u64)>,
    pub(crate) metas: &'a BTreeMap<u32, GroupMeta>,
    /// Their batches become those of this segment.
    pub(crate) votes: &'a mut BTreeMap<u32, SavedVote>,
    /// Where the logs of groups that a quarantine cut go on.
    pub(crate) cuts: &'a BTreeMap<u32, u64>,
    pub(crate) settled: Vec<Settled>,
    pub(crate) accepted: BTreeMap<u32, Quarantined>,
}

/// Creates segment `number` with its preamble. It gets its name once that is durable: a segment that is there at all was
/// whole up to the end of its preamble, and whatever is missing of it is damage.
pub(crate) fn start_segment(
    io: &dyn LogIo,
    segments_dir: &Path,
    number: u64,
    preamble: Preamble<'_>,
    next_batch: &mut u64,
) -> io::Result<Current> {
    let records = preamble.records(*next_batch)?;
    let (mut placed, mut content) = (Vec::new(), Vec::new());
    for (template, payload) in records {
        let header = next_header(number, next_batch, template, &payload);
        placed.push((content.len() as u64, header));
        content.extend_from_slice(&header.encode());
        content.extend_from_slice(&payload);
    }
    let path = segment_path(segments_dir, number);
    io.replace(&path, &content)?;
    Ok(Current { number, file: io.open(&path)?, len: content.len() as u64, records: placed })
}

fn next_header(segment: u64, next_batch: &mut u64, template: Header, payload: &[u8]) -> Header {
    let batch = *next_batch;
    *next_batch += 1;
    Header { payload_len: payload.len() as u32, payload_crc: crc32c::crc32c(payload), segment, batch, ..template }
}

impl Preamble<'_> {
    /// See [`record`] for the order and why.
    fn records(self, first_batch: u64) -> io::Result<Vec<(Header, Vec<u8>)>> {
        let template = |kind, group, last| Header {
            kind,
            payload_len: 0,
            payload_crc: 0,
            group,
            segment: 0,
            batch: 0,
            term: 0,
            first: 0,
            last,
            flushed: 0,
        };
        let mut records = Vec::new();
        for (group, meta) in self.metas {
            if let (Some(bytes), Some(vote)) = (&meta.vote, self.votes.get_mut(group)) {
                vote.batch = first_batch + 1 + records.len() as u64;
                records.push((Header { term: vote.term, ..template(Kind::Vote, *group, 0) }, bytes.clone()));
            }
            if let Some((index, id)) = &meta.purged {
                records.push((template(Kind::Purge, *group, *index), id.clone()));
            }
            for (kind, bytes) in [(Kind::Trust, &meta.trust), (Kind::Committed, &meta.committed)] {
                records.extend(bytes.as_ref().map(|bytes| (template(kind, *group, 0), bytes.clone())));
            }
        }
        records.extend(self.cuts.iter().map(|(group, cut)| (template(Kind::TruncateAfter, *group, *cut), Vec::new())));
        let checkpoint = record::encode_checkpoint(self.metas.iter().map(|(group, meta)| (*group, meta)));
        records.push((template(Kind::Checkpoint, 0, 0), checkpoint));
        let preamble_rest_bytes = records.iter().map(|(_, payload)| (HEADER_BYTES + payload.len()) as u64).sum();
        let start = SegmentStart {
            format: FORMAT,
            disk_id: self.disk_id.to_owned(),
            previous: self.previous,
            preamble: records.len() as u64 + 1,
            preamble_rest_bytes,
            settled: self.settled,
            accepted: self.accepted,
        };
        let start = serde_json::to_vec(&start).map_err(io::Error::other)?;
        records.insert(0, (template(Kind::SegmentStart, 0, 0), start));
        Ok(records)
    }
}

impl Current {
    /// Gives the next record its place.
    pub(crate) fn place(&mut self, next_batch: &mut u64, template: Header, payload: &[u8]) -> Header {
        let header = next_header(self.number, next_batch, template, payload);
        self.records.push((self.len, header));
        self.len += header.record_len();
        header
    }

    /// Ends the segment with its index. One of very many small records gets none; the next start reads it whole.
    pub(crate) fn write_footer(&mut self, next_batch: &mut u64, flushed: u64) -> io::Result<()> {
        let offset = self.len;
        let payload = record::encode_footer(&self.records);
        if payload.len() <= record::PAYLOAD_BYTES_MAX {
            let template = Header { flushed, ..Header::footer(self.number, 0) };
            let header = self.place(next_batch, template, &payload);
            self.file.append(&[&header.encode(), &payload, &encode_trailer(offset)])?;
            self.len += TRAILER_BYTES as u64;
        }
        Ok(())
    }
}
