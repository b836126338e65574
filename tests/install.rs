//! install.sh: where it puts the plugin, what it leaves alone, and what it says when something is missing.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
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
        let tools = ["sh", "mkdir", "cp", "chmod", "mv", "rm", "sed", "tail", "dirname", "uname", "cat"];
        for tool in tools.into_iter().chain(["curl", "grep", "gzip", "mktemp", "sha256sum", "tar", "tr"]) {
            symlink(which::which(tool).unwrap(), home.at("bin").join(tool)).unwrap();
        }
        home
    }

    /// Makes one where only what installs a release is there.
    fn without_build_tools() -> Home {
        let home = Home::new();
        fs::create_dir(home.at("tmp")).unwrap();
        for program in ["cargo", "cc"] {
            fs::remove_file(home.at("bin").join(program)).unwrap();
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
        if self.at("tmp").exists() {
            command.env("TMPDIR", self.at("tmp"));
        }
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
    let page = fs::read_to_string(home.at(".local/share/man/man1/docker-cache-size.1")).unwrap();
    assert!(page.contains("docker cache size \\-\\-budget 5GB"), "{page}");
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
    fs::write(home.at(".local/share/man/man1/docker-other.1"), "other").unwrap();
    home.run(&["--uninstall"]).ok();
    assert_eq!(names(home.plugin().parent().unwrap()), ["docker-other"]);
    assert_eq!(names(&home.at(".local/share/man/man1")), ["docker-other.1"]);
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
fn compiler_without_a_static_library_is_named_before_the_build() {
    let home = Home::new();
    home.program("cc", "case $* in *-static*) exit 1;; esac");
    let run = home.run(&[]);
    assert!(run.code == 1 && run.stderr.contains("`cc` cannot make a static program\nhint: "), "{run}");
    assert!(!run.stderr.contains("Building in ") && !home.plugin().exists(), "{run}");
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
    home.program("docker", "echo 'Docker version 28.2.2, build e6534b4'");
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

/// A release as the script of the release workflow makes it, of programs that only tell their version.
struct Release {
    folder: tempfile::TempDir,
}

/// This machine as the names of archives have it.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux-arm64" } else { "linux-amd64" };
const OTHER: &str = if cfg!(target_arch = "aarch64") { "linux-amd64" } else { "linux-arm64" };
const HELPER: &str = if cfg!(target_arch = "aarch64") {
    concat!("cache-helper-", env!("CARGO_PKG_VERSION"), "-linux-amd64")
} else {
    concat!("cache-helper-", env!("CARGO_PKG_VERSION"), "-linux-arm64")
};

impl Release {
    fn new() -> Release {
        let release = Release { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(release.at("programs")).unwrap();
        for platform in [PLATFORM, OTHER, "darwin-arm64"] {
            let version = env!("CARGO_PKG_VERSION");
            let script = format!(
                "#!/bin/sh\n# {platform}\ncase $1 in docker-cli-plugin-metadata) echo ' \"Version\": \"v{version}\"';;\n\
                 *) echo docker-cache {version};; esac\n"
            );
            fs::write(release.at("programs").join(platform), script).unwrap();
        }
        release.pack("dist");
        release
    }

    /// Copies what was packed, to be spoiled.
    fn copy(&self) -> Release {
        let release = Release { folder: tempfile::tempdir().unwrap() };
        Run::of(Command::new("cp").arg("-r").arg(self.at("dist")).arg(release.at("dist"))).ok();
        release
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn archive(&self) -> PathBuf {
        self.at(&format!("dist/docker-cache-{PLATFORM}.tar.gz"))
    }

    fn pack(&self, out: &str) {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/release");
        Run::of(Command::new(script).arg("pack").arg(self.at("programs")).arg(self.at(out))).ok();
    }

    /// Replaces the archive by one of these files, and the checksums by ones that agree.
    fn repack(&self, script: &str) {
        let files = self.at("files");
        fs::create_dir(&files).unwrap();
        let script =
            format!("tar xzf \"$1\" && {script} && tar czf \"$1\" * && cd \"${{1%/*}}\" && sha256sum *.gz >SHA256SUMS");
        Run::of(Command::new("sh").args(["-euc", &script, "sh"]).arg(self.archive()).current_dir(files)).ok();
    }

    /// Serves the release on the loopback interface, each answer cut off after `limit` bytes, and returns its address.
    fn serve(&self, limit: usize) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let dist = self.at("dist");
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while !request.ends_with("\r\n\r\n") && reader.read_line(&mut request).unwrap() > 0 {}
                let name = request.split(' ').nth(1).unwrap().trim_start_matches('/');
                let _ = match fs::read(dist.join(name)) {
                    Ok(body) => write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())
                        .and_then(|()| stream.write_all(&body[..body.len().min(limit)])),
                    Err(_) => write!(stream, "HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
                };
            }
        });
        address
    }
}

#[test]
fn same_programs_make_the_same_release() {
    let release = Release::new();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    release.pack("again");
    let names = ["SHA256SUMS".into()].into_iter().chain([PLATFORM, OTHER, "darwin-arm64"].map(archive_name));
    for name in names {
        let [one, two] = ["dist", "again"].map(|out| fs::read(release.at(out).join(&name)).unwrap());
        assert!(one == two, "{name}");
    }
    let list = |platform: &str| {
        let archive = release.at("dist").join(archive_name(platform));
        Run::of(Command::new("tar").args(["--list", "--verbose", "--numeric-owner", "--file"]).arg(archive)).ok().stdout
    };
    for (platform, helpers) in [(PLATFORM, &[OTHER][..]), ("darwin-arm64", &["linux-amd64", "linux-arm64"])] {
        let mut expected = ["LICENSE", "THIRD-PARTY-LICENSES", "docker-cache"].map(String::from).to_vec();
        expected.extend(helpers.iter().map(|other| format!("cache-helper-{}-{other}", env!("CARGO_PKG_VERSION"))));
        expected.sort();
        let list = list(platform);
        let mut found: Vec<&str> = list.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        found.sort();
        assert_eq!(found, expected);
        assert!(list.lines().all(|line| line.contains(" 0/0 ") && line.contains(" 1970-01-01 ")), "{list}");
    }
}

#[test]
fn release_tells_the_licence_of_every_linked_crate() {
    let release = Release::new();
    let file = "THIRD-PARTY-LICENSES";
    let told = Run::of(Command::new("tar").args(["-xzOf"]).arg(release.archive()).arg(file)).ok().stdout;
    let mut tree = Command::new(env!("CARGO"));
    tree.args("tree --locked --edges normal,no-proc-macro --prefix none --format {p}|{l}".split(' '));
    let linked = Run::of(tree.current_dir(env!("CARGO_MANIFEST_DIR"))).ok().stdout;
    let linked: Vec<_> = linked.lines().filter(|line| !line.contains("(*)")).skip(1).collect();
    assert!(linked.len() > 50, "{linked:?}");
    for (name, licence) in linked.iter().map(|line| line.split_once('|').unwrap()) {
        let head = format!("\n==== {}: {licence}\n", name.replace(" v", " "));
        let text = told.split(&head).nth(1).unwrap_or_else(|| panic!("{name} ({licence}) is not in {file}"));
        let text = text.split("\n==== ").next().unwrap();
        assert!(text.len() > 500, "{name}: {text}");
        assert!(["permi", "license"].iter().any(|word| text.to_lowercase().contains(word)), "{name}: {text}");
    }
    assert!(told.contains("\n==== security-framework "), "what is linked on macOS");
}

fn archive_name(platform: &str) -> String {
    format!("docker-cache-{platform}.tar.gz")
}

#[test]
fn release_is_installed_with_its_helpers() {
    let release = Release::new();
    let sources =
        [release.at("dist").display().to_string(), release.archive().display().to_string(), release.serve(usize::MAX)];
    for source in sources {
        let home = Home::without_build_tools();
        let folder = home.plugin().parent().unwrap().to_owned();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("cache-helper-0.0.9-linux-arm64"), "of the version before").unwrap();
        home.run(&["--from", &source]).ok();
        let mut found = names(&folder);
        found.sort();
        assert_eq!(found, [HELPER, "docker-cache"], "{source}");
        for (name, platform) in [("docker-cache", PLATFORM), (HELPER, OTHER)] {
            assert!(fs::read_to_string(folder.join(name)).unwrap().contains(platform), "{source}: {name}");
            assert_eq!(fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o7777, 0o755);
        }
        home.run(&["--uninstall"]).ok();
        assert!(names(&folder).is_empty());
        assert!(names(&home.at("tmp")).is_empty(), "temporary files are left");
    }
}

