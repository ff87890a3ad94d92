//! The invariants of ARCHITECTURE.md that can be checked on the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::root;

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} has no sources");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("readable");
        (path, text)
    };
    found.into_iter().map(read).collect()
}

fn assert_absent(folder: &str, words: &[&str], except: &str) {
    for (path, text) in sources(folder) {
        if !except.is_empty() && path.starts_with(root().join(except)) {
            continue;
        }
        for word in words {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
    }
}

#[test]
fn models_never_name_the_host() {
    assert_absent("models", &["ambiguity_host", "wasmtime"], "");
}

#[test]
fn the_sdk_never_names_tch_or_wasmtime() {
    assert_absent("sdk", &["use tch", " tch::", "wasmtime"], "");
}

#[test]
fn only_the_plugin_folder_names_wasmtime() {
    assert_absent("host/src", &["wasmtime::", "use wasmtime"], "host/src/plugin");
}

#[test]
fn only_the_plugin_folder_names_ort() {
    let named = ["use ort::", " ort::", "(ort::", "<ort::", "&ort::"];
    assert_absent("host/src", &named, "host/src/plugin");
    for folder in ["models", "sdk", "plugins"] {
        assert_absent(folder, &named, "");
    }
}

#[test]
fn the_objective_never_sees_pixels() {
    let text = fs::read_to_string(root().join("host/src/rl/objective.rs")).expect("readable");
    for word in ["RgbImage", "image::", "decode"] {
        assert!(!text.contains(word), "objective.rs names {word}");
    }
}

#[test]
fn configuration_has_no_defaults_in_code() {
    assert_absent("host/src/config", &["impl Default", "Default)]"], "");
}

/// The modules of the host in the order in which they may import each other: a module imports those before it.
const LAYERS: [&[&str]; 18] = [
    &[
        "context",
        "energy",
        "failure",
        "fs",
        "hardware",
        "interrupt",
        "memory",
        "nvml",
        "optim",
        "processes",
        "progress",
        "random",
        "statistics",
        "text",
    ],
    &["net"],
    &["zoo"],
    &["config"],
    &["data"],
    &["encoders"],
    &["plugin"],
    &["policy"],
    &["rl"],
    &["generator"],
    &["run"],
    &["report"],
    &["metrics"],
    &["evaluation"],
    &["trainer"],
    &["tasks"],
    &["cli"],
    &["lib", "main"],
];

/// The path of a source below `host/src`, as a module path: `tasks/gan/mod.rs` is `tasks`, `gan`.
fn module_of(path: &Path) -> Vec<String> {
    let path = path.strip_prefix(root().join("host/src")).expect("a source of the host").with_extension("");
    let mut parts: Vec<String> = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    parts.retain(|part| part != "mod");
    parts
}

/// What a source imports from the host, as module paths: `crate::a::b::C` is `a`, `b`, `C`. Groups are expanded, `self`
/// and `super` are resolved, and the imports of the module's tests do not count.
fn imports(module: &[String], text: &str) -> Vec<Vec<String>> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    let roots = [("crate::", 0), ("ambiguity_host::", 0), ("super::super::", 2), ("super::", 1)];
    for (prefix, up) in roots {
        for (at, _) in code.match_indices(prefix) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || before == '_' || before == ':' {
                continue;
            }
            let base = if up == 0 { Vec::new() } else { module[..module.len().saturating_sub(up)].to_vec() };
            open_path(&base, &code[at + prefix.len()..], &mut found);
        }
    }
    found
}

/// Adds the paths of `a::b`, or of `a::{b, c::d}`, at the start of `text`.
fn open_path(base: &[String], text: &str, found: &mut Vec<Vec<String>>) {
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let rest = &text[name.len()..];
    if name.is_empty() {
        let Some(group) = rest.strip_prefix('{') else { return };
        let mut depth = 0;
        let mut start = 0;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    open_path(base, group[start..i].trim(), found);
                    start = i + 1;
                    if c == '}' {
                        return;
                    }
                }
                _ => {}
            }
        }
        return;
    }
    let mut path = base.to_vec();
    path.push(name);
    match rest.strip_prefix("::") {
        Some(rest) => open_path(&path, rest, found),
        None => found.push(path),
    }
}

#[test]
fn no_module_of_the_host_imports_one_above_it() {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let mut upward = Vec::new();
    for (path, text) in sources("host/src") {
        let module = module_of(&path);
        let own = layer(&module[0]).unwrap_or_else(|| panic!("{} is in no layer", path.display()));
        for import in imports(&module, &text).into_iter().filter(|import| import[0] != module[0]) {
            // Names of the crate's root that are not modules, macros above all, have no layer.
            if layer(&import[0]).is_some_and(|other| other > own || (other == own && own > 0)) {
                upward.push(format!("{} imports {}", module.join("::"), import.join("::")));
            }
        }
    }
    assert!(upward.is_empty(), "arrows upward:\n{}", upward.join("\n"));
}

