//! What one version of a definition says beside its schema: subresources, columns, fields to select by.

use std::collections::HashSet;

use serde_json::Value;

use super::schema;
use crate::crd::jsonpath::JsonPath;
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::Path;

const COLUMN_TYPES: &[&str] = &["integer", "number", "string", "boolean", "date"];
const COLUMN_FORMATS: &[&str] = &[
    "int32",
    "int64",
    "float",
    "double",
    "byte",
    "date",
    "date-time",
    "password",
];
const MAX_SELECTABLE_FIELDS: usize = 8;

pub(super) fn check(version: &Value, path: &Path, errors: &mut FieldErrors) {
    let schema = &version["schema"]["openAPIV3Schema"];
    let at = path.child("schema").child("openAPIV3Schema");
    if schema.is_object() {
        schema::check(schema, &version["subresources"], &at, errors);
    } else {
        errors.required(at, "schemas are required");
    }
    subresources(
        &version["subresources"],
        &path.child("subresources"),
        errors,
    );
    for (index, column) in version["additionalPrinterColumns"]
        .items()
        .iter()
        .enumerate()
    {
        let at = path.child("additionalPrinterColumns").index(index);
        printer_column(column, &at, errors);
    }
    selectable_fields(version, schema, &path.child("selectableFields"), errors);
}

fn subresources(subresources: &Value, path: &Path, errors: &mut FieldErrors) {
    let scale = &subresources["scale"];
    if !scale.is_object() {
        return;
    }
    let path = path.child("scale");
    let mut check = |key: &str, prefixes: &[&str], required: bool| {
        let text = scale[key].text();
        let at = path.child(key);
        if text.is_empty() {
            if required {
                errors.required(at, "");
            }
            return;
        }
        let simple = JsonPath::simple(text);
        let pointer = match &simple {
            Ok(pointer) => pointer.as_str(),
            Err(why) => {
                errors.invalid(at, text, why.to_string());
                return;
            }
        };
        let below = |prefix: &&str| pointer.starts_with(&format!("/{prefix}/"));
        if !prefixes.iter().any(below) {
            let list: Vec<String> = prefixes.iter().map(|p| format!(".{p}")).collect();
            errors.invalid(
                at,
                text,
                format!("should be a json path under {}", list.join(" or ")),
            );
        }
    };
    check("specReplicasPath", &["spec"], true);
    check("statusReplicasPath", &["status"], true);
    check("labelSelectorPath", &["spec", "status"], false);
}

fn printer_column(column: &Value, path: &Path, errors: &mut FieldErrors) {
    if column["name"].text().is_empty() {
        errors.required(path.child("name"), "");
    }
    let type_ = column["type"].text();
    if type_.is_empty() {
        errors.required(
            path.child("type"),
            format!("must be one of {}", COLUMN_TYPES.join(",")),
        );
    } else if !COLUMN_TYPES.contains(&type_) {
        errors.invalid(
            path.child("type"),
            type_,
            format!("must be one of {}", COLUMN_TYPES.join(",")),
        );
    }
    let format = column["format"].text();
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        errors.invalid(
            path.child("format"),
            format,
            format!("must be one of {}", COLUMN_FORMATS.join(",")),
        );
    }
    let json_path = column["jsonPath"].text();
    let at = path.child("jsonPath");
    if json_path.is_empty() {
        errors.required(at, "");
    } else if !json_path.starts_with('.') {
        errors.invalid(
            at,
            json_path,
            "must be a json path under an object, starting with a dot",
        );
    } else if let Err(why) = JsonPath::parse(json_path) {
        errors.invalid(at, json_path, why.to_string());
    }
}

fn selectable_fields(version: &Value, schema: &Value, path: &Path, errors: &mut FieldErrors) {
    let fields = version["selectableFields"].items();
    if fields.len() > MAX_SELECTABLE_FIELDS {
        errors.too_many(path.clone(), fields.len(), MAX_SELECTABLE_FIELDS);
    }
    let mut seen = HashSet::new();
    for (index, field) in fields.iter().enumerate() {
        let text = field["jsonPath"].text();
        let at = path.index(index).child("jsonPath");
        if text.is_empty() {
            errors.required(at, "");
            continue;
        }
        let pointer = match JsonPath::simple(text) {
            Ok(pointer) => pointer,
            Err(why) => {
                errors.invalid(at, text, format!("is an invalid path: {why}"));
                continue;
            }
        };
        if pointer.starts_with("/metadata/") || pointer == "/metadata" {
            errors.invalid(at, text, "must not point to fields in metadata");
            continue;
        }
        let mut found = schema;
        for name in pointer.split('/').skip(1) {
            found = &found["properties"][name];
        }
        match found["type"].text() {
            "string" | "boolean" | "integer" => {}
            "" => errors.invalid(
                at.clone(),
                text,
                "is an invalid path: does not refer to a valid field",
            ),
            _ => errors.invalid(
                at.clone(),
                text,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            ),
        }
        if !seen.insert(text) {
            errors.duplicate(at, text);
        }
    }
}
