//! Doctor's rules for Dockerfiles over a corpus of files of real shape: what each says of a file, what `--fix` makes of
//! it, and that no text breaks them.
//!
//! `expected.txt` beside the files has a line for each finding: `file check:line`, with `+` where a fix is offered.
//! `UPDATE_EXPECTED=1` writes it anew, to be read before it is committed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use docker_cache::checks::Severity;
use docker_cache::checks::dockerfile::{Found, check, fix};
use docker_cache::checks::edits;
use docker_cache::checks::steps::Facts;
use docker_cache::dockerfile::{Dockerfile, Instruction, stage};
use docker_cache::project::Around;
use proptest::prelude::*;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dockerfiles")
}

fn corpus() -> BTreeMap<String, String> {
    let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|extension| extension == "Dockerfile"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap()))
        .collect()
}

fn found(text: &str) -> Vec<Found> {
    let (file, around) = (Dockerfile::parse(text), Around::default());
    check(&Facts::new("Dockerfile", &file, &around))
}

fn fixed(text: &str) -> String {
    fix("Dockerfile", text, &Around::default(), &|_| true)
}

#[test]
fn every_file_has_its_findings_and_no_others() {
    let mut told = String::new();
    for (name, text) in corpus() {
        for found in found(&text) {
            let mark = if found.edits.is_empty() { "" } else { " +" };
            told.push_str(&format!("{name} {}:{}{mark}\n", found.finding.check, found.finding.line.unwrap()));
        }
    }
    let path = directory().join("expected.txt");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&path, &told).unwrap();
    }
    assert_eq!(told, fs::read_to_string(&path).unwrap());
}

#[test]
fn the_corpus_is_large_and_the_recommended_forms_are_left_alone() {
    let corpus = corpus();
    assert!(corpus.len() >= 60, "{}", corpus.len());
    for (name, text) in &corpus {
        let said: Vec<String> = found(text).into_iter().map(|found| found.finding.message).collect();
        if name.ends_with("-good") || name.ends_with("-silent") {
            assert_eq!(said, [""; 0], "{name}");
        } else {
            assert!(!said.is_empty(), "{name}");
        }
    }
}

#[test]
fn a_fixed_file_has_none_of_the_fixed_findings_and_stays_as_it_is() {
    for (name, text) in corpus() {
        let once = fixed(&text);
        let file = Dockerfile::parse(&once);
        assert_eq!(file.problems.is_empty(), Dockerfile::parse(&text).problems.is_empty(), "{name}\n{once}");
        if file.problems.is_empty() {
            let left: Vec<_> = found(&once).into_iter().filter(|found| !found.edits.is_empty()).collect();
            assert_eq!(left, [], "{name}\n{once}");
        }
        assert_eq!(fixed(&once), once, "{name}");
        let errors = |text: &str| found(text).iter().filter(|f| f.finding.severity == Severity::Error).count();
        assert!(errors(&once) <= errors(&text), "{name}\n{once}");
    }
}

#[test]
fn a_mount_that_is_added_is_not_defeated() {
    let defeated =
        |text: &str| found(text).iter().filter(|found| found.finding.check == "defeated-cache-mount").count();
    for (name, text) in corpus() {
        for missing in found(&text).into_iter().filter(|found| found.finding.check == "missing-cache-mount") {
            let after = edits::apply(&text, &[missing.edits]);
            assert!(defeated(&after) <= defeated(&text), "{name}\n{after}");
        }
    }
}

#[test]
fn later_steps_get_a_mount_without_what_empties_it() {
    let mounted = |text: &str| {
        let missing = found(text).into_iter().find(|found| found.finding.check == "missing-cache-mount").unwrap();
        edits::apply(text, &[missing.edits])
    };
    let end = "\nFROM scratch\nCOPY --from=b /x /x\n";
    for (first, then, cleaning) in [
        ("FROM rust:1.80 AS b\nRUN cargo fetch\n", "cargo build", "rm -rf /usr/local/cargo/registry/*"),
        ("FROM golang:1.22 AS b\nRUN go mod download\n", "go test ./...", "go clean -modcache"),
    ] {
        let after = mounted(&format!("{first}RUN {then} && {cleaning}{end}"));
        assert!(after.ends_with(&format!("    {then}{end}")), "{after}");
        let text = format!("{first}RUN {then} && ({cleaning}){end}");
        assert_eq!(mounted(&text), text);
    }
}

#[test]
fn a_directory_is_mounted_once_in_a_step() {
    let dead = "RUN --mount=type=cache,target=/root/.cargo/registry cargo build";
    let after = fixed(&format!("FROM rust:1.80 AS b\nRUN cargo fetch\n{dead}\nFROM scratch\nCOPY --from=b /x /x\n"));
    assert!(!after.contains("/root/.cargo"), "{after}");
    assert_eq!(after.matches("target=/usr/local/cargo/registry").count(), 2, "{after}");
}

#[test]
fn a_fix_keeps_line_ends_comments_and_the_order() {
    for (name, text) in corpus() {
        let after = fixed(&text);
        assert_eq!(after.contains("\r\n"), text.contains("\r\n"), "{name}");
        assert!(!text.contains("\r\n") || !after.replace("\r\n", "").contains('\n'), "{name}");
        for comment in text.lines().filter(|line| line.trim_start().starts_with('#')) {
            assert!(after.contains(comment), "{name}: {comment}");
        }
        let keywords = |text: &str| -> Vec<String> {
            Dockerfile::parse(text).instructions.into_iter().map(|instruction| instruction.keyword).collect()
        };
        assert_eq!(keywords(&text), keywords(&after), "{name}");
    }
}

