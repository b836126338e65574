//! Turns docker's text into the model and does nothing else.

use std::collections::BTreeMap;

use crate::model::{BuildStep, Builder, CacheRecord};

/// Parses lines of `docker buildx ls --format 'table {{.Name}} {{json .}}'`: a name, `*` if current, a JSON object.
/// buildx 0.13 prints a builder once for each node and once more, and tells the current one only by its star.
///
/// # Errors
/// Says which line is not of that form, or that there is none.
pub fn builders(text: &str) -> Result<Vec<Builder>, String> {
    let mut builders: Vec<Builder> = Vec::new();
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("NAME/NODE"));
    for line in lines {
        let (name, json) = match line.find('{') {
            Some(start) => line.split_at(start),
            None => return Err(format!("no JSON in {:?}", shorten(line))),
        };
        let mut builder: Builder =
            serde_json::from_str(json).map_err(|error| format!("{error} in {:?}", shorten(line)))?;
        if builder.name.is_empty() {
            return Err(format!("no name in {:?}", shorten(line)));
        }
        builder.current |= name.trim_end().ends_with('*');
        // The same releases tell both.
        builder.tells_gc_policy = json.contains("\"Current\":");
        if !builders.iter().any(|known| known.name == builder.name) {
            builders.push(builder);
        }
    }
    // Every docker context is a builder, so there is always one.
    if builders.is_empty() { Err("it lists no builder".into()) } else { Ok(builders) }
}

/// Parses `docker buildx du --verbose`, which every buildx prints, each in its own manner: 0.13 writes `Parent:` and
/// tabs, 0.29 `Parents:` with a list and spaces. A description may span lines and imitate fields, so what follows
/// `Description:` belongs to it up to the last field lines of the record.
///
/// # Errors
/// Says which record is not of that form.
pub fn records(text: &str, now: u64) -> Result<Vec<CacheRecord>, String> {
    let mut lines = text.lines().peekable();
    let mut records = Vec::new();
    while let Some(line) = lines.next() {
        let Some(("ID", id)) = field(line) else {
            if line.trim().is_empty() || line.starts_with("Reclaimable:") || line.starts_with("Total:") {
                continue;
            }
            if line.starts_with("Shared:") || line.starts_with("Private:") {
                continue;
            }
            return Err(format!("a record begins with {:?}", shorten(line)));
        };
        let mut record = CacheRecord { id: id.into(), ..Default::default() };
        if !is_record_id(id) {
            return Err(format!("{:?} is no record id", shorten(id)));
        }
        let mut complete = false;
        while let Some(line) = lines.next() {
            if let Some(parent) = line.strip_prefix(" - ") {
                record.parents.push(parent.trim().into());
                continue;
            }
            match field(line) {
                Some(("Parent" | "Parents", "")) => {}
                Some(("Parent" | "Parents", parents)) => {
                    record.parents.extend(parents.split([',', ' ']).filter(|id| !id.is_empty()).map(Into::into));
                }
                Some(("Created at", time)) => record.created = parse_time(time),
                Some(("Reclaimable", value)) => record.in_use = value == "false",
                Some(("Shared", value)) => record.shared = value == "true",
                Some(("Size", size)) => {
                    record.bytes = parse_size(size).ok_or_else(|| format!("the size {:?}", shorten(size)))?;
                }
                Some(("Description", first)) => {
                    record.description = first.into();
                    while lines.peek().is_some() && !is_tail(lines.clone()) {
                        record.description.push('\n');
                        record.description.push_str(lines.next().unwrap_or_default());
                    }
                }
                Some(("Last used", age)) => record.last_used = parse_age(age).map(|age| now.saturating_sub(age)),
                Some(("Type", kind)) => {
                    record.kind = kind.into();
                    complete = true;
                    break;
                }
                Some(("Usage count", count)) => record.uses = count.parse().unwrap_or_default(),
                Some(("Mutable", _)) => {}
                _ => return Err(format!("the line {:?} in the record {id}", shorten(line))),
            }
        }
        if !complete {
            return Err(format!("the record {id} ends early"));
        }
        records.push(record);
    }
    Ok(records)
}

