//! Linear probes: linfa's multinomial logistic regression on labeled embeddings, and its evaluation on held-out ones.

use linfa::DatasetBase;
use linfa::dataset::{AsSingleTargets, Dataset};
use linfa::traits::{Fit, Predict, PredictInplace};
use linfa_logistic::MultiLogisticRegression;
use ndarray::{Array1, Array2, ArrayBase, ArrayView2, Axis, Data, Ix1, Ix2, Zip};

use super::error::FitError;
use super::mixture::largest;

/// The solver stops when the gradient's length per point is less than this.
const TOLERANCE: f64 = 1e-8;

/// Classified embeddings: one row and one class, from 0, for each.
pub type Labeled = Dataset<f32, usize, Ix1>;

/// Options of a linear probe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeOptions {
    /// α in Σ cross-entropy + α/2 ‖W‖², W the weights of standardized coordinates (1/C in scikit-learn).
    pub regularization: f64,
    /// Maximum number of iterations of L-BFGS.
    pub max_iterations: usize,
}

/// A linear probe: the logits of an embedding e are W e + b.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearProbe {
    /// W, classes × dim.
    pub weights: Array2<f64>,
    /// b, one per class.
    pub bias: Array1<f64>,
    /// The length of the loss's gradient per point where the solver stopped, in standardized coordinates; 0 at the minimum.
    pub gradient: f64,
}

/// The evaluation of a probe on points that it was not fitted to.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Number of points that the evaluated probe was fitted to.
    pub n_training: usize,
    /// Number of points of each true class (a row) by predicted class (a column).
    pub confusion: Vec<Vec<usize>>,
    /// Share of the points whose class was predicted.
    pub accuracy: f64,
    /// The mean over the classes of this share.
    pub balanced_accuracy: f64,
    /// The mean of −ln p of the true class.
    pub cross_entropy: f64,
}

impl<D: Data<Elem = f32>, T: AsSingleTargets<Elem = usize>> Fit<ArrayBase<D, Ix2>, T, FitError> for ProbeOptions {
    type Object = LinearProbe;

    /// Fits a probe of the classes 0 to n − 1, each of which has points.
    fn fit(&self, dataset: &DatasetBase<ArrayBase<D, Ix2>, T>) -> Result<LinearProbe, FitError> {
        let mut points = dataset.records().mapv(f64::from);
        if points.iter().any(|x| !x.is_finite()) {
            return Err(FitError::NotFinite("points"));
        }
        let classes = dataset.as_single_targets().to_owned();
        let n_classes = classes.iter().max().map_or(0, |largest| largest + 1);
        let sizes = class_sizes(classes.iter(), n_classes);
        if n_classes < 2 || sizes.contains(&0) {
            return Err(FitError::Classes);
        }
        // Coordinates of mean 0 and variance 1 are what the penalty and the solver work well with.
        let mean = points.mean_axis(Axis(0)).ok_or(FitError::Classes)?;
        points -= &mean;
        let mut scale = points.map_axis(Axis(0), |column| (column.dot(&column) / column.len() as f64).sqrt());
        // A constant coordinate, up to rounding errors of f32, says nothing.
        Zip::from(&mut scale).and(&mean).for_each(|scale, mean| {
            if *scale <= 1e-6 * mean.abs() || *scale < f64::MIN_POSITIVE {
                *scale = f64::INFINITY;
            }
        });
        if scale.iter().all(|scale| scale.is_infinite()) {
            return Err(FitError::NoVariance);
        }
        points /= &scale;

        let solver = MultiLogisticRegression::<f64>::default()
            .alpha(self.regularization)
            .max_iterations(self.max_iterations as u64)
            .gradient_tolerance(TOLERANCE * points.nrows() as f64);
        let problem = Dataset::new(points, classes);
        let model = solver.fit(&problem)?;
        let (weights, bias) = (model.params().t().to_owned(), model.intercept().clone());
        let gradient = self.gradient(problem.records(), problem.targets(), &weights, &bias);
        // W (e − m) / s + b = (W / s) e + (b − (W / s) m).
        let weights = weights / &scale;
        let bias = bias - weights.dot(&mean);
        Ok(LinearProbe { weights, bias, gradient })
    }
}

impl ProbeOptions {
    /// Returns the length of the loss's gradient per point.
    fn gradient(&self, x: &Array2<f64>, classes: &Array1<usize>, weights: &Array2<f64>, bias: &Array1<f64>) -> f64 {
        let mut residuals = x.dot(&weights.t()) + bias;
        residuals.rows_mut().into_iter().for_each(log_softmax);
        residuals.mapv_inplace(f64::exp);
        Zip::from(residuals.rows_mut()).and(classes).for_each(|mut row, &class| row[class] -= 1.0);
        let of_weights = residuals.t().dot(x) + weights * self.regularization;
        let of_bias = residuals.sum_axis(Axis(0));
        let squared = of_weights.iter().chain(&of_bias).map(|g| g * g).sum::<f64>();
        squared.sqrt() / x.nrows().max(1) as f64
    }
}

