// Included by the example on the crate's front page too, hence no inner attributes.
// A tiny artifact by hand: a "model" of 8 tokens whose next token is the last plus one, in 80 bytes of machine code.

use std::path::Path;
use weldment_runtime::DType;
use weldment_runtime::artifact::*;

/// x86-64, position independent, by the host's kernel ABI (rdi args, rsi dims, rdx begin, rcx end).
///
/// ```text
/// 0x00 next: logits[i][..8] = one-hot of (tokens[logit_rows[i]] + 1) & 7     args: tokens, logit_rows, logits
/// 0x50 add1: out[i] = in[i] + 1 (i64)                                        args: out, in
/// 0x70 rev1: out[i] = in[dims[0] - 1 - i] + 1 (i64)                          args: out, in
/// ```
pub const CODE: [u8; 153] = [
    0x4c, 0x8b, 0x07, 0x4c, 0x8b, 0x4f, 0x08, 0x4c, 0x8b, 0x57, 0x10, 0x48, 0x39, 0xca, 0x7d, 0x35, 0x49, 0x63, 0x04,
    0x91, 0x41, 0x8b, 0x04, 0x80, 0xff, 0xc0, 0x83, 0xe0, 0x07, 0x49, 0x89, 0xd3, 0x49, 0xc1, 0xe3, 0x05, 0x4d, 0x01,
    0xd3, 0x31, 0xf6, 0x49, 0x89, 0x33, 0x49, 0x89, 0x73, 0x08, 0x49, 0x89, 0x73, 0x10, 0x49, 0x89, 0x73, 0x18, 0x41,
    0xc7, 0x04, 0x83, 0x00, 0x00, 0x80, 0x3f, 0x48, 0xff, 0xc2, 0xeb, 0xc6, 0xc3, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x4c, 0x8b, 0x07, 0x4c, 0x8b, 0x4f, 0x08, 0x48, 0x39, 0xca, 0x7d, 0x10, 0x49, 0x8b, 0x04,
    0xd1, 0x48, 0xff, 0xc0, 0x49, 0x89, 0x04, 0xd0, 0x48, 0xff, 0xc2, 0xeb, 0xeb, 0xc3, 0x0f, 0x1f, 0x00, 0x4c, 0x8b,
    0x07, 0x4c, 0x8b, 0x4f, 0x08, 0x4c, 0x8b, 0x16, 0x49, 0xff, 0xca, 0x48, 0x39, 0xca, 0x7d, 0x16, 0x4d, 0x89, 0xd3,
    0x49, 0x29, 0xd3, 0x4b, 0x8b, 0x04, 0xd9, 0x48, 0xff, 0xc0, 0x49, 0x89, 0x04, 0xd0, 0x48, 0xff, 0xc2, 0xeb, 0xe5,
    0xc3,
];

/// Entry points of [`CODE`].
pub const ENTRIES: [u64; 3] = [0x00, 0x50, 0x70];

fn symbol(name: &str, max: u64) -> Symbol {
    let role = match name {
        "T" => SymbolRole::Tokens,
        "B" => SymbolRole::Sequences,
        "P" => SymbolRole::Blocks("N".into()),
        "R" => SymbolRole::LogitRows,
        _ => SymbolRole::Pool(16),
    };
    Symbol { name: name.into(), min: 1, max, role }
}

fn binding(name: &str, dtype: DType, shape: &[Dim]) -> Binding {
    let role = match name {
        "tokens" => InputRole::Tokens,
        "positions" => InputRole::Positions,
        "sequence_ids" => InputRole::Sequences,
        "block_tables" => InputRole::Blocks,
        "logit_rows" => InputRole::LogitRows,
        _ => InputRole::Plain,
    };
    Binding { name: name.into(), dtype, shape: shape.to_vec(), role, dense: false, indices: Indices::Free }
}

