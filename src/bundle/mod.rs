//! A bundle: an OCI layout with layers, mounts and volumes. Blobs are named by digest and synced before the index, which
//! is replaced by a rename at the very end: whatever is interrupted, the last index and all that it refers to stay.

pub mod location;
pub mod registry;
pub mod remote;
pub mod verify;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cancel;
use crate::docker::quote;
use crate::inside::archive::unsafe_path;
use crate::inside::dirs;
use crate::inside::pack::{Blob, Layer, digest};
use crate::inside::rules::Rule;
use crate::inside::unpack::Target;
use crate::model::{Kind, Mount};
use crate::parallel;

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What a mount or a volume is, for tools that know artifacts.
pub const ARTIFACT: &str = "application/vnd.docker-cache.tree.v1";
const CONFIG: &str = "application/vnd.docker-cache.tree.config.v1+json";
const TABLE: &str = "application/vnd.docker-cache.table.v1+zstd";
const ARCHIVE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// What buildx says of layers that it has exported or pushed.
const LAYERS: &str = "application/vnd.buildkit.cacheconfig.v0";
/// Second name of the layers that were exported last: what `--cache-from type=local,src=DIR` looks for.
pub const LATEST: &str = "latest";
/// Name of an entry in its layout, as the OCI has it; buildx and skopeo select by it.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The tag of the bundle that a manifest in a registry is of. What deletes a tag of a registry deletes the manifest, and so
/// every tag that names it: bundles share blobs, and no manifests.
const TAG: &str = "io.github.docker-cache.tag";
/// Begins the keys of what an index says of mounts and volumes: `kind`, `name`, `language` and `tool`.
const KEYS: &str = "io.github.docker-cache.";
/// Begins the names of entries that are mounts and volumes.
const NAMES: &str = "docker-cache/";
/// Bytes that an index or a manifest may have: those of others are kept in memory.
const MAX_JSON: u64 = 8 << 20;
/// What `oci-layout` says in every layout.
const VERSION: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// Something that an index or a manifest refers to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What is of no interest here, and kept.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// What a descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// A list of manifests, in the words of the OCI or of docker.
    Index,
    Manifest,
    Other,
}

impl Descriptor {
    /// Tells what it refers to by its media type.
    pub fn content(&self) -> Content {
        match self.media_type.as_str() {
            kind if kind.contains("index") || kind.contains("manifest.list") => Content::Index,
            kind if kind.contains("manifest") => Content::Manifest,
            _ => Content::Other,
        }
    }

    fn of(media_type: &str, blob: &Blob) -> Descriptor {
        Descriptor { media_type: media_type.into(), digest: blob.digest.clone(), size: blob.size, ..Default::default() }
    }

    /// Returns digest and size, once the digest is known to be one: it becomes a file name.
    ///
    /// # Errors
    /// When it is not `sha256:` and 64 hexadecimal digits.
    pub fn blob(&self) -> Result<Blob> {
        let blob = Blob { digest: self.digest.clone(), size: self.size };
        blob.check()?;
        Ok(blob)
    }

    /// Returns the entry's name in the layout.
    pub fn ref_name(&self) -> &str {
        self.annotations.get(REF_NAME).map_or("", String::as_str)
    }

    /// Returns what the index says of a mount or volume, whose own config may be damaged.
    pub fn told(&self) -> TreeConfig {
        let value = |key: &str| self.annotations.get(&format!("{KEYS}{key}")).cloned();
        TreeConfig {
            kind: if value("kind").as_deref() == Some("volume") { Kind::Volume } else { Kind::Mount },
            name: value("name").unwrap_or_default(),
            language: value("language"),
            tool: value("tool"),
            ..TreeConfig::default()
        }
    }

    /// Returns true for mounts and volumes, and false for what buildx or others have put there.
    pub fn is_tree(&self) -> bool {
        self.ref_name().starts_with(NAMES)
    }
}

/// `index.json`, or a manifest that lists others.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

impl Index {
    /// Puts an entry in the place of one of the same name.
    pub fn put(&mut self, descriptor: Descriptor) {
        self.manifests.retain(|other| other.ref_name() != descriptor.ref_name());
        self.manifests.push(descriptor);
    }
}

/// An image manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub artifact_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// The version of what a bundle knows of a mount or volume: 2 since tables tell of a path what the one before it does not
/// have.
pub const TREE_VERSION: u32 = 2;

/// An entry of a version that this program does not know.
#[derive(Clone, Copy, Debug)]
pub struct OtherVersion(pub u32);

impl std::error::Error for OtherVersion {}

impl std::fmt::Display for OtherVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whose = if self.0 > TREE_VERSION { "a newer" } else { "an older" };
        write!(f, "it is of version {}, which {whose} docker-cache writes", self.0)
    }
}

