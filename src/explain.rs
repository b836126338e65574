//! Why steps of a build missed the cache: the steps of this build, and what the last one was made of, go in. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::buildcontext::{AS_DOCKER, Files};
use crate::dockerfile::Dockerfile;
use crate::dockerfile::mount::within;
use crate::dockerfile::stage::{Base, stages};
use crate::model::{BuildStep, Moment};

/// What a build was made of. Texts and values are kept as digests only: they may hold secrets.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Seconds since 1970.
    pub at: u64,
    pub builder: String,
    /// Of each step but those that fetch images: its stage, and a digest of its text.
    pub steps: BTreeSet<(String, String)>,
    /// Base images by name, with the digest that they had.
    pub bases: BTreeMap<String, String>,
    /// Digests of the values of build arguments, by name.
    pub arguments: BTreeMap<String, String>,
    /// None if they could not be read.
    pub files: Option<Files>,
}

/// One step, and why it ran.
#[derive(Debug, PartialEq, Serialize)]
pub struct Explained {
    pub stage: String,
    pub number: u32,
    pub text: String,
    pub cached: bool,
    pub seconds: f64,
    /// Why it ran, if it did; null for a step that ran because one before it did.
    pub why: Option<String>,
}

/// Explains each step but those that fetch images. `digest` is the one of [`Fingerprint`]'s texts.
pub fn explain(
    steps: &[BuildStep],
    file: &Dockerfile,
    now: &Fingerprint,
    before: Option<&Fingerprint>,
    digest: &dyn Fn(&str) -> String,
) -> Vec<Explained> {
    let below = bases(file);
    let mut steps: Vec<&BuildStep> = steps.iter().filter(|step| !step.is_base()).collect();
    // BuildKit tells stages in the order in which it comes upon them.
    steps.sort_by_key(|step| (below.iter().position(|(name, _)| name == bare(&step.stage)), &step.stage, step.number));
    let ran: Vec<&BuildStep> = steps.iter().filter(|step| !step.cached).copied().collect();
    let explained = steps.iter().map(|step| {
        let earlier = |other: &&&BuildStep| other.stage == step.stage && other.number < step.number;
        let first = steps.iter().filter(earlier).count() == 0;
        let follows = step.cached
            || ran.iter().any(|other| earlier(&other))
            || ran.iter().any(|other| {
                let stage = bare(&other.stage);
                let bases = below.iter().find(|(name, _)| name == bare(&step.stage));
                bases.is_some_and(|(_, bases)| bases.iter().any(|base| base == stage))
                    || copies_from(&step.text).is_some_and(|from| from == stage)
            });
        let why = (!follows).then(|| match before {
            None => "there is no earlier run to compare with".into(),
            Some(before) => reason(step, first, file, now, before, digest),
        });
        Explained {
            stage: step.stage.clone(),
            number: step.number,
            text: step.text.clone(),
            cached: step.cached,
            seconds: step.seconds,
            why,
        }
    });
    explained.collect()
}

/// Returns what changed for a step whose inputs are the same.
fn reason(
    step: &BuildStep,
    first: bool,
    file: &Dockerfile,
    now: &Fingerprint,
    before: &Fingerprint,
    digest: &dyn Fn(&str) -> String,
) -> String {
    if now.builder != before.builder {
        return format!("the last run was on builder {}, and each has a cache of its own", before.builder);
    }
    let other = |(name, digest): &(&String, &String)| before.bases.get(*name).is_some_and(|known| known != *digest);
    if let Some((name, _)) = now.bases.iter().find(other).filter(|_| first) {
        return format!("the base image {name} is another one");
    }
    if let Some(name) = changed_argument(file, now, before).filter(|_| step.text.starts_with("RUN ")) {
        return format!("the build argument {name} changed");
    }
    if !before.steps.contains(&(step.stage.clone(), digest(&step.text))) {
        return "the instruction is new, or not what it was".into();
    }
    let Some(sources) = sources(&step.text) else { return gone(before) };
    let (Some(files), Some(known)) = (&now.files, &before.files) else {
        return "the files of the build context could not be compared".into();
    };
    let of_step = |path: &&String| sources.iter().any(|source| takes(source, path));
    let touched = files.iter().filter(|(path, print)| known.get(*path).is_none_or(|known| !known.is_same(print)));
    let removed = known.keys().filter(|path| !files.contains_key(*path));
    let mut changed: Vec<&String> = touched.map(|(path, _)| path).chain(removed).filter(of_step).collect();
    changed.sort();
    match changed.as_slice() {
        [] => gone(before),
        [path] => format!("{path} changed"),
        [first, second] => format!("{first} and {second} changed"),
        [first, second, rest @ ..] => format!("{first}, {second} and {} more changed", rest.len()),
    }
}

