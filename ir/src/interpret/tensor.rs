//! Tensors of the interpreter and the named values it starts from.

use super::domain::{Domain, Fault};
use crate::DType;
use crate::codec;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Shared bytes: a range of any owner, such as a mapped file.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// A range of `owner`'s bytes; `None` if it lies outside.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Bytes> {
        (*owner).as_ref().get(range.clone())?;
        Some(Bytes { owner, range })
    }

    /// The bytes.
    pub fn get(&self) -> &[u8] {
        (*self.owner).as_ref().get(self.range.clone()).unwrap_or(&[])
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        let range = 0..bytes.len();
        Bytes { owner: Arc::new(bytes), range }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.range.len())
    }
}

/// Elements in row-major order. Weights stay as they were given until an op reads them.
#[derive(Clone, Debug)]
pub enum Data<V> {
    /// Values of the domain (real dtypes).
    Values(Arc<Vec<V>>),
    /// Exact integers (integer dtypes and bool).
    Ints(Arc<Vec<i64>>),
    /// Single-precision values of a weight.
    Single(Arc<Vec<f32>>),
    /// A weight in its stored form, decoded row by row when read.
    Encoded(Bytes),
}

/// A tensor with constant dims.
#[derive(Clone, Debug)]
pub struct Tensor<V> {
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: Data<V>,
}

impl<V: Copy> Tensor<V> {
    /// A tensor of domain values. The caller keeps `values.len()` equal to the product of `shape`.
    pub fn values(dtype: DType, shape: Vec<usize>, values: Vec<V>) -> Tensor<V> {
        Tensor { dtype, shape, data: Data::Values(Arc::new(values)) }
    }

    /// A tensor of integers. The caller keeps `ints.len()` equal to the product of `shape`.
    pub fn ints(dtype: DType, shape: Vec<usize>, ints: Vec<i64>) -> Tensor<V> {
        Tensor { dtype, shape, data: Data::Ints(Arc::new(ints)) }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The integers, if this is an integer or bool tensor.
    pub fn as_ints(&self) -> Option<&[i64]> {
        match &self.data {
            Data::Ints(v) => Some(v),
            _ => None,
        }
    }

    /// The domain values, if this tensor was computed or converted already (graph results always are).
    pub fn as_values(&self) -> Option<&[V]> {
        match &self.data {
            Data::Values(v) => Some(v),
            _ => None,
        }
    }

    /// All elements as domain values, decoded where they are stored; `None` for integers, and for numbers that the domain cannot hold.
    pub fn decoded<D: Domain<Value = V>>(&self) -> Option<Cow<'_, [V]>> {
        self.reals::<D>().ok()
    }

    pub(crate) fn integers(&self) -> Result<&[i64], Fault> {
        self.as_ints().ok_or_else(|| Fault::Message(format!("a {} tensor where integers are expected", self.dtype)))
    }

    /// Writes elements `start..start + out.len()` to `out`. `scratch` is reused between calls.
    pub(crate) fn read<D: Domain<Value = V>>(
        &self,
        start: usize,
        out: &mut [V],
        scratch: &mut Vec<f32>,
    ) -> Result<(), Fault> {
        let outside = || Fault::Message(format!("elements {start}..{} are outside the tensor", start + out.len()));
        let end = start.checked_add(out.len()).ok_or("range overflows")?;
        match &self.data {
            Data::Values(v) => out.copy_from_slice(v.get(start..end).ok_or_else(outside)?),
            Data::Single(v) => import::<D>(v.get(start..end).ok_or_else(outside)?, out)?,
            Data::Encoded(bytes) => {
                let codec_fault = |e: codec::CodecError| Fault::Message(e.to_string());
                scratch.resize(out.len(), 0.0);
                let from = codec::byte_len(self.dtype, start).map_err(codec_fault)?;
                let to = codec::byte_len(self.dtype, end).map_err(codec_fault)?;
                let stored = bytes.get().get(from..to).ok_or_else(outside)?;
                codec::decode(self.dtype, stored, scratch).map_err(codec_fault)?;
                import::<D>(scratch, out)?;
            }
            Data::Ints(_) => return Err(format!("a {} tensor where reals are expected", self.dtype).into()),
        }
        Ok(())
    }

    /// All elements as domain values.
    pub(crate) fn reals<D: Domain<Value = V>>(&self) -> Result<Cow<'_, [V]>, Fault> {
        if let Data::Values(v) = &self.data {
            return Ok(Cow::Borrowed(v));
        }
        let mut out = vec![D::ZERO; self.len()];
        self.read::<D>(0, &mut out, &mut Vec::new())?;
        Ok(Cow::Owned(out))
    }
}

fn import<D: Domain>(from: &[f32], to: &mut [D::Value]) -> Result<(), Fault> {
    for (x, v) in from.iter().zip(to) {
        *v = D::real(f64::from(*x)).ok_or_else(|| not_finite(f64::from(*x)))?;
    }
    Ok(())
}

fn not_finite(x: f64) -> Fault {
    Fault::Message(format!("the value {x} has no place in this domain; finite numbers are expected"))
}

/// Elements of a bound tensor, in any of the forms callers have at hand.
#[derive(Clone, Debug)]
pub enum BindingData {
    /// Reals.
    F64(Arc<Vec<f64>>),
    /// Reals, as single precision.
    F32(Arc<Vec<f32>>),
    /// Integers and bools.
    Ints(Arc<Vec<i64>>),
    /// Stored form of `dtype`, decoded through [`crate::codec`] when read.
    Encoded(DType, Bytes),
}

/// A value for an input, weight or state. Reals are taken as they are: a caller that binds a bf16 leaf gives bf16 values.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Dims, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub data: BindingData,
}

