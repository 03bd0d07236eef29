//! Packing and back: every format and layout, odd row counts, concatenation, pairs, threads; random weights; the pack cache.

#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;

use weldment_runtime::artifact::block::block_format;
use weldment_runtime::artifact::*;
use weldment_runtime::pack::formats::decode_row;
use weldment_runtime::pack::random::RandomTensor;
use weldment_runtime::pack::unpack::unpack;
use weldment_runtime::pack::{TensorSource, layout_for, pack_all};
use weldment_runtime::weights;
use weldment_runtime::{Artifact, DType, Device, Error, Session, SessionOptions};

const BLOCKS: [DType; 9] =
    [DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q4K, DType::Q5K, DType::Q6K, DType::MxFp4];

struct Tensors(Vec<Vec<u8>>);

impl TensorSource for Tensors {
    fn tensor(&self, index: u32) -> weldment_runtime::Result<&[u8]> {
        self.0.get(index as usize).map(Vec::as_slice).ok_or_else(|| Error::Weights("no such tensor".into()))
    }
}

/// `rows[i]` rows of `k` elements each, from the random generator.
fn tensors(dtype: DType, rows: &[u64], k: u64) -> Tensors {
    let one = |(index, n): (usize, &u64)| {
        let random = RandomTensor::new(&format!("t{index}"), 1, dtype, &[*n, k]);
        let mut bytes = vec![0; random.row_bytes() * *n as usize];
        for (row, out) in bytes.chunks_mut(random.row_bytes()).enumerate() {
            random.fill_row(row as u64, out);
        }
        bytes
    };
    Tensors(rows.iter().enumerate().map(one).collect())
}

/// A manifest whose only program packs all tensors into one item.
fn manifest(dtype: DType, rows: &[u64], k: u64, layout: Layout, source: &Tensors) -> Manifest {
    let mut m = common::manifest();
    m.weights.tensors = rows
        .iter()
        .zip(&source.0)
        .enumerate()
        .map(|(index, (n, bytes))| Tensor {
            name: format!("t{index}"),
            dtype,
            shape: vec![*n, k],
            at: TensorPlace::Constant(0),
            blake3: blake3::hash(bytes).to_hex().to_string(),
        })
        .collect();
    let bytes = layout.packed_bytes(rows, k).unwrap();
    let items =
        vec![PackItem { offset: 64, bytes, layout, tensors: (0..rows.len() as u32).collect(), shards: Vec::new() }];
    m.programs[0].pack = Pack { bytes: 64 + bytes + 5, key: String::new(), items };
    m
}

fn packed(dtype: DType, rows: &[u64], k: u64, layout: Layout, threads: usize) -> (Tensors, Vec<u8>) {
    let source = tensors(dtype, rows, k);
    let m = manifest(dtype, rows, k, layout, &source);
    let mut out = vec![0xaa; m.programs[0].pack.bytes as usize];
    pack_all(&m, &m.programs[0], 0, &source, &mut out, threads).unwrap();
    assert!(out[..64].iter().all(|b| *b == 0) && out.ends_with(&[0; 5]), "gaps are zero");
    (source, out[64..out.len() - 5].to_vec())
}

fn decoded(dtype: DType, bytes: &[u8], rows: u64, k: u64) -> Vec<f32> {
    let mut out = vec![0.0; (rows * k) as usize];
    let row_bytes = dtype.byte_size(&[k]).unwrap() as usize;
    for (row, out) in bytes.chunks(row_bytes).zip(out.chunks_mut(k as usize)) {
        decode_row(dtype, row, out);
    }
    out
}

/// Packs, unpacks and compares with the decoded source, bit by bit; the same for 1 and 3 threads.
fn check(dtype: DType, rows: &[u64], k: u64, layout: Layout) {
    let (source, bytes) = packed(dtype, rows, k, layout, 1);
    assert_eq!(bytes, packed(dtype, rows, k, layout, 3).1, "threads change nothing");
    let found = unpack(&layout, rows, k as usize, &bytes);
    for ((found, source), rows) in found.iter().zip(&source.0).zip(rows) {
        let expected = decoded(dtype, source, *rows, k);
        assert!(expected.iter().any(|v| *v != 0.0));
        assert_eq!(found, &expected, "{dtype} {layout:?}");
    }
}

