//! `docker cache export --to-builder`: from builder to builder, without a bundle.

use anyhow::{Context as _, Result, bail};

use super::super::bundles::Carrying;
use super::super::layers::{self, Layers};
use super::{Answer, AnswerEntry, From, Item, NOTHING, Plan, SECRETS, plan_mounts, show};
use crate::builders::Builders;
use crate::cli::Export;
use crate::exit;
use crate::inside::pack;
use crate::inside::unpack::Target;
use crate::inventory::Kind;
use crate::place::between;

/// Copies cache mounts, and then layers, which a prune of what the mounts needed could make the other builder forget. Volumes
/// belong to no builder.
pub fn to_builder(builders: &Builders, options: &Export) -> Result<u8> {
    let name = options.to_builder.as_deref().unwrap_or_default();
    let to = builders.one(Some(name))?;
    let to = builders.reference(to);
    let mut plan = Plan::default();
    plan_mounts(builders, options, &mut plan)?;
    if plan.builders.iter().all(|from| from.name == to.name) {
        bail!("{name} is where the mounts are\nhint: name the builder to copy from by `--builder`");
    }
    let layers = match options.selection.wants(Kind::Layer) {
        true => layers::plan_export(builders, options)?,
        false => Layers::None,
    };
    let mut whole = true;
    if let Layers::Without(why) = &layers {
        plan.left_out.push(why.clone());
        // Who names a directory means layers.
        whole = options.build.directory.is_none();
    }
    let mut answer = Answer { version: 1, left_out: std::mem::take(&mut plan.left_out), ..Answer::default() };
    // Packed here and unpacked there.
    let bytes = 2 * plan.items.iter().map(|item| item.estimate.0).sum::<u64>();
    let mut progress = Carrying::new("Copying", (0, bytes), "Sending", options.output.telling());
    for item in plan.items {
        let Item { config, estimate, from: From::Mount(at, mount, sure) } = item else { continue };
        let from = &plan.builders[at];
        let (mut bytes, mut files) = (estimate.0, None);
        if from.name == to.name {
            continue;
        }
        if !options.dry_run {
            let tree = pack::Tree {
                root: Default::default(),
                base: config.base.clone(),
                rules: config.rules.clone(),
                secrets: SECRETS.iter().map(ToString::to_string).collect(),
                previous: None,
            };
            let target = |packed: &pack::Packed| {
                (packed.files > 0 || sure).then(|| Target {
                    root: Default::default(),
                    base: config.base.clone(),
                    table: packed.table.clone(),
                    layers: packed.layers.clone(),
                    rules: config.rules.clone(),
                    from: String::new(),
                    to: String::new(),
                    replace: false,
                    owner: None,
                })
            };
            let done = between::carry(from, &to, &mount, tree, target, &mut |told| progress.tell(told));
            progress.next();
            let (packed, unpacked) = done.with_context(|| format!("mount {}", config.name))?;
            let left_out =
                packed.secrets.iter().map(|path| format!("{}: {path} has the name of a file of secrets", config.name));
            answer
                .left_out
                .extend(left_out.chain(packed.skipped.iter().map(|what| format!("{}: {what}", config.name))));
            let Some(unpacked) = unpacked else { continue };
            answer.left_out.extend(unpacked.notes);
            (bytes, files) = (packed.bytes, Some(packed.files));
            answer.bytes_written += unpacked.bytes;
            answer.bytes_reused += packed.bytes.saturating_sub(unpacked.bytes);
        }
        let (name, language) = (config.name, config.language);
        answer.entries.push(AnswerEntry { kind: Kind::Mount, name, language, digest: None, bytes, files });
    }
    drop(progress);
    match &layers {
        Layers::Of(export) if export.builder.name == to.name => {
            answer.left_out.push(format!("layers: {} is the builder that they would come from", to.name));
        }
        Layers::Of(export) if options.dry_run => answer.entries.push(export.planned()),
        Layers::Of(export) => whole = export.hand_over(&to, &mut answer)?,
        Layers::None | Layers::Without(_) => {}
    }
    show(&answer, &options.output, NOTHING)?;
    Ok(if whole { 0 } else { exit::FAILED })
}
