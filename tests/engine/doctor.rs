//! `docker cache doctor`: finds what is wrong, nothing else, and its remedies put it right.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::for_each_engine;
use crate::support::process::Run;
use crate::support::world::fake_docker;
use crate::support::{Engine, Generation};

/// The answer of `docker cache doctor --format json`.
struct Answer {
    run: Run,
    json: Value,
}

impl Answer {
    #[track_caller]
    fn of(command: &mut Command) -> Answer {
        Answer::from(Run::of(command))
    }

    #[track_caller]
    fn from(run: Run) -> Answer {
        // A remedy may have printed lines of its own before.
        let json = run.stdout.lines().last().and_then(|line| serde_json::from_str(line).ok());
        Answer { json: json.unwrap_or_else(|| panic!("no JSON: {run}")), run }
    }

    #[track_caller]
    fn status(&self, check: &str) -> &str {
        let checks = self.json["checks"].as_array().unwrap();
        let found = checks.iter().find(|found| found["name"] == check);
        found.unwrap_or_else(|| panic!("no check {check}: {}", self.run))["status"].as_str().unwrap()
    }

    fn found(&self, check: &str) -> Vec<&Value> {
        self.json["findings"].as_array().unwrap().iter().filter(|finding| finding["check"] == check).collect()
    }

    /// Returns the one finding of a check.
    #[track_caller]
    fn one(&self, check: &str) -> &Value {
        let found = self.found(check);
        assert!(found.len() == 1 && self.status(check) == "found", "{}", self.run);
        found[0]
    }

    /// Returns the remedy of the one finding of a check.
    #[track_caller]
    fn remedy(&self, check: &str) -> String {
        self.one(check)["fix"]["command"].as_str().unwrap_or_else(|| panic!("no remedy: {}", self.run)).to_owned()
    }

    /// Returns the names of the checks that found something.
    fn names(&self) -> Vec<&str> {
        let checks = self.json["checks"].as_array().unwrap().iter();
        checks.filter(|check| check["status"] == "found").map(|check| check["name"].as_str().unwrap()).collect()
    }
}

#[track_caller]
fn doctor(engine: &Engine, env: &[(&str, &str)]) -> Answer {
    Answer::of(engine.cache_command(&["doctor", "--format", "json"]).envs(env.iter().copied()))
}

/// Pastes a remedy into a shell, where the same environment holds, and asks doctor again from there.
#[track_caller]
fn after(engine: &Engine, remedy: &str, env: &[(&str, &str)]) -> Answer {
    let script = format!("{remedy} || exit 99\ndocker cache doctor --format json");
    let answer = Answer::of(engine.command("sh").args(["-c", &script]).envs(env.iter().copied()));
    assert_ne!(answer.run.code, 99, "{}", answer.run);
    answer
}

/// Asserts that a check finds something, and that its own remedy makes that go away.
#[track_caller]
fn assert_cured(engine: &Engine, check: &str, env: &[(&str, &str)]) {
    let before = doctor(engine, env);
    let remedy = before.remedy(check);
    let cured = after(engine, &remedy, env);
    assert_eq!(cured.status(check), "ok", "after `{remedy}`: {}", cured.run);
}

/// Returns the plugin started by hand, for what docker itself refuses before it starts a plugin.
fn by_hand(engine: &Engine) -> Command {
    let mut command = engine.command(env!("CARGO_BIN_EXE_docker-cache"));
    command.args(["doctor", "--format", "json"]);
    command
}

for_each_engine!(finds_nothing_that_is_not_there, [all], |engine| {
    let answer = doctor(engine, &[]);
    let generation = engine.generation();
    let expected: &[&str] = match generation {
        Generation::V20 => &["buildx-missing", "buildkit-disabled"],
        _ if generation.containerd_store() => &[],
        _ => &["builder-cannot-export"],
    };
    assert_eq!(answer.names(), expected, "{}", answer.run);
    assert_eq!(answer.run.code, i32::from(generation == Generation::V20), "{}", answer.run);
    assert_eq!(answer.status("engine-unreachable"), "ok");
    assert_eq!(answer.status("disk-low"), "ok");
    let collects = match generation {
        Generation::V28 | Generation::V28Containerd => "ok",
        _ => "skipped",
    };
    assert_eq!(answer.status("gc-policy"), collects, "{}", answer.run);
});

