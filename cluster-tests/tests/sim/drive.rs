//! Many seeds, each in a process of its own, as many at a time as there are cores.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::arguments::{self, Asked, KEEPS_PROMISES, KEEPS_TRACES, SEEDS_VARIABLE, Seeds};
use crate::child::{self, Outcome, command_line};

/// One of so many seeds is run twice,
const SAMPLE: u64 = 20;
/// at least so many of a run.
const SAMPLES_MIN: u64 = 3;
/// How often a long run says how far it is, in seeds.
const PROGRESS: u64 = 100;
/// Failed seeds whose last events are shown; of the others a line says what was wrong.
const FAILURES_SHOWN: usize = 10;
/// Seeds that the summary names.
const NAMED_MAX: usize = 50;

pub(crate) fn main() -> ExitCode {
    let passed = match arguments::parse(std::env::args().skip(1), std::env::var(SEEDS_VARIABLE).ok()) {
        Err(error) => {
            eprintln!("{error}\n{}", arguments::USAGE);
            false
        }
        Ok(Asked::Help) => {
            println!("{}", arguments::USAGE);
            true
        }
        Ok(Asked::List { tests, terse }) => {
            tests.iter().for_each(|test| println!("{test}: test"));
            if !terse {
                println!("\n{} tests, 0 benchmarks", tests.len());
            }
            true
        }
        Ok(Asked::Simulate(one)) => child::simulate(one),
        Ok(Asked::Run { tests, seeds }) => run_tests(&tests, seeds),
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the tests that were asked for, and says so as cargo's harness does.
fn run_tests(tests: &[&str], seeds: Seeds) -> bool {
    let (promises, traces) = (tests.contains(&KEEPS_PROMISES), tests.contains(&KEEPS_TRACES));
    println!("\nrunning {} tests", tests.len());
    let begun = Instant::now();
    let jobs = jobs(seeds, promises, traces);
    let total = simulate_all(&jobs, seeds.seconds);
    if !jobs.is_empty() {
        total.show(seeds, begun.elapsed());
    }
    let mut outcomes = Vec::new();
    if promises {
        outcomes.push((KEEPS_PROMISES, no_seed_breaks_a_promise(&total)));
    }
    if traces {
        outcomes.push((KEEPS_TRACES, the_same_seed_twice_gives_the_same_trace(&total)));
    }
    for (test, passed) in &outcomes {
        println!("test {test} ... {}", if *passed { "ok" } else { "FAILED" });
    }
    let failed = outcomes.iter().filter(|(_, passed)| !passed).count();
    println!(
        "\ntest result: {}. {} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failed == 0 { "ok" } else { "FAILED" },
        outcomes.len() - failed,
        2 - outcomes.len(),
        begun.elapsed().as_secs_f64(),
    );
    failed == 0
}

/// Scenario: each seed is a cluster, its clients and its faults.
/// Guarantees: what was acknowledged is there once, what was committed stays, reads see what was promised.
fn no_seed_breaks_a_promise(total: &Total) -> bool {
    // What was never promised cannot be broken.
    total.failed.is_empty() && total.acknowledged > 0
}

/// Guarantees: a seed is all that a simulation depends on.
fn the_same_seed_twice_gives_the_same_trace(total: &Total) -> bool {
    total.differing.is_empty() && total.compared > 0
}

/// A seed to run.
#[derive(Debug, Clone, Copy)]
struct Job {
    seed: u64,
    /// Its traces are compared.
    twice: bool,
}

/// All seeds if promises are tested, and those of the sample twice if traces are.
fn jobs(seeds: Seeds, promises: bool, traces: bool) -> Vec<Job> {
    let every = (seeds.count / SAMPLES_MIN).clamp(1, SAMPLE);
    let all = (0..seeds.count).map(|at| Job { seed: seeds.from + at, twice: traces && at.is_multiple_of(every) });
    all.filter(|job| promises || job.twice).collect()
}

fn simulate_all(jobs: &[Job], seconds: u64) -> Total {
    let (next, total) = (AtomicU64::new(0), Mutex::new(Total::default()));
    let begun = Instant::now();
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let outcome = Outcome::of(job.seed, seconds);
                    let again = job.twice.then(|| Outcome::of(job.seed, seconds));
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    total.add(job.seed, seconds, &outcome, again.as_ref());
                    if total.seeds.is_multiple_of(PROGRESS) {
                        total.progress(jobs.len(), begun.elapsed());
                    }
                }
            });
        }
    });
    total.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What all simulations of a run came to. As large after thousands as after ten.
