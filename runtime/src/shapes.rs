//! A histogram of the shapes of a session's steps and of the variants that ran them. It is kept by the host, step by step, as
//! the step is enqueued: nothing of it is inside captured work. Off unless asked for.

use crate::artifact::{Manifest, Program};
use crate::log::{self, Level};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a step's shape is made of.
pub const DIMS: [&str; 5] = ["T", "B", "P", "R", "context"];

/// One dim's values over all steps of a variant.
#[derive(Clone, Copy, Debug)]
struct Extent {
    min: u64,
    max: u64,
    sum: u64,
}

/// Steps of one variant.
#[derive(Debug, Default)]
struct VariantLog {
    extents: Option<[Extent; DIMS.len()]>,
    /// Steps by the power of two at or above each dim.
    shapes: BTreeMap<[u64; DIMS.len()], u64>,
}

/// The steps of a session so far; written to its file when it is dropped.
#[derive(Debug)]
pub struct ShapeLog {
    path: PathBuf,
    /// By variant: what it assumes, and its steps.
    variants: Vec<(Value, VariantLog)>,
}

impl ShapeLog {
    /// An empty log of the variants of the entry of `program` that takes steps of sequences.
    pub fn new(path: PathBuf, manifest: &Manifest, program: &Program) -> ShapeLog {
        let entry = manifest.step().and_then(|entry| program.entries.get(entry));
        let guards = |variant: &crate::artifact::Variant| -> Value {
            let named = variant.guards.iter().filter_map(|g| {
                let symbol = manifest.symbols.get(g.symbol as usize)?;
                Some((symbol.name.clone(), json!([g.min, g.max])))
            });
            Value::Object(named.collect())
        };
        let variants = entry.map_or(&[][..], |e| &e.variants).iter();
        ShapeLog { path, variants: variants.map(|v| (guards(v), VariantLog::default())).collect() }
    }

    /// Notes that variant `variant` ran a step of these [`DIMS`].
    pub fn record(&mut self, variant: usize, dims: [u64; DIMS.len()]) {
        let Some((_, log)) = self.variants.get_mut(variant) else { return };
        let extents = log.extents.get_or_insert_with(|| dims.map(|d| Extent { min: d, max: d, sum: 0 }));
        for (extent, dim) in extents.iter_mut().zip(dims) {
            extent.min = extent.min.min(dim);
            extent.max = extent.max.max(dim);
            extent.sum = extent.sum.saturating_add(dim);
        }
        *log.shapes.entry(dims.map(|d| d.checked_next_power_of_two().unwrap_or(u64::MAX))).or_default() += 1;
    }

    /// `{steps, variants: [{variant, guards, steps, dims: {T: {min, max, mean}}, shapes: [{T: [from, to], .., steps}]}]}`.
    pub fn json(&self) -> Value {
        let steps = |log: &VariantLog| log.shapes.values().fold(0u64, |a, b| a.saturating_add(*b));
        let variants = self.variants.iter().enumerate().map(|(index, (guards, log))| {
            let count = steps(log);
            let extent = |e: &Extent| json!({"min": e.min, "max": e.max, "mean": e.sum as f64 / count.max(1) as f64});
            let extents = log.extents.iter().flatten();
            let dims = DIMS.iter().zip(extents).map(|(name, e)| ((*name).to_owned(), extent(e)));
            let shapes = log.shapes.iter().map(|(shape, steps)| {
                let ranges = DIMS.iter().zip(shape).map(|(name, to)| ((*name).to_owned(), json!([to / 2 + 1, to])));
                let mut row: serde_json::Map<String, Value> = ranges.collect();
                row.insert("steps".to_owned(), (*steps).into());
                Value::Object(row)
            });
            json!({
                "variant": index,
                "guards": guards,
                "steps": count,
                "dims": dims.collect::<serde_json::Map<String, Value>>(),
                "shapes": shapes.collect::<Vec<_>>(),
            })
        });
        let total = self.variants.iter().map(|(_, log)| steps(log)).fold(0, u64::saturating_add);
        json!({"steps": total, "variants": variants.collect::<Vec<_>>()})
    }
}

impl Drop for ShapeLog {
    fn drop(&mut self) {
        let text = format!("{:#}\n", self.json());
        if let Err(e) = std::fs::write(&self.path, text) {
            log::write(Level::Warn, format_args!("{}: the shapes are not written: {e}", self.path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_counted_by_powers_of_two() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shapes.json");
        let variants = vec![(json!({"T": [1, 1]}), VariantLog::default()), (json!({}), VariantLog::default())];
        let mut log = ShapeLog { path: path.clone(), variants };
        for context in 1..=5 {
            log.record(0, [1, 1, 1, 1, context]);
        }
        log.record(1, [33, 2, 4, 2, 64]);
        log.record(7, [1; 5]);
        drop(log);
        let found: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(found["steps"], 6);
        let decode = &found["variants"][0];
        assert_eq!((&decode["steps"], &decode["guards"]["T"]), (&json!(5), &json!([1, 1])));
        assert_eq!(decode["dims"]["context"], json!({"min": 1, "max": 5, "mean": 3.0}));
        let context: Vec<Value> =
            decode["shapes"].as_array().unwrap().iter().map(|s| json!([s["context"], s["steps"]])).collect();
        assert_eq!(context, [json!([[1, 1], 1]), json!([[2, 2], 1]), json!([[3, 4], 2]), json!([[5, 8], 1])]);
        assert_eq!(found["variants"][1]["shapes"][0]["T"], json!([33, 64]));
    }
}
