//! One node: the exhaustive match on the op table.

use super::domain::{Domain, Fault, Options, RopeSpec, widens};
use super::function::Function;
use super::tensor::{Data, Tensor, wrap};
use super::{Machine, attention, contract, elementwise, indexed, sparse, view};
use crate::DType;
use crate::graph::Node;
use crate::op::Op;
use std::sync::Arc;

/// Results of one node. `shapes` are those of its results; the shape rules have been applied, so ranks and constant dims hold.
pub(super) fn evaluate<D: Domain>(
    machine: &Machine<'_, D>,
    node: &Node,
    mut operands: Vec<Tensor<D::Value>>,
    shapes: &[Vec<usize>],
) -> Result<Vec<Tensor<D::Value>>, Fault> {
    let shape = shapes.first().ok_or("a node without results")?.as_slice();
    let dtype = node.types.first().ok_or("a node without results")?.dtype;
    let options = machine.options;
    let o = &operands;
    let apply = |f: Function| -> Result<Tensor<D::Value>, Fault> {
        let values = o[0].reals::<D>()?.iter().map(|v| D::apply(f, *v)).collect();
        Ok(finish::<D>(dtype, shape, values, false, options))
    };
    let out = match &node.op {
        Op::Input { name, .. } | Op::Weight { name, .. } | Op::State { name, .. } => {
            let binding = machine.bindings.get(name).ok_or_else(|| format!("`{name}` is not bound"))?;
            binding.tensor::<D>(dtype, shape)?
        }
        Op::Constant { value, .. } => constant::<D>(value.0, dtype)?,
        Op::RopeTable { positions, dim, theta, factor, low, high, original } => {
            let size = |n: i64| usize::try_from(n).map_err(|e| Fault::Message(e.to_string()));
            let spec = RopeSpec {
                positions: size(*positions)?,
                dim: size(*dim)?,
                theta: theta.0,
                factor: factor.0,
                low: low.0,
                high: high.0,
                original: *original,
            };
            indexed::rope_table::<D>(&spec, o.first(), options)?
        }
        Op::Numbers { values } => {
            let values: Result<Vec<D::Value>, Fault> = values.iter().map(|v| number::<D>(v.0)).collect();
            finish::<D>(dtype, shape, values?, false, options)
        }
        Op::Iota { .. } => sparse::iota(shape),

        Op::Add {} => elementwise::arithmetic::<D>(&node.op, o, shape, options)?,
        Op::Sub {} => elementwise::arithmetic::<D>(&node.op, o, shape, options)?,
        Op::Mul {} => elementwise::arithmetic::<D>(&node.op, o, shape, options)?,
        Op::Div {} => elementwise::arithmetic::<D>(&node.op, o, shape, options)?,
        Op::Maximum {} => elementwise::arithmetic::<D>(&node.op, o, shape, options)?,
        Op::Minimum {} => elementwise::arithmetic::<D>(&node.op, o, shape, options)?,
        Op::Less {} => elementwise::less::<D>(o, shape)?,
        Op::Select {} => elementwise::select::<D>(o, shape)?,
        Op::Neg {} => {
            let values = o[0].reals::<D>()?.iter().map(|v| D::neg(*v)).collect();
            finish::<D>(dtype, shape, values, true, options)
        }
        Op::Exp {} => apply(Function::Exp)?,
        Op::Silu {} => apply(Function::Silu)?,
        Op::Gelu {} => apply(Function::Gelu)?,
        Op::Tanh {} => apply(Function::Tanh)?,
        Op::Sigmoid {} => apply(Function::Sigmoid)?,
        Op::Rsqrt {} => apply(Function::Rsqrt)?,
        Op::Sqrt {} => apply(Function::Sqrt)?,
        Op::Cast { dtype } => cast::<D>(&o[0], *dtype, options)?,

        Op::ReduceSum { axis } => elementwise::reduce::<D>(&node.op, &o[0], *axis, shape, options)?,
        Op::ReduceMean { axis } => elementwise::reduce::<D>(&node.op, &o[0], *axis, shape, options)?,
        Op::ReduceMax { axis } => elementwise::reduce::<D>(&node.op, &o[0], *axis, shape, options)?,
        Op::Softmax {} => {
            let mut values = o[0].reals::<D>()?.into_owned();
            let width = shape.last().copied().unwrap_or(1).max(1);
            for row in values.chunks_mut(width) {
                D::softmax(row).ok_or(Fault::ZeroDivisor)?;
            }
            finish::<D>(dtype, shape, values, false, options)
        }
        Op::RmsNorm { eps, .. } => {
            let values = elementwise::rms_norm::<D>(&o[0].reals::<D>()?, &o[1].reals::<D>()?, eps.0)?;
            finish::<D>(dtype, shape, values, false, options)
        }
        Op::AddRmsNorm { eps, .. } => {
            let residual = o[1].reals::<D>()?;
            let sum = o[0].reals::<D>()?.iter().zip(residual.iter()).map(|(a, b)| D::add(*a, *b)).collect();
            // The norm reads the rounded sum, as the two ops in turn do.
            let sum = finish::<D>(o[1].dtype, shape, sum, false, options);
            let values = elementwise::rms_norm::<D>(&sum.reals::<D>()?, &o[2].reals::<D>()?, eps.0)?;
            return Ok(vec![finish::<D>(dtype, shape, values, false, options), sum]);
        }

        Op::Quantise { dtype, group } => {
            let values = o[0].reals::<D>()?.into_owned();
            return quantise::<D>(values, *dtype, *group, shapes, options);
        }
        Op::RmsNormQuantise { eps, dtype, format, group } => {
            let norm = elementwise::rms_norm::<D>(&o[0].reals::<D>()?, &o[1].reals::<D>()?, eps.0)?;
            return quantised_norm::<D>(norm, (*dtype, *format, *group), shapes, options);
        }
        Op::AddRmsNormQuantise { eps, dtype, format, group } => {
            let residual = o[1].reals::<D>()?;
            let sum = o[0].reals::<D>()?.iter().zip(residual.iter()).map(|(a, b)| D::add(*a, *b)).collect();
            let sum = finish::<D>(o[1].dtype, shape, sum, false, options);
            let norm = elementwise::rms_norm::<D>(&sum.reals::<D>()?, &o[2].reals::<D>()?, eps.0)?;
            let mut out = quantised_norm::<D>(norm, (*dtype, *format, *group), shapes, options)?;
            out.push(sum);
            return Ok(out);
        }

        Op::Reshape { .. } => Tensor { dtype, shape: shape.to_vec(), data: o[0].data.clone() },
        Op::Transpose { permutation } => view::transpose::<D>(&o[0], permutation, shape)?,
        Op::Slice { axis, start, .. } => view::slice::<D>(&o[0], *axis, *start, shape)?,
        Op::Concat { axis } => view::concat::<D>(o, *axis, shape)?,
        Op::Broadcast { .. } => view::broadcast::<D>(&o[0], shape)?,

        Op::Matmul { .. } => {
            let values = contract::matmul::<D>(&o[0], &o[1], options)?;
            finish::<D>(dtype, shape, values, false, options)
        }
        Op::MatmulAdd { .. } => {
            let mut values = contract::matmul::<D>(&o[0], &o[1], options)?;
            let addend = view::broadcast::<D>(&o[2], shape)?;
            for (v, a) in values.iter_mut().zip(addend.reals::<D>()?.iter()) {
                *v = D::add(*v, *a);
            }
            finish::<D>(dtype, shape, values, false, options)
        }
        Op::MatmulSiluMul { .. } => {
            let mut values = contract::matmul::<D>(&o[0], &o[1], options)?;
            let up = contract::matmul::<D>(&o[0], &o[2], options)?;
            for (v, u) in values.iter_mut().zip(up) {
                *v = D::mul(D::apply(Function::Silu, *v), u);
            }
            finish::<D>(dtype, shape, values, false, options)
        }
        Op::ScaledMatmul { rows, columns, .. } => {
            let values = contract::scaled_matmul::<D>(o, [*rows, *columns], options)?;
            finish::<D>(dtype, shape, values, false, options)
        }
        Op::SiluMul { .. } => {
            let (gate, up) = (o[0].reals::<D>()?, o[1].reals::<D>()?);
            let values = gate.iter().zip(up.iter()).map(|(g, u)| D::mul(D::apply(Function::Silu, *g), *u)).collect();
            finish::<D>(dtype, shape, values, false, options)
        }

        Op::Shard { .. }
        | Op::GatherPart { .. }
        | Op::AllReduce { .. }
        | Op::AllGather { .. }
        | Op::ReduceScatter { .. }
        | Op::AllReduceRmsNorm { .. }
        | Op::AllReduceAddRmsNorm { .. }
        | Op::AllReduceRmsNormQuantise { .. }
        | Op::AllReduceAddRmsNormQuantise { .. } => return Err("ranks::evaluate interprets collectives".into()),

        Op::Gather { .. } => indexed::gather::<D>(&o[0], &o[1], dtype, shape, options)?,
        Op::Rope { interleaved } => indexed::rope::<D>(&o[0], &o[1], &o[2], *interleaved, options)?,
        Op::CacheWrite { transposed } => {
            let cache = operands.remove(0);
            let [x, positions, ids, tables] = operands.as_slice() else { return Err("wrong arity".into()) };
            attention::cache_write::<D>(cache, x, [positions, ids, tables], *transposed, options)?
        }
        Op::RopeCacheWrite { interleaved, transposed } => {
            let cache = operands.remove(0);
            let [x, positions, table, ids, tables] = operands.as_slice() else { return Err("wrong arity".into()) };
            let x = indexed::rope::<D>(x, positions, table, *interleaved, options)?;
            attention::cache_write::<D>(cache, &x, [positions, ids, tables], *transposed, options)?
        }
        Op::Attention { scale, window, .. } => {
            let values = attention::attention::<D>(o, scale.0, *window)?;
            finish::<D>(dtype, shape, values, false, options)
        }
        Op::IndexScores { skip, .. } => {
            let values = sparse::index_scores::<D>(o, shape.last().copied().unwrap_or(0), *skip)?;
            finish::<D>(dtype, shape, values, false, options)
        }
        Op::Topk { .. } => sparse::topk::<D>(&o[0], &o[1], shape)?,
        Op::Window { .. } => sparse::window(&o[0], shape)?,
        Op::SparseAttention { scale, .. } => {
            let values = attention::sparse_attention::<D>(o, scale.0)?;
            finish::<D>(dtype, shape, values, false, options)
        }
    };
    Ok(vec![out])
}

