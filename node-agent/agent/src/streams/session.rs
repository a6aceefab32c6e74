//! A process's streams over a framed stream of the link.

use std::time::Duration;

use balsa_cri::{Control, ReadHalf, Session};
use balsa_link::protocol::Channel;
use balsa_link::{read_frame, write_frame};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::debug;

use super::{Reader, Writer, accept};

/// Bytes read from a process at a time.
const CHUNK: usize = 32 * 1024;

/// How long output may still come after the process has ended: a child may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Copies between a client and a process until the process ends or the client leaves.
pub(super) async fn serve(session: Session, reader: Reader, mut writer: Writer) {
    if accept(&mut writer, 200).await.is_ok() {
        run(session, reader, writer).await;
    }
}

/// The same for a client that was told already that there will be a process.
pub(super) async fn run(session: Session, reader: Reader, mut writer: Writer) {
    let Session {
        stdin,
        stdout,
        stderr,
        control,
        exit,
    } = session;
    let (frames, out) = mpsc::channel::<(u8, Bytes)>(16);
    let output = async {
        let (out, err) = (frames.clone(), frames.clone());
        let copies = async move {
            tokio::join!(
                copy_out(stdout, Channel::STDOUT, out),
                copy_out(stderr, Channel::STDERR, err)
            );
        };
        let mut copies = Box::pin(copies);
        // The process's end or that of its output, whichever is first, is waited for with the other.
        let mut exit = exit;
        let code = tokio::select! {
            code = &mut exit => {
                let _ = tokio::time::timeout(DRAIN, &mut copies).await;
                code
            }
            () = &mut copies => exit.await,
        };
        let status = status(code.unwrap_or_else(|_| {
            Err(balsa_cri::Error::Local {
                what: "the process".to_owned(),
                message: "was lost".to_owned(),
            })
        }));
        drop(copies);
        let _ = frames.send((Channel::STATUS, status)).await;
        drop(frames);
    };
    let write = write_frames(&mut writer, out);
    let whole = async {
        tokio::join!(output, write);
    };
    tokio::select! {
        () = whole => {}
        () = copy_in(reader, stdin, control) => debug!("a client left its session"),
    }
    let _ = writer.shutdown().await;
}

/// Tells a client, who was told that there will be a process, that it could not be started.
pub(super) async fn fail(error: &balsa_cri::Error, mut writer: Writer) {
    let message = format!(
        "error executing command in container: failed to exec in container: {}",
        error.message()
    );
    let error = balsa_cri::Error::Rpc {
        code: "Unknown",
        message,
    };
    let _ = write_frame(&mut writer, Channel::STATUS, &status(Err(error))).await;
    let _ = writer.shutdown().await;
}

async fn copy_out(stream: Option<ReadHalf>, channel: u8, frames: mpsc::Sender<(u8, Bytes)>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return,
            Ok(length) => {
                if frames
                    .send((channel, Bytes::copy_from_slice(&buffer[..length])))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                debug!(%error, channel, "a process's output broke off");
                return;
            }
        }
    }
}

async fn write_frames(writer: &mut Writer, mut frames: mpsc::Receiver<(u8, Bytes)>) {
    while let Some((channel, payload)) = frames.recv().await {
        if write_frame(writer, channel, &payload).await.is_err() {
            // Nobody reads any more; the process goes on until it writes to a closed pipe.
            frames.close();
            return;
        }
    }
}

/// Handles what the client sends; ends only when the client is gone.
async fn copy_in(
    mut reader: Reader,
    mut stdin: Option<balsa_cri::WriteHalf>,
    control: mpsc::Sender<Control>,
) {
    loop {
        match read_frame(&mut reader).await {
            Ok(Some((Channel::STDIN, payload))) => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&payload).await.is_err()
                {
                    stdin = None;
                }
            }
            Ok(Some((Channel::RESIZE, payload))) => {
                if let Ok(Size { width, height }) = serde_json::from_slice(&payload) {
                    let _ = control.send(Control::Resize { width, height }).await;
                }
            }
            Ok(Some((Channel::CLOSE, payload))) if payload.first() == Some(&Channel::STDIN) => {
                stdin = None;
                let _ = control.send(Control::CloseStdin).await;
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return,
        }
    }
}

/// The outcome as a `Status`.
fn status(exit: balsa_cri::Result<i32>) -> Bytes {
    let status = match exit {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: {}", error.message()),
            "reason": "InternalError",
            "details": {"causes": [{"message": error.message()}]},
            "code": 500,
        }),
    };
    Bytes::from(status.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balsa_link::protocol::StreamReply;
    use balsa_link::read_message;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn output_comes_before_the_exit_code_and_input_can_end() {
        let (client, node) = tokio::io::duplex(1 << 16);
        let (node_read, node_write) = tokio::io::split(node);
        let (mut client_read, mut client_write) = tokio::io::split(client);
        let (stdin_ours, mut stdin_theirs) = tokio::io::duplex(1024);
        let (control, mut controls) = mpsc::channel(4);
        let (exit_tx, exit) = oneshot::channel();
        let session = Session {
            stdin: Some(Box::new(stdin_ours)),
            stdout: Some(Box::new(std::io::Cursor::new(b"out".to_vec()))),
            stderr: Some(Box::new(std::io::Cursor::new(b"err".to_vec()))),
            control,
            exit,
        };
        let served = tokio::spawn(serve(session, Box::new(node_read), Box::new(node_write)));
        let reply: StreamReply = read_message(&mut client_read).await.unwrap();
        assert_eq!(reply, StreamReply::Ok { code: 200 });
        write_frame(&mut client_write, Channel::STDIN, b"in")
            .await
            .unwrap();
        write_frame(
            &mut client_write,
            Channel::RESIZE,
            br#"{"Width":80,"Height":24}"#,
        )
        .await
        .unwrap();
        write_frame(&mut client_write, Channel::CLOSE, &[Channel::STDIN])
            .await
            .unwrap();
        let mut typed = String::new();
        stdin_theirs.read_to_string(&mut typed).await.unwrap();
        assert_eq!(typed, "in");
        assert_eq!(
            controls.recv().await,
            Some(Control::Resize {
                width: 80,
                height: 24
            })
        );
        assert_eq!(controls.recv().await, Some(Control::CloseStdin));
        exit_tx.send(Ok(7)).unwrap();
        let mut frames = Vec::new();
        while let Ok(Some((channel, payload))) = read_frame(&mut client_read).await {
            frames.push((channel, String::from_utf8(payload.to_vec()).unwrap()));
        }
        served.await.unwrap();
        assert!(frames.contains(&(Channel::STDOUT, "out".to_owned())));
        assert!(frames.contains(&(Channel::STDERR, "err".to_owned())));
        let (channel, status) = frames.last().unwrap();
        assert_eq!(*channel, Channel::STATUS);
        assert!(status.contains("\"ExitCode\""), "{status}");
    }
}