#[test]
fn release_comes_by_wget_where_there_is_no_curl() {
    let (release, home) = (Release::new(), Home::without_build_tools());
    fs::remove_file(home.at("bin/curl")).unwrap();
    symlink(which::which("wget").unwrap(), home.at("bin/wget")).unwrap();
    home.run(&["--from", &release.serve(usize::MAX)]).ok();
    assert!(home.plugin().exists());
    fs::remove_file(home.at("bin/wget")).unwrap();
    assert!(home.run(&["--from", "https://127.0.0.1:9"]).stderr.contains("neither `curl` nor `wget`"));
}

/// Tries to install releases that are not what they should be over a good plugin.
#[test]
fn wrong_releases_change_nothing() {
    type Spoil = fn(&Release) -> String;
    let dist = |release: &Release| release.at("dist").display().to_string();
    let wrong: [(&str, Spoil); 11] = [
        ("is damaged: its SHA-256 is ", |release| {
            let mut archive = fs::OpenOptions::new().append(true).open(release.archive()).unwrap();
            archive.write_all(b"more").unwrap();
            release.at("dist").display().to_string()
        }),
        ("is damaged: its SHA-256 is ", |release| {
            // None of these digits is in a name.
            let sums = fs::read_to_string(release.at("dist/SHA256SUMS")).unwrap().replace(['0', '1', '2', '3'], "5");
            fs::write(release.at("dist/SHA256SUMS"), sums).unwrap();
            release.archive().display().to_string()
        }),
        ("SHA256SUMS of ", |release| {
            fs::write(release.at("dist/SHA256SUMS"), "").unwrap();
            release.at("dist").display().to_string()
        }),
        ("cannot get SHA256SUMS from ", |release| {
            fs::remove_file(release.at("dist/SHA256SUMS")).unwrap();
            release.at("dist").display().to_string()
        }),
        ("cannot get docker-cache-linux-", |release| {
            fs::remove_file(release.archive()).unwrap();
            release.serve(usize::MAX)
        }),
        ("cannot get docker-cache-linux-", |release| release.serve(400)),
        ("is not for this machine", |release| {
            release.at("dist/docker-cache-darwin-arm64.tar.gz").display().to_string()
        }),
        ("holds something else than files", |release| {
            release.repack("rm docker-cache && ln -s /bin/true docker-cache");
            release.at("dist").display().to_string()
        }),
        ("which no release does", |release| {
            release.repack("touch extra");
            release.at("dist").display().to_string()
        }),
        ("does not run here", |release| {
            release.repack("echo >docker-cache");
            release.at("dist").display().to_string()
        }),
        ("plain HTTP", |_| "http://192.0.2.1/release".into()),
    ];
    let good = Release::new();
    let home = Home::without_build_tools();
    home.run(&["--from", &dist(&good)]).ok();
    let before = Tree::read(&home.at(".docker"));
    for (message, spoil) in wrong {
        let release = good.copy();
        let run = home.run(&["--from", &spoil(&release)]);
        assert!(run.code == 1 && run.stderr.contains(message), "{message}: {run}");
        assert_same(&before, &Tree::read(&home.at(".docker")));
        assert!(names(&home.at("tmp")).is_empty(), "temporary files are left");
    }
}

