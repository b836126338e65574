//! The whole grammar of the command line, docker's global flags in front. It does nothing with what it reads.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::{ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::budget::Budget;
use crate::bundle::location::Location;
use crate::catalogue::{self, Row};
use crate::checks;
use crate::checks::caches::VOLUME_OWNER;
use crate::checks::project::MOUNT_OWNER;
use crate::model::Kind;
use crate::report::Telling;

/// Layout of docker's own help pages.
const HELP: &str = "Usage:  {usage}\n\n{about-with-newline}\n{all-args}{after-help}\n";

const ABOUT_AFTER: &str = "\
Examples:
  docker cache doctor                    what is wrong, and how to put it right
  docker cache size                      what every cache holds, largest first
  docker cache size --lang node,go       only these languages
  docker cache clear --lang python       remove python's caches, and only those
  docker cache export --dest /tmp/cache  save layers, mounts and volumes
  docker cache import --src /tmp/cache   and restore them, here or elsewhere
  docker cache builder ls                which command uses which builder
  docker cache warm --volume my-cache    download what the lock files say

Docker's own flags (--context, --host, ...) may stand before or after the command.

Run 'docker cache COMMAND --help' for more information on a command.";

/// Show, explain, clean and carry every cache that Docker builds and dev containers use
#[derive(Debug, Parser)]
#[command(
    name = "docker-cache",
    bin_name = "docker cache",
    version,
    disable_version_flag = true,
    disable_help_flag = true,
    help_template = HELP,
    after_help = ABOUT_AFTER,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 120
)]
pub struct Cli {
    #[command(flatten)]
    pub docker: DockerFlags,
    /// Print version information and quit
    #[arg(long, short, action = ArgAction::Version, display_order = 1001)]
    version: Option<bool>,
    /// Print usage
    #[arg(long, short, global = true, action = ArgAction::HelpShort, display_order = 1002)]
    help: Option<bool>,
    #[command(subcommand)]
    pub command: Command,
}

/// Docker's own global flags: accepted anywhere, handed on to every docker command, and told by `docker --help`.
#[derive(Debug, Args)]
pub struct DockerFlags {
    /// Location of client config files
    #[arg(long, global = true, value_name = "DIR", hide = true)]
    pub config: Option<PathBuf>,
    /// Name of the context to use to connect to the daemon
    #[arg(long, short = 'c', global = true, value_name = "NAME", hide = true)]
    pub context: Option<String>,
    /// Enable debug mode
    #[arg(long, short = 'D', global = true, display_order = 1000)]
    pub debug: bool,
    /// Daemon socket to connect to
    #[arg(long, short = 'H', global = true, value_name = "HOST", hide = true, action = ArgAction::Append)]
    pub host: Vec<String>,
    /// Set the logging level ("debug", "info", "warn", "error", "fatal")
    #[arg(long, short = 'l', global = true, value_name = "LEVEL", hide = true)]
    pub log_level: Option<String>,
    /// Use TLS; implied by --tlsverify
    #[arg(long, global = true, hide = true,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls: Option<bool>,
    /// Trust certs signed only by this CA
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    pub tlscacert: Option<OsString>,
    /// Path to TLS certificate file
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    pub tlscert: Option<OsString>,
    /// Path to TLS key file
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    pub tlskey: Option<OsString>,
    /// Use TLS and verify the remote
    #[arg(long, global = true, hide = true,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tlsverify: Option<bool>,
}

/// A command line that the grammar refuses, or a question for help or the version.
#[derive(Debug)]
pub struct Refusal {
    pub error: clap::Error,
    /// The command that it is about, and how it is called: `docker cache builder use`.
    pub command: clap::Command,
    pub path: String,
    /// True if flags of `docker build` may follow `--`.
    pub takes_build_flags: bool,
}

