//! References to plugins in registries: `oci://REGISTRY/NAMESPACE/NAME:VERSION`.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use semver::{Version, VersionReq};

use crate::text::{escaped, sha256_digits};

/// What every reference begins with.
pub const SCHEME: &str = "oci://";

/// Maximum number of characters of a registry's and of a repository's name, as the specification has it.
const MAX_NAME: usize = 255;
/// Maximum number of characters of a tag, as the specification has it.
const MAX_TAG: usize = 128;

/// The place of a plugin's versions.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repository {
    /// The registry: `HOST` or `HOST:PORT`.
    pub registry: String,
    /// The path in it: `NAMESPACE/NAME`, of any depth.
    pub path: String,
}

/// Which version of a plugin is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The highest version that a range allows: `^1.2`, and `*` where none is named.
    Range(VersionReq),
    /// A tag, in most cases a version: `1.2.0`.
    Tag(String),
    /// The sha256 of a manifest, in hexadecimal.
    Digest(String),
}

/// A reference to a plugin in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The place of the plugin's versions.
    pub repository: Repository,
    /// Which version is meant.
    pub selector: Selector,
}

/// Whether a text refers to a plugin in a registry.
pub fn is_reference(text: &str) -> bool {
    text.starts_with(SCHEME)
}

impl Repository {
    /// Returns the place of a registry; nothing if there can be no such place.
    pub fn new(registry: &str, path: &str) -> Option<Self> {
        let valid = is_registry(registry) && is_path(path);
        valid.then(|| Self { registry: canonical(registry), path: path.to_owned() })
    }

    /// Returns the plugin's name: the last component.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Returns the host without the port.
    pub fn host(&self) -> &str {
        match self.registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => self.registry.split(':').next().unwrap_or_default(),
        }
    }

    /// Returns the reference to a tag of this place.
    pub fn tagged(&self, tag: &str) -> Reference {
        Reference { repository: self.clone(), selector: Selector::Tag(tag.to_owned()) }
    }

    /// Returns whether a namespace contains this place: it is the beginning of `REGISTRY/PATH`, up to a component's end;
    /// `*` contains all.
    pub fn is_in(&self, namespace: &str) -> bool {
        let whole = format!("{}/{}", self.registry, self.path);
        let namespace = namespace.trim_end_matches('/');
        let (registry, path) = namespace.split_at(namespace.find('/').unwrap_or(namespace.len()));
        let namespace = format!("{}{path}", canonical(registry));
        namespace == "*" || whole.strip_prefix(&*namespace).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl Display for Repository {
    /// `REGISTRY/PATH`.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)
    }
}

impl Display for Reference {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repository)?;
        match &self.selector {
            Selector::Range(range) if *range == VersionReq::STAR => Ok(()),
            Selector::Range(range) => write!(f, ":{range}"),
            Selector::Tag(tag) => write!(f, ":{tag}"),
            Selector::Digest(digest) => write!(f, "@sha256:{digest}"),
        }
    }
}

impl FromStr for Reference {
    type Err = String;

    /// Reads `oci://REGISTRY/NAMESPACE/NAME`, followed by `:VERSION`, `:RANGE`, `@sha256:DIGEST` or nothing.
    fn from_str(text: &str) -> Result<Self, String> {
        let shown = escaped(text);
        let wrong = |what: &str| {
            format!("{shown} is no reference to a plugin: {what}; write oci://REGISTRY/NAMESPACE/NAME:VERSION")
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not begin with oci://"))?;
        let (registry, rest) = rest.split_once('/').ok_or_else(|| wrong("it names no repository"))?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if !is_registry(registry) {
            return Err(wrong("its registry is not HOST or HOST:PORT"));
        }
        if !is_path(path) {
            return Err(wrong(
                "the components of a repository have lowercase letters, digits, and single . _ - between them",
            ));
        }
        let selector = match (tag, digest) {
            (_, Some(digest)) => {
                let digits = digest.strip_prefix("sha256:").ok_or_else(|| wrong("its digest is not sha256:HEX"))?;
                Selector::Digest(sha256_digits(digits).map_err(|why| wrong(&why))?)
            }
            (None, None) => Selector::Range(VersionReq::STAR),
            (Some(tag), None) if tag.starts_with(['^', '~', '>', '<', '=', '*']) || tag.contains([',', '*']) => {
                let range = VersionReq::parse(tag);
                Selector::Range(range.map_err(|error| wrong(&format!("its range cannot be read ({error})")))?)
            }
            (Some(tag), None) if is_tag(tag) => Selector::Tag(tag.to_owned()),
            (Some(_), None) => {
                return Err(wrong("its tag has letters, digits, `_`, `.` and `-`, or is a range such as ^1.2"));
            }
        };
        Ok(Self { repository: Repository { registry: canonical(registry), path: path.to_owned() }, selector })
    }
}

/// Returns the one spelling of a registry: in lower case, without the port that it has anyway, docker's own by its shortest
/// name.
fn canonical(registry: &str) -> String {
    let lower = registry.to_ascii_lowercase();
    let short = lower.strip_suffix(":443").unwrap_or(&lower);
    let is_docker = ["index.docker.io", "registry-1.docker.io"].contains(&short);
    if is_docker { "docker.io".to_owned() } else { short.to_owned() }
}

/// Whether a text is `HOST` or `HOST:PORT`.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", rest),
        Some(_) => return false,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let labels = host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    });
    let is_port = port.strip_prefix(':').is_some_and(|digits| digits.parse::<u16>().is_ok());
    labels && text.len() <= MAX_NAME && (port.is_empty() || is_port)
}

