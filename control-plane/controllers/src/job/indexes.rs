//! Completion indexes: `0-2,5` and the pods that carry them. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The pod's index, if it has one.
pub(super) fn index(pod: &Pod) -> Option<u32> {
    pod.annotations().get(INDEX)?.parse().ok()
}

/// Reads `0-2,5`; what cannot be read or is not below `completions` is left out.
pub(super) fn parse(text: &str, completions: u32) -> BTreeSet<u32> {
    let mut indexes = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            indexes.extend(first..last.saturating_add(1).min(completions));
        }
    }
    indexes
}

/// Writes `0-2,5`: ranges of three and more with a dash, of two with a comma.
pub(super) fn format(indexes: &BTreeSet<u32>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut run: Option<(u32, u32)> = None;
    let mut flush = |run: Option<(u32, u32)>| match run {
        None => {}
        Some((first, last)) if first == last => parts.push(first.to_string()),
        Some((first, last)) if first + 1 == last => parts.push(format!("{first},{last}")),
        Some((first, last)) => parts.push(format!("{first}-{last}")),
    };
    for &index in indexes {
        run = match run {
            Some((first, last)) if last + 1 == index => Some((first, index)),
            other => {
                flush(other);
                Some((index, index))
            }
        };
    }
    flush(run);
    parts.join(",")
}

/// The lowest indexes that nobody has finished or works on.
pub(super) fn pending(count: usize, completions: u32, busy: &BTreeSet<u32>) -> Vec<u32> {
    (0..completions)
        .filter(|index| !busy.contains(index))
        .take(count)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_survive_writing_and_reading() {
        let indexes: BTreeSet<u32> = [0, 1, 2, 5, 7, 8].into();
        assert_eq!(format(&indexes), "0-2,5,7,8");
        assert_eq!(parse("0-2,5,7,8", 100), indexes);
        assert_eq!(format(&BTreeSet::new()), "");
    }

    #[test]
    fn nonsense_and_what_is_out_of_range_is_left_out() {
        assert_eq!(parse("1,x,3-,9-4294967295", 5), [1].into());
        assert_eq!(parse("0-4294967295", 3), [0, 1, 2].into());
        assert_eq!(parse("0-7", 0), [].into());
    }

    #[test]
    fn the_lowest_free_indexes_are_next() {
        assert_eq!(pending(2, 5, &[0, 2].into()), [1, 3]);
        assert_eq!(pending(9, 3, &[].into()), [0, 1, 2]);
    }
}
