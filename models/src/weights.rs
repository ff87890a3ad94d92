//! The weight files of a Hugging Face model folder: one file, an fp16 variant, or shards with an index; and weights in
//! PyTorch's own files, as which the networks of evaluation metrics are published.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tch::{Device, Kind};

use crate::error::{Error, Result};
use crate::json::{JsonObject, MAX_LAYERS, MAX_SIZE};
use crate::params::{NamedTensors, Params};
use crate::safetensors::{digest_shards, hex, read_safetensors};
use crate::torch_file::{is_torch_file, read_state_dict};

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

/// The digest that identifies the weights of a model folder, the same for one file as for shards: [`digest_shards`].
pub fn digest_folder(dir: &Path, stem: &str) -> Result<String> {
    digest_shards(&weight_files(dir, stem)?)
}

/// File name of pickled weights in folders that transformers writes.
const PICKLED: &str = "pytorch_model.bin";

/// Loads the parameters of a published network, converted to `kind` on `device`; see [`read_weights`].
pub fn load_weights(path: &Path, device: Device, kind: Kind) -> Result<Params> {
    Ok(Params::from_tensors(read_weights(path)?, &path.display().to_string(), device, kind))
}

/// Reads the tensors of a published network, on the CPU, in their own types, from a safetensors file, from the state
/// dict in a file of PyTorch (.pth, .pt, .bin), whatever their names, or from a folder that contains one of these:
/// `model.safetensors` and its variants, or else `pytorch_model.bin`. A folder without these is read if a single file in it
/// has one of these endings.
///
/// # Errors
/// If there is no such file, or the file cannot be read; see [`read_state_dict`].
pub fn read_weights(path: &Path) -> Result<NamedTensors> {
    if !path.is_dir() {
        return read_one(path);
    }
    if files(path, TRANSFORMERS_STEM).is_ok() {
        return read_folder(path, TRANSFORMERS_STEM);
    }
    let pickled = path.join(PICKLED);
    if pickled.is_file() { read_one(&pickled) } else { read_one(&only_file(path)?) }
}

/// The digest that identifies the weights of [`read_weights`]: [`digest_folder`] of a folder with safetensors, or else the
/// sha256 of the one file, in hex.
///
/// # Errors
/// If there is no such file, or it cannot be read.
pub fn digest_weights(path: &Path) -> Result<String> {
    if path.is_dir() && files(path, TRANSFORMERS_STEM).is_ok() {
        return digest_folder(path, TRANSFORMERS_STEM);
    }
    let pickled = path.join(PICKLED);
    let file = match path.is_dir() {
        true if pickled.is_file() => pickled,
        true => only_file(path)?,
        false => path.to_owned(),
    };
    let mut hash = Sha256::new();
    let copied = File::open(&file).and_then(|mut file| std::io::copy(&mut file, &mut hash));
    copied.map_err(|source| Error::Io { path: file, source })?;
    Ok(hex(&hash.finalize()))
}

/// The one file in a folder that has the ending of weights.
fn only_file(dir: &Path) -> Result<PathBuf> {
    let io = |source| Error::Io { path: dir.to_owned(), source };
    let paths = std::fs::read_dir(dir).map_err(io)?.map(|entry| Ok(entry.map_err(io)?.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<Result<_>>()?;
    let endings = ["safetensors", "pth", "pt", "bin"];
    paths.retain(|path| path.is_file() && endings.iter().any(|ending| path.extension().is_some_and(|e| e == *ending)));
    match &paths[..] {
        [path] => Ok(path.clone()),
        _ => {
            let (dir, n) = (dir.display(), paths.len());
            Err(Error::Input(format!(
                "{dir} must contain model.safetensors, {PICKLED} or one other file of weights, found {n}"
            )))
        }
    }
}

/// Reads a file by what it begins with.
fn read_one(path: &Path) -> Result<NamedTensors> {
    let mut beginning = Vec::new();
    let io = |source| Error::Io { path: path.to_owned(), source };
    File::open(path).and_then(|file| file.take(16).read_to_end(&mut beginning)).map_err(io)?;
    let named = |endings: &[&str]| endings.iter().any(|ending| path.extension().is_some_and(|e| e == *ending));
    if is_torch_file(&beginning) || named(&["pth", "pt", "bin"]) {
        read_state_dict(path)
    } else {
        read_safetensors(path)
    }
}
/// Length of an axis of a tensor of `path`, for networks whose sizes are those of the shapes in their files.
pub(crate) fn axis_length(path: &Path, tensors: &NamedTensors, name: &str, axis: usize) -> Result<i64> {
    let source_name = path.display().to_string();
    let Some(tensor) = tensors.get(name) else {
        return Err(Error::MissingTensor { name: name.to_owned(), source_name });
    };
    match tensor.size().get(axis) {
        Some(&length) if (1..=MAX_SIZE).contains(&length) => Ok(length),
        _ => Err(Error::Input(format!("tensor `{name}` in {source_name} has shape {:?}", tensor.size()))),
    }
}

/// Number of consecutive layers PREFIX.0, PREFIX.1, … that have a tensor `name`.
pub(crate) fn number_of_layers(tensors: &NamedTensors, prefix: &str, name: &str) -> i64 {
    (0..MAX_LAYERS).take_while(|i| tensors.contains_key(&format!("{prefix}.{i}.{name}"))).count() as i64
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
                for (name, tensor) in read_safetensors(&shard)? {
                    if tensors.insert(name.clone(), tensor).is_some() {
                        let message = format!("tensor `{name}` is in another shard too");
                        return Err(Error::Safetensors { path: shard, message });
                    }
                }
            }
            Ok((tensors, index.display().to_string()))
        }
    }
}

