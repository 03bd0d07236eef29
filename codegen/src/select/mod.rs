//! Kernel selection: which family runs an op, whether it may, and what it costs. The passes ask through [`TargetModel`],
//! bufferisation through [`KernelNeeds`], code generation through [`build`]; all end in the families' own checks.

mod choices;
mod cost;
pub mod stages;
mod thresholds;

pub use choices::{Accepted, Choice, Choices};

use crate::kernels::{
    Built, Request, RowSpace, Tensor, attention, collective, contiguous_last, gather, general, index_scores, library,
    matmul, norm, pointwise, quantise, reduce, refuse, require, rope, row_stride, scaled_matmul, topk,
};
use crate::setup::Setup;
use weldment_ir::{Category, DType, Dim, Graph, NodeId, Op, OpKind, TensorType};
use weldment_passes::buffer::KernelNeeds;
use weldment_passes::specialise::Threshold;
use weldment_passes::target::{Refusal, TargetModel};

/// The largest dim that the families know.
const LARGEST_DIM: u64 = 1 << 28;

type Check = fn(&Request<'_>) -> Result<(), Refusal>;
type Build = fn(&Request<'_>) -> Result<Built, Refusal>;

/// How a family addresses one operand or result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Rows at one stride, elements contiguous.
    Rows,
    /// Any strides, elements contiguous.
    Contiguous,
    /// Elements at one stride.
    Points,
    /// Any strides.
    Any,
}

/// Which results may take the bytes of operands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// None: elements are read again after others were written.
    Never,
    /// Any operand of the result's shape: each thread stores what it alone loaded, after it did.
    Elements,
    /// Result i those of operand i, weights excepted: a row is written by the program that read it, behind its reads.
    Rows,
}

struct Family {
    shares: Sharing,
    check: Check,
    build: Build,
    /// Operand access in order; the last entry repeats.
    operands: &'static [Access],
    result: Access,
}

/// The family of an op; `None` for leaves, which need no kernel.
fn family(op: &Op) -> Option<Family> {
    use Access::{Any, Contiguous, Points, Rows};
    Some(match op.kind() {
        OpKind::Matmul | OpKind::MatmulAdd => Family {
            shares: Sharing::Never,
            check: matmul::check,
            build: matmul::build,
            operands: &[Rows, Any, Rows],
            result: Rows,
        },
        OpKind::MatmulSiluMul => Family {
            shares: Sharing::Never,
            check: matmul::check,
            build: matmul::build,
            operands: &[Rows, Any],
            result: Rows,
        },
        OpKind::ScaledMatmul => Family {
            shares: Sharing::Never,
            check: scaled_matmul::check,
            build: scaled_matmul::build,
            operands: &[Rows, Rows, Any],
            result: Rows,
        },
        OpKind::Quantise => Family {
            shares: Sharing::Never,
            check: quantise::check,
            build: quantise::build,
            operands: &[Contiguous],
            result: Contiguous,
        },
        OpKind::RmsNormQuantise | OpKind::AddRmsNormQuantise => Family {
            // Results lie in another order than operands.
            shares: Sharing::Never,
            check: norm::check,
            build: norm::build,
            operands: &[Contiguous],
            result: Contiguous,
        },
        OpKind::RmsNorm | OpKind::AddRmsNorm => Family {
            shares: Sharing::Rows,
            check: norm::check,
            build: norm::build,
            operands: &[Contiguous],
            result: Contiguous,
        },
        OpKind::Rope => Family {
            shares: Sharing::Never,
            check: rope::check,
            build: rope::build,
            operands: &[Contiguous, Any, Contiguous],
            result: Contiguous,
        },
        OpKind::CacheWrite | OpKind::RopeCacheWrite => Family {
            shares: Sharing::Never,
            check: rope::check,
            build: rope::build,
            operands: &[Contiguous, Contiguous, Any, Any],
            result: Contiguous,
        },
        OpKind::Attention => Family {
            shares: Sharing::Never,
            check: attention::check,
            build: attention::build,
            operands: &[Contiguous, Contiguous, Contiguous, Any],
            result: Contiguous,
        },
        OpKind::SparseAttention => Family {
            shares: Sharing::Never,
            check: attention::sparse::check,
            build: attention::sparse::build,
            operands: &[Contiguous, Contiguous, Contiguous, Contiguous, Any],
            result: Contiguous,
        },
        OpKind::IndexScores => Family {
            shares: Sharing::Never,
            check: index_scores::check,
            build: index_scores::build,
            operands: &[Contiguous, Any, Contiguous, Any],
            result: Contiguous,
        },
        OpKind::Topk | OpKind::Window => Family {
            shares: Sharing::Never,
            check: topk::check,
            build: topk::build,
            operands: &[Contiguous, Any],
            result: Contiguous,
        },
        OpKind::AllReduceRmsNormQuantise | OpKind::AllReduceAddRmsNormQuantise => Family {
            // Results lie in another order than operands.
            shares: Sharing::Never,
            check: collective::all_reduce::check,
            build: collective::all_reduce::build,
            operands: &[Rows],
            result: Rows,
        },
        OpKind::AllReduce | OpKind::AllReduceRmsNorm | OpKind::AllReduceAddRmsNorm => Family {
            shares: Sharing::Rows,
            check: collective::all_reduce::check,
            build: collective::all_reduce::build,
            operands: &[Rows],
            result: Rows,
        },
        OpKind::AllGather => Family {
            shares: Sharing::Never,
            check: collective::all_gather::check,
            build: collective::all_gather::build,
            operands: &[Rows],
            result: Rows,
        },
        OpKind::ReduceScatter => Family {
            shares: Sharing::Never,
            check: collective::reduce_scatter::check,
            build: collective::reduce_scatter::build,
            operands: &[Rows],
            result: Rows,
        },
        OpKind::Gather | OpKind::GatherPart => Family {
            shares: Sharing::Never,
            check: gather::check,
            build: gather::build,
            operands: &[Contiguous, Points],
            result: Rows,
        },
        OpKind::ReduceSum | OpKind::ReduceMean | OpKind::ReduceMax | OpKind::Softmax => Family {
            shares: Sharing::Never,
            check: reduce::check,
            build: reduce::build,
            operands: &[Rows],
            result: Rows,
        },
        kind => match kind.info().category {
            Category::Elementwise | Category::View => Family {
                shares: Sharing::Elements,
                check: pointwise::check,
                build: pointwise::build,
                operands: &[Any],
                result: Any,
            },
            _ => return None,
        },
    })
}

