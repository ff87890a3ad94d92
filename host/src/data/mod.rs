<<<<<<< HEAD

pub mod art;
pub mod images;
pub mod prompts;
