//! A server on a port of this machine that answers requests as a test says, and one that is a model Hub.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A server that runs until the test ends.
#[derive(Debug)]
pub struct Server {
    /// Its address: `http://127.0.0.1:PORT`.
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`, `PUT` and so on.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// Headers by their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, if its length was announced.
    pub body: Vec<u8>,
}

impl Server {
    /// Starts a server; `answer` writes the response to each request, and then the connection is closed.
    pub fn start(answer: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (answer, log) = (Arc::new(answer), Arc::clone(&requests));
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                thread::spawn(move || {
                    let Ok(request) = Request::read(&stream) else { return };
                    lock(&log).push(request.clone());
                    // A client that has what it wanted closes the connection.
                    drop(answer(&request, &mut stream));
                });
            }
        });
        Self { address, requests }
    }

    /// All requests until now.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.requests).clone()
    }
}

impl Request {
    fn read(stream: &TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).map(|_| line.trim_end().to_owned())
        };
        let first = line()?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = BTreeMap::new();
        while let Some((name, value)) = line()?.split_once(':') {
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        Ok(Self { method, path, headers, body })
    }
}

/// Writes a response; `Content-Length` is the body's, unless it is among the headers. To a `HEAD` there is no body.
pub fn respond(
    request: &Request,
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
) -> io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} So\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| ["Content-Length", "Transfer-Encoding"].contains(name)) {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(body)?;
    }
    stream.flush()
}

/// The commit of every model of [`hub`].
pub const COMMIT: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

/// Answers as the Hub does for the model `someone/small` with these files, each with its ETag; parts of files are sent
/// where they are asked for.
pub fn hub(request: &Request, stream: &mut TcpStream, files: &BTreeMap<String, (String, Vec<u8>)>) -> io::Result<()> {
    let commit = ("X-Repo-Commit", COMMIT.to_owned());
    if request.path.starts_with("/api/models/someone/small/revision/") {
        let siblings: Vec<String> = files.keys().map(|name| format!("{{\"rfilename\": {name:?}}}")).collect();
        let list = format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{}]}}", siblings.join(", "));
        return respond(request, stream, 200, &[], list.as_bytes());
    }
    let name = request.path.strip_prefix(&format!("/someone/small/resolve/{COMMIT}/"));
    let Some((etag, data)) = name.and_then(|name| files.get(name)) else {
        return respond(request, stream, 404, &[("X-Error-Code", "RepoNotFound".to_owned())], b"no such model");
    };
    let range = request.headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let etag = ("ETag", format!("\"{etag}\""));
    match range.map(|from| from.parse::<usize>().expect("a number")) {
        Some(from) => {
            let range = ("Content-Range", format!("bytes {from}-{}/{}", data.len() - 1, data.len()));
            respond(request, stream, 206, &[commit, etag, range], &data[from..])
        }
        None => respond(request, stream, 200, &[commit, etag], data),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
