//! A card as Markdown and as a page.

use anyhow::Result;
use minijinja::context;
use serde::Serialize;

use super::contents::{Card, Encoder, Entry, OptionOfPlugin, small};
use crate::cli::plugin::running::{count, mib};
use crate::data::png;
use crate::report::Tile;
use crate::report::page::{data_uri, templates};
use crate::text::{NO_BREAK_SPACE, counted, number, size};

/// Maximum number of styles that are listed.
const MAX_STYLES: usize = 300;
/// Number of styles of a sample on the page, the most probable first.
const TOP: usize = 5;
/// Number of styles of a sample in the Markdown.
const TOP_IN_WORDS: usize = 3;
/// Number of decimals of rewards.
const DECIMALS: usize = 5;
/// Side of a probe's image in the table of the audit, in pixels; it is shown at half of it.
const PROBE_SIDE: u32 = 64;
/// How a probability of 100 % is written as a bar.
const FULL: f64 = 100.0;

/// A line of a list of facts.
#[derive(Serialize)]
struct Fact {
    name: String,
    value: String,
    is_digest: bool,
}

/// A row of the table of the audit.
#[derive(Serialize)]
struct Row {
    name: String,
    uri: Option<String>,
    kind: &'static str,
    refused: Option<String>,
    /// The cells after the kind: the first is a style if the plugin is a classifier, all others are numbers.
    cells: Vec<String>,
}

/// A sample with what the plugin predicts of it.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    uri: Option<String>,
    text: Option<&'a str>,
    /// Its size, and its prompt.
    about: String,
    refused: Option<&'a str>,
    bars: Vec<Bar<'a>>,
    /// The likeliest styles in one line.
    likeliest: String,
    entropy: String,
    reward: String,
}

/// A style's probability.
#[derive(Serialize)]
struct Bar<'a> {
    style: &'a str,
    percent: String,
    /// Its length relative to the most probable style's, in percent.
    length: f64,
}

impl Card {
    /// Returns the name of the card's files without `.card` and extension.
    pub(super) fn file_stem(&self) -> &str {
        &self.plugin
    }

    /// Returns the number of warnings of the audit.
    pub(super) fn warnings(&self) -> usize {
        self.warnings.len()
    }

    /// Returns the card as Markdown, without images.
    pub(in crate::cli::plugin) fn markdown(&self) -> Result<String> {
        let mut templates = templates();
        templates.set_trim_blocks(true);
        templates.set_keep_trailing_newline(true);
        templates.add_template("card.md", include_str!("card.md"))?;
        self.render(templates.get_template("card.md")?, false)
    }

    /// Returns the card as a page in one file.
    pub(in crate::cli::plugin) fn html(&self) -> Result<String> {
        let mut templates = templates();
        templates.set_keep_trailing_newline(true);
        templates.add_template("card.html", include_str!("card.html"))?;
        self.render(templates.get_template("card.html")?, true)
    }

    fn render(&self, template: minijinja::Template, with_images: bool) -> Result<String> {
        // Without samples of its own, the real probes show what it predicts.
        let has_samples = !self.samples.is_empty();
        let real = self.probes.iter().filter(|probe| probe.worthless == Some(false));
        let entries: Vec<&Entry> = if has_samples { self.samples.iter().collect() } else { real.collect() };
        let samples = entries.iter().map(|entry| self.shown(entry, with_images)).collect::<Result<Vec<_>>>()?;
        let probes = self.probes.iter().map(|probe| self.row(probe, with_images)).collect::<Result<Vec<_>>>()?;
        let prompts = self.styles.iter().zip(&self.prompts).take(MAX_STYLES);
        let prompts: Vec<_> = prompts.map(|(style, prompts)| (style, prompts.join("; "))).collect();
        Ok(template.render(context! {
            name => self.name,
            version => self.version,
            title => self.title,
            subtitle => self.subtitle(),
            kind => self.kind_in_words(),
            tiles => self.tiles(),
            facts => self.facts(),
            file => self.file_facts(),
            styles => self.styles.iter().take(MAX_STYLES).map(String::as_str).collect::<Vec<_>>().join(", "),
            n_styles => self.styles.len(),
            n_more_styles => self.styles.len().saturating_sub(MAX_STYLES),
            prompts,
            encoders => self.encoders.iter().map(encoder_in_words).collect::<Vec<_>>(),
            options => self.options.iter().map(option_in_words).collect::<Vec<_>>(),
            config => self.config.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join(", "),
            needs => self.needs,
            limits => self.limits_in_words(),
            cost => self.cost(),
            notes => self.notes,
            warnings => self.warnings,
            header => self.header(),
            probes,
            is_classifier => self.is_classifier(),
            has_samples,
            samples,
            n_samples => self.n_samples,
            program => env!("CARGO_PKG_VERSION"),
        })?)
    }

    fn is_classifier(&self) -> bool {
        self.scale.is_none()
    }

