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
    let previous = index.checked_sub(1).map(|at| &commands[at]);
    // One that fails in a list, `a && b`, ends no script.
    let is_in_list = |command: &Command| matches!(command.before, Link::And | Link::Or | Link::Other);
    let is_stopped = commands.iter().any(stops) && !previous.is_some_and(is_in_list);
    let decides = index + 1 == commands.len() && !is_stopped;
    let is_after_any = matches!(command.before, Link::Semicolon | Link::Newline);
    // The last command of a script decides whether the step fails, and in `a; b && c` it is not `a` that decides about `c`.
    let leads = previous.is_some() && command.after == Link::And;
    // The rest may read what it writes.
    let is_file = |output: &String| output != "/dev/null" && output.parse::<u8>().is_err();
    let writes = command.outputs.iter().any(is_file);
    if command.nested || writes || is_after_any && (decides || leads) {
        return None;
    }
    match (previous, commands.get(index + 1)) {
        (Some(previous), next) if joins(command.before) && (joins(command.after) || command.after == Link::Edge) => {
            let between = joint(file, previous, command)?;
            // A comment may stand behind the other one, or in a line between.
            let (start, text) = match (command.before, command.after, between.contains('#')) {
                (Link::Newline, ..) => (last_line(between), String::new()),
                (_, Link::Edge, _) => (0, comments(between)),
                (_, _, false) => (0, String::new()),
                (..) => {
                    let next = next.filter(|_| command.before == command.after)?;
                    let above = last_line(between);
                    let text = comments(joint(file, command, next)?) + &between[above..];
                    return Some(Edit { range: previous.span.end + above..next.span.start, text });
                }
            };
            Some(Edit { range: previous.span.end + start..command.span.end, text })
        }
        (None, Some(next)) if command.before == Link::Edge && joins(command.after) => {
            let between = joint(file, command, next)?;
            let mut text = comments(between);
            if !text.is_empty() {
                let last = &between[last_line(between)..];
                text.push_str(&last[..last.len() - last.trim_start().len()]);
                let before = &file.source[..command.span.start];
                let begins_line = before.rsplit('\n').next().is_some_and(|line| line.trim().is_empty());
                text = if begins_line { text.trim_start().into() } else { format!("{}{text}", file.escape) };
            }
            Some(Edit { range: command.span.start..next.span.start, text })
        }
        _ => None,
    }
}

/// Returns what stands between two commands, if that is what joins them and comments alone, and so no command that is not
/// understood, no closing `fi` and no bracket.
fn joint<'a>(file: &'a Dockerfile, first: &Command, second: &Command) -> Option<&'a str> {
    let text = file.source.get(first.span.end..second.span.start)?;
    let is_joint = |c: char| c.is_whitespace() || c == file.escape || "&;".contains(c);
    let joined = text.lines().all(|line| line.split('#').next().unwrap_or_default().chars().all(is_joint));
    (joined && first.after == second.before && !first.nested && !second.nested).then_some(text)
}

/// Returns where the last line of a text begins, its line break included; 0 if it has but one.
fn last_line(text: &str) -> usize {
    text.rfind('\n').map_or(0, |end| text[..end].trim_end_matches('\r').len())
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
pub fn remove_word(file: &Dockerfile, command: &Command, index: usize) -> Option<Edit> {
    let (previous, word) = (command.words.get(index.checked_sub(1)?)?, command.words.get(index)?);
    if word.span.is_empty() || word.span.start < previous.span.end {
        return None;
    }
    let comments = comments(file.source.get(previous.span.end..word.span.start)?);
    let ends_line = file.source[word.span.end..].lines().next().is_none_or(|rest| rest.trim().is_empty());
    // What follows in the line goes on after comments, or else would become part of one.
    let start = if comments.is_empty() || ends_line { previous.span.end } else { word.span.start };
    let text = if ends_line { comments } else { String::new() };
    Some(Edit { range: start..word.span.end, text })
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
