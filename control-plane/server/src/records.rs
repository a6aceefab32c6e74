//! What the servers keep in the store beside Kubernetes objects: who the servers are, and the join tokens.

use balsa_identity::{Identity, JoinRole, JoinToken, TokenRecord, files};
use balsa_store::{Compare, Op, Store, Txn, TxnOutcome};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

const SERVERS: &[u8] = b"/balsa/servers/";
const TOKENS: &[u8] = b"/balsa/tokens/";
const LEAVING: &[u8] = b"/balsa/leaving/";
/// A server that leaves is believed for so long; by then it is gone, and silent.
const LEAVES_FOR: Duration = Duration::from_secs(15);

/// One server as the others and the agents need to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Raft member id.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Where its API is.
    pub api: SocketAddr,
    /// Where its node link is.
    pub link: SocketAddr,
}

fn key(prefix: &[u8], name: &str) -> Bytes {
    [prefix, name.as_bytes()].concat().into()
}

fn decode<T: serde::de::DeserializeOwned>(store: &Store, prefix: &[u8]) -> Vec<T> {
    let Ok(found) = store.range(prefix, None, 0, None) else {
        return Vec::new();
    };
    found
        .kvs
        .iter()
        .filter_map(|kv| serde_json::from_slice(&kv.value).ok())
        .collect()
}

/// All servers that are members now, as this server's store has them.
#[must_use]
pub fn servers(store: &Store) -> Vec<ServerRecord> {
    let members: Vec<u64> = store.members().iter().map(|m| m.id).collect();
    let mut all: Vec<ServerRecord> = decode(store, SERVERS);
    all.retain(|s| members.contains(&s.id));
    all
}

/// Writes this server's record where it differs from what is there.
///
/// # Errors
/// When the store cannot take writes now.
pub async fn put_server(store: &Store, record: &ServerRecord) -> anyhow::Result<()> {
    let key = key(SERVERS, &record.id.to_string());
    let value = Bytes::from(serde_json::to_vec(record)?);
    if store.get(&key)?.is_some_and(|kv| kv.value == value) {
        return Ok(());
    }
    put(store, key, value, false).await?;
    Ok(())
}

/// Forgets a server that is no member any more.
///
/// # Errors
/// When the store cannot take writes now.
pub async fn forget_server(store: &Store, id: u64) -> anyhow::Result<()> {
    delete(store, key(SERVERS, &id.to_string())).await
}

/// Says that this server is about to stop.
///
/// # Errors
/// When the store cannot take writes now.
pub async fn leave(store: &Store) -> anyhow::Result<()> {
    let lease = store.lease_grant(LEAVES_FOR).await?;
    let op = Op::Put {
        key: key(LEAVING, &store.node_id().to_string()),
        value: Bytes::new(),
        lease: Some(lease),
    };
    store
        .txn(Txn {
            compares: Vec::new(),
            ops: vec![op],
            fence: None,
        })
        .await?;
    Ok(())
}

/// Says that this server is back, should it have left just before.
///
/// # Errors
/// When the store cannot take writes now.
pub async fn stay(store: &Store) -> anyhow::Result<()> {
    if leaving(store).contains(&store.node_id()) {
        delete(store, key(LEAVING, &store.node_id().to_string())).await?;
    }
    Ok(())
}

/// Ids of the servers that are about to stop, or did a moment ago.
#[must_use]
pub fn leaving(store: &Store) -> BTreeSet<u64> {
    let found = store.range(LEAVING, None, 0, None);
    let keys = found.iter().flat_map(|found| &found.kvs);
    keys.filter_map(|kv| {
        let id = kv.key.strip_prefix(LEAVING)?;
        std::str::from_utf8(id).ok()?.parse().ok()
    })
    .collect()
}

async fn delete(store: &Store, key: Bytes) -> anyhow::Result<()> {
    store
        .txn(Txn {
            compares: Vec::new(),
            ops: vec![Op::Delete { key }],
            fence: None,
        })
        .await?;
    Ok(())
}

async fn put(store: &Store, key: Bytes, value: Bytes, only_new: bool) -> anyhow::Result<bool> {
    let compares = if only_new {
        vec![Compare::Absent(key.clone())]
    } else {
        Vec::new()
    };
    let ops = vec![Op::Put {
        key,
        value,
        lease: None,
    }];
    let outcome = store
        .txn(Txn {
            compares,
            ops,
            fence: None,
        })
        .await?;
    Ok(matches!(outcome, TxnOutcome::Committed { .. }))
}

/// The record of a join token, read linearizably: a token that was just revoked is not honoured.
///
/// # Errors
/// When the store cannot answer now.
pub async fn token(store: &Store, id: &str) -> anyhow::Result<Option<TokenRecord>> {
    store.read_barrier().await?;
    let found = store.get(&key(TOKENS, id))?;
    Ok(found.and_then(|kv| serde_json::from_slice(&kv.value).ok()))
}

/// All join tokens, expired ones too, oldest first.
///
/// # Errors
/// When the store cannot answer now.
pub async fn tokens(store: &Store) -> anyhow::Result<Vec<TokenRecord>> {
    store.read_barrier().await?;
    let mut all: Vec<TokenRecord> = decode(store, TOKENS);
    all.sort_by_key(|t| t.created);
    Ok(all)
}

/// Forgets a join token; false when there is none of that id.
///
/// # Errors
/// When the store cannot take writes now.
pub async fn revoke_token(store: &Store, id: &str) -> anyhow::Result<bool> {
    if token(store, id).await?.is_none() {
        return Ok(false);
    }
    delete(store, key(TOKENS, id)).await?;
    Ok(true)
}

/// Makes a join token and keeps its record.
///
/// # Errors
/// When the store cannot take writes now.
pub async fn create_token(
    store: &Store,
    identity: &Identity,
    role: JoinRole,
    lifetime: Option<jiff::SignedDuration>,
    description: &str,
) -> anyhow::Result<JoinToken> {
    let token = JoinToken::generate(&identity.ca().sha256())?;
    let mut record = token.record(role, lifetime, Timestamp::now());
    description.clone_into(&mut record.description);
    put(
        store,
        key(TOKENS, &record.id),
        serde_json::to_vec(&record)?.into(),
        true,
    )
    .await?;
    Ok(token)
}

/// The first server keeps one token for servers and one for agents in its data folder, for the commands it
/// prints; made once.
///
/// # Errors
/// When the store or the folder cannot be written.
pub async fn first_tokens(
    store: &Store,
    identity: &Identity,
    dir: &Path,
) -> anyhow::Result<(String, String)> {
    let mut texts = Vec::new();
    for (role, file) in [
        (JoinRole::Server, "server-token"),
        (JoinRole::Agent, "agent-token"),
    ] {
        let path = dir.join(file);
        let text = match files::read(&path)? {
            Some(text) => text.trim().to_owned(),
            None => {
                let token = create_token(store, identity, role, None, "made at the first start")
                    .await?
                    .to_string();
                files::write_secret(&path, format!("{token}\n").as_bytes())?;
                token
            }
        };
        texts.push(text);
    }
    let agent = texts.pop().unwrap_or_default();
    Ok((texts.pop().unwrap_or_default(), agent))
}
