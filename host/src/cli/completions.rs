//! `host completions`: shell completion scripts.

use std::io::Write;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, Context};

/// Print a completion script for a shell.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host completions bash > ~/.local/share/bash-completion/completions/host
  host completions zsh > ~/.zfunc/_host
  host completions fish > ~/.config/fish/completions/host.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    /// Runs the command.
    pub fn run(self, _context: &Context) -> Result<()> {
        // clap_complete panics when it cannot write, so it writes to memory first.
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "host", &mut script);
        std::io::stdout().lock().write_all(&script)?;
        Ok(())
    }
}
