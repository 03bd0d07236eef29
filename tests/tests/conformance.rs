//! The conformance suite with kernels from one pair of tile programs: on the host always, on GPUs where there are devices.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use weldment_codegen::llvm::{Emit, compile_gpu, compile_host};
use weldment_codegen::object::{amdgpu, link};
use weldment_codegen::setup::Symbols;
use weldment_codegen::target::{GpuArch, Target};
use weldment_codegen::tile::{Access, Builder, Elem, Kernel};
use weldment_runtime::Device;
use weldment_runtime::conformance::{Kit, Outcome, check_driver};
use weldment_runtime::driver::{Driver, KernelEntry, PLATFORMS};

/// Threads of a block on GPUs.
const THREADS: u32 = 64;

/// `out[i] = in[i] + 1`, or of the mirror image, for program i of `T`.
fn kernel(name: &str, mirror: bool) -> Kernel {
    let mut b = Builder::new("conformance");
    b.threads(THREADS);
    let out = b.param("out", Access::Write);
    let input = b.param("in", Access::Read);
    b.grid_symbol(0, "T", 1, 1);
    let i = b.program_id(0);
    let from = if mirror {
        let t = b.dim("T");
        let last = b.offset(t, -1);
        b.sub(last, i)
    } else {
        i
    };
    let (from, to) = (b.scale(from, 8), b.scale(i, 8));
    let value = b.load_scalar(input, from, Elem::I64);
    let value = b.offset(value, 1);
    b.store(out, to, &[], value, None);
    b.finish(name.to_owned())
}

/// The image for `target` and the offsets of `add1` and `rev1` in it.
fn image(target: &str) -> (Vec<u8>, [u64; 2]) {
    let target = Target::named(target).unwrap();
    let (add, rev) = (kernel("add1", false), kernel("rev1", true));
    let kernels = [&add, &rev];
    let symbols = Symbols::plain(&["T"]);
    match &target {
        Target::Host(host) => {
            let object = compile_host(&kernels, (host, &symbols), Emit::default()).unwrap();
            let image = link(&[object.object]).unwrap();
            let entries = [image.entries["add1"], image.entries["rev1"]];
            (image.bytes, entries)
        }
        Target::Gpu(arch) => {
            let object = compile_gpu(&kernels, (*arch, &symbols), Emit::default()).unwrap();
            let code = match *arch {
                GpuArch::Sm90a => object.code,
                arch => amdgpu::link(&[object.code], arch).unwrap().bytes,
            };
            (code, [0; 2])
        }
    }
}

/// The driver, for kernels of this file.
fn raw(device: &Device) -> &dyn Driver {
    // SAFETY: the suite binds what its two kernels address.
    unsafe { device.raw_driver() }
}

fn all_hold(target: &str, device: &Device) {
    let (image, [add, rev]) = image(target);
    let entry = |name, offset| KernelEntry { name, offset, threads: THREADS };
    let kit = Kit { image: &image, kernels: [entry("add1", add), entry("rev1", rev)] };
    for Outcome { name, result } in check_driver(raw(device), &kit) {
        assert!(result.is_ok(), "{target}, {name}: {}", result.unwrap_err());
    }
}

#[test]
fn the_host_conforms() {
    for threads in [1, 3] {
        all_hold("host", &Device::host(threads).unwrap());
    }
}

#[test]
fn gpus_conform_where_there_are_devices() {
    for target in ["gfx90a", "gfx942", "gfx950", "sm_90a"] {
        let (code, _) = image(target);
        assert!(!code.is_empty());
        for platform in PLATFORMS {
            for index in 0..(platform.count)().unwrap_or(0) {
                let arch = target.strip_suffix('a').filter(|t| t.starts_with("sm_")).unwrap_or(target);
                if platform.arch(index).is_ok_and(|found| found == arch) {
                    all_hold(target, &Device::gpu(platform.name, index, 1).unwrap());
                }
            }
        }
    }
}
