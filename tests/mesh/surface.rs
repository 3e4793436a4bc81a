//! Everything that a user sees of the programs, as it was: a change of it is made on purpose, and shows in a file.
//!
//! `LENO_REWRITE=1` writes the files anew.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use leno_tests::process::exit_code;

/// The directories whose texts users read.
const SOURCES: [&str; 5] = [
    "proxy/src",
    "proxy/http/src",
    "proxy/rules/src",
    "control-plane/src",
    "proto/src",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Holds `text` against the file `name`.
fn compare(name: &str, text: &str) {
    let path = root().join("tests/fixtures/surface").join(name);
    if std::env::var_os("LENO_REWRITE").is_some() {
        std::fs::create_dir_all(path.parent().expect("below")).expect("a directory");
        return std::fs::write(path, text).expect("written");
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    let (known, now): (BTreeSet<&str>, BTreeSet<&str>) =
        (known.lines().collect(), text.lines().collect());
    let gone: Vec<_> = known.difference(&now).collect();
    let new: Vec<_> = now.difference(&known).collect();
    assert!(
        gone.is_empty() && new.is_empty(),
        "{}: LENO_REWRITE=1 writes it anew\ngone: {gone:#?}\nnew: {new:#?}",
        path.display()
    );
}

/// The help of a command and of those below it.
fn help(command: &mut Command, path: &str, out: &mut String) {
    let path = format!("{path} {}", command.get_name());
    let text = command.render_long_help().to_string();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        writeln!(out, "{}: {}", path.trim(), line.trim_end()).expect("a string");
    }
    for below in command.get_subcommands_mut() {
        help(below, &path, out);
    }
}

#[test]
fn flags_and_their_variables_are_as_they_were() {
    let mut out = String::new();
    help(&mut leno_control_plane::cli::Cli::command(), "", &mut out);
    help(&mut leno_proxy::bootstrap::Cli::command(), "", &mut out);
    compare("help.txt", &out);
}

/// A format string without the names of its arguments, which nobody sees: `{port:>5}` is `{:>5}`.
fn anonymous(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, behind) = rest.split_at(at + 1);
        out += before;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let name = behind.find(|c| !is_name(c)).unwrap_or(behind.len());
        rest = match behind[name..].starts_with(['}', ':']) {
            true => &behind[name..],
            false => behind,
        };
    }
    out + rest
}

/// The texts in a file of Rust: names of metrics, labels and JSON keys, explanations, log lines.
fn texts(code: &str, out: &mut BTreeSet<String>) {
    let bytes: Vec<char> = code.chars().collect();
    let is = |at: usize, text: &str| {
        text.chars()
            .enumerate()
            .all(|(i, c)| bytes.get(at + i) == Some(&c))
    };
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            '/' if is(at, "//") => {
                while at < bytes.len() && bytes[at] != '\n' {
                    at += 1;
                }
            }
            '\'' if is(at + 1, "\\") || bytes.get(at + 2) == Some(&'\'') => {
                at += if is(at + 1, "\\") { 3 } else { 2 };
                while at < bytes.len() && bytes[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
            'r' if is(at, "r\"") || is(at, "r#") => {
                let before = at.checked_sub(1).map(|before| bytes[before]);
                let hashes = bytes[at + 1..].iter().take_while(|c| **c == '#').count();
                let begins = bytes.get(at + 1 + hashes) == Some(&'"');
                at += 1;
                if before.is_some_and(|c| (c.is_alphanumeric() && c != 'b') || c == '_') || !begins
                {
                    continue;
                }
                at += hashes + 1;
                let end = format!("\"{}", "#".repeat(hashes));
                let start = at;
                while at < bytes.len() && !is(at, &end) {
                    at += 1;
                }
                out.insert(bytes[start..at].iter().collect());
                at += end.len();
            }
            '"' => {
                at += 1;
                let mut text = String::new();
                while at < bytes.len() && bytes[at] != '"' {
                    if is(at, "\\\n") {
                        // The line goes on behind its indentation.
                        at += 1;
                        while bytes.get(at).is_some_and(|c| c.is_whitespace()) {
                            at += 1;
                        }
                        continue;
                    }
                    let length = if bytes[at] == '\\' { 2 } else { 1 };
                    text.extend(&bytes[at..(at + length).min(bytes.len())]);
                    at += length;
                }
                out.insert(anonymous(&text));
                at += 1;
            }
            _ => at += 1,
        }
    }
}

#[test]
fn texts_in_a_source_are_found() {
    let mut found = BTreeSet::new();
    let code = r###"let a = "one \"two\" \
        three {port:>5}{0}{}"; // "no"
        let c = ['"', '\'', 'x']; fn f<'a>() {} r#"raw "text""# b"bytes" for"###;
    texts(code, &mut found);
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    assert_eq!(
        found,
        ["bytes", r#"one \"two\" three {:>5}{}{}"#, r#"raw "text""#]
    );
}

#[test]
fn texts_that_users_read_are_as_they_were() {
    let mut files = Vec::new();
    for source in SOURCES {
        super::layout::sources(&root().join(source), &mut files);
    }
    let mut found = BTreeSet::new();
    // The entry points of the fuzz targets are in no program.
    let is_shipped = |file: &&std::path::PathBuf| {
        !super::layout::is_tests(file) && !file.ends_with("h2/fuzz.rs")
    };
    for file in files.iter().filter(is_shipped) {
        texts(&super::layout::code(file), &mut found);
    }
    let mut out = String::new();
    for text in found
        .iter()
        .filter(|text| text.contains(|c: char| c.is_alphabetic()))
    {
        writeln!(out, "{}", text.replace('\n', "\\n")).expect("a string");
    }
    compare("texts.txt", &out);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_are_as_they_were() {
    let at = root().display().to_string();
    for (program, words, code) in [
        ("leno", "--help", 0),
        ("leno", "", 2),
        ("leno", "validate", 2),
        ("leno", "validate {at}/tests/fixtures/guide.yaml", 1),
        ("leno", "validate {at}/nothing.yaml", 1),
        ("leno", "validate {at}/Cargo.toml", 1),
        ("leno", "status --monitoring-address 127.0.0.1:1", 1),
        ("leno", "validate --control-plane 127.0.0.1:1", 1),
        ("leno", "inject {at}/nothing.yaml", 1),
        ("leno", "serve", 2),
        ("leno-proxy", "--version", 0),
        ("leno-proxy", "run --no-such-flag", 2),
        ("leno-proxy", "run --inbound nonsense", 2),
    ] {
        let given = exit_code(program, &words.replace("{at}", &at)).await;
        assert_eq!(given, code, "{program} {words}");
    }
}
