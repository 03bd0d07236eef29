//! Code of the collectives on GPUs: which instructions carry what ranks exchange, and at which scope.

use weldment_ir::{DType, Dim, Graph, Op, OutputKind, Real, Value};
use weldment_tests::execute::gpu_text;

/// A graph of one collective on rows of `h` elements.
fn graph(op: Op, operands: &[(DType, bool)], h: u64, most: u64) -> Graph {
    let mut graph = Graph::new("one");
    graph.declare_symbol("T", 1, most);
    let inputs: Vec<Value> = operands
        .iter()
        .enumerate()
        .map(|(i, (dtype, weight))| {
            let name = format!("i{i}");
            let op = if *weight {
                Op::Weight { name: name.as_str().into(), dtype: *dtype, shape: vec![Dim::Const(h)] }
            } else {
                Op::input(&name, *dtype, vec![Dim::sym("T"), Dim::Const(h)])
            };
            let leaf = graph.push("node", op, &[]).expect("a leaf");
            // What a model reduces is computed in the step.
            if *weight { leaf } else { graph.push("node", Op::Neg {}, &[leaf]).expect("a unary") }
        })
        .collect();
    let first = graph.push("node", op, &inputs).expect("a well-typed node");
    for result in 0..graph.node(first.node).types.len() {
        let value = Value { node: first.node, result: result as _ };
        graph.output(&format!("out{result}"), OutputKind::Result, value);
    }
    graph
}

fn add_norm(world: i64, h: u64, most: u64) -> Graph {
    let op = Op::AllReduceAddRmsNorm { world, eps: Real(1e-6), dtype: DType::BF16 };
    graph(op, &[(DType::BF16, false), (DType::BF16, false), (DType::BF16, true)], h, most)
}

fn text(graph: &Graph, target: &str) -> String {
    gpu_text(graph, target).unwrap_or_else(|e| panic!("{target}: {e}"))
}

/// The code of the all-reduce among a graph's kernels.
fn all_reduce(graph: &Graph, target: &str) -> String {
    let text = text(graph, target);
    let lines: Vec<&str> = text.lines().collect();
    let starts = |line: &str| line.contains("_all_reduce:") || line.contains("entry") && line.contains("_all_reduce(");
    let start = lines.iter().position(|line| starts(line)).expect("the kernel");
    let ends = |line: &str| line.starts_with(".Lfunc_end") || line.starts_with('}');
    let code = lines[start..].iter().take_while(|line| !ends(line));
    code.flat_map(|line| [line, "\n"]).collect()
}

/// Lines that hold `what`, by number.
fn lines(text: &str, what: &str) -> Vec<usize> {
    text.lines().enumerate().filter(|(_, line)| line.contains(what)).map(|(i, _)| i).collect()
}

/// Whole vectors, relaxed at system scope; nothing that other launches or ranks write is touched before the wait for them.
#[test]
fn ptx_pushes_and_looks_at_system_scope() {
    for world in [2, 4, 8] {
        let text = all_reduce(&add_norm(world, 7168, 8), "sm_90a all_reduce=1");
        let (pushes, looks) = (lines(&text, "st.volatile.global.v4.b32"), lines(&text, "ld.volatile.global.v4.b32"));
        // Two vectors a thread: to each peer once, and as many areas made empty.
        assert_eq!(pushes.len(), 2 * 2 * (world as usize - 1), "{text}");
        let wait = lines(&text, "griddepcontrol.wait")[0];
        assert!(pushes.iter().all(|at| *at > wait), "{text}");
        // The weights are read ahead of it; each peer's row is looked at after it.
        assert_eq!(looks.iter().filter(|at| **at < wait).count(), 2, "{text}");
        assert_eq!(looks.iter().filter(|at| **at > wait).count(), 2 * (world as usize - 1), "{text}");
        assert!(looks[2..].iter().all(|at| *at > *pushes.last().unwrap()), "{text}");
        assert!(!text.contains("fence") && !text.contains(".acquire") && !text.contains("ld.local"), "{text}");
        // The epoch moves on once every thread has seen it.
        let (epoch, barriers) = (lines(&text, "st.relaxed.sys.global.b32"), lines(&text, "bar.sync"));
        assert!(epoch.len() == 1 && barriers.iter().any(|at| *at < epoch[0] && *at > pushes[0]), "{text}");
    }
}

