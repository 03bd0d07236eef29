//! A "model" of 8 tokens in kernels of the double: its logits depend on every token that the session has seen.

use hip_double::text_image;
use std::path::Path;
use weldment_runtime::DType;
use weldment_runtime::artifact::*;

const VOCAB: usize = 8;
const R: u32 = 3;

fn bias() -> [f32; VOCAB] {
    std::array::from_fn(|i| i as f32 * 0.125)
}

/// What the kernels compute, on the host.
#[derive(Default)]
pub struct History(i32);

impl History {
    /// Logits of a step that asks for `tokens`, in this order.
    pub fn all_of(&mut self, tokens: &[i32]) -> Vec<f32> {
        tokens.iter().flat_map(|token| self.last_of(&[*token])).collect()
    }

    /// Logits of a step that asks for the last of `tokens`.
    pub fn last_of(&mut self, tokens: &[i32]) -> Vec<f32> {
        let token = tokens.last().copied().unwrap_or_default();
        self.0 = self.0.wrapping_mul(31).wrapping_add(token);
        let hot = self.0.rem_euclid(VOCAB as i32) as usize;
        (0..VOCAB).map(|v| bias()[v] + if v == hot { 1.0 } else { 0.0 }).collect()
    }
}

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

fn launch(kernel: u32, args: &[(Region, u64)]) -> Launch {
    Launch {
        kernel,
        grid: vec![GridDim::Symbol { symbol: R, mul: 1, div: 1 }],
        args: args.iter().map(|(region, offset)| Arg { region: *region, offset: *offset }).collect(),
        barrier: true,
        source: 0,
        cost: Cost::default(),
        gemm: None,
        all_reduce: None,
        results: Vec::new(),
        copy: None,
    }
}

fn kernel(name: &str) -> Kernel {
    Kernel {
        name: name.into(),
        entry: 0,
        family: "test".into(),
        moves_only: false,
        summary: String::new(),
        threads: 64,
        resources: None,
    }
}

/// Writes the artifact to `path`: two variants, by the number of tokens.
pub fn write_tiny(path: &Path) {
    write_tiny_of(path, 1);
}

/// The same for `world` ranks, which share a slab that a kernel is given.
pub fn write_tiny_of(path: &Path, world: u32) {
    let dim = |name: &str| Dim::Symbol(name.into());
    let weights: Vec<u8> = bias().iter().flat_map(|v| v.to_le_bytes()).collect();
    let code = text_image("gfx942", &["kernel mix mix 3", "kernel one_hot one_hot 3 8", "kernel touch nothing 3"]);
    let tensor = Tensor {
        name: "bias".into(),
        dtype: DType::F32,
        shape: vec![VOCAB as u64],
        at: TensorPlace::Constant(0),
        blake3: weldment_runtime::blake3_hex(&weights),
    };
    let layout = Layout::Raw(Raw { dtype: DType::F32 });
    let item = PackItem { offset: 0, bytes: weights.len() as u64, layout, tensors: vec![0], shards: Vec::new() };
    let source = Weights { mode: WeightMode::Embedded, files: vec![], tensors: vec![tensor] };
    let mut pack = Pack { bytes: weights.len() as u64, key: String::new(), items: vec![item] };
    pack.key = pack.compute_key(&source, "gfx942");
    let mut launches = vec![
        launch(0, &[(Region::Arena, 64), (Region::State(0), 0), (Region::Input(0), 0), (Region::Input(4), 0)]),
        launch(1, &[(Region::Output(0), 0), (Region::Arena, 64), (Region::Weights, 0)]),
    ];
    let mut slab = None;
    if world > 1 {
        launches.push(launch(2, &[(Region::Slab, 0), (Region::Comm, 0)]));
        let fills = vec![SlabFill { offset: 4096, bytes: 64, word: 0x8000_0000 }];
        slab = Some(Slab { bytes: 8192, fills });
    }
    let variant = |min, max| Variant {
        name: format!("tokens_{max}"),
        guards: vec![Guard { symbol: 0, min, max }],
        launches: launches.clone(),
    };
    let manifest = Manifest {
        world,
        weldment_version: "0.1.0".into(),
        model: Model {
            architecture: "history".into(),
            name: None,
            vocab_size: VOCAB as u32,
            bos_id: None,
            eos_ids: vec![],
            max_seq: 4096,
        },
        symbols: vec![symbol("T", 64), symbol("B", 4), symbol("P", 256), symbol("R", 64), symbol("N", 256)],
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
        outputs: vec![binding("logits", DType::F32, &[dim("R"), Dim::Const(VOCAB as u64)])],
        states: vec![State {
            name: "history".into(),
            dtype: DType::I32,
            shape: vec![dim("N"), Dim::Const(4)],
            unit_bytes: 16,
        }],
        weights: source,
        sources: vec![vec!["lm_head".into()]],
        programs: vec![Program {
            target: Target { name: "gfx942".into(), arch: "amdgcn".into(), features: vec![] },
            code: "code.0".into(),
            kernels: vec![kernel("mix"), kernel("one_hot"), kernel("touch")],
            arena_bytes: 1024,
            slab,
            pack,
            entries: vec![Entry { variants: vec![variant(1, 4), variant(5, 64)] }],
        }],
        options: vec![],
        chat_template: None,
        special_tokens: Default::default(),
        sections: vec![],
    };
    // The packs of all ranks, at whole pages.
    let mut packs = weights.clone();
    for _ in 1..world {
        packs.resize(packs.len().next_multiple_of(4096), 0);
        packs.extend(&weights);
    }
    let sections: [(&str, &[u8]); 4] = [
        (CONSTANTS_SECTION, &weights),
        ("code.0", &code),
        (REPORT_SECTION, br#"{"fusions":[]}"#),
        (WEIGHTS_SECTION, &packs),
    ];
    write_artifact(path, manifest, &sections).unwrap();
}
