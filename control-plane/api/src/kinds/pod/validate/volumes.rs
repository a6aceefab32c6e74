//! Volumes and their sources.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::containers::{local_path, no_backsteps};
use super::env::{VOLUME_FIELDS, validate_field_ref, validate_resource_ref};
use crate::kinds::amounts;
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::{Path, each_invalid, names, one_of, one_of_or_none};

/// The valid volumes of a pod and the name of the source of each.
pub(super) type Volumes = BTreeMap<String, String>;

const SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];
const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

pub(super) fn validate_volumes(volumes: &Value, path: &Path, errors: &mut FieldErrors) -> Volumes {
    let mut valid = Volumes::new();
    for (i, volume) in volumes.items().iter().enumerate() {
        let path = path.index(i);
        let before = errors.0.len();
        let source = validate_source(volume, &path, errors);
        match volume["name"].text() {
            "" => errors.required(path.child("name"), ""),
            name => {
                each_invalid(
                    &path.child("name"),
                    name,
                    names::dns1123_label(name),
                    errors,
                );
                if valid.contains_key(name) {
                    errors.duplicate(path.child("name"), name);
                }
                // Mounts of a volume with problems are complained about too, as upstream does.
                if errors.0.len() == before {
                    valid.insert(name.to_owned(), source.to_owned());
                }
            }
        }
    }
    valid
}

/// The name of the source.
fn validate_source(volume: &Value, path: &Path, errors: &mut FieldErrors) -> &'static str {
    let mut found = "";
    for source in SOURCES.iter().filter(|s| volume[**s].present()) {
        let path = path.child(source);
        if found.is_empty() {
            found = source;
            validate_one(source, &volume[*source], &path, errors);
        } else {
            errors.forbidden(path, "may not specify more than 1 volume type");
        }
    }
    if found.is_empty() {
        errors.required(path, "must specify a volume type");
    }
    found
}

fn validate_one(source: &str, value: &Value, path: &Path, errors: &mut FieldErrors) {
    match source {
        "emptyDir" if value["sizeLimit"].present() => {
            amounts::validate_non_negative(&value["sizeLimit"], &path.child("sizeLimit"), errors);
        }
        "hostPath" => {
            required(value, &["path"], path, errors);
            no_backsteps(value["path"].text(), &path.child("path"), errors);
            let type_ = value["type"].text();
            if !HOST_PATH_TYPES.contains(&type_) {
                errors.not_supported(path.child("type"), type_, HOST_PATH_TYPES);
            }
        }
        "configMap" | "secret" => {
            required(
                value,
                &[if source == "secret" {
                    "secretName"
                } else {
                    "name"
                }],
                path,
                errors,
            );
            default_mode(value, path, errors);
            key_paths(&value["items"], &path.child("items"), errors);
        }
        "downwardAPI" => {
            default_mode(value, path, errors);
            for (i, file) in value["items"].items().iter().enumerate() {
                downward_file(file, &path.child("items").index(i), errors);
            }
        }
        "projected" => {
            default_mode(value, path, errors);
            projections(value, path, errors);
        }
        "persistentVolumeClaim" => required(value, &["claimName"], path, errors),
        "nfs" => {
            required(value, &["server", "path"], path, errors);
            if !value["path"].is_empty() && !value["path"].text().starts_with('/') {
                errors.invalid(
                    path.child("path"),
                    value["path"].text(),
                    "must be an absolute path",
                );
            }
        }
        "image" => {
            one_of_or_none(
                &value["pullPolicy"],
                &["Always", "IfNotPresent", "Never"],
                &path.child("pullPolicy"),
                errors,
            );
        }
        "csi" => required(value, &["driver"], path, errors),
        "ephemeral" => required(value, &["volumeClaimTemplate"], path, errors),
        "iscsi" => required(value, &["targetPortal", "iqn"], path, errors),
        "flexVolume" => required(value, &["driver"], path, errors),
        _ => {}
    }
}

fn required(value: &Value, fields: &[&str], path: &Path, errors: &mut FieldErrors) {
    for field in fields {
        if value[*field].is_empty() {
            errors.required(path.child(field), "");
        }
    }
}

fn default_mode(value: &Value, path: &Path, errors: &mut FieldErrors) {
    mode(&value["defaultMode"], &path.child("defaultMode"), errors);
}

