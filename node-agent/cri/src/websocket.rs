//! A minimal WebSocket client (RFC 6455) for a runtime's streaming server, speaking `v4.channel.k8s.io`: the
//! first byte of each binary message is the channel. Runtimes refuse v5 (containerd 1.6 to 1.7), so the end of
//! standard input is the end of its connection: who attaches has one for it and another for the outputs (`join`).
//! Exec in containerd goes through its task service instead.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, debug_span};

use crate::error::{Error, Result};
use crate::runtime::{Control, Session, StreamSpec};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

const OP_CONTINUATION: u8 = 0;
const OP_BINARY: u8 = 2;
const OP_CLOSE: u8 = 8;
const OP_PING: u8 = 9;
const OP_PONG: u8 = 10;

/// Largest message taken from the runtime.
const MAX_MESSAGE: usize = 4 << 20;

/// Bytes buffered between a pump and its reader.
const PIPE: usize = 64 << 10;

/// Connects to a URL given by the runtime and splits it into a session.
pub(crate) async fn open(url: &str, spec: StreamSpec) -> Result<Session> {
    let (address, path) = split_url(url).ok_or_else(|| {
        Error::local(
            "the runtime's streaming URL",
            format!("{url:?} is not http://host:port/path"),
        )
    })?;
    let failed =
        |error: io::Error| Error::local(format!("streaming to the runtime at {address}"), error);
    let stream = TcpStream::connect(address).await.map_err(failed)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    handshake(&mut read, &mut write, address, path)
        .await
        .map_err(failed)?;

    let (stdout, stdout_pump) = pipe(spec.stdout);
    let (stderr, stderr_pump) = pipe(spec.stderr && !spec.tty);
    let (stdin, stdin_pump) = pipe(spec.stdin);
    let (control, control_rx) = mpsc::channel(16);
    let (exit_tx, exit) = oneshot::channel();
    let (out_tx, out_rx) = mpsc::channel(16);
    tokio::spawn(write_frames(write, out_rx).instrument(debug_span!("runtime-stream-write")));
    let only_input = spec.stdin && !spec.stdout && !spec.stderr;
    tokio::spawn(
        send_input(stdin_pump, only_input, control_rx, out_tx.clone())
            .instrument(debug_span!("runtime-stream-input")),
    );
    let pump = async move {
        let ended = receive(read, stdout_pump, stderr_pump, out_tx).await;
        let _ = exit_tx.send(ended.map_err(|error| Error::local("the runtime's stream", error)));
    };
    tokio::spawn(pump.instrument(debug_span!("runtime-stream-read")));
    Ok(Session {
        stdin: stdin.map(|pipe| Box::new(pipe) as _),
        stdout: stdout.map(|pipe| Box::new(pipe) as _),
        stderr: stderr.map(|pipe| Box::new(pipe) as _),
        control,
        exit,
    })
}

/// One session of two connections to the same process: its outputs, and its input.
pub(crate) fn join(outputs: Session, input: Session, ends_with_input: bool) -> Session {
    let (control, mut instructions) = mpsc::channel(16);
    let (exit_tx, exit) = oneshot::channel();
    let (stdout, stderr, stdin) = (outputs.stdout, outputs.stderr, input.stdin);
    // Held until the end: a connection goes when nobody can instruct it any more.
    let (to_outputs, to_input) = (outputs.control, input.control);
    let (mut ended, mut fed) = (outputs.exit, input.exit);
    let follow = async move {
        let mut feeding = true;
        let result = loop {
            tokio::select! {
                result = &mut ended => break result.unwrap_or(Ok(0)),
                _ = &mut fed, if feeding => {
                    feeding = false;
                    if ends_with_input {
                        break Ok(0);
                    }
                }
                instruction = instructions.recv() => match instruction {
                    // The input's own end says so.
                    Some(Control::CloseStdin) => {}
                    Some(resize @ Control::Resize { .. }) => {
                        let _ = to_outputs.send(resize).await;
                    }
                    Some(Control::Kill) | None => break Ok(0),
                },
            }
        };
        drop((to_outputs, to_input));
        let _ = exit_tx.send(result);
    };
    tokio::spawn(follow.instrument(debug_span!("runtime-stream-join")));
    Session {
        stdin,
        stdout,
        stderr,
        control,
        exit,
    }
}

