//! A bucket that the nodes share: an S3 server in this process, which can refuse requests, or lie about them.
//!
//! It knows what nodes and PyIceberg ask of one: PUT (also `If-None-Match: *`), GET with a range, HEAD, DELETE, lists, and
//! deletes of many. Not uploads in parts: the files of a run stay far below 16 MiB, from which on nodes make them. It
//! serves this machine alone, and looks at nobody's signature. Objects are files, written aside and put in place as a whole.
//! Source: Amazon S3 API Reference.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::random::Random;
use crate::store::{http_date, iso_date};

/// The only bucket.
pub(crate) const NAME: &str = "tables";
/// Larger requests are refused.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Of so many requests that change something, one is answered truly while the server lies. A client that repeats a request
/// four times gives up on every fourth.
const TRUTHS: usize = 4;

/// How the server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Works,
    /// Nothing is done: 503.
    Down,
    /// What changes something is done, and mostly answered 500.
    Lies,
}

/// The running server. Dropping it ends it; the objects stay.
pub(crate) struct Bucket {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    _server: JoinSet<()>,
}

impl Bucket {
    /// Serves the objects below `dir` at an address of this machine.
    pub(crate) async fn start(dir: &Path, host: Ipv4Addr, seed: u64) -> anyhow::Result<Self> {
        let shelf = Arc::new(Shelf::make(dir, seed)?);
        let listener = TcpListener::bind((host, 0)).await.context("bind the bucket's port")?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shelf));
        let mut server = JoinSet::new();
        server.spawn(async move {
            // It ends with the task.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shelf, _server: server })
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.shelf.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    /// Requests that were refused or lied about so far.
    pub(crate) fn disturbed(&self) -> u64 {
        self.shelf.disturbed.load(Ordering::Relaxed)
    }
}

async fn serve(State(shelf): State<Arc<Shelf>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let header = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (range, create) = (header(header::RANGE), header(header::IF_NONE_MATCH).is_some());
    let mode = *shelf.mode.lock().unwrap_or_else(PoisonError::into_inner);
    let answer = match (mode, to_bytes(body, BODY_BYTES_MAX).await) {
        (Mode::Down, _) => {
            shelf.disturbed.fetch_add(1, Ordering::Relaxed);
            Answer::failure(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")
        }
        (_, Err(_)) => Answer::failure(StatusCode::BAD_REQUEST, "IncompleteBody"),
        (_, Ok(body)) => match Asked::new(parts.method, parts.uri.path(), parts.uri.query(), range, create, body) {
            Some(asked) => {
                let lied = mode == Mode::Lies && asked.changes() && shelf.random.below(TRUTHS) > 0;
                let shelf = Arc::clone(&shelf);
                let work = tokio::task::spawn_blocking(move || shelf.answer(&asked).map(|answer| (shelf, answer)));
                match work.await.map_err(io::Error::other).flatten() {
                    Ok((shelf, _)) if lied => {
                        shelf.disturbed.fetch_add(1, Ordering::Relaxed);
                        Answer::failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
                    }
                    Ok((_, answer)) => answer,
                    Err(error) => {
                        eprintln!("the bucket itself failed: {error}");
                        Answer::failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
                    }
                }
            }
            None => Answer::failure(StatusCode::NOT_FOUND, "NoSuchBucket"),
        },
    };
    answer.into_response()
}

/// A request.
#[derive(Debug)]
struct Asked {
    method: Method,
    /// Empty for the bucket itself.
    key: String,
    query: BTreeMap<String, String>,
    range: Option<String>,
    /// Only if there is no such object.
    create: bool,
    body: Bytes,
}

impl Asked {
    /// `None` for another bucket, or what is no text.
    fn new(
        method: Method,
        path: &str,
        query: Option<&str>,
        range: Option<String>,
        create: bool,
        body: Bytes,
    ) -> Option<Self> {
        let path = decode(path)?;
        let key = path.strip_prefix('/')?.strip_prefix(NAME)?;
        let key = if key.is_empty() { key } else { key.strip_prefix('/')? }.to_owned();
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        };
        Some(Self { method, key, query: pairs.map(pair).collect::<Option<_>>()?, range, create, body })
    }

    fn changes(&self) -> bool {
        matches!(self.method, Method::PUT | Method::POST | Method::DELETE)
    }
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, String)>,
    body: Vec<u8>,
}

