//! Finds and reads the files of a project that say how its images are built: Dockerfiles, compose and bake files, dev
//! containers, CI workflows, scripts. Follows no link to a directory, reads nothing large, and judges nothing.

pub mod container;
pub mod recipes;
pub mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::budget;
use crate::buildcontext::{Rule, fits_all};
use crate::dockerfile::Dockerfile;

/// Files larger than this are told, not read, in bytes.
const LARGEST: u64 = 1 << 20;
/// Directories deeper than this are not looked into.
pub(crate) const DEEPEST: usize = 12;
/// Entries after which the search ends.
pub(crate) const MOST: usize = 100_000;

/// Directories that hold others' files, or made ones.
pub(crate) const SKIPPED: &[&str] = &[
    ".git",
    "node_modules",
    "target",
    "vendor",
    "venv",
    ".venv",
    "__pycache__",
    ".cache",
    ".terraform",
    ".tox",
    ".next",
    ".direnv",
    ".gradle",
    ".hg",
    ".mypy_cache",
    ".npm",
    ".nuxt",
    ".pnpm-store",
    ".pytest_cache",
    ".ruff_cache",
    ".svn",
    ".yarn",
    "bower_components",
    "Pods",
    "site-packages",
];

/// Ends of the names of programs and data. `dockerfile.go` is one about Dockerfiles; `Dockerfile.go` may be that of a service.
const SOURCES: &[&str] = &[
    "c", "cc", "cjs", "cpp", "cs", "css", "csv", "dart", "ex", "exs", "go", "h", "hpp", "html", "java", "js", "json",
    "json5", "jsx", "kt", "less", "lua", "mjs", "mts", "nix", "php", "pl", "png", "proto", "py", "pyc", "pyi", "rb",
    "rs", "rst", "scala", "scm", "scss", "sh", "sql", "svelte", "svg", "swift", "toml", "ts", "tsx", "vim", "vue",
    "xml", "yaml", "yml", "zig",
];

/// Files with aliases and functions.
const DOTFILES: &[&str] = &[
    ".aliases",
    ".bash_aliases",
    ".bash_profile",
    ".bashrc",
    ".envrc",
    ".functions",
    ".profile",
    ".zprofile",
    ".zshenv",
    ".zshrc",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Dockerfile,
    Compose,
    Devcontainer,
    /// Variables of compose files: `.env`.
    Env,
    Bake,
    /// Of GitHub, GitLab and others; also Taskfiles, which have the same shape.
    Ci,
    /// Shell scripts, and files with aliases.
    Script,
    /// Also a justfile.
    Makefile,
    PackageJson,
}

/// What lies around a Dockerfile and decides what its steps do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// `yarn.lock` is of yarn 1; `None` if there is none to look at.
    pub yarn_classic: Option<bool>,
    /// Dependencies lie in the project, so that building downloads nothing.
    pub vendored: bool,
    /// `go.mod` without `go.sum`: no dependencies.
    pub go_without_dependencies: bool,
    /// A settings file of a package manager that may move its cache: `.npmrc`, `poetry.toml`, `.yarnrc.yml`, `.yarnrc`, and
    /// `pnpm-workspace.yaml` and `package.json` if they say that or name an old pnpm.
    pub settings: Vec<String>,
    /// `uv.toml`, `pyproject.toml` or `bunfig.toml` has what is installed be links into the cache.
    pub symlinks: bool,
    /// Directories that `COPY . .` takes in for nothing, and that no `.dockerignore` keeps out.
    pub not_ignored: Vec<String>,
    /// Name of the `.dockerignore` that counts.
    pub ignore_file: Option<String>,
    /// What of the project sets `DOCKER_BUILDKIT` to 0.
    pub without_buildkit: Option<String>,
    /// Words of the compose files and dev containers: what containers are to run is among them.
    pub words: BTreeSet<String>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// As it is shown, and opened again from the working directory.
    pub path: String,
    pub kind: Kind,
    pub text: String,
    /// Of a Dockerfile.
    pub around: Around,
}

impl File {
    /// Reads another text of this file as what it is: JSON of a dev container or `package.json`, else YAML.
    ///
    /// # Errors
    /// Says what is wrong in which line.
    pub fn tree(&self, text: &str) -> Result<tree::Node, tree::Problem> {
        match self.kind {
            Kind::Devcontainer | Kind::PackageJson => tree::jsonc(text),
            _ => tree::yaml(text),
        }
    }
}

