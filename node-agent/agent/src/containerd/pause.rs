//! The sandbox image, made here byte by byte: one static program of some 250 bytes that ignores `SIGCHLD`
//! (so that the kernel reaps orphans in a shared process namespace) and waits until it is interrupted or
//! terminated. It takes those two signals from a blocked set, because the first process of a namespace never
//! sees signals that it has no handler for; pods that run this image as a container would else live until
//! their grace period is over.

use std::path::Path;

use balsa_cri::{Runtime, Streams};
use serde_json::json;
use sha2::{Digest, Sha256};
use tracing::info;

/// Name of the sandbox image.
pub(crate) const IMAGE: &str = "registry.k8s.io/pause:3.10";

/// Where the program's segment is mapped.
const BASE: u64 = 0x40_0000;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const ENTRY: usize = ELF_HEADER + PROGRAM_HEADER;

/// Imports the sandbox image unless the runtime has it.
pub(crate) async fn import<R: Runtime + Streams + ?Sized>(
    runtime: &R,
    scratch: &Path,
) -> balsa_cri::Result<()> {
    if runtime.image_status(IMAGE).await?.is_some() {
        return Ok(());
    }
    let local = |what: &str, error: std::io::Error| balsa_cri::Error::Local {
        what: what.to_owned(),
        message: error.to_string(),
    };
    let path = scratch.join("pause.tar");
    std::fs::write(&path, archive()).map_err(|error| local("writing the sandbox image", error))?;
    let done = runtime.import_image(&path).await;
    std::fs::remove_file(&path)
        .map_err(|error| local("removing the sandbox image's archive", error))?;
    done?;
    info!(image = IMAGE, "sandbox image imported");
    Ok(())
}

/// The machine code: `rt_sigaction(SIGCHLD, &ignore, NULL, 8)`, `rt_sigprocmask(SIG_BLOCK, &set, NULL, 8)`,
/// `rt_sigtimedwait(&set, NULL, NULL, 8)` until it tells of a signal, `exit_group(0)`; padded to 8 bytes,
/// followed by `struct kernel_sigaction` and the set.
#[cfg(target_arch = "x86_64")]
const CODE: &[u8] = &[
    0xb8, 13, 0, 0, 0, // mov eax, rt_sigaction
    0xbf, 17, 0, 0, 0, // mov edi, SIGCHLD
    0x48, 0x8d, 0x35, 63, 0, 0, 0, // lea rsi, [rip + 63]: the structure at 80
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8
    0x0f, 0x05, // syscall
    0xb8, 14, 0, 0, 0, // mov eax, rt_sigprocmask
    0x31, 0xff, // xor edi, edi: SIG_BLOCK
    0x48, 0x8d, 0x35, 71, 0, 0, 0, // lea rsi, [rip + 71]: the set at 112
    0x0f, 0x05, // syscall
    0xb8, 128, 0, 0, 0, // mov eax, rt_sigtimedwait
    0x48, 0x8d, 0x3d, 57, 0, 0, 0, // lea rdi, [rip + 57]: the set at 112
    0x31, 0xf6, // xor esi, esi
    0x31, 0xd2, // xor edx, edx
    0x0f, 0x05, // syscall
    0x85, 0xc0, // test eax, eax
    0x78, 0xea, // js back to the mov of rt_sigtimedwait
    0xb8, 231, 0, 0, 0, // mov eax, exit_group
    0x31, 0xff, // xor edi, edi
    0x0f, 0x05, // syscall
    0, 0, 0, 0, 0, 0,
];

/// The same for 64-bit ARM.
#[cfg(target_arch = "aarch64")]
const CODE: &[u8] = &[
    0x20, 0x02, 0x80, 0xd2, // mov x0, SIGCHLD
    0xa1, 0x02, 0x00, 0x10, // adr x1, the structure at 88
    0x02, 0x00, 0x80, 0xd2, // mov x2, 0
    0x03, 0x01, 0x80, 0xd2, // mov x3, 8
    0xc8, 0x10, 0x80, 0xd2, // mov x8, rt_sigaction
    0x01, 0x00, 0x00, 0xd4, // svc 0
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0: SIG_BLOCK
    0xe1, 0x02, 0x00, 0x10, // adr x1, the set at 120
    0x02, 0x00, 0x80, 0xd2, // mov x2, 0
    0x03, 0x01, 0x80, 0xd2, // mov x3, 8
    0xe8, 0x10, 0x80, 0xd2, // mov x8, rt_sigprocmask
    0x01, 0x00, 0x00, 0xd4, // svc 0
    0x40, 0x02, 0x00, 0x10, // adr x0, the set at 120
    0x01, 0x00, 0x80, 0xd2, // mov x1, 0
    0x02, 0x00, 0x80, 0xd2, // mov x2, 0
    0x03, 0x01, 0x80, 0xd2, // mov x3, 8
    0x28, 0x11, 0x80, 0xd2, // mov x8, rt_sigtimedwait
    0x01, 0x00, 0x00, 0xd4, // svc 0
    0x40, 0xff, 0xff, 0x37, // tbnz w0, 31, back to the adr of x0
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0
    0xc8, 0x0b, 0x80, 0xd2, // mov x8, exit_group
    0x01, 0x00, 0x00, 0xd4, // svc 0
];

