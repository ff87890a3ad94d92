//! Shared parts of the commands that run a plugin: its encoders, its configuration, and the formatting of numbers.

use anyhow::{Context as _, Result};
use clap::Args;
use tch::Device;

use super::{EncoderFolder, encoders};
use crate::config::PluginLimits;
use crate::context::Context;
use crate::encoders::Encoders;
use crate::plugin::{Batch, Description, Kind, Plugin, PluginHost, Sample};

/// The arguments for running a plugin.
#[derive(Args, Debug)]
pub(super) struct RunningArgs {
    /// Folder of an encoder that the plugin asks for; a single one is also used for `clip`
    #[arg(long = "encoder", value_name = "NAME=DIR")]
    encoders: Vec<EncoderFolder>,
    /// One of the plugin's options, which `host plugin inspect` shows
    #[arg(long = "config", value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl RunningArgs {
    /// Loads a plugin with the default limits of a run, and opens the encoders.
    pub(super) fn open(&self, reference: &str, context: &Context) -> Result<(Box<dyn Plugin>, Encoders)> {
        let encoders = self.encoders(context)?;
        let host = self.on_device(PluginHost::of_command(PluginLimits::preset(), context)?)?;
        Ok((self.load(&host, reference)?, encoders))
    }

    /// Returns the options of the plugin that `--config` sets.
    pub(super) fn config(&self) -> &[(String, String)] {
        &self.config
    }

    /// Sets a host's device to `--device`.
    pub(super) fn on_device(&self, host: PluginHost) -> Result<PluginHost> {
        Ok(host.on(self.device()?))
    }

    /// Loads a plugin into a given host.
    pub(super) fn load(&self, host: &PluginHost, reference: &str) -> Result<Box<dyn Plugin>> {
        Ok(host.load(reference, self.config.iter().cloned().collect())?)
    }

    /// Opens the shipped encoders and the given ones.
    pub(super) fn encoders(&self, context: &Context) -> Result<Encoders> {
        encoders(&self.encoders, self.device()?, context)
    }

    /// Returns the device of `--device`.
    pub(super) fn device(&self) -> Result<Device> {
        Ok(torch_ext::cuda::device(&self.device)?)
    }
}

/// Returns a batch with precomputed embeddings, so that the time of classifying it is the plugin's alone.
pub(super) fn embedded(samples: Vec<Sample>, plugin: &dyn Plugin, encoders: &mut Encoders) -> Result<Batch> {
    let mut batch = Batch::new(samples);
    for encoder in &plugin.description().encoders {
        let name = &plugin.source().name;
        batch.embedding(encoder, encoders).with_context(|| format!("plugin `{name}`"))?;
    }
    Ok(batch)
}

/// Warns, once per encoder, if it knows little of what was embedded.
pub(super) fn warn_of_unfamiliar(encoders: &Encoders) {
    for sentence in encoders.unfamiliar() {
        tracing::warn!("{sentence}");
    }
}

/// Returns which of a plugin's encoders know procedural paintings alone, as the images of `host plugin check` are, a sentence
/// for each.
pub(super) fn narrow(plugin: &dyn Plugin, encoders: &mut Encoders) -> Result<Vec<String>> {
    let mut notes = vec![];
    for encoder in &plugin.description().encoders {
        if encoders.get(encoder)?.familiar().is_some() {
            let name = encoders.resolve(encoder)?;
            notes.push(format!(
                "the encoder `{name}` was trained on procedural paintings alone, and so are the paintings here: on other \
                 images its embeddings say little, and a CLIP of the world is needed (`host plugin fit --encoder \
                 openai/clip-vit-large-patch14`)"
            ));
        }
    }
    Ok(notes)
}

/// Returns the heading of reports: a plugin's name, version, kind and media.
pub(super) fn heading(description: &Description) -> String {
    let (name, version) = (&description.name, &description.version);
    let kind = match &description.kind {
        Kind::Classifier { styles } => format!("{} styles", styles.len()),
        Kind::Scorer(_) => "scorer".to_owned(),
    };
    format!("{name} {version}: {kind}, {}", description.media_names(", "))
}

/// Formats a large count with three or four digits: 950, 12.3 k, 1.23 M.
pub(super) fn count(n: u64) -> String {
    let n = n as f64;
    match n {
        ..1e3 => format!("{n}"),
        ..1e6 => format!("{:.1} k", n / 1e3),
        ..1e9 => format!("{:.2} M", n / 1e6),
        _ => format!("{:.2} G", n / 1e9),
    }
}

/// Formats bytes in MiB.
pub(super) fn mib(bytes: usize) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

pub(super) fn key_value(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    pair.ok_or_else(|| "write it as KEY=VALUE".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        assert_eq!([950, 12_345, 1_234_567, 2_000_000_000].map(count), ["950", "12.3 k", "1.23 M", "2.00 G"]);
        assert_eq!(mib(1_310_720), "1.25 MiB");
    }
}
