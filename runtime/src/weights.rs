//! Finds the weights of an artifact and brings them into memory: embedded, from the pack cache, packed from the checkpoint's own
//! files, or made from a seed.
//!
//! External weights are found by the caller's path, else beside the artifact, else where the compiler last saw them (a
//! registry in the cache, by content). Wherever they are found, every tensor's hash must be the manifest's.

use crate::DType;
use crate::artifact::{
    Artifact, Manifest, Program, Section, TensorPlace, WEIGHTS_SECTION, WeightMode, write_atomically,
};
use crate::driver::{Allocator, Buffer, Driver, Placement, SharedBytes};
use crate::error::{Error, Result};
use crate::log::{self, Level};
use crate::map::{FileMap, MappedRange};
use crate::pack::{Packer, TensorSource, for_each_parallel};
use half::{bf16, f16};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const PACK_MAGIC: [u8; 8] = *b"WELDPACK";
const PACK_VERSION: u32 = 1;
const PACK_HEADER_BYTES: usize = 4096;
/// Bytes that one leaf of a pack's hash covers.
const HASH_CHUNK: usize = 4 << 20;

/// Where to look for weights and what to leave behind.
#[derive(Clone, Debug)]
pub struct WeightOptions {
    /// The checkpoint's file, or the folder that holds its files.
    pub weights_file: Option<PathBuf>,
    /// Cache folder; `None` neither reads nor writes a cache.
    pub cache: Option<PathBuf>,
    /// Threads that pack.
    pub threads: usize,
    /// The rank whose parts of the tensors are packed; 0 where there is but one.
    pub rank: u32,
}

/// `$XDG_CACHE_HOME/weldment`, else `~/.cache/weldment`; `None` if neither variable is set to an absolute path.
pub fn cache_dir() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache"))).map(|p| p.join("weldment"))
}

/// The id of a checkpoint file: a hash over its size and the hashes of its tensors (hex blake3, in file order).
pub fn content_id<'a>(file_bytes: u64, tensor_hashes: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(&file_bytes.to_le_bytes());
    for tensor in tensor_hashes {
        hash.update(tensor.as_bytes());
    }
    hash.finalize().to_hex().to_string()
}

/// Notes in the cache that the checkpoint file `id` was last seen at `path`.
///
/// # Errors
/// If the cache cannot be written; callers may go on without.
pub fn register_source(cache: &Path, path: &Path, id: &str) -> Result<()> {
    let folder = cache.join("sources");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "cannot create", e))?;
    let path = std::path::absolute(path).map_err(|e| Error::io(path, "cannot resolve", e))?;
    let json = serde_json::json!({ "path": path.to_string_lossy() }).to_string();
    write_atomically(&folder.join(format!("{id}.json")), |out| out.write_all(json.as_bytes()))
}

fn registered_source(cache: &Path, id: &str) -> Option<PathBuf> {
    if !id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let text = std::fs::read_to_string(cache.join("sources").join(format!("{id}.json"))).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    json.get("path")?.as_str().map(PathBuf::from)
}

/// Where the pack of `program` for `rank` is, or would be, cached; `None` if it is not cacheable.
pub fn pack_path(manifest: &Manifest, program: &Program, rank: u32, cache: &Path) -> Option<PathBuf> {
    let cacheable = manifest.weights.mode == WeightMode::External && program.pack.key.len() == 64;
    cacheable.then(|| cache.join("packs").join(format!("{}.pack", program.pack.key_of(rank))))
}

