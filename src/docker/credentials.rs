//! What `docker login` has stored for a registry: in config.json, or with the helper program that it names.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use serde::Deserialize;

use super::ASK_LIMIT;
use crate::model::null_is_default;

/// Credentials of one registry; empty ones are nobody's.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
    /// Is exchanged for a token, instead of user and password.
    pub identity: String,
    /// Is sent as it is.
    pub token: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// What docker keeps in config.json, in which null is as good as nothing.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    #[serde(deserialize_with = "null_is_default")]
    auths: BTreeMap<String, Option<Auth>>,
    creds_store: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    cred_helpers: BTreeMap<String, Option<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// `USER:PASSWORD`, in Base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    username: String,
    secret: String,
}

impl Credentials {
    /// Returns what docker would send to a registry, by the config.json in this directory; empty ones if there are none.
    ///
    /// # Errors
    /// When a helper cannot be run or says something that makes no sense.
    pub fn of(host: &str, config_dir: &Path) -> Result<Credentials> {
        // Docker Hub is stored under the address of its first version.
        let key = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
        let text = std::fs::read(config_dir.join("config.json")).unwrap_or_default();
        let config: Config = serde_json::from_slice(&text).unwrap_or_default();
        let helper = config.cred_helpers.get(key).unwrap_or(&config.creds_store);
        if let Some(helper) = helper.as_ref().filter(|name| !name.is_empty()) {
            return ask(helper, key);
        }
        let plain = |stored: &str| {
            let rest = stored.trim_start_matches("https://").trim_start_matches("http://");
            rest.split('/').next().unwrap_or_default().to_string()
        };
        let found = config.auths.get(key).or_else(|| {
            config.auths.iter().find(|(stored, _)| host != "docker.io" && plain(stored) == host).map(|(_, auth)| auth)
        });
        match found {
            Some(Some(auth)) => stored(auth).with_context(|| format!("the credentials of {host} in config.json")),
            _ => Ok(Credentials::default()),
        }
    }
}

fn stored(auth: &Auth) -> Result<Credentials> {
    let text = |of: &Option<String>| of.clone().unwrap_or_default();
    let mut found = Credentials {
        user: text(&auth.username),
        password: text(&auth.password),
        identity: text(&auth.identitytoken),
        token: text(&auth.registrytoken),
    };
    if let Some(auth) = auth.auth.as_ref().filter(|auth| !auth.is_empty()) {
        let bytes = base64::engine::general_purpose::STANDARD.decode(auth).context("they are not Base64")?;
        let text = String::from_utf8(bytes).context("they are not UTF-8")?;
        let (user, password) = text.split_once(':').context("they are not USER:PASSWORD")?;
        (found.user, found.password) = (user.into(), password.trim_end_matches('\0').into());
    }
    Ok(found)
}

/// `docker-credential-NAME get`, with the registry on standard input.
fn ask(helper: &str, key: &str) -> Result<Credentials> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    ensure!(helper.chars().all(plain), "config.json names a credential helper {helper:?}, which is no name");
    let program = format!("docker-credential-{helper}");
    #[expect(clippy::disallowed_methods, reason = "docker's own helper, called as docker calls it")]
    let call = duct::cmd(&program, ["get"]).stdin_bytes(key).stdout_capture().stderr_capture().unchecked();
    let failed = || format!("`{program} get`, which config.json names, for {key}");
    let running = call.start().with_context(failed)?;
    let Some(output) = running.wait_timeout(ASK_LIMIT).with_context(failed)? else {
        let _ = running.kill();
        bail!("{}: no answer within {}", failed(), humantime::format_duration(ASK_LIMIT));
    };
    let words = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // The words of docker-credential-helpers for an empty store; they come on standard output.
        if words.contains("credentials not found") {
            return Ok(Credentials::default());
        }
        let said = [words.trim(), String::from_utf8_lossy(&output.stderr).trim()].join(" ");
        bail!("{} failed: {}", failed(), said.trim());
    }
    // The answer holds a secret: what is wrong with it is not shown.
    let told: Told =
        serde_json::from_slice(&output.stdout).ok().with_context(|| format!("{} makes no sense", failed()))?;
    Ok(match told.username.as_str() {
        "<token>" => Credentials { identity: told.secret, ..Credentials::default() },
        _ => Credentials { user: told.username, password: told.secret, ..Credentials::default() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(host: &str, config: &str) -> Credentials {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        Credentials::of(host, dir.path()).unwrap()
    }

    #[test]
    fn stored_credentials_are_found_under_every_spelling() {
        // me:secret
        let config = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6c2VjcmV0"},"https://old.io/v1/":{"auth":"bWU6c2VjcmV0"},
            "h.io:5000":{"identitytoken":"t"},"none.io":{}}}"#;
        for host in ["docker.io", "old.io"] {
            let found = found(host, config);
            assert_eq!((found.user.as_str(), found.password.as_str()), ("me", "secret"), "{host}");
        }
        assert_eq!(found("h.io:5000", config).identity, "t");
        for host in ["none.io", "h.io"] {
            assert_eq!(found(host, config), Credentials::default(), "{host}");
        }
        assert!(!format!("{:?}", found("old.io", config)).contains("secret"));
    }

    #[test]
    fn null_in_the_configuration_is_as_good_as_nothing() {
        let auth = r#"{"auth":"bWU6c2VjcmV0","identitytoken":null}"#;
        for rest in [r#""credsStore":null,"credHelpers":null"#, r#""credsStore":"x","credHelpers":{"h.io":null}"#] {
            let config = format!(r#"{{"auths":{{"h.io":{auth},"x.io":null}},{rest}}}"#);
            assert_eq!(found("h.io", &config).user, "me", "{rest}");
        }
        assert_eq!(found("x.io", r#"{"auths":{"x.io":null}}"#), Credentials::default());
        assert_eq!(found("x.io", r#"{"auths":null}"#), Credentials::default());
    }

    #[test]
    fn a_helper_that_is_a_path_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"credsStore":"../../bin/x"}"#).unwrap();
        assert!(Credentials::of("h.io", dir.path()).unwrap_err().to_string().contains("no name"));
    }
}
