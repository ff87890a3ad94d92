//! Plugins of registries through the binary: pushing, pulling, signatures, trust, locks, projects, runs that resume offline.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use test_support::registry::Registry;
use test_support::server::{Server, respond};

use crate::support::{Ran, command, copy_folder, host, host_binary, host_ok, ran, root, tiny_run};

/// A registry, and a folder in which a team works with it.
struct Team {
    server: Server,
    registry: Arc<Registry>,
    folder: tempfile::TempDir,
}

impl Team {
    fn with(registry: Registry) -> Self {
        let registry = Arc::new(registry);
        let answering = Arc::clone(&registry);
        let server = Server::start(move |request, stream| answering.answer(request, stream));
        Self { server, registry, folder: tempfile::tempdir().expect("a folder") }
    }

    fn new() -> Self {
        Self::with(Registry::default())
    }

    /// Another team's folder, with the same registry.
    fn other(&self) -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn host_address(&self) -> &str {
        self.server.address.trim_start_matches("http://")
    }

    /// A reference to the registry's plugin `team/sea`.
    fn reference(&self, version: &str) -> String {
        format!("oci://{}/team/sea{version}", self.host_address())
    }

    fn ok(&self, arguments: &[&str]) -> Ran {
        host_ok(self.path(), arguments)
    }

    /// Runs `host`, which must fail; returns the sentence, with the registry's address replaced.
    fn refused(&self, folder: &Path, arguments: &[&str]) -> String {
        let ran = host(folder, arguments);
        assert_eq!(ran.code, 1, "host {}\n{}\n{}", arguments.join(" "), ran.stdout, ran.stderr);
        let line = ran.stderr.lines().find(|line| line.starts_with("error: ")).expect("an error");
        line.replace(self.host_address(), "HOST")
    }
}

fn shipped(name: &str) -> String {
    root().join("plugins").join(name).to_string_lossy().into_owned()
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
}

