//! What a run is made of: prompts, image folders, the procedural paintings.

pub mod art;
pub mod images;
pub mod prompts;
