//! The shipped plugins, with the shipped encoder.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use ambiguity_host::encoders::Encoders;
use ambiguity_host::plugin::fit::{Directions, bake_k_means};
use ambiguity_host::plugin::{Artifact, Batch, Limits, Medium, Sample};
use ambiguity_models::clip::Clip;
use procedural_art::{STYLES, SUBJECTS, paint};
use serde_json::{Value, json};

use super::load;
use crate::support::{Ran, command, host, host_ok, ran, root};

/// It is the committed template with its own assets, for the shipped weights: a refit on the same images would depend on
/// the machine's arithmetic, this does not.
#[test]
fn kmeans_image_is_the_template_with_assets_for_the_shipped_encoder() {
    let bytes = fs::read(root().join("plugins/kmeans_image.wasm")).expect("it ships");
    let plugin = Artifact::parse("kmeans_image.wasm".as_ref(), bytes.clone()).expect("a plugin");
    let manifest = plugin.manifest.clone().expect("it has a manifest");
    let centers = plugin.tensor("centers").expect("it has centers");
    let disregarded = Directions { matrix: plugin.tensor("disregarded").expect("it has directions").mapv(f64::from) };
    let baked = bake_k_means(&manifest, &centers, Some(&disregarded)).expect("it bakes");
    assert!(baked == bytes, "run `make shipped-plugins` and commit it");
    // The subjects of the prompts, whatever their medium, without the mean of all.
    assert_eq!(disregarded.matrix.nrows(), 7);
    let encoder = manifest.encoder.expect("it names its encoder");
    let shipped = Clip::digest(&root().join("models/weights/tiny-art/clip")).expect("the weights ship");
    assert_eq!(
        (encoder.name.as_str(), encoder.digest),
        ("tiny-art", shipped),
        "run `make shipped-plugins` and commit it"
    );
    assert_eq!((centers.nrows(), manifest.styles.len(), manifest.normalize), (27, 27, true));
}

#[test]
fn kmeans_text_is_the_template_with_centers_of_style_names() {
    let bytes = fs::read(root().join("plugins/kmeans_text.wasm")).expect("it ships");
    let plugin = Artifact::parse("kmeans_text.wasm".as_ref(), bytes.clone()).expect("a plugin");
    let manifest = plugin.manifest.clone().expect("it has a manifest");
    let centers = plugin.tensor("centers").expect("it has centers");
    assert!(
        bake_k_means(&manifest, &centers, None).expect("it bakes") == bytes,
        "run `make shipped-plugins` and commit it"
    );
    let names = fs::read_to_string(root().join("plugins/wikiart_styles.txt")).expect("the names ship");
    assert!(manifest.styles.iter().all(|style| names.lines().any(|name| name == style)), "{:?}", manifest.styles);
    assert_eq!((centers.nrows(), manifest.styles.len(), manifest.media), (5, 5, vec![Medium::Image]));
    let shipped = Clip::digest(&root().join("models/weights/tiny-art/clip")).expect("the weights ship");
    assert_eq!(manifest.encoder.map(|encoder| encoder.digest), Some(shipped), "run `make shipped-plugins`");
}

/// The prompts whose differences kmeans_image disregards are those that a run trains on by default.
#[test]
fn the_prompts_of_kmeans_image_are_those_of_a_run() {
    let file = fs::read_to_string(root().join("plugins/prompts.txt")).expect("they ship");
    let preset = fs::read_to_string(root().join("host/presets/paper-512.toml")).expect("it ships");
    let preset: toml::Table = preset.parse().expect("TOML");
    let list = |key: &str| -> Vec<String> {
        let values = preset["prompts"][key].as_array().expect("a list");
        values.iter().map(|value| value.as_str().expect("a text").to_owned()).collect()
    };
    let subjects = list("subjects");
    let prompts: Vec<String> = list("media")
        .iter()
        .flat_map(|medium| subjects.iter().map(move |subject| format!("{medium} {subject}")))
        .collect();
    assert_eq!(file.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(), prompts);
}

