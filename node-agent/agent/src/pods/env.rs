//! A container's environment.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, Pod, Service};

use super::env_file;
use super::fields::{self, Facts};
use crate::objects::Sources;
use crate::volumes::Prepared;

/// What a container's environment is made from.
#[derive(Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) sources: &'a Sources,
    pub(crate) facts: &'a Facts,
    /// Variables about Services.
    pub(crate) services: &'a BTreeMap<String, String>,
    /// Volumes, for variables from their files.
    pub(crate) volumes: &'a Prepared,
}

/// The environment in the order of the spec, service variables last; the error is for people.
pub(crate) fn build(given: &Given<'_>) -> Result<Vec<(String, String)>, String> {
    let Given {
        container,
        sources,
        services,
        ..
    } = *given;
    let mut env = Ordered::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(object) = sources.config_map(&reference.name, optional)? {
                for (key, value) in object.data.iter().flatten() {
                    env.set(format!("{prefix}{key}"), value.clone());
                }
            }
        }
        if let Some(reference) = &from.secret_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(object) = sources.secret(&reference.name, optional)? {
                for (key, value) in object.data.iter().flatten() {
                    env.set(
                        format!("{prefix}{key}"),
                        String::from_utf8_lossy(&value.0).into_owned(),
                    );
                }
            }
        }
    }
    for var in container.env.iter().flatten() {
        if let Some(value) = value_of(given, var, &env)? {
            env.set(var.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !env.contains(name) {
            env.set(name.clone(), value.clone());
        }
    }
    Ok(env.0)
}

#[derive(Default)]
struct Ordered(Vec<(String, String)>);

impl Ordered {
    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

fn value_of(given: &Given<'_>, var: &EnvVar, env: &Ordered) -> Result<Option<String>, String> {
    if let Some(from) = &var.value_from {
        return from_source(given, from);
    }
    let lookup = |name: &str| {
        env.get(name)
            .or_else(|| given.services.get(name).map(String::as_str))
            .map(str::to_owned)
    };
    Ok(Some(expand(
        var.value.as_deref().unwrap_or_default(),
        lookup,
    )))
}

fn from_source(given: &Given<'_>, from: &EnvVarSource) -> Result<Option<String>, String> {
    let Given {
        pod,
        container: own,
        sources,
        facts,
        ..
    } = *given;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(selector) = &from.field_ref {
        return fields::field(pod, facts, selector).map(Some);
    }
    if let Some(selector) = &from.resource_field_ref {
        let spec = pod.spec.as_ref();
        // Without a name the container means itself.
        let name = selector
            .container_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or(&own.name);
        let container = spec.and_then(|spec| balsa_pod::spec::container(spec, name));
        let container = container.ok_or_else(|| format!("container {name} not found"))?;
        return fields::resource(&container, facts, selector).map(Some);
    }
    if let Some(selector) = &from.file_key_ref {
        return env_file::value(given.volumes, selector);
    }
    if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let Some(object) = sources.config_map(&reference.name, optional)? else {
            return Ok(None);
        };
        return match object
            .data
            .as_ref()
            .and_then(|data| data.get(&reference.key))
        {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            )),
        };
    }
    if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let Some(object) = sources.secret(&reference.name, optional)? else {
            return Ok(None);
        };
        return match object
            .data
            .as_ref()
            .and_then(|data| data.get(&reference.key))
        {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                reference.key, reference.name
            )),
        };
    }
    Ok(Some(String::new()))
}

/// Replaces `$(NAME)`; unknown names stay as they are, `$$` is one dollar.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// [`expand`] for each of a command's words.
pub(crate) fn expand_all(words: Option<&Vec<String>>, env: &[(String, String)]) -> Vec<String> {
    let known: HashMap<&str, &str> = env
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let lookup = |name: &str| known.get(name).map(|value| (*value).to_owned());
    words
        .into_iter()
        .flatten()
        .map(|word| expand(word, lookup))
        .collect()
}

