//! How full published volumes are, as their drivers tell it.

use balsa_client::EventType;
use balsa_csi::v1::NodeGetVolumeStatsResponse;
use balsa_csi::v1::volume_usage::Unit;
use tracing::debug;

use super::{Csi, Published};

/// Amounts of something of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amounts {
    pub(crate) total: i64,
    pub(crate) used: i64,
    pub(crate) available: i64,
}

/// How full a volume is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct VolumeUse {
    /// The pod that has it, by UID.
    pub(crate) pod: String,
    /// Its name in the pod.
    pub(crate) volume: String,
    /// Namespace and name of its claim, if it has one.
    pub(crate) claim: Option<(String, String)>,
    pub(crate) bytes: Option<Amounts>,
    pub(crate) inodes: Option<Amounts>,
    /// What its driver says is wrong with it.
    pub(crate) abnormal: Option<String>,
}

impl VolumeUse {
    /// What is wrong with the volume and was not told before.
    fn news(&self, before: &[Self]) -> Option<&String> {
        let trouble = self.abnormal.as_ref()?;
        let before = before
            .iter()
            .find(|other| other.pod == self.pod && other.volume == self.volume);
        let told = before.and_then(|before| before.abnormal.as_ref());
        (told != Some(trouble)).then_some(trouble)
    }

    fn read(&mut self, answer: NodeGetVolumeStatsResponse) {
        for usage in answer.usage {
            let amounts = Amounts {
                total: usage.total,
                used: usage.used,
                available: usage.available,
            };
            match usage.unit() {
                Unit::Bytes => self.bytes = Some(amounts),
                Unit::Inodes => self.inodes = Some(amounts),
                Unit::Unknown => {}
            }
        }
        let condition = answer.volume_condition;
        let condition = condition.filter(|condition| condition.abnormal);
        self.abnormal = condition.map(|condition| condition.message);
    }
}

impl Csi {
    /// How full volumes were when last looked at, which is once a minute.
    pub(crate) fn usage(&self) -> Vec<VolumeUse> {
        self.usage.lock().clone()
    }

    /// Asks drivers how full their volumes are.
    pub(super) async fn look_at_usage(&self) {
        let mut found = Vec::new();
        for ((uid, volume), published) in self.all_published() {
            if let Some(usage) = self.usage_of(&uid, volume, &published).await {
                let news = usage.news(&self.usage.lock());
                if let Some(trouble) = news {
                    let text = format!("Volume {}: {trouble}", published.plan.record.volume);
                    let (kind, reason) = (EventType::Warning, "VolumeConditionAbnormal");
                    self.recorder.event(&published.pod, kind, reason, text);
                }
                found.push(usage);
            }
        }
        *self.usage.lock() = found;
    }

    async fn usage_of(
        &self,
        uid: &str,
        volume: String,
        published: &Published,
    ) -> Option<VolumeUse> {
        let record = &published.plan.record;
        let driver = self.registry.get(&record.driver)?;
        if !driver.able.stats {
            return None;
        }
        let target = self.layout.target(uid, &record.volume, record.block);
        let known = self.layout.as_known(&target);
        let answer = match driver.stats(&record.handle, &known).await {
            Ok(answer) => answer,
            Err(error) => {
                debug!(%error, volume, "a driver does not tell how full a volume is");
                return None;
            }
        };
        let mut usage = VolumeUse {
            pod: uid.to_owned(),
            volume,
            claim: published.claim.clone(),
            ..VolumeUse::default()
        };
        usage.read(answer);
        if !driver.able.condition {
            usage.abnormal = None;
        }
        Some(usage)
    }
}

#[cfg(test)]
mod tests {
    use balsa_csi::v1::{VolumeCondition, VolumeUsage};

    use super::*;

    #[test]
    fn trouble_with_a_volume_is_news_once() {
        let volume = |trouble: Option<&str>| VolumeUse {
            abnormal: trouble.map(str::to_owned),
            ..VolumeUse::default()
        };
        let broken = volume(Some("broken"));
        assert_eq!(broken.news(&[]), Some(&"broken".to_owned()));
        assert_eq!(broken.news(&[volume(None)]), Some(&"broken".to_owned()));
        assert_eq!(broken.news(&[volume(Some("broken"))]), None);
        assert_eq!(volume(None).news(&[broken]), None);
    }

    #[test]
    fn bytes_and_inodes_are_told_apart() {
        let usage = |unit: Unit, total| VolumeUsage {
            unit: unit as i32,
            total,
            used: 1,
            available: total - 1,
        };
        let mut read = VolumeUse::default();
        read.read(NodeGetVolumeStatsResponse {
            usage: vec![usage(Unit::Bytes, 100), usage(Unit::Inodes, 10)],
            volume_condition: Some(VolumeCondition {
                abnormal: false,
                message: "fine".into(),
            }),
        });
        let expected = Amounts {
            total: 10,
            used: 1,
            available: 9,
        };
        assert_eq!((read.inodes, read.abnormal.clone()), (Some(expected), None));
        assert_eq!(read.bytes.map(|bytes| bytes.total), Some(100));
    }
}
