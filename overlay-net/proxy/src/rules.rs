//! The chains and rules of the table: a fixed set, plus one balancer chain for each endpoint COUNT.
//!
//! ```text
//!  prerouting, output ─> services ─ vip-inside ─┐
//!                          │        vip ────────┼─> lb-vip-...-N: pick number 0..N, look the endpoint
//!                          │        host-port-at│                 up in vip-slot, rewrite destination
//!                          └─> node-ports ── node-inside, node ─> lb-node-...-N (node-slot)
//!                                         └─ host-port
//!  postrouting: marked or hairpin -> masquerade; pods to elsewhere -> masquerade
//!  input, forward, output (filter): Services without endpoints -> reject
//! ```
//!
//! No rule names a Service: adding one adds map elements only.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use balsa_netlink::nft::{
    BaseChain, Chain, ChainKind, CmpOp, CtKey, DynsetOp, Expr, Family, FibFlag, HookPoint, MetaKey,
    Op, PayloadBase, Reg, RejectWith, Rule, Verdict,
};
use ipnet::IpNet;

use crate::config::Config;
use crate::key::SetId;
use crate::service::Protocol;

/// Packets with this mark get the node's source address (the bit that kube-proxy uses, too).
pub(crate) const MASQUERADE_MARK: u32 = 0x4000;
/// Local endpoints' numbers begin here, so that both groups share a map.
pub(crate) const LOCAL_OFFSET: u32 = 0x1_0000;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// `IPS_DST_NAT`.
const TRANSLATED: u32 = 0x20;
/// `ct state new`.
const NEW: u32 = 8;

/// Whether a connection is by virtual address or by node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Front {
    Vip,
    Node,
}

/// Whose connections get the node's source address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Masquerade {
    /// Those from outside the cluster.
    Outside,
    /// All.
    Always,
    /// None: endpoints see the client.
    Never,
}

/// Which endpoints share the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Group {
    All,
    Local,
}

/// A balancer chain: everything that its rules depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Balancer {
    pub front: Front,
    pub masquerade: Masquerade,
    pub group: Group,
    pub affinity: Option<Duration>,
    /// Endpoints, at least 1.
    pub count: u32,
    /// Who may come; everybody when unset. Such a chain leads to the one for everybody, so this field is compared
    /// last: chains are added in order and deleted in reverse.
    pub sources: Option<Arc<[IpNet]>>,
}

impl Balancer {
    /// Name of its chain.
    pub fn name(&self) -> String {
        let front = if self.front == Front::Vip {
            "vip"
        } else {
            "node"
        };
        let masquerade = match self.masquerade {
            Masquerade::Outside => "",
            Masquerade::Always => "-masq",
            Masquerade::Never => "-keep",
        };
        let group = if self.group == Group::All {
            ""
        } else {
            "-local"
        };
        let affinity = self
            .affinity
            .map(|t| format!("-sticky{}", t.as_secs()))
            .unwrap_or_default();
        let sources = self
            .sources
            .as_ref()
            .map(|ranges| format!("-from-{:016x}", digest(ranges)))
            .unwrap_or_default();
        format!(
            "lb-{front}{masquerade}{group}{affinity}-{}{sources}",
            self.count
        )
    }

    /// The same for everybody.
    pub fn open(&self) -> Self {
        Self {
            sources: None,
            ..self.clone()
        }
    }
}

/// FNV-1a of ranges: names of chains have no room for a list.
fn digest(ranges: &[IpNet]) -> u64 {
    let text: String = ranges.iter().map(|r| format!("{r},")).collect();
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Register positions and header offsets that depend on the address family.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Registers that an address takes.
    ip: u8,
    saddr: u32,
    daddr: u32,
    len: u32,
}

const fn layout(family: Family) -> Layout {
    match family {
        Family::Ipv4 => Layout {
            ip: 1,
            saddr: 12,
            daddr: 16,
            len: 4,
        },
        Family::Ipv6 => Layout {
            ip: 4,
            saddr: 8,
            daddr: 24,
            len: 16,
        },
    }
}

