//! Doctor's rules for what starts builds: scripts, CI workflows and bake files. Pure; works by lines, so a
//! file with errors is read as far as it goes.

use super::steps::calls;
use super::{Finding, Severity};
use crate::dockerfile::Text;
use crate::dockerfile::shell::{self, Command, assignment};
use crate::project::{File, Kind};

/// Words in the name of a script or target that rebuilds on purpose.
const ON_PURPOSE: &[&str] = &["clean", "rebuild", "fresh", "force", "scratch", "cache", "purge", "reset"];

/// Returns what is found in one file.
pub fn check(file: &File) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut name = String::new();
    for (line, number) in logical_lines(file) {
        let content = line.trim();
        if content.starts_with('#') || content.starts_with("//") {
            continue;
        }
        if let Some(target) = target(file.kind, &line) {
            name = target;
        }
        found.extend(setting(file, content, number));
        found.extend(export(file, content, number));
        for script in scripts(file.kind, content) {
            for command in commands(&script) {
                found.extend(flags(file, &command, number, &name));
            }
        }
    }
    found
}

fn at(file: &File, check: &'static str, severity: Severity, line: u32, message: &str) -> Finding {
    Finding { check, file: Some(file.path.clone()), line: Some(line), ..Finding::new(severity, message) }
}

/// Returns lines with those that continue them, and the number of the first. In a bake file a list goes on until it is
/// closed.
fn logical_lines(file: &File) -> Vec<(String, u32)> {
    let mut lines: Vec<(String, u32)> = Vec::new();
    let mut goes_on = false;
    let mut open = 0;
    for (number, line) in file.text.lines().enumerate() {
        let (kept, next) = line.strip_suffix('\\').map_or((line, false), |kept| (kept, true));
        match lines.last_mut().filter(|_| goes_on) {
            Some((joined, _)) => joined.push_str(kept),
            None => lines.push((kept.to_owned(), number as u32 + 1)),
        }
        if file.kind == Kind::Bake {
            open += line.matches('[').count() as i32 - line.matches(']').count() as i32;
        }
        goes_on = next || open > 0;
    }
    lines
}

/// Returns the target that a line of a Makefile begins, or the function that a line of a script does.
fn target(kind: Kind, line: &str) -> Option<String> {
    let (name, rest) = match kind {
        Kind::Makefile => line.split_once(':')?,
        Kind::Script => line.split_once("()")?,
        _ => return None,
    };
    let fits = !name.is_empty() && !name.starts_with([' ', '\t']) && !rest.starts_with('=');
    fits.then(|| name.trim().to_lowercase())
}

/// Returns the shell texts of a line.
fn scripts(kind: Kind, line: &str) -> Vec<String> {
    match kind {
        Kind::Dockerfile | Kind::Compose | Kind::Devcontainer | Kind::Env | Kind::Bake => Vec::new(),
        Kind::Script => vec![line.to_owned()],
        Kind::Makefile => vec![line.trim_start_matches(['@', '-', '+', ' ']).to_owned()],
        Kind::Ci => {
            let line = line.strip_prefix("- ").unwrap_or(line).trim_start();
            let keys = ["run:", "script:", "command:", "sh"];
            let script = keys.iter().find_map(|key| line.strip_prefix(key)).unwrap_or(line).trim();
            vec![script.trim_matches(['"', '\'']).to_owned()]
        }
        Kind::PackageJson => {
            let Some((name, value)) = line.split_once(':') else { return Vec::new() };
            let name = name.trim_matches(['"', ' ']);
            if ON_PURPOSE.iter().any(|word| name.contains(word)) {
                return Vec::new();
            }
            serde_json::from_str(value.trim().trim_end_matches(',')).ok().into_iter().collect()
        }
    }
}

/// Returns the commands of a script, those of its aliases among them.
fn commands(script: &str) -> Vec<Command> {
    let read = |script: &str| shell::commands(&Text::of(script));
    let commands = read(script);
    let aliases: Vec<Command> = commands
        .iter()
        .filter(|command| command.program() == "alias")
        .flat_map(|command| command.args().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|arg| {
            let (name, value) =
                assignment(&arg.replace('-', "_")).map(|(name, _)| (name.to_owned(), arg.split_once('=')))?;
            let deliberate = ON_PURPOSE.iter().any(|word| name.contains(word));
            value.filter(|_| !deliberate).map(|(_, value)| read(value))
        })
        .flatten()
        .collect();
    commands.into_iter().chain(aliases).collect()
}