/// What a bundle knows of a mount, or of one tool's part of a volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TreeConfig {
    pub version: u32,
    pub kind: Kind,
    /// Id of the mount, or name of the volume.
    pub name: String,
    pub language: Option<String>,
    pub tool: Option<String>,
    /// Where programs see the tree: the target of the mount, or where containers mount the volume.
    pub base: String,
    /// `BUILDKIT_CACHE_MOUNT_NS` of a mount.
    pub namespace: String,
    /// What makes the mount a variant: `uid=1000,gid=1000,mode=0700`.
    pub options: String,
    /// Labels of a volume.
    pub labels: BTreeMap<String, String>,
    /// Driver of a volume.
    pub driver: String,
    /// What was taken of the tree.
    pub rules: Vec<Rule>,
    pub files: u64,
    pub bytes: u64,
    pub table: Blob,
    pub layers: Vec<Layer>,
}

impl TreeConfig {
    /// Returns how the tree is unpacked beside what is there, from its root to its root.
    pub fn target(&self) -> Target {
        Target {
            root: PathBuf::new(),
            base: self.base.clone(),
            table: self.table.clone(),
            layers: self.layers.clone(),
            rules: self.rules.clone(),
            from: String::new(),
            to: String::new(),
            replace: false,
            owner: None,
            secrets: Vec::new(),
        }
    }

    /// Returns the name of the entry: the same place and tool always have the same.
    pub fn ref_name(&self) -> String {
        match self.kind {
            Kind::Volume => format!("{NAMES}volume/{}/{}", self.name, self.tool.as_deref().unwrap_or("all")),
            _ => {
                let key = [&self.namespace, "/", &self.name, ":", &self.options].concat();
                let hash = digest(&mut key.as_bytes()).unwrap_or_default();
                let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
                let slug: String = self.name.chars().map(plain).take(40).collect();
                let slug: Vec<&str> = slug.split('-').filter(|word| !word.is_empty()).collect();
                format!(
                    "{NAMES}mount/{}",
                    [slug.join("-").as_str(), &hash.file()[..8]].join("-").trim_start_matches('-')
                )
            }
        }
    }

    /// Makes sure that no path in it leads out of its tree, and that no word in it can be taken for anything else.
    fn check(&self) -> Result<()> {
        for Rule { path, .. } in &self.rules {
            if let Some(why) = unsafe_path(path.as_bytes()) {
                bail!("its path {path:?} {why}");
            }
        }
        ensure!(self.base.split('/').all(|name| name != ".."), "its base {:?} leads out by `..`", self.base);
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        ensure!(self.driver.chars().all(plain) && !self.driver.contains(".."), "{:?} is no driver", self.driver);
        // Its id is looked at where it is used: an import may give it another.
        let (id, namespace, options) = ("id".into(), self.namespace.clone(), self.options.clone());
        let is_plain = Mount { id, namespace, options, target: String::new() }.is_carriable();
        ensure!(is_plain, "its namespace {:?} or its options {:?} are no plain words", self.namespace, self.options);
        Ok(())
    }

    /// Returns all blobs but the config itself.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.table).chain(self.layers.iter().map(|layer| &layer.blob))
    }

    fn annotations(&self) -> BTreeMap<String, String> {
        let pairs = [
            ("kind", Some(self.kind.as_str().into())),
            ("name", Some(self.name.clone())),
            ("language", self.language.clone()),
            ("tool", self.tool.clone()),
        ];
        let pairs = pairs.into_iter().filter_map(|(key, value)| Some((format!("{KEYS}{key}"), value?)));
        pairs.chain([(REF_NAME.into(), self.ref_name())]).collect()
    }
}

/// A mount or volume in a bundle.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub descriptor: Descriptor,
    pub config: TreeConfig,
}

/// A directory that is, or becomes, a bundle.
#[derive(Clone, Debug)]
pub struct Layout {
    pub dir: PathBuf,
}

