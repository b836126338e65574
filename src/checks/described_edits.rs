//! Changes of compose files and devcontainer.json, made where the author wrote them. Each is read back: what does not say
//! just what the file said and the change, as where an anchor carries it further, is not made. Pure.

use super::edits::{self, Edit};
use crate::catalogue::Row;
use crate::dockerfile::mount::within;
use crate::project::File;
use crate::project::container::{self, Described, Mount, Place};
use crate::project::tree::{Entry, Node, Value};

/// A file as lines that know where they start.
struct Lines<'a> {
    text: &'a str,
    /// Offsets; the last is the end of the text.
    starts: Vec<usize>,
    /// How its lines end.
    end: &'static str,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Lines<'a> {
        let mut starts = vec![0];
        starts.extend(text.split_inclusive('\n').scan(0, |at, line| {
            *at += line.len();
            Some(*at)
        }));
        Lines { text, starts, end: if text.contains("\r\n") { "\r\n" } else { "\n" } }
    }

    /// Returns a line, counted from 1, without its end.
    fn get(&self, number: u32) -> Option<&'a str> {
        let number = number as usize;
        let range = *self.starts.get(number.checked_sub(1)?)?..*self.starts.get(number)?;
        Some(self.text[range].trim_end_matches(['\n', '\r']))
    }

    /// Puts whole lines below a line.
    fn below(&self, number: u32, lines: &[String]) -> Option<Edit> {
        let at = *self.starts.get(number as usize)?;
        let ended = self.text[..at].ends_with('\n');
        let text: String = match ended {
            true => lines.iter().map(|line| format!("{line}{}", self.end)).collect(),
            false => lines.iter().map(|line| format!("{}{line}", self.end)).collect(),
        };
        Some(Edit { range: at..at, text })
    }

    fn last(&self) -> u32 {
        self.starts.len() as u32 - 1
    }
}

fn indent(line: &str) -> &str {
    &line[..line.len() - line.trim_start().len()]
}

/// Returns a line of YAML without a comment at its end.
fn content(line: &str) -> &str {
    line.split(" #").next().unwrap_or_default().trim()
}

fn is_empty(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#')
}

fn text(text: &str) -> Node {
    Node { line: 0, value: Value::Text(text.to_owned()) }
}

/// Returns the list that is there with others in front of it.
fn with_first(old: Option<&Node>, first: &[String]) -> Node {
    let list = |node: &Node| match &node.value {
        Value::List(nodes) => nodes.clone(),
        _ => Vec::new(),
    };
    let first = first.iter().map(|one| text(one).into());
    Node { line: 0, value: Value::List(first.chain(old.map(list).unwrap_or_default()).collect()) }
}

/// Returns what the file says; nothing of one so large that no person wrote it, as each change is read back.
fn root(file: &File) -> Option<Node> {
    if file.text.len() > 1 << 16 { None } else { file.tree(&file.text).ok() }
}

/// Returns the edits if the file then says what is expected.
fn read_back(file: &File, edits: Vec<Edit>, expected: &Node) -> Option<Vec<Edit>> {
    let after = edits::apply(&file.text, std::slice::from_ref(&edits));
    file.tree(&after).ok()?.says_same(expected).then_some(edits)
}

/// Returns the path of what a described container says about something.
fn path_of<'a>(described: &'a Described, compose: &'a [&'a str], dev: &'a [&'a str]) -> Vec<&'a str> {
    match &described.service {
        Some(service) => ["services", service].into_iter().chain(compose.iter().copied()).collect(),
        None => dev.to_vec(),
    }
}

/// Corrects the target of a mount.
pub fn move_target(file: &File, described: &Described, mount: &Mount, target: &str) -> Option<Vec<Edit>> {
    let root = root(file)?;
    let path = path_of(described, &["volumes"], &["mounts"]);
    let list = root.at(&path)?;
    let names = ["target", "destination", "dst"];
    let place_of = |node: &Node| names.iter().find_map(|name| node.get(name)).unwrap_or(node).clone();
    let is_it = |node: &Node| {
        node.line == mount.place.line && place_of(node).text().is_some_and(|text| text.contains(&mount.target))
    };
    let index = list.elements().into_iter().position(is_it)?;
    let element = list.elements()[index].clone();
    let place = place_of(&element);
    let lines = Lines::of(&file.text);
    let line = lines.get(place.line)?;
    if line.matches(&mount.target).count() != 1 || line.contains('$') {
        return None;
    }
    let start = lines.starts[place.line as usize - 1] + line.find(&mount.target)?;
    let edit = Edit { range: start..start + mount.target.len(), text: target.to_owned() };
    let moved = text(&place.text()?.replace(&mount.target, target));
    let moved = match names.iter().find(|name| element.get(name).is_some()) {
        Some(name) => element.with(&[name], |_| Some(moved)),
        None => moved,
    };
    let mut elements: Vec<_> = list.elements().into_iter().map(|node| node.clone().into()).collect();
    elements[index] = moved.into();
    let expected = root.with(&path, |_| Some(Node { line: 0, value: Value::List(elements) }));
    read_back(file, vec![edit], &expected)
}

