//! Which paths of a tree are taken: the deepest rule at or above a path decides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Says of a path, and of all below it that no deeper rule is about, whether it is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Below the root, `""` for all of it; a component `*` stands for any name.
    pub path: String,
    pub take: bool,
}

/// Rules as a tree of names.
#[derive(Debug, Default)]
pub struct Rules {
    children: BTreeMap<Vec<u8>, Rules>,
    any: Option<Box<Rules>>,
    rule: Option<usize>,
    /// True if something below is taken.
    takes_below: bool,
}

/// Where a walk is in the rules.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    node: Option<&'a Rules>,
    /// Index of the rule that decides here.
    pub rule: Option<usize>,
}

impl Rules {
    pub fn new(rules: &[Rule]) -> Rules {
        Rules::of(rules.iter().map(|rule| (rule.path.as_str(), rule.take)))
    }

    /// Returns the rules that take these paths.
    pub fn of_paths(paths: &[String]) -> Rules {
        Rules::of(paths.iter().map(|path| (path.as_str(), true)))
    }

    fn of<'a>(rules: impl Iterator<Item = (&'a str, bool)>) -> Rules {
        let mut root = Rules::default();
        for (index, (path, take)) in rules.enumerate() {
            let mut node = &mut root;
            for name in path.split('/').filter(|name| !name.is_empty()) {
                node.takes_below |= take;
                node = match name {
                    "*" => node.any.get_or_insert_default(),
                    _ => node.children.entry(name.as_bytes().to_vec()).or_default(),
                };
            }
            node.rule.get_or_insert(index);
        }
        root
    }

    /// Returns the place of the root.
    pub fn root(&self) -> At<'_> {
        At { node: Some(self), rule: self.rule }
    }

    /// Returns the place of a path.
    pub fn at(&self, path: &[u8]) -> At<'_> {
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).fold(self.root(), At::child)
    }
}

impl<'a> At<'a> {
    /// Returns the place of what is called `name` in this directory.
    pub fn child(self, name: &[u8]) -> At<'a> {
        let node = self.node.and_then(|node| node.children.get(name).or(node.any.as_deref()));
        At { node, rule: node.and_then(|node| node.rule).or(self.rule) }
    }

    /// Returns true if a rule is about exactly this path.
    pub fn is_named(self) -> bool {
        self.node.is_some_and(|node| node.rule.is_some())
    }

    /// Returns true if a rule is about this path or one below.
    pub fn leads_on(self) -> bool {
        self.node.is_some()
    }

    /// Returns true if something below may be taken, though this is not.
    pub fn takes_below(self) -> bool {
        self.node.is_some_and(|node| node.takes_below)
    }

    /// Returns true if no deeper rule is about anything below.
    pub fn is_whole(self) -> bool {
        self.node.is_none_or(|node| node.children.is_empty() && node.any.is_none())
    }
}
