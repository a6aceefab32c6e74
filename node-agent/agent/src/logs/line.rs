//! One line of a log file, and which lines a client wants.

use balsa_link::protocol::LogOptions;
use jiff::{SignedDuration, Timestamp};

/// A line as the runtime wrote it, newline included if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// When, as text.
    pub time: &'a [u8],
    /// `stdout` or `stderr`.
    pub stream: &'a [u8],
    /// Whether the container's line ends here.
    pub full: bool,
    /// What the container wrote, without the newline.
    pub text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Takes a line of the file apart; `None` for what is no such line.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
        if stream != b"stdout" && stream != b"stderr" {
            return None;
        }
        // Tags are separated by colons; the first says whether the line is whole.
        let full = tags.first()? == &b'F';
        Some(Self { time, stream, full, text: parts.next().unwrap_or_default() })
    }

    fn timestamp(&self) -> Option<Timestamp> {
        std::str::from_utf8(self.time).ok()?.parse().ok()
    }
}

/// Which lines a client wants, and how they are to look. Keeps state: a time stamp goes before a whole line
/// only, not before each of its parts.
#[derive(Debug, Clone)]
pub struct Filter {
    since: Option<Timestamp>,
    stream: Option<&'static [u8]>,
    timestamps: bool,
    within_line: bool,
}

impl Filter {
    /// From a client's options; relative times count from `now`.
    pub fn new(options: &LogOptions, now: Timestamp) -> Self {
        let relative = options.since_seconds.and_then(|seconds| {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            now.checked_sub(SignedDuration::from_secs(seconds)).ok()
        });
        let absolute = options.since_time.as_deref().and_then(|text| text.parse().ok());
        let stream: Option<&'static [u8]> = match options.stream.as_deref() {
            Some("Stdout") => Some(b"stdout"),
            Some("Stderr") => Some(b"stderr"),
            _ => None,
        };
        Self { since: relative.max(absolute), stream, timestamps: options.timestamps, within_line: false }
    }

    /// Appends what the client is to see of a line of the file.
    pub fn render(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = Line::parse(line) else { return };
        if self.stream.is_some_and(|wanted| wanted != line.stream) {
            return;
        }
        if let Some(since) = self.since {
            if line.timestamp().is_none_or(|at| at < since) {
                return;
            }
        }
        if self.timestamps && !self.within_line {
            out.extend_from_slice(line.time);
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if line.full {
            out.push(b'\n');
        }
        self.within_line = !line.full;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FILE: &[&[u8]] = &[
        b"2026-01-01T00:00:01.5Z stdout F one\n",
        b"2026-01-01T00:00:02Z stderr F two words\n",
        b"2026-01-01T00:00:03Z stdout P thr\n",
        b"2026-01-01T00:00:04Z stdout F ee\n",
        b"2026-01-01T00:00:05Z stdout F\n",
    ];

    fn shown(options: &LogOptions) -> String {
        let mut filter = Filter::new(options, "2026-01-01T00:00:04Z".parse().unwrap());
        let mut out = Vec::new();
        for line in FILE {
            filter.render(line, &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn parts_of_a_line_are_joined_and_empty_lines_stay() {
        assert_eq!(shown(&LogOptions::default()), "one\ntwo words\nthree\n\n");
    }

    #[test]
    fn a_time_stamp_goes_before_each_whole_line_once() {
        let text = shown(&LogOptions { timestamps: true, stream: Some("Stdout".into()), ..Default::default() });
        assert!(text.starts_with("2026-01-01T00:00:01.5Z one\n2026-01-01T00:00:03Z three\n"), "{text}");
    }

    #[test]
    fn since_leaves_out_what_is_older() {
        assert_eq!(shown(&LogOptions { since_seconds: Some(2), ..Default::default() }), "two words\nthree\n\n");
        let since_time = Some("2026-01-01T00:00:04Z".to_owned());
        assert_eq!(shown(&LogOptions { since_time, ..Default::default() }), "ee\n\n");
    }

    #[test]
    fn binary_text_passes_unharmed_and_other_lines_are_passed_over() {
        let mut filter = Filter::new(&LogOptions::default(), Timestamp::UNIX_EPOCH);
        let mut out = Vec::new();
        filter.render(b"2026-01-01T00:00:01Z stdout F \xff\x00 x\n", &mut out);
        filter.render(b"garbage\n", &mut out);
        assert_eq!(out, b"\xff\x00 x\n");
    }
}
