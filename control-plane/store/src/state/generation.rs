//! The state's database: one folder per generation. Installing a snapshot makes a new one beside the old
//! one, then turns a pointer: a crash leaves one or the other, and readers never wait.

use std::fs;
use std::path::{Path, PathBuf};

use rocksdb::{Cache, DB};

use super::schema::{self, Damaged, Meta};
use crate::config::Tuning;
use crate::db;
use crate::error::OpenError;
use crate::fault::{self, Point};
use crate::folder::{at, replace_file};
use crate::raft::StoredMembership;

const POINTER: &str = "current";

/// An open database of the state.
pub(crate) struct Generation {
    pub db: DB,
    number: u64,
    path: PathBuf,
}

impl Generation {
    /// Opens the current generation under a folder, or makes the first, and removes what crashes left.
    pub fn open(dir: &Path, tuning: &Tuning, cache: &Cache) -> Result<Self, OpenError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let pointer = dir.join(POINTER);
        let number = match fs::read_to_string(&pointer) {
            Ok(text) => text.trim().parse().map_err(|_| OpenError::Damaged {
                path: pointer,
                detail: format!("{text:?} is not a number"),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                replace_file(dir, POINTER, b"1").map_err(at(&pointer))?;
                1
            }
            Err(error) => return Err(at(&pointer)(error)),
        };
        for entry in fs::read_dir(dir).map_err(at(dir))? {
            let path = entry.map_err(at(dir))?.path();
            if path.is_dir()
                && path.file_name().and_then(|name| name.to_str()) != Some(&number.to_string())
            {
                fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        Self::open_number(dir, number, tuning, cache)
    }

    fn open_number(
        dir: &Path,
        number: u64,
        tuning: &Tuning,
        cache: &Cache,
    ) -> Result<Self, OpenError> {
        let path = dir.join(number.to_string());
        let db = db::open_state(&path, tuning, cache)?;
        Ok(Self { db, number, path })
    }

    /// Takes over a received folder as the next generation. The old one stays open until its last reader is
    /// gone; [`Self::remove`] deletes its files.
    pub fn succeed(
        &self,
        received: &Path,
        tuning: &Tuning,
        cache: &Cache,
    ) -> Result<Self, OpenError> {
        let dir = self.path.parent().unwrap_or(&self.path);
        let next = dir.join((self.number + 1).to_string());
        // It may have been tried before.
        if received.exists() {
            if next.exists() {
                fs::remove_dir_all(&next).map_err(at(&next))?;
            }
            fs::rename(received, &next).map_err(at(received))?;
        }
        fault::point(Point::InstallRenamed);
        let generation = Self::open_number(dir, self.number + 1, tuning, cache)?;
        replace_file(dir, POINTER, (self.number + 1).to_string().as_bytes()).map_err(at(dir))?;
        fault::point(Point::InstallPointed);
        Ok(generation)
    }

    /// Deletes the files. Open readers keep what they have open.
    pub fn remove(&self) {
        self.db.cancel_all_background_work(false);
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "an old state is left for the next start to remove");
        }
    }

    pub fn meta(&self) -> Result<Meta, Damaged> {
        self.value(schema::META).map(Option::unwrap_or_default)
    }

    pub fn membership(&self) -> Result<StoredMembership, Damaged> {
        self.value(schema::MEMBERSHIP)
            .map(Option::unwrap_or_default)
    }

    pub fn value<T: serde::de::DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Damaged> {
        match self
            .db
            .get(key)
            .map_err(|error| Damaged(error.to_string()))?
        {
            Some(bytes) => schema::from_bytes(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Bytes of the database's files.
    pub fn disk_bytes(&self) -> u64 {
        self.db
            .property_int_value("rocksdb.total-sst-files-size")
            .ok()
            .flatten()
            .unwrap_or_default()
    }
}
