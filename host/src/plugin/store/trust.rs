//! Whose signatures are trusted for which plugins, and what happens with the others.
//!
//! Keys are in the user's `trust.toml` (`host plugin trust`) and in a project's `ambiguity.toml`. Who signed a plugin is
//! remembered beside the user's: another signer is refused until the user trusts its key.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use time::format_description::well_known::Iso8601;
use time::{Date, OffsetDateTime};

use super::reference::Repository;
use super::signature::{Key, Verified, signer_id, verify};
use super::user_folder;
use crate::fs::{read_optional, write_atomic};
use crate::text::escaped;

/// The variable that sets the policy, before the files.
pub const VARIABLE: &str = "AMBIGUITY_TRUST";

/// What happens with a plugin of a registry that nobody trusted has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Signatures are not looked for.
    Off,
    /// It is used, with a warning.
    Warn,
    /// It is refused.
    Require,
}

/// A key that is trusted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    /// The name that messages have.
    pub name: String,
    /// The plugins that it may sign: `REGISTRY/NAMESPACE`, a registry, a single plugin's place, or `*`.
    pub namespace: String,
    /// The public key of minisign, in base64.
    pub key: String,
    /// The last day on which its signatures are accepted, `YYYY-MM-DD`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// The user's `trust.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustFile {
    /// The policy; nothing: `warn`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// The keys.
    #[serde(default, rename = "key", skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<TrustedKey>,
}

/// Who signed a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signer {
    /// The key's name in the trust file; nothing if the key is not trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The key's id, as minisign shows it.
    pub id: String,
}

impl Display for Signer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (key {})", self.id),
            None => write!(f, "key {} (not trusted)", self.id),
        }
    }
}

/// The keys, the policy, and who signed before.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The policy.
    pub policy: Policy,
    /// The user's own keys, and then the project's.
    keys: Vec<(TrustedKey, Key)>,
    /// Number of the user's own keys.
    n_own: usize,
    /// The folder in which signers are remembered; none without a data folder.
    remembered: Option<PathBuf>,
}

/// Returns the user's trust file: `XDG_CONFIG_HOME`, else ~/.config, then `ambiguity/trust.toml`.
pub fn trust_file() -> Option<PathBuf> {
    Some(user_folder("XDG_CONFIG_HOME", ".config")?.join("trust.toml"))
}

impl TrustFile {
    /// Reads the user's trust file; empty if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let text = read_optional(path)?;
        toml::from_str(&text).map_err(|error| anyhow!("{}: {}", path.display(), error.to_string().trim()))
    }

    /// Writes it.
    ///
    /// # Errors
    /// If that is impossible.
    pub fn write(&self, path: &Path) -> Result<()> {
        let folder = path.parent().context("the file has a folder")?;
        fs_err::create_dir_all(folder)?;
        let body = toml::to_string(self).expect("texts serialize");
        let text = format!("# Whose signatures of plugins are trusted; see `host plugin trust`.\n\n{body}");
        Ok(write_atomic(path, text.as_bytes())?)
    }
}

impl TrustedKey {
    /// Checks a key's fields, and reads it.
    ///
    /// # Errors
    /// The field that is wrong.
    pub fn read(&self) -> Result<Key> {
        let Self { name, namespace, key, expires } = self;
        let is_word = |c: char| c.is_alphanumeric() || "-_.@+ ".contains(c);
        ensure!(
            !name.trim().is_empty() && name.chars().all(is_word),
            "the key's name `{}` is no plain name",
            escaped(name)
        );
        ensure!(
            namespace == "*"
                || !namespace.is_empty() && !namespace.contains("://") && !namespace.contains(char::is_whitespace),
            "the namespace `{}` of key {name} is not REGISTRY/NAMESPACE, without oci://, or *",
            escaped(namespace)
        );
        if let Some(expires) = expires {
            last_second(expires).with_context(|| format!("key {name}"))?;
        }
        Key::read(key).with_context(|| format!("key {name}"))
    }
}

