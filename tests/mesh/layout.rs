//! The house stays as it is drawn: which module imports which, without a cycle, and what must not stand where.
//!
//! A module is a file. An import is a path into another module of the same crate, in a `use` or in the code. A re-export
//! (`pub use`) is none: a path through it leads to the module that it names. A room is a folder, or a file beside `lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The directories of the crates, and the rooms of each with the rooms that it may import.
const CRATES: [(&str, &[(&str, &str)]); 4] = [
    ("proxy/http/src", HTTP),
    ("proxy/rules/src", RULES),
    ("proxy/src", PROXY),
    ("control-plane/src", CONTROL_PLANE),
];

const HTTP: &[(&str, &str)] = &[
    ("buffers", "stream"),
    ("clock", ""),
    ("deadline", ""),
    ("error", ""),
    ("field", "field_name"),
    ("field_name", ""),
    (
        "h1",
        "buffers deadline error field field_name head lib method stream",
    ),
    (
        "h2",
        "buffers clock error field field_name h1 head lib stream",
    ),
    ("head", "buffers field field_name"),
    ("lib", "head"),
    ("method", ""),
    ("path", ""),
    ("peers", "error h1 h2 head lib"),
    ("stream", ""),
    ("upgrade", "field_name h1 head"),
];

const RULES: &[(&str, &str)] = &[
    ("config", "spiffe"),
    ("lib", ""),
    ("policy", "config route"),
    ("route", "config"),
    ("spiffe", ""),
];

const PROXY: &[(&str, &str)] = &[
    (
        "admin",
        "control directory drain intercept observe status tls",
    ),
    (
        "app",
        "admin bootstrap control directory drain export identity inbound node observe outbound serve snapshot sockets tls upstream worker xds",
    ),
    ("balance", "error intercept observe tls"),
    (
        "bootstrap",
        "admin control directory export intercept observe",
    ),
    ("control", "directory drain tls"),
    ("directory", "error snapshot"),
    ("drain", ""),
    ("error", ""),
    ("export", "control drain observe status tls"),
    ("forward", "balance error observe tls upstream worker"),
    ("identity", "control drain observe tls"),
    (
        "inbound",
        "balance drain error forward intercept observe serve snapshot tls upstream worker",
    ),
    ("intercept", ""),
    ("lib", ""),
    ("node", "bootstrap"),
    ("observe", "error"),
    (
        "outbound",
        "balance drain error forward intercept observe serve snapshot worker",
    ),
    ("resources", "snapshot"),
    (
        "serve",
        "balance drain error forward observe snapshot tls upstream worker",
    ),
    ("snapshot", "balance error observe tls"),
    ("sockets", "bootstrap intercept serve"),
    ("status", "balance directory observe resources tls"),
    ("tls", "error"),
    ("upstream", "balance error tls"),
    (
        "worker",
        "directory drain error observe snapshot tls upstream",
    ),
    ("wrapper", "app drain"),
    (
        "xds",
        "control directory drain observe resources snapshot status tls",
    ),
];

