//! Tests of images by style, from the folder to the batch.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use fs_err as fs;
use image::{Rgb, RgbImage};

use super::*;
use crate::interrupt::Interrupted;

/// A folder of styles and a folder for the cache.
struct Place {
    root: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Place {
    /// Creates styles named a, b, c … with `counts` images: image k of style s has the color (10 s, k, left or right
    /// half).
    fn new(counts: &[usize]) -> Self {
        let place = Self { root: tempfile::tempdir().unwrap(), cache: tempfile::tempdir().unwrap() };
        for (style, &n) in counts.iter().enumerate() {
            for k in 0..n {
                place.save(&format!("{}/deep/{k:03}.png", name(style)), style as u8, k as u8);
            }
        }
        place
    }

    fn save(&self, file: &str, style: u8, k: u8) {
        let path = self.root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image(style, k).save(path).unwrap();
    }

    fn open(&self, options: &Options) -> Result<StyleImages> {
        self.open_with(options, &Interrupt::default())
    }

    fn open_with(&self, options: &Options, interrupt: &Interrupt) -> Result<StyleImages> {
        let source = Source::Folder(self.root.path().to_owned());
        StyleImages::open(&source, options, self.cache.path(), &Progress::new(true), interrupt)
    }

    /// The cache's files with an extension, with their modification times.
    fn cached(&self, kind: &str) -> Vec<(PathBuf, SystemTime)> {
        let Ok(entries) = fs::read_dir(self.cache.path().join("images")) else { return Vec::new() };
        let paths = entries.map(|entry| entry.unwrap().path());
        let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == kind)).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), fs::metadata(&path).unwrap().modified().unwrap())).collect()
    }
}

fn name(style: usize) -> String {
    char::from(b'a' + style as u8).to_string()
}

fn image(style: u8, k: u8) -> RgbImage {
    RgbImage::from_fn(4, 4, |x, _| Rgb([10 * style, k, if x < 2 { 0 } else { 255 }]))
}

fn options() -> Options {
    Options { size: 4, fit: Fit::Pad, per_class: 6, test_share: 0.25, seed: 1 }
}

/// The images of a batch as (label, style in the color, number in the color, mirrored).
fn decode(batch: &StyleBatch) -> Vec<(i64, u8, u8, bool)> {
    let n = batch.images.size()[0];
    assert_eq!(batch.images.size(), [n, 3, 4, 4]);
    let byte = |i: i64, c: i64, x: i64| ((batch.images.double_value(&[i, c, 0, x]) + 1.0) * 127.5).round() as u8;
    let labels = Vec::<i64>::try_from(&batch.styles).unwrap();
    (0..n).map(|i| (labels[i as usize], byte(i, 0, 0) / 10, byte(i, 1, 0), byte(i, 2, 0) == 255)).collect()
}

#[test]
fn batches_contain_the_right_images_in_the_right_range() {
    let images = Place::new(&[8, 4, 12]).open(&options()).unwrap();
    assert_eq!(images.styles(), ["a", "b", "c"]);
    assert_eq!((images.n_train(), images.n_test(), images.n_broken(), images.per_pass()), (18, 6, 0, 18));
    let mut loader = images.loader(18, false, 3, 0);
    let mut held_out = Vec::new();
    for batch in images.test_batches(4) {
        held_out.extend(decode(&batch.unwrap()));
    }
    assert_eq!(held_out.len(), 6);
    assert!(held_out.is_sorted(), "by style, then by name");
    for _ in 0..5 {
        let batch = loader.next().unwrap();
        assert_eq!((batch.images.min().double_value(&[]), batch.images.max().double_value(&[])), (-1.0, 1.0));
        let images = decode(&batch);
        let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
        for &(label, painted, ..) in &images {
            assert_eq!(label, i64::from(painted));
            *counts.entry(label).or_default() += 1;
        }
        assert_eq!(counts, BTreeMap::from([(0, 6), (1, 6), (2, 6)]));
        assert!(images.iter().all(|image| !held_out.contains(image) && !image.3));
    }
}

