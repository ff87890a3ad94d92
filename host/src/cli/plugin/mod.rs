//! `host plugin …`: creates, inspects and runs plugins.

mod agree;
mod bench;
mod build;
mod card;
mod check;
mod classify;
mod describe_onnx;
mod diff;
mod fit;
mod inputs;
mod inspect;
mod install;
mod list;
mod new;
mod probes;
mod rename;
mod running;
mod score;
mod serve;
mod sharing;
mod test;
mod uninstall;

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use tch::Device;

use crate::context::Context;
use crate::encoders::Encoders;
use crate::plugin::limits::{NAME_LENGTH, is_name};
use crate::plugin::store::Project;

/// Create, inspect and run plugins: style classifiers and scorers.
#[derive(Args, Debug)]
pub struct PluginArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Agree(agree::AgreeArgs),
    Bench(bench::BenchArgs),
    Build(build::BuildArgs),
    Card(card::CardArgs),
    Check(check::CheckArgs),
    Classify(classify::ClassifyArgs),
    DescribeOnnx(describe_onnx::DescribeArgs),
    Diff(Box<diff::DiffArgs>),
    Fit(Box<fit::FitArgs>),
    Inspect(inspect::InspectArgs),
    Install(install::InstallArgs),
    Keygen(sharing::keygen::KeygenArgs),
    List(list::ListArgs),
    Lock(sharing::lock::LockArgs),
    New(new::NewArgs),
    Outdated(sharing::outdated::OutdatedArgs),
    Pull(sharing::pull::PullArgs),
    Push(sharing::push::PushArgs),
    Rename(rename::RenameArgs),
    Score(score::ScoreArgs),
    Search(sharing::search::SearchArgs),
    #[command(hide = true)]
    Serve(serve::ServeArgs),
    Sign(sharing::sign::SignArgs),
    Test(test::TestArgs),
    Trust(sharing::trust::TrustArgs),
    Uninstall(uninstall::UninstallArgs),
    Update(sharing::update::UpdateArgs),
    Verify(sharing::verify::VerifyArgs),
    Versions(sharing::versions::VersionsArgs),
}

impl PluginArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Command::Agree(args) => args.run(context),
            Command::Bench(args) => args.run(context),
            Command::Build(args) => args.run(context),
            Command::Card(args) => args.run(context),
            Command::Check(args) => args.run(context),
            Command::Classify(args) => args.run(context),
            Command::DescribeOnnx(args) => args.run(context),
            Command::Diff(args) => args.run(context),
            Command::Fit(args) => args.run(context),
            Command::Inspect(args) => args.run(context),
            Command::Install(args) => args.run(context),
            Command::Keygen(args) => args.run(context),
            Command::List(args) => args.run(context),
            Command::Lock(args) => args.run(context),
            Command::New(args) => args.run(context),
            Command::Outdated(args) => args.run(context),
            Command::Pull(args) => args.run(context),
            Command::Push(args) => args.run(context),
            Command::Rename(args) => args.run(context),
            Command::Score(args) => args.run(context),
            Command::Search(args) => args.run(context),
            Command::Serve(args) => args.run(context),
            Command::Sign(args) => args.run(context),
            Command::Test(args) => args.run(context),
            Command::Trust(args) => args.run(context),
            Command::Uninstall(args) => args.run(context),
            Command::Update(args) => args.run(context),
            Command::Verify(args) => args.run(context),
            Command::Versions(args) => args.run(context),
        }
    }
}

/// The value of `--encoder NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct EncoderFolder {
    name: String,
    folder: PathBuf,
}

impl std::str::FromStr for EncoderFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, folder)) if !name.is_empty() && !folder.is_empty() => {
                Ok(Self { name: name.to_owned(), folder: folder.into() })
            }
            _ => Err("write it as NAME=DIR".to_owned()),
        }
    }
}

/// Returns the shipped encoders, those of the project's file, and the named ones.
fn encoders(named: &[EncoderFolder], device: Device, context: &Context) -> Result<Encoders> {
    let mut all = Project::find()?.map(|project| project.encoders).unwrap_or_default();
    all.extend(named.iter().map(|named| (named.name.clone(), named.folder.to_string_lossy().into_owned())));
    Encoders::open(&all, device, context)
}

/// Checks the name of a component's output file.
fn check_component_name(output: &Path) -> Result<()> {
    ensure!(
        output.extension().is_some_and(|extension| extension == "wasm"),
        "-o {} must end in .wasm, the extension of plugin files",
        output.display()
    );
    let stem = output.file_stem().map(|stem| stem.to_string_lossy()).unwrap_or_default();
    ensure!(
        is_name(&stem),
        "-o {} names the plugin, whose name may have {NAME_LENGTH} characters and no control characters",
        output.display()
    );
    Ok(())
}
