//! The layers of a bundle: buildx exports and imports them itself; what it cannot is said, with the choices there are.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::Serialize;

use super::export::{Answer, AnswerEntry};
use crate::builders::Builders;
use crate::bundle::remote::Remote;
use crate::bundle::{Descriptor, LATEST, Layout, Writer};
use crate::cancel;
use crate::cli::{Build, Export, Import};
use crate::docker::{BuilderRef, Cause, DockerError, parse, quote};
use crate::inside::pack::digest;
use crate::model::{Builder, GRAPH_DRIVER, Kind, MAKE_EXPORTER};
use crate::report;

/// What becomes of layers in an export.
pub enum Layers {
    /// None are meant.
    None,
    /// They cannot be had, and why.
    Without(String),
    Of(Box<LayersExport>),
}

/// An export of the layers of one Dockerfile.
pub struct LayersExport {
    pub builder: BuilderRef,
    /// The entry's name: one of each context, Dockerfile, target and platform.
    pub name: String,
    args: Vec<OsString>,
    /// What can be done should the builder turn out unable.
    choices: String,
}

/// Returns the directory and the Dockerfile of the build, whether or not they are there.
fn directory_and_file(build: &Build) -> (PathBuf, PathBuf) {
    let directory = build.directory.clone().unwrap_or_else(|| ".".into());
    let file = build.file.clone().unwrap_or_else(|| directory.join("Dockerfile"));
    (directory, file)
}

/// Returns the directory of the build, and why there is nothing to build, if so.
fn directory(build: &Build) -> (PathBuf, Option<String>) {
    let (directory, file) = directory_and_file(build);
    let missing = (!file.is_file()).then(|| format!("layers: there is no {}", file.display()));
    (directory, missing)
}

/// Checks what is named of the build. A directory without a Dockerfile is none of the errors: what is not layers may be meant.
///
/// # Errors
/// When the directory or the Dockerfile is not there.
pub fn named(build: &Build) -> Result<()> {
    if let Some(directory) = &build.directory {
        ensure!(directory.is_dir(), "CONTEXT is no directory: `{}`", directory.display());
    }
    if let Some(file) = &build.file {
        ensure!(file.is_file(), "there is no Dockerfile `{}`", file.display());
    }
    Ok(())
}

/// Returns why there is nothing to build, if so.
pub fn missing(build: &Build) -> Option<String> {
    directory(build).1
}

/// Returns the text of the build's Dockerfile; nothing if there is none.
pub fn dockerfile(build: &Build) -> String {
    crate::project::text(&directory_and_file(build).1).unwrap_or_default()
}

/// Returns the arguments of a build, its directory last.
fn args(build: &Build, directory: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut flag = |name: &str, value: &std::ffi::OsStr| {
        let mut word = OsString::from(format!("--{name}="));
        word.push(value);
        args.push(word);
    };
    if let Some(file) = &build.file {
        flag("file", file.as_os_str());
    }
    build.target.iter().for_each(|value| flag("target", value.as_ref()));
    let lists = [
        ("build-arg", &build.build_arg),
        ("platform", &build.platform),
        ("secret", &build.secret),
        ("ssh", &build.ssh),
    ];
    for (name, values) in lists {
        values.iter().for_each(|value| flag(name, value.as_ref()));
    }
    args.extend(build.further.iter().cloned());
    args.extend(["--".into(), directory.into()]);
    args
}

