//! The operators of a step of sampling, of a call of an update and of an optimizer step, with the shipped model: on a GPU
//! each is a launch, a copy or a wait.

use std::collections::BTreeMap;
use std::ops::Range;

use ambiguity_models::lora::Lora;
use ambiguity_models::pipeline::LoadOptions;
use ambiguity_models::scheduler::{Ddim, LastStep, SchedulerConfig};
use anyhow::Result;
use tch::{Device, Kind, Tensor};
use test_support::{device, shipped_model};
use torch_ext::{AdamW, AdamWConfig, Operator, profiled};

use super::objective::{Ddpo, Hooks};
use super::rollout::{NoiseSource, Trajectories, rollout};
use crate::config::{FineTuneConfig, Shuffle};
use crate::interrupt::Interrupt;
use crate::optim::{Ema, StepGuard};
use crate::policy::{Policy, PromptEmbeddings};
use crate::processes::Processes;
use crate::zoo::load_pipeline;

const N_SAMPLES: usize = 4;
const SHAPE: [i64; 3] = [4, 16, 16];
/// What makes the host wait for a GPU.
const WAITS: [&str; 5] =
    ["aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal"];
/// What tch's `to_device` runs, even if the tensor is on the device already, as it is in a test on the CPU.
const MOVE: &str = "aten::to.device";

/// Noise that is on the device already.
struct Ready;

impl NoiseSource for Ready {
    fn initial(&mut self, rows: Range<usize>) -> Result<Tensor> {
        Ok(Tensor::ones([rows.len() as i64, SHAPE[0], SHAPE[1], SHAPE[2]], (Kind::Float, device())))
    }

    fn steps(&mut self, n_steps: usize, rows: Range<usize>) -> Result<Tensor> {
        let shape = [n_steps as i64, rows.len() as i64, SHAPE[0], SHAPE[1], SHAPE[2]];
        Ok(Tensor::ones(shape, (Kind::Float, device())))
    }
}

struct World {
    config: FineTuneConfig,
    policy: Policy,
    lora: Lora,
    scheduler: SchedulerConfig,
}

impl World {
    fn new() -> Self {
        // With several threads libtorch's CPU kernels differ.
        tch::set_num_threads(1);
        let mut config = FineTuneConfig::resolve("tiny-art", &[]).expect("the preset");
        (config.train.shuffle, config.train.batch_size) = (Shuffle::Calls, N_SAMPLES);
        let folder = shipped_model().join("diffusion");
        let mut pipeline = load_pipeline(&folder, &LoadOptions::on(device())).expect("the shipped model");
        let texts = ["", "painting of a woman"].map(str::to_owned);
        let prompts = PromptEmbeddings::encode(&pipeline, &texts).expect("embeddings");
        let lora = Lora::attach(&mut pipeline.unet, &config.lora.spec(), 0).expect("an adapter");
        let ddim = Ddim::new(&pipeline.scheduler, 1).expect("a step");
        let (unet, guidance_scale) = (pipeline.unet, config.sample.guidance);
        let policy = Policy { unet, prompts, ddim, guidance_scale, eta: 1.0, last_step: LastStep::Stochastic };
        Self { config, policy, lora, scheduler: pipeline.scheduler }
    }

    fn sample(&mut self, n_steps: usize) -> (Trajectories, Counts) {
        self.policy.ddim = Ddim::new(&self.scheduler, n_steps).expect("steps");
        let (interrupt, prompts) = (Interrupt::default(), [1; N_SAMPLES]);
        let sample = || rollout(&self.policy, &prompts, &mut Ready, N_SAMPLES, &interrupt, &mut |_| {});
        let (trajectories, operators) = profiled(sample).expect("a profile");
        (trajectories.expect("it samples"), counts(operators))
    }

