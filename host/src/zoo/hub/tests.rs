use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use test_support::server::{COMMIT, Request, Server, hub, respond};

use super::*;

const ID: &str = "someone/small";
const WEIGHTS: &str = "model.safetensors";

/// Returns the files of a CLIP model with their ETags; that of the weights is their sha256.
fn clip_files() -> BTreeMap<String, (String, Vec<u8>)> {
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let digest = ambiguity_models::safetensors::hex(&Sha256::digest(&weights));
    let mut files: BTreeMap<String, (String, Vec<u8>)> = ["config.json", "preprocessor_config.json", "tokenizer.json"]
        .map(|name| (name.to_owned(), (format!("0-{name}"), name.as_bytes().to_vec())))
        .into();
    files.insert(WEIGHTS.to_owned(), (digest, weights));
    files
}

/// A folder for the cache, the Hub's address, and the interrupt.
struct Place {
    folder: tempfile::TempDir,
    interrupt: Interrupt,
    token: Option<String>,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), interrupt: Interrupt::default(), token: None }
    }

    fn get(&self, id: &str, address: &str) -> Result<PathBuf> {
        let patience = Patience {
            silence: Duration::from_millis(700),
            document: Duration::from_secs(3),
            retry: Duration::from_millis(10),
        };
        let context = Context { offline: false, interrupt: self.interrupt.clone(), ..Context::quiet() };
        let settings = Settings {
            cache: Cache::new(self.folder.path().join("hub")),
            endpoint: address.to_owned(),
            token: self.token.clone(),
            patience,
        };
        Hub::with(&context, settings).folder(id, Wanted::Clip)
    }

    fn refused(&self, address: &str) -> String {
        crate::text::sentence(&self.get(ID, address).expect_err("a lie"))
    }

    /// The names of all files and folders in the cache's folder and its parent, without those of the one model.
    fn strays(&self) -> Vec<String> {
        let names = |folder: PathBuf| {
            fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned())
        };
        let all = names(self.folder.path().to_owned()).chain(names(self.folder.path().join("hub")));
        all.filter(|name| !["hub", ".locks", "models--someone--small"].contains(&&**name)).collect()
    }
}

/// A Hub that answers some requests otherwise: `lie` returns whether it did.
fn lying(lie: impl Fn(&Request, &mut TcpStream) -> io::Result<bool> + Send + Sync + 'static) -> Server {
    let files = clip_files();
    Server::start(move |request, stream| if lie(request, stream)? { Ok(()) } else { hub(request, stream, &files) })
}

fn is_get_of_weights(request: &Request) -> bool {
    request.method == "GET" && request.path.ends_with(WEIGHTS)
}

#[test]
fn what_was_downloaded_lies_where_other_tools_look_for_it() {
    let (client, server) = (Place::new(), lying(|_, _| Ok(false)));
    let folder = client.get(ID, &server.address).expect("an honest Hub");
    let repository = client.folder.path().join("hub/models--someone--small");
    assert_eq!(folder, repository.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repository.join("refs/main")).expect("a ref"), COMMIT);
    for (name, (etag, data)) in clip_files() {
        assert_eq!(fs::read_link(folder.join(&name)).expect("a link"), Path::new("../../blobs").join(&etag));
        assert_eq!(fs::read(folder.join(&name)).expect("a blob"), data);
        assert!(!repository.join("blobs").join(format!("{etag}.incomplete")).exists());
    }
    let n_requests = server.requests().len();
    assert_eq!(client.get(ID, &server.address).expect("cached"), folder);
    let by_commit = client.get(&format!("{ID}@{COMMIT}"), "http://127.0.0.1:9").expect("cached");
    assert_eq!((by_commit, server.requests().len()), (folder, n_requests));
}

#[test]
fn the_token_stays_with_the_hub() {
    let files = clip_files();
    let data = Arc::new(Server::start({
        let files = files.clone();
        move |request, stream| {
            let from =
                request.headers.get("range").map_or(0, |range| range[6..range.len() - 1].parse().expect("a number"));
            respond(request, stream, if from > 0 { 206 } else { 200 }, &[], &files[WEIGHTS].1[from..])
        }
    }));
    let address = data.address.clone();
    let (etag, size) = (files[WEIGHTS].0.clone(), files[WEIGHTS].1.len());
    let server = lying(move |request, stream| {
        if !request.path.ends_with(WEIGHTS) {
            return Ok(false);
        }
        let headers = [
            ("Location", format!("{address}/data")),
            ("X-Repo-Commit", COMMIT.to_owned()),
            ("X-Linked-ETag", format!("\"{etag}\"")),
            ("X-Linked-Size", size.to_string()),
        ];
        respond(request, stream, 302, &headers, b"elsewhere").map(|()| true)
    });
    let client = Place { token: Some("hf_secret".to_owned()), ..Place::new() };
    client.get(ID, &server.address).expect("an honest Hub");
    let tokens = |server: &Server| -> Vec<Option<String>> {
        server.requests().iter().map(|request| request.headers.get("authorization").cloned()).collect()
    };
    assert!(
        tokens(&server).iter().all(|token| token.as_deref() == Some("Bearer hf_secret")),
        "{:?}",
        server.requests()
    );
    assert_eq!(tokens(&data), [None]);
}

