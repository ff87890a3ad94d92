//! The linear layers that an adapter is for.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The adapted layers, written as `"attention"`, `"attention+feed-forward"`, `"all-linear"` or a list of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Targets {
    /// Query, key, value and output projections of self- and cross-attention.
    Attention,
    /// The same, and both layers of the feed-forward networks.
    AttentionAndFeedForward,
    /// Every linear layer of the UNet.
    AllLinear,
    /// Layers by name, as peft matches them: by the whole name, or by its end after a dot.
    List(Vec<String>),
}

const ATTENTION: [&str; 4] = ["to_k", "to_out.0", "to_q", "to_v"];
const FEED_FORWARD: [&str; 2] = ["ff.net.0.proj", "ff.net.2"];

/// The form in configuration files.
#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Name(String),
    List(Vec<String>),
}

impl TryFrom<Written> for Targets {
    type Error = String;

    fn try_from(written: Written) -> std::result::Result<Self, String> {
        match written {
            Written::List(names) if names.is_empty() => Err("LoRA targets are an empty list".to_owned()),
            Written::List(names) => Ok(Self::List(names)),
            Written::Name(name) => match name.as_str() {
                "attention" => Ok(Self::Attention),
                "attention+feed-forward" => Ok(Self::AttentionAndFeedForward),
                "all-linear" => Ok(Self::AllLinear),
                _ => Err(format!(
                    "LoRA targets \"{name}\" are unknown: \"attention\", \"attention+feed-forward\", \"all-linear\" or a \
                     list of layer names"
                )),
            },
        }
    }
}

/// One of the three names, or layer names separated by commas.
impl std::str::FromStr for Targets {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match Self::try_from(Written::Name(text.to_owned())) {
            Err(_) if text.contains(',') => {
                Ok(Self::List(text.split(',').map(|name| name.trim().to_owned()).collect()))
            }
            read => read,
        }
    }
}

impl From<Targets> for Written {
    fn from(targets: Targets) -> Self {
        match targets {
            Targets::Attention => Self::Name("attention".to_owned()),
            Targets::AttentionAndFeedForward => Self::Name("attention+feed-forward".to_owned()),
            Targets::AllLinear => Self::Name("all-linear".to_owned()),
            Targets::List(names) => Self::List(names),
        }
    }
}

impl Targets {
    /// The names that peft matches by their end; for all layers, the layers' whole names.
    pub(super) fn for_peft(&self, all: &[String]) -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        match self {
            Self::Attention => owned(&ATTENTION),
            Self::AttentionAndFeedForward => [owned(&FEED_FORWARD), owned(&ATTENTION)].concat(),
            Self::AllLinear => all.to_vec(),
            Self::List(names) => names.clone(),
        }
    }

    /// Returns those of `all` that match; a target that matches no layer is an error.
    pub(super) fn choose<'a>(&self, all: &'a [String]) -> Result<Vec<&'a str>> {
        let targets = self.for_peft(all);
        if let Some(unknown) = targets.iter().find(|target| !all.iter().any(|name| ends_with(name, target))) {
            return Err(Error::Input(format!("LoRA target `{unknown}` is not a linear layer of this UNet")));
        }
        let matches = |name: &&String| targets.iter().any(|target| ends_with(name, target));
        Ok(all.iter().filter(matches).map(String::as_str).collect())
    }
}

/// Whether `name` is `end`, or ends with it after a dot.
pub(super) fn ends_with(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_written_by_name_or_as_a_list() {
        let list = |names: &[&str]| Targets::List(names.iter().map(|&name| name.to_owned()).collect());
        let cases = [
            (r#""attention""#, Targets::Attention),
            (r#""attention+feed-forward""#, Targets::AttentionAndFeedForward),
            (r#""all-linear""#, Targets::AllLinear),
            (r#"["to_q","attn2.to_k"]"#, list(&["to_q", "attn2.to_k"])),
        ];
        for (json, targets) in cases {
            assert_eq!(serde_json::from_str::<Targets>(json).expect("a known form"), targets);
            assert_eq!(serde_json::to_string(&targets).expect("text"), json);
        }
        assert_eq!("all-linear".parse(), Ok(Targets::AllLinear));
        assert_eq!("to_q, attn2.to_k".parse(), Ok(list(&["to_q", "attn2.to_k"])));
        let unknown = "to_q".parse::<Targets>().expect_err("no list and no name of ours");
        assert!(unknown.starts_with("LoRA targets \"to_q\" are unknown"), "{unknown}");
        let empty = serde_json::from_str::<Targets>("[]").expect_err("nothing").to_string();
        assert_eq!(empty, "LoRA targets are an empty list");
    }

    #[test]
    fn a_layer_is_chosen_by_its_name_or_an_end_of_it_after_a_dot() {
        let all = ["a.attn1.to_q", "a.attn2.to_q", "a.ff.net.2", "not_to_q"].map(str::to_owned);
        let chosen = |targets: &Targets| targets.choose(&all).expect("they are there").join(" ");
        let list = |name: &str| Targets::List(vec![name.to_owned()]);
        assert_eq!(chosen(&list("to_q")), "a.attn1.to_q a.attn2.to_q");
        assert_eq!(chosen(&list("attn2.to_q")), "a.attn2.to_q");
        assert_eq!(chosen(&list("not_to_q")), "not_to_q");
        assert_eq!(chosen(&Targets::AllLinear), all.join(" "));
        let unknown = list("o_q").choose(&all).expect_err("no layer ends so after a dot").to_string();
        assert_eq!(unknown, "LoRA target `o_q` is not a linear layer of this UNet");
    }
}
