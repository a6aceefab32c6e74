//! A pod's everyday: output, commands, connections, names.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use super::*;

#[test]
fn a_pod_is_talked_to_in_every_way() -> anyhow::Result<()> {
    let scene = Scene::new("vm-life")?;
    let kubectl = scene.kubectl();
    scene.running(
        "web",
        json!({"containers": [{"name": "c", "image": "testserver", "command": null,
        "readinessProbe": {"tcpSocket": {"port": 8080}}}]}),
    )?;
    scene.running(
        "client",
        json!({"containers": [{"name": "c", "command": sh("echo hello; sleep 100000")}]}),
    )?;
    assert_eq!(kubectl.ok(&["logs", "client"])?.trim(), "hello");
    let echoed = kubectl
        .run_with(&["exec", "-i", "client", "--", "cat"], "to and fro")?
        .ok()?;
    assert_eq!(echoed, "to and fro");
    kubectl.ok(&[
        "expose",
        "pod",
        "web",
        "--port=80",
        "--target-port=8080",
        "--selector=none=none",
    ])?;
    kubectl.ok(&["label", "pod", "web", "none=none"])?;
    eventually("an answer to the Service's name", PATIENCE, || {
        Ok(scene
            .exec("client", "wget -qO- http://web/")?
            .contains("web"))
    })?;
    let mut forward = kubectl
        .command(&["port-forward", "pod/web", ":8080", "--address=127.0.0.1"])
        .stdout(Stdio::piped())
        .spawn()?;
    let answer = forwarded(&mut forward);
    let _ = forward.kill();
    let _ = forward.wait();
    assert!(answer?.contains("200 OK"));
    Ok(())
}

fn forwarded(forward: &mut std::process::Child) -> anyhow::Result<String> {
    let mut line = String::new();
    // Open until the end: kubectl tells of each connection there, and ends if it can't.
    let mut printed = BufReader::new(forward.stdout.take().context("no output")?);
    printed.read_line(&mut line)?;
    let address = line
        .split_whitespace()
        .find(|word| word.starts_with("127.0.0.1:"));
    let mut stream = TcpStream::connect(address.context(line.clone())?)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")?;
    // The server keeps the connection.
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer)
}
