//! What a start makes of what the last one left: which groups may have lost acknowledged entries (DESIGN section 3, R2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use signaldb_model::GroupId;
use signaldb_wal::{Durability, LogIo, Wal, WalError};

use super::GroupsConfig;
use crate::error::OpenError;
use crate::recovery::{GroupStart, NodeStart, StartDecision, Tail, Trust, at_start};

/// Version of `boot.json`.
const FORMAT: u32 = 1;

/// `boot.json` beside the log: under which boot of the machine the log was opened last. While that is this boot, the
/// page cache of then is the page cache of now, and nothing that was written can be lost.
#[derive(Debug, Serialize, Deserialize)]
struct Boot {
    format: u32,
    boot_id: String,
}

/// By group; a group that the log does not know starts as new.
pub(super) type Decisions = BTreeMap<u32, StartDecision>;

/// A group that the log does not know.
pub(super) const NEW: StartDecision = StartDecision { trust: Trust::Synced, write: false };

/// Decides for each group of an open log, makes the decisions durable, and then the new boot id. Blocking.
///
/// # Errors
/// A record or file of a newer version; a failure to write.
pub(super) fn decide(
    wal: &Arc<Wal>,
    io: &dyn LogIo,
    config: &GroupsConfig,
    alone: bool,
) -> Result<Decisions, OpenError> {
    let path = config.wal_dir.join("boot.json");
    let before = read(io, &path)?;
    let node = NodeStart {
        // A log of before there was this file: nothing says that the machine went down.
        same_boot: before.is_none_or(|boot| boot.boot_id == config.boot_id),
        poisoned: poison_mark(io, &config.wal_dir)?,
        tail: if wal.torn_tail().is_some() { Tail::CutShort } else { Tail::Whole },
    };
    let mut decisions = Decisions::new();
    for group in wal.groups() {
        let failed = |reason: String| OpenError::Group { group, reason };
        let state = wal.group_state(group);
        let trust = state.trust.as_deref().map(Trust::decode).transpose().map_err(|error| failed(error.to_string()))?;
        let found = GroupStart {
            trust,
            empty: state.range.is_none() && state.purged.is_none(),
            always_syncs: alone || config.fsync || group == GroupId::META.0,
            quarantined: false,
            alone,
        };
        let decision = at_start(node, found).map_err(|refusal| failed(refusal.to_string()))?;
        if decision.write && trust.is_none() && decision.trust == Trust::Synced {
            // What no record says either.
            decisions.insert(group, StartDecision { write: false, ..decision });
            continue;
        }
        if decision.write {
            save(wal, group, decision.trust).map_err(|error| failed(error.to_string()))?;
        }
        decisions.insert(group, decision);
    }
    let boot = Boot { format: FORMAT, boot_id: config.boot_id.clone() };
    let content = serde_json::to_vec_pretty(&boot).expect("a boot is plain JSON");
    let failed = |error: std::io::Error| OpenError::Group { group: 0, reason: format!("{}: {error}", path.display()) };
    io.replace(&path, &content).map_err(failed)?;
    let poisoned = config.wal_dir.join(signaldb_wal::POISON_FILE);
    if node.poisoned {
        io.remove(&poisoned).map_err(failed)?;
    }
    Ok(decisions)
}

fn read(io: &dyn LogIo, path: &Path) -> Result<Option<Boot>, OpenError> {
    let failed = |reason: String| OpenError::Group { group: 0, reason: format!("{}: {reason}", path.display()) };
    let Some(content) = io.read(path).map_err(|error| failed(error.to_string()))? else { return Ok(None) };
    let boot: Boot = serde_json::from_slice(&content).map_err(|error| failed(error.to_string()))?;
    match boot.format {
        FORMAT => Ok(Some(boot)),
        found => Err(failed(format!("format {found} is of a newer version, this build reads format {FORMAT}"))),
    }
}

/// Whether a write or an fsync of the log failed before this start.
fn poison_mark(io: &dyn LogIo, dir: &Path) -> Result<bool, OpenError> {
    let path: PathBuf = dir.join(signaldb_wal::POISON_FILE);
    let found = io.read(&path);
    let failed = |error: std::io::Error| OpenError::Group { group: 0, reason: format!("{}: {error}", path.display()) };
    Ok(found.map_err(failed)?.is_some())
}

fn save(wal: &Wal, group: u32, trust: Trust) -> Result<(), WalError> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    let done = Box::new(move |outcome| drop(sender.send(outcome)));
    wal.save_trust(group, trust.encode().into(), Durability::Synced, Some(done));
    receiver.recv().unwrap_or(Err(WalError::Closed))
}
