//! Rotary position embeddings: how configs spell them, and the table of angles that each asks for.
//!
//! Formulas are those of transformers' modeling_rope_utils. What depends on the length of a sequence there (dynamic, longrope) is
//! fixed by the most positions that an artifact is compiled for.

use crate::frontend::{FrontendError, Object, shown};
use std::f64::consts::PI;

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling.
    pub kind: RopeKind,
    /// True if pairs are (2i, 2i + 1), false if (i, i + rotary_dim / 2).
    pub interleaved: bool,
    /// Elements of a head that are rotated, even and at most all.
    pub rotary_dim: u64,
}

/// How rotary frequencies depart from theta^(-2i/dim).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeKind {
    /// They do not.
    Default,
    /// All are divided by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1's scaling by wavelength (see the `rope_table` op).
    Llama3 {
        /// Divides the frequency of long wavelengths.
        factor: f64,
        /// Wavelengths over original / low are long.
        low: f64,
        /// Wavelengths under original / high stay.
        high: f64,
        /// Positions the model was first trained on.
        original: u64,
    },
    /// A larger base for sequences longer than the model was trained on (NTK scaling).
    Dynamic {
        /// Of the length.
        factor: f64,
        /// Positions the model was trained on.
        trained: u64,
    },
    /// Frequencies between two numbers of turns are blended, lower ones divided (Peng et al., "YaRN").
    Yarn {
        /// The divisor.
        factor: f64,
        /// Positions the model was first trained on.
        original: u64,
        /// Frequencies of more turns over those positions stay.
        beta_fast: f64,
        /// Frequencies of fewer are divided.
        beta_slow: f64,
        /// The band's ends are rounded to whole dims.
        truncate: bool,
        /// cos and sin are multiplied by this.
        attention_factor: f64,
    },
    /// A divisor for each frequency, of two sets.
    LongRope {
        /// For lengths up to `original`.
        short: Vec<f64>,
        /// For longer ones.
        long: Vec<f64>,
        /// Positions the model was first trained on.
        original: u64,
        /// cos and sin are multiplied by this.
        attention_factor: f64,
    },
    /// A divisor for each frequency: GGUF's way of storing Llama 3.1's.
    Divided(Vec<f64>),
}

/// What is left of a scaling when the most positions are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Base.
    pub theta: f64,
    /// Divisors of the frequencies; empty: all 1.
    pub divisors: Vec<f64>,
    /// cos and sin are multiplied by this.
    pub scale: f64,
}

/// What of a head may be rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotated {
    /// The whole head.
    Whole,
    /// The part that `partial_rotary_factor` says.
    Part,
}

impl Rope {
    /// The frequencies for sequences of up to `positions`. Llama 3's scaling stays with the op.
    pub fn frequencies(&self, positions: u64) -> Frequencies {
        let plain = |divisors| Frequencies { theta: self.theta, divisors, scale: 1.0 };
        let pairs = self.rotary_dim / 2;
        match &self.kind {
            RopeKind::Default | RopeKind::Llama3 { .. } => plain(Vec::new()),
            RopeKind::Linear { factor } => plain(vec![*factor; pairs as usize]),
            RopeKind::Divided(divisors) => plain(divisors.clone()),
            RopeKind::Dynamic { factor, trained } => {
                let length = positions.max(*trained) as f64;
                let grown = factor * length / *trained as f64 - (factor - 1.0);
                // A head of one pair has one frequency, theta^0.
                let power =
                    if self.rotary_dim > 2 { self.rotary_dim as f64 / (self.rotary_dim - 2) as f64 } else { 0.0 };
                Frequencies { theta: self.theta * grown.powf(power), ..plain(Vec::new()) }
            }
            RopeKind::Yarn { attention_factor, .. } => {
                Frequencies { scale: *attention_factor, ..plain(self.yarn_divisors()) }
            }
            RopeKind::LongRope { short, long, original, attention_factor } => {
                let divisors = if positions > *original { long } else { short };
                Frequencies { scale: *attention_factor, ..plain(divisors.clone()) }
            }
        }
    }

