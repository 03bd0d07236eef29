//! Planted bugs: what a wrong rule or kernel would do, done to an optimised graph. The fuzzer must see them.

use weldment_ir::{DType, Graph, IrError, Node, Op, Real, Value};

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A norm's epsilon is dropped.
    NoEpsilon,
    /// Differences and comparisons take their operands the wrong way round.
    SwappedOperands,
    /// Gate and up of a gated unit are swapped.
    SwappedGate,
    /// Attention sees one position too few.
    ShortMask,
    /// The epilogue's addend is lost.
    LostAddend,
    /// A slice starts one element late.
    LateSlice,
    /// Two parts of a concatenation change places.
    SwappedParts,
    /// Rotary pairs are read the other way.
    WrongPairs,
    /// A value is rounded to bf16 on the way.
    ExtraRounding,
    /// A mean divides by one element too many.
    WrongMean,
    /// Attention's scale is forgotten.
    NoScale,
    /// Keys and values are written one position late.
    LateWrite,
}

impl Sabotage {
    /// Every planted bug.
    pub const ALL: &'static [Sabotage] = &[
        Sabotage::NoEpsilon,
        Sabotage::SwappedOperands,
        Sabotage::SwappedGate,
        Sabotage::ShortMask,
        Sabotage::LostAddend,
        Sabotage::LateSlice,
        Sabotage::SwappedParts,
        Sabotage::WrongPairs,
        Sabotage::ExtraRounding,
        Sabotage::WrongMean,
        Sabotage::NoScale,
        Sabotage::LateWrite,
    ];

    /// `graph` with every node spoilt that the bug would reach, and how many those were.
    ///
    /// # Errors
    /// A mistake in the planting.
    pub fn plant(self, graph: &Graph) -> Result<(Graph, usize), IrError> {
        let mut out = graph.emptied();
        let (mut map, mut spoilt) = (Vec::with_capacity(graph.len()), 0);
        for id in graph.ids() {
            let node = graph.node(id);
            let operands: Vec<Value> =
                node.operands.iter().map(|v| Value { node: map[v.node.index()], ..*v }).collect();
            let wrong = self.spoil(&mut out, node, &operands)?;
            spoilt += usize::from(wrong.is_some());
            let node = match wrong {
                Some(value) => value.node,
                None => out.add(node.op.clone(), &operands, node.sources.clone())?,
            };
            map.push(node);
        }
        for output in graph.outputs() {
            let value = Value { node: map[output.value.node.index()], ..output.value };
            out.output(&output.name, output.kind.clone(), value);
        }
        Ok((out, spoilt))
    }

    /// A wrong node in place of `node`, if the bug reaches it.
    fn spoil(self, out: &mut Graph, node: &Node, operands: &[Value]) -> Result<Option<Value>, IrError> {
        let mut operands = operands.to_vec();
        let mut op = node.op.clone();
        match (self, &mut op) {
            (Sabotage::NoEpsilon, Op::RmsNorm { eps, .. } | Op::AddRmsNorm { eps, .. }) => *eps = Real(0.0),
            (Sabotage::SwappedOperands, Op::Sub {} | Op::Less {}) => operands.swap(0, 1),
            (Sabotage::SwappedGate, Op::SiluMul { .. }) => operands.swap(0, 1),
            (Sabotage::SwappedGate, Op::MatmulSiluMul { .. }) => operands.swap(1, 2),
            (Sabotage::LostAddend, Op::MatmulAdd { dtype }) => {
                op = Op::Matmul { dtype: *dtype };
                operands.truncate(2);
            }
            (Sabotage::LateSlice, Op::Slice { axis, start, end }) => {
                let size = out.type_of(operands[0]).shape[*axis as usize].constant().unwrap_or(0) as i64;
                if *end == size {
                    return Ok(None);
                }
                (*start, *end) = (*start + 1, *end + 1);
            }
            (Sabotage::SwappedParts, Op::Concat { .. }) => {
                let alike = operands.len() > 1 && out.type_of(operands[0]) == out.type_of(operands[1]);
                if !alike {
                    return Ok(None);
                }
                operands.swap(0, 1);
            }
            (Sabotage::WrongPairs, Op::Rope { interleaved } | Op::RopeCacheWrite { interleaved, .. }) => {
                *interleaved = !*interleaved;
            }
            (Sabotage::NoScale, Op::Attention { scale, .. }) => *scale = Real(1.0),
            (Sabotage::ExtraRounding, Op::Mul {}) if node.types[0].dtype == DType::F32 => {
                let product = out.push("spoilt", op, &operands)?;
                let half = out.push("spoilt", Op::Cast { dtype: DType::BF16 }, &[product])?;
                return out.push("spoilt", Op::Cast { dtype: DType::F32 }, &[half]).map(Some);
            }
            (Sabotage::WrongMean, Op::ReduceMean { axis }) if node.types[0].dtype == DType::F32 => {
                let axis = *axis;
                let size = out.type_of(operands[0]).shape[axis as usize].constant().unwrap_or(1);
                let sum = out.push("spoilt", Op::ReduceSum { axis }, &operands)?;
                let count = Op::Constant { value: Real(size as f64 + 1.0), dtype: DType::F32 };
                let count = out.push("spoilt", count, &[])?;
                return out.push("spoilt", Op::Div {}, &[sum, count]).map(Some);
            }
            (Sabotage::ShortMask, Op::Attention { .. }) => operands[3] = shifted(out, operands[3], -1)?,
            (Sabotage::LateWrite, Op::CacheWrite { .. }) => operands[2] = shifted(out, operands[2], -1)?,
            _ => return Ok(None),
        }
        let node = out.add(op, &operands, node.sources.clone())?;
        Ok(Some(Value { node, result: 0 }))
    }
}

/// Positions moved by `by`, not below 0.
fn shifted(out: &mut Graph, positions: Value, by: i64) -> Result<Value, IrError> {
    let constant = |value: f64| Op::Constant { value: Real(value), dtype: DType::I32 };
    let (by, zero) = (out.push("spoilt", constant(by as f64), &[])?, out.push("spoilt", constant(0.0), &[])?);
    let moved = out.push("spoilt", Op::Add {}, &[positions, by])?;
    out.push("spoilt", Op::Maximum {}, &[moved, zero])
}
