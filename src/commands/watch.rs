//! `docker cache size --watch`: the same again and again, on one screen; a JSON line each time where nobody looks on.

use std::io::{self, IsTerminal, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::{Signal, kill_current_process_group};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use serde::Serialize;

use super::Context;
use super::size::{Answer, answer, look, sums, table};
use crate::cancel;
use crate::cli::{Format, Size};
use crate::docker::Docker;
use crate::docker::endpoint::Settings;
use crate::inventory::{Inventory, total};
use crate::model::Moment;
use crate::report::{self, plain};

/// The JSON contract: that of `size`, and when it was.
#[derive(Serialize)]
struct Line<'a> {
    /// Seconds since 1970.
    at: u64,
    #[serde(flatten)]
    answer: Answer<'a>,
}

/// How many totals the sparkline and the growth by minute are made of.
const KEPT: usize = 60;
/// How often keys, signals and the size of the terminal are looked at.
const BEAT: Duration = Duration::from_millis(50);

/// Shows the sizes every so many seconds until `q`, Ctrl-C or the end of the reader.
///
/// # Errors
/// When the engine cannot be asked, or the output cannot be written.
pub fn run(context: Context, options: &Size, seconds: u64) -> Result<u8> {
    let (docker, settings) = context.into_docker()?;
    let pause = Duration::from_secs(seconds);
    match report::is_terminal() && options.output.format == Format::Table {
        true => on_screen(&docker, &settings, options, pause),
        false if options.by.is_some() => {
            bail!("--by makes rows of a table, and off a terminal --watch prints JSON\nhint: leave one of them out")
        }
        false => in_lines(&docker, &settings, options, pause),
    }
}

fn in_lines(docker: &Docker, settings: &Settings, options: &Size, pause: Duration) -> Result<u8> {
    loop {
        let begun = Instant::now();
        let found = match look(docker, settings, options, &mut |_, _| ()) {
            Err(_) if cancel::requested() => return Ok(0),
            found => found?,
        };
        let line = Line { at: Moment::now().0, answer: answer(&found, options) };
        let mut out = io::stdout().lock();
        match writeln!(out, "{}", serde_json::to_string(&line)?).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            shown => shown?,
        }
        drop(out);
        while begun.elapsed() < pause {
            if cancel::requested() {
                return Ok(0);
            }
            thread::sleep(BEAT);
        }
    }
}

/// Measures beside the screen, which obeys keys, Ctrl-Z and a new size at once.
fn on_screen(docker: &Docker, settings: &Settings, options: &Size, pause: Duration) -> Result<u8> {
    let over = AtomicBool::new(false);
    let (sender, found) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let sender = sender;
            while !cancel::requested() && !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let found = look(docker, settings, options, &mut |_, _| ());
                if sender.send((begun, found)).is_err() {
                    return;
                }
                while begun.elapsed() < pause && !cancel::requested() && !over.load(Ordering::Relaxed) {
                    thread::sleep(BEAT);
                }
            }
        });
        let shown = show(&found, options, pause);
        over.store(true, Ordering::Relaxed);
        shown.map(|()| 0)
    })
}

fn show(measured: &mpsc::Receiver<(Instant, Result<Inventory>)>, options: &Size, pause: Duration) -> Result<()> {
    let mut screen = Screen::enter();
    let mut totals: Vec<(Instant, u64)> = Vec::new();
    let (mut latest, mut painted) = (None, None);
    while !cancel::requested() {
        match measured.recv_timeout(BEAT) {
            Ok((_, Err(_))) if cancel::requested() => break,
            Ok((begun, found)) => {
                let found = found?;
                // The first one stays: growth is told since then.
                if totals.len() > KEPT {
                    totals.remove(1);
                }
                totals.push((begun, total(&found.caches).0));
                (latest, painted) = (Some(found), None);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        match screen.key() {
            Some(Key::Leave) => cancel::leave(),
            Some(Key::Stop) => {
                drop(screen);
                // Docker, which waits for this process, stops with it until the shell lets both go on.
                kill_current_process_group(Signal::TSTP)?;
                (screen, painted) = (Screen::enter(), None);
            }
            None => {}
        }
        let size = size()?;
        if painted != Some(size) {
            let (text, end) = picture(latest.as_ref(), &totals, options, pause, size.1);
            screen.paint(&text, &end, size)?;
            painted = Some(size);
        }
    }
    Ok(())
}

/// Returns the table, and what is below it and always shown.
fn picture(
    found: Option<&Inventory>,
    totals: &[(Instant, u64)],
    options: &Size,
    pause: Duration,
    columns: usize,
) -> (String, String) {
    let keys = format!("Every {}s. q quits.\n", pause.as_secs());
    let Some(found) = found else { return ("Measuring\n".into(), keys) };
    let gaps: String = found.gaps.iter().chain(&found.twins).map(|gap| format!("WARNING: {gap}\n")).collect();
    let end = format!("\n{}{}{gaps}{keys}", sums(found, options), growth(totals, columns));
    (table(&found.caches, options, columns), end)
}

/// Returns the lines that tell how the total changes.
fn growth(totals: &[(Instant, u64)], columns: usize) -> String {
    let [(start, first), rest @ ..] = totals else { return String::new() };
    let Some((now, last)) = rest.last() else { return String::new() };
    let (from, earlier) = rest.first().filter(|_| rest.len() == KEPT).copied().unwrap_or((*start, *first));
    let minutes = now.duration_since(from).as_secs_f64() / 60.0;
    let since = humantime::format_duration(Duration::from_secs(now.duration_since(*start).as_secs()));
    let newest = totals.len().saturating_sub(columns.saturating_sub(10));
    let bytes: Vec<u64> = totals[newest..].iter().map(|(_, bytes)| *bytes).collect();
    format!(
        "Growth:   {} in {since}, {} a minute\n          {}\n",
        report::signed(*last as f64 - *first as f64),
        report::signed((*last as f64 - earlier as f64) / minutes.max(1.0 / 60.0)),
        sparkline(&bytes)
    )
}

/// Returns a character for each number, higher for larger ones.
fn sparkline(numbers: &[u64]) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let least = numbers.iter().min().copied().unwrap_or_default();
    let span = numbers.iter().max().copied().unwrap_or_default() - least;
    let level = |number: &u64| (number - least) as u128 * 7 / u128::from(span.max(1));
    numbers.iter().map(|number| LEVELS[level(number) as usize]).collect()
}

/// Returns rows and columns of the terminal.
fn size() -> io::Result<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout())?;
    Ok(match (size.ws_row.into(), size.ws_col.into()) {
        (0, _) | (_, 0) => (24, 80),
        size => size,
    })
}

