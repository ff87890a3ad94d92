//! The update from trajectories and advantages: DDPO with importance sampling (Black et al., arXiv 2305.13301,
//! equation 4), that is PPO's clipped objective (Schulman et al., arXiv 1707.06347) over the steps of the sampler.
//!
//! This module never sees an image. The log-probability of a step is a mean over latent elements, as in ddpo-pytorch
//! and TRL, and the clip range is relative to that mean.

use std::ops::Range;

use ambiguity_models::lora::Lora;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use torch_ext::{AdamW, Generator, GradientSum};

use super::rollout::Trajectories;
use crate::config::{Shuffle, TimestepChoice, Train};
use crate::interrupt::Interrupt;
use crate::optim::StepGuard;
use crate::policy::Policy;
use crate::processes::Processes;
use crate::random::{Purpose, derive_seed};

/// Statistics of an epoch's updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateStatistics {
    /// Mean loss: the negated clipped objective plus the weighted KL divergence.
    pub loss: f64,
    /// Approximate KL divergence from the sampling policy: ½ mean (log ratio)².
    pub approx_kl: f64,
    /// Fraction of rows whose ratio is outside the clip range.
    pub clip_fraction: f64,
    /// Maximum of |ratio − 1| in the first update, where the weights are still the sampling policy's.
    pub ratio_error: f64,
    /// Mean gradient norm before clipping.
    pub grad_norm: f64,
    /// Mean KL divergence from the model without LoRA; measured only if its weight is above 0.
    pub kl: f64,
    /// Number of optimizer steps that were dropped because their gradient was not finite.
    pub dropped_steps: usize,
}

/// Callbacks of an epoch's updates.
pub struct Hooks<'a> {
    /// The interrupt that stops the updates.
    pub interrupt: &'a Interrupt,
    /// Receives the number of finished rows, the unconditional rows of guidance not counted.
    pub done: &'a mut dyn FnMut(usize),
    /// Runs after every optimizer step.
    pub after_step: &'a mut dyn FnMut(&AdamW) -> Result<()>,
}

/// The updates of one epoch.
#[derive(Debug)]
pub struct Ddpo<'a> {
    /// The policy that sampled; the reference of the KL divergence is the same policy with its adapter disabled.
    pub policy: &'a mut Policy,
    /// The adapter in training.
    pub lora: &'a Lora,
    /// The configuration's `[train]`.
    pub config: &'a Train,
    /// Number of timesteps of a sample to train on.
    pub n_timesteps: usize,
    /// The processes that share the UNet's calls of an optimizer step.
    pub processes: &'a Processes,
}

/// What an epoch's updates add up.
#[derive(Default)]
struct Totals {
    /// The calls of this process, each by inner epoch, update, and number in the update, with its [`sums`], which stay on the
    /// device until the end of the epoch.
    calls: Vec<([usize; 3], Tensor)>,
    grad_norms: Vec<f64>,
    dropped_steps: usize,
}

/// Number of sums over the rows of a call: the loss, the squared log-ratio, the clipped rows, the KL divergence, the rows, and
/// the maximum of |ratio − 1|, which counts only in the first update.
const SUMS: usize = 6;

/// A row of an update: one sample at one step.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    sample: usize,
    step: usize,
}

/// Steps of the sampler, one after the other.
struct Steps {
    /// The latents before them, [n, c, h, w].
    latents: Tensor,
    /// The latents after them, [n, c, h, w].
    next_latents: Tensor,
    /// Their log-probabilities under the sampling policy, \[n\].
    log_probs: Tensor,
}

impl Steps {
    /// Returns the steps of all samples of which this process has the latents, without copying them; the samples of the first
    /// step come first.
    fn of(trajectories: &Trajectories) -> Self {
        let shape = trajectories.latents.size();
        let flat = trajectories.latents.view([-1, shape[2], shape[3], shape[4]]);
        let n = flat.size()[0] - shape[1];
        let log_probs = trajectories.log_probs.as_ref().expect("DDPO samples at eta > 0, which has log-probabilities");
        Self {
            latents: flat.narrow(0, 0, n),
            next_latents: flat.narrow(0, shape[1], n),
            log_probs: log_probs.view([-1]),
        }
    }

