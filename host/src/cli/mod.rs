//! The commands, one file each; this file only parses and dispatches.

pub mod art;
pub mod cache;
pub mod can;
pub mod classifier;
pub mod completions;
pub mod doctor;
pub mod embed;
pub mod eval;
pub mod lora;
pub mod models;
mod numbers;
pub mod plugin;
pub mod pretrain;
pub mod processes;
pub mod report;
pub mod rescore;
mod run_args;
pub mod sample;
mod samples;
pub mod train;

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};

use self::processes::ProcessArgs;
use crate::context::Context;
use crate::plugin::artifact::INTERFACE;

/// The program's version, the commit that it was built from, and the version of the plugin interface.
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    let (major, minor, patch) = INTERFACE;
    let (version, commit) = (env!("CARGO_PKG_VERSION"), option_env!("AMBIGUITY_COMMIT").unwrap_or("unknown"));
    format!("{version} (commit {commit}, plugin interface {major}.{minor}.{patch})")
});

/// Style-ambiguity training for image generators, with sandboxed classifier plugins.
#[derive(Debug, Parser)]
#[command(name = "host", version = VERSION.as_str(), propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// Flags of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Maximum number of compute threads: more than any machine has cores, fewer than a system refuses.
const MAX_THREADS: u64 = 1024;

/// Flags of all commands.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Number of compute threads [default: all cores]
    #[arg(long, global = true, value_name = "N", help_heading = "Global")]
    #[arg(value_parser = RangedU64ValueParser::<usize>::new().range(1..=MAX_THREADS))]
    pub threads: Option<usize>,
    /// Do not use the network, not even for a model that is named by its id on the Hub
    #[arg(long, global = true, env = "HF_HUB_OFFLINE", value_parser = clap::builder::FalseyValueParser::new(), help_heading = "Global")]
    pub offline: bool,
    /// Append what is printed on stderr, and more, to a file, each line with its time
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global")]
    pub log_file: Option<PathBuf>,
    /// Print more on stderr (-vv: even more)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global")]
    pub verbose: u8,
    /// Print only warnings and errors on stderr, without progress bars
    #[arg(short, long, global = true, help_heading = "Global")]
    pub quiet: bool,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Art(art::ArtArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Cache(cache::CacheArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Can(can::CanArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Classifier(classifier::ClassifierArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Completions(completions::CompletionsArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Doctor(doctor::DoctorArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Embed(embed::EmbedArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Eval(Box<eval::EvalArgs>),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Lora(lora::LoraArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Models(models::ModelsArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Plugin(plugin::PluginArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Pretrain(pretrain::PretrainArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Report(report::ReportArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Rescore(rescore::RescoreArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Sample(sample::SampleArgs),
    #[expect(missing_docs, reason = "the arguments' own line is the help")]
    Train(Box<train::TrainArgs>),
}

impl Command {
    /// Returns the flags of a command that several processes can work on.
    pub fn processes(&self) -> Option<&ProcessArgs> {
        match self {
            Self::Can(args) => args.processes(),
            Self::Classifier(args) => Some(args.processes()),
            Self::Eval(args) => Some(&args.processes),
            Self::Train(args) => Some(&args.processes),
            _ => None,
        }
    }

    /// Runs the command.
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Art(args) => args.run(context),
            Self::Cache(args) => args.run(context),
            Self::Can(args) => args.run(context),
            Self::Classifier(args) => args.run(context),
            Self::Completions(args) => args.run(context),
            Self::Doctor(args) => args.run(context),
            Self::Embed(args) => args.run(context),
            Self::Eval(args) => args.run(context),
            Self::Lora(args) => args.run(context),
            Self::Models(args) => args.run(context),
            Self::Plugin(args) => args.run(context),
            Self::Pretrain(args) => args.run(context),
            Self::Report(args) => args.run(context),
            Self::Rescore(args) => args.run(context),
            Self::Sample(args) => args.run(context),
            Self::Train(args) => args.run(context),
        }
    }
}
