//! Runs tile programs without LLVM: every instruction on whole tiles, program after program, on byte buffers. It is the check of
//! GPU-shaped programs where there is no GPU, and therefore strict: tiles must obey the rules of GPU lowerings, accesses must stay
//! inside their buffers, and no program may touch what another program of the launch writes.

mod ranks;
mod trace;

pub use ranks::run_ranks;
pub use trace::{Access, AccessKind, trace_ranks};

use half::{bf16, f16};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use weldment_codegen::tile::{
    Address, Binary, Compare, Conversion, Elem, GridAxis, Inst, Kernel, Reduction, Stmt, TileType, Unary, V,
};

/// A buffer and, by byte, the launch and program that wrote it last.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Contents.
    pub bytes: Vec<u8>,
    writers: Vec<u64>,
}

impl Memory {
    /// A buffer with these contents.
    pub fn new(bytes: Vec<u8>) -> Memory {
        let writers = vec![0; bytes.len()];
        Memory { bytes, writers }
    }
}

/// Elements of a tile, row-major. f16 and bf16 are held as the f32 they stand for; integers sign-extended.
#[derive(Clone, Debug)]
enum Data {
    Float(Vec<f32>),
    Int(Vec<i64>),
}

type Tile = Rc<Data>;

/// Runs every program of `kernel`'s grid at `dims`. `arguments` name a buffer and a byte offset for each parameter; `launch`
/// numbers the launches on these buffers, from 1. Gives the bytes that all programs loaded, masked lanes apart.
///
/// # Errors
/// The first broken rule: a tile that GPUs do not take, an access outside its buffer, a race between programs.
pub fn run(
    kernel: &Kernel,
    dims: &BTreeMap<String, u64>,
    arguments: &[(usize, usize)],
    memory: &mut [Memory],
    launch: u64,
) -> Result<u64, String> {
    check_tiles(kernel)?;
    let programs = programs(kernel, dims)?;
    let memory = RefCell::new(memory);
    let mut loaded = 0;
    for (index, program) in programs.into_iter().enumerate() {
        let stamp = (launch << 32) + index as u64 + 1;
        let mut machine = Machine::new(kernel, dims, arguments, &memory, (program, stamp));
        loop {
            match machine.step() {
                Ok(Progress::Ran) => {}
                Ok(Progress::Over) => break,
                Ok(Progress::Waits) => {
                    return Err(format!("{} program {program:?} waits for another rank", kernel.name));
                }
                Err(e) => return Err(format!("{} program {program:?}: {e}", kernel.name)),
            }
        }
        loaded += machine.loaded.get();
    }
    Ok(loaded)
}

/// The programs of a grid, in the order in which they start.
fn programs(kernel: &Kernel, dims: &BTreeMap<String, u64>) -> Result<Vec<[u64; 3]>, String> {
    let size = |axis: &GridAxis| match axis.symbol {
        None => axis.mul,
        Some(s) => (dims[&kernel.symbols[s as usize]] * axis.mul).div_ceil(axis.div),
    };
    let [x, y, z] = [size(&kernel.grid[0]), size(&kernel.grid[1]), size(&kernel.grid[2])];
    if y > 65_535 || z > 65_535 {
        return Err(format!("a grid of {x} x {y} x {z}; 65535 is accepted along y and z"));
    }
    Ok((0..x * y * z).map(|index| [index % x, index / x % y, index / (x * y)]).collect())
}

/// Tiles of GPU programs have power-of-two dims and at most 64 registers of 4 bytes a thread.
fn check_tiles(kernel: &Kernel) -> Result<(), String> {
    weldment_codegen::tile::verify(kernel)?;
    for (i, t) in kernel.types.iter().enumerate() {
        let elements: u64 = t.shape.iter().map(|d| u64::from(*d)).product();
        if t.shape.iter().any(|d| !d.is_power_of_two()) || t.shape.len() > 4 {
            return Err(format!("%{i} is {t}; up to four power-of-two dims are accepted"));
        }
        // Predicates and index vectors are made where they are used.
        let held = if matches!(t.elem, Elem::I1 | Elem::I64) { 0 } else { elements * t.elem.bytes() };
        if held > u64::from(kernel.threads) * 256 {
            return Err(format!("%{i} is {t} in {} threads; 256 bytes a thread are accepted", kernel.threads));
        }
    }
    Ok(())
}

