//! What a tree of a bundle holds: a row for each file, in the order of a walk, with the archive it is in and a print of
//! its state. Compressed text, read and written as a stream, so that a tree of any size fits.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::archive::{Kind, unsafe_path, walk_order};
use super::pack::Layer;
use super::unpack::MAX_ENTRIES;

/// More rows than this no table may have: each takes time.
pub const MAX_ROWS: usize = 8_000_000;
/// More archives than this no tree may have.
pub const MAX_LAYERS: usize = 10_000;
/// Rows that are kept in memory at once, about: each takes some 150 bytes.
const MAX_PART: u64 = 100_000;

/// One row: `LAYER KIND SIZE PRINT PATH` and a zero byte.
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

/// Writes one row.
pub fn write(out: &mut impl Write, row: &Row) -> io::Result<()> {
    write!(out, "{} {} {} {:x} ", row.layer, char::from(row.kind.letter()), row.size, row.print)?;
    out.write_all(&row.path)?;
    out.write_all(b"\0")
}

/// Reads the rows of a table one by one.
pub struct Rows<R> {
    input: BufReader<R>,
    line: Vec<u8>,
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
        Rows { input: BufReader::with_capacity(1 << 16, input), line: Vec::new(), last: None }
    }

    /// Returns the row that was read last as it was written.
    pub fn line(&self) -> &[u8] {
        &self.line
    }

    /// Returns the next row, which is after the last one in the order of a walk.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        let Some(row) = self.next_as_written()? else { return Ok(None) };
        if let Some(why) = unsafe_path(&row.path) {
            anyhow::bail!("{:?} {why}", String::from_utf8_lossy(&row.path));
        }
        let shown = || String::from_utf8_lossy(&row.path);
        let in_order = self.last.as_ref().is_none_or(|last| walk_order(last, &row.path).is_lt());
        ensure!(in_order, "{:?} is in the table twice or out of order", shown());
        self.last.get_or_insert_default().clone_from(&row.path);
        Ok(Some(row))
    }

    /// Returns the next row for who only compares its path with those of files: it may be any, in any order.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn next_as_written(&mut self) -> Result<Option<Row>> {
        self.line.clear();
        self.input.by_ref().take(8192).read_until(0, &mut self.line).context("the table cannot be read")?;
        if self.line.is_empty() {
            return Ok(None);
        }
        parse(&self.line).context("a row of the table makes no sense").map(Some)
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

fn parse(line: &[u8]) -> Option<Row> {
    let mut rest = line.strip_suffix(b"\0")?;
    let mut word = || {
        let (word, after) = rest.split_at(rest.iter().position(|byte| *byte == b' ')?);
        rest = &after[1..];
        Some(word)
    };
    let layer = u32::try_from(number(word()?, 10)?).ok()?;
    let &[letter] = word()? else { return None };
    let kind = Kind::of_letter(letter)?;
    let size = number(word()?, 10)?;
    let print = number(word()?, 16)?;
    Some(Row { layer, kind, size, print, path: rest.to_vec() })
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(str::from_utf8(digits).ok()?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
