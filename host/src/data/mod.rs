//! What goes in: folders of pictures.

pub mod images;