/// What one step of a program came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// An instruction was done.
    Ran,
    /// The next one waits for another rank.
    Waits,
    /// The program is over.
    Over,
}

/// A place in a program's structure.
enum Frame<'m> {
    Block { stmts: &'m [Stmt], at: usize },
    Loop { inst: &'m Inst, i: i64, end: i64 },
}

/// A store that other ranks have not seen yet: buffer, byte, and the bytes there.
type Flight = (usize, usize, Vec<u8>);

/// One program of a launch.
struct Machine<'m> {
    kernel: &'m Kernel,
    dims: &'m BTreeMap<String, u64>,
    arguments: &'m [(usize, usize)],
    memory: &'m RefCell<&'m mut [Memory]>,
    program: [u64; 3],
    stamp: u64,
    values: Vec<Option<Tile>>,
    frames: Vec<Frame<'m>>,
    /// Pushes under way, in the order of the program.
    flights: Vec<Flight>,
    loaded: Cell<u64>,
}

fn count(shape: &[u32]) -> usize {
    shape.iter().product::<u32>() as usize
}

/// Sign-extends the low bits of an integer of type `elem`; predicates are 0 or 1.
fn wrap(elem: Elem, x: i64) -> i64 {
    match elem {
        Elem::I1 => x & 1,
        Elem::I8 => i64::from(x as i8),
        Elem::I16 => i64::from(x as i16),
        Elem::I32 => i64::from(x as i32),
        _ => x,
    }
}

fn unsigned(elem: Elem, x: i64) -> u64 {
    match elem {
        Elem::I1 => x as u64 & 1,
        Elem::I8 => u64::from(x as u8),
        Elem::I16 => u64::from(x as u16),
        Elem::I32 => u64::from(x as u32),
        _ => x as u64,
    }
}