impl LinearProbe {
    /// Returns the logarithms of the classes' probabilities, n × classes.
    pub fn log_probabilities(&self, points: ArrayView2<'_, f32>) -> Array2<f64> {
        let mut logits = points.mapv(f64::from).dot(&self.weights.t()) + &self.bias;
        logits.rows_mut().into_iter().for_each(log_softmax);
        logits
    }

    /// Evaluates the probe on points that it was not fitted to.
    pub fn evaluate(&self, held_out: &Labeled, n_training: usize) -> Evaluation {
        let n_classes = self.bias.len();
        let mut confusion = vec![vec![0; n_classes]; n_classes];
        let predicted = self.predict(held_out.records());
        for (&class, &predicted) in held_out.targets().iter().zip(&predicted) {
            confusion[class][predicted] += 1;
        }
        let probabilities = self.log_probabilities(held_out.records().view());
        let entropies = probabilities.rows().into_iter().zip(held_out.targets()).map(|(row, &class)| -row[class]);
        let n = held_out.records().nrows().max(1) as f64;
        let cross_entropy = entropies.sum::<f64>() / n;
        let right = (0..n_classes).map(|i| confusion[i][i]).sum::<usize>();
        let recalls: Vec<f64> = confusion.iter().enumerate().filter_map(|(i, row)| recall(row, i)).collect();
        let balanced_accuracy = recalls.iter().sum::<f64>() / recalls.len().max(1) as f64;
        Evaluation { n_training, confusion, accuracy: right as f64 / n, balanced_accuracy, cross_entropy }
    }

    /// Returns the points of each class, those first whose own class is the most probable by the largest margin. The points
    /// are those that the probe was fitted to.
    pub fn surest_first(&self, points: &Labeled) -> Vec<Vec<usize>> {
        let probabilities = self.log_probabilities(points.records().view());
        let margin = |(row, &class): (ndarray::ArrayView1<'_, f64>, &usize)| {
            let others = row.iter().enumerate().filter(|(i, _)| *i != class).map(|(_, p)| *p);
            row[class] - others.fold(f64::NEG_INFINITY, f64::max)
        };
        let margins: Vec<f64> = probabilities.rows().into_iter().zip(points.targets()).map(margin).collect();
        let mut members = vec![vec![]; self.bias.len()];
        points.targets().iter().enumerate().for_each(|(point, &class)| members[class].push(point));
        members.iter_mut().for_each(|members| members.sort_by(|&a, &b| margins[b].total_cmp(&margins[a])));
        members
    }
}

/// Returns the share of a class's points whose class was predicted; none without points.
pub fn recall(row: &[usize], class: usize) -> Option<f64> {
    let n: usize = row.iter().sum();
    (n > 0).then(|| row[class] as f64 / n as f64)
}

impl<D: Data<Elem = f32>> PredictInplace<ArrayBase<D, Ix2>, Array1<usize>> for LinearProbe {
    fn predict_inplace(&self, x: &ArrayBase<D, Ix2>, y: &mut Array1<usize>) {
        let logits = x.mapv(f64::from).dot(&self.weights.t()) + &self.bias;
        Zip::from(y).and(logits.rows()).for_each(|class, row| *class = largest(row.iter()));
    }

    fn default_target(&self, x: &ArrayBase<D, Ix2>) -> Array1<usize> {
        Array1::zeros(x.nrows())
    }
}

/// Returns the number of points of each class.
pub fn class_sizes<'a>(classes: impl Iterator<Item = &'a usize>, n_classes: usize) -> Vec<usize> {
    let mut sizes = vec![0; n_classes];
    classes.for_each(|&class| sizes[class] += 1);
    sizes
}

fn log_softmax(mut row: ndarray::ArrayViewMut1<'_, f64>) {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
    row.mapv_inplace(|x| x - total);
}

#[cfg(test)]
mod tests {
    use linfa::Dataset;
    use test_support::Reference;

    use super::super::normalize_rows;
    use super::super::reference::{matrix, numbers};
    use super::*;

    const OPTIONS: ProbeOptions = ProbeOptions { regularization: 1.0, max_iterations: 1000 };

    /// Returns points around three corners, and their classes.
    fn corners(n: usize) -> Labeled {
        let points = Array2::from_shape_fn((n, 4), |(i, j)| {
            (if i % 3 == j { 2.0 } else { 0.0 }) + ((i * 37 + j * 101) % 97) as f32 / 97.0
        });
        Dataset::new(points, (0..n).map(|i| i % 3).collect())
    }