/// Makes a pair of keys without a password; returns the key's id.
fn keys(folder: &Path, name: &str) -> String {
    let made = host_ok(folder, &["plugin", "keygen", name, "--no-password", "--json"]);
    json(&made)["id"].as_str().expect("an id").to_owned()
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn what_one_team_pushes_another_pulls() {
    let team = Team::new();
    let palette = shipped("palette.wasm");
    let pushed = json(&team.ok(&["plugin", "push", &palette, &team.reference(":1.2.0"), "--json"]));
    assert_eq!(pushed["reference"], team.reference(":1.2.0"));
    // The layout is that of `wkg`.
    let manifest = team.registry.manifest("team/sea", "1.2.0").expect("it is there");
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    assert_eq!(manifest["layers"].as_array().expect("layers").len(), 1);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    assert_eq!(manifest["layers"][0]["annotations"]["org.opencontainers.image.title"], "sea.wasm");
    let annotations = &manifest["annotations"];
    assert_eq!(annotations["org.opencontainers.image.version"], "1.2.0");
    assert_eq!(annotations["org.opencontainers.image.licenses"], "Apache-2.0");
    let config = team.registry.blob(manifest["config"]["digest"].as_str().expect("a digest")).expect("a config");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    assert_eq!((config["architecture"].as_str(), config["os"].as_str()), (Some("wasm"), Some("wasip2")));
    assert_eq!(config["layerDigests"][0], manifest["layers"][0]["digest"]);
    assert!(config["component"]["exports"].as_array().expect("exports").len() > 1);

    // The card refers to it, by the tag that stands for a list where the registry keeps none.
    let digest = pushed["manifest"].as_str().expect("a digest");
    let referrers = team.registry.manifest("team/sea", &format!("sha256-{digest}")).expect("a list");
    assert_eq!(referrers["manifests"][0]["artifactType"], "application/vnd.ambiguity.card.v1");
    let card = team.registry.manifest("team/sea", referrers["manifests"][0]["digest"].as_str().expect("a digest"));
    let card = card.expect("a card");
    let page = team.registry.blob(card["layers"][1]["digest"].as_str().expect("a digest")).expect("a page");
    assert!(String::from_utf8(page).expect("text").contains("<html"), "the second layer is the page");

    let theirs = team.other();
    let pulled = json(&host_ok(theirs.path(), &["plugin", "pull", &team.reference(":^1"), "--json"]));
    assert_eq!((pulled["version"].as_str(), pulled["path"].as_str()), (Some("1.2.0"), Some("sea.wasm")));
    assert_eq!(pulled["sha256"], pushed["sha256"]);
    assert_eq!(fs::read(theirs.path().join("sea.wasm")).expect("a file"), fs::read(&palette).expect("a file"));
    // Every command takes the reference itself.
    let inspected = json(&host_ok(theirs.path(), &["plugin", "inspect", &team.reference(""), "--json"]));
    assert_eq!(inspected["sha256"], pushed["sha256"]);
    fs::write(theirs.path().join("other.wasm"), "mine").expect("written");
    let message = team.refused(theirs.path(), &["plugin", "pull", &team.reference(""), "-o", "other.wasm"]);
    assert_eq!(message, "error: other.wasm exists with another content; --force replaces it");
    let message = team.refused(theirs.path(), &["plugin", "pull", &team.reference(""), "-o", "sea.onnx"]);
    assert_eq!(message, "error: -o sea.onnx must end in .wasm, as the plugin's file does");
}

#[test]
fn versions_are_never_replaced() {
    let team = Team::new();
    let (palette, roughness) = (shipped("palette.wasm"), shipped("jpeg_size.wasm"));
    team.ok(&["plugin", "push", &palette, &team.reference(":1.2.0")]);
    team.ok(&["plugin", "push", &palette, &team.reference(":1.2.0")]);
    let message = team.refused(team.path(), &["plugin", "push", &roughness, &team.reference(":1.2.0")]);
    assert!(
        message.contains("HOST/team/sea has another plugin as version 1.2.0: a version is never replaced"),
        "{message}"
    );
    let message = team.refused(team.path(), &["plugin", "push", &palette, &team.reference(":latest")]);
    assert!(message.contains("the reference's version `latest` is none"), "{message}");
    let dry = json(&team.ok(&["plugin", "push", &palette, &team.reference(":3.0.0"), "--dry-run", "--json"]));
    assert_eq!(dry["dry_run"], true);
    let listed = json(&team.ok(&["plugin", "versions", &team.reference(""), "--json"]));
    let versions: Vec<&str> =
        listed["versions"].as_array().expect("versions").iter().filter_map(|row| row["version"].as_str()).collect();
    assert_eq!(versions, ["1.2.0"]);
    let found = json(&team.ok(&["plugin", "search", &format!("oci://{}/team", team.host_address()), "--json"]));
    assert_eq!(found["plugins"][0]["version"], "1.2.0");
    assert_eq!(found["plugins"][0]["kind"], "wasm");
    let none = json(&team.ok(&["plugin", "search", &format!("oci://{}/tea", team.host_address()), "--json"]));
    assert_eq!(none["plugins"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_model_travels_with_its_toml() {
    let team = Team::new();
    let model = shipped("simple.onnx");
    fs::copy(&model, team.path().join("art.onnx")).expect("copied");
    fs::write(team.path().join("art.toml"), "title = \"Art\"\n").expect("written");
    team.ok(&["plugin", "push", "./art.onnx", &team.reference(":0.3.0")]);
    let manifest = team.registry.manifest("team/sea", "0.3.0").expect("it is there");
    assert_eq!(manifest["artifactType"], "application/vnd.ambiguity.onnx.v1");
    let theirs = team.other();
    host_ok(theirs.path(), &["plugin", "pull", &team.reference("")]);
    assert_eq!(fs::read_to_string(theirs.path().join("sea.toml")).expect("beside it"), "title = \"Art\"\n");
    assert_eq!(fs::read(theirs.path().join("sea.onnx")).expect("a model"), fs::read(model).expect("a model"));
    let inspected = json(&host_ok(theirs.path(), &["plugin", "inspect", &team.reference(""), "--json"]));
    assert_eq!(inspected["title"], "Art");
}

#[test]
fn logins_are_dockers() {
    for tokens in [false, true] {
        let team = Team::with(Registry::default().demanding("me:secret", tokens));
        let palette = shipped("palette.wasm");
        let push = ["plugin", "push", &palette, &team.reference(":1.0.0")];
        let message = team.refused(team.path(), &push);
        assert!(message.contains("it needs a login: `docker login HOST`"), "{message}");
        let docker = team.path().join("docker");
        fs::create_dir(&docker).expect("a new folder");
        let config = |login: &str| format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{login}\"}}}}}}", team.host_address());
        fs::write(docker.join("config.json"), config("bWU6d3Jvbmc=")).expect("written");
        let message = team.refused(team.path(), &push);
        assert!(message.contains("docker's credentials for it do not allow this"), "{message}");
        assert!(!message.contains("wrong") && !message.contains("bWU6d3Jvbmc"), "{message}");
        fs::write(docker.join("config.json"), config("bWU6c2VjcmV0")).expect("written");
        team.ok(&push);
        // A helper, as docker has them.
        let helper = team.path().join("docker-credential-vault");
        fs::write(&helper, "#!/bin/sh\ncat > asked\necho '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n")
            .expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&helper, mode).expect("executable");
        fs::write(docker.join("config.json"), "{\"credsStore\":\"vault\"}").expect("written");
        let path = format!("{}:{}", team.path().display(), std::env::var("PATH").unwrap_or_default());
        let mut pull = command(team.path(), &["plugin", "pull", &team.reference("")]);
        let pulled = ran(&pull.env("PATH", path).output().expect("it starts"));
        assert_eq!(pulled.code, 0, "{}", pulled.stderr);
        assert_eq!(fs::read_to_string(team.path().join("asked")).expect("asked"), team.host_address());
        fs::write(docker.join("config.json"), "{\"credsStore\":\"nobody\"}").expect("written");
        let message = team.refused(team.path(), &["plugin", "pull", &team.reference("")]);
        assert!(message.contains("docker's credentials for HOST cannot be read"), "{message}");
    }
}

#[test]
fn signatures_are_made_found_and_demanded() {
    let team = Team::with(Registry::default().with_referrers());
    let (ours, palette) = (keys(team.path(), "ours"), shipped("palette.wasm"));
    let mode = fs::metadata(team.path().join("ours.key")).expect("a key").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    let message = team.refused(team.path(), &["plugin", "keygen", "ours", "--no-password"]);
    assert!(message.contains("ours.key exists: keys are never overwritten"), "{message}");
    team.ok(&["plugin", "push", &palette, &team.reference(":1.0.0"), "--key", "ours.key"]);

    let theirs = team.other();
    let pull = ["plugin", "pull", &team.reference(":1.0.0"), "--force"];
    let warned = host_ok(theirs.path(), &pull);
    assert!(
        warned
            .stderr
            .contains(&format!("its signature names key {ours}, which is not trusted, so who made it is not known")),
        "{}",
        warned.stderr
    );
    let demanding = |arguments: &[&str]| {
        let mut command = command(theirs.path(), arguments);
        ran(&command.env("AMBIGUITY_TRUST", "require").output().expect("it starts"))
    };
    let refused = demanding(&pull);
    assert!(
        refused.code == 1 && refused.stderr.contains("a signature by a trusted key is required"),
        "{}",
        refused.stderr
    );
    let key = team.path().join("ours.pub").to_string_lossy().into_owned();
    let namespace = format!("{}/team", team.host_address());
    host_ok(theirs.path(), &["plugin", "trust", "add", "our team", &key, "--namespace", &namespace]);
    let pulled = demanding(&pull);
    assert!(
        pulled.code == 0 && pulled.stderr.contains(&format!("signed by our team (key {ours})")),
        "{}",
        pulled.stderr
    );
    let verified = host_ok(theirs.path(), &["plugin", "verify", &team.reference(""), "--json"]);
    assert_eq!(json(&verified)["signer"], "our team");

    // Another team takes over the name.
    let other = keys(team.path(), "other");
    team.ok(&["plugin", "push", &palette, &team.reference(":1.1.0"), "--key", "other.key"]);
    let message = team.refused(theirs.path(), &["plugin", "pull", &team.reference(":^1")]);
    let both =
        format!("its signature names key {other}, which is not trusted, but our team (key {ours}) signed it before");
    assert!(message.contains(&both), "{message}");
    team.ok(&["plugin", "push", &palette, &team.reference(":1.2.0")]);
    let message = team.refused(theirs.path(), &["plugin", "pull", &team.reference(":1.2.0")]);
    assert!(message.contains(&format!("it is not signed, but our team (key {ours}) signed it before")), "{message}");
    // Who signs later makes it right.
    team.ok(&["plugin", "sign", &team.reference(":1.2.0"), "--key", "ours.key"]);
    host_ok(theirs.path(), &["plugin", "pull", &team.reference(":1.2.0"), "--force"]);
    // An old version under a new name has no signature for it.
    let old = team.registry.manifest("team/sea", "1.0.0").expect("it is there");
    team.registry.add_manifest("team/sea", "1.9.0", &old);
    let message = team.refused(theirs.path(), &["plugin", "pull", &team.reference(":1.9.0")]);
    assert!(message.ends_with("our team signed it as version 1.0.0, not 1.9.0"), "{message}");
}

#[test]
fn a_file_is_signed_beside_it() {
    let team = Team::new();
    let id = keys(team.path(), "ours");
    fs::copy(shipped("palette.wasm"), team.path().join("sea.wasm")).expect("copied");
    let message = team.refused(team.path(), &["plugin", "verify", "./sea.wasm", "--key", "ours.pub"]);
    assert!(message.contains("is not signed: there is no ./sea.wasm.minisig"), "{message}");
    team.ok(&["plugin", "sign", "./sea.wasm", "--key", "ours.key"]);
    assert!(files(team.path()).contains(&"sea.wasm.minisig".to_owned()));
    let verified = team.ok(&["plugin", "verify", "./sea.wasm", "--key", "ours.pub"]);
    assert!(
        verified.stdout.starts_with(&format!("./sea.wasm is signed by ours (key {id}): timestamp:")),
        "{}",
        verified.stdout
    );
    // The signature travels with the file.
    team.ok(&["plugin", "push", "./sea.wasm", &team.reference(":1.0.0")]);
    team.ok(&["plugin", "trust", "add", "ours", "ours.pub", "--namespace", "*"]);
    let pulled = team.ok(&["plugin", "pull", &team.reference(""), "-o", "again.wasm"]);
    let warning = "ours signed the file, not what it is published as, so that it could be another version's";
    assert!(pulled.stderr.contains(warning), "{}", pulled.stderr);
    team.ok(&["plugin", "trust", "policy", "require"]);
    let message = team.refused(team.path(), &["plugin", "pull", &team.reference(""), "-o", "again.wasm"]);
    assert!(message.contains("host plugin sign oci://HOST/team/sea:VERSION --key"), "{message}");
    team.ok(&["plugin", "sign", &team.reference(":1.0.0"), "--key", "ours.key"]);
    team.ok(&["plugin", "pull", &team.reference(""), "-o", "again.wasm"]);
    let listed = json(&team.ok(&["plugin", "trust", "list", "--json"]));
    assert_eq!((listed["policy"].as_str(), listed["keys"][0]["id"].as_str()), (Some("require"), Some(&*id)));

    fs::copy(shipped("jpeg_size.wasm"), team.path().join("sea.wasm")).expect("copied");
    let message = team.refused(team.path(), &["plugin", "verify", "./sea.wasm"]);
    assert!(message.ends_with("the file or the signature was changed"), "{message}");
    team.ok(&["plugin", "trust", "remove", "ours"]);
    let message = team.refused(team.path(), &["plugin", "verify", "./sea.wasm"]);
    assert!(message.contains(&format!("key {id} signed it, which is not trusted")), "{message}");
    let message = team.refused(team.path(), &["plugin", "trust", "remove", "ours"]);
    assert_eq!(message, "error: the key `ours` is not trusted; no key is");
    let message = team.refused(team.path(), &["plugin", "trust", "add", "x", "RWQnonsense", "--namespace", "*"]);
    assert_eq!(message, "error: RWQnonsense is no public key of minisign");
}

#[test]
fn installed_plugins_are_updated_within_their_range() {
    let team = Team::new();
    let (palette, jpeg_size) = (shipped("palette.wasm"), shipped("jpeg_size.wasm"));
    team.ok(&["plugin", "push", &palette, &team.reference(":1.0.0")]);
    team.ok(&["plugin", "install", &team.reference(":^1"), "--name", "sea"]);
    team.ok(&["plugin", "inspect", "sea"]);
    assert!(team.ok(&["plugin", "update"]).stderr.contains("all are up to date"));
    team.ok(&["plugin", "push", &jpeg_size, &team.reference(":1.1.0"), "--allow"]);
    team.ok(&["plugin", "push", &palette, &team.reference(":2.0.0"), "--allow"]);
    let outdated = json(&team.ok(&["plugin", "outdated", "--json"]));
    let row = &outdated["plugins"][0];
    assert_eq!([&row["version"], &row["wanted"], &row["newest"]], ["1.0.0", "1.1.0", "2.0.0"]);
    let updated = team.ok(&["plugin", "update", "sea"]);
    assert!(updated.stderr.contains("sea: 1.0.0 → 1.1.0"), "{}", updated.stderr);
    let installed = json(&team.ok(&["plugin", "inspect", "sea", "--json"]));
    assert_eq!(installed["plugin"], "sea");
    assert!(installed["styles"].as_array().is_none_or(Vec::is_empty), "it is the scorer now: {installed}");
    let message = team.refused(team.path(), &["plugin", "update", "palette"]);
    assert!(message.starts_with("error: `palette` was not installed from a registry"), "{message}");
    team.ok(&["plugin", "uninstall", "sea"]);
    assert!(team.ok(&["plugin", "outdated"]).stdout.contains("no plugin was installed from a registry"));
}

/// The metrics of a run without the numbers that depend on the clock.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).expect("JSON");
        let object = value.as_object_mut().expect("an object");
        object.retain(|key, _| !["images_per_second", "seconds", "energy"].contains(&key.as_str()));
        value
    };
    text.lines().map(line).collect()
}

