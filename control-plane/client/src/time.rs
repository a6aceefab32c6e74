//! Kubernetes times: whole seconds for `Time`, microseconds for `MicroTime`.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// A `Time` cut to whole seconds, as the API stores it.
#[must_use]
pub fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The current `Time`.
#[must_use]
pub fn now() -> Time {
    time(Timestamp::now())
}

/// A `MicroTime` cut to microseconds, as the API stores it.
#[must_use]
pub fn micro_time(at: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at))
}
