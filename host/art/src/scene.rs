//! The eight subjects as outlines with roles, before a style is applied.
//!
//! Subjects are large and centered with few details, so that a silhouette of 64 px is still recognizable; they vary in
//! kind, proportion, position, tilt and mirroring.

mod outdoors;
mod people;
mod things;

use super::outline::{Outline, Point};
use super::rng::Rng;

/// The role of a shape's color; a palette contains the sky's color and then one for each role, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The background's lower part: ground or table.
    Ground = 1,
    /// Skin, walls, snow, vases.
    Light,
    /// Cloth, leaves, fur, roofs, mountains.
    Main,
    /// Sun, flowers, fruit, doors, ties.
    Accent,
    /// Hair, hats, trunks, windows.
    Dark,
}

/// The layer of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Ground or table.
    Ground,
    /// A part of the subject's silhouette.
    Figure,
    /// Eyes, spots, panes: details that a broad style leaves out.
    Detail,
}

/// One outline of a scene.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The outline.
    pub outline: Outline,
    /// The role of its color.
    pub role: Role,
    /// Its layer.
    pub layer: Layer,
}

/// A subject on its ground, back to front.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The shapes, back to front.
    pub shapes: Vec<Shape>,
    /// Center of a halo, a glow or a swirl: a head, a crown, the middle of the subject.
    pub focus: Point,
    /// The y coordinate at which the ground begins (1 without a ground).
    pub horizon: f32,
}

impl Scene {
    /// Draws a scene of one of the eight subjects, by its index in `SUBJECTS`.
    pub fn new(subject: usize, rng: &mut Rng) -> Self {
        let mut scene = Self { shapes: Vec::with_capacity(32), focus: [0.5, 0.4], horizon: 1.0 };
        match subject {
            0 => scene.man(rng),
            1 => scene.woman(rng),
            2 => scene.landscape(rng),
            3 => scene.nature(rng),
            4 => scene.building(rng),
            5 => scene.animal(rng),
            6 => scene.geometry(rng),
            _ => scene.object(rng),
        }
        if rng.chance(0.5) {
            scene.bend(|[x, y]| [1.0 - x, y]);
        }
        scene
    }

    /// Moves every point of the scene.
    pub fn bend(&mut self, f: impl Fn(Point) -> Point) {
        for shape in &mut self.shapes {
            shape.outline = shape.outline.map(&f);
        }
        self.focus = f(self.focus);
    }

    /// Moves every point of the subject, after lines and curves have been cut into pieces of `step`.
    pub fn bend_figure(&mut self, step: f32, f: impl Fn(Point) -> Point) {
        for shape in self.shapes.iter_mut().filter(|shape| shape.layer != Layer::Ground) {
            let points: Vec<Point> = shape.outline.points(step).into_iter().map(&f).collect();
            shape.outline = Outline::polygon(&points);
        }
        self.focus = f(self.focus);
    }

    /// The outlines of the subject's silhouette.
    pub fn figure(&self) -> impl Iterator<Item = &Outline> {
        self.shapes.iter().filter(|shape| shape.layer == Layer::Figure).map(|shape| &shape.outline)
    }

    fn add(&mut self, layer: Layer, role: Role, outline: Outline) {
        self.shapes.push(Shape { outline, role, layer });
    }

    fn put(&mut self, role: Role, outline: Outline) {
        self.add(Layer::Figure, role, outline);
    }

    fn detail(&mut self, role: Role, outline: Outline) {
        self.add(Layer::Detail, role, outline);
    }

    fn ground(&mut self, y: f32, outline: Outline) {
        self.horizon = y;
        self.add(Layer::Ground, Role::Ground, outline);
    }

    fn flat_ground(&mut self, y: f32) {
        self.ground(y, Outline::rect(-0.1, y, 1.1, 1.1));
    }
}
