//! [`Model`]: nftables in memory. It takes the same transactions as the kernel, refuses what the kernel
//! refuses, and [`Model::trace`] runs the rules on a packet, so that rules are tested without a kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use parking_lot::Mutex;

use super::types::{
    Chain, CmpOp, CtKey, Data, DynsetOp, Element, Expr, FibFlag, HookPoint, MetaKey, Op,
    PayloadBase, Reg, RejectWith, Rule, Set, TableName, Value, Verdict,
};
use super::{Inventory, Nft};
use crate::error::{Error, Result};

/// `RTN_UNICAST` and `RTN_LOCAL`.
const RTN: [u32; 2] = [1, 2];
const IPS_DST_NAT: u32 = 0x20;
const CT_NEW: u32 = 8;
/// The kernel's own limit on nested jumps.
const MAX_DEPTH: usize = 16;

/// The hook a packet is at.
pub type Hook = HookPoint;

/// A packet on its way, as rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub saddr: IpAddr,
    /// Destination address.
    pub daddr: IpAddr,
    /// IP protocol (6 TCP, 17 UDP).
    pub protocol: u8,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Packet mark.
    pub mark: u32,
    /// Whether the connection's destination was rewritten.
    pub translated: bool,
}

impl Packet {
    /// A first packet of a connection.
    pub fn new(protocol: u8, source: (IpAddr, u16), destination: (IpAddr, u16)) -> Self {
        Self {
            saddr: source.0,
            daddr: destination.0,
            protocol,
            sport: source.1,
            dport: destination.1,
            mark: 0,
            translated: false,
        }
    }
}

/// What became of a packet at a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdicts {
    /// It goes on.
    Accepted,
    /// It goes on, and its source will be rewritten.
    Masqueraded,
    /// It vanished.
    Dropped,
    /// It was refused with an answer.
    Rejected(RejectWith),
}

/// Result of [`Model::trace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The packet after the hook.
    pub packet: Packet,
    /// What became of it.
    pub verdict: Verdicts,
}

#[derive(Debug, Clone, Default)]
struct Table {
    handle: u64,
    chains: BTreeMap<String, (Chain, Vec<Rule>)>,
    sets: BTreeMap<String, (Set, HashMap<Value, Option<Data>>)>,
}

#[derive(Debug, Default)]
struct State {
    generation: u32,
    handles: u64,
    tables: HashMap<TableName, Table>,
    transactions: Vec<Vec<Op>>,
}

/// nftables in memory.
#[derive(Debug, Default)]
pub struct Model {
    state: Mutex<State>,
    local: Mutex<BTreeSet<IpAddr>>,
}

impl Model {
    /// An empty ruleset on a host that has these addresses.
    pub fn new(local: impl IntoIterator<Item = IpAddr>) -> Self {
        Self {
            state: Mutex::default(),
            local: Mutex::new(local.into_iter().collect()),
        }
    }

    /// All transactions so far.
    pub fn transactions(&self) -> Vec<Vec<Op>> {
        self.state.lock().transactions.clone()
    }

    /// Elements of a set or map.
    pub fn elements(&self, table: &TableName, set: &str) -> Vec<Element> {
        let state = self.state.lock();
        let found = state.tables.get(table).and_then(|t| t.sets.get(set));
        found.map_or_else(Vec::new, |(_, elements)| {
            elements
                .iter()
                .map(|(k, d)| Element {
                    key: k.clone(),
                    data: d.clone(),
                })
                .collect()
        })
    }

    /// Removes a table behind its owner's back.
    pub fn remove(&self, table: &TableName) {
        let mut state = self.state.lock();
        state.tables.remove(table);
        state.generation += 1;
    }

    /// Runs a table's rules at a hook on a packet. `random` takes the place of chance.
    pub fn trace(&self, table: &TableName, hook: Hook, packet: Packet, random: u32) -> Trace {
        let mut state = self.state.lock();
        let local = self.local.lock();
        let mut trace = Trace {
            packet,
            verdict: Verdicts::Accepted,
        };
        let Some(table) = state.tables.get_mut(table) else {
            return trace;
        };
        let mut bases: Vec<_> = table
            .chains
            .values()
            .filter_map(|(chain, _)| {
                chain
                    .base
                    .as_ref()
                    .map(|b| (b.hook, b.priority, chain.name.clone()))
            })
            .filter(|(h, ..)| *h == hook)
            .collect();
        bases.sort();
        for (_, _, chain) in bases {
            let mut run = Run {
                table,
                packet: &mut trace.packet,
                local: &local,
                random,
            };
            match run.chain(&chain, 0) {
                Flow::End(Verdicts::Accepted) | Flow::Next => {}
                Flow::End(Verdicts::Masqueraded) => trace.verdict = Verdicts::Masqueraded,
                Flow::End(verdict) => {
                    return Trace {
                        packet: trace.packet,
                        verdict,
                    };
                }
            }
        }
        trace
    }
}