/// Asserts of each file that it has the finding, and that no fix changes anything of it.
#[track_caller]
fn told_and_left(check: &str, texts: &[&str]) {
    for text in texts {
        assert!(found(text).iter().any(|found| found.finding.check == check), "{check}: {text}");
        assert_eq!(fixed(text), *text);
    }
}

#[test]
fn a_deletion_of_more_than_a_cache_stays_and_no_mount_is_put_in_its_way() {
    let deletions = [
        "rm -rf /root",
        "rm -rf /root/.cac*",
        "rm -rf /root/.*",
        "rm -rf /root/.cache/p*",
        "rm -rf /root/{.cache,x}",
        "rm -rf $D/x",
        "mv /root/.cache /x",
        "find /root -name x -delete",
        "find /root/.cache -type f -exec rm {} +",
        "echo x | xargs rm -rf",
        "rmdir /root/.cache",
        "make-a-model && rm -rf /root/.cache",
        "echo x > ~/.cache/x && rm -rf /root/.cache",
        "make-a-model && rm -rf ~/.cache /root/x",
        "make-a-model && rm -rf /root/.cache/*",
        "(rm -rf /root/.cache)",
        "cd /root && rm -rf .cache",
        "cd /root/.cache && rm -rf *",
        "cd /root/.cache/x && rm -rf ..",
        "sh -ec \"rm -rf ~/.cache\"",
        "if true; then rm -rf /root/.cache/pip; fi",
        "for d in /root/.cache /tmp/x; do rm -rf $d; done",
        "D=/root/.cache; rm -rf $D",
        "clean() { rm -rf /root/.cache; }; clean",
        "trap 'rm -rf /root/.cache' EXIT",
        "pip cache purge || true",
        "grep x /y; rm -rf /root/.cache/pip",
        "echo \"$(pip cache purge)\"",
        "X=`rm -rf /root` ls",
        "rsync -a --delete /empty/ /root",
    ];
    let texts = deletions.map(|deletion| format!("FROM python\nRUN pip install --no-cache-dir x && {deletion}\n"));
    told_and_left("missing-cache-mount", &texts.each_ref().map(String::as_str));
    told_and_left(
        "missing-cache-mount",
        &[
            "FROM debian\nRUN apt-get update && apt-get install -y x && echo $(apt-get clean)\n",
            "FROM debian\nRUN apt-get update && apt-get install -y x && rm -rf /var/cache/*\n",
            "FROM debian\nRUN apt-get update && apt-get install -y x && rm -rf /var/lib/* /var/log/*\n",
            "FROM golang\nENV GOCACHE=/tmp/c\nRUN go mod download && rm -rf /tmp/*\nCMD [\"/x\"]\n",
            "FROM python\nENV D=/root\nRUN D=/x; pip install x && rm -rf $D/y\n",
        ],
    );
    told_and_left(
        "defeated-cache-mount",
        &["FROM python\nRUN --mount=type=cache,target=/root/.cache/pip pip install x && rm -rf /root\n"],
    );
}

#[test]
fn no_mount_is_put_where_a_step_gives_it_to_others() {
    let file =
        |change: &str| format!("FROM python\nENV HOME=/home/app\nWORKDIR /home\nRUN pip install x && {change}\n");
    for change in [
        "chown -R app:app /home/app",
        "chown -hR app ~",
        "chown --recursive --reference=/x /home/app",
        "chgrp -R app .",
        "chmod -R go-w,u+w $HOME/",
        "chmod -R -w /home/app",
        "chown -R 1000:1000 $D",
        "cd / && chown -R app .",
        "find /home -exec chown app {} +",
        "find /home -print0 | xargs -0 chown app",
    ] {
        told_and_left("missing-cache-mount", &[&file(change)]);
    }
    for change in
        ["chown -R app:app /app", "chown app ~", "chmod +x ./x", "chmod -R 755 app/bin", "chown -R $U:$U /srv"]
    {
        assert!(fixed(&file(change)).contains("--mount=type=cache"), "{change}");
    }
}

#[test]
fn a_deletion_that_a_mount_makes_needless_goes_and_others_stay() {
    let cases = [
        ("rm -rf /root/.cache", ""),
        ("pip cache remove '*'", ""),
        ("pip cache remove x", " && pip cache remove x"),
        ("rm -rf ~/.cache/*", ""),
        ("rm -rf /root/.cache/pip/", ""),
        ("rm -rf $HOME/.cache/pip /x", " && rm -rf /x"),
        ("rm -rf /root/*", " && rm -rf /root/*"),
        ("rm x.whl", " && rm x.whl"),
        ("cd /tmp && rm -rf x", " && cd /tmp && rm -rf x"),
        ("rm -rf /tmp/$X", " && rm -rf /tmp/$X"),
        ("rsync -a --delete x/ /srv", " && rsync -a --delete x/ /srv"),
        ("echo $(pip --version) `date`", " && echo $(pip --version) `date`"),
        ("find /usr -name '*.pyc' -delete", " && find /usr -name '*.pyc' -delete"),
    ];
    for (deletion, left) in cases {
        assert_eq!(
            fixed(&format!("FROM python\nRUN pip install x && {deletion}\n")),
            format!("FROM python\nRUN --mount=type=cache,target=/root/.cache/pip \\\n    pip install x{left}\n"),
            "{deletion}"
        );
    }
}

