//! Managed fields and server-side apply, in the registry's terms.

use balsa_api::apply::{self, Manager};
use balsa_api::object;
use balsa_api::schema::conform::conform_whole;
use balsa_api::status::Status;
use jiff::Timestamp;
use serde_json::Value;

use crate::registry::Target;
use crate::render::api_version;

/// Records in managedFields who changed what.
pub fn track(
    target: &Target,
    old: Option<&Value>,
    new: &mut Value,
    manager: &str,
    subresource: &str,
) {
    let Some(type_) = target.type_() else {
        return;
    };
    let api_version = api_version(&target.kind);
    let manager = Manager {
        name: manager,
        api_version: &api_version,
        subresource,
        time: Timestamp::now(),
    };
    apply::update_managed_fields(type_, new, old, &manager, reset(target, subresource));
}

/// What cannot be set through a resource or subresource, and so has no owner there.
fn reset(target: &Target, subresource: &str) -> &'static [&'static str] {
    let has_status = target.kind.subresources.iter().any(|s| s.name == "status");
    match (subresource, has_status) {
        ("status", _) => &["spec"],
        (_, true) => &["status"],
        _ => &[],
    }
}

/// The object as an apply patch makes it, managed fields included.
pub fn apply(
    target: &Target,
    old: Option<&Value>,
    patch: &Value,
    manager: &str,
    subresource: &str,
    force: bool,
) -> Result<Value, Status> {
    let Some(type_) = target.type_() else {
        return Err(Status::new(
            415,
            "UnsupportedMediaType",
            "server-side apply needs a schema, and this kind has none",
        ));
    };
    let api_version = api_version(&target.kind);
    let manager = Manager {
        name: manager,
        api_version: &api_version,
        subresource,
        time: Timestamp::now(),
    };
    let reset = reset(target, subresource);
    let mut new = apply::apply(type_, old, patch, &manager, force, reset)?;
    if target.custom.is_none() {
        conform_whole(type_, &mut new).map_err(Status::bad_request)?;
    }
    if let Some(old) = old {
        // The precondition was the patch's; the rest of the identity stays.
        let wanted = object::resource_version(patch);
        let version = if wanted.is_empty() {
            object::resource_version(old)
        } else {
            wanted
        }
        .to_owned();
        object::set_resource_version(&mut new, &version);
    }
    Ok(new)
}
