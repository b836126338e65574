//! The containers that a project describes: services of compose files, and dev containers. Reads what is written, fills
//! in variables as far as they are known, and judges nothing. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::tree::{self, Entry, Node, Problem};
use super::{File, Kind};
use crate::dockerfile::mount::clean;
use crate::dockerfile::stage::Args;

/// Where something is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: String,
    /// Counted from 1.
    pub line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    Volume,
    /// A directory of the host.
    Bind,
    Tmpfs,
}

/// Something that a container has mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    /// Name of the volume or path on the host, as written; `None` for an anonymous volume.
    pub source: Option<String>,
    /// Absolute, without an end slash.
    pub target: String,
    pub place: Place,
}

/// How an image is built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// Path as [`File::path`] has it; `None` if it is not known, or written right in the compose file.
    pub dockerfile: Option<String>,
    /// The Dockerfile itself and where it begins, if it is written right in the compose file.
    pub inline: Option<(String, Place)>,
    pub args: Args,
    pub target: Option<String>,
    /// Where the cache is switched off.
    pub no_cache: Option<Place>,
}

/// A command that a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub text: String,
    pub place: Place,
    /// What it is the value of.
    key: &'static str,
}

/// A container that the project describes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    pub place: Place,
    /// Of the compose file, else of devcontainer.json.
    pub directory: String,
    /// Of a compose file.
    pub service: Option<String>,
    /// People work in it, with whatever tools it has.
    pub is_dev: bool,
    /// `None` if it is not told, or not known.
    pub image: Option<String>,
    pub build: Option<Build>,
    /// Who writes in it; `None` if the image decides.
    pub user: Option<String>,
    /// A variable whose value is not known is `None`.
    pub env: BTreeMap<String, Option<String>>,
    pub mounts: Vec<Mount>,
    /// A mount whose target is not known, or one that is told elsewhere.
    pub has_unknown_mount: bool,
    /// Variables that are told elsewhere.
    pub has_unknown_env: bool,
    pub scripts: Vec<Script>,
    /// References of dev container features.
    pub features: Vec<String>,
}

impl Described {
    /// Returns what it is called: `service web`, `the dev container`.
    pub fn name(&self) -> String {
        match &self.service {
            Some(service) => format!("service {service}"),
            None => "the dev container".into(),
        }
    }
}

/// Services of one project that are looked at; each is compared with the others.
const MOST: usize = 500;
/// What a value may grow to, in bytes: variables can double each other.
const LONGEST: usize = 1 << 16;

/// All that is described, and what could not be read.
#[derive(Debug, Default)]
pub struct Containers {
    pub described: Vec<Described>,
    pub problems: Vec<(String, Problem)>,
    /// Files that others include, and services that others extend: a change of these reaches further.
    reused: BTreeSet<(String, Option<String>)>,
}

impl Containers {
    /// Tells whether others build upon what is described there.
    pub fn is_reused(&self, described: &Described) -> bool {
        let file = || described.place.file.clone();
        [None, described.service.clone()].into_iter().any(|service| self.reused.contains(&(file(), service)))
    }
}

/// Variables that a compose file may use. Of those that are not here, the shell may have set any.
#[derive(Debug, Default)]
struct Variables {
    /// One whose value is not known is `None`.
    values: BTreeMap<String, Option<String>>,
    /// There is a file with more of them that was not read.
    incomplete: bool,
}

/// Files that docker compose takes together.
struct Group<'a> {
    files: Vec<&'a Compose<'a>>,
    /// Where paths begin, and the `.env` is.
    directory: String,
    /// An `.env` of another name.
    env_file: bool,
}

/// A compose file that could be read.
struct Compose<'a> {
    path: &'a str,
    root: Node,
}

