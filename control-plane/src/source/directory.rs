//! The files of a directory: those that are read, and a reason for each that isn't.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::istio::{Limits, SuspectedObject, suspected_objects};
use crate::object::Severity;

/// Most files of a directory.
const MAX_FILES: usize = 100_000;
/// Deepest nesting of directories.
const MAX_DEPTH: usize = 32;
/// Most files of one directory that are named where they are not read.
const NAMED: usize = 5;
/// Most bytes after the first [`MAX_KEPT`] that are searched for the names of security objects.
const MAX_LOOKED_AT: u64 = 1 << 30;
/// Most bytes of a file over the limit that are parsed for its security objects.
const MAX_KEPT: u64 = 64 << 20;
/// Texts of which each security object holds at least one; compared without case.
const SECURITY: [&[u8]; 4] = [
    b"security.istio.io",
    b"authorizationpolicy",
    b"peerauthentication",
    b"requestauthentication",
];
/// Bytes of the longest of them.
const LONGEST: usize = 21;

/// The files of a directory.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Files that are read, in their order.
    pub(super) read: BTreeSet<PathBuf>,
    /// Paths that aren't read, or can't be, each with the reason.
    pub(super) unread: Vec<(PathBuf, Severity, String)>,
    /// Files that aren't read since nothing in their names says that they are YAML.
    pub(super) skipped: usize,
}

impl Files {
    /// Adds the files of another directory.
    pub(super) fn add(&mut self, other: Files) {
        self.read.extend(other.read);
        self.unread.extend(other.unread);
        self.skipped += other.skipped;
    }
}

/// Finds the files of `root`, and of the directories below it; a path that is a file is that file.
///
/// Names that begin with a dot are left out: editors' own, and those that a ConfigMap's volume keeps the same files under.
/// Links are followed within the directory, and nothing is read twice.
pub(super) fn walk(root: &Path) -> io::Result<Files> {
    if std::fs::metadata(root)?.is_file() {
        return Ok(Files {
            read: BTreeSet::from([root.to_owned()]),
            ..Files::default()
        });
    }
    let mut walk = Walk {
        root: root.canonicalize()?,
        seen: BTreeSet::new(),
        links: Vec::new(),
        files: Files::default(),
    };
    walk.directory(root, &std::fs::canonicalize(root)?, 0)?;
    // Files and directories themselves go before links to them.
    while let Some((link, depth)) = walk.links.pop() {
        walk.link(&link, depth);
    }
    match walk.files.read.len() > MAX_FILES {
        true => Err(io::Error::other(format!("more than {MAX_FILES} files"))),
        false => Ok(walk.files),
    }
}

struct Walk {
    root: PathBuf,
    /// Real paths that were visited.
    seen: BTreeSet<PathBuf>,
    links: Vec<(PathBuf, usize)>,
    files: Files,
}

impl Walk {
    fn directory(&mut self, path: &Path, real: &Path, depth: usize) -> io::Result<()> {
        if !self.seen.insert(real.to_owned()) {
            return Ok(());
        }
        if depth > MAX_DEPTH {
            let text = format!("more than {MAX_DEPTH} directories below each other: not read");
            self.unread(path, Severity::Error, text);
            return Ok(());
        }
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            entries.push(entry?);
        }
        entries.sort_by_key(std::fs::DirEntry::file_name);
        let mut skipped = Vec::new();
        for entry in entries {
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name().to_string_lossy().into_owned();
            let real = real.join(entry.file_name());
            match (name.starts_with('.'), is_yaml(&path)) {
                (true, true) if !kind.is_dir() => skipped.push(name),
                (true, _) => {}
                _ if kind.is_symlink() => self.links.push((path, depth)),
                _ if kind.is_dir() => {
                    if let Err(error) = self.directory(&path, &real, depth + 1) {
                        let text = format!("the directory cannot be read: {error}");
                        self.unread(&path, Severity::Error, text);
                    }
                }
                (_, true) if kind.is_file() => self.file(path, real),
                (_, true) => self.unread(&path, Severity::Error, "is no file: not read".to_owned()),
                (_, false) => skipped.push(name),
            }
        }
        self.skip(path, &skipped);
        Ok(())
    }

    fn file(&mut self, path: PathBuf, real: PathBuf) {
        if self.seen.insert(real) {
            self.files.read.insert(path);
        }
    }

    fn link(&mut self, path: &Path, depth: usize) {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) => {
                // It may have been a directory: the objects in it must not count as removed.
                let text = format!("the link leads nowhere: {error}");
                return self.unread(path, Severity::Error, text);
            }
        };
        let is_directory = real.is_dir();
        if !is_directory && !is_yaml(path) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let at = path.parent().unwrap_or(path).to_owned();
            return self.skip(&at, &[name.into_owned()]);
        }
        if !real.starts_with(&self.root) {
            let text = format!(
                "the link leads out of {}, to {}: not read",
                self.root.display(),
                real.display()
            );
            return self.unread(path, Severity::Error, text);
        }
        match is_directory {
            true => {
                if let Err(error) = self.directory(path, &real, depth + 1) {
                    let text = format!("the directory cannot be read: {error}");
                    self.unread(path, Severity::Error, text);
                }
            }
            false if real.is_file() => self.file(path.to_owned(), real),
            false => self.unread(path, Severity::Error, "is no file: not read".to_owned()),
        }
    }

    fn unread(&mut self, path: &Path, severity: Severity, text: String) {
        self.files.unread.push((path.to_owned(), severity, text));
    }

    /// Notes the files of a directory that aren't read, in one line.
    fn skip(&mut self, path: &Path, names: &[String]) {
        if names.is_empty() {
            return;
        }
        self.files.skipped += names.len();
        let named = names.iter().take(NAMED).map(String::as_str);
        let mut text = format!(
            "not read, since their names end in none of .yaml, .yml and .json or begin with a dot: {}",
            named.collect::<Vec<_>>().join(", ")
        );
        if names.len() > NAMED {
            text.push_str(&format!(" and {} more", names.len() - NAMED));
        }
        self.unread(path, Severity::Notice, text);
    }
}

