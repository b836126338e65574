//! `docker cache hooks`: lets docker show the plugin's hints after builds, in config.json and nowhere else.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use jsonc_parser::cst::{CstInputValue, CstObject, CstObjectProp, CstRootNode};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Context;
use crate::checks::engine::go_bool;
use crate::cli::{Format, Hooks, HooksCommand, Output};
use crate::docker::endpoint;
use crate::rewrite::rewrite;
use crate::{hooks, report};

/// Beside the hooks in `plugins.cache`: what `features.hooks` was before, if that was off.
const BEFORE: &str = "features-hooks-before";

/// What docker reads of config.json, as far as hooks go, without what is empty. It refuses the whole file if one of these
/// is no string.
#[derive(Debug, Default, PartialEq)]
struct Config {
    plugins: BTreeMap<String, BTreeMap<String, String>>,
    features: BTreeMap<String, String>,
}

/// Settings as the file has them; null is as good as nothing.
type Settings = BTreeMap<String, Option<String>>;

fn given(settings: Settings) -> impl Iterator<Item = (String, String)> {
    settings.into_iter().filter_map(|(name, value)| Some((name, value?)))
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Config, D::Error> {
        from.deserialize_map(Config::default())
    }
}

/// Reads as Go's `encoding/json` does: letters of either case name a field of docker's, and a second one of a name is laid
/// over the first, entry by entry.
impl<'de> Visitor<'de> for Config {
    type Value = Config;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> std::result::Result<Config, A::Error> {
        while let Some(name) = fields.next_key::<String>()? {
            match name.to_ascii_lowercase().as_str() {
                "plugins" => match fields.next_value::<Option<BTreeMap<String, Option<Settings>>>>()? {
                    Some(more) => {
                        let own = more.into_iter().map(|(name, own)| (name, given(own.unwrap_or_default()).collect()));
                        self.plugins.extend(own);
                    }
                    None => self.plugins.clear(),
                },
                "features" => match fields.next_value::<Option<Settings>>()? {
                    Some(more) => {
                        self.features.retain(|name, _| !more.contains_key(name));
                        self.features.extend(given(more));
                    }
                    None => self.features.clear(),
                },
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        self.plugins.retain(|_, own| !own.is_empty());
        Ok(self)
    }
}

/// The JSON contract.
#[derive(Serialize)]
struct Answer {
    version: u32,
    file: PathBuf,
    enabled: bool,
    /// True if docker will ask for them.
    shown: bool,
    because: Option<String>,
}

pub fn run(context: &Context, options: &Hooks) -> Result<u8> {
    let file = context.settings.dir.join("config.json");
    match &options.command {
        HooksCommand::Enable => set(&file, true)?,
        HooksCommand::Disable => set(&file, false)?,
        HooksCommand::Status(status) => tell(file, &status.output)?,
    }
    Ok(0)
}

fn set(file: &Path, on: bool) -> Result<()> {
    let text = read(file)?;
    let new = edited(&text, on).with_context(|| format!("`{}` is left as it was", file.display()))?;
    if new != text {
        replace(file, &new).with_context(|| format!("`{}` is left as it was", file.display()))?;
    }
    let state = if on { "enabled" } else { "disabled" };
    report::note(&format!("Hints after builds are {state} in `{}`", file.display()));
    match refused_by_variable() {
        Some(variable) if on => report::warning(&format!("docker shows none: `{variable}` says so")),
        _ => {}
    }
    Ok(())
}

fn tell(file: PathBuf, output: &Output) -> Result<()> {
    let text = read(&file)?;
    let config = parsed(&text).with_context(|| format!("`{}`", file.display()))?;
    let enabled = config.plugins.get("cache").is_some_and(|own| own.contains_key("hooks"));
    let feature = config.features.get("hooks");
    let because = if !enabled {
        Some("they are not enabled: `docker cache hooks enable`".to_owned())
    } else if let Some(variable) = refused_by_variable() {
        Some(format!("`{variable}` says so"))
    } else if wanted_by_variable() || feature.is_some_and(|value| is_true(value)) {
        None
    } else {
        Some("`features.hooks` in the file is not \"true\": `docker cache hooks enable`".to_owned())
    };
    let answer = Answer { version: 1, file, enabled, shown: because.is_none(), because };
    match output.format {
        Format::Json => report::json(&answer),
        Format::Table if output.quiet => {
            report::data(&answer.because.map(|why| report::plain(&why) + "\n").unwrap_or_default())
        }
        Format::Table => {
            let word = |yes| if yes { "yes" } else { "no" }.to_owned();
            let because = answer.because.unwrap_or("-".into());
            let row = vec![word(answer.enabled), word(answer.shown), because, answer.file.display().to_string()];
            let header = ["ENABLED", "SHOWN", "BECAUSE", "FILE"];
            report::data(&report::table_within(report::room(), &header, vec![row], &["FILE"]))
        }
    }
}

/// Returns the variable by which docker shows no hooks, whatever the file says.
fn refused_by_variable() -> Option<String> {
    let (name, value) = variable()?;
    (!is_true(&value)).then(|| format!("{name}={value}"))
}

fn wanted_by_variable() -> bool {
    variable().is_some_and(|(_, value)| is_true(&value))
}

fn variable() -> Option<(&'static str, String)> {
    ["DOCKER_CLI_HOOKS", "DOCKER_CLI_HINTS"].into_iter().find_map(|name| Some((name, endpoint::variable(name)?)))
}

fn is_true(value: &str) -> bool {
    go_bool(value) == Some(true)
}

/// Reads the file; where there is none, docker takes an empty one.
fn read(file: &Path) -> Result<String> {
    match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("`{}` cannot be read", file.display())),
    }
}