/// Reads the arguments that follow `docker cache`.
///
/// # Errors
/// When the grammar refuses them, or they ask for help or the version.
pub fn parse(args: &[OsString]) -> Result<Cli, Box<Refusal>> {
    let words = || std::iter::once("docker cache".into()).chain(args.iter().cloned());
    let read = grammar().try_get_matches_from(words()).and_then(|matches| Cli::from_arg_matches(&matches));
    let read = read.and_then(|cli| match cli.command.contradiction() {
        Some(why) => Err(clap::Error::raw(ErrorKind::ArgumentConflict, why)),
        None => Ok(cli),
    });
    read.map_err(|error| {
        let mut command = grammar();
        let matches = command.clone().ignore_errors(true).try_get_matches_from(words()).unwrap_or_default();
        let (mut rest, mut path) = (&matches, String::from("docker cache"));
        while let Some((name, inner)) = rest.subcommand() {
            let Some(found) = command.find_subcommand(name).cloned() else { break };
            (command, rest) = (found, inner);
            path = format!("{path} {name}");
        }
        let explains = path != "docker cache doctor" || args.iter().any(|arg| arg == "--explain");
        let takes_build_flags = explains && command.get_positionals().any(clap::Arg::is_last_set);
        Box::new(Refusal { error, command, path, takes_build_flags })
    })
}

/// Returns the grammar with usage lines in docker's manner. Of a flag that is given twice the last one counts, as
/// everywhere in docker.
pub fn grammar() -> clap::Command {
    with_usage(Cli::command().args_override_self(true), "docker cache")
}

fn with_usage(mut command: clap::Command, path: &str) -> clap::Command {
    let names: Vec<String> = command.get_subcommands().map(|inner| inner.get_name().to_string()).collect();
    for name in &names {
        command = command.mut_subcommand(name, |inner| with_usage(inner, &format!("{path} {name}")));
    }
    let mut usage = format!("{path} [OPTIONS]");
    for arg in command.get_arguments().filter(|arg| arg.is_required_set() && !arg.is_positional()) {
        usage.push_str(&format!(" --{} {}", arg.get_long().unwrap_or_default(), value_name(arg)));
    }
    if !names.is_empty() {
        usage.push_str(if command.is_subcommand_required_set() { " COMMAND" } else { " [COMMAND]" });
    }
    for arg in command.get_positionals() {
        let name = value_name(arg);
        let many = matches!(arg.get_action(), ArgAction::Append);
        if arg.is_last_set() {
            usage.push_str(&format!(" [-- {name}...]"));
            continue;
        }
        usage.push_str(&match (arg.is_required_set(), many) {
            (true, false) => format!(" {name}"),
            (true, true) => format!(" {name} [{name}...]"),
            (false, false) => format!(" [{name}]"),
            (false, true) => format!(" [{name}...]"),
        });
    }
    command.override_usage(usage)
}

fn value_name(arg: &clap::Arg) -> String {
    let given = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    given.unwrap_or_else(|| arg.get_id().as_str().to_uppercase())
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Doctor(Doctor),
    Size(Size),
    Clear(Clear),
    Export(Export),
    Import(Import),
    Verify(Verify),
    Builder(Builder),
    Warm(Warm),
    Hooks(Hooks),
    #[command(hide = true)]
    Man(Man),
    #[cfg(target_os = "linux")]
    #[command(name = crate::inside::COMMAND, hide = true)]
    Inside(Inside),
}

impl Command {
    /// Returns what is wrong with values of flags that do not go together.
    fn contradiction(&self) -> Option<&'static str> {
        match self {
            Command::Doctor(doctor) if matches!(doctor.format, DoctorFormat::Sarif | DoctorFormat::Github) => {
                let fix = doctor.fix.then_some("--fix prints a diff, or JSON: `--format json`");
                fix.or(doctor.explain.then_some("--explain prints a table, or JSON: `--format json`"))
            }
            Command::Doctor(doctor) if doctor.fix && doctor.has_owners_among_others() => Some(
                "owners in volumes and mounts are changed by their checks alone\n\
                 hint: `docker cache doctor --fix --check volume-owner`, or `mount-owner`",
            ),
            Command::Import(import) if import.selection.all_builders => {
                Some("an import goes to one builder: name it by `--builder`")
            }
            Command::Size(size) if size.by.is_some() && size.output.format == Format::Json => {
                Some("--by makes rows of a table; of JSON, jq makes such sums: `jq '.caches | group_by(.language)'`")
            }
            _ => None,
        }
    }
}

/// Find what makes builds slow and caches cold, with a command or a diff where one is surely right
#[derive(Debug, Args)]
#[command(help_template = HELP, after_help = "\
Examples:
  docker cache doctor                        all checks, of this project too
  docker cache doctor --fix --dry-run web    what would change in files
  docker cache doctor --check builder-split,gc-policy
  docker cache doctor --image app:latest     which caches does it carry?
  docker cache doctor --explain . -- --build-arg VERSION=3
                                             why did steps of this build run?
  docker cache doctor --container web        what does it keep in itself?
  docker cache doctor --fail-on error        exit 1 not for warnings
  docker cache doctor --fix --check volume-owner
  docker cache doctor --format json | jq '.findings[].fix.command'")]
