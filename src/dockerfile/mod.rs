//! A Dockerfile as instructions that know where each of their bytes stands in the file, so that a fix can be made there.
//! Follows BuildKit's own parser (frontend/dockerfile/parser): escape directive, continuations, comments within them,
//! here-documents anywhere in a line. Reads no file, and goes on after what it cannot parse.

pub mod bases;
pub mod mount;
pub mod shell;
pub mod stage;

use std::ops::Range;

/// Text taken out of a file in pieces, which still tells where each byte came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    /// Offsets in `text` and in the file, where a piece begins.
    pieces: Vec<(usize, usize)>,
}

impl Text {
    /// Returns a text that is a file of its own.
    pub fn of(text: &str) -> Text {
        let mut whole = Text::default();
        whole.push(text, 0);
        whole
    }

    fn push(&mut self, piece: &str, at: usize) {
        if !piece.is_empty() {
            self.pieces.push((self.text.len(), at));
            self.text.push_str(piece);
        }
    }

    /// Returns where the byte at `offset` stands in the file.
    pub fn source(&self, offset: usize) -> usize {
        let next = self.pieces.partition_point(|(here, _)| *here <= offset);
        next.checked_sub(1).map_or(0, |at| self.pieces[at].1 + offset - self.pieces[at].0)
    }

    /// Returns the range in the file, which may hold continuations and comments that the text does not.
    pub fn span(&self, range: Range<usize>) -> Range<usize> {
        let start = self.source(range.start);
        if range.is_empty() { start..start } else { start..self.source(range.end - 1) + 1 }
    }

    /// Returns the rest of the text from `start` on.
    fn from(&self, start: usize) -> Text {
        let mut rest = Text::default();
        for (at, (here, there)) in self.pieces.iter().enumerate() {
            let end = self.pieces.get(at + 1).map_or(self.text.len(), |next| next.0);
            let skip = start.saturating_sub(*here);
            if here + skip < end {
                rest.push(&self.text[here + skip..end], there + skip);
            }
        }
        rest
    }
}

/// `--name=value` after the keyword.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    pub name: String,
    pub value: Option<String>,
    /// Of the whole flag, in the file.
    pub span: Range<usize>,
    /// Of the value, in the file.
    pub value_span: Range<usize>,
}

/// `<<EOF` and what follows until `EOF`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    pub body: Text,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// In capitals: `RUN`. Of `ONBUILD RUN …` it is `ONBUILD`.
    pub keyword: String,
    /// Counted from 1.
    pub line: u32,
    /// From the keyword to the end of the last line, without its line end; here-documents are outside.
    pub span: Range<usize>,
    /// Where the first flag or argument is, in the file.
    pub start: usize,
    pub flags: Vec<Flag>,
    /// What follows the flags, continuations joined.
    pub args: Text,
    pub heredocs: Vec<Heredoc>,
}

impl Instruction {
    /// Returns the words of a JSON array, if the arguments are one.
    pub fn json(&self) -> Option<Vec<String>> {
        self.args.text.trim_start().starts_with('[').then(|| serde_json::from_str(self.args.text.trim()).ok()).flatten()
    }

    /// Returns the value of a flag: `--from=build`.
    pub fn flag(&self, name: &str) -> Option<&str> {
        self.flags.iter().find(|flag| flag.name == name).and_then(|flag| flag.value.as_deref())
    }
}

/// What could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub line: u32,
    pub message: String,
}

/// A whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dockerfile {
    pub source: String,
    pub escape: char,
    /// Where each line starts.
    lines: Vec<usize>,
    pub instructions: Vec<Instruction>,
    pub problems: Vec<Problem>,
}

/// Instructions after which nobody reads on: rules compare each with those before it. Large real files have about 200.
const MOST: usize = 500;

const KEYWORDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

impl Dockerfile {
    /// Reads a file's text. What is wrong is told in `problems`, and the rest read nevertheless.
    pub fn parse(source: &str) -> Dockerfile {
        let start = if source.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        let mut at = start;
        let mut lines = Vec::new();
        for line in source[start..].split_inclusive('\n') {
            lines.push(at);
            at += line.len();
        }
        let mut file = Dockerfile { source: source.into(), escape: '\\', lines, ..Dockerfile::default() };
        file.directives();
        file.read();
        file.check();
        file
    }

    /// Returns the line, counted from 1, of an offset.
    pub fn line_of(&self, offset: usize) -> u32 {
        self.lines.partition_point(|start| *start <= offset).max(1) as u32
    }

