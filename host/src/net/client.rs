//! Requests to one server: credentials that only its own host receives, redirects one at a time, timeouts, and Ctrl-C that
//! is answered while a server is silent.
//!
//! A thread makes each request and sends what arrives through a channel, so that the caller waits for neither a
//! connection nor a read.

use std::fmt::{self, Debug, Formatter};
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use ureq::{Agent, AgentBuilder, Error, ErrorKind, Response};
use url::Url;

use super::proxy::proxy;
use super::tls;
use crate::interrupt::{Interrupt, Interrupted};

/// Number of redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Number of bytes that are read of what a server says with a failure.
const MAX_MESSAGE: usize = 16 << 10;
/// Number of bytes that are read at once.
const CHUNK: usize = 1 << 16;
/// Number of chunks that may wait to be written.
const CHUNKS: usize = 16;
/// Time between two looks at the interrupt.
const POLL: Duration = Duration::from_millis(50);
/// Longest time that a server may ask to wait.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// Number of attempts of a request that fails in a way that may pass.
const ATTEMPTS: u32 = 5;

/// How long the client waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a connection, and for the next bytes of a response.
    pub silence: Duration,
    /// For a whole document.
    pub document: Duration,
    /// Before the second attempt; before each further one twice as long.
    pub retry: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(30), document: Duration::from_secs(120), retry: Duration::from_millis(500) }
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No connection, or no host of that name.
    #[error("there is no connection to {host}: {cause}")]
    Unreachable {
        /// The host.
        host: String,
        /// The cause, of the operating system.
        cause: String,
    },
    /// A connection that broke off, or a response that is not HTTP.
    #[error("the connection to {host} broke off: {cause}")]
    Broken {
        /// The host.
        host: String,
        /// The cause.
        cause: String,
    },
    /// No bytes for longer than the client waits.
    #[error("{host} was silent for {} s", .silence.as_secs_f64())]
    Silent {
        /// The host.
        host: String,
        /// The time that it was given.
        silence: Duration,
    },
    /// Less than the whole file.
    #[error("{host} sent {received} of {size} bytes")]
    Short {
        /// The host.
        host: String,
        /// Number of bytes that arrived.
        received: u64,
        /// Number of bytes of the file.
        size: u64,
    },
    /// A status that means failure.
    #[error("{host} answered {status}")]
    Status {
        /// The host.
        host: String,
        /// The status.
        status: u16,
        /// The headers.
        headers: Headers,
        /// The beginning of the body.
        body: Vec<u8>,
    },
    /// A response that an honest server does not give.
    #[error("{host} {what}")]
    Wrong {
        /// The host.
        host: String,
        /// A verb and its object: what the server did.
        what: String,
    },
    /// Ctrl-C.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The disk, or a file of the cache.
    #[error(transparent)]
    Local(#[from] anyhow::Error),
}

impl Failure {
    /// A response that an honest server does not give; `what` is a verb and its object.
    pub fn wrong(url: &Url, what: impl Into<String>) -> Self {
        Self::Wrong { host: host_of(url), what: what.into() }
    }

    /// Whether another attempt may succeed.
    fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Silent { .. } | Self::Short { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Wrong { .. } | Self::Interrupted(_) | Self::Local(_) => false,
        }
    }
}

/// The host and, if it is not the scheme's own, the port of an address.
pub fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The attempts of one request.
#[derive(Debug)]
pub struct Attempts<'a> {
    client: &'a Client,
    failed: u32,
}

impl Attempts<'_> {
    /// Counts the next failure as the first one: the last attempt got further.
    pub fn reset(&mut self) {
        self.failed = 0;
    }

    /// Waits for the next attempt, or returns the failure if there is none.
    pub fn after(&mut self, what: &str, failure: Failure) -> Result<(), Failure> {
        self.failed += 1;
        if !failure.may_pass() || self.failed >= ATTEMPTS {
            return Err(failure);
        }
        let asked = match &failure {
            Failure::Status { headers, .. } => {
                let seconds = headers.get("Retry-After").and_then(|text| text.trim().parse().ok());
                seconds.map(Duration::from_secs).unwrap_or_default().min(MAX_WAIT)
            }
            _ => Duration::ZERO,
        };
        let wait = asked.max(self.client.patience.retry * 2u32.pow(self.failed - 1));
        tracing::warn!("{what}: {failure}; trying again in {:.1} s", wait.as_secs_f64());
        let start = Instant::now();
        while start.elapsed() < wait {
            self.client.interrupt.check("")?;
            thread::sleep(POLL.min(wait));
        }
        Ok(())
    }
}