    /// What a user should know of frequencies that were fixed by `positions`.
    pub fn note(&self, positions: u64) -> Option<String> {
        match &self.kind {
            RopeKind::Dynamic { trained, .. } => Some(format!(
                "rope scaling is dynamic: frequencies are those of {} positions (--max-seq), whatever a sequence's length",
                positions.max(*trained)
            )),
            RopeKind::LongRope { original, .. } => Some(format!(
                "rope scaling is longrope: the {} factors are used, since --max-seq {positions} is {} {original}",
                if positions > *original { "long" } else { "short" },
                if positions > *original { "over" } else { "at most" },
            )),
            _ => None,
        }
    }

    /// Divisors of the frequencies: 1 above the band, `factor` below it, blended by dim inside.
    fn yarn_divisors(&self) -> Vec<f64> {
        let RopeKind::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } = self.kind else {
            return Vec::new();
        };
        let dim = self.rotary_dim as f64;
        let of_turns = |turns: f64| dim * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (of_turns(beta_fast), of_turns(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let pairs = self.rotary_dim / 2;
        (0..pairs)
            .map(|i| {
                let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / (divided / factor + (1.0 - divided))
            })
            .collect()
    }

    /// Positions that the scaling reaches, where the model was made for `made_for`.
    pub fn reach(&self, made_for: u64) -> u64 {
        match self.kind {
            RopeKind::Dynamic { factor, .. } if factor > 1.0 => (made_for as f64 * factor) as u64,
            _ => made_for,
        }
    }

    /// Checks the numbers; `key` names the scaling in errors.
    pub(super) fn check(&self, c: &Object, head_dim: u64) -> Result<(), FrontendError> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        let pairs = self.rotary_dim / 2;
        if self.rotary_dim == 0 || !self.rotary_dim.is_multiple_of(2) || self.rotary_dim > head_dim {
            return Err(c.invalid(
                "rotary_dim",
                format!("{} of a head of {head_dim}; an even number up to it is expected", self.rotary_dim),
            ));
        }
        if !positive(self.theta) {
            return Err(c.invalid("rope_theta", format!("{}; a finite number > 0 is expected", self.theta)));
        }
        let wrong = |message: String| Err(c.invalid("rope_scaling", message));
        let length = |n: u64| n > 0 && n < 1 << 32;
        match &self.kind {
            RopeKind::Default => {}
            RopeKind::Linear { factor } if !positive(*factor) => {
                return wrong(format!("factor {factor}; a finite number > 0 is expected"));
            }
            RopeKind::Dynamic { factor, trained } if !(factor.is_finite() && *factor >= 1.0 && length(*trained)) => {
                return wrong(format!(
                    "factor {factor} over {trained} positions; factor >= 1 and positions > 0 are expected"
                ));
            }
            RopeKind::Llama3 { factor, low, high, original }
                if !(positive(*factor) && positive(*low) && high.is_finite() && high > low && length(*original)) =>
            {
                return wrong(format!(
                    "factor {factor}, low {low}, high {high}, original {original}; factor > 0, 0 < low < high and original > 0 \
                     are expected"
                ));
            }
            RopeKind::Yarn { factor, original, beta_fast, beta_slow, attention_factor, .. }
                if !([*factor, *beta_fast, *beta_slow, *attention_factor].into_iter().all(positive)
                    && length(*original)
                    && self.theta > 1.0) =>
            {
                return wrong(format!(
                    "factor {factor}, original {original}, beta_fast {beta_fast}, beta_slow {beta_slow}, attention_factor \
                     {attention_factor}; positive numbers and a theta over 1 are expected"
                ));
            }
            RopeKind::LongRope { short, long, original, attention_factor } => {
                for (name, list) in [("short_factor", short), ("long_factor", long)] {
                    divisors(c, name, list, pairs)?;
                }
                if !(positive(*attention_factor) && length(*original)) {
                    return wrong(format!(
                        "original {original}, attention_factor {attention_factor}; positive numbers are expected"
                    ));
                }
            }
            RopeKind::Divided(list) => divisors(c, "rope_freqs", list, pairs)?,
            _ => {}
        }
        Ok(())
    }
}

fn divisors(c: &Object, name: &str, list: &[f64], pairs: u64) -> Result<(), FrontendError> {
    if list.len() as u64 != pairs {
        return Err(c.invalid(name, format!("{} divisors; {pairs}, half of what is rotated, are expected", list.len())));
    }
    match list.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
        Some(d) => Err(c.invalid(name, format!("a divisor {d}; finite numbers > 0 are expected"))),
        None => Ok(()),
    }
}

