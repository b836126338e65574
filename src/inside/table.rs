//! What a tree of a bundle holds: a row for each file, in the order of a walk, with the archive it is in and a print of
//! its state. Compressed text, read and written as a stream, so that a tree of any size fits.

use std::io::{self, BufRead, BufReader, Read, Write};

use anyhow::{Context, Result, ensure};

use super::archive::{Kind, unsafe_path, walk_order};

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
pub struct Rows<R: Read> {
    input: BufReader<zstd::Decoder<'static, BufReader<R>>>,
    last: Option<Vec<u8>>,
}

impl<R: Read> std::fmt::Debug for Rows<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").finish_non_exhaustive()
    }
}

impl<R: Read> Rows<R> {
    /// Begins to read a compressed table.
    ///
    /// # Errors
    /// When there is no memory for a decoder.
    pub fn new(input: R) -> Result<Rows<R>> {
        Ok(Rows { input: BufReader::new(decoder(input)?), last: None })
    }

    /// Returns the next row, which is after the last one in the order of a walk.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn next_row(&mut self) -> Result<Option<Row>> {
        let mut line = Vec::new();
        self.input.by_ref().take(8192).read_until(0, &mut line).context("the table cannot be read")?;
        if line.is_empty() {
            return Ok(None);
        }
        let row = parse(&line).context("a row of the table makes no sense")?;
        if let Some(why) = unsafe_path(&row.path) {
            anyhow::bail!("{:?} {why}", String::from_utf8_lossy(&row.path));
        }
        if let Some(last) = &self.last {
            let shown = String::from_utf8_lossy(&row.path);
            ensure!(walk_order(last, &row.path).is_lt(), "{shown:?} is in the table twice or out of order");
        }
        self.last = Some(row.path.clone());
        Ok(Some(row))
    }
}

/// Returns a decoder that takes no more memory than an encoder of this program makes it need.
pub fn decoder<R: Read>(input: R) -> io::Result<zstd::Decoder<'static, BufReader<R>>> {
    let mut decoder = zstd::Decoder::new(input)?;
    decoder.window_log_max(23)?;
    Ok(decoder)
}

fn parse(line: &[u8]) -> Option<Row> {
    let line = line.strip_suffix(b"\0")?;
    let mut words = line.splitn(5, |byte| *byte == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let layer = word()?.parse().ok()?;
    let kind = word()?;
    let size = word()?.parse().ok()?;
    let print = u64::from_str_radix(word()?, 16).ok()?;
    let kind = Kind::of_letter(*kind.as_bytes().first()?).filter(|_| kind.len() == 1)?;
    Some(Row { layer, kind, size, print, path: words.next()?.to_vec() })
}
