//! Conversions between the interface's generated bindings and this crate's own types, and the export.

/// The bindings that `wit-bindgen` generates from `wit/plugin.wit`, in one world for each exported interface, of which a
/// plugin exports some.
#[doc(hidden)]
#[allow(missing_docs, unused_qualifications, clippy::all)] // Generated code: its lints are not under our control.
pub mod bindings {
    pub mod plugin {
        wit_bindgen::generate!({
            path: "wit",
            inline: "
                package ambiguity:sdk;
                world plugin {
                    include ambiguity:plugin/imports@0.2.0;
                    export ambiguity:plugin/description@0.2.0;
                }
            ",
            pub_export_macro: true,
            export_macro_name: "export_plugin",
            default_bindings_module: "ambiguity_sdk::bindings::plugin",
            generate_all,
        });
    }

    pub mod classifier {
        wit_bindgen::generate!({
            path: "wit",
            inline: "
                package ambiguity:sdk;
                world classifier-export {
                    import ambiguity:plugin/samples@0.2.0;
                    export ambiguity:plugin/classifier@0.2.0;
                }
            ",
            pub_export_macro: true,
            export_macro_name: "export_classifier",
            default_bindings_module: "ambiguity_sdk::bindings::classifier",
            generate_all,
            with: {
                "ambiguity:plugin/types@0.2.0": super::plugin::ambiguity::plugin::types,
                "ambiguity:plugin/samples@0.2.0": super::plugin::ambiguity::plugin::samples,
            },
        });
    }

    pub mod scorer {
        wit_bindgen::generate!({
            path: "wit",
            inline: "
                package ambiguity:sdk;
                world scorer-export {
                    import ambiguity:plugin/samples@0.2.0;
                    export ambiguity:plugin/scorer@0.2.0;
                }
            ",
            pub_export_macro: true,
            export_macro_name: "export_scorer",
            default_bindings_module: "ambiguity_sdk::bindings::scorer",
            generate_all,
            with: {
                "ambiguity:plugin/types@0.2.0": super::plugin::ambiguity::plugin::types,
                "ambiguity:plugin/samples@0.2.0": super::plugin::ambiguity::plugin::samples,
            },
        });
    }

    pub mod gradient {
        wit_bindgen::generate!({
            path: "wit",
            inline: "
                package ambiguity:sdk;
                world gradient-export {
                    import ambiguity:plugin/samples@0.2.0;
                    export ambiguity:plugin/gradient@0.2.0;
                }
            ",
            pub_export_macro: true,
            export_macro_name: "export_gradient",
            default_bindings_module: "ambiguity_sdk::bindings::gradient",
            generate_all,
            with: {
                "ambiguity:plugin/types@0.2.0": super::plugin::ambiguity::plugin::types,
                "ambiguity:plugin/samples@0.2.0": super::plugin::ambiguity::plugin::samples,
            },
        });
    }

    pub mod pixel_gradient {
        wit_bindgen::generate!({
            path: "wit",
            inline: "
                package ambiguity:sdk;
                world pixel-gradient-export {
                    import ambiguity:plugin/samples@0.2.0;
                    export ambiguity:plugin/pixel-gradient@0.2.0;
                }
            ",
            pub_export_macro: true,
            export_macro_name: "export_pixel_gradient",
            default_bindings_module: "ambiguity_sdk::bindings::pixel_gradient",
            generate_all,
            with: {
                "ambiguity:plugin/types@0.2.0": super::plugin::ambiguity::plugin::types,
                "ambiguity:plugin/samples@0.2.0": super::plugin::ambiguity::plugin::samples,
            },
        });
    }
}