/// How a server that answers 401 is asked again: [`Authorize::authorize`] gets what the server demands, its header
/// `WWW-Authenticate`, and returns the value of `Authorization`.
pub trait Authorize: Send + Sync {
    /// Returns the credentials, or nothing if there are none for this demand.
    fn authorize(&self, challenge: &str) -> Result<Option<String>, Failure>;
}

/// A client of one server.
pub struct Client {
    agent: Agent,
    /// The address of the server: what it says about files is believed, within limits.
    endpoint: Url,
    authorization: Mutex<Option<String>>,
    authorize: Option<Box<dyn Authorize>>,
    patience: Patience,
    interrupt: Interrupt,
}

impl Debug for Client {
    /// Without the credentials.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
    }
}

/// A request: a GET of a whole file unless it says otherwise.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    method: &'static str,
    url: Url,
    headers: Vec<(&'static str, String)>,
    body: Option<Arc<[u8]>>,
    /// What hears of the number of bytes of the body that were sent.
    sent: Option<&'a Sent>,
}

/// Hears of bytes that were sent.
pub struct Sent(pub Box<dyn Fn(u64)>);

impl Debug for Sent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Sent")
    }
}

impl<'a> Request<'a> {
    /// A request with this method.
    pub fn new(method: &'static str, url: Url) -> Self {
        Self { method, url, headers: vec![], body: None, sent: None }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Asks for the bytes from `from`.
    pub fn from(self, from: u64) -> Self {
        if from == 0 { self } else { self.header("Range", format!("bytes={from}-")) }
    }

    /// Sends these bytes, of this type; `sent` hears of their progress.
    pub fn body(self, media_type: &str, bytes: impl Into<Arc<[u8]>>, sent: Option<&'a Sent>) -> Self {
        Self { body: Some(bytes.into()), sent, ..self.header("Content-Type", media_type) }
    }
}

impl Client {
    /// Returns a client of the server at `endpoint`, which [`Self::address_of`] read, with the value of `Authorization`, if
    /// there is one.
    ///
    /// # Errors
    /// If the environment's proxy or certificates cannot be used.
    pub fn new(endpoint: Url, authorization: Option<String>, patience: Patience, interrupt: Interrupt) -> Result<Self> {
        let mut builder = AgentBuilder::new()
            .redirects(0)
            .timeout_connect(patience.silence)
            .timeout_read(patience.silence)
            .timeout_write(patience.silence)
            .user_agent(concat!("ambiguity/", env!("CARGO_PKG_VERSION")));
        if let Some(config) = tls::configuration()? {
            builder = builder.tls_config(config);
        }
        if let Some(proxy) = proxy(&endpoint)? {
            builder = builder.proxy(proxy);
        }
        let authorization = Mutex::new(authorization);
        Ok(Self { agent: builder.build(), endpoint, authorization, authorize: None, patience, interrupt })
    }

    /// Returns the client, which asks `authorize` for credentials where the server demands them.
    pub fn authorized_by(self, authorize: impl Authorize + 'static) -> Self {
        Self { authorize: Some(Box::new(authorize)), ..self }
    }

    /// Reads the address of a server; nothing if it is not one.
    pub fn address_of(text: &str) -> Option<Url> {
        let url = Url::parse(text.trim_end_matches('/')).ok()?;
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        (is_web(&url) && url.has_host() && plain).then_some(url)
    }

    /// The address of the server.
    pub fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Whether there are credentials to send.
    pub fn has_credentials(&self) -> bool {
        self.authorization().is_some()
    }

    fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns an address below the server's, of these components.
    pub fn address<'a>(&self, components: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut().expect("an address with a host has a path").pop_if_empty().extend(components);
        url
    }

