//! Proves a bundle: every reference, every digest, every archive's members. Reads all of it, writes nothing.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::ops::Range;

use anyhow::{Context, Error, Result, bail, ensure};
use serde::Serialize;

use super::{Content, Descriptor, Entry, Index, LATEST, Layout, OtherVersion};
use crate::cancel;
use crate::inside::archive::{self, Kind};
use crate::inside::pack::{Blob, Layer, digest};
use crate::inside::table::{self, MAX_LAYERS, MAX_ROWS, Row, Table, decoder};
use crate::inside::unpack::{MAX_ENTRIES, check};
use crate::parallel;

/// What was found of one entry of the index.
#[derive(Debug, Serialize)]
pub struct Verified {
    pub kind: String,
    pub name: String,
    pub language: Option<String>,
    pub digest: String,
    pub bytes: u64,
    pub files: Option<u64>,
    /// Why it cannot be used; None if it can.
    pub broken: Option<String>,
    /// It is not damaged, but of another version.
    #[serde(skip)]
    pub other: Option<OtherVersion>,
    #[serde(skip)]
    pub descriptor: Descriptor,
    #[serde(skip)]
    pub entry: Option<Entry>,
}

/// Proves every entry of a bundle.
///
/// # Errors
/// When the index itself cannot be read, or makes no sense, or the user cancels.
pub fn all(layout: &Layout) -> Result<Vec<Verified>> {
    prove(layout, |_| true, true)
}

/// Proves every digest and every table of what `wanted` wants, but not the members of archives: unpacking checks those, before it
/// moves anything to its place.
///
/// # Errors
/// See [`all`].
pub fn digests(layout: &Layout, wanted: impl Fn(&Descriptor) -> bool) -> Result<Vec<Verified>> {
    prove(layout, wanted, false)
}

fn prove(layout: &Layout, wanted: impl Fn(&Descriptor) -> bool, deep: bool) -> Result<Vec<Verified>> {
    let index = layout.index()?;
    ensure_few(&index, &"the index")?;
    let mut names = HashSet::new();
    for descriptor in index.manifests.iter().filter(|descriptor| descriptor.is_tree()) {
        if !names.insert(descriptor.ref_name()) {
            bail!("the index lists {:?} twice", descriptor.ref_name());
        }
    }
    // The last layers have a second name.
    let is_second = |entry: &Descriptor| {
        let mut others = index.manifests.iter().filter(|other| other.ref_name() != LATEST);
        entry.ref_name() == LATEST && others.any(|other| other.digest == entry.digest)
    };
    let entries: Vec<&Descriptor> =
        index.manifests.iter().filter(|descriptor| wanted(descriptor) && !is_second(descriptor)).collect();
    // Two at a time, so that one goes on while the other is at its table or its last archive.
    let mut proved = parallel::map(2, &entries, |entry| {
        let mut verified = Verified::new(entry);
        if entry.is_tree() {
            let done = tree(layout, entry, deep, &mut verified);
            verified.tell(done);
        }
        verified
    });
    let mut known = HashMap::new();
    for verified in proved.iter_mut().filter(|verified| !verified.descriptor.is_tree()) {
        let done = foreign(layout, &verified.descriptor, 0, &mut known, &mut 0);
        let done = done.map(|bytes| verified.bytes = bytes);
        verified.tell(done);
    }
    // None is broken because the user does not wait for it.
    cancel::check()?;
    Ok(proved)
}

/// Manifests that an index may list, and an entry may lead to.
pub(super) const MAX_MANIFESTS: usize = 10_000;

/// Makes sure, before an index is read or written, that it does not list more than it may.
///
/// # Errors
/// When it does; `what` is the bundle's name.
pub(super) fn ensure_few(index: &Index, what: &dyn Display) -> Result<()> {
    let count = index.manifests.len();
    ensure!(count <= MAX_MANIFESTS, "{what} lists {count} entries, and may have {MAX_MANIFESTS}");
    Ok(())
}

/// What was proved, as what, and its bytes with those of all that it refers to, or what is wrong with it.
type Known = HashMap<(Blob, Content), Result<u64, String>>;

