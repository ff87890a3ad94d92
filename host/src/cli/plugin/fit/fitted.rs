//! What was fitted: the numbers of a plugin, and the groups of the items that it was fitted to.

use std::path::PathBuf;

use ambiguity_sdk::Manifest;
use image::RgbImage;
use ndarray::ArrayView2;

use super::map::Map;
use super::sheet::{Order, Row};
use super::source::{Cluster, Items};
use crate::plugin::Fault;
use crate::plugin::fit::{
    Clustering, Directions, Evaluation, LinearProbe, Mixture, bake_k_means, bake_linear, bake_mixture, recall,
};
use crate::report::confusion::confusion_matrix;
use crate::text::{counted, number};

/// The result of a fit.
pub(super) struct Fitted {
    pub model: Model,
    /// The clusters or classes, in the order of the plugin's styles.
    pub clusters: Vec<Cluster>,
    /// The directions that were removed from the embeddings.
    pub disregarded: Option<Directions>,
    /// How the clusters are named.
    pub named: &'static str,
    /// Wall-clock time of the fit.
    pub seconds: f64,
}

/// The numbers of a plugin.
pub(super) enum Model {
    /// Centers of clusters.
    KMeans(Clustering),
    /// A Gaussian mixture.
    Mixture(Mixture),
    /// A linear probe.
    Probe(Probe),
}

/// A linear probe of all images, and the evaluation of one of a part of them.
pub(super) struct Probe {
    pub probe: LinearProbe,
    pub evaluation: Option<Evaluation>,
    /// The class of each image.
    pub classes: Vec<usize>,
    /// The regularization of both probes.
    pub regularization: f64,
}

impl Fitted {
    /// Bakes the numbers into their template.
    pub(super) fn bake(&self, manifest: &Manifest) -> Result<Vec<u8>, Fault> {
        match &self.model {
            Model::KMeans(found) => bake_k_means(manifest, &found.centers, self.disregarded.as_ref()),
            Model::Mixture(mixture) => bake_mixture(manifest, mixture),
            Model::Probe(probe) => bake_linear(manifest, &probe.probe),
        }
    }

    /// Returns the styles' names.
    pub(super) fn names(&self) -> Vec<String> {
        self.clusters.iter().map(|cluster| cluster.name.clone()).collect()
    }

    /// Returns the title of the plugin.
    pub(super) fn title(&self, items: &Items, encoder: &str) -> String {
        let (n, of) = (self.clusters.len(), items.embeddings());
        match &self.model {
            Model::KMeans(_) => format!("Soft assignment to {n} clusters of {of} by {encoder}"),
            Model::Mixture(_) => format!("Gaussian mixture of {n} components of {of} by {encoder}"),
            Model::Probe(_) => format!("Linear probe of {n} classes of {of} by {encoder}"),
        }
    }

    /// Returns the numbers of items and of groups, such as `12 images in 2 clusters`.
    pub(super) fn count(&self, items: &Items) -> String {
        let n: usize = self.clusters.iter().map(|cluster| cluster.members.len()).sum();
        let items = items.unit().strip_suffix('s').unwrap_or(items.unit());
        let groups = match &self.model {
            Model::KMeans(_) => counted(self.clusters.len() as u64, "cluster"),
            Model::Mixture(_) => counted(self.clusters.len() as u64, "component"),
            Model::Probe(_) => format!("{} classes", self.clusters.len()),
        };
        format!("{} in {groups}", counted(n as u64, items))
    }

    /// Returns the group of each item.
    fn groups(&self) -> &[usize] {
        match &self.model {
            Model::KMeans(found) => &found.labels,
            Model::Mixture(mixture) => &mixture.labels,
            Model::Probe(probe) => &probe.classes,
        }
    }

    /// Returns the order of the images on the contact sheet.
    pub(super) fn order(&self) -> Order {
        match &self.model {
            Model::KMeans(_) => Order { first: "closest to the center", last: "farthest", rows: "clusters" },
            Model::Mixture(_) => Order { first: "highest density", last: "lowest", rows: "components" },
            Model::Probe(_) => Order { first: "most probable", last: "least probable", rows: "classes" },
        }
    }

    /// Returns the rows of the contact sheet; `files` are the items.
    pub(super) fn rows(&self, files: &[PathBuf]) -> Vec<Row> {
        let row = |(i, cluster): (usize, &Cluster)| {
            let count = counted(cluster.members.len() as u64, "image");
            let about = match &self.model {
                Model::Probe(probe) => probe.evaluation.as_ref().and_then(|evaluation| recalled(evaluation, i)),
                _ => cluster.note().filter(|_| cluster.folder.as_ref().is_some_and(|(name, _)| *name != cluster.name)),
            };
            Row {
                name: cluster.name.clone(),
                notes: [Some(count), about].into_iter().flatten().collect(),
                files: cluster.members.iter().map(|&i| files[i].clone()).collect(),
            }
        };
        self.clusters.iter().enumerate().map(row).collect()
    }

    /// Returns what is drawn below the rows of the contact sheet: the map, and the confusion matrix of an evaluated probe.
    pub(super) fn drawings(&self, points: ArrayView2<'_, f32>) -> Vec<RgbImage> {
        let names: Vec<&str> = self.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        // Embeddings that are all the same have no map.
        let map = Map::of(points, self.groups(), names).ok().map(|map| map.draw());
        let confusion = match &self.model {
            Model::Probe(Probe { evaluation: Some(evaluation), .. }) => {
                Some(confusion_matrix(&self.names(), &evaluation.confusion, evaluation.accuracy))
            }
            _ => None,
        };
        map.into_iter().chain(confusion).collect()
    }
}

/// Returns the recall of a class on held-out images, as text.
pub(super) fn recalled(evaluation: &Evaluation, class: usize) -> Option<String> {
    let row = &evaluation.confusion[class];
    let n: usize = row.iter().sum();
    recall(row, class).map(|share| format!("recall {} % of {n} held out", number(100.0 * share, 0)))
}
