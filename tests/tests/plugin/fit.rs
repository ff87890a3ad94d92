//! Plugins without a compiler: templates, baking, `host plugin fit`.

use std::fs;
use std::path::Path;

use ambiguity_host::plugin::fit::{KMEANS_TEMPLATE, bake_k_means};
use ambiguity_host::plugin::{Artifact, Batch, Limits, Sample};
use ambiguity_sdk::{EncoderPin, Manifest};
use image::{Rgb, RgbImage};
use ndarray::{Array2, arr2};
use serde_json::{Value, json};

use super::{image, load, means};
use crate::support::{host, host_ok, root};

fn primaries(digest: &str, medium: &str) -> Vec<u8> {
    let manifest = Manifest {
        name: "primaries".into(),
        version: "1.0.0".into(),
        title: "Red, green or blue".into(),
        authors: vec!["Test".into()],
        license: "Apache-2.0".into(),
        media: vec![medium.into()],
        styles: ["red", "green", "blue"].map(String::from).to_vec(),
        encoder: Some(EncoderPin { name: "means".into(), digest: digest.into() }),
        normalize: medium == "image",
        k: Some(3),
        ..Manifest::default()
    };
    bake_k_means(&manifest, &arr2(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).expect("the template takes it")
}

/// The distributions are those of the definition: softmax of 1/‖e − c‖ with e of length 1.
#[test]
fn k_means_distributions_match_the_definition() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("primaries.wasm");
    fs::write(&path, primaries("means", "image")).expect("writable");
    let mut plugin = load(Limits::default(), &path, &[]).expect("it loads");
    let colors = [[255, 0, 0], [255, 255, 255], [0, 51, 102]];
    let mut batch = Batch::new(colors.map(image).to_vec());
    let classified = plugin.classify(&mut batch, &mut means()).expect("it classifies");
    for (row, color) in classified.distributions.rows.iter().zip(colors) {
        let length = color.map(|c: u8| f64::from(c).powi(2)).iter().sum::<f64>().sqrt();
        let unit = color.map(|c| f64::from(c) / length);
        let logit = |style: usize| {
            let squared = (0..3).map(|i| (unit[i] - f64::from(u8::from(i == style))).powi(2)).sum::<f64>();
            1.0 / squared.sqrt().max(1e-6)
        };
        let logits = [logit(0), logit(1), logit(2)];
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|z| (z - largest).exp()).sum();
        for (p, z) in row.iter().zip(logits) {
            assert!((p - (z - largest).exp() / sum).abs() < 1e-6, "{color:?}: {row:?}");
        }
    }
    // The same bits on every run and machine.
    insta::assert_debug_snapshot!(classified.distributions.rows);
    insta::assert_snapshot!(classified.fuel.expect("a sandboxed plugin"));
}

#[test]
fn the_same_template_classifies_texts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("words.wasm");
    fs::write(&path, primaries("means", "text")).expect("writable");
    let mut plugin = load(Limits::default(), &path, &[]).expect("it loads");
    let text = |text: &str| Sample { text: Some(text.to_owned()), ..Sample::default() };
    let mut batch = Batch::new(vec![text("x"), text("a   ")]);
    let rows = plugin.classify(&mut batch, &mut means()).expect("it classifies").distributions.rows;
    assert!(rows[0][0] > 0.99 && rows[1][2] > rows[1][1], "{rows:?}");
}

#[test]
fn other_weights_under_the_same_name_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("primaries.wasm");
    fs::write(&path, primaries("others", "image")).expect("writable");
    let mut plugin = load(Limits::default(), &path, &[]).expect("it loads");
    let message =
        plugin.classify(&mut Batch::new(vec![image([1, 2, 3])]), &mut means()).expect_err("other").to_string();
    assert_eq!(
        message,
        "plugin `primaries`: it was fitted with encoder `means` of digest others, but the `means` here has digest means; \
         name the right one with --encoder means=DIR, or fit the plugin again"
    );
}

#[test]
fn the_interface_file_and_the_template_agree_on_the_version() {
    let wit = fs::read_to_string(root().join("wit/plugin.wit")).expect("readable");
    let version = ambiguity_sdk::INTERFACE_VERSION;
    assert!(wit.contains(&format!("package ambiguity:plugin@{version};")));
    let template = Artifact::parse("kmeans.wasm".as_ref(), KMEANS_TEMPLATE.to_vec()).expect("a component");
    assert_eq!(template.interface, version);
}

