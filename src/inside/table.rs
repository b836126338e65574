//! What a tree of a bundle holds: a row for each file, in the order of a walk, with the archive it is in and a print of
//! its state. Compressed, read and written as a stream, so that a tree of any size fits.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::archive::{Kind, MAX_PATH, unsafe_path, walk_order};
use super::pack::Layer;
use super::unpack::MAX_ENTRIES;

/// More rows than this no table may have: each takes time.
pub const MAX_ROWS: usize = 8_000_000;
/// More archives than this no tree may have.
pub const MAX_LAYERS: usize = 10_000;
/// Rows that are kept in memory at once, about: each takes some 150 bytes.
const MAX_PART: u64 = 100_000;

/// Bytes of a row before its path: PRINT, LAYER, SIZE, SHARED, LENGTH and KIND as little-endian numbers of 8, 4, 8, 2, 2
/// and 1 bytes. LENGTH bytes follow, which are the path but for the first SHARED bytes of the path before.
const HEADER: usize = 25;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Index of the archive that has it.
    pub layer: u32,
    pub kind: Kind,
    /// Bytes of a file.
    pub size: u64,
    /// Changes when the file does; 0 if that cannot be told.
    pub print: u64,
    pub path: Vec<u8>,
}

impl Row {
    /// Returns what keeping it costs in an archive, about.
    pub fn cost(&self) -> u64 {
        cost(self.size)
    }
}

/// Returns what a file of this size costs in an archive: its bytes and its headers.
pub fn cost(size: u64) -> u64 {
    size + 1024
}

/// Writes the rows of a table one by one.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// The path of the row before.
    last: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Writer<W> {
        Writer { out, last: Vec::new() }
    }

    /// Writes a row, whose path is one that a bundle can have.
    pub fn write(&mut self, row: &Row) -> io::Result<()> {
        let shared = self.last.iter().zip(&row.path).take_while(|(last, next)| last == next).count();
        let rest = &row.path[shared..];
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&row.print.to_le_bytes());
        header[8..12].copy_from_slice(&row.layer.to_le_bytes());
        header[12..20].copy_from_slice(&row.size.to_le_bytes());
        header[20..22].copy_from_slice(&(shared as u16).to_le_bytes());
        header[22..24].copy_from_slice(&(rest.len() as u16).to_le_bytes());
        header[24] = row.kind.letter();
        self.out.write_all(&header)?;
        self.out.write_all(rest)?;
        self.last.truncate(shared);
        self.last.extend(rest);
        Ok(())
    }

    /// Returns what the rows went to.
    pub fn finish(self) -> W {
        self.out
    }
}

/// Reads the rows of a table one by one.
pub struct Rows<R> {
    input: BufReader<R>,
    row: Row,
    last: Option<Vec<u8>>,
}

impl<R> std::fmt::Debug for Rows<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").finish_non_exhaustive()
    }
}

/// Reads a table as bundles have it.
pub type Table = Rows<zstd::Decoder<'static, BufReader<File>>>;

impl Table {
    /// Opens a compressed table.
    ///
    /// # Errors
    /// When that cannot be done, or there is no memory for a decoder.
    pub fn open(path: &Path) -> Result<Table> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Rows::new(decoder(file)?))
    }
}

impl<R: Read> Rows<R> {
    /// Begins to read rows that are not compressed.
    pub fn new(input: R) -> Rows<R> {
        let row = Row { layer: 0, kind: Kind::Dir, size: 0, print: 0, path: Vec::new() };
        Rows { input: BufReader::with_capacity(1 << 16, input), row, last: None }
    }

    /// Returns the next row, which is after the last one in the order of a walk.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        if !self.advance()? {
            return Ok(None);
        }
        let row = &self.row;
        if let Some(why) = unsafe_path(&row.path) {
            anyhow::bail!("{:?} {why}", String::from_utf8_lossy(&row.path));
        }
        let shown = || String::from_utf8_lossy(&row.path);
        let in_order = self.last.as_ref().is_none_or(|last| walk_order(last, &row.path).is_lt());
        ensure!(in_order, "{:?} is in the table twice or out of order", shown());
        self.last.get_or_insert_default().clone_from(&row.path);
        Ok(Some(row.clone()))
    }

    /// Reads the next row for who only compares its path with those of files: it may be any, in any order. Returns false at
    /// the end.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn advance(&mut self) -> Result<bool> {
        const UNREADABLE: &str = "the table cannot be read";
        if self.input.fill_buf().context(UNREADABLE)?.is_empty() {
            return Ok(false);
        }
        let mut header = [0; HEADER];
        self.input.read_exact(&mut header).context(UNREADABLE)?;
        let number = |at: Range<usize>| header[at].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let (shared, length) = (number(20..22) as usize, number(22..24) as usize);
        let fits = shared <= self.row.path.len() && shared + length <= MAX_PATH;
        let kind = Kind::of_letter(header[24]).filter(|_| fits).context("a row of the table makes no sense")?;
        let (layer, size, print) = (number(8..12) as u32, number(12..20), number(0..8));
        let mut path = std::mem::take(&mut self.row.path);
        path.resize(shared + length, 0);
        self.input.read_exact(&mut path[shared..]).context(UNREADABLE)?;
        self.row = Row { layer, kind, size, print, path };
        Ok(true)
    }

    /// Returns the row that was read last.
    pub fn row(&self) -> &Row {
        &self.row
    }
}