for_each_engine!(exit_status_follows_the_severity, [v20, v28], |engine| {
    let code = |limit| engine.cache(&["doctor", "--fail-on", limit]).code;
    // Docker 20.10 has a warning and a note, 28.5 with a graph driver a note.
    let warned = i32::from(engine.generation() == Generation::V20);
    assert_eq!([code("error"), code("warning"), code("note"), code("never")], [0, warned, 1, 0]);
});

for_each_engine!(legacy_builder_is_found_and_left, [v20, v26, v28_containerd], |engine| {
    assert_cured(engine, "buildkit-disabled", &[("DOCKER_BUILDKIT", "0")]);
    let answer = doctor(engine, &[("DOCKER_BUILDKIT", "true")]);
    assert_eq!(answer.status("buildkit-disabled"), "ok", "{}", answer.run);
});

#[test]
fn docker_20_uses_buildkit_after_the_remedy() {
    let engine = Engine::start(Generation::V20);
    let remedy = doctor(&engine, &[]).remedy("buildkit-disabled");
    let context = engine.context("RUN --mount=type=cache,target=/m true");
    let build = |before: &str| {
        let script = format!("{before}\ndocker build {}", context.path().display());
        Run::of(engine.command("sh").args(["-c", &script]))
    };
    assert_ne!(build("true").code, 0);
    assert_eq!(build(&remedy).code, 0);
    assert_cured(&engine, "buildkit-disabled", &[]);
}

#[test]
fn docker_20_follows_the_engine_that_advises_buildkit() {
    let engine = Engine::start_with(Generation::V20, json!({"features": {"buildkit": true}}));
    let answer = doctor(&engine, &[]);
    assert_eq!(answer.status("buildkit-disabled"), "ok", "{}", answer.run);
}

#[test]
fn newer_docker_uses_buildkit_whatever_the_engine_advises() {
    for generation in [Generation::V26, Generation::V28] {
        let engine = Engine::start_with(generation, json!({"features": {"buildkit": false}}));
        assert_eq!(doctor(&engine, &[]).status("buildkit-disabled"), "ok");
        let context = engine.context("RUN --mount=type=cache,target=/m true");
        engine.docker(&["build", &context.path().display().to_string()]);
    }
}

for_each_engine!(variable_that_is_no_boolean_is_found, [v20, v26, v28_containerd], |engine| {
    // Since 23.0 docker itself starts no plugin with such a variable, so this is the plugin run by hand.
    let answer = Answer::of(by_hand(engine).env("DOCKER_BUILDKIT", "banana"));
    assert_eq!(answer.one("buildkit-disabled")["severity"], "error");
    assert_eq!(answer.remedy("buildkit-disabled"), "unset DOCKER_BUILDKIT");
});

#[test]
fn buildx_is_found_missing_until_it_is_installed() {
    let engine = Engine::start(Generation::V20);
    assert_eq!(doctor(&engine, &[]).one("buildx-missing")["severity"], "note");
    let engine = engine.with_buildx(Generation::V28);
    let answer = doctor(&engine, &[]);
    assert_eq!(answer.status("buildx-missing"), "ok", "{}", answer.run);

    let newer = Engine::start(Generation::V28);
    std::fs::remove_file(newer.config().join("cli-plugins/docker-buildx")).unwrap();
    let answer = doctor(&newer, &[]);
    assert_eq!(answer.one("buildx-missing")["severity"], "error");
    assert_eq!((answer.status("buildkit-disabled"), answer.status("builder-split")), ("skipped", "skipped"));
}