impl Verified {
    fn new(descriptor: &Descriptor) -> Verified {
        let told = descriptor.is_tree().then(|| descriptor.told()).filter(|told| !told.name.is_empty());
        Verified {
            kind: told.as_ref().map_or("layer", |told| told.kind.as_str()).into(),
            name: told.as_ref().map_or(descriptor.ref_name(), |told| &told.name).into(),
            language: told.as_ref().and_then(|told| told.language.clone()),
            digest: descriptor.digest.clone(),
            bytes: descriptor.size,
            files: None,
            broken: None,
            other: None,
            descriptor: descriptor.clone(),
            entry: None,
        }
    }

    fn tell(&mut self, done: Result<()>) {
        let error = done.err();
        self.other = error.as_ref().and_then(|error| error.downcast_ref().copied());
        self.broken = error.map(|error| format!("{error:#}"));
    }
}

/// Proves what buildx or another tool has written, as far as descriptors go, each blob once.
fn foreign(layout: &Layout, descriptor: &Descriptor, depth: u32, known: &mut Known, count: &mut usize) -> Result<u64> {
    cancel::check()?;
    *count += 1;
    ensure!(depth <= 4, "it is nested too deep");
    ensure!(*count <= MAX_MANIFESTS * 10, "it refers to too many blobs");
    let (blob, content) = (descriptor.blob()?, descriptor.content());
    if let Some(found) = known.get(&(blob.clone(), content)) {
        return found.clone().map_err(Error::msg);
    }
    let mut prove = || {
        whole(layout, &blob).with_context(|| blob.digest.clone())?;
        layout.listed(&blob, content)?.iter().try_fold(blob.size, |bytes, inner| {
            Ok(bytes.saturating_add(foreign(layout, inner, depth + 1, known, count)?))
        })
    };
    let found: Result<u64> = prove();
    known.insert((blob, content), found.as_ref().copied().map_err(|error| format!("{error:#}")));
    found
}

/// Checks the size and the digest of a blob, which the caller names.
pub(super) fn whole(layout: &Layout, blob: &Blob) -> Result<()> {
    let file = File::open(layout.path(blob)).context("it is missing")?;
    let size = file.metadata()?.len();
    ensure!(size == blob.size, "it has {size} bytes instead of {}", blob.size);
    let found = digest(&mut cancel::Reader(file))?.digest;
    ensure!(found == blob.digest, "it is damaged: its content is not what its name says");
    Ok(())
}

fn tree(layout: &Layout, descriptor: &Descriptor, deep: bool, verified: &mut Verified) -> Result<()> {
    cancel::check()?;
    let entry = layout.entry(descriptor)?;
    let config = &entry.config;
    verified.kind = config.kind.as_str().into();
    verified.name = config.name.clone();
    verified.language = config.language.clone();
    verified.files = Some(config.files);
    verified.bytes = config.bytes;
    whole(layout, &config.table).with_context(|| config.table.digest.clone())?;
    if deep {
        for part in table::parts(&config.layers) {
            let rows = rows(layout, config, &part)?;
            archives(&config.layers[part], |at, layer| {
                whole(layout, &layer.blob)?;
                members(layout, layer, &rows[at], &config.base)
            })?;
        }
    } else {
        rows(layout, config, &(0..0))?;
        archives(&config.layers, |_, layer| whole(layout, &layer.blob))?;
    }
    verified.entry = Some(entry);
    Ok(())
}

/// Does something with each archive, on all cores, until one fails.
fn archives(layers: &[Layer], work: impl Fn(usize, &Layer) -> Result<()> + Sync) -> Result<()> {
    let layers: Vec<(usize, &Layer)> = layers.iter().enumerate().collect();
    parallel::try_each(parallel::workers(), &layers, |(at, layer)| {
        work(*at, layer).with_context(|| layer.blob.digest.clone())
    })
}

