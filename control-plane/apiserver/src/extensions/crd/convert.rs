//! Conversion between the versions of a custom resource: none but of the apiVersion, or by a webhook.
//!
//! Rules: apiextensions-apiserver `apiserver/conversion`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use balsa_api::status::Status;
use serde_json::{Map, Value, json};

/// Time that a conversion webhook has.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Calls conversion webhooks.
#[async_trait]
pub trait ConversionCaller: Send + Sync {
    /// Posts a review to a webhook, which is described as `spec.conversion.webhook.clientConfig` does. Returns its
    /// answer, or why there is none.
    ///
    /// # Errors
    /// The reason, for people.
    async fn call(
        &self,
        config: &Value,
        review: &Value,
        timeout: Duration,
    ) -> Result<Value, String>;
}

/// For servers that may not call out: every conversion by webhook fails.
pub struct NoConversion;

#[async_trait]
impl ConversionCaller for NoConversion {
    async fn call(&self, _: &Value, _: &Value, _: Duration) -> Result<Value, String> {
        Err("this server calls no webhooks".to_owned())
    }
}

/// How one definition's objects are converted.
pub(super) struct Conversion {
    /// apiVersion that objects are stored in.
    storage: String,
    webhook: Option<Webhook>,
}

struct Webhook {
    config: Value,
    review_version: &'static str,
    caller: Arc<dyn ConversionCaller>,
}

impl Conversion {
    pub fn new(spec: &Value, caller: Arc<dyn ConversionCaller>) -> Self {
        let versions = spec["versions"].items();
        let storage = versions.iter().find(|v| v["storage"].is_true());
        let storage = storage.map(|v| v["name"].text()).unwrap_or_default();
        let conversion = &spec["conversion"];
        let webhook = (conversion["strategy"].text() == "Webhook").then(|| {
            let reviews = conversion["webhook"]["conversionReviewVersions"].items();
            Webhook {
                config: conversion["webhook"]["clientConfig"].clone(),
                // The first that is known; definitions without one are refused.
                review_version: match reviews
                    .iter()
                    .map(Walk::text)
                    .find(|v| matches!(*v, "v1" | "v1beta1"))
                {
                    Some("v1beta1") => "v1beta1",
                    _ => "v1",
                },
                caller,
            }
        });
        Self {
            storage: object::join_api_version(spec["group"].text(), storage),
            webhook,
        }
    }

    /// apiVersion that objects are stored in.
    pub fn storage(&self) -> &str {
        &self.storage
    }

    /// Converts objects, all of them or none.
    ///
    /// # Errors
    /// 500 when a webhook fails or answers with nonsense.
    pub async fn convert(&self, objects: Vec<Value>, wanted: &str) -> Result<Vec<Value>, Status> {
        let Some(webhook) = &self.webhook else {
            let change = |mut object: Value| {
                if let Some(map) = object.as_object_mut() {
                    map.insert("apiVersion".to_owned(), wanted.into());
                }
                object
            };
            return Ok(objects.into_iter().map(change).collect());
        };
        webhook.convert(objects, wanted).await
    }
}

impl Webhook {
    async fn convert(&self, objects: Vec<Value>, wanted: &str) -> Result<Vec<Value>, Status> {
        let first = objects.first().cloned().unwrap_or_default();
        let failed = |why: &str| {
            Status::internal(format!(
                "conversion webhook for {}, Kind={} {why}",
                object::api_version(&first),
                object::kind(&first)
            ))
        };
        let uid = object::new_uid();
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": format!("apiextensions.k8s.io/{}", self.review_version),
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
        });
        let answer = self
            .caller
            .call(&self.config, &review, TIMEOUT)
            .await
            .map_err(|why| failed(&format!("failed: {why}")))?;
        let response = &answer["response"];
        if response["uid"].text() != uid {
            let why = format!(
                "failed: expected response.uid={uid:?}, got {:?}",
                response["uid"].text()
            );
            return Err(failed(&why));
        }
        if response["result"]["status"].text() != "Success" {
            let message = response["result"]["message"].text();
            let message = if message.is_empty() {
                "response.result.status was not 'Success'"
            } else {
                message
            };
            return Err(failed(&format!("failed: {message}")));
        }
        let converted = response["convertedObjects"].items();
        if converted.len() != objects.len() {
            let why = format!(
                "returned {} objects, expected {}",
                converted.len(),
                objects.len()
            );
            return Err(failed(&why));
        }
        let mut out = Vec::with_capacity(objects.len());
        for (index, (original, converted)) in objects.iter().zip(converted).enumerate() {
            let object = restored(original, converted, wanted).map_err(|why| {
                failed(&format!(
                    "returned invalid converted object at index {index}: {why}"
                ))
            })?;
            out.push(object);
        }
        Ok(out)
    }
}

/// A converted object with the metadata that it had: only labels and annotations are the webhook's to change.
fn restored(original: &Value, converted: &Value, wanted: &str) -> Result<Value, String> {
    let (got, kind) = (object::api_version(converted), object::kind(converted));
    if got != wanted {
        return Err(format!(
            "invalid apiVersion: got {got:?}, expected {wanted:?}"
        ));
    }
    if kind != object::kind(original) {
        return Err(format!(
            "invalid kind: got {kind:?}, expected {:?}",
            object::kind(original)
        ));
    }
    if !converted["metadata"].is_object() {
        return Err("metadata is missing in converted object".to_owned());
    }
    for (what, a, b) in [
        ("name", object::name(converted), object::name(original)),
        (
            "namespace",
            object::namespace(converted),
            object::namespace(original),
        ),
        ("UID", object::uid(converted), object::uid(original)),
    ] {
        if a != b {
            return Err(format!(
                "metadata.{} changed: got {a:?}, expected {b:?}",
                what.to_lowercase()
            ));
        }
    }
    let mut metadata: Map<String, Value> = original["metadata"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    for key in ["labels", "annotations"] {
        match converted["metadata"].get(key) {
            Some(value) if !value.is_null() => {
                let texts = value
                    .as_object()
                    .is_some_and(|map| map.values().all(Value::is_string));
                if !texts {
                    return Err(format!("metadata.{key} is no map of strings"));
                }
                metadata.insert(key.to_owned(), value.clone());
            }
            _ => {
                metadata.remove(key);
            }
        }
    }
    let mut object = converted.clone();
    object["metadata"] = metadata.into();
    Ok(object)
}
