//! Text formatting: numbers, counts, sizes, lines, and errors as sentences.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::failure::in_words;

/// Minimum Jaro-Winkler similarity of a known key that is suggested for an unknown one.
const MIN_SIMILARITY: f64 = 0.75;

/// A space that keeps a number and its unit on one line.
pub const NO_BREAK_SPACE: char = '\u{a0}';

/// Numbers above this are written in scientific notation.
const LARGE: f64 = 1e6;
/// [`two_digits`] writes numbers below this in scientific notation.
const SMALL: f64 = 1e-4;

/// Returns what to say of the unknown key `name`: the most similar of the keys in `known`, otherwise all of them.
pub fn key_hint(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some((_, key)) => format!("did you mean `{key}`?"),
        None => format!("known here: {}", known.join(", ")),
    }
}

/// Returns the name that is the most similar to `name`, with its similarity, unless none is similar; the first of several.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<(f64, &'a str)> {
    let candidates = known.map(|known| (strsim::jaro_winkler(known, name), known));
    let best = candidates.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.filter(|(similarity, _)| *similarity > MIN_SIMILARITY)
}

/// Checks a SHA-256 digest, with or without the prefix `sha256:`, and returns its 64 digits in lower case.
pub fn sha256_digits(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    match digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        true => Ok(digits.to_ascii_lowercase()),
        false => Err("a SHA-256 digest has 64 hexadecimal digits; `host plugin inspect` shows a plugin's".to_owned()),
    }
}

/// Formats a number with this many decimals and a typographic minus sign; a large one as `1.80e10`.
pub fn number(value: f64, decimals: usize) -> String {
    let text = if value.abs() < LARGE { format!("{value:.decimals$}") } else { format!("{value:.2e}") };
    match text.strip_prefix('-') {
        // A number that is rounded to zero has no sign.
        Some(digits) if digits.chars().all(|c| c == '0' || c == '.') => digits.to_owned(),
        Some(digits) => format!("−{digits}"),
        None => text,
    }
}

/// Formats a change as [`number`] does, with a plus sign if it is positive; one that is rounded to zero has no sign.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = number(value, decimals);
    let is_zero = text.chars().all(|letter| letter == '0' || letter == '.');
    if value > 0.0 && !is_zero { format!("+{text}") } else { text }
}

/// Returns the number of decimals that show a difference of this size with about three digits: the rewards of k-means
/// classifiers may differ in the third decimal only.
pub fn decimals(difference: f64) -> usize {
    let digits = 2.0 - difference.abs().log10().floor();
    if digits.is_finite() { digits.clamp(3.0, 6.0) as usize } else { 3 }
}

/// Formats a positive number with two significant digits.
pub fn two_digits(value: f64) -> String {
    let place = value.log10().floor() - 1.0;
    if !place.is_finite() {
        return number(value, 0);
    }
    if !(SMALL..LARGE).contains(&value) {
        return format!("{value:.1e}");
    }
    let unit = 10f64.powf(place);
    number((value / unit).round() * unit, (-place).max(0.0) as usize)
}

/// Formats bytes in GiB.
pub fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// Formats a number of bytes.
pub fn size(bytes: usize) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Returns a table as text, whose cells are [`escaped`]: each column is left-aligned where `left` is true, else
/// right-aligned, separated by two spaces.
pub fn table(left: &[bool], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).add_rows(rows.iter().map(|row| row.iter().map(|cell| escaped(cell))));
    for (column, &left) in table.column_iter_mut().zip(left) {
        let alignment = if left { CellAlignment::Left } else { CellAlignment::Right };
        column.set_padding((2, 0)).set_cell_alignment(alignment);
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Formats a count with its noun: `1 epoch`, `2 epochs`.
pub fn counted(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Whether a terminal interprets a character instead of showing it: a control character, one that breaks lines, or one
/// that sets the direction of text.
pub fn is_control(character: char) -> bool {
    let directs = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{206f}'
    );
    character.is_control() || directs || matches!(character, '\u{2028}' | '\u{2029}')
}

/// Returns a text that others wrote (a plugin, a file, a server) as one line that shows what it contains: each character
/// that [`is_control`], line feeds and tabs included, is written as an escape of Rust. Every such text passes through
/// here on its way to a terminal, a log line, a metrics file or a report.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escaped_but(text, |_| false)
}

