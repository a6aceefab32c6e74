//! What a driver has to be told about a volume: computed from the objects that describe it, without any effect.

use std::collections::{BTreeMap, HashMap};

use balsa_csi::v1::VolumeCapability;
use balsa_csi::v1::volume_capability::access_mode::Mode;
use balsa_csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, Pod, SecretReference, Volume};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};
use sha2::{Digest, Sha256};

use super::driver::Abilities;
use super::record::Record;
use crate::cluster::Token;
use crate::volumes::payload::TokenWant;

/// Key of the pod's tokens, in the volume's context or among the secrets.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// Life of a token when nothing is said, in seconds.
const TOKEN_LIFE: i64 = 3600;

const PERSISTENT: &str = "Persistent";
const EPHEMERAL: &str = "Ephemeral";

/// When the agent gives a volume's files to the pod's `fsGroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GroupPolicy {
    Never,
    Always,
    /// With a file system of a named type that one node writes to.
    OneWriter,
}

/// A Secret by namespace and name.
pub(super) type SecretAt = (String, String);

/// What a driver has to be told about a volume.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) record: Record,
    fs_type: String,
    mount_flags: Vec<String>,
    modes: Vec<String>,
    attributes: BTreeMap<String, String>,
    /// The driver is to publish it read-only.
    pub(super) read_only: bool,
    pub(super) stage_secret: Option<SecretAt>,
    pub(super) publish_secret: Option<SecretAt>,
    pub(super) expand_secret: Option<SecretAt>,
    /// Tokens of the pod's service account that the driver wants.
    pub(super) tokens: Vec<TokenWant>,
    tokens_in_secrets: bool,
    pod_info: bool,
    /// It is to be published again from time to time.
    pub(super) republish: bool,
    group_policy: GroupPolicy,
    /// The driver can mount it with an SELinux label.
    label_mount: bool,
}

/// What a persistent volume's driver has to be told. `read_only` is what the pod asks for.
///
/// # Errors
/// When the volume is no driver's, or the driver does not do such volumes; for people.
pub(super) fn of_persistent(
    volume: &PersistentVolume,
    read_only: bool,
    driver: Option<&CSIDriver>,
    node: &str,
) -> Result<Plan, String> {
    let spec = volume.spec.clone().unwrap_or_default();
    let source = spec.csi.ok_or("the volume is no CSI driver's")?;
    let settings = settings(driver);
    supports(&settings, driver.is_some(), &source.driver, PERSISTENT)?;
    // Whoever does not say otherwise wants to be asked to attach.
    let attach = settings.attach_required != Some(false);
    let at = |secret: Option<SecretReference>| -> Option<SecretAt> {
        let secret = secret?;
        Some((secret.namespace?, secret.name?))
    };
    let mut plan = plan(settings);
    plan.record = Record {
        volume: volume.metadata.name.clone().unwrap_or_default(),
        attachment: if attach {
            attachment_name(&source.volume_handle, &source.driver, node)
        } else {
            String::new()
        },
        handle: source.volume_handle,
        driver: source.driver,
        node_name: node.to_owned(),
        lifecycle: PERSISTENT.to_owned(),
        block: spec.volume_mode.as_deref() == Some("Block"),
    };
    plan.fs_type = source.fs_type.unwrap_or_default();
    plan.mount_flags = spec.mount_options.unwrap_or_default();
    plan.modes = spec.access_modes.unwrap_or_default();
    plan.attributes = source.volume_attributes.unwrap_or_default();
    plan.read_only = read_only;
    plan.stage_secret = at(source.node_stage_secret_ref);
    plan.publish_secret = at(source.node_publish_secret_ref);
    plan.expand_secret = at(source.node_expand_secret_ref);
    Ok(plan)
}

