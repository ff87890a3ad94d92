//! The report of a fit: the plugin's clusters or classes, or the table by number of clusters.

use std::path::Path;

use serde_json::{Value, json};

use super::fitted::{Fitted, Model, Probe, recalled};
use super::source::{Cluster, Items, Points};
use crate::plugin::fit::elbow::{ElbowRow, MixtureRow, elbow, most_separate};
use crate::plugin::fit::{Evaluation, recall};
use crate::text::{counted, number, size};

/// Length of a full bar in characters.
const BAR: usize = 32;

/// Maximum number of characters of the texts shown for a cluster.
const TEXTS: usize = 60;

/// Maximum number of texts of a cluster in the JSON.
const NEAREST: usize = 10;

/// Maximum number of other classes that the line of a class names.
const CONFUSED: usize = 3;

/// A written plugin.
pub(super) struct Written<'a> {
    pub plugin: &'a Path,
    pub bytes: usize,
    pub sheet: Option<&'a Path>,
    pub fitted: &'a Fitted,
    pub items: &'a Items,
}

impl Written<'_> {
    /// Returns the report as lines of text.
    pub(super) fn lines(&self) -> Vec<String> {
        let Fitted { model, clusters, named, .. } = self.fitted;
        let unit = self.items.unit();
        let width = clusters.iter().map(|cluster| cluster.name.chars().count()).max().unwrap_or(0).min(40);
        let line = |(i, cluster): (usize, &Cluster)| {
            let note = match (model, self.items) {
                (Model::Probe(Probe { evaluation: Some(evaluation), .. }), _) => confused(evaluation, i, clusters),
                (_, Items::Texts(texts)) => listed(cluster.members.iter().map(|&i| texts[i].as_str())),
                _ => cluster.note().unwrap_or_default(),
            };
            format!("  {:<width$}  {:>6} {unit}  {note}", cluster.name, cluster.members.len()).trim_end().to_owned()
        };
        let mut lines: Vec<String> = clusters.iter().enumerate().map(line).collect();
        let details = match model {
            Model::KMeans(found) => {
                let iterations = counted(found.iterations as u64, "iteration");
                let disregarded = self.fitted.disregarded.as_ref().map(|directions| {
                    format!(", {} disregarded", counted(directions.matrix.nrows() as u64, "direction"))
                });
                format!("{named}; inertia {:.4}, {iterations}{}", found.inertia, disregarded.unwrap_or_default())
            }
            Model::Mixture(mixture) => format!(
                "{named}; mean log-likelihood {:.4} in {} with {} % of the variance",
                mixture.log_likelihood,
                counted(mixture.means.ncols() as u64, "dimension"),
                number(100.0 * mixture.projection.explained.sum(), 0)
            ),
            Model::Probe(Probe { evaluation: Some(evaluation), .. }) => {
                let n: usize = evaluation.confusion.iter().flatten().sum();
                format!(
                    "fitted to all of them. A probe of {} predicts {} % of the {n} others correctly (cross-entropy {:.4})",
                    evaluation.n_training,
                    number(100.0 * evaluation.accuracy, 1),
                    evaluation.cross_entropy
                )
            }
            Model::Probe(_) => "fitted to all of them, without an evaluation".to_owned(),
        };
        let count = self.fitted.count(self.items);
        lines.push(format!("{}: {count}, {details}; {}", self.plugin.display(), size(self.bytes)));
        let of = if matches!(model, Model::Probe(_)) { "classes" } else { "clusters" };
        lines.extend(self.sheet.map(|sheet| format!("{}: contact sheet of the {of}", sheet.display())));
        lines
    }

    /// Returns the report as JSON.
    pub(super) fn document(&self) -> Value {
        let Fitted { model, clusters, named, seconds, disregarded } = self.fitted;
        let n: usize = clusters.iter().map(|cluster| cluster.members.len()).sum();
        let mut document = json!({
            "plugin": self.plugin.to_string_lossy(),
            "bytes": self.bytes,
            "sheet": self.sheet.map(|sheet| sheet.to_string_lossy()),
            self.items.unit(): n,
            "seconds": seconds,
            "names": named,
        });
        let mut rows: Vec<Value> = clusters.iter().map(|cluster| self.cluster(cluster)).collect();
        match model {
            Model::KMeans(found) => {
                document["method"] = json!("k-means");
                document["inertia"] = json!(found.inertia);
                document["iterations"] = json!(found.iterations);
                document["disregarded_directions"] = json!(disregarded.as_ref().map_or(0, |it| it.matrix.nrows()));
            }
            Model::Mixture(mixture) => {
                document["method"] = json!("mixture");
                document["log_likelihood"] = json!(mixture.log_likelihood);
                document["bic"] = json!(mixture.bic());
                document["dimensions"] = json!(mixture.means.ncols());
                document["explained_variance"] = json!(mixture.projection.explained.sum());
                let weights = mixture.log_weights.iter().map(|weight| weight.exp());
                rows.iter_mut().zip(weights).for_each(|(row, weight)| row["weight"] = json!(weight));
            }
            Model::Probe(probe) => {
                document["method"] = json!("linear-probe");
                document["regularization"] = json!(probe.regularization);
                document["held_out"] = json!(probe.evaluation.as_ref().map(evaluated));
                for (i, row) in rows.iter_mut().enumerate() {
                    let counts = probe.evaluation.as_ref().map(|evaluation| &evaluation.confusion[i]);
                    row["held_out"] = json!(counts.map(|counts| counts.iter().sum::<usize>()));
                    row["recall"] = json!(counts.and_then(|counts| recall(counts, i)));
                }
            }
        }
        let key = if matches!(model, Model::Probe(_)) { "classes" } else { "clusters" };
        document[key] = json!(rows);
        document
    }

    fn cluster(&self, cluster: &Cluster) -> Value {
        let mut value = json!({ "style": cluster.name, self.items.unit(): cluster.members.len() });
        match self.items {
            Items::Images { .. } if matches!(self.fitted.model, Model::Probe(_)) => {}
            Items::Images { .. } => {
                let (folder, share) = cluster.folder.clone().unwrap_or_default();
                value["folder"] = json!(folder);
                value["folder_share"] = json!(share);
            }
            Items::Texts(texts) => {
                let nearest = cluster.members.iter().take(NEAREST).map(|&i| &texts[i]);
                value["nearest"] = json!(nearest.collect::<Vec<_>>());
            }
            Items::Embeddings => {}
        }
        value
    }
}

