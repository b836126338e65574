//! `docker cache export --to-builder`: from builder to builder, without a bundle.

use anyhow::{Context as _, Result, bail};

use super::super::bundles::Carrying;
use super::super::layers::{self, Layers};
use super::{Answer, AnswerEntry, From, Item, NOTHING, Plan, left_out_of, plan_mounts, show, tree};
use crate::builders::Builders;
use crate::bundle::TreeConfig;
use crate::cli::Export;
use crate::docker::BuilderRef;
use crate::inside::pack::Packed;
use crate::model::Kind;
use crate::place::between;

/// Copies cache mounts, and then layers, which a prune of what the mounts needed could make the other builder forget. Volumes
/// belong to no builder.
pub fn to_builder(builders: &Builders, options: &Export) -> Result<u8> {
    let name = options.to_builder.as_deref().unwrap_or_default();
    let to = builders.one(Some(name))?;
    let to = builders.reference(to);
    let mut plan = Plan::default();
    plan_mounts(builders, options, &mut plan)?;
    // One BuildKit may have several names. One that cannot be asked yet is started by the copy.
    let there = to.records().unwrap_or_default();
    let shares = plan.builders.iter().filter(|from| from.builder.name != to.name && from.shares(&there));
    let own: Vec<&str> = [to.name.as_str()].into_iter().chain(shares.map(|from| from.builder.name.as_str())).collect();
    let is_own = |from: &BuilderRef| own.contains(&from.name.as_str());
    if !plan.builders.is_empty() && plan.builders.iter().all(|from| is_own(&from.builder)) {
        let name = own.join(", that is ");
        bail!("{name} is where the mounts are\nhint: name the builder to copy from by `--builder`");
    }
    let layers = match options.selection.wants(Kind::Layer) {
        true => layers::plan_export(builders, options)?,
        false => Layers::None,
    };
    let mut failed = false;
    if let Layers::Without(why) = &layers {
        plan.left_out.push(why.clone());
        // Who names a directory means layers.
        failed = options.build.directory.is_some();
    }
    let left_out = std::mem::take(&mut plan.left_out);
    let mut answer = Answer { version: 1, left_out, failed, ..Answer::default() };
    // Packed here and unpacked there.
    let bytes = 2 * plan.items.iter().map(|item| item.estimate.0).sum::<u64>();
    let mut progress = Carrying::new("Copying", (0, bytes), "Sending", options.output.telling());
    for item in plan.items {
        let Item { config, estimate, from: From::Mount(at, mount, sure) } = item else { continue };
        let from = &plan.builders[at].builder;
        let (mut bytes, mut files) = (estimate.0, None);
        if is_own(from) {
            continue;
        }
        if !options.dry_run {
            let target = |packed: &Packed| {
                let Packed { table, layers, .. } = packed.clone();
                (packed.files > 0 || sure).then(|| TreeConfig { table, layers, ..config.clone() }.target())
            };
            let done = between::carry(from, &to, &mount, tree(&config, None), target, &mut |told| progress.tell(told));
            progress.next();
            let (packed, unpacked) = done.with_context(|| format!("mount {}", config.name))?;
            answer.left_out.extend(left_out_of(&config, &packed));
            let Some(unpacked) = unpacked else { continue };
            (bytes, files) = (packed.bytes, Some(packed.files));
            answer.note(unpacked);
        }
        let (name, language) = (config.name, config.language);
        answer.entries.push(AnswerEntry { kind: Kind::Mount, name, language, bytes, files, ..AnswerEntry::default() });
    }
    drop(progress);
    match &layers {
        Layers::Of(export) if is_own(&export.builder) => {
            answer.left_out.push(format!("layers: {} is the builder that they would come from", to.name));
        }
        Layers::Of(export) if options.dry_run => answer.entries.push(export.planned()),
        Layers::Of(export) => answer.failed = !export.hand_over(&to, &mut answer)?,
        Layers::None | Layers::Without(_) => {}
    }
    show(&answer, &options.output, NOTHING)
}
