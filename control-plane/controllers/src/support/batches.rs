//! Slow start: try one, then two, then four, so that a quota that refuses all of them is asked once.

use std::future::Future;

use crate::error::Error;

/// How a slow-start run ended.
pub(crate) struct Batched {
    pub(crate) succeeded: usize,
    /// Tried and failed.
    pub(crate) failed: usize,
    /// Never tried because an earlier batch failed.
    pub(crate) skipped: usize,
    pub(crate) error: Option<Error>,
}

/// Calls `create` for 0..count in batches that double while all succeed.
pub(crate) async fn slow_start<F, R>(count: usize, create: F) -> Batched
where
    F: Fn(usize) -> R,
    R: Future<Output = Result<(), Error>>,
{
    let mut done = Batched {
        succeeded: 0,
        failed: 0,
        skipped: 0,
        error: None,
    };
    let mut batch = 1;
    let mut next = 0;
    while next < count && done.error.is_none() {
        let size = batch.min(count - next);
        let results = futures::future::join_all((next..next + size).map(&create)).await;
        for result in results {
            match result {
                Ok(()) => done.succeeded += 1,
                Err(error) => {
                    done.failed += 1;
                    done.error.get_or_insert(error);
                }
            }
        }
        next += size;
        batch *= 2;
    }
    done.skipped = count - next;
    done
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn batches_double_while_all_succeed() {
        let done = slow_start(10, |_| async { Ok(()) }).await;
        assert_eq!((done.succeeded, done.failed, done.skipped), (10, 0, 0));
    }

    #[tokio::test]
    async fn the_first_failing_batch_is_the_last() {
        let create = |i| async move {
            if i >= 2 {
                Err(Error::Invalid("quota".into()))
            } else {
                Ok(())
            }
        };
        let done = slow_start(100, create).await;
        // 1, then 2 of which one fails.
        assert_eq!((done.succeeded, done.failed, done.skipped), (2, 1, 97));
        assert_eq!(done.error.unwrap().to_string(), "quota");
    }
}