/// `SIGINT` and `SIGTERM` as a set of signals: bit N-1 for signal N.
const ENDING: u64 = 1 << (2 - 1) | 1 << (15 - 1);

#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &str) = (62, "amd64");
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &str) = (183, "arm64");

/// The program as a static ELF file with one segment.
fn program() -> Vec<u8> {
    let mut code = CODE.to_vec();
    // handler = SIG_IGN, then flags, restorer and mask: all nothing.
    code.extend_from_slice(&1_u64.to_le_bytes());
    code.extend_from_slice(&[0; 24]);
    code.extend_from_slice(&ENDING.to_le_bytes());
    let size = (ENTRY + code.len()) as u64;

    let mut elf = Vec::with_capacity(ENTRY + code.len());
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend_from_slice(&2_u16.to_le_bytes()); // an executable
    elf.extend_from_slice(&MACHINE.0.to_le_bytes());
    elf.extend_from_slice(&1_u32.to_le_bytes());
    elf.extend_from_slice(&(BASE + ENTRY as u64).to_le_bytes());
    elf.extend_from_slice(&(ELF_HEADER as u64).to_le_bytes()); // program headers
    elf.extend_from_slice(&0_u64.to_le_bytes()); // no sections
    elf.extend_from_slice(&0_u32.to_le_bytes());
    for field in [ELF_HEADER as u16, PROGRAM_HEADER as u16, 1, 0, 0, 0] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    elf.extend_from_slice(&1_u32.to_le_bytes()); // to be loaded
    elf.extend_from_slice(&5_u32.to_le_bytes()); // readable, executable
    for field in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend_from_slice(&field.to_le_bytes());
    }
    elf.extend_from_slice(&code);
    elf
}

/// The image as an OCI layout in a tar archive.
fn archive() -> Vec<u8> {
    let layer = tar(&[("pause", 0o755, &program())]);
    let config = json!({
        "architecture": MACHINE.1,
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535", "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut top = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    top["annotations"] =
        json!({"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": "3.10"});
    let index = json!({"schemaVersion": 2, "manifests": [top]})
        .to_string()
        .into_bytes();
    let blob = |bytes: &[u8]| format!("blobs/{}", digest(bytes).replace(':', "/"));
    tar(&[
        ("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", 0o644, &index),
        (&blob(&manifest), 0o644, &manifest),
        (&blob(&config), 0o644, &config),
        (&blob(&layer), 0o644, &layer),
    ])
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

/// A POSIX tar archive of regular files.
fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, mode, bytes) in files {
        let mut header = [0_u8; 512];
        let mut put =
            |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", bytes.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(156, "0");
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(bytes);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    /// Does the program ignore its children and sleep? Before that, signals would end it by themselves.
    fn waits(pid: u32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let ignored = u64::from_str_radix(field("SigIgn:").unwrap().trim(), 16).unwrap();
        ignored & 1 << (libc::SIGCHLD - 1) != 0 && field("State:").unwrap().trim().starts_with('S')
    }

    #[test]
    fn the_program_outlives_its_children_and_ends_when_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        for ending in [libc::SIGTERM, libc::SIGINT] {
            let mut child = std::process::Command::new(&path).spawn().unwrap();
            let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !waits(child.id()) {
                assert!(std::time::Instant::now() < patience, "it never waits");
                std::thread::yield_now();
            }
            for signal in [libc::SIGCHLD, ending] {
                // SAFETY: signalling our own child.
                assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
            }
            let status = child.wait().unwrap();
            assert_eq!(
                (status.code(), status.signal()),
                (Some(0), None),
                "signal {ending}"
            );
        }
    }

    #[test]
    fn the_archive_is_whole_blocks_and_names_the_image() {
        let archive = archive();
        assert_eq!(archive.len() % 512, 0);
        assert!(String::from_utf8_lossy(&archive).contains(IMAGE));
    }
}
