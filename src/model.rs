//! The nouns: builders, cache records, cache mounts, cache volumes. They hold facts and know nothing of processes.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// A number of bytes, shown as docker shows it: `1.235MB`, decimal, four digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut size = self.0 as f64;
        let mut unit = 0;
        const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
        while size >= 1000.0 && unit + 1 < UNITS.len() {
            size /= 1000.0;
            unit += 1;
        }
        // Four significant digits and no trailing zeros, as Go's %.4g prints.
        let decimals = if size >= 999.95 {
            0
        } else if size >= 100.0 {
            1
        } else if size >= 10.0 {
            2
        } else {
            3
        };
        let mut text = format!("{size:.decimals$}");
        if text.contains('.') {
            text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
        }
        f.pad(&format!("{text}{}", UNITS[unit]))
    }
}

impl std::str::FromStr for Bytes {
    type Err = String;

    /// Reads `2GB`, `1.5 MB`, `500m`: decimal, as sizes are shown; `2GiB` is binary.
    fn from_str(text: &str) -> Result<Bytes, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.trim().to_lowercase();
        let (base, prefix) = match unit.strip_suffix("ib") {
            Some(prefix) => (1024f64, prefix),
            None => (1000f64, unit.strip_suffix('b').unwrap_or(&unit)),
        };
        let exponent = ["", "k", "m", "g", "t", "p", "e"].iter().position(|known| *known == prefix);
        match (number.parse::<f64>(), exponent) {
            (Ok(number), Some(exponent)) => Ok(Bytes((number * base.powi(exponent as i32)).round() as u64)),
            _ => Err("a size looks like `500MB`, `2GB` or `1.5GiB`".into()),
        }
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(sizes: I) -> Bytes {
        Bytes(sizes.map(|size| size.0).sum())
    }
}

/// A moment in seconds since 1970, shown as docker shows ages: `3 days ago`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

impl Moment {
    /// Returns the present moment.
    pub fn now() -> Moment {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Moment(since.map(|age| age.as_secs()).unwrap_or_default())
    }

    /// Returns docker's words for the time between this moment and `now`.
    pub fn ago(self, now: Moment) -> String {
        let seconds = now.0.saturating_sub(self.0);
        let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
        let span = match seconds {
            0 => "Less than a second".into(),
            1 => "1 second".into(),
            2..60 => format!("{seconds} seconds"),
            60..120 => "About a minute".into(),
            _ if minutes < 60 => format!("{minutes} minutes"),
            _ if hours == 1 => "About an hour".into(),
            _ if hours < 48 => format!("{hours} hours"),
            _ if hours < 24 * 14 => format!("{} days", hours / 24),
            _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
            _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
            _ => format!("{} years", hours / 24 / 365),
        };
        format!("{span} ago")
    }
}

/// One line of `docker buildx ls`: a builder and its nodes.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct Builder {
    pub name: String,
    /// `docker`, `docker-container`, `kubernetes`, `remote`; empty if buildx could not load it.
    pub driver: String,
    /// True for the one that `docker buildx use` chose.
    pub current: bool,
    #[serde(deserialize_with = "null_is_default")]
    pub nodes: Vec<Node>,
    /// Why buildx could not load it.
    #[serde(alias = "Error")]
    pub err: Option<String>,
    /// True if this buildx (0.29, not 0.13) tells the rules of garbage collection: having none then means that it is off.
    #[serde(skip)]
    pub tells_gc_policy: bool,
}

/// A machine, or a BuildKit instance, of a builder.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    pub name: String,
    /// A docker context for the drivers docker and docker-container, else an address.
    pub endpoint: String,
    /// `running`, `inactive`, `stopped`, …
    pub status: String,
    /// Version of BuildKit; `v0.0.0+unknown` where a distribution built the engine without it.
    pub version: String,
    #[serde(alias = "Error")]
    pub err: Option<String>,
    #[serde(rename = "IDs", deserialize_with = "null_is_default")]
    pub ids: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub platforms: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(rename = "GCPolicy", deserialize_with = "null_is_default")]
    pub gc_policy: Vec<GcRule>,
}

/// One rule of BuildKit's garbage collection, as `docker buildx ls` tells it (buildx 0.29 and later).
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct GcRule {
    pub all: bool,
    #[serde(deserialize_with = "null_is_default")]
    pub filter: Vec<String>,
    /// Nanoseconds.
    pub keep_duration: u64,
    pub reserved_space: i64,
    pub max_used_space: i64,
    /// buildx before 0.18 names the one limit there was.
    pub keep_bytes: i64,
}

/// Go prints an empty list or map as null.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A file system, in bytes.
#[derive(Clone, Debug)]
pub struct Disk {
    pub path: String,
    pub total: u64,
    /// What is free for processes without privileges.
    pub free: u64,
}

