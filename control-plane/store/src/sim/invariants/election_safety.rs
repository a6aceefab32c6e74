//! A term has one leader at most.

use std::collections::BTreeMap;

use crate::sim::history::Record;
use crate::types::{MemberId, Term};

pub(super) fn check(record: &Record) -> Result<(), String> {
    let mut leaders = BTreeMap::<Term, MemberId>::new();
    for (member, leadership) in &record.leaderships {
        let Some(leader) = leadership.leader else {
            continue;
        };
        let known = *leaders.entry(leadership.term).or_insert(leader);
        if known != leader {
            return Err(format!(
                "term {} has the leaders {known} and {leader} (as member {member} says)",
                leadership.term
            ));
        }
    }
    Ok(())
}
