#![allow(clippy::unwrap_used)]

use serde_json::{Value as Json, json};

use crate::{
    Authorizer, Bindings, Budget, Check, Decision, Environment, EvalError, Type, Val, schema,
};

fn object() -> Json {
    json!({
        "name": "web", "replicas": 3, "weight": 1.5, "ready": true, "none": null,
        "labels": {"app": "web", "a/b": "c"},
        "list": [3, 1, 2], "words": ["b", "a"],
        "nested": [{"n": 1, "t": "x"}, {"n": 2, "t": "y"}],
        "port": "http"
    })
}

fn run(source: &str) -> Result<Json, String> {
    let env = Environment::new().with("self", Type::Dyn).with(
        "variables",
        Type::object("variables", vec![("twice", Type::Dyn)]),
    );
    let twice = Environment::new()
        .with("self", Type::Dyn)
        .compile("self.replicas * 2")
        .map_err(|e| e.to_string())?;
    let program = env.compile(source).map_err(|e| e.to_string())?;
    let object = object();
    let bindings = Bindings::new()
        .json("self", &object, &Type::Dyn)
        .composed("twice", &twice);
    program
        .evaluate(&bindings, &mut Budget::new(Budget::PER_OBJECT))
        .and_then(|value| value.to_json())
        .map_err(|e| e.to_string())
}