impl Answer {
    fn empty(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn xml(status: StatusCode, text: &str) -> Self {
        let headers = vec![(header::CONTENT_TYPE, "application/xml".to_owned())];
        let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>{text}").into_bytes();
        Self { status, headers, body }
    }

    fn failure(status: StatusCode, code: &str) -> Self {
        Self::xml(status, &format!("<Error><Code>{code}</Code><Message>by jepsen</Message></Error>"))
    }

    fn into_response(self) -> Response {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(Body::from(self.body)).expect("headers are of numbers, dates and constants")
    }
}

/// The objects, and how the server behaves.
struct Shelf {
    objects: PathBuf,
    aside: PathBuf,
    written: AtomicU64,
    mode: Mutex<Mode>,
    disturbed: AtomicU64,
    random: Random,
}

impl Shelf {
    fn make(dir: &Path, seed: u64) -> anyhow::Result<Self> {
        let (objects, aside) = (dir.join("objects"), dir.join("aside"));
        for dir in [&objects, &aside] {
            fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        }
        let (written, disturbed) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { objects, aside, written, mode: Mutex::new(Mode::Works), disturbed, random: Random::new(seed) })
    }

    /// Does what is asked. Blocking.
    fn answer(&self, asked: &Asked) -> io::Result<Answer> {
        if asked.query.contains_key("uploads") || asked.query.contains_key("uploadId") {
            return Ok(Answer::failure(StatusCode::NOT_IMPLEMENTED, "NotImplemented"));
        }
        match (&asked.method, asked.key.as_str()) {
            (&Method::GET, "") => self.list(asked.query.get("prefix").map_or("", String::as_str)),
            (&Method::POST, "") if asked.query.contains_key("delete") => self.delete_all(&asked.body),
            (&Method::HEAD, "") => Ok(Answer::empty(StatusCode::OK)),
            (_, key) => match self.path(key) {
                None => Ok(Answer::failure(StatusCode::BAD_REQUEST, "InvalidURI")),
                Some(path) => self.of_object(asked, &path),
            },
        }
    }