impl Layout {
    fn saddr(self, reg: u8) -> Expr {
        Expr::Payload {
            base: PayloadBase::Network,
            offset: self.saddr,
            len: self.len,
            reg: Reg(reg),
        }
    }

    fn daddr(self, reg: u8) -> Expr {
        Expr::Payload {
            base: PayloadBase::Network,
            offset: self.daddr,
            len: self.len,
            reg: Reg(reg),
        }
    }

    /// Loads the front (address, protocol, port or protocol, port); gives the next free register.
    fn front(self, front: Front, at: u8, out: &mut Vec<Expr>) -> u8 {
        let mut reg = at;
        if front == Front::Vip {
            out.push(self.daddr(reg));
            reg += self.ip;
        }
        out.push(Expr::Meta {
            key: MetaKey::L4Proto,
            reg: Reg(reg),
        });
        out.push(Expr::Payload {
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
            reg: Reg(reg + 1),
        });
        reg + 2
    }

    fn dnat(self, at: u8) -> Expr {
        Expr::Dnat {
            addr: Reg(at),
            port: Some(Reg(at + self.ip)),
        }
    }
}

/// The table from nothing: sets, fixed chains and their rules. Goes with an existing table first.
pub(crate) fn base(config: &Config, family: Family) -> Vec<Op> {
    let mut ops = vec![Op::AddTable, Op::DeleteTable, Op::AddTable];
    ops.extend(SetId::ALL.map(|set| Op::AddSet(set.declare(family))));
    ops.extend(fixed_chains().into_iter().map(Op::AddChain));
    ops.extend(fixed_rules(config, family).into_iter().map(Op::AddRule));
    ops
}

/// The chains that are always there.
pub(crate) fn fixed_chains() -> Vec<Chain> {
    let hooked = |name: &str, kind, hook, priority| Chain {
        name: name.to_owned(),
        base: Some(BaseChain {
            kind,
            hook,
            priority,
        }),
    };
    let plain = |name: &str| Chain {
        name: name.to_owned(),
        base: None,
    };
    vec![
        plain("services"),
        plain("node-ports"),
        plain("refuse"),
        // Before connections are known: answers have the host's own address here still.
        hooked(
            "raw-prerouting",
            ChainKind::Filter,
            HookPoint::Prerouting,
            -300,
        ),
        hooked(
            "nat-prerouting",
            ChainKind::Nat,
            HookPoint::Prerouting,
            -100,
        ),
        hooked("nat-output", ChainKind::Nat, HookPoint::Output, -100),
        hooked(
            "nat-postrouting",
            ChainKind::Nat,
            HookPoint::Postrouting,
            100,
        ),
        // After translation: what still has a Service's address here has nowhere to go.
        hooked("filter-input", ChainKind::Filter, HookPoint::Input, 0),
        hooked("filter-forward", ChainKind::Filter, HookPoint::Forward, 0),
        hooked("filter-output", ChainKind::Filter, HookPoint::Output, 0),
    ]
}

/// The rules of the fixed chains, in order.
pub(crate) fn fixed_rules(config: &Config, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut add = |chain: &str, exprs: Vec<Expr>| {
        rules.push(Rule {
            chain: chain.to_owned(),
            exprs,
        })
    };
    if family == Family::Ipv4 {
        add("raw-prerouting", martians(family));
    }
    for hook in ["nat-prerouting", "nat-output"] {
        add(
            hook,
            vec![Expr::Verdict(Verdict::Jump("services".to_owned()))],
        );
    }
    for exprs in services(config, family) {
        add("services", exprs);
    }
    for exprs in node_ports(config, family) {
        add("node-ports", exprs);
    }
    for exprs in postrouting(config, family) {
        add("nat-postrouting", exprs);
    }
    add(
        "filter-forward",
        vec![Expr::Verdict(Verdict::Jump("refuse".to_owned()))],
    );
    let mut host = daddr_is_local();
    host.push(Expr::Verdict(Verdict::Return));
    add("filter-output", host);
    add(
        "filter-output",
        vec![Expr::Verdict(Verdict::Jump("refuse".to_owned()))],
    );
    for exprs in refuse_node_ports(family) {
        add("filter-input", exprs);
    }
    for exprs in refuse(config, family) {
        add("refuse", exprs);
    }
    rules
}