#[test]
fn every_block_format_in_its_layouts() {
    for dtype in BLOCKS {
        let format = block_format(dtype).unwrap();
        for n_tile in [1, 8, 16] {
            for pair_interleave in [false, true] {
                let default = AffineBlocks { pair_interleave, ..layout_for(dtype, n_tile).unwrap() };
                let mut layouts = vec![default];
                layouts.push(AffineBlocks { bits: 8, signed: !format.affine, scale: DType::F32, ..default });
                if format.four_bits {
                    layouts.push(AffineBlocks { bits: 4, signed: false, scale: DType::F32, ..default });
                }
                if format.f16_scales {
                    layouts.push(AffineBlocks { bits: 8, signed: !format.affine, scale: DType::F16, ..default });
                }
                let rows: &[u64] = if pair_interleave { &[19, 19] } else { &[16, 3, 8] };
                for layout in layouts {
                    check(dtype, rows, 512, Layout::AffineBlocks(layout));
                }
            }
        }
    }
}

#[test]
fn every_decodable_format_as_floats() {
    for dtype in BLOCKS.into_iter().chain([DType::F32, DType::F16, DType::BF16]) {
        check(dtype, &[7, 5], 256, Layout::Raw(Raw { dtype: DType::F32 }));
        for n_tile in [4, 16] {
            let rows_interleaved = RowsInterleaved { dtype: DType::F32, n_tile, pair_interleave: false, k_pair: false };
            check(dtype, &[7, 30], 256, Layout::RowsInterleaved(rows_interleaved));
            check(
                dtype,
                &[9, 9],
                256,
                Layout::RowsInterleaved(RowsInterleaved { pair_interleave: true, ..rows_interleaved }),
            );
        }
    }
    for dtype in [DType::F16, DType::BF16] {
        for k_pair in [false, true] {
            let rows_interleaved = RowsInterleaved { dtype, n_tile: 16, pair_interleave: false, k_pair };
            for k in [1, 96, 97] {
                check(dtype, &[33], k, Layout::RowsInterleaved(rows_interleaved));
                check(dtype, &[7, 30], k, Layout::RowsInterleaved(rows_interleaved));
                let pair = RowsInterleaved { pair_interleave: true, ..rows_interleaved };
                check(dtype, &[19, 19], k, Layout::RowsInterleaved(pair));
            }
        }
        check(dtype, &[33], 96, Layout::Raw(Raw { dtype }));
    }
}

#[test]
fn k_pairs_are_adjacent() {
    let layout = RowsInterleaved { dtype: DType::BF16, n_tile: 2, pair_interleave: false, k_pair: true };
    let (source, bytes) = packed(DType::BF16, &[3], 3, Layout::RowsInterleaved(layout), 1);
    // (row, k) in pack order; K and N are odd, so the last pair and the last tile are padded.
    let first = [Some((0, 0)), Some((0, 1)), Some((1, 0)), Some((1, 1)), Some((0, 2)), None, Some((1, 2)), None];
    let second = [Some((2, 0)), Some((2, 1)), None, None, Some((2, 2)), None, None, None];
    let element = |at: &Option<(usize, usize)>| {
        at.map_or([0, 0], |(row, k)| {
            let at = (row * 3 + k) * 2;
            [source.0[0][at], source.0[0][at + 1]]
        })
    };
    let expected: Vec<u8> = first.iter().chain(&second).flat_map(element).collect();
    assert_eq!(bytes, expected);
}

#[test]
fn raw_is_the_logical_bytes() {
    for dtype in BLOCKS {
        let (source, bytes) = packed(dtype, &[3, 4], 256, Layout::Raw(Raw { dtype }), 2);
        assert_eq!(bytes, source.0.concat());
    }
}

