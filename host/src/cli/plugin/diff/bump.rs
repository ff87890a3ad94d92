//! What a change of a plugin asks of its version, by semantic versioning as cargo understands it.

use std::cmp::Ordering;

use semver::{BuildMetadata, Prerelease, Version};

/// The part of a version that a change raises, at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::cli::plugin) enum Bump {
    /// Nothing changed: the files are the same.
    None,
    /// Every output has the same bits, and what others rely on is the same.
    Patch,
    /// Outputs moved within the tolerance, or something was added.
    Minor,
    /// Whatever relied on the old plugin may notice.
    Major,
}

/// A change, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli::plugin) struct Reason {
    pub(in crate::cli::plugin) bump: Bump,
    /// A sentence without a final dot.
    pub(in crate::cli::plugin) text: String,
}

impl Bump {
    /// Returns the name of the bump.
    pub(in crate::cli::plugin) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Patch => "patch",
            Self::Minor => "minor",
            Self::Major => "major",
        }
    }

    /// Returns the lowest version after `old` that this change may have. Below 1.0.0, a major change raises the second number
    /// and all others the third; below 0.1.0, every change raises the third. What a pre-release announces may still change:
    /// 2.0.0 follows 2.0.0-rc.1 after any change.
    pub(in crate::cli::plugin) fn least_version(self, old: &Version) -> Version {
        if self == Self::None {
            return old.clone();
        }
        let &Version { major, minor, patch, .. } = old;
        let is_announced = !old.pre.is_empty();
        let next = |number: u64| number.saturating_add(1);
        // The three numbers of the part that is raised, and whether a pre-release announces such a change already.
        let (raised, is_such) = match (self, major, minor) {
            (Self::Major, 1.., _) => ((next(major), 0, 0), minor == 0 && patch == 0),
            (Self::Major, 0, 1..) | (Self::Minor, 1.., _) => ((major, next(minor), 0), patch == 0),
            _ => ((major, minor, next(patch)), true),
        };
        let (major, minor, patch) = if is_announced && is_such { (major, minor, patch) } else { raised };
        Version { major, minor, patch, pre: Prerelease::EMPTY, build: BuildMetadata::EMPTY }
    }

    /// Returns whether the version `new` is high enough for this change after `old`. A pre-release is if the release that it
    /// announces is.
    pub(in crate::cli::plugin) fn is_enough(self, old: &Version, new: &Version) -> bool {
        let announced = Version { pre: Prerelease::EMPTY, build: BuildMetadata::EMPTY, ..new.clone() };
        match self {
            Self::None => new.cmp_precedence(old) != Ordering::Less,
            _ => new.cmp_precedence(old) == Ordering::Greater && announced >= self.least_version(old),
        }
    }
}

impl Reason {
    pub(super) fn new(bump: Bump, text: impl Into<String>) -> Self {
        Self { bump, text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Bump; 4] = [Bump::None, Bump::Patch, Bump::Minor, Bump::Major];

    fn version(text: &str) -> Version {
        Version::parse(text).expect("a version")
    }

    #[test]
    fn versions_are_raised_by_cargos_rule() {
        let cases = [
            ("1.2.3", ["1.2.3", "1.2.4", "1.3.0", "2.0.0"]),
            ("0.2.3", ["0.2.3", "0.2.4", "0.2.4", "0.3.0"]),
            ("0.0.3", ["0.0.3", "0.0.4", "0.0.4", "0.0.4"]),
            ("2.0.0-rc.1", ["2.0.0-rc.1", "2.0.0", "2.0.0", "2.0.0"]),
            ("2.1.0-rc.1", ["2.1.0-rc.1", "2.1.0", "2.1.0", "3.0.0"]),
            ("2.1.1-rc.1", ["2.1.1-rc.1", "2.1.1", "2.2.0", "3.0.0"]),
            ("0.3.0-rc.1", ["0.3.0-rc.1", "0.3.0", "0.3.0", "0.3.0"]),
            ("0.3.1-rc.1", ["0.3.1-rc.1", "0.3.1", "0.3.1", "0.4.0"]),
            ("1.2.3+5", ["1.2.3+5", "1.2.4", "1.3.0", "2.0.0"]),
        ];
        for (old, least) in cases {
            assert_eq!(ALL.map(|bump| bump.least_version(&version(old)).to_string()), least, "{old}");
        }
        let last = Version::new(u64::MAX, 0, 0);
        assert_eq!(Bump::Major.least_version(&last), last);
    }

    #[test]
    fn a_version_is_enough_from_the_least_on() {
        let cases = [
            ("1.2.3", "1.2.3", [true, false, false, false]),
            ("1.2.3", "1.2.2", [false; 4]),
            ("1.2.3", "1.2.4", [true, true, false, false]),
            ("1.2.3", "1.3.0", [true, true, true, false]),
            ("1.2.3", "2.0.0", [true; 4]),
            ("1.2.3", "2.0.0-rc.1", [true; 4]),
            ("1.2.3", "1.2.3+6", [true, false, false, false]),
            ("0.2.3", "0.2.4", [true, true, true, false]),
            ("0.2.3", "0.3.0", [true; 4]),
            ("2.0.0-rc.1", "2.0.0-rc.2", [true; 4]),
            ("2.0.0-rc.2", "2.0.0-rc.1", [false; 4]),
        ];
        for (old, new, enough) in cases {
            assert_eq!(ALL.map(|bump| bump.is_enough(&version(old), &version(new))), enough, "{old} to {new}");
        }
    }
}
