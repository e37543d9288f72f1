//! The content of a local file, held against what a manifest or an intent says of it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use sha2::{Digest, Sha256};
use weir_common::file::FileError;
use weir_common::id::hex;

use super::manifest::LiveFile;

/// What is wrong with a file's content, if anything: its presence, size and hash.
pub(super) fn check_content(path: &Path, expected: &LiveFile) -> Result<Option<String>, FileError> {
    let io = |error| FileError::at("read", path)(error);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(format!("{} is missing", path.display())));
        }
        Err(error) => return Err(io(error)),
    };
    let bytes = file.metadata().map_err(io)?.len();
    if bytes != expected.bytes {
        return Ok(Some(format!("{} has {bytes} bytes, not {}", path.display(), expected.bytes)));
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let found = hex(&hash.finalize());
    Ok((found != expected.sha256)
        .then(|| format!("{} has SHA-256 {found}, not {}", path.display(), expected.sha256)))
}
