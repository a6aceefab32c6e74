//! Volumes of huge pages: `emptyDir` with medium `HugePages` or `HugePages-2Mi`.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use balsa_api::quantity::Quantity;
use k8s_openapi::api::core::v1::PodSpec;
use nix::mount::MsFlags;

/// What media and resources of huge pages begin with.
const MEDIUM: &str = "HugePages";
const RESOURCE: &str = "hugepages-";

/// Is it a medium of huge pages?
pub(super) fn is_medium(medium: &str) -> bool {
    medium == MEDIUM || medium.starts_with("HugePages-")
}

/// The size of a volume's pages in bytes: the one that the medium names, or else the only one that the pod's
/// containers use. The error is for people.
fn page_size(spec: &PodSpec, medium: &str) -> Result<i64, String> {
    let asked: BTreeSet<i64> = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .filter_map(|container| container.resources.as_ref()?.limits.as_ref())
        .flat_map(|limits| limits.keys())
        .filter_map(|name| parse(name.strip_prefix(RESOURCE)?))
        .collect();
    let named = medium
        .strip_prefix(MEDIUM)
        .and_then(|rest| rest.strip_prefix('-'));
    if let Some(named) = named {
        let size = parse(named).ok_or_else(|| format!("cannot parse the page size {named:?}"))?;
        return match asked.contains(&size) {
            true => Ok(size),
            false => Err(format!(
                "medium {medium} doesn't match any huge pages that the pod's containers ask for"
            )),
        };
    }
    let mut sizes = asked.into_iter();
    match (sizes.next(), sizes.next()) {
        (Some(size), None) => Ok(size),
        (None, _) => Err("no container of the pod asks for huge pages".to_owned()),
        _ => Err(format!(
            "the pod uses several sizes of huge pages: medium must be {MEDIUM}-SIZE"
        )),
    }
}

fn parse(text: &str) -> Option<i64> {
    let size = text.parse::<Quantity>().ok()?.value();
    (size > 0).then_some(size)
}

/// Mounts the volume there unless something is mounted already. Blocking.
pub(super) fn mount(
    dir: &Path,
    spec: &PodSpec,
    medium: &str,
    limit: Option<i64>,
) -> io::Result<()> {
    if super::is_mount_point(dir)? {
        return Ok(());
    }
    let size = page_size(spec, medium).map_err(io::Error::other)?;
    let mut options = format!("pagesize={}K", size / 1024);
    if let Some(limit) = limit {
        options.push_str(&format!(",size={limit}"));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(
        Some("nodev"),
        dir,
        Some("hugetlbfs"),
        flags,
        Some(options.as_str()),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(resources: &[&str]) -> PodSpec {
        let limits: serde_json::Map<_, _> = resources
            .iter()
            .map(|name| ((*name).to_owned(), "4Mi".into()))
            .collect();
        serde_json::from_value(
            serde_json::json!({"containers": [{"name": "c", "resources": {"limits": limits}}]}),
        )
        .unwrap()
    }

    #[test]
    fn the_page_size_is_the_named_one_or_the_only_one() {
        let one = spec(&["memory", "hugepages-2Mi"]);
        assert_eq!(page_size(&one, "HugePages"), Ok(2 << 20));
        assert_eq!(page_size(&one, "HugePages-2Mi"), Ok(2 << 20));
        assert!(page_size(&one, "HugePages-1Gi").is_err());
        let two = spec(&["hugepages-2Mi", "hugepages-1Gi"]);
        assert!(page_size(&two, "HugePages").is_err());
        assert_eq!(page_size(&two, "HugePages-1Gi"), Ok(1 << 30));
        assert!(page_size(&spec(&["memory"]), "HugePages").is_err());
        assert!(is_medium("HugePages-2Mi") && !is_medium("Memory") && !is_medium("HugePagesX"));
    }
}