pub struct Doctor {
    /// Directory or file to look at [default: the working directory, if it has Dockerfiles, compose files or dev containers]
    pub path: Option<PathBuf>,
    /// Look into this image: which package caches does it carry?
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// Build into the cache, and tell which steps were not in it and why, as against the last such run
    #[arg(long, conflicts_with_all = ["image", "container", "fix", "check", "list_checks", "budget", "volume", "fail_on"])]
    pub explain: bool,
    /// Put right what can be in Dockerfiles, compose files and dev containers, and show it as a diff; with --check volume-owner, the owners in cache volumes
    #[arg(long, conflicts_with_all = ["image", "container", "list_checks", "fail_on"])]
    pub fix: bool,
    /// Show what --fix would change, and change nothing
    #[arg(long, requires = "fix")]
    pub dry_run: bool,
    /// Keep what --fix changes beside it, as FILE.bak, or FILE.bak1 if there is one
    #[arg(long, requires = "fix")]
    pub backup: bool,
    /// Run only these checks
    #[arg(long, value_name = "NAME", value_delimiter = ',', hide_possible_values = true,
          value_parser = PossibleValuesParser::new(checks::names()))]
    pub check: Vec<String>,
    /// List the checks and exit
    #[arg(long)]
    pub list_checks: bool,
    /// How much the caches may hold: small (2GB), medium (5GB), large (10GB) or a size [default: as the project's lock files tell, for mounts and volumes]
    #[arg(long, value_name = "BUDGET")]
    pub budget: Option<Budget>,
    /// Lowest severity that makes the exit status 1; a check that could not be finished makes it 1 too
    #[arg(long, value_enum, value_name = "SEVERITY", default_value = "warning")]
    pub fail_on: FailOn,
    /// Look only into these volumes
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub volume: Vec<String>,
    /// Look only at these containers, whatever project they belong to
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub container: Vec<String>,
    /// Do not prompt for confirmation before --fix changes volumes
    #[arg(long, short, requires = "fix")]
    pub force: bool,
    /// Format of the output
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub format: DoctorFormat,
    /// Print only what was found
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub progress: Progress,
    /// Flags of 'docker build' for --explain
    #[arg(last = true, requires = "explain", value_name = "BUILD ARGS")]
    pub build: Vec<OsString>,
}

impl Doctor {
    /// Returns true if a check of owners is named among others, which `--fix` refuses.
    pub fn has_owners_among_others(&self) -> bool {
        let is_of_owners = |name: &String| [VOLUME_OWNER, MOUNT_OWNER].contains(&name.as_str());
        self.check.len() > 1 && self.check.iter().any(is_of_owners)
    }
}

impl Doctor {
    /// Returns true if it is to look at an image or at containers alone.
    pub fn is_aimed(&self) -> bool {
        self.image.is_some() || !self.container.is_empty()
    }

