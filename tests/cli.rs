//! The plugin and the docker command, without an engine: how docker calls it, what it hands on, and how it ends.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::process::Run;
use support::world::{fake_docker, write_files};

const PLUGIN: &str = env!("CARGO_BIN_EXE_docker-cache");

/// A folder with a `docker` that a test scripts. Its `$LOG` gets a line of each call, every argument in brackets.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    /// Makes a docker that runs this shell script.
    fn new(script: &str) -> World {
        let world = World { folder: tempfile::tempdir().unwrap() };
        let log = "printf '[%s]' \"$@\" >>\"$LOG\"; echo >>\"$LOG\"";
        fake_docker(&world.at("bin"), &format!("{log}\n{script}"));
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the plugin with these arguments, as docker would start it, in an environment of its own.
    fn plugin<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(PLUGIN);
        command.args(arguments).env_clear().stdin(Stdio::null());
        command.env("PATH", format!("{}:/usr/bin:/bin", self.at("bin").display()));
        command.env("LOG", self.at("log")).env("HOME", self.folder.path()).current_dir(self.folder.path());
        command
    }

    /// Runs the plugin with the arguments of a line.
    fn run(&self, line: &str) -> Run {
        Run::of(&mut self.plugin(words(line)))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }

    /// Starts the plugin and waits until it has called docker.
    fn start(&self, command: &mut Command) -> Child {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begin = Instant::now();
        while self.log().is_empty() {
            assert!(begin.elapsed() < Duration::from_secs(20), "docker is not called");
            std::thread::sleep(Duration::from_millis(10));
        }
        child
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(' ').filter(|word| !word.is_empty()).map(|word| if word == "''" { "" } else { word })
}

fn outcome(child: Child) -> Run {
    Run::from_output("docker-cache".into(), child.wait_with_output().unwrap())
}

/// An engine that cannot be reached.
const REFUSES: &str =
    "echo 'Cannot connect to the Docker daemon at unix:///nosuch. Is the docker daemon running?' >&2; exit 1";
/// `exec`: the script is the process that a cancel has to end.
const HANGS: &str = "exec sleep 600";

#[test]
fn metadata_is_one_json_object_and_asks_docker_nothing() {
    let world = World::new(REFUSES);
    let run = world.run("docker-cli-plugin-metadata").ok();
    let metadata: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(metadata["SchemaVersion"], "0.1.0");
    assert!(metadata["Vendor"].as_str().is_some_and(|vendor| !vendor.is_empty()));
    assert_eq!((world.log().as_str(), run.stderr.as_str()), ("", ""));
}

#[test]
fn every_form_in_which_docker_asks_for_help_shows_it() {
    let world = World::new(REFUSES);
    let root = world.run("cache --help").ok().stdout;
    assert!(root.starts_with("Usage:  docker cache [OPTIONS] COMMAND\n"), "{root}");
    for line in
        ["cache", "", "cache -h", "cache help", "help cache", "-D help cache", "--help cache", "-h cache", "--help"]
    {
        assert_eq!(world.run(line).ok().stdout, root, "{line}");
    }
    assert_eq!(world.run("--context x cache").ok().stdout, root);
    let size = world.run("cache size --help").ok().stdout;
    assert!(size.starts_with("Usage:  docker cache size [OPTIONS] [NAME...]\n"), "{size}");
    for line in
        ["cache size -h", "cache help size", "help cache size", "--help cache size", "size --help", "-- cache size -h"]
    {
        assert_eq!(world.run(line).ok().stdout, size, "{line}");
    }
    assert_eq!(world.log(), "");
}

#[test]
fn every_form_asks_for_the_version() {
    let world = World::new(REFUSES);
    for line in ["cache --version", "cache -v", "--version cache", "-v cache", "--version"] {
        assert_eq!(world.run(line).ok().stdout, concat!("docker-cache ", env!("CARGO_PKG_VERSION"), "\n"), "{line}");
    }
}

