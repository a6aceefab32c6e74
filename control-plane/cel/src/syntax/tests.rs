#![allow(clippy::unwrap_used)]

use super::ast::{Expr, Literal};
use super::parse;

#[test]
fn literals_are_read_with_their_escapes() {
    for (source, wanted) in [
        ("1", Literal::Int(1)),
        ("-9223372036854775808", Literal::Int(i64::MIN)),
        ("0xFFu", Literal::Uint(255)),
        ("-1.5e3", Literal::Double(-1500.0)),
        (
            r#""a\n\x41\u00e9\101""#,
            Literal::String("a\nA\u{e9}A".into()),
        ),
        (r"r'\d+'", Literal::String(r"\d+".into())),
        ("'''it's'''", Literal::String("it's".into())),
        (r"b'\xff'", Literal::Bytes([0xff].as_slice().into())),
    ] {
        let Expr::Literal(found) = parse(source).unwrap().expr else {
            panic!("{source}");
        };
        assert_eq!(found, wanted, "{source}");
    }
}

#[test]
fn wrong_sources_say_where_they_are_wrong() {
    for (source, at) in [
        ("1 +", 3),
        ("a.", 2),
        ("[1, 2", 5),
        ("'open", 0),
        ("a b", 2),
        ("has(a)", 4),
        ("x.all(1, true)", 6),
        ("9223372036854775808", 0),
        ("a # b", 2),
        ("for", 0),
        ("'\\", 0),
        ("`x", 0),
        ("\u{e9}", 0),
    ] {
        let issue = parse(source).unwrap_err();
        assert_eq!(issue.at, at, "{source}: {}", issue.message);
    }
}

#[test]
fn deep_nesting_is_refused_and_does_not_use_up_the_stack() {
    for source in [
        "(".repeat(50_000),
        "-".repeat(50_000),
        "[".repeat(50_000),
        format!("a{}", ".a".repeat(40_000)),
        format!("1{}", "+1".repeat(40_000)),
        format!("a{}", "[0]".repeat(30_000)),
    ] {
        assert!(parse(&source).is_err());
    }
    assert!(parse(&format!("a{}", " && a".repeat(10_000))).is_ok());
}
