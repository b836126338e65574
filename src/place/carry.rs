//! Runs packing and unpacking where the files are. Blobs go the shortest way: by path, by a bind mount into a helper
//! container, by `docker cp` from or to an engine elsewhere, by the context and the output of a helper build.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

use super::build::prune_all;
use super::{MountPlace, Place, container, helper, is_here};
use crate::docker::{BLOBS, BuilderRef, Docker, Info, abandoned, unique_name};
use crate::inside::pack::{self, Blob, Pack, Packed};
use crate::inside::unpack::{Target, Unpack, Unpacked};
use crate::inside::{self, Job, Line, perform};
use crate::model::{CacheRecord, Mount};

impl Mount {
    /// Returns where a helper build has it: the target, if that is a plain path.
    pub(super) fn root(&self, at: usize) -> PathBuf {
        let names = self.target.split('/').skip(1).collect::<Vec<_>>();
        let plain = |name: &&str| {
            !matches!(*name, "" | "." | ".." | "proc" | "sys" | "dev")
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.@=+~-".contains(c))
        };
        match self.target.starts_with('/') && !names.is_empty() && names.iter().all(plain) {
            true => PathBuf::from(&self.target),
            // In the order of their names, too.
            false => PathBuf::from(format!("/mounts/{at:05}")),
        }
    }
}

/// What a helper build does about other builds that use its mounts at the same time.
#[derive(Clone, Copy, Debug)]
pub enum Sharing {
    /// It works beside those that share as well. What begins meanwhile gets the same mount and no empty one.
    Shared,
    /// It waits for them, and what begins meanwhile does not get the mount.
    Locked,
}

/// How far something is.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// What is packed or unpacked so far.
    Done { files: u64, bytes: u64 },
    /// Bytes of blobs that came from a builder or went there, of how many.
    Travelled { bytes: u64, of: u64 },
}

/// Is told of progress.
pub type Progress<'a> = &'a mut (dyn FnMut(Told) + Send);

/// Progress that several threads tell of.
pub(super) struct Telling<'a>(Mutex<Progress<'a>>);

impl<'a> Telling<'a> {
    pub(super) fn new(progress: Progress<'a>) -> Telling<'a> {
        Telling(Mutex::new(progress))
    }

    pub(super) fn tell(&self, told: Told) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)(told);
    }
}

/// Tells of what goes through, as a part of all that travels.
pub(super) struct Counted<'a, R> {
    pub(super) inner: R,
    pub(super) so_far: &'a AtomicU64,
    pub(super) tell: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        (self.tell)(self.so_far.fetch_add(read as u64, Relaxed) + read as u64);
        Ok(read)
    }
}

/// Packs trees of a place into blobs in the directory `out`. Each tree's root is set here: the place's root of its
/// number.
///
/// # Errors
/// When the place cannot be reached, or something cannot be read or written.
pub fn pack(place: &Place, trees: Vec<(usize, pack::Tree)>, out: &Path, progress: Progress<'_>) -> Result<Vec<Packed>> {
    let telling = Telling::new(progress);
    let roots = place.roots();
    let (at, trees): (Vec<usize>, Vec<pack::Tree>) =
        trees.into_iter().map(|(at, tree)| (at, pack::Tree { root: roots[at].clone(), ..tree })).unzip();
    let mut packed = None;
    let mut each = |line| match line {
        Line::Progress { files, bytes } => telling.tell(Told::Done { files, bytes }),
        Line::Packed(found) => packed = Some(found),
        _ => {}
    };
    match place {
        Place::Here(_) => {
            put(&formers(&trees), out)?;
            perform(&packing(&trees, out.into(), out), &mut each)?;
        }
        Place::Container { docker, info, volumes, .. } => {
            let run = Carrier { docker, info, volumes, packs: true };
            run.run(out, &formers(&trees), &packing(&trees, BLOBS.into(), Path::new(BLOBS)), &mut each)?;
        }
        Place::Build(MountPlace { builder, mounts }) => {
            let trees: Vec<_> = at.iter().map(|at| mounts[*at].clone()).zip(trees).collect();
            return pack_mounts(builder, &trees, out, &telling);
        }
    }
    packed.context("the helper gave no answer")
}

