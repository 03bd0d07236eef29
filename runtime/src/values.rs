//! What every launch of a session left behind, as statistics and a histogram of magnitudes. Values are read between launches,
//! which a captured step does not have: such a session runs its launches one by one. Off unless asked for.

use crate::DType;
use crate::artifact::{Dim, LaunchResult, Manifest, Program, Variant};
use crate::error::{Error, Result};
use crate::graph::{Dims, Regions};
use crate::log::{self, Level};
use half::{bf16, f16};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Values of one result over all steps.
#[derive(Clone, Debug, Default)]
struct Statistics {
    finite: u64,
    nan: u64,
    infinite: u64,
    zero: u64,
    /// Smallest and largest finite value.
    ends: Option<(f64, f64)>,
    sum: f64,
    /// Finite values other than 0 by the power of two at or below their magnitude.
    magnitudes: BTreeMap<i32, u64>,
}

impl Statistics {
    fn add(&mut self, value: f64) {
        if value.is_nan() {
            self.nan += 1;
            return;
        }
        if value.is_infinite() {
            self.infinite += 1;
            return;
        }
        self.finite += 1;
        self.sum += value;
        let (low, high) = self.ends.unwrap_or((value, value));
        self.ends = Some((low.min(value), high.max(value)));
        match value == 0.0 {
            true => self.zero += 1,
            // Every dtype that is read is a normal f64, or 0.
            false => *self.magnitudes.entry(((value.to_bits() >> 52) & 0x7ff) as i32 - 1023).or_default() += 1,
        }
    }

    fn json(&self) -> Value {
        let ends = self.ends.map(|(low, high)| json!([low, high, low.abs().max(high.abs())]));
        let end = |i: usize| ends.as_ref().map_or(Value::Null, |e| e[i].clone());
        json!({
            "finite": self.finite, "nan": self.nan, "infinite": self.infinite, "zero": self.zero,
            "min": end(0), "max": end(1), "absmax": end(2),
            "mean": if self.finite > 0 { json!(self.sum / self.finite as f64) } else { Value::Null },
            "magnitudes": self.magnitudes.iter().map(|(exponent, n)| json!([exponent, n])).collect::<Vec<_>>(),
        })
    }
}

/// What is known of one launch.
#[derive(Debug)]
struct LaunchLog {
    sources: Vec<String>,
    kernel: String,
    results: Vec<(LaunchResult, Statistics)>,
}

/// The launches of a session; written to its file when it is dropped.
#[derive(Debug)]
pub struct ValueLog {
    path: PathBuf,
    /// Where each entry's variants begin.
    first: Vec<usize>,
    variants: Vec<(u64, Vec<LaunchLog>)>,
}

impl ValueLog {
    /// An empty log of `program`'s entries.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the artifact does not say where results are.
    pub fn new(path: PathBuf, manifest: &Manifest, program: &Program) -> Result<ValueLog> {
        let launches = |variant: &Variant| {
            let log = |launch: &crate::artifact::Launch| LaunchLog {
                sources: manifest.sources.get(launch.source as usize).cloned().unwrap_or_default(),
                kernel: program.kernels.get(launch.kernel as usize).map(|k| k.name.clone()).unwrap_or_default(),
                results: launch.results.iter().map(|r| (r.clone(), Statistics::default())).collect(),
            };
            (0, variant.launches.iter().map(log).collect::<Vec<_>>())
        };
        let of =
            program.entries.iter().scan(0, |next, entry| Some(std::mem::replace(next, *next + entry.variants.len())));
        let first = of.collect();
        let variants: Vec<_> = program.entries.iter().flat_map(|entry| &entry.variants).map(launches).collect();
        if variants.iter().flat_map(|(_, launches)| launches).all(|l| l.results.is_empty()) {
            let message =
                "the artifact does not say what its launches leave behind; compile it without --set record_results=0";
            return Err(Error::Unsupported(message.into()));
        }
        Ok(ValueLog { path, first, variants })
    }

    /// Reads what launch `launch` of variant `variant` of entry `entry` left, in a step of these dims. Nothing may be running.
    ///
    /// # Errors
    /// If a result does not lie in its region.
    pub fn record(
        &mut self,
        (entry, variant, launch): (usize, usize, usize),
        manifest: &Manifest,
        dims: &Dims,
        regions: &Regions,
    ) -> Result<()> {
        let at = self.first.get(entry).map_or(usize::MAX, |first| first + variant);
        let Some((steps, launches)) = self.variants.get_mut(at) else { return Ok(()) };
        *steps += u64::from(launch == 0);
        let results = launches.get_mut(launch).map_or(&mut [][..], |l| &mut l.results);
        for (result, statistics) in results {
            let size = |d: &Dim| match d {
                Dim::Const(n) => *n,
                Dim::Symbol(name) => manifest.symbol(name).map_or(0, |(i, _)| dims.get(i).max(0) as u64),
            };
            let shape: Vec<u64> = result.shape.iter().map(size).collect();
            read(result, &shape, regions, &mut |value| statistics.add(value))?;
        }
        Ok(())
    }

