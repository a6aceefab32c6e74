//! Reading a log: the last lines, since a time, following it through rotations.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use balsa_link::protocol::LogOptions;
use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::{
    AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt, BufReader,
};

use tokio::time::Instant;

use super::line::Line;
use super::watch::Watcher;

/// Pauses between looks at a followed log that can't be watched: short while it is being written, longer the
/// longer it rests.
const POLL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(200));

/// Time for more to be written before a watched log is read: what comes close together is sent together.
const GATHER: Duration = Duration::from_millis(2);

/// How often the runtime is asked whether the container of a resting log still runs.
const ASK: Duration = Duration::from_millis(500);

/// Bytes read at a time while looking for the last lines.
const BLOCK: u64 = 64 * 1024;

/// Longest line that is taken as one.
const MAX_LINE: usize = 1 << 20;

/// The container behind a log.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    /// May more come?
    async fn running(&self) -> bool;
}

/// What of the log is wanted, with times resolved.
struct Filter {
    since: Option<Timestamp>,
    stream: Option<&'static str>,
    timestamps: bool,
    left: Option<u64>,
}

/// Copies a log to `out`, and goes on as long as the container runs if asked to follow.
pub(crate) async fn stream<W>(
    path: &Path,
    options: &LogOptions,
    source: &dyn Source,
    out: &mut W,
) -> io::Result<()>
where
    W: AsyncWrite + Unpin + Send,
{
    let mut filter = Filter::new(options, Timestamp::now());
    let mut file = File::open(path).await?;
    if let Some(lines) = options.tail_lines {
        let start = tail_start(&mut file, lines).await?;
        file.seek(io::SeekFrom::Start(start)).await?;
    }
    let mut reader = Follower {
        path: path.to_owned(),
        reader: BufReader::new(file),
        partial: Vec::new(),
        // Before the first look: what is written after it is told of.
        watcher: options.follow.then(|| Watcher::new(path).ok()).flatten(),
        pause: POLL.0,
    };
    let mut last_chance = false;
    let mut asked = Instant::now();
    loop {
        match reader.next_line().await? {
            Some(line) => {
                last_chance = false;
                reader.pause = POLL.0;
                if !filter.write(&line, out).await? {
                    return out.flush().await;
                }
            }
            None if !options.follow || last_chance => return out.flush().await,
            None => {
                out.flush().await?;
                // An empty write costs nothing and fails when the client has left.
                let _ = out.write(&[]).await?;
                if reader.rotated().await? {
                    continue;
                }
                // What it wrote just before it ended may come after this look.
                if asked.elapsed() >= ASK {
                    last_chance = !source.running().await;
                    asked = Instant::now();
                }
                if !last_chance {
                    reader.wait(ASK.saturating_sub(asked.elapsed())).await;
                }
            }
        }
    }
}

impl Filter {
    fn new(options: &LogOptions, now: Timestamp) -> Self {
        let by_age = options.since_seconds.map(|seconds| {
            let age = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
            now.checked_sub(age).unwrap_or(Timestamp::MIN)
        });
        let by_time = options
            .since_time
            .as_deref()
            .and_then(|time| time.parse().ok());
        let stream = match options.stream.as_deref() {
            Some("Stdout") => Some("stdout"),
            Some("Stderr") => Some("stderr"),
            _ => None,
        };
        Self {
            since: by_age.or(by_time),
            stream,
            timestamps: options.timestamps,
            left: options.limit_bytes,
        }
    }