impl Layout {
    /// Opens a bundle to read.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(dir: &Path) -> Result<Layout> {
        let has = |name: &str| dir.join(name).is_file();
        let anew = format!("`docker cache export --dest {}`", quote(dir));
        let (why, next) = match (has("oci-layout"), has("index.json")) {
            (true, true) => return Ok(Layout { dir: dir.canonicalize()? }),
            // Neither every copy nor every buildx writes it, and it says the same in all.
            (false, true) => ("it has no `oci-layout`", {
                format!("`echo '{VERSION}' > {}` writes it, if this is one", quote(dir.join("oci-layout")))
            }),
            (true, false) => ("it has no `index.json`", format!("copy it again, or let {anew} make it anew")),
            (false, false) if !dir.exists() => ("it is not there", format!("{anew} makes one")),
            (false, false) if foreign(dir)?.is_none() => ("it is empty", format!("{anew} makes one")),
            (false, false) => ("it has no `oci-layout` and `index.json`", {
                "name the directory that was the `--dest` of a `docker cache export`".into()
            }),
        };
        bail!("{} is no bundle: {why}\nhint: {next}", dir.display())
    }

    /// Makes sure that a directory is a bundle, or can become one.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn ensure_fit(dir: &Path) -> Result<()> {
        if !dir.exists() || dir.join("oci-layout").exists() {
            return Ok(());
        }
        if dir.join("index.json").exists() {
            // It may be a bundle that lost its mark, and says what to do.
            Layout::open(dir)?;
        }
        match foreign(dir)? {
            Some(entry) => bail!(
                "{} holds something that is no bundle: {:?}\nhint: name an empty or new directory",
                dir.display(),
                entry.file_name()
            ),
            None => Ok(()),
        }
    }

    /// Keeps exports from collecting what is about to be read, until the value is dropped.
    ///
    /// # Errors
    /// When the directory cannot be read, or the user cancels.
    pub fn lock(&self, waiting: impl FnOnce()) -> Result<File> {
        lock(&self.dir, FlockOperation::NonBlockingLockShared, waiting)
    }

    /// Returns the index; an empty one where there is none yet.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn index(&self) -> Result<Index> {
        let path = self.dir.join("index.json");
        if !path.exists() {
            return Ok(Index { schema_version: 2, manifests: Vec::new(), others: Map::new() });
        }
        let text = read_limited(&path, MAX_JSON)?;
        serde_json::from_slice(&text).with_context(|| format!("{} makes no sense", path.display()))
    }

    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    /// Returns the file of a blob.
    pub fn path(&self, blob: &Blob) -> PathBuf {
        self.blobs().join(blob.file())
    }

    /// Reads a small blob and checks it.
    ///
    /// # Errors
    /// When it is missing, too large, or not what its digest says.
    pub fn json(&self, blob: &Blob) -> Result<Vec<u8>> {
        ensure!(blob.size <= MAX_JSON, "{} is too large for what it is: {} bytes", blob.digest, blob.size);
        let bytes = read_limited(&self.path(blob), blob.size)?;
        ensure!(digest(&mut &bytes[..])? == *blob, "{} is damaged", blob.digest);
        Ok(bytes)
    }

    /// Reads what the bundle knows of a mount or volume, and checks that it is consistent.
    ///
    /// # Errors
    /// When something is missing, damaged, or contradicts itself.
    pub fn entry(&self, descriptor: &Descriptor) -> Result<Entry> {
        ensure!(descriptor.media_type == MANIFEST, "it is not an image manifest but {:?}", descriptor.media_type);
        let manifest: Manifest = serde_json::from_slice(&self.json(&descriptor.blob()?)?).context("its manifest")?;
        let config: TreeConfig = serde_json::from_slice(&self.json(&manifest.config.blob()?)?).context("its config")?;
        ensure!(config.version == TREE_VERSION, OtherVersion(config.version));
        let listed: Vec<Blob> = manifest.layers.iter().map(Descriptor::blob).collect::<Result<_>>()?;
        ensure!(config.blobs().eq(&listed), "its manifest and its config do not list the same blobs");
        ensure!(config.ref_name() == descriptor.ref_name(), "it is not what its name says");
        config.check()?;
        Ok(Entry { descriptor: descriptor.clone(), config })
    }

    /// Returns all mounts and volumes.
    ///
    /// # Errors
    /// At the first that is missing or damaged.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let index = self.index()?;
        let trees = index.manifests.iter().filter(|descriptor| descriptor.is_tree());
        trees.map(|descriptor| self.entry(descriptor).with_context(|| descriptor.ref_name().to_string())).collect()
    }
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= limit, "{} is larger than it should be", path.display());
    Ok(bytes)
}

/// A bundle that is being written by this program alone.
#[derive(Debug)]
pub struct Writer {
    pub layout: Layout,
    /// Where blobs are made: on the same file system, and gone with the value.
    pub ingest: PathBuf,
    /// The index as it was.
    pub index: Index,
    /// Digests of archives that need not be here: a registry has them.
    pub elsewhere: HashSet<String>,
    /// The tag of a registry that the bundle goes to.
    pub tag: Option<String>,
    pub bytes_written: u64,
    pub bytes_reused: u64,
    started: SystemTime,
    used: HashSet<String>,
    /// Blobs that are yet to be synced and moved to their place.
    pending: Vec<Blob>,
    made: Made,
    _lock: File,
}

/// Directories that were made for a bundle. Those that are empty go with the value, for nothing came of them.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn make(&mut self, dir: &Path) -> std::io::Result<()> {
        let missing = dir.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
        let missing: Vec<PathBuf> = missing.map(Into::into).collect();
        self.0.extend(missing.into_iter().rev());
        fs::create_dir_all(dir)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for dir in self.0.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