    /// `{variants: [{variant, steps, launches: [{launch, sources, kernel, results: [{dtype, shape, finite, nan, ..}]}]}]}`.
    pub fn json(&self) -> Value {
        let variants = self.variants.iter().enumerate().map(|(index, (steps, launches))| {
            let launches = launches.iter().enumerate().map(|(launch, log)| {
                let results = log.results.iter().map(|(result, statistics)| {
                    let mut value = statistics.json();
                    value["dtype"] = result.dtype.name().into();
                    value["shape"] = serde_json::to_value(&result.shape).unwrap_or_default();
                    value
                });
                let results: Vec<Value> = results.collect();
                json!({"launch": launch, "sources": log.sources, "kernel": log.kernel, "results": results})
            });
            json!({"variant": index, "steps": steps, "launches": launches.collect::<Vec<_>>()})
        });
        json!({"variants": variants.collect::<Vec<_>>()})
    }
}

/// Hands every element of a result to `take`, row by row.
fn read(result: &LaunchResult, shape: &[u64], regions: &Regions, take: &mut dyn FnMut(f64)) -> Result<()> {
    let outside = || Error::Driver(format!("a result at {:?} does not lie in its region", result.at));
    let buffer = regions.buffer(result.at.region).ok_or_else(outside)?;
    let bytes = result.dtype.block_bytes() as u64;
    let (width, step) = match (shape.last(), result.strides.last()) {
        (Some(width), Some(step)) => (*width, *step),
        _ => (1, 1),
    };
    let outer = shape.get(..shape.len().saturating_sub(1)).unwrap_or_default();
    let rows = outer.iter().try_fold(1u64, |n, d| n.checked_mul(*d)).ok_or_else(outside)?;
    if width == 0 {
        return Ok(());
    }
    let span = step.checked_mul(width - 1).and_then(|n| n.checked_add(1)?.checked_mul(bytes)).ok_or_else(outside)?;
    let mut row = vec![0u8; usize::try_from(span).ok().filter(|n| *n <= buffer.len()).ok_or_else(outside)?];
    for index in 0..rows {
        let (mut rest, mut element) = (index, 0u64);
        for (size, stride) in outer.iter().zip(&result.strides).rev() {
            element = (rest % size).checked_mul(*stride).and_then(|n| n.checked_add(element)).ok_or_else(outside)?;
            rest /= size;
        }
        let start = element.checked_mul(bytes).and_then(|n| n.checked_add(result.at.offset)).ok_or_else(outside)?;
        buffer.read(usize::try_from(start).map_err(|_| outside())?, &mut row)?;
        for raw in row.chunks((step.max(1) * bytes) as usize) {
            match (result.dtype, raw) {
                (DType::F32, [a, b, c, d, ..]) => take(f64::from(f32::from_le_bytes([*a, *b, *c, *d]))),
                (DType::I32, [a, b, c, d, ..]) => take(f64::from(i32::from_le_bytes([*a, *b, *c, *d]))),
                (DType::F16, [a, b, ..]) => take(f64::from(f16::from_le_bytes([*a, *b]))),
                (DType::BF16, [a, b, ..]) => take(f64::from(bf16::from_le_bytes([*a, *b]))),
                (dtype, _) => return Err(Error::Unsupported(format!("values of {dtype} are not read"))),
            }
        }
    }
    Ok(())
}

impl Drop for ValueLog {
    fn drop(&mut self) {
        let text = format!("{:#}\n", self.json());
        if let Err(e) = std::fs::write(&self.path, text) {
            log::write(Level::Warn, format_args!("{}: the values are not written: {e}", self.path.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_tell_numbers_from_what_is_none() {
        let mut found = Statistics::default();
        [1.0, -3.0, 0.0, 0.75, f64::NAN, f64::INFINITY].into_iter().for_each(|v| found.add(v));
        let json = found.json();
        assert_eq!(json["finite"], 4);
        assert_eq!((&json["nan"], &json["infinite"], &json["zero"]), (&json!(1), &json!(1), &json!(1)));
        assert_eq!((&json["min"], &json["max"], &json["absmax"]), (&json!(-3.0), &json!(1.0), &json!(3.0)));
        assert_eq!(json["mean"], json!(-1.25 / 4.0));
        assert_eq!(json["magnitudes"], json!([[-1, 1], [0, 1], [1, 1]]));
        assert_eq!(Statistics::default().json()["mean"], Value::Null);
    }
}
