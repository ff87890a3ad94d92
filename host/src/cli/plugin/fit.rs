//! `host plugin fit`: a k-means plugin out of a folder of pictures, without a compiler.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_sdk::{EncoderPin, Manifest};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use image::RgbImage;
use ndarray::{Array2, Axis, concatenate};
use rayon::prelude::*;
use serde_json::json;
use tch::Device;

use super::inspect::size;
use super::{EncoderFolder, check_encoder_folder, encoders};
use crate::cli::Context;
use crate::data::images::{find_images, read_image};
use crate::encoders::Encoders;
use crate::files::write_atomically;
use crate::home::home;
use crate::interrupt::Interrupted;
use crate::plugin::fit::{Clustering, KMeansOptions, Names, bake_k_means, k_means, name_clusters, normalize_rows};

/// Make a k-means plugin of a folder of pictures: cluster their embeddings, and bake the centres into a plugin.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin fit --images paintings --encoder tiny-art -k 27 -o kmeans_image.wasm
  host plugin fit --images art --encoder clip-vit-large-patch14=models/clip -k 5 --title 'Five kinds of art'

With one folder per style (DIR/STYLE/…), clusters take the folders' names if they come out one to one;
otherwise they are called cluster-01, cluster-02 and so on.")]
pub struct FitArgs {
    /// A folder of pictures (png, jpg), searched with its subfolders
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The encoder: a name that ships (tiny-art), a CLIP folder, or NAME=DIR to say what the plugin will ask for
    #[arg(long, value_name = "NAME|DIR", default_value = crate::encoders::SHIPPED)]
    encoder: String,
    /// Number of clusters, so of styles
    #[arg(short, value_name = "N")]
    k: usize,
    /// The plugin's file [default: kmeans_DIR.wasm]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// One line that says what the plugin is
    #[arg(long)]
    title: Option<String>,
    /// Who made it; may be given more than once
    #[arg(long = "author", value_name = "NAME")]
    authors: Vec<String>,
    /// The licence as an SPDX expression
    #[arg(long, value_name = "SPDX", default_value = "NOASSERTION")]
    licence: String,
    /// Cluster the embeddings as they are, instead of scaled to length 1
    #[arg(long)]
    no_normalize: bool,
    /// Divides the logits: higher is flatter
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    temperature: f32,
    /// Starts of k-means, of which the best counts
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Iterations of each start at most
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    max_iterations: u32,
    /// The starts' seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print one JSON document about the result
    #[arg(long)]
    json: bool,
}

/// Pictures that are decoded and embedded at a time.
const BATCH: usize = 128;

/// As scikit-learn's default.
const TOLERANCE: f64 = 1e-4;