/// Reads all compose files and dev containers among the files.
pub fn read(files: &[File]) -> Containers {
    let mut found = Containers::default();
    let mut composes: Vec<Compose<'_>> = Vec::new();
    for file in files.iter().filter(|file| file.kind == Kind::Compose) {
        match tree::yaml(&file.text) {
            Ok(root) => {
                if let Some(problem) = shape(&root) {
                    found.problems.push((file.path.clone(), problem));
                }
                composes.push(Compose { path: &file.path, root });
            }
            Err(problem) => found.problems.push((file.path.clone(), problem)),
        }
    }
    let variables = |directory: &str| -> Variables {
        let path = join(directory, ".env");
        let file = files.iter().find(|file| file.kind == Kind::Env && file.path == path);
        file.map(|file| dotenv(&file.text)).unwrap_or_default()
    };
    for compose in &composes {
        for group in included(compose) {
            found.reused.extend(group.files.into_iter().map(|path| (path, None)));
        }
        for service in compose.root.get("services").map(Node::entries).unwrap_or_default() {
            if let Some((path, name)) = extended(compose.path, &service.node) {
                found.reused.insert((path, Some(name)));
            }
        }
    }
    for group in groups(&composes, &found.reused, &variables) {
        let mut variables = variables(&group.directory);
        variables.incomplete |= group.env_file;
        services(&group, &composes, &variables, &mut found.described);
    }
    for file in files.iter().filter(|file| file.kind == Kind::Devcontainer) {
        match tree::jsonc(&file.text) {
            Ok(root) => {
                let dev = devcontainer(&file.path, &root, &composes, &variables);
                found.described.extend(dev);
            }
            Err(problem) => found.problems.push((file.path.clone(), problem)),
        }
    }
    found
}

/// Says what keeps a compose file from being one.
fn shape(root: &Node) -> Option<Problem> {
    let wrong = |line, what: &str| Some(Problem { line, why: format!("{what}, so docker compose refuses it") });
    let is_map = |node: &Node| matches!(node.value, tree::Value::Map(_) | tree::Value::Null);
    if !is_map(root) {
        return wrong(root.line, "the file is not a mapping");
    }
    let services = root.entry("services")?;
    if !is_map(&services.node) {
        return wrong(services.line, "`services` is not a mapping");
    }
    let bad = services.node.entries().iter().find(|service| !matches!(service.node.value, tree::Value::Map(_)))?;
    wrong(bad.line, &format!("service `{}` is not a mapping", bad.key))
}

/// What one entry of `include` names.
struct Included {
    files: Vec<String>,
    directory: String,
    has_env_file: bool,
}

/// Returns what a compose file includes from this project.
fn included(compose: &Compose<'_>) -> Vec<Included> {
    let own = parent(compose.path);
    let entries = compose.root.get("include").map(Node::elements).unwrap_or_default();
    let read = |entry: &Node| {
        let paths = if entry.text().is_some() { entry } else { entry.get("path")? };
        let paths = paths.elements().into_iter().filter_map(Node::text).filter(|path| is_local(path));
        let files: Vec<String> = paths.map(|path| join(own, path)).collect();
        let directory = match entry.text_of("project_directory") {
            Some(directory) => join(own, directory),
            None => parent(files.first()?).to_owned(),
        };
        Some(Included { files, directory, has_env_file: entry.get("env_file").is_some() })
    };
    entries.into_iter().filter_map(read).collect()
}

/// Returns file and name of the service that a service extends.
fn extended(path: &str, service: &Node) -> Option<(String, String)> {
    let extends = service.get("extends")?;
    let name = extends.text().or_else(|| extends.text_of("service"))?;
    let file = extends.text_of("file").map_or(path.to_owned(), |file| join(parent(path), file));
    Some((file, name.to_owned()))
}

fn is_local(path: &str) -> bool {
    !path.contains("://") && !path.contains('$') && !path.starts_with("git@")
}

