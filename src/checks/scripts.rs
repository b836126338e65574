//! Doctor's rules for what starts builds: scripts, CI workflows, Makefiles, settings and bake files. Pure; a file with
//! errors is read as far as it goes.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::steps::calls;
use super::{Finding, Severity};
use crate::dockerfile::Text;
use crate::dockerfile::shell::{self, Command, Link, Word, assignment};
use crate::project::tree::{self, Node};
use crate::project::{File, Kind, recipes};

/// Words in the name of a script or target that rebuilds on purpose.
const ON_PURPOSE: &[&str] =
    &["clean", "rebuild", "fresh", "force", "scratch", "no-cache", "nocache", "no_cache", "purge", "reset"];

/// Keys of workflows whose values a shell reads.
const SHELL_KEYS: &[&str] = &[
    "run",
    "script",
    "before_script",
    "after_script",
    "command",
    "commands",
    "bash",
    "sh",
    "cmd",
    "cmds",
    "install",
    "before_install",
    "after_success",
];

pub const NO_CACHE: &str = "`--no-cache` runs every step again and empties every cache mount that the build uses, so all packages are downloaded again";

const PULL: &str =
    "`--pull` asks the registry for the base image on every build, and a newer one makes all steps run again";

const WITHOUT_BUILDKIT: &str = "`DOCKER_BUILDKIT=0` builds with the legacy builder, which refuses cache mounts and has layers of its own: take it out";

/// Findings after which the rest of a file is not looked at.
const MOST: usize = 200;

/// Something that a shell reads.
struct Script {
    text: String,
    /// Of its first line.
    line: u32,
    /// Its lines are those of the file.
    by_line: bool,
    /// What the author calls it: a target, a job, a step.
    name: String,
}

/// Returns what is found in one file. The legacy builder is the only one for Windows and for `--isolation`.
pub fn check(file: &File, for_windows: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    let text = file.text.trim_start_matches('\u{feff}');
    let scripts = match file.kind {
        Kind::Script => {
            vec![Script { text: text.to_owned(), line: 1, by_line: true, name: file_name(file).to_lowercase() }]
        }
        Kind::Makefile => {
            let recipes = recipes::read(file_name(file), text).into_iter();
            recipes
                .map(|recipe| Script { text: recipe.text, line: recipe.line, by_line: false, name: recipe.target })
                .collect()
        }
        Kind::Ci if file_name(file).eq_ignore_ascii_case("jenkinsfile") => of_jenkins(text),
        Kind::Ci | Kind::PackageJson | Kind::Bake => of_tree(file, &mut found),
        _ => Vec::new(),
    };
    for script in &scripts {
        of_script(file, script, &mut found);
    }
    // A bake file has told all as a tree.
    let lines = if file.kind == Kind::Bake { Vec::new() } else { recipes::joined(text, "") };
    for (line, number) in lines {
        let content = line.trim();
        if !content.starts_with('#') && !content.starts_with("//") {
            found.extend(setting(file, content, number));
            found.extend(export(file, content, number));
        }
        // Nobody reads more, and each export looks at the whole file.
        if found.len() > MOST {
            break;
        }
    }
    let text = text.to_lowercase();
    if for_windows || text.contains("windows") || text.contains("--isolation") {
        found.retain(|finding| finding.message != WITHOUT_BUILDKIT);
    }
    found.sort_by_key(|finding| finding.line);
    found.dedup();
    found
}

fn file_name(file: &File) -> &str {
    file.path.rsplit('/').next().unwrap_or_default()
}

fn at(file: &File, check: &'static str, severity: Severity, line: u32, message: &str) -> Finding {
    Finding { check, file: Some(file.path.clone()), line: Some(line), ..Finding::new(severity, message) }
}

/// Returns the scripts of a Jenkinsfile: each line, what `sh` is given among them.
fn of_jenkins(text: &str) -> Vec<Script> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    lines
        .map(|(number, line)| {
            let line = line.trim();
            let script = line.strip_prefix("sh").map_or(line, str::trim_start).trim_matches(['"', '\'', '(', ')']);
            Script { text: script.to_owned(), line: number as u32 + 1, by_line: true, name: String::new() }
        })
        .collect()
}

