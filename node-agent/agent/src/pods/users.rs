//! Ranges of user and group ids for pods with user namespaces of their own (KEP-127).

use std::collections::HashMap;
use std::io;
use std::path::Path;

use balsa_cri::{IdRange, RuntimeFeatures};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::durable;

/// Ids of each pod. The node's own are the first so many.
const WIDTH: u32 = 1 << 16;

/// Most ranges: higher ids would be negative to programs that take them for signed numbers.
const MOST: u32 = (1 << 15) - 1;

/// File in a pod's folder that tells its range, as kubelet writes it.
const FILE: &str = "userns";

/// The ranges of a node, which never overlap.
#[derive(Default)]
pub(crate) struct UserRanges {
    /// Ranges in use by pod UID, counted from that of the node.
    taken: Mutex<HashMap<String, u32>>,
}

impl UserRanges {
    /// Those that pods with folders in `pods` have from an earlier agent.
    pub(crate) fn load(pods: &Path) -> Self {
        let entries = std::fs::read_dir(pods).into_iter().flatten().flatten();
        let known = entries.filter_map(|entry| {
            let text = std::fs::read(entry.path().join(FILE)).ok()?;
            Some((
                entry.file_name().to_string_lossy().into_owned(),
                parse(&text)?,
            ))
        });
        Self {
            taken: Mutex::new(known.collect()),
        }
    }

    /// The range of a pod that has one.
    pub(crate) fn of(&self, uid: &str) -> Option<IdRange> {
        self.taken.lock().get(uid).copied().map(range)
    }

    /// The range of a pod, chosen when it has none. It is kept in the pod's folder. Blocking.
    ///
    /// # Errors
    /// When there is none left, or it cannot be kept; for people.
    pub(crate) fn assign(&self, uid: &str, folder: &Path) -> Result<IdRange, String> {
        let mut taken = self.taken.lock();
        if let Some(known) = taken.get(uid) {
            return Ok(range(*known));
        }
        let free = (1..=MOST).find(|number| !taken.values().any(|other| other == number));
        let free = free.ok_or("could not find an empty slot to allocate a user namespace")?;
        let chosen = range(free);
        // Another pod must not get it after a restart, so it is on disk before it is used.
        keep(folder, chosen).map_err(|error| format!("{}: {error}", folder.display()))?;
        taken.insert(uid.to_owned(), free);
        Ok(chosen)
    }

    /// Gives back the range of a pod that has nothing on the node any more.
    pub(crate) fn release(&self, uid: &str) {
        self.taken.lock().remove(uid);
    }
}

/// Can the runtime's handler give pods user namespaces? The error is for people.
pub(crate) fn check(features: &RuntimeFeatures, handler: &str) -> Result<(), String> {
    let mut handlers = features.handlers.iter();
    if handlers.any(|known| known.name == handler && known.user_namespaces) {
        return Ok(());
    }
    Err(match handler {
        "" => "the container runtime of this node does not support user namespaces (spec.hostUsers: false)"
            .to_owned(),
        _ => format!("RuntimeClass handler {handler:?} does not support user namespaces"),
    })
}

fn range(number: u32) -> IdRange {
    IdRange {
        first: number * WIDTH,
        length: WIDTH,
    }
}

fn keep(folder: &Path, range: IdRange) -> io::Result<()> {
    let mapping = json!([{"hostId": range.first, "containerId": 0, "length": range.length}]);
    let text = json!({"uidMappings": mapping, "gidMappings": mapping}).to_string();
    durable::write(&folder.join(FILE), text.as_bytes())
}

fn parse(text: &[u8]) -> Option<u32> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let first = value["uidMappings"][0]["hostId"].as_u64()?;
    let number = u32::try_from(first).ok()? / WIDTH;
    (1..=MOST).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balsa_cri::HandlerFeatures;

    use super::*;

    #[test]
    fn each_pod_has_a_range_of_its_own_which_outlives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let ranges = UserRanges::load(dir.path());
        let one = ranges.assign("one", &dir.path().join("one")).unwrap();
        let two = ranges.assign("two", &dir.path().join("two")).unwrap();
        assert_eq!((one.first, one.length), (65_536, 65_536));
        assert_eq!(two.first, 131_072);
        assert_eq!(ranges.assign("one", Path::new("/none")).unwrap(), one);
        std::fs::create_dir(dir.path().join("damaged")).unwrap();
        std::fs::write(dir.path().join("damaged/userns"), "{").unwrap();
        let next = UserRanges::load(dir.path());
        assert_eq!(next.of("two"), Some(two));
        assert_eq!(next.of("damaged"), None);
        next.release("one");
        let three = next.assign("three", &dir.path().join("three")).unwrap();
        assert_eq!(three, one, "what was given back is given again");
    }

    #[test]
    fn a_runtime_without_user_namespaces_is_told_by_its_handler() {
        let mut features = RuntimeFeatures::default();
        let refused = check(&features, "").unwrap_err();
        assert!(refused.contains("does not support user namespaces"));
        features.handlers.push(HandlerFeatures {
            name: "kata".to_owned(),
            user_namespaces: true,
            ..HandlerFeatures::default()
        });
        assert!(check(&features, "kata").is_ok());
        assert!(check(&features, "runc").unwrap_err().contains("\"runc\""));
    }
}
