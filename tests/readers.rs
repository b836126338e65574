//! No file of a project makes a reader or a rule panic, run away, or fix what it has fixed.
//!
//! `PROPTEST_CASES=200000 cargo test --release --test readers` looks longer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use docker_cache::checks::containers;
use docker_cache::checks::project::Project;
use docker_cache::project::{self, Around, File, Kind};
use proptest::prelude::*;

const YAML: &[&str] = &[
    "services:",
    "web:",
    "image: ",
    "build: ",
    "volumes:",
    "command: ",
    "extends: ",
    "include:",
    "environment:",
    "x: &a ",
    "<<: *a",
    "*a",
    "- ",
    "  ",
    "    ",
    "\n",
    "\n",
    "\n  ",
    "\n    ",
    "\n      ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    ": ",
    "\"",
    "'",
    "node",
    "python",
    "npm ci",
    "pip install x",
    "pip:/cache/pip",
    "${A:-node}",
    "${A",
    "$A",
    "|\n",
    ">-\n",
    "# c",
    "\t",
    "no_cache: true",
    "context: .",
    "dockerfile_inline: ",
    "FROM node",
    "user: node",
    "---\n",
    "!reset ",
    "\u{feff}",
    "tmpfs: ",
    "target: /root/.npm",
    "type: volume",
    "\r\n",
    "é",
    "\0",
    "? ",
    "npm-cache:",
    "docker build --no-cache .",
    "run: ",
    "script: ",
    "uses: docker/build-push-action@v6",
    "with: ",
    "cache-to: type=local,dest=/x",
    "vars: ",
    "{{.A}}",
];
const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\n",
    "\"",
    "\\",
    "// c\n",
    "/* ",
    " */",
    "\"image\"",
    "\"mounts\"",
    "\"build\"",
    "\"options\"",
    "\"--no-cache\"",
    "\"dockerfile\"",
    "\"Dockerfile\"",
    "\"mcr.microsoft.com/devcontainers/rust\"",
    "\"source=x,target=/root/.npm,type=volume\"",
    "\"node\"",
    "\"postCreateCommand\"",
    "\"npm ci\"",
    "\"remoteUser\"",
    "\"scripts\"",
    "\"x\": \"docker build --no-cache .\"",
    "\"target\"",
    "\"no-cache\": true",
    "\"dockerComposeFile\"",
    "\"compose.yml\"",
    "\"service\"",
    "\"web\"",
    "\"features\"",
    "\u{feff}",
    "\\u00e9",
    "é",
    "\t",
    "null",
    "true",
    "1e9",
];
const SHELL: &[&str] = &[
    "docker",
    " build",
    " --no-cache",
    " .",
    "\n",
    "\\\n",
    "\r\n",
    "'",
    "\"",
    "`",
    "$(",
    ")",
    "${A:-",
    "}",
    "<<EOF",
    "<<-'X'",
    "\nEOF\n",
    "\nX\n",
    "f() {",
    "\n}\n",
    "function g {",
    "alias a='",
    "if ",
    "; then ",
    "fi",
    " && ",
    " || ",
    ";",
    "&",
    "|",
    "sh -c ",
    "export DOCKER_BUILDKIT=0",
    "#",
    "\\",
    "é",
    "\0",
    "case x in",
    "esac",
    "((",
    "))",
    " 2>&1",
    "sudo -u x ",
    "A=1 ",
    "target:",
    "\n\t",
    "$(A)",
    "${A}",
    "A := $(B)",
    "B += $(A)",
    "$$",
    "{{a}}",
    "{{",
    "ifeq (a,b)",
    "define x",
    "\u{feff}",
];
const BAKE: &[&str] = &[
    "target \"x\" {",
    "}",
    "[",
    "]",
    "cache-to = ",
    "\"type=local,dest=/x\"",
    "no-cache = true",
    "\n",
    "\"",
    ",",
    "# c\n",
    "//",
    "{ type = \"local\", dest = \"x\" }",
    "group",
    "${A}",
    "<<EOF\n",
    "EOF\n",
    "é",
    "\0",
    "reset=true",
    "rm -r x",
];
const ENV: &[&str] = &[
    "A=",
    "B=",
    "COMPOSE_FILE=",
    "COMPOSE_PATH_SEPARATOR=",
    "compose.yml",
    ":",
    ",",
    "'",
    "\"",
    "${A:-",
    "$A",
    "$B",
    "${",
    "}",
    "\n",
    "export ",
    "# c",
    "DOCKER_BUILDKIT=0",
    "é",
    "\u{feff}",
    "\0",
    "=",
    "..",
    "/",
];

