//! `docker cache doctor PATH` on the files of a project, without docker.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const BAD: &str =
    "FROM python:3.12\nCOPY requirements.txt .\nRUN pip install --no-cache-dir -r requirements.txt\nCMD [\"python\"]\n";

struct World(tempfile::TempDir);

impl World {
    fn new(files: &[(&str, &str)]) -> World {
        let world = World(tempfile::tempdir().unwrap());
        for (path, text) in files {
            fs::create_dir_all(world.at(path).parent().unwrap()).unwrap();
            fs::write(world.at(path), text).unwrap();
        }
        world
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    fn doctor(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_docker-cache"));
        command.env_clear().env("HOME", self.0.path()).current_dir(self.0.path());
        command.arg("cache").arg("doctor").args(arguments.split_whitespace()).output().unwrap()
    }

    fn json(&self, arguments: &str) -> Value {
        serde_json::from_slice(&self.doctor(arguments).stdout).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn findings_carry_file_line_and_a_diff_that_patch_takes() {
    let world = World::new(&[("web/Dockerfile", BAD), ("build.sh", "docker build --no-cache .\n")]);
    let answer = world.json("--format json --check missing-cache-mount,no-cache-flag .");
    let findings = answer["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 2, "{answer}");
    let mount = &findings[0];
    assert_eq!((mount["file"].as_str(), mount["line"].as_u64()), (Some("web/Dockerfile"), Some(3)));
    assert_eq!(mount["severity"], "warning");
    fs::write(world.at("fix.diff"), mount["fix"]["diff"].as_str().unwrap()).unwrap();
    let patched = Command::new("patch").args(["-p1", "-i", "fix.diff"]).current_dir(world.0.path()).output().unwrap();
    assert!(patched.status.success(), "{}", text(&patched.stdout));
    assert!(world.read("web/Dockerfile").contains("--mount=type=cache,target=/root/.cache/pip"));
}

#[test]
fn a_fix_is_shown_then_made_and_the_second_changes_nothing() {
    let world = World::new(&[("Dockerfile", BAD)]);
    fs::set_permissions(world.at("Dockerfile"), fs::Permissions::from_mode(0o640)).unwrap();
    let dry = world.doctor("--fix --dry-run");
    assert_eq!(dry.status.code(), Some(0));
    assert_eq!(world.read("Dockerfile"), BAD);
    let done = world.doctor("--fix");
    assert_eq!(text(&done.stdout), text(&dry.stdout));
    assert!(text(&done.stdout).starts_with("--- a/Dockerfile\n+++ b/Dockerfile\n@@"), "{}", text(&done.stdout));
    let fixed = world.read("Dockerfile");
    assert!(fixed.contains("RUN --mount=type=cache,target=/root/.cache/pip \\\n    pip install -r requirements.txt\n"));
    assert_eq!(fs::metadata(world.at("Dockerfile")).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(world.0.path()).unwrap().count(), 1, "nothing else lies there");
    assert_eq!(text(&world.doctor("--fix").stdout), "");
    assert_eq!(world.read("Dockerfile"), fixed);
}

#[test]
fn a_backup_is_kept_on_request_and_a_link_stays_a_link() {
    let world = World::new(&[("real/Dockerfile", BAD)]);
    symlink("real/Dockerfile", world.at("Dockerfile")).unwrap();
    world.doctor("--fix --backup Dockerfile");
    assert!(fs::symlink_metadata(world.at("Dockerfile")).unwrap().is_symlink());
    assert_ne!(world.read("real/Dockerfile"), BAD);
    assert_eq!(world.read("real/Dockerfile.bak"), BAD);
}

#[test]
fn only_the_chosen_checks_are_fixed() {
    let world = World::new(&[("Dockerfile", BAD)]);
    world.doctor("--fix --check unsafe-sharing");
    assert_eq!(world.read("Dockerfile"), BAD);
}

#[test]
fn a_file_that_does_not_parse_is_told_and_never_changed() {
    let broken = format!("{BAD}RUNN x\n");
    let world = World::new(&[("Dockerfile", &broken), ("other.Dockerfile", BAD)]);
    let answer = world.json("--format json --check dockerfile-unreadable,missing-cache-mount");
    let told: Vec<_> =
        answer["findings"].as_array().unwrap().iter().map(|f| (f["file"].as_str(), f["line"].as_u64())).collect();
    assert_eq!(
        told,
        [(Some("Dockerfile"), Some(5)), (Some("Dockerfile"), Some(3)), (Some("other.Dockerfile"), Some(3))]
    );
    world.doctor("--fix");
    assert_eq!(world.read("Dockerfile"), broken);
    assert_ne!(world.read("other.Dockerfile"), BAD);
}

#[test]
fn without_a_project_its_checks_are_skipped_and_say_so() {
    let world = World::new(&[("notes.txt", "x")]);
    let answer = world.json("--format json --check missing-cache-mount");
    assert_eq!(answer["checks"][0]["status"], "skipped");
    let missing = world.doctor("nowhere");
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("cannot read `nowhere`"));
}

#[test]
fn sarif_and_annotations_point_at_the_line() {
    let world = World::new(&[("a b/Dockerfile", BAD)]);
    let log = world.json("--format sarif --check missing-cache-mount .");
    let result = &log["runs"][0]["results"][0];
    assert_eq!(log["version"], "2.1.0");
    assert_eq!(result["ruleId"], "missing-cache-mount");
    let place = &result["locations"][0]["physicalLocation"];
    assert_eq!(
        (&place["artifactLocation"]["uri"], &place["region"]["startLine"]),
        (&"a%20b/Dockerfile".into(), &3.into())
    );
    let lines = text(&world.doctor("--format github --check missing-cache-mount .").stdout);
    assert!(
        lines.starts_with("::warning file=a b/Dockerfile,line=3,title=missing-cache-mount::`pip install`"),
        "{lines}"
    );
}

#[test]
fn a_project_in_the_working_directory_needs_no_name() {
    let world = World::new(&[("Dockerfile", BAD)]);
    let named = world.json("--format json --check missing-cache-mount .");
    assert_eq!(world.json("--format json --check missing-cache-mount"), named);
    assert!(Path::new(named["findings"][0]["file"].as_str().unwrap()).is_relative());
}
