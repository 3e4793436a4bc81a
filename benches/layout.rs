//! Orders the functions of leno-proxy: writes `proxy/layout.ld`, which its release build is linked by.
//!
//! The kernel maps an accessed page of the program with its fifteen neighbours, so that used functions strewn among as
//! many unused ones bring nearly all of the program into memory. The used ones are found under callgrind, from the
//! start of both sidecars to some 1,200 requests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result};
use clap::Parser;

use leno_benches::{Side, build_with, profile, root};

/// Orders the functions of leno-proxy.
#[derive(Debug, Parser)]
struct Args {
    /// Requests of the longer run, and of the shorter one, which tell what each request runs through.
    #[arg(long, default_values_t = [200, 1200])]
    counts: Vec<usize>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let map = std::env::temp_dir().join(format!("leno-map-{}", std::process::id()));
    let programs = build_with(Some(&map))?;
    let mut costs = BTreeMap::new();
    for side in [Side::A, Side::B] {
        for (sign, count) in [-1, 1].into_iter().zip(&args.counts) {
            for (name, cost) in
                self_costs(&profile(&programs, side, &[], *count, &["--demangle=no"])?)
            {
                *costs.entry(name).or_insert(0) += sign * cost;
            }
        }
    }
    let text = fs::read_to_string(&map).context("the linker wrote no map")?;
    fs::remove_file(&map)?;
    let script = script(&sections(&text), &costs);
    fs::write(root().join("proxy/layout.ld"), script)?;
    Ok(())
}

/// Self cost of each function, in instructions, from callgrind's file.
fn self_costs(profile: &str) -> BTreeMap<String, i64> {
    let (mut names, mut costs) = (BTreeMap::new(), BTreeMap::new());
    let (mut current, mut is_call) = (String::new(), false);
    for line in profile.lines() {
        let named = line.strip_prefix("fn=").map(|name| (true, name));
        if let Some((is_own, name)) = named.or(line.strip_prefix("cfn=").map(|name| (false, name)))
        {
            let (id, name) = name.split_once(' ').unwrap_or((name, ""));
            if !name.is_empty() {
                // callgrind lists levels of recursion apart, as `name'2`; their costs are added up.
                let name = name.split('\'').next().unwrap_or(name);
                names.insert(id.to_owned(), name.to_owned());
            }
            if is_own {
                current = names.get(id).cloned().unwrap_or_default();
                costs.entry(current.clone()).or_insert(0);
            }
            continue;
        }
        if line.starts_with("calls=") {
            is_call = true;
            continue;
        }
        let mut words = line.split(' ');
        let (Some(at), Some(cost)) = (words.next(), words.next()) else {
            continue;
        };
        if at.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c))
            && let Ok(cost) = cost.parse::<i64>()
            && !std::mem::take(&mut is_call)
        {
            *costs.entry(current.clone()).or_insert(0) += cost;
        }
    }
    costs
}

/// The input section of each symbol in the linker's map, as a linker script names it.
fn sections(map: &str) -> BTreeMap<String, String> {
    let (mut sections, mut current) = (BTreeMap::new(), None);
    for line in map.lines() {
        // Address, load address, size and alignment stand before; symbols are indented further than sections.
        let Some(entry) = line.split_whitespace().nth(4) else {
            continue;
        };
        if let Some((file, section)) = entry.strip_suffix(')').and_then(|e| e.rsplit_once(":(")) {
            current = section.starts_with(".text").then(|| input(file, section));
        } else if let Some(section) = &current {
            sections.insert(entry.to_owned(), section.clone());
        }
    }
    sections
}

/// Name of a section in a linker script. Rust's functions have a hash at the end of their name that differs in the next
/// build; those of libc stand in a file each.
fn input(file: &str, section: &str) -> String {
    let member = file
        .split_once("libc.a(")
        .and_then(|(_, m)| m.strip_suffix(')'));
    if let Some(member) = member {
        return format!("*libc.a:{member}({section})");
    }
    // A function that the profile marks as hot or unlikely stands in a section of that name, but is the same function.
    let name = [".text.hot", ".text.unlikely", ".text"]
        .into_iter()
        .find_map(|kind| section.strip_prefix(kind)?.strip_prefix('.'));
    let Some(name) = name else {
        return format!("*({section})");
    };
    let name = name
        .split_once("17h")
        .map_or(name.to_owned(), |(name, _)| format!("{name}17h*"));
    format!("*(.text.{name} .text.hot.{name} .text.unlikely.{name})")
}

fn script(sections: &BTreeMap<String, String>, costs: &BTreeMap<String, i64>) -> String {
    let mut out = String::from(
        "/* Which functions stand together: written by `cargo bench-layout`. First what every request runs through,\n   \
         then what runs otherwise; the rest stays where it is. */\nSECTIONS { .text.used : {\n",
    );
    let mut seen = BTreeSet::new();
    for is_hot in [true, false] {
        let group = costs.iter().filter(|(_, cost)| (**cost > 0) == is_hot);
        let group: BTreeSet<&String> = group.filter_map(|(name, _)| sections.get(name)).collect();
        for input in group {
            // Several functions may share a section, and several symbols a name in the script.
            if seen.insert(input) && input != "*(.text)" {
                let _ = writeln!(out, "{input}");
            }
        }
    }
    out.push_str("} } INSERT BEFORE .text;\n");
    out
}
