//! Whether this server still hears from a majority of the servers. One that does not has no news to tell, and its
//! clients would not notice: their watches end, so that they go to a server that has.

use std::time::Duration;

use balsa_api::status::Status;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, BackendError};

const LOOK: Duration = Duration::from_millis(500);
/// A majority that is there answers much sooner.
const ANSWER: Duration = Duration::from_secs(1);
/// An election is over much sooner: moving all watches for one would cost more than it brings.
const PATIENCE: Duration = Duration::from_secs(3);

/// What one task finds out for all watches.
pub struct Reach {
    cut_off: watch::Sender<bool>,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            cut_off: watch::Sender::new(false),
        }
    }
}

impl Reach {
    /// Whether a watch may begin.
    ///
    /// # Errors
    /// 503 when it would not be told anything.
    pub fn check(&self) -> Result<(), Status> {
        if !*self.cut_off.borrow() {
            return Ok(());
        }
        let why = "this server does not hear from a majority of the servers";
        Err(BackendError::Unavailable(why.to_owned()).into())
    }

    /// For a watch, to learn of its end.
    #[must_use]
    pub fn listen(&self) -> Listener {
        Listener(self.cut_off.subscribe())
    }

    /// Looks again and again until `stop`.
    pub async fn follow(&self, backend: &dyn Backend, stop: CancellationToken) {
        let mut silence = Silence::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let asked = Instant::now();
            let heard = tokio::select! {
                () = stop.cancelled() => return,
                heard = hears(backend) => heard,
            };
            self.tell(silence.is_long(heard, asked, Instant::now()));
        }
    }

    pub(crate) fn tell(&self, now: bool) {
        let changed = self
            .cut_off
            .send_if_modified(|cut_off| std::mem::replace(cut_off, now) != now);
        if !changed {
            return;
        }
        if now {
            tracing::warn!(
                "no majority of the servers is heard: watches end and new ones are refused, so that clients go to \
                 other servers"
            );
        } else {
            tracing::info!("a majority of the servers is heard again: watches are served");
        }
    }
}

/// See [`Reach::listen`].
pub struct Listener(watch::Receiver<bool>);

impl Listener {
    /// Returns when this server is cut off.
    pub async fn cut_off(&mut self) {
        // An error means that the server is gone, which ends watches too.
        let _ = self.0.wait_for(|cut_off| *cut_off).await;
    }
}

/// Whether a majority answers. A store can be unwell and hear the others all the same, as with a full disk: then its
/// news are as good as anybody's.
async fn hears(backend: &dyn Backend) -> bool {
    backend.health().is_ok()
        || matches!(
            tokio::time::timeout(ANSWER, backend.read_barrier()).await,
            Ok(Ok(_))
        )
}

/// Since when nothing was heard.
#[derive(Default)]
struct Silence {
    since: Option<Instant>,
}

impl Silence {
    /// Whether it is so long that this server counts as cut off, after a question at `asked` with or without an answer.
    fn is_long(&mut self, heard: bool, asked: Instant, now: Instant) -> bool {
        if heard {
            self.since = None;
            return false;
        }
        now.duration_since(*self.since.get_or_insert(asked)) >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::testing::MemoryBackend;
    use crate::{Cache, Kinds};

    fn backend() -> Arc<MemoryBackend> {
        let kinds = Kinds::new(balsa_api::kinds::builtin());
        MemoryBackend::new(Cache::new(kinds.all()))
    }

    #[test]
    fn a_server_is_cut_off_after_three_seconds_of_silence_and_back_with_the_first_answer() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut silence = Silence::default();
        assert!(!silence.is_long(true, at(0), at(0)));
        assert!(!silence.is_long(false, at(500), at(1_500)), "an election");
        assert!(!silence.is_long(true, at(2_000), at(2_100)));
        assert!(!silence.is_long(false, at(2_600), at(3_600)));
        assert!(
            !silence.is_long(false, at(4_100), at(5_100)),
            "it began anew"
        );
        assert!(silence.is_long(false, at(5_600), at(5_600)));
        assert!(silence.is_long(false, at(6_100), at(7_100)));
        assert!(!silence.is_long(true, at(7_600), at(7_600)));
    }

    #[tokio::test]
    async fn a_full_disk_does_not_cut_a_server_off() {
        let backend = backend();
        assert!(hears(&*backend).await);
        *backend.down.lock() = Some("the disk is full".to_owned());
        assert!(hears(&*backend).await, "reads are still answered");
        backend.cut_off.store(true, Ordering::Relaxed);
        assert!(!hears(&*backend).await);
    }

    #[tokio::test(start_paused = true)]
    async fn watches_are_told_when_the_majority_is_gone_and_begin_again_when_it_is_back() {
        let (backend, reach, stop) = (backend(), Reach::default(), CancellationToken::new());
        let mut watch = reach.listen();
        let look = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(reach.check().is_ok());
            backend.cut_off.store(true, Ordering::Relaxed);
            watch.cut_off().await;
            let refused = reach.check().err().map(|status| status.code);
            assert_eq!(refused, Some(503));
            backend.cut_off.store(false, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(reach.check().is_ok());
            stop.cancel();
        };
        tokio::join!(reach.follow(&*backend, stop.clone()), look);
    }
}
