//! Soft k-means of one batch as often as the configuration's `rounds` says: two such counts give the time of the
//! arithmetic alone, without what a call costs besides.

use std::hint::black_box;

use ambiguity_sdk::heads::InverseDistances;
use ambiguity_sdk::{Batch, Classifier, Description, Distributions, Error, Result, export, host};

/// The plugin.
pub struct Rounds;

export!(Rounds);

impl Classifier for Rounds {
    fn describe() -> Result<Description> {
        let styles = (0..27).map(|i| format!("style-{i:02}"));
        Ok(Description::new("rounds", env!("CARGO_PKG_VERSION")).styles(styles).medium("image").encoder("clip"))
    }

    fn classify(batch: &Batch) -> Result<Distributions> {
        let rounds: usize = host::config("rounds").ok_or_else(|| Error::new("no rounds are configured"))?.parse()?;
        let head = InverseDistances { centers: host::asset_tensor("centers")?, temperature: 1.0, normalize: true };
        let embeddings = batch.embedding("clip")?;
        for _ in 1..rounds {
            black_box(head.distributions(black_box(embeddings.clone()))?);
        }
        head.distributions(embeddings)
    }
}
