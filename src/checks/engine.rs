//! What can be wrong with docker, its engine and its builders. Pure rules over [`Facts`].

use serde_json::{Map, Value, json};

use super::{Check, Fact, Facts as AllFacts, Finding, NotRun, Severity};
use crate::model::{Builder, Bytes, DEFAULT_SOCKET, Disk, GcRule, MAKE_EXPORTER, build_is_buildx, major};
use crate::report::quote;

/// What is known of docker, its engine and its builders.
#[derive(Debug)]
pub struct Facts {
    pub client: Client,
    /// Version of the docker command: `28.5.2`.
    pub client_version: Fact<String>,
    pub engine: Result<Engine, NoEngine>,
    /// The builder that the engine advises, 1 for the legacy one and 2 for BuildKit; None if it is silent, as 20.10 is, or
    /// was not asked, because a newer docker command does not care.
    pub advised_builder: Fact<Option<u8>>,
    /// None if docker has no buildx.
    pub builders: Fact<Option<Builders>>,
    /// Names of all volumes.
    pub volumes: Fact<Vec<String>>,
    /// Drivers that do not tell their volumes.
    pub silent_drivers: Fact<Vec<String>>,
    /// Names of all containers.
    pub containers: Fact<Vec<String>>,
    /// The file system of the engine's directory.
    pub disk: Fact<Disk>,
    /// The engine's `/etc/docker/daemon.json`, if it is known to be this host's.
    pub daemon_json: Option<Map<String, Value>>,
}

/// The user's side: variables, configuration, and how this host is kept.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// `DOCKER_BUILDKIT`, unless it is empty, which docker takes for unset.
    pub docker_buildkit: Option<String>,
    /// `BUILDX_BUILDER`, likewise.
    pub buildx_builder: Option<String>,
    /// `aliases.builder` of config.json: the plugin that takes over `docker build`.
    pub builder_alias: Option<String>,
    pub context: String,
    /// Address of the engine, if it is known without asking docker.
    pub host: Option<String>,
    pub named_by: NamedBy,
    pub system: System,
}

/// What led docker to the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamedBy {
    Flag,
    Variable(&'static str),
    Config,
    #[default]
    Default,
}

/// How software comes to the host of the docker command, and how its services are started.
#[derive(Clone, Debug, Default)]
pub struct System {
    /// `linux` or `macos`.
    pub os: String,
    /// `amd64`, `arm64`, as buildx names its releases.
    pub architecture: String,
    /// `ID` and `ID_LIKE` of os-release: `ubuntu debian`.
    pub family: String,
    /// `VERSION_ID` of os-release.
    pub version: String,
    /// True if docker comes from Docker's own packages, whose names differ from the distribution's.
    pub docker_packages: bool,
    pub systemd: bool,
}

/// An engine that answered.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    pub version: String,
    pub os_type: String,
}

/// Why no engine answered.
#[derive(Clone, Debug, PartialEq)]
pub enum NoEngine {
    NoDocker,
    /// The docker context does not exist.
    NoContext,
    PermissionDenied(String),
    /// Nothing answers there; docker's words.
    Dead(String),
    /// Something is there and does not answer; what was tried.
    Hangs(String),
    /// It cannot be said; docker's words.
    Unclear(String),
}

/// All builders, and which of them docker's command families use.
#[derive(Clone, Debug, Default)]
pub struct Builders {
    pub list: Vec<Builder>,
    pub of_docker_build: String,
    pub of_buildx: String,
}

/// The check's name: what it finds, others leave out.
pub const VOLUME_DRIVER_SILENT: &str = "volume-driver-silent";

pub const CHECKS: &[Check] = &[
    Check { name: "engine-unreachable", promise: "the engine answers", run: engine_unreachable },
    Check { name: "disk-low", promise: "the engine's disk has room for caches", run: disk_low },
    Check { name: "buildx-missing", promise: "docker has buildx", run: buildx_missing },
    Check { name: "buildkit-disabled", promise: "`docker build` uses BuildKit", run: buildkit_disabled },
    Check {
        name: "builder-split",
        promise: "`docker build` and `docker buildx build` share one cache",
        run: builder_split,
    },
    Check { name: "builder-inactive", promise: "all builders run", run: builder_inactive },
    Check {
        name: "builder-cannot-export",
        promise: "the builders in use can export their layer cache",
        run: builder_cannot_export,
    },
    Check {
        name: "orphan-builder-state",
        promise: "no volume is left of a removed builder",
        run: orphan_builder_state,
    },
    Check { name: VOLUME_DRIVER_SILENT, promise: "all volume drivers answer", run: volume_driver_silent },
    Check { name: "gc-policy", promise: "garbage collection works, and spares idle cache mounts", run: gc_policy },
];

type Findings = Result<Vec<Finding>, NotRun>;

fn skipped<T>(why: impl Into<String>) -> Result<T, NotRun> {
    Err(NotRun::Skipped(why.into()))
}

impl Facts {
    /// Returns the builders, for checks that make no sense without buildx.
    fn builders(&self) -> Fact<&Builders> {
        match self.builders.as_ref().map_err(Clone::clone)? {
            Some(builders) => Ok(builders),
            None => skipped("docker has no buildx"),
        }
    }

    /// Returns true if `docker build` is buildx by default: Docker CLI 23.0 and later.
    fn build_is_buildx(&self) -> Fact<bool> {
        Ok(build_is_buildx(self.client_version.as_ref().map_err(Clone::clone)?))
    }

    /// Returns the names of the builders that the two command families use.
    fn in_use(&self) -> Fact<Vec<&str>> {
        let builders = self.builders()?;
        let mut names = vec![builders.of_docker_build.as_str(), &builders.of_buildx];
        names.dedup();
        Ok(names)
    }

    /// Makes sure that the builders in use run: of others nothing can be said.
    fn all_run(&self) -> Fact<()> {
        let (builders, in_use) = (self.builders()?, self.in_use()?);
        let runs = |name: &str| builders.list.iter().any(|builder| builder.name == name && builder.is_running());
        match in_use.into_iter().find(|name| !runs(name)) {
            Some(name) => skipped(format!("the builder {name} does not run")),
            None => Ok(()),
        }
    }

