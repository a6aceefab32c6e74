//! The host's `resolv.conf`: whom to ask about the outside, and what pods inherit.

use std::net::{IpAddr, SocketAddr};

/// What a `resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolv {
    /// Servers, in their order.
    pub servers: Vec<SocketAddr>,
    /// Search domains.
    pub search: Vec<String>,
}

/// Reads a `resolv.conf`; what it does not understand it skips, as resolvers do.
pub fn parse_resolv_conf(text: &str) -> Resolv {
    let mut resolv = Resolv::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                let address = words
                    .next()
                    .and_then(|w| w.split('%').next())
                    .and_then(|w| w.parse::<IpAddr>().ok());
                resolv
                    .servers
                    .extend(address.map(|ip| SocketAddr::new(ip, 53)));
            }
            // The last one counts.
            Some("search" | "domain") => resolv.search = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    resolv
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_the_last_search_line_are_read() {
        let text = "# made by hand\ndomain old\nnameserver 192.168.0.1 # router\nnameserver bogus\n\
                    nameserver fe80::1%eth0\nsearch lan home\noptions ndots:1\n";
        let resolv = parse_resolv_conf(text);
        let servers: Vec<String> = resolv.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.168.0.1:53", "[fe80::1]:53"]);
        assert_eq!(resolv.search, ["lan", "home"]);
    }
}
