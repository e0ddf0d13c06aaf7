//! Whose request it is, from headers or gRPC metadata (CONTRACT, "Authentication").

use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use signaldb_catalog::{AccessError, Identity};
use signaldb_model::{DatasetId, TenantId};

use crate::app::App;
use crate::error::{ApiError, Kind};

/// Clients disagree on padding; Go's Flight client sends none.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A bearer that says the same as Basic credentials: base64 of `tenant:key`. Clients that can send a token and no header
/// use it (docs/iceberg.md); with authentication off a handshake answers it, without a key.
const PAIR_PREFIX: &str = "sdb1.";
/// The session token of a handshake (`catalog/src/session.rs`) in base64.
const SESSION_PREFIX: &str = "sdb2.";
/// How long a session lasts; then the client logs in again.
const SESSION_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Says who asks.
///
/// # Errors
/// 400 for missing or malformed headers, 401 for an unknown key, 403 for a tenant or dataset that is not the key's;
/// 503 while the node is draining.
pub(crate) fn identify(app: &App, headers: &HeaderMap) -> Result<Identity, ApiError> {
    if app.draining() {
        return Err(ApiError::new(Kind::Unavailable, "the node is stopping"));
    }
    let credentials = Credentials::read(headers)?;
    if app.access.enabled() {
        match &credentials.key {
            None => {
                return Err(ApiError::invalid("the Authorization header is missing")
                    .with_hint("send `Authorization: Bearer <key>` and `X-Tenant-ID: <tenant>`"));
            }
            Some(Key::Session(token)) => {
                let (secret, now) = (app.session_secret.as_deref().ok_or(AccessError::SessionEnded)?, seconds(app));
                return Ok(app.access.resume_session(token, secret, now, credentials.tenant, credentials.dataset)?);
            }
            Some(Key::Api(_)) if credentials.tenant.is_none() => {
                return Err(ApiError::invalid("the X-Tenant-ID header is missing"));
            }
            Some(Key::Api(_)) => {}
        }
    }
    Ok(app.access.identify(credentials.api_key(), credentials.tenant.clone(), credentials.dataset.clone())?)
}

/// Seconds since 1970.
fn seconds(app: &App) -> u64 {
    app.clock.now().0 / 1_000_000_000
}

/// Lets operators in: with `auth.admin_key` set only its bearer, else anybody who may use the node.
pub(crate) fn authorize_admin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(expected) = &app.admin_key else {
        return if app.access.enabled() { identify(app, headers).map(drop) } else { Ok(()) };
    };
    let offered = Credentials::read(headers)?.key;
    match offered {
        Some(Key::Api(key)) if constant_time_eq(key.as_bytes(), expected.as_bytes()) => Ok(()),
        Some(_) => Err(ApiError::new(Kind::Forbidden, "this needs the admin key")),
        None => Err(ApiError::invalid("the Authorization header is missing")),
    }
}

/// Lets operators in, and says whose tables they mean: with an admin key the tenant comes from the header alone.
pub(crate) fn identify_admin(app: &App, headers: &HeaderMap) -> Result<Identity, ApiError> {
    authorize_admin(app, headers)?;
    if app.admin_key.is_none() {
        return identify(app, headers);
    }
    let mut without_key = headers.clone();
    without_key.remove(AUTHORIZATION);
    if !app.access.enabled() {
        return identify(app, &without_key);
    }
    let tenant = headers.get("x-tenant-id").and_then(|value| value.to_str().ok());
    let tenant = tenant.ok_or_else(|| ApiError::invalid("the X-Tenant-ID header is missing"))?;
    let tenant = TenantId::new(tenant).map_err(|error| ApiError::invalid(error.to_string()))?;
    let dataset = app.access.datasets(&tenant).into_iter().next();
    let dataset = dataset.ok_or_else(|| ApiError::invalid("there is no such tenant"))?;
    Ok(Identity { tenant, dataset })
}

