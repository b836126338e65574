//! `docker cache doctor --fix` on builds with real package managers: what it changes still builds to the same, and after a
//! change of the source the next build downloads nothing, counted at the network.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use crate::support::debian::Tool;
use crate::support::meter::Meter;
use crate::support::process::Run;
use crate::support::world::write_files;
use crate::support::{Engine, Generation, parts};
use crate::{for_each_engine, for_each_generation};

/// A build context on an engine that reaches the package registries, and nothing else, through a meter.
struct Project {
    engine: Engine,
    context: tempfile::TempDir,
    meter: Meter,
}

/// What a build printed, and how many bytes came in for it.
struct Build {
    told: String,
    bytes: u64,
}

impl Project {
    /// Makes a project whose base image is a Debian with the tool, under a name that doctor knows Debian by.
    fn new(generation: Generation, tool: Tool, dockerfile: &str, files: &[(&str, &str)]) -> Project {
        let engine = Engine::online(generation);
        let image = tool.image(&engine);
        engine.docker(&["tag", &image, "debian:bookworm-slim"]);
        let context = engine.context(dockerfile);
        write_files(context.path(), files);
        Project { engine, context, meter: Meter::start() }
    }

    fn doctor(&self, arguments: &[&str]) -> Run {
        let path = self.context.path().display().to_string();
        self.engine.cache(&[&["doctor"], arguments, &[&path]].concat())
    }

    fn dockerfile(&self) -> String {
        fs::read_to_string(self.context.path().join("Dockerfile")).unwrap()
    }

    /// Builds with this in the file `source`.
    #[track_caller]
    fn build(&self, source: &str) -> Build {
        write_files(self.context.path(), &[("source", source)]);
        let mut build = self.engine.command(self.engine.docker_program());
        build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress=plain", "--network=host", "--tag=built"]);
        for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            build.arg(format!("--build-arg={name}={}", self.meter.address));
        }
        let told = Run::of_docker(build.arg(self.context.path())).ok().stderr;
        Build { told, bytes: self.meter.taken() }
    }

    #[track_caller]
    fn run(&self, command: &[&str]) -> String {
        self.engine.docker(&[&["run", "--rm", "--network=none", "built"], command].concat()).stdout
    }

    fn findings(&self, check: &str) -> usize {
        let answer: Value = serde_json::from_str(&self.doctor(&["--format", "json", "--check", check]).stdout).unwrap();
        answer["findings"].as_array().unwrap().len()
    }

    /// Builds, fixes, builds, and builds again after a change of the source; returns the two last builds.
    #[track_caller]
    fn fixed(&self, shows: &[&str]) -> (Build, Build) {
        self.build("0");
        let before = self.run(shows);
        assert!(self.findings("missing-cache-mount") > 0);
        self.doctor(&["--fix"]).ok();
        let once = self.dockerfile();
        assert_eq!(self.findings("missing-cache-mount") + self.findings("defeated-cache-mount"), 0, "{once}");
        assert_eq!(self.doctor(&["--fix"]).ok().stdout, "");
        assert_eq!(self.dockerfile(), once);
        let first = self.build("1");
        let second = self.build("2");
        assert_eq!(self.run(shows), before, "{once}");
        (first, second)
    }
}

for_each_generation!(a_fixed_apt_build_downloads_no_package_again, [v26, v28_containerd], |generation| {
    let project = Project::new(
        generation,
        Tool::Apt,
        "FROM debian:bookworm-slim\nCOPY source .\nRUN apt-get update && apt-get install -y \\\n    --no-install-recommends tree \\\n && rm -rf /var/lib/apt/lists/*",
        &[],
    );
    let (first, second) = project.fixed(&["dpkg-query", "-W"]);
    assert!(!first.told.contains("Need to get 0 B") && first.told.contains("Need to get"), "{}", first.told);
    assert!(second.told.contains("Need to get 0 B"), "{}", second.told);
    // apt asks whether its lists are still right; a mirror may send the signed list of them anew.
    assert!(first.bytes > 5_000_000 && second.bytes * 20 < first.bytes, "{} and {}", first.bytes, second.bytes);
});

for_each_generation!(a_fixed_pip_build_downloads_no_package_again, [v26, v28_containerd], |generation| {
    let project = Project::new(
        generation,
        Tool::Pip,
        "FROM debian:bookworm-slim\nENV PIP_NO_CACHE_DIR=1\nCOPY source requirements.txt ./\nRUN pip install --no-cache-dir --break-system-packages --use-pep517 -r requirements.txt",
        &[("requirements.txt", "docopt==0.6.2\n")],
    );
    let (first, second) = project.fixed(&["pip", "list", "--format=freeze"]);
    // It has no wheel, and what pip builds itself it keeps, whatever the index says about caching.
    assert!(first.told.contains("Downloading docopt") && first.told.contains("Building wheel for docopt"));
    assert!(!second.told.contains("Downloading") && !second.told.contains("Building wheel"), "{}", second.told);
    // pip asks the index which versions there are.
    assert!(first.bytes > 500_000 && second.bytes < 20_000, "{} and {}", first.bytes, second.bytes);
});

