//! IP addresses and CIDRs. Addresses of IPv4 mapped into IPv6, zones and leading zeroes are refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::opaque::Opaque;
use super::{Builtin, Outcome, read};
use crate::budget::Budget;
use crate::error::EvalError;
use crate::value::Val;

pub const DECLARATIONS: &str = "
ip(string): ip
isIP(string): bool
ip::isCanonical(string): bool
ip.family(): int
ip.isUnspecified(): bool
ip.isLoopback(): bool
ip.isLinkLocalMulticast(): bool
ip.isLinkLocalUnicast(): bool
ip.isGlobalUnicast(): bool
cidr(string): cidr
isCIDR(string): bool
cidr.containsIP(string): bool
cidr.containsIP(ip): bool
cidr.containsCIDR(string): bool
cidr.containsCIDR(cidr): bool
cidr.ip(): ip
cidr.masked(): cidr
cidr.prefixLength(): int
";

pub fn builtin(name: &str) -> Option<Builtin> {
    Some(match name {
        "ip" => ip,
        "isIP" => |args, budget| Ok(Val::Bool(parse_ip(read(args, 0, budget)?).is_some())),
        "ip.isCanonical" => |args, budget| {
            let text = read(args, 0, budget)?;
            let ip = parse_ip(text).ok_or_else(|| bad_ip(text))?;
            Ok(Val::Bool(ip.to_string() == text))
        },
        "family" => |args, _| Ok(Val::Int(if address(args)?.is_ipv4() { 4 } else { 6 })),
        "isUnspecified" => |args, _| Ok(Val::Bool(address(args)?.is_unspecified())),
        "isLoopback" => |args, _| Ok(Val::Bool(address(args)?.is_loopback())),
        "isLinkLocalMulticast" => |args, _| {
            Ok(Val::Bool(match address(args)? {
                IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
                IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
            }))
        },
        "isLinkLocalUnicast" => |args, _| Ok(Val::Bool(is_link_local(address(args)?))),
        "isGlobalUnicast" => |args, _| {
            let ip = address(args)?;
            let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
            Ok(Val::Bool(
                !(broadcast
                    || ip.is_unspecified()
                    || ip.is_loopback()
                    || ip.is_multicast()
                    || is_link_local(ip)),
            ))
        },
        "cidr" => |args, budget| {
            let text = read(args, 0, budget)?;
            let cidr = parse_cidr(text).ok_or_else(|| bad_cidr(text))?;
            Ok(Val::opaque(Opaque::Cidr(cidr)))
        },
        "isCIDR" => |args, budget| Ok(Val::Bool(parse_cidr(read(args, 0, budget)?).is_some())),
        "containsIP" => contains_ip,
        "containsCIDR" => contains_cidr,
        "masked" => |args, _| Ok(Val::opaque(Opaque::Cidr(network(args)?.trunc()))),
        "prefixLength" => |args, _| Ok(Val::Int(i64::from(network(args)?.prefix_len()))),
        _ => return None,
    })
}

fn bad_ip(text: &str) -> EvalError {
    EvalError::failed(format!(
        "IP Address {text:?} parse error during conversion from string"
    ))
}

fn bad_cidr(text: &str) -> EvalError {
    EvalError::failed(format!(
        "network address parse error during conversion from string: {text:?}"
    ))
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    match text.parse().ok()? {
        IpAddr::V6(ip) if mapped(ip) => None,
        ip => Some(ip),
    }
}

fn mapped(ip: Ipv6Addr) -> bool {
    ip.to_ipv4_mapped().is_some()
}

fn parse_cidr(text: &str) -> Option<IpNet> {
    let (_, prefix) = text.split_once('/')?;
    // `/08` is not a prefix.
    if prefix.len() > 1 && prefix.starts_with('0') {
        return None;
    }
    match text.parse().ok()? {
        IpNet::V6(cidr) if mapped(cidr.addr()) => None,
        cidr => Some(cidr),
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn opaque<'v>(args: &'v [Val<'_>], index: usize) -> Result<&'v Opaque, EvalError> {
    match args.get(index) {
        Some(Val::Opaque(value)) => Ok(value),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn address(args: &[Val<'_>]) -> Result<IpAddr, EvalError> {
    match opaque(args, 0)? {
        Opaque::Ip(ip) => Ok(*ip),
        _ => Err(EvalError::NoSuchOverload),
    }
}

fn network(args: &[Val<'_>]) -> Result<IpNet, EvalError> {
    match opaque(args, 0)? {
        Opaque::Cidr(cidr) => Ok(*cidr),
        _ => Err(EvalError::NoSuchOverload),
    }
}

/// `ip(text)` and `cidr.ip()`.
fn ip<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    if let Ok(cidr) = network(args) {
        return Ok(Val::opaque(Opaque::Ip(cidr.addr())));
    }
    let text = read(args, 0, budget)?;
    let ip = parse_ip(text).ok_or_else(|| bad_ip(text))?;
    Ok(Val::opaque(Opaque::Ip(ip)))
}

fn contains_ip<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let cidr = network(args)?;
    let ip = match opaque(args, 1) {
        Ok(Opaque::Ip(ip)) => *ip,
        Ok(_) => return Err(EvalError::NoSuchOverload),
        Err(_) => {
            let text = read(args, 1, budget)?;
            parse_ip(text).ok_or_else(|| bad_ip(text))?
        }
    };
    Ok(Val::Bool(cidr.contains(&ip)))
}

fn contains_cidr<'a>(args: &[Val<'a>], budget: &mut Budget) -> Outcome<'a> {
    let cidr = network(args)?;
    let inner = match opaque(args, 1) {
        Ok(Opaque::Cidr(inner)) => *inner,
        Ok(_) => return Err(EvalError::NoSuchOverload),
        Err(_) => {
            let text = read(args, 1, budget)?;
            parse_cidr(text).ok_or_else(|| bad_cidr(text))?
        }
    };
    Ok(Val::Bool(cidr.contains(&inner)))
}
