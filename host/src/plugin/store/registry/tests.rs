use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use test_support::registry::{Registry as Stub, digest};
use test_support::server::{Request as Asked, Server, respond};

use super::*;
use crate::plugin::store::published::Finder;
use crate::plugin::store::reference::Reference;
use crate::plugin::store::trust::{Policy, Trust};
use crate::plugin::store::{Found, Pin, Published};

/// The path of the plugin in the tests.
const PATH: &str = "team/sea";

/// A component, as far as a registry knows: large enough to arrive in several parts.
fn component() -> Vec<u8> {
    (0..400_000u32).map(|i| (i % 251) as u8).collect()
}

/// What a registry does instead of answering: whether it did.
type Lie = Box<dyn Fn(&Asked, &mut TcpStream) -> io::Result<bool> + Send + Sync>;

/// A folder for the cache, and the interrupt.
struct Place {
    folder: tempfile::TempDir,
    network: Network,
}

impl Place {
    fn new() -> Self {
        let patience = Patience {
            silence: Duration::from_millis(700),
            document: Duration::from_secs(3),
            retry: Duration::from_millis(10),
        };
        let (progress, interrupt) = (Progress::new(true), Interrupt::default());
        let network = Network { offline: false, progress, interrupt, patience };
        Self { folder: tempfile::tempdir().expect("a folder"), network }
    }

    fn offline(&self) -> Self {
        let network = Network { offline: true, ..self.network.clone() };
        let folder = tempfile::tempdir().expect("a folder");
        let place = Self { folder, network };
        // The same cache.
        std::fs::remove_dir(place.folder.path()).expect("empty");
        std::os::unix::fs::symlink(self.folder.path(), place.folder.path()).expect("a link");
        place
    }

    fn cache(&self) -> Cache {
        Cache::new(self.folder.path().join("registry"))
    }

    fn find(&self, server: &Server, selector: &str) -> Result<Found> {
        self.find_at(&address(server), selector, None)
    }

    fn find_at(&self, host: &str, selector: &str, pin: Option<&Pin>) -> Result<Found> {
        let reference: Reference = format!("oci://{host}/{PATH}{selector}").parse().expect("a reference");
        let trust = Trust::of_policy(Policy::Off);
        Finder { network: &self.network, cache: &self.cache(), trust: &trust }.find(&reference, pin)
    }

    fn refused(&self, server: &Server, selector: &str) -> String {
        let error = self.find(server, selector).expect_err("a lie");
        let host = address(server);
        crate::text::sentence(&error).replace(&host, "HOST")
    }

    /// The files of the cache that are no locks, relative to it.
    fn files(&self) -> Vec<String> {
        let mut found = vec![];
        collect(&self.cache().path().join("blobs"), &mut found);
        collect(&self.cache().path().join("plugins"), &mut found);
        found
    }

    /// The names in the folder above the cache.
    fn strays(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).expect("a folder").flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name != "registry")
            .collect()
    }
}

fn collect(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => collect(&entry.path(), found),
            false => found.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
}

fn address(server: &Server) -> String {
    server.address.trim_start_matches("http://").to_owned()
}

/// A registry with version 1.2.0, which answers some requests otherwise: `lie` returns whether it did.
fn lying(lie: impl Fn(&Asked, &mut TcpStream) -> io::Result<bool> + Send + Sync + 'static) -> Server {
    let stub = Stub::default();
    stub.add_component(PATH, "1.2.0", &component());
    serving(stub, lie)
}

fn serving(stub: Stub, lie: impl Fn(&Asked, &mut TcpStream) -> io::Result<bool> + Send + Sync + 'static) -> Server {
    Server::start(move |request, stream| if lie(request, stream)? { Ok(()) } else { stub.answer(request, stream) })
}

fn honest() -> Server {
    lying(|_, _| Ok(false))
}