impl FitArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        ensure!(self.temperature.is_finite() && self.temperature > 0.0, "--temperature must be above 0");
        ensure!(self.k >= 2, "-k is {}, ambiguity needs at least two styles", self.k);
        let output = self.output()?;
        let (name, mut encoders) = self.encoder(torch_ext::cuda::device(&self.device)?)?;
        let files = find_images(&self.images)?;
        let (files, mut points) = embed(&files, &name, &mut encoders, context)?;
        ensure!(
            files.len() >= self.k,
            "{} has {} readable pictures, {} clusters need at least as many",
            self.images.display(),
            files.len(),
            self.k
        );
        if !self.no_normalize {
            normalize_rows(&mut points);
        }
        let found = self.cluster(&points, context)?;
        let folders: Vec<String> = files.iter().map(|file| style_folder(&self.images, file)).collect();
        let (found, names) = sorted(found, &folders);
        let digest = encoders.get(&name)?.info().digest;
        let plugin = bake_k_means(&self.manifest(&output, &name, digest, &names), &found.centers)?;
        write_atomically(&output, &plugin)?;
        self.report(context, &output, &plugin, &files, &found, &names);
        Ok(())
    }

    fn output(&self) -> Result<PathBuf> {
        if let Some(output) = &self.output {
            ensure!(
                output.extension().is_some_and(|extension| extension == "wasm"),
                "-o {} does not end in .wasm, which is how a plugin's file is told",
                output.display()
            );
            return Ok(output.clone());
        }
        let folder = self.images.canonicalize().with_context(|| format!("{}", self.images.display()))?;
        let name = folder.file_name().map_or_else(|| "images".into(), |name| name.to_string_lossy());
        Ok(PathBuf::from(format!("kmeans_{}.wasm", name.replace(' ', "_"))))
    }

    /// The name under which the plugin will ask for the encoder, and the encoder behind it.
    fn encoder(&self, device: Device) -> Result<(String, Encoders)> {
        if let Ok(given) = self.encoder.parse::<EncoderFolder>() {
            return Ok((given.name.clone(), encoders(&[given], device)?));
        }
        let folder = Path::new(&self.encoder);
        if !folder.is_dir() {
            let encoders = Encoders::shipped(device);
            let name = encoders.resolve(&self.encoder)?;
            return Ok((name, encoders));
        }
        check_encoder_folder(folder)?;
        let folder = folder.canonicalize().with_context(|| format!("{}", folder.display()))?;
        // The shipped encoder by its path is still the shipped encoder: a plugin asks for it by its own name.
        let shipped = home().and_then(|home| {
            folder.strip_prefix(home.join("models/weights").canonicalize().ok()?).ok().map(Path::to_owned)
        });
        let name = match shipped.as_deref().and_then(Path::parent) {
            Some(shipped) if !shipped.as_os_str().is_empty() => shipped.to_string_lossy().into_owned(),
            _ => folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        };
        if name.is_empty() {
            bail!("{} has no name to ask for it by: give it as --encoder NAME={0}", folder.display());
        }
        Ok((name.clone(), encoders(&[EncoderFolder { name, folder }], device)?))
    }

    fn cluster(&self, points: &Array2<f32>, context: &Context) -> Result<Clustering> {
        let options = KMeansOptions {
            k: self.k,
            runs: self.runs as usize,
            max_iterations: self.max_iterations as usize,
            tolerance: TOLERANCE,
            seed: self.seed,
        };
        let bar = context.progress.bar("clustering", u64::from(self.runs), "starts");
        let found = k_means(points, &options, |_, inertia| {
            bar.message(format!("inertia {inertia:.4}"));
            bar.inc(1);
            !context.interrupt.requested()
        });
        bar.finish();
        if context.interrupt.requested() {
            return Err(Interrupted { kept: "nothing was written".to_owned() }.into());
        }
        found.map_err(anyhow::Error::msg)
    }

    fn manifest(&self, output: &Path, encoder: &str, digest: String, names: &Names) -> Manifest {
        let name = output.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let title = format!("Soft assignment to {} clusters of picture embeddings by {encoder}", self.k);
        Manifest {
            name,
            version: "1.0.0".to_owned(),
            title: self.title.clone().unwrap_or(title),
            authors: self.authors.clone(),
            licence: self.licence.clone(),
            media: vec!["image".to_owned()],
            styles: names.names.clone(),
            encoder: Some(EncoderPin { name: encoder.to_owned(), digest }),
            temperature: Some(self.temperature),
            normalize: !self.no_normalize,
            k: Some(self.k),
            ..Manifest::default()
        }
    }

    fn report(
        &self,
        context: &Context,
        output: &Path,
        plugin: &[u8],
        files: &[PathBuf],
        found: &Clustering,
        names: &Names,
    ) {
        let sizes = found.sizes();
        if self.json {
            let clusters = names.names.iter().zip(&sizes).zip(&names.majority).map(|((name, size), (folder, share))| {
                json!({ "style": name, "pictures": size, "folder": folder, "folder_share": share })
            });
            let document = json!({
                "plugin": output,
                "bytes": plugin.len(),
                "pictures": files.len(),
                "inertia": found.inertia,
                "iterations": found.iterations,
                "names_from_folders": names.from_folders,
                "clusters": clusters.collect::<Vec<_>>(),
            });
            println!("{document:#}");
            return;
        }
        for ((name, size), (folder, share)) in names.names.iter().zip(&sizes).zip(&names.majority) {
            let mostly = if folder.is_empty() { String::new() } else { format!("  {:3.0} % {folder}", share * 100.0) };
            context.progress.println(format!("  {name:<28} {size:>6} pictures{mostly}"));
        }
        let named = match names.from_folders {
            true => "named by their folders, one to one",
            false => "named by number, since they are not one to one with folders",
        };
        context.progress.println(format!(
            "{}: {} clusters of {} pictures, {named}; inertia {:.4}, {} iterations; {}",
            output.display(),
            self.k,
            files.len(),
            found.inertia,
            found.iterations,
            size(plugin.len()),
        ));
    }
}