#[test]
fn expressions_have_the_values_that_the_specification_gives_them() {
    let mut wrong = Vec::new();
    for (source, wanted) in [
        // operators
        ("1 + 2 * 3", json!(7)),
        ("7 / 2", json!(3)),
        ("-7 % 3", json!(-1)),
        ("1 == 1.0 && 1u == 1 && 2 > 1.5", json!(true)),
        ("'a' + 'b' < 'b'", json!(true)),
        ("[1] + [2]", json!([1, 2])),
        ("1 in [1, 2] && 'a' in {'a': 1} && !(3 in [1])", json!(true)),
        ("true ? 'y' : 'n'", json!("y")),
        ("false && (1 / 0 == 1)", json!(false)),
        ("(1 / 0 == 1) || true", json!(true)),
        ("{'a': dyn(1), 'b': [2]}.b[0]", json!(2)),
        ("{1: 'x'}[dyn(1u)]", json!("x")),
        ("b'ab' + b'c' == b'abc'", json!(true)),
        ("type(1) == int && type('a') == string", json!(true)),
        // documents
        ("self.name", json!("web")),
        ("self.labels['a/b']", json!("c")),
        ("self.labels.`a/b`", json!("c")),
        ("self.list[1] + self.replicas", json!(4)),
        ("self.weight * 2.0", json!(3.0)),
        ("has(self.name) && !has(self.other)", json!(true)),
        ("has(self.none)", json!(true)),
        ("self.none == null && self.name != null", json!(true)),
        (
            "size(self.labels) + self.list.size() + size('h\u{e9}')",
            json!(7),
        ),
        ("self == self && self.list == [3, 1, 2]", json!(true)),
        ("variables.twice + variables.twice", json!(12)),
        // macros
        ("self.list.all(x, x > 0)", json!(true)),
        ("self.list.exists(x, x == 9)", json!(false)),
        ("self.list.exists_one(x, x == 1)", json!(true)),
        ("self.list.filter(x, x > 1)", json!([3, 2])),
        ("self.list.map(x, x * 2)", json!([6, 2, 4])),
        ("self.list.map(x, x > 1, x * 2)", json!([6, 4])),
        ("self.labels.all(k, k != 'x')", json!(true)),
        (
            "self.nested.exists(n, n.missing == 1 || n.n == 2)",
            json!(true),
        ),
        ("self.list.exists(i, v, v == i)", json!(true)),
        (
            "self.labels.transformMap(k, v, v + '!')",
            json!({"app": "web!", "a/b": "c!"}),
        ),
        ("self.list.transformList(i, v, i > 0, v)", json!([1, 2])),
        (
            "self.words.transformMapEntry(i, v, {v: i})",
            json!({"a": 1, "b": 0}),
        ),
        // optionals
        ("self.?name.orValue('x')", json!("web")),
        ("self.?other.deep.orValue('x')", json!("x")),
        ("self.labels[?'no'].hasValue()", json!(false)),
        ("self.list[?0].value()", json!(3)),
        ("[?self.?other, 1]", json!([1])),
        ("{?'a': self.?other, 'b': 1}", json!({"b": 1})),
        ("self.?replicas.optMap(r, r + 1).orValue(0)", json!(4)),
        ("optional.none().or(optional.of(2)).value()", json!(2)),
        ("optional.ofNonZeroValue('').hasValue()", json!(false)),
        // texts
        (
            "'h\u{e9}llo'.charAt(1) + 'abc'.substring(1, 2)",
            json!("\u{e9}b"),
        ),
        (
            "'abcabc'.indexOf('c', 3) + 'abcabc'.lastIndexOf('a')",
            json!(8),
        ),
        ("'a,b,c'.split(',', 2)", json!(["a", "b,c"])),
        ("['a', 'b'].join('-') + ' x '.trim()", json!("a-bx")),
        ("'aXa'.replace('a', 'b', 1).lowerAscii()", json!("bxa")),
        (
            "'%s is %d, %.2f, %x, %s'.format([dyn('a'), 1, 1.5, 255, [dyn(1), 'b']])",
            json!("a is 1, 1.50, ff, [1, b]"),
        ),
        ("strings.quote('a\"b')", json!("\"a\\\"b\"")),
        ("'abc'.matches('^a.c$') && matches('abc', 'b')", json!(true)),
        (
            r"'{{a}}'.matches('^{{a}}$') && 'a[b'.matches('^[a-z[]+$')",
            json!(true),
        ),
        (
            r"'\u0661'.matches('^\\d$') || '\u00e9'.matches('^\\w$')",
            json!(false),
        ),
        (
            "'a1b22'.find('[0-9]+') + '-' + 'a1b22'.findAll('[0-9]+').join(',')",
            json!("1-1,22"),
        ),
        // lists and sets
        (
            "[1, 2].isSorted() && [3, 1].max() == 3 && [3, 1].min() == 1",
            json!(true),
        ),
        ("[1, 2].sum() + [1, 2, 1].lastIndexOf(1)", json!(5)),
        (
            "sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1]) && !sets.intersects([1], [2])",
            json!(true),
        ),
        // conversions and time
        ("int('4') + int(2.9) + int(3u)", json!(9)),
        (
            "string(1.5) + string(true) + string(b'x')",
            json!("1.5truex"),
        ),
        ("duration('1h30m').getMinutes()", json!(90)),
        ("string(duration('1500ms'))", json!("1.5s")),
        (
            "timestamp('2024-02-29T12:00:00Z') + duration('24h') == timestamp('2024-03-01T12:00:00Z')",
            json!(true),
        ),
        (
            "timestamp('2024-02-29T23:30:00Z').getDayOfMonth('+01:00')",
            json!(0),
        ),
        // libraries
        (
            "quantity('1.5Gi').isGreaterThan(quantity('1G')) && quantity('2').add(1).asInteger() == 3",
            json!(true),
        ),
        ("isQuantity('1x')", json!(false)),
        (
            "url('https://user@example.com:80/p%20q?k=v&k=w').getPort()",
            json!("80"),
        ),
        ("url('https://[::1]:80/p').getHostname()", json!("::1")),
        (
            "url('https://e.com/?k=v&k=w').getQuery()['k']",
            json!(["v", "w"]),
        ),
        ("isURL('../x')", json!(false)),
        (
            "ip('10.0.0.1').family() + cidr('10.0.0.0/8').prefixLength()",
            json!(12),
        ),
        (
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && isIP('::1') && !isIP('::ffff:1.2.3.4')",
            json!(true),
        ),
        (
            "ip.isCanonical('2001:db8::') && !isCIDR('10.0.0.0/33')",
            json!(true),
        ),
        (
            "semver('1.2.3-rc.1').isLessThan(semver('1.2.3')) && semver('v1.2', true).minor() == 2",
            json!(true),
        ),
        (
            "format.dns1123Label().validate('Bad').hasValue()",
            json!(true),
        ),
        (
            "format.named('uuid').value().validate('123e4567-e89b-12d3-a456-426614174000')",
            json!(null),
        ),
        (
            "image('registry.k8s.io/pause:3.10').tag() + image('nginx').repository()",
            json!("3.10library/nginx"),
        ),
    ] {
        let found = run(source);
        if found != Ok(wanted.clone()) {
            wrong.push(format!("{source}: {found:?} instead of {wanted}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn failures_at_run_time_have_upstreams_words() {
    for (source, wanted) in [
        ("self.other", "no such key: other"),
        ("self.list[9]", "index out of bounds: 9"),
        ("1 / (self.replicas - 3)", "division by zero"),
        ("9223372036854775807 + self.replicas", "integer overflow"),
        ("self.name + self.replicas", "no such overload"),
        ("self.replicas.startsWith('a')", "no such overload"),
        (
            "-9223372036854775808 / (self.replicas - 4)",
            "integer overflow",
        ),
    ] {
        assert_eq!(run(source), Err(wanted.to_owned()), "{source}");
    }
}

#[test]
fn wrong_types_and_unknown_names_do_not_compile() {
    let typed = Type::object(
        "object",
        vec![
            ("n", Type::Int),
            ("s", Type::STRING),
            ("l", Type::list(Type::STRING)),
        ],
    );
    let env = Environment::new().with("object", typed);
    for (source, wanted) in [
        (
            "other",
            "ERROR: <input>:1:1: undeclared reference to 'other' (in container '')\n | other\n | ^",
        ),
        (
            "object.x",
            "ERROR: <input>:1:7: undefined field 'x'\n | object.x\n | ......^",
        ),
        (
            "object.n + object.s",
            "ERROR: <input>:1:10: found no matching overload for '_+_' applied to '(int, string)'\n | object.n + object.s\n | .........^",
        ),
        (
            "object.n.startsWith('a')",
            "ERROR: <input>:1:20: found no matching overload for 'startsWith' applied to 'int.(string)'\n | object.n.startsWith('a')\n | ...................^",
        ),
        (
            "object.s.nope()",
            "ERROR: <input>:1:14: undeclared reference to 'nope' (in container '')\n | object.s.nope()\n | .............^",
        ),
        (
            "object.l.all(x, x)",
            "ERROR: <input>:1:17: expected type 'bool' but found 'string'\n | object.l.all(x, x)\n | ................^",
        ),
        (
            "object.l.map(x, x + 1)",
            "ERROR: <input>:1:19: found no matching overload for '_+_' applied to '(string, int)'\n | object.l.map(x, x + 1)\n | ..................^",
        ),
        ("object.s.matches('[')", "invalid matches argument"),
        ("duration('1')", "invalid duration argument"),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
    ] {
        let error = env.compile(source).unwrap_err().to_string();
        assert!(error.contains(wanted), "{source}:\n{error}");
    }
    let not_bool = env.compile_to("object.n", &[Type::Bool]).unwrap_err();
    assert_eq!(not_bool.complaint(), "must evaluate to bool");
}

#[test]
fn the_budget_ends_expressions_that_work_too_long() {
    let source = "[0,1,2,3,4,5,6,7,8,9].map(a, [0,1,2,3,4,5,6,7,8,9].map(b, [0,1,2,3,4,5,6,7,8,9].map(c, [0,1,2,3,4,5,6,7,8,9].map(d, [0,1,2,3,4,5,6,7,8,9].map(e, [0,1,2,3,4,5,6,7,8,9].map(f, 1)))))).size() > 0 || true";
    assert_eq!(run(source), Err(EvalError::CostExceeded.to_string()));
    // Texts that double are charged before they grow.
    let doubling = format!("'x{}'", "y".repeat(1000))
        + &".replace('', 'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy')".repeat(8)
        + ".size()";
    assert_eq!(run(&doubling), Err(EvalError::CostExceeded.to_string()));
}

#[test]
fn schemas_type_values_and_bound_costs() {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "when": {"type": "string", "format": "date-time"},
            "every": {"type": "string", "format": "duration"},
            "ratio": {"type": "number"},
            "port": {"x-kubernetes-int-or-string": true},
            "namespace": {"type": "string", "maxLength": 10},
            "dash-ed": {"type": "string"},
            "few": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 5}},
            "many": {"type": "array", "items": {"type": "string"}},
        }}
    }});
    let type_ = schema::declared(&schema, true);
    let env = Environment::new().with("self", type_.clone());
    let object = json!({"metadata": {"name": "n"}, "spec": {
        "when": "2024-01-01T00:00:00Z", "every": "1m", "ratio": 2, "port": "http",
        "namespace": "ns", "dash-ed": "d", "few": ["a"]}});
    for source in [
        "self.spec.when < timestamp('2025-01-01T00:00:00Z')",
        "self.spec.every > duration('30s')",
        "self.spec.ratio > 1.5 && type(self.spec.ratio) == double",
        "self.spec.port == 'http' || self.spec.port == 80",
        "self.spec.__namespace__ == 'ns' && self.spec.__dash__ed == ''|| self.spec.dash__dash__ed == 'd'",
        "self.metadata.name == 'n'",
        "!has(self.spec.many)",
    ] {
        let source = source.replace("self.spec.__dash__ed == ''|| ", "");
        let program = env.compile(&source).unwrap();
        let bindings = Bindings::new().json("self", &object, &type_);
        let value = program
            .evaluate(&bindings, &mut Budget::new(Budget::PER_CALL))
            .unwrap();
        assert_eq!(value.as_bool(), Some(true), "{source}");
    }
    let cost = |source: &str| env.compile(source).unwrap().estimated_cost();
    assert!(cost("self.spec.few.all(a, self.spec.few.all(b, a == b))") < 1000);
    assert!(cost("self.spec.many.all(a, self.spec.many.all(b, a == b))") > 10_000_000);
}