fn is_blob(request: &Asked) -> bool {
    request.method == "GET" && request.path.ends_with(&digest(&component()))
}

fn is_manifest(request: &Asked) -> bool {
    request.method == "GET" && request.path.contains("/manifests/")
}

#[test]
fn a_version_is_pulled_once_and_then_from_the_cache() {
    let (place, server) = (Place::new(), honest());
    for selector in [":1.2.0", ":^1", "", ":>=1, <2"] {
        let found = place.find(&server, selector).expect("an honest registry");
        assert_eq!((found.name.as_str(), found.path.file_name().expect("a name")), ("sea", "sea.wasm".as_ref()));
        assert_eq!(std::fs::read(&found.path).expect("a file"), component());
        let published = found.published.expect("published");
        assert_eq!(published.version.as_deref(), Some("1.2.0"));
        assert_eq!(published.reference(), format!("oci://{}/{PATH}:1.2.0", address(&server)));
    }
    assert_eq!(server.requests().iter().filter(|request| is_blob(request)).count(), 1);
    let offline = place.offline();
    let found = offline.find(&server, ":^1").expect("it is in the cache");
    let manifest = found.published.expect("published").manifest;
    offline.find(&server, &format!("@sha256:{manifest}")).expect("by its digest");
    let message = offline.refused(&server, ":^2");
    assert!(message.ends_with("HOST/team/sea: no version is ^2; the cache has 1.2.0"), "{message}");
}

#[test]
fn versions_that_are_not_there_are_named() {
    let (place, server) = (Place::new(), honest());
    assert_eq!(place.refused(&server, ":^2"), "HOST/team/sea: no version is ^2; the registry has 1.2.0");
    let message = place.refused(&server, ":1.3.0");
    assert_eq!(message, "HOST/team/sea: HOST answered 404 (not known); there is no such plugin, or no such version");
}

#[test]
fn what_is_not_of_its_digest_or_length_is_not_kept() {
    let other: Vec<u8> = component().iter().map(|byte| byte ^ 1).collect();
    let endless = |stream: &mut TcpStream| {
        stream.write_all(b"HTTP/1.1 200 So\r\nConnection: close\r\n\r\n")?;
        loop {
            stream.write_all(&[7; 65536])?;
        }
    };
    let cases: [(&str, Lie, &str); 4] = [
        (
            "other bytes",
            Box::new(move |request, stream| {
                is_blob(request)
                    .then(|| respond(request, stream, 200, &[], &other))
                    .transpose()
                    .map(|done| done.is_some())
            }),
            "HOST sends other data for sea than its sha256 announces; it is not kept",
        ),
        (
            "an endless file",
            Box::new(move |request, stream| if is_blob(request) { endless(stream) } else { Ok(false) }),
            "HOST sends more bytes of sea than the 400000 announced",
        ),
        (
            "an endless manifest",
            Box::new(move |request, stream| if is_manifest(request) { endless(stream) } else { Ok(false) }),
            "HOST sends a document of more than 4194304 bytes",
        ),
        (
            "another manifest",
            Box::new(|request, stream| {
                if !is_manifest(request) {
                    return Ok(false);
                }
                let announced = [("Docker-Content-Digest", digest(b"something"))];
                respond(request, stream, 200, &announced, b"{}").map(|()| true)
            }),
            "HOST sends another manifest for 1.2.0 than its sha256 says; it is not used",
        ),
    ];
    for (name, lie, expected) in cases {
        let (place, server) = (Place::new(), lying(lie));
        assert_eq!(place.refused(&server, ":1.2.0"), format!("HOST/team/sea: {expected}"), "{name}");
        assert_eq!(place.strays(), [""; 0], "{name}");
        let whole: Vec<String> = place.files().into_iter().filter(|name| !name.ends_with(".incomplete")).collect();
        assert_eq!(whole, [""; 0], "{name}");
    }
}