fn train<'a>(source: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = tiny_run();
    arguments.retain(|argument| !argument.starts_with("--plugin") && !argument.starts_with("--set=train.epochs"));
    ["train", "--plugin", source].into_iter().chain(arguments).chain(more.iter().copied()).collect()
}

#[test]
fn a_run_resumes_offline_to_the_last_bit_with_the_version_that_it_had() {
    let team = Team::new();
    let palette = shipped("palette.wasm");
    let source = team.reference(":^1");
    team.ok(&["plugin", "push", &palette, &team.reference(":1.0.0")]);
    team.ok(&train(&source, &["--set=train.epochs=2", "--out", "whole"]));
    team.ok(&train(&source, &["--set=train.epochs=1", "--out", "parts"]));
    // Meanwhile there is a newer version, which a new run would use.
    team.ok(&["plugin", "push", &shipped("jpeg_size.wasm"), &team.reference(":1.1.0"), "--allow"]);
    team.ok(&["--offline", "train", "--resume", "parts", "--set=train.epochs=2"]);
    assert_eq!(metrics(&team.path().join("parts")), metrics(&team.path().join("whole")));
    let lora = "pytorch_lora_weights.safetensors";
    let bytes = |run: &str| fs::read(team.path().join(run).join(lora)).expect("a LoRA");
    assert!(bytes("parts") == bytes("whole"));
    let lock = fs::read_to_string(team.path().join("parts/plugins.lock")).expect("a lock");
    for line in [format!("source = \"{source}\""), format!("reference = \"{}\"", team.reference(":1.0.0"))] {
        assert!(lock.contains(&line), "{lock}");
    }
    assert!(lock.contains("version = \"1.0.0\"") && lock.contains("manifest = \""), "{lock}");

    // A changed cache is refused offline.
    let digest = team.registry.manifest("team/sea", "1.0.0").expect("there")["layers"][0]["digest"].clone();
    let digest = digest.as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
    let blob = team.path().join("cache/ambiguity/registry/blobs/sha256").join(digest);
    let mut changed = fs::read(&blob).expect("a blob");
    changed.push(0);
    fs::write(&blob, changed).expect("written");
    let message = team.refused(team.path(), &["--offline", "train", "--resume", "parts", "--set=train.epochs=3"]);
    assert!(message.contains("was changed: its sha256 is "), "{message}");
    assert_eq!(metrics(&team.path().join("parts")).len(), metrics(&team.path().join("whole")).len());
    // With the network, it is pulled again.
    let again = team.ok(&["train", "--resume", "parts", "--set=train.epochs=3"]);
    assert!(again.stderr.contains("pulling it again"), "{}", again.stderr);
}

