//! The op table: every op of the graph IR, declared once.
//!
//! A row gives the doc line, variant, text name, operands (a trailing `..` makes the last one variadic), attributes,
//! results, category and shape rule, and of a fused op the ops that it is made of. Beside each operand and result stands the pattern of its
//! axes ([`crate::signature`]). The enum, the parser, the printer, the e-graph language, the arity check, the
//! docs page and the interpreter's exhaustive match all follow from it.

use crate::DType;
use crate::attr::{Attr, AttrKind, AttrValue, Real};
use crate::error::IrError;
use crate::shape_rules as rule;
use crate::types::{Shape, TensorType};
use std::fmt;
use std::sync::Arc;
use weldment_artifact::InputRole;

/// Broad behaviour that passes may rely on without naming ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Category {
    /// No operands: input, weight, state, constant.
    Leaf,
    /// Each result element depends on the operand elements at the same (broadcast) place.
    Elementwise,
    /// Moves or renames elements, computes nothing.
    View,
    /// Reduces or normalises along an axis.
    Reduction,
    /// Contracts operands.
    Contraction,
    /// Indexed reads and position-dependent ops.
    Indexed,
    /// Gives a new version of a state operand (operand 0).
    StateWrite,
    /// Reads what other ranks hold, or depends on the rank.
    Collective,
}

/// What the table says of one op.
#[derive(Debug)]
pub struct OpInfo {
    /// Text name.
    pub name: &'static str,
    /// Doc lines.
    pub doc: &'static str,
    /// Operand names.
    pub operands: &'static [&'static str],
    /// True if the last operand may repeat.
    pub variadic: bool,
    /// Attribute names and kinds, in order.
    pub attrs: &'static [(&'static str, AttrKind)],
    /// Values of the attributes that a text may leave out, in the same order.
    pub defaults: fn() -> Vec<Option<Attr>>,
    /// Result names.
    pub results: &'static [&'static str],
    /// The axes of each operand: [`crate::signature`] says how to read them.
    pub operand_patterns: &'static [&'static str],
    /// The axes of each result.
    pub result_patterns: &'static [&'static str],
    /// Of a fused op: the ops that it does in one, in order.
    pub parts: &'static [OpKind],
    /// Behaviour.
    pub category: Category,
}

