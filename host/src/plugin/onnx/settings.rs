//! The settings of an ONNX plugin: `ambiguity.*` in the file's `metadata_props`, whose values are JSON, or the same
//! keys without the prefix in a `.toml` beside a file that cannot be changed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use toml::de::DeTable;

use crate::text::key_hint;

/// The prefix of the keys in a file's metadata.
pub const PREFIX: &str = "ambiguity.";

/// The keys, as [`Settings`] has them.
const KEYS: [&str; 14] = [
    "name",
    "version",
    "title",
    "authors",
    "license",
    "styles",
    "input",
    "encoder_digest",
    "size",
    "mean",
    "std",
    "layout",
    "channels",
    "output",
];

/// Keys whose values may omit JSON's quotation marks.
const TEXTS: [&str; 8] = ["name", "version", "title", "license", "input", "layout", "output", "encoder_digest"];

/// The settings; None for a key that is not set.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The plugin's short name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// One-line title.
    pub title: Option<String>,
    /// Its authors.
    pub authors: Option<Vec<String>>,
    /// SPDX license expression.
    pub license: Option<String>,
    /// The styles, in the order of the outputs.
    pub styles: Option<Vec<String>>,
    /// The kind of the model's input.
    pub input: Option<InputKind>,
    /// sha256 over the weights of the encoder that it was trained with, in hex.
    pub encoder_digest: Option<String>,
    /// Height and width in pixels.
    pub size: Option<Size>,
    /// Mean, subtracted from each channel, on the scale of [0, 1].
    pub mean: Option<PerChannel>,
    /// Standard deviation, which divides each channel after that.
    pub std: Option<PerChannel>,
    /// The order of the input's dimensions.
    pub layout: Option<Layout>,
    /// 3 for red, green, blue; 1 for gray.
    pub channels: Option<usize>,
    /// The kind of the model's output.
    pub output: Option<OutputKind>,
}

/// `pixels` or `embedding:ENCODER`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum InputKind {
    /// The image itself.
    Pixels,
    /// Its embedding by the encoder of that name.
    Embedding(String),
}

impl TryFrom<String> for InputKind {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "pixels" => Ok(Self::Pixels),
            Some(("embedding", encoder)) if !encoder.is_empty() => Ok(Self::Embedding(encoder.to_owned())),
            _ => Err(format!("`input` is `{text}`, it must be `pixels` or `embedding:ENCODER`")),
        }
    }
}

/// `[height, width]`, or one number for a square.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "`size` must be [height, width], or one number for a square")]
pub enum Size {
    /// A square's side.
    Square(usize),
    /// Height and width.
    HeightWidth([usize; 2]),
}

impl Size {
    /// Returns height and width.
    pub fn height_width(self) -> [usize; 2] {
        match self {
            Self::Square(side) => [side; 2],
            Self::HeightWidth(size) => size,
        }
    }
}

/// One number for all channels, or one for each.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "`mean` and `std` must be a number, or a list of one number for each channel")]
pub enum PerChannel {
    /// One number for all channels.
    All(f32),
    /// One number for each channel.
    Each(Vec<f32>),
}

impl PerChannel {
    /// Returns one number for each of `channels`; an error states what was found instead.
    pub fn of(&self, channels: usize) -> Result<Vec<f32>, String> {
        match self {
            Self::All(value) => Ok(vec![*value; channels]),
            Self::Each(values) if values.len() == channels => Ok(values.clone()),
            Self::Each(values) => Err(format!("has {} numbers for {channels} channels", values.len())),
        }
    }
}

/// The order of an input's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Sample, channel, row, column.
    Nchw,
    /// Sample, row, column, channel.
    Nhwc,
}

/// The kind of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Logits, whose softmax is the distribution.
    Logits,
    /// The distribution itself.
    Probabilities,
}

impl Settings {
    /// Reads `ambiguity.*` of a file's metadata; other keys belong to other programs.
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut values = serde_json::Map::new();
        for (key, text) in metadata {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            if !KEYS.contains(&name) {
                return Err(format!("its metadata `{PREFIX}*`: unknown key `{name}`; {}", key_hint(name, &KEYS)));
            }
            let bare = TEXTS.contains(&name) && !text.trim_start().starts_with('"');
            let value = match bare {
                true => Value::String(text.clone()),
                false => serde_json::from_str(text).map_err(|e| format!("its metadata `{key}` is not JSON: {e}"))?,
            };
            values.insert(name.to_owned(), value);
        }
        serde_json::from_value(Value::Object(values)).map_err(|e| format!("its metadata `{PREFIX}*`: {e}"))
    }

    /// Reads the file beside a model.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        // What is not TOML at all is reported below.
        if let Ok(table) = DeTable::parse(text) {
            for key in table.get_ref().keys() {
                let name: &str = key.get_ref();
                if !KEYS.contains(&name) {
                    let line = 1 + text[..key.span().start].matches('\n').count();
                    return Err(format!("line {line}: unknown key `{name}`; {}", key_hint(name, &KEYS)));
                }
            }
        }
        toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
            format!("{place}{}", error.message().trim_end())
        })
    }

    /// Returns the settings of `self`, and those of `other` for the keys that `self` does not set.
    pub fn or(self, other: Self) -> Self {
        Self {
            name: self.name.or(other.name),
            version: self.version.or(other.version),
            title: self.title.or(other.title),
            authors: self.authors.or(other.authors),
            license: self.license.or(other.license),
            styles: self.styles.or(other.styles),
            input: self.input.or(other.input),
            encoder_digest: self.encoder_digest.or(other.encoder_digest),
            size: self.size.or(other.size),
            mean: self.mean.or(other.mean),
            std: self.std.or(other.std),
            layout: self.layout.or(other.layout),
            channels: self.channels.or(other.channels),
            output: self.output.or(other.output),
        }
    }
}

