//! The files of a model: what the Hub announces of them, and their download into the cache, of the announced length and,
//! where the ETag is a sha256, of that digest.

use serde::Deserialize;

use super::Id;
use super::cache::{Repository, expect_component, expect_file};
use crate::net::{Client, Downloads, Failure, Meter, Remote, Request, check_space, missing};
use crate::text::{counted, gibibytes};

/// Number of bytes of a list of files, above which it is refused.
const MAX_LIST: usize = 64 << 20;
/// Number of hexadecimal digits of a sha256.
const SHA256_DIGITS: usize = 64;

/// The files of a revision, as the Hub lists them.
#[derive(Debug, Deserialize)]
pub struct Listing {
    /// The commit.
    pub sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// Requests the files of a revision.
    pub fn request(client: &Client, id: &Id) -> Result<Self, Failure> {
        let url = client.address(["api", "models", &id.owner, &id.name, "revision", &id.revision]);
        let mut attempts = client.attempts();
        let bytes = loop {
            match client.document(Request::new("GET", url.clone()), MAX_LIST) {
                Ok((_, bytes)) => break bytes,
                // Without a network, this is where a user learns it.
                Err(failure @ Failure::Unreachable { .. }) => return Err(failure),
                Err(failure) => attempts.after(&id.to_string(), failure)?,
            }
        };
        let listing: Self = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::wrong(&url, format!("does not list the files of a model: {error}")))?;
        expect_component("a commit", &listing.sha)?;
        Ok(listing)
    }

    /// The names of the files.
    pub fn names(&self) -> Vec<&str> {
        self.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect()
    }
}

/// A file of a model.
#[derive(Debug)]
pub struct ModelFile {
    /// Its ETag, the name of its blob.
    etag: String,
    /// The download.
    remote: Remote,
}

impl ModelFile {
    /// Requests what the Hub announces of a file: its ETag and its size.
    pub fn request(client: &Client, id: &Id, commit: &str, name: &str) -> Result<Self, Failure> {
        expect_file(name)?;
        let path = [&*id.owner, &id.name, "resolve", commit].into_iter().chain(name.split('/'));
        let url = client.address(path);
        let mut attempts = client.attempts();
        let reply = loop {
            match client.head(&url) {
                Ok(reply) => break reply,
                Err(failure) => attempts.after(name, failure)?,
            }
        };
        let headers = &reply.headers;
        if let Some(other) = headers.get("X-Repo-Commit").filter(|other| *other != commit) {
            return Err(Failure::wrong(&reply.url, format!("has commit {other} of {name}, not {commit}")));
        }
        let redirected = reply.status >= 300;
        let header = |linked, plain| headers.get(linked).or_else(|| headers.get(plain).filter(|_| !redirected));
        // A redirect's own length says nothing of the file, but the Hub repeats the ETag of small files in it.
        let etag = header("X-Linked-ETag", "ETag").or_else(|| headers.get("ETag"));
        let size = header("X-Linked-Size", "Content-Length").and_then(|size| size.parse().ok());
        let (Some(etag), Some(size)) = (etag, size) else {
            let what = format!("does not announce ETag and size of {name}; HF_ENDPOINT must be a Hub's own address");
            return Err(Failure::wrong(&reply.url, what));
        };
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        expect_component("an ETag", &etag)?;
        let is_digest = etag.len() == SHA256_DIGITS && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let sha256 = is_digest.then(|| etag.clone());
        Ok(Self { etag, remote: Remote { name: name.to_owned(), url, size, sha256 } })
    }
}

/// Downloads files into the cache, and links them into the snapshot of a commit.
///
/// # Errors
/// If the disk has no space, or a file cannot be downloaded.
pub fn download(
    downloads: Downloads<'_>,
    repository: &Repository,
    id: &Id,
    commit: &str,
    files: &[ModelFile],
) -> Result<(), Failure> {
    let mut lacking = 0_u64;
    for ModelFile { etag, remote } in files {
        lacking = lacking.saturating_add(missing(remote, &repository.blob(etag)?));
    }
    let folder = repository.blob("x")?;
    let folder = folder.parent().expect("a blob lies in a folder");
    check_space(folder, lacking, "set HF_HOME to a folder on another disk")?;
    let total: u64 = files.iter().map(|file| file.remote.size).fold(0, u64::saturating_add);
    let many = counted(files.len() as u64, "file");
    let progress = downloads.progress;
    progress.println(format!("{id}: downloading {} of {} in {many}", gibibytes(lacking), gibibytes(total)));
    let mut meter = Meter::new(progress, &id.to_string(), total, total.saturating_sub(lacking));
    for ModelFile { etag, remote } in files {
        meter.message(remote.name.clone());
        downloads.fetch(remote, &repository.blob(etag)?, &repository.lock(etag)?, &mut meter)?;
        repository.link(commit, &remote.name, etag)?;
    }
    Ok(())
}
