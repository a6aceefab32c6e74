//! Expressions that strangers write: they end within their budget, and nothing panics.
#![allow(clippy::unwrap_used)]

use balsa_fuzz::Fuzz;
use serde_json::json;

use crate::{Bindings, Budget, Environment, Type, Val};

#[global_allocator]
static ALLOCATOR: balsa_fuzz::Counting = balsa_fuzz::Counting;

const SEEDS: [&str; 16] = [
    "self.replicas <= 10 && self.labels.all(k, self.labels[k] != '' || k in ['a', \"b\"])",
    "self.list.map(x, x * 2).filter(y, y > 3).exists_one(z, z == 6) ? 'a' : 'b'",
    "has(self.name) && self.name.matches('^[a-z]+(-[0-9]{1,3})?$') && self.name.size() < 63",
    "self.name.replace('a', 'b').split(',').join('-').upperAscii().charAt(0) == 'W'",
    "quantity('1.5Gi').add(quantity('1Mi')).isGreaterThan(quantity(self.name))",
    "ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.1.1')",
    "duration('1h30m').getMinutes() + timestamp('2026-01-01T00:00:00Z').getFullYear('+02:00')",
    "self.?a.?b.orValue({'c': [1, 2u, 3.0, b'x', null, true]})",
    "url('https://a.example:80/b?c=d#e').getHost() + string(1) + string(1u) + string(1.5)",
    "[1, 2, 3].sum() + [3, 1].max() + [1, 2].indexOf(2) + [[1], [2]][0][0] + {'a': 1}['a'] - -9223372036854775808",
    "sets.contains([1, 2], [1]) && semver('1.2.3-a.1+b').major() == 1 && 'a'.find('[a-z]') == 'a'",
    "'%s %d %.2f %x %e'.format(['a', 1, 2.0, 255, 3.0]) == '' || type(self) == map || dyn(1) == 1",
    "r'\\d' + '\\u00e9\\n' + \"\"\"a\nb\"\"\" + '''c''' // comment",
    "self.nested.all(n, i, n.n > 0 && i >= 0) || [1].transformList(i, v, v + i).size() == 1",
    "format.dns1123Label().validate('a-').hasValue() && 0x1F == 31 && 1e3 == 1000.0",
    "authorizer.group('apps').resource('deployments').namespace('d').check('get').allowed()",
];

const TOKENS: [&str; 36] = [
    "self",
    ".map(",
    ".filter(x, ",
    ".all(",
    ".exists(",
    "self.list",
    "self.labels",
    "[",
    "]",
    "{",
    "}",
    "(",
    ")",
    "?",
    ":",
    "&&",
    "||",
    "!",
    "-",
    "in",
    "==",
    "'",
    "\"\"\"",
    "b'",
    "r'",
    "\\x",
    "\\U0010ffff",
    "99999999999999999999",
    "1u",
    ".matches('",
    "(a*)*",
    "a{1000}",
    ".?",
    "[?0]",
    "string(",
    ".format([",
];

#[test]
fn expressions() {
    let environment = Environment::new().with("self", Type::Dyn);
    let document = json!({"name": "web", "replicas": 3, "labels": {"a": "b", "c": "d"}, "list": [3, 1, 2],
        "nested": [{"n": 1}], "none": null, "weight": 1.5, "long": "a".repeat(1000)});
    Fuzz::new("CEL")
        .seeds(SEEDS)
        .tokens(TOKENS)
        .longest(20_000)
        .runs(1_500)
        .run(|bytes| {
            let Ok(source) = std::str::from_utf8(bytes) else {
                return "no text".to_owned();
            };
            let program = match environment.compile(source) {
                Ok(program) => program,
                Err(why) => {
                    let text = why.to_string();
                    let known = text.lines().next().unwrap_or_default();
                    let known = known.chars().filter(char::is_ascii_alphabetic);
                    return known.take(60).collect();
                }
            };
            let bindings = Bindings::new().json("self", &document, &Type::Dyn);
            let value = program.evaluate(&bindings, &mut Budget::new(Budget::PER_OBJECT));
            match value.and_then(|value| value.to_json()) {
                Ok(value) => format!("{:?}", std::mem::discriminant(&value)),
                Err(why) => format!("{why:?}").chars().take(20).collect(),
            }
        });
}

#[test]
fn schemas() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string", "format": "date-time", "maxLength": 3},
        "b": {"type": "array", "items": {"x-kubernetes-int-or-string": true}, "maxItems": 4},
        "c": {"type": "object", "additionalProperties": {"type": "number"}, "maxProperties": 5},
        "d-e": {"x-kubernetes-preserve-unknown-fields": true, "type": "object"}, "f": {"x-kubernetes-embedded-resource": true, "type": "object"}}});
    let document = json!({"a": "2026-01-01T00:00:00Z", "b": [1, "x"], "c": {"x": 1.5}, "d-e": {"z": 1}, "f": {"kind": "Pod"}});
    const RULE: &str = "self.a < self.a && self.b.all(x, type(x) == int) && self.c.all(k, self.c[k] > 1.0) && has(self.d__dash__e)";
    let compile_and_run = |schema: &serde_json::Value, document: &serde_json::Value| {
        let type_ = crate::schema::declared(schema, true);
        let environment = Environment::new().with("self", type_.clone());
        let Ok(program) = environment.compile(RULE) else {
            return "not compiled".to_owned();
        };
        let _ = program.estimated_cost();
        let bindings = Bindings::new().json("self", document, &type_);
        match program.evaluate(&bindings, &mut Budget::new(Budget::PER_OBJECT)) {
            Ok(Val::Bool(value)) => value.to_string(),
            Ok(_) => "no bool".to_owned(),
            Err(why) => format!("{why:?}").chars().take(20).collect(),
        }
    };
    Fuzz::new("schema of CEL values")
        .seeds([schema.to_string()])
        .trees()
        .run(|bytes| match serde_json::from_slice(bytes) {
            Ok(schema) => compile_and_run(&schema, &document),
            Err(_) => "no JSON".to_owned(),
        });
    Fuzz::new("document of CEL values")
        .seeds([document.to_string()])
        .trees()
        .run(|bytes| match serde_json::from_slice(bytes) {
            Ok(document) => compile_and_run(&schema, &document),
            Err(_) => "no JSON".to_owned(),
        });
}
