//! Runs a package manager's download where its cache is: in a container with the volume, or in a build with the cache
//! mounts. It sees a copy of the lock files and nothing else of the project; the copy, container, image layers and
//! records are gone afterwards. Nothing of it passes through a shell.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::io::Write as _;

use anyhow::{Result, anyhow, bail};

use super::ContainerCleaner;
use super::build::prune_all;
use super::carry::is_context;
use crate::docker::{BuilderRef, Cause, Docker, DockerError, Warmer, temporary_dir, unique_name};

/// One download.
#[derive(Clone, Debug)]
pub struct Download {
    pub site: Site,
    pub image: String,
    /// None for the image's own.
    pub user: Option<String>,
    /// A variable without a value has that of this process, which no list of processes shows.
    pub env: Vec<(String, Option<String>)>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The working directory in the copy of the project: empty, or names that end with a slash.
    pub directory: String,
    /// Names in the copy, and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// `--network` of docker, if not its default.
    pub network: Option<String>,
}

/// Where the cache is.
#[derive(Clone, Debug)]
pub enum Site {
    Volume {
        docker: Docker,
        name: String,
        target: String,
    },
    /// The options of each mount, without `type=cache`: plain words.
    Mounts {
        builder: Box<BuilderRef>,
        mounts: Vec<String>,
    },
}

/// Returns true if a word can stand in a Dockerfile, among the options of a mount too, as it is.
pub fn is_plain(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@+~-".contains(c);
    !word.is_empty() && !word.starts_with('-') && word.chars().all(plain)
}

impl Download {
    /// Runs it, and hands on what it says, line by line.
    ///
    /// # Errors
    /// When it cannot run, or fails; the program's own words say why.
    pub fn run(&self, each: &mut dyn FnMut(&str)) -> Result<()> {
        let name = unique_name();
        let done = match &self.site {
            Site::Volume { docker, name: volume, target } => self.in_container(docker, volume, target, &name, each),
            Site::Mounts { builder, mounts } => self.in_build(builder, mounts, &name, each),
        };
        // What the program says is wanted, not how docker was asked to run it.
        done.map_err(|error| match error.downcast_ref().map(|DockerError { cause, .. }| cause) {
            Some(Cause::Refused(told)) if told.contains(&not_found(&self.command[0])) => {
                anyhow!("there is no `{}` in {}", self.command[0], self.image)
            }
            Some(Cause::Refused(told)) => anyhow!("`{}` failed: {}", self.command.join(" "), reason(told)),
            _ => error,
        })
    }

    fn in_container(
        &self,
        docker: &Docker,
        volume: &str,
        target: &str,
        name: &str,
        each: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let workdir = format!("/{name}/{}", self.directory);
        let warmer = Warmer {
            image: &self.image,
            user: self.user.as_deref(),
            env: &self.env,
            network: self.network.as_deref(),
            volume,
            target,
            workdir: &workdir,
            command: &self.command,
        };
        let _cleaner = ContainerCleaner { docker, name };
        docker.create_warmer(name, &warmer)?;
        let files = archive(&[], name, &self.files)?;
        docker.put(name, "/", |mut pipe| pipe.write_all(&files))?;
        docker.attach(name, each)?;
        Ok(())
    }

    fn in_build(&self, builder: &BuilderRef, mounts: &[String], name: &str, each: &mut dyn FnMut(&str)) -> Result<()> {
        let directory = Some(&self.directory).filter(|directory| !directory.is_empty());
        if let Some(word) = self.user.iter().chain(directory).chain([&self.image]).find(|word| !is_plain(word)) {
            bail!("{word:?} cannot be written in a Dockerfile");
        }
        let dockerfile = self.dockerfile(mounts, name)?;
        let context = archive(&[("Dockerfile", &dockerfile)], "work", &self.files)?;
        let value = |(name, value): &(String, Option<String>)| {
            value.clone().map_or_else(|| std::env::var_os(name).unwrap_or_default(), OsString::from)
        };
        let build_args: Vec<(String, OsString)> =
            self.env.iter().enumerate().map(|(at, pair)| (format!("DOCKER_CACHE_{at}"), value(pair))).collect();
        let before = builder.records()?.into_iter().map(|record| record.id).collect();
        let step = format!("mount / from exec {}", self.command.join(" "));
        let _cleaner = BuildCleaner { builder, name, step, before };
        let out = temporary_dir()?;
        builder.warm_build(context, &build_args, self.network.as_deref(), out.path(), each)?;
        Ok(())
    }

