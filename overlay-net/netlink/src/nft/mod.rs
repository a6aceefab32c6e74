//! nftables without an `nft` process: transactions as values ([`Op`]), the kernel ([`Kernel`]) and a model of
//! it for tests ([`Model`]) behind one trait ([`Nft`]).
//!
//! The encoder is our own because the crates at hand encode nftables wrongly (lookup, fib and dynset
//! attributes, byte orders, padding); the golden tests in `encode.rs` hold it to the kernel's header.

mod encode;
mod kernel;
mod model;
mod types;

#[cfg(test)]
mod tests;

use crate::error::Result;

pub use encode::MAX_ELEMENTS_BYTES;
pub use kernel::Kernel;
pub use model::{Hook, Model, Packet, Trace, Verdicts};
pub use types::{
    BaseChain, Chain, ChainKind, CmpOp, CtKey, Data, DynsetOp, Element, Expr, Family, FibFlag,
    HookPoint, MetaKey, Op, PayloadBase, Reg, RejectWith, Rule, Set, SetFlags, TableName, Value,
    Verdict, datatype,
};

/// What the kernel holds of a table: enough to notice that somebody changed it by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The table's handle: a re-created table has another one.
    pub handle: u64,
    /// Rules for each chain, by name.
    pub rules: std::collections::BTreeMap<String, usize>,
    /// Elements of each set and map without a timeout, by name.
    pub elements: std::collections::BTreeMap<String, usize>,
}

/// Something that holds an nftables ruleset.
pub trait Nft: Send + Sync {
    /// Carries out all of `ops` on `table`, or nothing of them.
    fn apply(&self, table: &TableName, ops: &[Op]) -> Result<()>;

    /// The ruleset's generation: it moves whenever anybody, also we, changes any table.
    fn generation(&self) -> Result<u32>;

    /// What the table holds, `None` if there is no such table.
    fn inventory(&self, table: &TableName) -> Result<Option<Inventory>>;
}