/// A result tensor, rounded to its dtype unless every value is known to be one of it.
pub(super) fn finish<D: Domain>(
    dtype: DType,
    shape: &[usize],
    mut values: Vec<D::Value>,
    exact: bool,
    options: &Options,
) -> Tensor<D::Value> {
    if !exact {
        D::round(&mut values, dtype, options);
    }
    Tensor::values(dtype, shape.to_vec(), values)
}

/// Codes, scales and the norm rounded to `dtype`, of a norm that is not rounded yet.
pub(super) fn quantised_norm<D: Domain>(
    norm: Vec<D::Value>,
    (dtype, format, group): (DType, DType, i64),
    shapes: &[Vec<usize>],
    options: &Options,
) -> Result<Vec<Tensor<D::Value>>, Fault> {
    let shape = shapes.get(2).ok_or("no norm")?;
    let mut out = quantise::<D>(norm.clone(), format, group, shapes, options)?;
    out.push(finish::<D>(dtype, shape, norm, false, options));
    Ok(out)
}

/// Codes and scales, of the first two shapes, of `values` in groups along the last dim.
fn quantise<D: Domain>(
    mut values: Vec<D::Value>,
    dtype: DType,
    group: i64,
    shapes: &[Vec<usize>],
    options: &Options,
) -> Result<Vec<Tensor<D::Value>>, Fault> {
    let [codes, scales, ..] = shapes else { return Err("no scales".into()) };
    let group = usize::try_from(group).ok().filter(|g| *g > 0).ok_or("a group without elements")?;
    let found: Vec<D::Value> = values.chunks_mut(group).map(|g| D::quantise(g, dtype, options)).collect();
    let scale = if dtype == DType::F4E2M1 { DType::F8E8M0 } else { DType::F32 };
    Ok(vec![Tensor::values(dtype, codes.to_vec(), values), Tensor::values(scale, scales.to_vec(), found)])
}

