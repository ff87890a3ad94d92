//! Plugins without a compiler: templates, baking, `host plugin fit`.

use std::fs;
use std::path::Path;

use ambiguity_host::plugin::fit::{
    KMEANS_TEMPLATE, LINEAR_TEMPLATE, Labeled, LinearProbe, MIXTURE_TEMPLATE, Mixture, MixtureOptions, ProbeOptions,
    bake_k_means, bake_linear, bake_mixture,
};
use ambiguity_host::plugin::{Artifact, Batch, Limits, Sample, Values};
use ambiguity_sdk::{EncoderPin, Manifest};
use image::{Rgb, RgbImage};
use linfa::DatasetBase;
use linfa::traits::Fit;
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
        media: vec![medium.parse().expect("a medium")],
        styles: ["red", "green", "blue"].map(String::from).to_vec(),
        encoder: Some(EncoderPin { name: "means".into(), digest: digest.into() }),
        normalize: medium == "image",
        k: Some(3),
        ..Manifest::default()
    };
    let centers = arr2(&[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
    bake_k_means(&manifest, &centers, None).expect("the template takes it")
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
    let output = plugin.run(&mut batch, &mut means()).expect("it runs");
    let Values::Distributions(classified) = output.values else { panic!("it is a classifier") };
    for (row, color) in classified.probabilities().iter().zip(colors) {
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
    insta::assert_debug_snapshot!(classified.probabilities());
    insta::assert_snapshot!(output.fuel.expect("a sandboxed plugin"));
}

#[test]
fn the_same_template_classifies_texts() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("words.wasm");
    fs::write(&path, primaries("means", "text")).expect("writable");
    let mut plugin = load(Limits::default(), &path, &[]).expect("it loads");
    let text = |text: &str| Sample { text: Some(text.to_owned()), ..Sample::default() };
    let mut batch = Batch::new(vec![text("x"), text("a   ")]);
    let rows = plugin.classify(&mut batch, &mut means()).expect("it classifies").probabilities();
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
    for template in [KMEANS_TEMPLATE, LINEAR_TEMPLATE, MIXTURE_TEMPLATE] {
        let template = Artifact::parse("template.wasm".as_ref(), template.to_vec()).expect("a component");
        assert_eq!(template.interface, version);
    }
}

/// Colors around red, green and blue, and their means.
fn colors() -> (Vec<[u8; 3]>, Array2<f32>) {
    let shades = (0..60u32).map(|i| {
        let mut color = [0, 1, 2].map(|channel| (20 + i * (channel + 3) * 37 % 90) as u8);
        color[(i % 3) as usize] += 130;
        color
    });
    let colors: Vec<[u8; 3]> = shades.collect();
    let means = Array2::from_shape_fn((60, 3), |(i, channel)| f32::from(colors[i][channel]) / 255.0);
    (colors, means)
}

/// Checks that a plugin returns these log-probabilities for the colors.
fn assert_log_probabilities(bytes: Vec<u8>, colors: &[[u8; 3]], expected: &Array2<f64>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("baked.wasm");
    fs::write(&path, bytes).expect("writable");
    let mut plugin = load(Limits::default(), &path, &[]).expect("it loads");
    let mut batch = Batch::new(colors.iter().map(|&color| image(color)).collect());
    let found = plugin.classify(&mut batch, &mut means()).expect("it classifies");
    for (found, expected) in found.rows.iter().zip(expected.rows()) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{found} is not {expected}");
        }
    }
}

fn baked_manifest() -> Manifest {
    let primaries = Artifact::parse("x.wasm".as_ref(), primaries("means", "text")).expect("a plugin");
    Manifest { media: vec!["image".parse().expect("a medium")], ..primaries.manifest.expect("it has one") }
}

/// The plugin returns the probe's probabilities, to f32's precision.
#[test]
fn a_baked_linear_probe_is_the_fitted_one() {
    let (colors, means) = colors();
    let classes = (0..60).map(|i| i % 3).collect();
    let options = ProbeOptions { regularization: 0.1, max_iterations: 1000 };
    let probe: LinearProbe = options.fit(&Labeled::new(means.clone(), classes)).expect("three classes");
    let expected = probe.log_probabilities(means.view());
    assert!(expected.iter().any(|p| *p > -0.05) && expected.iter().any(|p| *p < -3.0), "{expected}");
    assert_log_probabilities(bake_linear(&baked_manifest(), &probe).expect("it bakes"), &colors, &expected);
}

