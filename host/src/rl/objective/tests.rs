//! The update on a UNet of random weights, small enough to look into.

use ambiguity_models::lora::{LoraSpec, Targets};
use ambiguity_models::params::{NamedTensors, Params};
use ambiguity_models::scheduler::{Ddim, LastStep, SchedulerConfig};
use ambiguity_models::unet::{UNet, UNetConfig};
use tch::Device;
use torch_ext::AdamWConfig;

use super::*;
use crate::config::FineTuneConfig;
use crate::interrupt::Interrupted;
use crate::policy::PromptEmbeddings;
use crate::rl::rollout::{SeededNoise, rollout};

const N_SAMPLES: usize = 8;
const SHAPE: [i64; 3] = [4, 8, 8];

/// Everything an update needs, and trajectories sampled with it.
struct World {
    policy: Policy,
    lora: Lora,
    optimizer: AdamW,
    config: Train,
    trajectories: Trajectories,
}

fn world(guidance_scale: f64, change: impl FnOnce(&mut Train)) -> World {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    let config = serde_json::json!({
        "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "sample_size": 8,
        "block_out_channels": [16, 32], "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 2,
        "norm_num_groups": 8, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    std::fs::write(&path, config.to_string()).expect("writable");
    let params = Params::random(3, Device::Cpu).expect("a generator");
    let mut unet = UNet::new(&params, &UNetConfig::read(&path).expect("a config")).expect("a network");
    let spec = LoraSpec { rank: 2, alpha: 2.0, targets: Targets::AllLinear };
    let lora = Lora::attach(&mut unet, &spec, 4).expect("an adapter");
    let mut generator = Generator::cpu(5).expect("a generator");
    let prompts = PromptEmbeddings::new(generator.normal(&[3, 4, 16]).expect("states"));
    let scheduler = folder.path().join("scheduler_config.json");
    let config = serde_json::json!({
        "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000, "steps_offset": 1, "clip_sample": false, "set_alpha_to_one": false,
        "prediction_type": "epsilon",
    });
    std::fs::write(&scheduler, config.to_string()).expect("writable");
    let ddim = Ddim::new(&SchedulerConfig::read(&scheduler).expect("a config"), 4).expect("four steps");
    let mut config = FineTuneConfig::resolve("tiny-art", &[]).expect("the preset").train;
    config.batch_size = 4;
    config.micro_batch = 16;
    change(&mut config);
    let optimizer = AdamW::new(
        lora.parameters(),
        AdamWConfig { learning_rate: 1e-2, beta1: 0.9, beta2: 0.99, weight_decay: 0.0, epsilon: 1e-8 },
    )
    .expect("an optimizer");
    let mut world = World {
        trajectories: Trajectories { prompts: Vec::new(), latents: Tensor::new(), log_probs: None },
        policy: Policy { unet, prompts, ddim, guidance_scale, eta: 1.0, last_step: LastStep::Stochastic },
        lora,
        optimizer,
        config,
    };
    world.trajectories = world.sample();
    world
}

impl World {
    fn sample(&self) -> Trajectories {
        let prompts: Vec<usize> = (0..N_SAMPLES).map(|i| i % 3).collect();
        let mut noise = SeededNoise::of_epoch(SHAPE, 1, 1, N_SAMPLES);
        rollout(&self.policy, &prompts, &mut noise, 3, &Interrupt::default(), &mut |_| {}).expect("it samples")
    }

    fn train(&mut self, advantages: &[Option<f64>]) -> UpdateStatistics {
        self.try_train(advantages, &Interrupt::default()).expect("it trains")
    }

    fn try_train(&mut self, advantages: &[Option<f64>], interrupt: &Interrupt) -> Result<UpdateStatistics> {
        let Self { policy, lora, optimizer, config, trajectories } = self;
        let mut ddpo = Ddpo { policy, lora, config, n_timesteps: 4 };
        let mut guard = StepGuard::new("train.learning_rate");
        let mut hooks = Hooks { interrupt, done: &mut |_| {}, after_step: &mut |_| {} };
        ddpo.train_epoch(optimizer, &mut guard, trajectories, advantages, (1, 1), &mut hooks)
    }

    fn weights(&self) -> NamedTensors {
        self.lora.parameters().into_iter().map(|(name, tensor)| (name, tensor.detach().copy())).collect()
    }

    /// Log-probability of the sampled steps of one sample under the adapter as it is now.
    fn log_prob(&self, sample: usize) -> f64 {
        let mut sum = 0.0;
        for (step, &timestep) in self.policy.ddim.timesteps().iter().enumerate() {
            let at = |i: usize| self.trajectories.latents.get(i as i64).narrow(0, sample as i64, 1);
            let prediction = no_grad(|| {
                let timesteps = Tensor::from_slice(&[timestep]);
                self.policy.predict(&at(step), &timesteps, &self.trajectories.prompts[sample..=sample])
            });
            sum += self.policy.log_prob(&prediction, step, &at(step), &at(step + 1)).double_value(&[0]);
        }
        sum
    }
}

fn alternating() -> Vec<Option<f64>> {
    (0..N_SAMPLES).map(|i| Some(if i % 2 == 0 { 1.0 } else { -1.0 })).collect()
}

#[test]
fn the_first_update_is_on_policy() {
    for guidance in [1.0, 5.0] {
        let statistics = world(guidance, |_| {}).train(&alternating());
        assert!(statistics.ratio_error < 1e-5, "{statistics:?}");
        assert!(statistics.grad_norm > 0.0 && statistics.dropped_steps == 0, "{statistics:?}");
    }
}

#[test]
fn what_was_rewarded_gets_likelier() {
    let mut world = world(1.0, |config| config.clip_range = 1.0);
    let before: Vec<f64> = (0..N_SAMPLES).map(|i| world.log_prob(i)).collect();
    for _ in 0..3 {
        world.train(&alternating());
    }
    let change = |even: bool| -> f64 {
        let of = (0..N_SAMPLES).filter(|i| (i % 2 == 0) == even);
        of.map(|i| world.log_prob(i) - before[i]).sum()
    };
    assert!(change(true) > change(false), "{} against {}", change(true), change(false));
}

#[test]
fn the_size_of_a_call_changes_nothing() {
    let mut large = world(5.0, |_| {});
    let mut small = world(5.0, |config| config.micro_batch = 3);
    large.train(&alternating());
    small.train(&alternating());
    for (name, tensor) in large.weights() {
        let difference = (tensor - &small.weights()[&name]).abs().max().double_value(&[]);
        assert!(difference < 2e-4, "{name} differs by {difference}");
    }
}

#[test]
fn accumulated_batches_are_one_batch() {
    let mut whole = world(1.0, |config| config.batch_size = 8);
    let mut parts = world(1.0, |config| config.accumulation_steps = 2);
    whole.train(&alternating());
    parts.train(&alternating());
    for (name, tensor) in whole.weights() {
        let difference = (tensor - &parts.weights()[&name]).abs().max().double_value(&[]);
        assert!(difference < 2e-4, "{name} differs by {difference}");
    }
}

#[test]
fn samples_without_an_advantage_are_left_out() {
    let mut world = world(1.0, |_| {});
    let before = world.weights();
    let statistics = world.train(&[None; N_SAMPLES]);
    assert_eq!(statistics, UpdateStatistics::default());
    assert!(world.weights().iter().all(|(name, tensor)| tensor.equal(&before[name])));
}

#[test]
fn the_reference_is_the_network_without_its_adapter() {
    let mut world = world(1.0, |config| config.kl = 10.0);
    let first = world.train(&alternating());
    let again = world.train(&alternating());
    // B is zero at first, so the first update sees no divergence but rounding's; later ones do.
    assert!(again.kl > first.kl && again.kl > 0.0, "{first:?} {again:?}");
    let norms: f64 = world.weights().values().map(|tensor| tensor.norm().double_value(&[])).sum();
    assert!(norms.is_finite());
}

#[test]
fn recomputing_changes_nothing_but_memory() {
    for guidance in [1.0, 3.0] {
        let trained = |gradient_checkpointing| {
            let mut world = world(guidance, |config| {
                config.gradient_checkpointing = gradient_checkpointing;
                config.kl = 0.1;
            });
            // The second pass starts from a B that is not zero, so that A has a gradient too.
            world.train(&alternating());
            let statistics = world.train(&alternating());
            (world.weights(), statistics)
        };
        let ((plain, statistics), (recomputed, again)) = (trained(false), trained(true));
        assert!(
            (statistics.grad_norm - again.grad_norm).abs() < 1e-5 * statistics.grad_norm,
            "{statistics:?} {again:?}"
        );
        for (name, tensor) in &plain {
            let difference = (tensor - &recomputed[name]).norm().double_value(&[]);
            assert!(difference <= 1e-5 * tensor.norm().double_value(&[]), "{name}: {difference}");
        }
    }
}

#[test]
fn an_infinite_advantage_drops_the_step() {
    let mut world = world(1.0, |_| {});
    let before = world.weights();
    let statistics = world.train(&[Some(f64::INFINITY); N_SAMPLES]);
    assert_eq!(statistics.dropped_steps, 2);
    assert!(world.weights().iter().all(|(name, tensor)| tensor.equal(&before[name])));
}

#[test]
fn an_interrupt_stops_between_rows() {
    let interrupt = Interrupt::default();
    interrupt.request();
    let error = world(1.0, |_| {}).try_train(&alternating(), &interrupt).expect_err("it stops");
    assert!(error.is::<Interrupted>(), "{error:#}");
}
