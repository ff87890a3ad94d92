//! Tests of the paintings as a whole.

#![expect(clippy::needless_range_loop, reason = "a painting is asked for by index")]

use std::collections::BTreeSet;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::*;
use crate::interrupt::{Interrupt, Interrupted};

/// The paintings' sha256, over every style and subject: a change of looks changes what networks were trained on,
/// and must raise `VERSION`.
const LOOKS: [(u32, &str); 3] = [
    (32, "619ae96a9707ea8ec3fce7551aa529fb568c5caf7480987876b0776b19058157"),
    (64, "e51b7a01e1d67af85f13afc77492455bf1990b68b4ab880bc4df4c4f0d617390"),
    (256, "157b38f6cdf57fe1346ce2dcf4909c5b3804959f65b14454dbbca4805e358695"),
];

fn digest(seed: u64, size: u32) -> String {
    let mut hash = Sha256::new();
    for style in 0..STYLES.len() {
        for subject in 0..SUBJECTS.len() {
            hash.update(paint(style, subject, seed, 0, size).as_raw());
        }
    }
    format!("{:x}", hash.finalize())
}

#[test]
fn looks_are_pinned() {
    let looks = LOOKS.map(|(size, _)| (size, digest(7, size)));
    assert_eq!(looks, LOOKS.map(|(size, digest)| (size, digest.to_owned())));
}

#[test]
fn styles_are_sorted_and_each_argument_changes_the_painting() {
    assert!(STYLES.is_sorted_by(|a, b| a.slug < b.slug));
    let reference = paint(3, 4, 5, 6, 48);
    assert_eq!(reference.dimensions(), (48, 48));
    assert_eq!(paint(3, 4, 5, 6, 48), reference);
    for other in [paint(4, 4, 5, 6, 48), paint(3, 5, 5, 6, 48), paint(3, 4, 6, 6, 48), paint(3, 4, 5, 7, 48)] {
        assert_ne!(other, reference);
    }
}

#[test]
fn a_painting_is_the_same_image_at_every_size() {
    for style in 0..STYLES.len() {
        let small = paint(style, 1, 9, 2, 64);
        let large = paint(style, 1, 9, 2, 256);
        let reduced = image::imageops::thumbnail(&large, 64, 64);
        let apart: u64 = small.iter().zip(reduced.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = apart as f64 / (64 * 64 * 3) as f64;
        assert!(mean < 8.0, "{}: {mean:.1} gray levels apart on average", STYLES[style].slug);
    }
}

#[test]
fn no_painting_is_nearly_blank() {
    for style in 0..STYLES.len() {
        for subject in 0..SUBJECTS.len() {
            let image = paint(style, subject, 3, 1, 32);
            let mean = image.iter().map(|&v| f64::from(v)).sum::<f64>() / 3072.0;
            let spread = (image.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 3072.0).sqrt();
            assert!(spread > 15.0, "{} {}: spread {spread:.1}", STYLES[style].slug, SUBJECTS[subject].slug);
        }
    }
}

#[test]
fn captions_are_few_and_read_well() {
    let all = all_captions();
    assert!(all.len() < 6000, "{} captions", all.len());
    assert!(all.is_sorted_by(|a, b| a < b));
    let set: BTreeSet<&str> = all.iter().map(String::as_str).collect();
    for caption in
        ["painting of a man", "drawing of shapes", "painting of nature, ukiyo e", "a ukiyo-e painting of a man"]
    {
        assert!(set.contains(caption), "{caption}");
    }
    assert!(!all.iter().any(|caption| caption.contains("painting painting") || caption.contains("  ")));
    for style in 0..STYLES.len() {
        for variant in [0, 1, 7, 17, 18, 1_000_003, u64::MAX] {
            let full = caption(style, 2, CaptionKind::Full, variant);
            assert!(set.contains(full.as_str()), "{full}");
            assert!(full.contains("a landscape"), "{full}");
            assert!(full.contains(STYLES[style].slug) || full.contains(STYLES[style].spoken), "{full}");
            assert!(set.contains(caption(style, 2, CaptionKind::Style, variant).as_str()));
            assert!(set.contains(caption(style, 2, CaptionKind::Subject, variant).as_str()));
        }
    }
}

/// Every file of a folder with its bytes, by relative path.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(contents(&path).into_iter().map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            files.push((name, std::fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn a_folder_is_the_same_with_any_number_of_threads() {
    let root = tempfile::tempdir().unwrap();
    let write = |threads: usize| {
        let out = root.path().join(format!("with-{threads}"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let written = pool.install(|| write_folder(&out, 9, 32, 11, |_, _| {}, &Interrupt::default())).unwrap();
        assert_eq!(written.paintings, 27 * 9);
        contents(&out)
    };
    let files = write(1);
    assert_eq!(files.len(), 27 * 9 + 1);
    assert!(files == write(3), "threads change the folder");
    let (_, lines) = files.iter().find(|(name, _)| name == "captions.jsonl").unwrap();
    let captions: BTreeSet<String> = all_captions().into_iter().collect();
    let lines: Vec<serde_json::Value> =
        std::str::from_utf8(lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 27 * 9);
    for line in &lines {
        let file = line["file"].as_str().unwrap();
        assert!(files.iter().any(|(name, _)| name == file), "{file}");
        assert!(file.starts_with(line["style"].as_str().unwrap()));
        assert!(captions.contains(line["caption"].as_str().unwrap()));
    }
    assert_eq!(lines[8]["file"], "abstract-expressionism/0008.png");
    assert_eq!(lines[8]["subject"], "man");
}

#[test]
fn a_full_folder_is_refused_and_an_interrupted_one_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("paintings");
    let interrupt = Interrupt::default();
    interrupt.request();
    let error = write_folder(&out, 8, 32, 0, |_, _| {}, &interrupt).unwrap_err();
    assert!(error.is::<Interrupted>(), "{error:#}");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);

    std::fs::create_dir(&out).unwrap();
    write_folder(&out, 1, 32, 0, |_, _| {}, &Interrupt::default()).unwrap();
    let error = write_folder(&out, 1, 32, 0, |_, _| {}, &Interrupt::default()).unwrap_err();
    assert!(format!("{error:#}").contains("has something in it"), "{error:#}");
}
