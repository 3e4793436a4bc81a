//! Writes the access log on a thread of its own: a reader of stdout that stops must not block anything else.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::drain::Watch;
use crate::observe::queue::Queue;

/// Time that lines are collected, so that many share one write.
const COLLECT: Duration = Duration::from_millis(50);
/// Most lines of one write.
const BATCH: usize = 4096;

/// Destination of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// To standard output.
    Stdout,
    /// To the end of a file.
    File(PathBuf),
}

impl FromStr for Sink {
    type Err = String;

    fn from_str(text: &str) -> Result<Sink, String> {
        match text {
            "stdout" | "/dev/stdout" => Ok(Sink::Stdout),
            "" => Err("stdout, or a file".to_owned()),
            path => Ok(Sink::File(path.into())),
        }
    }
}

impl Sink {
    /// Opens it.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn open(&self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Sink::Stdout => Box::new(io::stdout()),
            Sink::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        })
    }
}

/// Writes queued lines until the proxy ends.
pub async fn run(lines: Arc<Queue<Vec<u8>>>, mut sink: Box<dyn Write + Send>, watch: Watch) {
    let mut is_broken = false;
    loop {
        let is_over = tokio::select! {
            () = lines.filled() => false,
            () = watch.ended() => true,
        };
        if !is_over {
            sleep(COLLECT).await;
        }
        let batch = lines.take(BATCH);
        if batch.is_empty() && is_over {
            return;
        }
        let written = sink.write_all(&batch.concat()).and_then(|()| sink.flush());
        if let Err(error) = &written {
            lines.lost(batch.len());
            if !is_broken {
                tracing::warn!(%error, "the access log can't be written");
            }
        }
        is_broken = written.is_err();
    }
}
