//! Every interleaving of a few ranks' memory events.
//!
//! The model. Each rank runs its events in order. A store is not seen until it *arrives*, at any later moment and in any order, except
//! that stores of one rank to one word arrive in order (coherence); what a rank stores into its own slab arrives no sooner than what it
//! stores into another's. A release store is issued once all earlier stores of the rank have arrived, and then arrives like any other. A
//! relaxed one is issued at once. The end of a launch waits for all of the rank's stores: launches of a stream are ordered, and a launch's
//! writes are visible to the next. Loads read what has arrived; those that follow a relaxed wait may be
//! done before it.
//!
//! Events that only the rank itself notices (issuing a store, ending a launch with nothing under way) commute with everything that
//! others do, and are done at once. So is the arrival of a store before which nothing can happen that touches its word: nothing ever will,
//! or what will first waits for it (a persistent set of one transition; Godefroid, Partial-Order Methods, 1996). States seen before are not
//! entered again; what is left is exhaustive.

use std::collections::HashSet;
use std::fmt;

/// A word of a rank's slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Word {
    /// Whose slab.
    pub rank: usize,
    /// Byte offset in it.
    pub offset: u64,
}

/// What a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Content {
    /// The pattern that means "not here yet".
    Empty,
    /// What the slab starts with where nothing was filled in.
    Stale,
    /// A number: flags.
    Number(u32),
    /// Data of that store: its rank, and the store's number among the rank's.
    Data(usize, usize),
}

/// Whether a flag's store or wait orders what is around it. Programs wait in order; relaxed waits, and counters compared by size, are for the
/// model's own tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// It orders nothing.
    Relaxed,
    /// Release of a store, acquire of a wait.
    Ordered,
}

/// One memory event of a rank's program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Stores to words of one slab, relaxed.
    Store {
        /// Where and what.
        words: Vec<(Word, Content)>,
    },
    /// Stores flags, each by a thread of its own.
    Signal {
        /// The flags and their new values.
        words: Vec<(Word, u32)>,
        /// Release or relaxed.
        order: Order,
    },
    /// Waits until none of the words of its own slab is empty, and reads them.
    Arrive {
        /// The words.
        words: Vec<Word>,
    },
    /// Waits until flags have reached values.
    Await {
        /// The flags, of the own slab, and the values.
        words: Vec<(Word, u32)>,
        /// True: the difference is looked at, so that counters may wrap; false: the flag is compared with `<`.
        modular: bool,
        /// Acquire or relaxed.
        order: Order,
    },
    /// Reads words of its own slab.
    Load {
        /// The words.
        words: Vec<Word>,
    },
    /// The launch is over.
    End,
}

/// What went wrong in some interleaving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A read found something else than in the reference order.
    WrongRead {
        /// The reader.
        rank: usize,
        /// Which of its events.
        event: usize,
        /// The word.
        word: Word,
        /// Found.
        found: Content,
        /// Expected.
        expected: Content,
    },
    /// Data arrived on data that nobody had read.
    Overwritten {
        /// The word.
        word: Word,
        /// What was lost.
        lost: Content,
    },
    /// Nobody can go on.
    Hang {
        /// The event that each rank stands before; its number of events where it is done.
        at: Vec<usize>,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::WrongRead { rank, event, word, found, expected } => {
                write!(f, "rank {rank}, event {event}: {word:?} holds {found:?}, {expected:?} was to be read")
            }
            Violation::Overwritten { word, lost } => write!(f, "{word:?}: {lost:?} was overwritten unread"),
            Violation::Hang { at } => write!(f, "nobody can go on; ranks stand at {at:?}"),
        }
    }
}

/// How much was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explored {
    /// Different states entered.
    pub states: usize,
}

/// What every interleaving shares.
struct Programs<'a> {
    events: &'a [Vec<Event>],
    /// Words by number; contents are kept by number.
    words: Vec<Word>,
    /// For each rank, for each event: what its reads are to find.
    expected: Vec<Vec<Vec<Content>>>,
    /// Words that start empty: data on them must have been read before other data arrives.
    watched: Vec<bool>,
    /// For each rank, for each word: the events that touch it, in order, and whether each waits for data in it.
    touched: Vec<Vec<Vec<(usize, bool)>>>,
}

