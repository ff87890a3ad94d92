//! What the pages have in common: their look, and the escaping of what others wrote.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::{AutoEscape, Environment, Value, escape_formatter};
use sha2::{Digest as _, Sha256};

use crate::text::{escaped_lines, markdown};

/// The name of the escaping of Markdown.
const MARKDOWN: &str = "markdown";

/// Returns an environment for templates, in which `style` is the pages' style sheet. In a template whose name ends in `.html` or
/// `.md`, every text is escaped unless it is marked as safe.
pub(crate) fn templates() -> Environment<'static> {
    let mut templates = Environment::new();
    templates.set_auto_escape_callback(|name| match name.rsplit('.').next() {
        Some("html") => AutoEscape::Html,
        Some("md") => AutoEscape::Custom(MARKDOWN),
        _ => AutoEscape::None,
    });
    // What others wrote must not change the order in which the page is read.
    templates.set_formatter(|out, state, value| match (state.auto_escape(), value.as_str()) {
        _ if value.is_safe() => escape_formatter(out, state, value),
        (AutoEscape::Custom(MARKDOWN), _) => Ok(out.write_str(&markdown(&value.to_string()))?),
        (_, Some(text)) => escape_formatter(out, state, &escaped_lines(text).into()),
        (_, None) => escape_formatter(out, state, value),
    });
    templates.add_global("style", Value::from_safe_string(include_str!("style.css").to_owned()));
    templates
}

/// Returns the source of a page's only script as the page's content security policy names it: no other script runs, whatever
/// the page contains.
pub(super) fn script_source(script: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(script)))
}

/// Returns a JPEG file as the address of an image that lies in the page itself.
pub(super) fn jpeg_uri(jpeg: &[u8]) -> String {
    format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg))
}

/// Returns a PNG file as the address of an image that lies in the page itself.
pub(crate) fn data_uri(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}
