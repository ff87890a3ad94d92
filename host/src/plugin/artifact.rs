//! A plugin's component file, read without running or compiling it: kind, interface version, imports, exports, baked
//! assets. Also bakes assets into a component.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ambiguity_models::files::lfs_pointer;
use ambiguity_models::safetensors::hex;
use ambiguity_sdk::Manifest;
use ndarray::Array2;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use wasm_encoder::{ComponentSection, CustomSection};
use wasmparser::{Encoding, Parser, Payload, Validator};

use super::budget;
use super::error::{Fault, quoted_name};
use super::inspection::{Asset, Inspection};
use super::limits::{Limits, mib};
use crate::text::in_one_line;

/// The custom section that states the least interface version that a plugin needs.
const INTERFACE_SECTION: &str = "ambiguity:interface";

/// The custom sections of the WebAssembly tool conventions for a title, authors (separated by colons, as Cargo does)
/// and a license. In a file with a manifest, the manifest's values are used instead.
const DESCRIPTION_SECTION: &str = "description";
const AUTHORS_SECTION: &str = "authors";
const LICENSE_SECTION: &str = "licenses";

/// The prefix of the names of custom sections with baked assets; the asset's name follows.
const ASSET_SECTION: &str = "ambiguity:asset/";

/// The package of the interface, as it appears in the names of imports and exports.
const PACKAGE: &str = "ambiguity:plugin/";

/// The interfaces of `wit/plugin.wit` that a plugin may import.
const IMPORTABLE: [&str; 6] = ["types", "samples", "encoders", "assets", "config", "log"];

/// The newest interface version that this host supports; it also supports every earlier one of the same 0.x.
pub const INTERFACE: (u64, u64, u64) = (0, 2, 0);

/// A plugin's component file, parsed.
#[derive(Clone, Debug)]
pub struct Artifact {
    bytes: Arc<[u8]>,
    /// sha256 of the file, in hex.
    pub sha256: String,
    /// The least version of ambiguity:plugin that it needs.
    pub interface: String,
    /// Names of what it imports, in order.
    pub imports: Vec<String>,
    /// Names of what it exports, in order.
    pub exports: Vec<String>,
    assets: BTreeMap<String, Range<usize>>,
    /// The texts of the description sections above by section name, each with the nesting depth at which it was found;
    /// the outermost section of a name is kept.
    notes: BTreeMap<&'static str, (usize, String)>,
    /// The baked manifest, if the file has one.
    pub manifest: Option<Manifest>,
}

