//! Runs soft k-means on one batch as many times as the configuration's `rounds`: the times of two such counts determine
//! the time of one round, without the overhead of a call. Each round copies the embeddings; with `work` = `copy` it
//! does nothing else.

use std::hint::black_box;

use ambiguity_sdk::heads::{Head, InverseDistances};
use ambiguity_sdk::{
    Batch, Classifier, Description, Distributions, Host, Medium, Plugin, PluginOption, Result, export,
};

/// The plugin.
pub struct Rounds {
    rounds: i64,
    work: String,
    head: InverseDistances,
}

export!(Rounds: Classifier);

const ROUNDS: PluginOption<i64> = PluginOption::new("rounds", 1, "How often each batch is classified");
const WORK: PluginOption<&str> = PluginOption::new("work", "all", "`copy` for the copies of the embeddings alone");

impl Plugin for Rounds {
    fn new(host: &Host) -> Result<Self> {
        let head = InverseDistances { centers: host.asset_tensor("centers")?, temperature: 1.0, normalize: true };
        Ok(Self { rounds: ROUNDS.get(host)?, work: WORK.get(host)?, head })
    }

    fn describe(&self) -> Description {
        let description = Description::new("rounds", env!("CARGO_PKG_VERSION")).medium(Medium::Image);
        description.encoder("clip").option(ROUNDS).option(WORK)
    }
}

impl Classifier for Rounds {
    fn styles(&self) -> Vec<String> {
        (0..27).map(|i| format!("style-{i:02}")).collect()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        let embeddings = batch.embedding("clip")?;
        for _ in 1..self.rounds {
            let copy = black_box(embeddings.clone());
            if self.work != "copy" {
                black_box(self.head.distributions(copy)?);
            }
        }
        self.head.distributions(embeddings)
    }
}
