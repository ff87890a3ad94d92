//! The fault matrix: each faulty plugin has its own message, and the next call, of a correct plugin, succeeds.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use ambiguity_host::encoders::Encoders;
use ambiguity_host::plugin::fit::KMEANS_TEMPLATE;
use ambiguity_host::plugin::{Batch, Limits, PluginHost};
use ndarray::Array2;

use super::{built, load, means, two_images};

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
        ("negative", limits),
        ("sum", limits),
        ("rows", limits),
        ("columns", limits),
        ("short", limits),
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
        assert_eq!(answer.expect("a good call").distributions.rows, vec![vec![0.25, 0.75]; 2], "after {fault}");
    }
    insta::assert_snapshot!(table);
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
        let message = plugin.embedding_vjp(&mut batch, &mut encoders, &upstream).expect_err(fault).to_string();
        writeln!(table, "{fault}\n    {message}").expect("a string grows");
        let classified = plugin.classify(&mut batch, &mut encoders).expect("the batch and the encoders are back");
        assert_eq!(classified.distributions.rows, vec![vec![0.25, 0.75]; 2], "after {fault}");
    }
    // A plugin that declares no encoder has no embedding to differentiate.
    let mut plugin = load(limits, &hostile, &[]).expect("it loads");
    let message = plugin.embedding_vjp(&mut two_images(), &mut means(), &upstream).expect_err("none").to_string();
    writeln!(table, "no encoder\n    {message}").expect("a string grows");
    insta::assert_snapshot!(table);

    let mut plugin = load(limits, &hostile, &[("encoder", "means")]).expect("it loads");
    let gradient = plugin.embedding_vjp(&mut two_images(), &mut means(), &upstream).expect("it behaves");
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
    let first = plugin.classify(&mut batch, &mut encoders).expect("it only logs");
    let second = plugin.classify(&mut batch, &mut encoders).expect("it only logs");
    assert_eq!((first.distributions, first.fuel), (second.distributions, second.fuel), "fuel is deterministic");
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
    let classifier = |name: &str| wat(&format!("(component (instance $i) (export \"{name}\" (instance $i)))"));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("text", b"(component)".to_vec()),
        ("page", b"<!doctype html>".to_vec()),
        ("image", b"\x89PNG\r\n".to_vec()),
        ("stump", b"\0as".to_vec()),
        ("cut", KMEANS_TEMPLATE[..KMEANS_TEMPLATE.len() / 2].to_vec()),
        ("core-module", wat("(module (func (export \"classify\")))")),
        ("nothing", wat("(component)")),
        ("other-world", classifier("wasi:cli/run@0.2.0")),
        ("hollow", classifier("ambiguity:plugin/classifier@0.1.0")),
        ("wasi", wat("(component (import \"wasi:clocks/wall-clock@0.2.0\" (instance)))")),
        ("foreign", wat("(component (import \"acme:secret/sauce\" (instance)))")),
        ("next-version", with_interface(KMEANS_TEMPLATE, b"0.2.0")),
        ("next-patch", with_interface(KMEANS_TEMPLATE, b"0.1.1")),
        ("old-version", with_interface(KMEANS_TEMPLATE, b"0.0.9")),
        ("garbled-version", with_interface(KMEANS_TEMPLATE, b"new")),
        ("future-export", classifier("ambiguity:plugin/classifier@0.3.0")),
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

/// A compiled plugin is cached; one that was changed or truncated is compiled again.
#[test]
fn a_damaged_cache_entry_is_compiled_again() {
    let hostile = built("hostile");
    let folder = tempfile::tempdir().expect("a folder");
    let classify = || {
        let host = PluginHost::new(Limits::default(), Some(folder.path().to_owned())).expect("the sandbox starts");
        let mut plugin = host.load(hostile.to_str().expect("a path in UTF-8"), Default::default()).expect("it loads");
        plugin.classify(&mut two_images(), &mut means()).expect("it classifies").distributions
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

/// The component with one opcode changed.
fn flipped(component: &[u8]) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes[component.len() / 3] = 0xff;
    bytes
}