/// The files that an index names, in alphabetical order.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let config = |message: &str| Error::Config { path: index.to_owned(), message: message.to_owned() };
    let json = JsonObject::read(index)?;
    let map = json.object("weight_map")?.ok_or_else(|| json.error("weight_map", "is missing"))?;
    let mut shards = BTreeSet::new();
    for (tensor, file) in map.entries() {
        let plain = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        shards.insert(plain.ok_or_else(|| config(&format!("`weight_map` has no plain file name for `{tensor}`")))?);
    }
    if shards.is_empty() {
        return Err(config("`weight_map` is empty"));
    }
    let folder = index.parent().unwrap_or(Path::new("."));
    Ok(shards.into_iter().map(|shard| folder.join(shard)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clip::Clip;
    use crate::params::MemoryFormat;
    use crate::safetensors::write_safetensors;
    use crate::unet::UNet;
    use crate::vae::Vae;

    /// Writes a folder's weights again, as two shards with an index, of this infix.
    fn shard(from: &Path, to: &Path, stem: &str, kind: Kind, half: bool) {
        std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
        let all = read_folder(from, stem).unwrap();
        let middle = all.keys().nth(all.len() / 2).unwrap().clone();
        let infix = if half { ".fp16" } else { "" };
        let names = [1, 2].map(|i| format!("{stem}{infix}-0000{i}-of-00002.safetensors"));
        let (mut shards, mut map) = ([NamedTensors::new(), NamedTensors::new()], serde_json::Map::new());
        for (name, tensor) in all {
            let i = usize::from(name >= middle);
            map.insert(name.clone(), names[i].clone().into());
            shards[i].insert(name, tensor.to_kind(kind));
        }
        for (name, tensors) in names.iter().zip(&shards) {
            write_safetensors(&to.join(name), tensors, &[("format", "pt")]).unwrap();
        }
        let index = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        let name = if half { "index.fp16" } else { "index" };
        std::fs::write(to.join(format!("{stem}.safetensors.{name}.json")), index.to_string()).unwrap();
    }

    #[test]
    fn shards_and_half_precision_are_read_as_one_file_is() {
        let shipped = test_support::shipped_model();
        let parts =
            [("clip", TRANSFORMERS_STEM), ("diffusion/unet", DIFFUSERS_STEM), ("diffusion/vae", DIFFUSERS_STEM)];
        for (part, stem) in parts {
            let from = shipped.join(part);
            let own = read_folder(&from, stem).unwrap();
            let kind = own.values().next().unwrap().kind();
            for (kind, half) in [(kind, false), (Kind::Half, true)] {
                let folder = tempfile::tempdir().unwrap();
                shard(&from, folder.path(), stem, kind, half);
                let read = read_folder(folder.path(), stem).unwrap();
                assert!(read.keys().eq(own.keys()), "{part}");
                assert!(own.iter().all(|(name, tensor)| read[name].equal(&tensor.to_kind(kind))), "{part}");
                match part {
                    "clip" => drop(Clip::load(folder.path(), Device::Cpu, Kind::Float).unwrap()),
                    "diffusion/unet" => {
                        let format = MemoryFormat::Contiguous;
                        drop(UNet::load(folder.path(), Device::Cpu, Kind::Float, format).unwrap());
                    }
                    _ => drop(Vae::load(folder.path(), Device::Cpu, Kind::Float, MemoryFormat::Contiguous).unwrap()),
                }
                if !half {
                    let digests = [&from, folder.path()].map(|folder| digest_folder(folder, stem).unwrap());
                    assert_eq!(digests[0], digests[1], "{part}");
                }
            }
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(shipped.join("clip/config.json"), folder.path().join("config.json")).unwrap();
        let fp16 = folder.path().join("model.fp16.safetensors");
        std::fs::copy(shipped.join("clip/model.safetensors"), fp16).unwrap();
        Clip::load(folder.path(), Device::Cpu, Kind::Float).unwrap();
    }

    #[test]
    fn an_index_names_files_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        for (text, wanted) in [
            ("{}", "key `weight_map` is missing"),
            (r#"{"weight_map": {}}"#, "`weight_map` is empty"),
            (r#"{"weight_map": {"a": "../x.safetensors"}}"#, "`weight_map` has no plain file name for `a`"),
            (r#"{"weight_map": {"a": ".."}}"#, "`weight_map` has no plain file name for `a`"),
            (r#"{"weight_map": {"a": 1}}"#, "`weight_map` has no plain file name for `a`"),
        ] {
            std::fs::write(&index, text).unwrap();
            let message = weight_files(folder.path(), TRANSFORMERS_STEM).unwrap_err().to_string();
            assert!(message.ends_with(wanted), "{message}");
        }
        std::fs::write(&index, r#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#).unwrap();
        let tensors = NamedTensors::from([("a".to_owned(), tch::Tensor::from(1.0f32))]);
        for name in ["1.safetensors", "2.safetensors"] {
            write_safetensors(&folder.path().join(name), &tensors, &[]).unwrap();
        }
        let message = read_folder(folder.path(), TRANSFORMERS_STEM).unwrap_err().to_string();
        assert!(message.ends_with("tensor `a` is in another shard too"), "{message}");
    }
}