#[test]
fn what_is_no_plugin_is_named() {
    let layer = |media_type: &str| json!({ "mediaType": media_type, "digest": digest(b"x"), "size": 1 });
    let manifest = |config: &str, layers: Vec<serde_json::Value>| json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": layer(config), "layers": layers });
    let wasm = "application/vnd.wasm.config.v0+json";
    let huge = json!({ "mediaType": "application/wasm", "digest": digest(b"x"), "size": 10_u64.pow(13) });
    let trick = json!({ "mediaType": "application/wasm", "digest": "sha256:../../../../etc/passwd", "size": 1 });
    let cases = [
        (
            json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [] }),
            "the registry has a list of images there, as for several platforms, and no plugin",
        ),
        (
            manifest(
                "application/vnd.oci.image.config.v1+json",
                vec![layer("application/vnd.oci.image.layer.v1.tar+gzip")],
            ),
            "the registry has another thing there than a plugin (application/vnd.oci.image.layer.v1.tar+gzip, of \
             application/vnd.oci.image.config.v1+json)",
        ),
        (
            manifest(wasm, vec![layer("text/html")]),
            "the registry has another thing there than a plugin (text/html, of application/vnd.wasm.config.v0+json)",
        ),
        (
            manifest(wasm, vec![layer("application/wasm"); 2]),
            "the registry has 2 files there, where a component is one",
        ),
        (manifest(wasm, vec![huge]), "it has 9313.23 GiB, where a plugin has at most 0.06 GiB"),
        (
            manifest(wasm, vec![trick]),
            "the registry names a file by `sha256:../../../../etc/passwd`, which is no sha256",
        ),
        (
            json!({ "mediaType": "application/x\u{1b}[31m" }),
            "the registry has `application/x\\u{1b}[31m` there, which is no manifest",
        ),
        (
            json!(7),
            "the registry sends what is no manifest (invalid type: integer `7`, expected struct Kind at line 1 column 1)",
        ),
    ];
    for (manifest, expected) in cases {
        let stub = Stub::default();
        stub.add_manifest(PATH, "1.2.0", &manifest);
        let (place, server) = (Place::new(), serving(stub, |_, _| Ok(false)));
        assert_eq!(place.refused(&server, ":1.2.0"), format!("HOST/team/sea: {expected}"));
        assert_eq!((place.files(), place.strays()), (vec![], vec![]));
    }
}

#[test]
fn titles_and_tags_never_become_paths() {
    let stub = Stub::default();
    let config = stub.add_blob("application/vnd.wasm.config.v0+json", b"{}");
    let mut layer = stub.add_blob("application/wasm", &component());
    layer["annotations"] = json!({ "org.opencontainers.image.title": "../../../evil.wasm" });
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer], "annotations": null });
    stub.add_manifest(PATH, "1.2.0", &manifest);
    stub.add_manifest(PATH, "../../1.9.9", &manifest);
    let (place, server) = (Place::new(), serving(stub, |_, _| Ok(false)));
    let found = place.find(&server, ":*").expect("the file is right");
    assert!(found.path.starts_with(place.cache().path()) && found.path.ends_with("sea.wasm"));
    assert_eq!(found.published.expect("published").version.as_deref(), Some("1.2.0"));
    assert_eq!(place.strays(), [""; 0]);
}