/// Returns the scripts of a file in YAML, JSON or HCL, and tells what else its keys say.
fn of_tree(file: &File, found: &mut Vec<Finding>) -> Vec<Script> {
    let read = match file.kind {
        Kind::Ci => tree::documents(&file.text),
        Kind::Bake if !file.path.ends_with(".json") => tree::hcl(&file.text).map(|root| vec![root]),
        _ => tree::jsonc(&file.text).map(|root| vec![root]),
    };
    let documents = match read {
        Ok(documents) => documents,
        Err(problem) => {
            found.push(at(file, "file-unreadable", Severity::Warning, problem.line, &problem.why));
            return Vec::new();
        }
    };
    let mut walk = Walk { file, found, scripts: Vec::new(), seen: HashSet::new(), lines: file.text.lines().collect() };
    for root in &documents {
        match file.kind {
            Kind::PackageJson => {
                for script in root.get("scripts").map(Node::entries).unwrap_or_default() {
                    walk.take(&script.node, script.line, &script.key.to_lowercase(), &[]);
                }
            }
            Kind::Ci if is_started_on_purpose(root) => {}
            Kind::Ci => walk.visit(root, "", &[]),
            Kind::Bake => {
                let targets = root.entries().iter().filter(|entry| entry.key == "target");
                let targets = targets.flat_map(|target| target.node.entries());
                targets.take(MOST).for_each(|target| walk.target(&target.node));
            }
            _ => {}
        }
    }
    walk.scripts
}

/// Tells whether a workflow runs only now and then, or when somebody starts it.
fn is_started_on_purpose(workflow: &Node) -> bool {
    let Some(on) = workflow.get("on") else { return false };
    let mut events: Vec<&str> = on.entries().iter().map(|event| event.key.as_str()).collect();
    if events.is_empty() {
        events = on.elements().into_iter().filter_map(Node::text).collect();
    }
    !events.is_empty() && events.iter().all(|event| matches!(*event, "schedule" | "workflow_dispatch"))
}

/// A walk through a workflow.
struct Walk<'a> {
    file: &'a File,
    found: &'a mut Vec<Finding>,
    scripts: Vec<Script>,
    /// What aliases share is looked at once.
    seen: HashSet<*const Node>,
    lines: Vec<&'a str>,
}