impl Disk {
    /// Tells whether builds soon fail on it.
    pub fn is_low(&self) -> bool {
        // Below both of these BuildKit and everything else on the disk is soon in trouble.
        const SHARE: f64 = 0.1;
        const BYTES: u64 = 10_000_000_000;
        let share = self.free as f64 / self.total.max(1) as f64;
        share < SHARE && self.free < BYTES
    }
}

/// Returns true if `docker build` is buildx in this version of the docker command. One that tells none is taken for new.
pub fn build_is_buildx(client_version: &str) -> bool {
    !(1..23).contains(&major(client_version))
}

/// Returns the number before the first dot, 0 if there is none.
pub fn major(version: &str) -> u32 {
    version.trim_start_matches('v').split('.').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// Where docker looks for an engine if nothing says where.
pub const DEFAULT_SOCKET: &str = "unix:///var/run/docker.sock";

/// Why the BuildKit inside an engine exports no layers.
pub const GRAPH_DRIVER: &str = "its engine uses a graph driver, not the containerd image store";

/// The state of a builder that buildx could not load or reach.
pub const ERROR: &str = "error";

/// Makes a builder that exports layers, for both of docker's command families.
pub const MAKE_EXPORTER: &str =
    "docker buildx create --name exporter --driver docker-container --bootstrap && export BUILDX_BUILDER=exporter";

impl Builder {
    /// Returns the state of the builder as one word: that of its nodes if they agree.
    pub fn status(&self) -> &str {
        if self.err.is_some() || self.nodes.iter().any(|node| node.err.is_some()) {
            return ERROR;
        }
        match self.nodes.first() {
            Some(first) if self.nodes.iter().all(|node| node.status == first.status) => &first.status,
            Some(_) => "mixed",
            None => "inactive",
        }
    }

    /// Returns true if every node answers.
    pub fn is_running(&self) -> bool {
        self.status() == "running"
    }

    /// Returns true if it must be started before it tells of its cache: buildx starts a container or a pod for a build
    /// alone.
    pub fn is_asleep(&self) -> bool {
        !matches!(self.driver.as_str(), "" | "docker" | "remote") && matches!(self.status(), "inactive" | "stopped")
    }

    /// Returns true if pruning any record makes its BuildKit forget the results of steps upon images: it then asks
    /// containerd for their layers with a request that is already cancelled, and takes the refusal for a loss
    /// (`Controller.Prune`, moby/buildkit#7177; seen with BuildKit 0.13 and 0.25). They run once more in the next build.
    pub fn forgets_when_pruned(&self) -> bool {
        const EXECUTOR: &str = "org.mobyproject.buildkit.worker.executor";
        self.nodes.iter().any(|node| node.labels.get(EXECUTOR).is_some_and(|executor| executor == "containerd"))
    }

    /// Returns what keeps this builder from exporting its layer cache, if anything does.
    /// The BuildKit inside an engine needs the containerd image store, which shows as the label of a snapshotter. Another
    /// driver may lead to one too; Engines 26.1 and 28.5 then have a label of their own, and 20.10 has none at all.
    pub fn cannot_export(&self) -> Option<&'static str> {
        const SNAPSHOTTER: &str = "org.mobyproject.buildkit.worker.snapshotter";
        const ENGINE: &str = "org.mobyproject.buildkit.worker.moby.";
        let is_engine =
            |node: &Node| self.driver == "docker" || node.labels.keys().any(|label| label.starts_with(ENGINE));
        let cannot = self.nodes.iter().any(|node| is_engine(node) && !node.labels.contains_key(SNAPSHOTTER));
        cannot.then_some(GRAPH_DRIVER)
    }
}

/// One step of a build, as its progress tells it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BuildStep {
    /// Name of its stage, `stage-1` if it has none and there are several, empty if there is only one.
    pub stage: String,
    /// Number within the stage; the `FROM` is one of them.
    pub number: u32,
    /// The instruction, with variables filled in.
    pub text: String,
    pub cached: bool,
    pub seconds: f64,
}

impl BuildStep {
    /// Returns true for what fetches the image that a stage begins from.
    pub fn is_base(&self) -> bool {
        self.text.starts_with("FROM ")
    }
}

impl fmt::Display for BuildStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = if self.stage.is_empty() { String::new() } else { format!("{} ", self.stage) };
        write!(f, "[{stage}{}] {}", self.number, self.text)
    }
}

/// One record of a builder's cache.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheRecord {
    pub id: String,
    pub parents: Vec<String>,
    /// BuildKit's type: `regular`, `exec.cachemount`, `source.local`, `source.git.checkout`, `frontend`, `internal`.
    pub kind: String,
    pub description: String,
    pub bytes: u64,
    /// False where docker only told rounded sizes.
    pub exact: bool,
    pub in_use: bool,
    pub shared: bool,
    /// Seconds since 1970.
    pub created: Option<u64>,
    /// Seconds since 1970.
    pub last_used: Option<u64>,
    /// How often it was used.
    pub uses: u64,
}