/// The weights region of `program`, ready for kernels, in memory of `allocator` where one is given and the driver copies.
///
/// # Errors
/// [`Error::Weights`] saying where was looked, or which tensor is not what the artifact was compiled for.
pub fn load(
    artifact: &Artifact,
    program: &Program,
    driver: &dyn Driver,
    options: &WeightOptions,
    allocator: Option<&Arc<dyn Allocator>>,
) -> Result<Buffer> {
    let manifest = artifact.manifest();
    // A file that the caller names must be there and be the right one, whether or not anything is read from it.
    let given = options.weights_file.as_deref().map(|_| Source::find(artifact, options)).transpose()?;
    if let Some(source) = &given {
        source.check(options)?;
    }
    if program.pack.bytes == 0 {
        return driver.allocate(0, Placement::Weights, allocator);
    }
    if manifest.weights.mode == WeightMode::Embedded {
        return driver.import(embedded(artifact, program, options.rank)?, allocator);
    }
    let rank = options.rank;
    let cached = options.cache.as_deref().and_then(|cache| pack_path(manifest, program, rank, cache));
    if let Some(pack) = cached.as_deref().and_then(|path| open_pack(path, program, rank)) {
        return driver.import(Arc::new(pack), allocator);
    }
    let bytes = usize::try_from(program.pack.bytes)
        .map_err(|_| Error::Unsupported("the weights are larger than this machine addresses".into()))?;
    let mut buffer = driver.allocate(bytes, Placement::Weights, allocator)?;
    let source = match given {
        Some(source) => source,
        None => {
            let found = Source::find(artifact, options)?;
            found.check(options)?;
            found
        }
    };
    let packer = Packer::new(manifest, program, rank, &source)?;
    let ranges = packer.ranges(driver.staging_bytes().unwrap_or(usize::MAX));
    driver.fill(&mut buffer, &ranges, &mut |range, out| packer.pack(range, out, options.threads))?;
    // A device's pack is close to the checkpoint's own bytes: making it again costs little more than reading it.
    if let (Some(path), true) = (cached, buffer.is_host_visible())
        && let Err(e) = buffer.bytes().and_then(|bytes| write_pack(&path, program, rank, bytes, options.threads))
    {
        // The weights are in memory: a cache that cannot be written costs the next start, nothing else.
        log::write(Level::Warn, format_args!("the pack is not cached: {e}"));
    }
    Ok(buffer)
}

/// The pack of `rank` in the artifact, which has those of all ranks one after the other.
fn embedded(artifact: &Artifact, program: &Program, rank: u32) -> Result<Arc<dyn SharedBytes>> {
    let manifest = artifact.manifest();
    let section = manifest
        .section(WEIGHTS_SECTION)
        .ok_or_else(|| Error::Weights("the artifact says its weights are embedded, but has no such section".into()))?;
    let stride = manifest.embedded_stride(program);
    let wanted =
        stride.and_then(|stride| stride.checked_mul(u64::from(manifest.world) - 1)?.checked_add(program.pack.bytes));
    if Some(section.bytes) != wanted {
        return Err(Error::Weights(format!(
            "section weights has {} bytes, the program wants {wanted:?}",
            section.bytes
        )));
    }
    artifact.check_hash(section)?;
    let own = Section {
        offset: section.offset + u64::from(rank) * stride.unwrap_or_default(),
        bytes: program.pack.bytes,
        ..section.clone()
    };
    let range = artifact.map_section(&own).ok_or_else(|| Error::Weights("section weights is not mapped".into()))?;
    Ok(Arc::new(range))
}

/// Logical tensors from the checkpoint's files and the artifact's constants.
pub struct Source<'a> {
    artifact: &'a Artifact,
    files: Vec<FileMap>,
    /// Where each file is, and its state when it was opened.
    places: Vec<(PathBuf, Option<Stamp>)>,
}

/// What changes with a file's content: device, inode, size, and times of modification and change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp(String);

