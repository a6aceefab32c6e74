//! A query to its answer, or to the decision that somebody else must answer it. Pure.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::zone::{Found, Node, Zone};

/// How long clients may remember cluster names, in seconds.
pub(crate) const TTL: u32 = 5;
/// The largest UDP answer that is sent, whatever the client offers: it fits every path unfragmented.
pub(crate) const MAX_UDP: u16 = 1232;
/// UDP answers to clients without EDNS.
const CLASSIC_UDP: u16 = 512;
/// Aliases that are followed before giving up.
const MAX_ALIASES: usize = 8;

/// What to do with a query.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Send this.
    Answer(Message),
    /// Ask an upstream server, and relay what it says.
    Forward,
    /// The name is an alias to an outside name: ask for that, and send this with its answers appended.
    Chase(Message, Name),
    /// Not worth an answer (it is an answer itself).
    Ignore,
}

/// Decides about a query.
pub(crate) fn decide(zone: &Zone, query: &Message) -> Decision {
    if query.metadata.message_type == MessageType::Response {
        return Decision::Ignore;
    }
    if query.metadata.op_code != OpCode::Query {
        return Decision::Answer(failure(query, ResponseCode::NotImp));
    }
    let [question] = query.queries.as_slice() else {
        return Decision::Answer(failure(query, ResponseCode::FormErr));
    };
    if query.edns.as_ref().is_some_and(|e| e.version() > 0) {
        return Decision::Answer(failure(query, ResponseCode::BADVERS));
    }
    if matches!(question.query_type, RecordType::AXFR | RecordType::IXFR) {
        return Decision::Answer(failure(query, ResponseCode::Refused));
    }
    let name = key(&question.name);
    if zone.contains(&name) {
        return in_zone(zone, query, question, name);
    }
    match reverse(zone, query, question) {
        Some(message) => Decision::Answer(message),
        None => Decision::Forward,
    }
}

/// An answer without records.
pub(crate) fn failure(query: &Message, code: ResponseCode) -> Message {
    let mut message = response(query);
    message.metadata.response_code = code;
    message
}

/// Bytes that the client takes in one UDP answer.
pub(crate) fn udp_limit(query: &Message) -> usize {
    let offered = query
        .edns
        .as_ref()
        .map_or(CLASSIC_UDP, |e| e.max_payload().max(CLASSIC_UDP));
    usize::from(offered.min(MAX_UDP))
}

fn response(query: &Message) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.recursion_available = true;
    message.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP);
        message.set_edns(edns);
    }
    message
}

/// A name as the zone's tables have it.
fn key(name: &Name) -> String {
    let mut text = name.to_lowercase().to_ascii();
    if text.ends_with('.') {
        text.pop();
    }
    text
}

fn in_zone(zone: &Zone, query: &Message, question: &Query, name: String) -> Decision {
    let mut message = response(query);
    if !zone.is_complete() {
        message.metadata.response_code = ResponseCode::ServFail;
        return Decision::Answer(message);
    }
    message.metadata.authoritative = true;
    if question.query_class != DNSClass::IN && question.query_class != DNSClass::ANY {
        message.metadata.response_code = ResponseCode::Refused;
        return Decision::Answer(message);
    }
    if name == zone.domain() {
        message.add_answers(apex(zone, question));
        return Decision::Answer(closed(zone, message));
    }
    let (mut owner, mut name) = (question.name.clone(), name);
    for _ in 0..MAX_ALIASES {
        match zone.find(&name) {
            Found::Nothing => {
                message.metadata.response_code = ResponseCode::NXDomain;
                break;
            }
            Found::Pod(ip) => {
                message.add_answers(address(&owner, ip, question.query_type));
                break;
            }
            Found::Node(Node {
                alias: Some(alias), ..
            }) => {
                let Ok(target) = absolute(alias) else { break };
                message.add_answer(Record::from_rdata(
                    owner,
                    TTL,
                    RData::CNAME(CNAME(target.clone())),
                ));
                if question.query_type == RecordType::CNAME {
                    break;
                }
                if !zone.contains(alias) {
                    return Decision::Chase(message, target);
                }
                owner = target;
                name.clone_from(alias);
            }
            Found::Node(node) => {
                records(zone, &owner, node, question.query_type, &mut message);
                break;
            }
        }
    }
    Decision::Answer(closed(zone, message))
}

