//! Calls about one builder, whichever of docker's two command families reaches it.

use std::ffi::OsString;
use std::io::{PipeReader, PipeWriter};
use std::path::Path;

use serde_json::Value;

use super::{Call, Cause, Docker, DockerError, Input, Result, field};
use crate::model::{Builder, CacheRecord, Moment};

/// A builder and the way to call it.
#[derive(Clone, Debug)]
pub struct BuilderRef {
    docker: Docker,
    pub name: String,
    /// The architecture that it builds for by default, as Go names it: `amd64`.
    pub architecture: String,
    /// True if pruning any record makes its BuildKit forget others: see [`Builder::forgets_when_pruned`].
    pub forgets_when_pruned: bool,
    /// See [`Builder::is_asleep`].
    asleep: bool,
    /// The docker whose engine has this builder inside, for the driver docker.
    engine: Option<Docker>,
    has_buildx: bool,
}

impl BuilderRef {
    /// Returns the way to call a builder that `docker buildx ls` lists.
    pub fn new(docker: &Docker, builder: &Builder, has_buildx: bool) -> BuilderRef {
        let node = builder.nodes.first();
        let engine = (builder.driver == "docker").then(|| match node {
            Some(node) if node.endpoint != docker.endpoint.context => docker.in_context(&node.endpoint),
            _ => docker.clone(),
        });
        let platform = node.and_then(|node| node.platforms.first()).map(|platform| platform.trim_end_matches('*'));
        let architecture = platform.and_then(|platform| platform.split('/').nth(1)).unwrap_or(std::env::consts::ARCH);
        BuilderRef {
            docker: docker.clone(),
            name: builder.name.clone(),
            architecture: architecture.into(),
            forgets_when_pruned: builder.forgets_when_pruned(),
            asleep: builder.is_asleep(),
            engine,
            has_buildx,
        }
    }

    /// Returns the docker to call: buildx refuses to use a context's builder from another context.
    fn docker(&self) -> &Docker {
        self.engine.as_ref().unwrap_or(&self.docker)
    }