impl Nft for Model {
    fn apply(&self, name: &TableName, ops: &[Op]) -> Result<()> {
        let mut state = self.state.lock();
        let mut table = state.tables.get(name).cloned();
        let mut handles = state.handles;
        for op in ops {
            let fail = |errno| Error::kernel(format!("{op:?}"), errno);
            match op {
                Op::AddTable => {
                    table.get_or_insert_with(|| {
                        handles += 1;
                        Table {
                            handle: handles,
                            ..Table::default()
                        }
                    });
                }
                Op::DeleteTable => {
                    table.take().ok_or_else(|| fail(libc::ENOENT))?;
                }
                other => table
                    .as_mut()
                    .ok_or(libc::ENOENT)
                    .and_then(|t| t.step(other))
                    .map_err(fail)?,
            }
        }
        match table {
            Some(table) => state.tables.insert(name.clone(), table),
            None => state.tables.remove(name),
        };
        state.handles = handles;
        state.generation += 1;
        state.transactions.push(ops.to_vec());
        Ok(())
    }

    fn generation(&self) -> Result<u32> {
        Ok(self.state.lock().generation)
    }

    fn inventory(&self, table: &TableName) -> Result<Option<Inventory>> {
        let state = self.state.lock();
        Ok(state.tables.get(table).map(|t| Inventory {
            handle: t.handle,
            rules: t
                .chains
                .iter()
                .map(|(n, (_, rules))| (n.clone(), rules.len()))
                .collect(),
            elements: t
                .sets
                .iter()
                .filter(|(_, (set, _))| !set.flags.timeout)
                .map(|(n, (_, elements))| (n.clone(), elements.len()))
                .collect(),
        }))
    }
}

type Step = std::result::Result<(), i32>;

impl Table {
    fn step(&mut self, op: &Op) -> Step {
        match op {
            Op::AddTable | Op::DeleteTable => {}
            Op::AddChain(chain) => {
                self.chains
                    .entry(chain.name.clone())
                    .or_insert_with(|| (chain.clone(), Vec::new()));
            }
            Op::DeleteChain(name) => {
                if !self.chains.contains_key(name) {
                    return Err(libc::ENOENT);
                }
                if self.references(name) {
                    return Err(libc::EBUSY);
                }
                self.chains.remove(name);
            }
            Op::FlushChain(name) => self.chains.get_mut(name).ok_or(libc::ENOENT)?.1.clear(),
            Op::AddSet(set) => match self.sets.get(&set.name) {
                Some((old, _)) if old != set => return Err(libc::EEXIST),
                Some(_) => {}
                None => {
                    self.sets
                        .insert(set.name.clone(), (set.clone(), HashMap::new()));
                }
            },
            Op::AddRule(rule) => {
                self.check_rule(rule)?;
                self.chains
                    .get_mut(&rule.chain)
                    .ok_or(libc::ENOENT)?
                    .1
                    .push(rule.clone());
            }
            Op::AddElements { set, elements } => self.add_elements(set, elements)?,
            Op::DeleteElements { set, elements } => {
                let (_, held) = self.sets.get_mut(set).ok_or(libc::ENOENT)?;
                for e in elements {
                    held.remove(&e.key).ok_or(libc::ENOENT)?;
                }
            }
        }
        Ok(())
    }