impl Walk<'_> {
    fn visit(&mut self, node: &Node, name: &str, vars: &[(String, String)]) {
        if !self.seen.insert(node) {
            return;
        }
        if let tree::Value::List(nodes) = &node.value {
            nodes.iter().for_each(|node| self.visit(node, name, vars));
            return;
        }
        let asks =
            |condition: &str| ["inputs.", "schedule", "workflow_dispatch"].iter().any(|word| condition.contains(word));
        if node.text_of("if").is_some_and(asks) {
            return;
        }
        let own: String =
            node.text_of("name").unwrap_or_default().chars().take(1000).collect::<String>().to_lowercase();
        let own_vars = node.get("vars").map(Node::entries).unwrap_or_default();
        let own_vars = own_vars.iter().filter_map(|var| Some((var.key.clone(), var.node.text()?.to_owned())));
        // Those of a task stand before those of the file.
        let own_vars: Vec<(String, String)> = own_vars.filter(|(_, value)| value.len() < 1000).collect();
        let joined: Vec<(String, String)>;
        let vars = match own_vars.is_empty() {
            true => vars,
            false => {
                joined = own_vars.into_iter().chain(vars.iter().cloned()).take(100).collect();
                &joined
            }
        };
        self.action(node);
        for entry in node.entries() {
            if entry.key == "DOCKER_BUILDKIT" && entry.node.text().is_some_and(is_off) {
                self.found.push(without_buildkit(self.file, entry.line));
            }
            let name = format!("{name} {own}");
            if SHELL_KEYS.contains(&entry.key.as_str()) {
                self.take(&entry.node, entry.line, &name, vars);
            }
            // Long chains of keys would make long names.
            let name: String = format!("{name} {}", entry.key.to_lowercase()).chars().take(1000).collect();
            self.visit(&entry.node, &name, vars);
        }
    }

    /// Takes the texts of a value, or of a list, as scripts.
    fn take(&mut self, node: &Node, line: u32, name: &str, vars: &[(String, String)]) {
        for node in node.elements() {
            let Some(text) = node.text() else { continue };
            // A literal block begins on the line below its `|`, and its lines are those of the file.
            let above = self.lines.get((node.line as usize).wrapping_sub(2)).copied().unwrap_or_default();
            let by_line = above.trim_end().trim_end_matches(['-', '+']).ends_with('|');
            let line = if self.file.kind == Kind::PackageJson { line } else { node.line };
            let text = if vars.is_empty() { text.to_owned() } else { recipes::fill_in(text, vars) };
            self.scripts.push(Script { text, line, by_line, name: name.to_owned() });
        }
    }

    /// Tells what the inputs of docker's own actions say.
    fn action(&mut self, node: &Node) {
        let actions = ["docker/build-push-action", "docker/bake-action"];
        let uses = node.text_of("uses").unwrap_or_default();
        let Some(with) = node.get("with").filter(|_| actions.iter().any(|action| uses.starts_with(action))) else {
            return;
        };
        self.switches(with, ": ");
        // `cache-to` may have a line for each place.
        if let Some(entry) = with.entry("cache-to") {
            let lines = entry.node.text().unwrap_or_default().lines();
            self.found.extend(lines.filter_map(|line| export(self.file, &format!("cache-to: {line}"), entry.line)));
        }
    }

    /// Tells what a target of a bake file says.
    fn target(&mut self, target: &Node) {
        self.switches(target, if self.file.path.ends_with(".json") { ": " } else { " = " });
        if let Some(entry) = target.entry("cache-to") {
            for place in entry.node.elements().into_iter().take(MOST) {
                // As words or as an object.
                let fields = place.entries().iter();
                let fields = fields.map(|field| format!("{}={}", field.key, field.node.text().unwrap_or_default()));
                let words = place.text().map_or_else(|| fields.collect::<Vec<_>>().join(","), str::to_owned);
                self.found.extend(export(self.file, &format!("cache-to: {words}"), entry.line));
            }
        }
    }

    /// Tells which of docker's flags are set as keys.
    fn switches(&mut self, node: &Node, is: &str) {
        for (key, severity, message) in [("no-cache", Severity::Warning, NO_CACHE), ("pull", Severity::Note, PULL)] {
            if let Some(entry) = node.entry(key).filter(|entry| entry.node.text() == Some("true")) {
                let message = message.replacen(&format!("--{key}"), &format!("{key}{is}true"), 1);
                self.found.push(at(self.file, "no-cache-flag", severity, entry.line, &message));
            }
        }
    }
}

/// Tells what the commands of a script say.
fn of_script(file: &File, script: &Script, found: &mut Vec<Finding>) {
    let ends: Vec<usize> = script.text.match_indices('\n').map(|(at, _)| at).collect();
    let line = |command: &Command| match script.by_line {
        true => script.line + ends.partition_point(|end| *end < command.span.start) as u32,
        false => script.line,
    };
    let functions = if file.kind == Kind::Script { functions(&script.text) } else { BTreeMap::new() };
    let commands = commands(&script.text);
    let variables = variables(&commands);
    let chosen: Vec<bool> = (0..commands.len()).map(|at| is_chosen(&commands, at)).collect();
    let mut by_choice: HashMap<String, bool> = HashMap::new();
    for (command, chosen) in commands.iter().zip(&chosen).filter(|(command, _)| !command.words.is_empty()) {
        // Not where the function itself is written.
        if !script.text.get(command.span.end..).is_some_and(|rest| rest.starts_with("()")) {
            *by_choice.entry(command.program().to_lowercase()).or_insert(true) &= *chosen;
        }
    }
    for (mut command, chosen) in commands.into_iter().zip(&chosen) {
        fill_in(&mut command, &variables);
        let number = line(&command);
        let function = functions.range(..=number).next_back().map_or("", |(_, name)| name);
        let on_purpose = |word: &&str| script.name.contains(word) || function.contains(word);
        if *chosen || by_choice.get(function) == Some(&true) || ON_PURPOSE.iter().any(on_purpose) {
            continue;
        }
        let is_setting = |(name, value): (&str, &str)| name == "DOCKER_BUILDKIT" && is_off(value);
        let exported = command.program() == "export" && command.args().filter_map(assignment).any(is_setting);
        let set = command.env.iter().any(|(name, value)| is_setting((name, value)));
        if exported || (set && builds(&command)) {
            found.push(without_buildkit(file, number));
        }
        if builds(&command) {
            flags(file, &command, number, found);
        }
    }
}

