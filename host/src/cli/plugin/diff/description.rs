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
