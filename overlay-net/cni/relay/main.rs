//! The program that the container runtime starts as CNI plugin: it hands what it was asked to the agent, which is
//! running already, and prints the answer. Starting the whole program for each pod costs some ten times as much,
//! most of it for relocations.
//!
//! Without an agent, or when it does not answer, the whole program does the work, as if it had been called.
//!
//! Files, where this program is `DIR/bin/NAME`: the agent's socket is `DIR/agent.sock`, the whole program
//! `DIR/whole/NAME`. The request is `NAME=VALUE` for each variable, each ended by a zero byte, one more zero byte, and
//! standard input; the answer the exit code as one byte, and standard output.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// How long the agent is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the specification has the runtime say.
const VARIABLES: [&str; 6] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
];

fn main() -> ExitCode {
    let called = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let mut input = Vec::new();
    // What is missing is found out when it is needed.
    let _ = io::stdin().read_to_end(&mut input);
    let folder = called.parent().and_then(Path::parent);
    let folder = folder.unwrap_or_else(|| Path::new("."));
    match ask(&folder.join("agent.sock"), &input) {
        Ok((code, output)) => {
            let _ = io::stdout().write_all(&output);
            ExitCode::from(code)
        }
        Err(_) => {
            let name = called.file_name().unwrap_or_default();
            do_all(&folder.join("whole").join(name), &input)
        }
    }
}

fn ask(socket: &Path, input: &[u8]) -> io::Result<(u8, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    for name in VARIABLES {
        if let Ok(value) = std::env::var(name) {
            request.extend_from_slice(name.as_bytes());
            request.push(b'=');
            request.extend_from_slice(value.as_bytes());
            request.push(0);
        }
    }
    request.push(0);
    request.extend_from_slice(input);
    stream.write_all(&request)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let code = answer.remove(0);
    Ok((code, answer))
}

/// Asked twice for the same, the plugin does it once: an agent that died half-way is no matter.
fn do_all(program: &Path, input: &[u8]) -> ExitCode {
    let run = || -> io::Result<u8> {
        let mut child = Command::new(program).stdin(Stdio::piped()).spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input)?;
        }
        let code = child.wait()?.code();
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    };
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let program = program.display().to_string().replace(['"', '\\'], "?");
            println!(
                "{{\"cniVersion\":\"1.0.0\",\"code\":102,\"msg\":\"neither an agent nor {program} does it: {error}\"}}"
            );
            ExitCode::FAILURE
        }
    }
}