/// Whose queries somebody may see and stop: `None` is everybody's, with the admin key or where all is open, unless a tenant
/// is named.
pub(crate) fn reach(app: &App, headers: &HeaderMap) -> Result<Option<TenantId>, ApiError> {
    let credentials = Credentials::read(headers)?;
    if let (Some(expected), Some(offered)) = (&app.admin_key, credentials.api_key())
        && constant_time_eq(offered.as_bytes(), expected.as_bytes())
    {
        return Ok(credentials.tenant);
    }
    if app.admin_key.is_none() && !app.access.enabled() {
        return Ok(credentials.tenant);
    }
    Ok(Some(identify(app, headers)?.tenant))
}

/// Whether a query may see `system.*` beyond its tenant: where all is open, else with the admin key beside the tenant's own.
pub(crate) fn sees_all_tenants(app: &App, headers: &HeaderMap) -> Result<bool, ApiError> {
    match (&app.admin_key, header(headers, "x-signaldb-admin-key")?) {
        (None, _) => Ok(!app.access.enabled()),
        (Some(_), None) => Ok(false),
        (Some(expected), Some(offered)) if constant_time_eq(offered.as_bytes(), expected.as_bytes()) => Ok(true),
        (Some(_), Some(_)) => Err(ApiError::new(Kind::Forbidden, "X-SignalDB-Admin-Key is not the admin key")),
    }
}

fn constant_time_eq(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// The token that a Flight handshake answers: it stands for the key for a day, on every node, and does not hold the key.
///
/// # Errors
/// As for [`identify`]; without a key there is nothing to log in with, and without a secret nothing to seal it with.
pub(crate) fn session_token(app: &App, headers: &HeaderMap) -> Result<String, ApiError> {
    identify(app, headers)?;
    let credentials = Credentials::read(headers)?;
    if !app.access.enabled() {
        let tenant = credentials.tenant.as_ref();
        return Ok(tenant.map_or_else(
            || "anonymous".to_owned(),
            |tenant| format!("{PAIR_PREFIX}{}", BASE64.encode(format!("{tenant}:"))),
        ));
    }
    let Some(key) = credentials.api_key() else {
        return Err(ApiError::invalid(
            "a session is opened with `Authorization: Basic <tenant:key>`, not with a session",
        ));
    };
    let Some(secret) = &app.session_secret else {
        // What is public would be all that seals it.
        let message = "sessions cannot be sealed, for this cluster was founded before it had a secret: set cluster.secret \
                       on every node, or send the key with every call";
        return Err(ApiError::new(Kind::NotImplemented, message));
    };
    let until = seconds(app) + SESSION_LIFETIME.as_secs();
    let token = app.access.open_session(key, secret, until)?;
    Ok(format!("{SESSION_PREFIX}{}", BASE64.encode(token)))
}

/// What the headers claim; nothing of it is checked yet.
#[derive(Debug, Default)]
pub(crate) struct Credentials {
    pub(crate) key: Option<Key>,
    tenant: Option<TenantId>,
    dataset: Option<DatasetId>,
}

/// What a request proves itself with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Api(String),
    /// A session token.
    Session(Vec<u8>),
}

impl Credentials {
    fn api_key(&self) -> Option<&str> {
        match &self.key {
            Some(Key::Api(key)) => Some(key),
            Some(Key::Session(_)) | None => None,
        }
    }

    pub(crate) fn read(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut out = Self::default();
        if let Some(value) = header(headers, "authorization")? {
            out.read_authorization(value)?;
        }
        let tenant = match header(headers, "x-tenant-id")? {
            Some(tenant) => Some(tenant),
            None => header(headers, "x-scope-orgid")?,
        };
        if let Some(tenant) = tenant {
            let tenant = TenantId::new(tenant).map_err(|error| ApiError::invalid(error.to_string()))?;
            if out.tenant.as_ref().is_some_and(|claimed| *claimed != tenant) {
                return Err(ApiError::invalid("Authorization and X-Tenant-ID name different tenants"));
            }
            out.tenant = Some(tenant);
        }
        if let Some(dataset) = header(headers, "x-dataset-id")? {
            out.dataset = Some(DatasetId::new(dataset).map_err(|error| ApiError::invalid(error.to_string()))?);
        }
        Ok(out)
    }

