//! Changes of JSON documents: values of other types, in other places. What is well formed comes further than bytes.

use serde_json::{Map, Number, Value, json};

use crate::random::Random;

/// Changes a document once.
pub(crate) fn change(document: &mut Value, other: &Value, random: &mut Random) {
    let places = count(document);
    let chosen = random.below(places);
    let mut left = chosen;
    if let Some(place) = nth(document, &mut left) {
        change_here(place, other, random);
    }
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum::<usize>(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value that is visited as the nth.
fn nth<'v>(value: &'v mut Value, left: &mut usize) -> Option<&'v mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, left)),
        Value::Object(map) => map.values_mut().find_map(|item| nth(item, left)),
        _ => None,
    }
}

fn change_here(place: &mut Value, other: &Value, random: &mut Random) {
    match (random.below(6), &mut *place) {
        (0, Value::Object(map)) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            if let Some(key) = random.pick(&keys) {
                map.remove(key);
            }
        }
        (1, Value::Object(map)) => {
            let foreign = some(other, random);
            let key = some_key(other, random);
            map.insert(key, foreign);
        }
        (0, Value::Array(items)) => {
            let at = random.below(items.len());
            if at < items.len() {
                items.remove(at);
            }
        }
        (1, Value::Array(items)) => {
            let item = items.first().cloned().unwrap_or_default();
            items.extend(vec![item; 1 + random.below(5)]);
        }
        (2, _) => *place = some(other, random),
        _ => *place = odd(random),
    }
}

/// Some value of a document.
fn some(document: &Value, random: &mut Random) -> Value {
    let mut document = document.clone();
    let mut left = random.below(count(&document));
    nth(&mut document, &mut left)
        .map(|v| v.take())
        .unwrap_or_default()
}

fn some_key(document: &Value, random: &mut Random) -> String {
    fn all<'v>(value: &'v Value, keys: &mut Vec<&'v String>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| all(item, keys)),
            Value::Object(map) => {
                keys.extend(map.keys());
                map.values().for_each(|item| all(item, keys));
            }
            _ => {}
        }
    }
    let mut keys = Vec::new();
    all(document, &mut keys);
    random
        .pick(&keys)
        .map_or_else(|| "a".to_owned(), |key| (*key).clone())
}

fn odd(random: &mut Random) -> Value {
    match random.below(24) {
        0 => Value::Null,
        1 => true.into(),
        2 => 0.into(),
        3 => (-1).into(),
        4 => i64::MAX.into(),
        5 => i64::MIN.into(),
        6 => u64::MAX.into(),
        7 => Number::from_f64(1.5e300).map_or(Value::Null, Value::Number),
        8 => "".into(),
        9 => "a".repeat(random.below(5_000)).into(),
        10 => "é\u{0}\u{10ffff}\n".into(),
        11 => "1Ei".into(),
        12 => "-9999999999999999999999999999E999999".into(),
        13 => "9999-99-99T99:99:99Z".into(),
        14 => "0001-01-01T00:00:00Z".into(),
        15 => "/../../a".into(),
        16 => "::/129".into(),
        17 => "100%".into(),
        18 => json!([]),
        19 => json!({}),
        20 => json!([[[[[[[[[[{}]]]]]]]]]]),
        21 => json!({"": {"": ""}}),
        22 => Value::Array(vec![json!({"name": "a"}); random.below(300)]),
        _ => {
            let entries = (0..random.below(300)).map(|i| (format!("k{i}"), Value::from(i)));
            Value::Object(entries.collect::<Map<_, _>>())
        }
    }
}