#[test]
fn a_hook_is_answered_without_docker() {
    let world = World::new(REFUSES);
    let answer = |flags: &str| {
        let json = format!(r#"{{"RootCmd":"buildx bake","Flags":{{{flags}}},"CommandError":""}}"#);
        let mut command = world.plugin(["cache", "docker-cli-plugin-hooks", &json]);
        // The disk of this machine's own engine may really be full.
        Run::of(command.env("DOCKER_HOST", "unix:///nosuch")).ok().stdout
    };
    assert_eq!(answer(""), "{}\n");
    assert!(answer(r#""no-cache":"""#).starts_with(r#"{"Template":"`--no-cache` emptied"#));
    assert_eq!(world.run("cache docker-cli-plugin-hooks garbage").code, 0);
    assert_eq!(world.log(), "");
}

#[test]
fn every_command_explains_itself() {
    fn look(world: &World, command: &clap::Command, path: &str) {
        let help = world.run(&format!("{path} --help")).ok().stdout;
        assert!(help.starts_with(&format!("Usage:  docker {path} ")), "{help}");
        assert!(help.contains("\nExamples:\n  docker cache "), "`{path}` has no examples\n{help}");
        let about = help.lines().nth(2).unwrap_or_default();
        assert!(!about.is_empty() && !about.ends_with('.'), "`{path}` has no description\n{help}");
        for line in help.lines().filter(|line| line.starts_with("  docker ")) {
            assert!(line.chars().count() < 80, "an example wraps on a narrow terminal: {line}");
        }
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
            look(world, inner, &format!("{path} {}", inner.get_name()));
        }
    }
    look(&World::new(REFUSES), &docker_cache::cli::grammar(), "cache");
}

#[test]
fn docker_builds_flags_alone_are_told_as_such() {
    let grammar = docker_cache::cli::grammar();
    for name in ["export", "import"] {
        let command = grammar.find_subcommand(name).unwrap();
        let of_build = command.get_arguments().filter(|arg| arg.get_help_heading().is_some());
        let of_build: Vec<&str> = of_build.filter_map(clap::Arg::get_long).collect();
        assert_eq!(of_build, ["file", "target", "build-arg", "platform", "secret", "ssh"], "{name}");
        assert!(command.get_positionals().all(|arg| arg.get_help_heading().is_none()), "{name}");
    }
}

#[test]
fn wrong_words_are_refused_as_docker_refuses_them() {
    let world = World::new(REFUSES);
    let size =
        "\n\nUsage:  docker cache size [OPTIONS] [NAME...]\n\nRun 'docker cache size --help' for more information\n";
    let root = "\n\nUsage:  docker cache [OPTIONS] COMMAND\n\nRun 'docker cache --help' for more information\n";
    let cases = [
        ("cache size --nosuch", 125, "unknown flag: --nosuch", size),
        ("cache size -x", 125, "unknown shorthand flag: 'x' in -x", size),
        ("cache --nosuch size", 125, "unknown flag: --nosuch", root),
        (
            "cache size --format xml",
            125,
            "invalid argument \"xml\" for \"--format\" flag: must be one of table, json",
            size,
        ),
        (
            "cache size --format {{.Name}}",
            125,
            "invalid argument \"{{.Name}}\" for \"--format\" flag: must be one of table, json\n\
             hint: Go templates are not understood; `--format json` has every field, for jq",
            size,
        ),
        (
            "cache size --progress tty",
            125,
            "invalid argument \"tty\" for \"--progress\" flag: must be one of auto, plain, quiet",
            size,
        ),
        ("cache size --lang", 125, "flag needs an argument: --lang", size),
        (
            "cache size --all-builders=x",
            125,
            "invalid argument \"x\" for \"--all-builders\" flag: it takes no value",
            size,
        ),
        ("cache size --frmat", 125, "unknown flag: --frmat\nhint: did you mean `--format`?", size),
        ("cache expor", 1, "docker: unknown command: docker cache expor\nhint: did you mean `export`?", root),
        ("cache docter", 1, "docker: unknown command: docker cache docter\nhint: did you mean `doctor`?", root),
        ("cache df", 1, "docker: unknown command: docker cache df\nhint: did you mean `size`?", root),
        ("cache sizee", 1, "docker: unknown command: docker cache sizee\nhint: did you mean `size`?", root),
        ("help cache nosuch", 1, "docker: unknown command: docker cache nosuch", root),
    ];
    for (line, code, what, rest) in cases {
        let run = world.run(line);
        assert_eq!((run.stderr.as_str(), run.code), (format!("{what}{rest}").as_str(), code), "{line}");
        assert_eq!(run.stdout, "", "{line}");
    }
    let run = world.run("cache builder use");
    assert_eq!((run.code, run.stderr.lines().next()), (1, Some("docker: 'docker cache builder use' requires NAME")));
    let run = world.run("cache builder usee x");
    assert!(run.code == 1 && run.stderr.contains("docker cache builder usee\nhint: did you mean `use`?"), "{run}");
    let run = world.run("cache builder nope");
    assert!(run.code == 1 && run.stderr.contains("\nhint: did you mean `docker cache builder use nope`?"), "{run}");
    let hint = "hint: flags of `docker build` go after `--`";
    for (line, is_hinted) in [
        ("cache doctor --explain --build-arg X=1 .", true),
        ("cache doctor . -t x --explain", true),
        ("cache export --dest x --network=none .", true),
        ("cache doctor --build-arg X=1 .", false),
        ("cache size --network=none", false),
    ] {
        let run = world.run(line);
        assert!(run.code == 125 && run.stderr.contains(hint) == is_hinted, "{line}: {run}");
    }
    for (name, flag) in [("project-cache", "--volume project-cache"), ("npm", "--tool npm"), ("a b", "--volume 'a b'")]
    {
        let run = Run::of(&mut world.plugin(["cache", "clear", name]));
        assert!(run.code == 1 && run.stderr.contains(&format!("\nhint: did you mean `{flag}`?")), "{run}");
    }
    assert_eq!(world.log(), "");
}

#[test]
fn flags_that_would_be_ignored_are_refused() {
    let world = World::new(REFUSES);
    for line in [
        "cache doctor --fix --format sarif",
        "cache doctor --fix --format github",
        "cache doctor --fix --image x",
        "cache doctor --fix --container x",
        "cache doctor --explain --format sarif",
        "cache doctor --explain --fail-on note",
        "cache size --by kind --format json",
        "cache size --by kind --quiet",
        "cache size --watch 0",
        "cache size --watch pip",
        "cache clear --older-than 30",
        "cache import --src x --all-builders",
        "cache import --src x --owner 4294967295",
        "cache import --src x --owner 0:4294967295",
    ] {
        let run = world.run(line);
        assert_eq!((run.code, run.stdout.as_str()), (125, ""), "{line}: {run}");
    }
    assert!(!world.run("cache import --help").ok().stdout.contains("--all-builders"));
    let run = world.run("cache size --by kind --watch");
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run}");
    assert_eq!(world.log(), "");
    let run = world.run("cache hooks status -q").ok();
    assert_eq!(run.stdout, "they are not enabled: `docker cache hooks enable`\n");
}

#[test]
fn empty_names_are_refused() {
    let world = World::new(REFUSES);
    for line in [
        "cache import --src x --to-volume ''",
        "cache import --src x --to-mount ''",
        "cache export --to-builder ''",
        "cache size --volume ''",
        "cache clear --mount=",
        "cache doctor --volume ''",
        "cache doctor --container ''",
        "cache warm --volume ''",
        "cache warm --user ''",
        "cache warm --env ''",
        "cache warm --env =x",
    ] {
        let run = world.run(line);
        assert_eq!((run.code, run.stdout.as_str()), (125, ""), "{line}: {run}");
    }
    assert_eq!(world.log(), "");
}

#[test]
fn what_is_named_and_not_there_is_refused_before_docker_is_asked() {
    let world = World::new(REFUSES);
    fs::create_dir(world.at("local.cache")).unwrap();
    for (line, code, what) in [
        ("cache export --dest x nosuch", 1, "CONTEXT is no directory: `nosuch`"),
        ("cache import --src x nosuch", 1, "CONTEXT is no directory: `nosuch`"),
        ("cache export --dest x -f nosuch", 1, "there is no Dockerfile `nosuch`"),
        ("cache export --dest ghcr.io/team/cache:main", 125, "`type=registry,ref=ghcr.io/team/cache:main`"),
        ("cache import --src localhost:5000/cache", 125, "`type=registry,ref=localhost:5000/cache`"),
        ("cache verify localhost:5000/cache", 125, "`type=registry,ref=localhost:5000/cache`"),
        ("cache verify local.cache/x", 1, "is no bundle"),
        ("cache warm --tool cargo", 1, "no lock files of cargo in ."),
        ("cache warm --tool pipp", 125, "\"pipp\" for \"--tool\" flag: did you mean `pip`? There are "),
        ("cache size --lang go,pyton", 125, "\"pyton\" for \"--lang\" flag: did you mean `python`? There are "),
        ("cache clear --lang qqq", 125, "\"qqq\" for \"--lang\" flag: there are "),
    ] {
        let run = world.run(line);
        assert!(run.code == code && run.stderr.contains(what), "{line}: {run}");
    }
    assert_eq!(world.log(), "");
}

#[test]
fn global_flags_in_every_spelling_reach_docker() {
    let cases = [
        ("cache builder ls", ""),
        ("--context x cache builder ls", "[--context=x]"),
        ("-c x cache builder ls", "[--context=x]"),
        ("-cx cache builder ls", "[--context=x]"),
        ("-c=x cache builder ls", "[--context=x]"),
        ("--context=x cache builder ls", "[--context=x]"),
        ("cache builder ls -c x", "[--context=x]"),
        ("cache -c x builder ls", "[--context=x]"),
        ("builder ls --context x", "[--context=x]"),
        ("-Dc cache cache builder ls", "[--context=cache][--debug=true]"),
        ("-c size cache builder ls", "[--context=size]"),
        ("-H unix:///s -D --log-level=warn cache builder ls", "[--host=unix:///s][--log-level=warn][--debug=true]"),
        ("-Hunix:///s cache builder ls", "[--host=unix:///s]"),
        ("-H=unix:///s -l debug cache builder ls -D", "[--host=unix:///s][--log-level=debug][--debug=true]"),
        ("--debug=true cache builder ls", "[--debug=true]"),
        ("-D=false cache builder ls", ""),
        ("--config DIR cache builder ls", "[--config=DIR]"),
        (
            "--tlsverify --tlscacert /a --tlscert /b --tlskey=/c cache builder ls",
            "[--tlscacert=/a][--tlscert=/b][--tlskey=/c][--tlsverify=true]",
        ),
        ("--tls=false cache builder ls", "[--tls=false]"),
        ("--tls cache builder ls", "[--tls=true]"),
        ("-- cache builder ls", ""),
        ("cache -- builder ls", ""),
    ];
    for (line, globals) in cases {
        let world = World::new(REFUSES);
        let run = world.run(line);
        assert_eq!(run.code, 1, "{line}: {run}");
        let log = world.log();
        assert!(log.starts_with(&format!("{globals}[buildx][ls]")), "{line}: {log}");
    }
}

#[test]
fn the_docker_that_started_the_plugin_is_called_back() {
    let world = World::new(REFUSES);
    fake_docker(&world.at("other"), "echo other >>\"$LOG\"; exit 1");
    for original in [world.at("other/docker"), PathBuf::from("./other/docker")] {
        let _ = fs::remove_file(world.at("log"));
        let mut command = world.plugin(["cache", "builder", "ls"]);
        Run::of(command.env("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND", original));
        assert_eq!(world.log(), "other\n");
    }
    // In a completion it is the plugin itself.
    fs::copy(PLUGIN, world.at("docker-cache")).unwrap();
    let mut command = world.plugin(["cache", "builder", "ls"]);
    Run::of(command.env("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND", world.at("docker-cache")));
    assert!(world.log().contains("[buildx][ls]"));
}

#[test]
fn empty_name_of_a_builder_is_none() {
    let script = r#"case "$*" in
        *"buildx ls"*) echo 'default* {"Name":"default","Driver":"docker","Nodes":[{"Endpoint":"default","Status":"running"}]}' ;;
        *) printf 'HTTP/1.0 200 OK\r\n\r\n{"BuildCache":[]}' ;;
        esac"#;
    let world = World::new(script);
    let mut command = world.plugin(["cache", "size", "--mount", "pip"]);
    let run = Run::of(command.env("BUILDX_BUILDER", ""));
    assert!(run.code == 1 && run.stderr.contains("no cache mount \"pip\" in default"), "{run}");
    // `docker build` uses default, whichever is listed first.
    let script = r#"case "$*" in
        *"buildx ls"*)
            echo 'a* {"Name":"a","Driver":"docker-container","Nodes":[{"Endpoint":"x","Status":"running"}]}'
            echo 'default {"Name":"default","Driver":"docker","Nodes":[{"Endpoint":"default","Status":"running"}]}' ;;
        *) for body in '{}' '[]' '{}'; do printf 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%s' "$body"; done ;;
        esac"#;
    let world = World::new(script);
    fs::write(world.at("Dockerfile"), "FROM scratch\n").unwrap();
    let mut command = world.plugin(["cache", "export", "--dest", "x", "--dry-run", "."]);
    let run = Run::of(command.env("BUILDX_BUILDER", ""));
    assert!(run.stderr.contains("layers: builder default cannot export them"), "{run}");
}