#[test]
fn four_bit_blocks_keep_their_bytes() {
    // One row, one tile: quants then scale then minimum, each as in the source.
    let (source, bytes) = packed(DType::Q4_1, &[1], 32, Layout::AffineBlocks(layout_for(DType::Q4_1, 1).unwrap()), 1);
    let block = &source.0[0];
    assert_eq!(bytes, [&block[4..20], &block[0..2], &block[2..4]].concat());
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |dtype, layout| {
        let source = tensors(dtype, &[4], 256);
        let m = manifest(dtype, &[4], 256, layout, &source);
        let mut out = vec![0; m.programs[0].pack.bytes as usize];
        let error = pack_all(&m, &m.programs[0], 0, &source, &mut out, 1).unwrap_err();
        assert!(error.to_string().contains("t0"), "{error}");
    };
    let q4_1 = layout_for(DType::Q4_1, 8).unwrap();
    refused(DType::Q4_0, Layout::AffineBlocks(q4_1));
    refused(DType::Q8_0, Layout::AffineBlocks(q4_1));
    refused(DType::F32, Layout::AffineBlocks(q4_1));
    refused(DType::Q4K, Layout::AffineBlocks(AffineBlocks { bits: 8, ..q4_1 }));
    refused(DType::I32, Layout::Raw(Raw { dtype: DType::F32 }));
    refused(DType::F32, Layout::Raw(Raw { dtype: DType::Q8_0 }));
    for odd in [
        AffineBlocks { bits: 3, ..q4_1 },
        AffineBlocks { group: 64, ..q4_1 },
        AffineBlocks { n_tile: 0, ..q4_1 },
        AffineBlocks { scale: DType::I8, ..q4_1 },
        AffineBlocks { signed: true, ..q4_1 },
    ] {
        assert_eq!(Layout::AffineBlocks(odd).packed_bytes(&[8], 32), None);
    }
    // Pairs are of 16-bit elements.
    for (dtype, bytes) in [(DType::F32, None), (DType::I8, None), (DType::F16, Some(2 * 17 * 8 * 4))] {
        let paired =
            Layout::RowsInterleaved(RowsInterleaved { dtype, n_tile: 8, pair_interleave: false, k_pair: true });
        assert_eq!(paired.packed_bytes(&[9], 33), bytes);
        assert_eq!(paired.packed_bytes(&[1], u64::MAX), None);
        assert_eq!(weldment_runtime::pack::tiles::refusal(&paired, DType::BF16).is_some(), bytes.is_none());
    }
    assert_eq!(Layout::AffineBlocks(q4_1).packed_bytes(&[8], 33), None);
    assert_eq!(Layout::AffineBlocks(q4_1).packed_bytes(&[u64::MAX, 8], 32), None);
    assert_eq!(Layout::AffineBlocks(AffineBlocks { pair_interleave: true, ..q4_1 }).packed_bytes(&[8, 9], 32), None);
}

#[test]
fn random_weights_are_plausible() {
    let k = 1024u64;
    for dtype in BLOCKS.into_iter().chain([DType::F32, DType::F16, DType::BF16]) {
        let values = decoded(dtype, &tensors(dtype, &[64], k).0[0], 64, k);
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let deviation = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n).sqrt();
        let expected = 1.0 / (k as f64).sqrt();
        let tolerance = if dtype == DType::MxFp4 { 0.45 } else { 0.08 };
        assert!((deviation / expected - 1.0).abs() < tolerance, "{dtype}: {deviation} for {expected}");
        // Centred 4-bit quants run from -8 to 7: their mean is half a step below zero.
        assert!(mean.abs() < 0.12 * expected, "{dtype}: mean {mean}");
    }
    let norm = RandomTensor::new("norm", 1, DType::F32, &[k]);
    let mut bytes = vec![0; norm.row_bytes()];
    norm.fill_row(0, &mut bytes);
    let values = decoded(DType::F32, &bytes, 1, k);
    assert!(values.iter().all(|v| (0.6..1.4).contains(v)));
    let other = RandomTensor::new("norm", 2, DType::F32, &[k]);
    let mut second = vec![0; other.row_bytes()];
    other.fill_row(0, &mut second);
    assert_ne!(bytes, second, "the seed matters");
}

