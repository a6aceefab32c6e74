//! One line of a log as runtimes write it: `TIME STREAM TAGS TEXT`.

use jiff::Timestamp;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// When it was written, as text.
    pub(super) time: &'a str,
    /// `stdout` or `stderr`.
    pub(super) stream: &'a str,
    /// The line goes on in the next one.
    pub(super) partial: bool,
    /// What was written.
    pub(super) text: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads one line, without its line feed; `None` if it is not in the format.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut parts = bytes.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = std::str::from_utf8(parts.next()?).ok()?;
        let tags = parts.next()?;
        let text = parts.next().unwrap_or_default();
        if !matches!(stream, "stdout" | "stderr") {
            return None;
        }
        Some(Self {
            time,
            stream,
            partial: tags.split(|byte| *byte == b':').next() == Some(b"P"),
            text,
        })
    }

    /// When it was written.
    pub(super) fn at(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::Line;

    #[test]
    fn whole_and_partial_lines_are_read_and_others_are_not() {
        let line = Line::parse(b"2026-01-01T00:00:00.5Z stdout F two words").unwrap();
        assert_eq!(
            (line.stream, line.partial, line.text),
            ("stdout", false, &b"two words"[..])
        );
        assert!(line.at().is_some());
        assert!(
            Line::parse(b"2026-01-01T00:00:00Z stderr P x")
                .unwrap()
                .partial
        );
        assert_eq!(
            Line::parse(b"2026-01-01T00:00:00Z stdout F").unwrap().text,
            b""
        );
        assert_eq!(Line::parse(b"hello"), None);
        assert_eq!(Line::parse(b"a b c d"), None);
    }
}
