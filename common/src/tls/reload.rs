//! Files that change while a program runs: looked at now and then, used when they are right.
//!
//! They are read through their paths each time and compared by content, so it does not matter how they are replaced:
//! in place, by rename, or by the links that Kubernetes swaps. Whatever cannot be used is said once, and the last good
//! state stays. A pair of which only one half is new yet is such a state.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::files::{FilesError, Material, Pem, PemError, TlsFiles};

/// Reads the files; then keeps reading them, as long as somebody listens. `reloaded` is told how each new state was:
/// used or not. Blocks on the disk at the start.
pub fn watch<T: Send + Sync + 'static>(
    files: TlsFiles,
    every: Duration,
    build: fn(&Material) -> Result<T, PemError>,
    reloaded: impl Fn(bool) + Send + 'static,
) -> Result<watch::Receiver<Arc<T>>, FilesError> {
    let pem = files.read()?;
    let (sender, receiver) = watch::channel(Arc::new(make(&files, &pem, build)?));
    tokio::spawn(async move {
        let mut state = Watched { files, pem, complaint: String::new() };
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(every) => {}
            }
            let looked = tokio::task::spawn_blocking(move || {
                let found = state.look(build);
                (state, found)
            });
            let Ok((back, found)) = looked.await else {
                tracing::error!(
                    "the thread that reads the files of TLS panicked: they are not read any more"
                );
                return;
            };
            state = back;
            match found {
                Found::Same => {}
                Found::New(new) => {
                    tracing::info!(
                        certificate = %state.files.certificate.display(),
                        ca = %state.files.ca.display(),
                        "new files of TLS are used"
                    );
                    reloaded(true);
                    sender.send_replace(new);
                }
                Found::Bad => reloaded(false),
            }
        }
    });
    Ok(receiver)
}

struct Watched {
    files: TlsFiles,
    /// What was looked at last, good or bad.
    pem: Pem,
    complaint: String,
}

enum Found<T> {
    Same,
    New(Arc<T>),
    /// Something is wrong that was not so before.
    Bad,
}

impl Watched {
    fn look<T>(&mut self, build: fn(&Material) -> Result<T, PemError>) -> Found<T> {
        let made = match self.files.read() {
            Ok(pem) if pem == self.pem => {
                // What could not be read a moment ago is as it was.
                if self.complaint.starts_with("read ") {
                    self.complaint.clear();
                }
                return Found::Same;
            }
            Ok(pem) => {
                let made = make(&self.files, &pem, build);
                self.pem = pem;
                made
            }
            Err(error) => Err(error),
        };
        match made {
            Ok(new) => {
                self.complaint.clear();
                Found::New(Arc::new(new))
            }
            Err(error) => {
                let complaint = words(&error);
                if complaint == self.complaint {
                    return Found::Same;
                }
                tracing::error!(
                    error = complaint,
                    "the files of TLS cannot be used: the last good ones stay in use"
                );
                self.complaint = complaint;
                Found::Bad
            }
        }
    }
}

fn make<T>(
    files: &TlsFiles,
    pem: &Pem,
    build: fn(&Material) -> Result<T, PemError>,
) -> Result<T, FilesError> {
    let material = files.check(pem)?;
    build(&material).map_err(|source| {
        let TlsFiles { certificate, key, ca } = files.clone();
        FilesError::Pem { certificate, key, ca, source }
    })
}

fn words(error: &FilesError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