/// What could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    pub path: String,
    pub why: String,
}

/// Everything that was found, sorted by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Project {
    pub files: Vec<File>,
    pub unread: Vec<Unread>,
    /// Paths of links to files that have an earlier path: others may name them, but what is wrong in one file is told once.
    pub again: BTreeSet<String>,
    /// Number of files that say which packages the project needs.
    pub locks: usize,
    /// Languages of which a file of the project's names a version, such as `rust-toolchain.toml`.
    pub pinned: BTreeSet<&'static str>,
}

/// Tells whether a directory looks like a project of images: one of the files lies right in it, or where they use to.
pub fn is_one(directory: &Path) -> bool {
    let usual = ["", ".devcontainer", "docker", ".github/workflows"];
    usual.iter().any(|below| {
        fs::read_dir(directory.join(below)).is_ok_and(|entries| {
            entries.flatten().any(|entry| {
                let kind = kind(&entry.path());
                matches!(kind, Some(Kind::Dockerfile | Kind::Compose | Kind::Devcontainer | Kind::Bake))
            })
        })
    })
}

/// Reads a project, or the one file that is named.
pub fn read(root: &Path) -> Project {
    let mut project = Project::default();
    if root.is_dir() {
        let mut paths = Vec::new();
        let mut seen = 0;
        walk(root, &mut Vec::new(), &mut seen, &mut paths, &mut project);
        if seen > MOST {
            let why = format!("only the first {MOST} files and directories were looked at");
            project.unread.push(Unread { path: shown(root), why });
        }
        paths.sort();
        for (path, kind) in paths {
            project.take(&path, kind, root);
        }
        project.files.retain(is_as_called);
        project.follow(root);
        project.keep_what_is_copied();
        project.tell_dockerfiles();
        project.files.sort_by(|a, b| a.path.cmp(&b.path));
        project.again = again(&project.files);
    } else {
        project.take(root, kind(root).unwrap_or(Kind::Dockerfile), root.parent().unwrap_or(root));
    }
    project
}

/// Returns the paths that lead to the same file as one before them. Hard links are files of their own: a change of one
/// leaves the others.
fn again(files: &[File]) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let is_again = |file: &&File| fs::canonicalize(&file.path).is_ok_and(|path| !seen.insert(path));
    files.iter().filter(is_again).map(|file| file.path.clone()).collect()
}

impl Project {
    /// Returns the files without the links to others of them.
    pub fn distinct(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| !self.again.contains(&file.path))
    }

    /// Reads what compose files, `.env` and dev containers name below the root, whatever its name says.
    fn follow(&mut self, root: &Path) {
        let Ok(root_itself) = fs::canonicalize(root) else { return };
        let mut at = 0;
        while let Some(file) = self.files.get(at) {
            let named = match file.kind {
                Kind::Env => container::compose_files(file).into_iter().map(|path| (path, Kind::Compose)).collect(),
                Kind::Compose | Kind::Devcontainer => container::references(file),
                _ => Vec::new(),
            };
            at += 1;
            for (path, kind) in named {
                let is_known = self.files.iter().any(|file| file.path == path)
                    || self.unread.iter().any(|unread| unread.path == path);
                let path = Path::new(&path);
                let is_below =
                    fs::canonicalize(path).is_ok_and(|path| path.starts_with(&root_itself) && path.is_file());
                if !is_known && is_below && self.files.len() < MOST {
                    self.take(path, kind, root);
                }
            }
        }
    }

    fn take(&mut self, path: &Path, kind: Kind, root: &Path) {
        // Nothing that is printed could name it.
        let named = path.to_str().ok_or_else(|| "its path is not UTF-8, and it was not read".to_owned());
        match named.and_then(|_| text(path)) {
            Ok(text) => {
                let around = if kind == Kind::Dockerfile { around(path, root) } else { Around::default() };
                self.files.push(File { path: shown(path), kind, text, around });
            }
            Err(why) => self.unread.push(Unread { path: shown(path), why }),
        }
    }
}

