use super::*;

/// A directory that lives as long as the test, and a store in it.
fn filesystem(prefix: &str) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store = Store::open(&format!("file://{}", dir.path().display()), prefix, &S3Options::default());
    (dir, store.expect("opens"))
}

fn memory(prefix: &str) -> Store {
    Store::open("memory://", prefix, &S3Options::default()).expect("opens")
}

/// The same tree, opened by somebody else.
fn again(store: &Store) -> Store {
    match store.objects() {
        Some((url, objects)) => Store::over(objects, url.to_owned(), store.root().to_owned(), BTreeMap::new()),
        None => Store::open(store.root(), "", &S3Options::default()).expect("opens"),
    }
}

async fn conforms(store: Store) {
    files_are_written_read_and_deleted(&store).await;
    large_files_come_back_whole(&store).await;
    it_belongs_to_one_cluster(&store).await;
}

async fn files_are_written_read_and_deleted(store: &Store) {
    let location = format!("{}/a/timestamp_day=2026-01-01/c.bin", store.root());
    let missing = store.read(&location).await.expect_err("nothing is there");
    assert!(missing.is_not_found() && missing.to_string().contains(&location), "{missing}");
    assert!(!store.exists(&location).await.expect("answers"));
    store.delete(&location).await.expect("there was nothing to delete");
    for content in ["content", "other content"] {
        store.write(&location, Bytes::from_static(content.as_bytes())).await.expect("writes");
        assert_eq!(store.read(&location).await.expect("reads"), content);
    }
    assert!(store.exists(&location).await.expect("answers"));
    assert_eq!(store.read_range(&location, 6..9).await.expect("reads"), "con");
    assert_eq!(store.read_range(&location, 3..3).await.expect("reads"), "");
    store.read_range(&location, 6..14).await.expect_err("the file ends before");
    store.read_range(&location, 20..21).await.expect_err("the file ends before");
    let listed = store.list(&format!("{}/a", store.root())).await.expect("lists");
    assert_eq!(listed.iter().map(|file| (&file.location, file.bytes)).collect::<Vec<_>>(), [(&location, 13)]);
    assert!(listed[0].modified_ms > 1_700_000_000_000, "{listed:?}");
    assert_eq!(store.list(&format!("{}/b", store.root())).await.expect("there is none"), []);
    store.delete(&location).await.expect("deletes");
    assert!(store.read(&location).await.expect_err("it was deleted").is_not_found());
}

async fn large_files_come_back_whole(store: &Store) {
    let location = format!("{}/large.bin", store.root());
    let content: Bytes = (0..17 << 20).map(|n: u32| (n % 251) as u8).collect();
    store.write(&location, content.clone()).await.expect("writes");
    assert!(store.read(&location).await.expect("reads") == content, "17 MiB differ");
    let (from, to) = (8 << 20, (8 << 20) + 3);
    let range = store.read_range(&location, from as u64..to as u64).await;
    assert_eq!(range.expect("reads"), content.slice(from..to));
}

async fn it_belongs_to_one_cluster(store: &Store) {
    store.ping().await.expect_err("nobody claimed it");
    store.claim("one").await.expect("claims");
    store.claim("one").await.expect("is its own");
    store.ping().await.expect("is there");
    let other = again(store);
    let error = other.claim("two").await.expect_err("refuses");
    assert!(error.to_string().contains("one") && error.to_string().contains("two"), "{error}");
    let write = other.write(&format!("{}/x", other.root()), Bytes::new()).await;
    assert!(matches!(write, Err(StoreError::Foreign { .. })), "{write:?}");
    again(store).claim("one").await.expect("is its own still");
}

#[tokio::test]
async fn a_directory_conforms() {
    let (_dir, store) = filesystem("data");
    conforms(store).await;
}

#[tokio::test]
async fn a_bucket_conforms() {
    for prefix in ["", "some/prefix/"] {
        conforms(memory(prefix)).await;
    }
}

#[tokio::test]
async fn files_of_a_directory_are_whole_or_absent() {
    let (dir, store) = filesystem("");
    let location = format!("{}/a/b/c.bin", store.root());
    store.write(&location, Bytes::from_static(b"content")).await.expect("writes");
    let names: Vec<_> = std::fs::read_dir(dir.path().join("a/b")).expect("lists").collect();
    assert_eq!(names.len(), 1, "no temporary file stays");
}

/// The first that claims wins, whoever looked before.
#[tokio::test]
async fn of_two_clusters_that_claim_a_bucket_one_gets_it() {
    let store = memory("");
    let others = [again(&store), again(&store)];
    let (one, two) = tokio::join!(others[0].claim("one"), others[1].claim("two"));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
}

#[tokio::test]
async fn a_claim_that_found_no_store_is_made_by_the_first_write() {
    let (dir, store) = filesystem("");
    let (root, away) = (dir.path().to_owned(), dir.path().with_extension("away"));
    std::fs::rename(&root, &away).expect("moves");
    std::fs::write(&root, "not a directory").expect("writes");
    store.claim("one").await.expect_err("there is no store");
    let location = format!("{}/x", store.root());
    store.write(&location, Bytes::new()).await.expect_err("there is no store");
    std::fs::remove_file(&root).expect("removes");
    std::fs::rename(&away, &root).expect("moves back");
    store.write(&location, Bytes::new()).await.expect("writes");
    store.ping().await.expect("was claimed");
}

#[tokio::test]
async fn urls_and_prefixes_that_cannot_be_are_refused() {
    let open = |url: &str, prefix: &str| Store::open(url, prefix, &S3Options::default());
    for url in ["ftp://x", "s3://", "/path", ""] {
        assert!(matches!(open(url, ""), Err(StoreError::Url(_))), "{url}");
    }
    for prefix in ["a//b", "../b", "a/./b"] {
        assert!(matches!(open("memory://", prefix), Err(StoreError::Prefix(_))), "{prefix}");
    }
    let store = open("s3://bucket/path/", "/prefix/").expect("no server is asked");
    assert_eq!(store.root(), "s3://bucket/path/prefix");
    assert_eq!(store.objects().map(|(url, _)| url.to_owned()).as_deref(), Some("s3://bucket"));
    assert!(memory("").root().starts_with("memory://"));
}
