//! The adapter's file, `pytorch_lora_weights.safetensors`: written as diffusers' `save_lora_weights` does, and read in
//! that format, in peft's own and in diffusers' older ones.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::targets::ends_with;
use super::{Entry, Lora, shapes};
use crate::error::{Error, Result};
use crate::json::JsonObject;
use crate::params::NamedTensors;
use crate::safetensors::{encode_safetensors, read_safetensors_with_metadata, write_safetensors};
use crate::unet::UNet;

/// diffusers' name of the file.
pub const LORA_FILE: &str = "pytorch_lora_weights.safetensors";
/// peft's name of the file, which lies beside [`PEFT_CONFIG`].
const PEFT_FILE: &str = "adapter_model.safetensors";
const PEFT_CONFIG: &str = "adapter_config.json";
/// The largest absolute value of alpha; weights scaled by more overflow soon.
const MAX_ALPHA: f64 = 1e6;
/// The metadata entry in which diffusers stores peft's configuration as JSON.
const METADATA_KEY: &str = "lora_adapter_metadata";

impl Lora {
    /// Writes the adapter in f32, with rank and alpha in the metadata that diffusers reads.
    pub fn save(&self, path: &Path) -> Result<()> {
        let tensors: NamedTensors = self.parameters().into_iter().collect();
        write_safetensors(path, &tensors, &[("format", "pt"), (METADATA_KEY, &self.metadata())])
    }

    /// Returns the bytes that [`Lora::save`] writes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let tensors: NamedTensors = self.parameters().into_iter().collect();
        let metadata = [("format", "pt"), (METADATA_KEY, &*self.metadata())];
        encode_safetensors(Path::new(LORA_FILE), &tensors, &metadata)
    }

    /// peft's configuration of the adapter as JSON, with diffusers' prefix.
    fn metadata(&self) -> String {
        let (rank, alpha) = self.rank_and_alpha();
        let mut config = Map::new();
        let mut put = |key: &str, value: Value| config.insert(format!("unet.{key}"), value);
        let mut alpha_pattern = Map::new();
        let mut rank_pattern = Map::new();
        for entry in &self.entries {
            if entry.a.size()[0] != rank {
                rank_pattern.insert(entry.module.clone(), json!(entry.a.size()[0]));
            }
            if entry.alpha != alpha {
                alpha_pattern.insert(entry.module.clone(), whole_or_float(entry.alpha));
            }
        }
        put("alpha_pattern", Value::Object(alpha_pattern));
        put("bias", json!("none"));
        put("lora_alpha", whole_or_float(alpha));
        put("lora_dropout", json!(0.0));
        put("r", json!(rank));
        put("rank_pattern", Value::Object(rank_pattern));
        put("target_modules", json!(self.targets));
        put("use_rslora", json!(self.is_rank_stabilized()));
        serde_json::to_string_pretty(&config).expect("a JSON value always serializes")
    }

    fn is_rank_stabilized(&self) -> bool {
        self.entries.iter().any(|entry| {
            // Of rank 1 both forms are the same.
            entry.scaling != entry.alpha / entry.a.size()[0] as f64
        })
    }

    /// Reads an adapter (a file, or the folder of one; see [`LoraFile::read`]) and adds it to the layers it names. A
    /// tensor that matches no layer of this UNet is an error.
    pub fn load(unet: &mut UNet, path: &Path) -> Result<Self> {
        let file = LoraFile::read(path)?;
        let device = unet.device();
        let mut layers: BTreeMap<String, LoraLayer> =
            file.layers.into_iter().map(|layer| (layer.module.clone(), layer)).collect();
        let network = shapes(unet);
        if let Some(unknown) = layers.values().find(|layer| network.iter().all(|(module, _)| *module != layer.module)) {
            return Err(stray(&file.path, &unknown.keys[0]));
        }
        let mut entries = Vec::with_capacity(layers.len());
        for (module, shape) in network {
            let Some(layer) = layers.remove(&module) else { continue };
            layer.check(shape, &file.path)?;
            let (a, b) = (layer.a.f_to_device(device)?, layer.b.f_to_device(device)?);
            entries.push(Entry { module, a, b, alpha: layer.alpha, scaling: layer.scaling });
        }
        let targets = entries.iter().map(|entry| entry.module.clone()).collect();
        Self::install(unet, entries, targets)
    }
}

