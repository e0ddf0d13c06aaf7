//! Which start of a disk this is: tells a disk from an older copy of itself.
//!
//! A number alone does not: an old copy that starts while no peer answers takes the number that the disk itself has
//! taken before. So each start draws a token as well, and a disk remembers the tokens of its last starts. What was seen
//! of a disk and is not among them was seen of another copy.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Starts that a disk remembers, and tells with every call. An old copy that has started this many times without
/// reaching a peer is not recognized any more.
const REMEMBERED_MAX: usize = 32;

/// One start of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StartEpoch {
    /// One above that of the start before; the first is 1.
    pub number: u64,
    /// Random.
    pub token: u32,
}

/// The last starts of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct StartHistory {
    /// Number of the last start; 0 before the first.
    number: u64,
    /// Newest first, without gaps.
    tokens: Vec<u32>,
}

impl StartHistory {
    /// `number` is that of the last start, `tokens` are of it and those before, newest first. `None` for what no disk
    /// can remember.
    pub fn new(number: u64, tokens: Vec<u32>) -> Option<Self> {
        let possible = tokens.is_empty() == (number == 0) && tokens.len() as u64 <= number;
        possible.then_some(Self { number, tokens })
    }

    /// Number of the last start; 0 before the first.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The last start.
    pub fn newest(&self) -> Option<StartEpoch> {
        self.tokens.first().map(|token| StartEpoch { number: self.number, token: *token })
    }

    /// With one more start.
    #[must_use]
    pub fn with_start(&self, token: u32) -> Self {
        let tokens = std::iter::once(token).chain(self.tokens.iter().copied()).take(REMEMBERED_MAX);
        Self { number: self.number + 1, tokens: tokens.collect() }
    }

    /// Whether `seen` can have been a start of this disk: it is in the history, or older than what is remembered.
    pub fn remembers(&self, seen: StartEpoch) -> bool {
        let Some(back) = self.number.checked_sub(seen.number) else { return false };
        let token = usize::try_from(back).ok().and_then(|back| self.tokens.get(back));
        token.is_none_or(|token| *token == seen.token)
    }
}

/// As it travels with every call: `3:9f3a6c1e,00c0ffee,12345678`.
impl fmt::Display for StartHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.number)?;
        for (at, token) in self.tokens.iter().enumerate() {
            write!(f, "{}{token:08x}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for StartHistory {
    type Err = MalformedHistory;

    fn from_str(text: &str) -> Result<Self, MalformedHistory> {
        let parsed = text.split_once(':').and_then(|(number, tokens)| {
            let tokens = tokens.split(',').filter(|token| !token.is_empty());
            let tokens = tokens.map(|token| u32::from_str_radix(token, 16)).collect::<Result<Vec<u32>, _>>().ok()?;
            Self::new(number.parse().ok()?, tokens)
        });
        parsed.ok_or_else(|| MalformedHistory(text.to_owned()))
    }
}

/// A text that is no [`StartHistory`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MalformedHistory(pub String);

impl fmt::Display for MalformedHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no history of starts", self.0)
    }
}

impl std::error::Error for MalformedHistory {}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(tokens: &[u32]) -> StartHistory {
        tokens.iter().fold(StartHistory::default(), |history, token| history.with_start(*token))
    }

    #[test]
    fn a_disk_remembers_its_own_starts_and_a_copy_lacks_those_after_it() {
        let copy = started(&[10, 20]);
        let disk = copy.with_start(30);
        for own in [10, 20, 30].into_iter().zip(1..).map(|(token, number)| StartEpoch { number, token }) {
            assert!(disk.remembers(own), "{own:?}");
            assert_eq!(copy.remembers(own), own.number < 3, "{own:?}");
        }
        assert!(!started(&[]).remembers(StartEpoch { number: 1, token: 10 }), "a disk that never started");
    }

    #[test]
    fn a_copy_that_starts_while_nobody_answers_takes_the_number_and_not_the_token() {
        let copy = started(&[10, 20]);
        let seen = copy.with_start(30).newest().expect("started");
        let mut alone = copy;
        for token in 100..130 {
            alone = alone.with_start(token);
            assert!(alone.number() >= seen.number && !alone.remembers(seen), "{alone}");
        }
    }

    #[test]
    fn what_is_older_than_the_memory_is_taken_for_its_own() {
        let old = started(&(1..=40).collect::<Vec<_>>());
        assert_eq!((old.number(), old.tokens().len()), (40, REMEMBERED_MAX));
        assert!(old.remembers(StartEpoch { number: 8, token: 99 }));
        assert!(!old.remembers(StartEpoch { number: 9, token: 99 }));
    }

    #[test]
    fn a_history_survives_as_text_and_other_texts_are_named() {
        for history in [started(&[]), started(&[7]), started(&[0x1234_5678, 0xc0_ffee, 0x9f3a_6c1e])] {
            assert_eq!(history.to_string().parse::<StartHistory>(), Ok(history));
        }
        assert_eq!(started(&[0xc0_ffee, 0x9f3a_6c1e]).to_string(), "2:9f3a6c1e,00c0ffee", "format 1 is frozen");
        for bad in ["", "2", "2:", "0:7", "1:7,8", "x:7", "2:xyz"] {
            let error = bad.parse::<StartHistory>().expect_err(bad);
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
    }
}