/// Packs cache mounts beside other builds, unless one uses a mount as this begins: then it waits. A build that locks a
/// mount just then leaves this a new, empty one, so what is found empty is looked at again, locked.
fn pack_mounts(
    builder: &BuilderRef,
    trees: &[(Mount, pack::Tree)],
    out: &Path,
    telling: &Telling<'_>,
) -> Result<Vec<Packed>> {
    let run = |sharing: &mut dyn FnMut(&[CacheRecord]) -> Sharing, chosen: &[usize]| -> Result<Vec<Packed>> {
        let (mounts, mut trees): (Vec<Mount>, Vec<pack::Tree>) = chosen.iter().map(|at| trees[*at].clone()).unzip();
        for (at, (mount, tree)) in mounts.iter().zip(&mut trees).enumerate() {
            tree.root = mount.root(at);
        }
        let job = |dir: &Path| packing(&trees, dir.join("out"), &dir.join("in"));
        let place = MountPlace { builder: builder.clone(), mounts };
        let answer = build(&place, sharing, &formers(&trees), job, false, Some(out), telling)?;
        let mut packed = None;
        lines(&answer[..], &mut |line| {
            if let Line::Packed(found) = line {
                packed = Some(found);
            }
        })?;
        packed.context("the helper gave no answer")
    };
    let all: Vec<usize> = (0..trees.len()).collect();
    let mut busy = false;
    let mut if_idle = |records: &[CacheRecord]| {
        busy = records.iter().any(|record| record.in_use && record.mount().is_some());
        if busy { Sharing::Locked } else { Sharing::Shared }
    };
    let mut packed = run(&mut if_idle, &all)?;
    let empty: Vec<usize> = all.into_iter().filter(|at| !busy && packed[*at].files == 0).collect();
    if !empty.is_empty() {
        for (at, again) in empty.iter().zip(run(&mut |_| Sharing::Locked, &empty)?) {
            packed[*at] = again;
        }
    }
    Ok(packed)
}

/// Returns the tables of former exports, and the names that they have beside a job.
fn formers(trees: &[pack::Tree]) -> Vec<(String, PathBuf)> {
    let formers = trees.iter().filter_map(|tree| tree.previous.as_ref()).enumerate();
    formers.map(|(at, previous)| (former(at), previous.table.clone())).collect()
}

fn former(at: usize) -> String {
    format!("former-{at}")
}

/// Returns the job that packs trees to `out` and finds the tables of former exports in `dir`.
fn packing(trees: &[pack::Tree], out: PathBuf, dir: &Path) -> Job {
    let mut trees = trees.to_vec();
    for (at, previous) in trees.iter_mut().filter_map(|tree| tree.previous.as_mut()).enumerate() {
        previous.table = dir.join(former(at));
    }
    Job::Pack(Pack { out, trees })
}

