//! Options that are numbers: one that is out of range, or no number, is refused as the arguments are parsed.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Returns a parser of numbers in `range`, for `value_parser`; NaN is in no range.
pub(super) fn within<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("it must be a number from {} to {}", range.start(), range.end()))
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{Command, CommandFactory as _};

    use crate::cli::Cli;

    /// Calls `f` with each command below `command`, and the words that call it.
    fn each<'a>(command: &'a Command, words: &[&'a str], f: &mut impl FnMut(&[&'a str], &'a Command)) {
        for sub in command.get_subcommands() {
            let words = [words, &[sub.get_name()]].concat();
            f(&words, sub);
            each(sub, &words, f);
        }
    }

    /// Every option that takes numbers refuses what is none, and what no machine can do, as it is parsed.
    #[test]
    fn odd_numbers_are_refused_by_every_command() {
        let mut root = Cli::command();
        root.build();
        let mut options = Vec::new();
        each(&root, &["host"], &mut |words, command| {
            let named = command.get_arguments().filter(|arg| arg.get_action().takes_values());
            options.extend(named.filter_map(|arg| Some((words.to_vec(), arg.get_long()?))));
        });
        let parses = |words: &[&str], option: &str, value: &str| {
            let arguments = [words.iter().map(|&word| word.to_owned()).collect(), vec![format!("--{option}={value}")]];
            let error = Cli::command().try_get_matches_from(arguments.concat()).err();
            !error.is_some_and(|error| matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue))
        };
        let mut n_numeric = 0;
        for (words, option) in options {
            let is_number = ["1", "16", "64", "0.5"].iter().any(|number| parses(&words, option, number));
            if parses(&words, option, "x!") || !is_number {
                continue;
            }
            n_numeric += 1;
            for odd in ["nan", "inf", "-inf", "1e300", "99999999999999999999", ""] {
                assert!(!parses(&words, option, odd), "{} --{option}={odd} is accepted", words.join(" "));
            }
            let any = ["seed"].contains(&option);
            assert!(any || !parses(&words, option, "18446744073709551615"), "{} --{option}", words.join(" "));
        }
        assert!(n_numeric > 25, "{n_numeric}");
    }
}
