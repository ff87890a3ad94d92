//! Classifies an array (a latent, a height map, token features, a matrix) by how it varies along its last two dimensions:
//! flat, smooth, wavy or rough.
//!
//! The evidence is the variogram: the mean squared difference of elements at a distance of 1, 2, 4, 8, divided by twice
//! the variance. White noise has 1 at every distance; a smooth array has little at distance 1 and more at 8; waves have
//! more than 1 somewhere in between. All matrices of the leading dimensions are pooled.

use ambiguity_sdk::{
    Batch, Classifier, Description, Distribution, Distributions, Error, Host, Medium, Plugin, Result, Tensor, export,
};

/// The plugin; see the module.
pub struct Roughness;

export!(Roughness: Classifier);

const STYLES: [&str; 4] = ["flat", "smooth", "wavy", "rough"];

/// The distances of the variogram.
const DISTANCES: [usize; 4] = [1, 2, 4, 8];

/// The variance at which an array is as likely flat as not, relative to its mean square.
const FLAT: f64 = 1e-4;

impl Plugin for Roughness {
    fn new(_host: &Host) -> Result<Self> {
        Ok(Self)
    }

    fn describe(&self) -> Description {
        Description::new("roughness", env!("CARGO_PKG_VERSION")).medium(Medium::Tensor)
    }
}

impl Classifier for Roughness {
    fn styles(&self) -> Vec<String> {
        STYLES.map(String::from).to_vec()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        (0..batch.len()).map(|i| Distribution::softmax(logits(&batch.tensor(i)?)?)).collect()
    }
}

/// Returns the logits of one array.
fn logits(tensor: &Tensor) -> Result<Vec<f32>> {
    if let Some(i) = tensor.data.iter().position(|x| !x.is_finite()) {
        return Err(Error::new(format!("element {i} of the array is {}", tensor.data[i])));
    }
    let [height, width] = match tensor.shape[..] {
        [.., height, width] if height * width > 1 => [height, width],
        _ => return Err(Error::new(format!("an array of shape {:?} has no two elements to compare", tensor.shape))),
    };
    let n = tensor.data.len() as f64;
    let mean = tensor.data.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let square = tensor.data.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
    let variance = tensor.data.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let relative = variance / (square + f64::MIN_POSITIVE);
    let flatness = FLAT / (FLAT + relative);
    let variogram = DISTANCES.map(|distance| variogram(tensor, [height, width], distance, variance));
    // White noise is 1 at distance 1; waves are above 1 at half their length, and below at distance 1.
    let near = 0.5 * (variogram[0][0] + variogram[0][1]);
    let most = variogram.into_iter().flatten().fold(0.0, f64::max);
    let wavy = 4.0 * (most - 1.0).max(0.0) * (1.0 - near).max(0.0);
    let logits = [6.0 * flatness - 1.0, 2.0 - 4.0 * near - wavy, 2.0 * wavy, 4.0 * near - 2.0];
    Ok(logits.into_iter().enumerate().map(|(i, x)| if i == 0 { x } else { x * (1.0 - flatness) } as f32).collect())
}

/// Returns the mean squared difference of elements that lie `distance` apart along a column, and along a row, each divided
/// by twice the variance; 0 if there are no such elements, or all are the same.
fn variogram(tensor: &Tensor, [height, width]: [usize; 2], distance: usize, variance: f64) -> [f64; 2] {
    let (mut sums, mut pairs) = ([0.0; 2], [0.0; 2]);
    for matrix in tensor.data.chunks_exact(height * width) {
        let at = |y: usize, x: usize| f64::from(matrix[y * width + x]);
        for y in 0..height {
            for x in 0..width {
                for (direction, [y2, x2]) in [[y + distance, x], [y, x + distance]].into_iter().enumerate() {
                    if y2 < height && x2 < width {
                        sums[direction] += (at(y, x) - at(y2, x2)).powi(2);
                        pairs[direction] += 1.0;
                    }
                }
            }
        }
    }
    let share = |i: usize| if pairs[i] > 0.0 && variance > 0.0 { sums[i] / pairs[i] / (2.0 * variance) } else { 0.0 };
    [share(0), share(1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample, numbers};

    fn classify(shape: &[usize], data: Vec<f32>) -> Result<&'static str> {
        let host = FakeHost::new();
        let found = host.load::<Roughness>()?.classify(&FakeBatch::new([FakeSample::tensor(shape, data)]))?;
        Ok(STYLES[found.likeliest(0)])
    }

    fn wave(length: f32) -> Vec<f32> {
        (0..4 * 24 * 24).map(|i| (std::f32::consts::TAU * (i % 24) as f32 / length).sin()).collect()
    }

    #[test]
    fn arrays_are_what_a_viewer_says() {
        assert_eq!(classify(&[1, 4, 24, 24], wave(60.0)).expect("an array"), "smooth");
        assert_eq!(classify(&[4, 24, 24], wave(8.0)).expect("an array"), "wavy");
        assert_eq!(classify(&[4, 24, 24], numbers(1, 4, 576).into_vec()).expect("an array"), "rough");
        assert_eq!(classify(&[24, 24], vec![3.0; 576]).expect("an array"), "flat");
        assert_eq!(classify(&[24, 24], vec![0.0; 576]).expect("an array"), "flat");
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let message = |shape: &[usize], data| classify(shape, data).expect_err("refused").to_string();
        assert_eq!(message(&[3], vec![0.0; 3]), "an array of shape [3] has no two elements to compare");
        assert_eq!(message(&[1, 2], vec![0.0, f32::NAN]), "element 1 of the array is NaN");
    }
}
