//! What nodes say of their usage, and what CPU was used between two looks.
//!
//! CPU is told as a counter, so a rate needs two samples. A container that is younger than one look is measured from
//! its start.

use std::collections::HashMap;
use std::time::Duration;

/// Shorter windows say nothing.
const SHORTEST: Duration = Duration::from_millis(500);
/// A counter is followed from its start only while the container is this young: what it did in an hour says nothing
/// of now.
const YOUNG: Duration = Duration::from_secs(90);

/// Counters of a node or container at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Sample {
    /// When the node looked, in milliseconds since 1970.
    pub at: i64,
    /// CPU time used since the start, in seconds.
    pub cpu: f64,
    /// Working set in bytes.
    pub memory: u64,
    /// Start of the container in milliseconds since 1970; 0 for nodes.
    pub started: i64,
}

/// What was used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usage {
    /// End of the time, in milliseconds since 1970.
    pub at: i64,
    /// Length of the time.
    pub window: Duration,
    /// Billionths of a core.
    pub nano_cores: u64,
    /// Bytes.
    pub memory: u64,
}

/// All that one node said at one look.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Look {
    /// The node itself.
    pub node: Option<Sample>,
    /// Containers by `namespace/pod`, then by name.
    pub pods: HashMap<String, HashMap<String, Sample>>,
}

fn between(from: (i64, f64), now: &Sample) -> Option<Usage> {
    let window = Duration::from_millis(u64::try_from(now.at - from.0).ok()?);
    if window < SHORTEST || now.cpu < from.1 {
        return None;
    }
    let nano_cores = (now.cpu - from.1) / window.as_secs_f64() * 1e9;
    Some(Usage {
        at: now.at,
        window,
        nano_cores: nano_cores.round() as u64,
        memory: now.memory,
    })
}

/// What was used between two samples of the same thing, or since its start.
pub(super) fn usage(before: Option<&Sample>, now: &Sample) -> Option<Usage> {
    if let Some(before) = before.filter(|b| b.started == now.started && b.cpu <= now.cpu) {
        return between((before.at, before.cpu), now);
    }
    let age = now.at - now.started;
    let young = i64::try_from(YOUNG.as_millis()).unwrap_or(i64::MAX);
    // Starts are told in whole seconds.
    if now.started == 0 || !(1000..=young).contains(&age) {
        return None;
    }
    between((now.started, 0.0), now)
}

/// Reads `/metrics/resource`, Prometheus' text format. Lines that are not understood are passed over: newer nodes may
/// say more.
pub(super) fn parse(text: &str, received: i64) -> Look {
    let mut look = Look::default();
    for line in text.lines() {
        let Some((name, labels, value, at)) = split(line) else {
            continue;
        };
        let at = at.unwrap_or(received);
        if name.starts_with("node_") {
            let sample = look.node.get_or_insert_with(Sample::default);
            sample.at = at;
            match name {
                "node_cpu_usage_seconds_total" => sample.cpu = value,
                "node_memory_working_set_bytes" => sample.memory = value as u64,
                _ => {}
            }
            continue;
        }
        let set: fn(&mut Sample, f64, i64) = match name {
            "container_cpu_usage_seconds_total" => |s, v, at| (s.cpu, s.at) = (v, at),
            "container_memory_working_set_bytes" => |s, v, _| s.memory = v as u64,
            "container_start_time_seconds" => |s, v, _| s.started = (v * 1000.0) as i64,
            _ => continue,
        };
        let (Some(namespace), Some(pod), Some(container)) = (
            label(labels, "namespace"),
            label(labels, "pod"),
            label(labels, "container"),
        ) else {
            continue;
        };
        let pod = look.pods.entry(format!("{namespace}/{pod}")).or_default();
        set(pod.entry(container).or_default(), value, at);
    }
    // Half of a sample, cut off at the end of a short answer, is none.
    look.node = look.node.filter(|s| s.memory > 0);
    for containers in look.pods.values_mut() {
        containers.retain(|_, s| s.at > 0);
    }
    look
}

/// Name, labels, value and time of a line.
fn split(line: &str) -> Option<(&str, &str, f64, Option<i64>)> {
    if line.starts_with('#') {
        return None;
    }
    let (name, labels, rest) = match line.split_once('{') {
        Some((name, rest)) => {
            // A value may hold a brace, the last one closes.
            let (labels, rest) = rest.rsplit_once('}')?;
            (name, labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, "", rest)
        }
    };
    let mut rest = rest.split_whitespace();
    let value: f64 = rest.next()?.parse().ok()?;
    let at = rest.next().and_then(|t| t.parse().ok());
    (value.is_finite() && value >= 0.0).then_some((name, labels, value, at))
}

/// One label's value, unescaped. Names of pods and containers need no escapes, so commas in values do not occur.
fn label(labels: &str, wanted: &str) -> Option<String> {
    labels.split(',').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
        (name.trim() == wanted).then(|| value.to_owned())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "# HELP x y\n\
        container_cpu_usage_seconds_total{container=\"web\",namespace=\"d\",pod=\"p\"} 12.5 1700000010000\n\
        container_memory_working_set_bytes{container=\"web\",namespace=\"d\",pod=\"p\"} 4096 1700000010000\n\
        container_start_time_seconds{container=\"web\",namespace=\"d\",pod=\"p\"} 1700000000 1700000010000\n\
        node_cpu_usage_seconds_total 100.5 1700000010000\n\
        node_memory_working_set_bytes 8192 1700000010000\n\
        garbage{ 1\nresource_scrape_error 0\n";

    #[test]
    fn a_nodes_page_is_read_by_container() {
        let look = parse(TEXT, 1);
        let sample = look.pods["d/p"]["web"];
        assert_eq!(
            sample,
            Sample {
                at: 1_700_000_010_000,
                cpu: 12.5,
                memory: 4096,
                started: 1_700_000_000_000
            }
        );
        assert_eq!(look.node.unwrap().cpu, 100.5);
    }

    #[test]
    fn cpu_is_what_was_used_between_two_looks() {
        let before = Sample {
            at: 1000,
            cpu: 1.0,
            memory: 1,
            started: 500,
        };
        let now = Sample {
            at: 11_000,
            cpu: 6.0,
            memory: 7,
            started: 500,
        };
        let used = usage(Some(&before), &now).unwrap();
        assert_eq!(
            (used.nano_cores, used.memory, used.window),
            (500_000_000, 7, Duration::from_secs(10))
        );
    }

    #[test]
    fn a_restarted_or_new_container_is_measured_from_its_start_while_it_is_young() {
        let before = Sample {
            at: 1000,
            cpu: 50.0,
            memory: 1,
            started: 500,
        };
        let now = Sample {
            at: 11_000,
            cpu: 1.0,
            memory: 7,
            started: 9000,
        };
        assert_eq!(usage(Some(&before), &now).unwrap().nano_cores, 500_000_000);
        assert!(usage(None, &now).is_some());
        let old = Sample {
            at: 9_000_000,
            ..now
        };
        assert_eq!(usage(None, &old), None);
        let node = Sample { started: 0, ..now };
        assert_eq!(usage(None, &node), None);
    }
}
