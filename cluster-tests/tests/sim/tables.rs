//! Catalog and object store of a simulation: kept in memory, shared by all nodes, slow now and then, and failing in every
//! way that a call over a network can.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};
use signaldb_catalog::{CatalogError, Swap, SwapOutcome, TablePointer};
use signaldb_lake::TablePointers;

use crate::world::{Event, MILLI, SECOND, World};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    /// It does not happen, and the answer says so.
    Refused,
    /// It does not happen, and nobody says so.
    Lost,
    /// It happens, and nobody says so.
    LostReply,
    /// It happens after the caller gave up.
    Late,
}

impl World {
    /// How long a call takes, and what becomes of it.
    fn call(&self, of: u64, store: bool) -> (Duration, Fate) {
        self.with(|state| {
            let failing = if store { state.trouble.store } else { state.trouble.catalog };
            let mut takes = state.chance.between(MILLI, 8 * MILLI);
            let fates = [Fate::Refused, Fate::Lost, Fate::LostReply, Fate::Late];
            let fate = if state.chance.percent(failing) { state.chance.pick(&fates) } else { None };
            if fate.is_some_and(|fate| fate != Fate::Refused) && state.chance.percent(30) {
                takes += state.chance.below(4 * SECOND);
            }
            let fate = fate.unwrap_or(Fate::Done);
            if fate != Fate::Done {
                state.count(if store { "store fault" } else { "catalog fault" });
            }
            state.note(format_args!("call {of} {} {fate:?}", if store { "store" } else { "catalog" }));
            (Duration::from_nanos(takes), fate)
        })
    }
}

/// Nothing that is called by a process that is gone ever happens.
async fn unless_gone(gone: &AtomicBool) {
    if gone.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// The catalog's tables, and what they must keep to.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pointers: Mutex<BTreeMap<(String, String), String>>,
    /// By table and group, how far the group's rows are in it.
    marks: Mutex<BTreeMap<(String, String), u64>>,
    objects: Arc<InMemory>,
}

impl Tables {
    pub(crate) fn load(&self, namespace: &str, table: &str) -> Option<String> {
        let pointers = self.pointers.lock().unwrap_or_else(PoisonError::into_inner);
        pointers.get(&(namespace.to_owned(), table.to_owned())).cloned()
    }

    fn swap(&self, world: &World, swaps: &[Swap]) -> SwapOutcome {
        let mut pointers = self.pointers.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |swap: &Swap| (swap.namespace.clone(), swap.table.clone());
        if swaps.iter().any(|swap| pointers.get(&key(swap)) != Some(&swap.base)) {
            return SwapOutcome::Conflict;
        }
        for swap in swaps {
            world.note(format_args!("swap {} {} {}", swap.namespace, swap.table, swap.new));
            pointers.insert(key(swap), swap.new.clone());
        }
        drop(pointers);
        world.count("commits");
        swaps.iter().for_each(|swap| self.check(world, swap));
        SwapOutcome::Moved
    }

    /// A transaction whose caller gave up.
    pub(crate) fn swap_late(&self, world: &World, swaps: &[Swap]) {
        let outcome = self.swap(world, swaps);
        world.note(format_args!("late swap {outcome:?}"));
    }

    /// Watermarks only rise, whatever commits.
    fn check(&self, world: &World, swap: &Swap) {
        let table = format!("{}.{}", swap.namespace, swap.table);
        let properties = match self.properties(&swap.new) {
            Ok(properties) => properties,
            Err(reason) => return world.violate(format!("the catalog names {}: {reason}", swap.new)),
        };
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in properties.iter().filter(|(key, _)| key.starts_with("signaldb.flush.")) {
            let mark: Option<serde_json::Value> = value.as_str().and_then(|text| serde_json::from_str(text).ok());
            let index = mark.as_ref().and_then(|mark| mark["index"].as_u64());
            let Some(index) = index else {
                world.violate(format!("{key} of {table} is {value}"));
                continue;
            };
            let before = marks.insert((table.clone(), key.clone()), index).unwrap_or(0);
            if index < before {
                world.violate(format!("{key} of {table} went from {before} back to {index}"));
            }
        }
    }

    fn properties(&self, location: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
        let key = location.strip_prefix("memory://tables/").ok_or("it is elsewhere")?;
        let path = Path::parse(key).map_err(|error| error.to_string())?;
        // Memory has its answer at once.
        let read = async {
            let found = self.objects.get_opts(&path, GetOptions::new()).await?;
            found.bytes().await
        };
        let content = read.now_or_never().ok_or("memory is slow")?.map_err(|error| error.to_string())?;
        let metadata: serde_json::Value = serde_json::from_slice(&content).map_err(|error| error.to_string())?;
        metadata["properties"].as_object().cloned().ok_or_else(|| "it has no properties".to_owned())
    }
}

