//! `docker cache doctor PATH` on the files of a project, without docker.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
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
    let told = text(&world.doctor("--check missing-cache-mount,no-cache-flag .").stdout);
    let last =
        "\n2 problems; `docker cache doctor --fix --check missing-cache-mount,no-cache-flag .` puts 1 of them right\n";
    assert!(told.ends_with(last), "{told}");
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
fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
    let world = World::new(&[("Dockerfile", BAD)]);
    for name in [".gitignore", ".dockerignore", "Dockerfile.dockerignore", "yarn.lock", "compose.yml", "pipe"] {
        assert!(Command::new("mkfifo").arg(world.at(name)).status().unwrap().success());
    }
    let answer = world.json("--format json --check missing-cache-mount,file-unreadable .");
    assert_eq!(answer["findings"].as_array().unwrap().len(), 1, "{answer}");
    let answer = world.json("--format json --check file-unreadable pipe");
    assert!(answer["findings"][0]["message"].as_str().unwrap().contains("no regular file"), "{answer}");
}

#[test]
fn a_diff_is_taken_wherever_the_file_lies() {
    let world = World::new(&[("a b/Dockerfile", BAD), ("n/Dockerfile", BAD), ("a/x", "")]);
    let patched_in = |directory: &str, diff: &[u8]| {
        fs::write(world.at("fix.diff"), diff).unwrap();
        let mut patch = Command::new("patch");
        let patched =
            patch.args(["-p1", "-i"]).arg(world.at("fix.diff")).current_dir(world.at(directory)).output().unwrap();
        assert!(patched.status.success(), "{}\n{}", text(diff), text(&patched.stdout));
    };
    patched_in("", &world.doctor("--check missing-cache-mount .").stdout);
    let [blank, n] = ["a b/Dockerfile", "n/Dockerfile"].map(|path| world.read(path));
    assert!(blank != BAD && n == blank);
    for path in [world.at("n").display().to_string(), "a/../n".into()] {
        fs::write(world.at("n/Dockerfile"), BAD).unwrap();
        let diff = world.doctor(&format!("--fix --dry-run --check missing-cache-mount {path}")).stdout;
        let directory =
            text(&diff).lines().next().and_then(|line| line.strip_prefix("patch -p1 -d ")).unwrap().to_owned();
        patched_in(&directory, &diff);
        assert!(world.read("n/Dockerfile").contains("--mount=type=cache"));
    }
}

#[test]
fn what_a_build_needs_is_not_to_be_ignored() {
    let world = World::new(&[
        ("a/Dockerfile", "FROM python:3.12\nCOPY . .\nRUN pip install .\n"),
        ("a/jar.Dockerfile", "FROM scratch\nCOPY target/a /\n"),
        ("a/Cargo.toml", ""),
        ("a/target/a", ""),
        ("a/.git/HEAD", ""),
        ("a/node_modules/x", ""),
        ("a/.dockerignore", "x"),
    ]);
    let remedy = || world.json("--format json --check copy-before-install a")["findings"][0]["fix"]["command"].clone();
    let command = remedy();
    assert_eq!(command, "printf '%s\\n' '' .git node_modules >> a/.dockerignore");
    fs::write(world.at("a/pyproject.toml"), "[tool.setuptools_scm]\n").unwrap();
    let command = remedy();
    let pasted = Command::new("sh").args(["-c", command.as_str().unwrap()]).current_dir(world.0.path()).status();
    assert!(pasted.unwrap().success());
    assert_eq!(world.read("a/.dockerignore"), "x\nnode_modules\n");
}

#[test]
fn diffs_of_steps_in_a_row_are_patched_in_one_after_the_other() {
    let file = "FROM node:20-bookworm\nCOPY package.json .\nRUN npm ci && npm cache clean --force\n\
                RUN apt-get update && apt-get install -y git && rm -rf /var/lib/apt/lists/*\nCMD [\"node\"]\n";
    let world = World::new(&[("Dockerfile", file)]);
    let checks = "--check missing-cache-mount,defeated-cache-mount .";
    fs::write(world.at("fix.diff"), world.doctor(checks).stdout).unwrap();
    let patched = Command::new("patch").args(["-p1", "-i", "fix.diff"]).current_dir(world.0.path()).output().unwrap();
    assert!(patched.status.success(), "{}", text(&patched.stdout));
    let after = world.doctor(checks);
    assert!(after.status.success(), "{}\n{}", world.read("Dockerfile"), text(&after.stdout));
}