/// Tells whether a command runs only if a variable or an option says so.
fn is_chosen(commands: &[Command], at: usize) -> bool {
    let is_test = |command: &Command| {
        matches!(command.program(), "[" | "[[" | "test") && command.args().any(|arg| arg.contains('$'))
    };
    // Of long chains nobody reads more.
    let linked =
        (0..=at).rev().take_while(|at| *at == 0 || matches!(commands[*at].before, Link::And | Link::Or)).take(20);
    commands[at].chosen || linked.filter_map(|at| commands.get(at.checked_sub(1)?)).any(is_test)
}

/// Returns the functions of a script by the lines in which they begin; after the end of one stands `""`.
fn functions(text: &str) -> BTreeMap<u32, String> {
    let mut functions = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let number = number as u32 + 1;
        let header =
            line.split_once("()").map(|(name, _)| name).or_else(|| line.strip_prefix("function ")?.split(' ').next());
        if let Some(name) = header.map(|name| name.trim_start_matches("function ").trim()).filter(|name| is_word(name))
        {
            functions.insert(number, name.to_lowercase());
        } else if line.starts_with('}') {
            functions.insert(number + 1, String::new());
        }
    }
    functions
}

fn is_word(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':' | '.'))
}

/// Returns the commands of a script, those of its aliases among them.
fn commands(script: &str) -> Vec<Command> {
    let mut all = Vec::new();
    for command in shell::commands(&Text::of(script)) {
        if command.program() == "alias" {
            for (name, value) in command.args().filter_map(|arg| arg.split_once('=')) {
                if is_word(name) && !ON_PURPOSE.iter().any(|word| name.to_lowercase().contains(word)) {
                    let inner = shell::commands(&Text::of(value)).into_iter();
                    all.extend(inner.map(|inner| Command { span: command.span.clone(), ..inner }));
                }
            }
        }
        all.push(command);
    }
    all
}

/// Returns the variables that a script sets once, to a few plain words, and not in a branch or a loop.
fn variables(commands: &[Command]) -> HashMap<String, Vec<String>> {
    let mut values: HashMap<String, Option<&str>> = HashMap::new();
    for command in commands {
        // `export`, `local`, `read` and their like name it among their arguments, whatever they do.
        let named = command.args().map(|arg| (arg.split('=').next().unwrap_or_default(), None));
        let set = command.env.iter().filter(|_| command.words.is_empty());
        let set = set.map(|(name, value)| (name.as_str(), Some(value.as_str()).filter(|_| !command.nested)));
        for (name, value) in named.chain(set) {
            values.entry(name.trim_end_matches('+').to_owned()).and_modify(|known| *known = None).or_insert(value);
        }
    }
    let plain = values.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| value.len() < 200 && !value.contains(['$', '`']))?;
        Some((name, value.split_whitespace().map(str::to_owned).collect()))
    });
    plain.collect()
}

/// Puts the words of variables in the place of `$NAME` and `${NAME}`.
fn fill_in(command: &mut Command, variables: &HashMap<String, Vec<String>>) {
    let filled = command.words.drain(..).flat_map(|word| {
        let name = word.text.strip_prefix('$').map(|name| name.trim_start_matches('{').trim_end_matches('}'));
        match name.and_then(|name| variables.get(name)) {
            Some(words) => words.iter().map(|text| Word { text: text.clone(), span: word.span.clone() }).collect(),
            None => vec![word],
        }
    });
    command.words = filled.collect();
}

/// Tells whether a command builds: `docker build`, `docker buildx build`, `docker compose build` and their like.
fn builds(command: &Command) -> bool {
    let calls_that_build = [
        "docker build",
        "docker bake",
        "docker image build",
        "docker builder build",
        "docker buildx build",
        "docker buildx bake",
        "docker compose build",
        "docker-compose build",
    ];
    calls_that_build.iter().any(|pattern| calls(command, pattern))
}

