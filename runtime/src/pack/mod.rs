//! Weights into the layout the kernels want, in parallel, and back (for tests).
//!
//! A pack is one region of [`Pack::bytes`](crate::artifact::Pack) bytes. Items are cut into runs of tiles, and threads take
//! runs until none is left; bytes depend on the content alone, never on the number of threads.

pub mod formats;
pub mod random;
pub mod tiles;
pub mod unpack;

pub use crate::artifact::layout_for;
use crate::artifact::{Layout, Manifest, PackItem, Program, Shard, Tensor, TensorPlace, WeightMode};
use crate::driver::host::affinity;
use crate::error::{Error, Result};
use random::RandomTensor;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Gives logical tensors by index into [`Weights::tensors`](crate::artifact::Weights).
pub trait TensorSource: Sync {
    /// The logical bytes of tensor `index`, of exactly the size its dtype and shape need. Not asked for random tensors.
    ///
    /// # Errors
    /// If the tensor cannot be found or is not what the manifest says.
    fn tensor(&self, index: u32) -> Result<&[u8]>;
}

/// Bytes of packed output that one job writes, about.
const JOB_BYTES: usize = 256 << 10;

enum Rows<'a> {
    Bytes(&'a [u8]),
    Random(RandomTensor),
}

/// A rank's part of a tensor, as a matrix of rows as long as the last dim.
struct Matrix<'a> {
    /// Rows of the part.
    rows: u64,
    /// Bytes of one of them.
    row_bytes: usize,
    part: Part,
    data: Rows<'a>,
}

/// Where a rank's part of a tensor lies in the whole.
#[derive(Clone, Copy)]
struct Part {
    /// Rows that lie together in the part: those of one index of the dims before the one that is cut.
    run: u64,
    /// Rows from one such run to the next in the whole.
    stride: u64,
    /// First row in the whole.
    first: u64,
    /// Bytes of a row of the whole.
    row_bytes: usize,
    /// Where the part begins in a row of the whole, in bytes.
    start: usize,
}

impl Part {
    /// The row of the whole that holds row `row` of the part.
    fn row(&self, row: u64) -> u64 {
        let run = self.run.max(1);
        self.first + row / run * self.stride + row % run
    }
}

/// A run of tiles of one item, or a gap between items.
struct Job {
    item: Option<usize>,
    first_tile: u64,
    range: Range<usize>,
}

struct ItemPlan<'a> {
    layout: Layout,
    dtype: crate::DType,
    columns: usize,
    tile_bytes: usize,
    rows: Vec<u64>,
    matrices: Vec<Matrix<'a>>,
}

/// Packs every item of `program` for `rank` into `out` (`program.pack.bytes` bytes; gaps between items are zeroed) with `threads`
/// threads.
///
/// # Errors
/// [`Error::Weights`] if `source` cannot give a tensor or a dtype does not fit its layout.
pub fn pack_all(
    manifest: &Manifest,
    program: &Program,
    rank: u32,
    source: &dyn TensorSource,
    out: &mut [u8],
    threads: usize,
) -> Result<()> {
    if out.len() as u64 != program.pack.bytes {
        return Err(Error::Weights(format!("the pack has {} bytes, its buffer {}", program.pack.bytes, out.len())));
    }
    Packer::new(manifest, program, rank, source)?.pack(0..out.len(), out, threads)
}

/// A pack as jobs that can be done in any order: whole, or range by range where it does not fit in memory at once.
pub struct Packer<'a> {
    items: Vec<ItemPlan<'a>>,
    /// Ascending, without holes.
    jobs: Vec<Job>,
}

impl<'a> Packer<'a> {
    /// Plans the pack of `program` for `rank`, which takes its part of each tensor that is cut.
    ///
    /// # Errors
    /// [`Error::Weights`] if `source` cannot give a tensor or a dtype does not fit its layout.
    pub fn new(manifest: &Manifest, program: &Program, rank: u32, source: &'a dyn TensorSource) -> Result<Packer<'a>> {
        let mut items = Vec::with_capacity(program.pack.items.len());
        let mut jobs = Vec::new();
        let mut at = 0;
        // Offsets ascend and sizes agree: `check_manifest`.
        for (index, item) in program.pack.items.iter().enumerate() {
            let plan = plan_item(manifest, item, rank, source)?;
            let (start, end) = (item.offset as usize, (item.offset + item.bytes) as usize);
            gap(&mut jobs, at..start);
            let run = (JOB_BYTES / plan.tile_bytes.max(1)).max(1);
            at = start;
            let mut first_tile = 0;
            while at < end {
                let next = end.min(at + run * plan.tile_bytes);
                jobs.push(Job { item: Some(index), first_tile, range: at..next });
                (at, first_tile) = (next, first_tile + run as u64);
            }
            items.push(plan);
        }
        gap(&mut jobs, at..program.pack.bytes as usize);
        Ok(Packer { items, jobs })
    }

    /// The whole pack as ranges of at most `bytes` bytes, or of one job where that is more.
    pub fn ranges(&self, bytes: usize) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for job in &self.jobs {
            match ranges.last_mut() {
                Some(last) if job.range.end - last.start <= bytes => last.end = job.range.end,
                _ => ranges.push(job.range.clone()),
            }
        }
        ranges
    }

