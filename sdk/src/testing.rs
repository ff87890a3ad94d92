//! A fake host, so that `cargo test` runs plugin code natively: samples of every medium, embeddings, encoders, assets,
//! configuration, the log. It refuses what the real host refuses: encoders that the plugin does not declare, options that
//! it does not have, results of the wrong size.
//!
//! The crate's documentation has an example.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::marker::PhantomData;

use crate::batch::{Audio, Batch, Image, Tensor, Video};
use crate::distribution::Distributions;
use crate::error::{Error, Result};
use crate::host::{EncoderInfo, Host, Level};
use crate::matrix::Matrix;
use crate::plugin::{Classifier, Description, Gradient, Medium, PixelGradient, Plugin, Scorer};

type TextEncoder = Box<dyn Fn(&str) -> Vec<f32>>;

/// A host that returns the data that it was given.
#[derive(Default)]
pub struct FakeHost {
    assets: BTreeMap<String, Vec<u8>>,
    tensors: BTreeMap<String, Matrix>,
    config: BTreeMap<String, String>,
    encoders: BTreeMap<String, (EncoderInfo, TextEncoder)>,
    logged: RefCell<Vec<(Level, String)>>,
}

/// A plugin that a fake host has loaded.
pub struct Loaded<'a, P> {
    host: &'a FakeHost,
    description: Description,
    plugin: PhantomData<P>,
}

/// The samples of a call.
#[derive(Clone, Default)]
pub struct FakeBatch {
    samples: Vec<FakeSample>,
    embeddings: BTreeMap<String, Matrix>,
}

/// One sample.
#[derive(Clone, Debug, Default)]
pub struct FakeSample {
    /// The prompt.
    pub prompt: String,
    /// Metadata by name.
    pub metadata: BTreeMap<String, String>,
    /// The image, if the sample is one.
    pub image: Option<Image>,
    /// The text, if the sample is one.
    pub text: Option<String>,
    /// The recording, if the sample is one.
    pub audio: Option<Audio>,
    /// The frames and their number per second, if the sample is a video.
    pub video: Option<(Vec<Image>, f64)>,
    /// The array, if the sample is one.
    pub tensor: Option<Tensor>,
    /// The token features by encoder.
    pub token_features: BTreeMap<String, Matrix>,
}

impl FakeHost {
    /// Returns a host without data.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a baked asset.
    pub fn asset(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.assets.insert(name.to_owned(), bytes.into());
        self
    }

    /// Adds a baked matrix.
    pub fn tensor(mut self, name: &str, tensor: Matrix) -> Self {
        self.tensors.insert(name.to_owned(), tensor);
        self
    }

    /// Sets an option.
    pub fn option(mut self, key: &str, value: &str) -> Self {
        self.config.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an encoder, with a function that embeds texts.
    pub fn encoder(mut self, name: &str, info: EncoderInfo, texts: impl Fn(&str) -> Vec<f32> + 'static) -> Self {
        self.encoders.insert(name.to_owned(), (info, Box::new(texts)));
        self
    }

    /// Returns the host as plugin code sees it.
    pub fn host(&self) -> Host<'_> {
        Host::new(backend::Host(self))
    }

    /// Returns the messages that plugins logged.
    pub fn logged(&self) -> Vec<(Level, String)> {
        self.logged.borrow().clone()
    }

    /// Loads a plugin: creates it, asks for its description, and checks the options that are set.
    ///
    /// # Errors
    /// The plugin's own, or that it has no such option.
    pub fn load<P: Plugin>(&self) -> Result<Loaded<'_, P>> {
        let unset = Self { assets: self.assets.clone(), tensors: self.tensors.clone(), ..Self::default() };
        let options = P::new(&unset.host())?.describe().options;
        for (key, value) in &self.config {
            let Some(option) = options.iter().find(|option| option.key == *key) else {
                let known: Vec<&str> = options.iter().map(|option| option.key.as_str()).collect();
                return Err(Error::new(format!("the plugin has no option `{key}`, only {}", known.join(", "))));
            };
            if !option.value_type.accepts(value) {
                let wanted = option.value_type.name();
                return Err(Error::new(format!("the option `{key}` is `{value}`, which is no {wanted}")));
            }
        }
        let description = P::new(&self.host())?.describe();
        if description.media.is_empty() {
            return Err(Error::new("the plugin's description names no medium"));
        }
        Ok(Loaded { host: self, description, plugin: PhantomData })
    }
}