/// Returns the files that a file names, and what they are: whatever their own names say.
pub fn references(file: &File) -> Vec<(String, Kind)> {
    let own = parent(&file.path);
    let Ok(root) = file.tree(&file.text) else { return Vec::new() };
    let mut named: Vec<(String, Kind)> = Vec::new();
    match file.kind {
        Kind::Compose => {
            let compose = Compose { path: &file.path, root };
            named
                .extend(included(&compose).into_iter().flat_map(|group| group.files).map(|path| (path, Kind::Compose)));
            for service in compose.root.get("services").map(Node::entries).unwrap_or_default() {
                named.extend(extended(&file.path, &service.node).map(|(path, _)| (path, Kind::Compose)));
                let Some(build) = service.node.get("build") else { continue };
                let context = build.text().or_else(|| build.text_of("context")).unwrap_or(".");
                if let Some(path) = build.text_of("dockerfile").filter(|path| is_local(context) && is_local(path)) {
                    named.push((join(&join(own, context), path), Kind::Dockerfile));
                }
            }
        }
        Kind::Devcontainer => {
            let composes = root.get("dockerComposeFile").map(Node::elements).unwrap_or_default();
            named.extend(composes.into_iter().filter_map(Node::text).map(|path| (join(own, path), Kind::Compose)));
            let dockerfile = root.at(&["build", "dockerfile"]).or_else(|| root.get("dockerFile"));
            named.extend(dockerfile.and_then(Node::text).map(|path| (join(own, path), Kind::Dockerfile)));
        }
        _ => {}
    }
    named
}

/// Returns the files that `COMPOSE_FILE` of an `.env` names.
pub fn compose_files(env: &File) -> Vec<String> {
    named_by_env(parent(&env.path), &dotenv(&env.text))
}

fn named_by_env(directory: &str, variables: &Variables) -> Vec<String> {
    let value = |name: &str| variables.values.get(name).cloned().flatten();
    let Some(files) = value("COMPOSE_FILE") else { return Vec::new() };
    let separator = value("COMPOSE_PATH_SEPARATOR").filter(|text| !text.is_empty()).unwrap_or_else(|| ":".into());
    files.split(separator.as_str()).filter(|path| !path.is_empty()).map(|path| join(directory, path)).collect()
}

/// Returns the files that docker compose takes together: those that `.env` names, else the base with its override; each
/// further file of the directory laid over the first; and what others include by itself.
fn groups<'a>(
    composes: &'a [Compose<'a>],
    reused: &BTreeSet<(String, Option<String>)>,
    variables: &impl Fn(&str) -> Variables,
) -> Vec<Group<'a>> {
    let find = |path: &String| composes.iter().find(|compose| compose.path == path.as_str());
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut directories: Vec<&str> = composes.iter().map(|compose| parent(compose.path)).collect();
    directories.dedup();
    for directory in directories {
        let named = |names: &[&str]| names.iter().find_map(|name| find(&join(directory, name)));
        let mut files: Vec<&Compose<'_>> =
            named_by_env(directory, &variables(directory)).iter().filter_map(find).collect();
        if files.is_empty() {
            let base = named(&["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"]);
            let over = named(&[
                "compose.override.yml",
                "compose.override.yaml",
                "docker-compose.override.yml",
                "docker-compose.override.yaml",
            ]);
            files.extend(base.into_iter().chain(over));
        }
        let base = files.first().copied();
        let is_apart = |compose: &Compose<'_>| {
            files.iter().any(|taken| taken.path == compose.path) || reused.contains(&(compose.path.to_owned(), None))
        };
        let rest = composes.iter().filter(|compose| parent(compose.path) == directory && !is_apart(compose));
        let laid_over: Vec<Vec<&Compose<'_>>> =
            rest.map(|compose| base.into_iter().chain([compose]).collect()).collect();
        let all = Some(files).filter(|files| !files.is_empty()).into_iter().chain(laid_over);
        groups.extend(all.map(|files| Group { files, directory: directory.to_owned(), env_file: false }));
    }
    for part in composes.iter().flat_map(included) {
        let files: Vec<&Compose<'_>> = part.files.iter().filter_map(find).collect();
        if files.len() == part.files.len() && !files.is_empty() {
            groups.push(Group { files, directory: part.directory, env_file: part.has_env_file });
        }
    }
    groups
}

