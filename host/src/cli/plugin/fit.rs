//! `host plugin fit`: a plugin from images, texts or embeddings, without a compiler: by k-means, a Gaussian mixture, or a
//! linear probe on labeled images.

mod classes;
mod clusters;
mod fitted;
mod map;
mod report;
mod sheet;
mod source;

use std::path::{Path, PathBuf};

use ambiguity_sdk::{EncoderPin, Manifest};
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};
use ndarray::ArrayView2;
use tch::Device;

use self::fitted::Fitted;
use self::report::Written;
use self::source::Items;
use super::{EncoderFolder, check_component_name, encoders};
use crate::cli::numbers::within;
use crate::context::Context;
use crate::encoders::Encoders;
use crate::fs::write_atomic;
use crate::plugin::check_manifest;
use crate::zoo::home::home;
use crate::zoo::hub::is_id;

/// Fit a plugin to examples: clusters of images or texts, or a linear probe of labeled images.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  host plugin fit --images paintings -k 2..14                      # a table by number of clusters
  host plugin fit --images paintings -k 5 -o five.wasm             # five.wasm, and a contact sheet, five.png
  host plugin fit --images paintings -k 27 --disregard prompts.txt # clusters of style rather than of content
  host plugin fit --texts styles.txt -k 5 --title 'Five kinds of style'
  host plugin fit --labels wikiart -o styles.wasm                  # a folder of images per style: a linear probe
  host plugin fit --mixture --images paintings -k 5                # a Gaussian mixture instead of k-means
  host plugin fit --images art --encoder clip-vit-large-patch14=models/clip -k 27
  host plugin fit --embeddings art.safetensors --encoder models/clip -k 27

With a range, -k 2..14, each number of clusters is fitted and a table is printed: the inertia (the sum of squared
distances to the centers), its decrease, and the silhouette score (1: clusters far apart, 0: overlapping; of at most
1000 embeddings). The elbow is where the inertia is farthest below the line from the first row to the last. With
--mixture the table has the mean log-likelihood and the Bayesian information criterion (BIC, lower is better). No plugin
is written, unless -o names one: then it has the elbow's clusters, or the mixture with the lowest BIC.

CLIP embeds content and style in one vector, and its largest clusters are often of content. --disregard names texts that
say the content: what their embeddings differ in is removed from those of the images, here and in the plugin.

--labels fits a linear probe (multinomial logistic regression) to images whose class is known: each subfolder of DIR is a
class. A part of each class is held out to evaluate a probe of the rest, with the accuracy and the confusion matrix; the
plugin's probe is then fitted to all images.

Clusters of images get the names of their folders (DIR/STYLE/…) if they match them one to one, clusters of texts that
of the text closest to the center; all others are named cluster-01, cluster-02 and so on. Names can be given after
seeing the sheet: by the same command with --names FILE, or by `host plugin rename`.

The plugin classifies images, or texts with --medium text: the encoder embeds both in one space, so clusters of
texts can score images (the paper's text-based k-means).")]
pub struct FitArgs {
    #[command(flatten)]
    from: From,
    /// Number of clusters, which are the styles; or an inclusive range, for a table
    #[arg(short, value_name = "N|A..B", required_unless_present = "labels", conflicts_with = "labels")]
    k: Option<Ks>,
    /// A file of texts, one per line, such as the prompts of a training: k-means disregards the directions in which their
    /// embeddings differ, so that clusters differ in what the texts do not say
    #[arg(long, value_name = "FILE", conflicts_with_all = ["labels", "mixture"])]
    disregard: Option<PathBuf>,
    /// Fit a Gaussian mixture: the styles are its components
    #[arg(long, conflicts_with_all = ["labels", "init"])]
    mixture: bool,
    /// The encoder: a shipped name (tiny-art), a CLIP folder, an id on the Hub, or NAME=DIR to set the name that the
    /// plugin asks for
    #[arg(long, value_name = "NAME|DIR", default_value = crate::encoders::SHIPPED)]
    encoder: String,
    /// The plugin's file [default: kmeans_SOURCE.wasm, mixture_SOURCE.wasm or linear_SOURCE.wasm]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The contact sheet of images: one row per cluster or class, and a map [default: the plugin's file as .png]
    #[arg(long, value_name = "FILE.png", conflicts_with = "no_sheet")]
    sheet: Option<PathBuf>,
    /// A file with the names of the clusters, one per line in their order, as seen on the sheet of an earlier fit
    #[arg(long, value_name = "FILE", conflicts_with = "labels")]
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
    /// Use the embeddings as they are, instead of scaled to length 1
    #[arg(long)]
    no_normalize: bool,
    /// Number of initializations (by k-means++; of a mixture, by k-means), of which the best is kept
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(conflicts_with = "labels")]
    runs: u32,
    /// Seed of the initializations, or of the choice of held-out images
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Initialize once, from these centers (a safetensors file, key `centers`, k x dim)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "seed", "labels"])]
    init: Option<PathBuf>,
    /// Maximum number of iterations of each initialization, or of the linear probe [default: 300; of a probe 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_iterations: Option<u32>,
    /// Iterations stop when the centers move by less than this fraction of the variance, as in scikit-learn, or when a
    /// mixture's mean log-likelihood changes by less
    #[arg(long, value_name = "T", default_value_t = 1e-4, value_parser = within(0.0..=1.0), conflicts_with = "labels")]
    tolerance: f64,
    /// Number of principal components of the embeddings in which a mixture is fitted [default: 8, or as many as the
    /// number of images or texts allows]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    #[arg(requires = "mixture", conflicts_with = "labels")]
    dimensions: Option<u32>,
    /// Share of the mean variance that is added to each variance of a mixture: higher is smoother
    #[arg(long, value_name = "R", default_value_t = 1e-3, value_parser = within(1e-9..=1e3))]
    #[arg(requires = "mixture", conflicts_with = "labels")]
    ridge: f64,
    /// L2 regularization of the linear probe, on embeddings scaled to variance 1 (1/C in scikit-learn): higher is smoother
    #[arg(long, value_name = "A", default_value_t = 1.0, value_parser = within(1e-6..=1e9))]
    #[arg(conflicts_with_all = ["images", "texts", "embeddings"])]
    regularization: f64,
    /// Fraction of each class that is held out to evaluate the linear probe; 0 for no evaluation
    #[arg(long, value_name = "F", default_value_t = 0.2, value_parser = within(0.0..=0.9))]
    #[arg(conflicts_with_all = ["images", "texts", "embeddings"])]
    held_out: f64,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print one JSON document about the result
    #[arg(long)]
    json: bool,
}

