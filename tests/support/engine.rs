//! A private Docker engine for one test, in a network namespace of its own, and whatever can be asked of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::parts::{self, Suite};
use super::process::{Background, Run, spawn, typed_after};
use super::world::write_files;

/// A generation of Docker, and how it stores images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// 20.10: BuildKit v0.8, no buildx, mount records without an id.
    V20,
    /// 26.1 with buildx 0.13.
    V26,
    V26Containerd,
    /// 28.5 with buildx 0.29.
    V28,
    V28Containerd,
}

impl Generation {
    pub fn all() -> [Generation; 5] {
        use Generation::*;
        [V20, V26, V26Containerd, V28, V28Containerd]
    }

    /// Returns the generation of a name as tests have it: `v28_containerd`.
    pub fn named(name: &str) -> Generation {
        let found = Generation::all().into_iter().find(|generation| generation.name() == name);
        found.unwrap_or_else(|| panic!("there is no generation `{name}`"))
    }

    pub fn name(self) -> &'static str {
        match self {
            Generation::V20 => "v20",
            Generation::V26 => "v26",
            Generation::V26Containerd => "v26_containerd",
            Generation::V28 => "v28",
            Generation::V28Containerd => "v28_containerd",
        }
    }

    /// Returns the major version of its engine and CLI.
    pub fn major(self) -> &'static str {
        &self.name()[1..3]
    }

    pub fn has_buildx(self) -> bool {
        self != Generation::V20
    }

    /// Whether images are in containerd's store, where layer cache can be exported from the engine's own builder.
    pub fn containerd_store(self) -> bool {
        matches!(self, Generation::V26Containerd | Generation::V28Containerd)
    }

    pub fn suite(self) -> Suite {
        match self {
            Generation::V20 => Suite::Bookworm,
            Generation::V26 | Generation::V26Containerd => Suite::Trixie,
            Generation::V28 | Generation::V28Containerd => Suite::Sid,
        }
    }
}

/// A running engine. It ends with the value, or with the test process, and takes its folder along.
#[derive(Debug)]
pub struct Engine {
    generation: Generation,
    folder: PathBuf,
    online: bool,
    /// The shell that runs `engine.sh`; it cleans up when its stdin closes.
    keeper: Child,
}

impl Engine {
    /// Starts an engine that has no way out to the network.
    pub fn start(generation: Generation) -> Engine {
        Engine::start_with(generation, json!({}))
    }

    /// Starts an engine with these settings added to its daemon.json.
    pub fn start_with(generation: Generation, settings: Value) -> Engine {
        Engine::launch(generation, settings, Own::Nothing)
    }

    /// Starts an engine whose builds reach this machine's package registries by `--network host`.
    ///
    /// It runs in the machine's network namespace, with a bridge of its own: the machine's docker0 is left alone.
    pub fn online(generation: Generation) -> Engine {
        Engine::launch(generation, json!({}), Own::Bridge)
    }

    /// Starts an engine that looks for plugins in the folder `plugins` of its own and not where the machine's engine does.
    pub fn with_plugins(generation: Generation) -> Engine {
        Engine::launch(generation, json!({}), Own::Plugins)
    }

    /// Starts an engine whose folder `data` is a new file system, as large as what TMPDIR has free: what other engines
    /// wrote and removed costs it nothing, and what it wrote is gone at once.
    pub fn on_own_disk(generation: Generation) -> Engine {
        Engine::launch(generation, json!({}), Own::Disk)
    }