/// Adds the services that the last file of a group has; those that it leaves alone are told with the base.
fn services(group: &Group<'_>, all: &[Compose<'_>], variables: &Variables, described: &mut Vec<Described>) {
    let Some(last) = group.files.last() else { return };
    let is_first = !described.iter().any(|known| known.place.file == group.files[0].path);
    let mut names: Vec<&str> = Vec::new();
    for compose in if is_first { group.files.as_slice() } else { std::slice::from_ref(last) } {
        let services = compose.root.get("services").map(Node::entries).unwrap_or_default();
        names.extend(services.iter().map(|service| service.key.as_str()));
    }
    let mut seen = BTreeSet::new();
    for name in names.into_iter().take(MOST) {
        if seen.insert(name) && described.len() < 10 * MOST {
            described.extend(service(group, all, name, variables));
        }
    }
}

/// Returns a service as the files together describe it.
fn service(group: &Group<'_>, all: &[Compose<'_>], name: &str, variables: &Variables) -> Option<Described> {
    let mut made: Option<Described> = None;
    for compose in &group.files {
        let Some(entry) = compose.root.get("services").and_then(|services| services.entry(name)) else { continue };
        let made = made.get_or_insert_with(|| Described {
            place: Place { file: compose.path.to_owned(), line: entry.line },
            directory: group.directory.clone(),
            service: Some(name.to_owned()),
            ..Described::default()
        });
        // The place is where most of it is written, which the last file seldom is.
        lay_over(made, (compose, &group.directory), &entry.node, all, variables, 0);
    }
    made
}

