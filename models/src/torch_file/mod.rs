//! Reading the files that `torch.save` writes (.pth, .pt, .bin) without Python and without running what is in them.
//!
//! Such a file is a zip archive, uncompressed, of a pickle (`data.pkl`) and of one file per storage (`data/0`, …). A pickle
//! can call any function of Python, which is why `torch.load` of a file from elsewhere is a risk; the reader in `pickle`
//! knows only what a dictionary of tensors needs and refuses the rest. Sizes, offsets and strides are compared with the
//! file's length before memory is allocated for them.

mod pickle;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use tch::Tensor;
use zip::{CompressionMethod, ZipArchive};

use crate::error::{Error, Result};
use crate::params::NamedTensors;
use crate::safetensors::map_file;
use pickle::{Id, Value, Values, View};

/// The longest pickle in bytes; that of a checkpoint with 10,000 tensors has 2 MB.
const MAX_PICKLE: usize = 1 << 23;
/// The largest number of values within all dictionaries and lists, each counted as often as it is contained.
const MAX_ENTRIES: usize = 1 << 20;
/// The largest number of dictionaries and lists within each other.
const MAX_DEPTH: usize = 32;
/// The longest name of a tensor in bytes, dots and the keys of all dictionaries included.
const MAX_NAME: usize = 1024;
/// The keys below which training programs save the state dict among other things.
const STATE_DICT_KEYS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// How a file of PyTorch before 1.6 begins, after the two bytes of its pickle's protocol: with a magic number.
const LEGACY: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Reads all tensors of a file that `torch.save` wrote, on the CPU, contiguous, in the file's own types.
///
/// The keys of nested dictionaries and the indices of lists are joined by dots. Values that are no tensors are left out.
///
/// # Errors
/// If the file is damaged, in the format of PyTorch before 1.6, a TorchScript program, or contains anything but
/// dictionaries, lists, tensors and plain values; the message names it.
pub fn read_torch_file(path: &Path) -> Result<NamedTensors> {
    read(path, |_, top| top)
}

/// Reads the tensors of a state dict: of the dictionary under `state_dict`, `model_state_dict` or `model`, if the file's
/// dictionary has one of these, and else of the whole file.
///
/// # Errors
/// As [`read_torch_file`]. The rest of the file must be readable too, but no memory is allocated for its tensors.
pub fn read_state_dict(path: &Path) -> Result<NamedTensors> {
    read(path, state_dict)
}

/// Whether a file begins as those that `torch.save` writes, today or before PyTorch 1.6.
pub(crate) fn is_torch_file(beginning: &[u8]) -> bool {
    beginning.starts_with(b"PK\x03\x04") || is_legacy(beginning)
}

fn is_legacy(bytes: &[u8]) -> bool {
    bytes.first() == Some(&0x80) && bytes.get(2..).is_some_and(|rest| rest.starts_with(&LEGACY))
}

fn read(path: &Path, select: impl Fn(&Values, Id) -> Id) -> Result<NamedTensors> {
    let map = map_file(path, |message| bad(path, message))?;
    let archive = Archive::open(&map).map_err(|message| bad(path, message))?;
    let (values, top) = archive.pickle().and_then(pickle::read).map_err(|message| bad(path, message))?;
    let mut tensors = Tensors {
        path,
        archive,
        values: &values,
        named: NamedTensors::new(),
        views: HashMap::new(),
        verified: HashSet::new(),
        entries: 0,
        // Views may share elements and so have more bytes than the file, but not without a bound.
        budget: 2 * map.len() as u64 + (1 << 20),
    };
    match values.get(top) {
        Value::Dict(_) | Value::List(_) => tensors.collect(select(&values, top), String::new(), 0)?,
        _ => return Err(bad(path, "it contains no dictionary of tensors".to_owned())),
    }
    Ok(tensors.named)
}

fn bad(path: &Path, message: String) -> Error {
    Error::TorchFile { path: path.to_owned(), message }
}

fn state_dict(values: &Values, top: Id) -> Id {
    let Value::Dict(pairs) = values.get(top) else { return top };
    let dict_under = |wanted: &str| {
        let named = |&&(key, value): &&(Id, Id)| {
            matches!(values.get(key), Value::Text(key) if key == wanted) && matches!(values.get(value), Value::Dict(_))
        };
        pairs.iter().rev().find(named).map(|&(_, value)| value)
    };
    STATE_DICT_KEYS.iter().find_map(|key| dict_under(key)).unwrap_or(top)
}