    /// Sends those of some places to other processes, and returns what comes from them; see [`Processes::exchange_rows`].
    fn exchanged(&self, places: &Tensor, sent: &[usize], received: &[usize], processes: &Processes) -> Result<Self> {
        let [latents, next_latents, log_probs] =
            [&self.latents, &self.next_latents, &self.log_probs].map(|of| of.index_select(0, places));
        let (flat, next) = (latents.flatten(1, -1), next_latents.flatten(1, -1));
        let width = flat.size()[1];
        let rows = Tensor::cat(&[flat, next, log_probs.unsqueeze(1)], 1);
        let rows = processes.exchange_rows(&rows, sent, received)?;
        let mut shape = latents.size();
        shape[0] = rows.size()[0];
        let part = |start: i64| rows.narrow(1, start, width).reshape(&shape[..]);
        Ok(Self { latents: part(0), next_latents: part(width), log_probs: rows.select(1, 2 * width) })
    }
}

/// What a call of an update takes, on the device.
struct CallInputs {
    n_rows: usize,
    /// The rows' places among the [`Steps`], \[n\].
    places: Tensor,
    /// The rows' steps, \[n\].
    steps: Tensor,
    /// The timesteps of these steps, \[n\].
    timesteps: Tensor,
    /// The rows' prompts, \[n\].
    prompts: Tensor,
    /// The rows whose samples have an advantage; none if all have one.
    kept: Option<Tensor>,
    /// The advantages of these rows.
    advantages: Tensor,
}

