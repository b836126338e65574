//! The one table of languages, tools and the directories they write to: what is cache, and what only lies beside one.
//! Pure look-ups over it; no file is read and no process is started here. What is not surely a cache is kept.

use std::{fmt, sync::LazyLock};

use Class::{Cache, Install, Scratch, Secret, State};
use Sharing::{Locked, Private, Shared};
use Unit::{File, Whole};

/// What a directory holds, and so whether it may be deleted or exported without being named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Downloads and build results that the tool makes again by itself.
    Cache,
    /// Programs, libraries and virtual environments that something runs or links.
    Install,
    /// What cannot be made again by a download: settings, data, local work.
    State,
    /// Credentials and private keys.
    Secret,
    /// Temporary work, worthless once the tool is idle.
    Scratch,
}

impl Class {
    /// Returns the word for people and for JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Cache => "cache",
            Install => "install",
            State => "state",
            Secret => "secret",
            Scratch => "scratch",
        }
    }

    /// Tells whether it may be deleted without being named.
    pub fn is_deletable(self) -> bool {
        matches!(self, Cache | Scratch)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What `sharing=` a cache mount needs so that builds running side by side do not harm each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// The tool locks, or only ever adds whole files.
    Shared,
    /// The tool's lock is absent, or lies outside the mount or the container.
    Locked,
    /// Not even one after the other.
    Private,
}

impl Sharing {
    /// Returns the value of the `sharing=` option.
    pub fn as_str(self) -> &'static str {
        match self {
            Shared => "shared",
            Locked => "locked",
            Private => "private",
        }
    }
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The smallest thing that may be deleted alone, as by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Each file stands alone; the tool takes a missing one for a miss.
    File,
    /// Files refer to each other, as npm's index to its content: all or nothing.
    Whole,
}

/// One path inside a row's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Below the base; `""` is all the rest of it, and `*` is any one name.
    pub path: &'static str,
    pub class: Class,
}

/// One tool's directory, wherever it is put. A tool may have several rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub language: &'static str,
    pub tool: &'static str,
    /// Below the root of a cache volume (`/cache`).
    pub in_volume: &'static [&'static str],
    /// Where the tool puts it unasked: `/…` as it stands, `~/…` in any user's home, anything else in a project.
    pub homes: &'static [&'static str],
    /// Variables that the tool reads to move it. `XDG_CACHE_HOME` moves every `~/.cache` and is not repeated.
    pub env: &'static [&'static str],
    /// Ids that people give to a cache mount of it.
    pub ids: &'static [&'static str],
    pub parts: &'static [Part],
    pub sharing: Sharing,
    pub unit: Unit,
    /// What a step of a build shows of it, where a cache mount on it is of use.
    pub build: Build,
    /// How it is filled before it is needed.
    pub warm: Warm,
}

/// How a build step uses a tool's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Build {
    /// Program and first arguments of what fills it; `*` is any call.
    pub commands: &'static [&'static str],
    /// The directories that it writes: of each, the first whose variables are set and known. `~` is the user's home.
    pub writes: &'static [&'static [&'static str]],
    /// Where other versions of it write: right as well, but not proposed.
    pub also: &'static [&'static str],
    /// Options, and variables by their beginning, that move it elsewhere.
    pub moved_by: &'static [&'static str],
    /// Options that show that nothing is downloaded.
    pub offline: &'static [&'static str],
    /// Options and variables that keep it empty.
    pub defeated_by: &'static [&'static str],
    /// Commands that empty it.
    pub cleaned_by: &'static [&'static str],
    /// Later steps read from it, so each of them needs the same mount.
    pub read_later: bool,
}

const BUILD: Build = Build {
    commands: &[],
    writes: &[],
    also: &[],
    moved_by: &[],
    offline: &["--offline"],
    defeated_by: &[],
    cleaned_by: &[],
    read_later: false,
};

/// How a project's lock files fill a cache, by the tool's own download and nothing of the project's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warm {
    /// Names of the files that say what to download, `*` standing for any characters. None: there is no such way.
    pub locks: &'static [&'static str],
    /// What such a file says, if another tool's bears the same name.
    pub says: &'static str,
    /// Names of further files that the command reads, beside the lock file and below.
    pub reads: &'static [&'static str],
    /// Options by which a line of the lock file, or of one that it names so, names another that the command reads.
    pub includes: &'static [&'static str],
    /// Names of files that it only wants to be there.
    pub stubs: &'static [&'static str],
    /// A file of ours that the command reads beside the lock file: its name and content.
    pub adds: Option<(&'static str, &'static str)>,
    /// Program and arguments, without a shell: `{lock}` is the lock file, `{cache}` the directory of the row.
    pub command: &'static [&'static str],
    /// Variables of the command, with `{lock}` and `{cache}` too.
    pub env: &'static [(&'static str, &'static str)],
}

const WARM: Warm =
    Warm { locks: &[], says: "", reads: &[], includes: &[], stubs: &[], adds: None, command: &[], env: &[] };

/// What npm and its kin read.
const NODE_READS: &[&str] = &["package.json", ".npmrc"];

/// Gives each project of a gradle build a task that downloads what its configurations name.
const GRADLE_RESOLVE: &str = "\
allprojects {
    tasks.create('dockerCacheWarm') {
        doLast { configurations.findAll { it.canBeResolved }.each { it.resolve() } }
    }
}
";

impl Row {
    /// Returns the class of all that no part of the row names.
    pub fn rest(&self) -> Class {
        self.parts.iter().find(|part| part.path.is_empty()).map_or(State, |part| part.class)
    }
}

/// What a row is unless it says otherwise: kept, and touched by one at a time.
const ROW: Row = Row {
    language: "",
    tool: "",
    in_volume: &[],
    homes: &[],
    env: &[],
    ids: &[],
    parts: KEPT,
    sharing: Locked,
    unit: Whole,
    build: BUILD,
    warm: WARM,
};

const ALL_CACHE: &[Part] = &[part("", Cache)];
const ALL_INSTALL: &[Part] = &[part("", Install)];
const ALL_SCRATCH: &[Part] = &[part("", Scratch)];
const ALL_SECRET: &[Part] = &[part("", Secret)];
const KEPT: &[Part] = &[part("", State)];

const fn part(path: &'static str, class: Class) -> Part {
    Part { path, class }
}

