//! Values that only libraries make and look into.

use balsa_api::quantity::Quantity;
use ipnet::IpNet;
use std::net::IpAddr;

use super::image::Image;
use super::named_format::NamedFormat;
use super::semver::Semver;
use super::url::Url;

/// A library's value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Opaque {
    Quantity(Quantity),
    Url(Url),
    Ip(IpAddr),
    Cidr(IpNet),
    Semver(Semver),
    Format(NamedFormat),
    Image(Image),
}

/// Names of library types: in declarations, and in full.
const NAMES: [(&str, &str); 12] = [
    ("quantity", "kubernetes.Quantity"),
    ("url", "kubernetes.URL"),
    ("ip", "net.IP"),
    ("cidr", "net.CIDR"),
    ("semver", "kubernetes.Semver"),
    ("format", "kubernetes.NamedFormat"),
    ("image", "kubernetes.Image"),
    ("authorizer", "kubernetes.authorization.Authorizer"),
    ("pathcheck", "kubernetes.authorization.PathCheck"),
    ("groupcheck", "kubernetes.authorization.GroupCheck"),
    ("resourcecheck", "kubernetes.authorization.ResourceCheck"),
    ("decision", "kubernetes.authorization.Decision"),
];

/// The full name of a type by the one that declarations use.
pub fn full_name(short: &str) -> Option<&'static str> {
    NAMES
        .iter()
        .find(|(known, _)| *known == short)
        .map(|(_, full)| *full)
}

impl Opaque {
    /// The type's name.
    #[must_use]
    pub fn type_name(&self) -> &'static str {
        let short = match self {
            Self::Quantity(_) => "quantity",
            Self::Url(_) => "url",
            Self::Ip(_) => "ip",
            Self::Cidr(_) => "cidr",
            Self::Semver(_) => "semver",
            Self::Format(_) => "format",
            Self::Image(_) => "image",
        };
        full_name(short).unwrap_or(short)
    }
}
