//! The machines that tile programs are lowered to.

use crate::llvm::HostTarget;

/// A machine by what its lowering needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// x86-64 vectors and a thread pool.
    Host(HostTarget),
    /// Thread blocks on an AMD or NVIDIA GPU.
    Gpu(GpuArch),
}

/// GPU generations that have a lowering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GpuArch {
    /// CDNA 2 (MI200).
    Gfx90a,
    /// CDNA 3 (MI300).
    Gfx942,
    /// CDNA 4 (MI350).
    Gfx950,
    /// Hopper, with its architecture-specific instructions.
    Sm90a,
}

impl GpuArch {
    /// All, in the order they are listed to users.
    pub const ALL: [GpuArch; 4] = [GpuArch::Gfx90a, GpuArch::Gfx942, GpuArch::Gfx950, GpuArch::Sm90a];

    /// LLVM's name of the processor.
    pub const fn cpu(self) -> &'static str {
        match self {
            GpuArch::Gfx90a => "gfx90a",
            GpuArch::Gfx942 => "gfx942",
            GpuArch::Gfx950 => "gfx950",
            GpuArch::Sm90a => "sm_90a",
        }
    }

    /// By LLVM's name; `sm_90` is taken for `sm_90a`.
    pub fn named(name: &str) -> Option<GpuArch> {
        let name = if name == "sm_90" { "sm_90a" } else { name };
        GpuArch::ALL.into_iter().find(|arch| arch.cpu() == name)
    }

    /// True for AMD.
    pub const fn is_amd(self) -> bool {
        !matches!(self, GpuArch::Sm90a)
    }

    /// Threads that run in lock step: a wave or a warp.
    pub const fn wave(self) -> u32 {
        if self.is_amd() { 64 } else { 32 }
    }

    /// Bytes of shared memory (LDS) that a block may declare statically.
    pub const fn shared_bytes(self) -> u32 {
        match self {
            GpuArch::Gfx90a | GpuArch::Gfx942 => 64 << 10,
            GpuArch::Gfx950 => 160 << 10,
            GpuArch::Sm90a => 48 << 10,
        }
    }
}

impl Target {
    /// A target by name.
    ///
    /// # Errors
    /// If the name is unknown, or `host` names a CPU without AVX2.
    pub fn named(name: &str) -> Result<Target, String> {
        match GpuArch::named(name) {
            Some(arch) => Ok(Target::Gpu(arch)),
            None => HostTarget::named(name).map(Target::Host),
        }
    }

    /// The name given: `host`, `x86-64-v3`, `gfx942`, ...
    pub fn name(&self) -> &str {
        match self {
            Target::Host(host) => &host.name,
            Target::Gpu(arch) => arch.cpu(),
        }
    }

    /// The name that an artifact stores: never `host`.
    pub fn stored_name(&self) -> &str {
        match self {
            Target::Host(host) if host.name == "host" => &host.cpu,
            other => other.name(),
        }
    }

    /// `x86_64`, `amdgcn` or `nvptx64`.
    pub fn arch_name(&self) -> &'static str {
        match self {
            Target::Host(_) => "x86_64",
            Target::Gpu(arch) if arch.is_amd() => "amdgcn",
            Target::Gpu(_) => "nvptx64",
        }
    }

    /// CPU features that the artifact's reader must have; none for GPUs, whose name says all.
    pub fn feature_list(&self) -> Vec<String> {
        match self {
            Target::Host(host) => host.feature_list(),
            Target::Gpu(_) => Vec::new(),
        }
    }

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<GpuArch> {
        match self {
            Target::Host(_) => None,
            Target::Gpu(arch) => Some(*arch),
        }
    }

    /// f32 lanes of a host vector; 1 on GPUs, whose weights lie in plain rows.
    pub fn lanes(&self) -> u32 {
        match self {
            Target::Host(host) => host.lanes,
            Target::Gpu(_) => 1,
        }
    }
}
