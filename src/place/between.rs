//! Carries a cache mount from one builder to another through pipes: nothing of it touches this machine's disk.

use std::io::{self, BufReader, BufWriter, PipeReader, PipeWriter};
use std::path::Path;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use anyhow::{Context, Result};

use super::carry::{
    Cleaner, Counted, Progress, Sharing, Telling, Told, add, add_helper, dockerfile, lines, member_name, receive,
};
use super::helper;
use crate::docker::{BuilderRef, unique_name};
use crate::inside::pack::{self, Pack, Packed};
use crate::inside::unpack::{Target, Unpack, Unpacked};
use crate::inside::{Job, Line};
use crate::model::Mount;
use crate::parallel;

/// The build that unpacks.
struct Unpacking<'a> {
    name: &'a str,
    binary: &'a Path,
    mount: &'a Mount,
    target: &'a (dyn Fn(&Packed) -> Option<Target> + Sync),
    /// Set when what comes from the side that packs makes no sense or ends early.
    cut_off: &'a AtomicBool,
    telling: &'a Telling<'a>,
    /// Bytes of the blobs that the side that packs has made.
    made: &'a AtomicU64,
}

/// Packs a mount in one builder and unpacks it in another while it comes. `target` says how, once it is known what was
/// packed, or that nothing is to be done. The other builder checks every digest before it changes its mount.
///
/// # Errors
/// When one of the builds fails; the mount is then what it was.
pub fn carry(
    from: &BuilderRef,
    to: &BuilderRef,
    mount: &Mount,
    tree: pack::Tree,
    target: impl Fn(&Packed) -> Option<Target> + Sync,
    progress: Progress<'_>,
) -> Result<(Packed, Option<Unpacked>)> {
    let source = Mount { target: String::new(), ..mount.clone() };
    let (packer, unpacker) = (unique_name(), unique_name());
    let binaries = (helper::binary(&from.architecture)?, helper::binary(&to.architecture)?);
    let ends = [(from, &packer, false), (to, &unpacker, true)];
    let cleaners = parallel::each(&ends, |&(builder, name, imports)| {
        let before = builder.records()?.into_iter().map(|record| record.id).collect();
        Ok(Cleaner { builder, name, before, imports, leaves: false })
    });
    let _cleaners = cleaners.into_iter().collect::<Result<Vec<_>>>()?;
    let trees = vec![pack::Tree { root: source.root(0), ..tree }];
    let job = Job::Pack(Pack { out: format!("/{packer}/out").into(), trees });
    let send = |pipe: PipeWriter| -> io::Result<()> {
        let mut context = tar::Builder::new(BufWriter::with_capacity(1 << 17, pipe));
        add_helper(
            &mut context,
            &binaries.0,
            &dockerfile(slice::from_ref(&source), Sharing::Locked, &packer, false),
            &packer,
            &job,
        )?;
        context.finish()
    };
    let (cut_off, made, telling) = (AtomicBool::new(false), AtomicU64::new(0), Telling::new(progress));
    let unpacking = Unpacking {
        name: &unpacker,
        binary: &binaries.1,
        mount,
        target: &target,
        cut_off: &cut_off,
        telling: &telling,
        made: &made,
    };
    let (mut packed, mut there) = (None, Ok(Ok(Vec::new())));
    // Both contexts come as tar archives.
    let context = ["-".into()];
    let here = from.carrier_build(send, &context, &mount.namespace, &mut |line| telling.hear(line, &made), |stream| {
        let forward = |pipe| unpacking.forward(stream, pipe).map(|found| packed = Some(found));
        let hear = &mut |line: &str| telling.hear(line, &AtomicU64::new(0));
        there = to.carrier_build(forward, &context, &mount.namespace, hear, |output| receive(output, None, &|_| ()));
    });
    // Each build fails when the other does; what failed first says why.
    let cut_off = cut_off.into_inner();
    let answer = match (here, there) {
        (Err(error), _) if cut_off => return Err(error.into()),
        (_, Err(error)) | (Err(error), _) => return Err(error.into()),
        (Ok(()), Ok(answer)) => answer,
    };
    let packed = packed.context("the helper gave no answer")?;
    if target(&packed).is_none() {
        return Ok((packed, None));
    }
    let mut unpacked = None;
    lines(&answer?[..], &mut |line| {
        if let Line::Unpacked(found) = line {
            unpacked = found.into_iter().next();
        }
    })?;
    Ok((packed, unpacked))
}

impl Unpacking<'_> {
    /// Makes the context of the build that unpacks from the output of the one that packs.
    fn forward(&self, stream: PipeReader, pipe: PipeWriter) -> io::Result<Packed> {
        let done = self.forward_all(stream, pipe);
        done.map_err(|error| {
            let error = error.downcast::<io::Error>().unwrap_or_else(io::Error::other);
            self.cut_off.store(error.kind() != io::ErrorKind::BrokenPipe, Relaxed);
            error
        })
    }

    fn forward_all(&self, stream: PipeReader, pipe: PipeWriter) -> Result<Packed> {
        let mut context = tar::Builder::new(BufWriter::with_capacity(1 << 17, pipe));
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 17, stream));
        let (mut packed, so_far) = (None, AtomicU64::new(0));
        let tell = |bytes| self.telling.tell(Told::Travelled { bytes, of: self.made.load(Relaxed) });
        for entry in archive.entries()? {
            let entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            match member_name(&entry)? {
                None => lines(entry, &mut |line| {
                    if let Line::Packed(found) = line {
                        packed = found.into_iter().next();
                    }
                })?,
                Some(blob) => {
                    let mut data = Counted { inner: entry, so_far: &so_far, tell: &tell };
                    add(&mut context, blob.file(), 0o644, blob.size, &mut data)?;
                }
            }
        }
        // What follows the end of an archive is padding, for which the other side would wait.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        let packed: Packed = packed.context("the helper gave no answer")?;
        match (self.target)(&packed) {
            Some(target) => {
                let target = Target { root: self.mount.root(0), ..target };
                let job = Job::Unpack(Unpack { blobs: format!("/{}/in", self.name).into(), trees: vec![target] });
                let dockerfile = dockerfile(slice::from_ref(self.mount), Sharing::Locked, self.name, true);
                add_helper(&mut context, self.binary, &dockerfile, self.name, &job)?;
            }
            None => {
                let nothing = format!("FROM scratch AS {}\nCOPY Dockerfile /\n", self.name);
                add(&mut context, "Dockerfile", 0o644, nothing.len() as u64, &mut nothing.as_bytes())?;
            }
        }
        context.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(packed)
    }
}