/// Returns the lines that there is room for: of the text the first, of what is at its end the last.
fn fitting(text: &str, end: &str, rows: usize) -> Vec<String> {
    let end: Vec<&str> = end.lines().collect();
    let room = rows.saturating_sub(end.len());
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.len() > room {
        let shown = room.saturating_sub(1);
        let more = format!("… {} lines more", lines.len() - shown);
        lines.truncate(shown);
        lines.extend((room > 0).then_some(more));
    }
    lines.extend(end[end.len().saturating_sub(rows)..].iter().map(ToString::to_string));
    lines
}

enum Key {
    Leave,
    /// Ctrl-Z.
    Stop,
}

/// The terminal's other screen, which does not wait for whole lines and does not show what is typed. Dropped, the terminal
/// is as it was.
struct Screen {
    /// Its modes from before; None where nobody types.
    modes: Option<Termios>,
}

impl Screen {
    fn enter() -> Screen {
        let modes = tcgetattr(io::stdin()).ok().filter(|_| io::stdin().is_terminal());
        if let Some(mut modes) = modes.clone() {
            modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // A read returns at once.
            modes.special_codes[SpecialCodeIndex::VMIN] = 0;
            modes.special_codes[SpecialCodeIndex::VTIME] = 0;
            // Ctrl-Z would stop docker, and the shell would write here, before this process knew of it.
            modes.special_codes[SpecialCodeIndex::VSUSP] = if cfg!(target_os = "linux") { 0 } else { 255 };
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &modes);
        }
        let _ = io::stdout().write_all(b"\x1b[?1049h\x1b[?25l\x1b[?7l");
        Screen { modes }
    }

    /// Writes what fits; what comes at the end is shown first of all.
    fn paint(&self, text: &str, end: &str, (rows, columns): (usize, usize)) -> io::Result<()> {
        let mut out = String::from("\x1b[H");
        // The last line ends with a line feed, which must not scroll.
        for line in fitting(text, end, rows.saturating_sub(1)) {
            let line: String = plain(&line).chars().take(columns).collect();
            out.push_str(&line);
            // Behind the last column, it would take the last character away.
            if line.chars().count() < columns {
                out.push_str("\x1b[K");
            }
            out.push_str("\r\n");
        }
        out.push_str("\x1b[J");
        let mut stdout = io::stdout().lock();
        stdout.write_all(out.as_bytes())?;
        stdout.flush()
    }

    /// Returns the last key that was typed and means something.
    fn key(&self) -> Option<Key> {
        let mut typed = [0; 64];
        let length = match self.modes {
            Some(_) => io::stdin().lock().read(&mut typed).unwrap_or_default(),
            None => 0,
        };
        typed[..length].iter().rev().find_map(|key| match key {
            b'q' => Some(Key::Leave),
            0x1a => Some(Key::Stop),
            _ => None,
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(b"\x1b[?7h\x1b[?25h\x1b[?1049l").and_then(|()| stdout.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_since_the_start_and_by_the_minute() {
        let start = Instant::now();
        let at = |seconds, bytes| (start + Duration::from_secs(seconds), bytes);
        assert_eq!(growth(&[at(0, 1000)], 80), "");
        assert_eq!(
            growth(&[at(0, 1000), at(15, 2000), at(30, 4000)], 80),
            "Growth:   +3kB in 30s, +6kB a minute\n          ▁▃█\n"
        );
        assert!(growth(&[at(0, 1000), at(15, 2000), at(30, 4000)], 12).ends_with("minute\n          ▁█\n"));
        assert!(growth(&[at(0, 4000), at(60, 1000)], 80).starts_with("Growth:   -3kB in 1m, -3kB a minute\n"));
    }

    #[test]
    fn one_screen_is_never_left() {
        let (text, end) = ("HEADER\na\nb\nc\nd\n", "\nTotal\nkeys\n");
        assert_eq!(fitting(text, end, 9).len(), 8);
        assert_eq!(fitting(text, end, 6), ["HEADER", "a", "… 3 lines more", "", "Total", "keys"]);
        for rows in 0..9 {
            assert!(fitting(text, end, rows).len() <= rows, "{rows}");
        }
    }

    #[test]
    fn a_sparkline_reaches_from_the_least_to_the_most() {
        assert_eq!(sparkline(&[0, 1, 2, 3, 4, 5, 6, 7]), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[5, 5]), "▁▁");
        assert_eq!(sparkline(&[0, u64::MAX]), "▁█");
    }
}
