//! Running a command to its end, bounded in time.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// What a command printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; -1 when it was killed by a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The output of a command that should have succeeded.
    ///
    /// # Errors
    /// With all it printed if it did not.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.code == 0 {
            return Ok(self.stdout);
        }
        bail!(
            "`{}` exited with {}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        )
    }

    /// What a command that should have failed printed to standard error.
    ///
    /// # Errors
    /// If it succeeded.
    pub fn failed(self) -> anyhow::Result<String> {
        if self.code != 0 {
            return Ok(self.stderr);
        }
        bail!(
            "`{}` should have failed\nstdout: {}",
            self.command,
            self.stdout
        )
    }
}

/// Runs a command with standard input; kills it after `deadline`.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn run(command: &mut Command, input: &str, deadline: Duration) -> anyhow::Result<Output> {
    let line = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_owned();
    // A command that does not read its input is no failure.
    let feed = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let stdout = drain(child.stdout.take().context("no standard output")?);
    let stderr = drain(child.stderr.take().context("no standard error")?);
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("`{line}` did not end within {} s", deadline.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let _ = feed.join();
    let text = |reader: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned()
    };
    Ok(Output {
        command: line,
        code: status.code().unwrap_or(-1),
        stdout: text(stdout),
        stderr: text(stderr),
    })
}

fn drain(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all);
        all
    })
}
