//! Builds a CLIP-softmax plugin from a list of styles: reads a small TOML file, naming line and column of its errors,
//! and bakes it into a template component that ships inside this program.
//!
//! ```toml
//! title = "Four kinds of light"        # every key but styles is optional
//! name = "light"                       # default: the file's name
//! version = "1.0.0"
//! authors = ["Ada"]
//! license = "CC0-1.0"
//! encoder = "clip"                     # the run's default encoder; or a name such as tiny-art
//! medium = "image"                     # or "text"
//! temperature = 0.01                   # divides the cosines; default: that of the encoder's training
//! template = "a painting in {} light"  # or a list of them: the prompts of each name
//! styles = ["morning", "noon", "evening", "candle"]
//! ```
//!
//! Instead of the list, and without a template, a table has the prompts of each style, whose embeddings are averaged:
//!
//! ```toml
//! [styles]
//! morning = ["a misty morning", "sunrise over a field"]
//! candle = "a face by candlelight"
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use ambiguity_sdk::{EncoderPin, Manifest, Medium};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::artifact::Artifact;
use super::error::Fault;
use super::limits::{Limits, NAME_LENGTH};
use crate::encoders::ALIAS;
use crate::text::{has_control, key_hint};

/// The template component, which classifies by baked prompts: `plugins/clip-softmax`, as `make templates` builds it.
pub const CLIP_SOFTMAX_TEMPLATE: &[u8] = include_bytes!("templates/clip_softmax.wasm");

/// The keys of a styles file.
const KEYS: [&str; 10] =
    ["title", "name", "version", "authors", "license", "encoder", "medium", "temperature", "template", "styles"];

/// The keys whose values are names.
const NAMES: [&str; 4] = ["name", "version", "encoder", "styles"];

/// An error in a styles file, and its place.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct StylesError {
    /// `file:line:column`, or the file alone.
    pub place: String,
    /// The problem, and how to fix it.
    pub problem: String,
}

/// Bakes a manifest of styles and prompts into the CLIP-softmax template. The same manifest produces the same bytes.
pub fn bake_clip_softmax(manifest: &Manifest) -> Result<Vec<u8>, Fault> {
    Artifact::bake(CLIP_SOFTMAX_TEMPLATE, &[(Manifest::ASSET, manifest.to_json())])
}

/// Reads the manifest that a styles file describes; `origin` names the file in errors, `name` is the plugin's name
/// unless the file sets one.
pub fn read_styles(origin: &str, text: &str, name: &str) -> Result<Manifest, StylesError> {
    let file = File { origin, text };
    let parsed = DeTable::parse(text).map_err(|e| match e.span() {
        Some(span) => file.error(span, e.message()),
        None => StylesError { place: origin.to_owned(), problem: e.message().to_owned() },
    })?;
    let table = parsed.get_ref();
    for key in table.keys() {
        file.check_key(key)?;
    }
    let string = |key: &str| table.get(key).map(|value| file.string(key, value)).transpose();
    let templates = table.get("template").map(|value| file.templates(value)).transpose()?;
    let (styles, prompts) = file.styles(table, templates.as_deref())?;
    let title = match string("title")? {
        Some(title) => title,
        None => format!("CLIP softmax over {} styles", styles.len()),
    };
    let medium = match (table.get("medium"), string("medium")?) {
        (_, None) => "image".to_owned(),
        (_, Some(medium)) if ["image", "text"].contains(&medium.as_str()) => medium,
        (value, Some(medium)) => {
            let span = value.map_or(0..0, Spanned::span);
            return Err(file.error(span, format!("`medium` is `{medium}`, it must be `image` or `text`")));
        }
    };
    Ok(Manifest {
        name: string("name")?.unwrap_or_else(|| name.to_owned()),
        version: string("version")?.unwrap_or_else(|| "1.0.0".to_owned()),
        title,
        authors: table.get("authors").map_or(Ok(vec![]), |value| file.strings("authors", value))?,
        license: string("license")?.unwrap_or_else(|| "NOASSERTION".to_owned()),
        media: vec![if medium == "text" { Medium::Text } else { Medium::Image }],
        styles,
        // The prompts are embedded by the weights that a run has under this name, so no digest is pinned.
        encoder: Some(EncoderPin {
            name: string("encoder")?.unwrap_or_else(|| ALIAS.to_owned()),
            digest: String::new(),
        }),
        prompts,
        temperature: table.get("temperature").map(|value| file.temperature(value)).transpose()?,
        normalize: true,
        k: None,
    })
}

