//! hostPath volumes: what their `type` demands of the node.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Checks the path, making it where the type says so; the error is for people.
pub(crate) fn prepare(path: &Path, kind: &str) -> Result<(), String> {
    let io = |error: std::io::Error| format!("{}: {error}", path.display());
    let metadata = std::fs::metadata(path).ok();
    let failed = |what: &str| {
        Err(format!(
            "hostPath type check failed: {} is not {what}",
            path.display()
        ))
    };
    match (kind, metadata) {
        ("DirectoryOrCreate", None) => std::fs::create_dir_all(path).map_err(io),
        ("FileOrCreate", None) => std::fs::File::create(path).map(|_| ()).map_err(io),
        ("Directory" | "DirectoryOrCreate", Some(found)) if found.is_dir() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => failed("a directory"),
        ("File" | "FileOrCreate", Some(found)) if found.is_file() => Ok(()),
        ("File" | "FileOrCreate", _) => failed("a file"),
        ("Socket", Some(found)) if found.file_type().is_socket() => Ok(()),
        ("Socket", _) => failed("a socket file"),
        ("CharDevice", Some(found)) if found.file_type().is_char_device() => Ok(()),
        ("CharDevice", _) => failed("a character device"),
        ("BlockDevice", Some(found)) if found.file_type().is_block_device() => Ok(()),
        ("BlockDevice", _) => failed("a block device"),
        ("", Some(_)) => Ok(()),
        // As runtimes do for a bind mount whose source is missing.
        ("", None) => std::fs::create_dir_all(path).map_err(io),
        (other, _) => Err(format!("{other} is an invalid volume type")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::prepare;

    #[test]
    fn the_type_is_checked_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/y");
        assert!(prepare(&path, "Directory").is_err());
        assert!(prepare(&path, "DirectoryOrCreate").is_ok() && path.is_dir());
        assert!(prepare(&path, "File").is_err() && prepare(&path, "Directory").is_ok());
        let file = dir.path().join("f");
        assert!(prepare(&file, "FileOrCreate").is_ok() && prepare(&file, "File").is_ok());
        assert!(prepare(&file, "Socket").is_err() && prepare(&file, "Nonsense").is_err());
    }
}
