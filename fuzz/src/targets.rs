//! What is thrown at: each target takes any bytes, says what kind of answer it gave, and panics where a promise is
//! broken.

use std::path::Path;

use ambiguity_host::plugin::fit::KMEANS_TEMPLATE;
use ambiguity_host::plugin::onnx::graph::Graph;
use ambiguity_host::plugin::onnx::settings::Settings;
use ambiguity_host::plugin::onnx::spec::{Input, resolve};
use ambiguity_host::plugin::{Artifact, Distributions};
use ambiguity_sdk::{EncoderPin, Manifest};
use anyhow::{Context as _, Result};

/// Something that reads what nobody vouches for.
pub struct Target {
    /// What `--target` calls it.
    pub name: &'static str,
    /// What it reads, in a line.
    pub reads: &'static str,
    /// Well-formed files to damage.
    pub seeds: fn(&Path) -> Result<Vec<Vec<u8>>>,
    /// Words of the format.
    pub words: &'static [&'static [u8]],
    /// Reads one input. The kind of answer tells inputs apart that are worth damaging further.
    pub run: fn(&[u8]) -> String,
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "component",
        reads: "a component's custom sections, imports and exports",
        seeds: components,
        words: &[
            b"ambiguity:asset/",
            b"ambiguity:asset/manifest.json",
            b"ambiguity:interface",
            b"0.1.0",
            b"0.2.0",
            b"ambiguity:plugin/classifier@0.1.0",
            b"ambiguity:plugin/gradient@0.1.0",
            b"wasi:",
            b"\0asm\x0d\0\x01\0",
            b"\0asm\x01\0\0\0",
            b"\0",
            b"\x04",
            b"\x0b",
            b"F32",
            b"\"shape\":[",
            b"data_offsets",
        ],
        run: component,
    },
    Target {
        name: "manifest",
        reads: "a baked manifest.json",
        seeds: manifests,
        words: &[
            b"\"name\"",
            b"\"styles\"",
            b"\"encoder\"",
            b"\"temperature\"",
            b"\"k\"",
            b"null",
            b"true",
            b"-0",
            b"1e999",
            b"[",
            b"]",
            b"{",
            b"}",
            b",",
            b":",
            b"\\ud800",
            b"\"",
            b"18446744073709551616",
        ],
        run: manifest,
    },
    Target {
        name: "onnx",
        reads: "an ONNX file's graph and metadata, and the .toml beside one",
        seeds: models,
        words: &[
            b"ambiguity.styles",
            b"ambiguity.input",
            b"ambiguity.size",
            b"ambiguity.mean",
            b"ambiguity.layout",
            b"embedding:",
            b"pixels",
            b"[\"a\", \"b\"]",
            b"styles = ['a', 'b']\n",
            b"size = [8, 8]\n",
            b"nhwc",
            b"nchw",
            b"Softmax",
            b"Gemm",
            b"\x08",
            b"\x12",
            b"\x3a",
            b"\x72",
            b"com.microsoft",
            b"EPContext",
            b"1e38",
        ],
        run: onnx,
    },
    Target {
        name: "output",
        reads: "a plugin's distributions",
        seeds: outputs,
        words: &[&[0, 0, 0x80, 0x3f], &[0, 0, 0, 0x3f], &[0, 0, 0xc0, 0x7f], &[0, 0, 0x80, 0x7f], &[0, 0, 0, 0x80]],
        run: output,
    },
];

/// A message without what differs between two of a kind: numbers and names.
fn kind(message: &str) -> String {
    let mut quoted = false;
    let keep = |c: &char| {
        quoted ^= matches!(*c, '`' | '"');
        !quoted && (c.is_ascii_lowercase() || *c == ' ')
    };
    message.chars().filter(keep).take(36).collect()
}

fn files(folder: &Path, extension: &str) -> Result<Vec<Vec<u8>>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.iter().map(|path| std::fs::read(path).with_context(|| path.display().to_string())).collect()
}

/// The templates and plugins that ship, and small ones, of which more can be damaged in the same time.
fn components(root: &Path) -> Result<Vec<Vec<u8>>> {
    let mut seeds = vec![];
    let small = wat::parse_str(
        "(component (import \"ambiguity:plugin/log@0.1.0\" (instance)) (instance $i) \
         (export \"ambiguity:plugin/classifier@0.1.0\" (instance $i)) \
         (export \"ambiguity:plugin/gradient@0.1.0\" (instance $i)))",
    )?;
    let tensor =
        [&40u64.to_le_bytes()[..], b"{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", &[0; 4]];
    for assets in [
        vec![],
        vec![("centers", tensor.concat()), (Manifest::ASSET, Manifest::default().to_json())],
        vec![("notes.txt", b"by hand".to_vec())],
    ] {
        seeds.push(Artifact::bake(&small, &assets)?);
    }
    seeds.push(wat::parse_str("(module (func (export \"classify\")))")?);
    seeds.push(KMEANS_TEMPLATE.to_vec());
    seeds.extend(files(&root.join("tests/guests"), "wasm")?);
    Ok(seeds)
}

