//! What was generated from the code is of this code still: the functions that `layout.ld` and the profile name.
//!
//! A function of ours exists while its module's code has every identifier of its path; a library's, while the library is
//! among the dependencies. Code that neither file names is linked and optimised without them, which costs what they gain.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::layout::{Crate, root};

/// Our crates, with their directories.
const OURS: [(&str, &str); 4] = [
    ("leno_http", "proxy/http/src"),
    ("leno_proto", "proto/src"),
    ("leno_proxy", "proxy/src"),
    ("leno_rules", "proxy/rules/src"),
];
/// Crates that come with the compiler, and are in no lock file.
const COMPILERS: [&str; 6] = [
    "alloc",
    "compiler_builtins",
    "core",
    "proc_macro",
    "std",
    "test",
];
/// Smallest share, in percent, of the functions that must exist.
const LEAST: usize = 90;

/// The identifiers of the modules, by module (`leno_http::h2`), and the names of the libraries.
struct Code {
    modules: BTreeMap<String, BTreeSet<String>>,
    libraries: BTreeSet<String>,
}

fn identifiers(code: &str) -> BTreeSet<String> {
    let words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.map(str::to_owned).collect()
}

impl Code {
    fn read() -> Code {
        let mut modules = BTreeMap::new();
        for (name, directory) in OURS {
            for (module, code) in Crate::read(directory).modules {
                let path = format!("{name}::{module}");
                modules.insert(path.trim_end_matches(':').to_owned(), identifiers(&code));
            }
        }
        let lock = fs::read_to_string(root().join("Cargo.lock")).expect("a lock file");
        let named = lock
            .lines()
            .filter_map(|line| line.strip_prefix("name = \""));
        let libraries = named.map(|name| name.trim_end_matches('"').replace('-', "_"));
        let libraries = libraries.chain(COMPILERS.map(str::to_owned)).collect();
        Code { modules, libraries }
    }

    /// True for a path of which everything exists.
    fn has(&self, path: &[String]) -> bool {
        if !OURS.iter().any(|(name, _)| path[0] == *name) {
            return self.libraries.contains(&path[0]);
        }
        let modules = (1..=path.len()).rev();
        let within = modules.map(|length| (length, path[..length].join("::")));
        let mut found =
            within.filter_map(|(length, path)| Some((length, self.modules.get(&path)?)));
        let Some((length, code)) = found.next() else {
            return false;
        };
        let is_written = |part: &String| !part.contains('{');
        path[length..]
            .iter()
            .filter(|part| is_written(part))
            .all(|part| code.contains(part))
    }
}

/// The path of a mangled name (`_ZN`, then parts, each behind its length), without closures and generic arguments. Of a
/// trait's implementation, the type's: the function may be derived, or the trait's own.
fn path(mangled: &str) -> Option<Vec<String>> {
    let mut rest = mangled.strip_prefix("_ZN")?;
    let mut path: Vec<String> = Vec::new();
    // The hash is the last part.
    while !rest.starts_with("17h") {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let length: usize = rest[..digits].parse().ok()?;
        let part = rest.get(digits..digits + length)?;
        rest = &rest[digits + length..];
        let of_symbol = part.strip_prefix('_').filter(|rest| rest.starts_with('$'));
        let part = of_symbol.unwrap_or(part).replace("$u20$", " ");
        if let Some(of) = part.strip_prefix("$LT$impl ") {
            // Written in the module so far.
            let of_trait = of.split_once(" for ");
            let type_path = first_path(of_trait.map_or(of, |(_, of)| of));
            path.extend(type_path.last().cloned());
            if of_trait.is_some() {
                break;
            }
        } else if let Some(of) = part.strip_prefix("$LT$") {
            path = first_path(of);
            if of.contains(" as ") {
                break;
            }
        } else if !part.starts_with("$u7b$") {
            path.push(part);
        }
    }
    (path.len() > 1).then_some(path)
}