impl Project {
    /// A directory that any Dockerfile copies from is not sent for nothing.
    fn keep_what_is_copied(&mut self) {
        let dockerfiles = self.files.iter().filter(|file| file.kind == Kind::Dockerfile);
        let is_copy = |line: &&str| {
            let line = line.trim_start().to_uppercase();
            let copies = line.starts_with("COPY ") || line.starts_with("ADD ") || line.contains("TYPE=BIND");
            copies && !line.contains("FROM=")
        };
        let copies = dockerfiles.flat_map(|file| file.text.lines()).filter(is_copy);
        let names = copies.flat_map(|line| line.split(['/', ' ', '"', ',', '=', '[', ']']));
        let copied: BTreeSet<String> = names.map(str::to_owned).collect();
        for file in &mut self.files {
            file.around.not_ignored.retain(|name| !copied.contains(name));
        }
    }
}

impl Project {
    /// Tells Dockerfiles what the other files say of builds and containers.
    fn tell_dockerfiles(&mut self) {
        let lines = |file: &File| -> Vec<String> {
            let lines =
                file.text.lines().map(str::trim).filter(|line| !line.starts_with('#') && !line.starts_with("//"));
            lines.map(str::to_owned).collect()
        };
        let without_buildkit = |line: &String| {
            let mut after = line.split("DOCKER_BUILDKIT").skip(1);
            after.any(|rest| {
                let value = rest.trim_start_matches(['"', '\'', ' ', ':', '=', '?']);
                value.starts_with('0') || value.starts_with("false")
            })
        };
        let others = || self.files.iter().filter(|file| file.kind != Kind::Dockerfile);
        let legacy = others().find(|file| lines(file).iter().any(without_buildkit)).map(|file| file.path.clone());
        let described = others().filter(|file| matches!(file.kind, Kind::Compose | Kind::Devcontainer));
        let separates = |c: char| c.is_whitespace() || "\"'[]{},;&|()".contains(c);
        let words = described.flat_map(lines);
        let words: Vec<String> =
            words.flat_map(|line| line.split(separates).map(str::to_owned).collect::<Vec<_>>()).collect();
        for file in self.files.iter_mut().filter(|file| file.kind == Kind::Dockerfile) {
            file.around.without_buildkit.clone_from(&legacy);
            file.around.words = words.iter().cloned().collect();
        }
    }
}

/// Directories that git leaves out, by the `.gitignore` of one directory.
struct Ignored {
    directory: PathBuf,
    /// The last that fits decides; with false it takes back what one before it ignored.
    rules: Vec<(Rule, bool)>,
}

impl Ignored {
    fn read(directory: &Path) -> Option<Ignored> {
        let text = text(&directory.join(".gitignore")).ok()?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let rules = lines.take(1000).filter_map(|line| {
            let pattern = line.strip_prefix('!').unwrap_or(line).trim_end_matches('/');
            let anywhere = if pattern.contains('/') { "" } else { "**/" };
            let rule = Rule::parse(&format!("{anywhere}{}", pattern.trim_start_matches('/')))?;
            Some((rule, !line.starts_with('!')))
        });
        Some(Ignored { directory: directory.to_owned(), rules: rules.collect() })
    }

    fn says(&self, directory: &Path) -> Option<bool> {
        let below = directory.strip_prefix(&self.directory).ok()?;
        self.rules.iter().rev().find(|(rule, _)| rule.fits(below)).map(|(_, out)| *out)
    }
}

/// What git ignores is not walked. Single files count whatever git thinks: `.env` and overrides are seldom committed.
fn walk(
    directory: &Path,
    ignored: &mut Vec<Option<Ignored>>,
    seen: &mut usize,
    paths: &mut Vec<(PathBuf, Kind)>,
    project: &mut Project,
) {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            let why = format!("the directory cannot be read: {error}");
            return project.unread.push(Unread { path: shown(directory), why });
        }
    };
    ignored.push(Ignored::read(directory));
    for entry in entries.flatten() {
        *seen += 1;
        if *seen > MOST {
            break;
        }
        let path = entry.path();
        let Ok(file_type) = entry.file_type() else { continue };
        // A link to a directory may lead anywhere, also back here.
        if file_type.is_dir() {
            let name = entry.file_name();
            let is_out = || ignored.iter().flatten().rev().find_map(|ignored| ignored.says(&path)).unwrap_or(false);
            if ignored.len() <= DEEPEST && !SKIPPED.iter().any(|skipped| name == *skipped) && !is_out() {
                walk(&path, ignored, seen, paths, project);
            }
        } else if let Some(kind) = kind(&path)
            && (file_type.is_file() || fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()))
        {
            paths.push((path, kind));
        } else if entry.file_name().to_str().is_some_and(budget::is_lock) {
            project.locks += 1;
        } else {
            project.pinned.extend(pinned_by(&entry.file_name().to_string_lossy()));
        }
    }
    ignored.pop();
}

