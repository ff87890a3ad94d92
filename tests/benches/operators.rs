//! The operators of an epoch of fine-tuning: their time, and the share of the machine's matrix rate that products and
//! convolutions reach. The epoch is that of the preset tiny-art, rewards included, after one that warms up; what follows
//! `--` changes keys of the configuration, as `host train --set` does, or the number of threads.
//!
//! ```text
//! cargo bench --workspace --bench operators
//! cargo bench --workspace --bench operators -- threads=1 model.dtype='"bf16"'
//! ```

use std::time::Instant;

use ambiguity_host::config::{FineTuneConfig, Layer};
use ambiguity_host::context::Context;
use ambiguity_host::progress::Progress;
use ambiguity_host::tasks::fine_tune::FineTune;
use ambiguity_host::trainer::{Start, Task};
use anyhow::Result;
use tch::{Device, Kind, Tensor, no_grad};
use test_support::root;
use torch_ext::{Operator, profiled};

/// Number of rows of the table.
const ROWS: usize = 20;
/// Width of the square matrices whose product is the matrix rate.
const WIDTH: i64 = 1024;
/// Number of products of which the fastest counts.
const PRODUCTS: usize = 40;

fn main() -> Result<()> {
    torch_ext::keep_memory();
    let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
    let plugin = root().join("plugins/kmeans_image.wasm");
    let text = format!("[[reward.plugin]]\nsource = {}\n", toml::Value::from(plugin.display().to_string()));
    let mut layers = vec![Layer { origin: "the benchmark".to_owned(), text }];
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.strip_prefix("threads=") {
            Some(number) => threads = number.parse()?,
            None => layers.push(Layer::set(&argument)?),
        }
    }
    tch::set_num_threads(i32::try_from(threads)?);
    let config = FineTuneConfig::resolve("tiny-art", &layers)?;
    let (kind, device) = (config.model.dtype.kind(), torch_ext::cuda::device(&config.run.device)?);
    let progress = Progress::new(true);
    let bar = progress.bar("operators", 2 * config.sample.per_epoch() as u64, "images");
    let context = Context { threads, progress, ..Context::quiet() };
    let folder = tempfile::tempdir()?;
    let (mut task, _claim) = FineTune::open(config, Start::New(folder.path().join("run")), &context)?;
    task.train_epoch(1, &bar)?;
    let before = matrix_rate(kind, device);
    let clock = Instant::now();
    let (trained, operators) = profiled(|| task.train_epoch(2, &bar))?;
    let seconds = clock.elapsed().as_secs_f64();
    let rate = before.max(matrix_rate(kind, device));
    let parts = trained?.record.seconds;
    println!(
        "{threads} threads, {kind:?}, {:.1} GFLOP/s in products of {WIDTH} x {WIDTH}; epoch of {seconds:.2} s: sampling \
         {:.2}, rewards {:.2}, update {:.2}\n",
        rate / 1e9,
        parts.sample,
        parts.reward,
        parts.train
    );
    print!("{}", table(operators, seconds, rate));
    Ok(())
}

/// The fastest of some products of square matrices, in floating-point operations per second.
fn matrix_rate(kind: Kind, device: Device) -> f64 {
    let matrix = Tensor::randn([WIDTH, WIDTH], (Kind::Float, device)).to_kind(kind);
    let product = |_| {
        let clock = Instant::now();
        let product = no_grad(|| matrix.matmul(&matrix));
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        drop(product);
        clock.elapsed().as_secs_f64()
    };
    let fastest = (0..PRODUCTS).map(product).fold(f64::INFINITY, f64::min);
    2.0 * (WIDTH * WIDTH * WIDTH) as f64 / fastest
}

fn table(mut operators: Vec<Operator>, seconds: f64, rate: f64) -> String {
    operators.retain(|operator| operator.calls > 0);
    operators.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    let sum = |operators: &[Operator]| {
        operators.iter().fold((0, 0.0, 0.0), |(calls, seconds, flops), operator| {
            (calls + operator.calls, seconds + operator.seconds, flops + operator.flops)
        })
    };
    let row = |name: &str, (calls, own, flops): (u64, f64, f64)| {
        let products = match flops > 0.0 {
            true => format!("{:.1} | {:.1} | {:.0} %", flops / 1e9, flops / own / 1e9, 100.0 * flops / own / rate),
            false => "| |".to_owned(),
        };
        format!("| {name} | {calls} | {own:.3} | {:.1} % | {products} |\n", 100.0 * own / seconds)
    };
    let mut text = "| operator | calls | s | of the epoch | GFLOP | GFLOP/s | of the matrix rate |\n".to_owned();
    text += "|---|---|---|---|---|---|---|\n";
    let (shown, others) = operators.split_at(ROWS.min(operators.len()));
    for operator in shown {
        text += &row(&format!("`{}`", operator.name), (operator.calls, operator.seconds, operator.flops));
    }
    let all = sum(&operators);
    text += &row(&format!("{} others", others.len()), sum(others));
    text += &row("between operators", (0, seconds - all.1, 0.0));
    text + &row("the epoch", (all.0, seconds, all.2))
}
