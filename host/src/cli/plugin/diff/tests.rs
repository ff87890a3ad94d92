//! The rules of the bump on made-up outputs.

use image::{Rgb, RgbImage};

use super::bump::Bump;
use super::compare::{Comparison, Row};
use super::description::{Described, Styles};
use super::outputs::{Answer, Outcome, Value};
use super::{TOLERANCE, report, sheet};
use crate::plugin::{Description, Kind, Medium, Scale};
use crate::rl::reward::ambiguity;

fn described(version: &str, kind: Kind) -> Described {
    let (name, version) = ("made-up".to_owned(), version.to_owned());
    let description = Description { name, kind, media: vec![Medium::Image], ..Description::default() };
    Described { description: Description { version, ..description }, ..Described::default() }
}

fn styles(names: &[&str]) -> Kind {
    Kind::Classifier { styles: names.iter().map(|&name| name.to_owned()).collect() }
}

fn classified(probabilities: &[f64]) -> Answer {
    let row: Vec<f64> = probabilities.iter().map(|p| p.ln()).collect();
    Answer { reward: ambiguity(&row), value: Value::Distribution(row), gradient: None }
}

fn scored(score: f64) -> Answer {
    Answer { reward: score, value: Value::Score(score), gradient: None }
}

/// What the plugins returned of each sample.
type Answers = Vec<[Result<Answer, String>; 2]>;

fn compare(old: Described, new: Described, answers: Answers, tolerance: f64) -> Comparison {
    let matched = Styles::matched(old.description.styles(), new.description.styles());
    let rows = answers.into_iter().enumerate().map(|(index, [of_old, of_new])| Row {
        index,
        name: format!("{index}.png"),
        origin: "file",
        is_worthless: false,
        outcome: Outcome::new(of_old, of_new, [&old.description, &new.description], &matched),
    });
    let rows = rows.collect();
    Comparison::new(old, new, rows, tolerance)
}

fn of_two_styles(answers: Answers) -> Comparison {
    let plugin = |version| described(version, styles(&["a", "b"]));
    compare(plugin("1.2.3"), plugin("1.3.0"), answers, TOLERANCE)
}

/// Three samples with different rewards, of which the last one becomes `last`.
fn answers(last: Result<Answer, String>) -> Answers {
    let both = |p: f64| [Ok(classified(&[p, 1.0 - p])), Ok(classified(&[p, 1.0 - p]))];
    vec![both(0.5), both(0.9), [Ok(classified(&[0.7, 0.3])), last]]
}

fn said(comparison: &Comparison) -> String {
    let reasons = comparison.reasons().iter();
    reasons.map(|reason| format!("{}: {}", reason.bump.name(), reason.text)).collect::<Vec<_>>().join("\n")
}

#[test]
fn equal_bits_are_a_patch_and_the_same_file_is_nothing() {
    let same = of_two_styles(answers(Ok(classified(&[0.7, 0.3]))));
    assert_eq!(
        (same.bump(), said(&same).as_str()),
        (Bump::Patch, "patch: all outputs are equal to the last bit, for 3 samples")
    );
    assert_eq!(same.rank_correlation(), Some(1.0));
    assert!(same.most_moved().is_empty());
    let mut file = described("1.0.0", styles(&["a", "b"]));
    file.sha256 = "abc".to_owned();
    let nothing = compare(file.clone(), file, answers(Ok(classified(&[0.7, 0.3]))), TOLERANCE);
    assert_eq!((nothing.bump(), nothing.is_enough()), (Bump::None, Ok(true)));
}

#[test]
fn the_last_bit_is_a_change_within_the_tolerance() {
    let last = Ok(classified(&[0.7f64.next_up(), 0.3]));
    let moved = of_two_styles(answers(last.clone()));
    assert_eq!(moved.bump(), Bump::Minor, "{}", said(&moved));
    assert_eq!(moved.is_enough(), Ok(true));
    let plugin = |version| described(version, styles(&["a", "b"]));
    let strict = compare(plugin("1.2.3"), plugin("1.3.0"), answers(last), 0.0);
    assert_eq!((strict.bump(), strict.is_enough()), (Bump::Major, Ok(false)));
}

