//! A store of objects: the few requests that the sink makes, each with its errors in words.
//!
//! Owns the connection and a runtime for it: the sink's thread waits for each request. Single requests are repeated
//! here for some seconds; what fails for longer goes back as an error, so that the sink can say so and wait. `published`
//! calls this; nothing here knows what a cut is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path as FilePath, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload, RetryConfig};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use weir_common::crash;
use weir_common::file::FileError;
use weir_common::id::hex;

use super::error::{ObjectError, SinkError, Trouble};
use super::manifest::LiveFile;
use super::target::{Scheme, StoreUrl};

/// See the module.
#[derive(Debug)]
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    url: StoreUrl,
    /// Always there; taken when this ends.
    runtime: Option<Runtime>,
}

impl Objects {
    /// Prepares the connection; nothing is sent yet.
    pub(super) fn new(url: &StoreUrl) -> Result<Self, ObjectError> {
        // The first one stands; all of Weir uses this one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = build(url).map_err(|error| classify("prepare", url.to_string(), &error))?;
        Self::with_store(url, store)
    }

    /// The same of a store that is given.
    pub(super) fn with_store(url: &StoreUrl, store: Arc<dyn ObjectStore>) -> Result<Self, ObjectError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| ObjectError {
            operation: "prepare",
            url: url.to_string(),
            words: error.to_string(),
            trouble: Trouble::Away,
        })?;
        Ok(Self { store, url: url.clone(), runtime: Some(runtime) })
    }

    /// Which store.
    pub(super) fn url(&self) -> &StoreUrl {
        &self.url
    }

    /// The whole name of an object, for messages and reports.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(self.full(name))
    }

    /// Puts files under their names, several at once; what stands there already is replaced by the same.
    pub(super) fn put_files(&self, files: &[(&LiveFile, &FilePath)]) -> Result<(), SinkError> {
        self.wait(async {
            let puts = files.iter().map(|(file, from)| self.put_file(file, from));
            let mut puts = futures_util::stream::iter(puts).buffer_unordered(PUTS_AT_ONCE);
            while let Some(put) = puts.next().await {
                put?;
                crash::point("parquet.published_one");
            }
            Ok(())
        })
    }

    async fn put_file(&self, file: &LiveFile, from: &FilePath) -> Result<(), SinkError> {
        let failed = |error| self.failed("put", &file.path, &error);
        let key = self.key(&file.path)?;
        let mut body = File::open(from).map_err(FileError::at("open", from))?;
        let part_bytes = PART_BYTES.max(file.bytes / PARTS_MAX);
        if file.bytes <= part_bytes {
            let bytes = read_part(&mut body, from, part_bytes)?;
            self.store.put(&key, PutPayload::from(bytes)).await.map_err(failed)?;
            return Ok(());
        }
        let mut upload = self.store.put_multipart(&key).await.map_err(failed)?;
        let result: Result<(), SinkError> = async {
            let mut left = file.bytes;
            while left > 0 {
                let bytes = read_part(&mut body, from, part_bytes)?;
                left = left.saturating_sub(bytes.len() as u64);
                upload.put_part(PutPayload::from(bytes)).await.map_err(failed)?;
            }
            upload.complete().await.map_err(failed)?;
            Ok(())
        }
        .await;
        if result.is_err() {
            // What this can't remove either, a rule of the bucket does: docs/parquet.md.
            let _ = upload.abort().await;
        }
        result
    }

    /// Creates an object, unless there is one of that name: `Ok(false)`.
    pub(super) fn create(&self, name: &str, bytes: &[u8]) -> Result<bool, ObjectError> {
        let key = self.key(name)?;
        let options = PutOptions::from(PutMode::Create);
        let put = self.store.put_opts(&key, PutPayload::from(bytes.to_vec()), options);
        match self.wait(put) {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(false)
            }
            Err(error) => Err(self.failed("create", name, &error)),
        }
    }

    /// The bytes of an object; `None` when there is none. One that is larger than `limit` is an error.
    pub(super) fn get(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ObjectError> {
        Ok(self.get_all(&[name.to_owned()], limit)?.into_iter().next().flatten())
    }

    /// The bytes of some objects, asked for at once.
    pub(super) fn get_all(&self, names: &[String], limit: u64) -> Result<Vec<Option<Vec<u8>>>, ObjectError> {
        let get = async |name: &String| {
            let failed = |error| self.failed("get", name, &error);
            let result = match self.store.get(&self.key(name)?).await {
                Ok(result) => result,
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            if result.meta.size > limit {
                let words = format!("it has {} bytes, more than the limit of {limit}", result.meta.size);
                return Err(ObjectError {
                    operation: "get",
                    url: self.full(name),
                    words,
                    trouble: Trouble::Refused,
                });
            }
            Ok(Some(result.bytes().await.map_err(failed)?.to_vec()))
        };
        self.wait(futures_util::stream::iter(names).map(get).buffered(GETS_AT_ONCE).try_collect())
    }

    /// Size and SHA-256 of an object, in hexadecimal; `None` when there is none.
    pub(super) fn digest(&self, name: &str) -> Result<Option<(u64, String)>, ObjectError> {
        let failed = |error| self.failed("get", name, &error);
        let key = self.key(name)?;
        self.wait(async {
            let mut stream = match self.store.get(&key).await {
                Ok(result) => result.into_stream(),
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            let (mut hash, mut size) = (Sha256::new(), 0);
            while let Some(bytes) = stream.try_next().await.map_err(failed)? {
                hash.update(&bytes);
                size += bytes.len() as u64;
            }
            Ok(Some((size, hex(&hash.finalize()))))
        })
    }

    /// Names and sizes of the objects below a folder.
    pub(super) fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>, ObjectError> {
        let below = self.key(folder)?;
        let skip = if self.url.prefix.is_empty() { 0 } else { self.url.prefix.len() + 1 };
        let listing = self.store.list(Some(&below)).map_ok(|object| {
            let name = object.location.as_ref().get(skip..).unwrap_or_default().to_owned();
            (name, object.size)
        });
        self.wait(listing.try_collect()).map_err(|error| self.failed("list", folder, &error))
    }

    /// The folders directly below a folder, by their last name.
    pub(super) fn folders(&self, folder: &str) -> Result<Vec<String>, ObjectError> {
        let below = self.key(folder)?;
        let listing = self.wait(self.store.list_with_delimiter(Some(&below)));
        let listing = listing.map_err(|error| self.failed("list", folder, &error))?;
        let last = |path: Path| path.filename().map(str::to_owned);
        Ok(listing.common_prefixes.into_iter().filter_map(last).collect())
    }

    /// Deletes an object; one that is not there is as good.
    pub(super) fn remove(&self, name: &str) -> Result<(), ObjectError> {
        match self.wait(self.store.delete(&self.key(name)?)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("delete", name, &error)),
        }
    }

    /// Asks whether the store keeps its word about creating only what is absent: without it two writers could not be
    /// told apart.
    pub(super) fn check_exclusive(&self, name: &str) -> Result<(), ObjectError> {
        let note = b"tells whether this store creates objects only where there are none\n";
        if !self.create(name, note)? || !self.create(name, note)? {
            return Ok(());
        }
        Err(ObjectError {
            operation: "create",
            url: self.full(name),
            words: "it was created twice: this store takes no notice of If-None-Match, so two writers could not be \
                    told apart"
                .to_owned(),
            trouble: Trouble::Refused,
        })
    }

    /// An object was there for a moment, and then it was not.
    pub(super) fn unsettled(&self, name: &str) -> ObjectError {
        ObjectError {
            operation: "create",
            url: self.full(name),
            words: "it exists and can't be found".to_owned(),
            trouble: Trouble::Away,
        }
    }

    fn key(&self, name: &str) -> Result<Path, ObjectError> {
        let text =
            if self.url.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.url.prefix) };
        Path::parse(text).map_err(|error| self.failed("name", name, &error.into()))
    }

    fn full(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    fn failed(&self, operation: &'static str, name: &str, error: &object_store::Error) -> ObjectError {
        classify(operation, self.full(name), error)
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        let runtime = self.runtime.as_ref().expect("the runtime is there until this is dropped");
        runtime.block_on(work)
    }
}

