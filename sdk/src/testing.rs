//! A fake host, so that `cargo test` runs plugin code natively: images, texts, recordings, embeddings, encoders, assets,
//! configuration, the log.
//!
//! The crate's documentation has an example.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::batch::{Audio, Batch, Image};
use crate::classifier::{Classifier, Description, Gradient};
use crate::distribution::Distributions;
use crate::error::{Error, Result};
use crate::host::{EncoderInfo, Level};
use crate::matrix::Matrix;

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

/// The samples of a fake host.
#[derive(Default)]
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
}

thread_local! {
    /// The host that serves plugin code on this thread, while it runs.
    static SERVING: RefCell<FakeHost> = RefCell::default();
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

    /// Sets a value of the configuration.
    pub fn config(mut self, key: &str, value: &str) -> Self {
        self.config.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an encoder, with a function that embeds texts.
    pub fn encoder(mut self, name: &str, info: EncoderInfo, texts: impl Fn(&str) -> Vec<f32> + 'static) -> Self {
        self.encoders.insert(name.to_owned(), (info, Box::new(texts)));
        self
    }

    /// Asks a plugin to describe itself.
    pub fn describe<P: Classifier>(&mut self) -> Result<Description> {
        self.serve(P::describe)
    }

    /// Asks a plugin to classify, and checks the shape of the result.
    pub fn classify<P: Classifier>(&mut self, batch: FakeBatch) -> Result<Distributions> {
        let n_styles = self.describe::<P>()?.styles.len();
        let distributions = self.serve(|| P::classify(&Batch::fake(&batch)))?;
        let (found, wanted) = ((distributions.len(), distributions.n_styles()), (batch.samples.len(), n_styles));
        if found != wanted {
            return Err(Error::new(format!("the plugin gave {found:?} (samples, styles), it should give {wanted:?}")));
        }
        Ok(distributions)
    }

    /// Asks a plugin for its gradient.
    pub fn embedding_vjp<P: Gradient>(&mut self, batch: &FakeBatch, upstream: &Matrix) -> Result<Matrix> {
        self.serve(|| P::embedding_vjp(&Batch::fake(batch), upstream))
    }

    /// Returns the error of a plugin's gradient, as [`vjp_error`], at embeddings by the one encoder that it declares.
    /// For an exact gradient it is below 0.01.
    pub fn gradient_error<P: Gradient>(&mut self, embeddings: &Matrix) -> Result<f32> {
        let description = self.describe::<P>()?;
        let [encoder] = &description.encoders[..] else {
            return Err(Error::new("a gradient needs a plugin with exactly one encoder"));
        };
        let batch = |embeddings: Matrix| {
            FakeBatch::new(vec![FakeSample::default(); embeddings.n_rows()]).embedding(encoder, embeddings)
        };
        let upstream = numbers(7, embeddings.n_rows(), description.styles.len());
        let host = RefCell::new(self);
        vjp_error(
            embeddings,
            &upstream,
            |x| host.borrow_mut().classify::<P>(batch(x)),
            |x, upstream| host.borrow_mut().embedding_vjp::<P>(&batch(x), upstream),
        )
    }

    /// Returns the messages that the plugin logged.
    pub fn logged(&self) -> Vec<(Level, String)> {
        self.logged.borrow().clone()
    }

    /// Runs plugin code with this host behind [`crate::host`].
    pub fn serve<T>(&mut self, code: impl FnOnce() -> T) -> T {
        // Moved in and back out, also when the plugin panics: a test that expects the panic can still use its host.
        struct Guard<'a>(&'a mut FakeHost);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                SERVING.with_borrow_mut(|serving| std::mem::swap(serving, self.0));
            }
        }
        SERVING.with_borrow_mut(|serving| std::mem::swap(serving, self));
        let _guard = Guard(self);
        code()
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