    /// Values of variables come as build arguments, which a Dockerfile expands without reading them again; all other
    /// words are [`is_plain`] or JSON. The name makes the step a new one, so that it is never taken from the cache.
    fn dockerfile(&self, mounts: &[String], name: &str) -> Result<String> {
        let Download { image, user, env, directory, .. } = self;
        let variable = |(at, (name, _)): (usize, &(String, Option<String>))| {
            format!("ARG DOCKER_CACHE_{at}\nENV {name}=$DOCKER_CACHE_{at}\n")
        };
        let env: String = env.iter().enumerate().map(variable).collect();
        let user = user.as_ref().map_or(String::new(), |user| format!("USER {user}\n"));
        let mounts: String = mounts.iter().map(|options| format!("--mount=type=cache,{options} ")).collect();
        Ok(format!(
            "FROM {image} AS {name}\n{env}{user}WORKDIR /{name}/work/{directory}\n\
             RUN --mount=type=bind,target=/{name},rw {mounts}{command}\n\
             FROM scratch\nCOPY --from={name} /{name}/ /\n",
            command = serde_json::to_string(&self.command)?
        ))
    }
}

/// Returns what runc says, through an engine or a build, when the image does not have the program.
fn not_found(program: &str) -> String {
    format!("exec: {program:?}: executable file not found")
}

/// Returns the line that says why: the end of a traceback of Python, else the first that speaks of an error, else the last.
/// Of a build, only the program's own lines count, which buildx repeats at the end with their seconds: ` > [2/2] RUN …:`,
/// `0.412 npm ERR! code E404`, `------`. Where it never came to run, buildx says why in its last error.
fn reason(told: &str) -> String {
    let repeated = told.rsplit_once("\n > [").and_then(|(_, step)| step.split_once('\n'));
    let own = repeated.and_then(|(_, lines)| lines.split_once("\n------")).map(|(lines, _)| lines);
    let own = own.filter(|lines| !lines.starts_with("------"));
    if let (None, Some((_, why))) = (own, told.rsplit_once("ERROR: failed to solve: ")) {
        return why.trim().into();
    }
    let is_seconds = |word: &str| own.is_some() && word.parse::<f64>().is_ok();
    let lines = own.unwrap_or(told).lines().map(|line| match line.trim_start().split_once(' ') {
        Some((first, rest)) if is_seconds(first) => rest,
        _ if is_seconds(line.trim()) => "",
        _ => line,
    });
    let is_told = |line: &&str| !line.trim().is_empty() && !line.trim_start().to_lowercase().starts_with("warn");
    let lines: Vec<&str> = lines.filter(is_told).collect();
    // The line that ends a traceback of Python says what its first, `ERROR: Exception:`, does not. Of a long one buildx
    // repeats only the last calls.
    let depth = |line: &str| line.len() - line.trim_start().len();
    let is_call = |line: &&str| line.trim_start().starts_with("File \"") && line.contains("\", line ");
    let call = lines.iter().rposition(is_call);
    let end = call.and_then(|at| lines[at + 1..].iter().find(|line| depth(line) < depth(lines[at])));
    let speaks = |line: &&&str| ["err!", "error"].iter().any(|word| line.to_lowercase().contains(word));
    let line = end.or(lines.iter().find(speaks)).or(lines.last());
    line.map_or("it did not say why".into(), |line| line.trim().to_owned())
}

