//! Instances of custom rules, whose left sides no pattern says: what their searches look for, and what only resembles it.

use super::draw::{Instance, Leaf};
use super::support::Random;
use crate::egraph::Data;
use egg::Id;
use weldment_ir::{Attr, DType, Dim, OpKind, TensorType};

/// Draws an instance of a custom rule.
pub(super) fn draw(rule: &str, random: &mut Random) -> Option<Instance> {
    let mut instance = Instance::new();
    match rule {
        "merge_qkv" => projections(&mut instance, random, false)?,
        "merge_gate_up" => projections(&mut instance, random, true)?,
        "merge_scaled_qkv" => products_of_codes(&mut instance, random, false)?,
        "merge_scaled_gate_up" => products_of_codes(&mut instance, random, true)?,
        "slice_of_slice" => slice_of_slice(&mut instance, random)?,
        "slice_of_concat" => slice_of_concat(&mut instance, random)?,
        "concat_of_slices" => concat_of_slices(&mut instance, random)?,
        _ => panic!("custom rule {rule} has no instances: add a function that draws them to `customs.rs`"),
    }
    Some(instance)
}

fn pick<T: Clone>(random: &mut Random, items: &[T]) -> T {
    items[random.below(items.len() as u64) as usize].clone()
}

/// A shape of rank 1 to 3 whose `axis` is constant.
fn shape(random: &mut Random) -> (Vec<Dim>, usize) {
    let rank = 1 + random.below(3) as usize;
    let axis = random.below(rank as u64) as usize;
    let dims = [Dim::Const(1), Dim::Const(4), Dim::Const(5), Dim::Const(8), Dim::sym("T")];
    let mut shape: Vec<Dim> = (0..rank).map(|_| pick(random, &dims)).collect();
    shape[axis] = Dim::Const(1 + random.below(5));
    (shape, axis)
}

/// The axis, or now and then another one.
fn near(random: &mut Random, axis: usize, rank: usize) -> i64 {
    (if random.below(4) == 0 { random.below(rank as u64) } else { axis as u64 }) as i64
}

fn slice_of_slice(instance: &mut Instance, random: &mut Random) -> Option<()> {
    let (mut dims, axis) = shape(random);
    dims[axis] = Dim::Const(4 + random.below(5));
    let dtype = pick(random, &[DType::F32, DType::F32, DType::BF16, DType::I32]);
    let mut at = instance.leaf(Leaf::Input, TensorType::new(dtype, dims.clone()))?;
    for _ in 0..2 + random.below(2) {
        let axis = near(random, axis, dims.len());
        let size = instance.ty(at)?.shape[axis as usize].constant()?;
        let start = random.below(size);
        let end = start + 1 + random.below(size - start);
        at = instance.op(OpKind::Slice, &[at], &[axis, start as i64, end as i64].map(Attr::Int))?;
    }
    instance.root = at;
    Some(())
}

fn slice_of_concat(instance: &mut Instance, random: &mut Random) -> Option<()> {
    let (mut dims, axis) = shape(random);
    let dtype = pick(random, &[DType::F32, DType::F32, DType::BF16, DType::I32]);
    let mut parts: Vec<Id> = Vec::new();
    for _ in 0..1 + random.below(3) {
        dims[axis] = Dim::Const(1 + random.below(4));
        parts.push(instance.leaf(Leaf::Input, TensorType::new(dtype, dims.clone()))?);
    }
    let joined = instance.op(OpKind::Concat, &parts, &[Attr::Int(axis as i64)])?;
    let other = near(random, axis, dims.len());
    let size = instance.ty(joined)?.shape[other as usize].constant()?;
    let start = random.below(size);
    let end = start + 1 + random.below(size - start);
    instance.root =
        instance.op(OpKind::Slice, &[joined], &[Attr::Int(other), Attr::Int(start as i64), Attr::Int(end as i64)])?;
    Some(())
}

fn concat_of_slices(instance: &mut Instance, random: &mut Random) -> Option<()> {
    let (mut dims, axis) = shape(random);
    dims[axis] = Dim::Const(4 + random.below(5));
    let dtype = pick(random, &[DType::F32, DType::F32, DType::BF16, DType::I32]);
    let ty = TensorType::new(dtype, dims.clone());
    let values = [instance.leaf(Leaf::Input, ty.clone())?, instance.leaf(Leaf::Input, ty)?];
    let sliced = near(random, axis, dims.len());
    let size = dims[sliced as usize].constant()?;
    let mut at = random.below(size);
    let mut parts: Vec<Id> = Vec::new();
    while at < size && parts.len() < 4 {
        let start = if random.below(6) == 0 { random.below(size) } else { at };
        let end = start + 1 + random.below(size - start);
        let x = values[usize::from(random.below(6) == 0)];
        let attrs = [Attr::Int(sliced), Attr::Int(start as i64), Attr::Int(end as i64)];
        parts.push(instance.op(OpKind::Slice, &[x], &attrs)?);
        at = end;
    }
    instance.root = instance.op(OpKind::Concat, &parts, &[Attr::Int(axis as i64)])?;
    Some(())
}

