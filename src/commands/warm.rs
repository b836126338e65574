//! `docker cache warm`: fills caches before they are needed, by each tool's own download of what the lock files say.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use serde::Serialize;

use super::Context;
use crate::builders::Builders;
use crate::catalogue::{self, Row};
use crate::checks::steps::{Facts, Run};
use crate::cli::{Format, Warm};
use crate::docker::{BuilderRef, Docker, Volume, endpoint};
use crate::dockerfile::Dockerfile;
use crate::dockerfile::mount::{Mount, within};
use crate::dockerfile::stage::{Base, Scope};
use crate::inventory;
use crate::lockfiles::{self, Lock};
use crate::model::CacheVolume;
use crate::place::warm::{Download, Site, is_plain};
use crate::report::{self, Downloads, Telling};
use crate::{cancel, exit, parallel, project};

/// The JSON contract.
#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    downloads: Vec<DownloadRow<'a>>,
    left_out: &'a [String],
}

#[derive(Serialize)]
struct DownloadRow<'a> {
    tool: &'static str,
    language: &'static str,
    lock_file: &'a str,
    image: &'a str,
    user: Option<&'a str>,
    volume: Option<&'a str>,
    builder: Option<&'a str>,
    directory: &'a str,
    command: &'a [String],
    /// Null for a dry run.
    seconds: Option<f64>,
    error: Option<&'a str>,
}

/// One lock file and what will be done with it.
struct Job {
    row: &'static Row,
    lock: String,
    /// The tool's directory, as it sees it.
    directory: String,
    download: Download,
}

/// How a job ended: seconds, and why it failed.
type Outcome = (f64, Option<String>);

/// What an image runs as, and with.
#[derive(Clone, Debug)]
struct Told {
    image: String,
    user: Option<String>,
    env: BTreeMap<String, String>,
}

pub fn run(context: Context, options: &Warm) -> Result<u8> {
    let (docker, settings) = context.into_docker()?;
    let root = options.path.as_deref().unwrap_or(Path::new("."));
    let (jobs, left_out) = plan(&docker, &settings, options, root)?;
    let quiet = options.output.quiet;
    if !quiet {
        left_out.iter().for_each(|why| report::note(&format!("left out: {why}")));
    }
    let table = options.output.format == Format::Table;
    if table && (options.dry_run || !quiet) && !jobs.is_empty() {
        report::data(&plan_table(&jobs))?;
    }
    let outcomes = if options.dry_run { Vec::new() } else { fill(&jobs, options.output.telling())? };
    if !table {
        answer(&jobs, &outcomes, &left_out)?;
    }
    let failed = outcomes.iter().any(|(_, error)| error.is_some()) || (jobs.is_empty() && !left_out.is_empty());
    Ok(if failed { exit::FAILED } else { 0 })
}

