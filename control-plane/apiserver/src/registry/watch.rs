//! WATCH: a stream of JSON lines from the cache.
//!
//! Each watcher has a bounded queue of its own. Events in it are shared, and encoded by the first watcher
//! that needs them. A watcher that lets its queue run full is cut off with 410 and lists again. On a server that
//! does not hear from the others all watches end (`reach.rs`), so that their clients go elsewhere.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use balsa_api::kind::Kind;
use balsa_api::kinds::Convert;
use balsa_api::status::Status;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::options::{self, Freshness, Start, WatchOptions};
use super::reach::Listener;
use super::select::Filter;
use super::{Registry, Target, converted, shape};
use crate::backend::BackendError;
use crate::cache::{Cache, Encoding, EventType, Scope, Stored, Subscription, TooOld, WatchEvent};
use crate::http::context::Context;
use crate::http::metrics::Metrics;
use crate::http::negotiate::{Accepted, Format, Shape, not_acceptable};
use crate::http::protobuf;
use crate::http::respond::{self, JSON};
use crate::render::{self, Include, api_version};
use crate::seam::{Custom, ResponseBody};

/// A watch without timeoutSeconds ends after this plus up to as much again, so that clients spread out.
const LIFE: Duration = Duration::from_secs(1800);
const CHUNK: usize = 64 * 1024;
const BATCH: usize = 256;
/// Changes that are read from the store's history for one watcher; one that missed more lists again.
const MAX_MISSED: usize = 20_000;

/// How a watcher wants its events.
#[derive(Clone, Copy)]
enum Style {
    Kept(Encoding),
    /// A Table with other rows than the usual ones; encoded for this watcher alone.
    Table(Include),
}

impl Style {
    /// `None` for formats that no watch has.
    fn of(accepted: Accepted, include: Include) -> Option<Self> {
        Some(match (accepted.shape, accepted.format) {
            (_, Format::Yaml) | (Shape::Table, Format::Protobuf) => return None,
            (Shape::Plain, Format::Protobuf) => Self::Kept(Encoding::Protobuf),
            (Shape::Metadata, Format::Protobuf) => Self::Kept(Encoding::ProtobufMetadata),
            (Shape::Plain, Format::Json) => Self::Kept(Encoding::Json),
            (Shape::Metadata, Format::Json) => Self::Kept(Encoding::Metadata),
            (Shape::Table, Format::Json) if include == Include::Metadata => {
                Self::Kept(Encoding::Table)
            }
            (Shape::Table, Format::Json) => Self::Table(include),
        })
    }

    fn is_protobuf(self) -> bool {
        matches!(
            self,
            Self::Kept(Encoding::Protobuf | Encoding::ProtobufMetadata)
        )
    }

    fn media_type(self) -> &'static str {
        if self.is_protobuf() {
            protobuf::WATCH_MEDIA_TYPE
        } else {
            JSON
        }
    }

    fn error(self, status: &Status) -> Bytes {
        let json = status.body().to_string().into_bytes();
        if self.is_protobuf() {
            protobuf::watch_frame("ERROR", &protobuf::object(&json).unwrap_or_default())
        } else {
            render::watch_line("ERROR", &json)
        }
    }
}

#[derive(Clone, Copy)]
struct Form {
    style: Style,
    /// Objects are stored in another shape than the watcher sees.
    convert: Option<&'static dyn Convert>,
}

impl Form {
    /// A line made for this watcher alone. Of Tables only the first in a response has column definitions.
    fn line(self, kind: &Kind, type_: &str, object: &[u8], first: bool) -> Bytes {
        let served;
        let object = match self.convert {
            Some(convert) => {
                served = converted(convert, object);
                &served
            }
            None => object,
        };
        let table = |include| {
            render::watch_line(type_, &render::table_of_one(kind, object, include, first))
        };
        match self.style {
            Style::Kept(Encoding::Table) => table(Include::Metadata),
            Style::Kept(encoding) => encoding.event(kind, type_, object).unwrap_or_default(),
            Style::Table(include) => table(include),
        }
    }

    /// The line of an object that is there when the watch begins.
    fn state_line(self, kind: &Kind, stored: &Stored, first: bool) -> Bytes {
        let added = EventType::Added.name();
        match (self.style, self.convert) {
            (Style::Kept(Encoding::Protobuf), None) => {
                let message = stored.protobuf(kind).unwrap_or_default();
                protobuf::watch_frame(added, &protobuf::wrapped(kind, &message))
            }
            _ => self.line(kind, added, &stored.bytes, first),
        }
    }

