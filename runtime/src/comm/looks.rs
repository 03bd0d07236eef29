//! How long programs of a GPU have waited for one thing, by the counts of looks that they leave beside the abort word.
//!
//! Any waiting thread leaves its own count, each from time to time, so counts of one wait differ a little and come in any order; a wait
//! that ends leaves its last count behind; the next one begins at 0.

use std::time::{Duration, Instant};

/// A count this high starts again at 0 while the same wait goes on.
const NEARLY_WRAPPED: u32 = u32::MAX / 8 * 7;

/// The count as it was seen, and since when it rises.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    highest: u32,
    rose: Instant,
    /// None while nothing rises.
    since: Option<Instant>,
}

impl Looks {
    /// Nothing has waited yet.
    pub fn new(now: Instant) -> Looks {
        Looks { highest: 0, rose: now, since: None }
    }

    /// Looks at the word again, and says how long one wait has gone on; 0 if none does, which is when the count has not risen for
    /// `pause`.
    pub fn see(&mut self, count: u32, now: Instant, pause: Duration) -> Duration {
        let wrapped = self.highest > NEARLY_WRAPPED && count < self.highest / 2;
        let paused = now.saturating_duration_since(self.rose) > pause;
        if count > self.highest || wrapped {
            let since = self.since.filter(|_| !paused).unwrap_or(now);
            *self = Looks { highest: count, rose: now, since: Some(since) };
        } else if paused {
            // That wait is over; another begins below what it left. Lower counts before that are other threads'.
            *self = Looks { highest: count, rose: now, since: None };
        }
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(250);

    /// How long a wait was seen to go on, looked at every 50 ms.
    fn seen(counts: impl IntoIterator<Item = u32>) -> Vec<u64> {
        let began = Instant::now();
        let mut looks = Looks::new(began);
        let at = |i: usize| began + Duration::from_millis(50 * i as u64);
        counts.into_iter().enumerate().map(|(i, n)| looks.see(n, at(i), PAUSE).as_millis() as u64).collect()
    }

    #[test]
    fn one_wait_goes_on_and_others_begin_anew() {
        // Threads that began a little later leave smaller counts.
        assert_eq!(seen([100, 90, 300, 280, 500])[4], 200);
        assert!(
            seen((0..100_u32).map(|i| 40_000_000_u32.wrapping_add(i.wrapping_mul(u32::MAX / 64)))).last()
                > Some(&4_900),
            "the count wraps"
        );
        // A wait that is over leaves its count; the next one's is seen when it asks first.
        let over: Vec<u32> = (1..=10).map(|i| i * 1000).chain([10_000; 20]).collect();
        assert_eq!((seen(over.clone())[9], seen(over)[29]), (450, 0));
        assert!(seen((0..200).map(|i| (i % 10 + 1) * 1000)).iter().all(|ms| *ms <= 900), "waits of half a second each");
        // Threads that look at other rates hide nothing.
        assert!(seen((1..200).map(|i| if i % 2 == 0 { 1000 * i } else { 300 * i })).last() > Some(&9_000));
        assert!(seen((0..200).map(|i| 1000 + i % 3)).iter().all(|ms| *ms <= 900), "waits too short to be told apart");
        let late: Vec<u32> = [1000; 10].into_iter().chain((1..=4).map(|i| 5000 * i)).collect();
        assert_eq!(seen(late)[13], 150);
    }
}
