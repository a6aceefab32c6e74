//! Checks a data folder, of a member that does not run, without changing it.

use std::path::{Path, PathBuf};

use openraft::EntryPayload;
use rocksdb::{DB, IteratorMode, Options, ReadOptions};

use crate::error::OpenError;
use crate::folder::Folder;
use crate::log::{self, LogFacts};
use crate::state::{StateChecker, StateFacts};
use crate::types::{MemberId, Revision};

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Whose folder it is.
    pub member: Option<MemberId>,
    /// The cluster that it belongs to, if any.
    pub cluster: Option<String>,
    /// The newest revision whose effects are on disk. The log may hold later ones.
    pub revision: Revision,
    /// Keys at that revision.
    pub keys: u64,
    /// Entries in the log.
    pub entries: u64,
    /// Everything that is wrong. Empty if the folder is sound.
    pub problems: Vec<Problem>,
}

/// Something that is wrong with a data folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {detail}")]
pub struct Problem {
    /// Which file or folder.
    pub path: PathBuf,
    /// What is wrong with it, and what to do.
    pub detail: String,
}

/// What to do with damage.
const ADVICE: &str = "if the other members are well, remove this member, move its folder away and join again with an empty one; otherwise restore a snapshot";

/// Reads everything in a data folder, checks every checksum and whether the parts fit together. Changes
/// nothing. A member must not run on it.
#[must_use]
pub fn verify(dir: &Path) -> Report {
    let mut report = Report::default();
    let mut checker = Checker {
        dir,
        report: &mut report,
    };
    if !dir.is_dir() {
        checker.problem(dir, "there is no such folder".to_owned());
        return report;
    }
    checker.identity();
    let log = checker.log();
    let state = checker.state();
    if let (Some(log), Some(state)) = (log, state) {
        checker.both(&log, &state);
    }
    report
}

struct Checker<'a> {
    dir: &'a Path,
    report: &'a mut Report,
}

impl Checker<'_> {
    fn problem(&mut self, path: &Path, detail: String) {
        self.report.problems.push(Problem {
            path: path.to_owned(),
            detail,
        });
    }

    fn damage(&mut self, path: &Path, detail: &str) {
        self.problem(path, format!("{detail}; {ADVICE}"));
    }

    fn identity(&mut self) {
        match Folder::look(self.dir) {
            Ok((member, cluster)) => {
                self.report.member = Some(member);
                self.report.cluster = cluster;
            }
            Err(error) => self.problem(&self.dir.join("identity.json"), error.to_string()),
        }
    }

    fn open(&mut self, path: &Path) -> Option<DB> {
        if !path.is_dir() {
            self.damage(path, "it is missing");
            return None;
        }
        let mut options = Options::default();
        options.set_paranoid_checks(true);
        match DB::open_for_read_only(&options, path, false) {
            Ok(db) => Some(db),
            Err(error) => {
                self.damage(path, error.as_ref());
                None
            }
        }
    }

    fn log(&mut self) -> Option<LogFacts> {
        let path = self.dir.join("log");
        match log::wal::check(&path) {
            Ok(()) => {}
            Err(OpenError::Damaged { path, detail }) => {
                self.damage(&path, &detail);
                return None;
            }
            Err(error) => {
                self.problem(&path, error.to_string());
                return None;
            }
        }
        let db = self.open(&path)?;
        let mut facts = match LogFacts::read(&db) {
            Ok(facts) => facts,
            Err(error) => {
                self.damage(&path, &error.to_string());
                return None;
            }
        };
        for item in db.iterator_opt(IteratorMode::Start, checked()) {
            let checked = item
                .map_err(|error| error.to_string())
                .and_then(|(key, value)| facts.entry(&key, value.into_vec()));
            match checked {
                Ok(Some(entry)) => {
                    self.report.entries += 1;
                    if let EntryPayload::Normal(pack) = &entry.payload
                        && let Err(error) = pack.open()
                    {
                        let index = entry.log_id.index;
                        self.damage(&path, &format!("entry {index}: {error}"));
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    self.damage(&path, &error);
                    return None;
                }
            }
        }
        if let Some(term) = facts.last.as_ref().map(log::term)
            && term > facts.vote_term
        {
            let voted = facts.vote_term;
            self.damage(
                &path,
                &format!("its last entry is of term {term}, but its vote of term {voted}"),
            );
        }
        Some(facts)
    }

    fn state(&mut self) -> Option<StateFacts> {
        let dir = self.dir.join("state");
        let pointer = dir.join("current");
        let number = match std::fs::read_to_string(&pointer) {
            Ok(number) => number.trim().to_owned(),
            Err(error) => {
                self.damage(&pointer, &error.to_string());
                return None;
            }
        };
        let path = dir.join(number);
        let db = self.open(&path)?;
        let mut state = match StateChecker::new(&db) {
            Ok(state) => state,
            Err(error) => {
                self.damage(&path, &error.to_string());
                return None;
            }
        };
        for item in db.iterator_opt(IteratorMode::Start, checked()) {
            let checked = item
                .map_err(|error| error.to_string())
                .and_then(|(key, value)| state.record(&db, &key, &value));
            if let Err(error) = checked {
                self.damage(&path, &error);
                return None;
            }
        }
        let facts = state.facts();
        self.report.revision = facts.revision;
        self.report.keys = facts.keys;
        Some(facts)
    }

    /// The log must reach the state without a gap. It may end before it: a majority of other members is enough
    /// for an entry to be applied.
    fn both(&mut self, log: &LogFacts, state: &StateFacts) {
        let path = self.dir.join("log");
        let purged = log.purged.map_or(0, |purged| purged.index);
        if purged > state.applied {
            let applied = state.applied;
            self.damage(
                &path,
                &format!("it begins after entry {purged}, but the state ends at entry {applied}"),
            );
        }
    }
}

fn checked() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options.fill_cache(false);
    options
}