/// The catalog as one process calls it.
#[derive(Debug)]
pub(crate) struct Catalog {
    pub(crate) tables: Arc<Tables>,
    pub(crate) world: World,
    pub(crate) node: u64,
    pub(crate) gone: Arc<AtomicBool>,
}

fn refused() -> CatalogError {
    CatalogError::Sql { action: "ask the simulation", source: io::Error::other("refused").into() }
}

fn unknown() -> CatalogError {
    CatalogError::Unknown(io::Error::other("no answer").into())
}

impl Catalog {
    async fn call(&self) -> Fate {
        let (takes, fate) = self.world.call(self.node, false);
        tokio::time::sleep(takes).await;
        unless_gone(&self.gone).await;
        fate
    }

    /// A read that fails leaves no doubt.
    async fn read<T>(&self, read: impl FnOnce(&Tables) -> T + Send) -> Result<T, CatalogError> {
        match self.call().await {
            Fate::Done => Ok(read(&self.tables)),
            _ => Err(refused()),
        }
    }
}

#[async_trait]
impl TablePointers for Catalog {
    async fn load(&self, namespace: &str, table: &str) -> Result<Option<String>, CatalogError> {
        self.read(|tables| tables.load(namespace, table)).await
    }

    async fn create(&self, namespace: &str, table: &str, location: &str) -> Result<String, CatalogError> {
        let fate = self.call().await;
        match fate {
            Fate::Refused => return Err(refused()),
            Fate::Lost | Fate::Late => return Err(unknown()),
            Fate::Done | Fate::LostReply => {}
        }
        let found = {
            let mut pointers = self.tables.pointers.lock().unwrap_or_else(PoisonError::into_inner);
            pointers.entry((namespace.to_owned(), table.to_owned())).or_insert_with(|| location.to_owned()).clone()
        };
        if fate == Fate::LostReply { Err(unknown()) } else { Ok(found) }
    }

    async fn tables(&self) -> Result<Vec<TablePointer>, CatalogError> {
        let pointer = |((namespace, table), location): (&(String, String), &String)| TablePointer {
            namespace: namespace.clone(),
            table: table.clone(),
            location: location.clone(),
        };
        let all = |tables: &Tables| {
            tables.pointers.lock().unwrap_or_else(PoisonError::into_inner).iter().map(pointer).collect::<Vec<_>>()
        };
        self.read(all).await
    }

    async fn swap(&self, swaps: &[Swap]) -> Result<SwapOutcome, CatalogError> {
        match self.call().await {
            Fate::Done => Ok(self.tables.swap(&self.world, swaps)),
            Fate::Refused => Err(refused()),
            Fate::Lost => Err(unknown()),
            Fate::LostReply => {
                self.tables.swap(&self.world, swaps);
                Err(unknown())
            }
            Fate::Late => {
                let swaps = swaps.to_vec();
                self.world.with(|state| {
                    let late = state.chance.below(3 * SECOND);
                    state.after(late, Event::LateSwap(swaps));
                });
                Err(unknown())
            }
        }
    }
}

/// The store as one process calls it.
#[derive(Debug)]
pub(crate) struct Objects {
    objects: Arc<InMemory>,
    world: World,
    node: u64,
    gone: Arc<AtomicBool>,
}

impl Objects {
    pub(crate) fn new(tables: &Tables, world: World, node: u64, gone: Arc<AtomicBool>) -> Self {
        Self { objects: Arc::clone(&tables.objects), world, node, gone }
    }

    async fn call(&self) -> Fate {
        let (takes, fate) = self.world.call(self.node, true);
        tokio::time::sleep(takes).await;
        unless_gone(&self.gone).await;
        fate
    }
}

fn failed() -> object_store::Error {
    object_store::Error::Generic { store: "simulation", source: "500 Internal Server Error".into() }
}

impl fmt::Display for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulation")
    }
}

#[async_trait]
impl ObjectStore for Objects {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        match self.call().await {
            Fate::Done => self.objects.put_opts(path, payload, options).await,
            Fate::Refused | Fate::Lost => Err(failed()),
            Fate::LostReply | Fate::Late => {
                self.objects.put_opts(path, payload, options).await?;
                Err(failed())
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        match self.call().await {
            Fate::Done => self.objects.get_opts(path, options).await,
            _ => Err(failed()),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