#[test]
fn apts_lists_are_removed_where_no_mount_keeps_them_out() {
    let text =
        "FROM debian\nRUN apt-get update\nRUN apt-get install -y x && apt-get clean && rm -rf /var/lib/apt/lists/*\n";
    let after = fixed(text);
    assert!(after.contains("target=/var/cache/apt,") && after.contains("install -y x && rm -rf /var/lib/apt/lists/*"));
    assert!(!after.contains("target=/var/lib/apt") && !after.contains("apt-get clean"), "{after}");
}

#[test]
fn no_mount_hides_what_something_else_needs() {
    told_and_left(
        "missing-cache-mount",
        &[
            "FROM node AS deps\nRUN npm ci\nFROM node\nCOPY --from=deps /root/.npm /root/.npm\n",
            "FROM python AS b\nRUN pip install x\nFROM debian\nCOPY --from=b /root /x\n",
            "FROM python AS b\nRUN pip install x\nFROM debian\nCOPY --from=b /root/.cache/p* /x\n",
            "FROM python AS b\nRUN pip install x\nFROM debian\nRUN --mount=from=b,source=/root,target=/x ls /x\n",
            "FROM node\nRUN npm ci\nRUN npm ci --offline --omit=dev\n",
            "FROM node\nRUN npm ci\nENV NPM_CONFIG_OFFLINE=true\nRUN ./build.sh\n",
            "FROM node\nRUN npm ci\nRUN --network=none npm rebuild && npm ci\n",
            "FROM node\nRUN yarn install --frozen-lockfile\nRUN yarn install --offline\n",
            "FROM python\nRUN pip install x\nRUN ls /root/.cache/pip/got\n",
            "FROM python AS b\nRUN pip install x\nFROM b\nRUN for d in ~/.cache/*; do ls $d; done\n",
            "FROM python\nENV PIP_CACHE_DIR=/c\nRUN pip install x\nRUN <<E\nls $PIP_CACHE_DIR\nE\n",
            "FROM node\nCOPY npm /root/.npm\nRUN npm ci\n",
            "FROM node\nRUN npm ci && cp -r /root/.npm /x\n",
        ],
    );
    for text in [
        "FROM node\nCOPY .npmrc /root/.npmrc\nRUN npm ci --prefer-offline\nRUN rm -rf /root/.npm\n",
        "FROM python AS b\nRUN pip install x\nFROM debian\nCOPY --from=b /root/.local /root/.local\n",
        "FROM python AS b\nRUN pip install x\nRUN pip install --no-index --find-links=/wheels y\n",
    ] {
        assert!(fixed(text).contains("--mount=type=cache"), "{text}");
    }
}

#[test]
fn no_mount_takes_what_a_later_step_or_the_image_needs() {
    told_and_left(
        "missing-cache-mount",
        &[
            // A number that a build argument changes.
            "FROM node\nARG UID=1001\nRUN useradd -m -u $UID dev\nUSER dev\nRUN npm ci\n",
            "FROM node\nARG UID=1000\nUSER $UID\nRUN npm ci\n",
            // What BuildKit makes above a mount is root's.
            "FROM python\nRUN useradd -m -u 1001 app\nUSER app\nRUN pip install x\n",
            "FROM python\nRUN useradd -m -u 1001 app\nUSER app\nRUN poetry install\n",
            "FROM node\nRUN useradd -u 1001 app\nUSER app\nRUN npm ci\n",
            "FROM node\nUSER node\nRUN yarn install --frozen-lockfile\n",
            // What an earlier step put there.
            "FROM gradle\nRUN echo x=y > /home/gradle/.gradle/gradle.properties\nRUN gradle build\nCMD [\"x\"]\n",
            "FROM golang\nRUN unzip -d /go/pkg/mod x.zip\nRUN go build\nCMD [\"x\"]\n",
            "FROM maven AS b\nRUN tar -xf m2.tar -C /root/.m2/repository\nRUN mvn package\nFROM debian\n",
            // What is more than downloads.
            "FROM maven AS b\nRUN mvn install\nFROM debian\n",
            "FROM maven AS b\nRUN mvn install:install-file -Dfile=x.jar\nRUN mvn package\nFROM debian\n",
            "FROM maven AS b\nRUN mvn dependency:build-classpath\nFROM debian\n",
            "FROM maven AS b\nRUN mvn package\nRUN gradle build\nFROM debian\n",
            "FROM node\nRUN --mount=type=ssh npm ci\nRUN npm ci\n",
            "FROM golang AS b\nRUN go mod download\nENV GOPROXY=off\nRUN go build\nFROM debian\n",
            "FROM golang AS b\nRUN go mod download\nRUN golangci-lint run\nRUN go build\nFROM debian\n",
            "FROM python\nENV UV_LINK_MODE=symlink\nRUN uv sync\n",
            "FROM oven/bun\nRUN bun install --backend=symlink\n",
            "FROM oven/bun\nRUN bun install --backend symlink\n",
            "# syntax=docker/dockerfile:1.1\nFROM python\nRUN pip install x\n",
            "FROM opensuse/leap\nRUN zypper install -y x\n",
            // What decides whether a step fails.
            "FROM debian\nRUN <<EOF\nset -e\napt-get update && apt-get install x\n[ -f x ] && touch y\nrm -rf /var/lib/apt/lists/*\nEOF\n",
            "FROM debian\nRUN <<EOF\napt-get update\napt-get install x\nrm -rf /var/lib/apt/lists/*\nEOF\n",
            "FROM python\nRUN pip install x; pip cache purge && echo y\n",
            // What a later step may read.
            "FROM python\nRUN pip install x && pip cache purge > /log 2>&1\nRUN cat /log\n",
            // Packages would stay in layers.
            "FROM debian\nRUN apt-get update && apt-get install x\nRUN sudo apt-get install y\n",
            "FROM debian\nRUN apt-get update && apt-get install x\nRUN ./install.sh\n",
            "FROM python\nENV PIP_NO_CACHE_DIR=1\nONBUILD RUN pip install y\nRUN pip install x\n",
        ],
    );
    let around = Around { symlinks: true, ..Around::default() };
    for text in ["FROM python\nRUN uv sync\n", "FROM oven/bun\nRUN bun install\n"] {
        assert_eq!(fix("Dockerfile", text, &around, &|_| true), text);
        assert!(fixed(text).contains("--mount=type=cache"), "{text}");
    }
    for text in [
        "FROM node\nUSER node\nRUN npm ci\n",
        "FROM python\nRUN useradd -m -u 1001 app\nUSER app\nRUN mkdir -p ~/.cache\nRUN pip install x\n",
        "FROM golang AS b\nRUN go mod download\nRUN git status && go build\nFROM debian\n",
        "FROM maven AS b\nRUN mvn package\nFROM debian\n",
        "# syntax=docker/dockerfile:1.10\nFROM python\nRUN pip install x\n",
        "FROM opensuse/leap\nRUN zypper mr --keep-packages -a\nRUN zypper install -y x\n",
        "FROM python\nRUN pip install x && pip cache purge > /dev/null 2>&1\n",
    ] {
        assert!(fixed(text).contains("--mount=type=cache"), "{text}");
    }
    let cleaned = "FROM golang AS b\nRUN --mount=type=cache,target=/go/pkg/mod go build && go clean -cache -modcache\n";
    told_and_left("defeated-cache-mount", &[&format!("{cleaned}FROM debian\n")]);
}

