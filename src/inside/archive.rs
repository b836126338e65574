//! The archives of a bundle: tar with PAX headers, members in the order of a walk, nothing but files, directories and
//! links. Reading refuses whatever could lead out of a tree or fill the memory; it writes nothing.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::io::{self, BufReader, Read, Write};

use anyhow::{Context, Result, bail, ensure};
use tar::{EntryType, Header};

/// What a member is; the letters stand in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Hardlink,
}

impl Kind {
    /// Returns the letter of tables.
    pub fn letter(self) -> u8 {
        match self {
            Kind::File => b'f',
            Kind::Dir => b'd',
            Kind::Symlink => b'l',
            Kind::Hardlink => b'h',
        }
    }

    /// Returns what a letter of a table stands for.
    pub fn of_letter(letter: u8) -> Option<Kind> {
        [Kind::File, Kind::Dir, Kind::Symlink, Kind::Hardlink].into_iter().find(|kind| kind.letter() == letter)
    }
}

/// Name and value of an extended attribute; a name is any bytes but zero.
pub type Attribute = (Vec<u8>, Vec<u8>);

/// A member of an archive, without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Below the tree; empty for its root.
    pub path: Vec<u8>,
    pub kind: Kind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub modified: (i64, u32),
    /// Bytes of a file, holes included.
    pub size: u64,
    /// Target of a symbolic link, or the path of the first name of a hard link.
    pub link: Vec<u8>,
    /// Names and values.
    pub attributes: Vec<Attribute>,
    /// Offsets and lengths of what is not a hole; None for a file without holes.
    pub extents: Option<Vec<(u64, u64)>>,
}

/// Bytes that one member's PAX header may have; the kernel allows 64 KiB of attributes.
const MAX_PAX: u64 = 1 << 20;
/// Bytes that a member's attributes may have, for its PAX header to have room for the rest.
pub const MAX_ATTRIBUTES: usize = 1 << 19;
/// Parts that a sparse file may have.
pub const MAX_EXTENTS: usize = 1 << 20;
const BLOCK: u64 = 512;

/// Compares paths in the order of a walk: a directory before what is in it, and all of that before its next sibling.
pub fn walk_order(a: &[u8], b: &[u8]) -> Ordering {
    // A slash sorts below every other byte of a name.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    match a.iter().zip(b).find(|(a, b)| a != b) {
        Some((a, b)) => key(a).cmp(&key(b)),
        None => a.len().cmp(&b.len()),
    }
}

/// Bytes that a path, and one name in it, may have. Below a root there may be longer ones.
pub const MAX_PATH: usize = 4096;
pub const MAX_NAME: usize = 255;

/// Returns why a path must not be used below a tree, if anything.
pub fn unsafe_path(path: &[u8]) -> Option<&'static str> {
    if path.is_empty() {
        return None;
    }
    if path.starts_with(b"/") {
        return Some("is absolute");
    }
    if path.len() > MAX_PATH {
        return Some("is too long");
    }
    path.split(|byte| *byte == b'/').find_map(|name| match name {
        b".." => Some("leads out by `..`"),
        b"" | b"." => Some("has an empty component"),
        _ if name.len() > MAX_NAME => Some("has a component that is too long"),
        _ if name.contains(&0) => Some("contains a zero byte"),
        _ => None,
    })
}

/// Returns true if a symbolic link at `path` stays within its tree, which programs see at the absolute path `base`.
/// A `..` may only stand at the beginning, where it leaves a directory: after a name, it would go up from wherever that
/// leads, if it is a link too. So a tree with nothing but such links has no way out.
pub fn leads_in(path: &[u8], target: &[u8], base: &str) -> bool {
    let (target, above) = match target.starts_with(b"/") {
        false => (target, path.iter().filter(|byte| **byte == b'/').count()),
        true => {
            let base = base.trim_end_matches('/').as_bytes();
            let below = target.strip_prefix(base);
            match below.filter(|below| !base.is_empty() && (below.is_empty() || below.starts_with(b"/"))) {
                Some(below) => (below, 0),
                None => return false,
            }
        }
    };
    let mut names = target.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let up = names.by_ref().take_while(|name| *name == b"..").count();
    up <= above && names.all(|name| name != b"..")
}

