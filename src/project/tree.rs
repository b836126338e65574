//! YAML, JSON with comments and HCL as one tree that knows its lines. Aliases are shared, merge keys are resolved, and no
//! file can make the tree much larger than itself.

use std::collections::HashMap;
use std::sync::Arc;

use hcl_edit::expr::{Expression, ObjectKey};
use hcl_edit::structure::{Body, Structure};
use hcl_edit::{Span, parser};
use jsonc_parser::ast;
use saphyr_parser::{Event, Parser};

/// Entries that merge keys may add to one file; real files add some hundred.
const MOST_MERGED: usize = 100_000;
/// Collections within collections. Compose files have about six.
const DEEPEST: usize = 200;

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where it begins, counted from 1; of an alias, where the anchor is.
    pub line: u32,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    /// Also numbers and booleans, as written.
    Text(String),
    List(Vec<Arc<Node>>),
    Map(Vec<Entry>),
}

/// A key of a map and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    /// Of the key.
    pub line: u32,
    pub node: Arc<Node>,
}

/// Why a file could not be read, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub line: u32,
    pub why: String,
}

impl Node {
    /// Returns the text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the entries of a map; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Returns the elements of a list, or the one value that stands in its place.
    pub fn elements(&self) -> Vec<&Node> {
        match &self.value {
            Value::List(nodes) => nodes.iter().map(Arc::as_ref).collect(),
            Value::Null => Vec::new(),
            _ => vec![self],
        }
    }

    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| entry.node.as_ref())
    }

    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key)?.text()
    }

    /// Returns what stands at the end of a path of keys.
    pub fn at(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Returns the tree with another value at the end of a path of keys, made of the one that is there; without one, the
    /// last key goes.
    pub fn with(&self, path: &[&str], change: impl FnOnce(Option<&Node>) -> Option<Node>) -> Node {
        let Some((key, rest)) = path.split_first() else { return self.clone() };
        let mut entries = self.entries().to_vec();
        let at = entries.iter().position(|entry| entry.key == *key);
        let old = at.map(|at| entries[at].node.clone());
        let new = if rest.is_empty() {
            change(old.as_deref())
        } else {
            Some(old.as_deref().unwrap_or(&Node { line: self.line, value: Value::Null }).with(rest, change))
        };
        match (at, new) {
            (Some(at), Some(node)) => entries[at].node = Arc::new(node),
            (Some(at), None) => drop(entries.remove(at)),
            (None, Some(node)) => entries.push(Entry { key: (*key).to_owned(), line: self.line, node: Arc::new(node) }),
            (None, None) => {}
        }
        Node { line: self.line, value: Value::Map(entries) }
    }

    /// Tells whether two trees say the same, in whatever lines and order of keys. Trees that share so much that nobody
    /// could look at all of it do not.
    pub fn says_same(&self, other: &Node) -> bool {
        fn same(one: &Node, other: &Node, left: &mut usize) -> bool {
            *left = left.saturating_sub(1);
            *left > 0
                && match (&one.value, &other.value) {
                    (Value::List(ones), Value::List(others)) => {
                        ones.len() == others.len() && ones.iter().zip(others).all(|(one, other)| same(one, other, left))
                    }
                    (Value::Map(ones), Value::Map(others)) => {
                        let there: HashMap<&str, &Entry> =
                            others.iter().map(|entry| (entry.key.as_str(), entry)).collect();
                        let is_there = |entry: &Entry| {
                            there.get(entry.key.as_str()).is_some_and(|other| same(&entry.node, &other.node, left))
                        };
                        ones.len() == others.len() && ones.iter().all(is_there)
                    }
                    (one, other) => one == other,
                }
        }
        same(self, other, &mut 1_000_000)
    }
}

/// A collection that is not closed yet.
struct Open {
    line: u32,
    anchor: usize,
    /// Of a map, keys and values in turn.
    nodes: Vec<Arc<Node>>,
    is_map: bool,
    /// Of the highest of the nodes.
    height: usize,
}

/// Reads the first document of a YAML file.
///
/// # Errors
/// Says what is wrong in which line.
pub fn yaml(text: &str) -> Result<Node, Problem> {
    let empty = Node { line: 1, value: Value::Null };
    Ok(documents(text)?.into_iter().next().unwrap_or(empty))
}