#[test]
fn a_lock_holds_a_configuration_to_its_versions() {
    let team = Team::new();
    let palette = shipped("palette.wasm");
    team.ok(&["plugin", "push", &palette, &team.reference(":1.0.0")]);
    let config = format!("[[reward.plugin]]\nsource = \"{}\"\n", team.reference(":^1"));
    fs::write(team.path().join("run.toml"), config).expect("written");
    let message =
        team.refused(team.path(), &["train", "--preset=tiny-art", "--config=run.toml", "--locked", "--dry-run"]);
    assert!(message.contains("a lock is written by `host plugin lock`"), "{message}");
    team.ok(&["plugin", "lock", "--config", "run.toml", "--preset", "tiny-art"]);
    let lock = fs::read_to_string(team.path().join("plugins.lock")).expect("a lock");
    assert!(
        lock.contains("version = \"1.0.0\"") && lock.contains("prompts = \"") && lock.contains("[[encoder]]"),
        "{lock}"
    );
    team.ok(&["plugin", "lock", "--config", "run.toml", "--preset", "tiny-art", "--check"]);

    team.ok(&["plugin", "push", &shipped("jpeg_size.wasm"), &team.reference(":1.1.0"), "--allow"]);
    let check = ["plugin", "lock", "--config", "run.toml", "--preset", "tiny-art", "--check"];
    let message = team.refused(team.path(), &check);
    assert!(message.contains("plugins.lock is not what is there today"), "{message}");
    let mut tiny: Vec<&str> = tiny_run();
    tiny.retain(|argument| !argument.starts_with("--plugin"));
    let locked = |out: &'static str, more: &[&'static str]| {
        [&["train", "--config=run.toml", "--locked", "--out", out], &tiny[..], more].concat()
    };
    team.ok(&locked("locked", &[]));
    let lock = fs::read_to_string(team.path().join("locked/plugins.lock")).expect("a lock");
    assert!(lock.contains("version = \"1.0.0\""), "{lock}");
    let message = team.refused(team.path(), &locked("other", &["--set=prompts.subjects=[\"a sea\"]"]));
    assert!(message.contains("plugins.lock forbids this: the run was started with other prompts"), "{message}");
    let other = ["--plugin", "kmeans_image"];
    let message = team.refused(team.path(), &locked("other", &other));
    assert!(
        message.contains("plugins.lock forbids this: the plugins of the run are none, not kmeans_image"),
        "{message}"
    );
    assert!(!team.path().join("other").exists());
}

