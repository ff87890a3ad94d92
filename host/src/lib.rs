//! The host: DDPO fine-tuning with sandboxed classifier plugins, and everything round it.

pub mod cli;
pub mod data;
pub mod interrupt;
pub mod plugin;
pub mod pretrain;
pub mod random;
pub mod run;
