//! The files' SHA-256, cached by path, length and modification time: reading 80,000 images at each start would take
//! minutes.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ambiguity_models::safetensors::hex;
use anyhow::{Result, bail};
use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::fs::write_atomic;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;

/// A SHA-256.
type Sha = [u8; 32];

/// A file that was modified this recently may change again within the same tick of the filesystem's clock, so its
/// digest is not cached.
const SETTLED: Duration = Duration::from_secs(2);

/// The cached digest of a file.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Row {
    length: u64,
    /// Modification time in nanoseconds since 1970.
    changed: u64,
    sha256: String,
}

/// Returns the files' digests, in their order, none for a file that cannot be read; the cached digests are in
/// `cache_folder`, one file per `root`. A cache that cannot be written is a warning.
pub(super) fn of_files(
    root: &Path,
    files: &[&Path],
    cache_folder: Option<&Path>,
    progress: &Progress,
    interrupt: &Interrupt,
) -> Result<Vec<Option<Sha>>> {
    let place = fs::canonicalize(root)?;
    let place = format!("{:x}", Sha256::digest(place.as_os_str().as_encoded_bytes()));
    let index = cache_folder.map(|folder| folder.join(format!("files-{}.json", &place[..16])));
    // An index that cannot be read counts as empty.
    let known = index.as_ref().and_then(|index| std::fs::read(index).ok());
    let known: BTreeMap<String, Row> = known.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();

    let now = SystemTime::now();
    let bar = progress.bar("digests", files.len() as u64, "images");
    let found = files
        .par_iter()
        .map(|path| {
            if interrupt.requested() {
                return None;
            }
            let name = path.strip_prefix(root).ok().and_then(Path::to_str);
            // The cause of an unreadable file is reported where it is decoded.
            let found = digest(path, name.and_then(|name| known.get(name))).ok();
            bar.inc(1);
            Some((name, found))
        })
        .collect::<Vec<_>>();

    let settled = nanoseconds(now.checked_sub(SETTLED).unwrap_or(UNIX_EPOCH));
    let row =
        |(name, found): &(Option<&str>, Option<(Row, Sha)>)| Some(((*name)?.to_owned(), found.as_ref()?.0.clone()));
    let rows = found.iter().flatten().filter_map(row);
    let rows: BTreeMap<String, Row> = rows.filter(|(_, row)| row.changed < settled).collect();
    if let (Some(folder), Some(index)) = (cache_folder, index)
        && rows != known
        && let Err(error) = write(folder, &index, &rows)
    {
        tracing::warn!("the digests of images cannot be cached: {error:#}");
    }
    let digests: Option<Vec<Option<Sha>>> =
        found.into_iter().map(|found| found.map(|(_, found)| found.map(|(_, sha)| sha))).collect();
    match digests {
        Some(digests) => Ok(digests),
        None => bail!(Interrupted { kept: "the digests computed so far are kept".to_owned() }),
    }
}

fn write(folder: &Path, index: &Path, rows: &BTreeMap<String, Row>) -> Result<()> {
    fs::create_dir_all(folder)?;
    write_atomic(index, &serde_json::to_vec(rows)?)?;
    Ok(())
}

/// Returns a file's digest: the cached one if the file has not changed since.
fn digest(path: &Path, known: Option<&Row>) -> io::Result<(Row, Sha)> {
    let mut file = fs::File::open(path)?;
    let metadata = file.metadata()?;
    let (length, changed) = (metadata.len(), changed(&metadata)?);
    if let Some(row) = known.filter(|row| row.length == length && row.changed == changed)
        && let Some(sha) = parse(&row.sha256)
    {
        return Ok((row.clone(), sha));
    }
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    let sha: Sha = hash.finalize().into();
    Ok((Row { length, changed, sha256: hex(&sha) }, sha))
}

fn changed(metadata: &Metadata) -> io::Result<u64> {
    Ok(nanoseconds(metadata.modified()?))
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// Parses 64 hexadecimal digits.
fn parse(text: &str) -> Option<Sha> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut sha = Sha::default();
    for (i, byte) in sha.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(sha)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settled_file_keeps_its_digest_and_a_changed_one_does_not() {
        let root = tempfile::tempdir().unwrap();
        let cache = tempfile::tempdir().unwrap();
        let path = root.path().join("a.png");
        let write = |text: &str, seconds: u64| {
            fs::write(&path, text).unwrap();
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        let digests = || {
            let files = [path.as_path()];
            let found = of_files(root.path(), &files, Some(cache.path()), &Progress::new(true), &Interrupt::default());
            found.unwrap()[0].unwrap()
        };
        let sha = |text: &str| -> Sha { Sha256::digest(text).into() };

        write("one", 1_700_000_000);
        assert_eq!(digests(), sha("one"));
        // The same length and time: the file is not read again.
        write("two", 1_700_000_000);
        assert_eq!(digests(), sha("one"));
        write("two", 1_700_000_001);
        assert_eq!(digests(), sha("two"));
        // A file written just now is read each time.
        fs::write(&path, "six").unwrap();
        assert_eq!(digests(), sha("six"));
        assert!(
            fs::read_dir(cache.path())
                .unwrap()
                .all(|index| { fs::read_to_string(index.unwrap().path()).unwrap() == "{}" })
        );
    }

    #[test]
    fn an_interrupt_keeps_the_computed_digests_and_a_damaged_index_is_ignored() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.png");
        fs::write(&path, "one").unwrap();
        let interrupt = Interrupt::default();
        interrupt.request();
        let error = of_files(root.path(), &[&path], Some(root.path()), &Progress::new(true), &interrupt).unwrap_err();
        assert!(error.is::<Interrupted>(), "{error}");
        assert_eq!(parse("zz"), None);
        assert_eq!(parse(&"0g".repeat(32)), None);
        assert_eq!(parse(&"0f".repeat(32)), Some([15; 32]));
    }
}