/// Returns an evaluation as JSON.
fn evaluated(evaluation: &Evaluation) -> Value {
    json!({
        "images": evaluation.confusion.iter().flatten().sum::<usize>(),
        "training_images": evaluation.n_training,
        "accuracy": evaluation.accuracy,
        "balanced_accuracy": evaluation.balanced_accuracy,
        "cross_entropy": evaluation.cross_entropy,
        "confusion": evaluation.confusion,
    })
}

/// Returns a class's row of the confusion matrix: its recall, and the classes that were predicted instead.
fn confused(evaluation: &Evaluation, class: usize, clusters: &[Cluster]) -> String {
    let row = &evaluation.confusion[class];
    let mut others: Vec<usize> = (0..row.len()).filter(|&other| other != class && row[other] > 0).collect();
    others.sort_by(|&a, &b| row[b].cmp(&row[a]).then(a.cmp(&b)));
    let named = others.iter().take(CONFUSED).map(|&other| format!("{} as {}", row[other], clusters[other].name));
    let mut parts: Vec<String> = recalled(evaluation, class).into_iter().chain(named).collect();
    if others.len() > CONFUSED {
        let more: usize = others[CONFUSED..].iter().map(|&other| row[other]).sum();
        parts.push(format!("{more} as others"));
    }
    parts.join(", ")
}

/// Joins texts until the line is full.
fn listed<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut line = String::new();
    for text in texts {
        if !line.is_empty() && line.chars().count() + text.chars().count() > TEXTS {
            return line + ", …";
        }
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(text);
    }
    line
}

/// The table by number of clusters.
pub(super) enum Table {
    KMeans(Vec<ElbowRow>),
    Mixture(Vec<MixtureRow>),
}

