//! This machine: the cache outside the tree, and other programs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The folder for everything that is installed or kept outside the tree: `$XDG_CACHE_HOME/watershed`.
pub fn cache_dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let dir = base.join("watershed");
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Runs `command` to its end; anything but success is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Installs what building with the feature `tls` takes: the headers of the system's OpenSSL, and what finds them.
pub fn install_openssl() -> Result<()> {
    // Where somebody has it of his own, the build finds it by this.
    if std::env::var_os("OPENSSL_DIR").is_some() {
        return Ok(());
    }
    let found = Command::new("pkg-config").args(["--exists", "openssl"]).stdin(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    install_packages("OpenSSL's headers and pkg-config are needed to build with TLS", &["libssl-dev", "pkg-config"])
}

/// Installs Debian's `packages`; `why` is said where that can't be done.
pub(crate) fn install_packages(why: &str, packages: &[&str]) -> Result<()> {
    let command = format!("apt-get install -y {}", packages.join(" "));
    let user = Command::new("id").arg("-u").output().context("start id -u")?;
    if user.stdout.trim_ascii() != b"0" || !is_there("apt-get") {
        bail!("{why}; as root on Debian: {command}");
    }
    eprintln!("{command}");
    run(Command::new("apt-get").args(["-qq", "update"]).stdout(std::io::stderr()))?;
    run(Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(std::io::stderr()))
}

/// Whether `command` is on the PATH.
pub(crate) fn is_there(command: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(command).is_file())
}
