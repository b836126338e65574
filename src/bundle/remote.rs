//! A bundle in a registry: the tag is an index, as that of a directory is; mounts and volumes are artifacts beside the
//! layers, which buildx itself pushes. Blobs go first, then manifests, then the tag: what it named stays whole until then.
//!
//! Registries that remove what has no tag do not all look into an index, so each entry has two tags beside the bundle's: one
//! names what the index does, and at the other, which ends in `.next`, a new one waits until the index names it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value, json};

use super::location::{Location, Reference};
use super::registry::{Broken, INDEX, Registry, is_lenient};
use super::verify::{MAX_MANIFESTS, ensure_few};
use super::{Content, Descriptor, Index, LAYERS, Layout, Manifest, NAMES, REF_NAME, TAG, TreeConfig, VERSION, Writer};
use crate::docker::{Certificates, Credentials};
use crate::inside::pack::{Blob, digest};
use crate::parallel;

/// What a tag is that holds a bundle.
const BUNDLE: &str = "application/vnd.docker-cache.bundle.v1";

/// Ends the tag at which an entry waits.
const NEXT: &str = ".next";

/// Blobs that go over the line at the same time.
const LINES: usize = 4;

/// A bundle in a registry, as its tag was when it was looked at.
#[derive(Debug)]
pub struct Remote {
    registry: Registry,
    index: Index,
    /// False if there is no such tag yet.
    exists: bool,
    /// Digests of manifests that the index lists and the registry does not have any more, or not whole.
    gone: HashSet<String>,
}

/// Is told of files and bytes.
pub type Progress<'a> = &'a mut (dyn FnMut(u64, u64) + Send);

impl Remote {
    /// Looks at a tag, which need not exist.
    ///
    /// # Errors
    /// When the registry does not answer or refuses, or the tag is something else.
    pub fn open(
        reference: &Reference,
        credentials: Credentials,
        certificates: &Certificates,
        push: bool,
    ) -> Result<Remote> {
        let registry = Registry::connect(reference, credentials, certificates, push)?;
        if push {
            registry.may_push()?;
        }
        let (index, exists) = read(&registry)?;
        Ok(Remote { registry, index, exists, gone: HashSet::new() })
    }