/// Lays what one file says about a service over what others said before.
fn lay_over(
    made: &mut Described,
    (compose, directory): (&Compose<'_>, &str),
    node: &Node,
    all: &[Compose<'_>],
    variables: &Variables,
    depth: usize,
) {
    let at = |line| Place { file: compose.path.to_owned(), line };
    let fill = |text: &str| interpolate(text, variables);
    if node.get("extends").is_some() && depth < 10 {
        let below = extended(compose.path, node).and_then(|(path, name)| {
            let other = all.iter().find(|other| other.path == path)?;
            Some((other, other.root.at(&["services", &name])?))
        });
        match below {
            Some((other, below)) if other.path == compose.path => {
                lay_over(made, (other, directory), below, all, variables, depth + 1);
            }
            Some((other, below)) => lay_over(made, (other, parent(other.path)), below, all, variables, depth + 1),
            None => (made.has_unknown_mount, made.has_unknown_env) = (true, true),
        }
    }
    if let Some(image) = node.text_of("image") {
        made.image = fill(image);
    }
    if let Some(entry) = node.entry("build") {
        let build = made.build.get_or_insert_default();
        let context = match entry.node.text() {
            Some(context) => Some(context),
            None => {
                entry.node.text_of("context").or(Some(".")).filter(|_| entry.node.get("dockerfile_inline").is_none())
            }
        };
        let dockerfile = entry.node.text_of("dockerfile").unwrap_or("Dockerfile");
        build.dockerfile = context.and_then(|context| {
            let directory = join(directory, &fill(context)?);
            (!directory.contains("://")).then(|| fill(dockerfile).map(|file| join(&directory, &file)))?
        });
        if let Some(inline) = entry.node.get("dockerfile_inline") {
            build.inline = inline.text().and_then(fill).map(|text| (text, at(inline.line)));
        }
        for (name, value) in pairs(entry.node.get("args")) {
            build.args.insert(name, value.and_then(|value| fill(&value)));
        }
        if let Some(target) = entry.node.text_of("target") {
            build.target = fill(target);
        }
        if let Some(no_cache) = entry.node.entry("no_cache").filter(|entry| entry.node.text() == Some("true")) {
            build.no_cache = Some(at(no_cache.line));
        }
    }
    if let Some(user) = node.get("user").and_then(Node::text) {
        // An unknown one is nobody whom the image knows.
        made.user = Some(fill(user).unwrap_or_else(|| user.to_owned()));
    }
    made.has_unknown_env |= node.get("env_file").is_some();
    made.has_unknown_mount |= node.get("volumes_from").is_some();
    for node in node.get("tmpfs").map(Node::elements).unwrap_or_default() {
        let target = node.text().and_then(&fill).and_then(|text| text.split(':').next().map(clean));
        let place = at(node.line);
        made.mounts.extend(target.map(|target| Mount { kind: MountKind::Tmpfs, source: None, target, place }));
    }
    for (name, value) in pairs(node.get("environment")) {
        made.env.insert(name, value.and_then(|value| fill(&value)));
    }
    for volume in node.get("volumes").map(Node::elements).unwrap_or_default() {
        match mount(volume, &fill, at(volume.line)) {
            Some(mount) => {
                made.mounts.retain(|other| other.target != mount.target);
                made.mounts.push(mount);
            }
            None => made.has_unknown_mount = true,
        }
    }
    let is_idle = |text: &str| {
        ["sleep infinity", "tail -f /dev/null", "sleep inf", "tail -F /dev/null", "while sleep "]
            .iter()
            .any(|idle| text.contains(idle))
    };
    for key in ["entrypoint", "command"] {
        let Some(entry) = node.entry(key) else { continue };
        let script = Script { text: command(&entry.node), place: at(entry.line), key };
        made.is_dev |= is_idle(&script.text);
        // It takes the place of an earlier one, and an entrypoint that of the command as well.
        made.scripts.retain(|other| other.key != key && key != "entrypoint");
        made.scripts.push(script);
    }
}

/// Returns a command as the shell would read it.
fn command(node: &Node) -> String {
    let words: Vec<&str> = node.elements().into_iter().filter_map(Node::text).collect();
    match (&node.value, words.as_slice()) {
        (tree::Value::List(_), [shell, flag, script])
            if flag.starts_with('-') && flag.ends_with('c') && shell.ends_with("sh") =>
        {
            (*script).to_owned()
        }
        _ => words.join(" "),
    }
}

/// Returns names and values of a map or of a list of `NAME=value`.
fn pairs(node: Option<&Node>) -> Vec<(String, Option<String>)> {
    let Some(node) = node else { return Vec::new() };
    match &node.value {
        tree::Value::Map(entries) => {
            entries.iter().map(|entry| (entry.key.clone(), entry.node.text().map(str::to_owned))).collect()
        }
        _ => {
            let texts = node.elements().into_iter().filter_map(Node::text);
            let split = |text: &str| match text.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (text.to_owned(), None),
            };
            texts.map(split).collect()
        }
    }
}

/// Reads a volume of a service, in its short and its long form; `None` if its target is not known.
fn mount(node: &Node, fill: &impl Fn(&str) -> Option<String>, place: Place) -> Option<Mount> {
    let absolute = |target: String| target.starts_with('/').then(|| clean(&target));
    if let Some(text) = node.text() {
        // `${SRC:-./x}:/target:ro`: the colons of variables do not split.
        let parts = split_outside_braces(text);
        let (source, target) = match parts.as_slice() {
            [target] => (None, target),
            [source, target, ..] => (Some((*source).to_owned()), target),
            [] => return None,
        };
        let kind = match &source {
            Some(source) if source.starts_with(['/', '.', '~']) => MountKind::Bind,
            Some(source) if source.contains('$') => {
                let filled = fill(source);
                let is_path = filled.is_none_or(|filled| filled.starts_with(['/', '.', '~']));
                if is_path { MountKind::Bind } else { MountKind::Volume }
            }
            _ => MountKind::Volume,
        };
        return Some(Mount { kind, source, target: absolute(fill(target)?)?, place });
    }
    let target = node.text_of("target").or_else(|| node.text_of("destination")).or_else(|| node.text_of("dst"))?;
    let kind = match node.text_of("type") {
        Some("volume") | None => MountKind::Volume,
        Some("tmpfs") => MountKind::Tmpfs,
        Some(_) => MountKind::Bind,
    };
    let source = node.text_of("source").or_else(|| node.text_of("src")).map(str::to_owned);
    Some(Mount { kind, source, target: absolute(fill(target)?)?, place })
}

fn split_outside_braces(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0u32);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ':' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Fills in variables as docker compose does; `None` if the value of one is not known.
fn interpolate(text: &str, variables: &Variables) -> Option<String> {
    fill(text, variables, 0)
}

fn fill(text: &str, variables: &Variables, depth: usize) -> Option<String> {
    let mut done = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        done.push_str(&rest[..at]);
        if done.len() > LONGEST || depth > 10 {
            return None;
        }
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            done.push('$');
            rest = after;
            continue;
        }
        let name_end = |text: &str| text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
        let Some(inner) = rest.strip_prefix('{') else {
            let (name, after) = rest.split_at(name_end(rest));
            done.push_str(variables.values.get(name)?.as_ref()?);
            rest = after;
            continue;
        };
        let (inner, after) = inner.split_at(closing(inner)?);
        let (name, operation) = inner.split_at(name_end(inner));
        let value = match variables.values.get(name) {
            Some(value) => Some(value.as_deref()?),
            None if variables.incomplete => return None,
            None => None,
        };
        // `:` takes an empty value for none.
        let (or_empty, operation) = operation.strip_prefix(':').map_or((false, operation), |rest| (true, rest));
        let set = value.filter(|value| !(or_empty && value.is_empty()));
        match (operation.chars().next(), set) {
            (None | Some('-' | '?'), Some(value)) => done.push_str(value),
            (Some('-'), None) => done.push_str(&fill(&operation[1..], variables, depth + 1)?),
            (Some('+'), Some(_)) => done.push_str(&fill(&operation[1..], variables, depth + 1)?),
            _ => return None,
        }
        rest = &after[1..];
    }
    done.push_str(rest);
    Some(done)
}

