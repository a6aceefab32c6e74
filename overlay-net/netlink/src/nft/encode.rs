//! Transactions to netlink bytes (linux/netfilter/nf_tables.h).

use super::types::{
    ChainKind, CmpOp, CtKey, Data, DynsetOp, Element, Expr, Family, FibFlag, MetaKey, Op,
    PayloadBase, Reg, RejectWith, Rule, Set, TableName, Verdict, datatype,
};
use crate::wire::{ACK, APPEND, CREATE, REQUEST, Writer};

/// Most bytes of one element list: its length field has 16 bits, and a little room is left.
pub const MAX_ELEMENTS_BYTES: usize = 60_000;

const SUBSYS_NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

pub(super) mod msg {
    pub const NEWTABLE: u16 = 0;
    pub const GETTABLE: u16 = 1;
    pub const DELTABLE: u16 = 2;
    pub const NEWCHAIN: u16 = 3;
    pub const GETCHAIN: u16 = 4;
    pub const DELCHAIN: u16 = 5;
    pub const NEWRULE: u16 = 6;
    pub const GETRULE: u16 = 7;
    pub const DELRULE: u16 = 8;
    pub const NEWSET: u16 = 9;
    pub const GETSET: u16 = 10;
    pub const NEWSETELEM: u16 = 12;
    pub const GETSETELEM: u16 = 13;
    pub const DELSETELEM: u16 = 14;
    pub const NEWGEN: u16 = 15;
    pub const GETGEN: u16 = 16;
}

pub(super) mod attr {
    pub const TABLE_NAME: u16 = 1;
    pub const TABLE_HANDLE: u16 = 4;
    pub const CHAIN_TABLE: u16 = 1;
    pub const CHAIN_NAME: u16 = 3;
    pub const CHAIN_HOOK: u16 = 4;
    pub const CHAIN_POLICY: u16 = 5;
    pub const CHAIN_TYPE: u16 = 7;
    pub const HOOK_HOOKNUM: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
    pub const RULE_TABLE: u16 = 1;
    pub const RULE_CHAIN: u16 = 2;
    pub const RULE_EXPRESSIONS: u16 = 4;
    pub const SET_TABLE: u16 = 1;
    pub const SET_NAME: u16 = 2;
    pub const SET_FLAGS: u16 = 3;
    pub const SET_KEY_TYPE: u16 = 4;
    pub const SET_KEY_LEN: u16 = 5;
    pub const SET_DATA_TYPE: u16 = 6;
    pub const SET_DATA_LEN: u16 = 7;
    pub const SET_DESC: u16 = 9;
    pub const SET_DESC_SIZE: u16 = 1;
    pub const SET_ID: u16 = 10;
    pub const ELEMS_TABLE: u16 = 1;
    pub const ELEMS_SET: u16 = 2;
    pub const ELEMS_ELEMENTS: u16 = 3;
    pub const LIST_ELEM: u16 = 1;
    pub const ELEM_KEY: u16 = 1;
    pub const ELEM_DATA: u16 = 2;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;
    pub const EXPR_NAME: u16 = 1;
    pub const EXPR_DATA: u16 = 2;
    pub const GEN_ID: u16 = 1;
}

const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;
const SET_EVAL: u32 = 0x20;
/// The verdict register.
const REG_VERDICT: u32 = 0;

/// `nfnetlink`'s message type for an nftables message.
pub(super) fn kind(message: u16) -> u16 {
    SUBSYS_NFTABLES << 8 | message
}

/// `struct nfgenmsg`.
pub(super) fn nfgen(family: u8, resource: u16) -> [u8; 4] {
    let r = resource.to_be_bytes();
    [family, 0, r[0], r[1]]
}

/// Where a transaction's messages are: to say which step an error number belongs to.
#[derive(Debug)]
pub(super) struct Encoded {
    /// The bytes of one `send`; `None` if some attribute was too big.
    pub bytes: Option<Vec<u8>>,
    /// For each sequence number from `first` on, the index of its [`Op`].
    pub steps: Vec<usize>,
    /// Sequence number of the first step.
    pub first: u32,
}

