//! How far an image is from those that an encoder was trained on.
//!
//! An embedding's distance is that to the nearest center of the training images' groups (their styles), in units of the
//! groups' common covariance: the detector of Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution
//! Samples and Adversarial Attacks", NeurIPS 2018. The statistics are a file beside the encoder's weights, which `host embed
//! statistics` computes; an encoder without it is taken to know everything.

use std::path::Path;

use ambiguity_models::params::NamedTensors;
use ambiguity_models::safetensors::{encode_safetensors, read_safetensors};
use ndarray::{Array2, ArrayView2, Axis};
use tch::{Kind, Tensor};

use super::array;

/// The name of the file in an encoder's folder.
pub const FILE: &str = "embedding_statistics.safetensors";

/// The share of the training images that are within the distance of what counts as familiar.
const FAMILIAR_SHARE: f64 = 0.99;

/// The covariance's diagonal is raised by this share of its mean, so that it can be inverted.
const RIDGE: f64 = 1e-3;

/// The distribution of an encoder's training images.
#[derive(Clone, Debug, PartialEq)]
pub struct Familiar {
    /// dim × dim: embeddings of length 1, as rows, times its transpose have the identity as their groups' covariance.
    whitening: Array2<f32>,
    /// groups × dim: the centers of the groups, whitened.
    centers: Array2<f32>,
    /// The quantiles of the training images' distances, from 0 % to 100 %.
    quantiles: Vec<f32>,
}

impl Familiar {
    /// Computes the statistics of embeddings, n × dim, whose groups are numbered from 0 to `n_groups` − 1.
    ///
    /// # Errors
    /// If a group is empty, or there are fewer embeddings than twice the dimensions.
    pub fn of(embeddings: &Array2<f32>, groups: &[usize], n_groups: usize) -> anyhow::Result<Self> {
        let (n, dim) = embeddings.dim();
        anyhow::ensure!(
            n >= 2 * dim,
            "{n} images are too few for the covariance of {dim} dimensions: at least {}",
            2 * dim
        );
        let unit = normalized(embeddings.view());
        let mut centers = Array2::<f64>::zeros((n_groups, dim));
        let mut sizes = vec![0usize; n_groups];
        for (row, &group) in unit.rows().into_iter().zip(groups) {
            sizes[group] += 1;
            centers.row_mut(group).zip_mut_with(&row, |sum, x| *sum += f64::from(*x));
        }
        anyhow::ensure!(sizes.iter().all(|size| *size > 0), "a group has no images");
        for (mut center, &size) in centers.rows_mut().into_iter().zip(&sizes) {
            center /= size as f64;
        }
        let mut covariance = Array2::<f64>::zeros((dim, dim));
        for (row, &group) in unit.rows().into_iter().zip(groups) {
            let deviation = row.mapv(f64::from) - centers.row(group);
            let column = deviation.view().insert_axis(Axis(1));
            covariance += &column.dot(&column.t());
        }
        covariance /= n as f64;
        let mean_variance = covariance.diag().mean().unwrap_or(0.0);
        covariance.diag_mut().mapv_inplace(|variance| variance + RIDGE * mean_variance);
        let flat: Vec<f64> = covariance.iter().copied().collect();
        let covariance = Tensor::from_slice(&flat).f_view([dim as i64, dim as i64])?;
        let whitening = array(&Tensor::f_linalg_inv(&covariance.f_linalg_cholesky(false)?)?)?;
        let centers = centers.mapv(|x| x as f32).dot(&whitening.t());
        let mut statistics = Self { whitening, centers, quantiles: vec![] };
        let mut distances = statistics.distances(embeddings.view());
        distances.sort_by(f32::total_cmp);
        statistics.quantiles = (0..=100).map(|percent| distances[percent * (n - 1) / 100]).collect();
        Ok(statistics)
    }

