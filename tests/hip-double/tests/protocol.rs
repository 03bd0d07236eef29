//! The double through the runtime's own bindings: what it runs, what it refuses, what it accounts for.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use hip_double::{Double, text_image};
use hip_runtime_sys::*;
use std::ffi::c_void;
use std::ptr::null_mut;

struct Bench {
    double: Double,
    hip: Hip,
}

fn bench() -> Bench {
    let double = Double::open().unwrap();
    let hip = Hip::open_path(double.path()).unwrap();
    assert_eq!(hip.missing(), [] as [&str; 0]);
    Bench { double, hip }
}

impl Bench {
    fn device(&self, bytes: usize) -> *mut c_void {
        let mut address = null_mut();
        // SAFETY: the out pointer is live.
        unsafe { self.hip.hipMalloc(&mut address, bytes) }.unwrap();
        address
    }

    fn pinned(&self, bytes: usize) -> *mut u8 {
        let mut address = null_mut();
        // SAFETY: the out pointer is live.
        unsafe { self.hip.hipHostMalloc(&mut address, bytes, hipHostMallocDefault) }.unwrap();
        address.cast()
    }

    fn stream(&self) -> hipStream_t {
        let mut stream = null_mut();
        // SAFETY: the out pointer is live.
        unsafe { self.hip.hipStreamCreateWithFlags(&mut stream, hipStreamNonBlocking) }.unwrap();
        stream
    }
}

#[test]
fn the_device_is_described() {
    let Bench { double, hip } = bench();
    assert_eq!(hip.device_count().unwrap(), 1);
    assert_eq!(hip.arch_name(0).unwrap().to_string(), "gfx942:sramecc+:xnack-");
    assert_eq!(hip.device_name(0).unwrap(), "AMD Double");
    assert_eq!(hip.device_attribute(hipDeviceAttributeWarpSize, 0).unwrap(), 64);
    assert_eq!(version_parts(hip.versions().unwrap().0), (7, 3, 53211));
    assert_eq!(hip.arch_name(1).unwrap_err().code(), Some(hipErrorInvalidDevice));
    double.set_arch("gfx950");
    assert_eq!(hip.arch_name(0).unwrap().processor, "gfx950");
    double.set_devices(0);
    assert_eq!(hip.device_count().unwrap(), 0);
    // SAFETY: the out pointer is live.
    assert_eq!(unsafe { hip.hipMalloc(&mut null_mut(), 8) }.unwrap_err().code(), Some(hipErrorNoDevice));
}

#[test]
fn work_waits_for_somebody_and_a_slot_overwritten_too_early_is_seen() {
    let bench = bench();
    let hip = &bench.hip;
    for lazy in [true, false] {
        bench.double.set_lazy(lazy);
        let (device, slot, out, stream) = (bench.device(8), bench.pinned(8), bench.pinned(8), bench.stream());
        // SAFETY: the ranges are allocated with these sizes, and freed once.
        unsafe {
            slot.cast::<u64>().write(1);
            hip.hipMemcpyHtoDAsync(device, slot.cast(), 8, stream).unwrap();
            slot.cast::<u64>().write(2); // too early
            hip.hipMemcpyDtoHAsync(out.cast(), device, 8, stream).unwrap();
            hip.hipStreamSynchronize(stream).unwrap();
            assert_eq!(out.cast::<u64>().read(), if lazy { 2 } else { 1 });
            hip.hipStreamDestroy(stream).unwrap();
            hip.hipFree(device).unwrap();
            hip.hipHostFree(slot.cast()).unwrap();
            hip.hipHostFree(out.cast()).unwrap();
        }
    }
    assert_eq!(bench.double.leaks(), [] as [&str; 0]);
    assert_eq!(bench.double.violations(), [] as [&str; 0]);
}

