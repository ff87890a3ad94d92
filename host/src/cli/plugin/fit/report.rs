//! The report of a fit: the plugin's clusters, or the table by number of clusters.

use std::path::Path;

use ndarray::Array2;
use serde_json::{Value, json};

use super::source::{Cluster, Items};
use crate::plugin::fit::Clustering;
use crate::plugin::fit::elbow::{ElbowRow, elbow, most_separate};
use crate::text::{counted, size};

/// Length of a full bar in characters.
const BAR: usize = 32;

/// Maximum number of characters of the texts shown for a cluster.
const TEXTS: usize = 60;

/// Maximum number of texts of a cluster in the JSON.
const NEAREST: usize = 10;

/// A written plugin.
pub(super) struct Written<'a> {
    pub plugin: &'a Path,
    pub bytes: usize,
    pub sheet: Option<&'a Path>,
    pub found: &'a Clustering,
    pub clusters: &'a [Cluster],
    /// How the clusters are named.
    pub named: &'static str,
    pub items: &'a Items,
    pub seconds: f64,
}

impl Written<'_> {
    /// Returns the report as lines of text.
    pub(super) fn lines(&self) -> Vec<String> {
        let unit = self.items.unit();
        let n: usize = self.clusters.iter().map(|cluster| cluster.members.len()).sum();
        let width = self.clusters.iter().map(|cluster| cluster.name.chars().count()).max().unwrap_or(0).min(40);
        let line = |cluster: &Cluster| {
            let note = match self.items {
                Items::Texts(texts) => listed(cluster.members.iter().map(|&i| texts[i].as_str())),
                _ => note(cluster).unwrap_or_default(),
            };
            format!("  {:<width$}  {:>6} {unit}  {note}", cluster.name, cluster.members.len()).trim_end().to_owned()
        };
        let mut lines: Vec<String> = self.clusters.iter().map(line).collect();
        lines.push(format!(
            "{}: {} clusters of {n} {unit}, {}; inertia {:.4}, {}; {}",
            self.plugin.display(),
            self.clusters.len(),
            self.named,
            self.found.inertia,
            counted(self.found.iterations as u64, "iteration"),
            size(self.bytes),
        ));
        lines.extend(self.sheet.map(|sheet| format!("{}: contact sheet of the clusters", sheet.display())));
        lines
    }

    /// Returns the report as JSON.
    pub(super) fn document(&self) -> Value {
        let cluster = |cluster: &Cluster| {
            let mut value = json!({ "style": cluster.name, self.items.unit(): cluster.members.len() });
            match self.items {
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
        };
        json!({
            "plugin": self.plugin.to_string_lossy(),
            "bytes": self.bytes,
            "sheet": self.sheet.map(|sheet| sheet.to_string_lossy()),
            self.items.unit(): self.found.labels.len(),
            "inertia": self.found.inertia,
            "iterations": self.found.iterations,
            "seconds": self.seconds,
            "names": self.named,
            "clusters": self.clusters.iter().map(cluster).collect::<Vec<_>>(),
        })
    }
}

/// Returns the folder that most of a cluster belongs to, with its share.
pub(super) fn note(cluster: &Cluster) -> Option<String> {
    cluster.folder.as_ref().map(|(folder, share)| match *share >= 0.5 {
        true => format!("{:.0} % {folder}", share * 100.0),
        false => format!("at most {:.0} % of a folder", share * 100.0),
    })
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

/// Returns the table of inertia by number of clusters.
pub(super) fn table(rows: &[ElbowRow]) -> String {
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
    if rows.len() > 1 {
        text += &match elbow(rows) {
            Some(k) => format!("elbow at k = {k}"),
            None => "no elbow".to_owned(),
        };
        if let Some(k) = most_separate(rows) {
            text += &format!(", highest silhouette at k = {k}");
        }
        text.push('\n');
    }
    text
}

/// Returns the table as JSON.
pub(super) fn table_document(points: &Array2<f32>, rows: &[ElbowRow], written: Option<Value>) -> Value {
    let row = |row: &ElbowRow| {
        json!({
            "k": row.k,
            "inertia": row.inertia,
            "silhouette": row.silhouette,
            "iterations": row.iterations,
            "seconds": row.seconds,
        })
    };
    json!({
        "points": points.nrows(),
        "dim": points.ncols(),
        "table": rows.iter().map(row).collect::<Vec<_>>(),
        "elbow": elbow(rows),
        "most_separate": most_separate(rows),
        "fit": written,
    })
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
        assert_eq!(table(&rows).lines().collect::<Vec<_>>(), expected);
        assert_eq!(table(&rows[..1]).lines().collect::<Vec<_>>(), expected[..2]);
    }

    #[test]
    fn long_lists_are_truncated() {
        let texts = ["a painting of a quiet harbour", "a painting of a quiet village", "fog"];
        assert_eq!(listed(texts.into_iter()), "a painting of a quiet harbour, a painting of a quiet village, …");
        assert_eq!(listed(["fog", "sun"].into_iter()), "fog, sun");
    }
}
