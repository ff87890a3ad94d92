//! `host plugin fit`: pictures to a k-means plugin, without a compiler.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_sdk::{EncoderPin, Manifest};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use image::RgbImage;
use ndarray::{Array2, Axis};
use tch::Device;

use super::super::Context;
use crate::data::images::{find_images, read_image};
use crate::encoders::Encoders;
use crate::files::write_atomically;
use crate::interrupt::Interrupted;
use crate::plugin::fit::{KMeansOptions, bake_k_means, k_means, name_clusters, normalize_rows};

/// Pictures read and embedded at once.
const BATCH: usize = 64;

/// Cluster the embeddings of pictures by k-means and bake the centres into a plugin.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  host art --out paintings --per-class 200
  host plugin fit --images paintings --encoder tiny-art -k 27 -o kmeans_image.wasm")]
pub(super) struct FitArgs {
    /// A folder of pictures; with one folder a style, clusters take the folders' names where they match one to one
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// A CLIP folder, or the name of a shipped encoder; NAME=DIR gives a folder a name of its own
    #[arg(long, value_name = "NAME|DIR|NAME=DIR", default_value = "tiny-art")]
    encoder: String,
    /// Number of clusters
    #[arg(short, value_name = "N")]
    k: usize,
    /// The plugin to write [default: NAME.wasm]
    #[arg(short, long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
    /// The plugin's name [default: kmeans_image]
    #[arg(long, default_value = "kmeans_image", hide_default_value = true)]
    name: String,
    /// One line for people
    #[arg(long, default_value = "")]
    title: String,
    /// Who made it; may be repeated
    #[arg(long = "author", value_name = "NAME")]
    authors: Vec<String>,
    /// SPDX expression
    #[arg(long, default_value = "")]
    licence: String,
    /// Scale embeddings to length 1 first
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "true|false")]
    normalize: bool,
    /// Starts, of which the best one counts
    #[arg(long, default_value_t = 8, value_name = "N")]
    runs: usize,
    /// Iterations of a start at most
    #[arg(long, default_value_t = 300, value_name = "N")]
    iterations: usize,
    /// Seed of the starts
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

impl FitArgs {
    pub(super) fn run(self, context: &Context) -> Result<()> {
        let files = find_images(&self.images)?;
        ensure!(
            (2..=files.len()).contains(&self.k),
            "-k {} cannot be made of {} pictures: it goes from 2 to their number",
            self.k,
            files.len()
        );
        let (mut encoders, encoder) = self.encoder()?;
        let pin = EncoderPin { digest: encoders.get(&encoder)?.info().digest, name: encoder };
        let Some((mut points, folders)) = self.embed(context, &files, &mut encoders, &pin.name)? else {
            return Err(Interrupted { kept: "no plugin was written".to_owned() }.into());
        };
        if self.normalize {
            normalize_rows(&mut points);
        }
        let options = KMeansOptions {
            k: self.k,
            runs: self.runs,
            max_iterations: self.iterations,
            tolerance: 1e-4,
            seed: self.seed,
        };
        let bar = context.progress.bar("clustering", self.runs as u64, "starts");
        let clustering = k_means(&points, &options, |_, _| {
            bar.inc(1);
            !context.interrupt.requested()
        });
        bar.finish();
        let clustering = clustering.map_err(anyhow::Error::msg)?;
        let names = name_clusters(&clustering.labels, &folders, self.k);
        let manifest = Manifest {
            name: self.name.clone(),
            version: "1.0.0".to_owned(),
            title: self.title.clone(),
            authors: self.authors.clone(),
            licence: self.licence.clone(),
            media: vec!["image".to_owned()],
            styles: names.names.clone(),
            encoder: Some(pin),
            temperature: 1.0,
            normalize: self.normalize,
            k: Some(self.k),
        };
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.wasm", self.name)));
        write_atomically(&out, &bake_k_means(&manifest, &clustering.centers)?)?;
        let n = points.nrows() as f64;
        println!("{}: {} clusters of {} pictures, mean squared distance {:.5}", out.display(), self.k, n, clustering.inertia / n);
        if names.from_folders {
            println!("each cluster is mostly one folder, and has its name:");
        } else {
            println!("clusters and folders do not match one to one, so clusters are numbered; mostly they are:");
        }
        let longest = names.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        for (i, (name, (folder, share))) in names.names.iter().zip(&names.majority).enumerate() {
            let size = clustering.labels.iter().filter(|&&label| label == i).count();
            println!("  {name:longest$}  {size:6} pictures, {:5.1} % {folder}", 100.0 * share);
        }
        Ok(())
    }

    /// The encoders, and the name of the one to use.
    fn encoder(&self) -> Result<(Encoders, String)> {
        let mut encoders = Encoders::shipped(Device::Cpu);
        if let Ok(name) = encoders.resolve(&self.encoder) {
            return Ok((encoders, name));
        }
        let (name, folder) = match self.encoder.split_once('=') {
            Some((name, folder)) => (name.to_owned(), Path::new(folder)),
            None => {
                let folder = Path::new(&self.encoder);
                let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
                (name.with_context(|| format!("--encoder {}: name it, as in NAME=DIR", self.encoder))?, folder)
            }
        };
        if !folder.is_dir() {
            bail!("--encoder {}: it is neither a shipped encoder nor a folder", self.encoder);
        }
        encoders.add_clip(&name, folder, Device::Cpu);
        Ok((encoders, name))
    }

    /// Raw embeddings of all pictures, and the folder that each lies in. `None` if interrupted.
    fn embed(
        &self,
        context: &Context,
        files: &[PathBuf],
        encoders: &mut Encoders,
        encoder: &str,
    ) -> Result<Option<(Array2<f32>, Vec<String>)>> {
        let bar = context.progress.bar("embedding", files.len() as u64, "pictures");
        let mut points = Array2::zeros((0, encoders.get(encoder)?.info().dim));
        for batch in files.chunks(BATCH) {
            if context.interrupt.requested() {
                return Ok(None);
            }
            let images: Vec<Arc<RgbImage>> =
                batch.iter().map(|file| read_image(file).map(Arc::new)).collect::<Result<_, _>>()?;
            points.append(Axis(0), encoders.embed_images(encoder, &images)?.view())?;
            bar.inc(batch.len() as u64);
        }
        bar.finish();
        let folder_of = |file: &PathBuf| {
            let below = file.strip_prefix(&self.images).ok().and_then(Path::parent);
            below.map(|folder| folder.to_string_lossy().into_owned()).unwrap_or_default()
        };
        Ok(Some((points, files.iter().map(folder_of).collect())))
    }
}
