//! Tenants, datasets and API keys: who a request is from and what it may touch.
//!
//! Keys are kept as SHA-256 digests: they are random and long, so a slow hash would protect nothing and cost each
//! request. All digests are compared in constant time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use signaldb_model::{DatasetId, TenantId};
use sqlx::Row;
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::database::{CatalogError, Database};

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS tenants (id VARCHAR(63) PRIMARY KEY, default_dataset VARCHAR(63) NOT NULL)",
    "CREATE TABLE IF NOT EXISTS datasets (
        tenant VARCHAR(63) NOT NULL, id VARCHAR(63) NOT NULL, PRIMARY KEY (tenant, id))",
    "CREATE TABLE IF NOT EXISTS api_keys (
        sha256 BLOB PRIMARY KEY, tenant VARCHAR(63) NOT NULL, name VARCHAR(255) NOT NULL)",
];

/// A tenant as configured.
#[derive(Debug, Clone)]
pub struct TenantConfig {
    pub id: TenantId,
    pub default_dataset: DatasetId,
    pub datasets: Vec<DatasetId>,
    /// Key and its name.
    pub keys: Vec<(String, String)>,
}

/// Whose request it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub tenant: TenantId,
    pub dataset: DatasetId,
}

/// Why a request may not go on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AccessError {
    /// 401.
    #[error("the API key is unknown")]
    UnknownKey,
    /// 403. Says nothing about tenants and datasets that the key does not belong to.
    #[error("the API key has no access to this tenant or dataset")]
    Forbidden,
}

/// Datasets of one tenant.
pub type Datasets = BTreeSet<DatasetId>;

/// The tenants, cached from the database.
#[derive(Debug, Clone)]
pub struct Access {
    enabled: bool,
    database: Database,
    tenants: Arc<RwLock<Tenants>>,
}

#[derive(Debug, Default)]
struct Tenants {
    by_id: BTreeMap<TenantId, (DatasetId, Datasets)>,
    keys: Vec<([u8; 32], TenantId)>,
}

impl Access {
    /// Opens the tables, writes the configured tenants into them and loads everything.
    pub async fn open(database: Database, enabled: bool, configured: &[TenantConfig]) -> Result<Self, CatalogError> {
        database.execute_all(SCHEMA).await?;
        let access = Self { enabled, database, tenants: Arc::default() };
        for tenant in configured {
            access.store(tenant).await?;
        }
        access.load().await?;
        Ok(access)
    }

