//! `leno-proxy run -- APP ARGS…`: the app as a child process, started when the proxy is ready. Signals are passed on
//! to it, and its exit code becomes the proxy's: a job ends when its work does, and a machine needs no supervisor.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::pin::pin;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};
use tokio::time::timeout;

use crate::app::Bound;
use crate::drain::Phase;

/// Timeout of the shutdown once the app has exited.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Base of the exit code of a program that a signal ended: shells report this plus the signal's number.
const SIGNALLED: i32 = 128;

/// Runs `app` behind a bound proxy and returns its exit code. With `is_told` the app gets the outbound address as
/// `HTTP_PROXY`, unless the environment sets one.
///
/// # Errors
/// When the app can't be started.
pub async fn run(bound: Bound, app: &[String], is_told: bool) -> Result<u8> {
    let mut signals = Signals::listen()?;
    tokio::select! {
        () = bound.ready() => {}
        sent = signals.next() => {
            bound.shutdown().await;
            return Ok(code(SIGNALLED + sent.as_raw()));
        }
    }
    let proxy = is_told.then(|| format!("http://{}", bound.outbound));
    let mut child = start(app, proxy)?;
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let pass = |sent: Signal| {
        // Fails for a child that has exited: nothing to do.
        let _ = pid.map(|pid| kill_process(pid, sent));
    };
    let status = loop {
        let sent = tokio::select! {
            status = child.wait() => break status,
            sent = signals.next() => sent,
        };
        if !is_end(sent) {
            pass(sent);
            continue;
        }
        return end(bound, child, signals, (sent, pass)).await;
    };
    let _ = timeout(SHUTDOWN_TIMEOUT, bound.shutdown()).await;
    Ok(exit_code(status.context("the app is lost")?))
}

/// Shuts down on SIGTERM or SIGINT: callers are sent elsewhere first, then the app gets the signal, and its own
/// requests are served until it has exited.
async fn end(
    bound: Bound,
    mut child: Child,
    mut signals: Signals,
    (sent, pass): (Signal, impl Fn(Signal)),
) -> Result<u8> {
    let watch = bound.watch();
    let telling = async {
        let mut closing = pin!(watch.reached(Phase::Closing));
        loop {
            let next = tokio::select! {
                () = &mut closing => break pass(sent),
                next = signals.next() => next,
            };
            pass(next);
            // A second SIGTERM or SIGINT means now: the first needs no passing on any more.
            if is_end(next) {
                break;
            }
        }
        loop {
            pass(signals.next().await);
        }
    };
    let waiting = async {
        tokio::select! {
            status = child.wait() => status,
            never = telling => never,
        }
    };
    let mut shutdown = pin!(bound.shutdown());
    let mut waiting = pin!(waiting);
    let status = tokio::select! {
        status = &mut waiting => {
            let _ = timeout(SHUTDOWN_TIMEOUT, shutdown).await;
            status
        }
        () = &mut shutdown => waiting.await,
    };
    Ok(exit_code(status.context("the app is lost")?))
}

fn is_end(sent: Signal) -> bool {
    matches!(sent, Signal::TERM | Signal::INT)
}

fn start(app: &[String], proxy: Option<String>) -> Result<Child> {
    let (program, arguments) = app.split_first().context("no app is named")?;
    let mut command = Command::new(program);
    command.args(arguments).kill_on_drop(true);
    if let Some(proxy) = proxy {
        for (name, value) in [
            ("HTTP_PROXY", proxy.as_str()),
            ("http_proxy", proxy.as_str()),
            ("NO_PROXY", "localhost,127.0.0.1,::1"),
            ("no_proxy", "localhost,127.0.0.1,::1"),
        ] {
            if env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
    }
    let child = command.spawn();
    child.with_context(|| format!("{program} can't be started"))
}

fn exit_code(status: ExitStatus) -> u8 {
    let by_signal = status.signal().map(|number| SIGNALLED + number);
    code(status.code().or(by_signal).unwrap_or(1))
}

fn code(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

/// Signals that are passed on to the app.
#[derive(Debug)]
struct Signals(Vec<(Signal, Listener)>);

impl Signals {
    fn listen() -> Result<Signals> {
        let all = [
            (Signal::TERM, SignalKind::terminate()),
            (Signal::INT, SignalKind::interrupt()),
            (Signal::HUP, SignalKind::hangup()),
            (Signal::QUIT, SignalKind::quit()),
            (Signal::USR1, SignalKind::user_defined1()),
            (Signal::USR2, SignalKind::user_defined2()),
        ];
        let listen = |(sent, kind)| Ok((sent, signal(kind)?));
        all.into_iter()
            .map(listen)
            .collect::<Result<_>>()
            .map(Signals)
    }

    /// The next signal that this process receives.
    async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (sent, listener) in &mut self.0 {
                if listener.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*sent);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}