#[test]
fn a_project_names_its_plugins_and_keys() {
    let team = Team::new();
    let id = keys(team.path(), "ours");
    team.ok(&["plugin", "push", &shipped("palette.wasm"), &team.reference(":1.0.0"), "--key", "ours.key"]);
    let key = fs::read_to_string(team.path().join("ours.pub")).expect("a key");
    let key = key.lines().nth(1).expect("the key");
    let text = format!(
        "policy = \"require\"\n\n[plugins]\nsea = \"{}\"\nland = \"./plugins/land.wasm\"\n\n[[key]]\nname = \"ours\"\n\
         namespace = \"{}/team\"\nkey = \"{key}\"\n",
        team.reference(":^1"),
        team.host_address()
    );
    fs::write(team.path().join("ambiguity.toml"), text).expect("written");
    fs::create_dir(team.path().join("plugins")).expect("a new folder");
    fs::copy(shipped("jpeg_size.wasm"), team.path().join("plugins/land.wasm")).expect("copied");
    let below = team.path().join("experiments");
    fs::create_dir(&below).expect("a new folder");
    for folder in [team.path(), &below] {
        let inspect = |name: &str| {
            let mut command = command(folder, &["plugin", "inspect", name, "--json"]);
            command.env("XDG_CACHE_HOME", team.path().join("cache")).env("XDG_DATA_HOME", team.path());
            ran(&command.output().expect("it starts"))
        };
        let sea = inspect("sea");
        assert_eq!(sea.code, 0, "{}", sea.stderr);
        assert_eq!(inspect("land").code, 0);
    }
    let listed = json(&team.ok(&["plugin", "list", "--json"]));
    assert_eq!(listed["project"]["sea"], team.reference(":^1"));
    let lock = json(&team.ok(&["plugin", "lock", "--json"]));
    let names: Vec<&str> =
        lock["plugin"].as_array().expect("plugins").iter().filter_map(|row| row["source"].as_str()).collect();
    assert_eq!(names, ["land", "sea"]);
    assert_eq!(lock["plugin"][1]["signer"]["id"], id);
    // The project's policy holds for its plugins.
    team.ok(&["plugin", "push", &shipped("palette.wasm"), &team.reference(":1.1.0")]);
    let message = team.refused(team.path(), &["plugin", "inspect", "sea"]);
    assert!(message.contains("it is not signed, but ours"), "{message}");
}

