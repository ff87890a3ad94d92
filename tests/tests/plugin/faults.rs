//! The fault matrix: each faulty plugin has its own message, and the next call, of a correct plugin, succeeds.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambiguity_host::encoders::{Encoder, EncoderError, EncoderInfo, Encoders};
use ambiguity_host::plugin::fit::KMEANS_TEMPLATE;
use ambiguity_host::plugin::{Batch, Limits, PluginHost};
use image::RgbImage;
use ndarray::Array2;

use super::{Means, built, load, means, rounded, two_images};
use crate::support::{host, root};

/// Faults in a plugin's behavior, with the limits that apply.
#[test]
fn misbehaving_plugins() {
    let hostile = built("hostile");
    let limits = Limits { memory_mib: 16, ..Limits::default() };
    let hasty = Limits { timeout_ms: 100, fuel: u64::MAX / 4, ..limits };
    let frugal = Limits { fuel: 1_000_000, ..limits };
    let cases: &[(&str, Limits)] = &[
        ("describe-error", limits),
        ("describe-panic", limits),
        ("describe-encoder", limits),
        ("styles-error", limits),
        ("medium", limits),
        ("no-medium", limits),
        ("same-options", limits),
        ("bad-default", limits),
        ("long-option", limits),
        ("escape-property", limits),
        ("one-style", limits),
        ("same-styles", limits),
        ("escape", limits),
        ("panic", limits),
        ("abort", limits),
        ("loop", hasty),
        ("loop", frugal),
        ("memory", limits),
        ("recursion", limits),
        ("stack", limits),
        ("error", limits),
        ("no-text", limits),
        ("no-sample", limits),
        ("undeclared", limits),
        ("asset", limits),
        ("resample", Limits { resample_megapixels: 3, ..limits }),
        ("chatter", limits),
        ("flood", Limits { output_mib: 1, ..limits }),
        ("nan", limits),
        ("zero", limits),
        ("probabilities", limits),
        ("sum", limits),
        ("rows", limits),
        ("columns", limits),
        ("short", limits),
        ("forge", limits),
        ("long-name", limits),
        ("grow", frugal),
        // One instruction that writes many bytes uses fuel for each.
        ("fill", Limits { memory_mib: 64, ..limits }),
        ("no-frame", limits),
        ("no-array", limits),
        ("no-tokens", limits),
    ];
    let mut table = String::new();
    for (fault, limits) in cases {
        let message = load(*limits, &hostile, &[("fault", fault)])
            .and_then(|mut plugin| plugin.classify(&mut two_images(), &mut means()))
            .expect_err(fault)
            .to_string();
        let message = message.replace(&"bla ".repeat(500), "[500 x bla] ");
        writeln!(table, "{fault}\n    {message}").expect("a string grows");

        let mut batch = two_images();
        let answer = load(*limits, &hostile, &[]).and_then(|mut plugin| plugin.classify(&mut batch, &mut means()));
        assert_eq!(rounded(&answer.expect("a good call")), vec![vec![0.25, 0.75]; 2], "after {fault}");
    }
    insta::assert_snapshot!(table);
}

/// The bits of a NaN are those of WebAssembly's canonical one on every machine, and a call that makes one logs once.
#[test]
fn a_nan_has_the_same_bits_everywhere() {
    let mut plugin = load(Limits::default(), &built("hostile"), &[("fault", "nan-bits")]).expect("it loads");
    for _ in 0..2 {
        let classified = plugin.classify(&mut two_images(), &mut means()).expect("a good call");
        assert_eq!(rounded(&classified), vec![vec![0.75, 0.25]; 2]);
    }
    let folder = tempfile::tempdir().expect("a folder");
    RgbImage::new(8, 8).save(folder.path().join("a.png")).expect("writable");
    let hostile = built("hostile");
    let hostile = hostile.to_str().expect("text");
    let arguments = ["-v", "plugin", "classify", hostile, "a.png", "a.png", "--config=fault=nan-bits", "--json"];
    let ran = host(folder.path(), &arguments);
    assert!(ran.code == 0, "{}", ran.stderr);
    let document: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let p = document["samples"][1]["distribution"][0].as_f64().expect("a probability");
    assert!((p - 0.75).abs() < 1e-6, "{p}");
    assert_eq!(ran.stderr.matches("plugin hostile: ffc00000").count(), usize::from(cfg!(target_arch = "x86_64")));
    let again = "a NaN was made, so it is compiled again";
    assert_eq!(ran.stderr.matches(again).count(), 1, "{}", ran.stderr);
    // What makes no NaN is not called twice.
    let colors = RgbImage::from_fn(64, 64, |x, y| image::Rgb([4 * x as u8, 4 * y as u8, (2 * (x + y)) as u8]));
    colors.save(folder.path().join("colors.png")).expect("writable");
    for plugin in ["kmeans_image", "palette", "clip_softmax"] {
        let ran = host(folder.path(), &["-v", "plugin", "classify", plugin, "colors.png"]);
        assert!(ran.code == 0 && !ran.stderr.contains(again), "{plugin}: {}", ran.stderr);
    }
}

