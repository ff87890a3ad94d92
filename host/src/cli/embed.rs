//! `host embed`: embeddings of images or texts by an encoder, as a safetensors file.

use std::path::{Path, PathBuf};

use ambiguity_models::params::NamedTensors;
use ambiguity_models::safetensors::write_safetensors;
use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use ndarray::Array2;
use tch::Tensor;

use crate::context::Context;
use crate::data::images::{ImageError, ImageLoader, find_images};
use crate::encoders::{Encoders, embed_files, stacked};
use crate::fs::read_text;
use crate::plugin::user_cache;
use crate::text::text_lines;
use crate::zoo::encoder_folder;

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
        }
    }
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
        println!("{}: {} embeddings of dimension {}", self.out.display(), shape[0], shape[1]);
        Ok(())
    }
}

/// Returns the non-empty lines of a file.
fn lines(file: &Path) -> Result<Vec<String>> {
    let lines: Vec<String> = text_lines(&read_text(file)?).into_iter().map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "{} contains no text", file.display());
    Ok(lines)
}
