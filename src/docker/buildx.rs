//! Calls of `docker buildx`.

use super::{Cause, Docker, DockerError, Result, parse, text};
use crate::model::{Builder, CacheRecord, Moment};

impl Docker {
    /// `docker buildx ls --format 'table {{.Name}} {{json .}}'`: all builders (buildx 0.13 and later).
    /// The template is a table because buildx 0.13 tells the current builder only there, by a star.
    ///
    /// # Errors
    /// When docker or buildx is missing, too old, or its answer makes no sense.
    pub fn builders(&self) -> Result<Vec<Builder>> {
        let call = self.call(["buildx", "ls", "--format", "table {{.Name}} {{json .}}"]);
        let words = call.words();
        let answer = call.run()?;
        parse::builders(&text(&words, answer)?).map_err(|what| DockerError::new(words, Cause::Garbage(what)))
    }

    /// `docker buildx du --verbose --builder NAME`: the records of one builder; sizes are rounded to four digits.
    ///
    /// # Errors
    /// When the builder does not exist, does not run, or the answer makes no sense.
    pub fn records(&self, builder: &str) -> Result<Vec<CacheRecord>> {
        let call = || self.call(["buildx", "du", "--verbose", &format!("--builder={builder}")]);
        let words = call().words();
        let answer = super::settled(|| call().run())?;
        parse::records(&text(&words, answer)?, Moment::now().0)
            .map_err(|what| DockerError::new(words, Cause::Garbage(what)))
    }

    /// `docker --version`: the version of the docker command, `28.5.2`. It asks no engine.
    ///
    /// # Errors
    /// When docker cannot be started or its answer makes no sense.
    pub fn client_version(&self) -> Result<String> {
        let call = self.call(["--version"]);
        let words = call.words();
        let answer = text(&words, call.run()?)?;
        let version = answer.strip_prefix("Docker version ").and_then(|rest| rest.split([',', ' ', '+']).next());
        version
            .map(str::to_owned)
            .ok_or_else(|| DockerError::new(words, Cause::Garbage("it names no version of Docker".into())))
    }

    /// `docker buildx use NAME`.
    ///
    /// # Errors
    /// When there is no such builder, or it belongs to another context.
    pub fn use_builder(&self, name: &str) -> Result<()> {
        self.call(["buildx", "use", "--", name]).run().map(drop)
    }

    /// `docker context use NAME`.
    ///
    /// # Errors
    /// When there is no such context.
    pub fn use_context(&self, name: &str) -> Result<()> {
        self.call(["context", "use", "--", name]).run().map(drop)
    }
}
