//! Reading container logs as the runtime writes them: one file per container instance, lines of
//! `<RFC 3339 time> <stdout|stderr> <P|F> <text>` (the CRI log format; `P` marks a part of a longer line).

mod follow;
mod line;
mod tail;

use std::fs;
use std::path::{Path, PathBuf};

pub use follow::{ReadError, copy};
pub use line::{Filter, Line};

/// The log file of a container instance.
pub fn file(directory: &Path, attempt: u32) -> PathBuf {
    directory.join(format!("{attempt}.log"))
}

/// Instances that have a log, oldest first.
pub fn attempts(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<u32> = entries
        .filter_map(|e| e.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

/// The instance that a request means: the newest, or the one before it.
pub fn pick(attempts: &[u32], previous: bool) -> Option<u32> {
    attempts.iter().rev().nth(usize::from(previous)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_previous_instance_is_the_one_before_the_newest() {
        assert_eq!(pick(&[0, 1, 4], false), Some(4));
        assert_eq!(pick(&[0, 1, 4], true), Some(1));
        assert_eq!(pick(&[0], true), None);
    }
}
