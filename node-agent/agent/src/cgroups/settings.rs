//! What a pod's containers may use together.

use std::io;
use std::path::Path;

use balsa_api::kinds::{pod_limits, pod_requests};
use balsa_pod::qos::Qos;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::{Cgroups, Version};
use crate::pods::resources::{PERIOD, quota_of, shares_of};

/// Controllers that pods' groups use.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Controllers that runtimes use further down.
const DELEGATED: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// Settings of a group. `None` is "no limit".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Settings {
    /// CPU shares (version 1's scale).
    pub(crate) cpu_shares: i64,
    /// CPU quota in microseconds per period.
    pub(crate) cpu_quota: Option<i64>,
    /// Memory limit in bytes.
    pub(crate) memory_limit: Option<i64>,
    /// Most processes.
    pub(crate) pids_limit: Option<i64>,
}

/// The settings of a pod's group: shares by its requests, limits only where every container has one.
pub(crate) fn pod_settings(pod: &Pod, spec: &PodSpec, pids_limit: Option<i64>) -> Settings {
    let value = serde_json::to_value(pod).unwrap_or_default();
    let (requests, limits) = (pod_requests(&value), pod_limits(&value));
    let own = |name: &str| {
        let resources = spec.resources.as_ref();
        resources
            .and_then(|resources| resources.limits.as_ref())
            .is_some_and(|limits| limits.contains_key(name))
    };
    let all = |name: &str| {
        let has = |container: &Container| {
            let resources = container.resources.as_ref();
            resources
                .and_then(|resources| resources.limits.as_ref()?.get(name))
                .is_some()
        };
        let inits = spec.init_containers.iter().flatten();
        own(name) || inits.chain(&spec.containers).all(has)
    };
    let limit = |name: &str| limits.get(name).copied().filter(|_| all(name));
    let cpu = requests.get("cpu").or_else(|| limits.get("cpu"));
    Settings {
        cpu_shares: shares_of(cpu.map_or(0, |cpu| cpu.milli_value())),
        cpu_quota: limit("cpu").map(|cpu| quota_of(cpu.milli_value())),
        memory_limit: limit("memory").map(|memory| memory.value()),
        pids_limit,
    }
}

/// The settings of the group that all pods are in, by the CPU in thousandths and the memory in bytes that the node
/// has for them. Memory that eviction keeps free is not taken off: it must act before the kernel does.
pub(crate) fn whole_settings(cpu_milli: i64, memory: i64) -> Settings {
    Settings {
        cpu_shares: shares_of(cpu_milli),
        memory_limit: Some(memory).filter(|memory| *memory > 0),
        ..Settings::default()
    }
}

impl Cgroups {
    /// Makes the groups of all classes, and holds all pods together to `whole`: they weigh against what else runs on
    /// the machine by what they are offered, and can't take the memory that is reserved from them.
    pub(crate) fn make_classes(&self, whole: &Settings) -> io::Result<()> {
        for qos in super::CLASSES {
            self.make(&self.class(qos))?;
        }
        // That of the guaranteed pods is the one that all others are in.
        self.set(&self.class(Qos::Guaranteed), whole)?;
        let least = Settings {
            cpu_shares: shares_of(0),
            ..Settings::default()
        };
        self.set(&self.class(Qos::BestEffort), &least)
    }

    /// Gives the burstable pods together the shares that they ask for.
    pub(crate) fn set_burstable_shares(&self, milli_cpu: i64) -> io::Result<()> {
        let settings = Settings {
            cpu_shares: shares_of(milli_cpu),
            ..Settings::default()
        };
        self.set(&self.class(Qos::Burstable), &settings)
    }

    /// Makes a pod's group, or brings its settings up to date.
    pub(crate) fn make_pod(&self, qos: Qos, uid: &str, settings: &Settings) -> io::Result<()> {
        let cgroup = self.pod(qos, uid);
        self.make(&cgroup)?;
        self.set(&cgroup, settings)
    }