#[test]
fn killed_install_leaves_the_old_plugin_and_its_helpers() {
    let release = Release::new();
    for step in 1..=4 {
        let home = Home::without_build_tools();
        let folder = home.plugin().parent().unwrap().to_owned();
        fs::create_dir_all(&folder).unwrap();
        home.program("old", "echo 0.0.9");
        for name in ["docker-cache", "cache-helper-0.0.9-linux-arm64"] {
            fs::copy(home.at("bin/old"), folder.join(name)).unwrap();
        }
        // Two files are copied and then moved: the script dies at the first, second, third or fourth of these.
        for tool in ["cp", "mv"] {
            let real = which::which(tool).unwrap();
            fs::remove_file(home.at("bin").join(tool)).unwrap();
            let script = format!(
                "case $* in *.new-*) printf . >>$HOME/steps\n\
                 [ $(cat $HOME/steps) = {} ] && kill -9 $PPID && exit\nesac\nexec {} \"$@\"",
                ".".repeat(step),
                real.display()
            );
            home.program(tool, &script);
        }
        let source = release.at("dist").display().to_string();
        assert_eq!(home.run(&["--from", &source]).code, -9, "step {step}");
        assert_eq!(Run::of(&mut Command::new(home.plugin())).ok().stdout, "0.0.9\n", "step {step}");
        assert!(folder.join("cache-helper-0.0.9-linux-arm64").exists(), "step {step}");
    }
}

#[test]
fn release_workflow_is_yaml() {
    let workflow = include_str!("../.github/workflows/release.yml");
    assert!(saphyr_parser::Parser::new_from_str(workflow).all(|event| event.is_ok()));
}