    /// Probabilities and accuracy on held-out paintings, for weak, default and strong regularization.
    #[test]
    fn a_probe_is_that_of_scikit_learn() {
        let reference = Reference::read("linear.safetensors");
        let mut embeddings = matrix(reference.tensor("embeddings")).mapv(|x| x as f32);
        normalize_rows(&mut embeddings);
        let classes = numbers(reference.tensor("classes"));
        let is_held_out = numbers(reference.tensor("held_out"));
        let select = |wanted: f64| {
            let rows: Vec<usize> = (0..classes.len()).filter(|&i| is_held_out[i] == wanted).collect();
            Labeled::new(embeddings.select(Axis(0), &rows), rows.iter().map(|&i| classes[i] as usize).collect())
        };
        let (training, held_out) = (select(0.0), select(1.0));
        for name in ["0.01", "1", "100"] {
            let regularization = name.parse().expect("a number");
            let probe = ProbeOptions { regularization, ..OPTIONS }.fit(&training).expect("27 classes");
            assert!(probe.gradient < 1e-6, "{name}: {}", probe.gradient);
            let evaluation = probe.evaluate(&held_out, training.records().nrows());
            let accuracy = numbers(reference.tensor(&format!("accuracy.{name}")))[0];
            assert!(
                (evaluation.accuracy - accuracy).abs() < 0.005,
                "{name}: {} is not {accuracy}",
                evaluation.accuracy
            );
            let found = probe.log_probabilities(held_out.records().view());
            let expected = matrix(reference.tensor(&format!("log_probabilities.{name}")));
            for (found, expected) in found.rows().into_iter().step_by(4).zip(expected.rows()) {
                let error = (&found - &expected).mapv(f64::abs).fold(0.0, |a: f64, b| a.max(*b));
                assert!(error < 1e-3, "{name}: {error}");
            }
        }
    }

    #[test]
    fn an_evaluation_by_hand() {
        let probe = LinearProbe { weights: Array2::eye(3), bias: Array1::zeros(3), gradient: 0.0 };
        let points = ndarray::arr2(&[[1f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 1.0]]);
        let evaluation = probe.evaluate(&Labeled::new(points, ndarray::arr1(&[0, 0, 1, 1])), 7);
        assert_eq!(evaluation.confusion, [vec![1, 1, 0], vec![0, 1, 1], vec![0, 0, 0]]);
        assert_eq!((evaluation.accuracy, evaluation.balanced_accuracy, evaluation.n_training), (0.5, 0.5, 7));
        let e = std::f64::consts::E;
        let expected = (2.0 * (e + 2.0).ln() - 1.0 + (e + 2.0).ln() + (e * e + 2.0).ln() - 2.0) / 4.0;
        assert!((evaluation.cross_entropy - expected).abs() < 1e-12, "{}", evaluation.cross_entropy);
    }

    /// Units and offsets of coordinates change nothing, and constant coordinates have no weight.
    #[test]
    fn coordinates_are_standardized() {
        let plain = corners(60);
        let mut scaled = plain.clone();
        for (j, mut column) in scaled.records.columns_mut().into_iter().enumerate() {
            column.mapv_inplace(|x| x * 10f32.powi(j as i32 - 2) + 4.0);
        }
        let (a, b) = (OPTIONS.fit(&plain).expect("three classes"), OPTIONS.fit(&scaled).expect("three classes"));
        let (of_a, of_b) = (a.log_probabilities(plain.records().view()), b.log_probabilities(scaled.records().view()));
        assert!((of_a - of_b).iter().all(|x| x.abs() < 1e-2));
        let mut constant = plain.clone();
        constant.records.column_mut(3).fill(0.1);
        let probe = OPTIONS.fit(&constant).expect("three classes");
        assert!(probe.weights.column(3).iter().all(|w| *w == 0.0), "{}", probe.weights);
        assert!(probe.weights.iter().chain(&probe.bias).all(|w| w.is_finite()));
    }

    #[test]
    fn the_surest_come_first() {
        let mut points = corners(60);
        // One of the first class lies among the second.
        let other = points.records.row(1).to_owned();
        points.records.row_mut(0).assign(&other);
        let probe = OPTIONS.fit(&points).expect("three classes");
        let members = probe.surest_first(&points);
        assert_eq!(members.iter().map(Vec::len).collect::<Vec<_>>(), [20, 20, 20]);
        assert_eq!(members[0].last(), Some(&0));
        let predicted = probe.predict(points.records());
        assert_eq!((predicted[0], predicted[3]), (1, 0));
    }

    #[test]
    fn one_class_and_numbers_that_are_none_are_refused() {
        let refused = |set: &Labeled| OPTIONS.fit(set).expect_err("it cannot be fitted").to_string();
        let mut set = corners(9);
        set.targets.fill(0);
        assert!(refused(&set).starts_with("a linear probe needs at least two classes"));
        set.targets.fill(1);
        assert!(refused(&set).starts_with("a linear probe needs at least two classes"));
        let mut set = corners(9);
        set.records[[4, 2]] = f32::INFINITY;
        assert_eq!(refused(&set), "the points are not all finite");
        set.records.fill(0.3);
        assert_eq!(refused(&set), "all embeddings are the same: there is nothing to fit");
    }
}
