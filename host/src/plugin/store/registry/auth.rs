//! How a registry knows who asks: credentials as docker keeps them, its helpers included, and the tokens that they buy.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;
use url::Url;

use crate::interrupt::Interrupt;
use crate::net::{Authorize, Client, Failure, Patience, Request, host_of};
use crate::text::escaped;

/// Number of bytes of a token's document, above which it is refused.
const MAX_TOKEN: usize = 1 << 20;

/// What docker calls its own registry.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// Answers the demands of a registry.
pub struct Credentials {
    /// The registry, as references name it.
    pub registry: String,
    /// The registry's address.
    pub endpoint: Url,
    /// What the token is for: `repository:PATH:pull`.
    pub scope: String,
    /// How long a token is waited for.
    pub patience: Patience,
    /// The interrupt.
    pub interrupt: Interrupt,
}

/// What a registry demands.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    /// The scope is what this program needs, whatever the registry says.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

impl Challenge {
    /// Reads the header `WWW-Authenticate`.
    fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let value = |name: &str| {
            let mut rest = rest;
            // Values contain commas: `scope="repository:a/b:pull,push"`.
            while let Some((key, after)) = rest.split_once('=') {
                let (value, after) = match after.strip_prefix('"') {
                    Some(quoted) => quoted.split_once('"')?,
                    None => after.split_once(',').unwrap_or((after, "")),
                };
                if key.trim_start_matches([',', ' ']).eq_ignore_ascii_case(name) {
                    return Some(value.to_owned());
                }
                rest = after;
            }
            None
        };
        Some(Self::Bearer { realm: value("realm")?, service: value("service") })
    }
}

impl Authorize for Credentials {
    fn authorize(&self, challenge: &str) -> Result<Option<String>, Failure> {
        let wrong = |what: String| Failure::wrong(&self.endpoint, what);
        match Challenge::read(challenge) {
            None => Err(wrong(format!("demands a login of a kind that is not known: {}", escaped(challenge)))),
            Some(Challenge::Basic) => Ok(credentials(&self.registry)?.and_then(|found| match found {
                DockerCredential::UsernamePassword(user, password) => Some(basic(&user, &password)),
                DockerCredential::IdentityToken(_) => None,
            })),
            Some(Challenge::Bearer { realm, service }) => {
                let address = Url::parse(&realm).ok().filter(|realm| realm.has_host());
                let address =
                    address.ok_or_else(|| wrong(format!("names no address for tokens: {}", escaped(&realm))))?;
                if self.endpoint.scheme() == "https" && address.scheme() != "https" {
                    let host = host_of(&address);
                    return Err(wrong(format!("names {host} for tokens, which is not encrypted")));
                }
                self.token(&address, service.as_deref()).map(Some)
            }
        }
    }
}