/// The plugin returns the components' responsibilities, to f32's precision.
#[test]
fn a_baked_mixture_is_the_fitted_one() {
    let (colors, means) = colors();
    let options = MixtureOptions {
        k: 3,
        dimensions: 2,
        runs: 5,
        max_iterations: 300,
        tolerance: 1e-6,
        ridge: 1e-3,
        seed: 0,
        after_run: &|_, _| true,
    };
    let mixture: Mixture = options.fit(&DatasetBase::from(means.view())).expect("three components");
    let expected = mixture.log_responsibilities(means.view());
    assert!(expected.rows().into_iter().all(|row| (row.mapv(f64::exp).sum() - 1.0).abs() < 1e-9));
    assert_log_probabilities(bake_mixture(&baked_manifest(), &mixture).expect("it bakes"), &colors, &expected);
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

/// Without what the prompts say, clusters of paintings are their styles; with it, they are not.
#[test]
fn fit_disregards_what_texts_say() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "16", "--seed", "3"]);
    let prompts = root().join("plugins/prompts.txt").display().to_string();
    let fit = ["plugin", "fit", "--images", "art", "-k", "27", "--no-sheet", "--json"];
    let fitted = |more: &[&str]| -> Value {
        serde_json::from_str(&host_ok(folder.path(), &[&fit[..], more].concat()).stdout).expect("JSON")
    };
    let share = |json: &Value| {
        let clusters = json["clusters"].as_array().expect("a list");
        clusters.iter().map(|cluster| cluster["folder_share"].as_f64().expect("a share")).sum::<f64>() / 27.0
    };
    let (whole, rest) = (fitted(&["-o", "whole.wasm"]), fitted(&["-o", "rest.wasm", "--disregard", &prompts]));
    assert_eq!((&whole["disregarded_directions"], &rest["disregarded_directions"]), (&json!(0), &json!(7)));
    assert!(share(&whole) < 0.7 && share(&rest) > 0.9, "{} {}", share(&whole), share(&rest));
    let inspected = host_ok(folder.path(), &["plugin", "inspect", "rest.wasm"]).stdout;
    assert!(inspected.contains("disregarded (7 x 64"), "{inspected}");

    fs::write(folder.path().join("one.txt"), "painting of a man\n").expect("writable");
    let ran = host(folder.path(), &[&fit[..], &["--disregard", "one.txt"]].concat());
    let message = "one.txt has one text: at least two are needed to differ";
    assert!(ran.code == 1 && ran.stdout.is_empty() && ran.stderr.contains(message), "{}", ran.stderr);
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