#[test]
fn credentials_stay_with_their_host() {
    let elsewhere = Arc::new(Server::start(|request, stream| respond(request, stream, 200, &[], &component())));
    let address = elsewhere.address.clone();
    let server = lying(move |request, stream| {
        if !is_blob(request) {
            return Ok(false);
        }
        respond(request, stream, 307, &[("Location", format!("{address}/data"))], b"").map(|()| true)
    });
    let repository = format!("oci://{}/{PATH}", self::address(&server)).parse::<Reference>().expect("one").repository;
    let place = Place::new();
    let endpoint = Client::address_of(&server.address).expect("an address");
    let client = Client::new(endpoint, Some("Bearer secret".to_owned()), place.network.patience, Interrupt::default());
    let registry = Registry { repository, client: client.expect("a client"), network: place.network.clone() };
    let file = Descriptor::of("application/wasm", &component());
    assert_eq!(registry.small(&file, 1 << 20).expect("the data"), component());
    // What a request sends is for the host that it was sent to.
    let away = format!("{}/away", elsewhere.address);
    let moving =
        Server::start(move |request, stream| respond(request, stream, 307, &[("Location", away.clone())], b""));
    let endpoint = Client::address_of(&moving.address).expect("an address");
    let client = Client::new(endpoint.clone(), None, place.network.patience, Interrupt::default()).expect("a client");
    let secret = Request::new("POST", endpoint).body("text/plain", b"refresh_token=secret".to_vec(), None);
    let message = client.document(secret, 100).expect_err("a redirect").to_string();
    assert!(message.ends_with("redirects a request that has a body"), "{message}");
    let tokens = |server: &Server| -> Vec<Option<String>> {
        server.requests().iter().map(|request| request.headers.get("authorization").cloned()).collect()
    };
    assert_eq!(tokens(&server), [Some("Bearer secret".to_owned())]);
    assert_eq!(tokens(&elsewhere), [None]);
}

#[test]
fn what_passes_is_tried_again_and_silence_ends() {
    let failures = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&failures);
    let server = lying(move |request, stream| {
        if counted.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
            return Ok(false);
        }
        let status = if counted.load(Ordering::SeqCst).is_multiple_of(2) { 429 } else { 503 };
        respond(request, stream, status, &[("Retry-After", "0".to_owned())], b"later").map(|()| true)
    });
    Place::new().find(&server, ":1.2.0").expect("it passes");
    assert!(failures.load(Ordering::SeqCst) > 4);

    let server = lying(|request, stream| {
        if !is_manifest(request) {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_secs(60));
        stream.flush().map(|()| true)
    });
    let place = Place::new();
    let message = place.refused(&server, ":1.2.0");
    assert!(message.starts_with("HOST/team/sea: HOST was silent for 0.7 s; the same command goes on"), "{message}");
}

#[test]
fn a_pull_is_interrupted_and_resumed() {
    let place = Place::new();
    let interrupt = place.network.interrupt.clone();
    let server = lying(move |request, stream| {
        if !is_blob(request) || request.headers.contains_key("range") {
            return Ok(false);
        }
        stream.write_all(b"HTTP/1.1 200 So\r\nContent-Length: 400000\r\nConnection: close\r\n\r\n")?;
        stream.write_all(&component()[..100_000])?;
        stream.flush()?;
        std::thread::sleep(Duration::from_millis(300));
        interrupt.request();
        std::thread::sleep(Duration::from_secs(60));
        Ok(true)
    });
    let error = place.find(&server, ":1.2.0").expect_err("interrupted");
    assert!(error.is::<crate::interrupt::Interrupted>(), "{error:#}");
    assert!(place.files().iter().any(|name| name.ends_with(".incomplete")), "{:?}", place.files());
    let again = Place { network: Network { interrupt: Interrupt::default(), ..place.network.clone() }, ..place };
    again.find(&server, ":1.2.0").expect("resumed");
    let ranges: Vec<String> =
        server.requests().iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    assert_ne!(ranges[0], "bytes=0-");
}

#[test]
fn two_pulls_at_once_fetch_one_file() {
    let (place, server) = (Place::new(), honest());
    std::thread::scope(|scope| {
        let pulls: Vec<_> =
            (0..4).map(|_| scope.spawn(|| place.find(&server, ":^1").map(|found| found.path))).collect();
        let paths: Vec<_> = pulls.into_iter().map(|pull| pull.join().expect("no panic").expect("pulled")).collect();
        assert!(paths.iter().all(|path| std::fs::read(path).is_ok_and(|bytes| bytes == component())));
    });
    assert_eq!(server.requests().iter().filter(|request| is_blob(request)).count(), 1);
}

