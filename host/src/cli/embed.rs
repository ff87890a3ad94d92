//! `host embed`: embeddings of images or texts by an encoder, as a safetensors file.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_models::params::NamedTensors;
use ambiguity_models::safetensors::write_safetensors;
use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use ndarray::Array2;
use rayon::prelude::*;
use serde_json::json;
use tch::Tensor;

use crate::context::Context;
use crate::data::images::{ImageError, ImageLoader, batches, find_images};
use crate::encoders::familiar::{self, Familiar};
use crate::encoders::{Encoders, embed_files, stacked};
use crate::fs::{read_text, write_atomic};
use crate::plugin::user_cache;
use crate::text::{counted, shown, text_lines, to_json};
use crate::zoo::encoder_folder;
use crate::zoo::home::home;

/// Number of texts that are embedded between two checks for Ctrl-C.
const BATCH: usize = 64;

/// Embed images or texts with a CLIP encoder.
#[derive(Args, Debug)]
pub struct EmbedArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Embed images; a folder means all images below it
    #[command(after_help = "Example:
  host embed images --encoder tiny-art images/ --out images.safetensors")]
    Images {
        #[command(flatten)]
        common: Common,
        /// Images (png, jpg, webp, gif, bmp, tiff) or folders of them
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Embed texts
    #[command(after_help = "Examples:
  host embed texts --encoder tiny-art \"painting of a woman\" \"drawing of shapes\" --out texts.safetensors
  host embed texts --encoder models/clip-vit-large-patch14 --file styles.txt --normalize --out styles.safetensors")]
    Texts {
        #[command(flatten)]
        common: Common,
        /// Texts
        #[arg(value_name = "TEXT", required_unless_present = "file")]
        texts: Vec<String>,
        /// A file with one text per line; empty lines and those that begin with # are left out
        #[arg(long, value_name = "LINES", conflicts_with = "texts")]
        file: Option<PathBuf>,
    },
    /// Compute what an encoder knows: the distribution of its training images
    #[command(after_help = "Example:
  host embed statistics --encoder models/my-clip --images paintings/

With the file in its folder, the commands that use the encoder warn if images are unlike those that it was trained on:
farther from the centers of their groups, in units of the groups' covariance, than 99 % of them are.")]
    Statistics {
        /// A CLIP folder, or the name of a shipped encoder
        #[arg(long, value_name = "DIR|NAME")]
        encoder: String,
        /// The images that it was trained on, one folder of them per group: DIR/STYLE/…
        #[arg(long, value_name = "DIR")]
        images: PathBuf,
        /// cpu, cuda or cuda:N
        #[arg(long, value_name = "DEVICE", default_value = "cpu")]
        device: String,
        /// The file to write [default: embedding_statistics.safetensors in the encoder's folder]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Print one JSON document about the result
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
struct Common {
    /// A CLIP folder, the name of a shipped encoder, or an id on the Hub
    #[arg(long, value_name = "DIR|NAME|ID")]
    encoder: String,
    /// Scale every row to length 1
    #[arg(long)]
    normalize: bool,
    /// cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    /// The file to write: safetensors, key `embeddings`, f32 [n, d]; rows are in the order given, folders sorted
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON document about the result
    #[arg(long)]
    json: bool,
}

impl EmbedArgs {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<()> {
        match self.command {
            Command::Images { common, files } => {
                let mut images = vec![];
                for file in files {
                    if file.is_dir() { images.extend(find_images(&file)?) } else { images.push(file) }
                }
                let (mut encoders, name) = (common.encoders(context)?, &*common.encoder);
                let loader = ImageLoader::default();
                let mut refuse = |error: ImageError| Err(error.into());
                let caches = user_cache();
                let embedded =
                    embed_files(&images, name, &mut encoders, &loader, caches.as_deref(), &mut refuse, context)?;
                common.write(embedded.rows)
            }
            Command::Texts { common, texts, file } => {
                let texts = match &file {
                    Some(file) => lines(file)?,
                    None => texts,
                };
                let mut encoders = common.encoders(context)?;
                let bar = context.progress.bar("embedding", texts.len() as u64, "texts");
                let mut parts = vec![];
                for part in texts.chunks(BATCH) {
                    context.interrupt.check("nothing was written")?;
                    parts.push(encoders.embed_texts(&common.encoder, part)?);
                    bar.inc(part.len() as u64);
                }
                bar.finish();
                common.write(stacked(&parts))
            }
            Command::Statistics { encoder, images, device, out, json } => {
                statistics(&encoder, &images, &device, out, json, context)
            }
        }
    }
}

/// Writes the statistics of an encoder's training images.
fn statistics(
    encoder: &str,
    images: &Path,
    device: &str,
    out: Option<PathBuf>,
    json: bool,
    context: &Context,
) -> Result<()> {
    let folder = match Path::new(encoder) {
        folder if folder.is_dir() => folder.to_owned(),
        _ => {
            let shipped = home().map(|home| home.join("models/weights").join(encoder).join("clip"));
            shipped.filter(|folder| folder.is_dir()).with_context(|| format!("there is no encoder {encoder}"))?
        }
    };
    let device = torch_ext::cuda::device(device)?;
    let mut encoders = Encoders::new();
    encoders.add_clip(encoder, &folder, device);
    let files = find_images(images)?;
    let group = |file: &PathBuf| {
        let below = file.strip_prefix(images).unwrap_or(file);
        let has_group = below.components().count() > 1;
        has_group.then(|| below.components().next().map(|part| part.as_os_str().to_owned())).flatten()
    };
    let names: BTreeSet<_> = files.iter().map(group).collect();
    let names: Vec<_> = names.into_iter().collect();
    let groups: Vec<usize> = files.iter().map(|file| names.binary_search(&group(file)).unwrap_or(0)).collect();
    let loader = ImageLoader::default();
    let bar = context.progress.bar("embedding", files.len() as u64, "images");
    let mut parts = vec![];
    for part in batches(&files, BATCH) {
        context.interrupt.check("nothing was written")?;
        let read = part.par_iter().map(|file| Ok(Arc::new(loader.read(file)?))).collect::<Result<Vec<_>>>()?;
        parts.push(encoders.embed_images(encoder, &read)?);
        bar.inc(part.len() as u64);
    }
    bar.finish();
    let statistics = Familiar::of(&stacked(&parts), &groups, names.len())?;
    let out = out.unwrap_or_else(|| folder.join(familiar::FILE));
    let (n, n_groups) = (files.len().to_string(), names.len().to_string());
    let digest = encoders.get(encoder)?.info().digest;
    let metadata = [("encoder", &*digest), ("images", &*n), ("groups", &*n_groups)];
    write_atomic(&out, &statistics.encode(&out, &metadata)?)?;
    if json {
        println!("{}", to_json(&json!({ "out": out.to_string_lossy(), "images": files.len(), "groups": names.len() })));
    } else {
        let (images, groups) = (counted(files.len() as u64, "image"), counted(names.len() as u64, "group"));
        println!("{}: the distribution of {images} in {groups}", shown(&out));
    }
    Ok(())
}

impl Common {
    /// Returns the shipped encoders, and the one that is named.
    fn encoders(&self, context: &Context) -> Result<Encoders> {
        let device = torch_ext::cuda::device(&self.device)?;
        let mut encoders = Encoders::shipped(device);
        if Path::new(&self.encoder).is_dir() || !encoders.names().contains(&self.encoder.as_str()) {
            let folder = encoder_folder(&self.encoder, &self.encoder, context)?;
            encoders.add_clip(&self.encoder, &folder, device);
        }
        Ok(encoders)
    }

    /// Writes the file.
    fn write(&self, mut rows: Array2<f32>) -> Result<()> {
        if self.normalize {
            for mut row in rows.rows_mut() {
                let length = row.dot(&row).sqrt();
                row /= length.max(f32::MIN_POSITIVE);
            }
        }
        let shape = [rows.nrows() as i64, rows.ncols() as i64];
        let flat: Vec<f32> = rows.iter().copied().collect();
        let tensors: NamedTensors = [("embeddings".to_owned(), Tensor::from_slice(&flat).f_view(shape)?)].into();
        write_safetensors(&self.out, &tensors, &[("encoder", &self.encoder)])?;
        if self.json {
            let (rows, dim) = (shape[0], shape[1]);
            let out = self.out.to_string_lossy();
            println!("{}", to_json(&json!({ "out": out, "encoder": self.encoder, "embeddings": rows, "dim": dim })));
        } else {
            let rows = counted(shape[0] as u64, "embedding");
            println!("{}: {rows} of dimension {}", shown(&self.out), shape[1]);
        }
        Ok(())
    }
}

/// Returns the non-empty lines of a file.
fn lines(file: &Path) -> Result<Vec<String>> {
    let lines: Vec<String> = text_lines(&read_text(file)?).into_iter().map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "{} contains no text", file.display());
    Ok(lines)
}
