//! Changes of bytes.

use crate::random::Random;

/// Numbers at which things overflow.
const EDGES: [&str; 12] = [
    "0",
    "-1",
    "1e999",
    "-0.0",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "2147483648",
    "65536",
    "1e-400",
    "999999999999999999999999999999999999",
];
const MOST_BLOCK: usize = 64;
const MOST_NESTING: usize = 2_000;

/// Changes an input once, with the help of another one and of the language's tokens. The outcome has at most
/// `longest` bytes.
pub(crate) fn change(
    input: &mut Vec<u8>,
    other: &[u8],
    tokens: &[Vec<u8>],
    longest: usize,
    random: &mut Random,
) {
    let at = random.below(input.len() + 1);
    match random.below(12) {
        0 => flip(input, random),
        1 => set(input, random),
        2 => insert(input, at, &[(random.number() & 0xff) as u8]),
        3 => cut(input, at, random),
        4 => double(input, at, random),
        5 | 6 => {
            if let Some(token) = random.pick(tokens) {
                insert(input, at, token);
            }
        }
        7 => {
            if let Some(edge) = random.pick(&EDGES) {
                insert(input, at, edge.as_bytes());
            }
        }
        8 => splice(input, at, other, random),
        9 => nest(input, at, tokens, random),
        10 => input.truncate(at),
        _ => swap(input, random),
    }
    input.truncate(longest);
}

fn flip(input: &mut [u8], random: &mut Random) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn set(input: &mut [u8], random: &mut Random) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte = *random
            .pick(&[0, 0x7f, 0x80, 0xff, b'"', b'{', b'}', b'\n', b' ', b'\\'])
            .unwrap_or(&0);
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}

fn block(input: &[u8], at: usize, random: &mut Random) -> std::ops::Range<usize> {
    at..(at + 1 + random.below(MOST_BLOCK)).min(input.len())
}

fn cut(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let block = block(input, at, random);
    if block.start < block.end {
        input.drain(block);
    }
}

fn double(input: &mut Vec<u8>, at: usize, random: &mut Random) {
    let block = block(input, at, random);
    if let Some(bytes) = input.get(block) {
        let bytes = bytes.repeat(1 + random.below(20));
        insert(input, at, &bytes);
    }
}

fn splice(input: &mut Vec<u8>, at: usize, other: &[u8], random: &mut Random) {
    let from = random.below(other.len() + 1);
    input.truncate(at);
    input.extend_from_slice(&other[from..]);
}

/// What opens something, very often.
fn nest(input: &mut Vec<u8>, at: usize, tokens: &[Vec<u8>], random: &mut Random) {
    const OPENING: [&[u8]; 6] = [b"[", b"{\"a\":", b"(", b"- ", b"{", b"!"];
    let token = match random.below(2) {
        0 => random.pick(tokens).map_or(&b"["[..], Vec::as_slice),
        _ => random.pick(&OPENING).copied().unwrap_or(b"["),
    };
    let bytes = token.repeat(random.below(MOST_NESTING));
    insert(input, at, &bytes);
}

fn swap(input: &mut [u8], random: &mut Random) {
    let (one, two) = (random.below(input.len()), random.below(input.len()));
    if one < input.len() && two < input.len() {
        input.swap(one, two);
    }
}
