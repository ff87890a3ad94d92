//! The weight files of a Hugging Face model folder: one file, an fp16 variant, or shards with an index.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Device, Kind};

use crate::error::{Error, Result};
use crate::params::{NamedTensors, Params};
use crate::safetensors::{digest_safetensors, read_safetensors};

/// File stem of the weights in folders that diffusers writes.
pub const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";
/// File stem of the weights in folders that transformers writes.
pub const TRANSFORMERS_STEM: &str = "model";

/// Loads the parameters of a model folder, converted to `kind` on `device`; see [`read_folder`].
pub fn load_folder(dir: &Path, stem: &str, device: Device, kind: Kind) -> Result<Params> {
    let (tensors, source_name) = read(dir, stem)?;
    Ok(Params::from_tensors(tensors, &source_name, device, kind))
}

/// Reads the tensors of a model folder, on the CPU, in their own types. The plain file is preferred to the `fp16`
/// variant, and one file to shards.
pub fn read_folder(dir: &Path, stem: &str) -> Result<NamedTensors> {
    Ok(read(dir, stem)?.0)
}

/// The files that [`read_folder`] reads: one, or all shards that an index names, whether they exist or not.
pub fn weight_files(dir: &Path, stem: &str) -> Result<Vec<PathBuf>> {
    match files(dir, stem)? {
        Files::One(file) => Ok(vec![file]),
        Files::Shards(index) => shards(&index),
    }
}

/// The digest that identifies the weights of a model folder: [`digest_safetensors`] of its one file, or of all its
/// shards, in order.
pub fn digest_folder(dir: &Path, stem: &str) -> Result<String> {
    weight_files(dir, stem)?.iter().map(|file| digest_safetensors(file)).collect()
}

enum Files {
    One(PathBuf),
    /// Shards, by their index.
    Shards(PathBuf),
}

fn files(dir: &Path, stem: &str) -> Result<Files> {
    let candidates = [
        Files::One(dir.join(format!("{stem}.safetensors"))),
        Files::Shards(dir.join(format!("{stem}.safetensors.index.json"))),
        Files::One(dir.join(format!("{stem}.fp16.safetensors"))),
        Files::Shards(dir.join(format!("{stem}.safetensors.index.fp16.json"))),
        Files::Shards(dir.join(format!("{stem}.fp16.safetensors.index.json"))),
    ];
    let exists = |files: &Files| match files {
        Files::One(path) | Files::Shards(path) => path.is_file(),
    };
    candidates.into_iter().find(exists).ok_or_else(|| {
        let pickled = dir.join(format!("{stem}.bin")).is_file() || dir.join("pytorch_model.bin").is_file();
        let hint = if pickled { ": its pickled .bin weights are not read, save the model as safetensors" } else { "" };
        Error::Input(format!("{} has no {stem}.safetensors{hint}", dir.display()))
    })
}

/// The tensors, and the name of their source for errors.
fn read(dir: &Path, stem: &str) -> Result<(NamedTensors, String)> {
    match files(dir, stem)? {
        Files::One(file) => Ok((read_safetensors(&file)?, file.display().to_string())),
        Files::Shards(index) => {
            let mut tensors = NamedTensors::new();
            for shard in shards(&index)? {
                tensors.extend(read_safetensors(&shard)?);
            }
            Ok((tensors, index.display().to_string()))
        }
    }
}

/// The files that an index names, in alphabetical order.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let config = |message: &str| Error::Config { path: index.to_owned(), message: message.to_owned() };
    let text = std::fs::read_to_string(index).map_err(|source| Error::Io { path: index.to_owned(), source })?;
    let json: Value = serde_json::from_str(&text).map_err(|e| config(&format!("not valid JSON: {e}")))?;
    let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| config("has no `weight_map` object"))?;
    let mut shards = BTreeSet::new();
    for (tensor, file) in map {
        let plain = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        shards.insert(plain.ok_or_else(|| config(&format!("`weight_map` has no plain file name for `{tensor}`")))?);
    }
    let folder = index.parent().unwrap_or(Path::new("."));
    Ok(shards.into_iter().map(|shard| folder.join(shard)).collect())
}
