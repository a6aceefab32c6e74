//! Addresses for pods from the node's CIDR, kept on disk.
//!
//! Each CNI call is a process of its own, and many run at once: they take turns by a lock on a file beside
//! the table (`flock`, released by the kernel when its holder dies), and the table is replaced by rename, so
//! that a reader never sees half of one.

mod table;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};

pub use table::Allocation;
use table::Table;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every address is taken.
    #[error(
        "no free addresses in {cidr}: all {used} are in use; delete pods on this node or give it a larger pod CIDR"
    )]
    Full {
        /// The node's CIDR.
        cidr: IpNet,
        /// Addresses in use.
        used: usize,
    },
    /// The table cannot be read or written.
    #[error("address table {path}: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

/// Addresses of one node. Any number of processes may use the same folder at once.
#[derive(Debug, Clone)]
pub struct Ipam {
    folder: PathBuf,
    cidr: IpNet,
}

impl Ipam {
    /// Uses (and makes, if needed) the table in `folder`; new addresses come from `cidr`.
    pub fn open(folder: &Path, cidr: IpNet) -> Result<Self, Error> {
        std::fs::create_dir_all(folder).map_err(|source| Error::Io {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            cidr: cidr.trunc(),
        })
    }

    /// Gives a container's interface an address. Asked again, it gives the same.
    pub fn allocate(&self, container: &str, interface: &str) -> Result<IpAddr, Error> {
        let new = Allocation {
            container: container.to_owned(),
            interface: interface.to_owned(),
            since: now(),
        };
        self.edit(|table| table.allocate(self.cidr, new))?
    }

    /// Takes back the address of a container's interface. No address is no error.
    pub fn release(&self, container: &str, interface: &str) -> Result<Vec<IpAddr>, Error> {
        self.edit(|table| table.release(container, Some(interface)))
    }

    /// The address of a container's interface.
    pub fn lookup(&self, container: &str, interface: &str) -> Result<Option<IpAddr>, Error> {
        let _lock = self.lock()?;
        Ok(self.load()?.find(container, interface))
    }

    /// All allocations.
    pub fn allocations(&self) -> Result<Vec<(IpAddr, Allocation)>, Error> {
        let _lock = self.lock()?;
        Ok(self.load()?.allocations.into_iter().collect())
    }

    /// Takes back addresses of containers that are not `live`. Those given within `grace` stay: a sandbox
    /// that is being made has its address before the runtime lists it.
    pub fn collect(&self, live: &HashSet<String>, grace: Duration) -> Result<Vec<IpAddr>, Error> {
        let before = now().saturating_sub(grace.as_secs());
        let released = self.edit(|table| table.collect(live, before))?;
        if !released.is_empty() {
            tracing::info!(?released, "took back addresses of containers that are gone");
        }
        Ok(released)
    }

    fn edit<T>(&self, edit: impl FnOnce(&mut Table) -> T) -> Result<T, Error> {
        let _lock = self.lock()?;
        let mut table = self.load()?;
        let before = table.clone();
        let outcome = edit(&mut table);
        if table != before {
            self.store(&table)?;
        }
        Ok(outcome)
    }

    fn table_path(&self) -> PathBuf {
        self.folder.join("addresses.json")
    }

    fn lock(&self) -> Result<Flock<File>, Error> {
        let path = self.folder.join("lock");
        let fail = |source| Error::Io {
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(fail)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| fail(errno.into()))
    }

    fn load(&self) -> Result<Table, Error> {
        let path = self.table_path();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Table::default()),
            Err(source) => return Err(Error::Io { path, source }),
        };
        // A table is never half written by us, but a power cut may leave an empty one, or half of one; no pod
        // survives that either.
        if bytes.is_empty() {
            return Ok(Table::default());
        }
        match serde_json::from_slice(&bytes) {
            Ok(table) => Ok(table),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the address table is damaged; starting a new one");
                let aside = path.with_extension("damaged");
                std::fs::rename(&path, aside).map_err(|source| Error::Io { path, source })?;
                Ok(Table::default())
            }
        }
    }

    fn store(&self, table: &Table) -> Result<(), Error> {
        let (path, new) = (self.table_path(), self.folder.join("addresses.new"));
        let bytes = serde_json::to_vec(table).map_err(|e| Error::Io {
            path: path.clone(),
            source: e.into(),
        })?;
        std::fs::write(&new, bytes)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(|source| Error::Io { path, source })
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cidr() -> IpNet {
        "10.244.1.0/24".parse().unwrap()
    }

    #[test]
    fn addresses_survive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let ip = Ipam::open(folder.path(), cidr())
            .unwrap()
            .allocate("a", "eth0")
            .unwrap();
        let later = Ipam::open(folder.path(), cidr()).unwrap();
        assert_eq!(later.lookup("a", "eth0").unwrap(), Some(ip));
        assert_eq!(later.release("a", "eth0").unwrap(), [ip]);
        assert_eq!(later.release("a", "eth0").unwrap(), Vec::<IpAddr>::new());
        assert_eq!(later.lookup("a", "eth0").unwrap(), None);
    }

    #[test]
    fn callers_at_once_get_different_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let ipam = &Ipam::open(folder.path(), cidr()).unwrap();
        let given: HashSet<IpAddr> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|t| {
                    scope.spawn(move || {
                        (0..10)
                            .map(|i| ipam.allocate(&format!("{t}-{i}"), "eth0").unwrap())
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().unwrap())
                .collect()
        });
        assert_eq!(given.len(), 80);
        assert_eq!(ipam.allocations().unwrap().len(), 80);
    }

    #[test]
    fn a_damaged_table_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("addresses.json"), b"{\"allocations\":").unwrap();
        let ipam = Ipam::open(folder.path(), cidr()).unwrap();
        assert_eq!(
            ipam.allocate("a", "eth0").unwrap().to_string(),
            "10.244.1.1"
        );
        assert!(folder.path().join("addresses.damaged").exists());
    }

    #[test]
    fn an_empty_table_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("addresses.json"), b"").unwrap();
        let ipam = Ipam::open(folder.path(), cidr()).unwrap();
        assert!(ipam.allocations().unwrap().is_empty());
        ipam.allocate("a", "eth0").unwrap();
        assert_eq!(ipam.allocations().unwrap().len(), 1);
        assert!(!folder.path().join("addresses.damaged").exists());
    }

    #[test]
    fn sandboxes_that_vanished_give_their_addresses_back() {
        let folder = tempfile::tempdir().unwrap();
        let ipam = Ipam::open(folder.path(), cidr()).unwrap();
        let ip = ipam.allocate("gone", "eth0").unwrap();
        assert!(
            ipam.collect(&HashSet::new(), Duration::from_secs(300))
                .unwrap()
                .is_empty()
        );
        let path = folder.path().join("addresses.json");
        let long_ago = std::fs::read_to_string(&path)
            .unwrap()
            .replace("\"since\":1", "\"since\":");
        std::fs::write(&path, long_ago).unwrap();
        assert_eq!(
            ipam.collect(&HashSet::new(), Duration::from_secs(300))
                .unwrap(),
            [ip]
        );
    }
}