/// Unpacks trees into a place from blobs in the directory `blobs`. Each tree's root is set here.
///
/// # Errors
/// When the place cannot be reached, a blob is damaged, or something cannot be written.
pub fn unpack(
    place: &Place,
    trees: Vec<(usize, Target)>,
    blobs: &Path,
    progress: Progress<'_>,
) -> Result<Vec<Unpacked>> {
    let roots = place.roots();
    let trees: Vec<Target> =
        trees.into_iter().map(|(at, target)| Target { root: roots[at].clone(), ..target }).collect();
    let mut unpacked = None;
    let telling = Telling::new(progress);
    let mut each = |line| match line {
        Line::Progress { files, bytes } => telling.tell(Told::Done { files, bytes }),
        Line::Unpacked(found) => unpacked = Some(found),
        _ => {}
    };
    let mut names = HashSet::new();
    for target in &trees {
        names.extend([&target.table].into_iter().chain(target.layers.iter().map(|layer| &layer.blob)));
    }
    let needed = || names.iter().map(|blob| (blob.file().to_string(), blobs.join(blob.file()))).collect::<Vec<_>>();
    match place {
        Place::Build(place) => {
            let job = |dir: &Path| Job::Unpack(Unpack { blobs: dir.join("in"), trees: trees.clone() });
            let answer = build(place, |_| Sharing::Locked, &needed(), job, true, None, &telling)?;
            lines(&answer[..], &mut each)?;
        }
        Place::Here(_) => {
            perform(&Job::Unpack(Unpack { blobs: blobs.into(), trees: trees.clone() }), &mut each)?;
        }
        Place::Container { docker, info, volumes, .. } => {
            let run = Carrier { docker, info, volumes, packs: false };
            let job = Job::Unpack(Unpack { blobs: BLOBS.into(), trees: trees.clone() });
            run.run(blobs, &needed(), &job, &mut each)?;
        }
    }
    unpacked.context("the helper gave no answer")
}

/// Puts files into a directory, by links where the file system can have such.
fn put(files: &[(String, PathBuf)], dir: &Path) -> io::Result<()> {
    for (name, path) in files {
        let to = dir.join(name);
        match fs::hard_link(path, &to).map_err(|error| (Errno::from_io_error(&error), error)) {
            Err((Some(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::NOTSUP), _)) => _ = fs::copy(path, to)?,
            Err((_, error)) => return Err(error),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Writes an archive of files.
fn send(files: &[(String, PathBuf)], pipe: PipeWriter) -> io::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(1 << 17, pipe));
    add_files(&mut archive, files, &|_| ())?;
    archive.into_inner()?.flush()
}

/// A helper container that carries blobs.
struct Carrier<'a> {
    docker: &'a Docker,
    info: &'a Info,
    volumes: &'a [String],
    packs: bool,
}

impl Carrier<'_> {
    fn run(
        &self,
        dir: &Path,
        files: &[(String, PathBuf)],
        job: &Job,
        each: &mut (dyn FnMut(Line) + Send),
    ) -> Result<()> {
        let Carrier { docker, info, volumes, packs } = self;
        let name = unique_name();
        let _cleaner = container::Cleaner { docker, name: &name };
        docker.import_image(&helper::binary(&info.architecture)?, &name)?;
        let mounts: Vec<(&str, PathBuf)> = volumes.iter().map(String::as_str).zip(container::roots(volumes)).collect();
        let here = is_here(docker, info);
        docker.create_carrier(&name, &mounts, here.then_some(dir), *packs)?;
        if here && *packs {
            put(files, dir)?;
        } else if !here && !files.is_empty() {
            docker.put(&name, BLOBS, |pipe| send(files, pipe))?;
        }
        let job = format!("{}\n", serde_json::to_string(job)?).into_bytes();
        docker.start_helper(&name, job, |output| lines(output, each))??;
        if !here && *packs {
            docker.take_blobs(&name, dir)?;
            for (file, _) in files {
                fs::remove_file(dir.join(file))?;
            }
        }
        Ok(())
    }
}

/// Hands out the lines of a helper's answer.
///
/// # Errors
/// When it cannot be read, makes no sense or is missing: where nothing is said, nothing is known.
pub(super) fn lines(output: impl Read, each: &mut (dyn FnMut(Line) + Send)) -> Result<()> {
    let mut is_answered = false;
    for line in BufReader::new(output).lines() {
        let line = line.context("reading the helper's answer")?;
        let line = serde_json::from_str(&line).with_context(|| format!("the helper said {line:?}"))?;
        is_answered |= !matches!(line, Line::Progress { .. } | Line::Made { .. });
        each(line);
    }
    ensure!(is_answered, "docker lost the helper's answer\nhint: try it again");
    Ok(())
}

