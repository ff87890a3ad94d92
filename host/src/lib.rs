//! The host: DDPO fine-tuning with sandboxed classifier plugins, and everything round it.

pub mod cli;
pub mod data;
pub mod encoders;
pub mod files;
pub mod home;
pub mod interrupt;
pub mod plugin;
pub mod random;
pub mod run;
