//! `host embed`: embeddings of images or texts by an encoder, as a safetensors file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambiguity_models::params::NamedTensors;
use ambiguity_models::safetensors::write_safetensors;
use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use ndarray::Array2;
use tch::Tensor;

use crate::context::Context;
use crate::data::images::{ImageLoader, batches, find_images};
use crate::encoders::{Encoders, stacked};
use crate::fs::read_text;
use crate::text::{shown, text_lines};
use crate::zoo::encoder_folder;

/// Number of rows that are embedded between two checks for Ctrl-C.
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
                let loader = ImageLoader::default();
                common.write(context, batches(&images, BATCH), images.len(), |encoders, name, files| {
                    let images =
                        files.iter().map(|file| Ok(Arc::new(loader.read(file)?))).collect::<Result<Vec<_>>>()?;
                    Ok(encoders.embed_images(name, &images)?)
                })
            }
            Command::Texts { common, texts, file } => {
                let texts = match &file {
                    Some(file) => lines(file)?,
                    None => texts,
                };
                common.write(context, texts.chunks(BATCH), texts.len(), |encoders, name, texts| {
                    Ok(encoders.embed_texts(name, texts)?)
                })
            }
        }
    }
}

impl Common {
    /// Embeds `n` items by the batch, and writes the file.
    fn write<'a, T: 'a>(
        &self,
        context: &Context,
        batches: impl Iterator<Item = &'a [T]>,
        n: usize,
        mut embed: impl FnMut(&mut Encoders, &str, &[T]) -> Result<Array2<f32>>,
    ) -> Result<()> {
        let device = torch_ext::cuda::device(&self.device)?;
        let mut encoders = Encoders::shipped(device);
        if Path::new(&self.encoder).is_dir() || !encoders.names().contains(&self.encoder.as_str()) {
            let folder = encoder_folder(&self.encoder, &self.encoder, context)?;
            encoders.add_clip(&self.encoder, &folder, device);
        }
        let bar = context.progress.bar("embedding", n as u64, "rows");
        let mut parts = vec![];
        for part in batches {
            context.interrupt.check("nothing was written")?;
            parts.push(embed(&mut encoders, &self.encoder, part)?);
            bar.inc(part.len() as u64);
        }
        bar.finish();
        let mut rows = stacked(&parts);
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
        println!("{}: {} embeddings of dimension {}", shown(&self.out), shape[0], shape[1]);
        Ok(())
    }
}

/// Returns the non-empty lines of a file.
fn lines(file: &Path) -> Result<Vec<String>> {
    let lines: Vec<String> = text_lines(&read_text(file)?).into_iter().map(str::to_owned).collect();
    ensure!(!lines.is_empty(), "{} contains no text", file.display());
    Ok(lines)
}
