//! `host plugin serve`: what the other commands start, to compile a component or to run a model within limits; users do not
//! call it.

use anyhow::{Context as _, Result};
use clap::Args;

use crate::context::Context;
use crate::plugin::{Service, serve};

/// Work for another process of this program over stdin and stdout.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The kind of work
    service: Service,
}

impl ServeArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        serve(self.service, context.threads).context("working for another process")
    }
}
