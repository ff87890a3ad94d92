//! `host plugin diff`: what changed between two plugins, and what version that asks for.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{copy_folder, host, host_ok, root};

/// Writes the images of `host art` and a plugin of `host plugin fit` for them, `five.wasm`.
fn fitted(folder: &Path) {
    host_ok(folder, &["art", "--out", "art", "--per-class", "2", "--seed", "3"]);
    fit(folder, "five.wasm", &["-k", "5"]);
}

fn fit(folder: &Path, output: &str, arguments: &[&str]) {
    host_ok(folder, &[&["plugin", "fit", "--images", "art", "--no-sheet", "-o", output], arguments].concat());
}

fn diff(folder: &Path, arguments: &[&str]) -> String {
    host_ok(folder, &[&["plugin", "diff"], arguments].concat()).stdout
}

fn json(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&diff(folder, &[arguments, &["--json"]].concat())).expect("one JSON document")
}

fn refused(folder: &Path, arguments: &[&str]) -> String {
    let ran = host(folder, &[&["plugin", "diff"], arguments].concat());
    assert_eq!(ran.code, 1, "{}\n{}", ran.stdout, ran.stderr);
    let errors: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", ran.stderr);
    errors[0].replace(&folder.display().to_string(), "[DIR]").replace(&root().display().to_string(), "[HOME]")
}

/// A snapshot without the numbers, whose last digits depend on the machine where an encoder has a part in them, and without
/// the columns' widths.
macro_rules! assert_report {
    ($name:expr, $text:expr) => {
        insta::with_settings!({ filters => [
            (r"/\S*/plugins/", "[HOME]/plugins/"),
            (r"(?m)([ (−+])\d+\.\d+(e-\d+)?([ ,)]|$)", "$1[N]$3"),
            (r"[−+]\[N\]", "[N]"),
            (r"(\S)  +", "$1  "),
        ] }, { insta::assert_snapshot!($name, $text) })
    };
}

fn reasons(document: &Value) -> Vec<&str> {
    let reasons = document["reasons"].as_array().expect("a list").iter();
    reasons.map(|reason| reason["reason"].as_str().expect("a sentence")).collect()
}

#[test]
fn a_plugin_and_itself_are_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["kmeans_image", "jpeg_size", "words"] {
        let document = json(folder.path(), &[name, name]);
        assert_eq!(document["bump"], "none", "{document}");
        assert_eq!(document["rank_correlation"].as_f64().map(|ranks| (ranks * 1e9).round() / 1e9), Some(1.0));
        let samples = document["samples"].as_array().expect("a list");
        assert!(samples.len() >= 8 && samples.iter().all(|sample| sample["equal_bits"] == true), "{document}");
    }
    assert_report!("diff_itself", diff(folder.path(), &["jpeg_size", "jpeg_size", "--strict"]));
}

/// The same numbers in another file are a patch: the title is no behavior.
#[test]
fn another_file_with_equal_bits_is_a_patch() {
    let folder = tempfile::tempdir().expect("a folder");
    fitted(folder.path());
    fs::create_dir(folder.path().join("next")).expect("a new folder");
    fit(folder.path(), "next/five.wasm", &["-k", "5", "--title", "Five"]);
    let document = json(folder.path(), &["./five.wasm", "next/five.wasm", "art"]);
    assert_eq!((&document["bump"], &document["least_version"]), (&"patch".into(), &"1.0.1".into()), "{document}");
    assert_eq!(reasons(&document), ["all outputs are equal to the last bit, for 67 samples"]);
    // 13 probes, and two images of each of 27 styles.
    let from = |place: &str| {
        document["samples"].as_array().expect("a list").iter().filter(|sample| sample["from"] == place).count()
    };
    assert_eq!([from("probe"), from("file"), from("fixture")], [13, 54, 0]);
}

