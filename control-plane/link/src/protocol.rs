//! What is said over the link. Every stream a server opens starts with a length-prefixed JSON
//! [`StreamRequest`] and is answered by a length-prefixed JSON [`StreamReply`]; then come either raw bytes
//! (port-forward, dial, logs, HTTP) or [`frame`](crate::protocol::Channel)s (exec, attach).

use serde::{Deserialize, Serialize};

/// Why a server opens a stream to a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum StreamRequest {
    /// Run a command in a container. Framed.
    Exec {
        /// Which container.
        target: Target,
        /// Program and arguments.
        command: Vec<String>,
        /// Which streams and whether a terminal.
        io: StreamIo,
    },
    /// Attach to a container's main process. Framed.
    Attach {
        /// Which container.
        target: Target,
        /// Which streams and whether a terminal.
        io: StreamIo,
    },
    /// One TCP connection to a port inside the pod's network namespace (its loopback included). Raw.
    PortForward {
        /// Which pod (the container's name is not used).
        target: Target,
        /// Port in the pod.
        port: u16,
    },
    /// One TCP connection from the node to an address of the cluster network (pod or Service). Raw.
    Dial {
        /// `ip:port`.
        address: String,
    },
    /// A container's log. Raw, server reads until the end.
    Logs {
        /// Which container.
        target: Target,
        /// What to print.
        options: LogOptions,
    },
    /// A GET to the node's own HTTP endpoints (`/stats/summary`, `/metrics`, `/healthz`, `/pods`). Raw: the
    /// body; the status code is in the reply.
    Http {
        /// Path and query.
        path: String,
    },
}

/// A container of a pod on the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod, so that a namesake is not entered by mistake.
    pub uid: String,
    /// Name of the container (init and ephemeral ones too); empty where only the pod matters.
    pub container: String,
}

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct StreamIo {
    /// Client sends standard input.
    pub stdin: bool,
    /// Client wants standard output.
    pub stdout: bool,
    /// Client wants standard error (never with `tty`).
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// `PodLogOptions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct LogOptions {
    /// Keep printing as the container writes.
    pub follow: bool,
    /// The container's previous instance.
    pub previous: bool,
    /// Prefix each line with its RFC 3339 time.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only lines younger than this many seconds.
    pub since_seconds: Option<u64>,
    /// Only lines at or after this RFC 3339 time.
    pub since_time: Option<String>,
    /// At most this many bytes.
    pub limit_bytes: Option<u64>,
    /// `All` (default), `Stdout` or `Stderr`.
    pub stream: Option<String>,
}

/// The node's answer to a [`StreamRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum StreamReply {
    /// The stream is open. `code` is an HTTP status for `Http`, else 200.
    Ok {
        /// HTTP status code.
        code: u16,
    },
    /// It is not, and why: becomes a `Status` object for the client.
    Error {
        /// HTTP status code.
        code: u16,
        /// `Status.reason`, for example `BadRequest`, `NotFound`.
        reason: String,
        /// `Status.message`.
        message: String,
    },
}

/// Channel numbers of a framed stream; the same as in the WebSocket protocol `v5.channel.k8s.io`.
/// A frame is: channel (1 byte), payload length (4 bytes, big-endian, at most [`MAX_FRAME`]), payload.
pub struct Channel;

impl Channel {
    /// Standard input, client to container. An empty payload means nothing; end is [`Channel::CLOSE`].
    pub const STDIN: u8 = 0;
    /// Standard output.
    pub const STDOUT: u8 = 1;
    /// Standard error.
    pub const STDERR: u8 = 2;
    /// The outcome, once, last: a JSON `Status` (`Success`, or `Failure` with reason `NonZeroExitCode`
    /// and a cause `ExitCode`).
    pub const STATUS: u8 = 3;
    /// Terminal size: `{"Width":80,"Height":24}`.
    pub const RESIZE: u8 = 4;
    /// Half-close of the channel whose number is the one-byte payload.
    pub const CLOSE: u8 = 255;
}

/// Largest payload of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// What an agent says of itself when a link opens, and with each heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// Node name; must match the certificate's `system:node:NAME`.
    pub node: String,
    /// Version of the agent.
    pub version: String,
}
