//! Tests of the page, from runs that are written here.

use std::collections::BTreeMap;

use image::Rgb;

use super::grid::{Cell, Values, compare, contact_sheet};
use super::*;
use crate::config::{FineTuneConfig, Layer, RunConfig as _};
use crate::energy::{Energy, Source};
use crate::run::evaluation::{Estimate, Metric, Outcome, Protocol};
use crate::run::record::{FineTuneEpoch, FineTuneMonitor, FineTuneRecord, FineTuneSeconds, StylesMonitor};
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

/// What a plugin's author may write.
const HOSTILE: &str = "<script>alert(1)</script>\"'</style><b>\u{202e}&amp;";

/// A run whose names are hostile: of a held-out plugin, of styles, of prompts, and of what was evaluated. The held-out reward
/// falls.
fn hostile_run(folder: &Path) -> RunDir {
    let plugin = |name: &str, held_out| LockedPlugin {
        name: name.to_owned(),
        source: HOSTILE.to_owned(),
        sha256: "c0ffee".to_owned(),
        interface: "0.2.0".to_owned(),
        styles: Some(3),
        style_names: vec![HOSTILE.to_owned(), "cubism".to_owned(), "=1".to_owned()],
        held_out,
        ..LockedPlugin::default()
    };
    let config = config(&format!("[[reward.plugin]]\nsource = {:?}\n", "<k>")).to_toml().unwrap();
    let lock = PluginsLock { plugins: vec![plugin("held", true), plugin(HOSTILE, false)], ..PluginsLock::default() };
    let info = RunInfo { hardware: HOSTILE.to_owned(), memory: 1 << 34, ..RunInfo::default() };
    let mut run = RunDir::create(&folder.join("hostile"), &config, &lock, &info).unwrap();
    for epoch in [0, 2] {
        let after = f64::from(epoch as u32) / 10.0;
        let rewards =
            |sign: f64| (0..16).map(|i| -2.0 + sign * after + f64::from(i) / 100.0 * after).collect::<Vec<_>>();
        let distribution = vec![0.5 - after, 0.3 + after, 0.2];
        let styles = StylesMonitor {
            plugin: HOSTILE.to_owned(),
            coverage: 1.0,
            first: vec![distribution.clone(); 2],
            confusion: vec![distribution, vec![], vec![0.1, 0.1, 0.8]],
        };
        let monitor = FineTuneMonitor {
            reward_mean: rewards(1.0)[0],
            diversity: 0.5 - after / 10.0,
            vendi: Some(10.0 - after),
            rewards: rewards(1.0),
            held_out: BTreeMap::from([(HOSTILE.to_owned(), 1.0)]),
            held_out_rewards: BTreeMap::from([(HOSTILE.to_owned(), rewards(-1.0))]),
            styles: Some(styles),
            ..FineTuneMonitor::default()
        };
        let energy = Some(Energy { joules: 7.2e6, source: Source::Rapl });
        let trained = (epoch > 0).then(|| FineTuneEpoch { energy, ..FineTuneEpoch::default() });
        run.append_metrics(&FineTuneRecord { epoch, trained, monitor: Some(monitor), warnings: vec![] }).unwrap();
    }
    let image = || RgbImage::from_pixel(16, 16, Rgb([1, 2, 3]));
    let sheet = compare(&[image(), image()], &[image(), image()], &[HOSTILE; 2], &[(-4.0, -3.5); 2]);
    run.save_image(BEFORE_AFTER, &sheet).unwrap();
    let estimate = |mean| Estimate { mean, std: 1.0, ci95: Some([mean - 0.1, mean + 0.1]), n: 24 };
    let values = run::evaluation::Values {
        value: estimate(-2.0),
        baseline: Some(estimate(-2.5)),
        difference: Some(estimate(0.5)),
        ..Default::default()
    };
    let metric = |name: &str, outcome| Metric {
        name: name.to_owned(),
        encoder: None,
        plugin: Some(HOSTILE.to_owned()),
        held_out: true,
        outcome,
    };
    let metrics = vec![
        metric("reward", Outcome::Ok(Box::new(values))),
        metric("entropy", Outcome::NotRun { reason: HOSTILE.to_owned() }),
    ];
    let protocol = Protocol { count: 24, model: Some(HOSTILE.to_owned()), ..Protocol::default() };
    Evaluation { protocol, metrics }.write(run.path()).unwrap();
    run
}

/// Whether a page has nothing of [`HOSTILE`] but as text, and no other script than its own.
fn assert_harmless(page: &str, scripts: usize) {
    assert_eq!(page.matches("<script").count(), scripts);
    assert!(page.contains("&lt;script&gt;alert(1)"), "it is shown");
    for wrong in ["<script>alert", "</style><b>", "<b>\u{202e}", "\u{202e}"] {
        assert!(!page.contains(wrong), "{wrong} is in the page");
    }
    let page = page.replace("&#x2f;", "/");
    for style in page.split(" style=\"").skip(1) {
        let style = style.split('"').next().unwrap();
        assert!(style.chars().all(|c| c.is_ascii_alphanumeric() || " :;/%.,-".contains(c)), "{style}");
    }
}