impl<P: Plugin> Loaded<'_, P> {
    /// Returns the plugin's description.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Calls a fresh instance, as the host does.
    fn call<T>(&self, batch: &FakeBatch, work: impl FnOnce(&P, &Batch) -> Result<T>) -> Result<T> {
        let samples = backend::Batch { host: self.host, batch, declared: &self.description.encoders };
        work(&P::new(&self.host.host())?, &Batch::from_backend(self.host.host(), samples))
    }

    fn the_encoder(&self) -> Result<&str> {
        match &self.description.encoders[..] {
            [encoder] => Ok(encoder),
            _ => Err(Error::new("this check needs a plugin with exactly one encoder")),
        }
    }
}

impl<P: Classifier> Loaded<'_, P> {
    /// Returns the plugin's styles.
    pub fn styles(&self) -> Result<Vec<String>> {
        Ok(P::new(&self.host.host())?.styles())
    }

    /// Asks the plugin to classify, and checks the shape of the result.
    pub fn classify(&self, batch: &FakeBatch) -> Result<Distributions> {
        let n_styles = self.styles()?.len();
        let distributions = self.call(batch, P::classify)?;
        let (found, wanted) = ((distributions.len(), distributions.n_styles()), (batch.samples.len(), n_styles));
        if found != wanted {
            return Err(Error::new(format!("the plugin gave {found:?} (samples, styles), it should give {wanted:?}")));
        }
        Ok(distributions)
    }
}

impl<P: Scorer> Loaded<'_, P> {
    /// Asks the plugin to score, and checks the number of scores and their scale.
    pub fn score(&self, batch: &FakeBatch) -> Result<Vec<f64>> {
        let scale = P::new(&self.host.host())?.scale();
        let scores = self.call(batch, P::score)?;
        let (found, wanted) = (scores.len(), batch.samples.len());
        if found != wanted {
            return Err(Error::new(format!("the plugin gave {found} scores, it should give {wanted}")));
        }
        for (i, &score) in scores.iter().enumerate() {
            scale.check(score).map_err(|e| e.context(format!("sample {i}")))?;
        }
        Ok(scores)
    }
}

impl<P: Gradient> Loaded<'_, P> {
    /// Asks the plugin for its gradient.
    pub fn embedding_vjp(&self, batch: &FakeBatch, encoder: &str, upstream: &Matrix) -> Result<Matrix> {
        self.call(batch, |plugin, batch| plugin.embedding_vjp(batch, encoder, upstream))
    }

    /// Returns the error of the gradient of a classifier or scorer, as [`vjp_error`], at embeddings by the one encoder
    /// that it declares; `output` is its output. For an exact gradient the error is below 0.01.
    fn error_of_gradient(&self, embeddings: &Matrix, output: impl Fn(&FakeBatch) -> Result<Matrix>) -> Result<f32> {
        let encoder = self.the_encoder()?;
        let batch = |embeddings: Matrix| {
            FakeBatch::new(vec![FakeSample::default(); embeddings.n_rows()]).embedding(encoder, embeddings)
        };
        let n_outputs = output(&batch(embeddings.clone()))?.n_cols();
        let upstream = numbers(7, embeddings.n_rows(), n_outputs);
        vjp_error(
            embeddings,
            &upstream,
            |x| output(&batch(x)),
            |x, upstream| self.embedding_vjp(&batch(x), encoder, upstream),
        )
    }
}

impl<P: Gradient + Classifier> Loaded<'_, P> {
    /// Returns the error of the plugin's gradient, as [`vjp_error`], at embeddings by the one encoder that it declares.
    /// For an exact gradient it is below 0.01.
    pub fn gradient_error(&self, embeddings: &Matrix) -> Result<f32> {
        self.error_of_gradient(embeddings, |batch| Ok(self.classify(batch)?.into_matrix()))
    }
}

