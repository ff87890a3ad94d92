//! Image files, prompts and encoders as users bring them: every command reads them alike.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Ran, host, host_ok, root, tiny_can};

fn reference(name: &str) -> std::path::PathBuf {
    root().join("tests/reference/images").join(name)
}

/// A folder with two images, a truncated one, one of another format, a pipe, a link and an animation.
fn mixed(folder: &Path) {
    let art = folder.join("art");
    fs::create_dir(&art).expect("a folder");
    for (name, source) in [("a.png", "clear.png"), ("b.png", "clear-gray.png"), ("c.gif", "animated.gif")] {
        fs::copy(reference(source), art.join(name)).expect("copied");
    }
    let whole = fs::read(reference("exif-6.jpg")).expect("readable");
    fs::write(folder.join("cut.jpg"), &whole[..whole.len() - 20]).expect("writable");
    fs::write(art.join("d.heic"), "another format").expect("writable");
    assert!(Command::new("mkfifo").arg(art.join("e.png")).status().expect("mkfifo starts").success());
    std::os::unix::fs::symlink("a.png", art.join("f.png")).expect("a link");
}

fn count(ran: &Ran, text: &str) -> usize {
    ran.stderr.matches(text).count()
}

#[test]
fn every_command_reads_images_alike() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    mixed(folder);
    let truncated = "cut.jpg is not a readable image: the file is truncated";
    let embed = ["embed", "images", "--encoder=tiny-art", "--out=e.safetensors"];
    for arguments in [&["plugin", "classify", "palette"][..], &embed] {
        for (file, message) in [("cut.jpg", truncated), ("art/e.png", "art/e.png is a pipe, not a file")] {
            let ran = host(folder, &[arguments, &[file]].concat());
            assert!(ran.code == 1 && ran.stderr.contains(message), "{}", ran.stderr);
        }
    }
    let classified = host_ok(folder, &["plugin", "classify", "palette", "art/a.png", "art/b.png", "art/c.gif"]);
    assert_eq!(count(&classified, "composited on white"), 1, "{}", classified.stderr);

    let embedded = host_ok(folder, &[&embed[..], &["art"]].concat());
    assert!(embedded.stdout.contains("3 embeddings"), "{}", embedded.stdout);
    fs::copy(folder.join("cut.jpg"), folder.join("art/cut.jpg")).expect("copied");
    let fitted = host_ok(folder, &["plugin", "fit", "--images=art", "-k=2"]);
    assert_eq!(count(&fitted, truncated), 1, "{}", fitted.stderr);
    for ran in [&embedded, &fitted] {
        for text in ["left out: art/d.heic, only png", "left out: art/e.png is a pipe", "composited on white"] {
            assert_eq!(count(ran, text), 1, "{text}: {}", ran.stderr);
        }
    }

    // In a folder by style, the truncated image is left out; the digests wait for no pipe.
    fs::create_dir(folder.join("data")).expect("a folder");
    fs::rename(folder.join("art"), folder.join("data/one")).expect("renamed");
    fs::create_dir(folder.join("data/two")).expect("a folder");
    for name in ["plain.bmp", "lossless.webp", "lzw.tif"] {
        fs::copy(reference(name), folder.join("data/two").join(name)).expect("copied");
    }
    let train = ["classifier", "train", "--preset=tiny-art", "--data=data", "--dry-run"];
    let trained = host_ok(folder, &train);
    assert_eq!(count(&trained, "is a pipe"), 1, "{}", trained.stderr);
}

/// Embeds an image with the small CLIP, whose preprocessor's keys are replaced by `config`.
fn embed(folder: &Path, config: &str, image: &str) -> Ran {
    let clip = folder.join("clip");
    fs::create_dir_all(&clip).expect("a folder");
    for entry in fs::read_dir(root().join("models/weights/tiny-art/clip")).expect("readable") {
        let entry = entry.expect("readable");
        fs::copy(entry.path(), clip.join(entry.file_name())).expect("copied");
    }
    fs::write(clip.join("preprocessor_config.json"), config).expect("writable");
    host(folder, &["embed", "images", "--encoder=clip", "--out=e.safetensors", image])
}

