//! Tests of the page, from runs that are written here.

use image::Rgb;

use super::grid::{Cell, Values, compare, contact_sheet};
use super::*;
use crate::config::{Layer, RunConfig as _};
use crate::run::record::{FineTuneEpoch, FineTuneMonitor, FineTuneSeconds};
use crate::run::{LockedPlugin, RunDir};

fn config(plugins: &str) -> FineTuneConfig {
    let text = format!("[train]\nepochs = 10\n[monitor]\nmin_diversity = 0.6\n{plugins}");
    let layer = Layer { origin: "run.toml".to_owned(), text };
    FineTuneConfig::resolve("tiny-art", &[layer]).unwrap()
}

/// A run with `monitor` records (epoch, mean, diversity), rewards ± 0.1 around the mean.
fn run_with(folder: &Path, points: &[(u64, f64, f64)]) -> RunDir {
    let plugin = LockedPlugin {
        name: "kmeans_image".into(),
        source: "plugins/kmeans_image.wasm".into(),
        sha256: "c0ffee".into(),
        interface: "0.2.0".into(),
        styles: Some(27),
        ..LockedPlugin::default()
    };
    let config = config("[[reward.plugin]]\nsource = \"<k>\"\nweight = 1.0\n").to_toml().unwrap();
    let lock = PluginsLock { plugins: vec![plugin], ..PluginsLock::default() };
    let mut run = RunDir::create(&folder.join("run"), &config, &lock, &RunInfo::default()).unwrap();
    for &(epoch, mean, diversity) in points {
        let rewards: Vec<f64> =
            (0..16).map(|i| mean + f64::from(i % 4) / 30.0 + epoch as f64 * f64::from(i % 3) / 99.0).collect();
        let monitor = FineTuneMonitor {
            reward_mean: mean,
            reward_sem: Some(0.02),
            plugin_rewards: [("kmeans_image".to_owned(), mean)].into(),
            entropy: Some(2.0),
            max_probability: Some(0.4),
            diversity,
            rewards,
            ..FineTuneMonitor::default()
        };
        let seconds = FineTuneSeconds { sample: 2.0, reward: 1.0, train: 5.0 };
        let trained = (epoch > 0).then(|| FineTuneEpoch { seconds, ..FineTuneEpoch::default() });
        let warnings = if epoch > 0 { vec!["a <warning> at last".to_owned()] } else { vec![] };
        run.append_metrics(&FineTuneRecord { epoch, trained, monitor: Some(monitor), warnings }).unwrap();
    }
    run
}

fn result(run: &RunDir) -> String {
    let page = Page::read(run.path()).unwrap();
    let View::FineTune(view) = page.view() else { panic!("it is a fine-tuning") };
    view.result().join(" ")
}

#[test]
fn the_page_has_everything_in_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = run_with(folder.path(), &[(0, -4.0, 0.5), (5, -3.7, 0.48), (10, -3.5, 0.46)]);
    let image = RgbImage::from_pixel(8, 8, Rgb([1, 2, 3]));
    run.save_sheet(0, &image.clone().into()).unwrap();
    run.save_sheet(10, &image.clone().into()).unwrap();
    run.save_image(BEFORE_AFTER, &image.into()).unwrap();
    let page = fs::read_to_string(write(run.path()).unwrap().report).unwrap();
    assert!(run.path().join(CURVE).is_file());
    for part in [
        "rose from −4.000 to −3.500 in 10 epochs",
        "paired by sample",
        "% of the way to the upper bound −ln 27 = −3.296",
        "92 % as diverse",
        "c0ffee",
        "<svg",
        "data:image/png;base64,",
        "a &lt;warning&gt; at last",
        "min_diversity = 0.6",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    for outside in ["http://", "https://", "src=\"/", "@import", "<link"] {
        assert!(!page.contains(outside), "{outside} would be loaded");
    }
    assert!(page.matches("data:image/png;base64,").count() >= 3);
}