/// An artifact with one external q8_0 tensor of `[8, 32]` in a file of its own.
fn external(dir: &std::path::Path) -> (std::path::PathBuf, std::path::PathBuf, Vec<u8>) {
    let tensor = tensors(DType::Q8_0, &[8], 32).0.remove(0);
    let file = [&[7u8; 100][..], &tensor].concat();
    let checkpoint = dir.join("model.gguf");
    std::fs::write(&checkpoint, &file).unwrap();
    let mut m = common::manifest();
    let hash = blake3::hash(&tensor).to_hex().to_string();
    let id = weights::content_id(file.len() as u64, [hash.as_str()]);
    m.weights = Weights {
        mode: WeightMode::External,
        files: vec![SourceFile { name: "model.gguf".into(), bytes: file.len() as u64, id }],
        tensors: vec![Tensor {
            name: "w".into(),
            dtype: DType::Q8_0,
            shape: vec![8, 32],
            at: TensorPlace::File(0, 100),
            blake3: hash,
        }],
    };
    let layout = Layout::AffineBlocks(layout_for(DType::Q8_0, 8).unwrap());
    let bytes = layout.packed_bytes(&[8], 32).unwrap();
    let mut pack = Pack {
        bytes,
        key: String::new(),
        items: vec![PackItem { offset: 0, bytes, layout, tensors: vec![0], shards: Vec::new() }],
    };
    pack.key = pack.compute_key(&m.weights, "x86-64");
    m.programs[0].pack = pack;
    let artifact = dir.join("m.weld");
    write_artifact(&artifact, m, &[("code.0", &common::CODE)]).unwrap();
    (artifact, checkpoint, tensor)
}

#[test]
fn external_weights_are_found_verified_and_cached() {
    let dir = tempfile::tempdir().unwrap();
    let (path, checkpoint, tensor) = external(dir.path());
    let device = Device::host(2).unwrap();
    let cache = dir.path().join("cache");
    let open = |weights_file: Option<&std::path::Path>, cache: Option<&std::path::Path>| {
        let artifact = Artifact::open(&path).unwrap();
        let options = SessionOptions {
            kv_blocks: None,
            weights_file: weights_file.map(Into::into),
            cache: cache.map(Into::into),
            ..SessionOptions::default()
        };
        Session::new(&artifact, &device, options).map(|s| s.weights().to_vec().unwrap())
    };
    let expected = open(None, None).unwrap();
    let layout = Layout::AffineBlocks(layout_for(DType::Q8_0, 8).unwrap());
    assert_eq!(unpack(&layout, &[8], 32, &expected), [decoded(DType::Q8_0, &tensor, 8, 32)]);
    // Elsewhere: found by path, by folder, by another name beside the artifact, by the registry.
    let moved = dir.path().join("moved");
    std::fs::create_dir(&moved).unwrap();
    std::fs::rename(&checkpoint, moved.join("model.gguf")).unwrap();
    let error = open(None, None).unwrap_err().to_string();
    assert!(error.contains("model.gguf") && error.contains("--weights-file"), "{error}");
    assert_eq!(open(Some(&moved), None).unwrap(), expected);
    assert_eq!(open(Some(&moved.join("model.gguf")), None).unwrap(), expected);
    let id = Artifact::open(&path).unwrap().manifest().weights.files[0].id.clone();
    weights::register_source(&cache, &moved.join("model.gguf"), &id).unwrap();
    assert_eq!(open(None, Some(&cache)).unwrap(), expected);
    // Now the pack is cached and the checkpoint is not needed.
    let program = Artifact::open(&path).unwrap().manifest().programs[0].clone();
    let pack = weights::pack_path(Artifact::open(&path).unwrap().manifest(), &program, 0, &cache).unwrap();
    weights::verify_pack(&pack, &program, 0, 2).unwrap();
    std::fs::rename(moved.join("model.gguf"), dir.path().join("other-name.gguf")).unwrap();
    assert_eq!(open(None, Some(&cache)).unwrap(), expected);
    assert_eq!(open(None, None).unwrap(), expected, "found by size and content");
    // A damaged pack: short or with a wrong header it is made again; wrong data is told by verify.
    let good = std::fs::read(&pack).unwrap();
    std::fs::write(&pack, &good[..good.len() - 1]).unwrap();
    assert_eq!(open(None, Some(&cache)).unwrap(), expected);
    assert_eq!(std::fs::read(&pack).unwrap(), good);
    for at in (0..4096).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&pack, &bad).unwrap();
        assert!(weights::open_pack(&pack, &program, 0).is_none() || (88..120).contains(&at), "byte {at}");
        assert!(weights::verify_pack(&pack, &program, 0, 1).is_err(), "byte {at}");
    }
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    std::fs::write(&pack, &bad).unwrap();
    assert!(matches!(weights::verify_pack(&pack, &program, 0, 1), Err(Error::CheckFailed(_))));
    // Another checkpoint of the same size is refused by name of the tensor.
    std::fs::remove_file(&pack).unwrap();
    let other = dir.path().join("model.gguf");
    let mut bytes = std::fs::read(dir.path().join("other-name.gguf")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&other, &bytes).unwrap();
    let error = open(Some(&other), None).unwrap_err().to_string();
    assert!(error.contains("tensor w differs"), "{error}");
    assert_eq!(open(None, None).unwrap(), expected, "the right file beside it is taken instead");
    // A cache that cannot be written is no error.
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert_eq!(open(None, Some(&dir.path().join("file"))).unwrap(), expected);
}

