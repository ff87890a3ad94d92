//! Requests to the Hub: a token that only its own host receives, redirects one at a time, timeouts, and Ctrl-C that is
//! answered while a server is silent.
//!
//! A thread makes each request and sends what arrives through a channel, so that the caller waits for neither a
//! connection nor a read.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ureq::{Agent, AgentBuilder, Error, ErrorKind, Proxy, Response};
use url::Url;

use crate::interrupt::{Interrupt, Interrupted};

/// Number of redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Number of bytes of a document (no file), above which it is refused.
const MAX_DOCUMENT: usize = 64 << 20;
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
        /// The Hub's own name of the error, `GatedRepo` for example.
        code: String,
        /// The time after which the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// A response that no Hub gives.
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
    /// A response that no Hub gives; `what` is a verb and its object.
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
            Failure::Status { retry_after, .. } => retry_after.unwrap_or_default().min(MAX_WAIT),
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

/// A client of one Hub.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    /// The address of the Hub; what it tells about files is believed, within limits.
    endpoint: Url,
    token: Option<String>,
    patience: Patience,
    interrupt: Interrupt,
}

impl Client {
    /// Returns a client of the Hub at `endpoint`.
    ///
    /// # Errors
    /// If the address or the token cannot be one.
    pub fn new(endpoint: &str, token: Option<String>, patience: Patience, interrupt: Interrupt) -> Result<Self> {
        let address = Url::parse(endpoint.trim_end_matches('/'))
            .ok()
            .filter(|url| is_web(url) && url.has_host() && url.query().is_none() && url.fragment().is_none());
        let endpoint = address.with_context(|| format!("HF_ENDPOINT: {endpoint} is not an address, https://HOST"))?;
        let is_plain = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(
            token.as_ref().is_none_or(is_plain),
            "the token for the Hub contains characters that no token has: set HF_TOKEN, or log in with `hf auth login` again"
        );
        let mut builder = AgentBuilder::new()
            .redirects(0)
            .timeout_connect(patience.silence)
            .timeout_read(patience.silence)
            .timeout_write(patience.silence)
            .user_agent(concat!("ambiguity/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = proxy(&endpoint)? {
            builder = builder.proxy(proxy);
        }
        Ok(Self { agent: builder.build(), endpoint, token, patience, interrupt })
    }

    /// The address of the Hub.
    pub fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Whether there is a token to send.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Returns an address below the Hub's, of these components.
    pub fn address<'a>(&self, components: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut().expect("an address with a host has a path").pop_if_empty().extend(components);
        url
    }

    /// The attempts of a new request.
    pub fn attempts(&self) -> Attempts<'_> {
        Attempts { client: self, failed: 0 }
    }

    /// Whether an address is the Hub's own: the same scheme, host and port.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    /// Returns a small document as bytes.
    pub fn document(&self, url: &Url) -> Result<Vec<u8>, Failure> {
        let start = Instant::now();
        let mut reply = self.get(url, 0)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = reply.next()? {
            bytes.extend(chunk);
            if bytes.len() > MAX_DOCUMENT {
                return Err(Failure::wrong(url, format!("sends a document of more than {MAX_DOCUMENT} bytes")));
            }
            if start.elapsed() > self.patience.document {
                return Err(Failure::Silent { host: host_of(url), silence: self.patience.document });
            }
        }
        Ok(bytes)
    }

    /// Returns the headers of a file, those of the Hub itself: redirects to other hosts, where the data lies, are not
    /// followed.
    pub fn head(&self, url: &Url) -> Result<Reply, Failure> {
        self.follow("HEAD", url, 0, false)
    }

    /// Requests the bytes from `from`.
    pub fn get(&self, url: &Url, from: u64) -> Result<Reply, Failure> {
        self.follow("GET", url, from, true)
    }

    /// Makes a request, and those that redirects ask for: on the Hub's own host, and on others if `leave`.
    fn follow(&self, method: &'static str, url: &Url, from: u64, leave: bool) -> Result<Reply, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let reply = self.send(method, url.clone(), from)?;
            if !(300..400).contains(&reply.status) {
                return reply.successful();
            }
            let location = reply.header(Header::Location).and_then(|location| url.join(location).ok());
            let Some(next) = location.filter(is_web) else {
                return Err(Failure::wrong(&url, "redirects to what is no address"));
            };
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(Failure::wrong(&url, format!("redirects to {}, which is not encrypted", host_of(&next))));
            }
            if !leave && !self.is_own(&next) {
                return Ok(reply);
            }
            url = next;
        }
        Err(Failure::wrong(&url, format!("redirects more than {MAX_REDIRECTS} times")))
    }

    /// Makes one request in a thread, and waits for its headers.
    fn send(&self, method: &'static str, url: Url, from: u64) -> Result<Reply, Failure> {
        // A compressed response has neither the length nor the digest of the file.
        let mut request = self.agent.request_url(method, &url).set("Accept-Encoding", "identity");
        if let Some(token) = self.token.as_ref().filter(|_| self.is_own(&url)) {
            request = request.set("Authorization", &format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.set("Range", &format!("bytes={from}-"));
        }
        let (sender, events) = sync_channel(CHUNKS);
        let host = host_of(&url);
        let name = host.clone();
        thread::spawn(move || drop(transfer(request.call(), &name, &sender)));
        let (silence, interrupt) = (self.patience.silence, self.interrupt.clone());
        let mut reply = Reply { status: 0, headers: Default::default(), url, host, events, silence, interrupt };
        match reply.event()? {
            Event::Headers(status, headers) => Ok(Reply { status, headers, ..reply }),
            Event::Chunk(_) | Event::End => unreachable!("the headers come first"),
        }
    }
}