/// Returns a tar archive with files at its root and, below a directory, the copy of the project. Any user may write
/// there: what a tool makes beside its lock file is thrown away.
fn archive(root: &[(&str, &str)], directory: &str, files: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_mtime(1);
        archive.append_data(&mut header, path, content)
    };
    for (name, content) in root {
        add(name, tar::EntryType::Regular, 0o644, content.as_bytes())?;
    }
    let above = |path: &str| path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect::<Vec<_>>();
    let directories: BTreeSet<String> =
        files.iter().flat_map(|(name, _)| above(&format!("{directory}/{name}"))).chain([directory.into()]).collect();
    for path in directories {
        add(&path, tar::EntryType::Directory, 0o777, &[])?;
    }
    for (name, content) in files {
        add(&format!("{directory}/{name}"), tar::EntryType::Regular, 0o666, content)?;
    }
    Ok(archive.into_inner()?)
}

/// Prunes what the build leaves beside the mounts: its steps, and the context that it alone had. They are small, and stay
/// where the builder would forget the steps that the mounts were warmed for.
struct BuildCleaner<'a> {
    builder: &'a BuilderRef,
    name: &'a str,
    /// How BuildKit describes the step, which does not bear the name.
    step: String,
    before: HashSet<String>,
}

impl Drop for BuildCleaner<'_> {
    fn drop(&mut self) {
        if self.builder.forgets_when_pruned {
            return;
        }
        prune_all(self.builder, |records| {
            let new = records.iter().filter(|record| !self.before.contains(&record.id) && record.mount().is_none());
            new.filter(|record| {
                let told = record.description.as_str();
                told.contains(self.name) || told == self.step || is_context(record)
            })
            .map(|record| record.id.clone())
            .collect()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_the_programs_own() {
        let build = "#8 0.4 npm ERR! code E404\n#8 ERROR: process \"npm ci\" did not complete successfully: exit code: 1\n\
                     ------\n > [docker-cache-helper-1 3/3] RUN [\"npm\",\"ci\"]:\n0.312 npm WARN old lockfile\n\
                     0.401 npm ERR! code E404\n0.402 \n0.412 npm ERR! small: not found\n------\nDockerfile:4\n\
                     ERROR: failed to solve: process \"npm ci\" did not complete successfully: exit code: 1";
        assert_eq!(reason(build), "npm ERR! code E404");
        assert_eq!(
            reason("Fetching gem metadata\nCould not reach host gems.example.com\n"),
            "Could not reach host gems.example.com"
        );
        assert_eq!(
            reason("Error response from daemon: no such container\n"),
            "Error response from daemon: no such container"
        );
        let traceback = "ERROR: Exception:\nTraceback (most recent call last):\n  File \"/x.py\", line 1, in error\n\
                         \x20   os.mkdir(x)\nPermissionError: [Errno 13] Permission denied: '/cache/pip'\n\n\
                         [notice] A new release of pip is available\n";
        let build = format!(" > [2/2] RUN pip:\n{traceback}").replace('\n', "\n0.412 ").replace("0.412 \n", "0.412\n");
        for told in [traceback, &format!("#7 x\n------\n{build}\n------\nDockerfile:4\nERROR: failed to solve: x")] {
            assert_eq!(reason(told), "PermissionError: [Errno 13] Permission denied: '/cache/pip'", "{told}");
        }
        let call =
            "File \"/x.py\", line 261, in cert_verify\n0.7     raise OSError(\n0.7 OSError: no CA certificate bundle\n";
        let cut = format!(
            "------\n > [2/2] RUN pip:\n0.7     response = send()\n0.7   {call}------\nERROR: failed to solve: x"
        );
        assert_eq!(reason(&cut), "OSError: no CA certificate bundle");
        let no_image = "#2 ERROR: docker.io/library/nosuch:1: not found\n------\n > [internal] load metadata for \
                        docker.io/library/nosuch:1:\n------\nDockerfile:1\n--------------------\n   1 | >>> FROM nosuch:1\n\
                        --------------------\nERROR: failed to solve: nosuch:1: not found\n";
        assert_eq!(reason(no_image), "nosuch:1: not found");
        assert_eq!(reason(""), "it did not say why");
    }
}
