//! containerd's configuration file. Version 2 of the format is read by 1.6 and 1.7, and migrated by 2.x.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use crate::config::Paths;
use crate::durable;

/// Plugins that cost start time and memory and are never used.
const DISABLED: [&str; 7] = [
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing",
    "io.containerd.internal.v1.opt",
];

/// `CAP_SYS_RESOURCE`, by number.
const CAP_SYS_RESOURCE: u32 = 24;

#[derive(Serialize)]
struct File {
    version: u32,
    root: PathBuf,
    state: PathBuf,
    oom_score: i32,
    disabled_plugins: Vec<&'static str>,
    grpc: Value,
    plugins: Value,
}

/// Writes the configuration and answers with its path.
pub(crate) fn write(paths: &Paths) -> io::Result<PathBuf> {
    let dir = paths.containerd();
    std::fs::create_dir_all(&dir)?;
    let path = dir.join("config.toml");
    let text = toml::to_string(&file(paths, may_lower_oom_score(), &|name| {
        super::process::find(Path::new(name))
    }))
    .map_err(io::Error::other)?;
    if !durable::has(&path, text.as_bytes()) {
        std::fs::write(&path, text)?;
    }
    Ok(path)
}

/// Without the capability, a negative out-of-memory score makes runc fail obscurely.
fn may_lower_oom_score() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective_capabilities(&status)
        .is_some_and(|capabilities| capabilities & (1 << CAP_SYS_RESOURCE) != 0)
}

/// Can huge pages be limited by control groups? In a mix of both versions runc looks at version 1's only.
fn has_hugetlb(mount: &Path) -> bool {
    let two = std::fs::read_to_string(mount.join("cgroup.controllers"));
    match two {
        Ok(controllers) => controllers
            .split_whitespace()
            .any(|controller| controller == "hugetlb"),
        Err(_) => mount.join("hugetlb").exists(),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let hex = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

/// The handlers that RuntimeClasses may name: runc, and what else is installed.
fn handlers(find: &dyn Fn(&str) -> Option<PathBuf>) -> Value {
    let mut handlers = json!({"runc": {
        "runtime_type": "io.containerd.runc.v2",
        "options": {"SystemdCgroup": false},
    }});
    if let Some(crun) = find("crun") {
        handlers["crun"] = json!({
            "runtime_type": "io.containerd.runc.v2",
            "options": {"SystemdCgroup": false, "BinaryName": crun.display().to_string()},
        });
    }
    for (handler, kind, shim) in [
        (
            "runsc",
            "io.containerd.runsc.v1",
            "containerd-shim-runsc-v1",
        ),
        ("kata", "io.containerd.kata.v2", "containerd-shim-kata-v2"),
    ] {
        if find(shim).is_some() {
            handlers[handler] = json!({"runtime_type": kind});
        }
    }
    handlers
}

fn file(paths: &Paths, may_lower_oom_score: bool, find: &dyn Fn(&str) -> Option<PathBuf>) -> File {
    let dir = paths.containerd();
    let text = |path: &Path| path.display().to_string();
    let cri = json!({
        "sandbox_image": super::PAUSE_IMAGE,
        "disable_apparmor": !Path::new("/sys/kernel/security/apparmor").exists(),
        "disable_hugetlb_controller": !has_hugetlb(Path::new("/sys/fs/cgroup")),
        "tolerate_missing_hugetlb_controller": true,
        "restrict_oom_score_adj": !may_lower_oom_score,
        "stream_server_address": "127.0.0.1",
        "stream_server_port": "0",
        // Without it all containerds of a machine would share /var/run/netns.
        "netns_mounts_under_state_dir": true,
        "enable_selinux": false,
        "max_concurrent_downloads": 3,
        // Else a loss of power may leave empty files in images that count as unpacked. 1.6 passes over it.
        "image_pull_with_sync_fs": true,
        "containerd": {
            "snapshotter": "overlayfs",
            "default_runtime_name": "runc",
            "runtimes": handlers(find),
        },
        "cni": {"bin_dir": text(&paths.cni_bin()), "conf_dir": text(&paths.cni_conf())},
        "registry": {"config_path": text(&dir.join("certs.d"))},
    });
    File {
        version: 2,
        root: dir.join("root"),
        state: paths.containerd_state(),
        oom_score: 0,
        disabled_plugins: DISABLED.to_vec(),
        grpc: json!({"address": text(&paths.socket())}),
        plugins: json!({"io.containerd.grpc.v1.cri": cri}),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::AgentConfig;

    #[test]
    fn everything_that_nodes_of_one_machine_must_not_share_is_under_the_data_folder() {
        let paths = AgentConfig::new("a", [127, 0, 0, 1].into(), "/data/a").paths();
        let text = toml::to_string(&file(&paths, false, &|_| None)).unwrap();
        for line in [
            "root = \"/data/a/containerd/root\"",
            "state = \"/data/a/containerd/state\"",
            "address = \"/data/a/containerd.sock\"",
            "bin_dir = \"/data/a/cni/bin\"",
            "netns_mounts_under_state_dir = true",
            "restrict_oom_score_adj = true",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn pulled_images_are_on_the_disk_before_they_count_as_unpacked() {
        let paths = AgentConfig::new("a", [127, 0, 0, 1].into(), "/data/a").paths();
        let text = toml::to_string(&file(&paths, true, &|_| None)).unwrap();
        // The place of version 2 of the format; containerd 2 moves it to where its image service looks.
        let section = "[plugins.\"io.containerd.grpc.v1.cri\"]";
        let (_, rest) = text.split_once(section).unwrap();
        let own = rest.split("\n[").next().unwrap();
        assert!(own.contains("\nimage_pull_with_sync_fs = true\n"), "{own}");
    }

    #[test]
    fn installed_runtimes_become_handlers() {
        let none = handlers(&|_| None);
        assert!(none.get("runc").is_some() && none.get("crun").is_none());
        let all = handlers(&|name| Some(Path::new("/bin").join(name)));
        assert_eq!(all["crun"]["options"]["BinaryName"], "/bin/crun");
        assert_eq!(all["kata"]["runtime_type"], "io.containerd.kata.v2");
    }

    #[test]
    fn capabilities_are_read_from_the_process_status() {
        assert_eq!(
            effective_capabilities("Name:\tx\nCapEff:\t0000000001000000\n"),
            Some(1 << 24)
        );
        assert_eq!(effective_capabilities(""), None);
    }
}
