//! Conversions between the interface's generated bindings and this crate's own types.

/// The bindings that `wit-bindgen` generates from `wit/plugin.wit`, once per world.
#[doc(hidden)]
#[allow(missing_docs, unused_qualifications, clippy::all)] // Generated code: its lints are not under our control.
pub mod bindings {
    pub mod plugin {
        wit_bindgen::generate!({
            path: "../wit",
            world: "plugin",
            pub_export_macro: true,
            export_macro_name: "export_plugin",
            default_bindings_module: "ambiguity_sdk::bindings::plugin",
        });
    }
    // A separate world for the export that `differentiable-plugin` adds: two worlds that export one interface cannot
    // share a crate, and the linker merges a plugin's exports anyway.
    pub mod gradient {
        wit_bindgen::generate!({
            path: "../wit",
            inline: "
                package ambiguity:sdk;
                world gradient {
                    import ambiguity:plugin/samples@0.1.0;
                    export ambiguity:plugin/gradient@0.1.0;
                }
            ",
            pub_export_macro: true,
            export_macro_name: "export_gradient",
            default_bindings_module: "ambiguity_sdk::bindings::gradient",
            with: {
                "ambiguity:plugin/types@0.1.0": super::plugin::ambiguity::plugin::types,
                "ambiguity:plugin/samples@0.1.0": super::plugin::ambiguity::plugin::samples,
            },
        });
    }
}

/// Exports a plugin: `export!(MyPlugin);`, or `export!(MyPlugin, gradient);` for one that implements
/// [`Gradient`](crate::Gradient) too. Does nothing in a native build.
///
/// The `description`, `authors` and `license` of the crate's Cargo.toml are written into the custom sections of the
/// WebAssembly tool conventions (`description`, `authors`, `licenses`): `host plugin inspect` shows them, and so does
/// `wasm-tools metadata show`.
#[macro_export]
macro_rules! export {
    ($plugin:ty) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::Glue<$plugin>;
    $crate::bindings::plugin::export_plugin!(Exported with_types_in $crate::bindings::plugin);
            $crate::sections!();
        };
    };
    ($plugin:ty, gradient) => {
        $crate::export!($plugin);
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            type Exported = $crate::Glue<$plugin>;
    $crate::bindings::gradient::export_gradient!(Exported with_types_in $crate::bindings::gradient);
        };
    };
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

/// Implements the generated traits for a plugin.
#[doc(hidden)]
pub struct Glue<P>(std::marker::PhantomData<P>);

#[cfg(target_arch = "wasm32")]
mod wasm {
    use super::Glue;
    use super::bindings::gradient::exports::ambiguity::plugin::gradient;
    use super::bindings::plugin::ambiguity::plugin::{log, samples, types};
    use super::bindings::plugin::exports::ambiguity::plugin::classifier;
    use crate::{Batch, Classifier, Gradient, Matrix};

    /// Logs a panic's message to the host before the abort that follows, which has no message.
    fn install_panic_hook() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            std::panic::set_hook(Box::new(|panic| log::write(log::Level::Error, &panic.to_string())));
        });
    }

    impl<P: Classifier> classifier::Guest for Glue<P> {
        fn describe() -> Result<classifier::Description, String> {
            install_panic_hook();
            let crate::Description { name, version, styles, media, encoders } =
                P::describe().map_err(|e| e.to_string())?;
            Ok(classifier::Description { name, version, styles, media, encoders })
        }

        fn classify(batch: &samples::Batch) -> Result<types::Matrix, String> {
            install_panic_hook();
            let distributions = P::classify(&Batch::from_backend(super::backend::Batch(batch)));
            distributions.map(|d| d.into_matrix().into()).map_err(|e| e.to_string())
        }
    }

    impl<P: Gradient> gradient::Guest for Glue<P> {
        fn embedding_vjp(batch: &samples::Batch, upstream: types::Matrix) -> Result<types::Matrix, String> {
            install_panic_hook();
            let vjp = || {
                let upstream = Matrix::try_from(upstream)?;
                P::embedding_vjp(&Batch::from_backend(super::backend::Batch(batch)), &upstream)
            };
            vjp().map(Into::into).map_err(|e: crate::Error| e.to_string())
        }
    }

    impl From<Matrix> for types::Matrix {
        fn from(matrix: Matrix) -> Self {
            Self { rows: matrix.n_rows() as u32, cols: matrix.n_cols() as u32, data: matrix.into_vec() }
        }
    }

    impl TryFrom<types::Matrix> for Matrix {
        type Error = crate::Error;

        fn try_from(matrix: types::Matrix) -> crate::Result<Self> {
            Self::new(matrix.rows as usize, matrix.cols as usize, matrix.data)
        }
    }
}

/// The functions that `crate::host` and `crate::batch` call when they are compiled to WebAssembly.
#[cfg(target_arch = "wasm32")]
pub(crate) mod backend {
    use super::bindings::plugin::ambiguity::plugin::{
        assets, config as configuration, encoders, log as logging, samples, types,
    };
    use crate::batch::{Audio, Image};
    use crate::host::{EncoderInfo, Level};
    use crate::matrix::Matrix;

    type Answer<T> = Result<T, String>;

    fn matrix(matrix: types::Matrix) -> Answer<Matrix> {
        matrix.try_into().map_err(|e: crate::Error| e.to_string())
    }

    fn image(image: types::Image) -> Image {
        Image { width: image.width as usize, height: image.height as usize, rgb: image.rgb }
    }

    pub fn asset_names() -> Vec<String> {
        assets::names()
    }

    pub fn asset_bytes(name: &str) -> Answer<Vec<u8>> {
        assets::bytes(name)
    }

    pub fn asset_tensor(name: &str) -> Answer<Matrix> {
        assets::tensor(name).and_then(matrix)
    }

    pub fn config(key: &str) -> Option<String> {
        configuration::get(key)
    }

    pub fn log(level: Level, message: &str) {
        let level = match level {
            Level::Debug => logging::Level::Debug,
            Level::Info => logging::Level::Info,
            Level::Warn => logging::Level::Warn,
            Level::Error => logging::Level::Error,
        };
        logging::write(level, message);
    }

    pub fn encoder_info(encoder: &str) -> Answer<EncoderInfo> {
        let info = encoders::info(encoder)?;
        Ok(EncoderInfo {
            dim: info.dim as usize,
            logit_scale: info.logit_scale,
            image_size: info.image_size as usize,
            digest: info.digest,
        })
    }

    pub fn embed_texts(encoder: &str, texts: &[String]) -> Answer<Matrix> {
        encoders::embed_texts(encoder, texts).and_then(matrix)
    }

    pub struct Batch<'a>(pub &'a samples::Batch);

    impl Batch<'_> {
        pub fn len(&self) -> u32 {
            self.0.len()
        }

        pub fn prompt(&self, i: u32) -> String {
            self.0.prompt(i)
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

        pub fn embedding(&self, encoder: &str) -> Answer<Matrix> {
            self.0.embedding(encoder).and_then(matrix)
        }
    }
}