impl Writer {
    /// Makes or opens a bundle, waits until no other program of this kind writes it, and removes what interrupted ones
    /// have left. `waiting` is called once if there is something to wait for.
    ///
    /// # Errors
    /// When the directory is something else, cannot be written, or the user cancels.
    pub fn open(dir: &Path, waiting: impl FnOnce()) -> Result<Writer> {
        let failed = || format!("cannot write {}", dir.display());
        let mut made = Made::default();
        made.make(dir).with_context(failed)?;
        let lock = lock(dir, FlockOperation::NonBlockingLockExclusive, waiting)?;
        if !dir.metadata().is_ok_and(|there| lock.metadata().is_ok_and(|locked| locked.ino() == there.ino())) {
            // What held the lock came to nothing, and took the directory that it had made away.
            let silent: fn() = || ();
            return Writer::open(dir, silent);
        }
        Layout::ensure_fit(dir)?;
        let dir = dir.canonicalize()?;
        made.make(&dir.join("blobs/sha256")).with_context(failed)?;
        made.make(&dir.join("ingest")).with_context(failed)?;
        let layout = Layout { dir };
        let index = layout.index()?;
        for left in fs::read_dir(layout.dir.join("ingest"))?.flatten() {
            if left.file_name().to_string_lossy().starts_with(INGEST) {
                let settled = fs::read_to_string(left.path().join(SETTLED)).unwrap_or_default();
                let settled: HashSet<&str> = settled.lines().collect();
                layout.remove_unless_live(&index, |name, _| settled.contains(name))?;
                fs::remove_dir_all(left.path())?;
            }
        }
        let ingest =
            tempfile::Builder::new().prefix(INGEST).tempdir_in(layout.dir.join("ingest")).with_context(failed)?;
        let started = ingest.path().metadata()?.modified()?;
        fs::create_dir(ingest.path().join(KEPT)).with_context(failed)?;
        let used = HashSet::new();
        let (bytes_written, bytes_reused, ingest) = (0, 0, ingest.keep());
        let (elsewhere, pending) = (HashSet::new(), Vec::new());
        Ok(Writer {
            layout,
            ingest,
            index,
            elsewhere,
            tag: None,
            bytes_written,
            bytes_reused,
            started,
            used,
            pending,
            made,
            _lock: lock,
        })
    }

    /// Returns what the bundle has of a mount or volume, if that can still be used. Archives are not read: what is damaged
    /// of those, `verify` tells.
    pub fn former(&self, ref_name: &str) -> Option<Entry> {
        let descriptor = self.index.manifests.iter().find(|descriptor| descriptor.ref_name() == ref_name)?;
        let mut entry = self.layout.entry(descriptor).ok()?;
        verify::whole(&self.layout, &entry.config.table).ok()?;
        let sized = |blob: &Blob| self.layout.path(blob).metadata().is_ok_and(|meta| meta.len() == blob.size);
        let there = |blob: &Blob| self.elsewhere.contains(&blob.digest) || sized(blob);
        entry.config.layers.iter_mut().for_each(|layer| layer.usable = there(&layer.blob));
        Some(entry)
    }

    /// Keeps a blob of the ingest directory, if it is not already in its place.
    ///
    /// # Errors
    /// When it is neither here nor there.
    pub fn keep(&mut self, blob: &Blob) -> Result<()> {
        blob.check()?;
        let (new, place) = (self.ingest.join(blob.file()), self.layout.path(blob));
        if !self.used.insert(blob.digest.clone()) {
            return Ok(());
        }
        let elsewhere = self.elsewhere.contains(&blob.digest);
        let was_there = elsewhere || place.metadata().is_ok_and(|meta| meta.len() == blob.size);
        if new.exists() {
            ensure!(new.metadata()?.len() == blob.size, "{} did not arrive whole", blob.digest);
            fs::rename(&new, self.ingest.join(KEPT).join(blob.file()))?;
            self.pending.push(blob.clone());
        } else {
            ensure!(elsewhere || place.exists(), "{} did not arrive", blob.digest);
        }
        match was_there {
            true => self.bytes_reused += blob.size,
            false => self.bytes_written += blob.size,
        }
        Ok(())
    }