/// Reads the plain progress of a build: lines such as `#5 [stage 2/3] RUN make`, `#5 CACHED` and `#5 DONE 0.6s`. A line
/// that a step itself prints has a time behind its number, and so is none of these.
pub fn steps(told: &str) -> Vec<BuildStep> {
    let mut steps: BTreeMap<u32, BuildStep> = BTreeMap::new();
    for line in told.lines() {
        let Some((number, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' ')) else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        if let Some(step) = steps.get_mut(&number) {
            step.cached |= rest == "CACHED";
            let done = rest.strip_prefix("DONE ").and_then(|time| time.trim_end_matches('s').parse().ok());
            step.seconds = done.unwrap_or(step.seconds);
        } else if let Some((place, text)) = rest.strip_prefix('[').and_then(|rest| rest.split_once("] "))
            && let (stage, place) = place.rsplit_once(' ').unwrap_or(("", place))
            && let Some(at) = place.split_once('/').and_then(|(at, _)| at.trim().parse().ok())
        {
            let step = BuildStep { stage: stage.trim().into(), number: at, text: text.into(), ..BuildStep::default() };
            steps.insert(number, step);
        }
    }
    steps.into_values().collect()
}

/// Returns true if the lines ahead end a record: `Usage count:`, `Last used:`, `Type:`, then the next record or totals.
fn is_tail<'a>(mut ahead: impl Iterator<Item = &'a str>) -> bool {
    while let Some((key, _)) = ahead.next().and_then(field) {
        match key {
            "Usage count" | "Last used" => {}
            "Type" => {
                let next = ahead.find(|line| !line.trim().is_empty());
                return next.is_none_or(|line| match field(line) {
                    Some(("ID", id)) => is_record_id(id),
                    Some((key, _)) => ["Shared", "Private", "Reclaimable", "Total"].contains(&key),
                    None => false,
                });
            }
            _ => return false,
        }
    }
    false
}

/// Returns true for what BuildKit makes as a record's id (25 letters and digits), or a test of it may.
pub fn is_record_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Splits `Key:  value`.
fn field(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    (!key.starts_with(char::is_whitespace)).then(|| (key, value.trim()))
}

fn shorten(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Parses docker's sizes, `8.192kB`: decimal units.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().trim_end_matches('*');
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != 'e' && c != '+').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let exponent = ["B", "kB", "MB", "GB", "TB", "PB", "EB"].iter().position(|known| *known == unit.trim())?;
    let number: f64 = number.parse().ok()?;
    Some((number * 1000f64.powi(exponent as i32)).round() as u64)
}

/// Parses `2026-11-23 18:16:42.08 +0000 UTC` and RFC 3339 into seconds since 1970. An engine may tell its local time.
pub fn parse_time(text: &str) -> Option<u64> {
    let (start, rest) = text.split_at_checked(19)?;
    let time = humantime::parse_rfc3339(&format!("{}Z", start.replace(' ', "T"))).ok()?;
    let seconds = time.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
    let Some(sign) = rest.find(['+', '-']) else { return Some(seconds) };
    let (hours, minutes) = rest.get(sign + 1..)?.split_at_checked(2)?;
    let minutes = minutes.trim_start_matches(':').get(..2)?;
    let ahead = hours.parse::<u64>().ok()? * 3600 + minutes.parse::<u64>().ok()? * 60;
    if rest[sign..].starts_with('+') { seconds.checked_sub(ahead) } else { Some(seconds + ahead) }
}