/// Returns a text of several lines [`escaped`], but for its line feeds and tabs.
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escaped_but(text, |character| matches!(character, '\n' | '\t'))
}

/// Returns the text [`escaped`], but for the characters that are `kept`.
fn escaped_but(text: &str, kept: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.chars().any(|character| is_control(character) && !kept(character)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match is_control(character) && !kept(character) {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    Cow::Owned(shown)
}

/// Returns a text [`escaped`] for a line of Markdown, of a table's cell too: it is shown as it is, without emphasis, code,
/// links, images, HTML, mathematics or a list.
pub fn markdown(text: &str) -> String {
    let text = escaped(text.trim());
    let mut shown = String::with_capacity(text.len());
    // A line that begins so is an item of a list, or underlines the line before it.
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let begins_list = |i: usize, character: char| match character {
        '-' | '+' | '=' => i == 0,
        '.' | ')' => i == digits && digits > 0 && !text[i + 1..].starts_with(|c: char| !c.is_whitespace()),
        _ => false,
    };
    for (i, character) in text.char_indices() {
        if "\\`*_[]<>#|~&$!@".contains(character) || begins_list(i, character) {
            shown.push('\\');
        }
        shown.push(character);
    }
    shown
}

/// Returns a path [`escaped`], for the output of commands; what is no UTF-8 is shown as U+FFFD.
pub fn shown(path: &Path) -> String {
    escaped(&path.to_string_lossy()).into_owned()
}

/// Returns a document as JSON that is indented, for the output of commands. Characters that [`is_control`] are JSON's own
/// escapes, so that a reader gets the text as it was, and a terminal does not.
pub fn to_json(document: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(document).expect("our documents have keys of text, and no paths");
    escaped_json(&text)
}

/// Returns JSON in which characters that [`is_control`] are JSON's own escapes; the line feeds between values stay.
pub fn escaped_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        // In a string, a line feed is escaped already. Those that are not are of the Basic Multilingual Plane.
        match is_control(character) && character != '\n' {
            true => write!(shown, "\\u{:04x}", u32::from(character)).expect("a string grows"),
            false => shown.push(character),
        }
    }
    shown
}

/// Whether a text contains a character that [`is_control`].
pub fn has_control(text: &str) -> bool {
    text.chars().any(is_control)
}

