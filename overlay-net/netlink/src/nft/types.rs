//! The values that nftables rules, sets and transactions are made of.

use std::fmt;
use std::time::Duration;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// `NFPROTO_*`.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Ipv4 => 2,
            Self::Ipv6 => 10,
        }
    }
}

/// A table: its family and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    /// Address family.
    pub family: Family,
    /// Name.
    pub name: String,
}

/// A hook of the packet path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookPoint {
    /// Arrived, not routed yet.
    Prerouting,
    /// Routed to this host.
    Input,
    /// Routed through this host.
    Forward,
    /// Made by this host.
    Output,
    /// About to leave.
    Postrouting,
}

impl HookPoint {
    pub(crate) fn number(self) -> u32 {
        self as u32
    }
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Filtering.
    Filter,
    /// Address translation: sees the first packet of each connection.
    Nat,
}

/// Where a base chain is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// What it is for.
    pub kind: ChainKind,
    /// Hook.
    pub hook: HookPoint,
    /// Order among the chains of the hook; lower runs first.
    pub priority: i32,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Attachment to a hook; regular chains, reached by jumps, have none. Policy is always accept.
    pub base: Option<BaseChain>,
}

/// One of the sixteen 32-bit registers, `Reg(0)` to `Reg(15)`. Longer values take several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reg(pub u8);

impl Reg {
    /// `NFT_REG32_00` is 8.
    pub(crate) fn number(self) -> u32 {
        8 + u32::from(self.0)
    }
}

/// What happens to the packet next.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Leave this hook's chain: accepted here.
    Accept,
    /// Gone.
    Drop,
    /// Back to the caller.
    Return,
    /// Into a chain, and back here after it.
    Jump(String),
    /// Into a chain, and back to our caller after it.
    Goto(String),
}

/// Bytes as they are in registers: each part of a concatenation padded to four bytes.
pub type Value = Vec<u8>;

/// What a map yields.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Data {
    /// A value.
    Value(Value),
    /// A verdict.
    Verdict(Verdict),
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(v) => write!(f, "{v:02x?}"),
            Self::Verdict(v) => write!(f, "{v:?}"),
        }
    }
}

/// An element of a set (no data) or a map.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Element {
    /// Key.
    pub key: Value,
    /// What the key maps to.
    pub data: Option<Data>,
}

/// Numbers that `nft list` uses to print keys and data (see `enum datatypes` of nftables).
pub mod datatype {
    /// A verdict, as data of a verdict map.
    pub const VERDICT: u32 = 0xffff_ff00;
    /// IPv4 address.
    pub const IPV4: u32 = 7;
    /// IPv6 address.
    pub const IPV6: u32 = 8;
    /// IP protocol.
    pub const PROTOCOL: u32 = 12;
    /// Port.
    pub const SERVICE: u32 = 13;
    /// Packet mark: a plain 32-bit number in host order.
    pub const MARK: u32 = 19;

    /// A concatenation of up to five types.
    pub const fn concat(parts: &[u32]) -> u32 {
        let mut value = 0;
        let mut i = 0;
        while i < parts.len() {
            value = value << 6 | parts[i];
            i += 1;
        }
        value
    }
}

/// Properties of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetFlags {
    /// Elements may time out.
    pub timeout: bool,
    /// Rules add and remove elements.
    pub dynamic: bool,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name.
    pub name: String,
    /// Type of the key for listings ([`datatype`]).
    pub key_type: u32,
    /// Length of the key in bytes.
    pub key_len: u32,
    /// Type and length of the data; length 0 with [`datatype::VERDICT`]. `None` for plain sets.
    pub data: Option<(u32, u32)>,
    /// Properties.
    pub flags: SetFlags,
    /// Most elements it may hold; unset is unlimited. Needed where rules add elements.
    pub size: Option<u32>,
}

/// A rule: expressions from left to right; the first that does not match ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Chain that it is appended to.
    pub chain: String,
    /// Expressions.
    pub exprs: Vec<Expr>,
}

/// Base of a payload load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// Network header (IP).
    Network,
    /// Transport header (TCP, UDP, ...).
    Transport,
}

/// Metadata of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaKey {
    /// Packet mark (host order).
    Mark,
    /// Protocol above IP, one byte padded to four.
    L4Proto,
    /// Name of the incoming interface, 16 bytes.
    IifName,
    /// Name of the outgoing interface, 16 bytes.
    OifName,
}

/// Comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
}

/// Connection tracking data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtKey {
    /// State bits (host order); new is 8.
    State,
    /// Status bits (host order); destination translated is 0x20.
    Status,
}

/// Which address a fib lookup is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibFlag {
    /// Source address.
    Saddr,
    /// Destination address.
    Daddr,
}

/// What a rule does to a dynamic set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynsetOp {
    /// Adds the element, or refreshes its timeout; an existing element keeps its data.
    Update,
    /// Removes the element.
    Delete,
}

/// How a packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectWith {
    /// A TCP reset.
    TcpReset,
    /// ICMP port unreachable.
    PortUnreachable,
}

/// One expression of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the packet.
    Payload {
        /// From which header.
        base: PayloadBase,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes; padded to four.
        len: u32,
        /// Into.
        reg: Reg,
    },
    /// Loads metadata.
    Meta {
        /// What.
        key: MetaKey,
        /// Into.
        reg: Reg,
    },
    /// Sets the packet's mark from a register.
    SetMark {
        /// From.
        reg: Reg,
    },
    /// Loads connection tracking data.
    Ct {
        /// What.
        key: CtKey,
        /// Into.
        reg: Reg,
    },
    /// Loads the type of an address (`RTN_LOCAL` is 2, host order).
    FibAddrType {
        /// Which address.
        flag: FibFlag,
        /// Into.
        reg: Reg,
    },
    /// Loads a random number below `modulus`, plus `offset` (host order).
    Random {
        /// How many numbers.
        modulus: u32,
        /// The lowest one.
        offset: u32,
        /// Into.
        reg: Reg,
    },
    /// Loads constant bytes.
    Immediate {
        /// Into.
        reg: Reg,
        /// The bytes.
        value: Value,
    },
    /// `reg = (reg & mask) ^ xor`.
    Bitwise {
        /// From.
        src: Reg,
        /// Into.
        dst: Reg,
        /// Mask.
        mask: Value,
        /// Bits to flip after masking.
        xor: Value,
    },
    /// Ends the rule unless the comparison holds.
    Cmp {
        /// Which comparison.
        op: CmpOp,
        /// The register to compare.
        reg: Reg,
        /// With these bytes.
        value: Value,
    },
    /// Looks up a key; ends the rule if it is not there (or if it is, when inverted).
    Lookup {
        /// Set or map.
        set: String,
        /// First register of the key.
        key: Reg,
        /// Where a map's data goes.
        data: Option<Reg>,
        /// Match when the key is absent.
        invert: bool,
    },
    /// Looks up a key in a verdict map and follows the verdict; ends the rule if it is not there.
    VerdictMap {
        /// Map.
        set: String,
        /// First register of the key.
        key: Reg,
    },
    /// Changes a dynamic set.
    Dynset {
        /// How.
        op: DynsetOp,
        /// Set.
        set: String,
        /// First register of the key.
        key: Reg,
        /// First register of the data.
        data: Option<Reg>,
        /// How long the element stays.
        timeout: Option<Duration>,
    },
    /// Rewrites the connection's destination.
    Dnat {
        /// Register of the address.
        addr: Reg,
        /// Register of the port.
        port: Option<Reg>,
    },
    /// Rewrites the connection's source to an address of the outgoing interface.
    Masquerade,
    /// Refuses the packet.
    Reject(RejectWith),
    /// Ends the rule with a verdict.
    Verdict(Verdict),
}

/// One step of a transaction on a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates the table unless it is there.
    AddTable,
    /// Removes the table with all in it.
    DeleteTable,
    /// Creates a chain unless it is there.
    AddChain(Chain),
    /// Removes an unreferenced chain and its rules.
    DeleteChain(String),
    /// Creates a set or map unless it is there.
    AddSet(Set),
    /// Appends a rule.
    AddRule(Rule),
    /// Removes all rules of a chain.
    FlushChain(String),
    /// Adds elements. The same key with other data is an error: delete it first.
    AddElements {
        /// Set or map.
        set: String,
        /// What to add.
        elements: Vec<Element>,
    },
    /// Removes elements, which must be there. Only keys matter.
    DeleteElements {
        /// Set or map.
        set: String,
        /// What to remove.
        elements: Vec<Element>,
    },
}