macro_rules! ops {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal ($($operand:ident $pattern:literal),* $(; $rest:ident $rest_pattern:literal ..)?)
        {$($attr:ident: $ty:ty $(= $default:expr)?),*} -> ($($result:ident $result_pattern:literal),+)
        $category:ident $rule:ident $(of $($part:ident)+)?;)*) => {
        /// An op with its attributes. See the table in this file (and docs/ops.md) for semantics.
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Op { $($(#[doc = $doc])+ $variant {$(
            #[doc = concat!("Attribute `", stringify!($attr), "`.")] $attr: $ty),*},)* }

        /// An op without its attributes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OpKind { $($(#[doc = $doc])+ $variant,)* }

        impl OpKind {
            /// Every op, in table order.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$variant,)*];

            /// The table row.
            pub fn info(self) -> &'static OpInfo {
                match self { $(OpKind::$variant => {
                    const INFO: OpInfo = OpInfo {
                        name: $name, doc: concat!($($doc, "\n"),+),
                        operands: &[$(stringify!($operand),)* $(stringify!($rest),)?],
                        variadic: false $(|| { let _ = stringify!($rest); true })?,
                        attrs: &[$((stringify!($attr), <$ty as AttrValue>::KIND)),*],
                        defaults: || vec![$(None::<$ty> $(.or(Some($default)))? .map(|v| v.to_attr())),*],
                        results: &[$(stringify!($result)),+],
                        operand_patterns: &[$($pattern,)* $($rest_pattern,)?],
                        result_patterns: &[$($result_pattern),+],
                        parts: &[$($(OpKind::$part),+)?],
                        category: Category::$category,
                    };
                    &INFO
                })* }
            }
        }

        impl Op {
            /// The op without attributes.
            pub fn kind(&self) -> OpKind { match self { $(Op::$variant { .. } => OpKind::$variant,)* } }

            /// Attribute values in table order.
            pub fn attrs(&self) -> Vec<Attr> {
                match self { $(Op::$variant { $($attr),* } => vec![$($attr.to_attr()),*],)* }
            }

            /// Builds an op from dynamic attributes in table order.
            ///
            /// # Errors
            /// If the number or kind of attributes is not the table's.
            pub fn from_attrs(kind: OpKind, attrs: &[Attr]) -> Result<Op, IrError> {
                let info = kind.info();
                let wrong = |message: String| IrError::InvalidOp { op: info.name, message };
                if attrs.len() != info.attrs.len() {
                    return Err(wrong(format!("{} attributes given, {} expected", attrs.len(), info.attrs.len())));
                }
                let mut at = 0usize;
                let mut next = || { at += 1; (&attrs[at - 1], info.attrs[at - 1]) };
                let _ = &mut next;
                match kind { $(OpKind::$variant => Ok(Op::$variant { $($attr: {
                    let (value, (name, kind)) = next();
                    <$ty as AttrValue>::from_attr(value)
                        .ok_or_else(|| wrong(format!("attribute {name} is {value}, a {kind:?} is expected")))?
                }),* }),)* }
            }

            /// Result types for operand types: arity, then the row's shape rule.
            ///
            /// # Errors
            /// Says which operand or attribute was found and what would be accepted.
            pub fn infer(&self, operands: &[TensorType]) -> Result<Vec<TensorType>, IrError> {
                self.kind().check_arity(operands.len())?;
                let types = match self { $(Op::$variant { .. } => rule::$rule(self, operands),)* };
                types.map_err(|message| IrError::InvalidOp { op: self.kind().info().name, message })
            }
        }
    };
}

ops! {
    /// A tensor given at every step, in a `role` (`plain` if none is stated) by which a session knows what it is.
    Input "input" () {name: Arc<str>, dtype: DType, shape: Shape, role: InputRole = InputRole::Plain} -> (out "*") Leaf leaf;
    /// A constant tensor of the checkpoint; `name` is its canonical tensor name.
    Weight "weight" () {name: Arc<str>, dtype: DType, shape: Shape} -> (out "*") Leaf leaf;
    /// A tensor that outlives the step (a KV cache); this is the version at the step's start.
    State "state" () {name: Arc<str>, dtype: DType, shape: Shape} -> (out "*") Leaf leaf;
    /// A scalar constant.
    Constant "constant" () {value: Real, dtype: DType} -> (out "*") Leaf constant;
    /// Rotary angles, f32 [positions, dim]: cos of position * frequency[i] for i < dim/2, then sin. frequency[i] = theta^(-2i/dim),
    /// divided by `factors[i]` where that weight operand is given.
    /// Llama 3 scaling applies when factor != 1: wavelengths over original/low are divided by factor, those under original/high kept,
    /// those between interpolated (Llama 3.1 reference, as in transformers' modeling_rope_utils).
    RopeTable "rope_table" (; factors "!" ..) {positions: i64, dim: i64, theta: Real, factor: Real, low: Real, high: Real, original: i64} -> (out "*") Leaf rope_table;
    /// These numbers, f32 [count].
    Numbers "numbers" () {values: Vec<Real>} -> (out "*") Leaf numbers;
    /// 0, 1, 2, ..., size - 1, i32 [size].
    Iota "iota" () {size: i64} -> (out "*") Leaf iota;

    /// a + b, numpy broadcasting.
    Add "add" (a "..m", b "..m") {} -> (out "..m") Elementwise arithmetic;
    /// a - b.
    Sub "sub" (a "..m", b "..m") {} -> (out "..m") Elementwise arithmetic;
    /// a * b.
    Mul "mul" (a "..m", b "..m") {} -> (out "..m") Elementwise arithmetic;
    /// a / b.
    Div "div" (a "..m", b "..m") {} -> (out "..m") Elementwise arithmetic;
    /// The larger of a and b.
    Maximum "maximum" (a "..m", b "..m") {} -> (out "..m") Elementwise arithmetic;
    /// The smaller of a and b.
    Minimum "minimum" (a "..m", b "..m") {} -> (out "..m") Elementwise arithmetic;
    /// a < b as bool.
    Less "less" (a "..m", b "..m") {} -> (out "..m") Elementwise compare;
    /// b where condition (bool) holds, else c.
    Select "select" (condition "..m", b "..m", c "..m") {} -> (out "..m") Elementwise select;
    /// -a.
    Neg "neg" (a "..m") {} -> (out "..m") Elementwise float_unary;
    /// e^a.
    Exp "exp" (a "..m") {} -> (out "..m") Elementwise float_unary;
    /// a / (1 + e^-a).
    Silu "silu" (a "..m") {} -> (out "..m") Elementwise float_unary;
    /// Gaussian error linear unit, tanh form.
    Gelu "gelu" (a "..m") {} -> (out "..m") Elementwise float_unary;
    /// tanh a.
    Tanh "tanh" (a "..m") {} -> (out "..m") Elementwise float_unary;
    /// 1 / (1 + e^-a).
    Sigmoid "sigmoid" (a "..m") {} -> (out "..m") Elementwise float_unary;
    /// Square root; NaN below 0.
    Sqrt "sqrt" (a "..m") {} -> (out "..m") Elementwise float_unary;
    /// 1 / sqrt a.
    Rsqrt "rsqrt" (a "..m") {} -> (out "..m") Elementwise float_unary;
    /// Rounds to `dtype` (nearest even; saturating for f8; to q8a: blocks of 32 along the last dim, d = amax/127, high = round(a/d), low = round(254 (a/d - high))). From a block format: dequantises.
    Cast "cast" (a "..m") {dtype: DType} -> (out "..m") Elementwise cast;

    /// Sum along `axis`, kept with size 1.
    ReduceSum "reduce_sum" (a "*") {axis: i64} -> (out "*") Reduction reduce;
    /// Mean along `axis`, kept with size 1.
    ReduceMean "reduce_mean" (a "*") {axis: i64} -> (out "*") Reduction reduce;
    /// Maximum along `axis`, kept with size 1.
    ReduceMax "reduce_max" (a "*") {axis: i64} -> (out "*") Reduction reduce;
    /// e^(a - max) / sum, along the last dim.
    Softmax "softmax" (a "..m !") {} -> (out "..m !") Reduction float_unary;
    /// x * rsqrt(mean(x^2, last dim) + eps) * w, w over the last dim; computed in f32, rounded to `dtype` once.
    RmsNorm "rms_norm" (x "..m !", w "!") {eps: Real, dtype: DType} -> (out "..m !") Reduction rms_norm;
    /// sum = x + residual (in residual's dtype), norm = rms_norm(sum, w).
    AddRmsNorm "add_rms_norm" (x "..m !", residual "..m !", w "!") {eps: Real, dtype: DType} -> (norm "..m !", sum "..m !") Reduction add_rms_norm of Add RmsNorm;

    /// x [.., K] cut into groups of `group` elements along K (K itself: one group a token), each with a scale: codes in `dtype`, scales [.., K / group].
    /// f8e4m3, f8e4m3fnuz: scale = amax / largest(dtype), in f32, as transformers and vLLM quantise activations as they come; code = x / scale, both rounded to
    /// nearest even. A group whose scale is below f32's normals, one of zeros too, has scale 0 and codes 0. f4e2m1, groups of 32 (OCP Microscaling Formats 1.0,
    /// section 6.3): scale = 2^(floor(log2 amax) - 2) as f8e8m0, its exponent in -127..=127 and -127 for zeros; code = x / scale, nearest even, saturating. x is finite.
    Quantise "quantise" (x "..m k") {dtype: DType, group: i64} -> (codes "..m k", scales "..m k") Reduction quantise;
    /// The norm x * rsqrt(mean(x^2, last dim) + eps) * w in f32, not rounded, quantised as `quantise` says; beside it `norm`, rounded to `dtype`.
    RmsNormQuantise "rms_norm_quantise" (x "..m !", w "!") {eps: Real, dtype: DType, format: DType, group: i64} -> (codes "..m !", scales "..m !", norm "..m !") Reduction rms_norm_quantise of RmsNorm Quantise;
    /// sum = x + residual (in residual's dtype), then rms_norm_quantise(sum, w).
    AddRmsNormQuantise "add_rms_norm_quantise" (x "..m !", residual "..m !", w "!") {eps: Real, dtype: DType, format: DType, group: i64} -> (codes "..m !", scales "..m !", norm "..m !", sum "..m !") Reduction add_rms_norm_quantise of Add RmsNorm Quantise;

    /// The same elements in row-major order under another shape.
    Reshape "reshape" (a "*") {shape: Shape} -> (out "*") View reshape;
    /// Dims permuted: result dim i is operand dim permutation[i].
    Transpose "transpose" (a "*") {permutation: Vec<i64>} -> (out "*") View transpose;
    /// Elements start..end along `axis`.
    Slice "slice" (a "*") {axis: i64, start: i64, end: i64} -> (out "*") View slice;
    /// Operands joined along `axis`.
    Concat "concat" (; parts "*" ..) {axis: i64} -> (out "*") View concat;
    /// Size-1 dims (and missing leading ones) repeated to `shape`.
    Broadcast "broadcast" (a "..m") {shape: Shape} -> (out "..m") View broadcast;

    /// x [.., K] times w [N, K] transposed: out [.., N], sums in f32 (i32 within a block and plane where x is q8a), rounded to `dtype`.
    Matmul "matmul" (x "..m +k", w "n +k") {dtype: DType} -> (out "..m n") Contraction matmul;
    /// matmul(x, w) + addend, the addend broadcast over leading dims, rounded once.
    MatmulAdd "matmul_add" (x "..m !k", w "n !k", addend "..m n") {dtype: DType} -> (out "..m n") Contraction matmul_add of Matmul Add;
    /// silu(matmul(x, w_gate)) * matmul(x, w_up), rounded once.
    MatmulSiluMul "matmul_silu_mul" (x "..m !k", w_gate "n !k", w_up "n !k") {dtype: DType} -> (out "..m n") Contraction matmul_silu_mul of Matmul SiluMul;
    /// FP8 codes [.., K] with scales f32 [.., G], one for each K / G elements, times FP8 weights w [N, K] transposed, of which every `rows` x `columns` block has
    /// one scale in w_scales f32 [ceil(N / rows), K / columns]: out [.., N]. Products are summed in f32 over each run of K under one pair of scales, multiplied by
    /// both, added up, and rounded to `dtype` once. rows = N: a scale a tensor (columns = K); rows = 1: a scale an output channel.
    ScaledMatmul "scaled_matmul" (codes "..m +k", scales "..m +k", w "n +k", w_scales "n +k") {rows: i64, columns: i64, dtype: DType} -> (out "..m n") Contraction scaled_matmul;
    /// silu(gate) * up, rounded once.
    SiluMul "silu_mul" (gate "..m", up "..m") {dtype: DType} -> (out "..m") Elementwise silu_mul of Silu Mul;

    /// Rows of `table` [V, H] picked by integer `indices` [..]: out [.., H] in `dtype`.
    Gather "gather" (table "^indices h", indices "..m") {dtype: DType} -> (out "..m h") Indexed gather;
    /// Rotary embedding of x [T, H, D] by table rows positions [T] of table [P, R], R <= D, the first R elements of each head:
    /// pairs (i, i + R/2), or (2i, 2i + 1) when interleaved; (a, b) -> (a cos - b sin, b cos + a sin).
    Rope "rope" (x "t h !", positions "t", table "^positions !") {interleaved: bool} -> (out "t h !") Indexed rope;
    /// Writes x [T, H, D] into a paged cache at each token's block and slot: block = block_tables[sequence_ids[t], positions[t] / S], slot = positions[t] % S.
    /// The cache is [N, H, S, D], or [N, H, D, S] when transposed. A block of -1 drops the write.
    CacheWrite "cache_write" (cache "^block_tables h !slot !", x "! h !", positions "!", sequence_ids "!", block_tables "! !") {transposed: bool} -> (out "! h !slot !") StateWrite cache_write;
    /// rope, then cache_write.
    RopeCacheWrite "rope_cache_write" (cache "^block_tables h !slot !", x "! h !", positions "!", table "^positions !", sequence_ids "!", block_tables "! !") {interleaved: bool, transposed: bool} -> (out "! h !slot !") StateWrite rope_cache_write of Rope CacheWrite;
    /// Causal attention over a paged cache: q [T, Hq, D], k_cache [N, Hkv, D, S], v_cache [N, Hkv, S, D]; query head h reads KV head h / (Hq / Hkv);
    /// token t sees positions 0..=positions[t] of its sequence, of those the last `window` where that is not 0; softmax of scale * q.k; out [T, Hq, D],
    /// rounded to `dtype`.
    Attention "attention" (q "t h !d", k_cache "^block_tables h !d !slot", v_cache "^block_tables h !slot !", positions "t", sequence_ids "t", block_tables "! !") {scale: Real, dtype: DType, window: i64 = 0} -> (out "t h !") Contraction attention;
    /// Logits of a sparse attention's indexer: q [T, H, D], weights [T, H], keys a paged cache [N, 1, D, S]; out f32 [T, C], `columns` being [C]:
    /// out[t, s] = sum over h of weights[t, h] * max(0, q[t, h] . key of position s of the token's sequence) for s <= positions[t], 0 elsewhere
    /// (a NaN product counts as 0). Rows with positions[t] < skip are 0 throughout and read no keys.
    IndexScores "index_scores" (q "t !h !d", weights "t !", keys "^block_tables ! !d !slot", positions "t", sequence_ids "t", block_tables "! !") {columns: Shape, skip: i64} -> (out "t !c") Contraction index_scores;
    /// The window of token t: the columns s <= positions[t] of scores f32 [T, C], positions[t] < C. out i32 [T, k]: the k highest of the window, ascending by column,
    /// -1 after them; ties go to the lower column. A window of at most k columns is taken whole, whatever its scores. -0 equals +0; NaN is over every number.
    Topk "topk" (scores "t <positions", positions "t") {k: i64} -> (out "t !") Indexed topk;
    /// out[t, j] = j where j <= positions[t], else -1; i32 [T, k]: what `topk` gives where windows fit.
    Window "window" (positions "t") {k: i64} -> (out "t !") Indexed window;
    /// `attention` in which token t sees only the positions indices[t, j] (i32 [T, K]) in 0..=positions[t]; other entries are ignored. All heads share the row;
    /// callers name a position at most once in a row. A row that sees nothing gives 0.
    SparseAttention "sparse_attention" (q "t h !d", k_cache "^block_tables h !d !slot", v_cache "^block_tables h !slot !", indices "t !", positions "t", sequence_ids "t", block_tables "! !") {scale: Real, dtype: DType} -> (out "t h !") Contraction sparse_attention;

    /// This rank's part of a tensor that all ranks hold: `axis` cut into `parts` equal ones, of which rank r takes part r / replicas. The world has parts * replicas
    /// ranks.
    Shard "shard" (a "..!") {axis: i64, parts: i64, replicas: i64} -> (out "..!") Collective shard;
    /// `gather` from a table of which each of `world` ranks holds an equal part of the rows, in order: indices [..] into the whole table; rows of other ranks' parts
    /// are 0. Their sum over ranks is the gather from the whole.
    GatherPart "gather_part" (table "^indices h", indices "..m") {world: i64, dtype: DType} -> (out "..m h") Collective gather_part;
    /// The sum of x over `world` ranks, the same bits on each: added in f32 in the order of ranks, rounded to x's dtype once.
    AllReduce "all_reduce" (x "..m") {world: i64} -> (out "..m") Collective all_reduce;
    /// Every rank's x, joined along `axis` in the order of ranks.
    AllGather "all_gather" (x "..!") {axis: i64, world: i64} -> (out "..!") Collective all_gather;
    /// This rank's part of `all_reduce` of x: `axis` cut into `world` equal parts.
    ReduceScatter "reduce_scatter" (x "..!") {axis: i64, world: i64} -> (out "..!") Collective reduce_scatter;
    /// sum = all_reduce(x), norm = rms_norm(sum, w): added in f32 in the order of ranks and rounded to x's dtype once; the norm reads the rounded sum.
    AllReduceRmsNorm "all_reduce_rms_norm" (x "..m !", w "!") {world: i64, eps: Real, dtype: DType} -> (norm "..m !", sum "..m !") Collective all_reduce_rms_norm of AllReduce RmsNorm;
    /// sum = all_reduce(x) + residual, norm = rms_norm(sum, w): ranks in order, then the residual, added in f32 and rounded to the residual's dtype once;
    /// the norm reads the rounded sum.
    AllReduceAddRmsNorm "all_reduce_add_rms_norm" (x "..m !", residual "..m !", w "!") {world: i64, eps: Real, dtype: DType} -> (norm "..m !", sum "..m !") Collective all_reduce_add_rms_norm of AllReduce Add RmsNorm;
    /// sum = all_reduce(x), then rms_norm_quantise(sum, w): the norm of the rounded sum is quantised before it is rounded.
    AllReduceRmsNormQuantise "all_reduce_rms_norm_quantise" (x "..m !", w "!") {world: i64, eps: Real, dtype: DType, format: DType, group: i64} -> (codes "..m !", scales "..m !", norm "..m !", sum "..m !") Collective all_reduce_rms_norm_quantise of AllReduce RmsNorm Quantise;
    /// sum = all_reduce(x) + residual, rounded once, then rms_norm_quantise(sum, w).
    AllReduceAddRmsNormQuantise "all_reduce_add_rms_norm_quantise" (x "..m !", residual "..m !", w "!") {world: i64, eps: Real, dtype: DType, format: DType, group: i64} -> (codes "..m !", scales "..m !", norm "..m !", sum "..m !") Collective all_reduce_add_rms_norm_quantise of AllReduce Add RmsNorm Quantise;
}

impl Op {
    /// An input that is the caller's business.
    pub fn input(name: &str, dtype: DType, shape: Shape) -> Op {
        Op::Input { name: name.into(), dtype, shape, role: InputRole::Plain }
    }
}

impl OpKind {
    /// The op of that text name.
    ///
    /// # Errors
    /// If the table has none.
    pub fn from_name(name: &str) -> Result<OpKind, IrError> {
        OpKind::ALL.iter().copied().find(|k| k.info().name == name).ok_or_else(|| IrError::UnknownOp(name.to_owned()))
    }

    /// Does the op do all of these: is it one of them alone, or are they among its parts?
    pub fn does_all(self, kinds: &[OpKind]) -> bool {
        let parts = self.info().parts;
        kinds.iter().all(|kind| *kind == self || parts.contains(kind))
    }

    /// Checks an operand count against the table.
    ///
    /// # Errors
    /// If it is not accepted.
    pub fn check_arity(self, found: usize) -> Result<(), IrError> {
        let info = self.info();
        let fixed = info.operands.len() - usize::from(info.variadic);
        if found == fixed || (info.variadic && found > fixed) {
            return Ok(());
        }
        let more = if info.variadic { " or more" } else { "" };
        Err(IrError::InvalidOp { op: info.name, message: format!("{found} operands given, {fixed}{more} expected") })
    }
}

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}