impl Drop for Objects {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting for it would not be allowed where this is dropped by a task.
            runtime.shutdown_background();
        }
    }
}

/// Whether the store knows all options of a URL.
pub(super) fn check_options(url: &StoreUrl) -> Result<(), String> {
    let known = |key: &str| match url.scheme {
        Scheme::S3 => AmazonS3ConfigKey::from_str(key).is_ok(),
        Scheme::Gs => GoogleConfigKey::from_str(key).is_ok(),
        Scheme::Az => AzureConfigKey::from_str(key).is_ok(),
    };
    match url.options.keys().find(|key| !known(key)) {
        Some(key) => Err(format!("options that {} has; `{key}` is none of them", url.scheme.as_str())),
        None => Ok(()),
    }
}

/// What the environment says, and over it the options.
fn build(url: &StoreUrl) -> object_store::Result<Arc<dyn ObjectStore>> {
    macro_rules! built {
        ($builder:expr, $bucket:ident) => {{
            let mut builder = $builder;
            for (key, value) in &url.options {
                builder = builder.with_config(key.parse()?, value);
            }
            Arc::new(builder.$bucket(&url.bucket).with_retry(retry()).build()?)
        }};
    }
    Ok(match url.scheme {
        Scheme::S3 => built!(AmazonS3Builder::from_env(), with_bucket_name),
        Scheme::Gs => built!(GoogleCloudStorageBuilder::from_env(), with_bucket_name),
        Scheme::Az => built!(MicrosoftAzureBuilder::from_env(), with_container_name),
    })
}