impl Credentials {
    /// Requests a token; with credentials if there are any that may be sent there.
    fn token(&self, realm: &Url, service: Option<&str>) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let found = match is_related(self.endpoint.host_str(), realm.host_str()) {
            true => credentials(&self.registry)?,
            // A registry decides neither that another host learns its password, nor that it gets another registry's token.
            false => None,
        };
        let authorization = match &found {
            Some(DockerCredential::UsernamePassword(user, password)) => Some(basic(user, password)),
            _ => None,
        };
        let client = Client::new(realm.clone(), authorization, self.patience, self.interrupt.clone())?;
        let parameters = [("service", service), ("scope", Some(&*self.scope))];
        let parameters = parameters.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let request = match found {
            Some(DockerCredential::IdentityToken(refresh)) => {
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                form.extend_pairs(parameters);
                form.extend_pairs([("grant_type", "refresh_token"), ("client_id", "ambiguity")]);
                form.append_pair("refresh_token", &refresh);
                let body = form.finish().into_bytes();
                Request::new("POST", realm.clone()).body("application/x-www-form-urlencoded", body, None)
            }
            _ => {
                let mut address = realm.clone();
                address.query_pairs_mut().extend_pairs(parameters);
                Request::new("GET", address)
            }
        };
        let (_, bytes) = client.document(request, MAX_TOKEN)?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        let token = token.and_then(|token| token.token.or(token.access_token));
        let is_plain = |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let token = token.filter(is_plain).ok_or_else(|| Failure::wrong(realm, "gives no token"))?;
        Ok(format!("Bearer {token}"))
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Whether a registry's credentials may be sent to the host that it names for tokens: the same host, one below or above it,
/// or its sibling (`registry.example.com` and `gitlab.example.com`), as registries are set up.
fn is_related(registry: Option<&str>, realm: Option<&str>) -> bool {
    let (Some(registry), Some(realm)) = (registry, realm) else { return false };
    let is_below = |host: &str, above: &str| host.strip_suffix(above).is_some_and(|rest| rest.ends_with('.'));
    let is_name = |host: &str| host.bytes().any(|byte| byte.is_ascii_alphabetic()) && !host.starts_with('[');
    let parent = registry.split_once('.').map(|(_, parent)| parent).filter(|parent| parent.contains('.'));
    registry == realm
        || is_name(registry)
            && is_name(realm)
            && (is_below(registry, realm)
                || is_below(realm, registry)
                || parent.is_some_and(|parent| realm == parent || is_below(realm, parent)))
}

/// Returns what docker knows of a registry: from its configuration, `DOCKER_CONFIG`/config.json or ~/.docker/config.json, and
/// from the helpers that it names.
///
/// # Errors
/// If the configuration or a helper fails.
fn credentials(registry: &str) -> Result<Option<DockerCredential>, Failure> {
    let key = if is_docker(registry) { DOCKER_KEY } else { registry };
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    let Some(file) = folder.map(|folder| folder.join("config.json")).filter(|file| file.is_file()) else {
        return Ok(None);
    };
    let text = fs_err::read(&file).map_err(anyhow::Error::from)?;
    match docker_credential::get_credential_from_reader(&*text, key) {
        Ok(found) => Ok(Some(found)),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        // What helpers print where they have none.
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("credentials not found") => {
            Ok(None)
        }
        Err(error) => {
            // What a helper prints on stdout may be a secret.
            let error = match error {
                CredentialRetrievalError::HelperFailure { helper, stderr, .. } => {
                    format!("{helper} failed: {}", stderr.trim())
                }
                error => error.to_string(),
            };
            let error = escaped(error.trim()).into_owned();
            let file = file.display();
            Err(Failure::Local(anyhow::anyhow!("docker's credentials for {registry} cannot be read: {error} ({file})")))
        }
    }
}

/// Whether docker has credentials of a registry.
pub fn has_credentials(registry: &str) -> bool {
    credentials(registry).is_ok_and(|found| found.is_some())
}

/// Whether a registry is docker's own, whose address and whose name in docker's files are others.
pub fn is_docker(registry: &str) -> bool {
    registry == "docker.io"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        assert_eq!(Challenge::read("Basic realm=\"Registry\""), Some(Challenge::Basic));
        assert_eq!(
            Challenge::read("Bearer realm=\"https://a.b/token\",scope=\"repository:a/b:pull,push\", service=\"reg\""),
            bearer("https://a.b/token", Some("reg"))
        );
        assert_eq!(Challenge::read("bearer realm=https://a.b/t"), bearer("https://a.b/t", None));
        for text in ["Negotiate", "Bearer", "Bearer realm=\"open", ""] {
            assert_eq!(Challenge::read(text), None, "{text}");
        }
    }

    #[test]
    fn credentials_go_to_related_hosts_only() {
        for (registry, realm, related) in [
            ("r.example.com", "r.example.com", true),
            ("registry.gitlab.com", "gitlab.com", true),
            ("registry.example.com", "gitlab.example.com", true),
            ("example.com", "auth.example.com", true),
            ("registry-1.docker.io", "auth.docker.io", true),
            ("example.com", "example.org", false),
            ("example.com", "evil.com", false),
            ("r.example.com", "evil.org", false),
            ("r.example.com", "r.example.com.evil.org", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("10.0.0.1", "9.0.0.1", false),
        ] {
            assert_eq!(is_related(Some(registry), Some(realm)), related, "{registry} {realm}");
        }
    }
}
