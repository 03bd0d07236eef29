//! HIP's functions. Pointers to results are `Option<&mut T>`, which is a nullable pointer in C; handles are plain numbers.
#![allow(non_snake_case, reason = "the names of hip_runtime_api.h")]

use crate::module;
use crate::state::*;
use crate::stream::{Event, Launch, Op, Stream};
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::Arc;
use std::time::Instant;

pub fn put<T>(to: Option<&mut T>, value: T) -> Answer {
    *to.ok_or(INVALID_VALUE)? = value;
    Ok(())
}

fn device_of(state: &State, device: c_int) -> Answer {
    match state.settings.devices {
        0 => Err(NO_DEVICE),
        devices if (0..devices).contains(&device) => Ok(()),
        _ => Err(INVALID_DEVICE),
    }
}

#[unsafe(no_mangle)]
extern "C" fn hipInit(flags: c_uint) -> c_int {
    call(
        "hipInit",
        Kind::Makes,
        format!("{flags}"),
        |state| if state.settings.devices == 0 { Err(NO_DEVICE) } else { Ok(()) },
    )
}

#[unsafe(no_mangle)]
extern "C" fn hipRuntimeGetVersion(version: Option<&mut c_int>) -> c_int {
    call("hipRuntimeGetVersion", Kind::Makes, String::new(), |_| put(version, 70_353_211))
}

#[unsafe(no_mangle)]
extern "C" fn hipDriverGetVersion(version: Option<&mut c_int>) -> c_int {
    call("hipDriverGetVersion", Kind::Makes, String::new(), |_| put(version, 70_353_211))
}