/// What a cache is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Layer,
    Mount,
    Volume,
}

impl Kind {
    /// Returns the word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Layer => "layer",
            Kind::Mount => "mount",
            Kind::Volume => "volume",
        }
    }
}

/// What the record of a cache mount says about the mount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountName {
    /// `BUILDKIT_CACHE_MOUNT_NS` of the build; empty by default.
    pub namespace: String,
    /// The id; None where BuildKit does not tell it (before v0.12, Engine 20.10 to 24).
    pub id: Option<String>,
    /// Where the first build that used it had it mounted.
    pub target: String,
}

impl MountName {
    /// Returns the name by which users and `--mount` know it: the id, else the target.
    pub fn shown(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.target)
    }
}

/// A cache mount, by all that makes it another than its neighbours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    pub namespace: String,
    pub id: String,
    /// `uid=1000,mode=0700`, or empty.
    pub options: String,
    /// Where the helper build has it; BuildKit shows the target of the first build for ever.
    pub target: String,
}

impl Mount {
    /// Returns the mount that a record is of, if it was made without options.
    pub fn plain(name: &MountName) -> Mount {
        Mount {
            namespace: name.namespace.clone(),
            id: name.id.clone().unwrap_or_else(|| name.target.clone()),
            options: String::new(),
            target: name.target.clone(),
        }
    }

    /// Returns true if it can be named in a Dockerfile without being taken for anything else. Options are CSV inside
    /// shell-like words, so quotes, `$` and backslashes are left alone.
    pub fn is_carriable(&self) -> bool {
        let plain = |text: &str| text.chars().all(|c| c.is_alphanumeric() || " _./:@=+~-".contains(c));
        let is_option = |option: &str| {
            let number = ["uid=", "gid=", "mode="].iter().find_map(|name| option.strip_prefix(name));
            number.is_some_and(|number| !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
        };
        (self.options.is_empty() || self.options.split(',').all(is_option))
            && !self.id.is_empty()
            && self.id.trim() == self.id
            && [&self.namespace, &self.id].into_iter().all(|t| plain(t))
    }
}

impl CacheRecord {
    /// Returns the bytes that go with it: those of a shared one belong to an image as well.
    pub fn clearable_bytes(&self) -> u64 {
        if self.shared { 0 } else { self.bytes }
    }

