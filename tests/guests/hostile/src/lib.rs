//! A plugin that misbehaves according to its configuration's `fault`. Faults that the SDK would reject bypass it.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambiguity_sdk::{
    Batch, Classifier, Description, Distribution, Distributions, Error, Gradient, Host, Level, Matrix, Medium,
    PixelGradient, Plugin, PluginOption, Result,
};

/// The part that uses the SDK.
pub struct Hostile {
    fault: String,
    encoder: Option<String>,
}

const FAULT: PluginOption<&str> = PluginOption::new("fault", "", "What the plugin does wrong");
const ENCODER: PluginOption<&str> = PluginOption::without_default("encoder", "The encoder that it declares");

impl Plugin for Hostile {
    fn new(host: &Host) -> Result<Self> {
        let fault = FAULT.get(host)?;
        match fault.as_str() {
            "describe-error" => return Err(Error::new("the moon is in the wrong house")),
            "describe-panic" => panic!("no description today"),
            _ => {}
        }
        Ok(Self { fault, encoder: ENCODER.find(host)? })
    }

    fn describe(&self) -> Description {
        let description = Description::new("hostile", env!("CARGO_PKG_VERSION")).medium(Medium::Image);
        let description = description.option(FAULT).option(ENCODER);
        match &self.encoder {
            Some(encoder) => description.encoder(encoder),
            None => description,
        }
    }
}

impl Classifier for Hostile {
    fn styles(&self) -> Vec<String> {
        let styles: &[&str] = match self.fault.as_str() {
            "one-style" => &["only"],
            "escape" => &["a", "\u{1b}[2Jb"],
            "same-styles" => &["twin", "twin"],
            _ => &["a", "b"],
        };
        styles.iter().map(|&style| style.to_owned()).collect()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        let host = batch.host();
        match self.fault.as_str() {
            "panic" => {
                let pixels = batch.image(1)?.rgb;
                assert_eq!(pixels.len(), 7, "pixels of sample 1");
            }
            "loop" => loop {
                black_box(());
            },
            "memory" => {
                let mut hoard = Vec::new();
                loop {
                    hoard.push(black_box(vec![1u8; 1 << 20]));
                }
            }
            "recursion" => {
                log_depth(host, recurse(1));
            }
            "stack" => {
                log_depth(host, descend(batch.len() as u64));
            }
            "error" => {
                batch.image(1)?;
                return Err(Error::new("sample 1 is too beautiful"));
            }
            "no-text" => drop(batch.text(1)?),
            "no-sample" => drop(batch.prompt(9)),
            "undeclared" => drop(batch.embedding("means")?),
            "asset" => drop(host.asset("missing.bin")?),
            "embedding" => drop(batch.embedding("means")?),
            "remember" => {
                // A second batch would find the first one's count if the instance were not a fresh one.
                static SEEN: AtomicUsize = AtomicUsize::new(0);
                let before = SEEN.fetch_add(batch.len(), Ordering::Relaxed);
                assert_eq!(before, 0, "there were batches before this one");
            }
            "resample" => loop {
                black_box(batch.image_resized(0, 1000, 1000)?);
            },
            "texts" => loop {
                black_box(batch.embed_texts("means", &vec!["the same"; 1000])?);
            },
            "chatter" => return Err(Error::new("bla ".repeat(100_000))),
            // In a run: one batch of the second epoch, or all of them.
            "second-epoch" | "second-epoch-batch" => {
                let is = |key: &str, value: &str| batch.metadata(0, key).as_deref() == Some(value);
                if is("epoch", "2") && (self.fault == "second-epoch" || is("sample", "0")) {
                    return Err(Error::new("the second epoch is not to my taste"));
                }
                // Different for each image, so that there is something to learn from.
                return (0..batch.len())
                    .map(|i| {
                        let red = batch.image(i)?.rgb.iter().step_by(3).map(|&x| f32::from(x)).sum::<f32>();
                        Distribution::softmax(vec![red.sqrt().sin(), 0.0])
                    })
                    .collect();
            }
            "log" => host.log(Level::Error, "only said, not meant"),
            _ => {}
        }
        (0..batch.len()).map(|_| Distribution::new(vec![0.25, 0.75])).collect()
    }
}