/// Takes out what switches the cache off: `no_cache: true` of a service, `--no-cache` of a dev container.
pub fn with_cache(file: &File, described: &Described, place: &Place) -> Option<Vec<Edit>> {
    let root = root(file)?;
    let lines = Lines::of(&file.text);
    let start = lines.starts[(place.line as usize).checked_sub(1)?];
    let line = lines.get(place.line)?;
    if described.service.is_some() {
        let path = path_of(described, &["build", "no_cache"], &[]);
        let edit = match content(line).strip_prefix("no_cache:") {
            Some(_) => Edit { range: start..*lines.starts.get(place.line as usize)?, text: String::new() },
            None => without(line, start, "no_cache: true")?,
        };
        return read_back(file, vec![edit], &root.with(&path, |_| None));
    }
    let flag = "\"--no-cache\"";
    let edits = match line.trim().trim_end_matches(',') == flag {
        true => {
            let mut edits = vec![Edit { range: start..*lines.starts.get(place.line as usize)?, text: String::new() }];
            let above = file.text[..start].trim_end();
            // JSON wants no comma after the last element.
            if !line.trim_end().ends_with(',') && above.ends_with(',') {
                edits.push(Edit { range: above.len() - 1..above.len(), text: String::new() });
            }
            edits
        }
        false => vec![without(line, start, flag)?],
    };
    let path = ["build", "options"];
    let kept = root.at(&path)?.elements().into_iter().filter(|node| node.text() != Some("--no-cache"));
    let kept: Vec<_> = kept.map(|node| node.clone().into()).collect();
    read_back(file, edits, &root.with(&path, |_| Some(Node { line: 0, value: Value::List(kept) })))
}

/// Takes an element of a list or map in one line, with the comma behind it or before it.
fn without(line: &str, start: usize, element: &str) -> Option<Edit> {
    let at = line.find(element).filter(|_| line.matches(element).count() == 1)?;
    let (before, after) = (&line[..at], &line[at + element.len()..]);
    let behind = after.trim_start().strip_prefix(',').map(|rest| after.len() - rest.trim_start().len());
    let range = match behind {
        Some(length) => at..at + element.len() + length,
        None => before.trim_end().strip_suffix(',').map_or(at, str::len)..at + element.len(),
    };
    Some(Edit { range: start + range.start..start + range.end, text: String::new() })
}

/// Mounts new volumes in a service that is written in block style, and declares them. A name that is taken is told apart
/// by the service's.
pub fn mount_in_compose(file: &File, described: &Described, volumes: &[(String, &str)]) -> Option<Vec<Edit>> {
    let root = root(file)?;
    let lines = Lines::of(&file.text);
    let name = described.service.as_deref()?;
    let service = root.get("services")?.entry(name)?;
    let declared = root.entry("volumes");
    let is_free = |name: &String| declared.is_none_or(|declared| declared.node.entry(name).is_none());
    let names: Vec<String> = volumes
        .iter()
        .map(|(volume, _)| [volume.clone(), format!("{name}-{volume}")].into_iter().find(is_free))
        .collect::<Option<_>>()?;
    let mounts: Vec<String> = names.iter().zip(volumes).map(|(name, (_, place))| format!("{name}:{place}")).collect();

    let mut edits = vec![match service.node.entry("volumes") {
        Some(list) => {
            let first = list.node.elements().first()?.line;
            let item = lines.get(first).filter(|line| first > list.line && line.trim_start().starts_with("- "))?;
            let items: Vec<String> = mounts.iter().map(|mount| format!("{}- {mount}", indent(item))).collect();
            lines.below(list.line, &items)?
        }
        None => {
            let outer = indent(lines.get(service.line)?).len();
            let body =
                |number: &u32| lines.get(*number).is_some_and(|line| is_empty(line) || indent(line).len() > outer);
            let body = (service.line + 1..=lines.last()).take_while(body);
            let body: Vec<u32> = body.filter(|number| lines.get(*number).is_some_and(|line| !is_empty(line))).collect();
            let space = indent(lines.get(*body.first()?)?);
            let step = space.get(outer..)?;
            let items = mounts.iter().map(|mount| format!("{space}{step}- {mount}"));
            let block: Vec<String> = std::iter::once(format!("{space}volumes:")).chain(items).collect();
            lines.below(*body.last()?, &block)?
        }
    }];
    match declared {
        Some(declared) => {
            let first = declared.node.entries().iter().map(|entry| entry.line).min();
            let space = match first {
                Some(first) if first > declared.line => indent(lines.get(first)?),
                Some(_) => return None,
                None => "  ",
            };
            let names: Vec<String> = names.iter().map(|name| format!("{space}{name}:")).collect();
            (content(lines.get(declared.line)?) == "volumes:").then_some(())?;
            edits.push(lines.below(declared.line, &names)?);
        }
        None => {
            let names = names.iter().map(|name| format!("  {name}:"));
            let block: Vec<String> = ["".into(), "volumes:".into()].into_iter().chain(names).collect();
            edits.push(lines.below(lines.last(), &block)?);
        }
    }
    let path = path_of(described, &["volumes"], &[]);
    let expected = root.with(&path, |old| Some(with_first(old, &mounts))).with(&["volumes"], |old| {
        let mut entries = old.map(|old| old.entries().to_vec()).unwrap_or_default();
        let null = Node { line: 0, value: Value::Null };
        entries.extend(names.into_iter().map(|key| Entry { key, line: 0, node: null.clone().into() }));
        Some(Node { line: 0, value: Value::Map(entries) })
    });
    read_back(file, edits, &expected)
}

