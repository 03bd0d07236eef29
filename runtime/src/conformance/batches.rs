//! Batches give each of their sequences what it gets alone: with tables of every width, prompts beside single tokens, and entries of
//! other sequences' blocks behind a sequence's own.

use super::ensure;
use crate::artifact::{SymbolRole, Variant};
use crate::error::Result;
use crate::memory::Sequence;
use crate::session::{Session, StepInput};

/// Most sequences of a batch.
const MOST: usize = 16;

/// Numbers that look random, the same everywhere (a linear congruence of Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

/// A sequence in a batch: its blocks, how many positions it has, and the tokens of the step.
struct Member {
    sequence: Sequence,
    first: usize,
    tokens: Vec<i32>,
}

/// Checks batches of 1 to [`MOST`] sequences, as many as the artifact and the session's blocks allow.
///
/// # Errors
/// A batch that gives other logits than its sequences alone: in any bit on the host, where both run the same sums; by more than other
/// kernels' roundings on a GPU.
pub(super) fn check(session: &mut Session) -> Result<()> {
    let kv_block = session.manifest().block_positions() as usize;
    let tokens = most_tokens(session);
    let most =
        MOST.min(session.range(&SymbolRole::Sequences).1).min(tokens).min(session.range(&SymbolRole::LogitRows).1);
    let mut numbers = Numbers(7);
    for batch in 1..=most {
        let blocks = session.block_pool().blocks() / batch;
        let longest = (blocks * kv_block).min(session.max_positions());
        if longest < 2 {
            break;
        }
        let members = members(session, &mut numbers, (batch, tokens), longest)?;
        let needed = members.iter().map(|m| m.sequence.blocks().len()).max().unwrap_or(1);
        let (least, widest) = session.range(&SymbolRole::BLOCKS);
        let least = least.max(needed);
        let mut widths: Vec<usize> = (least..=widest).collect();
        if batch != 3 {
            // All of a few, some of many.
            widths.retain(|w| *w < least + 2 || *w + 2 > widest || *w % 7 == batch % 7 && *w < least + 64);
        } else {
            widths.retain(|w| *w < least + 64 || *w + 2 > widest);
        }
        let mut expected = Vec::new();
        for member in &members {
            let width = least + numbers.below(widest - least + 1);
            expected.extend(step(session, std::slice::from_ref(member), &members, width)?);
        }
        for width in widths {
            let found = step(session, &members, &members, width)?;
            agree(session, &expected, &found, || format!("{batch} sequences with tables of {width} blocks"))?;
        }
    }
    Ok(())
}

/// Checks steps of no tokens and steps that are asked for no logits, where the artifact takes them: they give none, and leave what other
/// steps give as it is.
///
/// # Errors
/// Such a step that gives something, or after which a sequence gets other logits.
pub(super) fn check_nothing(session: &mut Session) -> Result<()> {
    let least = [SymbolRole::Tokens, SymbolRole::Sequences, SymbolRole::LogitRows].map(|role| session.range(&role).0);
    let tokens = most_tokens(session);
    let longest =
        session.max_positions().min(session.block_pool().blocks() * session.manifest().block_positions() as usize);
    if least != [0; 3] || longest < 4 {
        return Ok(());
    }
    let members = members(session, &mut Numbers(11), (1, tokens), longest)?;
    let width =
        session.range(&SymbolRole::BLOCKS).0.max(members.iter().map(|m| m.sequence.blocks().len()).max().unwrap_or(1));
    let expected = step(session, &members, &members, width)?;
    let nothing = StepInput { tokens: &[], positions: &[], seq_starts: &[0], block_tables: &[], logit_rows: &[] };
    for (what, rows) in [("a step of no tokens", 0), ("a step that is asked for no logits", 1)] {
        let given = match rows {
            0 => session.step(&nothing)?.len(),
            _ => silent_step(session, &members, &members, width)?,
        };
        ensure(given == 0, || format!("{what} gave {given} logits"))?;
        let found = step(session, &members, &members, width)?;
        agree(session, &expected, &found, || format!("after {what}"))?;
    }
    Ok(())
}

