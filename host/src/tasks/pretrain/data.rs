//! Paintings in memory and captions as token ids.

use ambiguity_models::clip::Tokenizer;
use anyhow::{Result, ensure};
use rayon::prelude::*;
use tch::{Kind, Tensor};
use torch_ext::Generator;

use super::Session;
use crate::random::{Purpose, derive_seed};
use procedural_art::{CAPTION_VARIANTS, CaptionKind, STYLES, SUBJECTS, caption, paint};

/// Number of (style, subject) pairs.
pub const N_PAIRS: usize = STYLES.len() * SUBJECTS.len();
/// Number of paintings rendered between two checks for Ctrl-C.
const CHUNK: usize = 10 * N_PAIRS;

/// The split of a painting: no painting is in both; the numbers are part of seeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Training paintings.
    Training = 0,
    /// Held-out paintings for evaluation.
    HeldOut = 1,
}

/// Paintings, u8 [n, 3, size, size], n = copies × pairs; painting i shows pair i mod 216.
#[derive(Debug)]
pub struct Paintings {
    pixels: Tensor,
}

/// Returns the style of pair `pair`.
pub fn style_of(pair: usize) -> usize {
    pair / SUBJECTS.len()
}

/// Returns the subject of pair `pair`.
pub fn subject_of(pair: usize) -> usize {
    pair % SUBJECTS.len()
}

impl Paintings {
    /// Renders `per_pair` paintings of every pair.
    pub fn render(session: &Session, split: Split, per_pair: usize) -> Result<Self> {
        let n = per_pair * N_PAIRS;
        let bar = session.context.progress.bar("paintings", n as u64, "images");
        let mut chunks = Vec::new();
        for first in (0..n).step_by(CHUNK) {
            session.context.interrupt.check("nothing was trained since the last checkpoint")?;
            let count = CHUNK.min(n - first);
            chunks.push(render_range(session, split, first, count));
            bar.inc(count as u64);
        }
        Ok(Self { pixels: Tensor::cat(&chunks, 0) })
    }

    /// Returns the number of paintings.
    pub fn len(&self) -> usize {
        self.pixels.size()[0] as usize
    }

    /// Returns the paintings at `indices` (i64 [b]), f32 [b, 3, size, size] in [0, 1].
    pub fn at(&self, indices: &Tensor) -> Tensor {
        to_unit(&self.pixels.index_select(0, indices))
    }

    /// Returns `count` paintings from `first` on.
    pub fn range(&self, first: usize, count: usize) -> Tensor {
        to_unit(&self.pixels.narrow(0, first as i64, count as i64))
    }
}

fn to_unit(pixels: &Tensor) -> Tensor {
    pixels.to_kind(Kind::Float) / 255.0
}

fn render_range(session: &Session, split: Split, first: usize, count: usize) -> Tensor {
    let size = session.pretrain().data.size;
    let seed = derive_seed(session.pretrain().seed, split as u64, 0, Purpose::Data);
    let plane = (size * size) as usize;
    let mut bytes = vec![0u8; count * 3 * plane];
    bytes.par_chunks_mut(3 * plane).enumerate().for_each(|(i, planes)| {
        let (copy, pair) = ((first + i) / N_PAIRS, (first + i) % N_PAIRS);
        let image = paint(style_of(pair), subject_of(pair), seed, copy as u64, size);
        for (k, pixel) in image.pixels().enumerate() {
            for (channel, value) in pixel.0.into_iter().enumerate() {
                planes[channel * plane + k] = value;
            }
        }
    });
    Tensor::from_slice(&bytes).view([count as i64, 3, i64::from(size), i64::from(size)])
}

/// Mirrors half of the images at random and shifts each by up to `shift` pixels, with the border replicated.
pub fn augment(images: &Tensor, shift: i64, generator: &mut Generator) -> Result<Tensor> {
    let (n, _, height, width) = images.size4()?;
    let mirrored = generator.uniform(&[n, 1, 1, 1])?.lt(0.5);
    let images = images.flip([3]).where_self(&mirrored, images);
    if shift == 0 {
        return Ok(images);
    }
    let offsets = Vec::<i64>::try_from(generator.integers(0, 2 * shift + 1, &[2 * n])?)?;
    let padded = images.f_replication_pad2d([shift; 4])?;
    let shifted = (0..n)
        .map(|i| {
            let (top, left) = (offsets[2 * i as usize], offsets[2 * i as usize + 1]);
            padded.get(i).narrow(1, top, height).narrow(2, left, width)
        })
        .collect::<Vec<_>>();
    Ok(Tensor::stack(&shifted, 0))
}

/// All captions as token ids.
#[derive(Debug)]
pub struct Captions {
    /// Token ids, i64 [n + 1, length]; the last row is the empty caption.
    pub ids: Tensor,
    full: Block,
    style: Block,
    subject: Block,
}

/// The first row of the captions of a kind.
#[derive(Clone, Copy, Debug)]
struct Block(usize);

