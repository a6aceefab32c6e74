//! From a verified token's claims to a user: mappings by claim or expression, and the rules that both must pass.
//!
//! Rules: the API documentation of AuthenticationConfiguration; KEP-3331.

use std::collections::{BTreeMap, BTreeSet};

use balsa_api::status::FieldErrors;
use balsa_cel::{Bindings, Budget, Environment, Program, Type};
use serde_json::{Value, json};

use super::config::{ClaimRule, JwtAuthenticator, PrefixedClaim, UserRule};
use crate::seam::User;

/// What all expressions of one token together may cost.
const BUDGET: u64 = 10_000_000;

/// How a text is had.
enum Source {
    /// A claim, with what stands before it.
    Claim {
        name: String,
        prefix: String,
    },
    Expression(Program),
}

struct Rule {
    check: Check,
    message: String,
}

enum Check {
    /// A claim with a certain value.
    Equals(String, String),
    Expression(Program),
}

/// See the module.
pub(super) struct Mapping {
    username: Source,
    groups: Option<Source>,
    uid: Option<Source>,
    extra: Vec<(String, Program)>,
    claim_rules: Vec<Rule>,
    user_rules: Vec<Rule>,
}

fn claims_type() -> Type {
    Type::map(Type::STRING, Type::Dyn)
}

fn user_type() -> Type {
    Type::object(
        "kubernetes.UserInfo",
        vec![
            ("username", Type::STRING),
            ("uid", Type::STRING),
            ("groups", Type::list(Type::STRING)),
            ("extra", Type::map(Type::STRING, Type::list(Type::STRING))),
        ],
    )
}

/// Compiles the expressions of one authenticator.
struct Compiler<'e> {
    claims: Environment,
    user: Environment,
    errors: &'e mut FieldErrors,
    seen: BTreeSet<String>,
}

impl Compiler<'_> {
    fn expression(
        &mut self,
        path: String,
        text: &str,
        on_user: bool,
        to: &[Type],
    ) -> Option<Program> {
        let environment = if on_user { &self.user } else { &self.claims };
        match environment.compile_to(text, to) {
            Ok(program) => Some(program),
            Err(error) => {
                self.errors
                    .invalid(path, text, format!("compilation failed: {error}"));
                None
            }
        }
    }

    fn source(
        &mut self,
        path: &str,
        given: &PrefixedClaim,
        prefixed: bool,
        to: &[Type],
    ) -> Option<Source> {
        match (given.claim.is_empty(), given.expression.is_empty()) {
            (false, false) => {
                self.errors
                    .invalid(path, "", "claim and expression can't both be set");
                None
            }
            (true, false) => {
                if given.prefix.is_some() {
                    self.errors.invalid(
                        format!("{path}.prefix"),
                        "",
                        "prefix can't be set when expression is set",
                    );
                }
                let path = format!("{path}.expression");
                self.expression(path, &given.expression, false, to)
                    .map(Source::Expression)
            }
            (false, true) => {
                if prefixed && given.prefix.is_none() {
                    self.errors.required(
                        format!("{path}.prefix"),
                        "prefix is required when claim is set. It can be set to an empty string to disable prefixing",
                    );
                }
                Some(Source::Claim {
                    name: given.claim.clone(),
                    prefix: given.prefix.clone().unwrap_or_default(),
                })
            }
            (true, true) => {
                if given.prefix.is_some() {
                    self.errors.invalid(
                        format!("{path}.prefix"),
                        "",
                        "prefix can't be set without claim",
                    );
                }
                None
            }
        }
    }

    fn claim_rule(&mut self, path: &str, rule: &ClaimRule) -> Option<Rule> {
        let key = if rule.expression.is_empty() {
            rule.claim.clone()
        } else {
            rule.expression.clone()
        };
        if !self.seen.insert(key.clone()) {
            self.errors.duplicate(path, key.as_str());
        }
        match (rule.claim.is_empty(), rule.expression.is_empty()) {
            (true, true) => {
                self.errors
                    .required(path, "claim or expression is required");
                None
            }
            (false, false) => {
                self.errors
                    .invalid(path, "", "claim and expression can't both be set");
                None
            }
            (false, true) => Some(Rule {
                check: Check::Equals(rule.claim.clone(), rule.required_value.clone()),
                message: String::new(),
            }),
            (true, false) => {
                let path = format!("{path}.expression");
                let program = self.expression(path, &rule.expression, false, &[Type::Bool])?;
                Some(Rule {
                    check: Check::Expression(program),
                    message: rule.message.clone(),
                })
            }
        }
    }

    fn user_rule(&mut self, path: &str, rule: &UserRule) -> Option<Rule> {
        let path = format!("{path}.expression");
        if rule.expression.is_empty() {
            self.errors.required(path, "expression is required");
            return None;
        }
        let program = self.expression(path, &rule.expression, true, &[Type::Bool])?;
        Some(Rule {
            check: Check::Expression(program),
            message: rule.message.clone(),
        })
    }
}

