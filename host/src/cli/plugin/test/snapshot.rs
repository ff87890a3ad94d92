//! A distribution, or a score, as a small text file: one line per style, or one line.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// A distribution by style, in the plugin's order; or a score.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Snapshot {
    probabilities: Vec<(String, f64)>,
}

/// A style whose probability differs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Difference {
    style: String,
    was: Option<f64>,
    is: Option<f64>,
}

impl Snapshot {
    pub(super) fn new(styles: &[String], row: &[f64]) -> Self {
        Self { probabilities: styles.iter().cloned().zip(row.iter().copied()).collect() }
    }

    /// Returns the file's text: a comment, then a probability and a style per line.
    pub(super) fn text(&self, fixture: &str) -> String {
        let mut text = format!("# {fixture}, as the plugin classifies it; written by `host plugin test --accept`\n");
        for (style, p) in &self.probabilities {
            text += &format!("{p:.9}  {style}\n");
        }
        text
    }

    /// Parses the output of [`Snapshot::text`].
    pub(super) fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
        let probabilities = lines.map(|(i, line)| {
            let parsed = line.split_once("  ").and_then(|(p, style)| Some((style.to_owned(), p.parse().ok()?)));
            parsed.with_context(|| format!("line {} is not a probability and a style: {line}", i + 1))
        });
        let probabilities: Vec<(String, f64)> = probabilities.collect::<Result<_>>()?;
        ensure!(!probabilities.is_empty(), "it has no styles; remove it and write it again with --accept");
        Ok(Self { probabilities })
    }

    /// Returns the styles whose probabilities differ by more than `tolerance`, and those that one of the two lacks.
    pub(super) fn differences(&self, now: &Self, tolerance: f64) -> Vec<Difference> {
        let of = |snapshot: &Self, style: &str| {
            snapshot.probabilities.iter().find(|(name, _)| name == style).map(|&(_, p)| p)
        };
        let new = now.probabilities.iter().filter(|(style, _)| of(self, style).is_none());
        let styles = self.probabilities.iter().chain(new).map(|(style, _)| style);
        let differences =
            styles.map(|style| Difference { style: style.clone(), was: of(self, style), is: of(now, style) });
        // Numbers in the file are rounded to nine digits. No probability is above 1, but a score may be.
        let is_within = |d: &Difference, by: f64| by.abs() <= tolerance * d.was.unwrap_or(0.0).abs().max(1.0) + 5e-10;
        differences.filter(|d| d.difference().is_none_or(|by| !is_within(d, by))).collect()
    }
}

impl Difference {
    fn difference(&self) -> Option<f64> {
        Some(self.is? - self.was?)
    }

    /// Returns the cells of a row: style, was, is, difference.
    pub(super) fn cells(&self) -> Vec<String> {
        let shown = |p: Option<f64>| p.map_or_else(|| "-".to_owned(), |p| format!("{p:.7}"));
        let difference = match (self.was, self.is) {
            (None, _) => "new style".to_owned(),
            (_, None) => "missing".to_owned(),
            (Some(was), Some(is)) => format!("{:+.7}", is - was),
        };
        vec![self.style.clone(), shown(self.was), shown(self.is), difference]
    }

    /// Returns the difference as JSON.
    pub(super) fn document(&self) -> Value {
        json!({ "style": self.style, "was": self.was, "is": self.is })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(probabilities: &[(&str, f64)]) -> Snapshot {
        Snapshot { probabilities: probabilities.iter().map(|&(style, p)| (style.to_owned(), p)).collect() }
    }

    #[test]
    fn a_snapshot_is_read_as_it_was_written() {
        let written = snapshot(&[("pop art", 0.25), ("# odd  name", 1.0 / 3.0), ("c", 5.0 / 12.0)]);
        let read = Snapshot::parse(&written.text("a.png")).expect("a valid snapshot");
        assert_eq!(written.differences(&read, 0.0), []);
        let message = Snapshot::parse("# a.png\n0.5 cubism\n").expect_err("one space").to_string();
        assert_eq!(message, "line 2 is not a probability and a style: 0.5 cubism");
        assert!(Snapshot::parse("").is_err());
    }

    #[test]
    fn differences_name_style_before_and_after() {
        let (was, is) =
            (snapshot(&[("a", 0.5), ("b", 0.3), ("c", 0.2)]), snapshot(&[("a", 0.5), ("b", 0.4), ("d", 0.1)]));
        let cells: Vec<_> = was.differences(&is, 1e-5).iter().map(|d| d.cells().join(" ")).collect();
        assert_eq!(cells, ["b 0.3000000 0.4000000 +0.1000000", "c 0.2000000 - missing", "d - 0.1000000 new style"]);
        let near = snapshot(&[("a", 0.500_009), ("b", 0.299_991), ("c", 0.2)]);
        assert_eq!((was.differences(&near, 1e-5).len(), was.differences(&near, 1e-6).len()), (0, 2));
    }
}
