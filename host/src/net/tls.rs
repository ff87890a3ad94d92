//! The certificate authorities of encrypted connections: the web's, and those that the environment names.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result, anyhow};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The variable that names a file of certificates, as OpenSSL and curl read it.
const FILE: &str = "SSL_CERT_FILE";
/// The variable that names a folder of certificates.
const FOLDER: &str = "SSL_CERT_DIR";

/// Returns the configuration of connections if the environment names certificates (`SSL_CERT_FILE`, `SSL_CERT_DIR`): they
/// are trusted beside the web's own, so that a private authority's server is reached as well as a public one.
///
/// # Errors
/// If a named file has no certificate.
pub fn configuration() -> Result<Option<Arc<ClientConfig>>> {
    static CONFIGURATION: OnceLock<Result<Option<Arc<ClientConfig>>, String>> = OnceLock::new();
    let configuration = CONFIGURATION.get_or_init(|| read().map_err(|error| format!("{error:#}")));
    configuration.clone().map_err(|error| anyhow!(error))
}

fn read() -> Result<Option<Arc<ClientConfig>>> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let (file, folder) = (variable(FILE), variable(FOLDER));
    if file.is_none() && folder.is_none() {
        return Ok(None);
    }
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = file {
        let found = certificates(&file).with_context(|| format!("{FILE} ({})", file.display()))?;
        roots.add_parsable_certificates(found);
    }
    if let Some(folder) = folder {
        let entries = fs_err::read_dir(folder).with_context(|| FOLDER.to_owned())?;
        // A folder of certificates has other files too.
        let found = entries.flatten().filter_map(|entry| certificates(&entry.path()).ok());
        roots.add_parsable_certificates(found.flatten());
    }
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(Some(Arc::new(config)))
}

/// Returns the certificates of a file in PEM form; one at least.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = fs_err::read(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| anyhow!("it has no certificates in PEM form"))
}