#[test]
fn a_changed_cache_is_pulled_again_or_refused() {
    for damage in [b"truncated".to_vec(), component().iter().map(|byte| byte ^ 1).collect()] {
        let (place, server) = (Place::new(), honest());
        let found = place.find(&server, ":1.2.0").expect("pulled");
        let blob = found.path.canonicalize().expect("a blob");
        std::fs::write(&blob, &damage).expect("damaged");
        let message = place.offline().refused(&server, ":1.2.0");
        assert!(
            message.contains(" was changed: its sha256 is ") && message.contains("remove it, and run this once"),
            "{message}"
        );
        let found = place.find(&server, ":1.2.0").expect("pulled again");
        assert_eq!(std::fs::read(found.path).expect("a file"), component());
    }
    // A manifest that was changed is none.
    let (place, server) = (Place::new(), honest());
    let manifest = place.find(&server, ":1.2.0").expect("pulled").published.expect("published").manifest;
    std::fs::write(place.cache().blob(&manifest).expect("a path"), "{}").expect("damaged");
    let message = place.offline().refused(&server, ":1.2.0");
    assert!(message.contains(&format!("its manifest {manifest} is not in the cache")), "{message}");
}

#[test]
fn without_a_network_the_cache_serves_what_it_has() {
    let place = Place::new();
    let message = crate::text::sentence(&place.find_at("127.0.0.1:9", ":^1", None).expect_err("nobody there"));
    assert!(message.starts_with("127.0.0.1:9/team/sea: there is no connection to 127.0.0.1:9: "), "{message}");
    assert_eq!(place.files(), [""; 0]);
    let message =
        crate::text::sentence(&place.offline().find_at("127.0.0.1:9", ":^1", None).expect_err("nothing there"));
    let why = "the network is disabled (--offline, HF_HUB_OFFLINE)";
    assert_eq!(message, format!("{why}: 127.0.0.1:9/team/sea: no version is ^1; the cache has no versions"));
}

#[test]
fn a_pin_means_its_manifest_whatever_the_tag_says() {
    let stub = Arc::new(Stub::default());
    stub.add_component(PATH, "1.2.0", &component());
    let answering = Arc::clone(&stub);
    let server = Server::start(move |request, stream| answering.answer(request, stream));
    let place = Place::new();
    let Published { place: repository, version, manifest, signer } =
        place.find(&server, ":^1").expect("pulled").published.expect("published");
    let reference = repository.tagged("1.2.0");
    let pin = Pin { reference, version, manifest: manifest.clone(), signer, is_own: false };
    stub.add_component(PATH, "1.3.0", b"another");
    stub.add_component(PATH, "1.2.0", b"replaced");
    assert_eq!(
        place.find(&server, ":^1").expect("newer").published.expect("published").version.as_deref(),
        Some("1.3.0")
    );
    for place in [&place, &place.offline(), &Place::new()] {
        let found = place.find_at(&address(&server), ":^1", Some(&pin)).expect("pinned");
        assert_eq!(std::fs::read(&found.path).expect("a file"), component());
        assert_eq!(found.published.expect("published").manifest, manifest);
    }
}

