//! Interface versions: a released version never changes, a plugin that was built for it still loads, and a plugin needs no
//! newer host than for what it uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_host::data::array::Array;
use ambiguity_host::data::audio::Audio;
use ambiguity_host::data::video::Video;
use ambiguity_host::plugin::artifact::supported_versions;
use ambiguity_host::plugin::{Artifact, Batch, Limits, Sample};
use ambiguity_sdk::OptionType;
use image::RgbImage;
use ndarray::{Array2, array};

use super::{built, load, means, rounded, two_images};
use crate::support::root;

fn frozen() -> PathBuf {
    root().join("tests/guests/frozen-0.2.0.wasm")
}

/// Loads the frozen plugin, or another one built from it, and calls everything that it exports.
fn exercise(path: &Path) {
    let mut plugin = load(Limits::default(), path, &[]).expect("interface 0.2.0");
    let inspection = plugin.inspect();
    assert_eq!(plugin.source().interface, "0.2.0");
    assert!(inspection.differentiable && inspection.pixel_differentiable);
    let description = plugin.description();
    assert_eq!((description.name.as_str(), &description.encoders[..]), ("frozen", &["means".to_owned()][..]));
    assert_eq!((description.styles(), description.media.len()), (&["style-0", "style-1"].map(str::to_owned)[..], 5));
    let types: Vec<_> = description.options.iter().map(|option| option.value_type).collect();
    assert_eq!(types, [OptionType::Text, OptionType::Integer, OptionType::Number, OptionType::Boolean]);
    assert_eq!(description.properties, [("origin".to_owned(), "frozen".to_owned())]);

    let mut images = two_images();
    let found = plugin.classify(&mut images, &mut means()).expect("it classifies images");
    // The shares of red and green, each plus one.
    assert_eq!(rounded(&found), [[0.996109, 0.003891], [0.003891, 0.996109]]);
    let video = Video { frames: vec![RgbImage::new(3, 2), RgbImage::new(3, 2)], frame_rate: 8.0 };
    let audio = Audio { sample_rate: 8000, channels: 2, pcm: vec![0.5; 8] };
    let others = [
        (Sample { text: Some("a text".to_owned()), ..Sample::default() }, 0.125),
        (Sample { audio: Some(Arc::new(audio)), ..Sample::default() }, 0.25),
        (Sample { video: Some(Arc::new(video)), ..Sample::default() }, 0.5),
        (Sample { array: Some(Arc::new(Array { shape: vec![1, 2], data: vec![0.0; 2] })), ..Sample::default() }, 0.75),
    ];
    for (mut sample, share) in others {
        sample.metadata.insert("title".to_owned(), "one".to_owned());
        let found = plugin.classify(&mut Batch::new(vec![sample]), &mut means()).expect("it classifies every medium");
        assert_eq!(rounded(&found), [[share, 1.0 - share]]);
    }

    let upstream = Array2::from_elem((2, 2), 1.0);
    let gradient = plugin.embedding_vjp(&mut two_images(), &mut means(), "means", &upstream).expect("a gradient");
    assert_eq!(gradient, Array2::from_elem((2, 3), 0.5));
    let upstream = array![[1.0, 0.5], [0.25, 0.0]];
    let gradient = plugin.pixel_vjp(&mut two_images(), &mut means(), &upstream).expect("a gradient");
    assert_eq!(gradient, [vec![1.5; 48], vec![0.25; 48]]);

    let three = load(Limits::default(), path, &[("styles", "3")]).expect("its configuration reaches it");
    assert_eq!(three.description().styles().len(), 3);
}

/// `tests/guests/frozen-0.2.0.wasm` was built from `wit/frozen/0.2.0` alone and calls every function of it.
#[test]
fn a_plugin_built_for_0_2_0_keeps_loading() {
    exercise(&frozen());
}

/// Replaces every occurrence of a text in a file by another one of the same length.
fn patched(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len(), "no byte moves");
    let (mut bytes, mut at, mut n) = (bytes.to_vec(), 0, 0);
    while let Some(found) = bytes[at..].windows(from.len()).position(|window| window == from.as_bytes()) {
        at += found;
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        n += 1;
    }
    assert!(n > 0, "`{from}` is in the file");
    bytes
}

/// A patch of the SDK or of the WIT changes the version in the names of imports and exports, and not what the plugin uses:
/// that is what the custom section says.
#[test]
fn a_plugin_built_with_a_newer_sdk_runs_on_this_host() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("frozen.wasm");
    fs::write(&path, patched(&fs::read(frozen()).expect("committed"), "@0.2.0", "@0.2.9")).expect("writable");
    let artifact = Artifact::read(&path, &Limits::default()).expect("a plugin");
    let newer = |names: &[String]| names.iter().all(|name| name.ends_with("@0.2.9"));
    assert!(newer(&artifact.imports) && newer(&artifact.exports), "{artifact:?}");
    exercise(&path);
    // The SDK's own plugins likewise, and those without a section, as of other languages.
    let palette = patched(&fs::read(built("palette")).expect("it was built"), "@0.2.0", "@0.2.9");
    fs::write(&path, &palette).expect("writable");
    let mut plugin = load(Limits::default(), &path, &[]).expect("it uses nothing newer");
    let found = plugin.classify(&mut two_images(), &mut means()).expect("it classifies");
    fs::write(&path, patched(&palette, "ambiguity:interface", "ambiguity:different")).expect("writable");
    let mut plugin = load(Limits::default(), &path, &[]).expect("the names say 0.2");
    assert_eq!(plugin.source().interface, "0.2.0");
    assert_eq!(plugin.classify(&mut two_images(), &mut means()).expect("it classifies").rows, found.rows);
}