/// A domain number from a constant of the graph.
pub(super) fn number<D: Domain>(x: f64) -> Result<D::Value, Fault> {
    D::real(x).ok_or_else(|| format!("{x} is not finite").into())
}

fn constant<D: Domain>(value: f64, dtype: DType) -> Result<Tensor<D::Value>, Fault> {
    if !dtype.is_float() {
        let n = <super::F64 as Domain>::to_int(value, dtype);
        return Ok(Tensor::ints(dtype, Vec::new(), vec![n]));
    }
    // An f32 constant stays as written (f64 is the ideal reference); a narrower one is a number of its dtype.
    let value = if dtype == DType::F32 { value } else { super::real::round_to(dtype, value) };
    Ok(Tensor::values(dtype, Vec::new(), vec![number::<D>(value)?]))
}

/// Values cast to `dtype`; exact casts change nothing.
pub(super) fn cast<D: Domain>(
    x: &Tensor<D::Value>,
    dtype: DType,
    options: &Options,
) -> Result<Tensor<D::Value>, Fault> {
    let shape = x.shape.clone();
    let data = match (x.as_ints(), dtype.is_float()) {
        (Some(ints), false) => Data::Ints(Arc::new(ints.iter().map(|n| wrap(dtype, *n)).collect())),
        (Some(ints), true) => {
            let mut values: Vec<D::Value> = ints.iter().map(|n| D::int(*n)).collect();
            D::round(&mut values, dtype, options);
            Data::Values(Arc::new(values))
        }
        (None, false) => Data::Ints(Arc::new(x.reals::<D>()?.iter().map(|v| D::to_int(*v, dtype)).collect())),
        (None, true) if x.dtype == dtype => return Ok(x.clone()),
        (None, true) => {
            let mut values = x.reals::<D>()?.into_owned();
            if !widens(x.dtype, dtype) {
                D::round(&mut values, dtype, options);
            }
            Data::Values(Arc::new(values))
        }
    };
    Ok(Tensor { dtype, shape, data })
}
