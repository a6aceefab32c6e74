//! Which servers there are: told by the settings at first, then by the servers themselves, and remembered, so that
//! an agent finds its cluster again after the servers that it once joined are gone.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use balsa_link::join;
use balsa_server::ServerRecord;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often the list of servers is asked for; at first, until there is one, much more often.
const REFRESH: Duration = Duration::from_secs(10);
const FIRST: Duration = Duration::from_millis(300);

/// The servers that this node last heard of, in a file of its data folder.
pub struct KnownServers {
    path: PathBuf,
    records: Vec<ServerRecord>,
}

impl KnownServers {
    /// What the file says; nothing when there is none or it is damaged, since it only saves time.
    pub fn new(data_dir: &Path) -> Self {
        let path = data_dir.join("servers.json");
        let records = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Self { path, records }
    }

    /// Addresses to try: those of the settings first, then those remembered.
    pub fn urls(&self, settings: &[String]) -> Vec<String> {
        let mut urls: Vec<String> = settings
            .iter()
            .map(|server| format!("https://{}", join::address(server)))
            .collect();
        for url in self.api_urls() {
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        urls
    }

    fn api_urls(&self) -> Vec<String> {
        let url = |s: &ServerRecord| format!("https://{}", s.api);
        self.records.iter().map(url).collect()
    }

    /// Where the servers' node links are.
    pub fn links(&self) -> Vec<SocketAddr> {
        self.records.iter().map(|s| s.link).collect()
    }

    /// Takes a new list; true when it differs from what was known.
    fn learn(&mut self, records: Vec<ServerRecord>) -> bool {
        if records == self.records {
            return false;
        }
        self.records = records;
        let new = self.path.with_extension("new");
        let written = serde_json::to_vec(&self.records)
            .map_err(std::io::Error::from)
            .and_then(|text| std::fs::write(&new, text))
            .and_then(|()| std::fs::rename(&new, &self.path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %self.path.display(), "the list of servers cannot be kept");
        }
        true
    }
}

/// Keeps the lists of servers fresh: servers come, go and move while agents run.
pub async fn follow(
    connection: balsa_client::Connection,
    links: watch::Sender<Vec<SocketAddr>>,
    mut known: KnownServers,
    stop: CancellationToken,
) {
    let mut heard = false;
    loop {
        if let Ok(request) = http::Request::get("/balsa/v1/servers").body(Vec::new()) {
            let answer = connection
                .client
                .request::<Vec<ServerRecord>>(request)
                .await;
            match answer {
                Ok(servers) if !servers.is_empty() => {
                    let changed = known.learn(servers);
                    if changed || !heard {
                        if let Err(error) = connection.servers.set(&known.api_urls()) {
                            tracing::warn!(%error, "the list of servers cannot be used");
                        }
                        links.send_replace(known.links());
                    }
                    heard = true;
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the list of servers cannot be had now"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if heard { REFRESH } else { FIRST }) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(id: u64, host: &str) -> ServerRecord {
        ServerRecord {
            id,
            name: format!("s{id}"),
            api: format!("{host}:6443").parse().unwrap(),
            link: format!("{host}:6445").parse().unwrap(),
        }
    }

    #[test]
    fn servers_that_were_heard_of_are_found_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownServers::new(dir.path());
        assert!(known.learn(vec![record(1, "10.0.0.1"), record(2, "10.0.0.2")]));
        assert!(!known.learn(vec![record(1, "10.0.0.1"), record(2, "10.0.0.2")]));
        let again = KnownServers::new(dir.path());
        assert_eq!(
            again.urls(&["10.0.0.2".to_owned()]),
            ["https://10.0.0.2:6443", "https://10.0.0.1:6443"]
        );
        assert_eq!(again.links().len(), 2);
    }

    #[test]
    fn a_damaged_list_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("servers.json"), "{").unwrap();
        assert!(KnownServers::new(dir.path()).links().is_empty());
    }
}
