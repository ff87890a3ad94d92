//! What can go wrong with a plugin: every message is ours, and says what happened, where, and what to do.

use std::path::PathBuf;

use super::limits::MESSAGE_LENGTH;
use crate::encoders::EncoderError;

/// A plugin's own words, cut where they go on for too long.
pub(super) fn cut(message: String) -> String {
    match message.char_indices().nth(MESSAGE_LENGTH) {
        Some((end, _)) => format!("{}… (cut off)", &message[..end]),
        None => message,
    }
}

/// A fault, and whose it is.
#[derive(Debug, thiserror::Error)]
#[error("plugin `{plugin}`{at}: {fault}", at = .sample.map(|i| format!(" at sample {i}")).unwrap_or_default())]
pub struct PluginError {
    /// The plugin, by its file's name without extension.
    pub plugin: String,
    /// The sample of the batch that it was at, where that is known.
    pub sample: Option<usize>,
    /// What happened.
    pub fault: Fault,
}

impl PluginError {
    /// A fault that belongs to no sample.
    pub fn new(plugin: impl Into<String>, fault: Fault) -> Self {
        Self { plugin: plugin.into(), sample: None, fault }
    }
}

/// What happened.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is no such file.
    #[error("not found{}{}", looked_in(.folders), there_are(.available))]
    NotFound {
        /// Where it was looked for.
        folders: Vec<PathBuf>,
        /// Names of plugins that are there.
        available: Vec<String>,
    },
    /// A folder has no plugin that could be meant.
    #[error("{0}")]
    Folder(String),
    /// The file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The file is of another kind.
    #[error("{path} is no WebAssembly component: {found}", path = .path.display())]
    NotAComponent {
        /// The file.
        path: PathBuf,
        /// What it is instead, and what to do.
        found: String,
    },
    /// The file is cut off or corrupt.
    #[error("{path} is damaged: {detail}; get the file again", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it breaks.
        detail: String,
    },
    /// The file or what is baked into it is larger than allowed.
    #[error("{what} is {found} bytes, the limit is {limit}")]
    TooLarge {
        /// The thing that is too large.
        what: String,
        /// Its size in bytes.
        found: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The plugin asks for something that no plugin gets.
    #[error(
        "it imports `{import}`: a plugin gets no files, clock, network or randomness, only the interfaces of ambiguity:plugin; {remedy}"
    )]
    Import {
        /// The import.
        import: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The component is no plugin.
    #[error(
        "it is a component but no style classifier: it exports {exports}, not `ambiguity:plugin/classifier`; build it for the world `plugin` of wit/plugin.wit"
    )]
    WrongWorld {
        /// What it exports.
        exports: String,
    },
    /// The interface version is one that this host does not speak.
    #[error("it was built for plugin interface {plugin}, this host speaks {host}; {remedy}")]
    Interface {
        /// The plugin's version.
        plugin: String,
        /// The host's range.
        host: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The imports or exports have other types than the interface's.
    #[error("it does not fit plugin interface {interface}: {detail}; build it again from wit/plugin.wit")]
    Link {
        /// The interface version.
        interface: String,
        /// The first difference.
        detail: String,
    },
    /// The file is a model, but cannot be a plugin as it is.
    #[error("{0}")]
    Unusable(String),
    /// What runs this kind of plugin is not there.
    #[error("{0}")]
    Runtime(String),
    /// The plugin says of itself what cannot be.
    #[error("its description is unusable: {0}")]
    Description(String),
    /// The plugin could not describe itself.
    #[error("it could not describe itself: {0}")]
    Describe(String),
    /// An encoder that it needs is not there, or failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// It asks for an encoder that it did not declare.
    #[error("it asks for the encoder `{encoder}`, which its description does not declare")]
    UndeclaredEncoder {
        /// The encoder.
        encoder: String,
    },
    /// The encoder under that name has other weights than the one that the plugin was fitted with.
    #[error(
        "it was fitted with encoder `{encoder}` of digest {fitted}, the `{encoder}` here has {found}; name the right one with --encoder {encoder}=DIR, or fit the plugin again"
    )]
    EncoderDigest {
        /// The encoder's name.
        encoder: String,
        /// The digest that the plugin was fitted with.
        fitted: String,
        /// The digest of the encoder at hand.
        found: String,
    },
    /// It cannot say how its distributions change, which training by gradient needs.
    #[error(
        "it exports no gradient, which training through it needs; take a plugin of which `host plugin inspect` says `gradient yes`, such as kmeans_image or clip_softmax, or export `ambiguity:plugin/gradient`"
    )]
    NoGradient,
    /// The plugin returned an error.
    #[error("{0}")]
    Refused(String),
    /// The plugin panicked.
    #[error("{message}{}", inside(.functions))]
    Panic {
        /// Its last words.
        message: String,
        /// The functions that it was in, innermost first.
        functions: Vec<String>,
    },
    /// The plugin broke off.
    #[error("it broke off: {reason}{}", inside(.functions))]
    Trap {
        /// Why.
        reason: String,
        /// The functions that it was in, innermost first.
        functions: Vec<String>,
    },
    /// The plugin took too long.
    #[error("it ran longer than {limit_ms} ms; an endless loop, or raise `plugin.timeout_ms`{}", inside(.functions))]
    Timeout {
        /// The limit.
        limit_ms: u64,
        /// The functions that it was in, innermost first.
        functions: Vec<String>,
    },
    /// The plugin used up its instructions.
    #[error("it used up its {budget} units of fuel; an endless loop, or raise `plugin.fuel`{}", inside(.functions))]
    Fuel {
        /// The budget of the call.
        budget: u64,
        /// The functions that it was in, innermost first.
        functions: Vec<String>,
    },
    /// The plugin wanted more memory than it may have.
    #[error(
        "it wanted {wanted_mib} MiB of memory, the limit is {limit_mib} MiB; raise `plugin.memory_mib` if it needs that much"
    )]
    Memory {
        /// What it wanted in all.
        wanted_mib: usize,
        /// The limit.
        limit_mib: usize,
    },
    /// The plugin handed over more than it may in one call.
    #[error("it handed over more than {limit_mib} MiB in one call")]
    Handover {
        /// The limit.
        limit_mib: usize,
    },
    /// The plugin has the host work for it without end.
    #[error("it asked the host for {what}")]
    HostWork {
        /// What, and the limit.
        what: String,
    },
    /// Too deep recursion.
    #[error("its stack overflowed; endless recursion, or too large local arrays{}", inside(.functions))]
    Stack {
        /// The functions that it was in, innermost first.
        functions: Vec<String>,
    },
    /// What it returned is no set of distributions, or no gradient.
    #[error("{0}")]
    Output(String),
    /// Not the plugin's fault: the sandbox itself failed.
    #[error("the sandbox failed: {0}")]
    Sandbox(String),
}

fn looked_in(folders: &[PathBuf]) -> String {
    let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    if folders.is_empty() { String::new() } else { format!(" in {}", folders.join(", ")) }
}

fn there_are(available: &[String]) -> String {
    if available.is_empty() { String::new() } else { format!("; there are: {}", available.join(", ")) }
}

fn inside(functions: &[String]) -> String {
    if functions.is_empty() { String::new() } else { format!(" (in {})", functions.join(" < ")) }
}