#[test]
fn no_docker_is_an_error_with_a_hint() {
    let world = World::new(REFUSES);
    fs::remove_dir_all(world.at("bin")).unwrap();
    fs::create_dir(world.at("bin")).unwrap();
    let mut command = world.plugin(["cache", "size"]);
    let run = Run::of(command.env("PATH", world.at("bin")));
    assert_eq!(run.code, 1);
    assert_eq!(run.stderr, "ERROR: no `docker` command found\nhint: install the docker CLI, or put it on PATH\n");
}

#[test]
fn no_engine_is_one_error_with_a_hint() {
    let run = World::new(REFUSES).run("cache size");
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.lines().count()), (1, "", 2), "{run}");
    assert!(run.stderr.starts_with("ERROR: `docker ") && run.stderr.contains("\nhint: start the engine"), "{run}");
}

#[test]
fn without_an_engine_no_check_that_asks_it_is_fine() {
    let world = World::new(REFUSES);
    fs::write(world.at("Dockerfile"), "FROM python:3.12\nCMD [\"python\"]\n").unwrap();
    let doctor = |line: &str| {
        let run = Run::of(world.plugin(words(line)).env("DOCKER_HOST", "unix:///nosuch"));
        let answer: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        (run.code, answer)
    };
    let (_, all) = doctor("cache doctor --format json");
    let of_files =
        ["file-unreadable", "dockerfile-unreadable", "cache-export-grows", "cache-in-image", "no-cache-flag"];
    let of_steps = ["missing-cache-mount", "dead-cache-mount", "defeated-cache-mount", "unsafe-sharing"];
    let of_mounts = ["mount-over-install", "mount-id-clash", "copy-before-install"];
    let mut asked = 0;
    for check in all["checks"].as_array().unwrap() {
        let name = check["name"].as_str().unwrap();
        if name == "engine-unreachable" {
            assert_eq!(check["status"], "found");
        } else if of_files.iter().chain(&of_steps).chain(&of_mounts).any(|other| *other == name) {
            assert_eq!(check["status"], "ok", "{check}");
        } else {
            assert_eq!(check["status"], "skipped", "{check}");
            let (code, alone) = doctor(&format!("cache doctor --format json --check {name}"));
            assert_eq!((code, &alone["checks"][0]["status"]), (1, &"failed".into()), "{alone}");
            asked += 1;
        }
    }
    assert!(asked > 10, "{all}");
    assert_eq!(doctor("cache doctor --format json --container web").0, 1);
}

