//! GPU modules: target machines, kernel signatures and attributes, emission.

use super::emit::{GLOBAL, emit};
use crate::llvm::ops::Ops;
use crate::llvm::{Emit, LlvmError};
use crate::setup::Symbols;
use crate::target::GpuArch;
use crate::tile::{self, Kernel};
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::context::{AsContextRef, Context};
use inkwell::llvm_sys::LLVMAtomicOrdering;
use inkwell::llvm_sys::core::{LLVMBuildFenceSyncScope, LLVMGetSyncScopeID};
use inkwell::module::{FlagBehavior, Module};
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};
use inkwell::types::BasicMetadataTypeEnum;
use inkwell::values::FunctionValue;
use inkwell::{AddressSpace, AtomicOrdering, OptimizationLevel};

/// `amdgpu_kernel` and `ptx_kernel` in LLVM's numbering (llvm/IR/CallingConv.h).
const AMDGPU_KERNEL: u32 = 91;
const PTX_KERNEL: u32 = 71;

/// Code object version 5: read by every ROCm since 5.7.
const CODE_OBJECT_VERSION: u64 = 500;

/// One compiled module.
#[derive(Debug)]
pub struct GpuObject {
    /// Relocatable ELF for AMD, PTX text for NVIDIA.
    pub code: Vec<u8>,
    /// LLVM IR, if asked for.
    pub llvm: Option<String>,
    /// Assembly, if asked for: GCN, or the PTX again.
    pub asm: Option<String>,
}

impl GpuArch {
    const fn triple(self) -> &'static str {
        if self.is_amd() { "amdgcn-amd-amdhsa" } else { "nvptx64-nvidia-cuda" }
    }

    fn machine(self) -> Result<TargetMachine, LlvmError> {
        let config = InitializationConfig::default();
        if self.is_amd() {
            Target::initialize_amd_gpu(&config);
        } else {
            Target::initialize_nvptx(&config);
        }
        let triple = TargetTriple::create(self.triple());
        let target = Target::from_triple(&triple).map_err(|e| LlvmError::Llvm(e.to_string()))?;
        // AMD: hardware takes a dword at any address, but the emulator that witnesses this code drops an address's low bits;
        // accesses not known to be aligned are split. PTX 8.3 (CUDA 12.3) is the first with everything the lowering uses.
        let features = if self.is_amd() { "-unaligned-access-mode" } else { "+ptx83" };
        target
            .create_target_machine(
                &triple,
                self.cpu(),
                features,
                OptimizationLevel::Default,
                RelocMode::PIC,
                CodeModel::Default,
            )
            .ok_or_else(|| LlvmError::Llvm(format!("no target machine for {}", self.cpu())))
    }

    /// Attributes of a kernel of `threads` threads a block.
    fn mark(self, context: &Context, function: FunctionValue<'_>, threads: u32) {
        let size = threads.to_string();
        let range = format!("{threads},{threads}");
        let amd = [
            ("amdgpu-flat-work-group-size", range.as_str()),
            ("uniform-work-group-size", "true"),
            // No accumulation registers: the emulator ignores them as data of LDS and global accesses, and matrix
            // instructions take vector registers as well.
            ("amdgpu-agpr-alloc", "0"),
            // Hidden arguments and registers that no kernel reads.
            ("amdgpu-no-completion-action", ""),
            ("amdgpu-no-default-queue", ""),
            ("amdgpu-no-dispatch-id", ""),
            ("amdgpu-no-dispatch-ptr", ""),
            ("amdgpu-no-flat-scratch-init", ""),
            ("amdgpu-no-heap-ptr", ""),
            ("amdgpu-no-hostcall-ptr", ""),
            ("amdgpu-no-implicitarg-ptr", ""),
            ("amdgpu-no-lds-kernel-id", ""),
            ("amdgpu-no-multigrid-sync-arg", ""),
            ("amdgpu-no-queue-ptr", ""),
            ("amdgpu-no-workitem-id-y", ""),
            ("amdgpu-no-workitem-id-z", ""),
        ];
        let nvidia = [("nvvm.maxntid", size.as_str())];
        let list: &[(&str, &str)] = if self.is_amd() { &amd } else { &nvidia };
        for (key, value) in list.iter().chain(&[("no-builtins", ""), ("target-cpu", self.cpu())]) {
            function.add_attribute(AttributeLoc::Function, context.create_string_attribute(key, value));
        }
        let nounwind = Attribute::get_named_enum_kind_id("nounwind");
        function.add_attribute(AttributeLoc::Function, context.create_enum_attribute(nounwind, 0));
    }
}

