//! The plugin's work done for a relay (`../relay/main.rs`), in the process of an agent that runs already.

use std::process::ExitCode;

use crate::answer;

/// The relay: a static program that hands what it was asked to a socket. Empty where it could not be compiled. It says
/// at its top where it expects the socket, and the whole program to fall back to.
pub const RELAY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/relay"));

/// Name of the socket that the relay asks, in the folder above its own.
pub const SOCKET: &str = "agent.sock";

/// Folder of the whole program under the plugins' names, beside the relay's.
pub const WHOLE: &str = "whole";

/// Does what a relay asks for, and answers as it expects. Blocks; never fails but by the answer.
#[must_use]
pub fn relayed(request: &[u8]) -> Vec<u8> {
    let (variables, input) = split(request);
    let value = |name: &str| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let (output, code) = answer(&value, input);
    let mut reply = vec![u8::from(code != ExitCode::SUCCESS)];
    reply.extend_from_slice(output.as_bytes());
    reply
}

/// Variables, and standard input.
fn split(request: &[u8]) -> (Vec<(&str, &str)>, &[u8]) {
    let (mut variables, mut rest) = (Vec::new(), request);
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        let (entry, tail) = (&rest[..end], &rest[end + 1..]);
        rest = tail;
        if entry.is_empty() {
            break;
        }
        let text = std::str::from_utf8(entry).unwrap_or_default();
        variables.extend(text.split_once('='));
    }
    (variables, rest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_relays_request_is_taken_apart_and_answered_with_a_code() {
        let (variables, input) = split(b"A=1\0B=x=y\0\0{\"a\":\0}");
        assert_eq!(variables, [("A", "1"), ("B", "x=y")]);
        assert_eq!(input, b"{\"a\":\0}");
        let versions = relayed(b"CNI_COMMAND=VERSION\0\0");
        assert_eq!(versions[0], 0);
        let told: serde_json::Value = serde_json::from_slice(&versions[1..]).unwrap();
        assert!(told["supportedVersions"].is_array());
        for nonsense in [&b""[..], b"CNI_COMMAND=ADD", b"\0\xff"] {
            assert_eq!(relayed(nonsense)[0], 1);
        }
    }
}
