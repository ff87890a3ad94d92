//! A registry of the OCI distribution specification, in memory, for tests.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::server::{Request, respond};

/// The media type of a manifest.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of a list of manifests.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry.
#[derive(Debug, Default)]
pub struct Registry {
    /// Whether it keeps lists of what refers to a manifest.
    referrers: bool,
    /// The login that it demands, `USER:PASSWORD`; nothing: none.
    login: Option<String>,
    /// Whether the login buys a token at `/token`, instead of being sent with each request.
    tokens: bool,
    contents: Mutex<Contents>,
}

#[derive(Debug, Default)]
struct Contents {
    blobs: BTreeMap<String, Vec<u8>>,
    /// Media type and bytes by repository and tag or digest.
    manifests: BTreeMap<(String, String), (String, Vec<u8>)>,
}

/// The token that a login buys.
const TOKEN: &str = "a-token";

/// Returns `sha256:` and the digest of bytes.
pub fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

impl Registry {
    /// Returns the registry, which keeps lists of what refers to a manifest.
    pub fn with_referrers(self) -> Self {
        Self { referrers: true, ..self }
    }

    /// Returns the registry, which demands a login `USER:PASSWORD`; if `tokens`, one that buys a token at `/token`.
    pub fn demanding(self, login: &str, tokens: bool) -> Self {
        Self { login: Some(login.to_owned()), tokens, ..self }
    }

    fn contents(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file; returns its descriptor.
    pub fn add_blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        self.contents().blobs.insert(digest(bytes), bytes.to_vec());
        json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
    }

    /// Adds a manifest under a tag and its digest; returns its digest.
    pub fn add_manifest(&self, path: &str, tag: &str, manifest: &Value) -> String {
        let bytes = serde_json::to_vec(manifest).expect("it serializes");
        let media_type = manifest["mediaType"].as_str().unwrap_or(MANIFEST).to_owned();
        let mut contents = self.contents();
        for reference in [tag.to_owned(), digest(&bytes)] {
            contents.manifests.insert((path.to_owned(), reference), (media_type.clone(), bytes.clone()));
        }
        digest(&bytes)
    }

