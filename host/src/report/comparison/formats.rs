//! Tables as CSV and as LaTeX. What others wrote, the names of plugins and runs, is text in both: no formula, no command.

use std::fmt::Write as _;

use super::tables::{Cell, Table};
use crate::text::escaped;

/// Returns the tables as one table of CSV (RFC 4180): a line for each row's label, two columns for each column, empty where
/// there is no value.
pub(super) fn csv(tables: &[Table]) -> String {
    let mut labels: Vec<(&str, &str)> = Vec::new();
    for row in tables.iter().flat_map(|table| &table.rows) {
        if !labels.iter().any(|(label, _)| *label == row.label) {
            labels.push((&row.label, &row.runs));
        }
    }
    let mut head = vec![field("Reward"), field("Runs")];
    for table in tables {
        for name in &table.head {
            let name =
                if table.title == "Transfer" { format!("Transfer to {name}, standard errors") } else { name.clone() };
            head.extend([field(&name), field(&format!("{name} ±"))]);
        }
    }
    let mut text = head.join(",") + "\r\n";
    for (label, runs) in labels {
        let mut line = vec![field(label), field(runs)];
        for table in tables {
            let row = table.rows.iter().find(|row| row.label == label);
            for column in 0..table.head.len() {
                let cell = row.and_then(|row| row.cells.get(column));
                let number = |of: fn(&Cell) -> Option<f64>| cell.and_then(of).map_or_else(String::new, significant);
                line.extend([number(|cell| cell.value), number(|cell| cell.plus_minus)]);
            }
        }
        text += &(line.join(",") + "\r\n");
    }
    text
}

/// Returns a text as a field. A spreadsheet would compute one that begins as a formula does, so that it gets an apostrophe.
fn field(text: &str) -> String {
    let text = escaped(text);
    let is_formula =
        text.trim_start().starts_with(['=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}']);
    let text = if is_formula { format!("'{text}") } else { text.into_owned() };
    match text.contains([',', '"', '\n', '\r', ';']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

/// Returns a number with six significant digits.
fn significant(value: f64) -> String {
    let rounded: f64 = format!("{value:.5e}").parse().unwrap_or(value);
    rounded.to_string()
}

/// Returns the tables as LaTeX, which needs the package booktabs. Why a value is missing is in comments.
pub(super) fn latex(tables: &[Table]) -> String {
    let mut text = "% \\usepackage{booktabs}\n".to_owned();
    for table in tables.iter().filter(|table| !table.head.is_empty()) {
        let columns = "r".repeat(table.head.len());
        let head: Vec<String> = table.head.iter().map(|name| tex(name)).collect();
        write!(
            text,
            "\n\\begin{{table}}\n\\centering\n\\caption{{{}. {}}}\n\\begin{{tabular}}{{l{columns}}}\n\\toprule\nReward & {} \
             \\\\\n\\midrule\n",
            tex(table.title),
            tex(&table.caption),
            head.join(" & ")
        )
        .expect("a string grows");
        for row in &table.rows {
            let cells: Vec<String> = row.cells.iter().map(math).collect();
            text += &format!("{} & {} \\\\\n", tex(&row.label), cells.join(" & "));
            for (name, cell) in table.head.iter().zip(&row.cells) {
                let note = if cell.value.is_none() { &cell.note } else { &cell.part };
                if !note.is_empty() {
                    // A comment ends with its line, and the escaped text has no line breaks.
                    text += &format!("% {}: {}\n", escaped(name), escaped(note));
                }
            }
        }
        text += "\\bottomrule\n\\end{tabular}\n\\end{table}\n";
    }
    text
}

/// Returns a cell as a formula.
fn math(cell: &Cell) -> String {
    let plain = |shown: &str| shown.replace('−', "-");
    match (cell.value, &*cell.shown_plus_minus) {
        (None, _) => "--".to_owned(),
        (Some(_), "") => format!("${}$", plain(&cell.shown)),
        (Some(_), half) => format!("${} \\pm {}$", plain(&cell.shown), plain(half)),
    }
}

/// Returns a text for LaTeX: each character that is a command is written as the one that prints it.
fn tex(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in escaped(text).chars() {
        match character {
            '\\' => shown += "\\textbackslash{}",
            '{' | '}' | '$' | '&' | '#' | '_' | '%' => shown.extend(['\\', character]),
            // After the end of a row, these would be its options.
            '[' | ']' | '*' => shown.extend(['{', character, '}']),
            '^' => shown += "\\textasciicircum{}",
            '~' => shown += "\\textasciitilde{}",
            '<' => shown += "\\textless{}",
            '>' => shown += "\\textgreater{}",
            '|' => shown += "\\textbar{}",
            // Some languages make a command of it.
            '"' => shown += "\\symbol{34}",
            '−' => shown += "$-$",
            '±' => shown += "$\\pm$",
            '×' => shown += "$\\times$",
            // Two hyphens would become a dash.
            '-' if shown.ends_with('-') => shown += "{}-",
            _ => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_no_formula_and_no_second_field() {
        for (text, expected) in [
            ("kmeans_image", "kmeans_image"),
            ("=1+1", "'=1+1"),
            (" +x", "' +x"),
            ("-x", "'-x"),
            ("@x", "'@x"),
            ("a,b", "\"a,b\""),
            ("=HYPERLINK(\"x\",\"y\")", "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\""),
            ("a\r\n=b", "a\\r\\n=b"),
            ("\t=b", "\\t=b"),
        ] {
            assert_eq!(field(text), expected);
        }
        assert_eq!([significant(-1.234_567_89), significant(4.0), significant(2.8e-5)], ["-1.23457", "4", "0.000028"]);
    }

    #[test]
    fn a_text_is_no_command() {
        assert_eq!(tex("kmeans_image"), "kmeans\\_image");
        assert_eq!(tex("[2cm]*"), "{[}2cm{]}{*}");
        assert_eq!(
            tex("\\input{x} $y$ 5 % #1 & a^b~c"),
            "\\textbackslash{}input\\{x\\} \\$y\\$ 5 \\% \\#1 \\& a\\textasciicircum{}b\\textasciitilde{}c"
        );
        assert_eq!(
            tex("a\u{202e}\n--b<c>"),
            "a\\textbackslash{}u\\{202e\\}\\textbackslash{}n-{}-b\\textless{}c\\textgreater{}"
        );
    }
}
