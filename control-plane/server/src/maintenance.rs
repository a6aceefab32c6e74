//! What administrators do to the store of a running cluster: snapshots, and who is a member.

use balsa_api::status::Status;
use balsa_store::{Error, Member, MemberId, Store};
use http::Method;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::records;

const MEMBERS: &str = "/balsa/v1/members";
const TRANSFER: &str = "/balsa/v1/leader";
const SNAPSHOTS: &str = "/balsa/v1/snapshots";

/// A wish for a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// The file's name in the `snapshots` folder of the server's data folder: letters, digits, `.`, `_`, `-`.
    pub name: String,
}

/// A snapshot that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSnapshot {
    /// The file, on the server that was asked.
    pub path: String,
    /// The newest revision in it: what objects show as `resourceVersion`.
    pub revision: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A wish for another leader.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferRequest {
    /// Which member is to lead; any other one when absent.
    #[serde(default)]
    pub to: Option<MemberId>,
}

/// The members of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// The member that leads, if one does.
    pub leader: Option<MemberId>,
    /// All of them, by id.
    pub members: Vec<Member>,
    /// How many voters may fail, in words, and what to change if that is few.
    pub advice: String,
}

/// Whether a call is one of these.
pub(crate) fn serves(method: &Method, path: &str) -> bool {
    match *method {
        Method::GET => path == MEMBERS,
        Method::POST => path == TRANSFER || path == SNAPSHOTS,
        Method::DELETE => member_id(path).is_some(),
        _ => false,
    }
}

fn member_id(path: &str) -> Option<MemberId> {
    path.strip_prefix(MEMBERS)?.strip_prefix('/')?.parse().ok()
}

/// Answers a call that [`serves`] said yes to.
pub(crate) async fn answer(
    store: &Store,
    method: &Method,
    path: &str,
    body: serde_json::Value,
) -> Result<serde_json::Value, Status> {
    if *method == Method::DELETE {
        let id = member_id(path).unwrap_or_default();
        info!(id, "a member is removed");
        store
            .remove_member(id)
            .await
            .map_err(|error| status(&error))?;
        // Who reads the records leaves out those that are no members: one that stays is only in the way.
        if let Err(error) = records::forget_server(store, id).await {
            warn!(%error, id, "the record of a removed member stays");
        }
        return Ok(encode(&members(store)));
    }
    match path {
        MEMBERS => Ok(encode(&members(store))),
        TRANSFER => {
            let request: TransferRequest = read(body)?;
            store
                .transfer_leadership(request.to)
                .await
                .map_err(|error| status(&error))?;
            Ok(encode(&members(store)))
        }
        _ => save(store, read(body)?).await,
    }
}

async fn save(store: &Store, request: SnapshotRequest) -> Result<serde_json::Value, Status> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name = request.name;
    if name.is_empty() || name.starts_with('.') || name.len() > 200 || !name.chars().all(fits) {
        return Err(Status::bad_request(format!(
            "{name:?} is no name for a snapshot: use letters, digits, '.', '_' and '-'"
        )));
    }
    let data = store
        .data_dir()
        .parent()
        .unwrap_or_else(|| store.data_dir());
    let folder = data.join("snapshots");
    std::fs::create_dir_all(&folder)
        .map_err(|error| internal(format!("{}: {error}", folder.display())))?;
    let path = folder.join(name);
    let saved = store
        .save_snapshot(&path)
        .await
        .map_err(|error| status(&error))?;
    info!(path = %path.display(), revision = saved.revision, "a snapshot was saved");
    Ok(encode(&SavedSnapshot {
        path: path.display().to_string(),
        revision: saved.revision,
        bytes: saved.bytes,
    }))
}

fn members(store: &Store) -> Members {
    let members = store.members();
    Members {
        leader: store.leadership().borrow().leader,
        advice: advice(members.iter().filter(|member| member.voter).count()),
        members,
    }
}

/// How many of so many voters may fail, in words.
#[must_use]
pub fn advice(voters: usize) -> String {
    let spare = voters.saturating_sub(1) / 2;
    match voters {
        0 => "there is no voter yet".to_owned(),
        1 => "one voter: nothing is kept if it fails; add two".to_owned(),
        _ if voters.is_multiple_of(2) => format!(
            "{voters} voters, of which {spare} may fail: no more than of {}, and one more machine that can; add one or remove one",
            voters - 1
        ),
        _ => format!("{voters} voters, of which {spare} may fail"),
    }
}

fn status(error: &Error) -> Status {
    match error {
        Error::Membership(_) | Error::Invalid(_) => Status::bad_request(error.to_string()),
        Error::Unavailable { .. } | Error::Unknown { .. } | Error::Closed => {
            Status::new(503, "ServiceUnavailable", error.to_string())
        }
        _ => internal(error.to_string()),
    }
}

fn internal(message: String) -> Status {
    Status::new(500, "InternalError", message)
}

fn read<T: serde::de::DeserializeOwned>(body: serde_json::Value) -> Result<T, Status> {
    serde_json::from_value(body)
        .map_err(|error| Status::bad_request(format!("the body is not what was expected: {error}")))
}

fn encode(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_counts_are_explained() {
        assert!(advice(3).contains("1 may fail"));
        assert!(advice(4).contains("1 may fail: no more than of 3"));
        assert!(advice(2).contains("0 may fail"));
        assert!(advice(1).contains("nothing is kept"));
    }

    #[test]
    fn only_these_calls_are_served() {
        assert!(serves(&Method::DELETE, "/balsa/v1/members/12"));
        assert!(!serves(&Method::DELETE, "/balsa/v1/members/x"));
        assert!(!serves(&Method::DELETE, "/balsa/v1/members"));
        assert!(!serves(&Method::POST, "/balsa/v1/members"));
        assert!(serves(&Method::POST, "/balsa/v1/snapshots"));
    }
}
