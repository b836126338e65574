//! A bundle in a registry: the tag is an index, as that of a directory is; mounts and volumes are artifacts beside the
//! layers, which buildx itself pushes. Blobs go first, then manifests, then the tag: what it named stays whole until then.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use super::location::Reference;
use super::registry::{INDEX, Registry};
use super::verify::MAX_MANIFESTS;
use super::{Descriptor, Index, Layout, Manifest, REF_NAME, TreeConfig, Writer};
use crate::docker::Credentials;
use crate::inside::pack::Blob;

/// What a tag is that holds a bundle.
const BUNDLE: &str = "application/vnd.docker-cache.bundle.v1";

/// Blobs that go over the line at the same time.
const LINES: usize = 4;

/// A bundle in a registry, as its tag was when it was looked at.
#[derive(Debug)]
pub struct Remote {
    registry: Registry,
    index: Index,
    /// Digest of the tag's index; none if there is no tag.
    digest: Option<String>,
}

/// Is told of files and bytes.
type Progress<'a> = &'a mut (dyn FnMut(u64, u64) + Send);

impl Remote {
    /// Looks at a tag, which need not exist.
    ///
    /// # Errors
    /// When the registry does not answer or refuses, or the tag is something else.
    pub fn open(reference: &Reference, credentials: Credentials, push: bool) -> Result<Remote> {
        let registry = Registry::connect(reference, credentials, push)?;
        let (index, digest) = read(&registry)?;
        Ok(Remote { registry, index, digest })
    }

    /// Returns true if the tag is there.
    pub fn exists(&self) -> bool {
        self.digest.is_some()
    }

