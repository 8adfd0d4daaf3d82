//! Links over TLS, with certificates made here by openssl.
#![cfg(feature = "tls")]

use std::path::PathBuf;
use std::process::Command;

use exchange_grpc::tls::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};
use exchange_grpc::{ConnectOptions, Exchange, ListenOptions};

/// A certificate of its own for 127.0.0.1, and its key. None where there is no openssl.
fn certificate() -> Option<(String, String)> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    openssl.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
    let Ok(done) = openssl.output() else {
        assert_ne!(std::env::var("EXCHANGE_REQUIRE_ALL").as_deref(), Ok("1"), "there is no openssl");
        eprintln!("skipped: there is no openssl");
        return None;
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some((std::fs::read_to_string(certificate).unwrap(), std::fs::read_to_string(key).unwrap()))
}

#[tokio::test]
async fn a_link_is_made_with_whom_the_certificate_names() {
    let Some((certificate, key)) = certificate() else { return };
    let shop = Exchange::new("shop").unwrap();
    shop.handle("echo", |call| async move { Ok(call.payload().clone()) }).unwrap();
    let identity = ServerTlsConfig::new().identity(Identity::from_pem(&certificate, key));
    let url = shop.listen_with("grpcs://127.0.0.1:0", ListenOptions::new().tls(identity)).await.unwrap();

    let till = Exchange::new("till").unwrap();
    assert!(till.connect(&url).await.is_err()); // it is none of the public roots
    let known = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&certificate));
    till.connect_with(&url, ConnectOptions::new().tls(known)).await.unwrap();
    assert_eq!(till.request("echo", 1).await.unwrap().value(), 1);
    till.close().await;
    shop.close().await;
}
