//! The controls, exported beside HIP's functions under names of their own.

use crate::state::lock;
use std::ffi::{c_char, c_int};

#[unsafe(no_mangle)]
extern "C" fn weldment_double_reset() {
    lock().get().reset();
}

/// Call `index`, counted from the last reset, fails with `code`.
#[unsafe(no_mangle)]
extern "C" fn weldment_double_fail_at(index: u64, code: c_int) {
    lock().get().settings.fail_at = Some((index, code));
}

/// Kernel `index` that runs, counted from the last reset, ends in device fault `code`.
#[unsafe(no_mangle)]
extern "C" fn weldment_double_fault_at(index: u64, code: c_int) {
    lock().get().settings.fault_at = Some((index, code));
}

/// Calls since the last reset.
#[unsafe(no_mangle)]
extern "C" fn weldment_double_calls() -> u64 {
    lock().get().log.len() as u64
}

#[unsafe(no_mangle)]
extern "C" fn weldment_double_set_memory(bytes: u64) {
    lock().get().settings.memory = bytes;
}

#[unsafe(no_mangle)]
extern "C" fn weldment_double_set_devices(devices: c_int) {
    lock().get().settings.devices = devices;
}

#[unsafe(no_mangle)]
extern "C" fn weldment_double_set_lazy(lazy: bool) {
    lock().get().settings.lazy = lazy;
}

#[unsafe(no_mangle)]
extern "C" fn weldment_double_set_captures_spoil(spoil: bool) {
    lock().get().settings.captures_spoil = spoil;
}

/// # Safety
/// `bytes` bytes of UTF-8 at `arch`, at most 200.
#[unsafe(no_mangle)]
unsafe extern "C" fn weldment_double_set_arch(arch: *const u8, bytes: usize) {
    // SAFETY: the caller's promise.
    let arch = unsafe { std::slice::from_raw_parts(arch, bytes) };
    lock().get().settings.arch = String::from_utf8_lossy(arch).into_owned();
}

/// Live objects.
#[unsafe(no_mangle)]
extern "C" fn weldment_double_leaks() -> u64 {
    lock().get().leaks().len() as u64
}

/// Writes a text of lines: 0 the calls, 1 the leaks, 2 the breaches of the protocol. Returns its length.
///
/// # Safety
/// `room` bytes at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn weldment_double_text(what: c_int, to: *mut c_char, room: usize) -> usize {
    let mut locked = lock();
    let state = locked.get();
    let lines: Vec<String> = match what {
        0 => state.log.iter().map(|c| format!("{}({})", c.name, c.detail)).collect(),
        1 => state.leaks(),
        _ => state.violations.clone(),
    };
    let text = lines.join("\n");
    // SAFETY: the caller's promise; no more than `room` bytes are written.
    unsafe { to.copy_from_nonoverlapping(text.as_ptr().cast(), text.len().min(room)) };
    text.len()
}
