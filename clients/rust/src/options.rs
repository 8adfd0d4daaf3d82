//! How links are made: how long they are dialled again, and who proves what to whom.

use std::time::Duration;

use tonic::transport::{Endpoint, Server};

use crate::error::{Error, Result};

/// How to dial: see [`Exchange::connect_with`](crate::Exchange::connect_with).
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    pub(crate) retry: Option<Duration>,
    pub(crate) bearer: Option<String>,
    #[cfg(feature = "tls")]
    tls: Option<tonic::transport::ClientTlsConfig>,
}

impl ConnectOptions {
    /// A link that breaks is dialled again for ever, and no credentials are shown.
    pub fn new() -> Self {
        Self::default()
    }

    /// Dial again for so long after each break; zero: never.
    pub fn retry(mut self, retry: Duration) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Show this token, as `authorization: Bearer ...`.
    pub fn bearer(mut self, token: impl Into<String>) -> Self {
        self.bearer = Some(token.into());
        self
    }

    /// How to check the other side of a `grpcs://` URL, and what certificate to show it. Without it the public roots
    /// count.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: tonic::transport::ClientTlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    #[cfg(feature = "tls")]
    pub(crate) fn secured(&self, endpoint: Endpoint, secure: bool) -> Result<Endpoint> {
        if !secure {
            return Ok(endpoint);
        }
        let public = || tonic::transport::ClientTlsConfig::new().with_webpki_roots();
        let tls = self.tls.clone().unwrap_or_else(public);
        endpoint.tls_config(tls).map_err(|error| Error::Address(format!("TLS cannot be used like that: {error}")))
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_self)] // it has what the other one needs
    pub(crate) fn secured(&self, endpoint: Endpoint, secure: bool) -> Result<Endpoint> {
        if secure { Err(no_tls()) } else { Ok(endpoint) }
    }
}

/// How to listen: see [`Exchange::listen_with`](crate::Exchange::listen_with).
#[derive(Clone, Debug, Default)]
pub struct ListenOptions {
    #[cfg(feature = "tls")]
    tls: Option<tonic::transport::ServerTlsConfig>,
}

impl ListenOptions {
    /// In the clear.
    pub fn new() -> Self {
        Self::default()
    }

    /// The certificate to show at a `grpcs://` URL, and whose certificates to ask for.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: tonic::transport::ServerTlsConfig) -> Self {
        self.tls = Some(tls);
        self
    }

    #[cfg(feature = "tls")]
    pub(crate) fn secured(&self, server: Server, secure: bool) -> Result<Server> {
        match (&self.tls, secure) {
            (Some(tls), true) => server
                .tls_config(tls.clone())
                .map_err(|error| Error::Address(format!("TLS cannot be used like that: {error}"))),
            (None, true) => Err(Error::Address("listening at grpcs:// takes a certificate: ListenOptions::tls".into())),
            (_, false) => Ok(server),
        }
    }

    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_self)] // it has what the other one needs
    pub(crate) fn secured(&self, server: Server, secure: bool) -> Result<Server> {
        if secure { Err(no_tls()) } else { Ok(server) }
    }
}

#[cfg(not(feature = "tls"))]
fn no_tls() -> Error {
    Error::Address("grpcs:// needs the feature `tls` of this crate".into())
}