    /// Lets an export begin where the last one ended: fetches what the bundle knows of these entries, but no archive.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn prepare(&mut self, writer: &mut Writer, names: &[String]) -> Result<()> {
        writer.index = self.index.clone();
        writer.tag = Some(self.registry.reference.tag.clone());
        let layout = &writer.layout;
        let (manifests, gone) = (Mutex::new(Vec::new()), Mutex::new(&mut self.gone));
        parallel::try_each(LINES, &self.index.manifests, |descriptor| {
            let blob = descriptor.blob()?;
            let bytes = match names.iter().any(|name| name == descriptor.ref_name()) {
                true => undamaged(self.registry.manifest(&blob.digest))?.flatten().map(|(_, bytes)| bytes),
                false => {
                    let has = self.registry.has("manifests", &blob.digest);
                    has.map_err(|error| told(&self.registry.reference, descriptor, error))?.then(Vec::new)
                }
            };
            let Some(bytes) = bytes else {
                gone.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest);
                return Ok(());
            };
            if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
                fs::write(layout.path(&blob), bytes)?;
                manifests.lock().unwrap_or_else(PoisonError::into_inner).push(manifest);
            }
            Ok(())
        })?;
        let (mut blobs, mut seen) = (Vec::new(), HashSet::new());
        for manifest in manifests.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let (table, archives) = manifest.layers.split_first().context("a manifest lists nothing")?;
            let fetched = [&manifest.config, table].map(|descriptor| (descriptor, true));
            for (descriptor, is_fetched) in fetched.into_iter().chain(archives.iter().map(|archive| (archive, false))) {
                let blob = descriptor.blob()?;
                if seen.insert(blob.clone()) {
                    blobs.push((blob, is_fetched));
                }
            }
        }
        let elsewhere = Mutex::new(&mut writer.elsewhere);
        parallel::try_each(LINES, &blobs, |(blob, is_fetched)| {
            if !self.registry.has("blobs", &blob.digest)? {
                // It is packed again.
            } else if *is_fetched {
                undamaged(self.registry.download(blob, &layout.path(blob), &|_| ()))?;
            } else {
                elsewhere.lock().unwrap_or_else(PoisonError::into_inner).insert(blob.digest.clone());
            }
            Ok(())
        })
    }

    /// Checks that nothing of others is at the tags that an export of these entries writes.
    ///
    /// # Errors
    /// When there is, or the registry does not answer or refuses.
    pub fn ensure_apart(&self, names: &[String]) -> Result<()> {
        let tags: Vec<(&String, &str)> = names.iter().flat_map(|name| [(name, ""), (name, NEXT)]).collect();
        parallel::try_each(LINES, &tags, |(name, end)| {
            let reference = self.beside(name, end);
            let there = undamaged(self.registry.digest(&reference.tag))?.flatten();
            if let Some(there) = there {
                ensure!(
                    self.is_own(name, &there)?,
                    "{reference} is something else than an entry of this bundle\nhint: name another tag, such as {}-cache",
                    self.registry.reference.tag
                );
            }
            Ok(())
        })
    }

    /// Returns true for an entry of this bundle, for layers that buildx has pushed to become one, and for what cannot be read:
    /// that is lost already.
    fn is_own(&self, name: &str, digest: &str) -> Result<bool> {
        if self.index.manifests.iter().any(|entry| entry.digest == digest) {
            return Ok(true);
        }
        let Some((_, bytes)) = undamaged(self.registry.manifest(digest))?.flatten() else { return Ok(true) };
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) else { return Ok(false) };
        let is_pushed = !name.starts_with(NAMES) && manifest.config.media_type == LAYERS;
        Ok(is_pushed || manifest.annotations.get(TAG) == Some(&self.registry.reference.tag))
    }

    fn beside(&self, name: &str, end: &str) -> Reference {
        beside(&self.registry.reference, name, end)
    }

    /// Returns the tag at which a new entry waits, once what the index names now has its own.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn waiting(&self, writer: &Writer, name: &str) -> Result<Reference> {
        self.hold(writer, &[name])?;
        Ok(self.beside(name, NEXT))
    }

    /// Makes the tags of these entries name what the index does now, and still does when that is done.
    fn hold(&self, writer: &Writer, names: &[&str]) -> Result<()> {
        for _ in 0..ROUNDS {
            let mut entries = read(&self.registry)?.0.manifests;
            entries.retain(|entry| names.contains(&entry.ref_name()));
            if !self.settle(writer, &entries)? {
                return Ok(());
            }
        }
        Err(self.restless())
    }

    /// Makes the tags of these entries name them, but for what is of others. Returns true if some did not. Of entries that
    /// share a tag, the first has it.
    fn settle(&self, writer: &Writer, entries: &[Descriptor]) -> Result<bool> {
        let (changed, mut seen) = (AtomicBool::new(false), HashSet::new());
        let tagged = entries.iter().map(|entry| (self.beside(entry.ref_name(), "").tag, entry));
        let tagged: Vec<_> = tagged.filter(|(tag, _)| seen.insert(tag.clone())).collect();
        parallel::try_each(LINES, &tagged, |(tag, entry)| {
            let Some(there) = undamaged(self.registry.digest(tag))? else { return Ok(()) };
            if let Some(there) = there
                && (there == entry.digest || !self.is_own(entry.ref_name(), &there)?)
            {
                return Ok(());
            }
            let (kind, bytes) = match writer.used.contains(&entry.digest) {
                true => (entry.media_type.clone(), writer.layout.json(&entry.blob()?)?),
                false => match undamaged(self.registry.manifest(&entry.digest))?.flatten() {
                    Some((descriptor, bytes)) => (descriptor.media_type, bytes),
                    None => return Ok(()),
                },
            };
            self.registry.put_manifest(tag, &kind, &bytes)?;
            changed.store(true, Relaxed);
            Ok(())
        })?;
        Ok(changed.into_inner())
    }

    /// Puts layers that buildx has pushed into the index, under this name, with a manifest of the bundle's own. Returns their
    /// bytes.
    ///
    /// # Errors
    /// When they did not arrive.
    pub fn take_layers(&self, writer: &mut Writer, name: &str, pushed: &str) -> Result<(Descriptor, u64)> {
        let (mut descriptor, bytes) =
            self.registry.manifest(pushed)?.with_context(|| format!("{pushed} did not arrive in the registry"))?;
        let no_manifest = "what buildx pushed is no manifest";
        let mut manifest: Manifest = serde_json::from_slice(&bytes).context(no_manifest)?;
        let mut fields: Map<String, Value> = serde_json::from_slice(&bytes).context(no_manifest)?;
        manifest.annotations.insert(TAG.into(), self.registry.reference.tag.clone());
        fields.insert("annotations".into(), json!(manifest.annotations));
        let bytes = serde_json::to_vec(&fields)?;
        let blob = digest(&mut &bytes[..])?;
        fs::write(writer.layout.path(&blob), bytes)?;
        writer.used.insert(blob.digest.clone());
        (descriptor.digest, descriptor.size) = (blob.digest, blob.size);
        descriptor.annotations.insert(REF_NAME.into(), name.into());
        writer.index.put(descriptor.clone());
        Ok((descriptor, manifest.layers.iter().map(|layer| layer.size).sum()))
    }

    /// Sends what the registry does not have, the tag last. Returns the bytes of the entries that went over the line.
    ///
    /// # Errors
    /// When the registry does not answer or refuses; the tag then names all of what it did, or all of what is new.
    pub fn push(&self, mut writer: Writer, progress: Progress<'_>) -> Result<u64> {
        writer.settle(false)?;
        let trees =
            writer.index.manifests.iter().filter(|entry| entry.is_tree() && writer.used.contains(&entry.digest));
        let (mut blobs, mut seen) = (Vec::new(), HashSet::new());
        for entry in trees {
            let manifest: Manifest = serde_json::from_slice(&writer.layout.json(&entry.blob()?)?)?;
            for inner in std::iter::once(&manifest.config).chain(&manifest.layers) {
                if !writer.elsewhere.contains(&inner.digest) && seen.insert(inner.digest.clone()) {
                    blobs.push(inner.blob()?);
                }
            }
        }
        let sent = AtomicU64::new(0);
        let told = Telling::new(progress);
        parallel::try_each(LINES, &blobs, |blob| {
            let bytes = self.registry.upload(blob, &writer.layout.path(blob), &|bytes| told.more(0, bytes))?;
            sent.fetch_add(bytes, Relaxed);
            told.more(u64::from(bytes > 0), 0);
            Ok(())
        })?;
        let is_there = |entry: &Descriptor| self.index.manifests.iter().any(|former| former.digest == entry.digest);
        let new = writer.index.manifests.iter().filter(|entry| {
            writer.used.contains(&entry.digest) && (self.gone.contains(&entry.digest) || !is_there(entry))
        });
        let new: Vec<&Descriptor> = new.collect();
        if !new.is_empty() {
            self.hold(&writer, &new.iter().map(|entry| entry.ref_name()).collect::<Vec<_>>())?;
        }
        parallel::try_each(LINES, &new, |entry| {
            let bytes = writer.layout.json(&entry.blob()?)?;
            let put = |tag: &str| self.registry.put_manifest(tag, &entry.media_type, &bytes);
            // Where tags cannot be changed, buildx has just used this one up.
            put(&self.beside(entry.ref_name(), NEXT).tag).or_else(|why| put(&entry.digest).map_err(|_| why))?;
            if entry.is_tree() {
                sent.fetch_add(entry.size, Relaxed);
            }
            Ok(())
        })?;
        self.tag(&writer)?;
        Ok(sent.into_inner())
    }

    /// Makes the tag name the new index. What others have pushed meanwhile is kept: registries have no way to replace a tag
    /// only if it is still what it was, so it is read right before, and again a moment after.
    fn tag(&self, writer: &Writer) -> Result<()> {
        for round in 0..ROUNDS {
            let (latest, exists) = read(&self.registry)?;
            let mut merged = merged(&latest, &self.index, &writer.index, round == 0);
            merged.others.insert("annotations".into(), json!({TAG: self.registry.reference.tag}));
            // The registry refuses an index that refers to what is not there.
            merged.manifests.retain(|entry| !self.gone.contains(&entry.digest) || writer.used.contains(&entry.digest));
            let is_done = exists && merged.manifests == latest.manifests;
            if !is_done {
                ensure_few(&merged, &self.registry.reference)?;
                self.registry.put_manifest(&self.registry.reference.tag, INDEX, &serde_json::to_vec(&merged)?)?;
            }
            if !self.settle(writer, &merged.manifests)? && is_done {
                return Ok(());
            }
            thread::sleep(SETTLING);
        }
        Err(self.restless())
    }

    fn restless(&self) -> anyhow::Error {
        anyhow!("{} is written by others all the time\nhint: export again", self.registry.reference)
    }

    /// Copies the entries that are wanted, told by what the bundle knows of a mount or volume, or by nothing for layers, to
    /// an empty directory. What is wrong with others does not matter.
    ///
    /// # Errors
    /// When something is not there or damaged, or the registry does not answer or refuses.
    pub fn fetch(
        &self,
        dir: &Path,
        wanted: impl Fn(Option<&TreeConfig>) -> bool,
        progress: Progress<'_>,
    ) -> Result<()> {
        self.fetch_or(dir, wanted, progress, &|entry, error| Err(told(&self.registry.reference, entry, error)))
    }

    /// Copies all entries as far as the registry has them. Returns, by the digest of the entry, what it has not.
    ///
    /// # Errors
    /// When the registry does not answer or refuses.
    pub fn fetch_all(&self, dir: &Path, progress: Progress<'_>) -> Result<HashMap<String, Broken>> {
        let broken = Mutex::new(HashMap::new());
        self.fetch_or(dir, |_| true, progress, &|entry, error| {
            let found = error.downcast().map_err(|error| told(&self.registry.reference, entry, error))?;
            let mut broken = broken.lock().unwrap_or_else(PoisonError::into_inner);
            broken.entry(entry.digest.clone()).or_insert(found);
            Ok(())
        })?;
        Ok(broken.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn fetch_or(
        &self,
        dir: &Path,
        wanted: impl Fn(Option<&TreeConfig>) -> bool,
        progress: Progress<'_>,
        failed: &(dyn Fn(&Descriptor, anyhow::Error) -> Result<()> + Sync),
    ) -> Result<()> {
        let reference = &self.registry.reference;
        ensure!(
            self.exists,
            "there is no {reference}\nhint: `docker cache export --dest {}` makes it",
            Location::Registry(reference.clone())
        );
        let layout = Layout { dir: dir.into() };
        fs::create_dir_all(layout.blobs())?;
        let mut index = self.index.clone();
        index.manifests.clear();
        let (mut blobs, mut seen) = (Vec::new(), HashSet::new());
        let found = self.index.manifests.chunks(LINES);
        let found = found.flat_map(|some| parallel::each(some, |entry| self.fetch_entry(&layout, entry)));
        for (entry, found) in self.index.manifests.iter().zip(found) {
            let config = match &found {
                Ok((_, config)) => config.clone(),
                Err(_) => entry.is_tree().then(|| entry.told()),
            };
            if wanted(config.as_ref()) {
                index.manifests.push(entry.clone());
                match found {
                    Ok((listed, _)) => {
                        let new = listed.into_iter().filter(|blob| seen.insert(blob.clone()));
                        blobs.extend(new.map(|blob| (entry, blob)));
                    }
                    Err(error) => failed(entry, error)?,
                }
            }
        }
        let telling = Telling::new(progress);
        parallel::try_each(LINES, &blobs, |(entry, blob)| {
            let done = self.registry.download(blob, &layout.path(blob), &|bytes| telling.more(0, bytes));
            done.or_else(|error| failed(entry, error))?;
            telling.more(1, 0);
            Ok(())
        })?;
        fs::write(dir.join("oci-layout"), VERSION)?;
        fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
        Ok(())
    }

    /// Fetches what the bundle knows of an entry; returns that, of a mount or volume, and the blobs that it refers to.
    fn fetch_entry(&self, layout: &Layout, entry: &Descriptor) -> Result<(Vec<Blob>, Option<TreeConfig>)> {
        let listed = self.fetch_manifest(layout, entry, 0, &mut HashSet::new())?;
        if !entry.is_tree() {
            return Ok((listed, None));
        }
        let config = listed.first().context("its manifest lists nothing")?;
        self.registry.download(config, &layout.path(config), &|_| ())?;
        Ok((listed, Some(layout.entry(entry)?.config)))
    }

    /// Fetches a manifest, and those that it lists and that are not `seen` yet; returns the blobs that they refer to.
    fn fetch_manifest(
        &self,
        layout: &Layout,
        descriptor: &Descriptor,
        depth: u32,
        seen: &mut HashSet<Blob>,
    ) -> Result<Vec<Blob>> {
        ensure!(depth <= 4, "it is nested too deep");
        ensure!(seen.len() < MAX_MANIFESTS, "it refers to too many manifests");
        let blob = descriptor.blob()?;
        if !seen.insert(blob.clone()) {
            return Ok(Vec::new());
        }
        let found = self.registry.manifest(&blob.digest)?;
        let (_, bytes) = found.ok_or_else(|| Broken::Gone(blob.digest.clone()))?;
        fs::write(layout.path(&blob), &bytes)?;
        if descriptor.content() != Content::Index {
            let manifest: Manifest = serde_json::from_slice(&bytes).context("a manifest makes no sense")?;
            return std::iter::once(&manifest.config).chain(&manifest.layers).map(Descriptor::blob).collect();
        }
        let mut blobs = Vec::new();
        let index: Index = serde_json::from_slice(&bytes).context("an index makes no sense")?;
        for inner in &index.manifests {
            match inner.content() {
                Content::Other => blobs.push(inner.blob()?),
                _ => blobs.extend(self.fetch_manifest(layout, inner, depth + 1, seen)?),
            }
        }
        Ok(blobs)
    }
}

/// Characters that a tag may have.
const MAX_TAG: usize = 128;
/// How often the tag is written, should others write it all the time.
const ROUNDS: usize = 8;
/// In this time others see what was written, who read the tag before.
const SETTLING: Duration = Duration::from_millis(300);

/// Returns a tag of one entry beside the bundle's: `main-layers-web-1b2c3d4e`, and one with an end.
fn beside(reference: &Reference, name: &str, end: &str) -> Reference {
    let in_tag = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = name.strip_prefix(NAMES).unwrap_or(name).chars().map(in_tag).collect();
    let mut tag = format!("{}-{name}{end}", reference.tag);
    if tag.len() > MAX_TAG {
        let hash = digest(&mut tag.as_bytes()).unwrap_or_default();
        tag.replace_range(MAX_TAG - 8.., &hash.file()[..8]);
    }
    Reference { tag, ..reference.clone() }
}

/// Says how the next export sends all of an entry that is broken, by what the registry has of it.
pub fn remedy(reference: &Reference, name: &str, broken: Option<&Broken>) -> String {
    let lenient = if is_lenient(reference) { "--tls-verify=false " } else { "" };
    match broken {
        Some(Broken::Unreadable(_)) => "export to another tag: what a registry cannot read it does not remove".into(),
        Some(Broken::Gone(_)) => "export again".into(),
        Some(Broken::Damaged(_)) | None => format!(
            "`skopeo delete {lenient}docker://{}`, let the registry collect its garbage, and export again",
            beside(reference, name, "")
        ),
    }
}

/// Returns an error that an entry came to, and what to do about it.
fn told(reference: &Reference, entry: &Descriptor, error: anyhow::Error) -> anyhow::Error {
    let name = entry.ref_name();
    match error.downcast_ref() {
        Some(broken) => anyhow!("{name}: {broken}\nhint: {}", remedy(reference, name, Some(broken))),
        None => error.context(name.to_string()),
    }
}

/// Returns nothing for what the registry has damaged.
fn undamaged<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Err(error) if error.is::<Broken>() => Ok(None),
        found => found.map(Some),
    }
}