/// The same for its gradient; after each fault the plugin classifies as before.
#[test]
fn misbehaving_gradients() {
    let hostile = built("hostile");
    let limits = Limits::default();
    let frugal = Limits { fuel: 1_000_000, ..limits };
    let upstream = Array2::from_elem((2, 2), 1.0);
    let mut table = String::new();
    for (fault, limits) in [
        ("vjp-panic", limits),
        ("vjp-error", limits),
        ("vjp-loop", frugal),
        ("vjp-nan", limits),
        ("vjp-rows", limits),
        ("vjp-columns", limits),
        ("vjp-short", limits),
    ] {
        let mut plugin = load(limits, &hostile, &[("fault", fault), ("encoder", "means")]).expect("it loads");
        let (mut batch, mut encoders) = (two_images(), means());
        let message = plugin.embedding_vjp(&mut batch, &mut encoders, "means", &upstream).expect_err(fault).to_string();
        writeln!(table, "{fault}\n    {message}").expect("a string grows");
        let classified = plugin.classify(&mut batch, &mut encoders).expect("the batch and the encoders are back");
        assert_eq!(rounded(&classified), vec![vec![0.25, 0.75]; 2], "after {fault}");
    }
    for fault in ["pixel-nan", "pixel-short"] {
        let mut plugin = load(limits, &hostile, &[("fault", fault)]).expect("it loads");
        let message = plugin.pixel_vjp(&mut two_images(), &mut means(), &upstream).expect_err(fault).to_string();
        writeln!(table, "{fault}\n    {message}").expect("a string grows");
    }
    // A plugin that declares no encoder has no embedding to differentiate.
    let mut plugin = load(limits, &hostile, &[]).expect("it loads");
    let message =
        plugin.embedding_vjp(&mut two_images(), &mut means(), "means", &upstream).expect_err("none").to_string();
    writeln!(table, "no encoder\n    {message}").expect("a string grows");
    insta::assert_snapshot!(table);

    let mut plugin = load(limits, &hostile, &[("encoder", "means")]).expect("it loads");
    let gradient = plugin.embedding_vjp(&mut two_images(), &mut means(), "means", &upstream).expect("it behaves");
    assert_eq!(gradient, Array2::<f32>::zeros((2, 3)));
}

/// A fault leaves the batch and the encoders as they were, for the next plugin.
#[test]
fn a_fault_returns_the_batch_and_the_encoders() {
    let hostile = built("hostile");
    let (mut batch, mut encoders) = (two_images(), means());
    let mut plugin = load(Limits::default(), &hostile, &[("fault", "panic")]).expect("it loads");
    plugin.classify(&mut batch, &mut encoders).expect_err("it panics");
    assert_eq!((batch.len(), encoders.names()), (2, vec!["means"]));
    let mut plugin = load(Limits::default(), &hostile, &[("fault", "log")]).expect("it loads");
    let first = plugin.run(&mut batch, &mut encoders).expect("it only logs");
    let second = plugin.run(&mut batch, &mut encoders).expect("it only logs");
    assert_eq!((first.values, first.fuel), (second.values, second.fuel), "fuel is deterministic");
}