#[test]
fn names_of_a_server_lead_nowhere() {
    for name in
        ["../../../outside/config.json", "/tmp/config.json", "a\\b/config.json", ".ssh/config.json", "x/../config.json"]
    {
        let name = name.to_owned();
        assert!(cache::expect_file(&name).is_err(), "{name}");
    }
    let list = |sha: &str, name: &str| {
        let siblings = [serde_json::json!({ "rfilename": "config.json" }), serde_json::json!({ "rfilename": name })];
        serde_json::json!({ "sha": sha, "siblings": siblings }).to_string()
    };
    let wide = "a".repeat(300);
    for (sha, name, wanted) in [
        ("../../../../../outside", "x", "the Hub names a commit `../../../../../outside`, which is no plain name"),
        ("", "x", "the Hub names a commit ``, which is no plain name"),
        (".", "x", "the Hub names a commit `.`, which is no plain name"),
        ("a\u{1b}[2J", "x", "the Hub names a commit `a\\u{1b}[2J`, which is no plain name"),
        (&*wide, "x", "which is no plain name"),
        (COMMIT, "..json", "the Hub names a file `..json`, which is no plain path"),
        (COMMIT, "..\\a.json", "the Hub names a file `..\\a.json`, which is no plain path"),
    ] {
        let client = Place::new();
        let list = list(sha, name);
        let server = lying(move |request, stream| {
            if !request.path.starts_with("/api") {
                return Ok(false);
            }
            respond(request, stream, 200, &[], list.as_bytes()).map(|()| true)
        });
        let message = client.refused(&server.address);
        assert!(message.contains(wanted), "{message}");
        assert_eq!(client.strays(), [""; 0]);
    }
    for etag in ["\"../../../../outside\"", "W/\"..\"", "\"\"", "a/b", "\".\""] {
        let client = Place::new();
        let server = lying(move |request, stream| {
            if request.method != "HEAD" {
                return Ok(false);
            }
            respond(request, stream, 200, &[("ETag", etag.to_owned())], b"data").map(|()| true)
        });
        let message = client.refused(&server.address);
        assert!(message.contains("the Hub names an ETag") && message.ends_with("which is no plain name"), "{message}");
        assert_eq!(client.strays(), [""; 0]);
    }
    let (client, server) = (Place::new(), lying(|_, _| Ok(false)));
    for id in ["o/r@../..", "o/r@..", "o/r@", "o/r@a/b", "o/r@.hidden", "o/r@a b", "o--x/r", "o/a..b"] {
        let message = client.get(id, &server.address).expect_err("no id").to_string();
        assert!(message.starts_with("o") && message.contains(" is not "), "{message}");
    }
    assert!(server.requests().is_empty());
}

#[test]
fn what_is_not_the_announced_data_is_not_kept() {
    let whole = clip_files()[WEIGHTS].1.clone();
    let other: Vec<u8> = whole.iter().rev().copied().collect();
    let shorter = whole[..1000].to_vec();
    let longer = [&whole[..], b"more"].concat();
    type Lie = Box<dyn Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync>;
    let chunked = [("Transfer-Encoding", "chunked".to_owned())];
    let lies: [(&str, Lie); 6] = [
        (
            "sends other data for model.safetensors than its sha256 announces; it is not kept",
            Box::new(move |request, stream| respond(request, stream, 200, &[], &other)),
        ),
        ("sent 1000 of 300000 bytes", Box::new(move |request, stream| respond(request, stream, 200, &[], &shorter))),
        (
            "sends 300004 bytes of model.safetensors, but announced 300000",
            Box::new(move |request, stream| respond(request, stream, 200, &[], &longer)),
        ),
        (
            "sends more bytes of model.safetensors than the 300000 announced",
            Box::new(move |request, stream| {
                respond(request, stream, 200, &chunked, b"")?;
                // Without an end, until the client closes the connection.
                loop {
                    stream.write_all(b"1000\r\n")?;
                    stream.write_all(&[7; 0x1000])?;
                    stream.write_all(b"\r\n")?;
                }
            }),
        ),
        (
            "was silent for 0.7 s",
            Box::new(|request, stream| {
                respond(request, stream, 200, &[("Content-Length", "300000".to_owned())], b"")?;
                std::thread::sleep(Duration::from_secs(5));
                Ok(())
            }),
        ),
        (
            "sends another part of model.safetensors than asked for",
            Box::new(|request, stream| {
                respond(request, stream, 206, &[("Content-Range", "bytes 5-10/300000".to_owned())], b"hello!")
            }),
        ),
    ];
    for (wanted, lie) in lies {
        let client = Place::new();
        let server = lying(move |request, stream| match is_get_of_weights(request) {
            true => lie(request, stream).map(|()| true),
            false => Ok(false),
        });
        let message = client.refused(&server.address);
        assert!(message.contains(wanted), "{message}");
        let repository = client.folder.path().join("hub/models--someone--small");
        assert!(!repository.join("blobs").join(&clip_files()[WEIGHTS].0).exists(), "{wanted}");
        assert!(!repository.join("refs").exists());
        // An honest Hub completes what there is.
        let honest = lying(|_, _| Ok(false));
        let folder = client.get(ID, &honest.address).expect("an honest Hub");
        assert_eq!(fs::read(folder.join(WEIGHTS)).expect("a file"), whole);
    }
}