/// The snapshot leaves out the digest, which changes with every refit.
#[test]
fn inspect_shows_kmeans_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let ran = host_ok(folder.path(), &["plugin", "inspect", "kmeans_image"]);
    let text = ran.stdout.replace(&root().display().to_string(), "[ROOT]");
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("  sha256")).collect();
    insta::with_settings!({ filters => [(r"sha256 [0-9a-f]{12}…", "sha256 [DIGEST]"), (r"manifest.json \(\d+", "manifest.json ([N]"), (r"\(\d+ kB\)", "([N] kB)"), (r"file        \S+", "file        [FILE]")] }, {
        insta::assert_snapshot!(text.join("\n"));
    });
}

#[test]
fn kmeans_image_classifies_paintings_the_same_way_each_time() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "3", "--seed", "5"]);
    let files = ["minimalism/0000", "ukiyo-e/0001", "cubism/0002"].map(|name| format!("art/{name}.png"));
    let arguments = |json: bool| {
        let mut arguments = vec!["plugin", "classify", "kmeans_image"];
        arguments.extend(files.iter().map(String::as_str));
        arguments.extend(json.then_some("--json"));
        arguments
    };
    let read = || -> Value {
        serde_json::from_str(&host_ok(folder.path(), &arguments(true)).stdout).expect("one JSON document")
    };
    let (first, second) = (read(), read());
    assert_eq!((&first["samples"], &first["fuel"]), (&second["samples"], &second["fuel"]));
    assert_eq!((first["plugin"].as_str(), first["styles"].as_array().map(Vec::len)), (Some("kmeans_image"), Some(27)));
    let mut likeliest = vec![];
    for sample in first["samples"].as_array().expect("a list") {
        let row: Vec<f64> =
            sample["distribution"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        let reward = row.iter().map(|p| p.ln()).sum::<f64>() / 27.0;
        assert!((sample["reward"].as_f64().expect("a number") - reward).abs() < 1e-12);
        likeliest.push((0..27).max_by(|&a, &b| row[a].total_cmp(&row[b])));
    }
    likeliest.sort();
    likeliest.dedup();
    assert!(likeliest.len() >= 2, "three styles and subjects, more than one cluster");
    let shown = host_ok(folder.path(), &arguments(false)).stdout;
    assert!(shown.starts_with("art/minimalism/0000.png\n  reward -3.") && shown.contains('█'), "{shown}");
}

/// Components that depend only on the sources are those that the sources build.
#[test]
fn committed_components_match_their_sources() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut build = Command::new("sh");
    build.arg(root().join("scripts/components.sh")).arg(folder.path());
    let output = build
        .args(["kmeans", "clip-softmax", "linear", "mixture", "melody", "palette", "words"])
        .output()
        .expect("a shell starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (file, command) in [
        ("host/src/plugin/templates/kmeans.wasm", "make templates"),
        ("host/src/plugin/templates/clip_softmax.wasm", "make templates"),
        ("host/src/plugin/templates/linear.wasm", "make templates"),
        ("host/src/plugin/templates/mixture.wasm", "make templates"),
        ("plugins/melody.wasm", "make shipped-plugins"),
        ("plugins/palette.wasm", "make shipped-plugins"),
        ("plugins/words.wasm", "make shipped-plugins"),
    ] {
        let committed = fs::read(root().join(file)).expect("it is committed");
        let name = file.rsplit('/').next().expect("a path with a last part");
        let built = fs::read(folder.path().join(name)).expect("it was built");
        assert!(built == committed, "the sources build another {file}: run `{command}` and commit it");
    }
}

