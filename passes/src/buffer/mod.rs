//! Bufferisation: every value gets a place, every kernel a turn.
//!
//! The graph is pure; this pass decides where bytes live. Laws:
//! * a view op (reshape, transpose, slice, broadcast) is strides over its operand's bytes, not a step;
//! * a producer writes straight into its consumer's slot: a concat part, a graph result, a state;
//! * a state version has one writer in place, after every reader of the version before it; anything else is a copy;
//! * a result takes the bytes of an operand that dies with the step, where its kernel can do that;
//! * every copy left is a step and is listed with its reason;
//! * steps of one epoch (the steps between two barriers) touch disjoint bytes unless all of them only read, so a driver
//!   may overlap them; two arena buffers share bytes only if no epoch needs both;
//! * an epoch has one collective at most, and every plan of a graph runs them in one order;
//! * a symbolic dim has room for [`ROW_MULTIPLE`] rows at a time in the arena and in outputs (in inputs: the leading dim),
//!   so a tail kernel may read and write surplus rows there; a state has none.

mod arena;
mod build;
mod check;
mod layout;
mod packing;
mod places;
mod schedule;
mod share;
mod states;
#[cfg(test)]
mod tests;

pub use check::{Fault, Violation, check};
pub use weldment_artifact::limits::ROW_MULTIPLE;

use std::sync::Arc;
use thiserror::Error;
use weldment_ir::{Category, Graph, IrError, NodeId, Op, TensorType, Value};

/// What bufferisation can refuse.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BufferError {
    /// A type or graph rule.
    #[error(transparent)]
    Ir(#[from] IrError),
    /// A dim that the graph does not declare.
    #[error("dim `{0}` is not declared; a symbol with a range is expected")]
    UndeclaredSymbol(String),
    /// A buffer at the symbols' maximum does not fit.
    #[error("{0} at the maximum of its dims is larger than 2^63 bytes; lower the ranges (--dim, --max-seq)")]
    TooLarge(String),
    /// Two outputs of one name.
    #[error("output `{0}` is named twice; names of one kind must differ")]
    DuplicateOutput(String),
    /// A target that lays a state out in an order that is none.
    #[error("internal: state `{0}` in the order {1:?}, which is no order of its dims or moves a symbolic one")]
    StateOrder(String, Vec<usize>),
    /// Steps that wait for each other: a bug of this pass, reported rather than looped on.
    #[error("internal: the steps of `{0}` depend on each other in a circle")]
    Cycle(String),
    /// A plan that [`check`] does not accept: a bug of this pass.
    #[error("internal: the plan of `{graph}` is wrong: {violation}")]
    Unsound {
        /// The graph's name.
        graph: String,
        /// What is wrong.
        violation: Box<Violation>,
    },
}

/// A place in memory that outlives one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Region {
    /// The session's scratch memory.
    Arena,
    /// A static value; codegen decides how each is packed, so strides are those of its logical layout.
    Weights(Value),
    /// A state by name.
    State(Arc<str>),
    /// A step input by name.
    Input(Arc<str>),
    /// A graph result by name.
    Output(Arc<str>),
}

/// Where a value's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Which memory.
    pub region: Region,
    /// Bytes from the region's start.
    pub offset: u64,
    /// Elements from one index of a dim to the next; 0 where a dim repeats. Of block formats, multiples of the block
    /// except the last, which is 1.
    pub strides: Vec<u64>,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepKind {
    /// Runs the kernel of a node.
    Kernel(NodeId),
    /// Moves `reads[0]` to `writes[0]`, both of type `ty`.
    Copy {
        /// The value whose elements move (a part of it, if `ty` differs).
        value: Value,
        /// dtype and shape of what moves.
        ty: TensorType,
    },
}

/// One launch of the schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it does.
    pub kind: StepKind,
    /// One view per operand, in operand order.
    pub reads: Vec<View>,
    /// One view per result, in result order.
    pub writes: Vec<View>,
    /// True if all earlier steps must have finished; false if it may overlap those since the last barrier.
    pub barrier: bool,
    /// Arena offset of the scratch bytes that [`KernelNeeds::scratch`] asked for.
    pub scratch: Option<u64>,
}

/// A copy that could not be avoided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyRecord {
    /// Its place in `steps`.
    pub step: usize,
    /// Source path of the node that caused it.
    pub source: String,
    /// Bytes moved at the dims' maximum.
    pub bytes: u64,
    /// Why the value could not be written in place.
    pub reason: String,
}

