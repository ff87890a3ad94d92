//! Encoders: embeddings of images and texts, for plugins that ask for an encoder by name.

mod clip;
pub mod familiar;
mod files;
mod vision;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Debug, Formatter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::{Rgb, RgbImage};
use ndarray::{Array2, ArrayView2, Axis};
use sha2::{Digest as _, Sha256};
use tch::{Device, Kind, Tensor};

pub use ambiguity_sdk::EncoderInfo;

pub use self::clip::ClipEncoder;
use self::familiar::Familiar;
pub use self::files::{Embedded, embed_files};
pub use self::vision::VisionEncoder;
use crate::text::counted;

/// The name of the shipped small CLIP.
pub const SHIPPED: &str = "tiny-art";

/// The name by which a plugin asks for the default encoder: the only encoder that was named besides the shipped one,
/// else the shipped one.
pub const ALIAS: &str = "clip";

/// Maximum number of cached text embeddings; then the cache is cleared. Class names repeat with every batch, generated
/// texts do not.
const CACHED_TEXTS: usize = 16_384;

/// Number of images in one call of an encoder: this bounds the memory, and larger calls are not faster.
pub const IMAGES_PER_CALL: usize = 32;

/// The text that, with [`probe`], identifies what a network computes.
pub const PROBE_TEXT: &str = "painting of a woman";

/// Returns the image that identifies what a network computes.
pub fn probe() -> RgbImage {
    const SIDE: u32 = 48;
    RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([(5 * x) as u8, (5 * y) as u8, (x * y) as u8]))
}

/// Number of texts that are embedded in one call of an encoder.
pub const TEXTS_PER_CALL: usize = 256;

/// A network that embeds images and texts in one space.
pub trait Encoder {
    /// Returns the encoder's properties.
    fn info(&self) -> EncoderInfo;
    /// Returns raw projected embeddings of images, n × dim, not normalized.
    fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError>;
    /// Returns raw projected embeddings of texts, n × dim, not normalized.
    fn embed_texts(&self, texts: &[String]) -> Result<Array2<f32>, EncoderError>;
    /// Returns the last hidden states of images, tokens × width each, in the order of the interface's `token-features`.
    ///
    /// # Errors
    /// [`EncoderError::NoTokens`] unless the encoder has them.
    fn image_tokens(&self, _images: &[Arc<RgbImage>]) -> Result<Vec<Array2<f32>>, EncoderError> {
        Err(EncoderError::NoTokens)
    }
    /// Returns the last hidden states of texts, tokens × width each.
    ///
    /// # Errors
    /// [`EncoderError::NoTokens`] unless the encoder has them.
    fn text_tokens(&self, _texts: &[String]) -> Result<Vec<Array2<f32>>, EncoderError> {
        Err(EncoderError::NoTokens)
    }
    /// Returns the distribution of the images that the encoder was trained on, if they are so few of the world's that it
    /// matters.
    fn familiar(&self) -> Option<&Familiar> {
        None
    }
    /// Returns the words of a text that the encoder never saw in its training, if it has statistics of that.
    fn unknown_words(&self, _text: &str) -> Vec<String> {
        vec![]
    }
    /// Returns embeddings, [n, dim] on the encoder's device, that are differentiable in the images, f32 [n, 3, h, w] in
    /// [0, 1], and in nothing else.
    ///
    /// # Errors
    /// [`EncoderError::NoGradient`] unless the encoder supports it.
    fn embed_tensor(&self, _images: &Tensor) -> Result<Tensor, EncoderError> {
        Err(EncoderError::NoGradient)
    }
}

