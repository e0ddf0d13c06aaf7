//! What a start makes of what the last one left: which groups may have lost acknowledged entries (DESIGN section 3, R2).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use signaldb_model::GroupId;
use signaldb_wal::{Found, FoundGroup, LogIo, POISON_FILE, TailKind, disk_id};

use crate::error::OpenError;
use crate::recovery::{GroupStart, NodeStart, OwnIdentity, StartDecision, StartHistory, Tail, Trust, at_start};

/// Version of [`BOOT_FILE`]. Format 1 ended with the boot id.
const FORMAT: u32 = 2;
const BOOT_FILE: &str = "boot.json";

/// [`BOOT_FILE`] beside the log: under which boot of the machine the log was opened last. While that is this boot, the
/// page cache of then is the page cache of now, and nothing that was written can be lost. And the starts of this disk.
#[derive(Debug, Serialize, Deserialize)]
struct Boot {
    format: u32,
    boot_id: String,
    /// Number of the last start.
    #[serde(default)]
    epoch: u64,
    /// Of the last start and those before, newest first.
    #[serde(default)]
    tokens: Vec<u32>,
    /// Number of the last start that ended with a failed write or fsync and whose consequences are on disk.
    #[serde(default)]
    settled: u64,
}

/// Groups that a cluster may have, the meta group included.
const GROUPS_MAX: u32 = 65;

/// What each group starts as.
#[derive(Debug, Clone, Default)]
pub(super) struct Decisions(BTreeMap<u32, StartDecision>);

impl Decisions {
    /// A group that the log does not know starts as new.
    pub(super) fn of(&self, group: GroupId) -> StartDecision {
        self.0.get(&group.0).copied().unwrap_or(StartDecision { trust: Trust::Synced, write: false })
    }

    /// The trust records that the start has to write.
    pub(super) fn records(&self) -> BTreeMap<u32, Bytes> {
        let written = self.0.iter().filter(|(_, decision)| decision.write);
        written.map(|(group, decision)| (*group, Bytes::from(decision.trust.encode()))).collect()
    }
}

/// What is known before the log is read.
#[derive(Debug)]
pub(super) struct Start {
    boot_id: String,
    dir: PathBuf,
    /// As far as it is known before the log is read.
    disk_id: Option<String>,
    /// Those before this one.
    starts: StartHistory,
    /// A node ran on this disk before.
    used: bool,
    same_boot: bool,
    /// The mark on this disk.
    poisoned: bool,
    /// Number of a poisoned start that peers remember.
    told: Option<u64>,
    /// As found in [`Boot`].
    settled: u64,
    /// No other node holds the log.
    alone: bool,
    /// Every group waits for its syncs.
    fsync: bool,
}

impl Start {
    /// Blocking.
    ///
    /// # Errors
    /// A file of a newer version; a failure to read.
    pub(super) fn read(io: &dyn LogIo, dir: &Path, boot_id: &str, alone: bool, fsync: bool) -> Result<Self, OpenError> {
        let failed = |path: &Path, reason: String| OpenError::Group {
            group: 0,
            reason: format!("{}: {reason}", path.display()),
        };
        let (path, mark) = (dir.join(BOOT_FILE), dir.join(POISON_FILE));
        let content = io.read(&path).map_err(|error| failed(&path, error.to_string()))?;
        let boot = content.map(|content| serde_json::from_slice::<Boot>(&content)).transpose();
        let boot = boot.map_err(|error| failed(&path, error.to_string()))?;
        if let Some(newer) = boot.as_ref().filter(|boot| !(1..=FORMAT).contains(&boot.format)) {
            let reason = format!("format {} is not supported, this build reads formats 1 to {FORMAT}", newer.format);
            return Err(failed(&path, reason));
        }
        let starts = boot.as_ref().map(|boot| StartHistory::new(boot.epoch, boot.tokens.clone()));
        let starts = starts.map(|starts| starts.ok_or_else(|| failed(&path, "the starts do not add up".to_owned())));
        let starts = starts.transpose()?.unwrap_or_default();
        let disk_id = disk_id(io, dir)?;
        let poisoned = io.read(&mark).map_err(|error| failed(&mark, error.to_string()))?.is_some();
        // A log of before there was this file: nothing says that the machine went down.
        let same_boot = boot.as_ref().is_none_or(|boot| boot.boot_id == boot_id);
        Ok(Self {
            boot_id: boot_id.to_owned(),
            dir: dir.to_owned(),
            used: boot.is_some() || disk_id.is_some(),
            disk_id,
            starts,
            same_boot,
            poisoned,
            told: None,
            settled: boot.map_or(0, |boot| boot.settled),
            alone,
            fsync,
        })
    }

    /// What the disk says about itself; `None` on a new one.
    pub(super) fn identity(&self) -> Option<OwnIdentity> {
        self.used.then(|| OwnIdentity { disk_id: self.disk_id.clone(), starts: self.starts.clone() })
    }

    /// Peers remember that a start ended with a failed write or fsync. Later ones than [`Self::settled`] only.
    pub(super) fn tell(&mut self, poisoned: Option<u64>) {
        if let Some(epoch) = poisoned {
            tracing::warn!(epoch, "peers remember that a write or an fsync failed in that start epoch of this node");
        }
        self.told = poisoned;
    }