#[test]
fn encoders_that_are_missing_or_mixed() {
    let hostile = built("hostile");
    let mut plugin =
        load(Limits::default(), &hostile, &[("encoder", "means"), ("fault", "embedding")]).expect("it loads");
    let message = plugin.classify(&mut two_images(), &mut Encoders::new()).expect_err("no encoder").to_string();
    assert_eq!(
        message,
        "plugin `hostile`: there is no encoder `means`; name its folder with --encoder means=DIR or \
         `[encoders] means = \"DIR\"` (known: none)"
    );

    let mut samples = two_images().samples().to_vec();
    samples[1].image = None;
    let mut batch = Batch::new(samples);
    let message = plugin.classify(&mut batch, &mut means()).expect_err("half images").to_string();
    assert_eq!(message, "plugin `hostile`: sample 1 of the batch has no image to embed");
}

#[test]
fn too_many_texts() {
    let limits = Limits { texts: 4500, ..Limits::default() };
    let mut plugin = load(limits, &built("hostile"), &[("encoder", "means"), ("fault", "texts")]).expect("it loads");
    let message = plugin.classify(&mut two_images(), &mut means()).expect_err("too many").to_string();
    assert!(
        message.starts_with("plugin `hostile`: it asked the host for embeddings of more than 4500 texts"),
        "{message}"
    );
}

/// An encoder that takes 30 ms for each call.
struct Slow;

impl Encoder for Slow {
    fn info(&self) -> EncoderInfo {
        EncoderInfo { dim: 1, digest: "slow".into(), ..EncoderInfo::default() }
    }

    fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
        Ok(Array2::zeros((images.len(), 1)))
    }

    fn embed_texts(&self, texts: &[String]) -> Result<Array2<f32>, EncoderError> {
        std::thread::sleep(Duration::from_millis(30));
        Ok(Array2::zeros((texts.len(), 1)))
    }
}

/// Texts are limited in number, in bytes, and in the time that they take.
#[test]
fn texts_that_take_too_much() {
    let hostile = built("hostile");
    let refused = |limits, fault, encoders: &mut Encoders| {
        let mut plugin = load(limits, &hostile, &[("encoder", "means"), ("fault", fault)]).expect("it loads");
        plugin.classify(&mut two_images(), encoders).expect_err("too much").to_string()
    };
    assert_eq!(
        refused(Limits { memory_mib: 64, ..Limits::default() }, "long-texts", &mut means()),
        "plugin `hostile`: it asked the host for embeddings of more than 8 MiB of texts in one call"
    );
    let mut slow = Encoders::new();
    slow.add("means", Box::new(Slow));
    let message = refused(Limits { timeout_ms: 2, ..Limits::default() }, "texts", &mut slow);
    assert!(
        message
            .starts_with("plugin `hostile`: it asked the host for embeddings of texts, or resampled images, that took")
    );
    assert!(message.ends_with("a tenth of it counts for `plugin.timeout_ms` = 2"), "{message}");
}

/// What a plugin writes to the log stays within its lines, and their number is limited.
#[test]
fn the_log_of_a_plugin_is_limited_and_forges_nothing() {
    let (folder, hostile) = (tempfile::tempdir().expect("a folder"), built("hostile"));
    let image = |name: &str| {
        RgbImage::new(4, 4).save(folder.path().join(name)).expect("writable");
        name.to_owned()
    };
    let (a, b) = (image("a.png"), image("b.png"));
    let ran = |fault: &str| {
        let fault = format!("fault={fault}");
        let arguments = ["plugin", "classify", hostile.to_str().expect("a path in UTF-8"), &a, &b, "--config", &fault];
        host(folder.path(), &arguments)
    };
    let spam = ran("spam");
    let lines: Vec<&str> = spam.stderr.lines().filter(|line| line.contains("plugin hostile")).collect();
    assert_eq!((spam.code, lines.len()), (0, 201), "{}", spam.stderr);
    assert!(lines[7].ends_with(" INFO plugin hostile: line 7\\n INFO forged\\u{1b}[2J"), "{}", lines[7]);
    assert!(
        lines[200].contains("plugin hostile: 800 more lines (")
            && lines[200].contains("the limit is 200 lines and 64 KiB")
    );
    let forge = ran("forge");
    assert_eq!((forge.code, forge.stderr.lines().count()), (1, 1), "{}", forge.stderr);
    let check = host(
        folder.path(),
        &["plugin", "check", hostile.to_str().expect("a path in UTF-8"), "--config", "fault=forge"],
    );
    assert!(
        check.stdout.contains("fine\\nwarning: it is\\r\\u{202e}\\u{2028}\\u{1b}]0;title\\u{7}"),
        "{}",
        check.stdout
    );
    let raw = |text: &str| text.chars().any(|c| c != '\n' && ambiguity_host::text::is_control(c));
    assert!(![&spam, &forge, &check].iter().any(|ran| raw(&ran.stdout) || raw(&ran.stderr)));
}