/// Why an embedding could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// The encoder is unknown.
    #[error(
        "there is no encoder `{name}`; name its folder with --encoder {name}=DIR or `[encoders] {name} = \"DIR\"` (known: {known})"
    )]
    Unknown {
        /// The requested name.
        name: String,
        /// The known names.
        known: String,
    },
    /// `clip` could mean several encoders.
    #[error(
        "a plugin asks for `clip`, which could be any of {known}: choose one with --encoder clip=DIR or `[encoders] clip = \"DIR\"`"
    )]
    Ambiguous {
        /// The names that it could mean.
        known: String,
    },
    /// The encoder's folder could not be loaded.
    #[error("encoder `{name}` cannot be loaded from {path}: {source}", path = .path.display())]
    Load {
        /// The encoder.
        name: String,
        /// Its folder.
        path: PathBuf,
        /// The cause.
        source: ambiguity_models::Error,
    },
    /// The encoder is not differentiable.
    #[error("this encoder is not differentiable, which training through it needs; use a CLIP folder instead")]
    NoGradient,
    /// The encoder embeds images alone.
    #[error("this encoder embeds images, no texts: use a CLIP folder instead")]
    NoTexts,
    /// The encoder has no features of tokens.
    #[error("this encoder has no token features")]
    NoTokens,
    /// The encoder failed.
    #[error("encoder failed: {0}")]
    Run(#[from] ambiguity_models::Error),
    /// Some samples of a batch lack the medium of the others.
    #[error("sample {sample} of the batch has no {medium} to embed")]
    Medium {
        /// The first sample without the medium.
        sample: usize,
        /// The medium of the others.
        medium: &'static str,
    },
}

/// Loads an encoder from its folder.
pub type Loader = Arc<dyn Fn(&Path) -> ambiguity_models::Result<Box<dyn Encoder>> + Send + Sync>;

enum Entry {
    Folder(PathBuf, Loader),
    Loaded(Box<dyn Encoder>),
}

/// The encoders of a run by name; each is loaded at its first use.
#[derive(Default)]
pub struct Encoders {
    entries: BTreeMap<String, Entry>,
    /// The names of those that metrics alone use: no alias means them.
    of_metrics: BTreeSet<String>,
    texts: HashMap<(String, String), Vec<f32>>,
    /// What was embedded with each encoder that has statistics of its training.
    seen: BTreeMap<String, Seen>,
}

/// What was embedded with an encoder.
#[derive(Default)]
struct Seen {
    images: usize,
    /// Images unlike those that the encoder was trained on.
    unfamiliar: usize,
    texts: usize,
    /// Texts with words that it never saw, and the first such words.
    strange: usize,
    words: Vec<String>,
}

/// Number of unknown words that a sentence names.
const NAMED_WORDS: usize = 3;

impl Seen {
    /// Returns the sentence about what `encoder` does not know, if that is at least half of what was embedded.
    fn sentence(&self, encoder: &str) -> Option<String> {
        let of_images = self.images > 0 && 2 * self.unfamiliar >= self.images;
        let of_texts = self.texts > 0 && 2 * self.strange >= self.texts;
        let images = || format!("{} of {} are unlike them", self.unfamiliar, counted(self.images as u64, "image"));
        let texts = || {
            let words: Vec<String> = self.words.iter().take(NAMED_WORDS).map(|word| format!("`{word}`")).collect();
            let n = counted(self.texts as u64, "text");
            format!("{} of {n} have words that it never saw ({})", self.strange, words.join(", "))
        };
        let what = match (of_images, of_texts) {
            (true, true) => format!("{}, and {}", images(), texts()),
            (true, false) => images(),
            (false, true) => texts(),
            (false, false) => return None,
        };
        let trained_on = match encoder {
            SHIPPED => "procedural paintings alone (`host art`)",
            _ => "the images of its statistics alone",
        };
        Some(format!(
            "the encoder `{encoder}` was trained on {trained_on}, and {what}: their embeddings say \
             little. For other images and texts use a CLIP of the world, as in `--encoder openai/clip-vit-large-patch14` of \
             `host plugin fit`"
        ))
    }
}

impl Encoders {
    /// Returns a collection without encoders.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an encoder that `loader` loads from a folder; an encoder of the same name is replaced.
    pub fn add_folder(&mut self, name: &str, folder: &Path, loader: Loader) {
        self.forget(name);
        self.entries.insert(name.to_owned(), Entry::Folder(folder.to_owned(), loader));
    }

