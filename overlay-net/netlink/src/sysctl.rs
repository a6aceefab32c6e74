//! Kernel network settings of the calling thread's network namespace.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// Sets `net.<key>` (for example `ipv4/ip_forward`), if it has another value.
pub fn set(key: &str, value: &str) -> Result<()> {
    let path = PathBuf::from("/proc/sys/net").join(key);
    let what = || format!("setting sysctl net/{key} to {value}");
    if std::fs::read_to_string(&path)
        .map_err(|e| Error::io(what(), e))?
        .trim()
        == value
    {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|e| Error::io(what(), e))
}

/// Reads `net.<key>`.
pub fn get(key: &str) -> Result<String> {
    let path = PathBuf::from("/proc/sys/net").join(key);
    std::fs::read_to_string(&path)
        .map(|s| s.trim().to_owned())
        .map_err(|e| Error::io(format!("reading sysctl net/{key}"), e))
}
