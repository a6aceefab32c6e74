//! Which tracked UDP flows must be forgotten after a change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use balsa_netlink::{Conntrack, Flow};

use crate::render::UdpFront;

type Stale = (UdpFront, Option<SocketAddr>);

/// Forgets the flows to `stale` fronts that go to a lost endpoint, or that were never translated because
/// there was no endpoint yet. Failures are logged: such a flow also ends by itself when its client pauses.
pub(crate) fn forget(conntrack: &dyn Conntrack, stale: &[Stale]) {
    if stale.is_empty() {
        return;
    }
    let flows = match conntrack.udp_flows() {
        Ok(flows) => flows,
        Err(error) => {
            tracing::warn!(%error, "cannot look for stale UDP flows; clients may stay with lost endpoints for a while");
            return;
        }
    };
    for flow in select(&flows, stale) {
        if let Err(error) = conntrack.forget(&flow) {
            tracing::warn!(%error, ?flow, "cannot forget a stale UDP flow");
        }
    }
}

fn select(flows: &[Flow], stale: &[Stale]) -> Vec<Flow> {
    let mut by_front: BTreeMap<UdpFront, BTreeSet<Option<SocketAddr>>> = BTreeMap::new();
    for (front, endpoint) in stale {
        by_front.entry(*front).or_default().insert(*endpoint);
    }
    let is_stale = |flow: &&Flow| {
        let answers = SocketAddr::from(flow.answers);
        let untranslated = flow.answers == flow.destination;
        let (ip, port) = flow.destination;
        [(Some(ip), port), (None, port)]
            .iter()
            .filter_map(|front| by_front.get(front))
            .any(|lost| lost.contains(&Some(answers)) || (untranslated && lost.contains(&None)))
    };
    flows.iter().filter(is_stale).copied().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::IpAddr;

    use super::*;

    fn end(s: &str) -> (IpAddr, u16) {
        let s: SocketAddr = s.parse().unwrap();
        (s.ip(), s.port())
    }

    fn flow(to: &str, answers: &str) -> Flow {
        Flow {
            source: end("10.244.1.9:4000"),
            destination: end(to),
            answers: end(answers),
        }
    }

    #[test]
    fn only_flows_to_lost_endpoints_are_forgotten() {
        let lost = flow("10.96.0.9:53", "10.244.1.2:53");
        let kept = flow("10.96.0.9:53", "10.244.1.3:53");
        let other = flow("10.96.0.8:53", "10.244.1.2:53");
        let stale = [(
            (Some(end("10.96.0.9:1").0), 53),
            Some("10.244.1.2:53".parse().unwrap()),
        )];
        assert_eq!(select(&[lost, kept, other], &stale), [lost]);
    }

    #[test]
    fn a_flow_that_was_sent_before_there_was_an_endpoint_is_forgotten() {
        let untranslated = flow("192.168.0.7:30053", "192.168.0.7:30053");
        let translated = flow("192.168.0.7:30053", "10.244.1.3:53");
        assert_eq!(
            select(&[untranslated, translated], &[((None, 30053), None)]),
            [untranslated]
        );
    }
}