    fn read_authorization(&mut self, value: &str) -> Result<(), ApiError> {
        let malformed = || ApiError::invalid("the Authorization header is neither Bearer nor Basic");
        let (scheme, rest) = value.split_once(' ').ok_or_else(malformed)?;
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(malformed());
        }
        if scheme.eq_ignore_ascii_case("basic") {
            return self.read_pair(rest);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(malformed());
        }
        if let Some(pair) = rest.strip_prefix(PAIR_PREFIX) {
            return self.read_pair(pair);
        }
        self.key = Some(match rest.strip_prefix(SESSION_PREFIX) {
            Some(token) => Key::Session(BASE64.decode(token).map_err(|_| malformed())?),
            None => Key::Api(rest.to_owned()),
        });
        Ok(())
    }

    /// base64 of `tenant:key`.
    fn read_pair(&mut self, encoded: &str) -> Result<(), ApiError> {
        let malformed = || ApiError::invalid("Basic credentials are not base64 of <tenant>:<key>");
        let decoded = BASE64.decode(encoded).map_err(|_| malformed())?;
        let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
        let (tenant, key) = decoded.split_once(':').ok_or_else(malformed)?;
        self.tenant = Some(TenantId::new(tenant).map_err(|error| ApiError::invalid(error.to_string()))?);
        self.key = Some(Key::Api(key.to_owned()));
        Ok(())
    }
}

/// The text of a header.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, ApiError> {
    let value = headers.get(name).map(|value| value.to_str()).transpose();
    value.map_err(|_| ApiError::invalid(format!("the {name} header is not ASCII text")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&'static str, &str)]) -> Result<Credentials, ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, value.parse().expect("a header value"));
        }
        Credentials::read(&headers)
    }

    #[test]
    fn bearer_and_basic_say_the_same() {
        let bearer =
            read(&[("authorization", "Bearer sk"), ("x-tenant-id", "acme"), ("x-dataset-id", "d")]).expect("reads");
        assert_eq!((bearer.api_key(), bearer.tenant.as_ref().map(TenantId::as_str)), (Some("sk"), Some("acme")));
        for encoded in ["YWNtZTpzaw==", "YWNtZTpzaw"] {
            let basic = read(&[("authorization", &format!("Basic {encoded}"))]).expect("reads");
            assert_eq!((basic.api_key(), basic.tenant.as_ref().map(TenantId::as_str)), (Some("sk"), Some("acme")));
        }
        let alias = read(&[("x-scope-orgid", "acme")]).expect("reads");
        assert_eq!(alias.tenant.as_ref().map(TenantId::as_str), Some("acme"));
    }

    #[test]
    fn malformed_headers_are_bad_requests() {
        let cases: &[&[(&'static str, &str)]] = &[
            &[("authorization", "sk")],
            &[("authorization", "Bearer ")],
            &[("authorization", "Digest x")],
            &[("authorization", "Basic !!")],
            &[("x-tenant-id", "NOT VALID")],
            &[("x-dataset-id", "a/b")],
            &[("authorization", "Basic YWNtZTpzaw=="), ("x-tenant-id", "other")],
        ];
        for case in cases {
            assert_eq!(read(case).expect_err("refused").kind, Kind::Invalid, "{case:?}");
        }
    }

    #[test]
    fn tokens_of_both_formats_are_read() {
        let old = read(&[("authorization", "Bearer sdb1.YWNtZTpzaw==")]).expect("reads");
        assert_eq!((old.api_key(), old.tenant.as_ref().map(TenantId::as_str)), (Some("sk"), Some("acme")));
        let new = read(&[("authorization", "Bearer sdb2.AAEC")]).expect("reads");
        assert_eq!((new.key, new.tenant), (Some(Key::Session(vec![0, 1, 2])), None));
        assert_eq!(read(&[("authorization", "Bearer sdb2.!")]).expect_err("refused").kind, Kind::Invalid);
    }
}