    fn launch(generation: Generation, settings: Value, own: Own) -> Engine {
        static SWEEP: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        parts::check_machine();
        SWEEP.call_once(sweep);

        let name = format!("dc{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(&name);
        assert!(folder.as_os_str().len() < 60, "the path of a socket is short: set TMPDIR to a short one, `/tmp`");
        for inner in ["config/cli-plugins", "home", "tmp", "data", "plugins"] {
            fs::create_dir_all(folder.join(inner)).unwrap();
        }
        let at = |inner: &str| folder.join(inner).display().to_string();
        if own == Own::Disk {
            mount_disk(&folder.join("data"));
        }

        let mut config = json!({
            "hosts": [format!("unix://{}", at("docker.sock"))],
            "data-root": at("data"),
            "exec-root": at("exec"),
            "pidfile": at("docker.pid"),
            // Finds everything that runs in containers and build steps again, even after a crash of the engine.
            "cgroup-parent": format!("/{name}"),
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        });
        if generation == Generation::V20 {
            config["deprecated-key-path"] = json!(at("key.json"));
        }
        if generation.containerd_store() {
            config["features"] = json!({"containerd-snapshotter": true});
        }
        let bridge = (own == Own::Bridge).then(|| Bridge::named(&name));
        if let Some(bridge) = &bridge {
            bridge.add();
            for off in ["iptables", "ip6tables", "ip-masq", "ip-forward"] {
                config[off] = json!(false);
            }
            config["bridge"] = json!(bridge.name);
        }
        config.as_object_mut().unwrap().extend(settings.as_object().expect("settings are an object").clone());
        fs::write(folder.join("daemon.json"), serde_json::to_string_pretty(&config).unwrap()).unwrap();

        let mut keeper = Command::new("sh");
        keeper.arg(KEEPER).env_clear().env("PATH", generation.suite().path()).env("BENCH_DIR", &folder);
        if let Some(bridge) = &bridge {
            keeper.env("BENCH_BRIDGE", &bridge.name);
        } else {
            let plugins = match own {
                Own::Plugins => format!("&& mkdir -p {PLUGINS} && mount --bind {} {PLUGINS} ", at("plugins")),
                _ => String::new(),
            };
            let up = format!("ip link set lo up {plugins}&& exec \"$@\"");
            let unshare = if plugins.is_empty() { &["unshare", "--net"][..] } else { &["unshare", "--net", "--mount"] };
            keeper.args(unshare).args(["sh", "-c", &up, "sh"]);
        }
        keeper.args(["dockerd", "--config-file", &at("daemon.json")]);
        // A Ctrl-C at the terminal ends the test process; the keeper outlives it and cleans up.
        keeper.stdin(Stdio::piped()).process_group(0);
        let engine = Engine { generation, folder, online: own == Own::Bridge, keeper: spawn(keeper) };
        engine.wait_until_up();
        engine.install_buildx(generation);
        engine
    }

    fn wait_until_up(&self) {
        let begin = Instant::now();
        while !self.folder.join("docker.sock").exists() || self.request("/_ping").is_none() {
            let died = self.pid_in("engine.pid").is_some_and(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists());
            assert!(!died && begin.elapsed() < Duration::from_secs(60), "the {} engine does not come up", self.name());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn install_buildx(&self, generation: Generation) {
        if generation.has_buildx() {
            let buildx = generation.suite().root().join("usr/libexec/docker/cli-plugins/docker-buildx");
            install(&buildx, &self.folder.join("config/cli-plugins/docker-buildx"));
        }
    }

    /// Gives the engine the buildx of another generation, as a user of Docker 20.10 may have installed it.
    pub fn with_buildx(self, generation: Generation) -> Engine {
        self.install_buildx(generation);
        self
    }

    pub fn generation(&self) -> Generation {
        self.generation
    }

    fn name(&self) -> &'static str {
        self.generation.name()
    }

    /// Returns the folder that holds all of the engine; tests may put their own files below it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the folder in `DOCKER_CONFIG`.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// Returns `unix:///…/docker.sock`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.folder.join("docker.sock").display())
    }

    /// Returns what the engine wrote to its log.
    pub fn log(&self) -> String {
        fs::read(self.folder.join("log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// Returns the process id of dockerd.
    pub fn pid(&self) -> u32 {
        self.pid_in("docker.pid").expect("a running engine")
    }

    fn pid_in(&self, file: &str) -> Option<u32> {
        fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    /// Returns the whole environment of programs that talk to the engine: nothing of the machine's own gets in.
    pub fn env(&self) -> BTreeMap<&'static str, OsString> {
        let mut env = BTreeMap::from([
            ("DOCKER_HOST", self.host().into()),
            ("DOCKER_CONFIG", self.config().into()),
            ("HOME", self.folder.join("home").into()),
            ("TMPDIR", self.folder.join("tmp").into()),
            ("PATH", self.generation.suite().path().into()),
        ]);
        // Coverage of the plugin's own processes is written where the measuring tool said.
        if let Some(profile) = std::env::var_os("LLVM_PROFILE_FILE") {
            env.insert("LLVM_PROFILE_FILE", profile);
        }
        env
    }

    /// Returns a command with the engine's environment, to which a test may add.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(self.env()).current_dir(self.folder.join("home")).stdin(Stdio::null());
        command
    }

    /// Runs `docker …`, the engine's own generation of the CLI, and fails the test if docker fails.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> Run {
        self.try_docker(arguments).ok()
    }

    /// Runs `docker …` and returns its outcome, whatever it is.
    pub fn try_docker(&self, arguments: &[&str]) -> Run {
        Run::of_docker(self.command(self.docker_program()).args(arguments))
    }

    /// Returns the path of this generation's docker CLI.
    pub fn docker_program(&self) -> PathBuf {
        self.generation.suite().root().join("usr/bin/docker")
    }

    /// Runs `docker cache …`: our plugin, through this generation's CLI.
    pub fn cache(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.cache_command(arguments))
    }

    /// Returns the command behind [`Engine::cache`], to be given more environment, a folder, or streams.
    pub fn cache_command(&self, arguments: &[&str]) -> Command {
        let plugin = self.config().join("cli-plugins/docker-cache");
        if !plugin.exists() {
            install(Path::new(env!("CARGO_BIN_EXE_docker-cache")), &plugin);
        }
        let mut command = self.command(self.docker_program());
        command.arg("cache").args(arguments);
        command
    }

    /// Runs the plugin itself, whose docker is this bash script; `docker` in there is the real one. All goes through it, as
    /// docker did not start the plugin.
    pub fn cache_through(&self, script: &str, arguments: &[&str]) -> Run {
        self.cache_command(&[]);
        let path = &self.env()["PATH"];
        let path = path.to_str().unwrap();
        let folder = self.folder.join("scripted");
        fs::create_dir_all(&folder).unwrap();
        let docker = folder.join("docker");
        fs::write(&docker, format!("#!/bin/bash\nPATH='{path}'\n{script}\n")).unwrap();
        fs::set_permissions(&docker, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = self.command(self.config().join("cli-plugins/docker-cache"));
        command.env("PATH", format!("{}:{path}", folder.display())).arg("cache").args(arguments);
        Run::of(&mut command)
    }

    /// Runs the plugin itself, and returns also its calls of docker, with what it asks over the API, a line each.
    pub fn cache_told(&self, arguments: &[&str]) -> (Run, String) {
        let log = self.folder.join("calls");
        fs::write(&log, "").unwrap();
        let script = format!(
            "echo \"docker $*\" >> {log}\n\
             [ \"$1 $2\" != 'system dial-stdio' ] || exec docker \"$@\" < <(exec tee -a {log} 2> /dev/null)\n\
             exec docker \"$@\"",
            log = log.display()
        );
        (self.cache_through(&script, arguments), fs::read_to_string(&log).unwrap())
    }

    /// Asks the engine's API, without any of Docker's clients: `engine.api("/volumes")`.
    #[track_caller]
    pub fn api(&self, path: &str) -> Value {
        // What was cancelled a moment ago may still make the engine refuse.
        let mut answers = (0..10).map(|round| {
            std::thread::sleep(Duration::from_millis(200 * u64::from(round > 0)));
            self.request(path)
        });
        let body = answers.find_map(|body| body).unwrap_or_else(|| panic!("the engine does not answer GET {path}"));
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("GET {path}: {error}: {body}"))
    }

    /// Returns the body of an answer with status 200. HTTP/1.0 ends it with the connection.
    fn request(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.join("docker.sock")).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
    }