/// Reads all documents of a YAML file.
///
/// # Errors
/// Says what is wrong in which line.
pub fn documents(text: &str) -> Result<Vec<Node>, Problem> {
    let mut documents = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut anchors: HashMap<usize, (Arc<Node>, usize)> = HashMap::new();
    let mut merged = 0;
    for event in Parser::new_from_str(text.trim_start_matches('\u{feff}')) {
        let (event, span) = event.map_err(|error| Problem {
            line: error.marker().line() as u32,
            why: format!("the YAML cannot be read: {}", error.info()),
        })?;
        let line = span.start.line() as u32;
        let (node, anchor, height) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let is_null = style == saphyr_parser::ScalarStyle::Plain && matches!(&*text, "" | "~" | "null");
                let value = if is_null { Value::Null } else { Value::Text(text.into_owned()) };
                (Arc::new(Node { line, value }), anchor, 0)
            }
            Event::Alias(id) => {
                let node = anchors.get(&id).cloned();
                let why = "the YAML cannot be read: an anchor contains itself";
                let (node, height) = node.ok_or_else(|| Problem { line, why: why.into() })?;
                (node, 0, height)
            }
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                if open.len() == DEEPEST {
                    return Err(too_deep(line));
                }
                let is_map = matches!(event, Event::MappingStart(..));
                open.push(Open { line, anchor, nodes: Vec::new(), is_map, height: 0 });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(done) = open.pop() else { continue };
                let value = if done.is_map { map(&done.nodes, &mut merged)? } else { Value::List(done.nodes) };
                (Arc::new(Node { line: done.line, value }), done.anchor, done.height + 1)
            }
            Event::DocumentEnd => {
                anchors.clear();
                continue;
            }
            _ => continue,
        };
        // Aliases can nest what is not nested in the file, and dropping that would need as much stack.
        if height > DEEPEST {
            return Err(too_deep(line));
        }
        if anchor != 0 {
            anchors.insert(anchor, (node.clone(), height));
        }
        match open.last_mut() {
            Some(parent) => {
                parent.height = parent.height.max(height);
                parent.nodes.push(node);
            }
            None => documents.push(Arc::unwrap_or_clone(node)),
        }
    }
    Ok(documents)
}

fn too_deep(line: u32) -> Problem {
    Problem { line, why: format!("the YAML is nested more than {DEEPEST} deep") }
}

/// Makes a map of keys and values in turn. Of a key that is there twice the last one counts; what `<<` brings stands
/// back behind the map's own.
fn map(nodes: &[Arc<Node>], merged: &mut usize) -> Result<Value, Problem> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut at: HashMap<String, usize> = HashMap::new();
    let mut merges = Vec::new();
    for pair in nodes.chunks_exact(2) {
        let (key, node) = (&pair[0], &pair[1]);
        let Some(name) = key.text() else { continue };
        if name == "<<" {
            merges.push(node);
            continue;
        }
        let entry = Entry { key: name.to_owned(), line: key.line, node: node.clone() };
        match at.get(name) {
            Some(known) => entries[*known] = entry,
            None => {
                at.insert(name.to_owned(), entries.len());
                entries.push(entry);
            }
        }
    }
    for source in merges.into_iter().flat_map(|node| node.elements()) {
        *merged += source.entries().len();
        if *merged > MOST_MERGED {
            let why = format!("the YAML merges more than {MOST_MERGED} entries and was not read");
            return Err(Problem { line: source.line, why });
        }
        for entry in source.entries() {
            if !at.contains_key(&entry.key) {
                at.insert(entry.key.clone(), entries.len());
                entries.push(entry.clone());
            }
        }
    }
    Ok(Value::Map(entries))
}

/// Reads JSON with comments and end commas.
///
/// # Errors
/// Says what is wrong in which line.
pub fn jsonc(text: &str) -> Result<Node, Problem> {
    let text = text.trim_start_matches('\u{feff}');
    let options = jsonc_parser::ParseOptions::default();
    let read =
        jsonc_parser::parse_to_ast(text, &jsonc_parser::CollectOptions::default(), &options).map_err(|error| {
            let why = format!("the JSON cannot be read: {}", error.kind());
            Problem { line: error.line_display() as u32, why }
        })?;
    let line = lines(text);
    let null = Node { line: 1, value: Value::Null };
    Ok(read.value.map_or(null, |value| of_json(&value, &line)))
}