impl<P: Gradient + Scorer> Loaded<'_, P> {
    /// As [`Loaded::gradient_error`], for a scorer.
    pub fn score_gradient_error(&self, embeddings: &Matrix) -> Result<f32> {
        self.error_of_gradient(embeddings, |batch| {
            let scores = self.score(batch)?;
            Matrix::new(scores.len(), 1, scores.into_iter().map(|score| score as f32).collect())
        })
    }
}

impl<P: PixelGradient + Classifier> Loaded<'_, P> {
    /// Asks the plugin for the gradient of one image, and checks its length.
    pub fn pixel_vjp(&self, image: &Image, upstream: &[f32]) -> Result<Vec<f32>> {
        let batch = FakeBatch::new([FakeSample { image: Some(image.clone()), ..FakeSample::default() }]);
        let gradient = self.call(&batch, |plugin, batch| plugin.pixel_vjp(batch, 0, upstream))?;
        let (found, wanted) = (gradient.len(), image.rgb.len());
        if found != wanted {
            return Err(Error::new(format!("the plugin gave a gradient of {found} numbers, it should give {wanted}")));
        }
        Ok(gradient)
    }

    /// Returns the relative error of the gradient at one image compared with differences of one of 255 levels in each
    /// pixel value. These are coarse, so an exact gradient of a smooth function may be off by some percent.
    pub fn pixel_gradient_error(&self, image: &Image) -> Result<f32> {
        let output = |image: &Image| -> Result<Vec<f32>> {
            let batch = FakeBatch::new([FakeSample { image: Some(image.clone()), ..FakeSample::default() }]);
            Ok(self.classify(&batch)?.row(0).to_vec())
        };
        let upstream = numbers(7, 1, output(image)?.len()).into_vec();
        let exact = self.pixel_vjp(image, &upstream)?;
        let loss = |image: &Image| -> Result<f64> {
            Ok(output(image)?.iter().zip(&upstream).map(|(&z, &u)| f64::from(z) * f64::from(u)).sum())
        };
        let (mut wrong, mut total) = (0.0, 0.0);
        for (i, exact) in exact.iter().enumerate() {
            let at = |level: u8| {
                let mut image = image.clone();
                image.rgb[i] = level;
                loss(&image)
            };
            let (below, above) = (image.rgb[i].saturating_sub(1), image.rgb[i].saturating_add(1));
            let difference = (at(above)? - at(below)?) / (f64::from(above - below) / 255.0);
            wrong += (difference - f64::from(*exact)).powi(2);
            total += difference.powi(2);
        }
        Ok((wrong / total).sqrt() as f32)
    }
}

impl FakeBatch {
    /// Returns a batch of samples.
    pub fn new(samples: impl IntoIterator<Item = FakeSample>) -> Self {
        Self { samples: samples.into_iter().collect(), embeddings: BTreeMap::new() }
    }

    /// Adds the samples' embeddings by an encoder.
    pub fn embedding(mut self, encoder: &str, embeddings: Matrix) -> Self {
        self.embeddings.insert(encoder.to_owned(), embeddings);
        self
    }
}

impl FakeSample {
    /// Returns an image.
    ///
    /// # Panics
    /// Unless there are `width * height * 3` bytes.
    pub fn image(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        assert_eq!(rgb.len(), width * height * 3, "width * height * 3 bytes");
        Self { image: Some(Image { width, height, rgb }), ..Self::default() }
    }

    /// Returns a text.
    pub fn text(text: &str) -> Self {
        Self { text: Some(text.to_owned()), ..Self::default() }
    }

    /// Returns a recording: interleaved samples in [-1, 1].
    ///
    /// # Panics
    /// Unless every channel has the same number of samples.
    pub fn audio(sample_rate: u32, channels: usize, pcm: Vec<f32>) -> Self {
        assert_eq!(pcm.len() % channels, 0, "one sample per channel and frame");
        Self { audio: Some(Audio { sample_rate, channels, pcm }), ..Self::default() }
    }

    /// Returns a video.
    ///
    /// # Panics
    /// Unless there are frames, all of one size.
    pub fn video(frames: Vec<Image>, frame_rate: f64) -> Self {
        let size = |frame: &Image| (frame.width, frame.height);
        assert!(!frames.is_empty() && frames.iter().all(|frame| size(frame) == size(&frames[0])), "frames of one size");
        Self { video: Some((frames, frame_rate)), ..Self::default() }
    }

