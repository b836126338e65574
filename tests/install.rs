//! install.sh: where it puts the plugin, what it leaves alone, and what it says when something is missing.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::process::Run;
use support::world::{Tree, assert_same, fake_docker};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/install.sh");

/// A home of its own, and a PATH on which only what a test wants is found.
struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    /// Makes a home with a docker that finds plugins where the real one does, and a cargo that "builds" the tested binary.
    fn new() -> Home {
        let home = Home { folder: tempfile::tempdir().unwrap() };
        fake_docker(
            &home.at("bin"),
            "[ \"$1\" = buildx ] && exit 0\nexec \"${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins/docker-cache\" \"$@\"",
        );
        home.program("cargo", &format!("echo '{{\"executable\":\"{}\"}}'", env!("CARGO_BIN_EXE_docker-cache")));
        home.program("cc", "exit 0");
        for tool in ["sh", "mkdir", "cp", "chmod", "mv", "rm", "sed", "tail", "dirname", "uname", "cat"] {
            symlink(which::which(tool).unwrap(), home.at("bin").join(tool)).unwrap();
        }
        home
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn plugin(&self) -> PathBuf {
        self.at(".docker/cli-plugins/docker-cache")
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.at("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(SCRIPT);
        command.args(arguments).env_clear().env("HOME", self.folder.path()).env("PATH", self.at("bin"));
        // Not the checkout.
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn plugin_is_built_installed_and_answers() {
    let home = Home::new();
    let cargo = which::which("cargo").unwrap();
    let rest = std::env::var("PATH").unwrap();
    // The real cargo, which finds most of the build fresh in the target folder, and the real compiler to link the rest.
    for program in ["cargo", "cc"] {
        fs::remove_file(home.at("bin").join(program)).unwrap();
    }
    let mut command = home.command(&["--profile", "dev"]);
    command.env("PATH", format!("{}:{}:{rest}", home.at("bin").display(), cargo.parent().unwrap().display()));
    for name in ["CARGO_HOME", "RUSTUP_HOME"] {
        let default = format!(".{}", name.trim_end_matches("_HOME").to_lowercase());
        let real = std::env::var_os(name).map(PathBuf::from).or_else(|| Some(dirs::home_dir()?.join(default)));
        command.env(name, real.unwrap());
    }
    if let Some(target) = std::env::var_os("CARGO_TARGET_DIR") {
        command.env("CARGO_TARGET_DIR", target);
    }
    let run = Run::of(&mut command).ok();
    assert!(run.stderr.contains(concat!("Installed docker-cache ", env!("CARGO_PKG_VERSION"), " as ")), "{run}");
    assert_eq!(fs::metadata(home.plugin()).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(names(home.plugin().parent().unwrap()), ["docker-cache"]);
}

#[test]
fn dockers_own_configuration_folder_is_followed() {
    let home = Home::new();
    for config in [home.at("config").display().to_string(), "relative".into()] {
        Run::of(home.command(&[]).env("DOCKER_CONFIG", &config)).ok();
        assert!(home.at(&config).join("cli-plugins/docker-cache").exists(), "{config}");
    }
    assert!(!home.at(".docker").exists());
}

#[test]
fn uninstall_removes_the_plugin_and_nothing_else() {
    let home = Home::new();
    home.run(&[]).ok();
    fs::write(home.plugin().with_file_name("docker-other"), "other").unwrap();
    home.run(&["--uninstall"]).ok();
    assert_eq!(names(home.plugin().parent().unwrap()), ["docker-other"]);
    assert!(home.run(&["--uninstall"]).ok().stderr.contains("there is no"));
}

#[test]
fn dry_run_changes_nothing() {
    let home = Home::new();
    let before = Tree::read(home.folder.path());
    let run = home.run(&["--dry-run"]).ok();
    assert!(run.stderr.contains("would run: cargo build --profile release --locked"), "{run}");
    let run = home.run(&["--dry-run", "--system"]).ok();
    assert!(run.stderr.contains("/usr/local/lib/docker/cli-plugins/docker-cache\n"), "{run}");
    assert_same(&before, &Tree::read(home.folder.path()));
    home.run(&[]).ok();
    let before = Tree::read(home.folder.path());
    home.run(&["--dry-run", "--uninstall"]).ok();
    assert_same(&before, &Tree::read(home.folder.path()));
}

#[test]
fn everything_missing_is_named_with_the_way_to_get_it() {
    let home = Home::new();
    for program in ["cargo", "cc", "docker"] {
        fs::remove_file(home.at("bin").join(program)).unwrap();
    }
    let run = home.run(&[]);
    assert_eq!(run.code, 1);
    for program in ["cargo", "cc", "docker"] {
        assert!(run.stderr.contains(&format!("ERROR: there is no `{program}`: ")), "{run}");
    }
    assert_eq!(run.stderr.matches("hint: ").count(), 3, "{run}");
    assert!(!home.at(".docker").exists());
}

#[test]
fn docker_without_buildx_is_a_warning() {
    let home = Home::new();
    home.program("docker", "[ \"$1\" = buildx ] && exit 1\nexec \"$HOME/.docker/cli-plugins/docker-cache\" \"$@\"");
    let run = home.run(&[]).ok();
    assert!(run.stderr.contains("WARNING: docker has no buildx") && home.plugin().exists(), "{run}");
}

#[test]
fn failed_build_leaves_the_installed_plugin() {
    let home = Home::new();
    home.run(&[]).ok();
    let before = Tree::read(&home.at(".docker"));
    home.program("cargo", "exit 101");
    assert_ne!(home.run(&[]).code, 0);
    home.program("broken", "exit 1");
    home.program("cargo", "echo \"{\\\"executable\\\":\\\"$HOME/bin/broken\\\"}\"");
    assert!(home.run(&[]).stderr.contains("does not run here"));
    assert_same(&before, &Tree::read(&home.at(".docker")));
}

#[test]
fn docker_that_does_not_take_the_plugin_is_an_error() {
    let home = Home::new();
    home.program("docker", "[ \"$1\" = buildx ] && exit 0\necho 'unknown command: docker cache' >&2; exit 1");
    let run = home.run(&[]);
    assert!(run.code == 1 && run.stderr.contains("`docker cache --version` fails"), "{run}");
}

#[test]
fn wrong_words_are_refused() {
    let home = Home::new();
    for (words, what) in [("--nosuch", "unknown flag: --nosuch"), ("--profile", "flag needs an argument: --profile")] {
        let run = home.run(&[words]);
        assert!(run.code == 125 && run.stderr.starts_with(what), "{run}");
    }
    assert!(home.run(&["--help"]).ok().stdout.starts_with("Usage:  ./install.sh [OPTIONS]\n"));
}