    fn subtitle(&self) -> String {
        let takes = format!("takes {}", self.media.join(", "));
        let mut parts = vec![format!("version {}", self.version), self.kind_in_words(), takes];
        parts.extend((!self.license.is_empty()).then(|| self.license.clone()));
        parts.join(" · ")
    }

    fn kind_in_words(&self) -> String {
        match &self.scale {
            None => format!("classifier with {}", counted(self.styles.len() as u64, "style")),
            Some(_) => "scorer".to_owned(),
        }
    }

    /// Returns the scale of a scorer in words.
    fn scale_in_words(&self) -> Option<String> {
        let scale = self.scale.as_ref()?;
        let direction = if scale.higher_is_better { "higher" } else { "lower" };
        let bound = |word: &str, bound: Option<f64>| bound.map(|b| format!(", at {word} {}", number(b, 0)));
        let (least, most) = (bound("least", scale.minimum), bound("most", scale.maximum));
        Some(format!("{direction} is better{}{}", least.unwrap_or_default(), most.unwrap_or_default()))
    }

    fn reward_in_words(&self) -> String {
        match (&self.scale, self.reward_range[1]) {
            (None, Some(most)) => format!(
                "−CE(C(x), U), the mean of the log-probabilities: at most {} = −ln {}",
                number(most, DECIMALS),
                self.styles.len()
            ),
            (Some(scale), _) if !scale.higher_is_better => "the negative of the score".to_owned(),
            _ => "the score".to_owned(),
        }
    }

    fn tiles(&self) -> Vec<Tile> {
        let tile = |label, value: String, note: String| Tile { label, value, note, tone: "" };
        let mut tiles = vec![match self.scale_in_words() {
            None => tile("Styles", self.styles.len().to_string(), "of a classifier".to_owned()),
            Some(scale) => {
                tile("Score", scale.split(' ').next().unwrap_or_default().to_owned(), "is better".to_owned())
            }
        }];
        if let Some([_, most]) = self.fuel_per_sample {
            let limit = self.limits.fuel.map(|limit| format!("; limit {}", count(limit))).unwrap_or_default();
            tiles.push(tile("Fuel per sample", no_break(&count(most)), format!("at most{limit}")));
        }
        if let Some(peak) = self.peak_memory {
            let limit = self.limits.memory.map(|limit| format!("; limit {}", whole_mib(limit))).unwrap_or_default();
            tiles.push(tile("Memory", no_break(&mib(peak)), format!("at most{limit}")));
        }
        tiles.push(tile("File", no_break(&size(self.file.bytes)), self.file.interface.clone()));
        let (value, tone) = match self.warnings.len() {
            0 => ("none".to_owned(), "good"),
            n => (n.to_string(), "bad"),
        };
        tiles.push(Tile { label: "Warnings", value, note: "of the audit".to_owned(), tone });
        tiles
    }

    fn facts(&self) -> Vec<Fact> {
        let mut facts = Facts::default();
        facts.add("Version", &self.version);
        facts.add("Authors", &or_none(&self.authors.join(", ")));
        facts.add("License", &or_none(&self.license));
        facts.add("Kind", &self.kind_in_words());
        facts.add("Takes", &self.media.join(", "));
        if let Some(scale) = self.scale_in_words() {
            facts.add("Score", &scale);
        }
        facts.add("Reward", &self.reward_in_words());
        facts.add(
            "Gradient",
            match (self.differentiable, self.pixel_differentiable) {
                (false, false) => "none",
                (true, false) => "with respect to embeddings",
                (false, true) => "with respect to pixels",
                (true, true) => "with respect to embeddings and to pixels",
            },
        );
        for (key, value) in &self.properties {
            facts.add(&format!("Property: {key}"), value);
        }
        facts.0
    }

    fn file_facts(&self) -> Vec<Fact> {
        let mut facts = Facts::default();
        facts.add("File", &self.file.name);
        facts.add("Size", &size(self.file.bytes));
        facts.add_digest("SHA-256", &self.file.sha256);
        facts.add("Interface", &self.file.interface);
        let assets = self.file.assets.iter().map(|(name, bytes)| format!("{name} ({})", size(*bytes)));
        facts.add("Data in it", &or_none(&assets.collect::<Vec<_>>().join(", ")));
        facts.add("Signature", self.signer.as_deref().unwrap_or("none"));
        facts.0
    }

    fn limits_in_words(&self) -> Vec<Fact> {
        let mut facts = Facts::default();
        if let Some(fuel) = self.limits.fuel {
            facts.add("Fuel", &format!("{} for each sample, about one unit per instruction", count(fuel)));
        }
        facts.add("Time", &format!("{} s for a batch", self.limits.milliseconds as f64 / 1e3));
        if let Some(memory) = self.limits.memory {
            facts.add("Memory", &whole_mib(memory));
        }
        facts.0
    }