    fn add_elements(&mut self, name: &str, elements: &[Element]) -> Step {
        let (set, held) = self.sets.get_mut(name).ok_or(libc::ENOENT)?;
        for e in elements {
            let data_fits = match (&e.data, set.data) {
                (None, None) | (Some(Data::Verdict(_)), Some(_)) => true,
                (Some(Data::Value(v)), Some((_, len))) => v.len() == len as usize,
                _ => false,
            };
            if e.key.len() != set.key_len as usize || !data_fits {
                return Err(libc::EINVAL);
            }
            if let Some(Data::Verdict(Verdict::Goto(c) | Verdict::Jump(c))) = &e.data
                && !self.chains.contains_key(c)
            {
                return Err(libc::ENOENT);
            }
            if held.get(&e.key).is_some_and(|old| *old != e.data) {
                return Err(libc::EEXIST);
            }
            held.insert(e.key.clone(), e.data.clone());
        }
        Ok(())
    }

    fn references(&self, chain: &str) -> bool {
        let goes = |v: &Verdict| matches!(v, Verdict::Goto(c) | Verdict::Jump(c) if c == chain);
        let in_rule = |r: &Rule| {
            r.exprs
                .iter()
                .any(|e| matches!(e, Expr::Verdict(v) if goes(v)))
        };
        self.chains
            .values()
            .any(|(_, rules)| rules.iter().any(in_rule))
            || self.sets.values().any(|(_, held)| {
                held.values()
                    .any(|d| matches!(d, Some(Data::Verdict(v)) if goes(v)))
            })
    }

    /// Refuses rules that read registers which they did not load, and sets or chains that are not there.
    fn check_rule(&self, rule: &Rule) -> Step {
        let mut loaded = [false; 16];
        for e in &rule.exprs {
            if let Some(set) = set_of(e)
                && !self.sets.contains_key(set)
            {
                return Err(libc::ENOENT);
            }
            if let Expr::Verdict(Verdict::Goto(c) | Verdict::Jump(c)) = e
                && !self.chains.contains_key(c)
            {
                return Err(libc::ENOENT);
            }
            for (reg, len) in self.reads(e) {
                if !range(reg, len).all(|r| loaded.get(r) == Some(&true)) {
                    return Err(libc::ENODATA);
                }
            }
            if let Some((reg, len)) = self.writes(e) {
                for r in range(reg, len) {
                    *loaded.get_mut(r).ok_or(libc::ERANGE)? = true;
                }
            }
        }
        Ok(())
    }

    fn key_len(&self, set: &str) -> usize {
        self.sets.get(set).map_or(0, |(s, _)| s.key_len as usize)
    }

    fn data_len(&self, set: &str) -> usize {
        self.sets
            .get(set)
            .and_then(|(s, _)| s.data)
            .map_or(0, |(_, len)| len as usize)
    }

    fn reads(&self, e: &Expr) -> Vec<(Reg, usize)> {
        match e {
            Expr::SetMark { reg } => vec![(*reg, 4)],
            Expr::Bitwise { src, mask, .. } => vec![(*src, mask.len())],
            Expr::Cmp { reg, value, .. } => vec![(*reg, value.len())],
            Expr::Lookup { set, key, .. } | Expr::VerdictMap { set, key } => {
                vec![(*key, self.key_len(set))]
            }
            Expr::Dynset { set, key, data, .. } => {
                let mut reads = vec![(*key, self.key_len(set))];
                reads.extend(data.map(|d| (d, self.data_len(set))));
                reads
            }
            Expr::Dnat { addr, port } => std::iter::once((*addr, 4))
                .chain(port.map(|p| (p, 2)))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn writes(&self, e: &Expr) -> Option<(Reg, usize)> {
        match e {
            Expr::Payload { reg, len, .. } => Some((*reg, *len as usize)),
            Expr::Meta {
                reg,
                key: MetaKey::IifName | MetaKey::OifName,
            } => Some((*reg, 16)),
            Expr::Meta { reg, .. }
            | Expr::Ct { reg, .. }
            | Expr::FibAddrType { reg, .. }
            | Expr::Random { reg, .. } => Some((*reg, 4)),
            Expr::Immediate { reg, value } => Some((*reg, value.len())),
            Expr::Bitwise { dst, mask, .. } => Some((*dst, mask.len())),
            Expr::Lookup {
                set,
                data: Some(reg),
                ..
            } => Some((*reg, self.data_len(set))),
            _ => None,
        }
    }
}

fn set_of(e: &Expr) -> Option<&str> {
    match e {
        Expr::Lookup { set, .. } | Expr::VerdictMap { set, .. } | Expr::Dynset { set, .. } => {
            Some(set)
        }
        _ => None,
    }
}

fn range(reg: Reg, len: usize) -> std::ops::Range<usize> {
    let start = usize::from(reg.0);
    start..start + len.div_ceil(4)
}

enum Flow {
    Next,
    End(Verdicts),
}

struct Run<'a> {
    table: &'a mut Table,
    packet: &'a mut Packet,
    local: &'a BTreeSet<IpAddr>,
    random: u32,
}

impl Run<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> Flow {
        let rules = self
            .table
            .chains
            .get(name)
            .map(|(_, rules)| rules.clone())
            .unwrap_or_default();
        if depth > MAX_DEPTH {
            return Flow::End(Verdicts::Dropped);
        }
        for rule in &rules {
            match self.rule(rule) {
                Ok(None) | Err(None) => {}
                Ok(Some(end)) => return Flow::End(end),
                Err(Some(verdict)) => match verdict {
                    Verdict::Accept => return Flow::End(Verdicts::Accepted),
                    Verdict::Drop => return Flow::End(Verdicts::Dropped),
                    Verdict::Return => return Flow::Next,
                    Verdict::Goto(chain) => return self.chain(&chain, depth + 1),
                    Verdict::Jump(chain) => {
                        if let Flow::End(end) = self.chain(&chain, depth + 1) {
                            return Flow::End(end);
                        }
                    }
                },
            }
        }
        Flow::Next
    }

