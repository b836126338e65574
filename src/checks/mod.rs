//! Doctor's rules: facts in, findings out. Pure: a rule never asks docker and never reads a file.

pub mod caches;
pub mod containers;
pub mod deletions;
pub mod described_edits;
pub mod dockerfile;
pub mod edits;
pub mod engine;
pub mod exports;
pub mod live;
pub mod mounts;
pub mod project;
pub mod scripts;
pub mod secrets;
pub mod steps;
pub mod versions;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;

/// A rule, and the name by which users choose it.
#[derive(Debug)]
pub struct Check {
    pub name: &'static str,
    /// What is the case if nothing is found: `the engine answers`.
    pub promise: &'static str,
    pub run: fn(&Facts) -> Result<Vec<Finding>, NotRun>,
}

/// All that rules may look at.
#[derive(Debug)]
pub struct Facts {
    /// What is asked was named, so that no other check tells that there is no engine.
    pub named: bool,
    pub engine: engine::Facts,
    pub caches: caches::Facts,
    pub live: Fact<Vec<live::Container>>,
    pub project: Fact<project::Project>,
}

impl Facts {
    /// Returns the engine, for checks that make no sense without.
    fn engine(&self) -> Fact<&engine::Engine> {
        let why = match &self.engine.engine {
            Ok(engine) => return Ok(engine),
            Err(engine::NoEngine::Unclear(_)) => "the engine gives no answer that makes sense",
            Err(_) => "no engine answers",
        };
        Err(match self.named {
            true => NotRun::Failed(format!("{why}: `docker cache doctor --check engine-unreachable` tells more")),
            false => NotRun::Skipped(why.into()),
        })
    }

    /// Returns what the project's files come to in a check that asks the engine as well. If that is nothing, and there is no
    /// engine, nothing is known.
    fn told(&self, check: &str) -> Fact<Vec<Finding>> {
        let found = self.project.iter().flat_map(project::Project::found);
        let found: Vec<Finding> = found.filter(|finding| finding.check == check).cloned().collect();
        match self.engine() {
            Err(why) if found.is_empty() => Err(why),
            _ => Ok(found),
        }
    }
}

/// Something that was asked for, or why it is not known.
pub type Fact<T> = Result<T, NotRun>;

/// Why a check could not run.
#[derive(Clone, Debug, PartialEq)]
pub enum NotRun {
    /// It does not apply here: no engine to ask, no project to read.
    Skipped(String),
    /// It could not be finished.
    Failed(String),
}

/// Returns all checks in the order in which they are told: what breaks others comes first.
pub fn all() -> impl Iterator<Item = &'static Check> {
    let caches = caches::CHECKS.iter().chain(versions::CHECKS);
    engine::CHECKS.iter().chain(caches).chain(live::CHECKS).chain(project::CHECKS)
}

/// Returns the names of all checks.
pub fn names() -> impl Iterator<Item = &'static str> {
    all().map(|check| check.name)
}

impl Check {
    /// Runs the rule. One that crashes has failed, and the others go on.
    pub fn outcome(&self, facts: &Facts) -> Outcome {
        match catch_unwind(AssertUnwindSafe(|| (self.run)(facts))) {
            Ok(Ok(mut findings)) => {
                findings.iter_mut().for_each(|finding| finding.check = self.name);
                Outcome::Ran(findings)
            }
            Ok(Err(NotRun::Skipped(why))) => Outcome::Skipped(why),
            // It is told in one line.
            Ok(Err(NotRun::Failed(why))) => Outcome::Failed(why.replace("\nhint: ", "; ").replace('\n', " ")),
            Err(_) => Outcome::Failed("the check itself crashed; please report it".into()),
        }
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is lost by leaving it.
    Note,
    /// Builds are slower, or caches colder or larger, than they need be.
    Warning,
    /// Something does not work.
    Error,
}

/// What a rule found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Name of the check.
    pub check: &'static str,
    pub severity: Severity,
    /// One sentence without a full stop: what is the case and what follows from it.
    pub message: String,
    pub file: Option<String>,
    /// Counted from 1.
    pub line: Option<u32>,
    pub fix: Option<Fix>,
    /// Target of the cache mount, or directory of the cache export, that it is about, if more may be known of that.
    #[serde(skip)]
    pub subject: Option<String>,
}

impl Finding {
    /// Makes a finding that concerns no file; the name of the check is filled in when it has run.
    pub fn new(severity: Severity, message: impl Into<String>) -> Finding {
        Finding { check: "", severity, message: message.into(), file: None, line: None, fix: None, subject: None }
    }

    /// Adds the command that puts it right, as it is pasted into a shell.
    pub fn command(mut self, command: impl Into<String>) -> Finding {
        self.fix = Some(Fix::Command { command: command.into() });
        self
    }
}

/// What puts a finding right.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Fix {
    /// A command that can be pasted into a shell as it stands.
    Command { command: String },
    /// A change of a file, as a unified diff.
    Diff { file: String, diff: String },
}

/// What became of a check. One that could not run says why, and is never silently fine.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It ran; no finding means that all is well.
    Ran(Vec<Finding>),
    /// It does not apply here: no engine to ask, no project to read.
    Skipped(String),
    /// It could not be finished.
    Failed(String),
}