/// Tells whether a command builds: `docker build`, `docker buildx build`, `docker compose build` and their like.
fn builds(command: &Command) -> bool {
    let calls_that_build = [
        "docker build",
        "docker bake",
        "docker image build",
        "docker builder build",
        "docker buildx build",
        "docker buildx bake",
        "docker compose build",
        "docker-compose build",
    ];
    calls_that_build.iter().any(|pattern| calls(command, pattern))
}

fn flags(file: &File, command: &Command, line: u32, name: &str) -> Vec<Finding> {
    if !builds(command) {
        return Vec::new();
    }
    let file_name = file.path.rsplit('/').next().unwrap_or_default().to_lowercase();
    let deliberate = |word: &&&str| name.contains(**word) || (file.kind == Kind::Script && file_name.contains(**word));
    if ON_PURPOSE.iter().find(deliberate).is_some() {
        return Vec::new();
    }
    let mut found = Vec::new();
    // `bake --set '*.no-cache=true'`
    let is_no_cache = |arg: &str| matches!(arg, "--no-cache" | "--no-cache=true") || arg.ends_with(".no-cache=true");
    if command.args().any(is_no_cache) {
        found.push(at(file, "no-cache-flag", Severity::Warning, line, NO_CACHE));
    }
    if command.args().any(|arg| matches!(arg, "--pull" | "--pull=true")) && file.kind != Kind::Ci {
        let message =
            "`--pull` asks the registry for the base image on every build, and a newer one makes all steps run again";
        found.push(at(file, "no-cache-flag", Severity::Note, line, message));
    }
    found
}

pub const NO_CACHE: &str = "`--no-cache` runs every step again and empties every cache mount that the build uses, so all packages are downloaded again";

/// Returns what a setting in YAML or HCL says.
fn setting(file: &File, line: &str, number: u32) -> Option<Finding> {
    let line = line.strip_prefix("- ").unwrap_or(line);
    let is_set = match file.kind {
        Kind::Ci => {
            matches!(line, "no-cache: true" | "no-cache: \"true\"" | "no-cache: 'true'")
                && (file.text.contains("build-push-action") || file.text.contains("bake-action"))
        }
        // HCL and JSON.
        Kind::Bake => {
            let line: String = line.split_whitespace().collect();
            line.split([',', '{', '}']).any(|set| matches!(set, "no-cache=true" | "\"no-cache\":true"))
        }
        _ => false,
    };
    is_set.then(|| at(file, "no-cache-flag", Severity::Warning, number, NO_CACHE))
}