    /// Returns the command that changes the engine's configuration and restarts it, if its file is known.
    fn configure(&self, section: &str, setting: Value) -> Option<String> {
        let mut file = self.daemon_json.clone()?;
        let at = file.entry(section).or_insert_with(|| json!({})).as_object_mut()?;
        at.extend(setting.as_object()?.clone());
        let text = quote(Value::Object(file).to_string());
        let restart = self.client.system.service("restart");
        // The `echo` of sh and zsh would take a backslash for its own.
        Some(format!("printf '%s\\n' {text} | sudo tee /etc/docker/daemon.json >/dev/null && {restart}"))
    }
}

/// Returns the node of a builder whose state is in a volume of this name: its container is `buildx_buildkit_NODE`, and the
/// volume the same with `_state`.
pub fn builder_node(volume: &str) -> Option<&str> {
    let node = volume.strip_prefix("buildx_buildkit_")?.strip_suffix("_state")?;
    (!node.is_empty()).then_some(node)
}

fn engine_unreachable(facts: &AllFacts) -> Findings {
    let Facts { client, engine: Err(why), .. } = &facts.engine else { return Ok(Vec::new()) };
    let (message, command) = match why {
        NoEngine::Unclear(why) => return Err(NotRun::Failed(why.clone())),
        NoEngine::NoDocker => ("there is no docker command on PATH".into(), client.system.install_docker()),
        NoEngine::NoContext => {
            let context = &client.context;
            (format!("the docker context {context} does not exist, so no docker command works"), client.elsewhere())
        }
        NoEngine::PermissionDenied(why) => {
            (format!("{why}: only root and members of the group docker may talk to it"), JOIN_GROUP.into())
        }
        NoEngine::Dead(why) => (sentence(why), client.start_engine()),
        NoEngine::Hangs(why) => (format!("the engine hangs: {why}"), client.restart_engine()),
    };
    Ok(vec![Finding::new(Severity::Error, message).command(command)])
}

/// Returns docker's words as one sentence without its end.
fn sentence(words: &str) -> String {
    let line = words.lines().next().unwrap_or_default();
    line.trim_end_matches(" Is the docker daemon running?").trim_end_matches(['.', '?']).to_string()
}

const JOIN_GROUP: &str = r#"sudo usermod -aG docker "$USER" && newgrp docker"#;

impl Client {
    /// Returns the command that leads docker back to an engine that exists, or shows which ones do.
    fn elsewhere(&self) -> String {
        match self.named_by {
            NamedBy::Variable(name) => format!("unset {name}"),
            // Docker 20.10 refuses without the flag, because the current context does not exist.
            NamedBy::Config => "docker --context default context use default".into(),
            NamedBy::Flag | NamedBy::Default => "docker context ls".into(),
        }
    }

    fn start_engine(&self) -> String {
        self.engine_service("start").unwrap_or_else(|| self.elsewhere())
    }

    fn restart_engine(&self) -> String {
        self.engine_service("restart").unwrap_or_else(|| self.elsewhere())
    }

    /// Returns the command that starts or restarts the engine where docker looks for it, if that is a usual place.
    fn engine_service(&self, verb: &str) -> Option<String> {
        let host = self.host.as_deref().unwrap_or_default();
        if let Some(machine) = host.strip_prefix("ssh://") {
            return Some(format!("ssh {} sudo systemctl {verb} docker", quote(format!("ssh://{machine}"))));
        }
        match self.context.as_str() {
            "desktop-linux" if self.system.os == "linux" => Some(format!("systemctl --user {verb} docker-desktop")),
            "colima" => Some(format!("colima {verb}")),
            _ if self.system.os == "macos" && host == DEFAULT_SOCKET => Some("open -a Docker".into()),
            "desktop-linux" => Some("open -a Docker".into()),
            _ if host.starts_with("unix:///run/user/") => Some(format!("systemctl --user {verb} docker")),
            _ if host == DEFAULT_SOCKET || host == "unix:///run/docker.sock" => Some(self.system.service(verb)),
            _ => None,
        }
    }
}

/// The release of buildx that is fetched where no package has it.
const BUILDX_RELEASE: &str = "v0.29.1";

impl System {
    fn is(&self, names: &[&str]) -> bool {
        self.family.split_whitespace().any(|name| names.contains(&name))
    }

    /// Returns the command that starts or restarts the engine of this host.
    fn service(&self, verb: &str) -> String {
        if self.systemd { format!("sudo systemctl {verb} docker") } else { format!("sudo service docker {verb}") }
    }

    fn install_docker(&self) -> String {
        match self.os.as_str() {
            "macos" => "brew install --cask docker-desktop".into(),
            _ => "curl -fsSL https://get.docker.com | sudo sh".into(),
        }
    }

    /// Returns the command that installs buildx from the same place as docker, or else its released binary.
    fn install_buildx(&self) -> String {
        if self.os == "linux" && self.docker_packages {
            let plugin = "docker-buildx-plugin";
            if self.is(&["debian", "ubuntu"]) {
                return format!("sudo apt-get update && sudo apt-get install {plugin}");
            }
            return format!("sudo dnf install {plugin}");
        }
        // Debian has it since 13 (trixie); Ubuntu has it in all releases that are still supported.
        if self.is(&["ubuntu"]) || (self.family.starts_with("debian") && major(&self.version) >= 13) {
            "sudo apt-get update && sudo apt-get install docker-buildx".into()
        } else if self.family.starts_with("fedora") {
            "sudo dnf install docker-buildx".into()
        } else if self.is(&["arch"]) {
            "sudo pacman -S docker-buildx".into()
        } else if self.is(&["alpine"]) {
            "sudo apk add docker-cli-buildx".into()
        } else if self.is(&["suse", "opensuse"]) {
            "sudo zypper install docker-buildx".into()
        } else {
            let System { os, architecture, .. } = self;
            let os = if os == "macos" { "darwin" } else { os };
            let file = format!("{BUILDX_RELEASE}/buildx-{BUILDX_RELEASE}.{os}-{architecture}");
            format!(
                r#"d="${{DOCKER_CONFIG:-$HOME/.docker}}/cli-plugins" && mkdir -p "$d" && curl -fsSL -o "$d/docker-buildx" https://github.com/docker/buildx/releases/download/{file} && chmod +x "$d/docker-buildx""#
            )
        }
    }
}

