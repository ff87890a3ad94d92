//! What the classifier of the reward says of the monitor's images: the most probable styles of the first images, before and
//! after training, and the mean distributions by predicted style.

use serde::Serialize;

use crate::run::record::StylesMonitor;
use crate::run::{MAX_NAMED_STYLES, PluginsLock};
use crate::text::{NO_BREAK_SPACE, number};

/// Number of styles that are shown of an image.
const SHOWN: usize = 4;
/// Probability below which a style is not shown, unless it is the most probable one.
const VISIBLE: f64 = 0.005;
/// Number of steps of the color of a probability.
const STEPS: f64 = 10.0;

/// A style with its probability.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Likely {
    name: String,
    percent: String,
    /// The width of its bar in percent.
    width: f64,
}

/// The mean distributions of images by their most probable style.
#[derive(Debug, Serialize)]
pub(super) struct Confusion {
    columns: Vec<String>,
    rows: Vec<Row>,
}

/// The mean distribution of the images of one most probable style.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    cells: Vec<Heat>,
}

/// A probability as a cell whose color it decides.
#[derive(Debug, Serialize)]
struct Heat {
    percent: String,
    step: u8,
    title: String,
}

/// Returns the name of a style: a lock has no names of a classifier of many styles.
fn style_name(names: &[String], style: usize) -> String {
    names.get(style).cloned().unwrap_or_else(|| format!("style {}", style + 1))
}

/// Returns the names of the styles of the classifier that a monitor used.
pub(super) fn style_names<'a>(lock: &'a PluginsLock, styles: &StylesMonitor) -> &'a [String] {
    let plugin = lock.of_reward().find(|plugin| plugin.name == styles.plugin);
    plugin.map_or(&[], |plugin| &plugin.style_names)
}

/// Returns the most probable styles of each of the first images; `full` is the probability whose bar has the full width.
pub(super) fn likely(styles: &StylesMonitor, names: &[String], full: f64) -> Vec<Vec<Likely>> {
    let of_image = |distribution: &Vec<f64>| {
        let mut order: Vec<usize> = (0..distribution.len()).collect();
        order.sort_by(|&a, &b| distribution[b].total_cmp(&distribution[a]));
        let one = |style: usize| {
            let percent = 100.0 * distribution[style].clamp(0.0, 1.0);
            let shown = format!("{}{NO_BREAK_SPACE}%", number(percent, 0));
            let width = if full > 0.0 { (percent / full).min(100.0) } else { 0.0 };
            Likely { name: style_name(names, style), percent: shown, width: (10.0 * width).round() / 10.0 }
        };
        let (first, rest) = order.split_at(order.len().min(1));
        let visible = rest.iter().filter(|&&style| distribution[style] >= VISIBLE);
        first.iter().chain(visible).take(SHOWN).map(|&style| one(style)).collect()
    };
    styles.first.iter().map(of_image).collect()
}

/// Returns the largest probability of two monitors' distributions.
pub(super) fn largest(monitors: [&StylesMonitor; 2], of: fn(&StylesMonitor) -> &Vec<Vec<f64>>) -> f64 {
    monitors.into_iter().flat_map(|styles| of(styles).iter().flatten()).copied().fold(0.0, f64::max)
}

/// Returns the mean distributions by predicted style; none if no image has one, or there are too many styles. `full` is the
/// probability with the full color.
pub(super) fn confusion(styles: &StylesMonitor, names: &[String], full: f64) -> Option<Confusion> {
    let n = styles.confusion.len();
    if n > MAX_NAMED_STYLES as usize {
        return None;
    }
    let row = |(i, distribution): (usize, &Vec<f64>)| {
        let name = style_name(names, i);
        let cell = |(j, share): (usize, &f64)| {
            let share = share.clamp(0.0, 1.0);
            let rounded = (100.0 * share).round();
            Heat {
                percent: if rounded >= 1.0 { number(rounded, 0) } else { String::new() },
                step: (STEPS * (share / full.max(f64::MIN_POSITIVE)).min(1.0)).round() as u8,
                title: format!("{name} → {}: {} %", style_name(names, j), number(100.0 * share, 1)),
            }
        };
        let cells = distribution.iter().take(n).enumerate().map(cell).collect();
        Row { name: name.clone(), cells }
    };
    let shown = styles.confusion.iter().enumerate().filter(|(_, distribution)| distribution.len() == n);
    let rows: Vec<Row> = shown.map(row).collect();
    let columns = (0..n).map(|style| style_name(names, style)).collect();
    (!rows.is_empty()).then_some(Confusion { columns, rows })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn monitor(first: Vec<Vec<f64>>, confusion: Vec<Vec<f64>>) -> StylesMonitor {
        StylesMonitor { plugin: "k".to_owned(), coverage: 1.0, first, confusion }
    }

    #[test]
    fn the_most_probable_styles_come_first_and_a_style_without_a_name_has_its_number() {
        let names = ["cubism".to_owned(), "<b>".to_owned()];
        let found = likely(&monitor(vec![vec![0.1, 0.25, 0.05, 0.4, 0.2], vec![]], vec![]), &names, 0.8);
        let shown: Vec<(&str, &str)> = found[0].iter().map(|likely| (&*likely.name, &*likely.percent)).collect();
        let expected =
            [("style 4", "40\u{a0}%"), ("<b>", "25\u{a0}%"), ("style 5", "20\u{a0}%"), ("cubism", "10\u{a0}%")];
        assert_eq!((shown, found[1].len(), found[0][0].width), (expected.to_vec(), 0, 50.0));
    }

    #[test]
    fn styles_without_images_have_no_row() {
        let found = confusion(&monitor(vec![], vec![vec![0.996, 0.004], vec![]]), &[], 1.0).expect("one row");
        assert_eq!((found.columns.len(), found.rows.len()), (2, 1));
        let cells: Vec<(&str, u8)> = found.rows[0].cells.iter().map(|cell| (&*cell.percent, cell.step)).collect();
        assert_eq!(cells, [("100", 10), ("", 0)]);
        // Rows of a damaged file, and a classifier of too many styles.
        assert!(confusion(&monitor(vec![], vec![vec![0.5], vec![]]), &[], 1.0).is_none());
        assert!(confusion(&monitor(vec![], vec![vec![0.01; 65]; 65]), &[], 1.0).is_none());
    }
}
