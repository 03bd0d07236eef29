//! The events of tile programs: what the first program of each rank does to the slabs, step after step.

use super::explore::{Content, Event, Order, Word};
use crate::tile_interpreter::{Access, AccessKind};
use std::collections::BTreeSet;

/// Words of 8 that stand for all of them, the first ones of these: stores of the others arrive as theirs do, in any order.
const KEPT: [u64; 2] = [0, 7];

/// The slab of a rank as the tests lay it out.
#[derive(Clone, Debug)]
pub struct Slabs {
    /// Bytes from one rank's to the next's.
    pub stride: usize,
    /// The first rank's bytes before the first step.
    pub initial: Vec<u8>,
    /// The words that stand where nothing has arrived, which is not stored as data.
    pub empty: &'static [u32],
    /// Words that are looked at, of each 8 of data: one, or two that may arrive apart.
    pub words: usize,
}

/// Events of each rank, and what words hold before the first.
#[derive(Clone, Debug)]
pub struct Programs {
    /// By rank.
    pub events: Vec<Vec<Event>>,
    /// Contents that are not stale.
    pub start: Vec<(Word, Content)>,
}

impl Slabs {
    fn word(&self, at: usize) -> Word {
        Word { rank: at / self.stride, offset: (at % self.stride) as u64 }
    }

    fn initially(&self, word: Word) -> u32 {
        let at = word.offset as usize;
        let bytes = self.initial.get(at..at + 4).and_then(|b| b.first_chunk()).copied().unwrap_or_default();
        u32::from_le_bytes(bytes)
    }

    /// The programs of these traces, by launch and rank.
    pub fn programs(&self, traces: &[Vec<Vec<Access>>]) -> Programs {
        let kept_words = &KEPT[..self.words.min(KEPT.len())];
        let ranks = traces.first().map_or(0, Vec::len);
        let accesses = || traces.iter().flatten().flatten();
        // Words that are counted with: everything else is data.
        let counts = |a: &&Access| matches!(a.kind, AccessKind::Signal { .. } | AccessKind::Await);
        let numbers: BTreeSet<Word> =
            accesses().filter(counts).flat_map(|a| a.elements.iter().map(|(at, _)| self.word(*at))).collect();
        let mut events: Vec<Vec<Event>> = vec![Vec::new(); ranks];
        let mut seen = numbers.clone();
        for launch in traces {
            for (rank, (events, accesses)) in events.iter_mut().zip(launch).enumerate() {
                for access in accesses {
                    let kept = access.elements.iter().map(|(at, bits)| (self.word(*at), *bits as u32));
                    let kept: Vec<(Word, u32)> =
                        kept.filter(|(w, _)| numbers.contains(w) || kept_words.contains(&(w.offset / 4 % 8))).collect();
                    seen.extend(kept.iter().map(|(w, _)| *w));
                    events.push(self.event(access.kind, kept, (rank, events.len())));
                }
                events.push(Event::End);
            }
        }
        let start = seen.into_iter().filter_map(|word| {
            let found = self.initially(word);
            match (numbers.contains(&word), self.empty.contains(&found)) {
                (true, _) => Some((word, Content::Number(found))),
                (false, true) => Some((word, Content::Empty)),
                (false, false) => None,
            }
        });
        Programs { start: start.collect(), events }
    }

    fn event(&self, kind: AccessKind, words: Vec<(Word, u32)>, (rank, number): (usize, usize)) -> Event {
        let only = |words: Vec<(Word, u32)>| words.into_iter().map(|(w, _)| w).collect();
        match kind {
            AccessKind::Store => {
                let content =
                    |bits| if self.empty.contains(&bits) { Content::Empty } else { Content::Data(rank, number) };
                Event::Store { words: words.into_iter().map(|(w, bits)| (w, content(bits))).collect() }
            }
            AccessKind::Signal { release } => {
                Event::Signal { words, order: if release { Order::Ordered } else { Order::Relaxed } }
            }
            AccessKind::Load => Event::Load { words: only(words) },
            AccessKind::Arrive => Event::Arrive { words: only(words) },
            AccessKind::Await => Event::Await { words, modular: true, order: Order::Ordered },
        }
    }
}
