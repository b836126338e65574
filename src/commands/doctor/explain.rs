//! `docker cache doctor --explain`: builds into the cache, and tells which steps were not in it and why, by what the last
//! such run of this build was made of. That is kept in the user's state directory, as digests.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::super::Context;
use crate::buildcontext::Files;
use crate::builders::Builders;
use crate::cli::{Doctor, DoctorFormat};
use crate::docker::endpoint::variable;
use crate::docker::{BuilderRef, parse};
use crate::dockerfile::Dockerfile;
use crate::explain::{Explained, FLAGS_OF_ALL, FLAGS_OF_RUN, Fingerprint, explain, instructions};
use crate::inside::pack::digest;
use crate::model::{BuildStep, Moment};
use crate::{buildcontext, model, project, report, state};

/// So many builds are remembered.
const REMEMBERED: usize = 20;

/// The JSON contract.
#[derive(Serialize)]
struct Answer<'a> {
    version: u32,
    steps: &'a [Explained],
    missed: usize,
    missed_seconds: f64,
    /// When the run was that this one is compared with, in seconds since 1970.
    compared_with: Option<u64>,
}

/// A build, as the user would start it.
struct Build<'a> {
    directory: PathBuf,
    dockerfile: PathBuf,
    arguments: &'a [OsString],
}

pub fn run(context: Context, options: &Doctor) -> Result<u8> {
    let build = Build::of(options)?;
    let (docker, settings) = context.into_docker()?;
    let builders = Builders::ask(&docker, &settings)?;
    let builder = builders.one(build.value(&["--builder"]).or(variable("BUILDX_BUILDER")).as_deref())?;

    let kept = build.kept()?;
    let before: Option<Fingerprint> = fs::read(&kept).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let known = before.as_ref().and_then(|before| before.files.clone()).unwrap_or_default();
    let files = buildcontext::read(&build.directory, &build.dockerfile, &known);
    let files = files.inspect_err(|error| report::warning(&format!("files are not compared: {error:#}"))).ok();
    let file = Dockerfile::parse(&project::text(&build.dockerfile).map_err(anyhow::Error::msg)?);
    if !options.quiet {
        report::note("Building, to see which steps are in the cache");
    }
    let builder = builders.reference(builder);
    // Engine 20.10, which has no buildx of its own, measures all volumes when it is asked for records.
    let mounts = builders.no_buildx.is_none().then(|| builder.records().ok()).flatten();
    let mounts: Option<BTreeSet<String>> =
        mounts.map(|records| model::mounts(&records).iter().map(|(_, mount)| mount.shown().to_owned()).collect());
    let steps = parse::steps(&builder.dry_build(&build.words())?);

    let now = Fingerprint {
        at: Moment::now().0,
        builder: builder.name.clone(),
        steps: steps.iter().filter(|step| !step.is_base()).map(|step| (step.stage.clone(), hash(&step.text))).collect(),
        instructions: instructions(&file, &hash),
        bases: steps.iter().filter_map(|step| base(step, &builder)).collect(),
        arguments: build.build_arguments(),
        flags: build.flags(),
        files,
        contexts: build.contexts(before.as_ref()),
        uncached: build.values(&["--no-cache-filter"]).iter().flat_map(|of| of.split(',')).map(Into::into).collect(),
    };
    let explained = explain(&steps, &file, &now, before.as_ref(), mounts.as_ref(), &hash);
    show(&explained, before.as_ref(), options)?;
    if let Err(error) = keep(&kept, &now) {
        report::warning(&format!("the next run cannot be compared with this one: {error:#}"));
    }
    Ok(0)
}