#[test]
fn owners_are_changed_by_their_check_alone() {
    let world = World::new(REFUSES);
    fs::write(world.at("Dockerfile"), "FROM python:3.12\n").unwrap();
    for checks in ["mount-owner,volume-owner", "volume-owner,gc-policy", "mount-owner,unsafe-sharing"] {
        let run = world.run(&format!("cache doctor --fix --dry-run --check {checks} ."));
        assert!(run.code == 125 && run.stderr.contains("by their checks alone\nhint: "), "{run}");
    }
}

#[test]
fn a_context_that_is_not_there_is_told_as_such() {
    let words = [
        "Failed to initialize: unable to resolve docker endpoint: context \"nope\": context not found: open /m/meta.json: no \
         such file or directory",
        "error during connect: context \"nope\" does not exist",
    ];
    for words in words {
        let run = World::new(&format!("echo '{words}' >&2; exit 1")).run("--context nope cache size");
        let expected =
            "ERROR: there is no docker context \"nope\"\nhint: `docker context ls` lists those that are there\n";
        assert_eq!((run.code, run.stderr.as_str()), (1, expected));
    }
}

#[test]
fn what_cannot_be_known_of_a_builder_that_fails_is_not_told() {
    let script = r#"case "$*" in
        *"buildx ls"*)
            echo 'default* {"Name":"default","Driver":"docker","Nodes":[{"Endpoint":"default","Status":"running"}]}'
            echo 'far {"Name":"far","Driver":"","Err":"Cannot connect to the Docker daemon at tcp://far"}' ;;
        *) printf 'HTTP/1.0 200 OK\r\n\r\n{"BuildCache":[]}' ;;
        esac"#;
    let world = World::new(script);
    let run = world.run("cache builder ls");
    let far = run.stdout.lines().find(|line| line.starts_with("far")).unwrap_or_default();
    assert_eq!(far.split_whitespace().collect::<Vec<_>>(), ["far", "-", "error", "N/A", "N/A", "-", "-"], "{run}");
    assert!(run.stderr.contains("builder far: Cannot connect to the Docker daemon at tcp://far"), "{run}");
    let run = world.run("cache builder ls --format json");
    let answer: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(answer["builders"][1]["can_export"], false, "{run}");
}