for_each_engine!(two_builders_in_use_are_found_and_united, [v26, v28, v28_containerd], |engine| {
    let far = engine.remote_builder("far");
    assert_eq!(doctor(engine, &[]).status("builder-split"), "ok");
    engine.docker(&["buildx", "use", &far.name]);
    assert_eq!(doctor(engine, &[("BUILDX_BUILDER", "far")]).status("builder-split"), "ok");
    assert_cured(engine, "builder-split", &[]);
});

#[test]
fn docker_build_of_20_ignores_the_variable() {
    let engine = Engine::start(Generation::V20).with_buildx(Generation::V26);
    let far = engine.remote_builder("far");
    assert_cured(&engine, "builder-split", &[("BUILDX_BUILDER", &far.name)]);
}

#[test]
fn builders_of_another_context_agree() {
    let engine = Engine::start(Generation::V28);
    let second = engine.second_context("second");
    let run = engine.cache_command(&["--context", "second", "doctor", "--format", "json"]);
    let answer = Answer::of(&mut { run });
    assert_eq!(answer.status("builder-split"), "ok", "{}", answer.run);
    assert_eq!(answer.status("builder-inactive"), "ok", "{}", answer.run);
    drop(second);
}

for_each_engine!(builders_that_are_gone_are_found_and_removed, [v26, v28], |engine| {
    engine.docker(&["buildx", "create", "--driver", "remote", "--name", "dead", "unix:///nowhere.sock"]);
    assert_eq!(doctor(engine, &[]).one("builder-inactive")["severity"], "note");
    let used = doctor(engine, &[("BUILDX_BUILDER", "dead")]);
    assert_eq!(used.one("builder-inactive")["severity"], "error");
    assert_cured(engine, "builder-inactive", &[]);

    engine.docker(&["context", "create", "ghost", "--docker", "host=unix:///nowhere.sock"]);
    assert_eq!(doctor(engine, &[]).one("builder-inactive")["severity"], "note");
    assert_cured(engine, "builder-inactive", &[]);

    assert_cured(engine, "builder-inactive", &[("BUILDX_BUILDER", "never-made")]);
});

for_each_engine!(builder_that_was_never_started_is_found, [v26, v28], |engine| {
    engine.docker(&["buildx", "create", "--driver", "docker-container", "--name", "idle", "--use"]);
    engine.docker(&["volume", "create", "buildx_buildkit_idle0_state"]);
    let answer = doctor(engine, &[]);
    assert_eq!(answer.remedy("builder-inactive"), "docker buildx inspect --bootstrap idle");
    assert_eq!(answer.status("orphan-builder-state"), "ok", "{}", answer.run);
});

for_each_engine!(orphans_are_found_and_nothing_else_is_removed, [v26, v28], |engine| {
    engine.volume("project-cache", &[("pip/wheel", "1")]);
    engine.build("RUN true", &["--tag", "box"]);
    engine.docker(&["create", "--name", "buildx_buildkit_foreign0", "box", "true"]);
    for volume in ["buildx_buildkit_foreign0_state", "buildx_buildkit_gone0_state", "buildx_buildkit_gone1_state"] {
        engine.docker(&["volume", "create", volume]);
    }
    assert_cured(engine, "orphan-builder-state", &[]);
    let left = engine.docker(&["volume", "ls", "--quiet"]).stdout;
    assert_eq!(left, "buildx_buildkit_foreign0_state\nproject-cache\n");
});

#[test]
fn garbage_collection_that_is_off_is_found() {
    let engine = Engine::start_with(Generation::V28, json!({"builder": {"gc": {"enabled": false}}}));
    assert_eq!(doctor(&engine, &[]).one("gc-policy")["severity"], "warning");
}

