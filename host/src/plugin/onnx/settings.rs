//! What an ONNX plugin says of itself: `ambiguity.*` in the file's `metadata_props`, whose values are JSON, or the same
//! keys without the prefix in a `.toml` beside a file that nobody can change.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// What the keys in a file begin with.
pub const PREFIX: &str = "ambiguity.";

/// Keys whose values may stand without JSON's quotation marks.
const TEXTS: [&str; 8] = ["name", "version", "title", "license", "input", "layout", "output", "encoder_digest"];

/// What is said, none where it is not.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The plugin's short name.
    pub name: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// One line for people.
    pub title: Option<String>,
    /// Who made it.
    pub authors: Option<Vec<String>>,
    /// SPDX expression.
    pub license: Option<String>,
    /// The styles, in the order of the outputs.
    pub styles: Option<Vec<String>>,
    /// What is fed to the model.
    pub input: Option<InputKind>,
    /// sha256 over the weights of the encoder that it was trained with, in hex.
    pub encoder_digest: Option<String>,
    /// Height and width in pixels.
    pub size: Option<Size>,
    /// Taken off every channel, on the scale of [0, 1].
    pub mean: Option<PerChannel>,
    /// Divides every channel after that.
    pub std: Option<PerChannel>,
    /// The order of the input's dimensions.
    pub layout: Option<Layout>,
    /// 3 for red, green, blue; 1 for gray.
    pub channels: Option<usize>,
    /// What comes out.
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
    /// Height and width.
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
    /// For all.
    All(f32),
    /// One each.
    Each(Vec<f32>),
}

impl PerChannel {
    /// One number for each of `channels`; an error says what there is instead.
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

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Numbers of which the softmax is the distribution.
    Logits,
    /// The distribution itself.
    Probabilities,
}

impl Settings {
    /// Reads `ambiguity.*` of a file's metadata; other keys are somebody else's.
    pub fn from_metadata(metadata: &BTreeMap<String, String>) -> Result<Self, String> {
        let mut values = serde_json::Map::new();
        for (key, text) in metadata {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let bare = TEXTS.contains(&name) && !text.trim_start().starts_with('"');
            let value = match bare {
                true => Value::String(text.clone()),
                false => serde_json::from_str(text).map_err(|e| format!("its metadata `{key}` is no JSON: {e}"))?,
            };
            values.insert(name.to_owned(), value);
        }
        serde_json::from_value(Value::Object(values)).map_err(|e| format!("its metadata `{PREFIX}*`: {e}"))
    }

    /// Reads the file beside a model.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string().trim_end().to_owned())
    }

    /// What `self` says, and `other` where it says nothing.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::from_metadata(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn metadata_is_json_and_texts_may_be_bare() {
        let said = metadata(&[
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
        let said = said.expect("it is all well");
        assert_eq!(said.input, Some(InputKind::Embedding("clip".to_owned())));
        assert_eq!((said.version.as_deref(), said.title.as_deref()), (Some("1.0"), Some("Two styles")));
        assert_eq!(said.size.map(Size::height_width), Some([32, 48]));
        assert_eq!(said.mean.expect("said").of(3), Ok(vec![0.5; 3]));
        assert_eq!(said.std.expect("said").of(1), Err("has 3 numbers for 1 channels".to_owned()));
        assert_eq!((said.layout, said.output), (Some(Layout::Nhwc), Some(OutputKind::Logits)));
    }

    #[test]
    fn the_file_beside_says_the_same_and_wins() {
        let beside = Settings::from_toml("styles = ['x', 'y']\nsize = 8\ninput = 'pixels'").expect("it is all well");
        let said = metadata(&[("ambiguity.styles", "[\"a\"]"), ("ambiguity.channels", "1")]).expect("it is all well");
        let both = beside.or(said);
        assert_eq!(both.styles, Some(vec!["x".to_owned(), "y".to_owned()]));
        assert_eq!((both.channels, both.input), (Some(1), Some(InputKind::Pixels)));
    }

    #[test]
    fn what_is_misspelled_is_named() {
        let message = metadata(&[("ambiguity.stlyes", "[]")]).expect_err("no such key");
        assert!(
            message.starts_with("its metadata `ambiguity.*`: unknown field `stlyes`, expected one of"),
            "{message}"
        );
        let message = metadata(&[("ambiguity.styles", "a, b")]).expect_err("no JSON");
        assert!(message.starts_with("its metadata `ambiguity.styles` is no JSON: "), "{message}");
        let message = metadata(&[("ambiguity.input", "image")]).expect_err("no such input");
        assert!(message.contains("it must be `pixels` or `embedding:ENCODER`"), "{message}");
        let message = metadata(&[("ambiguity.size", "\"large\"")]).expect_err("no size");
        assert!(message.contains("`size` must be [height, width]"), "{message}");
        let message = Settings::from_toml("size = 3\ncolor = 1").expect_err("no such key");
        assert!(message.contains("unknown field `color`"), "{message}");
    }
}
