//! Between CRI's messages and our plain types.

use std::collections::HashMap;

use k8s_cri::v1 as cri;

use crate::types::{
    AppArmor, Auth, ContainerConfig, ContainerInfo, ContainerSecurity, ContainerState,
    ContainerStats, ContainerStatus, Device, FilesystemUsage, HandlerFeatures, IdRange, Image, Map,
    Mount, NamespaceMode, Namespaces, PortMapping, ProcessUser, Propagation, Resources,
    RuntimeCondition, RuntimeFeatures, RuntimeStatus, SandboxConfig, SandboxInfo, SandboxState,
    SandboxStatus, SeLinux, Seccomp,
};

fn to_hash(map: &Map) -> HashMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn int64(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

pub(super) fn runtime_status(answer: cri::StatusResponse) -> RuntimeStatus {
    let conditions = answer
        .status
        .unwrap_or_default()
        .conditions
        .into_iter()
        .map(|condition| RuntimeCondition {
            kind: condition.r#type,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
        });
    let handlers = answer.runtime_handlers.into_iter().map(|handler| {
        let features = handler.features.unwrap_or_default();
        HandlerFeatures {
            name: handler.name,
            recursive_read_only_mounts: features.recursive_read_only_mounts,
            user_namespaces: features.user_namespaces,
        }
    });
    RuntimeStatus {
        conditions: conditions.collect(),
        features: RuntimeFeatures {
            supplemental_groups_policy: answer
                .features
                .is_some_and(|features| features.supplemental_groups_policy),
            handlers: handlers.collect(),
        },
    }
}

fn namespace_mode(mode: NamespaceMode) -> i32 {
    let mode = match mode {
        NamespaceMode::Pod => cri::NamespaceMode::Pod,
        NamespaceMode::Container => cri::NamespaceMode::Container,
        NamespaceMode::Node => cri::NamespaceMode::Node,
        NamespaceMode::Target => cri::NamespaceMode::Target,
    };
    mode as i32
}

fn namespaces(namespaces: &Namespaces) -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: namespace_mode(namespaces.network),
        pid: namespace_mode(namespaces.pid),
        ipc: namespace_mode(namespaces.ipc),
        target_id: namespaces.target.clone(),
        userns_options: namespaces.users.map(|users| cri::UserNamespace {
            mode: cri::NamespaceMode::Pod as i32,
            uids: id_mappings(Some(users)),
            gids: id_mappings(Some(users)),
        }),
    }
}

fn id_mappings(users: Option<IdRange>) -> Vec<cri::IdMapping> {
    let mapping = users.map(|users| cri::IdMapping {
        host_id: users.first,
        container_id: 0,
        length: users.length,
    });
    mapping.into_iter().collect()
}

fn seccomp(seccomp: &Seccomp) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, localhost_ref) = match seccomp {
        Seccomp::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Seccomp::Unconfined => (ProfileType::Unconfined, String::new()),
        Seccomp::Localhost(path) => (ProfileType::Localhost, path.clone()),
    };
    cri::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref,
    }
}

fn apparmor(profile: &AppArmor) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, localhost_ref) = match profile {
        AppArmor::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        AppArmor::Unconfined => (ProfileType::Unconfined, String::new()),
        AppArmor::Localhost(name) => (ProfileType::Localhost, name.clone()),
    };
    cri::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref,
    }
}

/// The form that runtimes before `apparmor` was added to CRI read.
fn apparmor_name(profile: &AppArmor) -> String {
    match profile {
        AppArmor::RuntimeDefault => "runtime/default".to_owned(),
        AppArmor::Unconfined => "unconfined".to_owned(),
        AppArmor::Localhost(name) => format!("localhost/{name}"),
    }
}

fn selinux(labels: &SeLinux) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: labels.user.clone(),
        role: labels.role.clone(),
        r#type: labels.kind.clone(),
        level: labels.level.clone(),
    }
}

fn port_mapping(port: &PortMapping) -> cri::PortMapping {
    let protocol = match port.protocol.as_str() {
        "UDP" => cri::Protocol::Udp,
        "SCTP" => cri::Protocol::Sctp,
        _ => cri::Protocol::Tcp,
    };
    cri::PortMapping {
        protocol: protocol as i32,
        container_port: i32::from(port.container_port),
        host_port: i32::from(port.host_port),
        host_ip: port.host_ip.clone(),
    }
}