#[test]
fn filter_that_the_engine_cannot_read_is_found() {
    let policy = |filter: &str| {
        let policy = json!([{"keepStorage": "1GB", "filter": [filter]}, {"keepStorage": "9GB", "all": true}]);
        json!({"builder": {"gc": {"enabled": true, "policy": policy}}})
    };
    let wrong = Engine::start_with(Generation::V26, policy("type==exec.cachemount")).with_buildx(Generation::V28);
    assert_eq!(doctor(&wrong, &[]).one("gc-policy")["severity"], "error");
    let right = Engine::start_with(Generation::V26, policy("type=exec.cachemount")).with_buildx(Generation::V28);
    let answer = doctor(&right, &[]);
    assert_eq!(answer.status("gc-policy"), "ok", "{}", answer.run);
}

#[test]
fn policy_that_removes_idle_mounts_is_noted() {
    let idle = json!({"keepStorage": "1GB", "filter": ["type=exec.cachemount", "unused-for=48h"]});
    let policy = json!([idle, {"keepStorage": "9GB", "all": true}]);
    let engine = Engine::start_with(Generation::V28, json!({"builder": {"gc": {"enabled": true, "policy": policy}}}));
    let answer = doctor(&engine, &[]);
    assert_eq!(answer.one("gc-policy")["severity"], "note");
    assert_eq!(answer.run.code, 0);
}

#[test]
fn small_disk_is_found() {
    let mounted = tempfile::tempdir().unwrap();
    let path = mounted.path().display().to_string();
    Run::of(Command::new("mount").args(["-t", "tmpfs", "-o", "size=300m", "none", &path])).ok();
    let engine = Engine::start_with(Generation::V28, json!({"data-root": path, "storage-driver": "vfs"}));
    let roomy = doctor(&engine, &[]);
    Run::of(Command::new("fallocate").args(["--length", "290M", &format!("{path}/filler")])).ok();
    let full = doctor(&engine, &[]);
    drop(engine);
    Run::of(Command::new("umount").args(["--lazy", &path])).ok();
    assert_eq!(roomy.status("disk-low"), "ok", "{}", roomy.run);
    assert_eq!(full.one("disk-low")["severity"], "error");
}

for_each_engine!(dead_engine_is_the_first_finding_and_skips_the_rest, [v20, v26, v28_containerd], |engine| {
    let answer = doctor(engine, &[("DOCKER_HOST", "unix:///nowhere.sock")]);
    assert_eq!(answer.run.code, 1);
    assert_eq!(answer.remedy("engine-unreachable"), "unset DOCKER_HOST");
    let checks = answer.json["checks"].as_array().unwrap();
    assert!(checks[1..].iter().all(|check| check["status"] == "skipped" && check["why"].is_string()), "{}", answer.run);
});

for_each_engine!(hanging_engine_is_found_in_bounded_time, [v20, v28], |engine| {
    // Docker 20.10 asks the engine before it starts a plugin, and waits for ever.
    let mut command = by_hand(engine);
    command.env("DOCKER_CACHE_TIMEOUT", "2s");
    engine.signal(rustix::process::Signal::STOP);
    let begin = Instant::now();
    let answer = Answer::of(&mut command);
    let spent = begin.elapsed();
    engine.signal(rustix::process::Signal::CONT);
    assert!(spent < Duration::from_secs(8), "{spent:?}");
    assert_eq!(answer.one("engine-unreachable")["severity"], "error");
});