/// `example.com/key`, in lower case and not of Kubernetes' own.
fn check_extra_key(key: &str, path: &str, errors: &mut FieldErrors) {
    let Some((domain, rest)) = key
        .split_once('/')
        .filter(|(d, r)| !d.is_empty() && !r.is_empty())
    else {
        errors.invalid(
            path,
            key,
            "must be a domain-prefix path (e.g. example.org/foo)",
        );
        return;
    };
    if key.to_lowercase() != key || rest.contains(char::is_whitespace) {
        errors.invalid(path, key, "must be lowercase");
    }
    let reserved = |own: &str| domain == own || domain.ends_with(&format!(".{own}"));
    if reserved("kubernetes.io") || reserved("k8s.io") {
        errors.invalid(
            path,
            key,
            "k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use",
        );
    }
}

impl Mapping {
    /// Compiles; problems go to `errors`.
    pub(super) fn compile(
        jwt: &JwtAuthenticator,
        path: &str,
        errors: &mut FieldErrors,
    ) -> Option<Self> {
        let at = |field: &str| format!("{path}.claimMappings.{field}");
        let mut compiler = Compiler {
            claims: Environment::new().with("claims", claims_type()),
            user: Environment::new().with("user", user_type()),
            errors,
            seen: BTreeSet::new(),
        };
        let given = &jwt.claim_mappings;
        let texts = [Type::STRING, Type::list(Type::STRING)];
        let username = compiler.source(&at("username"), &given.username, true, &[Type::STRING]);
        if given.username.claim.is_empty() && given.username.expression.is_empty() {
            compiler
                .errors
                .required(at("username"), "claim or expression is required");
        }
        let groups = compiler.source(&at("groups"), &given.groups, true, &texts);
        let uid = compiler.source(&at("uid"), &given.uid, false, &[Type::STRING]);
        let mut extra = Vec::new();
        let mut keys = BTreeSet::new();
        for (i, mapping) in given.extra.iter().enumerate() {
            let path = at(&format!("extra[{i}]"));
            check_extra_key(&mapping.key, &format!("{path}.key"), compiler.errors);
            if !keys.insert(&mapping.key) {
                compiler
                    .errors
                    .duplicate(format!("{path}.key"), mapping.key.as_str());
            }
            let path = format!("{path}.valueExpression");
            let program = compiler.expression(path, &mapping.value_expression, false, &texts);
            extra.extend(program.map(|program| (mapping.key.clone(), program)));
        }
        let mut claim_rules = Vec::new();
        for (i, rule) in jwt.claim_validation_rules.iter().enumerate() {
            claim_rules
                .extend(compiler.claim_rule(&format!("{path}.claimValidationRules[{i}]"), rule));
        }
        let mut user_rules = Vec::new();
        for (i, rule) in jwt.user_validation_rules.iter().enumerate() {
            user_rules
                .extend(compiler.user_rule(&format!("{path}.userValidationRules[{i}]"), rule));
        }
        check_email(jwt, &at("username.expression"), compiler.errors);
        Some(Self {
            username: username?,
            groups,
            uid,
            extra,
            claim_rules,
            user_rules,
        })
    }

