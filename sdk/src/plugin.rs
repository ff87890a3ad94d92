//! The traits that a plugin implements, and its description.

use std::fmt::{self, Display, Formatter};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::distribution::Distributions;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::matrix::Matrix;

/// A plugin: a value that is created from what is baked into its file and what the run configures.
///
/// Each call of the host runs in a fresh instance of the plugin and creates the value anew, so no state is kept between
/// batches, and the same batch always has the same result: there is no clock and no randomness.
pub trait Plugin: Sized {
    /// Creates the plugin: here the manifest is parsed, matrices are read, options are checked. There are no encoders
    /// yet. It must succeed without any configuration, too.
    fn new(host: &Host) -> Result<Self>;

    /// Returns the plugin's description.
    fn describe(&self) -> Description;
}

/// A plugin that predicts the probability of each style.
pub trait Classifier: Plugin {
    /// Returns the styles, in the order of a distribution's entries; at least two, all different.
    fn styles(&self) -> Vec<String>;

    /// Returns one distribution over the styles per sample.
    fn classify(&self, batch: &Batch) -> Result<Distributions>;
}

/// A plugin that gives each sample one number.
pub trait Scorer: Plugin {
    /// Returns what the numbers mean.
    fn scale(&self) -> Scale;

    /// Returns one number per sample: finite, and within the scale.
    fn score(&self, batch: &Batch) -> Result<Vec<f64>>;
}

/// A plugin over embeddings that also has the gradient of its output, which training by gradient needs.
pub trait Gradient: Plugin {
    /// Returns the vector–Jacobian product for one of the encoders that the description declares. `upstream` is
    /// dL/d(output): of a classifier the log-probabilities, samples × styles; of a scorer the scores, samples × 1. The
    /// result is dL/d(raw embedding), samples × dim.
    fn embedding_vjp(&self, batch: &Batch, encoder: &str, upstream: &Matrix) -> Result<Matrix>;
}

/// A plugin over pixels that also has the gradient of its output with respect to them.
pub trait PixelGradient: Plugin {
    /// Returns the vector–Jacobian product of sample `i`. `upstream` is dL/d(its output): the log-probability of each
    /// style, or the score. The result is dL/d(pixel value in [0, 1]), in the order of [`Image::rgb`](crate::Image::rgb).
    fn pixel_vjp(&self, batch: &Batch, i: usize, upstream: &[f32]) -> Result<Vec<f32>>;
}

/// What a sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Medium {
    /// An RGB image.
    Image,
    /// A text.
    Text,
    /// A recording.
    Audio,
    /// Frames of one size at a fixed rate.
    Video,
    /// An array of any number of dimensions.
    Tensor,
}

impl Medium {
    /// All media.
    pub const ALL: [Self; 5] = [Self::Image, Self::Text, Self::Audio, Self::Video, Self::Tensor];

    /// Returns the name that the interface uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Text => "text",
            Self::Audio => "audio",
            Self::Video => "video",
            Self::Tensor => "tensor",
        }
    }
}

impl Display for Medium {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Medium {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|medium| medium.name() == name).ok_or_else(|| {
            Error::new(format!("there is no medium `{name}`, only image, text, audio, video and tensor"))
        })
    }
}

/// A plugin's description: its name, and what it needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// A short name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// The media that it takes.
    pub media: Vec<Medium>,
    /// The names of the encoders that it uses; "clip" is the run's default one.
    pub encoders: Vec<String>,
    /// The options that a run may set in the plugin's `config`.
    pub options: Vec<OptionInfo>,
    /// Other properties by key, which the host shows.
    pub properties: Vec<(String, String)>,
}

impl Description {
    /// Returns a description with a name and version (`env!("CARGO_PKG_VERSION")`), for the methods below to complete.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into(), ..Self::default() }
    }

    /// Adds a medium that the plugin takes.
    pub fn medium(mut self, medium: Medium) -> Self {
        self.media.push(medium);
        self
    }

    /// Adds an encoder that the plugin uses.
    pub fn encoder(mut self, encoder: impl Into<String>) -> Self {
        self.encoders.push(encoder.into());
        self
    }

    /// Adds an option that a run may set.
    pub fn option(mut self, option: impl Into<OptionInfo>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Adds a property that the host shows.
    pub fn property(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((key.into(), value.into()));
        self
    }
}

