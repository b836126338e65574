//! The programs that the bench is made of: Debian packages, fetched and unpacked once into a folder, never installed.
//!
//! The folder is `docker-cache-tests` in the user's cache, or `DOCKER_CACHE_TEST_PARTS`; removing it fetches newer packages.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use super::process::Run;

/// A Debian suite, and with it a generation of Docker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    Bookworm,
    Trixie,
    Sid,
}

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Suite::Bookworm => "bookworm",
            Suite::Trixie => "trixie",
            Suite::Sid => "sid",
        }
    }

    /// Returns what is unpacked. Bookworm has everything that is not tied to a generation of Docker, runc too: newer ones need a
    /// newer C library than bookworm's.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Suite::Bookworm => &[
                "docker.io",
                "containerd",
                "runc",
                "busybox-static",
                "debootstrap",
                "docker-registry",
                "shellcheck",
                "skopeo",
                "libgpgme11", // of skopeo
                "libassuan0", // of skopeo
                "zsh",
                "zsh-common",
            ],
            Suite::Trixie => &["docker.io", "docker-cli", "docker-buildx", "containerd"],
            Suite::Sid => &["docker.io", "docker-cli", "docker-buildx", "containerd", "crane"],
        }
    }

    /// Returns the folder that the suite's packages are unpacked in, fetching them the first time.
    pub fn root(self) -> PathBuf {
        self.unpacked(self.packages())
    }

    fn unpacked(self, packages: &[&str]) -> PathBuf {
        once(&format!("{}-{}", self.name(), fingerprint(&packages.join(" "))), |target| {
            let aside = target.with_extension("apt");
            fetch(self, packages, &aside);
            for package in files_of(&aside.join("packages")) {
                let mut unpack = Command::new("dpkg-deb");
                Run::of(unpack.arg("--extract").arg(&package).arg(target)).ok();
            }
            fs::remove_dir_all(&aside).unwrap();
        })
    }

    /// Returns the value of PATH that finds this suite's programs first.
    pub fn path(self) -> String {
        let (own, common) = (self.root(), Suite::Bookworm.root());
        format!(
            "{own}/usr/bin:{own}/usr/sbin:{common}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin",
            own = own.display(),
            common = common.display()
        )
    }
}

/// Returns the plugin `docker compose`.
pub fn compose() -> PathBuf {
    Suite::Trixie.unpacked(&["docker-compose"]).join("usr/libexec/docker/cli-plugins/docker-compose")
}

/// Returns the static busybox.
pub fn busybox() -> PathBuf {
    Suite::Bookworm.root().join("bin/busybox")
}

/// Returns zsh, to which its own folder must be told before it loads anything: see [`zsh_paths`].
pub fn zsh() -> PathBuf {
    Suite::Bookworm.root().join("bin/zsh")
}

/// Returns the lines for `.zshenv` by which zsh finds its modules and functions where they are unpacked.
pub fn zsh_paths() -> String {
    let usr = Suite::Bookworm.root().join("usr");
    let modules = files_of(&usr.join("lib")).into_iter().find(|folder| folder.join("zsh").is_dir());
    let modules = files_of(&modules.expect("modules of zsh").join("zsh")).remove(0);
    format!("module_path=({})\nfpath=({}/share/zsh/functions/**/*(N/))\n", modules.display(), usr.display())
}

/// Returns the folder where the bench keeps what is made once.
pub fn folder() -> PathBuf {
    let folder = std::env::var_os("DOCKER_CACHE_TEST_PARTS").map(PathBuf::from).unwrap_or_else(|| {
        dirs::cache_dir().expect("a home folder, or DOCKER_CACHE_TEST_PARTS").join("docker-cache-tests")
    });
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
    folder
}