#[test]
fn sheets_are_shown_as_images_with_captions_and_name_where_they_are_from() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = run_with(folder.path(), &[(0, -4.0, 0.5), (10, -3.5, 0.46)]);
    let cell = |i: u8| Cell {
        image: RgbImage::from_pixel(32, 32, Rgb([1, 2, i])),
        title: "水墨 <b>".to_owned(),
        value: Some(-3.5),
    };
    let values = Values { name: "reward", mean: -3.5, count: 2 };
    run.save_sheet(10, &contact_sheet(10, &[cell(0), cell(1)], values)).unwrap();
    let images = [cell(0).image, cell(1).image];
    let compared = compare(&images, &images, &["a man", "a woman"], &[(-4.0, -3.5), (-3.5, -4.0)]);
    run.save_image(BEFORE_AFTER, &compared).unwrap();
    let page = fs::read_to_string(write(run.path()).unwrap().report).unwrap();
    assert_eq!(page.matches("class=\"thumb ").count(), 2 + 4);
    assert!(page.contains("水墨 &lt;b&gt;") && !page.contains("水墨 <b>"), "the browser draws any script");
    assert!(page.contains("class=\"good\">+0.500<") && page.contains("class=\"bad\">−0.500<"));
    assert!(page.contains("<title>kmeans_image, 10 epochs – run</title>"), "{}", &page[..400]);
    let png = fs::read(&run::sheets(run.path()).unwrap()[0].1).unwrap();
    let texts = ["epoch", "seed", "plugin", "Software"].map(|name| png::text(&png, name).unwrap_or_default());
    assert_eq!(texts[..3], ["10", "0", "kmeans_image (sha256 c0ffee)"]);
    assert!(texts[3].starts_with("host "), "{texts:?}");
}

#[test]
fn a_layout_that_is_not_its_sheets_is_left_out() {
    let placed = |at| Placed { at, title: String::new(), value: String::new(), change: String::new() };
    for at in [[0, 0, 0, 5], [6, 0, 5, 5], [0, 6, 5, 5], [u32::MAX, 0, 5, 5]] {
        assert!(Thumb::of(&placed(at), (10, 10)).is_none(), "{at:?}");
    }
    let style = Thumb::of(&placed([5, 0, 5, 10]), (10, 10)).unwrap().style;
    assert_eq!(style, "aspect-ratio:5/10;background-size:200.0000% auto;background-position:100.0000% 0.0000%");
}

#[test]
fn a_run_that_has_nothing_yet_has_a_page_too() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_with(folder.path(), &[]);
    let page = fs::read_to_string(write(run.path()).unwrap().report).unwrap();
    assert!(page.contains("not yet scored"), "{page}");
}

#[test]
fn collapse_and_chance_are_called_so() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_with(folder.path(), &[(0, -4.0, 0.5), (5, -3.6, 0.4), (10, -3.5, 0.1)]);
    let collapsed = result(&run);
    assert!(collapsed.contains("the model has collapsed") && collapsed.contains("at epoch 5"), "{collapsed}");
    let folder = tempfile::tempdir().unwrap();
    let chance = result(&run_with(folder.path(), &[(0, -4.0, 0.5), (1, -4.013, 0.5)]));
    assert!(chance.contains("may be chance") && chance.contains("in 1 epoch,"), "{chance}");
}

#[test]
fn sheets_are_chosen_from_the_first_to_the_last() {
    let all: Vec<u64> = (0..100).collect();
    let some: Vec<_> = chosen(&all).copied().collect();
    assert_eq!((some.len(), some[0], some[11]), (12, 0, 99));
    assert_eq!(chosen(&[7]).count(), 1);
    assert_eq!(chosen::<u64>(&[]).count(), 0);
}

#[test]
fn several_plugins_have_a_weighted_upper_bound() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_with(folder.path(), &[]);
    let mut page = Page::read(run.path()).unwrap();
    page.lock.plugins.push(page.lock.plugins[0].clone());
    page.lock.plugins[1].styles = Some(10);
    let plugins = "[[reward.plugin]]\nsource = \"a\"\n[[reward.plugin]]\nsource = \"b\"\nweight = 0.5\n";
    page.training = Training::FineTune(Box::new(config(plugins)), Vec::new());
    let View::FineTune(view) = page.view() else { panic!("it is a fine-tuning") };
    let bound = view.upper_bound().unwrap();
    assert_eq!(bound.formula, "−ln 27 −0.5 ln 10");
    assert!((bound.reward + 27f64.ln() + 0.5 * 10f64.ln()).abs() < 1e-12);

    // A scorer's bound is its best score; without one there is no bound.
    page.lock.plugins[1] = LockedPlugin { largest_reward: Some(1.0), ..LockedPlugin::default() };
    let View::FineTune(view) = page.view() else { panic!("it is a fine-tuning") };
    assert_eq!(view.upper_bound().unwrap().formula, "−ln 27 + 0.5");
    page.lock.plugins[1].largest_reward = None;
    let View::FineTune(view) = page.view() else { panic!("it is a fine-tuning") };
    assert!(view.upper_bound().is_none());
}