fn buildx_missing(facts: &AllFacts) -> Findings {
    facts.engine()?;
    let facts = &facts.engine;
    if facts.builders.as_ref().map_err(Clone::clone)?.is_some() {
        return Ok(Vec::new());
    }
    let (severity, message) = match facts.build_is_buildx()? {
        true if facts.client.docker_buildkit.is_some() || facts.client.builder_alias.is_some() => {
            (Severity::Error, "docker has no buildx, so `docker build` fails as soon as BuildKit is asked for")
        }
        true => (
            Severity::Error,
            "docker has no buildx, so `docker build` falls back to the legacy builder, which knows no cache mounts",
        ),
        false => (
            Severity::Note,
            "docker has no buildx, so there is no builder but the engine's own, and its layer cache cannot be exported",
        ),
    };
    Ok(vec![Finding::new(severity, message).command(facts.client.system.install_buildx())])
}

/// What docker reads from a variable that is true or false (Go's ParseBool).
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Tried on Docker 20.10, 26.1 and 28.5. From 23.0 on, `docker build` is buildx, whatever the engine advises, unless the
/// variable says no, even against the alias. Before, the alias decides, then the variable, then the engine's advice.
fn buildkit_disabled(facts: &AllFacts) -> Findings {
    let engine = facts.engine()?;
    let (facts, client) = (&facts.engine, &facts.engine.client);
    if engine.os_type == "windows" {
        return skipped("Windows containers are built by the legacy builder");
    }
    let is_buildx = facts.build_is_buildx()?;
    if !is_buildx && client.builder_alias.is_some() {
        return Ok(Vec::new());
    }
    let wanted = match client.docker_buildkit.as_deref().map(|value| (value, go_bool(value))) {
        Some((value, None)) => {
            let message =
                format!("DOCKER_BUILDKIT is {value:?}, neither true nor false, so `docker build` refuses to work");
            return Ok(vec![Finding::new(Severity::Error, message).command("unset DOCKER_BUILDKIT")]);
        }
        Some((value, Some(false))) => {
            let message = format!(
                "DOCKER_BUILDKIT={value} makes `docker build` use the legacy builder, which knows no cache mounts and \
                 shares no cache with BuildKit"
            );
            let remedy = if is_buildx { "unset DOCKER_BUILDKIT" } else { "export DOCKER_BUILDKIT=1" };
            return Ok(vec![Finding::new(Severity::Warning, message).command(remedy)]);
        }
        Some((_, Some(true))) => true,
        None => false,
    };
    if is_buildx {
        return match facts.builders.as_ref().map_err(Clone::clone)? {
            Some(_) => Ok(Vec::new()),
            None => skipped("docker has no buildx"),
        };
    }
    if wanted || *facts.advised_builder.as_ref().map_err(Clone::clone)? == Some(2) {
        return Ok(Vec::new());
    }
    let message = "`docker build` uses the legacy builder, which knows no cache mounts: before version 23.0 docker uses \
                   BuildKit only if it is told to";
    Ok(vec![Finding::new(Severity::Warning, message).command("export DOCKER_BUILDKIT=1")])
}

fn builder_split(facts: &AllFacts) -> Findings {
    facts.engine()?;
    let facts = &facts.engine;
    let Builders { of_docker_build: build, of_buildx: buildx, .. } = facts.builders()?;
    if build == buildx {
        return Ok(Vec::new());
    }
    let variable = facts.client.buildx_builder.is_some();
    let other_way = match facts.build_is_buildx()? {
        true => format!("; `export BUILDX_BUILDER={}` makes both use {buildx}", quote(buildx)),
        false => String::new(),
    };
    let message = format!(
        "`docker build` uses the builder {build} and `docker buildx build` uses {buildx}, so neither finds what the other \
         has cached{other_way}"
    );
    let remedy = if variable { "unset BUILDX_BUILDER".into() } else { format!("docker buildx use {}", quote(build)) };
    Ok(vec![Finding::new(Severity::Warning, message).command(remedy)])
}

fn builder_inactive(facts: &AllFacts) -> Findings {
    facts.engine()?;
    let facts = &facts.engine;
    let (builders, in_use) = (facts.builders()?, facts.in_use()?);
    let mut findings = Vec::new();
    let missing = facts.client.buildx_builder.as_ref().filter(|name| builders.list.iter().all(|b| b.name != **name));
    if let Some(name) = missing {
        let message = format!("BUILDX_BUILDER names the builder {name:?}, which does not exist, so builds fail");
        findings.push(Finding::new(Severity::Error, message).command("unset BUILDX_BUILDER"));
    }
    // With Colima, Docker Desktop or a rootless engine nothing is behind the context default, which docker never removes.
    let is_default = |builder: &Builder| matches!(builder.driver.as_str(), "" | "docker") && builder.name == "default";
    for builder in builders.list.iter().filter(|builder| !builder.is_running() && !is_default(builder)) {
        let (name, used) = (&builder.name, in_use.contains(&builder.name.as_str()));
        let why = builder.err.iter().chain(builder.nodes.iter().filter_map(|node| node.err.as_ref())).next();
        let why = why.map(|why| sentence(why));
        if let Some(why) = why.as_ref().filter(|why| why.to_lowercase().contains("permission denied")) {
            let severity = if used { Severity::Warning } else { Severity::Note };
            findings.push(Finding::new(severity, format!("the builder {name} cannot be asked: {why}")));
            continue;
        }
        findings.push(match builder.driver.as_str() {
            // buildx lists each docker context as a builder.
            "" | "docker" => {
                let why = why.unwrap_or("its engine does not answer".into());
                let message =
                    format!("the docker context {name} leads nowhere: {why}; remove it if it is gone for good");
                Finding::new(Severity::Note, message).command(format!("docker context rm {}", quote(name)))
            }
            "remote" => {
                let (severity, what) = match used {
                    true => (Severity::Error, "builds that use it fail"),
                    false => (Severity::Note, "remove it if it is gone for good"),
                };
                let message = match why {
                    Some(why) => format!("the remote builder {name} does not answer, {why}; {what}"),
                    None => format!("the remote builder {name} does not answer; {what}"),
                };
                Finding::new(severity, message).command(format!("docker buildx rm {}", quote(name)))
            }
            _ => {
                let severity = if used { Severity::Warning } else { Severity::Note };
                let message = match why {
                    Some(why) => format!("the builder {name} is down: {why}"),
                    None => format!("the builder {name} is {}, so its cache cannot be seen", builder.status()),
                };
                Finding::new(severity, message).command(format!("docker buildx inspect --bootstrap {}", quote(name)))
            }
        });
    }
    Ok(findings)
}