/// From a folder of images to a plugin to distributions, with the command line alone.
#[test]
fn fit_inspect_classify() {
    let folder = tempfile::tempdir().expect("a folder");
    for (style, color) in [("cold", [20, 40, 200]), ("warm", [210, 60, 20])] {
        fs::create_dir_all(folder.path().join("art").join(style)).expect("a folder");
        for i in 0..6u8 {
            let shade = color.map(|c: u8| c.saturating_add(i * 3));
            let file = folder.path().join(format!("art/{style}/{i}.png"));
            RgbImage::from_pixel(64, 64, Rgb(shade)).save(file).expect("writable");
        }
    }
    fs::write(folder.path().join("art/cold/broken.png"), "no image").expect("writable");

    let fit = ["plugin", "fit", "--images", "art", "-k", "2", "-o", "two.wasm", "--title", "Cold or warm"];
    let ran = host_ok(folder.path(), &fit);
    insta::assert_snapshot!(ran.stderr);
    let first = fs::read(folder.path().join("two.wasm")).expect("it was written");
    host_ok(folder.path(), &fit);
    assert!(
        fs::read(folder.path().join("two.wasm")).expect("it was written") == first,
        "fitting twice, the same bytes"
    );
    let sheet = image::open(folder.path().join("two.png")).expect("the contact sheet").into_rgb8();
    let shown = |color: [u8; 3]| sheet.pixels().filter(|pixel| pixel.0 == color).count();
    assert_eq!((shown([20, 40, 200]), shown([210, 60, 20])), (96 * 96, 96 * 96), "each image is shown once");

    let inspected: Value =
        serde_json::from_str(&host_ok(folder.path(), &["plugin", "inspect", "two", "--json"]).stdout).expect("JSON");
    assert_eq!(inspected["styles"], serde_json::json!(["cold", "warm"]));
    assert_eq!(inspected["title"], "Cold or warm");

    let classify = ["plugin", "classify", "two.wasm", "art/warm/0.png", "art/cold/3.png", "--json"];
    let classified: Value = serde_json::from_str(&host_ok(folder.path(), &classify).stdout).expect("JSON");
    let samples = classified["samples"].as_array().expect("a list");
    assert_eq!(samples[0]["file"], "art/warm/0.png");
    let p = |i: usize, j: usize| samples[i]["distribution"][j].as_f64().expect("a number");
    assert!(p(0, 1) > p(0, 0) && p(1, 0) > p(1, 1), "{classified}");
    assert!(classified["fuel"].as_u64().expect("a number") > 0);
}

#[test]
fn fit_refuses_what_cannot_be_fitted() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("art")).expect("a folder");
    let refused = |arguments: &[&str]| {
        let ran = host(folder.path(), &[&["plugin", "fit"], arguments].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        assert!(!folder.path().join("kmeans_art.wasm").exists(), "something was written");
        ran.stderr.lines().last().unwrap_or_default().to_owned()
    };
    let mut table = vec![
        refused(&["--images", "nowhere", "-k", "2"]),
        refused(&["--images", "art", "-k", "2"]),
        refused(&["--images", "art", "-k", "2", "-o", "plugin.txt"]),
        refused(&["--images", "art", "-k", "2", "--encoder", "unknown"]),
        refused(&["--images", "art", "-k", "2", "--encoder", "mine=art"]),
    ];
    RgbImage::from_pixel(8, 8, Rgb([1, 2, 3])).save(folder.path().join("art/1.png")).expect("writable");
    table.push(refused(&["--images", "art", "-k", "2"]));
    RgbImage::from_pixel(8, 8, Rgb([1, 2, 3])).save(folder.path().join("art/2.png")).expect("writable");
    table.push(refused(&["--images", "art", "-k", "2"]));
    table.push(refused(&["--images", "art", "-k", "2..3", "--sheet", "sheet.png"]));
    fs::write(folder.path().join("empty.txt"), "\n \n").expect("writable");
    table.push(refused(&["--texts", "empty.txt", "-k", "2"]));
    fs::write(folder.path().join("binary.txt"), b"fog\n\xff\xfe").expect("writable");
    table.push(refused(&["--texts", "binary.txt", "-k", "2"]));
    write_matrix(&folder.path().join("wide.safetensors"), "embeddings", &groups());
    table.push(refused(&["--embeddings", "wide.safetensors", "-k", "2"]));
    table.push(refused(&["--embeddings", "wide.safetensors", "-k", "2..3", "--init", "wide.safetensors"]));
    table.push(refused(&["--embeddings", "empty.txt", "-k", "2..3"]));
    write_matrix(&folder.path().join("rows.safetensors"), "rows", &groups());
    table.push(refused(&["--embeddings", "rows.safetensors", "-k", "2..3"]));
    insta::assert_snapshot!(table.join("\n"));
}