#[test]
fn a_temperature_is_minor_within_the_tolerance_and_major_beyond() {
    let folder = tempfile::tempdir().expect("a folder");
    fitted(folder.path());
    fit(folder.path(), "warm.wasm", &["-k", "5", "--temperature", "1.1"]);
    fit(folder.path(), "tepid.wasm", &["-k", "5", "--temperature", "1.00001"]);
    assert_report!("diff_temperature", diff(folder.path(), &["./five.wasm", "./warm.wasm", "art", "--top", "3"]));
    let document = json(folder.path(), &["./five.wasm", "./tepid.wasm"]);
    assert_eq!(document["bump"], "minor", "{document}");
    let document = json(folder.path(), &["./five.wasm", "./warm.wasm", "--tolerance", "1"]);
    let largest = |change: &str| document["changes"][change]["largest"].as_f64().expect(change);
    assert_eq!(document["bump"], if largest("reward_in_standard_deviations") > 1.0 { "major" } else { "minor" });
    // A temperature flattens all distributions alike: the ranks stay, and the standardized rewards nearly do.
    assert!(document["rank_correlation"].as_f64() > Some(0.99), "{document}");
    assert!(largest("standardized_reward") < largest("reward_in_standard_deviations"), "{document}");
    // With the same option, both have the same temperature.
    let both = ["./five.wasm", "./warm.wasm", "--config", "temperature=2"];
    assert_eq!(json(folder.path(), &both)["changes"]["reward"]["largest"], 0.0);
}

#[test]
fn renamed_added_and_other_styles_are_major() {
    let folder = tempfile::tempdir().expect("a folder");
    fitted(folder.path());
    host_ok(folder.path(), &["plugin", "rename", "./five.wasm", "cluster-01=fog", "-o", "named.wasm"]);
    let document = json(folder.path(), &["./five.wasm", "./named.wasm"]);
    assert_eq!((&document["bump"], &document["least_version"]), (&"major".into(), &"2.0.0".into()));
    assert_eq!(document["styles"]["renamed"], serde_json::json!([{ "old": "cluster-01", "new": "fog" }]));
    assert_eq!(document["changes"]["total_variation"]["largest"], 0.0, "a renamed style is matched by its place");
    fit(folder.path(), "six.wasm", &["-k", "6"]);
    assert_report!("diff_style_added", diff(folder.path(), &["./five.wasm", "./six.wasm", "art", "--top", "2"]));
    assert_report!("diff_kinds", diff(folder.path(), &["./five.wasm", "clip_score", "--top", "0"]));
}

#[test]
fn strict_holds_the_version_to_the_behavior() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, version: &str, styles: &str| {
        let text = format!("title = 'Weather'\nname = 'weather'\nversion = '{version}'\nstyles = [{styles}]\n");
        fs::write(folder.path().join("styles.toml"), text).expect("writable");
        host_ok(folder.path(), &["plugin", "build", "styles.toml", "-o", name]);
    };
    write("old.wasm", "1.0.0", "'rain', 'fog'");
    write("minor.wasm", "1.1.0", "'rain', 'fog', 'snow'");
    write("major.wasm", "2.0.0", "'rain', 'fog', 'snow'");
    write("word.wasm", "two", "'rain', 'fog', 'snow'");
    let ran = |new: &str| refused(folder.path(), &["./old.wasm", new, "--strict"]);
    insta::assert_snapshot!([ran("./minor.wasm"), ran("./word.wasm")].join("\n"), @"
    error: this is a major change: version 1.0.0 to 1.1.0 is not enough, NEW must be at least 2.0.0
    error: the version `two` of NEW is no semantic version, such as 1.2.3: unexpected character 't' while parsing major version number
    ");
    assert!(diff(folder.path(), &["./old.wasm", "./major.wasm", "--strict"]).ends_with("1.0.0 to 2.0.0 is enough\n"));
    // Without --strict it is a report.
    assert_eq!(json(folder.path(), &["./old.wasm", "./minor.wasm"])["version_is_enough"], false);
    assert_eq!(json(folder.path(), &["./old.wasm", "./word.wasm"])["version_is_enough"], Value::Null);
}

/// A fixture that both folders have counts once, with its prompt; one that only NEW takes is none.
#[test]
fn fixtures_of_both_folders_are_samples() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "1", "--seed", "5"]);
    for (name, styles) in [("v1", ["cubism", "ukiyo-e"]), ("v2", ["cubism", "pop-art"])] {
        let fixtures = folder.path().join(name).join("fixtures");
        fs::create_dir_all(&fixtures).expect("a new folder");
        for style in styles {
            let image = folder.path().join(format!("art/{style}/0000.png"));
            fs::copy(image, fixtures.join(format!("{style}.png"))).expect("a copy");
        }
        fs::write(fixtures.join("captions.jsonl"), "{\"file\": \"cubism.png\", \"caption\": \"a boat\"}\n")
            .expect("writable");
        fs::copy(root().join("plugins/palette.wasm"), folder.path().join(name).join("palette.wasm")).expect("a copy");
    }
    let document = json(folder.path(), &["v1", "v2"]);
    let samples = document["samples"].as_array().expect("a list").iter().filter(|sample| sample["from"] == "fixture");
    let samples: Vec<&str> = samples.map(|sample| sample["sample"].as_str().expect("a name")).collect();
    assert_eq!(samples, ["v1/fixtures/cubism.png", "v1/fixtures/ukiyo-e.png", "v2/fixtures/pop-art.png"]);
}

