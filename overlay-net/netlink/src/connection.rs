//! A blocking netlink connection: one request, its answers.
//!
//! Blocking on purpose: the kernel answers these requests within the `send` call, so there is nothing to
//! wait for, and the CNI plugin (a process that lives a few milliseconds) needs no runtime.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::error::{Error, Result};
use crate::wire::{self, Writer};

/// Answers come at once; a kernel that is silent this long will stay silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// How often a dump that the kernel called inconsistent is repeated.
const DUMP_TRIES: u32 = 5;

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    sequence: u32,
}

impl Connection {
    /// Opens a connection (`NETLINK_ROUTE`, `NETLINK_NETFILTER`) in the calling thread's namespace.
    pub fn open(protocol: i32) -> Result<Self> {
        let fail = |e| Error::io("opening a netlink socket", e);
        let mut socket = Socket::new(protocol as isize).map_err(fail)?;
        socket.bind_auto().map_err(fail)?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs() as i64, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(|e| fail(e.into()))?;
        setsockopt(&socket, sockopt::SendTimeout, &timeout).map_err(|e| fail(e.into()))?;
        // Without the capability the default size stays; small requests still fit.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20));
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The next sequence number.
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Lets one `send` carry `bytes` (a whole nftables transaction).
    pub fn allow_send(&self, bytes: usize) -> Result<()> {
        // The kernel doubles the value for its bookkeeping, which is what a large message costs too.
        setsockopt(&self.socket, sockopt::SndBufForce, &bytes)
            .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &bytes))
            .map_err(|e| Error::io("enlarging a netlink socket's send buffer", e.into()))
    }

    /// Sends `bytes` as one datagram.
    pub fn send(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let kernel = SocketAddr::new(0, 0);
        loop {
            match self.socket.send_to(bytes, &kernel, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(what, e)),
            }
        }
    }

    /// Receives one datagram; `None` if `wait` is false and none is there.
    pub fn receive(&self, what: &str, wait: bool) -> Result<Option<Vec<u8>>> {
        let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
        loop {
            let mut buffer: Vec<u8> = Vec::new();
            let peeked = self
                .socket
                .recv_from(&mut buffer, flags | libc::MSG_PEEK | libc::MSG_TRUNC);
            let length = match peeked {
                Ok((length, _)) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !wait => return Ok(None),
                Err(e) => return Err(Error::io(what, e)),
            };
            buffer.clear();
            buffer.reserve(length.max(1));
            match self.socket.recv_from(&mut buffer, libc::MSG_DONTWAIT) {
                Ok(_) => return Ok(Some(buffer)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(what, e)),
            }
        }
    }

    /// Sends a request of one message with [`wire::ACK`] set and waits for the acknowledgement.
    pub fn request(&mut self, what: &str, build: impl FnOnce(&mut Writer, u32)) -> Result<()> {
        self.exchange(what, build, |_| {})
    }

    /// Like [`Connection::request`], giving each answer before the acknowledgement to `each`.
    pub fn query(
        &mut self,
        what: &str,
        build: impl FnOnce(&mut Writer, u32),
        each: impl FnMut(wire::Message<'_>),
    ) -> Result<()> {
        self.exchange(what, build, each)
    }

    /// Sends a dump request and gives each answer's kind and payload to `each`.
    ///
    /// A dump that the kernel marks as interrupted (the table changed meanwhile) is repeated.
    pub fn dump<T>(
        &mut self,
        what: &str,
        build: impl Fn(&mut Writer, u32),
        mut each: impl FnMut(&mut Vec<T>, wire::Message<'_>),
    ) -> Result<Vec<T>> {
        let mut last = Vec::new();
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            let mut interrupted = false;
            self.exchange(what, &build, |message| {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                each(&mut found, message);
            })?;
            if !interrupted {
                return Ok(found);
            }
            last = found;
        }
        // A table that changes all the time is still worth more than no answer: reconciling comes again.
        Ok(last)
    }

    fn exchange(
        &mut self,
        what: &str,
        build: impl FnOnce(&mut Writer, u32),
        mut each: impl FnMut(wire::Message<'_>),
    ) -> Result<()> {
        let sequence = self.next_sequence();
        let mut writer = Writer::new();
        build(&mut writer, sequence);
        let bytes = writer.into_bytes().ok_or_else(|| Error::TooBig {
            what: what.to_owned(),
        })?;
        self.send(what, &bytes)?;
        loop {
            let Some(datagram) = self.receive(what, true)? else {
                continue;
            };
            for message in wire::messages(&datagram) {
                if message.sequence != sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_ERROR => return outcome(what, message.payload),
                    NLMSG_DONE => return done(what, message.payload),
                    _ => each(message),
                }
            }
        }
    }
}

/// Reads the error number of an `NLMSG_ERROR` message (0 is an acknowledgement).
pub fn errno(payload: &[u8]) -> i32 {
    -(wire::ne32(payload) as i32)
}

/// Whether a message is an `NLMSG_ERROR`.
pub fn is_error(message: &wire::Message<'_>) -> bool {
    message.kind == NLMSG_ERROR
}

fn outcome(what: &str, payload: &[u8]) -> Result<()> {
    match errno(payload) {
        0 => Ok(()),
        errno => Err(Error::kernel(what, errno)),
    }
}

fn done(what: &str, payload: &[u8]) -> Result<()> {
    // A dump's end may carry an error number; very old kernels send nothing.
    if payload.len() < 4 {
        Ok(())
    } else {
        outcome(what, payload)
    }
}