    /// Adds an encoder that metrics alone use, which `loader` loads from a folder: no alias means it.
    pub fn add_of_metrics(&mut self, name: &str, folder: &Path, loader: Loader) {
        self.add_folder(name, folder, loader);
        self.of_metrics.insert(name.to_owned());
    }

    /// Adds an encoder; an encoder of the same name is replaced.
    pub fn add(&mut self, name: &str, encoder: Box<dyn Encoder>) {
        self.forget(name);
        self.entries.insert(name.to_owned(), Entry::Loaded(encoder));
    }

    /// Returns the names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    /// Resolves a name or alias to an encoder's name.
    pub fn resolve(&self, name: &str) -> Result<String, EncoderError> {
        if self.entries.contains_key(name) && !(name == ALIAS && self.of_metrics.contains(name)) {
            return Ok(name.to_owned());
        }
        let is_named = |name: &&str| *name != SHIPPED && !self.of_metrics.contains(*name);
        let named: Vec<&str> = self.names().into_iter().filter(is_named).collect();
        match &named[..] {
            [only] if name == ALIAS => Ok((*only).to_owned()),
            [] if name == ALIAS && self.entries.contains_key(SHIPPED) => Ok(SHIPPED.to_owned()),
            [_, _, ..] if name == ALIAS => Err(EncoderError::Ambiguous { known: named.join(", ") }),
            _ => {
                let known = if self.entries.is_empty() { "none".to_owned() } else { self.names().join(", ") };
                Err(EncoderError::Unknown { name: name.to_owned(), known })
            }
        }
    }

    /// Returns the encoder of that name or alias.
    pub fn get(&mut self, name: &str) -> Result<&dyn Encoder, EncoderError> {
        let name = self.resolve(name)?;
        let entry = self.entries.get_mut(&name).expect("a resolved name has an entry");
        if let Entry::Folder(path, loader) = entry {
            let encoder = loader(path).map_err(|source| EncoderError::Load { name, path: path.clone(), source })?;
            *entry = Entry::Loaded(encoder);
        }
        match entry {
            Entry::Loaded(encoder) => Ok(&**encoder),
            Entry::Folder(..) => unreachable!("it was loaded just now"),
        }
    }

    /// Returns what identifies the embeddings of an encoder: a hash of those of an image and of a text, with which its
    /// preprocessing, its tokenizer and its device count as much as its weights.
    ///
    /// # Errors
    /// If the encoder is unknown, or cannot be loaded or run.
    pub fn identity(&mut self, name: &str) -> Result<String, EncoderError> {
        let encoder = self.get(name)?;
        let mut hash = Sha256::new();
        hash.update(encoder.info().digest);
        let mut add = |rows: Array2<f32>| rows.iter().for_each(|value| hash.update(value.to_le_bytes()));
        add(encoder.embed_images(&[Arc::new(probe())])?);
        match encoder.embed_texts(&[PROBE_TEXT.to_owned()]) {
            Ok(rows) => add(rows),
            Err(EncoderError::NoTexts) => {}
            Err(error) => return Err(error),
        }
        Ok(format!("{:x}", hash.finalize()))
    }

    /// Returns raw embeddings of images, n × dim.
    pub fn embed_images(&mut self, name: &str, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
        let encoder = self.get(name)?;
        let mut embeddings = Array2::zeros((images.len(), encoder.info().dim));
        for (images, mut rows) in
            images.chunks(IMAGES_PER_CALL).zip(embeddings.axis_chunks_iter_mut(Axis(0), IMAGES_PER_CALL))
        {
            rows.assign(&encoder.embed_images(images)?);
        }
        self.note_images(name, embeddings.view())?;
        Ok(embeddings)
    }

    /// Notes the embeddings of images, n × dim, for [`Encoders::unfamiliar`].
    ///
    /// # Errors
    /// If the encoder is unknown or cannot be loaded.
    pub fn note_images(&mut self, name: &str, embeddings: ArrayView2<'_, f32>) -> Result<(), EncoderError> {
        let encoder = self.get(name)?;
        if let Some(unfamiliar) = encoder.familiar().map(|familiar| familiar.n_unfamiliar(embeddings)) {
            let seen = self.seen.entry(self.resolve(name)?).or_default();
            seen.images += embeddings.nrows();
            seen.unfamiliar += unfamiliar;
        }
        Ok(())
    }