    /// The user that claims make.
    ///
    /// # Errors
    /// Why they make none; for logs.
    pub(super) fn user(&self, claims: &Value) -> Result<User, String> {
        let mut run = Run {
            claims,
            budget: Budget::new(BUDGET),
        };
        for rule in &self.claim_rules {
            run.claim_rule(rule)?;
        }
        let username = run.text(&self.username)?;
        if username.is_empty() {
            return Err("the username is empty".to_owned());
        }
        let groups = match &self.groups {
            None => Vec::new(),
            Some(source) => run.texts(source)?,
        };
        let uid = match &self.uid {
            None => String::new(),
            Some(source) => run.text(source)?,
        };
        let mut extra = BTreeMap::new();
        for (key, program) in &self.extra {
            let values = list(run.evaluate(program)?)?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        let user = User {
            name: username,
            uid,
            groups,
            extra,
        };
        self.check_user(&user, &mut run.budget)?;
        Ok(user)
    }

    fn check_user(&self, user: &User, budget: &mut Budget) -> Result<(), String> {
        let document = json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        let type_ = user_type();
        for rule in &self.user_rules {
            let Check::Expression(program) = &rule.check else {
                continue;
            };
            let bindings = Bindings::new().json("user", &document, &type_);
            let value = program.evaluate(&bindings, budget);
            let holds = value.map_err(|e| e.to_string())?.as_bool();
            if holds != Some(true) {
                return Err(failed(&rule.message, program));
            }
        }
        Ok(())
    }
}

fn failed(message: &str, program: &Program) -> String {
    if message.is_empty() {
        format!("validation expression {:?} failed", program.source())
    } else {
        format!(
            "validation expression {:?} failed: {message}",
            program.source()
        )
    }
}

/// Addresses that nobody has verified must not become names.
fn check_email(jwt: &JwtAuthenticator, path: &str, errors: &mut FieldErrors) {
    let names = |text: &str, claim: &str| {
        let dotted = format!("claims.{claim}");
        let quoted = [
            format!("claims['{claim}']"),
            format!("claims[\"{claim}\"]"),
            format!("claims[?'{claim}']"),
        ];
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let mut found = text.match_indices(&dotted).map(|(at, _)| at + dotted.len());
        found.any(|end| ends(&text[end..]))
            || text.contains(&format!("claims.?{claim}"))
            || quoted.iter().any(|q| text.contains(q))
    };
    if !names(&jwt.claim_mappings.username.expression, "email") {
        return;
    }
    let rules = jwt.claim_validation_rules.iter().map(|r| &r.expression);
    let extra = jwt.claim_mappings.extra.iter().map(|e| &e.value_expression);
    let mut all = rules
        .chain(extra)
        .chain([&jwt.claim_mappings.username.expression]);
    if !all.any(|text| names(text, "email_verified")) {
        errors.invalid(
            path,
            jwt.claim_mappings.username.expression.as_str(),
            "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
        );
    }
}

/// One evaluation.
struct Run<'a> {
    claims: &'a Value,
    budget: Budget,
}

impl Run<'_> {
    fn evaluate(&mut self, program: &Program) -> Result<Value, String> {
        let bindings = Bindings::new().json("claims", self.claims, &claims_type());
        let value = program.evaluate(&bindings, &mut self.budget);
        let value = value.map_err(|e| format!("expression {:?}: {e}", program.source()))?;
        value.to_json().map_err(|e| e.to_string())
    }

    fn claim_rule(&mut self, rule: &Rule) -> Result<(), String> {
        match &rule.check {
            Check::Equals(claim, wanted) => match self.claims.get(claim) {
                Some(Value::String(found)) if found == wanted => Ok(()),
                Some(Value::String(_)) => {
                    Err(format!("required claim {claim} value does not match"))
                }
                Some(_) => Err(format!("required claim {claim} is not a string")),
                None => Err(format!("required claim {claim} not present in ID token")),
            },
            Check::Expression(program) => match self.evaluate(program)? {
                Value::Bool(true) => Ok(()),
                _ => Err(failed(&rule.message, program)),
            },
        }
    }

    fn text(&mut self, source: &Source) -> Result<String, String> {
        match source {
            Source::Claim { name, prefix } => {
                let found = self.claims.get(name).and_then(Value::as_str);
                let text = found.ok_or_else(|| format!("claim {name} is missing or no string"))?;
                if name == "email" {
                    // Present and not true: not verified.
                    match self.claims.get("email_verified") {
                        None | Some(Value::Bool(true)) => {}
                        Some(_) => return Err("email not verified".to_owned()),
                    }
                }
                Ok(format!("{prefix}{text}"))
            }
            Source::Expression(program) => match self.evaluate(program)? {
                Value::String(text) => Ok(text),
                _ => Err(format!("expression {:?} gave no string", program.source())),
            },
        }
    }

    fn texts(&mut self, source: &Source) -> Result<Vec<String>, String> {
        match source {
            Source::Claim { name, prefix } => {
                let found = self.claims.get(name).cloned().unwrap_or_default();
                let found = list(found).map_err(|why| format!("claim {name}: {why}"))?;
                Ok(found.iter().map(|text| format!("{prefix}{text}")).collect())
            }
            Source::Expression(program) => list(self.evaluate(program)?),
        }
    }
}

