//! Interface versions: a released version never changes, and a plugin that was built for it still loads.

use std::fs;

use ambiguity_host::plugin::Limits;
use ambiguity_host::plugin::artifact::supported_versions;
use ndarray::Array2;

use super::{load, means, two_images};
use crate::support::root;

/// `tests/guests/frozen-0.1.0.wasm` was built from `wit/frozen/0.1.0` alone and calls every function of it.
#[test]
fn a_plugin_built_for_0_1_0_keeps_loading() {
    let mut plugin =
        load(Limits::default(), &root().join("tests/guests/frozen-0.1.0.wasm"), &[]).expect("interface 0.1.0");
    assert_eq!((plugin.source().interface.as_str(), plugin.inspect().differentiable), ("0.1.0", true));
    let description = plugin.description();
    assert_eq!((description.name.as_str(), &description.encoders[..]), ("frozen", &["means".to_owned()][..]));
    assert_eq!((&description.styles[..], description.media.len()), (&["style-0", "style-1"].map(str::to_owned)[..], 2));
    let rows = plugin.classify(&mut two_images(), &mut means()).expect("it classifies").distributions.rows;
    // The shares of red and green, each plus one.
    for (row, red) in rows.iter().zip([256.0 / 257.0, 1.0 / 257.0]) {
        assert!((row[0] - red).abs() < 1e-6, "{rows:?}");
    }
    let upstream = Array2::from_elem((2, 2), 1.0);
    let gradient = plugin.embedding_vjp(&mut two_images(), &mut means(), &upstream).expect("it has a gradient");
    assert_eq!(gradient, Array2::<f32>::zeros((2, 3)));
    let path = root().join("tests/guests/frozen-0.1.0.wasm");
    let three = load(Limits::default(), &path, &[("styles", "3")]).expect("its configuration reaches it");
    assert_eq!(three.description().styles.len(), 3);
}

/// Every line of a frozen interface is in the current one, in the same order: functions may be added, nothing else.
#[test]
fn the_current_interface_contains_the_frozen_one() {
    let lines = |file: &str| -> Vec<String> {
        let text = fs::read_to_string(root().join(file)).expect("committed");
        let lines = text.lines().map(str::trim);
        let counts = |line: &&str| !line.is_empty() && !line.starts_with("//") && !line.starts_with("package ");
        lines.filter(counts).map(str::to_owned).collect()
    };
    let mut current = lines("wit/plugin.wit").into_iter();
    for line in lines("wit/frozen/0.1.0/plugin.wit") {
        assert!(current.any(|now| now == line), "`{line}` of interface 0.1.0 is gone or has moved");
    }
}

#[test]
fn the_table_of_versions_contains_this_host() {
    let table = fs::read_to_string(root().join("docs/interface-versions.md")).expect("committed");
    let host = env!("CARGO_PKG_VERSION");
    let row = table.lines().find(|line| line.starts_with(&format!("| {host} |"))).expect("a row for this host");
    assert!(row.contains(&supported_versions()), "{row}");
    for entry in fs::read_dir(root().join("wit/frozen")).expect("committed") {
        let version = entry.expect("readable").file_name().to_string_lossy().into_owned();
        assert!(table.contains(&format!("`wit/frozen/{version}`")), "{version} is not in the table");
        let guest = root().join(format!("tests/guests/frozen-{version}.wasm"));
        assert!(guest.is_file(), "run `scripts/frozen.sh {version}` and commit {}", guest.display());
    }
}
