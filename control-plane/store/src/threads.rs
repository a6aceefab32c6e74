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

/// Lets this thread run before ordinary ones, where the system allows it (it takes privileges). Raft's
/// heartbeats and disk writes are short and must not queue behind API load.
pub(crate) fn raise_priority() {
    const NICENESS: i32 = -10;
    // On Linux this concerns the calling thread only.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "thread priority left as it is");
    }
}