impl Table {
    /// Returns the index of the row to write: the elbow's or, of mixtures, the one with the lowest BIC.
    pub(super) fn best(&self) -> usize {
        match self {
            Self::KMeans(rows) => elbow(rows).and_then(|k| rows.iter().position(|row| row.k == k)).unwrap_or(0),
            Self::Mixture(rows) => (0..rows.len()).min_by(|&a, &b| rows[a].bic.total_cmp(&rows[b].bic)).unwrap_or(0),
        }
    }

    /// Returns the wall-clock time of a row's runs.
    pub(super) fn seconds(&self, row: usize) -> f64 {
        match self {
            Self::KMeans(rows) => rows[row].seconds,
            Self::Mixture(rows) => rows[row].seconds,
        }
    }

    fn most_separate(&self) -> Option<usize> {
        match self {
            Self::KMeans(rows) => most_separate(rows.iter().map(|row| (row.k, row.silhouette))),
            Self::Mixture(rows) => most_separate(rows.iter().map(|row| (row.k, row.silhouette))),
        }
    }

    /// Returns the table as text.
    pub(super) fn text(&self) -> String {
        let (mut text, best) = match self {
            Self::KMeans(rows) => {
                let best = elbow(rows).map_or("no elbow".to_owned(), |k| format!("elbow at k = {k}"));
                (inertias(rows), (rows.len() > 1).then_some(best))
            }
            Self::Mixture(rows) => {
                (likelihoods(rows), (rows.len() > 1).then(|| format!("lowest BIC at k = {}", rows[self.best()].k)))
            }
        };
        if let Some(best) = best {
            text += &best;
            if let Some(k) = self.most_separate() {
                text += &format!(", highest silhouette at k = {k}");
            }
            text.push('\n');
        }
        text
    }
}