#[test]
fn a_partial_file_is_resumed_and_a_damaged_one_fetched_anew() {
    let whole = clip_files()[WEIGHTS].1.clone();
    for (partial, n_requests) in [(&whole[..200_000], 1), (&whole[1..200_000], 2), (&[&whole[..], b"more"].concat(), 1)]
    {
        let (client, server) = (Place::new(), lying(|_, _| Ok(false)));
        let blobs = client.folder.path().join("hub/models--someone--small/blobs");
        fs::create_dir_all(&blobs).expect("a folder");
        fs::write(blobs.join(format!("{}.incomplete", clip_files()[WEIGHTS].0)), partial).expect("a file");
        let folder = client.get(ID, &server.address).expect("an honest Hub");
        assert_eq!(fs::read(folder.join(WEIGHTS)).expect("a file"), whole);
        let requests: Vec<Request> = server.requests().into_iter().filter(is_get_of_weights).collect();
        assert_eq!(requests.len(), n_requests, "{requests:?}");
        let range = (partial.len() <= whole.len()).then(|| format!("bytes={}-", partial.len()));
        assert_eq!(requests[0].headers.get("range"), range.as_ref());
    }
    // A blob of the wrong length is not the file.
    let (client, server) = (Place::new(), lying(|_, _| Ok(false)));
    let blobs = client.folder.path().join("hub/models--someone--small/blobs");
    fs::create_dir_all(&blobs).expect("a folder");
    fs::write(blobs.join(&clip_files()[WEIGHTS].0), b"short").expect("a file");
    let folder = client.get(ID, &server.address).expect("an honest Hub");
    assert_eq!(fs::read(folder.join(WEIGHTS)).expect("a file"), whole);
}

#[test]
fn failures_that_pass_are_tried_again() {
    for status in [429, 503, 0] {
        let n = AtomicUsize::new(0);
        let server = lying(move |request, stream| {
            // Each address fails at first, and the weights twice, the second time in the middle.
            match (n.fetch_add(1, Ordering::SeqCst) % 2, status) {
                (1, _) => Ok(false),
                (_, 0) => {
                    if is_get_of_weights(request) {
                        respond(
                            request,
                            stream,
                            200,
                            &[("Content-Length", "300000".to_owned())],
                            &clip_files()[WEIGHTS].1[..77],
                        )?;
                    }
                    Ok(true)
                }
                (_, status) => respond(request, stream, status, &[("Retry-After", "0".to_owned())], b"").map(|()| true),
            }
        });
        let client = Place::new();
        let folder = client.get(ID, &server.address).expect("an honest Hub that is busy");
        assert_eq!(fs::read(folder.join(WEIGHTS)).expect("a file"), clip_files()[WEIGHTS].1);
    }
}

