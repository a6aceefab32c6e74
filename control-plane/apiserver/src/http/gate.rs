//! How many requests are worked on at once. More than that is refused at once with 429, so that a flood
//! costs the flooder, not the cluster.

use std::sync::Arc;

use balsa_api::status::{Details, Status};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::request_info::RequestInfo;
use crate::seam::User;

/// See the module.
pub struct Gate {
    reading: Arc<Semaphore>,
    mutating: Arc<Semaphore>,
}

impl Gate {
    /// Limits of concurrent requests.
    #[must_use]
    pub fn new(reading: usize, mutating: usize) -> Self {
        Self {
            reading: Arc::new(Semaphore::new(reading)),
            mutating: Arc::new(Semaphore::new(mutating)),
        }
    }

    /// A permit to hold while the request is worked on; `None` for those that need none.
    ///
    /// # Errors
    /// 429.
    pub fn enter(
        &self,
        info: &RequestInfo,
        user: &User,
    ) -> Result<Option<OwnedSemaphorePermit>, Status> {
        if !info.is_resource || info.is_long_running() || is_exempt(info, user) {
            return Ok(None);
        }
        let semaphore = if info.is_read_only() {
            &self.reading
        } else {
            &self.mutating
        };
        Arc::clone(semaphore)
            .try_acquire_owned()
            .map(Some)
            .map_err(|_| too_many())
    }
}

/// Those who repair an overloaded cluster, and the heartbeats that keep nodes alive, are let through.
fn is_exempt(info: &RequestInfo, user: &User) -> bool {
    let in_group = |group: &str| user.groups.iter().any(|g| g == group);
    in_group("system:masters")
        || (in_group("system:nodes")
            && (info.resource == "leases"
                || (info.resource == "nodes" && info.subresource == "status")))
}

fn too_many() -> Status {
    let mut status = Status::new(
        429,
        "TooManyRequests",
        "Too many requests, please try again later.",
    );
    status.details = Some(Details {
        retry_after_seconds: Some(1),
        ..Details::default()
    });
    status
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn info(verb: &'static str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb,
            resource: "pods".into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn a_full_gate_refuses_all_but_the_exempt() {
        let gate = Gate::new(1, 1);
        let user = User::default();
        let held = gate.enter(&info("list"), &user).unwrap();
        assert_eq!(gate.enter(&info("get"), &user).unwrap_err().code, 429);
        assert!(gate.enter(&info("create"), &user).unwrap().is_some());
        assert!(gate.enter(&info("watch"), &user).unwrap().is_none());
        let admin = User {
            groups: vec!["system:masters".into()],
            ..User::default()
        };
        assert!(gate.enter(&info("get"), &admin).unwrap().is_none());
        drop(held);
        assert!(gate.enter(&info("get"), &user).is_ok());
    }
}
