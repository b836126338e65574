//! Credentials in cache volumes and cache mounts, which others read as well. Pure rules over names at known depths; what
//! the files hold nobody looks at.

use super::{Fact, Finding, NotRun, Severity};
use crate::catalogue::{self, Class, Known};
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
    let path = |name: &String| path_of(mounted_at, name);
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
            let command = volume_remedy(name, mounted_at, names, users.iter().any(|user| user.running));
            Finding::new(severity, message).command(command)
        }
        Kind::Mount { builder, record } => {
            let known = catalogue::known_in_mount(name, mounted_at);
            let at_builder = format!("--builder {}", quote(builder));
            let (what, command) = match names.iter().all(|name| is_cleared(&known, name)) {
                true => {
                    let paths = arguments(" --path ", mounted_at, names);
                    let mount = format!("--mount {} --include-installs{paths}", quote(name));
                    ("it", format!("docker cache clear {at_builder} {mount}"))
                }
                // What lies beside the directories of tools only goes with the whole mount.
                false => {
                    let filter = format!("--filter 'id=^({record})$'");
                    ("the mount", format!("docker buildx prune {at_builder} --all --force {filter}"))
                }
            };
            let message = format!(
                "cache mount {name} of builder {builder} {held}: every build of this builder can read that{export}; \
                 remove {what}, and use `--mount=type=secret` in the step that needs it"
            );
            Finding::new(Severity::Warning, message).command(command)
        }
    }
}

/// Returns the command that removes names from a volume.
fn volume_remedy(volume: &str, mounted_at: &str, names: &[String], running: bool) -> String {
    let known = catalogue::known_below(mounted_at);
    let (cleared, others): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| is_cleared(&known, name));
    let force = if running { " --force-in-use" } else { "" };
    let paths = arguments(" --path ", mounted_at, cleared.iter().copied());
    let clear = format!("docker cache clear --volume {} --include-installs{force}{paths}", quote(volume));
    let bind = quote(format!("{volume}:{mounted_at}"));
    let paths = arguments(" ", mounted_at, others.iter().copied());
    let remove = format!("docker run --rm --volume {bind} busybox rm -r --{paths}");
    match (cleared.is_empty(), others.is_empty()) {
        (_, true) => clear,
        (true, false) => remove,
        (false, false) => format!("{remove} && {clear}"),
    }
}

/// Returns the paths of names for a command, each after the same words.
fn arguments<'a>(before: &str, mounted_at: &str, names: impl IntoIterator<Item = &'a String>) -> String {
    names.into_iter().map(|name| format!("{before}{}", quote(path_of(mounted_at, name)))).collect()
}

fn path_of(mounted_at: &str, name: &str) -> String {
    format!("{}/{name}", mounted_at.trim_end_matches('/'))
}

/// Tells whether `docker cache clear --path` takes this path: it lies in a directory of a tool.
fn is_cleared(known: &[Known], name: &str) -> bool {
    catalogue::single_out(&mut known.to_vec(), name)
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
    use super::super::Fix;
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
    }

    fn remedy(holder: Holder) -> String {
        let found = secret_in_cache(&Secrets { holders: vec![holder], ..Secrets::default() }).unwrap().remove(0);
        match found.fix {
            Some(Fix::Command { command }) => command,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clear_is_given_only_paths_that_it_takes() {
        assert_eq!(
            remedy(volume("/cache", &["a"], &[".ssh/id_rsa", "pip/.netrc", "a b/.netrc"])),
            "docker run --rm --volume v:/cache busybox rm -r -- /cache/.ssh/id_rsa '/cache/a b/.netrc' && \
             docker cache clear --volume v --include-installs --force-in-use --path /cache/pip/.netrc"
        );
        assert_eq!(
            remedy(volume("/cache", &[], &["cargo/credentials.toml"])),
            "docker cache clear --volume v --include-installs --path /cache/cargo/credentials.toml"
        );
        assert_eq!(
            remedy(volume("/cache", &[], &[".netrc"])),
            "docker run --rm --volume v:/cache busybox rm -r -- /cache/.netrc"
        );
    }

    #[test]
    fn a_mount_is_removed_only_for_what_clear_does_not_take() {
        let mount = |target: &str, name: &str| {
            let kind = Kind::Mount { builder: "b".into(), record: "abc".into() };
            remedy(Holder { kind, ..volume(target, &[], &[name]) })
        };
        assert_eq!(
            mount("/usr/local/cargo", "credentials.toml"),
            "docker cache clear --builder b --mount v --include-installs --path /usr/local/cargo/credentials.toml"
        );
        assert_eq!(mount("/root", ".netrc"), "docker buildx prune --builder b --all --force --filter 'id=^(abc)$'");
    }
}