/// Exports a plugin with the kinds that it implements: `export!(MyPlugin: Classifier);`, or
/// `export!(MyPlugin: Classifier, Gradient);`. The code does not compile if a kind is implemented and not named here, or
/// if there is not exactly one of [`Classifier`](crate::Classifier) and [`Scorer`](crate::Scorer). Beyond that the macro
/// does nothing in a native build.
///
/// The `description`, `authors` and `license` of the crate's Cargo.toml are written into the custom sections of the
/// WebAssembly tool conventions (`description`, `authors`, `licenses`): `host plugin inspect` shows them, and so does
/// `wasm-tools metadata show`.
#[macro_export]
macro_rules! export {
    ($plugin:ty: $($kind:ident),+ $(,)?) => {
        const _: () = $crate::check_kinds(
            &[$(stringify!($kind)),+],
            [
                $crate::implements!($plugin, Classifier),
                $crate::implements!($plugin, Scorer),
                $crate::implements!($plugin, Gradient),
                $crate::implements!($plugin, PixelGradient),
            ],
        );
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::Glue<$plugin>;
            $crate::bindings::plugin::export_plugin!(Exported with_types_in $crate::bindings::plugin);
            $crate::sections!();
        };
        $($crate::export_kind!($plugin, $kind);)+
    };
    ($($other:tt)*) => {
        compile_error!("write a type and its kinds: `export!(MyPlugin: Classifier)`, or `export!(MyPlugin: Scorer, Gradient)`");
    };
}

/// Exports one kind.
#[doc(hidden)]
#[macro_export]
macro_rules! export_kind {
    ($plugin:ty, Classifier) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::Glue<$plugin>;
            $crate::bindings::classifier::export_classifier!(Exported with_types_in $crate::bindings::classifier);
        };
    };
    ($plugin:ty, Scorer) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::Glue<$plugin>;
            $crate::bindings::scorer::export_scorer!(Exported with_types_in $crate::bindings::scorer);
        };
    };
    ($plugin:ty, Gradient) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::Glue<$plugin>;
            $crate::bindings::gradient::export_gradient!(Exported with_types_in $crate::bindings::gradient);
        };
    };
    ($plugin:ty, PixelGradient) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::Glue<$plugin>;
            $crate::bindings::pixel_gradient::export_pixel_gradient!(Exported with_types_in $crate::bindings::pixel_gradient);
        };
    };
    ($plugin:ty, $other:ident) => {
        compile_error!(concat!("a plugin has the kinds Classifier, Scorer, Gradient and PixelGradient, not ", stringify!($other)));
    };
}

/// Whether a type implements a trait of this crate: an associated constant of the type itself is found before that of a
/// trait for all types, but it exists only where its bound holds.
#[doc(hidden)]
#[macro_export]
macro_rules! implements {
    ($type:ty, $trait:ident) => {{
        trait No {
            const IT_DOES: bool = false;
        }
        impl<T: ?Sized> No for T {}
        struct Type<T: ?Sized>(::core::marker::PhantomData<T>);
        #[allow(dead_code)]
        impl<T: ?Sized + $crate::$trait> Type<T> {
            const IT_DOES: bool = true;
        }
        <Type<$type>>::IT_DOES
    }};
}

/// The kinds of plugins, and what is wrong if one of them is implemented and not exported, or the other way around.
const KINDS: [(&str, &str, &str); 4] = [
    (
        "Classifier",
        "the plugin implements Classifier, which export! does not name: write `export!(MyPlugin: Classifier)`",
        "export! names Classifier, which the plugin does not implement: write `impl Classifier for MyPlugin`",
    ),
    (
        "Scorer",
        "the plugin implements Scorer, which export! does not name: write `export!(MyPlugin: Scorer)`",
        "export! names Scorer, which the plugin does not implement: write `impl Scorer for MyPlugin`",
    ),
    (
        "Gradient",
        "the plugin implements Gradient, which export! does not name: write `, Gradient` after its other kinds there",
        "export! names Gradient, which the plugin does not implement: write `impl Gradient for MyPlugin`",
    ),
    (
        "PixelGradient",
        "the plugin implements PixelGradient, which export! does not name: write `, PixelGradient` after its other kinds there",
        "export! names PixelGradient, which the plugin does not implement: write `impl PixelGradient for MyPlugin`",
    ),
];

