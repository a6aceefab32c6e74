//! Copying a log to a client, and going on as it grows.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use balsa_link::protocol::LogOptions;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::line::Filter;
use super::tail::start_of_last;

/// How often a followed file is looked at for more. A look is one system call.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes sent at a time.
const CHUNK: usize = 64 * 1024;

/// Why a log could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file could not be read.
    #[error("the log cannot be read: {0}")]
    File(std::io::Error),
    /// The client went away.
    #[error("the reader went away")]
    Gone,
}

/// Copies the log in `path` as the options say. With `follow` it goes on until `ended` says that the
/// container writes no more, over rotation of the file.
///
/// # Errors
/// See [`ReadError`].
pub async fn copy<W, E>(
    path: &Path,
    options: &LogOptions,
    writer: &mut W,
    mut ended: E,
) -> Result<(), ReadError>
where
    W: AsyncWrite + Unpin + ?Sized,
    E: FnMut() -> BoxFuture<'static, bool>,
{
    let mut file = File::open(path).map_err(ReadError::File)?;
    let start = match options.tail_lines {
        Some(lines) => start_of_last(&mut file, lines).map_err(ReadError::File)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(start)).map_err(ReadError::File)?;
    let mut reader = BufReader::with_capacity(CHUNK, file);
    let mut output = Output {
        filter: Filter::new(options, Timestamp::now()),
        left: options.limit_bytes,
        buffer: Vec::new(),
        pending: Vec::new(),
    };
    loop {
        // Asked before the last read, so that what was written until then is not missed.
        let last = !options.follow || ended().await;
        if !output.drain(&mut reader, writer).await? {
            return Ok(());
        }
        if last {
            return output.finish(writer).await;
        }
        if let Some(next) = rotated(reader.get_ref(), path) {
            output.drain(&mut reader, writer).await?;
            reader = BufReader::with_capacity(CHUNK, next);
            continue;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The new file, if `path` is another file than the open one.
fn rotated(open: &File, path: &Path) -> Option<File> {
    let (mine, there) = (open.metadata().ok()?, fs::metadata(path).ok()?);
    if (mine.dev(), mine.ino()) == (there.dev(), there.ino()) {
        return None;
    }
    File::open(path).ok()
}

struct Output {
    filter: Filter,
    /// Bytes the client still takes.
    left: Option<u64>,
    buffer: Vec<u8>,
    /// A line of the file of which the end is not written yet.
    pending: Vec<u8>,
}

impl Output {
    /// Sends all whole lines there are; false when the client has had enough.
    async fn drain<W>(&mut self, reader: &mut BufReader<File>, writer: &mut W) -> Result<bool, ReadError>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        loop {
            let read = reader.read_until(b'\n', &mut self.pending).map_err(ReadError::File)?;
            if read == 0 || !self.pending.ends_with(b"\n") {
                break;
            }
            self.filter.render(&self.pending, &mut self.buffer);
            self.pending.clear();
            if self.buffer.len() >= CHUNK && !self.send(writer).await? {
                return Ok(false);
            }
        }
        self.send(writer).await
    }

    async fn send<W: AsyncWrite + Unpin + ?Sized>(&mut self, writer: &mut W) -> Result<bool, ReadError> {
        if let Some(left) = &mut self.left {
            let take = self.buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            self.buffer.truncate(take);
            *left -= take as u64;
        }
        if !self.buffer.is_empty() {
            writer.write_all(&self.buffer).await.map_err(|_| ReadError::Gone)?;
            writer.flush().await.map_err(|_| ReadError::Gone)?;
            self.buffer.clear();
        }
        Ok(self.left != Some(0))
    }

    /// A last line without an end is shown, too.
    async fn finish<W: AsyncWrite + Unpin + ?Sized>(&mut self, writer: &mut W) -> Result<(), ReadError> {
        let pending = std::mem::take(&mut self.pending);
        self.filter.render(&pending, &mut self.buffer);
        self.send(writer).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::Cell;
    use std::io::Write;

    async fn copied(text: &str, options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, text).unwrap();
        let mut out = Vec::new();
        copy(&path, &options, &mut out, || Box::pin(async { true })).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn a_byte_limit_cuts_in_the_middle_of_a_line() {
        let text = "t stdout F hello\nt stdout F world\n";
        let options = LogOptions { limit_bytes: Some(8), ..Default::default() };
        assert_eq!(copied(text, options).await, "hello\nwo");
    }

    #[tokio::test]
    async fn a_container_that_died_in_the_middle_of_a_line_loses_nothing() {
        assert_eq!(copied("t stdout F a\nt stdout P b", LogOptions::default()).await, "a\nb");
    }

    #[tokio::test]
    async fn following_goes_on_over_a_rotation_until_the_container_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(&path, "t stdout F one\n").unwrap();
        let step = Cell::new(0);
        let mut out = Vec::new();
        let options = LogOptions { follow: true, ..Default::default() };
        copy(&path, &options, &mut out, || {
            step.set(step.get() + 1);
            let ended = match step.get() {
                2 => {
                    let mut old = File::options().append(true).open(&path).unwrap();
                    old.write_all(b"t stdout F two\n").unwrap();
                    fs::rename(&path, dir.path().join("0.log.1")).unwrap();
                    fs::write(&path, "t stdout F three\n").unwrap();
                    false
                }
                n => n > 3,
            };
            Box::pin(async move { ended })
        })
        .await
        .unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "one\ntwo\nthree\n");
    }
}