impl Binding {
    /// Reals.
    pub fn f64(shape: &[usize], values: Vec<f64>) -> Binding {
        Binding { shape: shape.to_vec(), data: BindingData::F64(Arc::new(values)) }
    }

    /// Single-precision reals.
    pub fn f32(shape: &[usize], values: Vec<f32>) -> Binding {
        Binding { shape: shape.to_vec(), data: BindingData::F32(Arc::new(values)) }
    }

    /// Integers or bools.
    pub fn ints(shape: &[usize], values: Vec<i64>) -> Binding {
        Binding { shape: shape.to_vec(), data: BindingData::Ints(Arc::new(values)) }
    }

    /// Stored bytes of `dtype`.
    pub fn encoded(shape: &[usize], dtype: DType, bytes: Bytes) -> Binding {
        Binding { shape: shape.to_vec(), data: BindingData::Encoded(dtype, bytes) }
    }

    fn len(&self) -> usize {
        match &self.data {
            BindingData::F64(v) => v.len(),
            BindingData::F32(v) => v.len(),
            BindingData::Ints(v) => v.len(),
            BindingData::Encoded(..) => self.shape.iter().product(),
        }
    }

    /// As a tensor of the leaf's dtype and shape.
    pub(crate) fn tensor<D: Domain>(&self, dtype: DType, shape: &[usize]) -> Result<Tensor<D::Value>, Fault> {
        let expected: usize = shape.iter().product();
        if self.shape != shape || self.len() != expected {
            return Err(format!(
                "bound to {} elements of shape {:?}; shape {shape:?} is expected",
                self.len(),
                self.shape
            )
            .into());
        }
        let mismatch = |found: &str| Fault::Message(format!("bound to {found}; {dtype} is expected"));
        let data = match &self.data {
            BindingData::F64(v) if dtype.is_float() => {
                let values: Option<Vec<D::Value>> = v.iter().map(|x| D::real(*x)).collect();
                Data::Values(Arc::new(values.ok_or("bound to a number that is not finite")?))
            }
            BindingData::F32(v) if dtype.is_float() => Data::Single(v.clone()),
            BindingData::F64(_) | BindingData::F32(_) => return Err(mismatch("reals")),
            BindingData::Ints(v) if !dtype.is_float() => {
                if let Some(n) = v.iter().find(|n| wrap(dtype, **n) != **n) {
                    return Err(format!("bound to {n}, which is not a {dtype}").into());
                }
                Data::Ints(v.clone())
            }
            BindingData::Ints(_) => return Err(mismatch("integers")),
            BindingData::Encoded(found, _) if *found != dtype => return Err(mismatch(found.name())),
            BindingData::Encoded(_, bytes) => {
                let size = codec::byte_len(dtype, expected).map_err(|e| Fault::Message(e.to_string()))?;
                if bytes.get().len() != size {
                    return Err(format!("bound to {} bytes; {size} are expected", bytes.get().len()).into());
                }
                if dtype.is_float() {
                    Data::Encoded(bytes.clone())
                } else {
                    Data::Ints(Arc::new(stored_ints(dtype, bytes.get())))
                }
            }
        };
        Ok(Tensor { dtype, shape: shape.to_vec(), data })
    }
}

/// Exact integers of little-endian storage: the codec goes through f32, which would round them.
fn stored_ints(dtype: DType, bytes: &[u8]) -> Vec<i64> {
    let word = |b: &[u8]| b.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte)) as i64;
    bytes.chunks_exact(dtype.block_bytes()).map(|b| wrap(dtype, word(b))).collect()
}

/// `n` wrapped to the width of an integer dtype; bool is 0 or 1.
pub(crate) fn wrap(dtype: DType, n: i64) -> i64 {
    match dtype {
        DType::I8 => i64::from(n as i8),
        DType::U8 => i64::from(n as u8),
        DType::I32 => i64::from(n as i32),
        DType::U32 => i64::from(n as u32),
        DType::Bool => i64::from(n != 0),
        _ => n,
    }
}

impl From<&Tensor<f64>> for Binding {
    /// A result as the next step's binding: how callers thread states. A stored weight stays encoded.
    fn from(t: &Tensor<f64>) -> Binding {
        let data = match &t.data {
            Data::Values(v) => BindingData::F64(v.clone()),
            Data::Ints(v) => BindingData::Ints(v.clone()),
            Data::Single(v) => BindingData::F32(v.clone()),
            Data::Encoded(bytes) => BindingData::Encoded(t.dtype, bytes.clone()),
        };
        Binding { shape: t.shape.clone(), data }
    }
}

/// Values of inputs, weights and states by name: one namespace. A name `NAME@r` stands for NAME on rank r.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    map: BTreeMap<String, Binding>,
}

impl Bindings {
    /// Without bindings.
    pub fn new() -> Bindings {
        Bindings::default()
    }

    /// Binds a name; the last binding counts.
    pub fn insert(&mut self, name: &str, binding: Binding) {
        self.map.insert(name.to_owned(), binding);
    }

    /// The binding of a name.
    pub fn get(&self, name: &str) -> Option<&Binding> {
        self.map.get(name)
    }

    /// The binding that rank `rank` alone has: `NAME@r`.
    pub fn on_rank(&self, name: &str, rank: usize) -> Option<&Binding> {
        self.map.get(&format!("{name}@{rank}"))
    }

    /// Binds a name on one rank, where it counts more than a binding of all ranks.
    pub fn insert_on_rank(&mut self, name: &str, rank: usize, binding: Binding) {
        self.map.insert(format!("{name}@{rank}"), binding);
    }

    /// Names and bindings in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Binding)> {
        self.map.iter().map(|(n, b)| (n.as_str(), b))
    }
}