    /// Returns what to say of what was embedded so far: for each encoder that knows little of it, a sentence with what to
    /// use instead.
    pub fn unfamiliar(&self) -> Vec<String> {
        self.seen.iter().filter_map(|(name, seen)| seen.sentence(name)).collect()
    }

    /// Notes the texts that an encoder is to embed, for [`Encoders::unfamiliar`].
    ///
    /// # Errors
    /// If the encoder is unknown or cannot be loaded.
    pub fn note_texts(&mut self, name: &str, texts: &[String]) -> Result<(), EncoderError> {
        let encoder = self.get(name)?;
        if encoder.familiar().is_none() {
            return Ok(());
        }
        let unknown: Vec<Vec<String>> = texts.iter().map(|text| encoder.unknown_words(text)).collect();
        let seen = self.seen.entry(self.resolve(name)?).or_default();
        seen.texts += texts.len();
        seen.strange += unknown.iter().filter(|words| !words.is_empty()).count();
        for word in unknown.into_iter().flatten() {
            if seen.words.len() < NAMED_WORDS && !seen.words.contains(&word) {
                seen.words.push(word);
            }
        }
        Ok(())
    }

    /// Returns raw embeddings of texts, n × dim; they are cached by (encoder, text).
    pub fn embed_texts(&mut self, name: &str, texts: &[String]) -> Result<Array2<f32>, EncoderError> {
        let name = self.resolve(name)?;
        if self.texts.len() + texts.len() > CACHED_TEXTS {
            self.texts.clear();
        }
        let key = |text: &String| (name.clone(), text.clone());
        let mut fresh: Vec<String> =
            texts.iter().filter(|text| !self.texts.contains_key(&key(text))).cloned().collect();
        fresh.sort();
        fresh.dedup();
        let encoder = self.get(&name)?;
        let dim = encoder.info().dim;
        let mut embedded = vec![];
        for fresh in fresh.chunks(TEXTS_PER_CALL) {
            let embeddings = encoder.embed_texts(fresh)?;
            embedded.extend(fresh.iter().zip(embeddings.rows()).map(|(text, row)| (key(text), row.to_vec())));
        }
        self.texts.extend(embedded);
        let mut embeddings = Array2::zeros((texts.len(), dim));
        for (text, mut row) in texts.iter().zip(embeddings.rows_mut()) {
            row.assign(&ndarray::ArrayView1::from(&self.texts[&key(text)]));
        }
        Ok(embeddings)
    }

    /// Returns raw embeddings, [n, dim], that are differentiable in the images; see [`Encoder::embed_tensor`].
    pub fn embed_tensor(&mut self, name: &str, images: &Tensor) -> Result<Tensor, EncoderError> {
        self.get(name)?.embed_tensor(images)
    }

    fn forget(&mut self, name: &str) {
        self.texts.retain(|(encoder, _), _| encoder != name);
    }
}

impl Debug for Encoders {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoders").field("names", &self.names()).finish_non_exhaustive()
    }
}

/// Converts a tensor [n, dim] on any device to an array.
///
/// # Errors
/// If it has another number of dimensions, or libtorch fails.
pub fn array(tensor: &Tensor) -> ambiguity_models::Result<Array2<f32>> {
    let (rows, cols) = tensor.size2()?;
    let flat = tensor.detach().f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view([-1])?;
    let data = Vec::<f32>::try_from(&flat)?;
    Ok(Array2::from_shape_vec((rows as usize, cols as usize), data).expect("the data fits the shape"))
}

