//! Why nothing could be fitted.

use linfa_clustering::GmmError;

/// An error of a fit.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// The number of clusters does not suit the number of points.
    #[error("{points} points cannot form {k} clusters: k must be between 2 and the number of points")]
    Clusters {
        /// Number of points.
        points: usize,
        /// Number of clusters.
        k: usize,
    },
    /// The number of centers to start from is another one than that of clusters.
    #[error("{centers} centers to start from are not {k}")]
    Start {
        /// Number of centers.
        centers: usize,
        /// Number of clusters.
        k: usize,
    },
    /// The centers to start from have other dimensions than the points.
    #[error("the centers have {centers} dimensions, the points {points}")]
    Dimensions {
        /// Number of dimensions of the centers.
        centers: usize,
        /// Number of dimensions of the points.
        points: usize,
    },
    /// The directions to disregard have other dimensions than the points.
    #[error("the texts have embeddings of {directions} dimensions, the points {points}")]
    OtherDirections {
        /// Number of dimensions of the directions.
        directions: usize,
        /// Number of dimensions of the points.
        points: usize,
    },
    /// The points differ in nothing but the directions to disregard.
    #[error("next to nothing is left of the embeddings without what the disregarded texts differ in")]
    NoRest,
    /// A number is infinite or NaN; the name says of what.
    #[error("the {0} are not all finite")]
    NotFinite(&'static str),
    /// The targets name no class, or only one.
    #[error("a linear probe needs at least two classes, and at least one point of each")]
    Classes,
    /// All points are equal.
    #[error("all embeddings are the same: there is nothing to fit")]
    NoVariance,
    /// More dimensions are asked for than the points can fill.
    #[error(
        "{points} points in {k} components allow at most {max} dimensions, because each component needs more points than \
         dimensions: use fewer --dimensions, a smaller -k or more data"
    )]
    TooManyDimensions {
        /// Number of points.
        points: usize,
        /// Number of components.
        k: usize,
        /// The largest number of dimensions.
        max: usize,
    },
    /// There are fewer than two points for each component.
    #[error("{points} points are too few for a mixture of {k} components: it needs at least two for each")]
    TooFewPoints {
        /// Number of points.
        points: usize,
        /// Number of components.
        k: usize,
    },
    /// No run of the expectation-maximization algorithm converged.
    #[error("no run converged within {0} iterations: raise --max-iterations or --tolerance, or use a smaller -k")]
    NotConverged(usize),
    /// No run of the expectation-maximization algorithm ended with a mixture.
    #[error("no Gaussian mixture was found: {0}")]
    Mixture(#[from] GmmError),
    /// The logistic regression ended without a result.
    #[error("no linear probe was found: {0}")]
    Logistic(#[from] linfa_logistic::error::Error),
    /// The principal components could not be computed.
    #[error("the principal components could not be computed: {0}")]
    Reduction(#[from] linfa_reduction::ReductionError),
    /// Another error of linfa.
    #[error(transparent)]
    Linfa(#[from] linfa::Error),
    /// The caller ended the fit before its first result.
    #[error("interrupted")]
    Interrupted,
}