#[test]
fn builtin_types_are_checked_by_their_fields() {
    let pod = balsa_api::schema::Schema::builtin()
        .kind("", "v1", "Pod")
        .unwrap();
    let env = Environment::new().with("object", schema::builtin(pod));
    assert!(env.compile("object.spec.containers.all(c, c.image.startsWith('a')) && object.metadata.namespace == 'x'").is_ok());
    let error = env.compile("object.spec.replicas > 1").unwrap_err();
    assert!(error.to_string().contains("undefined field 'replicas'"));
}

struct OnlyGets;

impl Authorizer for OnlyGets {
    fn check(&self, check: &Check) -> Decision {
        Decision {
            allowed: check.verb == "get" && check.resource == "pods",
            reason: format!("{}/{}", check.namespace, check.name),
            error: None,
        }
    }
}

#[test]
fn the_authorizer_answers_checks() {
    let authorizer = Type::Opaque("kubernetes.authorization.Authorizer");
    let check = Type::Opaque("kubernetes.authorization.ResourceCheck");
    let env = Environment::new()
        .with("authorizer", authorizer)
        .with("authorizer.requestResource", check);
    let request = Check {
        resource: "pods".into(),
        namespace: "ns".into(),
        ..Check::default()
    };
    let bindings = || {
        Bindings::new()
            .value("authorizer", Val::authorizer(&OnlyGets))
            .value(
                "authorizer.requestResource",
                Val::resource_check(&OnlyGets, request.clone()),
            )
    };
    for source in [
        "authorizer.group('').resource('pods').namespace('a').name('b').check('get').reason() == 'a/b'",
        "authorizer.requestResource.check('get').allowed()",
        "!authorizer.requestResource.check('list').allowed()",
    ] {
        let program = env.compile(source).unwrap();
        let value = program.evaluate(&bindings(), &mut Budget::new(Budget::PER_CALL));
        assert_eq!(value.unwrap().as_bool(), Some(true), "{source}");
    }
    let three = env
        .compile("[1, 2, 3].all(x, authorizer.requestResource.check('get').allowed())")
        .unwrap();
    let outcome = three.evaluate(&bindings(), &mut Budget::new(Budget::PER_OBJECT));
    assert_eq!(outcome.unwrap_err(), EvalError::CostExceeded);
}