    /// `Err(None)`: did not match. `Err(Some)`: a verdict to follow. `Ok(Some)`: the packet's fate here.
    fn rule(&mut self, rule: &Rule) -> std::result::Result<Option<Verdicts>, Option<Verdict>> {
        let mut regs = [0u8; 64];
        for e in &rule.exprs {
            match e {
                Expr::Verdict(v) => return Err(Some(v.clone())),
                Expr::VerdictMap { set, key } => {
                    let key = self.key(set, *key, &regs);
                    match self.element(set, &key) {
                        Some(Some(Data::Verdict(v))) => return Err(Some(v)),
                        _ => return Err(None),
                    }
                }
                Expr::Dnat { addr, port } => {
                    self.translate(
                        read(&regs, *addr, self.address_len()),
                        port.map(|p| read(&regs, p, 2)),
                    );
                    return Ok(Some(Verdicts::Accepted));
                }
                Expr::Masquerade => return Ok(Some(Verdicts::Masqueraded)),
                Expr::Reject(with) => return Ok(Some(Verdicts::Rejected(*with))),
                Expr::SetMark { reg } => {
                    self.packet.mark = u32::from_ne_bytes(four(read(&regs, *reg, 4)))
                }
                _ if self.matches(e, &mut regs) => {}
                _ => return Err(None),
            }
        }
        Ok(None)
    }

    /// Loads and comparisons: whether the rule goes on.
    fn matches(&mut self, e: &Expr, regs: &mut [u8; 64]) -> bool {
        match e {
            Expr::Payload {
                base,
                offset,
                len,
                reg,
            } => write(regs, *reg, &self.payload(*base, *offset, *len)),
            Expr::Meta {
                key: MetaKey::Mark,
                reg,
            } => write(regs, *reg, &self.packet.mark.to_ne_bytes()),
            Expr::Meta {
                key: MetaKey::L4Proto,
                reg,
            } => write(regs, *reg, &[self.packet.protocol]),
            Expr::Meta { reg, .. } => write(regs, *reg, &[0; 16]),
            Expr::Ct {
                key: CtKey::State,
                reg,
            } => write(regs, *reg, &CT_NEW.to_ne_bytes()),
            Expr::Ct {
                key: CtKey::Status,
                reg,
            } => {
                let status = if self.packet.translated {
                    IPS_DST_NAT
                } else {
                    0
                };
                write(regs, *reg, &status.to_ne_bytes());
            }
            Expr::FibAddrType { flag, reg } => {
                let ip = if *flag == FibFlag::Saddr {
                    self.packet.saddr
                } else {
                    self.packet.daddr
                };
                let local = self.local.contains(&ip) || ip.is_loopback();
                write(regs, *reg, &RTN[usize::from(local)].to_ne_bytes());
            }
            Expr::Random {
                modulus,
                offset,
                reg,
            } => {
                write(
                    regs,
                    *reg,
                    &(self.random % (*modulus).max(1) + offset).to_ne_bytes(),
                );
            }
            Expr::Immediate { reg, value } => write(regs, *reg, value),
            Expr::Bitwise {
                src,
                dst,
                mask,
                xor,
            } => {
                let old = read(regs, *src, mask.len());
                let new: Vec<u8> = old
                    .iter()
                    .zip(mask)
                    .zip(xor)
                    .map(|((o, m), x)| (o & m) ^ x)
                    .collect();
                write(regs, *dst, &new);
            }
            Expr::Cmp { op, reg, value } => {
                return (read(regs, *reg, value.len()) == *value) == (*op == CmpOp::Eq);
            }
            Expr::Lookup {
                set,
                key,
                data,
                invert,
            } => {
                let key = self.key(set, *key, regs);
                let found = self.element(set, &key);
                if let (Some(Some(Data::Value(v))), Some(reg)) = (&found, data) {
                    write(regs, *reg, v);
                }
                return found.is_some() != *invert;
            }
            Expr::Dynset {
                op, set, key, data, ..
            } => {
                let key = self.key(set, *key, regs);
                let data = data.map(|d| Data::Value(read(regs, d, self.table.data_len(set))));
                return self.dynset(*op, set, key, data);
            }
            _ => {}
        }
        true
    }

