//! The GPU driver on a device in memory.

use super::fake::Fake;
use super::*;
use crate::artifact::GridDim;
use crate::driver::{CaptureArg, CaptureLaunch, Graph, KernelEntry};

fn driver(fake: &Arc<Fake>) -> GpuDriver {
    GpuDriver::new(Arc::clone(fake) as SharedApi).unwrap()
}

fn load(driver: &GpuDriver) -> Result<Arc<dyn Module>> {
    let hash = blake3::hash(b"code").to_hex();
    let kernels = [KernelEntry { name: "first", offset: 0, threads: 64 }];
    driver.load_module(&ModuleSource { image: b"code", hash: hash.as_str(), kernels: &kernels, cache: None })
}

/// One launch that reads an input (8 bytes), an arena and the dims (one symbol, at most 100).
fn capture(driver: &GpuDriver, arena: &Buffer) -> Result<Box<dyn Graph>> {
    let spec = CaptureSpec { label: "step", max_dims: &[100], input_bytes: &[64] };
    let mut capture = driver.begin_capture(load(driver)?, &spec)?;
    let grid = [GridDim::Symbol { symbol: 0, mul: 1, div: 16 }];
    let args = [CaptureArg::Input(0, 0), CaptureArg::Buffer(arena, 8)];
    capture.launch(CaptureLaunch { kernel: 0, grid: &grid, args: &args, barrier: true, overlap: false })?;
    capture.finish()
}

/// Everything a session does: memory, code, capture, steps, results.
fn session(driver: &GpuDriver) -> Result<Vec<u8>> {
    let arena = driver.allocate(100, Placement::Arena, None)?;
    arena.put(8, &5i64.to_le_bytes())?;
    let mut filled = driver.allocate(96, Placement::Weights, None)?;
    driver.fill(&mut filled, &[0..32, 32..64, 64..96], &mut |range, out| {
        out.fill(range.start as u8);
        Ok(())
    })?;
    let mut graph = capture(driver, &arena)?;
    let mut stream = driver.create_stream(None)?;
    for step in 1..=20i64 {
        graph.replay(&mut *stream, &[step], &[&(step * 1000).to_le_bytes()])?;
    }
    let host = driver.allocate(96, Placement::Pinned, None)?;
    stream.download(&filled, &host, 96)?;
    stream.synchronize()?;
    host.to_vec()
}

#[test]
fn steps_in_flight_keep_their_dims_and_inputs() {
    let fake = Fake::new();
    let driver = driver(&fake);
    let arena = driver.allocate(100, Placement::Arena, None).unwrap();
    arena.put(8, &7i64.to_le_bytes()).unwrap();
    let mut graph = capture(&driver, &arena).unwrap();
    let mut stream = driver.create_stream(None).unwrap();
    fake.fail_at(None);
    for step in 1..=100i64 {
        graph.replay(&mut *stream, &[step], &[&(step * 1000).to_le_bytes()]).unwrap();
    }
    // A copy and a launch a step, and for every fourth an event: nothing is captured, updated or allocated again.
    let calls = fake.calls();
    let count = |name: &str| calls.iter().filter(|call| **call == name).count();
    assert_eq!((count("copy_to_device"), count("launch_graph"), count("record_event")), (100, 100, 25));
    assert_eq!(calls.len(), 100 + 100 + 25 + count("synchronize_event"));
    // The stream ran as late as it may, yet no slot was written before its copy.
    stream.synchronize().unwrap();
    assert_eq!(fake.ran(), (1..=100).map(|step| vec![step, step * 1000, 7]).collect::<Vec<_>>());
    // Fewer bytes than captured for leave the rest as it was; more are refused, and dims past the maximum too.
    assert!(graph.replay(&mut *stream, &[101], &[&[]]).is_err());
    assert!(graph.replay(&mut *stream, &[1], &[&[0; 65]]).is_err());
    assert!(graph.replay(&mut *stream, &[1], &[]).is_err());
    graph.replay(&mut *stream, &[3], &[&[]]).unwrap();
    assert!(graph.replay_bare(&mut *stream).unwrap());
    stream.synchronize().unwrap();
    let ran = fake.ran();
    assert_eq!((ran.len(), ran[100][0], ran[101][0]), (102, 3, 3));
}

#[test]
fn every_failing_call_is_an_error_without_a_leak() {
    let fake = Fake::new();
    let whole: Vec<u8> = [0u8, 32, 64].iter().flat_map(|n| [*n; 32]).collect();
    fake.fail_at(None);
    assert_eq!(session(&driver(&fake)).unwrap(), whole);
    assert_eq!(fake.live(), Vec::<&str>::new());
    let calls = fake.calls();
    assert!(calls.len() > 60, "{calls:?}");
    let mut failed = 0;
    for (index, call) in calls.iter().enumerate() {
        fake.fail_at(Some(index));
        let result = GpuDriver::new(Arc::clone(&fake) as SharedApi).and_then(|driver| session(&driver));
        // Waits in destructors have nobody to tell.
        let quiet = call.starts_with("destroy") || *call == "synchronize_device" || result.is_ok();
        if let Err(e) = result {
            failed += 1;
            let text = e.to_string();
            assert!(text.contains("told to fail"), "{call}: {text}");
        } else {
            assert!(
                quiet && (call.starts_with("destroy") || call.starts_with("synchronize")),
                "{call} was not noticed"
            );
        }
        assert_eq!(fake.live(), Vec::<&str>::new(), "after {call} ({index})");
        fake.fail_at(None);
        assert_eq!(session(&driver(&fake)).unwrap(), whole, "after {call} ({index})");
    }
    assert!(failed > 50);
}