#[test]
fn a_mount_that_a_user_cannot_write_to_is_given_no_number_that_changes() {
    let mount = "--mount=type=cache,target=/home/dev/.npm";
    let text = format!("FROM node\nARG UID=1001\nRUN useradd -m -u $UID dev\nUSER dev\nRUN {mount} npm ci\n");
    told_and_left("mount-owner", &[&text]);
}

#[test]
fn a_cache_that_the_dockerfile_itself_moves_or_turns_off_is_not_looked_for_elsewhere() {
    for text in [
        "FROM node\nRUN npm config set cache /c\nRUN npm ci\n",
        "FROM python\nRUN poetry config cache-dir /c && poetry install\n",
        "FROM golang AS b\nRUN go env -w GOMODCACHE=/m\nRUN go mod download\nFROM debian\n",
        "FROM ruby\nRUN bundle config set --local path vendor && bundle install\n",
        "FROM python\nRUN --mount=type=cache,target=/root/.cache/pypoetry,sharing=locked . /v/bin/activate && poetry install\n",
    ] {
        let said: Vec<String> = found(text).into_iter().map(|found| found.finding.message).collect();
        assert_eq!(said, [""; 0], "{text}");
    }
    assert!(fixed("FROM node\nRUN HOME=/x npm ci\n").contains("target=/x/.npm"));
    for off in ["0", "off", "false"] {
        let text = format!(
            "FROM python\nENV PIP_NO_CACHE_DIR={off}\nRUN --mount=type=cache,target=/root/.cache/pip pip install x\n"
        );
        assert!(!fixed(&text).contains("ENV"), "{off}");
    }
    for flag in ["--no-cache-dir", "-n"] {
        assert!(!fixed(&format!("FROM python\nRUN uv pip install {flag} x\n")).contains(flag));
    }
}

#[test]
fn no_mount_is_put_where_a_variable_names_no_directory_of_the_tools_own() {
    let setting = |name: &str, value: &str, run: &str| format!("FROM python\nENV {name}={value}\nRUN {run}\n");
    let places = [
        "/dev/null",
        "/dev/shm/x",
        "/proc/x",
        "/",
        "//",
        "/usr",
        "/usr/",
        "/usr/local",
        "/usr/local/lib",
        "/usr/bin",
        "/etc",
        "/opt",
        "/root",
        "/home/app",
        "/tmp",
        "/var",
        "/var/lib",
        "/var/cache",
        "/usr/lib/python3/dist-packages/x",
        "/app/node_modules",
        "/a/..",
        "off",
    ];
    for place in places {
        told_and_left("missing-cache-mount", &[&setting("PIP_CACHE_DIR", place, "pip install x")]);
    }
    told_and_left(
        "missing-cache-mount",
        &[
            &setting("COMPOSER_CACHE_DIR", "/dev/null", "composer install"),
            &setting("npm_config_cache", "/dev/null", "npm ci"),
            &setting("YARN_CACHE_FOLDER", "/dev/null", "yarn install --frozen-lockfile"),
            &setting("CARGO_HOME", "/dev/null", "cargo build\nFROM debian"),
            &setting("GOCACHE", "/c\nENV GOCACHE=off", "go build\nFROM debian"),
            &setting("PIP_CACHE_DIR", "/c", "PIP_CACHE_DIR=off pip install x"),
        ],
    );
    let mounted = "--mount=type=cache,target=/root/.cache/pip pip install x";
    let text = setting("PIP_CACHE_DIR", "/dev/null", mounted);
    assert_eq!(fixed(&text), text);
    for place in ["/usr/local/pip", "/usr/lib/pip/cache", "/var/cache/x", "/root/.cache", "/tmp/pip", "/cache", "/devs"]
    {
        let fixed = fixed(&setting("PIP_CACHE_DIR", place, "pip install x"));
        assert!(fixed.contains(&format!("target={place} ")), "{fixed}");
    }
}