/// Where a program uses several epochs in one launch, a release and an acquire stand between them.
#[test]
fn ptx_orders_the_epochs_of_a_launch() {
    let text = all_reduce(&add_norm(2, 7168, 2048), "sm_90a");
    let (release, acquire) = (lines(&text, "st.release.sys.global.b32"), lines(&text, "ld.acquire.sys.global.b32"));
    assert_eq!((release.len(), acquire.len()), (1, 1), "{text}");
    assert!(release[0] < acquire[0] && lines(&text, "bar.sync").iter().any(|at| *at < release[0]), "{text}");
}

/// Stores and loads of ranks bypass every cache that other ranks do not see, and wait for nothing but themselves.
#[test]
fn gcn_pushes_and_looks_at_system_scope() {
    for target in ["gfx942", "gfx950"] {
        let text = all_reduce(&add_norm(2, 7168, 8), target);
        let pushes = lines(&text, "global_store_dwordx2");
        let looks = lines(&text, "global_load_dwordx2");
        assert_eq!((pushes.len(), looks.len()), (8, 4), "{target}: {text}");
        let all: Vec<&str> = text.lines().collect();
        assert!(pushes.iter().chain(&looks).all(|at| all[*at].contains("sc0 sc1")), "{target}: {text}");
        // All are under way before the first is waited for.
        assert!(!all[looks[0]..looks[3]].iter().any(|line| line.contains("s_waitcnt")), "{target}: {text}");
        // What is pushed is not waited for, though x's second vector is: that was under way before.
        let waits = |line: &&str| line.contains("vmcnt(0)") || line.contains("vmcnt(1)");
        assert!(!all[pushes[0]..pushes[7]].iter().any(waits), "{target}: {text}");
        // x, the residual and the weights were under way before the first push.
        let loads = lines(&text, "global_load_dwordx4");
        assert!(loads.len() == 6 && loads.iter().all(|at| *at < pushes[0]), "{target}: {text}");
        assert!(!text.contains("buffer_wbl2") && !text.contains("scratch_"), "{target}: {text}");
        // How often a waiting program has looked, now and then; and the epoch, at the end.
        let words = lines(&text, "global_store_dword ");
        assert!(words.len() == 2 && words.iter().all(|at| all[*at].contains("sc0 sc1")), "{target}: {text}");
        assert!(looks[3] < words[0], "{target}: {text}");
    }
}

/// A release writes back what the cache holds and waits for it; every wave waits for its own stores before the barrier ahead of it;
/// an acquire drops what the cache holds.
#[test]
fn gcn_orders_the_epochs_of_a_launch() {
    for target in ["gfx942", "gfx950"] {
        let text = all_reduce(&add_norm(2, 7168, 2048), target);
        let all: Vec<&str> = text.lines().map(str::trim).collect();
        let back = all.iter().position(|l| *l == "buffer_wbl2 sc0 sc1").unwrap_or_else(|| panic!("{target}: {text}"));
        let signal = (back..all.len()).find(|at| all[*at].starts_with("global_store_dword ")).expect("a signal");
        assert!(all[signal].contains("sc0 sc1"), "{target}: {text}");
        assert!(
            all[back..signal].iter().any(|l| l.starts_with("s_waitcnt") && l.contains("vmcnt(0)")),
            "{target}: {text}"
        );
        let barrier = (0..back).rev().find(|at| all[*at] == "s_barrier").expect("a barrier");
        let own = (0..barrier).rev().find(|at| all[*at].starts_with("s_waitcnt") && all[*at].contains("vmcnt(0)"));
        let later = |at: usize| all[at..barrier].iter().any(|l| l.starts_with("global_store"));
        assert!(own.is_some_and(|at| !later(at)), "{target}: {text}");
        let load = (signal..all.len()).find(|at| all[*at].starts_with("global_load_dword ")).expect("a look");
        assert!(all[load].contains("sc0 sc1"), "{target}: {text}");
        let drop = (load..all.len()).find(|at| all[*at] == "buffer_inv sc0 sc1").expect("an acquire");
        assert!(
            all[load..drop].iter().any(|l| l.starts_with("s_waitcnt") && l.contains("vmcnt(0)")),
            "{target}: {text}"
        );
    }
}

