//! Kernel selection: which family runs an op, whether it may, and what it costs. The passes ask through [`TargetModel`],
//! bufferisation through [`KernelNeeds`], code generation through [`build`]; all end in the families' own checks.

mod thresholds;

use crate::family::{Sharing, Strides};
use crate::kernels::{attention, family, general, library};

use crate::choices::Choices;
use crate::request::{Built, Request, RowSpace, Tensor, contiguous_last, refuse, require, row_stride};
use crate::setup::Setup;
use weldment_ir::{Category, DType, Dim, Graph, NodeId, Op, OpKind, TensorType};
use weldment_passes::buffer::KernelNeeds;
use weldment_passes::specialise::Threshold;
use weldment_passes::target::{Refusal, TargetModel};

/// The largest dim that the families know.
const LARGEST_DIM: u64 = 1 << 28;

fn accepts(access: Strides, ty: &TensorType, strides: &[u64]) -> Result<(), String> {
    let t = Tensor { strides: strides.to_vec(), ..Tensor::contiguous(ty) };
    let refused = match access {
        Strides::Any => return Ok(()),
        Strides::Contiguous => contiguous_last(&t),
        // Rows that fold in no layout are the general family's, which addresses any.
        Strides::Rows if !folds(ty) => return Ok(()),
        Strides::Rows => contiguous_last(&t).and_then(|()| row_stride(&t).map(|_| ())),
        Strides::Points if !folds(&Tensor::contiguous(ty).points().ty) => return Ok(()),
        Strides::Points => row_stride(&t.points()).map(|_| ()),
    };
    refused.map_err(|r| r.to_string())
}

/// Do the leading dims of a tensor in row-major order fold into one?
fn folds(ty: &TensorType) -> bool {
    let lead = ty.rank().saturating_sub(1);
    RowSpace::of(&ty.shape[..lead]).is_ok() && row_stride(&Tensor::contiguous(ty)).is_ok()
}

/// A target's kernels for one variant.
#[derive(Clone, Debug)]
pub struct KernelLibrary {
    /// Machine, choices and symbols.
    pub setup: Setup,
    /// Largest number of tokens of the variant.
    pub max_tokens: u64,
}

/// True for operands that are paged caches.
fn is_cache(op: &Op, operand: usize) -> bool {
    op.paged().is_some_and(|paged| paged.caches.contains(&operand))
}

/// Families count elements of a dim, rounded up to powers of two, in 32 bits.
fn in_range(r: &Request<'_>) -> Result<(), Refusal> {
    let dims = r.operands.iter().chain(&r.results).flat_map(|t| &t.ty.shape);
    let largest = dims.filter_map(Dim::constant).max().unwrap_or(1);
    require(largest <= LARGEST_DIM, "dim", largest, format!("up to {LARGEST_DIM}"))
}

/// Quantised activations are the host's: a GPU is short of bandwidth, not of multiply-adds.
fn no_q8a_on_gpus(r: &Request<'_>) -> Result<(), Refusal> {
    let quantised = r.operands.iter().chain(&r.results).any(|t| t.ty.dtype == DType::Q8A);
    require(!(quantised && r.target().gpu().is_some()), "activation dtype on GPUs", DType::Q8A, "f32, f16 or bf16")
}

impl KernelLibrary {
    /// A request of which types alone are known.
    fn request<'a>(
        &'a self,
        op: &'a Op,
        operands: &[TensorType],
        results: &[TensorType],
        choices: Choices,
    ) -> Request<'a> {
        Request {
            op,
            operands: operands.iter().map(Tensor::contiguous).collect(),
            results: results.iter().map(Tensor::contiguous).collect(),
            max_tokens: self.max_tokens,
            setup: &self.setup,
            choices,
        }
    }
}

