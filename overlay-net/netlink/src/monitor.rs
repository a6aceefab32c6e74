//! [`Monitor`]: wakes whoever reconciles when devices, addresses, routes or neighbours change.

use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use crate::error::{Error, Result};

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_NEIGH: u32 = 3;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// Notifications of the kernel's device tables, reduced to "something changed".
///
/// What changed is not told on purpose: notifications get lost under load, so whoever is woken compares
/// everything anyway.
pub struct Monitor {
    socket: TokioSocket,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").finish_non_exhaustive()
    }
}

impl Monitor {
    /// Subscribes in the calling thread's network namespace. Needs a tokio runtime.
    pub fn open() -> Result<Self> {
        let fail = |e| Error::io("subscribing to network device changes", e);
        let mut socket = TokioSocket::new(libc::NETLINK_ROUTE as isize).map_err(fail)?;
        socket
            .socket_mut()
            .bind(&SocketAddr::new(0, 0))
            .map_err(fail)?;
        for group in [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ] {
            socket.socket_mut().add_membership(group).map_err(fail)?;
        }
        Ok(Self { socket })
    }

    /// Waits for the next change; changes since the last call count once.
    pub async fn changed(&mut self) -> Result<()> {
        let mut buffer: Vec<u8> = Vec::with_capacity(32 << 10);
        let mut outcome = self.socket.recv_from(&mut buffer).await.map(drop);
        loop {
            match outcome {
                // ENOBUFS says that notifications were lost: also a change.
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(Error::io("reading network device changes", e)),
            }
            buffer.clear();
            outcome = self
                .socket
                .socket_ref()
                .recv_from(&mut buffer, libc::MSG_DONTWAIT)
                .map(drop);
        }
    }
}