/// No state is kept: the second batch has a fresh instance.
#[test]
fn each_batch_has_a_fresh_instance() {
    let mut plugin = load(Limits::default(), &built("hostile"), &[("fault", "remember")]).expect("it loads");
    for _ in 0..3 {
        plugin.classify(&mut two_images(), &mut means()).expect("no traces of another batch");
    }
}

/// Files that are something else than a plugin.
#[test]
fn files_that_are_not_plugins() {
    let folder = tempfile::tempdir().expect("a folder");
    let wat = |text: &str| wat::parse_str(text).expect("it assembles");
    let exporting = |names: &[&str]| {
        let exports: String = names.iter().map(|name| format!("(export \"{name}\" (instance $i))")).collect();
        wat(&format!("(component (instance $i) {exports})"))
    };
    let [description, classifier, scorer] =
        ["description", "classifier", "scorer"].map(|name| format!("ambiguity:plugin/{name}@0.2.0"));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("text", b"(component)".to_vec()),
        ("page", b"<!doctype html>".to_vec()),
        ("image", b"\x89PNG\r\n".to_vec()),
        ("stump", b"\0as".to_vec()),
        ("cut", KMEANS_TEMPLATE[..KMEANS_TEMPLATE.len() / 2].to_vec()),
        ("core-module", wat("(module (func (export \"classify\")))")),
        ("nothing", wat("(component)")),
        ("other-world", exporting(&["wasi:cli/run@0.2.0"])),
        ("undescribed", exporting(&[&classifier])),
        ("no-kind", exporting(&[&description])),
        ("two-kinds", exporting(&[&description, &classifier, &scorer])),
        ("hollow", exporting(&[&description, &classifier])),
        ("wasi", wat("(component (import \"wasi:clocks/wall-clock@0.2.0\" (instance)))")),
        ("foreign", wat("(component (import \"acme:secret/sauce\" (instance)))")),
        ("next-version", with_interface(KMEANS_TEMPLATE, b"0.3.0")),
        ("next-patch", with_interface(KMEANS_TEMPLATE, b"0.2.1")),
        ("old-version", with_interface(KMEANS_TEMPLATE, b"0.1.0")),
        ("garbled-version", with_interface(KMEANS_TEMPLATE, b"new")),
        ("future-export", exporting(&["ambiguity:plugin/classifier@0.3.0"])),
        ("unbaked", KMEANS_TEMPLATE.to_vec()),
        ("flipped", flipped(KMEANS_TEMPLATE)),
    ];
    let mut table = String::new();
    for (name, bytes) in cases {
        let path = folder.path().join(format!("{name}.wasm"));
        fs::write(&path, bytes).expect("writable");
        let message = load(Limits::default(), &path, &[]).err().expect(name).to_string();
        let message = message.replace(&folder.path().display().to_string(), "[DIR]");
        writeln!(table, "{name}\n    {message}").expect("a string grows");
    }
    let path = folder.path().join("heavy.wasm");
    fs::write(&path, vec![0; (1 << 20) + 1]).expect("writable");
    let message = load(Limits { file_mib: 1, ..Limits::default() }, &path, &[]).err().expect("too large").to_string();
    writeln!(table, "heavy\n    {message}").expect("a string grows");
    insta::assert_snapshot!(table);
}