fn pipe(wanted: bool) -> (Option<DuplexStream>, Option<DuplexStream>) {
    if !wanted {
        return (None, None);
    }
    let (ours, theirs) = tokio::io::duplex(PIPE);
    (Some(ours), Some(theirs))
}

fn split_url(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let slash = rest.find('/')?;
    Some(rest.split_at(slash))
}

async fn handshake(
    read: &mut (impl AsyncBufReadExt + Unpin),
    write: &mut (impl AsyncWriteExt + Unpin),
    address: &str,
    path: &str,
) -> io::Result<()> {
    // The key proves nothing between a node and its own runtime, so any 16 bytes do.
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: YmFsc2EtYmFsc2EtMTIzNA==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    );
    write.write_all(request.as_bytes()).await?;
    let mut status = String::new();
    read.read_line(&mut status).await?;
    let mut line = String::new();
    loop {
        line.clear();
        if read.read_line(&mut line).await? == 0 || line == "\r\n" {
            break;
        }
    }
    if status.split_whitespace().nth(1) != Some("101") {
        return Err(io::Error::other(format!(
            "answered {:?} to the upgrade",
            status.trim()
        )));
    }
    Ok(())
}

/// One frame, unfragmented, masked as clients must; a zero mask leaves the payload as it is.
fn frame(opcode: u8, channel: Option<u8>, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() + usize::from(channel.is_some());
    let mut out = Vec::with_capacity(length + 14);
    out.push(0x80 | opcode);
    match length {
        0..=125 => out.push(0x80 | length as u8),
        126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend(channel);
    out.extend_from_slice(payload);
    out
}

async fn write_frames(mut write: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if write.write_all(&frame).await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

async fn send_input(
    mut stdin: Option<DuplexStream>,
    only_input: bool,
    mut control: mpsc::Receiver<Control>,
    out: mpsc::Sender<Vec<u8>>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = async {
            match stdin.as_mut() {
                Some(stdin) => stdin.read(&mut buffer).await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            read = read => match read {
                Ok(0) | Err(_) if only_input => frame(OP_CLOSE, None, &[]),
                Ok(0) | Err(_) => {
                    stdin = None;
                    continue;
                }
                Ok(length) => frame(OP_BINARY, Some(STDIN), &buffer[..length]),
            },
            control = control.recv() => match control {
                Some(Control::Resize { width, height }) => {
                    let size = format!(r#"{{"Width":{width},"Height":{height}}}"#);
                    frame(OP_BINARY, Some(RESIZE), size.as_bytes())
                }
                Some(Control::CloseStdin) => continue,
                Some(Control::Kill) | None => frame(OP_CLOSE, None, &[]),
            },
        };
        let close = message[0] & 0x0f == OP_CLOSE;
        if out.send(message).await.is_err() || close {
            return;
        }
    }
}

async fn receive(
    mut read: impl AsyncReadExt + Unpin,
    mut stdout: Option<DuplexStream>,
    mut stderr: Option<DuplexStream>,
    out: mpsc::Sender<Vec<u8>>,
) -> io::Result<i32> {
    let mut message = Vec::new();
    let mut exit = 0;
    loop {
        let (last, opcode, payload) = match read_frame(&mut read).await {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(exit),
            Err(error) => return Err(error),
        };
        match opcode {
            OP_CLOSE => return Ok(exit),
            OP_PING => {
                let _ = out.send(frame(OP_PONG, None, &payload)).await;
            }
            OP_CONTINUATION..=OP_BINARY => {
                message.extend_from_slice(&payload);
                if message.len() > MAX_MESSAGE {
                    return Err(io::Error::other("message too large"));
                }
                if !last {
                    continue;
                }
                let whole = std::mem::take(&mut message);
                let Some((&channel, data)) = whole.split_first() else {
                    continue;
                };
                match channel {
                    STDOUT => forward(&mut stdout, data).await,
                    STDERR => forward(&mut stderr, data).await,
                    // Says that the connection is there, where no output could.
                    ERROR if data.is_empty() => {}
                    ERROR => exit = exit_code(data).map_err(io::Error::other)?,
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

async fn forward(pipe: &mut Option<DuplexStream>, data: &[u8]) {
    if let Some(writer) = pipe
        && writer.write_all(data).await.is_err()
    {
        *pipe = None;
    }
}

async fn read_frame(read: &mut (impl AsyncReadExt + Unpin)) -> io::Result<(bool, u8, Vec<u8>)> {
    let mut head = [0; 2];
    read.read_exact(&mut head).await?;
    let length = match head[1] & 0x7f {
        126 => u64::from(read.read_u16().await?),
        127 => read.read_u64().await?,
        short => u64::from(short),
    };
    if length > MAX_MESSAGE as u64 {
        return Err(io::Error::other("frame too large"));
    }
    let mut mask = [0; 4];
    if head[1] & 0x80 != 0 {
        read.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; length as usize];
    read.read_exact(&mut payload).await?;
    for (index, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[index % 4];
    }
    Ok((head[0] & 0x80 != 0, head[0] & 0x0f, payload))
}

/// The exit code in the `Status` that ends a v4 stream, or the failure's words.
fn exit_code(status: &[u8]) -> Result<i32, String> {
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(status) else {
        return Err(String::from_utf8_lossy(status).into_owned());
    };
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status
        .pointer("/details/causes")
        .and_then(|causes| causes.as_array());
    let code = causes
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode");
    match code.and_then(|cause| cause["message"].as_str()?.parse().ok()) {
        Some(code) => Ok(code),
        None => Err(status["message"]
            .as_str()
            .unwrap_or("the stream failed")
            .to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn frames_of_every_length_class_are_read_back() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload = vec![7; length];
            let bytes = frame(OP_BINARY, Some(STDOUT), &payload);
            let (last, opcode, got) = read_frame(&mut bytes.as_slice()).await.unwrap();
            assert!(last);
            assert_eq!((opcode, got[0], got.len()), (OP_BINARY, STDOUT, length + 1));
        }
    }

    #[tokio::test]
    async fn an_oversized_frame_is_refused_before_memory_is_taken() {
        let mut bytes = vec![0x82, 127];
        bytes.extend_from_slice(&u64::MAX.to_be_bytes());
        assert!(read_frame(&mut bytes.as_slice()).await.is_err());
    }

    /// A session of a process in memory, and what belongs to its other end.
    fn half() -> (
        Session,
        oneshot::Sender<Result<i32>>,
        mpsc::Receiver<Control>,
    ) {
        let (control, instructions) = mpsc::channel(1);
        let (ended, exit) = oneshot::channel();
        let session = Session {
            stdin: None,
            stdout: None,
            stderr: None,
            control,
            exit,
        };
        (session, ended, instructions)
    }

    #[tokio::test]
    async fn an_input_that_ends_leaves_the_outputs_of_a_process_that_ends_with_it() {
        let (outputs, ended, _) = half();
        let (input, fed, mut kept) = half();
        let joined = join(outputs, input, false);
        fed.send(Ok(0)).unwrap();
        ended.send(Ok(3)).unwrap();
        assert_eq!(joined.exit.await.unwrap().unwrap(), 3);
        assert_eq!(kept.recv().await, None);
    }

    #[tokio::test]
    async fn a_session_whose_process_goes_on_ends_with_its_input() {
        let (outputs, _ended, mut left) = half();
        let (input, fed, _) = half();
        let joined = join(outputs, input, true);
        fed.send(Ok(0)).unwrap();
        assert_eq!(joined.exit.await.unwrap().unwrap(), 0);
        assert_eq!(left.recv().await, None);
    }

    #[tokio::test]
    async fn an_empty_message_that_greets_is_no_failure() {
        // From a server, whose frames are not masked: to the channel of failures nothing, and then the end.
        let frames = [0x82, 1, ERROR, 0x88, 0];
        let (out, _) = mpsc::channel(1);
        assert_eq!(receive(&frames[..], None, None, out).await.unwrap(), 0);
    }

    #[test]
    fn the_final_status_gives_the_exit_code_or_the_failure() {
        assert_eq!(exit_code(br#"{"status":"Success"}"#), Ok(0));
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","message":"exit 7",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(exit_code(failed), Ok(7));
        assert_eq!(
            exit_code(br#"{"status":"Failure","message":"no"}"#),
            Err("no".to_owned())
        );
    }

    #[test]
    fn only_plain_http_urls_with_a_path_are_taken() {
        assert_eq!(
            split_url("http://127.0.0.1:9/exec/x"),
            Some(("127.0.0.1:9", "/exec/x"))
        );
        assert_eq!(split_url("ftp://x/"), None);
        assert_eq!(split_url("http://x"), None);
    }
}
