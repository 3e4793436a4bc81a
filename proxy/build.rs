//! Links release builds for Linux with the functions in the order of `layout.ld`.

fn main() {
    println!("cargo::rerun-if-changed=layout.ld");
    println!("cargo::rerun-if-env-changed=LENO_LINK_MAP");
    if let Ok(map) = std::env::var("LENO_LINK_MAP") {
        println!("cargo::rustc-link-arg-bins=-Wl,-Map={map},--no-demangle");
    }
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|v| v == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/layout.ld");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
    }
}
