//! Query parameters, parsed once per request.

use balsa_api::status::Status;

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what follows the `?`.
    #[must_use]
    pub fn parse(query: &str) -> Self {
        if query.is_empty() {
            return Self::default();
        }
        Self(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// First value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// First value of a parameter, where an empty one counts as absent.
    #[must_use]
    pub fn some(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// A boolean as Kubernetes reads it: present and not `false` or `0`.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.tristate(name).unwrap_or(false)
    }

    /// A boolean that may be absent.
    #[must_use]
    pub fn tristate(&self, name: &str) -> Option<bool> {
        self.get(name)
            .map(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0" | "f"))
    }

    /// An integer.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Status> {
        self.some(name)
            .map(|v| {
                v.parse().map_err(|_| {
                    Status::bad_request(format!(
                        "unable to parse query parameter {name}: \"{v}\" is no integer"
                    ))
                })
            })
            .transpose()
    }
}