impl Ddpo<'_> {
    /// Updates the adapter with trajectories that were sampled with it. `advantages` has one entry per sample; a sample
    /// without an advantage is left out.
    ///
    /// # Errors
    /// If `hooks.interrupt` is set, or too many consecutive gradients are not finite; adapter and optimizer are then in
    /// the middle of an epoch.
    pub fn train_epoch(
        &mut self,
        optimizer: &mut AdamW,
        guard: &mut StepGuard,
        trajectories: &Trajectories,
        advantages: &[Option<f64>],
        (seed, epoch): (u64, u64),
        hooks: &mut Hooks<'_>,
    ) -> Result<UpdateStatistics> {
        let mut totals = Totals::default();
        let mut gradients = GradientSum::new(optimizer.parameters().iter().map(|(_, parameter)| parameter));
        let has_advantage = |&i: &usize| advantages[i].is_some();
        // What is shuffled: a group of samples shares its timesteps.
        let groups: Vec<Range<usize>> = match self.config.shuffle {
            Shuffle::Samples => (0..advantages.len()).filter(has_advantage).map(|i| i..i + 1).collect(),
            Shuffle::Calls => {
                trajectories.calls.iter().filter(|call| (*call).clone().any(|i| has_advantage(&i))).cloned().collect()
            }
        };
        let group_size = groups.first().map_or(1, Range::len);
        let samples_per_step = self.config.batch_size * self.config.accumulation_steps;
        for inner_epoch in 0..self.config.inner_epochs {
            let mut generator = Generator::cpu(derive_seed(seed, epoch, inner_epoch as u64, Purpose::Update))?;
            let order = permutation(&mut generator, groups.len())?;
            for (update, order) in order.chunks((samples_per_step / group_size).max(1)).enumerate() {
                optimizer.zero_grad();
                let groups: Vec<Range<usize>> = order.iter().map(|&i| groups[i].clone()).collect();
                let n_samples = groups.iter().cloned().flatten().filter(has_advantage).count();
                let weight = 1.0 / (n_samples * self.n_timesteps) as f64;
                let calls = self.calls(&groups, &mut generator)?;
                let own: Vec<usize> = (0..calls.len()).filter(|&i| self.processes.is_own(i)).collect();
                let (steps, places) = self.steps(trajectories, &calls)?;
                let inputs = self.inputs(trajectories, advantages, own.iter().map(|&i| &calls[i]), places)?;
                for (i, call) in own.into_iter().zip(inputs) {
                    hooks.interrupt.check("")?;
                    let of_call = self.accumulate(&steps, &call, weight)?;
                    gradients.add()?;
                    totals.calls.push(([inner_epoch, update, i], of_call));
                    (hooks.done)(call.n_rows);
                }
                self.processes.sum(gradients.as_tensor())?;
                gradients.finish()?;
                match guard.step(optimizer, self.config.max_grad_norm)? {
                    Some(norm) => totals.grad_norms.push(norm),
                    None => totals.dropped_steps += 1,
                }
                (hooks.after_step)(optimizer)?;
            }
        }
        totals.statistics(self.processes)
    }

    /// Returns the rows of each UNet call of an optimizer step on some groups of samples.
    fn calls(&self, groups: &[Range<usize>], generator: &mut Generator) -> Result<Vec<Vec<Row>>> {
        let mut calls: Vec<Vec<Row>> = Vec::new();
        for group in groups {
            for step in self.timesteps(generator)? {
                calls.push(group.clone().map(|sample| Row { sample, step }).collect());
            }
        }
        Ok(match self.config.shuffle {
            Shuffle::Samples => {
                let rows = calls.concat();
                let at_least = rows.len().div_ceil(self.policy.samples_per_call(self.config.micro_batch));
                // As many for each process, of one size.
                let n_calls = at_least.next_multiple_of(self.processes.count());
                rows.chunks(rows.len().div_ceil(n_calls)).map(<[_]>::to_vec).collect()
            }
            Shuffle::Calls => calls,
        })
    }

    /// Returns the steps of a group of samples to train on.
    fn timesteps(&self, generator: &mut Generator) -> Result<Vec<usize>> {
        let n_steps = self.policy.ddim.timesteps().len();
        if self.n_timesteps == n_steps || self.config.timestep_choice == TimestepChoice::Earliest {
            return Ok((0..self.n_timesteps).collect());
        }
        let mut steps = permutation(generator, n_steps)?;
        steps.truncate(self.n_timesteps);
        Ok(steps)
    }

    /// Returns the sampler's steps of which this process trains on some, and the places of the rows of its calls among them. A
    /// process has the steps of the samples that it sampled; of an optimizer step's rows, each goes to the process that takes the
    /// row's call.
    fn steps(&self, trajectories: &Trajectories, calls: &[Vec<Row>]) -> Result<(Steps, Vec<usize>)> {
        let (processes, shares) = (self.processes, &trajectories.shares);
        let own = &shares[processes.rank()];
        let place = |row: &Row| row.step * own.len() + row.sample - own.start;
        let rows_of = |rank: usize| {
            calls.iter().enumerate().filter(move |(i, _)| processes.rank_of(*i) == rank).flat_map(|(_, rows)| rows)
        };
        let steps = Steps::of(trajectories);
        if processes.count() == 1 {
            return Ok((steps, rows_of(0).map(place).collect()));
        }
        let to_send = |rank: usize| rows_of(rank).filter(|row| own.contains(&row.sample)).map(place);
        let places: Vec<i64> = (0..processes.count()).flat_map(to_send).map(|place| place as i64).collect();
        let sent: Vec<usize> = (0..processes.count()).map(|rank| to_send(rank).count()).collect();
        let owner =
            |row: &Row| shares.iter().position(|share| share.contains(&row.sample)).expect("all samples are shared");
        let owners: Vec<usize> = rows_of(processes.rank()).map(owner).collect();
        let received: Vec<usize> =
            (0..shares.len()).map(|rank| owners.iter().filter(|&&owner| owner == rank).count()).collect();
        // What comes is ordered by owner.
        let mut next: Vec<usize> = (0..shares.len()).map(|rank| received[..rank].iter().sum()).collect();
        let arrives = |owner: usize| {
            next[owner] += 1;
            next[owner] - 1
        };
        let arrivals = owners.into_iter().map(arrives).collect();
        let places = Tensor::from_slice(&places).f_to_device(steps.latents.device())?;
        Ok((steps.exchanged(&places, &sent, &received, processes)?, arrivals))
    }

    /// Returns what the calls of this process in an optimizer step take, all of it brought to the device at once, so that no call
    /// waits for a transfer; `places` are those of their rows among the [`Steps`].
    fn inputs<'a>(
        &self,
        trajectories: &Trajectories,
        advantages: &[Option<f64>],
        calls: impl Iterator<Item = &'a Vec<Row>> + Clone,
        places: Vec<usize>,
    ) -> Result<Vec<CallInputs>> {
        let all = || calls.clone().flatten();
        let is_kept = |row: &Row| advantages[row.sample].is_some();
        // Places of the kept rows in their calls.
        let kept = calls.clone().flat_map(|rows| (0..rows.len()).filter(|&i| is_kept(&rows[i])));
        let columns: [Vec<usize>; 4] = [
            places,
            all().map(|row| row.step).collect(),
            all().map(|row| trajectories.prompts[row.sample]).collect(),
            kept.collect(),
        ];
        let timesteps = all().map(|row| self.policy.ddim.timesteps()[row.step]);
        let numbers: Vec<i64> = columns.iter().flatten().map(|&number| number as i64).chain(timesteps).collect();
        let values: Vec<f32> = all().filter_map(|row| advantages[row.sample]).map(|value| value as f32).collect();
        let device = trajectories.latents.device();
        let numbers = Tensor::from_slice(&numbers).f_to_device(device)?;
        let values = Tensor::from_slice(&values).f_to_device(device)?;
        let (n_rows, n_kept) = (columns[0].len() as i64, columns[3].len() as i64);
        let (mut row, mut kept_row) = (0, 0);
        let of_call = |rows: &Vec<Row>| {
            let (n, kept) = (rows.len() as i64, rows.iter().filter(|row| is_kept(row)).count() as i64);
            let column = |start: i64| numbers.narrow(0, start + row, n);
            let inputs = CallInputs {
                n_rows: rows.len(),
                places: column(0),
                steps: column(n_rows),
                prompts: column(2 * n_rows),
                kept: (kept < n).then(|| numbers.narrow(0, 3 * n_rows + kept_row, kept)),
                timesteps: column(3 * n_rows + n_kept),
                advantages: values.narrow(0, kept_row, kept),
            };
            (row, kept_row) = (row + n, kept_row + kept);
            inputs
        };
        Ok(calls.clone().map(of_call).collect())
    }

    /// Computes the gradient of the rows of a call, each with this weight in the loss; those of samples without an advantage only
    /// fill their places in the call. Returns their [`sums`].
    fn accumulate(&mut self, steps: &Steps, call: &CallInputs, weight: f64) -> Result<Tensor> {
        let device = steps.latents.device();
        let [latents, next_latents, old_log_probs] =
            [&steps.latents, &steps.next_latents, &steps.log_probs].map(|of| of.index_select(0, &call.places));
        let kept = |of_rows: Tensor| match &call.kept {
            Some(kept) => of_rows.index_select(0, kept),
            None => of_rows,
        };
        let CallInputs { steps, timesteps, advantages, .. } = call;
        let text = self.policy.text(&call.prompts);

        let (prediction, recomputing) = if self.config.gradient_checkpointing {
            let (prediction, recomputing) = self.policy.predict_recomputing(&latents, timesteps, &text);
            (prediction, Some(recomputing))
        } else {
            (self.policy.predict(&latents, timesteps, &text), None)
        };
        let log_prob = kept(self.policy.log_prob(&prediction, steps, &latents, &next_latents));
        let range = self.config.clip_range;
        let ppo = ppo_loss(&log_prob, &kept(old_log_probs), advantages, range);
        let mut loss = ppo.sum.shallow_clone();
        let mut of_kl = Tensor::zeros([], (Kind::Float, device));
        if self.config.kl > 0.0 {
            self.lora.enable(&mut self.policy.unet, false);
            let reference = no_grad(|| self.policy.predict(&latents, timesteps, &text));
            self.lora.enable(&mut self.policy.unet, true);
            let kl = kept(self.policy.kl_divergence(&prediction, &reference, steps, &latents)).sum(Kind::Float);
            loss = &loss + &kl * self.config.kl;
            of_kl = kl.detach();
        }
        (&loss * weight).f_backward()?;
        if let Some(recomputing) = recomputing {
            recomputing.backward(&self.policy.unet)?;
        }
        Ok(no_grad(|| sums(&loss.detach(), &ppo, &of_kl, range)))
    }
}