/// A local cache export keeps all old blobs, unless it is reset or the script replaces the directory.
fn export(file: &File, line: &str, number: u32) -> Option<Finding> {
    let start = ["cache-to", "cache_to"].iter().find_map(|word| line.find(word))?;
    let told = match file.kind {
        // As words, as an object of HCL or as one of JSON.
        Kind::Bake => line[start..].replace([' ', '"'], "").replace("type:", "type=").replace("dest:", "dest="),
        _ => line[start..].to_owned(),
    };
    if !told.contains("type=local") || told.contains("reset=true") || told.contains("reset:true") {
        return None;
    }
    let dest = told.split_once("dest=")?.1;
    let dest = dest.split([',', '"', '\'', ' ', ']', '}']).next().filter(|dest| !dest.is_empty())?;
    let directory = dest.rsplit('/').next().filter(|name| !name.is_empty())?;
    let replaced =
        file.text.lines().any(|line| (line.contains("rm -r") || line.contains("mv ")) && line.contains(directory));
    if replaced || dest.ends_with("-new") {
        return None;
    }
    let message =
        format!("the local cache export in `{dest}` keeps the blobs of all earlier builds and grows with each");
    let found = at(file, "cache-export-grows", Severity::Warning, number, &message);
    Some(Finding { subject: Some(dest.to_owned()), ..found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::steps::Around;

    fn found(kind: Kind, text: &str) -> Vec<(&'static str, u32)> {
        let file = File { path: "x".into(), kind, text: text.into(), around: Around::default() };
        check(&file).into_iter().map(|finding| (finding.check, finding.line.unwrap())).collect()
    }

    #[test]
    fn the_flag_is_found_where_it_is_used() {
        let flag = |line| vec![("no-cache-flag", line)];
        assert_eq!(found(Kind::Script, "#!/bin/sh\nset -e\ndocker build \\\n  --no-cache -t x .\n"), flag(3));
        assert_eq!(found(Kind::Script, "alias db='docker build --no-cache'\n"), flag(1));
        assert_eq!(found(Kind::Script, "cd x && docker --context y buildx build --no-cache=true ."), flag(1));
        assert_eq!(found(Kind::Makefile, "image:\n\t@docker compose build --no-cache\n"), flag(2));
        assert_eq!(found(Kind::PackageJson, "{\"scripts\": {\n\"image\": \"docker build --no-cache .\",\n}}"), flag(2));
        assert_eq!(found(Kind::Ci, "steps:\n- run: docker build --no-cache .\n"), flag(2));
        assert_eq!(found(Kind::Ci, "uses: docker/build-push-action@v6\nwith:\n  no-cache: true\n"), flag(3));
        assert_eq!(found(Kind::Bake, "{\"target\": {\"x\": {\n\"no-cache\": true,\n}}}"), flag(2));
        assert_eq!(found(Kind::Bake, "target \"x\" {\n  no-cache = true\n}\n"), flag(2));
        assert_eq!(found(Kind::Bake, "{\"target\": {\"x\": {\"no-cache\": true, \"tags\": [\"y\"]}}}"), flag(1));
        assert_eq!(found(Kind::Script, "docker buildx bake --set '*.no-cache=true' app"), flag(1));
        assert_eq!(found(Kind::Script, "docker build --pull ."), flag(1));
    }

    #[test]
    fn the_flag_on_purpose_and_in_words_is_left_alone() {
        for (kind, text) in [
            (Kind::Script, "# docker build --no-cache ."),
            (Kind::Script, "echo \"use docker build --no-cache\""),
            (Kind::Script, "docker build ${NO_CACHE:+--no-cache} ."),
            (Kind::Script, "docker run x pip install --no-cache"),
            (Kind::Script, "rebuild() {\n  docker build --no-cache .\n}\n"),
            (Kind::Script, "alias docker-rebuild='docker build --no-cache'"),
            (Kind::Makefile, "rebuild:\n\tdocker build --no-cache .\n"),
            (Kind::PackageJson, "\"docker:clean\": \"docker build --no-cache .\""),
            (Kind::Ci, "- run: docker build --pull ."),
            (Kind::Ci, "no-cache: true"),
            (Kind::Script, "docker build"),
        ] {
            assert_eq!(found(kind, text), [], "{text}");
        }
    }

    #[test]
    fn a_local_export_is_told_unless_it_is_reset() {
        let grows = |line| vec![("cache-export-grows", line)];
        assert_eq!(found(Kind::Script, "docker buildx build --cache-to type=local,dest=/tmp/bx,mode=max ."), grows(1));
        assert_eq!(found(Kind::Ci, "with:\n  cache-to: type=local,dest=/tmp/bx"), grows(2));
        for (line, text) in [
            (1, "cache-to = [\"type=local,dest=./cache\"]"),
            (2, "target \"x\" {\n  cache-to = [\n    \"type=local,dest=./cache\",\n  ]\n}\n"),
            (1, "cache-to = [{ type = \"local\", dest = \"./cache\" }]"),
            (2, "{\"target\": {\"x\": {\n\"cache-to\": [{\"type\": \"local\", \"dest\": \"./cache\"}]}}}"),
        ] {
            assert_eq!(found(Kind::Bake, text), grows(line), "{text}");
        }
        assert_eq!(found(Kind::Bake, "cache-to = [{ type = \"local\", dest = \"./cache\", reset = true }]"), []);
        for text in [
            "cache-to: type=local,dest=/tmp/bx,reset=true",
            "cache-to: type=local,dest=/tmp/.buildx-cache-new",
            "cache-to: type=local,dest=/tmp/cache\nrun: rm -rf /tmp/cache",
            "cache-to: type=gha,mode=max",
        ] {
            assert_eq!(found(Kind::Ci, text), [], "{text}");
        }
    }
}
