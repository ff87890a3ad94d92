use tch::{Kind, Tensor};

use test_support::shared;

use super::{Reference, assert_close, device, shipped_model};
use crate::clip::Clip;
use crate::preprocess::Preprocessor;
use ambiguity_sdk::resize::{Filter, resize, resize_bicubic};

/// Returns an image of the reference script, [h, w, 3] u8, as bytes, width and height.
fn image(tensor: &Tensor) -> (Vec<u8>, usize, usize) {
    let size = tensor.size();
    (Vec::<u8>::try_from(tensor.flatten(0, 2)).unwrap(), size[1] as usize, size[0] as usize)
}

#[test]
fn resize_is_pillows_byte_for_byte() {
    let reference = Reference::read("resize.safetensors");
    let mut checked = 0;
    for (name, wanted) in &reference.part("result.") {
        let source = name.split_once('.').unwrap().0;
        let (rgb, width, height) = image(reference.tensor(&format!("source.{source}")));
        let (wanted, new_width, new_height) = image(wanted);
        assert_eq!(resize_bicubic(&rgb, width, height, new_width, new_height), wanted, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 17);
}

#[test]
fn bilinear_resize_is_pillows_byte_for_byte() {
    let reference = Reference::read("metric_preprocess.safetensors");
    let results = reference.part("bilinear.");
    assert_eq!(results.len(), 10);
    for (name, wanted) in &results {
        let source = name.split_once('.').unwrap().0;
        let (rgb, width, height) = image(reference.tensor(&format!("source.{source}")));
        let (wanted, new_width, new_height) = image(wanted);
        assert_eq!(resize(&rgb, width, height, new_width, new_height, Filter::Bilinear), wanted, "{name}");
    }
}

#[test]
fn pixels_match_the_image_processors() {
    check_processors("clip_preprocess.safetensors", &["clip", "numbers", "padded", "stretched", "plain"]);
    check_processors("metric_preprocess.safetensors", &["dino", "dinov2", "vit", "bit"]);
}

fn check_processors(file: &str, names: &[&str]) {
    let reference = Reference::read(file);
    let order: Vec<String> = serde_json::from_str(&reference.metadata["order"]).unwrap();
    let images: Vec<_> = order.iter().map(|name| image(reference.tensor(&format!("source.{name}")))).collect();
    let images: Vec<_> = images.iter().map(|(rgb, w, h)| (rgb.as_slice(), *w, *h)).collect();
    for &name in names {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("preprocessor_config.json"), &reference.metadata[name]).unwrap();
        let preprocessor = Preprocessor::load(folder.path(), 224).unwrap();
        let wanted = reference.tensor(&format!("result.{name}"));
        assert_close(name, &preprocessor.pixels(&images).unwrap(), wanted, 1e-6);
        // The written file is read back as the same preprocessor.
        preprocessor.save(folder.path()).unwrap();
        assert_eq!(Preprocessor::load(folder.path(), 224).unwrap(), preprocessor);
    }
}

#[test]
fn without_a_file_the_constants_are_clips() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Preprocessor::load(folder.path(), 64).unwrap(), Preprocessor::clip(64));
}