fn gone(before: &Fingerprint) -> String {
    let ago = Moment(before.at).ago(Moment::now());
    format!("nothing that is compared changed since the last run, {ago}: the builder has dropped it from its cache")
}

/// Returns a build argument that the file declares and that has another value now.
fn changed_argument(file: &Dockerfile, now: &Fingerprint, before: &Fingerprint) -> Option<String> {
    let declared = file.instructions.iter().filter(|instruction| instruction.keyword == "ARG");
    let names = declared.flat_map(|instruction| instruction.args.text.split_whitespace());
    let mut names = names.map(|word| word.split('=').next().unwrap_or_default());
    names.find(|name| now.arguments.get(*name) != before.arguments.get(*name)).map(str::to_owned)
}

/// Returns the name of a stage without the platform that BuildKit puts before it in a build for several.
fn bare(stage: &str) -> &str {
    stage.rsplit(' ').next().unwrap_or_default()
}

/// Returns the stages of a file, and those that each is built on, by the names that BuildKit gives them.
fn bases(file: &Dockerfile) -> Vec<(String, Vec<String>)> {
    let stages = stages(file);
    let name = |at: usize| stages[at].name.clone().unwrap_or_else(|| format!("stage-{at}")).to_lowercase();
    let below = |mut at: usize| {
        let mut names = Vec::new();
        while let Base::Stage(base) = stages[at].base {
            names.push(name(base));
            at = base;
        }
        names
    };
    (0..stages.len()).map(|at| (name(at), below(at))).collect()
}

/// Returns the stage that a `COPY --from` or a mount takes files from.
fn copies_from(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("--from=").or_else(|| text.split_once(",from="))?;
    rest.split([' ', ',']).next()
}

/// Returns what a step takes from the build context: paths as the instruction has them. None if it takes nothing.
fn sources(text: &str) -> Option<Vec<&str>> {
    if copies_from(text).is_some() {
        return None;
    }
    let mut words = text.split_whitespace();
    match words.next()? {
        "COPY" | "ADD" => {
            let mut words: Vec<&str> = words.filter(|word| !word.starts_with("--")).collect();
            words.pop();
            // Of the JSON form the words cannot be told apart.
            let exact = !words.is_empty() && !text.contains(['[', '"', '<']);
            Some(if exact { words } else { vec!["."] })
        }
        "RUN" => {
            let bind = words.find(|word| word.starts_with("--mount=") && word.contains("type=bind"))?;
            let source = bind
                .split(',')
                .find_map(|option| option.strip_prefix("source=").or_else(|| option.strip_prefix("src=")));
            Some(vec![source.unwrap_or(".")])
        }
        _ => None,
    }
}