    /// Returns a line without its end, and where it starts.
    fn line(&self, number: usize) -> (&str, usize) {
        let start = self.lines[number];
        let end = self.lines.get(number + 1).copied().unwrap_or(self.source.len());
        let line = &self.source[start..end];
        (line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line)), start)
    }

    fn directives(&mut self) {
        for number in 0..self.lines.len() {
            let Some(comment) = self.line(number).0.trim().strip_prefix('#') else { return };
            let Some((name, value)) = comment.split_once('=') else { return };
            match (name.trim().to_ascii_lowercase().as_str(), value.trim()) {
                ("escape", "`") => self.escape = '`',
                ("escape", "\\") | ("syntax" | "check", _) => {}
                _ => return,
            }
        }
    }

    fn read(&mut self) {
        let mut number = 0;
        while number < self.lines.len() {
            let first = number;
            let mut text = Text::default();
            let mut end = self.lines[first];
            loop {
                let (line, at) = self.line(number);
                number += 1;
                let content = line.trim_start();
                let ignored = content.starts_with('#') || content.trim_end().is_empty();
                if ignored && number - 1 == first {
                    break;
                }
                if !ignored {
                    let (kept, goes_on) = self.without_continuation(line);
                    let indent = if first + 1 == number { line.len() - content.len() } else { 0 };
                    text.push(kept.get(indent..).unwrap_or_default(), at + indent);
                    end = at + line.trim_end().len();
                    if !goes_on {
                        break;
                    }
                }
                if number == self.lines.len() {
                    break;
                }
            }
            if !text.text.trim().is_empty() {
                self.instruction(&text, first, end, &mut number);
            }
        }
    }

    /// Returns the line up to an escape character at its end, and whether there is one. Two of them are none.
    fn without_continuation<'a>(&self, line: &'a str) -> (&'a str, bool) {
        match line.trim_end_matches([' ', '\t']).strip_suffix(self.escape) {
            Some(kept) if !kept.ends_with(self.escape) => (kept, true),
            _ => (line, false),
        }
    }

    fn instruction(&mut self, text: &Text, first: usize, end: usize, number: &mut usize) {
        let line = first as u32 + 1;
        let word = text.text.split_whitespace().next().unwrap_or_default();
        let keyword = word.to_ascii_uppercase();
        if !KEYWORDS.contains(&keyword.as_str()) {
            let shown: String = word.chars().take(40).collect();
            self.problems.push(Problem { line, message: format!("unknown instruction `{shown}`") });
            return;
        }
        let mut at = skip_blank(&text.text, word.len());
        let start = text.source(at.min(text.text.len().saturating_sub(1)));
        let mut flags = Vec::new();
        while matches!(keyword.as_str(), "RUN" | "COPY" | "ADD" | "FROM" | "HEALTHCHECK")
            && text.text[at..].starts_with("--")
        {
            let stop = word_end(&text.text, at);
            let raw = &text.text[at..stop];
            let (name, value) = raw[2..].split_once('=').map_or((&raw[2..], None), |(name, value)| (name, Some(value)));
            let value_at = at + 3 + name.len();
            flags.push(Flag {
                name: name.to_lowercase(),
                value: value.map(unquoted),
                span: text.span(at..stop),
                value_span: text.span(value_at.min(stop)..stop),
            });
            at = skip_blank(&text.text, stop);
        }
        let args = text.from(at);
        let mut heredocs = Vec::new();
        if matches!(keyword.as_str(), "RUN" | "COPY" | "ADD" | "ONBUILD") {
            for (name, chomp) in heredoc_names(&args.text) {
                match self.heredoc(&name, chomp, number) {
                    Some(body) => heredocs.push(Heredoc { name, body }),
                    None => {
                        let message = format!("the here-document `{name}` has no end");
                        self.problems.push(Problem { line, message });
                        break;
                    }
                }
            }
        }
        let span = text.source(0)..end;
        self.instructions.push(Instruction { keyword, line, span, start, flags, args, heredocs });
    }

    fn heredoc(&self, name: &str, chomp: bool, number: &mut usize) -> Option<Text> {
        let mut body = Text::default();
        while *number < self.lines.len() {
            let (line, at) = self.line(*number);
            *number += 1;
            let kept = if chomp { line.trim_start_matches('\t') } else { line };
            if kept == name {
                return Some(body);
            }
            body.push(kept, at + line.len() - kept.len());
            body.push("\n", at + line.len());
        }
        None
    }

    fn check(&mut self) {
        if let Some(line) = self.instructions.get(MOST).map(|instruction| instruction.line) {
            let message =
                format!("the file has more than {MOST} instructions, and those from here on were not looked at");
            self.problems.push(Problem { line, message });
            self.instructions.truncate(MOST);
        }
        let first = self.instructions.iter().find(|instruction| instruction.keyword != "ARG");
        match first {
            None if self.problems.is_empty() => {
                self.problems.push(Problem { line: 1, message: "the file has no `FROM`".into() });
            }
            Some(first) if first.keyword != "FROM" => {
                let message = format!("`{}` stands before the first `FROM`", first.keyword);
                self.problems.push(Problem { line: first.line, message });
            }
            _ => {}
        }
    }
}

