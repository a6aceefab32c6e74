#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::answer::{Decision, decide};
use crate::forward::{read_message, write_message};
use crate::{Config, Dns, Zone, ZoneConfig};

fn config() -> ZoneConfig {
    ZoneConfig {
        domain: "cluster.local".to_owned(),
        server: "10.96.0.10".parse().unwrap(),
        networks: vec![
            "10.96.0.0/16".parse().unwrap(),
            "10.244.0.0/16".parse().unwrap(),
        ],
    }
}

fn service(name: &str, spec: Value) -> Arc<Service> {
    Arc::new(
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": spec}))
            .unwrap(),
    )
}

fn slice(service: &str, endpoints: Value) -> Arc<EndpointSlice> {
    Arc::new(
        serde_json::from_value(json!({
            "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": service, "namespace": "d", "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }))
        .unwrap(),
    )
}

fn zone() -> Zone {
    let services = [
        service(
            "web",
            json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [
                {"name": "http", "port": 80}, {"port": 81}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        service(
            "db",
            json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
        ),
        service("empty", json!({"clusterIP": "None"})),
        service(
            "out",
            json!({"type": "ExternalName", "externalName": "Example.com."}),
        ),
        service(
            "in",
            json!({"type": "ExternalName", "externalName": "web.d.svc.cluster.local"}),
        ),
        service(
            "loop",
            json!({"type": "ExternalName", "externalName": "loop.d.svc.cluster.local"}),
        ),
    ];
    let endpoints = json!([
        {"addresses": ["10.244.1.2"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.2.3"]},
        {"addresses": ["10.244.2.4"], "conditions": {"ready": false}},
    ]);
    Zone::build(config(), 3, &services, &[slice("db", endpoints)])
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn answer(name: &str, kind: RecordType) -> Message {
    match decide(&zone(), &query(name, kind)) {
        Decision::Answer(message) => message,
        other => panic!("{name}: {other:?}"),
    }
}

/// The answers' data as text.
fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

fn lookup(name: &str, kind: RecordType) -> Vec<String> {
    let message = answer(name, kind);
    assert_eq!(
        message.metadata.response_code,
        ResponseCode::NoError,
        "{name}"
    );
    data(&message)
}

#[test]
fn a_service_is_found_by_its_name_in_any_spelling() {
    assert_eq!(
        lookup("web.d.svc.cluster.local.", RecordType::A),
        ["10.96.0.7"]
    );
    let message = answer("WEB.d.Svc.cluster.LOCAL.", RecordType::A);
    assert_eq!(data(&message), ["10.96.0.7"]);
    assert_eq!(
        message.answers[0].name.to_ascii(),
        "WEB.d.Svc.cluster.LOCAL."
    );
    assert_eq!(message.answers[0].ttl, 5);
    assert!(message.metadata.authoritative && message.metadata.recursion_available);
}

#[test]
fn a_headless_service_is_its_ready_endpoints() {
    assert_eq!(
        lookup("db.d.svc.cluster.local.", RecordType::A),
        ["10.244.1.2", "10.244.2.3"]
    );
    assert_eq!(
        lookup("db-0.db.d.svc.cluster.local.", RecordType::A),
        ["10.244.1.2"]
    );
    assert_eq!(
        lookup("10-244-2-3.db.d.svc.cluster.local.", RecordType::A),
        ["10.244.2.3"]
    );
    assert!(
        lookup("empty.d.svc.cluster.local.", RecordType::A).is_empty(),
        "it exists all the same"
    );
}

#[test]
fn named_ports_are_found() {
    let web = answer("_http._tcp.web.d.svc.cluster.local.", RecordType::SRV);
    assert_eq!(data(&web), ["0 100 80 web.d.svc.cluster.local."]);
    assert_eq!(web.additionals[0].data.to_string(), "10.96.0.7");
    assert_eq!(
        lookup("_dns._udp.web.d.svc.cluster.local.", RecordType::SRV),
        ["0 100 53 web.d.svc.cluster.local."]
    );
    assert_eq!(
        lookup("_http._tcp.db.d.svc.cluster.local.", RecordType::SRV),
        [
            "0 100 8080 10-244-2-3.db.d.svc.cluster.local.",
            "0 100 8080 db-0.db.d.svc.cluster.local."
        ]
    );
}

#[test]
fn denials_say_how_long_they_hold() {
    let denied = answer("nope.d.svc.cluster.local.", RecordType::A);
    assert_eq!(denied.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(denied.authorities[0].record_type(), RecordType::SOA);
    // A search list makes such names all the time: they end here.
    assert_eq!(
        answer("example.com.d.svc.cluster.local.", RecordType::A)
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
    for (name, kind) in [
        ("web.d.svc.cluster.local.", RecordType::AAAA),
        ("d.svc.cluster.local.", RecordType::A),
        ("svc.cluster.local.", RecordType::A),
        ("_tcp.web.d.svc.cluster.local.", RecordType::SRV),
        ("cluster.local.", RecordType::A),
    ] {
        let nodata = answer(name, kind);
        assert_eq!(
            nodata.metadata.response_code,
            ResponseCode::NoError,
            "{name}"
        );
        assert!(nodata.answers.is_empty());
        assert_eq!(nodata.authorities.len(), 1, "{name}");
    }
}

#[test]
fn addresses_are_found_backwards() {
    assert_eq!(
        lookup("7.0.96.10.in-addr.arpa.", RecordType::PTR),
        ["web.d.svc.cluster.local."]
    );
    assert_eq!(
        lookup("2.1.244.10.in-addr.arpa.", RecordType::PTR),
        ["db-0.db.d.svc.cluster.local."]
    );
    let unknown = answer("9.9.244.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    let outside = query("1.1.1.1.in-addr.arpa.", RecordType::PTR);
    assert!(matches!(decide(&zone(), &outside), Decision::Forward));
}

#[test]
fn a_pods_name_says_its_address() {
    assert_eq!(
        lookup("10-244-1-5.d.pod.cluster.local.", RecordType::A),
        ["10.244.1.5"]
    );
    assert_eq!(
        lookup("fd00--5.d.pod.cluster.local.", RecordType::AAAA),
        ["fd00::5"]
    );
    assert_eq!(
        answer("10-244-1.d.pod.cluster.local.", RecordType::A)
            .metadata
            .response_code,
        ResponseCode::NXDomain
    );
}

#[test]
fn the_domain_describes_itself() {
    assert_eq!(
        lookup("dns-version.cluster.local.", RecordType::TXT),
        ["1.1.0"]
    );
    assert_eq!(
        lookup("cluster.local.", RecordType::NS),
        ["ns.dns.cluster.local."]
    );
    assert_eq!(
        lookup("ns.dns.cluster.local.", RecordType::A),
        ["10.96.0.10"]
    );
    assert_eq!(lookup("cluster.local.", RecordType::SOA).len(), 1);
}

#[test]
fn aliases_are_followed_inside_and_asked_for_outside() {
    assert_eq!(
        lookup("in.d.svc.cluster.local.", RecordType::A),
        ["web.d.svc.cluster.local.", "10.96.0.7"]
    );
    assert_eq!(
        lookup("loop.d.svc.cluster.local.", RecordType::A).len(),
        8,
        "an alias of itself ends"
    );
    match decide(&zone(), &query("out.d.svc.cluster.local.", RecordType::A)) {
        Decision::Chase(message, target) => {
            assert_eq!(data(&message), ["example.com."]);
            assert_eq!(target.to_ascii(), "example.com.");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn before_the_zone_is_known_nothing_is_denied() {
    let unknown = Zone::unknown(config());
    for name in ["web.d.svc.cluster.local.", "7.0.96.10.in-addr.arpa."] {
        match decide(&unknown, &query(name, RecordType::A)) {
            Decision::Answer(m) => assert_eq!(m.metadata.response_code, ResponseCode::ServFail),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn odd_queries_are_answered_as_the_protocol_says() {
    let zone = zone();
    let code = |message: &Message| match decide(&zone, message) {
        Decision::Answer(m) => m.metadata.response_code,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        code(&Message::new(1, MessageType::Query, OpCode::Update)),
        ResponseCode::NotImp
    );
    assert_eq!(
        code(&Message::new(1, MessageType::Query, OpCode::Query)),
        ResponseCode::FormErr
    );
    assert_eq!(
        code(&query("cluster.local.", RecordType::AXFR)),
        ResponseCode::Refused
    );
    let mut late = query("web.d.svc.cluster.local.", RecordType::A);
    late.set_edns(Edns::new().set_version(1).clone());
    assert_eq!(code(&late), ResponseCode::BADVERS);
    let echo = Message::response(1, OpCode::Query);
    assert!(
        matches!(decide(&zone, &echo), Decision::Ignore),
        "answers are not answered"
    );
    assert!(matches!(
        decide(&zone, &query("cluster.localx.", RecordType::A)),
        Decision::Forward
    ));
    assert!(matches!(
        decide(&zone, &query("xcluster.local.", RecordType::A)),
        Decision::Forward
    ));
}

// === over sockets ===

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn start(zone: Zone, upstreams: Vec<SocketAddr>) -> Running {
    let stop = CancellationToken::new();
    let config = Config {
        listen: vec![SocketAddr::new(LOCALHOST, 0)],
        upstreams,
    };
    let handle = Dns::start(config, Arc::new(ArcSwap::from_pointee(zone)), stop.clone()).unwrap();
    Running {
        address: handle.addresses()[0],
        stop,
    }
}

async fn udp(server: SocketAddr, query: &Message) -> Message {
    let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    socket
        .send_to(&query.to_vec().unwrap(), server)
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(8), socket.recv(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn tcp(server: SocketAddr, queries: &[Message]) -> Vec<Message> {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let mut answers = Vec::new();
    for query in queries {
        write_message(&mut stream, &query.to_vec().unwrap())
            .await
            .unwrap();
        answers.push(Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap());
    }
    answers
}

/// An upstream server that answers every A query, and counts.
async fn upstream(records: u8) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::SeqCst);
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = query.clone().into_response();
            for n in 0..records {
                let data = RData::A(A::new(192, 0, 2, n));
                answer.add_answer(Record::from_rdata(
                    query.queries[0].name.to_lowercase(),
                    60,
                    data,
                ));
            }
            socket
                .send_to(&answer.to_vec().unwrap(), peer)
                .await
                .unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn udp_and_tcp_answer_alike() {
    let dns = start(zone(), vec![]);
    let query = query("web.d.svc.cluster.local.", RecordType::A);
    let answer = udp(dns.address, &query).await;
    assert_eq!(
        (answer.metadata.id, data(&answer)),
        (77, vec!["10.96.0.7".to_owned()])
    );
    let both = tcp(dns.address, &[query.clone(), query]).await;
    assert_eq!(
        both.iter().map(data).collect::<Vec<_>>(),
        [["10.96.0.7"], ["10.96.0.7"]]
    );
}

#[tokio::test]
async fn outside_names_are_asked_for_once_and_remembered() {
    let (server, asked) = upstream(1).await;
    let dead = UdpSocket::bind((LOCALHOST, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let dns = start(zone(), vec![dead, server]);
    for name in ["example.com.", "EXAMPLE.com."] {
        let answer = udp(dns.address, &query(name, RecordType::A)).await;
        assert_eq!(data(&answer), ["192.0.2.0"]);
        assert_eq!(
            answer.queries[0].name.to_ascii(),
            name,
            "in the client's spelling"
        );
        assert_eq!(answer.metadata.id, 77);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let alias = udp(
        dns.address,
        &query("out.d.svc.cluster.local.", RecordType::A),
    )
    .await;
    assert_eq!(data(&alias), ["example.com.", "192.0.2.0"]);
}

#[tokio::test]
async fn an_answer_that_is_too_long_for_the_client_is_cut() {
    let (server, _) = upstream(60).await;
    let dns = start(zone(), vec![server]);
    let plain = udp(dns.address, &query("many.example.", RecordType::A)).await;
    assert!(plain.metadata.truncation && plain.answers.is_empty());
    let mut modern = query("many.example.", RecordType::A);
    modern.set_edns(Edns::new().set_max_payload(4096).clone());
    assert_eq!(udp(dns.address, &modern).await.answers.len(), 60);
}

#[tokio::test]
async fn without_upstreams_outside_names_fail_and_others_work() {
    let dead = UdpSocket::bind((LOCALHOST, 0))
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let dns = start(zone(), vec![dead]);
    let outside = udp(dns.address, &query("example.com.", RecordType::A)).await;
    assert_eq!(outside.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(
        data(
            &udp(
                dns.address,
                &query("web.d.svc.cluster.local.", RecordType::A)
            )
            .await
        ),
        ["10.96.0.7"]
    );
}

#[tokio::test]
async fn a_server_that_asks_us_back_does_not_multiply_questions() {
    // A relay that sends whatever it gets back to us, as a host's resolver would that uses us as its server.
    let relay = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let dns = start(zone(), vec![relay.local_addr().unwrap()]);
    let relayed = Arc::new(AtomicUsize::new(0));
    let (count, target) = (relayed.clone(), dns.address);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = relay.recv_from(&mut buffer).await {
            if peer != target {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = relay.send_to(&buffer[..length], target).await;
            }
        }
    });
    let answer = udp(dns.address, &query("example.com.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(relayed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_address_that_comes_later_can_be_listened_at() {
    // 192.0.2.0/24 is for documentation: no host has it.
    let config = Config {
        listen: vec!["192.0.2.53:0".parse().unwrap()],
        upstreams: vec![],
    };
    let stop = CancellationToken::new();
    Dns::start(
        config,
        Arc::new(ArcSwap::from_pointee(zone())),
        stop.clone(),
    )
    .unwrap();
    let taken = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    let config = Config {
        listen: vec![taken.local_addr().unwrap()],
        upstreams: vec![],
    };
    let error = Dns::start(
        config,
        Arc::new(ArcSwap::from_pointee(zone())),
        stop.clone(),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("is another DNS server running"),
        "{error}"
    );
    stop.cancel();
}