/// A buffer that the session owns or the caller gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Input, output or state name.
    pub name: Arc<str>,
    /// Logical type.
    pub ty: TensorType,
    /// Physical strides in elements.
    pub strides: Vec<u64>,
    /// Bytes to allocate, surplus rows included.
    pub bytes: u64,
    /// It lies row-major at a step's own dims, not at `strides`, which are those of the largest step: an input with inner symbolic
    /// dims that nothing reads but as block tables, whose kernels take the distance of rows from the dims block.
    pub dense: bool,
}

/// The plan of one graph. Everything in it is a function of the graph, the needs and the seed of [`bufferise_with`] alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferPlan {
    /// For each node, for each result: its place. `None` for dead nodes and for static values that no step reads.
    pub places: Vec<Vec<Option<View>>>,
    /// The schedule.
    pub steps: Vec<Step>,
    /// Copies left in it.
    pub copies: Vec<CopyRecord>,
    /// Static values that steps read, in node order.
    pub hoisted: Vec<Value>,
    /// Declared inputs, in node order, dead ones included.
    pub inputs: Vec<External>,
    /// Graph results, in output order.
    pub outputs: Vec<External>,
    /// Declared states, in node order, dead ones included.
    pub states: Vec<External>,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// The most bytes that are alive in one epoch: no placement of this schedule needs less.
    pub arena_lower_bound: u64,
}

impl BufferPlan {
    /// Place of a value.
    pub fn place(&self, v: Value) -> Option<&View> {
        self.places.get(v.node.index())?.get(v.result as usize)?.as_ref()
    }

    /// Number of epochs: barriers + 1, or 0 without steps.
    pub fn epochs(&self) -> usize {
        usize::from(!self.steps.is_empty()) + self.steps.iter().filter(|s| s.barrier).count()
    }

    /// Bytes that copies move in one step at the dims' maximum.
    pub fn copied_bytes(&self) -> u64 {
        self.copies.iter().fold(0, |n, c| n.saturating_add(c.bytes))
    }
}

/// What the kernels of a target can address; a refusal becomes a counted copy.
pub trait KernelNeeds {
    /// May the kernel of `op` read operand `operand` of type `ty` through `strides`?
    ///
    /// # Errors
    /// Why not, in words for the copy list.
    fn read(&self, op: &Op, operand: usize, ty: &TensorType, strides: &[u64]) -> Result<(), String> {
        let _ = (op, operand, ty, strides);
        Ok(())
    }

    /// May the kernel of `op` write result `result` of type `ty` through `strides`?
    ///
    /// # Errors
    /// Why not, in words for the copy list.
    fn write(&self, op: &Op, result: usize, ty: &TensorType, strides: &[u64]) -> Result<(), String> {
        let _ = (op, result, ty, strides);
        Ok(())
    }

    /// Order in memory of the dims of a state, outermost first, where the kernels that read it want another than row-major. It
    /// must be the same for every variant of an entry.
    fn state_order(&self, graph: &Graph, state: &str) -> Option<Vec<usize>> {
        let _ = (graph, state);
        None
    }

    /// May result `result` of the kernel of `node` take the very bytes of operand `operand`, element for element? The kernel then
    /// reads each element of the operand before it writes that place, and never again. Types and strides are known to agree.
    fn shares(&self, graph: &Graph, node: NodeId, operand: usize, result: usize) -> bool {
        let _ = (operand, result);
        graph.node(node).op.kind().info().category == Category::Elementwise
    }

    /// Arena bytes that the kernel of `node` needs for itself while it runs.
    fn scratch(&self, graph: &Graph, node: NodeId) -> u64 {
        let _ = (graph, node);
        0
    }
}

/// Kernels that address any strides and need no scratch.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnyStrides;

impl KernelNeeds for AnyStrides {}

/// Places every value of `graph` and schedules its kernels.
///
/// # Errors
/// If a dim is undeclared, a buffer is over 2^63 bytes, or two outputs share a name.
pub fn bufferise(graph: &Graph, needs: &dyn KernelNeeds) -> Result<BufferPlan, BufferError> {
    bufferise_with(graph, needs, None)
}

/// [`bufferise`], with what must not matter perturbed by a seed: the epochs of steps that may wait, the order of the steps of an
/// epoch, where the arena's buffers lie.
///
/// # Errors
/// As [`bufferise`].
pub fn bufferise_with(graph: &Graph, needs: &dyn KernelNeeds, chaos: Option<u64>) -> Result<BufferPlan, BufferError> {
    let mut draft = places::assign(graph, needs)?;
    build::steps(&mut draft)?;
    states::order(&mut draft)?;
    share::in_place(&mut draft);
    let epochs = schedule::epochs(&draft, chaos)?;
    let plan = arena::finish(draft, &epochs, chaos)?;
    check(graph, &plan, needs)
        .map_err(|violation| BufferError::Unsound { graph: graph.name.clone(), violation: Box::new(violation) })?;
    Ok(plan)
}