    /// Lets an export begin where the last one ended: fetches what the bundle knows of these entries, but no archive.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn prepare(&self, writer: &mut Writer, names: &[String]) -> Result<()> {
        writer.index = self.index.clone();
        let mut gone = HashSet::new();
        for descriptor in &self.index.manifests {
            let blob = descriptor.blob()?;
            let Some((_, bytes)) = self.registry.manifest(&blob.digest)? else {
                gone.insert(blob.digest);
                continue;
            };
            let manifest = serde_json::from_slice::<Manifest>(&bytes);
            if let (Ok(manifest), true) = (manifest, names.iter().any(|name| name == descriptor.ref_name())) {
                fs::write(writer.layout.path(&blob), bytes)?;
                self.prepare_entry(writer, &manifest)?;
            }
        }
        // The registry refuses an index that refers to what is not there.
        writer.index.manifests.retain(|descriptor| !gone.contains(&descriptor.digest));
        Ok(())
    }

    /// What cannot be fetched is packed again.
    fn prepare_entry(&self, writer: &mut Writer, manifest: &Manifest) -> Result<()> {
        let (table, archives) = manifest.layers.split_first().context("a manifest lists nothing")?;
        for descriptor in [&manifest.config, table] {
            let blob = descriptor.blob()?;
            if self.registry.has("blobs", &blob.digest)? {
                self.registry.download(&blob, &writer.layout.path(&blob), &|_| ())?;
            }
        }
        let there = Mutex::new(&mut writer.elsewhere);
        side_by_side(archives, |archive| {
            if self.registry.has("blobs", &archive.blob()?.digest)? {
                there.lock().unwrap_or_else(PoisonError::into_inner).insert(archive.digest.clone());
            }
            Ok(())
        })
    }

    /// Returns where buildx shall push layers of this name: `HOST/NAME:TAG-layers-…`, and whether it may be insecure.
    pub fn layers(&self, name: &str) -> Reference {
        let Reference { tag, .. } = &self.registry.reference;
        // Tags have at most 128 characters; the end of the name is its hash.
        let begin = &tag[..tag.len().min(127_usize.saturating_sub(name.len()))];
        Reference { tag: format!("{begin}-{name}"), ..self.registry.reference.clone() }
    }

    /// Puts layers that buildx has pushed into the index, under this name. Returns their bytes.
    ///
    /// # Errors
    /// When they did not arrive.
    pub fn take_layers(&self, writer: &mut Writer, name: &str, pushed: &str) -> Result<(Descriptor, u64)> {
        let (mut descriptor, bytes) =
            self.registry.manifest(pushed)?.with_context(|| format!("{pushed} did not arrive in the registry"))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).context("what buildx pushed is no manifest")?;
        descriptor.annotations.insert(REF_NAME.into(), name.into());
        writer.put(descriptor.clone());
        Ok((descriptor, manifest.layers.iter().map(|layer| layer.size).sum()))
    }

    /// Sends what the registry does not have, the tag last. Returns the bytes of the blobs that went over the line.
    ///
    /// # Errors
    /// When the registry does not answer or refuses; the tag is then what it was.
    pub fn push(&self, writer: Writer, progress: Progress<'_>) -> Result<u64> {
        let entries: Vec<&Descriptor> =
            writer.index.manifests.iter().filter(|entry| !self.index.manifests.contains(entry)).collect();
        let trees = entries.iter().filter(|entry| entry.is_tree());
        let (mut blobs, mut manifests, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for entry in trees {
            let blob = entry.blob()?;
            let bytes = writer.layout.json(&blob)?;
            let manifest: Manifest = serde_json::from_slice(&bytes)?;
            for inner in std::iter::once(&manifest.config).chain(&manifest.layers) {
                if !writer.elsewhere.contains(&inner.digest) && seen.insert(inner.digest.clone()) {
                    blobs.push(inner.blob()?);
                }
            }
            manifests.push((blob, bytes));
        }
        let sent = AtomicU64::new(0);
        let told = Telling::new(progress);
        side_by_side(&blobs, |blob| {
            let bytes = self.registry.upload(blob, &writer.layout.path(blob), &|bytes| told.more(0, bytes))?;
            sent.fetch_add(bytes, Relaxed);
            told.more(u64::from(bytes > 0), 0);
            Ok(())
        })?;
        for (blob, bytes) in manifests {
            if !self.registry.has("manifests", &blob.digest)? {
                self.registry.put_manifest(&blob.digest, super::MANIFEST, &bytes)?;
            }
        }
        self.tag(&writer.index)?;
        Ok(sent.into_inner())
    }

    /// Makes the tag name the new index. What others have pushed meanwhile is kept: registries have no way to replace a tag
    /// only if it is still what it was, so it is read right before, and again a moment after.
    fn tag(&self, new: &Index) -> Result<()> {
        for round in 0..ROUNDS {
            let (latest, digest) = read(&self.registry)?;
            let merged = merged(&latest, &self.index, new, round == 0);
            if digest.is_some() && merged.manifests == latest.manifests {
                return Ok(());
            }
            self.registry.put_manifest(&self.registry.reference.tag, INDEX, &serde_json::to_vec(&merged)?)?;
            thread::sleep(SETTLING);
        }
        bail!("{} is written by others all the time\nhint: export again", self.registry.reference)
    }

    /// Copies the entries that are wanted, told by what the bundle knows of a mount or volume, or by nothing for layers, to
    /// an empty directory.
    ///
    /// # Errors
    /// When something is not there or damaged, or the registry does not answer or refuses.
    pub fn fetch(
        &self,
        dir: &Path,
        wanted: impl Fn(Option<&TreeConfig>) -> bool,
        progress: Progress<'_>,
    ) -> Result<()> {
        let reference = &self.registry.reference;
        ensure!(
            self.exists(),
            "there is no {reference}\nhint: `docker cache export --dest type=registry,ref={reference}` makes it"
        );
        let layout = Layout { dir: dir.into() };
        fs::create_dir_all(layout.blobs())?;
        let mut index = self.index.clone();
        index.manifests.clear();
        let (mut blobs, mut seen) = (Vec::new(), HashSet::new());
        for entry in &self.index.manifests {
            let name = || entry.ref_name().to_string();
            let listed = self.fetch_manifest(&layout, entry, 0).with_context(name)?;
            let mut config = None;
            if entry.is_tree() {
                let blob = listed.first().context("its manifest lists nothing").with_context(name)?;
                self.registry.download(blob, &layout.path(blob), &|_| ())?;
                config = Some(layout.entry(entry).with_context(name)?.config);
            }
            if wanted(config.as_ref()) {
                index.manifests.push(entry.clone());
                blobs.extend(listed.into_iter().filter(|blob| seen.insert(blob.clone())));
            }
        }
        let told = Telling::new(progress);
        side_by_side(&blobs, |blob| {
            self.registry.download(blob, &layout.path(blob), &|bytes| told.more(0, bytes))?;
            told.more(1, 0);
            Ok(())
        })?;
        fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
        Ok(())
    }

    /// Fetches a manifest, and those that it lists; returns the blobs that they refer to.
    fn fetch_manifest(&self, layout: &Layout, descriptor: &Descriptor, depth: u32) -> Result<Vec<Blob>> {
        ensure!(depth <= 4, "it is nested too deep");
        let blob = descriptor.blob()?;
        let found = self.registry.manifest(&blob.digest)?;
        let (_, bytes) = found.with_context(|| gone(&self.registry.reference, &blob.digest))?;
        fs::write(layout.path(&blob), &bytes)?;
        if !is_index(&descriptor.media_type) {
            let manifest: Manifest = serde_json::from_slice(&bytes).context("a manifest makes no sense")?;
            return std::iter::once(&manifest.config).chain(&manifest.layers).map(Descriptor::blob).collect();
        }
        let mut blobs = Vec::new();
        let index: Index = serde_json::from_slice(&bytes).context("an index makes no sense")?;
        for inner in &index.manifests {
            match inner.media_type.contains("manifest") || is_index(&inner.media_type) {
                true => blobs.extend(self.fetch_manifest(layout, inner, depth + 1)?),
                false => blobs.push(inner.blob()?),
            }
        }
        Ok(blobs)
    }
}

