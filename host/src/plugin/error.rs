//! Errors of plugins: each message states what happened, where, and what to do.

use std::path::PathBuf;

use super::limits::{MESSAGE_LENGTH, NAME_LENGTH};
use crate::encoders::EncoderError;
use crate::text::escaped;

/// Returns a plugin's own message as it is shown: cut after [`MESSAGE_LENGTH`] characters, and escaped.
pub(super) fn quoted(message: &str) -> String {
    let (shown, end) = match message.char_indices().nth(MESSAGE_LENGTH) {
        Some((end, _)) => (&message[..end], "… (cut off)"),
        None => (message, ""),
    };
    format!("{}{end}", escaped(shown))
}

/// Returns a name that a plugin or a file gives to something, as messages show it: cut after [`NAME_LENGTH`] characters, and
/// escaped.
pub(super) fn quoted_name(name: &str) -> String {
    match name.char_indices().nth(NAME_LENGTH) {
        Some((end, _)) => format!("{}…", escaped(&name[..end])),
        None => escaped(name).into_owned(),
    }
}

/// A fault, with the plugin and the sample that it belongs to.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct PluginError {
    /// The plugin, by its file's name without extension.
    pub plugin: String,
    /// Index of the sample in the batch that the plugin was processing, if known.
    pub sample: Option<usize>,
    /// What went wrong.
    pub fault: Fault,
}

impl PluginError {
    /// Returns the error for a fault that concerns no particular sample.
    pub fn new(plugin: impl Into<String>, fault: Fault) -> Self {
        Self { plugin: plugin.into(), sample: None, fault }
    }

    /// Returns the message as one line: a fault may quote a plugin, a model or a library.
    fn sentence(&self) -> String {
        let at = self.sample.map(|i| format!(" at sample {i}")).unwrap_or_default();
        escaped(&format!("plugin `{}`{at}: {}", self.plugin, self.fault)).into_owned()
    }
}

