//! DDPO: rollouts, rewards, advantages and the update (Black et al., Training Diffusion Models with Reinforcement Learning,
//! arXiv 2305.13301).
//!
//! # Layout
//!
//! - [`rollout`]: prompts to trajectories.
//! - [`reward`]: distributions to rewards. [`advantage`]: rewards to advantages.
//! - [`objective`]: trajectories and advantages to an update.

pub mod advantage;
pub mod objective;
pub mod reward;
pub mod rollout;