/// Returns the file or folder of this name in the parts folder. `make` makes it the first time, beside its place, so that it is
/// there whole or not at all; other test processes wait meanwhile.
pub fn once(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let place = folder().join(name);
    if place.exists() {
        return place;
    }
    check_machine();
    let lock = File::create(folder().join(format!("{name}.lock"))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if !place.exists() {
        let beside = folder().join(format!("{name}.new"));
        let _ = fs::remove_dir_all(&beside);
        make(&beside);
        fs::rename(&beside, &place).unwrap();
    }
    place
}

/// Ends all tests with one sentence if this machine lacks something that the bench cannot bring along.
pub fn check_machine() {
    static CHECKED: Once = Once::new();
    CHECKED.call_once(|| {
        if let Some(missing) = missing() {
            // Not by a macro, whose words the test harness keeps to itself.
            let _ = writeln!(io::stderr(), "ERROR: the engine tests {missing}");
            #[expect(clippy::exit, reason = "some hundred tests would say the same")]
            std::process::exit(1);
        }
    });
}

/// Returns what the tests need, for the words "the engine tests".
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("start engines of their own and need root: run them with `sudo -E cargo test`".into());
    }
    for (program, package) in [
        ("apt-get", "apt"),
        ("dpkg-deb", "dpkg"),
        ("unshare", "util-linux"),
        ("setpriv", "util-linux"),
        ("ip", "iproute2"),
        ("iptables", "iptables"),
        ("openssl", "openssl"),
        ("python3", "python3"),
    ] {
        if which::which_in(program, Some("/usr/sbin:/usr/bin:/sbin:/bin"), "/").is_err() {
            return Some(format!("need `{program}`: install the Debian package `{package}`"));
        }
    }
    let allowed = Run::of(Command::new("unshare").args(["--net", "true"])).code == 0;
    (!allowed).then(|| "need network namespaces: run them outside of a container, or in a privileged one".into())
}

/// Returns the address of the Debian mirror that this machine's own apt uses.
pub fn mirror() -> String {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let sources = Run::of(&mut targets).ok().stdout;
    let mirror = sources.lines().map(|line| line.trim_end_matches('/')).find(|line| line.ends_with("/debian"));
    mirror.expect("the engine tests need Debian packages: add a Debian mirror to this machine's apt sources").to_owned()
}

/// Downloads packages of a suite into `aside/packages`, by an apt that has its own lists and sources and changes nothing here.
fn fetch(suite: Suite, packages: &[&str], aside: &Path) {
    let _ = fs::remove_dir_all(aside);
    for folder in ["state/lists/partial", "cache/archives/partial", "packages"] {
        fs::create_dir_all(aside.join(folder)).unwrap();
    }
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    assert!(
        Path::new(keyring).exists(),
        "the engine tests need Debian's keys: install the Debian package `debian-archive-keyring`"
    );
    fs::write(aside.join("state/status"), "").unwrap();
    let source = format!("deb [signed-by={keyring}] {} {} main\n", mirror(), suite.name());
    fs::write(aside.join("sources.list"), source).unwrap();
    let apt = |arguments: &[&str]| {
        let set = |key: &str, path: &str| format!("Dir::{key}={}", aside.join(path).display());
        let mut apt = Command::new("apt-get");
        apt.current_dir(aside.join("packages")).args(["-qq", "-o", &set("State", "state")]);
        apt.args(["-o", &set("State::status", "state/status"), "-o", &set("Cache", "cache")]);
        apt.args(["-o", &set("Etc::sourcelist", "sources.list"), "-o", "Dir::Etc::sourceparts=/dev/null"]);
        apt.args(["-o", "Dir::Etc::preferences=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null"]);
        apt.args(["-o", "Acquire::Languages=none", "-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"]);
        // The folder may not be readable for apt's own user.
        apt.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]).args(arguments);
        let run = Run::of(&mut apt);
        assert!(
            run.code == 0,
            "the engine tests need Debian packages of {}, and apt cannot get them: connect this machine to its mirror, or fill {} \
             from another machine's\n{run}",
            suite.name(),
            folder().display()
        );
    };
    apt(&["update", "-o", "APT::Update::Error-Mode=any"]);
    apt(&[&["download"], packages].concat());
}

fn files_of(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Returns a short name of a text, so that another list of packages lands in another folder.
fn fingerprint(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:08x}", hasher.finish() as u32)
}
