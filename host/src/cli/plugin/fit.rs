//! `host plugin fit`: a k-means plugin from images, texts or embeddings, without a compiler.

mod report;
mod sheet;
mod source;

use std::path::{Path, PathBuf};
use std::time::Instant;

use ambiguity_sdk::{EncoderPin, Manifest};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use ndarray::Array2;
use tch::Device;

use self::report::{Written, note, table, table_document};
use self::source::{Cluster, Items, KEPT, images, matrix, texts};
use super::rename::read_names;
use super::running::warn_of_unfamiliar;
use super::{EncoderFolder, check_component_name, encoders};
use crate::cli::numbers::within;
use crate::context::Context;
use crate::encoders::Encoders;
use crate::fs::write_atomic;
use crate::plugin::check_manifest;
use crate::plugin::fit::elbow::{ElbowRow, elbow, silhouette};
use crate::plugin::fit::{Clustering, KMeansOptions, bake_k_means, k_means, k_means_from, normalize_rows};
use crate::text::{counted, to_json};
use crate::zoo::home::home;
use crate::zoo::hub::is_id;

/// Fit a k-means plugin: cluster the embeddings of images or texts, and bake the centers into a plugin.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin fit --images paintings -k 2..14                      # a table by number of clusters
  host plugin fit --images paintings -k 5 -o five.wasm             # five.wasm, and a contact sheet, five.png
  host plugin fit --texts styles.txt -k 5 --title 'Five kinds of style'
  host plugin fit --images art --encoder clip-vit-large-patch14=models/clip -k 27
  host plugin fit --embeddings art.safetensors --encoder models/clip -k 27

With a range, -k 2..14, each number of clusters is fitted and a table is printed: the inertia (the sum of squared
distances to the centers), its decrease, and the simplified silhouette (1: clusters far apart, 0: overlapping). The
elbow is where the inertia is farthest below the line from the first row to the last. No plugin is written, unless
-o names one: then it has the elbow's clusters.

Clusters of images get the names of their folders (DIR/STYLE/…) if they match them one to one, clusters of texts that
of the text closest to the center; all others are named cluster-01, cluster-02 and so on. Names can be given after
seeing the sheet: by the same command with --names FILE, or by `host plugin rename`.

The plugin classifies images, or texts with --medium text: the encoder embeds both in one space, so clusters of
texts can score images (the paper's text-based k-means).")]
pub struct FitArgs {
    #[command(flatten)]
    from: From,
    /// Number of clusters, which are the styles; or an inclusive range, for a table
    #[arg(short, value_name = "N|A..B")]
    k: Ks,
    /// The encoder: a shipped name (tiny-art), a CLIP folder, an id on the Hub, or NAME=DIR to set the name that the
    /// plugin asks for
    #[arg(long, value_name = "NAME|DIR", default_value = crate::encoders::SHIPPED)]
    encoder: String,
    /// The plugin's file [default: kmeans_SOURCE.wasm]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The contact sheet of images: one row per cluster [default: the plugin's file as .png]
    #[arg(long, value_name = "FILE.png", conflicts_with = "no_sheet")]
    sheet: Option<PathBuf>,
    /// A file with the names of the clusters, one per line in their order, as seen on the sheet of an earlier fit
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,
    /// Write no contact sheet
    #[arg(long)]
    no_sheet: bool,
    /// The medium that the plugin classifies
    #[arg(long, value_name = "MEDIUM", default_value = "image")]
    medium: Medium,
    /// One line that describes the plugin
    #[arg(long)]
    title: Option<String>,
    /// An author of the plugin; may be repeated
    #[arg(long = "author", value_name = "NAME")]
    authors: Vec<String>,
    /// The license as an SPDX expression
    #[arg(long, value_name = "SPDX", default_value = "NOASSERTION")]
    license: String,
    /// Temperature that divides the logits: higher is flatter
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = within(1e-6f32..=1e6))]
    temperature: f32,
    /// Cluster the embeddings as they are, instead of scaled to length 1
    #[arg(long)]
    no_normalize: bool,
    /// Number of k-means++ initializations, of which the best is kept
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Seed of the initializations
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Initialize once, from these centers (a safetensors file, key `centers`, k x dim)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "seed"])]
    init: Option<PathBuf>,
    /// Maximum number of iterations of each initialization
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    max_iterations: u32,
    /// Iterations stop when the centers move by less than this fraction of the variance, as in scikit-learn
    #[arg(long, value_name = "T", default_value_t = 1e-4, value_parser = within(0.0..=1.0))]
    tolerance: f64,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print one JSON document about the result
    #[arg(long)]
    json: bool,
}

