//! Threads that must not wait for others.

/// Lets this thread run before ordinary ones, where the system allows it (it takes privileges). Raft's
/// heartbeats and disk writes are short and must not queue behind API load.
pub(crate) fn raise_priority() {
    const NICENESS: i32 = -10;
    // On Linux this concerns the calling thread only.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "thread priority left as it is");
    }
}
