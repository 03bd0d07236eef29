//! The file format: round trip, determinism, and refusal of everything that is not exactly what was written.

#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;

use std::path::Path;
use weldment_runtime::artifact::*;
use weldment_runtime::{Artifact, Device, Error, Session, SessionOptions};

/// Opens the file with every hash checked, as `inspect` does.
fn open_all(path: &Path) -> Result<(), Error> {
    Artifact::open(path)?.check_all_hashes()
}

#[test]
fn round_trip_and_determinism() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.weld"), dir.path().join("b.weld"));
    common::write_tiny(&a);
    common::write_tiny(&b);
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let artifact = Artifact::open(&a).unwrap();
    let mut manifest = artifact.manifest().clone();
    assert_eq!(artifact.section("code.0").unwrap(), common::CODE);
    assert!(manifest.section(WEIGHTS_SECTION).unwrap().offset.is_multiple_of(4096));
    manifest.sections.clear();
    assert_eq!(manifest, common::manifest());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn every_flipped_byte_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    common::write_tiny(&path);
    let good = std::fs::read(&path).unwrap();
    open_all(&path).unwrap();
    for at in 0..good.len() {
        let flip = if at % 9 == 8 { 0xff } else { 1u8 << (at % 9) };
        let mut bad = good.clone();
        bad[at] ^= flip;
        std::fs::write(&path, &bad).unwrap();
        let error = open_all(&path).expect_err(&format!("byte {at} ^ {flip:#x} was accepted"));
        assert!(error.to_string().contains("m.weld"), "{error}");
    }
}

#[test]
fn embedded_weights_are_hashed_by_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    common::write_tiny(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    let device = Device::host(1).unwrap();
    let error = Session::new(&artifact, &device, SessionOptions::default()).unwrap_err();
    assert!(error.to_string().contains("section weights"), "{error}");
}

#[test]
fn truncated_and_extended_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    common::write_tiny(&path);
    let good = std::fs::read(&path).unwrap();
    for len in (0..good.len()).step_by(3) {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(Artifact::open(&path).is_err(), "{len} bytes were accepted");
    }
    let mut long = good;
    long.push(0);
    std::fs::write(&path, &long).unwrap();
    assert!(Artifact::open(&path).is_err());
    assert!(Artifact::open(dir.path()).is_err(), "a folder is no artifact");
}

/// A file whose header vouches for any manifest text: what a liar, not an accident, would write.
fn forge(path: &Path, json: &[u8], tail: &[u8]) {
    let mut hash = [0u8; 16];
    hash.copy_from_slice(&blake3::hash(json).as_bytes()[..16]);
    let manifest_bytes = json.len() as u64;
    let file_bytes = 64 + manifest_bytes + tail.len() as u64;
    let header = format::Header { manifest_bytes, file_bytes, manifest_hash: hash };
    std::fs::write(path, [&header.encode()[..], json, tail].concat()).unwrap();
}

#[test]
fn lying_manifests_are_refused_without_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    common::write_tiny(&path);
    let json = serde_json::to_string(Artifact::open(&path).unwrap().manifest()).unwrap();
    // Every number of the manifest, replaced by extremes in turn.
    let mut numbers = Vec::new();
    let mut rest = 0;
    while let Some(start) = json[rest..].find(|c: char| c.is_ascii_digit()).map(|i| i + rest) {
        let end = json[start..].find(|c: char| !c.is_ascii_digit()).map_or(json.len(), |i| i + start);
        numbers.push(start..end);
        rest = end;
    }
    assert!(numbers.len() > 100);
    for range in numbers {
        for value in ["0", "1", "255", "4294967295", "9223372036854775807", "18446744073709551615", "-1", "1e99"] {
            let lie = format!("{}{value}{}", &json[..range.start], &json[range.end..]);
            forge(&path, lie.as_bytes(), &[0; 4096]);
            // The sections cannot be right, so all are refused; what is tested is that none panics or allocates wildly.
            assert!(open_all(&path).is_err());
            if let Ok(manifest) = serde_json::from_str::<Manifest>(&lie) {
                let _ = check::check_manifest(&manifest);
            }
        }
    }
    for text in ["", "{}", "[]", "null", "{\"symbols\":", &"[".repeat(100_000)] {
        forge(&path, text.as_bytes(), &[]);
        assert!(Artifact::open(&path).is_err());
    }
}

#[test]
fn other_versions_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    common::write_tiny(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8..12].copy_from_slice(&9u32.to_le_bytes());
    let check = blake3::hash(&bytes[..56]);
    bytes[56..64].copy_from_slice(&check.as_bytes()[..8]);
    std::fs::write(&path, &bytes).unwrap();
    let error = Artifact::open(&path).unwrap_err();
    assert!(matches!(error, Error::Version { found: 9, accepted: 3, .. }), "{error}");
}

