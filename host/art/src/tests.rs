//! Tests of the paintings as a whole.

#![expect(clippy::needless_range_loop, reason = "a painting is chosen by index")]

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use super::*;

/// The sha256 of the paintings over every style and subject: a change of the paintings changes the training data of
/// networks, and must increase `VERSION`.
const DIGESTS: [(u32, &str); 3] = [
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
fn paintings_are_pinned() {
    let digests = DIGESTS.map(|(size, _)| (size, digest(7, size)));
    assert_eq!(digests, DIGESTS.map(|(size, digest)| (size, digest.to_owned())));
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
