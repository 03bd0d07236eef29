//! Kernels of sparse attention against the interpreter: windows around k, ragged and hostile scores, mixed batches.

use weldment_ir::generate::Random;
use weldment_ir::{DType, Dim, Op, Real, Value};
use weldment_tests::draft::Draft;
use weldment_tests::execute::{Stored, difference_of_scale, execute, fill, reference};
use weldment_tests::programs::{interpret_counting, interpret_programs};

fn sym(name: &str) -> Dim {
    Dim::sym(name)
}

/// Asserts that outputs are the interpreter's to `tolerance` (0: exactly) on the host, and by the tile programs for GPUs of both wave
/// sizes.
#[track_caller]
fn check(draft: &Draft, tolerance: f64) {
    let values = fill(&draft.graph, &draft.dims, draft.given.clone(), 1);
    let expected = reference(&draft.graph, &draft.dims, &values).expect("the interpreter takes the case");
    for target in ["host", "gfx942", "sm_90a"] {
        let found = match target {
            "gfx942" | "sm_90a" => interpret_programs(&draft.graph, &draft.dims, &values, target),
            _ => execute(&draft.graph, &draft.dims, &values, target, 2),
        };
        let found = found.unwrap_or_else(|e| panic!("{target}: {e}"));
        for (name, expected) in &expected {
            let worst = expected.iter().zip(&found[name]).enumerate().find(|(_, (a, b))| {
                let near = (*a - *b).abs() <= tolerance * a.abs().max(1.0);
                !(a == b || near)
            });
            assert!(
                found[name].len() == expected.len() && worst.is_none(),
                "{target} {name}: {worst:?}, {:?}",
                draft.dims
            );
        }
    }
}

/// topk of rows of scores, with a position each.
fn topk(rows: &[Vec<f32>], positions: &[i32], columns: u64, k: i64) -> Draft {
    let tokens = positions.len() as u64;
    let mut c = Draft::new(tokens, 1..=tokens + 3);
    c.graph.declare_symbol("C", 1, columns + 5);
    c.dims.insert("C".into(), columns);
    let scores = c.input("scores", DType::F32, vec![sym("T"), sym("C")]);
    let at = c.input("positions", DType::I32, vec![sym("T")]);
    let flat: Vec<u8> = rows.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
    c.given.insert("scores".into(), Stored { dtype: DType::F32, shape: vec![tokens, columns], bytes: flat });
    c.given.insert("positions".into(), Stored::ints(&[tokens], positions));
    let best = c.push(Op::Topk { k }, &[scores, at]);
    let window = c.push(Op::Window { k }, &[at]);
    c.results(&[best, window]);
    c
}

#[test]
fn topk_of_windows_around_k() {
    let mut random = Random::new(3);
    for k in [1, 7, 32, 100] {
        let positions: Vec<i32> =
            [0, k - 3, k - 2, k - 1, k, k + 1, 2 * k + 30].iter().map(|p| (*p).max(0) as i32).collect();
        let columns = 2 * k as u64 + 31;
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for i in 0..positions.len() {
            // Few values, so that there are many ties; then many.
            let spread = if i % 2 == 0 { 3 } else { 1 << 20 };
            rows.push((0..columns).map(|_| random.below(spread) as f32 - spread as f32 / 2.0).collect());
        }
        check(&topk(&rows, &positions, columns, k), 0.0);
    }
}

#[test]
fn topk_of_hostile_scores() {
    let special = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-45,
        f32::MAX,
        f32::MIN,
    ];
    let mut random = Random::new(9);
    let columns = 90u64;
    let rows: Vec<Vec<f32>> = (0..12)
        .map(|_| (0..columns).map(|_| *random.pick(&special).unwrap()).collect())
        .chain([vec![f32::NEG_INFINITY; columns as usize], vec![f32::NAN; columns as usize]])
        .collect();
    let positions: Vec<i32> = (0..rows.len() as i32).map(|i| 89 - 3 * i).collect();
    check(&topk(&rows, &positions, columns, 20), 0.0);
}

