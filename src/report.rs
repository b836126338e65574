//! Everything that a person or a script reads: tables, bars, JSON, errors. The only module that prints.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::termios::tcgetwinsize;
use serde::Serialize;

use crate::cancel;
use crate::docker::DockerError;
use crate::model::Bytes;

/// Writes data to standard output. A reader that closed early, `| head`, is not an error.
///
/// # Errors
/// When the output cannot be written for another reason, such as a full disk.
pub fn data(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes one JSON object to standard output.
///
/// # Errors
/// See [`data`].
pub fn json(value: &impl Serialize) -> Result<()> {
    data(&format!("{}\n", serde_json::to_string(value)?))
}

/// Writes lines that are not data to standard error.
pub fn note(text: &str) {
    painted(&lines(text));
}

/// The same for text with colours: what comes from outside is [`plain`] in it.
fn painted(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Returns text of several lines without other control characters.
fn lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// Writes a warning to standard error, in docker's manner.
pub fn warning(text: &str) {
    headed(Paint::Yellow, "WARNING:", text);
}

fn headed(colour: Paint, head: &str, text: &str) {
    painted(&format!("{} {}", paint(colour, head, stderr_colour()), lines(text)));
}

/// Writes an error with its causes, and a hint if there is one.
pub fn error(error: &anyhow::Error) {
    let mut text = format!("{error:#}");
    // A hint may come with the text of an error made here, or with docker's refusal.
    let hint = text
        .find("\nhint: ")
        .map(|start| text.split_off(start)[7..].to_string())
        .or_else(|| error.downcast_ref::<DockerError>().and_then(DockerError::hint));
    headed(Paint::Red, "ERROR:", &text);
    if let Some(hint) = hint {
        note(&format!("hint: {hint}"));
    }
}

/// Asks docker's question and returns true for yes; after any other answer it says that nothing was done.
///
/// # Errors
/// When standard input is no terminal: nobody is there to answer.
pub fn ask(warning: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!(
            "nobody to ask: standard input is not a terminal\nhint: see it first with `--dry-run`, then add `--force`"
        );
    }
    let question = "Are you sure you want to continue? [y/N] ";
    let warned = paint(Paint::Yellow, "WARNING!", stderr_colour());
    io::stderr().write_all(format!("{warned} {warning}\n{question}").as_bytes())?;
    // Reading goes on after a signal, so the reading is left to a thread and the cancel is looked for here.
    let (sender, answers) = mpsc::channel();
    thread::spawn(move || {
        let mut answer = String::new();
        let _ = sender.send(io::stdin().read_line(&mut answer).map(|_| answer));
    });
    loop {
        match answers.recv_timeout(Duration::from_millis(50)) {
            Ok(answer) => {
                let is_yes = ["y", "yes"].contains(&answer?.trim().to_lowercase().as_str());
                if !is_yes {
                    note("nothing was done");
                }
                return Ok(is_yes);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(false),
            Err(mpsc::RecvTimeoutError::Timeout) => cancel::check()?,
        }
    }
}

/// A colour, used for severity only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    Red,
    Yellow,
    Green,
    Bold,
}

/// Returns the text in a colour, or as it is.
pub fn paint(paint: Paint, text: &str, on: bool) -> String {
    let code = match paint {
        Paint::Red => 31,
        Paint::Yellow => 33,
        Paint::Green => 32,
        Paint::Bold => 1,
    };
    if on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

/// Returns true if standard output is a terminal that wants colour.
pub fn stdout_colour() -> bool {
    io::stdout().is_terminal() && colour_wanted()
}

fn stderr_colour() -> bool {
    io::stderr().is_terminal() && colour_wanted()
}

fn colour_wanted() -> bool {
    std::env::var_os("NO_COLOR").unwrap_or_default().is_empty()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns true if standard output is a terminal: bars are for people.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Returns a table as docker prints it: columns as wide as their longest cell and three spaces, at least ten.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let widths = widths(header, rows);
    let mut text = String::new();
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            line.push_str(&plain(cell));
            if at + 1 < row.len() {
                line.push_str(&" ".repeat(padded(widths[at]) - width(cell)));
            }
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Returns the width of the longest cell of each column.
fn widths(header: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let cells = |at: usize| rows.iter().map(move |row| width(&row[at]));
    header.iter().enumerate().map(|(at, title)| cells(at).fold(width(title), usize::max)).collect()
}

/// Returns the width of a column that another one follows.
fn padded(width: usize) -> usize {
    (width + 3).max(10)
}

/// The columns whose cells may be shortened, and the characters that each keeps at least.
const SHORTENED: &[&str] = &["NAME", "DIRECTORY", "STEP"];
const SHORTEST: usize = 24;

/// The last columns whose cells may go on in further lines.
const WRAPPED: &[&str] = &["WHY", "CACHE", "FINDS NOTHING IF", "COMMAND"];

/// Returns a table that is no wider than this, if that can be: reasons go on in further lines, long names are shortened, and
/// the expendable columns go, in their order, but for those that fit once another one has gone.
pub fn table_within(room: usize, header: &[&str], rows: Vec<Vec<String>>, expendable: &[&str]) -> String {
    let widths = widths(header, &rows);
    let shortens = |at: usize| SHORTENED.contains(&header[at]);
    let capped = |at: usize, most: usize| if shortens(at) { widths[at].min(most) } else { widths[at] };
    let before = |columns: &[usize], most: usize| columns.iter().map(|at| padded(capped(*at, most))).sum::<usize>();
    let wraps = |at: usize| WRAPPED.contains(&header[at]);
    let longest = (0..header.len()).filter(|at| shortens(*at)).map(|at| widths[at]).fold(SHORTEST, usize::max);
    // Returns how long shortened cells may be.
    let most = |columns: &[usize]| {
        let (&last, columns) = columns.split_last()?;
        let least = |most: usize| if wraps(last) { widths[last].min(SHORTEST) } else { capped(last, most) };
        (SHORTEST..=longest).rev().find(|most| before(columns, *most) + least(*most) <= room)
    };
    let mut columns: Vec<usize> = (0..header.len()).collect();
    let mut gone = Vec::new();
    for title in expendable {
        if most(&columns).is_some() {
            break;
        }
        gone.extend(columns.extract_if(.., |at| header[*at] == *title));
    }
    for at in gone.into_iter().rev() {
        let place = columns.partition_point(|column| *column < at);
        columns.insert(place, at);
        if most(&columns).is_none() {
            columns.remove(place);
        }
    }
    let most = most(&columns).unwrap_or(SHORTEST);
    let shown = |row: &Vec<String>| {
        let cell = |at: &usize| if shortens(*at) { shortened(&row[*at], most) } else { row[*at].clone() };
        columns.iter().map(cell).collect()
    };
    let mut rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    if let Some((_, all_but_last)) = columns.split_last().filter(|(last, _)| wraps(**last)) {
        let left = room.saturating_sub(before(all_but_last, most)).max(SHORTEST);
        rows = rows.into_iter().flat_map(|row| continued(row, left)).collect();
    }
    let header: Vec<&str> = columns.iter().map(|at| header[*at]).collect();
    table(&header, &rows)
}

/// Returns a row as several, whose last cells are no wider than this.
fn continued(mut row: Vec<String>, room: usize) -> Vec<Vec<String>> {
    let Some(last) = row.pop() else { return Vec::new() };
    let lines = wrapped(&last, room);
    let empty = vec![String::new(); row.len()];
    let cells = std::iter::once(row).chain(std::iter::repeat(empty));
    cells.zip(lines).map(|(cells, line)| [cells, vec![line]].concat()).collect()
}

/// Returns text in lines no wider than this, broken between words; what stands in backticks can be pasted, and is not
/// broken.
pub fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut quoted = false;
    let words = text.split(|c| {
        quoted ^= c == '`';
        c == ' ' && !quoted
    });
    let mut lines = vec![String::new()];
    for (at, word) in words.enumerate() {
        match lines.last_mut() {
            Some(line) if at == 0 => line.push_str(word),
            Some(line) if width(line) + 1 + width(word) <= room => *line += &format!(" {word}"),
            _ => lines.push(word.into()),
        }
    }
    lines
}

/// Returns a name of no more characters than this: the end of a path tells more than its beginning.
fn shortened(name: &str, most: usize) -> String {
    let name = plain(name);
    let length = name.chars().count();
    if length <= most {
        return name;
    }
    let head = (most - 1) / 3;
    let skipped = length - (most - 1 - head);
    name.chars().take(head).chain(['…']).chain(name.chars().skip(skipped)).collect()
}

/// Returns how wide a table may be on standard output: wrapped rows are hard to read, and where nobody looks on, nothing is
/// left out.
pub fn room() -> usize {
    if is_terminal() { terminal_width() } else { usize::MAX }
}

/// Returns the number of characters, as far as a terminal shows one cell for each.
fn width(cell: &str) -> usize {
    plain(cell).chars().count()
}

/// Returns text without control characters, those that turn the direction of writing among them: names come from volumes
/// and Dockerfiles of others.
pub fn plain(text: &str) -> String {
    let turns =
        |c| matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || turns(c) { '\u{fffd}' } else { c }).collect()
}

/// Returns a word as a POSIX shell reads it back, for messages and remedies.
pub fn quote(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Returns a difference in bytes with its sign: `+1.2MB`.
pub fn signed(difference: f64) -> String {
    format!("{}{}", if difference < 0.0 { "-" } else { "+" }, Bytes(difference.abs().round() as u64))
}

/// Returns a bar of ten cells for a share between 0 and 1.
pub fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 9] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"];
    let eighths = (share.clamp(0.0, 1.0) * 80.0).round() as usize;
    let text = format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8]);
    format!("{text:10}")
}

