//! Names of images, as pods and nodes tell them.

/// An image that a pod runs. Nodes tell their images' names in full, pods mostly do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    given: String,
    full: String,
}

impl Image {
    /// From the name in a pod's spec.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            given: name.to_owned(),
            full: full(name),
        }
    }

    /// Names that a node may tell it under.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let full = (self.full != self.given).then_some(&*self.full);
        std::iter::once(&*self.given).chain(full)
    }
}

/// The name with its registry and tag.
fn full(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    let tagged = if last.contains(':') || last.contains('@') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    };
    let first = name.split('/').next().unwrap_or_default();
    let has_host =
        name.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    match (has_host, name.contains('/')) {
        (true, _) => tagged,
        (false, true) => format!("docker.io/{tagged}"),
        (false, false) => format!("docker.io/library/{tagged}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_full_only_where_something_is_missing() {
        for (given, whole) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("team/app:1", "docker.io/team/app:1"),
            ("localhost/app", "localhost/app:latest"),
            ("host:5000/app@sha256:0", "host:5000/app@sha256:0"),
        ] {
            assert_eq!(full(given), whole);
        }
    }
}
