//! Where tests make things fail. In a build that is not for tests, every function here is empty and inlined
//! away: nothing of this can be switched on in a running cluster.

#[cfg(not(test))]
pub(crate) use off::*;
#[cfg(test)]
pub(crate) use on::*;

/// An edge of durability: a process that dies here leaves a disk of its own kind behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Point {
    /// Entries are drained from the queue, none is written.
    LogDrained,
    /// Entries, votes or cuts are synced, nobody has been told.
    LogSynced,
    /// A vote was asked to be saved and is queued.
    VoteQueued,
    /// A vote is synced and about to be answered.
    VoteSynced,
    /// Entries are to be applied.
    ApplyBegun,
    /// Entries are in the state, nobody has been told.
    ApplyWritten,
    /// The state is about to be flushed.
    FlushBegun,
    /// The state was flushed; the log is not cut yet.
    FlushDone,
    /// The log is about to be cut from the front.
    PurgeBegun,
    /// The front of the log is gone.
    PurgeDone,
    /// A received snapshot is whole, but has no number yet.
    InstallReceived,
    /// It has its number, but the pointer still names the old state.
    InstallRenamed,
    /// The pointer names it.
    InstallPointed,
    /// A step of compacted history is about to be deleted.
    SweepBegun,
    /// It is deleted.
    SweepDone,
}

/// Where something is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Site {
    /// The log: entries, votes, cuts.
    Log,
    /// Applied entries.
    State,
    /// The state's flush before the log is cut.
    Flush,
    /// Deleting compacted history.
    Sweep,
    /// Parts of a snapshot that is received.
    Receive,
    /// Making a received snapshot the state.
    Install,
}

/// A line of code that a checker of the simulation guards, broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Break {
    /// The log answers before it has written.
    AnswerBeforeSync,
    /// A vote is answered without being written.
    ForgetVote,
    /// Reads do not ask the leader.
    ReadWithoutIndex,
    /// The leader does not ask whether it still leads.
    ConfirmUnasked,
    /// Watches leave out an event now and then.
    SkipEvent,
    /// Batches that are sent again are applied again.
    ApplyAgain,
    /// A revision is left out now and then.
    SkipRevision,
    /// The leader's clock runs twice as fast.
    FastClock,
    /// A member writes another entry to its log than it was sent, now and then.
    WrongEntry,
}

#[cfg(not(test))]
mod off {
    use super::{Break, Point, Site};

    #[inline]
    pub(crate) fn point(_: Point) {}

    #[inline]
    pub(crate) const fn broken(_: Break) -> bool {
        false
    }

    /// What a disk is made to do.
    #[derive(Debug, Default)]
    pub(crate) struct Plan;

    impl Plan {
        #[inline]
        pub fn meet(&self, _: Site) -> Result<(), String> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod on {
    use std::cell::Cell;
    use std::collections::HashMap;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::{Break, Point, Site};

    /// `NAME:COUNT` in this variable kills the process when a point is passed for the COUNT-th time.
    pub(crate) const POINT: &str = "BALSA_STORE_POINT";

    struct Armed {
        name: String,
        left: AtomicI64,
    }

    fn armed() -> Option<&'static Armed> {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        ARMED
            .get_or_init(|| {
                let text = std::env::var(POINT).ok()?;
                let (name, count) = text.split_once(':')?;
                Some(Armed {
                    name: name.to_owned(),
                    left: AtomicI64::new(count.parse().ok()?),
                })
            })
            .as_ref()
    }

    /// Ends this process as `kill -9` does, if it was told to die at this point.
    pub(crate) fn point(point: Point) {
        let Some(armed) = armed() else { return };
        if format!("{point:?}") == armed.name && armed.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let me = rustix::process::getpid();
            // Nothing comes after this.
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
    }

    thread_local! {
        static BROKEN: Cell<Option<Break>> = const { Cell::new(None) };
    }

    /// Breaks something on this thread.
    pub(crate) fn break_here(what: Option<Break>) {
        BROKEN.set(what);
    }

    /// Whether something is broken on this thread.
    pub(crate) fn broken(what: Break) -> bool {
        BROKEN.get() == Some(what)
    }

    /// What a disk does at one site.
    #[derive(Debug, Clone)]
    pub(crate) enum Mishap {
        /// Fails with this message.
        Fail(String),
        /// Stands still for this long, then goes on.
        Stall(Duration),
    }

    /// What a disk is made to do.
    #[derive(Debug, Default)]
    pub(crate) struct Plan {
        mishaps: Mutex<HashMap<Site, (Mishap, u32)>>,
        met: Mutex<HashMap<Site, u32>>,
        /// How long the simulated disk takes for a write of the log, in milliseconds.
        pub latency_ms: std::sync::atomic::AtomicU64,
    }

    impl Plan {
        /// The next writes at a site, so many, meet with this.
        pub fn set(&self, site: Site, mishap: Mishap, times: u32) {
            self.mishaps.lock().insert(site, (mishap, times));
        }

        /// How often a mishap was met at a site.
        pub fn met(&self, site: Site) -> u32 {
            self.met.lock().get(&site).copied().unwrap_or_default()
        }

        /// Asked before each write.
        pub fn meet(&self, site: Site) -> Result<(), String> {
            let mishap = {
                let mut mishaps = self.mishaps.lock();
                let Some((mishap, left)) = mishaps.get_mut(&site) else {
                    return Ok(());
                };
                if *left == 0 {
                    return Ok(());
                }
                *left -= 1;
                mishap.clone()
            };
            *self.met.lock().entry(site).or_default() += 1;
            match mishap {
                Mishap::Fail(message) => Err(message),
                Mishap::Stall(time) => {
                    std::thread::sleep(time);
                    Ok(())
                }
            }
        }
    }
}