fn flags(file: &File, command: &Command, line: u32, found: &mut Vec<Finding>) {
    // `bake --set '*.no-cache=true'`
    let is_no_cache = |arg: &str| matches!(arg, "--no-cache" | "--no-cache=true") || arg.ends_with(".no-cache=true");
    if command.args().any(is_no_cache) {
        found.push(at(file, "no-cache-flag", Severity::Warning, line, NO_CACHE));
    }
    if command.args().any(|arg| matches!(arg, "--pull" | "--pull=true")) {
        found.push(at(file, "no-cache-flag", Severity::Note, line, PULL));
    }
}

fn is_off(value: &str) -> bool {
    matches!(value.trim_matches(['"', '\'']), "0" | "false")
}

fn without_buildkit(file: &File, line: u32) -> Finding {
    at(file, "no-cache-flag", Severity::Warning, line, WITHOUT_BUILDKIT)
}

/// Returns what a setting says: of an `.env`, of a Makefile.
fn setting(file: &File, line: &str, number: u32) -> Option<Finding> {
    match file.kind {
        Kind::Env | Kind::Makefile => {
            let line = match (file.kind, line.strip_prefix("export ")) {
                (_, Some(rest)) => rest,
                (Kind::Env, None) => line,
                _ => return None,
            };
            let (name, value) = line.split_once('=')?;
            let value = value.split(" #").next().unwrap_or_default().trim();
            let is_set = name.trim_end_matches([':', '?', ' ']).trim() == "DOCKER_BUILDKIT" && is_off(value);
            is_set.then(|| without_buildkit(file, number))
        }
        _ => None,
    }
}

