//! The binary `host`: parse, log, dispatch, print the error.

use std::fs::File;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use ambiguity_host::cli::completions::VARIABLE;
use ambiguity_host::cli::processes::ProcessArgs;
use ambiguity_host::cli::{Cli, VERSION};
use ambiguity_host::context::Context;
use ambiguity_host::failure::{self, StdoutError};
use ambiguity_host::interrupt::{Interrupt, Interrupted};
use ambiguity_host::plugin::{Fault, PluginError};
use ambiguity_host::processes::{Place, Processes, threads_of_each};
use ambiguity_host::progress::{PRINTED, Progress};
use ambiguity_host::text::{escaped, escaped_lines, has_control, in_one_line, sentence};
use anyhow::Context as _;
use clap::{CommandFactory as _, Parser as _};
use clap_complete::CompleteEnv;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// The flag by which commands print JSON; errors are then printed as JSON too.
const JSON: &str = "--json";

fn main() -> ExitCode {
    // A shell's completion script asks what fits; the answer is all that this call prints.
    CompleteEnv::with_factory(Cli::command).var(VARIABLE).bin("host").complete();
    let wants_json =
        std::env::args_os().skip(1).take_while(|argument| argument != "--").any(|argument| argument == JSON);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if wants_json && error.use_stderr() => {
            let text = error.render().to_string();
            let sentence = text.split("\n\nUsage:").next().unwrap_or_default();
            eprintln!("{}", document(in_one_line(sentence.trim_start_matches("error: ")), 2));
            return ExitCode::from(2);
        }
        Err(error) => refuse(&error),
    };
    let place = match cli.command.processes().map_or(Ok(None), |_| Place::of_launcher()) {
        Ok(place) => place,
        Err(error) => return failed(&error, wants_json),
    };
    let progress = Progress::new(cli.global.quiet || !is_first(place.as_ref()));
    if let Err(error) = start_log(&cli, place.as_ref(), &progress) {
        return failed(&error, wants_json);
    }
    failure::quiet_expected_panics();
    let context = match context(&cli, place, progress) {
        Ok(context) => context,
        Err(error) => return failed(&error, wants_json),
    };
    let done = failure::caught(|| {
        cli.command.run(&context)?;
        context.processes.finish()
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if context.processes.leave(&error) => {
            tracing::error!(target: PRINTED, "{}", sentence(&error));
            ExitCode::from(exit_code(&error))
        }
        Err(error) => failed(&error, wants_json),
    }
}

/// Whether a process of this place, or one that works alone, prints.
fn is_first(place: Option<&Place>) -> bool {
    place.is_none_or(Place::is_first)
}

/// Starts the log on stderr, and in the file of `--log-file`.
fn start_log(cli: &Cli, place: Option<&Place>, progress: &Progress) -> anyhow::Result<()> {
    let level = match (cli.global.quiet, cli.global.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let of_level =
        |level: &str| format!("warn,ambiguity_host={level},ambiguity_models={level},torch_ext={level},{PRINTED}=off");
    let filter = match is_first(place) {
        true => EnvFilter::try_from_env("HOST_LOG").unwrap_or_else(|_| EnvFilter::new(of_level(level))),
        // The first process prints what all would print.
        false => EnvFilter::new("off"),
    };
    // Whatever a log line quotes, it stays one line.
    let fields = || {
        let format = debug_fn(|writer, field, value| {
            let text = format!("{value:?}");
            match field.name() {
                "message" => write!(writer, "{}", escaped(&text)),
                name => write!(writer, "{name}={}", escaped(&text)),
            }
        });
        format.delimited(" ")
    };
    let stderr = tracing_subscriber::fmt::layer()
        .fmt_fields(fields())
        .with_writer(progress.clone())
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()))
        .with_target(false)
        .without_time()
        .with_filter(filter.add_directive(format!("{PRINTED}=off").parse()?));
    let file = cli.global.log_file.as_ref().map(|path| {
        let path = match place.filter(|place| !place.is_first()) {
            Some(place) => PathBuf::from(format!("{}.{}", path.display(), place.rank())),
            None => path.clone(),
        };
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("--log-file {}", path.display()))?;
        let level = if cli.global.verbose > 1 { "trace" } else { "debug" };
        let layer =
            tracing_subscriber::fmt::layer().fmt_fields(fields()).with_writer(Mutex::new(file)).with_ansi(false);
        let filter = EnvFilter::new(of_level(level)).add_directive(format!("{PRINTED}=info").parse()?);
        anyhow::Ok(layer.with_target(false).with_filter(filter))
    });
    tracing_subscriber::registry().with(file.transpose()?).with(stderr).init();
    let arguments: Vec<String> = std::env::args_os().map(|part| part.to_string_lossy().into_owned()).collect();
    tracing::info!(target: PRINTED, "host {}: {}", VERSION.as_str(), arguments.join(" "));
    Ok(())
}

/// Prints why a command failed, and returns its exit code.
fn failed(error: &anyhow::Error, wants_json: bool) -> ExitCode {
    // As if the signal had ended the process, which is what a shell expects.
    if error.downcast_ref::<StdoutError>().is_some_and(StdoutError::is_closed) {
        return ExitCode::from(141);
    }
    let (sentence, code) = (sentence(error), exit_code(error));
    tracing::error!(target: PRINTED, "{sentence}");
    match (wants_json, code) {
        (true, _) => eprintln!("{}", document(sentence, code)),
        (false, 130) => eprintln!("{sentence}"),
        (false, _) => eprintln!("error: {sentence}"),
    }
    ExitCode::from(code)
}

/// Returns an error as JSON, on one line: the last of stderr, behind the log.
fn document(sentence: String, code: u8) -> serde_json::Value {
    serde_json::json!({ "error": sentence, "exit_code": code })
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

/// Sets up the process for the command, and connects it with the others that work on it.
fn context(cli: &Cli, place: Option<Place>, progress: Progress) -> anyhow::Result<Context> {
    torch_ext::keep_memory();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let together = cli.command.processes();
    let nproc = together.and_then(ProcessArgs::starts);
    let threads = cli.global.threads.unwrap_or_else(|| threads_of_each(cores, place.as_ref(), nproc));
    tch::set_num_threads(i32::try_from(threads)?);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let interrupt = Interrupt::on_signals(!is_first(place.as_ref()))?;
    let processes = Processes::default();
    let context = Context { threads, offline: cli.global.offline, progress, interrupt, program: program(), processes };
    match together {
        Some(together) => Ok(Context { processes: together.connect(place, &context)?, ..context }),
        None => Ok(context),
    }
}

/// Returns this program: on Linux by a path that means it even after its file was replaced.
fn program() -> Option<PathBuf> {
    let own = Path::new("/proc/self/exe");
    if own.exists() { Some(own.to_owned()) } else { std::env::current_exe().ok() }
}

/// Returns the exit code of an error.
fn exit_code(error: &anyhow::Error) -> u8 {
    if is_interruption(error) { 130 } else { 1 }
}

/// Whether the user ended what the command did.
fn is_interruption(error: &anyhow::Error) -> bool {
    let compiling = error.downcast_ref::<PluginError>().is_some_and(|error| matches!(error.fault, Fault::Interrupted));
    compiling || error.is::<Interrupted>()
}
