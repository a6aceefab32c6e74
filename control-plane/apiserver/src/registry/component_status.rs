//! ComponentStatuses. The scheduler and the controllers run in whichever server leads the store, and a server without
//! a leader has no working store: all of them are as healthy as the store.

use std::sync::Arc;

use balsa_api::kinds::{COMPONENTS, component_status};
use balsa_api::status::Status;
use http::Response;

use super::select::Filter;
use super::{Registry, Target, shape};
use crate::cache::Stored;
use crate::http::context::Context;
use crate::render::ListMeta;
use crate::seam::ResponseBody;

impl Registry {
    /// GET and LIST.
    ///
    /// # Errors
    /// 404 for what is no component, 400 for bad selectors, 406.
    pub fn component_statuses(
        &self,
        cx: &Context,
        target: &Target,
    ) -> Result<Response<ResponseBody>, Status> {
        let accepted = cx.accepted(true)?;
        let health = self.backend.health();
        let revision = self.cache.revision();
        let stored = |name: &str| {
            let bytes = component_status(name, &health).to_string();
            let stored = Stored::new(&target.kind, name, bytes.as_bytes(), revision)?;
            // They have no version of their own.
            Some(stored.with_bytes(bytes.into()))
        };
        if cx.info.verb == "get" {
            let known = COMPONENTS.contains(&target.name.as_str());
            let found = known.then(|| stored(&target.name)).flatten();
            let found = found.ok_or_else(|| target.not_found())?;
            return shape::object(200, &target.kind, found.bytes, accepted, &cx.query);
        }
        let filter = Filter::parse(&cx.query, target)?;
        let all = COMPONENTS.iter().filter_map(|name| stored(name));
        let matching = all.filter(|s| filter.matches(s)).map(Arc::new);
        let meta = ListMeta {
            revision,
            continue_: None,
            remaining: None,
        };
        shape::list(target, matching.collect(), &meta, accepted, &cx.query)
    }
}
