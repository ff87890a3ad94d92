//! What two plugins say of themselves, compared: styles, media, encoders, options, scale, gradients.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ambiguity_sdk::EncoderPin;

use super::bump::{Bump, Reason};
use crate::plugin::{Description, Kind, Medium, OptionInfo, Plugin, Scale};
use crate::text::counted;

/// Number of names in a sentence; the others are counted.
const NAMED: usize = 5;

/// Number of digits of a digest in a sentence.
const DIGITS: usize = 12;

/// What is known of a plugin without running it.
#[derive(Clone, Debug, Default)]
pub(in crate::cli::plugin) struct Described {
    pub(super) path: PathBuf,
    pub(super) sha256: String,
    /// The version of the plugin interface that it was built for; `onnx` for a model.
    pub(super) interface: String,
    pub(in crate::cli::plugin) description: Description,
    /// The encoder's weights that it requires.
    pub(super) pin: Option<EncoderPin>,
    /// The temperature that is baked in.
    pub(super) temperature: Option<f32>,
    /// Whether it has a gradient with respect to embeddings.
    pub(super) differentiable: bool,
    /// Whether it has a gradient with respect to pixels.
    pub(super) pixel_differentiable: bool,
}

/// How the styles of two classifiers correspond, by their places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Styles {
    /// The places of each style that both have, in the old plugin and in the new one.
    pub(super) pairs: Vec<(usize, usize)>,
    /// The places where a style has another name; both plugins have the same number of styles.
    pub(super) renamed: Vec<usize>,
    /// The places in the old plugin of the styles that are gone.
    pub(super) removed: Vec<usize>,
    /// The places in the new plugin of the styles that are new.
    pub(super) added: Vec<usize>,
    /// Whether the styles that both have come in another order.
    pub(super) is_reordered: bool,
}

impl Described {
    pub(super) fn of(plugin: &dyn Plugin) -> Self {
        let (source, inspection) = (plugin.source(), plugin.inspect());
        Self {
            path: source.path.clone(),
            sha256: source.sha256.clone(),
            interface: source.interface.clone(),
            description: plugin.description().clone(),
            pin: inspection.encoder.filter(|pin| !pin.digest.is_empty()),
            temperature: inspection.temperature,
            differentiable: plugin.differentiable(),
            pixel_differentiable: plugin.pixel_differentiable(),
        }
    }
}

impl Styles {
    /// Matches styles by name. Those that are left are matched by place, if there are as many styles as before.
    pub(super) fn matched(old: &[String], new: &[String]) -> Self {
        let places = |styles: &[String]| styles.iter().cloned().zip(0..).collect::<BTreeMap<String, usize>>();
        let (old_places, new_places) = (places(old), places(new));
        let mut styles = Self::default();
        for (i, style) in old.iter().enumerate() {
            let is_renamed = || old.len() == new.len() && !old_places.contains_key(&new[i]);
            match new_places.get(style) {
                Some(&j) => styles.pairs.push((i, j)),
                None if is_renamed() => {
                    styles.pairs.push((i, i));
                    styles.renamed.push(i);
                }
                None => styles.removed.push(i),
            }
        }
        let matched: BTreeSet<usize> = styles.pairs.iter().map(|&(_, j)| j).collect();
        styles.added = (0..new.len()).filter(|j| !matched.contains(j)).collect();
        styles.is_reordered = !styles.pairs.is_sorted_by_key(|&(_, j)| j);
        styles
    }

