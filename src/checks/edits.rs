//! Changes of a Dockerfile's text, made where the author wrote it: order, continuations and comments stay. Pure.

use std::ops::Range;

use crate::dockerfile::shell::{Command, Link};
use crate::dockerfile::{Dockerfile, Instruction};

/// One replacement; an insertion has an empty range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    pub range: Range<usize>,
    pub text: String,
}

/// Returns the text with the edits made. Of the groups, each is made whole or, where it would touch another, not at
/// all; the next round finds it again.
pub fn apply(source: &str, groups: &[Vec<Edit>]) -> String {
    let mut chosen: Vec<&Edit> = Vec::new();
    for group in groups {
        let touches = |edit: &Edit| {
            chosen.iter().any(|other| {
                *other != edit && edit.range.start <= other.range.end && other.range.start <= edit.range.end
            })
        };
        if !group.iter().any(touches) {
            chosen.extend(group.iter().filter(|edit| !chosen.contains(edit)).collect::<Vec<_>>());
        }
    }
    chosen.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut text = String::with_capacity(source.len() + 256);
    let mut at = 0;
    for edit in chosen {
        let (Some(kept), true) = (source.get(at..edit.range.start), source.is_char_boundary(edit.range.end)) else {
            continue;
        };
        text.push_str(kept);
        text.push_str(&edit.text);
        at = edit.range.end;
    }
    text.push_str(source.get(at..).unwrap_or_default());
    text
}

/// How the author breaks this instruction's lines: the escape and a line end, and the indent of what follows.
fn line_break(file: &Dockerfile, instruction: &Instruction) -> String {
    let end = if file.source.contains("\r\n") { "\r\n" } else { "\n" };
    let text = &file.source[instruction.span.clone()];
    let second = text.split('\n').nth(1).filter(|line| !line.trim_start().starts_with('#'));
    let indent = second.map(|line| &line[..line.len() - line.trim_start().len()]).filter(|indent| !indent.is_empty());
    format!(" {}{end}{}", file.escape, indent.unwrap_or("    "))
}

/// Adds mounts in front of a `RUN`'s flags and command.
pub fn add_mounts(file: &Dockerfile, instruction: &Instruction, mounts: &[String]) -> Edit {
    let after = line_break(file, instruction);
    let text = mounts.iter().map(|mount| format!("--mount={mount}{after}")).collect();
    Edit { range: instruction.start..instruction.start, text }
}

/// Puts a command in front of a `RUN`'s script; `None` for the exec form.
pub fn put_first(file: &Dockerfile, instruction: &Instruction, command: &str) -> Option<Edit> {
    if instruction.json().is_some() {
        return None;
    }
    if let Some(heredoc) = instruction.heredocs.first() {
        if !instruction.args.text.trim_start().starts_with("<<") {
            return None;
        }
        let body = &heredoc.body;
        let end = if file.source.contains("\r\n") { "\r\n" } else { "\n" };
        let mut at = 0;
        if body.text.starts_with("#!") {
            at = body.text.find('\n')? + 1;
        }
        let first = if at < body.text.len() { body.source(at) } else { return None };
        // Of `<<-`, the body is without the tabs at the begin of its lines.
        let place = file.source[..first].rfind('\n').map_or(0, |end| end + 1);
        let line = file.source[place..].lines().next().unwrap_or_default();
        let indent = &line[..line.len() - line.trim_start().len()];
        return Some(Edit { range: place..place, text: format!("{indent}{command}{end}") });
    }
    let place = instruction.args.source(0);
    let text = format!("{command} &&{}", line_break(file, instruction));
    Some(Edit { range: place..place, text })
}

/// Takes a command out of a script; `None` where that could change what the rest does.
pub fn remove_command(file: &Dockerfile, commands: &[Command], index: usize) -> Option<Edit> {
    let command = &commands[index];
    let joins = |link: Link| matches!(link, Link::And | Link::Semicolon | Link::Newline);
    let stops = |command: &Command| command.program() == "set" && command.args().any(is_errexit);
    let decides = command.after == Link::Edge && !commands.iter().any(stops);
    // The last command of a script decides whether the step fails.
    if command.nested || decides && matches!(command.before, Link::Semicolon | Link::Newline) {
        return None;
    }
    let previous = index.checked_sub(1).map(|at| &commands[at]);
    match (previous, commands.get(index + 1)) {
        (Some(previous), _) if joins(command.before) && (joins(command.after) || command.after == Link::Edge) => {
            // A closing `fi` or bracket may stand between.
            (!previous.nested && previous.after == command.before).then(|| {
                let between = &file.source[previous.span.end..command.span.start];
                // A comment may stand behind the other one, or in a line between.
                let line = between.rfind('\n').filter(|_| command.before == Link::Newline);
                let start = previous.span.end + line.map_or(0, |end| between[..end].trim_end_matches('\r').len());
                let is_last = line.is_none() && command.after == Link::Edge;
                let text = if is_last { comments(between) } else { String::new() };
                Edit { range: start..command.span.end, text }
            })
        }
        (None, Some(next)) if command.before == Link::Edge && joins(command.after) && !next.nested => {
            Some(Edit { range: command.span.start..next.span.start, text: String::new() })
        }
        _ => None,
    }
}

/// Tells whether an option of `set` ends a script with the first command that fails.
fn is_errexit(option: &str) -> bool {
    option.starts_with('-') && option.contains('e') || option == "errexit"
}

/// Returns the lines of a text that are comments, to stand below what comes before it.
fn comments(text: &str) -> String {
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    text.lines().filter(|line| line.trim_start().starts_with('#')).map(|line| format!("{end}{line}")).collect()
}

/// Takes a word out of a command, with the blank before it.
pub fn remove_word(command: &Command, index: usize) -> Option<Edit> {
    let (previous, word) = (command.words.get(index.checked_sub(1)?)?, command.words.get(index)?);
    let own = word.span.end > word.span.start && previous.span.end <= word.span.start;
    own.then(|| Edit { range: previous.span.end..word.span.end, text: String::new() })
}

/// Takes one variable out of an `ENV`, or the whole instruction if it sets no other.
pub fn remove_variable(file: &Dockerfile, instruction: &Instruction, name: &str) -> Option<Edit> {
    let text = &instruction.args.text;
    let mut words = Vec::new();
    let mut at = crate::dockerfile::skip_blank(text, 0);
    while at < text.len() {
        let end = crate::dockerfile::word_end(text, at);
        words.push(at..end);
        at = crate::dockerfile::skip_blank(text, end);
    }
    let sets = |range: &Range<usize>| text[range.clone()].split_once('=').is_some_and(|(set, _)| set == name);
    let old_form = words.first().is_some_and(|word| &text[word.clone()] == name);
    if old_form || (words.len() == 1 && words.iter().all(sets)) {
        let rest = &file.source[instruction.span.end..];
        let end = instruction.span.end + rest.find('\n').map_or(rest.len(), |length| length + 1);
        return Some(Edit { range: instruction.span.start..end, text: String::new() });
    }
    let index = words.iter().position(sets)?;
    let span = |at: usize| instruction.args.span(words[at].clone());
    let range = if index == 0 { span(0).start..span(1).start } else { span(index - 1).end..span(index).end };
    let comments = comments(&file.source[range.clone()]);
    match (comments.is_empty(), index + 1 == words.len()) {
        (true, _) => Some(Edit { range, text: String::new() }),
        (false, false) => Some(Edit { range: span(index), text: String::new() }),
        (false, true) => Some(Edit { range, text: comments }),
    }
}