fn projections(instance: &mut Instance, random: &mut Random, gate: bool) -> Option<()> {
    let depth = pick(random, &[2, 4, 32]);
    let mut dims: Vec<Dim> = (0..random.below(3)).map(|_| pick(random, &[Dim::sym("T"), Dim::Const(2)])).collect();
    dims.push(Dim::Const(depth));
    let dtype = pick(random, &[DType::F32, DType::F32, DType::BF16]);
    let x = instance.leaf(Leaf::Input, TensorType::new(dtype, dims))?;
    let stored = if depth == 32 { pick(random, &[DType::F32, DType::Q4_1, DType::BF16]) } else { DType::F32 };
    let result = pick(random, &[DType::F32, DType::F32, DType::BF16]);
    let mut members = Vec::new();
    for _ in 0..2 + random.below(3) {
        // Small numbers, so that rows and biases of different members may make up for each other.
        let rows = if random.below(3) == 0 { 1 + random.below(3) } else { 8 + random.below(8) };
        let other = random.below(6) == 0;
        let stored = if other { pick(random, &[DType::F32, DType::BF16]) } else { stored };
        let leaf = |random: &mut Random| if random.below(6) == 0 { Leaf::Input } else { Leaf::Weight };
        let w = instance.leaf(leaf(random), TensorType::fixed(stored, &[rows, depth]))?;
        let biased = random.below(3) > 0;
        let attrs = [Attr::DType(result)];
        members.push(if biased {
            let wide = if random.below(6) == 0 { pick(random, &[1, 1, 2, 3]) } else { rows };
            let b = instance.leaf(leaf(random), TensorType::fixed(dtype, &[wide]))?;
            instance.op(OpKind::MatmulAdd, &[x, w, b], &attrs)?
        } else {
            instance.op(OpKind::Matmul, &[x, w], &attrs)?
        });
    }
    for (i, id) in members.iter().enumerate() {
        if let Data::Value(v) = &mut instance.net[*id].data {
            v.order = Some(i as u32);
            v.gate = gate;
        }
    }
    instance.root = *members.first()?;
    Some(())
}

fn products_of_codes(instance: &mut Instance, random: &mut Random, gate: bool) -> Option<()> {
    let depth = pick(random, &[4, 8, 32]);
    let mut dims: Vec<Dim> = (0..random.below(3)).map(|_| pick(random, &[Dim::sym("T"), Dim::Const(2)])).collect();
    dims.push(Dim::Const(depth));
    let dtype = pick(random, &[DType::F8E4M3, DType::F8E4M3, DType::F8E4M3Fnuz]);
    let codes = instance.leaf(Leaf::Input, TensorType::new(dtype, dims.clone()))?;
    let group = pick(random, &[depth, 2]);
    *dims.last_mut()? = Dim::Const(depth / group);
    let scales = instance.leaf(Leaf::Input, TensorType::new(DType::F32, dims))?;
    let (block, columns) = (pick(random, &[1, 2, 4]), pick(random, &[depth, group]));
    let result = pick(random, &[DType::F32, DType::F32, DType::BF16]);
    let mut members = Vec::new();
    for _ in 0..2 + random.below(3) {
        // Now and then rows that end inside a block.
        let rows = if random.below(3) == 0 { 4 + random.below(5) } else { 4 + 4 * random.below(2) };
        let stored = if random.below(6) == 0 { DType::F8E4M3 } else { dtype };
        let leaf = |random: &mut Random| if random.below(6) == 0 { Leaf::Input } else { Leaf::Weight };
        let w = instance.leaf(leaf(random), TensorType::fixed(stored, &[rows, depth]))?;
        let ty = TensorType::fixed(DType::F32, &[rows.div_ceil(block), depth / columns]);
        let w_scales = instance.leaf(leaf(random), ty)?;
        let attrs = [Attr::Int(block as i64), Attr::Int(columns as i64), Attr::DType(result)];
        members.push(instance.op(OpKind::ScaledMatmul, &[codes, scales, w, w_scales], &attrs)?);
    }
    for (i, id) in members.iter().enumerate() {
        if let Data::Value(v) = &mut instance.net[*id].data {
            v.order = Some(i as u32);
            v.gate = gate;
        }
    }
    instance.root = *members.first()?;
    Some(())
}
