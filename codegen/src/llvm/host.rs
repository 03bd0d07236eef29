//! The x86-64 host target: CPU features, function attributes, optimisation and object emission.

use super::LlvmError;
use super::lower::lower;
use crate::setup::Symbols;
use crate::tile::{self, Kernel};
use inkwell::OptimizationLevel;
use inkwell::attributes::AttributeLoc;
use inkwell::context::Context;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple};
use inkwell::values::FunctionValue;

/// An x86-64 CPU as LLVM names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostTarget {
    /// The name given: `host`, `x86-64-v3`, `x86-64-v4`.
    pub name: String,
    /// LLVM CPU.
    pub cpu: String,
    /// LLVM feature string, `+avx2,+fma,...`.
    pub features: String,
    /// f32 lanes of a machine vector: 8 or 16.
    pub lanes: u32,
    /// 512-bit `vpdpbusd`.
    pub avx512_vnni: bool,
    /// 256-bit `vpdpbusd`.
    pub avx_vnni: bool,
    /// `vdpbf16ps`.
    pub avx512_bf16: bool,
}

/// Features a kernel may rely on when the CPU has them, in LLVM's spelling; `is_x86_feature_detected` spells alike
/// but for avx512vnni and avx512bf16, which it also knows.
const BASE_V3: &[&str] = &["sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "popcnt", "movbe"];
const V4: &[&str] = &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"];

impl HostTarget {
    /// A target by name.
    ///
    /// # Errors
    /// If the name is not one of host, x86-64-v3, x86-64-v4, icelake-server, sapphirerapids, znver4, or the machine lacks AVX2 and FMA for `host`.
    pub fn named(name: &str) -> Result<HostTarget, String> {
        let mut features: Vec<&str> = BASE_V3.to_vec();
        match name {
            "x86-64-v3" => {}
            "x86-64-v4" => features.extend(V4),
            "icelake-server" => features.extend(V4.iter().chain(&["avx512vnni"])),
            "sapphirerapids" | "znver4" => features.extend(V4.iter().chain(&["avx512vnni", "avx512bf16"])),
            "host" => {
                if !(std::is_x86_feature_detected!("avx2")
                    && std::is_x86_feature_detected!("fma")
                    && std::is_x86_feature_detected!("f16c"))
                {
                    return Err("this CPU lacks AVX2, FMA or F16C; Weldment's host target needs x86-64-v3".into());
                }
                let v4 = std::is_x86_feature_detected!("avx512f")
                    && std::is_x86_feature_detected!("avx512bw")
                    && std::is_x86_feature_detected!("avx512cd")
                    && std::is_x86_feature_detected!("avx512dq")
                    && std::is_x86_feature_detected!("avx512vl");
                if v4 {
                    features.extend(V4);
                    if std::is_x86_feature_detected!("avx512vnni") {
                        features.push("avx512vnni");
                    }
                    if std::is_x86_feature_detected!("avx512bf16") {
                        features.push("avx512bf16");
                    }
                } else if std::is_x86_feature_detected!("avxvnni") {
                    features.push("avxvnni");
                }
            }
            other => {
                return Err(format!(
                    "target `{other}`; host, x86-64-v3, x86-64-v4, icelake-server, sapphirerapids or znver4 is accepted here"
                ));
            }
        }
        let has = |f: &str| features.contains(&f);
        Ok(HostTarget {
            name: name.to_owned(),
            cpu: if has("avx512f") { "x86-64-v4" } else { "x86-64-v3" }.to_owned(),
            features: features.iter().map(|f| format!("+{f}")).collect::<Vec<_>>().join(","),
            lanes: if has("avx512f") { 16 } else { 8 },
            avx512_vnni: has("avx512vnni"),
            avx_vnni: has("avxvnni"),
            avx512_bf16: has("avx512bf16"),
        })
    }

    /// Feature names without signs, as the manifest stores them.
    pub fn feature_list(&self) -> Vec<String> {
        self.features.split(',').map(|f| f.trim_start_matches('+').to_owned()).collect()
    }

    /// Attributes of every kernel function. `no-builtins` keeps LLVM from inventing memcpy calls: the image has no imports.
    pub(super) fn mark(&self, context: &Context, function: FunctionValue<'_>) {
        for (key, value) in [
            ("no-builtins", ""),
            ("target-cpu", self.cpu.as_str()),
            ("target-features", self.features.as_str()),
            ("prefer-vector-width", if self.lanes == 16 { "512" } else { "256" }),
        ] {
            function.add_attribute(AttributeLoc::Function, context.create_string_attribute(key, value));
        }
        let nounwind = inkwell::attributes::Attribute::get_named_enum_kind_id("nounwind");
        function.add_attribute(AttributeLoc::Function, context.create_enum_attribute(nounwind, 0));
    }

    fn machine(&self) -> Result<TargetMachine, LlvmError> {
        Target::initialize_x86(&InitializationConfig::default());
        let triple = TargetTriple::create("x86_64-unknown-linux-gnu");
        let target = Target::from_triple(&triple).map_err(|e| LlvmError::Llvm(e.to_string()))?;
        target
            .create_target_machine(
                &triple,
                &self.cpu,
                &self.features,
                OptimizationLevel::Default,
                RelocMode::PIC,
                CodeModel::Small,
            )
            .ok_or_else(|| LlvmError::Llvm(format!("no target machine for {} {}", self.cpu, self.features)))
    }
}

/// What `--emit` asks for beside the object.
#[derive(Clone, Copy, Debug, Default)]
pub struct Emit {
    /// LLVM IR after optimisation.
    pub llvm: bool,
    /// Assembly.
    pub asm: bool,
}

/// One compiled module.
#[derive(Debug)]
pub struct HostObject {
    /// Relocatable ELF.
    pub object: Vec<u8>,
    /// LLVM IR, if asked for.
    pub llvm: Option<String>,
    /// Assembly, if asked for.
    pub asm: Option<String>,
}

/// Compiles tile programs to one relocatable object.
///
/// # Errors
/// Malformed tile programs and LLVM's own failures.
pub fn compile_host(
    kernels: &[&Kernel],
    (target, symbols): (&HostTarget, &Symbols),
    emit: Emit,
) -> Result<HostObject, LlvmError> {
    let context = Context::create();
    let module = context.create_module("kernels");
    let machine = target.machine()?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    for kernel in kernels {
        tile::verify(kernel).map_err(LlvmError::Tile)?;
        lower(&context, &module, kernel, target, symbols)?;
    }
    if cfg!(debug_assertions) {
        module.verify().map_err(|e| LlvmError::Llvm(e.to_string()))?;
    }
    // Programs arrive unrolled and vectorised: only cleaning up is left.
    let passes = "function(early-cse<memssa>,instcombine<no-verify-fixpoint>,loop-simplify,lcssa,loop-mssa(licm),gvn,instcombine<no-verify-fixpoint>,simplifycfg)";
    module.run_passes(passes, &machine, PassBuilderOptions::create()).map_err(|e| LlvmError::Llvm(e.to_string()))?;
    let write = |kind| machine.write_to_memory_buffer(&module, kind).map_err(|e| LlvmError::Llvm(e.to_string()));
    let object = write(FileType::Object)?.as_slice().to_vec();
    let asm =
        if emit.asm { Some(String::from_utf8_lossy(write(FileType::Assembly)?.as_slice()).into_owned()) } else { None };
    Ok(HostObject { object, llvm: emit.llvm.then(|| module.print_to_string().to_string()), asm })
}