/// Returns the languages of which a file of this name may name a version.
fn pinned_by(name: &str) -> &'static [&'static str] {
    match name {
        "rust-toolchain" | "rust-toolchain.toml" => &["rust"],
        ".python-version" => &["python"],
        ".nvmrc" | ".node-version" => &["node"],
        ".ruby-version" => &["ruby"],
        ".go-version" => &["go"],
        ".tool-versions" | "mise.toml" | ".mise.toml" => &["go", "node", "python", "ruby", "rust"],
        _ => &[],
    }
}

/// Returns what a file is by its name.
fn kind(path: &Path) -> Option<Kind> {
    let written = path.file_name()?.to_str()?;
    let name = written.to_lowercase();
    let below = |directory: &str| path.parent().is_some_and(|parent| parent.ends_with(directory));
    let yaml = name.ends_with(".yml") || name.ends_with(".yaml");
    let is_made = [".dockerignore", ".md", ".j2", ".tmpl", ".template", ".erb", ".bak", ".orig", ".txt", ".swp"]
        .iter()
        .any(|end| name.ends_with(end));
    let base = |word: &str| name == word || name.starts_with(&format!("{word}."));
    let is_dockerfile =
        ["dockerfile", "containerfile"].iter().any(|word| base(word) || name.ends_with(&format!(".{word}")));
    let is_source =
        !written.starts_with(['D', 'C']) && name.rsplit('.').next().is_some_and(|end| SOURCES.contains(&end));
    if is_dockerfile && !is_source {
        (!is_made).then_some(Kind::Dockerfile)
    } else if yaml
        && ["docker-compose", "compose"]
            .iter()
            .any(|word| name.strip_prefix(word).is_some_and(|rest| rest.starts_with(['.', '-', '_'])))
    {
        Some(Kind::Compose)
    } else if matches!(name.as_str(), "devcontainer.json" | ".devcontainer.json") {
        Some(Kind::Devcontainer)
    } else if name == ".env" {
        Some(Kind::Env)
    } else if base("docker-bake") {
        Some(Kind::Bake)
    } else if name == "jenkinsfile"
        || yaml
            && (below(".github/workflows")
                || below(".circleci")
                || matches!(
                    name.trim_end_matches(".yaml").trim_end_matches(".yml"),
                    ".gitlab-ci"
                        | "bitbucket-pipelines"
                        | "azure-pipelines"
                        | ".drone"
                        | ".travis"
                        | "taskfile"
                        | "taskfile.dist"
                ))
    {
        Some(Kind::Ci)
    } else if matches!(name.as_str(), "makefile" | "gnumakefile" | "justfile" | ".justfile") || name.ends_with(".mk") {
        Some(Kind::Makefile)
    } else if name == "package.json" {
        Some(Kind::PackageJson)
    } else if [".sh", ".bash", ".zsh"].iter().any(|end| name.ends_with(end)) || DOTFILES.contains(&name.as_str()) {
        Some(Kind::Script)
    } else {
        None
    }
}

/// Opens a file of a project to read it. Of a pipe, nobody may ever write the other end, and a device does what it likes.
///
/// # Errors
/// When it is no regular file after all links, or cannot be opened.
pub fn open(path: &Path) -> io::Result<fs::File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    // It may have become a pipe since.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Tells whether a file that nothing but its name tells of is what that says: variants may be called for anything.
fn is_as_called(file: &File) -> bool {
    let name = file.path.rsplit('/').next().unwrap_or_default().to_lowercase();
    let stem = name.trim_end_matches(".yaml").trim_end_matches(".yml").trim_end_matches(".override");
    match file.kind {
        Kind::Dockerfile if !matches!(name.as_str(), "dockerfile" | "containerfile") => {
            let read = Dockerfile::parse(&file.text);
            let first = read.instructions.first().map_or(u32::MAX, |first| first.line);
            read.problems.iter().all(|problem| problem.line >= first)
        }
        Kind::Compose if !matches!(stem, "compose" | "docker-compose") => match tree::yaml(&file.text) {
            Ok(root) => root.get("services").is_some_and(|services| !services.entries().is_empty()),
            Err(_) => file.text.lines().any(|line| line.trim_end() == "services:"),
        },
        _ => true,
    }
}