    /// Returns an array.
    ///
    /// # Panics
    /// Unless there are as many elements as the product of `shape`.
    pub fn tensor(shape: &[usize], data: Vec<f32>) -> Self {
        let tensor = Tensor::new(shape.to_vec(), data).expect("as many elements as the shape has");
        Self { tensor: Some(tensor), ..Self::default() }
    }

    /// Sets a metadata value.
    pub fn fact(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the prompt.
    pub fn prompt(mut self, prompt: &str) -> Self {
        prompt.clone_into(&mut self.prompt);
        self
    }

    /// Sets the token features by an encoder.
    pub fn token_features(mut self, encoder: &str, features: Matrix) -> Self {
        self.token_features.insert(encoder.to_owned(), features);
        self
    }
}

/// Returns a matrix of pseudorandom numbers in [-1, 1] by `seed`.
pub fn numbers(seed: u64, rows: usize, cols: usize) -> Matrix {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let data = (0..rows * cols).map(|_| {
        // Knuth's linear congruential generator; its upper bits are good enough for test data.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    });
    Matrix::new(rows, cols, data.collect()).expect("rows * cols numbers")
}

/// Returns the error of a vector–Jacobian product compared with central differences: ‖exact − differences‖ /
/// ‖differences‖. In f32 the differences themselves are accurate to about 1e-3.
pub fn vjp_error(
    x: &Matrix,
    upstream: &Matrix,
    function: impl Fn(Matrix) -> Result<Matrix>,
    vjp: impl Fn(Matrix, &Matrix) -> Result<Matrix>,
) -> Result<f32> {
    const STEP: f32 = 4e-3;
    let loss = |x: Matrix| -> Result<f64> {
        let output = function(x)?;
        Ok(output.as_slice().iter().zip(upstream.as_slice()).map(|(&z, &u)| f64::from(z) * f64::from(u)).sum())
    };
    let exact = vjp(x.clone(), upstream)?;
    let (mut wrong, mut total) = (0.0, 0.0);
    for i in 0..x.as_slice().len() {
        let moved = |step: f32| {
            let mut data = x.as_slice().to_vec();
            data[i] += step;
            Matrix::new(x.n_rows(), x.n_cols(), data).and_then(&loss)
        };
        let difference = (moved(STEP)? - moved(-STEP)?) / (2.0 * f64::from(STEP));
        wrong += (difference - f64::from(exact.as_slice()[i])).powi(2);
        total += difference.powi(2);
    }
    Ok((wrong / total).sqrt() as f32)
}

/// The functions that [`Host`](crate::Host) and [`Batch`](crate::Batch) call when they are compiled natively.
pub(crate) mod backend {
    use super::{FakeBatch, FakeHost, FakeSample, Medium, Video};
    use crate::batch::{Audio, Image, Tensor};
    use crate::host::{EncoderInfo, Level};
    use crate::matrix::Matrix;
    use crate::resize::resize_bicubic;

    type Answer<T> = Result<T, String>;

    #[derive(Clone, Copy)]
    pub struct Host<'a>(pub &'a FakeHost);

    impl Host<'_> {
        pub fn asset_names(self) -> Vec<String> {
            let mut names: Vec<String> = self.0.assets.keys().chain(self.0.tensors.keys()).cloned().collect();
            names.sort();
            names
        }

        pub fn asset_bytes(self, name: &str) -> Answer<Vec<u8>> {
            self.0.assets.get(name).cloned().ok_or_else(|| format!("the fake host has no asset `{name}`"))
        }

        pub fn asset_tensor(self, name: &str) -> Answer<Matrix> {
            self.0.tensors.get(name).cloned().ok_or_else(|| format!("the fake host has no tensor `{name}`"))
        }

        pub fn config(self, key: &str) -> Option<String> {
            self.0.config.get(key).cloned()
        }

        pub fn log(self, level: Level, message: &str) {
            self.0.logged.borrow_mut().push((level, message.to_owned()));
        }
    }

    pub struct Batch<'a> {
        pub host: &'a FakeHost,
        pub batch: &'a FakeBatch,
        /// The encoders that the plugin declares.
        pub declared: &'a [String],
    }

