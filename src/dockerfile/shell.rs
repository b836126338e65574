//! The commands of a shell script, as far as they can be told without running it. What is not surely understood is
//! left out or marked; nothing is expanded here.

use std::ops::Range;

use super::Text;

/// One word of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Without quotes; variables stand as they were written.
    pub text: String,
    /// In the file.
    pub span: Range<usize>,
}

/// What stands between two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Begin or end of the script.
    Edge,
    And,
    Or,
    Semicolon,
    Newline,
    /// A pipe, `&`, a bracket: the command is part of something larger.
    Other,
}

/// One simple command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// `NAME=value` before it.
    pub env: Vec<(String, String)>,
    /// Program and arguments; what only starts another program (`sudo`, `env`, `exec`) is left out.
    pub words: Vec<Word>,
    /// Files that its output goes to.
    pub outputs: Vec<String>,
    pub sudo: bool,
    /// From its first word to the end of its last, or of a redirection, in the file.
    pub span: Range<usize>,
    pub before: Link,
    pub after: Link,
    /// In an `if`, a loop, brackets, or the argument of `sh -c`: may not run, and cannot be taken out.
    pub nested: bool,
    /// In an `if` or a `case` that looks at a variable: runs if somebody asks for it.
    pub chosen: bool,
}

impl Command {
    /// Returns the program without its directory.
    pub fn program(&self) -> &str {
        self.words.first().map_or("", |word| word.text.rsplit('/').next().unwrap_or_default())
    }

    /// Returns the arguments.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.words.iter().skip(1).map(|word| word.text.as_str())
    }

    /// Returns the commands whose output its words and variables take in, by `$(…)` or backquotes, and perhaps more.
    pub fn substituted(&self) -> Vec<Command> {
        let texts = self.words.iter().map(|word| &word.text).chain(self.env.iter().map(|(_, value)| value));
        let scripts = texts.filter(|text| text.contains("$(") || text.contains('`'));
        scripts.flat_map(|text| commands(&Text::of(&text.replace("$(", "\n(").replace('`', "\n")))).collect()
    }
}

enum Token {
    Word(Word),
    Link(Link),
    /// `(` or `)`.
    Bracket(bool),
    /// The next word is the file of a redirection; true for an output.
    Redirection(bool),
}

const OPENING: &[&str] = &["if", "while", "until", "for", "case", "select", "{", "function"];
const CLOSING: &[&str] = &["fi", "done", "esac", "}"];
const AMID: &[&str] = &["then", "else", "elif", "do", "!", "time"];

/// Returns the commands of a script in their order.
pub fn commands(script: &Text) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut words: Vec<Word> = Vec::new();
    let mut outputs = Vec::new();
    let mut redirected = None;
    let (mut depth, mut before, mut end) = (0_usize, Link::Edge, 0_usize);
    let mut branches = Vec::new();
    let mut finish = |words: &mut Vec<Word>, outputs: &mut Vec<String>, depth: &mut usize, end, around| {
        branch(words, &mut branches);
        let first = commands.len();
        command(std::mem::take(words), std::mem::take(outputs), depth, end, around, &mut commands);
        let chosen = branches.contains(&true);
        commands[first..].iter_mut().for_each(|command| command.chosen |= chosen);
    };
    for token in tokens(script) {
        match token {
            Token::Word(word) => {
                end = word.span.end;
                match redirected.take() {
                    Some(true) => outputs.push(word.text),
                    Some(false) => {}
                    None => words.push(word),
                }
            }
            Token::Redirection(output) => redirected = Some(output),
            Token::Link(link) => {
                // An empty line, or the newline after `&&`, changes nothing.
                if !words.is_empty() {
                    finish(&mut words, &mut outputs, &mut depth, end, (before, link));
                    before = link;
                }
            }
            Token::Bracket(open) => {
                finish(&mut words, &mut outputs, &mut depth, end, (before, Link::Other));
                depth = if open { depth + 1 } else { depth.saturating_sub(1) };
                before = Link::Other;
            }
        }
    }
    finish(&mut words, &mut outputs, &mut depth, end, (before, Link::Edge));
    commands
}

/// Follows the `if` and `case` that are open: true for one that looks at a variable.
fn branch(words: &[Word], branches: &mut Vec<bool>) {
    let looks = || words.iter().any(|word| word.text.contains('$'));
    match words.first().map(|word| word.text.as_str()) {
        Some("if" | "case") => branches.push(looks()),
        Some("elif") => {
            if let Some(open) = branches.last_mut() {
                *open |= looks();
            }
        }
        Some("fi" | "esac") => drop(branches.pop()),
        _ => {}
    }
}

