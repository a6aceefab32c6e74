//! Texts that name completion indexes: `0,3-5`.

/// First and last index of each interval of a text; an empty text has none.
///
/// # Errors
/// What is wrong with the first bad interval, in upstream's words: no numbers, not below `completions`, not rising.
pub(super) fn intervals(text: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let mut found: Vec<(i64, i64)> = Vec::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, end) = interval(part, completions)?;
        if let Some((_, last)) = found.last().filter(|(_, last)| *last >= first) {
            return Err(not_rising(*last, first));
        }
        found.push((first, end));
    }
    Ok(found)
}

/// How many indexes a text names.
///
/// # Errors
/// As [`intervals`].
pub(super) fn count(text: &str, completions: i64) -> Result<i64, String> {
    let found = intervals(text, completions)?;
    Ok(found.iter().map(|(first, end)| end - first + 1).sum())
}

/// The lowest index that two lists of rising intervals share.
pub(super) fn shared(one: &[(i64, i64)], other: &[(i64, i64)]) -> Option<i64> {
    let (mut i, mut j) = (0, 0);
    while let (Some(a), Some(b)) = (one.get(i), other.get(j)) {
        if a.0 <= b.1 && b.0 <= a.1 {
            return Some(a.0.max(b.0));
        }
        if a.0 <= b.0 {
            i += 1;
        } else {
            j += 1;
        }
    }
    None
}

fn interval(text: &str, completions: i64) -> Result<(i64, i64), String> {
    let number = |text: &str| {
        let number: i64 = text
            .parse()
            .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        if number >= completions {
            return Err(format!("too large index: {text:?}"));
        }
        Ok(number)
    };
    let Some((first, end)) = text.split_once('-') else {
        let only = number(text)?;
        return Ok((only, only));
    };
    if end.contains('-') {
        return Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let (first, end) = (number(first)?, number(end)?);
    if first >= end {
        return Err(not_rising(first, end));
    }
    Ok((first, end))
}

fn not_rising(previous: i64, current: i64) -> String {
    format!("non-increasing order, previous: {previous}, current: {current}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_increasing_and_below_completions() {
        assert_eq!(count("0,3-5", 6), Ok(4));
        assert_eq!(count("", 6), Ok(0));
        for bad in ["3,1", "0-6", "6", "x", "1-2-3", "2-2", "-1", "0,", "1-3,2"] {
            assert!(count(bad, 6).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_lowest_shared_index_is_found() {
        let of = |text| intervals(text, 100).unwrap_or_default();
        assert_eq!(shared(&of("0-4,9"), &of("5-8,9-20")), Some(9));
        assert_eq!(shared(&of("0,2,4"), &of("1,3,5")), None);
        assert_eq!(shared(&of("0-50"), &of("7")), Some(7));
        assert_eq!(shared(&of(""), &of("7")), None);
    }
}
