//! Secrets.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::config_map::{SIZE_LIMIT, validate_frozen};
use super::declare::{Declaration, without_status};
use super::walk::{Walk, child, fill_zero, remove, set};
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, each_invalid, immutable, names};

const REDACTED: &str = "<secret contents redacted>";

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "Secret", "secrets", Secrets).build()
}

struct Secrets;

impl Strategy for Secrets {
    fn default(&self, object: &mut Value) {
        fill_zero(object, "type", "Opaque");
        let plain = remove(object, "stringData").unwrap_or_default();
        if plain.is_empty() {
            return;
        }
        if let Some(data) = child(object, "data") {
            for (key, value) in plain.entries() {
                set(data, key, STANDARD.encode(value.text()));
            }
        }
    }

    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let mut size = 0;
        for (key, value) in object["data"].entries() {
            let path = Path::new("data").key(key);
            each_invalid(&path, key, names::config_map_key(key), &mut errors);
            match STANDARD.decode(value.text()) {
                Ok(bytes) => size += bytes.len(),
                Err(_) => errors.invalid(path, REDACTED, "illegal base64 data"),
            }
        }
        if size > SIZE_LIMIT {
            errors.too_long("data", SIZE_LIMIT);
        }
        validate_type(object, &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        immutable(
            &object["type"],
            &old["type"],
            &Path::new("type"),
            &mut errors,
        );
        validate_frozen(object, old, &["data"], &mut errors);
        errors.extend(self.validate_create(object));
        errors
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        vec![("type".into(), object["type"].text().into())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Type", "string", "What the data is for."),
            column("Data", "integer", "How many keys it has."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            object["type"].text().into(),
            object["data"].entries().count().into(),
            age(object, now),
        ]
    }
}

/// What the well-known types demand.
fn validate_type(object: &Value, errors: &mut FieldErrors) {
    let data = &object["data"];
    let path = Path::new("data");
    let mut require = |key: &str| {
        if data.get(key).is_none() {
            errors.required(path.key(key), "");
        }
    };
    match object["type"].text() {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if object["metadata"]["annotations"][annotation].is_empty() {
                errors.required(
                    Path::new("metadata").child("annotations").key(annotation),
                    "",
                );
            }
        }
        "kubernetes.io/dockercfg" => validate_json(data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => validate_json(data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth"
            if data.get("username").is_none() && data.get("password").is_none() =>
        {
            require("username");
            require("password");
        }
        "kubernetes.io/ssh-auth" => require("ssh-privatekey"),
        "kubernetes.io/tls" => {
            require("tls.crt");
            require("tls.key");
        }
        _ => {}
    }
}

/// A key that has to be there and to be a JSON object.
fn validate_json(data: &Value, key: &str, errors: &mut FieldErrors) {
    let path = Path::new("data").key(key);
    if data.get(key).is_none() {
        errors.required(path, "");
        return;
    }
    let bytes = STANDARD.decode(data[key].text()).unwrap_or_default();
    if let Err(problem) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        errors.invalid(path, REDACTED, problem.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::FieldError;
    use serde_json::json;

    #[test]
    fn plain_strings_become_data_of_an_opaque_secret() {
        let mut secret = json!({"data": {"a": "MQ=="}, "stringData": {"a": "2", "b": "3"}});
        Secrets.default(&mut secret);
        assert_eq!(
            secret,
            json!({"type": "Opaque", "data": {"a": "Mg==", "b": "Mw=="}})
        );
    }

    #[test]
    fn types_demand_their_keys_and_do_not_change() {
        let tls = json!({"type": "kubernetes.io/tls", "data": {"tls.crt": "MQ=="}});
        let texts = |errors: FieldErrors| errors.0.iter().map(FieldError::text).collect::<Vec<_>>();
        assert_eq!(
            texts(Secrets.validate_create(&tls)),
            ["data[tls.key]: Required value"]
        );
        let opaque = json!({"type": "Opaque", "data": {"tls.crt": "MQ=="}});
        assert_eq!(
            texts(Secrets.validate_update(&opaque, &tls)),
            ["type: Invalid value: \"Opaque\": field is immutable"]
        );
    }

    #[test]
    fn errors_never_show_contents() {
        let secret = json!({"type": "Opaque", "data": {"a": "p4ss word"}});
        let text = Secrets.validate_create(&secret).0[0].text();
        assert_eq!(
            text,
            "data[a]: Invalid value: \"<secret contents redacted>\": illegal base64 data"
        );
    }
}