fn command(
    mut words: Vec<Word>,
    outputs: Vec<String>,
    depth: &mut usize,
    end: usize,
    (before, after): (Link, Link),
    commands: &mut Vec<Command>,
) {
    // Nobody writes that many, and to take one off the front moves all others.
    if words.len() > 10_000 {
        return;
    }
    let mut keyword = false;
    while let Some(first) = words.first().map(|word| word.text.clone()) {
        let first = first.as_str();
        if CLOSING.contains(&first) {
            *depth = depth.saturating_sub(1);
            return;
        } else if OPENING.contains(&first) {
            *depth += 1;
            if matches!(first, "for" | "case" | "select" | "function") {
                return;
            }
        } else if !AMID.contains(&first) {
            break;
        }
        keyword = true;
        words.remove(0);
    }
    let Some(first) = words.first() else { return };
    let span = first.span.start..end.max(first.span.end);
    let mut env = Vec::new();
    let mut sudo = false;
    while let Some(first) = words.first() {
        if let Some((name, value)) = assignment(&first.text) {
            env.push((name.to_owned(), value.to_owned()));
            words.remove(0);
            continue;
        }
        match first.text.rsplit('/').next().unwrap_or_default() {
            "sudo" => sudo = true,
            "env" | "exec" | "command" | "nice" | "nohup" | "eatmydata" | "xargs" => {}
            _ => break,
        }
        words.remove(0);
        while words.first().is_some_and(|word| word.text.starts_with('-')) {
            let flag = words.remove(0).text;
            // Flags with a value: whose command it then is, is not told.
            if matches!(flag.as_str(), "-u" | "--user" | "-g" | "-n" | "-I" | "-P" | "-L" | "-d" | "-i") {
                if words.is_empty() || sudo {
                    return;
                }
                words.remove(0);
            }
        }
    }
    let nested = *depth > 0 || keyword;
    let shell = words.first().is_some_and(|word| {
        matches!(word.text.rsplit('/').next().unwrap_or_default(), "sh" | "bash" | "ash" | "dash" | "zsh")
    });
    if shell {
        let flag = words
            .iter()
            .position(|word| word.text.starts_with('-') && !word.text.starts_with("--") && word.text.ends_with('c'));
        if let Some(inner) = flag.and_then(|at| words.get(at + 1)).filter(|_| *depth < 8) {
            for mut found in self::commands(&Text::of(&inner.text)) {
                found.nested = true;
                found.sudo |= sudo;
                found.env.extend(env.iter().cloned());
                found.span = span.clone();
                found.words.iter_mut().for_each(|word| word.span = span.clone());
                commands.push(found);
            }
            return;
        }
    }
    commands.push(Command { env, words, outputs, sudo, span, before, after, nested, chosen: false });
}

/// Returns name and value of `NAME=value`.
pub fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(fits))
        .then_some((name, value))
}

fn tokens(script: &Text) -> Vec<Token> {
    let text = script.text.as_str();
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut heredocs: Vec<(String, bool)> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let next = bytes.get(at + 1).copied();
        match bytes[at] {
            b' ' | b'\t' | b'\r' => at += 1,
            b'\\' if matches!(next, Some(b'\n')) => at += 2,
            b'\\' if text[at..].starts_with("\\\r\n") => at += 3,
            b'\n' => {
                tokens.push(Token::Link(Link::Newline));
                at += 1;
                for (name, chomp) in std::mem::take(&mut heredocs) {
                    at = after_heredoc(text, at, &name, chomp);
                }
            }
            b'#' => at = text[at..].find('\n').map_or(text.len(), |length| at + length),
            b';' => {
                let double = next == Some(b';');
                tokens.push(Token::Link(if double { Link::Other } else { Link::Semicolon }));
                at += 1 + usize::from(double);
            }
            b'&' if next == Some(b'&') => {
                tokens.push(Token::Link(Link::And));
                at += 2;
            }
            b'|' if next == Some(b'|') => {
                tokens.push(Token::Link(Link::Or));
                at += 2;
            }
            b'&' if next == Some(b'>') => {
                tokens.push(Token::Redirection(true));
                at += 2 + usize::from(bytes.get(at + 2) == Some(&b'>'));
            }
            b'&' | b'|' => {
                tokens.push(Token::Link(Link::Other));
                at += 1;
            }
            open @ (b'(' | b')') => {
                tokens.push(Token::Bracket(open == b'('));
                at += 1;
            }
            b'<' if text[at..].starts_with("<<<") => {
                tokens.push(Token::Redirection(false));
                at += 3;
            }
            b'<' if next == Some(b'<') => {
                let chomp = bytes.get(at + 2) == Some(&b'-');
                at = super::skip_blank(text, at + 2 + usize::from(chomp));
                let end = word(text, at).1;
                heredocs.push((text[at..end].replace(['"', '\'', '\\'], ""), chomp));
                at = end;
            }
            redirection @ (b'<' | b'>') => {
                tokens.push(Token::Redirection(redirection == b'>'));
                at += 1;
                while matches!(bytes.get(at), Some(b'>' | b'&' | b'|')) {
                    at += 1;
                }
            }
            _ => {
                let (cooked, end) = word(text, at);
                // `2>` is a redirection, not a word.
                let descriptor = text[at..end].bytes().all(|byte| byte.is_ascii_digit())
                    && matches!(bytes.get(end), Some(b'<' | b'>'));
                if !descriptor {
                    tokens.push(Token::Word(Word { text: cooked, span: script.span(at..end) }));
                }
                at = end;
            }
        }
    }
    tokens
}

