//! From what the runtime tells to what the reducer sees.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use balsa_cri::{ContainerState, ContainerStatus, Nanos, SandboxState, SandboxStatus};
use balsa_pod::{Exit, Instance, InstanceState, Sandbox, User};
use jiff::Timestamp;

use super::sandbox::labels;

/// Most bytes of a termination message.
const MAX_MESSAGE: u64 = 4096;

/// Most bytes and lines of a log that stand in for a message, as upstream.
const MAX_LOG: usize = 2048;
const MAX_LINES: usize = 80;

/// How much of the log's end has them in any case: runtimes break lines after 16 KiB, and add a time to each.
const LOG_TAIL: u64 = 48 << 10;

/// A time of the runtime's; "never" becomes 1970.
pub(crate) fn timestamp(nanos: Nanos) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A sandbox as the reducer sees it.
pub(crate) fn sandbox(status: &SandboxStatus) -> Sandbox {
    Sandbox {
        id: status.info.id.clone(),
        attempt: status.info.attempt,
        ready: status.info.state == SandboxState::Ready,
        ips: status.ips.clone(),
    }
}

/// A container as the reducer sees it.
pub(crate) fn instance(status: &ContainerStatus, sandbox_id: &str) -> Instance {
    let started = (status.started_at > 0).then(|| timestamp(status.started_at));
    let state = match status.state {
        ContainerState::Created => InstanceState::Created,
        ContainerState::Running => InstanceState::Running {
            started_at: timestamp(status.started_at),
        },
        ContainerState::Exited => InstanceState::Exited(Exit {
            code: status.exit_code,
            reason: reason(&status.reason, status.exit_code),
            message: message(status, status.exit_code),
            started_at: started,
            finished_at: timestamp(status.finished_at.max(status.started_at)),
        }),
        ContainerState::Unknown => InstanceState::Exited(Exit {
            code: 137,
            reason: balsa_pod::reasons::CONTAINER_STATUS_UNKNOWN.to_owned(),
            message: "The container could not be located when the pod was terminated".to_owned(),
            started_at: started,
            finished_at: timestamp(status.finished_at.max(status.started_at)),
        }),
    };
    let annotation = |name: &str| status.annotations.get(name).cloned().unwrap_or_default();
    Instance {
        id: status.id.clone(),
        name: status.name.clone(),
        sandbox_id: sandbox_id.to_owned(),
        attempt: annotation(labels::RESTART_COUNT)
            .parse()
            .unwrap_or(status.attempt),
        state,
        image: status.image.clone(),
        image_id: status.image_ref.clone(),
        spec_hash: annotation(labels::HASH),
        user: status.user.as_ref().map(|user| User {
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
        }),
        recursive_read_only: status.recursive_readonly.clone(),
    }
}

/// The end that an event told of: the runtime's own status lags behind it.
pub(crate) fn exit(instance: &Instance, code: i32, at: Nanos, oom: bool, message: String) -> Exit {
    let started_at = match &instance.state {
        InstanceState::Running { started_at } => Some(*started_at),
        _ => None,
    };
    let told = if oom { "OOMKilled" } else { "" };
    // The runtime may not know when, if it was away then.
    let finished_at =
        started_at.map_or_else(|| timestamp(at), |started| timestamp(at).max(started));
    Exit {
        code,
        reason: reason(told, code),
        message,
        started_at,
        finished_at,
    }
}

fn reason(told: &str, code: i32) -> String {
    match (told, code) {
        ("", 0) => "Completed".to_owned(),
        ("", _) => "Error".to_owned(),
        _ => told.to_owned(),
    }
}

/// Why a container says it ended: its message file, the end of its log where that may stand in, or what the
/// runtime says.
fn message(status: &ContainerStatus, code: i32) -> String {
    let path = status
        .annotations
        .get(labels::MESSAGE_PATH)
        .map(String::as_str)
        .unwrap_or_default();
    let policy = status
        .annotations
        .get(labels::MESSAGE_POLICY)
        .map(String::as_str)
        .unwrap_or_default();
    let told = termination_message(Path::new(path), policy, Path::new(&status.log_path), code);
    if told.is_empty() {
        status.message.clone()
    } else {
        told
    }
}

/// The message in the file, or the end of the log if the policy allows and the container failed.
pub(crate) fn termination_message(file: &Path, policy: &str, log: &Path, code: i32) -> String {
    let told = tail(file, MAX_MESSAGE).unwrap_or_default();
    if !told.is_empty() || policy != "FallbackToLogsOnError" || code == 0 {
        return String::from_utf8_lossy(&told).into_owned();
    }
    let log = tail(log, LOG_TAIL).unwrap_or_default();
    end_of_log(&String::from_utf8_lossy(&log), log.len() as u64 == LOG_TAIL)
}

/// The last of what a log in CRI's format says: time, stream, tag, text. What is tagged `P` goes on in the next line,
/// or the process ended without ending its line. The first line of a log that was `cut` is left out.
fn end_of_log(log: &str, cut: bool) -> String {
    let lines = log.lines().skip(usize::from(cut));
    let mut text = String::new();
    for line in lines {
        let mut parts = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(said)) = (parts.next(), parts.next()) else {
            continue;
        };
        text.push_str(said);
        if tag.split(':').next() != Some("P") {
            text.push('\n');
        }
    }
    let ends = text.trim_end_matches('\n').rmatch_indices('\n');
    let by_lines = ends.map(|(at, _)| at + 1).nth(MAX_LINES - 1).unwrap_or(0);
    let from = by_lines.max(text.len().saturating_sub(MAX_LOG));
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at));
    text.split_off(from.unwrap_or(text.len()))
}

fn tail(path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_log_stands_in_for_a_missing_message_of_a_failed_container() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("l"));
        std::fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two words\n",
        )
        .unwrap();
        let told = |policy: &str, code: i32| termination_message(&file, policy, &log, code);
        assert_eq!(told("FallbackToLogsOnError", 1), "one\ntwo words\n");
        std::fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout P DO\n2026-01-01T00:00:00Z stdout P NE\n",
        )
        .unwrap();
        assert_eq!(
            told("FallbackToLogsOnError", 1),
            "DONE",
            "without a line's end"
        );
        assert_eq!(told("FallbackToLogsOnError", 0), "");
        assert_eq!(told("File", 1), "");
        std::fs::write(&file, "own").unwrap();
        assert_eq!(told("FallbackToLogsOnError", 1), "own");
    }

    #[test]
    fn no_more_of_a_log_is_told_than_its_last_lines_and_bytes() {
        let line = |number: usize| format!("t stdout F line {number}\n");
        let many: String = (0..100).map(line).collect();
        let told = end_of_log(&many, false);
        assert_eq!(told.lines().count(), MAX_LINES);
        assert!(told.starts_with("line 20\n") && told.ends_with("line 99\n"));
        let long = end_of_log(&format!("t stdout F {}\n", "x".repeat(5000)), false);
        assert_eq!(long.len(), MAX_LOG);
        assert_eq!(
            end_of_log("out F half a line\nt stdout F whole\n", true),
            "whole\n"
        );
        assert_eq!(end_of_log("", false), "");
    }
}