/// The contents of an adapter's file, without the network that it is for.
#[derive(Debug)]
pub struct LoraFile {
    /// Path of the file.
    pub path: PathBuf,
    /// The adapters of the layers, in order of the layers' names; at least one.
    pub layers: Vec<LoraLayer>,
}

/// The adapter of one layer: its weight W becomes W + scaling · B A.
#[derive(Debug)]
pub struct LoraLayer {
    /// The layer's checkpoint name.
    pub module: String,
    /// [rank, in], f32, on the CPU.
    pub a: Tensor,
    /// [out, rank], f32, on the CPU.
    pub b: Tensor,
    /// Alpha as in the file; the rank if the file has none.
    pub alpha: f64,
    /// alpha / rank, or alpha / √rank if the file uses rank-stabilized LoRA.
    pub scaling: f64,
    /// The names of A and B in the file.
    keys: [String; 2],
}

impl LoraFile {
    /// Reads a file, or the one in a folder, in any of the formats that diffusers and peft write. Alpha comes from the
    /// file's metadata, its `.alpha` tensors or peft's configuration beside it, and is the rank if none of them has it.
    pub fn read(path: &Path) -> Result<Self> {
        let path = locate(path)?;
        let (tensors, metadata) = read_safetensors_with_metadata(&path)?;
        let hints = Hints::read(&path, &metadata)?;
        let mut found = BTreeMap::<String, Found>::new();
        for (key, tensor) in tensors {
            let (module, part) = split_key(&key).ok_or_else(|| stray(&path, &key))?;
            let found = found.entry(module).or_insert_with(|| Found { key: key.clone(), ..Found::default() });
            match part {
                Part::A => found.a = Some((key, tensor)),
                Part::B => found.b = Some((key, tensor)),
                Part::Alpha => found.alpha = Some(tensor.f_double_value(&[])?),
            }
        }
        let mut layers = Vec::with_capacity(found.len());
        for (module, Found { key, a, b, alpha }) in found {
            let (Some((a_key, a)), Some((b_key, b))) = (a, b) else {
                return Err(Error::Input(format!("`{key}` has no matching A or B in {}", path.display())));
            };
            if a.dim() != 2 || b.dim() != 2 || b.size()[1] != a.size()[0] || a.size()[0] == 0 {
                let message = format!(
                    "{}: `{a_key}` {:?} and `{b_key}` {:?} are not [rank, in] and [out, rank]",
                    path.display(),
                    a.size(),
                    b.size()
                );
                return Err(Error::Input(message));
            }
            let rank = a.size()[0] as f64;
            let alpha = alpha.or_else(|| hints.alpha_of(&module)).unwrap_or(rank);
            if !(-MAX_ALPHA..=MAX_ALPHA).contains(&alpha) {
                let path = path.display();
                return Err(Error::Input(format!(
                    "{path}: the alpha of `{module}` is {alpha}, at most {MAX_ALPHA} is possible"
                )));
            }
            let scaling = alpha / if hints.rank_stabilized { rank.sqrt() } else { rank };
            let (a, b) = (a.f_to_kind(Kind::Float)?, b.f_to_kind(Kind::Float)?);
            layers.push(LoraLayer { module, a, b, alpha, scaling, keys: [a_key, b_key] });
        }
        if layers.is_empty() {
            return Err(Error::Input(format!("{} contains no LoRA tensors", path.display())));
        }
        Ok(Self { path, layers })
    }

    /// Adds factor · scaling · B A to the weights of a UNet's checkpoint, computed in f32 and rounded once to each
    /// weight's own type; a factor of -1 undoes a factor of 1, except for that rounding.
    pub fn merge_into(&self, unet: &mut NamedTensors, factor: f64) -> Result<()> {
        for layer in &self.layers {
            let weight =
                unet.get_mut(&format!("{}.weight", layer.module)).ok_or_else(|| stray(&self.path, &layer.keys[0]))?;
            let size = weight.size();
            // The weight of a linear layer, or of a 1×1 convolution, which SD 1 has instead of some linear layers.
            let (&[n_out, n_in] | &[n_out, n_in, 1, 1]) = &size[..] else {
                return Err(stray(&self.path, &layer.keys[0]));
            };
            layer.check([n_out, n_in], &self.path)?;
            let delta = layer.b.f_matmul(&layer.a)? * (layer.scaling * factor);
            let sum = weight.f_to_kind(Kind::Float)?.f_add(&delta.f_view(&size[..])?)?;
            *weight = sum.f_to_kind(weight.kind())?;
        }
        Ok(())
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.a.numel() + layer.b.numel()).sum()
    }
}

