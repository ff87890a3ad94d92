//! The adapter's file, `pytorch_lora_weights.safetensors`: written as diffusers' `save_lora_weights` does, and read in
//! that format, in peft's own and in diffusers' older ones.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

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
/// The beginning of a layer's name in the files of kohya's scripts.
const KOHYA: &str = "lora_unet_";
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
        let mut file = LoraFile::read(path)?;
        let device = unet.device();
        let network = shapes(unet);
        file.name_layers(network.iter().map(|(module, _)| module.as_str()));
        let mut layers = BTreeMap::<String, LoraLayer>::new();
        for layer in file.layers {
            let (path, key) = (file.path.display(), layer.keys[0].clone());
            if network.iter().all(|(module, _)| *module != layer.module) {
                return Err(if layer.module.ends_with("proj_in") || layer.module.ends_with("proj_out") {
                    Error::Input(format!(
                        "{path}: tensor `{key}` adapts a 1×1 convolution, which only `host lora merge` can: merge the file into \
                         the model"
                    ))
                } else {
                    stray(&file.path, &key)
                });
            }
            if let Some(other) = layers.insert(layer.module.clone(), layer) {
                return Err(Error::Input(format!("{path}: `{}` and `{key}` are of the same layer", other.keys[0])));
            }
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
    /// The layer's checkpoint name, or `lora_unet_` and that name with underscores for dots, as kohya's scripts write it.
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
    /// Reads a file, or the one in a folder, in any of the formats that diffusers and peft write, or that of kohya's
    /// scripts. Alpha comes from the file's `.alpha` tensors, its metadata or peft's configuration beside it, and is the
    /// rank if none of them has it.
    ///
    /// # Errors
    /// If the adapter is of another kind (DoRA, LoKr, of convolutions or of a text encoder, …), if peft would change the
    /// model's own weights before adding it (PiSSA, OLoRA, …), or if it contains a number that is not finite.
    pub fn read(path: &Path) -> Result<Self> {
        let path = locate(path)?;
        let (tensors, metadata) = read_safetensors_with_metadata(&path)?;
        let hints = Hints::read(&path, &metadata)?;
        let mut found = BTreeMap::<String, Found>::new();
        for (key, tensor) in tensors {
            if let Some(error) = unsupported(&path, &key) {
                return Err(error);
            }
            let (module, part) = split_key(&key).ok_or_else(|| stray(&path, &key))?;
            if !tensor.f_isfinite()?.f_all()?.f_is_nonzero()? {
                let path = path.display();
                return Err(Error::Input(format!("{path}: `{key}` contains numbers that are not finite")));
            }
            let found = found.entry(module).or_insert_with(|| Found { key: key.clone(), ..Found::default() });
            let slot = match part {
                Part::A => &mut found.a,
                Part::B => &mut found.b,
                Part::Alpha => &mut found.alpha,
            };
            if let Some((other, _)) = slot.replace((key.clone(), tensor)) {
                let path = path.display();
                return Err(Error::Input(format!("{path}: `{other}` and `{key}` are of the same layer")));
            }
        }
        let mut layers = Vec::with_capacity(found.len());
        for (module, Found { key, a, b, alpha }) in found {
            let (Some((a_key, a)), Some((b_key, b))) = (a, b) else {
                return Err(Error::Input(format!("`{key}` has no matching A or B in {}", path.display())));
            };
            // A 1×1 convolution is a linear layer over channels.
            let flat = |tensor: Tensor| match &tensor.size()[..] {
                &[n, m, 1, 1] => tensor.f_view([n, m]),
                _ => Ok(tensor),
            };
            let (a, b) = (flat(a)?, flat(b)?);
            if a.dim() == 4 {
                let path = path.display();
                return Err(Error::Input(format!(
                    "{path}: `{a_key}` adapts a {}×{} convolution, but only linear layers can be adapted",
                    a.size()[2],
                    a.size()[3]
                )));
            }
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
            let own = alpha.map(|(_, alpha)| alpha.f_double_value(&[])).transpose()?;
            let alpha = own.or_else(|| hints.alpha_of(&module)).unwrap_or(rank);
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

    /// Replaces the layers' names in kohya's form by the network's own.
    fn name_layers<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let flat: HashMap<String, &str> =
            names.map(|name| (format!("{KOHYA}{}", name.replace('.', "_")), name)).collect();
        for layer in &mut self.layers {
            if let Some(name) = flat.get(&layer.module) {
                layer.module = (*name).to_owned();
            }
        }
    }

    /// Adds factor · scaling · B A to the weights of a UNet's checkpoint, computed in f32 and rounded once to each
    /// weight's own type; a factor of -1 undoes a factor of 1, except for that rounding.
    ///
    /// # Errors
    /// If a tensor matches no layer, or a sum exceeds the range of its weight's type.
    pub fn merge_into(&mut self, unet: &mut NamedTensors, factor: f64) -> Result<()> {
        self.name_layers(unet.keys().filter_map(|key| key.strip_suffix(".weight")));
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
            let sum = sum.f_to_kind(weight.kind())?;
            if !sum.f_isfinite()?.f_all()?.f_is_nonzero()? {
                let (path, module, kind) = (self.path.display(), &layer.module, weight.kind());
                return Err(Error::Input(format!(
                    "{path}: merged at scale {factor}, the weight of `{module}` exceeds the range of {kind:?}"
                )));
            }
            *weight = sum;
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
    alpha: Option<(String, Tensor)>,
}

enum Part {
    A,
    B,
    Alpha,
}

/// An error about a tensor that no layer can use.
fn stray(path: &Path, key: &str) -> Error {
    let other_model = ["transformer.", "single_transformer_blocks.", "double_blocks", "joint_blocks"];
    let hint = if other_model.iter().any(|start| key.starts_with(start)) { "; is it of another model?" } else { "" };
    let path = path.display();
    Error::Input(format!("{path}: tensor `{key}` matches no linear layer of this UNet{hint}"))
}

/// Parts of the names of tensors that other kinds of adapters have, and what the tensors are.
const UNSUPPORTED: [(&[&str], &str); 8] = [
    (&["lora_te", "text_encoder.", "text_model"], "adapts the text encoder, but only the UNet's layers can be adapted"),
    (&["dora_scale", "lora_magnitude_vector"], "is of a DoRA, which is not supported"),
    (&["lokr_"], "is of a LoKr, which is not supported"),
    (&["hada_"], "is of a LoHa, which is not supported"),
    (&["oft_"], "is of an OFT, which is not supported"),
    (&["lora_mid", "lora_conv"], "adapts a convolution, but only linear layers can be adapted"),
    (&["lora_B.bias", "lora_up.bias", "lora.up.bias"], "is the bias of a LoRA, which is not supported"),
    (
        &["input_blocks", "output_blocks", "middle_block"],
        "names a layer as Stability's original checkpoints do; convert the file to diffusers' names",
    ),
];

/// An error about a tensor of an adapter that is no plain LoRA of a UNet's linear layers, if this one's name says so.
fn unsupported(path: &Path, key: &str) -> Option<Error> {
    let (_, what) = UNSUPPORTED.iter().find(|(marks, _)| marks.iter().any(|mark| key.contains(mark)))?;
    Some(Error::Input(format!("{}: tensor `{key}` {what}", path.display())))
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
/// - `lora_unet_X.lora_down.weight` (kohya's scripts), where X has underscores for dots;
/// - `X.alpha` with any of them.
fn split_key(key: &str) -> Option<(String, Part)> {
    if key.starts_with(KOHYA) {
        let (module, part) = key.split_once('.')?;
        let part = match part {
            "lora_down.weight" => Part::A,
            "lora_up.weight" => Part::B,
            "alpha" => Part::Alpha,
            _ => return None,
        };
        return Some((module.to_owned(), part));
    }
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
    alpha_pattern: Vec<(Regex, f64)>,
    rank_stabilized: bool,
}

/// Initializations with which peft changes the model's own weights before it adds the adapter.
const CHANGES_THE_MODEL: [&str; 5] = ["pissa", "corda", "olora", "mica", "loftq"];

impl Hints {
    fn read(path: &Path, metadata: &HashMap<String, String>) -> Result<Self> {
        if let Some(text) = metadata.get(METADATA_KEY) {
            let bad = |e| Error::Safetensors { path: path.to_owned(), message: format!("`{METADATA_KEY}`: {e}") };
            let config: Map<String, Value> = serde_json::from_str(text).map_err(bad)?;
            return Self::from_values(path, |key| config.get(&format!("unet.{key}")));
        }
        let beside = path.with_file_name(PEFT_CONFIG);
        match JsonObject::read_if_present(&beside)? {
            Some(config) => Self::from_values(&beside, |key| config.value(key)),
            None => Ok(Self::default()),
        }
    }

    /// `path` is that of the file that the values come from.
    fn from_values<'a>(path: &Path, value: impl Fn(&str) -> Option<&'a Value>) -> Result<Self> {
        let bad = |message: String| Error::Config { path: path.to_owned(), message };
        if let Some(kind) = value("peft_type").and_then(Value::as_str).filter(|kind| *kind != "LORA") {
            return Err(bad(format!("key `peft_type` is \"{kind}\", only \"LORA\" is supported")));
        }
        let initial = value("init_lora_weights").and_then(Value::as_str).unwrap_or_default().to_lowercase();
        if CHANGES_THE_MODEL.iter().any(|name| initial.starts_with(name)) {
            return Err(bad(format!(
                "key `init_lora_weights` is \"{initial}\", with which peft changes the model's own weights first: save the \
                 adapter with peft's `path_initial_model_for_weight_conversion`, which converts it to a plain LoRA"
            )));
        }
        for (key, what) in [
            ("use_dora", "a DoRA"),
            ("use_qalora", "a QA-LoRA"),
            ("layer_replication", "an adapter of replicated layers"),
            ("modules_to_save", "an adapter with whole layers of its own"),
        ] {
            let is_set = match value(key) {
                None | Some(Value::Null | Value::Bool(false)) => false,
                Some(Value::Array(items)) => !items.is_empty(),
                Some(_) => true,
            };
            if is_set {
                return Err(bad(format!("key `{key}` makes it {what}, which is not supported")));
            }
        }
        let mut alpha_pattern = Vec::new();
        for (pattern, alpha) in value("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
            let alpha = alpha
                .as_f64()
                .ok_or_else(|| bad(format!("key `alpha_pattern`: the alpha of `{pattern}` is not a number")))?;
            // As peft's `get_pattern_key` matches.
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(|error| {
                bad(format!("key `alpha_pattern`: `{pattern}` is not a regular expression: {error}"))
            })?;
            alpha_pattern.push((regex, alpha));
        }
        Ok(Self {
            alpha: value("lora_alpha").and_then(Value::as_f64),
            alpha_pattern,
            rank_stabilized: value("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The alpha of the first pattern that matches, else the one of all layers.
    fn alpha_of(&self, module: &str) -> Option<f64> {
        // A pattern that takes too long to match does not.
        let own = self.alpha_pattern.iter().find(|(pattern, _)| pattern.is_match(module).unwrap_or(false));
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
        let mut file = read(&layer(4), &metadata).expect("a good file");
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
        let mut refused = |name: &str, shape: &[i64]| {
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

    /// peft 0.21.2's `get_pattern_key` says the same of each.
    #[test]
    fn alpha_patterns_are_pefts_regular_expressions() {
        let alpha = |patterns: &str, module: &str| {
            let metadata = format!(r#"{{"unet.lora_alpha": 6, "unet.alpha_pattern": {patterns}}}"#);
            Hints::read(Path::new("lora.safetensors"), &HashMap::from([(METADATA_KEY.to_owned(), metadata)]))
                .map(|hints| hints.alpha_of(module).expect("all layers have one"))
        };
        let module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
        for (patterns, wanted) in [
            (r#"{"to_q": 1}"#, 1.0),
            (r#"{"attn1.to_q": 1}"#, 1.0),
            (r#"{"o_q": 1}"#, 6.0),
            (r#"{"to_q|to_k": 1}"#, 1.0),
            (r#"{".*attn1.*": 1}"#, 1.0),
            (r#"{"attn[12].to_.": 1, "to_q": 2}"#, 1.0),
            (r#"{"to_k": 1, "to_q": 2}"#, 2.0),
            (r#"{"^mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 1}"#, 1.0),
            (r#"{"^attn1.to_q": 1}"#, 6.0),
            (r#"{"(?!mid).*to_q": 1}"#, 1.0),
            (r#"{"mid(?=_block).*": 1}"#, 1.0),
            ("{}", 6.0),
        ] {
            assert_eq!(alpha(patterns, module).expect("good patterns"), wanted, "{patterns}");
        }
        let message = alpha(r#"{"to_(q": 1}"#, module).expect_err("a broken pattern").to_string();
        assert!(message.contains("`to_(q` is not a regular expression"), "{message}");
        let message = alpha(r#"{"to_q": "1"}"#, module).expect_err("no number").to_string();
        assert!(message.contains("the alpha of `to_q` is not a number"), "{message}");
    }

    #[test]
    fn files_of_kohyas_scripts_are_read_and_merged() {
        let [(_, a), (_, b)] = layer(2);
        let name = "lora_unet_block_to_q";
        let keys = [format!("{name}.lora_down.weight"), format!("{name}.lora_up.weight"), format!("{name}.alpha")];
        let alpha = Tensor::from(4.0f32);
        for convolution in [false, true] {
            let shaped =
                |tensor: &Tensor| if convolution { tensor.unsqueeze(-1).unsqueeze(-1) } else { tensor.shallow_clone() };
            let tensors = [(&*keys[0], shaped(&a)), (&*keys[1], shaped(&b)), (&*keys[2], alpha.shallow_clone())];
            let mut file = read(&tensors, &[]).expect("a good file");
            assert_eq!((file.layers[0].rank(), file.layers[0].alpha, file.layers[0].scaling), (2, 4.0, 2.0));
            let shape: &[i64] = if convolution { &[5, 3, 1, 1] } else { &[5, 3] };
            let original = tensor(shape, 3);
            let mut unet = NamedTensors::from([("block.to_q.weight".to_owned(), original.copy())]);
            file.merge_into(&mut unet, 1.0).expect("it fits");
            let wanted = original + (b.matmul(&a) * 2.0).view(shape);
            test_support::assert_close("merged", &unet["block.to_q.weight"], &wanted, 1e-6);
        }
    }

    #[test]
    fn what_is_not_a_plain_lora_is_named() {
        let refused = |tensors: &[(&str, Tensor)], metadata: &[(&str, &str)]| {
            read(tensors, metadata).expect_err("it is of another kind").to_string()
        };
        let with = |key: &'static str| {
            let [a, b] = layer(2);
            refused(&[a, b, (key, tensor(&[2], 5))], &[])
        };
        for (key, said) in [
            ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "adapts the text encoder"),
            ("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight", "adapts the text encoder"),
            ("lora_unet_block_to_q.dora_scale", "is of a DoRA"),
            ("unet.block.to_q.lora_magnitude_vector", "is of a DoRA"),
            ("lora_unet_block_to_q.lokr_w1", "is of a LoKr"),
            ("lora_unet_block_to_q.hada_w1_a", "is of a LoHa"),
            ("lora_unet_block_to_q.oft_blocks", "is of an OFT"),
            ("lora_unet_block_conv1.lora_mid.weight", "adapts a convolution"),
            ("unet.block.to_q.lora_B.bias", "is the bias of a LoRA"),
            ("diffusion_model.input_blocks.1.1.proj_in.lora_x", "names a layer as Stability's"),
            ("single_transformer_blocks.0.attn.x", "is it of another model?"),
        ] {
            let message = with(key);
            assert!(message.contains(&format!("tensor `{key}` ")) && message.contains(said), "{message}");
        }
        let conv = [(KEYS[0], tensor(&[2, 3, 3, 3], 1)), (KEYS[1], tensor(&[5, 2, 1, 1], 2))];
        assert!(refused(&conv, &[]).contains("adapts a 3×3 convolution"));
        for (config, said) in [
            (r#"{"unet.init_lora_weights": "pissa_niter_16"}"#, "changes the model's own weights"),
            (r#"{"unet.init_lora_weights": "OLoRA"}"#, "changes the model's own weights"),
            (r#"{"unet.use_dora": true}"#, "key `use_dora` makes it a DoRA"),
            (r#"{"unet.modules_to_save": ["conv_in"]}"#, "with whole layers of its own"),
            (r#"{"unet.layer_replication": [[0, 1]]}"#, "replicated layers"),
            (r#"{"unet.peft_type": "LOKR"}"#, "key `peft_type` is \"LOKR\""),
        ] {
            let message = refused(&layer(2), &[(METADATA_KEY, config)]);
            assert!(message.contains(said), "{message}");
        }
        let plain = r#"{"unet.init_lora_weights": "eva", "unet.use_dora": false, "unet.modules_to_save": [], "unet.peft_type": "LORA"}"#;
        read(&layer(2), &[(METADATA_KEY, plain)]).expect("a plain LoRA");
    }

    #[test]
    fn numbers_that_are_not_finite_are_refused_in_the_file_and_in_the_sum() {
        for value in [f64::NAN, f64::INFINITY] {
            let [(_, a), b] = layer(2);
            let broken = a.copy();
            drop(broken.get(1).get(2).fill_(value));
            let message = read(&[(KEYS[0], broken), b], &[]).expect_err("a number is not finite").to_string();
            assert!(message.ends_with(&format!("`{}` contains numbers that are not finite", KEYS[0])), "{message}");
        }
        let mut file = read(&layer(2), &[]).expect("a good file");
        let original = tensor(&[5, 3], 3).to_kind(Kind::Half);
        let mut unet = NamedTensors::from([("block.to_q.weight".to_owned(), original.copy())]);
        let message = file.merge_into(&mut unet, 1e6).expect_err("it overflows").to_string();
        assert!(message.ends_with("the weight of `block.to_q` exceeds the range of Half"), "{message}");
        assert_eq!(unet["block.to_q.weight"], original);
    }

    #[test]
    fn two_tensors_of_one_layer_are_refused() {
        let [(_, a), b] = layer(2);
        let message = read(&[(KEYS[0], a.copy()), b, ("base_model.model.block.to_q.lora_A.weight", a)], &[]);
        let message = message.expect_err("which one is meant?").to_string();
        assert!(message.ends_with("are of the same layer"), "{message}");
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
