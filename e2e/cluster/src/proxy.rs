//! `kubectl proxy`: the API over plain HTTP, with the caller's rights, for requests that no kubectl command sends.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::Kubectl;

const PATIENCE: Duration = Duration::from_secs(30);

/// A proxy on a port of its choice; ends with this value.
pub struct Proxy {
    process: Child,
    address: String,
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub code: u16,
    /// Status line and headers.
    pub head: String,
    /// Body.
    pub body: String,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Proxy {
    /// Starts one.
    ///
    /// # Errors
    /// When kubectl does not say where it listens.
    pub fn start(kubectl: &Kubectl) -> anyhow::Result<Self> {
        let mut process = kubectl
            .command(&["proxy", "--port=0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let printed = process.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(printed).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().unwrap_or_default();
        Ok(Self {
            process,
            address: address.to_owned(),
        })
    }

    /// Sends a request; `line` is method and path.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub fn send(&self, line: &str, headers: &[&str], body: &str) -> anyhow::Result<Answer> {
        let mut stream = self.connect()?;
        // HTTP/1.0: the answer ends with the connection.
        write!(stream, "{line} HTTP/1.0\r\nHost: localhost\r\n")?;
        for header in headers {
            write!(stream, "{header}\r\n")?;
        }
        write!(stream, "Content-Length: {}\r\n\r\n{body}", body.len())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let code = head.split(' ').nth(1).unwrap_or_default();
        Ok(Answer {
            code: code.parse().context("no status code")?,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    /// Asks for another protocol, and returns the connection that speaks it.
    ///
    /// # Errors
    /// When the answer is not 101.
    pub fn upgrade(&self, path: &str, protocol: &str) -> anyhow::Result<TcpStream> {
        let mut stream = self.connect()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        )?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101"), "{head}");
        Ok(stream)
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}