    /// Adds a component as a version of a plugin, as `wkg` publishes it; returns the digest of its manifest.
    pub fn add_component(&self, path: &str, version: &str, component: &[u8]) -> String {
        let config =
            self.add_blob("application/vnd.wasm.config.v0+json", b"{\"architecture\":\"wasm\",\"os\":\"wasip2\"}");
        let layer = self.add_blob("application/wasm", component);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer],
            "annotations": { "org.opencontainers.image.version": version },
        });
        self.add_manifest(path, version, &manifest)
    }

    /// Returns a manifest's bytes.
    pub fn manifest(&self, path: &str, reference: &str) -> Option<Value> {
        let contents = self.contents();
        let (_, bytes) = contents.manifests.get(&(path.to_owned(), reference.to_owned()))?;
        serde_json::from_slice(bytes).ok()
    }

    /// Returns a file's bytes.
    pub fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        self.contents().blobs.get(digest).cloned()
    }

    /// Answers a request.
    pub fn answer(&self, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        if let Some(refused) = self.refused(request, path, stream) {
            return refused;
        }
        let Some(rest) = path.strip_prefix("/v2/") else { return missing(request, stream) };
        if rest.is_empty() {
            return respond(request, stream, 200, &[], b"{}");
        }
        if rest == "_catalog" {
            let contents = self.contents();
            let mut repositories: Vec<&String> = contents.manifests.keys().map(|(path, _)| path).collect();
            repositories.dedup();
            let body = json!({ "repositories": repositories }).to_string();
            return respond(request, stream, 200, &[], body.as_bytes());
        }
        let parts: Vec<&str> = rest.split('/').collect();
        let n = parts.len();
        let name = |dropped: usize| parts[..n.saturating_sub(dropped)].join("/");
        match (&*request.method, &parts[n.saturating_sub(2)..]) {
            ("GET", ["tags", "list"]) => self.tags(&name(2), request, stream),
            ("GET" | "HEAD", ["manifests", reference]) => {
                let found = self.contents().manifests.get(&(name(2), (*reference).to_owned())).cloned();
                let Some((media_type, bytes)) = found else { return missing(request, stream) };
                let headers = [("Content-Type", media_type), ("Docker-Content-Digest", digest(&bytes))];
                respond(request, stream, 200, &headers, &bytes)
            }
            ("PUT", ["manifests", reference]) => self.put_manifest(&name(2), reference, request, stream),
            ("GET" | "HEAD", ["blobs", digest]) => {
                let Some(bytes) = self.blob(digest) else { return missing(request, stream) };
                send(request, stream, &bytes)
            }
            ("GET", ["referrers", subject]) if self.referrers => self.list(&name(2), subject, request, stream),
            ("POST", ["uploads", ""]) => {
                let location = ("Location", format!("/v2/{}/blobs/uploads/1", name(3)));
                respond(request, stream, 202, &[location], b"")
            }
            ("PUT", ["uploads", _]) => {
                let named = query.split('&').find_map(|pair| pair.strip_prefix("digest="));
                let named = named.unwrap_or_default().replace("%3A", ":");
                if digest(&request.body) != named {
                    return respond(request, stream, 400, &[], b"{\"errors\":[{\"code\":\"DIGEST_INVALID\"}]}");
                }
                self.contents().blobs.insert(named, request.body.clone());
                respond(request, stream, 201, &[], b"")
            }
            _ => missing(request, stream),
        }
    }

    fn tags(&self, name: &str, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
        let contents = self.contents();
        let own = contents.manifests.keys().filter(|(path, _)| path == name);
        let tags: Vec<&String> = own.map(|(_, tag)| tag).filter(|tag| !tag.starts_with("sha256:")).collect();
        if tags.is_empty() {
            return missing(request, stream);
        }
        respond(request, stream, 200, &[], json!({ "name": name, "tags": tags }).to_string().as_bytes())
    }

    fn put_manifest(&self, name: &str, reference: &str, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
        let Ok(manifest) = serde_json::from_slice::<Value>(&request.body) else {
            return respond(request, stream, 400, &[], b"{\"errors\":[{\"code\":\"MANIFEST_INVALID\"}]}");
        };
        let files = [&manifest["config"]].into_iter().chain(manifest["layers"].as_array().into_iter().flatten());
        let lacks = |file: &Value| file["digest"].as_str().is_some_and(|digest| self.blob(digest).is_none());
        if files.into_iter().any(lacks) {
            return respond(request, stream, 400, &[], b"{\"errors\":[{\"code\":\"MANIFEST_BLOB_UNKNOWN\"}]}");
        }
        let media_type = request.headers.get("content-type").cloned().unwrap_or_default();
        let mut contents = self.contents();
        for reference in [reference.to_owned(), digest(&request.body)] {
            contents.manifests.insert((name.to_owned(), reference), (media_type.clone(), request.body.clone()));
        }
        respond(request, stream, 201, &[("Docker-Content-Digest", digest(&request.body))], b"")
    }

    /// Lists what refers to a manifest.
    fn list(&self, name: &str, subject: &str, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
        let contents = self.contents();
        let mut manifests = vec![];
        for ((path, reference), (media_type, bytes)) in &contents.manifests {
            let Ok(manifest) = serde_json::from_slice::<Value>(bytes) else { continue };
            if path == name && reference.starts_with("sha256:") && manifest["subject"]["digest"] == subject {
                manifests.push(json!({
                    "mediaType": media_type, "digest": reference, "size": bytes.len(),
                    "artifactType": manifest["artifactType"],
                }));
            }
        }
        let body = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }).to_string();
        respond(request, stream, 200, &[("Content-Type", INDEX.to_owned())], body.as_bytes())
    }

    /// Refuses a request without the login; sells tokens.
    fn refused(&self, request: &Request, path: &str, stream: &mut TcpStream) -> Option<io::Result<()>> {
        let login = self.login.as_ref()?;
        let given = request.headers.get("authorization").map_or("", String::as_str);
        let basic = format!("Basic {}", STANDARD.encode(login));
        if path == "/token" {
            let body = json!({ "token": TOKEN }).to_string();
            return Some(match given == basic {
                true => respond(request, stream, 200, &[], body.as_bytes()),
                false => respond(request, stream, 401, &[], b""),
            });
        }
        let wanted = if self.tokens { format!("Bearer {TOKEN}") } else { basic };
        if given == wanted {
            return None;
        }
        let host = request.headers.get("host").map_or("", String::as_str);
        let challenge = match self.tokens {
            true => format!("Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:x:pull\""),
            false => "Basic realm=\"test\"".to_owned(),
        };
        let body = b"{\"errors\":[{\"code\":\"UNAUTHORIZED\",\"message\":\"authentication required\"}]}";
        Some(respond(request, stream, 401, &[("WWW-Authenticate", challenge)], body))
    }
}

/// Sends bytes, or the part that is asked for.
fn send(request: &Request, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    match range.and_then(|from| from.parse::<usize>().ok()).filter(|from| *from < bytes.len()) {
        Some(from) => {
            let range = ("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()));
            respond(request, stream, 206, &[range], &bytes[from..])
        }
        None => respond(request, stream, 200, &[], bytes),
    }
}

fn missing(request: &Request, stream: &mut TcpStream) -> io::Result<()> {
    respond(request, stream, 404, &[], b"{\"errors\":[{\"code\":\"NAME_UNKNOWN\",\"message\":\"not known\"}]}")
}
