//! Data: prompts, image folders, the procedural paintings, images by style; and audio recordings, videos and arrays, for
//! plugins that take them.

pub mod array;
pub mod art;
pub mod audio;
pub mod images;
pub mod png;
pub mod prompts;
pub mod styles;
pub mod video;
