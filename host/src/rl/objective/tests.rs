//! Tests of the update on a small UNet with random weights.

use std::time::Duration;

use ambiguity_models::lora::{LoraSpec, Targets};
use ambiguity_models::params::{NamedTensors, Params};
use ambiguity_models::scheduler::{Ddim, LastStep, SchedulerConfig};
use ambiguity_models::unet::{UNet, UNetConfig};
use test_support::{Reference, assert_close, device};
use torch_ext::AdamWConfig;

use super::*;
use crate::config::FineTuneConfig;
use crate::interrupt::Interrupted;
use crate::policy::PromptEmbeddings;
use crate::rl::rollout::{GivenNoise, NoiseSource, SeededNoise, rollout};

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
    // The network is too small to share among threads, and the tests already run in parallel.
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.json");
    let config = serde_json::json!({
        "_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "sample_size": 8,
        "block_out_channels": [16, 32], "layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 2,
        "norm_num_groups": 8, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    std::fs::write(&path, config.to_string()).expect("writable");
    let params = Params::random(3, device()).expect("a generator");
    let mut unet = UNet::new(&params, &UNetConfig::read(&path).expect("a config")).expect("a network");
    let spec = LoraSpec { rank: 2, alpha: 2.0, targets: Targets::AllLinear };
    let lora = Lora::attach(&mut unet, &spec, 4).expect("an adapter");
    let mut generator = Generator::cpu(5).expect("a generator");
    let prompts = PromptEmbeddings::new(generator.normal(&[3, 4, 16]).expect("embeddings").to_device(device()));
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
        trajectories: Trajectories {
            prompts: Vec::new(),
            latents: Tensor::new(),
            log_probs: None,
            calls: Vec::new(),
            shares: Vec::new(),
        },
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
        let mut noise = SeededNoise::of_epoch(SHAPE, 1, 1, 0..N_SAMPLES);
        rollout(&self.policy, &prompts, &mut noise, 3, &Interrupt::default(), &mut |_| {}).expect("it samples")
    }

    fn train(&mut self, advantages: &[Option<f64>]) -> UpdateStatistics {
        self.try_train(advantages, &Interrupt::default()).expect("it trains")
    }

    fn try_train(&mut self, advantages: &[Option<f64>], interrupt: &Interrupt) -> Result<UpdateStatistics> {
        let Self { policy, lora, optimizer, config, trajectories } = self;
        let mut ddpo = Ddpo { policy, lora, config, n_timesteps: 4, processes: &Processes::default() };
        let mut guard = StepGuard::new("train.learning_rate");
        let mut hooks = Hooks { interrupt, done: &mut |_| {}, after_step: &mut |_| Ok(()) };
        ddpo.train_epoch(optimizer, &mut guard, trajectories, advantages, (1, 1), &mut hooks)
    }

    /// Samples and trains as one of several processes.
    fn train_together(&mut self, advantages: &[Option<f64>], processes: &Processes) -> Result<UpdateStatistics> {
        let Self { policy, lora, optimizer, config, trajectories } = self;
        let (prompts, share) = (trajectories.prompts.clone(), processes.share(N_SAMPLES, 1));
        let mut noise = SeededNoise::of_epoch(SHAPE, 1, 1, share.clone());
        let own = rollout(policy, &prompts[share.clone()], &mut noise, 3, &Interrupt::default(), &mut |_| {})?;
        let trajectories = own.shared(share, prompts.clone(), processes)?;
        assert_eq!(trajectories.prompts, prompts);
        assert_eq!((&trajectories.calls, &trajectories.shares), (&vec![0..2, 2..5, 5..8], &vec![0..2, 2..5, 5..8]));
        let mut ddpo = Ddpo { policy, lora, config, n_timesteps: 4, processes };
        let mut guard = StepGuard::new("train.learning_rate");
        let interrupt = Interrupt::default();
        let mut hooks = Hooks { interrupt: &interrupt, done: &mut |_| {}, after_step: &mut |_| Ok(()) };
        ddpo.train_epoch(optimizer, &mut guard, &trajectories, advantages, (1, 1), &mut hooks)
    }

    fn weights(&self) -> NamedTensors {
        self.lora.parameters().into_iter().map(|(name, tensor)| (name, tensor.detach().copy())).collect()
    }

    /// Log-probability of the sampled steps of one sample under the current adapter.
    fn log_prob(&self, sample: usize) -> f64 {
        let mut sum = 0.0;
        for (step, &timestep) in self.policy.ddim.timesteps().iter().enumerate() {
            let at = |i: usize| self.trajectories.latents.get(i as i64).narrow(0, sample as i64, 1);
            let prediction = no_grad(|| {
                let timesteps = Tensor::from_slice(&[timestep]).to_device(device());
                let prompt = Tensor::from_slice(&[self.trajectories.prompts[sample] as i64]).to_device(device());
                self.policy.predict(&at(step), &timesteps, &self.policy.text(&prompt))
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
fn the_ratio_error_is_that_of_the_first_update() {
    let mut world = world(1.0, |config| config.inner_epochs = 2);
    // Four updates, of which the first alone has the sampling policy's weights.
    assert!(world.train(&alternating()).ratio_error < 1e-5);
    let again = world.train(&alternating());
    assert!(again.ratio_error > 1e-3, "{again:?}");
}

#[test]
fn an_optimizer_step_has_as_many_calls_of_sampling_as_fit_into_a_batch() {
    // Sampling had calls of 3, 3 and 2 samples.
    for (batch_size, accumulation_steps, wanted) in [(3, 1, 3), (6, 1, 2), (3, 2, 2), (8, 1, 2), (9, 1, 1), (1, 1, 3)] {
        let World { mut policy, lora, mut optimizer, config, trajectories } = world(1.0, |config| {
            config.shuffle = Shuffle::Calls;
            config.batch_size = batch_size;
            config.accumulation_steps = accumulation_steps;
        });
        let mut n_steps = 0;
        let mut after_step = |_: &AdamW| {
            n_steps += 1;
            Ok(())
        };
        let interrupt = Interrupt::default();
        let mut hooks = Hooks { interrupt: &interrupt, done: &mut |_| {}, after_step: &mut after_step };
        let processes = Processes::default();
        let mut ddpo =
            Ddpo { policy: &mut policy, lora: &lora, config: &config, n_timesteps: 4, processes: &processes };
        let mut guard = StepGuard::new("train.learning_rate");
        ddpo.train_epoch(&mut optimizer, &mut guard, &trajectories, &alternating(), (1, 1), &mut hooks)
            .expect("it trains");
        assert_eq!(n_steps, wanted, "batches of {batch_size}, {accumulation_steps} accumulated");
    }
}

/// Every row of a call comes from the process that sampled it. One sample has no advantage.
#[test]
fn three_processes_make_the_update_of_one() {
    let advantages: Vec<Option<f64>> = (0..N_SAMPLES).map(|i| (i != 3).then(|| (i as f64 * 1.7).sin())).collect();
    let mut alone = world(1.0, |_| {});
    let wanted = alone.train(&advantages);
    let weights = alone.weights();
    let square = |tensor: &Tensor| tensor.square().sum(Kind::Double).double_value(&[]);
    let all = crate::processes::tests::three(Duration::from_secs(60), |processes| {
        let mut world = world(1.0, |_| {});
        let statistics = world.train_together(&advantages, &processes).expect("it trains");
        (statistics, world.weights())
    });
    for (found, theirs) in all {
        assert!(found.ratio_error < 1e-5, "{found:?}");
        let numbers = |of: &UpdateStatistics| [of.loss, of.approx_kl, of.clip_fraction, of.grad_norm];
        for (found, wanted) in numbers(&found).into_iter().zip(numbers(&wanted)) {
            assert!((found - wanted).abs() <= 1e-3 * wanted.abs().max(1e-6), "{found} {wanted}");
        }
        let difference: f64 = weights.iter().map(|(name, tensor)| square(&(tensor - &theirs[name]))).sum();
        let error = (difference / weights.values().map(square).sum::<f64>()).sqrt();
        assert!(error < 1e-3, "the weights differ by {error:.1e} of their norm");
    }
}

#[test]
fn rewarded_samples_become_likelier() {
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

/// A world whose adapter is no longer the one that sampled, with ratios inside and outside the clip range, and the
/// advantages of its samples, two of which have none.
fn off_policy(guidance_scale: f64, change: impl FnOnce(&mut Train)) -> (World, Vec<Option<f64>>) {
    let mut world = world(guidance_scale, |config| {
        config.batch_size = N_SAMPLES;
        config.clip_range = 0.1;
        change(config);
    });
    let mut generator = Generator::cpu(8).expect("a generator");
    let mut normal = |tensor: &Tensor| generator.normal(&tensor.size()).expect("numbers").to_device(device());
    let values = world.weights().into_iter().map(|(name, tensor)| (name, normal(&tensor) * 0.2)).collect();
    world.lora.load_values(&values).expect("the same shapes");
    world.trajectories = world.sample();
    let log_probs = world.trajectories.log_probs.as_ref().expect("they are sampled at eta 1");
    world.trajectories.log_probs = Some(log_probs + normal(log_probs) * 0.2);
    let advantage = |i: usize| (i % 4 != 3).then(|| [0.7, -1.3][i % 2] * (1.0 + i as f64 / 4.0));
    (world, (0..N_SAMPLES).map(advantage).collect())
}

/// Loss, gradient norm and fraction of clipped rows as TRL computes them, from one pass over all rows of a step.
fn trl_update(world: &mut World, advantages: &[Option<f64>]) -> (f64, f64, f64) {
    let kept: Vec<usize> = (0..N_SAMPLES).filter(|&i| advantages[i].is_some()).collect();
    let indices: Vec<i64> = kept.iter().map(|&i| i as i64).collect();
    let indices = Tensor::from_slice(&indices).to_device(device());
    let prompts: Vec<i64> = kept.iter().map(|&i| world.trajectories.prompts[i] as i64).collect();
    let text = world.policy.text(&Tensor::from_slice(&prompts).to_device(device()));
    let advantages: Vec<f32> = kept.iter().map(|&i| advantages[i].expect("it is kept") as f32).collect();
    let advantages = Tensor::from_slice(&advantages).to_device(device());
    let (mut losses, mut clipped) = (Vec::new(), Vec::new());
    let range = world.config.clip_range;
    for (step, &timestep) in world.policy.ddim.timesteps().iter().enumerate() {
        let latents = |i: usize| world.trajectories.latents.get(i as i64).index_select(0, &indices);
        let old = world.trajectories.log_probs.as_ref().expect("eta is 1").get(step as i64).index_select(0, &indices);
        let timesteps = Tensor::full([kept.len() as i64], timestep, (Kind::Int64, device()));
        let prediction = world.policy.predict(&latents(step), &timesteps, &text);
        let log_prob = world.policy.log_prob(&prediction, step, &latents(step), &latents(step + 1));
        let ratio = (log_prob - old).exp();
        let unclipped = -&advantages * &ratio;
        let mut loss = unclipped.maximum(&(-&advantages * ratio.clamp(1.0 - range, 1.0 + range)));
        if world.config.kl > 0.0 {
            world.lora.enable(&mut world.policy.unet, false);
            let reference = no_grad(|| world.policy.predict(&latents(step), &timesteps, &text));
            world.lora.enable(&mut world.policy.unet, true);
            loss += world.policy.kl_divergence(&prediction, &reference, step, &latents(step)) * world.config.kl;
        }
        losses.push(loss);
        clipped.push((ratio.detach() - 1.0).abs().gt(range).to_kind(Kind::Float));
    }
    let loss = Tensor::stack(&losses, 0).mean(Kind::Float);
    world.optimizer.zero_grad();
    loss.backward();
    let squares = world.lora.parameters().into_iter().map(|(_, tensor)| tensor.grad().square().sum(Kind::Double));
    let norm = squares.map(|square| square.double_value(&[])).sum::<f64>().sqrt();
    (loss.double_value(&[]), norm, Tensor::stack(&clipped, 0).mean(Kind::Float).double_value(&[]))
}

#[test]
fn loss_gradient_and_statistics_match_trl() {
    let reference = Reference::read("ppo.safetensors");
    let (old_log_prob, advantages) = (reference.tensor("old_log_prob"), reference.tensor("advantages"));
    for name in ["narrow", "wide"] {
        let theirs = |part: &str| reference.tensor(&format!("{name}.{part}"));
        let clip_range = theirs("clip_range").double_value(&[]);
        let log_prob = theirs("log_prob").copy().set_requires_grad(true);
        let ppo = ppo_loss(&log_prob, old_log_prob, advantages, clip_range);
        let loss = &ppo.sum / log_prob.numel() as f64;
        assert_close("loss", &loss, theirs("loss"), 1e-6);
        loss.backward();
        assert_close("gradient", &log_prob.grad(), theirs("gradient"), 1e-6);

        let mut totals = Totals::default();
        let n_rows = log_prob.numel() as i64;
        // Calls are added in their order, whoever made them.
        for (number, (start, length)) in [([0, 0, 1], (40, n_rows - 40)), ([0, 0, 0], (0, 40))] {
            let rows = |tensor: &Tensor| tensor.detach().narrow(0, start, length);
            let ppo = ppo_loss(&rows(&log_prob), &rows(old_log_prob), &rows(advantages), clip_range);
            let kl = Tensor::full([], 0.5 * length as f64, (Kind::Float, device()));
            totals.calls.push((number, sums(&ppo.sum, &ppo, &kl, clip_range)));
        }
        totals.grad_norms = vec![1.0, 2.0];
        let statistics = totals.statistics(&Processes::default()).expect("one process");
        assert_eq!((statistics.grad_norm, statistics.kl), (1.5, 0.5));
        let found = [("loss", statistics.loss), ("approx_kl", statistics.approx_kl)];
        for (part, found) in found.into_iter().chain([("clip_fraction", statistics.clip_fraction)]) {
            let theirs = theirs(part).double_value(&[]);
            assert!((found - theirs).abs() <= 1e-6 * theirs.abs(), "{name}: {part} is {found}, TRL has {theirs}");
        }
        let largest = ((&log_prob.detach() - old_log_prob).exp() - 1.0).abs().max().double_value(&[]);
        assert_eq!(statistics.ratio_error, largest);
    }
}

/// Compares the gradient norm, not the weights after a step, in which Adam cancels every scale.
#[track_caller]
fn assert_same_update(what: &str, statistics: &UpdateStatistics, (loss, norm, clipped): (f64, f64, f64)) {
    let error = (statistics.grad_norm / norm - 1.0).abs();
    assert!(error < 1e-4, "{what}: the gradient's norm is {}, not {norm}", statistics.grad_norm);
    assert!((statistics.loss - loss).abs() < 1e-4 * loss.abs(), "{what}: the loss is {}, not {loss}", statistics.loss);
    let error = (statistics.clip_fraction - clipped).abs();
    assert!(error < 1e-6, "{what}: {} of the rows are clipped, not {clipped}", statistics.clip_fraction);
    assert_eq!(statistics.dropped_steps, 0, "{what}");
}

#[test]
fn an_update_has_the_gradient_of_the_mean_over_its_rows() {
    for (guidance_scale, kl) in [(1.0, 0.0), (5.0, 0.0), (1.0, 0.5)] {
        let (mut world, advantages) = off_policy(guidance_scale, |config| config.kl = kl);
        let wanted = trl_update(&mut world, &advantages);
        assert!(wanted.2 > 0.2 && wanted.2 < 0.8, "{wanted:?}");
        let statistics = world.train(&advantages);
        assert_same_update(&format!("guidance_scale {guidance_scale}, kl {kl}"), &statistics, wanted);
        assert_eq!(statistics.kl > 0.0, kl > 0.0);
    }
}

#[test]
fn micro_batches_do_not_change_the_update() {
    for guidance_scale in [1.0, 5.0] {
        let (mut world, advantages) = off_policy(guidance_scale, |config| config.micro_batch = 5);
        let wanted = trl_update(&mut world, &advantages);
        assert_same_update(&format!("guidance_scale {guidance_scale}"), &world.train(&advantages), wanted);
    }
}

#[test]
fn repeated_calls_do_not_change_the_update() {
    for (guidance_scale, kl) in [(1.0, 0.0), (5.0, 0.0), (1.0, 0.5)] {
        let (mut world, mut advantages) = off_policy(guidance_scale, |config| {
            config.shuffle = Shuffle::Calls;
            config.kl = kl;
        });
        world.trajectories.calls = (0..N_SAMPLES).step_by(2).map(|i| i..i + 2).collect();
        // The whole last call has no advantage.
        advantages[N_SAMPLES - 2] = None;
        let wanted = trl_update(&mut world, &advantages);
        assert_same_update(&format!("guidance_scale {guidance_scale}, kl {kl}"), &world.train(&advantages), wanted);
    }
}

#[test]
fn calls_have_the_samples_of_sampling_in_their_places_at_one_step() {
    let mut world = world(1.0, |config| config.timestep_choice = TimestepChoice::Random);
    let mut calls = |shuffle| {
        world.config.shuffle = shuffle;
        world.config.micro_batch = 5;
        let World { policy, lora, config, .. } = &mut world;
        let mut generator = Generator::cpu(2).expect("a generator");
        let ddpo = Ddpo { policy, lora, config, n_timesteps: 2, processes: &Processes::default() };
        ddpo.calls(&[4..8, 0..4], &mut generator).expect("it draws timesteps")
    };
    let repeated = calls(Shuffle::Calls);
    assert_eq!(repeated.len(), 4);
    for (call, samples) in repeated.iter().zip([4..8, 4..8, 0..4, 0..4]) {
        let step = call[0].step;
        assert_eq!(*call, samples.map(|sample| Row { sample, step }).collect::<Vec<_>>());
    }
    assert!(repeated[0][0].step != repeated[1][0].step && repeated[2][0].step != repeated[3][0].step);
    let lengths: Vec<usize> = calls(Shuffle::Samples).iter().map(Vec::len).collect();
    assert_eq!(lengths, [4, 4, 4, 4]);
}

#[test]
fn accumulated_batches_are_one_batch() {
    // Six samples have an advantage: the last batch of four is one of two.
    for (batch_size, accumulation_steps) in [(3, 2), (2, 3), (4, 2)] {
        let (mut world, advantages) = off_policy(1.0, |config| {
            config.batch_size = batch_size;
            config.accumulation_steps = accumulation_steps;
        });
        let wanted = trl_update(&mut world, &advantages);
        assert_same_update(&format!("batches of {batch_size}"), &world.train(&advantages), wanted);
    }
}

#[test]
fn the_timesteps_of_an_update_are_the_earliest_or_random_for_each_sample() {
    let mut world = world(1.0, |_| {});
    let mut choose = |choice, n_timesteps| {
        world.config.timestep_choice = choice;
        let World { policy, lora, config, .. } = &mut world;
        let ddpo = Ddpo { policy, lora, config, n_timesteps, processes: &Processes::default() };
        let mut generator = Generator::cpu(1).expect("a generator");
        (0..20).map(|_| ddpo.timesteps(&mut generator).expect("steps")).collect::<Vec<_>>()
    };
    assert!(choose(TimestepChoice::Earliest, 2).iter().all(|steps| steps == &[0, 1]));
    assert!(choose(TimestepChoice::Random, 4).iter().all(|steps| steps == &[0, 1, 2, 3]));
    let random = choose(TimestepChoice::Random, 2);
    assert!(random.iter().all(|steps| steps.len() == 2 && steps[0] != steps[1]), "{random:?}");
    assert!((0..4).all(|step| random.iter().any(|steps| steps.contains(&step))), "{random:?}");
}

#[test]
fn the_micro_batch_size_does_not_change_a_rollout() {
    let world = world(5.0, |_| {});
    let prompts: Vec<usize> = (0..N_SAMPLES).map(|i| i % 3).collect();
    let sample = |micro_batch| {
        let mut n_rows = 0;
        let mut noise = SeededNoise::of_epoch(SHAPE, 1, 1, 0..N_SAMPLES);
        let mut done = |n| n_rows += n;
        let sampled = rollout(&world.policy, &prompts, &mut noise, micro_batch, &Interrupt::default(), &mut done);
        assert_eq!(n_rows, 4 * N_SAMPLES);
        sampled.expect("it samples")
    };
    let whole = sample(2 * N_SAMPLES);
    assert_eq!(whole.latents.size(), [5, 8, 4, 8, 8]);
    assert_eq!(whole.last(), whole.latents.get(4));
    let log_probs = whole.log_probs.expect("the steps are stochastic");
    // One sample per call, then three, of which the last call has two.
    for (micro_batch, n_calls, last) in [(1, 8, 7..8), (6, 3, 6..8)] {
        let parts = sample(micro_batch);
        assert_eq!((parts.calls.len(), parts.calls.last()), (n_calls, Some(&last)));
        assert_close("latents", &parts.latents, &whole.latents, 1e-5);
        assert_close("log-probabilities", &parts.log_probs.expect("as above"), &log_probs, 1e-5);
    }
}

#[test]
fn keys_and_values_of_the_prompts_are_those_of_every_step() {
    for guidance in [1.0, 5.0] {
        let mut world = world(guidance, |config| config.kl = 0.0);
        world.train(&alternating());
        let prompts = Tensor::from_slice(&[2i64, 0, 1]).to_device(device());
        let latents = world.trajectories.latents.get(0).narrow(0, 0, 3);
        let timesteps = Tensor::full([3], 500, (Kind::Int64, device()));
        let policy = &world.policy;
        let plain = no_grad(|| policy.predict(&latents, &timesteps, &policy.text(&prompts)));
        let fixed = policy.fixed_text(&prompts);
        assert_eq!(no_grad(|| policy.predict(&latents, &timesteps, &fixed)), plain);
        // An adapter that has changed since is not in them.
        world.train(&alternating());
        let policy = &world.policy;
        let [stale, fresh] =
            [&fixed, &policy.text(&prompts)].map(|text| no_grad(|| policy.predict(&latents, &timesteps, text)));
        assert_ne!(stale, fresh);
    }
}

#[test]
fn at_eta_0_the_initial_noise_determines_a_rollout() {
    let mut world = world(1.0, |_| {});
    world.policy.eta = 0.0;
    let initial = || SeededNoise::of_seeds(SHAPE, vec![7, 8]).initial(0..2).expect("numbers");
    let sample = |world: &World, prompts: &[usize]| {
        let mut given = GivenNoise::new(initial());
        rollout(&world.policy, prompts, &mut given, 1, &Interrupt::default(), &mut |_| {})
    };
    let sampled = sample(&world, &[0, 1]).expect("it samples");
    assert!(sampled.log_probs.is_none());
    assert_eq!(sampled.latents.get(0), initial().to_device(device()));
    let mut seeded = SeededNoise::of_seeds(SHAPE, vec![7, 8]);
    let again = rollout(&world.policy, &[0, 1], &mut seeded, 1, &Interrupt::default(), &mut |_| {});
    assert_eq!(again.expect("it samples").latents, sampled.latents);
    let nothing = sample(&world, &[]).expect_err("no prompt").to_string();
    assert_eq!(nothing, "there is nothing to sample: no prompt was given");
    world.policy.eta = 1.0;
    let stochastic = sample(&world, &[0]).expect_err("steps need noise").to_string();
    assert!(stochastic.starts_with("the steps' noise was not given"), "{stochastic}");
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
    // B is zero at first, so the first update measures no divergence but rounding's; later ones do.
    assert!(again.kl > first.kl && again.kl > 0.0, "{first:?} {again:?}");
    let norms: f64 = world.weights().values().map(|tensor| tensor.norm().double_value(&[])).sum();
    assert!(norms.is_finite());
}

#[test]
fn gradient_checkpointing_does_not_change_the_update() {
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
            // AdamW scales small gradients up, and with them the rounding of a GPU's atomic sums.
            assert!(difference <= 1e-4 * tensor.norm().double_value(&[]), "{name}: {difference}");
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
