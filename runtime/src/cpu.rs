//! What the CPU can do, by LLVM's feature names, and how many cores there are to use.

use std::sync::OnceLock;

macro_rules! features {
    ($($name:literal => $detect:tt,)*) => {
        /// Every x86 feature the runtime can check, by LLVM's name. An artifact may only require these.
        pub const KNOWN_FEATURES: &[&str] = &[$($name,)*];

        /// Whether this CPU (and its operating system) has the feature; `None` if the name is not known.
        #[cfg(target_arch = "x86_64")]
        pub fn has_feature(name: &str) -> Option<bool> {
            match name { $($name => Some(std::arch::is_x86_feature_detected!($detect)),)* _ => None }
        }
    };
}

features! {
    "sse3" => "sse3", "ssse3" => "ssse3", "sse4.1" => "sse4.1", "sse4.2" => "sse4.2", "sse4a" => "sse4a",
    "popcnt" => "popcnt", "cx16" => "cmpxchg16b", "movbe" => "movbe", "lzcnt" => "lzcnt", "bmi" => "bmi1", "bmi2" => "bmi2",
    "adx" => "adx", "aes" => "aes", "pclmul" => "pclmulqdq", "vaes" => "vaes", "vpclmulqdq" => "vpclmulqdq",
    "gfni" => "gfni", "sha" => "sha", "rdrnd" => "rdrand", "rdseed" => "rdseed", "fxsr" => "fxsr", "xsave" => "xsave",
    "avx" => "avx", "avx2" => "avx2", "fma" => "fma", "f16c" => "f16c",
    "avxvnni" => "avxvnni", "avxvnniint8" => "avxvnniint8", "avxvnniint16" => "avxvnniint16",
    "avxneconvert" => "avxneconvert", "avxifma" => "avxifma",
    "avx512f" => "avx512f", "avx512cd" => "avx512cd", "avx512bw" => "avx512bw", "avx512dq" => "avx512dq",
    "avx512vl" => "avx512vl", "avx512ifma" => "avx512ifma", "avx512vbmi" => "avx512vbmi", "avx512vbmi2" => "avx512vbmi2",
    "avx512vnni" => "avx512vnni", "avx512bitalg" => "avx512bitalg", "avx512vpopcntdq" => "avx512vpopcntdq",
    "avx512bf16" => "avx512bf16", "avx512fp16" => "avx512fp16",
}

/// Elsewhere no x86 feature is present.
#[cfg(not(target_arch = "x86_64"))]
pub fn has_feature(name: &str) -> Option<bool> {
    KNOWN_FEATURES.contains(&name).then_some(false)
}

/// The known features that this CPU has, in the order of [`KNOWN_FEATURES`].
pub fn detected_features() -> Vec<&'static str> {
    KNOWN_FEATURES.iter().copied().filter(|name| has_feature(name) == Some(true)).collect()
}

/// The CPU's name as the kernel reports it.
pub fn model_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// One logical CPU of each physical core that this process may run on, ascending.
pub fn physical_cores() -> Vec<usize> {
    let allowed = crate::driver::host::affinity::allowed_cpus();
    let mut cores = Vec::with_capacity(allowed.len());
    let mut taken = Vec::new();
    for cpu in allowed {
        if taken.contains(cpu) {
            continue;
        }
        cores.push(*cpu);
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        if let Ok(list) = std::fs::read_to_string(path) {
            taken.extend(parse_cpu_list(&list));
        }
    }
    cores
}

/// Threads that can run at once: the affinity mask and the control group's quota, as they were when first asked for.
pub fn available_threads() -> usize {
    static AVAILABLE: OnceLock<usize> = OnceLock::new();
    *AVAILABLE.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Threads used where none are asked for: physical cores, no more than the process may use at once.
pub fn default_threads() -> usize {
    physical_cores().len().clamp(1, available_threads())
}

/// `0-3,8` as numbers; what does not parse is left out.
fn parse_cpu_list(text: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            cpus.extend(first..=last.min(first.saturating_add(4096)));
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0-2,7\n"), [0, 1, 2, 7]);
        assert_eq!(parse_cpu_list("nonsense"), Vec::<usize>::new());
        assert!(!physical_cores().is_empty());
    }
}
