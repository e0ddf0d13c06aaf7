//! A bucket: whatever `object_store` speaks to. A PUT that was answered is durable.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future, stream};
use object_store::path::Path;
use object_store::{
    Error, GetOptions, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, UploadPart,
};

use super::{Backend, Listed, StoreError};

/// Larger files are sent in parts, so that a lost connection costs a part.
const PUT_BYTES_MAX: usize = 16 << 20;
/// All parts but the last have this size; S3 wants 5 MiB or more.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file that are on their way at once.
const PARTS_AT_ONCE: usize = 4;
/// How long a failed upload may take to be taken back.
const ABORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest text of a server that is passed on, characters.
const FAILURE_CHARS_MAX: usize = 400;

/// What the object store said, in one line. It has no credentials: those are in headers, which errors never show.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct ObjectFailure {
    pub(super) not_found: bool,
    text: String,
}

/// Objects below `url`, for example `s3://bucket`.
pub(super) struct Objects {
    objects: Arc<dyn ObjectStore>,
    /// Without a trailing slash.
    url: String,
}

impl Objects {
    pub(super) fn new(objects: Arc<dyn ObjectStore>, url: String) -> Self {
        Self { objects, url }
    }

    fn path(&self, location: &str) -> Result<Path, StoreError> {
        let key = location.strip_prefix(self.url.as_str()).and_then(|rest| rest.strip_prefix('/'));
        let path = key.filter(|key| !key.is_empty()).and_then(|key| Path::parse(key).ok());
        path.ok_or_else(|| StoreError::Elsewhere { location: location.to_owned(), root: self.url.clone() })
    }

    async fn get(&self, location: &str, options: GetOptions) -> Result<Bytes, StoreError> {
        let path = self.path(location)?;
        let failed = failed("read", location);
        match self.objects.get_opts(&path, options).await {
            Ok(found) => found.bytes().await.map_err(failed),
            Err(error) => Err(failed(error)),
        }
    }

    async fn put_parts(&self, path: &Path, content: &Bytes) -> Result<(), Error> {
        let mut upload = self.objects.put_multipart_opts(path, PutMultipartOptions::default()).await?;
        let sent = send_parts(upload.as_mut(), content).await;
        if sent.is_err() {
            // What this does not reach, a lifecycle rule of the bucket does.
            let _ = tokio::time::timeout(ABORT_TIMEOUT, upload.abort()).await;
        }
        sent
    }
}

#[async_trait]
impl Backend for Objects {
    async fn write(&self, location: &str, content: Bytes) -> Result<(), StoreError> {
        let path = self.path(location)?;
        let written = if content.len() > PUT_BYTES_MAX {
            self.put_parts(&path, &content).await
        } else {
            self.objects.put_opts(&path, content.into(), PutOptions::default()).await.map(drop)
        };
        written.map_err(failed("write", location))
    }

    async fn create(&self, location: &str, content: Bytes) -> Result<(), StoreError> {
        let path = self.path(location)?;
        match self.objects.put_opts(&path, content.clone().into(), PutMode::Create.into()).await {
            Ok(_) | Err(Error::AlreadyExists { .. }) => Ok(()),
            Err(error) if knows_no_conditions(&error) => self.write(location, content).await,
            Err(error) => Err(failed("create", location)(error)),
        }
    }

    async fn read(&self, location: &str) -> Result<Bytes, StoreError> {
        self.get(location, GetOptions::new()).await
    }

    async fn read_range(&self, location: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.get(location, GetOptions::new().with_range(Some(range))).await
    }

    async fn exists(&self, location: &str) -> Result<bool, StoreError> {
        let path = self.path(location)?;
        match self.objects.get_opts(&path, GetOptions::new().with_head(true)).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failed("look for", location)(error)),
        }
    }

    async fn delete(&self, location: &str) -> Result<(), StoreError> {
        let path = self.path(location)?;
        let paths = stream::once(future::ready(Ok(path))).boxed();
        match self.objects.delete_stream(paths).try_collect::<Vec<Path>>().await {
            Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("delete", location)(error)),
        }
    }

    async fn list(&self, location: &str) -> Result<Vec<Listed>, StoreError> {
        let path = self.path(location)?;
        let listed = |object: ObjectMeta| Listed {
            location: format!("{}/{}", self.url, object.location),
            modified_ms: object.last_modified.timestamp_millis(),
            bytes: object.size,
        };
        self.objects.list(Some(&path)).map_ok(listed).try_collect().await.map_err(failed("list", location))
    }
}

async fn send_parts(upload: &mut dyn MultipartUpload, content: &Bytes) -> Result<(), Error> {
    let mut parts: Vec<UploadPart> = Vec::new();
    for from in (0..content.len()).step_by(PART_BYTES) {
        let part = content.slice(from..content.len().min(from + PART_BYTES));
        parts.push(upload.put_part(part.into()));
    }
    stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_collect::<Vec<()>>().await?;
    upload.complete().await.map(drop)
}

/// Whether the server refuses `If-None-Match` as such. An outage must not pass for that: it may hide another's file.
fn knows_no_conditions(error: &Error) -> bool {
    matches!(error, Error::NotImplemented { .. } | Error::NotSupported { .. })
        || error.to_string().contains("501 Not Implemented")
}

pub(super) fn failed(action: &'static str, location: &str) -> impl FnOnce(Error) -> StoreError {
    let location = location.to_owned();
    move |error| {
        let not_found = matches!(error, Error::NotFound { .. });
        StoreError::Object { action, location, source: ObjectFailure { not_found, text: one_line(&error.to_string()) } }
    }
}

/// The code and message of an XML answer instead of all of it.
fn one_line(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once('<').map(|(value, _)| value)
    };
    let head = text.split('<').next().unwrap_or_default().trim_end();
    let line = match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{head} {code}: {message}"),
        (Some(code), None) => format!("{head} {code}"),
        _ => head.to_owned(),
    };
    line.chars().take(FAILURE_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_answer_becomes_one_line() {
        let answer = "Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?>\n<Error><Code>\
                      SignatureDoesNotMatch</Code><Message>no match</Message><StringToSign>AWS4\nkey</StringToSign></Error>";
        let expected = "Server returned non-2xx status code: 403 Forbidden: SignatureDoesNotMatch: no match";
        assert_eq!(one_line(answer), expected);
        assert_eq!(one_line("connection\nrefused"), "connection refused");
    }

    #[test]
    fn locations_of_other_buckets_are_refused() {
        let objects = Objects::new(Arc::new(object_store::memory::InMemory::new()), "s3://bucket".to_owned());
        assert_eq!(objects.path("s3://bucket/a/b=1").expect("is inside").as_ref(), "a/b=1");
        for outside in ["s3://bucket", "s3://bucket/", "s3://bucket2/a", "s3://bucket/a/../b", "file:///bucket/a"] {
            let error = objects.path(outside).expect_err(outside);
            assert!(error.to_string().contains(outside), "{error}");
        }
    }
}