/// A line on standard error that tells how far a slow thing is; nothing for the first second.
#[derive(Debug)]
pub struct Progress {
    shown: Arc<Shown>,
    ticker: Option<JoinHandle<()>>,
}

/// What the line says, None once it is over.
#[derive(Debug)]
struct Shown {
    state: Mutex<Option<State>>,
    over: Condvar,
}

/// How far something is.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub what: &'static str,
    /// Files and bytes that there will be, if that is known.
    pub total: Option<(u64, u64)>,
    pub started: Instant,
    pub files: u64,
    pub bytes: u64,
}

/// How to tell of what takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Telling {
    /// One line, written over and over, if standard error is a terminal; plain if not
    Auto,
    /// A line every ten seconds, for logs
    Plain,
    /// Nothing
    Quiet,
}

impl Telling {
    /// Returns true if a line may be written over.
    fn is_line(self) -> bool {
        self == Telling::Auto && io::stderr().is_terminal()
    }
}

impl Progress {
    /// Begins to tell of `what`: "Measuring".
    pub fn new(what: &'static str, telling: Telling) -> Progress {
        let state = State { what, total: None, started: Instant::now(), files: 0, bytes: 0 };
        let shown = Arc::new(Shown { state: Mutex::new(Some(state)), over: Condvar::new() });
        let telling = if telling == Telling::Auto && !telling.is_line() { Telling::Plain } else { telling };
        let ticker = match telling {
            Telling::Quiet => None,
            Telling::Auto => Some((Duration::from_secs(1), Duration::from_millis(200))),
            Telling::Plain => Some((Duration::from_secs(10), Duration::from_secs(10))),
        };
        let ticker = ticker.map(|(first, then)| {
            let shown = shown.clone();
            thread::spawn(move || shown.tick(telling == Telling::Auto, first, then))
        });
        Progress { shown, ticker }
    }