#[test]
fn what_is_patched_in_is_not_defeated_by_a_variable() {
    let steps = "RUN pip install -r requirements.txt\nRUN pip install gunicorn\nCMD [\"x\"]\n";
    let dockerfile = format!("FROM python:3.12\nENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1\n{steps}");
    let world = World::new(&[("Dockerfile", &dockerfile)]);
    let checks = "--check missing-cache-mount,defeated-cache-mount .";
    let diffs = world.json(&format!("--format json {checks}"));
    for finding in diffs["findings"].as_array().unwrap() {
        fs::write(world.at("fix.diff"), finding["fix"]["diff"].as_str().unwrap()).unwrap();
        let patched = Command::new("patch").args(["-p1", "-i", "fix.diff"]).current_dir(world.0.path()).output();
        assert!(patched.unwrap().status.success(), "{finding}");
    }
    let patched = world.read("Dockerfile");
    assert_eq!(world.json(&format!("--format json {checks}"))["findings"], Value::Array(Vec::new()), "{patched}");
    fs::write(world.at("Dockerfile"), dockerfile).unwrap();
    world.doctor(&format!("--fix {checks}"));
    assert_eq!(world.read("Dockerfile"), patched);
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
fn a_fix_says_how_many_problems_it_leaves() {
    let file = "FROM python:3.12\nCOPY . .\nRUN pip install -r requirements.txt\nCMD [\"python\"]\n";
    let world = World::new(&[("Dockerfile", file)]);
    let left = "1 problem is left to you: `docker cache doctor .`\n";
    for done in ["1 file would be changed; ", "1 file changed; ", "Nothing to fix; "] {
        let dry_run = if done.contains("would") { "--dry-run" } else { "" };
        assert_eq!(text(&world.doctor(&format!("--fix {dry_run}")).stderr), format!("{done}{left}"));
    }
    assert_eq!(text(&world.doctor("--fix --check missing-cache-mount").stderr), "Nothing to fix\n");
}

#[test]
fn a_backup_is_kept_on_request_and_a_link_stays_a_link() {
    let world = World::new(&[("real/Dockerfile", BAD)]);
    symlink("real/Dockerfile", world.at("Dockerfile")).unwrap();
    if rustix::process::getuid().is_root() {
        std::os::unix::fs::chown(world.at("real/Dockerfile"), Some(1000), Some(1000)).unwrap();
    }
    fs::set_permissions(world.at("real/Dockerfile"), fs::Permissions::from_mode(0o600)).unwrap();
    let owned = |path: &str| fs::metadata(world.at(path)).map(|of| (of.uid(), of.gid(), of.mode())).unwrap();
    let before = owned("real/Dockerfile");
    world.doctor("--fix --backup Dockerfile");
    assert_eq!((owned("real/Dockerfile"), owned("real/Dockerfile.bak")), (before, before));
    assert!(fs::symlink_metadata(world.at("Dockerfile")).unwrap().is_symlink());
    assert_ne!(world.read("real/Dockerfile"), BAD);
    assert_eq!(world.read("real/Dockerfile.bak"), BAD);
}

#[test]
fn a_file_that_links_lead_to_is_told_and_changed_once() {
    let world = World::new(&[("a/Dockerfile", BAD), ("compose.yaml", "services: {web: {build: h}}\n")]);
    fs::create_dir(world.at("h")).unwrap();
    symlink("../a/Dockerfile", world.at("h/Dockerfile")).unwrap();
    let check = "--check missing-cache-mount .";
    let found = world.json(&format!("--format json {check}"))["findings"].clone();
    assert!(found.as_array().unwrap().len() == 1 && found[0]["file"] == "a/Dockerfile", "{found}");
    let told = text(&world.doctor(&format!("--fix {check}")).stderr);
    assert_eq!(told, "1 file changed\n");
    assert!(world.read("h/Dockerfile").contains("--mount=type=cache"));
}

#[test]
fn a_link_out_of_the_project_and_a_name_that_cannot_be_told_are_left_alone() {
    let world = World::new(&[("outside/D", BAD), ("p/b.Dockerfile", BAD)]);
    symlink("../outside/D", world.at("p/Dockerfile")).unwrap();
    symlink("b.Dockerfile", world.at("p/Dockerfile.link")).unwrap();
    let strange = world.at("p").join(std::ffi::OsStr::from_bytes(b"d\xff"));
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("Dockerfile"), BAD).unwrap();
    let run = world.doctor("--fix p");
    let told = text(&run.stderr);
    assert!(run.status.code() == Some(1) && told.contains("it is a link out of `p`"), "{told}");
    assert_eq!(
        (world.read("outside/D").as_str(), fs::read_to_string(strange.join("Dockerfile")).unwrap().as_str()),
        (BAD, BAD)
    );
    assert!(world.read("p/b.Dockerfile").contains("--mount=type=cache"));
    let unread = world.json("--format json --check file-unreadable p")["findings"].clone();
    assert!(unread[0]["message"].as_str().unwrap().contains("not UTF-8"), "{unread}");
    assert!(world.doctor("--fix p/Dockerfile").status.success());
    assert_ne!(world.read("outside/D"), BAD);
}

