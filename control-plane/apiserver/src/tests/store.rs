//! The same over the real store: one member on disk.

use std::time::Duration;

use balsa_store::{Config as StoreConfig, Store};

use super::*;

async fn open(dir: &std::path::Path) -> (Store, ApiServer) {
    let listen = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let kinds = Arc::new(Kinds::new(balsa_api::kinds::builtin()));
    let cache = Cache::new(kinds.all());
    let config = StoreConfig::new(dir, 1, listen.to_string(), listen, None);
    let store = Store::open(config, Arc::clone(&cache) as Arc<dyn balsa_store::Observer>)
        .await
        .unwrap();
    store.initialize().await.unwrap();
    let mut leadership = store.leadership();
    let leads = leadership.wait_for(|l| l.is_me);
    tokio::time::timeout(Duration::from_secs(60), leads)
        .await
        .unwrap()
        .unwrap();
    let api = server(cache, kinds, Arc::new(store.clone()));
    (store, api)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_store_serves_writes_lists_watches_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (store, api) = open(dir.path()).await;
    let post = |path: &str, body: Value| ask(&api, Method::POST, path).body(body).send();
    let response = ask(&api, Method::GET, &format!("{MAPS}?watch=true"))
        .raw()
        .await;
    let mut watch = Lines {
        body: response.into_body(),
        buffer: Vec::new(),
    };
    let mut first = Value::Null;
    for name in ["a", "b", "c"] {
        let made = post(MAPS, config_map(name, json!({"k": name})))
            .await
            .expect(201);
        assert_eq!(
            ask(&api, Method::GET, &format!("{MAPS}/{name}"))
                .send()
                .await
                .expect(200),
            made
        );
        assert_eq!(watch.next().await.unwrap()["object"], made);
        if first.is_null() {
            first = ask(&api, Method::GET, &format!("{MAPS}?limit=1"))
                .send()
                .await
                .expect(200);
        }
    }
    // One object was all there was when the first chunk was read.
    assert!(first["metadata"].get("continue").is_none());
    let chunk = ask(&api, Method::GET, &format!("{MAPS}?limit=1"))
        .send()
        .await
        .expect(200);
    ask(&api, Method::DELETE, &format!("{MAPS}/b"))
        .send()
        .await
        .expect(200);
    let token = chunk["metadata"]["continue"].as_str().unwrap();
    let rest = ask(&api, Method::GET, &format!("{MAPS}?continue={token}"))
        .send()
        .await
        .expect(200);
    assert_eq!(
        rest["items"].as_array().unwrap().len(),
        2,
        "as of the first chunk"
    );
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    post(SERVICES, service).await.expect(201);
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "a", "namespace": "d"}});
    post("/api/v1/namespaces/d/events", event).await.expect(201);
    assert_eq!(ask(&api, Method::GET, "/readyz").send().await.raw, b"ok");
    let before = ask(&api, Method::GET, MAPS).send().await.expect(200);
    store.shutdown().await;
    drop((watch, api));

    let (store, api) = open(dir.path()).await;
    let after = ask(&api, Method::GET, MAPS).send().await.expect(200);
    assert_eq!(after["items"], before["items"]);
    store.shutdown().await;
}
