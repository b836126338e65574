//! `docker cache doctor` on what caches hold that they should not: credentials in volumes and mounts, package caches in
//! images, and blobs in exports that no build refers to.

use std::fs;

use serde_json::Value;

use crate::for_each_engine;
use crate::support::debian::{Tool, proxies};
use crate::support::process::Run;
use crate::support::world::{noise, write_files};
use crate::support::{Engine, Generation};

/// Returns the findings, after a look at the checks: each must have run.
#[track_caller]
fn findings(engine: &Engine, arguments: &[&str]) -> Vec<Value> {
    let run = engine.cache(&[&["doctor", "--format", "json"], arguments].concat());
    let answer: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run}"));
    let ran = |check: &Value| check["status"] == "ok" || check["status"] == "found";
    assert!(answer["checks"].as_array().unwrap().iter().all(ran), "{run}");
    assert!(!run.to_string().contains("hunter2"), "{run}");
    answer["findings"].as_array().unwrap().clone()
}

fn message(finding: &Value) -> &str {
    finding["message"].as_str().unwrap()
}

/// Pastes the remedy of a finding into a shell.
#[track_caller]
fn cure(engine: &Engine, finding: &Value, more: &str) {
    let remedy = finding["fix"]["command"].as_str().unwrap();
    Run::of(engine.command("sh").args(["-c", &format!("{remedy}{more}")])).ok();
}

for_each_engine!(
    credentials_in_caches_are_named_and_their_remedies_remove_them,
    [v20, v26, v28_containerd],
    |engine| {
        let secret = "hunter2";
        let volume = engine.volume(
            "team-cache",
            &[
                ("cargo/credentials.toml", secret),
                ("pip/.netrc", secret),
                (".netrc", secret),
                (".ssh/id_rsa", secret),
                ("docker/config.json", ""),
                ("npm/_cacache/deep/auth.json", secret),
                ("npm/_cacache/index", "1"),
            ],
        );
        let write = "RUN --mount=type=cache,target=/usr/local/cargo cd /usr/local/cargo && mkdir bin && echo 1 > bin/tool && \
             echo hunter2 > credentials.toml\nRUN ln -s busybox /bin/rm";
        engine.build(
            &format!("{write}\nRUN --mount=type=cache,target=/root/.npm echo 1 > /root/.npm/x"),
            &["--tag", "box", "--tag", "busybox"],
        );
        for name in ["one", "two"] {
            engine.docker(&["run", "--name", name, "--volume", "team-cache:/cache", "box", "/bin/busybox", "true"]);
        }
        let records = engine.lasting_records().len();
        let plain = engine.cache(&["doctor"]);
        assert!(plain.stdout.contains("team-cache") && !plain.stdout.contains("/usr/local/cargo"), "{plain}");

        let found = findings(engine, &["--check", "secret-in-cache"]);
        assert!(
            found[0]["severity"] == "warning" && message(&found[0]).contains("containers one and two can read that")
        );
        assert!(message(&found[0]).contains("`/cache/.netrc`, `/cache/.ssh/id_rsa` and 2 more"), "{found:?}");
        assert!(!message(&found[0]).contains("docker cache export"), "{found:?}");
        assert!(!message(&found[0]).contains("auth.json") && !message(&found[0]).contains("config.json"), "{found:?}");
        cure(engine, &found[0], " --force");
        for path in ["cargo/credentials.toml", "pip/.netrc", ".netrc", ".ssh/id_rsa"] {
            assert!(!volume.join(path).exists(), "{path}");
        }
        assert!(volume.join("npm/_cacache/index").exists());
        assert_eq!(engine.lasting_records().len(), records, "what the look needed is gone");

        if engine.generation() != Generation::V20 {
            assert_eq!(found.len(), 2, "{found:?}");
            assert!(
                message(&found[1]).contains("mount /usr/local/cargo")
                    && message(&found[1]).contains("credentials.toml")
            );
            cure(engine, &found[1], " --force");
            let kept = "test -e bin/tool && test ! -e credentials.toml";
            engine.build(&format!("RUN --mount=type=cache,target=/usr/local/cargo cd /usr/local/cargo && {kept}"), &[]);
            assert_eq!(findings(engine, &["--check", "secret-in-cache"]), [Value::Null; 0]);
        } else {
            let left = engine.cache(&["doctor", "--check", "secret-in-cache"]);
            assert!(left.stdout.starts_with("- skipped, engines before 24"), "{left}");
        }
    }
);