/// The rules of a balancer chain.
pub(crate) fn balancer_rules(balancer: &Balancer, config: &Config, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    if let Some(sources) = &balancer.sources {
        return guard(balancer, sources, family);
    }
    match balancer.masquerade {
        Masquerade::Never => {}
        Masquerade::Always => rules.push(set_mark()),
        Masquerade::Outside => {
            let mut exprs = outside_cluster(config, family, |l| l.saddr(0));
            exprs.extend(set_mark());
            rules.push(exprs);
        }
    }
    if let Some(timeout) = balancer.affinity {
        rules.push(stick(balancer, timeout, family));
        rules.push(balance(balancer, Some(timeout), family));
    }
    rules.push(balance(balancer, None, family));
    let chain = balancer.name();
    rules
        .into_iter()
        .map(|exprs| Rule {
            chain: chain.clone(),
            exprs,
        })
        .collect()
}

/// Lets some sources through to the chain for everybody, and drops all others, as upstream does.
fn guard(balancer: &Balancer, sources: &[IpNet], family: Family) -> Vec<Rule> {
    let open = Verdict::Goto(balancer.open().name());
    let admitted = sources.iter().map(|range| {
        let mut exprs = saddr_in(family, *range);
        exprs.push(Expr::Verdict(open.clone()));
        exprs
    });
    let others = vec![Expr::Verdict(Verdict::Drop)];
    let chain = balancer.name();
    admitted
        .chain([others])
        .map(|exprs| Rule {
            chain: chain.clone(),
            exprs,
        })
        .collect()
}

fn services(config: &Config, family: Family) -> Vec<Vec<Expr>> {
    let l = layout(family);
    let mut rules = from_inside(config, family, Front::Vip, SetId::VipInside);
    rules.push(verdict_map(l, Front::Vip, SetId::Vip));
    let mut at = Vec::new();
    l.front(Front::Vip, 0, &mut at);
    at.push(Expr::Lookup {
        set: SetId::HostPortAt.name().to_owned(),
        key: Reg(0),
        data: Some(Reg(0)),
        invert: false,
    });
    at.push(l.dnat(0));
    rules.push(at);
    // Loopback senders have an address that leaves the host only towards pods, which host ports lead to and node ports
    // need not. IPv6 has no way at all.
    if family == Family::Ipv4 {
        let mut host = daddr_in(family, loopback_net(family));
        host.extend(host_port(l));
        rules.push(host);
    }
    let mut loopback = daddr_in(family, loopback_net(family));
    loopback.push(Expr::Verdict(Verdict::Return));
    rules.push(loopback);
    let mut node = daddr_is_local();
    node.push(Expr::Verdict(Verdict::Goto("node-ports".to_owned())));
    rules.push(node);
    rules
}

fn node_ports(config: &Config, family: Family) -> Vec<Vec<Expr>> {
    let l = layout(family);
    let mut rules = from_inside(config, family, Front::Node, SetId::NodeInside);
    rules.push(verdict_map(l, Front::Node, SetId::Node));
    rules.push(host_port(l));
    rules
}

/// To the pod that has this port of all the host's addresses.
fn host_port(l: Layout) -> Vec<Expr> {
    let mut exprs = Vec::new();
    l.front(Front::Node, 0, &mut exprs);
    exprs.push(Expr::Lookup {
        set: SetId::HostPort.name().to_owned(),
        key: Reg(0),
        data: Some(Reg(0)),
        invert: false,
    });
    exprs.push(l.dnat(0));
    exprs
}