    /// Returns how to tell of what takes long.
    pub fn telling(&self) -> Telling {
        if self.quiet { Telling::Quiet } else { self.progress.progress }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    Table,
    Json,
    /// For code scanning
    Sarif,
    /// Annotations of GitHub Actions
    Github,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    Error,
    Warning,
    Note,
    Never,
}

/// Show what every cache holds: layers, cache mounts and cache volumes
#[derive(Debug, Args)]
#[command(help_template = HELP, after_help = "\
Examples:
  docker cache size                         all of the builders in use
  docker cache size project-cache pip       volumes, mounts or tools by name
  docker cache size --lang python --by directory
  docker cache size --all-builders --exact  of all builders, measured anew
  docker cache size --budget 5GB            exit 1 if there is more
  docker cache size --watch 10              again every 10 seconds
  docker cache size --history               what it was the last times
  docker cache size --format json | jq .total_bytes")]
pub struct Size {
    /// Volumes, mounts, tools, languages or builders to show
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Make one row of each language, kind, builder or directory
    #[arg(long, value_enum, value_name = "GROUP", conflicts_with = "quiet")]
    pub by: Option<GroupBy>,
    /// Measure cache mounts inside, by a build that uses them: docker's own sizes may be out of date
    #[arg(long)]
    pub exact: bool,
    /// Exit with 1 if the caches hold more than small (2GB), medium (5GB), large (10GB) or a size
    #[arg(long, value_name = "BUDGET")]
    pub budget: Option<Budget>,
    /// Show them again every 2 seconds, or every so many, with the growth; a JSON line each time if not on a terminal
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", conflicts_with = "quiet")]
    #[arg(value_parser = seconds)]
    pub watch: Option<u64>,
    /// Show what `size` found the last times, for all caches of this engine, and measure nothing
    #[arg(long, conflicts_with_all = ["names", "by", "exact", "budget", "watch", "lang", "tool", "volume", "mount", "quiet"])]
    pub history: bool,
    #[command(flatten)]
    pub selection: Selection,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GroupBy {
    Language,
    Kind,
    Builder,
    Directory,
}

/// Remove caches: by language, tool, place, age or size. Shows first what goes and what stays
#[derive(Debug, Args)]
#[command(help_template = HELP, after_help = "\
Examples:
  docker cache clear --lang python --dry-run  what would go, what would stay
  docker cache clear --tool npm,yarn
  docker cache clear --volume project-cache   its caches; the rest stays
  docker cache clear --older-than 30d         unused for 30 days
  docker cache clear --keep 10GB              all but the 10GB used last
  docker cache clear --volume project-cache --recreate --include-installs
                                              make the volume anew, empty")]
pub struct Clear {
    #[command(flatten)]
    pub selection: Selection,
    /// Clear the layer cache
    #[arg(long)]
    pub layers: bool,
    /// Clear only caches of this kind
    #[arg(long, value_enum, value_name = "KIND", value_delimiter = ',')]
    pub kind: Vec<CacheKind>,
    /// Clear only what was not used for this time, as `30d` or `12h`
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub older_than: Option<std::time::Duration>,
    /// Clear the least recently used, until this size remains; small is 2GB, medium 5GB, large 10GB
    #[arg(long, value_name = "SIZE", visible_alias = "to-budget")]
    pub keep: Option<Budget>,
    /// Clear only this directory of the named volume or mount, as containers or builds see it; one below a
    /// tool's own goes itself
    #[arg(long, value_name = "DIR")]
    pub path: Vec<String>,
    /// Clear every cache
    #[arg(long)]
    pub all: bool,
    /// Clear also what is no cache of the tools, mounts and directories that are named: programs, settings, secrets
    #[arg(long)]
    pub include_installs: bool,
    /// Clear also volumes that running containers use
    #[arg(long)]
    pub force_in_use: bool,
    /// Remove the named volumes and make them again, with driver, options and labels
    #[arg(long, requires = "volume", conflicts_with_all = ["lang", "tool", "mount", "layers", "kind", "older_than", "keep", "all", "path"])]
    pub recreate: bool,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not prompt for confirmation
    #[arg(long, short)]
    pub force: bool,
    #[command(flatten)]
    pub output: Output,
}

/// Save layers, cache mounts and cache volumes to a directory or a registry
#[derive(Debug, Args)]
#[command(help_template = HELP, after_help = "\
Examples:
  docker cache export --dest /tmp/cache .     layers, all mounts and volumes
  docker cache export --dest /tmp/cache --lang python
  docker cache export --dest type=registry,ref=ghcr.io/team/cache:main .
  docker cache export --dest /tmp/cache --volume tools --include-installs
  docker cache export --dest /tmp/cache . -- --build-arg VERSION=3
  docker cache export --builder default --to-builder big .")]
pub struct Export {
    /// Directory of the bundle, or type=registry,ref=HOST/NAME:TAG[,registry.insecure=true]; only what changed is written
    #[arg(long, value_name = "DEST", required_unless_present = "to_builder")]
    pub dest: Option<Location>,
    /// Copy to this builder instead, without a bundle: cache mounts straight from the other one, layers through a temporary
    /// directory
    #[arg(long, value_name = "NAME", value_parser = name, conflicts_with_all = ["dest", "volume", "all_builders"])]
    pub to_builder: Option<String>,
    /// Also take programs and libraries that lie in cache volumes
    #[arg(long)]
    pub include_installs: bool,
    /// Export the layers of another builder, if this one cannot
    #[arg(long)]
    pub switch: bool,
    /// Show what would be exported
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub selection: Selection,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub build: Build,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheKind {
    Mount,
    Volume,
    Layer,
}

/// Restore layers, cache mounts and cache volumes from a bundle
#[derive(Debug, Args)]
#[command(help_template = HELP, mut_arg("all_builders", |arg| arg.hide(true)), after_help = "\
Examples:
  docker cache import --src /tmp/cache .      all of it, layers too
  docker cache import --src type=registry,ref=ghcr.io/team/cache:main .
  docker cache import --src /tmp/cache --volume project-cache --replace
  docker cache import --src /tmp/cache --mount pip --to-volume project-cache
  docker cache import --src /tmp/cache --owner 1000:1000")]
pub struct Import {
    /// Directory of the bundle, or type=registry,ref=HOST/NAME:TAG
    #[arg(long, value_name = "SRC")]
    pub src: Location,
    /// Make mounts and volumes equal to the bundle, instead of adding to them
    #[arg(long)]
    pub replace: bool,
    /// Replace also in volumes that running containers use
    #[arg(long, requires = "replace")]
    pub force_in_use: bool,
    /// Owner of all that is imported, by numbers; what is there already keeps its own
    #[arg(long, value_name = "UID[:GID]", value_parser = owner)]
    pub owner: Option<(u32, u32)>,
    /// Import into this volume, whatever it was exported from
    #[arg(long, value_name = "NAME", value_parser = name, conflicts_with = "to_mount")]
    pub to_volume: Option<String>,
    /// Import into the cache mount of this id, whatever it was exported from
    #[arg(long, value_name = "ID", value_parser = name)]
    pub to_mount: Option<String>,
    /// Show what would be imported, and, with --replace, how much of what is there now would go
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub selection: Selection,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub build: Build,
}

/// A build whose layers are meant: docker's own flags. Flattened last, since its heading holds for all that follows.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Build Options")]
pub struct Build {
    /// Directory with the Dockerfile whose layers are meant [default: .]
    #[arg(value_name = "CONTEXT", help_heading = None)]
    pub directory: Option<PathBuf>,
    /// Name of the Dockerfile
    #[arg(long, short, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Target build stage
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Build-time variables
    #[arg(long, value_name = "NAME=VALUE", action = ArgAction::Append)]
    pub build_arg: Vec<String>,
    /// Target platforms
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Vec<String>,
    /// Secrets of the build
    #[arg(long, value_name = "SECRET", action = ArgAction::Append)]
    pub secret: Vec<String>,
    /// SSH agent sockets or keys of the build
    #[arg(long, value_name = "SSH", action = ArgAction::Append)]
    pub ssh: Vec<String>,
    /// Further flags of 'docker buildx build'
    #[arg(last = true, value_name = "BUILD ARGS", help_heading = None)]
    pub further: Vec<OsString>,
}

/// Reads a name. Not for `--builder`: the default has the empty one, for buildx too.
fn name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("a name is needed".into()) } else { Ok(text.into()) }
}

fn language(name: &str) -> Result<&'static str, String> {
    catalogue::language(name).ok_or_else(|| none_of(name, catalogue::languages()))
}