fn rounded(elem: Elem, x: f32) -> f32 {
    match elem {
        Elem::F16 => f16::from_f32(x).to_f32(),
        Elem::BF16 => bf16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Multi-index of a row-major place, by dim.
fn unravel(shape: &[u32], mut at: usize) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for (i, d) in shape.iter().enumerate().rev() {
        out[i] = at % *d as usize;
        at /= *d as usize;
    }
    out
}

/// Row-major place in `shape` of an index of a tile it is broadcast to.
fn ravel(shape: &[u32], index: &[usize]) -> usize {
    let skip = index.len() - shape.len();
    shape.iter().zip(&index[skip..]).fold(0, |at, (d, i)| at * *d as usize + if *d == 1 { 0 } else { *i })
}

impl<'m> Machine<'m> {
    fn new(
        kernel: &'m Kernel,
        dims: &'m BTreeMap<String, u64>,
        arguments: &'m [(usize, usize)],
        memory: &'m RefCell<&'m mut [Memory]>,
        (program, stamp): ([u64; 3], u64),
    ) -> Machine<'m> {
        let values = vec![None; kernel.types.len()];
        let frames = vec![Frame::Block { stmts: &kernel.body, at: 0 }];
        let (flights, loaded) = (Vec::new(), Cell::new(0));
        Machine { kernel, dims, arguments, memory, program, stamp, values, frames, flights, loaded }
    }

    fn ty(&self, v: V) -> &TileType {
        &self.kernel.types[v.0 as usize]
    }

    fn get(&self, v: V) -> Result<Tile, String> {
        self.values[v.0 as usize].clone().ok_or_else(|| format!("%{} has no value", v.0))
    }

    fn ints(&self, v: V) -> Result<Vec<i64>, String> {
        match &*self.get(v)? {
            Data::Int(x) => Ok(x.clone()),
            Data::Float(_) => Err(format!("%{} is {}, integers are expected", v.0, self.ty(v))),
        }
    }

    fn floats(&self, v: V) -> Result<Vec<f32>, String> {
        match &*self.get(v)? {
            Data::Float(x) => Ok(x.clone()),
            Data::Int(_) => Err(format!("%{} is {}, floats are expected", v.0, self.ty(v))),
        }
    }

    fn scalar(&self, v: V) -> Result<i64, String> {
        self.ints(v)?.first().copied().ok_or_else(|| "an empty tile".into())
    }

    /// Does the next instruction, or finds that it has to wait.
    fn step(&mut self) -> Result<Progress, String> {
        let Some(frame) = self.frames.pop() else { return Ok(Progress::Over) };
        match frame {
            Frame::Block { stmts, at } => {
                let Some(stmt) = stmts.get(at) else { return Ok(Progress::Ran) };
                if !self.ready(stmt)? {
                    self.frames.push(Frame::Block { stmts, at });
                    return Ok(Progress::Waits);
                }
                self.frames.push(Frame::Block { stmts, at: at + 1 });
                self.statement(stmt)?;
            }
            Frame::Loop { inst, i, end } => {
                let Inst::For { next, .. } = inst else { return Err("a loop that is none".into()) };
                let values = next.iter().map(|v| self.get(*v)).collect::<Result<Vec<_>, _>>()?;
                self.trip(inst, i, end, values);
            }
        }
        Ok(Progress::Ran)
    }

    /// Starts a trip of a loop with what it carries, or ends the loop.
    fn trip(&mut self, inst: &'m Inst, i: i64, end: i64, values: Vec<Tile>) {
        let Inst::For { step, index, carried, body, results, .. } = inst else { return };
        let to = if i < end { carried } else { results };
        for (v, x) in to.iter().zip(values) {
            self.values[v.0 as usize] = Some(x);
        }
        if i < end {
            self.values[index.0 as usize] = Some(Rc::new(Data::Int(vec![i])));
            self.frames.push(Frame::Loop { inst, i: i + step, end });
            self.frames.push(Frame::Block { stmts: body, at: 0 });
        }
    }

    fn statement(&mut self, stmt: &'m Stmt) -> Result<(), String> {
        match &stmt.inst {
            inst @ Inst::For { start, end, init, .. } => {
                let (start, end) = (self.scalar(*start)?, self.scalar(*end)?);
                let values = init.iter().map(|v| self.get(*v)).collect::<Result<Vec<_>, _>>()?;
                self.trip(inst, start, end, values);
            }
            Inst::If { condition, body } => {
                if self.scalar(*condition)? != 0 {
                    self.frames.push(Frame::Block { stmts: body, at: 0 });
                }
            }
            Inst::Store { address, value, mask } => self.store(address, *value, *mask)?,
            Inst::Push { address, value, mask } => self.push(address, *value, *mask)?,
            Inst::Signal { address, value, release } => self.signal(address, *value, *release)?,
            // It was found ready.
            Inst::Await { .. } => {}
            inst => {
                let v = stmt.value.ok_or("an instruction without a value")?;
                let data = self.instruction(inst, v)?;
                self.values[v.0 as usize] = Some(data);
            }
        }
        Ok(())
    }

    /// Buffer, byte of each element and whether it is masked in.
    fn places(&self, a: &Address, shape: &[u32], mask: Option<V>) -> Result<(usize, Vec<Option<i64>>), String> {
        let (buffer, start) = self.arguments[a.param.0 as usize];
        let base = start as i64 + self.scalar(a.offset)?;
        let gather = a.gather.map(|g| Ok::<_, String>((self.ints(g)?, self.ty(g).shape.clone()))).transpose()?;
        let mask = mask.map(|m| Ok::<_, String>((self.ints(m)?, self.ty(m).shape.clone()))).transpose()?;
        let place = |at: usize| {
            let index = unravel(shape, at);
            if mask.as_ref().is_some_and(|(m, s)| m[ravel(s, &index)] == 0) {
                return None;
            }
            let own: i64 = index.iter().zip(&a.strides).map(|(i, s)| *i as i64 * s).sum();
            Some(base + own + gather.as_ref().map_or(0, |(g, s)| g[ravel(s, &index)]))
        };
        Ok((buffer, (0..count(shape)).map(place).collect()))
    }

    fn range(&self, buffer: usize, at: i64, size: usize, param: &str) -> Result<std::ops::Range<usize>, String> {
        let len = self.memory.borrow()[buffer].bytes.len();
        match usize::try_from(at).ok().filter(|at| at + size <= len) {
            Some(at) => Ok(at..at + size),
            None => Err(format!("byte {at} of ${param}, whose buffer has {len}")),
        }
    }

    /// Bits of a tile's elements in memory; `None` for masked ones.
    fn bits(&self, address: &Address, ty: &TileType, mask: Option<V>) -> Result<Vec<Option<u64>>, String> {
        let (buffer, places) = self.places(address, &ty.shape, mask)?;
        let size = ty.elem.bytes() as usize;
        let param = &self.kernel.params[address.param.0 as usize].name;
        let read = |at: Option<i64>| {
            let Some(at) = at else { return Ok(None) };
            let range = self.range(buffer, at, size, param)?;
            let memory = &self.memory.borrow()[buffer];
            let writer = memory.writers[range.start];
            if writer >> 32 == self.stamp >> 32 && writer != self.stamp {
                return Err(format!("byte {at} of ${param} is written by another program"));
            }
            let mut raw = [0; 8];
            raw[..size].copy_from_slice(&memory.bytes[range]);
            Ok(Some(u64::from_le_bytes(raw)))
        };
        places.into_iter().map(read).collect()
    }

    fn load(&self, address: &Address, ty: &TileType, mask: Option<V>) -> Result<Data, String> {
        let bits = self.bits(address, ty, mask)?;
        self.loaded.set(self.loaded.get() + bits.iter().flatten().count() as u64 * ty.elem.bytes());
        let out = bits.into_iter().map(|x| x.unwrap_or(0));
        Ok(match ty.elem {
            Elem::F32 => Data::Float(out.map(|x| f32::from_bits(x as u32)).collect()),
            Elem::F16 => Data::Float(out.map(|x| f16::from_bits(x as u16).to_f32()).collect()),
            Elem::BF16 => Data::Float(out.map(|x| bf16::from_bits(x as u16).to_f32()).collect()),
            elem => Data::Int(out.map(|x| wrap(elem, x as i64)).collect()),
        })
    }

    /// Bits of the elements of a value, as memory holds them.
    fn stored(&self, value: V) -> Result<Vec<u64>, String> {
        let elem = self.ty(value).elem;
        Ok(match &*self.get(value)? {
            Data::Int(x) => x.iter().map(|x| *x as u64).collect(),
            Data::Float(x) => x
                .iter()
                .map(|x| match elem {
                    Elem::F16 => u64::from(f16::from_f32(*x).to_bits()),
                    Elem::BF16 => u64::from(bf16::from_f32(*x).to_bits()),
                    _ => u64::from(x.to_bits()),
                })
                .collect(),
        })
    }

    fn store(&mut self, address: &Address, value: V, mask: Option<V>) -> Result<(), String> {
        let ty = self.ty(value).clone();
        let (buffer, places) = self.places(address, &ty.shape, mask)?;
        let size = ty.elem.bytes() as usize;
        let bits = self.stored(value)?;
        let param = self.kernel.params[address.param.0 as usize].name.clone();
        for (bits, at) in bits.into_iter().zip(places) {
            let Some(at) = at else { continue };
            let range = self.range(buffer, at, size, &param)?;
            let memory = &mut self.memory.borrow_mut()[buffer];
            let writer = memory.writers[range.start];
            if writer >> 32 == self.stamp >> 32 && writer != self.stamp {
                return Err(format!("byte {at} of ${param} is written by two programs"));
            }
            memory.writers[range.clone()].fill(self.stamp);
            memory.bytes[range].copy_from_slice(&bits.to_le_bytes()[..size]);
        }
        Ok(())
    }

    fn instruction(&self, inst: &Inst, v: V) -> Result<Tile, String> {
        let ty = self.ty(v);
        let n = count(&ty.shape);
        Ok(Rc::new(match inst {
            Inst::Int(x) => Data::Int(vec![wrap(ty.elem, *x); n]),
            Inst::Float(x) => Data::Float(vec![rounded(ty.elem, *x as f32); n]),
            Inst::ProgramId(axis) => Data::Int(vec![self.program[*axis as usize] as i64]),
            Inst::Dim(s) => Data::Int(vec![self.dims[&self.kernel.symbols[*s as usize]] as i64]),
            Inst::Iota => Data::Int((0..n).map(|i| (i % ty.lanes() as usize) as i64).collect()),
            Inst::Unary(op, a) => Data::Float(self.floats(*a)?.into_iter().map(|x| unary(*op, x)).collect()),
            Inst::Binary(op, a, b) if ty.elem.is_float() => {
                let (a, b) = (self.floats(*a)?, self.floats(*b)?);
                Data::Float(a.iter().zip(&b).map(|(a, b)| float_binary(*op, *a, *b)).collect::<Result<_, _>>()?)
            }
            Inst::Binary(op, a, b) => {
                let (a, b) = (self.ints(*a)?, self.ints(*b)?);
                Data::Int(a.iter().zip(&b).map(|(a, b)| int_binary(ty.elem, *op, *a, *b)).collect::<Result<_, _>>()?)
            }
            Inst::Fma(a, b, c) => {
                let (a, b, c) = (self.floats(*a)?, self.floats(*b)?, self.floats(*c)?);
                Data::Float((0..n).map(|i| a[i].mul_add(b[i], c[i])).collect())
            }
            Inst::Compare(op, a, b) => Data::Int(match (&*self.get(*a)?, &*self.get(*b)?) {
                (Data::Float(a), Data::Float(b)) => {
                    a.iter().zip(b).map(|(a, b)| i64::from(compare(*op, a, b))).collect()
                }
                (Data::Int(a), Data::Int(b)) => a.iter().zip(b).map(|(a, b)| i64::from(compare(*op, a, b))).collect(),
                _ => return Err("a comparison of an integer with a float".into()),
            }),
            Inst::Select(c, a, b) => {
                let c = self.ints(*c)?;
                match (&*self.get(*a)?, &*self.get(*b)?) {
                    (Data::Float(a), Data::Float(b)) => {
                        Data::Float((0..n).map(|i| if c[i] != 0 { a[i] } else { b[i] }).collect())
                    }
                    (Data::Int(a), Data::Int(b)) => {
                        Data::Int((0..n).map(|i| if c[i] != 0 { a[i] } else { b[i] }).collect())
                    }
                    _ => return Err("a selection among integers and floats".into()),
                }
            }
            Inst::Convert(how, a) => self.convert(*how, *a, ty.elem)?,
            Inst::Bitcast(a) => match (&*self.get(*a)?, self.ty(*a).elem, ty.elem) {
                (Data::Int(x), Elem::I32, Elem::F32) => {
                    Data::Float(x.iter().map(|x| f32::from_bits(*x as u32)).collect())
                }
                (Data::Float(x), Elem::F32, Elem::I32) => {
                    Data::Int(x.iter().map(|x| i64::from(x.to_bits() as i32)).collect())
                }
                (_, from, to) => return Err(format!("{from:?} taken for {to:?}; only words are, on GPUs")),
            },
            Inst::Broadcast(a) => {
                let from = self.ty(*a).shape.clone();
                self.pick(*a, n, |i| ravel(&from, &unravel(&ty.shape, i)))?
            }
            Inst::Reshape(a) => {
                if count(&self.ty(*a).shape) != n {
                    return Err(format!("{} taken for {ty}", self.ty(*a)));
                }
                return self.get(*a);
            }
            Inst::Stack(parts) => match &*self.get(parts[0])? {
                Data::Float(_) => {
                    Data::Float(parts.iter().map(|p| self.floats(*p)).collect::<Result<Vec<_>, _>>()?.concat())
                }
                Data::Int(_) => Data::Int(parts.iter().map(|p| self.ints(*p)).collect::<Result<Vec<_>, _>>()?.concat()),
            },
            Inst::Row(a, row) => self.pick(*a, n, |i| *row as usize * n + i)?,
            Inst::Reduce(op, a, axis) => self.reduce(*op, *a, *axis as usize)?,
            Inst::Load { address, mask } | Inst::Arrive { address, mask, .. } => self.load(address, ty, *mask)?,
            Inst::Dot { acc, a, b } => self.dot(*acc, *a, *b)?,
            other => return Err(format!("{other:?} is not for GPUs")),
        }))
    }

    fn pick(&self, a: V, n: usize, from: impl Fn(usize) -> usize) -> Result<Data, String> {
        Ok(match &*self.get(a)? {
            Data::Float(x) => Data::Float((0..n).map(|i| x[from(i)]).collect()),
            Data::Int(x) => Data::Int((0..n).map(|i| x[from(i)]).collect()),
        })
    }

    fn convert(&self, how: Conversion, a: V, to: Elem) -> Result<Data, String> {
        let from = self.ty(a).elem;
        Ok(match how {
            Conversion::Float => Data::Float(self.floats(a)?.into_iter().map(|x| rounded(to, x)).collect()),
            Conversion::SignedToFloat => {
                Data::Float(self.ints(a)?.into_iter().map(|x| rounded(to, x as f32)).collect())
            }
            Conversion::FloatToSigned => Data::Int(self.floats(a)?.into_iter().map(|x| wrap(to, x as i64)).collect()),
            Conversion::Signed => Data::Int(self.ints(a)?.into_iter().map(|x| wrap(to, x)).collect()),
            Conversion::Unsigned => {
                Data::Int(self.ints(a)?.into_iter().map(|x| wrap(to, unsigned(from, x) as i64)).collect())
            }
        })
    }

    fn reduce(&self, op: Reduction, a: V, axis: usize) -> Result<Data, String> {
        let shape = &self.ty(a).shape;
        let (outer, size, inner) = (count(&shape[..axis]), shape[axis] as usize, count(&shape[axis + 1..]));
        let places = (0..outer * inner).map(|i| (i / inner * size * inner + i % inner, inner));
        Ok(match &*self.get(a)? {
            Data::Float(x) => Data::Float(
                places
                    .map(|(start, step)| {
                        let mut list: Vec<f32> = (0..size).map(|i| x[start + i * step]).collect();
                        while list.len() > 1 {
                            let (low, high) = list.split_at(list.len() / 2);
                            list = low
                                .iter()
                                .zip(high)
                                .map(|(a, b)| if op == Reduction::Sum { a + b } else { a.max(*b) })
                                .collect();
                        }
                        list[0]
                    })
                    .collect(),
            ),
            Data::Int(x) => Data::Int(
                places
                    .map(|(start, step)| {
                        let list = (0..size).map(|i| x[start + i * step]);
                        if op == Reduction::Sum { list.sum() } else { list.max().unwrap_or(0) }
                    })
                    .collect(),
            ),
        })
    }

    fn dot(&self, acc: V, a: V, b: V) -> Result<Data, String> {
        let (shape, k) = (&self.ty(acc).shape, self.ty(a).lanes() as usize);
        let rank = shape.len();
        let (m, n) = (shape[rank - 2] as usize, shape[rank - 1] as usize);
        if self.ty(a).elem != Elem::F32 && (m % 16 != 0 || n % 16 != 0 || k % 16 != 0) {
            return Err(format!("a dot of {} and {}; multiples of 16 are accepted", self.ty(a), self.ty(b)));
        }
        let (mut out, a, b) = (self.floats(acc)?, self.floats(a)?, self.floats(b)?);
        for (at, sum) in out.iter_mut().enumerate() {
            let (s, row, column) = (at / (m * n), at / n % m, at % n);
            for i in 0..k {
                *sum = a[(s * m + row) * k + i].mul_add(b[(s * k + i) * n + column], *sum);
            }
        }
        Ok(Data::Float(out))
    }
}