#[test]
fn what_is_no_reference_is_refused() {
    let team = Team::new();
    for text in ["oci://", "oci://HOST/Team/sea", "oci://HOST/team/sea:a b"] {
        let ran = host(team.path(), &["plugin", "inspect", text]);
        assert!(ran.code == 1 && ran.stderr.contains("is no reference to a plugin"), "{}", ran.stderr);
    }
    let ran = host(team.path(), &["plugin", "pull", "sea"]);
    assert!(ran.code == 2 && ran.stderr.contains("it does not begin with oci://"), "{}", ran.stderr);
    let message = team.refused(team.path(), &["--offline", "plugin", "versions", &team.reference("")]);
    assert_eq!(message, "error: HOST/team/sea: the network is disabled (--offline, HF_HUB_OFFLINE)");
    assert_eq!(team.server.requests().len(), 0);
}

/// Runs a tool of the machine, if it is there.
fn tool(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("PATH").into_iter().flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>());
    let file = found.map(|folder| folder.join(name)).find(|file| file.is_file());
    if file.is_none() {
        eprintln!("skipped: there is no `{name}` here; `make registry-test` has it");
    }
    file
}

#[test]
fn minisign_verifies_ours_and_ours_verifies_minisigns() {
    let Some(minisign) = tool("minisign") else { return };
    let team = Team::new();
    fs::copy(shipped("palette.wasm"), team.path().join("sea.wasm")).expect("copied");
    let run = |arguments: &[&str]| {
        let output = Command::new(&minisign).current_dir(team.path()).args(arguments).output().expect("it starts");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    keys(team.path(), "ours");
    team.ok(&["plugin", "sign", "./sea.wasm", "--key", "ours.key"]);
    run(&["-Vm", "sea.wasm", "-p", "ours.pub"]);
    // Its keys and signatures, the old form of them too.
    run(&["-G", "-W", "-p", "its.pub", "-s", "its.key"]);
    for legacy in [false, true] {
        run(&[if legacy { "-Slm" } else { "-Sm" }, "sea.wasm", "-s", "its.key", "-t", "by hand"]);
        let verified = team.ok(&["plugin", "verify", "./sea.wasm", "--key", "its.pub"]);
        assert!(verified.stdout.trim_end().ends_with(": by hand"), "{}", verified.stdout);
    }
    team.ok(&["plugin", "sign", "./sea.wasm", "--key", "its.key"]);
    run(&["-Vm", "sea.wasm", "-p", "its.pub"]);
}

/// Returns the blocks of commands of docs/sharing.md, each with the team whose folder it runs in.
fn story() -> Vec<(String, String)> {
    let text = fs::read_to_string(root().join("docs/sharing.md")).expect("the document");
    let mut blocks = vec![];
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(team) = line.strip_prefix("<!-- team: ").and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        assert_eq!(lines.next(), Some("```sh"), "a team's block of commands");
        let commands: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        blocks.push((team.to_owned(), commands.join("\n")));
    }
    blocks
}

