//! NodeMetrics and PodMetrics as protobuf messages, which Go clients may ask for.
//!
//! Field numbers: k8s.io/metrics `v1beta1`.

use balsa_api::kind::Kind;
use balsa_api::kinds::walk::Walk;
use balsa_api::{duration, object};
use bytes::Bytes;
use serde_json::Value;

use crate::http::protobuf::{Writer, by_hand};
use crate::render;

const META: &str = "meta.k8s.io/v1";

/// One object.
pub(super) fn one(kind: &Kind, item: &Value) -> Option<Bytes> {
    by_hand(&render::api_version(kind), &kind.kind, |out| put(out, item))
}

/// A list of them.
pub(super) fn list(kind: &Kind, items: &[Value]) -> Option<Bytes> {
    let name = format!("{}List", kind.kind);
    by_hand(&render::api_version(kind), &name, |out| {
        put_items(out, items, put)
    })
}

/// PartialObjectMetadataList.
pub(super) fn metadata_list(items: &[Value]) -> Option<Bytes> {
    by_hand(META, "PartialObjectMetadataList", |out| {
        put_items(out, items, put_metadata)
    })
}

fn put_items(
    out: &mut Writer<'_>,
    items: &[Value],
    put: fn(&mut Writer<'_>, &Value) -> Option<()>,
) -> Option<()> {
    // The list's own metadata, in which there is nothing.
    out.message(1, |_| Some(()))?;
    items
        .iter()
        .try_for_each(|item| out.message(2, |out| put(out, item)))
}

fn put_metadata(out: &mut Writer<'_>, item: &Value) -> Option<()> {
    out.metadata(item.to_string().as_bytes())
}

fn put(out: &mut Writer<'_>, item: &Value) -> Option<()> {
    put_metadata(out, item)?;
    let at = object::parse_time(item["timestamp"].text())?;
    out.message(2, |out| {
        out.integer(1, at.as_second());
        out.integer(2, at.subsec_nanosecond().into());
        Some(())
    })?;
    let window = duration::parse_nanos(item["window"].text()).ok()?;
    out.message(3, |out| {
        out.integer(1, window);
        Some(())
    })?;
    if item["usage"].present() {
        return put_usage(out, 4, &item["usage"]);
    }
    item["containers"].items().iter().try_for_each(|container| {
        out.message(4, |out| {
            out.text(1, container["name"].text());
            put_usage(out, 2, &container["usage"])
        })
    })
}

/// A map from a resource to its quantity.
fn put_usage(out: &mut Writer<'_>, number: u32, usage: &Value) -> Option<()> {
    usage.entries().try_for_each(|(resource, amount)| {
        out.message(number, |out| {
            out.text(1, resource);
            out.message(2, |out| {
                out.text(1, amount.text());
                Some(())
            })
        })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    /// A field with its contents, as on the wire.
    fn field(number: u8, contents: &[u8]) -> Vec<u8> {
        let length = u8::try_from(contents.len()).unwrap();
        assert!(length < 128);
        [&[number << 3 | 2, length], contents].concat()
    }

    #[test]
    fn a_pods_containers_come_with_their_quantities() {
        let pod = json!({
            "metadata": {"name": "p"}, "timestamp": "1970-01-01T00:00:05Z", "window": "1s",
            "containers": [{"name": "web", "usage": {"cpu": "7n"}}],
        });
        let kinds = super::super::kinds::Kinds::new();
        let written = one(kinds.get("pods").unwrap(), &pod).unwrap();
        let quantity = field(2, &field(1, b"7n"));
        let usage = field(2, &[field(1, b"cpu"), quantity].concat());
        let container = field(4, &[field(1, b"web"), usage].concat());
        let timestamp = field(2, &[8, 5, 16, 0]);
        // 1,000,000,000 ns.
        let window = field(3, &[8, 0x80, 0x94, 0xeb, 0xdc, 0x03]);
        let message = [field(1, &field(1, b"p")), timestamp, window, container].concat();
        let type_meta = [field(1, b"metrics.k8s.io/v1beta1"), field(2, b"PodMetrics")].concat();
        let envelope = [
            b"k8s\0".to_vec(),
            field(1, &type_meta),
            field(2, &message),
            field(3, b""),
            field(4, b""),
        ];
        assert_eq!(written, envelope.concat());
    }
}
