//! Pairs this program with what a user would run instead, on private engines, and prints ratios: below 1.00 we are faster.
//!
//! `cargo bench` runs all of it at 10,000, 224,000 and 1,000,000 files, in about 20 minutes and 50 GB of TMPDIR; `cargo bench
//! -- size clear` runs these parts (start, doctor, size, export, import, mount, clear), `-- --files 10000,50000` these
//! sizes, `-- --quick` the smallest one. Lines on standard error say how far it is, the tables on standard output can be pasted.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs;
use std::io::{Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::parts;
use support::process::{Run, call_line};
use support::world::big_tree;
use support::{Engine, Generation};

#[path = "../tests/support/mod.rs"]
mod support;

const SIZES: [u64; 3] = [10_000, 224_000, 1_000_000];
/// What takes long is left out above this number of files: gzip, copies of mounts by builds, an empty page cache.
const PATIENCE: u64 = 300_000;
/// Mean size of a file, in bytes.
const FILE: u64 = 6_560;
/// Directories of a volume.
const TOOLS: [&str; 4] = ["pip", "npm", "cargo/registry", "go-mod"];
const VOLUME: &str = "project-cache";
/// A contest that has taken longer begins no further round.
const LONG: Duration = Duration::from_secs(60);
/// What takes longer is ended, and its part with it: builds that copy a mount out now and then hang when all is written (buildx
/// 0.29 with Engine 28.5).
const HANGS: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let options = Options::read();
    let mut results = Results::default();
    println!("{}\n", machine());
    if options.wants("start") || options.wants("doctor") {
        let bench = Bench::new(0);
        bench.start(&options, &mut results);
    }
    for files in &options.files {
        Bench::new(*files).run(&options, &mut results);
    }
    println!("{}", results.tables(&options.files));
    ExitCode::from(u8::from(results.failed))
}

/// What the user chose.
struct Options {
    parts: Vec<String>,
    files: Vec<u64>,
}

impl Options {
    fn read() -> Options {
        let mut options = Options { parts: Vec::new(), files: SIZES.to_vec() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--quick" => options.files.truncate(1),
                "--files" => {
                    let list = args.next().unwrap_or_default();
                    let list = list.split(',').map(|number| number.parse().expect("--files takes numbers with commas"));
                    options.files = list.collect();
                }
                // Cargo's own word.
                "--bench" => {}
                part => options.parts.push(part.into()),
            }
        }
        options
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

/// An engine with a file system of its own, and volumes of so many files on it.
struct Bench {
    engine: Engine,
    files: u64,
}

/// Runs something once and returns how long it took; it is told the number of the round.
type Runner<'a> = Box<dyn FnMut(usize) -> Duration + 'a>;

impl Bench {
    fn new(files: u64) -> Bench {
        let engine = Engine::on_own_disk(Generation::V28);
        fs::create_dir(engine.folder().join("bench")).unwrap();
        engine.build("RUN busybox --install -s /bin", &["--tag", "busybox"]);
        engine.cache(&["--help"]);
        Bench { engine, files }
    }

    fn run(&self, options: &Options, results: &mut Results) {
        let mut part = |name: &str, run: fn(&Bench, &mut Results)| {
            // What comes after can still be had.
            if options.wants(name) && catch_unwind(AssertUnwindSafe(|| run(self, results))).is_err() {
                eprintln!("{name} with {} files failed, as told above", self.files);
                results.failed = true;
            }
        };
        if ["size", "export", "import", "mount"].into_iter().any(|name| options.wants(name)) {
            self.fill(VOLUME);
        }
        part("size", Bench::size);
        part("export", Bench::export);
        part("import", Bench::import);
        part("mount", Bench::mount);
        part("clear", Bench::clear);
    }

    /// Rounds of what changes the disk.
    fn rounds(&self) -> usize {
        if self.files > PATIENCE { 1 } else { 3 }
    }

    /// Rounds of what takes minutes at the middle size.
    fn slow_rounds(&self) -> usize {
        if self.files > SIZES[0] { 1 } else { 3 }
    }

    /// Returns a place for archives and bundles, on the machine's own disk: what is synced there goes through no second
    /// file system.
    fn at(&self, name: &str) -> String {
        self.engine.folder().join("bench").join(name).display().to_string()
    }