/// Every directory that the program knows. Adding a tool is adding a row.
pub static ROWS: &[Row] = &[
    // checked: pip 23.2.1
    Row {
        language: "python",
        tool: "pip",
        in_volume: &["pip"],
        homes: &["~/.cache/pip"],
        env: &["PIP_CACHE_DIR"],
        ids: &["pip", "pip3"],
        parts: ALL_CACHE,
        sharing: Shared,
        unit: File,
        build: Build {
            commands: &["pip install", "pip download", "pip wheel"],
            writes: &[&["$PIP_CACHE_DIR", "$XDG_CACHE_HOME/pip", "~/.cache/pip"]],
            moved_by: &["--cache-dir"],
            offline: &["--no-index"],
            defeated_by: &["--no-cache-dir", "--no-cache", "PIP_NO_CACHE_DIR"],
            cleaned_by: &["pip cache purge", "pip cache remove"],
            ..BUILD
        },
        // pip asks its index each time; what needs none is `pip install --no-index --find-links {cache}/wheelhouse`
        warm: Warm {
            locks: &["requirements*.txt"],
            reads: &["requirements*.txt", "constraints*.txt"],
            includes: &["-r", "--requirement", "-c", "--constraint"],
            command: &["pip", "wheel", "--wheel-dir={cache}/wheelhouse", "--requirement={lock}"],
            ..WARM
        },
    },
    // checked: uv 0.13.9
    Row {
        language: "python",
        tool: "uv",
        in_volume: &["uv"],
        homes: &["~/.cache/uv"],
        env: &["UV_CACHE_DIR"],
        ids: &["uv"],
        parts: ALL_CACHE,
        sharing: Shared,
        build: Build {
            commands: &["uv sync", "uv pip install", "uv pip sync", "uv add", "uv tool install"],
            writes: &[&["$UV_CACHE_DIR", "$XDG_CACHE_HOME/uv", "~/.cache/uv"]],
            moved_by: &["--cache-dir"],
            defeated_by: &["--no-cache", "--no-cache-dir", "-n", "UV_NO_CACHE"],
            cleaned_by: &["uv cache clean"],
            ..BUILD
        },
        warm: Warm {
            locks: &["uv.lock"],
            reads: &["pyproject.toml", "uv.toml", ".python-version"],
            command: &["uv", "sync", "--frozen", "--no-install-project", "--no-install-workspace"],
            env: &[("UV_LINK_MODE", "copy")],
            ..WARM
        },
        ..ROW
    },
    // checked: uv 0.13.9; its own Pythons, its tools and what `uv auth` keeps
    Row {
        language: "python",
        tool: "uv",
        homes: &["~/.local/share/uv"],
        parts: &[part("credentials", Secret), part("", Install)],
        ..ROW
    },
    // checked: poetry 2.5.1; virtualenvs/ unless they lie in the projects
    Row {
        language: "python",
        tool: "poetry",
        in_volume: &["poetry"],
        homes: &["~/.cache/pypoetry", "/tmp/poetry_cache"],
        env: &["POETRY_CACHE_DIR"],
        ids: &["poetry", "pypoetry"],
        parts: &[part("cache", Cache), part("artifacts", Cache), part("virtualenvs", Install), part("", State)],
        // its virtualenvs/ is no cache, so its cache is mounted in parts
        build: Build {
            commands: &["poetry install", "poetry add", "poetry sync"],
            writes: &[
                &["$POETRY_CACHE_DIR/cache", "$XDG_CACHE_HOME/pypoetry/cache", "~/.cache/pypoetry/cache"],
                &["$POETRY_CACHE_DIR/artifacts", "$XDG_CACHE_HOME/pypoetry/artifacts", "~/.cache/pypoetry/artifacts"],
            ],
            defeated_by: &["--no-cache"],
            cleaned_by: &["poetry cache clear"],
            ..BUILD
        },
        warm: Warm {
            locks: &["poetry.lock"],
            reads: &["pyproject.toml", "poetry.toml"],
            command: &["poetry", "install", "--no-root", "--no-interaction"],
            env: &[("POETRY_VIRTUALENVS_IN_PROJECT", "true")],
            ..WARM
        },
        ..ROW
    },
    // checked: pipx 1.18.4; PIPX_HOME takes the cache of `pipx run` along
    Row {
        language: "python",
        tool: "pipx",
        in_volume: &["pipx"],
        homes: &["~/.local/share/pipx", "~/.local/pipx", "/opt/pipx"],
        env: &["PIPX_HOME"],
        ids: &["pipx"],
        parts: &[part(".cache", Cache), part("logs", Scratch), part(".trash", Scratch), part("", Install)],
        ..ROW
    },
    // checked: pipx 1.18.4; the environments of `pipx run`
    Row { language: "python", tool: "pipx", homes: &["~/.cache/pipx"], parts: ALL_CACHE, ..ROW },
    // checked: pdm 2.29.3; environments may link into packages/
    Row {
        language: "python",
        tool: "pdm",
        in_volume: &["pdm"],
        homes: &["~/.cache/pdm"],
        env: &["PDM_CACHE_DIR"],
        ids: &["pdm"],
        parts: &[
            part("http", Cache),
            part("wheels", Cache),
            part("metadata", Cache),
            part("hashes", Cache),
            part("packages", Install),
            part("", State),
        ],
        sharing: Shared,
        build: Build {
            commands: &["pdm install", "pdm sync", "pdm add"],
            writes: &[&["$PDM_CACHE_DIR", "$XDG_CACHE_HOME/pdm", "~/.cache/pdm"]],
            ..BUILD
        },
        warm: Warm {
            locks: &["pdm.lock"],
            reads: &["pyproject.toml", "pdm.toml"],
            command: &["pdm", "sync", "--no-self"],
            ..WARM
        },
        ..ROW
    },
    // checked: pipenv 2026.10.3
    Row {
        language: "python",
        tool: "pipenv",
        in_volume: &["pipenv"],
        homes: &["~/.cache/pipenv"],
        env: &["PIPENV_CACHE_DIR"],
        ids: &["pipenv"],
        parts: ALL_CACHE,
        sharing: Shared,
        build: Build {
            commands: &["pipenv install", "pipenv sync"],
            writes: &[&["$PIPENV_CACHE_DIR", "$XDG_CACHE_HOME/pipenv", "~/.cache/pipenv"]],
            also: &["~/.cache/pip"],
            ..BUILD
        },
        warm: Warm {
            locks: &["Pipfile.lock"],
            reads: &["Pipfile"],
            command: &["pipenv", "sync"],
            env: &[("PIPENV_VENV_IN_PROJECT", "1")],
            ..WARM
        },
        ..ROW
    },
    // checked: pipenv 2026.10.3
    Row {
        language: "python",
        tool: "pipenv",
        in_volume: &["virtualenvs"],
        homes: &["~/.local/share/virtualenvs"],
        env: &["WORKON_HOME"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // checked: hatch 1.18.2
    Row {
        language: "python",
        tool: "hatch",
        in_volume: &["hatch"],
        homes: &["~/.cache/hatch"],
        env: &["HATCH_CACHE_DIR"],
        ids: &["hatch"],
        parts: ALL_CACHE,
        sharing: Shared,
        ..ROW
    },
    // checked: virtualenv 21.15.8
    Row {
        language: "python",
        tool: "virtualenv",
        homes: &["~/.cache/virtualenv"],
        env: &["VIRTUALENV_OVERRIDE_APP_DATA"],
        ids: &["virtualenv"],
        parts: ALL_CACHE,
        sharing: Shared,
        ..ROW
    },
    // from the docs
    Row {
        language: "python",
        tool: "conda",
        in_volume: &["conda/pkgs"],
        homes: &["/opt/conda/pkgs", "~/.conda/pkgs", "~/.mamba/pkgs", "~/micromamba/pkgs"],
        env: &["CONDA_PKGS_DIRS"],
        ids: &["conda", "conda-pkgs", "mamba", "micromamba"],
        parts: ALL_CACHE,
        build: Build {
            commands: &[
                "conda install",
                "conda create",
                "conda env create",
                "conda update",
                "mamba install",
                "mamba create",
                "mamba env create",
                "mamba update",
                "micromamba install",
                "micromamba create",
            ],
            writes: &[&["$CONDA_PKGS_DIRS", "$CONDA_DIR/pkgs"]],
            also: &["$MAMBA_ROOT_PREFIX/pkgs", "/opt/conda/pkgs"],
            cleaned_by: &["conda clean", "mamba clean", "micromamba clean"],
            ..BUILD
        },
        ..ROW
    },
    // from the docs
    Row {
        language: "python",
        tool: "pixi",
        in_volume: &["pixi"],
        homes: &["~/.cache/rattler", "~/.cache/pixi"],
        env: &["PIXI_CACHE_DIR", "RATTLER_CACHE_DIR"],
        ids: &["pixi", "rattler"],
        parts: ALL_CACHE,
        sharing: Shared,
        ..ROW
    },
    // checked: mypy 2.4.1
    Row {
        language: "python",
        tool: "mypy",
        homes: &[".mypy_cache"],
        env: &["MYPY_CACHE_DIR"],
        ids: &["mypy"],
        parts: ALL_SCRATCH,
        ..ROW
    },
    // checked: ruff 0.17.6
    Row {
        language: "python",
        tool: "ruff",
        homes: &[".ruff_cache"],
        env: &["RUFF_CACHE_DIR"],
        ids: &["ruff"],
        parts: ALL_SCRATCH,
        ..ROW
    },
    // checked: pytest 9.2.0
    Row { language: "python", tool: "pytest", homes: &[".pytest_cache"], ids: &["pytest"], parts: ALL_SCRATCH, ..ROW },
    // checked: black 26.10.1
    Row {
        language: "python",
        tool: "black",
        homes: &["~/.cache/black"],
        env: &["BLACK_CACHE_DIR"],
        ids: &["black"],
        parts: ALL_SCRATCH,
        ..ROW
    },
    // checked: npm 10.8.2
    Row {
        language: "node",
        tool: "npm",
        in_volume: &["npm"],
        homes: &["~/.npm"],
        env: &["npm_config_cache", "NPM_CONFIG_CACHE"],
        ids: &["npm"],
        parts: ALL_CACHE,
        sharing: Shared,
        build: Build {
            commands: &["npm ci", "npm clean-install", "npm install", "npm i", "npm add"],
            writes: &[&["$npm_config_cache", "$NPM_CONFIG_CACHE", "~/.npm"]],
            moved_by: &["--cache"],
            cleaned_by: &["npm cache clean"],
            ..BUILD
        },
        warm: Warm {
            locks: &["package-lock.json", "npm-shrinkwrap.json"],
            reads: NODE_READS,
            command: &["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            ..WARM
        },
        ..ROW
    },
    // checked: npm 10.8.2
    Row {
        language: "node",
        tool: "npm",
        in_volume: &["npm-global"],
        homes: &["~/.npm-global"],
        env: &["npm_config_prefix", "NPM_CONFIG_PREFIX"],
        ids: &["npm-global"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // checked: yarn 1.22.19; it keeps unpacked packages and has no lock across containers
    Row {
        language: "node",
        tool: "yarn",
        in_volume: &["yarn"],
        homes: &["/usr/local/share/.cache/yarn", "~/.cache/yarn"],
        env: &["YARN_CACHE_FOLDER"],
        ids: &["yarn"],
        parts: ALL_CACHE,
        // berry's global cache is read at run time, so only what is surely yarn 1 is spoken of
        build: Build {
            commands: &["yarn install", "yarn add", "yarn --frozen-lockfile"],
            writes: &[&["$YARN_CACHE_FOLDER", "$XDG_CACHE_HOME/yarn", "/usr/local/share/.cache/yarn"]],
            also: &["~/.cache/yarn", "/usr/local/share/.cache", "~/.yarn"],
            moved_by: &["--cache-folder"],
            cleaned_by: &["yarn cache clean"],
            ..BUILD
        },
        warm: Warm {
            locks: &["yarn.lock"],
            says: "# yarn lockfile v1",
            reads: &["package.json", ".npmrc", ".yarnrc", "yarn-*.js", "yarn-*.cjs"],
            command: &["yarn", "install", "--frozen-lockfile", "--ignore-scripts"],
            ..WARM
        },
        ..ROW
    },
    // checked: yarn 3.5.0 and 4.1.0, which refuse variables of yarn 1 that they do not know; unasked, yarn 4 reads this cache alone
    Row {
        language: "node",
        tool: "yarn",
        in_volume: &["yarn-berry"],
        homes: &["~/.yarn/berry"],
        env: &["YARN_GLOBAL_FOLDER"],
        ids: &["yarn-berry", "berry"],
        parts: &[part("cache", Cache), part("metadata", Cache), part("", Install)],
        sharing: Shared,
        warm: Warm {
            locks: &["yarn.lock"],
            says: "__metadata:",
            reads: &["package.json", ".yarnrc.yml", "yarn-*.cjs", "plugin-*.cjs", "*.patch"],
            command: &["yarn", "install", "--immutable"],
            env: &[("YARN_ENABLE_SCRIPTS", "false")],
            ..WARM
        },
        ..ROW
    },
    // from the docs
    Row { language: "node", tool: "yarn", homes: &["~/.yarn"], parts: ALL_INSTALL, ..ROW },
    // from the docs
    Row { language: "node", tool: "yarn", homes: &[".yarn/cache"], parts: ALL_CACHE, sharing: Shared, ..ROW },
    // from the docs
    Row {
        language: "node",
        tool: "pnpm",
        in_volume: &["pnpm-store"],
        homes: &["~/.pnpm-store", "~/.cache/pnpm"],
        env: &["npm_config_store_dir"],
        ids: &["pnpm", "pnpm-store"],
        parts: ALL_CACHE,
        sharing: Shared,
        warm: Warm {
            locks: &["pnpm-lock.yaml"],
            reads: &["package.json", ".npmrc", "pnpm-workspace.yaml", "*.patch"],
            command: &["pnpm", "fetch"],
            ..WARM
        },
        ..ROW
    },
    // from the docs: PNPM_HOME; its commands lie beside the store, and a store put right here is v3, v10, v11
    Row {
        language: "node",
        tool: "pnpm",
        in_volume: &["pnpm"],
        homes: &["~/.local/share/pnpm", "/pnpm"],
        env: &["PNPM_HOME"],
        parts: &[part("store", Cache), part("v3", Cache), part("v10", Cache), part("v11", Cache), part("", Install)],
        sharing: Shared,
        build: Build {
            commands: &["pnpm install", "pnpm i", "pnpm add", "pnpm fetch"],
            writes: &[&[
                "$npm_config_store_dir",
                "$PNPM_HOME/store",
                "$XDG_DATA_HOME/pnpm/store",
                "~/.local/share/pnpm/store",
            ]],
            also: &["~/.pnpm-store"],
            moved_by: &["--store-dir"],
            cleaned_by: &["pnpm store prune"],
            ..BUILD
        },
        ..ROW
    },
    // from the docs
    Row {
        language: "node",
        tool: "bun",
        in_volume: &["bun"],
        homes: &["~/.bun"],
        env: &["BUN_INSTALL"],
        ids: &["bun"],
        parts: &[part("install/cache", Cache), part("", Install)],
        sharing: Shared,
        build: Build {
            commands: &["bun install", "bun i", "bun add"],
            writes: &[&["$BUN_INSTALL_CACHE_DIR", "$BUN_INSTALL/install/cache", "~/.bun/install/cache"]],
            moved_by: &["--cache-dir"],
            defeated_by: &["--no-cache"],
            cleaned_by: &["bun pm cache rm"],
            ..BUILD
        },
        warm: Warm {
            locks: &["bun.lock", "bun.lockb"],
            reads: &["package.json", ".npmrc", "bunfig.toml", "*.patch"],
            command: &["bun", "install", "--frozen-lockfile", "--ignore-scripts"],
            ..WARM
        },
        ..ROW
    },
    // checked: deno 2.9.8; what a program stored with localStorage lies in location_data/
    Row {
        language: "node",
        tool: "deno",
        in_volume: &["deno"],
        homes: &["~/.cache/deno", "/deno-dir"],
        env: &["DENO_DIR"],
        ids: &["deno", "deno-dir"],
        parts: &[
            part("deps", Cache),
            part("remote", Cache),
            part("npm", Cache),
            part("gen", Cache),
            part("dl", Cache),
            part("", State),
        ],
        sharing: Shared,
        // what sources import by address is not in deno.json, and stays for the build
        warm: Warm {
            locks: &["deno.lock"],
            reads: &["deno.json", "deno.jsonc", "package.json", ".npmrc"],
            command: &["deno", "install", "--frozen"],
            ..WARM
        },
        ..ROW
    },
    // checked: corepack 0.34.6
    Row {
        language: "node",
        tool: "corepack",
        in_volume: &["corepack"],
        homes: &["~/.cache/node/corepack"],
        env: &["COREPACK_HOME"],
        ids: &["corepack"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // from the docs
    Row {
        language: "node",
        tool: "turbo",
        in_volume: &["turbo"],
        homes: &[".turbo/cache", ".turbo"],
        env: &["TURBO_CACHE_DIR"],
        ids: &["turbo", "turborepo"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row {
        language: "node",
        tool: "nx",
        in_volume: &["nx"],
        homes: &[".nx/cache"],
        env: &["NX_CACHE_DIRECTORY"],
        ids: &["nx"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row { language: "node", tool: "next", homes: &[".next/cache"], ids: &["next", "nextjs"], parts: ALL_CACHE, ..ROW },
    // checked: node-gyp 10.1.0
    Row {
        language: "node",
        tool: "node-gyp",
        in_volume: &["node-gyp"],
        homes: &["~/.cache/node-gyp"],
        env: &["npm_config_devdir"],
        ids: &["node-gyp"],
        parts: ALL_CACHE,
        ..ROW
    },
    // checked: playwright 1.65.2; programs use these browsers at run time
    Row {
        language: "node",
        tool: "playwright",
        in_volume: &["ms-playwright", "playwright"],
        homes: &["~/.cache/ms-playwright", "/ms-playwright"],
        env: &["PLAYWRIGHT_BROWSERS_PATH"],
        ids: &["playwright"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // from the docs
    Row {
        language: "node",
        tool: "cypress",
        in_volume: &["Cypress", "cypress"],
        homes: &["~/.cache/Cypress"],
        env: &["CYPRESS_CACHE_FOLDER"],
        ids: &["cypress"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // from the docs
    Row {
        language: "node",
        tool: "puppeteer",
        in_volume: &["puppeteer"],
        homes: &["~/.cache/puppeteer"],
        env: &["PUPPETEER_CACHE_DIR"],
        ids: &["puppeteer"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // checked: cargo 1.95.0; its lock is CARGO_HOME/.package-cache, outside a mount of registry/ or git/
    Row {
        language: "rust",
        tool: "cargo",
        in_volume: &["cargo"],
        homes: &["/usr/local/cargo", "~/.cargo"],
        env: &["CARGO_HOME"],
        ids: &["cargo", "cargo-registry", "cargo-git"],
        parts: &[
            part("registry", Cache),
            part("git", Cache),
            part("bin", Install),
            part("credentials.toml", Secret),
            part("credentials", Secret),
            part("", State),
        ],
        build: Build {
            commands: &[
                "cargo build",
                "cargo install",
                "cargo fetch",
                "cargo test",
                "cargo check",
                "cargo run",
                "cargo chef cook",
                "cargo doc",
                "cargo clippy",
            ],
            writes: &[&["$CARGO_HOME/registry", "~/.cargo/registry"], &["$CARGO_HOME/git/db", "~/.cargo/git/db"]],
            offline: &["--offline", "--frozen"],
            read_later: true,
            ..BUILD
        },
        // cargo wants the sources that a Cargo.toml names to be there, and reads none
        warm: Warm {
            locks: &["Cargo.lock"],
            reads: &["Cargo.toml"],
            stubs: &["*.rs"],
            command: &["cargo", "fetch", "--locked"],
            ..WARM
        },
        ..ROW
    },
    // checked: cargo 1.95.0
    Row {
        language: "rust",
        tool: "cargo",
        in_volume: &["cargo-target", "cargo/target"],
        homes: &["target"],
        env: &["CARGO_TARGET_DIR"],
        ids: &["cargo-target", "rust-target"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row {
        language: "rust",
        tool: "rustup",
        in_volume: &["rustup"],
        homes: &["/usr/local/rustup", "~/.rustup"],
        env: &["RUSTUP_HOME"],
        ids: &["rustup"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // checked: sccache 0.4.0
    Row {
        language: "rust",
        tool: "sccache",
        in_volume: &["sccache"],
        homes: &["~/.cache/sccache"],
        env: &["SCCACHE_DIR"],
        ids: &["sccache"],
        parts: ALL_CACHE,
        sharing: Shared,
        unit: File,
        ..ROW
    },
    // checked: go 1.19.8; files are 0444 in directories of 0555
    Row {
        language: "go",
        tool: "go",
        in_volume: &["go-mod", "go/mod", "go/pkg/mod"],
        homes: &["/go/pkg/mod", "~/go/pkg/mod"],
        env: &["GOMODCACHE"],
        ids: &["go-mod", "gomod", "go-modules", "gomodcache"],
        parts: ALL_CACHE,
        sharing: Shared,
        build: Build {
            commands: &[
                "go mod download",
                "go build",
                "go install",
                "go get",
                "go test",
                "go run",
                "go vet",
                "go generate",
            ],
            writes: &[
                &["$GOMODCACHE", "$GOPATH/pkg/mod", "~/go/pkg/mod"],
                &["$GOCACHE", "$XDG_CACHE_HOME/go-build", "~/.cache/go-build"],
            ],
            offline: &["-mod=vendor", "--mod=vendor"],
            cleaned_by: &["go clean -modcache", "go clean -cache"],
            read_later: true,
            ..BUILD
        },
        warm: Warm { locks: &["go.sum"], reads: &["go.mod"], command: &["go", "mod", "download"], ..WARM },
        ..ROW
    },
    // checked: go 1.19.8
    Row {
        language: "go",
        tool: "go",
        in_volume: &["go-build", "go/build"],
        homes: &["~/.cache/go-build"],
        env: &["GOCACHE"],
        ids: &["go-build", "gobuild", "gocache"],
        parts: ALL_CACHE,
        sharing: Shared,
        unit: File,
        ..ROW
    },
    // checked: go 1.19.8
    Row {
        language: "go",
        tool: "go",
        in_volume: &["go"],
        homes: &["/go", "~/go"],
        env: &["GOPATH"],
        ids: &["gopath"],
        parts: &[part("bin", Install), part("", State)],
        ..ROW
    },
    // from the docs
    Row {
        language: "go",
        tool: "golangci-lint",
        in_volume: &["golangci-lint"],
        homes: &["~/.cache/golangci-lint"],
        env: &["GOLANGCI_LINT_CACHE"],
        ids: &["golangci-lint", "golangci"],
        parts: ALL_CACHE,
        ..ROW
    },
    // checked: maven 3.8.7, which ignores $HOME. MAVEN_USER_HOME moves the wrapper only; what `mvn install`
    // made lies in repository/ too
    Row {
        language: "java",
        tool: "maven",
        in_volume: &["maven"],
        homes: &["~/.m2"],
        ids: &["maven", "m2", "mvn"],
        parts: &[
            part("repository", Cache),
            part("wrapper/dists", Cache),
            part("build-cache", Cache),
            part("settings.xml", Secret),
            part("settings-security.xml", Secret),
            part("", State),
        ],
        build: Build {
            commands: &["mvn *"],
            writes: &[&["~/.m2/repository"]],
            moved_by: &["-Dmaven.repo.local", "MAVEN_OPTS", "MAVEN_ARGS", "-s", "--settings", "-gs"],
            offline: &["-o", "--offline"],
            read_later: true,
            ..BUILD
        },
        warm: Warm {
            locks: &["pom.xml"],
            reads: &["pom.xml"],
            command: &["mvn", "--batch-mode", "-Dmaven.repo.local={cache}/repository", "dependency:go-offline"],
            ..WARM
        },
        ..ROW
    },
    // checked: gradle 4.4.1; locks are handed over between processes, which containers cannot do
    Row {
        language: "java",
        tool: "gradle",
        in_volume: &["gradle", ".gradle", "android-gradle"],
        homes: &["~/.gradle"],
        env: &["GRADLE_USER_HOME"],
        ids: &["gradle"],
        parts: &[
            part("caches", Cache),
            part("wrapper/dists", Cache),
            part("daemon", Scratch),
            part(".tmp", Scratch),
            part("jdks", Install),
            part("gradle.properties", Secret),
            part("init.d", Secret),
            part("init.gradle", Secret),
            part("init.gradle.kts", Secret),
            part("", State),
        ],
        build: Build {
            commands: &["gradle *"],
            writes: &[&["$GRADLE_USER_HOME", "~/.gradle"]],
            also: &["~/.gradle", "/home/gradle/.gradle"],
            moved_by: &["-g", "--gradle-user-home"],
            read_later: true,
            ..BUILD
        },
        // gradle has no command that only downloads, so a task of ours in each project resolves what there is to resolve
        warm: Warm {
            locks: &["settings.gradle", "settings.gradle.kts", "build.gradle", "build.gradle.kts"],
            reads: &[
                "settings.gradle",
                "settings.gradle.kts",
                "build.gradle",
                "build.gradle.kts",
                "*.gradle",
                "*.gradle.kts",
                "gradle.properties",
                "*.lockfile",
                "*.versions.toml",
                "verification-metadata.xml",
            ],
            adds: Some(("docker-cache.init.gradle", GRADLE_RESOLVE)),
            command: &[
                "gradle",
                "--no-daemon",
                "--console=plain",
                "--gradle-user-home={cache}",
                "--init-script=docker-cache.init.gradle",
                "-Dorg.gradle.configuration-cache=false",
                "dockerCacheWarm",
            ],
            ..WARM
        },
        ..ROW
    },
    // from the docs
    Row {
        language: "java",
        tool: "jdtls",
        in_volume: &["jdtls"],
        homes: &["~/.cache/jdtls"],
        ids: &["jdtls"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row { language: "java", tool: "kotlin", in_volume: &["kotlin"], ids: &["kotlin"], parts: ALL_CACHE, ..ROW },
    // from the docs: compilers of Kotlin/Native
    Row {
        language: "java",
        tool: "kotlin",
        in_volume: &["konan"],
        homes: &["~/.konan"],
        env: &["KONAN_DATA_DIR"],
        ids: &["konan"],
        parts: &[part("cache", Cache), part("", Install)],
        ..ROW
    },
    // checked: ivy 2.5.1; what `publishLocal` made lies in local/
    Row {
        language: "java",
        tool: "ivy",
        in_volume: &["ivy2", "ivy"],
        homes: &["~/.ivy2"],
        ids: &["ivy2", "ivy"],
        parts: &[part("cache", Cache), part(".credentials", Secret), part("", State)],
        ..ROW
    },
    // from the docs
    Row {
        language: "java",
        tool: "sbt",
        in_volume: &["sbt"],
        homes: &["~/.sbt"],
        ids: &["sbt"],
        parts: &[part("boot", Cache), part(".credentials", Secret), part("", State)],
        ..ROW
    },
    // from the docs
    Row { language: "java", tool: "sbt", homes: &["~/.cache/sbt"], parts: ALL_CACHE, ..ROW },
    // from the docs: jvm/ and arc/ hold JDKs that JAVA_HOME points to; COURSIER_CACHE names v1 itself
    Row {
        language: "java",
        tool: "coursier",
        in_volume: &["coursier"],
        homes: &["~/.cache/coursier"],
        ids: &["coursier"],
        parts: &[part("v1", Cache), part("https", Cache), part("http", Cache), part("", Install)],
        sharing: Shared,
        ..ROW
    },
    // from the docs
    Row {
        language: "java",
        tool: "bazel",
        in_volume: &["bazel"],
        homes: &["~/.cache/bazel"],
        ids: &["bazel"],
        parts: ALL_CACHE,
        ..ROW
    },
    // checked: lein 2.10.0; its packages lie in ~/.m2
    Row {
        language: "java",
        tool: "lein",
        in_volume: &["lein"],
        homes: &["~/.lein"],
        env: &["LEIN_HOME"],
        ids: &["lein", "leiningen"],
        parts: &[part("self-installs", Install), part("credentials.clj.gpg", Secret), part("", State)],
        ..ROW
    },
    // from the docs: cache/jdks holds JDKs
    Row {
        language: "java",
        tool: "jbang",
        in_volume: &["jbang"],
        homes: &["~/.jbang"],
        env: &["JBANG_DIR"],
        ids: &["jbang"],
        parts: &[
            part("cache/jars", Cache),
            part("cache/urls", Cache),
            part("cache/gits", Cache),
            part("cache/scripts", Cache),
            part("", Install),
        ],
        ..ROW
    },
    // from the docs: keys beside settings
    Row {
        language: "android",
        tool: "android-sdk",
        in_volume: &["android-sdk"],
        homes: &["~/.android"],
        env: &["ANDROID_USER_HOME", "ANDROID_SDK_HOME"],
        ids: &["android"],
        parts: &[part("adbkey", Secret), part("debug.keystore", Secret), part(".android", Secret), part("", State)],
        ..ROW
    },
    // from the docs
    Row {
        language: "android",
        tool: "android-avd",
        in_volume: &["android-avd"],
        homes: &["~/.android/avd"],
        env: &["ANDROID_AVD_HOME"],
        ids: &["android-avd"],
        ..ROW
    },
    // checked: rubygems 3.3.15; gems are libraries, only the .gem files that they came from are a cache
    Row {
        language: "ruby",
        tool: "gem",
        in_volume: &["ruby/gems"],
        homes: &["~/.local/share/gem", "~/.gem"],
        env: &["GEM_HOME"],
        ids: &["gem", "gems", "rubygems"],
        parts: &[
            part("cache", Cache),
            part("ruby/*/cache", Cache),
            part("specs", Cache),
            part("credentials", Secret),
            part("", Install),
        ],
        ..ROW
    },
    // from the docs: where newer rubygems keep specs
    Row { language: "ruby", tool: "gem", homes: &["~/.cache/gem"], parts: ALL_CACHE, ..ROW },
    // from the docs: the official image sets GEM_HOME and BUNDLE_PATH to /usr/local/bundle
    Row {
        language: "ruby",
        tool: "bundler",
        in_volume: &["ruby/bundle", "bundle"],
        homes: &["/usr/local/bundle", "vendor/bundle"],
        env: &["BUNDLE_PATH"],
        ids: &["bundle", "bundler"],
        parts: &[part("cache", Cache), part("ruby/*/cache", Cache), part("config", Secret), part("", Install)],
        // the .gem files; the gems themselves are beside them
        build: Build {
            commands: &["bundle install"],
            writes: &[&["$GEM_HOME/cache"]],
            also: &["~/.bundle/cache", "$BUNDLE_PATH/cache"],
            moved_by: &["--path", "--deployment", "BUNDLE_PATH", "BUNDLE_DEPLOYMENT"],
            offline: &["--local"],
            ..BUILD
        },
        // checked: bundler 2.3.15; unasked, it would remove all that this lock file does not name
        warm: Warm {
            locks: &["Gemfile.lock", "gems.locked"],
            reads: &["Gemfile", "gems.rb", "*.gemspec", ".ruby-version", ".tool-versions"],
            command: &["bundle", "cache", "--no-install"],
            env: &[("BUNDLE_CACHE_PATH", "{cache}/cache"), ("BUNDLE_NO_PRUNE", "true")],
            ..WARM
        },
        ..ROW
    },
    // checked: bundler 2.3.27; config may hold credentials of gem servers
    Row {
        language: "ruby",
        tool: "bundler",
        homes: &["~/.bundle"],
        env: &["BUNDLE_USER_HOME"],
        parts: &[part("cache", Cache), part("config", Secret), part("", State)],
        ..ROW
    },
    // checked: composer 2.5.5; /tmp is COMPOSER_HOME in its image
    Row {
        language: "php",
        tool: "composer",
        homes: &["~/.cache/composer", "/tmp/cache"],
        env: &["COMPOSER_CACHE_DIR"],
        ids: &["composer"],
        parts: ALL_CACHE,
        sharing: Shared,
        ..ROW
    },
    // checked: composer 2.5.5; COMPOSER_HOME, and a cache put right into it
    Row {
        language: "php",
        tool: "composer",
        in_volume: &["composer"],
        homes: &["~/.composer", "~/.config/composer"],
        env: &["COMPOSER_HOME"],
        parts: &[
            part("cache", Cache),
            part("files", Cache),
            part("repo", Cache),
            part("vcs", Cache),
            part("auth.json", Secret),
            part("vendor", Install),
            part("", State),
        ],
        sharing: Shared,
        // a `cache` in ~/.composer is taken whether or not there are XDG directories
        build: Build {
            commands: &["composer install", "composer update", "composer require", "composer create-project"],
            writes: &[&["$COMPOSER_CACHE_DIR", "$COMPOSER_HOME/cache", "~/.composer/cache"]],
            also: &["~/.cache/composer", "~/.config/composer/cache"],
            defeated_by: &["--no-cache"],
            cleaned_by: &["composer clear-cache", "composer clearcache", "composer cc"],
            ..BUILD
        },
        warm: Warm {
            locks: &["composer.lock"],
            reads: &["composer.json"],
            // what PHP the image has is for the real install to judge
            command: &[
                "composer",
                "install",
                "--no-interaction",
                "--no-scripts",
                "--no-plugins",
                "--no-autoloader",
                "--ignore-platform-reqs",
            ],
            ..WARM
        },
        ..ROW
    },
    // from the docs
    Row { language: "php", tool: "pear", homes: &["/tmp/pear"], ids: &["pear", "pecl"], parts: ALL_SCRATCH, ..ROW },
    // from the docs: builds refer to packages by path
    Row {
        language: "dotnet",
        tool: "nuget",
        in_volume: &["nuget"],
        homes: &["~/.nuget/packages"],
        env: &["NUGET_PACKAGES"],
        ids: &["nuget", "nuget-packages"],
        parts: ALL_CACHE,
        warm: Warm {
            locks: &["packages.lock.json"],
            reads: &["*.csproj", "*.fsproj", "*.vbproj", "Directory.*.props", "NuGet.Config", "nuget.config"],
            command: &["dotnet", "restore", "--locked-mode"],
            ..WARM
        },
        ..ROW
    },
    // from the docs
    Row {
        language: "dotnet",
        tool: "nuget",
        in_volume: &["nuget-http"],
        homes: &[
            "~/.local/share/NuGet/http-cache",
            "~/.local/share/NuGet/v3-cache",
            "~/.local/share/NuGet/plugins-cache",
        ],
        env: &["NUGET_HTTP_CACHE_PATH", "NUGET_PLUGINS_CACHE_PATH"],
        ids: &["nuget-http"],
        parts: ALL_CACHE,
        sharing: Shared,
        // packages/ is read by later steps, also with `--no-restore`; the downloads are not
        build: Build {
            commands: &["dotnet restore", "dotnet build", "dotnet publish", "dotnet test", "dotnet run", "dotnet pack"],
            writes: &[&[
                "$NUGET_HTTP_CACHE_PATH",
                "$XDG_DATA_HOME/NuGet/http-cache",
                "~/.local/share/NuGet/http-cache",
            ]],
            also: &["$NUGET_PACKAGES", "~/.nuget/packages", "~/.local/share/NuGet/v3-cache"],
            moved_by: &["--packages"],
            offline: &["--no-restore", "--no-build"],
            defeated_by: &["--no-cache", "--no-http-cache"],
            cleaned_by: &["dotnet nuget locals"],
            ..BUILD
        },
        ..ROW
    },
    // from the docs: NuGet.Config holds the passwords of package sources
    Row { language: "dotnet", tool: "nuget", homes: &["~/.nuget/NuGet"], parts: ALL_SECRET, ..ROW },
    // checked: hex 2.0.6; without the registry's answers, in `cache.ets`, nothing installs offline
    Row {
        language: "elixir",
        tool: "hex",
        in_volume: &["hex"],
        homes: &["~/.hex"],
        env: &["HEX_HOME"],
        ids: &["hex"],
        parts: &[part("packages", Cache), part("cache.ets", Cache), part("hex.config", Secret), part("", State)],
        build: Build {
            commands: &["mix deps.get"],
            writes: &[&["$HEX_HOME/packages", "~/.hex/packages"]],
            also: &["~/.cache/hex"],
            ..BUILD
        },
        warm: Warm {
            locks: &["mix.lock"],
            reads: &["mix.exs"],
            command: &["mix", "deps.get", "--check-locked"],
            ..WARM
        },
        ..ROW
    },
    // checked: mix 1.14.0; archives and escripts
    Row {
        language: "elixir",
        tool: "mix",
        in_volume: &["mix"],
        homes: &["~/.mix"],
        env: &["MIX_HOME"],
        ids: &["mix"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // checked: rebar3 3.19.0; bin/ and lib/ are rebar3 itself after `rebar3 local install`
    Row {
        language: "elixir",
        tool: "rebar3",
        in_volume: &["rebar3"],
        homes: &["~/.cache/rebar3"],
        env: &["REBAR_CACHE_DIR"],
        ids: &["rebar3", "rebar"],
        parts: &[part("hex", Cache), part("", Install)],
        build: Build {
            commands: &["rebar3 compile", "rebar3 get-deps", "rebar3 release", "rebar3 as"],
            writes: &[&["$REBAR_CACHE_DIR/hex", "~/.cache/rebar3/hex"]],
            ..BUILD
        },
        ..ROW
    },
    // checked: cabal 3.4.1; the store holds the libraries that programs were linked to, config a password
    Row {
        language: "haskell",
        tool: "cabal",
        in_volume: &["cabal"],
        homes: &["~/.cabal", "~/.cache/cabal"],
        env: &["CABAL_DIR"],
        ids: &["cabal"],
        parts: &[part("packages", Cache), part("logs", Scratch), part("config", Secret), part("", Install)],
        ..ROW
    },
    // from the docs
    Row { language: "haskell", tool: "cabal", homes: &["~/.local/state/cabal"], parts: ALL_INSTALL, ..ROW },
    // checked: stack 2.7.5
    Row {
        language: "haskell",
        tool: "stack",
        in_volume: &["stack"],
        homes: &["~/.stack"],
        env: &["STACK_ROOT"],
        ids: &["haskell-stack", "stack-root"],
        parts: &[part("pantry", Cache), part("upload", Secret), part("", Install)],
        // settings lie in there too, so no place is proposed
        build: Build {
            commands: &["stack build", "stack install", "stack test"],
            also: &["$STACK_ROOT", "~/.stack"],
            read_later: true,
            ..BUILD
        },
        ..ROW
    },
    // from the docs
    Row {
        language: "haskell",
        tool: "ghcup",
        in_volume: &["ghcup"],
        homes: &["~/.ghcup"],
        ids: &["ghcup"],
        parts: &[part("cache", Cache), part("tmp", Scratch), part("", Install)],
        ..ROW
    },
    // from the docs
    Row {
        language: "swift",
        tool: "swiftpm",
        in_volume: &["swiftpm"],
        homes: &["~/.cache/org.swift.swiftpm"],
        ids: &["swiftpm"],
        parts: ALL_CACHE,
        build: Build {
            commands: &["swift build", "swift package resolve"],
            writes: &[&["$XDG_CACHE_HOME/org.swift.swiftpm", "~/.cache/org.swift.swiftpm"]],
            moved_by: &["--cache-path"],
            ..BUILD
        },
        ..ROW
    },
    // from the docs
    Row { language: "swift", tool: "swiftpm", homes: &[".build"], ids: &["swift-build"], parts: ALL_CACHE, ..ROW },
    // from the docs
    Row {
        language: "dart",
        tool: "pub",
        in_volume: &["pub-cache"],
        homes: &["~/.pub-cache"],
        env: &["PUB_CACHE"],
        ids: &["pub-cache", "pub"],
        parts: &[
            part("hosted", Cache),
            part("hosted-hashes", Cache),
            part("git", Cache),
            part("_temp", Scratch),
            part("credentials.json", Secret),
            part("", Install),
        ],
        sharing: Shared,
        build: Build {
            commands: &["dart pub get", "flutter pub get"],
            writes: &[&["$PUB_CACHE", "~/.pub-cache"]],
            read_later: true,
            ..BUILD
        },
        warm: Warm {
            locks: &["pubspec.lock"],
            reads: &["pubspec.yaml"],
            command: &["dart", "pub", "get", "--enforce-lockfile"],
            ..WARM
        },
        ..ROW
    },
    // checked: ccache 4.7.5; a ccache.conf in there holds limits, which `ccache -M` sets again
    Row {
        language: "cpp",
        tool: "ccache",
        in_volume: &["ccache"],
        homes: &["~/.cache/ccache", "~/.ccache"],
        env: &["CCACHE_DIR"],
        ids: &["ccache"],
        parts: ALL_CACHE,
        sharing: Shared,
        unit: File,
        ..ROW
    },
    // checked: conan 2.34.0; .conan.db holds tokens; what `conan create` made lies in p/ too
    Row {
        language: "cpp",
        tool: "conan",
        in_volume: &["conan2", "conan"],
        homes: &["~/.conan2"],
        env: &["CONAN_HOME"],
        ids: &["conan2", "conan"],
        parts: &[part("p", Cache), part(".conan.db", Secret), part("credentials.json", Secret), part("", State)],
        ..ROW
    },
    // from the docs: conan 1; CONAN_USER_HOME names the directory above it
    Row {
        language: "cpp",
        tool: "conan",
        homes: &["~/.conan"],
        parts: &[part("data", Cache), part(".conan.db", Secret), part("", State)],
        ..ROW
    },
    // from the docs
    Row {
        language: "cpp",
        tool: "vcpkg",
        in_volume: &["vcpkg"],
        homes: &["~/.cache/vcpkg"],
        env: &["VCPKG_DEFAULT_BINARY_CACHE"],
        ids: &["vcpkg"],
        parts: ALL_CACHE,
        sharing: Shared,
        ..ROW
    },
    // from the docs
    Row {
        language: "cpp",
        tool: "vcpkg",
        in_volume: &["vcpkg-downloads"],
        homes: &["/vcpkg/downloads", "/opt/vcpkg/downloads"],
        env: &["VCPKG_DOWNLOADS"],
        ids: &["vcpkg-downloads"],
        parts: ALL_CACHE,
        sharing: Shared,
        ..ROW
    },
    // checked: R 4.2.2
    Row {
        language: "r",
        tool: "r",
        in_volume: &["r/library"],
        homes: &["~/R", "/usr/local/lib/R/site-library"],
        env: &["R_LIBS_USER", "R_LIBS_SITE"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // from the docs: TMPDIR of R; it must exist
    Row { language: "r", tool: "r", in_volume: &["r/tmp"], parts: ALL_SCRATCH, ..ROW },
    // from the docs: projects link into cache/ and library/, and do not heal by themselves
    Row {
        language: "r",
        tool: "renv",
        in_volume: &["renv"],
        homes: &["~/.cache/R/renv"],
        env: &["RENV_PATHS_ROOT"],
        ids: &["renv"],
        parts: &[part("source", Cache), part("binary", Cache), part("", Install)],
        ..ROW
    },
    // from the docs
    Row {
        language: "r",
        tool: "pak",
        in_volume: &["pkgcache"],
        homes: &["~/.cache/R/pkgcache"],
        env: &["R_PKG_CACHE_DIR"],
        ids: &["pak", "pkgcache"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs: environments refer to packages/ and artifacts/
    Row {
        language: "julia",
        tool: "julia",
        in_volume: &["julia"],
        homes: &["~/.julia"],
        env: &["JULIA_DEPOT_PATH"],
        ids: &["julia"],
        parts: &[
            part("compiled", Cache),
            part("clones", Cache),
            part("packages", Install),
            part("artifacts", Install),
            part("servers", Secret),
            part("", State),
        ],
        ..ROW
    },
    // checked: cpanm 1.7046
    Row {
        language: "perl",
        tool: "cpanm",
        in_volume: &["cpanm"],
        homes: &["~/.cpanm"],
        env: &["PERL_CPANM_HOME"],
        ids: &["cpanm", "cpanminus"],
        parts: ALL_CACHE,
        ..ROW
    },
    // checked: luarocks 3.8.0
    Row {
        language: "lua",
        tool: "luarocks",
        in_volume: &["luarocks"],
        homes: &["~/.cache/luarocks"],
        ids: &["luarocks"],
        parts: ALL_CACHE,
        ..ROW
    },
    // checked: opam 2.1.2
    Row {
        language: "ocaml",
        tool: "opam",
        in_volume: &["opam"],
        homes: &["~/.opam"],
        env: &["OPAMROOT"],
        ids: &["opam"],
        parts: &[part("download-cache", Cache), part("", Install)],
        build: Build {
            commands: &["opam install"],
            writes: &[&["$OPAMROOT/download-cache", "~/.opam/download-cache"]],
            ..BUILD
        },
        ..ROW
    },
    // checked: zig 0.17.1
    Row {
        language: "zig",
        tool: "zig",
        in_volume: &["zig"],
        homes: &["~/.cache/zig", ".zig-cache"],
        env: &["ZIG_GLOBAL_CACHE_DIR"],
        ids: &["zig"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row {
        language: "nim",
        tool: "nimble",
        in_volume: &["nimble"],
        homes: &["~/.nimble"],
        env: &["NIMBLE_DIR"],
        ids: &["nimble"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // from the docs
    Row { language: "nim", tool: "nim", homes: &["~/.cache/nim"], ids: &["nimcache"], parts: ALL_CACHE, ..ROW },
    // from the docs
    Row { language: "mojo", tool: "mojo", in_volume: &["mojo"], ids: &["mojo"], parts: ALL_INSTALL, ..ROW },
    // checked: huggingface-hub 2.4.0
    Row {
        language: "ml",
        tool: "huggingface",
        in_volume: &["huggingface"],
        homes: &["~/.cache/huggingface"],
        env: &["HF_HOME"],
        ids: &["huggingface", "hf"],
        parts: &[
            part("hub", Cache),
            part("datasets", Cache),
            part("modules", Cache),
            part("xet", Cache),
            part("assets", Cache),
            part("token", Secret),
            part("stored_tokens", Secret),
            part("", State),
        ],
        sharing: Shared,
        ..ROW
    },
    // from the docs
    Row {
        language: "ml",
        tool: "torch",
        in_volume: &["torch"],
        homes: &["~/.cache/torch"],
        env: &["TORCH_HOME"],
        ids: &["torch"],
        parts: &[part("hub", Cache), part("kernels", Cache), part("", State)],
        sharing: Shared,
        ..ROW
    },
    // from the docs: gigabytes, and models made here come from no server
    Row {
        language: "ml",
        tool: "ollama",
        in_volume: &["ollama"],
        homes: &["~/.ollama/models", "/usr/share/ollama/.ollama/models"],
        env: &["OLLAMA_MODELS"],
        ids: &["ollama"],
        ..ROW
    },
    // from the docs: the key that the machine signs in with
    Row { language: "ml", tool: "ollama", homes: &["~/.ollama"], parts: ALL_SECRET, ..ROW },
    // from the docs
    Row {
        language: "tools",
        tool: "mise",
        in_volume: &["mise"],
        homes: &["~/.local/share/mise"],
        env: &["MISE_DATA_DIR"],
        parts: ALL_INSTALL,
        ..ROW
    },
    // from the docs
    Row {
        language: "tools",
        tool: "mise",
        in_volume: &["mise-cache"],
        homes: &["~/.cache/mise"],
        env: &["MISE_CACHE_DIR"],
        ids: &["mise"],
        parts: ALL_CACHE,
        ..ROW
    },
    // checked: terraform 1.11.4; the directory must exist; projects link into it until `terraform init`
    Row {
        language: "tools",
        tool: "terraform",
        in_volume: &["terraform"],
        homes: &["~/.terraform.d/plugin-cache"],
        env: &["TF_PLUGIN_CACHE_DIR"],
        ids: &["terraform"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row {
        language: "tools",
        tool: "terraform",
        homes: &["~/.terraform.d"],
        parts: &[part("credentials.tfrc.json", Secret), part("", State)],
        ..ROW
    },
    // from the docs
    Row {
        language: "tools",
        tool: "helm",
        in_volume: &["helm"],
        homes: &["~/.cache/helm"],
        env: &["HELM_CACHE_HOME"],
        ids: &["helm"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row {
        language: "tools",
        tool: "trivy",
        in_volume: &["trivy"],
        homes: &["~/.cache/trivy"],
        env: &["TRIVY_CACHE_DIR"],
        ids: &["trivy"],
        parts: ALL_CACHE,
        ..ROW
    },
    // checked: pre-commit 4.7.0
    Row {
        language: "tools",
        tool: "pre-commit",
        in_volume: &["pre-commit"],
        homes: &["~/.cache/pre-commit"],
        env: &["PRE_COMMIT_HOME"],
        ids: &["pre-commit", "precommit"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row {
        language: "tools",
        tool: "codegraph",
        in_volume: &["codegraph"],
        ids: &["codegraph"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs: config.json holds registry passwords, contexts/ keys
    Row {
        language: "tools",
        tool: "docker",
        in_volume: &["docker"],
        homes: &["~/.docker"],
        env: &["DOCKER_CONFIG"],
        parts: &[
            part("cli-plugins", Install),
            part("config.json", Secret),
            part("contexts", Secret),
            part("trust", Secret),
            part("", State),
        ],
        ..ROW
    },
    // checked: mkcert 1.4.4, its private key; and what direnv trusts
    Row {
        language: "tools",
        tool: "dev-tools",
        in_volume: &["dev-tools"],
        homes: &["~/.local/share/mkcert"],
        env: &["CAROOT"],
        parts: &[part("direnv-allow", State), part("", Secret)],
        ..ROW
    },
    // from the docs
    Row {
        language: "tools",
        tool: "1password",
        in_volume: &["1password"],
        homes: &["~/.config/op"],
        env: &["OP_CONFIG_DIR"],
        parts: ALL_SECRET,
        ..ROW
    },
    // checked: apt 2.6.1
    Row {
        language: "system",
        tool: "apt",
        homes: &["/var/cache/apt"],
        ids: &["apt", "apt-cache", "apt-archives"],
        parts: ALL_CACHE,
        unit: File,
        // docker-clean in the images of Debian and Ubuntu empties it after each install
        build: Build {
            commands: &[
                "apt-get install",
                "apt-get upgrade",
                "apt-get dist-upgrade",
                "apt-get build-dep",
                "apt install",
                "apt upgrade",
                "apt full-upgrade",
            ],
            // beside the lists lies what says which packages were installed by hand, and that is the image's
            writes: &[&["/var/cache/apt"], &["/var/lib/apt/lists"]],
            cleaned_by: &["apt-get clean", "apt clean", "apt-get autoclean", "apt autoclean", "apt-get distclean"],
            ..BUILD
        },
        ..ROW
    },
    // checked: apt 2.6.1; extended_states tells which packages were installed by hand
    Row {
        language: "system",
        tool: "apt",
        homes: &["/var/lib/apt"],
        ids: &["apt-lib", "apt-lists", "var-lib-apt"],
        parts: &[part("lists", Cache), part("", State)],
        ..ROW
    },
    // from the docs: answers to install questions, some of them passwords
    Row { language: "system", tool: "debconf", homes: &["/var/cache/debconf"], parts: ALL_SECRET, ..ROW },
    // from the docs: filled only where /etc/apk/cache leads to it
    Row {
        language: "system",
        tool: "apk",
        in_volume: &["apk"],
        homes: &["/var/cache/apk", "/etc/apk/cache"],
        ids: &["apk"],
        parts: ALL_CACHE,
        unit: File,
        build: Build {
            commands: &["apk add", "apk upgrade"],
            writes: &[&["/etc/apk/cache"]],
            also: &["/var/cache/apk"],
            moved_by: &["--cache-dir", "--root", "-p"],
            offline: &["--no-network"],
            defeated_by: &["--no-cache"],
            cleaned_by: &["apk cache clean"],
            ..BUILD
        },
        ..ROW
    },
    // checked: dnf 4.14.0; dnf5 from the docs
    Row {
        language: "system",
        tool: "dnf",
        in_volume: &["dnf"],
        homes: &["/var/cache/dnf", "/var/cache/libdnf5", "/var/cache/yum"],
        ids: &["dnf", "dnf5", "libdnf5", "microdnf", "yum"],
        parts: ALL_CACHE,
        // which of the three, the release tells; without keepcache the packages are removed after each install
        build: Build {
            commands: &[
                "dnf install",
                "dnf update",
                "dnf upgrade",
                "dnf groupinstall",
                "dnf5 install",
                "yum install",
                "yum update",
                "yum groupinstall",
                "microdnf install",
                "microdnf update",
            ],
            also: &["/var/cache/dnf", "/var/cache/libdnf5", "/var/cache/yum"],
            moved_by: &["--installroot", "--setopt=cachedir"],
            cleaned_by: &["dnf clean", "dnf5 clean", "yum clean", "microdnf clean"],
            ..BUILD
        },
        ..ROW
    },
    // checked: pacman 6.0.2
    Row {
        language: "system",
        tool: "pacman",
        in_volume: &["pacman"],
        homes: &["/var/cache/pacman/pkg"],
        ids: &["pacman"],
        parts: ALL_CACHE,
        unit: File,
        // a hook in the image of Arch empties it after each install
        build: Build {
            commands: &["pacman -S", "pacman -Sy", "pacman -Syu", "pacman -Syyu", "pacman -Su"],
            writes: &[&["/var/cache/pacman/pkg"]],
            moved_by: &["--cachedir", "--root"],
            cleaned_by: &["pacman -Sc", "pacman -Scc"],
            ..BUILD
        },
        ..ROW
    },
    // checked: zypper 1.14.42
    Row {
        language: "system",
        tool: "zypper",
        in_volume: &["zypp"],
        homes: &["/var/cache/zypp"],
        ids: &["zypp", "zypper"],
        parts: ALL_CACHE,
        build: Build {
            commands: &["zypper install", "zypper in", "zypper update"],
            writes: &[&["/var/cache/zypp"]],
            moved_by: &["--root", "--cache-dir"],
            cleaned_by: &["zypper clean", "zypper cc"],
            ..BUILD
        },
        ..ROW
    },
    // from the docs
    Row {
        language: "system",
        tool: "brew",
        in_volume: &["homebrew"],
        homes: &["~/.cache/Homebrew"],
        env: &["HOMEBREW_CACHE"],
        ids: &["homebrew", "brew"],
        parts: ALL_CACHE,
        ..ROW
    },
    // from the docs
    Row { language: "system", tool: "nix", homes: &["/nix"], parts: ALL_INSTALL, ..ROW },
    // from the docs
    Row { language: "system", tool: "nix", in_volume: &["nix"], homes: &["~/.cache/nix"], parts: ALL_CACHE, ..ROW },
];

/// Other names for a language, as a user may say them to `--lang`.
const LANGUAGE_ALIASES: &[(&str, &str)] = &[
    ("py", "python"),
    ("python3", "python"),
    ("js", "node"),
    ("ts", "node"),
    ("nodejs", "node"),
    ("javascript", "node"),
    ("typescript", "node"),
    ("rs", "rust"),
    ("golang", "go"),
    ("jvm", "java"),
    ("kotlin", "java"),
    ("scala", "java"),
    ("clojure", "java"),
    ("groovy", "java"),
    ("rb", "ruby"),
    (".net", "dotnet"),
    ("net", "dotnet"),
    ("csharp", "dotnet"),
    ("c#", "dotnet"),
    ("fsharp", "dotnet"),
    ("f#", "dotnet"),
    ("erlang", "elixir"),
    ("beam", "elixir"),
    ("hs", "haskell"),
    ("flutter", "dart"),
    ("c", "cpp"),
    ("c++", "cpp"),
    ("cxx", "cpp"),
    ("jl", "julia"),
    ("ai", "ml"),
    ("os", "system"),
    ("debian", "system"),
    ("ubuntu", "system"),
    ("alpine", "system"),
    ("fedora", "system"),
    ("linux", "system"),
    ("infra", "tools"),
];

/// Other names for a tool, as a user may say them to `--tool`.
const TOOL_ALIASES: &[(&str, &str)] = &[
    ("pip3", "pip"),
    ("npx", "npm"),
    ("mamba", "conda"),
    ("micromamba", "conda"),
    ("rattler", "pixi"),
    ("turborepo", "turbo"),
    ("nextjs", "next"),
    ("golang", "go"),
    ("golangci", "golangci-lint"),
    ("m2", "maven"),
    ("mvn", "maven"),
    ("leiningen", "lein"),
    ("gems", "gem"),
    ("rubygems", "gem"),
    ("bundle", "bundler"),
    ("pecl", "pear"),
    ("cpanminus", "cpanm"),
    ("hf", "huggingface"),
    ("op", "1password"),
    ("mkcert", "dev-tools"),
    ("apt-get", "apt"),
    ("yum", "dnf"),
    ("dnf5", "dnf"),
    ("microdnf", "dnf"),
    ("homebrew", "brew"),
];

/// Ids that name a cache without the word. Not among them: `maven-repository` and the like, which servers are named too.
const SPEAKING_IDS: &[&str] = &[
    "apt-lib",
    "apt-lists",
    "cargo-git",
    "cargo-registry",
    "cargo-target",
    "conda-pkgs",
    "go-build",
    "go-mod",
    "pnpm-store",
];

/// One directory of the catalogue below a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Relative to the mount, `""` for the mount itself; `*` is any one name. The deepest one that holds a file decides.
    /// If it ends in `/`, the directory itself goes with what is in it, and is not kept for the tool.
    pub path: String,
    pub row: &'static Row,
    pub class: Class,
}

/// Returns everything that the catalogue knows in a tree that is mounted at the absolute path `mount`, sorted by path.
/// What none of them holds is unknown, and to be kept.
pub fn known_below(mount: &str) -> Vec<Known> {
    let Some(mount) = absolute(mount) else { return Vec::new() };
    let (holder, below) = relate(&mount);
    let mut known: Vec<Known> =
        holder.map(|place| Known { path: String::new(), row: place.row, class: place.class }).into_iter().collect();
    known.extend(below.into_iter().map(|(path, place)| Known {
        path: path.join("/"),
        row: place.row,
        class: place.class,
    }));
    known.sort_by(|a, b| a.path.cmp(&b.path));
    known
}

/// Returns what the catalogue knows in a cache mount. Of one that only its id tells, that is all of it.
pub fn known_in_mount(id: &str, target: &str) -> Vec<Known> {
    let mut known = known_below(target);
    let row = for_mount(Some(id), target).filter(|_| known.is_empty());
    known.extend(row.map(|(row, class)| Known { path: String::new(), row, class }));
    known
}

/// Names of files that hold credentials, where a tool's own directory has them; a `*` at one of the ends stands for
/// anything. An export leaves them out; a clear, and an import that replaces, leave them there.
pub const SECRETS: &[&str] = &[
    "credentials*",
    "auth.json",
    "settings.xml",
    "settings-security.xml",
    "gradle.properties",
    ".npmrc",
    ".yarnrc.yml",
    ".pypirc",
    ".netrc",
    "token",
    "*.pem",
    "hosts.yml",
    ".git-credentials",
    "id_ecdsa",
    "id_rsa",
    "id_ed25519",
];

/// Returns [`SECRETS`] as jobs take them.
pub fn secrets() -> Vec<String> {
    SECRETS.iter().map(ToString::to_string).collect()
}

/// Returns the one of `known` that decides about `path` (relative to the same mount): the deepest at or above it.
pub fn deepest<'a>(known: &'a [Known], path: &str) -> Option<&'a Known> {
    let path: Vec<&str> = names(path).collect();
    known
        .iter()
        .filter(|_| !path.contains(&".."))
        .filter(|known| {
            let at: Vec<&str> = names(&known.path).collect();
            at.len() <= path.len() && fits(&at, &path)
        })
        .max_by_key(|known| (names(&known.path).count(), !known.path.contains('*')))
}

/// Where a tool keeps a row's directory, in a tree that is mounted somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Absolute: at the mount, below it, or around it.
    pub directory: String,
    /// The variable that sends the tool there, if it does not go by itself.
    pub by: Option<&'static str>,
}

/// Returns where a row's directory is if `mount` is to hold it or a part of it: where a variable of `env` says, where
/// the tool looks unasked, else where cache volumes have it. `None` if the mount is not for this tool.
pub fn spot(row: &'static Row, mount: &str, env: impl Fn(&str) -> Option<String>) -> Option<Spot> {
    let tree = absolute(mount)?;
    let spot = |at: Vec<&str>, by| Spot { directory: format!("/{}", at.join("/")), by };
    for value in row.env.iter().filter_map(|name| env(name)) {
        if let Some(at) = absolute(&value).filter(|at| fits(at, &tree)) {
            return Some(spot(at, None));
        }
    }
    let unasked = PLACES.iter().filter(|place| std::ptr::eq(place.row, row) && fits(&place.at, &tree));
    let in_home = unasked.filter(|place| place.at[0] != "cache").min_by_key(|place| place.at.len());
    // A variable that leads elsewhere is stronger than a home.
    let led_away = row.env.iter().any(|name| env(name).is_some_and(|value| value.starts_with('/')));
    if let Some(place) = in_home.filter(|_| !led_away) {
        let at = place.at.iter().enumerate().map(|(at, name)| tree.get(at).unwrap_or(name));
        return at.clone().all(|name| *name != "*").then(|| spot(at.copied().collect(), None));
    }
    let by = row.env.first().copied();
    let in_cache = row.in_volume.iter().map(|path| ["cache"].into_iter().chain(names(path)).collect::<Vec<_>>());
    let in_cache = in_cache.into_iter().find(|at| fits(at, &tree));
    let elsewhere = tree.last().filter(|name| is_cache_root(name)).and_then(|_| row.in_volume.first());
    in_cache.or_else(|| elsewhere.map(|path| tree.iter().copied().chain(names(path)).collect())).map(|at| spot(at, by))
}

/// Returns where a tool's directory of one tree belongs in another: of `path` in a tree that was mounted at `base`, the
/// directory that goes and where it goes in a tree that is mounted at `mount`, below their roots. That is where programs
/// have seen it, if that is in the other tree, else the tool's own place there. `row` is the tool's if the path tells
/// none. `None` if it has no place there.
pub fn moved(row: Option<&'static Row>, base: &str, path: &str, mount: &str) -> Option<(String, String)> {
    let row = deepest(&known_below(base), path).map(|known| known.row).or(row);
    let (base, mount) = (seen(&absolute(base)?), seen(&absolute(mount)?));
    if let Some(below) = base.strip_prefix(&mount[..]) {
        return Some((String::new(), below.join("/")));
    }
    let row = row?;
    let whole: Vec<&str> = base.iter().copied().chain(names(path)).collect();
    let top = top(row, &whole).unwrap_or(base.len());
    let new_top = match self::top(row, &mount) {
        Some(top) => format!("/{}", mount[..top].join("/")),
        None => spot(row, &format!("/{}", mount.join("/")), |_| None)?.directory,
    };
    let new_top: Vec<&str> = names(&new_top).collect();
    // A tree may begin below the tool's directory: only what is in both goes.
    let depth = base.len().saturating_sub(top).max(mount.len().saturating_sub(new_top.len()));
    let to = [&new_top, whole.get(top..top + depth)?].concat();
    let (from, to) = (&whole[base.len()..top + depth], to.strip_prefix(&mount[..])?);
    (!from.contains(&"*")).then(|| (from.join("/"), to.join("/")))
}

/// Returns how many names of a path lead to the row's directory, if it is on the path.
fn top(row: &Row, path: &[&str]) -> Option<usize> {
    let in_volume = row.in_volume.iter().map(|top| ["cache"].into_iter().chain(names(top)).collect::<Vec<_>>());
    let in_volume = in_volume.filter(|top| path.starts_with(top)).map(|top| top.len());
    let homes = row.homes.iter().map(|home| names(home.trim_start_matches('~')).collect::<Vec<_>>());
    let ends = homes.flat_map(|home| (home.len()..=path.len()).filter(move |end| path[end - home.len()..*end] == home));
    in_volume.chain(ends).max()
}

/// Makes a directory a place of its own, with the row and class of what it lies in; a directory that is known already is
/// left as it is. Returns false if nothing is known of where it lies.
pub fn single_out(known: &mut Vec<Known>, path: &str) -> bool {
    let Some(Known { row, class, .. }) = deepest(known, path).filter(|_| !path.contains('*')).cloned() else {
        return false;
    };
    let at: Vec<&str> = names(path).collect();
    if !is_known(known, &at) {
        unhide(known, path);
        known.push(Known { path: format!("{}/", at.join("/")), row, class });
    }
    true
}

/// Makes what is known by a `*` known by the names of this path as well: a rule about the path would hide it.
pub fn unhide(known: &mut Vec<Known>, path: &str) {
    let at: Vec<&str> = names(path).collect();
    let mut told: Vec<Known> = Vec::new();
    for pattern in known.iter() {
        let its: Vec<&str> = names(&pattern.path).collect();
        let stars = (0..its.len().min(at.len())).filter(|star| its[*star] == "*" && fits(&its[..=*star], &at));
        for star in stars {
            let path = [&at[..=star], &its[star + 1..]].concat();
            if path != at && !is_known(known, &path) && !is_known(&told, &path) {
                told.push(Known { path: path.join("/"), ..pattern.clone() });
            }
        }
    }
    known.extend(told);
}

fn is_known(known: &[Known], path: &[&str]) -> bool {
    known.iter().any(|known| names(&known.path).eq(path.iter().copied()))
}

/// Returns where a volume that no container mounts would be mounted, going by its name alone: `myproj_pip-cache` at
/// `/cache/pip`, `containers-cargo-registry` at `/cache/cargo/registry`, `project-cache` at `/cache`. `None` if the name
/// neither ends in what says cache nor in one of the ids that say it by themselves: `pip-cache-db` is a database's. Only a
/// version or architecture may follow the word, or the tool: `pip-cache-3.12`, `cache-npm`.
pub fn volume_root(name: &str) -> Option<String> {
    let words = words(name);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let labels = labels();
    let longest = |fits: &dyn Fn(&[String]) -> bool| {
        labels.iter().filter(|label| fits(&label.words)).max_by_key(|label| label.words.len()).map(|label| &label.root)
    };
    for (at, word) in words.iter().enumerate() {
        let rest = &words[at + 1..];
        let is_last = rest.iter().all(|word| is_version(word));
        let root = match *word {
            "cache" | "caches" if is_last => {
                longest(&|label| ends_with(&words[..at], label) || ends_with(&words[..=at], label))
                    .cloned()
                    .or_else(|| Some("/cache".to_owned()))
            }
            "cache" | "caches" => longest(&|label| label == rest).cloned(),
            // `ccache`, and `npmcache` for `npm-cache`
            _ => word.strip_suffix("cache").filter(|_| is_last).and_then(|rest| {
                longest(&|label| label.len() == 1 && (label[0] == *word || label[0] == rest)).cloned()
            }),
        };
        if root.is_some() {
            return root;
        }
    }
    longest(&|label| ends_with(&words, label) && SPEAKING_IDS.contains(&label.join("-").as_str())).cloned()
}

/// Returns which tool a BuildKit cache mount belongs to, and the class of the mounted directory itself. A mount on a
/// mixed directory has the class of the rest of it; [`known_below`] tells more.
///
/// The target decides first, then the id, then what the target's last name says. `…/target` is cargo's by convention,
/// unless the id says otherwise: no other tool's target directory is commonly mounted. A directory above those of
/// several tools belongs to none of them. BuildKit itself may drop any cache mount at any time, so the class guards what
/// an export carries rather than what a build may lose.
pub fn for_mount(id: Option<&str>, target: &str) -> Option<(&'static Row, Class)> {
    let target: Vec<&str> = names(target).collect();
    let (holder, below) = if target.contains(&"..") { (None, Vec::new()) } else { relate(&target) };
    if let Some(place) = holder {
        return Some((place.row, place.class));
    }
    let by_id = id.and_then(|id| named(&words(id)));
    if !below.is_empty() {
        let row = by_id.filter(|row| below.iter().all(|(_, place)| place.row.tool == row.tool))?;
        return Some((row, State));
    }
    let last = target.last().copied().unwrap_or_default();
    let with_class = |row: &'static Row| {
        let said = |name: &str| last == name || id.is_some_and(|id| words(id).iter().any(|word| word == name));
        let part = row.parts.iter().find(|part| names(part.path).next_back().is_some_and(said));
        (row, part.map_or_else(|| row.rest(), |part| part.class))
    };
    by_id
        .map(with_class)
        .or_else(|| in_project(&target, |_| true).map(|place| (place.row, place.class)))
        .or_else(|| named(&words(last)).map(with_class))
}

/// Tells whether a volume mounted at `path` is a cache, or has one in it: `/cache` and below, a directory called cache,
/// and what the catalogue knows to be one or to hold one. `/root` and `/usr/local` hold more than caches.
pub fn is_cache_path(path: &str) -> bool {
    let Some(path) = absolute(path) else { return false };
    let (holder, below) = relate(&path);
    match holder {
        _ if path.first() == Some(&"cache") => true,
        Some(place) => place.class.is_deletable() || below.iter().any(|(_, place)| place.class.is_deletable()),
        None => path.last().is_some_and(|name| is_cache_root(name)),
    }
}

/// Returns true for `/cache` and what stands for it: any tool may have a directory there, with all that it keeps.
pub fn is_for_all(path: &str) -> bool {
    absolute(path).is_some_and(|path| seen(&path) == ["cache"])
}

/// Returns every language of the table, in its order.
pub fn languages() -> impl Iterator<Item = &'static str> {
    distinct(|row| row.language)
}

/// Returns every tool of the table, in its order.
pub fn tools() -> impl Iterator<Item = &'static str> {
    distinct(|row| row.tool)
}

/// Returns the table's name for a language that a user names, such as `node` for `js`.
pub fn language(name: &str) -> Option<&'static str> {
    find_name(name, languages(), LANGUAGE_ALIASES)
}

/// Returns the table's name for a tool that a user names, such as `apt` for `apt-get`.
pub fn tool(name: &str) -> Option<&'static str> {
    find_name(name, tools(), TOOL_ALIASES)
}

/// A path of a row, with its homes spelled out.
#[derive(Debug)]
struct Place {
    at: Vec<&'static str>,
    row: &'static Row,
    class: Class,
}

/// Where things lie from the root of the file system.
static PLACES: LazyLock<Vec<Place>> = LazyLock::new(|| {
    places(|row| {
        let volumes = row.in_volume.iter().map(|path| ["cache"].into_iter().chain(names(path)).collect());
        let homes = row.homes.iter().flat_map(|home| match home.strip_prefix('~') {
            Some(below) => vec![
                ["root"].into_iter().chain(names(below)).collect(),
                ["home", "*"].into_iter().chain(names(below)).collect(),
            ],
            None if home.starts_with('/') => vec![names(home).collect()],
            None => Vec::new(),
        });
        volumes.chain(homes).collect()
    })
});

/// Where things lie in a project, wherever that is.
static IN_PROJECT: LazyLock<Vec<Place>> = LazyLock::new(|| {
    places(|row| {
        row.homes.iter().filter(|home| !home.starts_with(['/', '~'])).map(|home| names(home).collect()).collect()
    })
});

fn places(bases: impl Fn(&'static Row) -> Vec<Vec<&'static str>>) -> Vec<Place> {
    let mut places = Vec::new();
    for row in ROWS {
        for base in bases(row) {
            places.extend(row.parts.iter().map(|part| Place {
                at: base.iter().copied().chain(names(part.path)).collect(),
                row,
                class: part.class,
            }));
        }
    }
    places
}

/// A place strictly below some directory, and the names from there to it.
type Below = (&'static [&'static str], &'static Place);

/// Returns the deepest place that the directory is or lies in, and all places below it. A directory that nothing is
/// known of is looked at as a tool's directory in a project, then as a part of a cache volume or of `~/.cache`, if a
/// name in it says so.
fn relate(directory: &[&str]) -> (Option<&'static Place>, Vec<Below>) {
    match relate_exactly(&seen(directory)) {
        (None, below) if below.is_empty() => (project_cache(directory), below),
        found => found,
    }
}

/// Returns a directory as the catalogue sees it: one that nothing is known of, but that lies in one called cache, as if
/// that were `/cache` or `~/.cache`.
fn seen<'a>(directory: &[&'a str]) -> Vec<&'a str> {
    let (holder, below) = relate_exactly(directory);
    let is_known = holder.is_some() || !below.is_empty() || project_cache(directory).is_some();
    match directory.iter().position(|name| is_cache_root(name)).filter(|_| !is_known) {
        Some(at) if directory[at] == ".cache" => [&["root", ".cache"], &directory[at + 1..]].concat(),
        Some(at) => [&["cache"], &directory[at + 1..]].concat(),
        None => directory.to_vec(),
    }
}

/// Returns a tool's cache in a project that the directory is; `target` and `.build` may be anything.
fn project_cache(directory: &[&str]) -> Option<&'static Place> {
    in_project(directory, |at| at[0].starts_with('.') && at.iter().any(|name| name.contains("cache")))
}

fn relate_exactly(directory: &[&str]) -> (Option<&'static Place>, Vec<Below>) {
    let (mut holder, mut below): (Option<&Place>, _) = (None, Vec::new());
    for place in PLACES.iter().filter(|place| fits(&place.at, directory)) {
        if place.at.len() > directory.len() {
            below.push((&place.at[directory.len()..], place));
        } else if holder.is_none_or(|holder| place.at.len() > holder.at.len()) {
            holder = Some(place);
        }
    }
    (holder, below)
}

fn in_project(directory: &[&str], wanted: impl Fn(&[&str]) -> bool) -> Option<&'static Place> {
    IN_PROJECT
        .iter()
        .filter(|place| wanted(&place.at) && place.at.len() <= directory.len())
        .filter(|place| fits(&place.at, &directory[directory.len() - place.at.len()..]))
        .max_by_key(|place| place.at.len())
}

fn is_cache_root(name: &str) -> bool {
    matches!(name, "cache" | "caches" | ".cache")
}

/// Tells whether pattern and path agree for as long as both last.
fn fits(pattern: &[&str], path: &[&str]) -> bool {
    pattern.iter().zip(path).all(|(pattern, name)| *pattern == "*" || pattern == name)
}

fn names(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".")
}

/// Returns the names of an absolute path; `None` where `..` would have to be followed through links that only the
/// file system knows.
fn absolute(path: &str) -> Option<Vec<&str>> {
    let names: Vec<&str> = path.strip_prefix('/').map(|path| names(path).collect())?;
    (!names.contains(&"..")).then_some(names)
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Tells whether a word is of a version or an architecture: `3`, `v2`, `amd64`.
fn is_version(word: &str) -> bool {
    word.strip_prefix('v').unwrap_or(word).starts_with(|c: char| c.is_ascii_digit())
        || matches!(word, "amd64" | "arm64" | "aarch64" | "x86" | "arm" | "armv7")
}

fn starts_with(words: &[&str], label: &[String]) -> bool {
    words.len() >= label.len() && words.iter().zip(label).all(|(word, label)| word == label)
}

fn ends_with(words: &[&str], label: &[String]) -> bool {
    words.len() >= label.len() && starts_with(&words[words.len() - label.len()..], label)
}

/// Returns the row that an id names with most words; `None` if two tools are named alike.
fn named(id: &[String]) -> Option<&'static Row> {
    let mut best: Option<(usize, &'static Row)> = None;
    let mut unclear = false;
    for row in ROWS {
        let said =
            row.ids.iter().map(|label| words(label)).filter(|label| id.windows(label.len()).any(|at| at == label));
        let Some(length) = said.map(|label| label.len()).max() else { continue };
        match best {
            Some((longest, _)) if length < longest => {}
            Some((longest, other)) if length == longest => unclear |= other.tool != row.tool,
            _ => (best, unclear) = (Some((length, row)), false),
        }
    }
    best.filter(|_| !unclear).map(|(_, row)| row)
}

/// A way to name a directory in the name of a volume.
struct Label {
    words: Vec<String>,
    root: String,
}

/// Returns the labels, the preferred one of several alike last.
fn labels() -> Vec<Label> {
    let label = |name: &str, root: String| Label { words: words(name), root };
    let mut labels = Vec::new();
    for row in ROWS.iter().rev() {
        let home = row.homes.iter().find(|home| home.starts_with(['/', '~']));
        let root = row.in_volume.first().map(|path| format!("/cache/{path}"));
        let root = root.or_else(|| home.map(|home| home.replacen('~', "/root", 1)));
        labels.extend(root.iter().flat_map(|root| row.ids.iter().map(|id| label(id, root.clone()))));
    }
    for row in ROWS.iter().rev() {
        for path in row.in_volume.iter().rev() {
            let parts = row.parts.iter().filter(|part| !matches!(part.path, "" | "cache") && !part.path.contains('*'));
            labels.extend(
                parts.map(|part| format!("{path}/{}", part.path)).map(|path| label(&path, format!("/cache/{path}"))),
            );
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            labels.extend(ends.map(|end| &path[..end]).map(|path| label(path, format!("/cache/{path}"))));
        }
    }
    labels
}

fn distinct(name: fn(&Row) -> &'static str) -> impl Iterator<Item = &'static str> {
    ROWS.iter()
        .enumerate()
        .filter(move |(at, row)| ROWS[..*at].iter().all(|earlier| name(earlier) != name(row)))
        .map(move |(_, row)| name(row))
}

fn find_name(
    name: &str,
    mut known: impl Iterator<Item = &'static str>,
    aliases: &[(&str, &'static str)],
) -> Option<&'static str> {
    let name = name.trim().to_lowercase();
    let name = aliases.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, known)| known);
    known.find(|known| *known == name)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tool_is_sent_only_where_it_does_not_go_by_itself() {
        let cases = [
            ("pip", "/cache", "", Some(("/cache/pip", Some("PIP_CACHE_DIR")))),
            ("pip", "/cache", "/cache/py", Some(("/cache/py", None))),
            ("pip", "/cache/pip", "", Some(("/cache/pip", Some("PIP_CACHE_DIR")))),
            ("pip", "/root/.cache", "", Some(("/root/.cache/pip", None))),
            ("pip", "/home/dev/.cache/pip", "", Some(("/home/dev/.cache/pip", None))),
            ("pip", "/root/.npm", "", None),
            ("cargo", "/cache/cargo/registry", "", Some(("/cache/cargo", Some("CARGO_HOME")))),
            ("cargo", "/root/.cargo/registry", "", Some(("/root/.cargo", None))),
            ("cargo", "/usr/local/cargo/registry", "/usr/local/cargo", Some(("/usr/local/cargo", None))),
            ("cargo", "/cache", "/usr/local/cargo", Some(("/cache/cargo", Some("CARGO_HOME")))),
            ("npm", "/srv/caches", "", Some(("/srv/caches/npm", Some("npm_config_cache")))),
            ("maven", "/cache", "", Some(("/cache/maven", None))),
        ];
        for (tool, mount, value, expected) in cases {
            let row = ROWS.iter().find(|row| row.tool == tool && !row.warm.locks.is_empty()).unwrap();
            let env = |name: &str| (row.env.first() == Some(&name) && !value.is_empty()).then(|| value.to_owned());
            let found = spot(row, mount, env);
            let found = found.as_ref().map(|spot| (spot.directory.as_str(), spot.by));
            assert_eq!(found, expected, "{tool} {mount} {value}");
        }
    }

    #[test]
    fn a_directory_of_a_tool_moves_to_where_the_tool_looks_in_another_tree() {
        let cases = [
            ("/root/.cache/pip", "", "/cache", Some(("", "pip"))),
            ("/root/.cache/pip", "", "/srv/cache", Some(("", "pip"))),
            ("/root/.cache/pip", "", "/root", Some(("", ".cache/pip"))),
            ("/root/.cache/pip", "", "/home/dev", Some(("", ".cache/pip"))),
            ("/root/.cache/pip", "", "/home", None),
            ("/root/.cache/pip", "", "/cache/pip", Some(("", ""))),
            ("/root/.cache/pip/http", "", "/cache", Some(("", "pip/http"))),
            ("/root/.cache/pip", "", "/cache/pip/http", None),
            ("/root/.cache/pip", "", "/cache/npm", None),
            ("/root/.cache/pip", "", "/var/lib/db", None),
            ("/cache", "pip", "/srv/cache", Some(("", ""))),
            ("/cache", "pip", "/root/.cache", Some(("pip", "pip"))),
            ("/cache", "pip", "/root/.cache/pip", Some(("pip", ""))),
            ("/srv/caches", "pip", "/root", Some(("pip", ".cache/pip"))),
            ("/root", ".cache/pip", "/root/.cache", Some((".cache/pip", "pip"))),
            ("/home", "*/.cache/pip", "/cache", None),
            ("/cache", "cargo/registry", "/usr/local/cargo", Some(("cargo", ""))),
            ("/cache", "cargo/registry/cache", "/root/.cargo/registry", Some(("cargo/registry", ""))),
            ("/cache", "cargo/git", "/root/.cargo/registry", None),
            ("/cache", "go/mod", "/go", Some(("go/mod", "pkg/mod"))),
            ("/app/.next/cache", "", "/src/.next/cache", Some(("", ""))),
            ("/app/.next/cache", "", "/cache", None),
            ("/var/lib/db", "", "/var/lib", Some(("", "db"))),
            ("/var/lib/db", "", "/cache", None),
            ("/root/.cache/pip/../../x", "", "/cache", None),
        ];
        for (base, path, mount, expected) in cases {
            let found = moved(None, base, path, mount);
            let found = found.as_ref().map(|(from, to)| (from.as_str(), to.as_str()));
            assert_eq!(found, expected, "{base} {path} {mount}");
        }
        for (id, base, to) in [("pip", "/m", "pip"), ("cargo", "/app/.cargo/registry", "cargo/registry")] {
            let row = for_mount(Some(id), base).map(|(row, _)| row);
            assert_eq!(moved(row, base, "", "/cache"), Some((String::new(), to.into())));
        }
    }

    /// Returns tool and class of what decides about a path in a cache volume.
    fn in_cache(path: &str) -> Option<(&'static str, Class)> {
        deepest(&known_below("/cache"), path).map(|known| (known.row.tool, known.class))
    }

    fn paths(mount: &str) -> Vec<String> {
        known_below(mount).into_iter().map(|known| known.path).collect()
    }

    fn at(mount: &str, path: &str) -> Option<(&'static str, Class)> {
        known_below(mount).iter().find(|known| known.path == path).map(|known| (known.row.tool, known.class))
    }

    fn mount(id: Option<&str>, target: &str) -> Option<(&'static str, Class)> {
        for_mount(id, target).map(|(row, class)| (row.tool, class))
    }

    #[test]
    fn every_row_is_whole() {
        for row in ROWS {
            assert!(!row.language.is_empty() && !row.tool.is_empty(), "{row:?}");
            assert!(!row.in_volume.is_empty() || !row.homes.is_empty(), "{row:?} is nowhere");
            assert_eq!(
                row.parts.iter().filter(|part| part.path.is_empty()).count(),
                1,
                "{row:?} says nothing of the rest"
            );
            for path in row.in_volume.iter().chain(row.homes).chain(row.parts.iter().map(|part| &part.path)) {
                assert!(!path.ends_with('/') && !path.contains("//") && !path.contains(".."), "{path} of {row:?}");
            }
            for path in row.in_volume.iter().chain(row.parts.iter().map(|part| &part.path)) {
                assert!(!path.starts_with(['/', '~']), "{path} of {row:?}");
            }
            for id in row.ids {
                assert_eq!(*id, words(id).join("-"), "{row:?}");
            }
        }
    }

    #[test]
    fn no_two_rows_claim_a_path_an_id_or_a_variable() {
        let mut paths = BTreeSet::new();
        for place in PLACES.iter().chain(IN_PROJECT.iter()) {
            assert!(paths.insert(&place.at), "{:?} of {:?}", place.at, place.row);
        }
        let mut said = BTreeMap::new();
        for row in ROWS {
            for name in row.ids.iter().chain(row.env) {
                assert_eq!(said.insert(*name, row), None, "{name} of {row:?}");
            }
        }
    }

    /// So a deletable directory may be removed whole, and a mixed one keeps what nobody thought of.
    #[test]
    fn nothing_that_is_kept_lies_below_something_deletable() {
        for outer in PLACES.iter().filter(|place| place.class.is_deletable()) {
            for inner in PLACES.iter().filter(|inner| inner.at.len() > outer.at.len() && fits(&outer.at, &inner.at)) {
                assert!(inner.class.is_deletable(), "{:?} in {:?}", inner.at, outer.at);
            }
        }
        for row in ROWS.iter().filter(|row| row.rest().is_deletable()) {
            assert_eq!(row.parts.len(), 1, "{row:?} is not a cache from end to end");
        }
    }

    #[test]
    fn secrets_are_never_deletable() {
        let secrets = [
            "/root/.docker/config.json",
            "/home/dev/.m2/settings.xml",
            "/root/.gradle/gradle.properties",
            "/usr/local/cargo/credentials.toml",
            "/root/.cargo/credentials",
            "/root/.composer/auth.json",
            "/root/.gem/credentials",
            "/root/.hex/hex.config",
            "/root/.nuget/NuGet/NuGet.Config",
            "/root/.terraform.d/credentials.tfrc.json",
            "/root/.cache/huggingface/token",
            "/root/.conan2/credentials.json",
            "/root/.ollama/id_ed25519",
            "/root/.config/op/config",
            "/root/.local/share/mkcert/rootCA-key.pem",
            "/root/.local/share/uv/credentials",
            "/cache/docker/config.json",
            "/cache/cargo/credentials.toml",
            "/cache/dev-tools/mkcert-ca",
            "/cache/dev-tools/mkcert-ca/rootCA-key.pem",
            "/cache/1password/secrets",
            "/cache/1password/config",
            "/cache/gradle/init.d/company.gradle",
            "/var/cache/debconf/passwords.dat",
        ];
        for secret in secrets {
            let known = known_below(secret);
            assert_eq!(known.first().map(|known| (known.path.as_str(), known.class)), Some(("", Secret)), "{secret}");
        }
        assert!(ROWS.iter().flat_map(|row| row.parts).all(|part| part.class != Secret || !part.class.is_deletable()));
    }

    /// The layout that dev containers with one volume at `/cache` use.
    #[test]
    fn cache_is_not_all_cache() {
        let layout: &[(&str, &str, Class)] = &[
            ("pip/http-v2/0", "pip", Cache),
            ("poetry/cache/repositories", "poetry", Cache),
            ("poetry/artifacts", "poetry", Cache),
            ("poetry/virtualenvs/app", "poetry", Install),
            ("pipx", "pipx", Install),
            ("pipx/bin/black", "pipx", Install),
            ("pipx/venvs", "pipx", Install),
            ("npm/_cacache", "npm", Cache),
            ("npm-global/bin", "npm", Install),
            ("npm-global/lib/node_modules", "npm", Install),
            ("yarn/v6", "yarn", Cache),
            ("pnpm/store", "pnpm", Cache),
            ("pnpm/v10/files", "pnpm", Cache),
            ("pnpm/pnpm", "pnpm", Install),
            ("cargo/registry", "cargo", Cache),
            ("cargo/git/db", "cargo", Cache),
            ("cargo/target/debug", "cargo", Cache),
            ("cargo/bin/cargo", "cargo", Install),
            ("cargo/env", "cargo", State),
            ("cargo/credentials.toml", "cargo", Secret),
            ("rustup/toolchains", "rustup", Install),
            ("go/bin", "go", Install),
            ("go/src/example", "go", State),
            ("go/pkg/mod/cache", "go", Cache),
            ("go/mod", "go", Cache),
            ("go/build", "go", Cache),
            ("go-mod/cache", "go", Cache),
            ("go-build/00", "go", Cache),
            ("ruby/gems/gems", "gem", Install),
            ("ruby/gems/bin", "gem", Install),
            ("ruby/gems/cache/rake.gem", "gem", Cache),
            ("ruby/bundle/ruby/3.3.0/gems", "bundler", Install),
            ("ruby/bundle/ruby/3.3.0/cache", "bundler", Cache),
            ("bundle", "bundler", Install),
            ("r/library/dplyr", "r", Install),
            ("r/tmp/Rtmp1", "r", Scratch),
            ("maven/repository/org", "maven", Cache),
            ("maven/org", "maven", State),
            ("gradle/caches/8.5", "gradle", Cache),
            ("gradle/wrapper/dists", "gradle", Cache),
            ("gradle/daemon", "gradle", Scratch),
            ("gradle/gradle.properties", "gradle", Secret),
            ("gradle/init.d", "gradle", Secret),
            ("gradle/other", "gradle", State),
            ("jdtls", "jdtls", Cache),
            ("kotlin", "kotlin", Cache),
            ("android-sdk", "android-sdk", State),
            ("android-sdk/debug.keystore", "android-sdk", Secret),
            ("android-gradle", "gradle", State),
            ("android-avd/pixel.avd", "android-avd", State),
            ("pixi", "pixi", Cache),
            ("mojo/project/mojo-env", "mojo", Install),
            ("mise/installs", "mise", Install),
            ("mise-cache", "mise", Cache),
            ("ollama/blobs", "ollama", State),
            ("terraform/registry.terraform.io", "terraform", Cache),
            ("sccache/0", "sccache", Cache),
            ("docker", "docker", State),
            ("docker/cli-plugins", "docker", Install),
            ("docker/config.json", "docker", Secret),
            ("dev-tools/mkcert-ca", "dev-tools", Secret),
            ("dev-tools/direnv-allow", "dev-tools", State),
            ("codegraph/index", "codegraph", Cache),
            ("1password/secrets", "1password", Secret),
            ("1password/config", "1password", Secret),
        ];
        for (path, tool, class) in layout {
            assert_eq!(in_cache(path), Some((*tool, *class)), "/cache/{path}");
        }
        for unknown in ["tool", "test", "pips", "ruby", "data/pip", ""] {
            assert_eq!(in_cache(unknown), None, "/cache/{unknown}");
        }
    }

    #[test]
    fn a_home_directory_is_known_whoever_owns_it() {
        for mount in ["/root/.cache", "/home/dev/.cache", "/root/.cache/", "//home//x/./.cache"] {
            assert_eq!(at(mount, "pip"), Some(("pip", Cache)), "{mount}");
            assert_eq!(at(mount, "go-build"), Some(("go", Cache)), "{mount}");
            assert_eq!(at(mount, "ms-playwright"), Some(("playwright", Install)), "{mount}");
            assert_eq!(at(mount, "huggingface/token"), Some(("huggingface", Secret)), "{mount}");
            assert_eq!(at(mount, ""), None, "{mount}");
        }
        assert_eq!(at("/home", "*/.npm"), Some(("npm", Cache)));
        assert_eq!(at("/", "root/.npm"), Some(("npm", Cache)));
        let known = known_below("/home");
        assert_eq!(deepest(&known, "ann/.npm/_cacache").map(|known| known.row.tool), Some("npm"));
        assert_eq!(deepest(&known, "ann/.npm/../.ssh"), None);
    }

    #[test]
    fn a_mount_inside_a_base_has_the_class_of_its_part() {
        for mount in ["/cache/cargo/registry", "/usr/local/cargo/registry", "/usr/local/cargo/registry/index"] {
            assert_eq!(paths(mount), [""], "{mount}");
            assert_eq!(at(mount, ""), Some(("cargo", Cache)), "{mount}");
        }
        assert_eq!(at("/usr/local/cargo", "registry"), Some(("cargo", Cache)));
        assert_eq!(at("/usr/local/cargo", ""), Some(("cargo", State)));
        assert_eq!(at("/usr/local/cargo/bin", ""), Some(("cargo", Install)));
        assert_eq!(at("/var/lib/apt", "lists"), Some(("apt", Cache)));
        assert_eq!(at("/var/lib/apt", ""), Some(("apt", State)));
        assert_eq!(at("/go", "pkg/mod"), Some(("go", Cache)));
        assert_eq!(at("/usr/local/bundle", "ruby/*/cache"), Some(("bundler", Cache)));
        assert_eq!(at("/usr/local/bundle/ruby/3.3.0", "cache"), Some(("bundler", Cache)));
    }

    #[test]
    fn stores_whose_files_refer_to_each_other_go_whole_or_not_at_all() {
        for tool in ["npm", "pnpm", "uv", "cargo"] {
            let units: Vec<Unit> = ROWS.iter().filter(|row| row.tool == tool).map(|row| row.unit).collect();
            assert!(!units.is_empty() && units.iter().all(|unit| *unit == Whole), "{tool}: {units:?}");
        }
    }

    #[test]
    fn a_cache_volume_may_lie_elsewhere() {
        assert_eq!(at("/mnt/cache", "pip"), Some(("pip", Cache)));
        assert_eq!(at("/workspace/.cache", "pip"), Some(("pip", Cache)));
        assert_eq!(at("/workspace/.cache", "npm"), None);
        assert_eq!(at("/workspace/.cache/uv", ""), Some(("uv", Cache)));
        assert_eq!(at("/app/.next/cache", ""), Some(("next", Cache)));
        for unknown in
            ["/data", "/app", "/app/target", "/app/.build", "/srv/pip", "/var/lib/postgresql/data", "cache", "pip", ""]
        {
            assert_eq!(known_below(unknown), [], "{unknown}");
        }
    }

    #[test]
    fn a_volume_tells_by_its_name_where_it_belongs() {
        let names = [
            ("pip-cache", Some("/cache/pip")),
            ("myproj_pip-cache", Some("/cache/pip")),
            ("containers-cargo-registry", Some("/cache/cargo/registry")),
            ("containers-cargo-git", Some("/cache/cargo/git")),
            ("cargo-cache", Some("/cache/cargo")),
            ("app_cargo-registry-cache", Some("/cache/cargo/registry")),
            ("app_npm_cache", Some("/cache/npm")),
            ("NPM-Cache", Some("/cache/npm")),
            ("npmcache", Some("/cache/npm")),
            ("cache-npm", Some("/cache/npm")),
            ("go-cache", Some("/cache/go")),
            ("go-mod-cache", Some("/cache/go-mod")),
            ("x_go-build", Some("/cache/go-build")),
            ("ruby-cache", Some("/cache/ruby")),
            ("bundle-cache", Some("/cache/bundle")),
            ("android-cache", Some("/cache/android-sdk")),
            ("gradle-caches", Some("/cache/gradle/caches")),
            ("mise-cache", Some("/cache/mise-cache")),
            ("dev_ccache", Some("/cache/ccache")),
            ("apt-cache", Some("/var/cache/apt")),
            ("proj_apt-lib", Some("/var/lib/apt")),
            ("project-cache", Some("/cache")),
            ("x-cache", Some("/cache")),
            ("cache", Some("/cache")),
            ("pip-cache-3.12", Some("/cache/pip")),
            ("ccache-v4-arm64", Some("/cache/ccache")),
            ("pip-cache-db", None),
            ("npm-cache-server", None),
            ("cache-npm-server", None),
            ("pip-cache_pgdata", None),
            ("ccache-data", None),
            ("redis-data", None),
            ("nexus-maven-repository", None),
            ("baget_nuget-packages", None),
            ("x_pre-commit", None),
            ("npm", None),
            ("memcache", None),
            ("go", None),
            ("", None),
            ("---", None),
            ("0f3a9c", None),
        ];
        for (name, root) in names {
            assert_eq!(volume_root(name).as_deref(), root, "{name}");
        }
        for root in names.iter().filter_map(|(_, root)| *root).filter(|root| *root != "/cache") {
            assert!(!known_below(root).is_empty(), "{root}");
        }
    }

    #[test]
    fn a_mount_belongs_to_the_tool_of_its_target() {
        let mounts = [
            (None, "/root/.cache/pip", Some(("pip", Cache))),
            (Some("npm"), "/root/.cache/pip", Some(("pip", Cache))),
            (None, "/home/dev/.cache/uv", Some(("uv", Cache))),
            (None, "/cache/pip", Some(("pip", Cache))),
            (None, "/cache/.gradle", Some(("gradle", State))),
            (None, "/usr/local/cargo/registry", Some(("cargo", Cache))),
            (None, "/usr/local/cargo/git/db", Some(("cargo", Cache))),
            (Some("pnpm"), "/pnpm/store", Some(("pnpm", Cache))),
            (None, "/usr/local/share/.cache/yarn/v6", Some(("yarn", Cache))),
            (None, "/root/.yarn", Some(("yarn", Install))),
            (None, "/go/pkg/mod", Some(("go", Cache))),
            (None, "/root/.m2/repository", Some(("maven", Cache))),
            (None, "/root/.m2", Some(("maven", State))),
            (None, "/home/gradle/.gradle", Some(("gradle", State))),
            (None, "/usr/local/bundle/cache", Some(("bundler", Cache))),
            (None, "/usr/local/bundle", Some(("bundler", Install))),
            (None, "/var/cache/apt", Some(("apt", Cache))),
            (None, "/var/lib/apt/lists", Some(("apt", Cache))),
            (None, "/tmp/cache", Some(("composer", Cache))),
            (None, "/root/.nuget/packages", Some(("nuget", Cache))),
            (None, "/deno-dir", Some(("deno", State))),
            (None, "/app/.next/cache", Some(("next", Cache))),
            (None, "/app/.turbo", Some(("turbo", Cache))),
            (None, "/app/.build", Some(("swiftpm", Cache))),
            (Some("/root/.npm"), "/root/.npm", Some(("npm", Cache))),
            (None, "/app/target", Some(("cargo", Cache))),
            (None, "/src/target/", Some(("cargo", Cache))),
            (None, "target", Some(("cargo", Cache))),
            (Some("/app/target"), "/app/target", Some(("cargo", Cache))),
            (Some("maven-target"), "/app/target", Some(("maven", State))),
            (None, "/root/.cache", None),
            (Some("pip"), "/root/.cache", None),
            (Some("npm"), "/root", None),
            (None, "/var/lib", None),
            (None, "/var/cache", None),
            (None, "/cache", None),
            (None, "/data", None),
        ];
        for (id, target, tool) in mounts {
            assert_eq!(mount(id, target), tool, "{id:?} {target}");
        }
    }

    #[test]
    fn an_id_tells_the_tool_when_the_target_does_not() {
        let mounts = [
            ("pip", "/opt/x", Some(("pip", Cache))),
            ("pip-3.12", "/opt/x", Some(("pip", Cache))),
            ("myapp-npm", "/opt/x", Some(("npm", Cache))),
            ("myapp/NPM.v2", "/opt/x", Some(("npm", Cache))),
            ("apt-bookworm-amd64", "/opt/x", Some(("apt", Cache))),
            ("apt-lib-bookworm", "/opt/x", Some(("apt", State))),
            ("cargo-registry", "/opt/x", Some(("cargo", Cache))),
            ("cargo", "/opt/x/registry", Some(("cargo", Cache))),
            ("cargo", "/opt/x", Some(("cargo", State))),
            ("cargo-target-release", "/opt/x", Some(("cargo", Cache))),
            ("app-go-build", "/opt/x", Some(("go", Cache))),
            ("npm-global", "/opt/x", Some(("npm", Install))),
            ("node-gyp", "/opt/x", Some(("node-gyp", Cache))),
            ("pip-npm", "/opt/x", None),
            ("pipeline", "/opt/x", None),
            ("", "/opt/x", None),
            ("", "/opt/pip-cache", Some(("pip", Cache))),
            ("app", "/tmp/composer", Some(("composer", Cache))),
        ];
        for (id, target, tool) in mounts {
            assert_eq!(mount(Some(id), target), tool, "{id} {target}");
        }
    }

    #[test]
    fn a_cache_path_holds_a_cache_and_not_just_anything() {
        let caches = [
            "/cache",
            "/cache/",
            "/cache/anything",
            "/root/.cache",
            "/root/.cache/pip",
            "/home/x/.cache/pip/http",
            "/root/.npm",
            "/root/.m2",
            "/go",
            "/go/pkg",
            "/go/pkg/mod",
            "/usr/local/cargo",
            "/usr/local/cargo/registry",
            "/usr/local/bundle",
            "/var/cache",
            "/var/cache/apt",
            "/var/lib/apt",
            "/var/lib/apt/lists/partial",
            "/opt/conda/pkgs",
            "/mnt/cache",
            "/mnt/cache/pip",
            "/app/.next/cache",
        ];
        for path in caches {
            assert!(is_cache_path(path), "{path}");
        }
        let others = [
            "",
            "/",
            "cache",
            "/data",
            "/var",
            "/var/lib",
            "/var/lib/postgresql/data",
            "/var/cache/debconf",
            "/home",
            "/home/x",
            "/root",
            "/root/.local",
            "/root/.docker",
            "/root/.cargo/bin",
            "/usr/local",
            "/usr/local/rustup",
            "/opt",
            "/opt/conda",
            "/go/src",
            "/tmp",
            "/app/target",
            "/srv/cached",
            "/data/../cache/..",
            "/cacheable",
        ];
        for path in others {
            assert!(!is_cache_path(path), "{path}");
        }
    }

    #[test]
    fn every_default_directory_is_found_from_its_own_mount() {
        for place in PLACES.iter() {
            let path = format!("/{}", place.at.join("/").replace('*', "any"));
            let known = known_below(&path);
            let own = known.iter().find(|known| known.path.is_empty()).map(|known| (known.row.tool, known.class));
            assert_eq!(own, Some((place.row.tool, place.class)), "{path}");
            assert_eq!(mount(None, &path), own, "{path}");
        }
    }

    #[test]
    fn languages_and_tools_go_by_many_names() {
        for (alias, name) in LANGUAGE_ALIASES {
            assert_eq!(language(alias), Some(*name));
            assert!(languages().any(|language| language == *name), "{name}");
            assert!(languages().all(|language| language != *alias), "{alias}");
        }
        for (alias, name) in TOOL_ALIASES {
            assert_eq!(tool(alias), Some(*name));
            assert!(tools().any(|tool| tool == *name), "{name}");
            assert!(tools().all(|tool| tool != *alias), "{alias}");
        }
        assert_eq!(language(" Python "), Some("python"));
        assert_eq!(language("C++"), Some("cpp"));
        assert_eq!(tool("apt-get"), Some("apt"));
        assert_eq!(language("cobol"), None);
        assert_eq!(tool(""), None);
        assert_eq!(languages().collect::<BTreeSet<_>>().len(), languages().count());
        assert_eq!(tools().collect::<BTreeSet<_>>().len(), tools().count());
    }

    #[test]
    fn a_single_directory_keeps_the_classes_of_what_is_in_it() {
        let mut known = known_below("/cache");
        assert!(single_out(&mut known, "ruby/bundle/ruby/3.1.0"));
        let class = |path: &str| deepest(&known, path).map(|known| (known.path.as_str(), known.class));
        assert_eq!(class("ruby/bundle/ruby/3.1.0/gems/x"), Some(("ruby/bundle/ruby/3.1.0/", Install)));
        assert_eq!(class("ruby/bundle/ruby/3.1.0/cache/x"), Some(("ruby/bundle/ruby/3.1.0/cache", Cache)));
        assert_eq!(class("ruby/bundle/ruby/3.3.0/cache/x"), Some(("ruby/bundle/ruby/*/cache", Cache)));
        let before = known.len();
        assert!(single_out(&mut known, "pip") && known.len() == before);
        for unknown in ["nobody/knows", "pip/../cargo/bin", "ruby/bundle/*"] {
            assert!(!single_out(&mut known, unknown), "{unknown}");
        }
    }

    #[test]
    fn words_for_people_are_lower_case_and_padded() {
        assert_eq!(format!("{:>8}|{}", Cache, Locked), "   cache|locked");
    }

    fn any_path() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            Just("cache"),
            Just(".cache"),
            Just("root"),
            Just("home"),
            Just(".."),
            Just("."),
            Just("*"),
            Just(""),
            Just("ruby"),
            Just("target"),
            Just("pip"),
            Just("é\u{202e}😀"),
            Just("\0"),
        ];
        prop_oneof![
            any::<String>(),
            proptest::collection::vec(name, 0..12).prop_map(|names| names.join("/")),
            (1..10_000_usize).prop_map(|length| format!("/cache/{}", "x/".repeat(length))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn no_input_panics(path in any_path(), id in proptest::option::of(any_path())) {
            let known = known_below(&path);
            let unique: BTreeSet<_> = known.iter().map(|known| &known.path).collect();
            prop_assert_eq!(unique.len(), known.len());
            deepest(&known, &path);
            volume_root(&path);
            for_mount(id.as_deref(), &path);
            is_cache_path(&path);
            language(&path);
            tool(&path);
        }
    }
}