fn builder_cannot_export(facts: &AllFacts) -> Findings {
    let engine = facts.engine()?;
    let facts = &facts.engine;
    let (builders, in_use) = (facts.builders()?, facts.in_use()?);
    let used = builders.list.iter().filter(|b| in_use.contains(&b.name.as_str()) && b.is_running());
    let findings = used.filter_map(|builder| {
        let (name, why) = (&builder.name, builder.cannot_export()?);
        let store = facts.configure("features", json!({"containerd-snapshotter": true}));
        Some(match store.filter(|_| *name == facts.client.context && major(&engine.version) >= 24) {
            Some(command) => Finding::new(
                Severity::Note,
                format!(
                    "the builder {name} cannot export its layer cache: {why}; switching hides the images and containers \
                     of the old store until it is switched back"
                ),
            )
            .command(command),
            None => Finding::new(Severity::Note, format!("the builder {name} cannot export its layer cache: {why}"))
                .command(MAKE_EXPORTER),
        })
    });
    let findings: Vec<Finding> = findings.collect();
    if findings.is_empty() {
        facts.all_run()?;
    }
    Ok(findings)
}

/// `docker buildx rm` leaves the volume when it takes over 20 s, and `docker volume prune` spares it, because it has a name.
fn orphan_builder_state(facts: &AllFacts) -> Findings {
    facts.engine()?;
    let facts = &facts.engine;
    let builders = facts.builders()?;
    let volumes = facts.volumes.as_ref().map_err(Clone::clone)?;
    let containers = facts.containers.as_ref().map_err(Clone::clone)?;
    let nodes: Vec<&str> = builders.list.iter().flat_map(|b| &b.nodes).map(|node| node.name.as_str()).collect();
    let orphans = volumes.iter().filter(|volume| {
        let lives = |node| {
            let container = format!("buildx_buildkit_{node}");
            nodes.contains(&node) || containers.contains(&container)
        };
        builder_node(volume).is_some_and(|node| !lives(node))
    });
    let orphans: Vec<String> = orphans.map(quote).collect();
    let (are, them) = match orphans.len() {
        0 => return Ok(Vec::new()),
        1 => ("1 volume holds the cache of a builder".into(), "it is"),
        count => (format!("{count} volumes hold the caches of builders"), "they are"),
    };
    let message = format!(
        "{are} that this docker configuration does not know, and has no container; unless {them} another user's, the disk \
         space is lost"
    );
    Ok(vec![Finding::new(Severity::Warning, message).command(format!("docker volume rm {}", orphans.join(" ")))])
}

/// The engine asks every driver that it has used, and waits up to a minute for one that is gone or hangs.
fn volume_driver_silent(facts: &AllFacts) -> Findings {
    facts.engine()?;
    let facts = &facts.engine;
    let silent = facts.silent_drivers.as_ref().map_err(Clone::clone)?;
    let found = silent.iter().map(|driver| {
        let message = format!(
            "the volume driver {driver} does not answer: its volumes are left out here, and `docker volume ls` waits for it \
             every time; start its plugin again"
        );
        Finding::new(Severity::Warning, message)
    });
    Ok(found.collect())
}

fn gc_policy(facts: &AllFacts) -> Findings {
    let engine = facts.engine()?;
    let facts = &facts.engine;
    let (builders, in_use) = (facts.builders()?, facts.in_use()?);
    let mut findings = Vec::new();
    let mut unknown = Vec::new();
    for builder in builders.list.iter().filter(|builder| builder.is_running()) {
        let rules: Vec<&GcRule> = builder.nodes.iter().flat_map(|node| &node.gc_policy).collect();
        if rules.is_empty() && !(builder.tells_gc_policy && builder.driver == "docker") {
            // It matters for those only that fill caches here.
            if in_use.contains(&builder.name.as_str()) {
                unknown.push(builder.name.as_str());
            }
            continue;
        }
        let configurable = builder.driver == "docker" && builder.name == facts.client.context;
        findings.extend(judge(facts, engine, builder, &rules, configurable));
    }
    if findings.is_empty() {
        facts.all_run()?;
        if !unknown.is_empty() {
            return skipped(format!("this buildx does not tell the policy of {}", unknown.join(", ")));
        }
    }
    Ok(findings)
}