/// Tokens that some variant takes in one step.
fn most_tokens(session: &Session) -> usize {
    let (manifest, program) = (session.manifest(), session.program());
    let Some((symbol, range)) = manifest.symbol_of(&SymbolRole::Tokens) else { return 1 };
    let of = |variant: &Variant| {
        let own = variant.guards.iter().filter(|g| g.symbol as usize == symbol).map(|g| g.max);
        own.fold(range.max, u64::min)
    };
    let variants = program.entries.iter().flat_map(|e| &e.variants);
    variants.map(of).max().map_or(1, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// Sequences that have computed some positions, with one token to come or several.
fn members(
    session: &mut Session,
    numbers: &mut Numbers,
    (batch, tokens): (usize, usize),
    longest: usize,
) -> Result<Vec<Member>> {
    let vocab = session.model().vocab_size as usize;
    let mut room = tokens - batch;
    let mut members = Vec::new();
    for index in 0..batch {
        let mut sequence = session.new_sequence();
        let first = numbers.below(longest.min(72));
        let history: Vec<i32> = (0..first).map(|_| numbers.below(vocab) as i32).collect();
        for part in history.chunks(tokens) {
            session.extend(&mut sequence, part)?;
        }
        let more = if index % 3 == 1 { numbers.below(room.min(longest - first - 1).min(40) + 1) } else { 0 };
        room -= more;
        let tokens: Vec<i32> = (0..more + 1).map(|_| numbers.below(vocab) as i32).collect();
        session.reserve(&mut sequence, first + tokens.len())?;
        members.push(Member { sequence, first, tokens });
    }
    Ok(members)
}

/// Logits of the last tokens of `of`, in one step with tables of `width`; behind a sequence's own blocks stand those of `all`.
fn step(session: &mut Session, of: &[Member], all: &[Member], width: usize) -> Result<Vec<f32>> {
    step_of(session, of, all, width, true)
}

/// The same step without asking for logits; how many came.
fn silent_step(session: &mut Session, of: &[Member], all: &[Member], width: usize) -> Result<usize> {
    step_of(session, of, all, width, false).map(|logits| logits.len())
}

fn step_of(session: &mut Session, of: &[Member], all: &[Member], width: usize, asked: bool) -> Result<Vec<f32>> {
    let (mut tokens, mut positions, mut tables, mut rows) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut starts = vec![0];
    let others: Vec<i32> = all.iter().flat_map(|m| m.sequence.blocks().iter().copied()).collect();
    for member in of {
        tokens.extend_from_slice(&member.tokens);
        positions.extend((member.first..member.first + member.tokens.len()).map(|p| p as i32));
        rows.push(tokens.len() as i32 - 1);
        starts.push(tokens.len() as i32);
        let own = member.sequence.blocks();
        tables.extend_from_slice(own);
        tables.extend(others.iter().rev().cycle().take(width.saturating_sub(own.len())));
    }
    let input = StepInput {
        tokens: &tokens,
        positions: &positions,
        seq_starts: &starts,
        block_tables: &tables,
        logit_rows: if asked { &rows } else { &[] },
    };
    session.step(&input).map(<[f32]>::to_vec)
}

fn agree(session: &Session, expected: &[f32], found: &[f32], what: impl Fn() -> String) -> Result<()> {
    let scale = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    let worst = expected.iter().zip(found).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    let bound = if session.device().driver().name() == "host" { 0.0 } else { super::OTHER_SUMS * scale };
    let holds = expected.len() == found.len() && worst <= bound && found.iter().all(|x| x.is_finite());
    ensure(holds, || format!("{}: logits differ by {worst} of {scale} from those of each alone", what()))
}