#[test]
fn bad_launches_are_refused_and_the_capture_ends() {
    let fake = Fake::new();
    let driver = driver(&fake);
    let arena = driver.allocate(64, Placement::Arena, None).unwrap();
    let spec = CaptureSpec { label: "step", max_dims: &[1 << 40], input_bytes: &[8] };
    let mut capture = driver.begin_capture(load(&driver).unwrap(), &spec).unwrap();
    let one = [GridDim::Const(1)];
    let launch = CaptureLaunch { kernel: 0, grid: &one, args: &[], barrier: false, overlap: false };
    let mut refused = |launch: CaptureLaunch<'_>, text: &str| {
        let error = capture.launch(launch).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    refused(CaptureLaunch { kernel: 1, ..launch }, "kernel 1");
    refused(CaptureLaunch { args: &[CaptureArg::Buffer(&arena, 65)], ..launch }, "65");
    refused(CaptureLaunch { args: &[CaptureArg::Input(0, 9)], ..launch }, "9");
    refused(CaptureLaunch { args: &[CaptureArg::Input(1, 0)], ..launch }, "input 1");
    let by_symbol = |div| [GridDim::Symbol { symbol: 0, mul: 1, div }];
    refused(CaptureLaunch { grid: &by_symbol(0), ..launch }, "zero");
    refused(CaptureLaunch { grid: &by_symbol(1), ..launch }, "kernel first needs a grid");
    refused(CaptureLaunch { grid: &[GridDim::Const(1), GridDim::Const(65_536)], ..launch }, "65535");
    drop(capture);
    assert!(!fake.live().contains(&"capture"));
    assert!(driver.allocate(usize::MAX, Placement::State, None).is_err());
    let wrong = ModuleSource { image: b"code", hash: "0", kernels: &[], cache: None };
    assert!(driver.load_module(&wrong).is_err());
    drop((arena, driver));
    assert_eq!(fake.live(), Vec::<&str>::new());
}

#[test]
fn an_external_allocator_gives_and_takes_back() {
    #[derive(Debug, Default)]
    struct Counting(std::sync::Mutex<Vec<usize>>);
    // SAFETY: the fake's device memory is plain memory; leaked blocks stay valid for ever.
    unsafe impl Allocator for Counting {
        fn allocate(&self, bytes: usize) -> Result<u64> {
            self.0.lock().unwrap().push(bytes);
            if bytes > 1 << 20 {
                return Ok(0);
            }
            let block: &'static mut [u64] = Box::leak(vec![0u64; bytes / 8 + 8].into_boxed_slice());
            Ok((block.as_ptr() as u64).next_multiple_of(64))
        }

        fn free(&self, _address: u64, bytes: usize) {
            let index = self.0.lock().unwrap().iter().position(|n| *n == bytes).unwrap();
            self.0.lock().unwrap().swap_remove(index);
        }
    }
    let counting = Arc::new(Counting::default());
    let allocator = Arc::clone(&counting) as Arc<dyn Allocator>;
    let driver = crate::driver::host::HostDriver::start(Default::default()).unwrap();
    let buffer = driver.allocate(1000, Placement::Arena, Some(&allocator)).unwrap();
    assert_eq!(buffer.to_vec().unwrap(), [0; 1000]);
    assert_eq!(*counting.0.lock().unwrap(), [1000]);
    drop(buffer);
    assert!(counting.0.lock().unwrap().is_empty());
    assert!(driver.allocate(2 << 20, Placement::Arena, Some(&allocator)).is_err());
}

/// The life of what ranks share, with this device as both of two ranks.
fn shared_memory(driver: &GpuDriver) -> Result<()> {
    let peers = driver.peer_memory().unwrap();
    let (slab, message) = peers.export(5000)?;
    assert_eq!((slab.len(), slab.to_vec()?), (5000, vec![0; 5000]));
    let mapping = peers.import(&message)?;
    assert!(peers.import(&message[1..]).is_err(), "a handle of another size");
    let (word, address) = peers.abort_word()?;
    // SAFETY: the fake's pinned memory is the process's own, and the word lives.
    let read = || unsafe { (address as *const u32).read_volatile() };
    assert_eq!(read(), 0);
    word.set();
    assert_eq!(read(), 1);
    drop(mapping);
    drop(slab);
    Ok(())
}

#[test]
fn ranks_share_memory_and_give_it_back() {
    let fake = Fake::new();
    let device = driver(&fake);
    let before = fake.live().len();
    fake.fail_at(None);
    shared_memory(&device).unwrap();
    let calls = fake.calls();
    assert_eq!(calls.iter().filter(|c| c.starts_with("destroy")).count(), 3, "{calls:?}");
    for (index, call) in calls.iter().enumerate() {
        fake.fail_at(Some(index));
        assert_eq!(shared_memory(&device).is_err(), !call.starts_with("destroy"), "{call}");
        assert_eq!(fake.live().len(), before, "{call} left something");
    }
}

#[test]
fn a_stream_is_given_up_once_its_work_may_never_end() {
    let fake = Fake::new();
    let device = driver(&fake);
    let buffer = device.allocate(64, Placement::Arena, None).unwrap();
    let host = device.allocate(64, Placement::Pinned, None).unwrap();
    let mut stream = device.create_stream(None).unwrap();
    // The fake's work runs when somebody waits for it: to those who only look it never ends.
    stream.download(&buffer, &host, 64).unwrap();
    let error = stream.synchronize_unless(&|| true).unwrap_err().to_string();
    assert!(error.contains("does not end"), "{error}");
    stream.synchronize().unwrap();
    stream.synchronize_unless(&|| true).unwrap();
}
