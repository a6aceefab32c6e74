//! A snapshot in a file: written from a running member, read into a new cluster.
//!
//! ```text
//! "balsa-store-snapshot 1\n"
//! u32 length, head as JSON               whose it is and what it covers
//! u32 length, u32 CRC-32, a part ...     pairs of length-prefixed keys and values, in key order
//! u32 0, u32 CRC-32 of all CRCs          the end
//! ```

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::crc::Crc32;
use crate::raft::SnapshotMeta;
use crate::state::View;
use crate::threads::blocking;
use crate::types::Revision;

const MAGIC: &[u8] = b"balsa-store-snapshot 1\n";
/// No part and no head is longer: what claims to be is damaged.
const LONGEST: usize = 64 << 20;

/// What a snapshot file covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The cluster that it was taken from.
    pub cluster: String,
    /// Its newest revision.
    pub revision: Revision,
    /// Records of all kinds in it.
    pub records: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Why a snapshot file could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no snapshot, or not whole.
    #[error("{path} is not a whole snapshot: {detail}; use another one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Head {
    pub cluster: String,
    pub revision: Revision,
    pub meta: SnapshotMeta,
}

/// Writes a view to a file, whole or not at all. The file is synced. What may block does so on another thread: the
/// caller's is Raft's own.
pub(crate) async fn save(
    path: &Path,
    head: &Head,
    view: &View,
) -> Result<SnapshotInfo, ArchiveError> {
    let temporary = path.with_extension("partial");
    let saved = write(&temporary, path, head, view).await;
    if saved.is_err() {
        // On a full disk it would keep it full.
        let _ = std::fs::remove_file(&temporary);
    }
    saved.map_err(|source| ArchiveError::Io {
        path: path.to_owned(),
        source,
    })
}

async fn write(
    temporary: &Path,
    path: &Path,
    head: &Head,
    view: &View,
) -> io::Result<SnapshotInfo> {
    let head_bytes = serde_json::to_vec(head).map_err(io::Error::other)?;
    let first = temporary.to_owned();
    let begun = move || {
        let mut file = Out::create(&first)?;
        file.put(MAGIC)?;
        file.put_length(head_bytes.len())?;
        file.put(&head_bytes)?;
        Ok(file)
    };
    let mut file: Out = blocking(begun).await.flatten()?;
    let (mut after, mut records, mut crcs) = (None, 0, Crc32::default());
    loop {
        let part = view.part(after.take()).await?;
        if part.is_empty() {
            break;
        }
        let crc = Crc32::of(&part);
        crcs.add(&crc.to_be_bytes());
        records += crate::state::count_pairs(&part);
        after = crate::state::last_key(&part);
        let put = move || {
            file.put_length(part.len())?;
            file.put(&crc.to_be_bytes())?;
            file.put(&part)?;
            Ok(file)
        };
        file = blocking(put).await.flatten()?;
    }
    let (temporary, path) = (temporary.to_owned(), path.to_owned());
    let end = move || {
        file.put_length(0)?;
        file.put(&crcs.value().to_be_bytes())?;
        let bytes = file.bytes;
        file.finish(&temporary, &path).map(|()| bytes)
    };
    let bytes = blocking(end).await.flatten()?;
    Ok(SnapshotInfo {
        cluster: head.cluster.clone(),
        revision: head.revision,
        records,
        bytes,
    })
}

/// Reads a file: its head, then its parts, each checked.
pub(crate) struct Archive {
    path: PathBuf,
    file: BufReader<File>,
    crcs: Crc32,
    ended: bool,
}

impl Archive {
    pub fn open(path: &Path) -> Result<(Head, Self), ArchiveError> {
        let file = File::open(path).map_err(|source| ArchiveError::Io {
            path: path.to_owned(),
            source,
        })?;
        let mut archive = Self {
            path: path.to_owned(),
            file: BufReader::new(file),
            crcs: Crc32::default(),
            ended: false,
        };
        let magic = archive.take(MAGIC.len())?;
        if magic != MAGIC {
            return Err(archive.damaged("it does not begin as one of this version"));
        }
        let length = archive.take_length()?;
        let head = archive.take(length)?;
        let head = serde_json::from_slice(&head);
        let head = head.map_err(|error| archive.damaged(&error.to_string()))?;
        Ok((head, archive))
    }

    /// The next part; `None` after the last.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let length = self.take_length()?;
        let crc = self.take_number()?;
        if length == 0 {
            self.ended = true;
            let whole = crc == self.crcs.value() && self.file.read(&mut [0]).is_ok_and(|n| n == 0);
            return if whole {
                Ok(None)
            } else {
                Err(self.damaged("its end does not fit the rest"))
            };
        }
        let part = self.take(length)?;
        if Crc32::of(&part) != crc {
            return Err(self.damaged("a part's checksum is wrong"));
        }
        self.crcs.add(&crc.to_be_bytes());
        Ok(Some(part))
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, ArchiveError> {
        if length > LONGEST {
            return Err(self.damaged("a length in it is impossible"));
        }
        let mut bytes = vec![0; length];
        match self.file.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged("it is cut short"))
            }
            Err(source) => Err(ArchiveError::Io {
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn take_number(&mut self) -> Result<u32, ArchiveError> {
        let bytes = self.take(4)?;
        let number = bytes.try_into().map(u32::from_be_bytes);
        number.map_err(|_| self.damaged("it is cut short"))
    }

    fn take_length(&mut self) -> Result<usize, ArchiveError> {
        self.take_number().map(|length| length as usize)
    }

    fn damaged(&self, detail: &str) -> ArchiveError {
        ArchiveError::Damaged {
            path: self.path.clone(),
            detail: detail.to_owned(),
        }
    }
}

struct Out {
    file: BufWriter<File>,
    bytes: u64,
}

impl Out {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufWriter::new(File::create(path)?),
            bytes: 0,
        })
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.file.write_all(bytes)
    }

    fn put_length(&mut self, length: usize) -> io::Result<()> {
        let length = u32::try_from(length).map_err(io::Error::other)?;
        self.put(&length.to_be_bytes())
    }

    fn finish(self, temporary: &Path, path: &Path) -> io::Result<()> {
        let file = self
            .file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(temporary, path)?;
        let folder = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }
}
