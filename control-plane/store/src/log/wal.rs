//! Looks through the files in which RocksDB keeps the log's newest writes, before it opens them.
//!
//! RocksDB reads them up to the first record that is not whole, and goes on without the rest: right for what was
//! being written when the power failed, wrong for what the disk lost later, which was acknowledged. The two can
//! be told apart, because every write of the log is synced before the next one begins: a record that is not whole
//! is the last one, or it was whole once. So if a whole one comes after it, this member must not go on.
//!
//! The format: blocks of 32 KiB, each of records with a checksum (a masked CRC-32C of what follows the length), a
//! length of two bytes, a type, and in files that are used again the low half of the file's number, by which the
//! records of its earlier use are told apart. A write that does not fit in a block is split into records of the
//! types first, middle and last.

use std::fs;
use std::path::Path;

use crate::crc::Crc32c;
use crate::error::OpenError;
use crate::folder::at;

const BLOCK: usize = 32 << 10;
/// Checksum, length, type.
const HEAD: usize = 7;
/// The same and the file's number.
const LONG_HEAD: usize = 11;
/// A whole write, and the first record of one that was split, in files that are used again.
const STARTS: [u8; 2] = [5, 6];

/// Checks the files in a database's folder; what has no files yet is sound.
///
/// # Errors
/// [`OpenError::Damaged`] names the file, [`OpenError::Io`] if one cannot be read.
pub(crate) fn check(dir: &Path) -> Result<(), OpenError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(dir)(error)),
    };
    for entry in entries {
        let path = entry.map_err(at(dir))?.path();
        let number = path
            .file_stem()
            .and_then(|stem| stem.to_str()?.parse().ok());
        let (Some(number), Some("log")) = (number, path.extension().and_then(|e| e.to_str()))
        else {
            continue;
        };
        let bytes = fs::read(&path).map_err(at(&path))?;
        if let Some(damage) = look(&bytes, number) {
            return Err(OpenError::Damaged {
                path,
                detail: format!(
                    "the record at byte {} cannot be read, but the one at byte {} after it can: the disk has lost what it had stored",
                    damage.bad, damage.good
                ),
            });
        }
    }
    Ok(())
}

/// Where a record is not whole, and where a whole one comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Damage {
    bad: usize,
    good: usize,
}

/// A record that is whole.
struct Record {
    /// Where the next one begins.
    end: usize,
    starts: bool,
}

/// Looks through a file's bytes.
fn look(bytes: &[u8], number: u64) -> Option<Damage> {
    let mut at = 0;
    while let Some(record) = record(bytes, at, number) {
        at = next(record.end);
    }
    let bad = at;
    // What the damaged record holds, if it says how long it is, may look like anything.
    let from = claimed(bytes, bad, number).unwrap_or(bad + 1);
    (from..bytes.len())
        .find(|good| record(bytes, *good, number).is_some_and(|record| record.starts))
        .map(|good| Damage { bad, good })
}

/// How many bytes of a file hold whole records of its own.
#[cfg(test)]
pub(crate) fn written(path: &Path) -> usize {
    let bytes = fs::read(path).unwrap_or_default();
    let stem = path
        .file_stem()
        .and_then(|stem| stem.to_str()?.parse().ok());
    let mut at = 0;
    while let Some(record) = record(&bytes, at, stem.unwrap_or_default()) {
        at = next(record.end);
    }
    at
}

/// No record begins where its head would not fit in the block.
fn next(at: usize) -> usize {
    let left = BLOCK - at % BLOCK;
    if left < LONG_HEAD { at + left } else { at }
}

/// The number that a file's records carry.
fn low_half(number: u64) -> [u8; 4] {
    #[allow(clippy::cast_possible_truncation)]
    let low = number as u32;
    low.to_le_bytes()
}

/// The end of the record at an offset, if its head is that of a record of this file.
fn claimed(bytes: &[u8], at: usize, number: u64) -> Option<usize> {
    let head = bytes.get(at..at.checked_add(HEAD)?)?;
    let long = match head[6] {
        1..=4 | 9 | 10 | 130 => false,
        5..=8 | 11 | 131 => true,
        _ => return None,
    };
    if long && *bytes.get(at + HEAD..at + LONG_HEAD)? != low_half(number) {
        return None;
    }
    let size = if long { LONG_HEAD } else { HEAD };
    let end = at + size + usize::from(u16::from_le_bytes([head[4], head[5]]));
    let fits = end <= bytes.len() && end - at <= BLOCK - at % BLOCK;
    fits.then_some(end)
}