fn tool(name: &str) -> Result<&'static str, String> {
    catalogue::tool(name).ok_or_else(|| none_of(name, catalogue::tools()))
}

/// Says what names there are, and which is most like what the user wrote, if any is: by what clap measures, and a little stricter.
fn none_of(wrote: &str, names: impl Iterator<Item = &'static str>) -> String {
    let names: Vec<&str> = names.collect();
    let all = names.join(", ");
    let likeness = |name: &str| strsim::jaro(wrote, name);
    match names.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b))).filter(|name| likeness(name) > 0.75) {
        Some(like) => format!("did you mean `{like}`? There are {all}"),
        None => format!("there are {all}"),
    }
}

fn variable(text: &str) -> Result<String, String> {
    if text.starts_with('=') { Err("a name is needed before the `=`".into()) } else { name(text) }
}

fn seconds(text: &str) -> Result<u64, String> {
    let number = text.parse().ok().filter(|seconds| *seconds > 0);
    number.ok_or("a number of seconds is needed, 1 or more; names go before the flag".into())
}

fn age(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text).map_err(|_| "a number and its unit are needed, such as 30d or 12h".into())
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    match (user.parse(), group.parse()) {
        // The largest number says "as it is" to the kernel.
        (Ok(user), Ok(group)) if user != u32::MAX && group != u32::MAX => Ok((user, group)),
        _ => Err("two numbers are needed, such as 1000:1000".into()),
    }
}

