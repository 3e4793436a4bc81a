//! State for a restart: the certificate and the last good configuration, in the workload's own directory.
//!
//! Invariant: a file is loaded only as it was written, for this identity, and if no other user could read or change it;
//! any other is refused with the reason, and the proxy starts without it.
//!
//! Files: `identity`, at each renewal, and `configuration`, 0.2 s after a change; both 0600, the directory 0700.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use leno_rules::spiffe::SpiffeId;

/// Magic words at the start of every file, with the version of the format.
const MAGIC: &str = "leno-proxy state 1";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024 * 1024;
/// Permission bits of the group and of others.
const OTHERS: u32 = 0o077;

/// State directory of one workload.
#[derive(Debug)]
pub struct StateDir {
    directory: PathBuf,
    id: SpiffeId,
}

impl StateDir {
    /// Opens the directory of the workload `id`; creates it, for its owner only, on first use.
    ///
    /// # Errors
    /// When it can't be used, or others have access to it.
    pub fn open(directory: &Path, id: &SpiffeId) -> Result<StateDir, String> {
        let wrong = |words: &dyn std::fmt::Display| format!("{}: {words}", directory.display());
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(wrong(&error)),
            _ => {}
        }
        let metadata = fs::metadata(directory).map_err(|error| wrong(&error))?;
        if !metadata.is_dir() {
            return Err(wrong(&"is not a directory"));
        }
        if metadata.mode() & OTHERS != 0 {
            let mode = metadata.mode() & 0o777;
            let words = format!("others have access to it (mode {mode:o}); it must be 700");
            return Err(wrong(&words));
        }
        if !is_ours(&metadata) {
            return Err(wrong(&"belongs to another user"));
        }
        Ok(StateDir {
            directory: directory.to_owned(),
            id: id.clone(),
        })
    }

    /// Writes `payload` as `name`, atomically: a file exists whole or not at all.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save(&self, name: &str, payload: &impl Serialize) -> io::Result<()> {
        let payload = serde_json::to_vec(payload)?;
        let next = self.directory.join(format!(".{name}.next"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)?;
        writeln!(file, "{}", self.header(&payload))?;
        file.write_all(&payload)?;
        drop(file);
        fs::rename(next, self.directory.join(name))
    }

    /// Reads the payload saved as `name`; `None` when there is no such file.
    ///
    /// # Errors
    /// The reason why the file is refused.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        let path = self.directory.join(name);
        let wrong = |words: &dyn std::fmt::Display| format!("{}: {words}", path.display());
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|error| wrong(&error))?,
        };
        let metadata = file.metadata().map_err(|error| wrong(&error))?;
        if metadata.mode() & OTHERS != 0 {
            let mode = metadata.mode() & 0o777;
            return Err(wrong(&format!("others have access to it (mode {mode:o})")));
        }
        if !is_ours(&metadata) {
            return Err(wrong(&"belongs to another user"));
        }
        let mut bytes = Vec::new();
        let read = file.take(MAX_FILE).read_to_end(&mut bytes);
        read.map_err(|error| wrong(&error))?;
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (header, payload) =
            end.map_or((&bytes[..], &[][..]), |at| (&bytes[..at], &bytes[at + 1..]));
        let expected = self.header(payload);
        if header != expected.as_bytes() {
            return Err(wrong(&self.difference(header)));
        }
        let payload = serde_json::from_slice(payload);
        payload.map(Some).map_err(|error| wrong(&error))
    }

    fn header(&self, payload: &[u8]) -> String {
        let sum = digest(&SHA256, payload);
        let sum: String = sum
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{MAGIC} {} {sum}", self.id)
    }

    /// The reason why a header isn't the expected one.
    fn difference(&self, header: &[u8]) -> String {
        let header = String::from_utf8_lossy(header);
        let Some(rest) = header.strip_prefix(MAGIC) else {
            return "is not a state file of this version".to_owned();
        };
        match rest.split_whitespace().next() {
            Some(id) if id == self.id.as_str() => "is cut short or was changed".to_owned(),
            Some(id) => format!("belongs to {id}, not to {}", self.id),
            None => "is cut short".to_owned(),
        }
    }
}

/// True when a file belongs to the user that this process runs as.
fn is_ours(metadata: &fs::Metadata) -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == metadata.uid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let unique = format!("leno-state-{name}-{}", std::process::id());
        std::env::temp_dir().join(unique)
    }

    fn id(account: &str) -> SpiffeId {
        SpiffeId::of("cluster.local", "default", account).expect("an id")
    }

    #[test]
    fn only_what_was_written_whole_for_this_identity_is_read_back() {
        let path = directory("read");
        let state = StateDir::open(&path, &id("a")).expect("open");
        assert_eq!(state.load::<Vec<u8>>("it"), Ok(None));
        state.save("it", &vec![1, 2, 3]).expect("saved");
        assert_eq!(state.load("it"), Ok(Some(vec![1_u8, 2, 3])));
        let file = path.join("it");
        let whole = fs::read(&file).expect("a file");
        let mode = fs::metadata(&file).expect("a file").mode() & 0o777;
        assert_eq!(mode, 0o600);
        let other = StateDir::open(&path, &id("b")).expect("open");
        let reason = other.load::<Vec<u8>>("it").expect_err("of a");
        assert!(
            reason.contains("belongs to spiffe://cluster.local/ns/default/sa/a"),
            "{reason}"
        );
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).expect("written");
            state.load::<Vec<u8>>("it").expect_err("cut short");
        }
        let mut changed = whole.clone();
        *changed.last_mut().expect("a byte") = b'4';
        fs::write(&file, &changed).expect("written");
        assert!(
            state
                .load::<Vec<u8>>("it")
                .expect_err("changed")
                .contains("was changed")
        );
        fs::write(&file, &whole).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
        let reason = state.load::<Vec<u8>>("it").expect_err("open to others");
        assert!(
            reason.contains("others have access to it (mode 644)"),
            "{reason}"
        );
        fs::remove_dir_all(path).expect("removed");
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let path = directory("open");
        fs::create_dir(&path).expect("made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set");
        let reason = StateDir::open(&path, &id("a")).expect_err("open to others");
        assert!(reason.contains("it must be 700"), "{reason}");
        fs::remove_dir_all(path).expect("removed");
    }
}