    fn event_line(self, kind: &Kind, event: &WatchEvent, type_: EventType, first: bool) -> Bytes {
        match (self.style, self.convert) {
            (Style::Kept(Encoding::Table), None) if first => {}
            (Style::Kept(encoding), None) => return event.line(type_, encoding, kind),
            _ => {}
        }
        self.line(kind, type_.name(), &event.object_bytes(type_), first)
    }

    fn bookmark(self, kind: &Kind, revision: u64, closing: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if closing {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let plain = |kind: &str, api_version: &str, metadata: &Value| {
            json!({"kind": kind, "apiVersion": api_version, "metadata": metadata})
                .to_string()
                .into_bytes()
        };
        let object = match self.style {
            Style::Kept(Encoding::Json | Encoding::Protobuf) => {
                plain(&kind.kind, &api_version(kind), &metadata)
            }
            Style::Kept(Encoding::Metadata | Encoding::ProtobufMetadata) => {
                plain("PartialObjectMetadata", "meta.k8s.io/v1", &metadata)
            }
            Style::Kept(Encoding::Table) | Style::Table(_) => render::empty_table(kind, &metadata),
        };
        match self.style {
            Style::Kept(encoding @ (Encoding::Protobuf | Encoding::ProtobufMetadata)) => encoding
                .event(kind, "BOOKMARK", &object)
                .unwrap_or_default(),
            _ => render::watch_line("BOOKMARK", &object),
        }
    }
}

/// The state of one watch response.
struct Watcher {
    subscription: Subscription,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    kind: Arc<Kind>,
    filter: Filter,
    form: Form,
    /// Objects that were there at the start.
    state: std::vec::IntoIter<Arc<Stored>>,
    /// Changes that happened between the start revision and the subscription.
    missed: VecDeque<Arc<WatchEvent>>,
    /// Bookmark to send after `state`.
    closing: Option<u64>,
    bookmarks: bool,
    ticker: Interval,
    end: Instant,
    /// Nothing older is sent again.
    sent: u64,
    first: bool,
    /// Set for custom resources, whose objects are shown in the version that was asked for.
    custom: Option<Arc<dyn Custom>>,
    stop: CancellationToken,
    reach: Listener,
    over: bool,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.metrics.watches.dec();
    }
}

impl Registry {
    /// WATCH.
    pub async fn watch(
        &self,
        cx: &Context,
        target: &Target,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let filter = Filter::parse(&cx.query, target)?;
        let options = WatchOptions::parse(&cx.query)?;
        let form = Form {
            style: Style::of(accepted, shape::include(&cx.query)?).ok_or_else(not_acceptable)?,
            convert: target.convert,
        };
        self.reach.check()?;
        let opened = match self.open(target, &filter, &options).await {
            Ok(opened) => opened,
            // Upstream answers 200 with one ERROR event, and clients are written for that.
            Err(status) if status.code == 410 => {
                let style = form.style;
                return Ok(respond::bytes(
                    200,
                    style.media_type(),
                    style.error(&status),
                ));
            }
            Err(status) => return Err(status),
        };
        let watcher = self.watcher(target, filter, &options, form, opened);
        let chunks = stream::unfold(watcher, |mut watcher| async move {
            let chunk = watcher.next_chunk().await?;
            Some((Ok::<_, crate::BoxError>(Frame::data(chunk)), watcher))
        });
        Ok(respond::with_body(
            200,
            form.style.media_type(),
            StreamBody::new(chunks).boxed_unsync(),
        ))
    }

