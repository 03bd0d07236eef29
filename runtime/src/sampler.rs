//! From logits to a token: greedy, or temperature with nucleus (top-p) sampling from a seeded generator.

use crate::error::{Error, Result};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this.
    pub top_p: f32,
    /// Seed of the generator: the same seed gives the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_p: 1.0, seed: 0 }
    }
}

/// Chooses tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
    order: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if the temperature is negative or not finite, or top-p is outside `0 < p <= 1`.
    pub fn new(sampling: Sampling) -> Result<Sampler> {
        if !sampling.temperature.is_finite() || sampling.temperature < 0.0 {
            return Err(Error::InvalidInput(format!("temperature {} is not 0 or positive", sampling.temperature)));
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return Err(Error::InvalidInput(format!("top-p {} is outside 0 < p <= 1", sampling.top_p)));
        }
        Ok(Sampler { sampling, state: sampling.seed, order: Vec::new() })
    }

    /// The next token for `logits` of `[vocab]`. Ties go to the lower id; NaN never wins, and plus infinity leaves nothing to others.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] if no logit is greater than minus infinity.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        let best =
            argmax(logits).ok_or_else(|| Error::InvalidInput("no logit is greater than minus infinity".into()))?;
        if self.sampling.temperature == 0.0 {
            return Ok(best as u32);
        }
        let (max, temperature) = (logits[best], self.sampling.temperature);
        self.order.clear();
        // The best weighs 1 whatever the temperature: its reciprocal may be infinite, and so may be the best logit itself.
        let weight = |x: f32| if x == max { 1.0 } else { ((x - max) / temperature).exp() };
        let weights = logits.iter().zip(0u32..).map(|(x, id)| (weight(*x), id));
        // Below 1e-12 of the best: out of reach of any sum of a vocabulary's worth.
        self.order.extend(weights.filter(|(w, _)| *w > 1e-12));
        self.order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let total: f64 = self.order.iter().map(|(w, _)| f64::from(*w)).sum();
        let mut kept = 0.0;
        let nucleus = f64::from(self.sampling.top_p) * total;
        let count = self.order.iter().take_while(|(w, _)| {
            let before = kept;
            kept += f64::from(*w);
            before < nucleus
        });
        let count = count.count().max(1);
        let kept: f64 = self.order[..count].iter().map(|(w, _)| f64::from(*w)).sum();
        let mut at = self.uniform() * kept;
        for (weight, id) in &self.order[..count] {
            at -= f64::from(*weight);
            if at < 0.0 {
                return Ok(*id);
            }
        }
        Ok(self.order[count - 1].1)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), as a number in `0..1`.
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.state;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Index of the largest value, the first of equals; `None` if none is greater than minus infinity.
pub fn argmax(values: &[f32]) -> Option<usize> {
    // Eight lanes keep the loop free of a serial dependency; NaN compares false and is skipped.
    let mut lanes = [f32::NEG_INFINITY; 8];
    let chunks = values.chunks_exact(8);
    let mut max = f32::NEG_INFINITY;
    for value in chunks.remainder() {
        max = if *value > max { *value } else { max };
    }
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    for lane in lanes {
        max = if lane > max { lane } else { max };
    }
    if max == f32::NEG_INFINITY { None } else { values.iter().position(|v| *v == max) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals_and_skips_nan() {
        let mut logits = vec![0.0f32; 21];
        (logits[3], logits[17], logits[5]) = (2.0, 2.0, f32::NAN);
        assert_eq!(argmax(&logits), Some(3));
        assert_eq!(argmax(&[f32::NAN; 9]), None);
        assert_eq!(Sampler::new(Sampling::default()).unwrap().next(&logits).unwrap(), 3);
    }

    #[test]
    fn samples_follow_the_distribution() {
        let logits = [0.0f32, 1.0, 2.0, -50.0];
        let mut sampler = Sampler::new(Sampling { temperature: 1.0, top_p: 1.0, seed: 7 }).unwrap();
        let mut counts = [0u32; 4];
        for _ in 0..20_000 {
            counts[sampler.next(&logits).unwrap() as usize] += 1;
        }
        let total: f32 = logits.iter().map(|x| x.exp()).sum();
        for (count, logit) in counts.iter().zip(&logits) {
            assert!((*count as f32 / 20_000.0 - logit.exp() / total).abs() < 0.02, "{counts:?}");
        }
        let mut nucleus = Sampler::new(Sampling { temperature: 1.0, top_p: 0.5, seed: 7 }).unwrap();
        assert!((0..1000).all(|_| nucleus.next(&logits).unwrap() == 2));
    }

    #[test]
    fn extreme_temperatures_and_logits_leave_the_best() {
        let ends = [f32::MIN, -1.0, 0.5, f32::NAN, f32::NEG_INFINITY, 0.25];
        for temperature in [f32::from_bits(1), 1e-39, f32::MIN_POSITIVE, 1e-6] {
            let mut sampler = Sampler::new(Sampling { temperature, top_p: 1.0, seed: 3 }).unwrap();
            assert!((0..100).all(|_| sampler.next(&ends).unwrap() == 2), "{temperature}");
        }
        let infinite = [f32::MAX, f32::INFINITY, f32::NAN, 0.0, f32::INFINITY, f32::NEG_INFINITY];
        for temperature in [1e-39, 1.0, f32::MAX] {
            let mut sampler = Sampler::new(Sampling { temperature, top_p: 0.9, seed: 3 }).unwrap();
            let drawn: Vec<u32> = (0..200).map(|_| sampler.next(&infinite).unwrap()).collect();
            assert!(
                drawn.iter().all(|id| [1, 4].contains(id)) && drawn.contains(&1) && drawn.contains(&4),
                "{temperature}"
            );
        }
        let mut greedy = Sampler::new(Sampling::default()).unwrap();
        assert_eq!(greedy.next(&infinite).unwrap(), 1);
        assert!(greedy.next(&[f32::NAN, f32::NEG_INFINITY]).is_err());
    }

    #[test]
    fn bad_settings_are_refused() {
        for (temperature, top_p) in [(-1.0, 1.0), (f32::NAN, 1.0), (1.0, 0.0), (1.0, 1.5)] {
            assert!(Sampler::new(Sampling { temperature, top_p, seed: 0 }).is_err());
        }
    }
}
