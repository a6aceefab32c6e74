//! The tiny CNI plugin: a veth pair, an address from the node's CIDR, and routes.
//!
//! The container runtime starts it for each pod, so it is one short process: blocking netlink, no runtime.
//! The `balsa` binary calls [`run`] when it was started under one of [`PLUGIN_NAMES`]. Starting so large a program
//! costs more than the work, so agents have the runtime start the [`RELAY`] and do the work themselves ([`relayed`]).

mod attach;
mod conf;
mod relay;
mod result;

#[cfg(test)]
mod tests;

use std::io::{Read, Write};
use std::process::ExitCode;

pub use attach::{GATEWAY, host_interface};
pub use conf::{CONFLIST_NAME, ConflistParams, Error, conflist};
use conf::{Command, Request};
pub use relay::{RELAY, SOCKET, WHOLE, relayed};

/// File names under which the binary is a CNI plugin: the pod network, and the runtime's `lo`.
pub const PLUGIN_NAMES: [&str; 2] = ["balsa-cni", "loopback"];

/// Runs the plugin as the CNI specification says: environment and standard input in, one JSON document on
/// standard output, exit code 0 or 1.
pub fn run() -> ExitCode {
    let mut input = Vec::new();
    // No configuration comes with VERSION from some runtimes; what is missing is found out when it is needed.
    let _ = std::io::stdin().read_to_end(&mut input);
    let (output, code) = answer(&|name| std::env::var(name).ok(), &input);
    let _ = std::io::stdout().write_all(output.as_bytes());
    code
}

/// [`run`] without the process around it.
fn answer(env: &dyn Fn(&str) -> Option<String>, input: &[u8]) -> (String, ExitCode) {
    match Request::parse(env, input).and_then(|request| execute(&request)) {
        Ok(output) => (output, ExitCode::SUCCESS),
        Err(error) => (
            result::error(conf::version_of(input).as_deref(), &error),
            ExitCode::FAILURE,
        ),
    }
}

fn execute(request: &Request) -> Result<String, Error> {
    match (&request.command, request.loopback) {
        (Command::Version, _) => Ok(result::versions()),
        (Command::Add(target), true) => {
            attach::loopback_up(target).map(|()| result::loopback(request, target))
        }
        (Command::Add(target), false) => {
            attach::add(request, target).map(|a| result::attached(request, target, &a))
        }
        (Command::Del(_), true) => Ok(String::new()),
        (Command::Del(target), false) => attach::delete(request, target).map(|()| String::new()),
        (Command::Check(target), true) => attach::loopback_is_up(target).map(|()| String::new()),
        (Command::Check(target), false) => attach::check(request, target).map(|()| String::new()),
    }
}
