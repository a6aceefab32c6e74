//! One probe, once.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::net::TcpStream;

use crate::http;
use crate::pods::Context;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Healthy.
    Success,
    /// Healthy as far as can be told, and why it can't be told further.
    Warning(String),
    /// Not, and what was seen.
    Failure(String),
}

pub(super) async fn once(
    context: &Context,
    probe: &Probe,
    container: &Container,
    container_id: &str,
    ip: &str,
    timeout: Duration,
) -> Outcome {
    let result = if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        exec_probe(context, container_id, &command, timeout).await
    } else if let Some(action) = &probe.http_get {
        match http::get(action, container, ip, timeout).await {
            Ok(answer) if (300..400).contains(&answer.code) => {
                return Outcome::Warning(format!(
                    "Probe terminated redirects, Response body: {}",
                    answer.body
                ));
            }
            Ok(answer) if (200..300).contains(&answer.code) => Ok(()),
            Ok(answer) => Err(format!(
                "HTTP probe failed with statuscode: {}",
                answer.code
            )),
            Err(error) => Err(error),
        }
    } else if let Some(action) = &probe.tcp_socket {
        let host = action
            .host
            .clone()
            .filter(|host| !host.is_empty())
            .unwrap_or_else(|| ip.to_owned());
        match http::port_of(&action.port, container) {
            Ok(port) => tcp(&host, port, timeout).await,
            Err(error) => Err(error),
        }
    } else if let Some(action) = &probe.grpc {
        match u16::try_from(action.port) {
            Ok(port) => {
                grpc(
                    ip,
                    port,
                    action.service.as_deref().unwrap_or_default(),
                    timeout,
                )
                .await
            }
            Err(_) => Err(format!("invalid port number: {}", action.port)),
        }
    } else {
        Err("missing probe handler".to_owned())
    };
    match result {
        Ok(()) => Outcome::Success,
        Err(output) => Outcome::Failure(output),
    }
}

async fn exec_probe(
    context: &Context,
    id: &str,
    command: &[String],
    timeout: Duration,
) -> Result<(), String> {
    let output = context.runtime.exec_sync(id, command, timeout).await;
    let output = output.map_err(|error| {
        format!("command timed out: {command:?} timed out after {timeout:?}: {error}")
    })?;
    if output.exit_code == 0 {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(String::from_utf8_lossy(&text[..text.len().min(10 * 1024)]).into_owned())
}

async fn tcp(host: &str, port: u16, timeout: Duration) -> Result<(), String> {
    let address = http::authority(host, port);
    match tokio::time::timeout(timeout, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "dial tcp {address}: connect: {}",
            http::go_words(&error)
        )),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    /// 1 is `SERVING`.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks gRPC's health service.
async fn grpc(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    let address = http::authority(host, port);
    let ask = async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
        let channel = endpoint.map_err(|error| error.to_string())?.connect().await;
        let mut client = tonic::client::Grpc::new(channel.map_err(|error| error.to_string())?);
        client.ready().await.map_err(|error| error.to_string())?;
        let request = tonic::Request::new(HealthCheckRequest {
            service: service.to_owned(),
        });
        let path = ::http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let answer = client.unary(request, path, codec).await;
        let status = answer
            .map_err(|status| format!("rpc error: {}", status.message()))?
            .into_inner()
            .status;
        if status == 1 {
            Ok(())
        } else {
            Err(format!("service unhealthy (responded with {status})"))
        }
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("service at {address}: {error}")),
        Err(_) => Err(format!(
            "timeout: failed to connect service \"{address}\" within {timeout:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_port_is_open_or_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(tcp("127.0.0.1", port, Duration::from_secs(5)).await, Ok(()));
        drop(listener);
        let refused = tcp("127.0.0.1", port, Duration::from_secs(5)).await;
        assert_eq!(
            refused,
            Err(format!(
                "dial tcp 127.0.0.1:{port}: connect: connection refused"
            ))
        );
    }
}