/// Each of the three changes is enough for a major change, the others being within the tolerance.
#[test]
fn distributions_rewards_and_gradients_are_bounded_each() {
    let swapped = of_two_styles(answers(Ok(classified(&[0.3, 0.7]))));
    assert_eq!(
        said(&swapped),
        "major: distributions moved by up to 0.40 in total variation, above the tolerance of 0.01 (`2.png`)"
    );
    let names = [0.7f64, 0.3, 1e-12];
    let plugin = || described("1.2.3", styles(&["a", "b", "c"]));
    let row = |p: [f64; 3]| Ok(classified(&p));
    let rare = |p: f64| vec![[row(names), row([0.7, 0.3 - p, p])], [row([0.4, 0.3, 0.3]), row([0.4, 0.3, 0.3])]];
    let rewards = compare(plugin(), plugin(), rare(1e-9), TOLERANCE);
    assert!(said(&rewards).starts_with("major: rewards moved by up to 0.5"), "{}", said(&rewards));
    assert!(!said(&rewards).contains("distributions"), "{}", said(&rewards));
    let within = compare(plugin(), plugin(), rare(1.01e-12), TOLERANCE);
    assert_eq!(within.bump(), Bump::Minor, "{}", said(&within));
    let with_gradient =
        |gradient: [f32; 2]| Answer { gradient: Some(Ok(gradient.to_vec())), ..classified(&[0.7, 0.3]) };
    let turned = |by: f32| {
        let still = [Ok(with_gradient([0.0, 2.0])), Ok(with_gradient([0.0, 2.0]))];
        of_two_styles(vec![still, [Ok(with_gradient([2.0, 0.0])), Ok(with_gradient([2.0, by]))]])
    };
    assert_eq!(
        said(&turned(1.0)),
        "major: gradients moved by up to 0.50 times the norm of OLD's gradients, above the tolerance of 0.01 (`1.png`)"
    );
    assert_eq!((turned(0.01).bump(), turned(0.0).bump()), (Bump::Minor, Bump::Patch));
}

#[test]
fn failing_is_worse_than_no_longer_failing() {
    let fails = of_two_styles(answers(Err("too dark".to_owned())));
    assert_eq!(
        said(&fails).lines().next(),
        Some("major: NEW fails on 1 sample on which OLD does not: `2.png` (too dark)")
    );
    assert_eq!(fails.most_moved()[0].name, "2.png");
    let failed = || Err("too dark".to_owned());
    let answers = |old, new| of_two_styles([answers(Ok(classified(&[0.7, 0.3]))), vec![[old, new]]].concat());
    assert_eq!(answers(failed(), Ok(classified(&[0.2, 0.8]))).bump(), Bump::Minor);
    let both = answers(failed(), Err("too dim".to_owned()));
    assert_eq!((both.bump(), both.most_moved().len()), (Bump::Patch, 0));
    let lost = Answer { gradient: Some(Err("its gradient: none".to_owned())), ..classified(&[0.7, 0.3]) };
    let had = Answer { gradient: Some(Ok(vec![1.0])), ..classified(&[0.7, 0.3]) };
    assert_eq!(of_two_styles(vec![[Ok(had), Ok(lost)]]).bump(), Bump::Major);
}

#[test]
fn scores_are_measured_by_their_spread_not_their_range() {
    let scale = Scale::higher_is_better().at_least(0.0).at_most(1e6);
    let plugin = || described("0.2.3", Kind::Scorer(scale));
    let scores = |pairs: &[[f64; 2]]| {
        let answers = pairs.iter().map(|&[old, new]| [Ok(scored(old)), Ok(scored(new))]).collect();
        compare(plugin(), plugin(), answers, TOLERANCE)
    };
    let moved = scores(&[[1.0, 1.0], [3.0, 3.1]]);
    assert_eq!(
        said(&moved),
        "major: rewards moved by up to 0.10 standard deviations of OLD's rewards, above the tolerance of 0.01 (`1.png`)"
    );
    assert_eq!(scores(&[[1.0, 1.0], [3.0, 3.009]]).bump(), Bump::Minor);
    let dead = scores(&[[1.0, 1.0], [1.0, 1.5]]);
    assert!(
        said(&dead).contains("by up to ∞ standard deviations of OLD's rewards, which are all the same"),
        "{}",
        said(&dead)
    );
    // What scales and shifts all rewards makes the same advantages.
    let scaled = scores(&[[1.0, 12.0], [3.0, 16.0], [4.0, 18.0]]);
    let advantage = scaled.change(|movement| Some(scaled.advantage(movement))).expect("three samples");
    assert!(advantage.max < 1e-6 && scaled.bump() == Bump::Major, "{advantage:?}");
}