    fn start(&self, options: &Options, results: &mut Results) {
        let plugin = || Command::new(env!("CARGO_BIN_EXE_docker-cache"));
        let buildx = || {
            let plugins = self.engine.generation().suite().root().join("usr/libexec/docker/cli-plugins");
            self.engine.command(plugins.join("docker-buildx"))
        };
        if options.wants("start") {
            let call = |what: &str, ours: &[&str], name: &str, theirs: &[&str], results: &mut Results| {
                let ours: Runner<'_> = Box::new(|_| time(&mut self.docker(ours)));
                self.contest(results, what, 21, ours, vec![(name, Box::new(|_| time(&mut self.docker(theirs))))]);
            };
            call(
                "`docker cache --version`",
                &["cache", "--version"],
                "`docker buildx version`",
                &["buildx", "version"],
                results,
            );
            call(
                "`docker cache --help`",
                &["cache", "--help"],
                "`docker buildx --help`",
                &["buildx", "--help"],
                results,
            );
            let hook = r#"{"RootCmd":"build","Flags":{},"CommandError":""}"#;
            for (what, words) in [
                ("metadata for docker", &["docker-cli-plugin-metadata"][..]),
                ("hook after a build", &["cache", "docker-cli-plugin-hooks", hook]),
            ] {
                let ours: Runner<'_> = Box::new(|_| time(plugin().args(words)));
                let theirs: Runner<'_> = Box::new(|_| {
                    let words = words.iter().map(|word| if *word == "cache" { "buildx" } else { word });
                    // Whether it has something to say.
                    time_any(buildx().args(words))
                });
                self.contest(results, what, 21, ours, vec![("buildx's", theirs)]);
            }
        }
        if options.wants("doctor") {
            // Its status says whether it found something.
            let doctor: Runner<'_> = Box::new(|_| time_any(&mut self.docker(&["cache", "doctor"])));
            let both = Box::new(|_| time(&mut self.docker(&["info"])) + time(&mut self.docker(&["buildx", "ls"])));
            let one = Box::new(|_| time(&mut self.docker(&["buildx", "ls"])));
            let theirs: Vec<(&str, Runner<'_>)> =
                vec![("`docker info` and `docker buildx ls`", both), ("`docker buildx ls`", one)];
            self.contest(results, "`docker cache doctor`", 21, doctor, theirs);
        }
    }