/// Files that would take a compiler gigabytes or need what this host's does not have, as `host plugin inspect` names them.
#[test]
fn attacks_on_the_compiler_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let laughs = (0..30).fold("(component $c)".to_owned(), |inner, _| {
        format!("(component $c {inner} (instance (instantiate $c)) (instance (instantiate $c)))")
    });
    let locals = format!("(core module (func (local {}) {}))", "i32 ".repeat(49_000), "(loop)".repeat(10));
    let throws = "(core module (tag $t) (func throw $t))";
    let shared = "(core module (memory 1 1 shared) (type $s (struct)) (func (drop (struct.new $s))))";
    let mut table = String::new();
    for (name, inside) in
        [("laughs", laughs.as_str()), ("locals", &locals), ("exceptions", throws), ("several", shared)]
    {
        let text = format!(
            "(component {inside} (instance $i) (export \"ambiguity:plugin/description@0.2.0\" (instance $i)) \
                 (export \"ambiguity:plugin/classifier@0.2.0\" (instance $i)))"
        );
        let path = folder.path().join(format!("{name}.wasm"));
        fs::write(&path, wat::parse_str(text).expect("it assembles")).expect("writable");
        let message = load(Limits::default(), &path, &[]).err().expect(name).to_string();
        writeln!(table, "{name}\n    {message}").expect("a string grows");
    }
    insta::assert_snapshot!(table);
}

/// Hostile files as they were found: each is refused, or works within its limits, in a sentence.
#[test]
fn hostile_files_are_named_for_what_they_are() {
    let limits = Limits { timeout_ms: 500, ..Limits::default() };
    let mut table = String::new();
    let mut files: Vec<PathBuf> = fs::read_dir(root().join("tests/reference/attack"))
        .expect("a folder")
        .map(|entry| entry.expect("readable").path())
        .collect();
    files.sort();
    for file in files {
        let result = load(limits, &file, &[]).and_then(|mut plugin| {
            let mut encoders = means();
            let names = plugin.description().encoders.clone();
            names.iter().for_each(|name| encoders.add(name, Box::new(Means)));
            plugin.classify(&mut two_images(), &mut encoders)
        });
        let result = match result {
            Ok(classified) => format!("{:?}", classified.probabilities()),
            Err(error) => error.to_string(),
        };
        let result = result.replace(&root().display().to_string(), "[ROOT]");
        let name = file.file_name().expect("a file").to_string_lossy().into_owned();
        writeln!(table, "{name}\n    {result}").expect("a string grows");
    }
    insta::assert_snapshot!(table);
}

/// A compiled plugin is cached; one that was changed or truncated is compiled again.
#[test]
fn a_damaged_cache_entry_is_compiled_again() {
    let hostile = built("hostile");
    let folder = tempfile::tempdir().expect("a folder");
    let classify = || {
        let host = PluginHost::new(Limits::default(), Some(folder.path().to_owned())).expect("the sandbox starts");
        let mut plugin = host.load(hostile.to_str().expect("a path in UTF-8"), Default::default()).expect("it loads");
        plugin.classify(&mut two_images(), &mut means()).expect("it classifies")
    };
    let entry = || -> PathBuf {
        let mut entries = fs::read_dir(folder.path()).expect("readable");
        let entry = entries.next().expect("one entry").expect("readable").path();
        assert!(entries.next().is_none(), "there is one entry");
        entry
    };
    let fresh = classify();
    let good = fs::read(entry()).expect("readable");
    assert_eq!(classify(), fresh);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for damaged in [flipped, good[..good.len() - 1].to_vec(), vec![]] {
        fs::write(entry(), damaged).expect("writable");
        assert_eq!(classify(), fresh);
        assert!(fs::read(entry()).expect("readable") == good, "the entry is whole again");
    }
}

#[test]
fn a_path_that_does_not_exist() {
    let message = load(Limits::default(), Path::new("no/such.wasm"), &[]).err().expect("nothing").to_string();
    assert_eq!(message, "plugin `no/such.wasm`: not found");
}

/// The component with another interface version than its own.
fn with_interface(component: &[u8], version: &[u8]) -> Vec<u8> {
    let name = b"ambiguity:interface";
    let size = 1 + name.len() + version.len();
    let mut bytes = component.to_vec();
    // A custom section: id 0, its size, its name's length and name; all sizes here fit one byte of LEB128.
    bytes.extend([0, u8::try_from(size).expect("small"), u8::try_from(name.len()).expect("small")]);
    bytes.extend(name);
    bytes.extend(version);
    bytes
}

/// The component with a stretch of its code overwritten: longer than any number in it, so that an opcode is hit too.
fn flipped(component: &[u8]) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes[component.len() / 3..][..16].fill(0xff);
    bytes
}