    fn make(&self, cgroup: &str) -> io::Result<()> {
        match self.version {
            Version::One => {
                for controller in CONTROLLERS {
                    if self.mount.join(controller).exists() {
                        std::fs::create_dir_all(self.dir(controller, cgroup))?;
                    }
                }
                Ok(())
            }
            Version::Two => {
                let mut dir = self.mount.clone();
                for part in cgroup.split('/').filter(|part| !part.is_empty()) {
                    delegate(&dir);
                    dir.push(part);
                    match std::fs::create_dir(&dir) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(error);
                        }
                        _ => {}
                    }
                }
                delegate(&dir);
                Ok(())
            }
        }
    }

    fn set(&self, cgroup: &str, settings: &Settings) -> io::Result<()> {
        let write = |controller: &str, file: &str, text: String| {
            let path = self.dir(controller, cgroup).join(file);
            // A controller that the machine lacks limits nothing.
            if path.exists() {
                std::fs::write(&path, &text).map_err(|error| {
                    io::Error::new(
                        error.kind(),
                        format!("cannot write {text} to {}: {error}", path.display()),
                    )
                })
            } else {
                Ok(())
            }
        };
        let or = |value: Option<i64>, none: &str| match value {
            Some(value) => value.to_string(),
            None => none.to_owned(),
        };
        match self.version {
            Version::One => {
                write("cpu", "cpu.shares", settings.cpu_shares.to_string())?;
                if settings.cpu_quota.is_some() {
                    write("cpu", "cpu.cfs_period_us", PERIOD.to_string())?;
                }
                write("cpu", "cpu.cfs_quota_us", or(settings.cpu_quota, "-1"))?;
                let memory = or(settings.memory_limit, "-1");
                write("memory", "memory.limit_in_bytes", memory)?;
            }
            Version::Two => {
                let weight = weight_of(settings.cpu_shares);
                write("cpu", "cpu.weight", weight.to_string())?;
                let quota = or(settings.cpu_quota, "max");
                write("cpu", "cpu.max", format!("{quota} {PERIOD}"))?;
                write("memory", "memory.max", or(settings.memory_limit, "max"))?;
            }
        }
        write("pids", "pids.max", or(settings.pids_limit, "max"))
    }
}

/// Lets the groups below a folder use the controllers that it has. One by one: a machine may lack some.
fn delegate(dir: &Path) {
    for controller in DELEGATED {
        let _ = std::fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Shares (2 to 262,144) as weight (1 to 10,000), as runtimes convert them.
fn weight_of(shares: i64) -> i64 {
    1 + (shares - 2).max(0) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn settings(containers: serde_json::Value) -> Settings {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap();
        pod_settings(&pod, pod.spec.as_ref().unwrap(), None)
    }

    #[test]
    fn a_limit_holds_for_the_pod_only_if_every_container_has_one() {
        let limited = json!({"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}});
        let all = settings(json!([limited, limited]));
        assert_eq!(all.cpu_quota, Some(200_000));
        assert_eq!(all.memory_limit, Some(2 << 30));
        let some = settings(json!([limited, {"name": "b"}]));
        assert_eq!((some.cpu_quota, some.memory_limit), (None, None));
        assert_eq!(settings(json!([{"name": "b"}])).cpu_shares, 2);
    }

    #[test]
    fn all_pods_together_are_held_to_what_the_node_offers() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("b");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        for file in ["cpu.weight", "memory.max"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        let groups = Cgroups::at(dir.path(), "/b");
        groups.make_classes(&whole_settings(2000, 1 << 30)).unwrap();
        let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
        assert_eq!(
            (read("cpu.weight"), read("memory.max")),
            ("79".into(), "1073741824".into())
        );
    }

    #[test]
    fn both_versions_are_written_in_their_own_words() {
        let settings = Settings {
            cpu_shares: 1024,
            cpu_quota: Some(50_000),
            memory_limit: None,
            pids_limit: Some(9),
        };
        let dir = tempfile::tempdir().unwrap();
        let files = |names: &[&str]| {
            for name in names {
                std::fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
                std::fs::write(dir.path().join(name), "").unwrap();
            }
        };
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        files(&["cpu/b/podu/cpu.shares", "cpu/b/podu/cpu.cfs_quota_us"]);
        files(&["memory/b/podu/memory.limit_in_bytes"]);
        let one = Cgroups::at(dir.path(), "/b");
        one.make_pod(Qos::Guaranteed, "u", &settings).unwrap();
        assert_eq!(read("cpu/b/podu/cpu.shares"), "1024");
        assert_eq!(read("cpu/b/podu/cpu.cfs_quota_us"), "50000");
        assert_eq!(read("memory/b/podu/memory.limit_in_bytes"), "-1");
        files(&["cgroup.controllers", "b/podu/cpu.weight", "b/podu/cpu.max"]);
        files(&["b/podu/memory.max", "b/podu/pids.max"]);
        let two = Cgroups::at(dir.path(), "/b");
        two.make_pod(Qos::Guaranteed, "u", &settings).unwrap();
        assert_eq!(read("b/podu/cpu.weight"), "39");
        assert_eq!(read("b/podu/cpu.max"), "50000 100000");
        assert_eq!(
            (read("b/podu/memory.max"), read("b/podu/pids.max")),
            ("max".into(), "9".into())
        );
    }
}