/// The embeddings of the pictures that can be read, and which those are; each other one is named in a warning.
fn embed(
    files: &[PathBuf],
    encoder: &str,
    encoders: &mut Encoders,
    context: &Context,
) -> Result<(Vec<PathBuf>, Array2<f32>)> {
    let (mut read, mut rows) = (vec![], vec![]);
    // Loading comes before the bar, whose speed it would spoil.
    encoders.get(encoder)?;
    let bar = context.progress.bar("embedding", files.len() as u64, "pictures");
    for chunk in files.chunks(BATCH) {
        if context.interrupt.requested() {
            return Err(Interrupted { kept: "nothing was written".to_owned() }.into());
        }
        let pictures: Vec<_> = chunk.par_iter().map(|file| read_image(file)).collect();
        let mut images: Vec<Arc<RgbImage>> = vec![];
        for (file, picture) in chunk.iter().zip(pictures) {
            match picture {
                Ok(picture) => {
                    images.push(Arc::new(picture));
                    read.push(file.clone());
                }
                Err(error) => tracing::warn!("left out: {error}"),
            }
        }
        if !images.is_empty() {
            rows.push(encoders.embed_images(encoder, &images)?);
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish();
    ensure!(!rows.is_empty(), "none of the {} pictures can be read", files.len());
    let views: Vec<_> = rows.iter().map(Array2::view).collect();
    Ok((read, concatenate(Axis(0), &views)?))
}

/// The folder below `root` that a file lies in; empty if it lies in `root` itself.
fn style_folder(root: &Path, file: &Path) -> String {
    let mut below = file.strip_prefix(root).unwrap_or(file).components();
    let first = below.next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    match below.next() {
        Some(_) => first.unwrap_or_default(),
        None => String::new(),
    }
}

/// The clusters in an order that does not depend on the starts: by name if the folders give one, else by size.
fn sorted(found: Clustering, folders: &[String]) -> (Clustering, Names) {
    let names = name_clusters(&found.labels, folders, found.centers.nrows());
    let sizes = found.sizes();
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    match names.from_folders {
        true => order.sort_by(|&a, &b| names.names[a].cmp(&names.names[b])),
        false => order.sort_by(|&a, &b| sizes[b].cmp(&sizes[a]).then(names.majority[a].0.cmp(&names.majority[b].0))),
    }
    let found = found.reordered(&order);
    let names = name_clusters(&found.labels, folders, found.centers.nrows());
    (found, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_style_is_the_first_folder_below_the_root() {
        let style = |file: &str| style_folder(Path::new("art"), Path::new(file));
        assert_eq!([style("art/cubism/a/1.png"), style("art/1.png")], ["cubism", ""]);
    }

    #[test]
    fn clusters_are_sorted_by_name_or_by_size() {
        let found = Clustering {
            centers: Array2::from_shape_fn((2, 1), |(i, _)| i as f32),
            labels: vec![0, 1, 1],
            inertia: 0.0,
            iterations: 1,
        };
        let folders = |names: [&str; 3]| names.map(String::from);
        let (by_name, names) = sorted(found.clone(), &folders(["b", "a", "a"]));
        assert_eq!((names.names, by_name.labels), (vec!["a".to_owned(), "b".to_owned()], vec![1, 0, 0]));
        let (by_size, names) = sorted(found, &folders(["", "", ""]));
        assert_eq!(names.names, ["cluster-01", "cluster-02"]);
        assert_eq!((by_size.sizes(), by_size.centers[[0, 0]]), (vec![2, 1], 1.0));
    }
}
