//! `host can train` and `host classifier train`: the creative adversarial network and the classifier trained without
//! one, the paper's two baselines whose classifiers are trained (sections 3.1.1 and 3.4).
//!
//! # Layout
//! - [`config`]: every value, from a preset, a file and flags.
//! - [`ambiguity`]: L_SA under a plugin, with its gradient through the encoder into libtorch.
//! - `job`: what both trainings are to the loop that they share. `adversarial`: one step of generator and discriminator.
//!   `simple`: one of the classifier alone.
//! - [`trainer`]: the loop: epochs, monitor, checkpoints, resume. `figures`: what it measures in an epoch's steps.
//! - `plan`: memory and time of a run beforehand.
//! - [`networks`]: networks as folders and ONNX files.

mod adversarial;
pub mod ambiguity;
pub mod config;
mod figures;
mod job;
pub mod networks;
mod plan;
mod simple;
pub mod trainer;

pub use self::config::{CanConfig, Task};
pub use self::plan::{Measured, Plan};
pub use self::trainer::{Outcome, Trainer};
