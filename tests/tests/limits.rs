//! The table of limits and periods in the documents, which is generated from the code.

use std::fs;

use ambiguity_host::config::{FineTuneConfig, RunConfig as _};
use ambiguity_host::plugin::Limits;

use crate::support::root;

const UPDATE: &str = "UPDATE_DOCS";

fn document() -> String {
    let mut text = String::from(
        "# Limits and periods\n\n\
         Generated from the code: `UPDATE_DOCS=1 cargo test --release --workspace limits` writes it again, and a test\n\
         compares it with the code. A key can be set in a run's configuration or with `--set KEY=VALUE`; a limit without\n\
         a key is part of the program.\n\n\
         ## What a plugin may use\n\n\
         Every batch has a fresh instance. A plugin that exceeds a limit fails with a message that names it;\n\
         `plugin.on_error` says what happens to the run.\n\n\
         | Limit | Key | What it bounds |\n|---|---|---|\n",
    );
    for (key, value, bounds) in Limits::default().table() {
        let key = key.map(|key| format!("`{key}`")).unwrap_or_default();
        text += &format!("| {value} | {key} | {bounds} |\n");
    }
    text += "\nOn a GPU an ONNX model runs in the process of the run: its memory is then not limited, and its time is checked\n\
             between two operators.\n\n\
             ## Periods of a run\n\n\
             | Key | paper-512 | tiny-art | What it means |\n|---|---|---|---|\n";
    let [paper, tiny] = ["paper-512", "tiny-art"].map(|preset| {
        let text = FineTuneConfig::resolve(preset, &[]).expect("a preset").to_toml().expect("it serializes");
        text.parse::<toml::Table>().expect("TOML")
    });
    for (table, key, meaning) in [
        (
            "checkpoint",
            "every",
            "epochs between two checkpoints; the last finished epoch is always kept when a run stops",
        ),
        ("checkpoint", "keep", "number of newest checkpoints that are kept; 0 keeps all"),
        ("monitor", "every", "epochs between two evaluations on the same prompts and noise"),
        ("monitor", "count", "number of samples of an evaluation"),
        ("monitor", "min_diversity", "share of epoch 0's diversity; below it the model has collapsed"),
        ("monitor", "on_collapse", "what a collapse does: `warn`, `stop`, `lower-learning-rate` or `raise-kl`"),
        (
            "plugin",
            "on_error",
            "what a failing plugin does: `abort` stops after a checkpoint, `skip` leaves its batch out",
        ),
        ("plugin", "max_skipped", "share of an epoch's samples that may be skipped before the run stops"),
    ] {
        text += &format!("| `{table}.{key}` | {} | {} | {meaning} |\n", paper[table][key], tiny[table][key]);
    }
    text
}

#[test]
fn the_table_of_limits_matches_the_code() {
    let path = root().join("docs/limits.md");
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&path, document()).expect("writable");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == document(), "run `{UPDATE}=1 cargo test --release --workspace limits` and commit docs/limits.md");
}

#[test]
fn presets_have_the_same_limits_as_the_commands_without_a_configuration() {
    let limits = Limits::default();
    for preset in ["paper-512", "tiny-art"] {
        let plugin = FineTuneConfig::resolve(preset, &[]).expect("a preset").plugin.limits;
        let of_preset = (plugin.timeout_ms, plugin.fuel, plugin.memory_mib);
        assert_eq!(of_preset, (limits.timeout_ms, limits.fuel, limits.memory_mib), "{preset}");
    }
}
