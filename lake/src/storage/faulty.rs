//! A store that fails on time, for tests.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Backend, Listed, Store, StoreError};
use crate::testing::faults::{Fault, Faults};

struct Faulty {
    store: Store,
    faults: Arc<Faults>,
}

impl Store {
    /// The same store; what goes through this handle are steps of `faults`.
    pub(crate) fn with_faults(&self, faults: &Arc<Faults>) -> Self {
        let backend = Faulty { store: self.clone(), faults: Arc::clone(faults) };
        Self::new(self.0.root.clone(), Box::new(backend), self.0.objects.clone(), self.0.client_properties.clone())
    }
}

impl Faulty {
    fn backend(&self) -> &dyn Backend {
        self.store.0.backend.as_ref()
    }
}

fn failed(action: &'static str, location: &str) -> impl FnOnce(Fault) -> StoreError + Send {
    let path = location.to_owned();
    move |_| StoreError::Io { action, path, source: io::Error::other("injected") }
}

#[async_trait]
impl Backend for Faulty {
    async fn write(&self, location: &str, content: Bytes) -> Result<(), StoreError> {
        self.faults.step(self.backend().write(location, content), || (), failed("write", location)).await
    }

    async fn create(&self, location: &str, content: Bytes) -> Result<(), StoreError> {
        self.faults.step(self.backend().create(location, content), || (), failed("create", location)).await
    }

    async fn read(&self, location: &str) -> Result<Bytes, StoreError> {
        self.faults.step(self.backend().read(location), || (), failed("read", location)).await
    }

    async fn read_range(&self, location: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.faults.step(self.backend().read_range(location, range), || (), failed("read", location)).await
    }

    async fn exists(&self, location: &str) -> Result<bool, StoreError> {
        self.faults.step(self.backend().exists(location), || (), failed("look for", location)).await
    }

    async fn delete(&self, location: &str) -> Result<(), StoreError> {
        self.faults.step(self.backend().delete(location), || (), failed("delete", location)).await
    }

    async fn list(&self, location: &str) -> Result<Vec<Listed>, StoreError> {
        self.faults.step(self.backend().list(location), || (), failed("list", location)).await
    }
}
