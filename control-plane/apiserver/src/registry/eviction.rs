//! `pods/NAME/eviction`: a delete that may be refused. PodDisruptionBudgets are not served yet; without one
//! upstream's eviction is a delete with the pod's own grace.

use balsa_api::object;
use balsa_api::status::Status;
use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};

use super::deletion::DeleteOptions;
use super::{Registry, Target, admit};
use crate::http::context::Context;
use crate::http::query::Query;
use crate::http::respond;
use crate::seam::ResponseBody;

impl Registry {
    /// POST of an Eviction.
    pub async fn evict(
        &self,
        cx: &Context,
        pod: &Target,
        body: &Bytes,
    ) -> Result<Response<ResponseBody>, Status> {
        cx.accepted(false)?;
        let eviction = admit::body_of(cx, "policy", "v1", "Eviction", body)?;
        let given = object::name(&eviction);
        if !given.is_empty() && given != pod.name {
            return Err(Status::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let asked = eviction
            .get("deleteOptions")
            .cloned()
            .filter(Value::is_object);
        let mut options = DeleteOptions::read(asked, &Query::default())?;
        if cx.dry_run()? {
            options.dry_run = vec!["All".into()];
        }
        self.delete_object(cx, pod, &options).await?;
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond::json(201, &body))
    }
}