/// The distributions of a shipped plugin for files in its crate's folder `fixtures`, to this number of decimals; asserts
/// that they are the same twice.
fn on_fixtures(plugin: &str, folder: &str, files: &[&str], decimals: usize) -> String {
    let scratch = tempfile::tempdir().expect("a folder");
    for file in files {
        let fixture = root().join("plugins").join(folder).join("fixtures").join(file);
        fs::copy(&fixture, scratch.path().join(file)).expect("it is committed");
    }
    let arguments = [&["plugin", "classify", plugin, "--json"], files].concat();
    let read =
        || -> Value { serde_json::from_str(&host_ok(scratch.path(), &arguments).stdout).expect("one JSON document") };
    let (first, second) = (read(), read());
    assert_eq!((&first["samples"], &first["fuel"]), (&second["samples"], &second["fuel"]), "the same on every run");
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let styles = list(&first["styles"]);
    let mut text = String::new();
    for sample in list(&first["samples"]) {
        text += &format!("{}\n", sample["file"].as_str().expect("a name"));
        for (style, p) in styles.iter().zip(list(&sample["distribution"])) {
            let (style, p) = (style.as_str().expect("a name"), p.as_f64().expect("a number"));
            text += &format!("  {style:<28} {p:.decimals$}\n");
        }
    }
    text
}

#[test]
fn a_crates_description_authors_and_license_are_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = host_ok(folder.path(), &["plugin", "inspect", "palette", "--json"]).stdout;
    let said: Value = serde_json::from_str(&said).expect("one JSON document");
    assert_eq!(said["title"], "Which palette an image is painted in, by its pixels");
    assert_eq!((&said["authors"], &said["license"]), (&json!(["The Ambiguity authors"]), &json!("Apache-2.0")));
}

/// Arithmetic in the sandbox has the same bits on every machine; twelve decimals survive JSON.
#[test]
fn palette_words_and_melody_on_their_fixtures() {
    let images = ["baroque.png", "fauvism.png", "minimalism.png", "ukiyo-e.png"];
    insta::assert_snapshot!("palette", on_fixtures("palette", "palette", &images, 12));
    let texts = ["all-moods.txt", "meadow.txt", "statute.txt"];
    insta::assert_snapshot!("words", on_fixtures("words", "words", &texts, 12));
    let recordings = ["chord.wav", "concert-a.wav", "rain.wav", "silence.wav"];
    insta::assert_snapshot!("melody", on_fixtures("melody", "melody", &recordings, 12));
}

/// The encoder's arithmetic depends on the machine: only three decimals are the same everywhere.
#[test]
fn clip_softmax_and_kmeans_image_on_their_fixtures() {
    let images = ["cubism.png", "pop-art.png"];
    insta::assert_snapshot!("clip_softmax", on_fixtures("clip_softmax", "clip-softmax", &images, 3));
    on_fixtures("kmeans_image", "clip-softmax", &images, 3);
}

/// The small CLIP was trained on captions of such paintings, so its softmax predicts their styles.
#[test]
fn clip_softmax_predicts_the_styles_of_the_paintings() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "2", "--seed", "77"]);
    let mut files: Vec<String> = vec![];
    for style in fs::read_dir(folder.path().join("art")).expect("a folder") {
        let style = style.expect("readable").file_name().into_string().expect("UTF-8");
        if !style.contains('.') {
            files.extend((0..2).map(|i| format!("art/{style}/{i:04}.png")));
        }
    }
    let mut arguments = vec!["plugin", "classify", "clip_softmax", "--json"];
    arguments.extend(files.iter().map(String::as_str));
    let found: Value = serde_json::from_str(&host_ok(folder.path(), &arguments).stdout).expect("JSON");
    let mut right = 0;
    for sample in found["samples"].as_array().expect("a list") {
        let row: Vec<f64> =
            sample["distribution"].as_array().expect("a list").iter().filter_map(Value::as_f64).collect();
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("27 styles");
        let style = found["styles"][best].as_str().expect("a name");
        right += usize::from(sample["file"].as_str().expect("a name").contains(&format!("/{style}/")));
    }
    assert_eq!(files.len(), 54);
    assert!(right >= 41, "{right} of 54 styles were predicted, at least three quarters must be");
}

