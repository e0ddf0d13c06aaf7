//! A machine, and the process on it: the server's own log, groups, peer port and lake, on a runtime of its own that ends
//! with the process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use signaldb_lake::{Lake, LakeConfig, Store};
use signaldb_model::{Clock, NodeId, SystemClock, UnixNanos};
use signaldb_query::{PeerFlight, Queries};
use signaldb_raft::state_store::MemoryStateStore;
use signaldb_raft::{DiskLevel, Groups, GroupsConfig, OpenLog, PeerService, PeersConfig};
use signaldb_wal::WalConfig;
use signaldb_wal::sim::{Loss, SimIo};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::disk::{self, ProcessDisk};
use crate::ledger::{Ledger, Sink};
use crate::net::{Incoming, Wires};
use crate::os::{self, Clocks, NeverIdle};
use crate::tables::{Catalog, Objects, Tables};
use crate::world::{Chance, MILLI, SECOND, World};

pub(crate) const NODES: [u64; 3] = [1, 2, 3];
const WINDOW_BYTES: u32 = 16 << 20;
/// How often a process looks whether it must end, and how full its disk is.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// What a process that was asked to stop ends with.
pub(crate) const STOPPED: &str = "stopped";

/// Settings of all nodes of a simulation.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Acknowledged is what a majority has on disk.
    pub(crate) fsync: bool,
    segment_bytes: u64,
    sync_interval: Duration,
    flush_interval: Duration,
    memtable_bytes: usize,
}

impl Settings {
    pub(crate) fn draw(chance: &mut Chance) -> Self {
        let millis = |millis: u64| Duration::from_millis(millis);
        Self {
            fsync: chance.percent(30),
            segment_bytes: chance.pick(&[4 << 10, 32 << 10, 1 << 20]).unwrap_or(1 << 20),
            sync_interval: millis(chance.pick(&[5, 50, 400]).unwrap_or(50)),
            flush_interval: millis(chance.pick(&[700, 2000, 4000]).unwrap_or(2000)),
            memtable_bytes: chance.pick(&[64 << 10, 64 << 20]).unwrap_or(64 << 20),
        }
    }
}

/// What lasts longer than a process.
pub(crate) struct Machine {
    pub(crate) node: u64,
    pub(crate) disk: SimIo,
    /// Whole after a power loss, too: what a call of a state store wrote is durable when it returns.
    state: Arc<MemoryStateStore>,
    boots: u32,
    pub(crate) clocks: Clocks,
    /// It may have lost what it acknowledged, and has not caught up since.
    pub(crate) untrusted: bool,
    pub(crate) process: Option<Process>,
}

pub(crate) struct Process {
    pub(crate) runtime: Runtime,
    gone: Arc<AtomicBool>,
    /// When the runtime wants to go on by itself.
    pub(crate) deadline: Option<u64>,
    opened: Arc<OnceLock<Parts>>,
    /// Why it ends.
    ended: Arc<OnceLock<String>>,
    stopping: bool,
}

/// What a process has, once it is open.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) groups: Arc<Groups>,
    pub(crate) lake: Lake,
    pub(crate) queries: Queries,
}

/// What all nodes share.
#[derive(Clone)]
pub(crate) struct Around {
    pub(crate) world: World,
    pub(crate) tables: Arc<Tables>,
    pub(crate) ledger: Ledger,
    pub(crate) settings: Settings,
}

impl Machine {
    pub(crate) fn new(node: u64, chance: &mut Chance) -> Self {
        Self {
            node,
            disk: SimIo::new(),
            state: Arc::default(),
            boots: 0,
            clocks: Clocks::ahead(chance.below(5000 * MILLI).cast_signed()),
            untrusted: false,
            process: None,
        }
    }

    pub(crate) fn start(&mut self, around: &Around) {
        os::with_clocks(self.clocks, || self.boot(around));
    }