impl Build<'_> {
    fn of(options: &Doctor) -> Result<Build<'_>> {
        let path = options.path.clone().unwrap_or_else(|| ".".into());
        let mut build = match path.is_file() {
            true => {
                let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                Build {
                    directory: directory.unwrap_or(Path::new(".")).into(),
                    dockerfile: path,
                    arguments: &options.build,
                }
            }
            false => Build { dockerfile: path.join("Dockerfile"), directory: path, arguments: &options.build },
        };
        if let Some(file) = build.value(&["--file", "-f"]) {
            build.dockerfile = file.into();
        }
        if !build.dockerfile.is_file() {
            bail!(
                "there is no `{}` to build\nhint: docker cache doctor --explain PATH, or `-- --file FILE` behind it",
                build.dockerfile.display()
            );
        }
        if build.arguments.iter().any(|word| word == "--no-cache" || word == "--no-cache=true") {
            bail!("a build with `--no-cache` uses no cache, and there is nothing to explain");
        }
        Ok(build)
    }

    /// Returns the values of a flag of the build.
    fn values(&self, names: &[&str]) -> Vec<String> {
        let words: Vec<_> = self.arguments.iter().map(|word| word.to_string_lossy()).collect();
        let value = |(at, word): (usize, &std::borrow::Cow<'_, str>)| {
            let of = |name: &&str| match word.strip_prefix(name)? {
                "" => words.get(at + 1).map(ToString::to_string),
                rest if !name.starts_with("--") => Some(rest.strip_prefix('=').unwrap_or(rest).to_owned()),
                rest => rest.strip_prefix('=').map(str::to_owned),
            };
            names.iter().find_map(of)
        };
        words.iter().enumerate().filter_map(value).collect()
    }

    fn value(&self, names: &[&str]) -> Option<String> {
        self.values(names).pop()
    }

    /// Returns the build arguments with digests of their values; one without a value has that of the environment.
    fn build_arguments(&self) -> BTreeMap<String, String> {
        let given = self.values(&["--build-arg"]).into_iter();
        let values = given.map(|given| match given.split_once('=') {
            Some((name, value)) => (name.to_owned(), hash(value)),
            None => (given.clone(), hash(&std::env::var(&given).unwrap_or_default())),
        });
        values.collect()
    }

    /// Returns the flags that are not compared otherwise, with digests of their values.
    fn flags(&self) -> BTreeMap<String, String> {
        let given = FLAGS_OF_RUN.iter().chain(FLAGS_OF_ALL).map(|name| (*name, self.values(&[name])));
        let given = given.filter(|(_, values)| !values.is_empty());
        given.map(|(name, values)| (name.to_owned(), hash(&format!("{values:?}")))).collect()
    }

    /// Returns the files of the directories that the build names; what else a name may stand for is left out.
    fn contexts(&self, before: Option<&Fingerprint>) -> BTreeMap<String, Files> {
        let named = self.values(&["--build-context"]);
        let directories =
            named.iter().filter_map(|named| named.split_once('=')).filter(|(_, path)| Path::new(path).is_dir());
        let read = directories.filter_map(|(name, path)| {
            let known = before.and_then(|before| before.contexts.get(name)).cloned().unwrap_or_default();
            // Such a directory has no `.dockerignore` but its own.
            let files = buildcontext::read(Path::new(path), &Path::new(path).join(""), &known);
            let told =
                |error: &anyhow::Error| report::warning(&format!("files of `{path}` are not compared: {error:#}"));
            Some((name.to_owned(), files.inspect_err(told).ok()?))
        });
        read.collect()
    }

    /// Returns the words of the build, the directory last.
    fn words(&self) -> Vec<OsString> {
        let mut file = OsString::from("--file=");
        file.push(&self.dockerfile);
        let last = ["--".into(), self.directory.clone().into_os_string()];
        [file].into_iter().chain(self.arguments.iter().cloned()).chain(last).collect()
    }

    /// Returns the file that remembers this build: of one directory, Dockerfile, target and platform.
    fn kept(&self) -> Result<PathBuf> {
        let (context, file) = (self.directory.canonicalize()?, self.dockerfile.canonicalize()?);
        let key = format!("{context:?}\n{file:?}\n{:?}\n{:?}", self.value(&["--target"]), self.values(&["--platform"]));
        Ok(state::directory()?.join("builds").join(format!("{}.json", hash(&key).trim_start_matches("sha256:"))))
    }
}

