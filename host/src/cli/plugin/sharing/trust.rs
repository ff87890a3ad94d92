//! `host plugin trust`: whose signatures are accepted.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::context::Context;
use crate::plugin::store::Project;
use crate::plugin::store::signature::Key;
use crate::plugin::store::trust::{Policy, TrustFile, TrustedKey, trust_file};
use crate::text::{key_hint, table, to_json};

/// Choose whose signatures of plugins are accepted, by namespace, and what happens with the others.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin trust add team-a team-a.pub --namespace registry.example.com/team-a
  host plugin trust list
  host plugin trust policy require")]
pub struct TrustArgs {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON document about the trusted keys and the policy
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trust a key for the plugins of a namespace
    #[command(after_help = "Examples:
  host plugin trust add team-a team-a.pub --namespace registry.example.com/team-a
  host plugin trust add team-b RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3 --namespace '*' --expires 2027-12-31

A plugin of that namespace that this key did not sign is then refused, unless another key is trusted for it too.")]
    Add {
        /// The name that messages have
        name: String,
        /// The public key: minisign's base64, or the file NAME.pub
        key: String,
        /// The plugins that it may sign: REGISTRY/NAMESPACE, a registry, one plugin's place, or *
        #[arg(long, value_name = "NS")]
        namespace: String,
        /// The last day on which its signatures are accepted
        #[arg(long, value_name = "YYYY-MM-DD")]
        expires: Option<String>,
    },
    /// List the trusted keys and the policy
    #[command(after_help = "Example:
  host plugin trust list")]
    List,
    /// Trust a key no more
    #[command(after_help = "Example:
  host plugin trust remove team-a")]
    Remove {
        /// The key's name
        name: String,
    },
    /// Set what happens with a plugin of a registry that nobody trusted has signed
    #[command(after_help = "Example:
  host plugin trust policy require

require   it is refused
warn      it is used, with a warning (default)
off       signatures are not looked for

A project's ambiguity.toml may ask for more; AMBIGUITY_TRUST sets the policy of one command.")]
    Policy {
        /// The policy
        policy: Policy,
    },
}

impl TrustArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        let path =
            trust_file().context("there is no folder for trust.toml: HOME and XDG_CONFIG_HOME are both unset")?;
        let mut file = TrustFile::open(&path)?;
        let said = match self.command {
            Command::List => return list(&path, &file, self.json),
            Command::Add { name, key, namespace, expires } => {
                let key = if Path::new(&key).is_file() { Key::open(Path::new(&key)) } else { Key::read(&key) }?;
                let namespace = namespace.trim_end_matches('/').to_owned();
                let added = TrustedKey { name, namespace, key: key.to_base64(), expires };
                added.read()?;
                let taken = file.keys.iter().any(|other| other.name == added.name);
                ensure!(!taken, "there is a key {} already: remove it, or use another name", added.name);
                let said = format!("{} (key {}) may sign plugins of {}", added.name, key.id(), added.namespace);
                file.keys.push(added);
                said
            }
            Command::Remove { name } => {
                let Some(at) = file.keys.iter().position(|key| key.name == name) else {
                    let names: Vec<&str> = file.keys.iter().map(|key| key.name.as_str()).collect();
                    let hint = if names.is_empty() { "no key is".to_owned() } else { key_hint(&name, &names) };
                    bail!("the key `{name}` is not trusted; {hint}");
                };
                file.keys.remove(at);
                format!("{name} is trusted no more")
            }
            Command::Policy { policy } => {
                file.policy = Some(policy);
                format!("the policy is {}", word(policy))
            }
        };
        file.write(&path)?;
        context.progress.println(said);
        if self.json { list(&path, &file, true) } else { Ok(()) }
    }
}

fn word(policy: Policy) -> &'static str {
    match policy {
        Policy::Off => "off",
        Policy::Warn => "warn",
        Policy::Require => "require",
    }
}

fn list(path: &Path, own: &TrustFile, as_json: bool) -> Result<()> {
    let project = Project::find()?;
    let empty = TrustFile::default();
    let projects = project.as_ref().map_or(&empty, |project| &project.trust);
    let file = project.as_ref().map(|project| project.folder.join(crate::plugin::store::PROJECT_FILE));
    let sources = [(path.to_owned(), own)].into_iter().chain(file.map(|file| (file, projects)));
    let sources: Vec<(PathBuf, &TrustFile)> = sources.collect();
    let policy = sources.iter().filter_map(|(_, file)| file.policy).max().unwrap_or(Policy::Warn);
    let mut rows = vec![];
    for (source, file) in &sources {
        for key in &file.keys {
            rows.push((key, key.read()?.id(), source));
        }
    }
    if as_json {
        let keys = rows.iter().map(|(key, id, source)| {
            json!({
                "name": key.name, "id": id, "namespace": key.namespace, "key": key.key, "expires": key.expires,
                "from": source.to_string_lossy(),
            })
        });
        println!("{}", to_json(&json!({ "policy": word(policy), "keys": keys.collect::<Vec<_>>() })));
        return Ok(());
    }
    println!("policy: {}", word(policy));
    if rows.is_empty() {
        println!("no key is trusted; `host plugin trust add` adds one");
        return Ok(());
    }
    let header = ["name", "key", "namespace", "expires", "from"].map(str::to_owned).to_vec();
    let cells = rows.iter().map(|(key, id, source)| {
        let expires = key.expires.clone().unwrap_or_else(|| "never".to_owned());
        vec![key.name.clone(), id.clone(), key.namespace.clone(), expires, source.display().to_string()]
    });
    print!("{}", table(&[true; 5], &std::iter::once(header).chain(cells).collect::<Vec<_>>()));
    Ok(())
}
