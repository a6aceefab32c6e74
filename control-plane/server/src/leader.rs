//! Leader-only work: the scheduler and the controllers start and stop with Raft leadership, in one
//! mirrored pair.

use std::future::Future;
use std::time::Duration;

use balsa_store::{Leadership, Term};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, info_span, warn};

/// How long leader-only work may take to stop before it is abandoned. Its writes carry the old term, so
/// the store refuses them in any case.
const STOP: Duration = Duration::from_secs(2);

struct Work {
    term: Term,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Follows leadership until `stop`: calls `start` with the term when this server becomes leader, and ends
/// what it started when it is leader no more.
pub async fn follow<F, W>(
    mut leadership: watch::Receiver<Leadership>,
    mut start: F,
    stop: CancellationToken,
) where
    F: FnMut(Term, CancellationToken) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    let mut work: Option<Work> = None;
    loop {
        let now = *leadership.borrow_and_update();
        let leads = now.is_me.then_some(now.term);
        if work.as_ref().map(|w| w.term) != leads {
            if let Some(old) = work.take() {
                revoke(old).await;
            }
            if let Some(term) = leads {
                work = Some(establish(term, &mut start, &stop));
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = leadership.changed() => if changed.is_err() { break },
        }
    }
    if let Some(old) = work {
        revoke(old).await;
    }
}

fn establish<F, W>(term: Term, start: &mut F, stop: &CancellationToken) -> Work
where
    F: FnMut(Term, CancellationToken) -> W,
    W: Future<Output = ()> + Send + 'static,
{
    info!(term, "leading: scheduler and controllers start");
    let token = stop.child_token();
    let task = tokio::spawn(start(term, token.clone()).instrument(info_span!("leader", term)));
    Work {
        term,
        stop: token,
        task,
    }
}

async fn revoke(mut work: Work) {
    info!(
        term = work.term,
        "leading no more: scheduler and controllers stop"
    );
    work.stop.cancel();
    match tokio::time::timeout(STOP, &mut work.task).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(%error, "leader-only work failed"),
        Err(_) => {
            warn!("leader-only work does not stop and is abandoned");
            work.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn work_starts_with_a_term_and_stops_before_the_next_one_starts() {
        let state = |term, is_me| Leadership {
            term,
            is_me,
            ..Leadership::default()
        };
        let (sender, receiver) = watch::channel(state(1, true));
        let stop = CancellationToken::new();
        let (record, mut log) = mpsc::unbounded_channel();
        let start = move |term, token: CancellationToken| {
            let record = record.clone();
            async move {
                record.send(format!("start {term}")).unwrap();
                token.cancelled().await;
                record.send(format!("stop {term}")).unwrap();
            }
        };
        let task = tokio::spawn(follow(receiver, start, stop.clone()));
        assert_eq!(log.recv().await.unwrap(), "start 1");
        sender.send(state(2, false)).unwrap();
        assert_eq!(log.recv().await.unwrap(), "stop 1");
        sender.send(state(3, true)).unwrap();
        assert_eq!(log.recv().await.unwrap(), "start 3");
        stop.cancel();
        assert_eq!(log.recv().await.unwrap(), "stop 3");
        task.await.unwrap();
    }
}