/// Runs a job in a helper build with files beside it, and returns its answer. What a job that packs writes to `out`
/// beside it arrives in `output`; the files of an import are told of as they travel. How it shares the mounts may depend on
/// the builder's records. Never `--no-cache`: that empties cache mounts.
pub(super) fn build(
    place: &MountPlace,
    sharing: impl FnOnce(&[CacheRecord]) -> Sharing,
    files: &[(String, PathBuf)],
    job: impl FnOnce(&Path) -> Job,
    imports: bool,
    output: Option<&Path>,
    telling: &Telling<'_>,
) -> Result<Vec<u8>> {
    let MountPlace { builder, mounts } = place;
    let name = unique_name();
    let binary = helper::binary(&builder.architecture)?;
    let job = job(Path::new(&format!("/{name}")));
    let beside = if builder.forgets_when_pruned && !imports { Beside::new(&binary, files) } else { None };
    let namespace = mounts.first().map(|mount| mount.namespace.as_str()).unwrap_or_default();
    let records = builder.records()?;
    let sharing = sharing(&records);
    let before = records.into_iter().map(|record| record.id).collect();
    let mut cleaner = Cleaner { builder, name: &name, before, imports, leaves: beside.is_some() && output.is_none() };
    let size = |path: &Path| path.metadata().map_or(0, |meta| meta.len());
    let of = files.iter().map(|(_, path)| size(path)).sum();
    let sent = |bytes| {
        if imports {
            telling.tell(Told::Travelled { bytes, of })
        }
    };
    let send = |mut pipe: PipeWriter| -> io::Result<()> {
        if let Some(beside) = &beside {
            return pipe.write_all(beside.dockerfile(mounts, sharing, &name, files, &job)?.as_bytes());
        }
        let mut context = tar::Builder::new(io::BufWriter::with_capacity(1 << 17, pipe));
        add_files(&mut context, files, &sent)?;
        add_helper(&mut context, &binary, &dockerfile(mounts, sharing, &name, imports), &name, &job)?;
        context.finish()
    };
    let made = AtomicU64::new(0);
    let came = AtomicU64::new(0);
    let received = |bytes| {
        came.store(bytes, Relaxed);
        telling.tell(Told::Travelled { bytes, of: made.load(Relaxed) });
    };
    let mut answer = None;
    let context = beside.as_ref().map_or(vec!["-".into()], Beside::words);
    let built = builder.carrier_build(send, &context, namespace, &mut |line| telling.hear(line, &made), |stream| {
        answer = Some(receive(stream, output, &received));
    });
    cleaner.leaves |= beside.is_some() && built.is_ok() && came.into_inner() < MOST_LEFT;
    match (built, answer) {
        // What could not be written here is why the build ended.
        (Err(_), Some(Err(error))) if is_of_system(&error) => Err(error),
        (Err(error), _) => Err(error.into()),
        (Ok(()), answer) => answer.context("the helper gave no answer")?,
    }
}

/// Tells whether the system refused something, as a full disk does.
fn is_of_system(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error().is_some())
}

impl Telling<'_> {
    /// Takes from a line that a build tells what the job in it says of progress.
    pub(super) fn hear(&self, line: &str, made: &AtomicU64) {
        match line.find("{\"").and_then(|at| serde_json::from_str(&line[at..]).ok()) {
            Some(Line::Progress { files, bytes }) => self.tell(Told::Done { files, bytes }),
            Some(Line::Made { bytes }) => made.store(bytes, Relaxed),
            _ => {}
        }
    }
}

