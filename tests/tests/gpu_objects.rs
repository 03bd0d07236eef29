//! GPU code without a GPU: what LLVM made of each kernel, by its metadata and its disassembly.

mod tiny_llama;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use weldment_codegen::object::{amdgpu, ptx};
use weldment_codegen::target::GpuArch;
use weldment_tests::cases::cases;
use weldment_tests::emulate::{Object, llvm_version, object};

/// Disassembly by kernel.
fn disassemble(code: &[u8]) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("object.hsaco");
    std::fs::write(&path, code).expect("the object is written");
    let out = Command::new("llvm-objdump-22").arg("-d").arg(&path).output().expect("llvm-objdump-22 runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut kernels: BTreeMap<String, String> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        match line.strip_suffix(">:").and_then(|l| l.split_once('<')) {
            Some((_, name)) => current = name.to_owned(),
            None => kernels.entry(current.clone()).or_default().extend([line, "\n"]),
        }
    }
    kernels
}

/// Body of a PTX entry.
fn entry<'a>(text: &'a str, name: &str) -> &'a str {
    let start = text.find(&format!(".entry {name}(")).unwrap_or_else(|| panic!("no entry {name}"));
    let rest = &text[start..];
    rest.find("\n}").map_or(rest, |end| &rest[..end])
}

/// The case whose name starts so, compiled for a target.
fn compiled(name: &str, target: &str) -> Object {
    let case = cases().into_iter().find(|c| c.name.starts_with(name)).unwrap_or_else(|| panic!("no case {name}"));
    object(&case, target).unwrap_or_else(|e| panic!("{name} for {target}: {e}"))
}

#[test]
fn a_model_compiles_for_every_gpu_without_scratch() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let targets = GpuArch::ALL.map(GpuArch::cpu);
    let artifact = tiny_llama::artifact(dir.path(), &targets, 64);
    let mut report = String::new();
    for program in &artifact.manifest().programs {
        let code = artifact.section(&program.code).expect("its code");
        let arch = GpuArch::named(&program.target.name).expect("a known GPU");
        report += &format!("{}\n", program.target.name);
        let disassembly = if arch.is_amd() { disassemble(code) } else { BTreeMap::new() };
        let listed: Vec<String> = if arch.is_amd() {
            amdgpu::read(code, arch).expect("metadata").into_keys().collect()
        } else {
            ptx::read(code, arch.cpu()).expect("PTX").into_keys().collect()
        };
        assert_eq!(listed.len(), program.kernels.len(), "{}", program.target.name);
        for kernel in &program.kernels {
            let name = format!("{} {}", program.target.name, kernel.name);
            assert!(listed.contains(&kernel.name), "{name}");
            let r = kernel.resources.expect("resources of a GPU kernel");
            assert_eq!((r.scratch_bytes, r.vgpr_spills), (0, 0), "{name}");
            assert!(r.lds_bytes <= arch.shared_bytes(), "{name}");
            report += &format!("{:20} {:12} {:4} threads", kernel.name, kernel.family, kernel.threads);
            if arch.is_amd() {
                assert!((1..=8).contains(&r.occupancy), "{name}: {r:?}");
                assert!((1..=512).contains(&(r.vgprs + r.agprs)), "{name}: {r:?}");
                let text = disassembly.get(&kernel.name).unwrap_or_else(|| panic!("{name} is not disassembled"));
                assert!(text.contains("s_endpgm") && !text.contains("scratch_"), "{name}");
                report += &format!(" {:3} VGPR {:3} AGPR {:3} SGPR", r.vgprs, r.agprs, r.sgprs);
                report += &format!(" {:5} LDS, occupancy {}", r.lds_bytes, r.occupancy);
            } else {
                report += &format!(" {:5} shared", r.lds_bytes);
            }
            report += &format!("  {}\n", kernel.summary);
        }
    }
    // Register counts are LLVM's: another version may need other ones, and has no snapshot then.
    let version = llvm_version().expect("a version");
    let recorded = format!("tests/snapshots/gpu_objects__resources@llvm-{version}.snap");
    if Path::new(env!("CARGO_MANIFEST_DIR")).join(recorded).exists() || std::env::var_os("INSTA_UPDATE").is_some() {
        insta::with_settings!({ snapshot_suffix => format!("llvm-{version}") }, {
            insta::assert_snapshot!("resources", report);
        });
    }
}

#[test]
fn products_of_halves_use_matrix_units() {
    for target in ["gfx90a", "gfx942", "gfx950"] {
        for name in [
            "matmul bf16 x bf16 [80, 192], 64 of 64",
            "matmul f16 x f16 [80, 192], 64 of 64",
            "attention 6 heads over 2 of 64 bf16, 37 of 96",
        ] {
            let object = compiled(name, target);
            let text = disassemble(&object.code);
            for kernel in &object.kernels {
                assert!(text[&kernel.name].contains("v_mfma"), "{target} {name}: {}", kernel.summary);
            }
        }
    }
    let object = compiled("matmul bf16 x bf16 [80, 192], 64 of 64", "sm_90a");
    let text = String::from_utf8_lossy(&object.code).into_owned();
    assert!(text.contains("\n.target sm_90a\n"), "{}", &text[..200]);
    for kernel in &object.kernels {
        assert!(entry(&text, &kernel.name).contains("mma.sync"), "{}", kernel.summary);
    }
}

#[test]
fn decode_products_read_16_bytes_at_once() {
    for name in ["matmul bf16 x bf16 [64, 256], 1 of 1", "matmul f32 x f32 [64, 256], 1 of 1"] {
        for target in ["gfx90a", "gfx942", "gfx950"] {
            let object = compiled(name, target);
            let text = disassemble(&object.code);
            for kernel in &object.kernels {
                let wide = text[&kernel.name].contains("global_load_dwordx4");
                assert!(wide, "{target} {name}: {}\n{}", kernel.summary, text[&kernel.name]);
            }
        }
        let object = compiled(name, "sm_90a");
        let text = String::from_utf8_lossy(&object.code).into_owned();
        for kernel in &object.kernels {
            let body = entry(&text, &kernel.name);
            let wide = |l: &&str| {
                l.trim_start().starts_with("ld.")
                    && l.contains(".global")
                    && (l.contains(".v4.b32")
                        || l.contains(".v4.u32")
                        || l.contains(".v4.f32")
                        || l.contains(".v2.b64")
                        || l.contains(".v2.u64"))
            };
            assert!(body.lines().any(|l| wide(&l)), "{name}: {}\n{body}", kernel.summary);
        }
    }
}
