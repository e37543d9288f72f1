//! Tests of the sink on a store of objects in memory: what it publishes, what it completes, and what it refuses.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parquet::file::reader::FileReader as _;
use parquet::file::serialized_reader::SerializedFileReader;
use tempfile::TempDir;

use super::error::{Disposition, Trouble};
use super::manifest::Reason;
use super::objects::Objects;
use super::published::Published;
use super::synthetic::Synthetic;
use super::verify::{live_files_published, verify_published};
use super::*;

const JOURNAL: [u8; 16] = [7; 16];
const NOW_US: i64 = 1_748_781_000_000_000;

/// A store in memory that can be told to refuse the creation of manifest entries.
#[derive(Debug, Clone, Default)]
struct Memory {
    store: Arc<InMemory>,
    refuse_entries: Arc<AtomicBool>,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Memory {
    async fn put_opts(&self, at: &Path, body: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.refuse_entries.load(Ordering::Relaxed) && at.as_ref().contains("_weir/manifest") {
            return Err(object_store::Error::Generic { store: "memory", source: "away".into() });
        }
        self.store.put_opts(at, body, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(at, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

impl Memory {
    fn published(&self) -> Published {
        let url = StoreUrl::parse("s3://bucket/some/prefix", BTreeMap::new()).unwrap();
        Published::Objects(Objects::with_store(&url, Arc::new(self.clone())).unwrap())
    }

    fn open(&self, dir: &FilePath) -> ParquetSink {
        ParquetSink::open_published(ParquetConfig::new(dir.to_owned()), self.published(), JOURNAL).unwrap().0
    }

    /// Checks everything, and gives the rows that are live.
    #[track_caller]
    fn rows(&self) -> u64 {
        let report = verify_published(&self.published()).unwrap();
        assert!(report.is_sound() && report.unlisted.is_empty(), "{report:?}");
        report.journals.iter().map(|journal| journal.rows).sum()
    }
}

fn small() -> Synthetic {
    Synthetic { flows: 300, others: 1, ..Synthetic::default() }
}

fn take(sink: &mut ParquetSink, synthetic: &Synthetic, records: u64) {
    for _ in 0..records {
        let position = sink.due();
        sink.write(&synthetic.record(position), Instant::now()).unwrap();
    }
}

#[test]
fn a_cut_is_published_whole_and_found_again() {
    let (memory, dir, synthetic) = (Memory::default(), TempDir::new().unwrap(), small());
    let mut sink = memory.open(dir.path());
    take(&mut sink, &synthetic, 3);
    let report = sink.cut(Reason::Age, NOW_US).unwrap().unwrap();
    assert_eq!(memory.rows(), 3 * u64::from(synthetic.rows()));
    // Larger than a part under test: it went in several.
    assert!(report.files.iter().any(|file| file.bytes > 20_000), "{:?}", report.files);
    assert_eq!(std::fs::read_dir(&sink.store().layout().temporary).unwrap().count(), 0);
    assert!(!sink.store().layout().intent.exists());
    drop(sink);

    let mut sink = memory.open(dir.path());
    assert_eq!(sink.due(), 4);
    for _ in 0..20 {
        take(&mut sink, &synthetic, 1);
        sink.cut(Reason::Age, NOW_US).unwrap();
    }
    drop(sink);
    // Another folder knows nothing: the manifest says it all.
    let sink = memory.open(TempDir::new().unwrap().path());
    assert_eq!(sink.due(), 24);
    assert_eq!(memory.rows(), 23 * u64::from(synthetic.rows()));
}

#[test]
fn a_file_is_what_was_put_however_many_parts_it_took() {
    let (memory, dir, synthetic) = (Memory::default(), TempDir::new().unwrap(), small());
    let mut sink = memory.open(dir.path());
    take(&mut sink, &synthetic, 30);
    let report = sink.cut(Reason::Age, NOW_US).unwrap().unwrap();
    let largest = report.files.iter().max_by_key(|file| file.bytes).unwrap();
    let Published::Objects(objects) = memory.published() else { unreachable!("it is a store") };
    let bytes = objects.get(&largest.path, u64::MAX).unwrap().unwrap();
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
    assert_eq!(reader.metadata().file_metadata().num_rows() as u64, largest.rows);
}

#[test]
fn of_two_writers_one_ends_and_leaves_nothing() {
    let (memory, synthetic) = (Memory::default(), small());
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (mut first, mut second) = (memory.open(one.path()), memory.open(other.path()));
    take(&mut first, &synthetic, 2);
    take(&mut second, &synthetic, 3);
    second.cut(Reason::Age, NOW_US).unwrap();
    let error = first.cut(Reason::Age, NOW_US).unwrap_err();
    assert!(matches!(error, SinkError::ManifestTaken { .. }), "{error}");
    assert_eq!(error.disposition(), Disposition::Fatal);
    // No row of the loser is there, listed or not.
    assert_eq!(memory.rows(), 3 * u64::from(synthetic.rows()));
    // And it does not begin again by itself.
    assert!(matches!(first.recover().unwrap_err(), SinkError::ManifestTaken { .. }));
    assert_eq!(memory.rows(), 3 * u64::from(synthetic.rows()));
}

#[test]
fn a_cut_that_the_store_interrupted_is_completed_with_the_same_files() {
    let (memory, dir, synthetic) = (Memory::default(), TempDir::new().unwrap(), small());
    let mut sink = memory.open(dir.path());
    memory.refuse_entries.store(true, Ordering::Relaxed);
    take(&mut sink, &synthetic, 3);
    let error = sink.cut(Reason::Age, NOW_US).unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry, "{error}");
    assert!(sink.recover().is_err());
    assert_eq!(sink.next_position(), 1);
    memory.refuse_entries.store(false, Ordering::Relaxed);
    let report = sink.recover().unwrap();
    assert_eq!((report.completed, report.undone, sink.due()), (Some(1), None, 4));
    assert_eq!(memory.rows(), 3 * u64::from(synthetic.rows()));
}

#[test]
fn a_staged_file_that_the_disk_changed_undoes_the_cut() {
    let (memory, dir, synthetic) = (Memory::default(), TempDir::new().unwrap(), small());
    let mut sink = memory.open(dir.path());
    memory.refuse_entries.store(true, Ordering::Relaxed);
    take(&mut sink, &synthetic, 3);
    sink.cut(Reason::Age, NOW_US).unwrap_err();
    memory.refuse_entries.store(false, Ordering::Relaxed);
    let staged: Vec<_> = std::fs::read_dir(&sink.store().layout().temporary).unwrap().collect();
    // What was put already and is right needs no temporary file.
    std::fs::remove_file(staged[0].as_ref().unwrap().path()).unwrap();
    assert_eq!(sink.recover().unwrap().completed, Some(1));

    memory.refuse_entries.store(true, Ordering::Relaxed);
    take(&mut sink, &synthetic, 1);
    sink.cut(Reason::Age, NOW_US).unwrap_err();
    memory.refuse_entries.store(false, Ordering::Relaxed);
    let Published::Objects(objects) = memory.published() else { unreachable!("it is a store") };
    let listed = live(&memory);
    let put: Vec<String> =
        objects.list("").unwrap().into_keys().filter(|name| name.ends_with("parquet")).collect();
    let unlisted = put.iter().find(|name| !listed.contains(name)).unwrap();
    objects.remove(unlisted).unwrap();
    for file in std::fs::read_dir(&sink.store().layout().temporary).unwrap() {
        std::fs::write(file.unwrap().path(), b"not what it was").unwrap();
    }
    let report = sink.recover().unwrap();
    assert_eq!((report.undone.map(|(entry, _)| entry), sink.due()), (Some(2), 4));
    assert_eq!(memory.rows(), 3 * u64::from(synthetic.rows()));
}

fn live(memory: &Memory) -> Vec<String> {
    live_files_published(&memory.published()).unwrap()
}

#[test]
fn an_intent_is_completed_only_where_it_was_meant_for() {
    let (memory, dir, synthetic) = (Memory::default(), TempDir::new().unwrap(), small());
    let mut sink = memory.open(dir.path());
    memory.refuse_entries.store(true, Ordering::Relaxed);
    take(&mut sink, &synthetic, 1);
    sink.cut(Reason::Age, NOW_US).unwrap_err();
    drop(sink);
    let error = ParquetSink::open(ParquetConfig::new(dir.path().to_owned()), JOURNAL).unwrap_err();
    assert!(error.to_string().contains("s3://bucket/some/prefix"), "{error}");
    assert_eq!(error.disposition(), Disposition::Fatal);
}

/// A server that gives one answer to everything.
fn answer_all(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = [0; 16 << 10];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn refusals_are_told_from_troubles_that_pass() {
    let cases = [
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 34\r\nConnection: close\r\n\r\n<Code>SignatureDoesNotMatch</Code>",
            Trouble::Credentials,
        ),
        ("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Trouble::Credentials),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 25\r\nConnection: close\r\n\r\n<Code>NoSuchBucket</Code>",
            Trouble::Missing,
        ),
        (
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 25\r\nConnection: close\r\n\r\n<Code>InvalidArgum</Code>",
            Trouble::Refused,
        ),
        (
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 27\r\nConnection: close\r\n\r\n<Code>RequestTimeout</Code>",
            Trouble::Away,
        ),
        ("HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Trouble::Refused),
        ("HTTP/1.1 429 Slow\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Trouble::Away),
        ("HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Trouble::Away),
        ("not HTTP", Trouble::Away),
    ];
    let threads = cases.map(|(answer, trouble)| {
        std::thread::spawn(move || {
            let options = [("endpoint", answer_all(answer)), ("allow_http", "true".to_owned())]
                .into_iter()
                .chain([("access_key_id", "a".to_owned()), ("secret_access_key", "b".to_owned())]);
            let options = options.map(|(key, value)| (key.to_owned(), value)).collect();
            let url = StoreUrl::parse("s3://bucket/prefix", options).unwrap();
            let error = Objects::new(&url).unwrap().list("kind=flow").unwrap_err();
            assert_eq!(error.trouble, trouble, "{answer}: {error}");
            assert!(error.to_string().starts_with("list s3://bucket/prefix/kind=flow: "), "{error}");
        })
    });
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn nobody_listening_is_a_trouble_that_passes() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = [("endpoint", format!("http://{address}")), ("allow_http", "true".to_owned())]
        .into_iter()
        .chain([("access_key_id", "a".to_owned()), ("secret_access_key", "b".to_owned())]);
    let options = options.map(|(key, value)| (key.to_owned(), value)).collect();
    let url = StoreUrl::parse("s3://bucket", options).unwrap();
    let error = Objects::new(&url).unwrap().list("").unwrap_err();
    assert_eq!(error.trouble, Trouble::Away, "{error}");
}
