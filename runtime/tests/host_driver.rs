//! The conformance cases of a driver, run on the host: order, barriers, overlap, dims, oversubscription, refusals.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;

use std::sync::Arc;
use weldment_runtime::artifact::GridDim;
use weldment_runtime::driver::host::{HostDriver, HostOptions};
use weldment_runtime::driver::{
    Buffer, CaptureArg, CaptureLaunch, CaptureSpec, Driver, KernelEntry, Module, ModuleSource, Placement,
};

const ADD1: usize = 1;
const REV1: usize = 2;

fn driver(threads: usize) -> HostDriver {
    start(threads).unwrap()
}

fn start(threads: usize) -> weldment_runtime::Result<HostDriver> {
    // SAFETY: the kernels are those of this file, and their graphs bind what they address.
    unsafe { HostDriver::new(HostOptions { threads, ..HostOptions::default() }) }
}

fn code_hash() -> String {
    blake3::hash(&common::CODE).to_hex().to_string()
}

/// Loads the image with kernels at `entries`.
fn load(driver: &HostDriver, hash: &str, entries: &[u64]) -> weldment_runtime::Result<Arc<dyn Module>> {
    let kernels: Vec<KernelEntry<'_>> =
        entries.iter().map(|offset| KernelEntry { name: "", offset: *offset, threads: 0 }).collect();
    driver.load_module(&ModuleSource { image: &common::CODE, hash, kernels: &kernels, cache: None })
}

fn allocate(driver: &HostDriver, bytes: usize, placement: Placement) -> Buffer {
    driver.allocate(bytes, placement, None).unwrap()
}

/// No inputs; the host takes any dims.
const SPEC: CaptureSpec<'static> = CaptureSpec { label: "test", max_dims: &[], input_bytes: &[] };

fn values(buffer: &Buffer, count: usize) -> Vec<i64> {
    buffer.to_vec().unwrap().chunks_exact(8).take(count).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// A ring of two buffers: `length` launches, each reading what the one before wrote, in the given order of kernels.
fn chain(
    driver: &HostDriver,
    kernels: &[usize],
    length: usize,
    symbol: bool,
    n: usize,
) -> (Buffer, Buffer, ChainGraph) {
    let module = load(driver, &code_hash(), &common::ENTRIES).unwrap();
    let a = allocate(driver, n * 8, Placement::Arena);
    let b = allocate(driver, n * 8, Placement::State);
    let mut capture = driver.begin_capture(module, &SPEC).unwrap();
    let grid = if symbol { GridDim::Symbol { symbol: 0, mul: 1, div: 1 } } else { GridDim::Const(n as u64) };
    for i in 0..length {
        let (to, from) = if i % 2 == 0 { (&b, &a) } else { (&a, &b) };
        let kernel = kernels[i % kernels.len()];
        capture
            .launch(CaptureLaunch {
                kernel,
                grid: &[grid],
                args: &[CaptureArg::Buffer(to, 0), CaptureArg::Buffer(from, 0)],
                barrier: true,
                overlap: false,
            })
            .unwrap();
    }
    (a, b, ChainGraph { graph: capture.finish().unwrap(), stream: driver.create_stream(None).unwrap() })
}

struct ChainGraph {
    graph: Box<dyn weldment_runtime::driver::Graph>,
    stream: Box<dyn weldment_runtime::driver::StreamBackend>,
}

impl ChainGraph {
    fn replay(&mut self, dims: &[i64]) {
        self.graph.replay(&mut *self.stream, dims, &[]).unwrap();
    }
}

#[test]
fn barriers_hold_whatever_the_threads() {
    // Each launch reads the mirror image of what the last wrote, so a missed barrier shows at once.
    for threads in [1, 2, 3, 8] {
        for n in [1usize, 2, 7, 64, 1000] {
            let driver = driver(threads);
            let (a, b, mut graph) = chain(&driver, &[REV1, ADD1, REV1], 301, true, n);
            for replay in 1..=3i64 {
                graph.replay(&[n as i64]);
                // 301 is odd: the last launch writes b, and the next replay starts from a again.
                assert_eq!(values(&b, n), vec![301 + 300 * (replay - 1); n], "{threads} threads, {n} programs");
            }
            assert_eq!(values(&a, n), vec![900; n]);
        }
    }
}

#[test]
fn a_hundred_thousand_launches_with_more_threads_than_cores() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from) * 3;
    let driver = driver(threads);
    let (_a, b, mut graph) = chain(&driver, &[REV1], 1001, true, 97);
    for replay in 0..20i64 {
        graph.replay(&[97]);
        assert_eq!(values(&b, 97), vec![1001 + 1000 * replay; 97]);
    }
    let driver = self::driver(2);
    let (_a, b, mut graph) = chain(&driver, &[REV1], 1001, true, 97);
    for replay in 0..100i64 {
        if replay % 10 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(2)); // workers park
        }
        graph.replay(&[97]);
        assert_eq!(values(&b, 97), vec![1001 + 1000 * replay; 97]);
    }
}

