//! PNG files with texts in them: where an image is from, as other image generators write it too.

use std::io::Cursor;

use image::RgbImage;
use png::{BitDepth, ColorType, Decoder, Encoder, EncodingError};

/// The entry that AUTOMATIC1111's tools and their readers know: prompt and settings in one text.
pub const PARAMETERS: &str = "parameters";

/// The entry for the program, one of the PNG standard's own.
pub const SOFTWARE: &str = "Software";

/// An image with texts by name, which its file is written with.
#[derive(Clone, Debug, PartialEq)]
pub struct Sheet {
    /// The image.
    pub image: RgbImage,
    /// The texts by name.
    pub texts: Vec<(String, String)>,
}

impl From<RgbImage> for Sheet {
    fn from(image: RgbImage) -> Self {
        Self { image, texts: vec![] }
    }
}

/// Returns the name and version of this program, for [`SOFTWARE`].
pub fn software() -> (String, String) {
    (SOFTWARE.to_owned(), format!("host {}", env!("CARGO_PKG_VERSION")))
}

/// Returns the settings of an image in the form in which AUTOMATIC1111's tools write them: the prompt, the negative prompt,
/// and a line of names and values.
pub fn parameters(prompt: &str, negative: &str, settings: &[(&str, String)]) -> (String, String) {
    let negative = if negative.is_empty() { String::new() } else { format!("Negative prompt: {negative}\n") };
    let settings: Vec<String> = settings.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    (PARAMETERS.to_owned(), format!("{prompt}\n{negative}{}", settings.join(", ")))
}

/// Encodes an image as PNG with texts by name, as tEXt chunks where they are ASCII, else as iTXt. The same image and texts
/// produce the same bytes.
pub fn encode(image: &RgbImage, texts: &[(String, String)]) -> Result<Vec<u8>, EncodingError> {
    let mut bytes = vec![];
    let mut encoder = Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    for (name, text) in texts {
        // A text ends at its first NUL.
        let (name, text) = (name.clone(), text.replace('\0', " "));
        match text.is_ascii() {
            true => encoder.add_text_chunk(name, text)?,
            false => encoder.add_itxt_chunk(name, text)?,
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// Returns the width and height of a PNG.
pub fn dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    Decoder::new(Cursor::new(bytes)).read_info().ok().map(|reader| reader.info().size())
}

/// Returns the text of that name in a PNG, if it has one before its pixels; a compressed one of at most 2 MiB.
pub fn text(bytes: &[u8], name: &str) -> Option<String> {
    let reader = Decoder::new(Cursor::new(bytes)).read_info().ok()?;
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == name);
    let text = plain.map(|chunk| chunk.text.clone());
    let latin = || {
        let mut chunk = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == name)?.clone();
        chunk.decompress_text().ok()?;
        chunk.get_text().ok()
    };
    let utf8 = || {
        let mut chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == name)?.clone();
        chunk.decompress_text().ok()?;
        chunk.get_text().ok()
    };
    text.or_else(latin).or_else(utf8)
}

/// Returns the prompt in a PNG: the text `prompt`, unless it is a graph in JSON, else the beginning of [`PARAMETERS`].
pub fn prompt(bytes: &[u8]) -> Option<String> {
    let is_graph = |text: &String| text.trim_start().starts_with(['{', '[']);
    let plain = text(bytes, "prompt").filter(|text| !is_graph(text));
    plain.or_else(|| {
        let parameters = text(bytes, PARAMETERS)?;
        let ends = ["\nNegative prompt:", "\nSteps:"];
        let end = ends.iter().filter_map(|end| parameters.find(end)).min().unwrap_or(parameters.len());
        Some(parameters[..end].trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_read_from_either_text() {
        let image = RgbImage::new(1, 1);
        let found = |texts: &[(&str, &str)]| {
            let texts: Vec<_> = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
            prompt(&encode(&image, &texts).expect("it encodes"))
        };
        assert_eq!(found(&[("prompt", "a cat")]).as_deref(), Some("a cat"));
        let (name, settings) = parameters("a cat,\nsleeping", "dogs", &[("Steps", "4".to_owned())]);
        assert_eq!(found(&[(&name, &settings)]).as_deref(), Some("a cat,\nsleeping"));
        let (_, settings) = parameters("a cat", "", &[("Steps", "4".to_owned())]);
        assert_eq!(found(&[("prompt", "{\"3\": {}}"), (&name, &settings)]).as_deref(), Some("a cat"));
        assert_eq!(found(&[("prompt", "[1]")]), None);
    }

    #[test]
    fn compressed_texts_are_read_up_to_a_limit() {
        let encoded = |text: String| {
            let mut bytes = vec![];
            let mut encoder = Encoder::new(&mut bytes, 1, 1);
            encoder.add_ztxt_chunk("latin".to_owned(), text.clone()).expect("a text");
            encoder.set_color(ColorType::Grayscale);
            let mut writer = encoder.write_header().expect("a header");
            let mut chunk = png::text_metadata::ITXtChunk::new("utf8", text);
            chunk.compressed = true;
            writer.write_text_chunk(&chunk).expect("a text");
            writer.write_image_data(&[0]).expect("a pixel");
            writer.finish().expect("it ends");
            bytes
        };
        let bytes = encoded("a cat".to_owned());
        assert_eq!(
            ["latin", "utf8"].map(|name| text(&bytes, name)),
            [Some("a cat".to_owned()), Some("a cat".to_owned())]
        );
        let bytes = encoded("a".repeat(50 << 20));
        assert!(bytes.len() < 1 << 20);
        assert_eq!(["latin", "utf8"].map(|name| text(&bytes, name)), [None, None]);
    }

    #[test]
    fn texts_are_kept_in_any_script() {
        let image = RgbImage::from_fn(9, 5, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let texts = [
            ("prompt", "a cat\n\"quoted\""),
            ("negative_prompt", "\u{6c34}\u{58a8} caf\u{e9} \u{1f30a}"),
            ("cut", "a\0b"),
        ];
        let texts = texts.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let bytes = encode(&image, &texts).expect("it encodes");
        for (name, wanted) in &texts[..2] {
            assert_eq!(text(&bytes, name).as_ref(), Some(wanted));
        }
        assert_eq!((text(&bytes, "cut").as_deref(), text(&bytes, "other")), (Some("a b"), None));
        assert_eq!(image::load_from_memory(&bytes).expect("a PNG").into_rgb8(), image);
        assert_eq!(encode(&image, &texts).expect("it encodes"), bytes);
        assert_eq!(text(b"no image", "prompt"), None);
    }
}
