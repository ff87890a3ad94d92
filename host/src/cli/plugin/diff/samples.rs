//! The samples that two plugins are compared on: fixtures, the shipped probes, and files that the user names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use sha2::{Digest as _, Sha256};

use crate::cli::plugin::inputs::{Inputs, Prompts, fixtures, read_sample};
use crate::cli::plugin::probes::{Kind, Probe, probes};
use crate::data::images::ImageLoader;
use crate::plugin::{Description, Medium, Sample};
use crate::text::shown;

/// The samples, which are read one at a time.
pub(in crate::cli::plugin) struct Samples {
    items: Vec<Item>,
    /// What both plugins take.
    common: Description,
    /// The files that the user named, and what was read from the standard input.
    inputs: Inputs,
    prompts: Prompts,
    loader: ImageLoader,
}

/// Where a sample is from.
enum Item {
    Probe(Probe),
    Fixture(PathBuf),
    File(PathBuf),
}

impl Samples {
    /// Finds the samples for two plugins with these descriptions: the fixtures of those of the `references` that are folders
    /// with fixtures, the probes, and the named files and folders, with one prompt for all files, if it is given. What only
    /// one of the plugins takes is no sample; if it was named, [`Samples::read`] refuses it.
    pub(in crate::cli::plugin) fn find(
        references: &[&str],
        files: &[PathBuf],
        prompt: Option<String>,
        [old, new]: [&Description; 2],
    ) -> Result<Self> {
        let media: Vec<Medium> = old.media.iter().copied().filter(|&medium| new.takes(medium)).collect();
        // A message about a file names the plugin that takes less.
        let of = if old.media.iter().all(|&medium| new.takes(medium)) { old } else { new };
        let common = Description { media, ..of.clone() };
        let loader = ImageLoader::default();
        let (mut items, mut seen) = (vec![], BTreeSet::new());
        for folder in references.iter().map(Path::new).filter(|folder| folder.join("fixtures").is_dir()) {
            for file in fixtures(folder)? {
                let is_taken = [old, new].map(|description| read_sample(&file, description, &loader).is_ok());
                // Two versions of a crate have the same fixtures, mostly.
                let is_new = seen.insert(Sha256::digest(fs_err::read(&file)?));
                if is_new && is_taken != [true, false] && is_taken != [false, true] {
                    items.push(Item::Fixture(file));
                }
            }
        }
        items.extend(common.media.iter().flat_map(|&medium| probes(medium)).map(Item::Probe));
        let named = if common.media.is_empty() { &[] } else { files };
        let inputs = Inputs::find(named, &common.media)?;
        items.extend(inputs.files.iter().cloned().map(Item::File));
        Ok(Self { items, common, inputs, prompts: Prompts::new(prompt), loader })
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns the name of a sample.
    pub(super) fn name(&self, i: usize) -> String {
        match &self.items[i] {
            Item::Probe(probe) => format!("probe: {}", probe.name),
            Item::Fixture(file) => shown(file),
            Item::File(file) => shown(&self.inputs.shown(file)),
        }
    }

    /// Returns the name of the place where a sample is from.
    pub(super) fn origin(&self, i: usize) -> &'static str {
        match &self.items[i] {
            Item::Probe(_) => "probe",
            Item::Fixture(_) => "fixture",
            Item::File(_) => "file",
        }
    }

    /// Returns whether a sample is a probe that stands for what no generator should learn.
    pub(super) fn is_worthless(&self, i: usize) -> bool {
        matches!(&self.items[i], Item::Probe(probe) if probe.kind == Kind::Worthless)
    }

    /// Reads a sample; none if it is of a folder that the user named and cannot be read.
    pub(super) fn read(&mut self, i: usize) -> Result<Option<Sample>> {
        let (file, sample) = match &self.items[i] {
            Item::Probe(probe) => return Ok(Some(probe.sample.clone())),
            Item::Fixture(file) => (file, Some(read_sample(file, &self.common, &self.loader)?)),
            Item::File(file) => (file, self.inputs.read(file, &self.common, &self.loader)?),
        };
        let Some(sample) = sample else { return Ok(None) };
        Ok(Some(Sample { prompt: self.prompts.of(file)?, ..sample }))
    }
}