#[test]
fn some_of_the_held_out_images_are_spread_over_the_styles() {
    let options = Options { test_share: 0.5, ..options() };
    let images = Place::new(&[8, 8, 8]).open(&options).unwrap();
    let all: Vec<_> = images.test_batches(12).flat_map(|batch| decode(&batch.unwrap())).collect();
    let some = |count: usize| decode(&images.some_held_out(count).unwrap());
    assert_eq!(some(12), all);
    assert_eq!(some(99), all);
    assert_eq!(some(3), [all[0], all[4], all[8]]);
    // More than half of the images still reach the last style.
    assert_eq!(some(8), [0, 1, 3, 4, 6, 7, 9, 10].map(|index| all[index]));
}

#[test]
fn every_byte_has_torchvisions_float() {
    let root = tempfile::tempdir().unwrap();
    for style in ["a", "b"] {
        fs::create_dir(root.path().join(style)).unwrap();
        let ramp = RgbImage::from_fn(16, 16, |x, y| Rgb([(16 * y + x) as u8; 3]));
        ramp.save(root.path().join(style).join("ramp.png")).unwrap();
    }
    let options = Options { size: 16, test_share: 0.0, ..options() };
    let source = Source::Folder(root.path().to_owned());
    let images =
        StyleImages::open(&source, &options, root.path(), &Progress::new(true), &Interrupt::default()).unwrap();
    let batch = images.loader(1, false, 0, 0).next().unwrap();
    let floats = Vec::<f32>::try_from(batch.images.view([-1])).unwrap();
    // (x/255 − 0.5)/0.5 in float32, as PyTorch computes it for 0, 1, 127, 128 and 255.
    for (byte, expected) in [(0, -1.0), (1, -0.992_156_86), (127, -0.003_921_568_4), (128, 0.003_921_628), (255, 1.0)] {
        assert_eq!(floats[byte], expected as f32, "{byte}");
    }
    assert_eq!(floats[..256], floats[512..]);
}

#[test]
fn a_later_start_is_the_same_stream_and_flips_are_even_and_repeatable() {
    let images = Place::new(&[8, 4, 12]).open(&options()).unwrap();
    let take = |flip: bool, seed: u64, first: u64, n: usize| {
        let mut loader = images.loader(5, flip, seed, first);
        (0..n).flat_map(|_| decode(&loader.next().unwrap())).collect::<Vec<_>>()
    };
    let whole = take(true, 3, 0, 40);
    assert_eq!(take(true, 3, 13, 27), whole[13 * 5..]);
    assert_ne!(take(true, 4, 0, 40), whole);
    let mirrored = whole.iter().filter(|image| image.3).count();
    assert!((70..130).contains(&mirrored), "{mirrored} of 200 are mirrored");
    let plain: Vec<_> = whole.iter().map(|&(label, style, k, _)| (label, style, k, false)).collect();
    assert_eq!(take(false, 3, 0, 40), plain);
}

#[test]
fn broken_images_are_named_and_counted_and_copies_are_left_out() {
    let place = Place::new(&[8, 8]);
    fs::write(place.root.path().join("a/broken.jpg"), "no image").unwrap();
    fs::write(place.root.path().join("b/also.png"), "no image either").unwrap();
    for lost in ["lost.png", "lost too.png"] {
        std::os::unix::fs::symlink("nowhere.png", place.root.path().join("b").join(lost)).unwrap();
    }
    fs::copy(place.root.path().join("b/deep/003.png"), place.root.path().join("b/copy.png")).unwrap();
    fs::create_dir(place.root.path().join("empty")).unwrap();
    fs::create_dir(place.root.path().join(".hidden")).unwrap();
    fs::copy(place.root.path().join("b/deep/003.png"), place.root.path().join(".hidden/a.png")).unwrap();
    // Twice: once from the files, once from the cache.
    for _ in 0..2 {
        let images = place.open(&options()).unwrap();
        assert_eq!(images.styles(), ["a", "b"]);
        assert_eq!((images.n_broken(), images.n_train() + images.n_test()), (4, 16));
        let why: Vec<&str> = images.images.broken.iter().map(|image| image.why.as_str()).collect();
        assert!(why[0].contains("a/broken.jpg is not a readable image"), "{why:?}");
        assert!(why[2].contains("b/lost too.png: No such file"), "{why:?}");
    }
}

