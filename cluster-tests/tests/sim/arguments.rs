//! What the program is asked for: by `make sim`, by itself for one seed, or by whoever runs tests (`cargo test`, nextest).

/// How things are at most asked for, for whoever mistypes.
pub(crate) const USAGE: &str = "\
usage: sim [--seeds COUNT] [--from SEED] [--seconds COUNT] [NAME OF A TEST]...
       sim --seed SEED [--seconds COUNT]       one simulation, with every event printed
COUNT of seeds is SIGNALDB_SIM_SEEDS unless it is said. Flags of cargo's test harness are understood; those that say how
to print or how many threads to use change nothing.";

/// Names the number of seeds where nobody says it.
pub(crate) const SEEDS_VARIABLE: &str = "SIGNALDB_SIM_SEEDS";
/// Seeds of a run that nobody said more about: a minute's worth.
const SEEDS: u64 = 10;
/// How long things go wrong, simulated seconds.
const SECONDS: u64 = 12;

pub(crate) const KEEPS_PROMISES: &str = "no_seed_breaks_a_promise";
pub(crate) const KEEPS_TRACES: &str = "the_same_seed_twice_gives_the_same_trace";
const TESTS: [&str; 2] = [KEEPS_PROMISES, KEEPS_TRACES];

/// Simulations that are to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seeds {
    pub(crate) from: u64,
    pub(crate) count: u64,
    /// How long things go wrong in each, simulated seconds.
    pub(crate) seconds: u64,
}

/// One simulation in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct One {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    /// Another process of this program reads what it prints.
    pub(crate) child: bool,
    /// Every event is printed.
    pub(crate) trace: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Help,
    /// The tests by name, without anything else if `terse`.
    List {
        tests: Vec<&'static str>,
        terse: bool,
    },
    Run {
        tests: Vec<&'static str>,
        seeds: Seeds,
    },
    Simulate(One),
}

/// As it was said, flag by flag.
#[derive(Debug, Default)]
struct Said {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: Option<u64>,
    seconds: Option<u64>,
    child: bool,
    trace: bool,
    help: bool,
    list: bool,
    terse: bool,
    exact: bool,
    /// None of ours is an ignored test or a benchmark.
    others_only: bool,
    names: Vec<String>,
    skipped: Vec<String>,
}

/// Understands what follows the name of the program; `seeds` is the value of [`SEEDS_VARIABLE`].
///
/// # Errors
/// What nobody understands, in words.
pub(crate) fn parse(arguments: impl IntoIterator<Item = String>, seeds: Option<String>) -> Result<Asked, String> {
    let mut said = Said::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if !argument.starts_with('-') {
            said.names.push(argument);
            continue;
        }
        let (flag, mut value) = match argument.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        said.flag(&flag, || value.take().or_else(|| arguments.next()).ok_or_else(|| format!("{flag} needs a value")))?;
    }
    if said.seeds.is_none() {
        said.seeds = seeds.map(|text| number(SEEDS_VARIABLE, &text)).transpose()?;
    }
    Ok(said.meaning())
}

fn number(what: &str, text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{what} needs a number, not {text:?}"))
}

impl Said {
    fn flag(&mut self, flag: &str, value: impl FnOnce() -> Result<String, String>) -> Result<(), String> {
        let count = |text: String| number(flag, &text).map(Some);
        match flag {
            "--seed" => self.seed = count(value()?)?,
            "--seeds" => self.seeds = count(value()?)?,
            "--from" => self.from = count(value()?)?,
            "--seconds" => self.seconds = count(value()?)?,
            "--child" => self.child = true,
            "--trace" => self.trace = true,
            "-h" | "--help" => self.help = true,
            // From here on what libtest understands.
            "--list" => self.list = true,
            "--format" => self.terse = value()? == "terse",
            "--exact" => self.exact = true,
            "--skip" => self.skipped.push(value()?),
            "--ignored" | "--bench" => self.others_only = true,
            "--test-threads" | "--color" | "--logfile" | "--shuffle-seed" | "-Z" => drop(value()?),
            "--include-ignored"
            | "--test"
            | "--nocapture"
            | "--no-capture"
            | "--show-output"
            | "-q"
            | "--quiet"
            | "--shuffle"
            | "--report-time"
            | "--ensure-time"
            | "--exclude-should-panic"
            | "--force-run-in-process"
            | "--fail-fast" => {}
            unknown => return Err(format!("{unknown} is not understood")),
        }
        Ok(())
    }

    fn meaning(self) -> Asked {
        let seconds = self.seconds.unwrap_or(SECONDS);
        if self.help {
            return Asked::Help;
        }
        if let Some(seed) = self.seed {
            return Asked::Simulate(One { seed, seconds, child: self.child, trace: self.trace || !self.child });
        }
        let tests = TESTS.into_iter().filter(|test| self.wants(test)).collect();
        if self.list {
            return Asked::List { tests, terse: self.terse };
        }
        let seeds = Seeds { from: self.from.unwrap_or(1), count: self.seeds.unwrap_or(SEEDS), seconds };
        Asked::Run { tests, seeds }
    }

    fn wants(&self, test: &str) -> bool {
        let named = |name: &String| if self.exact { name == test } else { test.contains(name.as_str()) };
        !self.others_only && (self.names.is_empty() || self.names.iter().any(named)) && !self.skipped.iter().any(named)
    }
}