impl Stamp {
    /// The stamp of the file at `path`; none for one that was changed so lately that another change might not show.
    fn of(path: &Path) -> Option<Stamp> {
        let m = std::fs::metadata(path).ok()?;
        let changed = u64::try_from(m.ctime()).ok()?.max(u64::try_from(m.mtime()).ok()?);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
        let times = format!("{}.{} {}.{}", m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        (now > changed + 2).then(|| Stamp(format!("{} {} {} {times}", m.dev(), m.ino(), m.len())))
    }

    /// Where the cache notes that the file at `path` was found to be the checkpoint file `id`.
    fn note(cache: &Path, path: &Path, id: &str) -> Option<PathBuf> {
        let path = std::path::absolute(path).ok()?;
        let name = blake3::hash(&[id.as_bytes(), b"\0", path.as_os_str().as_encoded_bytes()].concat()).to_hex();
        Some(cache.join("verified").join(name.as_str()))
    }
}

impl<'a> Source<'a> {
    /// Maps the checkpoint's files.
    ///
    /// # Errors
    /// [`Error::Weights`] naming the file and the places where it was looked for.
    pub fn find(artifact: &'a Artifact, options: &WeightOptions) -> Result<Source<'a>> {
        let weights = &artifact.manifest().weights;
        let mut files = Vec::with_capacity(weights.files.len());
        let mut places = Vec::with_capacity(weights.files.len());
        if let (true, Some(given)) = (weights.files.is_empty(), &options.weights_file) {
            std::fs::metadata(given).map_err(|e| Error::io(given, "cannot open", e))?;
        }
        for index in 0..weights.files.len() {
            let (path, file) = find_file(artifact, index, options)?;
            let stamp = Stamp::of(&path);
            places.push((path, stamp));
            files.push(file);
        }
        Ok(Source { artifact, files, places })
    }

    /// As [`Source::verify`], but a file that was found right before and has not been touched since is not read again.
    ///
    /// # Errors
    /// As [`Source::verify`].
    pub fn check(&self, options: &WeightOptions) -> Result<()> {
        let files = &self.artifact.manifest().weights.files;
        let note = |index: usize| {
            let (path, stamp) = self.places.get(index)?;
            let note = Stamp::note(options.cache.as_deref()?, path, &files.get(index)?.id)?;
            Some((note, stamp.clone()?))
        };
        let notes: Vec<_> = (0..files.len()).map(note).collect();
        let known = |note: &Option<(PathBuf, Stamp)>| {
            let found = note.as_ref().and_then(|(path, stamp)| Some((std::fs::read_to_string(path).ok()?, stamp)));
            found.is_some_and(|(text, stamp)| text == stamp.0)
        };
        if notes.iter().all(known) {
            return Ok(());
        }
        self.verify(options.threads)?;
        for (path, stamp) in notes.into_iter().flatten() {
            // A note that cannot be left costs the next start its time.
            if path.parent().is_some_and(|folder| std::fs::create_dir_all(folder).is_ok()) {
                let _ = write_atomically(&path, |out| out.write_all(stamp.0.as_bytes()));
            }
        }
        Ok(())
    }

    /// The first tensor of a float dtype that holds something else than finite numbers.
    pub fn first_not_finite(&self, threads: usize) -> Option<&str> {
        let tensors = &self.artifact.manifest().weights.tensors;
        let first = Mutex::new(None::<usize>);
        for_each_parallel(tensors.len(), threads, |index| {
            let (dtype, Ok(bytes)) = (tensors[index].dtype, self.tensor(index as u32)) else { return };
            let finite = match dtype {
                DType::F32 => bytes.as_chunks::<4>().0.iter().all(|b| f32::from_le_bytes(*b).is_finite()),
                DType::F16 => bytes.as_chunks::<2>().0.iter().all(|b| f16::from_le_bytes(*b).is_finite()),
                DType::BF16 => bytes.as_chunks::<2>().0.iter().all(|b| bf16::from_le_bytes(*b).is_finite()),
                _ => true,
            };
            if !finite && let Ok(mut first) = first.lock() {
                *first = Some(first.map_or(index, |i| i.min(index)));
            }
        });
        first.into_inner().ok()?.map(|index| tensors[index].name.as_str())
    }

    /// Hashes every tensor that comes from a file against the manifest. Constants are hashed with their section.
    ///
    /// # Errors
    /// [`Error::Weights`] naming the first tensor that differs.
    pub fn verify(&self, threads: usize) -> Result<()> {
        let tensors = &self.artifact.manifest().weights.tensors;
        let wrong = Mutex::new(None::<usize>);
        for_each_parallel(tensors.len(), threads, |index| {
            let tensor = &tensors[index];
            if !matches!(tensor.at, TensorPlace::File(..)) {
                return;
            }
            let same = self.tensor(index as u32).is_ok_and(|b| blake3::hash(b).to_hex().as_str() == tensor.blake3);
            if !same && let Ok(mut wrong) = wrong.lock() {
                *wrong = Some(wrong.map_or(index, |w| w.min(index)));
            }
        });
        match wrong.into_inner() {
            Ok(None) => Ok(()),
            Ok(Some(index)) => Err(Error::Weights(format!(
                "tensor {} differs from the one the artifact was compiled for; give the same checkpoint with --weights-file or \
                 compile again",
                tensors[index].name
            ))),
            Err(_) => Err(Error::Weights("hashing failed".into())),
        }
    }
}

impl TensorSource for Source<'_> {
    fn tensor(&self, index: u32) -> Result<&[u8]> {
        let tensor = self.artifact.manifest().weights.tensors.get(index as usize);
        let bytes = tensor.and_then(|t| {
            let size = usize::try_from(t.dtype.byte_size(&t.shape).ok()?).ok()?;
            let (whole, offset): (&[u8], u64) = match t.at {
                TensorPlace::File(file, offset) => (self.files.get(file as usize)?, offset),
                TensorPlace::Constant(offset) => (self.artifact.constants(), offset),
                TensorPlace::Random => return None,
            };
            let start = usize::try_from(offset).ok()?;
            whole.get(start..start.checked_add(size)?)
        });
        bytes.ok_or_else(|| Error::Weights(format!("tensor {index} lies outside its file")))
    }
}

/// Where the first file of an artifact's checkpoint is: beside the artifact, else where the compiler last saw it.
pub fn source_file(artifact: &Artifact, cache: Option<&Path>) -> Option<PathBuf> {
    let file = artifact.manifest().weights.files.first()?;
    let beside = artifact.path().parent().map(|folder| folder.join(&file.name));
    let registered = cache.and_then(|cache| registered_source(cache, &file.id));
    let fits = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|m| m.len() == file.bytes);
    beside.into_iter().chain(registered).find(fits)
}