#[test]
fn a_graph_replays_with_the_arguments_that_were_captured() {
    let bench = bench();
    let hip = &bench.hip;
    let image = text_image("gfx942", &["kernel more add1 0", "kernel idle nothing 1"]);
    let (data, dims, host, stream) = (bench.device(64), bench.device(64), bench.pinned(64), bench.stream());
    let (mut module, mut function) = (null_mut(), null_mut());
    let mut graph = null_mut();
    // SAFETY: handles and ranges come from the calls above, with these sizes.
    unsafe {
        hip.hipModuleLoadData(&mut module, image.as_ptr().cast()).unwrap();
        hip.hipModuleGetFunction(&mut function, module, c"more".as_ptr()).unwrap();
        assert_eq!(
            hip.hipModuleGetFunction(&mut null_mut(), module, c"less".as_ptr()).unwrap_err().code(),
            Some(hipErrorNotFound)
        );
        host.cast::<[i64; 8]>().write([3, 0, 0, 0, 0, 0, 0, 0]);
        hip.hipMemcpyHtoDAsync(dims, host.cast(), 64, stream).unwrap();
        hip.hipMemsetAsync(data, 0, 64, stream).unwrap();
        hip.hipStreamBeginCapture(stream, hipStreamCaptureModeThreadLocal).unwrap();
        let mut values = [data as u64, data as u64, dims as u64];
        let mut params: Vec<*mut c_void> = values.iter_mut().map(|v| std::ptr::from_mut(v).cast()).collect();
        hip.hipModuleLaunchKernel(function, 8, 1, 1, 64, 1, 1, 0, stream, params.as_mut_ptr(), null_mut()).unwrap();
        values = [0; 3]; // they were copied
        assert_eq!(values, [0; 3]);
        hip.hipStreamEndCapture(stream, &mut graph).unwrap();
        let mut count = 0;
        hip.hipGraphGetNodes(graph, null_mut(), &mut count).unwrap();
        let mut nodes = vec![null_mut(); count];
        hip.hipGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count).unwrap();
        let mut kind = -1;
        hip.hipGraphNodeGetType(nodes[0], &mut kind).unwrap();
        assert_eq!((count, kind), (1, hipGraphNodeTypeKernel));
        let exec = hip.graph_instantiate(graph).unwrap();
        hip.hipGraphDestroy(graph).unwrap();
        for _ in 0..5 {
            hip.hipGraphLaunch(exec, stream).unwrap();
        }
        hip.hipMemcpyDtoHAsync(host.cast(), data, 64, stream).unwrap();
        hip.hipStreamSynchronize(stream).unwrap();
        // 8 blocks, 3 elements: the surplus does nothing.
        assert_eq!(host.cast::<[i64; 8]>().read(), [5, 5, 5, 0, 0, 0, 0, 0]);
        assert_eq!(bench.double.violations(), [] as [&str; 0]);
        assert_eq!(hip.hipGraphDestroy(graph).unwrap_err().code(), Some(hipErrorInvalidHandle));
        assert!(bench.double.violations()[0].contains("a graph that was destroyed"), "{:?}", bench.double.violations());
        assert_eq!(bench.double.leaks().len(), 6);
        hip.hipGraphExecDestroy(exec).unwrap();
        hip.hipModuleUnload(module).unwrap();
        hip.hipStreamDestroy(stream).unwrap();
        hip.hipFree(data).unwrap();
        hip.hipFree(dims).unwrap();
        hip.hipHostFree(host.cast()).unwrap();
    }
    assert_eq!(bench.double.leaks(), [] as [&str; 0]);
}