#[test]
fn a_mount_where_only_old_versions_write_is_dead_unless_a_setting_leads_there() {
    let step = |target: &str, run: &str| format!("RUN --mount=type=cache,target={target} {run}\n");
    let pnpm = step("/root/.pnpm-store", "pnpm install --frozen-lockfile");
    let yarn = step("/root/.yarn", "yarn install --frozen-lockfile && yarn cache clean");
    let said = |text: &str, around: &Around| -> Vec<&'static str> {
        let file = Dockerfile::parse(text);
        check(&Facts::new("Dockerfile", &file, around)).into_iter().map(|found| found.finding.check).collect()
    };
    let classic = Around { yarn_classic: Some(true), ..Around::default() };
    assert_eq!(said(&format!("FROM node:20-alpine\n{pnpm}"), &classic), ["dead-cache-mount"]);
    assert_eq!(said(&format!("FROM node:22\n{yarn}"), &classic), ["dead-cache-mount"]);
    for line in [
        "ENV npm_config_store_dir=/root/.pnpm-store",
        "RUN npm i -g pnpm@6",
        "RUN pnpm config set store-dir /root/.pnpm-store",
    ] {
        let said = said(&format!("FROM node:20-alpine\n{line}\n{pnpm}"), &classic);
        assert!(!said.contains(&"dead-cache-mount"), "{line}: {said:?}");
    }
    let moved = Around { settings: vec![".yarnrc".into()], ..classic };
    assert!(!said(&format!("FROM node:22\n{yarn}"), &moved).contains(&"dead-cache-mount"));
}

#[test]
fn a_mount_is_dead_where_an_option_has_the_tool_write_elsewhere() {
    let step =
        |target: &str, run: &str| format!("FROM node\nRUN --mount=type=cache,target={target},sharing=locked {run}\n");
    let (npm, pip, yarn) = ("/root/.npm", "/root/.cache/pip", "/usr/local/share/.cache/yarn");
    told_and_left(
        "dead-cache-mount",
        &[
            &step(npm, "npm ci --cache /tmp/c"),
            &step(npm, "npm ci --cache=/tmp/c && rm -rf /tmp/c"),
            &step(pip, "pip install --cache-dir /tmp/c x"),
            &step(yarn, "yarn install --frozen-lockfile --cache-folder ./c"),
        ],
    );
    for (target, run) in [
        (npm, "npm ci --cache ~/.npm"),
        (npm, "npm ci --cache $C"),
        (npm, "npm ci --cache /tmp/c && npm i -g x"),
        (npm, "npm ci --cache /tmp/c && ./build.sh"),
        ("/tmp/c", "npm ci --cache /tmp/c"),
    ] {
        assert!(!found(&step(target, run)).iter().any(|found| found.finding.check == "dead-cache-mount"), "{run}");
    }
}

#[test]
fn packages_that_the_image_may_need_are_told_and_left_there() {
    for text in [
        "FROM golang:1.22\nCOPY go.mod go.sum ./\nRUN go mod download\nCOPY . .\nRUN go build -o /app .\n",
        "FROM maven:3.9\nCOPY pom.xml .\nRUN mvn dependency:go-offline\nCOPY . .\nRUN mvn package\n",
        "FROM maven\nRUN mvn package\nENTRYPOINT [\"./entry.sh\"]\n",
        "FROM maven\nRUN mvn package\nENTRYPOINT [\"/app/entry\"]\nCMD [\"java\"]\n",
        "FROM maven\nRUN mvn package\nENTRYPOINT [\"tini\", \"--\", \"./entry\"]\n",
        "FROM maven\nRUN mvn package\nENTRYPOINT [\"/bin/sh\", \"/entry.sh\"]\n",
        "FROM gradle\nCOPY entry.sh /usr/local/bin/entry\nRUN gradle build\nENTRYPOINT [\"entry\"]\n",
        "FROM gradle\nCOPY scripts/ /usr/local/bin/\nRUN gradle build\nENTRYPOINT [\"entry\"]\n",
        "FROM gradle\nCOPY rootfs /\nRUN gradle build\nENTRYPOINT [\"entry\"]\n",
        "FROM gradle\nWORKDIR /usr/src/app\nCOPY . .\nRUN gradle build\nCMD [\"/usr/src/app/entry\"]\n",
        "FROM gradle\nRUN gradle run && cp run /usr/bin/run\nCMD exec run\n",
        "FROM rust\nRUN cargo build\nENTRYPOINT [\"./entry.sh\"]\n",
        "FROM rust\nRUN cargo build\nCMD $START\n",
        "FROM gradle\nRUN gradle build\nCMD [\"nginx\"]\n",
        // What is started runs the tool, or lets somebody else do it.
        "FROM golang\nRUN go mod download\nCMD [\"nodemon\", \"--exec\", \"go run .\"]\n",
        "FROM golang\nRUN go install github.com/a/b/reflex@v1 && go mod download\nCMD [\"reflex\", \"go\", \"run\", \".\"]\n",
        "FROM golang\nRUN go mod download && go install .\nCMD [\"sleep\", \"infinity\"]\n",
        "FROM rust\nRUN cargo install bacon && cargo fetch\nCMD [\"bacon\", \"run\"]\n",
        // The image of a stage is for itself.
        "FROM golang AS base\nRUN go mod download\nFROM base AS test\nCMD [\"go\", \"test\"]\nFROM scratch\nCOPY --from=base /a /a\n",
        "FROM maven AS base\nRUN mvn package\nFROM base AS dev\nWORKDIR /src\nFROM scratch\nCOPY --from=base /a /a\n",
    ] {
        let found: Vec<Found> =
            found(text).into_iter().filter(|found| found.finding.check == "missing-cache-mount").collect();
        assert!(found.len() == 1 && found[0].finding.severity == Severity::Note, "{found:?}");
        assert!(found[0].edits.is_empty() && found[0].finding.message.contains("may need it there"), "{found:?}");
    }
    for text in [
        "FROM maven\nCOPY . /\nRUN mvn package\nCMD [\"java\", \"-jar\", \"/app.jar\"]\n",
        "FROM maven\nRUN mvn package\nCMD exec /opt/java/openjdk/bin/java -jar /app.jar\n",
        "FROM golang\nRUN go build -o server .\nENTRYPOINT [\"./server\"]\nCMD [\"--port=80\"]\n",
        "FROM golang\nRUN go build -o /bin/app .\nCMD [\"/bin/app\"]\n",
        "FROM golang\nRUN go install .\nCMD [\"/go/bin/app\"]\n",
        "FROM golang\nRUN go build -o /app/srv .\nENTRYPOINT [\"/app/srv\"]\nCMD [\"serve\"]\n",
        "FROM golang AS b\nRUN go build -o /a .\nFROM b AS test\nRUN go test ./...\nFROM scratch\nCOPY --from=b /a /a\n",
        "FROM rust\nRUN cargo install --path .\nCMD [\"app\"]\n",
        "FROM rust\nRUN cargo build\nCMD [\"./target/debug/app\"]\n",
    ] {
        assert!(fixed(text).contains("--mount=type=cache"), "{text}");
    }
}

