//! Who a verified client certificate belongs to.

use crate::NODE_USER_PREFIX;
use crate::error::Error;

/// Subject of a certificate as Kubernetes reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerIdentity {
    /// Common name: the user.
    pub common_name: String,
    /// Organizations: the groups.
    pub organizations: Vec<String>,
    /// Start and end of validity, seconds since 1970.
    pub validity: (i64, i64),
}

impl PeerIdentity {
    /// Reads a certificate (DER) that TLS has verified. Verifies nothing itself.
    ///
    /// # Errors
    /// When the bytes are not a certificate, or its names are not text.
    pub fn from_certificate(der: &[u8]) -> Result<Self, Error> {
        let (_, parsed) = x509_parser::parse_x509_certificate(der)
            .map_err(|e| Error::invalid("client certificate", e))?;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute
                .as_str()
                .map(str::to_owned)
                .map_err(|e| Error::invalid("client certificate", format_args!("subject: {e}")))
        };
        let subject = parsed.subject();
        Ok(Self {
            common_name: subject
                .iter_common_name()
                .next()
                .map(text)
                .transpose()?
                .unwrap_or_default(),
            organizations: subject
                .iter_organization()
                .map(text)
                .collect::<Result<_, _>>()?,
            validity: (
                parsed.validity().not_before.timestamp(),
                parsed.validity().not_after.timestamp(),
            ),
        })
    }

    /// The node whose agent this is.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        if !self.organizations.iter().any(|o| o == crate::GROUP_NODES) {
            return None;
        }
        self.common_name.strip_prefix(NODE_USER_PREFIX)
    }
}