fn parsed(text: &str) -> Result<Config> {
    if text.trim().is_empty() {
        return Ok(Config::default());
    }
    serde_json::from_str(text).context(
        "docker cannot read it either\nhint: put it right first: docker goes without all of its settings meanwhile",
    )
}

/// Returns the text of the file with the hooks on or off, and all else as it was, to the last space.
///
/// # Errors
/// When it is not what docker can read, or a name is there so often that docker would read something else.
fn edited(text: &str, on: bool) -> Result<String> {
    let mut wanted = parsed(text)?;
    let text_or_empty = if text.trim().is_empty() { "{}\n" } else { text };
    let root = CstRootNode::parse(text_or_empty, &Default::default()).context("it is not JSON")?;
    let Some(object) = root.object_value() else { bail!("it is not a JSON object") };
    let own = wanted.plugins.entry("cache".into()).or_default();
    if on {
        own.insert("hooks".into(), hooks::commands());
        assign(&object, ["plugins", "cache"], "hooks", &hooks::commands());
        let before = wanted.features.insert("hooks".into(), "true".into());
        assign(&object, ["features"], "hooks", "true");
        if let Some(before) = before.filter(|value| !is_true(value)) {
            assign(&object, ["plugins", "cache"], BEFORE, &before);
            own.insert(BEFORE.into(), before);
        }
    } else {
        if own.remove("hooks").is_none() {
            return Ok(text.into());
        }
        remove(&object, &["plugins", "cache", "hooks"]);
        remove(&object, &["plugins", "cache", BEFORE]);
        let before = own.remove(BEFORE);
        let with_hooks = |own: &BTreeMap<_, _>| own.contains_key("hooks") || own.contains_key("error-hooks");
        let is_ours = wanted.features.get("hooks").is_some_and(|value| value == "true");
        if let Some(before) = before.filter(|_| is_ours) {
            assign(&object, ["features"], "hooks", &before);
            wanted.features.insert("hooks".into(), before);
        } else if !wanted.plugins.iter().any(|(name, own)| name != "cache" && with_hooks(own)) {
            // Those of Docker Desktop would go on.
            wanted.features.remove("hooks");
            remove(&object, &["features", "hooks"]);
        }
        wanted.plugins.retain(|_, own| !own.is_empty());
    }
    let new = root.to_string();
    ensure!(
        parsed(&new)? == wanted,
        "`plugins`, `features` or a name in them is there more than once\nhint: make one of them: docker lays the later over \
         the earlier"
    );
    Ok(new)
}

fn assign<const DEPTH: usize>(object: &CstObject, path: [&str; DEPTH], name: &str, value: &str) {
    let object = path.iter().fold(object.clone(), |object, name| match named(&object, name).pop() {
        Some(property) => property.object_value_or_set(),
        None => object.object_value_or_set(name),
    });
    let value = CstInputValue::String(value.into());
    match named(&object, name).pop() {
        Some(property) => property.set_value(value),
        None => drop(object.append(name, value)),
    }
}

/// Removes a setting, and the objects that are empty without it.
fn remove(object: &CstObject, path: &[&str]) {
    let [name, rest @ ..] = path else { return };
    for property in named(object, name) {
        if let (false, Some(inner)) = (rest.is_empty(), property.object_value()) {
            remove(&inner, rest);
            if !inner.properties().is_empty() {
                continue;
            }
        }
        property.remove();
    }
}

/// Returns the properties of a name. Docker takes the last.
fn named(object: &CstObject, name: &str) -> Vec<CstObjectProp> {
    let is_it = |property: &CstObjectProp| property.name()?.decoded_value().ok().map(|found| found == name);
    object.properties().into_iter().filter(|property| is_it(property) == Some(true)).collect()
}