/// Returns the text of a file.
///
/// # Errors
/// Says why it is not read: too large, not text, no permission.
pub fn text(path: &Path) -> Result<String, String> {
    let file = open(path).map_err(|error| format!("the file cannot be read: {error}"))?;
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| format!("the file cannot be read: {error}"))?;
    if bytes.len() as u64 > LARGEST {
        return Err("the file is larger than 1 MB and was not read".into());
    }
    if bytes.contains(&0) {
        return Err("the file is binary".into());
    }
    String::from_utf8(bytes).map_err(|_| "the file is not UTF-8 text".into())
}

fn shown(path: &Path) -> String {
    let path = path.strip_prefix(".").unwrap_or(path);
    if path.as_os_str().is_empty() { ".".into() } else { path.display().to_string() }
}

/// Returns what lies beside a Dockerfile, or at the root of the project, which is the usual build context.
fn around(dockerfile: &Path, root: &Path) -> Around {
    let beside = dockerfile.parent().unwrap_or(root);
    let places = if beside == root { vec![beside] } else { vec![beside, root] };
    let has = |name: &str| places.iter().any(|place| place.join(name).exists());
    let starts_as_yarn_1 = |place: &&Path| {
        let text = text(&place.join("yarn.lock")).ok()?;
        Some(text.lines().take(5).any(|line| line.contains("yarn lockfile v1")))
    };
    let settings = [".npmrc", "poetry.toml", ".yarnrc.yml", ".yarnrc"].into_iter().filter(|name| has(name));
    let says = |name: &str, words: &[&str]| {
        let mut texts = places.iter().filter_map(|place| text(&place.join(name)).ok());
        texts.any(|text| words.iter().any(|word| text.contains(word)))
    };
    let of_pnpm = [("pnpm-workspace.yaml", &["storeDir"][..]), ("package.json", &["\"pnpm@5", "\"pnpm@6"])];
    let of_pnpm = of_pnpm.into_iter().filter(|(name, words)| says(name, words)).map(|(name, _)| name);
    let symlinks =
        ["uv.toml", "pyproject.toml", "bunfig.toml"].iter().any(|name| says(name, &["\"symlink\"", "'symlink'"]));
    let own_name = format!("{}.dockerignore", dockerfile.file_name().unwrap_or_default().to_string_lossy());
    let ignore_file = [own_name.as_str(), ".dockerignore"].into_iter().find(|name| beside.join(name).exists());
    let patterns = ignore_file.map(|name| text(&beside.join(name)));
    let not_ignored = match patterns {
        // One at the root says that the root is the context, and then nothing here is.
        None if has(".dockerignore") => Vec::new(),
        Some(Err(_)) => Vec::new(),
        patterns => {
            let patterns = patterns.and_then(Result::ok).unwrap_or_default();
            let candidates = [".git", "node_modules", ".venv", "target"];
            let made =
                |name: &&&str| beside.join(name).exists() && (**name != "target" || beside.join("Cargo.toml").exists());
            let made = |name: &&&str| made(name) && (**name != ".git" || !asks_git(beside));
            let kept_out = |name: &&&str| !is_ignored(&patterns, name);
            candidates.iter().filter(made).filter(kept_out).map(|name| (*name).to_owned()).collect()
        }
    };
    Around {
        yarn_classic: places.iter().find_map(starts_as_yarn_1),
        vendored: has("vendor"),
        go_without_dependencies: has("go.mod") && !has("go.sum"),
        settings: settings.chain(of_pnpm).map(str::to_owned).collect(),
        symlinks,
        not_ignored,
        ignore_file: ignore_file.map(str::to_owned),
        ..Around::default()
    }
}