for_each_generation!(a_fixed_cargo_build_downloads_no_crate_again, [v26, v28_containerd], |generation| {
    let own = include_str!("../../Cargo.lock").split("\n\n").find(|entry| entry.contains("name = \"itoa\"")).unwrap();
    let version = own.lines().find_map(|line| line.strip_prefix("version = ")).unwrap();
    let user = "[[package]]\nname = \"user\"\nversion = \"0.1.0\"\ndependencies = [\"itoa\"]\n";
    let project = Project::new(
        generation,
        Tool::Cargo,
        "FROM debian:bookworm-slim\nWORKDIR /src\nCOPY source Cargo.toml Cargo.lock ./\nCOPY src src\nRUN cargo fetch\nRUN cargo build\nCMD [\"/src/target/debug/user\"]",
        &[
            (
                "Cargo.toml",
                &format!(
                    "[package]\nname = \"user\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[dependencies]\nitoa = {version}\n"
                ),
            ),
            ("Cargo.lock", &format!("version = 3\n\n{own}\n\n{user}")),
            ("src/main.rs", "fn main() { println!(\"{}\", itoa::Buffer::new().format(42)) }\n"),
        ],
    );
    let (first, second) = project.fixed(&["/src/target/debug/user"]);
    assert!(first.told.contains("Downloaded itoa") && first.bytes > 10_000, "{}: {}", first.bytes, first.told);
    assert_eq!(second.bytes, 0, "{}", second.told);
});