/// Panics, at compile time, unless exactly the kinds that a plugin implements are exported, and they make a plugin.
#[doc(hidden)]
pub const fn check_kinds(exported: &[&str], implemented: [bool; 4]) {
    if implemented[0] && implemented[1] {
        panic!("a plugin is a Classifier or a Scorer, not both: write two crates");
    }
    let mut i = 0;
    while i < KINDS.len() {
        let (name, not_exported, not_implemented) = KINDS[i];
        let mut is_exported = false;
        let mut j = 0;
        while j < exported.len() {
            is_exported |= is_same(exported[j].as_bytes(), name.as_bytes());
            j += 1;
        }
        if implemented[i] && !is_exported {
            panic!("{}", not_exported);
        }
        if !implemented[i] && is_exported {
            panic!("{}", not_implemented);
        }
        i += 1;
    }
    if !implemented[0] && !implemented[1] {
        panic!("a plugin is a Classifier or a Scorer: implement one of the two traits, and name it in export!");
    }
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The custom sections that describe a plugin without running it.
#[doc(hidden)]
#[macro_export]
macro_rules! sections {
    () => {
        $crate::text_section!("ambiguity:interface", $crate::INTERFACE_VERSION);
        $crate::text_section!("description", $crate::said!("CARGO_PKG_DESCRIPTION"));
        $crate::text_section!("authors", $crate::said!("CARGO_PKG_AUTHORS"));
        $crate::text_section!("licenses", $crate::said!("CARGO_PKG_LICENSE"));
    };
}

/// A field of the crate's Cargo.toml; empty in a build without Cargo.
#[doc(hidden)]
#[macro_export]
macro_rules! said {
    ($variable:literal) => {
        match option_env!($variable) {
            Some(text) => text,
            None => "",
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! text_section {
    ($name:literal, $text:expr) => {
        const _: () = {
            const TEXT: &str = $text;
            #[used]
            #[unsafe(link_section = $name)]
            static BYTES: [u8; TEXT.len()] = {
                let mut bytes = [0; TEXT.len()];
                bytes.copy_from_slice(TEXT.as_bytes());
                bytes
            };
        };
    };
}

/// Implements the generated traits for a plugin. The host calls each function in a fresh instance, so each creates the
/// plugin.
#[doc(hidden)]
pub struct Glue<P>(std::marker::PhantomData<P>);

#[cfg(target_arch = "wasm32")]
mod wasm {
    use super::Glue;
    use super::backend;
    use super::bindings::classifier::exports::ambiguity::plugin::classifier;
    use super::bindings::gradient::exports::ambiguity::plugin::gradient;
    use super::bindings::pixel_gradient::exports::ambiguity::plugin::pixel_gradient;
    use super::bindings::plugin::ambiguity::plugin::{log, samples, types};
    use super::bindings::plugin::exports::ambiguity::plugin::description;
    use super::bindings::scorer::exports::ambiguity::plugin::scorer;
    use crate::{Batch, Classifier, Gradient, Matrix, OptionInfo, OptionType, PixelGradient, Plugin, Result, Scorer};

    type Answer<T> = std::result::Result<T, String>;

    /// Logs a panic's message to the host before the abort that follows, which has no message.
    fn install_panic_hook() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            std::panic::set_hook(Box::new(|panic| log::write(log::Level::Error, &panic.to_string())));
        });
    }

    /// Creates the plugin and calls it.
    fn call<P: Plugin, T>(work: impl FnOnce(&P) -> Result<T>) -> Answer<T> {
        install_panic_hook();
        P::new(&backend::HOST).and_then(|plugin| work(&plugin)).map_err(|e| e.to_string())
    }

    fn batch(samples: &samples::Batch) -> Batch<'_> {
        Batch::from_backend(backend::HOST, backend::Batch(samples))
    }

    impl<P: Plugin> description::Guest for Glue<P> {
        fn describe() -> Answer<description::Description> {
            let crate::Description { name, version, media, encoders, options, properties } =
                call(|plugin: &P| Ok(plugin.describe()))?;
            let option = |option: OptionInfo| description::PluginOption {
                key: option.key,
                value_type: match option.value_type {
                    OptionType::Text => description::OptionType::Text,
                    OptionType::Integer => description::OptionType::Integer,
                    OptionType::Number => description::OptionType::Number,
                    OptionType::Boolean => description::OptionType::Boolean,
                },
                default: option.default,
                help: option.help,
            };
            Ok(description::Description {
                name,
                version,
                media: media.into_iter().map(|medium| medium.name().to_owned()).collect(),
                encoders,
                options: options.into_iter().map(option).collect(),
                properties,
            })
        }
    }

    impl<P: Classifier> classifier::Guest for Glue<P> {
        fn styles() -> Answer<Vec<String>> {
            call(|plugin: &P| Ok(plugin.styles()))
        }

        fn classify(samples: &samples::Batch) -> Answer<types::Matrix> {
            call(|plugin: &P| Ok(plugin.classify(&batch(samples))?.into_matrix().into()))
        }
    }

    impl<P: Scorer> scorer::Guest for Glue<P> {
        fn scale() -> Answer<scorer::ScoreScale> {
            let crate::Scale { higher_is_better, minimum, maximum } = call(|plugin: &P| Ok(plugin.scale()))?;
            Ok(scorer::ScoreScale { higher_is_better, minimum, maximum })
        }

        fn score(samples: &samples::Batch) -> Answer<Vec<f64>> {
            call(|plugin: &P| plugin.score(&batch(samples)))
        }
    }

    impl<P: Gradient> gradient::Guest for Glue<P> {
        fn embedding_vjp(samples: &samples::Batch, encoder: String, upstream: types::Matrix) -> Answer<types::Matrix> {
            call(|plugin: &P| {
                let upstream = Matrix::try_from(upstream)?;
                Ok(plugin.embedding_vjp(&batch(samples), &encoder, &upstream)?.into())
            })
        }
    }

    impl<P: PixelGradient> pixel_gradient::Guest for Glue<P> {
        fn pixel_vjp(samples: &samples::Batch, i: u32, upstream: Vec<f32>) -> Answer<Vec<f32>> {
            call(|plugin: &P| plugin.pixel_vjp(&batch(samples), i as usize, &upstream))
        }
    }

    impl From<Matrix> for types::Matrix {
        fn from(matrix: Matrix) -> Self {
            Self { rows: matrix.n_rows() as u32, cols: matrix.n_cols() as u32, data: matrix.into_vec() }
        }
    }

    impl TryFrom<types::Matrix> for Matrix {
        type Error = crate::Error;

        fn try_from(matrix: types::Matrix) -> Result<Self> {
            Self::new(matrix.rows as usize, matrix.cols as usize, matrix.data)
        }
    }
}

