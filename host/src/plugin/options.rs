//! The options of plugins: what a run sets, checked against what the plugin declares.

use std::collections::{BTreeMap, BTreeSet};

use ambiguity_sdk::OptionInfo;

use super::error::Fault;
use super::limits::MAX_OPTIONS;
use crate::text::nearest;

/// Returns what is wrong with the options that a plugin declares.
pub(super) fn problem(options: &[OptionInfo]) -> Option<String> {
    if options.len() > MAX_OPTIONS {
        return Some(format!("it has {} options, the limit is {MAX_OPTIONS}", options.len()));
    }
    let mut seen = BTreeSet::new();
    options.iter().find_map(|option| {
        let OptionInfo { key, value_type, default, .. } = option;
        if key.is_empty() {
            return Some("an option's key is empty".to_owned());
        }
        if !seen.insert(key) {
            return Some(format!("the option `{key}` appears twice"));
        }
        let default = default.as_ref().filter(|default| !value_type.accepts(default))?;
        Some(format!("the default of its option `{key}` is `{default}`, which is no {}", value_type.name()))
    })
}

/// Checks the values that a run sets against the options that a plugin declares.
///
/// # Errors
/// If there is no such option, or a value is not of its type: with the plugin's options.
pub(super) fn check(config: &BTreeMap<String, String>, options: &[OptionInfo]) -> Result<(), Fault> {
    for (key, value) in config {
        let Some(option) = options.iter().find(|option| option.key == *key) else {
            let known: Vec<&str> = options.iter().map(|option| option.key.as_str()).collect();
            let hint = match nearest(key, known.iter().copied()) {
                Some((_, name)) => format!(": did you mean `{name}`?"),
                None => String::new(),
            };
            return Err(Fault::Option(format!("it has no option `{key}`{hint} ({})", listed(options))));
        };
        if !option.value_type.accepts(value) {
            let wanted = option.value_type.name();
            return Err(Fault::Option(format!(
                "its option `{key}` is `{value}`, which is no {wanted}: {}",
                option.help
            )));
        }
    }
    Ok(())
}

/// Returns the options in a sentence.
fn listed(options: &[OptionInfo]) -> String {
    if options.is_empty() {
        return "it has none".to_owned();
    }
    let options: Vec<String> = options.iter().map(shown).collect();
    format!("it has {}", options.join(", "))
}

/// Returns an option's key, type and default: `quality (integer, default 95)`.
fn shown(option: &OptionInfo) -> String {
    let default = option.default.as_ref().map(|default| format!(", default {default}")).unwrap_or_default();
    format!("{} ({}{default})", option.key, option.value_type.name())
}

#[cfg(test)]
mod tests {
    use ambiguity_sdk::PluginOption;

    use super::*;

    fn options() -> Vec<OptionInfo> {
        vec![
            PluginOption::new("quality", 95i64, "The quality, 1 to 100").into(),
            PluginOption::<f64>::without_default("temperature", "Divides the logits").into(),
        ]
    }

    #[test]
    fn values_are_checked_by_key_and_type() {
        let check = |key: &str, value: &str| check(&BTreeMap::from([(key.to_owned(), value.to_owned())]), &options());
        check("quality", "3").expect("an integer");
        check("temperature", "1e-3").expect("a number");
        let message = |key: &str, value: &str| check(key, value).expect_err("refused").to_string();
        assert_eq!(
            message("qualty", "3"),
            "it has no option `qualty`: did you mean `quality`? (it has quality (integer, default 95), temperature (number))"
        );
        assert_eq!(
            message("quality", "high"),
            "its option `quality` is `high`, which is no integer: The quality, 1 to 100"
        );
        assert!(message("temperature", "inf").contains("which is no number"));
        let message = super::check(&BTreeMap::from([("a".to_owned(), "b".to_owned())]), &[]).expect_err("none");
        assert_eq!(message.to_string(), "it has no option `a` (it has none)");
    }

    #[test]
    fn declared_options_are_checked() {
        assert_eq!(problem(&options()), None);
        let twice = [options(), options()].concat();
        assert_eq!(problem(&twice).as_deref(), Some("the option `quality` appears twice"));
        let mut wrong = options();
        wrong[0].default = Some("x".to_owned());
        let expected = "the default of its option `quality` is `x`, which is no integer";
        assert_eq!(problem(&wrong).as_deref(), Some(expected));
        wrong[0].key = String::new();
        assert!(problem(&wrong).is_some());
    }
}