/// What the numbers of a [`Scorer`] mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Whether a higher score is better: then the reward is the score, else its negative.
    pub higher_is_better: bool,
    /// The smallest possible score, if there is one.
    pub minimum: Option<f64>,
    /// The largest possible score, if there is one.
    pub maximum: Option<f64>,
}

impl Scale {
    /// Returns the scale of scores of which higher ones are better.
    pub const fn higher_is_better() -> Self {
        Self { higher_is_better: true, minimum: None, maximum: None }
    }

    /// Returns the scale of scores of which lower ones are better.
    pub const fn lower_is_better() -> Self {
        Self { higher_is_better: false, minimum: None, maximum: None }
    }

    /// Sets the smallest possible score.
    pub const fn at_least(self, minimum: f64) -> Self {
        Self { minimum: Some(minimum), ..self }
    }

    /// Sets the largest possible score.
    pub const fn at_most(self, maximum: f64) -> Self {
        Self { maximum: Some(maximum), ..self }
    }

    /// Checks that a score is finite and within the scale.
    pub fn check(&self, score: f64) -> Result<()> {
        if !score.is_finite() {
            return Err(Error::new(format!("the score is {score}: it must be finite")));
        }
        match (self.minimum, self.maximum) {
            (Some(minimum), _) if score < minimum => {
                Err(Error::new(format!("the score {score} is below its minimum {minimum}")))
            }
            (_, Some(maximum)) if score > maximum => {
                Err(Error::new(format!("the score {score} is above its maximum {maximum}")))
            }
            _ => Ok(()),
        }
    }
}

/// The type of an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionType {
    /// Any text.
    Text,
    /// A whole number that fits 64 bits.
    Integer,
    /// A finite number.
    Number,
    /// `true` or `false`.
    Boolean,
}

impl OptionType {
    /// Returns the type's name, as messages show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }

    /// Returns whether a value is of this type.
    pub fn accepts(self, value: &str) -> bool {
        match self {
            Self::Text => true,
            Self::Integer => value.parse::<i64>().is_ok(),
            Self::Number => value.parse::<f64>().is_ok_and(f64::is_finite),
            Self::Boolean => value.parse::<bool>().is_ok(),
        }
    }
}

/// An option, as a description has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionInfo {
    /// Its key.
    pub key: String,
    /// The type of its value.
    pub value_type: OptionType,
    /// The value that is used if the run sets none; none if there is no single one, which the help then explains.
    pub default: Option<String>,
    /// One line that says what it does.
    pub help: String,
}

/// An option that a run may set in the plugin's `config`, as a constant of the plugin:
///
/// ```
/// use ambiguity_sdk::{Description, Host, Plugin, PluginOption, Result};
///
/// const QUALITY: PluginOption<i64> = PluginOption::new("quality", 75, "JPEG quality, 1 to 100");
///
/// struct Size {
///     quality: i64,
/// }
///
/// impl Plugin for Size {
///     fn new(host: &Host) -> Result<Self> {
///         Ok(Self { quality: QUALITY.get(host)? })
///     }
///
///     fn describe(&self) -> Description {
///         Description::new("size", "1.0.0").option(QUALITY)
///     }
/// }
/// ```
///
/// The type is `i64`, `f64`, `bool` or `&'static str`.
#[derive(Clone, Copy, Debug)]
pub struct PluginOption<T> {
    key: &'static str,
    default: Option<T>,
    help: &'static str,
    value: PhantomData<T>,
}

/// A type of an option's value.
pub trait OptionValue: Copy + Display {
    /// The type's counterpart in the interface.
    const TYPE: OptionType;
    /// The type that a plugin reads.
    type Owned: FromStr + From<Self>;
}

impl OptionValue for i64 {
    const TYPE: OptionType = OptionType::Integer;
    type Owned = Self;
}