const CONTROL_PLANE: &[(&str, &str)] = &[
    (
        "app",
        "ca compile istio map metrics object services source web xds",
    ),
    ("ca", ""),
    ("cli", "app ca compile inject istio mesh object source"),
    ("compile", "istio mesh object"),
    ("inject", "ca"),
    ("istio", "object"),
    ("lib", ""),
    ("map", "mesh object source"),
    ("mesh", ""),
    ("metrics", ""),
    ("object", ""),
    ("services", "ca map mesh metrics source xds"),
    ("source", "compile istio mesh object"),
    ("translate", "mesh"),
    ("web", "map metrics xds"),
    ("xds", "mesh source translate"),
];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn sources(directory: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// True for a file of tests alone.
pub(crate) fn is_tests(path: &Path) -> bool {
    path.to_string_lossy().ends_with("tests.rs")
}

/// The code of a file before its tests.
pub(crate) fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a file");
    text.split("#[cfg(test)]")
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// The modules of a crate by path (`h2::core`; the crate's root is the empty path), with their code.
pub(crate) struct Crate {
    pub(crate) modules: BTreeMap<String, String>,
    /// Names that a module re-exports, and the paths that they lead to.
    exports: BTreeMap<String, BTreeMap<String, String>>,
}

fn join(module: &str, name: &str) -> String {
    match module.is_empty() {
        true => name.to_owned(),
        false => format!("{module}::{name}"),
    }
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

/// The paths of a use tree: `a::{b, c::d as e}` is `a::b` and `a::c::d`, the latter under the name `e`.
fn tree(prefix: &str, text: &str, out: &mut Vec<(String, String)>) {
    let text = text.trim();
    if let Some(inner) = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
    {
        let (mut depth, mut start) = (0, 0);
        for (at, byte) in inner.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b',' if depth == 0 => {
                    tree(prefix, &inner[start..at], out);
                    start = at + 1;
                }
                _ => {}
            }
        }
        return tree(prefix, &inner[start..], out);
    }
    let plain = text.find('{').unwrap_or(text.len());
    match text[..plain].rfind("::") {
        Some(at) if plain < text.len() => tree(&join(prefix, &text[..at]), &text[at + 2..], out),
        _ if text.is_empty() => {}
        _ => {
            let (path, name) = text.split_once(" as ").unwrap_or((text, ""));
            let path = match path == "self" {
                true => prefix.to_owned(),
                false => join(prefix, path),
            };
            let last = path.rsplit("::").next().unwrap_or_default().to_owned();
            let name = if name.is_empty() {
                last
            } else {
                name.trim().to_owned()
            };
            out.push((path, name));
        }
    }
}

/// The use declarations of a module: true for `pub use`, with its paths and names.
fn uses(code: &str) -> Vec<(bool, Vec<(String, String)>)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].rsplit('\n').next().unwrap_or_default().trim();
        if !(before.is_empty() || before.starts_with("pub")) || before.contains(' ') {
            continue;
        }
        let rest = &code[at + "use ".len()..];
        let mut paths = Vec::new();
        tree("", rest.split(';').next().unwrap_or_default(), &mut paths);
        found.push((before.starts_with("pub"), paths));
    }
    found
}

/// The code without comments and texts, in which paths can't stand.
fn bare(code: &str) -> String {
    let without = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    code.lines().map(|line| without(line) + "\n").collect()
}

/// The paths in code that begin with `crate`, `super`, `self` or one of `names`.
fn paths(code: &str, names: &BTreeSet<String>) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let starts = |path: &str| {
        let first = path.split("::").next().unwrap_or_default();
        path.contains("::")
            && (["crate", "super", "self"].contains(&first) || names.contains(first))
    };
    let words = code.split(|c| !is_part(c));
    words
        .filter(|word| starts(word))
        .map(str::to_owned)
        .collect()
}

impl Crate {
    pub(crate) fn read(source: &str) -> Crate {
        let directory = root().join(source);
        let mut files = Vec::new();
        sources(&directory, &mut files);
        let mut modules = BTreeMap::new();
        for file in files.iter().filter(|file| !is_tests(file)) {
            let relative = file.strip_prefix(&directory).expect("inside");
            let path = relative
                .with_extension("")
                .to_string_lossy()
                .replace('/', "::");
            let path = match path.as_str() {
                "lib" | "mod" => String::new(),
                "main" => continue,
                _ => path.strip_suffix("::mod").unwrap_or(&path).to_owned(),
            };
            modules.insert(path, bare(&code(file)));
        }
        let mut it = Crate {
            modules,
            exports: BTreeMap::new(),
        };
        for (module, code) in &it.modules {
            let mut names = BTreeMap::new();
            for (_, paths) in uses(code).into_iter().filter(|(is_public, _)| *is_public) {
                for (path, name) in paths {
                    names.insert(name, it.absolute(module, &path));
                }
            }
            it.exports.insert(module.clone(), names);
        }
        it
    }

