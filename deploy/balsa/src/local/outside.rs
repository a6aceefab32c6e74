//! The local nodes' way out: this host forwards for the bridge's subnet and lends it its own address, so that
//! nodes can pull images and pods can reach what the host reaches.

use std::net::Ipv4Addr;

use anyhow::Context;
use balsa_netlink::nft::{
    BaseChain, Chain, ChainKind, CmpOp, Expr, Family, HookPoint, Kernel, Nft, Op, PayloadBase, Reg,
    Rule, TableName,
};
use balsa_netlink::sysctl;

use crate::local::topology::{HOST, PREFIX};

const FORWARD: &str = "ipv4/ip_forward";
const CHAIN: &str = "postrouting";
/// Where source addresses of the two ends stand in an IPv4 header.
const SADDR: u32 = 12;
const DADDR: u32 = 16;
/// After everybody else's translation of sources (`NF_IP_PRI_NAT_SRC`).
const PRIORITY: i32 = 100;

fn table() -> TableName {
    TableName {
        family: Family::Ipv4,
        name: "balsa-local".to_owned(),
    }
}

/// Loads an address of the packet and compares it with the bridge's subnet.
fn address(offset: u32, op: CmpOp) -> [Expr; 3] {
    let mask = u32::MAX << (32 - u32::from(PREFIX));
    let net = Ipv4Addr::from(u32::from(HOST) & mask);
    [
        Expr::Payload {
            base: PayloadBase::Network,
            offset,
            len: 4,
            reg: Reg(0),
        },
        Expr::Bitwise {
            src: Reg(0),
            dst: Reg(0),
            mask: mask.to_be_bytes().to_vec(),
            xor: vec![0; 4],
        },
        Expr::Cmp {
            op,
            reg: Reg(0),
            value: net.octets().to_vec(),
        },
    ]
}

/// What makes the table: one rule that gives packets from the nodes to elsewhere this host's address.
fn rules() -> Vec<Op> {
    let mut leaving = address(SADDR, CmpOp::Eq).to_vec();
    leaving.extend(address(DADDR, CmpOp::Ne));
    leaving.push(Expr::Masquerade);
    vec![
        Op::AddTable,
        Op::AddChain(Chain {
            name: CHAIN.to_owned(),
            base: Some(BaseChain {
                kind: ChainKind::Nat,
                hook: HookPoint::Postrouting,
                priority: PRIORITY,
            }),
        }),
        Op::FlushChain(CHAIN.to_owned()),
        Op::AddRule(Rule {
            chain: CHAIN.to_owned(),
            exprs: leaving,
        }),
    ]
}

/// Makes the way out, again if it is there; tells whether forwarding was switched on by this.
///
/// # Errors
/// When the kernel refuses.
pub fn ensure() -> anyhow::Result<bool> {
    Kernel::open()
        .and_then(|nft| nft.apply(&table(), &rules()))
        .context("cannot let the nodes out through this host (nftables)")?;
    let off = sysctl::get(FORWARD)? == "0";
    sysctl::set(FORWARD, "1").context("cannot switch on forwarding for the nodes")?;
    Ok(off)
}

/// Removes the way out; `forwarding` says that [`ensure`] had switched forwarding on.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(forwarding: bool) -> anyhow::Result<()> {
    let nft = Kernel::open().context("cannot open a netlink socket")?;
    if nft.inventory(&table())?.is_some() {
        nft.apply(&table(), &[Op::DeleteTable])
            .context("cannot remove the nftables table balsa-local")?;
    }
    if forwarding {
        sysctl::set(FORWARD, "0").context("cannot switch forwarding off again")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balsa_netlink::nft::{Hook, Model, Packet, Verdicts};

    use super::*;

    fn fate(source: &str, destination: &str) -> Verdicts {
        let model = Model::new([]);
        model.apply(&table(), &rules()).unwrap();
        let packet = Packet::new(
            6,
            (source.parse().unwrap(), 40_000),
            (destination.parse().unwrap(), 443),
        );
        model.trace(&table(), Hook::Postrouting, packet, 0).verdict
    }

    #[test]
    fn only_packets_from_the_nodes_to_elsewhere_get_the_hosts_address() {
        assert_eq!(fate("10.89.0.11", "192.0.2.1"), Verdicts::Masqueraded);
        assert_ne!(fate("10.89.0.11", "10.89.0.12"), Verdicts::Masqueraded);
        assert_ne!(fate("192.0.2.1", "10.89.0.11"), Verdicts::Masqueraded);
    }
}
