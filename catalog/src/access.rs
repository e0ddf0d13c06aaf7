//! Tenants, datasets and API keys: who a request is from and what it may touch.
//!
//! Keys are kept as SHA-256 digests: they are random and long, so a slow hash would protect nothing and cost each
//! request. All digests are compared in constant time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use signaldb_model::{DatasetId, TenantId};
use subtle::ConstantTimeEq;
use thiserror::Error;

use crate::database::{CatalogError, Database, Row, statement};
use crate::session::{self, Claims, KeyId, SESSION_TOKEN_BYTES};

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
    /// 401. Too old, of a key that is gone, or made up: which, is nobody's business.
    #[error("the session has ended: log in again")]
    SessionEnded,
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
    keys: Vec<ApiKey>,
}

#[derive(Debug)]
struct ApiKey {
    digest: [u8; 32],
    /// How session tokens name it.
    session_id: KeyId,
    tenant: TenantId,
}

impl Tenants {
    fn key(&self, key: &str) -> Option<&ApiKey> {
        let offered = digest(key);
        self.keys.iter().find(|key| bool::from(key.digest.ct_eq(&offered)))
    }

    /// The owner of a key as far as it may have what it asks for.
    fn permit(
        &self,
        owner: &TenantId,
        tenant: Option<TenantId>,
        dataset: Option<DatasetId>,
    ) -> Result<Identity, AccessError> {
        if tenant.is_some_and(|tenant| tenant != *owner) {
            return Err(AccessError::Forbidden);
        }
        let (default, datasets) = self.by_id.get(owner).ok_or(AccessError::Forbidden)?;
        let dataset = dataset.unwrap_or_else(|| default.clone());
        if !datasets.contains(&dataset) {
            return Err(AccessError::Forbidden);
        }
        Ok(Identity { tenant: owner.clone(), dataset })
    }
}

impl Access {
    /// Opens the tables, writes the configured tenants into them and loads everything.
    pub async fn open(database: Database, enabled: bool, configured: &[TenantConfig]) -> Result<Self, CatalogError> {
        database.create_tables(SCHEMA).await?;
        let access = Self { enabled, database, tenants: Arc::default() };
        for tenant in configured {
            access.store(tenant).await?;
        }
        access.reload().await?;
        Ok(access)
    }

    async fn store(&self, tenant: &TenantConfig) -> Result<(), CatalogError> {
        let action = "store a tenant";
        let id = tenant.id.as_str();
        let upsert = "INSERT INTO tenants VALUES (?, ?)
            ON CONFLICT (id) DO UPDATE SET default_dataset = excluded.default_dataset";
        let default = tenant.default_dataset.as_str();
        self.database.execute(action, &statement(upsert, [id.into(), default.into()])).await?;
        for dataset in tenant.datasets.iter().chain([&tenant.default_dataset]) {
            self.store_dataset(&tenant.id, dataset).await?;
        }
        // Keys that left the configuration lose their access; in one step, for other nodes read the same tables.
        let digests: Vec<([u8; 32], &str)> =
            tenant.keys.iter().map(|(key, name)| (digest(key), name.as_str())).collect();
        let mut statements = vec![statement("DELETE FROM api_keys WHERE tenant = ?", [id.into()])];
        let insert = "INSERT INTO api_keys VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
        for (digest, name) in &digests {
            statements.push(statement(insert, [digest[..].into(), id.into(), (*name).into()]));
        }
        self.database.transact(action, &statements, |_| true).await.map(drop)
    }

    async fn store_dataset(&self, tenant: &TenantId, dataset: &DatasetId) -> Result<(), CatalogError> {
        let insert = "INSERT INTO datasets VALUES (?, ?) ON CONFLICT DO NOTHING";
        let arguments = [tenant.as_str().into(), dataset.as_str().into()];
        self.database.execute("store a dataset", &statement(insert, arguments)).await
    }