/// Tells whether a source of a `COPY` takes this file of the context.
fn takes(source: &str, path: &str) -> bool {
    let source = source.trim_start_matches("./").trim_matches('/');
    let pattern = glob::Pattern::new(source);
    let above = || std::path::Path::new(path).ancestors();
    source.is_empty()
        || source == "."
        || within(path, source)
        || pattern.is_ok_and(|pattern| above().any(|path| pattern.matches_path_with(path, AS_DOCKER)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "FROM debian AS base\nARG V\nRUN echo $V\nCOPY src /src\nRUN make\nFROM base\nRUN x\nCOPY --from=base /a /a\n";

    fn step(stage: &str, number: u32, text: &str, cached: bool) -> BuildStep {
        BuildStep { stage: stage.into(), number, text: text.into(), cached, seconds: 1.0 }
    }

    fn files(of: &[(&str, &str)]) -> Option<Files> {
        let print =
            |digest: &str| serde_json::from_value(serde_json::json!({"digest": digest, "mode": 0, "state": [0, 0]}));
        Some(of.iter().map(|(path, digest)| ((*path).to_owned(), print(digest).unwrap())).collect())
    }

    fn fingerprint(steps: &[BuildStep]) -> Fingerprint {
        Fingerprint {
            at: Moment::now().0,
            builder: "default".into(),
            steps: steps.iter().map(|step| (step.stage.clone(), step.text.clone())).collect(),
            files: files(&[("src/a", "1"), ("src/b", "1"), ("src2", "1")]),
            ..Fingerprint::default()
        }
    }

    /// Explains a build of which the steps of these indexes ran, and returns the reasons.
    fn reasons(
        ran: &[usize],
        now: impl Fn(&mut Fingerprint),
        before: impl Fn(&mut Fingerprint),
    ) -> Vec<Option<String>> {
        let texts = [("base", "RUN echo $V"), ("base", "COPY src /src"), ("base", "RUN make"), ("stage-1", "RUN x")];
        let steps = texts.iter().enumerate();
        let steps: Vec<_> =
            steps.map(|(at, (stage, text))| step(stage, at as u32 + 2, text, !ran.contains(&at))).collect();
        let (mut is, mut was) = (fingerprint(&steps), fingerprint(&steps));
        now(&mut is);
        before(&mut was);
        let file = Dockerfile::parse(FILE);
        let explained = explain(&steps, &file, &is, Some(&was), &|text| text.into());
        explained.into_iter().map(|step| step.why).collect()
    }

    #[test]
    fn the_first_step_that_missed_is_explained_and_the_others_follow() {
        let nothing = |_: &mut Fingerprint| ();
        assert_eq!(reasons(&[], nothing, nothing), [None, None, None, None]);
        let changed = |now: &mut Fingerprint| now.files = files(&[("src/a", "2"), ("src2", "2"), ("src/c", "1")]);
        let found = reasons(&[1, 2, 3], changed, nothing);
        assert_eq!(found[1].as_deref(), Some("src/a, src/b and 1 more changed"));
        assert_eq!((&found[2], &found[3]), (&None, &None));
        let argument = |now: &mut Fingerprint| drop(now.arguments.insert("V".into(), "2".into()));
        assert_eq!(reasons(&[0, 1, 2, 3], argument, nothing)[0].as_deref(), Some("the build argument V changed"));
        let text = |was: &mut Fingerprint| was.steps.retain(|(_, text)| text != "RUN make");
        assert!(reasons(&[2, 3], nothing, text)[2].as_ref().unwrap().starts_with("the instruction is new"));
        let builder = |was: &mut Fingerprint| was.builder = "far".into();
        assert!(reasons(&[0, 1, 2, 3], nothing, builder)[0].as_ref().unwrap().contains("builder far"));
        assert!(reasons(&[2], nothing, nothing)[2].as_ref().unwrap().contains("dropped"));
        let image =
            |digest: &'static str| move |of: &mut Fingerprint| drop(of.bases.insert("debian".into(), digest.into()));
        assert_eq!(
            reasons(&[0, 1, 2, 3], image("1"), image("2"))[0].as_deref(),
            Some("the base image debian is another one")
        );
    }

    #[test]
    fn what_a_step_takes_from_the_context_is_read_from_its_text() {
        let cases = [
            ("COPY a b/ /x/", Some(vec!["a", "b/"])),
            ("COPY --chown=1 --link . .", Some(vec!["."])),
            ("COPY [\"a b\", \"/x\"]", Some(vec!["."])),
            ("COPY --from=b /a /a", None),
            ("RUN make", None),
            ("RUN --mount=type=cache,target=/c make", None),
            ("RUN --mount=type=bind,source=pkg,target=/p make", Some(vec!["pkg"])),
            ("RUN --mount=type=bind,from=b,target=/p make", None),
            ("WORKDIR /x", None),
        ];
        for (text, expected) in cases {
            assert_eq!(sources(text), expected, "{text}");
        }
        for (source, path, taken) in [
            ("src", "src/a/b", true),
            ("./src/", "src/a", true),
            ("src", "src2", false),
            ("*.json", "package.json", true),
            ("*.json", "a/package.json", false),
            (".", "any", true),
            ("/", "any", true),
        ] {
            assert_eq!(takes(source, path), taken, "{source} {path}");
        }
    }
}