    /// Writes a line if it is wanted; false when no more may be written.
    async fn write<W: AsyncWrite + Unpin + Send>(
        &mut self,
        bytes: &[u8],
        out: &mut W,
    ) -> io::Result<bool> {
        let Some(line) = Line::parse(bytes) else {
            return Ok(true);
        };
        let early = self
            .since
            .is_some_and(|since| line.at().is_some_and(|at| at < since));
        if early || self.stream.is_some_and(|stream| stream != line.stream) {
            return Ok(true);
        }
        let mut text = Vec::with_capacity(bytes.len() + 1);
        if self.timestamps {
            text.extend_from_slice(line.time.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(line.text);
        if !line.partial {
            text.push(b'\n');
        }
        if let Some(left) = &mut self.left {
            let most = usize::try_from(*left).unwrap_or(usize::MAX).min(text.len());
            text.truncate(most);
            *left -= most as u64;
        }
        out.write_all(&text).await?;
        Ok(self.left != Some(0))
    }
}

struct Follower {
    path: PathBuf,
    reader: BufReader<File>,
    partial: Vec<u8>,
    /// `None` where there are too many already; then the file is polled.
    watcher: Option<Watcher>,
    pause: Duration,
}

impl Follower {
    /// Waits until there may be more to read, at most so long.
    async fn wait(&mut self, most: Duration) {
        let Some(watcher) = &self.watcher else {
            tokio::time::sleep(self.pause.min(most)).await;
            self.pause = (self.pause * 2).min(POLL.1);
            return;
        };
        match tokio::time::timeout(most, watcher.changed()).await {
            Ok(Ok(())) => tokio::time::sleep(GATHER).await,
            Ok(Err(_)) => self.watcher = None,
            Err(_) => {}
        }
    }

    /// The next complete line without its line feed; `None` if there is none yet.
    async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let room = (MAX_LINE - self.partial.len().min(MAX_LINE)) as u64 + 1;
        let read = (&mut self.reader)
            .take(room)
            .read_until(b'\n', &mut self.partial)
            .await?;
        if self.partial.last() == Some(&b'\n') {
            self.partial.pop();
            return Ok(Some(std::mem::take(&mut self.partial)));
        }
        if read > 0 && self.partial.len() > MAX_LINE {
            return Ok(Some(std::mem::take(&mut self.partial)));
        }
        Ok(None)
    }

    /// Was the file replaced by a new one? Then goes on with that.
    async fn rotated(&mut self) -> io::Result<bool> {
        let now = match tokio::fs::metadata(&self.path).await {
            Ok(now) => now,
            // Between the renaming and the runtime's new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let old = self.reader.get_ref().metadata().await?;
        if now.ino() == old.ino() && now.dev() == old.dev() {
            return Ok(false);
        }
        // Before it is opened: what is written from now on is told of.
        if let Some(watcher) = &mut self.watcher
            && watcher.renew(&self.path).is_err()
        {
            self.watcher = None;
        }
        self.reader = BufReader::new(File::open(&self.path).await?);
        self.partial.clear();
        Ok(true)
    }
}

/// Where the last `lines` lines begin.
async fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    let end = file.seek(io::SeekFrom::End(0)).await?;
    if lines == 0 {
        return Ok(end);
    }
    let mut position = end;
    let mut found = 0;
    while position > 0 {
        let size = BLOCK.min(position);
        position -= size;
        file.seek(io::SeekFrom::Start(position)).await?;
        let mut block = vec![0; size as usize];
        file.read_exact(&mut block).await?;
        for (index, byte) in block.iter().enumerate().rev() {
            let at = position + index as u64;
            // The very last line feed ends a line and begins none.
            if *byte == b'\n' && at + 1 != end {
                found += 1;
                if found == lines {
                    return Ok(at + 1);
                }
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Switch(AtomicBool);

    #[async_trait]
    impl Source for Switch {
        async fn running(&self) -> bool {
            self.0.load(Ordering::Relaxed)
        }
    }

    const LOG: &str = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n\
                       2026-01-01T00:00:02Z stdout P thr\n2026-01-01T00:00:03Z stdout F ee\n";

    async fn read(options: LogOptions) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let mut out = Vec::new();
        stream(&path, &options, &Switch(AtomicBool::new(false)), &mut out)
            .await
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn options_choose_what_is_printed() {
        let options = LogOptions::default;
        assert_eq!(read(options()).await, "one\ntwo\nthree\n");
        assert_eq!(
            read(LogOptions {
                tail_lines: Some(3),
                ..options()
            })
            .await,
            "two\nthree\n"
        );
        assert_eq!(
            read(LogOptions {
                tail_lines: Some(0),
                ..options()
            })
            .await,
            ""
        );
        assert_eq!(
            read(LogOptions {
                tail_lines: Some(99),
                ..options()
            })
            .await,
            "one\ntwo\nthree\n"
        );
        assert_eq!(
            read(LogOptions {
                limit_bytes: Some(5),
                ..options()
            })
            .await,
            "one\nt"
        );
        assert_eq!(
            read(LogOptions {
                stream: Some("Stderr".to_owned()),
                ..options()
            })
            .await,
            "two\n"
        );
        let since = Some("2026-01-01T00:00:01Z".to_owned());
        assert_eq!(
            read(LogOptions {
                since_time: since,
                ..options()
            })
            .await,
            "two\nthree\n"
        );
        let stamped = read(LogOptions {
            timestamps: true,
            tail_lines: Some(4),
            ..options()
        })
        .await;
        assert!(stamped.starts_with("2026-01-01T00:00:00Z one\n"));
    }

    #[tokio::test]
    async fn following_goes_through_a_rotation_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let source = Switch(AtomicBool::new(true));
        let (mut out, read) = tokio::io::duplex(1 << 16);
        let options = LogOptions {
            follow: true,
            tail_lines: Some(1),
            ..LogOptions::default()
        };
        let writer = async {
            stream(&path, &options, &source, &mut out).await.unwrap();
            drop(out);
        };
        let reader = async {
            let mut lines = BufReader::new(read).lines();
            assert_eq!(lines.next_line().await.unwrap().unwrap(), "ee");
            std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
            let mut file = std::fs::File::create(&path).unwrap();
            file.write_all(b"2026-01-01T00:00:04Z stdout F four\n")
                .unwrap();
            assert_eq!(lines.next_line().await.unwrap().unwrap(), "four");
            source.0.store(false, Ordering::Relaxed);
            assert_eq!(lines.next_line().await.unwrap(), None);
        };
        tokio::join!(writer, reader);
    }
}
