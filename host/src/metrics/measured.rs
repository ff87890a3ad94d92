//! What plugins, encoders and networks say of each image of a set, column by column.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use ndarray::{Array2, Axis, concatenate};

use crate::processes::Processes;

/// A column: one row of numbers per image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    /// What the plugin of this name returns: log-probabilities, n × styles, or the rewards of a scorer, n × 1. The reward of an
    /// image is the mean of its row.
    Plugin(String),
    /// Raw embeddings of the images by the encoder of this name, n × dim.
    Embedding(String),
    /// Cosines of the embeddings of image and prompt by the encoder of this name, n × 1.
    PromptSimilarity(String),
    /// The scores of the network of this name, n × 1.
    Network(&'static str),
}

impl Column {
    /// Returns the column in words, for messages.
    pub fn in_words(&self) -> String {
        match self {
            Self::Plugin(name) => format!("result of plugin {name}"),
            Self::Embedding(encoder) => format!("embedding by {encoder}"),
            Self::PromptSimilarity(encoder) => format!("prompt similarity by {encoder}"),
            Self::Network(name) => format!("score {name}"),
        }
    }
}

/// Columns of the same images.
#[derive(Clone, Debug, Default)]
pub struct Measured(BTreeMap<Column, Array2<f64>>);

impl Measured {
    /// Adds a column, or replaces it.
    pub fn insert(&mut self, column: Column, rows: Array2<f64>) {
        self.0.insert(column, rows);
    }

    /// Returns whether there is such a column.
    pub fn has(&self, column: &Column) -> bool {
        self.0.contains_key(column)
    }

    /// Returns the columns with their rows.
    pub fn iter(&self) -> impl Iterator<Item = (&Column, &Array2<f64>)> {
        self.0.iter()
    }

    /// Returns a column's rows.
    ///
    /// # Panics
    /// If the column was not measured.
    pub fn rows(&self, column: &Column) -> &Array2<f64> {
        self.0.get(column).unwrap_or_else(|| panic!("{column:?} was not measured"))
    }

    /// Returns the mean of each row of a column: the number itself, or the reward of a distribution's log-probabilities.
    ///
    /// # Panics
    /// If the column was not measured.
    pub fn means(&self, column: &Column) -> Vec<f64> {
        self.rows(column).mean_axis(Axis(1)).expect("a column has a width").to_vec()
    }

    /// Returns the rewards under the plugin of this name, if it was measured.
    pub fn rewards_of(&self, plugin: &str) -> Option<Vec<f64>> {
        let column = Column::Plugin(plugin.to_owned());
        self.has(&column).then(|| self.means(&column))
    }

    /// Returns columns of several parts as those of one.
    ///
    /// # Errors
    /// If a part lacks one of the columns, or a column has different widths.
    pub fn concatenated(parts: &[Self], columns: &[Column]) -> Result<Self> {
        let mut whole = Self::default();
        for column in columns.iter().filter(|_| !parts.is_empty()) {
            ensure!(parts.iter().all(|part| part.has(column)), "some images have no {}", column.in_words());
            let views: Vec<_> = parts.iter().map(|part| part.rows(column).view()).collect();
            whole.insert(column.clone(), concatenate(Axis(0), &views)?);
        }
        Ok(whole)
    }

    /// Returns the columns of all processes, by rank, as those of one; each process has columns of its own images, among the
    /// `known` ones. A column that a process with images lacks is left out.
    ///
    /// # Errors
    /// If another process ends before.
    pub fn gathered(&self, known: &[Column], processes: &Processes) -> Result<Self> {
        if processes.count() == 1 {
            return Ok(self.clone());
        }
        let position = |column: &Column| known.iter().position(|other| other == column);
        let own = self.0.iter().filter_map(|(column, rows)| {
            Some((position(column)?, rows.ncols(), rows.iter().copied().collect::<Vec<f64>>()))
        });
        let gathered = processes.gather(own.collect::<Vec<_>>())?;
        let part = |columns: Vec<(usize, usize, Vec<f64>)>| {
            let mut part = Self::default();
            for (position, width, values) in columns {
                let rows = Array2::from_shape_vec((values.len() / width.max(1), width), values)?;
                part.insert(known[position].clone(), rows);
            }
            anyhow::Ok(part)
        };
        let parts: Vec<Self> =
            gathered.into_iter().filter(|columns| !columns.is_empty()).map(part).collect::<Result<_>>()?;
        let whole: Vec<Column> =
            known.iter().filter(|column| parts.iter().all(|part| part.has(column))).cloned().collect();
        Self::concatenated(&parts, &whole)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn parts_are_concatenated_in_order() {
        let part = |value: f64| {
            let mut part = Measured::default();
            part.insert(Column::Plugin("p".to_owned()), array![[value, value + 2.0]]);
            part
        };
        let columns = [Column::Plugin("p".to_owned())];
        let whole = Measured::concatenated(&[part(1.0), part(5.0)], &columns).expect("the same columns");
        assert_eq!(whole.means(&columns[0]), [2.0, 6.0]);
        let message = Measured::concatenated(&[part(1.0), Measured::default()], &columns).expect_err("one lacks it");
        assert_eq!(message.to_string(), "some images have no result of plugin p");
    }
}