/// A linear probe of the paintings' styles, from a folder per style to classified images.
#[test]
fn fit_labels() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "16", "--seed", "3"]);
    fs::write(folder.path().join("art/cubism/broken.png"), "no image").expect("writable");
    fs::copy(folder.path().join("art/cubism/0000.png"), folder.path().join("art/cubism/copy.png")).expect("a copy");
    let fit = ["plugin", "fit", "--labels", "art", "--json"];
    let ran = host_ok(folder.path(), &fit);
    assert!(ran.stderr.contains("left out: art/cubism/broken.png is not a readable image"), "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&document["plugin"], &document["images"]), (&json!("linear_art.wasm"), &json!(432)));
    let held_out = &document["held_out"];
    assert_eq!((&held_out["images"], &held_out["training_images"]), (&json!(81), &json!(351)));
    let accuracy = held_out["accuracy"].as_f64().expect("a number");
    assert!(accuracy >= 0.97, "{accuracy}");
    let confusion: Vec<Vec<usize>> = serde_json::from_value(held_out["confusion"].clone()).expect("a matrix");
    let right: usize = (0..27).map(|i| confusion[i][i]).sum();
    assert_eq!((confusion.iter().flatten().sum::<usize>(), right), (81, (81.0 * accuracy).round() as usize));
    assert_eq!(document["classes"][7]["style"], "cubism");
    assert_eq!((&document["classes"][7]["images"], &document["classes"][7]["held_out"]), (&json!(16), &json!(3)));

    let file = folder.path().join("linear_art.wasm");
    let first = fs::read(&file).expect("it was written");
    assert_eq!(host_ok(folder.path(), &["plugin", "fit", "--labels", "art", "--json", "--seed", "0"]).code, 0);
    assert!(fs::read(&file).expect("it was written") == first, "fitting twice, the same bytes");
    let other =
        host_ok(folder.path(), &[&fit[..], &["--seed", "1", "--regularization", "30", "-o", "other.wasm"]].concat());
    let other: Value = serde_json::from_str(&other.stdout).expect("JSON");
    assert!(other["held_out"]["cross_entropy"].as_f64() > held_out["cross_entropy"].as_f64(), "flatter: {other}");
    let sheet = image::open(folder.path().join("linear_art.png")).expect("the contact sheet");
    assert!(sheet.height() > 27 * 100 + 1000, "27 rows, a map and a confusion matrix");

    let inspected = host_ok(folder.path(), &["plugin", "inspect", "./linear_art.wasm", "--json"]).stdout;
    let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(inspected["title"], "Linear probe of 27 classes of image embeddings by tiny-art");
    let classify = ["plugin", "classify", "./linear_art.wasm", "art/rococo/0003.png", "art/ukiyo-e/0005.png", "--json"];
    let classified: Value = serde_json::from_str(&host_ok(folder.path(), &classify).stdout).expect("JSON");
    for (i, style) in ["rococo", "ukiyo-e"].into_iter().enumerate() {
        let place = classified["styles"].as_array().expect("a list").iter().position(|name| name == style);
        let p = classified["samples"][i]["distribution"][place.expect("a style")].as_f64().expect("a number");
        assert!(p > 0.9, "{style}: {p}");
    }
    let rename = ["plugin", "rename", "./linear_art.wasm", "rococo=ornate", "-o", "renamed.wasm"];
    assert_eq!(host_ok(folder.path(), &rename).code, 0);
    let renamed = ["plugin", "classify", "./renamed.wasm", "art/rococo/0003.png", "art/ukiyo-e/0005.png", "--json"];
    let renamed: Value = serde_json::from_str(&host_ok(folder.path(), &renamed).stdout).expect("JSON");
    assert_eq!(renamed["samples"][0]["distribution"], classified["samples"][0]["distribution"]);
}

/// Two classes whose images differ by color: the report that a person reads.
#[test]
fn the_report_of_a_linear_probe() {
    let folder = tempfile::tempdir().expect("a folder");
    for (style, color) in [("cold", [20, 40, 200]), ("warm", [210, 60, 20])] {
        fs::create_dir_all(folder.path().join("art").join(style)).expect("a folder");
        for i in 0..10u8 {
            let shade = color.map(|c: u8| c.saturating_add(i * 3));
            let file = folder.path().join(format!("art/{style}/{i}.png"));
            RgbImage::from_pixel(64, 64, Rgb(shade)).save(file).expect("writable");
        }
    }
    let fit = ["plugin", "fit", "--labels", "art", "-o", "two.wasm"];
    let ran = host_ok(folder.path(), &[&fit[..], &["--held-out", "0.3"]].concat());
    insta::with_settings!({ filters => [(r"cross-entropy 0\.\d+", "cross-entropy [CE]"), (r"\d+ kB", "[N] kB")] }, {
        insta::assert_snapshot!(ran.stderr);
    });
    let none = host_ok(folder.path(), &[&fit[..], &["--held-out", "0", "--no-sheet"]].concat());
    assert!(none.stderr.contains("fitted to all of them, without an evaluation"), "{}", none.stderr);
}