/// Writes one member. `data` are the bytes that are not holes: exactly as many as the extents or the size say.
pub fn write(out: &mut impl Write, member: &Member, data: impl Read) -> io::Result<()> {
    let mut name: Cow<'_, [u8]> = Cow::Borrowed(&member.path);
    if member.kind == Kind::Dir {
        let end: &[u8] = if name.is_empty() { b"./" } else { b"/" };
        name.to_mut().extend(end);
    }
    let mut pax = Vec::new();
    let mut header = Header::new_ustar();
    if let Some(ustar) = header.as_ustar_mut() {
        fill(&mut ustar.name, &name, b"path", &mut pax);
        fill(&mut ustar.linkname, &member.link, b"linkpath", &mut pax);
    }
    let (seconds, nanoseconds) = member.modified;
    header.set_mtime(u64::try_from(seconds).unwrap_or_default());
    if nanoseconds > 0 || seconds < 0 {
        record(&mut pax, b"mtime", pax_time(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in &member.attributes {
        record(&mut pax, &[ATTRIBUTE, &escaped(name)].concat(), value);
    }
    let map = member.extents.as_ref().map(|extents| {
        record(&mut pax, b"GNU.sparse.major", b"1");
        record(&mut pax, b"GNU.sparse.minor", b"0");
        record(&mut pax, b"GNU.sparse.name", &member.path);
        record(&mut pax, b"GNU.sparse.realsize", member.size.to_string().as_bytes());
        let mut map = format!("{}\n", extents.len());
        extents.iter().for_each(|(at, length)| map.push_str(&format!("{at}\n{length}\n")));
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
        map
    });
    let stored = match (&member.extents, &map) {
        (Some(extents), Some(map)) => extents.iter().map(|(_, length)| length).sum::<u64>() + map.len() as u64,
        _ if member.kind == Kind::File => member.size,
        _ => 0,
    };
    if !pax.is_empty() {
        let mut header = Header::new_ustar();
        if let Some(ustar) = header.as_ustar_mut() {
            ustar.name[..3].copy_from_slice(b"pax");
        }
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        append(out, &mut header, pax.len() as u64, &pax[..])?;
    }
    header.set_entry_type(match member.kind {
        Kind::File => EntryType::Regular,
        Kind::Dir => EntryType::Directory,
        Kind::Symlink => EntryType::Symlink,
        Kind::Hardlink => EntryType::Link,
    });
    header.set_mode(member.mode);
    header.set_uid(member.uid.into());
    header.set_gid(member.gid.into());
    append(out, &mut header, stored, map.unwrap_or_default().chain(data))
}

fn append(out: &mut impl Write, header: &mut Header, size: u64, data: impl Read) -> io::Result<()> {
    header.set_size(size);
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    let copied = io::copy(&mut data.take(size), out)?;
    if copied < size {
        return Err(io::Error::other("the file became shorter"));
    }
    let padding = (BLOCK - size % BLOCK) % BLOCK;
    out.write_all(&[0; BLOCK as usize][..padding as usize])
}

/// Ends an archive.
pub fn finish(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK as usize])
}

/// Puts a name into a field of the header, and into the PAX header if it does not fit.
fn fill(field: &mut [u8; 100], name: &[u8], key: &[u8], pax: &mut Vec<u8>) {
    let end = name.len().min(field.len());
    field[..end].copy_from_slice(&name[..end]);
    if name.len() > field.len() {
        record(pax, key, name);
    }
}

/// Adds one record of a PAX header: its own length in decimal, a space, `key=value`, a line feed.
fn record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    pax.extend([format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat());
}

/// Returns the key and the value of the first record of a PAX header, and what follows. A value may contain anything.
fn next_record(pax: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = pax.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&pax[..space]).ok()?.parse().ok()?;
    let record = pax.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &pax[length..]))
}

