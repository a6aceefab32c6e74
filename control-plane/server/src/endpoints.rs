//! Which servers Service `kubernetes` sends its clients to: not those that leave or that nobody hears of.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use balsa_apiserver::seam::{ObjectReader, ServerAddresses};
use balsa_store::Store;
use serde_json::Value;
use tokio::time::timeout;
use tracing::info;

use crate::records::{self, ServerRecord};

/// A server that has not answered the leader for so long is no address to send anybody to. Not less: a new address costs
/// every node some work, and a busy server comes back.
const SILENT: Duration = Duration::from_secs(5);
/// A server that stops waits no longer for the others to know.
const FAREWELL: Duration = Duration::from_secs(2);
/// Nodes have the addresses that far behind this server's cache.
const NODES: Duration = Duration::from_millis(250);
const AGAIN: Duration = Duration::from_millis(50);

/// The servers as the leader sees them.
pub(crate) struct Endpoints {
    store: Store,
    /// When this server began to lead: it has heard of nobody before.
    since: Instant,
}

impl Endpoints {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            since: Instant::now(),
        }
    }
}

impl ServerAddresses for Endpoints {
    fn addresses(&self) -> Vec<SocketAddr> {
        let silent = |id: u64| {
            let silence = self.store.silence(id);
            let silence = silence.unwrap_or_else(|| self.since.elapsed());
            id != self.store.node_id() && silence > SILENT
        };
        in_service(
            &records::servers(&self.store),
            &records::leaving(&self.store),
            silent,
        )
    }
}

/// The addresses of servers that are there; of all when none seems to be, which says more of who looks.
fn in_service(
    servers: &[ServerRecord],
    leaving: &BTreeSet<u64>,
    silent: impl Fn(u64) -> bool,
) -> Vec<SocketAddr> {
    let there = |s: &&ServerRecord| !leaving.contains(&s.id) && !silent(s.id);
    let found: Vec<SocketAddr> = servers.iter().filter(there).map(|s| s.api).collect();
    if found.is_empty() {
        return servers.iter().map(|s| s.api).collect();
    }
    found
}

/// Takes this server out of Service `kubernetes`, and returns when its clients can have noticed. A cluster that has no
/// other server, or no leader to do it, is not waited for.
pub(crate) async fn leave(store: &Store, reader: &dyn ObjectReader, own: IpAddr) {
    if records::servers(store).len() < 2 {
        return;
    }
    let left = async {
        if let Err(error) = records::leave(store).await {
            return info!(%error, "the other servers do not know that this one stops");
        }
        while reader
            .get("", "endpoints", "default", "kubernetes")
            .is_some_and(|endpoints| has(&endpoints, own))
        {
            tokio::time::sleep(AGAIN).await;
        }
        tokio::time::sleep(NODES).await;
    };
    if timeout(FAREWELL, left).await.is_err() {
        info!("this server stops while Service \"kubernetes\" may still send clients to it");
    }
}

fn has(endpoints: &Value, address: IpAddr) -> bool {
    let address = address.to_string();
    let subsets = endpoints["subsets"].as_array().into_iter().flatten();
    subsets
        .filter_map(|subset| subset["addresses"].as_array())
        .flatten()
        .any(|a| a["ip"] == address.as_str())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn server(id: u64) -> ServerRecord {
        ServerRecord {
            id,
            name: format!("s{id}"),
            api: format!("10.0.0.{id}:6443").parse().unwrap(),
            link: format!("10.0.0.{id}:6445").parse().unwrap(),
        }
    }

    #[test]
    fn clients_are_sent_to_servers_that_are_heard_of_and_stay() {
        let all = [server(1), server(2), server(3)];
        let ids = |leaving: &[u64], silent: &[u64]| -> Vec<String> {
            let leaving = leaving.iter().copied().collect();
            let found = in_service(&all, &leaving, |id| silent.contains(&id));
            found.iter().map(|a| a.ip().to_string()).collect()
        };
        assert_eq!(ids(&[], &[]), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        assert_eq!(ids(&[2], &[3]), ["10.0.0.1"]);
        assert_eq!(ids(&[1, 2], &[3]).len(), 3);
    }

    #[test]
    fn a_server_finds_itself_among_the_addresses() {
        let endpoints = json!({"subsets": [{"addresses": [{"ip": "10.0.0.2"}]}]});
        assert!(has(&endpoints, "10.0.0.2".parse().unwrap()));
        assert!(!has(&endpoints, "10.0.0.1".parse().unwrap()));
        assert!(!has(&json!({}), "10.0.0.1".parse().unwrap()));
    }
}