fn judge(facts: &Facts, engine: &Engine, builder: &Builder, rules: &[&GcRule], configurable: bool) -> Option<Finding> {
    let name = &builder.name;
    let configure = |setting| configurable.then(|| facts.configure("builder", json!({"gc": setting}))).flatten();
    let by_hand = || format!("docker buildx prune --builder {} --filter until=168h", quote(name));
    if rules.is_empty() {
        let message = format!(
            "garbage collection of the builder {name} is off, so its cache grows until the disk is full: the engine's \
             daemon.json sets `builder.gc.enabled` to false"
        );
        // What else is set there may be meant.
        let set = facts.daemon_json.as_ref().and_then(|file| file.get("builder")?.get("gc")?.as_object().cloned());
        let mut set = set.unwrap_or_default();
        set.insert("enabled".into(), true.into());
        let command = configure(set.into()).unwrap_or_else(by_hand);
        return Some(Finding::new(Severity::Warning, message).command(command));
    }
    let mut filters = rules.iter().flat_map(|rule| &rule.filter);
    if let Some(filter) = filters.find(|filter| !is_filter(filter)) {
        // Engine 26 and 28 add an equals sign of their own to the filters of daemon.json.
        let how = if filter.contains("===") { "; this engine wants it with a single `=` in daemon.json" } else { "" };
        let message = format!(
            "garbage collection of the builder {name} fails, so its cache grows until the disk is full: BuildKit cannot \
             read the filter `{filter}` of its policy{how}"
        );
        let command = configure(json!({"enabled": true})).unwrap_or_else(by_hand);
        return Some(Finding::new(Severity::Error, message).command(command));
    }
    if rules.iter().all(|rule| !rule.filter.is_empty() && rule.filter.iter().all(|filter| matches_nothing(filter))) {
        let message = format!(
            "garbage collection of the builder {name} never removes anything: the filters of its policy, joined by commas, \
             ask for several types at once, so its cache grows until the disk is full"
        );
        let command = configure(json!({"enabled": true})).unwrap_or_else(by_hand);
        return Some(Finding::new(Severity::Warning, message).command(command));
    }
    let evicting = rules.iter().find(|rule| rule.keep_duration > 0 && rule.filter.iter().any(|f| f == MOUNTS))?;
    let hours = evicting.keep_duration / 3_600_000_000_000;
    let above = [evicting.max_used_space, evicting.reserved_space, evicting.keep_bytes].into_iter().find(|n| *n > 0);
    let above = above.map(|bytes| format!(" once they hold {}", Bytes(bytes.unsigned_abs()))).unwrap_or_default();
    let message = format!("the builder {name} removes cache mounts that nothing used for {hours} hours{above}");
    let last = rules.last().filter(|rule| rule.max_used_space > 0 && major(&engine.version) >= 28);
    let policy = last.map(|rule| json!([{"all": true, "maxUsedSpace": rule.max_used_space.to_string()}]));
    let command = policy.and_then(|policy| configure(json!({"enabled": true, "policy": policy})));
    let finding = Finding::new(Severity::Note, message);
    Some(match command {
        Some(command) => finding.command(command),
        None => finding,
    })
}

/// The selector of cache mounts.
const MOUNTS: &str = "type==exec.cachemount";

/// Returns true for what containerd's filter syntax, which BuildKit uses, can parse: selectors joined by commas, each a
/// field, or a field, `==`, `!=` or `~=`, and a value.
fn is_filter(filter: &str) -> bool {
    filter.is_empty()
        || filter.split(',').all(|selector| {
            let Some(at) = selector.find(['=', '!', '~']) else { return !selector.trim().is_empty() };
            let (field, rest) = selector.split_at(at);
            let value = ["==", "!=", "~="].into_iter().find_map(|operator| rest.strip_prefix(operator));
            !field.trim().is_empty() && value.is_some_and(|value| !value.starts_with(['=', '~', '!']))
        })
}

/// Returns true for a filter that no record can fulfil: a comma means "and", and a record has one type. BuildKit before
/// 0.31 joined its default rule for cache mounts like this (moby/buildkit#6856).
fn matches_nothing(filter: &str) -> bool {
    let mut types: Vec<&str> = filter.split(',').filter_map(|selector| selector.strip_prefix("type==")).collect();
    types.dedup();
    types.len() > 1
}

/// Below this a single build fails.
const FULL_BYTES: u64 = 1_000_000_000;