/// The data to fit.
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
    /// A folder with one subfolder of images per class, as `host can train` reads it: fits a linear probe
    #[arg(long, value_name = "DIR")]
    labels: Option<PathBuf>,
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
        match (&self.from.labels, self.k) {
            (Some(root), _) => self.fit_classes(root, context),
            (None, Some(ks)) => self.fit_clusters(ks, context),
            (None, None) => bail!("name the number of clusters with -k"),
        }
    }

    fn output(&self) -> Result<PathBuf> {
        if let Some(output) = &self.output {
            check_component_name(output)?;
            return Ok(output.clone());
        }
        let path = self.from.path();
        let path = path.canonicalize().with_context(|| format!("{}", path.display()))?;
        let is_folder = self.from.images.is_some() || self.from.labels.is_some();
        let name = if is_folder { path.file_name() } else { path.file_stem() };
        let name = name.map_or_else(|| "images".into(), |name| name.to_string_lossy());
        let method = match (&self.from.labels, self.mixture) {
            (Some(_), _) => "linear",
            (None, true) => "mixture",
            (None, false) => "kmeans",
        };
        Ok(PathBuf::from(format!("{method}_{}.wasm", name.replace(' ', "_"))))
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

    /// Writes the plugin and its contact sheet, and prints a summary; returns it as JSON. The rows of `points` are the items'
    /// embeddings.
    fn write(
        &self,
        output: &Path,
        items: &Items,
        points: ArrayView2<'_, f32>,
        fitted: &Fitted,
        pin: EncoderPin,
        context: &Context,
    ) -> Result<serde_json::Value> {
        let manifest = self.manifest(output, fitted.title(items, &pin.name), fitted.names(), pin);
        check_manifest(&manifest)?;
        let plugin = fitted.bake(&manifest)?;
        write_atomic(output, &plugin)?;
        let sheet = self.sheet(output, items, points, fitted)?;
        let written = Written { plugin: output, bytes: plugin.len(), sheet: sheet.as_deref(), fitted, items };
        if !self.json {
            written.lines().iter().for_each(|line| context.progress.println(line));
        }
        Ok(written.document())
    }

    fn manifest(&self, output: &Path, title: String, styles: Vec<String>, encoder: EncoderPin) -> Manifest {
        Manifest {
            name: output.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            version: "1.0.0".to_owned(),
            title: self.title.clone().unwrap_or(title),
            authors: self.authors.clone(),
            license: self.license.clone(),
            media: vec![match self.medium {
                Medium::Text => ambiguity_sdk::Medium::Text,
                Medium::Image => ambiguity_sdk::Medium::Image,
            }],
            k: self.from.labels.is_none().then_some(styles.len()),
            styles,
            encoder: Some(encoder),
            temperature: Some(self.temperature),
            normalize: !self.no_normalize,
            ..Manifest::default()
        }
    }

    /// Writes the contact sheet, if there are images and it is wanted.
    fn sheet(
        &self,
        output: &Path,
        items: &Items,
        points: ArrayView2<'_, f32>,
        fitted: &Fitted,
    ) -> Result<Option<PathBuf>> {
        let Items::Images { files, loader, .. } = items else { return Ok(None) };
        if self.no_sheet {
            return Ok(None);
        }
        let path = self.sheet.clone().unwrap_or_else(|| output.with_extension("png"));
        let name = self.from.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let title = format!("{name}: {}", fitted.count(items));
        let below = fitted.drawings(points);
        let rows = fitted.rows(files);
        sheet::write(
            &path,
            &sheet::Sheet { title: &title, order: fitted.order(), rows: &rows, below: &below },
            loader,
        )?;
        Ok(Some(path))
    }
}

impl From {
    /// Returns the given path.
    fn path(&self) -> &Path {
        let given = [&self.images, &self.texts, &self.embeddings, &self.labels].into_iter().flatten().next();
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