/// A Gaussian mixture of images, and the table of a range.
#[test]
fn fit_mixture() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "4", "--seed", "5"]);
    let fit = ["plugin", "fit", "--mixture", "--images", "art", "-k", "3", "--json"];
    let document: Value = serde_json::from_str(&host_ok(folder.path(), &fit).stdout).expect("JSON");
    assert_eq!((&document["plugin"], &document["method"]), (&json!("mixture_art.wasm"), &json!("mixture")));
    assert_eq!((&document["dimensions"], &document["images"]), (&json!(8), &json!(108)));
    let weights: f64 = (0..3).map(|i| document["clusters"][i]["weight"].as_f64().expect("a number")).sum();
    assert!((weights - 1.0).abs() < 1e-9, "{document}");
    assert!(folder.path().join("mixture_art.png").exists());
    let first = fs::read(folder.path().join("mixture_art.wasm")).expect("it was written");
    host_ok(folder.path(), &fit);
    assert!(fs::read(folder.path().join("mixture_art.wasm")).expect("it was written") == first, "the same bytes");

    let classify = |more: &[&str]| -> Value {
        let arguments = [&["plugin", "classify", "./mixture_art.wasm", "art/cubism", "--json"], more].concat();
        serde_json::from_str(&host_ok(folder.path(), &arguments).stdout).expect("JSON")
    };
    let entropy = |document: &Value| -> f64 {
        document["samples"].as_array().expect("a list").iter().filter_map(|sample| sample["entropy"].as_f64()).sum()
    };
    let found = classify(&[]);
    assert_eq!(found["samples"].as_array().map(Vec::len), Some(4));
    let row = found["samples"][0]["log_distribution"].as_array().expect("a list");
    let sum: f64 = row.iter().map(|p| p.as_f64().expect("a number").exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{row:?}");
    assert!(entropy(&classify(&["--config", "temperature=20"])) > entropy(&found), "a temperature flattens");

    let table = ["plugin", "fit", "--mixture", "--images", "art", "-k", "2..4", "--json"];
    let table: Value = serde_json::from_str(&host_ok(folder.path(), &table).stdout).expect("JSON");
    let rows = table["table"].as_array().expect("a list");
    assert!(rows.len() == 3 && rows[0]["log_likelihood"].as_f64() < rows[2]["log_likelihood"].as_f64(), "{table}");
    assert_eq!((&table["fit"], table["lowest_bic"].as_u64().is_some()), (&Value::Null, true));
}

/// One clear sentence for what cannot be a probe or a mixture.
#[test]
fn labels_and_mixtures_that_cannot_be_fitted() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = |path: &str, color: [u8; 3]| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        RgbImage::from_pixel(8, 8, Rgb(color)).save(path).expect("writable");
    };
    let refused = |code: i32, arguments: &[&str]| {
        let ran = host(folder.path(), &[&["plugin", "fit"], arguments].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{}", ran.stderr);
        let mut lines = ran.stderr.lines().skip_while(|line| !line.starts_with("error:"));
        let error = lines.next().expect("an error").to_owned();
        // What is missing is in the next line.
        let line = if error.ends_with(':') { error + lines.next().unwrap_or_default() } else { error };
        assert!(
            !fs::read_dir(folder.path())
                .expect("a folder")
                .flatten()
                .any(|entry| { entry.file_name().to_string_lossy().ends_with(".wasm") })
        );
        line
    };
    fs::create_dir(folder.path().join("empty")).expect("a folder");
    let mut table = vec![refused(1, &["--labels", "nowhere"]), refused(1, &["--labels", "empty"])];
    image("art/a/1.png", [200, 0, 0]);
    image("art/a/2.png", [210, 0, 0]);
    table.push(refused(1, &["--labels", "art"]));
    image("art/b/1.png", [0, 200, 0]);
    table.push(refused(1, &["--labels", "art"]));
    fs::write(folder.path().join("art/b/2.png"), "no image").expect("writable");
    table.push(refused(1, &["--labels", "art"]));
    image("same/a/1.png", [9, 9, 9]);
    image("same/b/1.png", [9, 9, 9]);
    table.push(refused(1, &["--labels", "art", "--encoder", "unknown"]));
    table.push(refused(1, &["--labels", "art", "-o", "probe.txt"]));
    table.push(refused(2, &["--labels", "art", "-k", "3"]));
    table.push(refused(2, &["--labels", "art", "--mixture"]));
    table.push(refused(2, &["--labels", "art", "--images", "art"]));
    table.push(refused(2, &["--labels", "art", "--held-out", "1"]));
    table.push(refused(2, &["--labels", "art", "--dimensions", "2"]));
    table.push(refused(2, &["--images", "art"]));
    table.push(refused(2, &["--images", "art", "-k", "2", "--regularization", "2"]));
    table.push(refused(2, &["--images", "art", "-k", "2", "--dimensions", "2"]));
    table.push(refused(2, &["--mixture", "--images", "art", "-k", "2", "--init", "x.safetensors"]));
    table.push(refused(1, &["--labels", "same", "--held-out", "0"]));
    table.push(refused(1, &["--mixture", "--images", "same", "-k", "2"]));
    write_matrix(&folder.path().join("few.safetensors"), "embeddings", &groups());
    let mixture = ["--mixture", "--embeddings", "few.safetensors"];
    table.push(refused(1, &[&mixture[..], &["-k", "2..13"]].concat()));
    table.push(refused(1, &[&mixture[..], &["-k", "2..6", "--dimensions", "4"]].concat()));
    insta::assert_snapshot!(table.join("\n"));
}
