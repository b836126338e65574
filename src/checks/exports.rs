//! What lies in the directories that builds export their layer cache to, and what keeps them from growing. Pure.

use super::project::diff;
use super::{Facts, Finding, Fix};
use crate::model::Bytes;
use crate::report::quote;

pub const CACHE_EXPORT_GROWS: &str = "cache-export-grows";

/// A directory of a local cache export.
#[derive(Clone, Debug, Default)]
pub struct Export {
    /// As the project's file has it.
    pub dest: String,
    /// As it is opened from the working directory.
    pub directory: String,
    /// The project that is built with it, likewise.
    pub project: String,
    pub bytes: u64,
    /// What of them nothing in the index refers to.
    pub orphaned: u64,
}

/// Adds what is known of the directory that a finding is about, and what to do where the BuildKit in use is known.
pub fn complete(finding: &mut Finding, facts: &Facts) {
    let Some(dest) = finding.subject.clone() else { return };
    let export = facts.caches.exports.iter().find(|export| export.dest == dest);
    if let Some(Export { directory, bytes, orphaned, .. }) = export {
        let (bytes, left) = (Bytes(*bytes), Bytes(*orphaned));
        finding.message.push_str(&format!("; `{directory}` holds {bytes}, of which {left} are left over"));
    }
    match resets(facts) {
        Some((_, true)) => {
            finding.message.push_str("; add `reset=true`");
            finding.fix = reset(finding, facts, &dest);
        }
        Some((buildkit, false)) => finding.message.push_str(&format!(
            "; BuildKit {buildkit} knows no `reset=true` (0.31 does), so export to a fresh directory and swap it in"
        )),
        None => finding.message.push_str(
            "; add `reset=true` if your BuildKit is 0.31 or later, else export to a fresh directory and swap it in",
        ),
    }
    let is_whole = export.is_some_and(|export| export.orphaned > 0) && builds_here(finding, facts);
    // A comma in its name would end it for buildx.
    if let Some(export) = export.filter(|export| finding.fix.is_none() && is_whole && !export.directory.contains(',')) {
        let (old, new) = (quote(&export.directory), quote(format!("{}.new", export.directory)));
        let (from, to) =
            (quote(format!("type=local,src={}", export.directory)), format!("type=local,dest={new},mode=max"));
        finding.fix = Some(Fix::Command {
            command: format!(
                "docker buildx build --cache-from {from} --cache-to {to} --output type=cacheonly {} && rm -r -- {old} && mv -- {new} {old}",
                quote(&export.project)
            ),
        });
    }
}

/// Tells whether the finding is about a command that builds its directory's Dockerfile as it is: only then another command
/// can make the same export.
fn builds_here(finding: &Finding, facts: &Facts) -> bool {
    let Ok(project) = &facts.project else { return false };
    let file = project.files.files.iter().find(|file| Some(&file.path) == finding.file.as_ref());
    let Some((file, line)) = file.zip(finding.line) else { return false };
    let mut command = String::new();
    for line in file.text.lines().skip(line as usize - 1) {
        command.push_str(line.trim_end_matches('\\'));
        if !line.ends_with('\\') {
            break;
        }
    }
    let flags = ["-f", "--file", "--target", "--build-arg", "--build-context", "--platform", "bake"];
    let is_other = |word: &str| flags.iter().any(|flag| word.split('=').next() == Some(*flag));
    command.trim().starts_with("docker ")
        && command.ends_with(" .")
        && command.matches("cache-to").count() == 1
        && !command.split_whitespace().any(is_other)
}

/// Returns the release of BuildKit behind `docker buildx build`, and whether it knows `reset=true`; None if it does not
/// tell its release.
fn resets(facts: &Facts) -> Option<(String, bool)> {
    let builders = facts.engine.builders.as_ref().ok()?.as_ref()?;
    let builder = builders.list.iter().find(|builder| builder.name == builders.of_buildx)?;
    let buildkit = builder.nodes.first()?.version.clone();
    let mut numbers = buildkit.trim_start_matches('v').split(['.', '-', '+']).map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let known = (major, minor) >= (0, 31);
    ((major, minor) != (0, 0)).then_some((buildkit, known))
}

/// Returns the change of the file that resets the export, where that is written as docker's words.
fn reset(finding: &Finding, facts: &Facts, dest: &str) -> Option<Fix> {
    let path = finding.file.as_ref()?;
    let text = &facts.project.as_ref().ok()?.files.files.iter().find(|file| file.path == *path)?.text;
    let line = finding.line?.checked_sub(1)? as usize;
    let start: usize = text.split_inclusive('\n').take(line).map(str::len).sum();
    let end = start + text[start..].find(&format!("dest={dest}"))? + "dest=".len() + dest.len();
    let (before, after) = text.split_at(end);
    Some(Fix::Diff { file: path.clone(), diff: diff(path, text, &format!("{before},reset=true{after}")) })
}