pub(super) fn sandbox_config(config: &SandboxConfig) -> cri::PodSandboxConfig {
    let security = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(&config.namespaces)),
        run_as_user: int64(config.run_as_user),
        run_as_group: int64(config.run_as_group.filter(|_| config.run_as_user.is_some())),
        supplemental_groups: config.supplemental_groups.clone(),
        privileged: config.privileged,
        seccomp: Some(seccomp(&config.seccomp)),
        selinux_options: config.selinux.as_ref().map(selinux),
        ..Default::default()
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: config.name.clone(),
            uid: config.uid.clone(),
            namespace: config.namespace.clone(),
            attempt: config.attempt,
        }),
        hostname: config.hostname.clone(),
        log_directory: config.log_directory.clone(),
        dns_config: config.dns.as_ref().map(|dns| cri::DnsConfig {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        port_mappings: config.port_mappings.iter().map(port_mapping).collect(),
        labels: to_hash(&config.labels),
        annotations: to_hash(&config.annotations),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: config.cgroup_parent.clone(),
            security_context: Some(security),
            sysctls: to_hash(&config.sysctls),
            resources: Some(resources(&config.resources)),
            overhead: Some(resources(&config.overhead)),
        }),
        windows: None,
    }
}

pub(super) fn resources(resources: &Resources) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        oom_score_adj: resources.oom_score_adj,
        unified: unified(resources),
        ..Default::default()
    }
}

/// What only control groups of version 2 have, by the names of their files.
fn unified(resources: &Resources) -> HashMap<String, String> {
    let mut files = HashMap::new();
    if resources.oom_group {
        files.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    if resources.no_swap {
        files.insert("memory.swap.max".to_owned(), "0".to_owned());
    }
    files
}

fn mount(mount: &Mount) -> cri::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        propagation: propagation as i32,
        uid_mappings: id_mappings(mount.users),
        gid_mappings: id_mappings(mount.users),
        recursive_read_only: mount.recursive_readonly,
        ..Default::default()
    }
}

fn device(device: &Device) -> cri::Device {
    cri::Device {
        container_path: device.container_path.clone(),
        host_path: device.host_path.clone(),
        permissions: device.permissions.clone(),
    }
}

#[allow(deprecated)] // `apparmor_profile`, see below.
fn container_security(security: &ContainerSecurity) -> cri::LinuxContainerSecurityContext {
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: security.add_capabilities.clone(),
            drop_capabilities: security.drop_capabilities.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespaces(&security.namespaces)),
        run_as_user: int64(security.run_as_user),
        run_as_group: int64(security.run_as_group),
        run_as_username: security.run_as_username.clone(),
        readonly_rootfs: security.readonly_rootfs,
        supplemental_groups: security.supplemental_groups.clone(),
        supplemental_groups_policy: if security.strict_groups {
            cri::SupplementalGroupsPolicy::Strict as i32
        } else {
            cri::SupplementalGroupsPolicy::Merge as i32
        },
        no_new_privs: security.no_new_privileges,
        masked_paths: security.masked_paths.clone(),
        readonly_paths: security.readonly_paths.clone(),
        seccomp: Some(seccomp(&security.seccomp)),
        apparmor: security.apparmor.as_ref().map(apparmor),
        // Deprecated in CRI, and all that containerd 1.6 reads.
        apparmor_profile: security
            .apparmor
            .as_ref()
            .map(apparmor_name)
            .unwrap_or_default(),
        selinux_options: security.selinux.as_ref().map(selinux),
        ..Default::default()
    }
}

pub(super) fn container_config(config: &ContainerConfig) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: config.name.clone(),
            attempt: config.attempt,
        }),
        image: Some(cri::ImageSpec {
            image: config.image.clone(),
            user_specified_image: config.user_image.clone(),
            ..Default::default()
        }),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone(),
        envs: config
            .env
            .iter()
            .map(|(key, value)| cri::KeyValue {
                key: key.clone(),
                value: value.clone(),
            })
            .collect(),
        mounts: config.mounts.iter().map(mount).collect(),
        devices: config.devices.iter().map(device).collect(),
        labels: to_hash(&config.labels),
        annotations: to_hash(&config.annotations),
        log_path: config.log_path.clone(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                hugepage_limits: config
                    .huge_pages
                    .iter()
                    .map(|(page_size, limit)| cri::HugepageLimit {
                        page_size: page_size.clone(),
                        limit: *limit,
                    })
                    .collect(),
                ..resources(&config.resources)
            }),
            security_context: Some(container_security(&config.security)),
        }),
        windows: None,
        cdi_devices: config
            .cdi_devices
            .iter()
            .map(|name| cri::CdiDevice { name: name.clone() })
            .collect(),
    }
}

