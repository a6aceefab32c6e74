//! A process' streams, as frames over the node link.

use balsa_cri::{Control, Result as CriResult, Session, WriteHalf};
use balsa_link::protocol::Channel;
use balsa_link::{read_frame, write_frame};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// Bytes read from a process at a time.
const CHUNK: usize = 32 * 1024;
/// Chunks on their way to the client; more hold the process back.
const QUEUE: usize = 16;

type Chunk = (u8, Vec<u8>);

/// Carries a session between a process and the client until the process has ended and all it wrote is
/// sent. A client that leaves ends the process of an exec.
pub async fn relay<R, W>(session: Session, reader: R, writer: &mut W)
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Unpin + ?Sized,
{
    let Session { stdin, stdout, stderr, control, exit } = session;
    let (sender, mut chunks) = mpsc::channel::<Chunk>(QUEUE);
    let outputs = [(Channel::STDOUT, stdout), (Channel::STDERR, stderr)];
    let mut pumps = tokio::task::JoinSet::new();
    for (channel, output) in outputs {
        if let Some(output) = output {
            pumps.spawn(pump(channel, output, sender.clone()));
        }
    }
    drop(sender);
    let input = tokio::spawn(input(reader, stdin, control.clone()));
    let mut client_there = true;
    // The channel closes when both outputs have ended.
    while let Some((channel, bytes)) = chunks.recv().await {
        if client_there && write_frame(writer, channel, &bytes).await.is_err() {
            client_there = false;
            let _ = control.send(Control::Kill).await;
        }
    }
    let outcome = exit.await;
    input.abort();
    if client_there {
        let status = match outcome {
            Ok(code) => status(code),
            Err(_) => failure("the runtime forgot the process".to_owned()),
        };
        let _ = write_frame(writer, Channel::STATUS, status.to_string().as_bytes()).await;
    }
}

async fn pump<R: AsyncRead + Unpin>(channel: u8, mut output: R, chunks: mpsc::Sender<Chunk>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match output.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                if chunks.send((channel, buffer[..count].to_vec())).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn input<R>(mut reader: R, mut stdin: Option<WriteHalf>, control: mpsc::Sender<Control>)
where
    R: AsyncRead + Unpin,
{
    loop {
        let Ok(Some((channel, payload))) = read_frame(&mut reader).await else {
            // The client is gone, or talks nonsense: nobody waits for the process any more.
            let _ = control.send(Control::Kill).await;
            return;
        };
        match channel {
            Channel::STDIN => {
                if let Some(open) = &mut stdin
                    && (open.write_all(&payload).await.is_err() || open.flush().await.is_err())
                {
                    // The process closed its input; what it writes still matters.
                    stdin = None;
                }
            }
            Channel::CLOSE if payload.first() == Some(&Channel::STDIN) => {
                drop(stdin.take());
                let _ = control.send(Control::CloseStdin).await;
            }
            Channel::RESIZE => {
                if let Some(resize) = size(&payload) {
                    let _ = control.send(resize).await;
                }
            }
            _ => {}
        }
    }
}

fn size(payload: &[u8]) -> Option<Control> {
    let size: Value = serde_json::from_slice(payload).ok()?;
    let of = |name| size.get(name).and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
    Some(Control::Resize { width: of("Width")?, height: of("Height")? })
}

/// The outcome as clients expect it on the error channel (`metav1.Status`).
fn status(exit: CriResult<i32>) -> Value {
    match exit {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => failure(error.to_string()),
    }
}

fn failure(message: String) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": message,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::sync::oneshot;

    fn session() -> (Session, tokio::io::DuplexStream, mpsc::Receiver<Control>, oneshot::Sender<CriResult<i32>>) {
        let (process, ours) = tokio::io::duplex(1024);
        let (output, input) = tokio::io::split(ours);
        let (control, controls) = mpsc::channel(8);
        let (exited, exit) = oneshot::channel();
        let session = Session {
            stdin: Some(Box::new(input)),
            stdout: Some(Box::new(output)),
            stderr: None,
            control,
            exit,
        };
        (session, process, controls, exited)
    }

    #[tokio::test]
    async fn input_reaches_the_process_and_its_exit_code_comes_last() {
        let (session, mut process, mut controls, exited) = session();
        let (mut client, server) = tokio::io::duplex(4096);
        let relayed = tokio::spawn(async move {
            let (reader, mut writer) = tokio::io::split(server);
            relay(session, reader, &mut writer).await;
        });
        write_frame(&mut client, Channel::STDIN, b"hi").await.unwrap();
        let mut got = [0; 2];
        process.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hi");
        write_frame(&mut client, Channel::CLOSE, &[Channel::STDIN]).await.unwrap();
        assert_eq!(controls.recv().await, Some(Control::CloseStdin));
        process.write_all(b"out").await.unwrap();
        drop(process);
        exited.send(Ok(7)).unwrap();
        assert_eq!(read_frame(&mut client).await.unwrap(), Some((Channel::STDOUT, b"out"[..].into())));
        let (channel, payload) = read_frame(&mut client).await.unwrap().unwrap();
        assert_eq!(channel, Channel::STATUS);
        let status: Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(status["details"]["causes"][0]["message"], "7");
        relayed.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_the_process() {
        let (session, process, mut controls, exited) = session();
        let (client, server) = tokio::io::duplex(4096);
        let relayed = tokio::spawn(async move {
            let (reader, mut writer) = tokio::io::split(server);
            relay(session, reader, &mut writer).await;
        });
        drop(client);
        assert_eq!(controls.recv().await, Some(Control::Kill));
        drop(process);
        exited.send(Ok(137)).unwrap();
        relayed.await.unwrap();
    }
}