impl OptionValue for f64 {
    const TYPE: OptionType = OptionType::Number;
    type Owned = Self;
}

impl OptionValue for bool {
    const TYPE: OptionType = OptionType::Boolean;
    type Owned = Self;
}

impl OptionValue for &'static str {
    const TYPE: OptionType = OptionType::Text;
    type Owned = String;
}

impl<T: OptionValue> PluginOption<T> {
    /// Returns an option with its key, its default and one line of help.
    pub const fn new(key: &'static str, default: T, help: &'static str) -> Self {
        Self { key, default: Some(default), help, value: PhantomData }
    }

    /// Returns an option without a default; the help says what happens if it is not set.
    pub const fn without_default(key: &'static str, help: &'static str) -> Self {
        Self { key, default: None, help, value: PhantomData }
    }

    /// Returns the value that the run sets, if it sets one, else the default; an error without either.
    pub fn get(&self, host: &Host) -> Result<T::Owned> {
        let missing = || Error::new(format!("the option `{}` has no default: set it", self.key));
        self.find(host)?.ok_or_else(missing)
    }

    /// Returns the value that the run sets, if it sets one, else the default, if there is one.
    pub fn find(&self, host: &Host) -> Result<Option<T::Owned>> {
        match host.config(self.key) {
            Some(text) if T::TYPE.accepts(&text) => text.parse().map(Some).map_err(|_| self.wrong(&text)),
            Some(text) => Err(self.wrong(&text)),
            None => Ok(self.default.map(Into::into)),
        }
    }

    fn wrong(&self, value: &str) -> Error {
        Error::new(format!("the option `{}` is `{value}`, which is no {}", self.key, T::TYPE.name()))
    }
}

impl<T: OptionValue> From<PluginOption<T>> for OptionInfo {
    fn from(option: PluginOption<T>) -> Self {
        Self {
            key: option.key.to_owned(),
            value_type: T::TYPE,
            default: option.default.map(|value| value.to_string()),
            help: option.help.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeHost;

    const COUNT: PluginOption<i64> = PluginOption::new("count", 3, "Number of items");
    const NAME: PluginOption<&str> = PluginOption::without_default("name", "Who; by default nobody");
    const SCALE: PluginOption<f64> = PluginOption::new("scale", 0.5, "A factor");

    #[test]
    fn options_have_values_or_defaults() {
        let fake = FakeHost::new().option("count", "7").option("name", "Eva");
        let host = fake.host();
        assert_eq!(COUNT.get(&host).expect("a number"), 7);
        assert_eq!(NAME.get(&host).expect("a text"), "Eva");
        assert_eq!(SCALE.get(&host).expect("the default"), 0.5);
        let fake = FakeHost::new().option("scale", "NaN").option("count", "1.5");
        let host = fake.host();
        let message = SCALE.get(&host).expect_err("not finite").to_string();
        assert_eq!(message, "the option `scale` is `NaN`, which is no number");
        assert!(COUNT.get(&host).is_err());
        assert_eq!(NAME.find(&host).expect("absent"), None);
        assert_eq!(NAME.get(&host).expect_err("absent").to_string(), "the option `name` has no default: set it");
        let info = OptionInfo::from(SCALE);
        assert_eq!((info.value_type, info.default.as_deref()), (OptionType::Number, Some("0.5")));
    }

    #[test]
    fn scores_are_within_their_scale() {
        let scale = Scale::higher_is_better().at_least(-1.0).at_most(1.0);
        assert!(scale.check(-1.0).is_ok() && scale.check(1.0).is_ok());
        let message = |score: f64| scale.check(score).expect_err("out of range").to_string();
        assert_eq!(message(1.5), "the score 1.5 is above its maximum 1");
        assert_eq!(message(-2.0), "the score -2 is below its minimum -1");
        assert_eq!(message(f64::NAN), "the score is NaN: it must be finite");
    }

    #[test]
    fn media_have_names() {
        for medium in Medium::ALL {
            assert_eq!(medium.name().parse::<Medium>().expect("its own name"), medium);
        }
        assert!("smell".parse::<Medium>().is_err());
    }
}