/// What went wrong with a plugin.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No such file exists.
    #[error("not found{}{}", in_folders(.folders), choices(.similar.as_deref(), .available))]
    NotFound {
        /// The folders that were searched.
        folders: Vec<PathBuf>,
        /// The available plugin that is meant, if one has a similar name.
        similar: Option<String>,
        /// Names of the available plugins.
        available: Vec<String>,
    },
    /// The file is another one than the user named.
    #[error("its sha256 is {found}, but it must be {expected}: get the file again, or name the digest of this one")]
    Digest {
        /// The file's digest.
        found: String,
        /// The digest that the user named.
        expected: String,
    },
    /// A folder does not contain exactly one plugin.
    #[error("{0}")]
    Folder(String),
    /// The file could not be read.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is of another kind.
    #[error("{path} is not a WebAssembly component: {found}", path = .path.display())]
    NotAComponent {
        /// The file.
        path: PathBuf,
        /// What it is instead, and what to do.
        found: String,
    },
    /// The file is truncated or corrupt.
    #[error("{path} is damaged: {detail}; get the file again", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage and its position.
        detail: String,
    },
    /// The file or the data baked into it is larger than allowed.
    #[error("{what} is {found} bytes, the limit is {limit}")]
    TooLarge {
        /// The part that is too large.
        what: String,
        /// Its size in bytes.
        found: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Compiling the file would take too much memory and time.
    #[error("compiling it would take too much memory and time: {what}")]
    Complexity {
        /// The count that is above its limit.
        what: String,
    },
    /// The file needs features of WebAssembly that this host does not have.
    #[error("it uses WebAssembly's {features}, which this host does not have; build it without")]
    Features {
        /// The names of the features.
        features: String,
    },
    /// The plugin imports something that plugins may not import.
    #[error(
        "it imports `{import}`: a plugin gets no files, clock, network or randomness, only the interfaces of ambiguity:plugin; {remedy}"
    )]
    Import {
        /// The import.
        import: String,
        /// How to fix it.
        remedy: &'static str,
    },
    /// The plugin imports something of the plugin interface that this host does not have.
    #[error(
        "it imports {import}, which plugin interface {host} of this host does not have; update the host, or build the plugin for {host}"
    )]
    Newer {
        /// The interface, or the function and the interface.
        import: String,
        /// The versions that the host supports.
        host: String,
    },
    /// The component is not a plugin.
    #[error(
        "it is a component but no plugin: it exports {exports}, not `ambiguity:plugin/description` and one of `classifier` and `scorer`; build it for a world of wit/plugin.wit, such as `classifier-plugin`"
    )]
    WrongWorld {
        /// The names of its exports.
        exports: String,
    },
    /// This host does not support the plugin's interface version.
    #[error("it was built for plugin interface {plugin}, this host supports {host}; {remedy}")]
    Interface {
        /// The plugin's version.
        plugin: String,
        /// The versions that the host supports.
        host: String,
        /// How to fix it.
        remedy: &'static str,
    },
    /// The types of the imports or exports differ from the interface's.
    #[error("it does not fit plugin interface {interface}: {detail}; build it again from wit/plugin.wit")]
    Link {
        /// The interface version.
        interface: String,
        /// The first difference.
        detail: String,
    },
    /// The file is a model, but cannot be used as a plugin as it is.
    #[error("{0}")]
    Unusable(String),
    /// The runtime for this kind of plugin is missing.
    #[error("{0}")]
    Runtime(String),
    /// The plugin's description is invalid.
    #[error("its description is invalid: {0}")]
    Description(String),
    /// The run sets an option that the plugin does not have, or to a value of another type.
    #[error("{0}")]
    Option(String),
    /// The plugin could not describe itself.
    #[error("it could not describe itself: {0}")]
    Describe(String),
    /// An encoder that it needs is missing or failed.
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
        "it was fitted with encoder `{encoder}` of digest {fitted}, but the `{encoder}` here has digest {found}; name the right one with --encoder {encoder}=DIR, or fit the plugin again"
    )]
    EncoderDigest {
        /// The encoder's name.
        encoder: String,
        /// The digest that the plugin was fitted with.
        fitted: String,
        /// The digest of the encoder at hand.
        found: String,
    },
    /// The plugin is a scorer, where a classifier is needed.
    #[error(
        "it is a scorer, which has no styles; choose a classifier, such as kmeans_image, or use `host plugin score`"
    )]
    NoStyles,
    /// The plugin is a classifier, where a scorer is needed.
    #[error("it is a classifier, which gives no scores; use `host plugin classify`")]
    NoScores,
    /// The plugin has no gradient of its output, which training by gradient needs.
    #[error(
        "it exports no gradient, which training through it needs; use a plugin for which `host plugin inspect` shows `gradient yes`, such as kmeans_image or clip_softmax, or export `ambiguity:plugin/gradient` or `pixel-gradient`"
    )]
    NoGradient,
    /// The plugin returned an error.
    #[error("{0}")]
    Refused(String),
    /// The plugin panicked.
    #[error("{message}{}", inside(.functions))]
    Panic {
        /// The panic's message.
        message: String,
        /// The plugin's functions on the call stack, innermost first.
        functions: Vec<String>,
    },
    /// The plugin failed without returning.
    #[error("it failed: {reason}{}", inside(.functions))]
    Trap {
        /// The reason.
        reason: String,
        /// The plugin's functions on the call stack, innermost first.
        functions: Vec<String>,
    },
    /// The plugin took too long.
    #[error(
        "it ran longer than {limit_ms} ms; fix an endless loop, or raise `plugin.timeout_ms`{}", inside(.functions)
    )]
    Timeout {
        /// The limit in milliseconds.
        limit_ms: u64,
        /// The plugin's functions on the call stack, innermost first.
        functions: Vec<String>,
    },
    /// The plugin used up its fuel.
    #[error("it used up its {budget} units of fuel; fix an endless loop, or raise `plugin.fuel`{}", inside(.functions))]
    Fuel {
        /// The fuel of the call.
        budget: u64,
        /// The plugin's functions on the call stack, innermost first.
        functions: Vec<String>,
    },
    /// The plugin requested more memory than its limit.
    #[error(
        "it requested {requested_mib} MiB of memory, the limit is {limit_mib} MiB; raise `plugin.memory_mib` if it needs that much"
    )]
    Memory {
        /// The total that it requested, in MiB.
        requested_mib: usize,
        /// The limit in MiB.
        limit_mib: usize,
    },
    /// The plugin passed more data to the host than one call may.
    #[error("it passed more than {limit_mib} MiB to the host in one call")]
    Handover {
        /// The limit in MiB.
        limit_mib: usize,
    },
    /// The plugin asked for too much work by the host.
    #[error("it asked the host for {what}")]
    HostWork {
        /// The work that it asked for, and the limit.
        what: String,
    },
    /// The call stack overflowed.
    #[error("its stack overflowed; fix an endless recursion, or make local arrays smaller{}", inside(.functions))]
    Stack {
        /// The plugin's functions on the call stack, innermost first.
        functions: Vec<String>,
    },
    /// The returned values are not distributions, not scores, or not a gradient.
    #[error("{0}")]
    Output(String),
    /// A registry has no such plugin or cannot be reached, or what it has must not be used.
    #[error("{0}")]
    Registry(String),
    /// The user interrupted the loading of the plugin.
    #[error("interrupted while it was loaded")]
    Interrupted,
    /// Not the plugin's fault: the sandbox itself failed.
    #[error("the sandbox failed: {0}")]
    Sandbox(String),
}

fn in_folders(folders: &[PathBuf]) -> String {
    let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    if folders.is_empty() { String::new() } else { format!(" in {}", folders.join(", ")) }
}

fn choices(similar: Option<&str>, available: &[String]) -> String {
    let similar = similar.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
    if available.is_empty() {
        similar
    } else {
        format!("{similar}{} {}", if similar.is_empty() { "; available:" } else { " Available:" }, available.join(", "))
    }
}

fn inside(functions: &[String]) -> String {
    if functions.is_empty() { String::new() } else { format!(" (in {})", functions.join(" < ")) }
}