#[test]
fn lists_of_packages_stay_in_an_image_unless_its_steps_remove_them() {
    let step = "FROM debian\nRUN apt-get update && apt-get install -y x";
    let lists = "target=/var/lib/apt/lists";
    for more in ["", "\nCMD apt-get install -y y", "\nONBUILD RUN apt-get install -y y", " && rm -rf x"] {
        let fixed = fixed(&format!("{step}{more}\n"));
        assert!(fixed.contains("target=/var/cache/apt,") && !fixed.contains(lists), "{fixed}");
        assert!(!found(&fixed).iter().any(|found| found.finding.check == "missing-cache-mount"), "{fixed}");
    }
    for removal in ["rm -rf /var/lib/apt/lists/*", "apt-get clean && rm -rf /var/lib/apt/lists"] {
        let fixed = fixed(&format!("{step} && {removal}\n"));
        assert!(fixed.contains("target=/var/cache/apt,") && fixed.contains(lists), "{fixed}");
    }
}

#[test]
fn a_variable_that_turns_a_cache_off_goes_only_if_every_step_has_the_mount() {
    let text = "FROM python\nENV PIP_NO_CACHE_DIR=1\nRUN pip install x\n";
    assert!(!fixed(text).contains("ENV"));
    assert!(!fixed(&format!("{text}RUN apt-get update && echo x > /x\nRUN pip install y\n")).contains("ENV"));
    for step in [
        "RUN printf '#!/bin/sh\\npip install y\\n' > /i.sh && sh /i.sh",
        "RUN make",
        "RUN install-all",
        "RUN pip install y && rm -rf /root",
        "RUN sudo pip install y",
        "RUN echo $PIP_NO_CACHE_DIR",
    ] {
        told_and_left("missing-cache-mount", &[&format!("{text}{step}\n")]);
        let said = found(&format!("{text}{step}\n")).remove(0).finding.message;
        assert!(said.contains("`PIP_NO_CACHE_DIR` would keep a mount empty"), "{said}");
        let mounted = text.replace("RUN", "RUN --mount=type=cache,target=/root/.cache/pip");
        told_and_left("defeated-cache-mount", &[&format!("{mounted}{step}\n")]);
    }
}

#[test]
fn no_mount_is_added_that_stays_empty() {
    told_and_left(
        "missing-cache-mount",
        &[
            "FROM python\nRUN [\"pip\",\"install\",\"--no-cache-dir\",\"x\"]\n",
            "FROM python\nRUN bash -c \"pip install --no-cache-dir x\"\n",
            "FROM python\nRUN PIP_NO_CACHE_DIR=1 pip install x\n",
            "FROM python\nRUN export PIP_NO_CACHE_DIR=1 && pip install x\n",
            "FROM debian\nRUN [\"apt-get\",\"install\",\"-y\",\"x\"]\n",
        ],
    );
}

