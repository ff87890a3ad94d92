//! The proxy that the environment names.

use anyhow::Result;
use ureq::Proxy;
use url::Url;

/// Returns the proxy of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`), unless `NO_PROXY` names the server's host.
///
/// # Errors
/// If the variable is not a proxy's address.
pub fn proxy(endpoint: &Url) -> Result<Option<Proxy>> {
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
        .map_err(|_| anyhow::anyhow!("{own} or ALL_PROXY is not the address of a proxy, such as http://HOST:PORT"))
}
