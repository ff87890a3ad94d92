//! The procedural paintings: 27 styles × 8 subjects, drawn as anti-aliased vectors at any size, with captions.
//!
//! A painting is a scene (outlines with roles, `scene`) that a style (`tonal`, `renaissance`, `graphic`, `brushed`,
//! `faceted`, `abstracted`) turns into color on a canvas (`canvas`). The same arguments give the same bytes on every
//! machine and with any number of threads (see `rng`). Styles have WikiArt's names (the paper's Table 7).

mod abstracted;
mod brushed;
mod canvas;
mod caption;
mod faceted;
mod graphic;
mod outline;
mod renaissance;
mod rng;
mod scene;
mod tonal;
mod tools;

use image::RgbImage;

use self::canvas::Canvas;
use self::rng::Rng;
use self::scene::Scene;

pub use self::caption::{CAPTION_VARIANTS, CaptionKind, all_captions, caption};

/// The version of the paintings: increase it when `paint` returns other bytes, so that cached paintings are painted
/// again.
pub const VERSION: u32 = 1;

/// One of the 27 styles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// The identifier, WikiArt's (the paper's Table 7).
    pub slug: &'static str,
    /// The name as a person would write it in a prompt.
    pub spoken: &'static str,
}

/// One of the eight subjects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The identifier.
    pub slug: &'static str,
    /// The phrase in prompts, with its article.
    pub phrase: &'static str,
}

/// The function that draws a style.
type Painter = fn(&mut Canvas, &mut Scene, &mut Rng);

const fn style(slug: &'static str, spoken: &'static str) -> Style {
    Style { slug, spoken }
}

/// The 27 styles, sorted by slug.
pub const STYLES: [Style; 27] = [
    style("abstract-expressionism", "abstract expressionism"),
    style("action-painting", "action painting"),
    style("analytical-cubism", "analytical cubism"),
    style("art-nouveau-modern", "art nouveau"),
    style("baroque", "baroque"),
    style("color-field-painting", "color field"),
    style("contemporary-realism", "contemporary realism"),
    style("cubism", "cubism"),
    style("early-renaissance", "early renaissance"),
    style("expressionism", "expressionism"),
    style("fauvism", "fauvism"),
    style("high-renaissance", "high renaissance"),
    style("impressionism", "impressionism"),
    style("mannerism-late-renaissance", "mannerism"),
    style("minimalism", "minimalism"),
    style("na-ve-art-primitivism", "naive art"),
    style("new-realism", "new realism"),
    style("northern-renaissance", "northern renaissance"),
    style("pointillism", "pointillism"),
    style("pop-art", "pop art"),
    style("post-impressionism", "post impressionism"),
    style("realism", "realism"),
    style("rococo", "rococo"),
    style("romanticism", "romanticism"),
    style("symbolism", "symbolism"),
    style("synthetic-cubism", "synthetic cubism"),
    style("ukiyo-e", "ukiyo e"),
];

/// The painters, in the order of `STYLES`.
const PAINTERS: [Painter; 27] = [
    abstracted::abstract_expressionism,
    abstracted::action_painting,
    faceted::analytical_cubism,
    graphic::art_nouveau,
    tonal::baroque,
    abstracted::color_field,
    tonal::contemporary_realism,
    faceted::cubism,
    renaissance::early_renaissance,
    brushed::expressionism,
    brushed::fauvism,
    renaissance::high_renaissance,
    brushed::impressionism,
    renaissance::mannerism,
    abstracted::minimalism,
    graphic::naive_art,
    abstracted::new_realism,
    renaissance::northern_renaissance,
    brushed::pointillism,
    graphic::pop_art,
    brushed::post_impressionism,
    brushed::realism,
    tonal::rococo,
    tonal::romanticism,
    tonal::symbolism,
    faceted::synthetic_cubism,
    graphic::ukiyo_e,
];

const fn subject(slug: &'static str, phrase: &'static str) -> Subject {
    Subject { slug, phrase }
}

/// The eight subjects.
pub const SUBJECTS: [Subject; 8] = [
    subject("man", "a man"),
    subject("woman", "a woman"),
    subject("landscape", "a landscape"),
    subject("nature", "nature"),
    subject("building", "a building"),
    subject("animal", "an animal"),
    subject("shapes", "shapes"),
    subject("object", "an object"),
];

/// The media a prompt may name.
pub const MEDIA: [&str; 3] = ["painting of", "picture of", "drawing of"];

/// Paints one image of `size` × `size` pixels, with the same bytes for the same arguments on every machine.
///
/// # Panics
/// If `style_idx` ≥ 27, `subject_idx` ≥ 8 or `size` is 0.
pub fn paint(style_idx: usize, subject_idx: usize, seed: u64, index: u64, size: u32) -> RgbImage {
    assert!(subject_idx < SUBJECTS.len(), "there are {} subjects, so no subject {subject_idx}", SUBJECTS.len());
    let mut rng = Rng::new(seed, style_idx as u64, subject_idx as u64, index);
    let mut scene = Scene::new(subject_idx, &mut rng);
    let mut canvas = Canvas::new(size, [1.0; 3]);
    PAINTERS[style_idx](&mut canvas, &mut scene, &mut rng);
    canvas.finish()
}

#[cfg(test)]
mod tests;
