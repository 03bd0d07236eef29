//! HIP's functions for memory that processes share. The double is the machine: handles of one process are good in all.
#![allow(non_snake_case, reason = "the names of hip_runtime_api.h")]

use crate::exports::{drain_all, put};
use crate::state::*;
use std::ffi::{c_int, c_uint};

#[unsafe(no_mangle)]
extern "C" fn hipHostGetDevicePointer(to: Option<&mut usize>, host: usize, flags: c_uint) -> c_int {
    call("hipHostGetDevicePointer", Kind::Makes, format!("{host:#x}, {flags}"), |state| {
        if !state.memory.is_pinned(host) {
            state.violation("no pinned memory".into());
            return Err(INVALID_VALUE);
        }
        put(to, host)
    })
}

/// `hipIpcMemHandle_t`: here the address comes first, and zeros follow.
#[repr(C)]
struct IpcHandle([u8; 64]);

#[unsafe(no_mangle)]
extern "C" fn hipIpcGetMemHandle(to: Option<&mut IpcHandle>, address: usize) -> c_int {
    call("hipIpcGetMemHandle", Kind::Makes, format!("{address:#x}"), |state| {
        state.outside_any_capture()?;
        if let Some(text) = state.memory.not_exportable(address) {
            state.violation(text);
            return Err(INVALID_VALUE);
        }
        let mut handle = IpcHandle([0; 64]);
        handle.0[..8].copy_from_slice(&(address as u64).to_le_bytes());
        put(to, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipIpcOpenMemHandle(to: Option<&mut usize>, handle: IpcHandle, flags: c_uint) -> c_int {
    let mut raw = [0; 8];
    raw.copy_from_slice(&handle.0[..8]);
    let of = u64::from_le_bytes(raw) as usize;
    call("hipIpcOpenMemHandle", Kind::Makes, format!("{of:#x}, {flags}"), |state| {
        state.outside_any_capture()?;
        state.healthy()?;
        let to = to.ok_or(INVALID_VALUE)?;
        let Some(address) = state.memory.import(of) else {
            state.violation("the handle's memory is not there any more".into());
            return Err(INVALID_VALUE);
        };
        state.made.insert(address, state.log.len() as u64 - 1);
        *to = address;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipIpcCloseMemHandle(address: usize) -> c_int {
    call("hipIpcCloseMemHandle", Kind::Ends, format!("{address:#x}"), |state| {
        state.outside_capture()?;
        drain_all(state);
        state.made.remove(&address);
        if !state.memory.close_import(address) {
            state.violation("no memory of another process is mapped there".into());
            return Err(INVALID_VALUE);
        }
        state.healthy()
    })
}