#[test]
fn a_comment_beside_what_goes_stays_and_a_new_line_has_the_indent_of_the_others() {
    let apt = |script: &str| fixed(&format!("FROM debian\nRUN <<-EOF\n{script}\nEOF\n"));
    let after = apt("\tset -e\n\tapt-get update\n\tapt-get install x # why\n\t# lists\n\trm -rf /var/lib/apt/lists/*");
    let clean = "\trm -f /etc/apt/apt.conf.d/docker-clean\n";
    let script = format!("<<-EOF\n{clean}\tset -e\n\tapt-get update\n\tapt-get install x # why\n\t# lists\nEOF\n");
    assert!(after.ends_with(&script), "{after}");
    let last = "install -y x \\\n    # clean up\n    && rm -rf /var/lib/apt/lists/* \\\n    # then\n    && echo x\n";
    let after = fixed(&format!("FROM debian\nRUN apt-get update && apt-get {last}"));
    assert!(after.ends_with("install -y x \\\n    # clean up\n    # then\n    && echo x\n"), "{after}");
    let pip = |variables: &str| {
        let after = fixed(&format!("FROM python\nENV {variables}\nRUN pip install x\n"));
        after.split("\nRUN").next().unwrap().replace("FROM python\nENV ", "")
    };
    assert_eq!(pip("A=1 \\\n  # c\n  PIP_NO_CACHE_DIR=1"), "A=1\n  # c");
    assert_eq!(pip("A=1 \\\r\n  # c\r\n  PIP_NO_CACHE_DIR=1\r"), "A=1\r\n  # c\r");
    let last = fixed("FROM python\nRUN pip install x \\\n  # c\n  && rm -rf ~/.cache\nRUN y\n");
    assert!(last.ends_with("pip install x\n  # c\nRUN y\n"), "{last}");
    let run = |script: &str| {
        let mount = "--mount=type=cache,target=/root/.cache/pip";
        let after = fixed(&format!("FROM python\nRUN {mount} {script}\nRUN y\n"));
        after.strip_prefix(&format!("FROM python\nRUN {mount} ")).unwrap().strip_suffix("\nRUN y\n").unwrap().to_owned()
    };
    for (script, after) in [
        (
            "pip install x && \\\n  # c\n  pip cache purge && \\\n  # d\n  pip install x",
            "pip install x && \\\n  # c\n  # d\n  pip install x",
        ),
        (
            "pip install x \\\n  # c\n  && pip cache purge \\\n  # d\n  && pip install x",
            "pip install x \\\n  # c\n  # d\n  && pip install x",
        ),
        (
            "pip install x && \\\r\n  # c\r\n  pip cache purge && pip install x",
            "pip install x && \\\r\n  # c\r\n  pip install x",
        ),
        (
            "pip install x && \\\n  # c\n  pip cache purge; pip install x",
            "pip install x && \\\n  # c\n  pip cache purge; pip install x",
        ),
        ("pip cache purge && \\\n  # c\n  pip install x", "\\\n  # c\n  pip install x"),
        ("\\\n  pip cache purge \\\n  # c\n  && pip install x", "\\\n  # c\n  pip install x"),
        ("<<EOF\npip cache purge\n# c\npip install x\nEOF", "<<EOF\n# c\npip install x\nEOF"),
        ("pip install \\\n  # c\n  --no-cache-dir \\\n  x", "pip install \\\n  # c\n   \\\n  x"),
        ("pip install x \\\n  # c\n  --no-cache-dir", "pip install x\n  # c"),
        // What `sudo -u` starts is not looked at, and stays.
        (
            "pip install x && sudo -u x b && pip cache purge && c",
            "pip install x && sudo -u x b && pip cache purge && c",
        ),
    ] {
        assert_eq!(run(script), after);
    }
    assert_eq!(pip("PIP_NO_CACHE_DIR=1 \\\n  # c\n  A=1"), " \\\n  # c\n  A=1");
    assert_eq!(pip("A=1 \\\n  # c\n  PIP_NO_CACHE_DIR=1 \\\n  B=1"), "A=1 \\\n  # c\n   \\\n  B=1");
}

#[test]
fn large_and_odd_files_are_read_to_their_end() {
    let line = "RUN apt-get update && apt-get install -y x && rm -rf /var/lib/apt/lists/* \\\n  && true\n";
    let several =
        format!("RUN apt-get update && apt-get install -y a && pip install b && npm ci && {}\n", "x".repeat(1500));
    let large = [
        format!("FROM debian\nRUN {}\n", "a ".repeat(500_000)),
        format!("FROM debian\nRUN echo \\\n{}  x\n", "  x \\\n".repeat(100_000)),
        format!("FROM debian\n{}", line.repeat(200)),
        format!("FROM debian\n{}", several.repeat(200)),
    ];
    for text in large {
        let text = text + "RUN pip install x\n";
        let last = text.lines().count();
        let lines: Vec<_> = found(&text).into_iter().filter_map(|found| found.finding.line).collect();
        assert!(lines.iter().any(|line| *line as usize == last), "line {last}: {lines:?}");
        fixed(&text);
    }
    let odd = [
        format!("FROM debian\nRUN echo \\\n{}", "  x \\\n".repeat(100_000)),
        "FROM debian\nRUN <<EOF\napt-get install x".into(),
        "\u{feff}\r\n\r\nFROM debian\r\nRUN pip install x \\\r\n".into(),
        "FROM".into(),
        "FROM \\\n".into(),
        "FROM a\nRUN --mount\nRUN --mount=\nRUN --mount=type=cache\nRUN --mount=type=cache,target=\n".into(),
        "FROM a AS a\nFROM a AS b\nFROM b\nCOPY --from=b\nCOPY --from=9 x y\n".into(),
        String::from_utf8_lossy(&(0..=255).cycle().take(100_000).collect::<Vec<u8>>()).into_owned(),
    ];
    for text in odd {
        found(&text);
        fixed(&text);
    }
}

