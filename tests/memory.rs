//! What export, import and verify need in memory does not grow with the cache. No engine: the program that works inside
//! one is run as docker would run it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use docker_cache::bundle::{TREE_VERSION, TreeConfig, Writer};
use docker_cache::inside::archive::{self, Kind, Member};
use docker_cache::inside::pack::{Layer, Pack, Packed, Previous, Tree};
use docker_cache::inside::rules::Rule;
use docker_cache::inside::table::{self, Row};
use docker_cache::inside::unpack::{Target, Unpack};
use docker_cache::inside::{Job, Line};
use docker_cache::model::Kind as CacheKind;

const PROGRAM: &str = env!("CARGO_BIN_EXE_docker-cache");

/// Waits for a process that must succeed and returns the most memory that it had, in MiB.
fn peak(mut child: Child) -> u64 {
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(peak);
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            return peak / 1024;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a job as in a helper container, and returns its answer and the most memory that it had, in MiB.
fn inside(job: &Job) -> (Line, u64) {
    let answer = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(PROGRAM);
    let mut child = command.arg("inside").stdin(Stdio::piped()).stdout(answer.reopen().unwrap()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", serde_json::to_string(job).unwrap()).unwrap();
    let peak = peak(child);
    let text = fs::read_to_string(answer.path()).unwrap();
    (serde_json::from_str(text.lines().last().unwrap()).unwrap(), peak)
}

fn pack(root: &Path, out: &Path, previous: Option<Previous>) -> (Packed, u64) {
    let rules = vec![Rule { path: String::new(), take: true }];
    let tree = Tree { root: root.into(), base: "/cache".into(), rules, secrets: Vec::new(), previous };
    match inside(&Job::Pack(Pack { out: out.into(), trees: vec![tree] })) {
        (Line::Packed(mut packed), peak) => (packed.remove(0), peak),
        (other, _) => panic!("{other:?}"),
    }
}

fn unpack(packed: Packed, blobs: &Path, root: &Path) -> u64 {
    let target = Target {
        root: root.into(),
        base: "/cache".into(),
        table: packed.table,
        layers: packed.layers,
        rules: vec![Rule { path: String::new(), take: true }],
        from: String::new(),
        to: String::new(),
        replace: false,
        owner: None,
        secrets: Vec::new(),
    };
    inside(&Job::Unpack(Unpack { blobs: blobs.into(), trees: vec![target] })).1
}

/// A directory in memory, as far as this machine has that.
fn folder() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

#[test]
fn packing_and_unpacking_need_no_more_for_many_directories_than_for_few() {
    // Both keep all workers busy.
    let peaks = [40_000, 160_000].map(|count| {
        let folder = folder();
        let [tree, out, back] = ["tree", "out", "back"].map(|name| folder.path().join(name));
        [&tree, &out, &back].into_iter().for_each(|path| fs::create_dir(path).unwrap());
        for at in 0..count {
            fs::create_dir_all(tree.join(format!("a-directory-of-many-{}/with-a-long-name-{at:08}", at / 500)))
                .unwrap();
        }
        // Past the moment in which times cannot tell a change.
        thread::sleep(Duration::from_millis(60));
        let (packed, first) = pack(&tree, &out, None);
        let previous = Previous { table: out.join(packed.table.file()), layers: packed.layers.clone() };
        let (again, second) = pack(&tree, &out, Some(previous));
        assert_eq!(again.layers, packed.layers);
        (first, second, unpack(packed, &out, &back))
    });
    let [few, many] = peaks;
    let grown = |few: u64, many: u64| many.saturating_sub(few);
    // How many archives are in work at once varies by some MiB; a list of 120,000 more directories would be 40.
    assert!(grown(few.0, many.0) < 12 && grown(few.1, many.1) < 12 && grown(few.2, many.2) < 12, "{peaks:?}");
}

#[test]
fn a_sparse_file_of_gigabytes_is_packed_in_little_memory() {
    let folder = folder();
    let [tree, out, back] = ["tree", "out", "back"].map(|name| folder.path().join(name));
    [&tree, &out, &back].into_iter().for_each(|path| fs::create_dir(path).unwrap());
    let file = fs::File::create(tree.join("sparse")).unwrap();
    file.set_len(5 << 30).unwrap();
    for at in 0..500 {
        std::os::unix::fs::FileExt::write_at(&file, b"some bytes", at * (10 << 20)).unwrap();
    }
    let (packed, first) = pack(&tree, &out, None);
    let second = unpack(packed, &out, &back);
    assert!(first < 48 && second < 48, "{first} {second}");
    let copy = fs::metadata(back.join("sparse")).unwrap();
    assert_eq!(copy.len(), 5 << 30);
    assert!(std::os::unix::fs::MetadataExt::blocks(&copy) * 512 < 64 << 20);
}

#[test]
fn verifying_many_files_needs_little_memory() {
    const IN_ARCHIVE: u32 = 4096;
    let folder = folder();
    let mut writer = Writer::open(folder.path(), || ()).unwrap();
    let mut rows = table::Writer::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    let mut row = |layer, kind, path: &[u8]| {
        rows.write(&Row { layer, kind, size: 0, print: 1, path: path.to_vec() }).unwrap();
    };
    let mut layers = Vec::new();
    let layer_count = 250_000 / IN_ARCHIVE;
    for layer in 0..layer_count {
        let mut members = zstd::Encoder::new(Vec::new(), 1).unwrap();
        let mut raw = 1024;
        let mut member = |kind, path: &[u8]| {
            let member = Member {
                path: path.into(),
                kind,
                mode: 0o644,
                uid: 0,
                gid: 0,
                modified: (1, 0),
                size: 0,
                link: Vec::new(),
                attributes: Vec::new(),
                extents: None,
            };
            archive::write(&mut members, &member, std::io::empty()).unwrap();
            row(layer, kind, path);
            raw += 512;
        };
        if layer == 0 {
            member(Kind::Dir, b"");
        }
        let dir = format!("{layer:08}");
        member(Kind::Dir, dir.as_bytes());
        for file in 2..IN_ARCHIVE {
            member(Kind::File, format!("{dir}/a-file-with-a-name-of-usual-length-{file:08}.whl").as_bytes());
        }
        archive::finish(&mut members).unwrap();
        let blob = writer.write(&members.finish().unwrap()).unwrap();
        layers.push(Layer { blob, raw, entries: IN_ARCHIVE.into(), cost: 0, usable: true });
    }
    let table = writer.write(&rows.finish().finish().unwrap()).unwrap();
    let config = TreeConfig {
        version: TREE_VERSION,
        kind: CacheKind::Volume,
        name: "v".into(),
        base: "/cache".into(),
        files: u64::from(layer_count * (IN_ARCHIVE - 2)),
        table,
        layers,
        ..TreeConfig::default()
    };
    writer.add(&config).unwrap();
    writer.commit().unwrap();
    let mut verify = Command::new(PROGRAM);
    verify.args(["cache", "verify", "-q"]).arg(folder.path());
    let peak = peak(verify.stdout(Stdio::null()).spawn().unwrap());
    // The rows of all would be 40 MiB.
    assert!(peak < 48, "{peak} MiB");
}
