//! The leader's log of servers that are heard of no more, and of those that are back: once each, where Raft itself
//! would repeat it several times a second.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use balsa_store::Store;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const LOOK: Duration = Duration::from_secs(1);
/// A server that is only busy, or restarted quickly, is no news.
const SILENT: Duration = Duration::from_secs(3);

/// Watches the other servers while this one leads, until `stop`.
pub(crate) async fn follow(store: Store, stop: CancellationToken) {
    // Who leads has heard of nobody before.
    let since = Instant::now();
    let mut known = BTreeSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let members = store.members();
        let silent = members.iter().filter(|member| {
            let silence = store.silence(member.id);
            let silence = silence.unwrap_or_else(|| since.elapsed());
            member.id != store.node_id() && silence > SILENT
        });
        let silent = silent.map(|member| member.id).collect();
        let there: BTreeSet<u64> = members.iter().map(|member| member.id).collect();
        let News { lost, back } = News::of(&known, &silent, &there);
        let address = |id: u64| {
            let member = members.iter().find(|member| member.id == id);
            member.map(|member| member.address.as_str())
        };
        for id in lost {
            let address = address(id).unwrap_or_default();
            warn!("server {id} at {address} cannot be reached: it has not answered for 3 s");
        }
        for id in back {
            let address = address(id).unwrap_or_default();
            info!("server {id} at {address} answers again");
        }
        known = silent;
    }
}

/// What changed since the last look.
#[derive(Debug, PartialEq, Eq)]
struct News {
    lost: Vec<u64>,
    back: Vec<u64>,
}

impl News {
    /// `known` were silent before and `silent` are now; who is no member any more is not back.
    fn of(known: &BTreeSet<u64>, silent: &BTreeSet<u64>, members: &BTreeSet<u64>) -> Self {
        Self {
            lost: silent.difference(known).copied().collect(),
            back: known
                .difference(silent)
                .filter(|id| members.contains(id))
                .copied()
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_that_goes_silent_or_comes_back_is_told_once() {
        let set = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let news = |known: &[u64], silent: &[u64], members: &[u64]| {
            let News { lost, back } = News::of(&set(known), &set(silent), &set(members));
            (lost, back)
        };
        assert_eq!(news(&[], &[2], &[1, 2, 3]), (vec![2], vec![]));
        assert_eq!(news(&[2], &[2], &[1, 2, 3]), (vec![], vec![]));
        assert_eq!(news(&[2], &[3], &[1, 2, 3]), (vec![3], vec![2]));
        assert_eq!(
            news(&[2], &[], &[1, 3]),
            (vec![], vec![]),
            "it was taken out of the cluster"
        );
    }
}
