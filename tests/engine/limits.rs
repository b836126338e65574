//! Tests of `export` and `import` where the disk ends or may not be written, and of what they need not touch.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::for_each_generation;
use crate::support::plugin::VolumePlugin;
use crate::support::process::Run;
use crate::support::world::{Tree, assert_same, noise, write_files};
use crate::support::{Engine, Generation};

/// A file system of its own in memory, gone with the value.
struct Mounted(PathBuf);

impl Mounted {
    fn new(path: PathBuf, options: &str) -> Mounted {
        fs::create_dir_all(&path).unwrap();
        let words = ["-t", "tmpfs", "-o", options, "tmpfs"];
        Run::of(std::process::Command::new("mount").args(words).arg(&path)).ok();
        Mounted(path)
    }

    fn remount(&self, options: &str) {
        Run::of(std::process::Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0)).ok();
    }

    /// Makes it a volume.
    fn volume(&self, engine: &Engine, name: &str) {
        let device = format!("device={}", self.0.display());
        engine.docker(&["volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", &device, name]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Run::of(std::process::Command::new("umount").arg("--lazy").arg(&self.0));
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_full_volume_keeps_what_it_had() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("pip/a", "new")]);
    fs::write(root.join("pip/large"), noise(1, 6 << 20)).unwrap();
    let bundle = text(&engine.folder().join("bundle"));
    engine.cache(&["export", "--dest", &bundle]).ok();
    let small = Mounted::new(engine.folder().join("small"), "size=2m");
    write_files(&small.0, &[("pip/a", "old"), ("pip/b", "mine")]);
    small.volume(&engine, "small-cache");
    let before = Tree::read(&small.0).timeless();
    for replace in [&[][..], &["--replace"]] {
        let import = [&["import", "--src", &bundle, "--to-volume", "small-cache"], replace].concat();
        let run = engine.cache(&import);
        assert!(run.code == 1 && run.stderr.contains("No space left on device"), "{run}");
        assert_same(&before, &Tree::read(&small.0).timeless());
    }
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]).stdout, "");
}

#[test]
fn what_may_only_be_read_is_told_and_stays() {
    let engine = Engine::start(Generation::V28);
    engine.volume("project-cache", &[("pip/a", "new")]);
    let place = Mounted::new(engine.folder().join("place"), "size=20m");
    let bundle = text(&place.0.join("bundle"));
    engine.cache(&["export", "--dest", &bundle]).ok();
    place.remount("ro");
    let run = engine.cache(&["export", "--dest", &bundle]);
    assert!(run.code == 1 && run.stderr.contains("Read-only file system"), "{run}");
    // It can still be imported from, and proved.
    engine.cache(&["verify", &bundle]).ok();
    engine.cache(&["import", "--src", &bundle]).ok();

    let volume = Mounted::new(engine.folder().join("volume"), "size=20m");
    write_files(&volume.0, &[("pip/b", "mine")]);
    volume.volume(&engine, "other-cache");
    volume.remount("ro");
    let before = Tree::read(&volume.0);
    let run = engine.cache(&["import", "--src", &bundle, "--to-volume", "other-cache"]);
    assert!(run.code == 1 && run.stderr.contains("Read-only file system"), "{run}");
    assert_same(&before, &Tree::read(&volume.0));
}

/// Returns the files that were read since their access times were set, on a file system that keeps those strictly.
fn read_since(files: &[PathBuf], before: &[std::time::SystemTime]) -> Vec<PathBuf> {
    let read = |(file, before): (&PathBuf, &std::time::SystemTime)| {
        let accessed = fs::metadata(file).unwrap().accessed().unwrap();
        (accessed != *before).then(|| file.clone())
    };
    files.iter().zip(before).filter_map(read).collect()
}

fn accessed(files: &[PathBuf]) -> Vec<std::time::SystemTime> {
    files.iter().map(|file| fs::metadata(file).unwrap().accessed().unwrap()).collect()
}

#[test]
fn a_second_export_reads_the_changed_file_alone_and_no_archive() {
    let engine = Engine::start(Generation::V28);
    // Reached by path: a helper container has the volume read-only, where no access times are kept.
    let volume = Mounted::new(engine.volume("pip-cache", &[]), "size=64m,strictatime");
    let strict = Mounted::new(engine.folder().join("strict"), "size=64m,strictatime");
    let (volume, bundle) = (&volume.0, strict.0.join("bundle"));
    let mut files: Vec<PathBuf> = (0..300).map(|at| volume.join(format!("pip/{}/{at}", at % 7))).collect();
    for (at, file) in files.iter().enumerate() {
        write_files(volume, &[(&text(file.strip_prefix(volume).unwrap()), &format!("{at}").repeat(2000))]);
        std::os::unix::fs::chown(file, Some(1000), None).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(60));
    let export = ["export", "--dest", &text(&bundle), "--volume", "pip-cache", "-q"];
    engine.cache(&export).ok();
    let changed = volume.join("pip/3/150");
    fs::write(&changed, "changed").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(60));
    let config: serde_json::Value = config(&bundle);
    let archives = config["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].as_str().unwrap());
    let archives = archives.map(|digest| bundle.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
    let archives: Vec<PathBuf> = archives.collect();
    files.extend(archives.iter().cloned());
    let (before, written) =
        (accessed(&files), archives.iter().map(|file| fs::metadata(file).unwrap().modified().unwrap()));
    let written: Vec<_> = written.collect();
    // Who is not the owner of a file, and may not act as one, leaves a trace where it reads.
    let mut without = engine.command("/usr/bin/setpriv");
    without.args(["--bounding-set=-fowner", "--"]).arg(engine.docker_program()).arg("cache");
    Run::of(without.args(export)).ok();
    assert_eq!(read_since(&files, &before), [changed]);
    let still: Vec<_> = archives.iter().map(|file| fs::metadata(file).unwrap().modified().unwrap()).collect();
    assert_eq!(written, still);
    engine.cache(&["verify", &text(&bundle)]).ok();
}

/// Returns what a bundle of one volume knows of it.
fn config(bundle: &Path) -> serde_json::Value {
    let json = |digest: &serde_json::Value| -> serde_json::Value {
        let name = digest.as_str().unwrap().trim_start_matches("sha256:").to_string();
        serde_json::from_slice(&fs::read(bundle.join("blobs/sha256").join(name)).unwrap()).unwrap()
    };
    let index: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("index.json")).unwrap()).unwrap();
    json(&json(&index["manifests"][0]["digest"])["config"]["digest"])
}