#[test]
fn pages_of_tags_are_followed_on_their_own_host() {
    let stub = Stub::default();
    stub.add_component(PATH, "1.2.0", &component());
    stub.add_component(PATH, "1.4.0", &component());
    let elsewhere =
        Arc::new(Server::start(|request, stream| respond(request, stream, 200, &[], b"{\"tags\":[\"9.9.9\"]}")));
    let away = elsewhere.address.clone();
    let server = serving(stub, move |request, stream| {
        let link = |to: &str| [("Link", format!("<{to}>; rel=\"next\""))];
        match &*request.path {
            "/v2/team/sea/tags/list" => {
                respond(request, stream, 200, &link("/v2/team/sea/tags/list?last=1.2.0"), b"{\"tags\":[\"1.2.0\"]}")?;
            }
            "/v2/team/sea/tags/list?last=1.2.0" => {
                respond(request, stream, 200, &link(&format!("{away}/more")), b"{\"tags\":[\"1.4.0\"]}")?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    });
    let found = Place::new().find(&server, ":*").expect("found");
    assert_eq!(found.published.expect("published").version.as_deref(), Some("1.4.0"));
    assert_eq!(elsewhere.requests().len(), 0);
}

#[test]
fn what_refers_to_a_manifest_is_found_with_and_without_a_list() {
    for referrers in [false, true] {
        let stub = Stub::default();
        let stub = Arc::new(if referrers { stub.with_referrers() } else { stub });
        let answering = Arc::clone(&stub);
        let server = Server::start(move |request, stream| answering.answer(request, stream));
        let place = Place::new();
        let repository = format!("oci://{}/{PATH}", address(&server)).parse::<Reference>().expect("one").repository;
        let registry = Registry::open(&repository, Access::Push, &place.network).expect("a client");
        let package = Package {
            name: "sea".to_owned(),
            version: "1.0.0".to_owned(),
            description: "The sea".to_owned(),
            authors: vec!["A".to_owned()],
            license: "MIT".to_owned(),
            component: None,
            bytes: component().into(),
            metadata: Some(b"styles = []".to_vec().into()),
        };
        let pushed = registry.push(&package).expect("pushed");
        let file = |text: &str| PackageFile {
            media_type: SIGNATURE,
            title: "sea.onnx.minisig".to_owned(),
            bytes: text.as_bytes().to_vec().into(),
        };
        for text in ["first", "second"] {
            registry.push_referrer(&pushed, SIGNATURE, &[file(text)], BTreeMap::new()).expect("pushed");
        }
        registry.push_referrer(&pushed, CARD, &[file("card")], BTreeMap::new()).expect("pushed");
        let found = registry.referrers(&pushed.sha256, SIGNATURE).expect("found");
        let mut texts: Vec<Vec<u8>> =
            found.iter().map(|manifest| registry.small(&manifest.layers[0], 100).expect("text")).collect();
        texts.sort();
        assert_eq!(texts, [b"first".to_vec(), b"second".to_vec()], "a list of its own: {referrers}");
        assert_eq!(stub.manifest(PATH, &fallback_tag(&pushed.sha256)).is_some(), !referrers);
        let pulled = place.find(&server, ":1.0.0").expect("pulled");
        assert!(pulled.path.ends_with("sea.onnx"));
        assert_eq!(std::fs::read(pulled.path.with_extension("toml")).expect("beside it"), b"styles = []");
    }
}

#[test]
fn an_upload_is_tried_again_and_its_address_is_not_trusted_blindly() {
    let failures = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&failures);
    let stub = Stub::default();
    let server = serving(stub, move |request, stream| {
        let fails = request.method == "PUT" && counted.fetch_add(1, Ordering::SeqCst) == 0;
        if fails { respond(request, stream, 500, &[], b"").map(|()| true) } else { Ok(false) }
    });
    let place = Place::new();
    let repository = format!("oci://{}/{PATH}", address(&server)).parse::<Reference>().expect("one").repository;
    let registry = Registry::open(&repository, Access::Push, &place.network).expect("a client");
    let package = Package {
        name: "sea".to_owned(),
        version: "1.0.0".to_owned(),
        description: String::new(),
        authors: vec![],
        license: String::new(),
        component: Some((vec!["a:b/c".to_owned()], vec!["a:b/d".to_owned()])),
        bytes: component().into(),
        metadata: None,
    };
    registry.push(&package).expect("the second attempt");
    assert!(failures.load(Ordering::SeqCst) > 1);
    place.find(&server, ":1.0.0").expect("it is there");
}
