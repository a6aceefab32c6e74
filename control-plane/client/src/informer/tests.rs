#![allow(clippy::unwrap_used)]
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::watch::{Bookmark, BookmarkMeta};
use kube::core::{Status, TypeMeta};
use tokio::sync::mpsc;

use super::*;
use crate::source::ListFrom;

/// One answer of the fake API server, in the order in which it is asked.
enum Answer {
    List(Vec<ConfigMap>, &'static str),
    /// The events arrive through the channel; dropping the sender ends the stream.
    Watch(mpsc::UnboundedReceiver<kube::Result<WatchEvent<ConfigMap>>>),
    Fail(u16),
}

/// A scripted conversation; also a record of what was asked.
struct Script {
    answers: Mutex<VecDeque<Answer>>,
    asked: mpsc::UnboundedSender<String>,
}

impl Script {
    fn answer(&self, question: String) -> Answer {
        self.asked.send(question).unwrap();
        self.answers.lock().pop_front().unwrap_or(Answer::Fail(500))
    }
}

fn failure(code: u16) -> kube::Error {
    kube::Error::Api(Status::failure("no", "").with_code(code).boxed())
}

impl Source<ConfigMap> for Arc<Script> {
    fn list(&self, _: ListParams) -> BoxFuture<'_, kube::Result<ListFrom<ConfigMap>>> {
        let answer = match self.answer("list".into()) {
            Answer::List(items, version) => Ok(ListFrom {
                items,
                resource_version: version.into(),
                continue_token: String::new(),
            }),
            Answer::Fail(code) => Err(failure(code)),
            Answer::Watch(_) => Err(failure(599)),
        };
        Box::pin(async move { answer })
    }

    fn watch(
        &self,
        params: WatchParams,
        version: String,
    ) -> BoxFuture<'_, kube::Result<WatchStream<ConfigMap>>> {
        let initial = if params.send_initial_events {
            "initial "
        } else {
            ""
        };
        let answer = match self.answer(format!("{initial}watch {version}")) {
            Answer::Watch(mut events) => {
                Ok(futures::stream::poll_fn(move |cx| events.poll_recv(cx)).boxed())
            }
            Answer::Fail(code) => Err(failure(code)),
            Answer::List(..) => Err(failure(599)),
        };
        Box::pin(async move { answer })
    }
}

struct Conversation {
    informer: Informer<ConfigMap>,
    deltas: Subscription<ConfigMap>,
    asked: mpsc::UnboundedReceiver<String>,
    stop: CancellationToken,
}

fn converse(answers: Vec<Answer>) -> Conversation {
    let (sender, asked) = mpsc::unbounded_channel();
    let script = Arc::new(Script {
        answers: Mutex::new(answers.into()),
        asked: sender,
    });
    let stop = CancellationToken::new();
    let options = InformerOptions::default();
    let informer = Informer::start_from(script, "configmaps".into(), options, stop.clone());
    let deltas = informer.subscribe(16);
    Conversation {
        informer,
        deltas,
        asked,
        stop,
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Conversation {
    async fn change(&mut self) -> String {
        match self.deltas.next().await {
            Some(Delta::Added(o)) => format!("+{}", o.metadata.name.as_deref().unwrap()),
            Some(Delta::Updated { new, .. }) => {
                format!("~{}", new.metadata.name.as_deref().unwrap())
            }
            Some(Delta::Deleted(o)) => format!("-{}", o.metadata.name.as_deref().unwrap()),
            None => "lost".into(),
        }
    }

    async fn question(&mut self) -> String {
        self.asked.recv().await.unwrap()
    }
}

fn map(name: &str, version: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.namespace = Some("default".into());
    map.metadata.name = Some(name.into());
    map.metadata.uid = Some(name.into());
    map.metadata.resource_version = Some(version.into());
    map
}

fn bookmark(version: &str, end: bool) -> WatchEvent<ConfigMap> {
    let annotations = end.then(|| ("k8s.io/initial-events-end".to_owned(), "true".to_owned()));
    WatchEvent::Bookmark(Bookmark {
        types: TypeMeta::default(),
        metadata: BookmarkMeta {
            resource_version: version.into(),
            annotations: annotations.into_iter().collect(),
        },
    })
}

type Sender = mpsc::UnboundedSender<kube::Result<WatchEvent<ConfigMap>>>;

fn stream() -> (Sender, Answer) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Answer::Watch(receiver))
}