/// Reads the rows of the archives of this part, and checks of all that each file is in a directory of the table: so no
/// member can be written through a link.
fn rows(layout: &Layout, config: &super::TreeConfig, part: &Range<usize>) -> Result<Vec<Vec<Row>>> {
    ensure!(config.layers.len() <= MAX_LAYERS, "it has {} archives", config.layers.len());
    let mut rows: Vec<Vec<Row>> = vec![Vec::new(); part.len()];
    let mut table = Table::open(&layout.path(&config.table))?;
    let mut above: Vec<Vec<u8>> = Vec::new();
    let (mut count, mut files, mut bytes) = (0, 0, 0_u64);
    while let Some(row) = table.next_row()? {
        let shown = || String::from_utf8_lossy(&row.path).into_owned();
        count += 1;
        ensure!(count <= MAX_ROWS, "the table has more than {MAX_ROWS} rows");
        let parent = row.path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |at| &row.path[..at]);
        while above.last().is_some_and(|dir| dir != parent) {
            above.pop();
        }
        ensure!(row.path.is_empty() || !above.is_empty(), "{:?} is not in a directory of the table", shown());
        match row.kind {
            Kind::Dir => above.push(row.path.clone()),
            _ => files += 1,
        }
        bytes = bytes.saturating_add(row.size);
        table::sort_in(&mut rows, part, &config.layers, row)?;
    }
    ensure!(
        (files, bytes) == (config.files, config.bytes),
        "its table has {files} files of {bytes} bytes, and its config says {} of {}",
        config.files,
        config.bytes
    );
    Ok(rows)
}