    fn of_object(&self, asked: &Asked, path: &Path) -> io::Result<Answer> {
        match asked.method {
            Method::PUT => self.put(path, &asked.body, asked.create),
            Method::GET | Method::HEAD => get(path, asked.method == Method::HEAD, asked.range.as_deref()),
            Method::DELETE => {
                remove(path)?;
                Ok(Answer::empty(StatusCode::NO_CONTENT))
            }
            _ => Ok(Answer::failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed")),
        }
    }

    /// Where an object is; `None` for what would be elsewhere.
    fn path(&self, key: &str) -> Option<PathBuf> {
        let inside = !key.is_empty() && key.split('/').all(|part| !matches!(part, "" | "." | ".."));
        inside.then(|| self.objects.join(key))
    }

    fn put(&self, path: &Path, body: &[u8], create: bool) -> io::Result<Answer> {
        let aside = self.aside.join(self.written.fetch_add(1, Ordering::Relaxed).to_string());
        fs::write(&aside, body)?;
        fs::create_dir_all(path.parent().unwrap_or(&self.objects))?;
        if create {
            // Unlike a rename it fails when there is something.
            let linked = fs::hard_link(&aside, path);
            fs::remove_file(&aside)?;
            match linked {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Ok(Answer::failure(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"));
                }
                outcome => outcome?,
            }
        } else {
            fs::rename(&aside, path)?;
        }
        let tag = tag(&fs::metadata(path)?);
        Ok(Answer { headers: vec![(header::ETAG, tag)], ..Answer::empty(StatusCode::OK) })
    }

    fn list(&self, prefix: &str) -> io::Result<Answer> {
        let mut found = BTreeMap::new();
        walk(&self.objects, &mut |path: &Path, metadata: &fs::Metadata| {
            let key = path.strip_prefix(&self.objects).ok().and_then(Path::to_str).unwrap_or_default();
            if key.starts_with(prefix) {
                let (modified, tag, bytes) = (iso_date(modified(metadata)), escape(&tag(metadata)), metadata.len());
                let content = format!(
                    "<Contents><Key>{}</Key><LastModified>{modified}</LastModified><ETag>{tag}</ETag><Size>{bytes}</Size>\
                     </Contents>",
                    escape(key)
                );
                found.insert(key.to_owned(), content);
            }
        })?;
        let contents: Vec<String> = found.into_values().collect();
        let (count, contents) = (contents.len(), contents.concat());
        Ok(Answer::xml(
            StatusCode::OK,
            &format!(
                "<ListBucketResult><Name>{NAME}</Name><KeyCount>{count}</KeyCount><IsTruncated>false</IsTruncated>{contents}\
                 </ListBucketResult>"
            ),
        ))
    }

    /// What is not there counts as deleted.
    fn delete_all(&self, body: &[u8]) -> io::Result<Answer> {
        let text = String::from_utf8_lossy(body);
        let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        let mut deleted = String::new();
        for (key, _) in keys {
            if let Some(path) = self.path(&unescape(key)) {
                remove(&path)?;
            }
            deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
        }
        Ok(Answer::xml(StatusCode::OK, &format!("<DeleteResult>{deleted}</DeleteResult>")))
    }
}

fn get(path: &Path, head: bool, range: Option<&str>) -> io::Result<Answer> {
    let file = match fs::File::open(path) {
        Ok(file) if file.metadata()?.is_file() => file,
        Err(error) if error.kind() != io::ErrorKind::NotFound && error.kind() != io::ErrorKind::NotADirectory => {
            return Err(error);
        }
        // A client that asks for the head alone gets no text.
        _ if head => return Ok(Answer::empty(StatusCode::NOT_FOUND)),
        _ => return Ok(Answer::failure(StatusCode::NOT_FOUND, "NoSuchKey")),
    };
    let metadata = file.metadata()?;
    let len = metadata.len();
    let mut answer = Answer::empty(StatusCode::OK);
    answer.headers.push((header::ETAG, tag(&metadata)));
    answer.headers.push((header::LAST_MODIFIED, http_date(modified(&metadata))));
    answer.headers.push((header::ACCEPT_RANGES, "bytes".to_owned()));
    answer.headers.push((header::CONTENT_TYPE, "application/octet-stream".to_owned()));
    if head {
        answer.headers.push((header::CONTENT_LENGTH, len.to_string()));
        return Ok(answer);
    }
    let (from, below) = match range.map(|range| within(range, len)) {
        None => (0, len),
        Some(Some((from, below))) => {
            answer.status = StatusCode::PARTIAL_CONTENT;
            answer.headers.push((header::CONTENT_RANGE, format!("bytes {from}-{}/{len}", below - 1)));
            (from, below)
        }
        Some(None) => return Ok(Answer::failure(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange")),
    };
    answer.body = vec![0; usize::try_from(below - from).map_err(io::Error::other)?];
    file.read_exact_at(&mut answer.body, from)?;
    Ok(answer)
}

/// A range of so many bytes, half-open, as `bytes=0-9`, `bytes=5-` or `bytes=-5` ask for it; `None` when it is none.
fn within(range: &str, len: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (from, below) = match (first, last) {
        ("", last) => (len.saturating_sub(last.parse().ok()?), len),
        (first, "") => (first.parse().ok()?, len),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.saturating_add(1).min(len)),
    };
    (from < below).then_some((from, below))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        outcome => outcome,
    }
}

/// Every file below a directory.
fn walk(dir: &Path, found: &mut impl FnMut(&Path, &fs::Metadata)) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => walk(&path, found)?,
            Ok(metadata) => found(&path, &metadata),
            // It was deleted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Another one for every content: files are never changed in place.
fn tag(metadata: &fs::Metadata) -> String {
    format!("\"{:x}-{:x}-{:x}\"", metadata.ino(), metadata.mtime_nsec(), metadata.len())
}

/// Seconds since 1970.
fn modified(metadata: &fs::Metadata) -> u64 {
    u64::try_from(metadata.mtime()).unwrap_or(0)
}

fn decode(text: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn unescape(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    text.replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf(dir: &tempfile::TempDir) -> Shelf {
        Shelf::make(dir.path(), 1).expect("makes directories")
    }

    fn ask(shelf: &Shelf, method: Method, path: &str, query: &str, body: &str) -> Answer {
        let asked = Asked::new(method, path, Some(query), None, false, Bytes::copy_from_slice(body.as_bytes()));
        shelf.answer(&asked.expect("of our bucket")).expect("the disk works")
    }

    fn create(shelf: &Shelf, body: &str) -> StatusCode {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let asked = Asked::new(Method::PUT, "/tables/owner", None, None, true, body).expect("of our bucket");
        shelf.answer(&asked).expect("the disk works").status
    }

    fn text(answer: &Answer) -> String {
        String::from_utf8_lossy(&answer.body).into_owned()
    }

    fn header(answer: &Answer, name: &HeaderName) -> Option<String> {
        answer.headers.iter().find(|(of, _)| of == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn objects_are_put_read_listed_and_deleted() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = shelf(&dir);
        for (key, body) in [("a/day%3D1/x.parquet", "0123456789"), ("a/y&z", "yz"), ("b", "")] {
            let put = ask(&shelf, Method::PUT, &format!("/tables/{key}"), "", body);
            assert!(put.status == StatusCode::OK && header(&put, &header::ETAG).is_some(), "{key}: {put:?}");
        }
        assert_eq!(text(&ask(&shelf, Method::GET, "/tables/a/day=1/x.parquet", "", "")), "0123456789");
        let listed = text(&ask(&shelf, Method::GET, "/tables", "list-type=2&prefix=a%2F", ""));
        assert!(listed.contains("<Key>a/day=1/x.parquet</Key>") && listed.contains("<Key>a/y&amp;z</Key>"), "{listed}");
        assert!(listed.contains("<Size>10</Size>") && !listed.contains("<Key>b</Key>"), "{listed}");
        let keys = "<Delete><Object><Key>a/y&amp;z</Key></Object><Object><Key>never</Key></Object></Delete>";
        let deleted = ask(&shelf, Method::POST, "/tables", "delete", keys);
        assert!(text(&deleted).contains("<Deleted><Key>never</Key></Deleted>"));
        assert_eq!(ask(&shelf, Method::GET, "/tables/a/y&z", "", "").status, StatusCode::NOT_FOUND);
        assert_eq!(ask(&shelf, Method::DELETE, "/tables/b", "", "").status, StatusCode::NO_CONTENT);
        assert!(!text(&ask(&shelf, Method::GET, "/tables/", "", "")).contains("<Key>b</Key>"));
    }

    #[test]
    fn a_head_says_the_length_and_sends_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = shelf(&dir);
        ask(&shelf, Method::PUT, "/tables/x", "", "12345");
        let head = ask(&shelf, Method::HEAD, "/tables/x", "", "");
        assert_eq!((header(&head, &header::CONTENT_LENGTH).as_deref(), head.body.len()), (Some("5"), 0));
        assert!(header(&head, &header::LAST_MODIFIED).is_some_and(|date| date.ends_with(" GMT")));
        assert_eq!(ask(&shelf, Method::HEAD, "/tables/y", "", "").status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn whoever_creates_second_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = shelf(&dir);
        assert_eq!(create(&shelf, "first"), StatusCode::OK);
        assert_eq!(create(&shelf, "second"), StatusCode::PRECONDITION_FAILED);
        assert_eq!(text(&ask(&shelf, Method::GET, "/tables/owner", "", "")), "first");
        ask(&shelf, Method::PUT, "/tables/owner", "", "third");
        assert_eq!(text(&ask(&shelf, Method::GET, "/tables/owner", "", "")), "third", "unless it does not ask");
    }

    #[test]
    fn ranges_are_parts_of_what_there_is() {
        assert_eq!(within("bytes=0-3", 10), Some((0, 4)));
        assert_eq!(within("bytes=8-99", 10), Some((8, 10)));
        assert_eq!(within("bytes=4-", 10), Some((4, 10)));
        assert_eq!(within("bytes=-3", 10), Some((7, 10)));
        assert_eq!(within("bytes=-30", 10), Some((0, 10)));
        for none in ["bytes=10-", "bytes=5-4", "bytes=-0", "bytes=", "lines=1-2", "bytes=a-b"] {
            assert_eq!(within(none, 10), None, "{none}");
        }
    }

    #[test]
    fn nothing_outside_the_bucket_is_reached() {
        let dir = tempfile::tempdir().expect("a directory");
        let shelf = shelf(&dir);
        for path in ["/tables/../aside/0", "/tables/a/%2E%2E/b", "/tables/a//b", "/tables/a/"] {
            assert_eq!(ask(&shelf, Method::PUT, path, "", "x").status, StatusCode::BAD_REQUEST, "{path}");
        }
        for path in ["/other/a", "/tables2/a", "/", "/tables/%ff"] {
            assert!(Asked::new(Method::GET, path, None, None, false, Bytes::new()).is_none(), "{path}");
        }
        assert_eq!(ask(&shelf, Method::POST, "/tables/a", "uploads", "").status, StatusCode::NOT_IMPLEMENTED);
    }

    #[tokio::test]
    async fn a_server_that_is_down_does_nothing_and_one_that_lies_does_everything() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let bucket = Bucket::start(dir.path(), Ipv4Addr::LOCALHOST, 1).await?;
        let http = reqwest::Client::new();
        let url = |key: &str| format!("{}/{NAME}/{key}", bucket.endpoint());
        bucket.set(Mode::Down);
        let refused = http.put(url("down")).body("x").send().await?;
        assert_eq!(refused.status().as_u16(), 503);
        bucket.set(Mode::Lies);
        let mut failures = 0;
        for n in 0..40 {
            failures += u64::from(!http.put(url(&format!("lied-{n}"))).body("x").send().await?.status().is_success());
        }
        bucket.set(Mode::Works);
        assert!((10..40).contains(&failures), "{failures} of 40");
        assert_eq!(bucket.disturbed(), failures + 1);
        for n in 0..40 {
            assert_eq!(http.get(url(&format!("lied-{n}"))).send().await?.text().await?, "x");
        }
        assert_eq!(http.get(url("down")).send().await?.status().as_u16(), 404);
        let head = http.head(url("lied-0")).send().await?;
        assert_eq!(head.headers().get("content-length").map(|value| value.as_bytes().to_vec()), Some(b"1".to_vec()));
        Ok(())
    }
}