    /// A path as it would be written behind `crate::`.
    fn absolute(&self, module: &str, path: &str) -> String {
        let (mut at, mut rest) = (module, path);
        if let Some(path) = rest.strip_prefix("crate::") {
            (at, rest) = ("", path);
        }
        while let Some(path) = rest.strip_prefix("super::") {
            (at, rest) = (parent(at), path);
        }
        join(at, rest.strip_prefix("self::").unwrap_or(rest))
    }

    /// The module that defines the item at a path; `None` for another crate's.
    fn defines(&self, path: &str) -> Option<String> {
        let mut module = String::new();
        for part in path.split("::") {
            let below = join(&module, part);
            if self.modules.contains_key(&below) {
                module = below;
                continue;
            }
            return match self.exports[&module].get(part) {
                Some(path) if join(&module, part) != *path => self.defines(path),
                _ => (!module.is_empty() || path.split("::").count() == 1).then_some(module),
            };
        }
        Some(module)
    }

    /// The other modules that a module imports.
    fn imports(&self, module: &str) -> BTreeSet<String> {
        let code = &self.modules[module];
        let below = |path: &&String| parent(path) == module && !path.is_empty();
        let last = |path: &String| path.rsplit("::").next().unwrap_or_default().to_owned();
        let mut names: BTreeSet<String> = self.modules.keys().filter(below).map(last).collect();
        let mut found = Vec::new();
        for (is_public, uses) in uses(code) {
            for (path, name) in uses {
                let first = path.split("::").next().unwrap_or_default();
                let is_ours = ["crate", "super", "self"].contains(&first) || names.contains(first);
                if is_ours && !is_public {
                    found.push(self.absolute(module, &path));
                    // A module that is imported by name: paths begin with it.
                    let target = self.absolute(module, &path);
                    if self.modules.contains_key(&target) && name != "self" {
                        names.remove(&name);
                    }
                }
            }
        }
        let is_use = |statement: &&str| {
            let statement = statement.trim_start();
            statement.starts_with("use ")
                || statement.starts_with("pub") && statement.contains(" use ")
        };
        let statements = code.split(';').filter(|statement| !is_use(statement));
        let without_uses = statements.collect::<Vec<_>>().join(";");
        let inline = paths(&without_uses, &names);
        found.extend(inline.iter().map(|path| self.absolute(module, path)));
        let mut modules: BTreeSet<String> =
            found.iter().filter_map(|path| self.defines(path)).collect();
        modules.remove(module);
        modules
    }

    fn graph(&self) -> BTreeMap<String, BTreeSet<String>> {
        let imports = |module: &String| (module.clone(), self.imports(module));
        self.modules.keys().map(imports).collect()
    }
}

/// The modules that can be reached from `from`.
fn reached(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut left = vec![from.to_owned()];
    while let Some(module) = left.pop() {
        for next in graph.get(&module).into_iter().flatten() {
            if seen.insert(next.clone()) {
                left.push(next.clone());
            }
        }
    }
    seen
}

/// Groups of modules that import each other, directly or not.
fn cycles(graph: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reach: BTreeMap<&String, BTreeSet<String>> = graph
        .keys()
        .map(|module| (module, reached(graph, module)))
        .collect();
    let own = |module: &&String| reach[module].contains(*module);
    let group = |module: &String| {
        let back = |other: &&String| reach[other].contains(module);
        reach[module].iter().filter(back).cloned().collect()
    };
    graph.keys().filter(own).map(group).collect()
}

fn room(module: &str) -> &str {
    match module.split("::").next() {
        None | Some("") => "lib",
        Some(room) => room,
    }
}

