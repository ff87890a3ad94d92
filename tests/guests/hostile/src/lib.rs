//! A plugin that misbehaves according to its configuration's `fault`. Faults that the SDK would reject bypass it.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambiguity_sdk::{
    Batch, Classifier, Description, Distribution, Distributions, Error, Gradient, Matrix, Result, host,
};

/// The part that uses the SDK.
pub struct Hostile;

impl Classifier for Hostile {
    fn describe() -> Result<Description> {
        let styles: &[&str] = match fault().as_str() {
            "describe-error" => return Err(Error::new("the moon is in the wrong house")),
            "describe-panic" => panic!("no description today"),
            "describe-encoder" => &[host::encoder_info("means")?.digest.leak()],
            "one-style" => &["only"],
            "escape" => &["a", "\u{1b}[2Jb"],
            "same-styles" => &["twin", "twin"],
            _ => &["a", "b"],
        };
        let description =
            Description::new("hostile", env!("CARGO_PKG_VERSION")).styles(styles.to_vec()).medium("image");
        Ok(match host::config("encoder") {
            Some(encoder) => description.encoder(encoder),
            None => description,
        })
    }

    fn classify(batch: &Batch) -> Result<Distributions> {
        match fault().as_str() {
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
                log_depth(recurse(1));
            }
            "stack" => {
                log_depth(descend(batch.len() as u64));
            }
            "error" => {
                batch.image(1)?;
                return Err(Error::new("sample 1 is too beautiful"));
            }
            "no-text" => drop(batch.text(1)?),
            "no-sample" => drop(batch.prompt(9)),
            "undeclared" => drop(batch.embedding("means")?),
            "asset" => drop(host::asset("missing.bin")?),
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
                black_box(host::embed_texts("means", &vec!["the same"; 1000])?);
            },
            "chatter" => return Err(Error::new("bla ".repeat(100_000))),
            // In a run: one batch of the second epoch, or all of them.
            "second-epoch" | "second-epoch-batch" => {
                let is = |key: &str, value: &str| batch.metadata(0, key).as_deref() == Some(value);
                if is("epoch", "2") && (fault() == "second-epoch" || is("sample", "0")) {
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
            "log" => host::log(host::Level::Error, "only said, not meant"),
            _ => {}
        }
        (0..batch.len()).map(|_| Distribution::new(vec![0.25, 0.75])).collect()
    }
}

impl Gradient for Hostile {
    /// Returns zeros, unless a fault is configured.
    fn embedding_vjp(batch: &Batch, upstream: &Matrix) -> Result<Matrix> {
        match fault().as_str() {
            "vjp-panic" => panic!("no way down"),
            "vjp-error" => return Err(Error::new("it is all flat from here")),
            "vjp-loop" => loop {
                black_box(());
            },
            _ => {}
        }
        Ok(Matrix::zeros(upstream.n_rows(), batch.embedding("means")?.n_cols()))
    }
}

fn fault() -> String {
    host::config("fault").unwrap_or_default()
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

fn log_depth(depth: u64) {
    host::log(host::Level::Info, depth);
}

#[cfg(target_arch = "wasm32")]
mod raw {
    use ambiguity_sdk::Glue;
    use ambiguity_sdk::bindings::gradient::exports::ambiguity::plugin::gradient;
    use ambiguity_sdk::bindings::plugin::ambiguity::plugin::{samples, types};
    use ambiguity_sdk::bindings::plugin::exports::ambiguity::plugin::classifier::{Description, Guest};

    use super::{Hostile, black_box, fault, host};

    /// The part that bypasses the SDK.
    struct Raw;

    impl Guest for Raw {
        fn describe() -> Result<Description, String> {
            let described = <Glue<Hostile> as Guest>::describe();
            match fault().as_str() {
                "long-name" => {
                    described.map(|it| Description { styles: vec!["a".to_owned(), "b".repeat(70_000)], ..it })
                }
                _ => described,
            }
        }

        fn classify(batch: &samples::Batch) -> Result<types::Matrix, String> {
            let (rows, cols, data) = match fault().as_str() {
                "nan" => (2, 2, vec![0.25, 0.75, f32::NAN, 1.0]),
                "negative" => (2, 2, vec![-0.25, 1.25, 0.5, 0.5]),
                "sum" => (2, 2, vec![0.25, 0.75, 0.5, 0.75]),
                "rows" => (1, 2, vec![0.25, 0.75]),
                "columns" => (2, 3, vec![0.25, 0.5, 0.25, 0.25, 0.5, 0.25]),
                "flood" => (2, 2, vec![0.5; 1 << 20]),
                "short" => (2, 2, vec![0.25, 0.75]),
                "abort" => std::process::abort(),
                "forge" => return Err("fine\nwarning: it is\r\u{202e}\u{2028}\u{1b}]0;title\u{7}".to_owned()),
                "spam" => {
                    (0..1000).for_each(|i| host::log(host::Level::Info, format!("line {i}\n INFO forged\u{1b}[2J")));
                    (2, 2, vec![0.25, 0.75, 0.25, 0.75])
                }
                "long-texts" => {
                    let texts = vec!["very long ".repeat(100_000); 9];
                    return Err(format!("{:?}", host::embed_texts("means", &texts).map(|matrix| matrix.n_rows())));
                }
                "nan-bits" => {
                    // x86-64 makes a NaN with its sign set, ARM one without.
                    let nan = black_box(0.0f32) / black_box(0.0);
                    host::log(host::Level::Warn, format!("{:x}", nan.to_bits()));
                    let p = if nan.to_bits() == 0x7fc0_0000 { 0.75 } else { 0.25 };
                    (2, 2, vec![p, 1.0 - p, p, 1.0 - p])
                }
                "grow" => loop {
                    black_box(core::arch::wasm32::memory_grow(0, 4096));
                },
                _ => return <Glue<Hostile> as Guest>::classify(batch),
            };
            Ok(types::Matrix { rows, cols, data })
        }
    }

    impl gradient::Guest for Raw {
        fn embedding_vjp(batch: &samples::Batch, upstream: types::Matrix) -> Result<types::Matrix, String> {
            let (rows, cols, data) = match fault().as_str() {
                "vjp-nan" => (2, 3, vec![0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0]),
                "vjp-rows" => (1, 3, vec![0.0; 3]),
                "vjp-columns" => (2, 2, vec![0.0; 4]),
                "vjp-short" => (2, 3, vec![0.0; 5]),
                _ => return <Glue<Hostile> as gradient::Guest>::embedding_vjp(batch, upstream),
            };
            Ok(types::Matrix { rows, cols, data })
        }
    }

    ambiguity_sdk::bindings::plugin::export_plugin!(Raw with_types_in ambiguity_sdk::bindings::plugin);
    ambiguity_sdk::bindings::gradient::export_gradient!(Raw with_types_in ambiguity_sdk::bindings::gradient);
    ambiguity_sdk::sections!();
}