/// Runs the tools side by side, the jobs of one tool one after the other: not every tool can share its cache.
fn fill(jobs: &[Job], telling: Telling) -> Result<Vec<Outcome>> {
    let mut tools: Vec<Vec<usize>> = Vec::new();
    for (at, job) in jobs.iter().enumerate() {
        match tools.iter_mut().find(|tool| jobs[tool[0]].row.tool == job.row.tool) {
            Some(tool) => tool.push(at),
            None => tools.push(vec![at]),
        }
    }
    let downloads = Downloads::new(telling);
    let mut outcomes: Vec<(usize, Outcome)> = parallel::each(&tools, |tool| {
        let one = |at: &usize| {
            let job = &jobs[*at];
            let what = format!("{}  {}", job.row.tool, job.lock);
            let begun = Instant::now();
            let done = job.download.run(&mut |line| downloads.say(&what, line));
            let error = done.err().map(|error| format!("{error:#}"));
            let seconds = begun.elapsed().as_secs_f64();
            if !cancel::requested() {
                downloads.end(&what, seconds, error.as_deref());
            }
            (*at, (seconds, error))
        };
        tool.iter().map(one).collect::<Vec<_>>()
    })
    .into_iter()
    .flatten()
    .collect();
    drop(downloads);
    cancel::check()?;
    outcomes.sort_by_key(|(at, _)| *at);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

fn plan_table(jobs: &[Job]) -> String {
    let rows = jobs.iter().map(|job| {
        let into = match &job.download.site {
            Site::Volume { name, .. } => format!("volume {name}: {}", job.directory),
            Site::Mounts { builder, mounts } => {
                format!("builder {}: {}", builder.name, filled(&job.directory, mounts))
            }
        };
        let Download { image, user, command, .. } = &job.download;
        let image = user.as_ref().map_or(image.clone(), |user| format!("{image} as {user}"));
        vec![job.row.tool.into(), job.lock.clone(), image, into, command.join(" ")]
    });
    let header = ["TOOL", "LOCK FILE", "IMAGE", "INTO", "COMMAND"];
    report::table_within(report::room(), &header, rows.collect(), &["IMAGE"])
}

/// Returns the tool's directory, or the mounts of these options below it, if it is not in one itself.
fn filled(directory: &str, mounts: &[String]) -> String {
    let targets = mounts.iter().filter_map(|mount| mount.split(',').next()?.strip_prefix("target="));
    match targets.clone().any(|target| within(directory, target)) {
        true => directory.into(),
        false => targets.collect::<Vec<_>>().join(", "),
    }
}

fn answer(jobs: &[Job], outcomes: &[Outcome], left_out: &[String]) -> Result<()> {
    let rows = jobs.iter().enumerate().map(|(at, job)| {
        let (volume, builder) = match &job.download.site {
            Site::Volume { name, .. } => (Some(name.as_str()), None),
            Site::Mounts { builder, .. } => (None, Some(builder.name.as_str())),
        };
        DownloadRow {
            tool: job.row.tool,
            language: job.row.language,
            lock_file: &job.lock,
            image: &job.download.image,
            user: job.download.user.as_deref(),
            volume,
            builder,
            directory: &job.directory,
            command: &job.download.command,
            seconds: outcomes.get(at).map(|(seconds, _)| *seconds),
            error: outcomes.get(at).and_then(|(_, error)| error.as_deref()),
        }
    });
    report::json(&Answer { version: 1, downloads: rows.collect(), left_out })
}

/// Returns what will be done, and what of the project not, with the reason.
fn plan(
    docker: &Docker,
    settings: &endpoint::Settings,
    options: &Warm,
    root: &Path,
) -> Result<(Vec<Job>, Vec<String>)> {
    let names = &options.names;
    let mut locks = lockfiles::find(root)?;
    locks.retain(|lock| names.select_row(lock.row));
    if locks.is_empty() {
        let rows = catalogue::ROWS.iter().filter(|row| names.select_row(row));
        let mut known: Vec<&str> = rows.flat_map(|row| row.warm.locks).copied().collect();
        known.dedup();
        let meant: Vec<&str> = names.lang.iter().chain(&names.tool).copied().collect();
        let of = if meant.is_empty() { String::new() } else { format!(" of {}", meant.join(", ")) };
        match known.is_empty() {
            true => bail!("warm does not know what to download{of}"),
            false => bail!("no lock files{of} in {}\nhint: it looks for {}", root.display(), known.join(", ")),
        }
    }
    let files = project::read(root).files;
    let files: Vec<_> = files.iter().filter(|file| file.kind == project::Kind::Dockerfile).collect();
    let parsed: Vec<Dockerfile> = files.iter().map(|file| Dockerfile::parse(&file.text)).collect();
    let dockerfiles: Vec<Facts<'_>> =
        files.iter().zip(&parsed).map(|(file, parsed)| Facts::new(&file.path, parsed, &file.around)).collect();
    let target = Target::find(docker, settings, options)?;
    let mut planner = Planner { docker, options, dockerfiles: &dockerfiles, images: BTreeMap::new() };
    let (mut jobs, mut left_out) = (Vec::new(), Vec::new());
    for lock in locks {
        let path = lock.path.clone();
        match planner.jobs(lock, &target)? {
            Ok(planned) => jobs.extend(planned),
            Err(why) => left_out.push(format!("{path}: {why}")),
        }
    }
    Ok((jobs, left_out))
}

/// What is to be filled.
enum Target {
    /// Each with the way that a container uses it, if one does.
    Volumes(Vec<(CacheVolume, Option<Told>)>),
    Builders(Vec<BuilderRef>),
}

impl Target {
    fn find(docker: &Docker, settings: &endpoint::Settings, options: &Warm) -> Result<Target> {
        if options.volume.is_empty() {
            let builders = Builders::ask(docker, settings)?;
            if let Some(error) = builders.no_buildx {
                return Err(anyhow::Error::new(error).context("cache mounts are filled by builds of buildx"));
            }
            let chosen = builders.selected(options.builder.as_deref(), false)?;
            return Ok(Target::Builders(chosen.into_iter().map(|builder| builders.reference(builder)).collect()));
        }
        let overview = docker.overview()?;
        if overview.silent.is_empty() {
            ensure_there(&overview.volumes, &options.volume)?;
        }
        let found = inventory::cache_volumes(&overview, &options.volume)?;
        let found = found.into_iter().map(|volume| {
            let mounts = |container: &&crate::docker::Container| {
                container.mounts.iter().any(|mount| mount.r#type == "volume" && mount.name == volume.name)
            };
            let told = match overview.containers.iter().find(mounts) {
                Some(user) => {
                    let config = docker.container_config(&user.id)?;
                    Some(Told { image: config.image, user: some(config.user), env: variables(config.env) })
                }
                None => None,
            };
            Ok((volume, told))
        });
        Ok(Target::Volumes(found.collect::<Result<_>>()?))
    }
}

/// Refuses a volume that is not there: docker would make it, and a mistyped name is more likely.
fn ensure_there(volumes: &[Volume], names: &[String]) -> Result<()> {
    match names.iter().find(|name| !volumes.iter().any(|volume| volume.name == **name)) {
        Some(name) => {
            let create = || format!("`docker volume create {}` makes it", report::quote(name));
            bail!("no volume {name:?}\nhint: {}", inventory::one_by_one(name).unwrap_or_else(create))
        }
        None => Ok(()),
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn variables(env: Option<Vec<String>>) -> BTreeMap<String, String> {
    let pair = |line: String| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    env.unwrap_or_default().into_iter().filter_map(pair).collect()
}

struct Planner<'a> {
    docker: &'a Docker,
    options: &'a Warm,
    dockerfiles: &'a [Facts<'a>],
    /// The images that were asked about.
    images: BTreeMap<String, BTreeMap<String, String>>,
}

impl Planner<'_> {
    /// Returns the jobs of a lock file, or why there are none.
    fn jobs(&mut self, lock: Lock, target: &Target) -> Result<Result<Vec<Job>, String>> {
        match target {
            Target::Volumes(volumes) => self.volume_job(lock, volumes).map(|job| job.map(|job| vec![job])),
            Target::Builders(builders) => self.mount_jobs(lock, builders),
        }
    }

    fn volume_job(&mut self, lock: Lock, volumes: &[(CacheVolume, Option<Told>)]) -> Result<Result<Job, String>> {
        let mut why = String::new();
        for (volume, used) in volumes {
            let Some(mut told) = self.image(&lock, used.as_ref()) else {
                why = format!("no image is known that has {}; name one: `--image IMAGE`", lock.row.tool);
                continue;
            };
            let mut env = self.image_env(&told.image)?;
            env.extend(told.env.clone());
            let Some(spot) = catalogue::spot(lock.row, &volume.mounted_at, |name| env.get(name).cloned()) else {
                why = format!("volume {} is no place for {}", volume.name, lock.row.tool);
                continue;
            };
            if let Some(by) = spot.by {
                told.env.insert(by.into(), spot.directory.clone());
            }
            let site = Site::Volume {
                docker: self.docker.clone(),
                name: volume.name.clone(),
                target: volume.mounted_at.clone(),
            };
            return Ok(self.job(lock, told, spot.directory, site));
        }
        Ok(Err(why))
    }

    fn mount_jobs(&mut self, lock: Lock, builders: &[BuilderRef]) -> Result<Result<Vec<Job>, String>> {
        let Some((facts, run, mounts)) = self.mounted(&lock) else {
            return Ok(Err(format!(
                "no Dockerfile has a cache mount for {}; `docker cache doctor` tells where it lacks",
                lock.row.tool
            )));
        };
        let scope = facts.scope(run);
        let Some(told) = self.image(&lock, told(facts, run.stage, scope).as_ref()) else {
            return Ok(Err(format!("the image in line {} is not known; name one: `--image IMAGE`", run.line)));
        };
        let mut options = Vec::new();
        let mut directory = None;
        for mount in &mounts {
            match mount_options(mount, scope) {
                Ok(words) => options.push(words),
                Err(why) => return Ok(Err(format!("line {}: {why}", mount.line))),
            }
            let target = mount.target.as_deref().unwrap_or_default();
            let found = catalogue::spot(lock.row, target, |name| scope.value(name));
            directory = directory.or_else(|| found.map(|spot| spot.directory));
        }
        // A mount whose target says nothing has an id that does.
        let directory = directory.or_else(|| mounts.iter().find_map(|mount| mount.target.clone())).unwrap_or_default();
        let jobs = builders.iter().map(|builder| {
            let site = Site::Mounts { builder: Box::new(builder.clone()), mounts: options.clone() };
            self.job(lock.clone(), told.clone(), directory.clone(), site)
        });
        Ok(jobs.collect())
    }

    /// Counts the directories that a Dockerfile and a lock file have in common, below that of the project.
    fn nearness(&self, facts: &Facts<'_>, lock: &Lock) -> usize {
        let (path, root) = (Path::new(facts.path), self.options.path.as_deref().unwrap_or(Path::new("")));
        let below = path.strip_prefix(root.strip_prefix(".").unwrap_or(root)).unwrap_or(path);
        below.iter().zip(Path::new(&lock.path)).take_while(|(one, other)| one == other).count()
    }

    /// Returns the step nearest to the lock file that has the tool's cache mounts, the first of equals.
    fn mounted(&self, lock: &Lock) -> Option<(&Facts<'_>, &Run, Vec<Mount>)> {
        let all = self.dockerfiles.iter().flat_map(|facts| facts.runs.iter().map(move |run| (facts, run)));
        let found = all.filter_map(|(facts, run)| {
            let of_tool = |mount: &&Mount| {
                let target = mount.target.as_deref().unwrap_or_default();
                mount.is_cache()
                    && catalogue::for_mount(mount.id(), target).is_some_and(|(row, _)| row.tool == lock.row.tool)
            };
            let mounts: Vec<Mount> = run.mounts.iter().map(|mount| &**mount).filter(of_tool).cloned().collect();
            (!mounts.is_empty()).then_some((facts, run, mounts))
        });
        found.min_by_key(|(facts, ..)| Reverse(self.nearness(facts, lock)))
    }

    /// Returns the image to run: the one given, the one that uses the place, else the one that a Dockerfile tells.
    fn image(&self, lock: &Lock, used: Option<&Told>) -> Option<Told> {
        let mut told = match (&self.options.image, used) {
            (Some(image), _) => Told { image: image.clone(), user: None, env: BTreeMap::new() },
            (None, Some(used)) => used.clone(),
            (None, None) => {
                let steps = self
                    .dockerfiles
                    .iter()
                    .filter_map(|facts| Some((facts, facts.runs.iter().find(|run| facts.runs_tool(run, lock.row))?)));
                let (facts, run) = steps.min_by_key(|(facts, _)| Reverse(self.nearness(facts, lock)))?;
                told(facts, run.stage, facts.scope(run))?
            }
        };
        if let Some(user) = &self.options.user {
            told.user = Some(user.clone());
        }
        Some(told)
    }

    /// Returns the variables of an image, which is pulled if it is not here, but not for a dry run.
    fn image_env(&mut self, image: &str) -> Result<BTreeMap<String, String>> {
        if let Some(env) = self.images.get(image) {
            return Ok(env.clone());
        }
        let mut config = self.docker.image_config(image)?;
        if config.is_none() && !self.options.dry_run {
            report::note(&format!("Pulling {image}"));
            self.docker.pull(image)?;
            config = self.docker.image_config(image)?;
        }
        if config.is_none() {
            report::note(&format!("{image} is not here yet: its own variables may send a tool elsewhere"));
        }
        let env = variables(config.unwrap_or_default().env);
        self.images.insert(image.into(), env.clone());
        Ok(env)
    }

    fn job(&self, lock: Lock, told: Told, directory: String, site: Site) -> Result<Job, String> {
        let row = lock.row;
        let fill = |word: &str| word.replace("{lock}", &lock.name).replace("{cache}", directory.trim_end_matches('/'));
        let command = row.warm.command.iter().map(|word| fill(word)).collect();
        let mut env: BTreeMap<String, Option<String>> =
            told.env.into_iter().map(|(name, value)| (name, Some(value))).collect();
        env.extend(row.warm.env.iter().map(|(name, value)| ((*name).into(), Some(fill(value)))));
        for pair in &self.options.env {
            match pair.split_once('=') {
                Some((name, value)) => env.insert(name.into(), Some(value.into())),
                None if std::env::var_os(pair).is_none() => return Err(format!("the variable {pair} is not set")),
                None => env.insert(pair.clone(), None),
            };
        }
        let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // A container gets them as lines, of at most 64 KiB.
        let is_line = |value: &str| !value.contains('\n') && !value.ends_with('\r') && value.len() < 60_000;
        let in_container = matches!(site, Site::Volume { .. });
        env.retain(|name, value| {
            let goes = !in_container || value.as_deref().is_none_or(is_line);
            if is_name(name) && !goes {
                report::note(&format!(
                    "the variable {name} is left out: its value is no single line; `--env {name}` hands on that of this shell"
                ));
            }
            goes && is_name(name)
        });
        let download = Download {
            site,
            image: told.image,
            user: told.user,
            env: env.into_iter().collect(),
            command,
            directory: lock.directory,
            files: lock.files,
            network: self.options.network.clone(),
        };
        Ok(Job { row, lock: lock.path, directory, download })
    }
}

/// Returns the image that a stage begins from, and what the file sets before one of its steps.
fn told(facts: &Facts<'_>, stage: usize, scope: &Scope) -> Option<Told> {
    let first = facts.lineage(stage).first().map(|at| &facts.stages[*at].base);
    let image = match first {
        Some(Base::Image(image)) if is_plain(image) && image != "scratch" => image.clone(),
        _ => return None,
    };
    let mut env: BTreeMap<String, String> =
        scope.env.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?))).collect();
    // A user that the file makes is not in the image: there it is a number with a home.
    let user = match (scope.is_root(), scope.uid()) {
        (Some(false), Some(uid)) => {
            env.extend(scope.home().map(|home| ("HOME".to_owned(), home)));
            Some(uid.to_string())
        }
        _ => scope.user.clone().filter(|user| user != "root"),
    };
    Some(Told { image, user, env })
}