/// Tokens by (sequence, position) over pages of 16 in no order; pages past a sequence's end are absent.
fn paged(of: &[(i32, i32)], max: u64) -> (Draft, [Value; 3]) {
    let tokens = of.len() as u64;
    let sequences = of.iter().map(|(s, _)| *s as u64 + 1).max().unwrap_or(1);
    let pages = of.iter().map(|(_, p)| *p as u64 / 16 + 1).max().unwrap_or(1);
    let mut c = Draft::new(tokens, 1..=max);
    let blocks = sequences * pages;
    // Tables are narrower than the widest.
    for (name, n, most) in [("B", sequences, sequences), ("P", pages, pages + 5), ("N", blocks + 1, blocks + 1)] {
        c.graph.declare_symbol(name, 1, most);
        c.dims.insert(name.to_owned(), n);
    }
    let at = c.input("positions", DType::I32, vec![sym("T")]);
    let ids = c.input("sequence_ids", DType::I32, vec![sym("T")]);
    let tables = c.input("block_tables", DType::I32, vec![sym("B"), sym("P")]);
    let furthest = |s: i32| of.iter().filter(|(own, _)| *own == s).map(|(_, p)| p / 16).max().unwrap_or(-1);
    let stride = (1..).find(|n| n % 7 == 3 && gcd(*n, blocks) == 1).expect("a stride");
    let table: Vec<i32> = (0..blocks)
        .map(|i| {
            let (s, page) = ((i / pages) as i32, (i % pages) as i32);
            if page <= furthest(s) { ((i * stride + 1) % blocks) as i32 } else { -1 }
        })
        .collect();
    c.given.insert("block_tables".into(), Stored::ints(&[sequences, pages], &table));
    c.given.insert("positions".into(), Stored::ints(&[tokens], &of.iter().map(|(_, p)| *p).collect::<Vec<_>>()));
    c.given.insert("sequence_ids".into(), Stored::ints(&[tokens], &of.iter().map(|(s, _)| *s).collect::<Vec<_>>()));
    (c, [at, ids, tables])
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A prompt of `n` tokens of sequence `s`, `before` of which came earlier.
fn prompt(s: i32, before: i32, n: i32) -> Vec<(i32, i32)> {
    (before..before + n).map(|p| (s, p)).collect()
}

fn cache(c: &mut Draft, name: &str, dtype: DType, dims: [u64; 3]) -> Value {
    let shape = std::iter::once(sym("N")).chain(dims.map(Dim::Const)).collect();
    c.push(Op::State { name: name.into(), dtype, shape }, &[])
}

/// Indexer logits, `columns` of them, without and with a `skip`.
fn index_scores(of: &[(i32, i32)], max: u64, columns: u64, (heads, d): (u64, u64), dtype: DType) -> Draft {
    let (mut c, [at, ids, tables]) = paged(of, max);
    c.graph.declare_symbol("C", 1, columns + 3);
    c.dims.insert("C".into(), columns);
    let q = c.input("q", dtype, vec![sym("T"), Dim::Const(heads), Dim::Const(d)]);
    let weights = c.input("weights", dtype, vec![sym("T"), Dim::Const(heads)]);
    let keys = cache(&mut c, "keys", dtype, [1, d, 16]);
    let outputs = [0, 20].map(|skip| {
        let op = Op::IndexScores { columns: vec![sym("C")], skip };
        c.push(op, &[q, weights, keys, at, ids, tables])
    });
    c.results(&outputs);
    c
}

#[test]
fn index_scores_of_every_form() {
    let mixed = [prompt(0, 14, 9), vec![(1, 0), (2, 63), (3, 64), (4, 200)]].concat();
    check(&index_scores(&mixed, 20, 201, (5, 48), DType::F16), 1e-4);
    for dtype in [DType::F32, DType::BF16] {
        for (heads, d) in [(1, 16), (70, 24), (9, 160)] {
            check(&index_scores(&mixed, 20, 201, (heads, d), dtype), 1e-4);
        }
        // Columns that end before the window, and a single one.
        check(&index_scores(&[(0, 40)], 1, 23, (3, 8), dtype), 1e-4);
        check(&index_scores(&[(0, 0)], 1, 1, (16, 64), dtype), 1e-4);
    }
}

/// Attention over `rows` of positions, one a token.
fn sparse_attention(
    of: &[(i32, i32)],
    max: u64,
    (heads, kv, d): (u64, u64, u64),
    dtype: DType,
    rows: &[Vec<i32>],
) -> Draft {
    let (mut c, [at, ids, tables]) = paged(of, max);
    let q = c.input("q", dtype, vec![sym("T"), Dim::Const(heads), Dim::Const(d)]);
    let k = cache(&mut c, "k", dtype, [kv, d, 16]);
    let v = cache(&mut c, "v", dtype, [kv, 16, d]);
    let width = rows[0].len() as u64;
    let indices = c.input("indices", DType::I32, vec![sym("T"), Dim::Const(width)]);
    c.given.insert("indices".into(), Stored::ints(&[of.len() as u64, width], &rows.concat()));
    let op = Op::SparseAttention { scale: Real(0.3), dtype: DType::F32 };
    let y = c.push(op, &[q, k, v, indices, at, ids, tables]);
    c.results(&[y]);
    c
}

/// `width` positions in no order, some of them not seen yet and some -1.
fn rows(of: &[(i32, i32)], width: u64, random: &mut Random) -> Vec<Vec<i32>> {
    let row = |(_, position): &(i32, i32)| {
        let mut all: Vec<i32> = (0..(*position + 4).max(width as i32)).collect();
        for i in (1..all.len()).rev() {
            all.swap(i, random.below(i as u64 + 1) as usize);
        }
        all.truncate(width as usize);
        all.iter().map(|p| if random.one_in(7) { -1 } else { *p }).collect()
    };
    of.iter().map(row).collect()
}

#[test]
fn sparse_attention_of_every_form() {
    let mut random = Random::new(5);
    let mixed = [prompt(0, 30, 5), vec![(1, 0), (2, 15), (3, 16), (4, 300)]].concat();
    check(&sparse_attention(&mixed, 16, (4, 2, 40), DType::F16, &rows(&mixed, 20, &mut random)), 2e-3);
    for dtype in [DType::F32, DType::BF16] {
        let tolerance = if dtype == DType::F32 { 1e-5 } else { 2e-3 };
        for (heads, kv, d, width) in [(6, 2, 64, 50), (20, 1, 32, 129), (2, 1, 160, 9), (4, 1, 320, 40)] {
            let few = rows(&mixed, width, &mut random);
            check(&sparse_attention(&mixed, 16, (heads, kv, d), dtype, &few), tolerance);
        }
        // More tokens than share rows among programs, and a token that sees nothing.
        let one = rows(&[(0, 700)], 300, &mut random);
        check(&sparse_attention(&[(0, 700)], 1, (5, 1, 128), dtype, &one), tolerance);
        let mut many = rows(&mixed, 33, &mut random);
        many[2].fill(-1);
        many[6].fill(900);
        check(&sparse_attention(&mixed, 100, (4, 2, 16), dtype, &many), tolerance);
    }
}

/// Attention to what `topk` picked, and over the first positions as a constant row that all tokens share: the same bits where windows fit.
#[test]
fn a_constant_row_gives_the_bits_of_topk() {
    for (dtype, max) in [(DType::BF16, 16), (DType::BF16, 100), (DType::F32, 16)] {
        let of = [prompt(0, 30, 5), vec![(1, 0), (2, 15), (3, 16), (4, 39)]].concat();
        let (mut c, [at, ids, tables]) = paged(&of, max);
        let q = c.input("q", dtype, vec![sym("T"), Dim::Const(4), Dim::Const(32)]);
        let scores = c.input("scores", DType::F32, vec![sym("T"), Dim::Const(48)]);
        let (k, v) = (cache(&mut c, "k", dtype, [1, 32, 16]), cache(&mut c, "v", dtype, [1, 16, 32]));
        let best = c.push(Op::Topk { k: 40 }, &[scores, at]);
        let window = c.push(Op::Window { k: 40 }, &[at]);
        let row = c.push(Op::Iota { size: 40 }, &[]);
        let shared = c.push(Op::Broadcast { shape: vec![sym("T"), Dim::Const(40)] }, &[row]);
        let outputs = [best, window, shared].map(|indices| {
            c.push(Op::SparseAttention { scale: Real(0.3), dtype }, &[q, k, v, indices, at, ids, tables])
        });
        c.results(&outputs);
        let values = fill(&c.graph, &c.dims, c.given.clone(), 1);
        for target in ["host", "gfx942", "sm_90a"] {
            let found = match target {
                "host" => execute(&c.graph, &c.dims, &values, target, 2),
                _ => interpret_programs(&c.graph, &c.dims, &values, target),
            };
            let found = found.unwrap_or_else(|e| panic!("{target}: {e}"));
            assert!(found["out0"].iter().any(|x| *x != 0.0));
            assert_eq!(found["out0"], found["out1"], "{target}");
            assert_eq!(found["out0"], found["out2"], "{target}");
        }
    }
}

/// Heads as the host's next product wants them: quantised.
#[test]
fn sparse_attention_quantises_its_result() {
    let of = [(0, 40), (1, 3)];
    let mut c = sparse_attention(&of, 4, (4, 2, 64), DType::F32, &rows(&of, 20, &mut Random::new(8)));
    let operands = c.graph.node(c.graph.outputs()[0].value.node).operands.clone();
    let y = c.push(Op::SparseAttention { scale: Real(0.3), dtype: DType::Q8A }, &operands);
    let flat = c.push(Op::Reshape { shape: vec![sym("T"), Dim::Const(256)] }, &[y]);
    let w = c.weight("w", DType::Q8_0, &[16, 256]);
    let z = c.push(Op::Matmul { dtype: DType::F32 }, &[flat, w]);
    c.graph.clear_outputs();
    c.results(&[z]);
    let values = fill(&c.graph, &c.dims, c.given.clone(), 1);
    let expected = reference(&c.graph, &c.dims, &values).unwrap();
    let found = execute(&c.graph, &c.dims, &values, "host", 2).unwrap();
    let d = difference_of_scale(&expected, &found);
    assert!(d < 2e-3, "{d}");
}

/// What `topk` should pick of a row, by a plain sort.
fn sorted(scores: &[f32], position: i32, k: usize) -> Vec<f64> {
    let window = &scores[..(position + 1) as usize];
    let rank = |x: f32| if x.is_nan() { (1, 0.0) } else { (0, x + 0.0) };
    let mut order: Vec<usize> = (0..window.len()).collect();
    order.sort_by(|a, b| rank(window[*b]).partial_cmp(&rank(window[*a])).expect("numbers").then(a.cmp(b)));
    let mut best: Vec<usize> = if order.len() <= k { (0..order.len()).collect() } else { order[..k].to_vec() };
    best.sort_unstable();
    (0..k).map(|i| best.get(i).map_or(-1.0, |c| *c as f64)).collect()
}

/// 10,000 rows of scores of every kind: few values, ramps, any bits of an f32.
#[test]
fn topk_of_random_rows_is_a_sort() {
    let mut random = Random::new(77);
    for k in [1usize, 8, 50, 128] {
        let (tokens, columns) = (2500usize, 160usize);
        let mut draw = |kind: usize, i: usize| match kind {
            0 => random.below(3) as f32,
            1 => random.below(40) as f32 - 20.0,
            2 => f32::from_bits(random.bits() as u32),
            3 => (i as f32 - 80.0) * 1e-40,
            4 => -(i as f32),
            _ => (random.below(1 << 24) as f32 / 65536.0 - 128.0).max(0.0),
        };
        let rows: Vec<Vec<f32>> = (0..tokens).map(|t| (0..columns).map(|i| draw(t % 6, i)).collect()).collect();
        let positions: Vec<i32> = (0..tokens).map(|t| (t * 31 % columns) as i32).collect();
        let draft = topk(&rows, &positions, columns as u64, k as i64);
        let found = execute(&draft.graph, &draft.dims, &draft.given, "host", 2).unwrap();
        for (t, found) in found["out0"].chunks(k).enumerate() {
            assert_eq!(found, sorted(&rows[t], positions[t], k), "k {k}, row {t} to {}: {:?}", positions[t], rows[t]);
        }
    }
}

/// Windows of many tiles, beside the two at the border of k.
#[test]
fn topk_of_long_rows() {
    let mut random = Random::new(4);
    let mut row = |n: usize| -> Vec<f32> { (0..n).map(|_| (random.below(5000) as f32 - 900.0).max(0.0)).collect() };
    check(&topk(&[row(20_000), row(20_000), row(20_000)], &[19_990, 2047, 2048], 20_000, 2048), 0.0);
    let (columns, k) = (131_072, 2048);
    let rows = [row(columns)];
    let draft = topk(&rows, &[columns as i32 - 1], columns as u64, k as i64);
    let found = execute(&draft.graph, &draft.dims, &draft.given, "host", 2).unwrap();
    assert_eq!(found["out0"], sorted(&rows[0], columns as i32 - 1, k));
}

/// Rows whose window fits load next to nothing of what the same rows load without the short cut.
#[test]
fn short_rows_load_their_position() {
    let of: Vec<(i32, i32)> = (0..6).map(|s| (s, 40 + s)).collect();
    let bytes = |skip: i64, k: i64| {
        let (mut c, [at, ids, tables]) = paged(&of, 8);
        let q = c.input("q", DType::BF16, vec![sym("T"), Dim::Const(4), Dim::Const(64)]);
        let weights = c.input("weights", DType::BF16, vec![sym("T"), Dim::Const(4)]);
        let keys = cache(&mut c, "keys", DType::BF16, [1, 64, 16]);
        let op = Op::IndexScores { columns: vec![Dim::Const(64)], skip };
        let scores = c.push(op, &[q, weights, keys, at, ids, tables]);
        let best = c.push(Op::Topk { k }, &[scores, at]);
        c.results(&[best]);
        let values = fill(&c.graph, &c.dims, c.given.clone(), 1);
        interpret_counting(&c.graph, &c.dims, &values, "sm_90a").unwrap().1
    };
    let (full, short) = (bytes(0, 16), bytes(48, 48));
    assert_eq!(full.keys().copied().collect::<Vec<_>>(), ["index_scores", "topk"]);
    for (family, full) in &full {
        assert!(short[family] * 20 <= *full, "{family}: {} bytes of {full}", short[family]);
    }
}
