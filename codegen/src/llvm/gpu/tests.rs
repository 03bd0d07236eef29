//! Programs that use every part of the lowering, for every GPU.

use super::compile_gpu;
use crate::llvm::Emit;
use crate::setup::Symbols;
use crate::target::GpuArch;
use crate::tile::{Access, Builder, Compare, Conversion, Elem, Kernel, Reduction};

fn assembly(kernel: &Kernel, arch: GpuArch) -> String {
    let symbols = Symbols::plain(&["T"]);
    let emit = Emit { llvm: false, asm: true };
    let object = compile_gpu(&[kernel], (arch, &symbols), emit).unwrap_or_else(|e| panic!("{}: {e}", arch.cpu()));
    if let Ok(dir) = std::env::var("WELDMENT_DUMP") {
        std::fs::write(format!("{dir}/{}.{}.o", kernel.name, arch.cpu()), &object.code).unwrap();
    }
    object.asm.unwrap()
}

/// out[t] = w [N, K] x[t], summed row by row, in bf16.
fn gemv() -> Kernel {
    let mut b = Builder::new("gemv");
    b.threads(128);
    let x = b.aligned_param("x", Access::Read, 64, false);
    let w = b.aligned_param("w", Access::Read, 64, true);
    let out = b.aligned_param("out", Access::Write, 64, false);
    b.grid_constant(0, 4);
    b.grid_symbol(1, "T", 1, 1);
    let (tile, token) = (b.program_id(0), b.program_id(1));
    let row = b.scale(tile, 4);
    let (zero, end) = (b.int(0), b.int(2048));
    let init = b.float_tile(&[4, 1024], 0.0);
    let sums = b.for_loop(zero, end, 1024, &[init], |b, k, carried| {
        let at = b.scale(row, 4096);
        let k2 = b.scale(k, 2);
        let at = b.add(at, k2);
        let wv = b.load(w, at, Elem::BF16, &[4, 1024], &[4096, 2], None);
        let wv = b.to_f32(wv);
        let x_at = b.scale(token, 4096);
        let x_at = b.add(x_at, k2);
        let xv = b.load_row(x, x_at, Elem::BF16, 1024);
        let xv = b.to_f32(xv);
        let xv = b.reshape(xv, &[1, 1024]);
        vec![b.fma(wv, xv, carried[0])]
    });
    let total = b.reduce(Reduction::Sum, sums[0], 1);
    let total = b.reshape(total, &[4]);
    let total = b.convert(Conversion::Float, total, Elem::BF16);
    let at = b.scale(token, 32);
    let row2 = b.scale(row, 2);
    let at = b.add(at, row2);
    b.store(out, at, &[2], total, None);
    b.finish("gemv".into())
}

/// out [32, 64] = x [32, K] w [64, K]^T over split k, rows past T left alone.
fn gemm(elem: Elem) -> Kernel {
    let mut b = Builder::new("gemm");
    b.threads(256);
    let size = elem.bytes() as i64;
    let x = b.aligned_param("x", Access::Read, 64, false);
    let w = b.aligned_param("w", Access::Read, 64, true);
    let out = b.aligned_param("out", Access::Write, 64, false);
    let k = if elem == Elem::F32 { 16 } else { 64 };
    let (zero, end) = (b.int(0), b.int(256));
    let init = b.float_tile(&[2, 32, 64], 0.0);
    let sums = b.for_loop(zero, end, 2 * i64::from(k), &[init], |b, i, carried| {
        let at = b.scale(i, size);
        let step = i64::from(k) * size;
        let left = b.load(x, at, elem, &[2, 32, k], &[step, 256 * size, size], None);
        let right = b.load(w, at, elem, &[2, k, 64], &[step, size, 256 * size], None);
        vec![b.dot(carried[0], left, right)]
    });
    let total = b.reduce(Reduction::Sum, sums[0], 0);
    let total = b.reshape(total, &[32, 64]);
    let rows = b.iota(Elem::I64, 32);
    let t = b.dim("T");
    let mask = b.compare(Compare::Less, rows, t);
    let mask = b.reshape(mask, &[32, 1]);
    let mask = b.broadcast(mask, &[32, 64]);
    b.store(out, zero, &[256, 4], total, Some(mask));
    b.finish(format!("gemm_{}", format!("{elem:?}").to_lowercase()))
}

