//! The numbers of a set of images, in files by parts of the set: `0000-0016.safetensors` has those of the first 16, one tensor per
//! column, named by what computed it. A part is written as soon as it is complete.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ambiguity_models::params::NamedTensors;
use ambiguity_models::safetensors::{encode_safetensors, read_safetensors_with_metadata};
use anyhow::{Context as _, Result};
use ndarray::Array2;
use sha2::{Digest as _, Sha256};
use tch::{Kind, Tensor};

use super::images::ImageSet;
use crate::context::Context;
use crate::data::images::{ImageLoader, expect_file};
use crate::fs::write_atomic;
use crate::metrics::{Column, Evaluator, Measured};
use crate::plugin::{Batch, Sample};
use crate::progress::Bar;

/// Number of images of a part.
const PART: usize = 16;
/// The metadata with the digest of a part's images and prompts.
const IMAGES: &str = "images";

/// Returns columns of a set: those that are not in its files are measured and added to them, each part by one of the processes.
/// The first process returns all, the others nothing.
///
/// # Errors
/// [`Interrupted`](crate::interrupt::Interrupted) if the user asked to stop.
pub fn measure(
    set: &ImageSet,
    columns: &[Column],
    evaluator: &mut Evaluator,
    Context { processes, interrupt, .. }: &Context,
    bar: &mut Bar,
) -> Result<Measured> {
    let identities = columns.iter().map(|column| evaluator.identity(column)).collect::<Result<Vec<String>>>()?;
    let loader = ImageLoader::default();
    fs_err::create_dir_all(&set.values)?;
    let ranges: Vec<Range<usize>> =
        (0..set.len()).step_by(PART).map(|first| first..(first + PART).min(set.len())).collect();
    let path_of = |range: &Range<usize>| set.values.join(format!("{:04}-{:04}.safetensors", range.start, range.end));
    let mut measured_parts = BTreeMap::new();
    for (part, range) in ranges.iter().enumerate() {
        interrupt.check("")?;
        if !processes.is_own(part) {
            bar.skip(range.len() as u64);
            continue;
        }
        let (files, prompts) = (&set.files[range.clone()], &set.prompts[range.clone()]);
        let path = path_of(range);
        let digest = digest(files, prompts)?;
        let mut stored = read(&path, &digest, range.len());
        let is_missing = |i: &usize| !stored.contains_key(&identities[*i]);
        let missing: Vec<usize> = (0..columns.len()).filter(is_missing).collect();
        if missing.is_empty() {
            bar.skip(range.len() as u64);
        } else {
            let sample = |(file, prompt): (&std::path::PathBuf, &String)| -> Result<Sample> {
                let image = Some(Arc::new(loader.read(file)?));
                Ok(Sample { prompt: prompt.clone(), image, ..Sample::default() })
            };
            let samples = files.iter().zip(prompts).map(sample).collect::<Result<Vec<_>>>()?;
            let mut batch = Batch::new(samples);
            let wanted: Vec<Column> = missing.iter().map(|&i| columns[i].clone()).collect();
            let measured = evaluator.measure(&mut batch, &wanted)?;
            for (&i, column) in missing.iter().zip(&wanted) {
                stored.insert(identities[i].clone(), tensor(measured.rows(column)));
            }
            write_atomic(&path, &encode_safetensors(&path, &stored, &[(IMAGES, &digest)])?)?;
            bar.inc(range.len() as u64);
        }
        measured_parts.insert(range.start, stored);
    }
    processes.wait()?;
    if !processes.is_first() {
        return Ok(Measured::default());
    }
    let mut parts = vec![];
    for range in &ranges {
        let stored = match measured_parts.remove(&range.start) {
            Some(stored) => stored,
            None => {
                let digest = digest(&set.files[range.clone()], &set.prompts[range.clone()])?;
                read(&path_of(range), &digest, range.len())
            }
        };
        let mut part = Measured::default();
        for (column, identity) in columns.iter().zip(&identities) {
            let tensor = stored.get(identity).with_context(|| {
                let path = path_of(range);
                format!(
                    "{} lacks numbers that another process should have written: does it see this folder?",
                    path.display()
                )
            })?;
            part.insert(column.clone(), array(tensor)?);
        }
        parts.push(part);
    }
    let whole = Measured::concatenated(&parts, columns);
    whole.with_context(|| format!("{} has numbers of different plugins: remove that folder", set.values.display()))
}