#[unsafe(no_mangle)]
extern "C" fn hipGetDeviceCount(count: Option<&mut c_int>) -> c_int {
    call("hipGetDeviceCount", Kind::Makes, String::new(), |state| match state.settings.devices {
        0 => Err(NO_DEVICE),
        devices => put(count, devices),
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipSetDevice(device: c_int) -> c_int {
    call("hipSetDevice", Kind::Makes, format!("{device}"), |state| device_of(state, device))
}

#[unsafe(no_mangle)]
extern "C" fn hipDeviceGetAttribute(value: Option<&mut c_int>, attribute: c_int, device: c_int) -> c_int {
    call("hipDeviceGetAttribute", Kind::Makes, format!("{attribute}, {device}"), |state| {
        device_of(state, device)?;
        let number = match attribute {
            5 => 2_100_000,
            19 => 4 << 20,
            29 => i32::MAX,
            30 | 31 => 65_535,
            56 => 1024,
            63 => 304,
            67 => 0x2b,
            68 | 69 => 0,
            74 => 65_536,
            87 => 64,
            _ => return Err(INVALID_VALUE),
        };
        put(value, number)
    })
}

fn properties(name: &'static str, to: *mut u8, device: c_int, bytes: usize, arch_at: usize) -> c_int {
    call(name, Kind::Makes, format!("{device}"), |state| {
        device_of(state, device)?;
        if to.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller gives a structure of this size.
        let answer = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
        answer.fill(0);
        answer[..10].copy_from_slice(b"AMD Double");
        let arch = state.settings.arch.as_bytes();
        answer[arch_at..arch_at + arch.len()].copy_from_slice(arch);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipGetDeviceProperties(to: *mut u8, device: c_int) -> c_int {
    properties("hipGetDeviceProperties", to, device, 792, 396)
}

#[unsafe(no_mangle)]
extern "C" fn hipGetDevicePropertiesR0600(to: *mut u8, device: c_int) -> c_int {
    properties("hipGetDevicePropertiesR0600", to, device, 1472, 1160)
}

#[unsafe(no_mangle)]
extern "C" fn hipDeviceGetName(to: *mut c_char, bytes: c_int, device: c_int) -> c_int {
    call("hipDeviceGetName", Kind::Makes, format!("{device}"), |state| {
        device_of(state, device)?;
        let name = b"AMD Double\0";
        if to.is_null() || (bytes as usize) < name.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller gives at least as many bytes.
        unsafe { to.copy_from_nonoverlapping(name.as_ptr().cast(), name.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipDeviceSynchronize() -> c_int {
    call("hipDeviceSynchronize", Kind::Ends, String::new(), |state| {
        state.outside_capture()?;
        drain_all(state);
        state.healthy()
    })
}

pub fn drain_all(state: &mut State) {
    let streams: Vec<usize> = state.streams.keys().copied().collect();
    streams.into_iter().for_each(|s| state.drain(s));
}

#[unsafe(no_mangle)]
extern "C" fn hipMemGetInfo(free: Option<&mut usize>, total: Option<&mut usize>) -> c_int {
    call("hipMemGetInfo", Kind::Makes, String::new(), |state| {
        put(free, state.settings.memory.saturating_sub(state.memory.device_bytes) as usize)?;
        put(total, state.settings.memory as usize)
    })
}

/// `hipDeviceMallocUncached`.
const UNCACHED: c_uint = 3;

fn device_memory(name: &'static str, to: Option<&mut usize>, bytes: usize, uncached: bool, detail: String) -> c_int {
    call(name, Kind::Makes, detail, |state| {
        state.outside_capture()?;
        state.healthy()?;
        device_of(state, 0)?;
        let to = to.ok_or(INVALID_VALUE)?;
        if bytes == 0 {
            *to = 0;
            return Ok(());
        }
        if bytes as u64 > state.settings.memory.saturating_sub(state.memory.device_bytes) {
            return Err(OUT_OF_MEMORY);
        }
        let address = state.memory.device(bytes, uncached).ok_or(OUT_OF_MEMORY)?;
        state.made.insert(address, state.log.len() as u64 - 1);
        *to = address;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipMalloc(to: Option<&mut usize>, bytes: usize) -> c_int {
    device_memory("hipMalloc", to, bytes, false, format!("{bytes} bytes"))
}

#[unsafe(no_mangle)]
extern "C" fn hipExtMallocWithFlags(to: Option<&mut usize>, bytes: usize, flags: c_uint) -> c_int {
    device_memory("hipExtMallocWithFlags", to, bytes, flags == UNCACHED, format!("{bytes} bytes, {flags}"))
}

#[unsafe(no_mangle)]
extern "C" fn hipHostMalloc(to: Option<&mut usize>, bytes: usize, flags: c_uint) -> c_int {
    call("hipHostMalloc", Kind::Makes, format!("{bytes} bytes, {flags}"), |state| {
        state.outside_capture()?;
        state.healthy()?;
        device_of(state, 0)?;
        let to = to.ok_or(INVALID_VALUE)?;
        let address = state.memory.pinned(bytes).ok_or(OUT_OF_MEMORY)?;
        state.made.insert(address, state.log.len() as u64 - 1);
        *to = address;
        Ok(())
    })
}

fn free(name: &'static str, address: usize, pinned: bool) -> c_int {
    call(name, Kind::Ends, format!("{address:#x}"), |state| {
        state.outside_capture()?;
        if address == 0 {
            return Ok(());
        }
        // As HIP does: work that may use the memory is done first.
        drain_all(state);
        state.made.remove(&address);
        match state.memory.imports_of(address) {
            0 => {}
            n => state.violation(format!("{n} other processes have this memory mapped")),
        }
        if let Err(text) = state.memory.free(address, pinned) {
            state.violation(text);
            return Err(INVALID_VALUE);
        }
        state.healthy()
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipFree(address: usize) -> c_int {
    free("hipFree", address, false)
}

#[unsafe(no_mangle)]
extern "C" fn hipHostFree(address: usize) -> c_int {
    free("hipHostFree", address, true)
}

fn copy(name: &'static str, to: usize, from: usize, bytes: usize, kind: c_int, stream: usize) -> c_int {
    let detail = format!("{to:#x}, {from:#x}, {bytes} bytes, kind {kind}");
    call(name, Kind::Makes, detail, |state| state.enqueue_copy(stream, to, from, bytes, kind))
}

#[unsafe(no_mangle)]
extern "C" fn hipMemcpyAsync(to: usize, from: usize, bytes: usize, kind: c_int, stream: usize) -> c_int {
    copy("hipMemcpyAsync", to, from, bytes, kind, stream)
}

#[unsafe(no_mangle)]
extern "C" fn hipMemcpyHtoDAsync(to: usize, from: usize, bytes: usize, stream: usize) -> c_int {
    copy("hipMemcpyHtoDAsync", to, from, bytes, 1, stream)
}

#[unsafe(no_mangle)]
extern "C" fn hipMemcpyDtoHAsync(to: usize, from: usize, bytes: usize, stream: usize) -> c_int {
    copy("hipMemcpyDtoHAsync", to, from, bytes, 2, stream)
}

#[unsafe(no_mangle)]
extern "C" fn hipMemsetAsync(to: usize, value: c_int, bytes: usize, stream: usize) -> c_int {
    call("hipMemsetAsync", Kind::Makes, format!("{to:#x}, {value}, {bytes} bytes"), |state| {
        if state.memory.resolve(to, bytes).is_none() {
            state.violation("the range is not allocated".into());
            return Err(INVALID_VALUE);
        }
        state.enqueue(stream, Op::Fill { to, value: value as u8, bytes })
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipStreamCreateWithFlags(to: Option<&mut usize>, flags: c_uint) -> c_int {
    call("hipStreamCreateWithFlags", Kind::Makes, format!("{flags}"), |state| {
        device_of(state, 0)?;
        let handle = state.handle();
        state.streams.insert(handle, Stream::default());
        put(to, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipStreamDestroy(stream: usize) -> c_int {
    call("hipStreamDestroy", Kind::Ends, format!("{stream:#x}"), |state| {
        state.drain(stream);
        let Some(gone) = state.streams.remove(&stream) else { return Err(state.bad_handle(stream, "stream")) };
        state.bury(stream, "stream");
        if gone.capture.is_some() {
            state.violation("the stream was being captured".into());
        }
        state.healthy()
    })
}

fn known_stream(state: &mut State, stream: usize) -> Answer {
    if state.streams.contains_key(&stream) { Ok(()) } else { Err(state.bad_handle(stream, "stream")) }
}

fn known_event(state: &mut State, event: usize) -> Answer {
    if state.events.contains_key(&event) { Ok(()) } else { Err(state.bad_handle(event, "event")) }
}

#[unsafe(no_mangle)]
extern "C" fn hipStreamSynchronize(stream: usize) -> c_int {
    call("hipStreamSynchronize", Kind::Ends, format!("{stream:#x}"), |state| {
        known_stream(state, stream)?;
        state.outside_capture()?;
        state.drain(stream);
        state.healthy()
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipStreamQuery(stream: usize) -> c_int {
    call("hipStreamQuery", Kind::Ends, format!("{stream:#x}"), |state| {
        known_stream(state, stream)?;
        state.outside_capture()?;
        // Time passes: each query runs one thing.
        let busy = state.advance(stream);
        state.healthy()?;
        if busy { Err(NOT_READY) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> c_int {
    call("hipStreamWaitEvent", Kind::Makes, format!("{stream:#x}, {event:#x}, {flags}"), |state| {
        known_stream(state, stream)?;
        known_event(state, event)?;
        let generation = state.events.get(&event).map_or(0, |e| e.recorded);
        state.enqueue(stream, Op::Wait { event, generation })
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipEventCreateWithFlags(to: Option<&mut usize>, flags: c_uint) -> c_int {
    call("hipEventCreateWithFlags", Kind::Makes, format!("{flags}"), |state| {
        device_of(state, 0)?;
        let handle = state.handle();
        let event = Event { timing: flags & 2 == 0, recorded: 0, reached: 0, stream: 0, at: None };
        state.events.insert(handle, event);
        put(to, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipEventDestroy(event: usize) -> c_int {
    call("hipEventDestroy", Kind::Ends, format!("{event:#x}"), |state| {
        if state.events.remove(&event).is_none() {
            return Err(state.bad_handle(event, "event"));
        }
        state.bury(event, "event");
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipEventRecord(event: usize, stream: usize) -> c_int {
    call("hipEventRecord", Kind::Makes, format!("{event:#x}, {stream:#x}"), |state| {
        known_stream(state, stream)?;
        known_event(state, event)?;
        let captured = state.streams.get(&stream).is_some_and(|s| s.capture.is_some());
        let Some(entry) = state.events.get_mut(&event) else { return Err(INVALID_HANDLE) };
        let generation = entry.recorded + 1;
        if !captured {
            entry.recorded = generation;
            entry.stream = stream;
        }
        state.enqueue(stream, Op::Record { event, generation })
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipEventSynchronize(event: usize) -> c_int {
    call("hipEventSynchronize", Kind::Ends, format!("{event:#x}"), |state| {
        known_event(state, event)?;
        state.outside_capture()?;
        let generation = state.events.get(&event).map_or(0, |e| e.recorded);
        state.reach(event, generation);
        state.healthy()
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipEventQuery(event: usize) -> c_int {
    call("hipEventQuery", Kind::Ends, format!("{event:#x}"), |state| {
        known_event(state, event)?;
        state.outside_capture()?;
        let Some((stream, ahead)) = state.events.get(&event).map(|e| (e.stream, e.reached < e.recorded)) else {
            return Err(INVALID_HANDLE);
        };
        if ahead {
            state.advance(stream);
        }
        state.healthy()?;
        if ahead { Err(NOT_READY) } else { Ok(()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipEventElapsedTime(to: Option<&mut f32>, from: usize, until: usize) -> c_int {
    call("hipEventElapsedTime", Kind::Makes, format!("{from:#x}, {until:#x}"), |state| {
        known_event(state, from)?;
        known_event(state, until)?;
        let time = |event: &Event| -> Answer<Instant> {
            if !event.timing {
                return Err(INVALID_HANDLE);
            }
            if event.reached < event.recorded { Err(NOT_READY) } else { event.at.ok_or(INVALID_HANDLE) }
        };
        let (from, until) = (time(&state.events[&from])?, time(&state.events[&until])?);
        put(to, until.saturating_duration_since(from).as_secs_f32() * 1e3)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipModuleLoadData(to: Option<&mut usize>, image: *const u8) -> c_int {
    call("hipModuleLoadData", Kind::Makes, String::new(), |state| {
        state.outside_capture()?;
        state.healthy()?;
        device_of(state, 0)?;
        if image.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller gives an image.
        let module = unsafe { module::load(image) }?;
        if state.settings.arch.split(':').next() != Some(&module.arch) {
            return Err(NO_BINARY);
        }
        let handle = state.handle();
        state.modules.insert(handle, Arc::new(module));
        put(to, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipModuleUnload(module: usize) -> c_int {
    call("hipModuleUnload", Kind::Ends, format!("{module:#x}"), |state| {
        state.outside_capture()?;
        drain_all(state);
        if state.modules.remove(&module).is_none() {
            return Err(state.bad_handle(module, "module"));
        }
        state.bury(module, "module");
        let functions: Vec<usize> = state.functions.iter().filter(|(_, f)| f.0 == module).map(|(h, _)| *h).collect();
        for function in functions {
            state.functions.remove(&function);
            state.bury(function, "function");
        }
        Ok(())
    })
}

fn text(from: *const c_char) -> Answer<String> {
    if from.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and the caller gives a NUL-terminated text.
    Ok(unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned())
}

#[unsafe(no_mangle)]
extern "C" fn hipModuleGetFunction(to: Option<&mut usize>, module: usize, name: *const c_char) -> c_int {
    let name = text(name);
    call("hipModuleGetFunction", Kind::Makes, name.clone().unwrap_or_default(), |state| {
        let name = name?;
        let Some(found) = state.modules.get(&module) else { return Err(state.bad_handle(module, "module")) };
        let index = found.kernels.iter().position(|k| k.name == name).ok_or(NOT_FOUND)?;
        let handle = state.handle();
        state.functions.insert(handle, (module, index));
        put(to, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipFuncGetAttribute(to: Option<&mut c_int>, attribute: c_int, function: usize) -> c_int {
    call("hipFuncGetAttribute", Kind::Makes, format!("{attribute}, {function:#x}"), |state| {
        let Some(&(module, index)) = state.functions.get(&function) else {
            return Err(state.bad_handle(function, "function"));
        };
        let kernel = &state.modules[&module].kernels[index];
        let value = match attribute {
            0 => 1024,
            1 => kernel.shared_bytes as c_int,
            3 => kernel.scratch_bytes as c_int,
            4 => 64,
            _ => return Err(INVALID_VALUE),
        };
        put(to, value)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipModuleLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: usize,
    params: *const *const u64,
    extra: *const *const c_void,
) -> c_int {
    let grid = [grid_x, grid_y, grid_z];
    let block = [block_x, block_y, block_z];
    let detail = format!("{function:#x}, grid {grid:?}, block {block:?}, {shared_bytes} bytes");
    call("hipModuleLaunchKernel", Kind::Makes, detail, |state| {
        let Some(&(module, index)) = state.functions.get(&function) else {
            return Err(state.bad_handle(function, "function"));
        };
        let kernel = state.modules[&module].kernels[index].clone();
        let threads: u64 = block.iter().map(|n| u64::from(*n)).product();
        let fits = grid.iter().chain(&block).all(|n| *n > 0)
            && threads <= 1024
            && grid_y <= 65_535
            && grid_z <= 65_535
            // The device counts threads, not blocks, in 32 bits.
            && u64::from(grid_x) * u64::from(block_x) <= u64::from(u32::MAX)
            && u64::from(kernel.shared_bytes) + u64::from(shared_bytes) <= 65_536;
        if !fits {
            state.violation(format!("{}: grid {grid:?} of blocks {block:?} is past the limits", kernel.name));
            return Err(INVALID_CONFIGURATION);
        }
        if params.is_null() || !extra.is_null() {
            state.violation("arguments are given as kernelParams".into());
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller gives a pointer to each argument that the kernel declares, each of 8 bytes.
        let args = unsafe {
            let pointers = std::slice::from_raw_parts(params, kernel.params);
            pointers.iter().map(|p| p.read_unaligned()).collect()
        };
        state.enqueue(stream, Op::Kernel(Arc::new(Launch { module, function, kernel, args, grid })))
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipStreamBeginCapture(stream: usize, mode: c_int) -> c_int {
    call("hipStreamBeginCapture", Kind::Makes, format!("{stream:#x}, mode {mode}"), |state| {
        known_stream(state, stream)?;
        state.healthy()?;
        let capture = Capture { thread: std::thread::current().id(), mode, invalid: false, nodes: Vec::new() };
        let Some(entry) = state.streams.get_mut(&stream) else { return Err(INVALID_HANDLE) };
        if entry.capture.is_some() {
            state.violation("the stream is captured already".into());
            return Err(INVALID_VALUE);
        }
        entry.capture = Some(capture);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipStreamEndCapture(stream: usize, to: Option<&mut usize>) -> c_int {
    let mut graph = 0;
    let code = call("hipStreamEndCapture", Kind::Ends, format!("{stream:#x}"), |state| {
        known_stream(state, stream)?;
        let capture = state.streams.get_mut(&stream).and_then(|s| s.capture.take()).ok_or(CAPTURE_UNMATCHED)?;
        if capture.thread != std::thread::current().id() && capture.mode != 2 {
            return Err(CAPTURE_WRONG_THREAD);
        }
        if capture.invalid {
            return Err(CAPTURE_INVALIDATED);
        }
        graph = state.handle();
        state.graphs.insert(graph, Arc::new(capture.nodes));
        Ok(())
    });
    if code != 0 {
        // Injected after the fact: the capture is over, and there is no graph.
        let mut locked = lock();
        let state = locked.get();
        if state.graphs.remove(&graph).is_some() {
            state.bury(graph, "graph");
        }
        return code;
    }
    put(to, graph).err().unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn hipStreamIsCapturing(stream: usize, to: Option<&mut c_int>) -> c_int {
    call("hipStreamIsCapturing", Kind::Makes, format!("{stream:#x}"), |state| {
        known_stream(state, stream)?;
        let capture = state.streams.get(&stream).and_then(|s| s.capture.as_ref());
        put(to, capture.map_or(0, |c| if c.invalid { 2 } else { 1 }))
    })
}

fn instantiate(name: &'static str, to: Option<&mut usize>, graph: usize) -> c_int {
    call(name, Kind::Makes, format!("{graph:#x}"), |state| {
        state.healthy()?;
        let Some(nodes) = state.graphs.get(&graph).cloned() else { return Err(state.bad_handle(graph, "graph")) };
        let handle = state.handle();
        state.execs.insert(handle, nodes);
        put(to, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphInstantiate(
    to: Option<&mut usize>,
    graph: usize,
    _node: *mut usize,
    _log: *mut c_char,
    _log_bytes: usize,
) -> c_int {
    instantiate("hipGraphInstantiate", to, graph)
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphInstantiateWithFlags(to: Option<&mut usize>, graph: usize, _flags: c_ulonglong) -> c_int {
    instantiate("hipGraphInstantiateWithFlags", to, graph)
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphUpload(exec: usize, stream: usize) -> c_int {
    call("hipGraphUpload", Kind::Makes, format!("{exec:#x}, {stream:#x}"), |state| {
        if !state.execs.contains_key(&exec) {
            return Err(state.bad_handle(exec, "executable graph"));
        }
        known_stream(state, stream)?;
        state.healthy()
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphLaunch(exec: usize, stream: usize) -> c_int {
    call("hipGraphLaunch", Kind::Makes, format!("{exec:#x}, {stream:#x}"), |state| {
        let Some(nodes) = state.execs.get(&exec).cloned() else {
            return Err(state.bad_handle(exec, "executable graph"));
        };
        known_stream(state, stream)?;
        if state.streams.get(&stream).is_some_and(|s| s.capture.is_some()) {
            state.violation("a graph is launched into a capture".into());
            return Err(CAPTURE_UNSUPPORTED);
        }
        state.enqueue(stream, Op::Graph(nodes))
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphExecDestroy(exec: usize) -> c_int {
    call("hipGraphExecDestroy", Kind::Ends, format!("{exec:#x}"), |state| {
        let Some(nodes) = state.execs.remove(&exec) else { return Err(state.bad_handle(exec, "executable graph")) };
        state.bury(exec, "executable graph");
        let pending = |op: &Op| matches!(op, Op::Graph(queued) if Arc::ptr_eq(queued, &nodes));
        if state.streams.values().any(|s| s.queue.iter().any(pending)) {
            state.violation("the graph is still in flight".into());
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphDestroy(graph: usize) -> c_int {
    call("hipGraphDestroy", Kind::Ends, format!("{graph:#x}"), |state| {
        if state.graphs.remove(&graph).is_none() {
            return Err(state.bad_handle(graph, "graph"));
        }
        state.bury(graph, "graph");
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphGetNodes(graph: usize, to: *mut usize, count: Option<&mut usize>) -> c_int {
    call("hipGraphGetNodes", Kind::Makes, format!("{graph:#x}"), |state| {
        let Some(nodes) = state.graphs.get(&graph).cloned() else { return Err(state.bad_handle(graph, "graph")) };
        let count = count.ok_or(INVALID_VALUE)?;
        if !to.is_null() {
            for (index, op) in nodes.iter().enumerate().take(*count) {
                // A node's handle says where it is, so that asking twice gives the same.
                let handle = graph + 1 + index;
                let kind = match op {
                    Op::Kernel(_) => 0,
                    Op::Copy { .. } => 1,
                    Op::Fill { .. } => 2,
                    Op::Graph(_) => 4,
                    Op::Wait { .. } => 6,
                    Op::Record { .. } => 7,
                };
                let function = if let Op::Kernel(launch) = op { launch.function } else { 0 };
                state.nodes.insert(handle, (kind, function));
                // SAFETY: the caller gives room for `count` nodes.
                unsafe { to.add(index).write(handle) };
            }
        }
        *count = nodes.len();
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphNodeGetType(node: usize, to: Option<&mut c_int>) -> c_int {
    call("hipGraphNodeGetType", Kind::Makes, format!("{node:#x}"), |state| {
        let Some(&(kind, _)) = state.nodes.get(&node) else { return Err(state.bad_handle(node, "node")) };
        put(to, kind)
    })
}

/// `hipKernelNodeParams`, of which the function is filled in: `blockDim` and padding, `extra`, `func`, the rest.
#[repr(C)]
struct KernelNodeParams {
    block: [c_uint; 4],
    extra: usize,
    function: usize,
    rest: [usize; 4],
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphKernelNodeGetParams(node: usize, to: Option<&mut KernelNodeParams>) -> c_int {
    call("hipGraphKernelNodeGetParams", Kind::Makes, format!("{node:#x}"), |state| match state.nodes.get(&node) {
        Some(&(0, function)) => put(to, KernelNodeParams { block: [0; 4], extra: 0, function, rest: [0; 4] }),
        Some(_) => Err(INVALID_VALUE),
        None => Err(state.bad_handle(node, "node")),
    })
}

fn must_not_be_used(name: &'static str) -> c_int {
    call(name, Kind::Makes, String::new(), |state| {
        state.violation("Weldment captures once and never updates".into());
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphExecUpdate(_exec: usize, _graph: usize, _node: *mut usize, _result: *mut c_int) -> c_int {
    must_not_be_used("hipGraphExecUpdate")
}

#[unsafe(no_mangle)]
extern "C" fn hipGraphExecKernelNodeSetParams(_exec: usize, _node: usize, _params: *const c_void) -> c_int {
    must_not_be_used("hipGraphExecKernelNodeSetParams")
}

#[unsafe(no_mangle)]
extern "C" fn hipGetLastError() -> c_int {
    let mut locked = lock();
    std::mem::take(&mut locked.get().last_error)
}

fn error(code: c_int) -> (&'static CStr, &'static CStr) {
    match code {
        0 => (c"hipSuccess", c"no error"),
        INVALID_VALUE => (c"hipErrorInvalidValue", c"invalid argument"),
        OUT_OF_MEMORY => (c"hipErrorOutOfMemory", c"out of memory"),
        INVALID_CONFIGURATION => (c"hipErrorInvalidConfiguration", c"invalid configuration argument"),
        INVALID_POINTER => (c"hipErrorInvalidDevicePointer", c"invalid device pointer"),
        NO_DEVICE => (c"hipErrorNoDevice", c"no ROCm-capable device is detected"),
        INVALID_DEVICE => (c"hipErrorInvalidDevice", c"invalid device ordinal"),
        INVALID_IMAGE => (c"hipErrorInvalidImage", c"device kernel image is invalid"),
        NO_BINARY => (c"hipErrorNoBinaryForGpu", c"no kernel image is available for execution on the device"),
        INVALID_HANDLE => (c"hipErrorInvalidHandle", c"invalid resource handle"),
        NOT_FOUND => (c"hipErrorNotFound", c"named symbol not found"),
        NOT_READY => (c"hipErrorNotReady", c"device not ready"),
        ILLEGAL_ADDRESS => (c"hipErrorIllegalAddress", c"an illegal memory access was encountered"),
        719 => (c"hipErrorLaunchFailure", c"unspecified launch failure"),
        CAPTURE_UNSUPPORTED => {
            (c"hipErrorStreamCaptureUnsupported", c"operation not permitted when stream is capturing")
        }
        CAPTURE_INVALIDATED => {
            (c"hipErrorStreamCaptureInvalidated", c"operation failed due to a previous error during capture")
        }
        CAPTURE_UNMATCHED => (c"hipErrorStreamCaptureUnmatched", c"capture was not initiated in this stream"),
        CAPTURE_WRONG_THREAD => {
            (c"hipErrorStreamCaptureWrongThread", c"attempt to terminate a capture from another thread")
        }
        _ => (c"hipErrorUnknown", c"unknown error"),
    }
}

#[unsafe(no_mangle)]
extern "C" fn hipGetErrorName(code: c_int) -> *const c_char {
    error(code).0.as_ptr()
}

#[unsafe(no_mangle)]
extern "C" fn hipGetErrorString(code: c_int) -> *const c_char {
    error(code).1.as_ptr()
}