/// Refuses a key whose last day is over.
fn check_expiry(trusted: &TrustedKey) -> Result<()> {
    let Some(expires) = &trusted.expires else { return Ok(()) };
    let now = u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or_default();
    ensure!(
        now <= last_second(expires)?,
        "the key {} that signed it expired on {expires}: ask its owner for a new key, and add it with `host plugin trust add`",
        trusted.name
    );
    Ok(())
}

/// Returns the last second of a day, since 1970.
fn last_second(day: &str) -> Result<u64> {
    let date = Date::parse(day, &Iso8601::DATE).map_err(|_| anyhow!("`{}` is no day, YYYY-MM-DD", escaped(day)))?;
    let end = date.midnight().assume_utc() + time::Duration::DAY;
    Ok(u64::try_from(end.unix_timestamp() - 1).unwrap_or_default())
}

impl Trust {
    /// Reads the user's trust file and adds a project's keys; the stricter policy of both is used, unless `AMBIGUITY_TRUST`
    /// names another.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn open(project: Option<&TrustFile>) -> Result<Self> {
        let own = trust_file().map(|path| TrustFile::open(&path)).transpose()?.unwrap_or_default();
        let variable = std::env::var(VARIABLE).ok().filter(|value| !value.is_empty());
        let named = variable.map(|value| {
            let found = <Policy as clap::ValueEnum>::from_str(&value, true);
            found.map_err(|_| anyhow!("{VARIABLE} is `{}`, and must be require, warn or off", escaped(&value)))
        });
        let strictest = own.policy.into_iter().chain(project.and_then(|project| project.policy)).max();
        let policy = named.transpose()?.or(strictest).unwrap_or(Policy::Warn);
        let keys = own.keys.iter().chain(project.iter().flat_map(|project| &project.keys));
        let remembered = user_folder("XDG_DATA_HOME", ".local/share").map(|folder| folder.join("signers"));
        Self::new(policy, keys, own.keys.len(), remembered)
    }

    fn new<'a>(
        policy: Policy,
        keys: impl Iterator<Item = &'a TrustedKey>,
        n_own: usize,
        remembered: Option<PathBuf>,
    ) -> Result<Self> {
        let keys = keys.map(|key| Ok((key.clone(), key.read()?))).collect::<Result<_>>()?;
        Ok(Self { policy, keys, n_own, remembered })
    }

    /// Returns the trust of a policy without keys. Nobody is remembered.
    pub fn of_policy(policy: Policy) -> Self {
        Self { policy, keys: vec![], n_own: 0, remembered: None }
    }

    /// Returns the trust that demands a signature: by this key alone, or by one of the trusted ones. Nobody is remembered.
    ///
    /// # Errors
    /// If a file about it cannot be read.
    pub fn demanding(key: Option<TrustedKey>, project: Option<&TrustFile>) -> Result<Self> {
        match key {
            Some(key) => Self::new(Policy::Require, [&key].into_iter(), 1, None),
            None => Ok(Self { policy: Policy::Require, remembered: None, ..Self::open(project)? }),
        }
    }

    /// Returns who signed a file of this machine, with what the signature says of itself.
    ///
    /// # Errors
    /// If no trusted key, of any namespace, did, or the signature does not fit.
    pub fn verify_file(&self, bytes: &[u8], signature: &str) -> Result<(Signer, Verified)> {
        let id = signer_id(signature)?;
        let Some((trusted, key)) = self.keys.iter().find(|(_, key)| key.id() == id) else {
            bail!(
                "key {id} signed it, which is not trusted: name it with --key, or add it with `host plugin trust add`"
            );
        };
        let verified = verify(bytes, signature, key)?;
        check_expiry(trusted)?;
        Ok((Signer { name: Some(trusted.name.clone()), id }, verified))
    }

    /// Whether signatures are looked for.
    pub fn is_on(&self) -> bool {
        self.policy != Policy::Off
    }

    /// Returns an error if a signature is of a trusted key, of any namespace, but not of these bytes.
    ///
    /// # Errors
    /// That one.
    pub fn check_fit(&self, bytes: &[u8], signature: &str) -> Result<()> {
        let id = signer_id(signature)?;
        let known = self.keys.iter().find(|(_, key)| key.id() == id);
        known.map_or(Ok(()), |(_, key)| verify(bytes, signature, key).map(drop))
    }

    /// Checks that a locked plugin still has the signature that it had.
    ///
    /// # Errors
    /// If it has none, or another one.
    pub fn check_same(
        &self,
        place: &Repository,
        before: &Signer,
        files: &[Vec<u8>],
        signatures: &[Vec<String>],
    ) -> Result<()> {
        let known = self.keys_of(place).find(|(_, key)| key.id() == before.id);
        let fits = |signature: &Vec<String>| {
            let is_theirs = signature.first().and_then(|text| signer_id(text).ok()).is_some_and(|id| id == before.id);
            let fits = |(_, key): &(TrustedKey, Key)| {
                files.iter().zip(signature).all(|(bytes, text)| verify(bytes, text, key).is_ok())
            };
            is_theirs && signature.len() == files.len() && known.is_none_or(fits)
        };
        if signatures.iter().any(fits) {
            return Ok(());
        }
        let others: Vec<String> =
            signatures.iter().filter_map(|signature| signer_id(signature.first()?).ok()).collect();
        match others.first() {
            Some(other) => bail!("key {other} signed {place}, but {before} did when it was locked"),
            None => bail!("{place} is not signed, but {before} had signed it when it was locked"),
        }
    }

    /// Returns the trusted keys of a place: the user's own, or those of the project if the user has none for it.
    fn keys_of<'a>(&'a self, place: &'a Repository) -> impl Iterator<Item = &'a (TrustedKey, Key)> {
        let (own, projects) = self.keys.split_at(self.n_own);
        let is_for = move |(trusted, _): &&'a (TrustedKey, Key)| place.is_in(&trusted.namespace);
        if own.iter().any(|key| is_for(&key)) { own } else { projects }.iter().filter(is_for)
    }

    /// Returns the name of a key for a place, if it is trusted there.
    fn name_of(&self, place: &Repository, id: &str) -> Option<String> {
        self.keys_of(place).find(|(_, key)| key.id() == id).map(|(trusted, _)| trusted.name.clone())
    }

    /// Decides whether a plugin of a registry may be used. `files` are the plugin's files, `signatures` those that refer to
    /// it: one per file, in their order. Returns who signed it.
    ///
    /// # Errors
    /// If it must not be used: nobody trusted signed it where that is required; a signature does not fit, or is another
    /// version's; its key has expired; or somebody else signed it than before.
    pub fn check(
        &self,
        place: &Repository,
        version: Option<&str>,
        files: &[Vec<u8>],
        signatures: &[Vec<String>],
    ) -> Result<Option<Signer>> {
        if !self.is_on() {
            return Ok(None);
        }
        let (mut strangers, mut refused) = (vec![], None);
        for signature in signatures {
            let Some(id) = signature.first().and_then(|text| signer_id(text).ok()) else { continue };
            let Some((trusted, key)) = self.keys_of(place).find(|(_, key)| key.id() == id) else {
                strangers.push(id);
                continue;
            };
            // Another signature may be right: after a key's last day, that of the next one.
            if let Err(error) = self.check_signature(place, version, files, signature, trusted, key) {
                refused = refused.or(Some(error));
                continue;
            }
            let signer = Signer { name: Some(trusted.name.clone()), id };
            self.remember(place, &signer)?;
            return Ok(Some(signer));
        }
        if let Some(error) = refused {
            return Err(error);
        }
        let expected: Vec<&str> = self.keys_of(place).map(|(trusted, _)| trusted.name.as_str()).collect();
        let before = self.remembered(place)?;
        let found = match strangers.first() {
            None => "it is not signed".to_owned(),
            Some(id) => format!("its signature names key {id}, which is not trusted"),
        };
        let trust = strangers.first().map_or_else(String::new, |id| {
            format!("; if that key is right, `host plugin trust add NAME KEY --namespace {place}` with the public key of {id}")
        });
        match &before {
            // The same stranger as before is no change.
            Some(before) if strangers.contains(&before.id) => {}
            Some(before) => bail!("{found}, but {before} signed it before{trust}"),
            None => {}
        }
        if !expected.is_empty() {
            bail!("{found}, but {place} must be signed by {}{trust}", expected.join(" or "));
        }
        if self.policy == Policy::Require {
            bail!("{found}, and a signature by a trusted key is required{trust}");
        }
        tracing::warn!("{place}: {found}, so who made it is not known{trust}");
        // A signature whose key nobody knows cannot be verified: its key's id only shows that nothing else is claimed.
        let Some(id) = strangers.into_iter().next() else { return Ok(None) };
        let signer = Signer { name: None, id };
        self.remember(place, &signer)?;
        Ok(Some(signer))
    }

    fn check_signature(
        &self,
        place: &Repository,
        version: Option<&str>,
        files: &[Vec<u8>],
        signature: &[String],
        trusted: &TrustedKey,
        key: &Key,
    ) -> Result<()> {
        let by = &trusted.name;
        ensure!(
            signature.len() == files.len(),
            "the signature of {by} is of {} files, it has {}",
            signature.len(),
            files.len()
        );
        for (bytes, text) in files.iter().zip(signature) {
            let verified = verify(bytes, text, key).with_context(|| format!("the signature of {by} is wrong"))?;
            if verified.files.is_some_and(|n| n != files.len()) {
                bail!("{by} signed {} files, but there are {}", verified.files.unwrap_or_default(), files.len());
            }
            if verified.name.is_none() || verified.version.is_none() {
                let what =
                    format!("{by} signed the file, not what it is published as, so that it could be another version's");
                ensure!(
                    self.policy != Policy::Require,
                    "{what}: sign it in the registry, `host plugin sign oci://{place}:VERSION --key …`"
                );
                tracing::warn!("{place}: {what}");
            }
            if let Some(name) = verified.name.filter(|name| *name != place.path) {
                bail!("{by} signed it as {}, not as {}", escaped(&name), place.path);
            }
            if let (Some(signed), Some(version)) = (verified.version, version) {
                ensure!(signed == version, "{by} signed it as version {}, not {version}", escaped(&signed));
            }
        }
        check_expiry(trusted)
    }

    /// Returns the file in which the signer of a place is remembered: one each, so that processes do not meet.
    fn memory(&self, place: &Repository) -> Option<PathBuf> {
        let registry = place.registry.replace(':', "_");
        // No place is named so.
        Some(self.remembered.as_ref()?.join(registry).join(&place.path).join("_signer.toml"))
    }

    fn remembered(&self, place: &Repository) -> Result<Option<Signer>> {
        let Some(path) = self.memory(place) else { return Ok(None) };
        let text = read_optional(&path)?;
        if text.is_empty() {
            return Ok(None);
        }
        let signer: Signer =
            toml::from_str(&text).map_err(|error| anyhow!("{}: {}", path.display(), error.message()))?;
        Ok(Some(Signer { name: self.name_of(place, &signer.id).or(signer.name), id: signer.id }))
    }

    /// Remembers who signed the plugin of a place.
    fn remember(&self, place: &Repository, signer: &Signer) -> Result<()> {
        let Some(path) = self.memory(place) else { return Ok(()) };
        let text = toml::to_string(signer).expect("texts serialize");
        if read_optional(&path).is_ok_and(|before| before == text) {
            return Ok(());
        }
        fs_err::create_dir_all(path.parent().context("the file has a folder")?)?;
        Ok(write_atomic(&path, text.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::store::reference::Reference;
    use crate::plugin::store::signature::{SignedAs, Signer as SecretKey, generate};

    /// A pair of keys.
    struct Team {
        secret: SecretKey,
        public: String,
    }

    fn team() -> Team {
        let (secret, public) = generate(None).expect("randomness");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), secret).expect("written");
        let secret = SecretKey::open(file.path(), || bail!("no password")).expect("a key");
        let public = public.lines().nth(1).expect("the key").to_owned();
        Team { secret, public }
    }

    impl Team {
        fn trusted(&self, name: &str, namespace: &str) -> TrustedKey {
            let (name, namespace, key) = (name.to_owned(), namespace.to_owned(), self.public.clone());
            TrustedKey { name, namespace, key, expires: None }
        }

        fn signed(&self, name: &str, version: &str) -> Vec<String> {
            vec![self.secret.sign(b"bytes", "sea.wasm", 1, Some(SignedAs { name, version })).expect("signed")]
        }
    }

    fn place() -> Repository {
        "oci://r.example/sea/sea".parse::<Reference>().expect("a reference").repository
    }

    /// Checks the file `bytes` as version 1.0.0 with these keys.
    fn check(
        policy: Policy,
        keys: &[TrustedKey],
        memory: Option<&Path>,
        signatures: &[Vec<String>],
    ) -> Result<Option<Signer>> {
        let trust = Trust::new(policy, keys.iter(), keys.len(), memory.map(Path::to_owned)).expect("keys");
        trust.check(&place(), Some("1.0.0"), &[b"bytes".to_vec()], signatures)
    }

    fn refused(policy: Policy, keys: &[TrustedKey], memory: Option<&Path>, signatures: &[Vec<String>]) -> String {
        format!("{:#}", check(policy, keys, memory, signatures).expect_err("refused"))
    }

    #[test]
    fn a_trusted_key_signs_for_its_namespace() {
        let (ours, theirs) = (team(), team());
        let signed = [theirs.signed("sea/sea", "1.0.0"), ours.signed("sea/sea", "1.0.0")];
        let keys = [ours.trusted("ours", "r.example/sea"), theirs.trusted("theirs", "r.example/land")];
        for policy in [Policy::Warn, Policy::Require] {
            let signer = check(policy, &keys, None, &signed).expect("allowed").expect("signed");
            assert_eq!(signer.name.as_deref(), Some("ours"));
            let message = refused(policy, &keys, None, &signed[..1]);
            assert!(message.contains("but r.example/sea/sea must be signed by ours"), "{message}");
            let message = refused(policy, &keys, None, &[]);
            assert_eq!(message, "it is not signed, but r.example/sea/sea must be signed by ours");
        }
        assert_eq!(check(Policy::Off, &keys, None, &[]).expect("off"), None);
    }

    #[test]
    fn a_signature_is_of_these_bytes_this_name_and_this_version() {
        let ours = team();
        let keys = [ours.trusted("ours", "*")];
        let message = refused(Policy::Warn, &keys, None, &[ours.signed("sea/sea", "0.9.0")]);
        assert_eq!(message, "ours signed it as version 0.9.0, not 1.0.0");
        let message = refused(Policy::Warn, &keys, None, &[ours.signed("land", "1.0.0")]);
        assert_eq!(message, "ours signed it as land, not as sea/sea");
        let other = vec![ours.secret.sign(b"other", "sea.wasm", 1, None).expect("signed")];
        let message = refused(Policy::Warn, &keys, None, &[other]);
        assert!(message.starts_with("the signature of ours is wrong: "), "{message}");
        let message = refused(
            Policy::Warn,
            &keys,
            None,
            &[[ours.signed("sea/sea", "1.0.0"), ours.signed("sea/sea", "1.0.0")].concat()],
        );
        assert_eq!(message, "the signature of ours is of 2 files, it has 1");
    }

    #[test]
    fn keys_expire() {
        let ours = team();
        let key = |expires: &str| [TrustedKey { expires: Some(expires.to_owned()), ..ours.trusted("ours", "*") }];
        let signed = [ours.signed("sea/sea", "1.0.0")];
        assert!(check(Policy::Require, &key("2999-12-31"), None, &signed).expect("in time").is_some());
        let message = refused(Policy::Warn, &key("2020-01-31"), None, &signed);
        assert!(message.starts_with("the key ours that signed it expired on 2020-01-31"), "{message}");
        assert!(key("soon")[0].read().is_err());
    }

    #[test]
    fn another_signer_than_before_is_refused_with_both_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let memory = Some(folder.path());
        let (ours, theirs, stranger) = (team(), team(), team());
        let id = |team: &Team| Key::read(&team.public).expect("a key").id();
        let [signed, by_theirs, by_stranger] =
            [&ours, &theirs, &stranger].map(|team| vec![team.signed("sea/sea", "1.0.0")]);

        // Nobody is known yet: the first signer is remembered.
        let first = check(Policy::Warn, &[], memory, &by_stranger).expect("allowed").expect("signed");
        assert_eq!(first, Signer { name: None, id: id(&stranger) });
        assert!(check(Policy::Warn, &[], memory, &by_stranger).is_ok(), "the same as before");
        let message = refused(Policy::Warn, &[], memory, &by_theirs);
        let both = format!(
            "its signature names key {}, which is not trusted, but key {} (not trusted) signed it before",
            id(&theirs),
            id(&stranger)
        );
        assert!(message.starts_with(&both), "{message}");
        let message = refused(Policy::Warn, &[], memory, &[]);
        assert_eq!(message, format!("it is not signed, but key {} (not trusted) signed it before", id(&stranger)));

        // Who trusts the new key has decided.
        let keys = [ours.trusted("ours", "r.example/sea")];
        assert!(check(Policy::Warn, &keys, memory, &signed).expect("trusted").is_some());
        let message = refused(Policy::Warn, &keys, memory, &by_theirs);
        assert!(message.contains("signed it before") && message.contains("ours (key "), "{message}");
    }

    #[test]
    fn one_right_signature_is_enough() {
        let (ours, theirs) = (team(), team());
        let old = TrustedKey { expires: Some("2020-01-31".to_owned()), ..ours.trusted("old", "*") };
        let keys = [old, theirs.trusted("new", "*")];
        let signed = [ours.signed("sea/sea", "1.0.0"), theirs.signed("sea/sea", "1.0.0")];
        let signer = check(Policy::Require, &keys, None, &signed).expect("the new one").expect("signed");
        assert_eq!(signer.name.as_deref(), Some("new"));
        assert!(refused(Policy::Require, &keys, None, &signed[..1]).contains("expired on 2020-01-31"));
    }

    #[test]
    fn a_signature_of_a_file_alone_is_of_no_version() {
        let ours = team();
        let keys = [ours.trusted("ours", "*")];
        let signed = [vec![ours.secret.sign(b"bytes", "sea.wasm", 1, None).expect("signed")]];
        assert!(check(Policy::Warn, &keys, None, &signed).expect("with a warning").is_some());
        let message = refused(Policy::Require, &keys, None, &signed);
        assert!(message.starts_with("ours signed the file, not what it is published as"), "{message}");
        let of_two = [vec![ours.secret.sign(b"bytes", "sea.onnx", 2, None).expect("signed")]];
        assert_eq!(refused(Policy::Warn, &keys, None, &of_two), "ours signed 2 files, but there are 1");
    }

    #[test]
    fn a_projects_keys_do_not_replace_the_users() {
        let (ours, projects) = (team(), team());
        let keys = [ours.trusted("ours", "r.example/sea"), projects.trusted("projects", "*")];
        let trust = Trust::new(Policy::Require, keys.iter(), 1, None).expect("keys");
        let signed = [projects.signed("sea/sea", "1.0.0")];
        assert!(trust.check(&place(), Some("1.0.0"), &[b"bytes".to_vec()], &signed).is_err());
        let land = "oci://r.example/land/sea".parse::<Reference>().expect("a reference").repository;
        let signed = [projects.signed("land/sea", "1.0.0")];
        assert!(trust.check(&land, Some("1.0.0"), &[b"bytes".to_vec()], &signed).expect("allowed").is_some());
    }

    #[test]
    fn a_signature_can_be_required() {
        let stranger = team();
        let message = refused(Policy::Require, &[], None, &[]);
        assert_eq!(message, "it is not signed, and a signature by a trusted key is required");
        let message = refused(Policy::Require, &[], None, &[stranger.signed("sea/sea", "1.0.0")]);
        assert!(message.contains("host plugin trust add NAME KEY --namespace r.example/sea/sea"), "{message}");
    }
}