/// Plugins that were fitted with different weights of one encoder run side by side, each with its own.
#[test]
fn each_plugin_may_have_its_own_encoder() {
    let folder = tempfile::tempdir().expect("a folder");
    fitted(folder.path());
    let other = folder.path().join("other");
    copy_folder(&root().join("models/weights/tiny-art/clip"), &other);
    let weights = other.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].fill(0);
    fs::write(&weights, bytes).expect("writable");
    fit(folder.path(), "old.wasm", &["-k", "5", "--encoder", "tiny-art=other"]);
    let arguments = ["./old.wasm", "./five.wasm"];
    assert!(refused(folder.path(), &arguments).contains("it was fitted with encoder `tiny-art` of digest"));
    let document = json(folder.path(), &[&arguments[..], &["--old-encoder", "tiny-art=other"]].concat());
    let said = reasons(&document);
    assert!(
        said.iter().any(|reason| reason.starts_with("it requires other weights of the encoder `tiny-art`")),
        "{said:?}"
    );
}

#[test]
fn what_one_plugin_does_not_take_is_no_sample() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("poem.txt"), "a verse").expect("writable");
    let document = json(folder.path(), &["palette", "words", "poem.txt"]);
    assert_eq!((&document["bump"], &document["samples"]), (&"major".into(), &serde_json::json!([])));
    let said = reasons(&document);
    assert!(
        said.contains(&"it no longer takes the medium image") && said.contains(&"it also takes the medium text"),
        "{said:?}"
    );
}

#[test]
fn bad_input_is_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("poem.txt"), "a verse").expect("writable");
    fs::write(folder.path().join("broken.png"), "no image").expect("writable");
    let refused = |arguments: &[&str]| refused(folder.path(), arguments);
    let messages = [
        refused(&["palette", "palete"]),
        refused(&["palette", "palette", "poem.txt"]),
        refused(&["palette", "palette", "broken.png"]),
        refused(&["palette", "palette", "missing.png"]),
        refused(&["palette", "palette", "--sheet", "moved.jpg"]),
        refused(&["palette", "palette", "--sheet", "no/moved.png"]),
        refused(&["palette", "palette", "--config", "sharp=2"]),
        refused(&["kmeans_image", "kmeans_image", "--encoder", "tiny-art=nowhere"]),
    ];
    insta::assert_snapshot!(messages.join("\n"), @"
    error: plugin `palete`: not found in ., plugins, [HOME]/plugins, [DIR]/ambiguity/plugins; did you mean `palette`? Available: clip_score, clip_softmax, dcgan, jpeg_size, kmeans_image, kmeans_text, melody, motion, palette, roughness, simple, words
    error: poem.txt is a text, but plugin `palette` takes image
    error: broken.png is not a readable image: Format error decoding Png: Invalid PNG signature.
    error: missing.png: No such file or directory (os error 2)
    error: --sheet moved.jpg must end in .png
    error: --sheet no/moved.png: there is no such folder
    error: plugin `palette`: it has no option `sharp`: did you mean `sharpness`? (it has sharpness (number, default 3))
    error: encoder tiny-art: nowhere is neither a folder nor an id on the Hub (OWNER/NAME)
    ");
    assert_eq!(host(folder.path(), &["plugin", "diff", "palette"]).code, 2);
    assert_eq!(
        fs::read_dir(folder.path())
            .expect("readable")
            .filter(|entry| { entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "jpg")) })
            .count(),
        0
    );
}

#[test]
fn the_sheet_shows_what_moved_most() {
    let folder = tempfile::tempdir().expect("a folder");
    fitted(folder.path());
    fit(folder.path(), "six.wasm", &["-k", "6"]);
    diff(folder.path(), &["./five.wasm", "./six.wasm", "art", "--sheet", "moved.png", "--top", "4"]);
    let size = |file: &str| image::image_dimensions(folder.path().join(file)).expect("a PNG");
    diff(folder.path(), &["./five.wasm", "./five.wasm", "--sheet", "still.png"]);
    assert!(size("moved.png").1 > size("still.png").1 + 400, "four rows are higher than none");
    diff(folder.path(), &["words", "words", "--sheet", "texts.png"]);
    assert_eq!(size("texts.png"), size("still.png"));
}
