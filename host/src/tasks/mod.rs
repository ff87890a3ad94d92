//! The tasks: what is specific to each; [`crate::trainer`] is what they share.
//!
//! # Layout
//!
//! - [`fine_tune`]: DDPO fine-tuning of a LoRA, `host train`.
//! - [`image_training`]: training on real images by style, which [`gan`] (`host can train`) and [`classifier`]
//!   (`host classifier train`) share. [`networks`]: their networks, optimizers and files. [`image_plan`]: memory and
//!   time of such a training before it starts.
//! - [`pretrain`]: the shipped small models, `host pretrain`.

pub mod classifier;
pub mod fine_tune;
pub mod gan;
pub mod image_plan;
pub mod image_training;
pub mod networks;
pub mod pretrain;