#[test]
fn a_plugin_for_another_medium_is_refused_with_both_named() {
    let folder = tempfile::tempdir().expect("a folder");
    for (plugin, medium) in [("words", "text"), ("melody", "audio")] {
        let argument = format!("--plugin={plugin}");
        let ran = host(folder.path(), &["train", "--preset=tiny-art", &argument, "--out=run"]);
        let wanted = format!("plugin {plugin} takes {medium}, but these are images: choose a plugin for images");
        assert!(ran.code == 1 && ran.stderr.contains(&wanted), "{}", ran.stderr);
        assert!(!folder.path().join("run").exists(), "a run's folder was created");
    }
    fs::copy(root().join("plugins/melody/fixtures/rain.wav"), folder.path().join("rain.wav")).expect("a file");
    let ran = host(folder.path(), &["plugin", "classify", "words", "rain.wav"]);
    assert_eq!((ran.code, ran.stderr.trim_end()), (1, "error: rain.wav is a recording, but plugin `words` takes text"));
}

#[test]
fn classify_refuses_what_it_cannot_read() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("broken.png"), "no image").expect("writable");
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

#[test]
fn classify_reads_folders_and_the_standard_input() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "1", "--seed", "5"]);
    let classify = |arguments: &[&str], input: Option<&Path>| {
        let mut command = command(folder.path(), &[&["plugin", "classify", "--json"], arguments].concat());
        let input = input.map_or_else(Stdio::null, |path| fs::File::open(path).expect("it exists").into());
        ran(&command.stdin(input).output().expect("the binary starts"))
    };
    let samples = |ran: &Ran| {
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let document: Value = serde_json::from_str(&ran.stdout).expect("one JSON document");
        document["samples"].as_array().expect("a list").clone()
    };
    let (painting, broken) = (folder.path().join("art/cubism/0000.png"), folder.path().join("art/cubism/0001.png"));
    fs::write(&broken, "no image").expect("writable");
    let below = classify(&["palette", "art"], None);
    let all = samples(&below);
    assert_eq!(all.len(), STYLES.len());
    assert!(below.stderr.contains("left out: art/cubism/0001.png is not a readable image"), "{}", below.stderr);
    let one = samples(&classify(&["palette", "-"], Some(&painting)));
    assert_eq!((one.len(), &one[0]["file"]), (1, &json!("-")));
    let same = all.iter().find(|sample| sample["file"] == "art/cubism/0000.png").expect("it is in the folder");
    assert_eq!(one[0]["distribution"], same["distribution"]);

    let melody = root().join("plugins/melody/fixtures");
    let recordings = fs::read_dir(&melody).expect("readable").flatten();
    let n = recordings.filter(|entry| entry.path().extension().is_some_and(|e| e == "wav")).count();
    assert_eq!(samples(&classify(&["melody", &melody.to_string_lossy()], None)).len(), n);
    let recording = melody.join("rain.wav");
    assert_eq!(samples(&classify(&["melody", "-"], Some(&recording))).len(), 1);
    let poem = folder.path().join("poem.txt");
    fs::write(&poem, "BM, the rose is red").expect("writable");
    assert_eq!(samples(&classify(&["words", "-", "."], Some(&poem))).len(), 2, "a text, whatever it begins with");

    for (arguments, input, said) in [
        (&["palette", "-"][..], None, "the standard input is empty"),
        (&["palette", "-", "-"], Some(&*painting), "`-`, the standard input, is named twice"),
        (&["words", "art"], None, "art has no files that this plugin takes (text)"),
        (&["palette", "-"], Some(&*broken), " is not a readable image: "),
    ] {
        let ran = classify(arguments, input);
        assert!(ran.code == 1 && ran.stderr.contains(said), "{arguments:?}: {}", ran.stderr);
    }
}