#[derive(Debug, Default)]
struct Total {
    seeds: u64,
    events: u64,
    steps: u64,
    simulated: f64,
    acknowledged: u64,
    attempted: u64,
    faults: BTreeMap<String, u64>,
    counts: BTreeMap<String, u64>,
    compared: u64,
    failed: Vec<u64>,
    differing: Vec<u64>,
    /// True time of all processes together, and of the slowest one.
    took: Duration,
    slowest: Option<(Duration, u64)>,
}

impl Total {
    fn add(&mut self, seed: u64, seconds: u64, outcome: &Outcome, again: Option<&Outcome>) {
        self.seeds += 1;
        self.events += outcome.number("events");
        self.steps += outcome.number("steps");
        self.simulated += outcome.field("simulated").parse().unwrap_or(0.0);
        self.acknowledged += outcome.number("acknowledged");
        self.attempted += outcome.number("attempted");
        for (sum, name) in [(&mut self.faults, "faults"), (&mut self.counts, "counts")] {
            for (what, count) in outcome.counts(name) {
                *sum.entry(what).or_default() += count;
            }
        }
        self.took += outcome.took;
        self.slowest = self.slowest.max(Some((outcome.took, seed)));
        if !outcome.passed {
            self.fail(seed, seconds, outcome);
        }
        let Some(again) = again else { return };
        self.compared += 1;
        if outcome.field("digest") != again.field("digest") {
            println!(
                "seed {seed} has the trace {:?} and the trace {:?}",
                outcome.field("digest"),
                again.field("digest")
            );
            child::show_first_difference(seed, seconds);
            println!("compare the output of two runs of\n    {}", command_line(seed, seconds));
            self.differing.push(seed);
        }
    }

    fn fail(&mut self, seed: u64, seconds: u64, outcome: &Outcome) {
        if self.failed.len() < FAILURES_SHOWN {
            outcome.show();
        }
        println!("seed {seed} failed: {}; to see all of it:", outcome.violation());
        println!("    {}", command_line(seed, seconds));
        self.failed.push(seed);
    }

    fn progress(&self, jobs: usize, elapsed: Duration) {
        let (failed, seconds) = (self.failed.len() + self.differing.len(), elapsed.as_secs_f64());
        println!(
            "{} of {jobs} seeds, {failed} failed, {} rows acknowledged, {seconds:.0} s",
            self.seeds, self.acknowledged
        );
    }

    fn show(&self, seeds: Seeds, elapsed: Duration) {
        let counted = |counts: &BTreeMap<String, u64>| {
            let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
            counts.join(", ")
        };
        let each = self.took.as_secs_f64() / self.seeds.max(1) as f64;
        let (slowest, of) = self.slowest.unwrap_or_default();
        println!("seeds {} from {}: {} failed", self.seeds, seeds.from, named(&self.failed));
        println!("run twice {}: {} with another trace", self.compared, named(&self.differing));
        println!("simulated {:.0} s: {} events, {} steps", self.simulated, self.events, self.steps);
        println!("rows {} acknowledged of {} attempted", self.acknowledged, self.attempted);
        println!("faults {}: {}", self.faults.values().sum::<u64>(), counted(&self.faults));
        println!("also {}", counted(&self.counts));
        println!(
            "took {:.0} s, {each:.1} s a seed, {:.1} s for seed {of}",
            elapsed.as_secs_f64(),
            slowest.as_secs_f64()
        );
    }
}

/// How many, and which.
fn named(seeds: &[u64]) -> String {
    let shown: Vec<String> = seeds.iter().take(NAMED_MAX).map(u64::to_string).collect();
    match seeds.len() {
        0 => "0".to_owned(),
        count if count > NAMED_MAX => format!("{count} ({}, ...)", shown.join(", ")),
        count => format!("{count} ({})", shown.join(", ")),
    }
}
