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
        let path = lora_file(path)?;
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

/// Returns the file itself, or the one in a folder that diffusers or peft wrote.
///
/// # Errors
/// If the folder has neither.
pub fn lora_file(path: &Path) -> Result<PathBuf> {
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
mod tests;
