//! Runs soft k-means on one batch as many times as the configuration's `rounds`: the times of two such counts determine
//! the time of one round, without the overhead of a call. Each round copies the embeddings; with `work` = `copy` it
//! does nothing else.

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
        let only_copy = host::config("work").is_some_and(|work| work == "copy");
        for _ in 1..rounds {
            let copy = black_box(embeddings.clone());
            if !only_copy {
                black_box(head.distributions(copy)?);
            }
        }
        head.distributions(embeddings)
    }
}