/// Returns the word at `from` without its quotes, and where it ends.
fn word(text: &str, from: usize) -> (String, usize) {
    let mut cooked = String::new();
    let mut chars = text[from..].char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let here = from + at;
        match c {
            ' ' | '\t' | '\r' | '\n' | ';' | '&' | '|' | '(' | ')' | '<' | '>' => return (cooked, here),
            '\\' => match chars.next() {
                Some((_, '\n')) | None => {}
                Some((_, escaped)) => cooked.push(escaped),
            },
            '\'' => {
                for (_, inner) in chars.by_ref() {
                    if inner == '\'' {
                        break;
                    }
                    cooked.push(inner);
                }
            }
            '"' => {
                while let Some((_, inner)) = chars.next() {
                    match inner {
                        '"' => break,
                        '\\' => match chars.next() {
                            Some((_, '\n')) | None => {}
                            Some((_, escaped @ ('"' | '\\' | '$' | '`'))) => cooked.push(escaped),
                            Some((_, other)) => cooked.extend(['\\', other]),
                        },
                        _ => cooked.push(inner),
                    }
                }
            }
            '`' => {
                cooked.push(c);
                for (_, inner) in chars.by_ref() {
                    cooked.push(inner);
                    if inner == '`' {
                        break;
                    }
                }
            }
            '$' if matches!(chars.peek(), Some((_, '(' | '{'))) => {
                cooked.push(c);
                let mut depth = 0_usize;
                for (_, inner) in chars.by_ref() {
                    cooked.push(inner);
                    match inner {
                        '(' | '{' => depth += 1,
                        ')' | '}' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            _ => cooked.push(c),
        }
    }
    (cooked, text.len())
}

fn after_heredoc(text: &str, from: usize, name: &str, chomp: bool) -> usize {
    let mut at = from;
    for line in text[from..].split_inclusive('\n') {
        at += line.len();
        let line = line.trim_end_matches(['\n', '\r']);
        if (if chomp { line.trim_start_matches('\t') } else { line }) == name {
            break;
        }
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(script: &str) -> Vec<String> {
        let text = Text::of(script);
        let shown = |command: Command| command.words.into_iter().map(|word| word.text).collect::<Vec<_>>().join(" ");
        commands(&text).into_iter().map(shown).collect()
    }

    #[test]
    fn scripts_fall_into_commands() {
        let cases: &[(&str, &[&str])] = &[
            ("a b && c;d | e || f", &["a b", "c", "d", "e", "f"]),
            ("set -eux; A=1 B='2 3' pip install x", &["set -eux", "pip install x"]),
            ("sudo -E apt-get update", &["apt-get update"]),
            ("sudo -u app pip install x", &[]),
            ("sh -ec 'a && b \"c d\"' && e", &["a", "b c d", "e"]),
            ("if [ -f x ]; then a; else b; fi && c", &["[ -f x ]", "a", "b", "c"]),
            ("for p in a b; do pip install $p; done", &["pip install $p"]),
            ("(cd x && npm ci)", &["cd x", "npm ci"]),
            ("a > /x 2>&1 < y # c && d", &["a"]),
            ("a $(b c; d) `e f` \"${X:-y z}\"", &["a $(b c; d) `e f` ${X:-y z}"]),
            ("a \\\n  b\n\n# c\ncat <<X\npip install\nX\nd", &["a b", "cat", "d"]),
            ("cat r.txt | xargs apt-get install -y", &["cat r.txt", "apt-get install -y"]),
            ("'unclosed", &["unclosed"]),
            ("a \"unclosed", &["a unclosed"]),
            ("$(", &["$("]),
            ("<<", &[]),
            ("", &[]),
        ];
        for (script, expected) in cases {
            assert_eq!(read(script), *expected, "{script}");
        }
    }

    #[test]
    fn the_commands_in_the_words_of_another_are_found() {
        let cases: &[(&str, &[&str])] = &[
            ("echo $(a b) \"x $(c 'd e'; f)\"", &["a b", "x", "c d e", "f"]),
            ("X=`a b` Y=$(c $(d)) e f", &["a b", "c", "d"]),
            ("echo a ${b} \"$c\"", &[]),
            ("echo $(", &[]),
        ];
        for (script, expected) in cases {
            let text = Text::of(script);
            let found = commands(&text).iter().flat_map(Command::substituted).collect::<Vec<_>>();
            let shown =
                |command: Command| command.words.into_iter().map(|word| word.text).collect::<Vec<_>>().join(" ");
            assert_eq!(found.into_iter().map(shown).collect::<Vec<_>>(), *expected, "{script}");
        }
    }

    #[test]
    fn a_command_knows_what_stands_around_it() {
        let text = Text::of("a && b; if c; then d; fi");
        let found: Vec<_> = commands(&text).into_iter().map(|c| (c.before, c.after, c.nested)).collect();
        assert_eq!(found[0], (Link::Edge, Link::And, false));
        assert_eq!(found[1], (Link::And, Link::Semicolon, false));
        assert!(found[2].2 && found[3].2);
    }
}