    /// The attempts of a new request.
    pub fn attempts(&self) -> Attempts<'_> {
        Attempts { client: self, failed: 0 }
    }

    /// Whether an address is the server's own: the same scheme, host and port.
    pub fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// Returns a small document, at most `limit` bytes, and the response without its body.
    pub fn document(&self, request: Request<'_>, limit: usize) -> Result<(Reply, Vec<u8>), Failure> {
        let url = request.url.clone();
        let start = Instant::now();
        let mut reply = self.follow(request, true)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = reply.chunk()? {
            bytes.extend(chunk);
            if bytes.len() > limit {
                return Err(Failure::wrong(&url, format!("sends a document of more than {limit} bytes")));
            }
            if start.elapsed() > self.patience.document {
                return Err(Failure::Silent { host: host_of(&url), silence: self.patience.document });
            }
        }
        Ok((reply, bytes))
    }

    /// Returns the headers of a file, those of the server itself: redirects to other hosts, where the data lies, are not
    /// followed.
    pub fn head(&self, url: &Url) -> Result<Reply, Failure> {
        self.follow(Request::new("HEAD", url.clone()), false)
    }

    /// Requests the bytes from `from`.
    pub fn get(&self, url: &Url, from: u64) -> Result<Reply, Failure> {
        self.follow(Request::new("GET", url.clone()).from(from), true)
    }

    /// Makes a request with a body or without, whose redirects are not followed.
    ///
    /// # Errors
    /// As for the others, and for a redirect.
    pub fn write(&self, request: Request<'_>) -> Result<Reply, Failure> {
        self.answered(&request)?.successful()
    }

    /// Makes a request, and those that redirects ask for: on the server's own host, and on others if `leave`.
    fn follow(&self, mut request: Request<'_>, leave: bool) -> Result<Reply, Failure> {
        for _ in 0..=MAX_REDIRECTS {
            let reply = self.answered(&request)?;
            if !(300..400).contains(&reply.status) {
                return reply.successful();
            }
            let url = &request.url;
            if request.body.is_some() {
                return Err(Failure::wrong(url, "redirects a request that has a body"));
            }
            let location = reply.headers.get("Location").and_then(|location| url.join(location).ok());
            let Some(next) = location.filter(is_web) else {
                return Err(Failure::wrong(url, "redirects to what is no address"));
            };
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(Failure::wrong(url, format!("redirects to {}, which is not encrypted", host_of(&next))));
            }
            if !leave && !self.is_own(&next) {
                return Ok(reply);
            }
            request.url = next;
        }
        Err(Failure::wrong(&request.url, format!("redirects more than {MAX_REDIRECTS} times")))
    }

    /// Makes one request; where the server's own host demands credentials, once more with them.
    fn answered(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        let reply = self.send(request)?;
        let challenge =
            reply.headers.get("WWW-Authenticate").filter(|_| reply.status == 401 && self.is_own(&request.url));
        let (Some(authorize), Some(challenge)) = (&self.authorize, challenge) else { return Ok(reply) };
        let Some(credentials) = authorize.authorize(challenge)? else { return Ok(reply) };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(credentials);
        self.send(request)
    }

    /// Makes one request in a thread, and waits for its headers.
    fn send(&self, request: &Request<'_>) -> Result<Reply, Failure> {
        let Request { method, url, headers, body, sent } = request;
        // A compressed response has neither the length nor the digest of the file.
        let mut call = self.agent.request_url(method, url).set("Accept-Encoding", "identity");
        if let Some(authorization) = self.authorization().filter(|_| self.is_own(url)) {
            call = call.set("Authorization", &authorization);
        }
        for (name, value) in headers {
            call = call.set(name, value);
        }
        let (sender, events) = sync_channel(CHUNKS);
        let host = host_of(url);
        let (name, body, silence) = (host.clone(), body.clone(), self.patience.silence);
        thread::spawn(move || {
            let response = match body {
                None => call.call(),
                Some(bytes) => {
                    let call = call.set("Content-Length", &bytes.len().to_string());
                    call.send(Outgoing { bytes, position: 0, events: sender.clone() })
                }
            };
            drop(transfer(response, &name, silence, &sender));
        });
        let interrupt = self.interrupt.clone();
        let (url, headers) = (url.clone(), Headers::default());
        let mut reply = Reply { status: 0, headers, url, host, events, silence, interrupt };
        loop {
            match reply.event()? {
                Event::Headers(status, headers) => return Ok(Reply { status, headers, ..reply }),
                Event::Sent(n) => {
                    if let Some(Sent(hear)) = sent {
                        hear(n);
                    }
                }
                Event::Chunk(_) | Event::End => unreachable!("the headers come first"),
            }
        }
    }
}

/// A body on its way, which reports its progress.
struct Outgoing {
    bytes: Arc<[u8]>,
    position: usize,
    events: SyncSender<Result<Event, Failure>>,
}

