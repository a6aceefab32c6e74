#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn matches(selector: &str, pairs: &[(&str, &str)]) -> bool {
    Selector::parse(selector).unwrap().matches(&labels(pairs))
}

#[test]
fn every_operator_of_the_text_form_matches() {
    let pod = [("app", "web"), ("tier", "front"), ("n", "5")];
    for selector in [
        "",
        "app=web",
        "app==web",
        " app = web , tier != back ",
        "app in (web, api)",
        "app notin (api)",
        "missing notin (x)",
        "missing!=x",
        "app",
        "!missing",
        "n>4",
        "n<6",
        "app in (web),tier",
        "in notin (in)",
    ] {
        assert!(matches(selector, &pod), "{selector}");
    }
    for selector in [
        "app=api",
        "app!=web",
        "app in (api)",
        "app notin (web)",
        "!app",
        "missing",
        "n>5",
        "x=",
    ] {
        assert!(!matches(selector, &pod), "{selector}");
    }
    assert!(matches("x=", &[("x", "")]));
    assert!(matches("x in (,a)", &[("x", "")]));
}

#[test]
fn broken_selectors_get_upstreams_words() {
    for (selector, message) in [
        ("a=b=c", "found '=', expected: ',' or 'end of string'"),
        ("a,", "found '', expected: identifier after ','"),
        (
            ",a",
            "found ',', expected: !, identifier, or 'end of string'",
        ),
        (
            "a in b",
            "unable to parse requirement: found 'b' expected: '('",
        ),
        (
            "a in (b",
            "unable to parse requirement: found '', expected: ',' or ')'",
        ),
        (
            "a b",
            "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
        ),
        (
            "!",
            "unable to parse requirement: found '', expected: identifier",
        ),
        (
            "a in ()",
            "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
        ),
        (
            "a>b",
            "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer",
        ),
    ] {
        assert_eq!(
            Selector::parse(selector).unwrap_err().0,
            message,
            "{selector}"
        );
    }
    let long = Selector::parse("a/b/c=d").unwrap_err().0;
    assert!(
        long.starts_with(
            "unable to parse requirement: key: Invalid value: \"a/b/c\": a qualified name must"
        ),
        "{long}"
    );
}

#[test]
fn a_label_selector_object_combines_labels_and_expressions() {
    let selector = json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "NotIn", "values": ["back"]},
            {"key": "gone", "operator": "DoesNotExist"},
        ],
    });
    let selector = Selector::from_label_selector(Some(&selector)).unwrap();
    assert!(selector.matches(&labels(&[("app", "web")])));
    assert!(!selector.matches(&labels(&[("app", "web"), ("tier", "back")])));
    assert_eq!(selector.to_string(), "app=web,!gone,tier notin (back)");
}

#[test]
fn an_absent_selector_selects_nothing_and_an_empty_one_everything() {
    let any = labels(&[]);
    assert!(!Selector::from_label_selector(None).unwrap().matches(&any));
    assert!(
        Selector::from_label_selector(Some(&json!({})))
            .unwrap()
            .matches(&any)
    );
}

#[test]
fn an_unknown_operator_is_named() {
    let selector = json!({"matchExpressions": [{"key": "a", "operator": "Near"}]});
    assert_eq!(
        Selector::from_label_selector(Some(&selector))
            .unwrap_err()
            .0,
        "\"Near\" is not a valid label selector operator"
    );
}

#[test]
fn node_selectors_compare_numbers() {
    let terms = [json!({"key": "cpus", "operator": "Gt", "values": ["4"]})];
    let selector = Selector::from_node_expressions(&terms).unwrap();
    assert!(selector.matches(&labels(&[("cpus", "8")])));
    assert!(!selector.matches(&labels(&[("cpus", "many")])));
}

#[test]
fn field_selectors_match_and_refuse() {
    let selector = FieldSelector::parse("metadata.name=a,status.phase!=Running").unwrap();
    let lookup = |field: &str| match field {
        "metadata.name" => Some("a"),
        "status.phase" => Some("Pending"),
        _ => None,
    };
    assert!(selector.matches(lookup));
    assert_eq!(selector.required("metadata.name"), Some("a"));
    assert_eq!(selector.required("status.phase"), None);
    assert_eq!(
        FieldSelector::parse("a=b,c").unwrap_err().0,
        "invalid selector: 'a=b,c'; can't understand 'c'"
    );
    assert_eq!(
        FieldSelector::parse(r"a=b\,c\=d").unwrap().requirements()[0].value,
        "b,c=d"
    );
    assert!(
        FieldSelector::parse("spec.nodeName=")
            .unwrap()
            .matches(|_| None)
    );
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "[a-c(),!=<> in\\\\]{0,30}") {
        let _ = Selector::parse(&text);
        let _ = FieldSelector::parse(&text);
    }

    #[test]
    fn printing_and_parsing_keep_the_meaning(text in "[ab]( in \\([ab],c\\)|=c|!=c| notin \\(c\\)|)(,![cd])?") {
        let selector = Selector::parse(&text).unwrap();
        prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn a_selector_and_its_opposite_never_both_match(value in "[a-c]{0,1}") {
        let labels = labels(&[("k", &value)]);
        let yes = Selector::parse("k in (a,b)").unwrap().matches(&labels);
        let no = Selector::parse("k notin (a,b)").unwrap().matches(&labels);
        prop_assert!(yes != no);
    }

    #[test]
    fn field_values_survive_escaping(value in "[a=,\\\\]{0,10}") {
        let escaped = value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        let selector = FieldSelector::parse(&format!("f={escaped}")).unwrap();
        prop_assert_eq!(selector.to_string(), format!("f={escaped}"));
        prop_assert_eq!(selector.required("f"), Some(value.as_str()));
    }
}