/// Returns why no plugin with this name would be loaded, if so.
fn problem_of_name(name: &str) -> Option<String> {
    let length = name.chars().count();
    match length > NAME_LENGTH {
        true => Some(format!("has {length} characters, the limit is {NAME_LENGTH}")),
        false => has_control(name).then(|| "contains a control character".to_owned()),
    }
}

/// A styles file, for the places of its errors.
struct File<'a> {
    origin: &'a str,
    text: &'a str,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl File<'_> {
    fn error(&self, span: Range<usize>, problem: impl Into<String>) -> StylesError {
        let before = &self.text[..span.start.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        StylesError { place: format!("{}:{line}:{column}", self.origin), problem: problem.into() }
    }

    fn check_key(&self, key: &Spanned<impl AsRef<str>>) -> Result<(), StylesError> {
        let name = key.get_ref().as_ref();
        match KEYS.contains(&name) {
            true => Ok(()),
            false => Err(self.error(key.span(), format!("unknown key `{name}`; {}", key_hint(name, &KEYS)))),
        }
    }

    fn wrong(&self, what: &str, value: &Value<'_>, wanted: &str) -> StylesError {
        let found = match value.get_ref().type_str() {
            "integer" | "float" => "a number",
            "array" => "a list",
            "boolean" => "true or false",
            "table" => "a table",
            "string" => "a string",
            _ => "a date",
        };
        self.error(value.span(), format!("{what} is {found}, it must be {wanted}"))
    }

    /// Returns a string that is not empty, without the white space around it.
    fn string(&self, key: &str, value: &Value<'_>) -> Result<String, StylesError> {
        let what = format!("`{key}`");
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                Err(self.error(value.span(), format!("{what} is empty: leave it out, or give it a value")))
            }
            DeValue::String(text) => {
                let text = text.trim().to_owned();
                match problem_of_name(&text).filter(|_| NAMES.contains(&key)) {
                    Some(problem) => Err(self.error(value.span(), format!("{what} {problem}"))),
                    None => Ok(text),
                }
            }
            _ => Err(self.wrong(&what, value, "a string in quotes")),
        }
    }

    fn strings(&self, key: &str, value: &Value<'_>) -> Result<Vec<String>, StylesError> {
        match value.get_ref() {
            DeValue::Array(items) => items.iter().map(|item| self.string(key, item)).collect(),
            DeValue::String(_) => Ok(vec![self.string(key, value)?]),
            _ => Err(self.wrong(&format!("`{key}`"), value, "a string or a list of strings")),
        }
    }

    fn temperature(&self, value: &Value<'_>) -> Result<f32, StylesError> {
        let number = match value.get_ref() {
            DeValue::Float(number) => number.as_str().replace('_', "").parse::<f32>().ok(),
            DeValue::Integer(number) => number.as_str().replace('_', "").parse::<f32>().ok(),
            _ => return Err(self.wrong("`temperature`", value, "a number above 0")),
        };
        match number.filter(|number| number.is_finite() && *number > 0.0) {
            Some(number) => Ok(number),
            None => Err(self.error(value.span(), "`temperature` must be a number above 0")),
        }
    }

    fn templates(&self, value: &Value<'_>) -> Result<Vec<String>, StylesError> {
        let templates = self.strings("template", value)?;
        if templates.is_empty() {
            return Err(self.error(value.span(), "`template` is an empty list: leave it out, or give it a value"));
        }
        match templates.iter().find(|template| template.matches("{}").count() != 1) {
            Some(template) => {
                let problem = format!("`template` must contain {{}} once, where a style's name goes: `{template}`");
                Err(self.error(value.span(), problem))
            }
            None => Ok(templates),
        }
    }

    /// Returns the styles in the file's order, and their prompts; no prompts if the names themselves are the prompts.
    fn styles(
        &self,
        table: &DeTable<'_>,
        templates: Option<&[String]>,
    ) -> Result<(Vec<String>, Vec<Vec<String>>), StylesError> {
        let Some(value) = table.get("styles") else {
            let problem = "it has no `styles`: give a list of names, styles = [\"cubism\", \"baroque\"], or a table \
                           [styles] of names and their prompts";
            return Err(StylesError { place: self.origin.to_owned(), problem: problem.to_owned() });
        };
        let mut entries: Vec<(Range<usize>, String, Vec<String>)> = vec![];
        match value.get_ref() {
            DeValue::Array(names) => {
                for name in names {
                    let text = self.string("styles", name)?;
                    let prompts = templates.unwrap_or_default().iter().map(|template| template.replace("{}", &text));
                    entries.push((name.span(), text.clone(), prompts.collect()));
                }
            }
            DeValue::Table(styles) => {
                if let Some(template) = table.get("template") {
                    let problem =
                        "`template` applies to a list of names; the table [styles] contains the prompts themselves";
                    return Err(self.error(template.span(), problem));
                }
                for (name, prompts) in styles {
                    let text = name.get_ref().trim().to_owned();
                    if text.is_empty() {
                        return Err(self.error(name.span(), "a style's name is empty"));
                    }
                    if let Some(problem) = problem_of_name(&text) {
                        return Err(self.error(name.span(), format!("a style's name {problem}")));
                    }
                    let texts = self.strings(&format!("styles.{text}"), prompts)?;
                    if texts.is_empty() {
                        return Err(self.error(prompts.span(), format!("the style `{text}` has no prompts")));
                    }
                    entries.push((name.span(), text, texts));
                }
            }
            _ => return Err(self.wrong("`styles`", value, "a list of names or a table of names and their prompts")),
        }
        // A parsed table is sorted by its keys; the file's order is the author's.
        entries.sort_by_key(|(span, ..)| span.start);
        self.check_styles(value, &entries)?;
        let (styles, prompts): (Vec<_>, Vec<_>) = entries.into_iter().map(|(_, name, prompts)| (name, prompts)).unzip();
        let named = prompts.iter().all(Vec::is_empty);
        Ok((styles, if named { vec![] } else { prompts }))
    }

    fn check_styles(
        &self,
        value: &Value<'_>,
        entries: &[(Range<usize>, String, Vec<String>)],
    ) -> Result<(), StylesError> {
        let max_styles = Limits::default().styles;
        if entries.len() < 2 || entries.len() > max_styles {
            let found = match entries {
                [] => "no styles".to_owned(),
                [_] => "one style".to_owned(),
                _ => format!("{} styles", entries.len()),
            };
            let wanted = if entries.len() < 2 {
                "ambiguity needs at least two".to_owned()
            } else {
                format!("the limit is {max_styles}")
            };
            return Err(self.error(
                value.span(),
                format!("there {} {found}, {wanted}", if entries.len() == 1 { "is" } else { "are" }),
            ));
        }
        let (mut names, mut sets) = (BTreeMap::new(), BTreeMap::new());
        for (span, name, prompts) in entries {
            if names.insert(name, ()).is_some() {
                return Err(self.error(span.clone(), format!("the style `{name}` appears twice")));
            }
            let mut sorted = prompts.clone();
            sorted.sort();
            match sets.insert(sorted, name) {
                Some(other) if !prompts.is_empty() => {
                    let problem = format!("the styles `{other}` and `{name}` have the same prompts: they must differ");
                    return Err(self.error(span.clone(), problem));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Manifest, String> {
        read_styles("s.toml", text, "s").map_err(|error| error.to_string())
    }

    #[test]
    fn names_alone_are_a_plugin() {
        let manifest = read("styles = ['baroque', 'cubism']").expect("two styles");
        assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("s", "1.0.0"));
        assert_eq!((manifest.styles.len(), manifest.prompts.len(), manifest.temperature), (2, 0, None));
        assert_eq!(manifest.encoder_name().expect("the default one"), "clip");
        assert_eq!(manifest.title, "CLIP softmax over 2 styles");
    }

    #[test]
    fn templates_make_prompts_of_names() {
        let manifest = read("template = ['a {} painting', '{} art']\nstyles = ['b', 'a']").expect("two styles");
        assert_eq!(manifest.prompts, [["a b painting", "b art"], ["a a painting", "a art"]]);
    }

    #[test]
    fn a_table_keeps_its_order_and_every_key_is_read() {
        let text = "title = 'Light'\nname = 'light'\nversion = '2.1.0'\nauthors = ['Ada', 'Grace']\nlicense = 'CC0-1.0'\n\
                    encoder = 'tiny-art'\nmedium = 'text'\ntemperature = 1_0\n[styles]\nnoon = 'at noon'\n\
                    candle = ['by candle', 'by lamp']\n";
        let manifest = read(text).expect("a full file");
        let expected = Manifest {
            name: "light".into(),
            version: "2.1.0".into(),
            title: "Light".into(),
            authors: vec!["Ada".into(), "Grace".into()],
            license: "CC0-1.0".into(),
            media: vec![Medium::Text],
            styles: vec!["noon".into(), "candle".into()],
            encoder: Some(EncoderPin { name: "tiny-art".into(), digest: String::new() }),
            prompts: vec![vec!["at noon".into()], vec!["by candle".into(), "by lamp".into()]],
            temperature: Some(10.0),
            normalize: true,
            k: None,
        };
        assert_eq!(manifest, expected);
    }

    #[test]
    fn mistakes_are_reported_with_their_place() {
        let table = [
            "",
            "styles = ['one']",
            "styles = []",
            "styles = 'one'",
            "styles = 3",
            "styles = ['one', 2]",
            "styles = ['one', ' ']",
            "styles = ['one',\n  'two', 'one']",
            "stiles = ['one', 'two']",
            "licence = 'MIT'\nstyles = ['one', 'two']",
            "sex = 'x'\nstyles = ['one', 'two']",
            "styles = ['one', 'two'",
            "template = 'a painting'\nstyles = ['one', 'two']",
            "template = []\nstyles = ['one', 'two']",
            "temperature = 0\nstyles = ['one', 'two']",
            "temperature = 'hot'\nstyles = ['one', 'two']",
            "title = ''\nstyles = ['one', 'two']",
            "medium = 'audio'\nstyles = ['one', 'two']",
            "[styles]\none = []\ntwo = 'b'",
            "[styles]\none = ['a', 'b']\ntwo = ['b', 'a']",
            "[styles]\none = 1\ntwo = 'b'",
            "[styles]\none = 'a'\none = 'b'",
            "template = 'a {}'\n[styles]\none = 'a'\ntwo = 'b'",
        ];
        let messages: Vec<_> = table.iter().map(|text| read(text).expect_err(text)).collect();
        insta::assert_snapshot!(messages.join("\n"));
    }

    #[test]
    fn baking_twice_produces_the_same_valid_component() {
        let manifest = read("styles = ['baroque', 'cubism']").expect("two styles");
        let baked = bake_clip_softmax(&manifest).expect("the template takes it");
        assert_eq!(baked, bake_clip_softmax(&manifest).expect("the template takes it"));
        wasmparser::Validator::new().validate_all(&baked).expect("it is valid WebAssembly");
        let artifact = Artifact::parse("s.wasm".as_ref(), baked).expect("it is a plugin");
        assert_eq!(artifact.manifest, Some(manifest));
    }
}