fn mode(value: &Value, path: &Path, errors: &mut FieldErrors) {
    if let Some(mode) = value.int().filter(|m| !(0..=0o777).contains(m)) {
        errors.invalid(path, mode, MODE);
    }
}

fn key_paths(items: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, item) in items.items().iter().enumerate() {
        let path = path.index(i);
        required(item, &["key", "path"], &path, errors);
        file_path(item["path"].text(), &path.child("path"), errors);
        mode(&item["mode"], &path.child("mode"), errors);
    }
}

/// Paths starting with two dots are the volume writer's own.
fn file_path(value: &str, path: &Path, errors: &mut FieldErrors) {
    local_path(value, path, errors);
    if value.starts_with("..") && !value.starts_with("../") && value != ".." {
        errors.invalid(path, value, "must not start with '..'");
    }
}

fn downward_file(file: &Value, path: &Path, errors: &mut FieldErrors) {
    if file["path"].is_empty() {
        errors.required(path.child("path"), "");
    }
    file_path(file["path"].text(), &path.child("path"), errors);
    if file["fieldRef"].present() {
        validate_field_ref(
            &file["fieldRef"],
            VOLUME_FIELDS,
            &path.child("fieldRef"),
            errors,
        );
        if file["resourceFieldRef"].present() {
            errors.invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            );
        }
    } else if file["resourceFieldRef"].present() {
        validate_resource_ref(
            &file["resourceFieldRef"],
            true,
            &path.child("resourceFieldRef"),
            errors,
        );
    } else {
        errors.required(path, "one of fieldRef and resourceFieldRef is required");
    }
    mode(&file["mode"], &path.child("mode"), errors);
}

fn projections(value: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut files = BTreeSet::new();
    for (i, source) in value["sources"].items().iter().enumerate() {
        let path = path.child("sources").index(i);
        let kinds = [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ];
        let mut found = 0;
        for kind in kinds.iter().filter(|k| source[**k].present()) {
            found += 1;
            let path = path.child(kind);
            if found > 1 {
                errors.forbidden(path, "may not specify more than 1 volume type");
                continue;
            }
            projection(kind, &source[*kind], &path, errors);
            conflicts(kind, &source[*kind], &mut files, &path, errors);
        }
        if found == 0 {
            errors.required(path, "must specify a volume type");
        }
    }
}

fn projection(kind: &str, source: &Value, path: &Path, errors: &mut FieldErrors) {
    match kind {
        "secret" | "configMap" => {
            required(source, &["name"], path, errors);
            key_paths(&source["items"], &path.child("items"), errors);
        }
        "downwardAPI" => {
            for (i, file) in source["items"].items().iter().enumerate() {
                downward_file(file, &path.child("items").index(i), errors);
            }
        }
        "serviceAccountToken" => {
            let seconds = source["expirationSeconds"].int().unwrap_or(3600);
            let path_of = path.child("expirationSeconds");
            if seconds < 600 {
                errors.invalid(
                    path_of,
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            } else if seconds > 1 << 32 {
                errors.invalid(
                    path_of,
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
            required(source, &["path"], path, errors);
            file_path(source["path"].text(), &path.child("path"), errors);
        }
        "clusterTrustBundle" => required(source, &["path"], path, errors),
        _ => {
            one_of(
                &source["keyType"],
                &[
                    "RSA3072",
                    "RSA4096",
                    "ECDSAP256",
                    "ECDSAP384",
                    "ECDSAP521",
                    "ED25519",
                ],
                &path.child("keyType"),
                errors,
            );
        }
    }
}

/// Two sources of a projected volume cannot write the same file.
fn conflicts<'a>(
    kind: &str,
    source: &'a Value,
    files: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let items = source["items"]
        .items()
        .iter()
        .map(|item| item["path"].text());
    let own =
        matches!(kind, "serviceAccountToken" | "clusterTrustBundle").then(|| source["path"].text());
    for file in items.chain(own) {
        if !file.is_empty() && !files.insert(file) {
            let owner = source["name"].text();
            errors.invalid(
                path,
                if owner.is_empty() { file } else { owner },
                "conflicting duplicate paths",
            );
        }
    }
}