/// The PPO loss of some rows.
struct PpoLoss {
    /// The negated clipped objective, summed over the rows: a scalar.
    sum: Tensor,
    /// Log of the importance ratio, \[n\].
    log_ratio: Tensor,
    /// Importance ratio, \[n\].
    ratio: Tensor,
}

/// Computes PPO's clipped objective (Schulman et al., arXiv 1707.06347, equation 7) from log-probabilities and
/// advantages, all \[n\], f32, with ratios clipped to 1 ± `clip_range`.
fn ppo_loss(log_prob: &Tensor, old_log_prob: &Tensor, advantages: &Tensor, clip_range: f64) -> PpoLoss {
    let log_ratio = log_prob - old_log_prob;
    let ratio = log_ratio.exp();
    let clamped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range);
    let objective = (&ratio * advantages).minimum(&(clamped * advantages));
    PpoLoss { sum: -objective.sum(Kind::Float), log_ratio, ratio }
}

/// Returns the sums over the rows of a call, \[[`SUMS`]\], whose loss may include more than PPO's.
fn sums(loss: &Tensor, ppo: &PpoLoss, kl: &Tensor, clip_range: f64) -> Tensor {
    let distance = (ppo.ratio.detach() - 1.0).abs();
    let squared_log_ratio = ppo.log_ratio.detach().square().sum(Kind::Float);
    let clipped = distance.gt(clip_range).sum(Kind::Float);
    let n_rows = Tensor::full([], distance.numel() as f64, (Kind::Float, distance.device()));
    Tensor::stack(&[loss, &squared_log_ratio, &clipped, kl, &n_rows, &distance.max()], 0)
}