#[test]
fn the_modules_of_the_host_have_no_circles() {
    // Files by module path; a folder's mod.rs and its children may import each other, siblings may not form a circle.
    let files: Vec<(Vec<String>, String)> =
        sources("host/src").into_iter().map(|(path, text)| (module_of(&path), text)).collect();
    let modules: BTreeSet<Vec<String>> = files.iter().map(|(module, _)| module.clone()).collect();
    let mut arrows: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    // What tests import does not count.
    for (module, text) in files.iter().filter(|(module, _)| module.last().is_none_or(|name| name != "tests")) {
        for import in imports(module, text) {
            // The longest prefix that is a file.
            let target = (1..=import.len()).rev().map(|n| import[..n].to_vec()).find(|path| modules.contains(path));
            // An arrow between two siblings, at the level where their paths part.
            let Some(target) = target else { continue };
            let common = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if common < module.len() && common < target.len() {
                arrows.entry(module[..=common].to_vec()).or_default().insert(target[..=common].to_vec());
            }
        }
    }
    let reaches = |from: &Vec<String>, to: &Vec<String>| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(at) = open.pop() {
            for next in arrows.get(at).into_iter().flatten() {
                if next == to {
                    return true;
                }
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        false
    };
    let circles: Vec<String> =
        arrows.keys().filter(|module| reaches(module, module)).map(|module| module.join("::")).collect();
    assert!(circles.is_empty(), "modules that import themselves through others: {}", circles.join(", "));
}

#[test]
fn imports_are_read_as_rust_reads_them() {
    let module = ["tasks", "gan", "plan"].map(str::to_owned);
    let text = "use super::ambiguity::{self, A};\nuse crate::run::{self, record::{B, C}, D};\n// crate::cli::no\n\
                fn f() -> crate::text::T {}\n#[cfg(test)]\nuse crate::cli::no;";
    let mut found: Vec<String> = imports(&module, text).into_iter().map(|path| path.join("::")).collect();
    found.sort();
    let wanted = [
        "run::D",
        "run::record::B",
        "run::record::C",
        "run::self",
        "tasks::gan::ambiguity::A",
        "tasks::gan::ambiguity::self",
        "text::T",
    ];
    assert_eq!(found, wanted);
}

#[test]
fn nothing_is_left_unfinished() {
    for folder in ["host/src", "models/src", "models/torch-ext/src", "sdk/src", "plugins"] {
        for (path, text) in sources(folder) {
            for mark in ["TO\u{44}O", "FIX\u{4d}E", "unimplemented!(", "todo!("] {
                assert!(!text.contains(mark), "{} has {mark}", path.display());
            }
        }
    }
}

/// Words that the glossary replaces, as whole words, and what to write instead.
const REPLACED: [(&str, &str); 26] = [
    ("picture", "image"),
    ("pictures", "images"),
    ("figures", "metrics"),
    ("judge", "score"),
    ("judges", "scores"),
    ("judged", "scored"),
    ("judging", "scoring"),
    ("text states", "prompt embeddings"),
    ("ceiling", "upper bound"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("held against", "compared with"),
    ("goes on with", "resumes"),
    ("go on with", "resume"),
    ("gone on with", "resumed"),
    ("How many", "Number of"),
    ("made images", "generated images"),
    ("told right", "predicted"),
    ("centre", "center"),
    ("centres", "centers"),
    ("colour", "color"),
    ("colours", "colors"),
    ("licence", "license"),
    ("normalise", "normalize"),
    ("normalised", "normalized"),
];

/// Where a replaced word may stand, and why.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("picture", "host/presets/paper-512.toml", "the paper's prompts say \"picture of\""),
    ("picture", "host/art/src/lib.rs", "the paper's prompts say \"picture of\""),
    ("picture", "bench/", "the paper's prompts say \"picture of\""),
    ("picture", "tests/reference/check_lora.py", "a prompt that the small model knows"),
    ("licence", "host/src/plugin/", "the renamed key is refused by its old name"),
    ("", "tests/tests/tidy.rs", "the list itself"),
    ("", "wit/frozen/", "a released interface does not change"),
    ("", "tests/guests/frozen-", "the plugin of a released interface does not change"),
    ("", "examples/plugin-c/bindings/", "generated from the interface"),
];

#[test]
fn words_are_the_fields_own() {
    let listed = std::process::Command::new("git").args(["ls-files"]).current_dir(root()).output().expect("git runs");
    let listed = String::from_utf8(listed.stdout).expect("names are UTF-8");
    let kinds = ["rs", "md", "toml", "wit", "py", "js", "sh", "html", "cpp", "h", "c", "snap"];
    let is_text = |name: &str| Path::new(name).extension().is_some_and(|e| kinds.iter().any(|kind| e == *kind));
    let mut found = Vec::new();
    for name in listed.lines().filter(|name| is_text(name)) {
        let Ok(text) = fs::read_to_string(root().join(name)) else { continue };
        // `snake_case` and `CamelCase` are words too.
        let mut words = String::with_capacity(text.len());
        let mut before = ' ';
        for c in text.chars() {
            if c.is_uppercase() && before.is_lowercase() {
                words.push(' ');
            }
            words.push(if c == '_' { ' ' } else { c.to_ascii_lowercase() });
            before = c;
        }
        for (word, instead) in REPLACED {
            let allowed =
                |(of, place, _): &&(&str, &str, &str)| (of.is_empty() || *of == word) && name.starts_with(place);
            if ALLOWED.iter().any(|entry| allowed(&entry)) {
                continue;
            }
            let boundary = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
            let lower = word.to_ascii_lowercase();
            let at = words.match_indices(&lower).find(|(at, found)| {
                boundary(words[..*at].chars().next_back()) && boundary(words[at + found.len()..].chars().next())
            });
            if let Some((at, _)) = at {
                let line = words[..at].matches('\n').count() + 1;
                found.push(format!("{name}:{line}: `{word}`: write {instead}"));
            }
        }
    }
    assert!(found.is_empty(), "{} words that the glossary replaces:\n{}", found.len(), found.join("\n"));
}
