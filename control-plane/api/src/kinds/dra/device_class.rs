//! DeviceClasses: devices that are alike to those who claim them.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::GROUP;
use super::requests::{validate_configs, validate_selectors};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, advance_generation, set_generation};
use crate::kinds::walk::same;
use crate::status::FieldErrors;
use crate::table::{age, age_column, name, name_column};
use crate::validation::Path;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(GROUP, "v1", "DeviceClass", "deviceclasses", Classes).build()
}

struct Classes;

impl Strategy for Classes {
    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let changed = !same(&object["spec"], &old["spec"]);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        *object = old.clone();
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        validate_selectors(&spec["selectors"], &path.child("selectors"), &mut errors);
        validate_configs(&spec["config"], &path.child("config"), &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        vec![name_column(), age_column()]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), age(object, now)]
    }
}
