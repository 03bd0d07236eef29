//! What caller and session allocate: inputs, outputs and states have the sizes and orders that both sides derive from the
//! signature alone.

use super::{Checker, Fault, Footprint, Holding, Violation};
use crate::buffer::{External, Region, Step, StepKind, View};
use weldment_ir::{Op, OutputKind, Value};

/// Strides of a row-major tensor.
pub(super) fn row_major(dims: &[u64]) -> Vec<u64> {
    let mut strides = vec![1u64; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(dims[axis].max(1));
    }
    strides
}

/// True if the strides are those of a row-major tensor whose dims have been put in another order.
fn is_dense(dims: &[u64], strides: &[u64]) -> bool {
    let mut order: Vec<usize> = (0..dims.len()).collect();
    order.sort_by_key(|axis| (std::cmp::Reverse(strides[*axis]), *axis));
    let sizes: Vec<u64> = order.iter().map(|axis| dims[*axis]).collect();
    order.iter().zip(row_major(&sizes)).all(|(axis, stride)| strides[*axis] == stride)
}

impl Checker<'_> {
    /// Bytes of a static value in its logical layout.
    pub(super) fn static_bytes(&self, root: Value) -> u64 {
        if !self.exists(root) {
            return 0;
        }
        let ty = self.graph.type_of(root);
        ty.constant_shape().and_then(|shape| ty.dtype.byte_size(&shape).ok()).unwrap_or(0)
    }

    /// Checks what is declared, and notes what inputs and states hold before the first step.
    pub(super) fn externals(&mut self) -> Result<(), Violation> {
        let (graph, plan) = (self.graph, self.plan);
        let (mut inputs, mut states) = (plan.inputs.iter(), plan.states.iter());
        for id in graph.ids() {
            let value = Value { node: id, result: 0 };
            match &graph.node(id).op {
                Op::Input { name, .. } => {
                    let found = inputs.next().filter(|e| e.name == *name);
                    self.external(value, found, Region::Input(name.clone()))?;
                }
                Op::State { name, .. } if !self.leaves.contains_key(name) => {
                    let found = states.next().filter(|e| e.name == *name);
                    self.external(value, found, Region::State(name.clone()))?;
                    self.leaves.insert(name.clone(), value);
                }
                _ => {}
            }
        }
        let mut outputs = plan.outputs.iter();
        for output in graph.outputs().iter().filter(|o| o.kind == OutputKind::Result) {
            let found = outputs.next().filter(|e| e.name == output.name);
            self.external(output.value, found, Region::Output(output.name.clone()))?;
        }
        match inputs.chain(states).chain(outputs).next() {
            Some(more) => {
                let fault = Fault::External(format!("{} is not an input, output or state", more.name));
                Err(Violation { path: graph.name.clone(), step: None, fault })
            }
            None => Ok(()),
        }
    }

    /// Does every step that reads an input read it whole, as block tables?
    fn read_as_tables(&self, input: &Region) -> bool {
        let tables = |step: &Step| match step.kind {
            StepKind::Kernel(id) => self.graph.node(id).op.paged().map(|paged| paged.block_tables),
            StepKind::Copy { .. } => None,
        };
        let read = |step: &Step| {
            step.reads.iter().enumerate().filter(|(_, v)| v.region == *input).map(|(at, _)| at).collect::<Vec<_>>()
        };
        matches!(input, Region::Input(_))
            && self.plan.steps.iter().all(|s| read(s).into_iter().all(|at| tables(s) == Some(at)))
    }

    fn external(&mut self, value: Value, found: Option<&External>, region: Region) -> Result<(), Violation> {
        let ty = self.graph.type_of(value);
        let wrong = |text: String| Violation { path: self.path(value.node), step: None, fault: Fault::External(text) };
        let Some(external) = found else { return Err(wrong(format!("{region:?} is not declared"))) };
        let exact = self.dims(ty, |_| false);
        let (dims, any_order) = match &region {
            Region::Input(_) => (self.dims(ty, |axis| axis == 0), false),
            Region::State(_) => (exact.clone(), true),
            _ => (self.dims(ty, |_| true), false),
        };
        let ordered = external.strides.len() == dims.len()
            && if any_order { is_dense(&dims, &external.strides) } else { external.strides == row_major(&dims) };
        let bytes = ty.dtype.byte_size(&dims).ok();
        if external.ty != *ty || !ordered || bytes.is_none_or(|n| n != external.bytes) {
            return Err(wrong(format!(
                "{} is {} with strides {:?} in {} bytes; {ty} in {bytes:?} bytes is expected",
                external.name, external.ty, external.strides, external.bytes
            )));
        }
        if external.dense && !self.read_as_tables(&region) {
            return Err(wrong(format!(
                "{} lies densely, which only kernels that read block tables know",
                external.name
            )));
        }
        let view = View { region: region.clone(), offset: 0, strides: external.strides.clone() };
        let footprint = Footprint::new(ty, &view, &exact).ok_or_else(|| wrong("no addresses".into()))?;
        self.sizes.insert(region.clone(), external.bytes);
        if !matches!(region, Region::Output(_)) {
            self.held.insert(region, vec![Holding { value, view, footprint }]);
        }
        Ok(())
    }
}
