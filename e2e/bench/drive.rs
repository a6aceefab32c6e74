//! Runs a number of jobs with a fixed number in flight and says how long they took.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

/// What a run of jobs came to.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// How long each success took, ascending.
    pub latencies: Vec<Duration>,
    /// Jobs that failed.
    pub failed: usize,
    /// Why the last of them did.
    pub last_error: String,
    /// From the first start to the last end.
    pub took: Duration,
}

impl Outcome {
    /// Successes a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }

    /// A percentile in milliseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        percentile(&self.latencies, percent)
    }

    /// The outcome, unless jobs failed: a rate of refusals is no rate.
    ///
    /// # Errors
    /// With the last failure.
    pub fn whole(self) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.failed == 0,
            "{} requests failed, the last with: {}",
            self.failed,
            self.last_error
        );
        Ok(self)
    }
}

/// The value below which `percent` of the ascending values lie, in milliseconds; NaN of none.
pub fn percentile(ascending: &[Duration], percent: usize) -> f64 {
    let last = ascending.len().saturating_sub(1);
    ascending
        .get(last * percent / 100)
        .map_or(f64::NAN, |d| d.as_secs_f64() * 1e3)
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, max) = (
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
        );
        write!(
            f,
            "{} done in {:.2} s, {:.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms",
            self.latencies.len(),
            self.took.as_secs_f64(),
            self.rate()
        )?;
        if self.failed > 0 {
            write!(
                f,
                "; {} FAILED, the last with: {}",
                self.failed, self.last_error
            )?;
        }
        Ok(())
    }
}

/// Runs `job(0)` to `job(count - 1)`, `in_flight` at a time.
///
/// # Errors
/// Only when a job panics; failures are counted.
pub async fn drive<F, R>(count: usize, in_flight: usize, job: F) -> anyhow::Result<Outcome>
where
    F: Fn(usize) -> R + Send + Sync + 'static,
    R: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (job, next) = (Arc::new(job), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let workers: Vec<_> = (0..in_flight.min(count))
        .map(|_| tokio::spawn(work(count, next.clone(), job.clone())))
        .collect();
    let mut outcome = Outcome::default();
    for worker in workers {
        let one = worker.await.context("a worker of the benchmark panicked")?;
        outcome.latencies.extend(one.latencies);
        outcome.failed += one.failed;
        if one.failed > 0 {
            outcome.last_error = one.last_error;
        }
    }
    outcome.took = began.elapsed();
    outcome.latencies.sort_unstable();
    Ok(outcome)
}

async fn work<F, R>(count: usize, next: Arc<AtomicUsize>, job: Arc<F>) -> Outcome
where
    F: Fn(usize) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let mut outcome = Outcome::default();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= count {
            return outcome;
        }
        let began = Instant::now();
        match job(index).await {
            Ok(()) => outcome.latencies.push(began.elapsed()),
            Err(error) => {
                outcome.failed += 1;
                outcome.last_error = format!("{error:#}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn percentiles_are_taken_from_the_measured_values() {
        let values: Vec<_> = (1..=101).map(Duration::from_millis).collect();
        assert_eq!(percentile(&values, 50), 51.0);
        assert_eq!(percentile(&values, 99), 100.0);
        assert_eq!(percentile(&values, 100), 101.0);
        assert!(percentile(&[], 50).is_nan());
    }

    #[tokio::test]
    async fn every_job_runs_once_and_failures_are_counted_apart() {
        let job = |i| async move {
            if i % 4 == 0 {
                anyhow::bail!("job {i}")
            } else {
                Ok(())
            }
        };
        let outcome = drive(10, 3, job).await.unwrap();
        assert_eq!((outcome.latencies.len(), outcome.failed), (7, 3));
        assert!(outcome.whole().is_err());
    }
}