    impl<'a> Batch<'a> {
        fn sample(&self, i: u32) -> Answer<&'a FakeSample> {
            self.batch.samples.get(i as usize).ok_or_else(|| format!("the batch has no sample {i}"))
        }

        fn declares(&self, encoder: &str) -> Answer<()> {
            let declares = self.declared.iter().any(|declared| declared == encoder);
            let message =
                || format!("the plugin asks for the encoder `{encoder}`, which its description does not declare");
            declares.then_some(()).ok_or_else(message)
        }

        pub fn len(&self) -> u32 {
            self.batch.samples.len() as u32
        }

        pub fn prompt(&self, i: u32) -> String {
            self.sample(i).map(|sample| sample.prompt.clone()).unwrap_or_else(|message| panic!("{message}"))
        }

        pub fn metadata_keys(&self, i: u32) -> Vec<String> {
            let keys = self.sample(i).map(|sample| sample.metadata.keys().cloned().collect());
            keys.unwrap_or_else(|message| panic!("{message}"))
        }

        pub fn metadata(&self, i: u32, key: &str) -> Option<String> {
            self.sample(i).map(|sample| sample.metadata.get(key).cloned()).unwrap_or_else(|message| panic!("{message}"))
        }

        pub fn image(&self, i: u32) -> Answer<Image> {
            self.sample(i)?.image.clone().ok_or_else(|| format!("sample {i} is not an image"))
        }

        pub fn image_resized(&self, i: u32, width: u32, height: u32) -> Answer<Image> {
            resized(&self.image(i)?, width, height)
        }

        pub fn text(&self, i: u32) -> Answer<String> {
            self.sample(i)?.text.clone().ok_or_else(|| format!("sample {i} is not a text"))
        }

        pub fn audio(&self, i: u32) -> Answer<Audio> {
            self.sample(i)?.audio.clone().ok_or_else(|| format!("sample {i} is not a recording"))
        }

        fn frames(&self, i: u32) -> Answer<(&'a [Image], f64)> {
            let video = self.sample(i)?.video.as_ref().ok_or_else(|| format!("sample {i} is not a video"))?;
            Ok((&video.0, video.1))
        }

        pub fn video(&self, i: u32) -> Answer<Video> {
            let (frames, frame_rate) = self.frames(i)?;
            Ok(Video { width: frames[0].width, height: frames[0].height, frames: frames.len(), frame_rate })
        }

        pub fn frame(&self, i: u32, frame: u32) -> Answer<Image> {
            let (frames, _) = self.frames(i)?;
            let n_frames = frames.len();
            let message = || format!("the video of sample {i} has no frame {frame}, but {n_frames} frames");
            frames.get(frame as usize).cloned().ok_or_else(message)
        }

        pub fn frame_resized(&self, i: u32, frame: u32, width: u32, height: u32) -> Answer<Image> {
            resized(&self.frame(i, frame)?, width, height)
        }

        pub fn tensor(&self, i: u32) -> Answer<Tensor> {
            self.sample(i)?.tensor.clone().ok_or_else(|| format!("sample {i} is not an array"))
        }

        pub fn embedding(&self, encoder: &str) -> Answer<Matrix> {
            self.declares(encoder)?;
            if let Some(found) = self.batch.embeddings.get(encoder) {
                return Ok(found.clone());
            }
            let texts: Option<Vec<String>> = self.batch.samples.iter().map(|sample| sample.text.clone()).collect();
            match texts {
                Some(texts) => self.embed_texts(encoder, &texts),
                None => Err(format!("the fake batch has no embeddings by `{encoder}`")),
            }
        }

        pub fn prompt_embedding(&self, encoder: &str) -> Answer<Matrix> {
            let prompts: Vec<String> = self.batch.samples.iter().map(|sample| sample.prompt.clone()).collect();
            self.embed_texts(encoder, &prompts)
        }

        pub fn token_features(&self, encoder: &str, i: u32) -> Answer<Matrix> {
            self.declares(encoder)?;
            let found = self.sample(i)?.token_features.get(encoder);
            found.cloned().ok_or_else(|| format!("sample {i} has no token features by `{encoder}`"))
        }