impl<'a> Batch<'a> {
    /// Returns the batch for plugin code that is called inside [`FakeHost::serve`].
    pub fn fake(batch: &'a FakeBatch) -> Self {
        Self::from_backend(backend::Batch(batch))
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
    function: impl Fn(Matrix) -> Result<Distributions>,
    vjp: impl Fn(Matrix, &Matrix) -> Result<Matrix>,
) -> Result<f32> {
    const STEP: f32 = 4e-3;
    let loss = |x: Matrix| -> Result<f64> {
        let p = function(x)?.into_matrix();
        Ok(p.as_slice().iter().zip(upstream.as_slice()).map(|(&p, &u)| f64::from(p) * f64::from(u)).sum())
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

/// The functions that `crate::host` and `crate::batch` call when they are compiled natively.
pub(crate) mod backend {
    use super::{FakeBatch, FakeHost, FakeSample, SERVING};
    use crate::batch::{Audio, Image};
    use crate::host::{EncoderInfo, Level};
    use crate::matrix::Matrix;

    type Answer<T> = Result<T, String>;

    fn ask<T>(question: impl FnOnce(&FakeHost) -> T) -> T {
        SERVING.with_borrow(question)
    }

    pub fn asset_names() -> Vec<String> {
        ask(|host| {
            let mut names: Vec<String> = host.assets.keys().chain(host.tensors.keys()).cloned().collect();
            names.sort();
            names
        })
    }

    pub fn asset_bytes(name: &str) -> Answer<Vec<u8>> {
        ask(|host| host.assets.get(name).cloned().ok_or_else(|| format!("the fake host has no asset `{name}`")))
    }

    pub fn asset_tensor(name: &str) -> Answer<Matrix> {
        ask(|host| host.tensors.get(name).cloned().ok_or_else(|| format!("the fake host has no tensor `{name}`")))
    }

    pub fn config(key: &str) -> Option<String> {
        ask(|host| host.config.get(key).cloned())
    }

    pub fn log(level: Level, message: &str) {
        ask(|host| host.logged.borrow_mut().push((level, message.to_owned())));
    }

    pub fn encoder_info(encoder: &str) -> Answer<EncoderInfo> {
        ask(|host| match host.encoders.get(encoder) {
            Some((info, _)) => Ok(info.clone()),
            None => Err(format!("the fake host has no encoder `{encoder}`")),
        })
    }

    pub fn embed_texts(encoder: &str, texts: &[String]) -> Answer<Matrix> {
        ask(|host| {
            let (_, embed) = host.encoders.get(encoder).ok_or(format!("the fake host has no encoder `{encoder}`"))?;
            let rows: Vec<Vec<f32>> = texts.iter().map(|text| embed(text)).collect();
            Matrix::from_rows(&rows).map_err(|e| e.to_string())
        })
    }

    pub struct Batch<'a>(pub &'a FakeBatch);

    impl Batch<'_> {
        fn sample(&self, i: u32) -> Answer<&FakeSample> {
            self.0.samples.get(i as usize).ok_or_else(|| format!("the batch has no sample {i}"))
        }

        pub fn len(&self) -> u32 {
            self.0.samples.len() as u32
        }

        pub fn prompt(&self, i: u32) -> String {
            self.sample(i).map(|sample| sample.prompt.clone()).unwrap_or_else(|message| panic!("{message}"))
        }

        pub fn metadata(&self, i: u32, key: &str) -> Option<String> {
            self.sample(i).map(|sample| sample.metadata.get(key).cloned()).unwrap_or_else(|message| panic!("{message}"))
        }

        pub fn image(&self, i: u32) -> Answer<Image> {
            self.sample(i)?.image.clone().ok_or_else(|| format!("sample {i} is no image"))
        }

        /// Resizes by the nearest pixel: enough for a test, but not the host's filter.
        pub fn image_resized(&self, i: u32, width: u32, height: u32) -> Answer<Image> {
            let image = self.image(i)?;
            let (width, height) = (width as usize, height as usize);
            let mut rgb = Vec::with_capacity(width * height * 3);
            for y in 0..height {
                for x in 0..width {
                    let source = (y * image.height / height) * image.width + x * image.width / width;
                    rgb.extend_from_slice(&image.rgb[source * 3..][..3]);
                }
            }
            Ok(Image { width, height, rgb })
        }

        pub fn text(&self, i: u32) -> Answer<String> {
            self.sample(i)?.text.clone().ok_or_else(|| format!("sample {i} is no text"))
        }

        pub fn audio(&self, i: u32) -> Answer<Audio> {
            self.sample(i)?.audio.clone().ok_or_else(|| format!("sample {i} is no recording"))
        }

        pub fn embedding(&self, encoder: &str) -> Answer<Matrix> {
            let found = self.0.embeddings.get(encoder);
            found.cloned().ok_or_else(|| format!("the fake batch has no embeddings by `{encoder}`"))
        }
    }
}
