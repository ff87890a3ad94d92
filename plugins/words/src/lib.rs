//! Classifies the mood of a text by its words: six moods, and `plain` for a text without a mood.
//!
//! Each mood's weight is the number of its words in the text; that of `plain` is one for every `PLAIN` other words,
//! and at least one. A text without any mood is therefore not ambiguous but plain, so an empty text has no high reward:
//! that requires words of every mood.

use ambiguity_sdk::{
    Batch, Classifier, Description, Distribution, Distributions, Host, Medium, Plugin, Result, export,
};

/// The plugin; see the module.
pub struct Words;

export!(Words: Classifier);

/// A mood and its words, without endings.
const MOODS: [(&str, &str); 6] = [
    (
        "joyful",
        "joy glad laugh merry delight cheer dance play bright sing smile feast happy gay jest mirth bloom sunny",
    ),
    (
        "sorrowful",
        "sorrow grief grieve weep wept tear mourn sad lonely alone lost loss grave woe sigh dead die farewell",
    ),
    (
        "fearful",
        "fear dread terror ghost shadow dark scream horror haunt shiver tremble monster night creep doom nightmare",
    ),
    ("tender", "love heart kiss dear gentle soft embrace tender sweet darling beloved caress rose whisper warm adore"),
    ("wrathful", "anger angry rage fury furious hate war blood fight revenge curse strike burn storm wrath roar sword"),
    ("calm", "calm quiet still peace rest sleep silent silence slow breeze lake meadow gentle dusk snow drift serene"),
];

/// The style of a text without a mood.
const PLAIN_STYLE: &str = "plain";

/// Number of words without a mood that weigh as much as one word of a mood.
const PLAIN: f32 = 12.0;

/// Minimum weight of each mood in any text, so that the logarithm of its probability is finite.
const FLOOR: f32 = 0.05;

/// Endings that a word may have beyond the words in the lists.
const ENDINGS: [&str; 12] = ["", "s", "es", "d", "ed", "ing", "ly", "y", "ful", "fully", "ness", "er"];

impl Plugin for Words {
    fn new(_host: &Host) -> Result<Self> {
        Ok(Self)
    }

    fn describe(&self) -> Description {
        Description::new("words", env!("CARGO_PKG_VERSION")).medium(Medium::Text)
    }
}

impl Classifier for Words {
    fn styles(&self) -> Vec<String> {
        MOODS.iter().map(|&(mood, _)| mood).chain([PLAIN_STYLE]).map(str::to_owned).collect()
    }

    fn classify(&self, batch: &Batch) -> Result<Distributions> {
        (0..batch.len()).map(|i| Distribution::from_weights(weights(&batch.text(i)?))).collect()
    }
}

/// Returns the weight of each mood in a text, and that of `plain`.
fn weights(text: &str) -> Vec<f32> {
    let mut weights = vec![FLOOR; MOODS.len()];
    let mut n_plain = 0;
    let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
    for word in words.map(str::to_lowercase) {
        let moods: Vec<usize> = (0..MOODS.len()).filter(|&i| has_word(MOODS[i].1, &word)).collect();
        n_plain += usize::from(moods.is_empty());
        // A word of two moods counts half for each.
        moods.iter().for_each(|&i| weights[i] += 1.0 / moods.len() as f32);
    }
    weights.push((n_plain as f32 / PLAIN).max(1.0));
    weights
}

/// Returns whether a word is in a list, with an ending or without; an ending may have doubled a letter or dropped an e.
fn has_word(list: &str, word: &str) -> bool {
    list.split(' ').any(|stem| match word.strip_prefix(stem) {
        Some(ending) => {
            let doubled = ending.strip_prefix(&stem[stem.len() - 1..]);
            ENDINGS.contains(&ending) || matches!(doubled, Some("ing" | "ed"))
        }
        None => stem.strip_suffix('e').is_some_and(|short| word.strip_prefix(short) == Some("ing")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ambiguity_sdk::testing::{FakeBatch, FakeHost, FakeSample};

    fn likeliest(text: &str) -> String {
        let host = FakeHost::new();
        let words = host.load::<Words>().expect("it needs nothing");
        let found = words.classify(&FakeBatch::new([FakeSample::text(text)])).expect("a text");
        words.styles().expect("styles")[found.likeliest(0)].clone()
    }

    #[test]
    fn texts_are_what_a_reader_says() {
        for (text, mood) in [
            ("They laughed and sang; what a merry feast, what dancing!", "joyful"),
            ("She wept at the grave, lonely in her grief.", "sorrowful"),
            ("A ghost crept through the shadows; I trembled with dread.", "fearful"),
            ("My darling, my beloved, a gentle kiss.", "tender"),
            ("Furious, he cursed and struck: blood and war!", "wrathful"),
            ("The lake lay still and silent under the snow.", "calm"),
            ("The committee shall meet on the second Tuesday of each month.", "plain"),
            ("", "plain"),
        ] {
            assert_eq!(likeliest(text), mood, "{text}");
        }
    }

    #[test]
    fn endings_are_seen_and_mere_beginnings_are_not() {
        for (word, seen) in [("laughing", true), ("dancing", true), ("gladly", true), ("gladiator", false)] {
            assert_eq!(has_word(MOODS[0].1, word), seen, "{word}");
        }
        assert!(has_word("drip", "dripping") && !has_word("drip", "drippy"));
    }

    #[test]
    fn only_all_moods_together_are_ambiguous() {
        let spread = |text: &str| {
            let weights = weights(text);
            weights.iter().copied().fold(0.0, f32::max) / weights.iter().copied().fold(f32::INFINITY, f32::min)
        };
        assert!(spread("joy sorrow fear kiss rage calm") < 1.1);
        assert!(spread("") > 10.0);
    }
}
