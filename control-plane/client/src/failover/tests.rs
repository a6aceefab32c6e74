#![allow(clippy::unwrap_used)]
use http_body_util::Full;
use parking_lot::Mutex;

use super::*;

type Script = Box<dyn Fn(&str) -> Result<u16, SendError> + Send + Sync>;

struct Fake {
    script: Script,
    asked: Mutex<Vec<String>>,
}

impl Transport for Fake {
    type Body = Full<Bytes>;

    fn send(
        &self,
        request: Request<Bytes>,
    ) -> BoxFuture<'static, Result<Response<Full<Bytes>>, SendError>> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        self.asked
            .lock()
            .push(format!("{} {host}", request.method()));
        let result = (self.script)(&host);
        Box::pin(async move {
            let code = result?;
            if code == 0 {
                std::future::pending::<()>().await;
            }
            Ok(Response::builder()
                .status(code)
                .body(Full::default())
                .unwrap())
        })
    }
}

fn failover(script: Script) -> Failover<Fake> {
    let addresses: Vec<String> = ["a", "b"]
        .iter()
        .map(|host| format!("https://{host}:6443"))
        .collect();
    let servers = Servers::new(&addresses).unwrap();
    servers.worked(&"a:6443".parse().unwrap());
    Failover {
        transport: Arc::new(Fake {
            script,
            asked: Mutex::default(),
        }),
        servers,
        timeouts: Timeouts::default(),
        bearer: Arc::new(|| None),
        agent: HeaderValue::from_static("test"),
    }
}

async fn call(failover: &mut Failover<Fake>, method: Method) -> Result<StatusCode, String> {
    let request = Request::builder()
        .method(method)
        .uri("/api/v1/pods")
        .body(Body::empty())
        .unwrap();
    failover
        .call(request)
        .await
        .map(|response| response.status())
        .map_err(|error| error.to_string())
}

fn asked(failover: &Failover<Fake>) -> Vec<String> {
    std::mem::take(&mut *failover.transport.asked.lock())
}

#[tokio::test]
async fn a_refused_connection_moves_even_a_write_to_the_next_server() {
    let mut failover = failover(Box::new(|host| match host {
        "a" => Err(SendError::Connect("connection refused".into())),
        _ => Ok(201),
    }));
    assert_eq!(
        call(&mut failover, Method::POST).await,
        Ok(StatusCode::CREATED)
    );
    assert_eq!(asked(&failover), ["POST a", "POST b"]);
    assert_eq!(
        call(&mut failover, Method::POST).await,
        Ok(StatusCode::CREATED)
    );
    assert_eq!(asked(&failover), ["POST b"]);
}

#[tokio::test]
async fn a_write_whose_connection_broke_is_not_repeated() {
    let mut failover = failover(Box::new(|host| match host {
        "a" => Err(SendError::Broken("reset".into())),
        _ => Ok(201),
    }));
    assert_eq!(call(&mut failover, Method::POST).await, Err("reset".into()));
    assert_eq!(asked(&failover), ["POST a"]);
    assert_eq!(
        call(&mut failover, Method::POST).await,
        Ok(StatusCode::CREATED)
    );
    assert_eq!(asked(&failover), ["POST b"]);
}

#[tokio::test]
async fn a_read_leaves_a_silent_server() {
    let mut failover = failover(Box::new(|host| Ok(if host == "a" { 0 } else { 200 })));
    failover.timeouts.read = Duration::from_millis(20);
    assert_eq!(call(&mut failover, Method::GET).await, Ok(StatusCode::OK));
    assert_eq!(asked(&failover), ["GET a", "GET b"]);
}

#[tokio::test]
async fn a_read_leaves_a_server_that_cannot_serve_now() {
    let mut failover = failover(Box::new(|host| Ok(if host == "a" { 503 } else { 200 })));
    assert_eq!(call(&mut failover, Method::GET).await, Ok(StatusCode::OK));
}

#[tokio::test]
async fn when_all_fail_the_error_names_each_server_and_why() {
    let mut failover = failover(Box::new(|_| {
        Err(SendError::Connect("connection refused".into()))
    }));
    let error = call(&mut failover, Method::GET).await.unwrap_err();
    assert_eq!(
        error,
        "no API server answered: a:6443: cannot connect: connection refused; \
         b:6443: cannot connect: connection refused"
    );
}
