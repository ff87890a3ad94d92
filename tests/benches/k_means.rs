//! The cost of the sandbox: soft k-means over 27 centers of 768 dimensions, the same code as a WebAssembly component
//! under the host and natively at -O3 without target-cpu. Each time is the minimum of many, in CPU time of the one
//! thread, so that other work on the machine matters little.
//!
//! `arithmetic` is the distributions of one batch whose embeddings are in the plugin's memory; `call` is all of
//! `classify` in the k-means template: a fresh instance, the manifest, centers and embeddings copied in, the
//! distributions copied out and checked. Natively a call copies centers and embeddings too.
//!
//! ```text
//! cargo bench --workspace --bench k_means
//! ```

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ambiguity_host::encoders::{Encoder, EncoderError, EncoderInfo, Encoders};
use ambiguity_host::plugin::artifact::encode_tensor;
use ambiguity_host::plugin::fit::bake_k_means;
use ambiguity_host::plugin::{Artifact, Batch, Limits, PluginHost, Sample};
use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};
use ambiguity_sdk::{EncoderPin, Manifest, Medium};
use anyhow::{Context as _, Result, ensure};
use image::RgbImage;
use ndarray::Array2;

const STYLES: usize = 27;
const DIM: usize = 768;

/// The time for which each row is measured.
const MEASURED: Duration = Duration::from_millis(1000);

/// Embeddings that exist already.
struct Fixed(Array2<f32>);

impl Encoder for Fixed {
    fn info(&self) -> EncoderInfo {
        EncoderInfo { dim: DIM, digest: "fixed".into(), ..EncoderInfo::default() }
    }

    fn embed_images(&self, images: &[Arc<RgbImage>]) -> Result<Array2<f32>, EncoderError> {
        Ok(self.0.slice(ndarray::s![..images.len(), ..]).to_owned())
    }

    fn embed_texts(&self, texts: &[String]) -> Result<Array2<f32>, EncoderError> {
        Ok(Array2::zeros((texts.len(), DIM)))
    }
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the tests are not in a workspace")?;
    let folder = tempfile::tempdir()?;
    let centers = array(&numbers(1, STYLES, DIM));
    let kmeans = folder.path().join("kmeans.wasm");
    std::fs::write(&kmeans, bake_k_means(&manifest(), &centers, None)?)?;
    let rounds = folder.path().join("rounds.wasm");
    let assets = [("centers", encode_tensor("centers", &centers))];
    std::fs::write(&rounds, Artifact::bake(&std::fs::read(built(root, "rounds")?)?, &assets)?)?;

    println!("soft k-means, {STYLES} x {DIM}, microseconds, minimum over {} ms each", MEASURED.as_millis());
    println!("{:<24} {:>10} {:>10} {:>7}", "", "native", "wasm", "ratio");
    for n in [8, 256] {
        let row = |what: &str, native: f64, wasm: f64| {
            println!("{:<24} {native:>10.1} {wasm:>10.1} {:>6.2}x", format!("{what}, batch {n}"), wasm / native);
        };
        // A round is the difference between many rounds and one; a round's copy of the embeddings is subtracted.
        let many = if n == 8 { 101 } else { 5 };
        let round = |run: &dyn Fn(usize, &str) -> Result<f64>| -> Result<f64> {
            let of = |work| Ok::<_, anyhow::Error>(run(many, work)? - run(1, work)?);
            Ok((of("classify")? - of("copy")?) / (many - 1) as f64)
        };
        let native = round(&|rounds, work| {
            Ok(native_call::<rounds::Rounds>(n, &[("rounds", &rounds.to_string()), ("work", work)]))
        })?;
        let wasm = round(&|count, work| wasm_call(&rounds, n, &[("rounds", &count.to_string()), ("work", work)]))?;
        row("arithmetic", native, wasm);
        row("call", native_call::<kmeans::KMeans>(n, &[]), wasm_call(&kmeans, n, &[])?);
    }
    Ok(())
}

fn manifest() -> Manifest {
    Manifest {
        name: "kmeans".into(),
        version: "1.0.0".into(),
        media: vec![Medium::Image],
        styles: (0..STYLES).map(|i| format!("style-{i:02}")).collect(),
        encoder: Some(EncoderPin { name: "clip".into(), digest: "fixed".into() }),
        normalize: true,
        ..Manifest::default()
    }
}

/// Microseconds of a plugin's call, natively against the fake host.
fn native_call<P: ambiguity_sdk::Classifier>(n: usize, options: &[(&str, &str)]) -> f64 {
    let host = FakeHost::new().asset(Manifest::ASSET, manifest().to_json()).tensor("centers", numbers(1, STYLES, DIM));
    let host = options.iter().fold(host, |host, (key, value)| host.option(key, value));
    let plugin = host.load::<P>().expect("it has these options");
    let batch = FakeBatch::new(vec![FakeSample::default(); n]).embedding("clip", numbers(2, n, DIM));
    minimum(|| {
        black_box(plugin.classify(&batch).expect("a good batch"));
    })
}

/// Microseconds of a plugin's call under the host.
fn wasm_call(plugin: &Path, n: usize, options: &[(&str, &str)]) -> Result<f64> {
    let limits = Limits { fuel: u64::MAX >> 16, timeout_ms: 60_000, ..Limits::default() };
    let config: BTreeMap<_, _> = options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    let mut plugin = PluginHost::new(limits, None)?.load(&plugin.to_string_lossy(), config)?;
    let mut encoders = Encoders::new();
    encoders.add("clip", Box::new(Fixed(array(&numbers(2, n, DIM)))));
    let sample = Sample { image: Some(Arc::new(RgbImage::new(1, 1))), ..Sample::default() };
    let mut batch = Batch::new(vec![sample; n]);
    plugin.classify(&mut batch, &mut encoders)?;
    Ok(minimum(|| {
        black_box(plugin.classify(&mut batch, &mut encoders).expect("it worked before"));
    }))
}

/// The minimum time of a run, in microseconds.
fn minimum(mut run: impl FnMut()) -> f64 {
    let (started, mut minimum) = (cpu_time(), Duration::MAX);
    while cpu_time() - started < MEASURED {
        let start = cpu_time();
        run();
        minimum = minimum.min(cpu_time() - start);
    }
    minimum.as_secs_f64() * 1e6
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: Linux has this clock, and the time is written to a valid reference of ours.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "the thread's clock can be read");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn array(matrix: &ambiguity_sdk::Matrix) -> Array2<f32> {
    Array2::from_shape_fn((matrix.n_rows(), matrix.n_cols()), |(i, j)| matrix.row(i)[j])
}

/// A guest of the tests, built from its source.
fn built(root: &Path, package: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo).current_dir(root).args(["build-plugin", "--quiet", "-p", package]).status()?;
    ensure!(status.success(), "{package} does not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("wasm32-unknown-unknown/plugin").join(format!("{package}.wasm")))
}