impl LoraLayer {
    /// The rank of the product.
    pub fn rank(&self) -> i64 {
        self.a.size()[0]
    }

    /// Returns an error if the layer's weight has another shape [out, in] than B A.
    fn check(&self, [n_out, n_in]: [i64; 2], path: &Path) -> Result<()> {
        let rank = self.rank();
        let cases = [(&self.keys[0], &self.a, vec![rank, n_in]), (&self.keys[1], &self.b, vec![n_out, rank])];
        for (name, tensor, wanted) in cases {
            if tensor.size() != wanted {
                let (name, source_name) = (name.clone(), path.display().to_string());
                return Err(Error::Shape { name, source_name, found: tensor.size(), wanted });
            }
        }
        Ok(())
    }
}

/// The tensors of one layer in a file.
#[derive(Default)]
struct Found {
    /// The layer's first key in the file, for errors.
    key: String,
    a: Option<(String, Tensor)>,
    b: Option<(String, Tensor)>,
    alpha: Option<f64>,
}

enum Part {
    A,
    B,
    Alpha,
}

fn stray(path: &Path, key: &str) -> Error {
    let path = path.display();
    Error::Input(format!("{path}: tensor `{key}` matches no linear layer of this UNet"))
}

/// Returns the file itself, or the one in a folder.
fn locate(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    [LORA_FILE, PEFT_FILE]
        .iter()
        .map(|name| path.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Error::Input(format!("{} has neither {LORA_FILE} nor {PEFT_FILE}", path.display())))
}

/// Splits a tensor's key into the layer's name and the part of the tensor in it:
///
/// - `unet.X.lora_A.weight` (current diffusers), `base_model.model.X.lora_A.weight` (peft), either with an adapter's
///   name before `weight`;
/// - `unet.X.lora.down.weight`, `unet.X.lora_linear_layer.down.weight` (diffusers 0.18 to 0.25);
/// - `unet.P.processor.to_q_lora.down.weight` (older diffusers), with and without `unet.`;
/// - `X.alpha` with any of them.
fn split_key(key: &str) -> Option<(String, Part)> {
    let key = key.strip_prefix("base_model.model.").unwrap_or(key);
    let key = key.strip_prefix("unet.").unwrap_or(key);
    let (module, part) = if let Some(module) = key.strip_suffix(".alpha") {
        (module, Part::Alpha)
    } else {
        let key = key.strip_suffix(".weight")?;
        let parts = [("lora_A", true), ("lora_B", false), ("down", true), ("up", false)];
        // peft may append the adapter's name.
        let without_name = key.rsplit_once('.').map_or("", |(rest, _)| rest);
        let split = |key: &str| {
            parts.iter().find_map(|&(end, is_a)| Some((key.strip_suffix(end)?.strip_suffix('.')?.len(), is_a)))
        };
        let (length, is_a) = split(key).or_else(|| split(without_name))?;
        (&key[..length], if is_a { Part::A } else { Part::B })
    };
    let module = [".lora", ".lora_linear_layer"].iter().find_map(|end| module.strip_suffix(end)).unwrap_or(module);
    let old =
        module.rsplit_once(".processor.").and_then(|(attention, rest)| Some((attention, rest.strip_suffix("_lora")?)));
    Some(match old {
        Some((attention, "to_out")) => (format!("{attention}.to_out.0"), part),
        Some((attention, layer)) => (format!("{attention}.{layer}"), part),
        None => (module.to_owned(), part),
    })
}

/// The scale according to the file's metadata or peft's configuration beside it.
#[derive(Default)]
struct Hints {
    alpha: Option<f64>,
    alpha_pattern: Vec<(String, f64)>,
    rank_stabilized: bool,
}

impl Hints {
    fn read(path: &Path, metadata: &HashMap<String, String>) -> Result<Self> {
        if let Some(text) = metadata.get(METADATA_KEY) {
            let bad = |e| Error::Safetensors { path: path.to_owned(), message: format!("`{METADATA_KEY}`: {e}") };
            let config: Map<String, Value> = serde_json::from_str(text).map_err(bad)?;
            return Ok(Self::from_values(|key| config.get(&format!("unet.{key}"))));
        }
        match JsonObject::read_if_present(&path.with_file_name(PEFT_CONFIG))? {
            Some(config) => Ok(Self::from_values(|key| config.value(key))),
            None => Ok(Self::default()),
        }
    }