    /// Number of the last poisoned start whose consequences are on disk once this start has decided.
    pub(super) fn settled(&self) -> u64 {
        // A start that takes the page cache for lost anyway has nothing to learn about those before it.
        let drawn = if self.poisoned || !self.same_boot { self.starts.number() } else { 0 };
        self.settled.max(drawn).max(self.told.unwrap_or(0))
    }

    /// Decides for each group; nothing was changed on disk yet.
    ///
    /// # Errors
    /// Why the node must not start: what is lost is nowhere else, or nobody can tell what is.
    pub(super) fn decide(&self, found: &Found) -> Result<Decisions, String> {
        let tail = match found.torn.as_ref().map(|torn| torn.kind) {
            None => Tail::Whole,
            Some(TailKind::CutShort) => Tail::CutShort,
            Some(TailKind::Bad) => Tail::Bad,
        };
        let poisoned = self.poisoned || self.told.is_some();
        let node = NodeStart { same_boot: self.same_boot, poisoned, tail };
        let mut decisions = Decisions::default();
        for (group, found) in &found.groups {
            decisions.0.insert(*group, self.decide_group(*group, node, found)?);
        }
        let Some(lost) = &found.unlisted else { return Ok(decisions) };
        if self.alone || !found.groups.contains_key(&GroupId::META.0) {
            return Err(format!("groups may have lost everything in segment {:06}", lost.segment));
        }
        // Any other group may have been there, and voted.
        for group in 0..GROUPS_MAX {
            decisions.0.entry(group).or_insert(StartDecision { trust: Trust::Recovering, write: true });
        }
        Ok(decisions)
    }

    fn decide_group(&self, group: u32, node: NodeStart, found: &FoundGroup) -> Result<StartDecision, String> {
        let trust = found.trust.as_deref().map(Trust::decode).transpose();
        let trust = trust.map_err(|error| format!("group {group}: {error}"))?;
        let lost = found.quarantined.as_ref().or(found.accepted.as_ref());
        if let Some(lost) = lost {
            tracing::error!(
                group,
                segment = lost.segment,
                offset = lost.offset,
                reason = lost.reason,
                "WAL corruption: entries {lost} are damaged on this disk"
            );
        }
        // The death of a process tears a record short; it turns none into another.
        let flipped = node.same_boot && node.tail == Tail::Bad && !self.alone;
        let start = GroupStart {
            trust,
            empty: found.empty,
            always_syncs: self.alone || self.fsync || group == GroupId::META.0,
            quarantined: flipped || found.quarantined.is_some() || (found.accepted.is_some() && !self.alone),
            repaired: found.accepted.is_some(),
            alone: self.alone,
        };
        let decision = at_start(node, start).map_err(|refusal| refusal.to_string())?;
        // What no record says is SYNCED anyway.
        let write = decision.write && !(trust.is_none() && decision.trust == Trust::Synced);
        Ok(StartDecision { write, ..decision })
    }

    /// The decisions are on disk: from now on this boot and this start count. Blocking.
    ///
    /// # Errors
    /// A failure to write.
    pub(super) fn note_boot(&self, io: &dyn LogIo) -> Result<StartHistory, OpenError> {
        let path = self.dir.join(BOOT_FILE);
        let failed =
            |error: std::io::Error| OpenError::Group { group: 0, reason: format!("{}: {error}", path.display()) };
        let starts = self.starts.with_start(uuid::Uuid::new_v4().as_u128() as u32);
        let boot = Boot {
            format: FORMAT,
            boot_id: self.boot_id.clone(),
            epoch: starts.number(),
            tokens: starts.tokens().to_vec(),
            settled: self.settled(),
        };
        let content = serde_json::to_vec_pretty(&boot).expect("a boot is plain JSON");
        io.replace(&path, &content).map_err(failed)?;
        if self.poisoned {
            io.remove(&self.dir.join(POISON_FILE)).map_err(failed)?;
        }
        Ok(starts)
    }
}

#[cfg(test)]
mod tests {
    use signaldb_wal::sim::SimIo;
    use signaldb_wal::{Quarantined, TornTail};

    use super::*;

    fn start(same_boot: bool, alone: bool) -> Start {
        let boot_id = if same_boot { "boot" } else { "another" };
        let start = read(&written(BOOT), boot_id);
        Start { alone, ..start }
    }

    const BOOT: &str = r#"{"format": 2, "boot_id": "boot", "epoch": 2, "tokens": [20, 10], "settled": 1}"#;

    /// A disk with this [`BOOT_FILE`].
    fn written(boot: &str) -> SimIo {
        let io = SimIo::new();
        io.replace(Path::new("/wal/boot.json"), boot.as_bytes()).expect("writes");
        io
    }

    fn read(io: &SimIo, boot_id: &str) -> Start {
        Start::read(io, Path::new("/wal"), boot_id, false, false).expect("reads")
    }

