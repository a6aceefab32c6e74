//! Waiting for something to come true, with a bound and a message that says what did not.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Asks until the answer is yes, at most `seconds`; errors count as not yet.
///
/// # Errors
/// When the time is over; the last error is told.
pub fn eventually(
    what: &str,
    seconds: u64,
    mut check: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    eventually_some(what, seconds, || Ok(check()?.then_some(())))?;
    Ok(began.elapsed())
}

/// Asks until there is an answer, at most `seconds`; errors count as not yet.
///
/// # Errors
/// As [`eventually`].
pub fn eventually_some<T>(
    what: &str,
    seconds: u64,
    mut check: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let last = match check() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if Instant::now() > deadline {
            bail!("{what} did not come within {seconds} s{last}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