/// What the keys of attributes begin with.
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";
/// What stands for bytes of an attribute's name in its key, as GNU tar has it (its `xattr_encode_keyword`): a `=` would
/// end the key.
const ESCAPES: [(u8, &[u8]); 2] = [(b'=', b"%3D"), (b'%', b"%25")];

fn escaped(name: &[u8]) -> Vec<u8> {
    let escape = |byte: &u8| ESCAPES.iter().find(|(plain, _)| plain == byte).map(|(_, escape)| *escape);
    name.iter().flat_map(|byte| escape(byte).unwrap_or(std::slice::from_ref(byte))).copied().collect()
}

/// Undoes the escapes, and takes any other `%` as it is: bundles of old have names without escapes. Of those the ones
/// with `%3D` or `%25` in them come out as GNU tar reads them too; what is meant cannot be told.
fn unescaped(mut key: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    while let Some((first, rest)) = key.split_first() {
        let escape = ESCAPES.iter().find_map(|(plain, escape)| Some((plain, key.strip_prefix(*escape)?)));
        let (byte, after) = escape.unwrap_or((first, rest));
        name.push(*byte);
        key = after;
    }
    name
}

fn pax_time(seconds: i64, nanoseconds: u32) -> String {
    // Decimal: 1.5 seconds before 1970 is -2 seconds and 500,000,000 nanoseconds.
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000)
}

fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let part: String = part.chars().chain("000000000".chars()).take(9).collect();
    let total = whole.parse::<u64>().ok()? as i128 * 1_000_000_000 + part.parse::<u32>().ok()? as i128;
    let total = if negative { -total } else { total };
    Some((total.div_euclid(1_000_000_000).try_into().ok()?, total.rem_euclid(1_000_000_000) as u32))
}

