//! Offsets for memory of known lifetimes (dynamic storage allocation): first fit in several orders, then a search that moves what
//! reaches the top to the front of the order, until a hundredth over the bound is left or the tries are spent. Deterministic.

use crate::probe::shuffle;
use std::cmp::Reverse;
use weldment_ir::generate::Random;

/// Offsets are multiples of a cache line.
pub(super) const ALIGN: u64 = 64;
/// Pairs of spans that the search may compare, over all orders: some hundredths of a second.
const PAIRS: usize = 30_000_000;
/// Orders that it tries at most.
const ORDERS: usize = 4000;

/// Memory of `bytes`, a multiple of [`ALIGN`], from epoch `first` to epoch `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub bytes: u64,
    pub first: usize,
    pub last: usize,
}

impl Span {
    fn meets(&self, other: &Span) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// Size of all.
    pub bytes: u64,
    /// Offset of each span.
    pub offsets: Vec<u64>,
}

/// The most bytes that are alive in one epoch: no placement needs less.
pub(super) fn lower_bound(spans: &[Span]) -> u64 {
    let epochs = spans.iter().map(|s| s.last + 1).max().unwrap_or(0);
    // Bytes that come alive and die, by epoch.
    let mut change = vec![(0u64, 0u64); epochs + 1];
    for s in spans {
        change[s.first].0 = change[s.first].0.saturating_add(s.bytes);
        change[s.last + 1].1 = change[s.last + 1].1.saturating_add(s.bytes);
    }
    let mut alive = 0u64;
    let sums = change.iter().map(|(born, dead)| {
        alive = alive.saturating_sub(*dead).saturating_add(*born);
        alive
    });
    sums.max().unwrap_or(0)
}

/// Places spans in `order`, each at the lowest free offset, or in the tightest gap if `tight`; `None` on overflow.
fn place(spans: &[Span], order: &[usize], tight: bool) -> Option<Packed> {
    let mut out = Packed { bytes: 0, offsets: vec![0; spans.len()] };
    // Placed spans by offset, so that one walk finds the gaps.
    let mut placed: Vec<(u64, u64, Span)> = Vec::with_capacity(order.len());
    for which in order {
        let span = spans[*which];
        let mut free = 0u64;
        let mut best: Option<(u64, u64)> = None;
        for (start, end, _) in placed.iter().filter(|(_, _, other)| other.meets(&span)) {
            if *start >= free.checked_add(span.bytes)? {
                let gap = *start - free;
                if !tight {
                    best = Some((gap, free));
                    break;
                }
                best = Some(best.map_or((gap, free), |b| b.min((gap, free))));
            }
            free = free.max(*end);
        }
        let at = best.map_or(free, |(_, at)| at);
        let end = at.checked_add(span.bytes)?;
        placed.insert(placed.partition_point(|(start, _, _)| *start < at), (at, end, span));
        out.offsets[*which] = at;
        out.bytes = out.bytes.max(end);
    }
    Some(out)
}

/// No more than a hundredth over the bound.
fn is_near(bytes: u64, bound: u64) -> bool {
    bytes - bound.min(bytes) <= bound / 100
}

/// The best placement found, or with a seed of chaos any; `None` if the bytes overflow.
pub(super) fn pack(spans: &[Span], chaos: Option<u64>) -> Option<Packed> {
    if let Some(seed) = chaos {
        let mut order: Vec<usize> = (0..spans.len()).collect();
        shuffle(&mut order, seed);
        return place(spans, &order, false);
    }
    let bound = lower_bound(spans);
    let length = |s: &Span| (s.last - s.first + 1) as u64;
    let area = |s: &Span| u128::from(s.bytes) * u128::from(length(s));
    let mut orders: Vec<Vec<usize>> = vec![(0..spans.len()).collect(); 4];
    orders[0].sort_by_key(|i| (Reverse(spans[*i].bytes), spans[*i].first, *i));
    orders[1].sort_by_key(|i| (spans[*i].first, Reverse(spans[*i].bytes), *i));
    orders[2].sort_by_key(|i| (Reverse(length(&spans[*i])), Reverse(spans[*i].bytes), *i));
    orders[3].sort_by_key(|i| (Reverse(area(&spans[*i])), *i));
    let mut best: Option<(Packed, Vec<usize>)> = None;
    for order in orders {
        for tight in [false, true] {
            let found = place(spans, &order, tight)?;
            if is_near(found.bytes, bound) {
                return Some(found);
            }
            if best.as_ref().is_none_or(|(b, _)| found.bytes < b.bytes) {
                best = Some((found, order.clone()));
            }
        }
    }
    let (packed, order) = best?;
    Some(search(spans, bound, packed, order))
}