impl Read for Outgoing {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = into.len().min(CHUNK).min(self.bytes.len() - self.position);
        into[..n].copy_from_slice(&self.bytes[self.position..self.position + n]);
        self.position += n;
        // Nobody receives after Ctrl-C.
        self.events.send(Ok(Event::Sent(n as u64))).map_err(|_| io::Error::other("nobody waits"))?;
        Ok(n)
    }
}

/// The headers of a response.
#[derive(Clone, Debug, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Returns a header by its name, in any case; the first one of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn of(response: &Response) -> Self {
        let names = response.headers_names();
        let pair = |name: String| Some((response.header(&name)?.to_owned(), name));
        Self(names.into_iter().filter_map(pair).map(|(value, name)| (name, value)).collect())
    }
}

/// What the thread of a request sends: bytes of the body that are on their way, headers, chunks, the end; or a failure.
enum Event {
    Sent(u64),
    Headers(u16, Headers),
    Chunk(Vec<u8>),
    End,
}

/// The response to a request.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The address that answered, after redirects.
    pub url: Url,
    /// The headers.
    pub headers: Headers,
    host: String,
    events: Receiver<Result<Event, Failure>>,
    silence: Duration,
    interrupt: Interrupt,
}

impl Reply {
    /// Returns the next bytes, or nothing at the end.
    pub fn chunk(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.event()? {
            Event::Chunk(chunk) => Ok(Some(chunk)),
            Event::End => Ok(None),
            Event::Headers(..) | Event::Sent(_) => unreachable!("the headers come once, after the request"),
        }
    }

    /// Waits for the thread, and for Ctrl-C.
    fn event(&mut self) -> Result<Event, Failure> {
        let start = Instant::now();
        loop {
            self.interrupt.check("")?;
            match self.events.recv_timeout(POLL) {
                Ok(event) => return event,
                Err(RecvTimeoutError::Timeout) if start.elapsed() < self.silence => {}
                Err(_) => return Err(Failure::Silent { host: self.host.clone(), silence: self.silence }),
            }
        }
    }

    /// Returns a failure if the status means one.
    fn successful(mut self) -> Result<Self, Failure> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let (mut body, start) = (vec![], Instant::now());
        // What a server says with a failure is not worth a failure of its own.
        while let Ok(Some(chunk)) = self.chunk() {
            body.extend(chunk);
            if body.len() >= MAX_MESSAGE || start.elapsed() > self.silence {
                body.truncate(MAX_MESSAGE);
                break;
            }
        }
        self.interrupt.check("")?;
        Err(Failure::Status { status: self.status, headers: self.headers, body, host: self.host })
    }
}

/// Sends a response through the channel; ends when nobody receives.
fn transfer(
    response: Result<Response, Error>,
    host: &str,
    silence: Duration,
    events: &SyncSender<Result<Event, Failure>>,
) -> Result<(), std::sync::mpsc::SendError<Result<Event, Failure>>> {
    let response = match response {
        Ok(response) | Err(Error::Status(_, response)) => response,
        Err(Error::Transport(error)) => {
            let is_connection = matches!(
                error.kind(),
                ErrorKind::Dns | ErrorKind::ConnectionFailed | ErrorKind::ProxyConnect | ErrorKind::ProxyUnauthorized
            );
            let (host, cause) = (host.to_owned(), error.to_string());
            let cause = cause.split_once(": ").map_or(&*cause, |(_, cause)| cause).to_owned();
            let failure = match is_connection {
                true => Failure::Unreachable { host, cause },
                false if cause.contains("timed out") => Failure::Silent { host, silence },
                false => Failure::Broken { host, cause },
            };
            return events.send(Err(failure));
        }
    };
    events.send(Ok(Event::Headers(response.status(), Headers::of(&response))))?;
    let mut reader = response.into_reader();
    loop {
        let mut chunk = vec![0; CHUNK];
        let event = match reader.read(&mut chunk) {
            Ok(0) => return events.send(Ok(Event::End)),
            Ok(n) => {
                chunk.truncate(n);
                Ok(Event::Chunk(chunk))
            }
            Err(error) if error.to_string().contains("timed out") => {
                Err(Failure::Silent { host: host.to_owned(), silence })
            }
            Err(error) => Err(Failure::Broken { host: host.to_owned(), cause: error.to_string() }),
        };
        let ends = event.is_err();
        events.send(event)?;
        if ends {
            return Ok(());
        }
    }
}

/// Whether an address is one of the web.
fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}