fn sandbox_state(state: i32) -> SandboxState {
    if state == cri::PodSandboxState::SandboxReady as i32 {
        SandboxState::Ready
    } else {
        SandboxState::NotReady
    }
}

pub(super) fn sandbox_info(sandbox: cri::PodSandbox) -> SandboxInfo {
    let metadata = sandbox.metadata.unwrap_or_default();
    SandboxInfo {
        id: sandbox.id,
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
        state: sandbox_state(sandbox.state),
        created_at: sandbox.created_at,
        labels: sandbox.labels.into_iter().collect(),
    }
}

pub(super) fn sandbox_status(
    status: cri::PodSandboxStatus,
    verbose: Option<&String>,
) -> SandboxStatus {
    let metadata = status.metadata.unwrap_or_default();
    let network = status.network.unwrap_or_default();
    let primary = Some(network.ip).filter(|ip| !ip.is_empty());
    let ips = primary
        .into_iter()
        .chain(network.additional_ips.into_iter().map(|ip| ip.ip))
        .collect();
    SandboxStatus {
        info: SandboxInfo {
            id: status.id,
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
            state: sandbox_state(status.state),
            created_at: status.created_at,
            labels: status.labels.into_iter().collect(),
        },
        ips,
        netns: verbose.and_then(|info| netns_of(info)),
    }
}

/// The network namespace in the verbose information: `runtimeSpec.linux.namespaces[type=network].path`
/// (containerd and CRI-O alike).
fn netns_of(info: &str) -> Option<String> {
    let info: serde_json::Value = serde_json::from_str(info).ok()?;
    let namespaces = info.pointer("/runtimeSpec/linux/namespaces")?.as_array()?;
    let network = namespaces
        .iter()
        .find(|namespace| namespace["type"] == "network")?;
    Some(network["path"].as_str()?.to_owned()).filter(|path| !path.is_empty())
}

