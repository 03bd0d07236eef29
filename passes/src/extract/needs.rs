//! Sets of the nodes that a form needs, with what they cost together. Values that were computed from one another share most of
//! their sets in memory, so that joining two takes time by what differs: binary tries over class numbers, never changed once
//! made.

use super::Cost;
use std::rc::Rc;

/// Classes with the cost of a node of each.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs(Option<Rc<Trie>>);

#[derive(Debug)]
enum Trie {
    Leaf {
        class: usize,
        cost: Cost,
    },
    /// Classes that agree above `bit`; those with it are `high`.
    Branch {
        prefix: usize,
        bit: usize,
        low: Rc<Trie>,
        high: Rc<Trie>,
        total: Cost,
    },
}

/// The bits of a class above `bit`.
fn above(class: usize, bit: usize) -> usize {
    class & !(bit | (bit - 1))
}

impl Trie {
    fn total(&self) -> Cost {
        match self {
            Trie::Leaf { cost, .. } => *cost,
            Trie::Branch { total, .. } => *total,
        }
    }

    /// A class of the set.
    fn any(&self) -> usize {
        match self {
            Trie::Leaf { class, .. } => *class,
            Trie::Branch { prefix, .. } => *prefix,
        }
    }

    fn branch(prefix: usize, bit: usize, low: Rc<Trie>, high: Rc<Trie>) -> Rc<Trie> {
        let total = low.total().saturating_add(high.total());
        Rc::new(Trie::Branch { prefix, bit, low, high, total })
    }

    /// Two sets whose classes part at a bit.
    fn beside(a: &Rc<Trie>, b: &Rc<Trie>) -> Rc<Trie> {
        let (x, y) = (a.any(), b.any());
        let bit = 1 << (usize::BITS - 1 - (x ^ y).leading_zeros());
        let (low, high) = if x & bit == 0 { (a, b) } else { (b, a) };
        Trie::branch(above(x, bit), bit, Rc::clone(low), Rc::clone(high))
    }

    /// Both sets; of a class that is in both, the cost in `a`.
    fn join(a: &Rc<Trie>, b: &Rc<Trie>) -> Rc<Trie> {
        if Rc::ptr_eq(a, b) {
            return Rc::clone(a);
        }
        match (&**a, &**b) {
            (Trie::Leaf { class: x, .. }, Trie::Leaf { class: y, .. }) if x == y => Rc::clone(a),
            (Trie::Leaf { .. }, Trie::Leaf { .. }) => Trie::beside(a, b),
            (Trie::Branch { prefix: p, bit: m, low, high, .. }, Trie::Branch { prefix: q, bit: n, .. })
                if m > n && above(*q, *m) == *p =>
            {
                Trie::into_side(a, (*p, *m, low, high), q & m == 0, |side| Trie::join(side, b))
            }
            (Trie::Branch { prefix: p, bit: m, .. }, Trie::Branch { prefix: q, bit: n, low, high, .. })
                if n > m && above(*p, *n) == *q =>
            {
                Trie::into_side(b, (*q, *n, low, high), p & n == 0, |side| Trie::join(a, side))
            }
            (
                Trie::Branch { prefix: p, bit: m, low: al, high: ah, .. },
                Trie::Branch { prefix: q, bit: n, low: bl, high: bh, .. },
            ) if (p, m) == (q, n) => {
                let (low, high) = (Trie::join(al, bl), Trie::join(ah, bh));
                for (whole, l, h) in [(a, al, ah), (b, bl, bh)] {
                    if Rc::ptr_eq(&low, l) && Rc::ptr_eq(&high, h) {
                        return Rc::clone(whole);
                    }
                }
                Trie::branch(*p, *m, low, high)
            }
            (Trie::Branch { prefix, bit, low, high, .. }, Trie::Leaf { class, .. })
                if above(*class, *bit) == *prefix =>
            {
                Trie::into_side(a, (*prefix, *bit, low, high), class & bit == 0, |side| Trie::join(side, b))
            }
            (Trie::Leaf { class, .. }, Trie::Branch { prefix, bit, low, high, .. })
                if above(*class, *bit) == *prefix =>
            {
                Trie::into_side(b, (*prefix, *bit, low, high), class & bit == 0, |side| Trie::join(a, side))
            }
            _ => Trie::beside(a, b),
        }
    }

    /// A branch with one side replaced; the branch itself if that changes nothing.
    fn into_side(
        whole: &Rc<Trie>,
        (prefix, bit, low, high): (usize, usize, &Rc<Trie>, &Rc<Trie>),
        is_low: bool,
        join: impl FnOnce(&Rc<Trie>) -> Rc<Trie>,
    ) -> Rc<Trie> {
        let side = if is_low { low } else { high };
        let joined = join(side);
        match (Rc::ptr_eq(&joined, side), is_low) {
            (true, _) => Rc::clone(whole),
            (false, true) => Trie::branch(prefix, bit, joined, Rc::clone(high)),
            (false, false) => Trie::branch(prefix, bit, Rc::clone(low), joined),
        }
    }
}

impl Needs {
    /// One node.
    pub fn one(class: usize, cost: Cost) -> Needs {
        Needs(Some(Rc::new(Trie::Leaf { class, cost })))
    }

    /// Both sets; of a class that is in both, the cost in this one.
    pub fn join(&self, other: &Needs) -> Needs {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Needs(Some(Trie::join(a, b))),
            (a, b) => Needs(a.clone().or_else(|| b.clone())),
        }
    }

    /// The cost of all.
    pub fn total(&self) -> Cost {
        self.0.as_ref().map_or(0, |t| t.total())
    }

    pub fn contains(&self, wanted: usize) -> bool {
        let mut at = self.0.as_ref();
        while let Some(trie) = at {
            match &**trie {
                Trie::Leaf { class, .. } => return *class == wanted,
                Trie::Branch { prefix, bit, low, high, .. } => {
                    if above(wanted, *bit) != *prefix {
                        return false;
                    }
                    at = Some(if wanted & bit == 0 { low } else { high });
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use weldment_ir::generate::Random;

    /// Random joins against maps.
    #[test]
    fn sets_hold_what_maps_hold() {
        let mut random = Random::new(5);
        let mut known: Vec<(Needs, BTreeMap<usize, Cost>)> = vec![(Needs::default(), BTreeMap::new())];
        for _ in 0..2000 {
            let class = random.below(300) as usize;
            let cost = 1 + random.below(9);
            let one = (Needs::one(class, cost), BTreeMap::from([(class, cost)]));
            // Of the last few, so that sets grow.
            let [x, y] = [0; 2].map(|_| known.len() - 1 - random.below(known.len().min(20) as u64) as usize);
            let (a, map) = &known[x];
            let other = if random.one_in(2) { one } else { known[y].clone() };
            let mut both = other.1.clone();
            both.extend(map.iter().map(|(c, n)| (*c, *n)));
            let joined = a.join(&other.0);
            assert_eq!(joined.total(), both.values().sum::<u64>());
            assert!((0..310).all(|c| joined.contains(c) == both.contains_key(&c)), "{both:?}");
            known.push((joined, both));
        }
        let most = known.iter().map(|(_, map)| map.len()).max();
        assert!(most > Some(150), "{most:?}");
    }
}