fn of(pieces: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        8 => proptest::collection::vec(proptest::sample::select(pieces), 0..60).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

fn file(path: &str, kind: Kind, text: String) -> File {
    File { path: path.into(), kind, text, around: Around::default() }
}

/// Reads the files, tells all that is found, and fixes them twice.
fn look(files: Vec<File>) -> Result<(), TestCaseError> {
    let once = containers::fix(&files, &|_| true);
    let mut fixed = files.clone();
    for file in &mut fixed {
        file.text = once.get(&file.path).unwrap_or(&file.text).clone();
    }
    prop_assert!(containers::fix(&fixed, &|_| true).is_empty(), "{:?}", fixed);
    files.iter().for_each(|file| drop(project::container::references(file)));
    let lines: Vec<(String, u32)> = files.iter().map(|f| (f.path.clone(), f.text.lines().count() as u32)).collect();
    let project = Project::new(project::Project { files, ..project::Project::default() });
    for found in project.found() {
        let (Some(path), Some(line)) = (&found.file, found.line) else { continue };
        let known = lines.iter().find(|(known, _)| known == path).map(|(_, lines)| *lines);
        prop_assert!(known.is_some_and(|lines| line >= 1 && line <= lines + 1), "{:?}", found);
    }
    Ok(())
}

fn cases() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(asked.unwrap_or(400)) }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn compose_files_and_dev_containers(compose in of(YAML), over in of(YAML), dev in of(JSON), env in of(ENV)) {
        look(vec![
            file("compose.yml", Kind::Compose, compose),
            file("compose.override.yml", Kind::Compose, over),
            file("devcontainer.json", Kind::Devcontainer, dev),
            file(".env", Kind::Env, env),
        ])?;
    }

    /// Compose files that can be read more often than soup can.
    #[test]
    fn services(lines in proptest::collection::vec(proptest::sample::select(&[
        "  a:", "  b: &b", "  c: *b", "    image: node", "    image: python # x", "    command: npm ci", "    volumes:",
        "      - .:/x", "    - .:/y", "      - pip:/cache/pip", "    build:", "      no_cache: true", "      context: .",
        "    <<: *b", "    extends: a", "volumes:", "  npm-cache:", "    # c", "", "    volumes: [x:/y]", "    user: node",
        "      - {type: volume, source: pip, target: /cache/pip}", "    build: {context: ., no_cache: true}",
    ][..]), 0..16), crlf in any::<bool>(), ended in any::<bool>()) {
        let mut text = format!("services:\n{}", lines.join("\n"));
        if ended { text.push('\n'); }
        if crlf { text = text.replace('\n', "\r\n"); }
        let before = project::tree::yaml(&text);
        let files = vec![file("compose.yml", Kind::Compose, text.clone())];
        if let Some(fixed) = containers::fix(&files, &|_| true).remove("compose.yml") {
            prop_assert!(before.is_ok() && project::tree::yaml(&fixed).is_ok(), "{}", fixed);
            prop_assert!(!crlf || !fixed.replace("\r\n", "").contains('\n'), "{:?}", fixed);
            // Nothing goes but what a fix takes out.
            let kept = |line: &&str| !line.contains("no_cache") && !line.contains("/cache/pip");
            let mut after = fixed.lines();
            for line in text.lines().filter(kept) {
                prop_assert!(after.any(|other| other == line), "{}\n{}", text, fixed);
            }
        }
        look(files)?;
    }

    #[test]
    fn workflows_and_packages(ci in of(YAML), package in of(JSON), jenkins in of(SHELL)) {
        look(vec![
            file(".gitlab-ci.yml", Kind::Ci, ci),
            file("package.json", Kind::PackageJson, package),
            file("Jenkinsfile", Kind::Ci, jenkins),
        ])?;
    }

    #[test]
    fn scripts_and_makefiles(script in of(SHELL), make in of(SHELL), just in of(SHELL)) {
        look(vec![
            file("x.sh", Kind::Script, script),
            file("Makefile", Kind::Makefile, make),
            file("justfile", Kind::Makefile, just),
        ])?;
    }

    #[test]
    fn bake_files(hcl in of(BAKE), json in of(JSON)) {
        look(vec![file("docker-bake.hcl", Kind::Bake, hcl), file("docker-bake.json", Kind::Bake, json)])?;
    }
}