/// What a later version added is refused by name, with the remedy, and so is a section that names a later version.
#[test]
fn a_plugin_that_needs_a_newer_host_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let component = |import: &str| {
        let exports = ["description", "classifier"]
            .map(|name| format!(r#"(export "ambiguity:plugin/{name}@0.2.9" (instance $i))"#));
        wat::parse_str(format!("(component {import} (instance $i) {})", exports.join(" "))).expect("it assembles")
    };
    let samples = r#"(import "ambiguity:plugin/samples@0.2.9" (instance
        (export "batch" (type $batch (sub resource)))
        (export "[method]batch.depth" (func (param "self" (borrow $batch)) (result u32)))))"#;
    let section = b"ambiguity:interface";
    let later = patched(&fs::read(frozen()).expect("committed"), "0.2.0", "0.2.9");
    assert!(later.windows(section.len()).any(|window| window == section), "the section is patched too");
    let cases = [
        ("function", component(r#"(import "ambiguity:plugin/log@0.2.9" (instance (export "flush" (func))))"#)),
        ("method", component(samples)),
        ("interface", component(r#"(import "ambiguity:plugin/depth@0.2.9" (instance (export "of" (func))))"#)),
        ("section", later),
    ];
    let mut messages = String::new();
    for (name, bytes) in cases {
        let path = folder.path().join(format!("{name}.wasm"));
        fs::write(&path, bytes).expect("writable");
        messages += &load(Limits::default(), &path, &[]).err().expect(name).to_string();
        messages += "\n";
    }
    insta::assert_snapshot!(messages, @r"
    plugin `function`: it imports `flush` of `ambiguity:plugin/log@0.2.9`, which plugin interface 0.2.0 of this host does not have; update the host, or build the plugin for 0.2.0
    plugin `method`: it imports `[method]batch.depth` of `ambiguity:plugin/samples@0.2.9`, which plugin interface 0.2.0 of this host does not have; update the host, or build the plugin for 0.2.0
    plugin `interface`: it imports `ambiguity:plugin/depth@0.2.9`, which plugin interface 0.2.0 of this host does not have; update the host, or build the plugin for 0.2.0
    plugin `section`: it was built for plugin interface 0.2.9, this host supports 0.2.0; update the host, or build the plugin with an older SDK
    ");
}

/// Every line of a frozen interface is in the current one, in the same order: functions may be added, nothing else.
#[test]
fn the_current_interface_contains_the_frozen_one() {
    let lines = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(root().join(file)).expect("committed");
        let lines = text.lines().map(str::trim);
        let counts = |line: &&str| !line.is_empty() && !line.starts_with("//") && !line.starts_with("package ");
        lines.filter(counts).map(str::to_owned).collect()
    };
    let mut current = lines("wit/plugin.wit").into_iter();
    for line in lines("wit/frozen/0.2.0/plugin.wit") {
        assert!(current.any(|now| now == line), "`{line}` of interface 0.2.0 is gone or has moved");
    }
}

/// The frozen plugin's source names each function of the frozen interface that a plugin can import.
#[test]
fn the_frozen_plugin_calls_every_function() {
    let wit = fs::read_to_string(root().join("wit/frozen/0.2.0/plugin.wit")).expect("committed");
    let source = fs::read_to_string(root().join("tests/guests/frozen-0.2.0/src/lib.rs")).expect("committed");
    let functions = wit.lines().filter_map(|line| line.trim().split_once(": func(").map(|(name, _)| name));
    let functions: Vec<String> = functions.map(|name| name.replace('-', "_")).collect();
    assert!(functions.len() > 25, "{functions:?}");
    for name in functions.iter().filter(|name| !["scale", "score"].contains(&name.as_str())) {
        assert!(source.contains(&format!("{name}(")), "{name} is not in the plugin for 0.2.0");
    }
}

#[test]
fn the_table_of_versions_contains_this_host() {
    let table = fs::read_to_string(root().join("docs/interface-versions.md")).expect("committed");
    let host = env!("CARGO_PKG_VERSION");
    let row = table.lines().find(|line| line.starts_with(&format!("| {host} |"))).expect("a row for this host");
    assert!(row.contains(&supported_versions()), "{row}");
    for entry in fs::read_dir(root().join("wit/frozen")).expect("committed") {
        let version = entry.expect("readable").file_name().to_string_lossy().into_owned();
        assert!(table.contains(&format!("`wit/frozen/{version}`")), "{version} is not in the table");
        let guest = root().join(format!("tests/guests/frozen-{version}.wasm"));
        assert!(guest.is_file(), "run `scripts/frozen.sh {version}` and commit {}", guest.display());
    }
}
