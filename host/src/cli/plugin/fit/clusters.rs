//! Clusters of embeddings: k-means or a Gaussian mixture, for one number of clusters or for each of a range.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use linfa::traits::Fit as _;

use super::fitted::{Fitted, Model};
use super::report::{Table, table_document};
use super::source::{Items, KEPT, Points, images, matrix, texts};
use super::{FitArgs, From, Ks};
use crate::cli::plugin::rename::read_names;
use crate::cli::plugin::running::warn_of_unfamiliar;
use crate::context::Context;
use crate::encoders::Encoders;
use crate::plugin::fit::elbow::{ElbowRow, MixtureRow, silhouette};
use crate::plugin::fit::{
    Clustering, DIMENSIONS, Directions, FitError, KMeansOptions, Mixture, MixtureOptions, check_mixture,
    max_dimensions, normalize_rows,
};
use crate::text::to_json;

/// Maximum number of iterations by default.
const MAX_ITERATIONS: u32 = 300;

impl FitArgs {
    /// Fits clusters, and writes the plugin of one number of them.
    pub(super) fn fit_clusters(&self, ks: Ks, context: &Context) -> Result<()> {
        if let (Some(file), false) = (&self.names, ks.range) {
            read_names(file, ks.first)?;
        }
        let writes = !ks.range || self.output.is_some();
        ensure!(
            self.sheet.is_none() || (writes && self.from.images.is_some()),
            "--sheet shows the images of a plugin's clusters: it needs --images, and with a range of -k also -o"
        );
        let output = self.output()?;
        let device = torch_ext::cuda::device(&self.device)?;
        // A table for given embeddings needs no encoder, unless there are texts.
        let mut encoder = match writes || self.from.embeddings.is_none() || self.disregard.is_some() {
            true => Some(self.encoder(device, context)?),
            false => None,
        };
        let (items, mut points) = self.read(encoder.as_mut(), context)?;
        ensure!(
            points.records().nrows() >= ks.last,
            "{} has {} {}, but {} clusters need at least as many",
            self.from.path().display(),
            points.records().nrows(),
            items.unit(),
            ks.last
        );
        if let Some((name, encoders)) = &mut encoder {
            if let Items::Texts(texts) = &items {
                encoders.note_texts(name, texts)?;
            }
            warn_of_unfamiliar(encoders);
        }
        let disregarded = match (&self.disregard, &mut encoder) {
            (Some(file), Some((name, encoders))) => Some(self.directions(file, name, encoders, context)?),
            _ => None,
        };
        // The plugin's encoder is checked before the work.
        let pin = match (&mut encoder, writes) {
            (Some((name, encoders)), true) => Some(self.pin(name, encoders, points.records().ncols())?),
            _ => None,
        };
        if !self.no_normalize {
            normalize_rows(&mut points.records);
        }
        if let Some(directions) = &disregarded {
            directions.remove(&mut points.records, !self.no_normalize)?;
        }
        let (table, mut models) = match self.mixture {
            true => self.mixtures(ks, &points, context)?,
            false => self.k_means(ks, &points, context)?,
        };
        let chosen = if ks.range { table.best() } else { 0 };
        if ks.range && !self.json {
            print!("{}", table.text());
        }
        let written = match pin {
            Some(pin) => {
                let fitted = self.named(models.swap_remove(chosen), table.seconds(chosen), &items, &points)?;
                let fitted = Fitted { disregarded, ..fitted };
                Some(self.write(&output, &items, points.records().view(), &fitted, pin, context)?)
            }
            None => None,
        };
        match (self.json, ks.range) {
            (true, true) => println!("{}", to_json(&table_document(&points, &table, written))),
            (true, false) => println!("{}", to_json(&written.unwrap_or_default())),
            (false, true) if !writes => {
                let best = if self.mixture { "that with the lowest BIC" } else { "the elbow's" };
                let hint = format!("no plugin was written: run it again with one -k, or with -o FILE for {best}");
                context.progress.println(hint);
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads the data to cluster; there is an encoder unless the data is embeddings.
    fn read(&self, encoder: Option<&mut (String, Encoders)>, context: &Context) -> Result<(Items, Points)> {
        match (&self.from, encoder) {
            (From { images: Some(folder), .. }, Some((name, encoders))) => images(folder, name, encoders, context),
            (From { texts: Some(file), .. }, Some((name, encoders))) => texts(file, name, encoders, context),
            (from, _) => Ok((Items::Embeddings, matrix(from.path(), "embeddings")?.into())),
        }
    }

    /// Returns the directions in which the embeddings of a file's texts differ.
    fn directions(&self, file: &Path, encoder: &str, encoders: &mut Encoders, context: &Context) -> Result<Directions> {
        let (_, mut texts) = texts(file, encoder, encoders, context)?;
        let n = texts.records().nrows();
        ensure!(n >= 2, "{} has one text: at least two are needed to differ", file.display());
        if !self.no_normalize {
            normalize_rows(&mut texts.records);
        }
        Directions::between(&texts.records).with_context(|| format!("{}", file.display()))
    }

    /// Fits k-means for each k.
    fn k_means(&self, ks: Ks, points: &Points, context: &Context) -> Result<(Table, Vec<Model>)> {
        let init = self.init.as_deref().map(|file| matrix(file, "centers")).transpose()?;
        if let (Some(file), Some(init)) = (&self.init, &init) {
            let k = init.nrows();
            ensure!(
                ks.first == ks.last && ks.last == k,
                "--init {} has {k} centers, but -k is another number",
                file.display()
            );
        }
        let runs = if init.is_some() { 1 } else { self.runs };
        let bar = context.progress.bar("clustering", (ks.last - ks.first + 1) as u64 * u64::from(runs), "starts");
        let (mut rows, mut models) = (vec![], vec![]);
        for k in ks.first..=ks.last {
            let after_run = |_: usize, inertia: f64| {
                bar.message(format!("k {k}, inertia {inertia:.4}"));
                bar.inc(1);
                !context.interrupt.requested()
            };
            let options = KMeansOptions {
                k,
                start: init.as_ref(),
                runs: runs as usize,
                max_iterations: self.max_iterations.unwrap_or(MAX_ITERATIONS) as usize,
                tolerance: self.tolerance,
                seed: self.seed,
                after_run: &after_run,
            };
            let start = Instant::now();
            let found: Clustering = options.fit(points)?;
            let seconds = start.elapsed().as_secs_f64();
            context.interrupt.check(KEPT)?;
            rows.push(ElbowRow {
                k,
                inertia: found.inertia,
                silhouette: silhouette(points.records().view(), &found.labels),
                iterations: found.iterations,
                seconds,
            });
            models.push(Model::KMeans(found));
        }
        bar.finish();
        Ok((Table::KMeans(rows), models))
    }

    /// Fits a mixture for each k, all in the same projection, so that they can be compared.
    fn mixtures(&self, ks: Ks, points: &Points, context: &Context) -> Result<(Table, Vec<Model>)> {
        let (n, dim) = points.records().dim();
        let default = DIMENSIONS.min(max_dimensions(n, ks.last, dim));
        let dimensions = self.dimensions.map_or(default, |dimensions| dimensions as usize);
        // The largest k needs the most points: it is checked before the work.
        check_mixture(n, dim, ks.last, dimensions)?;
        let n_runs = (ks.last - ks.first + 1) as u64 * u64::from(self.runs);
        let bar = context.progress.bar("fitting mixtures", n_runs, "starts");
        let (mut rows, mut models) = (vec![], vec![]);
        for k in ks.first..=ks.last {
            let after_run = |_: usize, log_likelihood: f64| {
                bar.message(format!("k {k}, log-likelihood {log_likelihood:.4}"));
                bar.inc(1);
                !context.interrupt.requested()
            };
            let options = MixtureOptions {
                k,
                dimensions,
                runs: self.runs as usize,
                max_iterations: self.max_iterations.unwrap_or(MAX_ITERATIONS) as usize,
                tolerance: self.tolerance,
                ridge: self.ridge,
                seed: self.seed,
                after_run: &after_run,
            };
            let start = Instant::now();
            let found: Result<Mixture, FitError> = options.fit(points);
            let seconds = start.elapsed().as_secs_f64();
            context.interrupt.check(KEPT)?;
            let found = found?;
            rows.push(MixtureRow {
                k,
                log_likelihood: found.log_likelihood,
                bic: found.bic(),
                silhouette: silhouette(points.records().view(), &found.labels),
                seconds,
            });
            models.push(Model::Mixture(found));
        }
        bar.finish();
        Ok((Table::Mixture(rows), models))
    }

    /// Names the clusters of a model.
    fn named(&self, model: Model, seconds: f64, items: &Items, points: &Points) -> Result<Fitted> {
        let rows = points.records().view();
        let (labels, members) = match &model {
            Model::KMeans(found) => (&found.labels, found.nearest_first(rows)),
            Model::Mixture(mixture) => (&mixture.labels, mixture.densest_first(rows)),
            Model::Probe(_) => unreachable!("a probe has classes"),
        };
        let (k, empty) = (members.len(), members.iter().filter(|members| members.is_empty()).count());
        let unit = items.unit();
        match model {
            Model::Mixture(_) => ensure!(
                empty == 0,
                "{empty} of {k} components are the most probable one of none of the {unit}: use a smaller -k"
            ),
            _ => ensure!(
                empty == 0,
                "{empty} of {k} clusters are empty: the {unit} have too few distinct embeddings, use a smaller -k"
            ),
        }
        let (order, mut clusters, mut named) = items.name(labels, &members);
        if let Some(file) = &self.names {
            let names = read_names(file, clusters.len())?;
            clusters.iter_mut().zip(names).for_each(|(cluster, name)| cluster.name = name);
            named = "named by --names";
        }
        let model = match model {
            Model::KMeans(found) => Model::KMeans(found.reordered(&order)),
            Model::Mixture(mixture) => Model::Mixture(mixture.reordered(&order)),
            probe @ Model::Probe(_) => probe,
        };
        Ok(Fitted { model, clusters, disregarded: None, named, seconds })
    }
}