/// Writes the file, through a link.
fn replace(file: &Path, text: &str) -> Result<()> {
    let target = match fs::symlink_metadata(file) {
        Ok(_) => file.canonicalize()?,
        Err(_) => file.to_owned(),
    };
    fs::create_dir_all(target.parent().context("it has no directory")?)?;
    rewrite(&target, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOOKS: &str = "buildx build,buildx bake,build,image build";

    #[test]
    fn nothing_but_the_hooks_changes_and_disabling_brings_it_back() {
        let files = [
            "{}\n",
            "{\n\t\"auths\": {\n\t\t\"https://x/\": {\"auth\": \"YTpi\"}\n\t},\n\t\"zebra\" : 1e400,\n\t\"a\": [ 1,2 ]\n}",
            "{\"plugins\": {\"scout\": {\"x\": \"y\"}}, \"b\": \"\\u00e9\"}",
            "{\n  \"plugins\": {\n    \"cache\": {\n      \"history\": \"off\"\n    }\n  }\n}\n",
            "{\"features\":{\"hooks\":\"true\"},\"plugins\":{\"debug\":{\"hooks\":\"exec\"}}}",
            "{\"features\":{\"hooks\":\"false\"},\"plugins\":{\"debug\":{\"hooks\":\"exec\"}}}",
            "{\"features\":{\"hooks\":\"0\"}}",
        ];
        for file in files {
            let on = edited(file, true).unwrap();
            let read: serde_json::Value = serde_json::from_str(&on.replace("1e400", "1")).unwrap();
            assert_eq!(
                (&read["plugins"]["cache"]["hooks"], &read["features"]["hooks"]),
                (&HOOKS.into(), &"true".into())
            );
            assert_eq!(edited(&on, true).unwrap(), on);
            for line in file.lines().filter(|line| line.contains("zebra") || line.contains("auth\"")) {
                assert!(on.contains(line), "{on}");
            }
            assert_eq!(
                edited(&on, false).unwrap().split_whitespace().collect::<String>(),
                file.split_whitespace().collect::<String>()
            );
            assert_eq!(edited(file, false).unwrap(), file);
        }
        assert!(edited("", true).unwrap().ends_with("}\n"));
        assert_eq!(edited(" \n", false).unwrap(), " \n");
    }

    #[test]
    fn of_a_name_that_is_there_twice_the_last_is_read_and_edited() {
        let on = r#""cache":{"hooks":"build"}"#;
        let files = [
            (r#"{"a":1,"a":2,"plugins":{"x":{"y":"z"}},"plugins":{"d":{"e":"f"}}}"#, false),
            (r#"{"plugins":{"cache":{"a":"b"},"cache":{}},"features":{"hooks":"true","hooks":"false"}}"#, false),
            (&format!(r#"{{"plugins":{{{on}}},"Plugins":{{"x":{{}}}},"features":{{}},"features":{{}}}}"#), true),
        ];
        for (file, is_on) in files {
            let before = parsed(file).unwrap();
            assert_eq!(before.plugins.contains_key("cache"), is_on, "{file}");
            let new = edited(file, true).unwrap();
            let now = parsed(&new).unwrap();
            assert_eq!((now.plugins["cache"]["hooks"].as_str(), now.features["hooks"].as_str()), (HOOKS, "true"));
            for (name, own) in before.plugins.iter().filter(|(name, _)| *name != "cache") {
                assert_eq!(&now.plugins[name], own);
            }
        }
        let off = edited(&format!(r#"{{"plugins":{{{on},{on}}},"plugins":{{"x":{{"y":"z"}},{on}}}}}"#), false).unwrap();
        assert_eq!(off.replace(' ', ""), r#"{"plugins":{"x":{"y":"z"}}}"#);
    }

    #[test]
    fn null_is_as_good_as_nothing() {
        for file in [
            r#"{"plugins":null,"features":null}"#,
            r#"{"plugins":{"cache":null}}"#,
            r#"{"plugins":{"cache":{"hooks":null,"history":null},"x":{"y":null}},"features":{"hooks":null}}"#,
        ] {
            let now = parsed(&edited(file, true).unwrap()).unwrap();
            assert_eq!((now.plugins["cache"]["hooks"].as_str(), now.features["hooks"].as_str()), (HOOKS, "true"));
            assert_eq!(edited(file, false).unwrap(), file);
        }
    }

    #[test]
    fn an_edit_that_docker_would_read_as_another_is_refused() {
        for (file, on) in [
            // What the second one has for the plugin would hide what the first has.
            (r#"{"plugins":{"cache":{"history":"off"}},"plugins":{"x":{"y":"z"}}}"#, true),
            (r#"{"plugins":{"cache":{"history":"off"},"cache":{"hooks":"build"}}}"#, false),
            (r#"{"PLUGINS":{"cache":{"hooks":"build"}}}"#, false),
        ] {
            let error = edited(file, on).unwrap_err();
            assert!(error.to_string().contains("more than once"), "{file}: {error}");
        }
    }

    #[test]
    fn a_file_that_docker_cannot_read_is_refused() {
        for file in [
            "{",
            "[]",
            "// a\n{}",
            "{\"a\": 1,}",
            "{\"plugins\": {\"cache\": {\"hooks\": true}}}",
            "{\"plugins\": []}",
            "{\"features\": {\"hooks\": true}}",
            "{} x",
        ] {
            assert!(edited(file, true).is_err(), "{file}");
        }
    }
}
