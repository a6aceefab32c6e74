//! Order of lists after a strategic merge: the patch's items in the patch's order, woven into the server's own
//! items in the server's order.

use serde_json::Value;

use super::strategic::{no_merge_key, same_key};
use crate::status::Status;

/// Whether two items are the same: by merge key, or by value for scalars.
fn same(a: &Value, b: &Value, merge_key: &str) -> bool {
    if merge_key.is_empty() {
        return a == b;
    }
    matches!((a.get(merge_key), b.get(merge_key)), (Some(x), Some(y)) if same_key(x, y))
}

fn position(list: &[Value], item: &Value, merge_key: &str) -> Option<usize> {
    list.iter().position(|other| same(other, item, merge_key))
}

fn check_keys(list: &[Value], merge_key: &str) -> Result<(), Status> {
    let missing = |item: &&Value| !merge_key.is_empty() && item.get(merge_key).is_none();
    match list.iter().find(missing) {
        Some(item) => Err(no_merge_key(item, merge_key)),
        None => Ok(()),
    }
}

/// Puts `merged` in order. `wanted` holds the patch's items, `server` the list as it was.
pub(super) fn arrange(
    merged: Vec<Value>,
    wanted: &[Value],
    server: &[Value],
    merge_key: &str,
) -> Result<Vec<Value>, Status> {
    for list in [&merged[..], wanted, server] {
        check_keys(list, merge_key)?;
    }
    let (mut patched, mut own): (Vec<Value>, Vec<Value>) = merged
        .into_iter()
        .partition(|item| position(wanted, item, merge_key).is_some());
    patched.sort_by_key(|item| position(wanted, item, merge_key));
    own.sort_by_key(|item| position(server, item, merge_key));
    Ok(weave(own, patched, server, merge_key))
}

/// Merges two ordered lists; where the server's order does not decide, the patch's items come first.
fn weave(own: Vec<Value>, patched: Vec<Value>, server: &[Value], merge_key: &str) -> Vec<Value> {
    let mut out = Vec::with_capacity(own.len() + patched.len());
    let mut own = own.into_iter().peekable();
    let mut patched = patched.into_iter().peekable();
    while let (Some(left), Some(right)) = (own.peek(), patched.peek()) {
        let places = (
            position(server, left, merge_key),
            position(server, right, merge_key),
        );
        let own_first = matches!(places, (Some(l), Some(r)) if l < r);
        out.extend(if own_first {
            own.next()
        } else {
            patched.next()
        });
    }
    out.extend(own);
    out.extend(patched);
    out
}

/// Checks that `$setElementOrder` lists all items of the patch, in their order.
pub(super) fn check_covers(
    patch: &[Value],
    wanted: &[Value],
    merge_key: &str,
) -> Result<(), Status> {
    let mut next = 0;
    for item in patch {
        // Deletions and other directives take no place in the order.
        if item.get("$patch").is_some() {
            continue;
        }
        if !merge_key.is_empty() && item.get(merge_key).is_none() {
            return Err(no_merge_key(item, merge_key));
        }
        match wanted[next..].iter().position(|w| same(w, item, merge_key)) {
            Some(offset) => next += offset + 1,
            None => {
                return Err(Status::bad_request(
                    "The order in patch list doesn't match the $setElementOrder list, or an item is missing from it",
                ));
            }
        }
    }
    Ok(())
}
