//! Where the tables are: a directory, a bucket, or memory.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, Secret, Time};

/// With less no request would ever succeed.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Which adapter holds the tables.
    pub default: String,
    pub adapters: BTreeMap<String, Adapter>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Adapter {
    /// `filesystem`, `s3`, or `memory` for tests.
    #[serde(rename = "type")]
    pub kind: String,
    /// `file://PATH`, default `file://<node.data_dir>/storage`; or `s3://BUCKET`.
    pub url: Option<String>,
    pub prefix: String,
    #[serde(skip_serializing_if = "AdapterOptions::is_empty")]
    pub options: AdapterOptions,
}

/// How to reach a bucket; what is missing comes from the `AWS_*` environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterOptions {
    /// `https://host:port`, without the bucket; default Amazon's of the region.
    pub endpoint: Option<String>,
    /// Default `us-east-1`.
    pub region: Option<String>,
    /// Lets the endpoint be `http://`.
    pub allow_http: Option<bool>,
    /// `host/bucket/key`, the default, or `bucket.host/key`.
    pub path_style: Option<bool>,
    /// How long one request may take; default 30 s.
    pub timeout: Option<Time>,
    pub access_key_id: Option<Secret>,
    pub secret_access_key: Option<Secret>,
}

impl AdapterOptions {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for Storage {
    fn default() -> Self {
        let local = Adapter { kind: "filesystem".to_owned(), ..Adapter::default() };
        Self { default: "local".to_owned(), adapters: BTreeMap::from([("local".to_owned(), local)]) }
    }
}

pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let Some(adapter) = config.storage.adapters.get(&config.storage.default) else {
        let names: Vec<&String> = config.storage.adapters.keys().collect();
        let message = format!("{:?} is not one of the adapters {names:?}", config.storage.default);
        return Err(ConfigError::Value { key: "storage.default".to_owned(), message });
    };
    let wrong = |(key, message): (&str, String)| {
        Err(ConfigError::Value { key: format!("storage.adapters.{}.{key}", config.storage.default), message })
    };
    let scheme = match adapter.kind.as_str() {
        "filesystem" => "file://PATH",
        "s3" => "s3://BUCKET",
        "memory" if config.cluster.is_replicated() => {
            return wrong(("type", "\"memory\" cannot be shared by nodes; expected filesystem or s3".to_owned()));
        }
        "memory" => "memory://",
        other => return wrong(("type", format!("{other:?} is not filesystem, s3 or memory"))),
    };
    let (expected, _) = scheme.split_once("://").unwrap_or_default();
    match adapter.url.as_deref().map(|url| url.split_once("://")) {
        None if adapter.kind == "s3" => return wrong(("url", format!("is missing; expected {scheme}"))),
        None => {}
        Some(Some((found, rest))) if found == expected && (found != "s3" || names_bucket(rest)) => {}
        Some(_) => {
            let url = adapter.url.as_deref().unwrap_or_default();
            return wrong(("url", format!("{url:?} is not {scheme}, which type = {:?} wants", adapter.kind)));
        }
    }
    if adapter.kind == "s3" {
        return check_options(&adapter.options).or_else(wrong);
    }
    if !adapter.options.is_empty() {
        return wrong(("options", format!("type = {:?} has none; expected them with type = \"s3\"", adapter.kind)));
    }
    Ok(())
}

/// Whether `BUCKET/path` begins with a name that a bucket can have.
fn names_bucket(rest: &str) -> bool {
    let name = rest.split('/').next().unwrap_or_default();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    !name.is_empty() && name.chars().all(fits)
}

fn check_options(options: &AdapterOptions) -> Result<(), (&'static str, String)> {
    if let Some(endpoint) = &options.endpoint {
        match endpoint.split_once("://") {
            // A login there would be shown in every error.
            Some((_, host)) if host.contains('@') => {
                let message = "has a login in it; expected access_key_id and secret_access_key beside it";
                return Err(("options.endpoint", message.to_owned()));
            }
            Some(("https", host)) if !host.is_empty() => {}
            Some(("http", host)) if !host.is_empty() && options.allow_http == Some(true) => {}
            Some(("http", host)) if !host.is_empty() => {
                let message = format!("{endpoint:?} is not encrypted; expected https://, or options.allow_http = true");
                return Err(("options.endpoint", message));
            }
            _ => return Err(("options.endpoint", format!("{endpoint:?} is not https://HOST or http://HOST:PORT"))),
        }
    }
    if options.timeout.is_some_and(|timeout| timeout.0 < TIMEOUT_MIN) {
        return Err(("options.timeout", "is too short for any request; expected 100ms or more".to_owned()));
    }
    match (&options.access_key_id, &options.secret_access_key) {
        (Some(_), None) => Err(("options.secret_access_key", "is missing beside access_key_id".to_owned())),
        (None, Some(_)) => Err(("options.access_key_id", "is missing beside secret_access_key".to_owned())),
        _ => Ok(()),
    }
}