/// Reads an archive of at most `raw` bytes and hands each member with its content (without the holes) to `each`, which
/// need not read it.
///
/// # Errors
/// At the first member that is not safe, not in order, or not of a kind that a bundle has; and when `each` fails.
pub fn read(
    input: impl Read,
    raw: u64,
    most_entries: u64,
    mut each: impl FnMut(Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut last: Option<Vec<u8>> = None;
    read_unordered(input, raw, most_entries, |member, data| {
        if let Some(last) = &last {
            match walk_order(last, &member.path) {
                Ordering::Less => {}
                Ordering::Equal => bail!("it is there twice"),
                Ordering::Greater => bail!("it is out of order"),
            }
        }
        last = Some(member.path.clone());
        each(member, data)
    })
}

/// The same as [`read`], for members in any order.
///
/// # Errors
/// See there.
pub fn read_unordered(
    input: impl Read,
    raw: u64,
    most_entries: u64,
    mut each: impl FnMut(Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut counted = Counted { input: BufReader::with_capacity(1 << 17, input), left: raw };
    let mut entries = 0;
    {
        let mut archive = tar::Archive::new(&mut counted);
        let mut pax = None;
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            let header = entry.header().clone();
            let size = header.entry_size()?;
            if header.entry_type() == EntryType::XHeader {
                ensure!(pax.is_none() && size <= MAX_PAX, "a member's extended header is too large or doubled");
                let mut text = Vec::new();
                entry.read_to_end(&mut text)?;
                pax = Some(text);
                continue;
            }
            entries += 1;
            ensure!(entries <= most_entries, "there are more members than the {most_entries} that it may have");
            let (member, stored) = member(&header, size, &pax.take().unwrap_or_default(), &mut entry)?;
            let context = format!("member {:?}", String::from_utf8_lossy(&member.path));
            let mut data = entry.take(stored);
            each(member, &mut data).context(context)?;
        }
        ensure!(pax.is_none(), "it ends in an extended header");
    }
    // What follows the end must be nothing: a decoder that is not read to its end checks no checksum.
    let mut rest = [0; 4096];
    loop {
        match counted.read(&mut rest)? {
            0 => return Ok(()),
            read => ensure!(rest[..read].iter().all(|byte| *byte == 0), "there are bytes after its end"),
        }
    }
}

/// Returns a member and the number of its bytes that follow.
fn member(header: &Header, size: u64, pax: &[u8], data: &mut impl Read) -> Result<(Member, u64)> {
    let kind = match header.entry_type() {
        EntryType::Regular => Kind::File,
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Char | EntryType::Block => bail!("{:?} is a device", header.path_bytes()),
        other => bail!("there is a member of type {other:?}, which no bundle has"),
    };
    let mut member = Member {
        path: header.path_bytes().into_owned(),
        kind,
        mode: header.mode()? & 0o7777,
        uid: header.uid()?.try_into()?,
        gid: header.gid()?.try_into()?,
        modified: (header.mtime()?.try_into()?, 0),
        size,
        link: header.link_name_bytes().map(Cow::into_owned).unwrap_or_default(),
        attributes: Vec::new(),
        extents: None,
    };
    let mut real_size = None;
    let mut rest = pax;
    while !rest.is_empty() {
        let (key, value);
        (key, value, rest) = next_record(rest).context("an extended header makes no sense")?;
        match key {
            b"path" | b"GNU.sparse.name" => member.path = value.to_vec(),
            b"linkpath" => member.link = value.to_vec(),
            b"mtime" => {
                let text = std::str::from_utf8(value).ok();
                member.modified = text.and_then(parse_time).context("a time makes no sense")?;
            }
            b"GNU.sparse.realsize" => real_size = Some(std::str::from_utf8(value)?.parse()?),
            b"GNU.sparse.major" => ensure!(value == b"1", "a sparse file is in an unknown form"),
            b"GNU.sparse.minor" => ensure!(value == b"0", "a sparse file is in an unknown form"),
            key => match key.strip_prefix(ATTRIBUTE) {
                Some(name) => member.attributes.push((unescaped(name), value.to_vec())),
                None => {
                    bail!("there is an extended header {:?}, which no bundle has", String::from_utf8_lossy(key));
                }
            },
        }
    }
    if kind == Kind::Dir {
        while member.path.ends_with(b"/") && member.path.len() > 1 {
            member.path.pop();
        }
        if member.path == b"." {
            member.path.clear();
        }
    }
    let shown = String::from_utf8_lossy(&member.path).into_owned();
    if let Some(why) = unsafe_path(&member.path) {
        bail!("member {shown:?} {why}");
    }
    ensure!(kind == Kind::Dir || !member.path.is_empty(), "a member has no name");
    ensure!(kind == Kind::File || size == 0, "member {shown:?} has content that it cannot have");
    match kind {
        Kind::Hardlink => {
            if let Some(why) = unsafe_path(&member.link).or(member.link.is_empty().then_some("is empty")) {
                bail!("the hard link {shown:?} goes to a path that {why}");
            }
        }
        Kind::Symlink => ensure!(!member.link.is_empty() && !member.link.contains(&0), "link {shown:?} goes nowhere"),
        _ => {}
    }
    // Who gives a file to it leaves it to whom it belongs.
    ensure!(member.uid != u32::MAX && member.gid != u32::MAX, "member {shown:?} has {} for an owner", u32::MAX);
    let mut stored = size;
    if let Some(real_size) = real_size {
        let (extents, map) = sparse_map(data, size).with_context(|| format!("sparse file {shown:?}"))?;
        let mut end = 0;
        stored = size - map;
        for (at, length) in &extents {
            ensure!(*at >= end, "sparse file {shown:?} has parts out of order");
            end = at.checked_add(*length).context("a part is too long")?;
        }
        ensure!(end <= real_size, "sparse file {shown:?} is longer than it says");
        ensure!(
            extents.iter().map(|(_, length)| length).sum::<u64>() == stored,
            "sparse file {shown:?} lies on its size"
        );
        member.size = real_size;
        member.extents = Some(extents);
    }
    Ok((member, stored))
}

/// Offsets and lengths.
type Extents = Vec<(u64, u64)>;

/// Reads the map in front of a sparse file's bytes and returns it with its length.
fn sparse_map(data: &mut impl Read, size: u64) -> Result<(Extents, u64)> {
    let mut block = [0; BLOCK as usize];
    let mut read = 0;
    let mut number = || -> Result<u64> {
        let mut digits = String::new();
        loop {
            let at = (read % BLOCK) as usize;
            if at == 0 {
                ensure!(read < size, "its map is cut off");
                data.read_exact(&mut block)?;
            }
            read += 1;
            match block[at] {
                b'\n' => return Ok(digits.parse()?),
                digit if digits.len() < 20 => digits.push(digit.into()),
                _ => bail!("its map makes no sense"),
            }
        }
    };
    let count = usize::try_from(number()?)?;
    ensure!(count <= MAX_EXTENTS, "it has {count} parts");
    let mut extents = Vec::new();
    for _ in 0..count {
        extents.push((number()?, number()?));
    }
    Ok((extents, read.next_multiple_of(BLOCK)))
}

/// A reader that fails instead of giving more than was promised.
struct Counted<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| io::Error::other("it is longer than it says"))?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_in_if_it_does_whatever_the_other_links_are() {
        let leads_in = |path: &str, target: &str| leads_in(path.as_bytes(), target.as_bytes(), "/cache");
        for (path, target) in [
            ("a", "b"),
            ("a", "b/./c/"),
            ("d/up", ".."),
            ("d/e/up", "./../.."),
            ("node_modules/.bin/x", "../x/bin/x.js"),
            ("v3/a/node_modules/b", "../../b/node_modules/b"),
            ("d/a", "/cache"),
            ("d/a", "/cache/b"),
        ] {
            assert!(leads_in(path, target), "{path} {target}");
        }
        for (path, target) in [
            ("a", ".."),
            ("d/a", "../.."),
            ("a", "/etc/passwd"),
            ("a", "/cachet"),
            ("d/a", "/cache/.."),
            // By way of `d/up -> ..`.
            ("d/out", "up/../etc/passwd"),
            ("d/out", "/cache/d/up/../etc/passwd"),
        ] {
            assert!(!leads_in(path, target), "{path} {target}");
        }
        assert!(!super::leads_in(b"a", b"/etc/passwd", "/"), "all of a system is no tree to be in");
    }

    #[test]
    fn a_number_that_is_no_owner_is_refused() {
        for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
            let (path, kind, link) = (b"a".into(), Kind::File, Vec::new());
            let (mode, modified, size, attributes, extents) = (0o644, (1, 0), 0, Vec::new(), None);
            let member = Member { path, kind, mode, uid, gid, modified, size, link, attributes, extents };
            let mut archive = Vec::new();
            write(&mut archive, &member, io::empty()).unwrap();
            finish(&mut archive).unwrap();
            read(&archive[..], u64::MAX, 1, |_, _| Ok(())).unwrap_err();
        }
    }

    #[test]
    fn names_of_attributes_are_written_as_gnu_tar_does() {
        // Those on the right are from `tar --xattrs --format=pax` of GNU tar 1.34.
        for (name, key) in [
            (&b"user.a=b"[..], &b"user.a%3Db"[..]),
            (b"user.100%", b"user.100%25"),
            (b"user.p%3Dq", b"user.p%253Dq"),
            (b"user.p%25q", b"user.p%2525q"),
            (b"user.\xff\xfe", b"user.\xff\xfe"),
        ] {
            let member = Member {
                path: b"a".into(),
                kind: Kind::File,
                mode: 0o644,
                uid: 0,
                gid: 0,
                modified: (1, 0),
                size: 0,
                link: Vec::new(),
                attributes: vec![(name.into(), b"c=%3D\n".into())],
                extents: None,
            };
            let mut archive = Vec::new();
            write(&mut archive, &member, io::empty()).unwrap();
            let record = [b" SCHILY.xattr.", key, b"=c=%3D\n\n"].concat();
            assert!(archive.windows(record.len()).any(|window| window == record), "{}", name.escape_ascii());
            finish(&mut archive).unwrap();
            read(&archive[..], u64::MAX, 1, |read, _| {
                assert_eq!(read, member);
                Ok(())
            })
            .unwrap();
        }
        // Of bundles before there were escapes.
        assert_eq!(unescaped(b"user.100%"), b"user.100%");
        assert_eq!(unescaped(b"user.%2%3d"), b"user.%2%3d");
    }
}