#[test]
fn the_writer_leaves_nothing_behind_when_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such/folder/m.weld");
    assert!(write_artifact(&missing, common::manifest(), &[]).is_err());
    // A manifest that the reader would refuse: its code section is missing.
    let path = dir.path().join("m.weld");
    assert!(write_artifact(&path, common::manifest(), &[]).is_err());
    // A target that is a folder.
    assert!(write_atomically(dir.path(), |_| Ok(())).is_err());
    // A disk that fills up half way: the old file stays.
    std::fs::write(&path, b"old").unwrap();
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = write_atomically(&path, |out| out.write_all(&[1; 100_000]).and(Err(full()))).unwrap_err();
    assert!(error.to_string().contains("m.weld"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // A device that is really full.
    if Path::new("/dev/full").exists() {
        assert!(write_atomically(Path::new("/dev/full/x"), |_| Ok(())).is_err());
    }
}

#[test]
fn an_artifact_for_another_cpu_names_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    let mut manifest = common::manifest();
    manifest.programs[0].target.features = vec!["avx9000".into()];
    let sections: [(&str, &[u8]); 3] =
        [(CONSTANTS_SECTION, &[0; 16]), ("code.0", &common::CODE), (WEIGHTS_SECTION, &[0; 16])];
    write_artifact(&path, manifest.clone(), &sections).unwrap();
    let device = Device::host(1).unwrap();
    let refusal = |path: &Path| {
        Session::new(&Artifact::open(path).unwrap(), &device, SessionOptions::default()).unwrap_err().to_string()
    };
    assert!(refusal(&path).contains("avx9000"));
    manifest.programs = vec![gpu_program("gfx942", "amdgcn", "code.0")];
    write_artifact(&path, manifest, &sections).unwrap();
    let refused = refusal(&path);
    assert!(refused.contains("amdgcn") || refused.contains("gfx942"), "{refused}");
}

/// The tiny program as one for a GPU would be.
fn gpu_program(name: &str, arch: &str, code: &str) -> Program {
    let mut program = common::manifest().programs.remove(0);
    program.target = Target { name: name.into(), arch: arch.into(), features: vec![] };
    program.code = code.into();
    let kernel = &mut program.kernels[0];
    kernel.threads = 256;
    kernel.resources =
        Some(Resources { vgprs: 40, agprs: 16, sgprs: 20, lds_bytes: 1024, occupancy: 8, ..Default::default() });
    program
}

#[test]
fn one_artifact_holds_programs_for_several_targets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    let mut manifest = common::manifest();
    manifest.programs.push(gpu_program("gfx942", "amdgcn", "code.1"));
    manifest.programs.push(gpu_program("sm_90a", "nvptx64", "code.2"));
    let sections: [(&str, &[u8]); 5] = [
        (CONSTANTS_SECTION, &[0; 16]),
        ("code.0", &common::CODE),
        ("code.1", b"an ELF file"),
        ("code.2", b"PTX"),
        (WEIGHTS_SECTION, &[0; 16]),
    ];
    write_artifact(&path, manifest.clone(), &sections).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    let mut found = artifact.manifest().clone();
    found.sections.clear();
    assert_eq!(found, manifest);
    let refused = |change: fn(&mut Program)| {
        let mut manifest = manifest.clone();
        change(&mut manifest.programs[1]);
        write_artifact(&path, manifest, &sections).unwrap_err().to_string()
    };
    assert!(refused(|p| p.kernels[0].threads = 0).contains("threads"));
    assert!(refused(|p| p.kernels[0].threads = 96).contains("96"));
    assert!(refused(|p| p.kernels[0].threads = 2048).contains("2048"));
    assert!(refused(|p| p.kernels[0].entry = 8).contains("by name"));
    assert!(refused(|p| p.kernels[0].name = "a b".into()).contains("symbol"));
    assert!(refused(|p| p.kernels.push(p.kernels[0].clone())).contains("twice"));
    assert!(refused(|p| p.target.arch = "riscv64".into()).contains("riscv64"));
    assert!(refused(|p| p.target.features = vec!["xnack".into()]).contains("features"));
    assert!(refused(|p| p.target.arch = "x86_64".into()).contains("host kernel"));
    // Guards bound what a grid is launched with: 12 tokens, though the symbol reaches 16.
    let wide = |mul: u64| {
        let mut manifest = manifest.clone();
        let dims = vec![GridDim::Const(1), GridDim::Symbol { symbol: 0, mul, div: 1 }];
        manifest.programs[1].entries[0].variants[0].launches[0].grid = dims;
        write_artifact(&path, manifest, &sections)
    };
    assert!(wide(65_535 / 12).is_ok());
    assert!(wide(65_535 / 12 + 1).unwrap_err().to_string().contains("axis 1"));
    // A library product must stay inside the buffers of its launch: 4 rows of 8 in an arena of 64 bytes.
    let product = |rows: u64, x_stride: u64| {
        let mut manifest = manifest.clone();
        let program = &mut manifest.programs[2];
        let launch = &mut program.entries[0].variants[0].launches[0];
        let (dtype, rows) = (weldment_runtime::DType::BF16, GridDim::Const(rows));
        launch.gemm = Some(Gemm { rows, n: 1, k: 8, dtype, x_stride, out_stride: 8, addend_stride: None });
        launch.args =
            [Region::Arena, Region::Weights, Region::Output(0)].map(|region| Arg { region, offset: 0 }).to_vec();
        write_artifact(&path, manifest, &sections)
    };
    assert!(product(4, 8).is_ok());
    for (rows, stride) in [(5, 8), (4, 9), (4, 7), (0, 8), (1 << 40, 8), (4, u64::MAX)] {
        assert!(product(rows, stride).is_err(), "{rows} rows at {stride}");
    }
}