/// Encodes a transaction: batch begin, one or more messages for each step, batch end.
///
/// Only the last step asks for an acknowledgement: thousands of them overflow the receive buffer, and errors
/// come without being asked for.
pub(super) fn transaction(table: &TableName, ops: &[Op], sequence: u32) -> Encoded {
    let mut w = Writer::new();
    w.begin(BATCH_BEGIN, REQUEST, sequence, &nfgen(0, SUBSYS_NFTABLES));
    w.finish();
    let mut e = Encoder {
        w,
        table,
        sequence,
        steps: Vec::with_capacity(ops.len()),
        step: 0,
    };
    for (index, op) in ops.iter().enumerate() {
        e.step = index;
        e.op(op);
    }
    e.w.add_flags(ACK);
    let (steps, end) = (e.steps, e.sequence.wrapping_add(1));
    let mut w = e.w;
    w.begin(BATCH_END, REQUEST, end, &nfgen(0, SUBSYS_NFTABLES));
    w.finish();
    Encoded {
        bytes: w.into_bytes(),
        steps,
        first: sequence.wrapping_add(1),
    }
}

struct Encoder<'a> {
    w: Writer,
    table: &'a TableName,
    sequence: u32,
    steps: Vec<usize>,
    step: usize,
}

impl Encoder<'_> {
    fn begin(&mut self, message: u16, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        self.steps.push(self.step);
        self.w.begin(
            kind(message),
            REQUEST | flags,
            self.sequence,
            &nfgen(self.table.family.number(), 0),
        );
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::AddTable => self.table_message(msg::NEWTABLE, CREATE),
            Op::DeleteTable => self.table_message(msg::DELTABLE, 0),
            Op::AddChain(chain) => {
                self.chain_message(msg::NEWCHAIN, CREATE, &chain.name, |w| {
                    if let Some(base) = &chain.base {
                        let hook = w.nest(attr::CHAIN_HOOK);
                        w.be32(attr::HOOK_HOOKNUM, base.hook.number());
                        w.be32(attr::HOOK_PRIORITY, base.priority as u32);
                        w.end(hook);
                        w.be32(attr::CHAIN_POLICY, 1);
                        w.text(
                            attr::CHAIN_TYPE,
                            if base.kind == ChainKind::Nat {
                                "nat"
                            } else {
                                "filter"
                            },
                        );
                    }
                });
            }
            Op::DeleteChain(name) => self.chain_message(msg::DELCHAIN, 0, name, |_| {}),
            Op::AddSet(set) => self.set(set),
            Op::AddRule(rule) => self.rule(rule),
            Op::FlushChain(chain) => {
                self.begin(msg::DELRULE, 0);
                self.w.text(attr::RULE_TABLE, &self.table.name);
                self.w.text(attr::RULE_CHAIN, chain);
                self.w.finish();
            }
            Op::AddElements { set, elements } => {
                self.elements(msg::NEWSETELEM, CREATE, set, elements)
            }
            Op::DeleteElements { set, elements } => {
                self.elements(msg::DELSETELEM, 0, set, elements)
            }
        }
    }

    fn table_message(&mut self, message: u16, flags: u16) {
        self.begin(message, flags);
        self.w.text(attr::TABLE_NAME, &self.table.name);
        self.w.finish();
    }

    fn chain_message(
        &mut self,
        message: u16,
        flags: u16,
        name: &str,
        more: impl FnOnce(&mut Writer),
    ) {
        self.begin(message, flags);
        self.w.text(attr::CHAIN_TABLE, &self.table.name);
        self.w.text(attr::CHAIN_NAME, name);
        more(&mut self.w);
        self.w.finish();
    }

    fn set(&mut self, set: &Set) {
        self.begin(msg::NEWSET, CREATE);
        let w = &mut self.w;
        w.text(attr::SET_TABLE, &self.table.name);
        w.text(attr::SET_NAME, &set.name);
        let mut flags = 0;
        if set.data.is_some() {
            flags |= SET_MAP;
        }
        if set.flags.timeout {
            flags |= SET_TIMEOUT;
        }
        if set.flags.dynamic {
            flags |= SET_EVAL;
        }
        w.be32(attr::SET_FLAGS, flags);
        w.be32(attr::SET_KEY_TYPE, set.key_type);
        w.be32(attr::SET_KEY_LEN, set.key_len);
        if let Some((kind, len)) = set.data {
            w.be32(attr::SET_DATA_TYPE, kind);
            // The kernel knows how long a verdict is and takes any length for it.
            w.be32(
                attr::SET_DATA_LEN,
                if kind == datatype::VERDICT { 4 } else { len },
            );
        }
        if let Some(size) = set.size {
            let desc = w.nest(attr::SET_DESC);
            w.be32(attr::SET_DESC_SIZE, size);
            w.end(desc);
        }
        // Required, and only meaningful for anonymous sets.
        w.be32(attr::SET_ID, 1);
        w.finish();
    }

    fn rule(&mut self, rule: &Rule) {
        self.begin(msg::NEWRULE, CREATE | APPEND);
        let family = self.table.family;
        let w = &mut self.w;
        w.text(attr::RULE_TABLE, &self.table.name);
        w.text(attr::RULE_CHAIN, &rule.chain);
        let list = w.nest(attr::RULE_EXPRESSIONS);
        for e in &rule.exprs {
            let element = w.nest(attr::LIST_ELEM);
            expr(w, family, e);
            w.end(element);
        }
        w.end(list);
        w.finish();
    }

    /// Splits the elements over as many messages as the 16-bit length of a list demands.
    fn elements(&mut self, message: u16, flags: u16, set: &str, elements: &[Element]) {
        let mut rest = elements.iter().peekable();
        while rest.peek().is_some() {
            self.begin(message, flags);
            let w = &mut self.w;
            w.text(attr::ELEMS_TABLE, &self.table.name);
            w.text(attr::ELEMS_SET, set);
            let list = w.nest(attr::ELEMS_ELEMENTS);
            while w.nest_len(&list) < MAX_ELEMENTS_BYTES {
                let Some(e) = rest.next() else { break };
                let element = w.nest(attr::LIST_ELEM);
                value(w, attr::ELEM_KEY, &e.key);
                if let (Some(d), msg::NEWSETELEM) = (&e.data, message) {
                    data(w, attr::ELEM_DATA, d);
                }
                w.end(element);
            }
            w.end(list);
            w.finish();
        }
    }
}