/// The uncompressed files of a zip archive in memory.
struct Archive<'a> {
    bytes: &'a [u8],
    /// The place of each file and its CRC-32, by its name without the folder that contains all.
    files: HashMap<String, (Range<usize>, u32)>,
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> pickle::Result<Self> {
        if is_legacy(bytes) {
            let message = "it is in the format of PyTorch before 1.6; convert it with \
                           `torch.save(torch.load(FILE, weights_only=True), FILE)`";
            return Err(message.to_owned());
        }
        if !bytes.starts_with(b"PK\x03\x04") {
            return Err("it is no zip archive, which is what `torch.save` writes".to_owned());
        }
        let damaged = |error: zip::result::ZipError| format!("its zip archive is damaged or incomplete: {error}");
        let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
        let mut files = HashMap::new();
        // Files that lie one after another have no more bytes than the archive.
        let mut left = bytes.len();
        for i in 0..zip.len() {
            let file = zip.by_index_raw(i).map_err(damaged)?;
            if file.is_dir() {
                continue;
            }
            let name = file.name().map_err(damaged)?;
            let name = name.split_once('/').map_or(&*name, |(_, name)| name).to_owned();
            let plain = file.compression() == CompressionMethod::Stored && !file.encrypted();
            let place = file.data_start().and_then(|start| {
                let range = usize::try_from(start).ok()?..usize::try_from(start.checked_add(file.size())?).ok()?;
                (plain && range.end <= bytes.len()).then_some(range)
            });
            let Some(place) = place else {
                return Err(format!("`{name}` in its zip archive is compressed or beyond its end"));
            };
            left = left.checked_sub(place.len()).ok_or("the files in its zip archive overlap")?;
            files.insert(name, (place, file.crc32()));
        }
        if files.contains_key("constants.pkl") {
            return Err(
                "it is a TorchScript program; save its state dict, `torch.save(model.state_dict(), FILE)`".to_owned()
            );
        }
        Ok(Self { bytes, files })
    }

    fn pickle(&self) -> pickle::Result<&'a [u8]> {
        if self.files.contains_key("byteorder") && self.file("byteorder")? != b"little" {
            return Err("its numbers are big-endian".to_owned());
        }
        let bytes = self.file("data.pkl")?;
        self.verify("data.pkl")?;
        if bytes.len() > MAX_PICKLE {
            return Err(format!("its pickle has {} bytes, at most {MAX_PICKLE} are read", bytes.len()));
        }
        Ok(bytes)
    }

    fn file(&self, name: &str) -> pickle::Result<&'a [u8]> {
        let (place, _) = self.files.get(name).ok_or_else(|| format!("its zip archive has no `{name}`"))?;
        Ok(&self.bytes[place.clone()])
    }

    /// Compares a file with its checksum.
    fn verify(&self, name: &str) -> pickle::Result<()> {
        let bytes = self.file(name)?;
        match self.files.get(name) {
            Some(&(_, crc)) if crc32fast::hash(bytes) == crc => Ok(()),
            _ => Err(format!("`{name}` in its zip archive does not have its checksum: is the file damaged?")),
        }
    }
}

/// The tensors that were found so far.
struct Tensors<'a> {
    path: &'a Path,
    archive: Archive<'a>,
    values: &'a Values,
    named: NamedTensors,
    /// Tensors by their view, so that those that are the same in the file share their memory here.
    views: HashMap<View, Tensor>,
    /// The storages whose checksum was verified.
    verified: HashSet<String>,
    entries: usize,
    /// Number of bytes that further tensors may have.
    budget: u64,
}

