//! What host programs do between two looks at something that has not arrived: spin a little, yield, then sleep, so that ranks that
//! share cores let each other run.

use crate::artifact::comm_table;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Looks between two looks at the abort word while spinning.
const SPINS_A_LOOK: u64 = 32;
/// Looks with a yield after those without.
const YIELDS: u64 = 512;
/// Short sleeps before longer ones.
const NAPS: u64 = 4096;
/// How long a short sleep is, beside what the system adds.
const NAP: Duration = Duration::from_micros(20);
/// How long a longer one is.
const LONG_NAP: Duration = Duration::from_millis(1);

/// What the comm table of the host holds behind [`comm_table::BYTES`], for [`relax`] alone.
#[repr(C)]
pub struct Private {
    /// Not 0 once the job is over.
    pub abort: *const AtomicU32,
    /// Counts the sleeps of this rank.
    pub backoffs: *const AtomicU64,
    /// Counts the waits of this rank that came to sleep.
    pub waits: *const AtomicU64,
    /// Looks before the first yield.
    pub spins: u64,
}

/// Where [`Private`] lies in the table.
pub const PRIVATE: usize = (comm_table::BYTES as usize).next_multiple_of(64);
/// Bytes of the table of the host.
pub const BYTES: usize = PRIVATE + 64;

const _: () = assert!(std::mem::size_of::<Private>() <= 64);

/// See [`comm_table::Relax`].
pub extern "C" fn relax(table: *const u8, looks: u64) -> u32 {
    // SAFETY: kernels hand on the comm table that the session gave them, which is `BYTES` long, aligned to 64 and written before any
    // kernel runs; the words that it points to are kept by the group, which outlives the session's kernels.
    let (private, abort, backoffs, waits) = unsafe {
        let private = &*table.add(PRIVATE).cast::<Private>();
        (private, &*private.abort, &*private.backoffs, &*private.waits)
    };
    if looks < private.spins {
        std::hint::spin_loop();
        if !looks.is_multiple_of(SPINS_A_LOOK) {
            return 0;
        }
    } else if looks < private.spins + YIELDS {
        std::thread::yield_now();
    } else {
        if looks == private.spins + YIELDS {
            waits.fetch_add(1, Ordering::Relaxed);
        }
        backoffs.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(if looks < private.spins + YIELDS + NAPS { NAP } else { LONG_NAP });
    }
    abort.load(Ordering::Relaxed)
}