    /// The operators of an update with so many passes of so many calls each.
    fn update(&mut self, trajectories: &Trajectories, inner_epochs: usize, n_calls: usize) -> Counts {
        self.config.train.inner_epochs = inner_epochs;
        let adamw = AdamWConfig { learning_rate: 0.0, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, epsilon: 1e-8 };
        let mut optimizer = AdamW::new(self.lora.parameters(), adamw).expect("an optimizer");
        let parameters = optimizer.parameters().iter().map(|(name, tensor)| (name, tensor));
        let mut ema = Ema::new(parameters, 0.9);
        let mut hooks = Hooks {
            interrupt: &Interrupt::default(),
            done: &mut |_| {},
            after_step: &mut |optimizer| ema.update(optimizer.parameters()),
        };
        let (policy, lora) = (&mut self.policy, &self.lora);
        let mut ddpo =
            Ddpo { policy, lora, config: &self.config.train, n_timesteps: n_calls, processes: &Processes::default() };
        let mut guard = StepGuard::new("train.learning_rate");
        let advantages = [Some(1.0); N_SAMPLES];
        let train = || ddpo.train_epoch(&mut optimizer, &mut guard, trajectories, &advantages, (0, 1), &mut hooks);
        let (statistics, operators) = profiled(train).expect("a profile");
        statistics.expect("it trains");
        counts(operators)
    }
}

/// Calls and nested calls by operator.
type Counts = BTreeMap<String, [u64; 2]>;

fn counts(operators: Vec<Operator>) -> Counts {
    operators.into_iter().map(|operator| (operator.name, [operator.calls, operator.nested_calls])).collect()
}

/// What `more` has beyond `fewer`.
fn difference(more: &Counts, fewer: &Counts) -> Counts {
    let beyond = |(name, [calls, nested]): (&String, &[u64; 2])| {
        let [less_calls, less_nested] = fewer.get(name).copied().unwrap_or_default();
        (name.clone(), [calls - less_calls, nested - less_nested])
    };
    more.iter().map(beyond).filter(|(_, counts)| *counts != [0, 0]).collect()
}

fn number(counts: &Counts, name: &str) -> u64 {
    counts.get(name).map_or(0, |[calls, nested]| calls + nested)
}

fn table(counts: &Counts) -> String {
    let row = |(name, [calls, nested]): (&String, &[u64; 2])| format!("{calls:5} {nested:6}  {name}\n");
    let sum = |i: usize| counts.values().map(|counts| counts[i]).sum::<u64>();
    let rows: String = counts.iter().map(row).collect();
    format!("calls nested\n{rows}{:5} {:6}  in all\n", sum(0), sum(1))
}

#[test]
fn steps_and_calls_wait_for_nothing_and_run_the_operators_that_are_listed() {
    let mut world = World::new();
    // Tables and memory of the first call are not part of a step.
    let _ = world.sample(3);
    let two = world.sample(2).1;
    let (trajectories, three) = world.sample(3);
    let sampled = difference(&three, &two);
    let [one_call, two_calls] = [1, 2].map(|n_calls| world.update(&trajectories, 1, n_calls));
    let updated = difference(&two_calls, &one_call);
    let stepped = difference(&world.update(&trajectories, 2, 1), &one_call);
    for (what, counts) in [("a step of sampling", &sampled), ("a call of an update", &updated)] {
        for name in WAITS {
            assert_eq!(number(counts, name), 0, "{what}: {name}\n{}", table(counts));
        }
        assert_eq!(number(counts, MOVE), 0, "{what}: copies to the device\n{}", table(counts));
    }
    // To the device come the calls' indices and advantages, and from it the gradient's norm, to drop the step if that is not
    // finite. The factor by which the gradient is clipped is there already. On the CPU AdamW reads its step counts.
    let read = 1 + if device() == Device::Cpu { world.lora.parameters().len() as u64 } else { 0 };
    assert_eq!((number(&stepped, MOVE), number(&stepped, "aten::item")), (3, read), "{}", table(&stepped));
    // The calls of sampling compute the prompts' keys and values once: 7 layers, each with two products and their adapters.
    let n_linear = |counts: &Counts| counts["aten::linear"][0];
    assert_eq!(n_linear(&two) - 2 * n_linear(&sampled), 28, "{}", table(&two));
    if device() == Device::Cpu {
        insta::assert_snapshot!("a_step_of_sampling", table(&sampled));
        insta::assert_snapshot!("a_call_of_an_update", table(&updated));
    }
}