/// Whether a text is a repository's path, as the specification has it.
fn is_path(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_component = |part: &str| {
        let mut runs = part.split(['.', '_', '-']);
        let bytes = part.as_bytes();
        let ends = [bytes.first(), bytes.last()];
        let separators = part.contains("..") || part.contains("___") || part.contains("._") || part.contains("_.");
        ends.into_iter().flatten().all(|byte| is_letter(*byte))
            && !separators
            && runs.all(|run| run.bytes().all(is_letter))
    };
    !text.is_empty() && text.len() <= MAX_NAME && text.split('/').all(|part| !part.is_empty() && is_component(part))
}

/// Whether a text is a tag, as the specification has it.
pub fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().next().is_some_and(is_word)
        && text.len() <= MAX_TAG
        && text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

/// Returns the versions among tags, the highest first.
pub fn versions_of<'a>(tags: impl IntoIterator<Item = &'a String>) -> Vec<Version> {
    let mut versions: Vec<Version> = tags.into_iter().filter_map(|tag| Version::parse(tag).ok()).collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.dedup();
    versions
}

/// Returns the highest version that a range allows. Versions before a release (`1.0.0-rc.1`) are meant only where the range
/// names one, or where there is nothing else.
pub fn highest(versions: &[Version], range: &VersionReq) -> Option<Version> {
    let mut allowed: Vec<&Version> = versions.iter().filter(|version| range.matches(version)).collect();
    if allowed.is_empty() && *range == VersionReq::STAR {
        allowed = versions.iter().collect();
    }
    allowed.into_iter().max().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab";

    #[test]
    fn references_read_and_print() {
        for text in [
            "oci://127.0.0.1:5000/team/sea:1.2.0",
            "oci://registry.example.com/a/b/c-d_e.f:latest",
            "oci://localhost/sea:^1.2",
            "oci://[::1]:5000/team/sea:>=1.2, <2",
            "oci://r.example/team/sea",
        ] {
            let reference: Reference = text.parse().expect(text);
            assert_eq!(reference.to_string(), text);
            assert_eq!(reference, reference.to_string().parse().expect("itself"));
        }
        let pinned: Reference = format!("oci://r.example/team/sea:1.2.0@sha256:{DIGEST}").parse().expect("pinned");
        assert_eq!(pinned.selector, Selector::Digest(DIGEST.to_owned()));
        assert_eq!((pinned.repository.name(), pinned.repository.host()), ("sea", "r.example"));
        let exact: Reference = "oci://r.example/team/sea:=1.2.0".parse().expect("a range");
        assert!(matches!(exact.selector, Selector::Range(_)));
    }

    #[test]
    fn a_registry_has_one_spelling() {
        for (text, printed) in [
            ("oci://Registry.Example.com:443/team/sea:1.0.0", "oci://registry.example.com/team/sea:1.0.0"),
            ("oci://registry-1.docker.io/team/sea", "oci://docker.io/team/sea"),
        ] {
            assert_eq!(text.parse::<Reference>().expect(text).to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "oci://",
            "oci://host",
            "oci://host/",
            "oci://host/Team/sea",
            "oci://host/../etc",
            "oci://host/team//sea",
            "oci://host/team/sea:",
            "oci://host/team/sea:a b",
            "oci://host/team/sea:^x",
            "oci://host/team/sea@sha256:12",
            "oci://host/team/sea@md5:12",
            "oci://user@host/team/sea",
            "oci://host:99999/team/sea",
            "oci://-host/team/sea",
            "oci://host/team/-sea",
            "oci://host/team/sea:1.0.0/../x",
            "oci://ho\u{1b}st/team/sea",
        ] {
            let message = text.parse::<Reference>().expect_err(text);
            assert!(message.contains(" is no reference to a plugin: ") && !message.contains('\u{1b}'), "{message}");
        }
    }

    #[test]
    fn the_highest_allowed_version_is_chosen() {
        let tags = ["1.2.0", "1.10.1", "2.0.0-rc.1", "latest", "1.9", "0.3.0", "1.2.0"].map(str::to_owned);
        let versions = versions_of(&tags);
        let chosen =
            |range: &str| highest(&versions, &range.parse().expect("a range")).map(|version| version.to_string());
        assert_eq!(versions.len(), 4);
        assert_eq!(chosen("^1.2").as_deref(), Some("1.10.1"));
        assert_eq!(chosen("~1.2").as_deref(), Some("1.2.0"));
        assert_eq!(chosen("*").as_deref(), Some("1.10.1"));
        assert_eq!(chosen("^2.0.0-rc.1").as_deref(), Some("2.0.0-rc.1"));
        assert_eq!(chosen("^3"), None);
        let early = versions_of(&["1.0.0-alpha".to_owned()]);
        assert_eq!(
            highest(&early, &VersionReq::STAR).map(|version| version.to_string()).as_deref(),
            Some("1.0.0-alpha")
        );
    }

    #[test]
    fn a_namespace_ends_with_a_component() {
        let repository: Reference = "oci://r.example:5000/team/sea".parse().expect("a reference");
        for (namespace, is_in) in [
            ("*", true),
            ("r.example:5000", true),
            ("r.example:5000/team", true),
            ("r.example:5000/team/sea", true),
            ("R.Example:5000/team", true),
            ("r.example:5000/te", false),
            ("r.example", false),
            ("r.example:5000/team/sea/x", false),
        ] {
            assert_eq!(repository.repository.is_in(namespace), is_in, "{namespace}");
        }
    }
}