/// Its depth is limited by the parser, to 512.
fn of_json(value: &ast::Value<'_>, line: &impl Fn(usize) -> u32) -> Node {
    use jsonc_parser::common::Ranged;
    let made = match value {
        ast::Value::StringLit(text) => Value::Text(text.value.to_string()),
        ast::Value::NumberLit(number) => Value::Text(number.value.to_owned()),
        ast::Value::BooleanLit(boolean) => Value::Text(boolean.value.to_string()),
        ast::Value::NullKeyword(_) => Value::Null,
        ast::Value::Array(array) => {
            Value::List(array.elements.iter().map(|value| Arc::new(of_json(value, line))).collect())
        }
        ast::Value::Object(object) => {
            let entry = |property: &ast::ObjectProp<'_>| Entry {
                key: property.name.as_str().to_owned(),
                line: line(property.range.start),
                node: Arc::new(of_json(&property.value, line)),
            };
            Value::Map(object.properties.iter().map(entry).collect())
        }
    };
    Node { line: line(value.start()), value: made }
}

/// Returns what tells the line, counted from 1, of a place in a text.
fn lines(text: &str) -> impl Fn(usize) -> u32 + use<> {
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    move |at| ends.partition_point(|end| *end < at) as u32 + 1
}

/// Reads HCL as bake takes it: `target "x" {…}` is the same tree as `{"target": {"x": {…}}}` in JSON, but blocks of one
/// name are entries of their own. What is to be computed stays as it is written.
///
/// # Errors
/// Says what is wrong in which line.
pub fn hcl(text: &str) -> Result<Node, Problem> {
    let text = text.trim_start_matches('\u{feff}');
    let body = parser::parse_body(text).map_err(|error| Problem {
        line: error.location().line() as u32,
        why: format!("the HCL cannot be read: {}", error.message()),
    })?;
    let line = lines(text);
    Ok(Node { line: 1, value: Value::Map(of_body(&body, text, &line)) })
}

/// Its depth is limited by the parser, to 64.
fn of_body(body: &Body, text: &str, line: &impl Fn(usize) -> u32) -> Vec<Entry> {
    let at = |what: &dyn Span| line(what.span().unwrap_or_default().start);
    let entry = |structure: &Structure| match structure {
        Structure::Attribute(attribute) => {
            let node = Arc::new(of_hcl(&attribute.value, text, line));
            Entry { key: attribute.key.as_str().to_owned(), line: at(&attribute.key), node }
        }
        Structure::Block(block) => {
            let begin = at(&block.ident);
            let nested = |value, key: &str| {
                let node = Arc::new(Node { line: begin, value });
                Value::Map(vec![Entry { key: key.to_owned(), line: begin, node }])
            };
            let body = Value::Map(of_body(&block.body, text, line));
            let value = block.labels.iter().rev().fold(body, |value, label| nested(value, label.as_str()));
            Entry { key: block.ident.as_str().to_owned(), line: begin, node: Arc::new(Node { line: begin, value }) }
        }
    };
    body.iter().map(entry).collect()
}

