//! Weights in the files that `torch.save` writes: archives, and the pickles in them.

use std::io::{Cursor, Read, Write};
use std::path::Path;

use ambiguity_models::safetensors::encode_safetensors;
use ambiguity_models::torch_file::{read_state_dict, read_torch_file};
use anyhow::{Context as _, Result};
use tch::Device;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::{files, put};

/// A committed file, whose pickle an input replaces.
const WHOLE: &[u8] = include_bytes!("../../tests/reference/torch_file/nested.pth");
/// How an archive begins; other inputs are pickles.
const ARCHIVE: &[u8] = b"PK";

/// Returns the committed files and their pickles.
pub fn archives(root: &Path) -> Result<Vec<Vec<u8>>> {
    let folder = root.join("tests/reference/torch_file");
    let mut seeds = files(&folder, "pth")?;
    for name in ["nested.pth", "protocol_4.pth"] {
        let whole = std::fs::read(folder.join(name)).with_context(|| name.to_owned())?;
        let mut zip = ZipArchive::new(Cursor::new(whole))?;
        for i in 0..zip.len() {
            let mut file = zip.by_index(i)?;
            if file.name()?.ends_with("/data.pkl") {
                let mut pickle = Vec::new();
                file.read_to_end(&mut pickle)?;
                seeds.push(pickle);
            }
        }
    }
    Ok(seeds)
}

/// Returns the committed file with another pickle, so that a changed pickle has its checksum.
fn with_pickle(pickle: &[u8]) -> Result<Vec<u8>> {
    let mut zip = ZipArchive::new(Cursor::new(WHOLE))?;
    let mut new = ZipWriter::new(Cursor::new(Vec::new()));
    new.start_file("archive/data.pkl", SimpleFileOptions::default().compression_method(CompressionMethod::Stored))?;
    new.write_all(pickle)?;
    for i in 0..zip.len() {
        let file = zip.by_index_raw(i)?;
        if !file.name()?.ends_with("/data.pkl") {
            new.raw_copy_file(file)?;
        }
    }
    Ok(new.finish()?.into_inner())
}

pub fn archive(folder: &Path, bytes: &[u8]) -> bool {
    let file = folder.join("weights.pth");
    if bytes.starts_with(ARCHIVE) {
        put(folder, "weights.pth", bytes);
    } else {
        put(folder, "weights.pth", &with_pickle(bytes).expect("the committed file is an archive"));
    }
    let Ok(whole) = read_torch_file(&file) else {
        // The state dict may be readable where the rest is not, but never the other way round.
        drop(read_state_dict(&file));
        return false;
    };
    let part = read_state_dict(&file).expect("a part of what was read");
    assert!(part.len() <= whole.len());
    for tensor in whole.values() {
        assert!(tensor.is_contiguous() && tensor.device() == Device::Cpu);
    }
    encode_safetensors(&file, &whole, &[]).expect("tensors of known types");
    true
}