/// Returns the keys of the file beside a model as the metadata of its file.
///
/// # Errors
/// Those of [`Settings::from_toml`].
pub fn metadata_of_toml(text: &str) -> Result<BTreeMap<String, String>, String> {
    Settings::from_toml(text)?;
    let table: BTreeMap<String, Value> = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    Ok(table.into_iter().map(|(key, value)| (key, value.to_string())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::from_metadata(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn metadata_is_json_and_texts_may_be_bare() {
        let settings = metadata(&[
            ("ambiguity.styles", r#"["a", "b"]"#),
            ("ambiguity.input", "embedding:clip"),
            ("ambiguity.version", "1.0"),
            ("ambiguity.title", r#""Two styles""#),
            ("ambiguity.size", "[32, 48]"),
            ("ambiguity.mean", "0.5"),
            ("ambiguity.std", "[0.1, 0.2, 0.3]"),
            ("ambiguity.layout", "\"nhwc\""),
            ("ambiguity.output", "logits"),
            ("framework", "not JSON, and not ours"),
        ]);
        let settings = settings.expect("valid settings");
        assert_eq!(settings.input, Some(InputKind::Embedding("clip".to_owned())));
        assert_eq!((settings.version.as_deref(), settings.title.as_deref()), (Some("1.0"), Some("Two styles")));
        assert_eq!(settings.size.map(Size::height_width), Some([32, 48]));
        assert_eq!(settings.mean.expect("it is set").of(3), Ok(vec![0.5; 3]));
        assert_eq!(settings.std.expect("it is set").of(1), Err("has 3 numbers for 1 channels".to_owned()));
        assert_eq!((settings.layout, settings.output), (Some(Layout::Nhwc), Some(OutputKind::Logits)));
    }

    #[test]
    fn the_file_beside_has_the_same_keys_and_takes_precedence() {
        let beside = Settings::from_toml("styles = ['x', 'y']\nsize = 8\ninput = 'pixels'").expect("valid settings");
        let inside = metadata(&[("ambiguity.styles", "[\"a\"]"), ("ambiguity.channels", "1")]).expect("valid settings");
        let both = beside.or(inside);
        assert_eq!(both.styles, Some(vec!["x".to_owned(), "y".to_owned()]));
        assert_eq!((both.channels, both.input), (Some(1), Some(InputKind::Pixels)));
    }

    #[test]
    fn the_list_of_keys_is_complete() {
        let error = serde_json::from_str::<Settings>(r#"{"no such key": 1}"#).expect_err("no such key").to_string();
        assert!(error.contains(&format!("expected one of `{}`", KEYS.join("`, `"))), "{error}");
    }

    #[test]
    fn what_is_misspelled_is_named() {
        for (key, hint) in [("stlyes", "did you mean `styles`?"), ("licence", "did you mean `license`?")] {
            let in_metadata = format!("{PREFIX}{key}");
            let message = metadata(&[(in_metadata.as_str(), "Apache-2.0")]).expect_err("no such key");
            assert_eq!(message, format!("its metadata `ambiguity.*`: unknown key `{key}`; {hint}"));
            let message = Settings::from_toml(&format!("size = 3\n{key} = 'Apache-2.0'")).expect_err("no such key");
            assert_eq!(message, format!("line 2: unknown key `{key}`; {hint}"));
        }
        let message = metadata(&[("ambiguity.styles", "a, b")]).expect_err("not JSON");
        assert!(message.starts_with("its metadata `ambiguity.styles` is not JSON: "), "{message}");
        let message = metadata(&[("ambiguity.input", "image")]).expect_err("no such input");
        assert!(message.contains("it must be `pixels` or `embedding:ENCODER`"), "{message}");
        let message = metadata(&[("ambiguity.size", "\"large\"")]).expect_err("no size");
        assert!(message.contains("`size` must be [height, width]"), "{message}");
        let message = Settings::from_toml("size = 3\ncolor = 1").expect_err("no such key");
        assert!(message.starts_with("line 2: unknown key `color`; known here: name, version, "), "{message}");
    }
}
