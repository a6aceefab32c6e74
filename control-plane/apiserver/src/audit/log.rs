//! The audit log's file: one JSON event a line, rotated by size.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use prometheus_client::metrics::counter::Counter;

/// Events that may wait for the disk; more are dropped and counted.
const QUEUE: usize = 10_000;

/// Where the log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// The file; `-` is standard output.
    pub path: PathBuf,
    /// Size in bytes at which a new file is begun.
    pub max_size: u64,
    /// Old files that are kept, `PATH.1` being the newest.
    pub max_backups: u32,
}

/// The writing end. The thread that writes ends when all are dropped.
#[derive(Clone)]
pub(super) struct Log {
    sender: SyncSender<Vec<u8>>,
    /// Events that were lost: the disk was too slow or failed.
    pub lost: Counter,
}

impl Log {
    /// Opens the file and starts the thread.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(config: &LogConfig, lost: Counter) -> std::io::Result<Self> {
        let output = Output::open(config)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let counter = lost.clone();
        std::thread::Builder::new()
            .name("audit-log".into())
            .spawn(move || write_all(output, &receiver, &counter))?;
        Ok(Self { sender, lost })
    }

    /// Hands over a line; never waits.
    pub fn line(&self, line: Vec<u8>) {
        if self.sender.try_send(line).is_err() {
            self.lost.inc();
        }
    }
}

fn write_all(mut output: Output, receiver: &Receiver<Vec<u8>>, lost: &Counter) {
    let mut failing = false;
    while let Ok(line) = receiver.recv() {
        match output.write(&line) {
            Ok(()) => failing = false,
            Err(error) => {
                lost.inc();
                if !failing {
                    tracing::error!(%error, "the audit log cannot be written; events are lost");
                }
                failing = true;
            }
        }
    }
}

enum Output {
    Stdout,
    File {
        config: LogConfig,
        file: File,
        size: u64,
    },
}

fn append(path: &Path) -> std::io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

impl Output {
    fn open(config: &LogConfig) -> std::io::Result<Self> {
        if config.path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        if let Some(folder) = config.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let (file, size) = append(&config.path)?;
        Ok(Self::File {
            config: config.clone(),
            file,
            size,
        })
    }

    fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Stdout => std::io::stdout().lock().write_all(line),
            Self::File { config, file, size } => {
                if *size > 0 && *size + line.len() as u64 > config.max_size {
                    rotate(config)?;
                    (*file, *size) = append(&config.path)?;
                }
                file.write_all(line)?;
                *size += line.len() as u64;
                Ok(())
            }
        }
    }
}

fn rotate(config: &LogConfig) -> std::io::Result<()> {
    let numbered = |n: u32| {
        let mut name = config.path.clone().into_os_string();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    if config.max_backups == 0 {
        return std::fs::remove_file(&config.path);
    }
    for n in (1..config.max_backups).rev() {
        if numbered(n).exists() {
            std::fs::rename(numbered(n), numbered(n + 1))?;
        }
    }
    std::fs::rename(&config.path, numbered(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_full_file_makes_room_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let config = LogConfig {
            path: folder.path().join("audit.log"),
            max_size: 10,
            max_backups: 2,
        };
        let mut output = Output::open(&config).unwrap();
        for line in ["first...\n", "second..\n", "third...\n", "fourth..\n"] {
            output.write(line.as_bytes()).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("audit.log"), "fourth..\n");
        assert_eq!(read("audit.log.1"), "third...\n");
        assert_eq!(read("audit.log.2"), "second..\n");
        assert!(!folder.path().join("audit.log.3").exists());
    }
}