fn of_hcl(expression: &Expression, text: &str, line: &impl Fn(usize) -> u32) -> Node {
    let written = |what: &dyn Span| text.get(what.span().unwrap_or_default()).unwrap_or_default().to_owned();
    let value = match expression {
        Expression::Null(_) => Value::Null,
        Expression::String(text) => Value::Text(text.to_string()),
        Expression::StringTemplate(_) => Value::Text(written(expression).trim_matches('"').to_owned()),
        Expression::Array(array) => {
            Value::List(array.iter().map(|value| Arc::new(of_hcl(value, text, line))).collect())
        }
        Expression::Object(object) => {
            let entry = |(key, value): (&ObjectKey, &hcl_edit::expr::ObjectValue)| {
                let begin = line(key.span().unwrap_or_default().start);
                let key = written(key).trim_matches('"').to_owned();
                Entry { key, line: begin, node: Arc::new(of_hcl(value.expr(), text, line)) }
            };
            Value::Map(object.iter().map(entry).collect())
        }
        _ => Value::Text(written(expression)),
    };
    Node { line: line(expression.span().unwrap_or_default().start), value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn anchors_and_merge_keys_keep_the_lines_where_they_are_written() {
        let text = "\u{feff}x-a: &a\r\n  image: one\r\n  user: dev\r\nx-b: &b {tty: true}\r\nservices:\r\n  web:\r\n    <<: [*a, *b]\r\n    image: two\r\n  same: *a\r\n";
        let root = yaml(text).unwrap();
        let web = root.get("services").unwrap().get("web").unwrap();
        let shown: Vec<_> =
            web.entries().iter().map(|e| (e.key.as_str(), e.line, e.node.text().unwrap_or_default())).collect();
        assert_eq!(shown, [("image", 8, "two"), ("user", 3, "dev"), ("tty", 4, "true")]);
        assert_eq!(root.get("services").unwrap().get("same"), root.get("x-a"));
    }

    #[test]
    fn json_may_have_comments_and_end_commas() {
        let root =
            jsonc("\u{feff}// a\n{\n  \"a\": [1, true, null, \"\\u00e9\",],\n  /* b\n */ \"c\": {\"d\": \"x\"},\n}\n")
                .unwrap();
        let list: Vec<_> =
            root.get("a").unwrap().elements().iter().map(|node| node.text().map(str::to_owned)).collect();
        assert_eq!(list, [Some("1".into()), Some("true".into()), None, Some("é".into())]);
        assert_eq!((root.entry("c").unwrap().line, root.get("c").unwrap().text_of("d")), (5, Some("x")));
    }

    #[test]
    fn hcl_is_the_same_tree_as_json() {
        let text = "\u{feff}# a\ntarget \"x\" {\n  no-cache = true // b\n  args = { A = \"1\", \"B\" = \"${C}\" }\n  cache-to = [\n    \"type=inline\", join(\",\", D)\n  ]\n}\n";
        let root = hcl(text).unwrap();
        let json = r#"{"target": {"x": {"no-cache": true, "args": {"A": "1", "B": "${C}"}, "cache-to": ["type=inline", "join(\",\", D)"]}}}"#;
        assert!(root.says_same(&jsonc(json).unwrap()), "{root:#?}");
        let target = root.at(&["target", "x"]).unwrap();
        assert_eq!(target.entries().iter().map(|entry| entry.line).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(target.get("cache-to").unwrap().elements()[0].line, 6);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        assert_eq!(yaml("a: 1\nb: [1\nc: 2\n").unwrap_err().line, 3);
        assert_eq!(yaml("a: *nobody").unwrap_err().line, 1);
        assert_eq!(yaml("a: &a [*a]").unwrap_err().line, 1);
        assert_eq!(jsonc("{\n\"a\": 1,\n\"b\" }").unwrap_err().line, 3);
        assert_eq!(hcl("a = 1\nb = \n").unwrap_err().line, 2);
        for empty in ["", "\n", "# nothing\n", "---\n"] {
            assert_eq!(yaml(empty).unwrap().value, Value::Null, "{empty:?}");
        }
    }

    #[test]
    fn bombs_do_not_go_off() {
        let mut aliases = String::from("a0: &a0 [x, x, x]\n");
        let keys: String = (0..1000).map(|at| format!("x{at}: 1, ")).collect();
        let mut merges = format!("m0: &m0 {{{keys}}}\n");
        for at in 1..150 {
            let below = at - 1;
            aliases.push_str(&format!("a{at}: &a{at} [*a{below}, *a{below}, *a{below}]\n"));
            merges.push_str(&format!("m{at}: &m{at}\n  <<: [*m{below}, *m{below}]\n  k{at}: 1\n"));
        }
        assert!(yaml(&aliases).is_ok());
        assert!(yaml(&merges).unwrap_err().why.contains("merges more than"));
        let chain: String = (1..30_000).map(|at| format!("a{at}: &a{at} [*a{}]\n", at - 1)).collect();
        assert!(yaml(&format!("a0: &a0 x\n{chain}")).unwrap_err().why.contains("nested"));
        for deep in ["[".repeat(1 << 20), "{a: ".repeat(100_000), "- ".repeat(1 << 19), "? ".repeat(1 << 19)] {
            assert!(yaml(&deep).is_err());
            assert!(jsonc(&deep).is_err());
            assert!(hcl(&format!("a = {deep}")).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a<&*:{}\\[\\], \"'#?!|>/\n\t\u{feff}é]{0,60}") {
            let _ = (yaml(&text), jsonc(&text), hcl(&text));
        }
    }
}