for_each_engine!(context_that_does_not_exist_is_found_and_left, [v20, v26, v28_containerd], |engine| {
    // Docker 20.10 starts no plugin without a context that exists.
    let answer = Answer::of(by_hand(engine).env_remove("DOCKER_HOST").env("DOCKER_CONTEXT", "nowhere"));
    assert_eq!(answer.remedy("engine-unreachable"), "unset DOCKER_CONTEXT", "{}", answer.run);

    let config = engine.config().join("config.json");
    std::fs::write(&config, r#"{"currentContext":"nowhere"}"#).unwrap();
    let answer = Answer::of(by_hand(engine).env_remove("DOCKER_HOST"));
    let remedy = answer.remedy("engine-unreachable");
    assert_eq!(remedy, "docker --context default context use default");
    // In a mount namespace where docker's usual socket is this engine's.
    engine.cache(&["--help"]).ok();
    let script = format!(
        "mount -t tmpfs none /run && ln -s {} /run/docker.sock && {remedy} >&2 && docker cache doctor --format json",
        engine.host().trim_start_matches("unix://")
    );
    let mut shell = engine.command("unshare");
    let cured = Answer::of(shell.env_remove("DOCKER_HOST").args(["--mount", "sh", "-c", &script]));
    assert_eq!(cured.status("engine-unreachable"), "ok", "{}", cured.run);
});

#[test]
fn user_without_permission_is_told_to_join_the_group() {
    let engine = Engine::start(Generation::V28);
    let docker = engine.cache_command(&[]).get_program().to_owned();
    let mut command = engine.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(docker);
    let answer = Answer::of(command.args(["cache", "doctor", "--format", "json"]).current_dir("/"));
    let remedy = answer.remedy("engine-unreachable");
    assert!(remedy.starts_with("sudo usermod -aG docker"), "{}", answer.run);
}

/// Runs the plugin by hand, with nothing but this folder on PATH.
fn with_path(path: &std::path::Path) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_docker-cache"));
    let command = command.env_clear().env("PATH", path).env("HOME", path).env("DOCKER_CACHE_TIMEOUT", "2s");
    Answer::of(command.args(["doctor", "--format", "json"]))
}

#[test]
fn doctor_answers_without_docker() {
    let empty = tempfile::tempdir().unwrap();
    let answer = with_path(empty.path());
    assert_eq!(answer.run.code, 1);
    assert_eq!(answer.names(), ["engine-unreachable"]);
    assert!(answer.remedy("engine-unreachable").contains("get.docker.com"));
}

#[test]
fn docker_that_lies_makes_checks_fail_and_never_pass() {
    let scripts = [
        "echo rubbish",
        "printf 'HTTP/1.0 200 OK\\r\\n\\r\\n{\"ID\":\"half'",
        "printf 'HTTP/1.0 200 OK\\r\\n'",
        "exit 3",
        "printf '\\377\\376\\000'",
        "/bin/kill -9 $$",
    ];
    for script in scripts {
        let folder = tempfile::tempdir().unwrap();
        fake_docker(folder.path(), script);
        let answer = with_path(folder.path());
        assert_eq!(answer.run.code, 1, "{script}: {}", answer.run);
        assert_eq!(answer.status("engine-unreachable"), "failed", "{script}: {}", answer.run);
        let checks = answer.json["checks"].as_array().unwrap();
        assert!(checks.iter().all(|check| check["status"] != "ok"), "{script}: {}", answer.run);
        assert!(!answer.run.stderr.contains("panicked"), "{script}: {}", answer.run);
    }
}

#[test]
fn one_answer_that_lies_fails_only_the_checks_that_need_it() {
    let engine = Engine::start(Generation::V28);
    let folder = tempfile::tempdir().unwrap();
    let real = engine.docker_program().display().to_string();
    fake_docker(
        folder.path(),
        &format!("[ \"$1\" = buildx ] && printf 'default* {{\"Name\":\"def' && exit; exec {real} \"$@\""),
    );
    let path = format!("{}:{}", folder.path().display(), engine.env()["PATH"].display());
    let answer = Answer::of(by_hand(&engine).env("PATH", path));
    assert_eq!((answer.status("engine-unreachable"), answer.status("disk-low")), ("ok", "ok"));
    for check in ["buildx-missing", "buildkit-disabled", "builder-split", "builder-inactive", "gc-policy"] {
        assert_eq!(answer.status(check), "failed", "{check}: {}", answer.run);
    }
    assert_eq!(answer.run.code, 1);
}

#[test]
fn docker_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    fake_docker(folder.path(), "exec /bin/sleep 60");
    let begin = Instant::now();
    let answer = with_path(folder.path());
    assert!(begin.elapsed() < Duration::from_secs(8));
    assert_eq!(answer.one("engine-unreachable")["severity"], "error");
}

