//! Which CPUs the process may use, and pinning a thread to one. Refusals are not errors: the pool works unpinned too.

use std::sync::OnceLock;

/// CPUs in the affinity mask of the first thread that asked, ascending; `[0]` if the system does not say. Asked once: a caller
/// that is pinned later passes its narrow mask on to every thread it starts, which must not be taken for the process's.
pub fn allowed_cpus() -> &'static [usize] {
    static ALLOWED: OnceLock<Vec<usize>> = OnceLock::new();
    ALLOWED.get_or_init(|| {
        // SAFETY: an all-zero cpu_set_t is a valid value, and the call writes at most the size it is given.
        let set = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            if libc::sched_getaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
                return vec![0];
            }
            set
        };
        // SAFETY: the index is below CPU_SETSIZE.
        let cpus: Vec<usize> =
            (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect();
        if cpus.is_empty() { vec![0] } else { cpus }
    })
}

/// Pins the calling thread to `cpu`; false if the system refuses.
pub fn pin_to(cpu: usize) -> bool {
    allowed_cpus();
    restrict_to(&[cpu])
}

/// Lets the calling thread run on every CPU of the process again: a thread inherits its maker's pin.
pub fn unpin() -> bool {
    restrict_to(allowed_cpus())
}

fn restrict_to(cpus: &[usize]) -> bool {
    // SAFETY: an all-zero cpu_set_t is a valid value, every index is in range (filtered), and the last call only reads.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for cpu in cpus.iter().filter(|cpu| **cpu < libc::CPU_SETSIZE as usize) {
            libc::CPU_SET(*cpu, &mut set);
        }
        libc::sched_setaffinity(0, std::mem::size_of::<libc::cpu_set_t>(), &raw const set) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_not_inherited_for_ever() {
        let cpus = allowed_cpus().to_vec();
        std::thread::spawn(move || {
            if !pin_to(cpus[0]) {
                return; // not allowed here
            }
            assert_eq!(allowed_cpus(), cpus);
            let parallel = || std::thread::available_parallelism().map_or(1, usize::from);
            assert_eq!(parallel(), 1);
            assert!(unpin());
            assert!(parallel() >= cpus.len().min(2));
        })
        .join()
        .unwrap();
    }
}