/// Moves the spans that reach the top to the front, where they get low offsets; now and then two spans change places, so that the
/// search does not turn in circles. A worse order is left after a while for the best one.
fn search(spans: &[Span], bound: u64, mut best: Packed, mut best_order: Vec<usize>) -> Packed {
    let mut random = Random::new(spans.len() as u64);
    let (mut order, mut current) = (best_order.clone(), best.clone());
    let mut since = 0;
    for _ in 0..(PAIRS / (spans.len() * spans.len()).max(1)).min(ORDERS) {
        let top = |i: &usize| current.offsets[*i] + spans[*i].bytes == current.bytes;
        let at = order.iter().rposition(top).unwrap_or(0);
        let highest = order.remove(at);
        let to = random.below(at as u64 + 1) as usize;
        order.insert(if random.one_in(2) { to / 2 } else { to }, highest);
        if random.one_in(3) {
            let (a, b) = (random.below(order.len() as u64) as usize, random.below(order.len() as u64) as usize);
            order.swap(a, b);
        }
        let Some(found) = place(spans, &order, random.one_in(4)) else { break };
        since += 1;
        if found.bytes < best.bytes {
            (best, best_order, since) = (found.clone(), order.clone(), 0);
            if is_near(best.bytes, bound) {
                break;
            }
        }
        current = found;
        if since % 50 == 0 {
            (order, current) = (best_order.clone(), best.clone());
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spans: &[Span]) -> u64 {
        let packed = pack(spans, None).unwrap();
        assert_eq!(packed, pack(spans, None).unwrap());
        for (i, a) in spans.iter().enumerate() {
            assert!(packed.offsets[i].is_multiple_of(ALIGN) && packed.offsets[i] + a.bytes <= packed.bytes);
            for (j, b) in spans.iter().enumerate().skip(i + 1).filter(|(_, b)| a.meets(b)) {
                let (x, y) = (packed.offsets[i], packed.offsets[j]);
                assert!(x + a.bytes <= y || y + b.bytes <= x, "{a:?} at {x}, {b:?} at {y}");
            }
        }
        packed.bytes
    }

    /// Lifetimes of all kinds, sizes of one to a thousand lines: 1.1 times the bound holds for every draw.
    #[test]
    fn random_lifetimes_pack_near_the_bound() {
        let cases = std::env::var("WELDMENT_PACKINGS").map_or(400, |n| n.parse().expect("a number of packings"));
        let mut over = [0u64; 16];
        let mut worst = 0.0f64;
        for seed in 0..cases {
            let mut r = Random::new(seed);
            let count = 2 + r.below(150);
            let (epochs, long) = (1 + r.below(count), 1 + r.below(12));
            let sizes = *r.pick(&[2, 8, 1000]).unwrap();
            let spans: Vec<Span> = (0..count)
                .map(|_| {
                    let first = r.below(epochs) as usize;
                    let length = if r.one_in(8) { r.below(epochs) } else { r.below(long) };
                    Span { bytes: ALIGN * (1 + r.below(sizes)), first, last: first + length as usize }
                })
                .collect();
            let bound = lower_bound(&spans);
            let ratio = check(&spans) as f64 / bound as f64;
            worst = worst.max(ratio);
            over[((ratio - 1.0) * 100.0).ceil().min(15.0) as usize] += 1;
        }
        println!("plans by percent over the bound: {over:?}, worst {worst:.3}");
        assert!(worst <= 1.1, "{worst}");
    }

    #[test]
    fn spans_that_never_meet_share() {
        let span = |bytes, first, last| Span { bytes, first, last };
        assert_eq!(check(&[]), 0);
        assert_eq!(check(&[span(64, 0, 0), span(128, 1, 3), span(64, 4, 4)]), 128);
        assert_eq!(lower_bound(&[span(64, 0, 1), span(128, 1, 2), span(64, 2, 3)]), 192);
        assert!(pack(&[span(u64::MAX - 63, 0, 1), span(64, 0, 1)], None).is_none());
    }
}