    /// Moves what was kept to its place. What is to last is synced first, many at once: the file system writes its journal
    /// for many files as fast as for one.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn settle(&mut self, synced: bool) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        fs::write(
            self.ingest.join(SETTLED),
            pending.iter().map(|blob| format!("{}\n", blob.file())).collect::<String>(),
        )?;
        let kept = self.ingest.join(KEPT);
        if synced {
            let synced = parallel::each(&pending, |blob| File::open(kept.join(blob.file()))?.sync_all());
            synced.into_iter().collect::<std::io::Result<()>>()?;
        }
        pending.iter().try_for_each(|blob| {
            let path = self.layout.path(blob);
            fs::rename(kept.join(blob.file()), &path).with_context(|| format!("cannot write {}", path.display()))
        })
    }

    /// Keeps a blob of these bytes.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<Blob> {
        let blob = digest(&mut &bytes[..])?;
        fs::write(self.ingest.join(blob.file()), bytes)?;
        self.keep(&blob)?;
        Ok(blob)
    }

    /// Adds a mount or volume, or replaces it. Its blobs are in the ingest directory or already kept.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn add(&mut self, config: &TreeConfig) -> Result<Entry> {
        for blob in config.blobs() {
            self.keep(blob)?;
        }
        let written = self.write(&serde_json::to_vec(config)?)?;
        let archives = config.layers.iter().map(|layer| Descriptor::of(ARCHIVE, &layer.blob));
        let tag = self.tag.iter().map(|tag| (TAG.into(), tag.clone()));
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST.into(),
            artifact_type: ARTIFACT.into(),
            config: Descriptor::of(CONFIG, &written),
            layers: std::iter::once(Descriptor::of(TABLE, &config.table)).chain(archives).collect(),
            annotations: config.annotations().into_iter().chain(tag).collect(),
        };
        let mut descriptor = Descriptor::of(MANIFEST, &self.write(&serde_json::to_vec(&manifest)?)?);
        descriptor.annotations = config.annotations();
        descriptor.others.insert("artifactType".into(), ARTIFACT.into());
        self.index.put(descriptor.clone());
        Ok(Entry { descriptor, config: config.clone() })
    }

    /// Makes a directory into which buildx can export: with the layers that the bundle has, so that only new ones are
    /// written.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn stage_layers(&self) -> Result<Layout> {
        let stage = Layout { dir: self.ingest.join("layers") };
        fs::create_dir_all(stage.blobs())?;
        let mut live = HashSet::new();
        for descriptor in self.index.manifests.iter().filter(|descriptor| !descriptor.is_tree()) {
            // What is damaged is exported again.
            let _ = self.layout.reach(descriptor, 0, &mut live);
        }
        for digest in live {
            let blob = Blob { digest, size: 0 };
            // Without links it is written again, to the same name.
            let _ = fs::hard_link(self.layout.path(&blob), stage.path(&blob));
        }
        Ok(stage)
    }

    /// Takes what buildx has exported to a staged directory, once it is proved, under these names. Returns its bytes.
    ///
    /// # Errors
    /// When it is damaged or incomplete.
    pub fn take_layers(&mut self, stage: &Layout, names: &[&str]) -> Result<(Descriptor, u64)> {
        let mut index = stage.index()?;
        let found = verify::digests(stage, |_| true)?.into_iter().find_map(|found| found.broken);
        if let Some(why) = found {
            bail!(
                "what buildx exported, or the bundle had before, is broken: {why}\nhint: `docker cache verify {}` tells",
                quote(&self.layout.dir)
            );
        }
        let mut descriptor = index.manifests.pop().context("buildx exported nothing")?;
        let mut live = HashSet::new();
        stage.reach(&descriptor, 0, &mut live)?;
        let mut bytes = 0;
        for digest in live {
            let size = stage.path(&Blob { digest: digest.clone(), size: 0 }).metadata()?.len();
            let blob = Blob { digest, size };
            fs::rename(stage.path(&blob), self.ingest.join(blob.file()))?;
            self.keep(&blob)?;
            bytes += blob.size;
        }
        for name in names {
            descriptor.annotations.insert(REF_NAME.into(), (*name).into());
            self.index.put(descriptor.clone());
        }
        Ok((descriptor, bytes))
    }

    /// Makes the new index the bundle's, without entries whose manifest is gone, and then removes what it does not refer to.
    /// An image that others have put at `latest` keeps that name.
    ///
    /// # Errors
    /// When something cannot be written, and the bundle is then what it was; or when what the new index does not refer to
    /// cannot be removed.
    pub fn commit(mut self) -> Result<()> {
        self.settle(true)?;
        let dir = &self.layout.dir;
        // Entries of others may have come or changed meanwhile: buildx locks this file only.
        let _others = lock_of_buildx(dir)?;
        let former = self.layout.index()?;
        let mut index = former.clone();
        for entry in self.index.manifests.iter().filter(|entry| self.used.contains(&entry.digest)) {
            if entry.ref_name() != LATEST || !self.layout.has_foreign_latest(&former) {
                index.put(entry.clone());
            }
        }
        verify::ensure_few(&index, &dir.display())?;
        // Nothing is known of one by another kind of digest, which the OCI has too.
        index.manifests.retain(|entry| entry.blob().map_or(true, |blob| self.layout.path(&blob).exists()));
        File::open(self.layout.blobs())?.sync_all()?;
        if !dir.join("oci-layout").exists() {
            self.replace("oci-layout", VERSION.as_bytes())?;
        }
        let replaced = self.layout.blobs_of(&former);
        let mut list = File::options().append(true).create(true).open(self.ingest.join(SETTLED))?;
        list.write_all(replaced.iter().map(|name| format!("{name}\n")).collect::<String>().as_bytes())?;
        self.replace("index.json", &serde_json::to_vec(&index)?)?;
        self.made.0.clear();
        File::open(dir)?.sync_all()?;
        // What is young may be of a buildx or skopeo that has not written its entry yet.
        let young_since = self.started.checked_sub(GRACE).unwrap_or(self.started);
        self.layout.remove_unless_live(&index, |name, modified| modified < young_since || replaced.contains(name))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let new = self.ingest.join(name);
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.layout.dir.join(name))?;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // What cannot be removed now the next run removes.
        let _ = fs::remove_dir_all(&self.ingest);
    }
}

/// Takes a lock on a directory; `waiting` is called once if there is something to wait for.
fn lock(dir: &Path, how: FlockOperation, waiting: impl FnOnce()) -> Result<File> {
    let lock = File::open(dir)?;
    dirs::lock(&lock, how, waiting).with_context(|| format!("cannot lock {}", dir.display()))?;
    Ok(lock)
}

/// Where a blob waits in the ingest directory until all are synced.
const KEPT: &str = "kept";