/// Blank and noisy probes have rewards that no image of a run has: they do not widen the unit.
#[test]
fn worthless_probes_are_no_part_of_the_unit() {
    let mut comparison = of_two_styles(answers(Ok(classified(&[0.7, 0.3]))));
    let unit = comparison.reward_unit().expect("they differ");
    let mut rows = std::mem::take(&mut comparison.rows);
    let blank = [Ok(classified(&[1e-30, 1.0])), Ok(classified(&[1e-30, 1.0]))];
    let (old, new) = (comparison.old.clone(), comparison.new.clone());
    let noise = compare(old.clone(), new.clone(), vec![blank], TOLERANCE).rows.remove(0);
    rows.push(Row { is_worthless: true, ..noise });
    let with_noise = Comparison::new(old, new, rows, TOLERANCE);
    assert_eq!((with_noise.reward_unit(), with_noise.compared().count()), (Some(unit), 4));
}

#[test]
fn styles_are_compared_by_name_and_unmatched_ones_with_nothing() {
    let old = || described("1.0.0", styles(&["a", "b"]));
    let pair = |old: &[f64], new: &[f64]| vec![[Ok(classified(old)), Ok(classified(new))]];
    let reordered = compare(old(), described("1.0.0", styles(&["b", "a"])), pair(&[0.7, 0.3], &[0.3, 0.7]), TOLERANCE);
    assert_eq!(
        said(&reordered),
        "major: the styles come in another order\npatch: all outputs are equal to the last bit, for 1 sample"
    );
    let added =
        compare(old(), described("1.0.0", styles(&["a", "b", "c"])), pair(&[0.7, 0.3], &[0.6, 0.2, 0.2]), TOLERANCE);
    let (_, movement) = added.compared().next().expect("a sample");
    let change = movement.distribution.as_ref().expect("a distribution");
    assert!((change.total_variation - 0.2).abs() < 1e-12, "{change:?}");
    assert!((change.log_probability - 1.5f64.ln()).abs() < 1e-12, "{change:?}");
    let (largest, p) = (&change.styles[0], change.styles[0].probabilities[1].expect("NEW has it"));
    assert!(largest.style == "c" && largest.probabilities[0].is_none() && (p - 0.2).abs() < 1e-12, "{largest:?}");
    assert_eq!(report::percentages(largest), "c none → 20.00 %");
}

#[test]
fn a_verdict_names_the_least_version_or_what_is_no_version() {
    let verdict = |old: &str, new: &str, last| {
        let plugin = |version| described(version, styles(&["a", "b"]));
        report::verdict(&compare(plugin(old), plugin(new), answers(Ok(last)), TOLERANCE))
    };
    let (same, moved) = (|| classified(&[0.7, 0.3]), || classified(&[0.3, 0.7]));
    insta::assert_snapshot!([
        verdict("1.2.3", "1.2.4", same()),
        verdict("1.2.3", "1.2.3", same()),
        verdict("0.2.3", "0.2.4", moved()),
        verdict("0.2.3", "0.3.0", moved()),
        verdict("0.2.3", "1.0", moved()),
    ].join("\n"), @"
    this is a patch change: version 1.2.3 to 1.2.4 is enough
    this is a patch change: version 1.2.3 to 1.2.3 is not enough, NEW must be at least 1.2.4
    this is a major change: version 0.2.3 to 0.2.4 is not enough, NEW must be at least 0.3.0
    this is a major change: version 0.2.3 to 0.3.0 is enough
    this is a major change: the version `1.0` of NEW is no semantic version, such as 1.2.3: unexpected end of input while parsing minor version number
    ");
}

#[test]
fn a_sheet_has_the_images_and_the_bars() {
    let comparison = of_two_styles(vec![
        [Ok(classified(&[0.8, 0.2])), Ok(classified(&[0.2, 0.8]))],
        [Ok(classified(&[0.5, 0.5])), Err("too dark".to_owned())],
    ]);
    let rows = comparison.most_moved();
    assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["1.png", "0.png"]);
    let images = [Some(RgbImage::from_pixel(144, 72, Rgb([200, 30, 7]))), None];
    let drawn = sheet::draw(&comparison, &rows, &images);
    let count = |color: [u8; 3]| drawn.pixels().filter(|pixel| pixel.0 == color).count();
    assert_eq!(count([200, 30, 7]), 144 * 72);
    // The new bars are of 0.8 and 0.2, relative to the largest probability, 0.8.
    let bars = count([0x2a, 0x5b, 0xd7]) as f64;
    assert!((bars / (9.0 * 230.0 * 1.25) - 1.0).abs() < 0.1, "{bars}");
    assert!(sheet::draw(&comparison, &[], &[]).height() > 0);
}
