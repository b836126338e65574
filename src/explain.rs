//! Why steps of a build missed the cache: the steps of this build, and what the last one was made of, go in. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::buildcontext::{Files, Print, Rule};
use crate::dockerfile::mount::{clean, within};
use crate::dockerfile::stage::{Base, Stage, stages};
use crate::dockerfile::{Dockerfile, Instruction, skip_blank, word_end};
use crate::model::{BuildStep, Moment};

/// Flags of a build that its `RUN` steps are made with.
pub const FLAGS_OF_RUN: &[&str] = &["--network", "--add-host", "--ulimit", "--shm-size", "--cgroup-parent"];

/// Flags of a build that decide for any step whether its cache is used.
pub const FLAGS_OF_ALL: &[&str] = &["--cache-from", "--no-cache-filter"];

/// What a build was made of. Texts and values are kept as digests only: they may hold secrets.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Fingerprint {
    /// Seconds since 1970.
    pub at: u64,
    pub builder: String,
    /// Of each step but those that fetch images: its stage, and a digest of its text.
    pub steps: BTreeSet<(String, String)>,
    /// Of each instruction of the Dockerfile: its stage, and a digest of it with its here-documents.
    pub instructions: BTreeSet<(String, String)>,
    /// Base images by name, with the digest that they had.
    pub bases: BTreeMap<String, String>,
    /// Digests of the values of build arguments, by name.
    pub arguments: BTreeMap<String, String>,
    /// Digests of the values of flags that are not compared otherwise, by name.
    pub flags: BTreeMap<String, String>,
    /// None if they could not be read.
    pub files: Option<Files>,
    /// Directories that the build names, by `--build-context`.
    pub contexts: BTreeMap<String, Files>,
    /// Stages that the build runs again each time, by `--no-cache-filter`.
    #[serde(skip)]
    pub uncached: Vec<String>,
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
    /// Ids of its cache mounts that the builder did not have, if it ran: it filled them anew.
    pub new_mounts: Vec<String>,
}

/// A Dockerfile by stages, and how its texts are remembered.
struct Source<'a> {
    file: &'a Dockerfile,
    stages: Vec<Stage>,
    digest: &'a dyn Fn(&str) -> String,
}

/// Returns stage and digest of each instruction. What stands before the first stage is of none.
pub fn instructions(file: &Dockerfile, digest: &dyn Fn(&str) -> String) -> BTreeSet<(String, String)> {
    let source = Source { file, stages: stages(file), digest };
    let above = file.instructions.iter().take_while(|instruction| instruction.keyword != "FROM");
    let above = above.map(|instruction| (String::new(), source.digest(instruction)));
    let of_stages = source.stages.iter().enumerate().flat_map(|(at, stage)| {
        let instructions = stage.steps.iter().map(|step| &file.instructions[step.instruction]);
        instructions.map(move |instruction| (at, instruction))
    });
    above.chain(of_stages.map(|(at, instruction)| (source.name(at), source.digest(instruction)))).collect()
}

/// Explains each step but those that fetch images. `mounts` are the ids of the cache mounts that the builder had before the
/// build, if that is known; `digest` is the one of [`Fingerprint`]'s texts.
pub fn explain(
    steps: &[BuildStep],
    file: &Dockerfile,
    now: &Fingerprint,
    before: Option<&Fingerprint>,
    mounts: Option<&BTreeSet<String>>,
    digest: &dyn Fn(&str) -> String,
) -> Vec<Explained> {
    let source = Source { file, stages: stages(file), digest };
    let mut steps: Vec<&BuildStep> = steps.iter().filter(|step| !step.is_base()).collect();
    // BuildKit tells stages in the order in which it comes upon them.
    steps.sort_by_key(|step| (source.at(step), &step.stage, step.number));
    let ran: Vec<&BuildStep> = steps.iter().filter(|step| !step.cached).copied().collect();
    let explained = steps.iter().map(|step| {
        let earlier = |other: &&BuildStep| other.stage == step.stage && other.number < step.number;
        let lineage = source.at(step).map(|at| source.lineage(at)).unwrap_or_default();
        let is_below = |other: &&BuildStep| {
            let at = source.at(other);
            at != source.at(step) && at.is_some_and(|at| lineage.contains(&at))
                || copies_from(&step.text).any(|from| from == bare(&other.stage))
        };
        let follows = step.cached || ran.iter().any(|other| earlier(other) || is_below(other));
        let why = (!follows).then(|| match before {
            None => "there is no earlier run to compare with".into(),
            Some(before) => source.reason(step, now, before),
        });
        Explained {
            stage: step.stage.clone(),
            number: step.number,
            text: step.text.clone(),
            cached: step.cached,
            seconds: step.seconds,
            why,
            new_mounts: match mounts {
                Some(known) if !step.cached => cache_mounts(&step.text).filter(|id| !known.contains(id)).collect(),
                _ => Vec::new(),
            },
        }
    });
    explained.collect()
}

