//! Leases, by which containerd keeps what is just being made from its own collection of garbage. One that was killed
//! leaves those of its work; what was half made stays for the day until they run out.

use std::time::{Duration, SystemTime};

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{DeleteRequest, Lease, ListRequest};
use tonic::transport::Channel;

use super::namespaced;
use crate::client::call;
use crate::error::Result;
use crate::types::CALL_TIMEOUT;

/// Label of leases that run out.
const EXPIRY: &str = "containerd.io/gc.expire";

/// Removes the leases that run out and are older than that: whoever took them is no more. Answers how many there were.
pub(super) async fn drop_older(channel: Channel, than: SystemTime) -> Result<usize> {
    let mut client = LeasesClient::new(channel);
    let list = client.list(namespaced(ListRequest::default()));
    let answer = call("leases.List", CALL_TIMEOUT, list).await?;
    let old: Vec<_> = answer.leases.into_iter().filter(left_by(than)).collect();
    for lease in &old {
        let request = DeleteRequest {
            id: lease.id.clone(),
            sync: false,
        };
        let delete = client.delete(namespaced(request));
        call("leases.Delete", CALL_TIMEOUT, delete).await?;
    }
    Ok(old.len())
}

fn left_by(end: SystemTime) -> impl Fn(&Lease) -> bool {
    let end = end.duration_since(SystemTime::UNIX_EPOCH);
    let end = end.unwrap_or(Duration::ZERO);
    move |lease| {
        let created = lease.created_at.as_ref().map(|at| at.seconds);
        let older = created.is_some_and(|seconds| {
            u64::try_from(seconds).is_ok_and(|seconds| seconds < end.as_secs())
        });
        older && lease.labels.contains_key(EXPIRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leases_from_before_that_run_out_are_dropped() {
        let lease = |seconds, label: &str| Lease {
            id: "x".to_owned(),
            created_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            labels: [(label.to_owned(), String::new())].into(),
        };
        let dropped = left_by(SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        assert!(dropped(&lease(999, EXPIRY)));
        assert!(!dropped(&lease(1000, EXPIRY)));
        assert!(!dropped(&lease(999, "containerd.io/gc.flat")));
        assert!(!dropped(&Lease::default()));
    }
}