/// The shipped encoder knows procedural paintings alone: commands say so of other images and texts, once, and are silent
/// about those that it knows.
#[test]
fn what_the_shipped_encoder_does_not_know_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "4", "--seed", "5", "--size", "128"]);
    fs::create_dir(folder.path().join("noise")).expect("a new folder");
    for seed in 0..40u32 {
        let value = |x: u32, y: u32| (x * 7919 + y * 104_729 + seed * 31).wrapping_mul(2_654_435_761).to_be_bytes();
        let noise =
            image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([value(x, y)[0], value(x, y)[1], value(x, y)[2]]));
        noise.save(folder.path().join(format!("noise/{seed}.png"))).expect("writable");
    }
    let said = |arguments: &[&str]| {
        let stderr = host_ok(folder.path(), &[&["plugin"], arguments].concat()).stderr;
        let lines: Vec<String> =
            stderr.lines().filter(|line| line.contains("procedural paintings alone")).map(str::to_owned).collect();
        assert!(lines.len() <= 1, "it is said once: {lines:?}");
        lines.into_iter().next()
    };
    let remedy = "--encoder openai/clip-vit-large-patch14";
    let is_said = |arguments: &[&str], what: &str| {
        let line = said(arguments).unwrap_or_else(|| panic!("nothing is said of {arguments:?}"));
        assert!(line.contains(what) && line.contains(remedy), "{line}");
    };
    assert_eq!(said(&["classify", "kmeans_image", "art"]), None);
    assert_eq!(said(&["fit", "--images=art", "-k=3", "--runs=1", "-o=art.wasm"]), None);
    is_said(&["classify", "kmeans_image", "noise"], "40 of 40 images are unlike them");
    is_said(&["fit", "--images=noise", "-k=3", "--runs=1", "-o=noise.wasm"], "40 of 40 images are unlike them");
    // The same of embeddings that were kept.
    std::thread::sleep(std::time::Duration::from_secs(2));
    for output in ["-o=kept.wasm", "-o=again.wasm"] {
        is_said(&["fit", "--images=noise", "-k=3", "--runs=1", output], "40 of 40 images are unlike them");
    }
    is_said(&["check", "kmeans_image"], "and so are the paintings here");
    assert_eq!(said(&["check", "palette"]), None);

    fs::write(folder.path().join("known.toml"), "styles = ['cubism', 'pop art']\ntemplate = 'a painting of {}'")
        .expect("writable");
    fs::write(folder.path().join("light.toml"), "styles = ['morning', 'candle']").expect("writable");
    assert_eq!(said(&["build", "known.toml"]), None);
    is_said(&["build", "light.toml"], "2 of 2 texts have words that it never saw (`morning`, `candle`)");
    fs::write(folder.path().join("texts.txt"), "a rocket\na whale\na violin\n").expect("writable");
    is_said(&["fit", "--texts=texts.txt", "-k=2", "-o=texts.wasm"], "3 of 3 texts have words");

    let Some(paintings) = test_support::shared("paintings") else { return };
    is_said(&["classify", "kmeans_image", &paintings.to_string_lossy()], "images are unlike them");
}

/// The trained plugins classify paintings that they were not trained on, and are small enough to ship.
#[test]
fn the_trained_plugins_classify_new_paintings() {
    for (name, minimum) in [("simple", 0.95), ("dcgan", 0.8)] {
        let path = root().join("plugins").join(format!("{name}.onnx"));
        assert!(fs::metadata(&path).expect("it ships").len() < 8_000_000, "{name}");
        let mut plugin = load(Limits::default(), &path, &[]).expect("it loads");
        let styles = STYLES.map(|style| style.slug.to_owned());
        assert_eq!(plugin.description().styles(), styles);
        assert_eq!((plugin.description().name.as_str(), plugin.inspect().license.as_str()), (name, "Apache-2.0"));
        let images = (0..STYLES.len()).flat_map(|style| (0..SUBJECTS.len()).map(move |subject| (style, subject)));
        let samples = images.clone().map(|(style, subject)| {
            let image = Some(std::sync::Arc::new(paint(style, subject, 77_777, 5, 64)));
            Sample { image, ..Sample::default() }
        });
        let mut batch = Batch::new(samples.collect());
        let rows = plugin.classify(&mut batch, &mut Encoders::new()).expect("images").probabilities();
        let right = images.zip(&rows).filter(|((style, _), row)| row.iter().all(|p| *p <= row[*style])).count();
        let accuracy = right as f64 / rows.len() as f64;
        assert!(accuracy >= minimum, "{name}: the styles of {accuracy:.3} of {} paintings are predicted", rows.len());
    }
}