/// The rotary embedding of heads of `head_dim` by the keys of a config: today's `rope_parameters` or the older `rope_theta` and
/// `rope_scaling`. `made_for` is the config's number of positions.
///
/// # Errors
/// Names the key that is missing, of another type, or unsupported.
pub fn read(c: &Object, head_dim: u64, rotated: Rotated) -> Result<Rope, FrontendError> {
    let today = c.object("rope_parameters")?;
    let scaling = match &today {
        Some(_) => None,
        None => c.object("rope_scaling")?,
    };
    read_parts(c, today.as_ref(), scaling.as_ref(), c.real("rope_theta")?.unwrap_or(10000.0), head_dim, rotated)
}

/// As [`read`], of given parts: `today`'s spelling, or a scaling beside `theta`.
fn read_parts(
    c: &Object,
    today: Option<&Object>,
    scaling: Option<&Object>,
    theta: f64,
    head_dim: u64,
    rotated: Rotated,
) -> Result<Rope, FrontendError> {
    let stated = match today {
        Some(r) => r.real("rope_theta")?,
        None => None,
    };
    let kind = match today.or(scaling) {
        Some(r) => kind(c, r)?,
        None => RopeKind::Default,
    };
    let rotary_dim = rotary_dim(c, today, &kind, head_dim, rotated)?;
    let rope = Rope { theta: stated.unwrap_or(theta), kind, interleaved: false, rotary_dim };
    rope.check(c, head_dim)?;
    Ok(rope)
}

/// The ropes of layers that slide and of those that do not, where they differ: `rope_parameters` by kind of layer, or the older
/// `rope_local_base_freq` (`local` if missing) beside the keys of the others.
///
/// # Errors
/// As [`read`].
pub fn read_of_kinds(c: &Object, head_dim: u64, local: f64) -> Result<[Rope; 2], FrontendError> {
    let today = c.object("rope_parameters")?;
    let of = |kind: &str| match &today {
        Some(r) => r.object(kind),
        None => Ok(None),
    };
    let scaling = match &today {
        Some(_) => None,
        None => c.object("rope_scaling")?,
    };
    let local = c.real("rope_local_base_freq")?.unwrap_or(local);
    let theta = c.real("rope_theta")?.unwrap_or(10000.0);
    let sliding = of("sliding_attention")?;
    let full = of("full_attention")?;
    Ok([
        read_parts(c, sliding.as_ref(), None, local, head_dim, Rotated::Whole)?,
        read_parts(c, full.as_ref(), scaling.as_ref(), theta, head_dim, Rotated::Whole)?,
    ])
}

/// Elements of a head that are rotated. A GGUF file says how many, whatever the family; a config gives a share, which families that
/// rotate whole heads do not read: transformers ignores it too, unless it scales frequencies by it.
fn rotary_dim(
    c: &Object,
    today: Option<&Object>,
    kind: &RopeKind,
    head_dim: u64,
    rotated: Rotated,
) -> Result<u64, FrontendError> {
    const PARTIAL: &str = "partial_rotary_factor";
    if let Some(dim) = c.unsigned("rotary_dim")? {
        return Ok(dim);
    }
    let mut found = None;
    for object in [today, Some(c)].into_iter().flatten() {
        if let (None, Some(part)) = (&found, object.real(PARTIAL)?) {
            found = Some((object, part));
        }
    }
    let Some((object, part)) = found.filter(|(_, part)| *part != 1.0) else { return Ok(head_dim) };
    if rotated == Rotated::Part {
        if !(part > 0.0 && part <= 1.0) {
            return Err(object.invalid(PARTIAL, format!("{part}; a number over 0, up to 1, is expected")));
        }
        return Ok((head_dim as f64 * part) as u64);
    }
    if *kind != RopeKind::Default {
        let message = format!("partial rotary embedding, {part} of a head, beside scaled frequencies; 1 is accepted");
        return Err(object.unsupported(PARTIAL, message));
    }
    tracing::warn!(
        "{}: {PARTIAL} is {part}, but this family rotates whole heads, here as in transformers",
        object.path().display()
    );
    Ok(head_dim)
}

