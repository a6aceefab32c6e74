//! Compiles the relay (`relay/main.rs`), a static program of its own that the library carries with it.
//!
//! Where that does not work, for want of a static C library say, the library carries nothing and the whole program
//! serves as the plugin.

use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "relay/main.rs";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let relay = out.join("relay");
    if let Err(why) = compile(&relay) {
        println!("cargo:warning=the CNI plugin will be the whole program: {why}");
        if let Err(why) = std::fs::write(&relay, b"") {
            println!("cargo:warning=cannot write {}: {why}", relay.display());
        }
    }
}

fn compile(relay: &Path) -> Result<(), String> {
    let variable = |name: &str| std::env::var(name).ok();
    let compiler = variable("RUSTC").unwrap_or_else(|| "rustc".to_owned());
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "--crate-name", "relay"]);
    for option in [
        "opt-level=s",
        "panic=abort",
        "lto=fat",
        "codegen-units=1",
        "strip=symbols",
        "target-feature=+crt-static",
        // At a fixed address nothing has to be relocated at each start.
        "relocation-model=static",
    ] {
        command.args(["-C", option]);
    }
    if let Some(target) = variable("TARGET") {
        command.args(["--target", &target]);
    }
    if let Some(linker) = variable("RUSTC_LINKER") {
        command.arg("-C").arg(format!("linker={linker}"));
    }
    let output = command.arg("-o").arg(relay).arg(SOURCE).output();
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(said
        .lines()
        .next()
        .unwrap_or("it does not say why")
        .to_owned())
}