/// Returns the options of a mount, written anew.
fn mount_options(mount: &Mount, scope: &Scope) -> Result<String, String> {
    if mount.option(&["from"]).is_some() {
        return Err("the mount begins with another stage's files (`from`), which only the build has".into());
    }
    let target = mount.target.clone().ok_or("the mount's target is not known")?;
    let mut words = vec![format!("target={target}")];
    for key in ["id", "sharing", "uid", "gid", "mode"] {
        if let Some(value) = mount.option(&[key]) {
            let value = scope.expand(value).ok_or_else(|| format!("the mount's {key} is not known"))?;
            words.push(format!("{key}={value}"));
        }
    }
    match words.iter().find(|word| !word.split('=').all(is_plain)) {
        Some(word) => Err(format!("{word:?} cannot be repeated in another Dockerfile")),
        None => Ok(words.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mounts_below_the_directory_of_a_tool_are_what_is_filled() {
        let mounts = |targets: &[&str]| -> Vec<String> {
            targets.iter().map(|target| format!("target={target},id=x")).collect()
        };
        let cargo = |targets: &[&str]| filled("/usr/local/cargo", &mounts(targets));
        assert_eq!(cargo(&["/usr/local/cargo/registry"]), "/usr/local/cargo/registry");
        assert_eq!(
            cargo(&["/usr/local/cargo/git/db", "/usr/local/cargo/registry"]),
            "/usr/local/cargo/git/db, /usr/local/cargo/registry"
        );
        for around in ["/usr/local/cargo", "/usr/local"] {
            assert_eq!(cargo(&[around]), "/usr/local/cargo");
        }
    }

    #[test]
    fn a_volume_that_is_not_there_is_refused_with_the_command_that_makes_it() {
        let there = [Volume { name: "there".into(), ..Volume::default() }];
        let names = ["there".into(), "a b".into()];
        let error = ensure_there(&there, &names).unwrap_err().to_string();
        assert!(error.ends_with("hint: `docker volume create 'a b'` makes it"), "{error}");
        assert!(ensure_there(&there, &names[..1]).is_ok());
        let error = ensure_there(&there, &["there,b".into()]).unwrap_err().to_string();
        assert!(error.ends_with("`--volume there --volume b`"), "{error}");
    }
}