#[test]
fn a_name_that_the_filters_leave_out_is_told_so() {
    let script = r#"case "$*" in
        *"buildx ls"*) echo 'default* {"Name":"default","Driver":"docker","Nodes":[{"Endpoint":"default","Status":"running"}]}' ;;
        *) for body in '{}' '[]' '{}'; do printf 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%s' "$body"; done ;;
        esac"#;
    let run = World::new(script).run("cache size pip --tool npm");
    assert!(run.code == 1 && run.stderr.contains("no cache called \"pip\" is among those selected"), "{run}");
}

/// Returns a world with the builders other and default, of which default is in use. What is asked of the other one is
/// answered by `other`; each has one cache mount, `m`.
fn two_builders(other: &str) -> World {
    let builder = |name: &str, labels: &str| {
        format!(
            r#"{{"Name":"{name}","Driver":"docker","Nodes":[{{"Endpoint":"{name}","Status":"running","Labels":{{{labels}}}}}]}}"#
        )
    };
    let able = builder("default", r#""org.mobyproject.buildkit.worker.snapshotter":"overlayfs""#);
    let script = format!(
        r#"holds() {{
            body='{{"BuildCache":[{{"ID":"'$1'","Type":"exec.cachemount","Size":5,"CreatedAt":"2020-01-01T00:00:00Z",
                "Description":"cached mount /m from exec /bin/sh -c x with id \"/m\""}}]}}'
            printf 'HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n%s' "${{#body}}" "$body"
        }}
        case "$*" in
        *"buildx ls"*) echo 'other {}'; echo 'default* {able}' ;;
        *"context=other"*|*"context other"*) {other} ;;
        *) holds a ;;
        esac"#,
        builder("other", "")
    );
    World::new(&script)
}