/// What the driver of a pod's own volume has to be told.
///
/// # Errors
/// When the driver does not do such volumes; for people.
pub(super) fn of_inline(
    pod: &Pod,
    volume: &Volume,
    source: &CSIVolumeSource,
    driver: Option<&CSIDriver>,
    node: &str,
) -> Result<Plan, String> {
    let settings = settings(driver);
    supports(&settings, driver.is_some(), &source.driver, EPHEMERAL)?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let digest = Sha256::digest(format!("{uid}{}", volume.name));
    let mut plan = plan(settings);
    plan.record = Record {
        volume: volume.name.clone(),
        handle: format!("csi-{}", hex::encode(digest)),
        driver: source.driver.clone(),
        node_name: node.to_owned(),
        lifecycle: EPHEMERAL.to_owned(),
        ..Record::default()
    };
    plan.fs_type = source.fs_type.clone().unwrap_or_default();
    plan.modes = vec!["ReadWriteOnce".to_owned()];
    plan.attributes = source.volume_attributes.clone().unwrap_or_default();
    plan.read_only = source.read_only.unwrap_or(false);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    plan.publish_secret = source
        .node_publish_secret_ref
        .as_ref()
        .map(|secret| (namespace, secret.name.clone()));
    Ok(plan)
}

fn settings(driver: Option<&CSIDriver>) -> CSIDriverSpec {
    driver.map(|driver| driver.spec.clone()).unwrap_or_default()
}

/// A plan with what the driver's object says and nothing of the volume.
fn plan(settings: CSIDriverSpec) -> Plan {
    let tokens = settings.token_requests.unwrap_or_default().into_iter();
    Plan {
        record: Record::default(),
        fs_type: String::new(),
        mount_flags: Vec::new(),
        modes: Vec::new(),
        attributes: BTreeMap::new(),
        read_only: false,
        stage_secret: None,
        publish_secret: None,
        expand_secret: None,
        tokens: tokens
            .map(|token| TokenWant {
                audience: token.audience,
                seconds: token.expiration_seconds.unwrap_or(TOKEN_LIFE),
            })
            .collect(),
        tokens_in_secrets: settings.service_account_token_in_secrets.unwrap_or(false),
        pod_info: settings.pod_info_on_mount.unwrap_or(false),
        republish: settings.requires_republish.unwrap_or(false),
        label_mount: settings.se_linux_mount.unwrap_or(false),
        group_policy: match settings.fs_group_policy.as_deref() {
            Some("None") => GroupPolicy::Never,
            Some("File") => GroupPolicy::Always,
            _ => GroupPolicy::OneWriter,
        },
    }
}

fn supports(settings: &CSIDriverSpec, known: bool, name: &str, mode: &str) -> Result<(), String> {
    let usual = [PERSISTENT.to_owned()];
    let modes = settings.volume_lifecycle_modes.as_deref();
    let modes = modes.filter(|modes| !modes.is_empty()).unwrap_or(&usual);
    if modes.iter().any(|known| known == mode) {
        return Ok(());
    }
    let hint = if known {
        ""
    } else {
        ": there is no CSIDriver object of that name"
    };
    Err(format!(
        "kubernetes.io/csi: volume mode {mode:?} not supported by driver {name} (only supports {modes:?}){hint}"
    ))
}

/// The name of the VolumeAttachment for a volume on a node, as upstream's controller makes it.
pub(super) fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    format!("csi-{}", hex::encode(digest))
}

impl Plan {
    /// May it be mounted with the SELinux label of its one pod?
    pub(super) fn takes_label(&self) -> bool {
        self.label_mount && !self.record.block && self.modes == ["ReadWriteOncePod"]
    }

    /// Has it mounted with an option beside its own.
    pub(super) fn add_mount_option(&mut self, option: String) {
        self.mount_flags.push(option);
    }

