//! Creates, reads, updates and lists of ConfigMaps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::Method;

use crate::drive::{Outcome, drive};
use crate::http::JSON;
use crate::scratch::{Scratch, config_map, numbered};

/// How much, how wide, how large.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Load {
    /// Requests to send
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub count: u32,
    /// Requests in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,
    /// Bytes of each ConfigMap's value
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=900_000))]
    pub size: u32,
    /// Objects that get, update and list work on; made before the measurement
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub keys: u32,
}

impl Load {
    fn count(self) -> usize {
        self.count as usize
    }

    fn in_flight(self) -> usize {
        self.in_flight as usize
    }

    /// Makes the objects that the measurement works on.
    ///
    /// # Errors
    /// When one of them is refused.
    pub async fn prepare(self, scratch: &Scratch) -> anyhow::Result<()> {
        scratch
            .fill(
                self.keys as usize,
                self.in_flight().min(64),
                self.size as usize,
            )
            .await?
            .whole()
            .map(drop)
    }
}

/// Creates.
///
/// # Errors
/// When the client itself fails.
pub async fn create(scratch: &Scratch, load: Load) -> anyhow::Result<Outcome> {
    scratch
        .fill(load.count(), load.in_flight(), load.size as usize)
        .await
}

/// Reads of single objects, spread over the keys.
///
/// # Errors
/// As [`create`].
pub async fn get(scratch: &Scratch, load: Load) -> anyhow::Result<Outcome> {
    let (lines, path, keys) = (
        scratch.lines.clone(),
        scratch.path("configmaps"),
        load.keys as usize,
    );
    drive(load.count(), load.in_flight(), move |index| {
        let (lines, path) = (lines.clone(), format!("{path}/{}", spread(index, keys)));
        async move { lines.next().get(&path).await.map(drop) }
    })
    .await
}

/// Unconditional replacements of single objects, spread over the keys.
///
/// # Errors
/// As [`create`].
pub async fn update(scratch: &Scratch, load: Load) -> anyhow::Result<Outcome> {
    let (lines, path, keys) = (
        scratch.lines.clone(),
        scratch.path("configmaps"),
        load.keys as usize,
    );
    drive(load.count(), load.in_flight(), move |index| {
        let name = spread(index, keys);
        let (lines, path) = (lines.clone(), format!("{path}/{name}"));
        let body = config_map(&name, load.size as usize);
        async move {
            lines
                .next()
                .call(Method::PUT, &path, JSON, body)
                .await
                .map(drop)
        }
    })
    .await
}

/// Consistent lists of the whole namespace; also the megabytes a second they brought.
///
/// # Errors
/// As [`create`].
pub async fn list(scratch: &Scratch, load: Load) -> anyhow::Result<(Outcome, f64)> {
    let (lines, path) = (scratch.lines.clone(), scratch.path("configmaps"));
    let bytes = Arc::new(AtomicU64::new(0));
    let sum = bytes.clone();
    let outcome = drive(load.count(), load.in_flight(), move |_| {
        let (lines, path, sum) = (lines.clone(), path.clone(), sum.clone());
        async move {
            let body = lines.next().get(&path).await?;
            sum.fetch_add(body.len() as u64, Ordering::Relaxed);
            Ok(())
        }
    })
    .await?;
    let megabytes = bytes.load(Ordering::Relaxed) as f64 / 1e6 / outcome.took.as_secs_f64();
    Ok((outcome, megabytes))
}

/// Neighbouring requests go to keys far apart; the factor is a prime.
fn spread(index: usize, keys: usize) -> String {
    numbered(index.wrapping_mul(7919) % keys)
}
