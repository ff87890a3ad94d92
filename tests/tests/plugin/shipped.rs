//! The plugins that ship, with the encoder that ships.

use std::fs;

use ambiguity_host::plugin::Artifact;
use ambiguity_host::plugin::fit::bake_k_means;
use ambiguity_models::clip::Clip;

use crate::support::{host, host_ok, root};

/// It is the committed template with its own assets, for the weights that ship: what a refit makes of the same pictures
/// hangs on the machine's arithmetic, this does not.
#[test]
fn kmeans_image_is_the_template_with_assets_for_the_shipped_encoder() {
    let bytes = fs::read(root().join("plugins/kmeans_image.wasm")).expect("it ships");
    let plugin = Artifact::parse("kmeans_image.wasm".as_ref(), bytes.clone()).expect("a plugin");
    let manifest = plugin.manifest.clone().expect("it has a manifest");
    let centers = plugin.tensor("centers").expect("it has centres");
    assert!(bake_k_means(&manifest, &centers).expect("it bakes") == bytes, "run `make shipped-plugins` and commit it");
    let encoder = manifest.encoder.expect("it names its encoder");
    let shipped = Clip::digest(&root().join("models/weights/tiny-art/clip")).expect("the weights ship");
    assert_eq!(
        (encoder.name.as_str(), encoder.digest),
        ("tiny-art", shipped),
        "run `make shipped-plugins` and commit it"
    );
    assert_eq!((centers.nrows(), manifest.styles.len(), manifest.normalize), (27, 27, true));
}

/// A digest of its own for every refit: what follows from the committed bytes alone is in the snapshot.
#[test]
fn kmeans_image_is_what_it_says() {
    let ran = host_ok(root(), &["plugin", "inspect", "kmeans_image"]);
    let text = ran.stdout.replace(&root().display().to_string(), "[ROOT]");
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("  sha256")).collect();
    insta::with_settings!({ filters => [(r"sha256 [0-9a-f]{12}…", "sha256 [DIGEST]"), (r"manifest.json \(\d+", "manifest.json ([N]"), (r"\(\d+ kB\)", "([N] kB)"), (r"file        \S+", "file        [FILE]")] }, {
        insta::assert_snapshot!(text.join("\n"));
    });
}

#[test]
fn kmeans_image_tells_paintings_apart_the_same_way_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "1", "--seed", "5"]);
    let files = ["minimalism", "ukiyo-e", "cubism"].map(|style| format!("art/{style}/0000.png"));
    let arguments = |json: bool| {
        let mut arguments = vec!["plugin", "classify", "kmeans_image"];
        arguments.extend(files.iter().map(String::as_str));
        arguments.extend(json.then_some("--json"));
        arguments
    };
    let read = || -> serde_json::Value {
        serde_json::from_str(&host_ok(folder.path(), &arguments(true)).stdout).expect("one JSON document")
    };
    let (first, second) = (read(), read());
    assert_eq!((&first["samples"], &first["fuel"]), (&second["samples"], &second["fuel"]));
    assert_eq!((first["plugin"].as_str(), first["styles"].as_array().map(Vec::len)), (Some("kmeans_image"), Some(27)));
    let mut likeliest = vec![];
    for sample in first["samples"].as_array().expect("a list") {
        let row: Vec<f64> =
            sample["distribution"].as_array().expect("a list").iter().filter_map(serde_json::Value::as_f64).collect();
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let reward = row.iter().map(|p| p.ln()).sum::<f64>() / 27.0;
        assert!((sample["reward"].as_f64().expect("a number") - reward).abs() < 1e-12);
        likeliest.push((0..27).max_by(|&a, &b| row[a].total_cmp(&row[b])));
    }
    likeliest.sort();
    likeliest.dedup();
    assert!(likeliest.len() >= 2, "three styles, more than one cluster");
    let shown = host_ok(folder.path(), &arguments(false)).stdout;
    assert!(shown.starts_with("art/minimalism/0000.png\n  reward -3.") && shown.contains('█'), "{shown}");
}

#[test]
fn classify_refuses_what_it_cannot_read() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("broken.png"), "no picture").expect("writable");
    fs::write(folder.path().join("poem.txt"), "rose").expect("writable");
    let refused = |arguments: &[&str]| {
        let ran = host(folder.path(), &[&["plugin", "classify"], arguments].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        ran.stderr.trim_end().to_owned()
    };
    let table = [
        refused(&["kmeans_image", "broken.png"]),
        refused(&["kmeans_image", "missing.png"]),
        refused(&["kmeans_image", "poem.txt"]),
        refused(&["./kmeans_image", "broken.png"]),
    ];
    insta::assert_snapshot!(table.join("\n"));
    assert_eq!(host(folder.path(), &["plugin", "classify", "kmeans_image"]).code, 2, "no files is a usage error");
}