/// Prove that a bundle is whole, and say what of it can be used
#[derive(Debug, Args)]
#[command(help_template = HELP, after_help = "\
Examples:
  docker cache verify /tmp/cache
  docker cache verify type=registry,ref=ghcr.io/team/cache:main
  docker cache verify /tmp/cache --format json | jq '.entries[].name'")]
pub struct Verify {
    /// Directory of the bundle, or type=registry,ref=HOST/NAME:TAG
    #[arg(value_name = "SRC")]
    pub src: Location,
    #[command(flatten)]
    pub output: Output,
}

/// Fill caches before they are needed: download what the project's lock files say
#[derive(Debug, Args)]
#[command(help_template = HELP, after_help = "\
Examples:
  docker cache warm                         the cache mounts of Dockerfiles
  docker cache warm web --dry-run           what would be downloaded, where to
  docker cache warm --volume project-cache  as its containers use it
  docker cache warm --volume tools --image myproject:dev --user dev
  docker cache warm --lang python --env PIP_INDEX_URL

Not tried: pnpm, nuget, pub. Not done: conda.")]
pub struct Warm {
    /// Directory with lock files, in itself or below [default: .]
    pub path: Option<PathBuf>,
    /// Image that has the tools [default: of a container that uses the volume, else of the Dockerfile]
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// User to write as [default: of that container, Dockerfile or image]
    #[arg(long, value_name = "USER", value_parser = name)]
    pub user: Option<String>,
    /// Fill these volumes, not cache mounts
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub volume: Vec<String>,
    /// Fill the cache mounts of this builder [default: $BUILDX_BUILDER, else those in use]
    #[arg(long, value_name = "NAME", env = "BUILDX_BUILDER", hide_env = true, hide_default_value = true)]
    pub builder: Option<String>,
    #[command(flatten)]
    pub names: Names,
    /// Set a variable for the tools; NAME alone takes its value from here. For cache mounts it is a build argument, which
    /// BuildKit's history keeps: give credentials to volumes only
    #[arg(long, value_name = "NAME[=VALUE]", value_parser = variable, action = ArgAction::Append)]
    pub env: Vec<String>,
    /// Network of the containers and builds, as docker has it
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
    /// Show what would be downloaded, and download nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: Output,
}

/// Show the builders and choose the one to build with
#[derive(Debug, Args)]
#[command(help_template = HELP, args_conflicts_with_subcommands = true, after_help = "\
Examples:
  docker cache builder                 same as 'docker cache builder ls'
  docker cache builder ls --format json
  docker cache builder use mybuilder")]
pub struct Builder {
    #[command(subcommand)]
    pub command: Option<BuilderCommand>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum BuilderCommand {
    /// List the builders: what they can do, what they hold, and which command uses them
    #[command(help_template = HELP, after_help = "\
Examples:
  docker cache builder ls
  docker cache builder ls --format json | jq '.builders[].cache_bytes'")]
    Ls(BuilderLs),
    /// Switch to a builder, and say what that does and does not change
    #[command(help_template = HELP, after_help = "\
Examples:
  docker cache builder use mybuilder  what 'docker buildx build' uses then
  docker cache builder use default    back to the engine's own
  docker cache builder use far        of a docker context: puts that in use")]
    Use(BuilderUse),
}

#[derive(Debug, Args)]
pub struct BuilderLs {
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct BuilderUse {
    /// Builder to switch to, as 'docker cache builder ls' lists it
    pub name: String,
}

/// Let docker show a line after builds when something is wrong with the caches
#[derive(Debug, Args)]
#[command(help_template = HELP, after_help = "\
Examples:
  docker cache hooks enable   in docker's config.json
  docker cache hooks status   and does docker show them?")]
pub struct Hooks {
    #[command(subcommand)]
    pub command: HooksCommand,
}

#[derive(Debug, Subcommand)]
pub enum HooksCommand {
    /// Enable the hints, in docker's config.json
    #[command(help_template = HELP, after_help = "\
Examples:
  docker cache hooks enable")]
    Enable,
    /// Disable the hints, and leave those of other plugins
    #[command(help_template = HELP, after_help = "\
Examples:
  docker cache hooks disable")]
    Disable,
    /// Tell whether docker shows the hints, and why not
    #[command(help_template = HELP, after_help = "\
Examples:
  docker cache hooks status
  docker cache hooks status --format json | jq .shown")]
    Status(HooksStatus),
}

#[derive(Debug, Args)]
pub struct HooksStatus {
    #[command(flatten)]
    pub output: Output,
}

/// The languages and tools that a command is about, as the catalogue names them; all of them where none is named.
#[derive(Clone, Debug, Default, Args)]
pub struct Names {
    /// Only caches of these languages
    #[arg(long, value_name = "LANGUAGE", value_delimiter = ',', value_parser = language)]
    pub lang: Vec<&'static str>,
    /// Only caches of these tools
    #[arg(long, value_name = "TOOL", value_delimiter = ',', value_parser = tool)]
    pub tool: Vec<&'static str>,
}

impl Names {
    /// Returns true if a cache of this language and tool was asked for.
    pub fn select(&self, language: Option<&str>, tool: Option<&str>) -> bool {
        (self.lang.is_empty() || language.is_some_and(|name| self.lang.contains(&name)))
            && (self.tool.is_empty() || tool.is_some_and(|name| self.tool.contains(&name)))
    }