/// Finds out whether and by which builder the layers can be exported.
///
/// # Errors
/// When there is no builder of the given name.
pub fn plan_export(builders: &Builders, options: &Export) -> Result<Layers> {
    let (directory, missing) = directory(&options.build);
    if let Some(missing) = missing {
        report::note(&format!("{missing}; the rest is exported"));
        return Ok(Layers::None);
    }
    if let Some(error) = &builders.no_buildx {
        return Ok(Layers::Without(format!("layers: {error}")));
    }
    let chosen = builders.one(options.selection.builder.as_deref())?;
    let name = &chosen.name;
    let is_other = |name: &String| *name != chosen.name && options.to_builder.as_ref() != Some(name);
    let is_able = |builder: &&Builder| builder.cannot_export().is_none() && builder.is_running();
    let mut able: Vec<_> = builders.list.iter().filter(|builder| is_other(&builder.name)).filter(is_able).collect();
    // The one that is in use has most of what is to be built.
    able.sort_by_key(|builder| builder.name != builders.of_buildx);
    let able = able.first();
    let builder = match (chosen.cannot_export(), able) {
        (None, _) => chosen,
        (Some(why), Some(able)) if options.switch => {
            report::note(&format!("layers: builder {} exports them, since {name} cannot: {why}", able.name));
            able
        }
        (Some(why), able) => {
            let why = if options.switch { format!("{why}, and no other that runs can") } else { why.into() };
            return Ok(Layers::Without(format!(
                "layers: {}",
                cannot(name, &why, &choices(able.copied(), " or `--switch`"))
            )));
        }
    };
    let (full, file) = (directory.canonicalize()?, directory_and_file(&options.build).1.canonicalize()?);
    let Build { target, platform, .. } = &options.build;
    let key = format!("{}\n{file:?}\n{target:?}\n{platform:?}", full.display());
    let hash = digest(&mut key.as_bytes())?;
    let shown = full.file_name().map_or("context".into(), |name| name.to_string_lossy().into_owned());
    let words = [Some(shown.as_str()), target.as_deref(), Some(&hash.file()[..8])];
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name = words.into_iter().flatten().collect::<Vec<_>>().join("-").chars().map(plain).collect::<String>();
    let name = format!("layers-{}", name.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-"));
    Ok(Layers::Of(Box::new(LayersExport {
        builder: builders.reference(builder),
        name,
        args: args(&options.build, &directory),
        choices: choices(able.copied(), ""),
    })))
}

/// Says why a builder exports no layers, and what can be done.
fn cannot(name: &str, why: &str, choices: &str) -> String {
    format!("builder {name} cannot export them: {why}\nhint: {choices}")
}

/// Returns what can be done about a builder that exports no layers, with what each costs; `able` is one that does, and
/// `switch` the other way to say so.
fn choices(able: Option<&Builder>, switch: &str) -> String {
    let another = match able {
        Some(able) => {
            format!("`--builder {}`{switch}, which builds again what that builder does not have", quote(&able.name))
        }
        None => format!("`{MAKE_EXPORTER}`, which builds all again, and needs an image from a registry"),
    };
    format!(
        "{another}; or, from Engine 24 on, `{{\"features\": {{\"containerd-snapshotter\": true}}}}` in the engine's \
         /etc/docker/daemon.json, after which images are pulled and built again"
    )
}

impl LayersExport {
    /// Builds, and takes what buildx writes into the bundle. The last one exported is also called `latest`, unless that is
    /// an image of others.
    ///
    /// # Errors
    /// When the build fails, or its cache does not arrive whole.
    pub fn run(&self, writer: &mut Writer) -> Result<AnswerEntry> {
        let stage = writer.stage_layers()?;
        self.builder.export_layers(&stage.dir, &self.args).map_err(|error| self.explained(error))?;
        if writer.layout.has_foreign_latest(&writer.index) {
            report::note(&format!(
                "layers: `latest` in the bundle is an image of another tool, and stays; `--cache-from type=local,src=DIR,tag={}` \
                 finds the layers",
                self.name
            ));
        }
        let (descriptor, bytes) = writer.take_layers(&stage, &[&self.name, LATEST])?;
        Ok(self.entry(descriptor, bytes))
    }

    /// Builds, and lets buildx push the layers to a tag beside the bundle's, from the builder and with docker's login.
    ///
    /// # Errors
    /// When the build fails, or its cache does not arrive.
    pub fn push(&self, remote: &Remote, writer: &mut Writer) -> Result<AnswerEntry> {
        let reference = remote.waiting(writer, &self.name)?;
        let pushed = self.builder.push_layers(&reference.to_string(), reference.insecure, &self.args);
        let pushed = pushed.map_err(|error| self.explained(error))?;
        let (descriptor, bytes) =
            remote.take_layers(writer, &self.name, pushed.as_deref().unwrap_or(&reference.tag))?;
        Ok(self.entry(descriptor, bytes))
    }

    /// Builds, and builds again in another builder with the layers of the first, through a temporary directory: BuildKit
    /// hands layers to directories and registries alone. Returns false if the second build failed.
    ///
    /// # Errors
    /// When the first build fails, or the directory cannot be had.
    pub fn hand_over(&self, to: &BuilderRef, answer: &mut Answer) -> Result<bool> {
        let dir = crate::docker::temporary_dir()?;
        let stage = Layout { dir: dir.path().into() };
        self.builder.export_layers(&stage.dir, &self.args).map_err(|error| self.explained(error))?;
        let layers = stage.index()?.manifests;
        let digests: Vec<String> = layers.iter().map(|layer| layer.digest.clone()).collect();
        let blobs = std::fs::read_dir(stage.blobs())?.flatten().filter_map(|blob| blob.metadata().ok());
        let bytes = blobs.map(|blob| blob.len()).sum();
        let brought = bring(to, &stage.dir, &digests, &self.args, answer)?;
        if brought {
            answer.entries.extend(layers.into_iter().map(|layer| self.entry(layer, bytes)));
        }
        Ok(brought)
    }

    /// Turns what the BuildKit inside an engine says of an exporter that it does not have into why, and what can be done.
    fn explained(&self, error: DockerError) -> anyhow::Error {
        match &error.cause {
            Cause::Refused(why) if why.contains("unknown cache exporter") => {
                anyhow!(cannot(&self.builder.name, GRAPH_DRIVER, &self.choices))
            }
            _ => error.into(),
        }
    }

    fn entry(&self, descriptor: Descriptor, bytes: u64) -> AnswerEntry {
        AnswerEntry { digest: Some(descriptor.digest), bytes, ..self.planned() }
    }

    /// Returns the entry of an export that is still to come.
    pub fn planned(&self) -> AnswerEntry {
        let name = self.name.clone();
        AnswerEntry { kind: Kind::Layer, name, ..AnswerEntry::default() }
    }
}

/// What an import of layers came to.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Steps {
    pub cached: u64,
    /// The steps that ran all the same, and why.
    pub ran: Vec<String>,
}

