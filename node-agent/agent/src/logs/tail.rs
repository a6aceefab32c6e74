//! Where the last lines of a file begin, read from its end.

use std::io::{self, Read, Seek, SeekFrom};

/// Bytes read at a time.
const BLOCK: u64 = 32 * 1024;

/// Offset of the last `lines` whole container lines. A container line may be several lines of the file
/// (parts), so lines are counted by their last part.
///
/// # Errors
/// When the file cannot be read.
pub fn start_of_last(file: &mut (impl Read + Seek), lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut from = end;
    let mut text: Vec<u8> = Vec::new();
    while from > 0 {
        let block = BLOCK.min(from);
        from -= block;
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = vec![0; usize::try_from(block).unwrap_or(0)];
        file.read_exact(&mut bytes)?;
        bytes.extend_from_slice(&text);
        text = bytes;
        if let Some(at) = last_lines(&text, lines, from == 0) {
            return Ok(from + at as u64);
        }
    }
    Ok(0)
}

/// Offset in `text` where its last `lines` container lines begin; `None` when it does not reach so far back.
/// The beginning of `text` is that of a line only if `whole`.
fn last_lines(text: &[u8], lines: u64, whole: bool) -> Option<usize> {
    let mut starts: Vec<usize> = if whole { vec![0] } else { Vec::new() };
    starts.extend(text.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1));
    let mut count = 0;
    let mut chosen = None;
    for window in starts.windows(2).rev() {
        let ends_line = super::Line::parse(&text[window[0]..window[1]]).is_none_or(|line| line.full);
        if ends_line {
            if count == lines {
                return chosen;
            }
            count += 1;
        }
        chosen = Some(window[0]);
    }
    (whole && count <= lines).then_some(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Cursor;

    fn tail(text: &str, lines: u64) -> String {
        let at = start_of_last(&mut Cursor::new(text.as_bytes()), lines).unwrap();
        text[usize::try_from(at).unwrap()..].to_owned()
    }

    #[test]
    fn the_last_lines_are_found_with_all_their_parts() {
        let text = "t stdout F a\nt stdout P b\nt stdout F b\nt stdout F c\n";
        assert_eq!(tail(text, 0), "");
        assert_eq!(tail(text, 1), "t stdout F c\n");
        assert_eq!(tail(text, 2), "t stdout P b\nt stdout F b\nt stdout F c\n");
        assert_eq!(tail(text, 9), text);
    }

    #[test]
    fn a_file_longer_than_a_block_is_searched_backwards() {
        let text: String = (0..5000).map(|i| format!("t stdout F line {i}\n")).collect();
        let got = tail(&text, 3000);
        assert!(got.starts_with("t stdout F line 2000\n"), "{}", &got[..30]);
    }

    #[test]
    fn an_empty_file_has_no_lines() {
        assert_eq!(tail("", 5), "");
    }
}
