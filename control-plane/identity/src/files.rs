//! Files of secrets: mode 0600, replaced as a whole, durable before the call returns.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::Error;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

/// Makes a folder that only its owner may enter, with its parents.
///
/// # Errors
/// When the folder cannot be made.
pub fn make_dir(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io(dir))
}

/// Replaces a file: write beside it, fsync, rename, fsync the folder. A crash leaves the old or the new
/// content, never a part.
///
/// # Errors
/// When any of these steps fails; the old content is then still there.
pub fn write_secret(path: &Path, content: &[u8]) -> Result<(), Error> {
    let parent = path
        .parent()
        .ok_or_else(|| Error::invalid(path.display().to_string(), "has no folder"))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = parent.join(name);
    // A left-over of a crash may have other permissions; mode() only applies to files it creates.
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&beside)(e)),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        .map_err(io(&beside))?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(io(&beside))?;
    fs::rename(&beside, path).map_err(io(path))?;
    fs::File::open(parent)
        .and_then(|d| d.sync_all())
        .map_err(io(parent))
}

/// Reads a file; `None` when there is none.
///
/// # Errors
/// Any other failure to read.
pub fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path)(e)),
    }
}
