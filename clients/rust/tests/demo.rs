//! The samples, against `exchange serve --demo` of the Python package, where that is installed.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::Proxy;
use exchange_grpc::{Event, Exchange};

/// A demo exchange, as long as it lives.
struct Demo {
    process: Child,
    url: String,
}

impl Demo {
    /// None where there is no `exchange` to serve it.
    fn start() -> Option<Self> {
        let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/exchange");
        let command = std::env::var_os("EXCHANGE_COMMAND").map_or(installed, PathBuf::from);
        if !command.exists() {
            assert_ne!(std::env::var("EXCHANGE_REQUIRE_ALL").as_deref(), Ok("1"), "there is no {}", command.display());
            eprintln!("skipped: there is no {}", command.display());
            return None;
        }
        let mut serve = Command::new(command);
        serve.args(["serve", "--demo", "--id", "demo", "--grpc", "127.0.0.1:0"]);
        let mut process = serve.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let url = ready.split_whitespace().find(|word| word.starts_with("grpc://")).expect("a URL").to_owned();
        Some(Self { process, url })
    }

    /// What a sample prints.
    fn run(&self, sample: &str) -> String {
        let tests = std::env::current_exe().unwrap(); // .../deps/demo-...
        let path = tests.parent().unwrap().parent().unwrap().join("examples").join(sample);
        let done = Command::new(&path).env("EXCHANGE_URL", &self.url).output().unwrap();
        assert!(done.status.success(), "{sample}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn samples_do_what_they_say() {
    let Some(demo) = Demo::start() else { return };
    assert_eq!(demo.run("hello"), "hello from demo\n");
    assert_eq!(demo.run("request_reply"), "compute.sum: 8\n");
    assert_eq!(demo.run("worker_pool"), "worker-1: 5\nworker-2: 5\n");
    assert_eq!(demo.run("live_state"), "goal: 50\n");
    assert_eq!(demo.run("live_state"), "goal: 100\n");
    assert_eq!(demo.run("trace"), "compute.sum: tracer -> demo\ncompute.sum: demo -> tracer\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_survive_a_link_that_is_cut() {
    let Some(demo) = Demo::start() else { return };
    let proxy = Proxy::to(&demo.url).await;
    let me = Exchange::new("me").unwrap();
    let mut events = me.events();
    me.connect(&proxy.url).await.unwrap();
    let asking: Vec<_> = (0..8)
        .map(|asker: usize| {
            let me = me.clone();
            tokio::spawn(async move {
                for number in 0..200 {
                    let value = asker * 1000 + number;
                    assert_eq!(*me.request("echo", value).await.unwrap().value(), value);
                }
            })
        })
        .collect();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(110)).await;
        proxy.cut();
    }
    for asker in asking {
        asker.await.unwrap();
    }
    me.close().await;
    let mut resumed = 0;
    while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(100), events.next()).await {
        if let Event::Resumed { recovered, .. } = event {
            assert!(recovered);
            resumed += 1;
        }
    }
    assert!(resumed > 0);
}