/// Mounts volumes in a devcontainer.json, with the command that gives them to `owner`, who is not root and has this home.
pub fn mount_in_dev(file: &File, volumes: &[(String, &str)], owner_home: Option<&str>) -> Option<Vec<Edit>> {
    let root = root(file)?;
    let lines = Lines::of(&file.text);
    let opening = (1..=lines.last()).find(|number| lines.get(*number).is_some_and(|line| line.trim() == "{"))?;
    let space = indent(lines.get(opening + 1)?).to_owned();
    let mounts: Vec<String> =
        volumes.iter().map(|(name, place)| format!("source={name},target={place},type=volume")).collect();
    let quoted: Vec<String> = mounts.iter().map(|mount| format!("\"{mount}\"")).collect();
    let mut expected = root.with(&["mounts"], |old| Some(with_first(old, &mounts)));
    let mut edits = Vec::new();
    let mut block = Vec::new();
    if let Some(home) = owner_home {
        // Docker makes the directories above a volume too, and all of them belong to root.
        let mut made = std::collections::BTreeSet::new();
        for (_, place) in volumes {
            let mut path = *place;
            while within(path, home) && path != home {
                made.insert(path);
                path = container::parent(path);
            }
            made.insert(place);
        }
        let made = made.into_iter().collect::<Vec<_>>().join(" ");
        if root.get("onCreateCommand").is_some() {
            return None;
        }
        block.push(format!("{space}\"onCreateCommand\": \"sudo chown \\\"$(id -u):$(id -g)\\\" {made}\","));
        let command = format!("sudo chown \"$(id -u):$(id -g)\" {made}");
        expected = expected.with(&["onCreateCommand"], |_| Some(text(&command)));
    }
    match root.entry("mounts") {
        Some(list) => {
            let line = lines.get(list.line)?;
            let bracket = line.find('[').filter(|_| line.matches('[').count() == 1)?;
            let first = list.node.elements().first().map(|first| first.line);
            edits.push(match first {
                Some(first) if first > list.line => {
                    let space = indent(lines.get(first)?);
                    let items: Vec<String> = quoted.iter().map(|mount| format!("{space}{mount},")).collect();
                    lines.below(list.line, &items)?
                }
                first => {
                    let at = lines.starts[list.line as usize - 1] + bracket + 1;
                    let comma = if first.is_some() { ", " } else { "" };
                    Edit { range: at..at, text: format!("{}{comma}", quoted.join(", ")) }
                }
            });
        }
        None => block.push(format!("{space}\"mounts\": [{}],", quoted.join(", "))),
    }
    if !block.is_empty() {
        edits.push(lines.below(opening, &block)?);
    }
    read_back(file, edits, &expected)
}

/// Returns the name of a new volume for one of the places of a tool.
pub fn volume_name(row: &Row, place: &str, count: usize) -> String {
    let leaf = place.rsplit('/').next().unwrap_or_default();
    let leaf = leaf.trim_start_matches('.').trim_start_matches(row.tool).trim_start_matches('-');
    if count == 1 || leaf.is_empty() { format!("{}-cache", row.tool) } else { format!("{}-{leaf}", row.tool) }
}