    /// The kernel's way: an element that exists keeps its data, a full set ends the rule.
    fn dynset(&mut self, op: DynsetOp, set: &str, key: Value, data: Option<Data>) -> bool {
        let Some((set, held)) = self.table.sets.get_mut(set) else {
            return false;
        };
        match op {
            DynsetOp::Delete => {
                held.remove(&key);
                true
            }
            DynsetOp::Update => {
                if !held.contains_key(&key)
                    && set.size.is_some_and(|size| held.len() >= size as usize)
                {
                    return false;
                }
                held.entry(key).or_insert(data);
                true
            }
        }
    }

    fn key(&self, set: &str, reg: Reg, regs: &[u8; 64]) -> Value {
        read(regs, reg, self.table.key_len(set))
    }

    fn element(&self, set: &str, key: &Value) -> Option<Option<Data>> {
        self.table
            .sets
            .get(set)
            .and_then(|(_, held)| held.get(key))
            .cloned()
    }

    fn address_len(&self) -> usize {
        if self.packet.daddr.is_ipv4() { 4 } else { 16 }
    }

    fn translate(&mut self, addr: Vec<u8>, port: Option<Vec<u8>>) {
        self.packet.daddr = match addr.len() {
            4 => IpAddr::from(four(addr)),
            _ => IpAddr::from(<[u8; 16]>::try_from(addr).unwrap_or_default()),
        };
        if let Some(port) = port {
            self.packet.dport = u16::from_be_bytes([port[0], port[1]]);
        }
        self.packet.translated = true;
    }

    fn payload(&self, base: PayloadBase, offset: u32, len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        match base {
            PayloadBase::Transport => {
                bytes.extend(self.packet.sport.to_be_bytes());
                bytes.extend(self.packet.dport.to_be_bytes());
            }
            PayloadBase::Network => {
                bytes.resize(if self.packet.saddr.is_ipv4() { 12 } else { 8 }, 0);
                for ip in [self.packet.saddr, self.packet.daddr] {
                    match ip {
                        IpAddr::V4(ip) => bytes.extend(ip.octets()),
                        IpAddr::V6(ip) => bytes.extend(ip.octets()),
                    }
                }
            }
        }
        let (start, len) = (offset as usize, len as usize);
        bytes.resize(bytes.len().max(start + len), 0);
        bytes[start..start + len].to_vec()
    }
}

fn four(bytes: Vec<u8>) -> [u8; 4] {
    <[u8; 4]>::try_from(bytes).unwrap_or_default()
}

fn read(regs: &[u8; 64], reg: Reg, len: usize) -> Value {
    let start = usize::from(reg.0) * 4;
    regs.get(start..start + len)
        .map(<[u8]>::to_vec)
        .unwrap_or_default()
}

fn write(regs: &mut [u8; 64], reg: Reg, value: &[u8]) {
    let start = usize::from(reg.0) * 4;
    let padded = value.len().div_ceil(4) * 4;
    if let Some(target) = regs.get_mut(start..start + padded) {
        target.fill(0);
        target[..value.len()].copy_from_slice(value);
    }
}