impl Artifact {
    /// Reads and checks a plugin's file.
    pub fn read(path: &Path, limits: &Limits) -> Result<Self, Fault> {
        let io = |source| Fault::Io { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(io)?.len() as usize;
        check_size("its file", size, limits.file_mib)?;
        Self::parse(path, std::fs::read(path).map_err(io)?)
    }

    /// Parses and checks a plugin's bytes; `path` is only used in messages.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self, Fault> {
        let damaged = |detail: String| Fault::Damaged { path: path.to_owned(), detail };
        if let Some(found) = other_kind(&bytes) {
            return Err(Fault::NotAComponent { path: path.to_owned(), found: found.to_owned() });
        }
        let mut artifact = Self {
            sha256: hex(&Sha256::digest(&bytes)),
            bytes: bytes.into(),
            interface: String::new(),
            imports: vec![],
            exports: vec![],
            assets: BTreeMap::new(),
            notes: BTreeMap::new(),
            manifest: None,
        };
        let bytes = Arc::clone(&artifact.bytes);
        // Components and modules nest; only the outermost one's imports, exports and assets are the plugin's.
        let mut depth = 0;
        let mut section = None;
        for payload in Parser::new(0).parse_all(&bytes) {
            let payload =
                payload.map_err(|e| damaged(format!("{} at byte {} of {}", e.message(), e.offset(), bytes.len())))?;
            match payload {
                Payload::Version { encoding: Encoding::Module, .. } if depth == 0 => {
                    let found = "it is a core module; link it with wasm-component-ld (a plain `cargo build` with the \
                                 settings of `host plugin new` does), or wrap it with `wasm-tools component new`";
                    return Err(Fault::NotAComponent { path: path.to_owned(), found: found.to_owned() });
                }
                Payload::Version { .. } => depth += 1,
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(imports) if depth == 1 => {
                    for import in imports {
                        artifact.imports.push(import.map_err(|e| damaged(e.to_string()))?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(exports) if depth == 1 => {
                    for export in exports {
                        artifact.exports.push(export.map_err(|e| damaged(e.to_string()))?.name.name.to_owned());
                    }
                }
                Payload::CustomSection(custom) if custom.name() == INTERFACE_SECTION => {
                    section = Some(String::from_utf8_lossy(custom.data()).into_owned());
                }
                Payload::CustomSection(custom) if let Some(name) = note(custom.name()) => {
                    let text = String::from_utf8_lossy(custom.data()).into_owned();
                    let nearer = artifact.notes.get(name).is_none_or(|(found, _)| depth < *found);
                    if nearer && !text.is_empty() {
                        artifact.notes.insert(name, (depth, text));
                    }
                }
                Payload::CustomSection(custom) if depth == 1 && custom.name().starts_with(ASSET_SECTION) => {
                    let name = custom.name()[ASSET_SECTION.len()..].to_owned();
                    let start = custom.data_offset();
                    let data = start..start + custom.data().len();
                    if artifact.assets.insert(name.clone(), data).is_some() {
                        return Err(damaged(format!("the asset `{name}` appears twice")));
                    }
                }
                _ => {}
            }
        }
        artifact.check_interface(section)?;
        artifact.check_imports()?;
        let kinds = ["classifier", "scorer"].map(|kind| artifact.exports_interface(kind));
        if kinds == [true, true] {
            let message = "it exports both `classifier` and `scorer`, but a plugin is one of them: build two plugins";
            return Err(Fault::Unusable(message.to_owned()));
        }
        if kinds == [false, false] || !artifact.exports_interface("description") {
            let exports = artifact.exports.iter().map(|export| format!("`{export}`")).collect::<Vec<_>>().join(", ");
            return Err(Fault::WrongWorld { exports: if exports.is_empty() { "nothing".to_owned() } else { exports } });
        }
        budget::check(&bytes)?;
        if let Some(json) = artifact.asset(Manifest::ASSET) {
            let manifest = Manifest::parse(json).map_err(|e| damaged(e.to_string()))?;
            // A number in JSON may be too large for an f32.
            if manifest.temperature.is_some_and(|temperature| !temperature.is_finite()) {
                return Err(damaged(format!("{}: the temperature is not finite", Manifest::ASSET)));
            }
            artifact.manifest = Some(manifest);
        }
        Ok(artifact)
    }

    /// Returns the bytes of the whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the names and sizes in bytes of the baked assets, sorted by name.
    pub fn assets(&self) -> impl Iterator<Item = (&str, usize)> {
        self.assets.iter().map(|(name, range)| (name.as_str(), range.len()))
    }

    /// Returns the bytes of a baked asset, if it exists.
    pub fn asset(&self, name: &str) -> Option<&[u8]> {
        self.assets.get(name).map(|range| &self.bytes[range.clone()])
    }

    /// Returns the matrix in a baked asset that is a safetensors file with one f32 tensor of one or two dimensions.
    pub fn tensor(&self, name: &str) -> Result<Array2<f32>, String> {
        let bytes = self.asset(name).ok_or_else(|| self.no_asset(name))?;
        decode_tensor(bytes).map_err(|message| format!("asset `{name}` is not a matrix: {message}"))
    }

    /// Returns the message for a missing asset.
    pub fn no_asset(&self, name: &str) -> String {
        let names: Vec<&str> = self.assets.keys().map(String::as_str).collect();
        let found = if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
        format!(
            "no asset `{name}` is baked into this file, {found}; a template needs `host plugin fit` or `host plugin \
             build`, and `wasm-tools strip` drops assets"
        )
    }

    /// Returns the contents of the file, for display.
    pub fn inspect(&self) -> Inspection {
        let manifest = self.manifest.clone().unwrap_or_default();
        let asset = |(name, bytes): (&str, usize)| {
            let shape = self.tensor(name).ok().map(|tensor| tensor.dim());
            Asset { name: name.to_owned(), bytes, shape }
        };
        let (authors, license) = match &self.manifest {
            // A template's own authors are not the authors of a plugin that was baked from it.
            Some(manifest) => (manifest.authors.clone(), manifest.license.clone()),
            None => {
                let authors = self.note(AUTHORS_SECTION).split(':').filter(|author| !author.trim().is_empty());
                (authors.map(str::to_owned).collect(), self.note(LICENSE_SECTION).to_owned())
            }
        };
        Inspection {
            authors: authors.iter().map(|author| in_one_line(author)).collect(),
            license: in_one_line(&license),
            encoder: manifest.encoder,
            prompts: manifest.prompts,
            temperature: manifest.temperature,
            differentiable: self.is_differentiable(),
            pixel_differentiable: self.is_pixel_differentiable(),
            interface: format!("ambiguity:plugin {}", self.interface),
            takes: String::new(),
            bytes: self.bytes.len(),
            assets: self.assets().map(asset).collect(),
            imports: self.imports.clone(),
            needs: self.imports.iter().filter_map(|import| need(import)).map(str::to_owned).collect(),
            exports: self.exports.clone(),
        }
    }

    /// Returns the one-line title, if the file has one.
    pub fn title(&self) -> Option<String> {
        let baked = self.manifest.as_ref().map(|manifest| manifest.title.as_str());
        let title = in_one_line(baked.unwrap_or_else(|| self.note(DESCRIPTION_SECTION)));
        (!title.is_empty()).then_some(title)
    }

    /// Returns a section's text; empty if the section is missing.
    fn note(&self, section: &str) -> &str {
        self.notes.get(section).map_or("", |(_, text)| text)
    }

    /// Returns whether the plugin is a scorer.
    pub fn is_scorer(&self) -> bool {
        self.exports_interface("scorer")
    }

    /// Returns whether the plugin exports the gradient of its output with respect to the pixels.
    pub fn is_pixel_differentiable(&self) -> bool {
        self.exports_interface("pixel-gradient")
    }

    /// Returns whether the plugin exports the gradient of its output with respect to the embedding.
    pub fn is_differentiable(&self) -> bool {
        self.exports_interface("gradient")
    }

    /// Returns the component with `assets` baked in; existing assets of the same names are replaced. The same assets in
    /// the same order produce the same bytes.
    pub fn bake(component: &[u8], assets: &[(&str, Vec<u8>)]) -> Result<Vec<u8>, Fault> {
        let invalid = |detail: String| Fault::Damaged { path: "the component to bake into".into(), detail };
        let mut baked = component.get(..8).ok_or_else(|| invalid("it has no header".to_owned()))?.to_vec();
        let mut depth = 0;
        let mut start = 8;
        for payload in Parser::new(0).parse_all(component) {
            let payload = payload.map_err(|e| invalid(e.to_string()))?;
            if let Payload::Version { .. } = payload {
                depth += 1;
            }
            let dropped = matches!(&payload, Payload::CustomSection(custom) if depth == 1
                && assets.iter().any(|(name, _)| custom.name().strip_prefix(ASSET_SECTION) == Some(name)));
            // A nested component or module is a section of the outermost one, and ends where its own end is.
            let end = match &payload {
                Payload::End(_) => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                    None
                }
                Payload::ModuleSection { unchecked_range, .. } | Payload::ComponentSection { unchecked_range, .. } => {
                    (depth == 1).then_some(unchecked_range.end)
                }
                other if depth == 1 => other.as_section().map(|(_, range)| range.end),
                _ => None,
            };
            if let Some(end) = end {
                if !dropped {
                    baked.extend_from_slice(&component[start..end]);
                }
                start = end;
            }
        }
        for (name, data) in assets {
            let name = format!("{ASSET_SECTION}{name}");
            CustomSection { name: name.into(), data: data.into() }.append_to_component(&mut baked);
        }
        Validator::new().validate_all(&baked).map_err(|e| invalid(e.to_string()))?;
        Ok(baked)
    }

    fn exports_interface(&self, name: &str) -> bool {
        let wanted = format!("{PACKAGE}{name}@");
        self.exports.iter().any(|export| export.starts_with(&wanted))
    }

    /// Checks the least interface version that the plugin needs: that of the custom section, or, for a plugin without the
    /// section (in another language), that in the names of its exports or imports. Of those the last number is left out: it
    /// is that of the WIT file which the plugin was built with, whatever it uses of it. Whether the host has what the plugin
    /// imports, linking finds out.
    fn check_interface(&mut self, section: Option<String>) -> Result<(), Fault> {
        let named = |names: &[String]| {
            let version = names.iter().find_map(|name| Some(name.strip_prefix(PACKAGE)?.split_once('@')?.1))?;
            let least = parse_version(version).map(|(major, minor, _)| format!("{major}.{minor}.0"));
            Some(least.unwrap_or_else(|| version.to_owned()))
        };
        let Some(version) = section.or_else(|| named(&self.exports)).or_else(|| named(&self.imports)) else {
            // Without any trace of the interface, the message about its exports is more helpful.
            return Ok(());
        };
        let (major, minor, patch) = INTERFACE;
        let remedy = match parse_version(&version) {
            Some((a, b, c)) if (a, b) == (major, minor) && c <= patch => {
                self.interface = version;
                return Ok(());
            }
            Some(found) if found > INTERFACE => "update the host, or build the plugin with an older SDK",
            Some(_) => "build the plugin again with a newer SDK, or run it with an older host",
            None => "its custom section `ambiguity:interface` is not a version: build it with ambiguity-sdk",
        };
        Err(Fault::Interface { plugin: version, host: supported_versions(), remedy })
    }

    fn check_imports(&self) -> Result<(), Fault> {
        for import in &self.imports {
            let ours = import.strip_prefix(PACKAGE).and_then(|rest| rest.split_once('@'));
            if ours.is_some_and(|(interface, _)| IMPORTABLE.contains(&interface)) {
                continue;
            }
            if import.starts_with(PACKAGE) {
                return Err(Fault::Newer { import: format!("`{}`", quoted_name(import)), host: supported_versions() });
            }
            let remedy = if import.starts_with("wasi:") {
                "build it for wasm32-unknown-unknown, not for a wasi target"
            } else {
                "build it for a world of wit/plugin.wit, such as `classifier-plugin`"
            };
            return Err(Fault::Import { import: import.clone(), remedy });
        }
        Ok(())
    }
}

/// Returns in words what an import of [`IMPORTABLE`] is for; none of the types, which are for the others.
fn need(import: &str) -> Option<&'static str> {
    let (interface, _) = import.strip_prefix(PACKAGE)?.split_once('@')?;
    match interface {
        "samples" => Some("the samples of a batch, with their prompts, metadata and embeddings"),
        "encoders" => Some("the host's encoders, for texts of its own"),
        "assets" => Some("the data in its file"),
        "config" => Some("the options that a run sets"),
        "log" => Some("the host's log, for messages"),
        _ => None,
    }
}

/// Returns the section's name, if it is one of the description sections.
fn note(section: &str) -> Option<&'static str> {
    [DESCRIPTION_SECTION, AUTHORS_SECTION, LICENSE_SECTION].into_iter().find(|name| *name == section)
}

