//! Requests over the network: a server is not trusted, and waiting for one can be interrupted.
//!
//! # Layout
//!
//! - [`client`]: requests, redirects and credentials
//! - [`download`]: files into a cache, resumed, of the announced length and digest
//! - [`proxy`] and [`tls`]: what the environment says of connections

pub mod client;
pub mod download;
pub mod proxy;
pub mod tls;

pub use self::client::{Authorize, Client, Failure, Headers, Patience, Reply, Request, Sent, host_of};
pub use self::download::{Downloads, Meter, Remote, check_space, lock, missing};
