//! Text in images: glyphs, measuring and wrapping.

use ab_glyph::{Font, FontArc, GlyphId, PxScale, ScaleFont};

use super::fonts;
pub(crate) use super::fonts::Weight;
use crate::text::NO_BREAK_SPACE;

/// A character with the font that draws it.
pub(super) struct Glyph {
    pub(super) id: GlyphId,
    pub(super) font: FontArc,
    pub(super) scale: PxScale,
}

impl Glyph {
    /// Its width in pixels.
    pub(super) fn advance(&self) -> f32 {
        self.font.as_scaled(self.scale).h_advance(self.id)
    }
}

/// Returns the glyphs of a line at a size in pixels per em, as in CSS. A character that no font has is written as its code
/// point, U+6C34; one that only changes its neighbors, as in sequences of emoji, is left out.
pub(super) fn glyphs(text: &str, size: f32, weight: Weight) -> Vec<Glyph> {
    let mut glyphs = Vec::with_capacity(text.len());
    for letter in text.chars().filter(|letter| !matches!(letter, '\u{200d}' | '\u{fe00}'..='\u{fe0f}')) {
        let letter = if letter.is_whitespace() { ' ' } else { letter };
        match fonts::of_character(letter, weight) {
            Some(font) => glyphs.push(glyph(letter, font, size)),
            None => {
                let code = format!("U+{:04X}", u32::from(letter));
                glyphs.extend(code.chars().map(|letter| glyph(letter, fonts::of_weight(weight).clone(), size)));
            }
        }
    }
    glyphs
}

fn glyph(letter: char, font: FontArc, size: f32) -> Glyph {
    // ab_glyph's scale is of a font's height.
    let em = font.units_per_em().unwrap_or(1000.0);
    let scale = PxScale::from(size * font.height_unscaled() / em);
    Glyph { id: font.glyph_id(letter), font, scale }
}

/// The width of a line in pixels.
pub(crate) fn width(text: &str, size: f32, weight: Weight) -> f32 {
    glyphs(text, size, weight).iter().map(Glyph::advance).sum()
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
                assert_ne!(fonts::of_weight(weight).glyph_id(letter).0, 0, "{letter} is missing in {weight:?}");
            }
        }
    }

    /// On a machine with a font for them the characters are drawn, on one without their code points are.
    #[test]
    fn what_the_compiled_in_fonts_lack_is_drawn_or_written() {
        let ids = |text: &str| glyphs(text, 12.0, Weight::Regular).iter().map(|glyph| glyph.id.0).collect::<Vec<_>>();
        for text in ["水墨", "花鳥", "🌊", "ภาพ"] {
            let drawn = glyphs(text, 12.0, Weight::Regular);
            assert!(drawn.iter().all(|glyph| glyph.id.0 != 0), "{text} has boxes");
            assert!(width(text, 12.0, Weight::Regular) > 10.0, "{text}");
        }
        assert_ne!(ids("水墨"), ids("花鳥"));
        // No font has a character of the private planes.
        assert_eq!(ids("a\u{10fffd}"), ids("aU+10FFFD"));
        assert_eq!(ids("a\u{200d}b\u{fe0f}"), ids("ab"));
    }
}