/// A text, or a list of them; nothing for null. Empty ones are left out.
fn list(value: Value) -> Result<Vec<String>, String> {
    let all = match value {
        Value::Null => Vec::new(),
        Value::String(text) => vec![text],
        Value::Array(items) => items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                _ => Err("a string or a list of strings is needed".to_owned()),
            })
            .collect::<Result<_, _>>()?,
        _ => return Err("a string or a list of strings is needed".to_owned()),
    };
    Ok(all.into_iter().filter(|text| !text.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::config::parse;
    use super::*;

    fn mapping(yaml: &str) -> Result<Mapping, String> {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n\
             jwt:\n- issuer: {{url: 'https://x', audiences: [a]}}\n{yaml}"
        );
        Ok(parse(&text)?.issuers.remove(0).mapping)
    }

    #[test]
    fn claims_become_users_with_prefixes() {
        let mapping = mapping(
            "  claimMappings:\n    username: {claim: sub, prefix: 'oidc:'}\n    groups: {claim: roles, prefix: 'g:'}\n    uid: {claim: id}\n",
        )
        .unwrap();
        let user = mapping
            .user(&json!({"sub": "ann", "roles": ["a", "b"], "id": "7"}))
            .unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("oidc:ann", "7"));
        assert_eq!(user.groups, ["g:a", "g:b"]);
        let one = mapping
            .user(&json!({"sub": "ann", "roles": "a", "id": "7"}))
            .unwrap();
        assert_eq!(one.groups, ["g:a"]);
        assert!(mapping.user(&json!({"roles": []})).is_err());
    }

    #[test]
    fn expressions_make_and_check_users() {
        let mapping = mapping(
            "  claimValidationRules:\n  - expression: 'claims.hd == \"example.com\"'\n    message: wrong domain\n\
             \n  - {claim: tier, requiredValue: gold}\n\
             \n  claimMappings:\n    username: {expression: 'claims.name + \"@x\"'}\n    groups: {expression: 'claims.roles.split(\",\")'}\n\
             \n    extra:\n    - {key: example.com/dept, valueExpression: 'claims.?dept.orValue(\"\")'}\n\
             \n  userValidationRules:\n  - {expression: \"!user.username.startsWith('system:')\", message: reserved}\n",
        )
        .unwrap();
        let good = json!({"hd": "example.com", "tier": "gold", "name": "ann", "roles": "a,b", "dept": "it"});
        let user = mapping.user(&good).unwrap();
        assert_eq!(user.name, "ann@x");
        assert_eq!(user.groups, ["a", "b"]);
        assert_eq!(user.extra["example.com/dept"], ["it"]);
        let refused = |key: &str, value: &str| {
            let mut claims = good.clone();
            claims[key] = value.into();
            mapping.user(&claims).unwrap_err()
        };
        assert!(refused("hd", "evil.com").contains("wrong domain"));
        assert!(refused("tier", "tin").contains("tier"));
        assert!(refused("name", "system:admin").contains("reserved"));
    }

    #[test]
    fn an_address_must_be_verified_to_be_a_name() {
        let mapped =
            mapping("  claimMappings:\n    username: {claim: email, prefix: ''}\n").unwrap();
        assert!(
            mapped
                .user(&json!({"email": "a@b", "email_verified": true}))
                .is_ok()
        );
        assert!(mapped.user(&json!({"email": "a@b"})).is_ok());
        assert!(
            mapped
                .user(&json!({"email": "a@b", "email_verified": false}))
                .is_err()
        );
        let why = mapping("  claimMappings:\n    username: {expression: claims.email}\n");
        assert!(
            why.err()
                .unwrap()
                .contains("claims.email_verified must be used")
        );
    }
}
