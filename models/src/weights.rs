//! Where the weights of a Hugging Face model folder lie: one file, an fp16 variant, or shards with an index.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind};

use crate::error::{Error, Result};
use crate::params::{NamedTensors, Params};
use crate::safetensors::read_safetensors;

/// File stem of the weights in folders that diffusers writes.
pub const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// File stem of the weights in folders that transformers writes.
pub const TRANSFORMERS_STEM: &str = "model";

/// The parameters of a model folder, converted to `kind` on `device`. The plain file is preferred to the `fp16`
/// variant, one file to shards.
pub fn load_folder(dir: &Path, stem: &str, device: Device, kind: Kind) -> Result<Params> {
    let plain = dir.join(format!("{stem}.safetensors"));
    let half = dir.join(format!("{stem}.fp16.safetensors"));
    let indices = [
        dir.join(format!("{stem}.safetensors.index.json")),
        dir.join(format!("{stem}.safetensors.index.fp16.json")),
        dir.join(format!("{stem}.fp16.safetensors.index.json")),
    ];
    if plain.is_file() {
        Params::load(&plain, device, kind)
    } else if let Some(index) = indices[..1].iter().find(|path| path.is_file()) {
        load_shards(index, device, kind)
    } else if half.is_file() {
        Params::load(&half, device, kind)
    } else if let Some(index) = indices[1..].iter().find(|path| path.is_file()) {
        load_shards(index, device, kind)
    } else {
        let pickled = dir.join(format!("{stem}.bin")).is_file() || dir.join("pytorch_model.bin").is_file();
        let hint = if pickled { ": its pickled .bin weights are not read, save the model as safetensors" } else { "" };
        Err(Error::Input(format!("{} has no {stem}.safetensors{hint}", dir.display())))
    }
}

/// Reads all shards that an index names.
fn load_shards(index: &Path, device: Device, kind: Kind) -> Result<Params> {
    let config = |message: &str| Error::Config { path: index.to_owned(), message: message.to_owned() };
    let text = std::fs::read_to_string(index).map_err(|source| Error::Io { path: index.to_owned(), source })?;
    let json: Value = serde_json::from_str(&text).map_err(|e| config(&format!("not valid JSON: {e}")))?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| config("has no `weight_map` object"))?;
    let mut shards = BTreeSet::new();
    for (tensor, file) in map {
        let plain = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        shards.insert(plain.ok_or_else(|| config(&format!("`weight_map` names no plain file for `{tensor}`")))?);
    }
    let folder = index.parent().unwrap_or(Path::new("."));
    let mut tensors = NamedTensors::new();
    for shard in shards {
        tensors.extend(read_safetensors(&folder.join(shard))?);
    }
    Ok(Params::from_tensors(tensors, &index.display().to_string(), device, kind))
}