#[test]
fn no_module_imports_itself_through_others() {
    let mut wrong = Vec::new();
    for (source, _) in CRATES {
        let graph = Crate::read(source).graph();
        let imports: usize = graph.values().map(BTreeSet::len).sum();
        println!("{source}: {} modules, {imports} imports", graph.len());
        for cycle in cycles(&graph) {
            for module in &cycle {
                let within: Vec<_> = graph[module].intersection(&cycle).collect();
                wrong.push(format!("{source}: {module} imports {within:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn rooms_import_what_the_table_says() {
    let mut wrong = Vec::new();
    for (source, table) in CRATES {
        let mut rooms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, imports) in Crate::read(source).graph() {
            let others = rooms.entry(room(&module).to_owned()).or_default();
            others.extend(imports.iter().map(|import| room(import).to_owned()));
            others.remove(room(&module));
        }
        for cycle in cycles(&rooms) {
            wrong.push(format!("{source}: a cycle of rooms: {cycle:?}"));
        }
        println!(
            "{source}: {} rooms, {} imports between them",
            rooms.len(),
            rooms.values().map(BTreeSet::len).sum::<usize>()
        );
        for (room, imports) in &rooms {
            let row = table.iter().find(|(name, _)| name == room);
            let allowed: BTreeSet<&str> = row
                .map(|(_, names)| names.split(' ').collect())
                .unwrap_or_default();
            let imports: BTreeSet<&str> = imports.iter().map(String::as_str).collect();
            let allowed = allowed
                .into_iter()
                .filter(|name| !name.is_empty())
                .collect::<BTreeSet<_>>();
            if imports != allowed || row.is_none() {
                let names: Vec<&str> = imports.iter().copied().collect();
                wrong.push(format!("{source}: (\"{room}\", \"{}\"),", names.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_path_names_neither_hypers_http1_nor_xds_nor_grpc() {
    let path =
        "serve inbound outbound worker.rs drain.rs error.rs tls balance upstream forward observe";
    let mut files = Vec::new();
    sources(&root().join("proxy/http/src"), &mut files);
    sources(&root().join("proxy/rules/src/route"), &mut files);
    sources(&root().join("proxy/rules/src/policy"), &mut files);
    for name in path.split(' ') {
        let at = root().join("proxy/src").join(name);
        if at.is_dir() {
            sources(&at, &mut files)
        } else {
            files.push(at)
        }
    }
    for file in files {
        let text = code(&file);
        for word in [
            "hyper::",
            "hyper_util",
            "tonic",
            "prost",
            "leno_proto",
            "HeaderMap",
            "crate::xds",
            "crate::bootstrap",
        ] {
            assert!(!text.contains(word), "{} names {word}", file.display());
        }
    }
}

#[test]
fn neither_side_links_the_other() {
    for (manifest, other) in [
        ("proxy/Cargo.toml", "leno-control-plane"),
        ("control-plane/Cargo.toml", "leno-proxy"),
    ] {
        let text = std::fs::read_to_string(root().join(manifest)).expect("a manifest");
        assert!(!text.contains(other), "{manifest} depends on {other}");
    }
    for (test, other) in [
        ("xds_client.rs", "mesh::Mesh"),
        ("xds_server.rs", "mesh::Proxy"),
    ] {
        let text = std::fs::read_to_string(root().join("tests/mesh").join(test)).expect("a test");
        assert!(!text.contains(other), "{test} uses {other}");
    }
}

#[test]
fn no_file_has_grown_into_a_second_house() {
    let mut large = Vec::new();
    for source in CRATES
        .map(|(source, _)| source)
        .iter()
        .chain(&["proto/src"])
    {
        let mut files = Vec::new();
        sources(&root().join(source), &mut files);
        for file in files {
            let lines = code(&file).lines().count();
            assert!(lines <= 650, "{} has {lines} lines", file.display());
            if lines > 450 && !is_tests(&file) {
                large.push((lines, file));
            }
        }
    }
    assert!(
        large.len() <= 4,
        "more than 4 files have over 450 lines: {large:#?}"
    );
}