    /// Returns true if what this row of the catalogue is about was asked for.
    pub fn select_row(&self, row: &Row) -> bool {
        self.select(Some(row.language), Some(row.tool))
    }

    /// Returns true if any is named.
    pub fn any(&self) -> bool {
        !self.lang.is_empty() || !self.tool.is_empty()
    }
}

/// Which caches a command is about. A filter narrows what would have been taken without it.
#[derive(Clone, Debug, Default, Args)]
pub struct Selection {
    #[command(flatten)]
    pub names: Names,
    /// Only these volumes; also takes one that is not known to be a cache
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub volume: Vec<String>,
    /// Only the cache mounts of these ids
    #[arg(long, value_name = "ID", value_parser = name)]
    pub mount: Vec<String>,
    /// Only this builder [default: $BUILDX_BUILDER, else those that 'docker build' and 'docker buildx build' use]
    #[arg(long, value_name = "NAME", env = "BUILDX_BUILDER", hide_env = true, hide_default_value = true)]
    pub builder: Option<String>,
    /// All builders of 'docker buildx ls'
    #[arg(long)]
    pub all_builders: bool,
}

impl Selection {
    /// Returns true if it takes less than all caches of its builders and of the engine's volumes.
    pub fn narrows(&self) -> bool {
        self.names.any() || !self.volume.is_empty() || !self.mount.is_empty()
    }

    /// Returns true if it is about this kind: naming volumes says that no mounts are meant, and layers belong to no language,
    /// tool, mount or volume.
    pub fn wants(&self, kind: Kind) -> bool {
        match kind {
            Kind::Volume => !self.volume.is_empty() || self.mount.is_empty(),
            Kind::Mount => !self.mount.is_empty() || self.volume.is_empty(),
            Kind::Layer => !self.narrows(),
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct Output {
    /// Format of the output
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    /// Print only names, or only what was found
    #[arg(long, short)]
    pub quiet: bool,
    #[command(flatten)]
    pub progress: Progress,
}

impl Output {
    /// Returns how to tell of what takes long.
    pub fn telling(&self) -> Telling {
        if self.quiet { Telling::Quiet } else { self.progress.progress }
    }
}

#[derive(Clone, Debug, Args)]
pub struct Progress {
    /// Set type of progress output; 'auto' is a line on a terminal, and 'plain' elsewhere
    #[arg(long, value_enum, value_name = "TYPE", default_value = "auto", hide_possible_values = true)]
    pub progress: Telling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

/// Write the manual pages, as install.sh does
#[derive(Debug, Args)]
pub struct Man {
    /// Directory for them
    pub directory: PathBuf,
}

/// What this binary does inside an engine
#[cfg(target_os = "linux")]
#[derive(Debug, Args)]
pub struct Inside {
    /// File with the job, as JSON [default: standard input]
    #[arg(requires = "answer")]
    pub job: Option<PathBuf>,
    /// File for the answer [default: standard output]
    pub answer: Option<PathBuf>,
}