impl Gradient for Hostile {
    /// Returns zeros, unless a fault is configured.
    fn embedding_vjp(&self, batch: &Batch, encoder: &str, upstream: &Matrix) -> Result<Matrix> {
        match self.fault.as_str() {
            "vjp-panic" => panic!("no way down"),
            "vjp-error" => return Err(Error::new("it is all flat from here")),
            "vjp-loop" => loop {
                black_box(());
            },
            _ => {}
        }
        Ok(Matrix::zeros(upstream.n_rows(), batch.embedding(encoder)?.n_cols()))
    }
}

impl PixelGradient for Hostile {
    /// Returns zeros, unless a fault is configured.
    fn pixel_vjp(&self, batch: &Batch, i: usize, _upstream: &[f32]) -> Result<Vec<f32>> {
        let mut gradient = vec![0.0; batch.image(i)?.rgb.len()];
        match self.fault.as_str() {
            "pixel-nan" => gradient[1] = f32::NAN,
            "pixel-short" => gradient.truncate(4),
            _ => {}
        }
        Ok(gradient)
    }
}

#[expect(unconditional_recursion, reason = "that is the fault")]
#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let local = black_box([depth; 64]);
    recurse(depth + 1) + local[(depth % 64) as usize]
}

/// Recurses without locals in memory, so that the call stack overflows.
#[expect(unconditional_recursion, reason = "that is the fault")]
#[inline(never)]
fn descend(depth: u64) -> u64 {
    (descend(depth + 1) ^ depth).wrapping_mul(3)
}

fn log_depth(host: &Host, depth: u64) {
    host.log(Level::Info, depth);
}

#[cfg(target_arch = "wasm32")]
mod raw {
    use ambiguity_sdk::Glue;
    use ambiguity_sdk::bindings::classifier::exports::ambiguity::plugin::classifier;
    use ambiguity_sdk::bindings::gradient::exports::ambiguity::plugin::gradient;
    use ambiguity_sdk::bindings::pixel_gradient::exports::ambiguity::plugin::pixel_gradient;
    use ambiguity_sdk::bindings::plugin::ambiguity::plugin::{config, encoders, log, samples, types};
    use ambiguity_sdk::bindings::plugin::exports::ambiguity::plugin::description;

    use super::{Hostile, black_box};

    /// The part that bypasses the SDK.
    struct Raw;

    fn fault() -> String {
        config::get("fault").unwrap_or_default()
    }

    impl description::Guest for Raw {
        fn describe() -> Result<description::Description, String> {
            let mut described = <Glue<Hostile> as description::Guest>::describe()?;
            match fault().as_str() {
                "describe-encoder" => described.name = encoders::info("means")?.digest,
                "medium" => described.media.push("smell\u{1b}[2J".to_owned()),
                "no-medium" => described.media.clear(),
                "long-option" => described.options[0].help = "very ".repeat(1000),
                "same-options" => {
                    let option = described.options[0].clone();
                    described.options.push(option);
                }
                "bad-default" => {
                    described.options[1].value_type = description::OptionType::Integer;
                    described.options[1].default = Some("seven".to_owned());
                }
                "escape-property" => described.properties.push(("unit".to_owned(), "k\u{1b}[2JB".to_owned())),
                _ => {}
            }
            Ok(described)
        }
    }

    impl classifier::Guest for Raw {
        fn styles() -> Result<Vec<String>, String> {
            match fault().as_str() {
                "styles-error" => Err("no styles today".to_owned()),
                "long-name" => Ok(vec!["a".to_owned(), "b".repeat(70_000)]),
                _ => <Glue<Hostile> as classifier::Guest>::styles(),
            }
        }

