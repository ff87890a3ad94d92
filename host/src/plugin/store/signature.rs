//! Signatures of plugins by minisign: beside a file as `FILE.minisig`, or in a registry.
//!
//! The trusted comment of a signature that `host plugin push` makes says what the file is published as, separated by tabs:
//! `timestamp:… file:sea.wasm files:1 name:team/sea version:1.2.0`. A
//! registry that passes an old version off as a new one, or one plugin as another, does not have a signature for it.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minisign::{KeyPair, PublicKey, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};

use crate::text::{escaped, in_one_line};

/// The extension of a signature's file, after the file's own.
pub const EXTENSION: &str = "minisig";

/// Number of bytes of a signature's or key's file, above which it is none.
pub const MAX_FILE: usize = 16 << 10;

/// Number of bytes of an ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

/// Returns the file of a signature beside a file: `sea.wasm.minisig`.
pub fn signature_file(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(EXTENSION);
    name.into()
}

/// A public key.
#[derive(Clone, Debug)]
pub struct Key(PublicKey);

/// A signature that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What the signature's trusted comment says.
    pub comment: String,
    /// Seconds since 1970 at which it was signed, by the signer's clock.
    pub timestamp: Option<u64>,
    /// The name that it was signed as.
    pub name: Option<String>,
    /// The version that it was signed as.
    pub version: Option<String>,
    /// Number of files that the plugin had.
    pub files: Option<usize>,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bytes() == other.0.to_bytes()
    }
}

impl Key {
    /// Reads a public key: base64 alone, as `minisign -V -P` takes it, or the text of a file that `minisign -G` writes.
    ///
    /// # Errors
    /// If it is none.
    pub fn read(text: &str) -> Result<Self> {
        let text = text.trim();
        let key = match text.contains('\n') {
            true => PublicKeyBox::from_string(text).and_then(PublicKeyBox::into_public_key),
            false => PublicKey::from_base64(text),
        };
        key.map(Self).map_err(|_| anyhow!("{} is no public key of minisign", escaped(&shortened(text))))
    }

    /// Reads a public key from a file.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(file: &Path) -> Result<Self> {
        let text = small_text(file)?;
        Self::read(&text).map_err(|_| anyhow!("{} is no public key of minisign", file.display()))
    }

    /// Returns the key in base64.
    pub fn to_base64(&self) -> String {
        self.0.to_base64()
    }

    /// Returns the key's id, as minisign shows it.
    pub fn id(&self) -> String {
        id(self.0.keynum())
    }
}

/// Returns the id of the key that a signature was made with.
///
/// # Errors
/// If the text is no signature.
pub fn signer_id(signature: &str) -> Result<String> {
    Ok(id(read(signature)?.keynum()))
}

/// Returns a key's id as minisign shows it: its bytes as a little-endian number, in hexadecimal.
fn id(keynum: &[u8]) -> String {
    keynum.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

fn read(signature: &str) -> Result<SignatureBox> {
    ensure!(signature.len() <= MAX_FILE, "it is too long for a signature");
    let none = || anyhow!("it is no signature of minisign");
    // minisign takes the length of the comment's signature for granted.
    let comments = signature.lines().nth(3).and_then(|line| STANDARD.decode(line.trim()).ok());
    ensure!(comments.is_none_or(|comments| comments.len() == SIGNATURE_BYTES), none());
    SignatureBox::from_string(signature).map_err(|_| none())
}

/// Verifies a signature of bytes.
///
/// # Errors
/// If the key is another one's, or the bytes are others.
pub fn verify(bytes: &[u8], signature: &str, key: &Key) -> Result<Verified> {
    let signature = read(signature)?;
    ensure!(signature.keynum() == key.0.keynum(), "it was made with key {}, not {}", id(signature.keynum()), key.id());
    minisign::verify(&key.0, &signature, Cursor::new(bytes), true, false, true).map_err(|_| {
        anyhow!("the signature of key {} does not fit: the file or the signature was changed", key.id())
    })?;
    let comment = signature.trusted_comment().unwrap_or_default();
    let value = |name: &str| {
        let prefix = format!("{name}:");
        comment.split('\t').find_map(|word| word.strip_prefix(&*prefix)).map(str::to_owned)
    };
    let timestamp = value("timestamp").and_then(|seconds| seconds.parse().ok());
    let (name, version) = (value("name"), value("version"));
    let files = value("files").and_then(|files| files.parse().ok());
    Ok(Verified { comment: escaped(&in_one_line(&comment)).into_owned(), timestamp, name, version, files })
}

/// What a file is published as.
#[derive(Clone, Copy, Debug)]
pub struct SignedAs<'a> {
    /// The plugin's path in the registry: `team/sea`.
    pub name: &'a str,
    /// The version.
    pub version: &'a str,
}

/// A secret key that can sign.
pub struct Signer {
    secret: SecretKey,
    public: PublicKey,
}

impl Signer {
    /// Reads a secret key, which `password` unlocks; it is asked for only if the key has one.
    ///
    /// # Errors
    /// If the file is no key, or the password is another one.
    pub fn open(file: &Path, password: impl FnOnce() -> Result<String>) -> Result<Self> {
        let text = small_text(file)?;
        let none = || anyhow!("{} is no secret key of minisign", file.display());
        let secret = match SecretKeyBox::from_string(&text).and_then(SecretKeyBox::into_unencrypted_secret_key) {
            Ok(secret) => secret,
            Err(_) => {
                // A file that is no key at all asks for no password.
                ensure!(text.lines().nth(1).is_some_and(|line| line.starts_with("RW")), none());
                let password = password()?;
                let opened = SecretKeyBox::from_string(&text).and_then(|file| file.into_secret_key(Some(password)));
                opened.map_err(|_| anyhow!("the password does not unlock {}", file.display()))?
            }
        };
        let public = PublicKey::from_secret_key(&secret).map_err(|_| none())?;
        Ok(Self { secret, public })
    }

