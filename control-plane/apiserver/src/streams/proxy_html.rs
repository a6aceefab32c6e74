//! Links in HTML that comes through a proxy: those to absolute paths are made to stay behind it, as upstream
//! does (apimachinery `util/proxy`). A small tokenizer over a stream; what it does not understand passes as it is.

/// Attributes that hold addresses.
const LINKS: [&str; 15] = [
    "action",
    "archive",
    "background",
    "cite",
    "classid",
    "codebase",
    "data",
    "formaction",
    "href",
    "icon",
    "longdesc",
    "manifest",
    "poster",
    "src",
    "usemap",
];
/// An element's start beyond this many bytes passes as it is.
const MAX_TAG: usize = 64 * 1024;

/// Rewrites one document, piece by piece.
pub(super) struct Rewriter {
    base: String,
    /// The beginning of something that is not complete yet.
    held: Vec<u8>,
    /// Inside an element whose content is no markup.
    raw: Option<&'static str>,
}

impl Rewriter {
    /// `base` is put before absolute paths.
    pub(super) fn new(base: &str) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            held: Vec::new(),
            raw: None,
        }
    }

    /// Takes a piece, gives what is settled by it.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        let input = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(input.len() + 64);
        let mut rest = input.as_slice();
        while !rest.is_empty() {
            match self.step(rest, &mut out) {
                Some(used) => rest = &rest[used..],
                None if rest.len() > MAX_TAG => {
                    out.extend_from_slice(rest);
                    rest = &[];
                }
                None => break,
            }
        }
        self.held = rest.to_vec();
        out
    }

    /// The end of the document.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Passes one token; `None` when it is not complete.
    fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let Some(at) = input.iter().position(|b| *b == b'<') else {
            out.extend_from_slice(input);
            return Some(input.len());
        };
        if at > 0 {
            out.extend_from_slice(&input[..at]);
            return Some(at);
        }
        if let Some(element) = self.raw {
            return self.leave(element, input, out);
        }
        if input.len() < 4 && b"<!--".starts_with(input) {
            return None;
        }
        let length = if input.starts_with(b"<!--") {
            find(input, b"-->")? + 3
        } else {
            tag_length(input)?
        };
        let tag = &input[..length];
        if input[1].is_ascii_alphabetic() {
            self.tag(tag, out);
        } else {
            out.extend_from_slice(tag);
        }
        Some(length)
    }

    /// Inside a script or style: is this its end?
    fn leave(&mut self, element: &str, input: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let end = 2 + element.len();
        let start = &input[..input.len().min(end)];
        let wanted = format!("</{element}");
        let same = start.eq_ignore_ascii_case(&wanted.as_bytes()[..start.len()]);
        if same && start.len() < end {
            return None;
        }
        if same {
            self.raw = None;
        }
        out.push(b'<');
        Some(1)
    }

    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let name_end = tag[1..]
            .iter()
            .position(|b| b.is_ascii_whitespace() || matches!(b, b'>' | b'/'))
            .map_or(tag.len(), |at| at + 1);
        let name = &tag[1..name_end];
        self.raw = ["script", "style"]
            .into_iter()
            .find(|raw| name.eq_ignore_ascii_case(raw.as_bytes()));
        let mut at = name_end;
        let mut copied = 0;
        while let Some(attribute) = next_attribute(tag, at) {
            at = attribute.end;
            let value = &tag[attribute.value.clone()];
            let link = LINKS
                .iter()
                .any(|l| tag[attribute.name.clone()].eq_ignore_ascii_case(l.as_bytes()));
            // `//` begins another host, and what stays behind the proxy already is left alone.
            let absolute = value.starts_with(b"/")
                && !value.starts_with(b"//")
                && !value.starts_with(self.base.as_bytes());
            if link && absolute {
                out.extend_from_slice(&tag[copied..attribute.value.start]);
                out.extend_from_slice(self.base.as_bytes());
                copied = attribute.value.start;
            }
        }
        out.extend_from_slice(&tag[copied..]);
    }
}

