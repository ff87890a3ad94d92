//! What a run is made of: prompts, image folders, the procedural paintings, images by style; and recordings, for
//! plugins that hear.

pub mod art;
pub mod audio;
pub mod images;
pub mod prompts;
pub mod styles;
