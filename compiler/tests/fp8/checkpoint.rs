//! The small llama of the fixtures with its projections quantised to FP8, as the tools that publish such checkpoints write them.

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weldment_ir::DType;
use weldment_ir::codec::{Overflow, decode_vec, encode};

/// How weights are quantised, and how the config says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// DeepSeek, Qwen3-FP8: `fp8` with blocks, f32 scales.
    Blocks([u64; 2]),
    /// `fp8` without blocks: one scale a tensor.
    Tensor,
    /// compressed-tensors: a scale an output channel, in bf16.
    Channel,
    /// compressed-tensors with blocks.
    CompressedBlocks([u64; 2]),
}

impl Style {
    fn config(self) -> Value {
        let compressed = |weights: Value, inputs: Value| {
            let mut weights = weights;
            weights["num_bits"] = json!(8);
            weights["type"] = json!("float");
            weights["symmetric"] = json!(true);
            weights["dynamic"] = json!(false);
            let mut inputs = inputs;
            inputs["num_bits"] = json!(8);
            inputs["type"] = json!("float");
            inputs["symmetric"] = json!(true);
            inputs["dynamic"] = json!(true);
            let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": inputs,
                "output_activations": null});
            json!({"quant_method": "compressed-tensors", "format": "float-quantized", "kv_cache_scheme": null,
                "quantization_status": "compressed", "config_groups": {"group_0": group}, "ignore": ["lm_head"]})
        };
        match self {
            Style::Blocks(block) => json!({"quant_method": "fp8", "weight_block_size": block, "fmt": "e4m3",
                "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}),
            Style::Tensor => json!({"quant_method": "fp8", "activation_scheme": "dynamic"}),
            Style::Channel => compressed(json!({"strategy": "channel"}), json!({"strategy": "token"})),
            Style::CompressedBlocks(block) => compressed(
                json!({"strategy": "block", "block_structure": block}),
                json!({"strategy": "group", "group_size": block[1]}),
            ),
        }
    }

    fn part(self) -> &'static str {
        match self {
            Style::Blocks(_) => "weight_scale_inv",
            _ => "weight_scale",
        }
    }

    fn block(self, [n, k]: [usize; 2]) -> [usize; 2] {
        match self {
            Style::Blocks([rows, columns]) | Style::CompressedBlocks([rows, columns]) => {
                [rows as usize, columns as usize]
            }
            Style::Tensor => [n, k],
            Style::Channel => [1, k],
        }
    }
}

pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A checkpoint on its way to a folder: tests may change anything of it.
pub struct Draft {
    pub config: Value,
    pub tensors: BTreeMap<String, Stored>,
}

pub fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama")
}

/// Codes of a matrix [n, k], and the f32 scales of its blocks: amax / 448 each.
pub fn quantise(values: &[f32], [n, k]: [usize; 2], [rows, columns]: [usize; 2]) -> (Vec<u8>, Vec<f32>) {
    let across = k.div_ceil(columns);
    let mut scales = vec![0f32; n.div_ceil(rows) * across];
    let block = |i: usize| (i / k / rows) * across + i % k / columns;
    for (i, v) in values.iter().enumerate() {
        scales[block(i)] = scales[block(i)].max(v.abs() / 448.0);
    }
    let scaled: Vec<f32> = values.iter().enumerate().map(|(i, v)| v / scales[block(i)].max(1e-30)).collect();
    (encode(DType::F8E4M3, &scaled, Overflow::Saturate).unwrap(), scales)
}

impl Draft {
    /// The fixture in `style`.
    pub fn new(style: Style) -> Draft {
        let text = std::fs::read_to_string(fixture().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["quantization_config"] = style.config();
        let bytes = std::fs::read(fixture().join("model.safetensors")).unwrap();
        let mut tensors = BTreeMap::new();
        for (name, t) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let stored = Stored { dtype: t.dtype(), shape: t.shape().to_vec(), bytes: t.data().to_vec() };
            let (Some(module), &[n, k]) = (name.strip_suffix("_proj.weight"), t.shape()) else {
                tensors.insert(name, stored);
                continue;
            };
            assert_eq!(t.dtype(), Dtype::F32);
            let values = decode_vec(DType::F32, t.data(), n * k).unwrap();
            let (codes, scales) = quantise(&values, [n, k], style.block([n, k]));
            let shape = match style {
                Style::Tensor => Vec::new(),
                Style::Channel => vec![n, 1],
                _ => style.block([n, k]).iter().zip([n, k]).map(|(b, size)| size.div_ceil(*b)).collect(),
            };
            // bf16 scales, as compressed-tensors has them in a bf16 model.
            let (dtype, as_stored) =
                if style == Style::Channel { (Dtype::BF16, DType::BF16) } else { (Dtype::F32, DType::F32) };
            let bytes = encode(as_stored, &scales, Overflow::Ieee).unwrap();
            tensors.insert(format!("{module}_proj.{}", style.part()), Stored { dtype, shape, bytes });
            tensors.insert(name.clone(), Stored { dtype: Dtype::F8_E4M3, shape: vec![n, k], bytes: codes });
        }
        Draft { config, tensors }
    }

    /// Writes `config.json` and `model.safetensors`.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let views = self
            .tensors
            .iter()
            .map(|(name, t)| (name.clone(), TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    }
}