/// Tells whether what builds a project may ask git for its version.
fn asks_git(directory: &Path) -> bool {
    const FILES: &[&str] = &[
        "Cargo.toml",
        "Makefile",
        "build.gradle",
        "build.gradle.kts",
        "build.rs",
        "package.json",
        "pom.xml",
        "pyproject.toml",
        "setup.cfg",
        "setup.py",
    ];
    // Also the names of what asks: setuptools_scm, hatch-vcs, vergen-git, git-version, git-commit-id-plugin.
    const WORDS: &[&str] = &[
        "scm",
        "vcs",
        "vergen",
        "versioneer",
        "git-",
        "git_",
        "git2",
        "gix",
        "gitversion",
        "shadow-rs",
        "dynamic-versioning",
        "git ",
        "\"git\"",
    ];
    FILES
        .iter()
        .filter_map(|name| text(&directory.join(name)).ok())
        .any(|text| WORDS.iter().any(|word| text.contains(word)))
}

/// Tells whether a name fits a pattern with `*` and `?`.
fn fits(pattern: &str, name: &str) -> bool {
    let same = |part: &u8, byte: &u8| *part == b'?' || part == byte;
    fits_all(pattern.as_bytes(), name.as_bytes(), |part| *part == b'*', same)
}

/// Tells whether a `.dockerignore` keeps out a directory of the context, or all that is in it. The last pattern that
/// fits decides; one that cannot be judged is taken for one that keeps it out.
fn is_ignored(patterns: &str, name: &str) -> bool {
    let patterns = patterns.trim_start_matches('\u{feff}').lines().map(str::trim);
    patterns.filter(|line| !line.is_empty() && !line.starts_with('#')).fold(false, |ignored, line| {
        let (taken_back, pattern) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
        let mut pattern = pattern.trim_start_matches("./").trim_matches('/');
        while let Some(rest) = pattern.strip_prefix("**/") {
            pattern = rest;
        }
        let pattern = pattern.trim_end_matches("/**").trim_end_matches("/*").trim_end_matches('/');
        if pattern.contains('[') || fits(pattern, name) { !taken_back } else { ignored }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_dockerignore_is_read_as_docker_reads_it() {
        let kept_out = |patterns: &[&str]| is_ignored(&patterns.join("\n"), ".git");
        for patterns in [
            &[".git"][..],
            &["/.git/"],
            &["**/.git"],
            &["./.git/**"],
            &["**"],
            &["*", "!src"],
            &[".*"],
            &["# x", "", "  .g?t  "],
            &[".[a-z]*"],
            &["!.git", ".git"],
        ] {
            assert!(kept_out(patterns), "{patterns:?}");
        }
        for patterns in [&[""][..], &["#.git"], &["git", ".github"], &["*.git.x"], &["a/.git"], &[".git", "!.git"]] {
            assert!(!kept_out(patterns), "{patterns:?}");
        }
        assert!(is_ignored(&"*".repeat(1 << 20), ".git") && !is_ignored(&"*x".repeat(1 << 19), ".git"));
    }

    #[test]
    fn links_into_a_cache_are_seen_in_the_settings_of_the_tools() {
        for (name, text, symlinks) in [
            ("uv.toml", "link-mode = \"symlink\"\n", true),
            ("pyproject.toml", "[tool.uv]\nlink-mode='symlink'\n", true),
            ("bunfig.toml", "[install]\nbackend = \"symlink\"\n", true),
            ("uv.toml", "link-mode = \"copy\"\n", false),
            ("other.toml", "link-mode = \"symlink\"\n", false),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join(name), text).unwrap();
            assert_eq!(around(&root.path().join("Dockerfile"), root.path()).symlinks, symlinks, "{name} {text}");
            fs::create_dir(root.path().join("a")).unwrap();
            assert_eq!(around(&root.path().join("a/Dockerfile"), root.path()).symlinks, symlinks, "{name} {text}");
        }
    }

    #[test]
    fn what_only_is_called_like_a_dockerfile_or_a_compose_file_is_none() {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("dockerfile.rs", "fn main() {}\n"),
            ("dockerfile.test.ts", "import x from 'y'\n"),
            ("Dockerfile.html", "<html>\n"),
            ("Dockerfile.go", "FROM golang\n"),
            ("api.dockerfile", "FROM a\nRUNN b\n"),
            ("compose-schema.yml", "properties: {services: {}}\n"),
            ("compose.ci.yml", "services: {a: {image: b}}\n"),
            ("composer.yml", "services: {a: {image: b}}\n"),
            ("docker-compose.broken.yml", "services:\n  a: [\n"),
            ("compose.override.yml", "volumes: {}\n"),
        ] {
            fs::write(root.path().join(name), text).unwrap();
        }
        let files = read(root.path()).files;
        let names: Vec<&str> = files.iter().filter_map(|file| file.path.rsplit('/').next()).collect();
        assert_eq!(
            names,
            ["Dockerfile.go", "api.dockerfile", "compose.ci.yml", "compose.override.yml", "docker-compose.broken.yml"]
        );
    }

    #[test]
    fn a_project_is_read_whatever_lies_in_it() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in
            ["a/b", ".github/workflows", "node_modules/x", "dark", "made/deep", "a/out", "a/kept/out", "a/infra"]
        {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for path in [
            "Dockerfile",
            "a/b/web.Dockerfile",
            "a/Dockerfile.dev",
            "a/Dockerfile.dockerignore",
            "a/Containerfile",
            "compose.override.yml",
            "docker-bake.hcl",
            ".github/workflows/ci.yaml",
            "a/build.sh",
            "Makefile",
            "node_modules/x/Dockerfile",
            "other.yml",
            "a/Cargo.lock",
            "uv.lock",
            "node_modules/x/yarn.lock",
            "made/deep/Dockerfile",
            "a/out/Dockerfile",
            "a/kept/out/Dockerfile.kept",
            "a/infra/parts.yml",
            "a/infra/web.build",
            "secret.yml",
        ] {
            fs::write(at(path), "FROM a\n").unwrap();
        }
        fs::write(at(".gitignore"), "# made\n/made/\nout\n.env\n!kept/out\n*.sh\n").unwrap();
        fs::write(at("a/.gitignore"), "!kept/out/\n").unwrap();
        fs::write(at("a/compose.yml"), "include: [infra/parts.yml, ../../x.yml, /etc/hosts, gone.yml, link/x.yml]\n")
            .unwrap();
        fs::write(at("a/infra/parts.yml"), "services: {a: {build: {context: ., dockerfile: web.build}}}\n").unwrap();
        fs::write(at("a/.env"), "COMPOSE_FILE=compose.yml:infra/parts.yml\n").unwrap();
        symlink("/etc", at("a/link")).unwrap();
        symlink(root.path(), at("a/loop")).unwrap();
        symlink("/dev/zero", at("a/dockerfile")).unwrap();
        symlink("nowhere", at("a/b/Dockerfile")).unwrap();
        symlink(at("Dockerfile"), at("a/linked.dockerfile")).unwrap();
        fs::write(at("a/Dockerfile.binary"), [0, 255]).unwrap();
        fs::write(at("a/Dockerfile.latin"), [b'#', 0xe9]).unwrap();
        fs::write(at("a/Dockerfile.huge"), vec![b'#'; 10 << 20]).unwrap();
        fs::write(at("a/rust-toolchain.toml"), "").unwrap();
        fs::set_permissions(at("dark"), fs::Permissions::from_mode(0o000)).unwrap();
        let project = read(root.path());
        fs::set_permissions(at("dark"), fs::Permissions::from_mode(0o700)).unwrap();
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let mut read: Vec<String> = project.files.iter().map(|file| name(&file.path)).collect();
        read.sort();
        assert_eq!(
            read,
            [
                ".env",
                "Containerfile",
                "Dockerfile",
                "Dockerfile.dev",
                "Dockerfile.kept",
                "Makefile",
                "build.sh",
                "ci.yaml",
                "compose.override.yml",
                "compose.yml",
                "docker-bake.hcl",
                "linked.dockerfile",
                "parts.yml",
                "web.Dockerfile",
                "web.build"
            ]
        );
        let unread: Vec<String> =
            project.unread.iter().map(|unread| name(&unread.path)).filter(|name| name != "dark").collect();
        assert_eq!(unread, ["Dockerfile.binary", "Dockerfile.huge", "Dockerfile.latin"]);
        assert_eq!(project.locks, 2);
        assert_eq!(project.pinned, ["rust"].into());
        assert!(is_one(root.path()) && !is_one(&at("node_modules")));
    }
}
