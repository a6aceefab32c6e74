//! Foreign bytes for parsers: mutated bodies, with limits on time and memory. See OVERVIEW.md.

mod memory;
mod mutate;
mod random;
mod run;
mod tree;

pub use memory::Counting;
pub use random::Random;
pub use run::Fuzz;
