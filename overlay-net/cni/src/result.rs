//! The JSON documents that the plugin answers with.

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::attach::Attached;
use crate::conf::{Error, Request, Target, VERSIONS};

/// The answer to `VERSION`.
pub(crate) fn versions() -> String {
    json!({"cniVersion": "1.0.0", "supportedVersions": VERSIONS}).to_string()
}

/// A failure.
pub(crate) fn error(version: Option<&str>, error: &Error) -> String {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = inner.source();
    }
    let version = version.unwrap_or("1.0.0");
    json!({"cniVersion": version, "code": error.code(), "msg": message}).to_string()
}

/// The answer to a successful `ADD`.
pub(crate) fn attached(request: &Request, target: &Target, a: &Attached) -> String {
    let everywhere = if a.ip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    json!({
        "cniVersion": request.version,
        "interfaces": [
            {"name": a.host_interface, "mac": a.host_mac.to_string(), "sandbox": ""},
            {"name": target.interface, "mac": a.mac.to_string(), "sandbox": target.netns},
        ],
        "ips": [ip(request, IpNet::from(a.ip), Some(a.gateway.to_string()), 1)],
        "routes": [{"dst": everywhere, "gw": a.gateway.to_string()}],
        "dns": {},
    })
    .to_string()
}

/// The answer to `ADD` of type `loopback`.
pub(crate) fn loopback(request: &Request, target: &Target) -> String {
    let lo: IpNet = IpNet::new_assert(std::net::Ipv4Addr::LOCALHOST.into(), 8);
    json!({
        "cniVersion": request.version,
        "interfaces": [{"name": target.interface, "mac": "00:00:00:00:00:00", "sandbox": target.netns}],
        "ips": [ip(request, lo, None, 0)],
        "dns": {},
    })
    .to_string()
}

fn ip(request: &Request, net: IpNet, gateway: Option<String>, interface: usize) -> Value {
    let mut value = json!({"address": net.to_string(), "interface": interface});
    if let Some(gateway) = gateway {
        value["gateway"] = json!(gateway);
    }
    // Before 1.0.0 each address says its family.
    if request.version.starts_with("0.") {
        value["version"] = json!(if net.addr().is_ipv4() { "4" } else { "6" });
    }
    value
}