/// Returns the inertia by number of clusters.
fn inertias(rows: &[ElbowRow]) -> String {
    let max_inertia = rows.iter().map(|row| row.inertia).fold(0.0, f64::max);
    let width = format!("{max_inertia:.4}").len().max("inertia".len());
    let mut text = format!("{:>5}  {:>width$}  {:>7}  {:>10}\n", "k", "inertia", "drop", "silhouette");
    let mut previous = None;
    for row in rows {
        let drop = previous.map_or(String::new(), |before: f64| match before > 0.0 {
            true => format!("{:.1} %", (1.0 - row.inertia / before) * 100.0),
            false => String::new(),
        });
        previous = Some(row.inertia);
        let length = if max_inertia > 0.0 { (row.inertia / max_inertia * BAR as f64).round() as usize } else { 0 };
        let line = format!(
            "{:>5}  {:>width$.4}  {drop:>7}  {:>10.4}  {}",
            row.k,
            row.inertia,
            row.silhouette,
            "█".repeat(length)
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Returns the likelihood by number of components.
fn likelihoods(rows: &[MixtureRow]) -> String {
    let width = rows.iter().map(|row| format!("{:.0}", row.bic).len()).max().unwrap_or(0).max("BIC".len());
    let mut text = format!("{:>5}  {:>14}  {:>width$}  {:>10}\n", "k", "log-likelihood", "BIC", "silhouette");
    for row in rows {
        let (k, log_likelihood, bic, silhouette) = (row.k, row.log_likelihood, row.bic, row.silhouette);
        text += &format!("{k:>5}  {log_likelihood:>14.4}  {bic:>width$.0}  {silhouette:>10.4}\n");
    }
    text
}

/// Returns the table as JSON.
pub(super) fn table_document(points: &Points, table: &Table, written: Option<Value>) -> Value {
    let (n, dim) = points.records().dim();
    let mut document = json!({ "points": n, "dim": dim });
    match table {
        Table::KMeans(rows) => {
            let row = |row: &ElbowRow| {
                json!({
                    "k": row.k,
                    "inertia": row.inertia,
                    "silhouette": row.silhouette,
                    "iterations": row.iterations,
                    "seconds": row.seconds,
                })
            };
            document["table"] = json!(rows.iter().map(row).collect::<Vec<_>>());
            document["elbow"] = json!(elbow(rows));
        }
        Table::Mixture(rows) => {
            let row = |row: &MixtureRow| {
                json!({
                    "k": row.k,
                    "log_likelihood": row.log_likelihood,
                    "bic": row.bic,
                    "silhouette": row.silhouette,
                    "seconds": row.seconds,
                })
            };
            document["table"] = json!(rows.iter().map(row).collect::<Vec<_>>());
            document["lowest_bic"] = json!(rows.get(table.best()).map(|row| row.k));
        }
    }
    document["most_separate"] = json!(table.most_separate());
    document["fit"] = json!(written);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let row =
            |k: usize, inertia: f64, silhouette: f64| ElbowRow { k, inertia, silhouette, iterations: 3, seconds: 0.5 };
        let rows = [
            row(2, 1234.5, 0.31),
            row(3, 700.25, 0.455),
            row(4, 300.0, 0.6),
            row(5, 280.0, 0.41),
            row(12, 90.125, -0.02),
        ];
        let expected = [
            "    k    inertia     drop  silhouette",
            "    2  1234.5000               0.3100  ████████████████████████████████",
            "    3   700.2500   43.3 %      0.4550  ██████████████████",
            "    4   300.0000   57.2 %      0.6000  ████████",
            "    5   280.0000    6.7 %      0.4100  ███████",
            "   12    90.1250   67.8 %     -0.0200  ██",
            "elbow at k = 4, highest silhouette at k = 4",
        ];
        let one = Table::KMeans(rows[..1].to_vec());
        let all = Table::KMeans(rows.to_vec());
        assert_eq!((all.text().lines().collect::<Vec<_>>(), all.best()), (expected.to_vec(), 2));
        assert_eq!(one.text().lines().collect::<Vec<_>>(), expected[..2]);
    }

    #[test]
    fn the_table_of_mixtures_lines_up() {
        let row = |k: usize, log_likelihood: f64, bic: f64, silhouette: f64| MixtureRow {
            k,
            log_likelihood,
            bic,
            silhouette,
            seconds: 0.5,
        };
        let rows = vec![row(2, -9.25, 27515.4, 0.31), row(3, -8.5, 25594.0, 0.45), row(12, -8.4375, 100_543.0, 0.5)];
        let expected = [
            "    k  log-likelihood     BIC  silhouette",
            "    2         -9.2500   27515      0.3100",
            "    3         -8.5000   25594      0.4500",
            "   12         -8.4375  100543      0.5000",
            "lowest BIC at k = 3, highest silhouette at k = 12",
        ];
        assert_eq!(Table::Mixture(rows).text().lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_line_of_a_class_is_its_row_of_the_confusion_matrix() {
        let evaluation = Evaluation {
            n_training: 80,
            confusion: vec![
                vec![9, 1, 0, 0, 2, 1],
                vec![0; 6],
                vec![0; 6],
                vec![0; 6],
                vec![0; 6],
                vec![0, 0, 0, 0, 0, 7],
            ],
            accuracy: 0.0,
            balanced_accuracy: 0.0,
            cross_entropy: 0.0,
        };
        let class = |name: &&str| Cluster { name: (*name).to_owned(), members: vec![], folder: None };
        let classes: Vec<Cluster> = ["a", "b", "c", "d", "e", "f"].iter().map(class).collect();
        assert_eq!(confused(&evaluation, 0, &classes), "recall 69 % of 13 held out, 2 as e, 1 as b, 1 as f");
        assert_eq!(confused(&evaluation, 5, &classes), "recall 100 % of 7 held out");
        assert_eq!(confused(&evaluation, 1, &classes), "");
    }

    #[test]
    fn long_lists_are_truncated() {
        let texts = ["a painting of a quiet harbour", "a painting of a quiet village", "fog"];
        assert_eq!(listed(texts.into_iter()), "a painting of a quiet harbour, a painting of a quiet village, …");
        assert_eq!(listed(["fog", "sun"].into_iter()), "fog, sun");
    }
}