impl Source<'_> {
    /// Returns the name that BuildKit gives to a stage.
    fn name(&self, at: usize) -> String {
        self.stages[at].name.clone().unwrap_or_else(|| format!("stage-{at}"))
    }

    /// Returns the stage of a step.
    fn at(&self, step: &BuildStep) -> Option<usize> {
        let name = bare(&step.stage);
        // With one stage only, BuildKit tells no name.
        if name.is_empty() {
            (!self.stages.is_empty()).then_some(0)
        } else {
            (0..self.stages.len()).find(|at| self.name(*at) == name)
        }
    }

    /// Returns a stage and those that it is built on, the first one first.
    fn lineage(&self, stage: usize) -> Vec<usize> {
        let mut lineage = vec![stage];
        while let Base::Stage(below) = self.stages[lineage[lineage.len() - 1]].base {
            lineage.push(below);
        }
        lineage.reverse();
        lineage
    }

    fn digest(&self, instruction: &Instruction) -> String {
        let bodies: String = instruction.heredocs.iter().map(|heredoc| heredoc.body.text.as_str()).collect();
        let flags: Vec<_> = instruction.flags.iter().map(|flag| (&flag.name, &flag.value)).collect();
        (self.digest)(&format!("{} {flags:?} {}\n{bodies}", instruction.keyword, instruction.args.text))
    }

    /// Returns the instruction that a step carries out. BuildKit counts those that make layers, and an image they begin
    /// from.
    fn instruction(&self, step: &BuildStep) -> Option<usize> {
        let stage = &self.stages[self.at(step)?];
        let from_image = matches!(&stage.base, Base::Image(image) if image != "scratch");
        let makes_layer =
            |at: &usize| matches!(self.file.instructions[*at].keyword.as_str(), "RUN" | "COPY" | "ADD" | "WORKDIR");
        let at = (step.number as usize).checked_sub(1 + usize::from(from_image))?;
        let found = stage.steps.iter().map(|step| step.instruction).filter(makes_layer).nth(at)?;
        step.text.starts_with(&self.file.instructions[found].keyword).then_some(found)
    }

    /// Returns what changed for a step whose inputs are the same.
    fn reason(&self, step: &BuildStep, now: &Fingerprint, before: &Fingerprint) -> String {
        let is_run = step.text.starts_with("RUN ");
        let seen = FLAGS_OF_RUN.iter().filter(|_| is_run).chain(FLAGS_OF_ALL);
        let changed: Vec<&str> = seen.copied().filter(|name| now.flags.get(*name) != before.flags.get(*name)).collect();
        let flags = format!("{} of the build changed", changed.join(" and "));
        match (changed.is_empty(), self.other_reason(step, now, before)) {
            (true, Some(why)) => why,
            (true, None) if self.is_filtered(step, now) => {
                "`--no-cache-filter` of the build makes its stage run again".into()
            }
            (true, None) => gone(before),
            (false, None) => flags,
            (false, Some(why)) => format!("{flags}, and {why}"),
        }
    }

    /// Returns true if the build runs the step's stage again each time.
    fn is_filtered(&self, step: &BuildStep, now: &Fingerprint) -> bool {
        let stage = self.at(step).map(|at| self.name(at)).unwrap_or_default();
        now.uncached.iter().any(|name| name.eq_ignore_ascii_case(&stage))
    }

    /// Returns what changed for a step apart from the flags of the build.
    fn other_reason(&self, step: &BuildStep, now: &Fingerprint, before: &Fingerprint) -> Option<String> {
        if now.builder != before.builder {
            return Some(format!("the last run was on builder {}, and each has a cache of its own", before.builder));
        }
        let from = copies_from(&step.text).next();
        if let Some(image) = self.changed_image(step, from, now, before) {
            return Some(format!("the image {image} is another one"));
        }
        if let Some(why) = self.changed_setting(step, now, before) {
            return Some(why);
        }
        let own = self.instruction(step).map(|at| self.digest(&self.file.instructions[at]));
        let stage = self.at(step).map(|at| self.name(at)).unwrap_or_default();
        let is_known = own.is_none_or(|own| before.instructions.contains(&(stage, own)));
        if !is_known || !before.steps.contains(&(step.stage.clone(), (self.digest)(&step.text))) {
            return Some("the instruction is new, or not what it was".into());
        }
        let sources = sources(&step.text);
        if let Some((_, address)) = sources.iter().find(|(_, source)| is_address(source)) {
            return Some(format!(
                "{address} leads to something else now, or the builder has dropped the step from its cache"
            ));
        }
        let mut changed = Vec::new();
        for (from, source) in sources {
            let (files, known) = match from {
                None => (now.files.as_ref(), before.files.as_ref()),
                Some(from) => (now.contexts.get(from), before.contexts.get(from)),
            };
            match (files, known) {
                (Some(files), Some(known)) => {
                    let same =
                        |(path, print): &(&String, &Print)| known.get(*path).is_some_and(|known| known.is_same(print));
                    let touched = files.iter().filter(|file| !same(file)).map(|(path, _)| path);
                    let removed = known.keys().filter(|path| !files.contains_key(*path));
                    changed.extend(touched.chain(removed).filter(|path| takes(source, path)));
                }
                _ if from.is_none() => return Some("the files of the build context could not be compared".into()),
                // A stage or an image.
                _ => {}
            }
        }
        changed.sort();
        changed.dedup();
        match changed.as_slice() {
            [] => None,
            [path] => Some(format!("{path} changed")),
            [first, second] => Some(format!("{first} and {second} changed")),
            [first, second, rest @ ..] => Some(format!("{first}, {second} and {} more changed", rest.len())),
        }
    }

    /// Returns the image that the step's stage begins from, or that it copies from, if that is another one now.
    fn changed_image<'a>(
        &self,
        step: &BuildStep,
        from: Option<&str>,
        now: &'a Fingerprint,
        before: &Fingerprint,
    ) -> Option<&'a String> {
        let root = self.at(step).map(|at| self.lineage(at)[0]);
        let base = root.and_then(|root| match &self.stages[root].base {
            Base::Image(image) => Some(image.as_str()),
            Base::Stage(_) => None,
        });
        let is_meant = |name: &String| [base, from].into_iter().flatten().any(|image| is_called(name, image));
        let other =
            |(name, digest): &(&'a String, &String)| before.bases.get(*name).is_some_and(|known| known != *digest);
        now.bases.iter().filter(other).map(|(name, _)| name).find(|name| is_meant(name))
    }

    /// Returns which variable, user or shell is another one for this step. A `RUN` sees them all, what else is a step
    /// those that it names.
    fn changed_setting(&self, step: &BuildStep, now: &Fingerprint, before: &Fingerprint) -> Option<String> {
        let stage = self.at(step)?;
        let end = self.instruction(step).unwrap_or(usize::MAX);
        let lineage = self.lineage(stage);
        let of = |at: usize| self.stages[at].steps.iter().map(move |step| (at, step.instruction));
        let above: Vec<(usize, usize)> = lineage
            .iter()
            .flat_map(|at| of(*at))
            .filter(|(at, instruction)| *at != stage || *instruction < end)
            .collect();
        let text = self.file.instructions.get(end).map_or(step.text.as_str(), |own| own.args.text.as_str());
        let is_seen = |name: &str| {
            step.text.starts_with("RUN ") || text.contains(&format!("${name}")) || text.contains(&format!("${{{name}"))
        };
        let settings = above.iter().map(|(at, index)| (*at, &self.file.instructions[*index]));
        let arguments = settings.clone().filter(|(_, instruction)| instruction.keyword == "ARG");
        for name in arguments.flat_map(|(_, instruction)| names(instruction)) {
            if now.arguments.get(name) != before.arguments.get(name) && is_seen(name) {
                return Some(format!("the build argument {name} changed"));
            }
        }
        let is_new = |at: usize, instruction: &Instruction| {
            !before.instructions.contains(&(self.name(at), self.digest(instruction)))
        };
        let is_setting = |instruction: &Instruction| match instruction.keyword.as_str() {
            "ENV" | "ARG" => names(instruction).into_iter().any(is_seen),
            "USER" | "SHELL" => step.text.starts_with("RUN "),
            _ => false,
        };
        // An `ARG` of the stage may have its value from one before the first stage.
        let global: Vec<&Instruction> =
            self.file.instructions.iter().take_while(|instruction| instruction.keyword != "FROM").collect();
        for (at, instruction) in settings.filter(|(_, instruction)| is_setting(instruction)) {
            let named = names(instruction);
            let given = global.iter().find(|global| {
                let is_new = !before.instructions.contains(&(String::new(), self.digest(global)));
                instruction.keyword == "ARG" && is_new && names(global).iter().any(|name| named.contains(name))
            });
            let changed = given.copied().or_else(|| is_new(at, instruction).then_some(instruction));
            if let Some(changed) = changed {
                let what = match changed.keyword.as_str() {
                    "ENV" | "ARG" => format!("{} {}", changed.keyword, names(changed).join(", ")),
                    keyword => keyword.to_owned(),
                };
                return Some(format!("{what} in line {} is new, or not what it was", changed.line));
            }
        }
        None
    }
}