fn accepts(access: Access, ty: &TensorType, strides: &[u64]) -> Result<(), String> {
    let t = Tensor { strides: strides.to_vec(), ..Tensor::contiguous(ty) };
    let refused = match access {
        Access::Any => return Ok(()),
        Access::Contiguous => contiguous_last(&t),
        // Rows that fold in no layout are the general family's, which addresses any.
        Access::Rows if !folds(ty) => return Ok(()),
        Access::Rows => contiguous_last(&t).and_then(|()| row_stride(&t).map(|_| ())),
        Access::Points if !folds(&Tensor::contiguous(ty).points().ty) => return Ok(()),
        Access::Points => row_stride(&t.points()).map(|_| ()),
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

impl TargetModel for KernelLibrary {
    fn supports(&self, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Result<(), Refusal> {
        let category = op.kind().info().category;
        if matches!(category, Category::Leaf | Category::View) {
            return Ok(());
        }
        let Some(family) = family(op) else { return Ok(()) };
        let mut request = Request {
            op,
            operands: operands.iter().map(Tensor::contiguous).collect(),
            results: results.iter().map(Tensor::contiguous).collect(),
            max_tokens: self.max_tokens,
            setup: &self.setup,
        };
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
        (family.check)(&request)
    }

    fn cost(&self, op: &Op, operands: &[TensorType], results: &[TensorType], dims: &dyn Fn(&str) -> u64) -> f64 {
        cost::nanoseconds(&self.setup, op, operands, results, dims)
    }

    fn thresholds(&self, op: &Op, operands: &[TensorType], results: &[TensorType]) -> Vec<Threshold> {
        thresholds::of(&self.setup, op, operands, results)
    }
}

impl KernelNeeds for KernelLibrary {
    fn read(&self, op: &Op, operand: usize, ty: &TensorType, strides: &[u64]) -> Result<(), String> {
        let Some(family) = family(op) else { return Ok(()) };
        if self.setup.target.gpu().is_some() && is_cache(op, operand) {
            return Ok(());
        }
        let access = family.operands.get(operand).or(family.operands.last()).copied().unwrap_or(Access::Any);
        if ty.dtype == DType::Q8A && access != Access::Rows {
            return accepts(Access::Contiguous, ty, strides);
        }
        accepts(access, ty, strides)
    }

    fn write(&self, op: &Op, _: usize, ty: &TensorType, strides: &[u64]) -> Result<(), String> {
        let Some(family) = family(op) else { return Ok(()) };
        if self.setup.target.gpu().is_some() && op.kind().info().category == Category::StateWrite {
            return Ok(());
        }
        let access =
            if ty.dtype == DType::Q8A && family.result == Access::Any { Access::Contiguous } else { family.result };
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
        let Some(family) = family(&node.op) else { return false };
        let blocks = node.types.iter().any(|t| t.dtype == DType::Q8A);
        match family.shares {
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
        match (&node.op, &node.operands[..]) {
            (Op::Attention { .. }, [q, keys, values, ..]) => {
                let operands = [q, keys, values].map(|v| graph.type_of(*v));
                attention::scratch(operands, self.max_tokens, &self.setup)
            }
            (Op::SparseAttention { .. }, [q, keys, values, ..]) => {
                let operands = [q, keys, values].map(|v| graph.type_of(*v));
                attention::sparse::scratch(operands, self.max_tokens, &self.setup)
            }
            _ => 0,
        }
    }
}

/// The kernel of a request: of its op's family, or the general one where that refuses.
///
/// # Errors
/// What the op's family refuses, if the general one does not take it either: an exchange between ranks.
pub fn build(request: &Request<'_>) -> Result<Built, Refusal> {
    let refused = match family(request.op) {
        Some(family) => {
            match no_q8a_on_gpus(request).and_then(|()| in_range(request)).and_then(|()| (family.build)(request)) {
                Ok(built) => return Ok(built),
                Err(refusal) => Some(refusal),
            }
        }
        None => None,
    };
    general::build(request).map_err(|general| refused.unwrap_or(general))
}