    fn from_values<'a>(value: impl Fn(&str) -> Option<&'a Value>) -> Self {
        let pattern = value("alpha_pattern").and_then(Value::as_object);
        Self {
            alpha: value("lora_alpha").and_then(Value::as_f64),
            alpha_pattern: pattern
                .into_iter()
                .flatten()
                .filter_map(|(name, alpha)| Some((name.trim_start_matches('^').to_owned(), alpha.as_f64()?)))
                .collect(),
            rank_stabilized: value("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        }
    }

    fn alpha_of(&self, module: &str) -> Option<f64> {
        let own = self.alpha_pattern.iter().find(|(name, _)| ends_with(module, name));
        own.map(|&(_, alpha)| alpha).or(self.alpha)
    }
}

/// peft declares these values as integers, and most files write them so.
fn whole_or_float(value: f64) -> Value {
    if value.fract() == 0.0 { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 2] = ["unet.block.to_q.lora_A.weight", "unet.block.to_q.lora_B.weight"];

    fn tensor(shape: &[i64], seed: u64) -> Tensor {
        torch_ext::Generator::cpu(seed).and_then(|mut generator| generator.normal(shape)).expect("numbers")
    }

    /// Reads a file of these tensors and metadata.
    fn read(tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]) -> Result<LoraFile> {
        let folder = tempfile::tempdir().expect("a folder");
        let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect();
        write_safetensors(&folder.path().join(LORA_FILE), &tensors, metadata).expect("written");
        LoraFile::read(folder.path())
    }

    fn layer(rank: i64) -> [(&'static str, Tensor); 2] {
        [(KEYS[0], tensor(&[rank, 3], 1)), (KEYS[1], tensor(&[5, rank], 2))]
    }

    #[test]
    fn alpha_comes_from_its_tensor_the_metadata_or_the_rank() {
        let scaled = |tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]| {
            let layer = read(tensors, metadata).expect("a good file").layers.remove(0);
            (layer.rank(), layer.alpha, layer.scaling)
        };
        assert_eq!(scaled(&layer(4), &[]), (4, 4.0, 1.0));
        let says = |json: &'static str| [(METADATA_KEY, json)];
        assert_eq!(scaled(&layer(4), &says(r#"{"unet.lora_alpha": 6}"#)), (4, 6.0, 1.5));
        let stabilized = says(r#"{"unet.lora_alpha": 6, "unet.use_rslora": true}"#);
        assert_eq!(scaled(&layer(4), &stabilized), (4, 6.0, 3.0));
        let pattern = says(r#"{"unet.lora_alpha": 6, "unet.alpha_pattern": {"to_k": 7, "to_q": 1}}"#);
        assert_eq!(scaled(&layer(4), &pattern), (4, 1.0, 0.25));
        let [a, b] = layer(4);
        let own = [a, b, ("unet.block.to_q.alpha", Tensor::from(8.0f32))];
        assert_eq!(scaled(&own, &pattern), (4, 8.0, 2.0));
    }

    #[test]
    fn files_that_are_no_adapter_are_refused() {
        let refused = |tensors: &[(&str, Tensor)]| read(tensors, &[]).expect_err("it is broken").to_string();
        let [a, b] = layer(2);
        for whole in [&a, &b] {
            let message = refused(&[(whole.0, whole.1.shallow_clone())]);
            assert!(message.starts_with(&format!("`{}` has no matching A or B in ", whole.0)), "{message}");
        }
        let shapes: [[&[i64]; 2]; 5] =
            [[&[6], &[5, 2]], [&[2, 3], &[10]], [&[2, 3], &[5, 1]], [&[2, 3], &[5, 3]], [&[0, 3], &[5, 0]]];
        for [a, b] in shapes {
            let message = refused(&[
                (KEYS[0], Tensor::zeros(a, (Kind::Float, tch::Device::Cpu))),
                (KEYS[1], Tensor::zeros(b, (Kind::Float, tch::Device::Cpu))),
            ]);
            let said = format!("`{}` {a:?} and `{}` {b:?} are not [rank, in] and [out, rank]", KEYS[0], KEYS[1]);
            assert!(message.ends_with(&said), "{message}");
        }
        assert!(refused(&[]).ends_with("contains no LoRA tensors"));
        assert!(
            refused(&[("unet.conv_in.weight", tensor(&[2], 1))])
                .contains("`unet.conv_in.weight` matches no linear layer")
        );
        let nowhere = tempfile::tempdir().expect("a folder");
        let message = LoraFile::read(nowhere.path()).expect_err("it is empty").to_string();
        assert!(message.ends_with(&format!("has neither {LORA_FILE} nor {PEFT_FILE}")), "{message}");
    }

    #[test]
    fn a_checkpoint_is_merged_by_factor_and_scale_and_taken_apart_again() {
        let metadata = [(METADATA_KEY, r#"{"unet.lora_alpha": 6}"#)];
        let file = read(&layer(4), &metadata).expect("a good file");
        assert_eq!(file.n_parameters(), 4 * 3 + 5 * 4);
        let delta = layer(4)[1].1.matmul(&layer(4)[0].1) * 1.5;
        for (shape, kind, tolerance) in [(&[5, 3][..], Kind::Float, 1e-6), (&[5, 3, 1, 1][..], Kind::Half, 1e-3)] {
            let original = tensor(shape, 3).to_kind(kind);
            let mut unet = NamedTensors::from([("block.to_q.weight".to_owned(), original.copy())]);
            file.merge_into(&mut unet, 0.5).expect("it fits");
            let merged = unet["block.to_q.weight"].shallow_clone();
            assert_eq!((merged.kind(), merged.size()), (kind, shape.to_vec()));
            let wanted = original.to_kind(Kind::Float) + (&delta * 0.5).view(shape);
            test_support::assert_close("merged", &merged, &wanted, tolerance);
            file.merge_into(&mut unet, -0.5).expect("it fits");
            test_support::assert_close("taken apart", &unet["block.to_q.weight"], &original, tolerance);
        }
        let refused = |name: &str, shape: &[i64]| {
            let mut unet = NamedTensors::from([(name.to_owned(), tensor(shape, 3))]);
            file.merge_into(&mut unet, 1.0).expect_err("it does not fit").to_string()
        };
        assert!(refused("block.to_k.weight", &[5, 3]).contains("matches no linear layer"));
        assert!(refused("block.to_q.weight", &[5, 3, 3, 3]).contains("matches no linear layer"));
        for shape in [[5, 4], [6, 3]] {
            let message = refused("block.to_q.weight", &shape);
            assert!(message.contains("`unet.block.to_q.lora_") && message.contains("shape"), "{message}");
        }
    }

    #[test]
    fn keys_of_every_generation_name_the_same_layer() {
        let layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        let cases = [
            (format!("unet.{layer}.to_q.lora_A.weight"), "to_q"),
            (format!("unet.{layer}.to_q.lora_A.default_0.weight"), "to_q"),
            (format!("base_model.model.{layer}.to_out.0.lora_B.weight"), "to_out.0"),
            (format!("unet.{layer}.to_v.lora.down.weight"), "to_v"),
            (format!("unet.{layer}.to_v.lora_linear_layer.up.weight"), "to_v"),
            (format!("unet.{layer}.processor.to_k_lora.down.weight"), "to_k"),
            (format!("{layer}.processor.to_out_lora.up.weight"), "to_out.0"),
            (format!("unet.{layer}.to_k.alpha"), "to_k"),
            (format!("unet.{layer}.processor.to_k_lora.alpha"), "to_k"),
        ];
        for (key, name) in cases {
            let (module, part) = split_key(&key).expect("a known form");
            assert_eq!(module, format!("{layer}.{name}"), "{key}");
            let is_a = key.contains("lora_A") || key.contains("down.weight");
            let expected = if key.ends_with("alpha") {
                "alpha"
            } else if is_a {
                "a"
            } else {
                "b"
            };
            let found = match part {
                Part::A => "a",
                Part::B => "b",
                Part::Alpha => "alpha",
            };
            assert_eq!(found, expected, "{key}");
        }
        assert!(split_key("unet.conv_in.weight").is_none());
        assert!(split_key("unet.x.to_q.lora_magnitude_vector.weight").is_none());
    }
}