/// Returns the digest of images and their prompts.
fn digest(files: &[std::path::PathBuf], prompts: &[String]) -> Result<String> {
    let mut hash = Sha256::new();
    for (file, prompt) in files.iter().zip(prompts) {
        expect_file(file)?;
        hash.update(Sha256::digest(fs_err::read(file)?));
        hash.update((prompt.len() as u64).to_le_bytes());
        hash.update(prompt);
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// Reads the numbers of a part; none if they are of other images, or the file is missing or damaged.
fn read(path: &Path, digest: &str, n: usize) -> NamedTensors {
    let Ok((mut tensors, metadata)) = read_safetensors_with_metadata(path) else { return NamedTensors::new() };
    if metadata.get(IMAGES).map(String::as_str) != Some(digest) {
        return NamedTensors::new();
    }
    tensors.retain(|_, tensor| {
        let is_matrix = tensor.kind() == Kind::Double && tensor.dim() == 2;
        let fits = is_matrix && tensor.size()[0] == n as i64 && tensor.size()[1] > 0;
        fits && tensor.isfinite().all().int64_value(&[]) == 1
    });
    tensors
}

fn tensor(rows: &Array2<f64>) -> Tensor {
    let values: Vec<f64> = rows.iter().copied().collect();
    Tensor::from_slice(&values).view([rows.nrows() as i64, rows.ncols() as i64])
}

fn array(tensor: &Tensor) -> Result<Array2<f64>> {
    let (rows, columns) = tensor.size2()?;
    let values = Vec::<f64>::try_from(&tensor.contiguous().view([-1]))?;
    Ok(Array2::from_shape_vec((rows as usize, columns as usize), values)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_none_are_computed_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("0000-0002.safetensors");
        let tensors = NamedTensors::from([
            ("empty".to_owned(), Tensor::zeros([2, 0], (Kind::Double, tch::Device::Cpu))),
            ("infinite".to_owned(), tensor(&ndarray::array![[1.0], [f64::INFINITY]])),
            ("single".to_owned(), Tensor::zeros([2, 1], (Kind::Float, tch::Device::Cpu))),
            ("good".to_owned(), tensor(&ndarray::array![[1.0], [2.0]])),
        ]);
        let bytes = encode_safetensors(&path, &tensors, &[(IMAGES, "d")]).expect("it encodes");
        std::fs::write(&path, bytes).expect("writable");
        assert_eq!(read(&path, "d", 2).keys().collect::<Vec<_>>(), ["good"]);
    }

    #[test]
    fn numbers_are_those_of_the_same_images_and_prompts() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.png");
        std::fs::write(&file, "one").expect("writable");
        let files = [file.clone()];
        let before = digest(&files, &["a cat".to_owned()]).expect("readable");
        let path = folder.path().join("0000.safetensors");
        let rows = ndarray::array![[1.5, -2.0]];
        let tensors = NamedTensors::from([("plugin p 01".to_owned(), tensor(&rows))]);
        let bytes = encode_safetensors(&path, &tensors, &[(IMAGES, &before)]).expect("it encodes");
        std::fs::write(&path, bytes).expect("writable");
        let found = read(&path, &before, 1);
        assert_eq!(array(&found["plugin p 01"]).expect("a matrix"), rows);
        assert!(read(&path, &before, 2).is_empty(), "another number of images");
        assert!(read(&path, &digest(&files, &["a dog".to_owned()]).expect("readable"), 1).is_empty());
        std::fs::write(&file, "two").expect("writable");
        assert!(read(&path, &digest(&files, &["a cat".to_owned()]).expect("readable"), 1).is_empty());
        std::fs::write(&path, "damaged").expect("writable");
        assert!(read(&path, &before, 1).is_empty());
    }
}