    /// Says how many files and bytes there are by now.
    pub fn update(&mut self, files: u64, bytes: u64) {
        if let Some(state) = self.shown.state().as_mut() {
            (state.files, state.bytes) = (files, bytes);
        }
    }

    /// Says what is done now.
    pub fn show(&mut self, state: State) {
        *self.shown.state() = Some(state);
    }
}

impl Shown {
    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the state now and then: over the last one if it is a `line` of a terminal.
    fn tick(&self, line: bool, first: Duration, then: Duration) {
        let (start, end) = if line { ("\r\x1b[K", "") } else { ("", "\n") };
        let (mut wait, mut state) = (first, self.state());
        loop {
            state = self
                .over
                .wait_timeout_while(state, wait, |state| state.is_some())
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            let Some(now) = *state else { break };
            let _ = io::stderr().write_all(format!("{start}{}{end}", now.line(now.started.elapsed())).as_bytes());
            wait = then;
        }
        if line && wait == then {
            let _ = io::stderr().write_all(start.as_bytes());
        }
    }
}

impl State {
    /// Returns it as one line: `Exporting  30%  1200 files  12MB  4MB/s  7s left`.
    fn line(&self, spent: Duration) -> String {
        let State { what, total, files, bytes, .. } = *self;
        let seconds = spent.as_secs_f64();
        if (files, bytes) == (0, 0) {
            return format!("{what}  {seconds:.0}s");
        }
        // A small file takes as long as some bytes of a large one.
        let work = |files: u64, bytes: u64| files as f64 * 16384.0 + bytes as f64;
        let share = total.map(|(of_files, of_bytes)| work(files, bytes) / work(of_files, of_bytes).max(1.0));
        let rate = match total {
            Some(_) => format!("{}/s", Bytes((bytes as f64 / seconds) as u64)),
            None => format!("{:.0} files/s", files as f64 / seconds),
        };
        let (percent, left) = match share {
            // Nothing is said of the rest before there is something to go by, or when there was more than was thought.
            Some(share @ 0.01..1.0) => {
                let left = Duration::from_secs((seconds * (1.0 - share) / share) as u64);
                (format!("{:.0}%  ", share * 100.0), format!("  {} left", humantime::format_duration(left)))
            }
            _ => Default::default(),
        };
        let files = if files > 0 { format!("{files} files  ") } else { String::new() };
        format!("{what}  {percent}{files}{}  {rate}{left}", Bytes(bytes))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *self.shown.state() = None;
        self.shown.over.notify_all();
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
    }
}