#[test]
fn a_file_with_other_names_is_left_to_the_author_and_attributes_stay() {
    let world = World::new(&[("Dockerfile", BAD)]);
    fs::hard_link(world.at("Dockerfile"), world.at("template")).unwrap();
    for (dry_run, would) in [("--dry-run", "would be "), ("", "")] {
        let run = world.doctor(&format!("--fix {dry_run}"));
        let told = text(&run.stderr);
        assert!(run.status.code() == Some(1) && told.contains("it has 2 names (hard links)"), "{told}");
        assert!(told.contains(&format!("\n0 files {would}changed; ")), "{told}");
        assert!(text(&run.stdout).contains("+RUN --mount=type=cache"), "{}", text(&run.stdout));
    }
    let change = |words: &str| world.json(words)["changes"][0].clone();
    let error = change("--fix --format json")["error"].clone();
    assert!(error.as_str().is_some_and(|error| error.contains("hard links")), "{error}");
    fs::remove_file(world.at("template")).unwrap();
    assert_eq!(change("--fix --dry-run --format json")["error"], Value::Null);
    let path = world.at("Dockerfile");
    rustix::fs::setxattr(&path, "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
    assert!(world.doctor("--fix").status.success());
    let mut note = [0; 8];
    assert!(world.read("Dockerfile") != BAD && rustix::fs::getxattr(&path, "user.note", &mut note[..]) == Ok(4));
}

#[test]
fn a_file_that_cannot_be_changed_hinders_no_other() {
    // There is no room in its name for that of the backup.
    let long = format!("{}.Dockerfile", "a".repeat(241));
    let world = World::new(&[(&long, BAD), ("b.Dockerfile", BAD)]);
    let run = world.doctor("--fix --backup --check missing-cache-mount");
    let told = text(&run.stderr);
    assert!(run.status.code() == Some(1) && told.starts_with(&format!("ERROR: cannot change `{long}`: ")), "{told}");
    assert!(told.ends_with("1 file changed; 1 problem is left to you: `docker cache doctor .`\n"), "{told}");
    assert_eq!((world.read(&long).as_str(), world.read("b.Dockerfile.bak").as_str()), (BAD, BAD));
    assert!(world.read("b.Dockerfile").contains("--mount=type=cache"));
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

/// What the SARIF 2.1.0 schema requires, and what code scanning needs besides.
fn check_sarif(log: &Value) {
    assert_eq!((&log["version"], log["runs"].as_array().unwrap().len()), (&"2.1.0".into(), 1));
    let run = &log["runs"][0];
    let rules: Vec<&Value> =
        run["tool"]["driver"]["rules"].as_array().unwrap().iter().map(|rule| &rule["id"]).collect();
    assert!(run["tool"]["driver"]["name"].is_string());
    let is_line = |line: &Value| line.as_u64().is_some_and(|line| line >= 1);
    let check_uri = |place: &Value| {
        let uri = place["uri"].as_str().unwrap();
        assert!(!uri.starts_with('/') && uri.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'), "{uri}");
    };
    for result in run["results"].as_array().unwrap() {
        assert!(rules.contains(&&result["ruleId"]), "{result}");
        assert!(["error", "warning", "note"].contains(&result["level"].as_str().unwrap()), "{result}");
        assert!(result["message"]["text"].as_str().is_some_and(|text| !text.is_empty()), "{result}");
        let place = &result["locations"][0]["physicalLocation"];
        check_uri(&place["artifactLocation"]);
        assert!(is_line(&place["region"]["startLine"]), "{result}");
        for fix in result["fixes"].as_array().into_iter().flatten() {
            for change in fix["artifactChanges"].as_array().unwrap() {
                check_uri(&change["artifactLocation"]);
                for replacement in change["replacements"].as_array().unwrap() {
                    let region = &replacement["deletedRegion"];
                    assert!(
                        is_line(&region["startLine"]) && region["endLine"].as_u64() >= region["startLine"].as_u64()
                    );
                    assert!(replacement["insertedContent"]["text"].is_string(), "{result}");
                }
            }
        }
    }
}

/// Makes the changes that a SARIF log proposes for the first result.
fn replaced(text: &str, log: &Value) -> String {
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let change = &log["runs"][0]["results"][0]["fixes"][0]["artifactChanges"][0];
    for replacement in change["replacements"].as_array().unwrap().iter().rev() {
        let at = |name: &str| replacement["deletedRegion"][name].as_u64().unwrap() as usize;
        let (start, end) = (at("startLine") - 1, at("endLine"));
        let returned = if lines[end - 1].ends_with('\r') { "\r" } else { "" };
        let inserted = format!("{}{returned}", replacement["insertedContent"]["text"].as_str().unwrap());
        lines.splice(start..end, [inserted]);
    }
    lines.join("\n")
}

#[test]
fn sarif_and_annotations_point_at_the_line() {
    let world = World::new(&[
        ("a b/Dockerfile", BAD),
        ("ä:\"\n/Dockerfile", BAD),
        ("huge/Dockerfile", &"#".repeat(2 << 20)),
        ("compose.yml", "services:\n  a:\n    image: node\n    command: npm ci"),
        ("ci/compose.yml", "services: ["),
    ]);
    let log = world.json("--format sarif --check missing-cache-mount .");
    check_sarif(&log);
    check_sarif(&world.json("--format sarif ."));
    check_sarif(&world.json("--format sarif"));
    check_sarif(&world.json(&format!("--format sarif {}", world.0.path().display())));
    let result = &log["runs"][0]["results"][0];
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
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.contains("::warning file=ä%3A\"%0A/Dockerfile,line=3,"), "{lines}");
}

#[test]
fn what_sarif_proposes_is_what_the_fix_does() {
    for (name, before) in [
        ("Dockerfile", BAD.replace(" --no-cache-dir", "")),
        ("Dockerfile", BAD.replace(" --no-cache-dir", "").replace('\n', "\r\n")),
        ("Dockerfile", "FROM node\nRUN npm ci".into()),
        ("compose.yml", "services:\n  a:\n    image: node\n    command: npm ci".into()),
        (
            "compose.yml",
            format!("services:\n  a:\n    image: node\n    command: npm ci\n{}volumes:\n  x:\n", "# a\n".repeat(20)),
        ),
    ] {
        let world = World::new(&[(name, &before)]);
        let checks = "--check missing-cache-mount,cache-not-mounted";
        let proposed = replaced(&before, &world.json(&format!("--format sarif {checks}")));
        world.doctor(&format!("--fix {checks}"));
        assert_eq!(world.read(name), proposed);
        assert_ne!(before, proposed);
    }
}

#[test]
fn compose_files_and_dev_containers_are_fixed_once_and_as_a_whole() {
    let compose = "# the site\nservices:\n    web: # node\n        image: \"node:22\"\n        command: npm ci\n    api:\n        build:\n            context: .\n            no_cache: true\n    py: {image: python, volumes: ['pip:/cache/pip']}\n";
    let dev = "{\n\t// rust\n\t\"image\": \"mcr.microsoft.com/devcontainers/rust\"\n}\n";
    let files = [("compose.yaml", compose), (".devcontainer/devcontainer.json", dev), ("compose.yaml.bak", "mine")];
    let world = World::new(&files);
    fs::set_permissions(world.at("compose.yaml"), fs::Permissions::from_mode(0o640)).unwrap();
    let dry = world.doctor("--fix --dry-run");
    assert_eq!((world.read("compose.yaml").as_str(), dry.status.code()), (compose, Some(0)));
    assert_eq!(text(&world.doctor("--fix --backup").stdout), text(&dry.stdout));
    let fixed = world.read("compose.yaml");
    assert_eq!(
        fixed,
        "# the site\nservices:\n    web: # node\n        image: \"node:22\"\n        command: npm ci\n        volumes:\n            - npm-cache:/root/.npm\n    api:\n        build:\n            context: .\n    py: {image: python, volumes: ['pip:/root/.cache/pip']}\n\nvolumes:\n  npm-cache:\n"
    );
    assert_eq!(world.read("compose.yaml.bak1"), compose);
    assert_eq!(world.read("compose.yaml.bak"), "mine");
    assert_eq!(fs::metadata(world.at("compose.yaml")).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(world.read(".devcontainer/devcontainer.json").contains("target=/usr/local/cargo/registry,type=volume"));
    assert_eq!(text(&world.doctor("--fix").stdout), "");
    assert_eq!(world.read("compose.yaml"), fixed);
    let left = world.json("--format json --check cache-not-mounted,volume-unused,volume-owner,no-cache-flag");
    assert_eq!(left["findings"], serde_json::json!([]));
}

#[test]
fn a_dockerfile_in_a_compose_file_is_judged_where_it_stands() {
    let compose =
        "services:\n  a:\n    build:\n      dockerfile_inline: |\n        FROM python\n        RUN pip install x\n";
    let world = World::new(&[("compose.yml", compose)]);
    let found = world.json("--format json --check missing-cache-mount")["findings"].clone();
    assert_eq!((&found[0]["file"], &found[0]["line"]), (&"compose.yml".into(), &6.into()), "{found}");
    assert_eq!(found.as_array().unwrap().len(), 1);
}

/// A megabyte is all that is read of a file, and whatever lies in it costs no more than reading it. The limit is on
/// processor time, which other programs do not change, of a build that is not optimised; what is quadratic takes minutes.
#[test]
fn a_megabyte_of_anything_is_read_in_little_time() {
    let times = |piece: &str| piece.repeat(950_000 / piece.len());
    let numbered =
        |line: &str| (0..950_000 / (line.len() + 5)).map(|at| line.replace('#', &at.to_string())).collect::<String>();
    let doubled: String = (1..30_000).map(|at| format!("A{at}=$A{0}$A{0}\n", at - 1)).collect();
    for (path, text) in [
        ("Dockerfile", format!("FROM python\n{}", times("RUN pip install x\n"))),
        ("Dockerfile", format!("FROM python\n{}RUN pip install x\n", "ENV A=x$A$A\n".repeat(100))),
        ("Dockerfile", format!("FROM python\nRUN {}", times("pip install x && "))),
        ("Dockerfile", format!("FROM python\nRUN {}", times("--mount=type=cache,target=/x "))),
        ("compose.yml", format!("services:\n{}", numbered("  a#: {image: node, command: npm ci}\n"))),
        ("compose.yml", format!("services:\n  a:\n    image: {}", times("${a:-"))),
        (".env", format!("A0=xxxxxxxx\n{doubled}")),
        ("x.sh", times("--cache-to type=local,dest=/x\n")),
        ("Makefile", format!("A = {}\nall:\n{}", "x".repeat(60_000), times("\t$(A)\n"))),
    ] {
        let world = World::new(&[(path, &text)]);
        let mut command = Command::new("sh");
        command.env_clear().env("HOME", world.0.path()).current_dir(world.0.path());
        let script = "ulimit -t 15; exec \"$0\" cache doctor --format json .";
        let run = command.args(["-c", script, env!("CARGO_BIN_EXE_docker-cache")]).output().unwrap();
        assert!(run.status.code().is_some_and(|code| code <= 1), "{path} {:?} {:?}", &text[..60], run.status);
    }
}

#[test]
fn a_path_may_be_a_file_and_have_any_name() {
    let world = World::new(&[("a b\nc/Dockerfile", BAD), ("-x/compose.yml", "services: [")]);
    for (path, count) in [("a b\nc", 1), ("a b\nc/Dockerfile", 1), ("./-x/compose.yml", 1)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_docker-cache"));
        command.env_clear().env("HOME", world.0.path()).current_dir(world.0.path());
        let check = "missing-cache-mount,file-unreadable";
        let answer = command.args(["cache", "doctor", "--format", "json", "--check", check, path]).output().unwrap();
        let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(answer["findings"].as_array().unwrap().len(), count, "{path:?} {answer}");
    }
    let diff = world.json("--format json --check missing-cache-mount .")["findings"][0]["fix"]["diff"].clone();
    fs::write(world.at("fix.diff"), diff.as_str().unwrap()).unwrap();
    let applied = Command::new("git").args(["apply", "fix.diff"]).current_dir(world.0.path()).output().unwrap();
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    assert!(world.read("a b\nc/Dockerfile").contains("--mount=type=cache"));
}

#[test]
fn a_project_in_the_working_directory_needs_no_name() {
    let world = World::new(&[("Dockerfile", BAD)]);
    let named = world.json("--format json --check missing-cache-mount .");
    assert_eq!(world.json("--format json --check missing-cache-mount"), named);
    assert!(Path::new(named["findings"][0]["file"].as_str().unwrap()).is_relative());
}

#[test]
fn what_other_files_do_with_an_image_is_kept_in_mind() {
    let go = "FROM golang\nRUN go mod download\nRUN go build -o /app .\nCMD [\"/app\"]\n";
    for (name, text, builds) in [
        ("Makefile", "image:\n\tDOCKER_BUILDKIT=0 docker build .\n", false),
        (".gitlab-ci.yml", "variables: {DOCKER_BUILDKIT: \"0\"}\n", false),
        ("build.sh", "# DOCKER_BUILDKIT=0\nexport DOCKER_BUILDKIT=1\ndocker build .\n", true),
        ("compose.yaml", "services:\n  app:\n    build: .\n    command: [go, run, .]\n", false),
        ("compose.yaml", "services:\n  app:\n    build: .\n", true),
        ("devcontainer.json", "{\"postCreateCommand\": \"go test\"}", false),
    ] {
        let world = World::new(&[("Dockerfile", go), (name, text)]);
        let found = world.json("--format json --check missing-cache-mount .");
        let has_fix = |finding: &serde_json::Value| !finding["fix"].is_null();
        let findings = found["findings"].as_array().unwrap();
        assert!(!findings.is_empty() && findings.iter().all(|finding| has_fix(finding) == builds), "{name} {found}");
    }
}

#[test]
fn one_cache_of_several_files_is_told_where_it_clashes() {
    let mounted = |base: &str| {
        format!(
            "FROM {base}\nRUN --mount=type=cache,target=/var/cache/apt,sharing=locked \\\n    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \\\n    rm -f /etc/apt/apt.conf.d/docker-clean && apt-get update && apt-get install -y x\n"
        )
    };
    let world = World::new(&[
        ("a.Dockerfile", &mounted("debian:bookworm")),
        ("b.Dockerfile", &mounted("ubuntu:24.04")),
        ("c.Dockerfile", &mounted("debian:12-slim")),
        ("d.Dockerfile", "FROM python\nRUN --mount=type=cache,id=c,target=/root/.cache/pip pip install x\n"),
        ("e.Dockerfile", "FROM python\nRUN --mount=type=cache,id=c,target=/root/.cache/pip pip install y\n"),
    ]);
    let answer = world.json("--format json --check mount-id-clash");
    let findings = answer["findings"].as_array().unwrap();
    assert_eq!(findings.len(), 1, "{answer}");
    assert_eq!((findings[0]["file"].as_str(), findings[0]["line"].as_u64()), (Some("b.Dockerfile"), Some(2)));
    assert!(findings[0]["message"].as_str().unwrap().contains("with a.Dockerfile:2"), "{answer}");
    for id in ["var-cache-apt", "var-lib-apt-lists"] {
        assert!(findings[0]["fix"]["diff"].as_str().unwrap().contains(&format!(",id={id}-ubuntu-24.04")), "{answer}");
    }
}

#[test]
fn what_a_dockerignore_lets_through_is_told_with_the_command_that_keeps_it_out() {
    let copies = "FROM node\nCOPY . .\nRUN npm ci\n";
    let world = World::new(&[
        ("Dockerfile", copies),
        (".dockerignore", "*.log\nnode_modules"),
        (".git/HEAD", ""),
        ("node_modules/x", ""),
        ("with git/Dockerfile", &format!("{copies}RUN git describe > version\n")),
        ("with git/.git", ""),
        ("with git/.dockerignore", "*.log\n"),
        ("sub/Dockerfile", copies),
        ("sub/.git/HEAD", ""),
    ]);
    let ignored = || {
        let answer = world.json("--format json --check copy-before-install .");
        let findings = answer["findings"].as_array().unwrap().clone();
        findings
            .into_iter()
            .filter(|found| found["message"].as_str().unwrap().contains("dockerignore"))
            .collect::<Vec<_>>()
    };
    let found = ignored();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0]["file"].as_str(), found[0]["line"].as_u64()), (Some("Dockerfile"), Some(2)));
    let remedy = found[0]["fix"]["command"].as_str().unwrap();
    assert!(Command::new("sh").args(["-c", remedy]).current_dir(world.0.path()).status().unwrap().success());
    assert_eq!(world.read(".dockerignore"), "*.log\nnode_modules\n.git\n");
    assert_eq!(ignored(), Vec::<Value>::new());
}

