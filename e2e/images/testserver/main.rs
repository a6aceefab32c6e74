//! A small server for tests, standard library only, so that it links statically and fits in any image.
//!
//! usage: testserver [--port N] [--tcp-port N] [--udp-port N] [--fail-after N] [--delay-ms N]
//!
//! HTTP: `/` and `/hostname` say the host name, `/env` the environment, `/headers` the request's head,
//! `/client` the peer's address, `/bytes/N` N bytes, `/exit/N` ends the process with that code, `/healthz`
//! answers 200 until N requests have been served (`--fail-after N`) and 500 from then on. TCP and UDP ports
//! echo, prefixed by the host name.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

static SERVED: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy)]
struct Options {
    port: u16,
    tcp_port: u16,
    udp_port: u16,
    fail_after: u64,
    delay: Duration,
}

fn options() -> Options {
    let mut options =
        Options { port: 8080, tcp_port: 0, udp_port: 0, fail_after: u64::MAX, delay: Duration::ZERO };
    let mut arguments = std::env::args().skip(1);
    while let (Some(name), Some(value)) = (arguments.next(), arguments.next()) {
        let number: u64 = value.parse().unwrap_or_else(|_| usage(&name));
        let port = u16::try_from(number).unwrap_or(0);
        match name.as_str() {
            "--port" => options.port = port,
            "--tcp-port" => options.tcp_port = port,
            "--udp-port" => options.udp_port = port,
            "--fail-after" => options.fail_after = number,
            "--delay-ms" => options.delay = Duration::from_millis(number),
            _ => usage(&name),
        }
    }
    options
}

fn usage(what: &str) -> ! {
    eprintln!("testserver: {what}: unknown option, or its value is no number");
    std::process::exit(2)
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn main() -> std::io::Result<()> {
    let options = options();
    if options.tcp_port != 0 {
        let listener = TcpListener::bind(("0.0.0.0", options.tcp_port))?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || echo(stream));
            }
        });
    }
    if options.udp_port != 0 {
        let socket = UdpSocket::bind(("0.0.0.0", options.udp_port))?;
        thread::spawn(move || echo_udp(&socket));
    }
    let listener = TcpListener::bind(("0.0.0.0", options.port))?;
    println!("listening on {}", options.port);
    for stream in listener.incoming().flatten() {
        thread::spawn(move || serve(stream, options));
    }
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 65536];
    let _ = writeln!(stream, "{}", hostname());
    while let Ok(count) = stream.read(&mut buffer) {
        if count == 0 || stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn echo_udp(socket: &UdpSocket) {
    let mut buffer = [0; 65536];
    while let Ok((count, from)) = socket.recv_from(&mut buffer) {
        let mut answer = hostname().into_bytes();
        answer.push(b' ');
        answer.extend_from_slice(&buffer[..count]);
        let _ = socket.send_to(&answer, from);
    }
}

fn serve(stream: TcpStream, options: Options) {
    let peer = stream.peer_addr().map(|a| a.to_string()).unwrap_or_default();
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let served = SERVED.fetch_add(1, Ordering::SeqCst);
        thread::sleep(options.delay);
        let target = head.first().and_then(|l| l.split(' ').nth(1)).unwrap_or("/").to_owned();
        let (code, answer) = answer(&target, &head, &body, &peer, served, options);
        let text = format!("HTTP/1.1 {code}\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\r\n", answer.len());
        if writer.write_all(text.as_bytes()).and_then(|()| writer.write_all(&answer)).is_err() {
            return;
        }
    }
}

fn answer(
    target: &str,
    head: &[String],
    body: &[u8],
    peer: &str,
    served: u64,
    options: Options,
) -> (&'static str, Vec<u8>) {
    let path = target.split('?').next().unwrap_or("/");
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|n| n.parse::<usize>().ok());
    if let Some(count) = number("/bytes/") {
        return ("200 OK", vec![b'x'; count]);
    }
    if let Some(code) = number("/exit/") {
        std::process::exit(i32::try_from(code).unwrap_or(1));
    }
    let text = match path {
        "/" | "/hostname" => hostname(),
        "/env" => std::env::vars().map(|(k, v)| format!("{k}={v}\n")).collect(),
        "/headers" => head.join("\n"),
        "/client" => peer.to_owned(),
        "/echo" => String::from_utf8_lossy(body).into_owned(),
        "/healthz" if served >= options.fail_after => return ("500 Internal Server Error", b"failing".to_vec()),
        "/healthz" => "ok".to_owned(),
        _ => return ("404 Not Found", b"not found".to_vec()),
    };
    ("200 OK", text.into_bytes())
}
