//! Data: prompts, image folders, the procedural paintings, images by style; and audio recordings, for plugins that
//! classify them.

pub mod art;
pub mod audio;
pub mod images;
pub mod png;
pub mod prompts;
pub mod styles;