        pub fn encoder_info(&self, encoder: &str) -> Answer<EncoderInfo> {
            self.declares(encoder)?;
            match self.host.encoders.get(encoder) {
                Some((info, _)) => Ok(info.clone()),
                None => Err(format!("the fake host has no encoder `{encoder}`")),
            }
        }

        pub fn embed_texts(&self, encoder: &str, texts: &[String]) -> Answer<Matrix> {
            self.declares(encoder)?;
            let (info, embed) =
                self.host.encoders.get(encoder).ok_or(format!("the fake host has no encoder `{encoder}`"))?;
            if !(info.media.is_empty() || info.media.contains(&Medium::Text)) {
                return Err(format!("the encoder `{encoder}` embeds no texts"));
            }
            let rows: Vec<Vec<f32>> = texts.iter().map(|text| embed(text)).collect();
            Matrix::from_rows(&rows).map_err(|e| e.to_string())
        }
    }

    fn resized(image: &Image, width: u32, height: u32) -> Answer<Image> {
        if width == 0 || height == 0 {
            return Err(format!("cannot resize to {width} x {height}"));
        }
        let (width, height) = (width as usize, height as usize);
        let rgb = resize_bicubic(&image.rgb, image.width, image.height, width, height);
        Ok(Image { width, height, rgb })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{PluginOption, Scale};

    const LEVEL: PluginOption<i64> = PluginOption::new("level", 1, "The score");

    /// Asks for an encoder that it does not declare, and scores by an option.
    struct Odd(i64);

    impl Plugin for Odd {
        fn new(host: &Host) -> Result<Self> {
            Ok(Self(LEVEL.get(host)?))
        }

        fn describe(&self) -> Description {
            Description::new("odd", "1").medium(Medium::Image).encoder("known").option(LEVEL)
        }
    }

    impl Scorer for Odd {
        fn scale(&self) -> Scale {
            Scale::higher_is_better().at_most(10.0)
        }

        fn score(&self, batch: &Batch) -> Result<Vec<f64>> {
            if self.0 == 0 {
                batch.embedding("unknown")?;
            }
            Ok(vec![self.0 as f64; batch.len().min(2)])
        }
    }

    fn score(value: &str, n: usize) -> Result<Vec<f64>> {
        let host = FakeHost::new().option("level", value);
        let plugin = host.load::<Odd>()?;
        plugin.score(&FakeBatch::new(vec![FakeSample::default(); n]))
    }

    #[test]
    fn what_the_real_host_refuses_is_refused() {
        assert_eq!(score("3", 2).expect("two samples"), [3.0, 3.0]);
        let message = |value: &str, n: usize| score(value, n).expect_err(value).to_string();
        assert_eq!(message("11", 1), "sample 0: the score 11 is above its maximum 10");
        assert_eq!(message("3", 3), "the plugin gave 2 scores, it should give 3");
        assert_eq!(message("high", 1), "the option `level` is `high`, which is no integer");
        let undeclared = "the plugin asks for the encoder `unknown`, which its description does not declare";
        assert_eq!(message("0", 1), undeclared);
        let host = FakeHost::new().option("lvl", "3");
        let message = host.load::<Odd>().err().expect("no such option").to_string();
        assert_eq!(message, "the plugin has no option `lvl`, only level");
    }

    #[test]
    fn frames_are_resized_as_images_are() {
        let frame = |level: u8| Image { width: 2, height: 2, rgb: vec![level; 12] };
        let batch = FakeBatch::new([FakeSample::video(vec![frame(10), frame(200)], 24.0)]);
        let host = FakeHost::new();
        let samples = backend::Batch { host: &host, batch: &batch, declared: &[] };
        let batch = Batch::from_backend(host.host(), samples);
        assert_eq!(batch.video(0).expect("a video").frames, 2);
        assert_eq!(batch.frame_resized(0, 1, 1, 1).expect("a frame").rgb, [200; 3]);
        let message = batch.frame(0, 2).expect_err("two frames").to_string();
        assert_eq!(message, "the video of sample 0 has no frame 2, but 2 frames");
        assert!(batch.image(0).is_err() && batch.tensor(0).is_err());
    }
}