    async fn open(
        &self,
        target: &Target,
        filter: &Filter,
        options: &WatchOptions,
    ) -> Result<Opened, Status> {
        let scope = filter.scope(&target.kind, &target.namespace);
        match options.start {
            Start::State { freshness, closing } => {
                let before = self.freshen(freshness).await?;
                let (subscription, state) = target
                    .resource
                    .subscribe_with_state(scope, &target.namespace);
                let newest = state
                    .iter()
                    .map(|s| s.revision)
                    .max()
                    .unwrap_or_default()
                    .max(before);
                let state = target.present_all(state).await?;
                let state: Vec<_> = state.into_iter().filter(|s| filter.matches(s)).collect();
                let closing = (closing && options.bookmarks).then_some(newest);
                Ok(Opened {
                    subscription,
                    state,
                    missed: VecDeque::new(),
                    closing,
                    sent: 0,
                })
            }
            Start::After(revision) => {
                self.freshen(Freshness::NotOlderThan(revision)).await?;
                let recent =
                    target
                        .resource
                        .subscribe_from(scope.clone(), &target.namespace, revision);
                let (subscription, missed) = match recent {
                    Ok((subscription, missed)) => (subscription, missed.into()),
                    Err(TooOld(oldest)) => {
                        self.subscribe_long_ago(target, scope, revision, oldest)?
                    }
                };
                Ok(Opened {
                    subscription,
                    state: Vec::new(),
                    missed,
                    closing: None,
                    sent: revision,
                })
            }
            Start::Now => {
                let sent = self.freshen(Freshness::Latest).await?;
                let subscription = target.resource.subscribe(scope, &target.namespace);
                Ok(Opened {
                    subscription,
                    state: Vec::new(),
                    missed: VecDeque::new(),
                    closing: None,
                    sent,
                })
            }
        }
    }

    /// Subscribes after a revision that the cache no longer knows, or not yet did when this server started: what
    /// was missed comes from the store's history.
    fn subscribe_long_ago(
        &self,
        target: &Target,
        scope: Scope,
        revision: u64,
        oldest: u64,
    ) -> Result<(Subscription, VecDeque<Arc<WatchEvent>>), Status> {
        let resource = &target.resource;
        let (subscription, changed) = resource.subscribe_now(scope, &target.namespace);
        let prefix = if target.namespace.is_empty() {
            resource.prefix.clone()
        } else {
            format!("{}{}/", resource.prefix, target.namespace)
        };
        let events = self
            .backend
            .changes(prefix.as_bytes(), revision, changed, MAX_MISSED)
            .map_err(|error| match error {
                BackendError::Compacted => options::expired(revision, oldest),
                other => other.into(),
            })?;
        let missed = events
            .iter()
            .filter_map(|event| WatchEvent::from_store(&resource.kind, event).map(Arc::new))
            .collect();
        Ok((subscription, missed))
    }

    fn watcher(
        &self,
        target: &Target,
        filter: Filter,
        options: &WatchOptions,
        form: Form,
        opened: Opened,
    ) -> Watcher {
        self.metrics.watches.inc();
        let life = options.timeout_seconds.map_or_else(
            || LIFE + Duration::from_secs(rand::random_range(0..LIFE.as_secs())),
            Duration::from_secs,
        );
        let mut ticker =
            tokio::time::interval_at(Instant::now() + self.bookmark_every, self.bookmark_every);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Watcher {
            subscription: opened.subscription,
            cache: Arc::clone(&self.cache),
            metrics: Arc::clone(&self.metrics),
            kind: Arc::clone(&target.kind),
            filter,
            form,
            state: opened.state.into_iter(),
            missed: opened.missed,
            closing: opened.closing,
            bookmarks: options.bookmarks,
            ticker,
            end: Instant::now() + life,
            sent: opened.sent,
            first: true,
            stop: target
                .custom
                .as_ref()
                .map_or(&self.stop, |c| c.retired())
                .clone(),
            custom: target.custom.clone(),
            reach: self.reach.listen(),
            over: false,
        }
    }
}

struct Opened {
    subscription: Subscription,
    state: Vec<Arc<Stored>>,
    missed: VecDeque<Arc<WatchEvent>>,
    closing: Option<u64>,
    sent: u64,
}