#[test]
fn unusable_data_is_refused_in_one_clear_sentence() {
    let message = |place: &Place| place.open(&options()).unwrap_err().to_string();
    let one = Place::new(&[4]);
    assert!(
        message(&one).contains("has one folder with images (png, jpg, webp, gif, bmp, tiff): name a folder that has"),
        "{}",
        message(&one)
    );
    let none = Place::new(&[]);
    assert!(message(&none).contains("has no folder with images"), "{}", message(&none));
    fs::remove_dir(none.root.path()).unwrap();
    assert!(message(&none).starts_with("there is no folder "), "{}", message(&none));
    let few = Place::new(&[4, 1]);
    assert_eq!(message(&few), "the style b has 1 image: too few to hold 1 out and train on the rest");
    let broken = Place::new(&[4]);
    fs::create_dir(broken.root.path().join("b")).unwrap();
    fs::write(broken.root.path().join("b/x.png"), "no image").unwrap();
    assert!(message(&broken).starts_with("every image of the style b is broken; the first: "), "{}", message(&broken));
    let bad = Options { test_share: 1.0, ..options() };
    let error = Place::new(&[4, 4]).open(&bad).unwrap_err().to_string();
    assert_eq!(error, "the fraction of held-out images must be from 0 to below 1, not 1");
}

#[test]
fn the_cache_is_reused_and_rebuilt_for_other_contents_sizes_and_fits() {
    let place = Place::new(&[4, 4]);
    let digest = place.open(&options()).unwrap().digest().to_owned();
    let before = place.cached("u8");
    assert_eq!(before.len(), 1);
    assert_eq!(place.open(&Options { seed: 2, per_class: 1, ..options() }).unwrap().digest(), digest);
    assert_eq!(place.cached("u8"), before);

    let others = [Options { size: 8, ..options() }, Options { fit: Fit::Crop, ..options() }];
    let others = others.map(|options| place.open(&options).unwrap().digest().to_owned());
    place.save("b/deep/003.png", 1, 77);
    let changed = place.open(&options()).unwrap();
    let digests = BTreeSet::from([digest.as_str(), &others[0], &others[1], changed.digest()]);
    assert_eq!(digests.len(), 4);
    assert_eq!(place.cached("u8").len(), 4);
    let images: Vec<_> = changed.test_batches(9).chain([changed.loader(12, false, 0, 0).next()]).collect();
    assert!(images.iter().flat_map(|batch| decode(batch.as_ref().unwrap())).any(|image| image.2 == 77));
}

