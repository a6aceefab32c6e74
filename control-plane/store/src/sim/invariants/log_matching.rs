//! Entries of the same index and term are the same on all members, and so are all that both have applied.

use crate::sim::history::Record;

pub(super) fn check(record: &Record) -> Result<(), String> {
    let logs: Vec<_> = record.logs.iter().collect();
    for (n, (a, (log, applied))) in logs.iter().enumerate() {
        for (b, (other, other_applied)) in &logs[n + 1..] {
            for (index, entry) in log {
                let Some(same) = other.get(index) else {
                    continue;
                };
                if entry.term == same.term && entry != same {
                    return Err(format!(
                        "entry {index} of term {} differs between members {a} and {b}",
                        entry.term
                    ));
                }
                if index <= applied.min(other_applied) && entry != same {
                    return Err(format!(
                        "members {a} and {b} both applied entry {index}, of terms {} and {}",
                        entry.term, same.term
                    ));
                }
            }
        }
    }
    Ok(())
}