fn is_yaml(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let extension = extension.map(str::to_ascii_lowercase);
    matches!(extension.as_deref(), Some("yaml" | "yml" | "json"))
}

/// A file that can't be read as text.
#[derive(Debug, Clone)]
pub(super) struct Unreadable {
    /// The reason.
    pub(super) message: String,
    /// The security objects that its bytes show.
    pub(super) suspected: Vec<SuspectedObject>,
}

/// Files over the limit, with their size and time: each is searched once, since that may take long.
pub(super) type Large = BTreeMap<PathBuf, (u64, Option<SystemTime>, Unreadable)>;

/// Reads a file of at most `limits.bytes`.
pub(super) fn read(path: &Path, limits: &Limits, large: &mut Large) -> Result<String, Unreadable> {
    let failed = |error: io::Error| Unreadable {
        message: format!("cannot be read: {error}"),
        suspected: Vec::new(),
    };
    let limit = limits.bytes;
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() {
        // A pipe or a device would be read for ever.
        return Err(failed(io::Error::other("it is no file")));
    }
    let (size, modified) = (about.len(), about.modified().ok());
    if size > limit as u64 {
        if let Some((before, at, known)) = large.get(path)
            && (*before, *at) == (size, modified)
        {
            return Err(known.clone());
        }
        let found = Unreadable {
            message: format!("{size} bytes; at most {limit} are read"),
            suspected: look_at(path, limits).map_err(failed)?,
        };
        large.insert(path.to_owned(), (size, modified, found.clone()));
        return Err(found);
    }
    large.remove(path);
    let bytes = std::fs::read(path).map_err(failed)?;
    let message = match std::str::from_utf8(&bytes) {
        _ if matches!(bytes[..], [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) => {
            "is UTF-16: save it as UTF-8".to_owned()
        }
        Ok(text) if text.contains('\0') => {
            "holds zeros, as UTF-16 does: save it as UTF-8".to_owned()
        }
        Ok(text) => return Ok(text.to_owned()),
        Err(error) => {
            let at = error.valid_up_to();
            let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("is not UTF-8: byte {at}, in line {line}")
        }
    };
    let suspected = shown(&decoded(&bytes), limits);
    Err(Unreadable { message, suspected })
}

/// The text of bytes, decoded as far as possible.
fn decoded(bytes: &[u8]) -> String {
    match bytes {
        [0xff, 0xfe, ..] => utf16(bytes, u16::from_le_bytes),
        [0xfe, 0xff, ..] => utf16(bytes, u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes).replace('\0', ""),
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    char::decode_utf16(units)
        .map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// The security objects that a file over the limit shows.
fn look_at(path: &Path, limits: &Limits) -> io::Result<Vec<SuspectedObject>> {
    let mut file = std::fs::File::open(path)?;
    let mut kept = Vec::new();
    file.by_ref().take(MAX_KEPT).read_to_end(&mut kept)?;
    let found = shown(&decoded(&kept), limits);
    if !found.is_empty() {
        return Ok(found);
    }
    let mut rest = file.take(MAX_LOOKED_AT);
    let mut window: Vec<u8> = kept.split_off(kept.len() - LONGEST.min(kept.len()));
    drop(kept);
    let mut chunk = vec![0; 1 << 16];
    loop {
        let count = rest.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        window.extend(chunk[..count].iter().filter(|byte| **byte != 0));
        if shows_security(&window) {
            return Ok(vec![SuspectedObject::of_the_mesh()]);
        }
        window.drain(..window.len() - LONGEST.min(window.len()));
    }
    // The bytes after the limit are unknown: they count as a security object.
    Ok(match rest.limit() {
        0 => vec![SuspectedObject::of_the_mesh()],
        _ => Vec::new(),
    })
}

/// The security objects that a text shows: where they can't be identified, one that closes the whole mesh.
fn shown(text: &str, limits: &Limits) -> Vec<SuspectedObject> {
    let found = suspected_objects(text, limits);
    match found.is_empty() && shows_security(text.as_bytes()) {
        true => vec![SuspectedObject::of_the_mesh()],
        false => found,
    }
}

fn shows_security(bytes: &[u8]) -> bool {
    let lower = bytes.to_ascii_lowercase();
    let mut all = SECURITY.iter();
    all.any(|word| memchr::memmem::find(&lower, word).is_some())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory of its own, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("leno-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("made");
            Scratch(path)
        }

        fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("made");
            std::fs::write(&path, bytes).expect("written");
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn names(root: &Path, files: &Files) -> Vec<String> {
        let short = |path: &PathBuf| {
            path.strip_prefix(root)
                .expect("below")
                .display()
                .to_string()
        };
        files.read.iter().map(short).collect()
    }

    #[test]
    fn every_file_is_read_once_or_named() {
        let at = Scratch::new("walk");
        for name in [
            "a.yaml",
            "b/c.YML",
            "b/d/e.Json",
            "b/notes.txt",
            ".hidden.yaml",
            ".git/f.yaml",
        ] {
            at.file(name, b"");
        }
        symlink("../b", at.0.join("b/again")).expect("a loop");
        symlink("b/c.YML", at.0.join("link.yaml")).expect("a link");
        symlink(".git/f.yaml", at.0.join("f.yaml")).expect("a link");
        symlink("nowhere", at.0.join("dangling.yaml")).expect("a link");
        symlink("/", at.0.join("out")).expect("a link");
        symlink("gone", at.0.join("policies")).expect("a link");
        let pipe = std::process::Command::new("mkfifo")
            .arg(at.0.join("pipe"))
            .status();
        assert!(pipe.expect("mkfifo").success());
        symlink("pipe", at.0.join("pipe.yaml")).expect("a link");
        let files = walk(&at.0).expect("readable");
        assert_eq!(
            names(&at.0, &files),
            ["a.yaml", "b/c.YML", "b/d/e.Json", "f.yaml"]
        );
        let mut unread: Vec<String> = (files.unread.iter())
            .map(|(path, severity, text)| {
                let name = path.strip_prefix(&at.0).expect("below").display();
                format!("{name} {severity:?} {}", &text[..20])
            })
            .collect();
        unread.sort();
        assert_eq!(
            unread,
            [
                " Notice not read, since thei",
                "b Notice not read, since thei",
                "dangling.yaml Error the link leads nowhe",
                "out Error the link leads out o",
                "pipe.yaml Error is no file: not read",
                "policies Error the link leads nowhe",
            ]
        );
        assert_eq!(files.skipped, 3);
        assert_eq!(
            walk(&at.0.join("b/notes.txt")).expect("a file").read.len(),
            1
        );
    }

    #[test]
    fn a_configmap_volume_is_read_once() {
        let at = Scratch::new("configmap");
        at.file("..2026_11_30/a.yaml", b"");
        at.file("..2026_11_30/sub/b.yaml", b"");
        symlink("..2026_11_30", at.0.join("..data")).expect("a link");
        symlink("..data/a.yaml", at.0.join("a.yaml")).expect("a link");
        symlink("..data/sub", at.0.join("sub")).expect("a link");
        let files = walk(&at.0).expect("readable");
        assert_eq!(names(&at.0, &files), ["a.yaml", "sub/b.yaml"]);
        assert!(files.unread.is_empty(), "{:?}", files.unread);
    }

    #[test]
    fn a_file_that_is_no_text_shows_whether_it_protects() {
        let at = Scratch::new("unreadable");
        let text = "kind: x\n# security.istio.io\n";
        let utf16: Vec<u8> = (text.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        let large =
            |before: usize, text: &str| [vec![b' '; before], text.as_bytes().to_vec()].concat();
        for (name, bytes, words, protects) in [
            ("ok.yaml", text.as_bytes().to_vec(), "", false),
            (
                "latin1.yaml",
                b"a: 1\nb: \xe9 # security.istio.io".to_vec(),
                "line 2",
                true,
            ),
            ("harmless.yaml", b"a: \xe9".to_vec(), "line 1", false),
            (
                "misspelled.yaml",
                b"kind: PeerAuthenticaton\napiVersion: security.ist\x92io.io/v1".to_vec(),
                "line 2",
                true,
            ),
            (
                "utf16.yaml",
                [vec![0xff, 0xfe], utf16].concat(),
                "UTF-16",
                true,
            ),
            ("large.yaml", large(100, text), "at most 100", true),
            ("large-harmless.yaml", vec![b' '; 101], "at most 100", false),
            (
                "far.yaml",
                large(usize::try_from(MAX_KEPT).expect("fits") - 7, text),
                "at most 100",
                true,
            ),
        ] {
            let path = at.file(name, &bytes);
            let limits = Limits {
                bytes: 100,
                ..Limits::default()
            };
            match read(&path, &limits, &mut Large::new()) {
                Ok(_) => assert!(words.is_empty(), "{name}"),
                Err(found) => {
                    assert!(
                        found.message.contains(words) && !words.is_empty(),
                        "{name}: {found:?}"
                    );
                    assert_eq!(!found.suspected.is_empty(), protects, "{name}");
                }
            }
        }
    }
}
