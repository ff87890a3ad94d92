//! Captions as a person would write them in a prompt for a painting.

use std::collections::BTreeSet;

use super::{MEDIA, STYLES, SUBJECTS};

/// What a caption describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptionKind {
    /// Style and subject: "painting of a man, ukiyo e".
    Full,
    /// The style alone: "a ukiyo-e painting".
    Style,
    /// The subject alone, as plain prompts have it: "painting of a man".
    Subject,
}

/// Number of different values of `variant`: media × forms of the style's name × templates.
pub const CAPTION_VARIANTS: u64 = (MEDIA.len() * 2 * 3) as u64;

/// Returns a caption for one painting; `variant` chooses the medium, the style's form (slug or spoken) and the
/// template.
///
/// # Panics
/// If `style_idx` ≥ 27 or `subject_idx` ≥ 8.
pub fn caption(style_idx: usize, subject_idx: usize, kind: CaptionKind, variant: u64) -> String {
    let mut variant = variant as usize;
    let mut choose = |n: usize| {
        let choice = variant % n;
        variant /= n;
        choice
    };
    let (style, phrase) = (STYLES[style_idx], SUBJECTS[subject_idx].phrase);
    let medium = MEDIA[choose(MEDIA.len())];
    let name = [style.slug, style.spoken][choose(2)];
    let noun = medium.trim_end_matches(" of");
    match kind {
        CaptionKind::Subject => format!("{medium} {phrase}"),
        CaptionKind::Style => match choose(3) {
            0 => styled(name, noun),
            1 => format!("{noun}, {name}"),
            _ => name.to_owned(),
        },
        CaptionKind::Full => match choose(3) {
            0 => format!("{medium} {phrase}, {name}"),
            1 => format!("{} of {phrase}", styled(name, noun)),
            _ => format!("{medium} {phrase} in {name} style"),
        },
    }
}

/// "a ukiyo-e painting", "an impressionism drawing", "an action painting".
fn styled(name: &str, noun: &str) -> String {
    let article = if name.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
    match name.strip_suffix(noun) {
        Some(_) => format!("{article} {name}"),
        None => format!("{article} {name} {noun}"),
    }
}

/// Returns every caption that `caption` can return, sorted, each once.
pub fn all_captions() -> Vec<String> {
    let mut captions = BTreeSet::new();
    for style in 0..STYLES.len() {
        for subject in 0..SUBJECTS.len() {
            for kind in [CaptionKind::Full, CaptionKind::Style, CaptionKind::Subject] {
                captions.extend((0..CAPTION_VARIANTS).map(|variant| caption(style, subject, kind, variant)));
            }
        }
    }
    captions.into_iter().collect()
}