/// How often the tag is written, should others write it all the time.
const ROUNDS: usize = 8;
/// In this time others see what was written, who read the tag before.
const SETTLING: Duration = Duration::from_millis(300);

fn is_index(media_type: &str) -> bool {
    media_type.contains("index") || media_type.contains("manifest.list")
}

/// Says that a registry has removed what a tag refers to.
pub(super) fn gone(reference: &Reference, digest: &str) -> String {
    format!("{reference} refers to {digest}, which the registry does not have any more\nhint: export again")
}

/// Reads the tag.
fn read(registry: &Registry) -> Result<(Index, Option<String>)> {
    let reference = &registry.reference;
    let Some((descriptor, bytes)) = registry.manifest(&reference.tag)? else {
        let others = [("mediaType", INDEX), ("artifactType", BUNDLE)];
        let others = others.map(|(key, value)| (key.to_string(), Value::from(value)));
        return Ok((Index { schema_version: 2, manifests: Vec::new(), others: Map::from_iter(others) }, None));
    };
    let index = serde_json::from_slice::<Index>(&bytes)
        .ok()
        .filter(|index| index.others.get("artifactType") == Some(&BUNDLE.into()));
    let index = index.filter(|_| is_index(&descriptor.media_type)).with_context(|| {
        format!("{reference} is something else than a bundle\nhint: name another tag, such as {}-cache", reference.tag)
    })?;
    ensure!(index.manifests.len() <= MAX_MANIFESTS, "{reference} lists {} manifests", index.manifests.len());
    Ok((index, Some(descriptor.digest)))
}

/// Returns the latest index with what this run has changed in the former one; the rest is of others. Afterwards, what
/// another run has put over an entry of this one stays, unless that run only did not know of it.
fn merged(latest: &Index, former: &Index, new: &Index, first: bool) -> Index {
    let mut merged = latest.clone();
    for entry in &new.manifests {
        let place = merged.manifests.iter_mut().find(|other| other.ref_name() == entry.ref_name());
        match place {
            Some(place) if !former.manifests.contains(entry) && (first || former.manifests.contains(place)) => {
                *place = entry.clone();
            }
            Some(_) => {}
            None => merged.manifests.push(entry.clone()),
        }
    }
    merged
}

/// Progress that several threads tell of.
struct Telling<'a>(Mutex<(u64, u64, Progress<'a>)>);

impl<'a> Telling<'a> {
    fn new(progress: Progress<'a>) -> Telling<'a> {
        Telling(Mutex::new((0, 0, progress)))
    }

    fn more(&self, files: u64, bytes: u64) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.0 += files;
        told.1 += bytes;
        let (files, bytes) = (told.0, told.1);
        (told.2)(files, bytes);
    }
}

/// Runs `work` on all items, a few at a time, until one fails.
fn side_by_side<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<anyhow::Error>> = Mutex::default();
    let failure = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    thread::scope(|scope| {
        for _ in 0..LINES.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Relaxed)).filter(|_| failure().is_none()) {
                    if let Err(error) = work(item) {
                        failure().get_or_insert(error);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