fn find(input: &[u8], what: &[u8]) -> Option<usize> {
    input.windows(what.len()).position(|w| w == what)
}

/// Length of a tag: up to the first `>` outside quotes.
fn tag_length(input: &[u8]) -> Option<usize> {
    let mut quote = None;
    let mut after_equals = false;
    for (at, byte) in input.iter().enumerate() {
        match (quote, byte) {
            (Some(q), b) if q == *b => quote = None,
            (Some(_), _) => {}
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if after_equals => quote = Some(*byte),
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            after_equals = *byte == b'=';
        }
    }
    None
}

struct Attribute {
    name: std::ops::Range<usize>,
    /// Without quotes.
    value: std::ops::Range<usize>,
    end: usize,
}

fn next_attribute(tag: &[u8], from: usize) -> Option<Attribute> {
    let skip = |mut at: usize, pass: &dyn Fn(u8) -> bool| {
        while tag.get(at).is_some_and(|b| pass(*b)) {
            at += 1;
        }
        at
    };
    let space = |b: u8| b.is_ascii_whitespace();
    let start = skip(from, &|b| space(b) || b == b'/');
    let name_end = skip(start, &|b| !space(b) && !matches!(b, b'=' | b'>' | b'/'));
    if name_end == start {
        return None;
    }
    let equals = skip(name_end, &space);
    if tag.get(equals) != Some(&b'=') {
        return Some(Attribute {
            name: start..name_end,
            value: name_end..name_end,
            end: name_end,
        });
    }
    let value = skip(equals + 1, &space);
    let (value, end) = match tag.get(value) {
        Some(quote @ (b'"' | b'\'')) => {
            let end = skip(value + 1, &|b| b != *quote);
            (value + 1..end, (end + 1).min(tag.len()))
        }
        _ => {
            let end = skip(value, &|b| !space(b) && b != b'>');
            (value..end, end)
        }
    };
    Some(Attribute {
        name: start..name_end,
        value,
        end,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rewritten(html: &str) -> String {
        let mut rewriter = Rewriter::new("/proxy/");
        let mut out = rewriter.feed(html.as_bytes());
        out.extend(rewriter.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn absolute_paths_in_links_get_the_proxys_prefix() {
        assert_eq!(
            rewritten(r#"<a href="/rewriteme">test</a>"#),
            r#"<a href="/proxy/rewriteme">test</a>"#
        );
        assert_eq!(
            rewritten("<IMG alt=x SRC = '/a.png'/><form action=/go>"),
            "<IMG alt=x SRC = '/proxy/a.png'/><form action=/proxy/go>"
        );
    }

    #[test]
    fn other_addresses_texts_scripts_and_comments_pass_as_they_are() {
        for html in [
            r#"<a href="rel">/x</a> <a href="//host/x"> <a href="https://h/x"> <a title="/x">"#,
            r#"<script>if (a < b) s = '<a href="/x">'</script>"#,
            r#"<!-- <a href="/x"> --> 1 < 2"#,
            r#"<a href="/proxy/there">"#,
            "<a href='/never closed",
        ] {
            assert_eq!(rewritten(html), html);
        }
        assert_eq!(
            rewritten("<style>a<b</style><a href=/x>"),
            "<style>a<b</style><a href=/proxy/x>"
        );
    }

    proptest::proptest! {
        #[test]
        fn pieces_give_what_the_whole_gives(html in "[<>a-c/='\" !-]{0,60}|(<a href=\"/x\">|<script>|</script>|<!--|-->){0,6}", cut in 0..60_usize) {
            let whole = rewritten(&html);
            let mut rewriter = Rewriter::new("/proxy/");
            let cut = cut.min(html.len());
            let mut out = rewriter.feed(&html.as_bytes()[..cut]);
            out.extend(rewriter.feed(&html.as_bytes()[cut..]));
            out.extend(rewriter.finish());
            proptest::prop_assert_eq!(String::from_utf8(out).unwrap(), whole);
        }
    }
}