impl Totals {
    /// Returns the statistics of the calls of all processes, in whose order they are added, whoever made them.
    fn statistics(self, processes: &Processes) -> Result<UpdateStatistics> {
        let (numbers, values): (Vec<[usize; 3]>, Vec<Tensor>) = self.calls.into_iter().unzip();
        let values = match values.is_empty() {
            true => vec![],
            false => Vec::<f32>::try_from(&Tensor::cat(&values, 0).to_device(Device::Cpu))?,
        };
        let mut calls: Vec<([usize; 3], Vec<f64>)> = Vec::new();
        for (numbers, values) in processes.gather((numbers, values))? {
            let of_calls = values.chunks(SUMS).map(|sums| sums.iter().copied().map(f64::from).collect());
            calls.extend(numbers.into_iter().zip(of_calls));
        }
        calls.sort_by_key(|(number, _)| *number);
        let total = |sum: usize| calls.iter().map(|(_, sums)| sums[sum]).sum::<f64>();
        let n_rows = total(4).max(1.0);
        let first = calls.iter().filter(|(number, _)| number[..2] == [0, 0]);
        Ok(UpdateStatistics {
            loss: total(0) / n_rows,
            approx_kl: 0.5 * total(1) / n_rows,
            clip_fraction: total(2) / n_rows,
            ratio_error: first.map(|(_, sums)| sums[5]).fold(0.0, f64::max),
            grad_norm: self.grad_norms.iter().sum::<f64>() / self.grad_norms.len().max(1) as f64,
            kl: total(3) / n_rows,
            dropped_steps: self.dropped_steps,
        })
    }
}

fn permutation(generator: &mut Generator, n: usize) -> Result<Vec<usize>> {
    let order: Vec<i64> = Vec::try_from(generator.permutation(n as i64)?)?;
    Ok(order.into_iter().map(|i| i as usize).collect())
}

#[cfg(test)]
mod tests;
