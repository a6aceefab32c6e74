//! A target and its runs.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::random::Random;
use crate::{memory, mutate, tree};

/// Inputs of a target in a usual run.
const RUNS: usize = 400;
/// Inputs that are kept for their outcomes.
const MOST_KEPT: usize = 500;
/// Time that no input may take, however slow the machine.
const SLOW: Duration = Duration::from_secs(5);
/// Memory that any input may cost, and how much more for each of its bytes.
const MEMORY: usize = 32 << 20;
const MEMORY_PER_BYTE: usize = 2_000;
/// Attempts to cut a failing input down.
const CUTS: usize = 500;

/// A parser and what it is fed.
#[derive(Debug)]
pub struct Fuzz {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    tokens: Vec<Vec<u8>>,
    longest: usize,
    runs: usize,
    trees: bool,
}

/// Why an input fails its target.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    Panic(String),
    Slow(Duration),
    Memory(usize),
}

impl Fuzz {
    /// A target with a name, which also chooses its random numbers.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            seeds: Vec::new(),
            tokens: Vec::new(),
            longest: 64 << 10,
            runs: RUNS,
            trees: false,
        }
    }

    /// Real bodies to start from.
    #[must_use]
    pub fn seeds<S: AsRef<[u8]>>(mut self, seeds: impl IntoIterator<Item = S>) -> Self {
        let seeds = seeds.into_iter().map(|seed| seed.as_ref().to_vec());
        self.seeds.extend(seeds);
        self
    }

    /// Words of the language.
    #[must_use]
    pub fn tokens<S: AsRef<[u8]>>(mut self, tokens: impl IntoIterator<Item = S>) -> Self {
        let tokens = tokens.into_iter().map(|token| token.as_ref().to_vec());
        self.tokens.extend(tokens);
        self
    }

    /// Seeds are JSON, and are mostly changed as trees.
    #[must_use]
    pub fn trees(mut self) -> Self {
        self.trees = true;
        self
    }

    /// So many inputs in a usual run (400).
    #[must_use]
    pub fn runs(mut self, runs: usize) -> Self {
        self.runs = runs;
        self
    }

    /// Inputs have at most so many bytes (64 KiB).
    #[must_use]
    pub fn longest(mut self, bytes: usize) -> Self {
        self.longest = bytes;
        self
    }

    /// Feeds inputs to `target`, which says what came of each: inputs with new outcomes are changed further.
    ///
    /// # Panics
    /// With the smallest input that was found to fail, and why it does.
    pub fn run(self, target: impl Fn(&[u8]) -> String) {
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let mut random = Random::of(number("BALSA_FUZZ_SEED").unwrap_or(0), self.name);
        let until = number("BALSA_FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
        let trace = std::env::var_os("BALSA_FUZZ_TRACE");
        let mut seen = HashSet::new();
        let mut kept = self.seeds.clone();
        if kept.is_empty() {
            kept.push(Vec::new());
        }
        let mut done = 0;
        while until.map_or(done < self.runs, |until| Instant::now() < until) {
            let input = match self.seeds.get(done) {
                Some(seed) => seed.clone(),
                None => self.next(&kept, &mut random),
            };
            done += 1;
            if let Some(path) = &trace {
                let _ = std::fs::write(path, &input);
            }
            match attempt(&target, &input) {
                Ok(outcome) => {
                    if seen.insert(outcome) && kept.len() < MOST_KEPT {
                        kept.push(input);
                    }
                }
                Err(fault) => self.fail(&target, input, fault),
            }
        }
    }

    fn next(&self, kept: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        let mut input = random.pick(kept).cloned().unwrap_or_default();
        let other = random.pick(kept).cloned().unwrap_or_default();
        let changes = 1 + random.below(6);
        if self.trees && random.below(4) > 0 {
            let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).ok();
            if let (Some(mut document), Some(other)) = (read(&input), read(&other)) {
                for _ in 0..changes {
                    tree::change(&mut document, &other, random);
                }
                return document.to_string().into_bytes();
            }
        }
        for _ in 0..changes {
            mutate::change(&mut input, &other, &self.tokens, self.longest, random);
        }
        input
    }

    fn fail(&self, target: &impl Fn(&[u8]) -> String, mut input: Vec<u8>, fault: Fault) {
        let kind = std::mem::discriminant(&fault);
        let fails = |bytes: &[u8]| {
            attempt(target, bytes).is_err_and(|f| std::mem::discriminant(&f) == kind)
        };
        if !matches!(fault, Fault::Slow(_)) {
            cut_down(&mut input, fails);
        }
        let fault = attempt(target, &input).err().unwrap_or(fault);
        panic!(
            "{}: {fault:?} with {} bytes: {}",
            self.name,
            input.len(),
            quoted(&input)
        );
    }
}

fn attempt(target: &impl Fn(&[u8]) -> String, input: &[u8]) -> Result<String, Fault> {
    let started = Instant::now();
    let (outcome, held) = memory::most(|| catch_unwind(AssertUnwindSafe(|| target(input))));
    let took = started.elapsed();
    let outcome = outcome.map_err(|why| {
        let text = why.downcast_ref::<String>().cloned();
        let text = text.or_else(|| why.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Fault::Panic(text.unwrap_or_default())
    })?;
    if took > SLOW {
        return Err(Fault::Slow(took));
    }
    if held > MEMORY + input.len() * MEMORY_PER_BYTE {
        return Err(Fault::Memory(held));
    }
    Ok(outcome)
}

/// Removes what is not needed to fail.
fn cut_down(input: &mut Vec<u8>, fails: impl Fn(&[u8]) -> bool) {
    let mut size = input.len() / 2;
    let mut left = CUTS;
    while size > 0 {
        let mut at = 0;
        while at < input.len() && left > 0 {
            left -= 1;
            let mut shorter = input.clone();
            shorter.drain(at..(at + size).min(shorter.len()));
            if fails(&shorter) {
                *input = shorter;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
}

fn quoted(input: &[u8]) -> String {
    const SHOWN: usize = 2_000;
    let mut text = String::from("b\"");
    for byte in input.iter().take(SHOWN) {
        // Writing to a String cannot fail.
        let _ = write!(text, "{}", byte.escape_ascii());
    }
    text.push_str(if input.len() > SHOWN { "\"..." } else { "\"" });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_panics_is_found_and_cut_down() {
        let found = catch_unwind(|| {
            Fuzz::new("panics")
                .seeds(["good"])
                .tokens(["bad"])
                .run(|bytes| {
                    assert!(!bytes.windows(3).any(|w| w == b"bad"), "oh");
                    String::new()
                });
        });
        let why = found.err().and_then(|why| why.downcast::<String>().ok());
        assert_eq!(
            why.map(|why| *why).as_deref(),
            Some("panics: Panic(\"oh\") with 3 bytes: b\"bad\"")
        );
    }

    #[test]
    fn runs_are_the_same_each_time() {
        let run = || {
            let all = std::cell::RefCell::new(Vec::new());
            Fuzz::new("same")
                .seeds([r#"{"a":[1,"b"]}"#])
                .trees()
                .run(|bytes| {
                    all.borrow_mut().push(bytes.to_vec());
                    String::new()
                });
            all.into_inner()
        };
        assert_eq!(run(), run());
    }
}
