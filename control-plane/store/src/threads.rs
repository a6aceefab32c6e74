//! Threads that must not wait for others.

/// Runs work that blocks on a thread that is there for that.
///
/// # Errors
/// The work panicked, or the runtime stops.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<T> {
    #[cfg(test)]
    if turmoil::in_simulation() {
        // When another thread is done is not for the seed to say.
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(|| {
        let _ordinary = Ordinary::now();
        work()
    })
    .await;
    done.map_err(std::io::Error::other)
}

/// Does what may block, from a task: the runtime's other tasks go on meanwhile, on another thread, where that can be.
pub(crate) fn aside<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Lets this thread, but none that it starts, run before all ordinary ones, where the system allows it (it takes
/// privileges): Raft's heartbeats and disk writes are short, and a leader that gets no processor for some tenths of
/// a second is replaced. A better niceness is not enough: beside builds, threads of niceness -10 waited for up to
/// half a second. The kernel leaves ordinary threads their share whatever these do (sched(7), "Limiting the CPU
/// usage of real-time and deadline processes").
pub(crate) fn raise_priority() {
    const NICENESS: i32 = -10;
    if policy::set(policy::AHEAD) {
        return;
    }
    // On Linux this concerns the calling thread only.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "thread priority left as it is");
    }
}

/// While it lives, this thread queues for processors like any other: what takes long must not go before all else.
struct Ordinary {
    before: policy::Policy,
}

impl Ordinary {
    fn now() -> Option<Self> {
        let before = policy::current();
        (before == policy::AHEAD && policy::set(policy::ORDINARY)).then_some(Self { before })
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        policy::set(self.before);
    }
}

/// sched(7): how the kernel picks who runs. All of it is about the calling thread.
mod policy {
    pub(super) type Policy = i32;

    /// Before ordinary threads, in turns with its like; threads that it starts are ordinary.
    pub(super) const AHEAD: Policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    pub(super) const ORDINARY: Policy = libc::SCHED_OTHER;

    pub(super) fn current() -> Policy {
        // SAFETY: takes and returns numbers only; 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    /// Whether the system allows it.
    pub(super) fn set(policy: Policy) -> bool {
        // The lowest of the real-time priorities; ordinary threads have none.
        let param = libc::sched_param {
            sched_priority: i32::from(policy == AHEAD),
        };
        // SAFETY: the parameter outlives the call, which only reads it; 0 is the calling thread.
        unsafe { libc::sched_setscheduler(0, policy, &raw const param) == 0 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn long_work_of_a_thread_that_goes_first_is_ordinary() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(raise_priority)
            .build()
            .unwrap();
        let task = async {
            let before = policy::current();
            (before, blocking(policy::current).await.unwrap(), before)
        };
        let (before, during, after) = runtime.spawn(task).await.unwrap();
        runtime.shutdown_background();
        assert_eq!(during, policy::ORDINARY);
        assert_eq!(before, after);
        // Without the privilege it is ordinary all along.
        assert!([policy::AHEAD, policy::ORDINARY].contains(&before));
    }
}
