//! Registry credentials from pull secrets (`kubernetes.io/dockerconfigjson`, `kubernetes.io/dockercfg`).

use balsa_cri::Auth;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

/// Credentials in the secrets that fit the image's registry, most exact first.
pub(super) fn for_image(image: &str, secrets: &[&Secret]) -> Vec<Auth> {
    let mut found: Vec<(usize, Auth)> = secrets
        .iter()
        .flat_map(|secret| entries(secret, image))
        .collect();
    found.sort_by_key(|(exactness, _)| std::cmp::Reverse(*exactness));
    found.into_iter().map(|(_, auth)| auth).collect()
}

fn entries(secret: &Secret, image: &str) -> Vec<(usize, Auth)> {
    let data = secret.data.iter().flatten();
    let mut auths = Vec::new();
    for (key, bytes) in data {
        let Ok(value) = serde_json::from_slice::<Value>(&bytes.0) else {
            continue;
        };
        let list = match key.as_str() {
            ".dockerconfigjson" => value.get("auths").cloned(),
            ".dockercfg" => Some(value),
            _ => None,
        };
        let Some(Value::Object(list)) = list else {
            continue;
        };
        for (server, entry) in list {
            if let Some(exactness) = fits(&server, image) {
                auths.push((exactness, auth(&server, &entry)));
            }
        }
    }
    auths
}

fn auth(server: &str, entry: &Value) -> Auth {
    let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    Auth {
        username: text("username"),
        password: text("password"),
        auth: text("auth"),
        server: server.to_owned(),
        identity_token: text("identitytoken"),
        registry_token: String::new(),
    }
}

/// Does a server's entry hold for an image? Answers with how exactly.
fn fits(server: &str, image: &str) -> Option<usize> {
    let server = server
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let server = server
        .trim_end_matches('/')
        .trim_end_matches("/v1")
        .trim_end_matches("/v2");
    let first = image.split('/').next().unwrap_or_default();
    let has_host = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let full = if has_host {
        image.to_owned()
    } else {
        format!("index.docker.io/{image}")
    };
    let server = if server == "docker.io" {
        "index.docker.io"
    } else {
        server
    };
    let (host, path) = full.split_once('/')?;
    let (wanted_host, wanted_path) = server.split_once('/').unwrap_or((server, ""));
    let host_fits = match wanted_host.strip_prefix("*.") {
        Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest == domain),
        None => host == wanted_host,
    };
    (host_fits && path.starts_with(wanted_path)).then_some(server.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn servers_fit_images_of_theirs_only() {
        for (server, image, wanted) in [
            ("https://index.docker.io/v1/", "nginx", true),
            ("docker.io", "library/nginx", true),
            ("reg.io", "reg.io/a/b", true),
            ("reg.io/a", "reg.io/a/b", true),
            ("reg.io/c", "reg.io/a/b", false),
            ("*.reg.io", "eu.reg.io/a", true),
            ("reg.io", "nginx", false),
        ] {
            assert_eq!(fits(server, image).is_some(), wanted, "{server} {image}");
        }
    }

    #[test]
    fn the_most_exact_entry_comes_first() {
        let config = r#"{"auths":{"reg.io":{"username":"a"},"reg.io/x":{"username":"b"}}}"#;
        let data = [(
            ".dockerconfigjson".to_owned(),
            k8s_openapi::ByteString(config.into()),
        )]
        .into();
        let secret = Secret {
            data: Some(data),
            ..Secret::default()
        };
        let names: Vec<_> = for_image("reg.io/x/y:1", &[&secret])
            .into_iter()
            .map(|auth| auth.username)
            .collect();
        assert_eq!(names, ["b", "a"]);
    }
}
