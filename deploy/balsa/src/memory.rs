//! Keeps a long-running process small: gives back code that only the start needed.
//!
//! Most of an idle node's resident set is its own program file: code for joining, set-up and rare requests that
//! ran once. The kernel would take those pages back only when memory is short, so small nodes look fuller than
//! they are. Nothing is lost: a page that is needed again comes from the page cache.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How often the size is looked at.
const LOOK: Duration = Duration::from_secs(30);

/// When it is looked at first: the start has calmed down.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Resident file pages, in bytes, that are not worth the faults to give back.
const FILE_FLOOR: u64 = 12 << 20;

/// A mapping of the process, as `/proc/PID/smaps` tells of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Mapping {
    start: usize,
    end: usize,
    /// `r-xp` and the like.
    rights: String,
    /// File behind it; empty for anonymous memory.
    file: String,
    /// Resident bytes.
    resident: u64,
    /// Resident bytes that are in no file: changed pages. They must not be dropped.
    anonymous: u64,
}

impl Mapping {
    /// Can its pages be dropped without losing anything? Only pages of a file that nobody can write to, of
    /// which none was changed before (relocations are).
    fn droppable(&self) -> bool {
        self.file.starts_with('/')
            && self.rights.starts_with('r')
            && !self.rights.contains('w')
            && self.rights.ends_with('p')
            && self.anonymous == 0
    }
}

/// Trims the process every now and then until stopped.
pub async fn keep_small(stop: CancellationToken) {
    let mut pause = FIRST_LOOK;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = LOOK;
        // Reading the mappings takes a millisecond or two.
        let trimmed = tokio::task::spawn_blocking(trim).await.unwrap_or(0);
        if trimmed > 0 {
            debug!(bytes = trimmed, "gave back pages of the program file");
        }
    }
}

/// Gives back what is not in use; answers with the bytes of file pages dropped.
fn trim() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/smaps") else {
        return 0;
    };
    let mut mappings = parse(&text);
    mappings.retain(Mapping::droppable);
    let resident: u64 = mappings.iter().map(|mapping| mapping.resident).sum();
    if resident <= FILE_FLOOR {
        return 0;
    }
    for mapping in &mappings {
        // SAFETY: the range is a whole mapping of this process: private, of a file, never writable and with no
        // changed page, so dropping it makes the next access read the same bytes from the file.
        unsafe {
            libc::madvise(
                mapping.start as *mut libc::c_void,
                mapping.end - mapping.start,
                libc::MADV_DONTNEED,
            );
        }
    }
    resident
}

fn parse(smaps: &str) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        match first.strip_suffix(':') {
            Some(name) => {
                let Some(mapping) = all.last_mut() else {
                    continue;
                };
                let kibibytes = words.next().and_then(|word| word.parse::<u64>().ok());
                let bytes = kibibytes.and_then(|number| number.checked_mul(1024));
                match name {
                    "Rss" => mapping.resident = bytes.unwrap_or(0),
                    // What can't be read counts as changed.
                    "Anonymous" => mapping.anonymous = bytes.unwrap_or(u64::MAX),
                    _ => {}
                }
            }
            None => all.extend(head(first, words)),
        }
    }
    all
}

/// The line that begins a mapping: range, rights, offset, device, inode, file.
fn head<'a>(range: &str, mut words: impl Iterator<Item = &'a str>) -> Option<Mapping> {
    let (start, end) = range.split_once('-')?;
    let rights = words.next()?.to_owned();
    let file = words.nth(3).unwrap_or_default().to_owned();
    Some(Mapping {
        start: usize::from_str_radix(start, 16).ok()?,
        end: usize::from_str_radix(end, 16).ok()?,
        rights,
        file,
        // Until its line says otherwise.
        anonymous: u64::MAX,
        resident: 0,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SMAPS: &str = "\
555500000000-555500100000 r--p 00000000 fe:00 12 /usr/bin/balsa
Rss:                 512 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
555500100000-555500400000 r-xp 00100000 fe:00 12 /usr/bin/balsa
Rss:                2048 kB
Anonymous:             0 kB
555500400000-555500500000 r--p 00400000 fe:00 12 /usr/bin/balsa
Rss:                1024 kB
Anonymous:          1024 kB
555500500000-555500600000 rw-p 00500000 fe:00 12 /usr/bin/balsa
Rss:                  64 kB
Anonymous:             0 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Rss:                  16 kB
Anonymous:            16 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]
Rss:                   4 kB
Anonymous:             0 kB
";

    #[test]
    fn only_unchanged_pages_of_files_that_nobody_writes_to_are_dropped() {
        let mut mappings = parse(SMAPS);
        assert_eq!(mappings.len(), 6);
        mappings.retain(Mapping::droppable);
        let starts: Vec<_> = mappings.iter().map(|mapping| mapping.start).collect();
        assert_eq!(starts, [0x5555_0000_0000, 0x5555_0010_0000]);
        assert_eq!(mappings[1].resident, 2048 << 10);
    }

    #[test]
    fn a_mapping_without_its_numbers_is_left_alone() {
        let cut = "555500000000-555500100000 r-xp 00000000 fe:00 12 /usr/bin/balsa\nRss: 5 kB\n";
        assert!(!parse(cut)[0].droppable());
        assert!(parse("garbage\nRss: 1 kB\n").is_empty());
    }

    #[test]
    fn trimming_leaves_the_program_working() {
        trim();
        assert!(std::fs::read_to_string("/proc/self/smaps").is_ok());
    }
}