/// Both stages push and look as one stage does: no fence stands between them.
#[test]
fn two_stages_push_and_look() {
    let ptx = all_reduce(&add_norm(4, 7168, 64), "sm_90a all_reduce=2");
    // A slice of 8 bytes a thread to each of three, which are looked at and made empty, and its sums to them and to itself.
    let (slices, rows) = (lines(&ptx, "st.volatile.global.v2.b32"), lines(&ptx, "st.volatile.global.v4.b32"));
    assert_eq!(slices.len(), 3 + 3 + 4, "{ptx}");
    // The row of sums is two vectors a thread.
    assert_eq!(rows.len(), 2, "{ptx}");
    let (parts, sums) = (lines(&ptx, "ld.volatile.global.v2.b32"), lines(&ptx, "ld.volatile.global.v4.b32"));
    let wait = lines(&ptx, "griddepcontrol.wait")[0];
    assert_eq!((parts.len(), sums.iter().filter(|at| **at > wait).count()), (3, 2), "{ptx}");
    assert!(slices[5] < parts[0] && parts[2] < slices[6] && slices[9] < *sums.last().unwrap(), "{ptx}");
    assert!(!ptx.contains("fence") && !ptx.contains(".acquire") && !ptx.contains("ld.local"), "{ptx}");
    // Each exchange has an epoch of its own.
    assert_eq!(lines(&ptx, "st.relaxed.sys.global.b32").len(), 2, "{ptx}");
    let gcn = all_reduce(&add_norm(4, 7168, 64), "gfx942 all_reduce=2");
    assert!(!gcn.contains("buffer_wbl2") && !gcn.contains("buffer_inv") && !gcn.contains("scratch_"), "{gcn}");
    // Where a program has several rows, one release covers both exchanges.
    let ptx = all_reduce(&add_norm(4, 7168, 2048), "sm_90a all_reduce=2");
    let orders = ["st.release.sys.global.b32", "ld.acquire.sys.global.b32", "st.relaxed.sys.global.b32"];
    assert_eq!(orders.map(|what| lines(&ptx, what).len()), [1, 1, 1], "{ptx}");
}

/// Every collective fits every GPU, for the sizes of models.
#[test]
fn collectives_fit_every_gpu() {
    let norm = |world, h, dtype| {
        let norm = Op::AllReduceAddRmsNorm { world, eps: Real(1e-6), dtype };
        graph(norm, &[(dtype, false), (dtype, false), (dtype, true)], h, 64)
    };
    for target in ["gfx90a", "gfx942", "gfx950", "sm_90a"] {
        text(&norm(8, 7168, DType::BF16), target);
        text(&norm(8, 7168, DType::BF16), &format!("{target} all_reduce=2"));
    }
    for target in ["gfx942", "sm_90a"] {
        for (world, h, dtype) in [(2, 16_384, DType::BF16), (8, 4096, DType::F32), (6, 72, DType::F16)] {
            text(&norm(world, h, dtype), target);
            text(&graph(Op::AllReduce { world }, &[(dtype, false)], h, 64), target);
        }
        text(&graph(Op::AllGather { axis: 1, world: 8 }, &[(DType::F32, false)], 16_032, 64), target);
        text(&graph(Op::ReduceScatter { axis: 1, world: 2 }, &[(DType::BF16, false)], 7168, 512), target);
    }
}