/// A state: where each rank stands, what has arrived, what has not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    at: Vec<usize>,
    memory: Vec<Content>,
    /// For each rank its stores under way, oldest first: word number and content.
    under_way: Vec<Vec<(usize, Content)>>,
    /// Words whose data has been read, by number, where watched.
    read: Vec<bool>,
    /// Loads that each rank has done ahead of the relaxed wait that it stands before.
    ahead: Vec<usize>,
}

impl Programs<'_> {
    fn number(&self, word: &Word) -> usize {
        self.words.binary_search(word).unwrap_or_default()
    }

    fn next(&self, state: &State, rank: usize) -> Option<&Event> {
        self.events[rank].get(state.at[rank])
    }

    /// For each word the events that touch it, and whether each waits for data in it.
    fn touches(&self, events: &[Event]) -> Vec<Vec<(usize, bool)>> {
        let mut touched = vec![Vec::new(); self.words.len()];
        for (at, event) in events.iter().enumerate() {
            let (words, waits): (Vec<&Word>, bool) = match event {
                Event::Store { words } => (words.iter().map(|(w, _)| w).collect(), false),
                Event::Signal { words, .. } | Event::Await { words, .. } => {
                    (words.iter().map(|(w, _)| w).collect(), false)
                }
                Event::Arrive { words } => (words.iter().collect(), true),
                Event::Load { words } => (words.iter().collect(), false),
                Event::End => (Vec::new(), false),
            };
            words.into_iter().for_each(|w| touched[self.number(w)].push((at, waits)));
        }
        touched
    }

    /// Does whatever only the rank itself notices.
    fn settle(&self, state: &mut State) {
        for rank in 0..self.events.len() {
            while let Some(event) = self.next(state, rank) {
                let queue = &mut state.under_way[rank];
                match event {
                    Event::Store { words } => queue.extend(words.iter().map(|(w, c)| (self.number(w), *c))),
                    Event::Signal { words, order } if *order == Order::Relaxed || queue.is_empty() => {
                        queue.extend(words.iter().map(|(w, value)| (self.number(w), Content::Number(*value))));
                    }
                    Event::End if queue.is_empty() => {}
                    _ => break,
                }
                state.at[rank] += 1;
            }
        }
    }

    /// The store at `index` of a rank's queue arrives.
    fn arrive(&self, state: &mut State, rank: usize, index: usize) -> Result<(), Violation> {
        let (word, content) = state.under_way[rank].remove(index);
        if self.watched[word] {
            let lost = state.memory[word];
            if matches!(content, Content::Data(..)) && matches!(lost, Content::Data(..)) {
                return Err(Violation::Overwritten { word: self.words[word], lost });
            }
            if content == Content::Empty && matches!(lost, Content::Data(..)) && !state.read[word] {
                return Err(Violation::Overwritten { word: self.words[word], lost });
            }
            state.read[word] = false;
        }
        state.memory[word] = content;
        Ok(())
    }

    /// A store under way, by rank and index, whose arrival commutes with all that can happen before it.
    fn alone(&self, state: &State) -> Option<(usize, usize)> {
        let pending = |rank: usize, word: usize| state.under_way[rank].iter().any(|(w, _)| *w == word);
        let ranks = 0..self.events.len();
        ranks.clone().find_map(|rank| {
            let queue = &state.under_way[rank];
            let index = (0..queue.len()).find(|index| {
                let (word, content) = queue[*index];
                let fills = content != Content::Empty && state.memory[word] == Content::Empty;
                let older = queue[..*index].iter().any(|(w, _)| *w == word);
                !older
                    && ranks.clone().all(|other| {
                        let at = state.at[other];
                        let mut later = self.touched[other][word].iter().filter(|(event, _)| *event >= at);
                        let waits = later.next().is_none_or(|(_, waits)| fills && *waits);
                        // The rank's own later stores to the word arrive after this one.
                        waits && (other == rank || !pending(other, word))
                    })
            })?;
            Some((rank, index))
        })
    }

    /// True if event `at` of the rank, which reads memory, can happen now.
    fn ready(&self, state: &State, rank: usize, at: usize) -> bool {
        match self.events[rank].get(at) {
            Some(Event::Arrive { words }) => words.iter().all(|w| state.memory[self.number(w)] != Content::Empty),
            Some(Event::Await { words, modular, .. }) => words.iter().all(|(word, value)| {
                let Content::Number(found) = state.memory[self.number(word)] else { return false };
                if *modular { found.wrapping_sub(*value) as i32 >= 0 } else { found >= *value }
            }),
            Some(Event::Load { .. }) => true,
            _ => false,
        }
    }

    /// The load that the rank may do ahead of the relaxed wait that it stands before.
    fn next_ahead(&self, state: &State, rank: usize) -> Option<usize> {
        let at = state.at[rank] + 1 + state.ahead[rank];
        let relaxed = matches!(self.next(state, rank), Some(Event::Await { order: Order::Relaxed, .. }));
        (relaxed && matches!(self.events[rank].get(at), Some(Event::Load { .. }))).then_some(at)
    }

    /// What event `at` of the rank reads.
    fn reads(&self, state: &State, rank: usize, at: usize) -> Vec<(usize, Content)> {
        match self.events[rank].get(at) {
            Some(Event::Arrive { words } | Event::Load { words }) => {
                words.iter().map(|w| self.number(w)).map(|n| (n, state.memory[n])).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Does event `event` of the rank: its next, or a load ahead of it.
    fn step(&self, state: &mut State, rank: usize, event: usize) -> Result<(), Violation> {
        for ((n, found), expected) in self.reads(state, rank, event).into_iter().zip(&self.expected[rank][event]) {
            if found != *expected {
                let (word, expected) = (self.words[n], *expected);
                return Err(Violation::WrongRead { rank, event, word, found, expected });
            }
            state.read[n] = true;
        }
        if event == state.at[rank] {
            state.at[rank] += 1 + std::mem::take(&mut state.ahead[rank]);
        } else {
            state.ahead[rank] += 1;
        }
        Ok(())
    }
}

/// Tries every interleaving of the ranks' `events` from `start`, the words that do not start as [`Content::Stale`]. What reads must find
/// is what they find when every store arrives at once and ranks run in turn, each as far as it can.
///
/// # Errors
/// The first violation found.
pub fn explore(events: &[Vec<Event>], start: &[(Word, Content)]) -> Result<Explored, Violation> {
    search(events, start, true)
}

/// [`explore`]; without `reduced` also what commutes is tried in every order.
fn search(events: &[Vec<Event>], start: &[(Word, Content)], reduced: bool) -> Result<Explored, Violation> {
    let mut words: Vec<Word> = start.iter().map(|(w, _)| *w).collect();
    for event in events.iter().flatten() {
        match event {
            Event::Store { words: stored } => words.extend(stored.iter().map(|(w, _)| *w)),
            Event::Signal { words: flags, .. } | Event::Await { words: flags, .. } => {
                words.extend(flags.iter().map(|(w, _)| *w));
            }
            Event::Arrive { words: read } | Event::Load { words: read } => words.extend(read),
            Event::End => {}
        }
    }
    words.sort_unstable();
    words.dedup();
    let initial = |w: &Word| start.iter().find(|(s, _)| s == w).map_or(Content::Stale, |(_, c)| *c);
    let memory: Vec<Content> = words.iter().map(initial).collect();
    let watched = memory.iter().map(|c| *c == Content::Empty).collect();
    let expected = events.iter().map(|list| vec![Vec::new(); list.len()]).collect();
    let mut programs = Programs { events, words, expected, watched, touched: Vec::new() };
    programs.touched = events.iter().map(|events| programs.touches(events)).collect();
    let ranks = events.len();
    let first = State {
        at: vec![0; ranks],
        read: vec![false; memory.len()],
        memory,
        under_way: vec![Vec::new(); ranks],
        ahead: vec![0; ranks],
    };
    programs.expected = reference(&programs, first.clone())?;
    let mut begin = first;
    programs.settle(&mut begin);
    let mut seen = HashSet::from([begin.clone()]);
    let mut open = vec![begin];
    while let Some(state) = open.pop() {
        let mut followed = false;
        let mut follow = |mut next: State, done: Result<(), Violation>| -> Result<(), Violation> {
            done?;
            programs.settle(&mut next);
            if seen.insert(next.clone()) {
                open.push(next);
            }
            Ok(())
        };
        if let (true, Some((rank, index))) = (reduced, programs.alone(&state)) {
            let mut next = state.clone();
            let done = programs.arrive(&mut next, rank, index);
            follow(next, done)?;
            continue;
        }
        for rank in 0..ranks {
            for (index, (word, _)) in state.under_way[rank].iter().enumerate() {
                // Coherence: an older store of the rank to the same word arrives first.
                if state.under_way[rank][..index].iter().all(|(older, _)| older != word) {
                    let mut next = state.clone();
                    let done = programs.arrive(&mut next, rank, index);
                    follow(next, done)?;
                    followed = true;
                }
            }
            let reading = [Some(state.at[rank]), programs.next_ahead(&state, rank)];
            for event in reading.into_iter().flatten().filter(|e| programs.ready(&state, rank, *e)) {
                let mut next = state.clone();
                let done = programs.step(&mut next, rank, event);
                follow(next, done)?;
                followed = true;
            }
        }
        if !followed && (0..ranks).any(|r| programs.next(&state, r).is_some()) {
            return Err(Violation::Hang { at: state.at });
        }
    }
    Ok(Explored { states: seen.len() })
}

/// What every read finds when stores arrive at once.
fn reference(programs: &Programs<'_>, mut state: State) -> Result<Vec<Vec<Vec<Content>>>, Violation> {
    let mut found: Vec<Vec<Vec<Content>>> = programs.events.iter().map(|e| vec![Vec::new(); e.len()]).collect();
    loop {
        programs.settle(&mut state);
        let mut moved = false;
        for rank in 0..programs.events.len() {
            while !state.under_way[rank].is_empty() {
                programs.arrive(&mut state, rank, 0)?;
                moved = true;
            }
        }
        if moved {
            continue;
        }
        for rank in 0..programs.events.len() {
            if programs.ready(&state, rank, state.at[rank]) {
                let reads = programs.reads(&state, rank, state.at[rank]);
                reads.iter().for_each(|(n, _)| state.read[*n] = true);
                found[rank][state.at[rank]] = reads.into_iter().map(|(_, c)| c).collect();
                state.at[rank] += 1;
                moved = true;
            }
        }
        if !moved {
            let done = (0..programs.events.len()).all(|r| programs.next(&state, r).is_none());
            return if done { Ok(found) } else { Err(Violation::Hang { at: state.at }) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAG: u64 = 0;
    const DATA: u64 = 64;

    fn word(rank: usize, offset: u64) -> Word {
        Word { rank, offset }
    }

    /// Rank 0 sends data and a flag; rank 1 waits for the flag and reads.
    fn message(send: Order, wait: Order) -> Vec<Vec<Event>> {
        let sender = vec![
            Event::Store { words: vec![(word(1, DATA), Content::Data(0, 0))] },
            Event::Signal { words: vec![(word(1, FLAG), 1)], order: send },
            Event::End,
        ];
        let receive = vec![
            Event::Await { words: vec![(word(1, FLAG), 1)], modular: true, order: wait },
            Event::Load { words: vec![word(1, DATA)] },
            Event::End,
        ];
        vec![sender, receive]
    }

    #[test]
    fn a_message_needs_release_and_acquire() {
        let start = [(word(1, FLAG), Content::Number(0))];
        assert!(explore(&message(Order::Ordered, Order::Ordered), &start).is_ok());
        for (send, wait) in [(Order::Relaxed, Order::Ordered), (Order::Ordered, Order::Relaxed)] {
            let torn = explore(&message(send, wait), &start).unwrap_err();
            assert!(matches!(torn, Violation::WrongRead { found: Content::Stale, .. }), "{torn}");
        }
    }

    #[test]
    fn a_counter_compared_by_size_fails_at_the_wrap() {
        let last = u32::MAX;
        let events = |modular| {
            let (mut send, mut receive) = (Vec::new(), Vec::new());
            for (n, count) in [last, 0].into_iter().enumerate() {
                let data = word(1, DATA + 4 * n as u64);
                send.push(Event::Store { words: vec![(data, Content::Data(0, n))] });
                send.push(Event::Signal { words: vec![(word(1, FLAG), count)], order: Order::Ordered });
                receive.push(Event::Await { words: vec![(word(1, FLAG), count)], modular, order: Order::Ordered });
                receive.push(Event::Load { words: vec![data] });
            }
            [send, receive]
        };
        let start = [(word(1, FLAG), Content::Number(last - 1))];
        assert!(explore(&events(true), &start).is_ok());
        // The counter that has gone on to 0 is never as large as the last again.
        assert!(matches!(explore(&events(false), &start), Err(Violation::Hang { .. })));
    }

    #[test]
    fn nobody_to_wait_for_is_a_hang() {
        let wait = vec![Event::Await { words: vec![(word(0, FLAG), 1)], modular: true, order: Order::Ordered }];
        let start = [(word(0, FLAG), Content::Number(0))];
        assert_eq!(explore(&[wait], &start), Err(Violation::Hang { at: vec![0] }));
    }

    #[test]
    fn data_on_unread_data_is_seen() {
        let send = |n| Event::Store { words: vec![(word(1, DATA), Content::Data(0, n))] };
        let events =
            [vec![send(0), Event::End, send(1), Event::End], vec![Event::Arrive { words: vec![word(1, DATA)] }]];
        let lost = explore(&events, &[(word(1, DATA), Content::Empty)]).unwrap_err();
        assert!(matches!(lost, Violation::Overwritten { .. }), "{lost}");
    }

    /// Mailboxes of one to four areas, half of them with an event too few or two in another order: what is left out for commuting hides
    /// nothing.
    #[test]
    fn the_reduction_finds_what_the_full_search_finds() {
        let (mut right, mut wrong, mut fewer) = (0, 0, 0);
        for seed in 0..400 {
            let mut random = weldment_ir::generate::Random::new(seed);
            let areas = 1 + random.below(4);
            let (epochs, ends) = (3 + random.below(3), random.one_in(2));
            let area = |rank: usize, epoch: u64| word(rank, DATA + 4 * (epoch % areas));
            let mut program = |rank: usize| {
                let mut events = Vec::new();
                for e in 0..epochs {
                    let sent = Content::Data(rank, events.len());
                    events.push(Event::Store { words: vec![(area(1 - rank, e), sent)] });
                    events.push(Event::Store { words: vec![(area(rank, e + areas - 1), Content::Empty)] });
                    events.push(Event::Arrive { words: vec![area(rank, e)] });
                    events.extend(ends.then_some(Event::End));
                }
                let at = random.below(events.len() as u64 - 1) as usize;
                match random.below(4) {
                    0 => drop(events.remove(at)),
                    1 => events.swap(at, at + 1),
                    _ => {}
                }
                events
            };
            let events = [program(0), program(1)];
            let words = (0..2).flat_map(|rank| (0..areas).map(move |e| (area(rank, e), Content::Empty)));
            let start: Vec<_> = words.collect();
            match [false, true].map(|reduced| search(&events, &start, reduced)) {
                [Ok(full), Ok(reduced)] => {
                    right += 1;
                    fewer += usize::from(reduced.states < full.states);
                }
                [Err(_), Err(_)] => wrong += 1,
                [full, reduced] => panic!("{full:?} but {reduced:?} of {events:?}"),
            }
        }
        assert!(right > 20 && wrong > 100 && fewer * 2 > right, "{right} right, {wrong} wrong, {fewer} reduced");
    }
}