/// Returns the interface versions that this host supports, as messages show them.
pub fn supported_versions() -> String {
    let (major, minor, patch) = INTERFACE;
    if patch == 0 { format!("{major}.{minor}.0") } else { format!("{major}.{minor}.0 to {major}.{minor}.{patch}") }
}

/// Returns the bytes of an asset that contains a matrix: a safetensors file with one tensor.
pub fn encode_tensor(name: &str, tensor: &Array2<f32>) -> Vec<u8> {
    let data: Vec<u8> = tensor.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![tensor.nrows(), tensor.ncols()], &data)
        .expect("the bytes are those of the shape");
    safetensors::serialize([(name, view)], None).expect("one valid tensor serializes")
}

fn decode_tensor(bytes: &[u8]) -> Result<Array2<f32>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| format!("not a safetensors file ({e})"))?;
    let tensors = file.tensors();
    let [(_, tensor)] = &tensors[..] else {
        return Err(format!("it contains {} tensors, not one", tensors.len()));
    };
    if tensor.dtype() != Dtype::F32 {
        return Err(format!("its type is {:?}, not F32", tensor.dtype()));
    }
    let shape = match *tensor.shape() {
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        _ => return Err(format!("its shape is {:?}, not one or two dimensions", tensor.shape())),
    };
    let data = tensor.data().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    Array2::from_shape_vec(shape, data).map_err(|e| e.to_string())
}

pub(super) fn check_size(what: &str, found: usize, limit_mib: usize) -> Result<(), Fault> {
    let limit = mib(limit_mib);
    if found > limit {
        return Err(Fault::TooLarge { what: what.to_owned(), found, limit });
    }
    Ok(())
}

/// Returns what the bytes are, if they are not WebAssembly.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [] => Some("the file is empty"),
        [b'\0', b'a', b's', b'm', ..] => None,
        _ if b"\0asm".starts_with(bytes) => Some("the file is truncated within its first four bytes; get it again"),
        [b'(', ..] => Some("it is WebAssembly text; turn it into a binary with `wasm-tools parse`"),
        [b'<', ..] => Some("it is a web page; download the file itself"),
        _ => lfs_pointer(bytes).or(Some("it does not start with WebAssembly's magic bytes")),
    }
}

fn parse_version(version: &str) -> Option<(u64, u64, u64)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let version = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(version)
}