    fn cost(&self) -> Vec<Fact> {
        let mut facts = Facts::default();
        let fuel = self.fuel_per_sample.map(|fuel| fuel.map(count));
        facts.add(
            "Fuel per sample",
            &match fuel {
                Some([least, most]) if least == most => least,
                Some([least, most]) => format!("{least} to {most}"),
                None => "not counted for a plugin of this kind".to_owned(),
            },
        );
        if let Some(peak) = self.peak_memory {
            facts.add("Peak memory", &format!("{}, with one sample at a time", mib(peak)));
        }
        facts.0
    }

    /// Returns the names of the columns of the audit's table.
    fn header(&self) -> &'static [&'static str] {
        match self.is_classifier() {
            true => &["most probable style", "its probability", "entropy", "reward", "gap", "fuel"],
            false => &["reward", "fuel"],
        }
    }

    fn row(&self, probe: &Entry, with_images: bool) -> Result<Row> {
        let mut cells = vec![];
        if let Some(row) = &probe.distribution {
            let likeliest = order(row)[0];
            cells.extend([self.styles[likeliest].clone(), percent(row[likeliest], 2)]);
        }
        cells.extend(probe.entropy_share.map(|share| percent(share, 1)));
        cells.extend(probe.reward.map(|reward| number(reward, DECIMALS)));
        cells.extend(probe.gap.map(|gap| number(gap, DECIMALS)));
        cells.push(probe.fuel.map_or_else(|| "–".to_owned(), count));
        Ok(Row {
            name: probe.name.clone(),
            uri: if with_images { image_of(probe, PROBE_SIDE)? } else { None },
            kind: if probe.worthless == Some(true) { "worthless" } else { "real" },
            refused: probe.refused.clone(),
            cells,
        })
    }

    fn shown<'a>(&'a self, entry: &'a Entry, with_images: bool) -> Result<Shown<'a>> {
        let row = entry.distribution.as_deref().unwrap_or_default();
        let order = order(row);
        let bar = |&i: &usize| Bar {
            style: &self.styles[i],
            percent: percent(row[i], 2),
            length: (FULL * row[i] / row[order[0]]).round(),
        };
        let in_words = order.iter().take(TOP_IN_WORDS).map(|&i| format!("{} {}", self.styles[i], percent(row[i], 2)));
        let prompt = Some(format!("prompt: {}", entry.prompt)).filter(|_| !entry.prompt.is_empty());
        let about: Vec<String> = entry.size.clone().into_iter().chain(prompt).collect();
        Ok(Shown {
            name: &entry.name,
            uri: if with_images { image_of(entry, super::contents::SIDE)? } else { None },
            text: entry.text.as_deref(),
            about: about.join(" · "),
            refused: entry.refused.as_deref(),
            bars: order.iter().take(TOP).map(bar).collect(),
            likeliest: in_words.collect::<Vec<_>>().join(", "),
            entropy: entry.entropy_share.map(|share| percent(share, 1)).unwrap_or_default(),
            reward: entry.reward.map(|reward| number(reward, DECIMALS)).unwrap_or_default(),
        })
    }
}

/// Facts in the order in which they are shown.
#[derive(Default)]
struct Facts(Vec<Fact>);

impl Facts {
    fn add(&mut self, name: &str, value: &str) {
        self.0.push(Fact { name: name.to_owned(), value: value.to_owned(), is_digest: false });
    }

    fn add_digest(&mut self, name: &str, value: &str) {
        self.0.push(Fact { name: name.to_owned(), value: value.to_owned(), is_digest: true });
    }
}

/// Returns an encoder's name, the weights that the plugin requires, and those that stand for it here.
fn encoder_in_words(encoder: &Encoder) -> [String; 3] {
    let used = format!("{}, sha256 {}", encoder.used, encoder.used_digest);
    match &encoder.required {
        Some(digest) if *digest == encoder.used_digest => {
            [encoder.name.clone(), format!("sha256 {digest}"), "these".into()]
        }
        Some(digest) => [encoder.name.clone(), format!("sha256 {digest}"), used],
        None => [encoder.name.clone(), "any".to_owned(), used],
    }
}

/// Returns an option's key, type, default and help.
fn option_in_words(option: &OptionOfPlugin) -> [&str; 4] {
    let OptionOfPlugin { key, value_type, default, help } = option;
    [key, value_type, default.as_deref().unwrap_or("none"), help]
}

/// Returns the indices of a distribution's styles, the most probable first.
fn order(row: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    order
}

/// Returns the image of an entry as an address, if it has one.
fn image_of(entry: &Entry, side: u32) -> Result<Option<String>> {
    let Some(image) = &entry.image else { return Ok(None) };
    Ok(Some(data_uri(&png::encode(&small(image, side), &[])?)))
}

fn percent(share: f64, decimals: usize) -> String {
    format!("{}{NO_BREAK_SPACE}%", number(FULL * share, decimals))
}

fn whole_mib(bytes: usize) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Returns a number with its unit on one line.
fn no_break(text: &str) -> String {
    text.replace(' ', &NO_BREAK_SPACE.to_string())
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_owned() }
}