impl Watcher {
    async fn next_chunk(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let missed = std::mem::take(&mut self.missed);
        self.missed = match self.shown(missed.into()).await {
            Ok(missed) => missed.into(),
            Err(status) => return Some(self.fail(&status)),
        };
        if let Some(chunk) = self.initial() {
            return Some(chunk);
        }
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                received = self.subscription.changes.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        return Some(self.cut_off());
                    }
                    let shown = match self.shown(std::mem::take(&mut batch)).await {
                        Ok(shown) => shown,
                        Err(status) => return Some(self.fail(&status)),
                    };
                    if let Some(chunk) = self.encode(shown.into_iter()) {
                        return Some(chunk);
                    }
                }
                _ = self.ticker.tick(), if self.bookmarks => return Some(self.bookmark().await),
                () = tokio::time::sleep_until(self.end) => return self.finish().await,
                () = self.stop.cancelled() => return self.finish().await,
                () = self.reach.cut_off() => return self.finish().await,
            }
        }
    }

    /// The state at the start and what was missed, piece by piece.
    fn initial(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::new();
        while out.len() < CHUNK {
            let Some(stored) = self.state.next() else {
                break;
            };
            let line = self.form.state_line(&self.kind, &stored, self.first);
            out.extend_from_slice(&line);
            self.first = false;
            self.sent = self.sent.max(stored.revision);
        }
        while out.is_empty() && !self.missed.is_empty() {
            let rest = self.missed.split_off(BATCH.min(self.missed.len()));
            let missed = std::mem::replace(&mut self.missed, rest);
            if let Some(chunk) = self.encode(missed.into_iter()) {
                return Some(chunk);
            }
        }
        if self.state.as_slice().is_empty()
            && let Some(revision) = self.closing.take()
        {
            self.sent = self.sent.max(revision);
            out.extend_from_slice(&self.form.bookmark(&self.kind, revision, true));
        }
        (!out.is_empty()).then(|| out.freeze())
    }

    /// Lines of the events that concern this watcher. A single one is shared, not copied.
    fn encode(&mut self, events: impl Iterator<Item = Arc<WatchEvent>>) -> Option<Bytes> {
        let mut single: Option<Bytes> = None;
        let mut many = BytesMut::new();
        for event in events {
            self.sent = self.sent.max(event.revision);
            let Some(type_) = event.classify(|stored| self.in_view(stored)) else {
                continue;
            };
            let line = self.form.event_line(&self.kind, &event, type_, self.first);
            self.first = false;
            match single.take() {
                None if many.is_empty() => single = Some(line),
                Some(earlier) => {
                    many.reserve(earlier.len() + line.len());
                    many.extend_from_slice(&earlier);
                    many.extend_from_slice(&line);
                }
                None => many.extend_from_slice(&line),
            }
        }
        single.or_else(|| (!many.is_empty()).then(|| many.freeze()))
    }

    fn in_view(&self, stored: &Stored) -> bool {
        self.subscription.covers(stored) && self.filter.matches(stored)
    }

    /// A bookmark at the cache's revision, after everything that is queued up to it.
    async fn bookmark(&mut self) -> Bytes {
        // Read before the queue: what the cache counts as applied is in the queue already.
        let revision = self.cache.revision();
        let mut queued = Vec::new();
        while let Ok(event) = self.subscription.changes.try_recv() {
            queued.push(event);
        }
        let queued = match self.shown(queued).await {
            Ok(queued) => queued,
            Err(status) => return self.fail(&status),
        };
        let lines = self.encode(queued.into_iter()).unwrap_or_default();
        self.sent = self.sent.max(revision);
        let mark = self.form.bookmark(&self.kind, self.sent, false);
        [lines, mark].concat().into()
    }

    async fn finish(&mut self) -> Option<Bytes> {
        self.over = true;
        if self.bookmarks {
            Some(self.bookmark().await)
        } else {
            None
        }
    }

    /// Events as the watcher's version shows them.
    async fn shown(&self, events: Vec<Arc<WatchEvent>>) -> Result<Vec<Arc<WatchEvent>>, Status> {
        let Some(custom) = &self.custom else {
            return Ok(events);
        };
        let mut shown = Vec::with_capacity(events.len());
        for event in events {
            let sides: Vec<Arc<Stored>> = event.old.iter().chain(&event.new).cloned().collect();
            let mut sides = custom.present(sides).await?.into_iter();
            let old = event.old.as_ref().and_then(|_| sides.next());
            let new = event.new.as_ref().and_then(|_| sides.next());
            let same = |shown: &Option<Arc<Stored>>, stored: &Option<Arc<Stored>>| {
                shown.as_ref().map(Arc::as_ptr) == stored.as_ref().map(Arc::as_ptr)
            };
            // Events that need no conversion stay those that all watchers share.
            shown.push(if same(&old, &event.old) && same(&new, &event.new) {
                event
            } else {
                Arc::new(WatchEvent::new(event.revision, new, old))
            });
        }
        Ok(shown)
    }

    fn fail(&mut self, status: &Status) -> Bytes {
        self.over = true;
        self.form.style.error(status)
    }

    fn cut_off(&mut self) -> Bytes {
        self.over = true;
        self.metrics.slow_watchers.inc();
        self.form
            .style
            .error(&options::expired(self.sent, self.cache.revision()))
    }
}