#[tokio::test]
async fn a_broken_watch_goes_on_from_the_last_revision_seen() {
    let (first, first_answer) = stream();
    let (second, second_answer) = stream();
    let mut c = converse(vec![first_answer, Answer::Fail(503), second_answer]);
    first.send(Ok(WatchEvent::Added(map("a", "3")))).unwrap();
    first.send(Ok(bookmark("5", true))).unwrap();
    c.informer.synced().await;
    assert_eq!(c.change().await, "+a");
    first.send(Ok(WatchEvent::Modified(map("a", "8")))).unwrap();
    assert_eq!(c.change().await, "~a");
    // The server dies; the next one is not ready; then all goes on without a new list.
    drop(first);
    second.send(Ok(WatchEvent::Deleted(map("a", "9")))).unwrap();
    assert_eq!(c.change().await, "-a");
    let asked = [c.question().await, c.question().await, c.question().await];
    assert_eq!(asked, ["initial watch ", "watch 8", "watch 8"]);
}

#[tokio::test]
async fn an_expired_revision_starts_over_and_finds_what_was_missed() {
    let (first, first_answer) = stream();
    let (second, second_answer) = stream();
    let mut c = converse(vec![first_answer, Answer::Fail(410), second_answer]);
    first.send(Ok(WatchEvent::Added(map("a", "3")))).unwrap();
    first.send(Ok(bookmark("5", true))).unwrap();
    drop(first);
    assert_eq!(c.change().await, "+a");
    second.send(Ok(WatchEvent::Added(map("b", "40")))).unwrap();
    second.send(Ok(bookmark("50", true))).unwrap();
    let mut changes = [c.change().await, c.change().await];
    changes.sort();
    assert_eq!(changes, ["+b", "-a"]);
    assert!(c.informer.get("default", "a").is_none());
}

#[tokio::test]
async fn a_server_without_initial_events_is_listed_and_watched() {
    let (events, watch) = stream();
    let mut c = converse(vec![
        Answer::Fail(422),
        Answer::List(vec![map("a", "3")], "7"),
        watch,
    ]);
    assert_eq!(c.change().await, "+a");
    events.send(Ok(WatchEvent::Added(map("b", "8")))).unwrap();
    assert_eq!(c.change().await, "+b");
    let asked = [c.question().await, c.question().await, c.question().await];
    assert_eq!(asked, ["initial watch ", "list", "watch 7"]);
}

#[tokio::test]
async fn a_bookmark_moves_the_revision_to_resume_from() {
    let (first, first_answer) = stream();
    let (_second, second_answer) = stream();
    let mut c = converse(vec![first_answer, second_answer]);
    first.send(Ok(bookmark("5", true))).unwrap();
    first.send(Ok(bookmark("70", false))).unwrap();
    drop(first);
    assert_eq!(
        [c.question().await, c.question().await],
        ["initial watch ", "watch 70"]
    );
}

#[tokio::test]
async fn a_slow_subscriber_is_told_that_it_missed_something() {
    let (events, watch) = stream();
    let mut c = converse(vec![watch]);
    events.send(Ok(bookmark("5", true))).unwrap();
    for i in 0..40 {
        events
            .send(Ok(WatchEvent::Added(map(
                &format!("m{i}"),
                &format!("1{i}"),
            ))))
            .unwrap();
    }
    while c.informer.len() < 40 {
        tokio::task::yield_now().await;
    }
    assert_eq!(c.change().await, "lost");
    events
        .send(Ok(WatchEvent::Added(map("after", "99"))))
        .unwrap();
    assert_eq!(c.change().await, "+after");
}

/// What kube makes of `{"type": "MODIFIED", "object": ...}` when the object does not fit the type.
#[tokio::test]
async fn an_event_that_does_not_fit_the_type_is_passed_over() {
    let (events, watch) = stream();
    let mut c = converse(vec![watch]);
    events.send(Ok(bookmark("5", true))).unwrap();
    let line = r#"{"type": "MODIFIED", "object": {"data": 7}}"#;
    let status: Status = serde_json::from_str(line).unwrap();
    events.send(Err(kube::Error::Api(status.boxed()))).unwrap();
    events.send(Ok(WatchEvent::Added(map("a", "8")))).unwrap();
    assert_eq!(c.change().await, "+a");
    assert_eq!(c.question().await, "initial watch ");
    assert!(c.asked.try_recv().is_err(), "nobody asked again");
}