    /// Everything that measures, with what it reads in the page cache, and once without.
    fn size(&self, results: &mut Results) {
        let root = self.engine.mountpoint(VOLUME);
        let tools: Vec<(&str, PathBuf, Vec<&str>)> = [
            ("`du`", Some("/usr/bin/du".into()), vec!["-s"]),
            ("`pdu`", tool("pdu", "parallel-disk-usage", "0.24.0"), vec!["--quantity=block-size", "--max-depth=1"]),
            ("`dua`", tool("dua", "dua-cli", "2.32.2"), vec!["aggregate"]),
        ]
        .into_iter()
        .filter_map(|(name, program, args)| Some((name, program?, args)))
        .collect();
        let job = format!(r#"{{"measure":[{{"root":"{}","known":[]}}]}}"#, root.display());
        let walk = |before: fn()| -> Runner<'_> {
            let job = job.clone();
            Box::new(move |_| {
                before();
                time_fed(Command::new(env!("CARGO_BIN_EXE_docker-cache")).arg("inside"), &job)
            })
        };
        let on_host = |before: fn()| -> Vec<(&str, Runner<'_>)> {
            let run = |(name, program, args): &'_ (&'static str, PathBuf, Vec<&'static str>)| {
                let (program, args, root) = (program.clone(), args.clone(), root.clone());
                let run: Runner<'_> = Box::new(move |_| {
                    before();
                    time(Command::new(&program).args(&args).arg(&root))
                });
                (*name, run)
            };
            tools.iter().map(run).collect()
        };
        let size: Runner<'_> = Box::new(|_| time(&mut self.docker(&["cache", "size", "--volume", VOLUME])));
        let du = Box::new(|_| time(&mut self.boxed(&[(VOLUME, "/cache")], "du -sk /cache/*")));
        let mut theirs: Vec<(&str, Runner<'_>)> = vec![("`docker run … du`", du)];
        theirs.extend(on_host(warm));
        self.contest(results, "size of a volume", 5, size, theirs);
        let all: Runner<'_> = Box::new(|_| time(&mut self.docker(&["cache", "size"])));
        let df = Box::new(|_| time(&mut self.docker(&["system", "df", "-v"])));
        self.contest(results, "size of everything", 5, all, vec![("`docker system df -v`", df)]);
        self.contest(results, "its walk alone", 5, walk(warm), on_host(warm));
        // Not in a quick run: it takes the machine's whole page cache away.
        if self.files > SIZES[0] && self.files <= PATIENCE {
            self.contest(results, "its walk alone, nothing cached", 3, walk(cold), on_host(cold));
        }
    }

    fn export(&self, results: &mut Results) {
        let afresh = || -> Runner<'_> {
            Box::new(|_| {
                let dest = self.at("once");
                let taken = self.pack(&dest);
                fs::remove_dir_all(dest).unwrap();
                taken
            })
        };
        let theirs: Vec<(&str, Runner<'_>)> = vec![("`tar \\| zstd -T0`", Box::new(|_| self.tar_zst()))];
        self.contest(results, "export of a volume", self.rounds(), afresh(), theirs);
        if self.files > PATIENCE {
            return;
        }
        let theirs: Vec<(&str, Runner<'_>)> = vec![("`docker run … tar czf`", Box::new(|_| self.tar_gz()))];
        self.contest(results, "export of a volume", self.slow_rounds(), afresh(), theirs);
        let (bundle, root) = (self.bundle(), self.engine.mountpoint(VOLUME));
        let again: Runner<'_> = Box::new(|round| {
            self.change(&root, round);
            self.pack(&bundle)
        });
        let theirs = vec![("the first export", afresh())];
        self.contest(results, "export after 1 % of the files changed", self.rounds(), again, theirs);
    }

    /// Each round has a volume of its own, and none is removed: the next one would wait for inodes.
    fn import(&self, results: &mut Results) {
        if !self.has_room("import", 2 * (self.rounds() + self.slow_rounds()) as u64) {
            return;
        }
        let bundle = self.bundle();
        let ours = |to: &'static str| -> Runner<'_> {
            let bundle = bundle.clone();
            Box::new(move |round| {
                let volume = format!("{to}-{round}");
                time(&mut self.engine.cache_command(&["import", "--src", &bundle, "--to-volume", &volume]))
            })
        };
        let archive = self.at("all.tar.zst");
        if !Path::new(&archive).exists() {
            self.tar_zst();
        }
        let theirs: Runner<'_> = Box::new(|round| {
            let to = self.engine.volume(&format!("theirs-a-{round}"), &[]);
            time(&mut shell(&format!("zstd -q -d -c {archive} | tar -C {} -x", to.display())))
        });
        let theirs = vec![("`zstd -d \\| tar x`", theirs)];
        self.contest(results, "import of a volume", self.rounds(), ours("ours-a"), theirs);
        if self.files > PATIENCE {
            return;
        }
        if !Path::new(&self.at("all.tar.gz")).exists() {
            self.tar_gz();
        }
        let theirs: Runner<'_> = Box::new(|round| {
            let (volume, from) = (format!("theirs-b-{round}"), self.at(""));
            self.engine.docker(&["volume", "create", &volume]);
            time(&mut self.boxed(&[(&volume, "/cache"), (&from, "/in")], "tar xzf /in/all.tar.gz -C /cache"))
        });
        let theirs = vec![("`docker run … tar xzf`", theirs)];
        self.contest(results, "import of a volume", self.slow_rounds(), ours("ours-b"), theirs);
    }

    fn pack(&self, dest: &str) -> Duration {
        time(&mut self.engine.cache_command(&["export", "--dest", dest, "--volume", VOLUME]))
    }

    /// Returns a bundle of the volume.
    fn bundle(&self) -> String {
        let bundle = self.at("bundle");
        if !Path::new(&bundle).exists() {
            self.pack(&bundle);
        }
        bundle
    }

    fn tar_zst(&self) -> Duration {
        let (root, archive) = (self.engine.mountpoint(VOLUME), self.at("all.tar.zst"));
        time(&mut shell(&format!("tar -C {} -c . | zstd -q -f -T0 -o {archive}", root.display())))
    }

    fn tar_gz(&self) -> Duration {
        let out = self.at("");
        time(&mut self.boxed(&[(VOLUME, "/cache"), (&out, "/out")], "tar czf /out/all.tar.gz -C /cache ."))
    }

    /// Writes every hundredth file anew.
    fn change(&self, root: &Path, round: usize) {
        for tool in TOOLS {
            for file in (0..self.files / 4).step_by(100) {
                let path = format!("{:02x}/{:06}/{file:08}", file / 500 % 256, file / 500);
                fs::write(root.join(tool).join(path), format!("{round}").repeat(5000)).unwrap();
            }
        }
    }

    /// Cache mounts out of the builder and in again, against builds that copy them from and to layers.
    fn mount(&self, results: &mut Results) {
        let rounds = self.slow_rounds();
        if self.files > PATIENCE || !self.has_room("mount", 2 + 4 * rounds as u64) {
            return;
        }
        let build = |dockerfile: String, words: &[&str], context: Option<&str>| {
            let dir = self.engine.context(&dockerfile);
            let file = format!("--file={}", dir.path().join("Dockerfile").display());
            let context = context.map_or_else(|| dir.path().display().to_string(), str::to_owned);
            time(self.docker(&["buildx", "build", &file]).args(words).arg(context))
        };
        let copy_in = |context: &str, id: &str| {
            let mounts = format!("--mount=type=cache,id={id},target=/m --mount=type=bind,target=/copy");
            let dockerfile = format!("FROM busybox\nRUN {mounts} cp -pR /copy/. /m");
            build(dockerfile, &["--output=type=cacheonly"], Some(context))
        };
        copy_in(&self.engine.mountpoint(VOLUME).display().to_string(), "full");
        let ours: Runner<'_> = Box::new(|round| {
            let dest = self.at(&format!("mount-{round}"));
            time(&mut self.engine.cache_command(&["export", "--dest", &dest, "--mount", "full"]))
        });
        let theirs: Runner<'_> = Box::new(|round| {
            let mount = "--mount=type=cache,id=full,target=/m";
            let copy = format!("RUN {mount} mkdir /copy{round} && cp -pR /m/. /copy{round}");
            let dockerfile = format!("FROM busybox AS copy\n{copy}\nFROM scratch\nCOPY --from=copy /copy{round} /");
            let dest = self.at(&format!("copy-{round}"));
            build(dockerfile, &[&format!("--output=type=local,dest={dest}")], None)
        });
        self.contest(results, "export of a mount", rounds, ours, vec![("a build that copies it out", theirs)]);
        let ours: Runner<'_> = Box::new(|round| {
            let (src, id) = (self.at(&format!("mount-{round}")), format!("ours-{round}"));
            time(&mut self.engine.cache_command(&["import", "--src", &src, "--to-mount", &id]))
        });
        let theirs: Runner<'_> =
            Box::new(|round| copy_in(&self.at(&format!("copy-{round}")), &format!("theirs-{round}")));
        self.contest(results, "import of a mount", rounds, ours, vec![("a build that copies it in", theirs)]);
    }

    /// All that is to be removed is there, and on the disk, before the first round.
    fn clear(&self, results: &mut Results) {
        let rounds = self.rounds();
        if !self.has_room("clear", 2 * rounds as u64) {
            return;
        }
        let names: Vec<[String; 2]> =
            (0..rounds).map(|round| [format!("ours-cache-{round}"), format!("theirs-cache-{round}")]).collect();
        names.iter().flatten().for_each(|name| self.fill(name));
        Run::of(&mut Command::new("sync"));
        let ours: Runner<'_> =
            Box::new(|round| time(&mut self.docker(&["cache", "clear", "--force", "--volume", &names[round][0]])));
        let theirs: Runner<'_> = Box::new(|round| time(&mut self.boxed(&[(&names[round][1], "/c")], "rm -rf /c/*")));
        self.contest(results, "clear of a volume", rounds, ours, vec![("`docker run … rm -rf`", theirs)]);
        let mut roots = names.iter().flatten().map(|name| self.engine.mountpoint(name));
        assert!(roots.all(|root| !root.join("pip/00").exists()), "something is not removed");
    }

    /// Makes a volume of many files.
    fn fill(&self, name: &str) {
        eprintln!("making {name} of {} files", self.files);
        let root = self.engine.volume(name, &[]);
        TOOLS.iter().for_each(|tool| big_tree(&root.join(tool), self.files / 4, self.files * FILE / 4));
    }

    /// Runs ours and theirs by turns and keeps the medians.
    fn contest(
        &self,
        results: &mut Results,
        what: &str,
        rounds: usize,
        ours: Runner<'_>,
        theirs: Vec<(&str, Runner<'_>)>,
    ) {
        let (names, others): (Vec<&str>, Vec<Runner<'_>>) = theirs.into_iter().unzip();
        let mut runners: Vec<Runner<'_>> = std::iter::once(ours).chain(others).collect();
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); runners.len()];
        let started = Instant::now();
        for round in 0..rounds {
            let mut turns: Vec<_> = runners.iter_mut().zip(&mut times).collect();
            // Whoever comes second finds more in the page cache, and more to be written back.
            if round % 2 == 1 {
                turns.reverse();
            }
            for (run, times) in turns {
                rustix::fs::sync();
                times.push(run(round));
            }
            if started.elapsed() > LONG {
                break;
            }
        }
        let ours = median(&mut times[0]);
        for (instead, times) in names.into_iter().zip(&mut times[1..]) {
            let found =
                Found { what: what.into(), instead: instead.into(), files: self.files, ours, theirs: median(times) };
            eprintln!("{} files: {what}, instead of {instead}: {}", self.files, found.shown());
            results.found.push(found);
        }
    }

    fn docker(&self, args: &[&str]) -> Command {
        let mut command = self.engine.command(self.engine.docker_program());
        command.args(args);
        command
    }

    /// Returns a command in a container, with volumes or folders of the host.
    fn boxed(&self, mounts: &[(&str, &str)], words: &str) -> Command {
        let mut command = self.engine.command(self.engine.docker_program());
        command.args(["run", "--rm"]);
        for (from, to) in mounts {
            command.args(["-v", &format!("{from}:{to}")]);
        }
        command.args(["busybox", "/bin/sh", "-c", words]);
        command
    }

    /// Returns false, and says so, if the disk has no room for so many more copies of the volume.
    fn has_room(&self, part: &str, copies: u64) -> bool {
        let disk = rustix::fs::statvfs(self.at("")).unwrap();
        let (free, needed) = (disk.f_bavail * disk.f_frsize, copies * self.files * (FILE / 4096 + 1) * 4096);
        if free < needed + needed / 10 {
            eprintln!("{part} with {} files is left out: it needs {} GB of disk", self.files, needed.div_ceil(1 << 30));
        }
        free >= needed + needed / 10
    }
}