impl TargetModel for KernelLibrary {
    fn supports(&self, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Result<(), Refusal> {
        let category = op.kind().info().category;
        if matches!(category, Category::Leaf | Category::View) {
            return Ok(());
        }
        let Some(family) = family(op.kind()) else { return Ok(()) };
        let mut request = self.request(op, operands, results, self.setup.choices);
        // Types alone do not say whether a weight is static; the matmul and gather kernels take both kinds.
        for (i, t) in request.operands.iter_mut().enumerate() {
            t.is_static = matches!(
                (op.kind(), i),
                (OpKind::Matmul | OpKind::MatmulAdd, 1)
                    | (OpKind::ScaledMatmul, 2 | 3)
                    | (OpKind::MatmulSiluMul, 1 | 2)
                    | (OpKind::Gather | OpKind::GatherPart, 0)
            );
        }
        no_q8a_on_gpus(&request)?;
        if matches!(op, Op::MatmulSiluMul { .. }) && library::takes(&request) {
            let from = library::from_tokens(&self.setup.choices);
            let accepted = format!("fewer than {from}: more go to the vendor's library");
            return refuse("tokens", self.max_tokens, accepted);
        }
        family.check(&request)
    }

    fn cost(&self, op: &Op, operands: &[TensorType], results: &[TensorType], dims: &dyn Fn(&str) -> u64) -> f64 {
        let request = self.request(op, operands, results, self.setup.choices);
        family(op.kind()).map_or(0.0, |family| family.cost(&request, dims))
    }

    fn thresholds(&self, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Vec<Threshold> {
        thresholds::of(&self.setup, op, operands, results)
    }
}

impl KernelNeeds for KernelLibrary {
    fn read(&self, op: &Op, operand: usize, ty: &TensorType, strides: &[u64]) -> Result<(), String> {
        let Some(family) = family(op.kind()) else { return Ok(()) };
        if self.setup.target.gpu().is_some() && is_cache(op, operand) {
            return Ok(());
        }
        let operands = family.addressing(op.kind()).operands;
        let access = operands.get(operand).or(operands.last()).copied().unwrap_or(Strides::Any);
        if ty.dtype == DType::Q8A && access != Strides::Rows {
            return accepts(Strides::Contiguous, ty, strides);
        }
        accepts(access, ty, strides)
    }

    fn write(&self, op: &Op, _: usize, ty: &TensorType, strides: &[u64]) -> Result<(), String> {
        let Some(family) = family(op.kind()) else { return Ok(()) };
        if self.setup.target.gpu().is_some() && op.kind().info().category == Category::StateWrite {
            return Ok(());
        }
        let results = family.addressing(op.kind()).results;
        let access = if ty.dtype == DType::Q8A && results == Strides::Any { Strides::Contiguous } else { results };
        accepts(access, ty, strides)
    }

    fn state_order(&self, graph: &Graph, state: &str) -> Option<Vec<usize>> {
        let leaf = graph.ids().find(|id| {
            let named = matches!(&graph.node(*id).op, Op::State { name, .. } if &**name == state);
            named && graph.users(*id).any(|(user, used)| is_cache(&graph.node(user).op, used.operand as usize))
        })?;
        attention::state_order(graph.node(leaf).types[0].dtype, &self.setup.target)
    }

    fn shares(&self, graph: &Graph, node: NodeId, operand: usize, result: usize) -> bool {
        let node = graph.node(node);
        let Some(family) = family(node.op.kind()) else { return false };
        let blocks = node.types.iter().any(|t| t.dtype == DType::Q8A);
        match family.addressing(node.op.kind()).shares {
            Sharing::Never => false,
            Sharing::Elements => !blocks && node.op.kind().info().category == Category::Elementwise,
            // A program of the host walks its row alone; on GPUs threads that hold copies of elements may still be reading.
            Sharing::Rows => {
                !blocks && self.setup.target.gpu().is_none() && operand + 1 < node.operands.len() && operand == result
            }
        }
    }

    fn scratch(&self, graph: &Graph, node: NodeId) -> u64 {
        let node = graph.node(node);
        let Some(family) = family(node.op.kind()) else { return 0 };
        let operands: Vec<TensorType> = node.operands.iter().map(|v| graph.type_of(*v).clone()).collect();
        family.scratch(&self.request(&node.op, &operands, &node.types, self.setup.choices_at(node)))
    }
}

/// The kernel of a request: of its op's family, or the general one where that refuses.
///
/// # Errors
/// What the op's family refuses, if the general one does not take it either: an exchange between ranks.
pub fn build(request: &Request<'_>) -> Result<Built, Refusal> {
    let refused = match family(request.op.kind()) {
        Some(family) => {
            match no_q8a_on_gpus(request).and_then(|()| in_range(request)).and_then(|()| family.build(request)) {
                Ok(built) => return Ok(built),
                Err(refusal) => Some(refusal),
            }
        }
        None => None,
    };
    general::build(request).map_err(|general| refused.unwrap_or(general))
}
