//! Which of several equal servers to ask.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The list of servers with what is known of their health. Cheap to clone; may be changed at any time.
///
/// Requests stay with one server while it works, so that reads do not go back in time for no reason.
#[derive(Clone)]
pub struct Servers {
    state: Arc<Mutex<State>>,
}

struct State {
    servers: Vec<Server>,
    /// Authority of the server that requests go to.
    preferred: Option<Authority>,
}

struct Server {
    authority: Authority,
    failures: u32,
    /// Not to be asked before, unless all others fail too.
    down_until: Option<Instant>,
}

const DOWN_FIRST: Duration = Duration::from_secs(1);
const DOWN_MAX: Duration = Duration::from_secs(15);

/// A server address that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidServers {
    /// Not `https://host:port`.
    #[error("server address {0:?} is not of the form https://HOST:PORT")]
    Address(String),
    /// None at all.
    #[error("the list of servers is empty")]
    Empty,
}

impl Servers {
    /// A list of `https://host:port`.
    ///
    /// # Errors
    /// When it is empty or an address has another form.
    pub fn new(addresses: &[String]) -> Result<Self, InvalidServers> {
        let servers = parse(addresses)?;
        // Clients spread over the servers by starting with any.
        let first = rand::random_range(0..servers.len());
        let preferred = servers.get(first).map(|server| server.authority.clone());
        Ok(Self {
            state: Arc::new(Mutex::new(State { servers, preferred })),
        })
    }

    /// Replaces the list; what is known of servers that stay is kept.
    ///
    /// # Errors
    /// As [`Servers::new`]; the list is then unchanged.
    pub fn set(&self, addresses: &[String]) -> Result<(), InvalidServers> {
        let mut servers = parse(addresses)?;
        let mut state = self.state.lock();
        for server in &mut servers {
            if let Some(known) = state
                .servers
                .iter()
                .find(|known| known.authority == server.authority)
            {
                server.failures = known.failures;
                server.down_until = known.down_until;
            }
        }
        state.servers = servers;
        Ok(())
    }

    /// The addresses, as `https://host:port`.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.state
            .lock()
            .servers
            .iter()
            .map(|server| format!("https://{}", server.authority))
            .collect()
    }

    /// Servers in the order in which to try them.
    pub(crate) fn order(&self, now: Instant) -> Vec<Authority> {
        let state = self.state.lock();
        let count = state.servers.len();
        let start = state
            .servers
            .iter()
            .position(|server| Some(&server.authority) == state.preferred.as_ref())
            .unwrap_or_default();
        let mut order: Vec<&Server> = (0..count)
            .filter_map(|i| state.servers.get((start + i) % count))
            .collect();
        // Stable: healthy ones keep their order, then those whose time is up first.
        order.sort_by_key(|server| server.down_until.filter(|until| *until > now));
        order
            .into_iter()
            .map(|server| server.authority.clone())
            .collect()
    }

    pub(crate) fn worked(&self, authority: &Authority) {
        let mut state = self.state.lock();
        if state.preferred.as_ref() != Some(authority) {
            tracing::debug!(server = %authority, "using this API server now");
            state.preferred = Some(authority.clone());
        }
        if let Some(server) = state
            .servers
            .iter_mut()
            .find(|server| server.authority == *authority)
        {
            server.failures = 0;
            server.down_until = None;
        }
    }

    pub(crate) fn failed(&self, authority: &Authority, now: Instant) {
        let mut state = self.state.lock();
        if let Some(server) = state
            .servers
            .iter_mut()
            .find(|server| server.authority == *authority)
        {
            // Many streams of one connection fail together: that is one failure.
            if server.down_until.is_some_and(|until| until > now) {
                return;
            }
            let delay = DOWN_FIRST
                .saturating_mul(1 << server.failures.min(8))
                .min(DOWN_MAX);
            server.failures = server.failures.saturating_add(1);
            server.down_until = Some(now + delay);
        }
    }
}

fn parse(addresses: &[String]) -> Result<Vec<Server>, InvalidServers> {
    if addresses.is_empty() {
        return Err(InvalidServers::Empty);
    }
    addresses.iter().map(|address| parse_one(address)).collect()
}

fn parse_one(address: &str) -> Result<Server, InvalidServers> {
    let invalid = || InvalidServers::Address(address.to_owned());
    let uri: Uri = address.parse().map_err(|_| invalid())?;
    if uri.scheme_str() != Some("https") || uri.path().len() > 1 {
        return Err(invalid());
    }
    let authority = uri.authority().cloned().ok_or_else(invalid)?;
    Ok(Server {
        authority,
        failures: 0,
        down_until: None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn servers() -> Servers {
        let addresses: Vec<String> = ["a", "b", "c"]
            .iter()
            .map(|host| format!("https://{host}:6443"))
            .collect();
        let servers = Servers::new(&addresses).unwrap();
        servers.worked(&"a:6443".parse().unwrap());
        servers
    }

    fn hosts(servers: &Servers, now: Instant) -> Vec<String> {
        servers
            .order(now)
            .iter()
            .map(|authority| authority.host().to_owned())
            .collect()
    }

    #[test]
    fn requests_stay_with_the_server_that_worked() {
        let servers = servers();
        servers.worked(&"b:6443".parse().unwrap());
        assert_eq!(hosts(&servers, Instant::now()), ["b", "c", "a"]);
    }

    #[test]
    fn a_failed_server_is_tried_last_until_its_time_is_up() {
        let (servers, now) = (servers(), Instant::now());
        servers.failed(&"a:6443".parse().unwrap(), now);
        assert_eq!(hosts(&servers, now), ["b", "c", "a"]);
        assert_eq!(hosts(&servers, now + DOWN_FIRST), ["a", "b", "c"]);
    }

    #[test]
    fn failures_of_one_moment_count_once() {
        let (servers, now) = (servers(), Instant::now());
        for _ in 0..5 {
            servers.failed(&"a:6443".parse().unwrap(), now);
        }
        assert_eq!(hosts(&servers, now + DOWN_FIRST)[0], "a");
    }

    #[test]
    fn a_new_list_keeps_what_is_known() {
        let (servers, now) = (servers(), Instant::now());
        servers.failed(&"a:6443".parse().unwrap(), now);
        servers
            .set(&["https://a:6443".into(), "https://d:6443".into()])
            .unwrap();
        assert_eq!(hosts(&servers, now), ["d", "a"]);
    }

    #[test]
    fn addresses_must_be_https_with_a_host() {
        assert_eq!(Servers::new(&[]).err(), Some(InvalidServers::Empty));
        for bad in ["http://a:1", "a:6443", "https://a/x", ""] {
            assert_eq!(
                Servers::new(&[bad.into()]).err(),
                Some(InvalidServers::Address(bad.into()))
            );
        }
    }
}