    /// Packs `range`, which starts and ends where one of [`Packer::ranges`] does, into `out`.
    ///
    /// # Errors
    /// [`Error::Weights`] if the range cuts a job or `out` has another size.
    pub fn pack(&self, range: Range<usize>, out: &mut [u8], threads: usize) -> Result<()> {
        let first = self.jobs.partition_point(|job| job.range.start < range.start);
        let last = self.jobs.partition_point(|job| job.range.end <= range.end);
        let jobs = self.jobs.get(first..last).unwrap_or_default();
        let covered = jobs.iter().map(|job| job.range.len()).sum::<usize>();
        if covered != range.len() || out.len() != covered {
            return Err(Error::Weights(format!("bytes {range:?} of the pack cannot be made by themselves")));
        }
        let mut rest = out;
        let mut places = Vec::with_capacity(jobs.len());
        for job in jobs {
            let (place, tail) = rest.split_at_mut(job.range.len());
            places.push(Mutex::new(Some(place)));
            rest = tail;
        }
        for_each_parallel(jobs.len(), threads, |index| {
            let place = places[index].lock().ok().and_then(|mut place| place.take());
            match (place, jobs[index].item.and_then(|item| self.items.get(item))) {
                (Some(place), Some(item)) => run_job(item, jobs[index].first_tile, place),
                (Some(place), None) => place.fill(0),
                (None, _) => {}
            }
        });
        Ok(())
    }
}

/// Zeros between items, in jobs of the usual size.
fn gap(jobs: &mut Vec<Job>, range: Range<usize>) {
    let mut at = range.start;
    while at < range.end {
        let next = range.end.min(at + JOB_BYTES);
        jobs.push(Job { item: None, first_tile: 0, range: at..next });
        at = next;
    }
}

/// Calls `body` with every index below `count`, on `threads` threads; indices are handed out in ascending order.
pub fn for_each_parallel(count: usize, threads: usize, body: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            body(index);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(|| {
                affinity::unpin();
                work();
            });
        }
        work();
    });
}