#[test]
fn the_story_of_two_teams_runs_as_written() {
    let team = Team::with(Registry::default().with_referrers());
    let tools = team.path().join("tools");
    fs::create_dir(&tools).expect("a new folder");
    std::os::unix::fs::symlink(host_binary(), tools.join("host")).expect("a link");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap_or_default());
    let blocks = story();
    assert!(blocks.len() > 8, "{} blocks", blocks.len());
    for (who, commands) in blocks {
        let folder = team.path().join(&who);
        fs::create_dir_all(&folder).expect("a folder");
        // What the makers hand over: the public key; and to their CI, what is in their repository.
        let makers = team.path().join("makers");
        match &*who {
            "trainers" => drop(fs::copy(makers.join("makers.pub"), folder.join("makers.pub")).expect("handed over")),
            "ci" => copy_folder(&makers, &folder),
            _ => {}
        }
        let commands = commands.replace("registry.example.com", team.host_address());
        // One thread, as for all tests, and each team with folders of its own.
        let mut shell = Command::new("sh");
        shell.current_dir(&folder).args(["-euc", &commands]).env("PATH", &path).env("AMBIGUITY_HOME", root());
        for (variable, name) in [
            ("XDG_DATA_HOME", "data"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_CONFIG_HOME", "config"),
            ("DOCKER_CONFIG", "docker"),
        ] {
            shell.env(variable, folder.join(".home").join(name));
        }
        shell.env("OMP_NUM_THREADS", "1").env_remove("HOST_LOG").env_remove("AMBIGUITY_TRUST").env("NO_COLOR", "1");
        let output = shell.output().expect("a shell");
        let ran = ran(&output);
        assert_eq!(ran.code, 0, "{who}: {commands}\n{}\n{}", ran.stdout, ran.stderr);
    }
    let trained = team.path().join("trainers/runs/first");
    assert_eq!(metrics(&trained).iter().filter(|line| line["epoch"].as_u64() > Some(0)).count(), 2);
    let lock = fs::read_to_string(trained.join("plugins.lock")).expect("a lock");
    assert!(lock.contains("version = \"1.0.0\"") && lock.contains("name = \"makers\""), "{lock}");
    let tags = team.registry.manifest("makers/sea", "2.0.0").is_some()
        && team.registry.manifest("makers/sea", "1.1.0").is_none();
    assert!(tags, "the version that its behavior asks for, and no lower one");
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let team = Team::new();
    team.ok(&["plugin", "push", &shipped("kmeans_image.wasm"), &team.reference(":1.0.0"), "--no-card"]);
    let theirs = team.other();
    let inner = command(theirs.path(), &["plugin", "pull", &team.reference("")]);
    // As a full disk, files above 51 kB cannot be written.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\""]);
    limited.arg(inner.get_program()).args(inner.get_args()).current_dir(theirs.path());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    let pulled = ran(&limited.output().expect("a shell"));
    assert_eq!(pulled.code, 1, "{}", pulled.stderr);
    assert!(pulled.stderr.to_lowercase().contains("file too large"), "{}", pulled.stderr);
    assert!(!theirs.path().join("sea.wasm").exists());
    host_ok(theirs.path(), &["plugin", "pull", &team.reference("")]);
}

