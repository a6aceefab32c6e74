//! Commands and attachments: what is piped in and out of containers, and many of them at once.

use std::io::Read;
use std::process::Stdio;

use anyhow::{Context, ensure};
use balsa_e2e::Namespace;

/// How many commands are run at once: enough for a runtime's shim to fall behind, were all started at once.
const COMMANDS: usize = 64;

const IMAGE: [&str; 3] = [
    "--image=busybox",
    "--image-pull-policy=IfNotPresent",
    "--restart=Never",
];

#[test]
fn what_is_piped_into_a_container_ends_where_the_pipe_does() -> anyhow::Result<()> {
    let ns = Namespace::new("pipe")?;
    let kubectl = ns.kubectl();
    let shell = ["--", "sh", "-c", "cat && echo it has ended"];
    let command = [&["run", "once", "-i", "--rm"][..], &IMAGE[..], &shell[..]].concat();
    let output = kubectl.run_with(&command, "piped\n")?;
    ensure!(output.stdout.contains("piped\nit has ended"), "{output:?}");
    // Where the container's input is left open, only the attachment ends.
    let options = ["run", "open", "-i", "--leave-stdin-open"];
    let command = [&options[..], &IMAGE[..], &shell[..]].concat();
    kubectl.run_with(&command, "piped\n")?;
    let phase = kubectl.field("pod/open", "{.status.phase}")?;
    ensure!(phase == "Running", "the pod is {phase}");
    let log = kubectl.ok(&["logs", "open"])?;
    ensure!(!log.contains("it has ended"), "{log}");
    Ok(())
}

#[test]
fn many_commands_at_once_all_answer() -> anyhow::Result<()> {
    let ns = Namespace::new("crowd")?;
    let kubectl = ns.kubectl();
    let sleep = ["--", "sleep", "100000"];
    let command = [&["run", "app"][..], &IMAGE[..], &sleep[..]].concat();
    kubectl.ok(&command)?;
    kubectl.wait_ready("app", 40)?;
    // One client for each: what is measured against is the node, which gets them all within moments.
    let started: std::io::Result<Vec<_>> = (0..COMMANDS)
        .map(|number| {
            let script = format!("echo {number}; sleep 1");
            let command = ["exec", "app", "--", "sh", "-c", &script];
            kubectl
                .command(&command)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        })
        .collect();
    for (number, mut client) in started?.into_iter().enumerate() {
        let (mut answer, mut error) = (String::new(), String::new());
        let pipes = client.stdout.take().zip(client.stderr.take());
        let (mut out, mut err) = pipes.context("a client without pipes")?;
        out.read_to_string(&mut answer)?;
        err.read_to_string(&mut error)?;
        let status = client.wait()?;
        ensure!(
            status.success() && answer.trim() == number.to_string(),
            "command {number}: {status}, {answer:?}, {error}"
        );
    }
    Ok(())
}
