//! `AuthenticationConfiguration` (apiserver.config.k8s.io/v1): issuers of tokens, how their claims make users, and who
//! may come without credentials.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use balsa_api::status::FieldErrors;
use balsa_identity::jwt::ISSUER;
use serde::{Deserialize, Serialize};

use super::claims::Mapping;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {error}")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what it should be.
    #[error("the authentication configuration cannot be used: {0}")]
    Invalid(String),
}

/// One issuer by a few settings, for clusters that need no more; what the `--oidc-*` flags of other API servers say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OidcSettings {
    /// URL of the issuer, https.
    pub issuer_url: String,
    /// The audience that tokens must have.
    pub client_id: String,
    /// Claim with the user's name; `sub`.
    pub username_claim: Option<String>,
    /// Before user names; `-` for nothing. Without it the issuer's URL and `#`, unless the claim is `email`.
    pub username_prefix: Option<String>,
    /// Claim with the user's groups.
    pub groups_claim: Option<String>,
    /// Before names of groups.
    pub groups_prefix: Option<String>,
    /// Claims that tokens must have, with their values.
    pub required_claims: BTreeMap<String, String>,
    /// CA of the issuer's certificate (PEM file); the machine's roots without it.
    pub ca_file: Option<PathBuf>,
    /// Accepted algorithms; RS256.
    pub signing_algs: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    api_version: String,
    kind: String,
    jwt: Vec<JwtAuthenticator>,
    anonymous: Option<AnonymousFile>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AnonymousFile {
    enabled: bool,
    conditions: Vec<AnonymousCondition>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AnonymousCondition {
    path: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct JwtAuthenticator {
    pub issuer: Issuer,
    pub claim_validation_rules: Vec<ClaimRule>,
    pub claim_mappings: ClaimMappings,
    pub user_validation_rules: Vec<UserRule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Issuer {
    pub url: String,
    #[serde(rename = "discoveryURL")]
    pub discovery_url: Option<String>,
    pub certificate_authority: String,
    pub audiences: Vec<String>,
    pub audience_match_policy: String,
    pub egress_selector_type: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ClaimRule {
    pub claim: String,
    pub required_value: String,
    pub expression: String,
    pub message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UserRule {
    pub expression: String,
    pub message: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClaimMappings {
    pub username: PrefixedClaim,
    pub groups: PrefixedClaim,
    pub uid: PrefixedClaim,
    pub extra: Vec<ExtraMapping>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PrefixedClaim {
    pub claim: String,
    pub prefix: Option<String>,
    pub expression: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ExtraMapping {
    pub key: String,
    pub value_expression: String,
}

/// An issuer whose tokens are accepted.
pub(super) struct Trusted {
    pub url: String,
    /// Where its configuration is.
    pub discovery: String,
    /// PEM; empty for the machine's roots.
    pub ca: Vec<u8>,
    pub audiences: Vec<String>,
    /// Accepted algorithms.
    pub algorithms: Vec<String>,
    pub mapping: Mapping,
}

/// Who may come without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anonymous {
    /// Everybody; roles say what they may do.
    Everywhere,
    /// Everybody, to these paths.
    To(Vec<String>),
    /// Nobody.
    Nowhere,
}

impl Anonymous {
    /// Whether a request for a path may come without credentials.
    #[must_use]
    pub fn allows(&self, path: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::To(paths) => paths.iter().any(|known| known == path),
            Self::Nowhere => false,
        }
    }
}

pub(super) struct Parsed {
    pub issuers: Vec<Trusted>,
    pub anonymous: Anonymous,
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| ConfigError::Read {
        path: path.display().to_string(),
        error,
    })
}

/// Reads a file.
pub(super) fn load(path: &Path) -> Result<Parsed, ConfigError> {
    let text = String::from_utf8_lossy(&read(path)?).into_owned();
    parse(&text).map_err(|why| ConfigError::Invalid(format!("{}: {why}", path.display())))
}

/// Reads a configuration; the error names all that is wrong.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let known = ["v1", "v1beta1", "v1alpha1"].map(|v| format!("apiserver.config.k8s.io/{v}"));
    if !known.contains(&file.api_version) || file.kind != "AuthenticationConfiguration" {
        return Err(format!(
            "it is {} {}, not apiserver.config.k8s.io/v1 AuthenticationConfiguration",
            file.api_version, file.kind
        ));
    }
    let mut errors = FieldErrors::default();
    let mut issuers: Vec<Trusted> = Vec::new();
    for (i, jwt) in file.jwt.into_iter().enumerate() {
        let path = format!("jwt[{i}]");
        let same = issuers.iter().any(|known| known.url == jwt.issuer.url);
        if same {
            errors.duplicate(format!("{path}.issuer.url"), jwt.issuer.url.as_str());
        }
        let algorithms = super::jwt::ALGORITHMS.map(str::to_owned).to_vec();
        issuers.extend(trusted(jwt, &path, algorithms, &mut errors));
    }
    let anonymous = match file.anonymous {
        None => Anonymous::Everywhere,
        Some(given) => anonymous(given, &mut errors),
    };
    done(Parsed { issuers, anonymous }, &errors)
}

fn done<T>(value: T, errors: &FieldErrors) -> Result<T, String> {
    if errors.is_empty() {
        return Ok(value);
    }
    let texts: Vec<String> = errors.0.iter().map(|e| e.text()).collect();
    Err(texts.join("; "))
}

fn anonymous(given: AnonymousFile, errors: &mut FieldErrors) -> Anonymous {
    if !given.enabled {
        if !given.conditions.is_empty() {
            errors.invalid(
                "anonymous.conditions",
                "",
                "enabled should be set to true when conditions are defined",
            );
        }
        return Anonymous::Nowhere;
    }
    let mut paths = Vec::new();
    for (i, condition) in given.conditions.into_iter().enumerate() {
        if condition.path.is_empty() {
            errors.required(
                format!("anonymous.conditions[{i}].path"),
                "a path is needed",
            );
        }
        paths.push(condition.path);
    }
    if paths.is_empty() {
        Anonymous::Everywhere
    } else {
        Anonymous::To(paths)
    }
}

fn check_url(url: &str, path: &str, errors: &mut FieldErrors) {
    if url.is_empty() {
        errors.required(path, "URL is required");
        return;
    }
    match url.parse::<http::Uri>() {
        Ok(uri) if uri.scheme_str() != Some("https") => {
            errors.invalid(path, url, "URL scheme must be https");
        }
        Ok(uri) if uri.query().is_some() || url.contains('#') => {
            errors.invalid(path, url, "URL must not contain a query or a fragment");
        }
        Ok(uri) if uri.authority().is_some_and(|a| a.as_str().contains('@')) => {
            errors.invalid(path, url, "URL must not contain a username or password");
        }
        Ok(_) => {}
        Err(error) => errors.invalid(path, url, error.to_string()),
    }
}

fn trusted(
    jwt: JwtAuthenticator,
    path: &str,
    algorithms: Vec<String>,
    errors: &mut FieldErrors,
) -> Option<Trusted> {
    let issuer = &jwt.issuer;
    let at = |field: &str| format!("{path}.issuer.{field}");
    check_url(&issuer.url, &at("url"), errors);
    if issuer.url == ISSUER {
        errors.invalid(
            at("url"),
            issuer.url.as_str(),
            "URL must not be the one that this cluster issues ServiceAccount tokens with",
        );
    }
    if let Some(discovery) = &issuer.discovery_url {
        check_url(discovery, &at("discoveryURL"), errors);
        if discovery.trim_end_matches('/') == issuer.url.trim_end_matches('/') {
            errors.invalid(
                at("discoveryURL"),
                discovery.as_str(),
                "discoveryURL must be different from URL",
            );
        }
    }
    if !matches!(
        issuer.egress_selector_type.as_str(),
        "" | "controlplane" | "cluster"
    ) {
        errors.invalid(
            at("egressSelectorType"),
            issuer.egress_selector_type.as_str(),
            "egress selector must be either controlplane or cluster",
        );
    }
    if issuer.audiences.is_empty() {
        errors.required(
            at("audiences"),
            "at least one jwt[].issuer.audiences is required",
        );
    }
    if issuer.audiences.len() > 1 && issuer.audience_match_policy != "MatchAny" {
        errors.invalid(
            at("audienceMatchPolicy"),
            issuer.audience_match_policy.as_str(),
            "audienceMatchPolicy must be set to MatchAny for multiple audiences",
        );
    } else if !matches!(issuer.audience_match_policy.as_str(), "" | "MatchAny") {
        errors.not_supported(
            at("audienceMatchPolicy"),
            issuer.audience_match_policy.as_str(),
            &["MatchAny"],
        );
    }
    let mapping = Mapping::compile(&jwt, path, errors)?;
    let base = issuer.url.trim_end_matches('/');
    let discovery = issuer.discovery_url.clone();
    let discovery = discovery.unwrap_or_else(|| format!("{base}/.well-known/openid-configuration"));
    Some(Trusted {
        url: issuer.url.clone(),
        discovery,
        ca: issuer.certificate_authority.clone().into_bytes(),
        audiences: issuer.audiences.clone(),
        algorithms,
        mapping,
    })
}

/// One issuer from settings.
pub(super) fn from_settings(settings: &OidcSettings) -> Result<Parsed, ConfigError> {
    let claim = settings.username_claim.clone();
    let claim = claim.unwrap_or_else(|| "sub".to_owned());
    let prefix = match settings.username_prefix.as_deref() {
        Some("-") => String::new(),
        Some(prefix) => prefix.to_owned(),
        None if claim == "email" => String::new(),
        None => format!("{}#", settings.issuer_url),
    };
    let groups = settings.groups_claim.clone().map(|claim| PrefixedClaim {
        claim,
        prefix: Some(settings.groups_prefix.clone().unwrap_or_default()),
        expression: String::new(),
    });
    let ca = match &settings.ca_file {
        Some(path) => String::from_utf8_lossy(&read(path)?).into_owned(),
        None => String::new(),
    };
    let rules = settings.required_claims.iter();
    let rules = rules.map(|(claim, value)| ClaimRule {
        claim: claim.clone(),
        required_value: value.clone(),
        ..ClaimRule::default()
    });
    let jwt = JwtAuthenticator {
        issuer: Issuer {
            url: settings.issuer_url.clone(),
            certificate_authority: ca,
            audiences: vec![settings.client_id.clone()],
            ..Issuer::default()
        },
        claim_validation_rules: rules.collect(),
        claim_mappings: ClaimMappings {
            username: PrefixedClaim {
                claim,
                prefix: Some(prefix),
                expression: String::new(),
            },
            groups: groups.unwrap_or_default(),
            ..ClaimMappings::default()
        },
        user_validation_rules: Vec::new(),
    };
    let mut errors = FieldErrors::default();
    if settings.client_id.is_empty() {
        errors.required("oidc.clientId", "the audience of tokens is needed");
    }
    let usual = || vec!["RS256".to_owned()];
    let algorithms = settings.signing_algs.clone().unwrap_or_else(usual);
    for alg in &algorithms {
        if !super::jwt::ALGORITHMS.contains(&alg.as_str()) {
            errors.not_supported("oidc.signingAlgs", alg.as_str(), &super::jwt::ALGORITHMS);
        }
    }
    let issuer = trusted(jwt, "oidc", algorithms, &mut errors);
    let parsed = Parsed {
        issuers: issuer.into_iter().collect(),
        anonymous: Anonymous::Everywhere,
    };
    done(parsed, &errors).map_err(ConfigError::Invalid)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(rest: &str) -> String {
        format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n{rest}")
    }

    #[test]
    fn all_that_is_wrong_is_named() {
        let bad = config(
            "jwt:\n- issuer: {url: 'http://x', audiences: [a, b]}\n  claimMappings:\n    username: {claim: sub}\n\
             \n    extra: [{key: Foo, valueExpression: 'claims.'}]\n",
        );
        let why = parse(&bad).err().unwrap();
        for part in [
            "jwt[0].issuer.url: Invalid value",
            "audienceMatchPolicy must be set to MatchAny",
            "jwt[0].claimMappings.username.prefix",
            "jwt[0].claimMappings.extra[0].key",
            "jwt[0].claimMappings.extra[0].valueExpression",
        ] {
            assert!(why.contains(part), "{part} in {why}");
        }
        assert!(parse("kind: Foo\napiVersion: v1\n").is_err());
        assert!(parse(&config("jwts: []\n")).is_err());
    }

    #[test]
    fn anonymous_requests_can_be_limited_to_paths() {
        let rule = |text: &str| parse(&config(text)).unwrap().anonymous;
        assert_eq!(rule(""), Anonymous::Everywhere);
        assert_eq!(rule("anonymous: {enabled: false}\n"), Anonymous::Nowhere);
        let some = rule("anonymous: {enabled: true, conditions: [{path: /livez}]}\n");
        assert!(some.allows("/livez") && !some.allows("/livez/ping") && !some.allows("/api"));
    }
}