fn container_state(state: i32) -> ContainerState {
    match cri::ContainerState::try_from(state) {
        Ok(cri::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(cri::ContainerState::ContainerRunning) => ContainerState::Running,
        Ok(cri::ContainerState::ContainerExited) => ContainerState::Exited,
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => ContainerState::Unknown,
    }
}

pub(super) fn container_info(container: cri::Container) -> ContainerInfo {
    let metadata = container.metadata.unwrap_or_default();
    ContainerInfo {
        id: container.id,
        sandbox_id: container.pod_sandbox_id,
        name: metadata.name,
        attempt: metadata.attempt,
        state: container_state(container.state),
        created_at: container.created_at,
        image_ref: container.image_ref,
        labels: container.labels.into_iter().collect(),
    }
}

pub(super) fn container_status(status: cri::ContainerStatus) -> ContainerStatus {
    let metadata = status.metadata.unwrap_or_default();
    ContainerStatus {
        id: status.id,
        name: metadata.name,
        attempt: metadata.attempt,
        state: container_state(status.state),
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        image: status.image.map(|image| image.image).unwrap_or_default(),
        image_ref: status.image_ref,
        reason: status.reason,
        message: status.message,
        labels: status.labels.into_iter().collect(),
        annotations: status.annotations.into_iter().collect(),
        log_path: status.log_path,
        user: status
            .user
            .and_then(|user| user.linux)
            .map(|user| ProcessUser {
                uid: user.uid,
                gid: user.gid,
                groups: user.supplemental_groups,
            }),
        recursive_readonly: status
            .mounts
            .into_iter()
            .filter(|mount| mount.recursive_read_only)
            .map(|mount| mount.container_path)
            .collect(),
    }
}

pub(super) fn container_stats(stats: cri::ContainerStats) -> ContainerStats {
    let attributes = stats.attributes.unwrap_or_default();
    let value = |value: Option<cri::UInt64Value>| value.map_or(0, |value| value.value);
    let cpu = stats.cpu.unwrap_or_default();
    let memory = stats.memory.unwrap_or_default();
    let layer = stats.writable_layer.unwrap_or_default();
    ContainerStats {
        id: attributes.id,
        name: attributes.metadata.unwrap_or_default().name,
        labels: attributes.labels.into_iter().collect(),
        at: cpu.timestamp,
        cpu_nanos: value(cpu.usage_core_nano_seconds),
        memory_working_set: value(memory.working_set_bytes),
        memory_usage: value(memory.usage_bytes),
        memory_rss: value(memory.rss_bytes),
        rootfs_bytes: value(layer.used_bytes),
        rootfs_inodes: value(layer.inodes_used),
    }
}

pub(super) fn image(image: cri::Image) -> Image {
    Image {
        id: image.id,
        tags: image.repo_tags,
        digests: image.repo_digests,
        size: image.size,
        uid: image.uid.map(|uid| uid.value),
        username: image.username,
        pinned: image.pinned,
    }
}

pub(super) fn auth(auth: &Auth) -> cri::AuthConfig {
    cri::AuthConfig {
        username: auth.username.clone(),
        password: auth.password.clone(),
        auth: auth.auth.clone(),
        server_address: auth.server.clone(),
        identity_token: auth.identity_token.clone(),
        registry_token: auth.registry_token.clone(),
    }
}

pub(super) fn filesystem(usage: cri::FilesystemUsage) -> FilesystemUsage {
    FilesystemUsage {
        mountpoint: usage.fs_id.map(|id| id.mountpoint).unwrap_or_default(),
        used_bytes: usage.used_bytes.map_or(0, |value| value.value),
        inodes_used: usage.inodes_used.map_or(0, |value| value.value),
    }
}

#[cfg(test)]
mod tests {
    use super::{container_status, cri, mount, namespaces, netns_of, resources};
    use crate::types::{IdRange, Mount, Namespaces, ProcessUser, Resources};

    #[test]
    fn what_only_new_control_groups_have_is_told_by_their_files_names() {
        let both = resources(&Resources {
            oom_group: true,
            no_swap: true,
            ..Resources::default()
        });
        assert_eq!(both.unified["memory.oom.group"], "1");
        assert_eq!(both.unified["memory.swap.max"], "0");
        assert!(resources(&Resources::default()).unified.is_empty());
    }

    #[test]
    fn a_status_tells_who_runs_and_what_is_read_only_all_the_way_down() {
        let mount = |path: &str, recursive_read_only| cri::Mount {
            container_path: path.to_owned(),
            recursive_read_only,
            ..Default::default()
        };
        let status = container_status(cri::ContainerStatus {
            user: Some(cri::ContainerUser {
                linux: Some(cri::LinuxContainerUser {
                    uid: 1,
                    gid: 2,
                    supplemental_groups: vec![3],
                }),
            }),
            mounts: vec![mount("/a", true), mount("/b", false)],
            ..Default::default()
        });
        let (uid, gid, groups) = (1, 2, vec![3]);
        assert_eq!(status.user, Some(ProcessUser { uid, gid, groups }));
        assert_eq!(status.recursive_readonly, ["/a"]);
    }

    #[test]
    fn a_range_of_ids_is_that_of_the_namespace_and_of_its_mounts() {
        let users = Some(IdRange {
            first: 65_536,
            length: 65_536,
        });
        let option = namespaces(&Namespaces {
            users,
            ..Namespaces::default()
        });
        let asked = option.userns_options.unwrap_or_default();
        let ids = |mapping: &super::cri::IdMapping| {
            (mapping.host_id, mapping.container_id, mapping.length)
        };
        assert_eq!(asked.mode, super::cri::NamespaceMode::Pod as i32);
        assert_eq!(asked.uids.first().map(ids), Some((65_536, 0, 65_536)));
        let mounted = mount(&Mount {
            users,
            ..Mount::default()
        });
        assert_eq!(mounted.uid_mappings, asked.uids);
        assert_eq!(mounted.gid_mappings, asked.gids);
        let without = namespaces(&Namespaces::default());
        assert!(without.userns_options.is_none());
    }

    #[test]
    fn the_network_namespace_is_read_from_the_verbose_status() {
        let info = r#"{"pid":7,"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},
            {"type":"network","path":"/run/netns/cni-1"}]}}}"#;
        assert_eq!(netns_of(info).as_deref(), Some("/run/netns/cni-1"));
        assert_eq!(netns_of("{}"), None);
        assert_eq!(netns_of("not json"), None);
    }
}