#[test]
fn a_truncated_or_damaged_cache_is_rebuilt() {
    let place = Place::new(&[4, 4]);
    place.open(&options()).unwrap();
    let (path, _) = place.cached("u8").remove(0);
    let whole = fs::read(&path).unwrap();
    let index = path.with_extension("json");
    let damages: [&dyn Fn(); 4] = [
        &|| fs::write(&path, &whole[..whole.len() - 1]).unwrap(),
        &|| fs::write(&path, vec![7; whole.len()]).unwrap(),
        &|| fs::remove_file(&path).unwrap(),
        &|| fs::write(&index, "{").unwrap(),
    ];
    for damage in damages {
        damage();
        place.open(&options()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    assert_eq!(place.cached("u8").len(), 1);
}

#[test]
fn a_cache_that_is_truncated_in_use_is_an_error_from_then_on() {
    let place = Place::new(&[4, 4]);
    let images = place.open(&options()).unwrap();
    let mut loader = images.loader(2, false, 0, 0);
    loader.next().unwrap();
    let (path, _) = place.cached("u8").remove(0);
    fs::File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
    // The prefetched batches still arrive.
    let error = (0..10).find_map(|_| loader.next().err()).unwrap().to_string();
    assert!(error.contains("was truncated while it was in use"), "{error}");
    assert!(loader.next().unwrap_err().to_string().contains("has stopped"));
    assert!(images.test_batches(2).next().unwrap().is_err());
}

#[test]
fn an_interrupt_leaves_no_unfinished_cache() {
    let place = Place::new(&[4, 4]);
    let interrupt = Interrupt::default();
    interrupt.request();
    let error = place.open_with(&options(), &interrupt).unwrap_err();
    assert!(error.is::<Interrupted>(), "{error}");
    let source = Source::Paintings { seed: 1, per_class: 4 };
    let error = StyleImages::open(&source, &options(), place.cache.path(), &Progress::new(true), &interrupt);
    assert_eq!(error.unwrap_err().to_string(), "interrupted; no image was read yet");
    let left = fs::read_dir(place.cache.path().join("images")).unwrap().map(|entry| entry.unwrap().path());
    let left: Vec<_> = left.filter(|path| path.extension().is_none_or(|end| end != "lock" && end != "json")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_cache_that_was_broken_off_goes_on_where_it_stopped() {
    let source = Source::Paintings { seed: 1, per_class: 60 };
    let open = |cache: &Path, interrupt: &Interrupt| {
        let options = Options { size: 48, ..options() };
        StyleImages::open(&source, &options, cache, &Progress::new(true), interrupt)
    };
    let [whole, parted] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let wanted = open(whole.path(), &Interrupt::default()).unwrap();
    let part = || {
        let entries = fs::read_dir(parted.path().join("images")).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "part"))
    };
    let mut stops = 0;
    let images = loop {
        let interrupt = Interrupt::default();
        let stop = interrupt.clone();
        // After the first images of this attempt are written, at the latest after a while.
        let size = || part().and_then(|part| fs::metadata(part).ok()).map_or(0, |metadata| metadata.len());
        let before = size();
        let opened = std::thread::scope(|scope| {
            scope.spawn(|| {
                let started = Instant::now();
                while size() <= before && started.elapsed() < Duration::from_secs(2) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                if stops < 3 {
                    stop.request();
                }
            });
            open(parted.path(), &interrupt)
        });
        match opened {
            Ok(images) => break images,
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("are kept in the cache, and the same command resumes"), "{text}");
                stops += 1;
            }
        }
    };
    assert!(stops > 0 && part().is_none());
    assert_eq!(images.styles(), wanted.styles());
    let same = (0..wanted.images.len()).all(|i| images.images.planes(i) == wanted.images.planes(i));
    assert!(same && images.images.len() == wanted.images.len());
}

#[test]
fn dropping_a_loader_stops_its_thread_and_waiting_is_counted() {
    let images = Place::new(&[4, 4]).open(&options()).unwrap();
    let mut loader = images.loader(2, true, 0, 0);
    loader.next().unwrap();
    assert!(loader.waited() > Duration::ZERO);
    // The thread has filled the queue by now and waits.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(Arc::strong_count(&images.images), 2);
    let started = Instant::now();
    drop(loader);
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(Arc::strong_count(&images.images), 1, "the thread has released the images");
}

#[test]
fn paintings_are_procedural_and_cached_by_their_seed() {
    let cache = tempfile::tempdir().unwrap();
    let open = |seed: u64, per_class: usize| {
        let options = Options { size: 16, per_class: 2, test_share: 0.5, ..options() };
        let source = Source::Paintings { seed, per_class };
        StyleImages::open(&source, &options, cache.path(), &Progress::new(true), &Interrupt::default()).unwrap()
    };
    let images = open(5, 2);
    assert_eq!(images.styles().len(), 27);
    assert!(images.styles().is_sorted());
    assert_eq!((images.n_train(), images.n_test(), images.per_pass()), (27, 27, 54));
    let expected = square::square(&procedural_art::paint(3, 1, 5, 1, 16), 16, Fit::Pad);
    assert_eq!(images.images.planes(7), expected);
    assert_eq!(open(5, 2).digest(), images.digest());
    assert_ne!(open(6, 2).digest(), images.digest());
    assert_ne!(open(5, 3).digest(), images.digest());
}
