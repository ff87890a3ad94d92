//! Creates plugins from examples without a compiler: fits a classifier to embeddings and bakes its numbers into a template
//! component that ships inside this program.
//!
//! The algorithms speak linfa's traits: each one's options implement [`linfa::traits::Fit`] on a linfa data set, and what was
//! fitted implements [`linfa::traits::PredictInplace`].
//!
//! # Layout
//!
//! - [`KMeansOptions`]: k-means, of our own. `frame`: the origin and the unit that it computes in. `start`: k-means++.
//!   [`elbow`]: the choice of k. [`Directions`]: what it disregards.
//! - [`MixtureOptions`]: Gaussian mixtures. [`ProbeOptions`]: linear probes. [`PrincipalComponents`]: projections. All by linfa.

mod directions;
pub mod elbow;
mod error;
mod frame;
mod kmeans;
mod mixture;
mod probe;
mod projection;
#[cfg(test)]
mod reference;
mod start;

use ambiguity_sdk::Manifest;
use ndarray::{Array1, Array2, Axis};

pub use self::directions::Directions;
pub use self::error::FitError;
pub use self::kmeans::{Clustering, KMeansOptions};
pub use self::mixture::{DIMENSIONS, Mixture, MixtureOptions, check_mixture, max_dimensions};
pub use self::probe::{Evaluation, Labeled, LinearProbe, ProbeOptions, class_sizes, recall};
pub use self::projection::{PrincipalComponents, Projection};
use super::artifact::{Artifact, encode_tensor};
use super::error::Fault;
use super::limits::is_name;

/// The template component, which classifies by baked centers: `plugins/kmeans`, as `make templates` builds it.
pub const KMEANS_TEMPLATE: &[u8] = include_bytes!("templates/kmeans.wasm");

/// The template component that classifies by a baked linear probe: `plugins/linear`.
pub const LINEAR_TEMPLATE: &[u8] = include_bytes!("templates/linear.wasm");

/// The template component that classifies by a baked Gaussian mixture: `plugins/mixture`.
pub const MIXTURE_TEMPLATE: &[u8] = include_bytes!("templates/mixture.wasm");

/// Bakes centers (styles × dim), the directions that are removed from embeddings first, if there are any, and the manifest
/// into the k-means template. The same numbers and manifest produce the same bytes.
pub fn bake_k_means(
    manifest: &Manifest,
    centers: &Array2<f32>,
    disregarded: Option<&Directions>,
) -> Result<Vec<u8>, Fault> {
    let mut matrices = vec![("centers", centers.clone())];
    matrices.extend(disregarded.map(|directions| ("disregarded", single(&directions.matrix))));
    bake(KMEANS_TEMPLATE, manifest, &matrices)
}

/// Bakes a linear probe and its manifest into its template.
pub fn bake_linear(manifest: &Manifest, probe: &LinearProbe) -> Result<Vec<u8>, Fault> {
    bake(LINEAR_TEMPLATE, manifest, &[("weights", single(&probe.weights)), ("bias", row(&probe.bias))])
}

/// Bakes a Gaussian mixture and its manifest into its template.
pub fn bake_mixture(manifest: &Manifest, mixture: &Mixture) -> Result<Vec<u8>, Fault> {
    let (k, r) = mixture.means.dim();
    let factors = Array2::from_shape_fn((k * r, r), |(i, j)| mixture.factors[[i / r, i % r, j]]);
    let matrices = [
        ("projection", single(&mixture.projection.matrix)),
        ("origin", row(&mixture.projection.origin)),
        ("log_weights", row(&mixture.log_weights)),
        ("means", single(&mixture.means)),
        ("factors", single(&factors)),
    ];
    bake(MIXTURE_TEMPLATE, manifest, &matrices)
}

fn bake(template: &[u8], manifest: &Manifest, matrices: &[(&str, Array2<f32>)]) -> Result<Vec<u8>, Fault> {
    let mut assets: Vec<_> = matrices.iter().map(|(name, matrix)| (*name, encode_tensor(name, matrix))).collect();
    assets.push((Manifest::ASSET, manifest.to_json()));
    Artifact::bake(template, &assets)
}

fn single(matrix: &Array2<f64>) -> Array2<f32> {
    matrix.mapv(|x| x as f32)
}

fn row(vector: &Array1<f64>) -> Array2<f32> {
    single(&vector.clone().insert_axis(Axis(0)))
}

/// Scales rows to length 1; a row of zeros stays as it is.
pub fn normalize_rows(points: &mut Array2<f32>) {
    for mut row in points.rows_mut() {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
        if length > 0.0 {
            row /= length;
        }
    }
}