/// Returns the digest of a text that may hold a secret.
fn hash(text: &str) -> String {
    digest(&mut text.as_bytes()).map(|blob| blob.digest).unwrap_or_default()
}

/// Returns the name and the digest of a base image: `FROM docker.io/library/debian:12@sha256:…`. Of the engine's own
/// images the engine tells it.
fn base(step: &BuildStep, builder: &BuilderRef) -> Option<(String, String)> {
    let image = step.text.strip_prefix("FROM ")?;
    match image.split_once('@') {
        Some((name, digest)) => Some((name.into(), digest.into())),
        None => Some((image.into(), builder.image_id(image)?)),
    }
}

fn show(steps: &[Explained], before: Option<&Fingerprint>, options: &Doctor) -> Result<()> {
    let missed: Vec<&Explained> = steps.iter().filter(|step| !step.cached).collect();
    // The sum of none is -0.0.
    let seconds = missed.iter().map(|step| step.seconds).sum::<f64>() + 0.0;
    if options.format == DoctorFormat::Json {
        let compared_with = before.map(|before| before.at);
        let missed_seconds = (seconds * 10.0).round() / 10.0;
        return report::json(&Answer { version: 1, steps, missed: missed.len(), missed_seconds, compared_with });
    }
    let shown = steps.iter().filter(|step| !step.cached || !options.quiet);
    let rows = shown.map(|step| {
        let mut cache = match (&step.why, step.cached) {
            (_, true) => "CACHED".into(),
            (Some(why), _) => format!("missed: {why}"),
            (None, _) => "missed, as a step before it did".into(),
        };
        if !step.new_mounts.is_empty() {
            cache.push_str(&format!("; cache mount {} was empty", step.new_mounts.join(", ")));
        }
        let stage = if step.stage.is_empty() { "-" } else { &step.stage };
        vec![stage.into(), shortened(&step.text), format!("{:.1}s", step.seconds), cache]
    });
    let header = ["STAGE", "STEP", "TIME", "CACHE"];
    report::data(&report::table_within(report::room(), &header, rows.collect(), &["STAGE", "TIME"]))?;
    if options.quiet {
        return Ok(());
    }
    let sum = match missed.len() {
        0 => format!("All {} steps are in the cache", steps.len()),
        count => format!("{count} of {} steps missed the cache, which cost {seconds:.1}s", steps.len()),
    };
    report::data(&format!("\n{sum}\n"))
}

/// Returns the beginning of a step's text, as wide as a table has room for.
fn shortened(text: &str) -> String {
    const WIDTH: usize = 48;
    match text.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

/// Writes what is remembered, and forgets the builds that were explained longest ago.
fn keep(path: &Path, now: &Fingerprint) -> Result<()> {
    state::replace(path, &serde_json::to_vec(now)?)?;
    let directory = path.parent().context("it has no directory")?;
    let mut kept: Vec<_> = fs::read_dir(directory)?
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "json"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    kept.sort();
    for (_, path) in kept.iter().rev().skip(REMEMBERED) {
        fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_a_build_is_the_one_that_docker_takes() {
        let words =
            ["-fone", "-f=two", "-f", "three", "--file=four", "--file", "five", "--filed=six"].map(OsString::from);
        let build = Build { directory: ".".into(), dockerfile: "Dockerfile".into(), arguments: &words };
        assert_eq!(build.values(&["--file", "-f"]), ["one", "two", "three", "four", "five"]);
    }

    #[test]
    fn flags_that_steps_are_made_with_are_remembered_by_their_values() {
        let flags = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            Build { directory: ".".into(), dockerfile: "Dockerfile".into(), arguments: &words }.flags()
        };
        assert_eq!(flags(&["--network", "none"]), flags(&["--network=none", "--progress=plain", "--build-arg", "V=2"]));
        assert_ne!(flags(&["--network=none"]), flags(&["--network=host"]));
        assert!(flags(&["--tag", "x", "--build-arg=V=2"]).is_empty());
    }
}
