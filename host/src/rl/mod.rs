//! DDPO: rollouts, rewards, advantages and the update (Black et al., Training Diffusion Models with Reinforcement
//! Learning, arXiv 2305.13301).
//!
//! # Layout
//!
//! - [`rollout`]: trajectories from prompts.
//! - [`reward`]: rewards from distributions. [`advantage`]: advantages from rewards.
//! - [`objective`]: the update from trajectories and advantages.

pub mod advantage;
pub mod objective;
pub mod reward;
pub mod rollout;

#[cfg(test)]
mod tests;
