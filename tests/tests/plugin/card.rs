//! `host plugin card`: the pages about a plugin.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::built;
use crate::support::{host, host_ok, root};

/// Runs the command, and returns the Markdown and the HTML.
fn card(folder: &Path, arguments: &[&str], name: &str) -> [String; 2] {
    host_ok(folder, &[&["plugin", "card"], arguments].concat());
    ["md", "html"].map(|extension| {
        fs::read_to_string(folder.join(format!("{name}.card.{extension}"))).expect("the page was written")
    })
}

/// Asserts that a page loads nothing and runs nothing.
fn assert_offline(page: &str) {
    assert!(page.contains("content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\""), "{page}");
    for word in ["<script", "http://", "https://", "src=\"/", "url("] {
        assert!(!page.contains(word), "the page has {word}");
    }
    let addresses = page.matches("src=\"").count();
    assert_eq!(page.matches("src=\"data:image/png;base64,").count(), addresses);
}

/// What depends on a refit, the compiler or the last digits of an encoder is left out.
fn filters() -> Vec<(&'static str, &'static str)> {
    vec![
        (r"[0-9a-f]{64}", "[DIGEST]"),
        (r"\d+ kB", "[N] kB"),
        (r"\d+ bytes", "[N] bytes"),
        (r"[\d.]+ MiB, with", "[N] MiB, with"),
        (r"sample \| [\d.]+ [kM] to [\d.]+ [kM]", "sample | [FUEL]"),
        (r"\| [\d.]+ [kM] \|", "| [FUEL] |"),
        (r"(\d\.\d\d\d)\d\d", "$1"),
    ]
}

#[test]
fn the_card_of_a_classifier_shows_what_it_is_and_predicts() {
    let folder = tempfile::tempdir().expect("a folder");
    let [markdown, html] = card(folder.path(), &["kmeans_image"], "kmeans_image");
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!("card_kmeans_image", markdown); });
    assert_offline(&html);
    assert!(html.contains("<title>kmeans_image 1.0.0</title>") && html.contains("ukiyo-e"), "{html}");
    // Thirteen probes in the table, and the six paintings among them with bars.
    assert_eq!((html.matches("<img").count(), html.matches("class=\"bars\"").count()), (19, 6));
}

#[test]
fn the_card_of_a_scorer_has_its_scale() {
    let folder = tempfile::tempdir().expect("a folder");
    let [markdown, html] = card(folder.path(), &["jpeg_size", "--config", "quality=75"], "jpeg_size");
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!("card_jpeg_size", markdown); });
    assert_offline(&html);
    assert!(!html.contains("class=\"bars\"") && html.contains("quality = 75"), "{html}");
}

#[test]
fn a_folder_shows_its_fixtures() {
    let folder = tempfile::tempdir().expect("a folder");
    built("words");
    let words = root().join("plugins/words");
    let arguments = [&words.to_string_lossy(), "--json"];
    let json = host_ok(folder.path(), &[&["plugin", "card"][..], &arguments].concat()).stdout;
    let document: Value = serde_json::from_str(&json).expect("one JSON document");
    assert_eq!(document["files"], serde_json::json!(["words.card.md", "words.card.html"]));
    let samples = document["samples"].as_array().expect("a list");
    let fixtures = fs::read_dir(words.join("fixtures")).expect("it has fixtures").count();
    assert_eq!((samples.len(), document["n_samples"].as_u64()), (fixtures, Some(fixtures as u64)));
    for sample in samples {
        let name = sample["name"].as_str().expect("a name");
        assert!(words.join("fixtures").join(name).is_file(), "{name} is relative to the folder");
        let share = sample["entropy_share"].as_f64().expect("a number");
        assert!((0.0..=1.0).contains(&share) && sample["fuel"].as_u64().is_some_and(|fuel| fuel > 0), "{sample}");
        assert!(!sample["text"].as_str().expect("a text").is_empty());
    }
    let fuel = document["fuel_per_sample"].as_array().expect("the least and the most");
    assert!(fuel[0].as_u64() < fuel[1].as_u64(), "{fuel:?}");
    let markdown = fs::read_to_string(folder.path().join("words.card.md")).expect("it was written");
    assert!(!markdown.contains("Without samples") && !markdown.contains(&*root().to_string_lossy()), "{markdown}");
}