#[test]
fn random_artifacts_need_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let (path, checkpoint, _) = external(dir.path());
    std::fs::remove_file(checkpoint).unwrap();
    let mut m = Artifact::open(&path).unwrap().manifest().clone();
    m.weights.mode = WeightMode::Random(3);
    m.weights.files.clear();
    m.weights.tensors[0].at = TensorPlace::Random;
    m.weights.tensors[0].blake3.clear();
    write_artifact(&path, m, &[("code.0", &common::CODE)]).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    let weights = |threads| {
        let device = Device::host(threads).unwrap();
        Session::new(&artifact, &device, SessionOptions::default()).unwrap().weights().to_vec().unwrap()
    };
    assert_eq!(weights(1), weights(2));
    assert!(weights(1).iter().any(|b| *b != 0));
}

/// Decodes the bytes of a fixed generator and compares with what gguf-py 0.19's `dequantize` makes of them (FNV-1a of the f32
/// bytes, -0 taken as 0): the formats are read as their authors meant, not only back and forth.
#[test]
fn formats_agree_with_gguf() {
    let expected = [
        (DType::Q8_0, 0xe3b942994b0be1c4u64, &[0usize][..]),
        (DType::Q4_0, 0x9f605dc8e2b102fd, &[0]),
        (DType::Q4_1, 0x6fcc6cfe299baa42, &[0, 2]),
        (DType::Q5_0, 0x98120ecf5748e645, &[0]),
        (DType::Q5_1, 0x8fb06d9c78283641, &[0, 2]),
        (DType::Q4K, 0xfd22969867828b48, &[0, 2]),
        (DType::Q5K, 0xb5d944bae60d6fee, &[0, 2]),
        (DType::Q6K, 0xacf3135778ceb962, &[208]),
        (DType::MxFp4, 0xbd572821905bbd8f, &[]),
    ];
    for (dtype, hash, scales) in expected {
        let size = dtype.block_bytes();
        let mut state = 1u64;
        let mut bytes: Vec<u8> = (0..4 * size)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        for block in 0..4 {
            for at in scales {
                // An f16 of plain size.
                bytes[block * size + at + 1] = 0x20 + ((block * 5 + at) % 16) as u8;
            }
            if dtype == DType::MxFp4 {
                bytes[block * size] = [0, 1, 127, 200][block];
            }
        }
        let mut values = vec![0f32; 4 * dtype.block_elements()];
        decode_row(dtype, &bytes, &mut values);
        let found = values
            .iter()
            .flat_map(|v| (v + 0.0).to_le_bytes())
            .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        assert_eq!(found, hash, "{dtype}");
    }
}
