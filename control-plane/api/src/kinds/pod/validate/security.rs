//! Security contexts and host namespaces.

use serde_json::Value;

use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::{Path, each_invalid, names, one_of, one_of_or_none};

const MAX_ID: i64 = i32::MAX as i64;

/// The pod's security context and what of the host it shares.
pub(super) fn validate_pod(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let context = &spec["securityContext"];
    let path = path.child("securityContext");
    if spec["hostPID"].is_true() && spec["shareProcessNamespace"].is_true() {
        errors.invalid(
            path.child("shareProcessNamespace"),
            true,
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    if spec["hostUsers"] == false {
        for (field, name) in [
            ("hostNetwork", "hostNetwork"),
            ("hostPID", "HostPID"),
            ("hostIPC", "HostIPC"),
        ] {
            if spec[field].is_true() {
                errors.forbidden(
                    path.child(field),
                    format!("when `hostUsers` is false, {name} may not be set"),
                );
            }
        }
    }
    ids(
        context,
        &["runAsUser", "runAsGroup", "fsGroup"],
        &path,
        errors,
    );
    for (i, group) in context["supplementalGroups"].items().iter().enumerate() {
        if let Some(id) = group.int().filter(|id| !(0..=MAX_ID).contains(id)) {
            errors.invalid(
                path.child("supplementalGroups").index(i),
                id,
                names::range_error(0, MAX_ID),
            );
        }
    }
    one_of_or_none(
        &context["fsGroupChangePolicy"],
        &["Always", "OnRootMismatch"],
        &path.child("fsGroupChangePolicy"),
        errors,
    );
    one_of_or_none(
        &context["supplementalGroupsPolicy"],
        &["Merge", "Strict"],
        &path.child("supplementalGroupsPolicy"),
        errors,
    );
    profile(
        &context["seccompProfile"],
        "seccomp",
        &path.child("seccompProfile"),
        errors,
    );
    profile(
        &context["appArmorProfile"],
        "AppArmor",
        &path.child("appArmorProfile"),
        errors,
    );
    sysctls(&context["sysctls"], &path.child("sysctls"), errors);
}

fn ids(context: &Value, fields: &[&str], path: &Path, errors: &mut FieldErrors) {
    for field in fields {
        if let Some(id) = context[*field]
            .int()
            .filter(|id| !(0..=MAX_ID).contains(id))
        {
            errors.invalid(path.child(field), id, names::range_error(0, MAX_ID));
        }
    }
}

fn profile(profile: &Value, what: &str, path: &Path, errors: &mut FieldErrors) {
    if profile.is_null() {
        return;
    }
    one_of(
        &profile["type"],
        &["Localhost", "RuntimeDefault", "Unconfined"],
        &path.child("type"),
        errors,
    );
    let file = profile["localhostProfile"].text();
    let path = path.child("localhostProfile");
    if profile["type"] == "Localhost" {
        if file.is_empty() {
            errors.required(path, format!("must be set when {what} type is Localhost"));
        } else if what == "seccomp" {
            super::containers::local_path(file, &path, errors);
        }
    } else if profile["localhostProfile"].present() {
        errors.invalid(
            path,
            file,
            format!("can only be set when {what} type is Localhost"),
        );
    }
}

fn sysctls(list: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut seen = std::collections::BTreeSet::new();
    for (i, sysctl) in list.items().iter().enumerate() {
        let path = path.index(i).child("name");
        let name = sysctl["name"].text();
        if name.is_empty() {
            errors.required(path, "");
        } else if name.len() > 253 || !name.split(['.', '/']).all(is_sysctl_segment) {
            errors.invalid(path, name, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$");
        } else if !seen.insert(name.replace('/', ".")) {
            errors.duplicate(path, name);
        }
    }
}

fn is_sysctl_segment(segment: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !segment.is_empty()
        && segment.starts_with(edge)
        && segment.ends_with(edge)
        && segment.chars().all(|c| edge(c) || c == '-' || c == '_')
}

/// A container's security context.
pub(super) fn validate_container(context: &Value, path: &Path, errors: &mut FieldErrors) {
    ids(context, &["runAsUser", "runAsGroup"], path, errors);
    if context["procMount"].present() {
        one_of(
            &context["procMount"],
            &["Default", "Unmasked"],
            &path.child("procMount"),
            errors,
        );
    }
    profile(
        &context["seccompProfile"],
        "seccomp",
        &path.child("seccompProfile"),
        errors,
    );
    profile(
        &context["appArmorProfile"],
        "AppArmor",
        &path.child("appArmorProfile"),
        errors,
    );
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"].is_true() {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        let added = context["capabilities"]["add"].items();
        if added.iter().any(|c| matches!(c.text(), "CAP_SYS_ADMIN")) {
            errors.invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
    let user = context["windowsOptions"]["gmsaCredentialSpecName"].text();
    if !user.is_empty() {
        let path = path.child("windowsOptions").child("gmsaCredentialSpecName");
        each_invalid(&path, user, names::dns1123_subdomain(user), errors);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_sysctls_are_made_of_segments() {
        let mut errors = FieldErrors::default();
        let list = json!([{"name": "foo-"}, {"name": "kernel.shmmax"}, {"name": "safe-and_unsafe"},
            {"name": "net/ipv4/conf.eth0"}, {"name": "bar.."}]);
        sysctls(&list, &Path::new("sysctls"), &mut errors);
        let fields: Vec<&str> = errors.0.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["sysctls[0].name", "sysctls[4].name"]);
    }
}