/// Downloads that run side by side: on a terminal one line with what each said last, and a line for each that ends.
#[derive(Debug)]
pub struct Downloads {
    /// What runs, and its last words.
    running: Mutex<Vec<(String, String)>>,
    line: bool,
    quiet: bool,
}

impl Downloads {
    pub fn new(telling: Telling) -> Downloads {
        Downloads { running: Mutex::default(), line: telling.is_line(), quiet: telling == Telling::Quiet }
    }

    fn running(&self) -> MutexGuard<'_, Vec<(String, String)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what one of them says.
    pub fn say(&self, what: &str, words: &str) {
        let mut running = self.running();
        match running.iter_mut().find(|(name, _)| name == what) {
            Some((_, last)) => *last = words.trim().into(),
            None => running.push((what.into(), words.trim().into())),
        }
        if self.line {
            let share = terminal_width() / running.len().max(1);
            let cut = |(name, last): &(String, String)| {
                let name = name.split(' ').next().unwrap_or_default();
                format!(
                    "{:share$}",
                    plain(&format!("{name}: {last}")).chars().take(share.saturating_sub(2)).collect::<String>()
                )
            };
            let line: String = running.iter().map(cut).collect();
            let _ = io::stderr().write_all(format!("\r\x1b[K{}", line.trim_end()).as_bytes());
        }
    }