#[test]
fn a_registry_gets_no_other_registrys_token() {
    // The other registry sells a token to its login.
    let other = Team::with(Registry::default().demanding("me:secret", true));
    let port = other.host_address().rsplit(':').next().expect("a port").to_owned();
    let realm = format!(
        "Bearer realm=\"http://localhost:{port}/token\",service=\"other\",scope=\"repository:private:pull,push\""
    );
    let lying = Server::start(move |request, stream| {
        respond(request, stream, 401, &[("WWW-Authenticate", realm.clone())], b"")
    });
    let folder = other.path();
    fs::create_dir(folder.join("docker")).expect("a new folder");
    let login = format!("{{\"auths\":{{\"localhost:{port}\":{{\"auth\":\"bWU6c2VjcmV0\"}}}}}}");
    fs::write(folder.join("docker/config.json"), login).expect("written");
    let reference = format!("oci://{}/team/sea:1.0.0", lying.address.trim_start_matches("http://"));
    let ran = host(folder, &["plugin", "inspect", &reference]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let asked = other.server.requests();
    assert!(
        !asked.is_empty() && asked.iter().all(|request| !request.headers.contains_key("authorization")),
        "{asked:?}"
    );
    assert!(lying.requests().iter().all(|request| !request.headers.contains_key("authorization")));
}