        fn classify(batch: &samples::Batch) -> Result<types::Matrix, String> {
            let [quarter, half, most] = [0.25f32, 0.5, 0.75].map(f32::ln);
            let (rows, cols, data) = match fault().as_str() {
                "nan" => (2, 2, vec![quarter, most, f32::NAN, 0.0]),
                "zero" => (2, 2, vec![quarter, most, f32::NEG_INFINITY, 0.0]),
                "probabilities" => (2, 2, vec![0.25, 0.75, 0.5, 0.5]),
                "sum" => (2, 2, vec![quarter, most, half, most]),
                "rows" => (1, 2, vec![quarter, most]),
                "columns" => (2, 3, vec![quarter, half, quarter, quarter, half, quarter]),
                "flood" => (2, 2, vec![half; 1 << 20]),
                "short" => (2, 2, vec![quarter, most]),
                "abort" => std::process::abort(),
                "forge" => return Err("fine\nwarning: it is\r\u{202e}\u{2028}\u{1b}]0;title\u{7}".to_owned()),
                "spam" => {
                    (0..1000).for_each(|i| log::write(log::Level::Info, &format!("line {i}\n INFO forged\u{1b}[2J")));
                    (2, 2, vec![quarter, most, quarter, most])
                }
                "long-texts" => {
                    let texts = vec!["very long ".repeat(100_000); 9];
                    return Err(format!("{:?}", encoders::embed_texts("means", &texts).map(|matrix| matrix.rows)));
                }
                "nan-bits" => {
                    // x86-64 makes a NaN with its sign set, ARM one without.
                    let nan = black_box(0.0f32) / black_box(0.0);
                    log::write(log::Level::Warn, &format!("{:x}", nan.to_bits()));
                    let (a, b) = if nan.to_bits() == 0x7fc0_0000 { (most, quarter) } else { (quarter, most) };
                    (2, 2, vec![a, b, a, b])
                }
                "grow" => loop {
                    black_box(core::arch::wasm32::memory_grow(0, 4096));
                },
                "fill" => {
                    // One instruction writes 16 MiB.
                    let mut bytes = vec![0u8; 1 << 24];
                    for i in 0..1_000_000u32 {
                        black_box(&mut bytes[..]).fill(i as u8);
                    }
                    (2, 2, vec![quarter, most, quarter, most])
                }
                "no-frame" => return Err(format!("{:?}", batch.video(0).map(|video| video.frames))),
                "no-array" => return Err(format!("{:?}", batch.tensor(1).map(|tensor| tensor.shape))),
                "tokens" => return Err(format!("{:?}", batch.token_features("means", 1).map(|matrix| matrix.rows))),
                "no-tokens" => return Err(format!("{:?}", batch.token_features("means", 7).map(|matrix| matrix.rows))),
                _ => return <Glue<Hostile> as classifier::Guest>::classify(batch),
            };
            Ok(types::Matrix { rows, cols, data })
        }
    }

    impl gradient::Guest for Raw {
        fn embedding_vjp(
            batch: &samples::Batch,
            encoder: String,
            upstream: types::Matrix,
        ) -> Result<types::Matrix, String> {
            let (rows, cols, data) = match fault().as_str() {
                "vjp-nan" => (2, 3, vec![0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]),
                "vjp-rows" => (1, 3, vec![0.0; 3]),
                "vjp-columns" => (2, 2, vec![0.0; 4]),
                "vjp-short" => (2, 3, vec![0.0; 5]),
                _ => return <Glue<Hostile> as gradient::Guest>::embedding_vjp(batch, encoder, upstream),
            };
            Ok(types::Matrix { rows, cols, data })
        }
    }

    impl pixel_gradient::Guest for Raw {
        fn pixel_vjp(batch: &samples::Batch, i: u32, upstream: Vec<f32>) -> Result<Vec<f32>, String> {
            <Glue<Hostile> as pixel_gradient::Guest>::pixel_vjp(batch, i, upstream)
        }
    }

    ambiguity_sdk::bindings::plugin::export_plugin!(Raw with_types_in ambiguity_sdk::bindings::plugin);
    ambiguity_sdk::bindings::classifier::export_classifier!(Raw with_types_in ambiguity_sdk::bindings::classifier);
    ambiguity_sdk::bindings::gradient::export_gradient!(Raw with_types_in ambiguity_sdk::bindings::gradient);
    ambiguity_sdk::bindings::pixel_gradient::export_pixel_gradient!(Raw with_types_in ambiguity_sdk::bindings::pixel_gradient);
    ambiguity_sdk::sections!();
}