/// Reads the output of a helper build: the answer, which is returned, and blobs, which are written to `out`.
///
/// # Errors
/// When it is cut off, holds anything else, or a blob cannot be written.
pub(super) fn receive(stream: impl Read, out: Option<&Path>, tell: &(dyn Fn(u64) + Sync)) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 17, stream));
    let (mut answer, so_far) = (None, AtomicU64::new(0));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        match (member_name(&entry)?, out) {
            (None, _) => {
                let mut text = Vec::new();
                entry.read_to_end(&mut text)?;
                answer = Some(text);
            }
            (Some(blob), Some(out)) => {
                let mut file = File::create(out.join(blob.file()))?;
                io::copy(&mut Counted { inner: entry, so_far: &so_far, tell }, &mut file)?;
            }
            (Some(blob), None) => bail!("the helper build left {}, which nobody asked for", blob.digest),
        }
    }
    // What follows the end of an archive is padding, for which the other side would wait.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    answer.context("the helper build left no answer")
}

/// Returns which blob a file in the output of a helper build is; None for the answer.
pub(super) fn member_name(entry: &tar::Entry<'_, impl Read>) -> Result<Option<Blob>> {
    let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_string();
    let blob = Blob { digest: format!("sha256:{name}"), size: entry.size() };
    (name != "answer").then(|| blob.check().map(|()| blob)).transpose()
}

/// Adds a file to a build context.
pub(super) fn add(
    context: &mut tar::Builder<impl Write>,
    name: &str,
    mode: u32,
    size: u64,
    data: &mut dyn Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(mode);
    context.append_data(&mut header, name, data)
}

/// Adds files to an archive and tells how many of their bytes are in it.
fn add_files(
    archive: &mut tar::Builder<impl Write>,
    files: &[(String, PathBuf)],
    tell: &(dyn Fn(u64) + Sync),
) -> io::Result<()> {
    let so_far = AtomicU64::new(0);
    for (name, path) in files {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        add(archive, name, 0o644, size, &mut Counted { inner: file, so_far: &so_far, tell })?;
    }
    Ok(())
}

/// Adds the Dockerfile, the job and the program of a helper build to its context.
pub(super) fn add_helper(
    context: &mut tar::Builder<impl Write>,
    binary: &Path,
    dockerfile: &str,
    name: &str,
    job: &Job,
) -> io::Result<()> {
    let job = serde_json::to_vec(job)?;
    add(context, "Dockerfile", 0o644, dockerfile.len() as u64, &mut dockerfile.as_bytes())?;
    add(context, "job", 0o644, job.len() as u64, &mut &job[..])?;
    let mut file = File::open(binary)?;
    add(context, name, 0o755, file.metadata()?.len(), &mut file)
}

/// Every word of this Dockerfile is ours but ids, targets and options, and those are known to be plain. The context is
/// mounted and not copied: its blobs would be written once more, and each step costs the builder time. `out/answer` is made
/// by the build, so that a build that did nothing has none.
///
/// A mount with options lies on a directory that BuildKit makes for them, and is found only as long as that is. BuildKit
/// 0.13 (Engine 26.1) forgets the directory together with the last step that used it (`Exists` of its bboltcachestorage
/// looks for steps, not for results), so an import ends with a step, of 4 kB, that is not pruned.
pub(super) fn dockerfile(mounts: &[Mount], sharing: Sharing, name: &str, imports: bool) -> String {
    let flags = flags(mounts, sharing);
    let has_options = mounts.iter().any(|mount| !mount.options.is_empty());
    let last = match imports && has_options {
        true => {
            format!("RUN {flags}--mount=type=bind,source={name},target={LAST_STEP} [\"{LAST_STEP}\", \"--version\"]\n")
        }
        false => String::new(),
    };
    stages(name, "", &format!("{flags}--mount=type=bind,target=/{name}/in "), &last)
}

/// Returns the Dockerfile of a helper build: what of its files is copied, the flags of its step, which mount the others, and
/// what comes last.
fn stages(name: &str, copies: &str, flags: &str, last: &str) -> String {
    format!(
        "FROM scratch AS {name}\n{copies}WORKDIR /{name}/out\n\
         RUN {flags}[\"/{name}/in/{name}\", \"{command}\", \"/{name}/in/job\", \"/{name}/out/answer\"]\n\
         FROM scratch\n{last}COPY --from={name} /{name}/out/ /\n",
        command = inside::COMMAND
    )
}