/// Embeddings in three groups, of numbers whose sums are exact on every machine.
fn groups() -> Array2<f32> {
    Array2::from_shape_fn((24, 4), |(i, j)| if i % 3 == j { 4.0 } else { 0.0 } + (i / 3 % 4) as f32 / 4.0)
}

fn write_matrix(path: &Path, key: &str, matrix: &Array2<f32>) {
    fs::write(path, ambiguity_host::plugin::artifact::encode_tensor(key, matrix)).expect("writable");
}

/// A range of k prints a table and writes nothing; with -o it writes the elbow's plugin.
#[test]
fn an_elbow_table() {
    let folder = tempfile::tempdir().expect("a folder");
    write_matrix(&folder.path().join("groups.safetensors"), "embeddings", &groups());
    let fit = ["plugin", "fit", "--embeddings", "groups.safetensors", "-k", "2..5", "--no-normalize"];
    let ran = host_ok(folder.path(), &fit);
    insta::assert_snapshot!(format!("{}---\n{}", ran.stdout, ran.stderr));
    let json: Value =
        serde_json::from_str(&host_ok(folder.path(), &[&fit[..], &["--json"]].concat()).stdout).expect("JSON");
    assert_eq!((&json["elbow"], &json["points"], &json["fit"]), (&3.into(), &24.into(), &Value::Null));
    let files: Vec<_> =
        fs::read_dir(folder.path()).expect("a folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(files, ["groups.safetensors"], "nothing was written");

    fs::write(folder.path().join("texts.txt"), "baroque\ncubism\nrococo\nminimalism\nbaroque\n").expect("writable");
    host_ok(folder.path(), &["plugin", "fit", "--texts", "texts.txt", "-k", "2..4", "-o", "elbow.wasm"]);
    let inspected = host_ok(folder.path(), &["plugin", "inspect", "elbow.wasm", "--json"]).stdout;
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected["styles"].as_array().map(Vec::len), Some(3), "of three rows the middle one is the elbow");
}

/// Clusters of texts classify images by default, and texts on request; each is named after its nearest text.
#[test]
fn fit_texts() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("moods.txt"), "baroque\n\npop art\ncubism\n").expect("writable");
    let fit = ["plugin", "fit", "--texts", "moods.txt", "-k", "3", "--medium", "text", "--json"];
    let json: Value = serde_json::from_str(&host_ok(folder.path(), &fit).stdout).expect("JSON");
    assert_eq!(
        (&json["plugin"], &json["sheet"], &json["texts"]),
        (&"kmeans_moods.wasm".into(), &json!(null), &json!(3))
    );
    assert_eq!(json["clusters"][1], json!({ "style": "pop art", "texts": 1, "nearest": ["pop art"] }));

    fs::write(folder.path().join("a.txt"), "cubism").expect("writable");
    let classified = host_ok(folder.path(), &["plugin", "classify", "kmeans_moods", "a.txt", "--json"]).stdout;
    let classified: Value = serde_json::from_str(&classified).expect("JSON");
    assert_eq!(classified["styles"], json!(["baroque", "pop art", "cubism"]));
    let row = &classified["samples"][0]["distribution"];
    assert!(row[2].as_f64() > Some(0.99), "a text lies on its own center: {row}");

    host_ok(folder.path(), &["plugin", "fit", "--texts", "moods.txt", "-k", "2", "-o", "images.wasm"]);
    RgbImage::from_pixel(8, 8, Rgb([1, 2, 3])).save(folder.path().join("1.png")).expect("writable");
    host_ok(folder.path(), &["plugin", "classify", "images", "1.png"]);
}