    fn boot(&mut self, around: &Around) {
        let (world, node) = (around.world.clone(), self.node);
        world.with(|state| state.switch_on(node));
        world.note(format_args!("start {node}"));
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (gone, opened, ended) = (Arc::<AtomicBool>::default(), Arc::default(), Arc::<OnceLock<String>>::default());
        let disk = ProcessDisk { disk: self.disk.clone(), gone: Arc::clone(&gone), world: world.clone(), node };
        let pointers = Arc::new(Catalog {
            tables: Arc::clone(&around.tables),
            world: world.clone(),
            node,
            gone: Arc::clone(&gone),
        });
        let store = Store::of_objects(Arc::new(Objects::new(&around.tables, world.clone(), node, Arc::clone(&gone))));
        let clock: Arc<dyn Clock> = Arc::new(ProcessClock { begun: Instant::now() });
        let cpu = runtime.handle().clone();
        let lake = Lake::simulated(around.settings.lake(), pointers, store, Arc::clone(&clock), cpu);
        let life = Life {
            node,
            config: around.settings.groups(node, self.boots),
            disk,
            state: Arc::clone(&self.state),
            world,
            clock,
            lake,
            ledger: around.ledger.clone(),
            opened: Arc::clone(&opened),
        };
        let why = Arc::clone(&ended);
        drop(runtime.spawn(async move {
            let reason = Box::pin(life.live()).await;
            // The first reason counts.
            let _ = why.set(reason);
        }));
        self.process = Some(Process { runtime, gone, deadline: Some(os::now()), opened, ended, stopping: false });
    }

    /// `kill -9`, or with a `loss` the power fails.
    pub(crate) fn kill(&mut self, world: &World, loss: Option<Loss>) {
        let Some(process) = self.process.take() else { return };
        world.note(format_args!("kill {} {loss:?}", self.node));
        process.gone.store(true, Ordering::Relaxed);
        match loss {
            Some(loss) => {
                let before = self.disk.used_bytes();
                self.disk.lose_power(loss);
                if self.disk.used_bytes() < before {
                    world.count("power losses that took bytes");
                }
                self.boots += 1;
                self.untrusted = true;
            }
            None => self.disk.kill(),
        }
        world.with(|state| state.process_ends(self.node, loss.is_some()));
        os::with_clocks(self.clocks, || drop(process));
    }

    /// Runs all that its process has to do at this moment.
    ///
    /// # Errors
    /// It never comes to an end of it.
    pub(crate) fn run(&mut self) -> Result<(), NeverIdle> {
        let Some(process) = &mut self.process else { return Ok(()) };
        process.deadline = os::run_until_idle(&process.runtime, self.clocks)?;
        Ok(())
    }

    /// Sets one of its clocks, in a way that a machine's clocks go wrong.
    pub(crate) fn derange_clock(&mut self, chance: &mut Chance, world: &World) -> &'static str {
        if chance.percent(50) {
            // A machine that is badly off is so by a second a day; this is for elections.
            let drifts = [-100_000, -10_000, -200, 0, 200, 10_000, 100_000];
            self.clocks.set_drift(chance.pick(&drifts).unwrap_or(0));
            return "clock drifts";
        }
        let hour = (3600 * SECOND).cast_signed();
        let ahead = [-2 * hour, -hour / 60, -SECOND.cast_signed(), 0, SECOND.cast_signed(), hour / 60, 2 * hour];
        let shown = |clocks: Clocks| os::with_clocks(clocks, || SystemClock.now()).0;
        let before = shown(self.clocks);
        self.clocks.set_wall(chance.pick(&ahead).unwrap_or(0));
        if shown(self.clocks).abs_diff(before) > SECOND / 10 {
            world.count("clocks set");
        }
        "clock jumps"
    }

    pub(crate) fn parts(&self) -> Option<&Parts> {
        self.process.as_ref().and_then(|process| process.opened.get())
    }

    /// Why its process wants to end.
    pub(crate) fn ended(&self) -> Option<&str> {
        self.process.as_ref().and_then(|process| process.ended.get()).map(String::as_str)
    }

    /// SIGTERM.
    pub(crate) fn stop(&mut self) {
        let Some(process) = &mut self.process else { return };
        let Some(parts) = process.opened.get().cloned().filter(|_| !process.stopping) else { return };
        process.stopping = true;
        let ended = Arc::clone(&process.ended);
        drop(process.runtime.spawn(async move {
            parts.lake.close().await;
            Box::pin(parts.groups.hand_over()).await;
            Box::pin(parts.groups.close()).await;
            let _ = ended.set(STOPPED.to_owned());
        }));
    }

    /// Whether it serves, with all that it ever acknowledged.
    pub(crate) fn is_well(&self) -> bool {
        let Some(parts) = self.parts() else { return false };
        let fails = || parts.groups.failure().is_some() || parts.lake.failure().is_some();
        let recovers = || parts.groups.statuses().iter().any(|status| status.state == "recovering");
        self.ended().is_none() && !fails() && !recovers()
    }
}

