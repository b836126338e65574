//! Credentials in cache volumes and cache mounts, which others read as well. Pure rules over names at known depths; what
//! the files hold nobody looks at.

use super::{Fact, Finding, NotRun, Severity};
use crate::catalogue::{self, Class};
use crate::inside::scan::is_secret;
use crate::model::VolumeUser;
use crate::report::quote;

/// The check's name: looking into volumes and mounts for it costs time.
pub const SECRET_IN_CACHE: &str = "secret-in-cache";

/// A volume or mount, and the names of [`searches`] that are in it.
#[derive(Clone, Debug)]
pub struct Holder {
    pub kind: Kind,
    /// Of a volume, or the id of a mount.
    pub name: String,
    /// Where the catalogue looks for it.
    pub mounted_at: String,
    /// Below it.
    pub names: Vec<String>,
}

#[derive(Clone, Debug)]
pub enum Kind {
    Volume(Vec<VolumeUser>),
    Mount { builder: String, record: String },
}

/// What was looked at.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    pub holders: Vec<Holder>,
    /// What was not, and why: a sentence each.
    pub gaps: Vec<String>,
    /// Why no cache mount was looked into, if they were to be.
    pub unknown_mounts: Option<NotRun>,
}

/// Names of files that tools, and people, keep credentials in, wherever they lie.
const NAMES: &[&str] = &[
    ".git-credentials",
    ".netrc",
    ".npmrc",
    ".pypirc",
    ".yarnrc.yml",
    "auth.json",
    "credentials",
    "credentials.json",
    "credentials.toml",
    "id_ecdsa",
    "id_ed25519",
    "id_rsa",
    "*-key.pem",
];

/// Returns the paths to look for in what is mounted there: those that the catalogue knows to be secret, and the usual
/// names in it and in each of its directories.
pub fn searches(mounted_at: &str) -> Vec<String> {
    let secret =
        |known: catalogue::Known| (known.class == Class::Secret && !known.path.is_empty()).then_some(known.path);
    let known = catalogue::known_below(mounted_at).into_iter().filter_map(secret);
    known.chain(NAMES.iter().flat_map(|name| [(*name).to_owned(), format!("*/{name}")])).collect()
}

/// Returns a finding for each volume and mount that holds credentials.
///
/// # Errors
/// When nothing is found, and cache mounts were not looked into.
pub fn secret_in_cache(Secrets { holders, gaps, unknown_mounts }: &Secrets) -> Fact<Vec<Finding>> {
    let gaps = gaps.iter().map(|gap| Finding::new(Severity::Note, gap.clone()));
    let found: Vec<Finding> =
        holders.iter().filter(|holder| !holder.names.is_empty()).map(finding).chain(gaps).collect();
    match unknown_mounts {
        Some(why) if found.is_empty() => Err(why.clone()),
        _ => Ok(found),
    }
}

fn finding(Holder { kind, name, mounted_at, names }: &Holder) -> Finding {
    let root = mounted_at.trim_end_matches('/');
    let path = |name: &String| format!("{root}/{name}");
    let held = format!("holds {}, where credentials usually are", listed(names.iter().map(path)));
    // An export leaves behind what the catalogue knows to be secret, what is of no cache, and in the directories that the
    // catalogue names what has the name of a secret.
    let known = catalogue::known_below(mounted_at);
    let goes = |name: &&String| {
        let (directory, file) = name.rsplit_once('/').unwrap_or(("", name));
        let is_own = known.iter().any(|known| known.path == directory) || directory.is_empty();
        let is_left = is_own && is_secret(catalogue::SECRETS, file.as_bytes());
        !is_left && catalogue::deepest(&known, name).is_some_and(|known| known.class.is_deletable())
    };
    let exported: Vec<&String> = names.iter().filter(goes).collect();
    let export = match exported.as_slice() {
        [] => String::new(),
        exported => format!(", and `docker cache export` copies {}", listed(exported.iter().map(|name| path(name)))),
    };
    match kind {
        Kind::Volume(users) => {
            let mut containers: Vec<&str> = users.iter().map(|user| user.container.as_str()).collect();
            containers.dedup();
            let readers = match containers.as_slice() {
                [] | [_] => "every container that mounts it can read that".into(),
                [before @ .., last] => format!("containers {} and {last} can read that", before.join(", ")),
            };
            let is_shared = containers.len() > 1 || !export.is_empty();
            let severity = if is_shared { Severity::Warning } else { Severity::Note };
            let message =
                format!("volume {name} {held}: {readers}{export}; remove it, and log in by a secret or a variable");
            let paths: String = names.iter().map(|name| format!(" --path {}", quote(path(name)))).collect();
            let command = format!("docker cache clear --volume {} --include-installs{paths}", quote(name));
            Finding::new(severity, message).command(command)
        }
        Kind::Mount { builder, record } => {
            let message = format!(
                "cache mount {name} of builder {builder} {held}: every build of this builder can read that{export}; \
                 remove the mount, and use `--mount=type=secret` in the step that needs it"
            );
            let filter = format!("--filter 'id=^({record})$'");
            let command = format!("docker buildx prune --builder {} --all --force {filter}", quote(builder));
            Finding::new(Severity::Warning, message).command(command)
        }
    }
}