/// Pods' devices let loopback addresses through for the sake of host ports; nobody else may use that to reach what
/// listens on the host's loopback device alone (CVE-2020-8558).
fn martians(family: Family) -> Vec<Expr> {
    let mut name = b"lo".to_vec();
    name.resize(16, 0);
    let mut exprs = vec![
        Expr::Meta {
            key: MetaKey::IifName,
            reg: Reg(0),
        },
        Expr::Cmp {
            op: CmpOp::Ne,
            reg: Reg(0),
            value: name,
        },
    ];
    exprs.extend(daddr_in(family, loopback_net(family)));
    exprs.push(Expr::Verdict(Verdict::Drop));
    exprs
}

fn postrouting(config: &Config, family: Family) -> Vec<Vec<Expr>> {
    let l = layout(family);
    let mut marked = vec![
        Expr::Meta {
            key: MetaKey::Mark,
            reg: Reg(0),
        },
        bits(0, MASQUERADE_MARK),
        Expr::Cmp {
            op: CmpOp::Ne,
            reg: Reg(0),
            value: vec![0; 4],
        },
    ];
    marked.extend(translated());
    marked.push(Expr::Masquerade);
    let mut hairpin = translated();
    hairpin.push(l.saddr(0));
    hairpin.push(l.daddr(l.ip));
    hairpin.push(Expr::Lookup {
        set: SetId::Hairpin.name().to_owned(),
        key: Reg(0),
        data: None,
        invert: false,
    });
    hairpin.push(Expr::Masquerade);
    let mut rules = vec![marked, hairpin];
    if family == Family::Ipv4 {
        let mut from_loopback = translated();
        from_loopback.extend(saddr_in(family, loopback_net(family)));
        from_loopback.push(Expr::Masquerade);
        rules.push(from_loopback);
    }
    for cidr in cidrs(config, family) {
        let mut leaving = saddr_in(family, cidr);
        leaving.extend(outside_cluster(config, family, |l| l.daddr(0)));
        leaving.extend(daddr_not_in(family, multicast_net(family)));
        leaving.push(Expr::Masquerade);
        rules.push(leaving);
    }
    rules
}

/// Node ports without endpoints; only new connections, or a host's own connection from that port would break.
fn refuse_node_ports(family: Family) -> Vec<Vec<Expr>> {
    let l = layout(family);
    refusals(|| {
        let mut exprs = vec![
            Expr::Ct {
                key: CtKey::State,
                reg: Reg(0),
            },
            bits(0, NEW),
            Expr::Cmp {
                op: CmpOp::Ne,
                reg: Reg(0),
                value: vec![0; 4],
            },
        ];
        exprs.extend(daddr_is_local());
        l.front(Front::Node, 0, &mut exprs);
        exprs.push(Expr::Lookup {
            set: SetId::NodeEmpty.name().to_owned(),
            key: Reg(0),
            data: None,
            invert: false,
        });
        exprs
    })
}

fn refuse(config: &Config, family: Family) -> Vec<Vec<Expr>> {
    let l = layout(family);
    let mut rules = refusals(|| {
        let mut exprs = Vec::new();
        l.front(Front::Vip, 0, &mut exprs);
        exprs.push(Expr::Lookup {
            set: SetId::VipEmpty.name().to_owned(),
            key: Reg(0),
            data: None,
            invert: false,
        });
        exprs
    });
    if let Some(cidr) = config.service_cidr.filter(|c| of_family(c, family)) {
        rules.extend(refusals(|| daddr_in(family, cidr)));
    }
    rules
}