/// Variables about Services, in the form that Docker links once had. `kubernetes` of `default` is always
/// among them; the others only for pods that want links.
pub(crate) fn service_variables<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut chosen: BTreeMap<&str, &Service> = BTreeMap::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let own = service.metadata.namespace.as_deref().unwrap_or_default();
        if own == namespace && links {
            chosen.insert(name, service);
        } else if own == "default" && name == "kubernetes" {
            chosen.entry(name).or_insert(service);
        }
    }
    for (name, service) in chosen {
        add_service(&mut variables, name, service);
    }
    variables
}

fn add_service(variables: &mut BTreeMap<String, String>, name: &str, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let ip = spec.cluster_ip.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first().filter(|_| !ip.is_empty() && ip != "None") else {
        return;
    };
    let constant = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = constant(name);
    let host = if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    };
    variables.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
    variables.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            variables.insert(
                format!("{prefix}_SERVICE_PORT_{}", constant(port_name)),
                port.port.to_string(),
            );
        }
    }
    let url = |port: i32, protocol: &str| format!("{}://{host}:{port}", protocol.to_lowercase());
    variables.insert(
        format!("{prefix}_PORT"),
        url(first.port, first.protocol.as_deref().unwrap_or("TCP")),
    );
    for port in ports {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let prefix = format!("{prefix}_PORT_{}_{protocol}", port.port);
        variables.insert(prefix.clone(), url(port.port, protocol));
        variables.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
        variables.insert(format!("{prefix}_PORT"), port.port.to_string());
        variables.insert(format!("{prefix}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn references_expand_and_dollars_escape() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, wanted) in [
            ("$(A)-$(A)", "1-1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $( $", "$A $( $"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(expand(text, lookup), wanted, "{text}");
        }
    }

    #[test]
    fn variables_see_those_before_them_and_services() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [{"name": "c", "env": [
                {"name": "A", "value": "$(B)"}, {"name": "B", "value": "x"}, {"name": "C", "value": "$(B)$(S)"},
                {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]}
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let services = BTreeMap::from([("S".to_owned(), "s".to_owned())]);
        let env = build(&Given {
            pod: &pod,
            container,
            sources: &Sources::default(),
            facts: &Facts::default(),
            services: &services,
            volumes: &Prepared::new(),
        })
        .unwrap();
        let wanted = [
            ("A", "$(B)"),
            ("B", "x"),
            ("C", "xs"),
            ("N", "p"),
            ("S", "s"),
        ];
        assert_eq!(
            env,
            wanted.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }

    #[test]
    fn a_missing_config_map_is_told_by_name_unless_optional() {
        let pod = |optional: bool| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"namespace": "n"}, "spec": {"containers": [{"name": "c",
                "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k",
                "optional": optional}}}]}]}}),
            )
            .unwrap()
        };
        let env = |pod: &Pod| {
            let container = &pod.spec.as_ref().unwrap().containers[0];
            build(&Given {
                pod,
                container,
                sources: &Sources::default(),
                facts: &Facts::default(),
                services: &BTreeMap::new(),
                volumes: &Prepared::new(),
            })
        };
        assert_eq!(
            env(&pod(false)),
            Err("configmap \"m\" not found".to_owned())
        );
        assert_eq!(env(&pod(true)), Ok(Vec::new()));
    }

    #[test]
    fn services_appear_as_host_port_and_links() {
        let service = |namespace: &str, name: &str| -> Service {
            serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}}))
            .unwrap()
        };
        let services = [
            service("default", "kubernetes"),
            service("n", "my-db"),
            service("other", "x"),
        ];
        let variables = service_variables(services.iter(), "n", true);
        assert_eq!(variables["KUBERNETES_SERVICE_HOST"], "10.96.0.1");
        assert_eq!(variables["MY_DB_SERVICE_PORT_HTTPS"], "443");
        assert_eq!(variables["MY_DB_PORT_443_TCP"], "tcp://10.96.0.1:443");
        assert!(!variables.keys().any(|name| name.starts_with("X_")));
        let without = service_variables(services.iter(), "n", false);
        assert!(without.keys().all(|name| name.starts_with("KUBERNETES_")));
    }
}