/// Reads the tag; an empty index if there is none.
fn read(registry: &Registry) -> Result<(Index, bool)> {
    let reference = &registry.reference;
    let Some((descriptor, bytes)) = registry.manifest(&reference.tag)? else {
        let others = [("mediaType", INDEX), ("artifactType", BUNDLE)];
        let others = others.map(|(key, value)| (key.to_string(), Value::from(value)));
        return Ok((Index { schema_version: 2, manifests: Vec::new(), others: Map::from_iter(others) }, false));
    };
    let index = serde_json::from_slice::<Index>(&bytes)
        .ok()
        .filter(|index| index.others.get("artifactType") == Some(&BUNDLE.into()));
    let index = index.filter(|_| descriptor.content() == Content::Index).with_context(|| {
        format!("{reference} is something else than a bundle\nhint: name another tag, such as {}-cache", reference.tag)
    })?;
    ensure_few(&index, reference)?;
    Ok((index, true))
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Barrier;

    use super::*;

    fn index(entries: &[(&str, &str)]) -> Index {
        let manifests = entries.iter().map(|(name, digest)| {
            let mut entry = Descriptor { digest: (*digest).into(), ..Descriptor::default() };
            entry.annotations.insert(REF_NAME.into(), (*name).into());
            entry
        });
        Index { schema_version: 2, manifests: manifests.collect(), others: Map::new() }
    }

    #[test]
    fn what_others_push_meanwhile_is_kept_and_the_last_of_one_name_wins() {
        let former = index(&[("a", "1"), ("b", "1")]);
        let new = index(&[("a", "2"), ("b", "1"), ("c", "1")]);
        let result = |latest: &[(&str, &str)], first| merged(&index(latest), &former, &new, first).manifests;
        // Another run has changed b and added d.
        let expected = index(&[("a", "2"), ("b", "9"), ("d", "1"), ("c", "1")]).manifests;
        assert_eq!(result(&[("a", "1"), ("b", "9"), ("d", "1")], true), expected);
        // Another run has put its own a, then, or over this one's.
        assert_eq!(result(&[("a", "9"), ("b", "1"), ("c", "1")], true), new.manifests);
        let theirs = [("a", "9"), ("b", "1"), ("c", "1")];
        assert_eq!(result(&theirs, false), index(&theirs).manifests);
        // Another run did not know of this one.
        assert_eq!(result(&[("a", "1"), ("b", "1")], false), new.manifests);
    }

    #[test]
    fn each_entry_has_two_tags_and_a_long_name_is_cut() {
        let reference: Reference = "x.test/a:main".parse().unwrap();
        let tag = |name: &str, end| beside(&reference, name, end).tag;
        assert_eq!(tag("docker-cache/volume/npm/npm", ""), "main-volume-npm-npm");
        assert_eq!(tag("layers-web-1b2c3d4e", NEXT), "main-layers-web-1b2c3d4e.next");
        let long = "x".repeat(200);
        assert!(tag(&long, "") != tag(&long, NEXT) && tag(&long, NEXT).len() == MAX_TAG);
    }

    /// A registry whose tag `c` is a bundle of these entries. What else is asked of it by digest it has from `find`.
    fn serving(entries: &Value, find: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Reference {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let reference = format!("{}/a/b:c", listener.local_addr().unwrap()).parse().unwrap();
        let tag = json!({"schemaVersion": 2, "artifactType": BUNDLE, "manifests": entries}).to_string();
        thread::spawn(move || {
            let answer = |mut stream: std::net::TcpStream| {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let Some(call) = head.first().filter(|call| call.contains(" HTTP/1.1")) else { return };
                let asked = call.split([' ', '/']).find(|word| word.starts_with("sha256:"));
                let body = if call.contains("/manifests/c ") { Some(tag.clone()) } else { asked.and_then(&find) };
                let (status, body) = body.map_or(("404", String::new()), |body| ("200 OK", body));
                let head = format!("HTTP/1.1 {status}\r\nContent-Type: {INDEX}\r\nContent-Length: {}", body.len());
                let _ = stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n{body}").as_bytes());
            };
            thread::scope(|scope| {
                for stream in listener.incoming().map_while(Result::ok) {
                    scope.spawn(|| answer(stream));
                }
            });
        });
        reference
    }

    fn open(reference: &Reference) -> Remote {
        Remote::open(reference, Credentials::default(), &Certificates::default(), false).unwrap()
    }

    #[test]
    fn what_is_listed_again_and_again_is_fetched_once() {
        let (mut entries, mut indexes) = (json!([]), HashMap::new());
        for _ in 0..4 {
            let bytes = json!({"schemaVersion": 2, "manifests": entries}).to_string();
            let blob = digest(&mut bytes.as_bytes()).unwrap();
            entries = vec![json!({"mediaType": INDEX, "digest": blob.digest, "size": blob.size}); 100].into();
            indexes.insert(blob.digest, bytes);
        }
        let remote = open(&serving(&json!([entries[0]]), move |digest| indexes.get(digest).cloned()));
        let to = tempfile::tempdir().unwrap();
        remote.fetch(to.path(), |_| true, &mut |_, _| ()).unwrap();
        assert_eq!(fs::read_dir(to.path().join("blobs/sha256")).unwrap().count(), 4);
    }

    #[test]
    fn entries_are_looked_at_side_by_side() {
        let entry = |digit: &str| json!({"digest": format!("sha256:{}", digit.repeat(64)), "size": 1});
        // It answers what it is asked of one when it is asked of the other too.
        let both = Barrier::new(2);
        let mut remote = open(&serving(&json!([entry("1"), entry("2")]), move |_| {
            both.wait();
            None
        }));
        let [to, from] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        remote.fetch(to.path(), |_| false, &mut |_, _| ()).unwrap();
        remote.prepare(&mut Writer::open(from.path(), || ()).unwrap(), &[]).unwrap();
        assert_eq!(remote.gone.len(), 2);
    }
}
