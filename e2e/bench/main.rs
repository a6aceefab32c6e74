//! The benchmark behind the budget table.
fn main() {}