fn component(bytes: &[u8]) -> String {
    let artifact = match Artifact::parse("x.wasm".as_ref(), bytes.to_vec()) {
        Ok(artifact) => artifact,
        Err(fault) => return kind(&fault.to_string()),
    };
    for (name, size) in artifact.assets() {
        assert_eq!(artifact.asset(name).map(<[u8]>::len), Some(size));
    }
    let inspection = artifact.inspect();
    assert_eq!((inspection.bytes, artifact.bytes()), (bytes.len(), bytes));
    // What is baked into it is found again, and everything else stays.
    match Artifact::bake(bytes, &[("fuzz", b"asset".to_vec())]) {
        Ok(baked) => {
            let again =
                Artifact::parse("x.wasm".as_ref(), baked).expect("it was a plugin before something was baked in");
            assert_eq!(again.asset("fuzz"), Some(&b"asset"[..]));
            assert_eq!((again.imports, again.exports), (artifact.imports, artifact.exports));
            format!("a plugin with {} assets", inspection.assets.len().min(9))
        }
        Err(fault) => format!("a plugin, but {}", kind(&fault.to_string())),
    }
}

fn manifests(_: &Path) -> Result<Vec<Vec<u8>>> {
    let full = Manifest {
        name: "kmeans".to_owned(),
        version: "1.0.0".to_owned(),
        title: "Clusters \u{1f3a8}".to_owned(),
        authors: vec!["A. Author".to_owned()],
        license: "Apache-2.0".to_owned(),
        media: vec!["image".to_owned()],
        styles: ["a", "b", "c"].map(str::to_owned).to_vec(),
        encoder: Some(EncoderPin { name: "tiny-art".to_owned(), digest: "0f".repeat(32) }),
        temperature: Some(0.5),
        k: Some(3),
        ..Manifest::default()
    };
    Ok(vec![full.to_json(), Manifest::default().to_json(), b"{}".to_vec()])
}

fn manifest(bytes: &[u8]) -> String {
    match Manifest::parse(bytes) {
        // A number of JSON that is too large for an f32; the host refuses it.
        Ok(manifest) if manifest.temperature.is_some_and(f32::is_infinite) => "an infinite temperature".to_owned(),
        Ok(manifest) => {
            // NaN cannot come out of JSON, so what was read can be compared with what is written and read again.
            let again = Manifest::parse(&manifest.to_json()).expect("its own JSON");
            assert_eq!(again, manifest);
            assert_eq!(manifest.description().styles, manifest.styles);
            format!("a manifest of {} styles", manifest.styles.len().min(9))
        }
        Err(error) => kind(&error.to_string()),
    }
}

fn models(root: &Path) -> Result<Vec<Vec<u8>>> {
    let folder = root.join("tests/reference/onnx");
    let mut seeds = files(&folder, "onnx")?;
    seeds.extend(files(&folder, "toml")?);
    Ok(seeds)
}

fn onnx(bytes: &[u8]) -> String {
    let beside = std::str::from_utf8(bytes).ok().and_then(|text| Settings::from_toml(text).ok());
    let graph = match Graph::parse(bytes.to_vec()) {
        Ok(graph) => graph,
        Err(error) => return format!("{} {}", beside.is_some(), kind(&error.to_string())),
    };
    let said = match Settings::from_metadata(&graph.metadata) {
        Ok(said) => beside.unwrap_or_default().or(said),
        Err(message) => return kind(&message),
    };
    match resolve(&graph, said, "x") {
        Ok(spec) => {
            let numbers = match &spec.input {
                Input::Pixels(pixels) => pixels.shape(spec.batch).iter().product(),
                Input::Embedding { dim, .. } => spec.batch * dim.unwrap_or(1),
            };
            assert!((1..=1 << 28).contains(&numbers), "{numbers} numbers in one call");
            format!("a plugin: {:?} {}", std::mem::discriminant(&spec.input), spec.fixed_batch)
        }
        Err(message) => kind(&message),
    }
}

/// One byte each for the rows and columns given and wanted, then the numbers.
fn outputs(_: &Path) -> Result<Vec<Vec<u8>>> {
    let case = |shape: [u8; 4], data: &[f32]| {
        shape.into_iter().chain(data.iter().flat_map(|x| x.to_le_bytes())).collect::<Vec<u8>>()
    };
    Ok(vec![
        case([1, 2, 1, 2], &[0.5, 0.5]),
        case([2, 3, 2, 3], &[0.2, 0.3, 0.5, 1.0, 0.0, 0.0]),
        case([1, 3, 1, 2], &[0.2, 0.3, 0.5]),
        case([1, 2, 1, 2], &[f32::NAN, 0.5]),
        case([1, 2, 1, 2], &[0.5, 0.5004]),
    ])
}

fn output(bytes: &[u8]) -> String {
    let Some((&[rows, cols, n_samples, n_styles], data)) = bytes.split_first_chunk() else {
        return "too short".to_owned();
    };
    let data: Vec<f32> = data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let wanted = (usize::from(n_samples), usize::from(n_styles));
    match Distributions::check((rows.into(), cols.into(), &data), wanted) {
        Ok(checked) => {
            assert_eq!((checked.rows.len(), checked.styles), wanted);
            for row in &checked.rows {
                assert_eq!(row.len(), wanted.1);
                assert!(row.iter().all(|p| (0.0..=1.0 + 1e-12).contains(p)), "{row:?}");
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{row:?}");
            }
            "distributions".to_owned()
        }
        Err((sample, fault)) => {
            assert!(sample.is_none_or(|sample| sample < wanted.0));
            kind(&fault.to_string())
        }
    }
}