    /// Returns true if it is the engine's own builder of this docker context.
    pub fn is_of_context(&self, context: &str) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.endpoint.context == context)
    }

    /// Returns all records of its cache. The engine's own builder answers over the Engine API, faster and in exact
    /// bytes; others by `docker buildx du`.
    ///
    /// # Errors
    /// When it does not run or its answer makes no sense.
    pub fn records(&self) -> Result<Vec<CacheRecord>> {
        if self.asleep {
            return Err(DockerError::new("docker buildx du", Cause::Asleep(self.name.clone())));
        }
        match &self.engine {
            Some(engine) => engine.build_cache(),
            None => self.docker.records(&self.name),
        }
    }

    /// The same as [`BuilderRef::records`], once two answers in a row tell of the same ones if one was used only just now:
    /// for a moment after a build, BuildKit leaves out some that it still holds.
    ///
    /// # Errors
    /// See there.
    pub fn records_at_rest(&self) -> Result<Vec<CacheRecord>> {
        super::at_rest(self.records()?, Moment::now(), || self.records())
    }

    /// Returns the digest of an image that the builder takes from its engine; None for builders without one.
    pub fn image_id(&self, reference: &str) -> Option<String> {
        self.engine.as_ref()?.image_id(reference).ok()?
    }

    /// The same as [`BuilderRef::records`], also after a cancel.
    ///
    /// # Errors
    /// See there.
    pub(crate) fn records_cleanup(&self) -> Result<Vec<CacheRecord>> {
        let (docker, engine) = (self.docker.cleanup(), self.engine.as_ref().map(Docker::cleanup));
        BuilderRef { docker, engine, ..self.clone() }.records()
    }

    /// `docker buildx prune --force --filter id=^(A|B)$`, also after a cancel: removes exactly these records in one
    /// call. The filter is a regular expression, and BuildKit's ids are letters and digits.
    ///
    /// # Errors
    /// When the builder does not run.
    pub fn prune(&self, ids: &[String]) -> Result<()> {
        self.prune_call(ids).cleanup().run().map(drop)
    }

    /// The same as [`BuilderRef::prune`], for as long as it takes, until a cancel.
    ///
    /// # Errors
    /// See there.
    pub fn remove(&self, ids: &[String]) -> Result<()> {
        self.prune_call(ids).unlimited().run().map(drop)
    }

    fn prune_call(&self, ids: &[String]) -> Call<'_> {
        let filter = format!("--filter=id=^({})$", ids.join("|"));
        match self.has_buildx {
            true => self.docker().call([
                "buildx",
                "prune",
                "--all",
                "--force",
                &filter,
                &format!("--builder={}", self.name),
            ]),
            false => self.docker().call(["builder", "prune", "--all", "--force", &filter]),
        }
    }

    /// `docker buildx build --output type=local,dest=OUT -`: a build of the context in a tar archive; hands on what it
    /// tells, line by line. The values of build arguments are handed over in the environment, which others cannot read.
    ///
    /// # Errors
    /// When there is no buildx, or the build fails.
    pub fn warm_build(
        &self,
        archive: Vec<u8>,
        build_args: &[(String, OsString)],
        network: Option<&str>,
        out: &Path,
        each: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let mut args = self.build_words();
        args.push(format!("--output=type=local,{}", field("dest", &out.to_string_lossy())).into());
        args.push("--progress=plain".into());
        args.extend(network.map(|network| format!("--network={network}").into()));
        args.extend(build_args.iter().map(|(name, _)| format!("--build-arg={name}").into()));
        args.push("-".into());
        let call = self.build_call(args);
        let call = build_args.iter().fold(call, |call, (name, value)| call.env(name, value));
        super::warm::build(call, archive, each)
    }

    /// `docker buildx build --network=none --output type=tar,dest=- CONTEXT`: a build that cannot reach anything. The words
    /// of the context are `-` if `send` writes it as a tar archive, and `--file=- DIR` if it writes the Dockerfile alone.
    /// `told` gets the lines that the build tells, and `read` its output as a tar archive while it comes.
    ///
    /// # Errors
    /// When the build fails; docker's last line says why.
    pub fn carrier_build<T>(
        &self,
        send: impl FnOnce(PipeWriter) -> std::io::Result<()> + Send,
        context: &[OsString],
        namespace: &str,
        told: &mut (dyn FnMut(&str) + Send),
        read: impl FnOnce(PipeReader) -> T,
    ) -> Result<T> {
        let mut args = self.build_words();
        args.extend(["--network=none", "--progress=plain", "--output=type=tar,dest=-"].map(OsString::from));
        if !namespace.is_empty() {
            args.push(format!("--build-arg=BUILDKIT_CACHE_MOUNT_NS={namespace}").into());
        }
        args.extend_from_slice(context);
        self.build_call(args).fed(send, |call, input| call.stream_telling(Input::Pipe(input), told, read))
    }

    /// Returns the words that begin a build of this builder.
    fn build_words(&self) -> Vec<OsString> {
        match self.has_buildx {
            true => vec!["buildx".into(), "build".into(), format!("--builder={}", self.name).into()],
            false => vec!["build".into()],
        }
    }

    /// `docker buildx build --cache-to type=local,dest=DIR,mode=max ARGS…`: builds and writes the cache of all steps.
    ///
    /// # Errors
    /// When the build fails, or the builder cannot export its cache.
    pub fn export_layers(&self, dest: &Path, args: &[OsString]) -> Result<()> {
        let to = format!("--cache-to=type=local,{},mode=max", field("dest", &dest.to_string_lossy()));
        self.layers_build(&[to], args).map(drop)
    }

    /// `docker buildx build --cache-to type=registry,ref=REF,mode=max --metadata-file FILE ARGS…`: builds, and the builder
    /// pushes the cache of all steps that the registry does not have. Returns the digest of its manifest, if told. As an
    /// image manifest (BuildKit 0.12 and later) any registry takes it, and sees what it refers to.
    ///
    /// # Errors
    /// When the build fails, or the builder cannot export its cache.
    pub fn push_layers(&self, reference: &str, insecure: bool, args: &[OsString]) -> Result<Option<String>> {
        let insecure = if insecure { ",registry.insecure=true" } else { "" };
        let to = format!(
            "--cache-to=type=registry,ref={reference},mode=max,image-manifest=true,oci-mediatypes=true{insecure}"
        );
        let failed = |error: std::io::Error| DockerError::new("docker buildx build", Cause::Refused(error.to_string()));
        let dir = super::temporary_dir().map_err(failed)?;
        let file = dir.path().join("metadata.json");
        self.layers_build(&[to, format!("--metadata-file={}", file.display())], args)?;
        let told: Value = serde_json::from_slice(&std::fs::read(file).unwrap_or_default()).unwrap_or_default();
        // A descriptor, as JSON in a JSON string.
        let manifest: Value =
            serde_json::from_str(told["cache.manifest"].as_str().unwrap_or_default()).unwrap_or_default();
        Ok(manifest["digest"].as_str().map(ToString::to_string))
    }

    /// `docker buildx build --cache-from type=local,src=DIR,digest=DIGEST ARGS…`: builds with what a bundle has, and hands on
    /// what the build tells: lines such as `#5 [2/3] RUN make` and `#5 CACHED`.
    ///
    /// # Errors
    /// When the build fails.
    pub fn import_layers(
        &self,
        src: &Path,
        digests: &[String],
        args: &[OsString],
        told: &mut (dyn FnMut(&str) + Send),
    ) -> Result<()> {
        let source = field("src", &src.to_string_lossy());
        let from = |digest: &String| format!("--cache-from=type=local,{source},digest={digest}");
        let call = self.layers_call(&digests.iter().map(from).collect::<Vec<_>>(), args);
        // It has no output, and would wait for somebody to read it if it had.
        call.stream_telling(Input::Nothing, told, |mut output| drop(std::io::copy(&mut output, &mut std::io::sink())))
    }

    /// `docker buildx build --output type=cacheonly ARGS…`: builds into the cache alone, and returns what the build told.
    ///
    /// # Errors
    /// When the build fails; docker's last line says why.
    pub fn dry_build(&self, args: &[OsString]) -> Result<String> {
        self.layers_build(&[], args)
    }

    fn layers_build(&self, cache: &[String], args: &[OsString]) -> Result<String> {
        self.layers_call(cache, args).run_told()
    }

    fn layers_call(&self, cache: &[String], args: &[OsString]) -> Call<'_> {
        let mut words = self.build_words();
        words.extend(["--progress=plain".into(), "--output=type=cacheonly".into()]);
        words.extend(cache.iter().map(OsString::from));
        words.extend_from_slice(args);
        self.build_call(words)
    }

    fn build_call(&self, args: Vec<OsString>) -> Call<'_> {
        // No provenance file in the output, and BuildKit also where docker's own default is the legacy builder.
        self.docker().call(args).env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1").env("DOCKER_BUILDKIT", "1").unlimited()
    }
}

impl DockerError {
    /// Returns true if there is no buildx, which older docker commands can do without.
    pub fn is_no_buildx(&self) -> bool {
        matches!(self.cause, Cause::NoBuildx)
    }
}