    fn reasons(&self, old: &[String], new: &[String]) -> Vec<Reason> {
        let major = |what: &str, names: Vec<String>| {
            let text = format!("{} {what}: {}", counted(names.len() as u64, "style"), listed(&names));
            (!names.is_empty()).then(|| Reason::new(Bump::Major, text))
        };
        let reordered = || Reason::new(Bump::Major, "the styles come in another order");
        [
            major("renamed", self.renamed.iter().map(|&i| format!("`{}` to `{}`", old[i], new[i])).collect()),
            major("removed", self.removed.iter().map(|&i| format!("`{}`", old[i])).collect()),
            major("added", self.added.iter().map(|&j| format!("`{}`", new[j])).collect()),
            self.is_reordered.then(reordered),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Returns what changed in what others rely on, and what that asks for. A plugin's name and properties are words to read.
pub(super) fn changes(old: &Described, new: &Described, styles: &Styles) -> Vec<Reason> {
    let (was, is) = (&old.description, &new.description);
    let mut reasons = match (&was.kind, &is.kind) {
        (Kind::Classifier { .. }, Kind::Classifier { .. }) => styles.reasons(was.styles(), is.styles()),
        (Kind::Scorer(was), Kind::Scorer(is)) => scale(was, is),
        (Kind::Classifier { .. }, Kind::Scorer(_)) => {
            vec![Reason::new(Bump::Major, "it was a classifier, and is a scorer")]
        }
        (Kind::Scorer(_), Kind::Classifier { .. }) => {
            vec![Reason::new(Bump::Major, "it was a scorer, and is a classifier")]
        }
    };
    for medium in Medium::ALL {
        match (was.takes(medium), is.takes(medium)) {
            (true, false) => reasons.push(Reason::new(Bump::Major, format!("it no longer takes the medium {medium}"))),
            (false, true) => reasons.push(Reason::new(Bump::Minor, format!("it also takes the medium {medium}"))),
            _ => {}
        }
    }
    reasons.extend(encoders(old, new));
    reasons.extend(options(&was.options, &is.options));
    if old.temperature != new.temperature {
        let named = |temperature: Option<f32>| temperature.map_or_else(|| "none".to_owned(), |t| t.to_string());
        let (was, is) = (named(old.temperature), named(new.temperature));
        reasons.push(Reason::new(Bump::Minor, format!("its own temperature was {was}, and is {is}")));
    }
    let gradients = [
        ("embeddings", old.differentiable, new.differentiable),
        ("pixels", old.pixel_differentiable, new.pixel_differentiable),
    ];
    for (what, was, is) in gradients {
        match (was, is) {
            (true, false) => reasons.push(Reason::new(Bump::Major, format!("it lost its gradient of {what}"))),
            (false, true) => reasons.push(Reason::new(Bump::Minor, format!("it has a gradient of {what}"))),
            _ => {}
        }
    }
    if old.interface != new.interface {
        let text = format!("its interface was `{}`, and is `{}`", old.interface, new.interface);
        reasons.push(Reason::new(Bump::Minor, text));
    }
    if was.name != is.name {
        reasons.push(Reason::new(Bump::Patch, format!("its name was `{}`, and is `{}`", was.name, is.name)));
    }
    if was.properties != is.properties {
        reasons.push(Reason::new(Bump::Patch, "its properties changed"));
    }
    reasons
}

/// Compares what the numbers of two scorers mean. Scores in a part of the old range are within it.
fn scale(was: &Scale, is: &Scale) -> Vec<Reason> {
    let mut reasons = vec![];
    if was.higher_is_better != is.higher_is_better {
        let better = if is.higher_is_better { "higher" } else { "lower" };
        reasons.push(Reason::new(Bump::Major, format!("the direction of its scores is reversed: {better} is better")));
    }
    let range = |scale: &Scale| {
        let bound = |which: &str, bound: Option<f64>| bound.map(|bound| format!("{which} {bound}"));
        let bounds = [bound("at least", scale.minimum), bound("at most", scale.maximum)];
        let bounds: Vec<String> = bounds.into_iter().flatten().collect();
        if bounds.is_empty() { "unbounded".to_owned() } else { bounds.join(" and ") }
    };
    if range(was) != range(is) {
        let is_above = was.minimum.is_none_or(|was| is.minimum.is_some_and(|is| is >= was));
        let is_below = was.maximum.is_none_or(|was| is.maximum.is_some_and(|is| is <= was));
        let bump = if is_above && is_below { Bump::Minor } else { Bump::Major };
        reasons.push(Reason::new(bump, format!("its scores were {}, and are {}", range(was), range(is))));
    }
    reasons
}

/// Compares the encoders that two plugins ask for, and the weights that they require.
fn encoders(old: &Described, new: &Described) -> Vec<Reason> {
    let (was, is) = (&old.description.encoders, &new.description.encoders);
    let lost = was.iter().filter(|encoder| !is.contains(encoder));
    let lost = lost.map(|encoder| Reason::new(Bump::Major, format!("it no longer asks for the encoder `{encoder}`")));
    let asked = is.iter().filter(|encoder| !was.contains(encoder));
    let asked = asked.map(|encoder| Reason::new(Bump::Major, format!("it asks for the encoder `{encoder}`")));
    let mut reasons: Vec<Reason> = lost.chain(asked).collect();
    let short = |pin: &EncoderPin| pin.digest.chars().take(DIGITS).collect::<String>();
    match (&old.pin, &new.pin) {
        (Some(was), Some(is)) if was.name == is.name && was.digest != is.digest => {
            let (name, was, is) = (&is.name, short(was), short(is));
            let text = format!("it requires other weights of the encoder `{name}`: sha256 {was}… became {is}…");
            reasons.push(Reason::new(Bump::Major, text));
        }
        // It was able to run with any weights.
        (None, Some(is)) if was.contains(&is.name) => {
            let text = format!("it requires certain weights of the encoder `{}`: sha256 {}…", is.name, short(is));
            reasons.push(Reason::new(Bump::Major, text));
        }
        (Some(was), None) if is.contains(&was.name) => {
            let text = format!("it runs with any weights of the encoder `{}`", was.name);
            reasons.push(Reason::new(Bump::Minor, text));
        }
        _ => {}
    }
    reasons
}

/// Compares options. What a changed default does to the outputs is measured, as all else is.
fn options(was: &[OptionInfo], is: &[OptionInfo]) -> Vec<Reason> {
    let mut reasons = vec![];
    for old in was {
        let key = &old.key;
        let Some(new) = is.iter().find(|option| option.key == *key) else {
            reasons.push(Reason::new(Bump::Major, format!("the option `{key}` is gone")));
            continue;
        };
        if old.value_type != new.value_type {
            let (was, is) = (old.value_type.name(), new.value_type.name());
            let text = format!("the option `{key}` was of the type {was}, and is of the type {is}");
            reasons.push(Reason::new(Bump::Major, text));
        } else if old.default != new.default {
            let shown = |default: &Option<String>| default.clone().unwrap_or_else(|| "none".to_owned());
            let (was, is) = (shown(&old.default), shown(&new.default));
            reasons.push(Reason::new(Bump::Minor, format!("the default of `{key}` was {was}, and is {is}")));
        }
    }
    let added = is.iter().filter(|new| !was.iter().any(|old| old.key == new.key));
    reasons.extend(added.map(|new| Reason::new(Bump::Minor, format!("the option `{}` is new", new.key))));
    reasons
}

/// Returns the first names of a list, and the number of the others.
pub(super) fn listed(names: &[String]) -> String {
    let shown = names[..names.len().min(NAMED)].join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        n => format!("{shown}, … ({n} more)"),
    }
}

#[cfg(test)]
mod tests {
    use ambiguity_sdk::OptionType;

    use super::*;

    /// A change of a description.
    type Edit<'a> = &'a dyn Fn(&mut Described);

    fn styles(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn option(key: &str, value_type: OptionType, default: Option<&str>) -> OptionInfo {
        OptionInfo { key: key.to_owned(), value_type, default: default.map(str::to_owned), help: String::new() }
    }

    fn pin(digest: &str) -> Option<EncoderPin> {
        Some(EncoderPin { name: "clip".to_owned(), digest: digest.to_owned() })
    }

    fn classifier() -> Described {
        let description = Description {
            name: "weather".to_owned(),
            version: "1.2.0".to_owned(),
            kind: Kind::Classifier { styles: styles(&["sun", "rain", "fog"]) },
            media: vec![Medium::Image, Medium::Text],
            encoders: vec!["clip".to_owned()],
            options: vec![option("temperature", OptionType::Number, Some("1"))],
            ..Description::default()
        };
        let interface = "0.2.0".to_owned();
        Described { description, interface, pin: pin("abc"), differentiable: true, ..Described::default() }
    }

    fn scorer(scale: Scale) -> Described {
        let mut described = classifier();
        described.description.kind = Kind::Scorer(scale);
        described
    }

    /// The reasons of a change, one per line.
    fn said(old: &Described, new: &Described) -> String {
        let styles = Styles::matched(old.description.styles(), new.description.styles());
        let reasons = changes(old, new, &styles).into_iter();
        reasons.map(|reason| format!("{}: {}", reason.bump.name(), reason.text)).collect::<Vec<_>>().join("\n")
    }

    fn changed(change: impl Fn(&mut Described)) -> String {
        let mut new = classifier();
        change(&mut new);
        said(&classifier(), &new)
    }

    fn with_styles(names: &[&str]) -> String {
        changed(|new| new.description.kind = Kind::Classifier { styles: styles(names) })
    }

    #[test]
    fn what_did_not_change_asks_for_nothing() {
        assert_eq!(changed(|new| new.description.version = "9.0.0".to_owned()), "");
    }

    #[test]
    fn styles_are_matched_by_name_then_by_place() {
        assert_eq!(with_styles(&["sun", "snow", "fog"]), "major: 1 style renamed: `rain` to `snow`");
        assert_eq!(with_styles(&["sun", "fog"]), "major: 1 style removed: `rain`");
        assert_eq!(with_styles(&["sun", "rain", "hail", "fog"]), "major: 1 style added: `hail`");
        assert_eq!(with_styles(&["fog", "rain", "sun"]), "major: the styles come in another order");
        assert_eq!(
            with_styles(&["rain", "snow"]),
            "major: 2 styles removed: `sun`, `fog`\nmajor: 1 style added: `snow`"
        );
        // `fog` moved to the place of `rain`, which is gone: `snow` is not its new name.
        assert_eq!(
            with_styles(&["sun", "fog", "snow"]),
            "major: 1 style removed: `rain`\nmajor: 1 style added: `snow`"
        );
        let many = ["a", "b", "c", "d", "e", "f", "sun", "rain", "fog"];
        assert_eq!(with_styles(&many), "major: 6 styles added: `a`, `b`, `c`, `d`, `e`, … (1 more)");
    }

    #[test]
    fn every_part_of_a_description_asks_for_its_bump() {
        let cases: [(&str, Edit<'_>); 16] = [
            ("major: it no longer takes the medium text", &|new| new.description.media = vec![Medium::Image]),
            ("minor: it also takes the medium audio", &|new| new.description.media.push(Medium::Audio)),
            ("major: it asks for the encoder `dino`", &|new| new.description.encoders.push("dino".to_owned())),
            ("major: it no longer asks for the encoder `clip`", &|new| new.description.encoders.clear()),
            ("major: it requires other weights of the encoder `clip`: sha256 abc… became abd…", &|new| {
                new.pin = pin("abd");
            }),
            ("minor: it runs with any weights of the encoder `clip`", &|new| new.pin = None),
            ("major: the option `temperature` is gone", &|new| new.description.options.clear()),
            ("major: the option `temperature` was of the type number, and is of the type integer", &|new| {
                new.description.options[0].value_type = OptionType::Integer;
            }),
            ("minor: the default of `temperature` was 1, and is none", &|new| {
                new.description.options[0].default = None
            }),
            ("minor: the option `k` is new", &|new| new.description.options.push(option("k", OptionType::Text, None))),
            ("minor: its own temperature was none, and is 2", &|new| new.temperature = Some(2.0)),
            ("major: it lost its gradient of embeddings", &|new| new.differentiable = false),
            ("minor: it has a gradient of pixels", &|new| new.pixel_differentiable = true),
            ("minor: its interface was `0.2.0`, and is `0.3.0`", &|new| new.interface = "0.3.0".to_owned()),
            ("patch: its name was `weather`, and is `sky`", &|new| new.description.name = "sky".to_owned()),
            ("patch: its properties changed", &|new| new.description.properties.push(("unit".into(), "kB".into()))),
        ];
        for (expected, change) in cases {
            assert_eq!(changed(change), expected);
        }
        let mut any = classifier();
        any.pin = None;
        let required = "major: it requires certain weights of the encoder `clip`: sha256 abc…";
        assert_eq!(said(&any, &classifier()), required);
        let help = changed(|new| new.description.options[0].help = "better words".to_owned());
        assert_eq!(help, "");
    }

    #[test]
    fn a_scale_may_only_become_narrower() {
        let unit = Scale::higher_is_better().at_least(0.0).at_most(1.0);
        let from_unit = |scale| said(&scorer(unit), &scorer(scale));
        assert_eq!(from_unit(unit), "");
        let reversed = Scale::lower_is_better().at_least(0.0).at_most(1.0);
        assert_eq!(from_unit(reversed), "major: the direction of its scores is reversed: lower is better");
        let scores = "its scores were at least 0 and at most 1, and are";
        assert_eq!(from_unit(Scale::higher_is_better().at_least(0.0)), format!("major: {scores} at least 0"));
        assert_eq!(from_unit(Scale::higher_is_better()), format!("major: {scores} unbounded"));
        let half = Scale::higher_is_better().at_least(0.25).at_most(0.75);
        assert_eq!(from_unit(half), format!("minor: {scores} at least 0.25 and at most 0.75"));
        let shifted = Scale::higher_is_better().at_least(0.25).at_most(1.25);
        assert!(from_unit(shifted).starts_with("major"));
        assert_eq!(said(&classifier(), &scorer(unit)), "major: it was a classifier, and is a scorer");
        assert_eq!(said(&scorer(unit), &classifier()), "major: it was a scorer, and is a classifier");
    }
}