    fn found(trust: Trust, quarantined: bool) -> Found {
        let lost = Quarantined {
            first_lost_index: 7,
            last_lost_index: None,
            segment: 3,
            offset: 100,
            reason: "a flipped bit".to_owned(),
        };
        let group = FoundGroup {
            trust: Some(trust.encode()),
            empty: false,
            quarantined: quarantined.then_some(lost),
            accepted: None,
        };
        let meta = FoundGroup { trust: None, empty: false, quarantined: None, accepted: None };
        Found { torn: None, groups: BTreeMap::from([(0, meta), (1, group)]), unlisted: None }
    }

    fn decided(start: &Start, found: &Found) -> [Trust; 2] {
        let decisions = start.decide(found).expect("starts");
        [0, 1].map(|group| decisions.of(GroupId(group)).trust)
    }

    #[test]
    fn a_machine_that_went_down_makes_lazy_groups_recover_and_no_others() {
        use Trust::{Recovering, Synced, Unsynced};
        for (same_boot, trust, expected) in [
            (true, Unsynced, Unsynced),
            (false, Unsynced, Recovering),
            (false, Synced, Synced),
            (true, Recovering, Recovering),
        ] {
            assert_eq!(decided(&start(same_boot, false), &found(trust, false)), [Synced, expected]);
        }
        assert_eq!(decided(&start(false, true), &found(Synced, false)), [Synced, Synced], "a lone voter syncs always");
    }

    #[test]
    fn damage_makes_its_group_recover_from_peers_and_stops_a_lone_voter() {
        let damaged = found(Trust::Synced, true);
        assert_eq!(decided(&start(true, false), &damaged), [Trust::Synced, Trust::Recovering]);
        start(true, true).decide(&damaged).expect_err("nobody has a copy");
        let mut flipped = found(Trust::Synced, false);
        let reason = "record payload checksum mismatch".to_owned();
        flipped.torn = Some(TornTail { segment: 3, offset: 9, bytes: 80, kind: TailKind::Bad, reason });
        assert_eq!(decided(&start(true, false), &flipped), [Trust::Recovering; 2]);
        assert_eq!(decided(&start(false, false), &flipped), [Trust::Synced; 2], "synced records end before it");
    }

    #[test]
    fn groups_that_left_no_trace_are_not_taken_for_new() {
        let mut found = found(Trust::Synced, true);
        found.unlisted = found.groups[&1].quarantined.clone();
        let decisions = start(true, false).decide(&found).expect("starts");
        assert_eq!(decisions.of(GroupId(5)).trust, Trust::Recovering);
        found.groups.remove(&0);
        start(true, false).decide(&found).expect_err("the meta group says which groups there are");
    }
    #[test]
    fn every_start_is_one_more_and_the_disk_remembers_them() {
        let io = SimIo::new();
        let new = read(&io, "boot");
        assert_eq!(new.identity(), None);
        let mut starts = new.note_boot(&io).expect("writes");
        for number in 2..=4 {
            let start = read(&io, "boot");
            let identity = start.identity().expect("used before");
            assert_eq!(identity, OwnIdentity { disk_id: None, starts: starts.clone() });
            let next = start.note_boot(&io).expect("writes");
            assert_eq!(next.number(), number);
            assert!(next.remembers(starts.newest().expect("started")));
            starts = next;
        }
    }

    #[test]
    fn format_1_never_started_and_a_newer_format_is_named() {
        let io = written(r#"{"format": 1, "boot_id": "boot"}"#);
        let start = read(&io, "boot");
        assert!(start.same_boot && start.starts.number() == 0 && start.identity().is_some());
        assert_eq!(start.note_boot(&io).expect("writes").number(), 1);
        let start = read(&written(BOOT), "boot");
        assert_eq!((start.starts.to_string().as_str(), start.settled()), ("2:00000014,0000000a", 1));
        for (bad, named) in [
            (r#"{"format": 3, "boot_id": "boot"}"#, "format 3"),
            (r#"{"format": 2, "boot_id": "boot", "epoch": 2}"#, "do not add up"),
        ] {
            let error = Start::read(&written(bad), Path::new("/wal"), "boot", false, false).expect_err(named);
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_poisoned_start_counts_once_wherever_it_is_remembered() {
        let lazy = found(Trust::Unsynced, false);
        let io = written(BOOT);
        assert_eq!(decided(&read(&io, "boot"), &lazy), [Trust::Synced, Trust::Unsynced]);
        let mut told = read(&io, "boot");
        told.tell(Some(2));
        assert_eq!(decided(&told, &lazy), [Trust::Synced, Trust::Recovering]);
        told.note_boot(&io).expect("writes");
        assert_eq!(read(&io, "boot").settled(), 2);
        io.replace(Path::new("/wal/poisoned"), b"EIO").expect("writes");
        let marked = read(&io, "boot");
        assert_eq!(decided(&marked, &lazy), [Trust::Synced, Trust::Recovering]);
        marked.note_boot(&io).expect("writes");
        let after = read(&io, "boot");
        assert_eq!((after.settled(), after.poisoned), (3, false), "what peers say of start 3 is no news");
        assert_eq!(read(&io, "another").settled(), 4, "after a reboot nothing they say is");
    }
}