#[test]
fn what_a_capture_forbids_spoils_it() {
    let bench = bench();
    let hip = &bench.hip;
    let stream = bench.stream();
    // SAFETY: the stream is live; the out pointers are.
    unsafe {
        hip.hipStreamBeginCapture(stream, hipStreamCaptureModeThreadLocal).unwrap();
        let other = std::thread::scope(|s| s.spawn(|| bench.device(8) as usize).join().unwrap());
        let mut status = 0;
        hip.hipStreamIsCapturing(stream, &mut status).unwrap();
        assert_eq!(status, hipStreamCaptureStatusActive, "another thread may allocate");
        let error = hip.hipMalloc(&mut null_mut(), 8).unwrap_err();
        assert_eq!(error.code(), Some(hipErrorStreamCaptureUnsupported));
        assert!(error.to_string().starts_with("hipMalloc: hipErrorStreamCaptureUnsupported (900)"), "{error}");
        let error = hip.hipStreamEndCapture(stream, &mut null_mut()).unwrap_err();
        assert_eq!(error.code(), Some(hipErrorStreamCaptureInvalidated));
        assert_eq!(bench.double.violations().len(), 1);
        hip.hipStreamBeginCapture(stream, hipStreamCaptureModeThreadLocal).unwrap();
        assert_eq!(hip.hipStreamSynchronize(stream).unwrap_err().code(), Some(hipErrorStreamCaptureUnsupported));
        hip.hipStreamEndCapture(stream, &mut null_mut()).unwrap_err();
        hip.hipFree(other as *mut c_void).unwrap();
        hip.hipStreamDestroy(stream).unwrap();
    }
    assert_eq!(bench.double.leaks(), [] as [&str; 0]);
}

#[test]
fn any_call_fails_on_demand() {
    let bench = bench();
    bench.double.fail_at(1, hipErrorOutOfMemory);
    let first = bench.device(8);
    // SAFETY: the out pointer is live; the memory is freed once.
    unsafe {
        let error = bench.hip.hipMalloc(&mut null_mut(), 16).unwrap_err();
        assert_eq!(error.to_string(), "hipMalloc: hipErrorOutOfMemory (2): out of memory");
        assert_eq!(bench.double.leaks(), ["memory, call 0: hipMalloc(8 bytes)"]);
        bench.double.fail_at(2, hipErrorUnknown);
        assert_eq!(bench.hip.hipFree(first).unwrap_err().code(), Some(hipErrorUnknown));
    }
    assert_eq!(bench.double.leaks(), [] as [&str; 0], "what a call destroys is gone even if it reports an error");
    assert_eq!(bench.double.log()[..2], ["hipMalloc(8 bytes)", "hipMalloc(16 bytes)"]);
    bench.double.set_memory(100);
    // SAFETY: the out pointer is live.
    assert_eq!(unsafe { bench.hip.hipMalloc(&mut null_mut(), 101) }.unwrap_err().code(), Some(hipErrorOutOfMemory));
    assert_eq!(bench.double.violations(), [] as [&str; 0]);
}

#[test]
fn limits_faults_and_stray_addresses() {
    let bench = bench();
    let hip = &bench.hip;
    let image = text_image("gfx942", &["kernel idle nothing 1"]);
    let (data, stream) = (bench.device(64), bench.stream());
    let (mut module, mut function) = (null_mut(), null_mut());
    // SAFETY: handles and ranges come from the calls above.
    unsafe {
        hip.hipModuleLoadData(&mut module, image.as_ptr().cast()).unwrap();
        hip.hipModuleGetFunction(&mut function, module, c"idle".as_ptr()).unwrap();
        let launch = |grid: [u32; 3], threads: u32, address: u64| {
            let mut address = address;
            let mut params = [std::ptr::from_mut(&mut address).cast::<c_void>()];
            let [x, y, z] = grid;
            hip.hipModuleLaunchKernel(function, x, y, z, threads, 1, 1, 0, stream, params.as_mut_ptr(), null_mut())
        };
        let data_at = data as u64;
        for (grid, threads) in
            [([1, 65_536, 1], 64), ([1, 1, 65_536], 64), ([1, 1, 1], 2048), ([0, 1, 1], 64), ([1 << 26, 1, 1], 64)]
        {
            assert_eq!(launch(grid, threads, data_at).unwrap_err().code(), Some(hipErrorInvalidConfiguration));
        }
        launch([(1 << 26) - 1, 65_535, 65_535], 64, data_at).unwrap();
        hip.hipStreamSynchronize(stream).unwrap();
        launch([1, 1, 1], 64, 8).unwrap();
        assert_eq!(hip.hipStreamSynchronize(stream).unwrap_err().code(), Some(hipErrorIllegalAddress));
        assert_eq!(launch([1, 1, 1], 64, data_at).unwrap_err().code(), Some(hipErrorIllegalAddress), "it stays");
        assert!(bench.double.violations().last().unwrap().contains("parameter 0 is 0x8"));
        bench.double.reset();
        bench.double.fault_at(1, hipErrorLaunchFailure);
        launch([1, 1, 1], 64, data_at).unwrap();
        launch([1, 1, 1], 64, data_at).unwrap();
        assert_eq!(hip.hipStreamSynchronize(stream).unwrap_err().code(), Some(hipErrorLaunchFailure));
        bench.double.reset();
        let other = text_image("gfx950", &["kernel idle nothing 1"]);
        let error = hip.hipModuleLoadData(&mut null_mut(), other.as_ptr().cast()).unwrap_err();
        assert_eq!(error.code(), Some(hipErrorNoBinaryForGpu));
        hip.hipModuleUnload(module).unwrap();
        launch([1, 1, 1], 64, data_at).unwrap_err();
        hip.hipStreamDestroy(stream).unwrap();
        hip.hipFree(data).unwrap();
        assert_eq!(bench.double.violations().len(), 1);
        let pinned = bench.pinned(8);
        pinned.add(8).write(0); // past the end
        assert!(hip.hipHostFree(pinned.cast()).is_err());
        assert!(bench.double.violations()[1].contains("outside their ends"));
    }
    assert_eq!(bench.double.leaks(), [] as [&str; 0]);
}