/// Tells whether BuildKit's name of an image, `docker.io/library/debian:latest`, is of what a file calls `debian`.
fn is_called(name: &str, image: &str) -> bool {
    let bare = |name: &str| {
        name.trim_start_matches("docker.io/").trim_start_matches("library/").trim_end_matches(":latest").to_owned()
    };
    bare(name) == bare(image.split('@').next().unwrap_or_default())
}

/// Returns the variables that an `ENV` or `ARG` sets.
fn names(instruction: &Instruction) -> Vec<&str> {
    if !matches!(instruction.keyword.as_str(), "ENV" | "ARG") {
        return Vec::new();
    }
    let text = instruction.args.text.as_str();
    let mut names = Vec::new();
    let mut at = skip_blank(text, 0);
    while at < text.len() {
        let end = word_end(text, at);
        let (name, value) =
            text[at..end].split_once('=').map_or((&text[at..end], None), |(name, value)| (name, Some(value)));
        names.push(name);
        // `ENV NAME VALUE` sets one.
        if instruction.keyword == "ENV" && value.is_none() {
            break;
        }
        at = skip_blank(text, end);
    }
    names
}

fn gone(before: &Fingerprint) -> String {
    let ago = Moment(before.at).ago(Moment::now());
    format!("nothing that is compared changed since the last run, {ago}: the builder has dropped it from its cache")
}