#[test]
fn what_others_wrote_does_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = hostile_run(folder.path());
    let page = fs::read_to_string(write(run.path()).unwrap().report).unwrap();
    assert_harmless(&page, 1);
    // The policy allows the page's own script by its digest, and no other.
    let script = page.split_once("<script>").unwrap().1.split_once("</script>").unwrap().0;
    let policy = format!(
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{}'\"",
        page::script_source(script)
    );
    assert!(page.replace("&#x2f;", "/").contains(&policy), "{}", &page[..600]);

    let comparison = comparison::Comparison::read(&[run.path().to_owned()]).unwrap();
    let (page, chart) = comparison.write(&folder.path().join("page.html")).unwrap();
    assert_harmless(&fs::read_to_string(page).unwrap(), 0);
    assert!(chart.unwrap().is_file());
}

#[test]
fn the_page_shows_what_the_run_did_to_other_plugins_and_styles() {
    let folder = tempfile::tempdir().unwrap();
    let run = hostile_run(folder.path());
    let page = fs::read_to_string(write(run.path()).unwrap().report).unwrap();
    for part in [
        "The reward of plugins that took no part in the training fell for",
        "while the trained reward rose: the model may exploit what its classifier gets wrong",
        "<span>cubism</span><span>50\u{a0}%</span><i style=\"width:100.0%\"></i>",
        "class=\"heat-10\"",
        "Monitor, 16 fixed samples",
        "host eval, 24 images",
        "class=\"number good\">+9.8<",
        "2.0 kWh (measured by RAPL, the CPU",
        "0.96 kg CO2 (at 0.48 kg per kWh)",
        "16.00 GiB",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
}

/// An image that compresses badly.
fn noise(seed: u64) -> RgbImage {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    RgbImage::from_fn(64, 64, |_, _| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = state.to_be_bytes();
        Rgb([bytes[0], bytes[1], bytes[2]])
    })
}

#[test]
fn the_page_of_a_long_run_is_small() {
    let folder = tempfile::tempdir().unwrap();
    let points: Vec<(u64, f64, f64)> = (0..=50).map(|epoch| (epoch, -4.0 + epoch as f64 / 100.0, 0.5)).collect();
    let mut run = run_with(folder.path(), &points);
    let cells: Vec<Cell> = (0..32)
        .map(|i| Cell { image: noise(i), title: format!("a painting of a man, number {i}"), value: Some(-3.5) })
        .collect();
    let images: Vec<RgbImage> = (0..16).map(noise).collect();
    let values = Values { name: "reward", mean: -3.5, count: 64 };
    for epoch in 0..=50 {
        run.save_sheet(epoch, &contact_sheet(epoch, &cells, values)).unwrap();
    }
    run.save_image(BEFORE_AFTER, &compare(&images, &images, &["a man"; 16], &[(-4.0, -3.5); 16])).unwrap();
    let page = fs::read_to_string(write(run.path()).unwrap().report).unwrap();
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    let sheets = page.matches("<figure").count();
    assert!(sheets >= 8 && page.contains("<figcaption>Epoch 0<") && page.contains("<figcaption>Epoch 50<"), "{sheets}");
}

#[test]
fn colors_have_contrast_in_both_schemes() {
    /// Relative luminance (WCAG 2.2).
    fn luminance(color: [f64; 3]) -> f64 {
        let linear = |value: f64| match value / 255.0 {
            value if value <= 0.040_45 => value / 12.92,
            value => ((value + 0.055) / 1.055).powf(2.4),
        };
        let [red, green, blue] = color.map(linear);
        0.2126 * red + 0.7152 * green + 0.0722 * blue
    }
    let css = include_str!("style.css");
    for scheme in css.split(":root {").skip(1).map(|text| text.split('}').next().unwrap()) {
        let color = |name: &str| -> [f64; 3] {
            let hex = scheme.split_once(&format!("--{name}: #")).unwrap_or_else(|| panic!("no {name}")).1;
            [0, 2, 4].map(|i| f64::from(u8::from_str_radix(&hex[i..i + 2], 16).unwrap()))
        };
        let assert_contrast = |what: &str, ink: [f64; 3], ground: [f64; 3]| {
            let (a, b) = (luminance(ink) + 0.05, luminance(ground) + 0.05);
            assert!(a.max(b) / a.min(b) >= 4.5, "{what}: {}", a.max(b) / a.min(b));
        };
        for ground in ["card", "ground", "warn-ground", "code"] {
            assert_contrast(ground, color("text"), color(ground));
        }
        // The colors of charts are also those of their words.
        let inks =
            ["muted", "reward", "training", "upper-bound", "diversity", "vendi", "held-out", "limit", "good", "bad"];
        for ink in inks {
            assert_contrast(ink, color(ink), color("card"));
        }
        assert_contrast("muted", color("muted"), color("ground"));
        for step in 0..=10 {
            let line = css.lines().find(|line| line.starts_with(&format!(".heat-{step} "))).unwrap();
            assert!(line.contains(&format!("var(--heat) {}%, var(--card)", 10 * step)));
            let ink = line.split_once("color: var(--").unwrap().1.split_once(')').unwrap().0;
            let (heat, card, share) = (color("heat"), color("card"), f64::from(step) / 10.0);
            let ground = [0, 1, 2].map(|i| heat[i] * share + card[i] * (1.0 - share));
            assert_contrast(&format!("heat-{step}"), color(ink), ground);
        }
    }
}