/// Parses docker's ages, `About an hour ago`, into seconds.
pub fn parse_age(text: &str) -> Option<u64> {
    let span = text.trim().trim_end_matches(" ago");
    let (count, unit) = match span {
        "Less than a second" => return Some(0),
        "About a minute" => (1, "minutes"),
        "About an hour" => (1, "hours"),
        _ => {
            let (count, unit) = span.split_once(' ')?;
            (count.parse::<u64>().ok()?, unit)
        }
    };
    let seconds = match unit.trim_end_matches('s') {
        "second" => 1,
        "minute" => 60,
        "hour" => 3600,
        "day" => 86_400,
        "week" => 7 * 86_400,
        "month" => 30 * 86_400,
        "year" => 365 * 86_400,
        _ => return None,
    };
    count.checked_mul(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "ID:\t\txx79ps97hb7kky73a1w8n38im\nParent:\tj1dy76309k5ed3t5xed8o0j38\n\
        Created at:\t2026-11-23 18:14:34.175208694 +0000 UTC\nMutable:\ttrue\nReclaimable:\ttrue\nShared:\t\tfalse\n\
        Size:\t\t621B\nDescription:\tcached mount /t from exec sh -c echo one\nID: foo\nType:\t\tevil\n\n with id \"//t\"\n\
        Usage count:\t1\nLast used:\t2 hours ago\nType:\t\texec.cachemount\n\nReclaimable:\t621B\nTotal:\t\t621B\n";
    const NEW: &str = "ID:           53b1vadg8gyhejjxa3z63y6fp\nParents:\n - kskwe54ko4yvpf3132a4ihluj\n - abc\n\
        Created at:   2026-11-23 18:16:43.15495456 +0000 UTC\nMutable:      false\nReclaimable:  false\n\
        Shared:       true\nSize:         8.192kB\nDescription:  [2/3] RUN x\nUsage count:  1\n\
        Last used:    About an hour ago\nType:         regular\n\nReclaimable:\t0B\nTotal:\t8.192kB\n";

    #[test]
    fn records_of_both_manners_are_read() {
        let old = records(OLD, 100_000).unwrap();
        assert_eq!(old.len(), 1);
        assert_eq!(old[0].parents, ["j1dy76309k5ed3t5xed8o0j38"]);
        assert_eq!((old[0].bytes, old[0].last_used, old[0].uses), (621, Some(100_000 - 7200), 1));
        assert_eq!(old[0].mount().unwrap().id.as_deref(), Some("/t"));
        let new = records(NEW, 100_000).unwrap();
        assert_eq!(new[0].parents, ["kskwe54ko4yvpf3132a4ihluj", "abc"]);
        assert_eq!((new[0].bytes, new[0].in_use, new[0].shared), (8192, true, true));
        assert_eq!(new[0].created, Some(1_795_457_803));
    }

    #[test]
    fn half_a_record_is_an_error() {
        for cut in [30, 120, 300, OLD.len() - 60] {
            assert!(records(&OLD[..cut], 0).is_err(), "cut at {cut}");
        }
        assert!(records("garbage\n", 0).is_err());
        assert_eq!(records("Reclaimable:\t0B\nTotal:\t\t0B\n", 0).unwrap(), []);
    }

    #[test]
    fn builders_are_read_once_each_with_the_current_one() {
        let text = "NAME/NODE \ndefault* {\"Name\":\"default\",\"Driver\":\"docker\",\"Nodes\":null}\n \\_ default \
                    {\"Name\":\"default\",\"Driver\":\"docker\"}\nb {\"Name\":\"b\",\"Current\":false}\n";
        let found = builders(text).unwrap();
        assert_eq!(found.len(), 2);
        assert!(found[0].current && !found[1].current);
        assert!(builders("default* {\"Name\":\"def").is_err());
        assert!(builders("rubbish").is_err());
    }

    #[test]
    fn sizes_and_ages_are_read_back() {
        for (text, bytes) in [("0B", 0), ("5.005MB", 5_005_000), ("1000kB", 1_000_000), ("12.35GB*", 12_350_000_000)] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        assert_eq!(parse_size("5 parsecs"), None);
        assert_eq!(parse_age("3 weeks ago"), Some(3 * 7 * 86_400));
        assert_eq!(parse_age("yesterday"), None);
        assert_eq!(parse_age(&format!("{} years ago", u64::MAX)), None);
    }

    #[test]
    fn a_time_of_any_zone_is_the_same_moment() {
        for text in [
            "2026-11-23T18:16:43Z",
            "2026-11-23T18:16:43.15495456Z",
            "2026-11-24T03:16:43.154+09:00",
            "2026-11-23T14:46:43-03:30",
            "2026-11-23 18:16:43.15495456 +0000 UTC",
            "2026-11-24 03:16:43 +0900 JST",
            "2026-11-23 15:16:43.1 -0300 -03",
            "2026-11-23 18:16:43",
        ] {
            assert_eq!(parse_time(text), Some(1_795_457_803), "{text}");
        }
        for text in ["", "2026-11-23", "2026-11-23T18:16:43+", "2026-11-23T18:16:43+9", "2026-11-23T18:16:43+ü:00"] {
            assert_eq!(parse_time(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "(ID:\t[a-z]{0,30}\n|Size: ?[0-9.eB]*\n|Type: x\n|[^\n]*\n| - [a-z]*\n){0,12}") {
            let _ = records(&text, 0);
            let _ = builders(&text);
            let _ = (parse_size(&text), parse_age(&text), parse_time(&text));
        }
    }
}