impl Settings {
    fn groups(&self, node: u64, boots: u32) -> GroupsConfig {
        GroupsConfig {
            address: address(node),
            wal_dir: "/wal".into(),
            boot_id: format!("boot {boots}"),
            wal: WalConfig {
                segment_bytes_max: self.segment_bytes,
                sync_interval: self.sync_interval,
                sync_bytes: 1 << 20,
            },
            data_groups: 1,
            heartbeat_interval: Duration::from_millis(200),
            election_timeout: (Duration::from_millis(800), Duration::from_millis(1600)),
            purge_lag: Duration::ZERO,
            purge_lag_bytes_max: 1 << 30,
            trim_interval: Duration::from_millis(500),
            fsync: self.fsync,
        }
    }

    fn lake(&self) -> LakeConfig {
        LakeConfig {
            interval: self.flush_interval,
            max_interval: self.flush_interval,
            max_bytes: self.memtable_bytes,
            lone_voter: false,
            ..LakeConfig::default()
        }
    }
}

fn address(node: u64) -> String {
    format!("node-{node}:1")
}

/// All that a process needs to begin.
struct Life {
    node: u64,
    config: GroupsConfig,
    disk: ProcessDisk,
    state: Arc<MemoryStateStore>,
    world: World,
    clock: Arc<dyn Clock>,
    lake: Lake,
    ledger: Ledger,
    opened: Arc<OnceLock<Parts>>,
}

impl Life {
    /// Serves; returns why the process must end. As `node/src/run.rs` does it.
    async fn live(self) -> String {
        let Self { node, config, disk, state, world, clock, lake, ledger, opened } = self;
        let (room, queries) = (disk.disk.clone(), Queries::new(NodeId(node), Arc::clone(&clock)));
        let addresses: BTreeMap<NodeId, String> = NODES.into_iter().map(|n| (NodeId(n), address(n))).collect();
        let peers = PeersConfig { cluster: "sim".to_owned(), secret: String::new(), node: NodeId(node), addresses };
        let dial = Arc::new(Wires { world: world.clone(), node });
        let log = match Box::pin(OpenLog::open_over(&config, peers, Arc::new(disk), state, dial)).await {
            Ok(log) => log,
            Err(error) => return chain(&error),
        };
        let (peers, open) = (Arc::clone(log.peers()), Arc::<OnceLock<Arc<Groups>>>::default());
        let flight = PeerFlight::service(lake.clone(), Arc::clone(&open), Arc::clone(&peers), queries.clone());
        let server = Server::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .add_routes(Routes::new(PeerService::new(peers)).add_service(flight))
            .serve_with_incoming(Incoming::listen(world.clone(), node));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(server.await) });
        let sink = Arc::new(Sink { node, lake: lake.clone(), ledger });
        let groups = match Box::pin(Groups::open(log, config, clock, sink)).await {
            Ok(groups) => Arc::new(groups),
            Err(error) => return chain(&error),
        };
        // Nobody else sets it.
        let _ = open.set(Arc::clone(&groups));
        // When the store does not answer, the first write looks.
        drop(lake.store().claim(&groups.founding().store_id).await);
        for group in groups.data_groups() {
            lake.start_flusher(Arc::clone(group), groups.founding().cluster_id.clone());
        }
        // Nobody else sets it.
        let _ = opened.set(Parts { groups: Arc::clone(&groups), lake: lake.clone(), queries });
        let mut level = DiskLevel::Normal;
        loop {
            if let Some(reason) = groups.failure().or_else(|| lake.failure()) {
                return reason;
            }
            let before = level;
            level = disk::level(before, room.free_bytes());
            if before == DiskLevel::Normal && level != before {
                world.count("disks short of room");
            }
            groups.set_disk_level(level);
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// The clocks of a machine, since a process on it began.
#[derive(Debug)]
struct ProcessClock {
    begun: Instant,
}

impl Clock for ProcessClock {
    fn now(&self) -> UnixNanos {
        SystemClock.now()
    }

    fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}