#[test]
fn memory_is_shared_as_other_processes_need_it() {
    let bench = bench();
    let Bench { double, hip } = &bench;
    let uncached = |bytes| {
        let mut address = null_mut();
        // SAFETY: the out pointer is live.
        unsafe { hip.hipExtMallocWithFlags(&mut address, bytes, hipDeviceMallocUncached) }.unwrap();
        address
    };
    let export = |address| {
        let mut handle = hipIpcMemHandle_t::default();
        // SAFETY: the out pointer is live.
        unsafe { hip.hipIpcGetMemHandle(&mut handle, address) }.map(|()| handle)
    };
    let import = |handle| {
        let mut address = null_mut();
        // SAFETY: the out pointer is live.
        unsafe { hip.hipIpcOpenMemHandle(&mut address, handle, hipIpcMemLazyEnablePeerAccess) }.map(|()| address)
    };
    let (cached, partial, good) = (bench.device(4096), uncached(5000), uncached(8192));
    assert!(export(cached).is_err() && export(partial).is_err());
    assert!(export(good.wrapping_byte_add(4096)).is_err(), "not its start");
    let handle = export(good).unwrap();
    let mapped = import(handle).unwrap();
    let stream = bench.stream();
    // SAFETY: the stream is live.
    unsafe { hip.hipStreamBeginCapture(stream, hipStreamCaptureModeThreadLocal) }.unwrap();
    assert!(import(handle).is_err() && export(good).is_err(), "during a capture");
    let mut graph = null_mut();
    // SAFETY: stream and out pointer are live; the graph is destroyed once.
    unsafe {
        hip.hipStreamEndCapture(stream, &mut graph).unwrap();
        hip.hipGraphDestroy(graph).unwrap();
        hip.hipStreamDestroy(stream).unwrap();
    }
    let before = double.violations();
    for (text, times) in [("uncached", 1), ("no whole pages", 1), ("not the start", 1), ("before any capture", 2)] {
        assert_eq!(before.iter().filter(|v| v.contains(text)).count(), times, "{text}: {before:?}");
    }
    // SAFETY: each is freed or closed once; that the owner comes first is what is tested.
    unsafe {
        hip.hipFree(good).unwrap();
        hip.hipIpcCloseMemHandle(mapped).unwrap();
        hip.hipFree(cached).unwrap();
        hip.hipFree(partial).unwrap();
    }
    let after = double.violations().split_off(before.len());
    assert!(after.len() == 1 && after[0].contains("1 other processes have this memory mapped"), "{after:?}");
    assert!(import(handle).is_err(), "it is gone");
    assert_eq!(double.leaks(), [] as [&str; 0]);
}