/// Returns the first paths for a sentence, and how many more there are.
fn listed(paths: impl Iterator<Item = String>) -> String {
    let paths: Vec<String> = paths.map(|path| format!("`{path}`")).collect();
    match paths.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [one, other] => format!("{one} and {other}"),
        [one, other, more @ ..] => format!("{one}, {other} and {} more", more.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(mounted_at: &str, containers: &[&str], names: &[&str]) -> Holder {
        let user = |name: &&str| VolumeUser {
            container: (*name).into(),
            destination: Some(mounted_at.into()),
            is_whole: true,
            running: true,
        };
        Holder {
            kind: Kind::Volume(containers.iter().map(user).collect()),
            name: "v".into(),
            mounted_at: mounted_at.into(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_known_and_what_is_usual_is_looked_for() {
        let all = searches("/cache");
        for path in ["cargo/credentials.toml", "docker/config.json", ".npmrc", "*/.npmrc", "*/*-key.pem"] {
            assert!(all.iter().any(|search| search == path), "{path}: {all:?}");
        }
        let of_maven = searches("/root/.m2");
        assert!(of_maven.contains(&"settings.xml".into()) && !of_maven.contains(&"cargo/credentials.toml".into()));
    }

    #[test]
    fn mounts_that_could_not_be_looked_into_are_not_in_order() {
        let why = NotRun::Failed("the builder is gone".into());
        let mut secrets = Secrets { unknown_mounts: Some(why.clone()), ..Secrets::default() };
        assert_eq!(secret_in_cache(&secrets), Err(why));
        secrets.holders.push(volume("/cache", &["a"], &["pip/.netrc"]));
        assert_eq!(secret_in_cache(&secrets).map(|found| found.len()), Ok(1));
    }

    #[test]
    fn who_reads_a_secret_decides_how_bad_it_is() {
        let found = |holder: Holder| secret_in_cache(&Secrets { holders: vec![holder], ..Secrets::default() }).unwrap();
        assert_eq!(found(volume("/cache", &["a", "b"], &[])), []);
        let alone = found(volume("/cache", &["a"], &["cargo/credentials.toml"])).remove(0);
        assert!(alone.severity == Severity::Note && alone.message.contains("`/cache/cargo/credentials.toml`"));
        assert!(!alone.message.contains("export"), "{}", alone.message);
        let shared = found(volume("/cache", &["a", "b"], &["cargo/credentials.toml"])).remove(0);
        assert!(shared.severity == Severity::Warning && shared.message.contains("containers a and b can read that"));
        let left = found(volume("/cache", &["a"], &["npm/.npmrc", "pip/x-key.pem", ".netrc"])).remove(0);
        assert!(left.severity == Severity::Note && !left.message.contains("export"), "{}", left.message);
        let carried = found(volume("/root/.cache/pip", &["a"], &[".netrc", "http/.netrc"])).remove(0);
        assert!(carried.severity == Severity::Warning, "{}", carried.message);
        assert!(carried.message.contains("export` copies `/root/.cache/pip/http/.netrc`;"), "{}", carried.message);
        let kind = Kind::Mount { builder: "default".into(), record: "abc".into() };
        let mount = found(Holder { kind, ..volume("/root/.m2", &[], &["settings.xml"]) }).remove(0);
        assert!(format!("{:?}", mount.fix).contains("--filter 'id=^(abc)$'"), "{:?}", mount.fix);
    }
}
