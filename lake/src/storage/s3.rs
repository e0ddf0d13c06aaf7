//! The client of a bucket: what the configuration says, and beyond that the `AWS_*` environment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::client::SpawnedReqwestConnector;
use object_store::{BackoffConfig, ClientConfigKey, RetryConfig, StaticCredentialProvider};
use tokio::runtime::Handle;

/// Repeats of a request that the server refused for the moment, or that found no server.
const RETRIES_MAX: usize = 4;
/// No repeat begins later than this after the first attempt. With the timeout of one attempt, 30 s or `AWS_TIMEOUT`,
/// it bounds every call; whoever asked has pauses of its own between calls.
const RETRY_TIMEOUT: Duration = Duration::from_secs(25);
/// Longest pause between attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How to reach a bucket. What is `None` comes from the `AWS_*` environment, then from S3's defaults.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    /// `https://host:port`, without the bucket; default Amazon's of the region.
    pub endpoint: Option<String>,
    /// Default `us-east-1`.
    pub region: Option<String>,
    /// Plain HTTP, for servers on a private network.
    pub allow_http: Option<bool>,
    /// `host/bucket/key` instead of `bucket.host/key`; the default.
    pub path_style: Option<bool>,
    /// How long one request may take, from its first byte to the last of the answer; default 30 s.
    pub timeout: Option<Duration>,
    pub credentials: Option<S3Credentials>,
}

/// A static key. Never shown.
#[derive(Clone)]
pub struct S3Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Credentials(***)")
    }
}

/// `io` drives the connections, so that a query that keeps its own runtime busy does not make requests time out.
pub(super) fn connect(bucket: &str, options: &S3Options, io: Handle) -> object_store::Result<AmazonS3> {
    let backoff = BackoffConfig { max_backoff: BACKOFF_MAX, ..BackoffConfig::default() };
    let retry = RetryConfig { backoff, max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retry)
        .with_http_connector(SpawnedReqwestConnector::new(io));
    if let Some(endpoint) = endpoint(bucket, options) {
        // The key that beats AWS_ENDPOINT_URL and AWS_ENDPOINT_URL_S3.
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(allow_http) = options.allow_http {
        builder = builder.with_allow_http(allow_http);
    }
    if let Some(path_style) = options.path_style {
        builder = builder.with_virtual_hosted_style_request(!path_style);
    }
    if let Some(timeout) = options.timeout {
        let key = AmazonS3ConfigKey::Client(ClientConfigKey::Timeout);
        builder = builder.with_config(key, format!("{}ms", timeout.as_millis()));
    }
    if let Some(S3Credentials { access_key_id, secret_access_key }) = options.credentials.clone() {
        // As a provider, so that no AWS_SESSION_TOKEN of another key gets in.
        let credential = AwsCredential { key_id: access_key_id, secret_key: secret_access_key, token: None };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
    }
    builder.build()
}

/// What a client of the tables may be told of the options: all but the key. What is not configured, each client finds out
/// by itself, as this node does.
pub(super) fn client_properties(options: &S3Options) -> BTreeMap<&'static str, String> {
    let mut properties = BTreeMap::new();
    if let Some(endpoint) = &options.endpoint {
        properties.insert("s3.endpoint", endpoint.clone());
    }
    if let Some(region) = &options.region {
        // Java's clients have a name of their own for it.
        properties.insert("s3.region", region.clone());
        properties.insert("client.region", region.clone());
    }
    // Amazon's own endpoints take both; a server of one's own is asked as this node asks it.
    if options.endpoint.is_some() || options.path_style.is_some() {
        let path_style = options.path_style.unwrap_or(true);
        properties.insert("s3.path-style-access", path_style.to_string());
        properties.insert("s3.force-virtual-addressing", (!path_style).to_string());
    }
    properties
}

/// The endpoint as the builder wants it: with the bucket in the host unless the path names it.
fn endpoint(bucket: &str, options: &S3Options) -> Option<String> {
    let endpoint = options.endpoint.as_deref()?.trim_end_matches('/');
    match (options.path_style, endpoint.split_once("://")) {
        (Some(false), Some((scheme, host))) => Some(format!("{scheme}://{bucket}.{host}")),
        _ => Some(endpoint.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_is_in_the_path_or_in_the_host() {
        let options = |path_style| S3Options {
            endpoint: Some("http://127.0.0.1:9000/".to_owned()),
            path_style,
            ..S3Options::default()
        };
        for (path_style, expected) in [
            (None, "http://127.0.0.1:9000"),
            (Some(true), "http://127.0.0.1:9000"),
            (Some(false), "http://tables.127.0.0.1:9000"),
        ] {
            assert_eq!(endpoint("tables", &options(path_style)).as_deref(), Some(expected), "{path_style:?}");
        }
        assert_eq!(endpoint("tables", &S3Options::default()), None);
    }

    #[test]
    fn keys_are_never_shown() {
        let credentials =
            S3Credentials { access_key_id: "the-key".to_owned(), secret_access_key: "the-secret".to_owned() };
        let shown = format!("{:?}", S3Options { credentials: Some(credentials), ..S3Options::default() });
        assert!(!shown.contains("the-key") && !shown.contains("the-secret"), "{shown}");
    }

    #[test]
    fn clients_are_told_where_but_not_with_which_key() {
        let credentials =
            S3Credentials { access_key_id: "the-key".to_owned(), secret_access_key: "the-secret".to_owned() };
        let options = S3Options {
            endpoint: Some("http://127.0.0.1:9000".to_owned()),
            region: Some("eu-central-1".to_owned()),
            credentials: Some(credentials),
            ..S3Options::default()
        };
        let told: Vec<(&str, String)> = client_properties(&options).into_iter().collect();
        let told: Vec<(&str, &str)> = told.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let expected = [
            ("client.region", "eu-central-1"),
            ("s3.endpoint", "http://127.0.0.1:9000"),
            ("s3.force-virtual-addressing", "false"),
            ("s3.path-style-access", "true"),
            ("s3.region", "eu-central-1"),
        ];
        assert_eq!(told, expected);
        assert!(client_properties(&S3Options::default()).is_empty());
    }
}