    /// Tells that one has ended, and why if it failed.
    pub fn end(&self, what: &str, seconds: f64, error: Option<&str>) {
        let mut running = self.running();
        running.retain(|(name, _)| name != what);
        let colour = stderr_colour();
        let start = if self.line { "\r\x1b[K" } else { "" };
        let what = plain(what);
        match error {
            Some(error) => painted(&format!("{start}{} {what}: {}", paint(Paint::Red, "✗", colour), lines(error))),
            None if self.quiet => {}
            None => painted(&format!("{start}{} {what}  {seconds:.1}s", paint(Paint::Green, "✓", colour))),
        }
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        if self.line {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

/// Returns the width of the terminal, in cells.
pub fn terminal_width() -> usize {
    let size = tcgetwinsize(io::stderr()).or_else(|_| tcgetwinsize(io::stdout()));
    let width = size.map(|size| size.ws_col.into()).unwrap_or_default();
    if width == 0 { 80 } else { width }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_writes_elsewhere_on_the_terminal() {
        assert_eq!(plain("a\u{1b}[2K\nERROR: \u{202e}gnp.pem é"), "a\u{fffd}[2K\u{fffd}ERROR: \u{fffd}gnp.pem é");
    }

    #[test]
    fn tables_look_like_dockers() {
        let rows = vec![vec!["Images".into(), "4".into(), "97.18MB".into()]];
        let expected = "TYPE      TOTAL     SIZE\nImages    4         97.18MB\n";
        assert_eq!(table(&["TYPE", "TOTAL", "SIZE"], &rows), expected);
        assert_eq!(table(&["DRIVER", "VOLUME NAME"], &[]), "DRIVER    VOLUME NAME\n");
        assert!(!table(&["NAME"], &[vec!["a\x1b[31m\nb".into()]]).contains('\x1b'));
        let within = |room| table_within(room, &["TYPE", "TOTAL", "SIZE"], rows.clone(), &["TOTAL", "TYPE"]);
        assert_eq!(within(27), expected);
        assert_eq!(within(26), "TYPE      SIZE\nImages    97.18MB\n");
        assert_eq!(within(3), "SIZE\n97.18MB\n");
        let rows = vec![vec!["short".into(), "/home/somebody/.local/share/pnpm/store".into(), "cache".into()]];
        let within = |room| table_within(room, &["NAME", "DIRECTORY", "CLASS"], rows.clone(), &["CLASS"]);
        assert!(within(56).ends_with("short     /home/somebody/.local/share/pnpm/store   cache\n"));
        assert!(within(55).ends_with("short     /home/somebo…/.local/share/pnpm/store   cache\n"));
        assert!(within(42).ends_with("short     /home/s…share/pnpm/store   cache\n"));
        assert!(within(41).ends_with("short     /home/some…cal/share/pnpm/store\n"));
        assert!(within(10).ends_with("short     /home/s…share/pnpm/store\n"));
        // What went first comes back where a wider one went after it.
        let rows = vec![vec!["a".into(), "short".into(), "a long reason for it all".into(), "b".into()]];
        let within =
            |room| table_within(room, &["NAME", "STATUS", "REASON", "BY"], rows.clone(), &["STATUS", "REASON"]);
        assert_eq!(within(22), "NAME      STATUS    BY\na         short     b\n");
        assert_eq!(within(21), "NAME      BY\na         b\n");
    }

    #[test]
    fn words_stay_whole_where_lines_end() {
        assert_eq!(wrapped("one two  three", 7), ["one two", " three"]);
        assert_eq!(wrapped("a longerword b", 4), ["a", "longerword", "b"]);
        assert_eq!(wrapped("run `docker cache size` or not", 10), ["run", "`docker cache size`", "or not"]);
        assert_eq!(wrapped("", 10), [""]);
        let why = "used by container one and by container two";
        let rows = vec![vec!["pip".into(), "1.5GB".into(), why.into()]];
        let within = |room| table_within(room, &["NAME", "SIZE", "WHY"], rows.clone(), &["SIZE"]);
        assert_eq!(within(62), format!("NAME      SIZE      WHY\npip       1.5GB     {why}\n"));
        assert_eq!(
            within(50),
            "NAME      SIZE      WHY\npip       1.5GB     used by container one and by\n                    container two\n"
        );
        assert!(within(43).contains("NAME      WHY\n"));
    }

    #[test]
    fn progress_tells_rate_and_time_left() {
        let at = |what, total, files, bytes| {
            let state = State { what, total, started: Instant::now(), files, bytes };
            state.line(Duration::from_secs(2))
        };
        assert_eq!(at("Measuring", None, 10, 2_000_000), "Measuring  10 files  2MB  5 files/s");
        let all = Some((40, 8_000_000));
        assert_eq!(at("Exporting", all, 10, 2_000_000), "Exporting  25%  10 files  2MB  1MB/s  6s left");
        assert_eq!(at("Exporting", all, 50, 9_000_000), "Exporting  50 files  9MB  4.5MB/s");
        assert_eq!(at("Receiving", Some((0, 8_000_000)), 0, 2_000_000), "Receiving  25%  2MB  1MB/s  6s left");
        assert_eq!(at("Importing", all, 0, 0), "Importing  2s");
    }

    #[test]
    fn bars_are_ten_cells_wide() {
        for share in [0.0, 0.01, 0.5, 0.999, 1.0, 7.0] {
            assert_eq!(bar(share).chars().count(), 10, "{share}");
        }
    }
}
