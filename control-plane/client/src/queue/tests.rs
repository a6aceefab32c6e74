#![allow(clippy::unwrap_used)]
use super::*;

fn try_get(queue: &WorkQueue<&'static str>) -> Option<&'static str> {
    match queue.inner.core.lock().pop(Instant::now()) {
        Pop::Key { key, .. } => Some(key),
        _ => None,
    }
}

#[tokio::test]
async fn a_key_added_twice_is_handed_out_once() {
    let queue = WorkQueue::default();
    queue.add("a");
    queue.add("a");
    assert_eq!(queue.get().await, Some("a"));
    assert_eq!(try_get(&queue), None);
}

#[tokio::test]
async fn a_key_added_while_worked_on_comes_again_only_when_done() {
    let queue = WorkQueue::default();
    queue.add("a");
    assert_eq!(queue.get().await, Some("a"));
    queue.add("a");
    assert_eq!(try_get(&queue), None);
    queue.done(&"a");
    assert_eq!(try_get(&queue), Some("a"));
}

fn popped(core: &mut Core<&'static str>, now: Instant) -> Option<&'static str> {
    match core.pop(now) {
        Pop::Key { key, .. } => Some(key),
        _ => None,
    }
}

#[test]
fn the_earlier_of_two_delays_counts_and_the_later_does_not_repeat_it() {
    let mut core = Core::new(Backoff::default());
    let start = Instant::now();
    core.add_at("a", start + Duration::from_secs(10));
    core.add_at("a", start + Duration::from_secs(2));
    assert_eq!(popped(&mut core, start + Duration::from_secs(1)), None);
    assert_eq!(popped(&mut core, start + Duration::from_secs(2)), Some("a"));
    core.done(&"a");
    assert_eq!(popped(&mut core, start + Duration::from_secs(20)), None);
}

#[test]
fn failures_double_the_delay_until_forgotten() {
    let mut core = Core::new(Backoff {
        base: Duration::from_millis(5),
        max: Duration::from_millis(15),
    });
    let now = Instant::now();
    let delays: Vec<u128> = (0..4)
        .map(|_| {
            core.add_rate_limited("a", now);
            let Pop::Wait(due) = core.pop(now) else {
                panic!("must wait")
            };
            assert_eq!(popped(&mut core, due), Some("a"));
            core.done(&"a");
            (due - now).as_millis()
        })
        .collect();
    assert_eq!(delays, [5, 10, 15, 15]);
    core.forget(&"a");
    assert_eq!(core.failures(&"a"), 0);
}

#[tokio::test]
async fn shutdown_ends_all_waiters() {
    let queue = WorkQueue::<&str>::default();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.get().await })
        })
        .collect();
    tokio::task::yield_now().await;
    queue.shut_down();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap(), None);
    }
    queue.add("late");
    assert_eq!(queue.get().await, None);
}

#[tokio::test]
async fn a_delayed_key_wakes_a_waiter_although_another_took_the_first_wakeup() {
    let queue = WorkQueue::default();
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let queue = queue.clone();
            tokio::spawn(async move { queue.get().await })
        })
        .collect();
    tokio::task::yield_now().await;
    queue.add_after("slow", Duration::from_millis(30));
    queue.add("quick");
    let mut got = Vec::new();
    for waiter in waiters {
        got.push(waiter.await.unwrap().unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, ["quick", "slow"]);
}