#[test]
fn differentiable_path_is_near_the_rounded_one() {
    let reference = Reference::read("clip_preprocess.safetensors");
    for (name, filter) in [("wide", Filter::Bicubic), ("square", Filter::Bicubic), ("wide", Filter::Bilinear)] {
        let preprocessor = Preprocessor { filter, ..Preprocessor::clip(32) };
        let source = reference.tensor(&format!("source.{name}"));
        let (rgb, width, height) = image(source);
        let rounded = preprocessor.pixels(&[(&rgb, width, height)]).unwrap().to_device(device());
        let unit = (source.permute([2, 0, 1]).unsqueeze(0).to_kind(Kind::Float) / 255.0).set_requires_grad(true);
        let pixels = preprocessor.pixels_from_tensor(&unit).unwrap();
        // Within 1.5 of 255 levels, in units of the standard deviation; only the other one clamps the overshoot.
        let inside = rounded.abs().lt(1.4);
        let difference = ((&pixels - &rounded).abs() * inside.to_kind(Kind::Float)).max().double_value(&[]);
        assert!(difference < 1.5 / 255.0 / 0.26, "{name}: {difference}");
        pixels.sum(Kind::Float).backward();
        assert!(unit.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
    }
}

#[test]
fn jpeg_embeddings_match_pillows() {
    let Some(folder) = shared("paintings") else { return };
    let model = shipped_model().join("clip");
    let reference = Reference::read("clip_paintings.safetensors");
    let files: Vec<String> = serde_json::from_str(&reference.metadata["files"]).unwrap();
    let images: Vec<_> = files.iter().map(|f| image::open(folder.join(f)).unwrap().to_rgb8()).collect();
    let images: Vec<_> =
        images.iter().map(|i| (i.as_raw().as_slice(), i.width() as usize, i.height() as usize)).collect();
    let clip = Clip::load(&model, device(), Kind::Float).unwrap();
    let preprocessor = Preprocessor::load(&model, clip.config.vision_config.image_size).unwrap();
    let found = tch::no_grad(|| clip.embed_images(&preprocessor.pixels(&images).unwrap().to_device(device())));
    let cosine = Tensor::cosine_similarity(&found, reference.tensor("image_embeds"), 1, 1e-12);
    let worst = cosine.min().double_value(&[]);
    assert!(worst >= 0.999, "the worst cosine of {} paintings is {worst}", files.len());
}

/// What transformers refuses with 'Input image size (48*48) doesn't match model (32*32)'.
#[test]
fn sizes_that_the_model_cannot_take_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let load = |text: &str| {
        std::fs::write(folder.path().join("preprocessor_config.json"), text).unwrap();
        Preprocessor::load(folder.path(), 32).unwrap()
    };
    let whole = r#"{"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}"#;
    load(whole).check_side(folder.path(), 32).unwrap();
    load(r#"{"size": 40, "crop_size": 32}"#).check_side(folder.path(), 32).unwrap();
    for (text, key) in [
        (r#"{"size": 32, "crop_size": 48}"#, "`crop_size` is 48x48"),
        (r#"{"size": 32, "crop_size": 24}"#, "`crop_size` is 24x24"),
        (r#"{"size": 32, "crop_size": 33}"#, "`crop_size` is 33x33"),
        (r#"{"size": 32, "crop_size": {"height": 32, "width": 16}}"#, "`crop_size` is 32x16"),
        (r#"{"size": 32}"#, "`crop_size` is 224x224"),
        (r#"{"size": 48, "do_center_crop": false}"#, "`size` is 48x48"),
        (r#"{"size": {"height": 32, "width": 33}, "do_center_crop": false}"#, "`size` is 32x33"),
    ] {
        let message = load(text).check_side(folder.path(), 32).unwrap_err().to_string();
        assert!(message.contains(key) && message.ends_with("takes images of 32x32 pixels"), "{message}");
    }
    // Without a crop, each image decides.
    for text in [r#"{"size": 32, "do_center_crop": false}"#, r#"{"do_resize": false, "do_center_crop": false}"#] {
        let preprocessor = load(text);
        preprocessor.check_side(folder.path(), 32).unwrap();
        preprocessor.expect_side([(32, 32)], 32).unwrap();
        let message = preprocessor.expect_side([(32, 32), (64, 32)], 32).unwrap_err().to_string();
        assert!(message.starts_with("image 1 of 64x32 pixels becomes 64x32, but the model takes 32x32"), "{message}");
    }
}

#[test]
fn bad_images_and_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = |text: &str| {
        std::fs::write(folder.path().join("preprocessor_config.json"), text).unwrap();
        Preprocessor::load(folder.path(), 224).unwrap_err().to_string()
    };
    assert!(message(r#"{"resample": 1}"#).contains("preprocessor_config.json: key `resample` is 1"));
    assert!(message(r#"{"size": {"height": 3}}"#).contains("key `size.width` is missing"));
    assert!(
        message(r#"{"size": {"shortest_edge": 0}}"#)
            .contains("key `size.shortest_edge` must be from 1 to 2048, found 0")
    );
    assert!(message(r#"{"image_mean": [1, 2]}"#).contains("key `image_mean` must be a list of three numbers"));
    assert!(
        message(r#"{"image_std": [1, 0, 1]}"#).contains("key `image_std` must be from 0.000001 to 1000000, found 0")
    );
    assert!(message(r#"{"crop_size": 1000000000}"#).contains("key `crop_size` must be from 1 to 2048"));
    assert!(message(r#"{"rescale_factor": 1e300}"#).contains("key `rescale_factor` must be"));
    assert!(message("{").contains("not valid JSON"));
    let empty = tempfile::tempdir().unwrap();
    let missing = Preprocessor::read(empty.path()).unwrap_err().to_string();
    assert!(missing.ends_with(" has no preprocessor_config.json"), "{missing}");
    let preprocessor = Preprocessor::clip(8);
    let short = preprocessor.pixels(&[(&[0; 10], 2, 2)]).unwrap_err().to_string();
    assert_eq!(short, "image 0 of 2x2 pixels has 10 bytes of RGB");
    assert!(preprocessor.pixels(&[]).is_err());
    let thin = Preprocessor::clip(224).pixels(&[(&[0; 6000], 2000, 1)]).unwrap_err().to_string();
    assert_eq!(thin, "image 0 of 2000x1 pixels is too long and thin: it would be resized to 448000x224");
}