    /// Runs `docker cache …` at a terminal, types these keys once it has shown this, and returns the outcome.
    #[track_caller]
    pub fn at_terminal(&self, words: &str, shown: &str, keys: &str) -> Run {
        self.at_terminal_after(words, shown, keys, || ())
    }

    /// The same; something else happens before the keys are typed.
    #[track_caller]
    pub fn at_terminal_after(&self, words: &str, shown: &str, keys: &str, first: impl Fn()) -> Run {
        let docker = self.cache_command(&[]).get_program().to_str().unwrap().to_owned();
        let mut command = self.command("script");
        command.args(["--quiet", "--return", "--command", &format!("{docker} cache {words}"), "/dev/null"]);
        typed_after(command, &[(shown, keys)], first)
    }

    /// Returns the engine's build cache records, straight from its API, once two answers in a row tell the same ones: for
    /// a moment after a build, BuildKit leaves out some that it still uses.
    pub fn records(&self) -> Vec<Value> {
        let ask = || self.api("/system/df?type=build-cache")["BuildCache"].as_array().cloned().unwrap_or_default();
        let ids = |records: &[Value]| records.iter().map(|record| record["ID"].to_string()).collect::<BTreeSet<_>>();
        let mut last = ask();
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(300));
            let next = ask();
            if ids(&next) == ids(&last) {
                return next;
            }
            last = next;
        }
        panic!("the engine's records do not come to rest: {last:#?}")
    }

    /// Returns [`Engine::records`] without the small ones that helper builds leave on the containerd image store, where a
    /// prune would make BuildKit forget the steps of others.
    pub fn lasting_records(&self) -> Vec<Value> {
        let may_stay = ["docker-cache-helper-", "local source for ", "[internal] preparing inline document"];
        let stays = |record: &Value| {
            let told = record["Description"].as_str().unwrap_or_default();
            record["Type"] == "exec.cachemount" || !may_stay.iter().any(|word| told.contains(word))
        };
        let mut records = self.records();
        if self.generation.containerd_store() {
            records.retain(stays);
        }
        records
    }

    /// Returns the records of cache mounts among [`Engine::records`].
    pub fn mounts(&self) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["Type"] == "exec.cachemount").collect()
    }

    /// Makes a volume with these files (path below the volume, content) and returns its folder.
    pub fn volume(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        self.docker(&["volume", "create", name]);
        let root = self.mountpoint(name);
        write_files(&root, files);
        root
    }

    /// Returns the folder behind a volume.
    pub fn mountpoint(&self, volume: &str) -> PathBuf {
        self.docker(&["volume", "inspect", "--format", "{{.Mountpoint}}", volume]).stdout.trim_end().into()
    }

    /// Builds a Dockerfile (see [`Engine::context`]) with BuildKit, plain progress, and `arguments` before the context.
    #[track_caller]
    pub fn build(&self, dockerfile: &str, arguments: &[&str]) -> Run {
        self.try_build(dockerfile, arguments).ok()
    }

    pub fn try_build(&self, dockerfile: &str, arguments: &[&str]) -> Run {
        let context = self.context(dockerfile);
        let mut build = self.command(self.docker_program());
        build.env("DOCKER_BUILDKIT", "1").args(["build", "--progress", "plain"]).args(arguments).arg(context.path());
        Run::of_docker(&mut build)
    }

    /// Makes a build context of a Dockerfile and busybox. A Dockerfile that has no `FROM` gets one without any image:
    /// empty but for busybox, which is the shell of its `RUN` lines.
    pub fn context(&self, dockerfile: &str) -> tempfile::TempDir {
        let context = tempfile::tempdir_in(self.folder.join("tmp")).unwrap();
        install(&parts::busybox(), &context.path().join("busybox"));
        let head = if dockerfile.contains("FROM ") { "" } else { SCRATCH };
        fs::write(context.path().join("Dockerfile"), format!("{head}{dockerfile}\n")).unwrap();
        context
    }

    /// Starts a further engine of the same generation and registers it as a docker context, which is a second real builder.
    pub fn second_context(&self, name: &str) -> Engine {
        let second = Engine::start(self.generation);
        self.docker(&["context", "create", name, "--docker", &format!("host={}", second.host())]);
        second
    }

    /// Registers a builder of the driver `remote`: the engine's own BuildKit, behind a socket.
    ///
    /// Each connection to the socket is a `docker buildx dial-stdio` that has a config of its own: with the same one, it and the
    /// buildx that connects would wait for each other's lock.
    pub fn remote_builder(&self, name: &str) -> RemoteBuilder {
        let socket = self.folder.join(format!("{name}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let (env, docker) = (self.env(), self.docker_program().display().to_string());
        let buildx_config = self.folder.join(format!("{name}.buildx"));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let call = [&docker, "buildx", "dial-stdio", "--builder", "default"];
                let mut dial = Background::start(&call, |command| {
                    command.env_clear().envs(&env).env("BUILDX_CONFIG", &buildx_config);
                    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(stream.try_clone().unwrap())));
                    command.stdout(Stdio::from(std::os::fd::OwnedFd::from(stream))).stderr(Stdio::null());
                });
                std::thread::spawn(move || dial.wait());
            }
        });
        self.docker(&[
            "buildx",
            "create",
            "--driver",
            "remote",
            "--name",
            name,
            &format!("unix://{}", socket.display()),
        ]);
        RemoteBuilder { name: name.to_owned(), socket }
    }

    /// Registers a builder of the driver `docker-container`, which is asleep until something boots it.
    ///
    /// Its container is all that docker starts; the `buildctl` in there leads to the engine's own BuildKit, since the image
    /// that has one of its own is in no registry that tests can reach.
    pub fn container_builder(&self, name: &str) -> Background {
        let image = format!(
            "COPY --chmod=755 <<EOF /bin/buildkitd\n#!/bin/busybox sh\nexec sleep inf\nEOF\n\
             COPY --chmod=755 <<'EOF' /bin/buildctl\n#!/bin/busybox sh\n\
             [ \"$1\" != dial-stdio ] || exec nc 127.0.0.1 {BUILDKIT_PORT}\nEOF\n\
             RUN for applet in sh sleep nc; do ln -s busybox /bin/$applet; done\n\
             ENTRYPOINT [\"/bin/buildkitd\"]"
        );
        self.build(&image, &["--tag", "buildkit"]);
        let (mut call, busybox, docker) = (self.network(), parts::busybox(), self.docker_program());
        let dial = ["buildx", "dial-stdio", "--builder", "default"];
        call.extend([busybox.display().to_string(), "nc".into(), "-ll".into(), "-p".into(), BUILDKIT_PORT.into()]);
        call.extend(["-e".into(), docker.display().to_string()]);
        let call: Vec<&str> = call.iter().map(String::as_str).chain(dial).collect();
        let buildx_config = self.folder.join(format!("{name}.buildx"));
        let dials = Background::start(&call, |command| {
            command.env_clear().envs(self.env()).env("BUILDX_CONFIG", buildx_config);
            command.stdout(Stdio::null()).stderr(Stdio::null());
        });
        // In the engine's own group, by which it is found and ended with the engine.
        let group = self.folder.file_name().unwrap().display();
        let options = format!("image=buildkit,network=host,cgroup-parent=/{group}");
        let driver = ["--driver", "docker-container", "--driver-opt", &options];
        self.docker(&[&["buildx", "create", "--name", name], &driver[..]].concat());
        dials
    }

    /// Sends a signal to dockerd: STOP makes the engine hang until CONT, KILL makes it crash.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Returns the words that make a program run in the engine's network: `nsenter --net=… --`, or none if it has the machine's.
    pub fn network(&self) -> Vec<String> {
        if self.online {
            return Vec::new();
        }
        vec!["nsenter".into(), format!("--net=/proc/{}/ns/net", self.pid()), "--".into()]
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            let log = self.log();
            let telling: Vec<_> = log.lines().filter(|line| !line.contains("level=info")).collect();
            eprintln!("--- the last lines of the {} engine's log", self.name());
            eprintln!("{}", telling[telling.len().saturating_sub(20)..].join("\n"));
        }
        drop(self.keeper.stdin.take());
        let end = self.keeper.wait();
        let clean = end.is_ok_and(|status| status.success());
        assert!(clean || failed, "something of the engine in {} could not be removed", self.folder.display());
    }
}