/// A header that the client reads.
#[derive(Clone, Copy, Debug)]
pub enum Header {
    /// `Location`
    Location,
    /// `ETag`
    Etag,
    /// `X-Linked-ETag`, of the data that a redirect leads to.
    LinkedEtag,
    /// `X-Linked-Size`
    LinkedSize,
    /// `Content-Length`
    Length,
    /// `Content-Range`
    Range,
    /// `X-Repo-Commit`
    Commit,
    /// `X-Error-Code`
    ErrorCode,
    /// `Retry-After`
    RetryAfter,
}

/// The names of the headers, in the order of [`Header`].
const NAMES: [&str; 9] = [
    "location",
    "etag",
    "x-linked-etag",
    "x-linked-size",
    "content-length",
    "content-range",
    "x-repo-commit",
    "x-error-code",
    "retry-after",
];

type Headers = [Option<String>; NAMES.len()];

/// What the thread of a request sends: headers, chunks, the end; or a failure.
enum Event {
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
    headers: Headers,
    host: String,
    events: Receiver<Result<Event, Failure>>,
    silence: Duration,
    interrupt: Interrupt,
}

impl Reply {
    /// Returns a header.
    pub fn header(&self, header: Header) -> Option<&str> {
        self.headers[header as usize].as_deref()
    }

    /// Returns the next bytes, or nothing at the end.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.event()? {
            Event::Chunk(chunk) => Ok(Some(chunk)),
            Event::End => Ok(None),
            Event::Headers(..) => unreachable!("the headers come once"),
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
    fn successful(self) -> Result<Self, Failure> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let seconds = self.header(Header::RetryAfter).and_then(|text| text.trim().parse().ok());
        Err(Failure::Status {
            status: self.status,
            code: self.header(Header::ErrorCode).unwrap_or_default().to_owned(),
            retry_after: seconds.map(Duration::from_secs),
            host: self.host,
        })
    }
}

/// Sends a response through the channel; ends when nobody receives.
fn transfer(
    response: Result<Response, Error>,
    host: &str,
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
                false => Failure::Broken { host, cause },
            };
            return events.send(Err(failure));
        }
    };
    let headers = NAMES.map(|name| response.header(name).map(str::to_owned));
    events.send(Ok(Event::Headers(response.status(), headers)))?;
    let mut reader = response.into_reader();
    loop {
        let mut chunk = vec![0; CHUNK];
        let event = match reader.read(&mut chunk) {
            Ok(0) => return events.send(Ok(Event::End)),
            Ok(n) => {
                chunk.truncate(n);
                Ok(Event::Chunk(chunk))
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

fn is_web(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https")
}

/// Returns the proxy of the environment, unless NO_PROXY names the Hub's host.
fn proxy(endpoint: &Url) -> Result<Option<Proxy>> {
    let variable = |names: &[&str]| {
        let names = names.iter().flat_map(|name| [name.to_lowercase(), (*name).to_owned()]);
        names.filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty())
    };
    let own = if endpoint.scheme() == "https" { "HTTPS_PROXY" } else { "HTTP_PROXY" };
    let Some(address) = variable(&[own, "ALL_PROXY"]) else { return Ok(None) };
    let host = endpoint.host_str().unwrap_or_default();
    let is_exempt = |pattern: &str| {
        let domain = pattern.trim().trim_start_matches('.');
        domain == "*"
            || !domain.is_empty()
                && host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if variable(&["NO_PROXY"]).is_some_and(|list| list.split(',').any(is_exempt)) {
        return Ok(None);
    }
    Proxy::new(&address)
        .map(Some)
        .map_err(|_| anyhow::anyhow!("{own} or ALL_PROXY: {address} is not a proxy's address"))
}