fn find_file(artifact: &Artifact, index: usize, options: &WeightOptions) -> Result<(PathBuf, FileMap)> {
    let weights = &artifact.manifest().weights;
    let file = &weights.files[index];
    if let Some(given) = &options.weights_file {
        let path = match (given.is_dir(), weights.files.len()) {
            (true, _) => given.join(&file.name),
            (false, 1) => given.clone(),
            (false, _) => given.with_file_name(&file.name),
        };
        let map = FileMap::open(&path)?;
        if map.len() as u64 == file.bytes {
            return Ok((path, map));
        }
        let path = path.display();
        return Err(Error::Weights(format!(
            "{path} has {} bytes, the artifact was compiled from {} with {} bytes",
            map.len(),
            file.name,
            file.bytes
        )));
    }
    let folder = match artifact.path().parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut candidates = vec![folder.join(&file.name)];
    candidates.extend(files_of_size(folder, file.bytes));
    candidates.extend(options.cache.as_deref().and_then(|cache| registered_source(cache, &file.id)));
    for path in candidates {
        if let Ok(map) = FileMap::open(&path)
            && map.len() as u64 == file.bytes
            && first_tensor_matches(artifact.manifest(), index, &map)
        {
            return Ok((path, map));
        }
    }
    Err(Error::Weights(format!(
        "{} ({} bytes) was not found beside {} nor in the cache; name it with --weights-file",
        file.name,
        file.bytes,
        artifact.path().display()
    )))
}

/// Checkpoint files of exactly `bytes` bytes in `folder`, by name.
fn files_of_size(folder: &Path, bytes: u64) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|m| m.is_file() && m.len() == bytes))
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf" || e == "safetensors"))
        .collect();
    found.sort();
    found
}