#[test]
fn a_failure_says_what_to_do() {
    let refused = |status: u16, code: &'static str, token: Option<&str>| {
        let server = lying(move |request, stream| {
            respond(request, stream, status, &[("X-Error-Code", code.to_owned())], b"no").map(|()| true)
        });
        let client = Place { token: token.map(str::to_owned), ..Place::new() };
        let message = client.refused(&server.address);
        message.replace(&server.address[7..], "HOST")
    };
    insta::assert_snapshot!([
        refused(401, "", None),
        refused(401, "", Some("hf_x")),
        refused(403, "GatedRepo", Some("hf_x")),
        refused(404, "RepoNotFound", None),
        refused(404, "RevisionNotFound", None),
        refused(429, "", None),
        refused(500, "", None),
    ].join("\n"), @r"
    someone/small: HOST answered 401; the model does not exist, or it needs a token: set HF_TOKEN, or log in with `hf auth login`
    someone/small: HOST answered 401; the model does not exist, or the token (HF_TOKEN, or that of `hf auth login`) does not allow reading it
    someone/small: HOST answered 403; the model is gated: accept its conditions at http://HOST/someone/small, and set HF_TOKEN, or log in with `hf auth login`
    someone/small: HOST answered 404; the model, its revision or a file does not exist
    someone/small: HOST answered 404; the model has no revision main
    someone/small: HOST answered 429; it allows no more requests now: try again later, or set HF_TOKEN
    someone/small: HOST answered 500; try again later; what was downloaded is kept
    ");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let start = Instant::now();
    let message = Place::new().refused(&format!("http://{free}"));
    assert!(message.contains(&format!("there is no connection to {free}: ")), "{message}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let message = Place::new().refused("ftp://host");
    assert!(message.starts_with("HF_ENDPOINT: ftp://host is not an address"), "{message}");
    let client = Place { token: Some("a\r\nX: y".to_owned()), ..Place::new() };
    assert!(client.refused("http://127.0.0.1:9").contains("the token for the Hub contains characters"));
}

#[test]
fn redirects_end() {
    let server = lying(|request, stream| {
        respond(request, stream, 302, &[("Location", "/api/again".to_owned())], b"").map(|()| true)
    });
    assert!(Place::new().refused(&server.address).ends_with("redirects more than 5 times"));
    for location in ["file:///etc/passwd", "http://", "\u{7f}"] {
        let server = lying(move |request, stream| {
            respond(request, stream, 302, &[("Location", location.to_owned())], b"").map(|()| true)
        });
        let message = Place::new().refused(&server.address);
        assert!(
            message.ends_with("redirects to what is no address") || message.contains("404"),
            "{location}: {message}"
        );
    }
}

#[test]
fn an_interrupt_keeps_the_part_that_arrived() {
    let client = Place::new();
    let interrupt = client.interrupt.clone();
    let server = lying(move |request, stream| {
        if !is_get_of_weights(request) {
            return Ok(false);
        }
        respond(request, stream, 200, &[("Content-Length", "300000".to_owned())], &clip_files()[WEIGHTS].1[..1000])?;
        std::thread::sleep(Duration::from_millis(200));
        interrupt.request();
        std::thread::sleep(Duration::from_secs(5));
        Ok(true)
    });
    let start = Instant::now();
    let error = client.get(ID, &server.address).expect_err("interrupted");
    assert!(error.is::<crate::interrupt::Interrupted>(), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let partial = format!("hub/models--someone--small/blobs/{}.incomplete", clip_files()[WEIGHTS].0);
    assert_eq!(fs::metadata(client.folder.path().join(partial)).expect("a partial file").len(), 1000);
}

#[test]
fn ids_are_distinguished_from_paths() {
    for id in ["stabilityai/stable-diffusion-2-base", "openai/clip-vit-large-patch14@main", "a/b.c"] {
        assert!(is_id(id), "{id}");
    }
    for path in ["tiny-art", "./a/b", "/a/b", "a/b/c", "a/", "../b", "a b/c"] {
        assert!(!is_id(path), "{path}");
    }
}

#[test]
fn only_needed_files_are_downloaded() {
    let names = [
        "README.md",
        "512-base-ema.ckpt",
        "feature_extractor/preprocessor_config.json",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ];
    insta::assert_snapshot!(Wanted::Pipeline.choose(&names).join("\n"), @r"
    model_index.json
    scheduler/scheduler_config.json
    text_encoder/config.json
    tokenizer/merges.txt
    tokenizer/vocab.json
    unet/config.json
    vae/config.json
    unet/diffusion_pytorch_model.safetensors.index.json
    unet/diffusion_pytorch_model-00001-of-00002.safetensors
    unet/diffusion_pytorch_model-00002-of-00002.safetensors
    vae/diffusion_pytorch_model.fp16.safetensors
    text_encoder/model.safetensors
    ");
}

#[test]
fn of_each_list_of_files_the_first_that_exists_is_wanted() {
    const FILES: Wanted = Wanted::Files(&[&["config.json"], &["model.safetensors", "pytorch_model.bin"]]);
    let both = ["README.md", "pytorch_model.bin", "config.json", "model.safetensors"];
    assert_eq!(FILES.choose(&both), ["config.json", "model.safetensors"]);
    assert_eq!(FILES.choose(&both[..3]), ["config.json", "pytorch_model.bin"]);
    let folder = tempfile::tempdir().expect("a folder");
    let add = |name: &str| fs::write(folder.path().join(name), "").expect("writable");
    add("pytorch_model.bin");
    assert!(!FILES.is_complete(folder.path()));
    add("config.json");
    assert!(FILES.is_complete(folder.path()));
}
