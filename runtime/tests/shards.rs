//! The parts of tensors that ranks pack, and what a manifest may say of ranks.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod common;
#[allow(dead_code, reason = "each test binary uses its own part")]
#[path = "common/ranks.rs"]
mod made;

use weldment_runtime::artifact::*;
use weldment_runtime::pack::formats::decode_row;
use weldment_runtime::pack::random::RandomTensor;
use weldment_runtime::pack::{TensorSource, pack_all};
use weldment_runtime::{DType, Result};

struct One(Vec<u8>);

impl TensorSource for One {
    fn tensor(&self, _: u32) -> Result<&[u8]> {
        Ok(&self.0)
    }
}

/// A manifest whose only tensor, of `shape`, is cut as `shard` says for `world` ranks.
fn manifest(dtype: DType, shape: &[u64], shard: Shard, world: u32) -> Manifest {
    let mut m = common::manifest();
    m.world = world;
    m.weights.tensors = vec![Tensor {
        name: "w".into(),
        dtype,
        shape: shape.to_vec(),
        at: TensorPlace::Constant(0),
        blake3: "0".repeat(64),
    }];
    let layout = Layout::Raw(Raw { dtype: if dtype.is_block() { DType::F32 } else { dtype } });
    let mut item = PackItem { offset: 0, bytes: 0, layout, tensors: vec![0], shards: vec![Some(shard)] };
    item.bytes = m.item_bytes(&item).unwrap();
    m.programs[0].pack = Pack { bytes: item.bytes, key: "k".into(), items: vec![item] };
    m
}

/// The elements of a tensor, decoded, and those of the part of index `part` along `axis`.
fn cut(values: &[f32], shape: &[usize], axis: usize, parts: usize, part: usize) -> Vec<f32> {
    let inner: usize = shape[axis + 1..].iter().product();
    let (dim, own) = (shape[axis], shape[axis] / parts);
    let wanted = |at: &usize| (at / inner % dim) / own == part;
    (0..values.len()).filter(wanted).map(|at| values[at]).collect()
}

#[test]
fn a_rank_packs_its_part_of_every_format_along_every_axis() {
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_1, DType::Q5_0, DType::Q6K, DType::MxFp4] {
        let block = dtype.block_elements() as u64;
        for shape in [vec![4 * block], vec![8, 4 * block], vec![4, 12, 4 * block]] {
            let columns = *shape.last().unwrap();
            let generator = RandomTensor::new("w", 3, dtype, &shape);
            let rows = shape.iter().product::<u64>() / columns;
            let row_bytes = generator.row_bytes();
            let mut bytes = vec![0u8; row_bytes * rows as usize];
            let mut values = Vec::new();
            for (row, out) in (0..).zip(bytes.chunks_exact_mut(row_bytes)) {
                generator.fill_row(row, out);
                let mut decoded = vec![0.0; columns as usize];
                decode_row(dtype, out, &mut decoded);
                values.extend(decoded);
            }
            let source = One(bytes);
            let dims: Vec<usize> = shape.iter().map(|d| *d as usize).collect();
            for axis in 0..shape.len() {
                for (parts, replicas) in [(2, 1), (4, 1), (2, 2), (1, 4)] {
                    let world = parts * replicas;
                    let shard = Shard { axis: axis as u32, parts, replicas };
                    let m = manifest(dtype, &shape, shard, world);
                    let mut random = m.clone();
                    random.weights.mode = WeightMode::Random(3);
                    random.weights.tensors[0].at = TensorPlace::Random;
                    for rank in 0..world {
                        let mut out = vec![0xaa; m.programs[0].pack.bytes as usize];
                        pack_all(&m, &m.programs[0], rank, &source, &mut out, 2).unwrap();
                        let part = (rank / replicas) as usize;
                        let expected = cut(&values, &dims, axis, parts as usize, part);
                        let packed: Vec<f32> = match dtype {
                            DType::BF16 => out
                                .chunks_exact(2)
                                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                                .collect(),
                            _ => out.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                        };
                        assert_eq!(
                            packed, expected,
                            "{dtype} {shape:?} axis {axis}, rank {rank} of {parts} x {replicas}"
                        );
                        // Random tensors are the same tensor, cut.
                        let mut again = vec![0x55; out.len()];
                        pack_all(&random, &random.programs[0], rank, &source, &mut again, 1).unwrap();
                        assert!(again == out, "random {dtype} {shape:?} axis {axis}, rank {rank}");
                    }
                }
            }
        }
    }
}

#[test]
fn ranks_that_take_the_same_parts_share_a_pack() {
    let key = |shard, world, rank: u32| {
        let m = manifest(DType::F32, &[8, 8], shard, world);
        m.programs[0].pack.key_of(rank)
    };
    let twice = Shard { axis: 0, parts: 2, replicas: 2 };
    assert_eq!(key(twice, 4, 0), key(twice, 4, 1));
    assert_ne!(key(twice, 4, 1), key(twice, 4, 2));
    let m = common::manifest();
    assert_eq!(m.programs[0].pack.key_of(5), m.programs[0].pack.key, "nothing is cut");
}

/// Writes the artifact of two ranks with `change` made to its manifest, and what opening it says.
fn opened(change: impl FnOnce(&mut Manifest)) -> std::result::Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.weld");
    let mut m = made::manifest(2, 0, 0);
    change(&mut m);
    let sections: [(&str, &[u8]); 2] = [(CONSTANTS_SECTION, &[0; 16]), ("code.0", &common::CODE)];
    write_artifact(&path, m, &sections).map_err(|e| e.to_string())?;
    Artifact::open(&path).map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn wrong_manifests_of_ranks_are_refused() {
    opened(|_| {}).unwrap();
    fn slab(m: &mut Manifest) -> &mut Slab {
        m.programs[0].slab.as_mut().unwrap()
    }
    fn shard(m: &mut Manifest) -> &mut Shard {
        m.programs[0].pack.items[0].shards[0].as_mut().unwrap()
    }
    type Change = fn(&mut Manifest);
    let cases: [(&str, Change); 17] = [
        ("number of ranks is 0", |m| m.world = 0),
        ("number of ranks is 65", |m| m.world = 65),
        ("a slab of 0 bytes", |m| slab(m).bytes = 0),
        ("a slab of 20481 bytes", |m| slab(m).bytes += 4097),
        ("a multiple of 4096 up to", |m| slab(m).bytes = 1 << 62),
        ("unaligned, overlaps or passes", |m| slab(m).fills[0].offset = 2),
        ("unaligned, overlaps or passes", |m| slab(m).fills[0].bytes = 6),
        ("unaligned, overlaps or passes", |m| slab(m).fills[1].offset = 0),
        ("unaligned, overlaps or passes", |m| slab(m).fills[1].bytes = 1 << 20),
        ("unaligned, overlaps or passes", |m| slab(m).fills[1].offset = u64::MAX - 3),
        ("Slab is not listed", |m| m.programs[0].slab = None),
        ("are not the 2 ranks", |m| shard(m).replicas = 2),
        ("are not the 2 ranks", |m| *shard(m) = Shard { axis: 0, parts: u32::MAX, replicas: u32::MAX }),
        ("is not cut into 2 parts along axis 2", |m| shard(m).axis = 2),
        ("is not cut into 2 parts along axis 0", |m| m.weights.tensors[0].shape = vec![17, 32]),
        ("0 parts", |m| shard(m).parts = 0),
        ("2 shards for 1 tensors", |m| {
            let shards = &mut m.programs[0].pack.items[0].shards;
            shards.push(None);
        }),
    ];
    for (expected, change) in cases {
        let error = opened(change).unwrap_err();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}