    /// Reads the statistics in an encoder's folder, if there are any for embeddings of this dimension.
    pub(super) fn read(folder: &Path, dim: usize) -> ambiguity_models::Result<Option<Self>> {
        let path = folder.join(FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let mut tensors = read_safetensors(&path)?;
        let wrong =
            |message: &str| ambiguity_models::Error::Safetensors { path: path.clone(), message: message.to_owned() };
        let mut take = |name: &str| tensors.remove(name).ok_or_else(|| wrong(&format!("it has no `{name}`")));
        let (whitening, centers) = (array(&take("whitening")?)?, array(&take("centers")?)?);
        let quantiles = array(&take("quantiles")?)?.into_raw_vec_and_offset().0;
        if whitening.dim() != (dim, dim) || centers.ncols() != dim || centers.nrows() == 0 || quantiles.len() != 101 {
            return Err(wrong(
                "its statistics are not those of this encoder: compute them again with `host embed statistics`",
            ));
        }
        Ok(Some(Self { whitening, centers, quantiles }))
    }

    /// Returns the bytes of the file.
    pub fn encode(&self, path: &Path, metadata: &[(&str, &str)]) -> ambiguity_models::Result<Vec<u8>> {
        let tensor = |rows: &Array2<f32>| {
            let flat: Vec<f32> = rows.iter().copied().collect();
            Tensor::from_slice(&flat).view([rows.nrows() as i64, rows.ncols() as i64])
        };
        let tensors: NamedTensors = [
            ("whitening".to_owned(), tensor(&self.whitening)),
            ("centers".to_owned(), tensor(&self.centers)),
            ("quantiles".to_owned(), Tensor::from_slice(&self.quantiles).view([1, -1]).to_kind(Kind::Float)),
        ]
        .into();
        encode_safetensors(path, &tensors, metadata)
    }

    /// Returns the number of embeddings that are farther from the training images than 99 % of these are.
    pub fn n_unfamiliar(&self, embeddings: ArrayView2<'_, f32>) -> usize {
        let limit = self.quantiles[(100.0 * FAMILIAR_SHARE) as usize];
        self.distances(embeddings).into_iter().filter(|distance| *distance > limit).count()
    }

    /// Returns the distance of each embedding from the nearest center.
    fn distances(&self, embeddings: ArrayView2<'_, f32>) -> Vec<f32> {
        let whitened = normalized(embeddings).dot(&self.whitening.t());
        let distance = |row: ndarray::ArrayView1<'_, f32>| {
            let to_centers = self.centers.rows().into_iter().map(|center| (&row - &center).mapv(|x| x * x).sum());
            to_centers.fold(f32::INFINITY, f32::min).sqrt()
        };
        whitened.rows().into_iter().map(distance).collect()
    }
}

fn normalized(rows: ArrayView2<'_, f32>) -> Array2<f32> {
    let mut rows = rows.to_owned();
    for mut row in rows.rows_mut() {
        let length = row.dot(&row).sqrt();
        row /= length.max(f32::MIN_POSITIVE);
    }
    rows
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::SplitMix64;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    use super::*;

    /// Points around two directions, longer along one axis than along the others.
    fn points(n: usize, seed: u64) -> (Array2<f32>, Vec<usize>) {
        let mut rng = SplitMix64::seed_from_u64(seed);
        let mut unit = || (rng.next_u32() as f32 / u32::MAX as f32) - 0.5;
        let points = Array2::from_shape_fn((n, 4), |(i, j)| {
            let center = if j == i % 2 { 1.0 } else { 0.0 };
            center + unit() * if j == 3 { 0.4 } else { 0.04 }
        });
        (points, (0..n).map(|i| i % 2).collect())
    }

    #[test]
    fn familiar_points_are_near_a_group_as_the_groups_vary() {
        let (training, groups) = points(2000, 1);
        let familiar = Familiar::of(&training, &groups, 2).expect("enough points");
        let (others, _) = points(1000, 2);
        let n = familiar.n_unfamiliar(others.view());
        assert!(n < 30, "{n} of 1000 like the training points");
        // As far from a center, but along an axis on which the groups hardly vary.
        let along = ndarray::arr2(&[[1.0, 0.0, 0.0, 0.18], [3.0, 0.0, 0.0, 0.54]]);
        let across = ndarray::arr2(&[[1.0, 0.0, 0.18, 0.0], [0.5, 0.5, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]]);
        assert_eq!((familiar.n_unfamiliar(along.view()), familiar.n_unfamiliar(across.view())), (0, 3));
    }

    #[test]
    fn statistics_survive_their_file_and_belong_to_their_dimension() {
        let (training, groups) = points(200, 1);
        let familiar = Familiar::of(&training, &groups, 2).expect("enough points");
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Familiar::read(folder.path(), 4).expect("there is none"), None);
        let path = folder.path().join(FILE);
        std::fs::write(&path, familiar.encode(&path, &[]).expect("it encodes")).expect("writable");
        assert_eq!(Familiar::read(folder.path(), 4).expect("it is there"), Some(familiar));
        assert!(Familiar::read(folder.path(), 5).is_err());
        assert!(Familiar::of(&training, &groups, 3).is_err() && Familiar::of(&points(7, 1).0, &[0; 7], 1).is_err());
    }
}
