//! What of a definition cannot be checked without CEL: its rules must compile.

use async_trait::async_trait;
use balsa_api::crd::{GROUP, PLURAL};
use balsa_api::kinds::walk::Walk;
use balsa_api::status::{FieldErrors, Status};
use balsa_api::validation::Path;

use super::rules;
use crate::seam::{Admission, AdmissionRequest};

/// Refuses definitions with rules that do not compile.
pub struct DefinitionRules;

#[async_trait]
impl Admission for DefinitionRules {
    async fn mutate(&self, _: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let concerned = request.kind.group == GROUP && request.kind.plural == PLURAL;
        let Some(definition) = &request.object else {
            return Ok(());
        };
        if !concerned || !request.subresource.is_empty() {
            return Ok(());
        }
        let mut errors = FieldErrors::default();
        let path = Path::new("spec").child("versions");
        let before = request.old.map(|old| old["spec"]["versions"].items());
        for (index, version) in definition["spec"]["versions"].items().iter().enumerate() {
            // What was accepted once stays acceptable.
            if before.is_some_and(|before| before.contains(version)) {
                continue;
            }
            let schema = &version["schema"]["openAPIV3Schema"];
            let at = path.index(index).child("schema").child("openAPIV3Schema");
            rules::compile(schema, &at, &mut errors);
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(Status::invalid(
            &request.kind.kind,
            &request.kind.group,
            request.name,
            &errors,
        ))
    }
}