/// The path at the beginning of a type, without references and arguments.
fn first_path(text: &str) -> Vec<String> {
    let text = text.trim_start_matches("$RF$").trim_start_matches("mut ");
    let end = text.find(['$', ' ']).unwrap_or(text.len());
    text[..end].split("..").map(str::to_owned).collect()
}

/// The mangled names in a file's bytes, each once, without their hashes.
fn names(bytes: &[u8]) -> BTreeSet<String> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"_$.".contains(byte);
    let words = bytes.split(|byte| !is_part(byte));
    let words = words.filter_map(|word| std::str::from_utf8(word).ok());
    let cut = |word: &str| {
        let name = &word[word.find("_ZN")?..];
        Some(name[..name.rfind("17h")? + 3].to_owned())
    };
    words.filter_map(cut).collect()
}

#[test]
fn the_functions_that_the_layout_and_the_profile_name_exist() {
    let code = Code::read();
    for file in ["proxy/layout.ld", "proxy/leno-proxy.profdata"] {
        let names = names(&fs::read(root().join(file)).expect("a file"));
        let paths: Vec<_> = names.iter().filter_map(|name| path(name)).collect();
        let is_ours = |path: &&Vec<String>| path[0].starts_with("leno_");
        let (ours, theirs): (Vec<_>, Vec<_>) = paths.iter().partition(is_ours);
        for (of, paths) in [("ours", ours), ("libraries", theirs)] {
            let gone: Vec<_> = paths.iter().filter(|path| !code.has(path)).collect();
            let share = 100 * (paths.len() - gone.len()) / paths.len().max(1);
            println!(
                "{file}: {share} % of {} functions ({of}) exist",
                paths.len()
            );
            assert!(
                share >= LEAST && paths.len() > 100,
                "{file}: only {share} % of {} functions ({of}) exist: run `cargo bench-profile`, then `cargo bench-layout`; \
                 gone are {gone:?}",
                paths.len()
            );
        }
    }
}

#[test]
fn a_function_exists_while_its_module_has_its_identifiers() {
    let module = |name: &str, code: &str| (name.to_owned(), identifiers(code));
    let code = Code {
        modules: [
            module("leno_http", "mod h2;"),
            module(
                "leno_http::h2",
                "pub struct Body; impl Body { fn poll(&self) {} }",
            ),
        ]
        .into(),
        libraries: [String::from("tokio")].into(),
    };
    let of_body = "_$LT$leno_http..h2..Body$u20$as$u20$core..ops..drop..Drop$GT$";
    let of_past = "_$LT$leno_http..h2..Past$u20$as$u20$core..ops..drop..Drop$GT$";
    let in_module = "_$LT$impl$u20$leno_http..Body$GT$";
    for (parts, exists) in [
        (&["leno_http", "h2", "Body", "poll"][..], true),
        (
            &[
                "leno_http",
                "h2",
                "Body",
                "poll",
                "_$u7b$$u7b$closure$u7d$$u7d$",
            ],
            true,
        ),
        (&["leno_http", "h2", in_module, "poll"], true),
        (&[of_body, "drop"], true),
        (&["tokio", "runtime", "wake"], true),
        (&["leno_http", "h2", "Body", "renew"], false),
        (&["leno_http", "h2", "Past", "poll"], false),
        (&["leno_http", "h3", "Body", "poll"], false),
        (&["leno_http", "h2", in_module, "renew"], false),
        (&[of_past, "drop"], false),
        (&["mokio", "runtime", "wake"], false),
    ] {
        let mangled = parts.iter().map(|part| format!("{}{part}", part.len()));
        let mangled = format!("_ZN{}17h0123456789abcdefE", mangled.collect::<String>());
        let names = names(format!(".text.{mangled}\n{mangled}").as_bytes());
        let paths: Vec<_> = names.iter().filter_map(|name| path(name)).collect();
        assert_eq!(paths.len(), 1, "{names:?}");
        assert_eq!(code.has(&paths[0]), exists, "{parts:?}");
    }
}