fn unary(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Sqrt => x.sqrt(),
        Unary::Round => x.round_ties_even(),
        Unary::Exp2 => x.exp2(),
        Unary::Reciprocal => x.recip(),
    }
}

fn float_binary(op: Binary, a: f32, b: f32) -> Result<f32, String> {
    Ok(match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        // As x86's: the second operand where either is NaN.
        Binary::Max => {
            if a > b {
                a
            } else {
                b
            }
        }
        Binary::Min => {
            if a < b {
                a
            } else {
                b
            }
        }
        other => return Err(format!("{other:?} of floats")),
    })
}

fn int_binary(elem: Elem, op: Binary, a: i64, b: i64) -> Result<i64, String> {
    let (ua, ub) = (unsigned(elem, a), unsigned(elem, b));
    let divided = |f: fn(u64, u64) -> Option<u64>| f(ua, ub).map(|x| x as i64).ok_or("a division by zero");
    Ok(wrap(
        elem,
        match op {
            Binary::Add => a.wrapping_add(b),
            Binary::Sub => a.wrapping_sub(b),
            Binary::Mul => a.wrapping_mul(b),
            Binary::Div => divided(u64::checked_div)?,
            Binary::Rem => divided(u64::checked_rem)?,
            Binary::Max => a.max(b),
            Binary::Min => a.min(b),
            Binary::And => a & b,
            Binary::Or => a | b,
            Binary::Xor => a ^ b,
            Binary::Shl => a.wrapping_shl(b as u32),
            Binary::Shr => (ua >> (ub & 63)) as i64,
        },
    ))
}

fn compare<T: PartialOrd>(op: Compare, a: &T, b: &T) -> bool {
    match op {
        Compare::Less => a < b,
        Compare::LessEqual => a <= b,
        Compare::Equal => a == b,
    }
}