/// A fence among the threads of a block.
pub(super) fn workgroup_fence(ops: &Ops<'_, '_>, ordering: AtomicOrdering) -> Result<(), LlvmError> {
    let ordering = match ordering {
        AtomicOrdering::Release => LLVMAtomicOrdering::LLVMAtomicOrderingRelease,
        AtomicOrdering::Acquire => LLVMAtomicOrdering::LLVMAtomicOrderingAcquire,
        _ => LLVMAtomicOrdering::LLVMAtomicOrderingAcquireRelease,
    };
    let scope = "workgroup";
    // SAFETY: inkwell has no fence with a scope. The context and builder are alive, the builder is positioned (an instruction
    // was built before every fence), and the name's pointer and length are those of one string.
    unsafe {
        let id = LLVMGetSyncScopeID(ops.context.as_ctx_ref(), scope.as_ptr().cast(), scope.len());
        LLVMBuildFenceSyncScope(ops.builder.as_mut_ptr(), ordering, id, c"".as_ptr());
    }
    Ok(())
}

/// Declares `kernel(params.., dims)` and emits its body.
fn add_kernel<'c>(
    context: &'c Context,
    module: &Module<'c>,
    kernel: &Kernel,
    arch: GpuArch,
    symbols: &Symbols,
) -> Result<(), LlvmError> {
    let pointer: BasicMetadataTypeEnum<'c> = context.ptr_type(AddressSpace::from(GLOBAL)).into();
    let signature = context.void_type().fn_type(&vec![pointer; kernel.params.len() + 1], false);
    let function = module.add_function(&kernel.name, signature, None);
    function.set_call_conventions(if arch.is_amd() { AMDGPU_KERNEL } else { PTX_KERNEL });
    arch.mark(context, function, kernel.threads);
    let attribute = |name: &str| context.create_enum_attribute(Attribute::get_named_enum_kind_id(name), 0);
    let constants = kernel.params.iter().map(|p| p.constant).chain([true]);
    // NVPTX makes a constant load of any from such a parameter, even of one that must stay where it is; there each load says.
    // Nor may loads move past a wait for other ranks.
    let says = arch.is_amd() && !kernel.waits();
    for (i, _) in constants.enumerate().filter(|(_, constant)| *constant && says) {
        for name in ["noalias", "readonly"] {
            function.add_attribute(AttributeLoc::Param(i as u32), attribute(name));
        }
    }
    emit(context, module, function, kernel, arch, symbols)
}

/// Compiles tile programs for a GPU: one module.
///
/// # Errors
/// Tile programs that break the rules for GPUs, and LLVM's own failures.
pub fn compile_gpu(
    kernels: &[&Kernel],
    (arch, symbols): (GpuArch, &Symbols),
    emit: Emit,
) -> Result<GpuObject, LlvmError> {
    let context = Context::create();
    let module = context.create_module("kernels");
    let machine = arch.machine()?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    if arch.is_amd() {
        let version = context.i32_type().const_int(CODE_OBJECT_VERSION, false);
        module.add_basic_value_flag("amdhsa_code_object_version", FlagBehavior::Error, version);
    }
    for kernel in kernels {
        tile::verify(kernel).map_err(LlvmError::Tile)?;
        add_kernel(&context, &module, kernel, arch, symbols)?;
    }
    if cfg!(debug_assertions) {
        module.verify().map_err(|e| LlvmError::Llvm(e.to_string()))?;
    }
    let passes = "function(early-cse<memssa>,instcombine<no-verify-fixpoint>,loop-simplify,lcssa,loop-mssa(licm),gvn,instcombine<no-verify-fixpoint>,simplifycfg)";
    module.run_passes(passes, &machine, PassBuilderOptions::create()).map_err(|e| LlvmError::Llvm(e.to_string()))?;
    let llvm = emit.llvm.then(|| module.print_to_string().to_string());
    // Emission lowers the module itself, so the text is made from a copy of what it was, and after the code: the code
    // does not depend on what is asked for beside it.
    let before = (emit.asm && arch.is_amd()).then(|| module.write_bitcode_to_memory());
    let kind = if arch.is_amd() { FileType::Object } else { FileType::Assembly };
    let mut code = write(&machine, &module, kind)?;
    if !arch.is_amd() {
        // A memory buffer ends in NUL; text does not.
        while code.last() == Some(&0) {
            code.pop();
        }
        let asm = emit.asm.then(|| String::from_utf8_lossy(&code).into_owned());
        return Ok(GpuObject { code, llvm, asm });
    }
    let asm = before.map(|bitcode| {
        let context = Context::create();
        let module = Module::parse_bitcode_from_buffer(&bitcode, &context);
        let module = module.map_err(|e| LlvmError::Llvm(e.to_string()))?;
        let text = write(&machine, &module, FileType::Assembly)?;
        Ok::<_, LlvmError>(String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned())
    });
    Ok(GpuObject { code, llvm, asm: asm.transpose()? })
}

fn write(machine: &TargetMachine, module: &Module<'_>, kind: FileType) -> Result<Vec<u8>, LlvmError> {
    let buffer = machine.write_to_memory_buffer(module, kind).map_err(|e| LlvmError::Llvm(e.to_string()))?;
    Ok(buffer.as_slice().to_vec())
}
