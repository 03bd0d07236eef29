//! The cost model: launch and barrier, bytes over bandwidth, multiply-adds over rate. Constants are of the order of a current
//! server core pair, or of a current data-centre GPU; only their ratios decide between graphs.

use crate::request::{Request, Tensor};
use crate::setup::Setup;
use weldment_ir::effort::bytes_at;
use weldment_ir::{Category, DType, OpKind, TensorType};

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

/// Operations an element of what no contraction computes.
const OPERATIONS: f64 = 4.0;

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

/// Estimated time of one launch.
pub fn nanoseconds(request: &Request<'_>, dims: &dyn Fn(&str) -> u64) -> f64 {
    let (setup, op) = (request.setup, request.op);
    let category = op.kind().info().category;
    if category == Category::Leaf || (category == Category::View && !matches!(op.kind(), OpKind::Concat)) {
        return 0.0;
    }
    let types = |tensors: &[Tensor]| -> Vec<TensorType> { tensors.iter().map(|t| t.ty.clone()).collect() };
    let (operands, results) = (types(&request.operands), types(&request.results));
    let machine = Rates::of(setup);
    let effort = op.effort(&operands, &results, dims);
    let operations = effort.operations as f64;
    let work = match category {
        Category::Contraction => {
            let blocks = operands.iter().skip(1).any(|t| t.dtype.is_block());
            let x = operands.first().map_or(DType::F32, |x| x.dtype);
            let rate = match (x, blocks) {
                (DType::Q8A, _) => machine.rate * 4.0,
                (DType::F32, true) => machine.rate * 0.5,
                (DType::F32, _) => machine.rate,
                // Codes are widened in registers, blocks expanded.
                _ if blocks || !x.is_compute_float() => machine.matrix * 0.5,
                _ => machine.matrix,
            };
            operations / rate
        }
        _ => operations * OPERATIONS / machine.rate,
    };
    let moved = effort.bytes() as f64;
    // Each rank's part comes over a link, and a program waits for the slowest rank: never worth running twice. What is exchanged is
    // the first operand; the rest of what a fused op touches is this rank's own.
    let exchanged =
        op.world().unwrap_or(1).saturating_sub(1) as f64 * operands.first().map_or(0.0, |x| bytes_at(x, dims) as f64);
    let met = if op.communicates() { MEETING * machine.launch + exchanged / LINK } else { 0.0 };
    machine.launch + met + (moved / machine.bandwidth).max(work)
}
