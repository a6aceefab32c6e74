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
    let done = tokio::task::spawn_blocking(work).await;
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

/// Lets this thread run before ordinary ones, where the system allows it (it takes privileges). Raft's
/// heartbeats and disk writes are short and must not queue behind API load. (As real-time threads they never wait,
/// but each message then interrupts those who would have sent the next with it: a write cost three times as much.)
pub(crate) fn raise_priority() {
    const NICENESS: i32 = -10;
    // On Linux this concerns the calling thread only.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "thread priority left as it is");
    }
}
