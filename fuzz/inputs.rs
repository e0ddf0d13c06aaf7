//! What the tests beside the targets read: the seeds of `fuzz/corpus`, whole and damaged. The damage is the same in every
//! run. A file of the tests of several crates.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngSeed, TestRunner};

/// Does something to an input from a place on.
#[derive(Debug, Clone)]
struct Damage {
    at: Index,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Flip(u8),
    Cut,
    /// So many bytes.
    Remove(usize),
    Insert(Vec<u8>),
    /// So many bytes, so often: brackets within brackets.
    Repeat(usize, usize),
    /// Another seed, from there on.
    Become(Vec<u8>, Index),
}

impl Damage {
    fn done_to(&self, mut input: Vec<u8>) -> Vec<u8> {
        // Behind the last byte is a place, too.
        let at = self.at.index(input.len() + 1);
        match &self.kind {
            Kind::Flip(bits) => input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bits),
            Kind::Cut => input.truncate(at),
            Kind::Remove(bytes) => {
                let end = input.len().min(at + bytes);
                drop(input.drain(at..end));
            }
            Kind::Insert(bytes) => drop(input.splice(at..at, bytes.iter().copied())),
            Kind::Repeat(bytes, times) => {
                let end = input.len().min(at + bytes);
                let more = input[at..end].repeat(*times);
                drop(input.splice(at..at, more));
            }
            Kind::Become(seed, from) => {
                input.truncate(at);
                input.extend_from_slice(&seed[from.index(seed.len() + 1)..]);
            }
        }
        input
    }
}

fn damage(seeds: Vec<Vec<u8>>, words: &'static str) -> impl Strategy<Value = Damage> {
    let words: Vec<&'static str> = words.split(' ').collect();
    let word = (select(words), any::<bool>())
        .prop_map(|(word, apart)| if apart { format!(" {word} ").into_bytes() } else { word.as_bytes().to_vec() });
    let kind = prop_oneof![
        1 => any::<u8>().prop_map(Kind::Flip),
        1 => Just(Kind::Cut),
        2 => (1..20_usize).prop_map(Kind::Remove),
        1 => vec(any::<u8>(), 1..4).prop_map(Kind::Insert),
        4 => word.prop_map(Kind::Insert),
        1 => (1..20_usize, 2..200_usize).prop_map(|(bytes, times)| Kind::Repeat(bytes, times)),
        2 => (select(seeds), any::<Index>()).prop_map(|(seed, from)| Kind::Become(seed, from)),
    ];
    (any::<Index>(), kind).prop_map(|(at, kind)| Damage { at, kind })
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no seeds in {}", dir.display());
    paths.iter().map(|path| std::fs::read(path).expect("reads a seed")).collect()
}

/// The promise holds for every seed of the target, and for so many inputs that damage makes of them; it puts in `words`,
/// which blanks divide.
pub(crate) fn hold(target: &str, promise: fn(&[u8]), words: &'static str, cases: u32) {
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| promise(seed));
    let damaged = (select(seeds.clone()), vec(damage(seeds, words), 1..6))
        .prop_map(|(seed, damages)| damages.iter().fold(seed, |input, damage| damage.done_to(input)));
    let rng_seed = RngSeed::Fixed(1);
    let config = ProptestConfig { cases, rng_seed, failure_persistence: None, ..ProptestConfig::default() };
    let held = TestRunner::new(config).run(&damaged, |input| {
        promise(&input);
        Ok(())
    });
    held.unwrap_or_else(|error| panic!("{target}: {error}"));
}
