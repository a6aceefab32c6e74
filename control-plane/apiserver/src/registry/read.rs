//! GET and LIST, from the cache; chunks at a revision that the cache has passed come from the store.

use std::sync::Arc;

use balsa_api::status::Status;
use http::Response;

use super::options::{self, Freshness, ListOptions, Token};
use super::select::Filter;
use super::{Registry, Target, shape};
use crate::backend::BackendError;
use crate::cache::resource::Resource;
use crate::cache::{Stored, keys};
use crate::http::context::Context;
use crate::http::respond;
use crate::render::ListMeta;
use crate::seam::ResponseBody;

/// Keys read from the store at once when a chunk at an old revision is put together.
const STORE_PAGE: usize = 512;

/// Objects of a list, with what its metadata says.
pub(super) struct Listed {
    pub objects: Vec<Arc<Stored>>,
    pub meta: ListMeta,
}

/// Why a list could not be made.
pub(super) enum ListError {
    Status(Status),
    /// The revision of a continue token is gone; the token goes on without it.
    ContinueExpired(Token),
}

impl From<Status> for ListError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Registry {
    /// Waits until the cache is as fresh as wanted; returns a revision that it has reached.
    pub(crate) async fn freshen(&self, freshness: Freshness) -> Result<u64, Status> {
        let wanted = match freshness {
            Freshness::Any => return Ok(self.cache.revision()),
            Freshness::Latest => self.backend.read_barrier().await?,
            Freshness::NotOlderThan(revision) | Freshness::Exact(revision) => revision,
        };
        match self.cache.wait_for(wanted, self.patience).await {
            Ok(()) => Ok(self.cache.revision()),
            Err(behind) => Err(options::too_large(behind.wanted, behind.current)),
        }
    }

    /// GET of one object.
    pub async fn get(
        &self,
        cx: &Context,
        target: &Target,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        self.freshen(options::get_freshness(&cx.query)?).await?;
        let stored = target
            .resource
            .get(&target.key())
            .ok_or_else(|| target.not_found())?;
        let stored = target.present(&stored).await?;
        shape::object(
            200,
            &target.kind,
            target.view(stored.bytes.clone()),
            accepted,
            &cx.query,
        )
    }

    /// LIST.
    pub async fn list(
        &self,
        cx: &Context,
        target: &Target,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let filter = Filter::parse(&cx.query, target)?;
        let options = ListOptions::parse(&cx.query)?;
        match self.select(target, &filter, &options).await {
            Ok(listed) => shape::list(target, listed.objects, &listed.meta, accepted, &cx.query),
            Err(ListError::Status(status)) => Err(status),
            Err(ListError::ContinueExpired(token)) => Ok(continue_expired(&token)),
        }
    }

    /// The objects that a list shows.
    pub(super) async fn select(
        &self,
        target: &Target,
        filter: &Filter,
        options: &ListOptions,
    ) -> Result<Listed, ListError> {
        let (at, start) = match &options.token {
            None => (Some(options.freshness), None),
            Some(token) => match u64::try_from(token.revision) {
                Ok(revision) => (Some(Freshness::Exact(revision)), Some(token.start.as_str())),
                Err(_) => (Some(Freshness::Latest), Some(token.start.as_str())),
            },
        };
        let freshness = at.unwrap_or(Freshness::Latest);
        let before = self.freshen(freshness).await?;
        if let Some(listed) = Self::by_name(target, filter, before, freshness).await? {
            return Ok(listed);
        }
        let snapshot = target.resource.snapshot(&target.namespace, start);
        match freshness {
            Freshness::Exact(revision)
                if snapshot.changed > revision || self.is_compacted(target, revision) =>
            {
                self.select_at(target, filter, options, revision, start)
                    .await
            }
            _ => {
                // All changes up to `before` are in the snapshot, and it is the state right after `changed`.
                let revision = match freshness {
                    Freshness::Exact(revision) => revision,
                    _ => before.max(snapshot.changed),
                };
                let objects = target.present_all(snapshot.objects).await?;
                Ok(cut(objects, filter, options.limit, revision))
            }
        }
    }

    /// Has the store given up a revision? Then nobody may list it, whether or not the cache happens to have the
    /// same objects still: tokens expire after the same time everywhere.
    fn is_compacted(&self, target: &Target, revision: u64) -> bool {
        let prefix = target.resource.prefix.as_bytes();
        matches!(
            self.backend.range(prefix, b"", 1, revision),
            Err(BackendError::Compacted)
        )
    }