/// Reads an archive to its end.
fn members(layout: &Layout, layer: &Layer, rows: &[Row], base: &str) -> Result<()> {
    let mut rows = rows.iter().peekable();
    let file = File::open(layout.path(&layer.blob))?;
    archive::read(decoder(cancel::Reader(file))?, layer.raw, layer.entries.min(MAX_ENTRIES), |member, data| {
        if let Some(row) = rows.next_if(|row| row.path == member.path) {
            check(&member, row, base)?;
            io::copy(data, &mut io::sink())?;
        }
        Ok(())
    })?;
    match rows.next() {
        Some(row) => bail!("{:?} is in the table and not in its archive", String::from_utf8_lossy(&row.path)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use tar::{EntryType, Header};

    use super::*;
    use crate::bundle::{MANIFEST, TREE_VERSION, TreeConfig, Writer};
    use crate::inside::archive::Member;
    use crate::inside::rules::Rule;
    use crate::inside::unpack::{self, Target, Unpack};
    use crate::model::Kind as CacheKind;

    /// A bundle with one tree, put together by hand.
    struct Hostile {
        dir: tempfile::TempDir,
        rows: Vec<(u8, u64, &'static str)>,
        archive: Vec<u8>,
        entries: u64,
        raw: Option<u64>,
        /// What the bundle says of it, but for the files.
        config: TreeConfig,
    }

    fn header(name: &str, kind: EntryType, link: &str, content: &[u8]) -> Vec<u8> {
        let mut header = Header::new_ustar();
        let ustar = header.as_ustar_mut().unwrap();
        ustar.name[..name.len()].copy_from_slice(name.as_bytes());
        ustar.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        let mut bytes = [header.as_bytes(), content].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn file(name: &str, content: &str) -> Vec<u8> {
        header(name, EntryType::Regular, "", content.as_bytes())
    }

    fn hostile(rows: &[(u8, u64, &'static str)], members: &[Vec<u8>]) -> Hostile {
        let root = header("./", EntryType::Directory, "", b"");
        let archive = [&[root], members].concat().concat();
        let rows = [&[(b'd', 0, "")], rows].concat();
        let config = TreeConfig {
            version: TREE_VERSION,
            kind: CacheKind::Volume,
            name: "v".into(),
            base: "/cache".into(),
            ..Default::default()
        };
        Hostile { dir: tempfile::tempdir().unwrap(), rows, archive, entries: 100, raw: None, config }
    }

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    impl Hostile {
        fn write(&self) -> Layout {
            let mut writer = Writer::open(self.dir.path(), || ()).unwrap();
            let mut rows = table::Writer::new(Vec::new());
            for (kind, size, path) in &self.rows {
                let kind = Kind::of_letter(*kind).unwrap();
                let path = path.as_bytes().to_vec();
                rows.write(&Row { layer: 0, kind, size: *size, print: 1, path }).unwrap();
            }
            let archive = [&self.archive[..], &[0; 1024]].concat();
            let layer = Layer {
                blob: writer.write(&compressed(&archive)).unwrap(),
                raw: self.raw.unwrap_or(archive.len() as u64),
                entries: self.entries,
                cost: 0,
                usable: true,
            };
            let files = self.rows.iter().filter(|(kind, ..)| *kind != b'd');
            let config = TreeConfig {
                files: files.clone().count() as u64,
                bytes: files.map(|(_, size, _)| size).sum(),
                table: writer.write(&compressed(&rows.finish())).unwrap(),
                layers: vec![layer],
                ..self.config.clone()
            };
            writer.add(&config).unwrap();
            let layout = writer.layout.clone();
            writer.commit().unwrap();
            layout
        }

        /// Unpacks it as if nobody had proved it.
        fn unpack(&self, layout: &Layout) -> Result<()> {
            let outside = tempfile::tempdir().unwrap();
            let root = outside.path().join("volume");
            fs::create_dir(&root).unwrap();
            let config = layout.entries()?.remove(0).config;
            let target = Target {
                root: root.clone(),
                base: config.base,
                table: config.table,
                layers: config.layers,
                rules: vec![Rule { path: String::new(), take: true }],
                from: String::new(),
                to: String::new(),
                replace: false,
                owner: None,
                secrets: Vec::new(),
            };
            let done = unpack::all(&Unpack { blobs: layout.blobs(), trees: vec![target] }, &mut |_, _| ());
            let left = |dir: &Path| fs::read_dir(dir).unwrap().count();
            assert_eq!(left(outside.path()), 1, "nothing is written outside");
            assert!(done.is_ok() || left(&root) == 0, "nothing of it stays");
            done.map(drop)
        }

        #[track_caller]
        fn is_refused(&self, why: &str) {
            let layout = self.write();
            let found = all(&layout).unwrap();
            let broken = found[0].broken.clone().unwrap_or_default();
            assert!(broken.contains(why), "{broken:?} does not say {why:?}");
            self.unpack(&layout).unwrap_err();
        }
    }

    #[test]
    fn a_good_bundle_is_whole() {
        let rows = [(b'f', 1, "a"), (b'd', 0, "d"), (b'f', 2, "d/b"), (b'l', 0, "l")];
        let members = [
            file("a", "1"),
            header("d/", EntryType::Directory, "", b""),
            file("d/b", "22"),
            header("l", EntryType::Symlink, "/cache/d/b", b""),
        ];
        let good = hostile(&rows, &members);
        let layout = good.write();
        let found = all(&layout).unwrap();
        assert_eq!((found[0].broken.as_deref(), found[0].files), (None, Some(3)));
        good.unpack(&layout).unwrap();
    }

    #[test]
    fn what_another_version_wrote_is_told_from_what_is_damaged() {
        for (version, whose) in [(TREE_VERSION - 1, "an older"), (TREE_VERSION + 1, "a newer")] {
            let mut written = hostile(&[(b'f', 1, "a")], &[file("a", "1")]);
            written.config.version = version;
            let found = all(&written.write()).unwrap();
            assert_eq!(found[0].other.map(|other| other.0), Some(version));
            assert!(found[0].broken.as_ref().is_some_and(|why| why.contains(whose)), "{:?}", found[0].broken);
        }
    }

    #[test]
    fn members_that_lead_out_are_refused() {
        hostile(&[], &[file("../x", "1")]).is_refused("leads out");
        hostile(&[], &[file("/etc/x", "1")]).is_refused("is absolute");
        hostile(&[(b'f', 1, "../x")], &[]).is_refused("leads out");
        hostile(&[(b'f', 1, "/x")], &[]).is_refused("is absolute");
        let link = |target: &str| hostile(&[(b'l', 0, "l")], &[header("l", EntryType::Symlink, target, b"")]);
        link("../../etc").is_refused("leads out");
        link("/etc/passwd").is_refused("leads out");
        link("/cachet").is_refused("leads out");
        link("/cache/../etc").is_refused("leads out");
        hostile(&[(b'h', 0, "h")], &[header("h", EntryType::Link, "../../etc/passwd", b"")]).is_refused("leads out");
    }

    #[test]
    fn configs_that_lead_out_or_say_more_than_they_may_are_refused() {
        let said = |change: &dyn Fn(&mut TreeConfig), why| {
            let mut hostile = hostile(&[], &[]);
            change(&mut hostile.config);
            hostile.is_refused(why);
        };
        said(&|config| config.base = "/root/.cache/pip/../../../../tmp/x".into(), "leads out");
        let path = |path: &str| vec![Rule { path: path.into(), take: true }];
        said(&|config| config.rules = path("pip/../../x"), "leads out");
        said(&|config| config.rules = path("/etc"), "is absolute");
        said(&|config| config.driver = "../../tmp/x".into(), "no driver");
        let of_mount = |change: fn(&mut TreeConfig)| {
            let change = |config: &mut TreeConfig| {
                config.kind = CacheKind::Mount;
                change(config);
            };
            said(&change, "no plain words");
        };
        of_mount(|config| config.namespace = "a\0".into());
        of_mount(|config| config.options = "uid=0,from=alpine".into());
        of_mount(|config| config.options = "type=secret".into());
    }

    #[test]
    fn files_are_not_written_through_links() {
        let rows = [(b'l', 0, "l"), (b'f', 1, "l/x")];
        hostile(&rows, &[header("l", EntryType::Symlink, "d", b""), file("l/x", "1")]).is_refused("not in a directory");
    }

    #[test]
    fn devices_doubles_and_lies_are_refused() {
        hostile(&[], &[header("dev", EntryType::Block, "", b"")]).is_refused("device");
        hostile(&[], &[header("p", EntryType::Fifo, "", b"")]).is_refused("no bundle has");
        hostile(&[(b'f', 1, "a")], &[file("a", "1"), file("a", "2")]).is_refused("twice");
        hostile(&[(b'f', 1, "a"), (b'f', 1, "a")], &[file("a", "1")]).is_refused("twice");
        hostile(&[(b'f', 1, "a")], &[file("b", "1"), file("a", "1")]).is_refused("out of order");
        hostile(&[(b'f', 9, "a")], &[file("a", "1")]).is_refused("1 bytes, and 9 in the table");
        hostile(&[(b'd', 0, "a")], &[file("a", "1")]).is_refused("another kind");
        hostile(&[(b'f', 1, "a")], &[]).is_refused("not in its archive");
    }

    #[test]
    fn bombs_are_refused() {
        let bomb = Hostile { raw: Some(4096), ..hostile(&[(b'f', 1 << 22, "a")], &[file("a", &"0".repeat(1 << 22))]) };
        bomb.is_refused("longer than it says");
        let many: Vec<Vec<u8>> = (0..MAX_ENTRIES + 1).map(|at| file(&format!("{at:07}"), "")).collect();
        Hostile { entries: 1 << 40, ..hostile(&[], &many) }.is_refused("more members");
        let mut long = Vec::new();
        let path = vec![b'x'; 5000];
        let member = Member {
            path,
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            modified: (0, 0),
            size: 0,
            link: Vec::new(),
            attributes: Vec::new(),
            extents: None,
        };
        archive::write(&mut long, &member, io::empty()).unwrap();
        hostile(&[], &[long]).is_refused("too long");
    }

    /// Writes an index with one entry, as anyone could.
    fn index(dir: &Path, media_type: &str, digest: &str, size: u64) -> Layout {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), "{}").unwrap();
        let entry = format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}}}"#);
        fs::write(dir.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#)).unwrap();
        Layout::open(dir).unwrap()
    }

    fn broken(layout: &Layout) -> String {
        all(layout).unwrap()[0].broken.clone().unwrap_or_default()
    }

    #[test]
    fn a_bundle_with_more_entries_than_are_read_is_not_written() {
        let named = |number: usize| {
            let annotations = [(crate::bundle::REF_NAME.into(), number.to_string())].into();
            Descriptor { annotations, ..Descriptor::default() }
        };
        for (former, is_written) in [(MAX_MANIFESTS - 1, true), (MAX_MANIFESTS, false)] {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = Writer::open(dir.path(), || ()).unwrap();
            writer.index.manifests = vec![named(former)];
            writer.used.insert(String::new());
            let others = Index { manifests: (0..former).map(named).collect(), ..writer.index.clone() };
            let (path, before) = (dir.path().join("index.json"), serde_json::to_vec(&others).unwrap());
            fs::write(&path, &before).unwrap();
            let _ = writer.commit();
            assert_eq!(fs::read(&path).unwrap() != before, is_written);
        }
    }

    #[test]
    fn manifests_need_not_say_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        let layout = Layout { dir: dir.path().into() };
        let write = |bytes: &str| {
            let blob = digest(&mut bytes.as_bytes()).unwrap();
            fs::write(layout.path(&blob), bytes).unwrap();
            blob
        };
        let config = write("{}");
        let (digest, size) = (&config.digest, config.size);
        let manifest = write(&format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{digest}","size":{size}}},"layers":[]}}"#
        ));
        let layout = index(dir.path(), MANIFEST, &manifest.digest, manifest.size);
        assert_eq!(broken(&layout), "");
        let mut live = HashSet::new();
        layout.reach(&layout.index().unwrap().manifests[0], 0, &mut live).unwrap();
        assert_eq!(live.len(), 2);
    }

    #[test]
    fn what_is_listed_again_and_again_is_followed_once() {
        let dir = tempfile::tempdir().unwrap();
        let kind = "application/vnd.oci.image.index.v1+json";
        let mut listed = String::new();
        let mut layout = index(dir.path(), kind, "", 0);
        for _ in 0..4 {
            let bytes = format!(r#"{{"schemaVersion":2,"manifests":[{listed}]}}"#);
            let blob = digest(&mut bytes.as_bytes()).unwrap();
            fs::write(layout.path(&blob), bytes).unwrap();
            let entry = format!(r#"{{"mediaType":"{kind}","digest":"{}","size":{}}}"#, blob.digest, blob.size);
            listed = vec![entry; 1000].join(",");
            layout = index(dir.path(), kind, &blob.digest, blob.size);
        }
        let mut live = HashSet::new();
        layout.reach(&layout.index().unwrap().manifests[0], 0, &mut live).unwrap();
        assert_eq!(live.len(), 4);
        assert_eq!(broken(&layout), "");
    }

    #[test]
    fn digests_that_are_paths_nested_and_huge_manifests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = "sha256:../../../../../../../../../../../../../../../../../../../../etc/pas";
        assert!(broken(&index(dir.path(), MANIFEST, path, 1)).contains("no SHA-256 digest"));

        let nested = "application/vnd.oci.image.index.v1+json";
        let mut inner = r#"{"schemaVersion":2,"manifests":[]}"#.to_string();
        let mut last = digest(&mut inner.as_bytes()).unwrap();
        let layout = index(dir.path(), nested, &last.digest, last.size);
        for _ in 0..10 {
            fs::write(layout.path(&last), &inner).unwrap();
            let (digest_, size) = (&last.digest, last.size);
            inner = format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{nested}","digest":"{digest_}","size":{size}}}]}}"#
            );
            last = digest(&mut inner.as_bytes()).unwrap();
        }
        fs::write(layout.path(&last), &inner).unwrap();
        assert!(broken(&index(dir.path(), nested, &last.digest, last.size)).contains("nested too deep"));

        let huge = vec![b' '; 9 << 20];
        let blob = digest(&mut &huge[..]).unwrap();
        fs::File::create(layout.path(&blob)).unwrap().write_all(&huge).unwrap();
        assert!(broken(&index(dir.path(), MANIFEST, &blob.digest, blob.size)).contains("too large"));
    }
}