/// The same condition twice: TCP gets a reset, everything else an ICMP error.
fn refusals(condition: impl Fn() -> Vec<Expr>) -> Vec<Vec<Expr>> {
    let mut tcp = condition();
    tcp.push(Expr::Meta {
        key: MetaKey::L4Proto,
        reg: Reg(0),
    });
    tcp.push(Expr::Cmp {
        op: CmpOp::Eq,
        reg: Reg(0),
        value: vec![Protocol::Tcp.number()],
    });
    tcp.push(Expr::Reject(RejectWith::TcpReset));
    let mut rest = condition();
    rest.push(Expr::Reject(RejectWith::PortUnreachable));
    vec![tcp, rest]
}

/// Senders inside the cluster: pods, and this host.
fn from_inside(config: &Config, family: Family, front: Front, set: SetId) -> Vec<Vec<Expr>> {
    let mut senders: Vec<Vec<Expr>> = cidrs(config, family)
        .map(|cidr| saddr_in(family, cidr))
        .collect();
    senders.push(vec![
        Expr::FibAddrType {
            flag: FibFlag::Saddr,
            reg: Reg(0),
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            reg: Reg(0),
            value: LOCAL.to_ne_bytes().to_vec(),
        },
    ]);
    for sender in &mut senders {
        sender.extend(verdict_map(layout(family), front, set));
    }
    senders
}

fn verdict_map(l: Layout, front: Front, set: SetId) -> Vec<Expr> {
    let mut exprs = Vec::new();
    l.front(front, 0, &mut exprs);
    exprs.push(Expr::VerdictMap {
        set: set.name().to_owned(),
        key: Reg(0),
    });
    exprs
}

fn sets(front: Front) -> (SetId, SetId, SetId) {
    match front {
        Front::Vip => (SetId::VipSlot, SetId::VipAffinity, SetId::VipLive),
        Front::Node => (SetId::NodeSlot, SetId::NodeAffinity, SetId::NodeLive),
    }
}

/// A client that is remembered goes where it went, if that endpoint still serves; its time starts anew.
fn stick(balancer: &Balancer, timeout: Duration, family: Family) -> Vec<Expr> {
    let l = layout(family);
    let (_, affinity, live) = sets(balancer.front);
    let mut exprs = vec![l.saddr(0)];
    let endpoint = l.front(balancer.front, l.ip, &mut exprs);
    let remembered = Some(Reg(endpoint));
    exprs.push(Expr::Lookup {
        set: affinity.name().to_owned(),
        key: Reg(0),
        data: remembered,
        invert: false,
    });
    exprs.push(Expr::Lookup {
        set: live.name().to_owned(),
        key: Reg(l.ip),
        data: None,
        invert: false,
    });
    exprs.push(dynset(DynsetOp::Update, affinity, remembered, timeout));
    exprs.push(l.dnat(endpoint));
    exprs
}

/// Picks an endpoint by chance, and remembers it if `remember` is set.
fn balance(balancer: &Balancer, remember: Option<Duration>, family: Family) -> Vec<Expr> {
    let l = layout(family);
    let (slot, affinity, _) = sets(balancer.front);
    let start = if remember.is_some() { l.ip } else { 0 };
    let mut exprs = Vec::new();
    if remember.is_some() {
        exprs.push(l.saddr(0));
    }
    let number = l.front(balancer.front, start, &mut exprs);
    let offset = if balancer.group == Group::Local {
        LOCAL_OFFSET
    } else {
        0
    };
    exprs.push(Expr::Random {
        modulus: balancer.count,
        offset,
        reg: Reg(number),
    });
    // The remembered key must survive, so the endpoint goes where the number was.
    let endpoint = if remember.is_some() { number } else { 0 };
    exprs.push(Expr::Lookup {
        set: slot.name().to_owned(),
        key: Reg(start),
        data: Some(Reg(endpoint)),
        invert: false,
    });
    if let Some(timeout) = remember {
        // An update keeps the data of an element that exists, so a dead endpoint is forgotten first.
        exprs.push(dynset(
            DynsetOp::Delete,
            affinity,
            Some(Reg(endpoint)),
            timeout,
        ));
        exprs.push(dynset(
            DynsetOp::Update,
            affinity,
            Some(Reg(endpoint)),
            timeout,
        ));
    }
    exprs.push(l.dnat(endpoint));
    exprs
}

