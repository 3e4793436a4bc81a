//! The live map in a browser: headless Chromium, driven by selenium, against made-up meshes and against the demo.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use leno_tests::client::get;
use leno_tests::process::demo;

/// The directory of the screenshots, which are kept.
fn shots() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/screenshots");
    std::fs::create_dir_all(&path).expect("a directory");
    path
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("neighbours/map.py")
}

/// One browser at a time: frame times are measured.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[test]
fn nothing_overlaps_and_a_frame_is_short_with_ten_services_and_with_three_hundred() {
    let _alone = ALONE.blocking_lock();
    for count in ["10", "300"] {
        let out = Command::new("python3")
            .args([script().as_os_str(), "--mock".as_ref(), count.as_ref()])
            .arg(shots())
            .output()
            .expect("python3 is on PATH");
        let said = String::from_utf8_lossy(&out.stdout);
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{count} services:\n{said}\n{errors}");
        assert!(said.contains("ok"), "it looked at something");
    }
}

/// A process that is driven by lines of stdin and stdout, interrupted when it is dropped.
struct Spoken {
    child: Child,
    input: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Spoken {
    fn start(mut command: Command) -> Spoken {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let input = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Spoken {
            child,
            input,
            lines,
        }
    }

    /// The next line that contains `words`.
    fn line_with(&mut self, words: &str) -> String {
        let mut lines = self.lines.by_ref().map(|line| line.expect("UTF-8"));
        let found = lines.find(|line| line.contains(words));
        found.unwrap_or_else(|| panic!("it ended without {words:?}"))
    }

    /// Sends a command, which must succeed.
    fn does(&mut self, what: &str) {
        let input = self.input.as_mut().expect("piped");
        writeln!(input, "{what}")
            .and_then(|()| input.flush())
            .expect("it listens");
        let said = self.lines.next().expect("an answer").expect("UTF-8");
        assert!(said.starts_with("ok"), "{what}: {said}");
    }
}

impl Drop for Spoken {
    fn drop(&mut self) {
        // SIGINT: the demo ends its own processes.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-INT", &pid]).status();
        self.input = None;
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_is_seen_on_the_map_while_it_happens() {
    let _alone = ALONE.lock().await;
    let mut demo = Spoken::start(demo().await);
    let url = demo.line_with("The live map: ");
    let url = url.trim_start_matches("The live map: ").to_owned();
    demo.line_with("programs");
    let mut browser = Command::new("python3");
    browser.arg(script()).arg(&url).arg(shots());
    let mut page = Spoken::start(browser);
    page.does("edge default/order-service default/user-service 15");
    page.does("padlock default/order-service default/user-service 10");
    page.does("shot demo-traffic");
    page.does("error no_rule_allows 30");
    page.does("ejected default/user-service 60");
    page.does("shot demo-ejected");
    page.does("not-ejected default/user-service 60");
    // The control plane is killed, and comes back.
    page.does("lost 90");
    page.does("live 90");
    let edit = demo.line_with("  edit ");
    let directory = Path::new(edit.trim_start().trim_start_matches("edit ")).to_owned();
    let outbound: std::net::SocketAddr = "127.0.2.1:15001".parse().expect("an address");
    let began = tokio::time::Instant::now();
    assert_eq!(get(outbound, "user-service", "/users/1").await.status, 200);
    page.does("edge default/order-service default/user-service 5");
    assert!(began.elapsed().as_secs() < 6, "within 5 s of the request");
    let broken = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: broken}\nspec: {hosts: [user-service], htp: []}\n";
    std::fs::write(directory.join("broken.yaml"), broken).expect("written");
    page.does("object broken error 10");
    page.does("shot demo-broken");
    std::fs::remove_file(directory.join("broken.yaml")).expect("removed");
    page.does("no-object broken error 10");
    page.does("open default/user-service");
    page.does("shot demo-service");
    page.does("close");
    for what in ["keyboard", "overlaps", "dark", "shot demo-dark", "console"] {
        page.does(what);
    }
}
