//! Presets, layers, and what is refused.

use super::*;
use crate::config::tests::refuses_odd_numbers;

fn file(text: &str) -> Vec<Layer> {
    vec![Layer { origin: "run.toml".to_owned(), text: text.to_owned() }]
}

fn message(text: &str) -> String {
    format!("{:#}", FineTuneConfig::resolve("tiny-art", &file(text)).expect_err("the layer is wrong"))
}

#[test]
fn every_preset_resolves_and_survives_its_own_toml() {
    for name in preset_names() {
        let config = FineTuneConfig::resolve(name, &[]).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let again: FineTuneConfig = toml::from_str(&config.to_toml().expect("serializes")).expect("parses");
        assert_eq!(again, config, "{name}");
    }
}

/// Every numeric key with every odd number is refused by a message that names it, or accepted where it makes sense.
#[test]
fn odd_numbers_are_refused_by_key() {
    let accepted = |key: &str, odd: &str| match (key, odd) {
        ("lora.alpha", "-1") => true,
        ("train.epochs" | "checkpoint.every" | "monitor.every", "9223372036854775807") => true,
        ("run.seed" | "checkpoint.keep", "0" | "9223372036854775807") => true,
        // No guidance, no penalty, no average, every sample: each is a choice.
        ("sample.guidance" | "prompts.null_probability" | "monitor.min_diversity" | "plugin.max_skipped", "0") => true,
        ("train.learning_rate" | "train.beta1" | "train.beta2" | "train.weight_decay", "0") => true,
        ("train.kl" | "train.ema" | "train.diversity_weight" | "train.vendi_weight", "0") => true,
        ("train.vendi_target", "0") => true,
        _ => false,
    };
    let n_keys = refuses_odd_numbers(|layers| FineTuneConfig::resolve("tiny-art", layers), accepted);
    assert!(n_keys > 30, "{n_keys}");
    for (setting, said) in [
        ("train.epochs=0", "train.epochs is 0"),
        ("lora.alpha=0", "lora.alpha is 0"),
        ("lora.rank=100000", "lora.rank is 100000"),
        ("monitor.count=1", "monitor.count is 1"),
        ("sample.width=100000", "sample.width is 100000"),
        ("train.advantage_clip=0", "train.advantage_clip is 0"),
        ("train.max_grad_norm=0", "train.max_grad_norm is 0"),
    ] {
        let layer = Layer::set(setting).expect("a setting");
        let message = format!("{:#}", FineTuneConfig::resolve("tiny-art", &[layer]).expect_err(setting));
        assert!(message.contains(said), "{setting}: {message}");
    }
    for (weight, said) in [("0", "is 0"), ("nan", "is NaN"), ("1e30", "other than 0")] {
        let text = format!("[[reward.plugin]]\nsource = \"palette\"\nweight = {weight}\n");
        assert!(message(&text).contains(said), "{weight}: {}", message(&text));
    }
    let plugin = "[[reward.plugin]]\nsource = \"palette\"\n";
    assert!(message(&plugin.repeat(2)).contains("plugin palette is named twice"));
}

#[test]
fn presets_differ_as_the_paper_says() {
    let paper = FineTuneConfig::resolve("paper-512", &[]).expect("resolves");
    let mut small = FineTuneConfig::resolve("paper-256", &[]).expect("resolves");
    assert_eq!(small.sample.per_epoch(), paper.sample.per_epoch());
    assert_eq!(small.train.batch_size * small.train.accumulation_steps, 8);
    small.sample = paper.sample.clone();
    small.train = paper.train.clone();
    assert_eq!(small, paper);
}

#[test]
fn later_layers_win() {
    let mut layers = file("[train]\nepochs = 3\nlearning_rate = 1\n");
    layers.push(Layer::set("train.epochs=4").expect("a setting"));
    layers.push(Layer::set("model.dtype=bf16").expect("a setting"));
    layers.push(Layer::set("lora.targets=[\"to_q\"]").expect("a setting"));
    let config = FineTuneConfig::resolve("tiny-art", &layers).expect("resolves");
    assert_eq!((config.train.epochs, config.train.learning_rate), (4, 1.0));
    assert_eq!(config.model.dtype, Dtype::Bf16);
}

#[test]
fn mistakes_are_named_with_their_place() {
    assert_eq!(
        message("[train]\n  lerning_rate = 1e-3\n"),
        "run.toml:2:3: unknown key `train.lerning_rate`; did you mean `learning_rate`?"
    );
    assert_eq!(
        message("[train]\nepochs = \"3\"\n"),
        "run.toml:2:10: `train.epochs` is a string, it must be a whole number"
    );
    for (text, meant) in [
        ("epochs = 3\n", "train.epochs"),
        ("[sample]\nlearning_rate = 1e-3\n", "train.learning_rate"),
        ("[monitr]\nevery = 2\n", "monitor"),
        ("[[reward.plugin]]\nsource = \"palette\"\nwieght = 2\n", "weight"),
    ] {
        assert!(message(text).ends_with(&format!("; did you mean `{meant}`?")), "{}", message(text));
    }
    assert!(message("[train]\nxyz = 1\n").contains("`train.xyz`; known here: accumulation_steps, "));
    let pinned = "[[reward.plugin]]\nsource = \"palette\"\nsha256 = \"abc\"\n";
    assert!(message(pinned).starts_with("the sha256 of plugin palette is \"abc\": "), "{}", message(pinned));
    assert!(message("[train\n").starts_with("run.toml: TOML parse error at line 1"));
    assert!(message("[model]\ndtype = \"f8\"\n").contains("f8"));
    assert!(message("[model]\ndtype = \"f16\"\n").starts_with("model.dtype = \"f16\" is for sampling alone"));
    assert!(message("[train]\nvendi_target = 0.9\n").contains("no effect without train.vendi_weight"));
    assert!(message("[model]\nvae_dtype = \"f16\"\n").contains("overflow"));
    assert!(message("[train]\nbatch_size = 7\n").contains("train.batch_size"));
    assert!(message("[sample]\neta = 0\n").contains("sample.eta is 0"));
    let calls = "[train]\nshuffle = \"calls\"\n";
    assert!(message(calls).contains("sample.micro_batch is 64 and train.micro_batch is 80"));
    let step = message(&format!("{calls}micro_batch = 64\n"));
    assert!(step.contains("have 64 samples") && step.contains("an optimizer step"), "{step}");
}

#[test]
fn a_run_of_an_earlier_version_gets_the_preset_of_a_new_key() {
    let now = FineTuneConfig::resolve("tiny-art", &[]).expect("the preset").to_toml().expect("serializes");
    let mut table: toml::Table = now.parse().expect("TOML");
    table.remove("cuda").expect("a table");
    table["train"].as_table_mut().expect("a table").remove("ema").expect("a key");
    let config = FineTuneConfig::of_run(&table.to_string()).expect("complete");
    let complete = FineTuneConfig::resolve("paper-512", &[]).expect("the preset");
    assert_eq!((config.cuda, config.train.ema), (complete.cuda, complete.train.ema));
    assert_eq!(config.train.epochs, 12);
    table.insert("odd".to_owned(), toml::Value::from(1));
    FineTuneConfig::of_run(&table.to_string()).expect_err("a key of a later version");
}
