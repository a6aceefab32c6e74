//! One change of one object, encoded once for all its watchers.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use balsa_api::kind::Kind;
use bytes::Bytes;

use super::keys;
use super::stored::Stored;
use crate::backend::{Event, KeyValue};
use crate::http::protobuf;
use crate::render;

/// How a change looks to one watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// It exists, or begins to match.
    Added,
    /// It matched and still does.
    Modified,
    /// It is gone, or ceases to match.
    Deleted,
}

impl EventType {
    /// As clients read it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// The encodings that are kept; others are made per watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The whole object.
    Json,
    /// A Table of one row with the object's metadata, without column definitions.
    Table,
    /// PartialObjectMetadata.
    Metadata,
    /// The whole object, in a frame of protobuf.
    Protobuf,
    /// PartialObjectMetadata, in a frame of protobuf.
    ProtobufMetadata,
}

impl Encoding {
    /// An event in this encoding; of Tables one without column definitions. `None` for an object that protobuf
    /// has no message for.
    #[must_use]
    pub fn event(self, kind: &Kind, type_: &str, object: &[u8]) -> Option<Bytes> {
        Some(match self {
            Self::Json => render::watch_line(type_, object),
            Self::Table => render::watch_line(
                type_,
                &render::table_of_one(kind, object, render::Include::Metadata, false),
            ),
            Self::Metadata => render::watch_line(type_, &render::partial_metadata(object)),
            Self::Protobuf => protobuf::watch_frame(type_, &protobuf::object(object)?),
            Self::ProtobufMetadata => protobuf::watch_frame(type_, &protobuf::metadata(object)?),
        })
    }
}

type Lines = [OnceLock<Bytes>; 3];

/// A change.
pub struct WatchEvent {
    /// When, as a resourceVersion.
    pub revision: u64,
    /// The object after it; `None` when it was deleted.
    pub new: Option<Arc<Stored>>,
    /// The object before it; `None` when it was created.
    pub old: Option<Arc<Stored>>,
    pub(super) seen: Instant,
    json: Lines,
    others: OnceLock<Box<[Lines; 4]>>,
}

impl WatchEvent {
    /// A change; at least one of `new` and `old` is there.
    #[must_use]
    pub fn new(revision: u64, new: Option<Arc<Stored>>, old: Option<Arc<Stored>>) -> Self {
        Self {
            revision,
            new,
            old,
            seen: Instant::now(),
            json: Lines::default(),
            others: OnceLock::new(),
        }
    }

    /// A change as the store tells it. `None` for keys and values that are no objects.
    #[must_use]
    pub fn from_store(kind: &Kind, event: &Event) -> Option<Self> {
        let (_, key) = keys::split(event.key())?;
        let stored =
            |kv: &KeyValue| Stored::new(kind, key, &kv.value, kv.mod_revision).map(Arc::new);
        let (new, old) = match event {
            Event::Put { kv, previous } => (Some(stored(kv)?), previous.as_ref().and_then(stored)),
            Event::Delete { previous, .. } => (None, Some(stored(previous)?)),
        };
        Some(Self::new(event.revision(), new, old))
    }

    /// What the change is to a watcher that sees only objects that satisfy `matches`.
    pub fn classify(&self, matches: impl Fn(&Stored) -> bool) -> Option<EventType> {
        let before = self.old.as_deref().is_some_and(&matches);
        let after = self.new.as_deref().is_some_and(&matches);
        match (before, after) {
            (false, true) => Some(EventType::Added),
            (true, true) => Some(EventType::Modified),
            (true, false) => Some(EventType::Deleted),
            (false, false) => None,
        }
    }

    /// JSON of the object that goes with an event type: for a deletion the last state under the deletion's
    /// revision.
    #[must_use]
    pub fn object_bytes(&self, type_: EventType) -> Bytes {
        match (type_, &self.new, &self.old) {
            (EventType::Deleted, _, Some(old)) => old.bytes_at(self.revision),
            (_, Some(new), _) => new.bytes.clone(),
            (_, None, Some(old)) => old.bytes_at(self.revision),
            (_, None, None) => Bytes::new(),
        }
    }

    /// The event as a line of a watch response, made at the first call and shared from then on.
    #[must_use]
    pub fn line(&self, type_: EventType, encoding: Encoding, kind: &Kind) -> Bytes {
        let lines = match encoding {
            Encoding::Json => &self.json,
            Encoding::Table => &self.others.get_or_init(Box::default)[0],
            Encoding::Metadata => &self.others.get_or_init(Box::default)[1],
            Encoding::Protobuf => &self.others.get_or_init(Box::default)[2],
            Encoding::ProtobufMetadata => &self.others.get_or_init(Box::default)[3],
        };
        let line = lines[type_ as usize].get_or_init(|| {
            let object = self.object_bytes(type_);
            // What a kind's watchers are offered can be written; otherwise they see nothing of it.
            encoding
                .event(kind, type_.name(), &object)
                .unwrap_or_default()
        });
        line.clone()
    }

    /// Bytes it keeps alive, roughly.
    pub(super) fn weight(&self) -> usize {
        let of = |stored: &Option<Arc<Stored>>| stored.as_ref().map_or(0, |s| s.bytes.len() + 200);
        of(&self.new) + of(&self.old) + 400
    }
}
