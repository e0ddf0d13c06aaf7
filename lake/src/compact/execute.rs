//! Doing what the plan says: read, merge, write. No choice is left, and nothing is committed here.

use std::sync::Arc;

use iceberg::spec::DataFile;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::merge::{Source, merge};
use super::plan::Rewrite;
use super::read::{BlockingStore, FileSource};
use crate::datafile::{DataFileWriter, Density, EncodedFile};
use crate::error::LakeError;
use crate::flush::chain;
use crate::lake::Lake;
use crate::promote::FileSchema;
use crate::trace_index::{self, Section};
use crate::{metrics, names};

/// Bytes of a commit's trace index at most; files beyond it are not in it. Twice as much is in memory while it is made.
const TRACE_INDEX_BYTES_MAX: usize = 64 << 20;

/// Files that hold the rows of a rewrite's, durable and not yet in the table.
#[derive(Debug)]
pub(crate) struct Rewritten {
    /// In the files' names.
    pub(crate) commit: Uuid,
    pub(crate) files: Vec<DataFile>,
}

/// Writes the rows of `rewrite` into files of `schema` and about `target_bytes`, below `root`, the table's location.
///
/// # Errors
/// [`LakeError::RowsDiffer`] should a row be missing or doubled, or what files and store say. Files that were written
/// already are orphans.
pub(crate) async fn execute(
    lake: &Lake,
    schema: FileSchema,
    root: &str,
    rewrite: &Rewrite,
    target_bytes: u64,
    stop: &CancellationToken,
) -> Result<Rewritten, LakeError> {
    let commit = lake.new_commit();
    // Ends the reads when this future is dropped, too.
    let stop = stop.child_token();
    let _stop_reads = stop.clone().drop_guard();
    let job = Job {
        store: BlockingStore { store: lake.store().clone(), io: Handle::current(), stop },
        schema: Arc::new(schema),
        root: root.to_owned(),
        rewrite: rewrite.clone(),
        target_bytes: usize::try_from(target_bytes).unwrap_or(usize::MAX),
        commit,
    };
    // One file waits while the next is encoded.
    let (sender, mut encoded) = mpsc::channel(1);
    let merging = lake.cpu().spawn_blocking(move || job.run(&sender));
    let (mut files, mut sections, mut section_bytes) = (Vec::new(), Vec::new(), 0);
    while let Some(file) = encoded.recv().await {
        lake.store().write(&file.location, file.content).await?;
        files.push(file.entry);
        if let (Some(section), Some((_, number))) = (file.traces, names::trace_index_of(&file.location))
            && section_bytes + section.bytes() <= TRACE_INDEX_BYTES_MAX
        {
            section_bytes += section.bytes();
            sections.push((number, section));
        }
    }
    merging.await.map_err(|_| LakeError::Stopped("merging data files panicked"))??;
    let written: u64 = files.iter().map(DataFile::record_count).sum();
    match rewrite.rows() {
        read if read == written => {
            write_trace_index(lake, names::trace_index(root, commit, rewrite.day), sections).await?;
            Ok(Rewritten { commit, files })
        }
        read => Err(LakeError::RowsDiffer { read, written }),
    }
}

/// Writes the index of a commit's data files. Whoever looks for a trace does without it if need be, and it never comes
/// later than the commit, so that nobody looks for it too early.
async fn write_trace_index(lake: &Lake, location: String, sections: Vec<(u32, Section)>) -> Result<(), LakeError> {
    let encoding = lake.cpu().spawn_blocking(move || trace_index::encode(&sections));
    let index = encoding.await.map_err(|_| LakeError::Stopped("encoding a trace index panicked"))?;
    let Some(index) = index else { return Ok(()) };
    let bytes = index.len();
    match lake.store().write(&location, index).await {
        Ok(()) => metrics::note_trace_index(bytes),
        Err(error) => {
            metrics::note_trace_index_failure();
            tracing::warn!(%location, error = %chain(&error), "trace index was not written; traces are found more slowly");
        }
    }
    Ok(())
}

/// The part that computes, on a thread that may block.
struct Job {
    store: BlockingStore,
    schema: Arc<FileSchema>,
    root: String,
    rewrite: Rewrite,
    target_bytes: usize,
    commit: Uuid,
}

impl Job {
    fn run(&self, encoded: &mpsc::Sender<EncodedFile>) -> Result<(), LakeError> {
        let open = |file: &DataFile| -> Result<Box<dyn Source>, LakeError> {
            Ok(Box::new(FileSource::open(self.store.clone(), &self.schema, file)?))
        };
        let sources = self.rewrite.files.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let send = |writer: DataFileWriter| -> Result<(), LakeError> {
            let gone = |_| LakeError::Stopped("the data file's write failed");
            encoded.blocking_send(writer.finish()?).map_err(gone)
        };
        let (mut n, mut current) = (0, None);
        merge(self.schema.table(), sources, &mut |batch| {
            if self.store.stop.is_cancelled() {
                return Err(LakeError::Stopped("the node is stopping"));
            }
            let mut writer = match current.take() {
                Some(writer) => writer,
                None => self.writer(n)?,
            };
            writer.write(&batch)?;
            if writer.is_full(self.target_bytes)? {
                n += 1;
                send(writer)?;
            } else {
                current = Some(writer);
            }
            Ok(())
        })?;
        current.map_or(Ok(()), send)
    }

    fn writer(&self, n: usize) -> Result<DataFileWriter, LakeError> {
        let day = self.rewrite.day;
        let location = names::data_file(&self.root, names::COMPACTION, self.commit, n, day);
        DataFileWriter::new(&self.schema, Density::Compacted, day, location)
    }
}