fn kind(c: &Object, r: &Object) -> Result<RopeKind, FrontendError> {
    // `type` is the legacy spelling.
    let key = if r.get("rope_type").is_some() { "rope_type" } else { "type" };
    let name = r.text(key)?.unwrap_or("default");
    let user = format!("{} rope scaling", shown(name));
    let needed = |key: &str| r.needed_real(key, &user);
    let made_for = || c.needed("max_position_embeddings");
    // The config's own key goes first, as in transformers.
    let original = || {
        const KEY: &str = "original_max_position_embeddings";
        match (c.unsigned(KEY)?, r.unsigned(KEY)?) {
            (Some(n), _) | (None, Some(n)) => Ok(n),
            (None, None) => made_for(),
        }
    };
    let ratio = |original: u64| Ok::<f64, FrontendError>(made_for()? as f64 / original.max(1) as f64);
    Ok(match name {
        "default" => RopeKind::Default,
        "linear" => RopeKind::Linear { factor: needed("factor")? },
        "dynamic" => RopeKind::Dynamic { factor: needed("factor")?, trained: made_for()? },
        "llama3" => RopeKind::Llama3 {
            factor: needed("factor")?,
            low: needed("low_freq_factor")?,
            high: needed("high_freq_factor")?,
            original: match r.unsigned("original_max_position_embeddings")? {
                Some(n) => n,
                None => made_for()?,
            },
        },
        "yarn" => {
            let original = original()?;
            let factor = match r.real("factor")? {
                Some(factor) => factor,
                None => ratio(original)?,
            };
            let or =
                |key: &str, other: f64| Ok::<f64, FrontendError>(r.real(key)?.filter(|x| *x != 0.0).unwrap_or(other));
            let magnitude = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
            let attention_factor = match (r.real("attention_factor")?, or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?) {
                (Some(stated), _, _) => stated,
                (None, all, one) if all != 0.0 && one != 0.0 => magnitude(all) / magnitude(one),
                _ => magnitude(1.0),
            };
            RopeKind::Yarn {
                factor,
                original,
                beta_fast: or("beta_fast", 32.0)?,
                beta_slow: or("beta_slow", 1.0)?,
                truncate: r.flag("truncate")?.unwrap_or(true),
                attention_factor,
            }
        }
        "longrope" | "su" => {
            let original = original()?;
            let factor = match r.real("factor")? {
                Some(factor) => factor,
                None => ratio(original)?,
            };
            let derived = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
            RopeKind::LongRope {
                short: r.needed_reals("short_factor", &user)?,
                long: r.needed_reals("long_factor", &user)?,
                original,
                attention_factor: r.real("attention_factor")?.unwrap_or(derived),
            }
        }
        "divided" => RopeKind::Divided(r.needed_reals("divisors", &user)?),
        other => {
            return Err(r.unsupported(
                key,
                format!(
                    "rope type `{}`; default, linear, dynamic, llama3, yarn and longrope are accepted",
                    shown(other)
                ),
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(kind: RopeKind) -> Rope {
        Rope { theta: 10000.0, kind, interleaved: false, rotary_dim: 8 }
    }

    #[test]
    fn dynamic_bases_grow_past_the_trained_length() {
        let dynamic = rope(RopeKind::Dynamic { factor: 2.0, trained: 100 });
        assert_eq!(dynamic.frequencies(100).theta, 10000.0);
        // (2 * 150 / 100 - 1)^(8 / 6) times the base.
        assert!((dynamic.frequencies(150).theta - 10000.0 * 2f64.powf(8.0 / 6.0)).abs() < 1e-9);
        assert_eq!(dynamic.reach(100), 200);
    }

    #[test]
    fn longrope_takes_one_set_for_all_positions() {
        let long = RopeKind::LongRope { short: vec![1.0; 4], long: vec![3.0; 4], original: 64, attention_factor: 1.2 };
        let rope = rope(long);
        assert_eq!(rope.frequencies(64).divisors, [1.0; 4]);
        assert_eq!(rope.frequencies(65).divisors, [3.0; 4]);
        assert_eq!(rope.frequencies(65).scale, 1.2);
        assert!(rope.note(65).is_some_and(|n| n.contains("long factors")));
    }

    #[test]
    fn yarn_keeps_fast_frequencies_and_divides_slow_ones() {
        let yarn = rope(RopeKind::Yarn {
            factor: 4.0,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            attention_factor: 1.0,
        });
        // 4096 positions are 652 turns of dim 0; 65 of 1; 6.5 of 2; 0.65 of 3: the band is from floor(1.3) to ceil(2.8).
        assert_eq!(yarn.frequencies(1).divisors, [1.0, 1.0, 1.0 / (0.5 / 4.0 + 0.5), 4.0]);
    }
}
