//! The binary `host`: parse, log, dispatch, print the error.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ambiguity_host::cli::Cli;
use ambiguity_host::context::Context;
use ambiguity_host::failure::{self, StdoutError};
use ambiguity_host::interrupt::{Interrupt, Interrupted};
use ambiguity_host::plugin::{Fault, PluginError};
use ambiguity_host::progress::Progress;
use ambiguity_host::text::{escaped, escaped_lines, has_control, sentence};
use clap::Parser;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::debug_fn;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse(&error));
    let level = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let progress = Progress::new(cli.global.quiet);
    let filter = EnvFilter::try_from_env("HOST_LOG").unwrap_or_else(|_| {
        EnvFilter::new(format!("warn,ambiguity_host={level},ambiguity_models={level},torch_ext={level}"))
    });
    // Whatever a log line quotes, it stays one line.
    let fields = debug_fn(|writer, field, value| {
        let text = format!("{value:?}");
        match field.name() {
            "message" => write!(writer, "{}", escaped(&text)),
            name => write!(writer, "{name}={}", escaped(&text)),
        }
    });
    tracing_subscriber::fmt()
        .fmt_fields(fields.delimited(" "))
        .with_env_filter(filter)
        .with_writer(progress.clone())
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()))
        .with_target(false)
        .without_time()
        .init();
    failure::quiet_expected_panics();
    match failure::caught(|| run(cli, progress)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_interruption(&error) => {
            eprintln!("{}", sentence(&error));
            ExitCode::from(130)
        }
        // As if the signal had ended the process, which is what a shell expects.
        Err(error) if error.downcast_ref::<StdoutError>().is_some_and(StdoutError::is_closed) => ExitCode::from(141),
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

/// Prints the help, or what is wrong with the arguments, and ends the process. An argument, such as the name of a file that a
/// shell found, may contain control characters: the text is then printed without clap's colors.
fn refuse(error: &clap::Error) -> ! {
    if !std::env::args_os().any(|argument| has_control(&argument.to_string_lossy())) {
        error.exit()
    }
    eprint!("{}", escaped_lines(&error.render().to_string()));
    std::process::exit(error.exit_code())
}

fn run(cli: Cli, progress: Progress) -> anyhow::Result<()> {
    torch_ext::keep_memory();
    let threads = cli.global.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    tch::set_num_threads(i32::try_from(threads)?);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let interrupt = Interrupt::on_signals()?;
    let context = Context { threads, offline: cli.global.offline, progress, interrupt, program: program() };
    cli.command.run(&context)
}

/// Returns this program: on Linux by a path that means it even after its file was replaced.
fn program() -> Option<PathBuf> {
    let own = Path::new("/proc/self/exe");
    if own.exists() { Some(own.to_owned()) } else { std::env::current_exe().ok() }
}

/// Whether the user ended what the command did.
fn is_interruption(error: &anyhow::Error) -> bool {
    let compiling = error.downcast_ref::<PluginError>().is_some_and(|error| matches!(error.fault, Fault::Interrupted));
    compiling || error.is::<Interrupted>()
}