#[test]
fn the_same_plugin_and_samples_make_the_same_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    host_ok(folder.path(), &["art", "--out", "art", "--per-class", "1", "--seed", "5"]);
    let arguments = ["kmeans_image", "art/cubism", "art/ukiyo-e/0000.png"];
    let first = card(folder.path(), &arguments, "kmeans_image");
    assert!(first[0].contains("| cubism/0000.png | 64 × 64 · prompt: "), "{}", first[0]);
    fs::create_dir(folder.path().join("out")).expect("a new folder");
    host_ok(folder.path(), &[&["plugin", "card"][..], &arguments, &["-o", "out"]].concat());
    for (extension, text) in ["md", "html"].iter().zip(&first) {
        let second = fs::read_to_string(folder.path().join(format!("out/kmeans_image.card.{extension}")));
        assert!(second.expect("it was written") == *text, "another {extension}");
    }
}

#[test]
fn what_a_plugin_says_of_itself_is_escaped() {
    let folder = tempfile::tempdir().expect("a folder");
    let styles = r#"title = "<script>alert(1)</script> | `x` ![i](http://a.b/c.png)\n# heading"
authors = ["<b onload='x'>A</b> & B"]
license = "MIT | Apache"
[styles]
"|" = ["<img src=x>"]
"`code`" = ["a | b"]
"*star* & <i>" = ["line\nfeed"]
"#;
    fs::write(folder.path().join("bad.toml"), styles).expect("a new file");
    host_ok(folder.path(), &["plugin", "build", "bad.toml"]);
    let [markdown, html] = card(folder.path(), &["./bad.wasm"], "bad");
    assert_offline(&html);
    for word in ["<b onload", "<img src=x", "<i>"] {
        assert!(!html.contains(word), "the page has {word}");
    }
    assert!(html.contains("&lt;script&gt;alert(1)&lt;") && html.contains("&lt;b onload="), "{html}");
    let shown: Vec<&str> = markdown.lines().take(20).collect();
    insta::with_settings!({ filters => filters() }, { insta::assert_snapshot!("card_escaped", shown.join("\n")); });
    // Each row of a table has the cells of its head.
    let cells = |line: &str| line.replace(r"\\", "").replace(r"\|", "").matches('|').count();
    for table in markdown.split("\n\n").filter(|block| block.starts_with('|')) {
        let counts: Vec<usize> = table.lines().map(cells).collect();
        assert!(counts.iter().all(|n| *n == counts[0]), "{table}");
    }
}

#[test]
fn what_cannot_be_shown_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("empty/fixtures")).expect("a new folder");
    fs::copy(root().join("plugins/palette.wasm"), folder.path().join("empty/palette.wasm")).expect("a copy");
    fs::write(folder.path().join("a.txt"), "a text").expect("a new file");
    let refused = |arguments: &[&str]| {
        let ran = host(folder.path(), &[&["plugin", "card"], arguments].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        ran.stderr.trim_end().to_owned()
    };
    let messages = [
        refused(&["palette", "-o", "none"]),
        refused(&["palette", "a.txt"]),
        refused(&["palette", "none.png"]),
        refused(&["./empty"]),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r"
    error: there is no folder none
    error: a.txt is a text, but plugin `palette` takes image
    error: none.png: No such file or directory (os error 2)
    error: ./empty/fixtures has no samples (.png, .jpg, .txt, .wav, .gif, .webp, .safetensors)
    ");
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).expect("readable").map(|entry| entry.expect("one").file_name()).collect();
    left.retain(|name| name != "cache");
    left.sort();
    assert_eq!(left, ["a.txt", "empty"], "nothing was written");
}
