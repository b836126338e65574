//! Questions to the Engine API, with exact numbers where docker's tables round. They go to the engine's socket where docker,
//! which started this program, is known to use it too, as that takes no process (2 ms), else through `docker system
//! dial-stdio` (20 to 80 ms), over any context. So are new volumes made; all else is docker's to change.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Cause, Docker, DockerError, Input, Result, abandoned};
use crate::docker::parse;
use crate::model::CacheRecord;
use crate::{cancel, parallel};

/// How long the plugin behind a volume driver may take to tell its volumes. The engine itself tries one that is gone for 15 s,
/// and waits 60 s for one that hangs (measured on Engine 28.5).
const DRIVER_LIMIT: Duration = Duration::from_secs(5);

/// How often a look is taken at whether the user cancelled, while the engine thinks.
const TICK: Duration = Duration::from_millis(50);

/// `GET /info`, as far as it is needed.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    #[serde(rename = "ID")]
    pub id: String,
    pub server_version: String,
    #[serde(rename = "OSType")]
    pub os_type: String,
    /// As the kernel names it: `x86_64`, `aarch64`.
    pub architecture: String,
    pub docker_root_dir: String,
    /// Host name of the engine's machine.
    pub name: String,
    pub kernel_version: String,
    pub plugins: Plugins,
}

/// The plugins that an engine has used since it started.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct Plugins {
    /// Drivers of volumes, `local` among them.
    pub volume: Option<Vec<String>>,
}

/// A container as lists tell it: `GET /containers/json?all=1`.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct Container {
    pub id: String,
    pub names: Vec<String>,
    pub image: String,
    /// `running`, `exited`, `created`, `paused`, …
    pub state: String,
    pub labels: BTreeMap<String, String>,
    pub mounts: Vec<ContainerMount>,
}

impl Container {
    /// Returns its name as docker's tables show it, or its id if it has none.
    pub fn name(&self) -> &str {
        self.names.first().map_or(self.id.as_str(), |name| name.trim_start_matches('/'))
    }

    /// Returns true for one whose programs are alive: a paused one goes on with what it has open.
    pub fn is_running(&self) -> bool {
        ["running", "paused", "restarting"].contains(&self.state.as_str())
    }
}

/// As whom a container runs: `GET /containers/ID/json`, its `Config`.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerConfig {
    /// `""` for root, a number or a name, and a group after a colon; its own, else that of its image.
    pub user: String,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    pub image: String,
}

/// Something that a container has mounted.
#[derive(Clone, Debug, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerMount {
    /// `volume`, `bind`, `tmpfs`, …
    pub r#type: String,
    /// Name of the volume.
    pub name: String,
    /// Directory on the engine's host.
    pub source: String,
    pub destination: String,
    /// True if it is a directory of the volume and not all of it: `volume-subpath`. Told by [`Docker::with_parts`].
    #[serde(skip)]
    pub is_part: bool,
}

impl ContainerMount {
    /// Returns true if it is surely no single file; what [`Docker::with_parts`] tells must be there.
    pub fn is_directory(&self) -> bool {
        self.r#type == "tmpfs" || (self.r#type == "volume" && !self.is_part)
    }
}

/// A volume: `GET /volumes`.
#[derive(Clone, Debug, Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub struct Volume {
    pub name: String,
    pub driver: String,
    pub mountpoint: String,
    /// Tells it from another one that gets its name later.
    pub created_at: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub options: Option<BTreeMap<String, String>>,
}