/// In the ingest directory, names the blobs that were moved to their place, and those of the former index: should the run be
/// killed, the next one removes those that the index does not refer to.
const SETTLED: &str = "settled";

/// How long a blob may wait for the tool that wrote it to write its entry.
const GRACE: Duration = Duration::from_secs(3600);

/// Begins the names of directories in `ingest` that are ours.
const INGEST: &str = "docker-cache-";

/// Returns something in a directory that no export of ours has left there.
fn foreign(dir: &Path) -> Result<Option<fs::DirEntry>> {
    let mut entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?.flatten();
    let foreign = entries.find(|entry| !is_ours(&entry.file_name().to_string_lossy()));
    Ok(foreign.or_else(|| foreign_blob(dir)))
}

/// Returns a blob of somebody else's store: one of ours that has no index yet is beside what its run has left.
fn foreign_blob(dir: &Path) -> Option<fs::DirEntry> {
    let mut left = fs::read_dir(dir.join("ingest")).into_iter().flatten().flatten();
    if left.any(|left| left.file_name().to_string_lossy().starts_with(INGEST)) {
        return None;
    }
    fs::read_dir(dir.join("blobs/sha256")).ok()?.flatten().next()
}

fn is_ours(name: &str) -> bool {
    ["blobs", "ingest", "index.json", "index.json.lock"].contains(&name)
}

/// Takes the lock under which buildx changes the index of a layout; it removes the file afterwards, and so do we.
///
/// # Errors
/// When the file cannot be made, or the user cancels.
fn lock_of_buildx(dir: &Path) -> Result<impl Drop> {
    struct Lock(PathBuf, #[expect(dead_code, reason = "held")] File);
    impl Drop for Lock {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }
    let path = dir.join("index.json.lock");
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        dirs::lock(&file, FlockOperation::NonBlockingLockExclusive, || ())?;
        // Who had the lock may have removed the file, and another made one of the same name.
        let inode = file.metadata()?.ino();
        if path.metadata().is_ok_and(|there| there.ino() == inode) {
            return Ok(Lock(path, file));
        }
    }
}

impl Layout {
    /// Removes the blobs that `chosen` chooses by their file names and times, and that an index does not refer to; none if a
    /// manifest cannot be read, which may refer to anything.
    fn remove_unless_live(&self, index: &Index, chosen: impl Fn(&str, SystemTime) -> bool) -> Result<()> {
        let mut live = HashSet::new();
        if index.manifests.iter().any(|descriptor| self.reach(descriptor, 0, &mut live).is_err()) {
            return Ok(());
        }
        // Other bundles may lead there too.
        let is_link = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
        if is_link(&self.blobs()) || is_link(&self.dir.join("blobs")) {
            return Ok(());
        }
        for blob in fs::read_dir(self.blobs())?.flatten() {
            let name = blob.file_name().to_string_lossy().into_owned();
            let Ok(modified) = blob.metadata().and_then(|meta| meta.modified()) else { continue };
            let blob_of = Blob { digest: format!("sha256:{name}"), size: 0 };
            if chosen(&name, modified) && blob_of.check().is_ok() && !live.contains(&blob_of.digest) {
                fs::remove_file(blob.path())?;
            }
        }
        Ok(())
    }

    /// Returns the file names of the blobs that an index refers to, but of a damaged entry just what can be read.
    fn blobs_of(&self, index: &Index) -> HashSet<String> {
        let mut digests = HashSet::new();
        for descriptor in &index.manifests {
            let _ = self.reach(descriptor, 0, &mut digests);
        }
        digests.iter().map(|digest| digest.trim_start_matches("sha256:").to_owned()).collect()
    }

    /// Adds all that an entry refers to, whoever wrote it. What is there already was followed before.
    ///
    /// # Errors
    /// When it is damaged, or nested deeper than any tool nests, or the user cancels.
    pub fn reach(&self, descriptor: &Descriptor, depth: u32, live: &mut HashSet<String>) -> Result<()> {
        cancel::check()?;
        ensure!(depth <= 4, "{} is nested too deep", descriptor.digest);
        let blob = descriptor.blob()?;
        if live.insert(blob.digest.clone()) {
            self.listed(&blob, descriptor.content())?
                .iter()
                .try_for_each(|inner| self.reach(inner, depth + 1, live))?;
        }
        Ok(())
    }

    /// Returns true if another tool has put something else than layers at `latest`. What is damaged is lost already.
    pub fn has_foreign_latest(&self, index: &Index) -> bool {
        let is_foreign = |entry: &Descriptor| match entry.blob() {
            Ok(blob) => {
                let is_layers = |listed: Vec<Descriptor>| listed.iter().any(|inner| inner.media_type == LAYERS);
                verify::whole(self, &blob).is_ok() && !self.listed(&blob, entry.content()).is_ok_and(is_layers)
            }
            Err(_) => true,
        };
        index.manifests.iter().any(|entry| entry.ref_name() == LATEST && is_foreign(entry))
    }