#[test]
fn of_one_mount_in_two_builders_that_of_the_builder_in_use_is_taken() {
    let world = two_builders("holds b");
    let run = world.run("cache export --dest x --all-builders --mount m --include-installs --dry-run").ok();
    assert!(run.stderr.contains("mount m of builder other"), "{run}");
}

#[test]
fn a_mount_is_missing_only_where_somebody_looked() {
    let world = two_builders("echo 'dial unix /x.sock: connect: permission denied' >&2; exit 1");
    let run = world.run("cache export --dest x --all-builders --mount nosuch");
    let first = run.stderr.lines().next().unwrap_or_default();
    assert!(run.code == 1 && first.contains("default") && !first.contains("other"), "{run}");
    assert!(run.stderr.contains("builder other"), "{run}");
}

#[test]
fn a_builder_is_not_copied_to_itself() {
    // By two names, one BuildKit.
    let run = two_builders("holds a").run("cache export --builder other --to-builder default --dry-run");
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{run}");
    let world = two_builders("holds b");
    fs::write(world.at("Dockerfile"), "FROM scratch\n").unwrap();
    for switch in ["", "--switch"] {
        let run = world.run(&format!("cache export --builder other --to-builder default --dry-run {switch} ."));
        assert!(run.code == 1 && run.stdout.contains("mount"), "{run}");
        assert!(
            run.stderr.contains("layers: builder other cannot") && !run.stderr.contains("--builder default"),
            "{run}"
        );
    }
}

#[test]
fn a_time_limit_that_is_none_is_told() {
    let world = World::new(REFUSES);
    for (limit, told) in [("abc", true), ("30", true), ("0s", true), ("30s", false), ("", false)] {
        let mut command = world.plugin(["cache", "builder", "ls"]);
        let run = Run::of(command.env("DOCKER_CACHE_TIMEOUT", limit));
        assert_eq!(run.stderr.contains("DOCKER_CACHE_TIMEOUT"), told, "{limit}: {run}");
    }
}

#[test]
fn docker_that_hangs_meets_the_time_limit() {
    let world = World::new(HANGS);
    let begin = Instant::now();
    let mut command = world.plugin(["cache", "builder", "ls"]);
    let run = Run::of(command.env("DOCKER_CACHE_TIMEOUT", "300ms"));
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(run.code == 1 && run.stderr.contains("did not answer within 300ms\nhint: "), "{run}");
}

#[test]
fn answers_that_make_no_sense_are_told_so() {
    let answers = ["echo garbage", "printf 'NAME {}\\ndefault* {\"Name\":\"def'", "printf '\\377\\376'", "exit 0"];
    for answer in answers {
        for line in ["cache builder ls", "cache size --volume x"] {
            let run = World::new(answer).run(line);
            assert!(run.code == 1 && run.stderr.contains("makes no sense"), "{answer}: {line}: {run}");
            assert!(run.stdout.is_empty() && run.stderr.starts_with("ERROR: `docker "), "{run}");
        }
    }
}

#[test]
fn docker_that_fails_without_a_word_is_an_error() {
    let run = World::new("exit 7").run("cache builder ls");
    assert!(run.code == 1 && run.stderr.contains("failed without a word"), "{run}");
}

/// Sends a signal to the plugin while docker hangs, and expects this exit status and silence.
fn ends_by(signal: Signal, code: i32) {
    let world = World::new(HANGS);
    let plugin = world.plugin([""; 0]);
    // Whoever runs the tests may ignore signals, as nohup does, and a child inherits that.
    let mut command = Command::new("env");
    command.env_clear().envs(plugin.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["--default-signal", PLUGIN, "cache", "size"]);
    let child = world.start(&mut command);
    kill_process(Pid::from_child(&child), signal).unwrap();
    let run = outcome(child);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (code, "", ""), "{run}");
    assert_eq!(sleepers(&world), 0, "docker goes on");
}

