//! Parity with transformers and Pillow: the reference tensors that `tests/reference/make_clip.py` made.

mod errors;
mod preprocess;
mod tokenizer;
mod towers;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};
use tempfile::TempDir;

use crate::params::NamedTensors;
use crate::safetensors::{read_safetensors_with_metadata, write_safetensors};

fn reference_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/reference").join(name)
}

/// A folder beside the workspace that not everyone has; says so aloud where it is absent.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/reference").join(name);
    if !path.exists() {
        eprintln!("skipped: there is no ../shared/reference/{name} beside the workspace");
    }
    path.exists().then_some(path)
}

fn relative_error(found: &Tensor, wanted: &Tensor) -> f64 {
    assert_eq!(found.size(), wanted.size());
    let (found, wanted) = (found.detach().to_kind(Kind::Double), wanted.detach().to_kind(Kind::Double));
    ((found - &wanted).norm() / wanted.norm()).double_value(&[])
}

fn assert_close(what: &str, found: &Tensor, wanted: &Tensor, tolerance: f64) {
    let error = relative_error(found, wanted);
    assert!(error <= tolerance, "{what}: relative error {error:.2e} is above {tolerance:.0e}");
}

/// A network of the reference script as a folder in Hugging Face's layout, with its inputs and outputs.
struct Reference {
    folder: TempDir,
    data: NamedTensors,
    metadata: HashMap<String, String>,
}

impl Reference {
    fn read(name: &str) -> Self {
        let (tensors, metadata) = read_safetensors_with_metadata(&reference_file(name)).unwrap();
        let part = |prefix: &str| -> NamedTensors {
            let entries = tensors.iter().filter_map(|(k, t)| Some((k.strip_prefix(prefix)?, t)));
            entries.map(|(k, t)| (k.to_owned(), t.shallow_clone())).collect()
        };
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(&folder.path().join("model.safetensors"), &part("weights."), &[("format", "pt")]).unwrap();
        std::fs::write(folder.path().join("config.json"), &metadata["config"]).unwrap();
        Self { folder, data: part("data."), metadata }
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// The config.json with one key changed; dots lead into nested objects.
    fn set_config(&self, key: &str, value: serde_json::Value) {
        let file = self.dir().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let pointer = format!("/{}", key.replace('.', "/"));
        *config.pointer_mut(&pointer).unwrap() = value;
        std::fs::write(file, config.to_string()).unwrap();
    }
}