impl Captions {
    /// Encodes all captions; returns an error if one does not fit into the tokenizer's length.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let mut texts = Vec::new();
        let mut block = |kind: CaptionKind, n: usize, pair: fn(usize) -> (usize, usize)| {
            let block = Block(texts.len());
            for i in 0..n {
                let (style, subject) = pair(i);
                texts.extend((0..CAPTION_VARIANTS).map(|variant| caption(style, subject, kind, variant)));
            }
            block
        };
        let full = block(CaptionKind::Full, N_PAIRS, |pair| (style_of(pair), subject_of(pair)));
        let style = block(CaptionKind::Style, STYLES.len(), |style| (style, 0));
        let subject = block(CaptionKind::Subject, SUBJECTS.len(), |subject| (0, subject));
        texts.push(String::new());
        let ids = tokenizer.encode_batch(&texts);
        // A text without padding may have been truncated; its last token is the end token either way.
        let last_but_one = ids.select(1, -2);
        let end = tokenizer.id("<|endoftext|>").map_or(-1, i64::from);
        let n_cut = last_but_one.ne(end).sum(Kind::Int64).int64_value(&[]);
        ensure!(
            n_cut == 0,
            "{n_cut} captions do not fit into {} tokens with one padding token",
            tokenizer.max_length()
        );
        Ok(Self { ids, full, style, subject })
    }

    /// Returns the row of the empty caption.
    pub fn null(&self) -> i64 {
        self.ids.size()[0] - 1
    }

    /// Returns the row of the pair's caption with style and subject, in the variant that `draw` in [0, 1) selects.
    pub fn full(&self, pair: usize, draw: f64) -> i64 {
        self.full.row(pair, draw)
    }

    /// Returns the row of a caption with a style alone, as [`Captions::full`].
    pub fn style(&self, style: usize, draw: f64) -> i64 {
        self.style.row(style, draw)
    }

    /// Returns the row of a caption with a subject alone, as [`Captions::full`].
    pub fn subject(&self, subject: usize, draw: f64) -> i64 {
        self.subject.row(subject, draw)
    }

    /// Returns the token ids of some rows.
    pub fn select(&self, rows: &[i64]) -> Tensor {
        self.ids.index_select(0, &Tensor::from_slice(rows))
    }
}

impl Block {
    fn row(self, i: usize, draw: f64) -> i64 {
        let variant = ((draw * CAPTION_VARIANTS as f64) as u64).min(CAPTION_VARIANTS - 1);
        (self.0 as u64 + i as u64 * CAPTION_VARIANTS + variant) as i64
    }
}

/// Returns the texts for zero-shot classification of styles: the first variant of each.
pub fn style_texts() -> Vec<String> {
    (0..STYLES.len()).map(|style| caption(style, 0, CaptionKind::Style, 0)).collect()
}

/// Returns the texts for zero-shot classification of subjects.
pub fn subject_texts() -> Vec<String> {
    (0..SUBJECTS.len()).map(|subject| caption(0, subject, CaptionKind::Subject, 0)).collect()
}

/// Returns the texts of all pairs of style and subject.
pub fn full_texts() -> Vec<String> {
    (0..N_PAIRS).map(|pair| caption(style_of(pair), subject_of(pair), CaptionKind::Full, 0)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::clip::tokenizer;
    use super::*;

    #[test]
    fn augmenting_mirrors_and_shifts_within_bounds() {
        // Each column contains its own number, so that a row reveals the augmentation.
        let images = Tensor::arange(8, (Kind::Float, tch::Device::Cpu)).expand([64, 3, 8, 8], false);
        let mut generator = Generator::cpu(1).unwrap();
        let augmented = augment(&images, 2, &mut generator).unwrap();
        assert_eq!(augmented.size(), [64, 3, 8, 8]);
        let (mut mirrored, mut offsets) = (0, std::collections::BTreeSet::new());
        for i in 0..64 {
            let row = Vec::<f32>::try_from(augmented.get(i).get(0).get(0)).unwrap();
            let step = row[4] - row[3];
            assert_eq!(step.abs(), 1.0, "{row:?}");
            mirrored += i32::from(step < 0.0);
            offsets.insert(((if step < 0.0 { 7.0 - row[3] } else { row[3] }) - 3.0) as i64);
        }
        assert!((16..48).contains(&mirrored), "{mirrored} of 64 are mirrored");
        assert_eq!(offsets.into_iter().collect::<Vec<_>>(), [-2, -1, 0, 1, 2]);
        assert_eq!(augment(&images, 0, &mut generator).unwrap().size(), images.size());
    }

    #[test]
    fn caption_rows_match_their_captions() {
        let tokenizer = tokenizer(16).unwrap();
        let captions = Captions::new(&tokenizer).unwrap();
        let ids = |row: i64| Vec::<i64>::try_from(captions.ids.get(row)).unwrap();
        for (pair, draw) in [(0, 0.0), (107, 0.5), (215, 0.999)] {
            let variant = (draw * CAPTION_VARIANTS as f64) as u64;
            let (style, subject) = (style_of(pair), subject_of(pair));
            let expected = |kind| tokenizer.encode(&caption(style, subject, kind, variant));
            assert_eq!(ids(captions.full(pair, draw)), expected(CaptionKind::Full));
            assert_eq!(ids(captions.style(style, draw)), expected(CaptionKind::Style));
            assert_eq!(ids(captions.subject(subject, draw)), expected(CaptionKind::Subject));
        }
        assert_eq!(ids(captions.null()), tokenizer.encode(""));
    }

    #[test]
    fn captions_that_do_not_fit_are_an_error() {
        let error = Captions::new(&tokenizer(8).unwrap()).unwrap_err();
        assert!(error.to_string().contains("do not fit into 8 tokens"), "{error}");
    }
}