fn warm() {}

/// Empties the page cache.
fn cold() {
    Run::of(&mut Command::new("sync")).ok();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Returns a program of crates.io, installed once beside the engines' parts; None, and a word about it, if it cannot be had.
fn tool(program: &str, package: &str, version: &str) -> Option<PathBuf> {
    let root = parts::folder().join(format!("{package}-{version}"));
    let path = root.join("bin").join(program);
    if !path.exists() {
        eprintln!("installing {package} {version} from crates.io");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Elsewhere, or this project's own cargo settings would count.
        cargo
            .current_dir(parts::folder())
            .args(["install", "--locked", "--quiet", "--bin", program, "--root"])
            .arg(&root);
        let done = Run::of(cargo.args([package, "--version", version]));
        if done.code != 0 {
            eprintln!("`{program}` is left out: crates.io does not give {package} {version}: {}", done.stderr.trim());
            return None;
        }
    }
    Some(path)
}

fn shell(words: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", words]);
    command
}

/// Returns how long a command takes that must succeed.
fn time(command: &mut Command) -> Duration {
    time_fed(command, "")
}

/// The same for a command that gets this on its standard input.
fn time_fed(command: &mut Command, input: &str) -> Duration {
    let mut told = tempfile::tempfile().unwrap();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(told.try_clone().unwrap());
    let started = Instant::now();
    let mut child = command.spawn().expect("it starts");
    // One that reads nothing may have ended.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let (ended, watched) = mpsc::channel::<()>();
    let pid = Pid::from_child(&child);
    let watchdog = thread::spawn(move || {
        if watched.recv_timeout(HANGS) == Err(RecvTimeoutError::Timeout) {
            let _ = kill_process(pid, Signal::TERM);
        }
    });
    let status = child.wait().expect("it ends");
    let taken = started.elapsed();
    drop(ended);
    watchdog.join().unwrap();
    if !status.success() {
        let mut text = String::new();
        let _ = told.rewind().and_then(|()| told.read_to_string(&mut text));
        panic!("{}: {status}\n{text}", call_line(command));
    }
    taken
}

/// Returns how long a command takes, whatever its status.
fn time_any(command: &mut Command) -> Duration {
    let started = Instant::now();
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it starts");
    started.elapsed()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Medians of one contest.
struct Found {
    what: String,
    instead: String,
    files: u64,
    ours: Duration,
    theirs: Duration,
}

impl Found {
    fn shown(&self) -> String {
        let ratio = self.ours.as_secs_f64() / self.theirs.as_secs_f64();
        format!("**{ratio:.2}** ({} / {})", seconds(self.ours), seconds(self.theirs))
    }
}

#[derive(Default)]
struct Results {
    found: Vec<Found>,
    /// Whether a part ended early.
    failed: bool,
}

impl Results {
    /// Returns a table of ratios and one of what a file costs, with a column for each number of files.
    fn tables(&self, files: &[u64]) -> String {
        let of = |found: &[&Found], files: u64, show: &dyn Fn(&Found) -> String| {
            found.iter().find(|found| found.files == files).map_or("-".into(), |found| show(found))
        };
        let mut text = String::new();
        let once: Vec<&Found> = self.found.iter().filter(|found| found.files == 0).collect();
        if !once.is_empty() {
            text.push_str("| what | instead of | ratio (ours / theirs) |\n|---|---|---|\n");
            once.iter().for_each(|found| text.push_str(&row(&[&found.what, &found.instead, &found.shown()])));
            text.push('\n');
        }
        let rest: Vec<&Found> = self.found.iter().filter(|found| found.files > 0).collect();
        if rest.is_empty() {
            return text;
        }
        let columns: Vec<String> = files.iter().map(|files| format!("{files} files")).collect();
        let head = |first: &[&str]| {
            let cells: Vec<&str> = first.iter().copied().chain(columns.iter().map(String::as_str)).collect();
            format!("{}{}", row(&cells), row(&vec!["---"; cells.len()]))
        };
        text.push_str(&head(&["what", "instead of"]));
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for found in &rest {
            if !pairs.contains(&(&found.what, &found.instead)) {
                pairs.push((&found.what, &found.instead));
            }
        }
        for (what, instead) in &pairs {
            let same: Vec<&Found> =
                rest.iter().copied().filter(|found| (&*found.what, &*found.instead) == (*what, *instead)).collect();
            let cells: Vec<String> = files.iter().map(|files| of(&same, *files, &Found::shown)).collect();
            let cells: Vec<&str> = [*what, *instead].into_iter().chain(cells.iter().map(String::as_str)).collect();
            text.push_str(&row(&cells));
        }
        text.push_str(&format!("\n{}", head(&["ours, a file"])));
        pairs.dedup_by_key(|(what, _)| *what);
        for (what, _) in pairs {
            let same: Vec<&Found> = rest.iter().copied().filter(|found| found.what == what).collect();
            let cost = |found: &Found| format!("{:.1} µs", found.ours.as_secs_f64() * 1e6 / found.files as f64);
            let cells: Vec<String> = files.iter().map(|files| of(&same, *files, &cost)).collect();
            let cells: Vec<&str> = std::iter::once(what).chain(cells.iter().map(String::as_str)).collect();
            text.push_str(&row(&cells));
        }
        text
    }
}

fn row(cells: &[&str]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

/// Returns a line about the machine and what it is doing.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
        value.unwrap_or("unknown").trim().to_owned()
    };
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let memory: u64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let mut disk = Command::new("findmnt");
    let disk = Run::of(disk.args(["--noheadings", "--output=FSTYPE", "--target"]).arg(std::env::temp_dir())).stdout;
    format!(
        "{cores} cores of {}, {} GB, {} on Linux {}, load {} before; files of {FILE} bytes, medians of alternating rounds",
        field(&read("/proc/cpuinfo"), "model name"),
        memory.div_ceil(1 << 20),
        disk.trim(),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default()
    )
}
