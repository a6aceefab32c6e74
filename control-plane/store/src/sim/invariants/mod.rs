//! What must hold of every run, one rule to a file. A rule is a function of the record.

mod election_safety;
mod leases;
mod linearizable;
mod log_matching;
mod lost_writes;
mod revisions;
mod watches;

use super::history::Record;

/// A rule's name, and what it says is wrong.
pub(super) type Rule = (&'static str, fn(&Record) -> Result<(), String>);

/// All rules.
pub(super) const ALL: [Rule; 7] = [
    ("election safety", election_safety::check),
    ("log matching", log_matching::check),
    ("revisions", revisions::check),
    ("lost writes", lost_writes::check),
    ("watches", watches::check),
    ("leases", leases::check),
    ("linearizable", linearizable::check),
];
