//! The data folder: whose it is, which format it has, and that nobody else has it open.
//!
//! ```text
//! DIR/lock            held while open
//! DIR/identity.json   format, member, cluster, life
//! DIR/log/            Raft's log
//! DIR/state/N/        the state machine; N grows with each installed snapshot
//! DIR/state/current   which N
//! ```

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::OpenError;
use crate::types::MemberId;

/// The newest format that this version reads and the one that it writes.
const FORMAT: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    member: MemberId,
    cluster: Option<String>,
    /// It was made by this member, which may finish making it.
    #[serde(default)]
    founder: bool,
    /// See [`Folder::stands_from`].
    #[serde(default)]
    stands_from: u64,
    /// Grows with every start.
    life: u64,
}

/// An open data folder. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    identity: Mutex<Identity>,
    _lock: File,
}

/// Says with an error where it happened.
pub(crate) fn at(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError + '_ {
    move |source| OpenError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Folder {
    /// Opens or makes the folder and checks that it is this member's.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let dir = config.dir.clone();
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let lock = lock(&dir)?;
        let path = dir.join("identity.json");
        let mut identity = match fs::read(&path) {
            Ok(bytes) => read_identity(&dir, &path, &bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if dir.join("log").exists() {
                    return Err(OpenError::Damaged {
                        path,
                        detail: "it is missing, but there is a log".into(),
                    });
                }
                Identity {
                    format: FORMAT,
                    member: config.node_id,
                    cluster: None,
                    founder: false,
                    stands_from: 0,
                    life: 0,
                }
            }
            Err(error) => return Err(at(&path)(error)),
        };
        if identity.member != config.node_id {
            return Err(OpenError::OtherMember {
                dir,
                found: identity.member,
                expected: config.node_id,
            });
        }
        if let (Some(found), Some(expected)) = (&identity.cluster, &config.cluster_id)
            && found != expected
        {
            return Err(OpenError::OtherCluster {
                dir,
                found: found.clone(),
                expected: expected.clone(),
            });
        }
        identity.life = next_life(identity.life);
        write_identity(&dir, &identity).map_err(at(&path))?;
        Ok(Self {
            dir,
            identity: Mutex::new(identity),
            _lock: lock,
        })
    }

    /// Whose folder it is and of which cluster, without changing anything.
    pub fn look(dir: &Path) -> Result<(MemberId, Option<String>), OpenError> {
        let path = dir.join("identity.json");
        let bytes = fs::read(&path).map_err(at(&path))?;
        let identity = read_identity(dir, &path, &bytes)?;
        let _lock = lock(dir)?;
        Ok((identity.member, identity.cluster))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn member(&self) -> MemberId {
        self.identity.lock().member
    }

    pub fn life(&self) -> u64 {
        self.identity.lock().life
    }

    pub fn cluster(&self) -> Option<String> {
        self.identity.lock().cluster.clone()
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The index of the log entry from which on this member may stand for election: it was admitted there. What the
    /// log says before is who was a member long ago, possibly this one, and even alone.
    pub fn stands_from(&self) -> u64 {
        self.identity.lock().stands_from
    }

    /// Makes the folder part of a cluster, for good, whose log ended at an index or later. Harmless to repeat.
    ///
    /// # Errors
    /// In words: the folder is part of another cluster, or the disk failed.
    pub fn join(&self, cluster: &str, index: u64) -> Result<(), String> {
        self.become_member(cluster, false, index)
    }

    /// Makes a new cluster, or returns the one that was made here before.
    ///
    /// # Errors
    /// In words: the folder is part of a cluster that others made, or the disk failed.
    pub fn found(&self) -> Result<String, String> {
        let identity = self.identity.lock().clone();
        match identity.cluster {
            Some(cluster) if identity.founder => Ok(cluster),
            Some(cluster) => Err(format!(
                "member {} belongs to cluster {cluster} already",
                identity.member
            )),
            None => {
                let cluster = format!("{:032x}", rand::random::<u128>());
                self.become_member(&cluster, true, 0)?;
                Ok(cluster)
            }
        }
    }

    /// Makes a new cluster of what is here, whatever cluster it was of.
    ///
    /// # Errors
    /// In words: the disk failed.
    pub fn found_anew(&self) -> Result<String, String> {
        let mut identity = self.identity.lock();
        let cluster = format!("{:032x}", rand::random::<u128>());
        let anew = Identity {
            cluster: Some(cluster.clone()),
            founder: true,
            stands_from: 0,
            ..identity.clone()
        };
        write_identity(&self.dir, &anew)
            .map_err(|error| format!("{}: {error}", self.dir.display()))?;
        *identity = anew;
        Ok(cluster)
    }

    fn become_member(&self, cluster: &str, founder: bool, index: u64) -> Result<(), String> {
        let mut identity = self.identity.lock();
        match &identity.cluster {
            Some(mine) if mine == cluster && index <= identity.stands_from => return Ok(()),
            Some(mine) if mine == cluster => {}
            Some(mine) => {
                return Err(format!(
                    "member {} belongs to cluster {mine}, not {cluster}",
                    identity.member
                ));
            }
            None => {}
        }
        let joined = Identity {
            cluster: Some(cluster.to_owned()),
            founder,
            stands_from: index,
            ..identity.clone()
        };
        write_identity(&self.dir, &joined)
            .map_err(|error| format!("{}: {error}", self.dir.display()))?;
        *identity = joined;
        Ok(())
    }
}

/// A folder that was emptied starts at 0 again, yet must not repeat a life: so time counts too.
fn next_life(life: u64) -> u64 {
    wall_ms().max(life.saturating_add(1))
}

/// Milliseconds by this machine's clock, which may be wrong, and jump.
fn wall_ms() -> u64 {
    #[cfg(test)]
    if turmoil::in_simulation() {
        return crate::sim::wall_ms();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked {
            dir: dir.to_owned(),
            detail: format!("{} is locked", path.display()),
        }),
        Err(TryLockError::Error(error)) => Err(at(&path)(error)),
    }
}

fn read_identity(dir: &Path, path: &Path, bytes: &[u8]) -> Result<Identity, OpenError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let damaged = |error: serde_json::Error| OpenError::Damaged {
        path: path.to_owned(),
        detail: error.to_string(),
    };
    let Format { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format > FORMAT {
        return Err(OpenError::Newer {
            dir: dir.to_owned(),
            found: format,
            known: FORMAT,
        });
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

fn write_identity(dir: &Path, identity: &Identity) -> std::io::Result<()> {
    let bytes = serde_json::to_vec_pretty(identity).map_err(std::io::Error::other)?;
    replace_file(dir, "identity.json", &bytes)
}

/// Replaces a small file so that a crash leaves the old or the new one, whole.
pub(crate) fn replace_file(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(dir: &Path, node_id: MemberId) -> Config {
        Config::new(dir, node_id, "a:1", ([127, 0, 0, 1], 0).into(), None)
    }

    #[test]
    fn a_folder_remembers_its_member_and_cluster_and_counts_its_lives() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&config(dir.path(), 1)).unwrap();
        assert_eq!(folder.cluster(), None);
        folder.join("c1", 7).unwrap();
        folder.join("c1", 3).unwrap();
        assert_eq!(folder.stands_from(), 7);
        assert!(
            folder
                .join("c2", 9)
                .unwrap_err()
                .contains("belongs to cluster c1")
        );
        let life = folder.life();
        drop(folder);
        let folder = Folder::open(&config(dir.path(), 1)).unwrap();
        assert_eq!(folder.cluster().as_deref(), Some("c1"));
        assert_eq!(folder.stands_from(), 7);
        assert!(folder.life() > life);
    }

    #[test]
    fn only_the_founder_may_found() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&config(dir.path(), 1)).unwrap();
        let cluster = folder.found().unwrap();
        assert_eq!(folder.found().unwrap(), cluster);
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&config(dir.path(), 2)).unwrap();
        folder.join(&cluster, 0).unwrap();
        assert!(folder.found().is_err());
    }

    #[test]
    fn a_folder_of_another_member_or_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Folder::open(&config(dir.path(), 1))
            .unwrap()
            .join("c1", 0)
            .unwrap();
        let error = Folder::open(&config(dir.path(), 2)).unwrap_err();
        assert!(
            matches!(
                error,
                OpenError::OtherMember {
                    found: 1,
                    expected: 2,
                    ..
                }
            ),
            "{error}"
        );
        let other = Config {
            cluster_id: Some("c2".into()),
            ..config(dir.path(), 1)
        };
        let error = Folder::open(&other).unwrap_err();
        assert!(matches!(error, OpenError::OtherCluster { .. }), "{error}");
    }

    #[test]
    fn a_folder_of_a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("identity.json"),
            br#"{"format": 99, "shape": "unknown"}"#,
        )
        .unwrap();
        let error = Folder::open(&config(dir.path(), 1)).unwrap_err();
        assert!(
            matches!(
                error,
                OpenError::Newer {
                    found: 99,
                    known: FORMAT,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_folder_in_use_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _folder = Folder::open(&config(dir.path(), 1)).unwrap();
        let error = Folder::open(&config(dir.path(), 1)).unwrap_err();
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    }

    #[test]
    fn a_log_without_an_identity_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        let error = Folder::open(&config(dir.path(), 1)).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }
}