/// Returns the name of a stage without the platform that BuildKit puts before it in a build for several.
fn bare(stage: &str) -> &str {
    stage.rsplit(' ').next().unwrap_or_default()
}

/// Returns the stages, images and named contexts that a `COPY --from` or mounts take files from.
fn copies_from(text: &str) -> impl Iterator<Item = &str> {
    let flags = text.split_whitespace().skip(1).take_while(|word| word.starts_with("--"));
    flags.filter_map(|flag| {
        let (_, from) =
            flag.split_once("--from=").or_else(|| flag.split_once(",from=")).or_else(|| flag.split_once("=from="))?;
        from.split(',').next()
    })
}

/// Returns what a step takes from contexts, stages and images: from which if not from the build context, and paths as the
/// instruction has them.
fn sources(text: &str) -> Vec<(Option<&str>, &str)> {
    let mut words = text.split_whitespace();
    match words.next() {
        Some("COPY" | "ADD") => {
            let from = copies_from(text).next();
            let mut words: Vec<&str> = words.filter(|word| !word.starts_with("--")).collect();
            words.pop();
            // Of the JSON form the words cannot be told apart.
            let exact = !words.is_empty() && !text.contains(['[', '"', '<']);
            let words = if exact { words } else { vec!["."] };
            words.into_iter().map(|word| (from, word)).collect()
        }
        Some("RUN") => {
            let binds =
                words.take_while(|word| word.starts_with("--")).filter_map(|word| word.strip_prefix("--mount="));
            let binds = binds.filter(|bind| bind.contains("type=bind") || !bind.contains("type="));
            binds.map(|bind| (value(bind, &["from"]), value(bind, &["source", "src"]).unwrap_or("."))).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns the ids of the cache mounts of a step, as far as they are written out.
fn cache_mounts(text: &str) -> impl Iterator<Item = String> {
    let flags = text.split_whitespace().skip(1).take_while(|word| word.starts_with("--"));
    let mounts = flags.filter_map(|word| word.strip_prefix("--mount=")).filter(|mount| mount.contains("type=cache"));
    let ids = mounts.filter_map(|mount| match value(mount, &["id"]) {
        Some(id) => Some(id.to_owned()),
        None => value(mount, &["target", "dst", "destination"]).map(clean),
    });
    ids.filter(|id| !id.contains(['$', '"']))
}

/// Returns the value of an option of a mount.
fn value<'a>(mount: &'a str, names: &[&str]) -> Option<&'a str> {
    let mut options = mount.split(',').filter_map(|option| option.split_once('='));
    options.find(|(name, _)| names.contains(name)).map(|(_, value)| value)
}

fn is_address(source: &str) -> bool {
    source.contains("://") || source.starts_with("git@")
}

/// Tells whether a source of a `COPY` takes this file of the context.
fn takes(source: &str, path: &str) -> bool {
    let source = source.trim_start_matches("./").trim_matches('/');
    source.is_empty()
        || source == "."
        || within(path, source)
        || Rule::parse(source).is_some_and(|rule| Path::new(path).ancestors().any(|path| rule.fits(path)))
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
            instructions: instructions(&Dockerfile::parse(FILE), &|text| text.into()),
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
        let explained = explain(&steps, &file, &is, Some(&was), None, &|text| text.into());
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
        let setting = |was: &mut Fingerprint| was.instructions.retain(|(_, text)| !text.starts_with("ARG"));
        assert_eq!(
            reasons(&[0, 1, 2, 3], nothing, setting)[0].as_deref(),
            Some("ARG V in line 2 is new, or not what it was")
        );
        let unseen = reasons(&[1, 2, 3], nothing, setting);
        assert!(unseen[1].as_ref().unwrap().contains("dropped"), "a COPY sees no variable that it does not name");
        let image =
            |digest: &'static str| move |of: &mut Fingerprint| drop(of.bases.insert("debian".into(), digest.into()));
        assert_eq!(
            reasons(&[0, 1, 2, 3], image("1"), image("2"))[0].as_deref(),
            Some("the image debian is another one")
        );
    }

    #[test]
    fn a_flag_that_changed_is_named_and_no_argument_is_blamed_alone() {
        let nothing = |_: &mut Fingerprint| ();
        let flag = |name: &'static str| move |of: &mut Fingerprint| drop(of.flags.insert(name.into(), "1".into()));
        let network = reasons(&[0], flag("--network"), nothing);
        assert_eq!(network[0].as_deref(), Some("--network of the build changed"));
        let both = reasons(&[0], flag("--network"), |was| drop(was.arguments.insert("V".into(), "2".into())));
        assert_eq!(both[0].as_deref(), Some("--network of the build changed, and the build argument V changed"));
        let copy = |name: &'static str| reasons(&[1], flag(name), nothing).remove(1).unwrap();
        assert!(copy("--network").contains("dropped"), "only a RUN has a network");
        assert_eq!(copy("--cache-from"), "--cache-from of the build changed");
        let filtered =
            |stage: &'static str| reasons(&[1], move |now| now.uncached = vec![stage.into()], nothing).remove(1);
        assert!(filtered("Base").unwrap().starts_with("`--no-cache-filter`"));
        assert!(filtered("stage-1").unwrap().contains("dropped"), "it is of another stage");
    }

    #[test]
    fn a_step_that_ran_tells_which_cache_mounts_it_filled_anew() {
        let text = "RUN --mount=type=cache,target=/c/ --mount=type=cache,id=i,target=/d --mount=type=bind,target=/e \
                    --mount=type=cache,target=/$X make";
        let new = |cached: bool, known: Option<&[&str]>| {
            let known: Option<BTreeSet<String>> = known.map(|known| known.iter().map(|id| (*id).to_owned()).collect());
            let steps = [step("base", 2, text, cached)];
            let (file, now) = (Dockerfile::parse(FILE), Fingerprint::default());
            explain(&steps, &file, &now, None, known.as_ref(), &|text| text.into()).remove(0).new_mounts
        };
        assert_eq!(new(false, Some(&["/c"])), ["i"]);
        assert_eq!(new(false, Some(&[])), ["/c", "i"]);
        assert!(new(true, Some(&[])).is_empty() && new(false, None).is_empty());
    }

    #[test]
    fn an_address_may_lead_elsewhere_and_an_image_goes_by_several_names() {
        let file = Dockerfile::parse("FROM debian AS base\nADD https://x/y /y\nCOPY --from=tools:1 /t /t\n");
        let steps = [step("base", 2, "ADD https://x/y /y", false), step("base", 3, "COPY --from=tools:1 /t /t", false)];
        let was = Fingerprint {
            instructions: instructions(&file, &|text| text.into()),
            bases: [("docker.io/library/tools:1".into(), "1".into())].into(),
            ..fingerprint(&steps)
        };
        let why = |step: usize, is: &Fingerprint| {
            let explained = explain(&steps[step..], &file, is, Some(&was), None, &|text| text.into());
            explained[0].why.clone().unwrap()
        };
        assert!(why(0, &was).starts_with("https://x/y leads to something else now, or"));
        let bases = [("docker.io/library/tools:1".into(), "2".into())].into();
        let is = Fingerprint { bases, instructions: was.instructions.clone(), ..fingerprint(&steps) };
        assert_eq!(why(1, &is), "the image docker.io/library/tools:1 is another one");
        let file = Dockerfile::parse("FROM a\nENV A=\"x y=z\" B=1\nENV C d e\nARG D E=1\nRUN x\n");
        let named: Vec<Vec<&str>> = file.instructions.iter().map(names).collect();
        assert_eq!(named, [vec![], vec!["A", "B"], vec!["C"], vec!["D", "E"], vec![]]);
        for (name, image, same) in [
            ("docker.io/library/debian:latest", "debian", true),
            ("docker.io/library/debian:12", "debian:12", true),
            ("docker.io/library/debian:12", "debian", false),
            ("docker.io/team/app:latest", "team/app", true),
            ("ghcr.io/a/b:1", "ghcr.io/a/b:1@sha256:0", true),
        ] {
            assert_eq!(is_called(name, image), same, "{name} {image}");
        }
    }

    #[test]
    fn what_a_step_takes_from_the_context_is_read_from_its_text() {
        let cases = [
            ("COPY a b/ /x/", vec![(None, "a"), (None, "b/")]),
            ("COPY --chown=1 --link . .", vec![(None, ".")]),
            ("COPY [\"a b\", \"/x\"]", vec![(None, ".")]),
            ("COPY --from=b /a /a", vec![(Some("b"), "/a")]),
            ("RUN make", vec![]),
            ("RUN --mount=type=cache,target=/c make", vec![]),
            ("RUN --mount=type=bind,source=pkg,target=/p make", vec![(None, "pkg")]),
            (
                "RUN --mount=from=b,target=/p --mount=type=secret,id=x --mount=type=bind,target=. make",
                vec![(Some("b"), "."), (None, ".")],
            ),
            ("WORKDIR /x", vec![]),
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
