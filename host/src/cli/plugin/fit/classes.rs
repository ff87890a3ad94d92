//! A linear probe of classes: evaluated on held-out images, then fitted to all.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use linfa::Dataset;
use linfa::traits::Fit as _;
use ndarray::Axis;

use super::FitArgs;
use super::fitted::{Fitted, Model, Probe};
use super::source::{Classes, Cluster, KEPT, classes, split};
use crate::cli::plugin::running::warn_of_unfamiliar;
use crate::context::Context;
use crate::plugin::fit::{Labeled, LinearProbe, ProbeOptions, normalize_rows};
use crate::text::to_json;

/// Maximum number of iterations by default.
const MAX_ITERATIONS: u32 = 1000;

/// The length of the loss's gradient per image above which the solver is said to have stopped early.
const MAX_GRADIENT: f64 = 1e-4;

impl FitArgs {
    /// Fits a probe of the classes below `root`, and writes the plugin.
    pub(super) fn fit_classes(&self, root: &Path, context: &Context) -> Result<()> {
        let output = self.output()?;
        let device = torch_ext::cuda::device(&self.device)?;
        let (name, mut encoders) = self.encoder(device, context)?;
        let Classes { names, items, mut set, n_broken } = classes(root, self.held_out, &name, &mut encoders, context)?;
        warn_of_unfamiliar(&encoders);
        let pin = self.pin(&name, &mut encoders, set.records().ncols())?;
        let (held_out, training) =
            split(&names, set.targets().as_slice().unwrap_or_default(), &n_broken, self.held_out, self.seed)?;
        if !self.no_normalize {
            normalize_rows(&mut set.records);
        }

        let options = ProbeOptions {
            regularization: self.regularization,
            max_iterations: self.max_iterations.unwrap_or(MAX_ITERATIONS) as usize,
        };
        let start = Instant::now();
        let bar = context.progress.bar("fitting", 2, "probes");
        let evaluation = match held_out.is_empty() {
            true => None,
            false => {
                let probe = self.probe(&options, &select(&set, &training))?;
                Some(probe.evaluate(&select(&set, &held_out), training.len()))
            }
        };
        bar.inc(1);
        context.interrupt.check(KEPT)?;
        let probe = self.probe(&options, &set)?;
        bar.finish();
        context.interrupt.check(KEPT)?;
        let seconds = start.elapsed().as_secs_f64();

        let clusters = names.into_iter().zip(probe.surest_first(&set));
        let clusters = clusters.map(|(name, members)| Cluster { name, members, folder: None }).collect();
        let regularization = self.regularization;
        let model = Model::Probe(Probe { probe, evaluation, classes: set.targets().to_vec(), regularization });
        let fitted = Fitted { model, clusters, disregarded: None, named: "named by their folders", seconds };
        let written = self.write(&output, &items, set.records().view(), &fitted, pin, context)?;
        if self.json {
            println!("{}", to_json(&written));
        }
        Ok(())
    }

    fn probe(&self, options: &ProbeOptions, set: &Labeled) -> Result<LinearProbe> {
        let probe: LinearProbe = options.fit(set)?;
        if probe.gradient > MAX_GRADIENT {
            tracing::warn!(
                "the linear probe had not converged after {} iterations: raise --max-iterations or --regularization",
                options.max_iterations
            );
        }
        Ok(probe)
    }
}

/// Returns some rows of a data set.
fn select(set: &Labeled, rows: &[usize]) -> Labeled {
    Dataset::new(set.records().select(Axis(0), rows), set.targets().select(Axis(0), rows))
}