/// A builder of the driver `remote`; it answers until the value is dropped.
#[derive(Debug)]
pub struct RemoteBuilder {
    pub name: String,
    socket: PathBuf,
}

impl RemoteBuilder {
    /// Returns where it listens, `unix://…`, for a further builder that leads to the same BuildKit.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

impl Drop for RemoteBuilder {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

/// Where the container of [`Engine::container_builder`] finds BuildKit, in the engine's own network.
const BUILDKIT_PORT: &str = "7777";

/// Where every engine looks for the sockets of plugins.
const PLUGINS: &str = "/run/docker/plugins";

const KEEPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/engine.sh");

/// An image without an image: the start of a Dockerfile that needs no registry.
const SCRATCH: &str =
    "FROM scratch\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nENV PATH=/bin\n";

/// What an engine has for itself that others share with the machine.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    Nothing,
    Bridge,
    Plugins,
    Disk,
}

/// Mounts a new file system, kept in a file that has no name any more: `engine.sh` unmounts it, and it is gone.
fn mount_disk(at: &Path) {
    let (image, free) = (at.with_extension("image"), rustix::fs::statvfs(at).unwrap());
    fs::File::create(&image).unwrap().set_len(free.f_bavail * free.f_frsize / 10 * 9).unwrap();
    let mut make = Command::new("mkfs.ext4");
    // Nothing is left for the kernel to prepare in the background; an inode for every 8 kB.
    make.args(["-q", "-m", "0", "-i", "8192", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&image);
    Run::of(make.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")).ok();
    Run::of(Command::new("mount").args(["-o", "loop"]).args([image.as_path(), at])).ok();
    fs::remove_file(&image).unwrap();
}

/// A bridge in the machine's network, for an engine that must not touch docker0. `engine.sh` removes it.
#[derive(Debug)]
struct Bridge {
    name: String,
}

impl Bridge {
    fn named(engine: &str) -> Bridge {
        Bridge { name: engine.to_owned() }
    }

    /// Makes the bridge, with an address that no other network of this machine has.
    fn add(&self) {
        let ip = |arguments: &str| {
            let mut ip = Command::new("ip");
            Run::of(ip.args(arguments.split(' '))).ok().stdout
        };
        let taken = ip("-o -4 address show");
        let net = (0..=255).map(|n| format!("10.213.{n}.")).find(|net| !taken.contains(net.as_str()));
        ip(&format!("link add {} type bridge", self.name));
        ip(&format!("address add {}1/24 dev {}", net.expect("a free network"), self.name));
        ip(&format!("link set {} up", self.name));
    }
}

/// Removes what test processes left that were killed together with their engines' keepers.
pub fn sweep() {
    let alive = |pid: &str| Path::new("/proc").join(pid).exists();
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((owner, count)) = name.strip_prefix("dc").and_then(|rest| rest.split_once('-')) else { continue };
        let ours = [owner, count].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
        let keeper = fs::read_to_string(entry.path().join("keeper.pid")).unwrap_or_default();
        let kept = !keeper.is_empty() && alive(keeper.trim());
        if ours && !alive(owner) && !kept {
            let mut remove = Command::new("sh");
            remove.arg(KEEPER).env("BENCH_DIR", entry.path()).env("BENCH_BRIDGE", &name);
            let _ = remove.stdin(Stdio::null()).status();
        }
    }
}

/// Puts a program where it can be started: a link if it is on the same file system, a copy otherwise.
fn install(program: &Path, target: &Path) {
    let _ = fs::remove_file(target);
    if fs::hard_link(program, target).is_err() {
        fs::copy(program, target).unwrap_or_else(|error| panic!("cannot copy {}: {error}", program.display()));
    }
}