#[test]
fn a_cancelled_verify_calls_nothing_broken() {
    let world = World::new(REFUSES);
    let blob = world.at("blobs/sha256").join("1".repeat(64));
    fs::create_dir_all(world.at("blobs/sha256")).unwrap();
    let size = 64_u64 << 30;
    fs::File::create(&blob).unwrap().set_len(size).unwrap();
    let entry = format!(r#"{{"mediaType":"x","digest":"sha256:{}","size":{size}}}"#, "1".repeat(64));
    fs::write(world.at("oci-layout"), "{}").unwrap();
    fs::write(world.at("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#)).unwrap();
    let mut command = world.plugin(["cache", "verify", "."]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let open = format!("/proc/{}/fd", child.id());
    let is_read =
        || fs::read_dir(&open).unwrap().flatten().any(|file| fs::read_link(file.path()).is_ok_and(|to| to == blob));
    let begin = Instant::now();
    while !is_read() {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing is read");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let run = outcome(child);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (143, "", ""), "{run}");
}

#[test]
fn nobody_who_cancels_waits_for_a_registry_that_is_silent() {
    let world = World::new(REFUSES);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("type=registry,ref={}/x:y", listener.local_addr().unwrap());
    let mut command = world.plugin(["cache", "verify", &reference]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _silent = listener.accept().unwrap();
    let begin = Instant::now();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let run = outcome(child);
    assert!(begin.elapsed() < Duration::from_secs(20), "{run}");
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (143, "", ""), "{run}");
}

#[test]
fn a_history_that_is_no_file_is_empty() {
    let world = World::new(REFUSES);
    let directory = world.at(".local/state/docker-cache");
    fs::create_dir_all(&directory).unwrap();
    Run::of(Command::new("mkfifo").arg(directory.join("sizes.jsonl"))).ok();
    let run = world.run("cache size --history --format json").ok();
    assert!(run.stdout.contains("\"samples\":[]"), "{run}");
}

/// Returns the plugin as the world's docker starts it, and the engine's socket, at which nothing answers yet.
fn started_by_docker(world: &World) -> (Command, UnixListener) {
    let (socket, docker) = (world.at("docker.sock"), world.at("bin/docker"));
    let mut command = world.plugin(["cache", "size", "--volume", "x"]);
    command.env("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND", docker);
    command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
    (command, UnixListener::bind(socket).unwrap())
}

#[test]
fn engine_is_asked_at_its_socket_without_docker() {
    let world = World::new(REFUSES);
    let (mut command, engine) = started_by_docker(&world);
    // As `docker context create far` keeps it: in a directory named by the SHA-256 of the name.
    let host = format!("unix://{}", world.at("docker.sock").display());
    let meta = format!(r#"{{"Name":"far","Endpoints":{{"docker":{{"Host":"{host}"}}}}}}"#);
    let file = "512eea46ceb3921dff4363c7069d89d4964d1d9fccaa0f411851a7aa60a5c868/meta.json";
    write_files(&world.at(".docker/contexts/meta"), &[(file, &meta)]);
    // One thread for all: it ends with the test.
    std::thread::spawn(move || {
        for mut asked in engine.incoming().map_while(Result::ok) {
            let requests = BufReader::new(asked.try_clone().unwrap()).lines().map_while(Result::ok);
            let mut lines = requests.filter(|line| line.starts_with("GET ") || line == "Connection: close");
            while let Some(line) = lines.next().filter(|line| line != "Connection: close") {
                let body = if line.contains("/json") { "[]" } else { "{}" };
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}");
                // In pieces, with time between them.
                for piece in answer.as_bytes().chunks(20) {
                    asked.write_all(piece).unwrap();
                    std::thread::sleep(Duration::from_millis(60));
                }
            }
        }
    });
    let named = Run::of(&mut command);
    let of_context = Run::of(command.env_remove("DOCKER_HOST").env("DOCKER_CONTEXT", "far"));
    for run in [named, of_context] {
        assert!(run.code == 1 && run.stderr.contains("no volume \"x\""), "{run}");
    }
    assert_eq!(world.log(), "", "docker is called");
}

#[test]
fn docker_says_why_there_is_no_answer_at_the_socket() {
    let world = World::new(REFUSES);
    let (mut command, engine) = started_by_docker(&world);
    drop(engine);
    let run = Run::of(&mut command);
    assert!(run.code == 1 && run.stderr.contains("Cannot connect to the Docker daemon at unix:///nosuch"), "{run}");
    assert_eq!(world.log(), "[system][dial-stdio]\n");
}

#[test]
fn docker_found_on_the_path_is_asked_whatever_is_at_the_socket() {
    let world = World::new(REFUSES);
    let (mut command, _engine) = started_by_docker(&world);
    Run::of(command.env_remove("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND"));
    assert_eq!(world.log(), "[system][dial-stdio]\n");
}

#[test]
fn socket_that_hangs_meets_the_time_limit_and_the_user() {
    let world = World::new(REFUSES);
    let (mut command, engine) = started_by_docker(&world);
    let run = Run::of(command.env("DOCKER_CACHE_TIMEOUT", "300ms"));
    assert!(run.code == 1 && run.stderr.contains("(GET /info)` did not answer within 300ms\nhint: "), "{run}");
    drop(engine.accept().unwrap());
    let child =
        command.env_remove("DOCKER_CACHE_TIMEOUT").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _asked = engine.accept().unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let run = outcome(child);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (143, "", ""), "{run}");
    assert_eq!(world.log(), "", "docker is called");
}

/// Counts the processes that the world's docker became.
fn sleepers(world: &World) -> usize {
    let log = format!("LOG={}", world.at("log").display());
    let ours = |process: &Path| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == log.as_bytes())
    };
    fs::read_dir("/proc").unwrap().flatten().filter(|process| ours(&process.path())).count()
}

#[test]
fn sigint_exits_130() {
    ends_by(Signal::INT, 130);
}

#[test]
fn sigterm_exits_143() {
    ends_by(Signal::TERM, 143);
}

#[test]
fn sighup_exits_129() {
    ends_by(Signal::HUP, 129);
}

#[test]
fn nohup_is_respected() {
    let world = World::new(HANGS);
    let mut command = Command::new("sh");
    let plugin = world.plugin([""; 0]);
    command.env_clear().envs(plugin.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", PLUGIN, "cache", "size"]);
    let mut child = world.start(&mut command);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::HUP).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none());
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(outcome(child).code, 143);
}

#[test]
fn end_of_dockers_socket_exits_130() {
    let world = World::new(HANGS);
    let name = format!("docker_cli_test_{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let mut command = world.plugin(["cache", "size"]);
    let child = world.start(command.env("DOCKER_CLI_PLUGIN_SOCKET", format!("@{name}")));
    let (connection, _) = listener.accept().unwrap();
    drop(connection);
    assert_eq!(outcome(child).code, 130);
    assert_eq!(sleepers(&world), 0, "docker goes on");
}

#[test]
fn socket_that_nobody_listens_to_is_ignored() {
    let world = World::new(REFUSES);
    let mut command = world.plugin(["cache", "size", "--help"]);
    Run::of(command.env("DOCKER_CLI_PLUGIN_SOCKET", "@docker_cli_nobody")).ok();
    let mut command = world.plugin(["cache", "builder"]);
    assert_eq!(Run::of(command.env("DOCKER_CLI_PLUGIN_SOCKET", "@docker_cli_nobody")).code, 1);
}

#[test]
fn reader_that_stops_early_is_no_error() {
    let world = World::new(REFUSES);
    for line in ["cache --help", "docker-cli-plugin-metadata", "__complete cache ''"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = world.plugin(words(line)).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let run = outcome(child);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{line}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let world = World::new(REFUSES);
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let child = world.plugin(["cache", "--help"]).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let run = outcome(child);
    assert!(run.code == 1 && run.stderr.contains("No space left on device"), "{run}");
}

#[test]
fn closed_streams_are_no_error() {
    let world = World::new(REFUSES);
    let run = |script: &str| {
        let mut command = Command::new("sh");
        let plugin = world.plugin([""; 0]);
        command.env_clear().envs(plugin.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Run::of(command.args(["-c", script, "sh", PLUGIN])).code
    };
    assert_eq!(run("\"$1\" cache --help <&- >&- 2>&-"), 0);
    assert_eq!(run("\"$1\" cache size <&- >&- 2>&-"), 1);
    assert_eq!(run("\"$1\" cache size --nosuch 2>&-"), 125);
}

#[test]
fn completion_without_docker_offers_what_needs_none() {
    let world = World::new(REFUSES);
    assert_eq!(world.run("__completeNoDesc cache si").ok().stdout, "size\n:4\n");
    assert_eq!(world.run("__complete cache size --volume ''").ok().stdout, ":4\n");
    assert_eq!(world.run("__complete cache nosuch ''").ok().stdout, ":4\n");
    assert_eq!(world.run("__complete cache --config ''").ok().stdout, ":16\n");
    assert_eq!(world.run("__complete").ok().stdout, ":4\n");
    let flags = world.run("__complete cache size --").ok().stdout;
    assert!(flags.contains("--lang\tOnly caches of these languages\n") && !flags.contains("--tls"), "{flags}");
}
