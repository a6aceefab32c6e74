//! Reads JSON in place, for the one pass that makes protobuf of it. Much quicker than a general reader, because
//! nothing is kept and nothing is checked that the pass does not need: the bytes are ones that serde_json wrote.

use std::borrow::Cow;

/// Values within values; as many as serde_json reads.
const MAX_DEPTH: u8 = 128;

/// Where the pass has come to. All methods answer `None` when the bytes are not what they expect.
pub(super) struct Reader<'j> {
    json: &'j str,
    at: usize,
    depth: u8,
}

impl<'j> Reader<'j> {
    /// At the start of some JSON.
    pub fn new(json: &'j [u8]) -> Option<Self> {
        Some(Self {
            json: std::str::from_utf8(json).ok()?,
            at: 0,
            depth: 0,
        })
    }

    /// The first byte of what comes next.
    pub fn peek(&mut self) -> Option<u8> {
        let bytes = self.json.as_bytes();
        loop {
            match bytes.get(self.at)? {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                byte => return Some(*byte),
            }
        }
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// Into an object (`{`) or a list (`[`); [`Self::next_name`] or [`Self::next_item`] leads out of it.
    pub fn enter(&mut self, open: u8) -> Option<()> {
        self.expect(open)?;
        self.depth += 1;
        (self.depth < MAX_DEPTH).then_some(())
    }

    /// Is there more before `close`? A comma has to stand between.
    fn more(&mut self, close: u8, first: &mut bool) -> Option<bool> {
        if self.peek()? == close {
            self.at += 1;
            self.depth -= 1;
            return Some(false);
        }
        if !std::mem::replace(first, false) {
            self.expect(b',')?;
        }
        Some(true)
    }

    /// The name of an object's next field; within `None` at its end. `first` is true before the first one.
    pub fn next_name(&mut self, first: &mut bool) -> Option<Option<Cow<'j, str>>> {
        if !self.more(b'}', first)? {
            return Some(None);
        }
        let name = self.text()?;
        self.expect(b':')?;
        Some(Some(name))
    }

    /// Is there another item in the list? `first` is true before the first one.
    pub fn next_item(&mut self, first: &mut bool) -> Option<bool> {
        self.more(b']', first)
    }

    /// A text.
    pub fn text(&mut self) -> Option<Cow<'j, str>> {
        self.expect(b'"')?;
        let start = self.at;
        let (end, escaped) = closing_quote(self.json.as_bytes(), start)?;
        self.at = end + 1;
        if escaped {
            let quoted = self.json.get(start - 1..=end)?;
            return serde_json::from_str(quoted).ok().map(Cow::Owned);
        }
        self.json.get(start..end).map(Cow::Borrowed)
    }

    /// The characters of a number or a word.
    pub fn word(&mut self) -> Option<&'j str> {
        self.peek()?;
        let rest = self.json.get(self.at..)?;
        let length = rest
            .bytes()
            .position(|b| matches!(b, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'))
            .unwrap_or(rest.len());
        self.at += length;
        rest.get(..length)
    }

    /// Passes over a value, and returns its characters.
    pub fn value(&mut self) -> Option<&'j str> {
        self.peek()?;
        let bytes = self.json.as_bytes();
        let start = self.at;
        let mut open = 0_usize;
        loop {
            match self.peek()? {
                b'"' => self.at = closing_quote(bytes, self.at + 1)?.0 + 1,
                b'{' | b'[' => {
                    open += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    open = open.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' if open > 0 => self.at += 1,
                _ => {
                    let from = self.at;
                    while matches!(
                        bytes.get(self.at),
                        Some(b'0'..=b'9' | b'a'..=b'z' | b'E' | b'+' | b'-' | b'.')
                    ) {
                        self.at += 1;
                    }
                    // Neither a number nor a word.
                    (self.at > from).then_some(())?;
                }
            }
            if open == 0 {
                return self.json.get(start..self.at);
            }
        }
    }
}

/// Where the text that begins at `at` ends, and whether something in it is escaped.
fn closing_quote(bytes: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut escaped = false;
    loop {
        at = quote_or_backslash(bytes, at)?;
        if bytes.get(at) == Some(&b'"') {
            return Some((at, escaped));
        }
        escaped = true;
        at += 2;
    }
}

/// Eight bytes at a time: a byte is zero if taking one off it borrows from its highest bit.
fn quote_or_backslash(bytes: &[u8], mut at: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHEST: u64 = ONES << 7;
    const QUOTES: u64 = ONES * b'"' as u64;
    const BACKSLASHES: u64 = ONES * b'\\' as u64;
    while let Some(eight) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(eight.try_into().ok()?);
        let (quotes, backslashes) = (word ^ QUOTES, word ^ BACKSLASHES);
        let zeros =
            (quotes.wrapping_sub(ONES) & !quotes) | (backslashes.wrapping_sub(ONES) & !backslashes);
        let found = zeros & HIGHEST;
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = bytes.get(at..)?;
    let found = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
    Some(at + found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    /// The value that the reader sees, built again.
    fn read(reader: &mut Reader<'_>) -> Option<Value> {
        let mut first = true;
        Some(match reader.peek()? {
            b'"' => reader.text()?.into(),
            b'{' => {
                let mut object = serde_json::Map::new();
                reader.enter(b'{')?;
                while let Some(name) = reader.next_name(&mut first)? {
                    object.insert(name.into_owned(), read(reader)?);
                }
                object.into()
            }
            b'[' => {
                let mut list = Vec::new();
                reader.enter(b'[')?;
                while reader.next_item(&mut first)? {
                    list.push(read(reader)?);
                }
                list.into()
            }
            _ => serde_json::from_str(reader.word()?).ok()?,
        })
    }

    #[test]
    fn what_serde_writes_is_read_back() {
        let value = json!({"": [], "a\"b\\": {"ö\n": [1, -2.5e10, true, null, "\u{1}", "longer than eight \\ bytes"]},
            "nested": {"x": {}, "y": [[], {}]}});
        for text in [
            value.to_string(),
            serde_json::to_string_pretty(&value).unwrap(),
        ] {
            assert_eq!(
                read(&mut Reader::new(text.as_bytes()).unwrap()).unwrap(),
                value
            );
            let whole = Reader::new(text.as_bytes()).unwrap().value();
            assert_eq!(whole.unwrap(), text);
        }
    }

    #[test]
    fn what_is_cut_off_ends_without_a_fuss() {
        let text = json!({"a\"b\\": [1, {"c": null}], "d": "e\\"}).to_string();
        for end in 0..text.len() {
            let cut = &text.as_bytes()[..end];
            assert!(read(&mut Reader::new(cut).unwrap()).is_none());
            assert!(Reader::new(cut).unwrap().value().is_none());
        }
        let deep = "[".repeat(100_000);
        assert!(read(&mut Reader::new(deep.as_bytes()).unwrap()).is_none());
    }
}