/// What [`Docker::overview`] tells of an engine.
#[derive(Clone, Debug)]
pub struct Overview {
    pub info: Info,
    /// All containers, running or not.
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    /// Drivers that do not tell their volumes.
    pub silent: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct DiskUsage {
    build_cache: Option<Vec<ApiRecord>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ApiRecord {
    #[serde(rename = "ID")]
    id: String,
    parent: String,
    // The key really begins with a space (Engine API 1.42 and later).
    #[serde(rename = " Parents", alias = "Parents")]
    parents: Option<Vec<String>>,
    r#type: String,
    description: String,
    in_use: bool,
    shared: bool,
    size: i64,
    created_at: Option<String>,
    last_used_at: Option<String>,
    usage_count: u64,
}

impl From<ApiRecord> for CacheRecord {
    fn from(record: ApiRecord) -> CacheRecord {
        let mut parents = record.parents.unwrap_or_default();
        if !record.parent.is_empty() {
            parents.push(record.parent);
        }
        CacheRecord {
            id: record.id,
            parents,
            kind: record.r#type,
            description: record.description,
            // An unknown size is negative.
            bytes: u64::try_from(record.size).unwrap_or_default(),
            exact: true,
            in_use: record.in_use,
            shared: record.shared,
            created: record.created_at.as_deref().and_then(parse::parse_time),
            last_used: record.last_used_at.as_deref().and_then(parse::parse_time),
            uses: record.usage_count,
        }
    }
}

/// How many questions go over one connection, before any answer is read.
const IN_CALL: usize = 100;

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "RepoTags", default)]
    tags: Option<Vec<String>>,
}