/// Returns a text on one line: line breaks and tabs, which descriptions often contain, become spaces.
pub fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the lines of a text, trimmed, without those that are empty or comments, which begin with `#`; a byte order
/// mark is dropped.
pub fn text_lines(text: &str) -> Vec<&str> {
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Returns an error and its causes as one sentence, libtorch's in our words; a cause that the text before it already contains is not repeated.
/// Control characters, which only a file, a plugin or a server can contain, are [`escaped`]; the drawing of a line in a TOML
/// file keeps its line breaks.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let is_drawing = cause.is::<toml::de::Error>();
        let cause = in_words(&cause.to_string());
        let cause = escaped_but(&cause, |character| is_drawing && matches!(character, '\n' | '\t'));
        let plain = cause.split(" (os error").next().unwrap_or(&cause).to_lowercase();
        if text.to_lowercase().contains(&plain) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_however_large_they_are() {
        assert_eq!([number(-3.456, 2), number(1.8e10, 3), number(-0.001, 1)], ["−3.46", "1.80e10", "0.0"]);
        let cases = [
            (256.4, "260"),
            (0.0039, "0.0039"),
            (1.26, "1.3"),
            (97.4, "97"),
            (3.4e7, "3.4e7"),
            (8.1e-7, "8.1e-7"),
            (0.0, "0"),
        ];
        for (value, wanted) in cases {
            assert_eq!(two_digits(value), wanted);
        }
    }

    #[test]
    fn numbers_have_a_typographic_minus_and_zero_has_no_sign() {
        assert_eq!(number(-3.2958, 3), "−3.296");
        assert_eq!(number(-0.0004, 2), "0.00");
        assert_eq!(number(12.0, 0), "12");
        let changes = [0.5, 0.0004, 0.0, -0.0004, -0.5].map(|change| signed(change, 3));
        assert_eq!(changes, ["+0.500", "0.000", "0.000", "0.000", "−0.500"]);
    }

    #[test]
    fn sizes_have_three_digits() {
        let sizes = [900, 175_773, 18_000_000, 12_300_000_000].map(size);
        assert_eq!(sizes, ["900 bytes", "176 kB", "18.0 MB", "12.3 GB"]);
    }

    #[test]
    fn small_differences_are_visible() {
        for (difference, expected) in [(0.7, 3), (-0.05, 4), (0.002, 5), (1e-9, 6), (40.0, 3), (0.0, 3), (f64::NAN, 3)]
        {
            assert_eq!(decimals(difference), expected, "{difference}");
        }
    }

    #[test]
    fn a_sentence_repeats_nothing_and_cannot_control_the_terminal() {
        let error = anyhow::anyhow!("bad \u{1b}[2Jname").context("reading it").context("reading it");
        assert_eq!(sentence(&error), "reading it: bad \\u{1b}[2Jname");
        let error = anyhow::anyhow!("bad\nerror: fake\u{202e}\r\u{2028}");
        assert_eq!(sentence(&error), "bad\\nerror: fake\\u{202e}\\r\\u{2028}");
        let error = anyhow::Error::new("a = ".parse::<toml::Table>().expect_err("no TOML")).context("a.toml");
        assert!(sentence(&error).starts_with("a.toml: TOML parse error at line 1, column 5\n  |\n1 | a = \n"));
    }

    #[test]
    fn what_others_wrote_is_one_line() {
        assert_eq!(escaped("caf\u{e9} \u{1f600}"), "caf\u{e9} \u{1f600}");
        assert_eq!(escaped("a\nb\tc\u{7}\u{9b}\u{2066}"), "a\\nb\\tc\\u{7}\\u{9b}\\u{2066}");
    }

    #[test]
    fn markdown_shows_a_text_as_it_is() {
        for (text, wanted) in [
            ("27 clusters, by k-means", "27 clusters, by k-means"),
            ("a_b *c* `d` <script> |", r"a\_b \*c\* \`d\` \<script\> \|"),
            ("![x](y) & $z$ ~~w~~ @you #1 \\", r"\!\[x\](y) \& \$z\$ \~\~w\~\~ \@you \#1 \\"),
            ("a\n# b", r"a\\n\# b"),
            ("  - item", r"\- item"),
            ("12. item", r"12\. item"),
            ("1.5 and 2)", "1.5 and 2)"),
            ("2)", r"2\)"),
        ] {
            assert_eq!(markdown(text), wanted);
        }
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [["style", "p"], ["cubism", "0.5"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&[true, false], &rows), "  style     p\n  cubism  0.5\n");
        let wide = [["浮世絵", "1"], ["cubism", "2"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&[true, false], &wide), "  浮世絵  1\n  cubism  2\n");
    }

    #[test]
    fn digests_have_64_digits() {
        let digits = "0aF".repeat(21) + "9";
        assert_eq!(sha256_digits(&format!("sha256:{digits}")), Ok(digits.to_lowercase()));
        for wrong in ["", "sha256:", &digits[1..], &digits.replace('9', "g")] {
            assert!(sha256_digits(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn json_keeps_every_text_and_shows_no_control_character() {
        let name = "a\u{1b}[2J\n\u{202e}\u{9b}\u{7f}\u{2028}\\\"é";
        let text = to_json(&serde_json::json!({ "file": name, "list": [1, 2] }));
        assert!(text.lines().count() > 3 && !text.chars().any(|c| c != '\n' && is_control(c)), "{text}");
        let read: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!(read["file"].as_str(), Some(name));
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(
            [counted(0, "epoch"), counted(1, "epoch"), counted(2, "epoch")],
            ["0 epochs", "1 epoch", "2 epochs"]
        );
    }
}