    /// How the volume is going to be used. `group` is the pod's `fsGroup`.
    pub(super) fn capability(&self, able: Abilities, group: Option<i64>) -> VolumeCapability {
        let access = if self.record.block {
            AccessType::Block(BlockVolume {})
        } else {
            let group =
                group.filter(|_| able.mount_group && self.group_policy != GroupPolicy::Never);
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_flags.clone(),
                volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
            })
        };
        VolumeCapability {
            access_mode: Some(AccessMode {
                mode: self.mode(able) as i32,
            }),
            access_type: Some(access),
        }
    }

    fn mode(&self, able: Abilities) -> Mode {
        match (self.modes.first().map(String::as_str), able.multi_writer) {
            (Some("ReadWriteOnce"), true) => Mode::SingleNodeMultiWriter,
            (Some("ReadWriteOncePod"), true) => Mode::SingleNodeSingleWriter,
            (Some("ReadOnlyMany"), _) => Mode::MultiNodeReaderOnly,
            (Some("ReadWriteMany"), _) => Mode::MultiNodeMultiWriter,
            _ => Mode::SingleNodeWriter,
        }
    }

    /// Does the agent give the volume's files to the pod's `fsGroup`?
    pub(super) fn is_owned(&self, able: Abilities) -> bool {
        if self.record.block || self.read_only || able.mount_group {
            return false;
        }
        match self.group_policy {
            GroupPolicy::Never => false,
            GroupPolicy::Always => true,
            GroupPolicy::OneWriter => {
                let once = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
                !self.fs_type.is_empty() && self.modes.iter().any(once)
            }
        }
    }

    /// What the volume's maker said of it.
    pub(super) fn attributes(&self) -> HashMap<String, String> {
        self.attributes.clone().into_iter().collect()
    }

    /// What is said when it is published for a pod; tokens go into the secrets if the driver wants them there.
    pub(super) fn context(
        &self,
        pod: &Pod,
        tokens: &[(TokenWant, Token)],
        secrets: &mut HashMap<String, String>,
    ) -> HashMap<String, String> {
        let mut context = self.attributes();
        if self.pod_info {
            let account = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.service_account_name.clone());
            let ephemeral = self.record.lifecycle == EPHEMERAL;
            let metadata = &pod.metadata;
            let facts = [
                ("pod.name", metadata.name.clone()),
                ("pod.namespace", metadata.namespace.clone()),
                ("pod.uid", metadata.uid.clone()),
                ("serviceAccount.name", account),
                ("ephemeral", Some(ephemeral.to_string())),
            ];
            context.extend(facts.into_iter().map(|(key, value)| {
                (
                    format!("csi.storage.k8s.io/{key}"),
                    value.unwrap_or_default(),
                )
            }));
        }
        if !tokens.is_empty() {
            let all: serde_json::Map<_, _> = tokens
                .iter()
                .map(|(want, token)| {
                    let token = serde_json::json!({
                        "token": token.text, "expirationTimestamp": token.expires.to_string(),
                    });
                    (want.audience.clone(), token)
                })
                .collect();
            let text = serde_json::Value::Object(all).to_string();
            let place = if self.tokens_in_secrets {
                secrets
            } else {
                &mut context
            };
            place.insert(TOKENS.to_owned(), text);
        }
        context
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn driver(spec: Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap()
    }

    fn persistent(extra: Value, driver: Option<&CSIDriver>) -> Result<Plan, String> {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "d", "volumeHandle": "h", "fsType": "ext4", "volumeAttributes": {"a": "1"}}});
        spec.as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        let volume = json!({"metadata": {"name": "pv"}, "spec": spec});
        let volume = serde_json::from_value(volume).unwrap();
        of_persistent(&volume, false, driver, "n1")
    }

    fn pod() -> Pod {
        let pod = json!({"metadata": {"name": "p", "namespace": "s", "uid": "u"},
            "spec": {"serviceAccountName": "sa", "containers": []}});
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn volumes_are_attached_unless_the_driver_says_that_it_need_not_be() {
        let unknown = persistent(json!({}), None).unwrap();
        // sha256 of "hdn1"
        assert_eq!(unknown.record.attachment, attachment_name("h", "d", "n1"));
        let free = driver(json!({"attachRequired": false}));
        let plan = persistent(json!({}), Some(&free)).unwrap();
        assert_eq!(plan.record.attachment, "");
    }

    #[test]
    fn a_driver_gets_only_the_kinds_of_volumes_that_it_does() {
        let inline = driver(json!({"volumeLifecycleModes": ["Ephemeral"]}));
        let error = persistent(json!({}), Some(&inline)).unwrap_err();
        assert!(
            error.contains("\"Persistent\" not supported by driver d"),
            "{error}"
        );
        let volume: Volume =
            serde_json::from_value(json!({"name": "v", "csi": {"driver": "d", "readOnly": true}}))
                .unwrap();
        let source = volume.csi.as_ref().unwrap();
        assert!(of_inline(&pod(), &volume, source, None, "n1").is_err());
        let plan = of_inline(&pod(), &volume, source, Some(&inline), "n1").unwrap();
        assert!(plan.read_only && plan.record.handle.starts_with("csi-"));
        assert_eq!(plan.record.attachment, "");
    }

    #[test]
    fn the_modes_of_access_are_told_as_finely_as_the_driver_knows_them() {
        let mode = |mode: &str, able: Abilities| {
            let plan = persistent(json!({"accessModes": [mode]}), None).unwrap();
            plan.capability(able, None).access_mode.unwrap().mode
        };
        let fine = Abilities {
            multi_writer: true,
            ..Abilities::default()
        };
        let plain = Abilities::default();
        assert_eq!(
            mode("ReadWriteOncePod", plain),
            Mode::SingleNodeWriter as i32
        );
        assert_eq!(
            mode("ReadWriteOncePod", fine),
            Mode::SingleNodeSingleWriter as i32
        );
        assert_eq!(
            mode("ReadWriteOnce", fine),
            Mode::SingleNodeMultiWriter as i32
        );
        assert_eq!(
            mode("ReadWriteMany", fine),
            Mode::MultiNodeMultiWriter as i32
        );
    }

    #[test]
    fn files_are_given_to_a_group_as_the_drivers_policy_has_it() {
        let owned = |spec: Value, extra: Value| {
            let plan = persistent(extra, Some(&driver(spec))).unwrap();
            plan.is_owned(Abilities::default())
        };
        assert!(owned(json!({}), json!({})));
        assert!(!owned(json!({}), json!({"accessModes": ["ReadWriteMany"]})));
        assert!(owned(
            json!({"fsGroupPolicy": "File"}),
            json!({"accessModes": ["ReadWriteMany"]})
        ));
        assert!(!owned(json!({"fsGroupPolicy": "None"}), json!({})));
        let able = Abilities {
            mount_group: true,
            ..Abilities::default()
        };
        let plan = persistent(json!({}), None).unwrap();
        assert!(!plan.is_owned(able));
        let Some(AccessType::Mount(mount)) = plan.capability(able, Some(7)).access_type else {
            panic!("no mount")
        };
        assert_eq!(
            (mount.volume_mount_group.as_str(), mount.fs_type.as_str()),
            ("7", "ext4")
        );
    }

    #[test]
    fn the_pod_and_its_tokens_are_told_to_drivers_that_ask_for_them() {
        let asks = json!({"podInfoOnMount": true, "tokenRequests": [{"audience": "vault"}]});
        let want = TokenWant {
            audience: "vault".into(),
            seconds: 3600,
        };
        let token = Token {
            text: "t0k".into(),
            expires: jiff::Timestamp::UNIX_EPOCH,
        };
        let tokens = [(want.clone(), token)];
        let plan = persistent(json!({}), Some(&driver(asks.clone()))).unwrap();
        assert_eq!(plan.tokens, [want]);
        let mut secrets = HashMap::new();
        let context = plan.context(&pod(), &tokens, &mut secrets);
        assert_eq!(context["csi.storage.k8s.io/pod.name"], "p");
        assert_eq!(context["csi.storage.k8s.io/ephemeral"], "false");
        assert_eq!(context["a"], "1");
        assert!(context[TOKENS].contains(r#""vault":{"#) && secrets.is_empty());
        let mut hidden = asks;
        hidden["serviceAccountTokenInSecrets"] = json!(true);
        let plan = persistent(json!({}), Some(&driver(hidden))).unwrap();
        let context = plan.context(&pod(), &tokens, &mut secrets);
        assert!(secrets[TOKENS].contains("t0k") && !context.contains_key(TOKENS));
    }
}