/// Divides archives so that the rows of each part fit the memory: for each part the table is read once.
pub fn parts(layers: &[Layer]) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut from, mut entries) = (0, 0);
    for (at, layer) in layers.iter().enumerate() {
        let more = layer.entries.min(MAX_ENTRIES);
        if at > from && entries + more > MAX_PART {
            parts.push(from..at);
            (from, entries) = (at, 0);
        }
        entries += more;
    }
    parts.push(from..layers.len());
    parts
}

/// Puts a row to those of its archive, if that is one of this part.
///
/// # Errors
/// When there is no such archive, or it has fewer members than rows.
pub fn sort_in(rows: &mut [Vec<Row>], part: &Range<usize>, layers: &[Layer], row: Row) -> Result<()> {
    let at = row.layer as usize;
    let layer = layers
        .get(at)
        .with_context(|| format!("{:?} is in an archive that is not there", String::from_utf8_lossy(&row.path)))?;
    if part.contains(&at) {
        let rows = &mut rows[at - part.start];
        ensure!(
            (rows.len() as u64) < layer.entries.min(MAX_ENTRIES),
            "{} has fewer members than rows",
            layer.blob.digest
        );
        rows.push(row);
    }
    Ok(())
}

/// Returns a decoder that takes no more memory than an encoder of this program makes it need.
pub fn decoder<R: Read>(input: R) -> io::Result<zstd::Decoder<'static, BufReader<R>>> {
    let mut decoder = zstd::Decoder::new(input)?;
    decoder.window_log_max(23)?;
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &[u8]) -> Row {
        Row { layer: u32::MAX, kind: Kind::File, size: u64::MAX, print: 1 << 63, path: path.to_vec() }
    }

    fn written(paths: &[&[u8]]) -> Vec<u8> {
        let mut rows = Writer::new(Vec::new());
        paths.iter().for_each(|path| rows.write(&row(path)).unwrap());
        rows.finish()
    }

    #[test]
    fn rows_are_read_as_they_were_written() {
        let long = [&b"ab/"[..], &[b'x'; 250]].concat();
        let longest = [&long[..], &[b"/", &[b'y'; 250][..]].concat().repeat(15)].concat();
        let paths: [&[u8]; 7] = [b"", b"a", b"a/b\xff", b"a/c", b"ab", &long, &longest];
        let table = written(&paths);
        let mut rows = Rows::new(&table[..]);
        for path in paths {
            assert_eq!(rows.next_row().unwrap(), Some(row(path)));
        }
        assert_eq!(rows.next_row().unwrap(), None);
        let mut cut = Rows::new(&table[..table.len() - 1]);
        assert!((1..paths.len()).all(|_| cut.advance().unwrap()) && cut.advance().is_err());
    }

    #[test]
    fn a_path_is_no_longer_than_one_of_a_bundle_whatever_a_row_says() {
        let is_refused = |at: usize, number: u16| {
            let mut table = written(&[b"abc"]);
            table[at..at + 2].copy_from_slice(&number.to_le_bytes());
            table.extend([b'x'; 1 << 16]);
            Rows::new(&table[..]).advance().is_err()
        };
        let (shared, length) = (20, 22);
        assert!(!is_refused(length, MAX_PATH as u16) && is_refused(length, MAX_PATH as u16 + 1));
        assert!(is_refused(shared, 1));
    }

    #[test]
    fn tables_of_many_rows_are_read_in_parts() {
        let of = |entries| Layer { entries, ..Layer::default() };
        assert_eq!(parts(&[]).first(), Some(&(0..0)));
        assert_eq!(parts(&[of(4096), of(1)]).first(), Some(&(0..2)));
        let layers: Vec<Layer> = (0..100).map(|_| of(4096)).collect();
        let sizes: Vec<usize> = parts(&layers).into_iter().map(|part| part.len()).collect();
        assert_eq!(sizes, [24, 24, 24, 24, 4]);
        // Who lies on the number of members gets no more memory.
        assert_eq!(parts(&[of(u64::MAX), of(u64::MAX)]), [0..1, 1..2]);
    }
}
