//! The host: DDPO fine-tuning with sandboxed classifier plugins, and everything round it.

pub mod can;
mod canvas;
pub mod cli;
pub mod config;
pub mod data;
pub mod ddpo;
pub mod doctor;
pub mod encoders;
pub mod files;
pub mod home;
pub mod hub;
pub mod interrupt;
pub mod plugin;
pub mod pretrain;
pub mod progress;
pub mod random;
pub mod reward;
pub mod run;
pub mod sampler;
pub mod train;
