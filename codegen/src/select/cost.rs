//! The cost model: launch and barrier, bytes over bandwidth, multiply-adds over rate. Constants are of the order of a current
//! server core pair, or of a current data-centre GPU; only their ratios decide between graphs.

use crate::setup::Setup;
use weldment_ir::{Category, DType, Op, OpKind, TensorType};
use weldment_passes::target::{bytes_at, dim_at};

/// What a machine's launches are made of.
struct Rates {
    /// Nanoseconds a launch costs beyond its work: hand-out and barrier, or a node of a GPU graph.
    launch: f64,
    /// Bytes a nanosecond from memory, all threads.
    bandwidth: f64,
    /// f32 multiply-adds a nanosecond, all threads.
    rate: f64,
    /// 16-bit multiply-adds a nanosecond, with matrix units where there are some.
    matrix: f64,
}

const HOST: Rates = Rates { launch: 600.0, bandwidth: 40.0, rate: 50.0, matrix: 50.0 };
const GPU: Rates = Rates { launch: 1000.0, bandwidth: 4000.0, rate: 20_000.0, matrix: 200_000.0 };

/// What waiting for other ranks costs, in launches, and bytes a nanosecond that come from each.
const MEETING: f64 = 4.0;
const LINK: f64 = 300.0;

/// Share of the work that is left where rows that need no scores have none.
const SKIPPING: f64 = 0.95;

impl Rates {
    /// The target's, with what the user fixed.
    fn of(setup: &Setup) -> Rates {
        let rates = if setup.target.gpu().is_some() { GPU } else { HOST };
        let choices = &setup.choices;
        let fixed = |choice: Option<u32>, default: f64| choice.map_or(default, f64::from);
        Rates {
            launch: fixed(choices.cost_launch_ns, rates.launch),
            bandwidth: fixed(choices.cost_memory_gbps, rates.bandwidth),
            rate: fixed(choices.cost_vector_rate, rates.rate),
            matrix: fixed(choices.cost_matrix_rate, rates.matrix),
        }
    }
}

/// Estimated time of one launch of `op` on `target`.
pub fn nanoseconds(
    setup: &Setup,
    op: &Op,
    operands: &[TensorType],
    results: &[TensorType],
    dims: &dyn Fn(&str) -> u64,
) -> f64 {
    let category = op.kind().info().category;
    if category == Category::Leaf || (category == Category::View && !matches!(op.kind(), OpKind::Concat)) {
        return 0.0;
    }
    let machine = Rates::of(setup);
    let bytes = |types: &[TensorType]| types.iter().map(|t| bytes_at(t, dims) as f64).sum::<f64>();
    let elements = |t: &TensorType| t.shape.iter().map(|d| dim_at(d, dims) as f64).product::<f64>();
    let written = bytes(results);
    let (mut moved, mut work) = (bytes(operands) + written, 0.0);
    match op {
        Op::Gather { .. } | Op::GatherPart { .. } => moved = 2.0 * written,
        Op::CacheWrite { .. } | Op::RopeCacheWrite { .. } => {
            moved = operands.get(1).map_or(0.0, |x| 2.0 * bytes_at(x, dims) as f64)
        }
        // A cache is read as far as the context goes: the same in every form, so a constant share stands for it.
        Op::Attention { .. } => moved = 2.0 * written,
        // So it is here, whatever picks the positions.
        Op::SparseAttention { .. } => moved = 2.0 * written,
        // Keys are read once a sequence, up to the context. Rows below `skip` read none: a little less, so that the form that skips wins.
        Op::IndexScores { skip, .. } => {
            if let ([q, weights, keys, ..], [scores]) = (operands, results) {
                let columns = scores.shape.last().map_or(1.0, |c| dim_at(c, dims) as f64);
                let depth = keys.shape.get(2).map_or(1.0, |d| dim_at(d, dims) as f64);
                let rate = if q.dtype == DType::F32 { machine.rate } else { machine.matrix };
                let share = if *skip > 0 { SKIPPING } else { 1.0 };
                moved = bytes(&[q.clone(), weights.clone()]) + columns * depth * keys.dtype.block_bytes() as f64;
                moved = share * moved + written;
                work = share * elements(q) * columns / rate;
            }
        }
        Op::Matmul { .. } | Op::MatmulAdd { .. } | Op::MatmulSiluMul { .. } => {
            if let [x, w, ..] = operands {
                let matrices = if matches!(op, Op::MatmulSiluMul { .. }) { 2.0 } else { 1.0 };
                let k = x.shape.last().map_or(1.0, |k| (dim_at(k, dims) as f64).max(1.0));
                let rate = match (x.dtype, w.dtype.is_block()) {
                    (DType::Q8A, _) => machine.rate * 4.0,
                    (DType::F32, true) => machine.rate * 0.5,
                    (DType::F32, _) => machine.rate,
                    (_, true) => machine.matrix * 0.5,
                    _ => machine.matrix,
                };
                work = matrices * elements(x) / k * elements(w) / rate;
            }
        }
        Op::ScaledMatmul { .. } => {
            if let [x, _, w, ..] = operands {
                let k = x.shape.last().map_or(1.0, |k| (dim_at(k, dims) as f64).max(1.0));
                // Codes are widened in registers.
                work = elements(x) / k * elements(w) / (machine.matrix * 0.5);
            }
        }
        _ => work = results.iter().map(elements).sum::<f64>() * 4.0 / machine.rate,
    }
    // Each rank's part comes over a link, and a program waits for the slowest rank: never worth running twice. What is exchanged is
    // the first operand; the rest of what a fused op touches is this rank's own.
    let exchanged =
        op.world().unwrap_or(1).saturating_sub(1) as f64 * operands.first().map_or(0.0, |x| bytes_at(x, dims) as f64);
    let met = if op.communicates() { MEETING * machine.launch + exchanged / LINK } else { 0.0 };
    machine.launch + met + (moved / machine.bandwidth).max(work)
}
