//! Notices a containerd that missed the end of a container.
//!
//! One that starts drops the ends that come while it fills its tables: CRI calls such a container running for ever, and
//! it can't be stopped. The next containerd finds that it has ended.

use std::collections::HashSet;
use std::time::Duration;

use balsa_cri::Containerd;
use tracing::{debug, warn};

/// When a new containerd is looked at, and how long later again: what ended just then, it has noticed by then.
const LOOK: Duration = Duration::from_secs(1);
const DOUBT: Duration = Duration::from_secs(2);
/// The pause before it is looked at again if it could not tell: with shims that hang, it takes long to.
const AGAIN: Duration = Duration::from_secs(10);

/// Waits until it is known that this containerd missed an end, for ever if it did not. `blamed` holds those that one
/// was found wanting for before: starting another for the same would help no better.
pub(super) async fn missed_an_end(runtime: &Containerd, blamed: &mut HashSet<String>) {
    tokio::time::sleep(LOOK).await;
    loop {
        match unnoticed_twice(runtime).await {
            Ok((before, now)) => {
                let news = news(&before, &now, blamed);
                if news.is_empty() {
                    return std::future::pending().await;
                }
                warn!(?news, "containerd has missed that these ended");
                blamed.extend(news);
                return;
            }
            Err(error) => debug!(%error, "cannot tell whether containerd missed an end"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// At two looks, if there is any at the first.
async fn unnoticed_twice(
    runtime: &Containerd,
) -> balsa_cri::Result<(HashSet<String>, HashSet<String>)> {
    let suspects = runtime.unnoticed_ends().await?;
    if suspects.is_empty() {
        return Ok(Default::default());
    }
    tokio::time::sleep(DOUBT).await;
    let still = runtime.unnoticed_ends().await?;
    Ok((suspects, still))
}

/// Those that were and still are unnoticed, and that nothing was done about yet.
fn news(
    before: &HashSet<String>,
    now: &HashSet<String>,
    blamed: &HashSet<String>,
) -> HashSet<String> {
    let still = before.intersection(now);
    still.filter(|id| !blamed.contains(*id)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ends_that_stay_unnoticed_count_and_only_once() {
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let found = news(&set(&["a", "b", "c"]), &set(&["b", "c", "d"]), &set(&["c"]));
        assert_eq!(found, set(&["b"]));
    }
}