fn value(w: &mut Writer, kind: u16, bytes: &[u8]) {
    let nest = w.nest(kind);
    w.bytes(attr::DATA_VALUE, bytes);
    w.end(nest);
}

fn data(w: &mut Writer, kind: u16, data: &Data) {
    match data {
        Data::Value(bytes) => value(w, kind, bytes),
        Data::Verdict(v) => verdict(w, kind, v),
    }
}

fn verdict(w: &mut Writer, kind: u16, verdict: &Verdict) {
    let outer = w.nest(kind);
    let inner = w.nest(attr::DATA_VERDICT);
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Return => (-5, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    w.be32(attr::VERDICT_CODE, code as u32);
    if let Some(chain) = chain {
        w.text(attr::VERDICT_CHAIN, chain);
    }
    w.end(inner);
    w.end(outer);
}

fn named(w: &mut Writer, name: &str, body: impl FnOnce(&mut Writer)) {
    w.text(attr::EXPR_NAME, name);
    let nest = w.nest(attr::EXPR_DATA);
    body(w);
    w.end(nest);
}

fn expr(w: &mut Writer, family: Family, e: &Expr) {
    match e {
        Expr::Payload {
            base,
            offset,
            len,
            reg,
        } => named(w, "payload", |w| {
            w.be32(1, reg.number());
            w.be32(2, if *base == PayloadBase::Network { 1 } else { 2 });
            w.be32(3, *offset);
            w.be32(4, *len);
        }),
        Expr::Meta { key, reg } => named(w, "meta", |w| {
            w.be32(2, meta_key(*key));
            w.be32(1, reg.number());
        }),
        Expr::SetMark { reg } => named(w, "meta", |w| {
            w.be32(2, meta_key(MetaKey::Mark));
            w.be32(3, reg.number());
        }),
        Expr::Ct { key, reg } => named(w, "ct", |w| {
            w.be32(2, if *key == CtKey::State { 0 } else { 2 });
            w.be32(1, reg.number());
        }),
        Expr::FibAddrType { flag, reg } => named(w, "fib", |w| {
            w.be32(1, reg.number());
            w.be32(2, 3);
            w.be32(3, if *flag == FibFlag::Saddr { 1 } else { 2 });
        }),
        Expr::Random {
            modulus,
            offset,
            reg,
        } => named(w, "numgen", |w| {
            w.be32(1, reg.number());
            w.be32(2, *modulus);
            w.be32(3, 1);
            w.be32(4, *offset);
        }),
        Expr::Immediate { reg, value: bytes } => named(w, "immediate", |w| {
            w.be32(1, reg.number());
            value(w, 2, bytes);
        }),
        Expr::Verdict(v) => named(w, "immediate", |w| {
            w.be32(1, REG_VERDICT);
            verdict(w, 2, v);
        }),
        Expr::Bitwise {
            src,
            dst,
            mask,
            xor,
        } => named(w, "bitwise", |w| {
            w.be32(1, src.number());
            w.be32(2, dst.number());
            w.be32(3, mask.len() as u32);
            value(w, 4, mask);
            value(w, 5, xor);
        }),
        Expr::Cmp {
            op,
            reg,
            value: bytes,
        } => named(w, "cmp", |w| {
            w.be32(1, reg.number());
            w.be32(2, if *op == CmpOp::Eq { 0 } else { 1 });
            value(w, 3, bytes);
        }),
        _ => stateful(w, family, e),
    }
}

/// Expressions that reach outside the rule: sets, connections, verdicts on the packet.
fn stateful(w: &mut Writer, family: Family, e: &Expr) {
    match e {
        Expr::Lookup {
            set,
            key,
            data,
            invert,
        } => lookup(w, set, *key, data.map(Reg::number), *invert),
        Expr::VerdictMap { set, key } => lookup(w, set, *key, Some(REG_VERDICT), false),
        Expr::Dynset {
            op,
            set,
            key,
            data,
            timeout,
        } => named(w, "dynset", |w| {
            w.text(1, set);
            w.be32(3, if *op == DynsetOp::Update { 1 } else { 2 });
            w.be32(4, key.number());
            if let Some(data) = data {
                w.be32(5, data.number());
            }
            if let Some(timeout) = timeout {
                w.be64(6, timeout.as_millis() as u64);
            }
        }),
        Expr::Dnat { addr, port } => named(w, "nat", |w| {
            w.be32(1, 1);
            w.be32(2, u32::from(family.number()));
            w.be32(3, addr.number());
            if let Some(port) = port {
                w.be32(5, port.number());
            }
        }),
        Expr::Masquerade => named(w, "masq", |_| {}),
        Expr::Reject(with) => named(w, "reject", |w| match with {
            RejectWith::TcpReset => {
                w.be32(1, 1);
                w.u8(2, 0);
            }
            RejectWith::PortUnreachable => {
                w.be32(1, 0);
                // Port unreachable is 3 in ICMP and 4 in ICMPv6.
                w.u8(2, if family == Family::Ipv4 { 3 } else { 4 });
            }
        }),
        _ => {}
    }
}

fn lookup(w: &mut Writer, set: &str, key: Reg, data: Option<u32>, invert: bool) {
    named(w, "lookup", |w| {
        w.text(1, set);
        w.be32(2, key.number());
        if let Some(data) = data {
            w.be32(3, data);
        }
        w.be32(5, u32::from(invert));
    });
}

fn meta_key(key: MetaKey) -> u32 {
    match key {
        MetaKey::Mark => 3,
        MetaKey::IifName => 6,
        MetaKey::OifName => 7,
        MetaKey::L4Proto => 16,
    }
}
