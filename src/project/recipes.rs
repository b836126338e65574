//! The recipes of Makefiles and justfiles, with their variables filled in as far as they are known. Pure.

use std::collections::BTreeMap;

/// What one line may grow to, in bytes: variables can double each other.
const LONGEST: usize = 1 << 16;
/// What all lines may grow to together, in bytes.
const MOST: usize = 1 << 22;
/// Variables within variables.
const DEEPEST: usize = 20;

/// One line that a shell reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// In small letters.
    pub target: String,
    pub text: String,
    /// Counted from 1.
    pub line: u32,
}

/// Returns the recipes of a Makefile, or of a justfile if it is called so.
pub fn read(name: &str, text: &str) -> Vec<Recipe> {
    let is_just = name.to_lowercase().ends_with("justfile");
    let mut variables: BTreeMap<&str, String> = BTreeMap::new();
    let mut recipes: Vec<Recipe> = Vec::new();
    let mut target = String::new();
    let lines = joined(text, " ");
    for (line, number) in &lines {
        if line.starts_with('\t') || (is_just && line.starts_with(' ')) {
            recipes.push(Recipe { target: target.clone(), text: line.trim().to_owned(), line: *number });
            continue;
        }
        let content = line.split(" #").next().unwrap_or_default().trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if let Some((name, operation, value)) = variable(content) {
            let value = if is_just { value.trim_matches(['"', '\'']) } else { value };
            let old = variables.get(name).cloned();
            let value = match (operation, old) {
                ('+', Some(old)) => format!("{old} {value}"),
                ('?', Some(old)) => old,
                _ => value.to_owned(),
            };
            // Nobody writes that much.
            if value.len() <= LONGEST {
                variables.insert(name, value);
            }
        } else if let Some((name, _)) = content.split_once(':') {
            // Each of its recipes has a copy.
            target = name.trim().chars().take(1000).collect::<String>().to_lowercase();
        }
    }
    // make fills recipes in when all is read.
    let mut grown = 0;
    for recipe in &mut recipes {
        if grown > MOST {
            break;
        }
        let whole = match is_just {
            true => fill_in(&recipe.text, &variables.iter().map(|(name, value)| (*name, value)).collect::<Vec<_>>()),
            false => {
                let mut done = String::new();
                expand(&recipe.text, &variables, 0, &mut done);
                done
            }
        };
        grown += whole.len();
        recipe.text = whole.trim_start_matches(['@', '-', '+', ' ', '\t']).to_owned();
    }
    recipes
}

/// Returns lines with those that continue them, each after `between`, and the number of the first.
pub fn joined(text: &str, between: &str) -> Vec<(String, u32)> {
    let mut lines: Vec<(String, u32)> = Vec::new();
    let mut goes_on = false;
    for (number, line) in text.lines().enumerate() {
        let (kept, next) = line.strip_suffix('\\').map_or((line, false), |kept| (kept, true));
        match lines.last_mut().filter(|_| goes_on) {
            Some((joined, _)) => {
                joined.push_str(between);
                joined.push_str(kept);
            }
            None => lines.push((kept.to_owned(), number as u32 + 1)),
        }
        goes_on = next;
    }
    lines
}

/// Returns name, the sign before `=`, and value of an assignment.
fn variable(line: &str) -> Option<(&str, char, &str)> {
    let line = ["export ", "override "].iter().fold(line, |line, word| line.strip_prefix(word).unwrap_or(line));
    let (name, value) = line.split_once('=')?;
    let operation = name.chars().last().filter(|c| matches!(c, ':' | '?' | '+' | '!')).unwrap_or('=');
    let name = name.trim_end_matches([':', '?', '+', '!']).trim();
    (is_name(name) && operation != '!').then(|| (name, operation, value.trim()))
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

/// Fills in `$(NAME)` and `${NAME}`; functions and unknown variables stay as they are.
fn expand(text: &str, variables: &BTreeMap<&str, String>, depth: usize, done: &mut String) {
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        if done.len() > LONGEST {
            return;
        }
        done.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            done.push('$');
            rest = after;
            continue;
        }
        let closing = match rest.chars().next() {
            Some('(') => ')',
            Some('{') => '}',
            _ => {
                done.push('$');
                continue;
            }
        };
        let name = rest[1..].split(closing).next().unwrap_or_default();
        match variables.get(name).filter(|_| depth < DEEPEST && rest.len() > name.len() + 1) {
            Some(value) => {
                expand(value, variables, depth + 1, done);
                rest = &rest[name.len() + 2..];
            }
            None => done.push('$'),
        }
    }
    done.push_str(rest);
}

/// Fills in `{{NAME}}` and `{{.NAME}}`, as justfiles and Taskfiles have them; what is not known stays as it is.
pub fn fill_in(text: &str, variables: &[(impl AsRef<str>, impl AsRef<str>)]) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        done.push_str(before);
        // Nobody names a variable with more.
        let name = after.get(..after.len().min(200)).unwrap_or(after).split("}}").next().unwrap_or_default();
        let wanted = name.trim().trim_start_matches('.');
        let value = variables.iter().find(|(name, _)| name.as_ref() == wanted).map(|(_, value)| value.as_ref());
        match value.filter(|_| after.len() > name.len() && done.len() < LONGEST) {
            Some(value) => {
                done.push_str(value);
                rest = &after[name.len() + 2..];
            }
            None => {
                done.push_str("{{");
                rest = after;
            }
        }
    }
    done.push_str(rest);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(name: &str, text: &str) -> Vec<String> {
        read(name, text).into_iter().map(|recipe| format!("{}: {}", recipe.target, recipe.text)).collect()
    }

    #[test]
    fn variables_are_filled_in_as_make_does() {
        let text = "D ?= docker\nD ?= podman\nA = $(B) x\nB := y\nB += z\nall: dep\n\t@-$(D) $(A) $$HOME $(C) $(shell x $(B)) ${D\n";
        assert_eq!(texts("Makefile", text), ["all: docker y z x $HOME $(C) $(shell x y z) ${D"]);
        assert_eq!(
            texts("justfile", "d := 'docker'\nx y='z':\n  @{{d}} {{ d }} {{y}} {{d"),
            ["x y='z': docker docker {{y}} {{d"]
        );
    }

    #[test]
    fn variables_that_grow_do_not_grow_for_ever() {
        let mut text = String::from("A0 = x\nL = $(L) $(L)\n");
        (1..100).for_each(|at| text.push_str(&format!("A{at} = $(A{0})$(A{0})\n", at - 1)));
        text.push_str(&format!(
            "P = x\n{}all:\n\t$(A99) $(L) $(A15)$(A15)$(A15)$(A15)\n",
            "P += $(A15)\n".repeat(1000)
        ));
        assert!(texts("Makefile", &text).iter().all(|text| text.len() < 4 * LONGEST));
    }
}
