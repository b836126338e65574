//! `docker cache size --watch`: the same again and again, on one screen; a JSON line each time where nobody looks on.

use std::io::{self, IsTerminal, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use serde::Serialize;

use super::Context;
use super::size::{Answer, answer, look, text};
use crate::cancel;
use crate::cli::{Format, Size};
use crate::inventory::total;
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

/// Shows the sizes every so many seconds until `q`, Ctrl-C or the end of the reader.
///
/// # Errors
/// When the engine cannot be asked, or the output cannot be written.
pub fn run(context: Context, options: &Size, seconds: u64) -> Result<u8> {
    let (docker, settings) = context.into_docker()?;
    let mut screen: Option<Screen> = None;
    let mut totals: Vec<(Instant, u64)> = Vec::new();
    loop {
        let begun = Instant::now();
        let found = match look(&docker, &settings, options, &mut |_, _| ()) {
            Err(_) if cancel::requested() => return Ok(0),
            found => found?,
        };
        totals.push((begun, total(&found.caches).0));
        let shown = match report::is_terminal() && options.output.format == Format::Table {
            true => {
                let screen = screen.get_or_insert_with(Screen::enter);
                let gaps = found.gaps.iter().map(|gap| format!("WARNING: {gap}\n")).collect::<String>();
                let end = format!("{}{gaps}\nEvery {seconds}s. q quits.\n", growth(&totals));
                screen.paint(&text(&found.caches, options), &end)
            }
            false => {
                let line = Line { at: Moment::now().0, answer: answer(&found.caches, options) };
                io::stdout().write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes())
            }
        };
        match shown.and_then(|()| io::stdout().flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            shown => shown?,
        }
        while begun.elapsed() < Duration::from_secs(seconds) {
            if cancel::requested() || screen.as_ref().is_some_and(Screen::is_left) {
                return Ok(0);
            }
            thread::sleep(Duration::from_millis(50));
        }
        // The first one stays: growth is told since then.
        if totals.len() > KEPT {
            totals.remove(1);
        }
    }
}

/// Returns the lines that tell how the total changes.
fn growth(totals: &[(Instant, u64)]) -> String {
    let [(start, first), rest @ ..] = totals else { return String::new() };
    let Some((now, last)) = rest.last() else { return String::new() };
    let (from, earlier) = rest.first().filter(|_| rest.len() == KEPT).copied().unwrap_or((*start, *first));
    let minutes = now.duration_since(from).as_secs_f64() / 60.0;
    let since = humantime::format_duration(Duration::from_secs(now.duration_since(*start).as_secs()));
    let bytes: Vec<u64> = totals.iter().map(|(_, bytes)| *bytes).collect();
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
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &modes);
        }
        let _ = io::stdout().write_all(b"\x1b[?1049h\x1b[?25l");
        Screen { modes }
    }

    /// Writes what fits; what comes at the end is always shown.
    fn paint(&self, text: &str, end: &str) -> io::Result<()> {
        let size = rustix::termios::tcgetwinsize(io::stdout())?;
        let (rows, columns) = match (size.ws_row.into(), size.ws_col.into()) {
            (0, _) | (_, 0) => (24, 80),
            size => size,
        };
        // The last line ends with a line feed, which must not scroll.
        let room = (rows - 1_usize).saturating_sub(end.lines().count());
        let mut lines: Vec<&str> = text.lines().collect();
        let more = format!("… {} lines more", (lines.len() + 1).saturating_sub(room));
        if lines.len() > room {
            lines.truncate(room.saturating_sub(1));
            lines.push(&more);
        }
        let mut out = String::from("\x1b[H");
        for line in lines.into_iter().chain(end.lines()) {
            out.push_str(&plain(line).chars().take(columns).collect::<String>());
            out.push_str("\x1b[K\r\n");
        }
        out.push_str("\x1b[J");
        io::stdout().write_all(out.as_bytes())
    }

    /// Returns true if somebody typed `q`.
    fn is_left(&self) -> bool {
        let mut typed = [0; 64];
        let length = match self.modes {
            Some(_) => io::stdin().lock().read(&mut typed).unwrap_or_default(),
            None => 0,
        };
        typed[..length].contains(&b'q')
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(modes) = &self.modes {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
        }
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_told_since_the_start_and_by_the_minute() {
        let start = Instant::now();
        let at = |seconds, bytes| (start + Duration::from_secs(seconds), bytes);
        assert_eq!(growth(&[at(0, 1000)]), "");
        assert_eq!(
            growth(&[at(0, 1000), at(15, 2000), at(30, 4000)]),
            "Growth:   +3kB in 30s, +6kB a minute\n          ▁▃█\n"
        );
        assert!(growth(&[at(0, 4000), at(60, 1000)]).starts_with("Growth:   -3kB in 1m, -3kB a minute\n"));
    }

    #[test]
    fn a_sparkline_reaches_from_the_least_to_the_most() {
        assert_eq!(sparkline(&[0, 1, 2, 3, 4, 5, 6, 7]), "▁▂▃▄▅▆▇█");
        assert_eq!(sparkline(&[5, 5]), "▁▁");
        assert_eq!(sparkline(&[0, u64::MAX]), "▁█");
    }
}