/// Tells a candidate from a stranger of the same size by its smallest tensor; the rest is hashed when packing.
fn first_tensor_matches(manifest: &Manifest, file: usize, map: &FileMap) -> bool {
    let sized = manifest.weights.tensors.iter().filter_map(|t| match t.at {
        TensorPlace::File(f, offset) if f as usize == file => Some((t.dtype.byte_size(&t.shape).ok()?, offset, t)),
        _ => None,
    });
    let Some((size, offset, tensor)) = sized.min_by_key(|(size, offset, _)| (*size, *offset)) else { return true };
    let range = (offset as usize).checked_add(size as usize).and_then(|end| map.get(offset as usize..end));
    range.is_some_and(|bytes| blake3::hash(bytes).to_hex().as_str() == tensor.blake3)
}

/// A hash of any number of bytes that threads can share: blake3 of the blake3 of each 4 MiB.
pub fn chunked_hash(bytes: &[u8], threads: usize) -> blake3::Hash {
    let count = bytes.len().div_ceil(HASH_CHUNK);
    let leaves: Vec<Mutex<[u8; 32]>> = (0..count).map(|_| Mutex::new([0; 32])).collect();
    for_each_parallel(count, threads, |index| {
        let chunk = &bytes[index * HASH_CHUNK..((index + 1) * HASH_CHUNK).min(bytes.len())];
        if let Ok(mut leaf) = leaves[index].lock() {
            *leaf = *blake3::hash(chunk).as_bytes();
        }
    });
    let mut hash = blake3::Hasher::new();
    for leaf in leaves {
        hash.update(&leaf.into_inner().unwrap_or([0; 32]));
    }
    hash.finalize()
}

/// 8 magic, u32 version, u32 0, u64 bytes, 64 hex key, 32 data hash, 8 header check; zeros to 4096.
fn pack_header(program: &Program, rank: u32, data_hash: &blake3::Hash) -> Vec<u8> {
    let mut header = Vec::with_capacity(PACK_HEADER_BYTES);
    header.extend(PACK_MAGIC);
    header.extend(PACK_VERSION.to_le_bytes());
    header.extend([0; 4]);
    header.extend(program.pack.bytes.to_le_bytes());
    header.extend(program.pack.key_of(rank).as_bytes());
    header.extend(data_hash.as_bytes());
    let check = blake3::hash(&header);
    header.extend(&check.as_bytes()[..8]);
    header.resize(PACK_HEADER_BYTES, 0);
    header
}

/// Writes a pack file for `rank` of `program`.
///
/// # Errors
/// If the disk is full or the folder cannot be written; nothing partial is left.
pub fn write_pack(path: &Path, program: &Program, rank: u32, bytes: &[u8], threads: usize) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create", e))?;
    }
    let header = pack_header(program, rank, &chunked_hash(bytes, threads));
    write_atomically(path, |out: &mut dyn Write| {
        out.write_all(&header)?;
        out.write_all(bytes)
    })
}

/// Maps a cached pack if it is whole and for `rank` of this program. Its data is hashed by [`verify_pack`], not here.
pub fn open_pack(path: &Path, program: &Program, rank: u32) -> Option<MappedRange> {
    let map = FileMap::open(path).ok()?;
    let size = PACK_HEADER_BYTES.checked_add(usize::try_from(program.pack.bytes).ok()?)?;
    if map.len() != size {
        return None;
    }
    let data_hash = blake3::Hash::from_bytes(*map.get(88..120)?.first_chunk()?);
    if map.get(..PACK_HEADER_BYTES)? != pack_header(program, rank, &data_hash) {
        return None;
    }
    MappedRange::new(Arc::new(map), PACK_HEADER_BYTES, program.pack.bytes as usize)
}

/// Hashes a cached pack's data against its header.
///
/// # Errors
/// [`Error::CheckFailed`] if the data differs, or the file is not a pack for `rank` of this program.
pub fn verify_pack(path: &Path, program: &Program, rank: u32, threads: usize) -> Result<()> {
    let pack = open_pack(path, program, rank);
    let whole = pack.as_ref().is_some_and(|pack| {
        pack_header(program, rank, &chunked_hash(pack.bytes(), threads)) == pack.header(PACK_HEADER_BYTES)
    });
    if whole { Ok(()) } else { Err(Error::CheckFailed(format!("{}: not the pack it says it is", path.display()))) }
}
