//! Seeds by purpose: each use of randomness has its own generator, seeded by a hash of its purpose, so that the
//! micro-batch size, resuming and the number of processes do not change the result.

use sha2::{Digest, Sha256};

/// The purpose of a generator; the numbers are part of seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The choice of a prompt.
    Prompt = 0,
    /// The initial latents.
    Latents = 1,
    /// The sampler's noise at its steps.
    StepNoise = 2,
    /// The choice of timesteps to train on, and other draws of an update.
    Update = 3,
    /// Fresh LoRA or network weights.
    Weights = 4,
    /// The monitor's fixed prompts and noise.
    Monitor = 5,
    /// The choice of training data (a batch of paintings, an augmentation).
    Data = 6,
    /// The noise of an evaluation, which no training and no monitor has.
    Evaluation = 7,
}

/// Returns the seed of a generator from (run seed, epoch, sample or step index, purpose).
pub fn derive_seed(seed: u64, epoch: u64, index: u64, purpose: Purpose) -> u64 {
    let mut hash = Sha256::new();
    hash.update(b"ambiguity");
    for part in [seed, epoch, index, purpose as u64] {
        hash.update(part.to_le_bytes());
    }
    let digest = hash.finalize();
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(bytes)
}