fn dynset(op: DynsetOp, set: SetId, data: Option<Reg>, timeout: Duration) -> Expr {
    let timeout = (op == DynsetOp::Update).then_some(timeout);
    Expr::Dynset {
        op,
        set: set.name().to_owned(),
        key: Reg(0),
        data,
        timeout,
    }
}

// === conditions ===

fn translated() -> Vec<Expr> {
    vec![
        Expr::Ct {
            key: CtKey::Status,
            reg: Reg(0),
        },
        bits(0, TRANSLATED),
        Expr::Cmp {
            op: CmpOp::Ne,
            reg: Reg(0),
            value: vec![0; 4],
        },
    ]
}

fn set_mark() -> Vec<Expr> {
    vec![
        Expr::Meta {
            key: MetaKey::Mark,
            reg: Reg(0),
        },
        // mark | bit, as nftables says it: (mark & ~bit) ^ bit.
        Expr::Bitwise {
            src: Reg(0),
            dst: Reg(0),
            mask: (!MASQUERADE_MARK).to_ne_bytes().to_vec(),
            xor: MASQUERADE_MARK.to_ne_bytes().to_vec(),
        },
        Expr::SetMark { reg: Reg(0) },
    ]
}

fn bits(reg: u8, mask: u32) -> Expr {
    Expr::Bitwise {
        src: Reg(reg),
        dst: Reg(reg),
        mask: mask.to_ne_bytes().to_vec(),
        xor: vec![0; 4],
    }
}

fn daddr_is_local() -> Vec<Expr> {
    vec![
        Expr::FibAddrType {
            flag: FibFlag::Daddr,
            reg: Reg(0),
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            reg: Reg(0),
            value: LOCAL.to_ne_bytes().to_vec(),
        },
    ]
}

fn in_net(load: Expr, net: IpNet, op: CmpOp) -> Vec<Expr> {
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (mask, network) = (bytes(net.netmask()), bytes(net.network()));
    vec![
        load,
        Expr::Bitwise {
            src: Reg(0),
            dst: Reg(0),
            xor: vec![0; mask.len()],
            mask,
        },
        Expr::Cmp {
            op,
            reg: Reg(0),
            value: network,
        },
    ]
}

fn saddr_in(family: Family, net: IpNet) -> Vec<Expr> {
    in_net(layout(family).saddr(0), net, CmpOp::Eq)
}

fn daddr_in(family: Family, net: IpNet) -> Vec<Expr> {
    in_net(layout(family).daddr(0), net, CmpOp::Eq)
}

fn daddr_not_in(family: Family, net: IpNet) -> Vec<Expr> {
    in_net(layout(family).daddr(0), net, CmpOp::Ne)
}

fn outside_cluster(config: &Config, family: Family, load: impl Fn(Layout) -> Expr) -> Vec<Expr> {
    cidrs(config, family)
        .flat_map(|cidr| in_net(load(layout(family)), cidr, CmpOp::Ne))
        .collect()
}

fn cidrs(config: &Config, family: Family) -> impl Iterator<Item = IpNet> {
    config
        .cluster_cidrs
        .iter()
        .copied()
        .filter(move |c| of_family(c, family))
}

fn of_family(net: &IpNet, family: Family) -> bool {
    net.addr().is_ipv4() == (family == Family::Ipv4)
}

fn loopback_net(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
        Family::Ipv6 => IpNet::new_assert(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 128),
    }
}

fn multicast_net(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
        Family::Ipv6 => IpNet::new_assert(
            IpAddr::V6(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)),
            8,
        ),
    }
}
