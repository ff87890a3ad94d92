//! The trainings: what is particular to each; [`crate::trainer`] has what they share.
//!
//! # Layout
//!
//! - [`fine_tune`]: DDPO on a LoRA, `host train`.
//! - [`image_training`]: steps over real images by style, which [`gan`] (`host can train`) and [`classifier`]
//!   (`host classifier train`) share. [`networks`]: their networks with what trains them, and as files. [`image_plan`]:
//!   memory and time of such a training before it starts.
//! - [`pretrain`]: the small models that ship, `host pretrain`.

pub mod classifier;
pub mod fine_tune;
pub mod gan;
pub mod image_plan;
pub mod image_training;
pub mod networks;
pub mod pretrain;
