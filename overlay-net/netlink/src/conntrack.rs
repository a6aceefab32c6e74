//! Removing UDP flows from connection tracking.
//!
//! A UDP "connection" lives as long as packets come, so a client that keeps sending would stay with an
//! endpoint that is gone. TCP needs none of this: the endpoint's end closes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use parking_lot::Mutex;

use crate::connection::Connection;
use crate::error::Result;
use crate::wire::{self, ACK, DUMP, REQUEST, Writer};

const SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = 0;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const NFGENMSG: usize = 4;
const UDP: u8 = 17;

/// A tracked UDP flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who sent the first packet.
    pub source: (IpAddr, u16),
    /// Where it was sent.
    pub destination: (IpAddr, u16),
    /// Who answers: the endpoint after translation.
    pub answers: (IpAddr, u16),
}

/// The kernel's connection tracking table, in one network namespace.
pub trait Conntrack: Send + Sync {
    /// All tracked UDP flows.
    fn udp_flows(&self) -> Result<Vec<Flow>>;
    /// Forgets a flow: its next packet is a new connection. A flow that is gone already is no error.
    fn forget(&self, flow: &Flow) -> Result<()>;
}

/// [`Conntrack`] over ctnetlink.
#[derive(Debug)]
pub struct CtNetlink {
    connection: Mutex<Connection>,
}

impl CtNetlink {
    /// Opens a connection in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Ok(Self {
            connection: Mutex::new(Connection::open(libc::NETLINK_NETFILTER)?),
        })
    }
}

impl Conntrack for CtNetlink {
    fn udp_flows(&self) -> Result<Vec<Flow>> {
        self.connection.lock().dump(
            "listing tracked connections",
            |w, sequence| {
                w.begin(
                    SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET,
                    REQUEST | DUMP,
                    sequence,
                    &[0, 0, 0, 0],
                );
                w.finish();
            },
            |found, message| {
                if message.kind == SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW {
                    found.extend(parse(message.payload));
                }
            },
        )
    }

    fn forget(&self, flow: &Flow) -> Result<()> {
        let family = if flow.source.0.is_ipv4() { 2 } else { 10 };
        let outcome =
            self.connection
                .lock()
                .request("forgetting a tracked connection", |w, sequence| {
                    w.begin(
                        SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE,
                        REQUEST | ACK,
                        sequence,
                        &[family, 0, 0, 0],
                    );
                    tuple(w, CTA_TUPLE_ORIG, flow.source, flow.destination);
                    w.finish();
                });
        match outcome {
            Err(e) if !e.is_not_found() => Err(e),
            _ => Ok(()),
        }
    }
}

fn tuple(w: &mut Writer, kind: u16, source: (IpAddr, u16), destination: (IpAddr, u16)) {
    let outer = w.nest(kind);
    let ip = w.nest(CTA_TUPLE_IP);
    for (address, v4, v6) in [
        (source.0, CTA_IP_V4_SRC, CTA_IP_V6_SRC),
        (destination.0, CTA_IP_V4_DST, CTA_IP_V6_DST),
    ] {
        match address {
            IpAddr::V4(a) => w.bytes(v4, &a.octets()),
            IpAddr::V6(a) => w.bytes(v6, &a.octets()),
        }
    }
    w.end(ip);
    let proto = w.nest(CTA_TUPLE_PROTO);
    w.u8(CTA_PROTO_NUM, UDP);
    w.be16(CTA_PROTO_SRC_PORT, source.1);
    w.be16(CTA_PROTO_DST_PORT, destination.1);
    w.end(proto);
    w.end(outer);
}

fn parse(payload: &[u8]) -> Option<Flow> {
    let attributes = payload.get(NFGENMSG..)?;
    let (source, destination) = parse_tuple(wire::attribute(attributes, CTA_TUPLE_ORIG)?)?;
    let (answers, _) = parse_tuple(wire::attribute(attributes, CTA_TUPLE_REPLY)?)?;
    Some(Flow {
        source,
        destination,
        answers,
    })
}

type End = (IpAddr, u16);

fn parse_tuple(tuple: &[u8]) -> Option<(End, End)> {
    let ip = wire::attribute(tuple, CTA_TUPLE_IP)?;
    let proto = wire::attribute(tuple, CTA_TUPLE_PROTO)?;
    if wire::attribute(proto, CTA_PROTO_NUM)?.first() != Some(&UDP) {
        return None;
    }
    let port = |kind| wire::attribute(proto, kind).map(wire::be16);
    let address = |v4, v6| {
        let v4 = wire::attribute(ip, v4)
            .and_then(|b| <[u8; 4]>::try_from(b).ok())
            .map(|b| IpAddr::V4(Ipv4Addr::from(b)));
        v4.or_else(|| {
            wire::attribute(ip, v6)
                .and_then(|b| <[u8; 16]>::try_from(b).ok())
                .map(|b| IpAddr::V6(Ipv6Addr::from(b)))
        })
    };
    Some((
        (
            address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
            port(CTA_PROTO_SRC_PORT)?,
        ),
        (
            address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
            port(CTA_PROTO_DST_PORT)?,
        ),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_written_tuple_is_read_back() {
        let source = ("10.1.2.3".parse().unwrap(), 4000);
        let destination = ("10.96.0.7".parse().unwrap(), 53);
        let mut w = Writer::new();
        tuple(&mut w, CTA_TUPLE_ORIG, source, destination);
        tuple(&mut w, CTA_TUPLE_REPLY, destination, source);
        let mut payload = vec![2, 0, 0, 0];
        payload.extend(w.into_bytes().unwrap());
        assert_eq!(
            parse(&payload),
            Some(Flow {
                source,
                destination,
                answers: destination
            })
        );
    }
}