for_each_generation!(a_fixed_npm_build_downloads_no_package_again, [v26, v28_containerd], |generation| {
    let registry = NpmRegistry::start();
    let project = Project::new(
        generation,
        Tool::Npm,
        "FROM debian:bookworm-slim\nWORKDIR /app\nCOPY source .npmrc package.json package-lock.json ./\nRUN npm ci",
        &[
            (".npmrc", &format!("registry=http://{}/\naudit=false\n", registry.address)),
            ("package.json", r#"{"name": "user", "version": "1.0.0", "dependencies": {"small": "1.0.0"}}"#),
            ("package-lock.json", &registry.lock),
        ],
    );
    let (first, second) = project.fixed(&["cat", "node_modules/small/package.json", "node_modules/.package-lock.json"]);
    assert!(first.bytes > registry.bytes, "{}: {}", first.bytes, first.told);
    assert_eq!(second.bytes, 0, "{}", second.told);
});

for_each_engine!(a_fixed_step_that_deletes_or_reads_builds_to_the_same_files, [v28_containerd], |engine| {
    let pip = "echo \"$2\" >> /installed; mkdir -p ~/.cache/pip && echo wheel > ~/.cache/pip/got";
    engine.build(
        &format!(
            "FROM scratch\nCOPY busybox /bin/\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\nRUN mkdir -p /tmp /root /etc && echo root:x:0:0::/root:/bin/sh > /etc/passwd\nRUN echo '#!/bin/sh' > /bin/pip && echo '{pip}' >> /bin/pip && chmod +x /bin/pip"
        ),
        &["--tag", "python:3.12"],
    );
    let steps = [
        ("echo key > /root/key && pip install x && rm -rf /root/* /root/.cache/pip", true),
        ("pip install x && touch /tmp/x && rm -rf ~/.cache /tmp/*", true),
        ("mkdir -p ~/.cache && touch ~/.cache/x && pip install x && rm -rf ~/.cache", false),
        ("pip install x && touch /root/key && rm -rf /root", false),
        ("pip install x; if true; then rm -rf /root/.cache/pip; fi", false),
        ("pip install x && (rm -rf /root/.cache)", false),
        ("for d in /root/.cache /tmp/x; do pip install x && rm -rf $d; done", false),
        ("D=/root/.cache; pip install x && rm -rf $D", false),
        ("pip install x && cd /root && rm -rf .cache", false),
        ("pip install x && sh -ec \"rm -rf ~/.cache\"", false),
        ("pip install x\nRUN cat /root/.cache/pip/got", false),
        ("pip install x\nFROM python:3.12\nCOPY --from=0 /root/.cache/pip /root/.cache/pip", false),
    ];
    let files = |context: &Path| {
        let mut build = engine.command(engine.docker_program());
        build.env("DOCKER_BUILDKIT", "1").args(["build", "--no-cache", "--quiet", "--tag=built"]).arg(context);
        Run::of_docker(&mut build).ok();
        let find = "for d in /installed /root /tmp; do [ ! -e $d ] || find $d -type f; done";
        engine.docker(&["run", "--rm", "--network=none", "built", "sh", "-c", find]).stdout
    };
    for (step, is_mounted) in steps {
        let context = engine.context(&format!("FROM python:3.12\nRUN {step}"));
        let before = files(context.path());
        engine.cache(&["doctor", "--fix", &context.path().display().to_string()]);
        let fixed = fs::read_to_string(context.path().join("Dockerfile")).unwrap();
        assert_eq!(fixed.contains("type=cache"), is_mounted, "{fixed}");
        assert_eq!(files(context.path()), before, "{fixed}");
    }
});

/// Returns what `docker compose config` makes of the compose file in a directory.
#[track_caller]
fn composed(directory: &Path) -> Value {
    let mut compose = Command::new(parts::compose());
    compose.current_dir(directory).args(["--profile=*", "config", "--format=json"]);
    serde_json::from_str(&Run::of(&mut compose).ok().stdout).unwrap()
}

#[test]
fn docker_compose_reads_a_fixed_file_as_before_and_with_the_change() {
    let folder = tempfile::tempdir().unwrap();
    let web = "    image: \"node:${NODE:-22}\"   # pinned\n    command: >-\n      npm ci\n      --no-audit\n    profiles: [dev]\n    environment: {<<: *env, B: \"yes\"}\n";
    write_files(
        folder.path(),
        &[
            (
                "compose.yaml",
                &format!(
                    "name: x\nx-env: &env\n  A: 'on'\n\nservices:\n  web:\n{web}\n  # tests\n  py:\n    image: python:3.13\n    volumes:\n    # sources\n    - type: bind\n      source: .\n      target: /src\n    - \"pip:/cache/pip\"\n  api:\n    build: {{context: ., no_cache: true, args: [A]}}\n    depends_on: [web]\nvolumes:\n    pip: {{}}\n"
                ),
            ),
            (".env", "NODE=20\n"),
            ("Dockerfile", "FROM nginx\n"),
        ],
    );
    let mut before = composed(folder.path());
    let mut fix = Command::new(env!("CARGO_BIN_EXE_docker-cache"));
    Run::of(fix.current_dir(folder.path()).args(["cache", "doctor", "--fix"])).ok();
    let fixed = fs::read_to_string(folder.path().join("compose.yaml")).unwrap();
    before["services"]["web"]["volumes"] =
        json!([{"type": "volume", "source": "npm-cache", "target": "/root/.npm", "volume": {}}]);
    before["volumes"]["npm-cache"] = json!({"name": "x_npm-cache"});
    before["services"]["py"]["volumes"][1]["target"] = "/root/.cache/pip".into();
    before["services"]["api"]["build"].as_object_mut().unwrap().remove("no_cache").unwrap();
    assert_eq!(composed(folder.path()), before, "{fixed}");
    assert!(fixed.contains(web) && fixed.contains("    # sources\n    - type: bind"), "{fixed}");
}

/// A registry of one package, on this machine's loopback.
struct NpmRegistry {
    address: String,
    /// Of a project that needs the package.
    lock: String,
    /// Of the package.
    bytes: u64,
}

impl NpmRegistry {
    fn start() -> NpmRegistry {
        let folder = tempfile::tempdir().unwrap();
        let manifest = r#"{"name": "small", "version": "1.0.0"}"#;
        write_files(folder.path(), &[("package/package.json", manifest)]);
        let noise = crate::support::world::noise(1, 200_000);
        fs::write(folder.path().join("package/data"), noise).unwrap();
        let shell = |script: &str| {
            Run::of(Command::new("sh").args(["-ec", script]).current_dir(folder.path())).ok().stdout.trim().to_owned()
        };
        shell("tar -czf small.tgz package");
        let package = fs::read(folder.path().join("small.tgz")).unwrap();
        fs::write(folder.path().join("digest"), Sha512::digest(&package)).unwrap();
        let hash = shell("base64 -w0 digest");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let url = format!("http://{address}/small/-/small-1.0.0.tgz");
        let lock = json!({"name": "user", "version": "1.0.0", "lockfileVersion": 3, "requires": true, "packages": {
            "": {"name": "user", "version": "1.0.0", "dependencies": {"small": "1.0.0"}},
            "node_modules/small": {"version": "1.0.0", "resolved": url, "integrity": format!("sha512-{hash}")},
        }});
        let bytes = package.len() as u64;
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let lines = BufReader::new(client.try_clone().unwrap()).lines().map_while(Result::ok);
                let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let known = request.first().is_some_and(|line| line.contains("small-1.0.0.tgz"));
                let (status, body) = if known { ("200 OK", &package[..]) } else { ("404 Not Found", &b"{}"[..]) };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = client.write_all(&[head.as_bytes(), body].concat());
                // A socket closed with something unread in it takes back what it has sent.
                let _ = client.shutdown(Shutdown::Write).and_then(|()| client.read_to_end(&mut Vec::new()));
            }
        });
        NpmRegistry { address, lock: lock.to_string(), bytes }
    }
}
