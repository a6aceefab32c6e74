//! [`Nft`] over nfnetlink.

use parking_lot::Mutex;

use super::encode::{self, attr, msg};
use super::types::{Op, TableName};
use super::{Inventory, Nft};
use crate::connection::{self, Connection};
use crate::error::{Error, Result};
use crate::wire::{self, ACK, DUMP, REQUEST};

const NFGENMSG: usize = 4;

/// The kernel's ruleset in one network namespace.
#[derive(Debug)]
pub struct Kernel {
    connection: Mutex<Connection>,
}

impl Kernel {
    /// Opens a connection in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self {
            connection: Mutex::new(Connection::open(libc::NETLINK_NETFILTER)?),
        })
    }

    /// Dumps messages `get` of a table and gives the attributes of each to `parse`.
    fn list<T>(
        &self,
        table: &TableName,
        (get, answer): (u16, u16),
        more: impl Fn(&mut wire::Writer),
        parse: impl Fn(&[u8], &mut Vec<T>),
    ) -> Result<Vec<T>> {
        self.connection.lock().dump(
            &format!("listing nftables table {}", table.name),
            |w, sequence| {
                w.begin(
                    encode::kind(get),
                    REQUEST | DUMP,
                    sequence,
                    &encode::nfgen(table.family.number(), 0),
                );
                w.text(1, &table.name);
                more(w);
                w.finish();
            },
            |found, message| {
                if message.kind == encode::kind(answer)
                    && let Some(attributes) = message.payload.get(NFGENMSG..)
                    && wire::attribute(attributes, 1).map(wire::text).as_deref()
                        == Some(&table.name)
                {
                    parse(attributes, found);
                }
            },
        )
    }

    fn table_handle(&self, table: &TableName) -> Result<Option<u64>> {
        let mut handle = 0;
        let outcome = self.connection.lock().query(
            &format!("looking up nftables table {}", table.name),
            |w, sequence| {
                let header = encode::nfgen(table.family.number(), 0);
                w.begin(
                    encode::kind(msg::GETTABLE),
                    REQUEST | ACK,
                    sequence,
                    &header,
                );
                w.text(attr::TABLE_NAME, &table.name);
                w.finish();
            },
            |message| {
                let attributes = message.payload.get(NFGENMSG..).unwrap_or_default();
                if let Some(Ok(bytes)) =
                    wire::attribute(attributes, attr::TABLE_HANDLE).map(<[u8; 8]>::try_from)
                {
                    handle = u64::from_be_bytes(bytes);
                }
            },
        );
        match outcome {
            Ok(()) => Ok(Some(handle)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Nft for Kernel {
    fn apply(&self, table: &TableName, ops: &[Op]) -> Result<()> {
        if ops.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection.lock();
        let what = format!("changing nftables table {}", table.name);
        let encoded = encode::transaction(table, ops, connection.next_sequence());
        let Some(bytes) = encoded.bytes else {
            return Err(Error::TooBig { what });
        };
        // Sequence numbers of the batch are used up.
        for _ in 0..=encoded.steps.len() {
            connection.next_sequence();
        }
        connection.allow_send(bytes.len() + (64 << 10))?;
        connection.send(&what, &bytes)?;
        outcome(&connection, &what, ops, &encoded.steps, encoded.first)
    }

    fn generation(&self) -> Result<u32> {
        let mut generation = 0;
        self.connection.lock().query(
            "reading the nftables generation",
            |w, sequence| {
                w.begin(
                    encode::kind(msg::GETGEN),
                    REQUEST | ACK,
                    sequence,
                    &encode::nfgen(0, 0),
                );
                w.finish();
            },
            |message| {
                if message.kind == encode::kind(msg::NEWGEN) {
                    let attributes = message.payload.get(NFGENMSG..).unwrap_or_default();
                    generation = wire::attribute(attributes, attr::GEN_ID).map_or(0, wire::be32);
                }
            },
        )?;
        Ok(generation)
    }

    fn inventory(&self, table: &TableName) -> Result<Option<Inventory>> {
        let Some(handle) = self.table_handle(table)? else {
            return Ok(None);
        };
        let mut inventory = Inventory {
            handle,
            ..Inventory::default()
        };
        let name = |kind| {
            move |a: &[u8], out: &mut Vec<String>| {
                out.extend(wire::attribute(a, kind).map(wire::text))
            }
        };
        for chain in self.list(
            table,
            (msg::GETCHAIN, msg::NEWCHAIN),
            |_| {},
            name(attr::CHAIN_NAME),
        )? {
            inventory.rules.insert(chain, 0);
        }
        for chain in self.list(
            table,
            (msg::GETRULE, msg::NEWRULE),
            |_| {},
            name(attr::RULE_CHAIN),
        )? {
            *inventory.rules.entry(chain).or_default() += 1;
        }
        const SET_TIMEOUT: u32 = 0x10;
        let sets = self.list(
            table,
            (msg::GETSET, msg::NEWSET),
            |_| {},
            |a, out| {
                let flags = wire::attribute(a, attr::SET_FLAGS).map_or(0, wire::be32);
                if let Some(name) = wire::attribute(a, attr::SET_NAME) {
                    out.push((wire::text(name), flags));
                }
            },
        )?;
        for (set, flags) in sets {
            if flags & SET_TIMEOUT != 0 {
                continue;
            }
            let counts = self.list(
                table,
                (msg::GETSETELEM, msg::NEWSETELEM),
                |w| w.text(attr::ELEMS_SET, &set),
                |a, out| {
                    out.extend(
                        wire::attribute(a, attr::ELEMS_ELEMENTS)
                            .map(|e| wire::attributes(e).count()),
                    )
                },
            )?;
            inventory.elements.insert(set, counts.into_iter().sum());
        }
        Ok(Some(inventory))
    }
}

/// Reads all answers to a transaction. They are there when `send` returns.
///
/// An acknowledgement is not success: it may come beside another message's error, so everything is read
/// before the verdict.
fn outcome(
    connection: &Connection,
    what: &str,
    ops: &[Op],
    steps: &[usize],
    first: u32,
) -> Result<()> {
    let mut acknowledged = false;
    let mut failure = None;
    loop {
        match connection.receive(what, false) {
            Ok(None) => break,
            Ok(Some(datagram)) => {
                for message in wire::messages(&datagram).filter(connection::is_error) {
                    let at = message.sequence.wrapping_sub(first) as usize;
                    // Sequence numbers one before the first step (batch begin) and after the last belong to us too.
                    let ours = at <= steps.len() || message.sequence.wrapping_add(1) == first;
                    match connection::errno(message.payload) {
                        _ if !ours => {}
                        0 => acknowledged = true,
                        errno => {
                            failure.get_or_insert_with(|| {
                                Error::kernel(describe(what, ops, steps.get(at)), errno)
                            });
                        }
                    }
                }
            }
            // More errors than the receive buffer holds: the transaction failed, and the first say why.
            Err(e) if e.errno() == Some(libc::ENOBUFS) => {
                failure.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None if acknowledged => Ok(()),
        None => Err(Error::kernel(format!("{what}: no answer"), libc::ETIMEDOUT)),
    }
}

fn describe(what: &str, ops: &[Op], step: Option<&usize>) -> String {
    let Some(op) = step.and_then(|s| ops.get(*s)) else {
        return what.to_owned();
    };
    let step = match op {
        Op::AddElements { set, elements } => format!("adding {} elements to {set}", elements.len()),
        Op::DeleteElements { set, elements } => {
            format!("removing {} elements from {set}", elements.len())
        }
        Op::AddSet(set) => format!("adding set {}", set.name),
        Op::AddRule(rule) => format!("adding a rule to chain {}: {:?}", rule.chain, rule.exprs),
        other => format!("{other:?}"),
    };
    format!("{what}: {step}")
}