#[test]
fn what_doctor_proposes_for_containers_can_be_patched_in_and_is_then_enough() {
    let world = World::new(&[
        (
            "compose.yaml",
            "services:\r\n  api:\r\n    image: python:3.13\r\n    command: pip install -e .\r\n  go:\r\n    image: golang\r\n    command: go run .\r\n    volumes:\r\n      - .:/src\r\n",
        ),
        (
            ".devcontainer/devcontainer.json",
            "{\n\t// tabs\n\t\"image\": \"mcr.microsoft.com/devcontainers/rust\",\n}\n",
        ),
        ("docker-compose.test.yml", "services:\n  x: [\n"),
        ("huge/compose.yaml", &"# x\n".repeat(3_000_000)),
    ]);
    fs::write(world.at("docker-compose.bin.yml"), [0, 1]).unwrap();
    let check = "--check cache-not-mounted,volume-unused,volume-owner,file-unreadable";
    for round in 0..2 {
        // One diff may shift the lines of the next, so each round takes what still fits.
        for (number, finding) in
            world.json(&format!("--format json {check}"))["findings"].as_array().unwrap().iter().enumerate()
        {
            let Some(diff) = finding["fix"]["diff"].as_str() else { continue };
            fs::write(world.at("fix.diff"), diff).unwrap();
            let patch = Command::new("patch")
                .args(["--binary", "-p1", "-i", "fix.diff"])
                .current_dir(world.0.path())
                .output()
                .unwrap();
            assert!(patch.status.success() || number > 0, "{round} {diff} {}", text(&patch.stdout));
        }
    }
    let left = world.json(&format!("--format json {check}"));
    let left: Vec<_> = left["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|found| (found["check"].as_str().unwrap().to_owned(), found["file"].as_str().unwrap().to_owned()))
        .collect();
    let unreadable = |file: &str| ("file-unreadable".to_owned(), file.to_owned());
    assert_eq!(left, ["docker-compose.bin.yml", "huge/compose.yaml", "docker-compose.test.yml"].map(unreadable));
    let dev = world.read(".devcontainer/devcontainer.json");
    assert!(dev.contains("target=/usr/local/cargo/registry,type=volume") && dev.contains("sudo chown"), "{dev}");
}