/// A denial carries the SOA record, which says how long it may be remembered.
fn closed(zone: &Zone, mut message: Message) -> Message {
    let denies =
        message.answers.is_empty() || message.metadata.response_code == ResponseCode::NXDomain;
    if denies {
        message.add_authorities(soa(zone));
    }
    message
}

fn records(zone: &Zone, owner: &Name, node: &Node, wanted: RecordType, message: &mut Message) {
    for ip in &node.addresses {
        message.add_answers(address(owner, *ip, wanted));
    }
    if let Some(text) = node
        .text
        .as_ref()
        .filter(|_| matches!(wanted, RecordType::TXT | RecordType::ANY))
    {
        let data = RData::TXT(TXT::new(vec![text.clone()]));
        message.add_answer(Record::from_rdata(owner.clone(), TTL, data));
    }
    if !matches!(wanted, RecordType::SRV | RecordType::ANY) {
        return;
    }
    for target in &node.targets {
        let Ok(name) = absolute(&target.name) else {
            continue;
        };
        let data = RData::SRV(SRV::new(0, 100, target.port, name.clone()));
        message.add_answer(Record::from_rdata(owner.clone(), TTL, data));
        // Whoever asks for the target asks for its addresses next.
        if let Found::Node(node) = zone.find(&target.name) {
            for ip in &node.addresses {
                message.add_additionals(address(&name, *ip, RecordType::ANY));
            }
        }
    }
}

fn address(owner: &Name, ip: IpAddr, wanted: RecordType) -> Option<Record> {
    let data = match (ip, wanted) {
        (IpAddr::V4(ip), RecordType::A | RecordType::ANY) => RData::A(A(ip)),
        (IpAddr::V6(ip), RecordType::AAAA | RecordType::ANY) => RData::AAAA(AAAA(ip)),
        _ => return None,
    };
    Some(Record::from_rdata(owner.clone(), TTL, data))
}

fn apex(zone: &Zone, question: &Query) -> Vec<Record> {
    let wants = |kind| question.query_type == kind || question.query_type == RecordType::ANY;
    let mut records = Vec::new();
    if wants(RecordType::SOA) {
        records.extend(soa(zone));
    }
    if wants(RecordType::NS)
        && let Ok(server) = absolute(&format!("ns.dns.{}", zone.domain()))
    {
        records.push(Record::from_rdata(
            question.name.clone(),
            TTL,
            RData::NS(NS(server)),
        ));
    }
    records
}

fn soa(zone: &Zone) -> Option<Record> {
    let domain = zone.domain();
    let server = absolute(&format!("ns.dns.{domain}")).ok()?;
    let mailbox = absolute(&format!("hostmaster.{domain}")).ok()?;
    let data = SOA::new(server, mailbox, zone.serial(), 7200, 1800, 86_400, TTL);
    Some(Record::from_rdata(
        absolute(domain).ok()?,
        TTL,
        RData::SOA(data),
    ))
}

/// Answers reverse queries for addresses of the cluster; `None` where others may know.
fn reverse(zone: &Zone, query: &Message, question: &Query) -> Option<Message> {
    let net = question.name.parse_arpa_name().ok()?;
    if net.prefix_len() != net.max_prefix_len() {
        return None;
    }
    let names = zone.names_of(net.addr())?;
    let mut message = response(query);
    if !zone.is_complete() {
        message.metadata.response_code = ResponseCode::ServFail;
        return Some(message);
    }
    message.metadata.authoritative = true;
    if names.is_empty() {
        message.metadata.response_code = ResponseCode::NXDomain;
    }
    if matches!(question.query_type, RecordType::PTR | RecordType::ANY) {
        for name in names.iter().filter_map(|n| absolute(n).ok()) {
            message.add_answer(Record::from_rdata(
                question.name.clone(),
                TTL,
                RData::PTR(PTR(name)),
            ));
        }
    }
    Some(closed(zone, message))
}

fn absolute(name: &str) -> Result<Name, hickory_proto::ProtoError> {
    let mut parsed = Name::from_ascii(name)?;
    parsed.set_fqdn(true);
    Ok(parsed)
}