// Asks where a driver of volumes takes every question and answers none: the engine itself waits 60 s for it each time,
// which is longer than a question to docker may take.
for_each_generation!(a_driver_that_hangs_is_named_and_the_rest_is_read, [v20, v28_containerd], |generation| {
    let engine = &Engine::with_plugins(generation);
    let plugin = VolumePlugin::start(engine, "lost-cache");
    let root = engine.volume("project-cache", &[("pip/wheel", "1"), ("pip/.netrc", "secret")]);
    let bundle = text(&engine.folder().join("bundle"));
    plugin.hang();

    let doctor = |check: &str| engine.cache(&["doctor", "--check", check, "--format", "json"]);
    let answer: Value = serde_json::from_str(&doctor("volume-driver-silent,secret-in-cache").stdout).unwrap();
    let findings: Vec<&str> =
        answer["findings"].as_array().unwrap().iter().map(|finding| finding["message"].as_str().unwrap()).collect();
    let told = |words: &[&str]| findings.iter().any(|message| words.iter().all(|word| message.contains(word)));
    assert!(findings.len() == 2 && told(&["driver fake"]) && told(&["project-cache", "/pip/.netrc"]), "{answer}");
    let alone = doctor("volume-owner").ok();
    assert!(alone.stderr.contains("volumes of the driver fake are left out"), "{alone}");
    let unknown = engine.cache(&["doctor", "--check", "secret-in-cache", "--volume", "lost-cache"]);
    assert!(unknown.code == 1 && unknown.stdout.contains("of the driver fake, which does not answer"), "{unknown}");

    let mut complete = engine.command(engine.config().join("cli-plugins/docker-cache"));
    complete.env("DOCKER_CACHE_TIMEOUT", "40s").args(["__completeNoDesc", "size", "--volume", ""]);
    assert_eq!(Run::of(&mut complete).ok().stdout, "project-cache\n:4\n");

    let exported = engine.cache(&["export", "--volume", "project-cache", "--dest", &bundle]).ok();
    assert!(exported.stderr.contains("volumes of the driver fake are left out"), "{exported}");
    fs::remove_file(root.join("pip/wheel")).unwrap();
    engine.cache(&["import", "--src", &bundle]).ok();
    assert_eq!(fs::read_to_string(root.join("pip/wheel")).unwrap(), "1");
    engine.docker(&["volume", "rm", "project-cache"]);
    engine.cache(&["import", "--src", &bundle]).ok();
    assert_eq!(fs::read_to_string(engine.mountpoint("project-cache").join("pip/wheel")).unwrap(), "1");
});

#[test]
fn what_is_mounted_in_a_volume_is_neither_taken_along_nor_moved_away() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("pip/a", "1"), ("pip/mnt/none", "1")]);
    let bundle = text(&engine.folder().join("bundle"));
    engine.cache(&["export", "--dest", &bundle]).ok();
    let outside = engine.folder().join("tmp/outside");
    write_files(&outside, &[("photo", "precious")]);
    let mounted = root.join("pip/mnt");
    let mount = |words: &[&Path]| Run::of(Command::new(words[0]).args(&words[1..])).ok();
    mount(&[Path::new("mount"), Path::new("--bind"), &outside, &mounted]);
    let replaced = engine.cache(&["import", "--src", &bundle, "--replace"]);
    let with = text(&engine.folder().join("with"));
    let exported = engine.cache(&["export", "--dest", &with]);
    mount(&[Path::new("umount"), &mounted]);
    assert!(replaced.code == 1 && replaced.stderr.contains("pip/mnt"), "{replaced}");
    assert!(outside.join("photo").exists() && root.join("pip/a").exists(), "{replaced}");
    assert!(exported.stderr.contains("something else is mounted there"), "{exported}");
    engine.cache(&["import", "--src", &with, "--to-volume", "other-cache"]).ok();
    assert!(!engine.mountpoint("other-cache").join("pip/mnt/photo").exists());
}

#[test]
fn a_tree_as_deep_as_paths_can_be_is_carried() {
    let engine = Engine::start(Generation::V28);
    let root = engine.volume("project-cache", &[("pip/a", "1")]);
    let deep = root.join("pip").join("d/".repeat(1_900));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f"), "1").unwrap();
    let bundle = text(&engine.folder().join("bundle"));
    engine.cache(&["export", "--dest", &bundle]).ok();
    engine.cache(&["import", "--src", &bundle, "--to-volume", "other-cache"]).ok();
    engine.cache(&["import", "--src", &bundle, "--to-volume", "other-cache", "--replace"]).ok();
    let other = engine.mountpoint("other-cache").join("pip").join("d/".repeat(1_900)).join("f");
    assert_eq!(fs::read_to_string(other).unwrap(), "1");
    assert!(!engine.mountpoint("other-cache").join(".docker-cache-import").exists());
}