/// The names of clusters.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    /// One name per cluster.
    pub names: Vec<String>,
    /// Whether the names are those of the folders: each folder is the majority of exactly one cluster.
    pub from_folders: bool,
    /// Per cluster, the folder of most of its points and their share of the cluster.
    pub majority: Vec<(String, f64)>,
}

/// Names clusters by the folders of their points, if each cluster is mostly one folder and no two clusters are mostly
/// the same one; otherwise `cluster-01` and so on.
pub fn name_clusters(labels: &[usize], folders: &[String], k: usize) -> Names {
    let mut distinct: Vec<&String> = folders.iter().collect();
    distinct.sort();
    distinct.dedup();
    let mut counts = Array2::<usize>::zeros((k, distinct.len()));
    for (&label, folder) in labels.iter().zip(folders) {
        let column = distinct.binary_search(&folder).expect("it was collected from these folders");
        counts[[label, column]] += 1;
    }
    let majority: Vec<(String, f64)> = counts
        .axis_iter(Axis(0))
        .map(|row| {
            // The first folder wins a tie, so that the result does not depend on the order of iteration.
            let best = (0..row.len()).rev().max_by_key(|&i| row[i]).expect("there is a folder for every point");
            (distinct[best].clone(), row[best] as f64 / row.sum().max(1) as f64)
        })
        .collect();
    let mut majorities: Vec<&str> = majority.iter().map(|(folder, _)| folder.as_str()).collect();
    majorities.sort_unstable();
    majorities.dedup();
    let from_folders = majorities.len() == k && distinct.len() == k && distinct.iter().all(|name| is_name(name));
    let names = match from_folders {
        true => majority.iter().map(|(folder, _)| folder.clone()).collect(),
        false => (1..=k).map(|i| format!("cluster-{i:02}")).collect(),
    };
    Names { names, from_folders, majority }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn clusters_take_folder_names_only_one_to_one() {
        let named = name_clusters(&[1, 1, 1, 0, 0], &folders(&["a", "a", "b", "b", "b"]), 2);
        assert_eq!((named.names, named.from_folders), (folders(&["b", "a"]), true));
        assert_eq!(named.majority[1], ("a".to_owned(), 2.0 / 3.0));

        let both_a = name_clusters(&[1, 1, 0, 0, 0], &folders(&["a", "a", "a", "a", "b"]), 2);
        assert_eq!((both_a.names, both_a.from_folders), (folders(&["cluster-01", "cluster-02"]), false));

        let flat = name_clusters(&[0, 1], &folders(&["", ""]), 2);
        assert!(!flat.from_folders);
        let escape = name_clusters(&[0, 1], &folders(&["a\u{202e}", "b"]), 2);
        assert_eq!((escape.names, escape.from_folders), (folders(&["cluster-01", "cluster-02"]), false));
    }

    #[test]
    fn baking_twice_produces_the_same_bytes_and_replaces_existing_assets() {
        let manifest = |title: &str| Manifest { title: title.to_owned(), ..Manifest::default() };
        let centers = Array2::from_shape_fn((3, 4), |(i, j)| (i * 4 + j) as f32);
        let once = bake_k_means(&manifest("one"), &centers, None).expect("the template takes assets");
        assert_eq!(once, bake_k_means(&manifest("one"), &centers, None).expect("the template takes assets"));

        let other = [(Manifest::ASSET, manifest("two").to_json())];
        let twice = Artifact::bake(&once, &other).expect("a plugin takes assets");
        let artifact = Artifact::parse("x.wasm".as_ref(), twice).expect("still a plugin");
        assert_eq!(artifact.manifest.as_ref().map(|m| m.title.as_str()), Some("two"));
        // The template's own title, license and authors do not apply to a plugin with its own manifest.
        assert_eq!(artifact.title().as_deref(), Some("two"));
        assert_eq!((artifact.inspect().license.as_str(), artifact.inspect().authors.len()), ("", 0));
        let template = Artifact::parse("x.wasm".as_ref(), KMEANS_TEMPLATE.to_vec()).expect("a plugin");
        assert_eq!(template.title().as_deref(), Some("Soft assignment to baked k-means centers"));
        assert_eq!(template.inspect().authors, ["The Ambiguity authors"]);
        assert_eq!(artifact.tensor("centers").expect("a matrix"), centers);
        assert_eq!(artifact.assets().map(|(name, _)| name).collect::<Vec<_>>(), ["centers", "manifest.json"]);
    }
}