fn any_dockerfile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("FROM python:3.12\n"),
        Just("FROM node AS n\n"),
        Just("FROM n\n"),
        Just("FROM ${A}\n"),
        Just("ARG A=debian:12\n"),
        Just("ENV PIP_NO_CACHE_DIR=1 B=$A \\\n C=2\n"),
        Just("USER node\n"),
        Just("USER $A\n"),
        Just("RUN "),
        Just("COPY --from=n /root/.npm .\n"),
        Just("--mount=type=cache,target=/root/.cache/pip "),
        Just("--mount=type=cache,target=$A,sharing= "),
        Just("--mount=type=cache,target=/var/cache/apt,id=x "),
        Just("pip install --no-cache-dir x"),
        Just("apt-get update"),
        Just("apt-get install -y é\u{202e}"),
        Just("go build ./..."),
        Just("rm -rf /var/lib/apt/lists/* /tmp"),
        Just(" && "),
        Just(" ; "),
        Just(" \\\n"),
        Just("\r\n"),
        Just("\n"),
        Just("<<EOF\n"),
        Just("EOF\n"),
        Just("if a; then "),
        Just("fi"),
        Just("'"),
        Just("\""),
        Just("$("),
        Just("`"),
        Just("# c\n"),
        Just("["),
        Just("]"),
        Just("\0"),
    ];
    prop_oneof![
        any::<String>(),
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat()),
        proptest::collection::vec(any::<u8>(), 0..400).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    ]
}

/// Instructions of the corpus, with their here-documents and the comments in them: those of a base image, and the rest.
fn fragments() -> (Vec<String>, Vec<String>) {
    let (mut bases, mut rest) = (Vec::new(), Vec::new());
    for text in corpus().into_values().filter(|text| !text.contains("escape=`")) {
        let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
        let file = Dockerfile::parse(&text);
        if !file.problems.is_empty() {
            continue;
        }
        let starts: Vec<usize> = file.instructions.iter().map(|instruction| instruction.span.start).collect();
        for (at, instruction) in file.instructions.iter().enumerate() {
            let whole = &text[starts[at]..starts.get(at + 1).copied().unwrap_or(text.len())];
            let whole = format!("{}\n", whole.strip_suffix('\n').unwrap_or(whole));
            match instruction.keyword.as_str() {
                "FROM" => bases.push(whole),
                _ => rest.push(whole),
            }
        }
    }
    (bases, rest)
}

/// Dockerfiles that are put together of instructions that people wrote.
fn real_dockerfile() -> impl Strategy<Value = String> {
    let (bases, rest) = fragments();
    let stage = (proptest::sample::select(bases), proptest::collection::vec(proptest::sample::select(rest), 0..7))
        .prop_map(|(base, rest)| format!("{base}{}", rest.concat()));
    (proptest::collection::vec(stage, 1..4), any::<bool>(), 0..2_usize).prop_map(|(stages, crlf, ends)| {
        let text = stages.concat();
        let text = text[..text.len() - ends].to_owned();
        if crlf { text.replace('\n', "\r\n") } else { text }
    })
}

/// What a file says apart from what a fix may change: the comments, and every instruction that is not `RUN` or `ENV`.
fn kept(text: &str) -> Vec<String> {
    let file = Dockerfile::parse(text);
    let mut kept: Vec<String> =
        text.lines().filter(|line| line.trim_start().starts_with('#')).map(str::to_owned).collect();
    let same = |instruction: &&Instruction| !matches!(instruction.keyword.as_str(), "RUN" | "ENV");
    kept.extend(file.instructions.iter().filter(same).map(|instruction| text[instruction.span.clone()].to_owned()));
    kept
}

/// What a command does that a fix takes out, or puts in before an install.
const CLEANING: &[&str] = &["clean", "autoclean", "purge", "update", "prune", "clear-cache", "-Sc", "-Scc"];

/// The commands of a file without what defeats a cache, and without what a fix puts before them.
fn installs(text: &str) -> Vec<Vec<String>> {
    let file = Dockerfile::parse(text);
    let defeats = ["--no-cache", "--no-cache-dir", "-f", "-rf", "--setopt=keepcache=1", "-U", "--update-cache"];
    let is_kept = |word: &String| !defeats.contains(&word.as_str());
    let runs = file.instructions.iter().filter(|instruction| instruction.keyword == "RUN");
    runs.flat_map(stage::scripts)
        .filter(|command| !matches!(command.program(), "rm" | "ln" | "echo" | "mkdir"))
        .filter(|command| !command.args().any(|arg| CLEANING.contains(&arg)))
        .map(|command| command.words.into_iter().map(|word| word.text).filter(is_kept).collect())
        .filter(|words: &Vec<String>| !words.is_empty())
        .collect()
}

/// As many as asked for by PROPTEST_CASES, else so many that it takes seconds.
fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(asked.unwrap_or(usual)) }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn no_text_panics_and_a_fix_is_final(text in any_dockerfile()) {
        found(&text);
        let once = fixed(&text);
        prop_assert_eq!(fixed(&once), once);
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn a_fix_of_any_file_changes_what_it_says_and_nothing_else(text in real_dockerfile()) {
        let once = fixed(&text);
        prop_assert_eq!(fixed(&once), once.clone());
        prop_assert_eq!(Dockerfile::parse(&once).problems, Dockerfile::parse(&text).problems);
        let left: Vec<_> = found(&once).into_iter().filter(|found| !found.edits.is_empty()).collect();
        prop_assert!(left.is_empty(), "{:?}\n{}", left, once);
        prop_assert_eq!(kept(&text), kept(&once));
        prop_assert_eq!(installs(&text), installs(&once));
        let mut lines = once.split('\n').rev().skip(1);
        prop_assert!(!text.contains("\r\n") || lines.all(|line| line.ends_with('\r')), "{:?}", once);
        prop_assert_eq!(text.ends_with('\n'), once.ends_with('\n'));
    }
}
