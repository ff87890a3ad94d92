//! Parity with transformers and Pillow: the reference tensors that `tests/reference/make_clip.py` computed.

mod errors;
mod tokenizer;
mod towers;

use std::collections::HashMap;
use std::path::Path;

use tempfile::TempDir;
use test_support::{Reference, assert_close, device, reference_path, shared, shipped_model};

use crate::params::NamedTensors;
use crate::safetensors::write_safetensors;

/// A network of the reference script as a folder in Hugging Face's layout, with inputs and outputs.
struct Checkpoint {
    folder: TempDir,
    data: NamedTensors,
    metadata: HashMap<String, String>,
}

impl Checkpoint {
    fn read(name: &str) -> Self {
        let reference = Reference::read(name);
        let folder = tempfile::tempdir().unwrap();
        let (weights, data) = (reference.part("weights."), reference.part("data."));
        write_safetensors(&folder.path().join("model.safetensors"), &weights, &[("format", "pt")]).unwrap();
        std::fs::write(folder.path().join("config.json"), &reference.metadata["config"]).unwrap();
        Self { folder, data, metadata: reference.metadata }
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// Changes one key of config.json; dots separate the keys of nested objects.
    fn set_config(&self, key: &str, value: serde_json::Value) {
        let file = self.dir().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let pointer = format!("/{}", key.replace('.', "/"));
        *config.pointer_mut(&pointer).unwrap() = value;
        std::fs::write(file, config.to_string()).unwrap();
    }
}
