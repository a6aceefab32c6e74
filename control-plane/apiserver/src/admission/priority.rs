//! Priority: a pod's class becomes a number and a preemption policy.

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::status::Status;
use serde_json::Value;

use super::{is, refuse};
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

const GROUP: &str = "scheduling.k8s.io";
/// Classes that exist whether or not there is an object for them.
const BUILT_IN: [(&str, i64); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];
const PREEMPT: &str = "PreemptLowerPriority";

/// See the module.
pub struct Priority {
    reader: Arc<dyn ObjectReader>,
}

/// What a class says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Class {
    name: String,
    value: i64,
    policy: String,
}

impl Class {
    fn from_object(object: &Value) -> Self {
        Self {
            name: object["metadata"]["name"]
                .as_str()
                .unwrap_or_default()
                .into(),
            value: object["value"].as_i64().unwrap_or_default(),
            policy: object["preemptionPolicy"]
                .as_str()
                .unwrap_or(PREEMPT)
                .into(),
        }
    }
}

impl Priority {
    /// Over the PriorityClasses of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    fn class(&self, name: &str) -> Option<Class> {
        if let Some(object) = self.reader.get(GROUP, "priorityclasses", "", name) {
            return Some(Class::from_object(&object));
        }
        let (name, value) = BUILT_IN.into_iter().find(|(n, _)| *n == name)?;
        Some(Class {
            name: name.into(),
            value,
            policy: PREEMPT.into(),
        })
    }

    /// The class of pods that name none: of those marked so the one with the smallest value.
    fn default_class(&self) -> Class {
        self.reader
            .list(GROUP, "priorityclasses", None)
            .iter()
            .filter(|c| c["globalDefault"] == true)
            .map(|c| Class::from_object(c))
            .min_by_key(|c| c.value)
            .unwrap_or_else(|| Class {
                name: String::new(),
                value: 0,
                policy: PREEMPT.into(),
            })
    }

    fn of_pod(&self, spec: &Value) -> Result<Class, String> {
        let class = match spec["priorityClassName"].as_str().filter(|n| !n.is_empty()) {
            Some(name) => self
                .class(name)
                .ok_or_else(|| format!("no PriorityClass with name {name} was found"))?,
            None => self.default_class(),
        };
        if let Some(given) = spec["priority"].as_i64().filter(|p| *p != class.value) {
            return Err(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission \
                 controller computed {} from the given PriorityClass name",
                class.value
            ));
        }
        if let Some(given) = spec["preemptionPolicy"]
            .as_str()
            .filter(|p| *p != class.policy)
        {
            return Err(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority \
                 admission controller computed {} from the given PriorityClass name",
                class.policy
            ));
        }
        Ok(class)
    }
}

#[async_trait]
impl Admission for Priority {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is(request, "", "pods") {
            return Ok(());
        }
        let old = request.old;
        match (request.operation, request.object.as_deref_mut()) {
            (Operation::Create, Some(pod)) => {
                let class = match self.of_pod(&pod["spec"]) {
                    Ok(class) => class,
                    Err(why) => return Err(refuse(request, &why)),
                };
                if !class.name.is_empty() {
                    pod["spec"]["priorityClassName"] = class.name.into();
                }
                pod["spec"]["priority"] = class.value.into();
                pod["spec"]["preemptionPolicy"] = class.policy.into();
            }
            (Operation::Update, Some(pod)) => {
                // What was computed once stays, though a client leaves it out.
                for field in ["priority", "preemptionPolicy"] {
                    if let Some(was) = old.map(|o| &o["spec"][field]).filter(|v| !v.is_null())
                        && pod["spec"][field].is_null()
                    {
                        pod["spec"][field] = was.clone();
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let Some(class) = request
            .object
            .as_deref()
            .filter(|_| writes && is(request, GROUP, "priorityclasses"))
        else {
            return Ok(());
        };
        if class["globalDefault"] != true {
            return Ok(());
        }
        let current = self.default_class().name;
        if current.is_empty() || class["metadata"]["name"] == current.as_str() {
            return Ok(());
        }
        let why = format!(
            "PriorityClass {current} is already marked as default. Only one default can exist"
        );
        Err(refuse(request, &why))
    }
}