impl Docker {
    /// `GET /images/json`: the names of all images.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn image_names(&self) -> Result<Vec<String>> {
        let images: Vec<Image> = self.get("/images/json")?;
        let names = images.into_iter().flat_map(|image| image.tags.unwrap_or_default());
        Ok(names.filter(|name| name != "<none>:<none>").collect())
    }

    /// `GET /containers/json?all=1` and `GET /images/json`: the names of helpers that a killed run of this program left.
    /// One that still runs is left alone: it ends by itself.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn abandoned_helpers(&self) -> Result<Vec<String>> {
        let paths = [
            "/containers/json?all=1",
            "/images/json?filters=%7B%22reference%22%3A%5B%22docker-cache-helper-*%22%5D%7D",
        ];
        let [containers, images] = self.requests(paths)?;
        let containers: Vec<Container> = read(paths[0], containers)?;
        let images: Vec<Image> = read(paths[1], images)?;
        let (running, ended): (Vec<_>, Vec<_>) = containers.into_iter().partition(Container::is_running);
        let images = images.into_iter().flat_map(|image| image.tags.unwrap_or_default());
        let names = ended.into_iter().flat_map(|container| container.names).chain(images);
        let mut names: Vec<String> = names.filter_map(|name| abandoned(&name).map(String::from)).collect();
        names.retain(|name| !running.iter().any(|container| container.image.starts_with(name)));
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// `GET /system/df?type=build-cache`: the cache of the engine's own builder, in exact bytes.
    /// Engines before 23.0 do not know `type` and measure all volumes first.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn build_cache(&self) -> Result<Vec<CacheRecord>> {
        let usage: DiskUsage = super::settled(|| self.get("/system/df?type=build-cache"))?;
        Ok(usage.build_cache.unwrap_or_default().into_iter().map(Into::into).collect())
    }

    /// `GET /_ping`: the builder that the daemon advises, 1 for the legacy one and 2 for BuildKit; None if it is silent.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn advised_builder(&self) -> Result<Option<u8>> {
        let answer = self.request("/_ping")?;
        let mut fields = answer.head.lines().filter_map(|line| line.split_once(':'));
        let advice = fields.find(|(name, _)| name.eq_ignore_ascii_case("Builder-Version"));
        Ok(advice.and_then(|(_, version)| version.trim().parse().ok()))
    }

    /// What commands about caches in volumes need: [`Docker::overview_of`] all drivers, and the parts of volumes.
    ///
    /// # Errors
    /// As all of these: when docker cannot be started, no engine answers, or its answer makes no sense.
    pub fn overview(&self) -> Result<Overview> {
        self.with_parts(self.overview_of(|_| true)?)
    }

    /// [`Docker::overview_of_local`], then the volumes of the other drivers that are `wanted`.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn overview_of(&self, wanted: impl Fn(&str) -> bool) -> Result<Overview> {
        let mut overview = self.overview_of_local()?;
        let drivers = overview.info.plugins.volume.clone().unwrap_or_default();
        let others: Vec<String> = drivers.into_iter().filter(|driver| driver != "local" && wanted(driver)).collect();
        let asking = self.within(DRIVER_LIMIT);
        let answers = parallel::each(&others, |driver| asking.get::<Volumes>(&volumes_of(driver)));
        for (driver, answer) in others.into_iter().zip(answers) {
            match answer {
                // What the engine warns of is that it could not ask the driver.
                Ok(Volumes { volumes, warnings }) if warnings.as_ref().is_none_or(Vec::is_empty) => {
                    overview.volumes.extend(volumes.unwrap_or_default());
                }
                _ => overview.silent.push(driver),
            }
        }
        Ok(overview)
    }

    /// `GET /info`, `/containers/json?all=1` and `/volumes` of the driver `local` over one connection.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn overview_of_local(&self) -> Result<Overview> {
        let local = volumes_of("local");
        let paths = ["/info", "/containers/json?all=1", &local];
        let [info, containers, volumes] = self.requests(paths)?;
        let info = read(paths[0], info)?;
        let containers = read(paths[1], containers)?;
        let volumes: Volumes = read(paths[2], volumes)?;
        Ok(Overview { info, containers, volumes: volumes.volumes.unwrap_or_default(), silent: Vec::new() })
    }

    /// `GET /containers/ID/json` of containers that have volumes, or run and have directories of the host, which may be
    /// those of volumes: marks the mounts that are parts of volumes, which Engine 26.0 and later have, and adds those of
    /// `--tmpfs`; lists tell neither. Of a container that is gone by now nothing is known, so that all of its are taken
    /// for parts.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn with_parts(&self, mut overview: Overview) -> Result<Overview> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Made {
            host_config: HostConfig,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct HostConfig {
            mounts: Option<Vec<Asked>>,
            /// Options by path.
            tmpfs: Option<BTreeMap<String, String>>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct Asked {
            target: String,
            #[serde(deserialize_with = "crate::model::null_is_default")]
            volume_options: VolumeOptions,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct VolumeOptions {
            subpath: String,
        }
        let is_part = |asked: &Asked| !asked.volume_options.subpath.is_empty();
        let in_memory = |destination| ContainerMount { r#type: "tmpfs".into(), destination, ..Default::default() };
        let has = |container: &Container, kind| container.mounts.iter().any(|mount| mount.r#type == kind);
        let may_use =
            |container: &Container| has(container, "volume") || (container.is_running() && has(container, "bind"));
        let mut found: Vec<&mut Container> =
            overview.containers.iter_mut().filter(|container| may_use(container)).collect();
        for some in found.chunks_mut(IN_CALL) {
            let paths: Vec<String> =
                some.iter().map(|container| format!("/containers/{}/json", container.id)).collect();
            let answers = self.answers(&paths)?;
            for ((container, path), answer) in some.iter_mut().zip(&paths).zip(answers) {
                let parts: Vec<String> = match answer {
                    Ok(answer) => {
                        let HostConfig { mounts, tmpfs } = read::<Made>(path, answer)?.host_config;
                        container.mounts.extend(tmpfs.into_iter().flatten().map(|(path, _)| in_memory(path)));
                        mounts.into_iter().flatten().filter(is_part).map(|asked| asked.target).collect()
                    }
                    Err(_) => container.mounts.iter().map(|mount| mount.destination.clone()).collect(),
                };
                let is_told = |path: &str| parts.iter().any(|part| Path::new(part) == Path::new(path));
                container.mounts.iter_mut().for_each(|mount| mount.is_part = is_told(&mount.destination));
            }
        }
        Ok(overview)
    }

    /// `GET /containers/ID/json`: how a container was made. The id is docker's own, so it is plain in a path.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn container_config(&self, id: &str) -> Result<ContainerConfig> {
        #[derive(Deserialize)]
        struct Made {
            #[serde(rename = "Config")]
            config: ContainerConfig,
        }
        Ok(self.get::<Made>(&format!("/containers/{id}/json"))?.config)
    }

    /// `GET /images/REFERENCE/json`: what an image gives to its containers; `None` if the engine has no such image.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn image_config(&self, reference: &str) -> Result<Option<ContainerConfig>> {
        #[derive(Deserialize)]
        struct Made {
            #[serde(rename = "Config")]
            config: Option<ContainerConfig>,
        }
        Ok(self.image::<Made>(reference)?.and_then(|made| made.config))
    }

    /// `GET /images/REFERENCE/json`: the digest that an image goes by; `None` if the engine has no such image.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn image_id(&self, reference: &str) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Made {
            #[serde(rename = "Id")]
            id: String,
        }
        Ok(self.image::<Made>(reference)?.map(|made| made.id))
    }

    fn image<T: DeserializeOwned>(&self, reference: &str) -> Result<Option<T>> {
        // What is no reference would be another path.
        let plain = |c: char| c.is_ascii_alphanumeric() || "./:@_-".contains(c);
        if !reference.chars().all(plain) || reference.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Ok(None);
        }
        match self.get::<T>(&format!("/images/{reference}/json")) {
            Ok(image) => Ok(Some(image)),
            Err(DockerError { cause: Cause::Refused(_), .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `GET /containers/ID/changes`: the paths that a container has added to its image or changed.
    ///
    /// # Errors
    /// See [`Docker::overview`].
    pub fn container_changes(&self, id: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Change {
            path: String,
            kind: u8,
        }
        const DELETED: u8 = 2;
        let changes: Option<Vec<Change>> = self.get(&format!("/containers/{id}/changes"))?;
        let kept = changes.unwrap_or_default().into_iter().filter(|change| change.kind != DELETED);
        Ok(kept.map(|change| change.path).collect())
    }

    /// `GET /containers/ID/archive?path=/etc/passwd`: the users that a container knows, running or not.
    ///
    /// # Errors
    /// See [`Docker::overview`]; also when it has no such file.
    pub fn container_passwd(&self, id: &str) -> Result<String> {
        let path = format!("/containers/{id}/archive?path=/etc/passwd");
        let answer = self.request(&path)?;
        let mut archive = tar::Archive::new(answer.body.as_slice());
        let mut text = String::new();
        let read = archive.entries().and_then(|mut entries| match entries.next() {
            Some(file) => std::io::Read::read_to_string(&mut file?, &mut text),
            None => Ok(0),
        });
        read.map_err(|error| garbage(&path, error))?;
        Ok(text)
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        read(path, self.request(path)?)
    }

    fn request(&self, path: &str) -> Result<Answer> {
        self.requests([path]).map(|[answer]| answer)
    }

    /// The same as [`Docker::answers`], when all are needed.
    fn requests<const N: usize>(&self, paths: [&str; N]) -> Result<[Answer; N]> {
        let answers: Vec<Answer> = self.answers(&paths)?.into_iter().collect::<Result<_>>()?;
        answers.try_into().map_err(|_| garbage(&paths.join(" "), "not as many answers"))
    }

    /// Sends requests over one connection and returns their answers. The last one asks the engine to close it; our end
    /// stays open until then, for the engine gives up a request whose client has closed.
    fn answers(&self, paths: &[impl AsRef<str>]) -> Result<Vec<Result<Answer>>> {
        let paths: Vec<&str> = paths.iter().map(AsRef::as_ref).collect();
        let mut requests = String::new();
        for (at, path) in paths.iter().enumerate() {
            let connection = if at + 1 == paths.len() { "close" } else { "keep-alive" };
            requests.push_str(&format!("GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: {connection}\r\n\r\n"));
        }
        let output = match self.ask_socket(&paths, requests.as_bytes()) {
            Some(output) => output?,
            None => self.call(["system", "dial-stdio"]).run_with(Input::Held(requests.into_bytes()))?,
        };
        let mut rest = output.as_slice();
        Ok(paths.iter().map(|path| next_answer(&mut rest, path)).collect())
    }

    /// Sends something to the engine at its socket. Returns false if there is none to ask, or it was not taken: docker, which
    /// is then to do the same, says why.
    pub(super) fn post(&self, path: &str, body: &serde_json::Value) -> bool {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let Some(Ok(output)) = self.ask_socket(&[path], request.as_bytes()) else { return false };
        next_answer(&mut output.as_slice(), path).is_ok()
    }

    /// Returns what the engine answers at its socket; None if there is none to ask, or it fails: docker then says why.
    fn ask_socket(&self, paths: &[&str], requests: &[u8]) -> Option<Result<Vec<u8>>> {
        let path = self.is_caller.then(|| self.endpoint.socket())??;
        let mut socket = UnixStream::connect(path).ok()?;
        socket.set_read_timeout(Some(TICK)).and_then(|()| socket.set_write_timeout(Some(self.limit))).ok()?;
        socket.write_all(requests).ok()?;
        let failed = |cause| Some(Err(DockerError::new(words(paths.first()?), cause)));
        let (begin, mut output) = (Instant::now(), Vec::new());
        loop {
            if cancel::requested() && !self.survives_cancel {
                return failed(Cause::Interrupted);
            }
            match socket.read_to_end(&mut output) {
                Ok(_) => return Some(Ok(output)),
                // What was read until then is kept.
                Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() < self.limit => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return failed(Cause::TimedOut(self.limit)),
                Err(_) => return None,
            }
        }
    }
}

/// Returns the path that asks for the volumes of one driver.
fn volumes_of(driver: &str) -> String {
    let filter = serde_json::json!({ "driver": [driver] }).to_string();
    let coded: String = filter.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/volumes?filters={coded}")
}

/// Head and body of an HTTP answer.
struct Answer {
    head: String,
    body: Vec<u8>,
}

/// Takes one HTTP/1.1 answer off the front of `rest`.
fn next_answer(rest: &mut &[u8], path: &str) -> Result<Answer> {
    let head = take_until(rest, b"\r\n\r\n").ok_or_else(|| garbage(path, "no HTTP header"))?;
    let head = String::from_utf8_lossy(head).into_owned();
    let field = |name: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let cut_short = || garbage(path, "the answer ends early");
    let body = if let Some(length) = field("Content-Length") {
        let length = length.parse().map_err(|_| garbage(path, "no length"))?;
        rest.split_off(..length).ok_or_else(cut_short)?.to_vec()
    } else if field("Transfer-Encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        let mut body = Vec::new();
        loop {
            let size = take_until(rest, b"\r\n").ok_or_else(cut_short)?;
            let size = String::from_utf8_lossy(size);
            let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16)
                .map_err(|_| garbage(path, "no size of a chunk"))?;
            body.extend(rest.split_off(..size).ok_or_else(cut_short)?);
            take_until(rest, b"\r\n").ok_or_else(cut_short)?;
            if size == 0 {
                break body;
            }
        }
    } else {
        std::mem::take(rest).to_vec()
    };
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status.starts_with('2') {
        return Ok(Answer { head, body });
    }
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    let why = serde_json::from_slice::<Refusal>(&body).map(|refusal| refusal.message);
    Err(DockerError::new(words(path), Cause::Refused(why.unwrap_or_else(|_| format!("HTTP status {status}")))))
}

/// Takes what stands before `mark` off the front of `rest`, and the mark.
fn take_until<'a>(rest: &mut &'a [u8], mark: &[u8]) -> Option<&'a [u8]> {
    let at = rest.windows(mark.len()).position(|window| window == mark)?;
    let before = rest.split_off(..at)?;
    rest.split_off(..mark.len())?;
    Some(before)
}

