//! What a namespace's labels ask of its pods: a level and a version for each of enforce, audit and warn.

use balsa_api::object;
use balsa_api::status::FieldErrors;
use serde_json::Value;

/// Prefix of the labels.
pub const PREFIX: &str = "pod-security.kubernetes.io/";
/// Minor version of Kubernetes whose standards are `latest`.
pub const LATEST: u32 = 35;

/// How much a pod may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Everything.
    #[default]
    Privileged,
    /// Nothing that is known to lead out of the container.
    Baseline,
    /// What hardened pods need.
    Restricted,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            "restricted" => Self::Restricted,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A level in a version of the standards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LevelVersion {
    /// Level.
    pub level: Level,
    /// Minor version; `None` is `latest`.
    pub version: Option<u32>,
}

impl LevelVersion {
    /// The minor version that counts.
    #[must_use]
    pub fn minor(&self) -> u32 {
        self.version.map_or(LATEST, |v| v.min(LATEST))
    }
}

impl std::fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version {
            Some(minor) => write!(f, "{}:v1.{minor}", self.level.name()),
            None => write!(f, "{}:latest", self.level.name()),
        }
    }
}

/// What a namespace asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Pods that do not comply are refused.
    pub enforce: LevelVersion,
    /// They are noted in the audit log.
    pub audit: LevelVersion,
    /// Their makers are warned.
    pub warn: LevelVersion,
}

/// `latest` or `v1.N`.
fn version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    if minor.is_empty() || (minor.len() > 1 && minor.starts_with('0')) {
        return None;
    }
    minor.parse().ok().map(Some)
}

/// Reads a namespace's labels. What cannot be read counts as the strictest (for enforce: restricted), and is reported.
#[must_use]
pub fn policy(namespace: &Value) -> (Policy, FieldErrors) {
    let mut errors = FieldErrors::default();
    let mut read = |mode: &str, strictest: Level| {
        let mut found = LevelVersion::default();
        let key = format!("{PREFIX}{mode}");
        if let Some(text) = object::label(namespace, &key) {
            match Level::parse(text) {
                Some(level) => found.level = level,
                None => {
                    found.level = strictest;
                    errors.invalid(
                        format!("metadata.labels[{key}]"),
                        text,
                        "must be one of privileged, baseline, restricted",
                    );
                }
            }
        }
        let key = format!("{PREFIX}{mode}-version");
        if let Some(text) = object::label(namespace, &key) {
            match version(text) {
                Some(version) => found.version = version,
                None => errors.invalid(
                    format!("metadata.labels[{key}]"),
                    text,
                    "must be \"latest\" or \"v1.x\"",
                ),
            }
        }
        found
    };
    let enforce = read("enforce", Level::Restricted);
    let audit = read("audit", Level::Privileged);
    let warn_given = object::label(namespace, &format!("{PREFIX}warn")).is_some();
    let mut warn = read("warn", Level::Privileged);
    // Whoever enforces without a word on warnings is warned of what will be refused: useful for pod templates.
    if !warn_given && enforce.level > Level::Privileged {
        warn = enforce;
    }
    (
        Policy {
            enforce,
            audit,
            warn,
        },
        errors,
    )
}