for_each_engine!(
    blobs_that_no_build_refers_to_are_counted_and_the_remedy_leaves_none,
    [v26_containerd, v28_containerd],
    |engine| {
        let context = engine.context("FROM scratch\nCOPY data /data\n");
        let project = context.path();
        let at = project.display().to_string();
        write_files(project, &[("build.sh", "docker buildx build --cache-to type=local,dest=.buildx,mode=max .\n")]);
        let dir = project.join(".buildx");
        let build = |seed: u64| {
            fs::write(project.join("data"), noise(seed, 3_000_000)).unwrap();
            let to = format!("--cache-to=type=local,dest={},mode=max", dir.display());
            engine.docker(&["buildx", "build", &to, "--output=type=cacheonly", &at]);
        };
        assert!(!message(&findings(engine, &["--check", "cache-export-grows", &at])[0]).contains("holds"));
        build(1);
        let once = findings(engine, &["--check", "cache-export-grows", &at]);
        assert!(message(&once[0]).contains("of which 0B are left over") && once[0]["fix"].is_null(), "{once:?}");
        build(2);
        let grown = findings(engine, &["--check", "cache-export-grows", &at]);
        assert!(message(&grown[0]).contains("/.buildx` holds 6.0") && message(&grown[0]).contains("3.0"), "{grown:?}");
        cure(engine, &grown[0], "");
        let left = findings(engine, &["--check", "cache-export-grows", &at]);
        assert!(message(&left[0]).contains("of which 0B are left over"), "{left:?}");
        engine.docker(&["builder", "prune", "--all", "--force"]);
        let from = format!("--cache-from=type=local,src={}", dir.display());
        let again = engine.docker(&["buildx", "build", "--progress=plain", &from, "--output=type=cacheonly", &at]);
        assert!(again.stderr.contains("CACHED"), "{again}");
    }
);

/// Moves images from engine to engine by `docker save` and `docker load`.
#[test]
fn caches_are_found_in_images_that_any_generation_saved() {
    for (from, to) in [
        (Generation::V20, Generation::V28Containerd),
        (Generation::V28Containerd, Generation::V26),
        (Generation::V26Containerd, Generation::V20),
    ] {
        let engine = Engine::start(from);
        let context = engine.context("FROM scratch\nCOPY a /root/.cache/pip/http/a\nCOPY b /cache/b\nCOPY c /app/c\n");
        for (name, bytes) in [("a", 2_000_000), ("b", 1_500_000), ("c", 3_000_000)] {
            fs::write(context.path().join(name), noise(1, bytes)).unwrap();
        }
        let mut build = engine.command(engine.docker_program());
        Run::of_docker(build.env("DOCKER_BUILDKIT", "1").args(["build", "--tag", "box:1"]).arg(context.path())).ok();
        let saved = engine.folder().join("tmp/box.tar").display().to_string();
        engine.docker(&["save", "--output", &saved, "box:1"]);
        let other = Engine::start(to);
        other.docker(&["load", "--input", &saved]);
        let found = findings(&other, &["--image", "box:1"]);
        assert_eq!(found.len(), 2, "{from:?} to {to:?}: {found:?}");
        assert!(message(&found[0]).contains("2MB of pip in `/root/.cache/pip`"), "{found:?}");
        assert!(message(&found[1]).contains("1.5MB in `/cache`"), "{found:?}");
    }
}

/// Builds without any mount, with real package managers, and compares with what `find` counts in a container.
#[test]
fn what_real_package_managers_leave_in_an_image_is_counted() {
    let engine = Engine::online(Generation::V28Containerd);
    let own_package = "mkdir /tmp/big && cd /tmp/big && head -c 3000000 /dev/urandom > data";
    let tools = [
        (Tool::Apt, "apt-get update && apt-get install -y tree".to_owned(), "/var/lib/apt /var/cache/apt"),
        (
            Tool::Pip,
            format!(
                "{own_package} && printf 'from setuptools import setup; setup(name=\"big\", version=\"1.0\", \
                 py_modules=[], data_files=[(\"big\", [\"data\"])])' > setup.py && echo include data > MANIFEST.in && \
                 python3 setup.py -q sdist && \
                 pip install --break-system-packages --no-build-isolation --use-pep517 dist/big-1.0.tar.gz"
            ),
            "/root/.cache/pip",
        ),
        (
            Tool::Npm,
            format!(
                "{own_package} && npm init --yes && npm pack && mkdir /tmp/user && cd /tmp/user && npm init --yes && \
                 npm install --no-audit --no-fund /tmp/big/big-1.0.0.tgz"
            ),
            "/root/.npm",
        ),
        (
            Tool::Cargo,
            "cargo init --vcs none --lib /tmp/user && cd /tmp/user && cargo add libc@0.2 && cargo fetch".to_owned(),
            "/root/.cargo/registry",
        ),
    ];
    for (tool, script, places) in tools {
        let arguments: Vec<String> = proxies().map(|proxy| format!("--build-arg={proxy}")).collect();
        let mut words = vec!["--network=host", "--tag=carrier"];
        words.extend(arguments.iter().map(String::as_str));
        engine.build(&format!("FROM {}\nRUN {script}", tool.image(&engine)), &words);
        let count =
            format!("find {places} -type f -links 1 -printf '%s\\n' | awk '{{ sum += $1 }} END {{ print sum }}'");
        let counted = engine.docker(&["run", "--rm", "--network=none", "carrier", "sh", "-c", &count]).stdout;
        let bytes = docker_cache::model::Bytes(counted.trim().parse().unwrap());
        let found = findings(&engine, &["--image", "carrier"]);
        let expected = format!("image carrier carries {bytes} of {} in ", tool.name());
        assert!(found.iter().any(|found| message(found).starts_with(&expected)), "{expected}: {found:?}");
    }
}
