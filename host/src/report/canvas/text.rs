//! Text in images: the two compiled-in fonts, measuring and wrapping.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont};

use crate::text::NO_BREAK_SPACE;

/// The font weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Running text.
    Regular,
    /// Headings and values.
    Bold,
}

static REGULAR: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    FontRef::try_from_slice(include_bytes!("../../../assets/DejaVuSans-subset.ttf")).expect("the font is compiled in")
});
static BOLD: LazyLock<FontRef<'static>> = LazyLock::new(|| {
    FontRef::try_from_slice(include_bytes!("../../../assets/DejaVuSans-Bold-subset.ttf"))
        .expect("the font is compiled in")
});

pub(crate) fn font(weight: Weight) -> &'static FontRef<'static> {
    match weight {
        Weight::Regular => &REGULAR,
        Weight::Bold => &BOLD,
    }
}

/// ab_glyph's scale for a size in pixels per em, as in CSS.
pub(crate) fn scale(weight: Weight, size: f32) -> PxScale {
    let font = font(weight);
    let em = font.units_per_em().expect("the compiled-in fonts have units per em");
    PxScale::from(size * font.height_unscaled() / em)
}

/// The width of a line in pixels.
pub(crate) fn width(text: &str, size: f32, weight: Weight) -> f32 {
    let font = font(weight).as_scaled(scale(weight, size));
    text.chars().map(|letter| font.h_advance(font.glyph_id(letter))).sum()
}

/// Breaks text at spaces, not at no-break spaces, into lines no wider than `max_width`; text that does not fit into
/// `max_lines` is cut and ends in `…`.
pub(crate) fn wrap(text: &str, size: f32, weight: Weight, max_width: f32, max_lines: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let breaks = |letter: char| letter.is_whitespace() && letter != NO_BREAK_SPACE;
    for word in text.split(breaks).filter(|word| !word.is_empty()) {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), size, weight) <= max_width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    if lines.len() > max_lines {
        let rest = lines.split_off(max_lines.max(1) - 1).join(" ");
        lines.push(format!("{rest}…"));
    }
    lines.into_iter().map(|line| shorten(line, size, weight, max_width)).collect()
}

/// Cuts a line that is too wide and ends it in `…`.
fn shorten(line: String, size: f32, weight: Weight, max_width: f32) -> String {
    let mut line = line;
    while width(&line, size, weight) > max_width && line.chars().count() > 1 {
        let mut letters: Vec<char> = line.trim_end_matches('…').trim_end().chars().collect();
        letters.pop();
        line = letters.into_iter().collect::<String>().trim_end().to_owned() + "…";
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_spaces_and_cut_at_the_last() {
        let wrapped = wrap("a painting of a woman in the style of cubism", 12.0, Weight::Regular, 128.0, 2);
        assert_eq!(wrapped.len(), 2);
        assert!(wrapped[1].ends_with('…'), "{wrapped:?}");
        assert!(wrapped.iter().all(|line| width(line, 12.0, Weight::Regular) <= 128.0), "{wrapped:?}");
        assert_eq!(wrap("cubism 76\u{a0}%", 12.0, Weight::Regular, 70.0, 2), ["cubism", "76\u{a0}%"]);
        assert_eq!(wrap("short", 12.0, Weight::Regular, 128.0, 2), ["short"]);
        assert!(wrap("", 12.0, Weight::Regular, 128.0, 2).is_empty());
    }

    #[test]
    fn one_long_word_is_cut() {
        let wrapped = wrap("Donaudampfschifffahrtsgesellschaft", 12.0, Weight::Bold, 100.0, 2);
        assert_eq!(wrapped.len(), 1);
        assert!(wrapped[0].ends_with('…') && width(&wrapped[0], 12.0, Weight::Bold) <= 100.0, "{wrapped:?}");
    }

    #[test]
    fn the_fonts_have_every_sign_that_is_drawn() {
        for weight in [Weight::Regular, Weight::Bold] {
            for letter in "azAZ09 −–—…×±σ→≥≤éß%·\u{a0}".chars() {
                assert_ne!(font(weight).glyph_id(letter).0, 0, "{letter} is missing in {weight:?}");
            }
        }
    }
}