/// Row softmax with a transposed second output: layouts change through shared memory.
fn softmax() -> Kernel {
    let mut b = Builder::new("softmax");
    b.threads(128);
    let x = b.param("x", Access::Read);
    let out = b.param("out", Access::Write);
    let turned = b.param("turned", Access::Write);
    let zero = b.int(0);
    let lanes = b.iota(Elem::I64, 64);
    let limit = b.int(50);
    let mask = b.compare(Compare::Less, lanes, limit);
    let mask = b.reshape(mask, &[1, 64]);
    let mask = b.broadcast(mask, &[8, 64]);
    let v = b.load(x, zero, Elem::F32, &[8, 64], &[200, 4], Some(mask));
    let low = b.float(f64::NEG_INFINITY);
    let v = b.select(mask, v, low);
    let top = b.reduce(Reduction::Max, v, 1);
    let v = b.sub(v, top);
    let e = b.exp(v);
    let total = b.reduce(Reduction::Sum, e, 1);
    let p = b.div(e, total);
    b.store(out, zero, &[200, 4], p, Some(mask));
    let columns = b.reduce(Reduction::Sum, p, 0);
    let columns = b.reshape(columns, &[64]);
    let flat = b.reshape(mask, &[8, 64]);
    let first = b.row(flat, 0);
    let first = b.reshape(first, &[64]);
    b.store(turned, zero, &[4], columns, Some(first));
    b.finish("softmax".into())
}

#[test]
fn gemv_streams_weights_in_16_byte_pieces() {
    let kernel = gemv();
    for arch in GpuArch::ALL {
        let asm = assembly(&kernel, arch);
        let wide = if arch.is_amd() { "global_load_dwordx4" } else { "ld.global.nc.v4" };
        assert!(asm.matches(wide).count() >= 4, "{} has no {wide}:\n{asm}", arch.cpu());
        if !arch.is_amd() {
            assert!(asm.contains("griddepcontrol.launch_dependents") && asm.contains("griddepcontrol.wait"), "{asm}");
        }
        assert!(!asm.contains("scratch_load") && !asm.contains("ld.local"), "{asm}");
    }
}

/// ptxas moves the wait for earlier launches past loads of constants; volatile ones stay ahead of it.
#[test]
fn weights_are_under_way_before_the_wait() {
    let mut b = Builder::new("ahead");
    b.threads(128);
    let (w, x, out) = (
        b.aligned_param("w", Access::Read, 64, true),
        b.aligned_param("x", Access::Read, 64, false),
        b.aligned_param("out", Access::Write, 64, false),
    );
    let zero = b.int(0);
    let early = b.load(w, zero, Elem::F32, &[512], &[4], None);
    let input = b.load(x, zero, Elem::F32, &[512], &[4], None);
    let later = b.int(2048);
    let late = b.load(w, later, Elem::F32, &[512], &[4], None);
    let sum = b.fma(early, input, late);
    b.store(out, zero, &[4], sum, None);
    let asm = assembly(&b.finish("ahead".into()), GpuArch::Sm90a);
    let at = |text: &str| asm.find(text).unwrap_or_else(|| panic!("no {text}:\n{asm}"));
    let order = ["ld.volatile.global.v4", "griddepcontrol.wait", "ld.global.v4", "ld.global.nc.v4", "st.global.v4"];
    assert!(order.map(at).is_sorted(), "{asm}");
}

#[test]
fn dots_take_matrix_instructions() {
    for elem in [Elem::BF16, Elem::F16, Elem::F32] {
        let kernel = gemm(elem);
        for arch in GpuArch::ALL {
            let asm = assembly(&kernel, arch);
            let matrix = if arch.is_amd() { "v_mfma_f32_16x16x" } else { "mma.sync.aligned.m16n8k16" };
            assert_eq!(asm.contains(matrix), elem != Elem::F32, "{} {elem:?}:\n{asm}", arch.cpu());
        }
    }
}

#[test]
fn tiles_change_layout_through_shared_memory() {
    let kernel = softmax();
    for arch in GpuArch::ALL {
        let asm = assembly(&kernel, arch);
        assert!(asm.contains(if arch.is_amd() { "ds_" } else { "shared" }), "{asm}");
    }
}

/// Asking for text beside the code leaves the code as it is.
#[test]
fn emission_does_not_change_code() {
    for kernel in [gemv(), gemm(Elem::BF16)] {
        for arch in [GpuArch::Gfx942, GpuArch::Sm90a] {
            let symbols = Symbols::plain(&["T"]);
            let code =
                |llvm, asm| compile_gpu(&[&kernel], (arch, &symbols), Emit { llvm, asm }).expect("it compiles").code;
            assert_eq!(code(false, false), code(true, true), "{} for {}", kernel.name, arch.cpu());
        }
    }
}