fn disk_low(facts: &AllFacts) -> Findings {
    facts.engine()?;
    let facts = &facts.engine;
    let disk = facts.disk.as_ref().map_err(Clone::clone)?;
    let Disk { path, total, free } = disk;
    if !disk.is_low() {
        return Ok(Vec::new());
    }
    let severity = if *free < FULL_BYTES { Severity::Error } else { Severity::Warning };
    let message = format!(
        "{} of {} are free on the disk of {path}, so builds may fail and garbage collection takes caches that are in use",
        Bytes(*free),
        Bytes(*total)
    );
    Ok(vec![Finding::new(severity, message).command("docker builder prune --all --filter until=168h")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::{Fix, Outcome};
    use crate::model::Node;

    const SNAPSHOTTER: &str = "org.mobyproject.buildkit.worker.snapshotter";

    fn builder(name: &str, driver: &str, status: &str) -> Builder {
        let node = Node { name: format!("{name}0"), status: status.into(), ..Default::default() };
        let mut builder = Builder { name: name.into(), driver: driver.into(), nodes: vec![node], ..Default::default() };
        builder.tells_gc_policy = true;
        builder
    }

    impl Facts {
        /// Returns Docker 28 in good order: one builder that can export and collects garbage.
        pub fn healthy() -> Facts {
            let mut builder = builder("default", "docker", "running");
            builder.nodes[0].labels.insert(SNAPSHOTTER.into(), "overlayfs".into());
            builder.nodes[0].gc_policy =
                vec![rule(&["type==source.local,type==exec.cachemount,type==source.git.checkout"], 48), rule(&[], 0)];
            Facts {
                client: Client {
                    context: "default".into(),
                    host: Some(DEFAULT_SOCKET.into()),
                    system: System { os: "linux".into(), systemd: true, ..Default::default() },
                    ..Default::default()
                },
                client_version: Ok("28.5.2".into()),
                engine: Ok(Engine { version: "28.5.2".into(), os_type: "linux".into() }),
                advised_builder: Ok(Some(2)),
                builders: Ok(Some(Builders {
                    list: vec![builder],
                    of_docker_build: "default".into(),
                    of_buildx: "default".into(),
                })),
                volumes: Ok(vec!["project-cache".into()]),
                silent_drivers: Ok(Vec::new()),
                containers: Ok(Vec::new()),
                disk: Ok(Disk { path: "/var/lib/docker".into(), total: 100_000_000_000, free: 50_000_000_000 }),
                daemon_json: None,
            }
        }
    }

    fn rule(filters: &[&str], hours: u64) -> GcRule {
        GcRule {
            filter: filters.iter().map(ToString::to_string).collect(),
            keep_duration: hours * 3_600_000_000_000,
            max_used_space: 5_000_000_000,
            ..Default::default()
        }
    }

    fn changed(change: impl FnOnce(&mut Facts)) -> AllFacts {
        let mut facts = Facts::healthy();
        change(&mut facts);
        let none = || NotRun::Skipped("no project".into());
        AllFacts { named: false, engine: facts, caches: Default::default(), live: Err(none()), project: Err(none()) }
    }

    fn list(facts: &mut Facts) -> &mut Builders {
        facts.builders.as_mut().unwrap().as_mut().unwrap()
    }

    fn outcome(name: &str, facts: &AllFacts) -> Outcome {
        crate::checks::all().find(|check| check.name == name).unwrap().outcome(facts)
    }

    /// Returns the severities and remedies that a check comes to.
    #[track_caller]
    fn found(name: &str, change: impl FnOnce(&mut Facts)) -> Vec<(Severity, String)> {
        let Outcome::Ran(findings) = outcome(name, &changed(change)) else { panic!("{name} did not run") };
        let remedy = |fix| match fix {
            Some(Fix::Command { command }) => command,
            _ => String::new(),
        };
        findings.into_iter().map(|finding| (finding.severity, remedy(finding.fix))).collect()
    }

    #[track_caller]
    fn assert_skipped(name: &str, change: impl FnOnce(&mut Facts)) {
        let outcome = outcome(name, &changed(change));
        assert!(matches!(outcome, Outcome::Skipped(_)), "{outcome:?}");
    }

    fn one(severity: Severity, command: &str) -> Vec<(Severity, String)> {
        vec![(severity, command.into())]
    }

    use Severity::{Error, Note, Warning};

    #[test]
    fn nothing_is_found_where_all_is_well() {
        for check in CHECKS {
            assert_eq!(check.outcome(&changed(|_| ())), Outcome::Ran(Vec::new()), "{}", check.name);
        }
    }

    #[test]
    fn without_an_engine_only_that_is_found() {
        for why in [NoEngine::NoDocker, NoEngine::NoContext, NoEngine::Dead("Cannot connect".into())] {
            let facts = changed(|facts| facts.engine = Err(why));
            let outcomes: Vec<_> = CHECKS.iter().map(|check| check.outcome(&facts)).collect();
            assert!(matches!(&outcomes[0], Outcome::Ran(findings) if findings.len() == 1), "{:?}", outcomes[0]);
            assert!(outcomes[1..].iter().all(|outcome| matches!(outcome, Outcome::Skipped(_))), "{outcomes:?}");
        }
        let unclear = changed(|facts| facts.engine = Err(NoEngine::Unclear("half a line".into())));
        assert_eq!(outcome("engine-unreachable", &unclear), Outcome::Failed("half a line".into()));
    }

    #[test]
    fn every_way_to_no_engine_has_its_own_remedy() {
        let dead = || NoEngine::Dead("Cannot connect to the Docker daemon at x. Is the docker daemon running?".into());
        let remedy = |why: NoEngine, change: fn(&mut Client)| {
            let found = found("engine-unreachable", |facts| {
                facts.engine = Err(why);
                change(&mut facts.client);
            });
            found[0].1.clone()
        };
        assert_eq!(remedy(dead(), |_| ()), "sudo systemctl start docker");
        assert_eq!(remedy(dead(), |client| client.system.systemd = false), "sudo service docker start");
        assert_eq!(remedy(NoEngine::Hangs("x".into()), |_| ()), "sudo systemctl restart docker");
        assert!(remedy(NoEngine::PermissionDenied("x".into()), |_| ()).starts_with("sudo usermod -aG docker"));
        assert!(remedy(NoEngine::NoDocker, |_| ()).contains("get.docker.com"));
        let by_variable = |client: &mut Client| {
            client.host = Some("tcp://10.0.0.1:2375".into());
            client.named_by = NamedBy::Variable("DOCKER_HOST");
        };
        assert_eq!(remedy(dead(), by_variable), "unset DOCKER_HOST");
        let by_config = |client: &mut Client| {
            (client.context, client.host, client.named_by) = ("old".into(), None, NamedBy::Config);
        };
        assert_eq!(remedy(NoEngine::NoContext, by_config), "docker --context default context use default");
        assert_eq!(remedy(dead(), by_config), "docker --context default context use default");
        let over_ssh = |client: &mut Client| client.host = Some("ssh://me@far; rm -rf /".into());
        assert_eq!(remedy(dead(), over_ssh), "ssh 'ssh://me@far; rm -rf /' sudo systemctl start docker");
        let rootless = |client: &mut Client| client.host = Some("unix:///run/user/1000/docker.sock".into());
        assert_eq!(remedy(dead(), rootless), "systemctl --user start docker");
    }

    #[test]
    fn missing_buildx_matters_more_where_docker_build_needs_it() {
        let severity = |version: &str| {
            found("buildx-missing", |facts| {
                facts.builders = Ok(None);
                facts.client_version = Ok(version.into());
            })[0]
                .0
        };
        assert_eq!((severity("20.10.24"), severity("23.0.1"), severity("28.5.2")), (Note, Error, Error));
        let failed = changed(|facts| facts.builders = Err(NotRun::Failed("rubbish\nhint: see `x`".into())));
        assert_eq!(outcome("buildx-missing", &failed), Outcome::Failed("rubbish; see `x`".into()));
    }

    #[test]
    fn buildx_comes_from_where_docker_came_from() {
        let linux = |family: &str, version: &str, docker_packages| System {
            os: "linux".into(),
            architecture: "amd64".into(),
            family: family.into(),
            version: version.into(),
            docker_packages,
            systemd: true,
        };
        let cases = [
            (linux("debian", "13", false), "apt-get install docker-buildx"),
            (linux("debian", "12", false), "buildx-v0.29.1.linux-amd64"),
            (linux("debian", "12", true), "apt-get install docker-buildx-plugin"),
            (linux("ubuntu debian", "24.04", false), "apt-get install docker-buildx"),
            (linux("fedora", "43", true), "dnf install docker-buildx-plugin"),
            (linux("arch", "", false), "pacman -S docker-buildx"),
            (linux("alpine", "3.22", false), "apk add docker-cli-buildx"),
            (linux("nixos", "25.05", false), "buildx-v0.29.1.linux-amd64"),
        ];
        for (system, part) in cases {
            assert!(system.install_buildx().contains(part), "{system:?}: {}", system.install_buildx());
        }
    }

    #[test]
    fn every_generation_has_its_own_way_to_do_without_buildkit() {
        let case = |version: &str, variable: Option<&str>, alias: bool, advice: Option<u8>| {
            found("buildkit-disabled", |facts| {
                facts.client_version = Ok(version.into());
                facts.client.docker_buildkit = variable.map(Into::into);
                facts.client.builder_alias = alias.then(|| "buildx".into());
                facts.advised_builder = Ok(advice);
            })
        };
        let fine = Vec::new();
        for version in ["23.0.6", "26.1.5", "28.5.2"] {
            // The engine's advice counts for nothing, and the variable for more than the alias.
            assert_eq!(case(version, None, false, Some(1)), fine);
            assert_eq!(case(version, Some("true"), false, None), fine);
            assert_eq!(case(version, Some("0"), true, Some(2)), one(Warning, "unset DOCKER_BUILDKIT"));
            assert_eq!(case(version, Some("F"), false, Some(2)), one(Warning, "unset DOCKER_BUILDKIT"));
            assert_eq!(case(version, Some("yes"), false, Some(2)), one(Error, "unset DOCKER_BUILDKIT"));
        }
        let turn_on = || one(Warning, "export DOCKER_BUILDKIT=1");
        assert_eq!(case("20.10.24", None, false, None), turn_on());
        assert_eq!(case("20.10.24", None, false, Some(1)), turn_on());
        assert_eq!(case("20.10.24", None, false, Some(2)), fine);
        assert_eq!(case("20.10.24", Some("1"), false, Some(1)), fine);
        assert_eq!(case("20.10.24", Some("0"), false, Some(2)), turn_on());
        assert_eq!(case("20.10.24", Some("0"), true, None), fine);
        assert_skipped("buildkit-disabled", |facts| facts.engine.as_mut().unwrap().os_type = "windows".into());
        assert_skipped("buildkit-disabled", |facts| facts.builders = Ok(None));
    }

    #[test]
    fn two_builders_are_two_caches() {
        let split = |facts: &mut Facts| list(facts).of_buildx = "far".into();
        assert_eq!(found("builder-split", split), one(Warning, "docker buildx use default"));
        // BUILDX_BUILDER is for both, except for `docker build` before 23.0.
        let chosen = |version: &str| {
            found("builder-split", |facts| {
                facts.client_version = Ok(version.into());
                facts.client.buildx_builder = Some("far".into());
                list(facts).of_buildx = "far".into();
                if build_is_buildx(version) {
                    list(facts).of_docker_build = "far".into();
                }
            })
        };
        for new in ["28.5.2", "23.0.0", "unknown-version"] {
            assert_eq!(chosen(new), Vec::new(), "{new}");
        }
        assert_eq!(chosen("20.10.24"), one(Warning, "unset BUILDX_BUILDER"));
        assert_skipped("builder-split", |facts| facts.builders = Ok(None));
    }

    #[test]
    fn builders_that_do_not_run_are_found_and_their_caches_kept() {
        let down = |driver: &str, used: bool| {
            found("builder-inactive", |facts| {
                list(facts).list.push(builder("b;c", driver, "inactive"));
                if used {
                    list(facts).of_buildx = "b;c".into();
                }
            })
        };
        let boot = "docker buildx inspect --bootstrap 'b;c'";
        assert_eq!(down("docker-container", true), one(Warning, boot));
        assert_eq!(down("kubernetes", false), one(Note, boot));
        assert_eq!(down("remote", true), one(Error, "docker buildx rm 'b;c'"));
        assert_eq!(down("remote", false), one(Note, "docker buildx rm 'b;c'"));
        assert_eq!(down("", false), one(Note, "docker context rm 'b;c'"));
        let denied = found("builder-inactive", |facts| {
            let mut closed = builder("closed", "docker", "");
            closed.nodes[0].err = Some("dial unix /closed.sock: connect: permission denied".into());
            list(facts).list.push(closed);
        });
        assert!(denied.len() == 1 && !format!("{denied:?}").contains(" rm "), "{denied:?}");
        let elsewhere = found("builder-inactive", |facts| {
            list(facts).list[0].nodes[0].status = "inactive".into();
            list(facts).of_docker_build = "colima".into();
            list(facts).of_buildx = "colima".into();
        });
        assert_eq!(elsewhere, []);
        let nowhere = |facts: &mut Facts| facts.client.buildx_builder = Some("nix".into());
        assert_eq!(found("builder-inactive", nowhere), one(Error, "unset BUILDX_BUILDER"));
    }

    #[test]
    fn graph_driver_cannot_export() {
        let graph = |facts: &mut Facts| list(facts).list[0].nodes[0].labels.clear();
        let elsewhere = found("builder-cannot-export", graph);
        assert!(elsewhere[0].1.starts_with("docker buildx create --name exporter"), "{elsewhere:?}");
        let here = found("builder-cannot-export", |facts| {
            graph(facts);
            facts.daemon_json = json!({"features": {"cdi": true}, "mtu": 1400}).as_object().cloned();
        });
        let command = r#"printf '%s\n' '{"features":{"cdi":true,"containerd-snapshotter":true},"mtu":1400}' | sudo tee /etc/docker/daemon.json >/dev/null && sudo systemctl restart docker"#;
        assert_eq!(here, one(Note, command));
        let stopped = |facts: &mut Facts| list(facts).list[0].nodes[0].status = "stopped".into();
        let other_is_gone = |facts: &mut Facts| list(facts).of_buildx = "gone".into();
        for check in ["builder-cannot-export", "gc-policy"] {
            assert_skipped(check, stopped);
            assert_skipped(check, other_is_gone);
        }
        // One that nobody uses is nobody's trouble.
        let other = |facts: &mut Facts| list(facts).list.push(builder("other", "docker", "running"));
        assert_eq!(found("builder-cannot-export", other), []);
    }

    #[test]
    fn state_without_builder_and_container_is_an_orphan() {
        let orphans = found("orphan-builder-state", |facts| {
            list(facts).list.push(builder("known", "docker-container", "inactive"));
            facts.containers = Ok(vec!["buildx_buildkit_foreign0".into()]);
            let nodes = ["gone0", "known0", "foreign0", "gone too1"];
            facts.volumes = Ok(nodes.iter().map(|node| format!("buildx_buildkit_{node}_state")).collect());
            let others = ["buildx_buildkit_", "buildx_buildkit__state", "my_state", "buildx_buildkit_x0_states"];
            facts.volumes.as_mut().unwrap().extend(others.map(String::from));
        });
        let command = "docker volume rm buildx_buildkit_gone0_state 'buildx_buildkit_gone too1_state'";
        assert_eq!(orphans, one(Warning, command));
        assert_skipped("orphan-builder-state", |facts| facts.builders = Ok(None));
    }

    #[test]
    fn each_driver_that_is_silent_is_named() {
        let silent = |drivers: &[&str]| drivers.iter().map(ToString::to_string).collect();
        assert_eq!(
            found("volume-driver-silent", |facts| facts.silent_drivers = Ok(silent(&["nfs"]))),
            one(Warning, "")
        );
        assert_eq!(found("volume-driver-silent", |_| ()), []);
        assert_skipped("volume-driver-silent", |facts| facts.engine = Err(NoEngine::Hangs("x".into())));
    }

    #[test]
    fn garbage_collection_is_judged_by_what_its_rules_match() {
        let policy = |rules: Vec<GcRule>| {
            let found = found("gc-policy", |facts| list(facts).list[0].nodes[0].gc_policy = rules);
            found.into_iter().map(|(severity, _)| severity).collect::<Vec<_>>()
        };
        let all = || rule(&[""], 0);
        let joined = "type==source.local,type==exec.cachemount";
        assert_eq!(policy(vec![]), [Warning]);
        assert_eq!(policy(vec![rule(&["type=exec.cachemount"], 0), all()]), [Error]);
        assert_eq!(policy(vec![rule(&["type===exec.cachemount"], 0), all()]), [Error]);
        assert_eq!(policy(vec![rule(&[joined], 48)]), [Warning]);
        assert_eq!(policy(vec![rule(&[joined], 48), all()]), []);
        assert_eq!(policy(vec![rule(&["type==source.local", "type==exec.cachemount"], 48), all()]), [Note]);
        assert_eq!(policy(vec![rule(&["type==source.local"], 48), all()]), []);
        assert_eq!(policy(vec![rule(&["id~=^a,type!=regular,shared"], 0), all()]), []);
        let silent = |facts: &mut Facts| {
            list(facts).list[0].nodes[0].gc_policy.clear();
            list(facts).list[0].tells_gc_policy = false;
        };
        assert_skipped("gc-policy", silent);
    }

    #[test]
    fn remedy_of_garbage_collection_drops_the_policy_that_is_wrong() {
        let here = found("gc-policy", |facts| {
            list(facts).list[0].nodes[0].gc_policy = vec![rule(&["type===x"], 0)];
            let policy = json!({"builder": {"gc": {"policy": [{"filter": ["type==x"]}]}}});
            facts.daemon_json = policy.as_object().cloned();
        });
        assert!(here[0].1.starts_with(r#"printf '%s\n' '{"builder":{"gc":{"enabled":true}}}' | sudo tee"#), "{here:?}");
        // What limits it stays where it is only off.
        let off = found("gc-policy", |facts| {
            list(facts).list[0].nodes[0].gc_policy.clear();
            let set = json!({"builder": {"gc": {"defaultKeepStorage": "20GB", "enabled": false}}});
            facts.daemon_json = set.as_object().cloned();
        });
        assert!(off[0].1.contains(r#"{"defaultKeepStorage":"20GB","enabled":true}"#), "{off:?}");
    }

    #[test]
    fn a_disk_is_low_by_share_and_by_size() {
        let disk = |free, total| {
            let found = found("disk-low", |facts| facts.disk = Ok(Disk { path: "/d".into(), total, free }));
            found.into_iter().map(|(severity, _)| severity).collect::<Vec<_>>()
        };
        let gigabyte = 1_000_000_000;
        assert_eq!(disk(5 * gigabyte, 100 * gigabyte), [Warning]);
        assert_eq!(disk(gigabyte / 2, 100 * gigabyte), [Error]);
        assert_eq!(disk(50 * gigabyte, 1000 * gigabyte), []);
        assert_eq!(disk(5 * gigabyte, 20 * gigabyte), []);
        assert_eq!(disk(0, 0), [Error]);
        assert_skipped("disk-low", |facts| facts.disk = Err(NotRun::Skipped("elsewhere".into())));
    }

    #[test]
    fn a_check_that_crashes_is_a_result() {
        let crashing = Check { name: "crashing", promise: "", run: |_| panic!("a fault in a rule") };
        assert!(matches!(crashing.outcome(&changed(|_| ())), Outcome::Failed(_)));
    }

    proptest::proptest! {
        #[test]
        fn no_filter_makes_the_rule_panic(filter in "[a-z=~!,. ]{0,20}") {
            let _ = (is_filter(&filter), matches_nothing(&filter));
        }
    }
}
