use std::io::Write;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use tempfile::TempDir;
use test_support::{Reference, reference_path, shared};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use crate::params::Params;
use crate::safetensors::write_safetensors;
use crate::weights::{load_weights, read_weights};

fn committed(name: &str) -> PathBuf {
    reference_path("torch_file").join(name)
}

fn assert_same(found: &NamedTensors, reference: &Reference) {
    assert!(found.keys().eq(reference.tensors.keys()), "{:?}", found.keys());
    for (name, wanted) in &reference.tensors {
        let (found, wanted) = (&found[name], wanted.to_device(Device::Cpu));
        assert!(found.is_contiguous() && found.to_kind(wanted.kind()).equal(&wanted), "{name}");
    }
}

#[test]
fn a_checkpoint_is_what_torch_saved() {
    let reference = Reference::read("torch_file.safetensors");
    let found = read_state_dict(&committed("nested.pth")).unwrap();
    assert_same(&found, &reference);
    assert_same(&read_state_dict(&committed("protocol_4.pth")).unwrap(), &reference);
    let kinds = [
        ("parameter", Kind::Float),
        ("half", Kind::Half),
        ("bfloat16", Kind::BFloat16),
        ("double", Kind::Double),
        ("long", Kind::Int64),
        ("int", Kind::Int),
        ("short", Kind::Int16),
        ("char", Kind::Int8),
        ("byte", Kind::Uint8),
        ("bool", Kind::Bool),
    ];
    for (name, kind) in kinds {
        assert_eq!(found[name].kind(), kind, "{name}");
    }
    assert_eq!(found["whole"].data_ptr(), found["same"].data_ptr());
    // The whole file has the optimizer's tensors too, by their keys and numbers.
    let whole = read_torch_file(&committed("nested.pth")).unwrap();
    assert_eq!(whole.len(), found.len() + 6);
    assert_eq!(whole["optimizer.state.1.exp_avg"].size(), [2]);
    assert!(whole["state_dict.half"].equal(&found["half"]));
}

#[test]
fn the_aesthetic_predictors_file_is_read() {
    let Some(folder) = shared("aesthetic") else { return };
    let found = read_state_dict(&folder.join("sac+logos+ava1-l14-linearMSE.pth")).unwrap();
    let names: Vec<(&str, Vec<i64>)> = found.iter().map(|(name, tensor)| (&**name, tensor.size())).collect();
    assert_eq!(names[0], ("layers.0.bias", vec![1024]));
    assert_eq!(names[9], ("layers.7.weight", vec![1, 16]));
    assert!(found.values().all(|tensor| tensor.kind() == Kind::Float && tensor.isfinite().all().int64_value(&[]) == 1));
}

#[test]
fn weights_are_read_from_every_kind_of_file_and_folder() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = NamedTensors::from([("a".to_owned(), Tensor::from_slice(&[1.0f32, 2.0]))]);
    let file = folder.path().join("other.safetensors");
    write_safetensors(&file, &tensors, &[]).unwrap();
    for path in [folder.path(), &file] {
        let params = load_weights(path, Device::Cpu, Kind::Float).unwrap();
        let message = params.finish().unwrap_err().to_string();
        assert!(message.contains("1 tensor(s) that this network does not have, the first is `a`"), "{message}");
        assert!(params.tensor("a", &[2], crate::params::Init::Zeros).unwrap().equal(&tensors["a"]));
    }
    // What a file is decides its contents: this one has a wrong ending.
    let wrong = folder.path().join("wrong.safetensors");
    std::fs::copy(committed("protocol_4.pth"), &wrong).unwrap();
    assert!(read_weights(&wrong).unwrap().contains_key("layer.weight"));
    let message = read_weights(folder.path()).unwrap_err().to_string();
    assert!(message.ends_with("one other file of weights, found 2"), "{message}");
    std::fs::copy(committed("nested.pth"), folder.path().join("pytorch_model.bin")).unwrap();
    assert!(read_weights(folder.path()).unwrap().contains_key("layer.bias"));
    let params: Params = load_weights(&file, Device::Cpu, Kind::Half).unwrap();
    assert_eq!(params.tensor("a", &[2], crate::params::Init::Zeros).unwrap().kind(), Kind::Half);
}

/// Writes an archive of this pickle and these storages.
fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    let mut zip = ZipWriter::new(std::fs::File::create(&path).unwrap());
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let files = std::iter::once(("archive/data.pkl".to_owned(), pickle));
    for (name, bytes) in files.chain(storages.iter().map(|(key, bytes)| (format!("archive/data/{key}"), *bytes))) {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
    (folder, path)
}

fn message(path: &Path) -> String {
    let message = read_torch_file(path).unwrap_err().to_string();
    let start = format!("{}: not a readable PyTorch file: ", path.display());
    message.strip_prefix(&start).unwrap_or_else(|| panic!("{message}")).to_owned()
}