/// The manifest of the tiny artifact, with one embedded weight that no kernel reads.
pub fn manifest() -> Manifest {
    let dim = |name: &str| Dim::Symbol(name.into());
    let launch = Launch {
        kernel: 0,
        grid: vec![GridDim::Symbol { symbol: 3, mul: 1, div: 1 }],
        args: vec![
            Arg { region: Region::Input(0), offset: 0 },
            Arg { region: Region::Input(4), offset: 0 },
            Arg { region: Region::Output(0), offset: 0 },
        ],
        barrier: true,
        source: 0,
        cost: Cost { bytes: 0, bytes_per_token: 36, flops_per_token: 1 },
        gemm: None,
        all_reduce: None,
        results: Vec::new(),
        copy: None,
    };
    let tensor = Tensor {
        name: "scale".into(),
        dtype: DType::F32,
        shape: vec![4],
        at: TensorPlace::Constant(0),
        blake3: blake3::hash(&[0; 16]).to_hex().to_string(),
    };
    let item = PackItem {
        offset: 0,
        bytes: 16,
        layout: Layout::Raw(Raw { dtype: DType::F32 }),
        tensors: vec![0],
        shards: Vec::new(),
    };
    let weights = Weights { mode: WeightMode::Embedded, files: vec![], tensors: vec![tensor] };
    let mut pack = Pack { bytes: 16, key: String::new(), items: vec![item] };
    pack.key = pack.compute_key(&weights, "x86-64");
    let guards = vec![Guard { symbol: 0, min: 1, max: 12 }];
    Manifest {
        world: 1,
        weldment_version: "0.1.0".into(),
        model: Model {
            architecture: "counter".into(),
            name: None,
            vocab_size: 8,
            bos_id: None,
            eos_ids: vec![7],
            max_seq: 64,
        },
        symbols: vec![symbol("T", 16), symbol("B", 4), symbol("P", 4), symbol("R", 16), symbol("N", 16)],
        entries: vec![EntryPoint {
            name: "step".into(),
            symbols: (0..5).collect(),
            inputs: (0..5).collect(),
            outputs: vec![0],
            writes_states: true,
        }],
        inputs: vec![
            binding("tokens", DType::I32, &[dim("T")]),
            binding("positions", DType::I32, &[dim("T")]),
            binding("sequence_ids", DType::I32, &[dim("T")]),
            binding("block_tables", DType::I32, &[dim("B"), dim("P")]),
            binding("logit_rows", DType::I32, &[dim("R")]),
        ],
        outputs: vec![binding("logits", DType::F32, &[dim("R"), Dim::Const(8)])],
        states: vec![State {
            name: "layers.0.k_cache".into(),
            dtype: DType::F32,
            shape: vec![dim("N"), Dim::Const(2), Dim::Const(16)],
            unit_bytes: 128,
        }],
        weights,
        sources: vec![vec!["lm_head".into()]],
        programs: vec![Program {
            target: Target { name: "x86-64".into(), arch: "x86_64".into(), features: vec!["sse3".into()] },
            code: "code.0".into(),
            kernels: vec![Kernel {
                name: "next".into(),
                entry: 0,
                family: "test".into(),
                moves_only: false,
                summary: String::new(),
                threads: 0,
                resources: None,
            }],
            arena_bytes: 64,
            slab: None,
            pack,
            entries: vec![Entry { variants: vec![Variant { name: "step".into(), guards, launches: vec![launch] }] }],
        }],
        options: vec![("fp-policy".into(), "rounding".into())],
        chat_template: None,
        special_tokens: Default::default(),
        sections: vec![],
    }
}

/// Writes the tiny artifact to `path`.
pub fn write_tiny(path: &Path) {
    let sections: [(&str, &[u8]); 4] = [
        (CONSTANTS_SECTION, &[0; 16]),
        ("code.0", &CODE),
        (REPORT_SECTION, br#"{"fusions":[]}"#),
        (WEIGHTS_SECTION, &[0; 16]),
    ];
    write_artifact(path, manifest(), &sections).unwrap();
}