    /// Returns what an index or a manifest lists.
    fn listed(&self, blob: &Blob, content: Content) -> Result<Vec<Descriptor>> {
        Ok(match content {
            Content::Index => serde_json::from_slice::<Index>(&self.json(blob)?).context("an index")?.manifests,
            Content::Manifest => {
                let manifest: Manifest = serde_json::from_slice(&self.json(blob)?).context("a manifest")?;
                std::iter::once(manifest.config).chain(manifest.layers).collect()
            }
            Content::Other => Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds a tree with this in its only archive.
    fn add(writer: &mut Writer, content: &str) {
        let [table, archive] =
            [format!("table of {content}"), content.into()].map(|text| writer.write(text.as_bytes()));
        let layers = vec![Layer { blob: archive.unwrap(), ..Layer::default() }];
        let config = TreeConfig { version: TREE_VERSION, table: table.unwrap(), layers, ..TreeConfig::default() };
        writer.add(&config).unwrap();
    }

    fn export(dir: &Path, content: &str) {
        let mut writer = Writer::open(dir, || ()).unwrap();
        add(&mut writer, content);
        writer.commit().unwrap();
    }

    fn blobs(dir: &Path) -> HashSet<String> {
        let blobs = fs::read_dir(dir.join("blobs/sha256")).unwrap();
        blobs.map(|blob| blob.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_is_replaced_goes_and_what_others_have_just_written_stays() {
        let dir = tempfile::tempdir().unwrap();
        export(dir.path(), "one");
        let one = blobs(dir.path());
        let names = ["1".repeat(64), "2".repeat(64), "photo.jpg".into()];
        let [young, old, photo] = names.map(|name| dir.path().join("blobs/sha256").join(name));
        fs::write(&young, "").unwrap();
        for file in [&old, &photo] {
            File::create(file).unwrap().set_modified(SystemTime::now() - 2 * GRACE).unwrap();
        }
        export(dir.path(), "two");
        assert!(young.exists() && !old.exists() && photo.exists());
        assert_eq!(blobs(dir.path()).len(), one.len() + 2);
        assert!(blobs(dir.path()).is_disjoint(&one));
    }

    #[test]
    fn an_export_that_comes_to_nothing_takes_away_the_directories_that_it_made_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        drop(Writer::open(&dir.path().join("a/b"), || ()).unwrap());
        assert!(!dir.path().join("a").exists());
        fs::create_dir_all(dir.path().join("mine/blobs")).unwrap();
        drop(Writer::open(&dir.path().join("mine"), || ()).unwrap());
        let left: Vec<_> = fs::read_dir(dir.path().join("mine")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(left, ["blobs"]);
        export(&dir.path().join("c"), "x");
        drop(Writer::open(&dir.path().join("c"), || ()).unwrap());
        assert!(dir.path().join("c/ingest").exists());
    }

    #[test]
    fn what_others_have_put_into_the_index_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &str| {
            let (layout, blob) = (Layout { dir: dir.path().into() }, digest(&mut content.as_bytes()).unwrap());
            fs::create_dir_all(layout.blobs()).unwrap();
            fs::write(layout.path(&blob), content).unwrap();
            let mut index = layout.index().unwrap();
            let annotations = BTreeMap::from([(REF_NAME.into(), name.into())]);
            index.put(Descriptor { annotations, ..Descriptor::of("of another", &blob) });
            fs::write(dir.path().join("oci-layout"), "{}").unwrap();
            fs::write(dir.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
            blob.digest
        };
        put("latest", "old");
        let gone = put("gone", "gone");
        let mut writer = Writer::open(dir.path(), || ()).unwrap();
        add(&mut writer, "one");
        let latest = put("latest", "new");
        let came = put("came", "came");
        fs::remove_file(dir.path().join("blobs/sha256").join(gone.trim_start_matches("sha256:"))).unwrap();
        let layout = writer.layout.clone();
        writer.commit().unwrap();
        let index = layout.index().unwrap();
        let digests: Vec<&str> = index.manifests.iter().map(|entry| entry.digest.as_str()).collect();
        assert_eq!((&digests[..2], digests.len()), (&[latest.as_str(), &came][..], 3));
        for entry in &index.manifests {
            assert!(layout.path(&entry.blob().unwrap()).exists());
        }
    }

    /// Puts a manifest with such a config into a layout, as other tools do, and returns its digest.
    fn put_image(layout: &Layout, name: &str, config: &str) -> String {
        fs::create_dir_all(layout.blobs()).unwrap();
        let write = |bytes: &[u8]| {
            let blob = digest(&mut &bytes[..]).unwrap();
            fs::write(layout.path(&blob), bytes).unwrap();
            blob
        };
        let config = Descriptor::of(config, &write(name.as_bytes()));
        let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": []});
        let blob = write(manifest.to_string().as_bytes());
        let mut index = layout.index().unwrap();
        let annotations = BTreeMap::from([(REF_NAME.into(), name.into())]);
        index.put(Descriptor { annotations, ..Descriptor::of(MANIFEST, &blob) });
        fs::write(layout.dir.join("oci-layout"), VERSION).unwrap();
        fs::write(layout.dir.join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        blob.digest
    }

    #[test]
    fn an_image_of_another_tool_keeps_the_name_latest_and_layers_of_a_build_do_not() {
        for (kind, stays) in [("application/vnd.oci.image.config.v1+json", true), (LAYERS, false)] {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout { dir: dir.path().into() };
            let there = put_image(&layout, LATEST, kind);
            let mut writer = Writer::open(dir.path(), || ()).unwrap();
            assert_eq!(writer.layout.has_foreign_latest(&writer.index), stays);
            let stage = writer.stage_layers().unwrap();
            let new = put_image(&stage, "new", LAYERS);
            writer.take_layers(&stage, &["layers-a", LATEST]).unwrap();
            writer.commit().unwrap();
            let index = layout.index().unwrap();
            let mut entries: Vec<_> = index.manifests.iter().map(|entry| (entry.ref_name(), &entry.digest)).collect();
            entries.sort();
            assert_eq!(entries, [(LATEST, if stays { &there } else { &new }), ("layers-a", &new)]);
            assert!(verify::all(&layout).unwrap().iter().all(|entry| entry.broken.is_none()));
            assert_eq!(blobs(dir.path()).contains(there.trim_start_matches("sha256:")), stays);
        }
    }

    #[test]
    fn an_entry_by_another_kind_of_digest_stays_and_so_does_all_that_it_may_refer_to() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { dir: dir.path().into() };
        export(dir.path(), "one");
        let one = blobs(dir.path());
        let mut index = layout.index().unwrap();
        let other = Descriptor { digest: format!("sha512:{}", "1".repeat(128)), ..Descriptor::default() };
        index.manifests.push(other.clone());
        fs::write(dir.path().join("index.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        export(dir.path(), "two");
        assert!(layout.index().unwrap().manifests.contains(&other));
        assert!(blobs(dir.path()).is_superset(&one));
    }

    #[test]
    fn another_store_of_blobs_is_no_bundle_to_begin_and_nothing_is_collected_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        fs::create_dir_all(store.join("ingest")).unwrap();
        fs::create_dir_all(store.join("blobs/sha256")).unwrap();
        fs::write(store.join("blobs/sha256").join("1".repeat(64)), "").unwrap();
        assert!(Writer::open(&store, || ()).is_err());
        let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
        let shared = dir.path().join("shared");
        fs::create_dir_all(&shared).unwrap();
        for bundle in [&one, &two] {
            fs::create_dir(bundle).unwrap();
            std::os::unix::fs::symlink(&shared, bundle.join("blobs")).unwrap();
        }
        export(&one, "one");
        let before = blobs(&one);
        export(&one, "more");
        assert!(blobs(&one).is_superset(&before));
    }

    #[test]
    fn what_is_no_bundle_says_what_leads_to_one() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("b");
        let hint = || Layout::open(&bundle).unwrap_err().to_string();
        let anew = format!("`docker cache export --dest {}` makes one", bundle.display());
        assert!(hint().ends_with(&anew), "{}", hint());
        fs::create_dir(&bundle).unwrap();
        assert!(hint().ends_with(&anew), "{}", hint());
        export(&bundle, "one");
        let whole = blobs(&bundle);
        let (mark, index) = (bundle.join("oci-layout"), bundle.join("index.json"));
        fs::remove_file(&mark).unwrap();
        assert!(hint().contains(&format!("> {}`", mark.display())), "{}", hint());
        // An export makes no other bundle of it, and says the same.
        assert_eq!(Writer::open(&bundle, || ()).unwrap_err().to_string(), hint());
        assert_eq!(blobs(&bundle), whole);
        fs::write(&mark, VERSION).unwrap();
        fs::remove_file(&index).unwrap();
        assert!(hint().contains("copy it again"), "{}", hint());
        fs::remove_file(&mark).unwrap();
        // An export would refuse this one.
        assert!(hint().contains("name the directory"), "{}", hint());
    }

    #[test]
    fn the_lock_of_buildx_is_on_the_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("index.json.lock");
        let first = lock_of_buildx(dir.path()).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| lock_of_buildx(dir.path()).map(|lock| (lock, path.exists())));
            std::thread::sleep(Duration::from_millis(50));
            drop(first);
            let (second, is_there) = second.join().unwrap().unwrap();
            assert!(is_there);
            drop(second);
        });
        assert!(!path.exists());
    }

    #[test]
    fn what_a_killed_export_had_moved_to_its_place_goes_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        export(dir.path(), "one");
        let one = blobs(dir.path());
        let mut writer = Writer::open(dir.path(), || ()).unwrap();
        add(&mut writer, "two");
        writer.settle(true).unwrap();
        // One that is killed does not clean up.
        let (ingest, aside) = (writer.ingest.clone(), dir.path().join("aside"));
        fs::rename(&ingest, &aside).unwrap();
        drop(writer);
        fs::rename(&aside, &ingest).unwrap();
        assert_eq!(blobs(dir.path()).len(), 2 * one.len());
        drop(Writer::open(dir.path(), || ()).unwrap());
        assert_eq!(blobs(dir.path()), one);
        assert!(!ingest.exists());
    }
}