    /// A list that can only show one object is a lookup.
    async fn by_name(
        target: &Target,
        filter: &Filter,
        before: u64,
        freshness: Freshness,
    ) -> Result<Option<Listed>, Status> {
        let Some(name) = filter.name() else {
            return Ok(None);
        };
        let alone = !target.namespace.is_empty() || !target.is_namespaced();
        if !alone || matches!(freshness, Freshness::Exact(_)) {
            return Ok(None);
        }
        let stored = target
            .resource
            .get(&keys::object_key(&target.namespace, name));
        let stored = match stored {
            Some(stored) => Some(target.present(&stored).await?),
            None => None,
        };
        let revision = stored.as_ref().map_or(before, |s| s.revision.max(before));
        let objects = stored.into_iter().filter(|s| filter.matches(s)).collect();
        Ok(Some(Listed {
            objects,
            meta: ListMeta {
                revision,
                ..ListMeta::default()
            },
        }))
    }

    async fn select_at(
        &self,
        target: &Target,
        filter: &Filter,
        options: &ListOptions,
        revision: u64,
        start: Option<&str>,
    ) -> Result<Listed, ListError> {
        let prefix = prefix_of(target);
        let limit = options.limit.unwrap_or(usize::MAX);
        let mut from = start
            .map(|s| format!("{}{s}", target.resource.prefix))
            .unwrap_or_default()
            .into_bytes();
        if !from.starts_with(prefix.as_bytes()) && from.as_slice() < prefix.as_bytes() {
            from.clear();
        }
        let mut objects: Vec<Arc<Stored>> = Vec::new();
        loop {
            let page = self
                .backend
                .range(prefix.as_bytes(), &from, STORE_PAGE, revision)
                .map_err(|e| gone(e, options))?;
            let loaded = page
                .kvs
                .iter()
                .filter_map(|kv| load(&target.resource, &kv.key, &kv.value, kv.mod_revision))
                .map(Arc::new)
                .collect();
            for stored in target.present_all(loaded).await? {
                if !filter.matches(&stored) {
                    continue;
                }
                if objects.len() == limit {
                    let left = options.token.as_ref().and_then(|token| token.left);
                    let left = left.filter(|_| filter.is_everything());
                    let left = left.and_then(|left| left.checked_sub(limit));
                    return Ok(chunk(objects, revision, left));
                }
                objects.push(stored);
            }
            match page.kvs.last() {
                Some(last) if page.more => from = [last.key.as_ref(), b"\0"].concat(),
                _ => {
                    return Ok(Listed {
                        objects,
                        meta: ListMeta {
                            revision,
                            ..ListMeta::default()
                        },
                    });
                }
            }
        }
    }
}

fn prefix_of(target: &Target) -> String {
    if target.namespace.is_empty() {
        target.resource.prefix.clone()
    } else {
        format!("{}{}/", target.resource.prefix, target.namespace)
    }
}

fn load(resource: &Resource, key: &[u8], value: &[u8], revision: u64) -> Option<Stored> {
    let (_, key) = keys::split(key)?;
    Stored::new(&resource.kind, key, value, revision)
}

/// Applies filter and limit to objects in key order.
fn cut(objects: Vec<Arc<Stored>>, filter: &Filter, limit: Option<usize>, revision: u64) -> Listed {
    let all = filter.is_everything();
    let mut chosen: Vec<Arc<Stored>> = if all {
        objects
    } else {
        objects.into_iter().filter(|s| filter.matches(s)).collect()
    };
    match limit {
        Some(limit) if chosen.len() > limit => {
            let remaining = all.then(|| chosen.len() - limit);
            chosen.truncate(limit);
            chunk(chosen, revision, remaining)
        }
        _ => Listed {
            objects: chosen,
            meta: ListMeta {
                revision,
                ..ListMeta::default()
            },
        },
    }
}

fn chunk(objects: Vec<Arc<Stored>>, revision: u64, remaining: Option<usize>) -> Listed {
    let continue_ = objects.last().map(|last| {
        let mut token = Token::after(Some(revision), &last.key);
        token.left = remaining;
        token.encode()
    });
    Listed {
        objects,
        meta: ListMeta {
            revision,
            continue_,
            remaining,
        },
    }
}

fn gone(error: BackendError, options: &ListOptions) -> ListError {
    match (error, &options.token) {
        (BackendError::Compacted, Some(token)) => {
            let last = token.start.trim_end_matches('\0');
            ListError::ContinueExpired(Token::after(None, last))
        }
        (BackendError::Compacted, None) => ListError::Status(Status::new(
            410,
            "Expired",
            "The resourceVersion for the provided list is too old.",
        )),
        (other, _) => ListError::Status(other.into()),
    }
}

/// 410 with a token that goes on at the present state.
fn continue_expired(token: &Token) -> Response<ResponseBody> {
    let status = Status::new(
        410,
        "Expired",
        "The provided continue parameter is too old to display a consistent list result. You can start a new \
         list without the continue parameter, or use the continue token in this response to retrieve the \
         remainder of the results. Continuing with the provided token results in an inconsistent list - objects \
         that were created, modified, or deleted between the time the first chunk was returned and now may show \
         up in the list.",
    );
    let mut body = status.body();
    body["metadata"] = serde_json::json!({"continue": token.encode()});
    respond::json(410, &body)
}