/// Short: the sink repeats what fails for longer, and says so meanwhile.
fn retry() -> RetryConfig {
    RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(10), ..RetryConfig::default() }
}

fn read_part(file: &mut File, path: &FilePath, bytes_max: u64) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(FileError::at("read", path))?;
    if bytes.is_empty() {
        let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        return Err(FileError::at("read", path)(short));
    }
    Ok(bytes)
}

/// An error of the store in words, and what is to be done about it.
fn classify(operation: &'static str, url: String, error: &object_store::Error) -> ObjectError {
    use object_store::Error;
    let trouble = match error {
        Error::NotFound { .. } => Trouble::Missing,
        Error::PermissionDenied { .. } if says(error, &["RequestTimeTooSkewed", "SlowDown"]) => Trouble::Away,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Trouble::Credentials,
        // 409: another request for the same name is under way.
        Error::AlreadyExists { .. } | Error::Precondition { .. } => Trouble::Away,
        Error::Generic { .. } => generic(error),
        _ => Trouble::Refused,
    };
    let mut words = words(error);
    if let Some((end, _)) = words.char_indices().nth(WORDS_MAX) {
        words.truncate(end);
        words.push('…');
    }
    ObjectError { operation, url, words, trouble }
}

/// What the store said, once: its errors repeat those below them, but for the last.
fn words(error: &object_store::Error) -> String {
    let mut words = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !words.contains(&text) {
            words.push_str(": ");
            words.push_str(&text);
        }
        next = cause.source();
    }
    words
}

/// No answer, an answer of 5xx, or one that asks for patience is worth repeating; other answers are not. The crate keeps
/// the status to itself, so it is read from its words; a test holds these against a server's answers.
fn generic(error: &object_store::Error) -> Trouble {
    let text = words(error);
    let status = text.split("status code: ").nth(1).and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    match status {
        None if text.contains("redirect without LOCATION") => Trouble::Refused,
        None | Some(408 | 409 | 425 | 429 | 500..) => Trouble::Away,
        Some(400) if says(error, &["RequestTimeout", "ExpiredToken"]) => Trouble::Away,
        Some(401 | 403) => Trouble::Credentials,
        Some(404) => Trouble::Missing,
        Some(_) => Trouble::Refused,
    }
}

fn says(error: &object_store::Error, wanted: &[&str]) -> bool {
    let text = words(error);
    wanted.iter().any(|word| text.contains(word))
}

/// Largest body of one request, bytes; larger files go in parts of this size. Small under test.
const PART_BYTES: u64 = if cfg!(test) { 16 << 10 } else { 8 << 20 };
/// S3 takes 10,000 parts.
const PARTS_MAX: u64 = 9_000;
/// Memory for uploads is this times the size of a part.
const PUTS_AT_ONCE: usize = 4;
/// Manifest entries asked for at once.
pub(super) const GETS_AT_ONCE: usize = 16;
/// Of a server's answer, characters.
const WORDS_MAX: usize = 600;
