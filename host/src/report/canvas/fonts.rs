//! Fonts: the two that are compiled in and, for characters that they lack, those of the system.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use ab_glyph::{Font, FontArc, FontRef, FontVec};
use fontdb::{Database, FaceInfo, ID, Style};

/// The font weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Running text.
    Regular,
    /// Headings and values.
    Bold,
}

static REGULAR: LazyLock<FontArc> =
    LazyLock::new(|| compiled_in(include_bytes!("../../../assets/DejaVuSans-subset.ttf")));
static BOLD: LazyLock<FontArc> =
    LazyLock::new(|| compiled_in(include_bytes!("../../../assets/DejaVuSans-Bold-subset.ttf")));
/// The system's fonts, which are searched when a character is first missing.
static SYSTEM: LazyLock<Mutex<System>> = LazyLock::new(|| Mutex::new(System::new()));

fn compiled_in(bytes: &'static [u8]) -> FontArc {
    FontRef::try_from_slice(bytes).expect("the font is compiled in").into()
}

/// Returns the compiled-in font.
pub(super) fn of_weight(weight: Weight) -> &'static FontArc {
    match weight {
        Weight::Regular => &REGULAR,
        Weight::Bold => &BOLD,
    }
}

/// Returns a font that has the character: the compiled-in one, else one of the system's; none if there is none.
pub(super) fn of_character(character: char, weight: Weight) -> Option<FontArc> {
    let own = of_weight(weight);
    if own.glyph_id(character).0 != 0 {
        return Some(own.clone());
    }
    SYSTEM.lock().unwrap_or_else(PoisonError::into_inner).find(character)
}

/// The fonts of the system, and what was found in them.
struct System {
    fonts: Database,
    /// The upright faces, the closest to regular weight first.
    faces: Vec<ID>,
    loaded: HashMap<ID, Option<FontArc>>,
    found: HashMap<char, Option<ID>>,
    is_warned: bool,
}

impl System {
    fn new() -> Self {
        let mut fonts = Database::new();
        fonts.load_system_fonts();
        let order = |face: &FaceInfo| {
            (face.style != Style::Normal, face.weight.0.abs_diff(400), face.monospaced, face.post_script_name.clone())
        };
        let mut faces: Vec<&FaceInfo> = fonts.faces().collect();
        faces.sort_by_key(|face| order(face));
        let faces = faces.iter().map(|face| face.id).collect();
        Self { fonts, faces, loaded: HashMap::new(), found: HashMap::new(), is_warned: false }
    }

    fn find(&mut self, character: char) -> Option<FontArc> {
        let id = match self.found.get(&character) {
            Some(id) => *id,
            None => {
                let faces = self.faces.clone();
                let id = faces.into_iter().find(|id| self.load(*id).is_some_and(|font| has_outline(&font, character)));
                self.found.insert(character, id);
                id
            }
        };
        if id.is_none() && !self.is_warned {
            self.is_warned = true;
            tracing::warn!(
                "no font of this system has `{character}`: images show such characters as U+{:04X}; install a font that \
                 has them (Debian: fonts-noto-cjk, fonts-noto-core, fonts-symbola)",
                u32::from(character)
            );
        }
        self.load(id?)
    }

    fn load(&mut self, id: ID) -> Option<FontArc> {
        let fonts = &self.fonts;
        let load = || {
            let (bytes, index) = fonts.with_face_data(id, |bytes, index| (bytes.to_vec(), index))?;
            FontVec::try_from_vec_and_index(bytes, index).ok().map(FontArc::from)
        };
        self.loaded.entry(id).or_insert_with(load).clone()
    }
}

/// Whether a font can draw a character; fonts of colored emoji have bitmaps only.
fn has_outline(font: &FontArc, character: char) -> bool {
    let id = font.glyph_id(character);
    id.0 != 0 && font.outline(id).is_some()
}