/// Builds with the layers of a bundle, so that they become the builder's own. Returns false if the build failed; what was in
/// the cache until then is imported all the same.
///
/// # Errors
/// When there is no builder, or the user cancels.
pub fn import(builder: Option<&BuilderRef>, layout: &Layout, options: &Import, answer: &mut Answer) -> Result<bool> {
    let index = layout.index()?;
    let layers: Vec<&Descriptor> = index.manifests.iter().filter(|descriptor| !descriptor.is_tree()).collect();
    let (directory, missing) = directory(&options.build);
    let asked = options.build.directory.is_some() || options.build.file.is_some();
    match (layers.is_empty(), missing) {
        (true, _) if asked => report::note("layers: the bundle has none"),
        (true, _) => {}
        (false, Some(missing)) => {
            answer.left_out.push(format!("{missing}, and layers are imported by building; name its directory"));
        }
        (false, None) => {
            let mut seen = HashSet::new();
            // `latest` is one of the others by a second name.
            let newest = layers.iter().rev().filter(|layer| seen.insert(layer.digest.clone()));
            let digests: Vec<String> = newest.map(|layer| layer.digest.clone()).collect();
            let args = args(&options.build, &directory);
            let done = bring(builder.context("there is no builder")?, &layout.dir, &digests, &args, answer)?;
            if !done && answer.steps.is_none() {
                return Ok(false);
            }
            answer.entries.extend(listed(&index.manifests));
            return Ok(done);
        }
    }
    Ok(true)
}

/// Returns the layers of an index as an import tells them: without `latest`, a second name of one, and without bytes, since
/// BuildKit does not say what it takes.
pub fn listed(manifests: &[Descriptor]) -> impl Iterator<Item = AnswerEntry> {
    let layers = manifests.iter().filter(|descriptor| !descriptor.is_tree() && descriptor.ref_name() != LATEST);
    layers.map(|layer| AnswerEntry {
        kind: Kind::Layer,
        name: layer.ref_name().into(),
        digest: Some(layer.digest.clone()),
        ..AnswerEntry::default()
    })
}

/// Builds with layers from a directory, and adds what came of it to the answer. Returns false if the build failed.
fn bring(
    builder: &BuilderRef,
    from: &Path,
    digests: &[String],
    args: &[OsString],
    answer: &mut Answer,
) -> Result<bool> {
    let mut told = String::new();
    let done = builder.import_layers(from, digests, args, &mut |line| {
        told.push_str(line);
        told.push('\n');
    });
    if let Err(error) = &done {
        cancel::check()?;
        answer.left_out.push(format!("layers: the build that imports them failed: {error}"));
    }
    let steps = steps(&told);
    answer.left_out.extend(steps.ran.iter().map(|step| format!("layers: not CACHED: {step}")));
    answer.steps = (done.is_ok() || steps != Steps::default()).then_some(steps);
    Ok(done.is_ok())
}

/// Tells which steps of a build were in the cache.
fn steps(told: &str) -> Steps {
    let (cached, ran): (Vec<_>, Vec<_>) =
        parse::steps(told).into_iter().filter(|step| !step.is_base()).partition(|step| step.cached);
    let ran = ran.iter().map(|step| match step.text.contains("--mount=type=cache") {
        true => format!("{step}: each of BuildKit's generations, and a build with other flags, keys a step with a cache mount differently"),
        false => format!("{step}: it, or what it builds on, is not what was exported"),
    });
    Steps { cached: cached.len() as u64, ran: ran.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_ran_are_named_with_the_reason() {
        let told = "#1 [internal] load build definition from Dockerfile\n#1 DONE 0.0s\n#4 [stage-0 1/3] FROM debian\n\
                    #5 [2/3] COPY a /a\n#5 CACHED\n#6 [stage-0 3/3] RUN --mount=type=cache,target=/m make\n#6 0.1 x\n\
                    #6 DONE 1.0s\n#7 [b 1/1] RUN true\n#7 CACHED\n";
        let found = steps(told);
        assert_eq!((found.cached, found.ran.len()), (2, 1));
        assert!(found.ran[0].contains("[stage-0 3] RUN") && found.ran[0].contains("generations"));
    }
}
