//! Loaded code: functions by name.

use super::api::*;
use super::guards::{ModuleGuard, SharedApi};
use crate::driver::{Module, ModuleSource};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use std::any::Any;
use std::ffi::CString;

/// A kernel that can be launched.
#[derive(Clone, Debug)]
pub struct Function {
    pub handle: FunctionHandle,
    pub name: String,
    pub threads: u32,
    pub info: FunctionInfo,
}

/// A module and its kernels, in the manifest's order.
#[derive(Debug)]
pub struct GpuModule {
    functions: Vec<Function>,
    report: LoadReport,
    _module: ModuleGuard,
}

impl GpuModule {
    /// Loads code; the device is current.
    pub fn load(api: &SharedApi, source: &ModuleSource<'_>) -> Result<GpuModule> {
        if blake3::hash(source.image).to_hex().as_str() != source.hash {
            return Err(Error::Driver("the code image does not hash to what the manifest says".into()));
        }
        let arch = &api.info().arch;
        api.check_image(source.image, source.kernels)
            .map_err(|e| Error::Driver(format!("the code for {arch} is not as the driver's library needs it: {e}")))?;
        let failed = |e: ApiError| e.during(format_args!("cannot load the code for {arch}"));
        let (handle, report) = api.load_module(source.image, source.cache).map_err(failed)?;
        // SAFETY: just loaded, owned by nobody else.
        let module = unsafe { ModuleGuard::own(api, handle) };
        let mut functions = Vec::with_capacity(source.kernels.len());
        for kernel in source.kernels {
            let failed = |e: ApiError| e.during(format_args!("kernel {}", kernel.name));
            let name = CString::new(kernel.name)
                .map_err(|_| Error::Driver(format!("kernel {:?}: a zero in the name", kernel.name)))?;
            // SAFETY: the guard keeps the module live.
            let function = unsafe { api.function(handle, &name) }.map_err(failed)?;
            // SAFETY: as above.
            let info = unsafe { api.function_info(function) }.map_err(failed)?;
            if kernel.threads == 0 || kernel.threads > info.max_threads {
                return Err(Error::Driver(format!(
                    "kernel {}: {} threads a block, at most {} fit {}",
                    kernel.name,
                    kernel.threads,
                    info.max_threads,
                    api.info().name
                )));
            }
            if info.local_bytes > 0 {
                log::write(
                    Level::Warn,
                    format_args!("kernel {}: {} bytes of scratch a thread", kernel.name, info.local_bytes),
                );
            }
            functions.push(Function { handle: function, name: kernel.name.to_owned(), threads: kernel.threads, info });
        }
        Ok(GpuModule { functions, report, _module: module })
    }

    /// The kernel at index `index`.
    pub fn function(&self, index: usize) -> Option<&Function> {
        self.functions.get(index)
    }
}

impl Module for GpuModule {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn load_report(&self) -> LoadReport {
        self.report
    }

    fn kernel_info(&self, index: usize) -> Option<FunctionInfo> {
        self.functions.get(index).map(|f| f.info)
    }
}
