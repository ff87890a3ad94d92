//! The host: trains image generators for style ambiguity on libtorch, with sandboxed classifier plugins.
//!
//! # Layout
//!
//! The modules are listed in reading order; a module imports only those above it, which a test checks.
//!
//! - Leaves: [`context`], [`failure`], [`fs`], [`text`], [`random`], [`interrupt`], [`progress`], [`memory`],
//!   [`statistics`], [`optim`].
//! - [`net`]: requests and downloads.
//! - [`zoo`]: models and encoders by folder, shipped name or Hub id.
//! - [`config`]: presets, files and flags become one checked configuration.
//! - [`data`]: prompts, images, recordings, images by style.
//! - [`encoders`]: embeddings of images and texts.
//! - [`plugin`]: style classifiers in a sandbox.
//! - [`policy`]: a diffusion model as an RL policy. [`rl`]: rollouts, rewards, advantages, the update.
//! - [`generator`]: a model that generates images, with or without a LoRA.
//! - [`run`]: a run's folder and its typed records. [`report`]: the page and images that show it.
//! - [`metrics`]: metrics of images. [`evaluation`]: images to evaluate, generated or given, and what was measured of them.
//! - [`trainer`]: the one training loop. [`tasks`]: what is specific to each task.
//! - [`cli`]: the commands.

pub mod cli;
pub mod config;
pub mod context;
pub mod data;
pub mod encoders;
pub mod energy;
pub mod evaluation;
pub mod failure;
pub mod fs;
pub mod generator;
pub mod hardware;
pub mod interrupt;
pub mod memory;
pub mod metrics;
pub mod net;
pub mod nvml;
pub mod optim;
pub mod plugin;
pub mod policy;
pub mod processes;
pub mod progress;
pub mod random;
pub mod report;
pub mod rl;
pub mod run;
pub mod statistics;
pub mod tasks;
pub mod text;
pub mod trainer;
pub mod zoo;
