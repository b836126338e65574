//! The `--mount` flags of a `RUN`.

use std::ops::Range;

use super::stage::Scope;
use super::{Dockerfile, Flag, Instruction};

/// Mounts of one instruction that are looked at, as rules compare each with the others.
const MOST: usize = 100;

/// One `--mount`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// `bind` unless said.
    pub kind: String,
    /// Absolute, without an end slash; `None` if variables in it are not known.
    pub target: Option<String>,
    pub line: u32,
    /// Keys and values as written.
    pub options: Vec<(String, String)>,
    /// Of the value of the flag, in the file.
    pub span: Range<usize>,
}

impl Mount {
    /// Reads the mounts of an instruction.
    pub fn all(file: &Dockerfile, instruction: &Instruction, scope: &Scope) -> Vec<Mount> {
        let mounts = instruction.flags.iter().filter(|flag| flag.name == "mount");
        mounts.take(MOST).filter_map(|flag| Mount::read(file, flag, scope)).collect()
    }

    fn read(file: &Dockerfile, flag: &Flag, scope: &Scope) -> Option<Mount> {
        let value = flag.value.as_deref()?;
        let options: Vec<(String, String)> = value
            .split(',')
            .map(|option| option.split_once('=').unwrap_or((option, "")))
            .map(|(key, value)| (key.trim().to_lowercase(), value.trim().to_owned()))
            .collect();
        let mut mount = Mount {
            kind: "bind".into(),
            target: None,
            line: file.line_of(flag.span.start),
            options,
            span: flag.value_span.clone(),
        };
        if let Some(kind) = mount.option(&["type"]) {
            mount.kind = kind.to_owned();
        }
        mount.target = mount.option(&["target", "dst", "destination"]).and_then(|target| {
            let target = scope.expand(target)?;
            let target = if target.starts_with('/') {
                target
            } else {
                format!("{}/{}", scope.workdir.as_deref()?.trim_end_matches('/'), target.trim_start_matches("./"))
            };
            Some(clean(&target))
        });
        Some(mount)
    }

    /// Returns the value of the first of these options that is there.
    pub fn option(&self, names: &[&str]) -> Option<&str> {
        self.options.iter().find(|(key, _)| names.contains(&key.as_str())).map(|(_, value)| value.as_str())
    }

    pub fn is_cache(&self) -> bool {
        self.kind == "cache"
    }

    /// Returns what names the cache: the id, or the target.
    pub fn id(&self) -> Option<&str> {
        self.option(&["id"]).or(self.target.as_deref())
    }

    /// Tells whether the mount holds `place`, lies in it, or is it.
    pub fn meets(&self, place: &str) -> bool {
        self.target.as_deref().is_some_and(|target| within(target, place) || within(place, target))
    }
}

/// Tells whether `path` is `directory` or lies in it.
pub fn within(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns an absolute path without `.`, double and end slashes. `..` stays.
pub fn clean(path: &str) -> String {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    format!("/{}", names.join("/"))
}