/// Names given after seeing the contact sheet: by fitting again, or by renaming, which changes nothing else.
#[test]
fn clusters_are_named_after_seeing_the_sheet() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "1", "--seed", "5"]);
    let fit = |more: &[&str]| {
        let arguments = ["plugin", "fit", "--images=art", "-k=3", "--runs=1", "-o=three.wasm"];
        host(folder.path(), &[&arguments[..], more].concat())
    };
    let classified = || {
        let arguments = ["plugin", "classify", "./three.wasm", "art/cubism/0000.png", "--json"];
        let document: Value = serde_json::from_str(&host_ok(folder.path(), &arguments).stdout).expect("JSON");
        (document["styles"].clone(), document["samples"][0]["distribution"].clone())
    };
    let sheet = || fs::read(folder.path().join("three.png")).expect("a contact sheet");
    assert_eq!(fit(&[]).code, 0);
    let (styles, distribution) = classified();
    assert_eq!(styles, json!(["cluster-01", "cluster-02", "cluster-03"]));
    let (fitted, numbered) = (fs::read(folder.path().join("three.wasm")).expect("it exists"), sheet());

    let rename = |arguments: &[&str]| host(folder.path(), &[&["plugin", "rename"], arguments].concat());
    assert_eq!(rename(&["./three.wasm", "cluster-01=水墨", "cluster-03=open sea"]).code, 0);
    assert_eq!(classified(), (json!(["水墨", "cluster-02", "open sea"]), distribution.clone()));
    assert_eq!(rename(&["./three.wasm", "水墨=cluster-01", "open sea=cluster-03"]).code, 0);
    assert!(
        fs::read(folder.path().join("three.wasm")).expect("it exists") == fitted,
        "renaming back restores the file"
    );

    fs::write(folder.path().join("names.txt"), "# seen on the sheet\nfog\nsea\nfire\n").expect("writable");
    assert_eq!(fit(&["--names=names.txt"]).code, 0);
    assert_eq!(classified(), (json!(["fog", "sea", "fire"]), distribution.clone()));
    assert!(sheet() != numbered, "the sheet has the names too");
    assert_eq!(rename(&["./three.wasm", "fog=mist", "-o", "other.wasm"]).code, 0);
    assert_eq!(classified().0, json!(["fog", "sea", "fire"]), "the file itself is as it was");

    fs::write(folder.path().join("two.txt"), "fog\nsea\n").expect("writable");
    for (arguments, said) in [
        (&["./three.wasm", "fgo=x"][..], "there is no style `fgo`; known here: fog, sea, fire"),
        (&["./three.wasm", "fog=sea"], "the style `sea` appears twice"),
        (&["./three.wasm", "--names=two.txt"], "two.txt has 2 names for 3 styles: write one per line, in their order"),
        (&["palette", "warm=hot", "-o=hot.wasm"], "the styles of `palette` are in its code"),
        (&["kmeans_image", "baroque=x"], "name a new file with -o"),
        (&["simple", "baroque=x", "-o=x.wasm"], "simple.onnx is a model: its styles are the list `styles`"),
    ] {
        let ran = rename(arguments);
        assert!(ran.code == 1 && ran.stderr.contains(said), "{arguments:?}: {}", ran.stderr);
    }
    assert_eq!(fit(&["--names=two.txt"]).code, 1);
    // The names of a plugin of `host plugin build` are its prompts: they are kept.
    fs::write(folder.path().join("light.toml"), "styles = ['morning', 'candle']").expect("writable");
    host_ok(folder.path(), &["plugin", "build", "light.toml"]);
    let of_light = || {
        let arguments = ["plugin", "classify", "./light.wasm", "art/cubism/0000.png", "--json"];
        let document: Value = serde_json::from_str(&host_ok(folder.path(), &arguments).stdout).expect("JSON");
        document["samples"][0]["distribution"].clone()
    };
    let before = of_light();
    assert_eq!(rename(&["./light.wasm", "morning=a"]).code, 0);
    assert_eq!(of_light(), before);
}