impl Tensors<'_> {
    /// Reads the tensors of a value whose own name is `name`.
    fn collect(&mut self, id: Id, name: String, depth: usize) -> Result<()> {
        self.entries += 1;
        if self.entries > MAX_ENTRIES || depth > MAX_DEPTH {
            return Err(bad(self.path, "its dictionaries contain too much or themselves".to_owned()));
        }
        let (values, path) = (self.values, self.path);
        let join = |key: &str| match name.len() + key.len() {
            MAX_NAME.. => Err(bad(path, format!("a name in it is longer than {MAX_NAME} bytes"))),
            _ if name.is_empty() => Ok(key.to_owned()),
            _ => Ok(format!("{name}.{key}")),
        };
        match values.get(id) {
            Value::Dict(pairs) => pairs.iter().try_for_each(|&(key, value)| match values.get(key) {
                Value::Text(key) => join(key).and_then(|name| self.collect(value, name, depth + 1)),
                Value::Int(key) => join(&key.to_string()).and_then(|name| self.collect(value, name, depth + 1)),
                _ => Ok(()),
            }),
            Value::List(items) | Value::Tuple(items) => items
                .iter()
                .enumerate()
                .try_for_each(|(i, &item)| join(&i.to_string()).and_then(|name| self.collect(item, name, depth + 1))),
            Value::Tensor { .. } => {
                let named = |message| bad(self.path, format!("tensor `{name}`: {message}"));
                let view = values.view(id).map_err(named)?.ok_or_else(|| named("it is none".to_owned()))?;
                let tensor = self.tensor(view, &name)?;
                if self.named.insert(name.clone(), tensor).is_some() {
                    return Err(bad(self.path, format!("it has two tensors named `{name}`")));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tensor(&mut self, view: View, name: &str) -> Result<Tensor> {
        if let Some(tensor) = self.views.get(&view) {
            return Ok(tensor.shallow_clone());
        }
        let bad = |message: String| bad(self.path, format!("tensor `{name}`: {message}"));
        let file = format!("data/{}", view.key);
        let bytes = self.archive.file(&file).map_err(bad)?;
        if self.verified.insert(view.key.clone()) {
            self.archive.verify(&file).map_err(bad)?;
        }
        let width = view.kind.elt_size_in_bytes();
        if view.n_elements.checked_mul(width as u64) != Some(bytes.len() as u64) {
            let (n, found) = (view.n_elements, bytes.len());
            return Err(bad(format!("`{file}` should have {n} elements of {width} bytes, but has {found} bytes")));
        }
        let shape = || format!("shape {:?} and strides {:?} from {}", view.size, view.stride, view.offset);
        let n_bytes =
            view.check().ok_or_else(|| bad(format!("{} exceed its {} elements", shape(), view.n_elements)))?;
        self.budget = self
            .budget
            .checked_sub(n_bytes)
            .ok_or_else(|| bad(format!("with {} the file's tensors are much larger than the file", shape())))?;
        let size: Vec<i64> = view.size.iter().map(|&n| n as i64).collect();
        let tensor = match view.contiguous() {
            Some(range) => Tensor::f_from_data_size(&bytes[range], &size, view.kind)?,
            None => Tensor::f_from_data_size(&view.gather(bytes), &size, view.kind)?,
        };
        self.views.insert(view, tensor.shallow_clone());
        Ok(tensor)
    }
}

impl View {
    /// Number of bytes of the tensor, if all its elements are within the storage.
    fn check(&self) -> Option<u64> {
        // Even beside a length of 0, the others must fit libtorch's numbers.
        let n = self.size.iter().try_fold(1i64, |n, &length| n.checked_mul(i64::try_from(length.max(1)).ok()?))?;
        let n = if self.size.contains(&0) { 0 } else { n as u64 };
        let last = self.size.iter().zip(&self.stride).try_fold(self.offset, |last, (&length, &stride)| {
            last.checked_add(length.saturating_sub(1).checked_mul(stride)?)
        })?;
        if n > 0 && last >= self.n_elements {
            return None;
        }
        n.checked_mul(self.kind.elt_size_in_bytes() as u64)
    }

    /// The bytes of a tensor whose elements lie one after another, the last axis innermost.
    fn contiguous(&self) -> Option<Range<usize>> {
        let mut n = 1;
        for (&length, &stride) in self.size.iter().zip(&self.stride).rev() {
            if length > 1 && stride != n {
                return (self.size.contains(&0)).then_some(0..0);
            }
            n *= length;
        }
        let width = self.kind.elt_size_in_bytes();
        let start = if n == 0 { 0 } else { self.offset as usize * width };
        Some(start..start + n as usize * width)
    }

    /// Copies the elements into their order, for a view that [`View::check`] accepted.
    fn gather(&self, storage: &[u8]) -> Vec<u8> {
        let width = self.kind.elt_size_in_bytes();
        let mut starts = vec![self.offset as usize];
        for (&length, &stride) in self.size.iter().zip(&self.stride) {
            let steps = |start: usize| (0..length).map(move |i| start + (i * stride) as usize);
            starts = starts.into_iter().flat_map(steps).collect();
        }
        starts.into_iter().flat_map(|start| &storage[start * width..(start + 1) * width]).copied().collect()
    }
}