/// Concatenates the rows of several calls.
///
/// # Panics
/// If the rows differ in length, or there are none.
pub fn stacked(parts: &[Array2<f32>]) -> Array2<f32> {
    let views: Vec<_> = parts.iter().map(Array2::view).collect();
    ndarray::concatenate(Axis(0), &views).expect("an encoder's rows have one length")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// An encoder that returns the length of a text, and records the texts.
    struct Lengths(Rc<RefCell<Vec<String>>>);

    impl Encoder for Lengths {
        fn info(&self) -> EncoderInfo {
            EncoderInfo { dim: 1, digest: "lengths".into(), ..EncoderInfo::default() }
        }

        fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
            Ok(Array2::from_shape_fn((images.len(), 1), |(i, _)| images[i].width() as f32))
        }

        fn embed_texts(&self, texts: &[String]) -> Result<Array2<f32>, EncoderError> {
            self.0.borrow_mut().extend_from_slice(texts);
            Ok(Array2::from_shape_fn((texts.len(), 1), |(i, _)| texts[i].len() as f32))
        }
    }

    #[test]
    fn texts_are_embedded_once_until_the_encoder_changes() {
        let asked = Rc::new(RefCell::new(vec![]));
        let mut encoders = Encoders::new();
        encoders.add("lengths", Box::new(Lengths(Rc::clone(&asked))));
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let embedded = encoders.embed_texts("clip", &texts(&["one", "three", "one"])).expect("it works");
        assert_eq!(embedded.into_raw_vec_and_offset().0, [3.0, 5.0, 3.0]);
        encoders.embed_texts("lengths", &texts(&["three", "seven"])).expect("it works");
        assert_eq!(*asked.borrow(), ["one", "three", "seven"]);
        encoders.add("lengths", Box::new(Lengths(Rc::clone(&asked))));
        encoders.embed_texts("lengths", &texts(&["one"])).expect("it works");
        assert_eq!(asked.borrow().len(), 4);
    }

    #[test]
    fn images_are_embedded_in_order_over_several_calls() {
        let mut encoders = Encoders::new();
        encoders.add("lengths", Box::new(Lengths(Rc::default())));
        let images: Vec<_> = (1..=70).map(|width| Arc::new(RgbImage::new(width, 1))).collect();
        let embedded = encoders.embed_images("lengths", &images).expect("it works");
        assert!(embedded.iter().zip(1u32..).all(|(found, width)| *found == width as f32), "{embedded}");
    }

    /// An encoder that returns the number of texts in its call.
    struct Counts;

    impl Encoder for Counts {
        fn info(&self) -> EncoderInfo {
            EncoderInfo { dim: 1, digest: "counts".into(), ..EncoderInfo::default() }
        }

        fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
            Ok(Array2::zeros((images.len(), 1)))
        }

        fn embed_texts(&self, texts: &[String]) -> Result<Array2<f32>, EncoderError> {
            Ok(Array2::from_elem((texts.len(), 1), texts.len() as f32))
        }
    }

    #[test]
    fn many_texts_are_embedded_in_parts() {
        let mut encoders = Encoders::new();
        encoders.add("counts", Box::new(Counts));
        let texts: Vec<String> = (0..CACHED_TEXTS + 10).map(|i| i.to_string()).collect();
        let embedded = encoders.embed_texts("counts", &texts).expect("it works");
        let largest = embedded.iter().copied().fold(0.0, f32::max);
        assert_eq!((embedded.nrows(), largest), (texts.len(), TEXTS_PER_CALL as f32));
    }

    #[test]
    fn clip_means_the_default_encoder() {
        let mut encoders = Encoders::new();
        let lengths = || Box::new(Lengths(Rc::default()));
        let message = encoders.resolve(ALIAS).expect_err("there is none").to_string();
        assert!(message.ends_with("(known: none)"), "{message}");
        encoders.add(SHIPPED, lengths());
        assert_eq!(encoders.resolve(ALIAS).expect("the shipped one"), SHIPPED);
        encoders.add("one", lengths());
        assert_eq!(encoders.resolve(ALIAS).expect("the only one that was named"), "one");
        encoders.add("two", lengths());
        let message = encoders.resolve(ALIAS).expect_err("two were named").to_string();
        assert!(message.contains("could be any of one, two"), "{message}");
        encoders.add(ALIAS, lengths());
        assert_eq!(encoders.resolve(ALIAS).expect("a name takes precedence over the alias"), ALIAS);
    }
}