/// Returns the flags by which a step has these mounts, and a space behind each.
fn flags(mounts: &[Mount], sharing: Sharing) -> String {
    let sharing = match sharing {
        Sharing::Shared => "shared",
        Sharing::Locked => "locked",
    };
    let mount = |(at, mount): (usize, &Mount)| {
        let Mount { id, options, .. } = mount;
        let options = if options.is_empty() { String::new() } else { format!(",{options}") };
        format!("--mount=type=cache,target={},\"id={id}\",sharing={sharing}{options} ", mount.root(at).display())
    };
    mounts.iter().enumerate().map(mount).collect()
}

/// Directories that a helper build takes its files from where they are, so that what it leaves is small and may stay:
/// BuildKit keeps one copy of what it has of a directory, and is sent only what changed.
struct Beside {
    /// The directory of the program, and its name there.
    program: (PathBuf, String),
    /// Where the files beside it are, if there are any.
    files: Option<PathBuf>,
}

impl Beside {
    /// Returns None if the files are not in one directory, or a name cannot be a word of a Dockerfile.
    fn new(binary: &Path, files: &[(String, PathBuf)]) -> Option<Beside> {
        let split = |path: &Path| {
            let name = path.file_name()?.to_str()?.to_owned();
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
            plain.then(|| Some((path.parent()?.to_owned(), name)))?
        };
        let mut dirs = BTreeSet::new();
        for (_, path) in files {
            dirs.insert(split(&std::path::absolute(path).ok()?)?.0);
        }
        let program = split(&binary.canonicalize().ok()?)?;
        (dirs.len() < 2).then(|| Beside { program, files: dirs.pop_first() })
    }

    /// Returns the words that name the context of the build.
    fn words(&self) -> Vec<OsString> {
        let named = |name: &str, dir: &Path| {
            let mut word = OsString::from(format!("--build-context={name}="));
            word.push(dir);
            word
        };
        let files = self.files.as_ref().map(|dir| named(FILES, dir));
        // The context itself has a name that those of others have, too: nothing is taken from it.
        let program = [named(PROGRAM, &self.program.0), "--file=-".into(), self.program.0.clone().into()];
        files.into_iter().chain(program).collect()
    }

    /// The same as [`dockerfile`] for a job that has this and its files bound in.
    fn dockerfile(
        &self,
        mounts: &[Mount],
        sharing: Sharing,
        name: &str,
        files: &[(String, PathBuf)],
        job: &Job,
    ) -> io::Result<String> {
        // In lines, as a Dockerfile has none of over 64 KiB.
        let job = serde_json::to_string_pretty(job)?;
        let bind = |(as_file, path): &(String, PathBuf)| {
            let source = path.file_name().unwrap_or_default().display();
            format!("--mount=type=bind,from={FILES},source={source},target=/{name}/in/{as_file} ")
        };
        let copies = format!("COPY <<'JOB' /{name}/in/job\n{job}\nJOB\n");
        let mut flags = flags(mounts, sharing);
        flags.extend(files.iter().map(bind));
        flags
            .push_str(&format!("--mount=type=bind,from={PROGRAM},source={},target=/{name}/in/{name} ", self.program.1));
        Ok(stages(name, &copies, &flags, ""))
    }
}

/// What the contexts of a helper build are called; what BuildKit keeps of them bears the same names.
const PROGRAM: &str = "docker-cache-program";
const FILES: &str = "docker-cache-files";

/// What the last step of an import runs: the program, by a name that no helper has.
const LAST_STEP: &str = "/docker-cache";

/// How many bytes the output of a helper build may have whose steps are left where their builder is better not pruned; they
/// hold it twice.
const MOST_LEFT: u64 = 32_000_000;