/// The data to cluster.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct From {
    /// A folder of images (png, jpg, webp, gif, bmp, tiff), searched with its subfolders
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// A file of texts, one per line; repeated ones count once, lines that begin with # are left out
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// Embeddings by the encoder (a safetensors file, key `embeddings`, n x dim)
    #[arg(long, value_name = "FILE")]
    embeddings: Option<PathBuf>,
}

/// The medium that a plugin classifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Medium {
    Image,
    Text,
}

/// An inclusive range of numbers of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ks {
    first: usize,
    last: usize,
    /// Whether it was given as a range, for a table.
    range: bool,
}

impl std::str::FromStr for Ks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |part: &str| part.trim().parse::<usize>().map_err(|_| "write it as 5 or as 2..14".to_owned());
        let ks = match text.split_once("..") {
            Some((first, last)) => Self { first: number(first)?, last: number(last)?, range: true },
            None => Self { first: number(text)?, last: number(text)?, range: false },
        };
        match ks {
            Self { first, last, .. } if first > last => Err(format!("the range is descending: {last}..{first}?")),
            Self { first: 0 | 1, .. } => Err("ambiguity needs at least two styles".to_owned()),
            ks => Ok(ks),
        }
    }
}

impl FitArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        if let (Some(file), false) = (&self.names, self.k.range) {
            read_names(file, self.k.first)?;
        }
        let writes = !self.k.range || self.output.is_some();
        ensure!(
            self.sheet.is_none() || (writes && self.from.images.is_some()),
            "--sheet shows the images of a plugin's clusters: it needs --images, and with a range of -k also -o"
        );
        let output = self.output()?;
        let device = torch_ext::cuda::device(&self.device)?;
        // A table for given embeddings needs no encoder.
        let mut encoder = match writes || self.from.embeddings.is_none() {
            true => Some(self.encoder(device, context)?),
            false => None,
        };
        let (items, mut points) = self.read(encoder.as_mut(), context)?;
        ensure!(
            points.nrows() >= self.k.last,
            "{} has {} {}, but {} clusters need at least as many",
            self.from.path().display(),
            points.nrows(),
            items.unit(),
            self.k.last
        );
        if let Some((name, encoders)) = &mut encoder {
            if let Items::Texts(texts) = &items {
                encoders.note_texts(name, texts)?;
            }
            warn_of_unfamiliar(encoders);
        }
        // The plugin's encoder is checked before the work.
        let pin = match (&mut encoder, writes) {
            (Some((name, encoders)), true) => Some(self.pin(name, encoders, points.ncols())?),
            _ => None,
        };
        if !self.no_normalize {
            normalize_rows(&mut points);
        }
        let (rows, mut found) = self.cluster(&points, context)?;
        let chosen = match self.k.range {
            true => elbow(&rows).unwrap_or(self.k.first) - self.k.first,
            false => 0,
        };
        if self.k.range && !self.json {
            print!("{}", table(&rows));
        }
        let written = match pin {
            Some(pin) => {
                Some(self.write(&output, &items, &points, found.swap_remove(chosen), pin, &rows[chosen], context)?)
            }
            None => None,
        };
        match (self.json, self.k.range) {
            (true, true) => println!("{}", to_json(&table_document(&points, &rows, written))),
            (true, false) => println!("{}", to_json(&written.unwrap_or_default())),
            (false, true) if !writes => context
                .progress
                .println("no plugin was written: run it again with one -k, or with -o FILE for the elbow's"),
            _ => {}
        }
        Ok(())
    }

    fn output(&self) -> Result<PathBuf> {
        if let Some(output) = &self.output {
            check_component_name(output)?;
            return Ok(output.clone());
        }
        let path = self.from.path();
        let path = path.canonicalize().with_context(|| format!("{}", path.display()))?;
        let name = if self.from.images.is_some() { path.file_name() } else { path.file_stem() };
        let name = name.map_or_else(|| "images".into(), |name| name.to_string_lossy());
        Ok(PathBuf::from(format!("kmeans_{}.wasm", name.replace(' ', "_"))))
    }

    /// Returns the name by which the plugin asks for the encoder, and the encoders.
    fn encoder(&self, device: Device, context: &Context) -> Result<(String, Encoders)> {
        if let Ok(given) = self.encoder.parse::<EncoderFolder>() {
            return Ok((given.name.clone(), encoders(&[given], device, context)?));
        }
        let folder = Path::new(&self.encoder);
        if !folder.is_dir() && is_id(&self.encoder) {
            let id = self.encoder.split('@').next().unwrap_or_default();
            let name = id.rsplit('/').next().unwrap_or_default().to_owned();
            let folder = PathBuf::from(&self.encoder);
            return Ok((name.clone(), encoders(&[EncoderFolder { name, folder }], device, context)?));
        }
        if !folder.is_dir() {
            let encoders = Encoders::shipped(device);
            let name = encoders.resolve(&self.encoder)?;
            return Ok((name, encoders));
        }
        let folder = folder.canonicalize().with_context(|| format!("{}", folder.display()))?;
        // The shipped encoder, named by its path, keeps its own name.
        let shipped = home().and_then(|home| {
            folder.strip_prefix(home.join("models/weights").canonicalize().ok()?).ok().map(Path::to_owned)
        });
        let name = match shipped.as_deref().and_then(Path::parent) {
            Some(shipped) if !shipped.as_os_str().is_empty() => shipped.to_string_lossy().into_owned(),
            _ => folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        };
        if name.is_empty() {
            bail!("{} has no name that a plugin could ask for: write --encoder NAME={0}", folder.display());
        }
        Ok((name.clone(), encoders(&[EncoderFolder { name, folder }], device, context)?))
    }

    /// Reads the data to cluster; there is an encoder unless the data is embeddings.
    fn read(&self, encoder: Option<&mut (String, Encoders)>, context: &Context) -> Result<(Items, Array2<f32>)> {
        match (&self.from, encoder) {
            (From { images: Some(folder), .. }, Some((name, encoders))) => images(folder, name, encoders, context),
            (From { texts: Some(file), .. }, Some((name, encoders))) => texts(file, name, encoders, context),
            (from, _) => Ok((Items::Embeddings, matrix(from.path(), "embeddings")?)),
        }
    }

    fn pin(&self, name: &str, encoders: &mut Encoders, dim: usize) -> Result<EncoderPin> {
        let info = encoders.get(name)?.info();
        ensure!(
            info.dim == dim,
            "{} has embeddings of {dim} dimensions, but the encoder `{name}` has {}: name the encoder of the \
             embeddings with --encoder",
            self.from.path().display(),
            info.dim
        );
        Ok(EncoderPin { name: name.to_owned(), digest: info.digest })
    }

    /// Fits a clustering for each k.
    fn cluster(&self, points: &Array2<f32>, context: &Context) -> Result<(Vec<ElbowRow>, Vec<Clustering>)> {
        let init = self.init.as_deref().map(|file| matrix(file, "centers")).transpose()?;
        if let (Some(file), Some(init)) = (&self.init, &init) {
            let (first, last, k) = (self.k.first, self.k.last, init.nrows());
            ensure!(first == last && last == k, "--init {} has {k} centers, but -k is another number", file.display());
        }
        let runs = if init.is_some() { 1 } else { self.runs };
        let bar =
            context.progress.bar("clustering", (self.k.last - self.k.first + 1) as u64 * u64::from(runs), "starts");
        let (mut rows, mut all) = (vec![], vec![]);
        for k in self.k.first..=self.k.last {
            let options = KMeansOptions {
                k,
                runs: runs as usize,
                max_iterations: self.max_iterations as usize,
                tolerance: self.tolerance,
                seed: self.seed,
            };
            let start = Instant::now();
            let found = match &init {
                Some(init) => k_means_from(points, init.clone(), options.max_iterations, options.tolerance),
                None => k_means(points, &options, |_, inertia| {
                    bar.message(format!("k {k}, inertia {inertia:.4}"));
                    bar.inc(1);
                    !context.interrupt.requested()
                }),
            };
            let found = found.map_err(anyhow::Error::msg)?;
            let seconds = start.elapsed().as_secs_f64();
            context.interrupt.check(KEPT)?;
            rows.push(ElbowRow {
                k,
                inertia: found.inertia,
                silhouette: silhouette(points, &found),
                iterations: found.iterations,
                seconds,
            });
            all.push(found);
        }
        bar.finish();
        Ok((rows, all))
    }

    /// Writes the plugin and its contact sheet, and prints a summary.
    #[expect(clippy::too_many_arguments, reason = "the last step needs everything that was computed")]
    fn write(
        &self,
        output: &Path,
        items: &Items,
        points: &Array2<f32>,
        found: Clustering,
        pin: EncoderPin,
        row: &ElbowRow,
        context: &Context,
    ) -> Result<serde_json::Value> {
        let empty = found.sizes().iter().filter(|size| **size == 0).count();
        ensure!(
            empty == 0,
            "{empty} of {} clusters are empty: the {} have too few distinct embeddings, use a smaller -k",
            row.k,
            items.unit()
        );
        let (found, mut clusters, mut named) = items.name(found, points);
        if let Some(file) = &self.names {
            let names = read_names(file, clusters.len())?;
            clusters.iter_mut().zip(names).for_each(|(cluster, name)| cluster.name = name);
            named = "named by --names";
        }
        let manifest = self.manifest(output, items, pin, &clusters);
        check_manifest(&manifest)?;
        let plugin = bake_k_means(&manifest, &found.centers)?;
        write_atomic(output, &plugin)?;
        let sheet = self.sheet(output, items, &clusters)?;
        let written = Written {
            plugin: output,
            bytes: plugin.len(),
            sheet: sheet.as_deref(),
            found: &found,
            clusters: &clusters,
            named,
            items,
            seconds: row.seconds,
        };
        if !self.json {
            written.lines().iter().for_each(|line| context.progress.println(line));
        }
        Ok(written.document())
    }

    fn manifest(&self, output: &Path, items: &Items, encoder: EncoderPin, clusters: &[Cluster]) -> Manifest {
        let of = match items {
            Items::Images { .. } => "image embeddings",
            Items::Texts(_) => "text embeddings",
            Items::Embeddings => "embeddings",
        };
        let title = format!("Soft assignment to {} clusters of {of} by {}", clusters.len(), encoder.name);
        Manifest {
            name: output.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            version: "1.0.0".to_owned(),
            title: self.title.clone().unwrap_or(title),
            authors: self.authors.clone(),
            license: self.license.clone(),
            media: vec![if self.medium == Medium::Text { "text" } else { "image" }.to_owned()],
            styles: clusters.iter().map(|cluster| cluster.name.clone()).collect(),
            encoder: Some(encoder),
            temperature: Some(self.temperature),
            normalize: !self.no_normalize,
            k: Some(clusters.len()),
            ..Manifest::default()
        }
    }

    /// Writes the contact sheet, if there are images and it is wanted.
    fn sheet(&self, output: &Path, items: &Items, clusters: &[Cluster]) -> Result<Option<PathBuf>> {
        let Items::Images { files, loader, .. } = items else { return Ok(None) };
        if self.no_sheet {
            return Ok(None);
        }
        let path = self.sheet.clone().unwrap_or_else(|| output.with_extension("png"));
        let row = |cluster: &Cluster| {
            let mostly =
                note(cluster).filter(|_| cluster.folder.as_ref().is_some_and(|(name, _)| *name != cluster.name));
            let count = format!("{} image{}", cluster.members.len(), if cluster.members.len() == 1 { "" } else { "s" });
            sheet::Row {
                name: cluster.name.clone(),
                notes: [Some(count), mostly].into_iter().flatten().map(|note| note.trim().to_owned()).collect(),
                files: cluster.members.iter().map(|&i| files[i].clone()).collect(),
            }
        };
        let rows: Vec<_> = clusters.iter().map(row).collect();
        let name = self.from.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (images, n) = (counted(files.len() as u64, "image"), counted(clusters.len() as u64, "cluster"));
        let title = format!("{name}: {images} in {n}");
        sheet::write(&path, &title, &rows, loader)?;
        Ok(Some(path))
    }
}

impl From {
    /// Returns the given path.
    fn path(&self) -> &Path {
        let given = [&self.images, &self.texts, &self.embeddings].into_iter().flatten().next();
        given.expect("clap requires one of them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_clusters_are_one_or_a_range() {
        let ks = |text: &str| text.parse::<Ks>().map(|ks| (ks.first, ks.last, ks.range));
        assert_eq!((ks("5"), ks("2..14")), (Ok((5, 5, false)), Ok((2, 14, true))));
        assert_eq!(ks("9..3"), Err("the range is descending: 3..9?".to_owned()));
        for text in ["", "five", "2..", "-3"] {
            assert_eq!(ks(text), Err("write it as 5 or as 2..14".to_owned()), "{text}");
        }
        assert_eq!(ks("1..4"), Err("ambiguity needs at least two styles".to_owned()));
    }
}