/// Returns where the brace closes that is open at the start.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0u32;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Reads the `.env` beside a compose file. A value in single quotes is taken as it is, others may use those above.
fn dotenv(text: &str) -> Variables {
    let mut variables = Variables::default();
    for line in text.trim_start_matches('\u{feff}').lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.strip_prefix("export ").unwrap_or(line).split_once('=') else { continue };
        let value = value.trim();
        let value = match value.chars().next() {
            Some('\'') => value[1..].split('\'').next().map(str::to_owned),
            Some('"') => value[1..].split('"').next().and_then(|value| interpolate(value, &variables)),
            _ => interpolate(value.split(" #").next().unwrap_or_default().trim_end(), &variables),
        };
        variables.values.insert(name.trim().to_owned(), value);
    }
    variables
}

/// Reads a devcontainer.json; `None` if it describes no container of its own.
fn devcontainer(
    path: &str,
    root: &Node,
    composes: &[Compose<'_>],
    variables: &impl Fn(&str) -> Variables,
) -> Option<Described> {
    let at = |entry: Option<&Entry>| Place { file: path.to_owned(), line: entry.map_or(1, |entry| entry.line) };
    let text = |key: &str| root.text_of(key);
    let directory = parent(path);
    let mut made = Described::default();
    if let Some(files) = root.get("dockerComposeFile") {
        let paths: Vec<String> =
            files.elements().into_iter().filter_map(Node::text).map(|file| join(directory, file)).collect();
        let group: Vec<&Compose<'_>> =
            paths.iter().filter_map(|path| composes.iter().find(|compose| compose.path == *path)).collect();
        let first = group.first().filter(|_| group.len() == paths.len())?;
        let directory = parent(first.path).to_owned();
        let variables = variables(&directory);
        let group = Group { files: group, directory, env_file: false };
        made = service(&group, composes, text("service")?, &variables)?;
    } else if let Some(image) = text("image") {
        made.image = dev_fill(image);
    } else {
        let build = root.get("build");
        let dockerfile = build.and_then(|build| build.text_of("dockerfile")).or_else(|| text("dockerFile"))?;
        let args = pairs(build.and_then(|build| build.get("args"))).into_iter();
        made.build = Some(Build {
            inline: None,
            args: args.map(|(name, value)| (name, value.and_then(|value| dev_fill(&value)))).collect(),
            dockerfile: Some(join(directory, dockerfile)),
            target: build.and_then(|build| build.text_of("target")).map(str::to_owned),
            no_cache: build.and_then(|build| build.get("options")).and_then(|options| {
                let flag = options.elements().into_iter().find(|option| option.text() == Some("--no-cache"))?;
                Some(Place { file: path.to_owned(), line: flag.line })
            }),
        });
    }
    made.is_dev = true;
    made.place = at(root.entries().first());
    if made.service.is_none() {
        made.directory = directory.to_owned();
    }
    if let Some(user) = text("remoteUser").or_else(|| text("containerUser")) {
        made.user = Some(user.to_owned());
    }
    for (name, value) in pairs(root.get("containerEnv")).into_iter().chain(pairs(root.get("remoteEnv"))) {
        let value = value.and_then(|value| dev_fill(&value));
        made.env.insert(name, value);
    }
    let workspace = root.entry("workspaceMount").map(|entry| entry.node.as_ref());
    let mounts = root.get("mounts").map(Node::elements).unwrap_or_default();
    for node in mounts.into_iter().chain(workspace) {
        match dev_mount(node, Place { file: path.to_owned(), line: node.line }) {
            Some(mount) => made.mounts.push(mount),
            None => made.has_unknown_mount |= node.text() != Some(""),
        }
    }
    let args: Vec<&str> =
        root.get("runArgs").map(Node::elements).unwrap_or_default().into_iter().filter_map(Node::text).collect();
    let mounts_by_flag = |arg: &&str| ["-v", "--volume", "--mount"].iter().any(|flag| arg.starts_with(flag));
    made.has_unknown_mount |= args.iter().any(mounts_by_flag);
    for key in ["onCreateCommand", "updateContentCommand", "postCreateCommand", "postStartCommand"] {
        let Some(entry) = root.entry(key) else { continue };
        // An object has several commands by name.
        let texts: Vec<String> = match entry.node.entries() {
            [] => vec![command(&entry.node)],
            several => several.iter().map(|one| command(&one.node)).collect(),
        };
        made.scripts.extend(texts.into_iter().map(|text| Script { text, place: at(Some(entry)), key }));
    }
    let features = root.get("features").map(Node::entries).unwrap_or_default();
    made.features = features.iter().map(|feature| feature.key.clone()).collect();
    Some(made)
}

/// Fills in nothing: values that the host decides are not known.
fn dev_fill(text: &str) -> Option<String> {
    (!text.contains("${")).then(|| text.to_owned())
}

/// Reads a mount of a dev container: `source=…,target=…,type=volume`, or an object; `None` if its target is not known.
fn dev_mount(node: &Node, place: Place) -> Option<Mount> {
    let options: Vec<(String, String)> = match node.text() {
        Some(text) => text
            .split(',')
            .filter_map(|option| option.split_once('='))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect(),
        None => {
            node.entries().iter().filter_map(|entry| Some((entry.key.clone(), entry.node.text()?.to_owned()))).collect()
        }
    };
    let option = |names: &[&str]| options.iter().find(|(key, _)| names.contains(&key.as_str())).map(|(_, value)| value);
    let target = dev_fill(option(&["target", "dst", "destination"])?)?;
    let kind = match option(&["type"]).map(String::as_str) {
        Some("bind") => MountKind::Bind,
        Some("tmpfs") => MountKind::Tmpfs,
        _ => MountKind::Volume,
    };
    let source = option(&["source", "src"]).cloned();
    target.starts_with('/').then(|| Mount { kind, source, target: clean(&target), place })
}

/// Returns the directory of a path; `""` for the working directory.
pub fn parent(path: &str) -> &str {
    path.rfind('/').map_or("", |at| if at == 0 { "/" } else { &path[..at] })
}

/// Returns a path seen from a directory, without `.` and as far as it can be without `..`.
pub fn join(directory: &str, path: &str) -> String {
    let whole =
        if path.starts_with('/') || directory.is_empty() { path.to_owned() } else { format!("{directory}/{path}") };
    let mut names: Vec<&str> = Vec::new();
    for name in whole.split('/').filter(|name| !name.is_empty() && *name != ".") {
        match (name, names.last()) {
            ("..", Some(last)) if *last != ".." => {
                names.pop();
            }
            _ => names.push(name),
        }
    }
    let root = if whole.starts_with('/') { "/" } else { "" };
    format!("{root}{}", names.join("/"))
}
