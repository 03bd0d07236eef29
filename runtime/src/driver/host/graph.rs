//! Host graphs: capture resolves every pointer, replay hands the list to the pool.

use super::image::Image;
use super::memory;
use super::pool::{Grid, Pool, PoolLaunch, Work};
use crate::artifact::GridDim;
use crate::driver::{Buffer, Capture, CaptureArg, CaptureLaunch, CaptureSpec, Graph, Module, Placement, StreamBackend};
use crate::error::{Error, Result};
use std::fmt;
use std::sync::{Arc, Mutex};

/// A recording for the host.
pub struct HostCapture {
    module: Arc<dyn Module>,
    pool: Arc<Mutex<Pool>>,
    launches: Vec<PoolLaunch>,
    args: Vec<*mut u8>,
    buffers: Vec<Buffer>,
    inputs: Vec<Buffer>,
    max_dims: Vec<i64>,
}

impl HostCapture {
    /// Starts a recording of kernels of `module`, which the host driver must have loaded.
    pub fn begin(module: Arc<dyn Module>, pool: Arc<Mutex<Pool>>, spec: &CaptureSpec<'_>) -> Result<Box<dyn Capture>> {
        if !module.as_any().is::<Image>() {
            return Err(Error::Driver("the module was loaded by another driver".into()));
        }
        let inputs =
            spec.input_bytes.iter().map(|n| memory::allocate(*n, Placement::Pinned)).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(HostCapture {
            module,
            pool,
            launches: Vec::new(),
            args: Vec::new(),
            buffers: Vec::new(),
            inputs,
            max_dims: spec.max_dims.to_vec(),
        }))
    }
}

impl Capture for HostCapture {
    fn launch(&mut self, launch: CaptureLaunch<'_>) -> Result<()> {
        let kernel = self
            .module
            .as_any()
            .downcast_ref::<Image>()
            .and_then(|image| image.kernel(launch.kernel))
            .ok_or_else(|| Error::Driver(format!("kernel {} is not in the module", launch.kernel)))?;
        let mut grid = [Grid::ONE; 3];
        for (slot, dim) in grid.iter_mut().zip(launch.grid) {
            *slot = match *dim {
                GridDim::Const(n) => Grid { symbol: usize::MAX, mul: n as i64, div: 1 },
                GridDim::Symbol { div: 0, .. } => return Err(Error::Driver("a grid divides by zero".into())),
                GridDim::Symbol { symbol, mul, div } => {
                    Grid { symbol: symbol as usize, mul: mul as i64, div: div as i64 }
                }
            };
        }
        let first_arg = self.args.len();
        for arg in launch.args {
            let (buffer, offset) = match *arg {
                CaptureArg::Buffer(buffer, offset) => (buffer, offset),
                CaptureArg::Input(index, offset) => {
                    let input = self.inputs.get(index);
                    (input.ok_or_else(|| Error::Driver(format!("input {index} does not exist")))?, offset)
                }
            };
            let address = buffer
                .address(offset)
                .ok_or_else(|| Error::Driver(format!("argument offset {offset} lies outside {buffer:?}")))?;
            self.args.push(address);
            if !self.buffers.iter().any(|b| b.same_memory(buffer)) {
                self.buffers.push(buffer.clone());
            }
        }
        self.launches.push(PoolLaunch { kernel, first_arg, grid, barrier: launch.barrier });
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Box<dyn Graph>> {
        let work = Work::new(self.launches, self.args);
        Ok(Box::new(HostGraph {
            work,
            pool: self.pool,
            inputs: self.inputs,
            max_dims: self.max_dims,
            _module: self.module,
            _buffers: self.buffers,
        }))
    }
}

/// A captured list of launches with everything it points to.
struct HostGraph {
    work: Work,
    pool: Arc<Mutex<Pool>>,
    inputs: Vec<Buffer>,
    max_dims: Vec<i64>,
    _module: Arc<dyn Module>,
    _buffers: Vec<Buffer>,
}

impl fmt::Debug for HostGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostGraph({} launches)", self.len())
    }
}

impl Graph for HostGraph {
    fn replay(&mut self, _stream: &mut dyn StreamBackend, dims: &[i64], inputs: &[&[u8]]) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            let (captured, found) = (self.inputs.len(), inputs.len());
            return Err(Error::Driver(format!("a step of {captured} inputs was captured, not of {found}")));
        }
        if let Some((index, (dim, max))) = dims.iter().zip(&self.max_dims).enumerate().find(|(_, (d, m))| d > m) {
            return Err(Error::Driver(format!("symbol {index} is {dim}, captured for at most {max}")));
        }
        let mut pool = self.pool.lock().map_err(|_| Error::Driver("an earlier replay panicked".into()))?;
        for (buffer, bytes) in self.inputs.iter().zip(inputs) {
            buffer.put(0, bytes)?;
        }
        pool.run(&mut self.work, dims);
        Ok(())
    }

    fn len(&self) -> usize {
        self.work.len()
    }
}