#[test]
fn preprocessors_that_do_not_fit_the_model_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    image::RgbImage::new(64, 64).save(folder.join("square.png")).expect("writable");
    image::RgbImage::new(96, 64).save(folder.join("oblong.png")).expect("writable");
    for (config, key) in [
        (r#"{"size": 64, "crop_size": 96}"#, "`crop_size` is 96x96"),
        (r#"{"size": 64, "crop_size": 65}"#, "`crop_size` is 65x65"),
        (r#"{"size": 64}"#, "`crop_size` is 224x224"),
    ] {
        let ran = embed(folder, config, "square.png");
        assert!(ran.code == 1 && ran.stderr.contains(key), "{} {}", ran.code, ran.stderr);
    }
    let uncropped = r#"{"size": 64, "do_center_crop": false}"#;
    assert_eq!(embed(folder, uncropped, "square.png").code, 0);
    let ran = embed(folder, uncropped, "oblong.png");
    assert!(ran.code == 1 && ran.stderr.contains("96x64 pixels becomes 96x64"), "{} {}", ran.code, ran.stderr);
}

#[test]
fn long_texts_are_truncated_with_one_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let long = "a photo of a cat ".repeat(600);
    fs::write(folder.join("texts.txt"), format!("\u{feff}# comment\na cat\n{long}\n{long} again\n")).expect("writable");
    let ran = host_ok(folder, &["embed", "texts", "--encoder=tiny-art", "--out=e.safetensors", "--file=texts.txt"]);
    assert!(ran.stdout.contains("3 embeddings"), "{}", ran.stdout);
    assert_eq!(count(&ran, "truncated"), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("` and 1 other text are truncated"), "{}", ran.stderr);
}

#[test]
fn hundreds_of_odd_names_are_read_and_the_damaged_files_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    host_ok(folder, &["art", "--out=art", "--per-class=12", "--size=32", "--seed=3"]);
    fs::remove_file(folder.join("art/captions.jsonl")).expect("it was written");
    let odd =
        ["50%, été", "\"quoted\" 'name'", "日本語 🎨", " space ", "a,b;c [1]", "%s%n", "tab\tand\nline", "-n", "$(x)"];
    let (mut n, mut n_damaged) = (0, 0);
    let mut styles: Vec<_> = fs::read_dir(folder.join("art")).expect("a folder").flatten().collect();
    styles.sort_by_key(fs::DirEntry::file_name);
    for style in styles {
        for image in fs::read_dir(style.path()).expect("a folder").flatten() {
            let renamed = style.path().join(format!("{} {n}.png", odd[n % odd.len()]));
            fs::rename(image.path(), &renamed).expect("renamed");
            if n % 20 == 7 {
                let whole = fs::read(&renamed).expect("readable");
                fs::write(&renamed, &whole[..whole.len() / 2]).expect("written");
                n_damaged += 1;
            }
            n += 1;
        }
    }
    assert_eq!((n, n_damaged), (324, 16));
    let train = [&["classifier", "train", "--data=art", "--out=run"][..], &tiny_can()].concat();
    for arguments in [&["plugin", "fit", "--images=art", "-k=3"][..], &train] {
        let ran = host_ok(folder, arguments);
        assert_eq!(count(&ran, "is not a readable image"), 10, "{}", ran.stderr);
        let text = "16 of 324 images cannot be read and are left out (-v names them all)";
        assert_eq!(count(&ran, text), 1, "{}", ran.stderr);
        assert!(!ran.stderr.contains('\t'), "{}", ran.stderr);
    }
    // The second time the embeddings come from the cache, and are the same.
    let first = fs::read(folder.join("kmeans_art.wasm")).expect("a plugin");
    let again = host_ok(folder, &["plugin", "fit", "--images=art", "-k=3"]);
    assert_eq!(count(&again, "is not a readable image"), 10, "{}", again.stderr);
    assert!(fs::read(folder.join("kmeans_art.wasm")).expect("a plugin") == first);
}