/// Prunes what a helper build leaves: its steps by its name, and the context that it alone had; and what a killed run
/// left.
pub(super) struct Cleaner<'a> {
    pub(super) builder: &'a BuilderRef,
    pub(super) name: &'a str,
    pub(super) before: HashSet<String>,
    /// Mounts that the build itself made are then what it was for.
    pub(super) imports: bool,
    /// Its steps are small and may stay, since their builder is better not pruned.
    pub(super) leaves: bool,
}

impl Drop for Cleaner<'_> {
    fn drop(&mut self) {
        prune_all(self.builder, |records| self.chosen(records));
    }
}

impl Cleaner<'_> {
    fn chosen(&self, records: &[CacheRecord]) -> Vec<String> {
        let is_own = |record: &&CacheRecord| match record.mount() {
            _ if self.before.contains(&record.id) => false,
            Some(_) => !self.imports && record.description.contains(self.name),
            // An export that asks for a variant that is not there makes a directory for it.
            None if record.description.ends_with("cache mount permissions") => !self.imports,
            // All that Engine 20.10 tells of a COPY. Should it be of a build that began meanwhile, that one copies again.
            None if record.description == "fileop target" => true,
            None => record.description.contains(self.name) || is_context(record),
        };
        let own = records.iter().filter(is_own);
        // A mount that the build itself made would be one more of its id.
        if self.leaves && own.clone().all(|record| record.mount().is_none()) {
            return Vec::new();
        }
        let own = own.map(|record| record.id.clone());
        own.chain(left(records)).collect::<BTreeSet<String>>().into_iter().collect()
    }
}

/// Returns true for the steps by which BuildKit takes a context from standard input.
pub(super) fn is_context(record: &CacheRecord) -> bool {
    record.description.contains("buildkit-session") || record.description == "copy /context /"
}

/// Returns true for what a builder keeps of the directories that helper builds took their files from: only these read it.
pub fn is_of_helpers(record: &CacheRecord) -> bool {
    record.description.strip_prefix("local source for ").is_some_and(|name| [PROGRAM, FILES].contains(&name))
}

/// Returns the records that runs of this program surely left in a builder: those that bear the name of a helper that is
/// gone, and what no other program reads.
pub(super) fn left(records: &[CacheRecord]) -> Vec<String> {
    // A mount that a killed run made may hold what it had imported.
    let is_left = |record: &&CacheRecord| match record.mount() {
        Some(_) => false,
        None => abandoned(&record.description).is_some() || (is_of_helpers(record) && !record.in_use),
    };
    records.iter().filter(is_left).map(|record| record.id.clone()).collect()
}

/// Returns the contexts that came to a build by its standard input and that nothing is built on: the session is over with
/// its build, and no other can ask for them. Killed runs leave such, and so do a user's own builds: no name tells.
pub fn unused_contexts(records: &[CacheRecord]) -> Vec<CacheRecord> {
    // One that came from an address is unpacked by the same step, and could be asked for again.
    let from_address = records.iter().any(|record| record.description.starts_with("http url ") && !is_context(record));
    let is_unused = |record: &&CacheRecord| {
        is_context(record)
            && !record.in_use
            && (!from_address || record.description.contains("buildkit-session"))
            && !records.iter().any(|child| child.parents.contains(&record.id))
    };
    records.iter().filter(is_unused).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_missing_is_an_error_and_not_nothing_found() {
        let read = |text: &str| lines(text.as_bytes(), &mut |_| ());
        read("{\"progress\":{\"files\":1,\"bytes\":1}}\n{\"measured\":[]}\n").unwrap();
        for lost in ["", "{\"progress\":{\"files\":1,\"bytes\":1}}\n"] {
            read(lost).unwrap_err();
        }
    }

    #[test]
    fn files_are_put_beside_by_links_and_over_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::write(&from, "new").unwrap();
        fs::write(dir.path().join("there"), "old").unwrap();
        let put = |name: &str| put(&[(name.into(), from.clone())], dir.path());
        put("beside").unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&from.metadata().unwrap()), 2);
        assert_eq!(put("there").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(dir.path().join("there")).unwrap(), "old");
    }
}