#[test]
fn grids_follow_the_dims() {
    let driver = driver(2);
    let (_a, b, mut graph) = chain(&driver, &[ADD1], 1, true, 100);
    graph.replay(&[3]);
    assert_eq!(values(&b, 5), [1, 1, 1, 0, 0]);
    graph.replay(&[0]);
    graph.replay(&[100]);
    assert_eq!(values(&b, 100), vec![1; 100]);
    let module = load(&driver, &code_hash(), &common::ENTRIES).unwrap();
    let (to, from) = (allocate(&driver, 800, Placement::Pinned), allocate(&driver, 800, Placement::Pinned));
    let mut capture = driver.begin_capture(module, &SPEC).unwrap();
    // ceil(7 * 3 / 4) * 2 * 5 = 60 programs
    let grid = [GridDim::Symbol { symbol: 1, mul: 3, div: 4 }, GridDim::Const(2), GridDim::Const(5)];
    capture
        .launch(CaptureLaunch {
            kernel: ADD1,
            grid: &grid,
            args: &[CaptureArg::Buffer(&to, 0), CaptureArg::Buffer(&from, 0)],
            barrier: false,
            overlap: false,
        })
        .unwrap();
    let mut graph = capture.finish().unwrap();
    graph.replay(&mut *driver.create_stream(None).unwrap(), &[0, 7], &[]).unwrap();
    assert_eq!(values(&to, 100).iter().sum::<i64>(), 60);
}

#[test]
fn launches_of_one_program_mix_with_wide_ones() {
    // wide -> single -> wide: the second wide launch reads what only the caller wrote, and vice versa.
    for threads in [1, 2, 6] {
        let driver = driver(threads);
        let module = load(&driver, &code_hash(), &common::ENTRIES).unwrap();
        let a = allocate(&driver, 8 * 256, Placement::Arena);
        let b = allocate(&driver, 8 * 256, Placement::Arena);
        let mut capture = driver.begin_capture(module, &SPEC).unwrap();
        for _ in 0..50 {
            for (n, to, from, barrier) in
                [(256, &b, &a, true), (1, &b, &b, true), (1, &b, &b, false), (256, &a, &b, true), (1, &a, &a, true)]
            {
                let (grid, args) = ([GridDim::Const(n)], [CaptureArg::Buffer(to, 0), CaptureArg::Buffer(from, 0)]);
                capture
                    .launch(CaptureLaunch { kernel: ADD1, grid: &grid, args: &args, barrier, overlap: false })
                    .unwrap();
            }
        }
        let mut graph = capture.finish().unwrap();
        assert_eq!(graph.len(), 250);
        let mut stream = driver.create_stream(None).unwrap();
        for replay in 1..=40i64 {
            graph.replay(&mut *stream, &[], &[]).unwrap();
            let found = values(&a, 256);
            assert_eq!((found[0], found[1], found[255]), (250 * replay, 100 * replay, 100 * replay), "{threads}");
        }
    }
}

#[test]
fn bad_launches_and_images_are_refused() {
    let driver = driver(1);
    assert!(load(&driver, &"0".repeat(64), &common::ENTRIES).is_err(), "wrong hash");
    assert!(load(&driver, &code_hash(), &[153]).is_err(), "entry past the end");
    let module = load(&driver, &code_hash(), &common::ENTRIES).unwrap();
    let buffer = allocate(&driver, 64, Placement::Arena);
    let mut capture = driver.begin_capture(module, &SPEC).unwrap();
    let launch = CaptureLaunch { kernel: 3, grid: &[], args: &[], barrier: false, overlap: false };
    assert!(capture.launch(launch).is_err(), "no such kernel");
    let args = [CaptureArg::Buffer(&buffer, 65)];
    assert!(capture.launch(CaptureLaunch { kernel: 0, args: &args, ..launch }).is_err(), "offset past the buffer");
    let grid = [GridDim::Symbol { symbol: 0, mul: 1, div: 0 }];
    assert!(capture.launch(CaptureLaunch { kernel: 0, grid: &grid, ..launch }).is_err(), "division by zero");
    assert!(driver.allocate(usize::MAX, Placement::State, None).is_err());
    assert!(start(100_000).is_err());
}