pub(crate) fn skip_blank(text: &str, from: usize) -> usize {
    text[from..].find(|c: char| !c.is_whitespace()).map_or(text.len(), |length| from + length)
}

/// Returns the end of the word that starts at `from`; quotes keep blanks in it.
pub(crate) fn word_end(text: &str, from: usize) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text[from..].char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None | Some('"'), '\\') => escaped = true,
            (None, _) if c.is_whitespace() => return from + at,
            _ => {}
        }
    }
    text.len()
}

pub(crate) fn unquoted(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '"' | '\'')).collect()
}

/// Returns the here-documents that a line announces: their end words, and whether tabs before lines are dropped.
fn heredoc_names(line: &str) -> Vec<(String, bool)> {
    let mut names = Vec::new();
    let mut at = skip_blank(line, 0);
    while at < line.len() {
        let end = word_end(line, at);
        let word = line[at..end].trim_start_matches(|c: char| c.is_ascii_digit());
        if let Some(rest) = word.strip_prefix("<<") {
            let (rest, chomp) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
            if !rest.is_empty() && !rest.contains('<') {
                names.push((rest.replace(['"', '\'', '\\'], ""), chomp));
            }
        }
        at = skip_blank(line, end);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<(String, String)> {
        let file = Dockerfile::parse(source);
        file.instructions.into_iter().map(|i| (i.keyword, i.args.text)).collect()
    }

    #[test]
    fn every_byte_knows_where_it_came_from() {
        let source =
            "FROM a\r\nRUN --mount=type=cache,target=/x \\\r\n # why\r\n\r\n  one && \\ \t\r\n  two\r\nuser x\r\n";
        let file = Dockerfile::parse(source);
        let run = &file.instructions[1];
        assert_eq!(run.flags[0].value.as_deref(), Some("type=cache,target=/x"));
        assert_eq!(&source[run.flags[0].value_span.clone()], "type=cache,target=/x");
        for (at, byte) in run.args.text.bytes().enumerate() {
            assert_eq!(source.as_bytes()[run.args.source(at)], byte);
        }
        assert_eq!(run.args.text, "one &&   two");
        assert!(source[run.span.clone()].ends_with("two"));
        assert_eq!((file.instructions[2].keyword.as_str(), file.instructions[2].line), ("USER", 7));
    }

    #[test]
    fn heredocs_end_where_docker_ends_them() {
        let source = "FROM a\nRUN cat <<A > /x && cat <<-'B'\n RUN no\nA\n\ttab\n\tB\nCOPY <<C /c\nc\nC\nRUN echo \"<<D\" $((1<<2)) <<<x\n";
        let file = Dockerfile::parse(source);
        assert_eq!(file.problems, []);
        let bodies: Vec<&str> =
            file.instructions.iter().flat_map(|i| &i.heredocs).map(|doc| doc.body.text.as_str()).collect();
        assert_eq!(bodies, [" RUN no\n", "tab\n", "c\n"]);
        assert_eq!(file.instructions.len(), 4);
    }

    #[test]
    fn the_escape_directive_changes_the_escape() {
        let read = texts("# escape=`\nFROM a\nRUN a `\n  b \\\nRUN c\n");
        assert_eq!(read[1], ("RUN".into(), "a   b \\".into()));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn what_cannot_be_parsed_is_told_and_the_rest_read() {
        let problem = |source: &str| Dockerfile::parse(source).problems.first().map(|problem| problem.line);
        assert_eq!(problem("FROM a\nFOO bar\nRUN x\n"), Some(2));
        assert_eq!(texts("FROM a\nFOO bar\nRUN x\n").len(), 2);
        assert_eq!(problem("FROM a\nRUN <<EOF\nx\n"), Some(2));
        assert_eq!(problem("RUN x\n"), Some(1));
        assert_eq!(problem(""), Some(1));
        assert_eq!(problem("\u{feff}FROM a\n"), None);
        assert_eq!(problem("FROM a\nRUN x \\\n"), None);
    }
}