/// The functions that [`Host`](crate::Host) and [`Batch`](crate::Batch) call when they are compiled to WebAssembly.
#[cfg(target_arch = "wasm32")]
pub(crate) mod backend {
    use super::bindings::plugin::ambiguity::plugin::{
        assets, config as configuration, encoders, log as logging, samples, types,
    };
    use crate::batch::{Audio, Image, Tensor, Video};
    use crate::host::{EncoderInfo, Level, TokenFeatures};
    use crate::matrix::Matrix;
    use crate::plugin::Medium;

    type Answer<T> = Result<T, String>;

    /// The host.
    pub(crate) const HOST: crate::Host<'static> = crate::Host::new(Host(std::marker::PhantomData));

    fn matrix(matrix: types::Matrix) -> Answer<Matrix> {
        matrix.try_into().map_err(|e: crate::Error| e.to_string())
    }

    fn image(image: types::Image) -> Image {
        Image { width: image.width as usize, height: image.height as usize, rgb: image.rgb }
    }

    #[derive(Clone, Copy)]
    pub struct Host<'a>(std::marker::PhantomData<&'a ()>);

    impl Host<'_> {
        pub fn asset_names(self) -> Vec<String> {
            assets::names()
        }

        pub fn asset_bytes(self, name: &str) -> Answer<Vec<u8>> {
            assets::bytes(name)
        }

        pub fn asset_tensor(self, name: &str) -> Answer<Matrix> {
            assets::tensor(name).and_then(matrix)
        }

        pub fn config(self, key: &str) -> Option<String> {
            configuration::get(key)
        }

        pub fn log(self, level: Level, message: &str) {
            let level = match level {
                Level::Debug => logging::Level::Debug,
                Level::Info => logging::Level::Info,
                Level::Warn => logging::Level::Warn,
                Level::Error => logging::Level::Error,
            };
            logging::write(level, message);
        }
    }

    pub struct Batch<'a>(pub &'a samples::Batch);

    impl Batch<'_> {
        pub fn len(&self) -> u32 {
            self.0.len()
        }

        pub fn prompt(&self, i: u32) -> String {
            self.0.prompt(i)
        }

        pub fn metadata_keys(&self, i: u32) -> Vec<String> {
            self.0.metadata_keys(i)
        }

        pub fn metadata(&self, i: u32, key: &str) -> Option<String> {
            self.0.metadata(i, key)
        }

        pub fn image(&self, i: u32) -> Answer<Image> {
            self.0.image(i).map(image)
        }

        pub fn image_resized(&self, i: u32, width: u32, height: u32) -> Answer<Image> {
            self.0.image_resized(i, width, height).map(image)
        }

        pub fn text(&self, i: u32) -> Answer<String> {
            self.0.text(i)
        }

        pub fn audio(&self, i: u32) -> Answer<Audio> {
            let audio = self.0.audio(i)?;
            Ok(Audio { sample_rate: audio.sample_rate, channels: audio.channels as usize, pcm: audio.pcm })
        }

        pub fn video(&self, i: u32) -> Answer<Video> {
            let types::Video { width, height, frames, frame_rate } = self.0.video(i)?;
            let [width, height, frames] = [width, height, frames].map(|n| n as usize);
            Ok(Video { width, height, frames, frame_rate })
        }

        pub fn frame(&self, i: u32, frame: u32) -> Answer<Image> {
            self.0.frame(i, frame).map(image)
        }

        pub fn frame_resized(&self, i: u32, frame: u32, width: u32, height: u32) -> Answer<Image> {
            self.0.frame_resized(i, frame, width, height).map(image)
        }

        pub fn tensor(&self, i: u32) -> Answer<Tensor> {
            let types::Tensor { shape, data } = self.0.tensor(i)?;
            Tensor::new(shape.into_iter().map(|size| size as usize).collect(), data).map_err(|e| e.to_string())
        }

        pub fn embedding(&self, encoder: &str) -> Answer<Matrix> {
            self.0.embedding(encoder).and_then(matrix)
        }

        pub fn prompt_embedding(&self, encoder: &str) -> Answer<Matrix> {
            self.0.prompt_embedding(encoder).and_then(matrix)
        }

        pub fn token_features(&self, encoder: &str, i: u32) -> Answer<Matrix> {
            self.0.token_features(encoder, i).and_then(matrix)
        }

        pub fn encoder_info(&self, encoder: &str) -> Answer<EncoderInfo> {
            let info = encoders::info(encoder)?;
            // A medium that this crate does not know is none that the plugin could use.
            let features = info.token_features.iter().filter_map(|features| {
                let (tokens, width) = (features.tokens as usize, features.width as usize);
                Some(TokenFeatures { medium: features.medium.parse().ok()?, tokens, width })
            });
            Ok(EncoderInfo {
                media: info.media.iter().filter_map(|name| name.parse::<Medium>().ok()).collect(),
                dim: info.dim as usize,
                logit_scale: info.logit_scale,
                image_size: info.image_size.map(|size| size as usize),
                token_features: features.collect(),
                digest: info.digest,
                properties: info.properties,
            })
        }

        pub fn embed_texts(&self, encoder: &str, texts: &[String]) -> Answer<Matrix> {
            encoders::embed_texts(encoder, texts).and_then(matrix)
        }
    }
}