fn read<T: DeserializeOwned>(path: &str, answer: Answer) -> Result<T> {
    serde_json::from_slice(&answer.body).map_err(|error| garbage(path, error))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Volumes {
    volumes: Option<Vec<Volume>>,
    warnings: Option<Vec<String>>,
}

fn garbage(path: &str, what: impl std::fmt::Display) -> DockerError {
    DockerError::new(words(path), Cause::Garbage(what.to_string()))
}

fn words(path: &str) -> String {
    format!("docker system dial-stdio (GET {path})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whatever_their_framing() {
        let stream =
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                       3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\nHTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"page not found\"}";
        let mut rest = stream.as_slice();
        assert_eq!(next_answer(&mut rest, "/a").unwrap().body, b"[]");
        assert_eq!(next_answer(&mut rest, "/b").unwrap().body, b"[1,2]");
        let refused = next_answer(&mut rest, "/c").map(|answer| answer.head).unwrap_err();
        assert!(refused.to_string().contains("page not found"), "{refused}");
        assert!(next_answer(&mut rest, "/d").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_stream_makes_it_panic(text in "(HTTP/1.1 [0-9]{3}|\r\n|Content-Length: [0-9]{0,20}|Transfer-Encoding: chunked|[0-9a-f]{1,17}|.){0,20}") {
            let mut rest = text.as_bytes();
            let _ = next_answer(&mut rest, "/");
        }
    }
}