fn message_of(pickle: &[u8], storages: &[(&str, &[u8])]) -> String {
    let (_folder, path) = archive(pickle, storages);
    message(&path)
}

#[test]
fn code_is_refused_by_name() {
    let long = [b"\x80\x02c".as_slice(), &[b'x'; 5000], b"\ny\n."].concat();
    for (pickle, name) in [
        (b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.".as_slice(), "posix.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"\x80\x02}X\x01\x00\x00\x00acos\nsystem\ns.", "os.system"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (&long, "xxxx`"),
    ] {
        let message = message_of(pickle, &[]);
        assert!(
            message.contains(name) && message.contains("`, code that is never run; save the state dict"),
            "{message}"
        );
        assert!(message.len() < 250, "{message}");
    }
    let message = message(&committed("module.pth"));
    assert!(message.contains("torch.nn.modules.container.Sequential`, code that is never run"), "{message}");
}

#[test]
fn pickles_that_no_program_writes_are_refused() {
    for (pickle, wanted) in [
        (b"".as_slice(), "ends too early"),
        (b"\x80\x02", "ends too early"),
        (b"\x80\x00.", "protocol 0"),
        (b"\x80\x02.", "takes more values than there are"),
        (b"\x80\x02}(.", "takes more values than there are"),
        (b"\x80\x02}(0.", "takes more values than there are"),
        (b"\x80\x02t.", "takes more values than there are"),
        (b"\x80\x02h\x05.", "recalls a value that it never made"),
        (b"\x80\x02X\xff\xff\xff\xff.", "ends too early"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (b"\x80\x02N.", "no dictionary of tensors"),
        (b"\x80\x02]]Ns.", "no dictionary"),
        (b"\x80\x02}(Nu.", "no dictionary"),
        (b"\x80\x02}Na.", "no list"),
        (b"\x80\x02N)R.", "no function"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "not as `torch.save` writes it"),
        (b"\x80\x02NQ.", "a storage is not"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "no dictionary of tensors"),
        (b"\x80\x02]ctorch._utils\n_rebuild_tensor_v2\n(NNNNtRa.", "tensor `0`: it is not as"),
        (b"\x80\x02i", "instruction 0x69"),
        // A list within itself, and one whose contents double at each level.
        (b"\x80\x02]q\x00h\x00a.", "too much or themselves"),
    ] {
        let message = message_of(pickle, &[]);
        assert!(message.contains(wanted), "{}: {message}", String::from_utf8_lossy(pickle));
    }
    let mut doubled = b"\x80\x02]q\x00".to_vec();
    for i in 0..30 {
        doubled.extend([b']', b'q', i + 1, b'h', i, b'a', b'h', i, b'a']);
    }
    doubled.push(b'.');
    assert!(message_of(&doubled, &[]).contains("too much or themselves"));
    let key = [b"\x80\x02}X\x00\x04\x00\x00".as_slice(), &[b'k'; 1024], b"Ns."].concat();
    assert_eq!(message_of(&key, &[]), "a name in it is longer than 1024 bytes");
    let long = [b"\x80\x02".as_slice(), &vec![b'N'; MAX_PICKLE], b"."].concat();
    assert!(message_of(&long, &[]).contains("its pickle has 8388611 bytes, at most 8388608 are read"));
}

/// The pickle of {"t": a tensor} on the storage `0` of `n` f32.
fn tensor(n: u32, offset: i64, size: &[i64], stride: &[i64]) -> Vec<u8> {
    let long = |n: &i64| [&[0x8a, 8], &n.to_le_bytes()[..]].concat();
    let tuple = |numbers: &[i64]| [b"(", &numbers.iter().flat_map(long).collect::<Vec<_>>()[..], b"t"].concat();
    [
        b"\x80\x02}X\x01\x00\x00\x00tctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n",
        &b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ"[..],
        &n.to_le_bytes(),
        b"tQ",
        &long(&offset),
        &tuple(size),
        &tuple(stride),
        b"\x89NtRs.",
    ]
    .concat()
}

#[test]
fn sizes_and_strides_stay_within_the_storage() {
    let elements: Vec<u8> = (0..12).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let storage = [("0", &elements[..])];
    let read = |size: &[i64], stride: &[i64], offset| {
        let (_folder, path) = archive(&tensor(12, offset, size, stride), &storage);
        Vec::<f32>::try_from(read_torch_file(&path).unwrap()["t"].flatten(0, -1)).unwrap()
    };
    assert_eq!(read(&[2, 3], &[3, 1], 6), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
    assert_eq!(read(&[2, 2], &[1, 5], 3), [3.0, 8.0, 4.0, 9.0]);
    assert_eq!(read(&[2, 2], &[0, 11], 0), [0.0, 11.0, 0.0, 11.0]);
    assert_eq!(read(&[3, 1], &[1, i64::MAX], 9), [9.0, 10.0, 11.0]);
    assert_eq!(read(&[], &[], 11), [11.0]);
    assert_eq!(read(&[0, 5], &[i64::MAX, 1], i64::MAX), [0.0; 0]);
    let (exceeds, larger) = ("exceed its 12 elements", "much larger than the file");
    for (n, offset, size, stride, wanted) in [
        (12, 7, &[2, 3][..], &[3, 1][..], exceeds),
        (12, 0, &[2, 2], &[1, 11], exceeds),
        (12, 12, &[1], &[1], exceeds),
        (12, i64::MAX, &[2], &[i64::MAX], exceeds),
        (12, 0, &[3, 3], &[i64::MAX, i64::MAX], exceeds),
        (12, 0, &[i64::MAX, i64::MAX, 3], &[0, 0, 0], exceeds),
        (12, 0, &[i64::MAX, i64::MAX, 0], &[0, 0, 0], exceeds),
        (12, 0, &[1 << 40], &[0], larger),
        (12, 0, &[1 << 10, 1 << 10], &[0, 0], larger),
        (12, -1, &[1], &[1], "it has the number -1"),
        (12, 0, &[-1], &[1], "it has the number -1"),
        (12, 0, &[1], &[1, 1], "not as `torch.save` writes it"),
        (12, 0, &[1; 17], &[1; 17], "it has 17 axes, at most 16 are supported"),
        (13, 0, &[1], &[1], "`data/0` should have 13 elements of 4 bytes, but has 48 bytes"),
        (u32::MAX, 0, &[1], &[1], "it has the number -1"),
    ] {
        let message = message_of(&tensor(n, offset, size, stride), &storage);
        assert!(message.starts_with("tensor `t`: ") && message.contains(wanted), "{wanted}: {message}");
    }
    let message = message_of(&tensor(12, 0, &[1], &[1]), &[]);
    assert_eq!(message, "tensor `t`: its zip archive has no `data/0`");
}

/// Many files at one place would have to be compared with their checksums again and again.
#[test]
fn files_in_the_archive_do_not_overlap() {
    let large = [7u8; 10_000];
    let (_folder, path) = archive(&tensor(2500, 0, &[2500], &[1]), &[("0", &large), ("1", &[]), ("2", &[])]);
    assert_eq!(read_torch_file(&path).unwrap()["t"].size(), [2500]);
    let mut bytes = std::fs::read(&path).unwrap();
    let entries: Vec<usize> =
        (0..bytes.len() - 4).filter(|&at| bytes[at..].starts_with(b"PK\x01\x02")).map(|at| at + 16).collect();
    // Checksum and sizes, and the place of the local header, of data/0 for the other two.
    let (sums, place) = (bytes[entries[1]..][..12].to_vec(), bytes[entries[1] + 26..][..4].to_vec());
    for &at in &entries[2..] {
        bytes[at..at + 12].copy_from_slice(&sums);
        bytes[at + 26..at + 30].copy_from_slice(&place);
    }
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(message(&path), "the files in its zip archive overlap");
}

#[test]
fn damaged_files_are_refused() {
    let whole = std::fs::read(committed("nested.pth")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.pth");
    for length in [0, 1, 4, 30, 100, 1000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(!message(&path).contains('\n'), "{length}");
    }
    assert!(message(&path).starts_with("its zip archive is damaged or incomplete"));
    // A byte of the pickle, and single bytes everywhere.
    let name = whole.windows(5).position(|bytes| bytes == b"epoch").unwrap();
    let mut changed = whole.clone();
    changed[name] = b'x';
    std::fs::write(&path, &changed).unwrap();
    assert_eq!(message(&path), "`data.pkl` in its zip archive does not have its checksum: is the file damaged?");
    for at in (0..whole.len()).step_by(31) {
        let mut changed = whole.clone();
        changed[at] ^= 0x5a;
        std::fs::write(&path, &changed).unwrap();
        drop(read_torch_file(&path));
    }
    std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    assert!(message(&path).contains("Git LFS pointer"));
    std::fs::write(&path, "<html>").unwrap();
    assert_eq!(message(&path), "it is no zip archive, which is what `torch.save` writes");
    assert!(
        message(&committed("legacy.pth")).starts_with("it is in the format of PyTorch before 1.6; convert it with")
    );
    let message = read_weights(&committed("legacy.pth")).unwrap_err().to_string();
    assert!(message.contains("before 1.6"), "{message}");
    assert!(read_torch_file(Path::new("nowhere.pth")).unwrap_err().to_string().starts_with("nowhere.pth: "));
}