    /// Returns the public key.
    pub fn key(&self) -> Key {
        Key(self.public.clone())
    }

    /// Signs bytes of one of `n_files` files of a plugin, and what they are published as, if that is known.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn sign(&self, bytes: &[u8], file: &str, n_files: usize, published: Option<SignedAs<'_>>) -> Result<String> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let published = published.map(|SignedAs { name, version }| format!("\tname:{name}\tversion:{version}"));
        let file = escaped(file);
        let trusted =
            format!("timestamp:{seconds}\tfile:{file}\tfiles:{n_files}{}\thashed", published.unwrap_or_default());
        let untrusted = format!("signature from key {}", self.key().id());
        let signature =
            minisign::sign(Some(&self.public), &self.secret, Cursor::new(bytes), Some(&trusted), Some(&untrusted));
        Ok(signature.map_err(|error| anyhow!("signing failed: {error}"))?.to_string())
    }
}

/// Makes a pair of keys; returns the texts of the secret key's file, with a password or without, and the public key's.
///
/// # Errors
/// If there is no randomness.
pub fn generate(password: Option<String>) -> Result<(String, String)> {
    let pair = match password {
        Some(password) => KeyPair::generate_encrypted_keypair(Some(password)),
        None => KeyPair::generate_unencrypted_keypair(),
    };
    let failed = |error| anyhow!("no keys could be made: {error}");
    let KeyPair { pk, sk } = pair.map_err(failed)?;
    let id = id(pk.keynum());
    let secret = sk.to_box(Some(&format!("minisign secret key {id}"))).map_err(failed)?.to_string();
    Ok((secret, public_text(&pk, &id)))
}

fn public_text(key: &PublicKey, id: &str) -> String {
    format!("untrusted comment: minisign public key {id}\n{}\n", key.to_base64())
}

/// Reads a small text file.
fn small_text(file: &Path) -> Result<String> {
    let length = fs_err::metadata(file)?.len();
    if length > MAX_FILE as u64 {
        bail!("{} has {length} bytes, too many for a key or a signature", file.display());
    }
    fs_err::read_to_string(file).context("a key or a signature is text")
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key in a file, and its public half.
    fn keys(password: Option<&str>) -> (tempfile::TempDir, PathBuf, Key) {
        let folder = tempfile::tempdir().expect("a folder");
        let (secret, public) = generate(password.map(str::to_owned)).expect("randomness");
        let file = folder.path().join("team.key");
        std::fs::write(&file, secret).expect("written");
        (folder, file, Key::read(&public).expect("a key"))
    }

    fn no_password() -> Result<String> {
        bail!("nobody is there to ask")
    }

    #[test]
    fn a_signature_fits_its_bytes_and_key_alone() {
        let (_folder, file, key) = keys(None);
        let signer = Signer::open(&file, no_password).expect("no password");
        assert_eq!(signer.key(), key);
        let signature =
            signer.sign(b"bytes", "sea.wasm", 1, Some(SignedAs { name: "a/sea", version: "1.2.0" })).expect("signed");
        let verified = verify(b"bytes", &signature, &key).expect("it fits");
        assert_eq!((verified.name.as_deref(), verified.version.as_deref()), (Some("a/sea"), Some("1.2.0")));
        assert!(verified.timestamp.is_some_and(|seconds| seconds > 1_700_000_000));
        assert_eq!(signer_id(&signature).expect("a signature"), key.id());

        let message = verify(b"other", &signature, &key).expect_err("other bytes").to_string();
        assert!(message.ends_with("the file or the signature was changed"), "{message}");
        let altered = signature.replace("version:1.2.0", "version:9.9.9");
        assert!(verify(b"bytes", &altered, &key).is_err(), "the comment is signed too");
        let (_other_folder, _, other) = keys(None);
        let message = verify(b"bytes", &signature, &other).expect_err("another key").to_string();
        assert_eq!(message, format!("it was made with key {}, not {}", key.id(), other.id()));
        // minisign itself would panic at this.
        let lines: Vec<&str> = signature.lines().collect();
        let short = [&lines[..3], &["AAAA"]].concat().join("\n");
        for text in ["", "hello", &signature[..40], &"x".repeat(MAX_FILE + 1), &short] {
            assert!(verify(b"bytes", text, &key).is_err());
        }
    }

    #[test]
    fn a_password_unlocks_its_key() {
        let (_folder, file, key) = keys(Some("open sesame"));
        assert!(Signer::open(&file, no_password).is_err());
        let message = Signer::open(&file, || Ok("sesame".to_owned())).err().expect("another password").to_string();
        assert!(message.starts_with("the password does not unlock "), "{message}");
        let signer = Signer::open(&file, || Ok("open sesame".to_owned())).expect("the password");
        assert_eq!(signer.key(), key);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("no.key");
        std::fs::write(&file, "hello\nworld\n").expect("written");
        assert!(Key::open(&file).is_err());
        let message = Signer::open(&file, || panic!("no password is asked for")).err().expect("no key").to_string();
        assert!(message.ends_with("is no secret key of minisign"), "{message}");
        assert!(Key::read("RWQ\u{1b}").expect_err("no key").to_string().contains("\\u{1b}"));
    }
}
