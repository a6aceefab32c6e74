//! For whom a node agent may get tokens (`ServiceAccountNodeAudienceRestriction`, on by default since v1.33): for
//! those that the pod's volumes name, and those that an administrator allows it.

use std::sync::Arc;

use serde_json::Value;

use crate::seam::{Attributes, Authorizer, Decision, ObjectReader, User};

/// The verb of rules that allow one: the audience stands where resources do.
const VERB: &str = "request-serviceaccounts-token-audience";

/// Who asks for a token of what account.
pub(super) struct Asking<'a> {
    pub(super) user: &'a User,
    pub(super) namespace: &'a str,
    pub(super) account: &'a str,
}

/// Says why not. No audience means the API server's.
pub(super) async fn check(
    reader: &dyn ObjectReader,
    authorizer: &dyn Authorizer,
    asking: &Asking<'_>,
    pod: &Value,
    audiences: &[String],
) -> Result<(), String> {
    let audience = match audiences {
        [] => "",
        [one] => one,
        _ => return Err("node may only request 0 or 1 audiences".to_owned()),
    };
    if is_mentioned(reader, asking.namespace, pod, audience) {
        return Ok(());
    }
    let attributes = Attributes {
        user: Arc::new(asking.user.clone()),
        verb: VERB.to_owned(),
        namespace: asking.namespace.to_owned(),
        resource: audience.to_owned(),
        name: asking.account.to_owned(),
        ..Attributes::default()
    };
    match authorizer.authorize(&attributes).await {
        Decision::Allow(_) => Ok(()),
        Decision::NoOpinion(_) => Err(format!(
            "audience {audience:?} not found in pod spec volume, nor may the node request it for {:?}",
            asking.account
        )),
    }
}

/// Whether a volume of a pod wants tokens for an audience.
fn is_mentioned(reader: &dyn ObjectReader, namespace: &str, pod: &Value, audience: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.into_iter().any(|volume| {
        let sources = volume["projected"]["sources"].as_array();
        let projected = sources.into_iter().flatten().any(|source| {
            let token = &source["serviceAccountToken"];
            token.is_object() && token["audience"].as_str().unwrap_or_default() == audience
        });
        projected
            || driver(reader, namespace, pod, volume)
                .is_some_and(|driver| has_audience(reader, &driver, audience))
    })
}

/// The CSI driver of a volume: its own, or that of the volume that its claim is bound to.
fn driver(
    reader: &dyn ObjectReader,
    namespace: &str,
    pod: &Value,
    volume: &Value,
) -> Option<String> {
    if let Some(driver) = volume["csi"]["driver"].as_str() {
        return Some(driver.to_owned());
    }
    let claim = if volume["ephemeral"].is_object() {
        let (pod, volume) = (&pod["metadata"]["name"], &volume["name"]);
        format!("{}-{}", pod.as_str()?, volume.as_str()?)
    } else {
        volume["persistentVolumeClaim"]["claimName"]
            .as_str()?
            .to_owned()
    };
    let claim = reader.get("", "persistentvolumeclaims", namespace, &claim)?;
    let name = claim["spec"]["volumeName"].as_str()?;
    let volume = reader.get("", "persistentvolumes", "", name)?;
    volume["spec"]["csi"]["driver"].as_str().map(str::to_owned)
}

fn has_audience(reader: &dyn ObjectReader, driver: &str, audience: &str) -> bool {
    let driver = reader.get("storage.k8s.io", "csidrivers", "", driver);
    driver.is_some_and(|driver| {
        let requests = driver["spec"]["tokenRequests"].as_array();
        let mut requests = requests.into_iter().flatten();
        requests.any(|request| request["audience"].as_str().unwrap_or_default() == audience)
    })
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use serde_json::json;

    use super::*;
    use crate::authz::fake::Objects;

    /// An administrator allows nodes to ask for tokens of one account for a registry.
    struct Rules;

    #[async_trait]
    impl Authorizer for Rules {
        async fn authorize(&self, asked: &Attributes) -> Decision {
            let asked = (&*asked.verb, &*asked.resource, &*asked.name);
            if asked == (VERB, "registry", "robot") {
                Decision::Allow(String::new())
            } else {
                Decision::NoOpinion(String::new())
            }
        }
    }

    fn objects() -> Objects {
        let claim = |name: &str, volume: &str| json!({"metadata": {"namespace": "d", "name": name}, "spec": {"volumeName": volume}});
        let driver = |name: &str, audience: &str| json!({"metadata": {"name": name}, "spec": {"tokenRequests": [{"audience": audience}]}});
        let volume = json!({"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "disks"}}});
        Objects::new()
            .with("", "persistentvolumeclaims", claim("c", "pv"))
            .with("", "persistentvolumeclaims", claim("p-scratch", "pv"))
            .with("", "persistentvolumes", volume)
            .with("storage.k8s.io", "csidrivers", driver("disks", "disk"))
            .with("storage.k8s.io", "csidrivers", driver("inline", "secrets"))
    }

    async fn may(volumes: Value, audiences: &[&str]) -> bool {
        let pod =
            json!({"metadata": {"namespace": "d", "name": "p"}, "spec": {"volumes": volumes}});
        let audiences: Vec<_> = audiences.iter().map(|one| (*one).to_owned()).collect();
        let asking = Asking {
            user: &User::default(),
            namespace: "d",
            account: "robot",
        };
        let checked = check(&objects(), &Rules, &asking, &pod, &audiences).await;
        checked.is_ok()
    }

    #[tokio::test]
    async fn what_the_pods_volumes_name_may_be_asked_for() {
        let token =
            |token: Value| json!([{"projected": {"sources": [{"serviceAccountToken": token}]}}]);
        assert!(may(token(json!({})), &[]).await);
        assert!(may(token(json!({"audience": "vault"})), &["vault"]).await);
        assert!(may(json!([{"csi": {"driver": "inline"}}]), &["secrets"]).await);
        let claim = json!([{"persistentVolumeClaim": {"claimName": "c"}}]);
        assert!(may(claim, &["disk"]).await);
        let own = json!([{"name": "scratch", "ephemeral": {}}]);
        assert!(may(own, &["disk"]).await);
    }

    #[tokio::test]
    async fn nothing_else_may_unless_it_is_allowed() {
        let token =
            json!([{"projected": {"sources": [{"serviceAccountToken": {"audience": "vault"}}]}}]);
        assert!(!may(token.clone(), &[]).await, "the API server's");
        assert!(!may(token.clone(), &["bank"]).await);
        assert!(!may(token.clone(), &["vault", "vault"]).await);
        assert!(!may(json!([{"csi": {"driver": "inline"}}]), &["disk"]).await);
        assert!(
            !may(
                json!([{"persistentVolumeClaim": {"claimName": "gone"}}]),
                &["disk"]
            )
            .await
        );
        assert!(may(token, &["registry"]).await);
    }
}