/// The record at an offset, if it is whole.
fn record(bytes: &[u8], at: usize, number: u64) -> Option<Record> {
    let end = claimed(bytes, at, number)?;
    let stored = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?);
    if masked(Crc32c::of(&bytes[at + 6..end])) != stored {
        return None;
    }
    Some(Record {
        end,
        starts: STARTS.contains(&bytes[at + 6]),
    })
}

/// As RocksDB stores checksums, so that the checksum of bytes with checksums in them is a good one.
const fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const NUMBER: u64 = 7;

    fn put(file: &mut Vec<u8>, kind: u8, number: u32, payload: &[u8]) {
        let mut covered = vec![kind];
        covered.extend(number.to_le_bytes());
        covered.extend(payload);
        file.extend(masked(Crc32c::of(&covered)).to_le_bytes());
        file.extend(u16::try_from(payload.len()).unwrap().to_le_bytes());
        file.extend(covered);
    }

    fn pad(file: &mut Vec<u8>) {
        let padded = next(file.len());
        file.resize(padded, 0);
    }

    /// A file of whole writes, the records of an earlier use after them; and where the writes begin.
    fn file(sizes: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let (mut file, mut starts) = (Vec::new(), Vec::new());
        for size in sizes {
            let (mut left, mut first) = (*size, true);
            while first || left > 0 {
                pad(&mut file);
                if first {
                    starts.push(file.len());
                }
                let part = left.min(BLOCK - file.len() % BLOCK - LONG_HEAD);
                left -= part;
                let kind = match (first, left == 0) {
                    (true, true) => 5,
                    (true, false) => 6,
                    (false, false) => 7,
                    (false, true) => 8,
                };
                put(&mut file, kind, 7, &vec![0xab; part]);
                first = false;
            }
        }
        starts.push(file.len());
        pad(&mut file);
        put(&mut file, 5, 4, b"of an earlier use");
        (file, starts)
    }

    #[test]
    fn files_that_were_written_whole_are_sound() {
        assert_eq!(look(&[], NUMBER), None);
        assert_eq!(look(&[0; 5_000], NUMBER), None);
        let (file, _) = file(&[10, 40_000, 0, 70_000, 32_746]);
        assert_eq!(look(&file, NUMBER), None);
    }

    proptest! {
        #[test]
        fn a_byte_that_changed_is_found_unless_it_is_in_the_last_write(
            sizes in prop::collection::vec(0_usize..40_000, 2..5),
            position in any::<prop::sample::Index>(),
            flip in 1_u8..=255,
        ) {
            let (mut file, starts) = file(&sizes);
            let written = starts[sizes.len()];
            let position = position.index(written);
            // What fills a block up is not read.
            prop_assume!(next(position) == position || file[position] != 0);
            file[position] ^= flip;
            let last = starts[sizes.len() - 1];
            let found = look(&file, NUMBER);
            if position >= last {
                prop_assert_eq!(found, None);
            } else if let Some(damage) = found {
                prop_assert!(damage.bad <= position && position < damage.good);
            } else {
                // Between records nothing is lost, and a length that grew may hide what is left of a block.
                let block_ends = (position / BLOCK + 1) * BLOCK;
                let hidden = starts[..sizes.len()].iter().all(|start| *start <= position || *start < block_ends);
                prop_assert!(hidden, "byte {position} of {written}");
            }
        }

        #[test]
        fn a_write_that_was_cut_short_is_no_damage(
            sizes in prop::collection::vec(0_usize..40_000, 1..5),
            lost in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        ) {
            let (mut file, starts) = file(&sizes);
            // Any sectors of the last write may be missing.
            let (last, end) = (starts[sizes.len() - 1], starts[sizes.len()]);
            for lost in lost {
                let sector = last + lost.index(end - last) / 512 * 512;
                let end = end.min(sector + 512);
                file[sector..end].fill(0);
            }
            prop_assert_eq!(look(&file, NUMBER), None);
        }

        #[test]
        fn any_bytes_are_looked_through(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = look(&bytes, NUMBER);
        }
    }
}
