//! There is one order of all operations that explains every answer and in which none comes before one that
//! had ended when it began. Found, or not, by search (Wing and Gong, with Lowe's memory of what has failed).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::sim::clients::{GROUP, parse};
use crate::sim::history::{Ask, Key, Moment, Operation, Record, Told, Value, truth};

/// The registers that are written together.
type State = [Option<Value>; GROUP as usize];

pub(super) fn check(record: &Record) -> Result<(), String> {
    let mut applied = BTreeSet::new();
    for (_, changes) in truth(record).into_values() {
        applied.extend(changes.iter().filter_map(parse));
    }
    let mut groups = BTreeMap::<Key, Vec<Step>>::new();
    for operation in &record.operations {
        if let Some((group, step)) = step(operation, &applied) {
            groups.entry(group).or_default().push(step);
        }
    }
    for (group, steps) in groups {
        if let Err(stuck) = search(&steps) {
            return Err(format!(
                "no order explains the {} operations on group {group}; the search got stuck before {stuck}",
                steps.len()
            ));
        }
    }
    Ok(())
}

/// An operation with a known effect.
#[derive(Debug, Clone)]
struct Step {
    from: Moment,
    /// `None`: at any time after `from`.
    to: Option<Moment>,
    ask: Ask,
    told: Told,
}

/// What an operation means for the order, if anything: what was not carried out means nothing, and of what is
/// unknown it is known from what was applied whether it was carried out.
fn step(operation: &Operation, applied: &BTreeSet<(Key, Value)>) -> Option<(Key, Step)> {
    let key = match &operation.ask {
        Ask::Read(key) => *key,
        Ask::Write { values, .. } => values.first()?.0,
    };
    match (&operation.ask, &operation.told) {
        (_, Told::NotDone) | (Ask::Read(_), Told::Unknown) => return None,
        (Ask::Write { values, .. }, Told::Unknown)
            if !values.iter().any(|value| applied.contains(value)) =>
        {
            return None;
        }
        _ => {}
    }
    let step = Step {
        from: operation.from,
        to: operation.to,
        ask: operation.ask.clone(),
        told: operation.told.clone(),
    };
    Some((key / GROUP, step))
}

/// The state after a step, if what was told agrees with the state before it.
fn apply(state: &State, step: &Step) -> Option<State> {
    let at = |key: Key| usize::from(key % GROUP);
    match &step.ask {
        Ask::Read(key) => (step.told == Told::Read(state[at(*key)])).then_some(*state),
        Ask::Write { expected, values } => {
            let holds = expected
                .iter()
                .all(|(key, value)| state[at(*key)] == *value);
            match step.told {
                Told::Refused => (!holds).then_some(*state),
                _ if !holds => None,
                _ => {
                    let mut state = *state;
                    for (key, value) in values {
                        state[at(*key)] = Some(*value);
                    }
                    Some(state)
                }
            }
        }
    }
}

/// Looks for an order; tells the first step that could not be placed.
fn search(steps: &[Step]) -> Result<(), String> {
    let mut steps: Vec<_> = steps.iter().collect();
    steps.sort_by_key(|step| step.from);
    let mut placed = vec![false; steps.len()];
    let mut failed = HashSet::<(Vec<bool>, State)>::new();
    let mut furthest = 0;
    // Each level: the state before it, and the candidate that is tried next.
    let mut path: Vec<(usize, State)> = Vec::new();
    let (mut state, mut candidate): (State, usize) = ([None; GROUP as usize], 0);
    loop {
        let first = placed.iter().position(|placed| !placed);
        let Some(first) = first else { return Ok(()) };
        if placed[first..]
            .iter()
            .zip(&steps[first..])
            .all(|(placed, step)| *placed || step.to.is_none())
        {
            return Ok(());
        }
        furthest = furthest.max(first);
        // Nothing may come before a step that has ended by then.
        let bound = placed
            .iter()
            .zip(&steps)
            .filter(|(placed, _)| !**placed)
            .filter_map(|(_, step)| step.to)
            .min()
            .unwrap_or(Moment::MAX);
        let mut next = None;
        for n in candidate.max(first)..steps.len() {
            if steps[n].from > bound {
                break;
            }
            if placed[n] {
                continue;
            }
            let Some(after) = apply(&state, steps[n]) else {
                continue;
            };
            placed[n] = true;
            if failed.insert((placed.clone(), after)) {
                next = Some((n, after));
                break;
            }
            placed[n] = false;
        }
        match next {
            Some((n, after)) => {
                path.push((n, state));
                state = after;
                candidate = 0;
            }
            None => {
                let Some((n, before)) = path.pop() else {
                    return Err(format!("{:?}", steps[furthest]));
                };
                placed[n] = false;
                state = before;
                candidate = n + 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(from: Moment, to: Option<Moment>, value: Value) -> Step {
        Step {
            from,
            to,
            ask: Ask::Write {
                expected: Vec::new(),
                values: vec![(0, value)],
            },
            told: Told::Done(0),
        }
    }

    fn read(from: Moment, to: Moment, value: Option<Value>) -> Step {
        Step {
            from,
            to: Some(to),
            ask: Ask::Read(0),
            told: Told::Read(value),
        }
    }

    #[test]
    fn a_read_beside_a_write_may_see_either() {
        for seen in [None, Some(1)] {
            assert_eq!(search(&[write(1, Some(4), 1), read(2, 3, seen)]), Ok(()));
        }
    }

    #[test]
    fn a_read_after_a_write_must_see_it() {
        assert!(search(&[write(1, Some(2), 1), read(3, 4, None)]).is_err());
        assert!(search(&[write(1, None, 1), read(3, 4, None), read(5, 6, Some(1))]).is_ok());
    }

    #[test]
    fn reads_do_not_go_back() {
        let steps = [write(1, Some(10), 1), read(2, 3, Some(1)), read(4, 5, None)];
        assert!(search(&steps).is_err());
    }

    #[test]
    fn a_write_whose_compare_cannot_have_held_is_found() {
        let swap = |from, to, expected, value| Step {
            from,
            to: Some(to),
            ask: Ask::Write {
                expected: vec![(0, expected)],
                values: vec![(0, value)],
            },
            told: Told::Done(0),
        };
        assert!(search(&[swap(1, 2, None, 1), swap(3, 4, Some(1), 2)]).is_ok());
        assert!(search(&[swap(1, 5, None, 1), swap(2, 4, None, 2)]).is_err());
    }
}
