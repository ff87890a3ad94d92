//! The message for a key that a plugin's settings do not have.

/// Minimum Jaro-Winkler similarity of a known key that is suggested for an unknown one.
const MIN_SIMILARITY: f64 = 0.75;

/// Returns the message for the unknown key `name`: the most similar of the keys in `known`, otherwise all of them.
pub(super) fn unknown_key(name: &str, known: &[&str]) -> String {
    let candidates = known.iter().map(|key| (strsim::jaro_winkler(key, name), key));
    let nearest = candidates.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(similarity, _)| *similarity > MIN_SIMILARITY);
    let hint = match nearest {
        Some((_, key)) => format!("did you mean `{key}`?"),
        None => format!("known here: {}", known.join(", ")),
    };
    format!("unknown key `{name}`; {hint}")
}
