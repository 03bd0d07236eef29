//! Where NaN among the logits came from: the tokens are evaluated again, launch by launch on the host, with the values of each.

use super::SessionArgs;
use super::eval::EvalOptions;
use crate::artifact::{Artifact, WeightMode};
use crate::cpu;
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::weights::{self, Source, WeightOptions};
use serde_json::Value;

/// How many of the logits are NaN, if any.
pub fn count(logits: &[f32]) -> Option<usize> {
    let count = logits.iter().filter(|x| x.is_nan()).count();
    (count > 0).then_some(count)
}

/// What `eval` ends with when `count` of its logits are NaN.
pub fn failure(options: &EvalOptions, artifact: &Artifact, ids: &[i32], count: usize) -> Error {
    let found = match launches(options, artifact, ids) {
        Ok(launches) => describe(&launches, weights_at_fault(options, artifact).as_deref()),
        Err(e) => format!("the op that made the first is not known: {e}"),
    };
    Error::CheckFailed(format!("{count} logits are NaN; they are in {}\n  {found}", options.logits.display()))
}

/// What is known of a launch that ran, in the order of launches.
struct Ran {
    sources: String,
    dtype: String,
    nan: bool,
    infinite: bool,
}

/// Runs the tokens with values. The values go through a file beside the logits, which does not stay.
fn launches(options: &EvalOptions, artifact: &Artifact, ids: &[i32]) -> Result<Vec<Ran>> {
    if artifact.manifest().world > 1 {
        return Err(Error::Unsupported("launches of several ranks are not run one by one; compile with --tp 1".into()));
    }
    let mut name = options.logits.clone().into_os_string();
    name.push(format!(".{}.values", std::process::id()));
    let path = std::path::PathBuf::from(name);
    let args = SessionArgs {
        device: DeviceChoice::Host,
        values: Some(path.clone()),
        uncaptured: true,
        shapes: None,
        ..options.session.clone()
    };
    let ran = args.session(artifact, 1, Some(ids.len())).and_then(|mut session| {
        session.eval(ids, options.stepwise)?;
        session.close()
    });
    let text = std::fs::read(&path);
    // It may never have been written.
    let _ = std::fs::remove_file(&path);
    ran?;
    let text = text.map_err(|e| Error::io(&path, "cannot read", e))?;
    let values: Value = serde_json::from_slice(&text).map_err(|e| Error::corrupt(&path, "values", e.to_string()))?;
    Ok(read(&values))
}

/// The launches of the variants that ran.
fn read(values: &Value) -> Vec<Ran> {
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let variants = list(values, "variants");
    let ran = variants.iter().filter(|v| v.get("steps").and_then(Value::as_u64).unwrap_or(0) > 0);
    let launch = |launch: Value| {
        let results = list(&launch, "results");
        let any = |key: &str| results.iter().any(|r| r.get(key).and_then(Value::as_u64).unwrap_or(0) > 0);
        let sources: Vec<String> =
            list(&launch, "sources").iter().filter_map(|s| Some(s.as_str()?.to_owned())).collect();
        let dtype = results.first().and_then(|r| r.get("dtype")?.as_str()).unwrap_or_default().to_owned();
        Ran { sources: sources.join(", "), dtype, nan: any("nan"), infinite: any("infinite") }
    };
    ran.flat_map(|v| list(v, "launches")).map(launch).collect()
}

/// The first tensor of the checkpoint that is not finite, where its files are at hand.
fn weights_at_fault(options: &EvalOptions, artifact: &Artifact) -> Option<String> {
    if matches!(artifact.manifest().weights.mode, WeightMode::Random(_)) {
        return None;
    }
    let threads = cpu::default_threads();
    let cache = options.session.cache.clone().or_else(weights::cache_dir);
    let places = WeightOptions { weights_file: options.session.weights_file.clone(), cache, threads, rank: 0 };
    let source = Source::find(artifact, &places).ok()?;
    source.first_not_finite(threads).map(str::to_owned)
}

/// The first launch with NaN, what came before, and what would help.
fn describe(launches: &[Ran], weight: Option<&str>) -> String {
    let Some(at) = launches.iter().position(|l| l.nan) else {
        return "run launch by launch, no op makes one: their order matters, which is a fault of the compiler".into();
    };
    let nan = &launches[at];
    let mut text = format!("the first came from {} ({})", nan.sources, nan.dtype);
    let overflow = launches[..=at].iter().find(|l| l.infinite);
    if let Some(first) = overflow.filter(|l| l.sources != nan.sources) {
        text += &format!(", after {} ({}) had overflowed", first.sources, first.dtype);
    }
    let narrow = launches[..=at].iter().any(|l| l.dtype == "f16");
    match (weight, narrow) {
        (Some(tensor), _) => {
            text += &format!("; no --dtype would hold: the checkpoint's tensor {tensor} itself is not finite");
        }
        (None, true) => text += "; --dtype bf16 or --dtype f32 would hold: f16 ends at 65504, they at 3e38",
        (None, false) => text += "; no --dtype would hold: none has a wider range than this one",
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(sources: &str, dtype: &str, nan: bool, infinite: bool) -> Ran {
        Ran { sources: sources.into(), dtype: dtype.into(), nan, infinite }
    }

    #[test]
    fn the_first_is_named_with_what_helps() {
        let finite = || ran("embed_tokens", "f16", false, false);
        let text = describe(&[finite(), ran("a.down_proj", "f16", false, true), ran("norm", "f16", true, false)], None);
        assert!(text.contains("from norm (f16), after a.down_proj (f16) had overflowed; --dtype bf16"), "{text}");
        let text = describe(&[finite(), ran("a", "f16", true, true), ran("b", "f16", true, false)], None);
        assert!(text.contains("from a (f16); --dtype bf16 or --dtype f32"), "{text}");
        let text = describe(&[ran("a", "bf16", false, true), ran("b", "f32", true, false)], None);
        assert!(text.contains("no --dtype would hold"), "{text}");
        let text = describe(&[finite(), ran("a", "f16", true, false)], Some("model.w"));
        assert!(text.contains("model.w itself is not finite") && text.contains("no --dtype"), "{text}");
        assert!(describe(&[finite()], None).contains("no op"));
    }

    #[test]
    fn nan_is_counted_and_infinity_is_not() {
        assert_eq!(count(&[0.0, f32::INFINITY, f32::NEG_INFINITY]), None);
        assert_eq!(count(&[f32::NAN, 1.0, -f32::NAN]), Some(2));
    }
}