#[test]
fn checks_are_chosen_by_name() {
    let empty = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_docker-cache"));
        Run::of(command.env_clear().env("PATH", empty.path()).arg("doctor").args(args))
    };
    let listed = run(&["--list-checks"]).ok().stdout;
    let names: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"gc-policy") && names[0] == "engine-unreachable", "{listed}");
    for name in names {
        let answer = Answer::from(run(&["--check", name, "--format", "json"]));
        assert_eq!(answer.json["checks"].as_array().unwrap().len(), 1, "{}", answer.run);
    }
    let unknown = run(&["--check", "disk-low,no-such"]);
    assert_eq!(unknown.code, 125);
    assert!(unknown.stderr.contains("no-such") && unknown.stderr.contains("gc-policy"), "{unknown}");
}

for_each_engine!(quiet_prints_findings_only, [v28_containerd], |engine| {
    assert_eq!(engine.cache(&["doctor", "--quiet"]).ok().stdout, "");
    engine.docker(&["volume", "create", "buildx_buildkit_gone0_state"]);
    let run = engine.cache(&["doctor", "--quiet"]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!((lines.len(), lines[1].trim()), (2, "docker volume rm buildx_buildkit_gone0_state"), "{run}");
});

for_each_engine!(examining_changes_nothing, [v20, v28], |engine| {
    engine.volume("project-cache", &[("pip/wheel", "1")]);
    engine.build("RUN --mount=type=cache,target=/m echo 1 > /m/file", &[]);
    let state = || {
        let names = ["/images/json?all=1", "/containers/json?all=1", "/volumes"].map(|path| engine.api(path));
        (names, engine.records().len(), std::fs::read_dir(engine.config()).unwrap().count())
    };
    engine.cache(&["doctor"]);
    let before = state();
    engine.cache(&["doctor"]);
    assert_eq!(state(), before);
});

#[test]
fn caches_over_their_budget_are_found_and_brought_under_it() {
    let engine = Engine::start(Generation::V28);
    let big = "x".repeat(300_000);
    let root = engine.volume("project-cache", &[("pip/old", &big), ("npm/new", &big), ("mine/notes", &big)]);
    let old = std::time::SystemTime::now() - Duration::from_secs(7 * 24 * 3600);
    let old = std::fs::FileTimes::new().set_accessed(old).set_modified(old);
    std::fs::File::options().write(true).open(root.join("pip/old")).unwrap().set_times(old).unwrap();
    engine.build("COPY busybox /again", &[]);
    let size = |budget: &str| engine.cache(&["size", "--budget", budget, "--format", "json", "project-cache"]);
    let answer = size("medium").ok();
    assert_eq!(serde_json::from_str::<Value>(&answer.stdout).unwrap()["budget"]["over"], false);
    let over = size("400kB");
    assert_eq!(over.code, 1, "{over}");
    let budget = &serde_json::from_str::<Value>(&over.stdout).unwrap()["budget"];
    assert_eq!((&budget["bytes"], &budget["over"]), (&json!(400_000), &json!(true)));
    let used = budget["used_bytes"].as_u64().unwrap();
    assert!((600_000..800_000).contains(&used), "programs and what nobody knows do not count: {used}");

    let doctor = |arguments: &[&str]| {
        let call = ["doctor", "--format", "json", "--check", "cache-over-budget"];
        Answer::from(engine.cache(&[&call, arguments].concat()))
    };
    // No project and no budget: nothing to compare with. One lock file: a small project.
    assert_eq!(doctor(&[]).status("cache-over-budget"), "skipped");
    let project = engine.context("");
    std::fs::write(project.path().join("uv.lock"), "").unwrap();
    assert_eq!(doctor(&[&project.path().display().to_string()]).status("cache-over-budget"), "ok");
    let narrowed = ["--budget", "400kB", "--volume", "project-cache"];
    let remedy = doctor(&narrowed).remedy("cache-over-budget");
    assert_eq!(remedy, "docker cache clear --volume project-cache --to-budget 400kB");
    Run::of(engine.command("sh").args(["-c", &format!("{remedy} --force")])).ok();
    assert_eq!(doctor(&narrowed).status("cache-over-budget"), "ok");
    assert!(!root.join("pip/old").exists() && root.join("npm/new").exists() && root.join("mine/notes").exists());
    // Layers count against a budget that the user gives, and go with it.
    let remedy = doctor(&["--budget", "400kB"]).remedy("cache-over-budget");
    Run::of(engine.command("sh").args(["-c", &format!("{remedy} --force")])).ok();
    assert_eq!(doctor(&["--budget", "400kB"]).status("cache-over-budget"), "ok");
}

for_each_engine!(caches_that_an_image_carries_are_told_in_bytes, [all], |engine| {
    let fill = "dd if=/dev/zero bs=1000 count=2500 of=/root/.cache/pip/http/body";
    let carrying = format!(
        "RUN mkdir -p /root/.cache/pip/http /cache/x && {fill} && cp /root/.cache/pip/http/body /cache/x && \
         cp /root/.cache/pip/http/body /usr-lib\nVOLUME /root/.cache\nENTRYPOINT [\"/none\"]"
    );
    engine.build(&carrying, &["--tag", "carrying"]);
    engine.build("RUN mkdir -p /root/.cache/pip /var/cache/apt && echo x > /var/cache/apt/x", &["--tag", "lean"]);
    // Of two images made in one second, either may be told first.
    let images = || BTreeSet::from_iter(engine.docker(&["image", "ls", "--quiet"]).stdout.lines().map(str::to_owned));
    let before = images();
    let of = |image: &str| Answer::from(engine.cache(&["doctor", "--format", "json", "--image", image]));
    let answer = of("carrying");
    let told: Vec<_> = answer.found("cache-in-image").iter().map(|found| found["message"].as_str().unwrap()).collect();
    assert!(told.iter().any(|told| told.contains("2.5MB of pip in `/root/.cache/pip`")), "{told:?}");
    assert!(told.iter().any(|told| told.contains("2.5MB in `/cache`")) && told.len() == 2, "{told:?}");
    assert_eq!((answer.run.code, answer.names()), (1, vec!["cache-in-image"]));
    assert_eq!(of("lean").status("cache-in-image"), "ok");
    let missing = of("not-there");
    assert_eq!((missing.status("cache-in-image"), missing.run.code), ("failed", 1), "{}", missing.run);
    assert!(missing.run.stdout.contains("; `docker image ls` lists them"), "{}", missing.run);
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]).stdout, "");
    assert_eq!(engine.docker(&["volume", "ls", "--quiet"]).stdout, "");
    assert_eq!(images(), before);
});

for_each_engine!(builders_are_asked_for_once, [v26, v28_containerd], |engine| {
    let project = engine.context("RUN --mount=type=cache,target=/root/.cache/pip echo x > /root/.cache/pip/x");
    engine.volume("project-cache", &[("pip/x", "x")]);
    let (asked, docker) = (project.path().join("asked"), engine.docker_program());
    let script = format!("echo \"$*\" >> {}\nexec {} \"$@\"", asked.display(), docker.display());
    let fake = fake_docker(&project.path().join("fake"), &script);
    engine.cache(&["--help"]);
    let mut doctor = engine.command(engine.config().join("cli-plugins/docker-cache"));
    doctor.env("DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND", fake).args(["cache", "doctor", "--format", "json"]);
    let answer = Answer::of(doctor.arg(project.path()));
    assert_eq!(answer.status("cache-over-budget"), "ok", "{}", answer.run);
    let asked = std::fs::read_to_string(asked).unwrap();
    assert_eq!(asked.lines().filter(|line| line.contains("buildx ls")).count(), 1, "{asked}");
});