    /// Returns the identity of the cache mount, if this record is one:
    /// `cached mount TARGET from exec ARGV… with id "NAMESPACE/ID"` (BuildKit solver/llbsolver/mounts/mount.go).
    pub fn mount(&self) -> Option<MountName> {
        if self.kind != "exec.cachemount" {
            return None;
        }
        let rest = self.description.strip_prefix("cached mount ")?;
        // Only the first build's command follows, which may contain anything, so the target ends at the first match.
        let (target, rest) = rest.split_once(" from exec ").unwrap_or((rest, ""));
        // The id is a Go string, its own quotes escaped: the last opening is the right one.
        let key = rest
            .strip_suffix('"')
            .and_then(|rest| rest.rsplit_once(" with id \""))
            .and_then(|(_, quoted)| serde_json::from_str::<String>(&format!("\"{quoted}\"")).ok());
        let (namespace, id) = match key.as_deref().and_then(|key| key.split_once('/')) {
            Some((namespace, id)) => (namespace.to_string(), Some(id.to_string())),
            None => (String::new(), None),
        };
        Some(MountName { namespace, id, target: target.to_string() })
    }
}

/// Returns the cache mounts among the records of a builder. BuildKit does not tell an id that is the target without its
/// slash; where it tells others, that is what it leaves out.
pub fn mounts(records: &[CacheRecord]) -> Vec<(&CacheRecord, MountName)> {
    let mut found: Vec<(&CacheRecord, MountName)> =
        records.iter().filter_map(|record| Some((record, record.mount()?))).collect();
    if found.iter().any(|(_, mount)| mount.id.is_some()) {
        for (_, mount) in found.iter_mut().filter(|(_, mount)| mount.id.is_none()) {
            mount.id = mount.target.strip_prefix('/').map(str::to_owned);
        }
    }
    found
}

/// Tells whether a name means a mount: its id, or its target if that is the id of no other.
pub fn is_called(name: &str, id: &str, target: &str, ids: &HashSet<String>) -> bool {
    name == id || (name == target && !ids.contains(name))
}

/// A named volume that holds caches, and why it is thought to.
#[derive(Clone, Debug)]
pub struct CacheVolume {
    pub name: String,
    pub driver: String,
    /// Directory on the engine's host; empty for some drivers.
    pub mountpoint: String,
    pub labels: BTreeMap<String, String>,
    /// Where the catalogue looks for it: the destination in a container, else what the name suggests.
    pub mounted_at: String,
    /// Names of the containers that mount it, running ones first.
    pub users: Vec<VolumeUser>,
}

/// A container that mounts a volume.
#[derive(Clone, Debug)]
pub struct VolumeUser {
    pub container: String,
    /// Where it has the volume, or what it has of it; None for a helper of this program.
    pub destination: Option<String>,
    /// False if it has a part of the volume only, or has it by another name.
    pub is_whole: bool,
    pub running: bool,
}

/// Returns a number of entries in words.
pub fn entries(count: u64) -> String {
    if count == 1 { "1 entry".into() } else { format!("{count} entries") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_prints_them() {
        let cases = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1001, "1.001kB"),
            (9999, "9.999kB"),
            (99_994, "99.99kB"),
            (99_995, "100kB"),
            (999_949, "999.9kB"),
            (999_950, "1000kB"),
            (999_999, "1000kB"),
            (1_000_000, "1MB"),
            (12_345_678, "12.35MB"),
            (123_456_789, "123.5MB"),
            (u64::MAX, "18.45EB"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let cases = [("2GB", 2_000_000_000), ("500m", 500_000_000), ("1.5 MB", 1_500_000), ("1GiB", 1 << 30), ("7", 7)];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for wrong in ["", "GB", "2 parsecs", "-1GB", "1.2.3k", "1e9"] {
            assert!(wrong.parse::<Bytes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ages_read_as_docker_prints_them() {
        let cases = [
            (65, "About a minute ago"),
            (3500, "58 minutes ago"),
            (5390, "About an hour ago"),
            (5405, "2 hours ago"),
            (170_000, "47 hours ago"),
            (172_780, "2 days ago"),
            (1_200_000, "13 days ago"),
            (1_209_700, "2 weeks ago"),
            (3_000_000, "4 weeks ago"),
            (5_183_000, "2 months ago"),
            (63_000_000, "24 months ago"),
            (63_075_000, "2 years ago"),
        ];
        for (seconds, shown) in cases {
            assert_eq!(Moment(0).ago(Moment(seconds)), shown, "{seconds}");
        }
    }

    #[test]
    fn a_name_means_the_mount_of_this_id_before_one_of_this_target() {
        let ids: HashSet<String> = ["pip", "/pip"].map(String::from).into();
        let called = |name| [("pip", "/pip"), ("/pip", "/p")].map(|(id, target)| is_called(name, id, target, &ids));
        assert_eq!((called("/pip"), called("pip"), called("/p")), ([false, true], [true, false], [false, true]));
    }

    fn named(description: &str) -> MountName {
        let record =
            CacheRecord { kind: "exec.cachemount".into(), description: description.into(), ..Default::default() };
        record.mount().unwrap()
    }

    #[test]
    fn an_id_that_is_not_told_is_the_target_without_its_slash_where_others_are_told() {
        let record = |description: &str| CacheRecord {
            kind: "exec.cachemount".into(),
            description: description.into(),
            ..Default::default()
        };
        let ids = |descriptions: &[&str]| -> Vec<Option<String>> {
            let records: Vec<CacheRecord> = descriptions.iter().map(|text| record(text)).collect();
            mounts(&records).into_iter().map(|(_, mount)| mount.id).collect()
        };
        let silent = "cached mount /pip from exec sh";
        assert_eq!(ids(&[silent]), [None]);
        let told = r#"cached mount /root/.npm from exec sh with id "//root/.npm""#;
        assert_eq!(ids(&[silent, told]), [Some("pip".into()), Some("/root/.npm".into())]);
    }

    #[test]
    fn a_mount_is_named_by_its_id_whatever_the_command_says() {
        let plain = named(r#"cached mount /root/.npm from exec /bin/sh -c npm ci with id "//root/.npm""#);
        assert_eq!((plain.id.as_deref(), plain.namespace.as_str()), (Some("/root/.npm"), ""));
        assert_eq!(named(r#"cached mount /m from exec sh with id "ns/pip""#).namespace, "ns");
        let nested = named(r#"cached mount /q from exec sh -c echo ' with id "/zzz"' with id "/a with id \"b""#);
        assert_eq!(nested.id.as_deref(), Some(r#"a with id "b"#));
        let old = named("cached mount /root/.cache/pip from exec /bin/sh -c pip install x");
        assert_eq!((old.id, old.target.as_str()), (None, "/root/.cache/pip"));
        assert_eq!(named("cached mount /t from exec sh -c one\nID: two\n\n with id \"//t\"").shown(), "/t");
    }
}