fn plan_item<'a>(
    manifest: &Manifest,
    item: &PackItem,
    rank: u32,
    source: &'a dyn TensorSource,
) -> Result<ItemPlan<'a>> {
    let mut matrices = Vec::with_capacity(item.tensors.len());
    let mut dtype = None;
    let mut columns = 1;
    for (at, index) in item.tensors.iter().enumerate() {
        let tensor: &Tensor = manifest
            .weights
            .tensors
            .get(*index as usize)
            .ok_or_else(|| Error::Weights(format!("tensor {index} is not listed")))?;
        let name = &tensor.name;
        if *dtype.get_or_insert(tensor.dtype) != tensor.dtype {
            return Err(Error::Weights(format!("{name}: one item of a pack mixes dtypes")));
        }
        if let Some(reason) = tiles::refusal(&item.layout, tensor.dtype) {
            return Err(Error::Weights(format!("{name}: {reason}")));
        }
        let (Some(bytes), Some(row_bytes)) = (
            tensor.dtype.byte_size(&tensor.shape).ok(),
            tensor.dtype.byte_size(&[tensor.shape.last().copied().unwrap_or(1)]).ok(),
        ) else {
            return Err(Error::Weights(format!("{name}: its size overflows")));
        };
        let shard = item.shard(at);
        let cut = shard.map(|shard| tensor.part_shape(shard)).unwrap_or_else(|| Some(tensor.shape.clone()));
        let cut =
            cut.and_then(|shape| Some((part_of(tensor, shard, rank)?, tensor.dtype.byte_size(&shape).ok()?, shape)));
        let Some((part, part_bytes, shape)) = cut else {
            return Err(Error::Weights(format!("{name}: it cannot be cut as {shard:?} for rank {rank}")));
        };
        columns = shape.last().copied().unwrap_or(1) as usize;
        let data = match (tensor.at, manifest.weights.mode) {
            (TensorPlace::Random, WeightMode::Random(seed)) => {
                Rows::Random(RandomTensor::new(name, seed, tensor.dtype, &tensor.shape))
            }
            _ => {
                let data = source.tensor(*index)?;
                if data.len() as u64 != bytes {
                    return Err(Error::Weights(format!("{name}: {} bytes where {bytes} are needed", data.len())));
                }
                Rows::Bytes(data)
            }
        };
        let part_row = tensor.dtype.byte_size(&[columns as u64]).unwrap_or(row_bytes);
        let rows = part_bytes.checked_div(part_row).unwrap_or(0);
        matrices.push(Matrix { rows, row_bytes: part_row as usize, part, data });
    }
    let rows: Vec<u64> = matrices.iter().map(|m| m.rows).collect();
    let dtype = dtype.ok_or_else(|| Error::Weights("a pack item names no tensor".into()))?;
    let tile_bytes = item.layout.tile_bytes(columns as u64);
    match (tile_bytes, item.layout.packed_bytes(&rows, columns as u64)) {
        (Some(tile), Some(bytes)) if bytes == item.bytes && (tile > 0 || bytes == 0) => {
            Ok(ItemPlan { layout: item.layout, dtype, columns, tile_bytes: tile as usize, rows, matrices })
        }
        _ => Err(Error::Weights("a pack item's size disagrees with its layout".into())),
    }
}

/// Where the part of `rank` lies; `None` on overflow or where the dim does not exist.
fn part_of(tensor: &Tensor, shard: Option<Shard>, rank: u32) -> Option<Part> {
    let row_bytes = |columns: u64| usize::try_from(tensor.dtype.byte_size(&[columns]).ok()?).ok();
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let rows = tensor.shape.iter().rev().skip(1).try_fold(1u64, |n, dim| n.checked_mul(*dim))?;
    let whole = Part { run: rows, stride: rows, first: 0, row_bytes: row_bytes(columns)?, start: 0 };
    let Some(shard) = shard else { return Some(whole) };
    let shape = tensor.part_shape(shard)?;
    let (axis, part) = (shard.axis as usize, shard.part(rank));
    if axis + 1 == shape.len() {
        return Some(Part { start: row_bytes(part.checked_mul(*shape.last()?)?)?, ..whole });
    }
    // Rows of one index of the dim that is cut.
    let inner = shape.get(axis + 1..shape.len() - 1)?.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim))?;
    let run = shape.get(axis)?.checked_mul(inner)?;
    let stride = tensor.shape.get(axis)?.checked_mul(inner)?;
    Some(Part { run, stride, first: part.checked_mul(run)?, ..whole })
}

fn run_job(item: &ItemPlan<'_>, first_tile: u64, out: &mut [u8]) {
    let n_tile = item.layout.n_tile() as usize;
    let mut scratch = Vec::new();
    for (index, out) in out.chunks_exact_mut(item.tile_bytes).enumerate() {
        let tile = first_tile + index as u64;
        let rows: Vec<Cow<[u8]>> = (0..n_tile)
            .map(|lane| match row_of_item(item, tile, lane as u64) {
                Some(row) => row,
                None => Cow::Borrowed(&[][..]),
            })
            .collect();
        let rows: Vec<&[u8]> = rows.iter().map(AsRef::as_ref).collect();
        tiles::pack_tile(&item.layout, item.dtype, &rows, item.columns, out, &mut scratch);
    }
}

fn row_of_item<'a>(item: &ItemPlan<'a>, tile: u64, lane: u64) -> Option<Cow<'a, [u8]>> {
    let (source, row) = tiles::row_of(&item.layout, &item.rows, tile, lane)?;
    let matrix = item.matrices.get(source)?;
    let (part, row) = (&matrix.part, matrix.part.row(row));
    match &matrix.data {
        Rows::Bytes(bytes) => {
            let start = row as usize * part.row_bytes + part.start;
            bytes.get(start..start + matrix.row_bytes).map(Cow::Borrowed)
        }
        Rows::Random(random) => {
            let mut bytes = vec![0u8; matrix.row_bytes];
            random.fill_row_from(row, part.start, &mut bytes);
            Some(Cow::Owned(bytes))
        }
    }
}