    /// Reads everything again: other nodes write the same tables.
    ///
    /// # Errors
    /// When the database does not answer; what was known stays.
    pub async fn reload(&self) -> Result<(), CatalogError> {
        let action = "load the tenants";
        let all = async |select: &'static str| self.database.fetch(action, &statement(select, [])).await;
        let rows = all("SELECT id, default_dataset FROM tenants").await?;
        let datasets = all("SELECT tenant, id FROM datasets").await?;
        let keys = all("SELECT sha256, tenant FROM api_keys").await?;
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
            let digest = row.bytes(0).ok().and_then(|bytes| bytes.try_into().ok());
            if let (Some(digest), Some(tenant)) = (digest, tenant_of(row, 1)) {
                tenants.keys.push(ApiKey { digest, session_id: session::key_id(&digest), tenant });
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
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let key = known.key(key.ok_or(AccessError::UnknownKey)?).ok_or(AccessError::UnknownKey)?;
        known.permit(&key.tenant, tenant, dataset)
    }

    /// A token that stands for a key until `until`, in seconds since 1970, on every node that is given this `secret`.
    ///
    /// # Errors
    /// [`AccessError::UnknownKey`] for a key that nobody has.
    pub fn open_session(&self, key: &str, secret: &[u8], until: u64) -> Result<[u8; SESSION_TOKEN_BYTES], AccessError> {
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let key = known.key(key).ok_or(AccessError::UnknownKey)?;
        Ok(session::seal(&key.digest, secret, until))
    }

    /// Who a request with such a token is from; `now` is in seconds since 1970.
    ///
    /// # Errors
    /// [`AccessError::SessionEnded`] for a token that does not hold (any more), [`AccessError::Forbidden`] as for
    /// [`Self::identify`].
    pub fn resume_session(
        &self,
        token: &[u8],
        secret: &[u8],
        now: u64,
        tenant: Option<TenantId>,
        dataset: Option<DatasetId>,
    ) -> Result<Identity, AccessError> {
        let claims = Claims::read(token).ok_or(AccessError::SessionEnded)?;
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let named = |key: &&ApiKey| key.session_id == claims.key_id && claims.holds(&key.digest, secret);
        let key = known.keys.iter().find(named).ok_or(AccessError::SessionEnded)?;
        if now >= claims.until {
            return Err(AccessError::SessionEnded);
        }
        known.permit(&key.tenant, tenant, dataset)
    }

    /// Remembers a dataset that a request used while authentication is off.
    pub async fn note_use(&self, identity: &Identity) -> Result<(), CatalogError> {
        if self.datasets(&identity.tenant).contains(&identity.dataset) {
            return Ok(());
        }
        let insert = "INSERT INTO tenants VALUES (?, 'default') ON CONFLICT DO NOTHING";
        let tenant = statement(insert, [identity.tenant.as_str().into()]);
        self.database.execute("store a tenant", &tenant).await?;
        self.store_dataset(&identity.tenant, &identity.dataset).await?;
        self.reload().await
    }

    /// The tenant's datasets.
    pub fn datasets(&self, tenant: &TenantId) -> Datasets {
        let known = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        known.by_id.get(tenant).map(|(_, datasets)| datasets.clone()).unwrap_or_default()
    }
}

fn tenant_of(row: &Row, at: usize) -> Option<TenantId> {
    TenantId::new(&row.text(at).ok()?).ok()
}

fn dataset_of(row: &Row, at: usize) -> Option<DatasetId> {
    DatasetId::new(&row.text(at).ok()?).ok()
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::PoolConfig;

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
        let database = Database::open("sqlite::memory:", &PoolConfig::default()).await.expect("opens");
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
    async fn a_session_is_its_key_for_a_while() {
        let access = access(true).await;
        let token = access.open_session("sk-acme", b"secret", 100).expect("a known key");
        let who = |token: &[u8], secret: &[u8], now, tenant, dataset| {
            access.resume_session(token, secret, now, tenant, dataset)
        };
        let expected = Identity { tenant: tenant("acme"), dataset: dataset("production") };
        assert_eq!(who(&token, b"secret", 99, None, None), Ok(expected.clone()));
        assert_eq!(who(&token, b"secret", 0, Some(tenant("acme")), None), Ok(expected));
        assert_eq!(who(&token, b"secret", 99, Some(tenant("other")), None), Err(AccessError::Forbidden));
        assert_eq!(who(&token, b"secret", 99, None, Some(dataset("main"))), Err(AccessError::Forbidden));
        assert_eq!(who(&token, b"secret", 100, None, None), Err(AccessError::SessionEnded));
        assert_eq!(who(&token, b"public", 99, None, None), Err(AccessError::SessionEnded));
        assert_eq!(who(&token[1..], b"secret", 99, None, None), Err(AccessError::SessionEnded));
        assert_eq!(access.open_session("sk-nobody", b"secret", 100), Err(AccessError::UnknownKey));
        let gone = "DELETE FROM api_keys WHERE tenant = 'acme'";
        access.database.execute("revoke", &statement(gone, [])).await.expect("deletes");
        access.reload().await.expect("reads");
        assert_eq!(who(&token, b"secret", 99, None, None), Err(AccessError::SessionEnded));
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
        let rows = access.database.fetch("look", &statement("SELECT sha256 FROM api_keys", [])).await.expect("keys");
        let stored = rows[0].bytes(0).expect("bytes");
        assert_eq!(stored.len(), 32);
        assert_ne!(&stored[..], b"sk-acme");
    }
}