/// A local cache export keeps all old blobs, unless it is reset or the script replaces the directory.
fn export(file: &File, line: &str, number: u32) -> Option<Finding> {
    let after = ["cache-to", "cache_to"].iter().flat_map(|word| line.split(word).skip(1));
    // One word each: what follows may be about another output.
    let words = after.filter_map(|rest| rest.trim_start_matches(['=', ':', ' ', '"', '\'', '[']).split(' ').next());
    let told = words.filter(|word| word.contains("type=local")).max_by_key(|word| word.len())?;
    if told.contains("reset=true") {
        return None;
    }
    let dest = told.split_once("dest=")?.1;
    let dest = dest.split([',', '"', '\'', ' ', ']', '}']).next().filter(|dest| !dest.is_empty())?;
    let directory = dest.rsplit('/').next().filter(|name| !name.is_empty())?;
    let replaced =
        file.text.lines().any(|line| (line.contains("rm -r") || line.contains("mv ")) && line.contains(directory));
    if replaced || dest.ends_with("-new") {
        return None;
    }
    let message =
        format!("the local cache export in `{dest}` keeps the blobs of all earlier builds and grows with each");
    let found = at(file, "cache-export-grows", Severity::Warning, number, &message);
    Some(Finding { subject: Some(dest.to_owned()), ..found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::Around;

    fn found(kind: Kind, text: &str) -> Vec<(&'static str, u32)> {
        found_in("x", kind, text)
    }

    fn found_in(path: &str, kind: Kind, text: &str) -> Vec<(&'static str, u32)> {
        let file = File { path: path.into(), kind, text: text.into(), around: Around::default() };
        check(&file, false).into_iter().map(|finding| (finding.check, finding.line.unwrap())).collect()
    }

    #[test]
    fn the_flag_is_found_where_it_is_used() {
        let flag = |line| vec![("no-cache-flag", line)];
        assert_eq!(found(Kind::Script, "#!/bin/sh\nset -e\ndocker build \\\n  --no-cache -t x .\n"), flag(3));
        assert_eq!(found(Kind::Script, "\u{feff}docker build --no-cache ."), flag(1));
        assert_eq!(found(Kind::Env, "\u{feff}DOCKER_BUILDKIT=0"), flag(1));
        assert_eq!(found(Kind::Script, "alias db='docker build --no-cache'\n"), flag(1));
        assert_eq!(found(Kind::Script, "cd x && docker --context y buildx build --no-cache=true ."), flag(1));
        assert_eq!(found(Kind::Makefile, "image:\n\t@docker compose build --no-cache\n"), flag(2));
        assert_eq!(found(Kind::PackageJson, "{\"scripts\": {\n\"image\": \"docker build --no-cache .\",\n}}"), flag(2));
        assert_eq!(
            found(Kind::PackageJson, "{\"scripts\": {\n\"image\": \"cd x \\u0026\\u0026 docker build --no-cache .\"}}"),
            flag(2)
        );
        assert_eq!(found(Kind::Ci, "steps:\n- run: docker build --no-cache .\n"), flag(2));
        assert_eq!(found(Kind::Ci, "- uses: docker/build-push-action@v6\n  with:\n    no-cache: true\n"), flag(3));
        let bake = |text| found_in("docker-bake.json", Kind::Bake, text);
        assert_eq!(bake("{\"target\": {\"x\": {\n\"no-cache\": true,\n}}}"), flag(2));
        assert_eq!(bake("{\"target\": {\"x\": {\"no-cache\": true, \"tags\": [\"y\"]}}}"), flag(1));
        assert_eq!(found(Kind::Bake, "target \"x\" {\n  no-cache = true\n}\n"), flag(2));
        assert_eq!(found(Kind::Bake, "target \"x\" {}\ntarget \"y\" {\n  pull = true // always\n}\n"), flag(3));
        assert_eq!(found(Kind::Script, "docker buildx bake --set '*.no-cache=true' app"), flag(1));
        assert_eq!(found(Kind::Script, "docker build --pull ."), flag(1));
        assert_eq!(found(Kind::Script, "if [ -f x ]; then\ndocker build --no-cache .\nfi"), flag(2));
        assert_eq!(
            found(Kind::Script, "if [ $X ]; then y; fi\ncase $X in y) z;; esac\ndocker build --no-cache ."),
            flag(3)
        );
        assert_eq!(found(Kind::Script, "[ $X ] && y; cd z && docker build --no-cache ."), flag(1));
        assert_eq!(
            found(Kind::Ci, "on: [push, schedule]\njobs: {a: {steps: [\n{run: docker build --no-cache .}]}}"),
            flag(3)
        );
        assert_eq!(found(Kind::Script, "FLAGS='--no-cache -q'\nDOCKER=docker\n$DOCKER build ${FLAGS} ."), flag(3));
    }

    #[test]
    fn the_flag_on_purpose_and_in_words_is_left_alone() {
        for (kind, text) in [
            (Kind::Script, "# docker build --no-cache ."),
            (Kind::Script, "echo \"use docker build --no-cache\""),
            (Kind::Script, "docker build ${NO_CACHE:+--no-cache} ."),
            (
                Kind::Bake,
                "variable \"x\" {\n  default = \"no-cache = true\"\n}\ntarget \"x\" {\n  no-cache = FRESH\n}\n",
            ),
            (Kind::Script, "F=\"\"\nif [ -n \"$FRESH\" ]; then F=--no-cache; fi\ndocker build $F ."),
            (Kind::Script, "F=--no-cache\nexport F=\ndocker build $F ."),
            (Kind::Script, "F=--no-cache\nread F\ndocker build $F ."),
            (Kind::Script, "F=${X:---no-cache}\ndocker build $F ."),
            (Kind::Bake, "target \"x\" {\n  /*\n  no-cache = true\n  */\n}\n"),
            (Kind::Script, "docker run x pip install --no-cache"),
            (Kind::Script, "rebuild() {\n  docker build --no-cache .\n}\n"),
            (Kind::Script, "alias docker-rebuild='docker build --no-cache'"),
            (Kind::Makefile, "rebuild:\n\tdocker build --no-cache .\n"),
            (Kind::PackageJson, "{\"scripts\": {\"docker:clean\": \"docker build --no-cache .\"}}"),
            (Kind::PackageJson, "{\"description\": \"docker build --no-cache .\"}"),
            (Kind::Ci, "no-cache: true"),
            (Kind::Ci, "- uses: other/action\n  with: {no-cache: true, pull: true}"),
            (
                Kind::Ci,
                "- uses: docker/build-push-action@v6\n  with:\n    no-cache: false\n    pull: ${{ inputs.pull }}",
            ),
            (Kind::Ci, "- name: Rebuild all weekly\n  run: docker build --no-cache ."),
            (Kind::Ci, "weekly-clean:\n  script: docker build --no-cache ."),
            (Kind::Ci, "description: docker build --no-cache ."),
            (Kind::Ci, "env: {DOCKER_BUILDKIT: 1, BUILDX_NO_DEFAULT_ATTESTATIONS: 1}"),
            (
                Kind::Env,
                "DOCKER_BUILDKIT=1\nBUILDX_NO_DEFAULT_ATTESTATIONS=1\n# DOCKER_BUILDKIT=0\nX_DOCKER_BUILDKIT=0",
            ),
            (Kind::Script, "cat <<EOF\ndocker build --no-cache .\nEOF"),
            (Kind::Script, "DOCKER_BUILDKIT=0 make"),
            (Kind::Makefile, "FLAGS =\nimage:\n\tdocker build $(FLAGS) .\n"),
            (Kind::Makefile, "FLAGS = --no-cache\nimage:\n\t$(OTHER) build $(FLAGS) .\n\techo docker build $(FLAGS)\n"),
            (Kind::Script, "docker build"),
            (Kind::Script, "if [ -n \"$FRESH\" ]; then\n  docker build --no-cache .\nelse\n  docker build .\nfi"),
            (Kind::Script, "case \"$1\" in\n  --all) docker build --no-cache . ;;\n  *) docker build . ;;\nesac"),
            (Kind::Script, "[ -z \"$FRESH\" ] || docker build --no-cache ."),
            (Kind::Script, "[[ $1 == all ]] && cd x && docker build --no-cache ."),
            (Kind::Script, "all() {\n  docker build --no-cache .\n}\nif [ \"$1\" = all ]; then all; fi"),
            (
                Kind::Ci,
                "on: {schedule: [{cron: x}], workflow_dispatch: }\njobs: {a: {steps: [{run: docker build --no-cache .}]}}",
            ),
            (Kind::Ci, "on: [push]\njobs: {a: {steps: [{if: inputs.all, run: docker build --no-cache .}]}}"),
            (Kind::Script, "DOCKER_BUILDKIT=0 docker build --isolation process ."),
            (Kind::Script, "DOCKER_BUILDKIT=0 docker build -f Dockerfile.windows ."),
        ] {
            assert_eq!(found(kind, text), [], "{text}");
        }
    }

    #[test]
    fn the_flag_is_found_wherever_a_shell_reads_it() {
        let flag = |line| vec![("no-cache-flag", line)];
        for (path, kind, text, line) in [
            // Workflows: lists, literal and folded blocks, anchors, hidden jobs, several documents.
            (
                ".gitlab-ci.yml",
                Kind::Ci,
                "a:\n  script:\n    - cd x\n    - |\n      cd y\n      docker build \\\n        --no-cache .\n",
                6,
            ),
            (".gitlab-ci.yml", Kind::Ci, "a:\n  script:\n    - >-\n      docker build\n      --no-cache .\n", 4),
            (
                ".gitlab-ci.yml",
                Kind::Ci,
                ".b: &b\n  before_script: [docker build --no-cache .]\na: *b\nc: {<<: *b}\nd: {extends: .b}\n",
                2,
            ),
            (
                "ci.yml",
                Kind::Ci,
                "jobs:\n  a:\n    steps:\n      - run: \"docker build \\\n          --no-cache .\"\n",
                4,
            ),
            (".drone.yml", Kind::Ci, "kind: x\n---\nsteps:\n- commands:\n  - docker build --no-cache .\n", 5),
            ("config.yml", Kind::Ci, "jobs: {a: {steps: [{run: {name: x, command: docker build --no-cache .}}]}}", 1),
            ("ci.yml", Kind::Ci, "- uses: docker/build-push-action@v6\n  with:\n    pull: true\n", 3),
            ("ci.yml", Kind::Ci, "env:\n  DOCKER_BUILDKIT: 0\n", 2),
            ("Jenkinsfile", Kind::Ci, "steps {\n  sh 'docker build --no-cache .'\n}", 2),
            ("Jenkinsfile", Kind::Ci, "sh \"\"\"\n  docker build --no-cache .\n\"\"\"", 2),
            // Makefiles and their like.
            (
                "Makefile",
                Kind::Makefile,
                "DOCKER ?= docker\nFLAGS := --rm\nFLAGS += $(MORE)\nMORE = --no-cache\nimage: x\n\t@$(DOCKER) build ${FLAGS} .\n",
                6,
            ),
            ("Makefile", Kind::Makefile, "image:\n\tdocker build \\\n\t  --no-cache .\n", 2),
            ("Makefile", Kind::Makefile, "export DOCKER_BUILDKIT ?= 0\n", 1),
            (
                "justfile",
                Kind::Makefile,
                "flags := '--no-cache'\n\n# builds\nimage tag='x':\n    docker build {{flags}} -t {{tag}} .\n",
                5,
            ),
            (
                "Taskfile.yml",
                Kind::Ci,
                "vars: {F: --no-cache}\ntasks:\n  image:\n    cmds:\n      - docker build {{.F}} .\n",
                5,
            ),
            ("Taskfile.yml", Kind::Ci, "tasks:\n  image:\n    cmds:\n      - cmd: docker build --no-cache .\n", 4),
            // Shells.
            (".bashrc", Kind::Script, "alias ll='ls -l' db=\"docker build --no-cache\"\n", 1),
            (
                ".zshrc",
                Kind::Script,
                "clean() {\n  docker system prune\n}\ndb() {\n  docker build --no-cache \"$@\"\n}\n",
                5,
            ),
            ("x.sh", Kind::Script, "function image {\n  docker buildx build \\\n    --no-cache .\n}\n", 2),
            ("x.sh", Kind::Script, "sh -c 'docker build --no-cache .'\n", 1),
            ("x.sh", Kind::Script, "A='it is\nlong' docker build --no-cache .\n", 1),
            ("x.sh", Kind::Script, "export A=1 DOCKER_BUILDKIT=0\n", 1),
            ("x.sh", Kind::Script, "\nDOCKER_BUILDKIT=0 docker build .\n", 2),
            (".env", Kind::Env, "A=1\nDOCKER_BUILDKIT=0 # why\n", 2),
        ] {
            assert_eq!(found_in(path, kind, text), flag(line), "{path}: {text}");
        }
        assert_eq!(found(Kind::Ci, "a:\n\t- b"), [("file-unreadable", 2)]);
        assert_eq!(found(Kind::PackageJson, "{\n\"scripts\""), [("file-unreadable", 2)]);
        assert_eq!(found(Kind::Bake, "target \"x\" {\n  no-cache =\n}\n"), [("file-unreadable", 2)]);
    }

    #[test]
    fn a_local_export_is_told_unless_it_is_reset() {
        let grows = |line| vec![("cache-export-grows", line)];
        assert_eq!(found(Kind::Script, "docker buildx build --cache-to type=local,dest=/tmp/bx,mode=max ."), grows(1));
        assert_eq!(found(Kind::Ci, "with:\n  cache-to: type=local,dest=/tmp/bx"), grows(2));
        let action =
            "uses: docker/build-push-action@v6\nwith:\n  cache-to: |\n    type=inline\n    type=local,dest=/tmp/bx\n";
        assert_eq!(found(Kind::Ci, action), grows(3));
        for (line, text) in [
            (1, "target \"x\" { cache-to = [\"type=local,dest=./cache\"] }"),
            (2, "target \"x\" {\n  cache-to = [\n    \"type=local,dest=./cache\",\n  ]\n}\n"),
            (2, "target \"x\" {\n  cache-to = [{ type = \"local\", dest = \"./cache\" }]\n}\n"),
        ] {
            assert_eq!(found(Kind::Bake, text), grows(line), "{text}");
        }
        let json = "{\"target\": {\"x\": {\n\"cache-to\": [{\"type\": \"local\", \"dest\": \"./cache\"}]}}}";
        assert_eq!(found_in("docker-bake.json", Kind::Bake, json), grows(2));
        let reset = "target \"x\" {\n  cache-to = [{ type = \"local\", dest = \"./cache\", reset = true }]\n}\n";
        assert_eq!(found(Kind::Bake, reset), []);
        for text in [
            "cache-to: type=local,dest=/tmp/bx,reset=true",
            "cache-to: type=local,dest=/tmp/.buildx-cache-new",
            "cache-to: type=local,dest=/tmp/cache\nrun: rm -rf /tmp/cache",
            "cache-to: type=gha,mode=max",
        ] {
            assert_eq!(found(Kind::Ci, text), [], "{text}");
        }
        let both = "docker buildx build --cache-to type=registry,ref=r/x --output type=local,dest=out .";
        assert_eq!(found(Kind::Script, both), []);
        let several = "docker buildx build --cache-to type=inline --cache-to \"type=local,dest=bx\" .";
        assert_eq!(found(Kind::Script, several), grows(1));
    }
}