    async fn store(&self, tenant: &TenantConfig) -> Result<(), CatalogError> {
        let action = "store a tenant";
        let pool = &self.database.0;
        sqlx::query("INSERT INTO tenants VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET default_dataset = excluded.default_dataset")
            .bind(tenant.id.as_str())
            .bind(tenant.default_dataset.as_str())
            .execute(pool)
            .await
            .map_err(CatalogError::sql(action))?;
        for dataset in tenant.datasets.iter().chain([&tenant.default_dataset]) {
            self.store_dataset(&tenant.id, dataset).await?;
        }
        // Keys that left the configuration lose their access.
        let clear = sqlx::query("DELETE FROM api_keys WHERE tenant = ?").bind(tenant.id.as_str()).execute(pool);
        clear.await.map_err(CatalogError::sql(action))?;
        for (key, name) in &tenant.keys {
            sqlx::query("INSERT INTO api_keys VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(&digest(key)[..])
                .bind(tenant.id.as_str())
                .bind(name)
                .execute(pool)
                .await
                .map_err(CatalogError::sql(action))?;
        }
        Ok(())
    }

    async fn store_dataset(&self, tenant: &TenantId, dataset: &DatasetId) -> Result<(), CatalogError> {
        sqlx::query("INSERT INTO datasets VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(tenant.as_str())
            .bind(dataset.as_str())
            .execute(&self.database.0)
            .await
            .map(drop)
            .map_err(CatalogError::sql("store a dataset"))
    }

    async fn load(&self) -> Result<(), CatalogError> {
        let action = "load the tenants";
        let pool = &self.database.0;
        let fetch = async {
            let tenants = sqlx::query("SELECT id, default_dataset FROM tenants").fetch_all(pool).await?;
            let datasets = sqlx::query("SELECT tenant, id FROM datasets").fetch_all(pool).await?;
            let keys = sqlx::query("SELECT sha256, tenant FROM api_keys").fetch_all(pool).await?;
            Ok::<_, sqlx::Error>((tenants, datasets, keys))
        };
        let (rows, datasets, keys) = fetch.await.map_err(CatalogError::sql(action))?;
        let mut tenants = Tenants::default();
        for row in &rows {
            if let (Some(tenant), Some(dataset)) = (tenant_of(row, 0), dataset_of(row, 1)) {
                tenants.by_id.insert(tenant, (dataset, Datasets::new()));
            }
        }
        for row in &datasets {
            if let (Some(tenant), Some(dataset)) = (tenant_of(row, 0), dataset_of(row, 1))
                && let Some((_, datasets)) = tenants.by_id.get_mut(&tenant)
            {
                datasets.insert(dataset);
            }
        }
        for row in &keys {
            let digest = row.try_get::<Vec<u8>, _>(0).ok().and_then(|bytes| bytes.try_into().ok());
            if let (Some(digest), Some(tenant)) = (digest, tenant_of(row, 1)) {
                tenants.keys.push((digest, tenant));
            }
        }
        *self.tenants.write().unwrap_or_else(PoisonError::into_inner) = tenants;
        Ok(())
    }

    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Who a request is from. With authentication off, the headers choose, else `default`.
    ///
    /// # Errors
    /// [`AccessError::UnknownKey`] for a key that nobody has, [`AccessError::Forbidden`] for a tenant or dataset that
    /// is not the key's.
    pub fn identify(
        &self,
        key: Option<&str>,
        tenant: Option<TenantId>,
        dataset: Option<DatasetId>,
    ) -> Result<Identity, AccessError> {
        if !self.enabled {
            let tenant = tenant.unwrap_or_else(|| TenantId::new("default").expect("a valid name"));
            let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
            let default = known.by_id.get(&tenant).map(|(dataset, _)| dataset.clone());
            let default = default.unwrap_or_else(|| DatasetId::new("default").expect("a valid name"));
            return Ok(Identity { tenant, dataset: dataset.unwrap_or(default) });
        }
        let offered = digest(key.ok_or(AccessError::UnknownKey)?);
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let owner = known.keys.iter().find(|(digest, _)| bool::from(digest.ct_eq(&offered))).map(|(_, tenant)| tenant);
        let owner = owner.ok_or(AccessError::UnknownKey)?;
        if tenant.is_some_and(|tenant| tenant != *owner) {
            return Err(AccessError::Forbidden);
        }
        let (default, datasets) = known.by_id.get(owner).ok_or(AccessError::Forbidden)?;
        let dataset = dataset.unwrap_or_else(|| default.clone());
        if !datasets.contains(&dataset) {
            return Err(AccessError::Forbidden);
        }
        Ok(Identity { tenant: owner.clone(), dataset })
    }

    /// Remembers a dataset that a request used while authentication is off.
    pub async fn note_use(&self, identity: &Identity) -> Result<(), CatalogError> {
        if self.datasets(&identity.tenant).contains(&identity.dataset) {
            return Ok(());
        }
        sqlx::query("INSERT INTO tenants VALUES (?, 'default') ON CONFLICT DO NOTHING")
            .bind(identity.tenant.as_str())
            .execute(&self.database.0)
            .await
            .map_err(CatalogError::sql("store a tenant"))?;
        self.store_dataset(&identity.tenant, &identity.dataset).await?;
        self.load().await
    }

    /// The tenant's datasets.
    pub fn datasets(&self, tenant: &TenantId) -> Datasets {
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        known.by_id.get(tenant).map(|(_, datasets)| datasets.clone()).unwrap_or_default()
    }
}

fn tenant_of(row: &sqlx::sqlite::SqliteRow, at: usize) -> Option<TenantId> {
    TenantId::new(row.try_get::<&str, _>(at).ok()?).ok()
}

fn dataset_of(row: &sqlx::sqlite::SqliteRow, at: usize) -> Option<DatasetId> {
    DatasetId::new(row.try_get::<&str, _>(at).ok()?).ok()
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid")
    }

    fn dataset(name: &str) -> DatasetId {
        DatasetId::new(name).expect("valid")
    }

    async fn access(enabled: bool) -> Access {
        let acme = TenantConfig {
            id: tenant("acme"),
            default_dataset: dataset("production"),
            datasets: vec![dataset("staging")],
            keys: vec![("sk-acme".into(), "key".into())],
        };
        let other = TenantConfig {
            id: tenant("other"),
            default_dataset: dataset("main"),
            datasets: vec![],
            keys: vec![("sk-other".into(), "key".into())],
        };
        let database = Database::open("sqlite::memory:").await.expect("opens");
        Access::open(database, enabled, &[acme, other]).await.expect("opens")
    }

    #[tokio::test]
    async fn keys_open_their_own_tenant_only() {
        let access = access(true).await;
        let who = |key, tenant, dataset| access.identify(key, tenant, dataset);
        let expected = Identity { tenant: tenant("acme"), dataset: dataset("production") };
        assert_eq!(who(Some("sk-acme"), None, None), Ok(expected.clone()));
        assert_eq!(who(Some("sk-acme"), Some(tenant("acme")), None), Ok(expected));
        assert_eq!(who(Some("sk-acme"), Some(tenant("other")), None), Err(AccessError::Forbidden));
        assert_eq!(who(Some("sk-acme"), None, Some(dataset("main"))), Err(AccessError::Forbidden));
        assert_eq!(who(Some("sk-acme"), None, Some(dataset("staging"))).map(|id| id.dataset), Ok(dataset("staging")));
        assert_eq!(who(Some("sk-nobody"), Some(tenant("acme")), None), Err(AccessError::UnknownKey));
        assert_eq!(who(None, Some(tenant("acme")), None), Err(AccessError::UnknownKey));
    }

    #[tokio::test]
    async fn without_authentication_headers_choose_and_use_creates() {
        let access = access(false).await;
        let identity = access.identify(None, None, None).expect("anonymous");
        assert_eq!(identity, Identity { tenant: tenant("default"), dataset: dataset("default") });
        let fresh = access.identify(None, Some(tenant("fresh")), Some(dataset("x"))).expect("anonymous");
        access.note_use(&fresh).await.expect("stores");
        assert!(access.datasets(&tenant("fresh")).contains(&dataset("x")));
    }

    #[tokio::test]
    async fn keys_are_not_stored_in_clear() {
        let access = access(true).await;
        let row = sqlx::query("SELECT sha256 FROM api_keys").fetch_one(&access.database.0).await.expect("a key");
        let stored: Vec<u8> = row.try_get(0).expect("bytes");
        assert_eq!(stored.len(), 32);
        assert_ne!(&stored[..], b"sk-acme");
    }
}
