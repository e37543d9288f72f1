//! Puts the kernel programs' objects into `OUT_DIR`: the committed ones, or with `WEIR_EBPF=source` ones built from
//! `shipper-ebpf` by `scripts/ebpf.sh`. The default needs nothing but stable Rust.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// The second is for kernels before 5.12.
const OBJECTS: [&str; 2] = ["weir-shipper.bpf.o", "weir-shipper-plain.bpf.o"];

fn main() -> Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let root = here.parent().context("the crate has no parent directory")?;
    println!("cargo::rerun-if-env-changed=WEIR_EBPF");
    println!("cargo::rerun-if-changed={}", here.join("ebpf").display());
    match env::var("WEIR_EBPF").as_deref() {
        Ok("source") => {
            for path in
                ["shipper-ebpf/src", "shipper-ebpf/Cargo.toml", "shipper-ebpf/Cargo.lock", "scripts/ebpf.sh"]
            {
                println!("cargo::rerun-if-changed={}", root.join(path).display());
            }
            build(root, &out)
        }
        Ok("committed") | Err(env::VarError::NotPresent) => {
            for name in OBJECTS {
                let object = here.join("ebpf").join(name);
                fs::copy(&object, out.join(name)).with_context(|| format!("copy {}", object.display()))?;
            }
            Ok(())
        }
        other => bail!("WEIR_EBPF is {other:?}; it may be `source` or `committed`"),
    }
}

fn build(root: &Path, out: &Path) -> Result<()> {
    let script = root.join("scripts/ebpf.sh");
    // A target directory of its own: the outer cargo holds the lock on the other one.
    let status = Command::new(&script)
        .arg("objects")
        .arg(out)
        .env("WEIR_EBPF_TARGET", out.join("ebpf"))
        .env_remove("RUSTC")
        .status()
        .with_context(|| format!("run {}", script.display()))?;
    ensure!(status.success(), "{} failed: {status}", script.display());
    Ok(())
}
